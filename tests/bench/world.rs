//! Work for a server under measurement: repositories, issues and commands on its built-in forge, and what became of them.

use super::load;
use super::server::{SECRET, command};
use anyhow::{Context, ensure};
use secrecy::SecretString;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use zeblit::clock::SystemClock;
use zeblit::domain::event::Source;
use zeblit::domain::ids::RepoName;
use zeblit::intake::signature;
use zeblit::remote::local::{LocalForge, SeedFile};

/// How long commands may take to become runs.
const PLANNED: Duration = Duration::from_secs(60);

/// So that a bench meets no limit but the machine's.
pub const NO_LIMITS: &str = "[limits]\nwrite_spacing_ms = 0\nwrites_per_minute = 1000000\nwrites_per_hour = 1000000\ncommands_per_user_hour = 1000000\n";

/// One delivery of the forge.
#[derive(Debug)]
pub struct Posted {
    id: String,
    event: &'static str,
    body: Vec<u8>,
}

/// `count` issues, spread over repositories, each with a command as its comment, in the forge of a server that has not
/// started yet.
pub fn commands(folder: &Path, repos: usize, count: usize, text: &str) -> anyhow::Result<Vec<Posted>> {
    let forge =
        LocalForge::open(&folder.join("state/forge"), "http://127.0.0.1/forge", Arc::new(SystemClock))?;
    let files = [SeedFile { path: "README.md", content: "bench\n", executable: false }];
    let owner = forge.owner();
    let mut made = Vec::new();
    for n in 0..repos {
        let name = RepoName::parse(&format!("bench/project-{n}"))?;
        made.push(forge.create_repo(&name, "For the bench", &files, "Start")?.repo);
    }
    let mut posted = Vec::new();
    for (n, repo) in made.iter().cycle().take(count).enumerate() {
        let (number, _) = forge.open_issue(repo, &owner, &format!("Bench {n}"), "Measure.")?;
        let (_, webhook) = forge.comment(repo, &owner, number, text)?;
        posted.push(Posted { id: format!("bench-command-{n}"), event: webhook.event, body: webhook.body });
    }
    Ok(posted)
}

/// Hands deliveries over, one after the other on one connection.
pub fn send(server: SocketAddr, deliveries: &[Posted]) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_nodelay(true)?;
    for posted in deliveries {
        let mut request = format!(
            "POST /webhooks/github HTTP/1.1\r\nhost: {server}\r\ncontent-length: {}\r\n",
            posted.body.len()
        );
        let secret = SecretString::from(SECRET);
        for (name, value) in signature::sign(Source::Github, &secret, &posted.id, posted.event, &posted.body)
        {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("\r\n");
        let mut bytes = request.into_bytes();
        bytes.extend(&posted.body);
        stream.write_all(&bytes)?;
        let mut answer = Vec::new();
        let mut piece = [0; 4096];
        let status = loop {
            let count = stream.read(&mut piece)?;
            ensure!(count > 0, "the server hung up");
            answer.extend_from_slice(piece.get(..count).unwrap_or_default());
            if let Some(status) = load::answered(&answer)? {
                break status;
            }
        };
        ensure!(status == 202, "a delivery was answered with {status}");
    }
    Ok(())
}

/// A sample of our `/metrics`, all labels with `state` or `result` of these words together.
pub fn sample(server: SocketAddr, name: &str, words: &[&str]) -> anyhow::Result<usize> {
    let text = load::get(server, "/metrics")?;
    let lines = text.lines().filter(|line| {
        line.starts_with(name) && words.iter().any(|word| line.contains(&format!("=\"{word}\"")))
    });
    lines
        .map(|line| {
            line.rsplit(' ')
                .next()
                .and_then(|value| value.parse::<f64>().ok())
                .map(|value| value as usize)
                .context("a sample")
        })
        .sum()
}

/// The newest runs as `zeblit status --json` prints them.
pub fn runs(folder: &Path, limit: usize) -> anyhow::Result<Vec<serde_json::Value>> {
    let text = command(folder, &["status", "--json", "--limit", &limit.to_string()])?;
    let status: serde_json::Value = serde_json::from_str(&text)?;
    Ok(status.get("runs").and_then(|runs| runs.as_array()).context("`zeblit status` names no runs")?.clone())
}

/// Waits until the commands have become runs.
pub fn wait_for_runs(folder: &Path, count: usize) -> anyhow::Result<Vec<serde_json::Value>> {
    let begin = Instant::now();
    loop {
        let found = runs(folder, count)?;
        if found.len() >= count {
            return Ok(found);
        }
        ensure!(
            begin.elapsed() < PLANNED,
            "{} of {count} commands became runs in {} s",
            found.len(),
            PLANNED.as_secs()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}
