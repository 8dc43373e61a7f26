//! A whole server inside this process, with the local forge: what `zeblit demo` and `zeblit run` work with.

use crate::app::App;
use crate::config::Config;
use crate::domain::event::Source;
use crate::engine::operate;
use crate::http;
use crate::intake::signature;
use crate::queue::Topic;
use crate::remote::local::{self, LocalForge, Webhook, WebhookHook};
use crate::store;
use anyhow::{Context, anyhow, bail};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Until the server must have answered a delivery: GitHub gives up after 10 seconds.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);

/// After a stop, until workers and connections are left to themselves.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// Until cancelled runs must have ended: a cancel kills within 5 seconds, then partial work is collected.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);

/// Between two looks at runs that are being cancelled.
const LOOK_EVERY: Duration = Duration::from_millis(150);

/// Bytes of the log's end that are searched for its last errors.
const LOG_TAIL_BYTES: u64 = 256 * 1024;

/// A running server.
#[derive(Debug)]
pub struct Machine {
    pub app: Arc<App>,
    pub forge: LocalForge,
    pub url: String,
    stop: CancellationToken,
    engine: JoinHandle<()>,
    web: JoinHandle<()>,
}

/// Binds `wanted`, or, when nobody asked for it, any free port if that one is taken.
pub async fn bind(wanted: Option<SocketAddr>, usual: SocketAddr) -> anyhow::Result<TcpListener> {
    match wanted {
        Some(address) => TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}: choose another with `--listen`")),
        None => match TcpListener::bind(usual).await {
            Ok(listener) => Ok(listener),
            Err(_) => TcpListener::bind(SocketAddr::new(usual.ip(), 0)).await.context("no free port"),
        },
    }
}

/// For requests to this process itself: no proxy of the environment has a say in them.
fn own_client() -> anyhow::Result<reqwest::Client> {
    reqwest::Client::builder().no_proxy().build().context("the HTTP client cannot be made")
}

/// Posts a delivery to the server itself, signed as GitHub signs; gives how long the answer took.
pub async fn post(
    client: &reqwest::Client,
    config: &Config,
    base: &str,
    webhook: &Webhook,
) -> anyhow::Result<(u16, Duration)> {
    let secret =
        config.secrets_for(Source::Github).first().context("the local forge has no webhook secret")?;
    let headers = signature::sign(Source::Github, secret, &webhook.delivery_id, webhook.event, &webhook.body);
    let mut request = client
        .post(format!("{base}/webhooks/github"))
        .timeout(DELIVERY_TIMEOUT)
        .header("content-type", "application/json")
        .body(webhook.body.clone());
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let began = std::time::Instant::now();
    let answer = request.send().await.context("the server did not take the webhook")?;
    let status = answer.status();
    if !status.is_success() {
        let why: String = answer.text().await.unwrap_or_default().chars().take(300).collect();
        bail!("the server answered the webhook with {status}: {why}");
    }
    Ok((status.as_u16(), began.elapsed()))
}

/// The pages of the local forge for a server that has one: comments written there come back to it as signed webhooks.
/// `address` is where the server listens.
pub fn forge_pages(app: &Arc<App>, address: SocketAddr) -> Option<axum::Router> {
    let forge = app.local.clone()?;
    let client = own_client().ok()?;
    let config = Arc::clone(&app.config);
    let base = own_url(address);
    let hook: WebhookHook = Arc::new(move |webhook| {
        let (client, config, base) = (client.clone(), Arc::clone(&config), base.clone());
        Box::pin(async move {
            match post(&client, &config, &base, &webhook).await {
                Ok(_) => Ok(()),
                Err(error) => Err(format!("{error:#}")),
            }
        })
    });
    Some(local::router(forge, hook))
}

/// The address as this machine reaches it: "every interface" is also the loopback one.
fn own_url(mut address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    format!("http://{address}")
}

impl Machine {
    /// Builds and starts everything that `config` describes, on a socket that is bound already.
    pub async fn start(mut config: Config, listener: TcpListener) -> anyhow::Result<Self> {
        let address = listener.local_addr().context("the socket has no address")?;
        config.server.listen = address;
        let url = own_url(address);
        if config.server.public_url.is_none() {
            config.server.public_url = Some(url.clone());
        }
        config.validate_for_serve()?;
        let limits = http::server::Limits::of(&config.server);
        let app = App::build(config).await?;
        let forge = app.local.clone().ok_or_else(|| anyhow!("this configuration has no local forge"))?;
        let stop = CancellationToken::new();
        let mut router = http::router_until(Arc::clone(&app), stop.clone());
        if let Some(pages) = forge_pages(&app, address) {
            router = router.merge(pages);
        }
        let web = tokio::spawn(http::server::serve(listener, router, limits, stop.clone()));
        let engine = tokio::spawn(crate::engine::run(Arc::clone(&app), stop.clone()));
        Ok(Self { app, forge, url, stop, engine, web })
    }

    /// Sends a delivery over HTTP, as the forge would.
    pub async fn deliver(&self, webhook: &Webhook) -> anyhow::Result<(u16, Duration)> {
        post(&own_client()?, &self.app.config, &self.url, webhook).await
    }

    /// Cancels what has not ended (nobody would be there to go on with it) and gives it a little time to stop.
    pub async fn cancel_open_runs(&self) {
        let filter = store::runs::Filter { open_only: true, limit: 20, ..store::runs::Filter::default() };
        let deadline = std::time::Instant::now() + CANCEL_TIMEOUT;
        let mut asked = false;
        while let Ok(open) = store::runs::list(&self.app.store, &filter).await {
            if open.is_empty() || std::time::Instant::now() >= deadline {
                break;
            }
            if !asked {
                for run in &open {
                    if let Err(error) = operate::cancel(&self.app, &run.id, "the terminal").await {
                        tracing::warn!(run.id = %run.id, error = %error, "could not be cancelled");
                    }
                }
                asked = true;
            }
            self.app.wakeup.wait(Topic::Logs, LOOK_EVERY).await;
        }
    }

    /// Whether a part of the server ended by itself.
    pub fn has_ended(&self) -> bool {
        self.engine.is_finished() || self.web.is_finished()
    }

    /// Stops claiming and accepting, and waits for what is under way (bounded).
    pub async fn stop(self) {
        self.stop.cancel();
        let both = async {
            let _ = self.engine.await;
            let _ = self.web.await;
        };
        if tokio::time::timeout(STOP_TIMEOUT, both).await.is_err() {
            tracing::warn!("the server did not stop in time");
        }
    }
}

/// Until somebody wants an end: Ctrl-C, or a polite kill. Containers must not be left behind by either.
pub async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = |kind: SignalKind| async move {
        match signal(kind) {
            Ok(mut signals) => {
                signals.recv().await;
            }
            // Without a handler the signal ends the process by itself.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => {}
        () = wait(SignalKind::terminate()) => {}
    }
}

/// The last warnings and errors of the server's log, oldest first.
pub fn last_problems(log: &Path, most: usize) -> Vec<String> {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let Ok(bytes) = read() else { return Vec::new() };
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let mut found: Vec<String> = text
        .lines()
        .rev()
        .filter(|line| line.contains(" ERROR ") || line.contains(" WARN "))
        .take(most)
        .map(str::to_owned)
        .collect();
    found.reverse();
    found
}

/// Writes the server's log to a file, so that the terminal stays for the run.
pub fn log_to(path: &Path) -> anyhow::Result<()> {
    let file = std::fs::File::create(path)
        .with_context(|| format!("the log file {} cannot be made", path.display()))?;
    let filter = tracing_subscriber::EnvFilter::new("info,sqlx=warn,hyper=warn,h2=warn");
    // When something else took the log already, its place is as good.
    let _ = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_env_filter(filter)
        .with_writer(std::sync::Mutex::new(file))
        .try_init();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_of_a_log_are_its_last_warnings_and_errors() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("server.log");
        assert!(last_problems(&log, 3).is_empty());
        let lines: Vec<String> = (0..10)
            .map(|n| {
                format!(
                    "2026-01-01T00:00:00Z {} zeblit: line {n}",
                    if n % 2 == 0 { "ERROR" } else { " INFO" }
                )
            })
            .collect();
        std::fs::write(&log, lines.join("\n")).unwrap();
        let found = last_problems(&log, 2);
        assert_eq!(found.len(), 2);
        assert!(found.last().unwrap().ends_with("line 8"), "{found:?}");
    }

    #[tokio::test]
    async fn a_taken_usual_port_is_replaced_and_a_wanted_one_is_not() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let other = bind(None, address).await.unwrap();
        assert_ne!(other.local_addr().unwrap(), address);
        let error = bind(Some(address), address).await.unwrap_err();
        assert!(format!("{error:#}").contains("--listen"), "{error:#}");
    }

    #[test]
    fn every_interface_is_reached_by_loopback() {
        assert_eq!(own_url("0.0.0.0:80".parse().unwrap()), "http://127.0.0.1:80");
        assert_eq!(own_url("[::]:80".parse().unwrap()), "http://[::1]:80");
        assert_eq!(own_url("10.0.0.1:80".parse().unwrap()), "http://10.0.0.1:80");
    }
}
