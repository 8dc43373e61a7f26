//! The machine and the versions that figures belong to, and what the kernel says of a process.

use anyhow::Context;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// The core of the servers, and that of whoever asks them.
pub const SERVER_CORE: usize = 0;
pub const CLIENT_CORE: usize = 1;
/// How long the disk is asked for its rate.
const FSYNC_TIME: Duration = Duration::from_millis(500);

/// First line of what a program prints, or `none`.
pub fn version(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let text =
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    text.lines().next().filter(|line| !line.is_empty()).unwrap_or("none").to_owned()
}

/// A word of `text` that looks like a version.
fn number(text: &str) -> &str {
    text.split([' ', '=', ','])
        .find(|word| word.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit()))
        .unwrap_or(text)
}

/// Syncs of 4 KiB that the disk does in a second, one after the other.
fn syncs_per_second(folder: &Path) -> anyhow::Result<f64> {
    let path = folder.join("fsync");
    let mut file = std::fs::File::create(&path).with_context(|| format!("write {}", path.display()))?;
    file.write_all(&[0; 4096])?;
    file.sync_data()?;
    let begin = Instant::now();
    let mut count = 0.0;
    while begin.elapsed() < FSYNC_TIME {
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&[1; 4096])?;
        file.sync_data()?;
        count += 1.0;
    }
    let rate = count / begin.elapsed().as_secs_f64();
    std::fs::remove_file(&path)?;
    Ok(rate)
}

/// One line: machine, versions, disk.
pub fn line(folder: &Path) -> anyhow::Result<String> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let cores = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let lock = include_str!("peers/package-lock.json");
    let package = |name: &str| -> String {
        serde_json::from_str::<serde_json::Value>(lock)
            .ok()
            .and_then(|lock| {
                Some(
                    lock.get("packages")?
                        .get(format!("node_modules/{name}"))?
                        .get("version")?
                        .as_str()?
                        .to_owned(),
                )
            })
            .unwrap_or_default()
    };
    Ok(format!(
        "{cores} cores, {}, Linux {}, load {}, {:.0} fsync/s; zeblit {}, {}, node {}, probot {}, bullmq {}, Redis {}, PostgreSQL {}, Docker {}, git {}",
        cpu.trim_start_matches(['\t', ' ', ':']),
        kernel.trim(),
        load.split(' ').next().unwrap_or("unknown"),
        syncs_per_second(folder)?,
        version("git", &["describe", "--always", "--dirty"]),
        version("rustc", &["--version"]).split(" (").next().unwrap_or_default(),
        version("node", &["--version"]),
        package("probot"),
        package("bullmq"),
        number(&version("redis-server", &["--version"])),
        number(&version("psql", &["--version"])),
        version("docker", &["version", "--format", "{{.Server.Version}}"]),
        number(&version("git", &["--version"])),
    ))
}

/// User and system time of processes, in seconds; those of their threads are in it.
pub fn cpu_seconds(pids: &[u32]) -> anyhow::Result<f64> {
    /// Ticks of `/proc/PID/stat` in a second: the same on every Linux that there is.
    const TICKS: f64 = 100.0;
    let mut ticks = 0.0;
    for pid in pids {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .with_context(|| format!("process {pid} is gone"))?;
        // The name may hold spaces and brackets.
        let (_, rest) = stat.rsplit_once(')').context("/proc/PID/stat")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        for n in [11, 12] {
            ticks += fields.get(n).and_then(|field| field.parse::<f64>().ok()).context("/proc/PID/stat")?;
        }
    }
    Ok(ticks / TICKS)
}

/// Memory of processes that lies in RAM, in MiB.
pub fn rss_mib(pids: &[u32]) -> anyhow::Result<f64> {
    let mut kib = 0.0;
    for pid in pids {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
            .with_context(|| format!("process {pid} is gone"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        kib += line.split_whitespace().next().and_then(|word| word.parse::<f64>().ok()).context("VmRSS")?;
    }
    Ok(kib / 1024.0)
}

/// Processes that this one started, and those that they started.
pub fn family(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        at += 1;
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{parent}/task")) else { continue };
        for task in tasks.flatten() {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    found
}

/// Runs `work` on a thread of its own that stays on one core.
pub fn pinned<T: Send, F: Future<Output = anyhow::Result<T>>>(
    core: usize,
    work: impl FnOnce() -> F + Send,
) -> anyhow::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let task = std::fs::read_link("/proc/thread-self")?;
            let id = task.file_name().context("/proc/thread-self")?;
            let pinned = Command::new("taskset")
                .arg("-cp")
                .arg(core.to_string())
                .arg(id)
                .output()
                .context("start taskset")?;
            anyhow::ensure!(pinned.status.success(), "taskset: {}", String::from_utf8_lossy(&pinned.stderr));
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work())
        });
        thread.join().map_err(|_panic| anyhow::anyhow!("a thread of the bench panicked"))?
    })
}
