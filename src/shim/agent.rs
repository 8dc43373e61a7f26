//! Purpose: start the agent, stream what it says, wait for it, and end everything it left running.

use super::job::WireJob;
use super::output::{Output, Source};
use super::{Folders, bridge, signal};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Component, Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// `PATH` when the job names none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long the pipes may stay open after everything was killed.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);
/// How long killed processes may take to become reapable.
const REAP_PATIENCE: Duration = Duration::from_secs(5);
const REAP_INTERVAL: Duration = Duration::from_millis(2);
/// When memory runs out the kernel shall choose the agent, not this process (range -1000 to 1000).
const AGENT_OOM_SCORE: &str = "500";

/// Runs the job's agent to its end. An error means it did not start: (step, detail).
pub fn run(folders: &Folders, job: &WireJob, output: &Arc<Output>) -> Result<(), (&'static str, String)> {
    for (path, content) in &job.home_files {
        write_home_file(&folders.home, path, content)
            .map_err(|error| ("home", format!("{path}: {error}")))?;
    }
    if let Some(port) = job.bridge_port {
        bridge::start(port, folders.sockets.join("broker.sock"))
            .map_err(|error| ("bridge", format!("127.0.0.1:{port}: {error}")))?;
    }
    if let Some(port) = job.egress_port {
        bridge::start(port, folders.sockets.join("egress.sock"))
            .map_err(|error| ("proxy", format!("127.0.0.1:{port}: {error}")))?;
    }
    for (path, target) in &job.links {
        link_below_home(&folders.home, path, Path::new(target))
            .map_err(|error| ("cache", format!("{path}: {error}")))?;
    }
    let (program, arguments) =
        job.argv.split_first().ok_or_else(|| ("start", "the job names no program".to_owned()))?;
    let mut command = if program == super::BUILTIN_AGENT {
        Command::new(std::env::current_exe().map_err(|error| ("start", error.to_string()))?)
    } else {
        Command::new(program)
    };
    command.args(arguments).current_dir(&folders.workspace).env_clear();
    command.env("PATH", DEFAULT_PATH).env("TMPDIR", "/tmp").env("HOME", &folders.home);
    command.envs(job.env.iter().map(|(name, value)| (name, value)));
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let oom_kills_before = oom_kills();
    set_oom_score(AGENT_OOM_SCORE);
    let spawned = command.spawn();
    set_oom_score("0");
    let mut child = spawned.map_err(|error| ("start", format!("{program}: {error}")))?;
    let pid = i32::try_from(child.id()).map_err(|error| ("start", error.to_string()))?;
    output.event(&format!("{{\"event\":\"started\",\"pid\":{pid}}}"));

    if let Some(mut stdin) = child.stdin.take() {
        let bytes = job.stdin.clone();
        // An agent that reads nothing must not hold up its own output.
        let _ = std::thread::Builder::new().spawn(move || stdin.write_all(&bytes));
    }
    let (drained, all_drained) = mpsc::channel();
    if let Some(pipe) = child.stdout.take() {
        copy_in_background(Source::Out, Box::new(pipe), output, drained.clone());
    }
    if let Some(pipe) = child.stderr.take() {
        copy_in_background(Source::Err, Box::new(pipe), output, drained.clone());
    }
    drop(drained);
    let ended = wait_for(pid);
    end_everything(pid);
    // A process that escaped may hold a pipe open for ever: do not wait for it.
    let _ = all_drained.recv_timeout(DRAIN_PATIENCE);
    let ended = ended.map_err(|error| ("wait", error.to_string()))?;
    let out_of_memory = oom_kills() > oom_kills_before;
    let show = |number: Option<i32>| number.map_or_else(|| "null".to_owned(), |number| number.to_string());
    output.event(&format!(
        "{{\"event\":\"exited\",\"code\":{},\"signal\":{},\"out_of_memory\":{out_of_memory}}}",
        show(ended.code),
        show(ended.signal)
    ));
    Ok(())
}

fn copy_in_background(
    source: Source,
    mut pipe: Box<dyn Read + Send>,
    output: &Arc<Output>,
    drained: mpsc::Sender<std::convert::Infallible>,
) {
    let output = Arc::clone(output);
    // The sender is dropped when the stream ends: the receiver sees the last one go.
    let _ = std::thread::Builder::new().spawn(move || {
        output.copy(source, &mut *pipe);
        drop(drained);
    });
}

/// Waits for `pid`, reaping orphans that were handed to PID 1 meanwhile.
fn wait_for(pid: i32) -> io::Result<signal::Ended> {
    loop {
        let ended = signal::wait_any()?;
        if ended.pid == pid {
            return Ok(ended);
        }
    }
}

/// Kills the agent's group and, as PID 1, everything else, and reaps it: nothing may write to the
/// workspace while the result is collected.
fn end_everything(agent: i32) {
    let started = Instant::now();
    let pid_one = std::process::id() == 1;
    loop {
        // Again in each round: a process may have been forking while the others were killed.
        let target = if pid_one { -1 } else { -agent };
        let nobody_left = signal::send(target, signal::SIGKILL).is_err();
        while let Ok(Some(_)) = signal::reap_one() {}
        if nobody_left || started.elapsed() > REAP_PATIENCE {
            return;
        }
        std::thread::sleep(REAP_INTERVAL);
    }
}

/// The place of a relative path below HOME; it must stay there.
fn below_home(home: &Path, path: &str) -> io::Result<PathBuf> {
    let relative = PathBuf::from(path);
    let stays = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if !stays || relative.as_os_str().is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path must be relative and without `..`",
        ));
    }
    let target = home.join(relative);
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent)?;
    }
    Ok(target)
}

/// A symbolic link below HOME to a folder that outlives the container.
fn link_below_home(home: &Path, path: &str, target: &Path) -> io::Result<()> {
    // Read-only, or there already: what uses it will say what it lacks.
    let _ = std::fs::create_dir_all(target);
    std::os::unix::fs::symlink(target, below_home(home, path)?)
}

/// Writes a file below HOME; the path must stay there.
fn write_home_file(home: &Path, path: &str, content: &[u8]) -> io::Result<()> {
    let target = below_home(home, path)?;
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(target)?;
    file.write_all(content)
}

fn set_oom_score(score: &str) {
    // Best effort: without it the kernel chooses by size, which is the agent too.
    let _ = std::fs::write("/proc/self/oom_score_adj", score);
}

/// How many processes of this container the kernel has killed for memory (cgroup v2, then v1).
fn oom_kills() -> u64 {
    let count = |file: &str| {
        let text = std::fs::read_to_string(file).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "))?;
        line.trim().parse().ok()
    };
    count("/sys/fs/cgroup/memory.events")
        .or_else(|| count("/sys/fs/cgroup/memory/memory.oom_control"))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn home_files_stay_below_home() {
        let home = tempfile::tempdir().unwrap();
        write_home_file(home.path(), ".config/tool/settings.json", b"{}").unwrap();
        assert_eq!(std::fs::read(home.path().join(".config/tool/settings.json")).unwrap(), b"{}");
        let cache = tempfile::tempdir().unwrap();
        link_below_home(home.path(), ".cache/tool", &cache.path().join("tool")).unwrap();
        std::fs::write(home.path().join(".cache/tool/kept"), b"x").unwrap();
        assert!(cache.path().join("tool/kept").is_file());
        for bad in ["", "../x", "/etc/x", "a/../../x", "./x/..", ".."] {
            assert!(write_home_file(home.path(), bad, b"").is_err(), "{bad}");
            assert!(link_below_home(home.path(), bad, cache.path()).is_err(), "{bad}");
        }
    }
}
