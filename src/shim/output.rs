//! Purpose: the shim's own output: one JSON object per line, `{"n":1,"s":"out|err|shim","t":"…"}`,
//! numbered from 1, each line and the whole capped.

use std::fmt;
use std::io::{Read, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes of one line's text before it is cut: what a page or a log row can hold.
pub const MAX_LINE_BYTES: usize = 64 * 1024;
/// What is written until the job says how much.
const DEFAULT_TOTAL_BYTES: u64 = 1024 * 1024;
/// Kept beyond the cap for the shim's own lines, which tell how the run ended.
const SHIM_RESERVE_BYTES: u64 = 64 * 1024;
/// One read from the agent's pipe.
const READ_BYTES: usize = 16 * 1024;

/// Which stream a line comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Out,
    Err,
    Shim,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::Err => "err",
            Self::Shim => "shim",
        }
    }
}

struct State {
    to: Box<dyn Write + Send>,
    n: u64,
    written: u64,
    cap: u64,
    told: bool,
}

/// The numbered, capped line protocol; shared by the threads of the shim.
pub struct Output {
    state: Mutex<State>,
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Output")
    }
}

impl Output {
    pub fn new(to: Box<dyn Write + Send>) -> Self {
        Self { state: Mutex::new(State { to, n: 0, written: 0, cap: DEFAULT_TOTAL_BYTES, told: false }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the cap on all lines together.
    pub fn limit(&self, bytes: u64) {
        self.lock().cap = bytes;
    }

    /// One line of the agent's; dropped, after one notice, when the cap is reached.
    pub fn line(&self, source: Source, text: &[u8]) {
        let text = escape(&String::from_utf8_lossy(text));
        let mut state = self.lock();
        let size = u64::try_from(text.len()).unwrap_or(u64::MAX);
        if source != Source::Shim && state.written.saturating_add(size) > state.cap {
            if !state.told {
                state.told = true;
                let cap = state.cap;
                let notice = format!("{{\"event\":\"log_full\",\"bytes\":{cap}}}");
                state.write(Source::Shim, &escape(&notice));
            }
            return;
        }
        if source == Source::Shim && state.written > state.cap.saturating_add(SHIM_RESERVE_BYTES) {
            return;
        }
        state.write(source, &text);
    }

    /// An event of the shim itself: `json` is one object.
    pub fn event(&self, json: &str) {
        self.line(Source::Shim, json.as_bytes());
    }

    /// `{"event":"error","step":…,"detail":…}`.
    pub fn error(&self, step: &str, detail: &str) {
        let detail: String = detail.chars().take(4000).collect();
        self.event(&format!(
            "{{\"event\":\"error\",\"step\":\"{}\",\"detail\":\"{}\"}}",
            escape(step),
            escape(&detail)
        ));
    }

    /// Copies a stream line by line until it ends. Longer lines are cut with a note; what follows the cap
    /// is read and dropped, so that the agent never blocks on its output.
    pub fn copy(&self, source: Source, from: &mut dyn Read) {
        let mut line = Vec::new();
        let mut dropped: usize = 0;
        let mut chunk = vec![0; READ_BYTES];
        loop {
            let read = match from.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            let mut rest = chunk.get(..read).unwrap_or_default();
            while let Some(at) = rest.iter().position(|byte| *byte == b'\n') {
                let (head, tail) = rest.split_at(at);
                keep(&mut line, &mut dropped, head);
                self.finish(source, &mut line, &mut dropped);
                rest = tail.get(1..).unwrap_or_default();
            }
            keep(&mut line, &mut dropped, rest);
        }
        if !line.is_empty() || dropped > 0 {
            self.finish(source, &mut line, &mut dropped);
        }
    }

    fn finish(&self, source: Source, line: &mut Vec<u8>, dropped: &mut usize) {
        if *dropped > 0 {
            line.extend_from_slice(format!(" …[{dropped} bytes cut]").as_bytes());
        } else if line.last() == Some(&b'\r') {
            line.pop();
        }
        self.line(source, line);
        line.clear();
        *dropped = 0;
    }
}

/// Adds what still fits into one line and counts the rest.
fn keep(line: &mut Vec<u8>, dropped: &mut usize, bytes: &[u8]) {
    let room = MAX_LINE_BYTES.saturating_sub(line.len()).min(bytes.len());
    let (kept, lost) = bytes.split_at(room);
    line.extend_from_slice(kept);
    *dropped += lost.len();
}

impl State {
    fn write(&mut self, source: Source, escaped: &str) {
        self.n += 1;
        let line = format!("{{\"n\":{},\"s\":\"{}\",\"t\":\"{escaped}\"}}\n", self.n, source.name());
        self.written = self.written.saturating_add(u64::try_from(line.len()).unwrap_or(u64::MAX));
        // Nobody reads any more: the run goes on, its result does not depend on the log.
        let _ = self.to.write_all(line.as_bytes()).and_then(|()| self.to.flush());
    }
}

/// The inside of a JSON string.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match character {
            '"' => escaped.push_str("\\\""),
            '\\' => escaped.push_str("\\\\"),
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            c if u32::from(c) < 0x20 || c == '\u{7f}' => {
                escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn lines_of(input: &[u8], cap: u64) -> Vec<(i64, String, String)> {
        let to = Shared::default();
        let output = Output::new(Box::new(to.clone()));
        output.limit(cap);
        output.copy(Source::Out, &mut &*input);
        output.event("{\"event\":\"end\"}");
        let bytes = to.0.lock().unwrap().clone();
        String::from_utf8(bytes)
            .unwrap()
            .lines()
            .map(|line| {
                let value: serde_json::Value = serde_json::from_str(line).unwrap();
                (
                    value["n"].as_i64().unwrap(),
                    value["s"].as_str().unwrap().to_owned(),
                    value["t"].as_str().unwrap().to_owned(),
                )
            })
            .collect()
    }

    #[test]
    fn lines_are_numbered_and_decoded() {
        let lines = lines_of(b"one\r\n\n\"quoted\\\"\xff\x01\x7f\nlast", 1 << 20);
        let texts: Vec<_> =
            lines.iter().map(|(n, source, text)| (*n, source.as_str(), text.as_str())).collect();
        assert_eq!(
            texts,
            [
                (1, "out", "one"),
                (2, "out", ""),
                (3, "out", "\"quoted\\\"\u{fffd}\u{1}\u{7f}"),
                (4, "out", "last"),
                (5, "shim", "{\"event\":\"end\"}")
            ]
        );
    }

    #[test]
    fn long_lines_are_cut_with_a_note() {
        let mut input = vec![b'a'; MAX_LINE_BYTES + 7];
        input.extend_from_slice(b"\nnext\n");
        let lines = lines_of(&input, 1 << 20);
        assert!(lines[0].2.ends_with("a \u{2026}[7 bytes cut]"));
        assert_eq!(lines[0].2.len(), MAX_LINE_BYTES + " \u{2026}[7 bytes cut]".len());
        assert_eq!(lines[1].2, "next");
    }

    #[test]
    fn the_cap_is_told_once_and_the_shim_may_still_speak() {
        let input = b"0123456789\n".repeat(1000);
        let lines = lines_of(&input, 400);
        let shim: Vec<_> = lines.iter().filter(|(_, source, _)| source == "shim").collect();
        assert_eq!(shim.len(), 2);
        assert_eq!(shim[0].2, "{\"event\":\"log_full\",\"bytes\":400}");
        assert_eq!(shim[1].2, "{\"event\":\"end\"}");
        assert!(lines.len() < 20);
    }

    proptest! {
        #[test]
        fn every_output_is_json_that_says_the_same(text in ".*") {
            let json = format!("\"{}\"", escape(&text));
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
            prop_assert!(!json.contains('\n'));
        }
    }
}
