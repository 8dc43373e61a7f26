//! Purpose: `zeblit serve`: everything in one process, or one role of several, until SIGTERM or SIGINT.

use super::args::{Drain, ServeArgs};
use super::output::{CliError, Exit, Output};
use super::service;
use crate::app::App;
use crate::config::{Config, SandboxKind};
use crate::domain::node::Role;
use crate::engine;
use crate::http::{self, server};
use crate::sandbox::{Check, mounts};
use crate::telemetry::{self, Audience};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Seconds that workers get to put down what they hold after a stop; runs go on in their containers.
const STOP_SECONDS: u64 = 9;
/// Seconds that the first look at sandbox and forge may take.
const FIRST_LOOK_SECONDS: u64 = 20;

/// Before the first container: what it mounts shall be nosuid and nodev. Without root it is told and goes on.
async fn seal(app: &App) {
    if app.config.sandbox.kind != SandboxKind::Docker {
        return;
    }
    let folders = mounts::folders(&app.config.state_dir, &app.socket_root);
    let checks = tokio::task::spawn_blocking(move || mounts::seal(&folders)).await.unwrap_or_default();
    for check in checks.iter().filter(|check| !check.ok) {
        tracing::warn!(
            found = check.found,
            fix = check.fix,
            "{}: containers do not inherit its flags",
            check.name
        );
    }
}

/// Held while this process is its role's only one on its state directory: two would take over from each other.
fn alone(config: &Config) -> Result<std::fs::File, CliError> {
    let role = config.node.role.as_str();
    let path = config.state_dir.join(format!("serve-{role}.lock"));
    let open = std::fs::create_dir_all(&config.state_dir)
        .and_then(|()| std::fs::OpenOptions::new().create(true).append(true).open(&path));
    let file =
        open.map_err(|error| CliError::because(&format!("cannot open `{}`", path.display()), &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(CliError::new(format!(
            "another `zeblit serve` with the role `{role}` works on `{}`",
            config.state_dir.display()
        ))
        .hint("give each process a `state_dir` of its own")),
        Err(std::fs::TryLockError::Error(error)) => {
            Err(CliError::because(&format!("cannot lock `{}`", path.display()), &error))
        }
    }
}

/// The socket of a service manager, or one of our own; `None`: this node listens nowhere.
async fn listen(config: &Config) -> Result<Option<TcpListener>, CliError> {
    let wanted = match config.node.role.serves_web() {
        true => Some(config.server.listen),
        false => config.node.health,
    };
    if let Some(passed) = service::listener()? {
        return Ok(Some(passed));
    }
    let Some(wanted) = wanted else { return Ok(None) };
    TcpListener::bind(wanted).await.map(Some).map_err(|error| {
        let key = if config.node.role.serves_web() { "server.listen" } else { "node.health" };
        CliError::new(format!("cannot listen on {wanted}: {error}"))
            .hint(format!("is another `zeblit serve` running? Set `{key}` to another address"))
    })
}

pub async fn run(file: Option<&Path>, args: &ServeArgs, output: Output) -> Result<Exit, CliError> {
    let config = Config::load_as(file, args.role)?;
    telemetry::hide(&config.secret_scan());
    config.validate_for_serve()?;
    telemetry::init(config.server.log_format, Audience::Server);
    let (mut config, unused) = config.narrowed();
    for key in unused {
        let role = config.node.role.as_str();
        tracing::warn!("`{key}` is set and the role `{role}` does not use it: take it away from this node");
    }
    // Bound first: two servers on one port must not both open the database and reconcile.
    let listener = listen(&config).await?;
    let _alone = alone(&config)?;
    let address = listener.as_ref().map(TcpListener::local_addr).transpose()?;
    let is_web = config.node.role.serves_web();
    if let Some(address) = address.filter(|_| is_web) {
        config.server.listen = address;
    }
    let limits = server::Limits::of(&config.server);
    server::open_many_files();
    let app = App::build(config).await?;
    if app.node.role.works() {
        seal(&app).await;
    }
    let (drain, stop) = (CancellationToken::new(), CancellationToken::new());
    let mut web = match (listener, address) {
        (Some(listener), Some(address)) => {
            let mut router = match is_web {
                true => http::router_until(Arc::clone(&app), stop.clone()),
                false => http::health_router(Arc::clone(&app)),
            };
            if let Some(pages) = super::demo::machine::forge_pages(&app, address) {
                router = router.merge(pages);
            }
            tokio::spawn(server::serve(listener, router, limits, stop.clone()))
        }
        _ => {
            let stop = stop.clone();
            tokio::spawn(async move { stop.cancelled().await })
        }
    };
    let mut engine = tokio::spawn(engine::run_until(Arc::clone(&app), drain.clone(), stop.clone()));
    let greeting = tokio::spawn(greet(Arc::clone(&app), address, output));
    let _watchdog = service::ready();

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let broken = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        ended = &mut engine => Some(("the engine", ended)),
        ended = &mut web => Some(("the HTTP server", ended)),
    };
    greeting.abort();
    service::stopping();
    if broken.is_none() && args.drain == Drain::Wait && app.node.role.works() {
        tracing::info!("draining: nothing more is claimed; a second signal stops at once");
        drain.cancel();
        tokio::select! {
            // It cancels `stop` with its last run.
            () = stop.cancelled() => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    stop.cancel();
    if let Some((what, ended)) = broken {
        let why = match ended {
            Ok(()) => "it ended by itself".to_owned(),
            Err(error) => format!("{error}"),
        };
        return Err(CliError::new(format!("{what} stopped: {why}")).hint("the log above says why"));
    }
    tracing::info!("stopping");
    let both = async {
        for (what, task) in [("HTTP server", web), ("engine", engine)] {
            if let Err(error) = task.await {
                tracing::error!(error = format!("{error:#}"), "the {what} did not end well");
            }
        }
    };
    tokio::select! {
        ended = tokio::time::timeout(Duration::from_secs(STOP_SECONDS), both) => {
            if ended.is_err() {
                tracing::warn!("not everything ended in {STOP_SECONDS} s; the next start goes on with it");
            }
        }
        // Whoever asks twice does not want to wait.
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(Exit::Ok)
}

/// One line: where it listens, what is ready, what to do next.
async fn greet(app: Arc<App>, address: Option<SocketAddr>, output: Output) {
    let role = app.node.role;
    let looks = async {
        let sandbox = async { if role.works() { app.sandbox.self_check().await } else { Vec::new() } };
        let forge = async { if role.is_the_app() { app.forge.check().await.map(|_| ()) } else { Ok(()) } };
        tokio::join!(sandbox, forge)
    };
    let (sandbox, forge) = match tokio::time::timeout(Duration::from_secs(FIRST_LOOK_SECONDS), looks).await {
        Ok((checks, forge)) => (
            all_hold(&checks),
            forge
                .map_err(|error| tracing::warn!(error = format!("{error:#}"), "the forge does not answer"))
                .is_ok(),
        ),
        Err(_elapsed) => (false, false),
    };
    let ready = Ready { sandbox, forge };
    output.note(match (role, address) {
        (Role::All, Some(address)) => {
            greeting(&app.config, address, app.sandbox.kind(), app.forge.name(), ready)
        }
        (_, address) => role_greeting(&app, address, ready),
    });
}

/// The same for a node of several.
fn role_greeting(app: &App, address: Option<SocketAddr>, ready: Ready) -> String {
    let place = address.map_or(String::new(), |address| format!(", listens on http://{address}"));
    let next = match ready.sandbox && ready.forge {
        true => "`zeblit nodes` lists all",
        false => "run `zeblit doctor` to see what is missing",
    };
    format!(
        "zeblit {} is node {} with the role {}{place}; next: {next}",
        env!("CARGO_PKG_VERSION"),
        app.node.name,
        app.node.role.as_str()
    )
}

/// Whether every required line holds; those that do not are logged with their fix.
fn all_hold(checks: &[Check]) -> bool {
    let failing: Vec<&Check> = checks.iter().filter(|check| check.required && !check.ok).collect();
    for check in &failing {
        tracing::error!(found = check.found, fix = check.fix, "sandbox: {}", check.name);
    }
    failing.is_empty()
}

#[derive(Debug, Clone, Copy)]
struct Ready {
    sandbox: bool,
    forge: bool,
}

fn greeting(config: &Config, address: SocketAddr, sandbox: &str, forge: &str, ready: Ready) -> String {
    let word = |ok: bool| if ok { "ready" } else { "NOT ready" };
    let next = if !(ready.sandbox && ready.forge) {
        "run `zeblit doctor` to see what is missing".to_owned()
    } else if config.github.is_some() {
        format!(
            "the App's webhook URL is {}/webhooks/github; then comment `/zeblit help` on an issue",
            config.public_url()
        )
    } else {
        format!("open http://{address}/forge and comment `/zeblit help` on an issue")
    };
    format!(
        "zeblit {} listens on http://{address} (sandbox {sandbox} {}, forge {forge} {}); next: {next}",
        env!("CARGO_PKG_VERSION"),
        word(ready.sandbox),
        word(ready.forge)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greeting_names_address_readiness_and_the_next_step() {
        let config = Config::default();
        let address = SocketAddr::from(([127, 0, 0, 1], 8080));
        let ready = Ready { sandbox: true, forge: true };
        insta::assert_snapshot!(greeting(&config, address, "docker", "local", ready), @r"
        zeblit 0.1.0 listens on http://127.0.0.1:8080 (sandbox docker ready, forge local ready); next: open http://127.0.0.1:8080/forge and comment `/zeblit help` on an issue
        ");
        let ready = Ready { sandbox: false, forge: true };
        insta::assert_snapshot!(greeting(&config, address, "docker", "github", ready), @r"
        zeblit 0.1.0 listens on http://127.0.0.1:8080 (sandbox docker NOT ready, forge github ready); next: run `zeblit doctor` to see what is missing
        ");
    }
}
