//! Purpose: `zeblit serve`: everything in one process, until SIGTERM or SIGINT.

use super::output::{CliError, Exit, Output};
use crate::app::App;
use crate::config::{Config, SandboxKind};
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
const STOP_SECONDS: u64 = 20;
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

pub async fn run(file: Option<&Path>, output: Output) -> Result<Exit, CliError> {
    let config = Config::load(file)?;
    telemetry::hide(&config.secret_scan());
    config.validate_for_serve()?;
    telemetry::init(config.server.log_format, Audience::Server);
    // Bound first: two servers on one port must not both open the database and reconcile.
    let wanted = config.server.listen;
    let listener = TcpListener::bind(wanted).await.map_err(|error| {
        CliError::new(format!("cannot listen on {wanted}: {error}"))
            .hint("is another `zeblit serve` running? Set `server.listen` to another address")
    })?;
    let address = listener.local_addr()?;
    let mut config = config;
    config.server.listen = address;
    let limits = server::Limits::of(&config.server);
    let app = App::build(config).await?;
    seal(&app).await;
    let stop = CancellationToken::new();
    let mut router = http::router_until(Arc::clone(&app), stop.clone());
    if let Some(pages) = super::demo::machine::forge_pages(&app, address) {
        router = router.merge(pages);
    }
    let mut web = tokio::spawn(server::serve(listener, router, limits, stop.clone()));
    let mut engine = tokio::spawn(engine::run(Arc::clone(&app), stop.clone()));
    let greeting = tokio::spawn(greet(Arc::clone(&app), address, output));

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let broken = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        ended = &mut engine => Some(("the engine", ended)),
        ended = &mut web => Some(("the HTTP server", ended)),
    };
    greeting.abort();
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
async fn greet(app: Arc<App>, address: SocketAddr, output: Output) {
    let looks = async { tokio::join!(app.sandbox.self_check(), app.forge.check()) };
    let (sandbox, forge) = match tokio::time::timeout(Duration::from_secs(FIRST_LOOK_SECONDS), looks).await {
        Ok((checks, forge)) => (
            all_hold(&checks),
            forge
                .map_err(|error| tracing::warn!(error = format!("{error:#}"), "the forge does not answer"))
                .is_ok(),
        ),
        Err(_elapsed) => (false, false),
    };
    output.note(greeting(
        &app.config,
        address,
        app.sandbox.kind(),
        app.forge.name(),
        Ready { sandbox, forge },
    ));
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
