//! Purpose: warm slots: containers that were started ahead, their shim waiting at its gate, into which a run's folders are
//! mounted when it comes. Starting a container takes the engine a quarter of a second; entering one takes milliseconds.
//!
//! Each slot has a folder on the host that its container sees as `/zeblit`; what is mounted below it appears inside by
//! propagation. That needs root and the engine's own mount namespace: each entry is compared with what the container
//! really sees, and where it differs the run starts cold.

use super::{DockerSandbox, container_name, lock};
use crate::clock::{IdKind, Ids};
use crate::domain::ids::{RunId, SlotId};
use crate::mount::{self, Access};
use crate::sandbox::gate::Gate;
use crate::sandbox::pool::Pool;
use crate::sandbox::profile::{Setting, Shape};
use crate::sandbox::{Check, Duty, Job, Limits, SandboxError, SandboxSpec, SlotClass, paths};
use futures_util::future::join_all;
use std::collections::HashSet;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// What stands in a slot's folder: mount points.
const FOLDERS: [&str; 6] = ["workspace", "output", "home", "objects", "cache", "sockets"];
const SHIM: &str = "shim";
/// A read-only view of a folder that parts are mounted from.
const VIEW: &str = ".view-";
/// From the engine's answer until the shim is at its gate.
const BOOT_LIMIT: Duration = Duration::from_secs(30);
/// The run that took a slot goes first: refilling costs the engine a quarter of a second of processor time.
const REFILL_DELAY: Duration = Duration::from_millis(50);
/// Of a slot that is only tried.
const PROBE_LIMITS: Limits =
    Limits { memory_bytes: 256 << 20, millicpus: 1000, pids: 64, log_bytes: 1 << 20 };
/// After so many slots in a row that could not be entered, none is started any more: the engine does not see the
/// server's mounts, or the server not the engine's processes.
const MAX_REFUSED: u32 = 3;
/// Without a start, the pool is looked after this often.
const TEND_EVERY: Duration = Duration::from_secs(5);

/// Where the folder of a slot's sockets is.
pub type SocketsOf = Arc<dyn Fn(&SlotId) -> PathBuf + Send + Sync>;

/// How warm slots are made.
#[derive(Clone)]
pub struct WarmOptions {
    /// All together.
    pub most: usize,
    /// Where the folders of slots are.
    pub folder: PathBuf,
    /// Parts of these folders are given to containers read-only.
    pub views: Vec<PathBuf>,
    pub sockets: SocketsOf,
    pub ids: Arc<dyn Ids>,
}

impl std::fmt::Debug for WarmOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WarmOptions")
            .field("most", &self.most)
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

/// A container whose shim waits.
#[derive(Debug)]
pub(super) struct Slot {
    gate: Gate,
    container: String,
    /// Of the shim, on the host.
    pid: i64,
}

impl Slot {
    fn is_good(&self) -> bool {
        self.gate.has_shim()
    }
}

/// The warm slots of this process.
#[derive(Debug)]
pub(super) struct Warm {
    options: WarmOptions,
    pool: Mutex<Pool<Slot>>,
    changed: Notify,
    ready: tokio::sync::OnceCell<()>,
    /// Slots in a row that could not be entered.
    refused: AtomicU32,
}

impl Warm {
    pub fn new(options: WarmOptions) -> Self {
        let pool = Mutex::new(Pool::new(options.most));
        Self {
            options,
            pool,
            changed: Notify::new(),
            ready: tokio::sync::OnceCell::new(),
            refused: AtomicU32::new(0),
        }
    }

    /// Here slots cannot be entered: starting them is of no use.
    fn is_given_up(&self) -> bool {
        self.refused.load(Ordering::Relaxed) >= MAX_REFUSED
    }

    fn folder(&self, slot: &SlotId) -> PathBuf {
        self.options.folder.join(slot.as_str())
    }

    /// The folder of slots as a mount of its own, with its views; once, and not at all without root.
    async fn set_up(&self) -> Result<(), SandboxError> {
        self.ready
            .get_or_try_init(|| async {
                let options = self.options.clone();
                tokio::task::spawn_blocking(move || make_folder(&options))
                    .await
                    .map_err(|error| io::Error::other(error.to_string()))
                    .flatten()
                    .map_err(|source| SandboxError::Io {
                        operation: "make the folder of warm slots",
                        path: self.options.folder.clone(),
                        source,
                    })
            })
            .await
            .copied()
    }

    /// The same place of a host path in its read-only view.
    fn view(&self, path: &Path) -> Option<PathBuf> {
        self.options.views.iter().enumerate().find_map(|(n, from)| {
            let inner = path.strip_prefix(from).ok()?;
            Some(self.options.folder.join(format!("{VIEW}{n}")).join(inner))
        })
    }

    /// What a run's folders are mounted from, and where: (host path, mounted from, name, read-only).
    fn entries<'a>(
        &self,
        spec: &'a SandboxSpec,
    ) -> Result<Vec<(&'a Path, PathBuf, &'static str, bool)>, String> {
        let view = |path: &Path| {
            self.view(path).ok_or_else(|| format!("{} lies in no folder with a view", path.display()))
        };
        let writable = |path: &'a Path, name| (path, path.to_path_buf(), name, false);
        let mut entries = vec![
            writable(&spec.workspace, "workspace"),
            writable(&spec.output, "output"),
            writable(&spec.home, "home"),
            (spec.objects.as_path(), view(&spec.objects)?, "objects", true),
        ];
        if let Some(cache) = &spec.cache {
            entries.push(match cache.writable {
                true => writable(&cache.path, "cache"),
                false => (cache.path.as_path(), view(&cache.path)?, "cache", true),
            });
        }
        Ok(entries)
    }

    /// Mounts a run's folders into a slot and compares them with what its container sees.
    #[tracing::instrument(level = "debug", skip_all)]
    fn mount_in(&self, slot: &Slot, spec: &SandboxSpec) -> Result<(), String> {
        let folder = self.folder(&spec.slot);
        let entries = self.entries(spec)?;
        for (_, from, name, read_only) in &entries {
            let access = if *read_only { Access::Read } else { Access::Write };
            mount::bind(from, &folder.join(name), access)
                .map_err(|error| format!("mount {}: {error}", from.display()))?;
        }
        let seen = mount::of_process(slot.pid);
        for (path, _, name, read_only) in &entries {
            let inside = Path::new(paths::ROOT).join(name);
            let mounted = seen.iter().rfind(|mounted| mounted.point == inside);
            if !mounted.is_some_and(|mounted| mounted.has(if *read_only { "ro" } else { "rw" })) {
                return Err(format!(
                    "{} is not mounted inside as it should be: {mounted:?}",
                    inside.display()
                ));
            }
            let real = PathBuf::from(format!("/proc/{}/root", slot.pid))
                .join(inside.strip_prefix("/").unwrap_or(&inside));
            let same = |path: &Path| path.metadata().map(|found| (found.dev(), found.ino()));
            match (same(&real), same(path)) {
                (Ok(inside), Ok(host)) if inside == host => {}
                (inside, host) => {
                    return Err(format!("{}: inside {inside:?}, here {host:?}", path.display()));
                }
            }
        }
        Ok(())
    }

    /// Takes away a slot's folder with everything that is mounted there; what it was mounted from stays as it is.
    pub fn clear(&self, slot: &SlotId) {
        let folder = self.folder(slot);
        if folder.symlink_metadata().is_ok()
            && let Err(error) = clear_folder(&folder)
        {
            tracing::warn!(%slot, %error, "the folder of a warm slot stays");
        }
    }
}

/// Only ever empty folders: nothing is deleted through a mount.
fn clear_folder(folder: &Path) -> io::Result<()> {
    for name in FOLDERS {
        let place = folder.join(name);
        mount::unmount(&place)?;
        remove(std::fs::remove_dir(&place))?;
    }
    remove(std::fs::remove_file(folder.join(SHIM)))?;
    remove(std::fs::remove_dir(folder))
}

fn remove(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn make_folder(options: &WarmOptions) -> io::Result<()> {
    std::fs::create_dir_all(&options.folder)?;
    mount::share(&options.folder)?;
    for (n, from) in options.views.iter().enumerate() {
        let view = options.folder.join(format!("{VIEW}{n}"));
        std::fs::create_dir_all(from)?;
        std::fs::create_dir_all(&view)?;
        if mount::flags_at(&view).is_none() {
            mount::bind(from, &view, Access::Read)?;
        }
    }
    Ok(())
}

/// The empty folder of a slot.
fn make_slot(folder: &Path) -> io::Result<()> {
    std::fs::create_dir(folder)?;
    for name in FOLDERS {
        std::fs::create_dir(folder.join(name))?;
    }
    std::fs::write(folder.join(SHIM), b"")?;
    // The container's user goes through it, whatever this process's umask is.
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))
}

impl DockerSandbox {
    pub(super) fn take_warm(&self, class: &SlotClass) -> Option<SlotId> {
        let warm = self.warm.as_ref().filter(|warm| !warm.is_given_up())?;
        let taken = lock(&warm.pool).take(class, Instant::now(), Slot::is_good);
        warm.changed.notify_one();
        taken
    }

    /// Gives the run's folders and its job to the warm slot that was taken for it. `None`: there is no such slot, or it
    /// cannot be entered and is gone: the run starts cold.
    #[tracing::instrument(level = "debug", skip_all)]
    pub(super) async fn enter(&self, spec: &SandboxSpec, job: &[u8]) -> Result<Option<String>, SandboxError> {
        let Some(warm) = &self.warm else { return Ok(None) };
        let Some(slot) = lock(&warm.pool).enter(&spec.slot) else { return Ok(None) };
        let (here, spec) = (Arc::clone(warm), spec.clone());
        let entering = tokio::task::spawn_blocking(move || {
            let entered = here.mount_in(&slot, &spec);
            (slot, spec, entered)
        });
        let (slot, spec, entered) = entering.await.map_err(|error| SandboxError::Engine {
            operation: "enter a warm slot",
            detail: error.to_string(),
        })?;
        match entered {
            Ok(()) => {
                warm.refused.store(0, Ordering::Relaxed);
                slot.gate.give(job.to_vec());
                lock(&self.gates).insert(spec.slot.clone(), slot.gate);
                Ok(Some(slot.container))
            }
            Err(detail) => {
                tracing::warn!(slot = %spec.slot, detail, "a warm slot cannot be entered: the run starts cold");
                if warm.refused.fetch_add(1, Ordering::Relaxed) + 1 == MAX_REFUSED {
                    tracing::error!(
                        "no slot can be entered here: every run starts cold until the next start of the server"
                    );
                    warm.changed.notify_one();
                }
                self.remove_named(&container_name(&spec.slot)?).await?;
                drop(slot);
                warm.clear(&spec.slot);
                Ok(None)
            }
        }
    }

    /// See `Sandbox::tend`.
    pub(super) async fn tend_warm(&self, usual: &SlotClass) {
        let Some(warm) = &self.warm else { return };
        if warm.options.most == 0 {
            return;
        }
        if !warm.ready.initialized() {
            if let Err(error) = warm.set_up().await {
                tracing::info!(%error, "no warm slots: every run starts cold");
                return;
            }
            self.clear_leftovers(warm).await;
        }
        if warm.is_given_up() {
            let waiting = lock(&warm.pool).clear();
            join_all(waiting.iter().map(|slot| self.remove_warm(slot))).await;
            return;
        }
        loop {
            let surplus = lock(&warm.pool).surplus(usual, Instant::now(), Slot::is_good);
            for (id, slot) in surplus {
                drop(slot);
                self.remove_warm(&id).await;
            }
            let mut missing = lock(&warm.pool).missing(usual, Instant::now());
            if missing.is_empty() {
                return;
            }
            missing.truncate(self.cores);
            join_all(missing.iter().map(|class| self.add(warm, class))).await;
        }
    }

    pub(super) async fn untended_warm(&self) {
        let Some(warm) = &self.warm else { return std::future::pending().await };
        // Either way there is something to look at.
        let _ = tokio::time::timeout(TEND_EVERY, warm.changed.notified()).await;
        tokio::time::sleep(REFILL_DELAY).await;
    }

    pub(super) fn waiting_warm(&self) -> Vec<SlotId> {
        self.warm.as_ref().map_or_else(Vec::new, |warm| lock(&warm.pool).waiting())
    }

    /// Removes what waits, and the mounts when no slot is left.
    pub(super) async fn retire_warm(&self) {
        let Some(warm) = &self.warm else { return };
        let waiting = lock(&warm.pool).clear();
        join_all(waiting.iter().map(|slot| self.remove_warm(slot))).await;
        if !warm.ready.initialized() {
            return;
        }
        let folder = &warm.options.folder;
        let names = std::fs::read_dir(folder).into_iter().flatten().flatten();
        if names.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.')).count() > 0 {
            return;
        }
        let views = (0..warm.options.views.len()).map(|n| folder.join(format!("{VIEW}{n}")));
        for place in views.chain([folder.clone()]) {
            if let Err(error) = mount::unmount(&place) {
                tracing::warn!(path = %place.display(), %error, "a mount of the warm slots stays");
            }
        }
    }

    async fn remove_warm(&self, slot: &SlotId) {
        if let Err(error) = self.remove_slot(slot).await {
            tracing::warn!(%slot, %error, "a warm slot stays for the sweeper");
        }
        if let Some(warm) = &self.warm {
            let _ = std::fs::remove_dir_all((warm.options.sockets)(slot));
        }
    }

    /// Folders of slots whose containers are gone (an earlier process died, the machine was restarted).
    async fn clear_leftovers(&self, warm: &Warm) {
        let folders = std::fs::read_dir(&warm.options.folder).into_iter().flatten().flatten();
        let found: Vec<SlotId> = folders
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| !name.starts_with('.'))
            .map(SlotId::new)
            .collect();
        if found.is_empty() {
            return;
        }
        use crate::sandbox::Sandbox;
        let Ok(listed) = self.list().await else { return };
        let there: HashSet<&SlotId> = listed.iter().map(|container| &container.slot).collect();
        found.iter().filter(|slot| !there.contains(slot)).for_each(|slot| warm.clear(slot));
    }

    async fn add(&self, warm: &Warm, class: &SlotClass) {
        let slot = SlotId::new(warm.options.ids.next(IdKind::Slot));
        lock(&warm.pool).began(class, &slot);
        let begun = Instant::now();
        match self.boot(warm, class, &slot).await {
            Ok(made) => {
                tracing::debug!(%slot, image = class.image, ms = begun.elapsed().as_millis(), "a slot is warm");
                lock(&warm.pool).ready(class, &slot, made);
            }
            Err(error) => {
                tracing::warn!(%error, image = class.image, "a warm slot could not be started");
                self.remove_warm(&slot).await;
                lock(&warm.pool).failed(class, &slot, Instant::now());
            }
        }
    }

    async fn boot(&self, warm: &Warm, class: &SlotClass, slot: &SlotId) -> Result<Slot, SandboxError> {
        let name = container_name(slot)?;
        let (folder, sockets) = (warm.folder(slot), (warm.options.sockets)(slot));
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |source| SandboxError::Io { operation: "make a warm slot", path, source }
        };
        make_slot(&folder).map_err(io(&folder))?;
        let gate = Gate::open(&sockets)?;
        std::fs::set_permissions(&sockets, std::fs::Permissions::from_mode(0o711)).map_err(io(&sockets))?;
        let setting = Setting {
            instance: &self.options.instance,
            shim: self.shim().await?,
            owner: self.owner,
            runtime: self.options.runtime.as_deref(),
            mode: "agent",
            job: Vec::new(),
        };
        {
            let _permit = self.permit().await?;
            self.create_and_start(&name, &Shape::of_slot(slot, class, &folder, &sockets), &setting).await?;
        }
        let failed =
            |detail: &str| SandboxError::Engine { operation: "start a warm slot", detail: detail.into() };
        tokio::time::timeout(BOOT_LIMIT, gate.reached())
            .await
            .map_err(|_| failed("its shim did not come to the gate"))?;
        let found = self.inspect_existing(&name).await?;
        let container = found.id.ok_or_else(|| failed("it has no id"))?;
        let pid = found.state.and_then(|state| state.pid).filter(|pid| *pid > 0);
        Ok(Slot { gate, container, pid: pid.ok_or_else(|| failed("it has no process"))? })
    }

    /// Whether slots can be kept warm here: one is started and entered, and everything goes again.
    pub(super) async fn warm_check(&self) -> Option<Check> {
        let warm = self.warm.as_ref()?;
        let most = warm.options.most;
        // A server that works here has it mounted, and goes on with it.
        let is_used = mount::flags_at(&warm.options.folder).is_some();
        let (ok, found) = match most {
            0 => (true, "off (`sandbox.warm_slots = 0`)".to_owned()),
            _ => match self.try_warm(warm).await {
                Ok(()) => (true, format!("at most {most}; one was started and entered")),
                Err(problem) => (false, problem),
            },
        };
        if !is_used && let Err(error) = mount::unmount_below(&warm.options.folder) {
            tracing::warn!(%error, "mounts of the check stay");
        }
        let fix = "every run starts cold, which takes a quarter of a second longer: run `zeblit serve` as root on the engine's own host and in its mount namespace, or set `sandbox.warm_slots = 0`";
        Some(Check {
            name: "warm slots".into(),
            ok,
            required: false,
            found,
            fix: if ok { String::new() } else { fix.into() },
        })
    }

    async fn try_warm(&self, warm: &Warm) -> Result<(), String> {
        make_folder(&warm.options).map_err(|error| format!("{}: {error}", warm.options.folder.display()))?;
        let slot = SlotId::new(warm.options.ids.next(IdKind::Slot));
        let class = SlotClass { image: self.options.image.clone(), limits: PROBE_LIMITS };
        let entered = match self.boot(warm, &class, &slot).await {
            Ok(made) => self.try_entry(warm, &made, &slot, &class),
            Err(error) => Err(error.to_string()),
        };
        self.remove_warm(&slot).await;
        entered
    }

    /// Mounts folders of nobody into a slot, as a run's would be.
    fn try_entry(&self, warm: &Warm, made: &Slot, slot: &SlotId, class: &SlotClass) -> Result<(), String> {
        let folder = self.options.shim_folder.join(format!("probe-{slot}"));
        let objects = warm.options.views.first().cloned().unwrap_or_default();
        let spec = SandboxSpec {
            slot: slot.clone(),
            run: RunId::new("probe"),
            image: class.image.clone(),
            limits: class.limits.clone(),
            duty: Duty::Agent(Job::default()),
            workspace: folder.join("workspace"),
            output: folder.join("output"),
            home: folder.join("home"),
            sockets: None,
            objects,
            cache: None,
        };
        let prepared =
            [&spec.workspace, &spec.output, &spec.home].into_iter().try_for_each(std::fs::create_dir_all);
        let entered = prepared.map_err(|error| error.to_string()).and_then(|()| warm.mount_in(made, &spec));
        // The mounts first: nothing is deleted through one.
        warm.clear(slot);
        let _ = std::fs::remove_dir_all(&folder);
        entered
    }
}
