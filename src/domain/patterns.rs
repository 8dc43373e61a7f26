//! Purpose: secrets of known providers by their shape, plain and in the encodings that tools and people use.
//!
//! The shapes are the providers' documented prefixes and lengths. What is found is told by kind and place, never shown.

use std::sync::LazyLock;

/// Encodings inside encodings that are undone (base64 of base64, a JSON text in a JSON text).
const MAX_DEPTH: usize = 2;
/// Shortest run of base64 that can hold a token (characters); the shortest token has 20.
const BASE64_RUN: usize = 26;
/// Shortest run of base32 and of hexadecimal pairs.
const BASE32_RUN: usize = 32;
const HEX_PAIRS: usize = 20;
/// A line of base64 that is at least this long goes on in the next line.
const WRAPPED_LINE: usize = 60;
/// Different characters that the secret part of a token has at least: `xxxxxxxx` is a stand-in.
const LEAST_DIFFERENT: usize = 6;
/// Characters of one token that are looked at; what is longer is found and masked in pieces.
const LONGEST_TOKEN: usize = 512;
/// Bytes between the name of an AWS secret key and its value.
const NEAR: usize = 24;

/// Something that looks like a secret of a known provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finding {
    /// `GitHub token`, …
    pub kind: &'static str,
    pub start: usize,
    pub end: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Upper,
    Alnum,
    /// With `_`.
    Word,
    /// With `_` and `-`.
    Dash,
    /// With `_`, `-`, `.` and `=`.
    Dots,
    LowerHex,
    Base64,
}

impl Class {
    fn has(self, byte: u8) -> bool {
        match self {
            Self::Upper => byte.is_ascii_uppercase() || byte.is_ascii_digit(),
            Self::Alnum => byte.is_ascii_alphanumeric(),
            Self::Word => byte.is_ascii_alphanumeric() || byte == b'_',
            Self::Dash => byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'),
            Self::Dots => byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'='),
            Self::LowerHex => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
            Self::Base64 => byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'='),
        }
    }
}

/// A prefix and what follows it: at least so many of these characters; with `exact`, no more.
#[derive(Debug)]
struct Shape {
    kind: &'static str,
    prefix: &'static str,
    class: Class,
    least: usize,
    exact: bool,
}

impl Shape {
    /// Its prefix is like nothing else: it is found behind letters, too.
    fn stands_out(&self) -> bool {
        self.prefix.len() >= 4 && self.prefix.ends_with(['_', '-'])
    }
}

const fn shape(kind: &'static str, prefix: &'static str, class: Class, least: usize) -> Shape {
    Shape { kind, prefix, class, least, exact: false }
}

const fn exactly(kind: &'static str, prefix: &'static str, class: Class, least: usize) -> Shape {
    Shape { kind, prefix, class, least, exact: true }
}

const SHAPES: &[Shape] = &[
    exactly("AWS access key", "AKIA", Class::Upper, 16),
    exactly("AWS access key", "ASIA", Class::Upper, 16),
    exactly("AWS access key", "ABIA", Class::Upper, 16),
    exactly("AWS access key", "ACCA", Class::Upper, 16),
    shape("GitHub token", "ghp_", Class::Alnum, 36),
    shape("GitHub token", "gho_", Class::Alnum, 36),
    shape("GitHub token", "ghu_", Class::Alnum, 36),
    shape("GitHub token", "ghs_", Class::Alnum, 36),
    shape("GitHub token", "ghr_", Class::Alnum, 36),
    shape("GitHub token", "github_pat_", Class::Word, 60),
    shape("GitLab token", "glpat-", Class::Dash, 20),
    shape("GitLab token", "gldt-", Class::Dash, 20),
    shape("GitLab token", "glrt-", Class::Dash, 20),
    shape("GitLab token", "glptt-", Class::Dash, 20),
    shape("GitLab token", "glcbt-", Class::Dash, 20),
    shape("Slack token", "xoxb-", Class::Dash, 24),
    shape("Slack token", "xoxp-", Class::Dash, 24),
    shape("Slack token", "xoxa-", Class::Dash, 24),
    shape("Slack token", "xoxr-", Class::Dash, 24),
    shape("Slack token", "xoxs-", Class::Dash, 24),
    shape("Slack token", "xapp-", Class::Dash, 24),
    shape("Stripe key", "sk_live_", Class::Alnum, 20),
    shape("Stripe key", "rk_live_", Class::Alnum, 20),
    shape("Stripe key", "sk_test_", Class::Alnum, 20),
    shape("Stripe webhook secret", "whsec_", Class::Base64, 24),
    exactly("Google API key", "AIza", Class::Dash, 35),
    shape("Google OAuth secret", "GOCSPX-", Class::Dash, 24),
    shape("Google access token", "ya29.", Class::Dash, 40),
    shape("OpenAI key", "sk-proj-", Class::Dash, 24),
    shape("OpenAI key", "sk-svcacct-", Class::Dash, 24),
    shape("OpenAI key", "sk-admin-", Class::Dash, 24),
    exactly("OpenAI key", "sk-", Class::Alnum, 48),
    shape("Anthropic key", "sk-ant-", Class::Dash, 24),
    shape("OpenRouter key", "sk-or-v1-", Class::LowerHex, 40),
    shape("npm token", "npm_", Class::Alnum, 36),
    shape("PyPI token", "pypi-AgE", Class::Dash, 50),
    shape("Hugging Face token", "hf_", Class::Alnum, 34),
    shape("DigitalOcean token", "dop_v1_", Class::LowerHex, 64),
    shape("Docker Hub token", "dckr_pat_", Class::Dash, 24),
    shape("Shopify token", "shpat_", Class::LowerHex, 32),
    shape("SendGrid key", "SG.", Class::Dots, 60),
    shape("Databricks token", "dapi", Class::LowerHex, 32),
    shape("Atlassian token", "ATATT3", Class::Dots, 60),
    shape("Linear key", "lin_api_", Class::Alnum, 36),
    shape("Sentry token", "sntrys_", Class::Base64, 40),
    shape("Sentry token", "sntryu_", Class::LowerHex, 40),
    shape("Grafana token", "glsa_", Class::Word, 32),
    shape("Vault token", "hvs.", Class::Dash, 24),
    shape("RubyGems key", "rubygems_", Class::LowerHex, 48),
    exactly("crates.io token", "cio", Class::Alnum, 32),
    shape("Groq key", "gsk_", Class::Alnum, 40),
    shape("xAI key", "xai-", Class::Alnum, 40),
    shape("age key", "AGE-SECRET-KEY-1", Class::Upper, 50),
];

static BY_FIRST: LazyLock<Vec<Vec<&'static Shape>>> = LazyLock::new(|| {
    let mut table: Vec<Vec<&Shape>> = vec![Vec::new(); 256];
    for shape in SHAPES {
        if let Some(list) = shape.prefix.bytes().next().and_then(|first| table.get_mut(usize::from(first))) {
            list.push(shape);
        }
    }
    table
});

/// Everything found, in order, without overlaps.
pub fn find(bytes: &[u8]) -> Vec<Finding> {
    let mut found = Vec::new();
    scan(bytes, 0, &mut found);
    found.sort_by_key(|finding| (finding.start, finding.end));
    let mut apart: Vec<Finding> = Vec::new();
    for finding in found {
        match apart.last_mut() {
            Some(last) if finding.start < last.end => last.end = last.end.max(finding.end),
            _ => apart.push(finding),
        }
    }
    apart
}

/// The kinds that are found, each once.
pub fn kinds(bytes: &[u8]) -> Vec<&'static str> {
    let mut kinds: Vec<&str> = find(bytes).into_iter().map(|finding| finding.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

fn scan(bytes: &[u8], depth: usize, found: &mut Vec<Finding>) {
    direct(bytes, found);
    if depth >= MAX_DEPTH {
        return;
    }
    for run in base64_runs(bytes) {
        decoded(bytes, &run, depth, found, |text| {
            (0..4).filter_map(|skip| base64(text.get(skip..)?)).collect()
        });
    }
    for run in base32_runs(bytes) {
        decoded(bytes, &run, depth, found, |text| {
            (0..8).filter_map(|skip| base32(text.get(skip..)?)).collect()
        });
    }
    for (start, end, value) in hex_runs(bytes) {
        nested(&value, depth, start, end, found);
    }
    if let Some((plain, origin)) = unescaped(bytes) {
        let mut inner = Vec::new();
        scan(&plain, depth + 1, &mut inner);
        found.extend(inner.into_iter().filter_map(|finding| {
            let (start, end) = (*origin.get(finding.start)?, *origin.get(finding.end)?);
            Some(Finding { start, end, ..finding })
        }));
    }
    if depth == 0 {
        let backwards: Vec<u8> = bytes.iter().rev().copied().collect();
        let mut inner = Vec::new();
        direct(&backwards, &mut inner);
        let mirrored = |finding: Finding| Finding {
            start: bytes.len() - finding.end,
            end: bytes.len() - finding.start,
            ..finding
        };
        found.extend(inner.drain(..).map(mirrored));
        let turned: Vec<u8> = bytes.iter().map(|byte| rot13(*byte)).collect();
        direct(&turned, &mut inner);
        found.append(&mut inner);
    }
}

/// Decodes a run in each way, and finds the whole run when one of them holds a secret.
fn decoded(
    bytes: &[u8],
    run: &std::ops::Range<usize>,
    depth: usize,
    found: &mut Vec<Finding>,
    decode: impl Fn(&[u8]) -> Vec<Vec<u8>>,
) {
    let text: Vec<u8> = bytes
        .get(run.clone())
        .unwrap_or_default()
        .iter()
        .copied()
        .filter(|b| !b.is_ascii_whitespace())
        .collect();
    for value in decode(&text) {
        nested(&value, depth, run.start, run.end, found);
    }
}

fn nested(value: &[u8], depth: usize, start: usize, end: usize, found: &mut Vec<Finding>) {
    let mut inner = Vec::new();
    scan(value, depth + 1, &mut inner);
    found.extend(inner.into_iter().take(1).map(|finding| Finding { kind: finding.kind, start, end }));
}

/// The shapes as they stand.
fn direct(bytes: &[u8], found: &mut Vec<Finding>) {
    // Up to here nothing is a JSON Web Token: a long run of its characters is looked at once.
    let mut no_token_before = 0;
    for (at, byte) in bytes.iter().enumerate() {
        let Some(shapes) = BY_FIRST.get(usize::from(*byte)) else { continue };
        let rest = bytes.get(at..).unwrap_or_default();
        let starts =
            at.checked_sub(1).and_then(|before| bytes.get(before)).is_none_or(|b| !b.is_ascii_alphanumeric());
        for shape in shapes {
            if (starts || shape.stands_out())
                && let Some(length) = shape_length(shape, rest)
            {
                found.push(Finding { kind: shape.kind, start: at, end: at + length });
            }
        }
        let special = match byte {
            b'e' if starts && at >= no_token_before && rest.starts_with(b"eyJ") => {
                let token = json_web_token(rest);
                let run = rest.iter().take_while(|byte| Class::Dots.has(**byte)).count();
                no_token_before = at + token.unwrap_or(run);
                token.map(|length| ("JSON Web Token", length))
            }
            b'-' => private_key(rest).map(|length| ("private key", length)),
            b's' | b'S' => aws_secret(rest).map(|length| ("AWS secret key", length)),
            b'h' if starts => slack_hook(rest).map(|length| ("Slack webhook", length)),
            _ => None,
        };
        found.extend(special.map(|(kind, length)| Finding { kind, start: at, end: at + length }));
    }
}

fn shape_length(shape: &Shape, rest: &[u8]) -> Option<usize> {
    let body = rest.strip_prefix(shape.prefix.as_bytes())?;
    let length = body.iter().take(LONGEST_TOKEN).take_while(|byte| shape.class.has(**byte)).count();
    let fits = if shape.exact { length == shape.least } else { length >= shape.least };
    let body = body.get(..length)?;
    (fits && is_random(body)).then_some(shape.prefix.len() + length)
}

/// Not a stand-in of a document: enough different characters, and not marked as an example.
fn is_random(body: &[u8]) -> bool {
    let mut seen = [false; 256];
    for byte in body {
        if let Some(slot) = seen.get_mut(usize::from(*byte)) {
            *slot = true;
        }
    }
    let different = seen.iter().filter(|seen| **seen).count();
    different >= LEAST_DIFFERENT && !body.windows(7).any(|seven| seven.eq_ignore_ascii_case(b"example"))
}

/// `eyJ….eyJ….signature`.
fn json_web_token(rest: &[u8]) -> Option<usize> {
    let part = |from: usize, prefix: &[u8], least: usize| {
        let text = rest.get(from..)?;
        let length = text.iter().take_while(|byte| Class::Dash.has(**byte)).count();
        (text.starts_with(prefix) && length >= least).then_some(from + length)
    };
    let dot = |at: usize| (rest.get(at) == Some(&b'.')).then_some(at + 1);
    part(dot(part(dot(part(0, b"eyJ", 13)?)?, b"eyJ", 8)?)?, b"", 20)
}

/// `-----BEGIN … PRIVATE KEY-----` with data behind it.
fn private_key(rest: &[u8]) -> Option<usize> {
    let name = rest.strip_prefix(b"-----BEGIN ")?;
    let frame = name.get(..name.len().min(60))?;
    let mark = b"PRIVATE KEY-----";
    let long = b"PRIVATE KEY BLOCK-----";
    let find =
        |mark: &[u8]| frame.windows(mark.len()).position(|window| window == mark).map(|at| at + mark.len());
    let begin = 11 + find(mark).or_else(|| find(long))?;
    let data = rest.get(begin..)?;
    let length =
        data.iter().take_while(|byte| Class::Base64.has(**byte) || byte.is_ascii_whitespace()).count();
    let key = data.get(..length)?;
    let size = key.iter().filter(|byte| !byte.is_ascii_whitespace()).count();
    (size >= 40 && is_random(key)).then_some(begin + length)
}

/// The 40 characters after a name such as `aws_secret_access_key`.
fn aws_secret(rest: &[u8]) -> Option<usize> {
    let names: [&[u8]; 2] = [b"secret_access_key", b"secretaccesskey"];
    let name = names
        .iter()
        .find(|name| rest.get(..name.len()).is_some_and(|text| text.eq_ignore_ascii_case(name)))?;
    let behind = rest.get(name.len()..)?;
    let gap =
        behind.iter().take(NEAR).take_while(|byte| !byte.is_ascii_alphanumeric() && **byte != b'/').count();
    let value = behind.get(gap..)?;
    let length = value.iter().take_while(|byte| Class::Base64.has(**byte)).count();
    (gap > 0 && length == 40 && is_random(value.get(..40)?)).then_some(name.len() + gap + length)
}

fn slack_hook(rest: &[u8]) -> Option<usize> {
    let path = rest.strip_prefix(b"hooks.slack.com/services/")?;
    let length = path.iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'/').count();
    (length >= 30 && is_random(path.get(..length)?)).then_some(25 + length)
}

fn base64_runs(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let is_digit = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_');
    let mut runs = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if !bytes.get(at).copied().is_some_and(is_digit) {
            at += 1;
            continue;
        }
        let start = at;
        let mut line = at;
        loop {
            while bytes.get(at).copied().is_some_and(is_digit) {
                at += 1;
            }
            // Wrapped: the next line goes on.
            let skip = match bytes.get(at..).unwrap_or_default() {
                [b'\r', b'\n', ..] => 2,
                [b'\n', ..] => 1,
                _ => 0,
            };
            let goes_on =
                skip > 0 && at - line >= WRAPPED_LINE && bytes.get(at + skip).copied().is_some_and(is_digit);
            if !goes_on {
                break;
            }
            at += skip;
            line = at;
        }
        let mut end = at;
        while bytes.get(end) == Some(&b'=') && end - at < 2 {
            end += 1;
        }
        if end - start >= BASE64_RUN {
            runs.push(start..end);
        }
    }
    runs
}

fn base32_runs(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut runs = Vec::new();
    for lower in [false, true] {
        let is_digit = |byte: u8| {
            (b'2'..=b'7').contains(&byte)
                || if lower { byte.is_ascii_lowercase() } else { byte.is_ascii_uppercase() }
        };
        let mut at = 0;
        while at < bytes.len() {
            let start = at;
            while bytes.get(at).copied().is_some_and(is_digit) {
                at += 1;
            }
            let mut end = at;
            while bytes.get(end) == Some(&b'=') && end - at < 6 {
                end += 1;
            }
            if at - start >= BASE32_RUN {
                runs.push(start..end);
            }
            at = at.max(start + 1);
        }
    }
    runs
}

/// The bits of a text in digits of `bits` bits; ends at the first other character.
fn bits_of(text: &[u8], bits: u32, value: impl Fn(u8) -> Option<u32>) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let (mut buffer, mut held) = (0u32, 0);
    for digit in text.iter().map_while(|byte| value(*byte)) {
        buffer = buffer << bits | digit;
        held += bits;
        if held >= 8 {
            held -= 8;
            out.push(u8::try_from(buffer >> held & 0xff).ok()?);
            buffer &= (1 << held) - 1;
        }
    }
    Some(out)
}

fn base64(text: &[u8]) -> Option<Vec<u8>> {
    bits_of(text, 6, |byte| {
        Some(u32::from(match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        }))
    })
}

fn base32(text: &[u8]) -> Option<Vec<u8>> {
    bits_of(text, 5, |byte| {
        Some(u32::from(match byte.to_ascii_uppercase() {
            upper @ b'A'..=b'Z' => upper - b'A',
            digit @ b'2'..=b'7' => digit - b'2' + 26,
            _ => return None,
        }))
    })
}

fn hex_digit(byte: Option<&u8>) -> Option<u8> {
    char::from(*byte?).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

/// Runs of hexadecimal pairs, together or with what dumps and languages put between them: start, end, value.
fn hex_runs(bytes: &[u8]) -> Vec<(usize, usize, Vec<u8>)> {
    let mut runs = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        if hex_digit(bytes.get(at)).is_none() {
            at += 1;
            continue;
        }
        let start = at;
        let mut value = Vec::new();
        let mut end = at;
        while let (Some(high), Some(low)) = (hex_digit(bytes.get(at)), hex_digit(bytes.get(at + 1))) {
            value.push(high << 4 | low);
            at += 2;
            end = at;
            let mut gap = 0;
            while gap < 6 && bytes.get(at + gap).is_some_and(|byte| b" ,:;-\\xXu%\n\r\t\"'".contains(byte)) {
                gap += 1;
            }
            at += gap;
            // `0x67, 0x68`, and `\u0067`.
            let next = bytes.get(at..at + 2).unwrap_or_default();
            if next.eq_ignore_ascii_case(b"0x") || (next == b"00" && gap > 0) {
                at += 2;
            }
        }
        if value.len() >= HEX_PAIRS {
            // One digit before it shifts all pairs.
            let shifted: Vec<u8> =
                value.windows(2).filter_map(|pair| Some(pair.first()? << 4 | pair.last()? >> 4)).collect();
            runs.push((start, end, value));
            runs.push((start, end, shifted));
        }
        at = end.max(start + 1);
    }
    runs
}

/// The text with escapes undone (`%67`, `\x67`, `\u0067`, `\/`, `&#103;`, `&amp;`, UTF-16, characters that show
/// nothing), and where each byte came from. None when there is nothing to undo.
fn unescaped(bytes: &[u8]) -> Option<(Vec<u8>, Vec<usize>)> {
    if !bytes.iter().any(|byte| matches!(byte, b'%' | b'\\' | b'&' | 0 | 0xc2 | 0xcd | 0xe2 | 0xef)) {
        return None;
    }
    let mut plain = Vec::with_capacity(bytes.len());
    let mut origin = Vec::with_capacity(bytes.len() + 1);
    let mut at = 0;
    while at < bytes.len() {
        let rest = bytes.get(at..).unwrap_or_default();
        let (byte, taken) = escape(rest);
        if let Some(byte) = byte {
            plain.push(byte);
            origin.push(at);
        }
        at += taken.max(1);
    }
    origin.push(bytes.len());
    (plain != bytes).then_some((plain, origin))
}

/// The byte that stands here, and how long it is written. None for what shows nothing.
fn escape(rest: &[u8]) -> (Option<u8>, usize) {
    let pair = |from: usize| Some(hex_digit(rest.get(from))? << 4 | hex_digit(rest.get(from + 1))?);
    match rest {
        [0, ..] => (None, 1),
        [b'%', ..] => pair(1).map_or((Some(b'%'), 1), |byte| (Some(byte), 3)),
        [b'\\', b'x', ..] => pair(2).map_or((Some(b'\\'), 1), |byte| (Some(byte), 4)),
        [b'\\', b'u', b'0', b'0', ..] => pair(4).map_or((Some(b'\\'), 1), |byte| (Some(byte), 6)),
        [b'\\', b'n' | b'r', ..] => (Some(b'\n'), 2),
        [b'\\', byte @ (b'"' | b'\'' | b'/' | b'\\' | b'_' | b'-'), ..] => (Some(*byte), 2),
        [b'&', b'#', ..] => entity(rest).map_or((Some(b'&'), 1), |(byte, length)| (Some(byte), length)),
        [b'&', b'a', b'm', b'p', b';', ..] => (Some(b'&'), 5),
        [b'&', b's', b'h', b'y', b';', ..] => (None, 5),
        // Soft hyphen, combining grapheme joiner, zero-width characters, word joiner, byte order mark.
        [0xc2, 0xad, ..] | [0xcd, 0x8f, ..] => (None, 2),
        [0xe2, 0x80, 0x8b..=0x8f, ..] | [0xe2, 0x81, 0xa0..=0xa4, ..] | [0xef, 0xbb, 0xbf, ..] => (None, 3),
        [byte, ..] => (Some(*byte), 1),
        [] => (None, 1),
    }
}

/// `&#103;` and `&#x67;`.
fn entity(rest: &[u8]) -> Option<(u8, usize)> {
    let end = rest.iter().take(10).position(|byte| *byte == b';')?;
    let number = std::str::from_utf8(rest.get(2..end)?).ok()?;
    let value = match number.strip_prefix(['x', 'X']) {
        Some(hex) => u8::from_str_radix(hex, 16).ok()?,
        None => number.parse().ok()?,
    };
    value.is_ascii().then_some((value, end + 1))
}

fn rot13(byte: u8) -> u8 {
    match byte {
        b'a'..=b'z' => (byte - b'a' + 13) % 26 + b'a',
        b'A'..=b'Z' => (byte - b'A' + 13) % 26 + b'A',
        _ => byte,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

    /// Repeatable chance.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(self.0 >> 33).unwrap() % sides
        }

        fn text(&mut self, class: Class, length: usize) -> String {
            let letters: Vec<u8> =
                (33..127).filter(|byte| class.has(*byte) && !b".=".contains(byte)).collect();
            (0..length).map(|_| char::from(letters[self.roll(letters.len())])).collect()
        }
    }

    /// A secret of every kind, `rounds` times.
    fn samples(rounds: usize) -> Vec<(&'static str, String)> {
        let mut dice = Dice(7);
        let mut all = Vec::new();
        for _ in 0..rounds {
            for shape in SHAPES {
                let more = if shape.exact { 0 } else { dice.roll(6) };
                all.push((
                    shape.kind,
                    format!("{}{}", shape.prefix, dice.text(shape.class, shape.least + more)),
                ));
            }
            let d = &mut dice;
            let body = |d: &mut Dice, length| d.text(Class::Dash, length);
            all.push(("JSON Web Token", format!("eyJ{}.eyJ{}.{}", body(d, 30), body(d, 60), body(d, 43))));
            all.push(("AWS secret key", format!("aws_secret_access_key = {}", d.text(Class::Alnum, 40))));
            let hook = format!(
                "hooks.slack.com/services/T{}/B{}/{}",
                d.text(Class::Upper, 8),
                d.text(Class::Upper, 8),
                d.text(Class::Alnum, 24)
            );
            all.push(("Slack webhook", hook));
            for name in ["RSA PRIVATE KEY", "PRIVATE KEY", "OPENSSH PRIVATE KEY"] {
                let lines: Vec<String> = (0..4).map(|_| d.text(Class::Alnum, 64)).collect();
                all.push((
                    "private key",
                    format!("-----BEGIN {name}-----\n{}\n-----END {name}-----", lines.join("\n")),
                ));
            }
        }
        all
    }

    fn base32_text(bytes: &[u8]) -> String {
        const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |n| byte >> n & 1)).collect();
        bits.chunks(5)
            .map(|five| {
                let value =
                    (0..5).fold(0, |value, n| value << 1 | usize::from(five.get(n).copied().unwrap_or(0)));
                char::from(DIGITS[value])
            })
            .collect()
    }

    fn encodings(text: &str) -> Vec<(&'static str, Vec<u8>)> {
        let bytes = text.as_bytes();
        let each =
            |f: &dyn Fn(u8) -> String| bytes.iter().map(|byte| f(*byte)).collect::<String>().into_bytes();
        vec![
            ("plain", bytes.to_vec()),
            ("base64", STANDARD.encode(bytes).into_bytes()),
            ("base64url", URL_SAFE_NO_PAD.encode(bytes).into_bytes()),
            ("base64 twice", STANDARD.encode(STANDARD.encode(bytes)).into_bytes()),
            ("base32", base32_text(bytes).into_bytes()),
            ("hex", hex::encode(bytes).into_bytes()),
            ("hex dump", each(&|byte| format!("{byte:02X} "))),
            ("percent", each(&|byte| format!("%{byte:02x}"))),
            ("escapes", each(&|byte| format!("\\x{byte:02x}"))),
            ("json", serde_json::to_string(text).unwrap().replace('/', "\\/").into_bytes()),
            ("entities", each(&|byte| format!("&#{byte};"))),
            ("reversed", bytes.iter().rev().copied().collect()),
            ("rot13", bytes.iter().map(|byte| rot13(*byte)).collect()),
            ("utf-16", text.encode_utf16().flat_map(u16::to_le_bytes).collect()),
            ("hidden", text.chars().flat_map(|c| [c, '\u{200b}']).collect::<String>().into_bytes()),
        ]
    }

    #[test]
    fn secrets_of_known_providers_are_found_in_every_encoding() {
        let samples = samples(9);
        assert!(samples.len() >= 500, "{}", samples.len());
        let (mut tried, mut missed) = (0, Vec::new());
        for (kind, sample) in &samples {
            for (encoding, encoded) in encodings(sample) {
                let mut text = b"let value = \"".to_vec();
                text.extend_from_slice(&encoded);
                text.extend_from_slice(b"\";\n");
                tried += 1;
                let found = find(&text);
                let covered = found
                    .iter()
                    .any(|finding| finding.start <= 13 + 4 && finding.end + 4 >= 13 + encoded.len());
                if found.is_empty() || (encoding != "utf-16" && !covered && *kind != "private key") {
                    missed.push(format!("{kind} {encoding}: {sample} {found:?}"));
                }
            }
        }
        assert!(
            missed.len() * 100 <= tried,
            "{} of {tried}: {:#?}",
            missed.len(),
            missed.iter().take(20).collect::<Vec<_>>()
        );
    }

    #[test]
    fn ordinary_text_is_no_secret() {
        for text in [
            "",
            "AKIAIOSFODNN7EXAMPLE",
            "ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
            "sk-ant-api03-...",
            "let ghp_prefix = \"ghp_\"; // sk-proj-",
            "eyJhbGciOiJIUzI1NiJ9 is a header",
            "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----",
            "-----BEGIN CERTIFICATE-----\nMIIDdzCCAl+gAwIBAgIEAgAAuTANBgkqhkiG9w0BAQUFADBaMQswCQYDVQQGEwJJ\n",
            "integrity sha512-gZEKIDmOqTnJK5G5pWkSNw7QYm0MpQxc2xqHGW2w6QyJp0vXPrVwKtgGbYQSAtM7x8BXnyQ==",
            "commit 3b18e512dba79e4c8300dd08aeb37f8e728b8dad and path/to/some_long-file-name/with/parts.rs",
            "secret_access_key = os.environ[\"AWS_SECRET_ACCESS_KEY\"]",
            "hooks.slack.com/services/ is where they are",
            "50% of \\ & &amp; %zz \\x",
            "sociology cioppino12345678901234567890",
        ] {
            assert_eq!(find(text.as_bytes()), [], "{text}");
        }
    }

    #[test]
    fn a_token_behind_letters_is_found() {
        let token = format!("ghs_{}", "aB3dE6gH9".repeat(4));
        assert_eq!(kinds(format!("ab{token}").as_bytes()), ["GitHub token"]);
        assert_eq!(kinds(STANDARD.encode(format!("ab{token}")).as_bytes()), ["GitHub token"]);
        assert_eq!(kinds(format!("task-{}", "aB3dE6gH9".repeat(6)).as_bytes()), [] as [&str; 0]);
    }

    #[test]
    fn places_are_exact_and_apart() {
        let token = format!("ghp_{}", "aB3dE6gH9".repeat(4));
        let text = format!("a {token} b {token}");
        let found = find(text.as_bytes());
        assert_eq!(found.len(), 2);
        assert_eq!(&text[found[0].start..found[0].end], token);
        assert_eq!(&text[found[1].start..found[1].end], token);
        assert_eq!(kinds(text.as_bytes()), ["GitHub token"]);
    }

    #[test]
    fn odd_bytes_never_panic() {
        let mut dice = Dice(3);
        for length in 0..400 {
            let bytes: Vec<u8> = (0..length).map(|_| u8::try_from(dice.roll(256)).unwrap()).collect();
            for finding in find(&bytes) {
                assert!(finding.start < finding.end && finding.end <= bytes.len());
            }
        }
    }
}
