//! G8 to G10: a run's workspace beside what `git clone` makes of the same mirror, and ten runs one after the other.
//!
//! The repository is made here: 13 000 files and 5 000 commits of seeded text. Both sides read the same mirror on this
//! machine; a remote one only adds to the clones. Clones are deleted after the last round: a file system that creates
//! files soon after deleting many is slow, and the peer shall not pay for that.

use super::Bench;
use super::report::{Measured, Ratio};
use anyhow::{Context, ensure};
use std::fmt::Write as _;
use std::io::{BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use zeblit::domain::ids::{RunId, Sha};
use zeblit::git::{Access, Git, Layout, SeedSpec, Workspace, WorkspaceSpec};

const FILES: u64 = 13_000;
const FILES_PER_FOLDER: u64 = 8;
const COMMITS: u64 = 5_000;
const CHANGES_PER_COMMIT: u64 = 4;
/// Lines of a file: about 8 KB.
const LINES: u64 = 180;
/// Goes up when the repository is made otherwise.
const VERSION: &str = "2";
const REMOTE: &str = "bench";
const REPO: i64 = 1;
/// Runs of G10.
const RUNS: usize = 10;

/// Splitmix64: the same repository each time.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

const WORDS: [&str; 32] = [
    "let", "return", "config", "value", "if", "else", "match", "error", "result", "request", "response",
    "store", "token", "index", "buffer", "length", "name", "path", "for", "in", "while", "state", "update",
    "commit", "branch", "remote", "queue", "worker", "limit", "default", "option", "async",
];

/// The text of a file after so many changes: one in twenty lines differs from the text before.
fn text(file: u64, changes: u64) -> String {
    let mut text = String::with_capacity(9_000);
    for line in 0..LINES {
        let changed =
            (0..=changes).rev().find(|change| Chance(file * 7 + change * 131 + line).below(20) == 0);
        let mut chance = Chance(file << 20 | line << 8 | changed.unwrap_or(0));
        for _ in 0..4 + chance.below(5) {
            let _ = write!(text, "{} ", WORDS[usize::try_from(chance.below(32)).unwrap_or(0)]);
        }
        let _ = writeln!(text, "{:x}", chance.below(1 << 20));
    }
    text
}

fn path(file: u64) -> String {
    let folder = file / FILES_PER_FOLDER;
    format!("src/{:02}/{:03}/file_{file}.rs", folder % 40, folder / 40)
}

/// The repository, made at the first call.
fn source(bench: &Bench) -> anyhow::Result<PathBuf> {
    let folder = bench.folder.join("workspace");
    let (source, marker) = (folder.join("source.git"), folder.join("made"));
    if std::fs::read_to_string(&marker).is_ok_and(|made| made == VERSION) {
        return Ok(source);
    }
    bench.tell(&format!("workspace: making a repository of {FILES} files and {COMMITS} commits"));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    git(&folder, &["init", "-q", "--bare", "--initial-branch=main", "source.git"])?;
    let mut import = Command::new("git")
        .args(["fast-import", "--quiet"])
        .current_dir(&source)
        .stdin(Stdio::piped())
        .spawn()
        .context("start git fast-import")?;
    let mut stream = BufWriter::new(import.stdin.take().context("git fast-import has no input")?);
    let mut chance = Chance(1);
    let mut changes = vec![0_u64; usize::try_from(FILES)?];
    for commit in 0..COMMITS {
        let time = 1_600_000_000 + commit * 3600;
        write!(stream, "commit refs/heads/main\ncommitter Bench <bench@example.com> {time} +0000\n")?;
        write!(stream, "data <<END\nCommit {commit}\nEND\n")?;
        let touched: Vec<u64> = match commit {
            0 => (0..FILES).collect(),
            _ => (0..CHANGES_PER_COMMIT).map(|_| chance.below(FILES)).collect(),
        };
        for file in touched {
            let count = changes.get_mut(usize::try_from(file)?).context("a file")?;
            let text = text(file, *count);
            *count += 1;
            write!(stream, "M 100644 inline {}\ndata {}\n{text}\n", path(file), text.len())?;
        }
    }
    stream.flush()?;
    drop(stream);
    ensure!(import.wait()?.success(), "git fast-import failed");
    git(&source, &["repack", "-adq", "--depth=50", "--window=10"])?;
    std::fs::write(&marker, VERSION)?;
    Ok(source)
}

fn git(folder: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("git")
        .args(["-c", "safe.directory=*"])
        .args(arguments)
        .current_dir(folder)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .context("start git")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "git {arguments:?} in {}: {error}", folder.display());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The library's store with the mirror and the seed of the head.
struct Ours {
    store: Git,
    access: Access,
    head: Sha,
    objects: PathBuf,
    owner: (u32, u32),
    /// Bytes of the checked-out files.
    tree: f64,
}

impl Ours {
    async fn ready(bench: &Bench, source: &Path) -> anyhow::Result<Self> {
        let folder = bench.folder.join("workspace/state");
        let store = Git::open(&folder).await?;
        if let Some(why) = store.no_overlay() {
            bench.tell(&format!("workspace: each is a checkout of its own here: {why}"));
        }
        let access = Access {
            url: source.to_str().context("a path")?.to_owned(),
            username: String::new(),
            token: None,
        };
        let head = Sha::parse(&git(source, &["rev-parse", "refs/heads/main"])?)?;
        store.ensure(REMOTE, REPO, &access, std::slice::from_ref(&head), None).await?;
        let objects = store.mirror_path(REMOTE, REPO).join("objects");
        let uid = std::fs::metadata("/proc/self")?.uid();
        // As the sandbox has it: the agent's own user where this is root.
        let owner = if uid == 0 { (10_001, 10_001) } else { (uid, std::fs::metadata("/proc/self")?.gid()) };
        let sizes = git(source, &["ls-tree", "-r", "-l", head.as_str()])?;
        let tree = sizes.lines().filter_map(|line| line.split_whitespace().nth(3)?.parse::<f64>().ok()).sum();
        let ours = Self { store, access, head, objects, owner, tree };
        let spec = SeedSpec {
            remote: REMOTE,
            repo_id: REPO,
            start: &ours.head,
            objects_inside: ours.objects.clone(),
            owner,
        };
        let begun = Instant::now();
        ours.store.prepare_ahead(&spec).await?;
        bench.tell(&format!("workspace: the seed was there after {:.2} s", begun.elapsed().as_secs_f64()));
        Ok(ours)
    }

    /// What a run does until its workspace is ready.
    async fn prepare(&self, run: &RunId) -> anyhow::Result<Workspace> {
        let head = std::slice::from_ref(&self.head);
        self.store.ensure(REMOTE, REPO, &self.access, head, None).await?;
        let spec = WorkspaceSpec {
            remote: REMOTE,
            repo_id: REPO,
            run,
            start: &self.head,
            base_sha: &self.head,
            masked: &["AGENTS.md", ".claude"],
            objects_inside: self.objects.clone(),
            owner: self.owner,
        };
        Ok(self.store.prepare(&spec).await?)
    }
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn clean_status(workspace: &Path) -> anyhow::Result<()> {
    let status = git(workspace, &["status", "--porcelain"])?;
    ensure!(status.is_empty(), "{} is not clean: {status}", workspace.display());
    Ok(())
}

pub fn measure(bench: &Bench) -> anyhow::Result<Vec<Measured>> {
    let source = source(bench)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ours = runtime.block_on(Ours::ready(bench, &source))?;
    let mut rows = Vec::new();
    if bench.wants("G8") || bench.wants("G9") {
        rows.extend(runtime.block_on(beside_clones(bench, &ours))?);
    }
    if bench.wants("G10") {
        rows.extend(runtime.block_on(back_to_back(bench, &ours))?);
    }
    Ok(rows)
}

/// A quantity without a figure yet.
fn row(
    goal: &'static str,
    what: &str,
    peer_name: &'static str,
    unit: &'static str,
    wanted: Ratio,
) -> Measured {
    Measured { goal, what: what.to_owned(), ours: Vec::new(), peer: Vec::new(), peer_name, unit, wanted }
}

async fn beside_clones(bench: &Bench, ours: &Ours) -> anyhow::Result<Vec<Measured>> {
    let clones = bench.fresh("workspace-clones")?;
    let mirror = format!("file://{}", ours.store.mirror_path(REMOTE, REPO).display());
    let shallow = "git clone --depth 1";
    let mut ready =
        row("G8", "workspace of 13 000 files is ready", shallow, "ms", Ratio::AtMost(1.0 / 100.0));
    let mut status =
        row("G8", "until its first clean `git status`", shallow, "ms", Ratio::AtMost(1.0 / 20.0));
    let mut full = row("G9", "workspace is ready", "git clone", "ms", Ratio::AtMost(1.0 / 1000.0));
    let mut disk = row("G9", "disk of a run, of its tree", "", "%", Ratio::ValueAtMost(1.0));
    for round in 1..=bench.rounds {
        bench.tell(&format!("workspace, round {round}: zeblit"));
        let run = RunId::new(format!("run_{round}"));
        let begun = Instant::now();
        let made = ours.prepare(&run).await?;
        let took = milliseconds(begun);
        ready.ours.push(took);
        full.ours.push(took);
        clean_status(&made.workspace)?;
        status.ours.push(milliseconds(begun));
        let used = ours.store.disk_use(&run, i64::MAX, i64::MAX).await?;
        disk.ours.push(used.bytes as f64 / ours.tree * 100.0);
        ours.store.discard(&run).await?;
        if bench.wants("G8") {
            bench.tell(&format!("workspace, round {round}: {shallow}"));
            let place = clones.join(format!("shallow-{round}"));
            let begun = Instant::now();
            git(&clones, &["clone", "-q", "--depth", "1", &mirror, place.to_str().context("a path")?])?;
            ready.peer.push(milliseconds(begun));
            clean_status(&place)?;
            status.peer.push(milliseconds(begun));
        }
        if bench.wants("G9") {
            bench.tell(&format!("workspace, round {round}: git clone"));
            let place = clones.join(format!("full-{round}"));
            let begun = Instant::now();
            git(&clones, &["clone", "-q", &mirror, place.to_str().context("a path")?])?;
            full.peer.push(milliseconds(begun));
        }
    }
    std::fs::remove_dir_all(&clones)?;
    if ours.store.layout() == Layout::Checkout {
        bench.tell("workspace: these are figures of checkouts, not of overlays");
    }
    Ok(vec![ready, status, full, disk])
}

/// Each run looks at its workspace, changes some files and is torn down before the next one begins.
async fn back_to_back(bench: &Bench, ours: &Ours) -> anyhow::Result<Vec<Measured>> {
    let mut rest =
        row("G10", "each of nine runs more, torn down in turn", "the first of ten", "ms", Ratio::AtMost(1.2));
    let mut worst = row("G10", "the slowest of the ten", "the first of ten", "ms", Ratio::Told);
    for round in 1..=bench.rounds {
        bench.tell(&format!("workspace, round {round}: {RUNS} runs back to back"));
        let mut took = Vec::new();
        for n in 0..RUNS {
            let run = RunId::new(format!("turn_{n}"));
            let begun = Instant::now();
            let made = ours.prepare(&run).await?;
            clean_status(&made.workspace)?;
            for file in 0..20 {
                std::fs::write(made.workspace.join(path(file * 600)), "changed\n")?;
            }
            ours.store.discard(&run).await?;
            ours.store.sweep(&[]).await?;
            took.push(milliseconds(begun));
        }
        let (first, later) = took.split_first().context("no run")?;
        let spread = super::report::Spread::of(later).context("no run")?;
        rest.ours.push(spread.median);
        rest.peer.push(*first);
        worst.ours.push(spread.max.max(*first));
        worst.peer.push(*first);
    }
    Ok(vec![rest, worst])
}
