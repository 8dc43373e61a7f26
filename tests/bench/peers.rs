//! The peers: programs from their registries, installed once below `target/bench`, and databases of their own.

use super::Bench;
use super::machine::{SERVER_CORE, version};
use super::server::{Process, SECRET, free_port};
use anyhow::{Context, ensure};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a database that listens may take until it takes somebody in.
const READY_LIMIT: Duration = Duration::from_secs(20);

/// The peers' programs and what they need, as committed.
fn sources() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/bench/peers")
}

fn run(command: &mut Command, what: &str) -> anyhow::Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| what.to_owned())?;
    ensure!(
        output.status.success(),
        "{what}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The folder with the Node programs and their packages, at the versions of the lock file.
pub fn node(bench: &Bench) -> anyhow::Result<PathBuf> {
    let folder = bench.folder.join("peers");
    std::fs::create_dir_all(&folder)?;
    let locked = std::fs::read(sources().join("package-lock.json"))?;
    let stamp = folder.join("installed.json");
    let installed = std::fs::read(&stamp).is_ok_and(|stamp| stamp == locked);
    for entry in std::fs::read_dir(sources())? {
        let path = entry?.path();
        if let Some(name) = path.file_name().filter(|_| path.is_file()) {
            std::fs::copy(&path, folder.join(name))?;
        }
    }
    if !installed {
        bench.tell("installs Probot and BullMQ (npm ci)");
        run(
            Command::new("npm")
                .args(["ci", "--no-audit", "--no-fund", "--loglevel=error"])
                .current_dir(&folder),
            "npm ci",
        )?;
        std::fs::write(stamp, locked)?;
    }
    Ok(folder)
}

/// The interpreter of an environment with the packages of `requirements.txt`.
pub fn python(bench: &Bench) -> anyhow::Result<PathBuf> {
    let folder = bench.folder.join("python");
    let list = sources().join("requirements.txt");
    let wanted = std::fs::read(&list)?;
    let stamp = folder.join("installed.txt");
    let program = folder.join("bin/python");
    if !std::fs::read(&stamp).is_ok_and(|stamp| stamp == wanted) {
        bench.tell("installs RQ and Celery (pip)");
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder), "python3 -m venv")?;
        run(
            Command::new(&program)
                .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"])
                .arg(&list),
            "pip install",
        )?;
        std::fs::write(stamp, wanted)?;
    }
    Ok(program)
}

/// What a Redis server keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeps {
    /// Every write is synced before it is answered.
    Always,
    Nothing,
}

/// A Redis server of our own, in an empty folder.
pub fn redis(folder: &Path, keeps: Keeps, core: Option<usize>) -> anyhow::Result<Process> {
    let address = free_port()?;
    let mut command = Command::new("redis-server");
    command.args(["--bind", "127.0.0.1", "--port"]).arg(address.port().to_string());
    command.arg("--dir").arg(folder).args(["--save", "", "--appendfsync", "always", "--appendonly"]);
    command.arg(if keeps == Keeps::Always { "yes" } else { "no" });
    Process::start(&command, core, address, &folder.join("redis.log"))
}

/// A Probot app as its documentation begins one; with `redis`, each delivery is in a BullMQ queue before the answer.
pub fn probot(bench: &Bench, folder: &Path, redis: Option<SocketAddr>) -> anyhow::Result<Process> {
    let programs = node(bench)?;
    let address = free_port()?;
    let mut command = Command::new("node");
    command.arg(programs.join("probot.mjs")).current_dir(&programs);
    command.env("NODE_ENV", "production").env("HOST", "127.0.0.1").env("PORT", address.port().to_string());
    command.env("WEBHOOK_SECRET", SECRET).env("WEBHOOK_PATH", "/webhooks/github").env("APP_ID", "1");
    command.env(
        "PRIVATE_KEY",
        std::fs::read_to_string(
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/test-only-app-key.pem"),
        )?,
    );
    command.env_remove("REDIS_URL").env_remove("LOG_LEVEL").env_remove("SENTRY_DSN");
    if let Some(redis) = redis {
        command.env("BULLMQ_PORT", redis.port().to_string());
    }
    Process::start(&command, Some(SERVER_CORE), address, &folder.join("probot.log"))?.answering()
}

/// A live log with Node's http module.
pub fn fanout(bench: &Bench, folder: &Path) -> anyhow::Result<Process> {
    let programs = node(bench)?;
    let address = free_port()?;
    let mut command = Command::new("node");
    command
        .arg(programs.join("fanout.mjs"))
        .env("NODE_ENV", "production")
        .env("PORT", address.port().to_string());
    Process::start(&command, Some(SERVER_CORE), address, &folder.join("fanout.log"))?.answering()
}

/// A PostgreSQL server of our own with its defaults, in an empty folder. It refuses to run as root: then as `postgres`.
pub fn postgres(folder: &Path, core: Option<usize>) -> anyhow::Result<Process> {
    let data = folder.join("data");
    std::fs::create_dir(&data)?;
    let is_root = std::fs::metadata("/proc/self")?.uid() == 0;
    if is_root {
        run(Command::new("chown").arg("postgres").arg(&data), "chown")?;
    }
    let programs = version("pg_config", &["--bindir"]);
    let programs = if Path::new(&programs).join("initdb").exists() {
        PathBuf::from(programs)
    } else {
        newest_postgres()?
    };
    let program = |name: &str| {
        let program = programs.join(name);
        let mut command = Command::new(if is_root { "setpriv".as_ref() } else { program.as_os_str() });
        if is_root {
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(&program);
        }
        command.arg("-D").arg(&data);
        command
    };
    run(program("initdb").args(["-U", "postgres", "--auth=trust"]), "initdb")?;
    let address = free_port()?;
    let mut command = program("postgres");
    command
        .args(["-h", "127.0.0.1", "-p"])
        .arg(address.port().to_string())
        .args(["-c", "unix_socket_directories="]);
    let server = Process::start(&command, core, address, &folder.join("postgres.log"))?;
    // It listens before it takes anybody in.
    let begun = Instant::now();
    let mut ready = Command::new(programs.join("pg_isready"));
    ready.args(["-q", "-h", "127.0.0.1", "-p"]).arg(address.port().to_string());
    while !ready.status()?.success() {
        ensure!(begun.elapsed() < READY_LIMIT, "PostgreSQL takes nobody in");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(server)
}

/// Where Debian keeps the server's programs.
fn newest_postgres() -> anyhow::Result<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .context("there is no PostgreSQL server")?
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .filter(|folder| folder.join("initdb").exists())
        .collect();
    found.sort();
    found.pop().context("there is no PostgreSQL server")
}
