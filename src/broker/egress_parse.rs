//! Purpose: the one parser of what an agent asks the proxy: the head of a request, and the name in a TLS hello.
//!
//! Strict on purpose: what is not plainly one of the few shapes that clients send is refused, so that no other
//! reader of the same bytes can understand them differently.

use crate::domain::egress::HostError;
pub use crate::domain::egress::canonical_host;

/// Bytes of a request's head.
pub const MAX_HEAD_BYTES: usize = 8 * 1024;
/// Header lines of one request.
const MAX_HEADERS: usize = 64;
/// Bytes of a URL over plain HTTP: room for a package's path, not for data.
pub const MAX_URL_BYTES: usize = 2048;
/// Bytes of a TLS hello: with post-quantum keys and a ticket it has about 2 KiB.
pub const MAX_HELLO_BYTES: usize = 16 * 1024;
/// Bytes of the headers that are passed on over plain HTTP, all together.
const MAX_PASSED_BYTES: usize = 1024;
/// Headers that are passed on over plain HTTP: what caches and partial downloads need.
const PASSED_HEADERS: &[&str] =
    &["accept", "if-modified-since", "if-none-match", "if-range", "range", "user-agent"];

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    Tunnel(Connect),
    Plain(Plain),
}

/// `CONNECT host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect {
    /// In its canonical form.
    pub host: String,
    pub port: u16,
}

/// `GET http://host/path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plain {
    pub host: String,
    /// The whole request as it is sent on, made anew.
    pub request: Vec<u8>,
}

/// Why a request's head is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("the request is malformed: {0}")]
    Malformed(&'static str),
    #[error("the host cannot be used: {0}")]
    Host(#[from] HostError),
    #[error("only CONNECT to port 443, and GET or HEAD of http:// URLs on port 80, are possible")]
    Method,
    #[error("port {0} is not possible: TLS on 443, plain HTTP on 80")]
    Port(u16),
    #[error("the URL is longer than {MAX_URL_BYTES} bytes")]
    LongUrl,
    #[error("a body is not possible over plain HTTP")]
    Body,
}

/// Why a TLS hello is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// More bytes are needed.
    #[error("the TLS hello was cut off")]
    Incomplete,
    #[error("{0}")]
    Refused(&'static str),
}

/// A `CONNECT` request: the whole head, up to and including its empty line.
pub fn parse_connect(head: &[u8]) -> Result<Connect, HeadError> {
    match parse_request(head)? {
        Asked::Tunnel(connect) => Ok(connect),
        Asked::Plain(_) => Err(HeadError::Method),
    }
}

/// Any request of a proxy's client: the whole head, up to and including its empty line.
pub fn parse_request(head: &[u8]) -> Result<Asked, HeadError> {
    let malformed = HeadError::Malformed;
    if head.len() > MAX_HEAD_BYTES {
        return Err(malformed("the head is too long"));
    }
    let text = std::str::from_utf8(head).map_err(|_| malformed("it is not text"))?;
    // Only visible ASCII, blanks, and line ends that are CR LF.
    let text = text.strip_suffix("\r\n\r\n").ok_or(malformed("it does not end with an empty line"))?;
    let mut lines = text.split("\r\n");
    let plain = |line: &str| line.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    let request = lines.next().filter(|line| plain(line)).ok_or(malformed("odd bytes in its first line"))?;
    let [method, target, version] = request.split(' ').collect::<Vec<_>>()[..] else {
        return Err(malformed("its first line does not have three parts"));
    };
    if !matches!(version, "HTTP/1.1" | "HTTP/1.0") {
        return Err(malformed("it is not HTTP/1"));
    }
    let headers = headers(lines)?;
    for (name, value) in &headers {
        match name.as_str() {
            "transfer-encoding" | "upgrade" | "expect" => return Err(HeadError::Body),
            "content-length" if *value != "0" => return Err(HeadError::Body),
            _ => {}
        }
    }
    let named: Vec<&str> =
        headers.iter().filter(|(name, _)| name == "host").map(|(_, value)| *value).collect();
    if named.len() > 1 {
        return Err(malformed("it names two hosts"));
    }
    let same = |host: &str, port: u16| match named.first() {
        None => Ok(()),
        Some(named) => match authority(named, port) {
            Ok((other, named)) if other == host && named == port => Ok(()),
            _ => Err(malformed("its Host header names something else than its first line")),
        },
    };
    match method {
        "CONNECT" => {
            if !target.contains(':') {
                return Err(malformed("CONNECT needs HOST:PORT"));
            }
            let (host, port) = authority(target, 443)?;
            if port != 443 {
                return Err(HeadError::Port(port));
            }
            same(&host, 443)?;
            Ok(Asked::Tunnel(Connect { host, port }))
        }
        "GET" | "HEAD" => {
            if target.len() > MAX_URL_BYTES {
                return Err(HeadError::LongUrl);
            }
            let rest = target.strip_prefix("http://").ok_or(HeadError::Method)?;
            let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
            let (place, path) = rest.split_at(end);
            let (host, port) = authority(place, 80)?;
            if port != 80 {
                return Err(HeadError::Port(port));
            }
            if !(path.is_empty() || path.starts_with('/')) || path.contains(['#', '\\']) {
                return Err(malformed("odd characters after the host"));
            }
            same(&host, 80)?;
            let path = if path.is_empty() { "/" } else { path };
            let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
            let mut passed = 0;
            for (name, value) in headers.iter().filter(|(name, _)| PASSED_HEADERS.contains(&name.as_str())) {
                passed += name.len() + value.len();
                if passed > MAX_PASSED_BYTES {
                    return Err(malformed("its headers are too long"));
                }
                request.push_str(&format!("{name}: {value}\r\n"));
            }
            request.push_str("\r\n");
            Ok(Asked::Plain(Plain { host, request: request.into_bytes() }))
        }
        _ => Err(HeadError::Method),
    }
}

/// Names in lower case, values trimmed.
fn headers<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Vec<(String, &'a str)>, HeadError> {
    let malformed = HeadError::Malformed;
    let mut headers = Vec::new();
    for line in lines {
        if headers.len() == MAX_HEADERS {
            return Err(malformed("it has too many headers"));
        }
        let (name, value) = line.split_once(':').ok_or(malformed("a header has no colon"))?;
        let token = !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if !token || !value.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t')) {
            return Err(malformed("odd bytes in a header"));
        }
        headers.push((name.to_ascii_lowercase(), value.trim_matches([' ', '\t'])));
    }
    Ok(headers)
}

/// `host` or `host:port`, the host in its canonical form.
fn authority(text: &str, default_port: u16) -> Result<(String, u16), HeadError> {
    let Some((host, port)) = text.split_once(':') else {
        return Ok((canonical_host(text)?, default_port));
    };
    let host = canonical_host(host)?;
    // No sign, no leading zero: the number has one form, too.
    let digits = (1..=5).contains(&port.len())
        && port.bytes().all(|byte| byte.is_ascii_digit())
        && !port.starts_with('0');
    let port = port.parse().ok().filter(|_| digits).ok_or(HeadError::Malformed("its port is no number"))?;
    Ok((host, port))
}

/// The server name in a TLS ClientHello, in its canonical form: exactly one, in the clear, without Encrypted Client
/// Hello (which would hide another name behind it).
pub fn client_hello_sni(bytes: &[u8]) -> Result<String, HelloError> {
    let refused = HelloError::Refused;
    let hello = handshake(bytes)?;
    let mut rest = Cut(&hello);
    let broken = refused("the TLS hello is malformed");
    rest.take(2 + 32).ok_or(broken)?;
    rest.vector8().filter(|session| session.len() <= 32).ok_or(broken)?;
    rest.vector16().filter(|suites| suites.len() >= 2 && suites.len() % 2 == 0).ok_or(broken)?;
    rest.vector8().filter(|methods| !methods.is_empty()).ok_or(broken)?;
    if rest.0.is_empty() {
        return Err(refused("the TLS hello names no server"));
    }
    let mut extensions = Cut(rest.vector16().ok_or(broken)?);
    if !rest.0.is_empty() {
        return Err(broken);
    }
    let mut seen = Vec::new();
    let mut name = None;
    while !extensions.0.is_empty() {
        let kind = extensions.number16().ok_or(broken)?;
        let value = extensions.vector16().ok_or(broken)?;
        if seen.contains(&kind) {
            return Err(broken);
        }
        seen.push(kind);
        match kind {
            0 => {
                let mut names = Cut(value);
                let mut list = Cut(names.vector16().filter(|_| names.0.is_empty()).ok_or(broken)?);
                let one =
                    list.take(1).filter(|kind| *kind == [0]).and_then(|_| list.vector16()).ok_or(broken)?;
                if !list.0.is_empty() {
                    return Err(refused("the TLS hello names two servers"));
                }
                let text = std::str::from_utf8(one).map_err(|_| broken)?;
                name = Some(
                    canonical_host(text)
                        .map_err(|_| refused("the TLS hello names a server that is no plain host name"))?,
                );
            }
            // encrypted_client_hello, final code point and the older draft's.
            0xfe0d | 0xffce => return Err(refused("Encrypted Client Hello is not possible here")),
            _ => {}
        }
    }
    name.ok_or(refused("the TLS hello names no server"))
}

/// The body of the first handshake message, a ClientHello, put together from its records.
fn handshake(bytes: &[u8]) -> Result<Vec<u8>, HelloError> {
    let refused = HelloError::Refused;
    let mut rest = Cut(bytes);
    let mut message: Vec<u8> = Vec::new();
    loop {
        if let [kind, a, b, c, body @ ..] = message.as_slice() {
            if *kind != 1 {
                return Err(refused("the connection does not begin with a TLS hello"));
            }
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            if length > MAX_HELLO_BYTES {
                return Err(refused("the TLS hello is too long"));
            }
            match body.len().cmp(&length) {
                std::cmp::Ordering::Equal => return Ok(body.to_vec()),
                std::cmp::Ordering::Greater => {
                    return Err(refused("something follows the TLS hello in its record"));
                }
                std::cmp::Ordering::Less => {}
            }
        }
        // The first byte that is wrong is refused at once: a client that speaks first in another protocol must not wait.
        match rest.0 {
            [] => return Err(HelloError::Incomplete),
            [22] | [22, 3] => return Err(HelloError::Incomplete),
            [22, 3, 0..=4, ..] => {}
            _ => return Err(refused("the connection does not begin with a TLS hello")),
        }
        if let [_, _, _, a, b, ..] = rest.0 {
            let length = usize::from(*a) << 8 | usize::from(*b);
            if length == 0 || length > MAX_HELLO_BYTES {
                return Err(refused("a TLS record has an odd length"));
            }
        }
        let record = Cut(rest.0.get(3..).unwrap_or_default()).vector16().ok_or(HelloError::Incomplete)?;
        message.extend_from_slice(record);
        rest.take(5 + record.len()).ok_or(HelloError::Incomplete)?;
    }
}

/// Reads big-endian pieces off the front.
struct Cut<'a>(&'a [u8]);

impl<'a> Cut<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn number16(&mut self) -> Option<u16> {
        self.take(2).map(|pair| pair.iter().fold(0, |number, byte| number << 8 | u16::from(*byte)))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?.first().copied()?;
        self.take(usize::from(length))
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.number16()?;
        self.take(usize::from(length))
    }
}
