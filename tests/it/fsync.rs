//! Every accepted delivery is on the disk before its answer: read off the system calls of the real program.
//!
//! `make prove-fsync` prints the figure; `ZEBLIT_PROVE_FOLDER` names the folder for it, `ZEBLIT_PROVE_SECONDS` makes
//! the run longer.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

const RATE: usize = 100;
/// What the bench names its deliveries.
const ID: &str = "bench-";
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

/// Runs the receiver under load and reads its system calls.
fn traced(synchronous: &str, seconds: &str) -> Read {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace");
    let done = Command::new("strace")
        .args(["-f", "-y", "-s", DATA_BYTES, "-e", CALLS, "-e", "signal=none", "-o"])
        .arg(&trace)
        .arg(env!("CARGO_BIN_EXE_zeblit"))
        .args(["bench", "ingest", "--rate", &RATE.to_string(), "--seconds", seconds])
        .args(["--synchronous", synchronous])
        .env("TMPDIR", folder.path())
        .stdin(Stdio::null())
        .output()
        .expect("strace is there: `deploy/setup.sh test` installs it");
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(said.contains("deliveries of"), "{said}{}", String::from_utf8_lossy(&done.stderr));
    // Its bytes may be anything.
    read(&String::from_utf8_lossy(&std::fs::read(&trace).unwrap()))
}

#[test]
fn every_accepted_delivery_is_synced_before_its_answer() {
    let seconds = std::env::var("ZEBLIT_PROVE_SECONDS").unwrap_or_else(|_| "2".to_owned());
    let full = traced("full", &seconds);
    let wanted = RATE * seconds.parse::<usize>().unwrap();
    assert_eq!((full.accepted, full.gaps), (wanted, 0), "{full:?}");
    // The same reading finds the gaps where there are some.
    let normal = traced("normal", "2");
    assert_eq!(normal.accepted, RATE * 2, "{normal:?}");
    assert!(normal.gaps * 2 > normal.accepted, "{normal:?}");
    if let Some(folder) = std::env::var_os("ZEBLIT_PROVE_FOLDER") {
        std::fs::create_dir_all(&folder).unwrap();
        let line = format!(
            "{} accepted deliveries, {} answered before they were on the disk ({} syncs); with synchronous=NORMAL {} of {}\n",
            full.accepted, full.gaps, full.syncs, normal.gaps, normal.accepted
        );
        std::fs::write(std::path::Path::new(&folder).join("fsync.txt"), line).unwrap();
    }
}

#[test]
fn a_trace_is_read_as_it_is_written() {
    let begin = "1 recvfrom(12<TCP:[1]>, \"POST /webhooks/github HTTP/1.1\\r\\nx-github-delivery: bench-000001\", 9) = 9\n\
                 2 pwrite64(9</t/zeblit.db-wal>, \"…bench-000001…\", 16384, 32) = 16384\n";
    let sync = "2 fdatasync(9</t/zeblit.db-wal> <unfinished ...>\n";
    let synced = "2 <... fdatasync resumed>) = 0\n";
    let answer = "1 writev(12<TCP:[1]>, [{iov_base=\"HTTP/1.1 202 Accepted\"}], 1) = 9\n";
    let gaps = |parts: &[&str]| read(&parts.concat()).gaps;
    assert_eq!(read(&[begin, sync, synced, answer].concat()), Read { accepted: 1, gaps: 0, syncs: 1 });
    assert_eq!(gaps(&[begin, answer]), 1);
    assert_eq!(gaps(&[begin, sync, answer, synced]), 1, "the sync had not ended");
    assert_eq!(gaps(&[sync, synced, begin, answer]), 1, "the sync was before the row");
    let unfinished = "1 read(12<TCP:[1]>,  <unfinished ...>\n1 <... read resumed>\"POST /webhooks x: bench-000001\", 9) = 9\n";
    assert_eq!(read(&[unfinished, answer].concat()).accepted, 1);
}
