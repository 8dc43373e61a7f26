//! Purpose: attempts as plain processes of this machine, for the demo's own recipe only: no isolation.
//!
//! The same shim runs as a process group. Everything to adopt it after a restart stands in
//! `<folder>/<slot>/`: `process.json` (who), `lines` (its output), `exit` (how it ended).

use super::docker::own_ids;
use super::gate::Gate;
use super::lines::{LineBuffer, LineReader};
use super::{Check, Duty, Listed, Polled, Sandbox, SandboxError, SandboxSpec, Status, shim_file, wire_job};
use crate::domain::ids::{RunId, SlotId};
use crate::shim::{self, signal, variables};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks at the output file.
const LOOK_INTERVAL: Duration = Duration::from_millis(25);
/// One read of the output file.
const READ_BYTES: usize = 256 * 1024;
/// How often a stopped shim is looked at until it stands still, and the time between.
const STOP_LOOKS: usize = 50;
const STOP_INTERVAL: Duration = Duration::from_millis(1);
const EXIT_FILE: &str = "exit";
const LINES_FILE: &str = "lines";
const RECORD_FILE: &str = "process.json";
/// Processes that one stop looks through; the kernel's default limit of process ids.
const MAX_PROCESSES: usize = 4_194_304;

/// Who runs in a slot; the start time tells a process id from its successor's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    slot: String,
    run: String,
    pid: i32,
    start_time: u64,
}

/// How far a slot's output has been read.
#[derive(Debug, Default)]
struct Reading {
    offset: u64,
    reader: LineReader,
    buffer: LineBuffer,
}

/// The shim as a child process, with host paths.
#[derive(Debug)]
pub struct ProcessSandbox {
    folder: PathBuf,
    shim_folder: PathBuf,
    gates: Mutex<HashMap<SlotId, Gate>>,
    readings: Mutex<HashMap<SlotId, Reading>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> SandboxError {
    let path = path.to_owned();
    move |source| SandboxError::Io { operation, path, source }
}

/// State letter, parent and start time from `/proc/<pid>/stat`.
fn process_stat(pid: i32) -> Option<(char, i32, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in brackets and may hold anything: the fields begin after the last one.
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    // Start time is field 22 of the line: the 18th after the parent.
    let start_time = fields.nth(17)?.parse().ok()?;
    Some((state, parent, start_time))
}

/// Whether the process of the record still runs.
fn is_alive(record: &Record) -> bool {
    process_stat(record.pid)
        .is_some_and(|(state, _, start_time)| start_time == record.start_time && !matches!(state, 'Z' | 'X'))
}

/// All processes below `pid`, nearest first.
fn descendants_of(pid: i32) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let processes: Vec<(i32, i32)> = entries
        .flatten()
        .take(MAX_PROCESSES)
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|process| Some((process, process_stat(process)?.1)))
        .collect();
    let mut found = vec![pid];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        let children = processes.iter().filter(|(child, above)| *above == parent && !found.contains(child));
        let children: Vec<i32> = children.map(|(child, _)| *child).collect();
        found.extend(children);
        at += 1;
    }
    found.remove(0);
    found
}

impl ProcessSandbox {
    /// Keeps its records below `folder` and the shim in `shim_folder`.
    pub fn new(folder: PathBuf, shim_folder: PathBuf) -> Self {
        Self { folder, shim_folder, gates: Mutex::default(), readings: Mutex::default() }
    }

    fn slot_folder(&self, slot: &SlotId) -> Result<PathBuf, SandboxError> {
        let name = slot.as_str();
        let plain = !name.is_empty()
            && name.len() <= 100
            && !name.starts_with('.')
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
        if plain {
            Ok(self.folder.join(name))
        } else {
            let detail =
                format!("slot `{}` is no name of a folder", name.chars().take(80).collect::<String>());
            Err(SandboxError::Engine { operation: "name", detail })
        }
    }

    fn record(folder: &Path) -> Option<Record> {
        serde_json::from_slice(&std::fs::read(folder.join(RECORD_FILE)).ok()?).ok()
    }

    fn spawn(&self, spec: &SandboxSpec, folder: &Path) -> Result<Record, SandboxError> {
        let shim = shim_file::write(&self.shim_folder)?;
        let lines = folder.join(LINES_FILE);
        let output = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&lines)
            .map_err(io_error("open the output file", &lines))?;
        let refused = |detail| SandboxError::Engine { operation: "job", detail };
        let mut command = std::process::Command::new(&shim);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()));
        match &spec.duty {
            Duty::Agent(_) => command.arg("agent"),
            Duty::Collect(_) => command
                .arg("collect")
                .envs(shim::job_to_environment(&wire_job(&spec.duty, &spec.limits)).map_err(refused)?),
        };
        command
            .env(variables::WORKSPACE, &spec.workspace)
            .env(variables::OUTPUT, &spec.output)
            .env(variables::HOME, &spec.home)
            .env(variables::OBJECTS, &spec.objects)
            .env(variables::EXIT_FILE, folder.join(EXIT_FILE));
        if let Some(sockets) = &spec.sockets {
            command.env(variables::SOCKETS, sockets);
        }
        // Its own group: a Ctrl-C at the server's terminal must not end a run.
        command.process_group(0).stdin(Stdio::null()).stdout(output).stderr(Stdio::null());
        let mut child = command.spawn().map_err(io_error("start the shim", &shim))?;
        let pid = i32::try_from(child.id()).map_err(|error| refused(error.to_string()))?;
        let start_time = process_stat(pid).map_or(0, |(_, _, start_time)| start_time);
        // Reaped when it ends; after a restart of ours the system does it. A plain thread: the runtime's
        // own would hold up the server's exit until the run ends.
        let _ = std::thread::Builder::new().name("reap".into()).spawn(move || child.wait());
        Ok(Record { slot: spec.slot.as_str().to_owned(), run: spec.run.as_str().to_owned(), pid, start_time })
    }

    /// Reads what is new and answers: lines, whether there are more, whether the agent has started, whether memory ran out.
    fn read(
        &self,
        slot: &SlotId,
        folder: &Path,
        cursor: i64,
    ) -> Result<(Vec<super::Line>, bool, bool, bool), SandboxError> {
        let mut readings = lock(&self.readings);
        let reading = readings.entry(slot.clone()).or_default();
        if reading.buffer.has_forgotten_after(cursor) {
            *reading = Reading { buffer: LineBuffer::after(cursor), ..Reading::default() };
        }
        reading.buffer.forget(cursor);
        let path = folder.join(LINES_FILE);
        let mut file = std::fs::File::open(&path).map_err(io_error("read the output file", &path))?;
        file.seek(SeekFrom::Start(reading.offset)).map_err(io_error("read the output file", &path))?;
        let mut chunk = vec![0; READ_BYTES];
        let mut unread = true;
        while !reading.buffer.is_full() {
            let read = file.read(&mut chunk).map_err(io_error("read the output file", &path))?;
            if read == 0 {
                unread = false;
                break;
            }
            reading.offset += u64::try_from(read).unwrap_or(0);
            for line in reading.reader.push(chunk.get(..read).unwrap_or_default()) {
                reading.buffer.push(line);
            }
        }
        let (lines, more) = reading.buffer.answer();
        Ok((lines, more || unread, reading.buffer.started, reading.buffer.out_of_memory))
    }

    /// Stops the shim first, so that it starts nothing more, then ends all that it started and itself.
    fn kill(record: &Record) {
        if !is_alive(record) {
            return;
        }
        let _ = signal::send(record.pid, signal::SIGSTOP);
        // The signal takes effect a moment later.
        for _ in 0..STOP_LOOKS {
            match process_stat(record.pid) {
                Some((state, _, _)) if !matches!(state, 'T' | 'Z' | 'X') => std::thread::sleep(STOP_INTERVAL),
                _ => break,
            }
        }
        for child in descendants_of(record.pid) {
            let _ = signal::send(-child, signal::SIGKILL);
            let _ = signal::send(child, signal::SIGKILL);
        }
        let _ = signal::send(record.pid, signal::SIGKILL);
    }
}

#[async_trait]
impl Sandbox for ProcessSandbox {
    fn kind(&self) -> &'static str {
        "process"
    }

    fn objects_path_inside(&self, host_objects: &Path) -> PathBuf {
        host_objects.to_owned()
    }

    fn inside(&self, spec: &SandboxSpec) -> (PathBuf, PathBuf) {
        (spec.workspace.clone(), spec.home.clone())
    }

    #[tracing::instrument(skip_all, fields(slot = %spec.slot, run = %spec.run))]
    async fn start(&self, spec: &SandboxSpec) -> Result<String, SandboxError> {
        let folder = self.slot_folder(&spec.slot)?;
        let refused = |detail| SandboxError::Engine { operation: "job", detail };
        let existing = Self::record(&folder);
        if let Some(record) = existing.as_ref().filter(|record| !is_alive(record)) {
            return Ok(record.pid.to_string());
        }
        if matches!(spec.duty, Duty::Agent(_)) {
            let sockets = spec
                .sockets
                .as_ref()
                .ok_or_else(|| refused("an agent needs a sockets folder: its job waits there".into()))?;
            let job = wire_job(&spec.duty, &spec.limits).encode().map_err(refused)?;
            // The old gate first: its drop removes the socket of the new one otherwise.
            lock(&self.gates).remove(&spec.slot);
            let gate = Gate::open(sockets)?;
            gate.give(job);
            lock(&self.gates).insert(spec.slot.clone(), gate);
        }
        if let Some(record) = existing {
            return Ok(record.pid.to_string());
        }
        std::fs::create_dir_all(&folder).map_err(io_error("make the slot's folder", &folder))?;
        let record = self.spawn(spec, &folder)?;
        let text = serde_json::to_vec(&record).map_err(|error| refused(error.to_string()))?;
        let aside = folder.join("process.new");
        let path = folder.join(RECORD_FILE);
        std::fs::write(&aside, text).and_then(|()| std::fs::rename(&aside, &path)).map_err(|error| {
            // A process that nobody could find again must not stay.
            Self::kill(&record);
            io_error("write the process record", &path)(error)
        })?;
        Ok(record.pid.to_string())
    }

    async fn poll(&self, slot: &SlotId, cursor: i64, wait: Duration) -> Result<Polled, SandboxError> {
        let folder = self.slot_folder(slot)?;
        let deadline = Instant::now() + wait;
        loop {
            let Some(record) = Self::record(&folder) else {
                return Ok(Polled { lines: Vec::new(), status: Status::Gone });
            };
            // Asked before reading: what was written before the end is then read for certain.
            let alive = is_alive(&record);
            let (lines, more, started, out_of_memory) = self.read(slot, &folder, cursor)?;
            if started || !alive {
                lock(&self.gates).remove(slot);
            }
            if !alive && !more {
                let code = std::fs::read_to_string(folder.join(EXIT_FILE)).ok();
                // Without the file it was killed, as a container would be: 128 + SIGKILL.
                let code = code.and_then(|text| text.trim().parse().ok()).unwrap_or(137);
                return Ok(Polled { lines, status: Status::Exited { code, out_of_memory } });
            }
            if !lines.is_empty() || Instant::now() >= deadline {
                return Ok(Polled { lines, status: Status::Running });
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    async fn stop(&self, slot: &SlotId) -> Result<(), SandboxError> {
        let folder = self.slot_folder(slot)?;
        lock(&self.gates).remove(slot);
        if let Some(record) = Self::record(&folder) {
            Self::kill(&record);
        }
        Ok(())
    }

    async fn remove(&self, slot: &SlotId) -> Result<(), SandboxError> {
        self.stop(slot).await?;
        lock(&self.readings).remove(slot);
        let folder = self.slot_folder(slot)?;
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(io_error("remove the slot's folder", &folder)(error))
            }
            _ => Ok(()),
        }
    }

    async fn list(&self) -> Result<Vec<Listed>, SandboxError> {
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(io_error("list the slots", &self.folder)(error)),
        };
        Ok(entries
            .flatten()
            .filter_map(|entry| Self::record(&entry.path()))
            .map(|record| Listed {
                running: is_alive(&record),
                container: record.pid.to_string(),
                slot: SlotId::new(record.slot),
                run: Some(RunId::new(record.run)),
            })
            .collect())
    }

    async fn self_check(&self) -> Vec<Check> {
        let git = tokio::process::Command::new("git").arg("--version").stdin(Stdio::null()).output().await;
        let git = git.ok().filter(|output| output.status.success());
        let shim = shim_file::write(&self.shim_folder);
        vec![
            Check {
                name: "isolation".into(),
                ok: false,
                required: false,
                found: "none: runs are plain processes of this machine".into(),
                fix: "install Docker (sudo apt-get install docker.io) and set `sandbox.kind = \"docker\"`"
                    .into(),
            },
            Check {
                name: "git".into(),
                ok: git.is_some(),
                required: true,
                found: git.as_ref().map_or_else(
                    || "not found".to_owned(),
                    |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
                ),
                fix: if git.is_some() { String::new() } else { "sudo apt-get install git".into() },
            },
            Check {
                name: "shim".into(),
                ok: shim.is_ok(),
                required: true,
                found: shim.as_ref().map_or_else(ToString::to_string, |path| path.display().to_string()),
                fix: if shim.is_ok() {
                    String::new()
                } else {
                    "make the folder writable for this user".into()
                },
            },
        ]
    }

    fn owner(&self) -> (u32, u32) {
        own_ids()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::{CollectJob, Job, Limits, Line, LineSource};
    use std::process::Command;

    struct World {
        folder: tempfile::TempDir,
        base: String,
    }

    fn git(folder: &Path, arguments: &[&str]) -> String {
        let out = Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@localhost"])
            .args(arguments)
            .current_dir(folder)
            .output()
            .unwrap();
        assert!(out.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            for name in ["workspace", "output", "home", "sockets"] {
                std::fs::create_dir(folder.path().join(name)).unwrap();
            }
            let workspace = folder.path().join("workspace");
            git(&workspace, &["init", "-q", "-b", "main"]);
            std::fs::write(workspace.join("a.txt"), "one\n").unwrap();
            git(&workspace, &["add", "-A"]);
            git(&workspace, &["commit", "-q", "-m", "base"]);
            let base = git(&workspace, &["rev-parse", "HEAD"]);
            Self { folder, base }
        }

        fn at(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn sandbox(&self) -> ProcessSandbox {
            ProcessSandbox::new(self.at("slots"), self.at("shim"))
        }

        fn collect_job(&self) -> CollectJob {
            CollectJob { base: self.base.clone(), message: "Change".into(), ..CollectJob::default() }
        }

        fn agent(&self, slot: &str, script: &str) -> SandboxSpec {
            let job = Job {
                argv: vec!["sh".into(), "-c".into(), script.into()],
                env: vec![("WORD".into(), "given".into())],
                stdin: b"from stdin\n".to_vec(),
                home_files: vec![("note".into(), b"at home".to_vec())],
                collect: self.collect_job(),
                ..Job::default()
            };
            self.spec(slot, Duty::Agent(job))
        }

        fn spec(&self, slot: &str, duty: Duty) -> SandboxSpec {
            SandboxSpec {
                slot: SlotId::new(slot),
                run: RunId::new("r1"),
                image: String::new(),
                limits: Limits { memory_bytes: 1 << 30, millicpus: 1000, pids: 100, log_bytes: 1 << 20 },
                sockets: matches!(duty, Duty::Agent(_)).then(|| self.at("sockets")),
                duty,
                workspace: self.at("workspace"),
                output: self.at("output"),
                home: self.at("home"),
                objects: self.at("workspace/.git/objects"),
                cache: None,
            }
        }

        fn has_bundle(&self) -> bool {
            self.at("output/changes.bundle").exists()
        }
    }

    async fn until_end(sandbox: &ProcessSandbox, slot: &SlotId, mut cursor: i64) -> (Vec<Line>, Status) {
        let mut all = Vec::new();
        loop {
            let polled = sandbox.poll(slot, cursor, Duration::from_secs(20)).await.unwrap();
            cursor = polled.lines.last().map_or(cursor, |line| line.n);
            all.extend(polled.lines);
            if polled.status != Status::Running {
                return (all, polled.status);
            }
        }
    }

    async fn until_line(sandbox: &ProcessSandbox, slot: &SlotId, text: &str) -> i64 {
        let mut cursor = 0;
        loop {
            let polled = sandbox.poll(slot, cursor, Duration::from_secs(20)).await.unwrap();
            for line in polled.lines {
                cursor = line.n;
                if line.text == text {
                    return cursor;
                }
            }
            assert_eq!(polled.status, Status::Running, "ended without the line `{text}`");
        }
    }

    #[tokio::test]
    async fn a_job_runs_with_exactly_its_environment_and_leaves_a_bundle() {
        let world = World::new();
        let sandbox = world.sandbox();
        let spec = world.agent(
            "s1",
            "cat; cat \"$HOME/note\"; echo; echo $WORD >>a.txt; env | cut -d= -f1 | sort | tr '\\n' ' '; echo no >&2; exit 3",
        );
        sandbox.start(&spec).await.unwrap();
        let (lines, status) = until_end(&sandbox, &spec.slot, 0).await;
        assert_eq!(status, Status::Exited { code: 0, out_of_memory: false });
        let texts = |source: LineSource| -> Vec<&str> {
            lines.iter().filter(|line| line.source == source).map(|line| line.text.as_str()).collect()
        };
        let out = texts(LineSource::Stdout);
        assert_eq!(out[..2], ["from stdin", "at home"]);
        assert_eq!(out[2].trim(), "HOME PATH PWD TMPDIR WORD");
        assert_eq!(texts(LineSource::Stderr), ["no"]);
        let shim = texts(LineSource::Shim);
        assert!(shim[0].contains("started") && shim[1].contains("\"code\":3"), "{shim:?}");
        assert_eq!(shim[2], "{\"event\":\"collected\",\"commits\":1}");
        assert!(world.has_bundle());
        assert!(!world.at("sockets/gate.sock").exists());
        let numbers: Vec<i64> = lines.iter().map(|line| line.n).collect();
        assert_eq!(numbers, (1..=i64::try_from(lines.len()).unwrap()).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn another_server_adopts_a_running_process_and_reads_on_from_its_cursor() {
        let world = World::new();
        let first = world.sandbox();
        let go = world.at("home/go");
        let script = "echo before; while [ ! -e \"$HOME/go\" ]; do sleep 0.02; done; echo after";
        let spec = world.agent("s1", script);
        let id = first.start(&spec).await.unwrap();
        let cursor = until_line(&first, &spec.slot, "before").await;
        drop(first);
        let second = world.sandbox();
        let listed = second.list().await.unwrap();
        assert_eq!(
            (listed.len(), listed[0].running, listed[0].run.as_ref().map(RunId::as_str)),
            (1, true, Some("r1"))
        );
        assert_eq!(second.start(&spec).await.unwrap(), id);
        std::fs::write(go, "").unwrap();
        let (lines, status) = until_end(&second, &spec.slot, cursor).await;
        assert!(lines.iter().all(|line| line.n > cursor));
        assert_eq!(lines[0].text, "after");
        assert!(matches!(status, Status::Exited { code: 0, .. }));
        second.remove(&spec.slot).await.unwrap();
        assert!(second.list().await.unwrap().is_empty());
        let polled = second.poll(&spec.slot, 0, Duration::ZERO).await.unwrap();
        assert_eq!(polled.status, Status::Gone);
    }

    #[tokio::test]
    async fn a_job_that_was_never_fetched_is_handed_out_by_the_next_server() {
        let world = World::new();
        let first = world.sandbox();
        let spec = world.agent("s1", "echo ran");
        // The gate of the first server closes before the shim can have come.
        first.start(&spec).await.unwrap();
        drop(first);
        let second = world.sandbox();
        second.start(&spec).await.unwrap();
        let (lines, _) = until_end(&second, &spec.slot, 0).await;
        assert!(lines.iter().any(|line| line.text == "ran"));
    }

    #[tokio::test]
    async fn a_stop_kills_the_agent_with_its_children_and_a_collector_keeps_the_work() {
        let world = World::new();
        let sandbox = world.sandbox();
        let spec = world.agent("s1", "echo two >>a.txt; sleep 1000 & echo $!; echo ready; wait");
        sandbox.start(&spec).await.unwrap();
        until_line(&sandbox, &spec.slot, "ready").await;
        let polled = sandbox.poll(&spec.slot, 1, Duration::ZERO).await.unwrap();
        let background: i32 = polled.lines[0].text.parse().unwrap();
        sandbox.stop(&spec.slot).await.unwrap();
        let (_, status) = until_end(&sandbox, &spec.slot, 0).await;
        assert_eq!(status, Status::Exited { code: 137, out_of_memory: false });
        // The kernel may take a moment for what was killed.
        let begun = std::time::Instant::now();
        while process_stat(background).is_some_and(|(state, _, _)| !matches!(state, 'Z' | 'X')) {
            assert!(begun.elapsed() < Duration::from_secs(20), "it was not killed");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(!world.has_bundle());
        let collector = world.spec("s2", Duty::Collect(world.collect_job()));
        sandbox.start(&collector).await.unwrap();
        let (lines, status) = until_end(&sandbox, &collector.slot, 0).await;
        assert_eq!(status, Status::Exited { code: 0, out_of_memory: false }, "{lines:?}");
        assert!(world.has_bundle());
        sandbox.stop(&SlotId::new("never-was")).await.unwrap();
        sandbox.remove(&SlotId::new("never-was")).await.unwrap();
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_an_error_event() {
        let world = World::new();
        let sandbox = world.sandbox();
        let mut spec = world.agent("s1", "");
        if let Duty::Agent(job) = &mut spec.duty {
            job.argv = vec!["/no/such/program".into()];
        }
        sandbox.start(&spec).await.unwrap();
        let (lines, status) = until_end(&sandbox, &spec.slot, 0).await;
        assert_eq!(status, Status::Exited { code: 4, out_of_memory: false });
        assert!(lines[0].text.contains("/no/such/program"), "{lines:?}");
    }

    #[tokio::test]
    async fn what_the_agent_leaves_running_is_ended_before_the_collection() {
        let world = World::new();
        let sandbox = world.sandbox();
        let spec =
            world.agent("s1", "echo x >>a.txt; (while :; do echo x >>a.txt; sleep 0.01; done) & echo done");
        sandbox.start(&spec).await.unwrap();
        let (lines, _) = until_end(&sandbox, &spec.slot, 0).await;
        let events: Vec<_> = lines
            .iter()
            .filter(|line| line.source == LineSource::Shim)
            .map(|line| line.text.as_str())
            .collect();
        assert!(events.last().unwrap().contains("collected"), "{events:?}");
    }

    #[tokio::test]
    async fn slots_that_are_no_folder_names_are_refused() {
        let world = World::new();
        for bad in ["", "..", ".hidden", "a/b"] {
            assert!(world.sandbox().stop(&SlotId::new(bad)).await.is_err(), "{bad}");
        }
    }
}
