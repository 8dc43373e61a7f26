//! Every accepted delivery is on the disk before its answer: read off the system calls of the real program.
//!
//! `make prove-fsync` prints the figure; `ZEBLIT_PROVE_FOLDER` names the folder for it, `ZEBLIT_PROVE_SECONDS` makes
//! the run longer.

use secrecy::SecretString;
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use zeblit::domain::event::Source;
use zeblit::intake::signature;

/// Connections that send at the same time, each this many deliveries a second.
const SENDERS: usize = 10;
const RATE: usize = 10;
/// How long the traced program may take to listen, and to end.
const PATIENCE: Duration = Duration::from_secs(60);
const DELIVERY: &[u8] = include_bytes!("../fixtures/github/issue_comment.created.json");
/// What its deliveries are called.
const ID: &str = "fsync-";
const ID_DIGITS: usize = 6;
/// Bytes of a call's data that are written down: a request with its headers, a page of the database.
const DATA_BYTES: &str = "17000";
const CALLS: &str =
    "trace=read,readv,recvfrom,recvmsg,write,writev,sendto,sendmsg,pwrite64,pwritev,fsync,fdatasync";

/// One call of the trace. Places are line numbers: `strace` writes in the order of events.
struct Call {
    name: String,
    /// `9</path>` or `12<TCP:[…]>`.
    fd: String,
    data: String,
    begins: usize,
    ends: usize,
}

/// The calls of a trace, each with its beginning and its end.
fn calls(trace: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    let mut open: BTreeMap<&str, usize> = BTreeMap::new();
    for (place, line) in trace.lines().enumerate() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if let Some(rest) = rest.strip_prefix("<... ") {
            // A read's data comes with its end.
            if let Some(call) = open.remove(pid).and_then(|n| calls.get_mut(n)) {
                call.data.push_str(rest);
                call.ends = place;
            }
            continue;
        }
        let Some((name, arguments)) = rest.split_once('(') else { continue };
        let fd = arguments.split([',', ')']).next().unwrap_or_default();
        let call = Call {
            name: name.to_owned(),
            fd: fd.to_owned(),
            data: arguments.to_owned(),
            begins: place,
            ends: place,
        };
        if rest.ends_with("<unfinished ...>") {
            open.insert(pid, calls.len());
        }
        calls.push(call);
    }
    calls
}

fn ids(data: &str) -> impl Iterator<Item = &str> {
    data.match_indices(ID).filter_map(|(at, _)| {
        let id = data.get(at..at + ID.len() + ID_DIGITS)?;
        id[ID.len()..].bytes().all(|byte| byte.is_ascii_digit()).then_some(id)
    })
}

/// What the trace says of one run: accepted deliveries, and those answered without a sync after their row was written.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    accepted: usize,
    gaps: usize,
    syncs: usize,
}

fn read(trace: &str) -> Read {
    let calls = calls(trace);
    let is_log = |call: &&Call| call.fd.contains("zeblit.db-wal");
    let mut written: BTreeMap<&str, usize> = BTreeMap::new();
    for call in calls.iter().filter(is_log).filter(|call| call.name.starts_with("pwrite")) {
        for id in ids(&call.data) {
            written.entry(id).or_insert(call.ends);
        }
    }
    let syncs: Vec<&Call> = calls.iter().filter(is_log).filter(|call| call.name.ends_with("sync")).collect();
    // The server's end of a connection is where a request is read and an answer is written.
    let mut asked: BTreeMap<&str, &str> = BTreeMap::new();
    let (mut accepted, mut gaps) = (0, 0);
    for call in &calls {
        let reads = call.name.starts_with("read") || call.name.starts_with("recv");
        if reads && call.data.contains("POST /webhooks") {
            if let Some(id) = ids(&call.data).next() {
                asked.insert(&call.fd, id);
            }
        } else if !reads && call.data.contains("HTTP/1.1 202") {
            let id = asked.remove(call.fd.as_str()).expect("an answer follows a request");
            accepted += 1;
            let is_durable = written.get(id).is_some_and(|written| {
                syncs.iter().any(|sync| sync.begins > *written && sync.ends < call.begins)
            });
            gaps += usize::from(!is_durable);
        }
    }
    Read { accepted, gaps, syncs: syncs.len() }
}

/// Sends deliveries on one connection, evenly; each must be accepted.
fn send(server: SocketAddr, first: usize, count: usize, secret: &SecretString) {
    let mut stream = TcpStream::connect(server).unwrap();
    let begin = Instant::now();
    for n in 0..count {
        let at = Duration::from_secs(n as u64) / RATE as u32;
        std::thread::sleep(at.saturating_sub(begin.elapsed()));
        let id = format!("{ID}{:0width$}", first + n, width = ID_DIGITS);
        let mut request =
            format!("POST /webhooks/github HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n", DELIVERY.len());
        for (name, value) in signature::sign(Source::Github, secret, &id, "issue_comment", DELIVERY) {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all(&[request.as_bytes(), b"\r\n", DELIVERY].concat()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            let mut piece = [0; 1024];
            let read = stream.read(&mut piece).unwrap();
            assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&piece[..read]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 202"), "{}", String::from_utf8_lossy(&answer));
    }
}

/// Runs `zeblit serve` under load and reads its system calls.
fn traced(seconds: usize) -> Read {
    let folder = tempfile::tempdir().unwrap();
    let (trace, config) = (folder.path().join("trace"), folder.path().join("zeblit.toml"));
    let server = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let secret = "the webhook secret of this test";
    let text = format!(
        "state_dir = {:?}\n[server]\nlisten = \"{server}\"\n[local_forge]\nwebhook_secret = {secret:?}\n[sandbox]\nkind = \"process\"\n",
        folder.path().join("state")
    );
    std::fs::write(&config, text).unwrap();
    let mut strace = Command::new("strace")
        .args(["-f", "-y", "-s", DATA_BYTES, "-e", CALLS, "-e", "signal=none", "-o"])
        .arg(&trace)
        .arg(env!("CARGO_BIN_EXE_zeblit"))
        .arg("--config")
        .arg(&config)
        .arg("serve")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("strace is there: `deploy/setup.sh test` installs it");
    let begin = Instant::now();
    while TcpStream::connect(server).is_err() {
        assert!(begin.elapsed() < PATIENCE && strace.try_wait().unwrap().is_none(), "it does not listen");
        std::thread::sleep(Duration::from_millis(50));
    }
    let secret = SecretString::from(secret);
    let each = RATE * seconds;
    std::thread::scope(|scope| {
        for sender in 0..SENDERS {
            let secret = &secret;
            scope.spawn(move || send(server, sender * each, each, secret));
        }
    });
    // The program ends, and `strace` with it.
    let children = format!("/proc/{0}/task/{0}/children", strace.id());
    let program = std::fs::read_to_string(children).unwrap();
    assert!(Command::new("kill").arg(program.trim()).status().unwrap().success());
    let begin = Instant::now();
    while strace.try_wait().unwrap().is_none() {
        assert!(begin.elapsed() < PATIENCE, "it does not end");
        std::thread::sleep(Duration::from_millis(50));
    }
    // Its bytes may be anything.
    read(&String::from_utf8_lossy(&std::fs::read(&trace).unwrap()))
}

#[test]
fn every_accepted_delivery_is_synced_before_its_answer() {
    let seconds = std::env::var("ZEBLIT_PROVE_SECONDS").map_or(2, |seconds| seconds.parse().unwrap());
    let read = traced(seconds);
    assert_eq!((read.accepted, read.gaps), (SENDERS * RATE * seconds, 0), "{read:?}");
    if let Some(folder) = std::env::var_os("ZEBLIT_PROVE_FOLDER") {
        std::fs::create_dir_all(&folder).unwrap();
        let line = format!(
            "{} accepted deliveries, {} answered before they were on the disk ({} syncs)\n",
            read.accepted, read.gaps, read.syncs
        );
        std::fs::write(Path::new(&folder).join("fsync.txt"), line).unwrap();
    }
}

#[test]
fn a_trace_is_read_as_it_is_written() {
    let begin = "1 recvfrom(12<TCP:[1]>, \"POST /webhooks/github HTTP/1.1\\r\\nx-github-delivery: fsync-000001\", 9) = 9\n\
                 2 pwrite64(9</t/zeblit.db-wal>, \"…fsync-000001…\", 16384, 32) = 16384\n";
    let sync = "2 fdatasync(9</t/zeblit.db-wal> <unfinished ...>\n";
    let synced = "2 <... fdatasync resumed>) = 0\n";
    let answer = "1 writev(12<TCP:[1]>, [{iov_base=\"HTTP/1.1 202 Accepted\"}], 1) = 9\n";
    let gaps = |parts: &[&str]| read(&parts.concat()).gaps;
    assert_eq!(read(&[begin, sync, synced, answer].concat()), Read { accepted: 1, gaps: 0, syncs: 1 });
    assert_eq!(gaps(&[begin, answer]), 1);
    assert_eq!(gaps(&[begin, sync, answer, synced]), 1, "the sync had not ended");
    assert_eq!(gaps(&[sync, synced, begin, answer]), 1, "the sync was before the row");
    let unfinished = "1 read(12<TCP:[1]>,  <unfinished ...>\n1 <... read resumed>\"POST /webhooks x: fsync-000001\", 9) = 9\n";
    assert_eq!(read(&[unfinished, answer].concat()).accepted, 1);
}
