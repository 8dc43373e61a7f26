//! What the demo and `zeblit run` write to the terminal: steps with times, live log lines, diffs; colours only on a terminal.

use crate::domain::run::{LogKind, LogLine};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Characters of one log line that are shown: a terminal line or two.
const MAX_LINE_CHARS: usize = 200;

/// Lines of one message that are shown; the run page has all of it.
const MAX_MESSAGE_LINES: usize = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Plain,
    Dim,
    Bold,
    Green,
    Red,
    Yellow,
    Cyan,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Style::Plain => "",
            Style::Dim => "2",
            Style::Bold => "1",
            Style::Green => "32",
            Style::Red => "31",
            Style::Yellow => "33",
            Style::Cyan => "36",
        }
    }
}

/// The writer of a command that follows a run. A reader that went away (a closed pipe) is no error of ours.
#[derive(Debug)]
pub struct Screen<W: Write> {
    out: W,
    colours: bool,
    started: Instant,
    last_said: String,
}

impl Screen<std::io::Stdout> {
    pub fn stdout() -> Self {
        let out = std::io::stdout();
        let colours = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { out, colours, started: Instant::now(), last_said: String::new() }
    }
}

impl<W: Write> Screen<W> {
    pub fn new(out: W, colours: bool) -> Self {
        Self { out, colours, started: Instant::now(), last_said: String::new() }
    }

    pub fn into_inner(self) -> W {
        self.out
    }

    /// Begins the clock again: step times count from here.
    pub fn restart_clock(&mut self) {
        self.started = Instant::now();
    }

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn paint(&self, style: Style, text: &str) -> String {
        if self.colours && style != Style::Plain {
            format!("\u{1b}[{}m{text}\u{1b}[0m", style.code())
        } else {
            text.to_owned()
        }
    }

    fn write(&mut self, line: &str) {
        let _ = writeln!(self.out, "{line}").and_then(|()| self.out.flush());
    }

    pub fn blank(&mut self) {
        self.write("");
    }

    pub fn line(&mut self, style: Style, text: &str) {
        let line = self.paint(style, text);
        self.write(&line);
    }

    pub fn heading(&mut self, text: &str) {
        self.blank();
        let line = self.paint(Style::Bold, text);
        self.write(&line);
    }

    /// `  name      value`
    pub fn fact(&mut self, name: &str, value: &str) {
        let name = self.paint(Style::Dim, &format!("  {name:<12}"));
        self.write(&format!("{name}{value}"));
    }

    /// `   1.2s  text`, the time since the clock began.
    pub fn step(&mut self, style: Style, text: &str) {
        let time = self.paint(Style::Dim, &format!("{:>6.1}s", self.started.elapsed().as_secs_f64()));
        let text = self.paint(style, text);
        self.write(&format!("{time}  {text}"));
    }

    /// A line of the run's log: what an agent says is shown without its control characters.
    pub fn log(&mut self, line: &LogLine) {
        // An agent's result repeats its last words.
        if line.k == LogKind::Result && line.t.trim() == self.last_said.trim() {
            return;
        }
        if line.k == LogKind::Text {
            self.last_said.clone_from(&line.t);
        }
        let (mark, style) = match line.k {
            LogKind::Tool => ("▸ ", Style::Cyan),
            LogKind::Err | LogKind::Error => ("", Style::Yellow),
            LogKind::Note => ("", Style::Dim),
            LogKind::ToolEnd => return,
            LogKind::Text | LogKind::Out | LogKind::Result => ("", Style::Plain),
        };
        let bar = self.paint(Style::Dim, "         │");
        let lines =
            line.t.lines().map(|part| printable(part, MAX_LINE_CHARS)).filter(|part| !part.is_empty());
        for (index, text) in lines.take(MAX_MESSAGE_LINES).enumerate() {
            let mark = if index == 0 { mark } else { "" };
            let text = self.paint(style, &format!("{mark}{text}"));
            self.write(&format!("{bar} {text}"));
        }
    }

    /// A unified diff.
    pub fn diff(&mut self, diff: &str) {
        for line in diff.lines() {
            let style = match line.as_bytes().first() {
                Some(b'+') if !line.starts_with("+++") => Style::Green,
                Some(b'-') if !line.starts_with("---") => Style::Red,
                Some(b'@') => Style::Cyan,
                Some(b' ') => Style::Plain,
                _ => Style::Dim,
            };
            let line = self.paint(style, &printable(line, usize::MAX));
            self.write(&format!("  {line}"));
        }
    }

    /// Text of a comment, indented; hidden HTML comments are left out.
    pub fn quote(&mut self, text: &str) {
        let shown = without_html_comments(text);
        for line in shown.trim().lines() {
            self.write(&format!("    {}", printable(line, usize::MAX)));
        }
    }
}

/// Without control characters: what comes from agents must not drive the terminal.
fn printable(text: &str, most: usize) -> String {
    let shown = text.trim_end().chars().map(|c| if c == '\t' { ' ' } else { c });
    let shown = shown.filter(|c| !c.is_control() && !is_direction_mark(*c));
    let mut out: String = shown.clone().take(most).collect();
    if shown.count() > most {
        out.push('…');
    }
    out
}

/// Characters that reorder the text around them.
fn is_direction_mark(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{61c}')
}

/// Text of a comment without what is hidden in it.
pub fn without_html_comments(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("<!--") {
        out.push_str(rest.get(..start).unwrap_or_default());
        let tail = rest.get(start..).unwrap_or_default();
        rest = tail.find("-->").and_then(|end| tail.get(end + 3..)).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(colours: bool, draw: impl FnOnce(&mut Screen<Vec<u8>>)) -> String {
        let mut screen = Screen::new(Vec::new(), colours);
        draw(&mut screen);
        String::from_utf8(screen.into_inner()).unwrap()
    }

    #[test]
    fn agents_cannot_drive_the_terminal() {
        let line = |text: &str| LogLine { n: 1, k: LogKind::Out, t: text.to_owned() };
        let text = shown(false, |screen| screen.log(&line("a\u{1b}[2Jb\u{7}\u{202e}c\td")));
        assert_eq!(text, "         │ a[2Jbc d\n");
        let text = shown(false, |screen| screen.log(&line(&"x".repeat(1000))));
        assert_eq!(text.chars().filter(|c| *c == 'x').count(), MAX_LINE_CHARS);
        assert!(text.ends_with("…\n"));
    }

    #[test]
    fn a_result_that_repeats_the_last_words_is_shown_once() {
        let line = |k, text: &str| LogLine { n: 1, k, t: text.to_owned() };
        let text = shown(false, |screen| {
            screen.log(&line(LogKind::Text, "one\ntwo"));
            screen.log(&line(LogKind::Result, "one\ntwo\n"));
            screen.log(&line(LogKind::Result, "three"));
        });
        assert_eq!(text, "         │ one\n         │ two\n         │ three\n");
    }

    #[test]
    fn colours_come_only_when_asked_for() {
        let draw = |screen: &mut Screen<Vec<u8>>| screen.diff("@@ -1 +1 @@\n-a\n+b\n c\n");
        assert_eq!(shown(false, draw), "  @@ -1 +1 @@\n  -a\n  +b\n   c\n");
        assert!(shown(true, draw).contains("\u{1b}[32m+b\u{1b}[0m"));
    }

    #[test]
    fn hidden_comments_are_left_out() {
        let text = shown(false, |screen| screen.quote("one <!-- a\nb -->two\n<!-- open"));
        assert_eq!(text, "    one two\n");
    }
}
