//! Purpose: the shim's line protocol as the host reads it: bytes in, numbered lines out, nothing trusted.

use super::{Line, LineSource};
use crate::shim::output::MAX_LINE_BYTES;
use serde::Deserialize;
use std::collections::VecDeque;

/// One protocol line, escaped: at most six bytes for one of text, and room for the frame.
const MAX_PROTOCOL_LINE: usize = MAX_LINE_BYTES * 6 + 4096;
/// Lines kept for the next poll before reading stops until somebody asks.
const MAX_KEPT_LINES: usize = 4096;
/// Bytes kept for the next poll.
const MAX_KEPT_BYTES: usize = 4 * 1024 * 1024;
/// Lines and bytes of one answer.
pub const MAX_ANSWER_LINES: usize = 1024;
const MAX_ANSWER_BYTES: usize = 1024 * 1024;

#[derive(Deserialize)]
struct Wire {
    n: i64,
    s: String,
    t: String,
}

#[derive(Deserialize)]
struct Event {
    event: String,
    #[serde(default)]
    out_of_memory: bool,
}

/// Cuts a byte stream into protocol lines; what is not one is dropped.
#[derive(Debug, Default)]
pub struct LineReader {
    partial: Vec<u8>,
    /// The line is longer than the protocol allows: drop it to its end.
    overlong: bool,
}

impl LineReader {
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut rest = bytes;
        while let Some(at) = rest.iter().position(|byte| *byte == b'\n') {
            let (head, tail) = rest.split_at(at);
            self.keep(head);
            if !self.overlong {
                lines.extend(parse(&self.partial));
            }
            self.partial.clear();
            self.overlong = false;
            rest = tail.get(1..).unwrap_or_default();
        }
        self.keep(rest);
        lines
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.partial.len() + bytes.len() > MAX_PROTOCOL_LINE {
            self.overlong = true;
            self.partial.clear();
        } else if !self.overlong {
            self.partial.extend_from_slice(bytes);
        }
    }
}

fn parse(bytes: &[u8]) -> Option<Line> {
    let wire: Wire = serde_json::from_slice(bytes).ok()?;
    let source = match wire.s.as_str() {
        "out" => LineSource::Stdout,
        "err" => LineSource::Stderr,
        "shim" => LineSource::Shim,
        _ => return None,
    };
    (wire.n > 0).then_some(Line { n: wire.n, source, text: wire.t })
}

/// The lines after the oldest cursor that may still be asked for.
#[derive(Debug, Default)]
pub struct LineBuffer {
    lines: VecDeque<Line>,
    bytes: usize,
    /// The highest number seen: later lines must be higher.
    last: i64,
    /// Lines up to this number are gone; only a new reading can bring them back.
    forgotten: i64,
    /// The agent has started: the gate can close.
    pub started: bool,
    /// The shim said its last word.
    pub finished: bool,
    /// The shim saw the kernel kill for memory.
    pub out_of_memory: bool,
}

impl LineBuffer {
    /// A buffer for a reader that knows everything up to `cursor`.
    pub fn after(cursor: i64) -> Self {
        Self { forgotten: cursor, ..Self::default() }
    }

    /// Takes a line; repeated and older numbers are dropped.
    pub fn push(&mut self, line: Line) {
        if line.n <= self.last {
            return;
        }
        self.last = line.n;
        if line.source == LineSource::Shim
            && let Ok(event) = serde_json::from_str::<Event>(&line.text)
        {
            self.started |= event.event == "started";
            self.finished |= matches!(event.event.as_str(), "collected" | "nothing");
            self.out_of_memory |= event.out_of_memory;
        }
        if line.n > self.forgotten {
            self.bytes += line.text.len();
            self.lines.push_back(line);
        }
    }

    /// Forgets what the reader has stored: everything up to `cursor`.
    pub fn forget(&mut self, cursor: i64) {
        while self.lines.front().is_some_and(|line| line.n <= cursor) {
            if let Some(line) = self.lines.pop_front() {
                self.bytes -= line.text.len();
            }
        }
        self.forgotten = self.forgotten.max(cursor);
    }

    /// Whether lines after `cursor` may be missing here.
    pub fn has_forgotten_after(&self, cursor: i64) -> bool {
        cursor < self.forgotten
    }

    pub fn is_full(&self) -> bool {
        self.lines.len() >= MAX_KEPT_LINES || self.bytes >= MAX_KEPT_BYTES
    }

    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The next lines, without forgetting them, and whether there are more.
    pub fn answer(&self) -> (Vec<Line>, bool) {
        let mut bytes = 0;
        let mut lines = Vec::new();
        for line in self.lines.iter().take(MAX_ANSWER_LINES) {
            bytes += line.text.len();
            if bytes > MAX_ANSWER_BYTES && !lines.is_empty() {
                break;
            }
            lines.push(line.clone());
        }
        let more = lines.len() < self.lines.len();
        (lines, more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wire(n: i64, text: &str) -> Vec<u8> {
        format!("{}\n", serde_json::json!({"n": n, "s": "out", "t": text})).into_bytes()
    }

    fn numbers(lines: &[Line]) -> Vec<i64> {
        lines.iter().map(|line| line.n).collect()
    }

    #[test]
    fn lines_are_found_however_the_bytes_are_cut() {
        let mut bytes = wire(1, "one");
        bytes.extend(wire(2, "two \u{1f600}"));
        for size in 1..bytes.len() {
            let mut reader = LineReader::default();
            let lines: Vec<_> = bytes.chunks(size).flat_map(|chunk| reader.push(chunk)).collect();
            assert_eq!(numbers(&lines), [1, 2], "pieces of {size}");
            assert_eq!(lines[1].text, "two \u{1f600}");
        }
    }

    #[test]
    fn what_is_not_the_protocol_is_dropped() {
        let mut reader = LineReader::default();
        let bad: [&[u8]; 6] = [
            b"plain text\n",
            b"{\"n\":0,\"s\":\"out\",\"t\":\"\"}\n",
            b"{\"n\":-4,\"s\":\"out\",\"t\":\"\"}\n",
            b"{\"n\":1,\"s\":\"other\",\"t\":\"\"}\n",
            b"\xff\xfe\n",
            b"\n",
        ];
        for line in bad {
            assert!(reader.push(line).is_empty());
        }
        assert!(reader.push(&vec![b'x'; MAX_PROTOCOL_LINE * 2]).is_empty());
        assert!(reader.partial.is_empty());
        assert_eq!(numbers(&reader.push(&[b"\n".to_vec(), wire(7, "after")].concat())), [7]);
    }

    #[test]
    fn a_cursor_may_be_asked_again_until_a_later_one_came() {
        let mut buffer = LineBuffer::after(2);
        for n in [1, 2, 3, 4, 4, 3, 5] {
            buffer.push(Line { n, source: LineSource::Stdout, text: "x".into() });
        }
        assert_eq!(numbers(&buffer.answer().0), [3, 4, 5]);
        assert_eq!(numbers(&buffer.answer().0), [3, 4, 5]);
        buffer.forget(4);
        assert_eq!(numbers(&buffer.answer().0), [5]);
        assert!(buffer.has_forgotten_after(3) && !buffer.has_forgotten_after(4));
    }

    #[test]
    fn answers_and_the_buffer_are_bounded() {
        let mut buffer = LineBuffer::default();
        for n in 1..=200 {
            buffer.push(Line { n, source: LineSource::Stdout, text: "x".repeat(MAX_LINE_BYTES) });
        }
        assert!(buffer.is_full());
        let (lines, more) = buffer.answer();
        assert!(more && lines.len() <= MAX_ANSWER_BYTES / MAX_LINE_BYTES);
    }

    #[test]
    fn events_of_the_shim_are_noticed_and_those_of_the_agent_are_not() {
        let mut buffer = LineBuffer::default();
        let text = "{\"event\":\"exited\",\"code\":null,\"signal\":9,\"out_of_memory\":true}";
        buffer.push(Line { n: 1, source: LineSource::Stdout, text: text.into() });
        assert!(!buffer.out_of_memory);
        buffer.push(Line { n: 2, source: LineSource::Shim, text: text.into() });
        buffer.push(Line {
            n: 3,
            source: LineSource::Shim,
            text: "{\"event\":\"started\",\"pid\":7}".into(),
        });
        assert!(buffer.out_of_memory && buffer.started);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = LineReader::default().push(&bytes);
        }
    }
}
