//! Markdown of issues and comments as HTML that is safe to show: no raw HTML, no scripts, no images, plain links.

use pulldown_cmark::{CowStr, Event, LinkType, Options, Parser, Tag, TagEnd, html};

/// Tags that people use for folding and layout; shown only in their bare form, without attributes.
const PLAIN_TAGS: [&str; 7] = ["details", "summary", "br", "sub", "sup", "kbd", "b"];

/// Text as it may stand in HTML, in text and in quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    out
}

/// Links that lead to a web page, a mail address or within this server. Everything else could run something.
pub(super) fn is_plain_link(url: &str) -> bool {
    let lower = url.trim().to_ascii_lowercase();
    if lower.chars().any(char::is_control) {
        return false;
    }
    ["http://", "https://", "mailto:"].iter().any(|scheme| lower.starts_with(scheme))
        || lower.starts_with('#')
        || (lower.starts_with('/') && !lower.starts_with("//") && !lower.contains('\\'))
}

/// Raw HTML with comments and tags removed, but for a few harmless tags; the words between them are kept.
fn strip_html(raw: &str) -> String {
    let mut out = String::new();
    let mut rest = raw;
    while let Some(start) = rest.find('<') {
        let (before, tag) = rest.split_at(start);
        out.push_str(&escape(before));
        if tag.starts_with("<!--") {
            // A comment that is not closed hides the rest, as in a browser.
            let Some(end) = tag.find("-->") else { return out };
            rest = tag.get(end + 3..).unwrap_or_default();
            continue;
        }
        let Some(end) = tag.find('>') else { return out };
        let inside = tag.get(1..end).unwrap_or_default();
        let name = inside.trim_start_matches('/').trim_end_matches('/').trim().to_ascii_lowercase();
        if PLAIN_TAGS.contains(&name.as_str()) {
            let close = if inside.starts_with('/') { "/" } else { "" };
            out.push_str(&format!("<{close}{name}>"));
        }
        rest = tag.get(end + 1..).unwrap_or_default();
    }
    out.push_str(&escape(rest));
    out
}

/// Splits `text` at each `#12` that stands on its own: the words before it and the number.
fn references(text: &str) -> Vec<(&str, Option<&str>)> {
    let mut parts = Vec::new();
    let mut rest = text;
    let mut from = 0;
    while let Some(at) = rest.get(from..).and_then(|tail| tail.find('#')).map(|found| found + from) {
        let tail = rest.get(at + 1..).unwrap_or_default();
        let digits = tail.len() - tail.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let before = rest.get(..at).unwrap_or_default();
        let alone = !before.ends_with(|c: char| c.is_alphanumeric() || matches!(c, '/' | '&' | '_' | '-'))
            && (1..=9).contains(&digits)
            && !tail.get(digits..).unwrap_or_default().starts_with(|c: char| c.is_alphanumeric() || c == '_');
        if alone {
            parts.push((before, tail.get(..digits)));
            rest = tail.get(digits..).unwrap_or_default();
            from = 0;
        } else {
            from = at + 1;
        }
    }
    parts.push((rest, None));
    parts
}

/// Renders GitHub-flavoured Markdown. `#12` becomes a link below `issues` (`/forge/o/r/issues`), when given.
pub(super) fn render(markdown: &str, issues: Option<&str>) -> String {
    let options = Options::ENABLE_TABLES
        | Options::ENABLE_TASKLISTS
        | Options::ENABLE_STRIKETHROUGH
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_GFM;
    let mut events: Vec<Event<'_>> = Vec::new();
    let mut block: Option<String> = None;
    let mut in_code = false;
    // Whether each open link is shown as one.
    let mut links: Vec<bool> = Vec::new();
    for event in Parser::new_ext(markdown, options) {
        match event {
            Event::Start(Tag::HtmlBlock) => block = Some(String::new()),
            Event::Html(text) => match &mut block {
                Some(block) => block.push_str(&text),
                None => events.push(Event::Html(CowStr::from(strip_html(&text)))),
            },
            Event::End(TagEnd::HtmlBlock) => {
                // The whole block at once: a comment in it may hold blank lines.
                let text = block.take().unwrap_or_default();
                events.push(Event::Html(CowStr::from(strip_html(&text))));
            }
            Event::InlineHtml(text) => events.push(Event::InlineHtml(CowStr::from(strip_html(&text)))),
            // An image would be a beacon to another server: its text stays.
            Event::Start(Tag::Image { .. }) | Event::End(TagEnd::Image) => {}
            Event::Start(Tag::Link { link_type, dest_url, title, id }) => {
                let shown = is_plain_link(&dest_url);
                links.push(shown);
                if shown {
                    events.push(Event::Start(Tag::Link { link_type, dest_url, title, id }));
                }
            }
            Event::End(TagEnd::Link) => {
                if links.pop().unwrap_or(false) {
                    events.push(Event::End(TagEnd::Link));
                }
            }
            Event::Start(Tag::CodeBlock(kind)) => {
                in_code = true;
                events.push(Event::Start(Tag::CodeBlock(kind)));
            }
            Event::End(TagEnd::CodeBlock) => {
                in_code = false;
                events.push(Event::End(TagEnd::CodeBlock));
            }
            Event::Text(text) if !in_code && links.is_empty() && text.contains('#') => {
                let Some(issues) = issues else {
                    events.push(Event::Text(text));
                    continue;
                };
                for (words, number) in references(&text) {
                    events.push(Event::Text(CowStr::from(words.to_owned())));
                    let Some(number) = number else { continue };
                    events.push(Event::Start(Tag::Link {
                        link_type: LinkType::Inline,
                        dest_url: CowStr::from(format!("{issues}/{number}")),
                        title: CowStr::Borrowed(""),
                        id: CowStr::Borrowed(""),
                    }));
                    events.push(Event::Text(CowStr::from(format!("#{number}"))));
                    events.push(Event::End(TagEnd::Link));
                }
            }
            // People expect a line break where they pressed Enter, as in GitHub's comments.
            Event::SoftBreak => events.push(Event::HardBreak),
            other => events.push(other),
        }
    }
    let mut out = String::with_capacity(markdown.len() * 2);
    html::push_html(&mut out, events.into_iter());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_html_and_hidden_comments_are_not_shown() {
        for hostile in [
            "<script>alert(1)</script>",
            "a <img src=x onerror=alert(1)> b",
            "<!-- zeblit:v1 id=1 for=sticky mac=00 -->",
            "<!-- one\n\ntwo <b>bold</b>\n-->",
            "<details open ontoggle=alert(1)>x</details>",
            "[x](javascript:alert(1))",
            "[x](  JaVaScRiPt:alert(1))",
            "[x](data:text/html,1)",
            "[x](//evil.example/)",
            "![beacon](https://evil.example/x.png)",
            "<a href=\"https://evil.example\">x</a>",
            "<svg/onload=alert(1)>",
        ] {
            let shown = render(hostile, Some("/i")).to_lowercase();
            for bad in [
                "<script",
                "<img",
                "onerror",
                "zeblit:v1",
                "ontoggle",
                "javascript:",
                "data:",
                "evil",
                "<svg",
            ] {
                assert!(!shown.contains(bad), "{hostile} gave {shown}");
            }
        }
    }

    #[test]
    fn task_lists_tables_folds_and_links_are_shown() {
        let shown =
            render("- [x] clone\n- [ ] edit\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\nsee https://x\n", None);
        assert!(shown.contains("checked") && shown.contains("<table>"), "{shown}");
        let fold = render("<details>\n<summary>Log & more</summary>\n\n`x < y`\n\n</details>\n", None);
        assert!(fold.contains("<details>") && fold.contains("<summary>Log &amp; more</summary>"), "{fold}");
        assert!(fold.contains("<code>x &lt; y</code>") && fold.contains("</details>"), "{fold}");
        assert!(
            render("[run](http://127.0.0.1:1/runs/1)", None).contains("href=\"http://127.0.0.1:1/runs/1\"")
        );
    }

    #[test]
    fn numbers_of_issues_become_links() {
        let shown = render(
            "Fixes #12, (#3) `#4` [#5](/x) a#6 #7b &#8; /x#9\n\n```\n#10\n```\n",
            Some("/forge/o/r/issues"),
        );
        for (number, linked) in
            [(12, true), (3, true), (4, false), (5, false), (6, false), (7, false), (9, false), (10, false)]
        {
            assert_eq!(shown.contains(&format!("issues/{number}\"")), linked, "{number} in {shown}");
        }
        assert!(!render("#12", None).contains("href"));
    }

    #[test]
    fn escaping_leaves_no_markup() {
        assert_eq!(escape("<a b='c' d=\"e\">&"), "&lt;a b=&#39;c&#39; d=&quot;e&quot;&gt;&amp;");
    }
}
