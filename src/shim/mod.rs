//! Purpose: `zeblit-shim`, PID 1 in the container. It waits at the gate, bridges a port to the broker,
//! runs the agent, streams its output as JSON lines, and leaves the result: a Git bundle, and a pack of other files.
//!
//! Standard library only, and nothing of the other modules: this folder is compiled twice, into the
//! library (for tests and for the formats that both ends share) and by `build.rs` into a small static
//! program that the server embeds. It is not trusted any more once the agent has started.

pub mod agent;
pub mod bridge;
pub mod builtin;
pub mod collect;
pub mod glob;
pub mod job;
pub mod output;
pub mod pack;
pub mod probe;
pub mod signal;

use job::WireJob;
use output::Output;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where the folders are, by environment; the defaults are the container's.
pub mod variables {
    pub const SOCKETS: &str = "ZEBLIT_SOCKETS";
    pub const WORKSPACE: &str = "ZEBLIT_WORKSPACE";
    pub const OUTPUT: &str = "ZEBLIT_OUTPUT";
    pub const HOME: &str = "ZEBLIT_HOME";
    pub const OBJECTS: &str = "ZEBLIT_OBJECTS";
    /// The file that gets the shim's exit code (process sandbox: nobody else may be there to see it).
    pub const EXIT_FILE: &str = "ZEBLIT_EXIT_FILE";
    /// A collect job in hexadecimal, in pieces `ZEBLIT_JOB_0`, `ZEBLIT_JOB_1`, …
    pub const JOB_PIECE: &str = "ZEBLIT_JOB_";
}

/// Time between two tries to reach the gate: short, because a start waits for it.
const GATE_RETRY: Duration = Duration::from_millis(20);
/// How long the shim waits for a gate before it gives up: longer than a server's restart. At an open one it waits for as
/// long as it stays open.
const GATE_PATIENCE: Duration = Duration::from_secs(600);
/// How long a connection to the gate may stay silent in the middle of a job.
const GATE_READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Pieces of a job in the environment, at most: together they stay below the kernel's 2 MiB for all arguments.
pub const MAX_JOB_PIECES: usize = 12;
/// Bytes of one piece: the kernel allows 128 KiB for one variable.
pub const JOB_PIECE_BYTES: usize = 100 * 1024;

/// As a job's program: this program itself, wherever it is mounted.
pub const BUILTIN_AGENT: &str = "zeblit-shim";

/// What the shim sends back when it holds the whole job: from then on it never connects again.
pub const GATE_ACKNOWLEDGEMENT: u8 = b'K';

/// Exit codes of the shim.
pub mod exit {
    /// The result was collected (or there was nothing), whatever the agent's own exit code.
    pub const COLLECTED: i32 = 0;
    pub const USAGE: i32 = 2;
    /// No usable job at the gate.
    pub const NO_JOB: i32 = 3;
    /// The job could not be started.
    pub const NOT_STARTED: i32 = 4;
    /// The collection failed; the host starts a collector.
    pub const NOT_COLLECTED: i32 = 5;
}

/// The folders the shim works in.
#[derive(Debug, Clone)]
pub struct Folders {
    pub sockets: PathBuf,
    pub workspace: PathBuf,
    pub output: PathBuf,
    pub home: PathBuf,
    pub objects: PathBuf,
}

impl Folders {
    fn from_environment() -> Self {
        let folder = |variable: &str, default: &str| {
            std::env::var_os(variable).map_or_else(|| PathBuf::from(default), PathBuf::from)
        };
        Self {
            sockets: folder(variables::SOCKETS, "/zeblit/sockets"),
            workspace: folder(variables::WORKSPACE, "/zeblit/workspace"),
            output: folder(variables::OUTPUT, "/zeblit/output"),
            home: folder(variables::HOME, "/zeblit/home"),
            objects: folder(variables::OBJECTS, "/zeblit/objects"),
        }
    }
}

/// The whole program.
pub fn run() {
    let mode = std::env::args().nth(1).unwrap_or_default();
    let folders = Folders::from_environment();
    let output = Arc::new(Output::new(Box::new(std::io::stdout())));
    let code = match mode.as_str() {
        "agent" => agent_mode(&folders, &output),
        "collect" => collect_mode(&folders, &output),
        "builtin" => builtin::run(),
        "probe" => {
            output.event(&probe::report(&folders.sockets));
            exit::COLLECTED
        }
        _ => {
            output.error("usage", "zeblit-shim agent | builtin | collect | probe");
            exit::USAGE
        }
    };
    if let Some(file) = std::env::var_os(variables::EXIT_FILE) {
        // A reader must never see a half-written number.
        let file = PathBuf::from(file);
        let aside = file.with_extension("new");
        if std::fs::write(&aside, code.to_string()).is_ok() {
            let _ = std::fs::rename(&aside, &file);
        }
    }
    std::process::exit(code);
}

fn agent_mode(folders: &Folders, output: &Arc<Output>) -> i32 {
    let job = match wait_for_job(&folders.sockets.join("gate.sock"), GATE_PATIENCE) {
        Ok(job) => job,
        Err(detail) => {
            output.error("gate", &detail);
            return exit::NO_JOB;
        }
    };
    output.limit(job.log_bytes);
    // Other processes of this user must not reach into the one that writes the protocol.
    signal::forbid_inspection();
    let before = match prepare(folders, &job) {
        Ok(before) => before,
        Err((step, detail)) => {
            output.error(step, &detail);
            return exit::NOT_STARTED;
        }
    };
    if let Err((step, detail)) = agent::run(folders, &job, output) {
        output.error(step, &detail);
        return exit::NOT_STARTED;
    }
    if job.setup {
        return match collect::settle(folders, &job, &before) {
            Ok(()) => {
                output.event("{\"event\":\"settled\"}");
                exit::COLLECTED
            }
            Err(detail) => {
                output.error("settle", &detail);
                exit::NOT_COLLECTED
            }
        };
    }
    collect_and_tell(folders, &job, output)
}

/// What must be so before the first process of the repository's runs here, and which tracked files of the workspace
/// differ from the start already.
fn prepare(
    folders: &Folders,
    job: &WireJob,
) -> Result<std::collections::BTreeSet<String>, (&'static str, String)> {
    if !job.mask_from.is_empty() {
        collect::mask(folders, job).map_err(|detail| ("mask", detail))?;
    }
    if job.setup {
        return collect::changed(folders, job).map_err(|detail| ("setup", detail));
    }
    collect::keep_out(folders, &job.artifacts).map_err(|detail| ("artifacts", detail))?;
    Ok(Default::default())
}

fn collect_mode(folders: &Folders, output: &Output) -> i32 {
    match job_from_environment(|name| std::env::var(name).ok()) {
        Ok(job) => {
            output.limit(job.log_bytes);
            collect_and_tell(folders, &job, output)
        }
        Err(detail) => {
            output.error("job", &detail);
            exit::NO_JOB
        }
    }
}

fn collect_and_tell(folders: &Folders, job: &WireJob, output: &Output) -> i32 {
    // Whatever becomes of it, the commits count.
    match pack::collect(folders, job) {
        Ok((0, _)) => {}
        Ok((artifacts, _)) => output.event(&format!("{{\"event\":\"packed\",\"artifacts\":{artifacts}}}")),
        Err(detail) => output.error("pack", &detail),
    }
    match collect::collect(folders, job, output) {
        Ok(collect::Collected::Nothing) => {
            output.event("{\"event\":\"nothing\"}");
            exit::COLLECTED
        }
        Ok(collect::Collected::Commits(commits)) => {
            output.event(&format!("{{\"event\":\"collected\",\"commits\":{commits}}}"));
            exit::COLLECTED
        }
        Err(detail) => {
            output.error("collect", &detail);
            exit::NOT_COLLECTED
        }
    }
}

/// A job cut into environment variables (name, value); refused when it is too large for that.
pub fn job_to_environment(job: &WireJob) -> Result<Vec<(String, String)>, String> {
    let hex: String = job.encode()?.iter().map(|byte| format!("{byte:02x}")).collect();
    let pieces: Vec<_> = hex.as_bytes().chunks(JOB_PIECE_BYTES).collect();
    if pieces.len() > MAX_JOB_PIECES {
        return Err(format!(
            "the collect job needs {} bytes of environment, at most {} fit: name fewer excluded paths",
            hex.len(),
            MAX_JOB_PIECES * JOB_PIECE_BYTES
        ));
    }
    Ok(pieces
        .iter()
        .enumerate()
        .map(|(n, piece)| {
            (format!("{}{n}", variables::JOB_PIECE), String::from_utf8_lossy(piece).into_owned())
        })
        .collect())
}

/// The job that `job_to_environment` cut.
pub fn job_from_environment(get: impl Fn(&str) -> Option<String>) -> Result<WireJob, String> {
    let mut hex = String::new();
    for n in 0..MAX_JOB_PIECES {
        match get(&format!("{}{n}", variables::JOB_PIECE)) {
            Some(piece) => hex.push_str(&piece),
            None => break,
        }
    }
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut bytes = Vec::with_capacity(hex.len() / 2);
    for pair in hex.as_bytes().chunks(2) {
        match (pair.first().and_then(digit), pair.get(1).and_then(digit)) {
            (Some(high), Some(low)) => bytes.push(high << 4 | low),
            _ => return Err("the collect job in the environment is not hexadecimal".into()),
        }
    }
    WireJob::decode(&bytes).map_err(|error| error.to_string())
}

/// Connects to the gate until one connection brings a complete job. A cut job means that the host died
/// while writing: it will open the gate again.
fn wait_for_job(gate: &Path, patience: Duration) -> Result<WireJob, String> {
    let mut alone_since = Instant::now();
    let mut last = String::from("nobody listened");
    while alone_since.elapsed() < patience {
        match read_job(gate) {
            Ok(job) => return Ok(job),
            Err(Refusal::Final(detail)) => return Err(detail),
            Err(Refusal::Closed(detail)) => {
                alone_since = Instant::now();
                last = detail;
            }
            Err(Refusal::Again(detail)) => last = detail,
        }
        std::thread::sleep(GATE_RETRY);
    }
    Err(format!("no job at {} within {} s: {last}", gate.display(), patience.as_secs()))
}

enum Refusal {
    /// There is no gate.
    Again(String),
    /// It closed before it gave a whole job.
    Closed(String),
    Final(String),
}

fn read_job(gate: &Path) -> Result<WireJob, Refusal> {
    let mut stream = UnixStream::connect(gate).map_err(|error| Refusal::Again(error.to_string()))?;
    let closed = |error: std::io::Error| Refusal::Closed(error.to_string());
    // The job may be given long after this container started.
    let mut first = [0];
    let mut bytes = Vec::new();
    if stream.read(&mut first).map_err(closed)? == 1 {
        bytes.push(first[0]);
        stream.set_read_timeout(Some(GATE_READ_TIMEOUT)).map_err(closed)?;
        let cap = u64::try_from(job::MAX_JOB_BYTES).unwrap_or(u64::MAX);
        Read::by_ref(&mut stream).take(cap).read_to_end(&mut bytes).map_err(closed)?;
    }
    match WireJob::decode(&bytes) {
        Ok(job) => {
            let _ = stream.write_all(&[GATE_ACKNOWLEDGEMENT]);
            Ok(job)
        }
        Err(error @ job::JobError::Incomplete) => Err(Refusal::Closed(error.to_string())),
        Err(error) => Err(Refusal::Final(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_cut_job_is_asked_for_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gate.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let job = WireJob { argv: vec!["true".into()], ..WireJob::default() };
        let bytes = job.encode().unwrap();
        let host = std::thread::spawn(move || {
            let (mut first, _) = listener.accept().unwrap();
            first.write_all(&bytes[..bytes.len() / 2]).unwrap();
            drop(first);
            let (mut second, _) = listener.accept().unwrap();
            second.write_all(&bytes).unwrap();
            second.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = [0];
            second.read_exact(&mut answer).unwrap();
            answer
        });
        assert_eq!(wait_for_job(&path, Duration::from_secs(20)).unwrap(), job);
        assert_eq!(host.join().unwrap(), [GATE_ACKNOWLEDGEMENT]);
    }

    #[test]
    fn a_gate_that_sends_something_else_ends_the_wait() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gate.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let host = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"GET / HTTP/1.1 and more").unwrap();
        });
        let error = wait_for_job(&path, Duration::from_secs(20)).unwrap_err();
        assert!(error.contains("not a job"), "{error}");
        host.join().unwrap();
    }

    #[test]
    fn an_absent_gate_is_named_after_the_patience() {
        let folder = tempfile::tempdir().unwrap();
        let error = wait_for_job(&folder.path().join("gate.sock"), Duration::from_millis(50)).unwrap_err();
        assert!(error.contains("gate.sock"), "{error}");
    }

    #[test]
    fn a_collect_job_travels_in_the_environment() {
        let exclude = (0..3000).map(|n| format!("folder/{n}/file")).collect();
        let job =
            WireJob { base: "b".repeat(40), message: "m\n\n\u{e4}".into(), exclude, ..WireJob::default() };
        let pieces = job_to_environment(&job).unwrap();
        assert!(pieces.len() > 1);
        let get = |name: &str| pieces.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
        assert_eq!(job_from_environment(get).unwrap(), job);
        assert!(job_from_environment(|_| None).is_err());
        assert!(job_from_environment(|_| Some("zz".into())).is_err());
        let large = WireJob { message: "x".repeat(1024 * 1024), ..WireJob::default() };
        assert!(job_to_environment(&large).unwrap_err().contains("environment"));
    }
}
