//! The composition root: configuration in, a running system out; the only match on "which backend".

use crate::agent::definition::AgentSet;
use crate::broker::provider::Provider;
use crate::broker::{self, Broker};
use crate::clock::{Clock, IdKind, Ids, RandomIds, SystemClock};
use crate::config::{Config, DiskKind, SandboxKind, WorkspaceKind};
use crate::domain::budget::Price;
use crate::domain::ids::SlotId;
use crate::domain::model_api::ModelApi;
use crate::domain::node::{Node, Role, union};
use crate::domain::secrets::SecretScan;
use crate::engine::execute::Live;
use crate::engine::load::Loads;
use crate::git::{Cache, Disk, Git, Layout, Workspaces};
use crate::queue::local::LocalWakeup;
use crate::queue::{self, Wakeup};
use crate::remote::github::{GithubForge, GithubSettings};
use crate::remote::jira::Jira;
use crate::remote::local::LocalForge;
use crate::remote::sentry::Sentry;
use crate::remote::{Forge, Remote};
use crate::sandbox::Sandbox;
use crate::sandbox::docker::{DockerOptions, DockerSandbox, WarmOptions};
use crate::sandbox::process::ProcessSandbox;
use crate::store::{DatabaseKind, Store};
use anyhow::Context;
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Everything a tick needs. Tests build one from doubles.
#[derive(Debug)]
pub struct App {
    pub config: Arc<Config>,
    pub store: Store,
    pub wakeup: Arc<dyn Wakeup>,
    pub forge: Arc<dyn Forge>,
    /// Where effects go besides the forge: Jira, Sentry.
    pub remotes: Vec<Arc<dyn Remote>>,
    /// The built-in forge, when it is the one in use: its pages are served below `/forge`.
    pub local: Option<LocalForge>,
    pub sandbox: Arc<dyn Sandbox>,
    pub git: Git,
    pub broker: Broker,
    pub agents: AgentSet,
    pub clock: Arc<dyn Clock>,
    pub ids: Arc<dyn Ids>,
    pub signer: Signer,
    /// The server's own secrets: masked in logs and texts, a reason to refuse code.
    pub secrets: SecretScan,
    /// What this process holds for its live runs.
    pub live: Live,
    /// What it knows of the load of its live runs.
    pub loads: Loads,
    /// Who this process is to the others.
    pub node: Node,
    /// Owner of leases and duties, `NODE:BOOT`: unique per boot.
    pub boot: String,
    /// Where per-attempt socket directories are made.
    pub socket_root: std::path::PathBuf,
}

/// Signs hidden markers and run links with the server's secret key.
#[derive(Clone)]
pub struct Signer {
    key: Arc<[u8]>,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signer")
    }
}

impl Signer {
    pub fn new(key: &[u8]) -> Self {
        Self { key: key.into() }
    }

    fn mac(&self, purpose: &str, text: &str) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        for part in [purpose, text] {
            mac.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            mac.update(part.as_bytes());
        }
        mac
    }

    /// 32 hexadecimal characters (128 bits) that only this server can make for `text`.
    pub fn sign(&self, purpose: &str, text: &str) -> String {
        let mut hex = hex::encode(self.mac(purpose, text).finalize().into_bytes());
        hex.truncate(32);
        hex
    }

    /// The private folder of a slot's sockets: a name that nobody can guess.
    pub fn sockets(&self, root: &Path, slot: &SlotId) -> PathBuf {
        root.join(self.sign("sockets", slot.as_str()))
    }

    /// Whether `signature` was made by `sign`, in constant time.
    pub fn verify(&self, purpose: &str, text: &str, signature: &str) -> bool {
        let Ok(bytes) = hex::decode(signature) else { return false };
        bytes.len() == 16 && self.mac(purpose, text).verify_truncated_left(&bytes).is_ok()
    }

    /// The hidden marker of a comment, pull request or check text, e.g. `marker("run", id, "sticky")`.
    pub fn marker(&self, id: &str, purpose: &str) -> String {
        let text = format!("{id} {purpose}");
        format!("<!-- zeblit:v1 id={id} for={purpose} mac={} -->", self.sign("marker", &text))
    }

    /// The path of a run page, good until `expires` (seconds since 1970): `/runs/<id>?e=<expires>&s=<signature>`.
    pub fn run_path(&self, run: &str, expires: i64) -> String {
        let signature = self.sign("run-page", &format!("{run} {expires}"));
        format!("/runs/{run}?e={expires}&s={signature}")
    }

    pub fn run_path_is_valid(&self, run: &str, expires: i64, signature: &str) -> bool {
        self.verify("run-page", &format!("{run} {expires}"), signature)
    }
}

impl App {
    /// Where effects of this name go, when that is configured.
    pub fn remote(&self, name: &str) -> Option<&dyn Remote> {
        if self.forge.name() == name {
            return Some(self.forge.as_ref());
        }
        self.remotes.iter().map(AsRef::as_ref).find(|remote| remote.name() == name)
    }

    /// Builds the system that `config` describes (already validated).
    pub async fn build(config: Config) -> anyhow::Result<Arc<Self>> {
        let mut config = config;
        std::fs::create_dir_all(&config.state_dir)
            .with_context(|| format!("state_dir: cannot create {}", config.state_dir.display()))?;
        // The engine mounts what lies below: it must be an absolute path.
        config.state_dir = config
            .state_dir
            .canonicalize()
            .with_context(|| format!("state_dir: {}", config.state_dir.display()))?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let ids: Arc<dyn Ids> = Arc::new(RandomIds);
        let signer = Signer::new(&config.secret_key_bytes()?);
        let store = Store::open(config.database_url().expose_secret()).await?;
        let (forge, local) = forge(&config, &clock)?;
        let broker =
            Broker::new(broker_settings(&config), store.clone(), Arc::clone(&clock), Arc::clone(&ids));
        let agents = AgentSet::builtin()?
            .with_folders(config.agents.folder.as_deref(), config.agents.skills_folder.as_deref())?;
        let secrets = config.secret_scan();
        crate::telemetry::hide(&secrets);
        let socket_root = config.socket_root();
        std::fs::create_dir_all(&socket_root)
            .with_context(|| format!("sandbox.socket_dir: cannot create {}", socket_root.display()))?;
        let node = node(&config)?;
        Ok(Arc::new(Self {
            sandbox: sandbox(&config, &signer, &ids),
            git: git(&config).await?,
            boot: format!("{}:{}", node.id, ids.next(IdKind::Boot)),
            node,
            secrets,
            live: Live::default(),
            loads: Loads::default(),
            wakeup: wakeup(&config, store.kind())?,
            store,
            forge,
            remotes: remotes(&config)?,
            local,
            broker,
            agents,
            clock,
            ids,
            signer,
            socket_root,
            config: Arc::new(config),
        }))
    }
}

/// Who this process is: its id stands in the state directory, so that each start finds what the last one left.
fn node(config: &Config) -> anyhow::Result<Node> {
    let role = config.node.role;
    let base = config.node_id()?;
    let mut found = vec![if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }.to_owned()];
    if config.sandbox.kind == SandboxKind::Docker {
        found.push("docker".to_owned());
    }
    if config.sandbox.runtime.as_deref() == Some("runsc") {
        found.push("gvisor".to_owned());
    }
    if !role.works() {
        found.clear();
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "localhost" } else { host.trim() };
    Ok(Node {
        // Processes of several roles may share a state directory.
        id: if role == Role::All { base } else { format!("{base}-{}", role.as_str()) },
        name: config.node.name.clone().unwrap_or_else(|| host.to_owned()),
        role,
        capabilities: if role.works() { union(&config.node.capabilities, &found) } else { found },
    })
}

/// The Git store that the configuration describes.
async fn git(config: &Config) -> anyhow::Result<Git> {
    let store = Git::open(&config.state_dir).await?.with_disk(disk(config)).with_cache(cache(config));
    let wanted = match config.sandbox.workspace {
        WorkspaceKind::Auto => Workspaces::Auto,
        WorkspaceKind::Overlay => Workspaces::Fixed(Layout::Overlay),
        WorkspaceKind::Checkout => Workspaces::Fixed(Layout::Checkout),
    };
    if !config.node.role.works() {
        return Ok(store);
    }
    if let (Workspaces::Auto, Some(why)) = (wanted, store.no_overlay()) {
        tracing::info!(why, "each workspace is a checkout of its own");
    }
    store.with_workspaces(wanted).context("sandbox.workspace")
}

/// What is kept for later runs.
pub fn cache(config: &Config) -> Cache {
    let bytes = u64::try_from(config.sandbox.cache_mib).unwrap_or(0).saturating_mul(1 << 20);
    Cache { bytes: (bytes > 0).then_some(bytes) }
}

/// What bounds the folders of runs.
pub fn disk(config: &Config) -> Disk {
    match config.sandbox.disk {
        DiskKind::Watch => Disk::Watched,
        DiskKind::Loop => Disk::Loop {
            bytes: config.sandbox.disk_mib.saturating_mul(1 << 20),
            files: config.sandbox.disk_files,
        },
    }
}

fn wakeup(config: &Config, database: DatabaseKind) -> anyhow::Result<Arc<dyn Wakeup>> {
    match (&config.redis.url, database) {
        (Some(url), _) => {
            let wakeup = queue::redis::start(url.expose_secret());
            // The URL may hold a password: the error names the key only.
            Ok(Arc::new(wakeup.ok().context("redis.url: is not a Redis URL")?))
        }
        (None, DatabaseKind::Sqlite) => Ok(Arc::new(LocalWakeup::default())),
        (None, DatabaseKind::Postgres) => {
            let wakeup = queue::postgres::start(config.database_url().expose_secret());
            Ok(Arc::new(wakeup.ok().context("database.url: is not a Postgres URL")?))
        }
    }
}

/// Jira and Sentry, as far as they are to be written to.
pub fn remotes(config: &Config) -> anyhow::Result<Vec<Arc<dyn Remote>>> {
    let mut remotes: Vec<Arc<dyn Remote>> = Vec::new();
    if let (Some(base), Some(token)) = (&config.jira.base_url, &config.jira.token) {
        let jira = Jira::new(base, config.jira.account.as_deref(), token).map_err(anyhow::Error::msg);
        remotes.push(Arc::new(jira.context("jira.base_url")?));
    }
    if let (Some(base), Some(token), Some(organization)) =
        (&config.sentry.base_url, &config.sentry.token, &config.sentry.account)
    {
        let sentry = Sentry::new(base, organization, token).map_err(anyhow::Error::msg);
        remotes.push(Arc::new(sentry.context("sentry.base_url")?));
    }
    Ok(remotes)
}

/// GitHub or the local forge; the latter also as itself, for its pages.
fn forge(config: &Config, clock: &Arc<dyn Clock>) -> anyhow::Result<(Arc<dyn Forge>, Option<LocalForge>)> {
    if let Some(github) = &config.github {
        let key = match config.github_private_key()? {
            Some(key) => key,
            None if !config.node.role.is_the_app() => SecretString::default(),
            None => anyhow::bail!("github.private_key: is missing"),
        };
        let forge = GithubForge::new(GithubSettings {
            app_id: github.app_id,
            private_key: key,
            api_url: github.api_url.clone(),
            git_url: github.git_url.clone(),
            web_url: github.web_url.clone().unwrap_or_else(|| github.git_url.clone()),
            storage_urls: github.storage_urls.clone(),
            clock: Arc::clone(clock),
        })?;
        return Ok((Arc::new(forge), None));
    }
    if config.local_forge.is_some() {
        let web = format!("{}/forge", config.public_url().trim_end_matches('/'));
        let forge = LocalForge::open(&config.local_forge_folder(), &web, Arc::clone(clock))?;
        return Ok((Arc::new(forge.clone()), Some(forge)));
    }
    anyhow::bail!("there is no forge: set `[github]` (see `zeblit config example`), or try `zeblit demo`")
}

/// What the broker is told of the configuration.
pub fn broker_settings(config: &Config) -> broker::Settings {
    let micros = |dollars: f64| (dollars * 1e6).round() as i64;
    let price = |price: &crate::config::PriceConfig| Price {
        input: micros(price.input),
        output: micros(price.output),
        cache_read: micros(price.cache_read),
        cache_write: micros(price.cache_write),
    };
    let models = &config.models;
    let general = |api: ModelApi| {
        let (url, key) = models.endpoint(api);
        Provider::general(api, url, key.cloned())
    };
    let own = models.providers.iter().map(|(name, provider)| {
        let (url, key) = models.endpoint(provider.api);
        // Another address gets no key that was not given for it.
        let key = if provider.url.is_some() { None } else { key };
        Provider {
            name: name.clone(),
            api: provider.api,
            base_url: provider.url.as_deref().unwrap_or(url).to_owned(),
            key: provider.api_key.as_ref().or(key).cloned(),
            models: provider.models.clone(),
            needs_key: provider.url.is_none(),
        }
    });
    broker::Settings {
        providers: ModelApi::ALL.into_iter().map(general).chain(own).collect(),
        fallback: models.fallback.clone(),
        prices: config.models.prices.iter().map(|(name, cost)| (name.clone(), price(cost))).collect(),
    }
}

fn sandbox(config: &Config, signer: &Signer, ids: &Arc<dyn Ids>) -> Arc<dyn Sandbox> {
    match config.sandbox.kind {
        SandboxKind::Docker => Arc::new(DockerSandbox::connect(DockerOptions {
            docker_host: config.sandbox.docker_host.clone(),
            instance: signer.sign("instance", &config.state_dir.to_string_lossy()),
            shim_folder: config.state_dir.join("bin"),
            owner: None,
            image: config.sandbox.image.clone(),
            runtime: config.sandbox.runtime.clone(),
            warm: Some(WarmOptions {
                most: config.sandbox.warm_slots,
                folder: config.state_dir.join("slots"),
                views: vec![config.state_dir.join("mirrors"), config.state_dir.join("caches")],
                sockets: {
                    let (signer, root) = (signer.clone(), config.socket_root());
                    Arc::new(move |slot| signer.sockets(&root, slot))
                },
                ids: Arc::clone(ids),
            }),
        })),
        SandboxKind::Process => {
            Arc::new(ProcessSandbox::new(config.state_dir.join("processes"), config.state_dir.join("bin")))
        }
    }
}
