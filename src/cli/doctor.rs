//! Purpose: `zeblit doctor`: checks everything a server needs; each failed check comes with its fix.

use super::args::DoctorArgs;
use super::backend::Operator;
use super::output::{CliError, Exit, Output};
use crate::app::App;
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, DiskKind, RunPage, SandboxKind};
use crate::git::Layout;
use crate::http::error::chain;
use crate::http::view::visible;
use crate::sandbox;
use crate::store::{DatabaseKind, Store};
use chrono::{DateTime, Utc};
use secrecy::ExposeSecret;
use serde::Serialize;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// Seconds that a network check may take.
const NETWORK_SECONDS: u64 = 8;
/// Seconds that a program may take to say its version or the free space.
const PROGRAM_SECONDS: u64 = 10;
/// Seconds that the sandbox's self-check may take: it starts a container.
const SANDBOX_SECONDS: u64 = 60;
/// Mirrors and workspaces of one larger repository need this much, in MiB; less stops runs.
const MIN_FREE_MIB: u64 = 1024;
/// Below this, in MiB, there is a warning.
const GOOD_FREE_MIB: u64 = 10 * 1024;
/// GitHub refuses App tokens whose time is further off than this, in seconds.
const MAX_CLOCK_SKEW_SECONDS: i64 = 60;

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Mark {
    Ok,
    /// Recommended, not required.
    Warn,
    Fail,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Line {
    mark: Mark,
    name: String,
    found: String,
    /// What to type or change; empty when it is ok.
    fix: String,
}

impl Line {
    fn ok(name: &str, found: impl Into<String>) -> Self {
        Self { mark: Mark::Ok, name: name.into(), found: found.into(), fix: String::new() }
    }
    fn warn(name: &str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { mark: Mark::Warn, name: name.into(), found: found.into(), fix: fix.into() }
    }
    fn fail(name: &str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { mark: Mark::Fail, name: name.into(), found: found.into(), fix: fix.into() }
    }
}

pub async fn run(file: Option<&Path>, args: &DoctorArgs, output: Output) -> Result<Exit, CliError> {
    let lines = match Config::load_as(file, args.role) {
        Ok(config) => {
            crate::telemetry::hide(&config.secret_scan());
            let (config, unused) = config.narrowed();
            let mut lines = check_all(&config).await;
            lines.extend(unused.into_iter().map(|key| unused_key(&config, key)));
            lines
        }
        Err(error) => error
            .problems
            .iter()
            .map(|problem| {
                Line::fail("configuration", problem, "mend it; `zeblit config example` shows every key")
            })
            .collect(),
    };
    if args.json {
        output.json(&lines)?;
    } else {
        output.text(report(&lines))?;
    }
    Ok(if lines.iter().any(|line| line.mark == Mark::Fail) { Exit::No } else { Exit::Ok })
}

fn report(lines: &[Line]) -> String {
    let width = lines.iter().map(|line| line.name.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for line in lines {
        let mark = match line.mark {
            Mark::Ok => "ok  ",
            Mark::Warn => "warn",
            Mark::Fail => "FAIL",
        };
        let found = visible(&line.found).replace('\n', " ").trim().to_owned();
        out.push_str(&format!("{mark}  {:<width$}  {found}\n", line.name));
        if !line.fix.is_empty() {
            out.push_str(&format!("      {:<width$}  fix: {}\n", "", visible(&line.fix)));
        }
    }
    let failed = lines.iter().filter(|line| line.mark == Mark::Fail).count();
    let verdict = match failed {
        0 => "Everything that is required works".to_owned(),
        1 => "1 check failed".to_owned(),
        n => format!("{n} checks failed"),
    };
    out.push_str(&format!("\n{verdict}\n"));
    out
}

/// A credential that this node is better without.
fn unused_key(config: &Config, key: &str) -> Line {
    let role = config.node.role.as_str();
    let found = format!("`{key}` is set, and the role `{role}` does not use it");
    Line::warn("credentials", found, format!("take `{key}` away from this node"))
}

async fn check_all(config: &Config) -> Vec<Line> {
    let role = config.node.role;
    let mut lines = vec![match config.validate_for_serve() {
        Ok(()) => Line::ok("configuration", "valid"),
        Err(error) => Line::fail(
            "configuration",
            error.to_string(),
            "zeblit config example > zeblit-server.toml, then edit it",
        ),
    }];
    let state = state_dir(&config.state_dir).await;
    let usable = state.iter().all(|line| line.mark != Mark::Fail);
    lines.extend(state);
    if usable {
        lines.push(database(config).await);
    }
    lines.push(git().await);
    if usable && config.validate_for_serve().is_ok() {
        lines.extend(system(config).await);
    }
    let mut skew = None;
    if role.works() {
        let (model, ahead) = model(config).await;
        lines.push(model);
        skew = ahead;
    }
    if role.is_the_app() {
        lines.push(clock(config, skew).await);
    }
    if role.serves_web() {
        lines.push(public_url(config).await);
    }
    lines
}

async fn state_dir(folder: &Path) -> Vec<Line> {
    let shown = folder.display();
    let probe = folder.join(format!(".doctor-{}", std::process::id()));
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&probe, b"zeblit"))
        .and_then(|()| std::fs::remove_file(&probe));
    if let Err(error) = written {
        let fix = format!("sudo mkdir -p {shown} && sudo chown $USER {shown}; or set `state_dir`");
        return vec![Line::fail("state folder", format!("{shown} is not writable: {error}"), fix)];
    }
    let space = match free_mib(folder).await {
        Some(free) if free < MIN_FREE_MIB => Line::fail(
            "free space",
            format!("{free} MiB at {shown}"),
            format!("free at least {MIN_FREE_MIB} MiB, or set `state_dir` to a larger disk"),
        ),
        Some(free) if free < GOOD_FREE_MIB => Line::warn(
            "free space",
            format!("{free} MiB at {shown}"),
            format!("{GOOD_FREE_MIB} MiB or more leave room for mirrors and workspaces"),
        ),
        Some(free) => Line::ok("free space", format!("{free} MiB")),
        None => Line::warn("free space", "`df` does not say", "install coreutils"),
    };
    vec![Line::ok("state folder", format!("{shown} is writable")), space]
}

/// The output of a program, when it succeeds in time.
async fn program(name: &str, arguments: &[&std::ffi::OsStr]) -> Result<String, String> {
    let run = tokio::process::Command::new(name)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(Duration::from_secs(PROGRAM_SECONDS), run).await {
        Ok(Ok(done)) if done.status.success() => Ok(String::from_utf8_lossy(&done.stdout).into_owned()),
        Ok(Ok(done)) => Err(format!("{name}: {}", done.status)),
        Ok(Err(error)) => Err(format!("{name}: {error}")),
        Err(_elapsed) => Err(format!("{name}: no answer within {PROGRAM_SECONDS} s")),
    }
}

async fn free_mib(folder: &Path) -> Option<u64> {
    let text = program("df", &["-Pk".as_ref(), folder.as_os_str()]).await.ok()?;
    df_mib(&text)
}

/// The fourth column of the last line of `df -Pk`, as MiB.
fn df_mib(text: &str) -> Option<u64> {
    let kib: u64 = text.lines().last()?.split_whitespace().nth(3)?.parse().ok()?;
    Some(kib / 1024)
}

async fn database(config: &Config) -> Line {
    let fix =
        "check `database.url`, that the server of the database runs and that the user may create tables";
    let store = match Store::open(config.database_url().expose_secret()).await {
        Ok(store) => store,
        Err(error) => return Line::fail("database", chain(&error), fix),
    };
    match store.ping().await {
        // Opening sets WAL and FULL and reads them back, so that a database without them is never opened.
        Ok(()) => Line::ok(
            "database",
            match store.kind() {
                DatabaseKind::Sqlite => "SQLite, journal WAL, synchronous FULL",
                DatabaseKind::Postgres => "Postgres",
            },
        ),
        Err(error) => Line::fail("database", chain(&error), fix),
    }
}

async fn git() -> Line {
    match program("git", &["--version".as_ref()]).await {
        Ok(version) => Line::ok("git", version.trim()),
        Err(error) => Line::fail("git", error, "sudo apt-get install git"),
    }
}

/// What only the whole system can tell: sandbox and forge.
async fn system(config: &Config) -> Vec<Line> {
    // While a server runs, the built-in forge is its own: everything else can still be looked at.
    let whole = App::build(config.clone()).await;
    let beside = match &whole {
        Err(_) if config.local_forge.is_some() => Operator::build(config).await.ok(),
        _ => None,
    };
    let (app, forge_problem) = match (&whole, &beside) {
        (Ok(app), _) => (app, None),
        (Err(error), Some(operator)) => (&operator.app, Some(format!("{error:#}"))),
        (Err(error), None) => {
            let fix = "mend what the line names, then: zeblit doctor";
            return vec![Line::fail("system", format!("{error:#}"), fix)];
        }
    };
    let mut lines = Vec::new();
    let role = config.node.role;
    let checks = async { if role.works() { app.sandbox.self_check().await } else { Vec::new() } };
    match tokio::time::timeout(Duration::from_secs(SANDBOX_SECONDS), checks).await {
        Ok(checks) => lines.extend(checks.into_iter().map(|check| {
            let required = check.required || config.sandbox.strict;
            Line {
                mark: match (check.ok, required) {
                    (true, _) => Mark::Ok,
                    (false, false) => Mark::Warn,
                    (false, true) => Mark::Fail,
                },
                name: check.name,
                found: check.found,
                fix: check.fix,
            }
        })),
        Err(_elapsed) => lines.push(Line::fail(
            "sandbox",
            format!("no answer within {SANDBOX_SECONDS} s"),
            "sudo systemctl restart docker",
        )),
    }
    if config.sandbox.kind == SandboxKind::Docker && role.works() {
        lines.extend(mounts(config));
        lines.extend(disk(config).await);
        lines.push(workspaces(app));
    }
    if role.is_the_app() {
        lines.push(match forge_problem {
            Some(problem) => Line::warn("forge", problem, "nothing, when a server runs on this state"),
            None => forge(app).await,
        });
    }
    if config.github.is_some() && role.serves_web() {
        lines.push(Line::ok(
            "webhook",
            format!(
                "the App's webhook URL must be {}/webhooks/github, content type application/json",
                config.public_url()
            ),
        ));
    }
    lines
}

/// The flags on the host that containers inherit.
fn mounts(config: &Config) -> Vec<Line> {
    let state = config.state_dir.canonicalize().unwrap_or_else(|_| config.state_dir.clone());
    let checks = sandbox::mounts::check(&sandbox::mounts::folders(&state, &config.socket_root()));
    let line = |check: sandbox::Check| match check.ok {
        true => Line::ok(&check.name, check.found),
        false if config.sandbox.strict => Line::fail(&check.name, check.found, check.fix),
        false => Line::warn(&check.name, check.found, check.fix),
    };
    checks.into_iter().map(line).collect()
}

/// How workspaces are made, and why not by overlay.
fn workspaces(app: &App) -> Line {
    let name = "workspaces";
    match (app.git.layout(), app.git.no_overlay()) {
        (Layout::Overlay, _) => Line::ok(name, "overlays on prepared checkouts"),
        (Layout::Checkout, None) => Line::ok(name, "each a checkout of its own, as `sandbox.workspace` says"),
        (Layout::Checkout, Some(why)) => Line::warn(
            name,
            format!("each a checkout of its own, which takes seconds for large repositories: {why}"),
            "run `zeblit serve` as root, with the state directory on ext4 or xfs",
        ),
    }
}

/// Whether each run can have a disk of its own.
async fn disk(config: &Config) -> Option<Line> {
    if config.sandbox.disk != DiskKind::Loop {
        return None;
    }
    let name = "disks of runs";
    let fix = "run `zeblit serve` as root on a machine with loop devices (sudo modprobe loop) and: sudo apt-get install e2fsprogs mount; or set `sandbox.disk = \"watch\"`";
    if let Err(error) = program("mkfs.ext4", &["-V".as_ref()]).await {
        return Some(Line::fail(name, error, fix));
    }
    Some(match program("losetup", &["--find".as_ref()]).await {
        Ok(device) => Line::ok(name, format!("{} is free", device.trim())),
        Err(error) => Line::fail(name, error, fix),
    })
}

async fn forge(app: &App) -> Line {
    let name = app.forge.name();
    let fix = if name == "github" {
        "check `github.app_id`, the private key and `github.api_url`, and that this machine reaches it"
    } else {
        "check `local_forge.folder`"
    };
    match tokio::time::timeout(Duration::from_secs(NETWORK_SECONDS), app.forge.check()).await {
        Ok(Ok(answer)) => Line::ok("forge", format!("{name}: {answer}")),
        Ok(Err(error)) => Line::fail("forge", format!("{name}: {}", chain(&error)), fix),
        Err(_elapsed) => Line::fail("forge", format!("{name}: no answer within {NETWORK_SECONDS} s"), fix),
    }
}

/// Any answer of an address, and how far its clock is from ours, in seconds.
async fn reach(url: &str) -> Result<(u16, Option<i64>), String> {
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(NETWORK_SECONDS))
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| chain(&error))?;
    let response = client.get(url).send().await.map_err(|error| chain(&error.without_url()))?;
    let date = response.headers().get("date").and_then(|value| value.to_str().ok());
    let skew = date.and_then(|date| skew(date, SystemClock.now()));
    Ok((response.status().as_u16(), skew))
}

fn skew(date: &str, now: DateTime<Utc>) -> Option<i64> {
    let theirs = DateTime::parse_from_rfc2822(date).ok()?;
    Some((now - theirs.with_timezone(&Utc)).num_seconds())
}

/// Not required: recipes need no model.
async fn model(config: &Config) -> (Line, Option<i64>) {
    let url = &config.models.anthropic_url;
    let reached = reach(url).await;
    let skew = reached.as_ref().ok().and_then(|(_, skew)| *skew);
    let line = match (reached, &config.models.anthropic_api_key) {
        (Err(error), _) => Line::warn(
            "model",
            format!("{url}: {error}"),
            "agents with a model need it: check `models.anthropic_url` and the network; recipes work without",
        ),
        (Ok(_), None) => Line::warn(
            "model",
            format!("{url} answers, no key is set"),
            "set ZEBLIT_MODELS__ANTHROPIC_API_KEY (or `models.anthropic_api_key`); recipes work without",
        ),
        (Ok(_), Some(_)) => Line::ok("model", format!("{url} answers, a key is set")),
    };
    (line, skew)
}

async fn clock(config: &Config, skew_of_model: Option<i64>) -> Line {
    let skew = match &config.github {
        Some(github) => reach(&github.api_url).await.ok().and_then(|(_, skew)| skew).or(skew_of_model),
        None => skew_of_model,
    };
    let fix = "sudo timedatectl set-ntp true";
    match skew {
        Some(seconds) if seconds.abs() > MAX_CLOCK_SKEW_SECONDS => {
            Line::fail("clock", format!("{seconds} s away from the network's"), fix)
        }
        Some(seconds) => Line::ok("clock", format!("{seconds} s away from the network's")),
        None => Line::ok("clock", "nobody to compare with"),
    }
}

async fn public_url(config: &Config) -> Line {
    let Some(url) = &config.server.public_url else {
        let pages = if config.server.run_page == RunPage::Link {
            "; comments carry no links to run pages"
        } else {
            ""
        };
        return Line::warn(
            "public URL",
            format!("not set{pages}"),
            "set `server.public_url` to where people reach this server",
        );
    };
    let address = format!("{}/healthz", url.trim_end_matches('/'));
    match reach(&address).await {
        Ok((200, _)) => Line::ok("public URL", format!("{url} answers")),
        Ok((status, _)) => Line::warn(
            "public URL",
            format!("{address} answers {status}"),
            format!("is `zeblit serve` running, and does the proxy pass {url} to {}?", config.server.listen),
        ),
        Err(error) => Line::warn(
            "public URL",
            format!("{address}: {error}"),
            format!("start `zeblit serve`, and let {url} lead to {}", config.server.listen),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeZone;

    #[test]
    fn the_report_gives_each_failure_its_fix() {
        let lines = [
            Line::ok("git", "git version 2.39.5"),
            Line::warn("model", "no key is set", "set a key"),
            Line::fail("container engine", "no\nsocket \u{1b}[31m", "sudo systemctl start docker"),
        ];
        insta::assert_snapshot!(report(&lines), @r"
        ok    git               git version 2.39.5
        warn  model             no key is set
                                fix: set a key
        FAIL  container engine  no socket
                                fix: sudo systemctl start docker

        1 check failed
        ");
        assert!(report(&lines[..2]).ends_with("Everything that is required works\n"));
    }

    #[test]
    fn free_space_is_read_from_df() {
        let text =
            "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/sda1 100 40 61440 40% /\n";
        assert_eq!(df_mib(text), Some(60));
        assert_eq!(df_mib("nonsense"), None);
    }

    #[test]
    fn the_clock_is_compared_with_a_date_header() {
        let now = Utc.with_ymd_and_hms(2026, 1, 2, 3, 4, 15).unwrap();
        assert_eq!(skew("Fri, 02 Jan 2026 03:04:05 GMT", now), Some(10));
        assert_eq!(skew("yesterday", now), None);
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_written_is_named_with_its_fix() {
        let lines = state_dir(Path::new("/proc/zeblit")).await;
        assert_eq!(lines.len(), 1);
        assert!(lines[0].mark == Mark::Fail && lines[0].fix.contains("mkdir -p /proc/zeblit"), "{lines:?}");
        let folder = tempfile::tempdir().unwrap();
        let lines = state_dir(folder.path()).await;
        assert_eq!(lines[0].mark, Mark::Ok, "{lines:?}");
    }

    #[tokio::test]
    async fn git_is_found_and_a_missing_program_is_named() {
        assert_eq!(git().await.mark, Mark::Ok);
        assert!(program("no-such-program-here", &[]).await.unwrap_err().starts_with("no-such-program-here"));
    }
}
