//! Purpose: attempts in containers of a Docker Engine, through bollard.
//!
//! Nothing here is remembered that the engine does not know: a new process with the same instance id finds
//! the containers by label, reads their output again from the start and skips what the cursor covers.

mod warm;

pub use warm::{SocketsOf, WarmOptions};

use super::gate::Gate;
use super::lines::{LineBuffer, LineReader};
use super::profile::{self, Setting, Shape, labels};
use super::{
    Check, CollectJob, Consumed, Duty, Limits, Listed, Polled, Sandbox, SandboxError, SandboxSpec, SlotClass,
    Status, paths, shim_file, wire_job,
};
use crate::domain::ids::{RunId, SlotId};
use crate::shim;
use crate::telemetry;
use async_trait::async_trait;
use bollard::models::{
    ContainerInspectResponse, ContainerStateStatusEnum, ContainerStatsResponse, ContainerSummaryStateEnum,
    SystemInfo,
};
use bollard::query_parameters::{
    CreateContainerOptions, InspectContainerOptions, KillContainerOptions, ListContainersOptions,
    LogsOptions, RemoveContainerOptions, StartContainerOptions, StatsOptions,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::StreamExt;
use serde::Deserialize;
use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, OnceCell, Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// One request to the engine (streams are not limited): a start on a loaded machine takes seconds.
const ENGINE_TIMEOUT_SECONDS: u64 = 60;
/// Waiting this long after a first line lets its neighbours come along in one answer.
const COALESCE: Duration = Duration::from_millis(25);
/// Between two tries of a stream that ended while its container runs (the engine restarts).
const FOLLOW_RETRY: Duration = Duration::from_millis(200);
/// How long a probe container may take.
const PROBE_LIMIT: Duration = Duration::from_secs(30);
/// The uid and gid of containers when the server itself is root.
const FALLBACK_OWNER: u32 = 10001;
/// Containers of ours that are listed at most.
const MAX_LISTED: i32 = 10_000;
/// Longest slot: the engine's names may be longer, ours never are.
const SLOT_NAME_BYTES: usize = 100;
/// runc from this version on has the fixes of CVE-2025-31133, CVE-2025-52565 and CVE-2025-52881.
const RUNC_FIXED: [(u64, u64, u64); 3] = [(1, 2, 8), (1, 3, 3), (1, 4, 0)];

/// How to reach the engine, and what our containers are like.
#[derive(Debug, Clone)]
pub struct DockerOptions {
    /// `unix:///var/run/docker.sock` or `http://…`.
    pub docker_host: String,
    /// Tells the containers of several servers on one engine apart.
    pub instance: String,
    /// Where the shim is written; the engine must see this path.
    pub shim_folder: PathBuf,
    /// Uid and gid inside; `None`: our own, or 10001 when we are root.
    pub owner: Option<(u32, u32)>,
    /// The default image, for the self-check.
    pub image: String,
    /// The engine's runtime for our containers, e.g. `runsc`; `None`: its default.
    pub runtime: Option<String>,
    /// `None`: every run starts cold.
    pub warm: Option<WarmOptions>,
}

/// Containers of one Docker Engine.
pub struct DockerSandbox {
    options: DockerOptions,
    owner: (u32, u32),
    engine: OnceCell<Docker>,
    shim: OnceCell<PathBuf>,
    cores: usize,
    starts: Semaphore,
    warm: Option<Arc<warm::Warm>>,
    gates: Mutex<HashMap<SlotId, Gate>>,
    follows: Mutex<HashMap<SlotId, Arc<Follow>>>,
}

impl std::fmt::Debug for DockerSandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DockerSandbox")
            .field("options", &self.options)
            .field("owner", &self.owner)
            .finish_non_exhaustive()
    }
}

/// The reading of one container's output.
#[derive(Debug)]
struct Follow {
    buffer: Mutex<LineBuffer>,
    /// The stream has ended: nothing more will be pushed.
    ended: Mutex<bool>,
    /// Reads what there is and ends, instead of waiting for more.
    whole: bool,
    arrived: Notify,
    room: Notify,
    task: Mutex<Option<tokio::task::AbortHandle>>,
}

impl Follow {
    /// Waits until `enough` holds, which news may change, or for so long.
    async fn wait(&self, deadline: Instant, enough: impl Fn() -> bool) {
        loop {
            let arrived = self.arrived.notified();
            tokio::pin!(arrived);
            // Before the look, so that news in between are not missed.
            arrived.as_mut().enable();
            if enough() || tokio::time::timeout_at(deadline, arrived).await.is_err() {
                return;
            }
        }
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        if let Some(task) = lock(&self.task).take() {
            task.abort();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The uid and gid this process runs under.
pub(super) fn own_ids() -> (u32, u32) {
    std::fs::metadata("/proc/self")
        .map_or((FALLBACK_OWNER, FALLBACK_OWNER), |found| (found.uid(), found.gid()))
}

fn failed(operation: &'static str, error: &bollard::errors::Error) -> SandboxError {
    use bollard::errors::Error;
    match error {
        Error::DockerResponseServerError { .. }
        | Error::JsonDataError { .. }
        | Error::JsonSerdeError { .. } => SandboxError::Engine { operation, detail: error.to_string() },
        _ => SandboxError::Unavailable { detail: format!("{operation}: {error}") },
    }
}

fn status_code(error: &bollard::errors::Error) -> Option<u16> {
    match error {
        bollard::errors::Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

/// `zeblit-<slot>`; a slot that is no container name is refused before it reaches the engine.
fn container_name(slot: &SlotId) -> Result<String, SandboxError> {
    let name = slot.as_str();
    let plain = (1..=SLOT_NAME_BYTES).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    if plain {
        Ok(format!("zeblit-{name}"))
    } else {
        let detail =
            format!("slot `{}` is no name of a container", name.chars().take(80).collect::<String>());
        Err(SandboxError::Engine { operation: "name", detail })
    }
}

impl DockerSandbox {
    /// Nothing is asked of the engine yet: it may come up later than we do.
    pub fn connect(options: DockerOptions) -> Self {
        let owner = options.owner.unwrap_or_else(|| match own_ids() {
            (0, _) => (FALLBACK_OWNER, FALLBACK_OWNER),
            own => own,
        });
        // Starts serialise inside the engine: more at one time only make each slower.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let warm = options.warm.clone().map(|options| Arc::new(warm::Warm::new(options)));
        Self {
            options,
            owner,
            engine: OnceCell::new(),
            shim: OnceCell::new(),
            cores,
            starts: Semaphore::new(cores),
            warm,
            gates: Mutex::default(),
            follows: Mutex::default(),
        }
    }

    async fn engine(&self) -> Result<&Docker, SandboxError> {
        self.engine
            .get_or_try_init(|| async {
                let host = self.options.docker_host.as_str();
                let connected = if let Some(path) = host.strip_prefix("unix://") {
                    Docker::connect_with_unix(path, ENGINE_TIMEOUT_SECONDS, API_DEFAULT_VERSION)
                } else if host.starts_with("http://") || host.starts_with("tcp://") {
                    Docker::connect_with_http(host, ENGINE_TIMEOUT_SECONDS, API_DEFAULT_VERSION)
                } else {
                    return Err(SandboxError::Unavailable {
                        detail: format!(
                            "`sandbox.docker_host` is `{host}`: it must begin with unix:// or http://"
                        ),
                    });
                };
                let unreachable = |error: bollard::errors::Error| SandboxError::Unavailable {
                    detail: format!("{host}: {error}"),
                };
                connected.map_err(unreachable)?.negotiate_version().await.map_err(unreachable)
            })
            .await
    }

    async fn shim(&self) -> Result<&Path, SandboxError> {
        self.shim
            .get_or_try_init(|| async { shim_file::write(&self.options.shim_folder) })
            .await
            .map(PathBuf::as_path)
    }

    /// To start a container: no more at one time than there are cores.
    async fn permit(&self) -> Result<SemaphorePermit<'_>, SandboxError> {
        let acquired = self.starts.acquire().await;
        acquired.map_err(|error| SandboxError::Unavailable { detail: error.to_string() })
    }

    async fn inspect(&self, name: &str) -> Result<Option<ContainerInspectResponse>, SandboxError> {
        match self.engine().await?.inspect_container(name, None::<InspectContainerOptions>).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if status_code(&error) == Some(404) => Ok(None),
            Err(error) => Err(failed("inspect", &error)),
        }
    }

    async fn inspect_existing(&self, name: &str) -> Result<ContainerInspectResponse, SandboxError> {
        self.inspect(name)
            .await?
            .ok_or_else(|| SandboxError::Engine { operation: "inspect", detail: format!("{name} vanished") })
    }

    async fn remove_named(&self, name: &str) -> Result<(), SandboxError> {
        let options = RemoveContainerOptions { force: true, v: true, link: false };
        match self.engine().await?.remove_container(name, Some(options)).await {
            Ok(()) => Ok(()),
            // 409: a removal is under way already.
            Err(error) if matches!(status_code(&error), Some(404 | 409)) => Ok(()),
            Err(error) => Err(failed("remove", &error)),
        }
    }

    #[tracing::instrument(level = "debug", skip_all)]
    async fn remove_slot(&self, slot: &SlotId) -> Result<(), SandboxError> {
        let name = container_name(slot)?;
        self.close_gate(slot);
        self.forget(slot);
        self.remove_named(&name).await?;
        if let Some(warm) = &self.warm {
            warm.clear(slot);
        }
        Ok(())
    }

    /// Creates the container, compares it with the profile, and starts it; one that runs or ran is left as it is.
    async fn create_and_start(
        &self,
        name: &str,
        shape: &Shape<'_>,
        setting: &Setting<'_>,
    ) -> Result<ContainerInspectResponse, SandboxError> {
        let engine = self.engine().await?;
        let mut existed = false;
        let options =
            CreateContainerOptions { name: Some(name.to_owned()), ..CreateContainerOptions::default() };
        match engine.create_container(Some(options.clone()), profile::body(shape, setting)).await {
            Ok(_) => {}
            Err(error) if status_code(&error) == Some(409) => existed = true,
            Err(error) if status_code(&error) == Some(404) => {
                return Err(SandboxError::NoImage {
                    image: shape.image.to_owned(),
                    detail: error.to_string(),
                });
            }
            Err(error) => return Err(failed("create", &error)),
        }
        let mut found = self.inspect_existing(name).await?;
        if label(&found, labels::INSTANCE) != Some(self.options.instance.as_str()) {
            let detail = format!("a container `{name}` of somebody else is there: docker rm -f {name}");
            return Err(SandboxError::Engine { operation: "create", detail });
        }
        // What has been started was compared then; another version of the server may have done it.
        if state(&found) != Some(ContainerStateStatusEnum::CREATED) {
            return Ok(found);
        }
        let mut differences = profile::differences(&found, shape, setting);
        if existed && !differences.is_empty() {
            // Made and never started, by a server that died then (perhaps of another version).
            self.remove_named(name).await?;
            let created = engine.create_container(Some(options), profile::body(shape, setting)).await;
            created.map_err(|error| failed("create", &error))?;
            found = self.inspect_existing(name).await?;
            differences = profile::differences(&found, shape, setting);
        }
        if !differences.is_empty() {
            self.remove_named(name).await?;
            return Err(SandboxError::Profile { detail: differences.join("; ") });
        }
        match engine.start_container(name, None::<StartContainerOptions>).await {
            Ok(()) => Ok(found),
            Err(error) => {
                // A container that the runtime refused would only be in the way of the next try.
                let error = failed("start", &error);
                if matches!(error, SandboxError::Engine { .. }) {
                    self.remove_named(name).await?;
                }
                Err(error)
            }
        }
    }

    /// The reading of a slot's output, for a reader that knows everything up to `cursor`.
    async fn follow(&self, slot: &SlotId, name: &str, cursor: i64) -> Result<Arc<Follow>, SandboxError> {
        if let Some(follow) = lock(&self.follows).get(slot) {
            let mut buffer = lock(&follow.buffer);
            if !buffer.has_forgotten_after(cursor) {
                buffer.forget(cursor);
                follow.room.notify_one();
                drop(buffer);
                return Ok(Arc::clone(follow));
            }
        }
        self.read(slot, name, cursor, false).await
    }

    /// A new reading of the container's output from its start, of which lines up to `cursor` are known.
    async fn read(
        &self,
        slot: &SlotId,
        name: &str,
        cursor: i64,
        whole: bool,
    ) -> Result<Arc<Follow>, SandboxError> {
        let engine = self.engine().await?.clone();
        let follow = Arc::new(Follow {
            buffer: Mutex::new(LineBuffer::after(cursor)),
            ended: Mutex::new(false),
            whole,
            arrived: Notify::new(),
            room: Notify::new(),
            task: Mutex::new(None),
        });
        let task = tokio::spawn(read_output(engine, name.to_owned(), whole, Arc::downgrade(&follow)));
        *lock(&follow.task) = Some(task.abort_handle());
        lock(&self.follows).insert(slot.clone(), Arc::clone(&follow));
        Ok(follow)
    }

    fn forget(&self, slot: &SlotId) {
        lock(&self.follows).remove(slot);
    }

    fn close_gate(&self, slot: &SlotId) {
        lock(&self.gates).remove(slot);
    }
}

/// Copies the engine's log into the buffer, until the stream ends or nobody holds the buffer.
async fn read_output(engine: Docker, name: String, whole: bool, follow: std::sync::Weak<Follow>) {
    let options = LogsOptions { follow: !whole, stdout: true, ..LogsOptions::default() };
    let mut stream = std::pin::pin!(engine.logs(&name, Some(options)));
    let mut reader = LineReader::default();
    while let Some(output) = stream.next().await {
        let output = match output {
            Ok(output) => output,
            Err(error) => {
                tracing::debug!(container = name, %error, "the engine's log stream broke off");
                break;
            }
        };
        let lines = reader.push(&output.into_bytes());
        let Some(follow) = follow.upgrade() else { return };
        for line in lines {
            loop {
                // Made before the look, so that room made in between is not missed.
                let room = follow.room.notified();
                if !lock(&follow.buffer).is_full() {
                    break;
                }
                room.await;
            }
            lock(&follow.buffer).push(line);
            follow.arrived.notify_waiters();
        }
    }
    if let Some(follow) = follow.upgrade() {
        *lock(&follow.ended) = true;
        follow.arrived.notify_waiters();
    }
}

fn label<'a>(found: &'a ContainerInspectResponse, name: &str) -> Option<&'a str> {
    found.config.as_ref()?.labels.as_ref()?.get(name).map(String::as_str)
}

fn state(found: &ContainerInspectResponse) -> Option<ContainerStateStatusEnum> {
    found.state.as_ref().and_then(|state| state.status)
}

#[async_trait]
impl Sandbox for DockerSandbox {
    fn kind(&self) -> &'static str {
        "docker"
    }

    fn objects_path_inside(&self, _host_objects: &Path) -> PathBuf {
        PathBuf::from(paths::OBJECTS)
    }

    fn inside(&self, _spec: &SandboxSpec) -> (PathBuf, PathBuf) {
        (PathBuf::from(paths::WORKSPACE), PathBuf::from(paths::HOME))
    }

    #[tracing::instrument(skip_all, fields(slot = %spec.slot, run = %spec.run))]
    async fn start(&self, spec: &SandboxSpec) -> Result<String, SandboxError> {
        let name = container_name(&spec.slot)?;
        let job = wire_job(&spec.duty, &spec.limits);
        let refused = |detail| SandboxError::Engine { operation: "job", detail };
        let shim = self.shim().await?;
        let (mode, variables) = match &spec.duty {
            Duty::Agent(_) => ("agent", Vec::new()),
            Duty::Collect(_) => ("collect", shim::job_to_environment(&job).map_err(refused)?),
        };
        if let (Duty::Agent(_), Some(sockets)) = (&spec.duty, &spec.sockets) {
            let bytes = job.encode().map_err(refused)?;
            if let Some(container) = self.enter(spec, &bytes).await? {
                metrics::counter!(telemetry::STARTS, "kind" => "warm").increment(1);
                return Ok(container);
            }
            metrics::counter!(telemetry::STARTS, "kind" => "cold").increment(1);
            // The old gate first: its drop removes the socket of the new one otherwise.
            self.close_gate(&spec.slot);
            let gate = Gate::open(sockets)?;
            gate.give(bytes);
            lock(&self.gates).insert(spec.slot.clone(), gate);
        } else if matches!(spec.duty, Duty::Agent(_)) {
            return Err(refused("an agent needs a sockets folder: its job waits there".into()));
        }
        let setting = Setting {
            instance: &self.options.instance,
            shim,
            owner: self.owner,
            runtime: self.options.runtime.as_deref(),
            mode,
            job: variables,
        };
        let started = async {
            let _permit = self.permit().await?;
            let found = self.create_and_start(&name, &Shape::of_run(spec), &setting).await?;
            found.id.ok_or_else(|| SandboxError::Engine {
                operation: "start",
                detail: format!("{name} has no id"),
            })
        }
        .await;
        if started.is_err() {
            self.close_gate(&spec.slot);
        }
        started
    }

    async fn poll(&self, slot: &SlotId, cursor: i64, wait: Duration) -> Result<Polled, SandboxError> {
        let name = container_name(slot)?;
        let deadline = Instant::now() + wait;
        loop {
            let follow = self.follow(slot, &name, cursor).await?;
            let is_over = || *lock(&follow.ended) || lock(&follow.buffer).finished;
            let has_lines = || !lock(&follow.buffer).is_empty();
            follow.wait(deadline, || is_over() || has_lines()).await;
            if has_lines() {
                follow.wait(Instant::now() + COALESCE, is_over).await;
            }
            let ended = *lock(&follow.ended);
            let (lines, more, started, finished, out_of_memory) = {
                let buffer = lock(&follow.buffer);
                let (lines, more) = buffer.answer();
                (lines, more, buffer.started, buffer.finished, buffer.out_of_memory)
            };
            if started {
                self.close_gate(slot);
            }
            // After its last word a shim only exits; the engine tells that much later.
            if finished && !more {
                let code = i64::from(shim::exit::COLLECTED);
                return Ok(Polled { lines, status: Status::Exited { code, out_of_memory } });
            }
            // With nothing to tell, the engine is asked: a stream of a container that is gone may not have ended yet.
            let has_news = !lines.is_empty();
            if more || (!ended && (has_news || self.inspect(&name).await?.is_some())) {
                return Ok(Polled { lines, status: Status::Running });
            }
            let Some(found) = self.inspect(&name).await? else {
                self.forget(slot);
                self.close_gate(slot);
                return Ok(Polled { lines, status: Status::Gone });
            };
            let code = found.state.as_ref().and_then(|state| state.exit_code).unwrap_or(-1);
            match state(&found) {
                Some(ContainerStateStatusEnum::EXITED | ContainerStateStatusEnum::DEAD) => {
                    // A stream that follows can end before the last lines of a container that exits on a
                    // busy machine; what the engine has stored by now is complete.
                    if !follow.whole {
                        self.read(slot, &name, cursor, true).await?;
                        continue;
                    }
                    self.close_gate(slot);
                    let killed = found.state.as_ref().and_then(|state| state.oom_killed) == Some(true);
                    let out_of_memory = killed || out_of_memory;
                    return Ok(Polled { lines, status: Status::Exited { code, out_of_memory } });
                }
                // The stream ended and the container did not: read it again from the start.
                _ => {
                    self.forget(slot);
                    if !lines.is_empty() || Instant::now() + FOLLOW_RETRY >= deadline {
                        return Ok(Polled { lines, status: Status::Running });
                    }
                    tokio::time::sleep(FOLLOW_RETRY).await;
                }
            }
        }
    }

    async fn stop(&self, slot: &SlotId) -> Result<(), SandboxError> {
        let name = container_name(slot)?;
        self.close_gate(slot);
        let options = KillContainerOptions { signal: "SIGKILL".into() };
        match self.engine().await?.kill_container(&name, Some(options)).await {
            Ok(()) => Ok(()),
            // 404: gone; 409: not running.
            Err(error) if matches!(status_code(&error), Some(404 | 409)) => Ok(()),
            Err(error) => Err(failed("kill", &error)),
        }
    }

    async fn remove(&self, slot: &SlotId) -> Result<(), SandboxError> {
        self.remove_slot(slot).await
    }

    fn take(&self, class: &SlotClass) -> Option<SlotId> {
        self.take_warm(class)
    }

    async fn tend(&self, usual: &SlotClass) {
        self.tend_warm(usual).await;
    }

    async fn untended(&self) {
        self.untended_warm().await;
    }

    fn waiting(&self) -> Vec<SlotId> {
        self.waiting_warm()
    }

    async fn retire(&self) {
        self.retire_warm().await;
    }

    async fn usage(&self, slot: &SlotId) -> Result<Option<Consumed>, SandboxError> {
        let name = container_name(slot)?;
        let options = StatsOptions { stream: false, one_shot: true };
        let mut stream = std::pin::pin!(self.engine().await?.stats(&name, Some(options)));
        match stream.next().await {
            Some(Ok(found)) => Ok(consumed(&found)),
            Some(Err(error)) if matches!(status_code(&error), Some(404 | 409)) => Ok(None),
            Some(Err(error)) => Err(failed("stats", &error)),
            None => Ok(None),
        }
    }

    async fn shell(&self, slot: &SlotId) -> Result<Option<Vec<String>>, SandboxError> {
        let name = container_name(slot)?;
        let found = self.inspect(&name).await?;
        if found.as_ref().and_then(state) != Some(ContainerStateStatusEnum::RUNNING) {
            return Ok(None);
        }
        let host = self.options.docker_host.replacen("http://", "tcp://", 1);
        let user = format!("{}:{}", self.owner.0, self.owner.1);
        let home = format!("HOME={}", paths::HOME);
        let words = [
            "docker",
            "--host",
            &host,
            "exec",
            "--interactive",
            "--user",
            &user,
            "--workdir",
            paths::WORKSPACE,
            "--env",
            &home,
            &name,
            "sh",
        ];
        Ok(Some(words.map(str::to_owned).to_vec()))
    }

    async fn list(&self) -> Result<Vec<Listed>, SandboxError> {
        let filter = format!("{}={}", labels::INSTANCE, self.options.instance);
        let options = ListContainersOptions {
            all: true,
            limit: Some(MAX_LISTED),
            filters: Some(HashMap::from([("label".to_owned(), vec![filter])])),
            ..ListContainersOptions::default()
        };
        let found =
            self.engine().await?.list_containers(Some(options)).await.map_err(|e| failed("list", &e))?;
        Ok(found
            .into_iter()
            .filter_map(|container| {
                let labels = container.labels?;
                Some(Listed {
                    slot: SlotId::new(labels.get(labels::SLOT)?),
                    run: labels.get(labels::RUN).filter(|run| !run.is_empty()).map(RunId::new),
                    container: container.id?,
                    running: matches!(
                        container.state,
                        Some(ContainerSummaryStateEnum::RUNNING | ContainerSummaryStateEnum::PAUSED)
                    ),
                })
            })
            .collect())
    }

    async fn self_check(&self) -> Vec<Check> {
        let mut checks = Vec::new();
        let engine = match self.engine().await {
            Ok(engine) => engine,
            Err(error) => {
                checks.push(unreachable_check(&self.options.docker_host, &error.to_string()));
                return checks;
            }
        };
        let info = match engine.info().await {
            Ok(info) => info,
            Err(error) => {
                checks.push(unreachable_check(&self.options.docker_host, &error.to_string()));
                return checks;
            }
        };
        let mut runc = String::new();
        if let Ok(version) = engine.version().await {
            let part = version.components.into_iter().flatten().find(|part| part.name == "runc");
            runc = part.map(|part| part.version).unwrap_or_default();
        }
        checks.extend(engine_checks(&info, &runc));
        let image = self.options.image.as_str();
        let present = engine.inspect_image(image).await;
        checks.push(Check {
            name: "image".into(),
            ok: present.is_ok(),
            required: true,
            found: match &present {
                Ok(found) => format!("{image} ({} MB)", found.size.unwrap_or(0) / 1_000_000),
                Err(error) => format!("{image}: {error}"),
            },
            fix: if present.is_ok() { String::new() } else { format!("deploy/agent/build-image.sh {image}") },
        });
        if present.is_ok() {
            checks.extend(self.probe_checks().await);
        }
        checks.extend(self.warm_check().await);
        checks
    }

    fn owner(&self) -> (u32, u32) {
        self.owner
    }
}

/// What the engine's figures mean; without processor time the container does not run.
fn consumed(found: &ContainerStatsResponse) -> Option<Consumed> {
    let cpu_nanos = found.cpu_stats.as_ref()?.cpu_usage.as_ref()?.total_usage.filter(|total| *total > 0)?;
    let memory = found.memory_stats.as_ref()?;
    let detail = |name: &str| memory.stats.as_ref().and_then(|stats| stats.get(name)).copied();
    // cgroup v1, then v2.
    let cache = detail("total_inactive_file").or_else(|| detail("inactive_file")).unwrap_or(0);
    let bytes = memory.usage.unwrap_or(0).saturating_sub(cache);
    let processes = found.pids_stats.as_ref().and_then(|pids| pids.current).unwrap_or(0);
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    Some(Consumed { cpu_nanos, memory_bytes: number(bytes), processes: number(processes) })
}

fn unreachable_check(host: &str, detail: &str) -> Check {
    Check {
        name: "container engine".into(),
        ok: false,
        required: true,
        found: detail.to_owned(),
        fix: format!(
            "sudo apt-get install docker.io && sudo systemctl start docker; then be root or: sudo usermod -aG docker $USER (log in again). Asked at {host}: `sandbox.docker_host`"
        ),
    }
}

/// What the engine says about itself.
fn engine_checks(info: &SystemInfo, runc: &str) -> Vec<Check> {
    let check = |name: &str, ok: bool, required: bool, found: String, fix: &str| Check {
        name: name.into(),
        ok,
        required,
        found,
        fix: if ok { String::new() } else { fix.to_owned() },
    };
    let security: Vec<&str> = info.security_options.iter().flatten().map(String::as_str).collect();
    let has = |name: &str| {
        security.iter().any(|option| option.split(',').any(|part| part == format!("name={name}")))
    };
    let seccomp =
        security.iter().any(|option| option.contains("name=seccomp") && !option.contains("unconfined"));
    let limits = info.memory_limit != Some(false)
        && info.pids_limit != Some(false)
        && info.cpu_cfs_quota != Some(false);
    let swap = info.swap_limit != Some(false);
    let shown = |value: Option<&str>| value.unwrap_or("unknown").to_owned();
    vec![
        check(
            "container engine",
            true,
            true,
            format!(
                "{} on {}, {} cpus",
                shown(info.server_version.as_deref()),
                shown(info.operating_system.as_deref()),
                info.ncpu.unwrap_or(0)
            ),
            "",
        ),
        check(
            "seccomp",
            seccomp,
            true,
            security.join(" "),
            "remove `seccomp-profile: unconfined` from /etc/docker/daemon.json and: sudo systemctl restart docker",
        ),
        check(
            "userns-remap",
            !has("userns"),
            true,
            if has("userns") { "on" } else { "off" }.to_owned(),
            "not supported yet: remove `userns-remap` from /etc/docker/daemon.json and: sudo systemctl restart docker",
        ),
        check(
            "memory, pids and cpu limits",
            limits,
            true,
            format!(
                "memory {:?}, pids {:?}, cpu {:?}",
                info.memory_limit, info.pids_limit, info.cpu_cfs_quota
            ),
            "the kernel lacks cgroup controllers: boot with cgroup_enable=memory",
        ),
        check(
            "swap limit",
            swap,
            false,
            format!("{:?}", info.swap_limit),
            "boot with swapaccount=1, or turn swap off: without it a container may use the host's swap",
        ),
        check(
            "cgroup and storage driver",
            true,
            false,
            format!(
                "{} v{}, {}",
                info.cgroup_driver.map_or_else(String::new, |driver| driver.to_string()),
                info.cgroup_version.map_or_else(String::new, |version| version.to_string()),
                shown(info.driver.as_deref())
            ),
            "",
        ),
        check(
            "AppArmor or SELinux",
            has("apparmor") || has("selinux"),
            false,
            security.join(" "),
            "sudo apt-get install apparmor, and a kernel that has it; then: sudo systemctl restart docker",
        ),
        check(
            "runc version",
            runc_is_fixed(runc),
            false,
            if runc.is_empty() { "unknown".to_owned() } else { runc.to_owned() },
            "sudo apt-get install --only-upgrade runc (fixed: 1.2.8, 1.3.3, 1.4.0 and later)",
        ),
    ]
}

/// Whether a version such as `1.1.5+ds1` has the fixes of its release line.
fn runc_is_fixed(version: &str) -> bool {
    let numbers: Vec<u64> = version
        .trim_start_matches('v')
        .split(['.', '+', '-', '~'])
        .map_while(|part| part.parse().ok())
        .take(3)
        .collect();
    let [major, minor, patch] = numbers[..] else { return false };
    let line = RUNC_FIXED.iter().find(|(x, y, _)| (*x, *y) == (major, minor));
    match line {
        Some((_, _, fixed)) => patch >= *fixed,
        None => (major, minor) > (1, 4),
    }
}

/// What the shim reports from inside.
#[derive(Deserialize)]
struct Probe {
    uid: String,
    gid: String,
    cap_eff: String,
    cap_bnd: String,
    no_new_privs: String,
    seccomp: String,
    interfaces: Vec<String>,
    root_writable: bool,
    tmp_writable: bool,
    workspace_writable: bool,
    sockets: Vec<String>,
    mount_flags: Vec<String>,
    /// Why the socket that the server opened cannot be reached from inside; empty: it can.
    socket_error: String,
    /// The error number of a socket of no family: 1 when our own system call filter answered.
    unknown_family: i32,
}

impl DockerSandbox {
    /// Starts a container with the whole profile and lets the shim look around in it.
    async fn probe_checks(&self) -> Vec<Check> {
        let slot = SlotId::new(format!("probe-{}", uuid::Uuid::now_v7().simple()));
        let folder = self.options.shim_folder.join(slot.as_str());
        let result = self.probe(&slot, &folder).await;
        let removed = self.remove(&slot).await;
        let _ = std::fs::remove_dir_all(&folder);
        match result.and_then(|probe| removed.map(|()| probe)) {
            Ok(probe) => compare_probe(&probe, self.owner, self.options.runtime.as_deref()),
            Err(error) => vec![Check {
                name: "probe container".into(),
                ok: false,
                required: true,
                found: error.to_string(),
                fix: "mend what the line says, then: zeblit doctor".into(),
            }],
        }
    }

    async fn probe(&self, slot: &SlotId, folder: &Path) -> Result<Probe, SandboxError> {
        for name in ["workspace", "output", "home", "objects", "sockets"] {
            let path = folder.join(name);
            let io = |source| SandboxError::Io {
                operation: "make a folder for the probe",
                path: path.clone(),
                source,
            };
            std::fs::create_dir_all(&path).map_err(io)?;
            // The probe writes there under the containers' uid, which need not be ours.
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).map_err(io)?;
        }
        let spec = SandboxSpec {
            slot: slot.clone(),
            run: RunId::new("probe"),
            image: self.options.image.clone(),
            limits: Limits { memory_bytes: 256 << 20, millicpus: 1000, pids: 64, log_bytes: 1 << 20 },
            duty: Duty::Collect(CollectJob::default()),
            workspace: folder.join("workspace"),
            output: folder.join("output"),
            home: folder.join("home"),
            sockets: Some(folder.join("sockets")),
            objects: folder.join("objects"),
            cache: None,
        };
        // Listens while the probe runs; the kernel completes a connection that nobody accepts.
        let _listener = probe_socket(&folder.join("sockets"))?;
        let shim = self.shim().await?;
        let setting = Setting {
            instance: &self.options.instance,
            shim,
            owner: self.owner,
            runtime: self.options.runtime.as_deref(),
            mode: "probe",
            job: Vec::new(),
        };
        self.create_and_start(&container_name(slot)?, &Shape::of_run(&spec), &setting).await?;
        let deadline = Instant::now() + PROBE_LIMIT;
        let mut text = String::new();
        while Instant::now() < deadline {
            let polled = self.poll(slot, 0, Duration::from_secs(1)).await?;
            if let Some(line) = polled.lines.first() {
                text.clone_from(&line.text);
            }
            if polled.status != Status::Running {
                break;
            }
        }
        serde_json::from_str(&text).map_err(|error| SandboxError::Engine {
            operation: "probe",
            detail: format!(
                "the shim's report cannot be read ({error}): `{}`",
                text.chars().take(200).collect::<String>()
            ),
        })
    }
}

/// A socket in the folder, by a short link when the folder's own path is too long for one.
fn probe_socket(folder: &Path) -> Result<std::os::unix::net::UnixListener, SandboxError> {
    let path = folder.join(shim::probe::PROBE_SOCKET);
    let io = |source| SandboxError::Io { operation: "open the probe's socket", path: path.clone(), source };
    let opened = std::fs::File::open(folder).map_err(io)?;
    let short = format!("/proc/self/fd/{}/{}", opened.as_raw_fd(), shim::probe::PROBE_SOCKET);
    let listener = std::os::unix::net::UnixListener::bind(short).map_err(io)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).map_err(io)?;
    Ok(listener)
}

/// Whether the runtime is gVisor's, whatever name it was registered under.
fn is_gvisor(runtime: Option<&str>) -> bool {
    runtime.is_some_and(|name| name.contains("runsc") || name.contains("gvisor"))
}

/// Whether the broker's socket can be reached from inside, and what to mend when it cannot.
fn socket_check(probe: &Probe, runtime: Option<&str>) -> Check {
    let ok = probe.socket_error.is_empty();
    let fix = if is_gvisor(runtime) {
        "gVisor opens no socket of the host without its flag `--host-uds=open`: sudo runsc install -- --host-uds=open && sudo systemctl restart docker"
    } else {
        "the engine must run on this host and see `state_dir` and `sandbox.socket_dir` under the same paths; runtimes with a virtual machine (Kata) cannot pass sockets"
    };
    Check {
        name: "inside: the broker's socket opens".into(),
        ok,
        required: true,
        found: if ok {
            format!("with the runtime {}", runtime.unwrap_or("of the engine's choice"))
        } else {
            format!("{} (runtime {})", probe.socket_error, runtime.unwrap_or("of the engine's choice"))
        },
        fix: if ok { String::new() } else { fix.into() },
    }
}

/// Whether the mounts inside have the flags that the engine cannot be asked for.
fn flag_checks(mounts: &[String]) -> [Check; 2] {
    let check = |read_only: bool, name: &str, fix: &str| {
        let has = |flags: &str, wanted: &str| flags.split(',').any(|flag| flag == wanted);
        let lacking: Vec<&str> = mounts
            .iter()
            .filter_map(|mount| mount.split_once(' '))
            .filter(|(_, flags)| has(flags, "ro") == read_only)
            .filter(|(_, flags)| !(has(flags, "nosuid") && has(flags, "nodev")))
            .map(|(point, _)| point)
            .collect();
        Check {
            name: format!("inside: {name} mounts are nosuid and nodev"),
            ok: lacking.is_empty(),
            required: false,
            found: if lacking.is_empty() { "all".to_owned() } else { format!("not {}", lacking.join(" ")) },
            fix: if lacking.is_empty() { String::new() } else { fix.to_owned() },
        }
    };
    [
        check(
            false,
            "writable",
            "bind mounts take the flags of the host's mount: run `zeblit serve` as root, which sets them at start, in the engine's own mount namespace (without capabilities and with no-new-privileges both are a second line only)",
        ),
        check(
            true,
            "read-only",
            "the host's mounts have the flags, but runc drops them where it remounts read-only (seen with 1.1.5): try a later one; nothing can be made on a read-only mount",
        ),
    ]
}

fn compare_probe(probe: &Probe, owner: (u32, u32), runtime: Option<&str>) -> Vec<Check> {
    let none = |mask: &str| !mask.is_empty() && mask.bytes().all(|byte| byte == b'0');
    // gVisor's kernel shows no filter of the host's to its programs: it is the filter itself.
    let gvisor = is_gvisor(runtime);
    let lines: [(&str, bool, String); 9] = [
        (
            "no capabilities",
            none(&probe.cap_eff) && none(&probe.cap_bnd),
            format!("{} {}", probe.cap_eff, probe.cap_bnd),
        ),
        ("no new privileges", probe.no_new_privs == "1", probe.no_new_privs.clone()),
        ("seccomp filter", gvisor || probe.seccomp == "2", probe.seccomp.clone()),
        (
            "our own list of system calls",
            gvisor || probe.unknown_family == 1,
            format!("a socket of no family: error {}", probe.unknown_family),
        ),
        ("no network", probe.interfaces == ["lo"], probe.interfaces.join(" ")),
        (
            "user",
            probe.uid == owner.0.to_string() && probe.gid == owner.1.to_string(),
            format!("{}:{}", probe.uid, probe.gid),
        ),
        (
            "read-only root",
            !probe.root_writable,
            if probe.root_writable { "writable" } else { "read-only" }.into(),
        ),
        (
            "writable workspace and /tmp",
            probe.workspace_writable && probe.tmp_writable,
            format!("workspace {}, /tmp {}", probe.workspace_writable, probe.tmp_writable),
        ),
        ("no engine socket", probe.sockets.is_empty(), probe.sockets.join(" ")),
    ];
    let mut checks: Vec<Check> = lines
        .into_iter()
        .map(|(name, ok, found)| Check {
            name: format!("inside: {name}"),
            ok,
            required: true,
            found,
            fix: if ok {
                String::new()
            } else {
                "the engine does not apply the profile: look at /etc/docker/daemon.json and the default runtime".into()
            },
        })
        .collect();
    checks.push(socket_check(probe, runtime));
    checks.extend(flag_checks(&probe.mount_flags));
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_that_are_no_container_names_are_refused() {
        assert_eq!(container_name(&SlotId::new("a-1_b.c")).unwrap(), "zeblit-a-1_b.c");
        for bad in ["", "a/b", "a b", "\u{e4}", &"x".repeat(200)] {
            assert!(container_name(&SlotId::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn runc_versions_are_told_apart() {
        for (version, fixed) in [
            ("1.1.5+ds1", false),
            ("1.1.15", false),
            ("1.2.7", false),
            ("1.2.8", true),
            ("1.3.3-0ubuntu1", true),
            ("1.3.2", false),
            ("v1.4.0", true),
            ("1.5.0", true),
            ("2.0.0", true),
            ("", false),
            ("unknown", false),
        ] {
            assert_eq!(runc_is_fixed(version), fixed, "{version}");
        }
    }

    #[test]
    fn an_engine_with_userns_remap_or_without_seccomp_is_refused_with_the_fix() {
        let engine = |options: &[&str]| SystemInfo {
            security_options: Some(options.iter().map(|option| (*option).to_owned()).collect()),
            ..SystemInfo::default()
        };
        let failing = |info: &SystemInfo| -> Vec<String> {
            engine_checks(info, "1.3.3")
                .into_iter()
                .filter(|check| !check.ok && check.required)
                .inspect(|check| assert!(check.fix.contains("daemon.json"), "{check:?}"))
                .map(|check| check.name)
                .collect()
        };
        assert_eq!(failing(&engine(&["name=seccomp,profile=default"])), Vec::<String>::new());
        assert_eq!(failing(&engine(&["name=seccomp,profile=builtin", "name=userns"])), ["userns-remap"]);
        assert_eq!(failing(&engine(&["name=seccomp,profile=unconfined"])), ["seccomp"]);
        assert_eq!(failing(&engine(&["name=apparmor"])), ["seccomp"]);
    }

    #[test]
    fn a_probe_that_sees_too_much_fails_by_name() {
        let good = || Probe {
            uid: "10001".into(),
            gid: "10001".into(),
            cap_eff: "0000000000000000".into(),
            cap_bnd: "0000000000000000".into(),
            no_new_privs: "1".into(),
            seccomp: "2".into(),
            interfaces: vec!["lo".into()],
            root_writable: false,
            tmp_writable: true,
            workspace_writable: true,
            sockets: Vec::new(),
            mount_flags: vec!["/zeblit/home rw,nosuid,nodev".into()],
            socket_error: String::new(),
            unknown_family: 1,
        };
        let failing = |probe: Probe| -> Vec<String> {
            compare_probe(&probe, (10001, 10001), None)
                .into_iter()
                .filter(|check| !check.ok)
                .map(|check| check.name)
                .collect()
        };
        assert_eq!(failing(good()), Vec::<String>::new());
        assert_eq!(
            failing(Probe { cap_eff: "00000000a80425fb".into(), ..good() }),
            ["inside: no capabilities"]
        );
        assert_eq!(
            failing(Probe { interfaces: vec!["lo".into(), "eth0".into()], ..good() }),
            ["inside: no network"]
        );
        assert_eq!(failing(Probe { uid: "0".into(), ..good() }), ["inside: user"]);
        assert_eq!(failing(Probe { root_writable: true, ..good() }), ["inside: read-only root"]);
        let flags = Probe { mount_flags: vec!["/zeblit/home rw,relatime".into()], ..good() };
        assert_eq!(failing(Probe { unknown_family: 97, ..good() }), ["inside: our own list of system calls"]);
        let soft = compare_probe(&flags, (10001, 10001), None).into_iter().find(|check| !check.ok).unwrap();
        assert!(!soft.required && soft.found.contains("/zeblit/home"));
        let mounts = ["/zeblit/home rw,nosuid,nodev", "/zeblit/shim ro,relatime"].map(str::to_owned);
        let [writable, read_only] = flag_checks(&mounts);
        assert!(writable.ok && !read_only.ok && read_only.found == "not /zeblit/shim", "{read_only:?}");
    }

    #[test]
    fn gvisor_without_its_flag_is_named_with_the_flag() {
        let probe = |error: &str| Probe {
            uid: "10001".into(),
            gid: "10001".into(),
            cap_eff: "0".into(),
            cap_bnd: "0".into(),
            no_new_privs: "1".into(),
            seccomp: "0".into(),
            interfaces: vec!["lo".into()],
            root_writable: false,
            tmp_writable: true,
            workspace_writable: true,
            sockets: Vec::new(),
            mount_flags: Vec::new(),
            socket_error: error.into(),
            unknown_family: 97,
        };
        let failing = |error: &str, runtime| -> Vec<Check> {
            let checks = compare_probe(&probe(error), (10001, 10001), runtime);
            checks.into_iter().filter(|check| !check.ok && check.required).collect()
        };
        let refused = "Connection refused (os error 111)";
        let found = failing(refused, Some("runsc"));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].fix.contains("--host-uds=open") && found[0].found.contains("Connection refused"));
        assert_eq!(failing("", Some("runsc")), []);
        let found = failing(refused, None);
        assert!(found.iter().any(|check| check.name.contains("socket") && !check.fix.contains("runsc")));
        assert_eq!(found.len(), 3, "with runc the filters are required: {found:?}");
    }

    #[tokio::test]
    async fn an_engine_that_is_not_there_is_a_check_with_its_fix() {
        let folder = tempfile::tempdir().unwrap();
        for host in ["unix:///nonexistent/docker.sock", "http://127.0.0.1:1", "ftp://x"] {
            let sandbox = DockerSandbox::connect(DockerOptions {
                docker_host: host.into(),
                instance: "test".into(),
                shim_folder: folder.path().to_owned(),
                owner: None,
                image: "zeblit-agent:latest".into(),
                runtime: None,
                warm: None,
            });
            let checks = sandbox.self_check().await;
            assert!(checks.iter().any(|check| !check.ok && check.required && check.fix.contains("docker")));
            let error = sandbox.list().await.unwrap_err();
            assert!(matches!(error, SandboxError::Unavailable { .. }), "{error:?}");
        }
    }
}
