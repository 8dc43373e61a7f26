//! Text from outside, made harmless: hidden characters out, fences closed, mentions and markup inert.

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use std::ops::Range;
use unicode_normalization::UnicodeNormalization;

/// Passes of a prompt's text. Each pass that changes something after the first takes something out; text made to need
/// more of them loses its Markdown images and links.
const MAX_PROMPT_PASSES: usize = 64;
/// Bytes of an image's text and of a title that are looked at.
const MAX_HIDDEN_TEXT_BYTES: usize = 1_000;

/// Passes until nothing changes any more. Two are enough for all that is known; the limit ends what is not.
const MAX_PASSES: usize = 4;

/// What stands at the end of a text that was cut.
const CUT_NOTE: &str = "\n… (cut)";

/// How much longer one byte can become when it is made inert (`@` becomes `@&#8203;`), rounded up.
const MAX_GROWTH: usize = 9;

/// A zero-width space, written so that the text itself holds no hidden character. It is what keeps GitHub from
/// seeing `@name` and `#12`: those are looked for after rendering, where `&#64;` is an `@` again.
const BREAK: &str = "&#8203;";

/// Characters that show nothing: Default_Ignorable_Code_Point and the format characters (Cf), after
/// Unicode 16 DerivedCoreProperties.txt and UnicodeData.txt.
const HIDDEN: &[(u32, u32)] = &[
    (0x00AD, 0x00AD),
    (0x034F, 0x034F),
    (0x0600, 0x0605),
    (0x061C, 0x061C),
    (0x06DD, 0x06DD),
    (0x070F, 0x070F),
    (0x0890, 0x0891),
    (0x08E2, 0x08E2),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x200B, 0x200F),
    (0x202A, 0x202E),
    (0x2060, 0x206F),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFFB),
    (0x110BD, 0x110BD),
    (0x110CD, 0x110CD),
    (0x13430, 0x1343F),
    (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),
];

/// Whether a character shows nothing by itself.
pub fn is_hidden(c: char) -> bool {
    let code = u32::from(c);
    HIDDEN.iter().any(|(first, last)| (*first..=*last).contains(&code))
}

const JOINER: char = '\u{200D}';
const EMOJI_STYLE: char = '\u{FE0F}';

fn is_emoji(c: char) -> bool {
    matches!(u32::from(c),
        0xA9 | 0xAE | 0x203C | 0x2049 | 0x2122 | 0x2139 | 0x2194..=0x21AA | 0x231A..=0x23FF | 0x24C2
        | 0x25AA..=0x27BF | 0x2934..=0x2935 | 0x2B05..=0x2B55 | 0x3030 | 0x303D | 0x3297 | 0x3299
        | 0x1F000..=0x1FAFF)
}

/// Removes what shows nothing; the joiner and the emoji style stay between emoji, once each. Every kind of
/// line break becomes one.
fn visible(text: &str) -> String {
    let kept: Vec<char> = text
        .replace("\r\n", "\n")
        .chars()
        .map(|c| if matches!(c, '\r' | '\u{85}' | '\u{2028}' | '\u{2029}') { '\n' } else { c })
        .filter(|c| matches!(*c, '\n' | '\t' | JOINER | EMOJI_STYLE) || !(c.is_control() || is_hidden(*c)))
        .collect();
    let mut out = String::with_capacity(text.len());
    let mut before = '\n';
    for (index, c) in kept.iter().copied().enumerate() {
        let next = kept.get(index + 1).copied().unwrap_or('\n');
        let keep = match c {
            JOINER => (is_emoji(before) || before == EMOJI_STYLE) && is_emoji(next),
            EMOJI_STYLE => is_emoji(before),
            _ => true,
        };
        if keep {
            out.push(c);
            before = c;
        }
    }
    out
}

/// Removes `<!-- … -->`. One that is not closed hides the rest of the text when it begins a line; elsewhere it
/// shows, and only its mark is removed. A space stays, so that nothing grows together.
fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("<!--") {
        out.push_str(before);
        let begins_line = out.rsplit('\n').next().is_none_or(|line| line.trim().is_empty());
        rest = match after.split_once("-->") {
            Some((_, after)) => after,
            None if begins_line => "",
            None => after,
        };
        out.push(' ');
    }
    out.push_str(rest);
    out
}

/// Attributes of HTML tags whose text people do not see, in code neither: what is code here may be none at the forge.
const HIDDEN_ATTRIBUTES: &[&str] =
    &["alt", "title", "aria-label", "aria-description", "aria-hidden", "hidden", "style"];
/// Attributes that show, or say how: all others lose their text outside code.
const SHOWN_ATTRIBUTES: &[&str] = &[
    "href", "src", "width", "height", "align", "valign", "border", "colspan", "rowspan", "start", "open",
    "type", "checked", "disabled", "dir", "lang",
];

/// Names of characters that show nothing, as HTML spells them.
const HIDDEN_ENTITIES: &[&str] = &[
    "shy",
    "zwj",
    "zwnj",
    "lrm",
    "rlm",
    "ZeroWidthSpace",
    "NegativeVeryThinSpace",
    "NegativeThinSpace",
    "NegativeMediumSpace",
    "NegativeThickSpace",
    "NoBreak",
    "ApplyFunction",
    "af",
    "InvisibleTimes",
    "it",
    "InvisibleComma",
    "ic",
];
/// Longest entity, in characters between `&` and `;`.
const MAX_ENTITY_BYTES: usize = 32;

/// Removes entities that stand for a character that shows nothing.
fn without_hidden_entities(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        out.push_str(before);
        let end = after.bytes().take(MAX_ENTITY_BYTES).position(|b| b == b';');
        let entity = end.and_then(|end| after.get(..end)).unwrap_or_default();
        let number = match entity.strip_prefix(['#']) {
            Some(digits) => match digits.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok(),
                None => digits.parse().ok(),
            },
            None => None,
        };
        let shows_nothing = |code| {
            char::from_u32(code)
                .is_none_or(|c| is_hidden(c) || (c.is_control() && !matches!(c, '\n' | '\t' | '\r')))
        };
        if number.is_some_and(shows_nothing) || HIDDEN_ENTITIES.contains(&entity) {
            rest = after.get(entity.len() + 1..).unwrap_or_default();
        } else {
            out.push('&');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// Longest HTML tag that is looked into, in bytes: a `<` without an end is no tag.
const MAX_TAG_BYTES: usize = 4_000;

/// Empties the attributes of HTML tags whose text people do not see. `code`: where only some are.
fn without_hidden_attributes(text: &str, code: &[Range<usize>]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut code = code.iter().peekable();
    while let Some(at) = rest.find('<') {
        let begins = text.len() - rest.len() + at;
        while code.next_if(|range| range.end <= begins).is_some() {}
        let in_code = code.peek().is_some_and(|range| range.start <= begins);
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let mut limit = tag.len().min(MAX_TAG_BYTES);
        while !tag.is_char_boundary(limit) {
            limit -= 1;
        }
        let is_tag = tag.get(1..).is_some_and(|name| name.starts_with(|c: char| c.is_ascii_alphabetic()));
        let end = tag.get(..limit).and_then(|tag| tag.find('>')).filter(|_| is_tag);
        let end = end.unwrap_or(0);
        let inside = tag.get(..=end).unwrap_or("<");
        out.push_str(&without_attributes(inside, in_code));
        rest = tag.get(inside.len()..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

fn without_attributes(tag: &str, in_code: bool) -> String {
    // `<T, U = V>` is no tag and shows.
    let after_name =
        tag.trim_start_matches('<').trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '-');
    let is_markup = after_name.starts_with(|c: char| c.is_whitespace() || c == '/');
    let hides = |name: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | ':' | '.');
        HIDDEN_ATTRIBUTES.contains(&name)
            || (!in_code
                && is_markup
                && !name.is_empty()
                && name.chars().all(plain)
                && !SHOWN_ATTRIBUTES.contains(&name))
    };
    let mut out = String::new();
    let mut rest = tag;
    while let Some(at) = rest.find('=') {
        let (before, value) = rest.split_at(at);
        let name = before.trim_end().rsplit(char::is_whitespace).next().unwrap_or_default().to_lowercase();
        let given = value.get(1..).unwrap_or_default().trim_start();
        let length = match given.chars().next() {
            Some(quote @ ('"' | '\'')) => {
                given.get(1..).and_then(|inner| inner.find(quote)).map(|end| end + 2)
            }
            _ => given.find(|c: char| c.is_whitespace() || c == '>'),
        };
        let skipped = value.len() - given.len() + length.unwrap_or(0);
        out.push_str(before);
        match length {
            Some(_) if hides(&name) => out.push_str("=\"\""),
            Some(_) => out.push_str(value.get(..skipped).unwrap_or_default()),
            None => {
                out.push_str(value);
                return out;
            }
        }
        rest = value.get(skipped..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

/// Repeats `pass` until nothing changes.
fn settled(text: &str, pass: impl Fn(&str) -> String) -> String {
    let mut text = text.to_owned();
    for _ in 0..MAX_PASSES {
        let next = pass(&text);
        if next == text {
            break;
        }
        text = next;
    }
    text
}

/// The first `max_bytes` of a text, whole characters only.
fn head(text: &str, max_bytes: usize) -> &str {
    let mut end = text.len().min(max_bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// `knows_code`: code is looked for, and more is left in it.
fn prompt_pass(text: &str, knows_code: bool) -> String {
    let shown: String = visible(text).nfc().collect();
    let shown = without_comments(&without_hidden_entities(&shown));
    let code = if knows_code && shown.contains('<') && shown.contains('=') {
        code_ranges(&shown)
    } else {
        Vec::new()
    };
    without_hidden_markdown(&without_hidden_attributes(&shown, &code))
}

fn settled_prompt(text: &str) -> String {
    let mut text = text.to_owned();
    for _ in 0..MAX_PROMPT_PASSES {
        let next = prompt_pass(&text, true);
        if next == text {
            return text;
        }
        text = next;
    }
    settled(&text, |text| prompt_pass(&text.replace(['[', ']'], ""), false))
}

/// Whether a text holds something that people do not see where it is shown, and that a prompt goes without.
pub fn hides(text: &str) -> bool {
    let plain: String = text.replace("\r\n", "\n").nfc().collect();
    settled_prompt(text) != plain
}

/// Takes out what Markdown does not show: the text of images, the titles of links and images, and definitions of links
/// that nothing refers to. Code is shown as it is and stays.
fn without_hidden_markdown(text: &str) -> String {
    if !text.contains("](") && !text.contains("![") && !text.contains("]:") {
        return text.to_owned();
    }
    let mut cuts: Vec<Range<usize>> = Vec::new();
    for (at, _) in text.match_indices("![") {
        let end = bracket_end(text, at + 1);
        let shown_elsewhere = |end: usize| matches!(text.as_bytes().get(end + 1), Some(b'(' | b'['));
        if let Some(end) = end.filter(|end| shown_elsewhere(*end) && *end > at + 2) {
            cuts.push(at + 2..end);
        }
    }
    for (at, _) in text.match_indices("](") {
        cuts.extend(title(text, at + 2));
    }
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        cuts.extend(definition(text, line).map(|cut| start + cut.start..start + cut.end));
        start += line.len();
    }
    if cuts.is_empty() {
        return text.to_owned();
    }
    let code = code_ranges(text);
    cuts.retain(|cut| !code.iter().any(|code| code.start < cut.end && cut.start < code.end));
    cuts.sort_by_key(|cut| cut.start);
    let mut out = String::with_capacity(text.len());
    let mut copied = 0;
    for cut in cuts.into_iter().filter(|cut| !cut.is_empty()) {
        // One inside another goes with it.
        out.push_str(text.get(copied..cut.start.max(copied)).unwrap_or_default());
        copied = copied.max(cut.end);
    }
    out.push_str(text.get(copied..).unwrap_or_default());
    out
}

/// Where the bracket that opens at `open` closes.
fn bracket_end(text: &str, open: usize) -> Option<usize> {
    let mut depth = 0usize;
    let mut escaped = false;
    for (at, byte) in text.as_bytes().iter().enumerate().skip(open).take(MAX_HIDDEN_TEXT_BYTES) {
        match byte {
            _ if escaped => {
                escaped = false;
                continue;
            }
            b'\\' => escaped = true,
            b'[' => depth += 1,
            b']' if depth <= 1 => return Some(at),
            b']' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// The title in `](address "title")`, given where the address begins.
fn title(text: &str, from: usize) -> Option<Range<usize>> {
    let rest = text.get(from..)?;
    let rest = head(rest, MAX_HIDDEN_TEXT_BYTES);
    let space = rest.len() - rest.trim_start().len();
    let mut depth = 0usize;
    let address = rest.get(space..)?.find(|c: char| {
        depth = match c {
            '(' => depth + 1,
            ')' if depth == 0 => return true,
            ')' => depth - 1,
            _ => depth,
        };
        c.is_whitespace()
    })?;
    let behind = rest.get(space + address..)?;
    let quoted = behind.trim_start();
    let close = match quoted.chars().next()? {
        '"' => '"',
        '\'' => '\'',
        '(' => ')',
        _ => return None,
    };
    let mut escaped = false;
    let end = quoted.char_indices().skip(1).find(|(_, c)| {
        let found = !escaped && *c == close;
        escaped = !escaped && *c == '\\';
        found
    })?;
    quoted.get(end.0 + 1..)?.trim_start().starts_with(')').then_some(())?;
    let start = from + space + address;
    Some(start..start + (behind.len() - quoted.len()) + end.0 + 1)
}

/// What a line `[label]: address "title"` hides: all of it when nothing refers to it, else its title.
fn definition(text: &str, line: &str) -> Option<Range<usize>> {
    let inner = line.trim_start_matches([' ', '>', '\t']);
    let label_end = bracket_end(inner, 0).filter(|_| inner.starts_with('['))?;
    let behind = inner.get(label_end + 1..)?.strip_prefix(':')?;
    if behind.trim().is_empty() || inner.starts_with("[^") {
        return None;
    }
    let label = inner.get(..=label_end)?.to_lowercase();
    let indent = line.len() - inner.len();
    if text.to_lowercase().matches(&label).count() < 2 {
        return Some(indent..line.trim_end().len());
    }
    let address = behind.trim_start();
    let length = address.find(char::is_whitespace)?;
    let start = line.len() - address.len() + length;
    (!line.get(start..)?.trim().is_empty()).then_some(start..line.trim_end().len())
}

/// For text that goes into a prompt: removes HTML comments and every character that shows nothing
/// (Default_Ignorable_Code_Point, Cf except the joiner inside emoji), normalises to NFC, caps the length.
pub fn for_prompt(text: &str, max_bytes: usize) -> String {
    let text = settled_prompt(text);
    if text.len() <= max_bytes {
        return text;
    }
    if max_bytes <= CUT_NOTE.len() {
        return settled_prompt(head(&text, max_bytes));
    }
    // What was between two emoji may be at the end now.
    let mut short = settled_prompt(head(&text, max_bytes - CUT_NOTE.len()));
    short.push_str(CUT_NOTE);
    short
}

/// For files and logs, which nothing renders: the escape sequences of terminals and every character that shows nothing
/// go, the rest is normalised to NFC and stays. What is longer than `max_bytes` keeps its beginning and its end.
pub fn for_file(text: &str, max_bytes: usize) -> String {
    let text = settled(text, |text| visible(&without_escapes(text)).nfc().collect());
    if text.len() <= max_bytes {
        return text;
    }
    // Room for the mark, however large the number in it.
    let kept = max_bytes.saturating_sub(80) / 2;
    let start = head(&text, kept);
    let mut from = text.len() - kept;
    while !text.is_char_boundary(from) {
        from += 1;
    }
    let end = text.get(from..).unwrap_or_default();
    let mark = format!("\n… ({} bytes are left out here)\n", from - start.len());
    // Where the text was cut, a joiner may have lost its emoji.
    head(&visible(&format!("{start}{mark}{end}")), max_bytes).to_owned()
}

/// Removes the sequences by which programs colour and move what a terminal shows.
fn without_escapes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        out.push_str(before);
        rest = match after.chars().next() {
            // Parameters, then one letter or sign.
            Some('[') => {
                let inner = after.get(1..).unwrap_or_default();
                let end = inner.find(|c: char| !matches!(c, ' '..='?')).unwrap_or(inner.len());
                match inner.get(end..).and_then(|last| last.chars().next()) {
                    Some(last @ '@'..='~') => inner.get(end + last.len_utf8()..).unwrap_or_default(),
                    _ => inner.get(end..).unwrap_or_default(),
                }
            }
            // A title or link, up to its end mark.
            Some(']') => match after.find(['\u{7}', '\u{1b}', '\n']) {
                Some(end) if after.get(end..).is_some_and(|mark| mark.starts_with('\n')) => {
                    after.get(end..).unwrap_or_default()
                }
                Some(end) => after.get(end + 1..).unwrap_or_default().trim_start_matches('\\'),
                None => "",
            },
            _ => after,
        };
    }
    out.push_str(rest);
    out
}

/// For agent text that goes into a comment, check or pull request: as `for_prompt`, and mentions,
/// `#n` references, closing words, images, raw HTML, markers and lines that begin with `/` do nothing.
/// Code stays readable: nothing in it is looked at by the forge. The result is at most `max_bytes` long.
pub fn for_comment(text: &str, max_bytes: usize) -> String {
    let text = settled(text, |text| visible(text).nfc().collect());
    let whole = inert(&text);
    if whole.len() <= max_bytes {
        return whole;
    }
    // How much fits depends on how much of it must be made inert: the share that it came to the last time.
    let mut take = max_bytes.min(text.len());
    for _ in 0..MAX_PASSES {
        let short = cut_inert(&text, take);
        if short.len() <= max_bytes {
            return short;
        }
        take = (take.saturating_mul(max_bytes) / short.len()).saturating_sub(CUT_NOTE.len() * 2);
    }
    let short = cut_inert(&text, (max_bytes / MAX_GROWTH).saturating_sub(CUT_NOTE.len() * 2));
    if short.len() <= max_bytes { short } else { String::new() }
}

fn cut_inert(text: &str, max_bytes: usize) -> String {
    let mut short = inert(&visible(head(text, max_bytes)));
    short.push_str(CUT_NOTE);
    short
}

/// Removes the comments outside code. What they stood between may be code then, or no code any more: the
/// caller repeats it, and what is left after that is shown.
fn without_comments_outside_code(text: &str) -> String {
    let code = code_ranges(text);
    let mut code = code.iter().peekable();
    let mut out = String::with_capacity(text.len());
    let mut from = 0;
    for (at, _) in text.match_indices('<') {
        while code.next_if(|range| range.end <= at).is_some() {}
        let length = text.get(at + 1..).and_then(comment_length);
        let Some(length) = length.filter(|_| at >= from && !is_escaped(text, at)) else { continue };
        let end = at + 1 + length;
        if code.peek().is_none_or(|range| range.start >= end) {
            out.push_str(text.get(from..at).unwrap_or_default());
            out.push(' ');
            from = end;
        }
    }
    out.push_str(text.get(from..).unwrap_or_default());
    out
}

/// Whether a backslash makes the character at `at` a plain one.
fn is_escaped(text: &str, at: usize) -> bool {
    let before = text.as_bytes().get(..at).unwrap_or_default();
    before.iter().rev().take_while(|b| **b == b'\\').count() % 2 == 1
}

/// Everything outside code made inert, and an open code block closed.
fn inert(text: &str) -> String {
    let mut text = settled(text, without_comments_outside_code);
    if let Some(fence) = open_fence(&text) {
        text.push('\n');
        text.push_str(&fence);
    }
    let code = code_ranges(&text);
    let mut code = code.iter().peekable();
    let mut out = String::with_capacity(text.len() + 64);
    let mut line_start = true;
    let mut before = '\n';
    let mut skip_to = 0;
    for (at, c) in text.char_indices() {
        if at < skip_to {
            continue;
        }
        while code.next_if(|range| range.end <= at).is_some() {}
        let in_code = code.peek().is_some_and(|range| range.start <= at);
        let after = text.get(at + c.len_utf8()..).unwrap_or_default();
        let next = after.chars().next().unwrap_or('\n');
        let starts_word = !before.is_ascii_alphanumeric();
        match c {
            // Some bots look for their commands at the very beginning of a line, code or not.
            '/' if in_code && before == '\n' && is_command(after) => out.push_str(" /"),
            _ if in_code => out.push(c),
            '@' if starts_word && next.is_alphanumeric() => {
                out.push_str(if in_url(&text, at) { "%40" } else { "@&#8203;" });
            }
            '#' if next.is_ascii_digit() && (before == '&' || !in_url(&text, at)) => {
                out.push('#');
                out.push_str(BREAK);
            }
            // `GH-12` is a reference too.
            '-' if next.is_ascii_digit() && ends_with_gh(&out) => {
                out.push('-');
                out.push_str(BREAK);
            }
            // A backslash would take the `&` of the entity for itself.
            '<' | '&' | '!' if before == '\\' && is_escaped(&text, at) => {
                out.pop();
                out.push_str(match c {
                    '<' => "&lt;",
                    '&' => "&amp;",
                    _ => "&#33;",
                });
            }
            '<' => match plain_link(after) {
                Some(length) => {
                    out.push_str(&link(after.get(..length).unwrap_or_default()));
                    skip_to = at + length + 2;
                }
                None => out.push_str("&lt;"),
            },
            // An entity would be the character again by the time mentions are looked for.
            '&' if next == '#' || next.is_ascii_alphabetic() => out.push_str("&amp;"),
            '!' if next == '[' => out.push_str("&#33;"),
            '/' if line_start => out.push_str("&#47;"),
            _ if starts_word && closes_something(c, after) => {
                out.push(c);
                out.push_str(BREAK);
            }
            _ => out.push(c),
        }
        line_start = c == '\n'
            || (line_start
                && (c.is_whitespace()
                    || matches!(c, '>' | '-' | '*' | '+' | '.' | ')')
                    || c.is_ascii_digit()));
        before = c;
    }
    out
}

/// Whether what follows a `/` reads like a bot's command and not like a path.
fn is_command(after: &str) -> bool {
    let word = after.split(char::is_whitespace).next().unwrap_or_default();
    word.starts_with(|c: char| c.is_ascii_alphabetic()) && !word.contains('/')
}

fn ends_with_gh(out: &str) -> bool {
    let mut tail = out.bytes().rev();
    let h = tail.next().is_some_and(|b| b.eq_ignore_ascii_case(&b'h'));
    let g = tail.next().is_some_and(|b| b.eq_ignore_ascii_case(&b'g'));
    h && g && !tail.next().is_some_and(|b| b.is_ascii_alphanumeric())
}

/// Longest piece looked at to the left of a character, in bytes: the length of a sane URL.
const MAX_URL_BYTES: usize = 2_000;

/// Whether the character at `at` belongs to a web address, which is a link as a whole.
fn in_url(text: &str, at: usize) -> bool {
    let mut start = at.saturating_sub(MAX_URL_BYTES);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    let before = text.get(start..at).unwrap_or_default();
    let word =
        before.rsplit(|c: char| c.is_whitespace() || matches!(c, '<' | '>' | '`')).next().unwrap_or_default();
    let word = word.trim_start_matches(['(', '[', '*', '_', '~', '"', '\'']);
    // Markup inside or at the end would split the address from what follows it.
    (word.starts_with("https://") || word.starts_with("http://"))
        && word.chars().all(|c| c.is_alphanumeric() || "/:.-_?=&%+,;@#".contains(c))
        && word.ends_with(|c: char| c.is_alphanumeric() || matches!(c, '/' | '-' | '='))
}

/// Length of the address in `<https://…>`, given what follows the `<`.
fn plain_link(after: &str) -> Option<usize> {
    if !(after.starts_with("https://") || after.starts_with("http://")) {
        return None;
    }
    let end = head(after, MAX_URL_BYTES).find(|c: char| c == '>' || c == '<' || c.is_whitespace())?;
    after.get(end..)?.starts_with('>').then_some(end)
}

fn link(address: &str) -> String {
    address.replace('@', "%40").replace('&', "&amp;").replace("![", "%21[")
}

/// Length of the comment whose `<` stands before `after`.
fn comment_length(after: &str) -> Option<usize> {
    after.strip_prefix("!--")?.find("-->").map(|end| end + "!--".len() + "-->".len())
}

/// A forge closes an issue on one of these before its number or address.
const CLOSING_WORDS: &[&str] =
    &["close", "closes", "closed", "fix", "fixes", "fixed", "resolve", "resolves", "resolved"];

/// Whether a closing word begins with `first` and an address follows it. (Numbers are inert already.)
fn closes_something(first: char, after: &str) -> bool {
    if !matches!(first, 'c' | 'C' | 'f' | 'F' | 'r' | 'R') {
        return false;
    }
    let length = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
    // The longest word has eight letters.
    let Some(rest) = after.get(..length).filter(|rest| rest.len() < 8) else { return false };
    let word = format!("{first}{rest}").to_ascii_lowercase();
    if !CLOSING_WORDS.contains(&word.as_str()) {
        return false;
    }
    let after = after.get(length..).unwrap_or_default();
    let target = after.trim_start_matches(':').trim_start();
    target.len() < after.len()
        && target.split(char::is_whitespace).next().is_some_and(|target| {
            target.contains("http") || target.contains("www.") || target.starts_with(['[', '<'])
        })
}

pub(super) fn options() -> Options {
    Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_GFM | Options::ENABLE_FOOTNOTES
}

/// The text as it will be parsed: no `<` outside code will be left, so none may hide a backtick now.
fn without_html(text: &str) -> String {
    text.replace('<', "%")
}

/// The fence that closes the code block which the text leaves open.
fn open_fence(text: &str) -> Option<String> {
    let mut probe = without_html(text);
    let length = probe.len();
    probe.push_str("\n\nprobe");
    let mut last: Option<Range<usize>> = None;
    for (event, range) in Parser::new_ext(&probe, options()).into_offset_iter() {
        if let Event::Start(Tag::CodeBlock(pulldown_cmark::CodeBlockKind::Fenced(_))) = event {
            last = Some(range);
        }
    }
    let open = last.filter(|range| range.end > length + 2)?;
    let fence = probe.get(open)?;
    let mark = fence.chars().next().filter(|c| matches!(c, '`' | '~'))?;
    Some(fence.chars().take_while(|c| *c == mark).collect())
}

/// Byte ranges of code blocks and code spans, in order: nothing in them is a mention, a tag or a command.
fn code_ranges(text: &str) -> Vec<Range<usize>> {
    let masked = without_html(text);
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut depth = 0_usize;
    for (event, range) in Parser::new_ext(&masked, options()).into_offset_iter() {
        match event {
            Event::Start(Tag::CodeBlock(_)) => {
                depth += 1;
                ranges.push(range);
            }
            Event::End(TagEnd::CodeBlock) => depth = depth.saturating_sub(1),
            // Across lines it may be cut in two by what a `<` begins on the second one.
            Event::Code(_)
                if depth == 0 && !masked.get(range.clone()).is_some_and(|code| code.contains('\n')) =>
            {
                ranges.push(range);
            }
            _ => {}
        }
    }
    // A marker of ours must not be imitated even where it would only be shown.
    ranges.retain(|range| !text.get(range.clone()).is_some_and(|code| code.contains("zeblit:v1")));
    ranges.sort_by_key(|range| range.start);
    ranges
}

/// Marks by which a forge skips its checks.
const SKIPS: &[&str] = &["[skip ci]", "[ci skip]", "[no ci]", "[skip actions]", "[actions skip]"];

/// For one line of a commit message or of a title that becomes one: without mentions, closing references and
/// marks that skip checks. Neither shows Markdown or entities, so what does something goes.
pub fn for_commit(line: &str) -> String {
    let mut words: Vec<String> = line.split([' ', '\t']).map(str::to_owned).collect();
    for index in 0..words.len() {
        let next = words.get(index + 1).cloned().unwrap_or_default();
        let Some(word) = words.get_mut(index) else { continue };
        let bare = word.trim_matches(|c: char| !c.is_alphanumeric()).to_ascii_lowercase();
        let refers = next.contains('#') || next.to_ascii_lowercase().contains("gh-") || next.contains("://");
        if refers && CLOSING_WORDS.contains(&bare.as_str()) {
            *word = "refs".into();
        }
        // `fixes:#7` in one word.
        if word.contains('#') && CLOSING_WORDS.iter().any(|closing| bare.starts_with(&format!("{closing}:")))
        {
            *word = word.replace('#', "");
        }
        let mention = |word: &str| {
            word.match_indices('@').map(|(at, _)| at).find(|at| {
                let before = word.get(..*at).and_then(|text| text.chars().next_back());
                !before.is_some_and(char::is_alphanumeric)
            })
        };
        while let Some(at) = mention(word) {
            word.remove(at);
        }
    }
    let mut line = words.join(" ");
    for skip in SKIPS {
        while let Some(at) = line.to_ascii_lowercase().find(skip) {
            line.replace_range(at..at + 1, "(");
        }
    }
    line
}

/// One line of plain text (titles, summaries): control characters and line breaks become spaces.
pub fn one_line(text: &str, max_chars: usize) -> String {
    let mut line = String::new();
    for c in visible(text).chars() {
        let c = if matches!(c, '\n' | '\t') { ' ' } else { c };
        if !(c == ' ' && line.ends_with(' ')) {
            line.push(c);
        }
    }
    let line = line.trim();
    if line.chars().count() <= max_chars {
        return line.to_owned();
    }
    let mut short: String = line.chars().take(max_chars.saturating_sub(1)).collect();
    short.truncate(short.trim_end().len());
    if max_chars > 0 {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::command;
    use proptest::prelude::*;

    /// No hidden character but a joiner or style that stands between emoji.
    fn shows_all(text: &str) -> bool {
        let chars: Vec<char> = text.chars().collect();
        chars.iter().enumerate().all(|(index, c)| match *c {
            JOINER => {
                index > 0
                    && (is_emoji(chars[index - 1]) || chars[index - 1] == EMOJI_STYLE)
                    && chars.get(index + 1).is_some_and(|next| is_emoji(*next))
            }
            EMOJI_STYLE => index > 0 && is_emoji(chars[index - 1]),
            '\n' | '\t' => true,
            c => !is_hidden(c) && !c.is_control(),
        })
    }

    /// What a forge would act on in a rendered text: tags, images, mentions, references, commands.
    fn dangers(source: &str) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        let mut text = String::new();
        let mut in_code = 0;
        let look = |text: &mut String, found: &mut Vec<String>| {
            let chars: Vec<char> = text.chars().collect();
            for (index, c) in chars.iter().enumerate() {
                let before = if index == 0 { ' ' } else { chars[index - 1] };
                let next = chars.get(index + 1).copied().unwrap_or(' ');
                let word: String = chars[..index]
                    .iter()
                    .rev()
                    .take_while(|c| !c.is_whitespace() && **c != '<')
                    .collect::<Vec<_>>()
                    .into_iter()
                    .rev()
                    .collect();
                if *c == '@' && !before.is_ascii_alphanumeric() && next.is_ascii_alphanumeric() {
                    found.push(format!("mention in {text:?}"));
                }
                if *c == '#' && next.is_ascii_digit() && !word.contains("http") {
                    found.push(format!("reference in {text:?}"));
                }
                let gh = word.eq_ignore_ascii_case("gh")
                    || word
                        .to_lowercase()
                        .strip_suffix("gh")
                        .is_some_and(|w| !w.ends_with(|c: char| c.is_ascii_alphanumeric()));
                if *c == '-' && gh && next.is_ascii_digit() && !word.contains("http") {
                    found.push(format!("reference in {text:?}"));
                }
            }
            text.clear();
        };
        for event in Parser::new_ext(source, options()) {
            match event {
                Event::Text(piece) if in_code == 0 => {
                    text.push_str(&piece);
                    continue;
                }
                Event::Start(Tag::CodeBlock(_)) => in_code += 1,
                Event::End(TagEnd::CodeBlock) => in_code -= 1,
                Event::Html(html) | Event::InlineHtml(html) => found.push(format!("HTML {html:?}")),
                Event::Start(Tag::Image { .. }) => found.push("image".into()),
                _ => {}
            }
            look(&mut text, &mut found);
        }
        look(&mut text, &mut found);
        if !command::parse(source).is_empty() {
            found.push("command".into());
        }
        if source.contains("<!-- zeblit:v1") {
            found.push("marker".into());
        }
        found
    }

    #[track_caller]
    fn inert_as(text: &str, expected: &str) {
        let out = for_comment(text, 10_000);
        assert_eq!(out, expected, "of {text:?}");
        assert_eq!(dangers(&out), Vec::<String>::new(), "of {text:?}");
    }

    #[test]
    fn no_character_that_hides_survives() {
        for c in (0..=0x10_FFFF).filter_map(char::from_u32) {
            let text = format!("a{c}b");
            let out = for_prompt(&text, 100);
            assert!(shows_all(&out), "U+{:04X}: {out:?}", u32::from(c));
            // What is not changed needs no second look.
            assert!(out == text || for_prompt(&out, 100) == out, "U+{:04X}: {out:?}", u32::from(c));
            assert!(unicode_normalization::is_nfc(&out), "U+{:04X}: {out:?}", u32::from(c));
            assert!(shows_all(&one_line(&format!("a{c}b"), 100)));
        }
    }

    #[test]
    fn the_list_of_hidden_characters_is_that_of_unicode() {
        // DerivedCoreProperties.txt, Default_Ignorable_Code_Point, and UnicodeData.txt, Cf, of Unicode 16; kept apart from
        // the list above so that neither can lose a line unseen.
        let ignorable = [
            0xAD..=0xAD,
            0x34F..=0x34F,
            0x61C..=0x61C,
            0x115F..=0x1160,
            0x17B4..=0x17B5,
            0x180B..=0x180F,
            0x200B..=0x200F,
            0x202A..=0x202E,
            0x2060..=0x206F,
            0x3164..=0x3164,
            0xFE00..=0xFE0F,
            0xFEFF..=0xFEFF,
            0xFFA0..=0xFFA0,
            0xFFF0..=0xFFF8,
            0x1BCA0..=0x1BCA3,
            0x1D173..=0x1D17A,
            0xE0000..=0xE0FFF,
        ];
        let format = [
            0xAD..=0xAD,
            0x600..=0x605,
            0x61C..=0x61C,
            0x6DD..=0x6DD,
            0x70F..=0x70F,
            0x890..=0x891,
            0x8E2..=0x8E2,
            0x180E..=0x180E,
            0x200B..=0x200F,
            0x202A..=0x202E,
            0x2060..=0x2064,
            0x2066..=0x206F,
            0xFEFF..=0xFEFF,
            0xFFF9..=0xFFFB,
            0x110BD..=0x110BD,
            0x110CD..=0x110CD,
            0x13430..=0x1343F,
            0x1BCA0..=0x1BCA3,
            0x1D173..=0x1D17A,
            0xE0001..=0xE0001,
            0xE0020..=0xE007F,
        ];
        let mut count = 0;
        for c in (0..=0x10_FFFF).filter_map(char::from_u32) {
            let code = u32::from(c);
            let listed = ignorable.iter().chain(&format).any(|range| range.contains(&code));
            assert_eq!(is_hidden(c), listed, "U+{code:04X}");
            count += u32::from(listed);
        }
        assert_eq!(count, 4_206);
    }

    #[test]
    fn hidden_characters_go_and_visible_ones_stay() {
        for (text, expected) in [
            ("f\u{200b}i\u{2060}x", "fix"),
            ("\u{202e}evil\u{202c}", "evil"),
            ("\u{e0049}\u{e0067}x", "x"),
            ("a\u{ad}b\u{34f}c\u{fe0f}d", "abcd"),
            ("e\u{301}", "é"),
            ("a\r\nb\rc\u{2028}d", "a\nb\nc\nd"),
            ("tab\there", "tab\there"),
            ("a\u{0}b\u{1b}[31mc", "ab[31mc"),
            ("👩\u{200d}💻 ❤\u{fe0f}", "👩\u{200d}💻 ❤\u{fe0f}"),
            ("🏳\u{fe0f}\u{200d}🌈", "🏳\u{fe0f}\u{200d}🌈"),
            ("👩\u{200d}x", "👩x"),
            ("x\u{200d}💻", "x💻"),
            ("👩\u{200d}\u{2060}\u{200d}💻", "👩\u{200d}💻"),
            ("❤\u{fe0f}\u{fe0f}\u{fe0f}", "❤\u{fe0f}"),
            ("日本語 العربية हिन्दी", "日本語 العربية हिन्दी"),
        ] {
            assert_eq!(for_prompt(text, 1_000), expected, "{text:?}");
        }
    }

    #[test]
    fn comments_and_hidden_attributes_never_reach_a_prompt() {
        for (text, expected) in [
            ("a <!-- b --> c", "a   c"),
            ("a<!---->b", "a b"),
            ("a <!-- b\n\nc --> d", "a   d"),
            ("<!-- a", " "),
            ("a\n  <!-- b\nc", "a\n   "),
            ("the mark `<!--` opens one", "the mark ` ` opens one"),
            ("<!-<!-- x -->- evil -->", "<!- - evil -->"),
            ("<\u{200b}!-- evil -->x", " x"),
            ("<!<!-- a -->-- b -->", "<! -- b -->"),
            ("<img src=\"x\" alt=\"evil\">", "<img src=\"x\" alt=\"\">"),
            ("<a title='evil words' href=x>y</a>", "<a title=\"\" href=x>y</a>"),
            ("<p style=display:none aria-label=evil>y", "<p style=\"\" aria-label=\"\">y"),
            (
                "<a name=\"evil\" id=evil data-x='evil' href=\"x\">y</a>",
                "<a name=\"\" id=\"\" data-x=\"\" href=\"x\">y</a>",
            ),
            ("<td abbr=evil colspan=2>y", "<td abbr=\"\" colspan=2>y"),
            ("`<b class=\"kept\">` and <b class=\"evil\">", "`<b class=\"kept\">` and <b class=\"\">"),
            (
                "```html\n<input name=\"kept\" alt=\"out\">\n```",
                "```html\n<input name=\"kept\" alt=\"\">\n```",
            ),
            ("Map<Key, Value = Kept> f<T = Kept>", "Map<Key, Value = Kept> f<T = Kept>"),
            (
                "x&#xE0049;&#917577;&#8203;&ZeroWidthSpace;&shy;y&amp;&lt;&#64;&#10;&;&",
                "xy&amp;&lt;&#64;&#10;&;&",
            ),
            ("&#x&#8203;E0049;z &#0;&#xD800;", "z "),
            ("a < b and c = d > e", "a < b and c = d > e"),
            ("Vec<String> title=x", "Vec<String> title=x"),
        ] {
            assert_eq!(for_prompt(text, 1_000), expected, "{text:?}");
        }
    }

    #[test]
    fn what_markdown_does_not_show_never_reaches_a_prompt() {
        for (text, expected) in [
            ("![evil](https://x.y/z.png)", "![](https://x.y/z.png)"),
            ("![ev[i]l](a.png 'evil') b", "![](a.png) b"),
            ("![evil][ref]\n\n[ref]: a.png \"evil\"", "![][ref]\n\n[ref]: a.png"),
            ("[shown](https://x.y \"evil\") b", "[shown](https://x.y) b"),
            ("[shown](a(b) (evil)) c", "[shown](a(b)) c"),
            ("a\n\n[//]: # (evil)\nb", "a\n\n\nb"),
            ("[evil words]: x", ""),
            ("`![kept](x)` and `[//]: # (kept)`", "`![kept](x)` and `[//]: # (kept)`"),
            ("```\nvec![1, 2](0)\n[kept]: x\n```", "```\nvec![1, 2](0)\n[kept]: x\n```"),
            ("[shown](x) and [a](b) \"kept\")", "[shown](x) and [a](b) \"kept\")"),
            ("#![allow(x)]\n- [ ] todo: \"kept\"", "#![allow(x)]\n- [ ] todo: \"kept\""),
        ] {
            assert_eq!(for_prompt(text, 1_000), expected, "{text:?}");
            assert_eq!(hides(text), text != expected);
        }
    }

    #[test]
    fn files_lose_what_hides_and_keep_what_markdown_would_not_show() {
        for (text, expected) in [
            ("\u{1b}[31;1merror\u{1b}[0m: x\u{1b}[K", "error: x"),
            ("\u{1b}]8;;https://x.y\u{1b}\\link\u{1b}]0;title\u{7} end", "link end"),
            ("\u{1b}]0;open\nnext", "\nnext"),
            ("\u{1b}[31", ""),
            ("\u{1b}[12\u{1b}[0mx", "x"),
            ("a\r\nb\u{0}c\u{200b}d\u{e0041}", "a\nbcd"),
            ("[main]: kept\n<!-- kept --> ![kept](x)", "[main]: kept\n<!-- kept --> ![kept](x)"),
            ("e\u{301}", "é"),
        ] {
            assert_eq!(for_file(text, 1_000), expected, "{text:?}");
        }
        for c in (0..=0x10_FFFF).filter_map(char::from_u32) {
            let out = for_file(&format!("a{c}b"), 100);
            assert!(shows_all(&out), "U+{:04X}: {out:?}", u32::from(c));
        }
        let cut = for_file(&format!("begin{}end", "ä".repeat(5_000)), 1_001);
        assert!(cut.len() <= 1_001 && cut.starts_with("begin") && cut.ends_with("end"), "{cut}");
        assert!(cut.contains("\n… (9090 bytes are left out here)\n"), "{cut}");
    }

    #[test]
    fn long_texts_are_cut_at_a_character_and_say_so() {
        assert_eq!(for_prompt("äöü", 100), "äöü");
        let cut = for_prompt(&"ä".repeat(100), 51);
        assert!(cut.len() <= 51 && cut.ends_with("… (cut)"), "{cut}");
        assert_eq!(for_prompt("äöü", 3), "ä");
        assert_eq!(for_prompt("äöü", 0), "");
        assert_eq!(for_comment("äöü", 0), "");
        let comment = for_comment(&"word ".repeat(1_000), 500);
        assert!(comment.len() <= 500 && comment.len() > 400 && comment.ends_with("… (cut)"));
    }

    #[test]
    fn mentions_and_references_do_nothing() {
        inert_as("@ann", "@&#8203;ann");
        inert_as("ping @octo/team!", "ping @&#8203;octo/team!");
        inert_as("\\@ann", "\\@&#8203;ann");
        inert_as("&#64;ann &commat;ann", "&amp;#&#8203;64;ann &amp;commat;ann");
        inert_as("_@ann_ *@ann* (@ann)", "_@&#8203;ann_ *@&#8203;ann* (@&#8203;ann)");
        inert_as("mail ann@example.org", "mail ann@example.org");
        inert_as("a @ b", "a @ b");
        inert_as("@\u{200b}ann", "@&#8203;ann");
        inert_as("#12 and o/r#12", "#&#8203;12 and o/r#&#8203;12");
        inert_as("&#35;12 &num;12", "&amp;#&#8203;35;12 &amp;num;12");
        inert_as("GH-12 gh-7 high-5", "GH-&#8203;12 gh-&#8203;7 high-5");
        inert_as("# Title\n\n#1", "# Title\n\n#&#8203;1");
        inert_as("https://x.org/@ann/y#12", "https://x.org/%40ann/y#12");
        inert_as("<https://x.org/@ann?a=b&c=d>", "https://x.org/%40ann?a=b&amp;c=d");
        inert_as("a & b, R&D; x &&y", "a & b, R&amp;D; x &&amp;y");
    }

    #[test]
    fn closing_words_close_nothing() {
        inert_as("Fixes #12", "Fixes #&#8203;12");
        inert_as("Fixes https://github.com/o/r/issues/1", "F&#8203;ixes https://github.com/o/r/issues/1");
        inert_as("closes: https://github.com/o/r/issues/1", "c&#8203;loses: https://github.com/o/r/issues/1");
        inert_as("Resolved [it](https://x.y/1)", "R&#8203;esolved [it](https://x.y/1)");
        inert_as("fixes the bug, closes the file", "fixes the bug, closes the file");
        inert_as("prefix https://x.y", "prefix https://x.y");
    }

    #[test]
    fn html_images_and_markers_do_nothing() {
        inert_as("<img src=x>", "&lt;img src=x>");
        inert_as("<b>x</b>", "&lt;b>x&lt;/b>");
        inert_as("a <!-- hidden --> b", "a   b");
        inert_as("a <!-- not closed", "a &lt;!-- not closed");
        inert_as("<!-- zeblit:v1 run=1 mac=2 -->", " ");
        inert_as("`<!-- zeblit:v1 run=1 mac=2 -->`", "` `");
        inert_as("![x](https://x.y/z.png)", "&#33;[x](https://x.y/z.png)");
        inert_as("![x][y]\n\n[y]: https://x.y", "&#33;[x][y]\n\n[y]: https://x.y");
        inert_as("&lt;img&gt;", "&amp;lt;img&amp;gt;");
        inert_as("a < b", "a &lt; b");
        inert_as("\\<b> \\![x](y) \\&#64;ann \\\\<b>", "&lt;b> &#33;[x](y) &amp;#&#8203;64;ann \\\\&lt;b>");
        inert_as("`a\n<!-- b`", "`a\n&lt;!-- b`");
        inert_as("<!---->~~~\nx", " ~~~\nx\n~~~");
        inert_as("\\<!-- zeblit:v1 -->", "&lt;!-- zeblit:v1 -->");
        inert_as("<a title='`'> `@ann`", "&lt;a title='`'> `@&#8203;ann`");
    }

    #[test]
    fn lines_that_begin_with_a_slash_do_nothing() {
        inert_as("/zeblit fix", "&#47;zeblit fix");
        inert_as("a\n/approve", "a\n&#47;approve");
        inert_as("- /zeblit fix\n1. /lgtm\n> /x", "- &#47;zeblit fix\n1. &#47;lgtm\n> &#47;x");
        inert_as("see src/a/b", "see src/a/b");
        inert_as("```\n/approve\n/usr/bin/x\n```", "```\n /approve\n/usr/bin/x\n```");
    }

    #[test]
    fn code_stays_readable() {
        for same in [
            "`@ann` and `#12` and `<b>`",
            "```rust\nlet x: Vec<String> = a && b; // @ann #12\n```",
            "~~~\n![x](y)\n~~~",
            "    <indented> @ann",
            "``a ` <b>``",
            "- ```\n  <b>\n  ```",
        ] {
            inert_as(same, same);
        }
    }

    #[test]
    fn an_open_code_block_is_closed() {
        inert_as("```\n<b>", "```\n<b>\n```");
        inert_as("~~~~sh\nx", "~~~~sh\nx\n~~~~");
        inert_as("````\n```\nx", "````\n```\nx\n````");
        inert_as("> ```\n> x", "> ```\n> x");
        inert_as("1. x\n   ```\n   y", "1. x\n   ```\n   y");
        inert_as("```\nx\n```", "```\nx\n```");
        let cut = for_comment(&format!("```\n{}", "x\n".repeat(500)), 200);
        assert!(cut.len() <= 200 && cut.ends_with("```\n… (cut)"), "{cut}");
        let after = format!("{cut}\n\n@ann");
        assert!(!dangers(&after).is_empty(), "what follows is no code any more");
    }

    #[test]
    fn the_limit_holds_however_much_must_be_made_inert() {
        for piece in ["@a ", "#1 ", "<", "&a", "![", "GH-1 ", "\n/", "word ", "```\n", "`", "é@a"] {
            let text = piece.repeat(20_000);
            for max in [0, 1, 20, 200, 5_000, 30_000] {
                let out = for_comment(&text, max);
                assert!(out.len() <= max, "{piece:?} {max}: {}", out.len());
                assert!(max < 5_000 || out.len() > max / 2, "{piece:?} {max}: only {}", out.len());
            }
        }
    }

    #[test]
    fn hostile_lengths_take_little_time() {
        let begun = std::time::Instant::now();
        for piece in [
            "`a` @b ",
            "[",
            "> ",
            "<!--",
            "-->",
            "<a title=",
            "<",
            "![",
            "fixes http",
            "gh-1",
            "@a/http://",
            "\u{200d}😀",
        ] {
            let text = piece.repeat(60_000 / piece.len());
            let _ = for_comment(&text, 60_000);
            let _ = for_prompt(&text, 60_000);
        }
        assert!(begun.elapsed().as_secs() < 300, "{:?}", begun.elapsed());
    }

    #[test]
    fn a_line_for_a_commit_pings_nobody_closes_nothing_and_skips_no_check() {
        for (line, expected) in [
            ("Round up in page_count", "Round up in page_count"),
            ("Fixes #7, closes:\t#8", "refs #7, refs #8"),
            ("fix GH-9 and the rest", "refs GH-9 and the rest"),
            ("@@everyone @a@b, (@team) me@example.com", "everyone a@b, (team) me@example.com"),
            ("Mend [skip ci] and [CI SKIP]", "Mend (skip ci] and (CI SKIP]"),
            ("This fixes the bug, see #9", "This fixes the bug, see #9"),
            ("", ""),
        ] {
            assert_eq!(for_commit(line), expected, "{line:?}");
        }
    }

    #[test]
    fn one_line_is_one_line() {
        for (text, max, expected) in [
            ("  a\n\tb\r\n c ", 100, "a b c"),
            ("a\u{200b}b\u{2028}c", 100, "ab c"),
            ("abcdef", 4, "abc…"),
            ("abcd", 4, "abcd"),
            ("ab cd", 4, "ab…"),
            ("äöüß", 2, "ä…"),
            ("abc", 0, ""),
            ("\0\u{1b}[0m", 10, "[0m"),
            ("", 5, ""),
        ] {
            assert_eq!(one_line(text, max), expected, "{text:?}");
        }
    }

    fn soup() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            6 => proptest::sample::select(vec![
                "@", "ann", "@ann", "#", "12", "#12", "GH-", "gh-1", "<", ">", "<b>", "</b>", "<img src='x'>", "<!--",
                "-->", "<!-- zeblit:v1 ", "!", "[", "]", "![", "](", ")", "`", "``", "```", "\n```\n", "~~~\n", "\n",
                "\n\n", "/zeblit fix", "/approve", "/", " ", "    ", "\t", "- ", "1. ", "> ", "| ", "\n|---|\n", "&", "&#64;",
                "&lt;", "\\", "*", "_", "~~", "$", "[x]: ", "[^1]", "http://", "https://x.y/", "Fixes ", "closes: ",
                "\u{200b}", "\u{200d}", "\u{fe0f}", "😀", "é", "e\u{301}", "\u{2028}", "\r", "\u{226e}", "\u{338}",
                "title=", "alt='", "\"", "'", "=", "---", "\u{1fef}", "\u{e0041}",
            ]).prop_map(str::to_owned),
            1 => any::<char>().prop_map(|c| c.to_string()),
        ];
        proptest::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn agent_text_is_inert(text in soup(), max in 0usize..300) {
            let whole = for_comment(&text, 100_000);
            prop_assert_eq!(dangers(&whole), Vec::<String>::new(), "{:?}", whole);
            prop_assert!(shows_all(&whole));
            let short = for_comment(&text, max);
            prop_assert!(short.len() <= max);
            prop_assert_eq!(dangers(&short), Vec::<String>::new(), "{:?}", short);
        }

        #[test]
        fn what_follows_agent_text_is_not_swallowed_by_it(text in soup()) {
            let page = format!("{}\n\n## Footer", for_comment(&text, 100_000));
            let mut heading = false;
            for event in Parser::new_ext(&page, options()) {
                heading |= matches!(event, Event::Start(Tag::Heading { level: pulldown_cmark::HeadingLevel::H2, .. }));
            }
            prop_assert!(heading, "{:?}", page);
        }

        #[test]
        fn prompt_text_is_visible_and_settled(text in soup(), max in 0usize..300) {
            for limit in [max, 100_000] {
                let once = for_prompt(&text, limit);
                prop_assert!(shows_all(&once), "{:?}", once);
                prop_assert!(!once.contains("<!--"), "{:?}", once);
                prop_assert!(once.len() <= limit);
                prop_assert_eq!(for_prompt(&once, limit), once);
            }
            let file = for_file(&text, max);
            prop_assert!(shows_all(&file) && file.len() <= max.max(100), "{:?}", file);
            prop_assert_eq!(for_file(&file, 1_000), file);
            let line = one_line(&text, max);
            prop_assert!(!line.contains('\n') && line.chars().count() <= max);
            prop_assert_eq!(one_line(&line, max), line);
        }
    }
}
