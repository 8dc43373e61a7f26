//! Files that people attach to issues and comments: which links are such files, which bytes are let through, and under
//! what name an agent finds them.

use super::sanitize;
use pulldown_cmark::{Event, Parser, Tag, TagEnd};
use std::fmt;

/// Below HOME.
pub const FOLDER: &str = "attachments";
/// Pixels of an image's side; more makes a small file a large picture.
const MAX_PIXELS: u32 = 8000;
/// Bytes of a text that is searched for links: the longest body of a comment (65 536 characters of four bytes).
const MAX_TEXT_BYTES: usize = 256 * 1024;
/// Links of one text.
const MAX_LINKS: usize = 50;
/// Bytes of an address. A signed one holds a token of some hundred characters.
const MAX_URL_BYTES: usize = 4096;
/// Characters of the part of a name that people chose.
const MAX_STEM_CHARS: usize = 40;
/// Bytes at the beginning of a text that tell whether it is markup that programs run.
const SNIFFED_BYTES: usize = 1024;
/// Endings of texts that keep theirs; every other text is `txt`.
const TEXT_ENDINGS: &[&str] = &[
    "log", "txt", "json", "jsonl", "csv", "tsv", "md", "patch", "diff", "yaml", "yml", "toml", "ini", "xml",
    "sql", "out", "err", "trace",
];

/// A link to a file that somebody attached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub url: String,
    /// What the file was called, when its address says so; not to be trusted.
    pub name: Option<String>,
    /// An image or video without a name of its own: where it is private, GitHub signs an address for it.
    pub asset: bool,
}

/// The attachments that a Markdown text shows, in its order, each once. Code and what people do not see do not count.
/// `base` is where the forge keeps uploads, e.g. `https://github.com`.
pub fn links(text: &str, base: &str) -> Vec<Link> {
    let text = sanitize::for_prompt(text, MAX_TEXT_BYTES);
    let mut found: Vec<Link> = Vec::new();
    for address in addresses(&text) {
        if let Some(link) = recognise(&address, base)
            && found.iter().all(|known| known.url != link.url)
            && found.len() < MAX_LINKS
        {
            found.push(link);
        }
    }
    found
}

/// Addresses of links, images, `src` and `href`, and bare ones.
fn addresses(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut bare = String::new();
    let mut html = String::new();
    let (mut in_code, mut in_link) = (0_usize, 0_usize);
    for event in Parser::new_ext(text, sanitize::options()) {
        match event {
            Event::Text(piece) if in_code == 0 && in_link == 0 => {
                bare.push_str(&piece);
                continue;
            }
            Event::Html(piece) | Event::InlineHtml(piece) => {
                html.push_str(&piece);
                continue;
            }
            Event::Start(Tag::CodeBlock(_)) => in_code += 1,
            Event::End(TagEnd::CodeBlock) => in_code = in_code.saturating_sub(1),
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                in_link += 1;
                found.push(dest_url.into_string());
            }
            Event::End(TagEnd::Link | TagEnd::Image) => in_link = in_link.saturating_sub(1),
            _ => {}
        }
        flush(&mut html, &mut found, in_attributes);
        flush(&mut bare, &mut found, in_words);
    }
    flush(&mut html, &mut found, in_attributes);
    flush(&mut bare, &mut found, in_words);
    found
}

fn flush(text: &mut String, found: &mut Vec<String>, read: fn(&str) -> Vec<String>) {
    if !text.is_empty() {
        found.extend(read(text));
        text.clear();
    }
}

/// Addresses that stand in a text by themselves.
fn in_words(text: &str) -> Vec<String> {
    text.split(|c: char| c.is_whitespace() || matches!(c, '<' | '>' | '(' | ')' | '"' | '\''))
        .filter(|word| word.starts_with("http://") || word.starts_with("https://"))
        .map(|word| word.trim_end_matches(['.', ',', ';', ':', '!', '?']).to_owned())
        .collect()
}

/// Values of `src` and `href`.
fn in_attributes(html: &str) -> Vec<String> {
    let mut found = Vec::new();
    for name in ["src", "href"] {
        for (at, _) in html.match_indices(name) {
            let before = html.get(..at).and_then(|text| text.chars().next_back());
            let value = html.get(at + name.len()..).unwrap_or_default().trim_start();
            let (true, Some(value)) = (before.is_some_and(char::is_whitespace), value.strip_prefix('='))
            else {
                continue;
            };
            let value = value.trim_start();
            let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''));
            let inner = value.get(usize::from(quote.is_some())..).unwrap_or_default();
            let end = match quote {
                Some(quote) => inner.find(quote),
                None => Some(inner.find(|c: char| c.is_whitespace() || c == '>').unwrap_or(inner.len())),
            };
            found.extend(end.and_then(|end| inner.get(..end)).map(|url| url.replace("&amp;", "&")));
        }
    }
    found
}

/// The forms that GitHub gives to uploads, past and present, here and on an own server.
fn recognise(address: &str, base: &str) -> Option<Link> {
    if address.len() > MAX_URL_BYTES || !address.is_ascii() {
        return None;
    }
    let (plain, query) = match address.split_once(['?', '#']) {
        Some((plain, _)) => (plain, address.get(plain.len()..).filter(|rest| rest.starts_with('?'))),
        None => (address, None),
    };
    if base == "https://github.com" {
        if let Some(rest) = plain.strip_prefix("https://user-images.githubusercontent.com/") {
            return image(rest).then(|| asset(plain));
        }
        if let Some(rest) = plain.strip_prefix("https://private-user-images.githubusercontent.com/") {
            // The query is its signature.
            let query = query.map(|query| query.split('#').next().unwrap_or_default()).unwrap_or_default();
            return image(rest).then(|| asset(&format!("{plain}{query}")));
        }
    }
    if let Some((scheme, host)) = base.split_once("://")
        && let Some(rest) = plain.strip_prefix(&format!("{scheme}://media.{host}/"))
    {
        return match rest.split('/').collect::<Vec<_>>().as_slice() {
            ["user", user, "files", id] if digits(user) && is_id(id) => Some(asset(plain)),
            _ => None,
        };
    }
    let path = plain.strip_prefix(base)?.strip_prefix('/')?;
    let named = |name: &str| Link { url: plain.to_owned(), name: Some(name.to_owned()), asset: false };
    match path.split('/').collect::<Vec<_>>().as_slice() {
        ["user-attachments", "assets", id] if is_id(id) => Some(asset(plain)),
        ["user-attachments", "files", id, name] if digits(id) && is_name(name) => Some(named(name)),
        ["storage", "user", user, "files", id] if digits(user) && is_id(id) => Some(asset(plain)),
        [owner, repo, "assets", user, id] if is_name(owner) && is_name(repo) && digits(user) && is_id(id) => {
            Some(asset(plain))
        }
        [owner, repo, "files", id, name]
            if is_name(owner) && is_name(repo) && digits(id) && is_name(name) =>
        {
            Some(named(name))
        }
        _ => None,
    }
}

fn asset(url: &str) -> Link {
    Link { url: url.to_owned(), name: None, asset: true }
}

/// `<user>/<image>`.
fn image(path: &str) -> bool {
    path.split_once('/').is_some_and(|(user, name)| digits(user) && is_name(name))
}

fn digits(text: &str) -> bool {
    !text.is_empty() && text.len() <= 20 && text.bytes().all(|b| b.is_ascii_digit())
}

fn is_id(text: &str) -> bool {
    (8..=80).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// One part of a path: no dots alone, nothing encoded that could be a slash.
fn is_name(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'+' | b'~' | b'%');
    let lower = text.to_ascii_lowercase();
    !text.is_empty()
        && text.len() <= 255
        && text.bytes().all(plain)
        && !text.bytes().all(|b| b == b'.')
        && !["%2f", "%5c", "%00", "%2e"].iter().any(|bad| lower.contains(bad))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Png,
    Jpeg,
    Gif,
    Webp,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Format::Png => "PNG",
            Format::Jpeg => "JPEG",
            Format::Gif => "GIF",
            Format::Webp => "WebP",
        }
    }

    pub fn media_type(self) -> &'static str {
        match self {
            Format::Png => "image/png",
            Format::Jpeg => "image/jpeg",
            Format::Gif => "image/gif",
            Format::Webp => "image/webp",
        }
    }

    fn ending(self) -> &'static str {
        match self {
            Format::Png => "png",
            Format::Jpeg => "jpg",
            Format::Gif => "gif",
            Format::Webp => "webp",
        }
    }
}

/// What may reach an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Image { format: Format, width: u32, height: u32 },
    Text,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Image { format, width, height } => {
                write!(f, "{} image, {width} x {height}", format.name())
            }
            Kind::Text => f.write_str("text"),
        }
    }
}

/// Why a file is left out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("it is empty")]
    Empty,
    #[error("it is {0}; only PNG, JPEG, GIF and WebP images and text in UTF-8 are passed on")]
    Kind(&'static str),
    #[error("it is a {} image that cannot be read", .0.name())]
    Broken(Format),
    #[error("it is an image of {width} x {height} pixels; at most {MAX_PIXELS} x {MAX_PIXELS} are passed on")]
    Pixels { width: u32, height: u32 },
}

/// What these bytes are, whatever their name and the header of the reply say.
pub fn judge(bytes: &[u8]) -> Result<Kind, Refusal> {
    if bytes.is_empty() {
        return Err(Refusal::Empty);
    }
    let (format, size) = if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        (Format::Png, png(bytes))
    } else if bytes.starts_with(b"\xff\xd8\xff") {
        (Format::Jpeg, jpeg(bytes))
    } else if bytes.starts_with(b"GIF87a") || bytes.starts_with(b"GIF89a") {
        (Format::Gif, gif(bytes))
    } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
        (Format::Webp, webp(bytes))
    } else {
        return text(bytes);
    };
    match size {
        Some((width, height)) if width == 0 || height == 0 => Err(Refusal::Broken(format)),
        Some((width, height)) if width > MAX_PIXELS || height > MAX_PIXELS => {
            Err(Refusal::Pixels { width, height })
        }
        Some((width, height)) => Ok(Kind::Image { format, width, height }),
        None => Err(Refusal::Broken(format)),
    }
}

/// Formats that people attach and that are left out, by their first bytes.
const KNOWN: &[(&[u8], &str)] = &[
    (b"PK\x03\x04", "a ZIP archive"),
    (b"PK\x05\x06", "a ZIP archive"),
    (b"%PDF-", "a PDF document"),
    (b"\x1f\x8b", "compressed with gzip"),
    (b"BZh", "compressed with bzip2"),
    (b"\xfd7zXZ", "compressed with xz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"\xcf\xfa\xed\xfe", "a program"),
    (b"\xca\xfe\xba\xbe", "a program"),
    (b"\xff\xfe", "text in UTF-16"),
    (b"\xfe\xff", "text in UTF-16"),
];

fn text(bytes: &[u8]) -> Result<Kind, Refusal> {
    if let Some((_, name)) = KNOWN.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        // Two letters may begin a word.
        if !bytes.starts_with(b"MZ") || bytes.contains(&0) {
            return Err(Refusal::Kind(name));
        }
    }
    if bytes.get(4..8) == Some(b"ftyp") {
        return Err(Refusal::Kind("a video or another medium"));
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => text,
        _ => return Err(Refusal::Kind("not of a kind that is known here")),
    };
    let start = text.trim_start_matches('\u{feff}').trim_start();
    let start =
        start.get(..start.floor_char_boundary(SNIFFED_BYTES)).unwrap_or_default().to_ascii_lowercase();
    if start.starts_with("<svg") || (start.starts_with('<') && start.contains("<svg")) {
        return Err(Refusal::Kind("an SVG image"));
    }
    let html = ["<!doctype html", "<html", "<head", "<body", "<script"];
    if start.starts_with('<') && html.iter().any(|tag| start.contains(tag)) {
        return Err(Refusal::Kind("an HTML page"));
    }
    Ok(Kind::Text)
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn be16(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?)))
}

fn le16(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?)))
}

fn le24(bytes: &[u8], at: usize) -> Option<u32> {
    match bytes.get(at..at + 3)? {
        [a, b, c] => Some(u32::from_le_bytes([*a, *b, *c, 0])),
        _ => None,
    }
}

fn png(bytes: &[u8]) -> Option<(u32, u32)> {
    (bytes.get(12..16)? == b"IHDR").then_some(())?;
    Some((be32(bytes, 16)?, be32(bytes, 20)?))
}

fn gif(bytes: &[u8]) -> Option<(u32, u32)> {
    Some((le16(bytes, 6)?, le16(bytes, 8)?))
}

/// Walks the segments to the frame header.
fn jpeg(bytes: &[u8]) -> Option<(u32, u32)> {
    let mut at = 2;
    loop {
        (*bytes.get(at)? == 0xff).then_some(())?;
        let marker = *bytes.get(at + 1)?;
        match marker {
            // Padding.
            0xff => at += 1,
            // Without a length.
            0x01 | 0xd0..=0xd8 => at += 2,
            0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => {
                return Some((be16(bytes, at + 7)?, be16(bytes, at + 5)?));
            }
            // The picture begins, or ends, without a frame.
            0xd9 | 0xda => return None,
            _ => {
                let length = usize::try_from(be16(bytes, at + 2)?).ok()?;
                (length >= 2).then_some(())?;
                at += 2 + length;
            }
        }
    }
}

fn webp(bytes: &[u8]) -> Option<(u32, u32)> {
    match bytes.get(12..16)? {
        b"VP8X" => Some((le24(bytes, 24)? + 1, le24(bytes, 27)? + 1)),
        b"VP8 " => {
            (bytes.get(23..26)? == b"\x9d\x01\x2a").then_some(())?;
            Some((le16(bytes, 26)? & 0x3fff, le16(bytes, 28)? & 0x3fff))
        }
        b"VP8L" => {
            (*bytes.get(20)? == 0x2f).then_some(())?;
            let bits = le16(bytes, 21)? | (le16(bytes, 23)? << 16);
            Some(((bits & 0x3fff) + 1, ((bits >> 14) & 0x3fff) + 1))
        }
        _ => None,
    }
}

/// The path below HOME of the nth file. Made by us: letters, digits and dashes of its name, an ending of what it is.
pub fn path(n: usize, link: &Link, kind: Kind) -> String {
    let name = link.name.as_deref().unwrap_or_default();
    let (stem, ending) = name.rsplit_once('.').unwrap_or((name, ""));
    let mut plain = String::new();
    for c in stem.chars() {
        let c = if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        if !(c == '-' && (plain.is_empty() || plain.ends_with('-'))) {
            plain.push(c);
        }
    }
    plain.truncate(MAX_STEM_CHARS);
    let plain = plain.trim_end_matches('-');
    let ending = ending.to_ascii_lowercase();
    let (usual, ending) = match kind {
        Kind::Image { format, .. } => ("image", format.ending()),
        Kind::Text => ("text", TEXT_ENDINGS.iter().find(|known| **known == ending).copied().unwrap_or("txt")),
    };
    format!("{FOLDER}/{n:02}-{}.{ending}", if plain.is_empty() { usual } else { plain })
}

/// `34 KiB`, rounded up.
pub fn size(bytes: usize) -> String {
    if bytes < 1024 {
        format!("{bytes} bytes")
    } else if bytes < 1024 * 1024 {
        format!("{} KiB", bytes.div_ceil(1024))
    } else {
        format!("{}.{} MiB", bytes / (1024 * 1024), (bytes % (1024 * 1024)) * 10 / (1024 * 1024))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GITHUB: &str = "https://github.com";
    const ID: &str = "880fbe21-506b-458b-8be6-71ac826d92f5";

    fn urls(text: &str) -> Vec<String> {
        links(text, GITHUB).into_iter().map(|link| link.url).collect()
    }

    #[test]
    fn every_form_of_upload_is_recognised() {
        for url in [
            format!("https://github.com/user-attachments/assets/{ID}"),
            "https://github.com/user-attachments/files/18211773/crash_log.1.txt".into(),
            "https://user-images.githubusercontent.com/452325/121538101-09e2e500-c9f4-11eb.png".into(),
            format!("https://private-user-images.githubusercontent.com/1/2-{ID}.png?jwt=eyJ0.e30.x-_"),
            format!("https://github.com/octo/demo/assets/1826685/{ID}"),
            "https://github.com/octo/demo.rs/files/6792255/vga%20test.log".into(),
        ] {
            for text in [
                format!("![Image]({url})"),
                format!("see [crash.log]({url}) here"),
                format!("a paragraph\n\n{url}\n"),
                format!("<{url}>"),
                format!("<img width=\"601\" alt=\"Image\" src=\"{}\" />", url.replace('&', "&amp;")),
                format!("<p>\n<a href='{url}'><img src={url}></a>\n</p>"),
                format!("- item: {url}, and\n> quoted"),
                format!("![x][ref]\n\n[ref]: {url}"),
            ] {
                assert_eq!(urls(&text), [url.as_str()], "{text}");
            }
        }
    }

    #[test]
    fn an_own_server_has_the_same_forms_below_its_own_address() {
        for (url, base) in [
            (format!("https://ghe.example/user-attachments/assets/{ID}"), "https://ghe.example"),
            (format!("https://ghe.example/storage/user/7/files/{ID}"), "https://ghe.example"),
            (format!("https://media.ghe.example/user/7/files/{ID}"), "https://ghe.example"),
            ("http://127.0.0.1:8080/forge/octo/demo/files/3/a.log".to_owned(), "http://127.0.0.1:8080/forge"),
        ] {
            assert_eq!(links(&format!("[f]({url})"), base).len(), 1, "{url}");
            assert_eq!(urls(&format!("[f]({url})")), Vec::<String>::new(), "{url}");
        }
    }

    #[test]
    fn other_addresses_are_no_attachments() {
        for url in [
            "https://example.com/user-attachments/assets/880fbe21-506b-458b-8be6-71ac826d92f5",
            "http://github.com/user-attachments/assets/880fbe21-506b-458b-8be6-71ac826d92f5",
            "https://github.com.evil.example/user-attachments/assets/880fbe21-506b-458b-8be6-71ac826d92f5",
            "https://github.com@evil.example/user-attachments/assets/880fbe21-506b-458b-8be6-71ac826d92f5",
            "https://github.com:444/user-attachments/assets/880fbe21-506b-458b-8be6-71ac826d92f5",
            "https://github.com/user-attachments/assets/../../settings/tokens",
            "https://github.com/user-attachments/assets/880fbe21/506b",
            "https://github.com/user-attachments/assets/",
            "https://github.com/user-attachments/files/1/..",
            "https://github.com/user-attachments/files/1/a%2F..%2Fb",
            "https://github.com/user-attachments/files/1/%2e%2e",
            "https://github.com/user-attachments/files/x/a.log",
            "https://github.com/octo/demo/blob/main/a.log",
            "https://github.com/octo/demo/pull/1/files",
            "https://raw.githubusercontent.com/octo/demo/main/a.log",
            "https://private-user-images.githubusercontent.com.evil.example/1/a.png?jwt=x",
            "https://user-images.githubusercontent.com/x/a.png",
            "https://github.com/user-attachments/assets/880fbe21\u{e9}",
        ] {
            assert_eq!(urls(&format!("![x]({url}) <img src=\"{url}\">\n\n{url}")), Vec::<String>::new());
        }
    }

    #[test]
    fn what_people_do_not_see_brings_no_file() {
        let url = format!("https://github.com/user-attachments/assets/{ID}");
        for text in [
            format!("<!-- ![x]({url}) -->"),
            format!("`{url}` and\n\n```\n![x]({url})\n```\n\n    {url}"),
            format!("<img alt=\"{url}\">"),
            format!("<img data-src=\"{url}\">"),
            format!("[//]: # ({url})"),
            format!("[unused]: {url}"),
            format!("![{url}](https://example.com/x.png)"),
        ] {
            assert_eq!(urls(&text), Vec::<String>::new(), "{text}");
        }
        // One that is shown twice is one.
        assert_eq!(urls(&format!("{url}?raw=true {url}#x ![]({url})")), [url]);
        let many: String =
            (0..200).map(|n| format!("https://github.com/user-attachments/files/{n}/a.log\n")).collect();
        assert_eq!(urls(&many).len(), MAX_LINKS);
    }

    fn png_of(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR".to_vec();
        bytes.extend(width.to_be_bytes());
        bytes.extend(height.to_be_bytes());
        bytes.extend(b"\x08\x06\0\0\0");
        bytes
    }

    #[test]
    fn images_are_known_by_their_bytes_and_measured_by_their_header() {
        let jpeg =
            b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0\xff\xff\xc2\0\x11\x08\0\x20\0\x40\x03";
        let lossy = b"RIFF\0\0\0\0WEBPVP8 \0\0\0\0\0\0\0\x9d\x01\x2a\x40\x40\x20\x00";
        let lossless = b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0\x2f\x3f\xc0\x07\x00";
        let extended = b"RIFF\0\0\0\0WEBPVP8X\0\0\0\0\0\0\0\0\x3f\0\0\x1f\0\0";
        for (bytes, format) in [
            (png_of(64, 32), Format::Png),
            (b"GIF89a\x40\0\x20\0".to_vec(), Format::Gif),
            (jpeg.to_vec(), Format::Jpeg),
            (lossy.to_vec(), Format::Webp),
            (lossless.to_vec(), Format::Webp),
            (extended.to_vec(), Format::Webp),
        ] {
            assert_eq!(judge(&bytes), Ok(Kind::Image { format, width: 64, height: 32 }), "{bytes:?}");
            for end in 12..bytes.len().min(20) {
                assert!(judge(&bytes[..end]).is_err(), "cut at {end}: {bytes:?}");
            }
        }
    }

    #[test]
    fn large_broken_and_other_files_are_left_out_with_the_reason() {
        for (bytes, reason) in [
            (&b""[..], "it is empty"),
            (b"PK\x03\x04rest", "it is a ZIP archive; only"),
            (b"%PDF-1.7", "a PDF document"),
            (b"\x7fELF\x02", "a program"),
            (b"MZ\0\x03", "a program"),
            (b"\x1f\x8b\x08", "gzip"),
            (b"\0\0\0\x20ftypisom", "a video"),
            (b"\xff\xfeh\0i\0", "UTF-16"),
            (b"a\0b", "not of a kind"),
            (b"caf\xe9", "not of a kind"),
            (b"  <svg xmlns='x'>", "an SVG image"),
            (b"\xef\xbb\xbf<?xml version='1.0'?>\n<svg>", "an SVG image"),
            (b"<!DOCTYPE html><title>x", "an HTML page"),
            (b"<!-- x --><HTML>", "an HTML page"),
            (b"\x89PNG\r\n\x1a\n", "a PNG image that cannot be read"),
            (b"\xff\xd8\xff\xda\0\0", "a JPEG image that cannot be read"),
            (b"GIF89a\0\0\0\0", "a GIF image that cannot be read"),
        ] {
            let refusal = judge(bytes).unwrap_err().to_string();
            assert!(refusal.contains(reason), "{bytes:?}: {refusal}");
        }
        assert_eq!(judge(&png_of(8001, 1)), Err(Refusal::Pixels { width: 8001, height: 1 }));
        assert_eq!(judge(&png_of(1, u32::MAX)), Err(Refusal::Pixels { width: 1, height: u32::MAX }));
        assert!(judge(&png_of(8000, 8000)).is_ok());
        for text in ["MZone failed", "a <svg> in a log", "<?xml version='1.0'?><testsuite/>", "{\"a\": 1}"] {
            assert_eq!(judge(text.as_bytes()), Ok(Kind::Text), "{text}");
        }
    }

    #[test]
    fn names_are_ours() {
        let link = |name: &str| Link { url: String::new(), name: Some(name.into()), asset: false };
        let image = Kind::Image { format: Format::Png, width: 1, height: 1 };
        for (n, name, kind, expected) in [
            (1, "Crash Log.LOG", Kind::Text, "attachments/01-crash-log.log"),
            (2, "../../.bashrc", Kind::Text, "attachments/02-text.txt"),
            (3, "CLAUDE.md", Kind::Text, "attachments/03-claude.md"),
            (10, "x.png.exe", Kind::Text, "attachments/10-x-png.txt"),
            (4, "not-a.log", image, "attachments/04-not-a.png"),
            (5, "%E2%80%AE", image, "attachments/05-e2-80-ae.png"),
        ] {
            assert_eq!(path(n, &link(name), kind), expected, "{name}");
        }
        let long = path(1, &link(&"a-".repeat(200)), Kind::Text);
        assert!(long.len() < 70 && long.ends_with("a.txt"), "{long}");
        assert_eq!(path(1, &asset("x"), image), "attachments/01-image.png");
        assert_eq!(
            (size(12), size(1025), size(3 * 1024 * 1024 / 2)),
            ("12 bytes".into(), "2 KiB".into(), "1.5 MiB".into())
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_judging_panic(head in 0usize..6, bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let heads: [&[u8]; 6] = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8X", b"RIFF\0\0\0\0WEBPVP8 "];
            let mut whole = heads[head].to_vec();
            whole.extend(bytes);
            let _ = judge(&whole);
        }

        #[test]
        fn a_path_stays_in_its_folder(name in "\\PC{0,60}") {
            let path = path(1, &Link { url: String::new(), name: Some(name), asset: false }, Kind::Text);
            let inner = path.strip_prefix("attachments/01-").unwrap();
            prop_assert!(inner.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b)));
            prop_assert!(!inner.starts_with('.') && inner.matches('.').count() == 1);
        }

        #[test]
        fn whatever_a_text_holds_links_stay_below_their_places(text in "[ -~\\n]{0,200}") {
            for link in links(&text, GITHUB) {
                prop_assert!(link.url.starts_with("https://github.com/") || link.url.contains(".githubusercontent.com/"));
            }
        }
    }
}
