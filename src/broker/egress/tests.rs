//! The proxy against mutated names, addresses in every notation, rebinding names, false hellos and greedy clients.

use super::*;
use crate::clock::SystemClock;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Mutex;
use tokio::io::duplex;
use tokio::net::TcpListener;

const PUBLIC: &str = "93.184.215.14";

/// Answers from a script, and tells what it was asked.
#[derive(Debug, Default)]
struct FakeDial {
    /// What a name resolves to, one answer after another; the last one stays. Without a script: `PUBLIC`.
    answers: Mutex<BTreeMap<String, VecDeque<Vec<IpAddr>>>>,
    /// Where connections really go; `None`: nowhere.
    server: Option<SocketAddr>,
    resolved: Mutex<Vec<String>>,
    connected: Mutex<Vec<SocketAddr>>,
}

#[async_trait]
impl Dial for FakeDial {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        self.resolved.lock().unwrap().push(host.to_owned());
        let mut answers = self.answers.lock().unwrap();
        Ok(match answers.get_mut(host) {
            Some(script) if script.len() > 1 => script.pop_front().unwrap(),
            Some(script) => script.front().cloned().unwrap(),
            None => vec![PUBLIC.parse().unwrap()],
        })
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        self.connected.lock().unwrap().push(address);
        match self.server {
            Some(server) => TcpStream::connect(server).await,
            None => Err(io::Error::from(io::ErrorKind::ConnectionRefused)),
        }
    }
}

struct Bench {
    proxy: Proxy,
    dial: Arc<FakeDial>,
    grant: Grant,
    refusals: AtomicU32,
    store: Store,
    _folder: tempfile::TempDir,
}

const HOSTS: [&str; 4] = ["static.crates.io", "pypi.org", "mirror.example.com", "deb.debian.org"];

impl Bench {
    async fn new(dial: FakeDial) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store =
            Store::open(&format!("sqlite:{}", folder.path().join("zeblit.db").display())).await.unwrap();
        let dial = Arc::new(dial);
        let entries = ["crates", "pypi", "mirror.example.com", "debian"].map(str::to_owned);
        Self {
            proxy: Proxy::new(store.clone(), Arc::new(SystemClock), dial.clone()),
            dial,
            grant: Grant {
                run: RunId::new("run"),
                hosts: AllowList::new(&entries).unwrap(),
                budget: Bytes { out: 256 * 1024, inward: 4 << 20 },
            },
            refusals: AtomicU32::new(0),
            store,
            _folder: folder,
        }
    }

    /// What a client hears that sends this and reads to the end.
    async fn says(&self, request: &[u8]) -> String {
        let (mut client, proxy) = duplex(256 * 1024);
        let talk = async {
            let _ = client.write_all(request).await;
            let _ = client.shutdown().await;
            let mut heard = Vec::new();
            let _ = client.read_to_end(&mut heard).await;
            String::from_utf8_lossy(&heard).into_owned()
        };
        let (heard, ()) = tokio::join!(talk, self.proxy.connection(&self.grant, &self.refusals, proxy));
        heard
    }

    fn resolved(&self) -> Vec<String> {
        self.dial.resolved.lock().unwrap().clone()
    }

    fn connected(&self) -> usize {
        self.dial.connected.lock().unwrap().len()
    }

    async fn rows(&self) -> Vec<accounts::Reached> {
        accounts::of_run(&self.store, &self.grant.run).await.unwrap()
    }

    /// Waits until what was counted ahead is given back.
    async fn settled(&self, bytes: Bytes) {
        let look = async {
            while self.rows().await.iter().map(|row| row.bytes).find(|found| *found != Bytes::default())
                != Some(bytes)
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        assert!(
            timeout(Duration::from_secs(60), look).await.is_ok(),
            "{:?}, wanted {bytes:?}",
            self.rows().await
        );
    }
}

/// A TLS hello with these extensions in one record.
fn hello(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let vector = |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(0);
    body.extend(vector(&[0x13, 0x01, 0x13, 0x02]));
    body.extend([1, 0]);
    let list: Vec<u8> = extensions
        .iter()
        .flat_map(|(kind, value)| [&kind.to_be_bytes()[..], &vector(value)].concat())
        .collect();
    body.extend(vector(&list));
    let mut message = vec![1, 0];
    message.extend(vector(&body));
    record(&message)
}

fn record(part: &[u8]) -> Vec<u8> {
    [&[22, 3, 1][..], &u16::try_from(part.len()).unwrap().to_be_bytes(), part].concat()
}

fn named(name: &str) -> (u16, Vec<u8>) {
    let entry = [&[0][..], &u16::try_from(name.len()).unwrap().to_be_bytes(), name.as_bytes()].concat();
    (0, [&u16::try_from(entry.len()).unwrap().to_be_bytes()[..], &entry].concat())
}

fn connect(host: &str) -> String {
    format!("CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n")
}

/// A small generator: the same cases on every machine.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % limit.max(1)
    }

    fn one<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }

    /// A listed name beside, inside or around another one, with what parsers disagree about.
    fn mutated(&mut self) -> String {
        const ODD: [&str; 32] = [
            "\0", "%00", "@", ":", ":443@", ":443", ":80", "#", "?", "/", "\\", "//", " ", "\t", "\r", "\n",
            ".", "..", "-", "_", "[", "]", "%2e", "\u{3002}", "\u{ff0e}", "\u{430}", "\u{ad}", "\u{200b}",
            "xn--", ";", ",", "*",
        ];
        const OTHER: [&str; 10] = [
            "evil.example",
            "127.0.0.1",
            "169.254.169.254",
            "[::1]",
            "localhost",
            "0x7f000001",
            "2130706433",
            "EVIL.Example",
            "metadata.google.internal",
            "",
        ];
        let listed = self.one(&HOSTS);
        let (odd, other) = (self.one(&ODD), self.one(&OTHER));
        let mut text = match self.below(8) {
            0 => format!("{listed}{odd}{other}"),
            1 => format!("{other}{odd}{listed}"),
            2 => format!("{odd}{listed}"),
            3 => format!("{listed}{odd}"),
            4 => format!("user{odd}pass@{listed}"),
            5 => listed.to_ascii_uppercase(),
            6 => format!("{listed}.{other}"),
            _ => {
                let at = self.below(listed.len());
                let mut text = listed.to_owned();
                text.insert_str(at, odd);
                text
            }
        };
        if self.below(4) == 0 && !text.is_empty() {
            let at = text.floor_char_boundary(self.below(text.len()));
            text.insert_str(at, self.one(&ODD));
        }
        text
    }
}

const MUTATIONS: usize = 10_000;

#[tokio::test]
async fn ten_thousand_mutated_names_lead_to_no_connection_outside_the_list() {
    let bench = Bench::new(FakeDial::default()).await;
    // Each refusal is a write; a few of them are enough here.
    bench.refusals.store(MAX_REFUSALS - 20, Ordering::SeqCst);
    let listed: BTreeSet<&str> = HOSTS
        .into_iter()
        .chain(["index.crates.io", "crates.io", "files.pythonhosted.org", "security.debian.org"])
        .collect();
    let mut chance = Chance(0x5eb1_1700);
    let mut dialled = 0;
    for n in 0..MUTATIONS {
        let text = chance.mutated();
        let request = match n % 3 {
            0 => format!("CONNECT {text}:443 HTTP/1.1\r\n\r\n"),
            1 => format!("CONNECT {text} HTTP/1.1\r\nHost: {}\r\n\r\n", chance.one(&HOSTS)),
            _ => format!("GET http://{text}/x HTTP/1.1\r\nHost: {text}\r\n\r\n"),
        };
        let before = bench.resolved().len();
        let heard = bench.says(request.as_bytes()).await;
        assert!(!heard.starts_with("HTTP/1.1 2"), "{request:?}: {heard}");
        for host in &bench.resolved()[before..] {
            dialled += 1;
            assert!(listed.contains(host.as_str()), "{request:?} leads to {host}");
            // The other reader of the same bytes agrees about where it goes.
            let scheme = if n % 3 == 2 { "http" } else { "https" };
            let url = url::Url::parse(&format!("{scheme}://{text}/")).unwrap();
            assert_eq!(url.host_str(), Some(host.as_str()), "{request:?}");
            assert!(url.username().is_empty() && url.password().is_none(), "{request:?}");
        }
    }
    // The positive control: some of the names are only written in another case.
    assert!(dialled > MUTATIONS / 100, "{dialled}");
    for address in bench.dial.connected.lock().unwrap().iter() {
        assert!(matches!(address.port(), 443 | 80) && address.ip().to_string() == PUBLIC, "{address}");
    }
}

/// Addresses that must never be reached.
const FORBIDDEN: &[&str] = &[
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.100.100.200",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.0.1",
    "169.254.169.254",
    "169.254.170.2",
    "172.16.0.1",
    "172.17.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "192.168.255.255",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.7",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "168.63.129.16",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::ffff:169.254.169.254",
    "::127.0.0.1",
    "::8.8.8.8",
    "64:ff9b::7f00:1",
    "64:ff9b::8.8.8.8",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:2::1",
    "2001:10::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "2002:808:808::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
];

/// An address in the notations that some reader somewhere takes for it.
fn notations(address: IpAddr) -> Vec<String> {
    let mut forms = Vec::new();
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            let number = u32::from(v4);
            forms.extend([
                v4.to_string(),
                format!("{v4}."),
                number.to_string(),
                format!("0x{number:x}"),
                format!("0{number:o}"),
                format!("0x{a:x}.0x{b:x}.0x{c:x}.0x{d:x}"),
                format!("0{a:o}.0{b:o}.0{c:o}.0{d:o}"),
                format!("{a}.{b}.{}", u16::from_be_bytes([c, d])),
                format!("{a}.{}", u32::from_be_bytes([0, b, c, d])),
                format!("[::ffff:{v4}]"),
                format!("[::ffff:{a:02x}{b:02x}:{c:02x}{d:02x}]"),
                format!("{a}%2e{b}%2e{c}%2e{d}"),
                format!("{a}\u{3002}{b}\u{3002}{c}\u{3002}{d}"),
            ]);
        }
        IpAddr::V6(v6) => {
            forms.extend([
                format!("[{v6}]"),
                v6.to_string(),
                format!("[{v6}%25eth0]"),
                format!("[{v6}]:443"),
            ]);
        }
    }
    forms
}

#[tokio::test]
async fn four_hundred_forms_of_addresses_and_rebinding_names_are_never_reached() {
    let dial = FakeDial::default();
    for (n, address) in FORBIDDEN.iter().enumerate() {
        let public: IpAddr = PUBLIC.parse().unwrap();
        let bad: IpAddr = address.parse().unwrap();
        assert!(!is_public(bad), "{address}");
        // Alone, and behind a good one.
        let answer = if n % 2 == 0 { vec![bad] } else { vec![public, bad] };
        dial.answers.lock().unwrap().insert(format!("n{n}.example.com"), VecDeque::from([answer]));
    }
    let mut bench = Bench::new(dial).await;
    bench.refusals.store(MAX_REFUSALS - 20, Ordering::SeqCst);
    let names: Vec<String> = (0..FORBIDDEN.len()).map(|n| format!("n{n}.example.com")).collect();
    bench.grant.hosts = AllowList::new(&names).unwrap();
    let mut tried = 0;
    for address in FORBIDDEN {
        for form in notations(address.parse().unwrap()) {
            tried += 1;
            for request in [
                format!("CONNECT {form}:443 HTTP/1.1\r\n\r\n"),
                format!("GET http://{form}/latest/meta-data/ HTTP/1.1\r\n\r\n"),
            ] {
                let heard = bench.says(request.as_bytes()).await;
                assert!(heard.starts_with("HTTP/1.1 4"), "{request:?}: {heard}");
            }
        }
    }
    assert!(tried >= 400, "{tried}");
    assert!(bench.resolved().is_empty());
    for name in &names {
        let heard = bench.says(connect(name).as_bytes()).await;
        assert!(
            heard.starts_with("HTTP/1.1 403") && heard.contains("not on the public network"),
            "{name}: {heard}"
        );
    }
    assert_eq!((bench.resolved().len(), bench.connected()), (names.len(), 0));
}

#[test]
fn addresses_of_the_public_network_are_public() {
    for address in [
        "1.1.1.1",
        "8.8.8.8",
        PUBLIC,
        "100.63.255.255",
        "100.128.0.1",
        "172.15.0.1",
        "172.32.0.1",
        "192.0.1.1",
        "198.17.0.1",
        "223.255.255.255",
        "2606:4700::1111",
        "2001:4860:4860::8888",
        "2a00:1450::1",
        "2001:200::1",
    ] {
        assert!(is_public(address.parse().unwrap()), "{address}");
    }
}

#[tokio::test]
async fn a_name_is_resolved_once_and_the_connection_goes_there() {
    let dial = FakeDial::default();
    let (good, bad) = (PUBLIC.parse().unwrap(), "127.0.0.1".parse().unwrap());
    dial.answers.lock().unwrap().insert("pypi.org".into(), VecDeque::from([vec![good], vec![bad]]));
    let bench = Bench::new(dial).await;
    let first = bench.says(connect("pypi.org").as_bytes()).await;
    assert!(first.starts_with("HTTP/1.1 502"), "{first}");
    assert_eq!(*bench.dial.connected.lock().unwrap(), [SocketAddr::new(good, 443)]);
    // The next request resolves anew, and finds what the name is now.
    let second = bench.says(connect("pypi.org").as_bytes()).await;
    assert!(second.starts_with("HTTP/1.1 403"), "{second}");
    assert_eq!((bench.resolved().len(), bench.connected()), (2, 1));
}

/// A server that takes everything and then answers; gives what it was sent.
async fn sink(answer: Vec<u8>) -> (SocketAddr, tokio::task::JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // Later connections wait in its queue.
    let listener: &'static TcpListener = Box::leak(Box::new(listener));
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut taken = vec![0; 1];
        if stream.read_exact(&mut taken).await.is_err() {
            return Vec::new();
        }
        let _ = stream.write_all(&answer).await;
        let _ = stream.shutdown().await;
        let _ = stream.read_to_end(&mut taken).await;
        taken
    });
    (address, task)
}

async fn bench_with_server(answer: &[u8]) -> (Bench, tokio::task::JoinHandle<Vec<u8>>) {
    let (address, server) = sink(answer.to_vec()).await;
    (Bench::new(FakeDial { server: Some(address), ..FakeDial::default() }).await, server)
}

#[tokio::test]
async fn a_tunnel_passes_what_its_hello_names_and_counts_every_byte() {
    let (bench, server) = bench_with_server(b"the answer").await;
    let first = hello(&[(0x2b, vec![2, 3, 4]), named("Static.Crates.IO")]);
    // Early data in the same breath, and the hello in two records.
    let request = [connect("static.crates.io").as_bytes(), &first, b"\x17\x03\x03\x00\x02hi"].concat();
    let heard = bench.says(&request).await;
    assert!(heard.starts_with("HTTP/1.1 200 ") && heard.ends_with("the answer"), "{heard}");
    let sent = [&first[..], b"\x17\x03\x03\x00\x02hi"].concat();
    assert_eq!(server.await.unwrap(), sent);
    bench.settled(Bytes { out: i64::try_from(sent.len()).unwrap(), inward: 10 }).await;
    assert_eq!(*bench.dial.connected.lock().unwrap(), ["93.184.215.14:443".parse().unwrap()]);
}

#[tokio::test]
async fn a_hello_that_names_another_server_sends_nothing() {
    let cases: [(&str, Vec<u8>); 7] = [
        ("another name", hello(&[named("evil.example")])),
        ("no name", hello(&[(0x2b, vec![2, 3, 4])])),
        ("two names", hello(&[named("pypi.org"), named("pypi.org")])),
        ("hidden hello", hello(&[named("pypi.org"), (0xfe0d, vec![0; 40])])),
        ("an address", hello(&[named("127.0.0.1")])),
        ("no TLS", b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_vec()),
        ("cut off", hello(&[named("pypi.org")])[..40].to_vec()),
    ];
    for (what, first) in cases {
        let (bench, server) = bench_with_server(b"never").await;
        let heard = bench.says(&[connect("pypi.org").as_bytes(), &first].concat()).await;
        assert!(heard.starts_with("HTTP/1.1 200 ") && !heard.contains("never"), "{what}: {heard}");
        assert_eq!(server.await.unwrap(), b"", "{what}");
        let rows = bench.rows().await;
        assert!(rows.iter().all(|row| row.bytes == Bytes::default()), "{what}: {rows:?}");
        assert!(rows.iter().any(|row| row.verdict == "name" && row.host == "pypi.org"), "{what}: {rows:?}");
    }
}

#[tokio::test]
async fn plain_http_takes_only_small_readings_from_debian() {
    let (bench, server) = bench_with_server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let get = "GET http://deb.debian.org/debian/dists/x?y HTTP/1.1\r\nHost: deb.debian.org\r\nCookie: secret=1\r\n\
               X-Data: secret\r\nRange: bytes=0-9\r\nAuthorization: Basic secret\r\nProxy-Connection: keep-alive\r\n\r\nPOST / secret";
    let heard = bench.says(get.as_bytes()).await;
    assert!(heard.ends_with("ok"), "{heard}");
    let sent = String::from_utf8(server.await.unwrap()).unwrap();
    assert_eq!(
        sent,
        "GET /debian/dists/x?y HTTP/1.1\r\nHost: deb.debian.org\r\nConnection: close\r\nrange: bytes=0-9\r\n\r\n"
    );
    bench.settled(Bytes { out: i64::try_from(sent.len()).unwrap(), inward: 40 }).await;

    let long = format!("GET http://deb.debian.org/{} HTTP/1.1\r\n\r\n", "x".repeat(2048));
    let connected = bench.connected();
    for (request, status) in [
        ("POST http://deb.debian.org/x HTTP/1.1\r\nContent-Length: 1\r\n\r\nx", "413"),
        ("POST http://deb.debian.org/x HTTP/1.1\r\n\r\n", "405"),
        ("PUT http://deb.debian.org/x HTTP/1.1\r\n\r\n", "405"),
        ("DELETE http://deb.debian.org/x HTTP/1.1\r\n\r\n", "405"),
        ("GET http://deb.debian.org/x HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "413"),
        ("GET http://deb.debian.org/x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "413"),
        (long.as_str(), "414"),
        ("GET http://pypi.org/simple/ HTTP/1.1\r\n\r\n", "403"),
        ("GET https://pypi.org/simple/ HTTP/1.1\r\n\r\n", "405"),
        ("GET /simple/ HTTP/1.1\r\nHost: deb.debian.org\r\n\r\n", "405"),
        ("GET http://deb.debian.org:8080/x HTTP/1.1\r\n\r\n", "400"),
        ("GET http://deb.debian.org/x HTTP/1.1\r\nHost: evil.example\r\n\r\n", "400"),
        (
            "GET http://deb.debian.org/x HTTP/1.1\r\nHost: deb.debian.org\r\nHost: deb.debian.org\r\n\r\n",
            "400",
        ),
        ("GET http://deb.debian.org/x HTTP/1.1\r\nX: a\r\n folded\r\n\r\n", "400"),
        ("GET http://deb.debian.org/x HTTP/1.1\nHost: deb.debian.org\n\n", "400"),
        ("GET http://deb.debian.org/x HTTP/2\r\n\r\n", "400"),
        ("CONNECT deb.debian.org:80 HTTP/1.1\r\n\r\n", "400"),
        ("CONNECT deb.debian.org:22 HTTP/1.1\r\n\r\n", "400"),
        ("CONNECT deb.debian.org:0443 HTTP/1.1\r\n\r\n", "400"),
        ("CONNECT deb.debian.org HTTP/1.1\r\n\r\n", "400"),
        ("CONNECT evil.example:443 HTTP/1.1\r\n\r\n", "403"),
        ("\x05\x01\x00", "400"),
    ] {
        let heard = bench.says(request.as_bytes()).await;
        assert!(heard.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {heard}");
    }
    assert_eq!(bench.connected(), connected);
}

#[tokio::test]
async fn no_run_sends_or_receives_more_than_its_budget() {
    let (mut bench, server) = bench_with_server(&[7; 300_000]).await;
    bench.grant.budget = Bytes { out: 50_000, inward: 1 << 20 };
    let first = hello(&[named("pypi.org")]);
    let request = [connect("pypi.org").as_bytes(), &first, &[b'x'; 200_000]].concat();
    bench.says(&request).await;
    let sent = server.await.unwrap().len();
    assert!(sent <= 50_000, "{sent}");
    let out: i64 = bench.rows().await.iter().map(|row| row.bytes.out).sum();
    assert!((i64::try_from(sent).unwrap()..=50_000).contains(&out), "{sent} {out}");

    let (mut bench, _server) = bench_with_server(&[7; 300_000]).await;
    bench.grant.budget = Bytes { out: 50_000, inward: 100_000 };
    let heard = bench.says(&[connect("pypi.org").as_bytes(), &first].concat()).await;
    assert!(heard.len() < 100_100, "{}", heard.len());
    // What is used up stays used up, on the next connection, too.
    bench.grant.budget = Bytes { out: 0, inward: 100_000 };
    let heard = bench.says(connect("pypi.org").as_bytes()).await;
    assert!(heard.starts_with("HTTP/1.1 429"), "{heard}");
}

mod hellos {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_hello_in_many_records_is_read_and_every_cut_of_it_is_incomplete() {
        let whole = hello(&[(10, vec![0, 2, 0, 29]), named("pypi.org"), (43, vec![2, 3, 4])]);
        let message = &whole[5..];
        let pieces: Vec<u8> = message.chunks(7).flat_map(record).collect();
        for bytes in [&whole, &pieces] {
            assert_eq!(client_hello_sni(bytes), Ok("pypi.org".to_owned()));
            for end in 0..bytes.len() {
                assert_eq!(client_hello_sni(&bytes[..end]), Err(HelloError::Incomplete), "{end}");
            }
        }
    }

    #[test]
    fn what_is_no_single_plain_name_is_refused() {
        let two = {
            let entry =
                |name: &str| [&[0, 0, u8::try_from(name.len()).unwrap()][..], name.as_bytes()].concat();
            let list = [entry("pypi.org"), entry("evil.example")].concat();
            hello(&[(0, [&[0, u8::try_from(list.len()).unwrap()][..], &list].concat())])
        };
        let mut trailing = hello(&[named("pypi.org")]);
        trailing.extend(record(&[1, 0, 0, 0]));
        assert_eq!(client_hello_sni(&trailing), Ok("pypi.org".to_owned()), "a later record is not the hello");
        let mut inside = hello(&[named("pypi.org")]);
        inside.push(0);
        let length = u16::try_from(inside.len() - 5).unwrap().to_be_bytes();
        inside[3..5].copy_from_slice(&length);
        for bytes in [
            two,
            inside,
            hello(&[named("pypi.org."), (43, vec![])]),
            hello(&[named("pypi.org\0")]),
            hello(&[named("")]),
            hello(&[]),
            hello(&[named("pypi.org"), (0xffce, vec![])]),
            b"SSH-2.0-x".to_vec(),
            vec![22, 3, 1, 0, 0],
            vec![22, 3, 1, 0x40, 1],
            vec![22, 3, 9],
            record(&[2, 0, 0, 1, 0]),
            record(&[1, 0xff, 0xff, 0xff, 0]),
        ] {
            assert!(matches!(client_hello_sni(&bytes), Err(HelloError::Refused(_))), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0_usize..120, byte in any::<u8>()) {
            let _ = client_hello_sni(&bytes);
            let _ = parse_request(&bytes);
            let _ = client_hello_sni(&record(&bytes));
            let mut changed = hello(&[named("pypi.org")]);
            if let Some(place) = changed.get_mut(at) {
                *place = byte;
            }
            if let Ok(name) = client_hello_sni(&changed) {
                prop_assert_eq!(canonical_host(&name), Ok(name));
            }
        }

        #[test]
        fn what_is_asked_names_a_canonical_host(text in "(CONNECT|GET) (http://)?[a-zA-Z.:@0-9/-]{1,30} HTTP/1.1") {
            if let Ok(asked) = parse_request(format!("{text}\r\n\r\n").as_bytes()) {
                let host = match asked {
                    Asked::Tunnel(connect) => { prop_assert_eq!(connect.port, 443); connect.host }
                    Asked::Plain(plain) => plain.host,
                };
                prop_assert_eq!(canonical_host(&host), Ok(host));
            }
        }
    }
}
