//! Purpose: the server's own secrets, found in any of their encodings: masked in text, a reason to refuse code.
//! Masking takes out the secrets of known providers, too, whoever they belong to.

use super::patterns;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Secrets shorter than this are not searched for (bytes): they would be found in ordinary text.
const SHORTEST_SECRET: usize = 8;
/// Encoded forms shorter than this are not searched for (bytes).
const SHORTEST_NEEDLE: usize = 8;
/// Parts of a long secret that count as the secret (bytes); a multiple of 3, so that base64 lines hold whole ones.
const PIECE: usize = 24;
/// Secrets from this length on are also searched for in pieces (bytes): cut or wrapped copies are found.
const PIECES_FROM: usize = 40;
/// Lines of one secret that are looked at (a key file has some 50).
const LINES_CAP: usize = 500;
/// Bytes of a needle that choose where it may begin.
const KEY: usize = 4;
/// What stands in the place of a secret.
const REPLACEMENT: &str = "[secret]";

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const BASE64_URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// Needles made once from the secrets (plain, base64 at its three alignments, URL-safe base64, hex in both
/// cases, percent-encoded, JSON-escaped, reversed, …). Secrets shorter than 8 bytes are not searched for.
#[derive(Clone, Default)]
pub struct SecretScan {
    needles: Arc<Needles>,
}

/// Every form of every secret, by its first bytes.
#[derive(Default)]
struct Needles {
    count: usize,
    /// One bit for each pair of first bytes, so that most positions cost one look.
    pairs: Vec<u64>,
    by_key: HashMap<[u8; KEY], Vec<Vec<u8>>>,
}

impl std::fmt::Debug for SecretScan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SecretScan({} needles)", self.needles.count)
    }
}

impl SecretScan {
    pub fn new(secrets: &[&[u8]]) -> Self {
        let mut forms = BTreeSet::new();
        for secret in secrets {
            let secret = secret.trim_ascii();
            if secret.len() < SHORTEST_SECRET {
                continue;
            }
            for part in parts_of(secret) {
                forms.extend(forms_of(&part));
            }
        }
        let mut needles = Needles { count: 0, pairs: vec![0; 1024], by_key: HashMap::new() };
        for form in forms.into_iter().filter(|form| form.len() >= SHORTEST_NEEDLE) {
            let Some(&[a, b, c, d]) = form.first_chunk::<KEY>() else { continue };
            let pair = usize::from(a) * 256 + usize::from(b);
            if let Some(word) = needles.pairs.get_mut(pair / 64) {
                *word |= 1 << (pair % 64);
            }
            needles.count += 1;
            needles.by_key.entry([a, b, c, d]).or_default().push(form);
        }
        for list in needles.by_key.values_mut() {
            list.sort_by_key(|needle| std::cmp::Reverse(needle.len()));
        }
        Self { needles: Arc::new(needles) }
    }

    pub fn found_in(&self, bytes: &[u8]) -> bool {
        (0..bytes.len()).any(|at| self.longest_at(bytes, at).is_some())
    }

    /// Replaces each of the server's own secrets, and what looks like a known provider's, by `[secret]`.
    pub fn mask(&self, text: &str) -> String {
        let text = self.mask_own(text);
        let found = patterns::find(text.as_bytes());
        if found.is_empty() {
            return text;
        }
        let mut masked = String::with_capacity(text.len());
        let mut copied = 0;
        for finding in found {
            masked.push_str(text.get(copied..finding.start).unwrap_or_default());
            masked.push_str(REPLACEMENT);
            copied = finding.end;
        }
        masked.push_str(text.get(copied..).unwrap_or_default());
        masked
    }

    /// Replaces each of the server's own secrets; what belongs to others stays.
    pub fn mask_own(&self, text: &str) -> String {
        let bytes = text.as_bytes();
        let mut masked = Vec::with_capacity(bytes.len());
        let mut copied = 0;
        let mut at = 0;
        while at < bytes.len() {
            let Some(length) = self.longest_at(bytes, at) else {
                at += 1;
                continue;
            };
            masked.extend_from_slice(bytes.get(copied..at).unwrap_or_default());
            masked.extend_from_slice(REPLACEMENT.as_bytes());
            // Findings that overlap are one: nothing of the later one may stay.
            let mut end = at + length;
            let mut inner = at + 1;
            while inner < end {
                if let Some(length) = self.longest_at(bytes, inner) {
                    end = end.max(inner + length);
                }
                inner += 1;
            }
            at = end;
            copied = end;
        }
        if copied == 0 {
            return text.to_owned();
        }
        masked.extend_from_slice(bytes.get(copied..).unwrap_or_default());
        String::from_utf8_lossy(&masked).into_owned()
    }

    /// The length of the longest needle that begins here.
    fn longest_at(&self, bytes: &[u8], at: usize) -> Option<usize> {
        let rest = bytes.get(at..)?;
        let key @ [a, b, ..] = *rest.first_chunk::<KEY>()?;
        let pair = usize::from(a) * 256 + usize::from(b);
        let word = self.needles.pairs.get(pair / 64)?;
        if word & (1 << (pair % 64)) == 0 {
            return None;
        }
        let list = self.needles.by_key.get(&key)?;
        list.iter().find(|needle| rest.starts_with(needle)).map(Vec::len)
    }
}

/// The secret, and the parts of it that give it away just as well: its lines, pieces of a long one, the
/// password of an address.
fn parts_of(secret: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = vec![secret.to_vec()];
    let lines: Vec<&[u8]> =
        secret.split(|byte| matches!(byte, b'\n' | b'\r')).filter(|line| !line.is_empty()).collect();
    if lines.len() > 1 {
        // A key file: its frame is public, and so is how the first line of its data begins.
        let mut data = lines.into_iter().filter(|line| !line.starts_with(b"-----")).take(LINES_CAP);
        if let Some(first) = data.next() {
            parts.push(first.to_vec());
        }
        for line in data.filter(|line| line.len() >= PIECES_FROM) {
            parts.push(line.to_vec());
            parts.extend(pieces(line));
        }
    } else if let Some((_, rest)) = split_once(secret, b"://") {
        // An address: only its password is a secret by itself.
        let authority = rest.split(|byte| *byte == b'/').next().unwrap_or_default();
        let user = authority.iter().rposition(|byte| *byte == b'@').and_then(|at| authority.get(..at));
        if let Some((_, password)) = user.and_then(|user| split_once(user, b":"))
            && password.len() >= SHORTEST_SECRET
        {
            parts.push(password.to_vec());
        }
    } else if secret.len() >= PIECES_FROM && !secret.starts_with(b"eyJ") {
        // (The first part of a JSON Web Token is the same in all of them.)
        parts.extend(pieces(secret));
    }
    parts
}

fn pieces(of: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    of.chunks_exact(PIECE).map(<[u8]>::to_vec)
}

fn split_once<'a>(bytes: &'a [u8], at: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let position = bytes.windows(at.len()).position(|window| window == at)?;
    Some((bytes.get(..position)?, bytes.get(position + at.len()..)?))
}

/// Every encoding of one secret that is searched for.
fn forms_of(secret: &[u8]) -> Vec<Vec<u8>> {
    let mut forms = vec![secret.to_vec(), secret.iter().rev().copied().collect()];
    for alphabet in [BASE64, BASE64_URL] {
        for offset in 0..3 {
            forms.push(base_n(secret, alphabet, 6, offset));
        }
    }
    // Encoded twice, as nested tools do it.
    let once = base_n(secret, BASE64, 6, 0);
    for offset in 0..3 {
        forms.push(base_n(&once, BASE64, 6, offset));
    }
    for offset in 0..5 {
        let upper = base_n(secret, BASE32, 5, offset);
        forms.push(upper.to_ascii_lowercase());
        forms.push(upper);
    }
    let lower = each(secret, |byte| format!("{byte:02x}"));
    forms.push(lower.to_ascii_uppercase());
    forms.push(lower);
    // With the separators that dumps put between the bytes.
    for separator in [" ", ":"] {
        let spaced = secret.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(separator);
        forms.push(spaced.to_ascii_uppercase().into_bytes());
        forms.push(spaced.into_bytes());
    }
    let keep = |byte: u8| char::from(byte).to_string();
    // What is kept as it is: RFC 3986, HTML forms, JavaScript, and paths (with slashes).
    for kept in [&b"-._~"[..], b"-._*", b"-._~!'()*", b"-._~/"] {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || kept.contains(&byte);
        forms.push(each(secret, |byte| if plain(byte) { keep(byte) } else { format!("%{byte:02X}") }));
        forms.push(each(secret, |byte| if plain(byte) { keep(byte) } else { format!("%{byte:02x}") }));
    }
    forms.push(each(secret, |byte| format!("%{byte:02X}")));
    forms.push(each(secret, |byte| format!("%{byte:02x}")));
    forms.push(each(secret, |byte| format!("\\x{byte:02x}")));
    forms.push(each(secret, |byte| format!("\\u00{byte:02x}")));
    forms.push(json(secret, "/"));
    forms.push(json(secret, "\\/"));
    forms.push(each(secret, |byte| match byte {
        b'&' => "&amp;".into(),
        b'<' => "&lt;".into(),
        b'>' => "&gt;".into(),
        b'"' => "&quot;".into(),
        b'\'' => "&#39;".into(),
        _ => keep(byte),
    }));
    forms.push(each(secret, |byte| format!("&#{byte};")));
    forms.push(each(secret, |byte| format!("&#x{byte:x};")));
    forms.push(each(secret, |byte| format!("&#x{byte:X};")));
    forms.push(each(secret, |byte| format!("&amp;#{byte};")));
    forms.push(each(secret, |byte| format!("&amp;#x{byte:x};")));
    forms.push(each(secret, |byte| format!("\\u{{{byte:x}}}")));
    forms.push(each(secret, |byte| format!("\\{byte:03o}")));
    // Escapes in a JSON text.
    forms.push(each(secret, |byte| format!("\\\\x{byte:02x}")));
    forms.push(each(secret, |byte| format!("\\\\u00{byte:02x}")));
    forms.push(each(secret, |byte| format!("\\\\{byte:03o}")));
    // As lists of numbers.
    for separator in [", ", ",", " "] {
        let numbers: Vec<String> = secret.iter().map(u8::to_string).collect();
        forms.push(numbers.join(separator).into_bytes());
        let numbers: Vec<String> = secret.iter().map(|byte| format!("0x{byte:02x}")).collect();
        forms.push(numbers.join(separator).into_bytes());
    }
    forms.push(secret.iter().flat_map(|byte| [*byte, 0]).collect());
    forms.push(secret.iter().flat_map(|byte| [0, *byte]).collect());
    forms.push(secret.iter().map(|byte| rot13(*byte)).collect());
    forms
}

fn each(secret: &[u8], encode: impl Fn(u8) -> String) -> Vec<u8> {
    // Bytes above 0x7f that are kept as they are belong to UTF-8 text and must not be encoded again.
    let mut form = Vec::new();
    for byte in secret {
        let text = encode(*byte);
        if text.chars().eq([char::from(*byte)]) {
            form.push(*byte);
        } else {
            form.extend_from_slice(text.as_bytes());
        }
    }
    form
}

fn json(secret: &[u8], slash: &str) -> Vec<u8> {
    each(secret, |byte| match byte {
        b'"' => "\\\"".into(),
        b'\\' => "\\\\".into(),
        b'\n' => "\\n".into(),
        b'\r' => "\\r".into(),
        b'\t' => "\\t".into(),
        b'/' => slash.into(),
        0..0x20 => format!("\\u{byte:04x}"),
        _ => char::from(byte).to_string(),
    })
}

fn rot13(byte: u8) -> u8 {
    match byte {
        b'a'..=b'z' => (byte - b'a' + 13) % 26 + b'a',
        b'A'..=b'Z' => (byte - b'A' + 13) % 26 + b'A',
        _ => byte,
    }
}

/// The characters that `secret` alone decides when `offset` bytes stand before it, in an encoding of
/// `bits` bits a character.
fn base_n(secret: &[u8], alphabet: &[u8], bits: usize, offset: usize) -> Vec<u8> {
    let first = (offset * 8).div_ceil(bits);
    let end = (offset + secret.len()) * 8 / bits;
    let bit = |position: usize| -> usize {
        let byte = position.checked_sub(offset * 8).and_then(|inside| secret.get(inside / 8));
        byte.map_or(0, |byte| usize::from(byte >> (7 - position % 8) & 1))
    };
    (first..end)
        .filter_map(|character| {
            let value = (0..bits).fold(0, |value, index| value << 1 | bit(character * bits + index));
            alphabet.get(value).copied()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

    const KEY_TEXT: &str = "sk-ant-api03-\"q7/Zx+9\\w&Pd~Ty21";

    #[test]
    fn a_secret_is_found_in_every_encoding() {
        let scan = SecretScan::new(&[KEY_TEXT.as_bytes()]);
        let bytes = KEY_TEXT.as_bytes();
        let utf16: Vec<u8> = KEY_TEXT.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let utf16_big: Vec<u8> = KEY_TEXT.encode_utf16().flat_map(u16::to_be_bytes).collect();
        let mut samples: Vec<(&str, Vec<u8>)> = vec![
            ("plain", bytes.to_vec()),
            ("reversed", bytes.iter().rev().copied().collect()),
            ("hex", hex::encode(bytes).into_bytes()),
            ("hex upper", hex::encode_upper(bytes).into_bytes()),
            ("json", serde_json::to_string(KEY_TEXT).unwrap().into_bytes()),
            ("url", url::form_urlencoded::byte_serialize(bytes).collect::<String>().into_bytes()),
            ("percent", bytes.iter().map(|b| format!("%{b:02x}")).collect::<String>().into_bytes()),
            ("c", bytes.iter().map(|b| format!("\\x{b:02x}")).collect::<String>().into_bytes()),
            ("dump", bytes.iter().map(|b| format!("{b:02x} ")).collect::<String>().into_bytes()),
            ("utf-16", utf16),
            ("utf-16 big", utf16_big),
            ("html", KEY_TEXT.replace('&', "&amp;").replace('"', "&quot;").into_bytes()),
            ("html numbers", bytes.iter().map(|b| format!("&#{b};")).collect::<String>().into_bytes()),
            ("html hex", bytes.iter().map(|b| format!("&#x{b:x};")).collect::<String>().into_bytes()),
            ("octal", bytes.iter().map(|b| format!("\\{b:03o}")).collect::<String>().into_bytes()),
            ("numbers", format!("{bytes:?}").into_bytes()),
            ("hex numbers", bytes.iter().map(|b| format!("0x{b:02x}, ")).collect::<String>().into_bytes()),
            ("rot13", bytes.iter().map(|b| rot13(*b)).collect()),
            ("twice", STANDARD.encode(STANDARD.encode(bytes)).into_bytes()),
        ];
        for before in ["", "a", "ab", "abc"] {
            for after in ["", "x", "xy"] {
                let inside = format!("{before}{KEY_TEXT}{after}");
                samples.push(("base64", STANDARD.encode(&inside).into_bytes()));
                samples.push(("base64url", URL_SAFE_NO_PAD.encode(&inside).into_bytes()));
            }
        }
        for (name, sample) in samples {
            let mut text = b"some text before ".to_vec();
            text.extend_from_slice(&sample);
            text.extend_from_slice(b" and after");
            assert!(scan.found_in(&text), "{name}: {}", String::from_utf8_lossy(&sample));
            if let Ok(text) = String::from_utf8(text) {
                let masked = scan.mask(&text);
                assert!(!scan.found_in(masked.as_bytes()), "{name}: {masked}");
                assert!(masked.contains(REPLACEMENT) && masked.starts_with("some text before "), "{masked}");
            }
        }
    }

    #[test]
    fn other_text_is_left_alone() {
        let scan = SecretScan::new(&[KEY_TEXT.as_bytes(), b"short", b""]);
        for text in ["", "a", "short", "sk-ant-api03-", "Grüße 日本語 \u{1f600}", &"x".repeat(10_000)] {
            assert!(!scan.found_in(text.as_bytes()), "{text}");
            assert_eq!(scan.mask(text), text);
        }
        assert!(!SecretScan::default().found_in(KEY_TEXT.as_bytes()));
        assert_eq!(SecretScan::default().mask("a text"), "a text");
        assert!(!format!("{scan:?}").contains("sk-ant"));
    }

    #[test]
    fn overlapping_findings_leave_nothing() {
        let scan = SecretScan::new(&[b"abcdefghij", b"fghijklmnop"]);
        assert_eq!(scan.mask("1abcdefghijklmnop2"), "1[secret]2");
        assert_eq!(scan.mask("abcdefghijabcdefghij\u{e9}"), "[secret][secret]\u{e9}");
    }

    #[test]
    fn lines_and_pieces_of_a_long_secret_are_found() {
        let line = |seed: u8| -> String {
            (0..64u8).map(|i| char::from(b'A' + (i.wrapping_mul(seed).wrapping_add(seed)) % 26)).collect()
        };
        let pem = format!(
            "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA{}\n{}\n{}\n-----END RSA PRIVATE KEY-----\n",
            line(3),
            line(7),
            line(11)
        );
        let scan = SecretScan::new(&[pem.as_bytes()]);
        assert!(scan.found_in(line(7).as_bytes()));
        assert!(scan.found_in(STANDARD.encode(&pem).as_bytes()));
        let wrapped: String = STANDARD
            .encode(line(11))
            .as_bytes()
            .chunks(60)
            .map(|chunk| format!("{}\n", String::from_utf8_lossy(chunk)))
            .collect();
        assert!(scan.found_in(wrapped.as_bytes()));
        assert!(
            !scan.found_in(
                b"-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n-----END RSA PRIVATE KEY-----"
            )
        );

        let url = SecretScan::new(&[b"postgres://postgres:hunter22-long@db.internal/zeblit"]);
        assert!(url.found_in(b"password=hunter22-long"));
        assert!(!url.found_in(b"postgres://postgres:postgres@localhost/zeblit"));
    }

    #[test]
    fn eight_mebibytes_are_scanned_to_the_end() {
        let scan = SecretScan::new(&[KEY_TEXT.as_bytes(), b"another-secret-value"]);
        let mut text: Vec<u8> = b"an another- secret sk-ant line of text\n".repeat(8 * 1024 * 1024 / 39);
        assert!(!scan.found_in(&text));
        text.extend_from_slice(KEY_TEXT.as_bytes());
        assert!(scan.found_in(&text));
    }
}
