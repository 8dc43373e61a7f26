//! Where attempts execute. One trait, two real places: Docker, and a plain process for the demo's own recipe.
//!
//! The engine asks with `poll` and never holds a connection: after a crash it asks again with the
//! cursor it stored, for containers that it finds with `list`.

pub mod docker;
pub mod extras;
pub mod gate;
pub mod lines;
pub mod mounts;
pub mod pool;
pub mod process;
pub mod profile;
pub mod shim_file;

use crate::domain::ids::{RunId, SlotId};
use async_trait::async_trait;
use std::fmt::Debug;
use std::path::PathBuf;
use std::time::Duration;

/// Where things are inside a container. The process sandbox uses the host paths of the same folders.
pub mod paths {
    /// Everything of ours.
    pub const ROOT: &str = "/zeblit";
    pub const SHIM: &str = "/zeblit/shim";
    pub const WORKSPACE: &str = "/zeblit/workspace";
    pub const OUTPUT: &str = "/zeblit/output";
    pub const HOME: &str = "/zeblit/home";
    /// The directory with `gate.sock` and `broker.sock`.
    pub const SOCKETS: &str = "/zeblit/sockets";
    /// The mirror's objects, read-only; the workspace's alternates point here.
    pub const OBJECTS: &str = "/zeblit/objects";
    /// What is kept between runs of one repository and trust tier.
    pub const CACHE: &str = "/zeblit/cache";
    /// The changeset, in the output folder.
    pub const BUNDLE_FILE: &str = "changes.bundle";
    /// Everything else that is kept, beside it.
    pub const PACK_FILE: &str = crate::shim::pack::PACK_FILE;
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Limits {
    pub memory_bytes: i64,
    /// Thousandths of a CPU.
    pub millicpus: i64,
    pub pids: i64,
    /// All output lines together; the shim stops forwarding after it and says so.
    pub log_bytes: i64,
}

/// What is fixed when a container is made: a warm slot serves the runs of its class.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SlotClass {
    pub image: String,
    pub limits: Limits,
}

/// What the container is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Duty {
    /// Run the job, which waits at the gate, with the broker behind the bridge.
    Agent(Job),
    /// No socket, no agent: commit what the stopped workspace holds and write the bundle.
    Collect(CollectJob),
}

/// The job the shim gets at its gate.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Job {
    pub argv: Vec<String>,
    /// The whole environment of the agent, besides `HOME` and `PATH` which the shim sets when absent.
    pub env: Vec<(String, String)>,
    pub stdin: Vec<u8>,
    /// Files to write below HOME before the start (relative path, bytes).
    pub home_files: Vec<(String, Vec<u8>)>,
    /// `127.0.0.1:<port>` inside is bridged to `broker.sock`; `None`: no bridge.
    pub bridge_port: Option<u16>,
    /// The same for `egress.sock`; `None`: nothing of the network is reachable.
    pub egress_port: Option<u16>,
    /// Symbolic links below HOME: (relative path, target as seen inside).
    pub links: Vec<(String, String)>,
    /// A setup ran in this workspace: the excluded paths are put in place again from this commit before the start.
    pub mask_from: Option<String>,
    /// Prepares the workspace for an agent: nothing is collected.
    pub setup: bool,
    pub collect: CollectJob,
}

/// How the result is made: commits `base..result` as a bundle with one ref.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CollectJob {
    /// The commit the workspace started from.
    pub base: String,
    pub message: String,
    /// Paths that are put back to `base` before committing (masked files).
    pub exclude: Vec<String>,
    /// Patterns of files that are kept beside the commits.
    pub artifacts: Vec<String>,
    /// The same below HOME, for the agent's session.
    pub session: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct SandboxSpec {
    pub slot: SlotId,
    pub run: RunId,
    pub image: String,
    pub limits: Limits,
    pub duty: Duty,
    /// Host paths.
    pub workspace: PathBuf,
    pub output: PathBuf,
    pub home: PathBuf,
    /// `None` for collectors.
    pub sockets: Option<PathBuf>,
    pub objects: PathBuf,
    pub cache: Option<Cache>,
}

/// A folder that outlives the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// Host path.
    pub path: PathBuf,
    pub writable: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineSource {
    Stdout,
    Stderr,
    /// The shim itself: one of `ShimEvent`, as JSON in `text`.
    Shim,
}

/// One line of output. `n` counts from 1 within the container and never repeats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub n: i64,
    pub source: LineSource,
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    Running,
    /// `code` is the container's; the agent's own exit code comes as a shim line.
    Exited {
        code: i64,
        out_of_memory: bool,
    },
    /// The engine does not know it (any more).
    Gone,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Polled {
    /// Lines after the cursor, in order.
    pub lines: Vec<Line>,
    pub status: Status,
}

/// What a running container uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Consumed {
    /// Processor time since its start, in nanoseconds.
    pub cpu_nanos: u64,
    /// Without what the kernel may drop at once (file cache).
    pub memory_bytes: i64,
    pub processes: i64,
}

/// A container with our label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub slot: SlotId,
    /// `None`: it was started before it had a run.
    pub run: Option<RunId>,
    pub container: String,
    pub running: bool,
}

/// One line of the start-up self-check and of `doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub name: String,
    pub ok: bool,
    /// A difference here stops runs; otherwise it is only reported.
    pub required: bool,
    pub found: String,
    /// What to type to mend it; empty when ok.
    pub fix: String,
}

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("the container engine does not answer: {detail}")]
    Unavailable { detail: String },
    #[error("image `{image}` is not there: {detail}")]
    NoImage { image: String, detail: String },
    /// The engine did not give the profile that was asked for; the container was removed.
    #[error("the engine did not apply the required profile: {detail}")]
    Profile { detail: String },
    #[error("container engine: {operation}: {detail}")]
    Engine { operation: &'static str, detail: String },
    #[error("{operation}: {path}: {source}")]
    Io { operation: &'static str, path: PathBuf, source: std::io::Error },
}

#[async_trait]
pub trait Sandbox: Send + Sync + Debug {
    /// `docker` or `process`.
    fn kind(&self) -> &'static str;

    /// Where the workspace's Git alternates must point for Git inside to work.
    fn objects_path_inside(&self, host_objects: &std::path::Path) -> PathBuf;

    /// The address the agent reaches files under: (workspace, home) as seen inside.
    fn inside(&self, spec: &SandboxSpec) -> (PathBuf, PathBuf);

    /// A warm slot: a container that was started ahead and waits, for one run of this class. `None`: there is none, and
    /// the run's own slot is started cold. What is taken must be started soon.
    fn take(&self, _class: &SlotClass) -> Option<SlotId> {
        None
    }

    /// One round of keeping warm slots ready, of this class at least one; returns when nothing is left to do.
    async fn tend(&self, _usual: &SlotClass) {}

    /// Waits until `tend` is worth another round.
    async fn untended(&self) {
        std::future::pending().await
    }

    /// Warm slots that no run has been started in yet: their containers are nobody's, and wanted.
    fn waiting(&self) -> Vec<SlotId> {
        Vec::new()
    }

    /// Removes the warm slots: the server ends.
    async fn retire(&self) {}

    /// Creates, verifies and starts, or enters the slot when it is warm; returns the container's id. Starting a slot that
    /// exists returns it.
    async fn start(&self, spec: &SandboxSpec) -> Result<String, SandboxError>;

    /// Lines after `cursor` and the status; waits up to `wait` when there is nothing new.
    async fn poll(&self, slot: &SlotId, cursor: i64, wait: Duration) -> Result<Polled, SandboxError>;

    /// Kills at once. No error when it is gone already.
    async fn stop(&self, slot: &SlotId) -> Result<(), SandboxError>;

    /// Kills and forgets. No error when it is gone already.
    async fn remove(&self, slot: &SlotId) -> Result<(), SandboxError>;

    /// What it uses now; `None`: it does not run, or this sandbox cannot tell.
    async fn usage(&self, _slot: &SlotId) -> Result<Option<Consumed>, SandboxError> {
        Ok(None)
    }

    /// The command line that opens a shell in the running container, as the user and with the limits of its
    /// agent; `None`: it does not run, or this sandbox has no such thing. Further options go after `exec`.
    async fn shell(&self, _slot: &SlotId) -> Result<Option<Vec<String>>, SandboxError> {
        Ok(None)
    }

    /// Everything of ours at the engine, running or not.
    async fn list(&self) -> Result<Vec<Listed>, SandboxError>;

    /// The profile read back from the engine, and what is recommended.
    async fn self_check(&self) -> Vec<Check>;

    /// The uid and gid that workspaces, output and home must belong to.
    fn owner(&self) -> (u32, u32);
}

/// The job in the form that crosses the gate.
fn wire_job(duty: &Duty, limits: &Limits) -> crate::shim::job::WireJob {
    let job = match duty {
        Duty::Agent(job) => job.clone(),
        Duty::Collect(collect) => Job { collect: collect.clone(), ..Job::default() },
    };
    crate::shim::job::WireJob {
        argv: job.argv,
        env: job.env,
        stdin: job.stdin,
        home_files: job.home_files,
        bridge_port: job.bridge_port,
        egress_port: job.egress_port,
        links: job.links,
        mask_from: job.mask_from.unwrap_or_default(),
        setup: job.setup,
        log_bytes: u64::try_from(limits.log_bytes).unwrap_or(0),
        base: job.collect.base,
        message: job.collect.message,
        exclude: job.collect.exclude,
        artifacts: job.collect.artifacts,
        session: job.collect.session,
    }
}
