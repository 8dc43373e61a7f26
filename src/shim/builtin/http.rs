//! Purpose: one HTTP/1.1 request to the bridge on 127.0.0.1, without TLS and without streaming.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Bytes of an answer that are read; 128 000 tokens are about half a mebibyte.
const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;
/// Bytes of one line of the head.
const MAX_LINE_BYTES: usize = 64 * 1024;
/// Lines of the head.
const MAX_HEADERS: usize = 200;
/// Silence after which a request is given up: longer than the broker's own patience with the model endpoint.
const SILENCE: Duration = Duration::from_secs(330);
/// Time to hand over a request.
const SEND: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Seconds, from `retry-after`.
    pub retry_after: Option<u64>,
    pub body: Vec<u8>,
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// Posts JSON to `http://<address><path>` and reads the whole answer.
pub fn post(address: &str, path: &str, headers: &[(&str, &str)], body: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SEND))?;
    let mut head = format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    stream.flush()?;
    read_answer(&mut BufReader::new(stream))
}

/// Reads one answer, past interim ones.
pub fn read_answer(from: &mut dyn BufRead) -> io::Result<Answer> {
    loop {
        let answer = read_one(from)?;
        if !(100..200).contains(&answer.status) {
            return Ok(answer);
        }
    }
}

fn read_one(from: &mut dyn BufRead) -> io::Result<Answer> {
    let first = line(from)?;
    let status = first
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1))
        .and_then(|status| status.parse::<u16>().ok())
        .filter(|status| (100..600).contains(status))
        .ok_or_else(|| invalid("the answer is not HTTP"))?;
    let (mut length, mut chunked, mut retry_after) = (None, false, None);
    let mut ended = false;
    for _ in 0..MAX_HEADERS {
        let header = line(from)?;
        if header.is_empty() {
            ended = true;
            break;
        }
        let Some((name, value)) = header.split_once(':') else {
            return Err(invalid("a header without a colon"));
        };
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => {
                let bytes: usize = value.parse().map_err(|_| invalid("a length that is no number"))?;
                length = Some(bytes);
            }
            "transfer-encoding" => chunked = value.to_ascii_lowercase().contains("chunked"),
            "retry-after" => retry_after = value.parse().ok(),
            _ => {}
        }
    }
    if !ended {
        return Err(invalid("too many headers"));
    }
    let body = if (100..200).contains(&status) || status == 204 || status == 304 {
        Vec::new()
    } else if chunked {
        read_chunks(from)?
    } else if let Some(length) = length {
        read_exactly(from, length)?
    } else {
        let mut body = Vec::new();
        let cap = u64::try_from(MAX_BODY_BYTES).unwrap_or(u64::MAX).saturating_add(1);
        from.take(cap).read_to_end(&mut body)?;
        if body.len() > MAX_BODY_BYTES {
            return Err(invalid("the answer is too long"));
        }
        body
    };
    Ok(Answer { status, retry_after, body })
}

fn read_exactly(from: &mut dyn BufRead, length: usize) -> io::Result<Vec<u8>> {
    if length > MAX_BODY_BYTES {
        return Err(invalid("the answer is too long"));
    }
    // Grown as it arrives: the length is a claim.
    let mut body = Vec::new();
    from.take(u64::try_from(length).unwrap_or(u64::MAX)).read_to_end(&mut body)?;
    if body.len() == length { Ok(body) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn read_chunks(from: &mut dyn BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let size = line(from)?;
        let digits = size.split(';').next().unwrap_or_default().trim();
        let size = Some(digits)
            .filter(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|digits| usize::from_str_radix(digits, 16).ok())
            .ok_or_else(|| invalid("a chunk without a size"))?;
        if size == 0 {
            for _ in 0..MAX_HEADERS {
                if line(from)?.is_empty() {
                    return Ok(body);
                }
            }
            return Err(invalid("too many trailers"));
        }
        if body.len().saturating_add(size) > MAX_BODY_BYTES {
            return Err(invalid("the answer is too long"));
        }
        body.extend_from_slice(&read_exactly(from, size)?);
        if !line(from)?.is_empty() {
            return Err(invalid("a chunk without an end"));
        }
    }
}

/// One line of the head, without its end.
fn line(from: &mut dyn BufRead) -> io::Result<String> {
    let mut bytes = Vec::new();
    let cap = u64::try_from(MAX_LINE_BYTES).unwrap_or(u64::MAX);
    from.take(cap).read_until(b'\n', &mut bytes)?;
    if bytes.pop() != Some(b'\n') {
        return Err(if bytes.len() >= MAX_LINE_BYTES - 1 {
            invalid("a line of the answer's head is too long")
        } else {
            io::ErrorKind::UnexpectedEof.into()
        });
    }
    if bytes.last() == Some(&b'\r') {
        bytes.pop();
    }
    String::from_utf8(bytes).map_err(|_| invalid("a line of the answer's head is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::TcpListener;

    fn read(bytes: &[u8]) -> io::Result<Answer> {
        read_answer(&mut &*bytes)
    }

    #[test]
    fn bodies_of_every_kind_are_read() {
        for text in [
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello, and more",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nX: y\r\n\r\n",
            "HTTP/1.0 200 OK\n\nhello",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        ] {
            let answer = read(text.as_bytes()).unwrap();
            assert_eq!((answer.status, answer.body.as_slice()), (200, &b"hello"[..]), "{text}");
        }
        let busy = read(b"HTTP/1.1 529 \r\nRetry-After: 7\r\ncontent-length: 0\r\n\r\n").unwrap();
        assert_eq!(busy, Answer { status: 529, retry_after: Some(7), body: vec![] });
    }

    #[test]
    fn broken_answers_are_errors() {
        for bad in [
            "",
            "SSH-2.0\r\n",
            "HTTP/1.1 abc\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort",
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        ] {
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
        let endless = format!("HTTP/1.1 200 OK\r\n{}", "a: b\r\n".repeat(MAX_HEADERS + 1));
        assert!(read(endless.as_bytes()).unwrap_err().to_string().contains("headers"));
        let long = format!("HTTP/1.1 200 {}", "x".repeat(MAX_LINE_BYTES));
        assert!(read(long.as_bytes()).unwrap_err().to_string().contains("too long"));
    }

    #[test]
    fn a_request_says_where_it_goes_and_how_long_it_is() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut seen = Vec::new();
            let mut chunk = [0; 1024];
            while !seen.ends_with(b"{}") {
                let read = stream.read(&mut chunk).unwrap();
                seen.extend_from_slice(&chunk[..read]);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap();
            String::from_utf8(seen).unwrap()
        });
        let answer = post(&address, "/v1/messages", &[("x-api-key", "placeholder")], "{}").unwrap();
        assert_eq!(answer.body, b"ok");
        let seen = server.join().unwrap();
        for part in ["POST /v1/messages HTTP/1.1\r\n", "content-length: 2\r\n", "x-api-key: placeholder\r\n"]
        {
            assert!(seen.contains(part), "{seen}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
            let mut begun = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
            begun.extend(bytes);
            let _ = read(&begun);
        }
    }
}
