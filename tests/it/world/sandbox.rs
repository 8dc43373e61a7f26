//! A sandbox whose agents are scripts: they change real files in the real workspace, and what the shim
//! would do at the end (commit, bundle) is done with real Git.

use async_trait::async_trait;
use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use zeblit::domain::ids::{RunId, SlotId};
use zeblit::sandbox::*;

type Deed = Arc<dyn Fn(&Path) + Send + Sync>;

/// What the next agent does.
#[derive(Clone)]
pub struct Script {
    /// Files to write (`None` removes), below the workspace.
    edits: Vec<(String, Option<String>)>,
    /// Anything else done in the workspace.
    deed: Option<Deed>,
    /// Printed lines.
    lines: Vec<String>,
    ending: Ending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Exit(i64),
    /// Runs until it is stopped.
    Hang,
    OutOfMemory,
    /// The engine loses the container.
    Vanish,
    /// The engine refuses to start it.
    NoStart,
    /// The shim writes whatever bytes instead of a bundle.
    Bytes,
    /// The agent writes the pack instead of the shim.
    Pack(&'static [u8]),
}

impl Script {
    fn new(ending: Ending) -> Self {
        Self { edits: Vec::new(), deed: None, lines: Vec::new(), ending }
    }

    /// Writes a file and ends well.
    pub fn edit(path: &str, content: &str) -> Self {
        Self::new(Ending::Exit(0)).and_edit(path, content)
    }

    pub fn nothing() -> Self {
        Self::new(Ending::Exit(0))
    }

    pub fn fails(code: i64) -> Self {
        Self::new(Ending::Exit(code))
    }

    pub fn hangs() -> Self {
        Self::new(Ending::Hang)
    }

    pub fn runs_out_of_memory() -> Self {
        Self::new(Ending::OutOfMemory)
    }

    pub fn vanishes() -> Self {
        Self::new(Ending::Vanish)
    }

    pub fn does_not_start() -> Self {
        Self::new(Ending::NoStart)
    }

    pub fn leaves_garbage() -> Self {
        Self::new(Ending::Bytes)
    }

    /// Ends well, and this stands in place of the pack.
    pub fn leaves_pack(bytes: &'static [u8]) -> Self {
        Self::new(Ending::Pack(bytes))
    }

    pub fn and_edit(mut self, path: &str, content: &str) -> Self {
        self.edits.push((path.to_owned(), Some(content.to_owned())));
        self
    }

    pub fn and_remove(mut self, path: &str) -> Self {
        self.edits.push((path.to_owned(), None));
        self
    }

    pub fn and_do(mut self, deed: impl Fn(&Path) + Send + Sync + 'static) -> Self {
        self.deed = Some(Arc::new(deed));
        self
    }

    pub fn and_print(mut self, line: &str) -> Self {
        self.lines.push(line.to_owned());
        self
    }
}

#[derive(Debug)]
struct Container {
    spec: SandboxSpec,
    lines: Vec<Line>,
    status: Status,
}

/// See the module's head.
#[derive(Default)]
pub struct FakeSandbox {
    scripts: Mutex<VecDeque<Script>>,
    usual: Mutex<Option<Script>>,
    containers: Mutex<HashMap<String, Container>>,
    /// What running agents use; `None`: it cannot tell.
    consumed: Mutex<Option<Consumed>>,
    /// Every spec that was started, in order.
    started: Mutex<Vec<SandboxSpec>>,
}

impl std::fmt::Debug for FakeSandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FakeSandbox")
    }
}

impl FakeSandbox {
    /// Queues the script of the next agent; agents without one play the usual script, or do nothing.
    pub fn next(&self, script: Script) {
        self.scripts.lock().unwrap().push_back(script);
    }

    /// What every agent does for whom no script is queued.
    pub fn usually(&self, script: Script) {
        *self.usual.lock().unwrap() = Some(script);
    }

    /// How many agents were started (collectors do not count).
    pub fn agents_started(&self) -> usize {
        self.started().iter().filter(|spec| matches!(spec.duty, Duty::Agent(_))).count()
    }

    /// A running agent prints a line.
    pub fn prints(&self, line: &str) {
        for container in self.containers.lock().unwrap().values_mut() {
            if container.status == Status::Running {
                say(container, LineSource::Stdout, line.to_owned());
            }
        }
    }

    /// From now on every running agent uses this.
    pub fn uses(&self, consumed: Consumed) {
        *self.consumed.lock().unwrap() = Some(consumed);
    }

    /// The engine loses every container.
    pub fn loses_all(&self) {
        self.containers.lock().unwrap().clear();
    }

    pub fn started(&self) -> Vec<SandboxSpec> {
        self.started.lock().unwrap().clone()
    }

    pub fn alive(&self) -> usize {
        self.containers.lock().unwrap().len()
    }

    /// Ends a hanging agent well, as if it had finished now.
    pub fn finish_hanging(&self) {
        for container in self.containers.lock().unwrap().values_mut() {
            if container.status == Status::Running {
                end_well(container, 0);
            }
        }
    }
}

fn say(container: &mut Container, source: LineSource, text: String) {
    let n = i64::try_from(container.lines.len()).unwrap() + 1;
    container.lines.push(Line { n, source, text });
}

fn end_well(container: &mut Container, code: i64) {
    say(container, LineSource::Shim, format!("{{\"event\":\"exited\",\"code\":{code}}}"));
    let collect = match &container.spec.duty {
        Duty::Agent(job) if job.setup => {
            say(container, LineSource::Shim, "{\"event\":\"settled\"}".into());
            container.status = Status::Exited { code: 0, out_of_memory: false };
            return;
        }
        Duty::Agent(job) => job.collect.clone(),
        Duty::Collect(job) => job.clone(),
    };
    pack(&container.spec, &collect);
    let commits = collect_with_git(&container.spec, &collect);
    let event = if commits == 0 {
        "{\"event\":\"nothing\"}".to_owned()
    } else {
        format!("{{\"event\":\"collected\",\"commits\":{commits}}}")
    };
    say(container, LineSource::Shim, event);
    container.status = Status::Exited { code: 0, out_of_memory: false };
}

fn git(folder: &Path, args: &[&str]) -> String {
    let out = Command::new("git")
        .current_dir(folder)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", "/nonexistent")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_AUTHOR_NAME", "agent")
        .env("GIT_AUTHOR_EMAIL", "agent@localhost")
        .env("GIT_COMMITTER_NAME", "agent")
        .env("GIT_COMMITTER_EMAIL", "agent@localhost")
        .args(["-c", "safe.directory=*"])
        .args(args)
        .output()
        .unwrap();
    assert!(out.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

/// The shim's own work, with its own code.
fn pack(spec: &SandboxSpec, job: &CollectJob) {
    let folders = zeblit::shim::Folders {
        sockets: spec.sockets.clone().unwrap_or_default(),
        workspace: spec.workspace.clone(),
        output: spec.output.clone(),
        home: spec.home.clone(),
        objects: spec.objects.clone(),
    };
    let wire = zeblit::shim::job::WireJob {
        artifacts: job.artifacts.clone(),
        session: job.session.clone(),
        ..Default::default()
    };
    zeblit::shim::pack::collect(&folders, &wire).unwrap();
    zeblit::shim::collect::keep_out(&folders, &wire.artifacts).unwrap();
}

/// What the shim does at the end of a job.
fn collect_with_git(spec: &SandboxSpec, job: &CollectJob) -> usize {
    let workspace = &spec.workspace;
    git(workspace, &["add", "-A"]);
    if !git(workspace, &["status", "--porcelain"]).is_empty() {
        git(workspace, &["commit", "-q", "-m", &job.message]);
    }
    git(workspace, &["update-ref", "refs/heads/zeblit-result", "HEAD"]);
    let range = format!("{}..refs/heads/zeblit-result", job.base);
    let commits: usize = git(workspace, &["rev-list", "--count", &range]).parse().unwrap();
    if commits > 0 {
        let bundle = spec.output.join(paths::BUNDLE_FILE);
        git(workspace, &["bundle", "create", "-q", &bundle.to_string_lossy(), &range]);
    }
    commits
}

fn act(script: &Script, workspace: &Path) {
    for (path, content) in &script.edits {
        let path = workspace.join(path);
        match content {
            Some(content) => {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(&path, content).unwrap();
            }
            None => std::fs::remove_file(&path).unwrap(),
        }
    }
    if let Some(deed) = &script.deed {
        deed(workspace);
    }
}

#[async_trait]
impl Sandbox for FakeSandbox {
    fn kind(&self) -> &'static str {
        "fake"
    }

    async fn usage(&self, _slot: &SlotId) -> Result<Option<Consumed>, SandboxError> {
        Ok(*self.consumed.lock().unwrap())
    }

    fn objects_path_inside(&self, host_objects: &Path) -> PathBuf {
        host_objects.to_path_buf()
    }

    fn inside(&self, spec: &SandboxSpec) -> (PathBuf, PathBuf) {
        (spec.workspace.clone(), spec.home.clone())
    }

    async fn start(&self, spec: &SandboxSpec) -> Result<String, SandboxError> {
        let mut containers = self.containers.lock().unwrap();
        if containers.contains_key(spec.slot.as_str()) {
            return Ok(format!("c-{}", spec.slot));
        }
        self.started.lock().unwrap().push(spec.clone());
        let mut container = Container { spec: spec.clone(), lines: Vec::new(), status: Status::Running };
        if let Duty::Collect(_) = spec.duty {
            end_well(&mut container, 0);
        } else {
            let queued = self.scripts.lock().unwrap().pop_front();
            let script =
                queued.or_else(|| self.usual.lock().unwrap().clone()).unwrap_or_else(Script::nothing);
            if script.ending == Ending::NoStart {
                return Err(SandboxError::NoImage {
                    image: spec.image.clone(),
                    detail: "no such image".into(),
                });
            }
            say(&mut container, LineSource::Shim, "{\"event\":\"started\",\"pid\":2}".into());
            act(&script, &spec.workspace);
            for line in &script.lines {
                say(&mut container, LineSource::Stdout, line.clone());
            }
            match script.ending {
                Ending::Exit(code) => end_well(&mut container, code),
                Ending::Pack(bytes) => {
                    end_well(&mut container, 0);
                    std::fs::write(spec.output.join(paths::PACK_FILE), bytes).unwrap();
                }
                Ending::Hang | Ending::NoStart => {}
                Ending::OutOfMemory => container.status = Status::Exited { code: 137, out_of_memory: true },
                Ending::Vanish => container.status = Status::Gone,
                Ending::Bytes => {
                    say(&mut container, LineSource::Shim, "{\"event\":\"exited\",\"code\":0}".into());
                    std::fs::write(spec.output.join(paths::BUNDLE_FILE), "no bundle at all").unwrap();
                    container.status = Status::Exited { code: 0, out_of_memory: false };
                }
            }
        }
        containers.insert(spec.slot.to_string(), container);
        Ok(format!("c-{}", spec.slot))
    }

    async fn poll(&self, slot: &SlotId, cursor: i64, _wait: Duration) -> Result<Polled, SandboxError> {
        let containers = self.containers.lock().unwrap();
        Ok(match containers.get(slot.as_str()) {
            None => Polled { lines: Vec::new(), status: Status::Gone },
            Some(container) => Polled {
                lines: container.lines.iter().filter(|line| line.n > cursor).cloned().collect(),
                status: container.status.clone(),
            },
        })
    }

    async fn stop(&self, slot: &SlotId) -> Result<(), SandboxError> {
        if let Some(container) = self.containers.lock().unwrap().get_mut(slot.as_str())
            && container.status == Status::Running
        {
            container.status = Status::Exited { code: 137, out_of_memory: false };
        }
        Ok(())
    }

    async fn remove(&self, slot: &SlotId) -> Result<(), SandboxError> {
        self.containers.lock().unwrap().remove(slot.as_str());
        Ok(())
    }

    async fn list(&self) -> Result<Vec<Listed>, SandboxError> {
        Ok(self
            .containers
            .lock()
            .unwrap()
            .values()
            .map(|container| Listed {
                slot: container.spec.slot.clone(),
                run: Some(RunId::new(container.spec.run.as_str())),
                container: format!("c-{}", container.spec.slot),
                running: container.status == Status::Running,
            })
            .collect())
    }

    async fn self_check(&self) -> Vec<Check> {
        Vec::new()
    }

    fn owner(&self) -> (u32, u32) {
        use std::os::unix::fs::MetadataExt;
        let own = std::fs::metadata("/proc/self").unwrap();
        (own.uid(), own.gid())
    }
}
