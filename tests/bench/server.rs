//! Processes under measurement: `zeblit serve` as it is released, and whatever else listens on a port.

use super::machine;
use anyhow::{Context, bail};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A program that does not open its port in this time has failed.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How often the port is tried.
const TRY_EVERY: Duration = Duration::from_micros(500);
/// How long a program may take to end when it is asked to.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// The secret of the built-in forge's deliveries, and of the peers'.
pub const SECRET: &str = "the webhook secret of the bench";

/// A program that listens; it ends with this value.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pub address: SocketAddr,
    begun: Instant,
    /// From the start of the program until its port was open; of one that was asked, until it answered.
    pub opened_in: Duration,
}

/// A port that nobody uses now.
pub fn free_port() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

impl Process {
    /// Starts `command` (on one core, if one is named) and waits until `address` is open. What it says goes to `log`.
    pub fn start(
        command: &Command,
        core: Option<usize>,
        address: SocketAddr,
        log: &Path,
    ) -> anyhow::Result<Self> {
        let mut started = match core {
            Some(core) => {
                let mut pinned = Command::new("taskset");
                pinned.arg("-c").arg(core.to_string()).arg(command.get_program()).args(command.get_args());
                pinned
            }
            None => {
                let mut plain = Command::new(command.get_program());
                plain.args(command.get_args());
                plain
            }
        };
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => started.env(name, value),
                None => started.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            started.current_dir(folder);
        }
        let said = std::fs::File::create(log).with_context(|| format!("write {}", log.display()))?;
        started.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
        let begin = Instant::now();
        let mut child = started.spawn().with_context(|| format!("start {:?}", command.get_program()))?;
        loop {
            if TcpStream::connect(address).is_ok() {
                return Ok(Self { child, address, begun: begin, opened_in: begin.elapsed() });
            }
            if let Some(status) = child.try_wait()? {
                let said = std::fs::read_to_string(log).unwrap_or_default();
                bail!("{:?} ended with {status}: {}", command.get_program(), said.trim_end());
            }
            if begin.elapsed() > START_LIMIT {
                let _ended = child.kill();
                bail!("{:?} did not open {address} in {} s", command.get_program(), START_LIMIT.as_secs());
            }
            std::thread::sleep(TRY_EVERY);
        }
    }

    /// Waits for an answer over HTTP, whichever: a port may be open before anybody serves it.
    pub fn answering(mut self) -> anyhow::Result<Self> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(START_LIMIT))?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
        stream.read_exact(&mut [0; 12])?;
        self.opened_in = self.begun.elapsed();
        Ok(self)
    }

    /// It and the processes that it started.
    pub fn pids(&self) -> Vec<u32> {
        machine::family(self.child.id())
    }

    /// Asks it to end, and waits.
    pub fn stop(mut self) -> anyhow::Result<()> {
        Command::new("kill").arg(self.child.id().to_string()).status()?;
        let begin = Instant::now();
        while self.child.try_wait()?.is_none() {
            if begin.elapsed() > STOP_LIMIT {
                bail!("a program did not end in {} s", STOP_LIMIT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Not when it was stopped: its number may be another's by now.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ended = self.child.kill();
            let _reaped = self.child.wait();
        }
    }
}

/// How `zeblit serve` is to be started.
#[derive(Debug, Default)]
pub struct Options<'a> {
    /// Its state directory, configuration and log lie here.
    pub folder: PathBuf,
    /// Absent: SQLite in the state directory.
    pub database: Option<&'a str>,
    pub core: Option<usize>,
    /// More of the configuration: whole sections.
    pub sections: &'a str,
}

/// Starts the release binary with the built-in forge.
pub fn zeblit(options: &Options<'_>) -> anyhow::Result<Process> {
    let address = free_port()?;
    let state = options.folder.join("state");
    let mut config = format!(
        "state_dir = {state:?}\n\n[server]\nlisten = \"{address}\"\npublic_url = \"http://{address}\"\n\n[local_forge]\nwebhook_secret = {SECRET:?}\n\n"
    );
    if let Some(url) = options.database {
        config.push_str(&format!("[database]\nurl = {url:?}\n\n"));
    }
    config.push_str(options.sections);
    let file = options.folder.join("zeblit.toml");
    std::fs::write(&file, config).with_context(|| format!("write {}", file.display()))?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_zeblit"));
    command.arg("--config").arg(&file).arg("serve");
    for name in ["ZEBLIT_LOG", "RUST_LOG", "ZEBLIT_CONFIG"] {
        command.env_remove(name);
    }
    Process::start(&command, options.core, address, &options.folder.join("serve.log"))?.answering()
}

/// What a command of the program prints, for a server that was started in this folder.
pub fn command(folder: &Path, words: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zeblit"));
    command.arg("--config").arg(folder.join("zeblit.toml")).args(words).stdin(Stdio::null());
    let output = command.output().context("start zeblit")?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "zeblit {}: {}", words.join(" "), said.trim_end());
    Ok(String::from_utf8(output.stdout)?)
}
