//! The server's configuration: `zeblit-server.toml` and `ZEBLIT_*` variables, validated once.

use crate::domain::budget::BudgetRules;
use crate::domain::egress::AllowList;
use crate::domain::event::Source;
use crate::domain::ids::RepoName;
use crate::domain::model_api::ModelApi;
use crate::domain::node::{self, Role};
use crate::domain::policy::PushMode;
use crate::domain::secrets::SecretScan;
use figment::providers::{Format, Serialized, Toml};
use figment::{Figment, Provider, error::Kind};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use url::Url;

/// Everything the server is told. Secrets are `SecretString` and never printed.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where state lives: database, mirrors, seeds, workspaces, the secret key.
    pub state_dir: PathBuf,
    pub server: ServerConfig,
    pub node: NodeConfig,
    pub database: DatabaseConfig,
    /// Wake-ups between processes on one database.
    pub redis: RedisConfig,
    /// GitHub App; absent: no GitHub.
    pub github: Option<GithubConfig>,
    pub jira: SourceConfig,
    pub sentry: SourceConfig,
    /// The built-in forge (demo, `zeblit run`); never together with `github`.
    pub local_forge: Option<LocalForgeConfig>,
    pub sandbox: SandboxConfig,
    pub egress: EgressConfig,
    pub setup: SetupConfig,
    pub inputs: InputsConfig,
    pub models: ModelsConfig,
    pub limits: LimitsConfig,
    pub budget: BudgetConfig,
    pub agents: AgentsConfig,
    pub publish: PublishConfig,
    pub retention: RetentionConfig,
    pub repair: RepairConfig,
    /// Signs markers and run links. Absent: made once, 0600, in the state directory.
    pub secret_key: Option<SecretString>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    pub listen: SocketAddr,
    /// Where people reach this server, e.g. `https://zeblit.example.com`; required with `github`.
    pub public_url: Option<String>,
    /// `link`: `/runs/<id>` behind a signed link; `off`: no run pages.
    pub run_page: RunPage,
    pub run_link_days: i64,
    /// Seconds until the header of a request must be complete.
    pub header_timeout_seconds: u64,
    /// Seconds until the body of a request must be complete.
    pub body_timeout_seconds: u64,
    /// Bytes of bodies held in memory at one time, all requests together; more gets 503.
    pub inflight_bytes: usize,
    pub max_connections: usize,
    pub log_format: LogFormat,
}

/// What this process is among several on one database.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// For people; absent: the machine's name.
    pub name: Option<String>,
    pub role: Role,
    /// What this machine can, besides what is found by itself.
    pub capabilities: Vec<String>,
    /// Runs at one time on this node; absent: as many as `limits.runs`.
    pub slots: Option<i64>,
    /// Where a node without web pages answers `/healthz`, `/readyz` and `/metrics`; absent: nowhere.
    pub health: Option<SocketAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunPage {
    Link,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct RedisConfig {
    /// `redis://…`; absent: Postgres itself carries the wake-ups, and on SQLite they stay inside the process.
    pub url: Option<SecretString>,
}

#[derive(Debug, Clone, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct DatabaseConfig {
    /// `sqlite:PATH` or `postgres://…`; absent: `sqlite:<state_dir>/zeblit.db`.
    pub url: Option<SecretString>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GithubConfig {
    #[serde(default)]
    pub app_id: u64,
    /// PEM text, or `private_key_file`.
    pub private_key: Option<SecretString>,
    pub private_key_file: Option<PathBuf>,
    /// One secret, or two during rotation.
    #[serde(default)]
    pub webhook_secrets: Vec<SecretString>,
    /// `https://api.github.com`, or `https://HOST/api/v3` on GitHub Enterprise Server.
    #[serde(default = "default_api_url")]
    pub api_url: String,
    /// `https://github.com`: clone URLs are `<git_url>/<owner>/<name>.git`.
    #[serde(default = "default_git_url")]
    pub git_url: String,
    /// Where people see it; default: `git_url`.
    #[serde(default)]
    pub web_url: Option<String>,
    /// Where an own server keeps uploads and logs, when that is another host.
    #[serde(default)]
    pub storage_urls: Vec<String>,
    #[serde(default = "default_github_body")]
    pub max_body_bytes: usize,
}

fn default_api_url() -> String {
    "https://api.github.com".into()
}
fn default_git_url() -> String {
    "https://github.com".into()
}
/// GitHub's own cap is 25 MB (its webhook documentation).
fn default_github_body() -> usize {
    25 * 1024 * 1024
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceConfig {
    /// Empty: the source is disabled.
    pub webhook_secrets: Vec<SecretString>,
    pub max_body_bytes: usize,
    /// With `token`: effects may go there.
    pub base_url: Option<String>,
    pub token: Option<SecretString>,
    /// Jira Cloud: whose token it is, an e-mail address. Sentry: the slug of the organisation.
    pub account: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalForgeConfig {
    #[serde(default)]
    pub webhook_secret: SecretString,
    /// Default: `<state_dir>/forge`.
    #[serde(default)]
    pub folder: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxKind {
    Docker,
    /// No isolation: only for the demo's own recipe.
    Process,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskKind {
    /// Measured while the agent runs: a fast writer passes the limit before it is stopped.
    Watch,
    /// A file system of the limit's size for each run; needs root and loop devices.
    Loop,
}

/// How the workspaces of runs are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkspaceKind {
    /// As overlays where they work.
    Auto,
    /// As overlays on a checkout that is shared: nothing is copied; needs root.
    Overlay,
    /// Each as a checkout of its own.
    Checkout,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SandboxConfig {
    pub kind: SandboxKind,
    /// `unix:///var/run/docker.sock` or `http://…`.
    pub docker_host: String,
    /// The image of repositories that name none.
    pub image: String,
    /// Images that repositories may name, besides `image`.
    pub allowed_images: Vec<String>,
    pub memory_mib: i64,
    pub cpus: f64,
    pub pids: i64,
    pub log_mib: i64,
    /// Wall clock of one run.
    pub minutes: i64,
    /// Without output and model traffic for this long, a run ends.
    pub idle_minutes: i64,
    pub disk: DiskKind,
    /// Workspace, output and home of one run together.
    pub disk_mib: i64,
    pub disk_files: i64,
    pub workspace: WorkspaceKind,
    /// Mirrors and prepared checkouts of all repositories together; 0: no limit.
    pub cache_mib: i64,
    /// Started containers that may wait for runs; 0: each run's container starts with it.
    pub warm_slots: usize,
    /// The engine's runtime, e.g. `runsc`; absent: its default.
    pub runtime: Option<String>,
    /// Where per-attempt socket directories live; default `/run/zeblit`, else `$XDG_RUNTIME_DIR/zeblit`, else below the state directory.
    pub socket_dir: Option<PathBuf>,
    /// Refuse to start unless the recommended lines of the profile hold too.
    pub strict: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EgressConfig {
    /// What repositories may choose from: bundles and names of hosts. Empty: containers reach nothing.
    pub allow: Vec<String>,
    /// Bytes of one run, out and in.
    pub upload_kib: i64,
    pub download_mib: i64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SetupConfig {
    /// Wall clock of a repository's `setup`.
    pub minutes: i64,
    /// Size of one cache; one that grew larger is thrown away.
    pub cache_mib: i64,
    /// Days after which a cache that nobody used is thrown away.
    pub cache_days: i64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InputsConfig {
    /// Files attached to an issue or pull request that an agent gets; 0: none.
    pub attachments: i64,
    /// Size of one, and of all together.
    pub attachment_kib: i64,
    pub attachments_kib: i64,
}

impl Default for InputsConfig {
    fn default() -> Self {
        Self { attachments: 10, attachment_kib: 5 * 1024, attachments_kib: 20 * 1024 }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelsConfig {
    pub anthropic_url: String,
    pub anthropic_api_key: Option<SecretString>,
    /// With its version: `https://api.openai.com/v1`.
    pub openai_url: String,
    pub openai_api_key: Option<SecretString>,
    pub gemini_url: String,
    pub gemini_api_key: Option<SecretString>,
    /// More endpoints, by name: gateways and local servers with one of the three APIs.
    pub providers: BTreeMap<String, ProviderConfig>,
    /// Model name to the models that are asked instead when it is over its quota, busy or not to be reached.
    pub fallback: BTreeMap<String, Vec<String>>,
    /// Used when neither command, agent nor repository name a model.
    pub default_model: String,
    /// Model name to dollars per million tokens, over the built-in table.
    pub prices: BTreeMap<String, PriceConfig>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderConfig {
    pub api: ModelApi,
    /// Absent: the address of its API, with the key of its API.
    pub url: Option<String>,
    /// Absent, with a `url`: requests go without a key.
    pub api_key: Option<SecretString>,
    /// The models that it serves, by exact name.
    pub models: Vec<String>,
}

impl ModelsConfig {
    /// The address and key of an API's own provider.
    pub fn endpoint(&self, api: ModelApi) -> (&str, Option<&SecretString>) {
        match api {
            ModelApi::Anthropic => (&self.anthropic_url, self.anthropic_api_key.as_ref()),
            ModelApi::OpenAi => (&self.openai_url, self.openai_api_key.as_ref()),
            ModelApi::Gemini => (&self.gemini_url, self.gemini_api_key.as_ref()),
        }
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceConfig {
    pub input: f64,
    pub output: f64,
    pub cache_read: f64,
    pub cache_write: f64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Runs at one time: in all, per repository, per user.
    pub runs: i64,
    pub runs_per_repo: i64,
    pub runs_per_user: i64,
    /// The same for all repositories of one account together.
    pub runs_per_owner: i64,
    /// A run that waited so many hours in the queue ends.
    pub queue_hours: i64,
    /// A run that waits for other tasks ends after so many days.
    pub blocked_days: i64,
    /// Commands that start runs, per user and hour; and when they are given as labels, which come in bulk.
    pub commands_per_user_hour: i64,
    pub labels_per_user_hour: i64,
    /// Dollars of one run that names no budget, and the most that a command may ask for.
    pub run_budget: f64,
    pub max_run_budget: f64,
    /// Content writes to one installation: per minute, per hour, and milliseconds between two.
    pub writes_per_minute: i64,
    pub writes_per_hour: i64,
    pub write_spacing_ms: i64,
    /// Seconds between two edits of one progress comment.
    pub progress_seconds: i64,
    /// Seconds that a run stays with a worker that does not say that it lives.
    pub lease_seconds: i64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentsConfig {
    /// The agent of `fix`, `continue` and plain words; of `review`; of `ask`.
    pub fix: String,
    pub review: String,
    pub ask: String,
    pub folder: Option<PathBuf>,
    pub skills_folder: Option<PathBuf>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PublishConfig {
    /// How far a result gets; repositories may only be stricter.
    pub mode: PushMode,
    /// The same for single repositories (`owner/name`) and owners (`owner/*`).
    pub repositories: BTreeMap<String, PushMode>,
    /// The account whose forks take the branches in the mode `fork`.
    pub fork_owner: Option<String>,
    /// A change that nobody approved is dropped after so many days.
    pub approval_days: i64,
    /// Every run is a dry run.
    pub staged: bool,
}

impl Default for PublishConfig {
    fn default() -> Self {
        Self {
            mode: PushMode::Trusted,
            repositories: BTreeMap::new(),
            fork_owner: None,
            approval_days: 7,
            staged: false,
        }
    }
}

/// Days after which things are thrown away. Runs, the ledger and the audit log stay.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionConfig {
    /// Deliveries that were handled; as long as they are kept, a repetition is known by its id.
    pub deliveries_days: i64,
    /// Deliveries that led to nothing.
    pub ignored_days: i64,
    /// Logs and samples of ended runs.
    pub logs_days: i64,
    /// Bundles and diffs of ended runs, and files that they left for download.
    pub artifacts_days: i64,
    /// Sessions of agents, for `/zeblit continue`; 0: none are kept.
    pub sessions_days: i64,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        Self { deliveries_days: 30, ignored_days: 7, logs_days: 30, artifacts_days: 30, sessions_days: 14 }
    }
}

/// Looking after what the forge could not tell.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RepairConfig {
    /// Minutes between two looks for deliveries that did not arrive; 0: never.
    pub minutes: i64,
}

impl Default for RepairConfig {
    fn default() -> Self {
        Self { minutes: 5 }
    }
}

impl PublishConfig {
    /// The mode of a repository: its own entry, else its owner's, else the general one.
    pub fn mode_of(&self, repo: &RepoName) -> PushMode {
        let of = |name: &str| {
            self.repositories.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, mode)| *mode)
        };
        of(repo.as_str()).or_else(|| of(&format!("{}/*", repo.owner()))).unwrap_or(self.mode)
    }
}

/// Dollars spent on models, besides `limits.run_budget`; absent: no limit.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BudgetConfig {
    pub user_day: Option<f64>,
    pub repo_day: Option<f64>,
    pub owner_month: Option<f64>,
}

impl BudgetConfig {
    pub fn rules(&self) -> BudgetRules {
        BudgetRules {
            user_day_micros: self.user_day.map(micros),
            repo_day_micros: self.repo_day.map(micros),
            owner_month_micros: self.owner_month.map(micros),
        }
    }
}

/// Dollars as written in configuration, in micros.
pub fn micros(dollars: f64) -> i64 {
    // Validated to be finite and at most a million dollars: far inside i64 and exact to the micro.
    (dollars * 1e6).round() as i64
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: PathBuf::from("state"),
            server: ServerConfig::default(),
            node: NodeConfig::default(),
            database: DatabaseConfig::default(),
            redis: RedisConfig::default(),
            github: None,
            jira: SourceConfig::default(),
            sentry: SourceConfig { max_body_bytes: 5 * 1024 * 1024, ..SourceConfig::default() },
            local_forge: None,
            sandbox: SandboxConfig::default(),
            egress: EgressConfig::default(),
            setup: SetupConfig::default(),
            inputs: InputsConfig::default(),
            models: ModelsConfig::default(),
            limits: LimitsConfig::default(),
            budget: BudgetConfig::default(),
            agents: AgentsConfig::default(),
            publish: PublishConfig::default(),
            retention: RetentionConfig::default(),
            repair: RepairConfig::default(),
            secret_key: None,
        }
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            public_url: None,
            run_page: RunPage::Link,
            run_link_days: 90,
            header_timeout_seconds: 5,
            body_timeout_seconds: 8,
            inflight_bytes: 256 * 1024 * 1024,
            max_connections: 4096,
            log_format: LogFormat::Text,
        }
    }
}

impl Default for SourceConfig {
    fn default() -> Self {
        Self {
            webhook_secrets: Vec::new(),
            max_body_bytes: 25 * 1024 * 1024,
            base_url: None,
            token: None,
            account: None,
        }
    }
}

impl Default for SandboxConfig {
    fn default() -> Self {
        Self {
            kind: SandboxKind::Docker,
            docker_host: "unix:///var/run/docker.sock".into(),
            image: "zeblit-agent:latest".into(),
            allowed_images: Vec::new(),
            memory_mib: 4096,
            cpus: 2.0,
            pids: 512,
            log_mib: 50,
            minutes: 60,
            idle_minutes: 20,
            disk: DiskKind::Watch,
            disk_mib: 10_240,
            disk_files: 1_000_000,
            workspace: WorkspaceKind::Auto,
            cache_mib: 20_480,
            warm_slots: 4,
            runtime: None,
            socket_dir: None,
            strict: false,
        }
    }
}

impl Default for EgressConfig {
    fn default() -> Self {
        Self { allow: Vec::new(), upload_kib: 8192, download_mib: 2048 }
    }
}

impl Default for SetupConfig {
    fn default() -> Self {
        Self { minutes: 15, cache_mib: 4096, cache_days: 14 }
    }
}

impl Default for ModelsConfig {
    fn default() -> Self {
        Self {
            anthropic_url: "https://api.anthropic.com".into(),
            anthropic_api_key: None,
            openai_url: "https://api.openai.com/v1".into(),
            openai_api_key: None,
            gemini_url: "https://generativelanguage.googleapis.com".into(),
            gemini_api_key: None,
            providers: BTreeMap::new(),
            fallback: BTreeMap::new(),
            default_model: "claude-sonnet-4-5".into(),
            prices: BTreeMap::new(),
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            runs: 4,
            runs_per_repo: 2,
            runs_per_user: 2,
            runs_per_owner: 100,
            queue_hours: 24,
            blocked_days: 30,
            labels_per_user_hour: 100,
            commands_per_user_hour: 20,
            run_budget: 5.0,
            max_run_budget: 20.0,
            writes_per_minute: 60,
            writes_per_hour: 400,
            write_spacing_ms: 1000,
            progress_seconds: 15,
            lease_seconds: 60,
        }
    }
}

impl Default for AgentsConfig {
    fn default() -> Self {
        Self {
            fix: "fixer".into(),
            review: "reviewer".into(),
            ask: "explainer".into(),
            folder: None,
            skills_folder: None,
        }
    }
}

/// A configuration that cannot be used; every problem found, each with its key.
#[derive(Debug, thiserror::Error)]
#[error("{}", .problems.join("\n"))]
pub struct ConfigError {
    pub problems: Vec<String>,
}

impl ConfigError {
    fn one(problem: String) -> Self {
        Self { problems: vec![problem] }
    }
}

/// The file that is read when none is named.
pub const DEFAULT_FILE: &str = "zeblit-server.toml";
const ENV_PREFIX: &str = "ZEBLIT_";
/// Variables with our prefix that are not configuration keys: the CLI's own, the log filter, tests and the demo.
const OTHER_VARIABLES: &[&str] = &["LOG", "URL", "TOKEN", "CONFIG", "SHIM"];
/// Stands for `node.role`.
const ROLE_VARIABLE: &str = "ROLE";
const OTHER_VARIABLE_PREFIXES: &[&str] = &["TEST_", "DEMO_"];
/// Shortest webhook secret, in characters: 16 random characters are out of reach of guessing.
const MIN_WEBHOOK_SECRET_CHARS: usize = 16;
/// Shortest configured secret key, in characters.
const MIN_SECRET_KEY_CHARS: usize = 32;
/// Two secrets are accepted during rotation, never more.
const MAX_WEBHOOK_SECRETS: usize = 2;
/// Each costs the host about 13 MiB.
const MAX_WARM_SLOTS: usize = 64;
/// Bytes of a secret key that we make ourselves: the block strength of HMAC-SHA256.
const SECRET_KEY_BYTES: usize = 32;
/// A configuration or key file larger than this is not one, in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// An edit distance above this is no typing mistake.
const MAX_TYPO_DISTANCE: usize = 3;

/// How a key is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyKind {
    Text,
    Integer,
    Number,
    Bool,
    List,
    Table,
}

impl KeyKind {
    fn expected(self) -> &'static str {
        match self {
            KeyKind::Text => "a text in quotes",
            KeyKind::Integer => "a whole number",
            KeyKind::Number => "a number",
            KeyKind::Bool => "true or false",
            KeyKind::List => "a list of texts, e.g. [\"…\"]",
            KeyKind::Table => "a table",
        }
    }
}

/// The effective value of a key, without ever holding a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// As TOML.
    Value(String),
    /// A secret that is set.
    Secret,
    Unset,
}

/// One key of the configuration: the example, `config check`, the hints for unknown keys and the reading of
/// variables are all made from this table.
struct Key {
    path: &'static str,
    kind: KeyKind,
    about: &'static str,
    /// Shown commented out where there is no default.
    example: &'static str,
    show: fn(&Config) -> Shown,
}

fn text(value: &str) -> Shown {
    Shown::Value(toml::Value::String(value.to_owned()).to_string())
}
fn optional(value: Option<&str>) -> Shown {
    value.map_or(Shown::Unset, text)
}
fn folder(value: Option<&PathBuf>) -> Shown {
    optional(value.map(|path| path.to_string_lossy()).as_deref())
}
fn plain(value: impl std::fmt::Display) -> Shown {
    Shown::Value(value.to_string())
}
/// With a decimal point, as TOML wants its floats.
fn number(value: f64) -> Shown {
    Shown::Value(format!("{value:?}"))
}
fn texts(values: &[String]) -> Shown {
    Shown::Value(toml::Value::from(values.to_vec()).to_string())
}
fn optional_number(value: Option<f64>) -> Shown {
    value.map_or(Shown::Unset, number)
}
fn secret(value: Option<&SecretString>) -> Shown {
    value.map_or(Shown::Unset, |_| Shown::Secret)
}
fn secrets(values: &[SecretString]) -> Shown {
    if values.is_empty() { Shown::Value("[]".into()) } else { Shown::Secret }
}
fn of_github(config: &Config, show: impl Fn(&GithubConfig) -> Shown) -> Shown {
    config.github.as_ref().map_or(Shown::Unset, show)
}
fn of_local(config: &Config, show: impl Fn(&LocalForgeConfig) -> Shown) -> Shown {
    config.local_forge.as_ref().map_or(Shown::Unset, show)
}
fn modes(values: &BTreeMap<String, PushMode>) -> Shown {
    let row = |(name, mode): (&String, &PushMode)| {
        format!("{} = \"{}\"", toml::Value::String(name.clone()), mode.name())
    };
    let rows: Vec<String> = values.iter().map(row).collect();
    Shown::Value(if rows.is_empty() { "{}".into() } else { format!("{{ {} }}", rows.join(", ")) })
}
fn prices(values: &BTreeMap<String, PriceConfig>) -> Shown {
    let rows: Vec<String> = values
        .iter()
        .map(|(model, p)| {
            format!(
                "{} = {{ input = {:?}, output = {:?}, cache_read = {:?}, cache_write = {:?} }}",
                toml::Value::String(model.clone()),
                p.input,
                p.output,
                p.cache_read,
                p.cache_write
            )
        })
        .collect();
    table(rows)
}

/// Without the keys.
fn providers(values: &BTreeMap<String, ProviderConfig>) -> Shown {
    let shown = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let rows = values.iter().map(|(name, provider)| {
        let url = provider.url.as_deref().map_or_else(String::new, |url| format!(", url = {}", shown(url)));
        let models = toml::Value::from(provider.models.clone());
        format!("{} = {{ api = {}{url}, models = {models} }}", shown(name), shown(provider.api.name()))
    });
    table(rows.collect())
}

fn lists(values: &BTreeMap<String, Vec<String>>) -> Shown {
    let rows = values.iter().map(|(name, list)| {
        format!("{} = {}", toml::Value::String(name.clone()), toml::Value::from(list.clone()))
    });
    table(rows.collect())
}

fn table(rows: Vec<String>) -> Shown {
    if rows.is_empty() {
        Shown::Value("{}".into())
    } else {
        Shown::Value(format!("{{ {} }}", rows.join(", ")))
    }
}

/// What a section is for, shown above it in the example.
const SECTIONS: &[(&str, &str)] = &[
    ("", ""),
    ("server", "How the server listens and how it is reached."),
    ("node", "Several processes on one Postgres database, each with its role; see deploy/README.md."),
    ("database", "Where the truth is kept: SQLite (default) or Postgres."),
    ("redis", "Wake-ups between processes on one database; only hints."),
    (
        "github",
        "The GitHub App. Leave the whole section out when there is no GitHub; then `local_forge` is needed.",
    ),
    ("local_forge", "The built-in forge, for demos and local work; never together with `github`."),
    ("jira", "Jira deliveries are accepted and kept. No secret: the source is disabled."),
    ("sentry", "Sentry deliveries are accepted and kept. No secret: the source is disabled."),
    ("sandbox", "Where agents run."),
    ("egress", "Hosts that repositories may choose for their runs (`zeblit help egress`); by default none."),
    ("setup", "What repositories run ahead of the agent (`setup` in `.github/zeblit.toml`)."),
    ("inputs", "What an agent is given of an issue or pull request besides its text."),
    (
        "models",
        "The model endpoints. Agents never see a key: the server's proxy adds it and meters every request.",
    ),
    ("limits", "Caps on runs, money and writes to the forge."),
    (
        "publish",
        "What becomes of a result. A pushed branch starts the repository's workflows, with its secrets: see `zeblit help modes`.",
    ),
    ("retention", "Days after which things are thrown away; runs, the ledger and the audit log stay."),
    ("repair", "Asking GitHub for what it could not deliver."),
    ("budget", "Dollars for models, all runs together. A request that might pass one is not sent."),
    ("agents", "Which agent serves which command, and your own agents and skills."),
];

macro_rules! key {
    ($path:literal, $kind:ident, $about:literal, $example:literal, $show:expr) => {
        Key { path: $path, kind: KeyKind::$kind, about: $about, example: $example, show: $show }
    };
}

/// Every key, in the order of the example.
const KEYS: &[Key] = &[
    key!("state_dir", Text, "Where state lives: database, mirrors, workspaces, the secret key.", "", |c| {
        text(&c.state_dir.to_string_lossy())
    }),
    key!(
        "secret_key",
        Text,
        "Signs comment markers and run links: at least 32 characters. Unset: made once, readable by the owner only, as secret.key in the state directory. Several nodes need the same one: then it must be set.",
        "\"a long random text, at least 32 characters\"",
        |c| secret(c.secret_key.as_ref())
    ),
    key!("server.listen", Text, "Address and port to listen on.", "", |c| text(&c.server.listen.to_string())),
    key!(
        "server.public_url",
        Text,
        "Where people and webhooks reach this server; required with `github`.",
        "\"https://zeblit.example.com\"",
        |c| optional(c.server.public_url.as_deref())
    ),
    key!(
        "server.run_page",
        Text,
        "\"link\": each run has a page behind a signed link; \"off\": no run pages.",
        "",
        |c| text(match c.server.run_page {
            RunPage::Link => "link",
            RunPage::Off => "off",
        })
    ),
    key!("server.run_link_days", Integer, "Days until a link to a run page expires.", "", |c| plain(
        c.server.run_link_days
    )),
    key!(
        "server.header_timeout_seconds",
        Integer,
        "Seconds until the headers of a request must be complete.",
        "",
        |c| plain(c.server.header_timeout_seconds)
    ),
    key!(
        "server.body_timeout_seconds",
        Integer,
        "Seconds until the body of a request must be complete.",
        "",
        |c| plain(c.server.body_timeout_seconds)
    ),
    key!(
        "server.inflight_bytes",
        Integer,
        "Bytes of bodies held in memory at one time, all requests together; more gets 503.",
        "",
        |c| plain(c.server.inflight_bytes)
    ),
    key!("server.max_connections", Integer, "Connections at one time; more wait to be accepted.", "", |c| {
        plain(c.server.max_connections)
    }),
    key!("server.log_format", Text, "\"text\" or \"json\".", "", |c| text(match c.server.log_format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    })),
    key!(
        "node.name",
        Text,
        "The name of this node for people; unset: the machine's name.",
        "\"worker-1\"",
        |c| { optional(c.node.name.as_deref()) }
    ),
    key!(
        "node.role",
        Text,
        "\"all\", or a part: \"web\" (webhooks, API, run pages), \"deliver\" (deliveries become runs, comments are written), \"worker\" (agents). Parts need Postgres and `secret_key`. `serve --role` and ZEBLIT_ROLE win.",
        "",
        |c| text(c.node.role.as_str())
    ),
    key!(
        "node.capabilities",
        List,
        "What repositories and agents may ask for with `needs`, besides the processor (amd64, arm64), `docker` and `gvisor`, which are found.",
        "",
        |c| texts(&c.node.capabilities)
    ),
    key!(
        "node.slots",
        Integer,
        "Runs at one time on this node; unset: as many as `limits.runs`, which counts all nodes.",
        "4",
        |c| c.node.slots.map_or(Shown::Unset, plain)
    ),
    key!(
        "node.health",
        Text,
        "Where a node without web pages answers /healthz, /readyz and /metrics; unset: nowhere.",
        "\"127.0.0.1:9090\"",
        |c| optional(c.node.health.map(|address| address.to_string()).as_deref())
    ),
    key!(
        "database.url",
        Text,
        "`sqlite:PATH` or `postgres://…`; unset: `sqlite:<state_dir>/zeblit.db`.",
        "\"postgres://zeblit@localhost/zeblit\"",
        |c| secret(c.database.url.as_ref())
    ),
    key!(
        "redis.url",
        Text,
        "Wake-ups between processes on one database; unset: by Postgres itself, on SQLite inside this process. Losing Redis costs seconds, never data.",
        "\"redis://localhost\"",
        |c| secret(c.redis.url.as_ref())
    ),
    key!("github.app_id", Integer, "The App ID on the settings page of your GitHub App.", "12345", |c| {
        of_github(c, |g| plain(g.app_id))
    }),
    key!(
        "github.private_key",
        Text,
        "The App's private key as PEM text; or name its file with `private_key_file`.",
        "\"-----BEGIN RSA PRIVATE KEY-----…\"",
        |c| of_github(c, |g| secret(g.private_key.as_ref()))
    ),
    key!(
        "github.private_key_file",
        Text,
        "The file with the App's private key; must not be readable by everybody (chmod 600).",
        "\"github-app.pem\"",
        |c| of_github(c, |g| folder(g.private_key_file.as_ref()))
    ),
    key!(
        "github.webhook_secrets",
        List,
        "The webhook secret of the App: at least 16 characters; two while you rotate it.",
        "[\"a long random text\"]",
        |c| of_github(c, |g| secrets(&g.webhook_secrets))
    ),
    key!(
        "github.api_url",
        Text,
        "`https://HOST/api/v3` on GitHub Enterprise Server.",
        "\"https://api.github.com\"",
        |c| of_github(c, |g| text(&g.api_url))
    ),
    key!(
        "github.git_url",
        Text,
        "Repositories are cloned from `<git_url>/<owner>/<name>.git`.",
        "\"https://github.com\"",
        |c| of_github(c, |g| text(&g.git_url))
    ),
    key!(
        "github.web_url",
        Text,
        "Where people see the forge; unset: the same as `git_url`.",
        "\"https://github.com\"",
        |c| of_github(c, |g| optional(g.web_url.as_deref()))
    ),
    key!(
        "github.storage_urls",
        List,
        "GitHub Enterprise Server: addresses of the object store where it keeps attachments and logs, when that is another host.",
        "[\"https://minio.example.com\"]",
        |c| of_github(c, |g| texts(&g.storage_urls))
    ),
    key!(
        "github.max_body_bytes",
        Integer,
        "Largest delivery taken, in bytes; GitHub itself sends at most 25 MB.",
        "26214400",
        |c| of_github(c, |g| plain(g.max_body_bytes))
    ),
    key!(
        "local_forge.webhook_secret",
        Text,
        "Signs the forge's own webhooks: at least 16 characters.",
        "\"a long random text\"",
        |c| of_local(c, |l| secret(Some(&l.webhook_secret)))
    ),
    key!(
        "local_forge.folder",
        Text,
        "Where its repositories live; unset: `<state_dir>/forge`.",
        "\"state/forge\"",
        |c| of_local(c, |l| folder(l.folder.as_ref()))
    ),
    key!(
        "jira.webhook_secrets",
        List,
        "The secret of the Jira webhook: at least 16 characters; two while you rotate it.",
        "",
        |c| secrets(&c.jira.webhook_secrets)
    ),
    key!("jira.max_body_bytes", Integer, "Largest delivery taken, in bytes.", "", |c| plain(
        c.jira.max_body_bytes
    )),
    key!(
        "jira.base_url",
        Text,
        "Where comments and transitions go; unset: nowhere.",
        "\"https://octo.atlassian.net\"",
        |c| optional(c.jira.base_url.as_deref())
    ),
    key!(
        "jira.account",
        Text,
        "Cloud: the e-mail address of the account; Data Center: leave it out.",
        "\"bot@example.com\"",
        |c| { optional(c.jira.account.as_deref()) }
    ),
    key!(
        "jira.token",
        Text,
        "Its API token (Cloud) or personal access token (Data Center).",
        "\"…\"",
        |c| secret(c.jira.token.as_ref())
    ),
    key!(
        "sentry.webhook_secrets",
        List,
        "The client secret of the Sentry integration: at least 16 characters; two while you rotate it.",
        "",
        |c| secrets(&c.sentry.webhook_secrets)
    ),
    key!("sentry.max_body_bytes", Integer, "Largest delivery taken, in bytes.", "", |c| plain(
        c.sentry.max_body_bytes
    )),
    key!(
        "sentry.base_url",
        Text,
        "Where comments and changes of status go; unset: nowhere.",
        "\"https://sentry.io\"",
        |c| optional(c.sentry.base_url.as_deref())
    ),
    key!("sentry.account", Text, "The slug of the organisation.", "\"octo\"", |c| {
        optional(c.sentry.account.as_deref())
    }),
    key!(
        "sentry.token",
        Text,
        "The token of an internal integration (Issue & Event: write).",
        "\"…\"",
        |c| secret(c.sentry.token.as_ref())
    ),
    key!(
        "sandbox.kind",
        Text,
        "\"docker\"; \"process\" has no isolation and is for the demo's own recipe only.",
        "",
        |c| text(match c.sandbox.kind {
            SandboxKind::Docker => "docker",
            SandboxKind::Process => "process",
        })
    ),
    key!(
        "sandbox.docker_host",
        Text,
        "`unix:///path` or `http://host:port` of the Docker Engine.",
        "",
        |c| text(&c.sandbox.docker_host)
    ),
    key!("sandbox.image", Text, "The image of repositories that name none.", "", |c| text(&c.sandbox.image)),
    key!(
        "sandbox.allowed_images",
        List,
        "Other images that repositories may name; `*` at the end of an entry stands for any rest, e.g. \"ghcr.io/octo/*\".",
        "",
        |c| texts(&c.sandbox.allowed_images)
    ),
    key!("sandbox.memory_mib", Integer, "Memory of one container, in MiB.", "", |c| plain(
        c.sandbox.memory_mib
    )),
    key!("sandbox.cpus", Number, "Processors of one container.", "", |c| number(c.sandbox.cpus)),
    key!("sandbox.pids", Integer, "Processes in one container.", "", |c| plain(c.sandbox.pids)),
    key!("sandbox.log_mib", Integer, "Output of one run that is kept, in MiB.", "", |c| plain(
        c.sandbox.log_mib
    )),
    key!("sandbox.minutes", Integer, "Wall clock of one run, in minutes.", "", |c| plain(c.sandbox.minutes)),
    key!(
        "sandbox.idle_minutes",
        Integer,
        "A run without output and without model traffic for this long is stopped, in minutes.",
        "",
        |c| plain(c.sandbox.idle_minutes)
    ),
    key!(
        "sandbox.disk",
        Text,
        "How `disk_mib` and `disk_files` are kept: \"watch\" measures and stops a run above them; \"loop\" gives each run a file system of that size (root, loop devices).",
        "",
        |c| text(match c.sandbox.disk {
            DiskKind::Watch => "watch",
            DiskKind::Loop => "loop",
        })
    ),
    key!("sandbox.disk_mib", Integer, "Workspace, output and home of one run together, in MiB.", "", |c| {
        plain(c.sandbox.disk_mib)
    }),
    key!(
        "sandbox.warm_slots",
        Integer,
        "Started containers that may wait for runs (as many as the recent rate asks for); 0: each run's container starts with it. Needs root.",
        "",
        |c| plain(c.sandbox.warm_slots)
    ),
    key!("sandbox.disk_files", Integer, "Files in workspace, output and home of one run.", "", |c| plain(
        c.sandbox.disk_files
    )),
    key!(
        "sandbox.workspace",
        Text,
        "How workspaces are made: \"overlay\" mounts each on a prepared checkout (root), \"checkout\" writes each anew, \"auto\" takes overlays where they work.",
        "",
        |c| text(match c.sandbox.workspace {
            WorkspaceKind::Auto => "auto",
            WorkspaceKind::Overlay => "overlay",
            WorkspaceKind::Checkout => "checkout",
        })
    ),
    key!(
        "sandbox.cache_mib",
        Integer,
        "Mirrors and prepared checkouts of all repositories on this machine, in MiB; what was not used for longest goes first. 0: no limit but the disk's.",
        "",
        |c| plain(c.sandbox.cache_mib)
    ),
    key!(
        "sandbox.runtime",
        Text,
        "The engine's runtime for agents, e.g. `runsc` (gVisor, registered with `--host-uds=open`); unset: the engine's default.",
        "\"runsc\"",
        |c| optional(c.sandbox.runtime.as_deref())
    ),
    key!(
        "sandbox.socket_dir",
        Text,
        "A short path for sockets; unset: `/run/zeblit`, else `$XDG_RUNTIME_DIR/zeblit`, else below the state directory.",
        "\"/run/zeblit\"",
        |c| folder(c.sandbox.socket_dir.as_ref())
    ),
    key!(
        "sandbox.strict",
        Bool,
        "Refuse to start unless the recommended protections (AppArmor, user namespaces, …) hold too.",
        "",
        |c| plain(c.sandbox.strict)
    ),
    key!(
        "egress.allow",
        List,
        "What repositories may choose from: bundles (crates, npm, pypi, go, maven, debian) and names of hosts.",
        "",
        |c| texts(&c.egress.allow)
    ),
    key!("egress.upload_kib", Integer, "What one run may send to them in all, in KiB.", "", |c| plain(
        c.egress.upload_kib
    )),
    key!(
        "egress.download_mib",
        Integer,
        "What one run may receive from them in all, in MiB.",
        "",
        |c| plain(c.egress.download_mib)
    ),
    key!("setup.minutes", Integer, "Wall clock of a repository's setup, in minutes.", "", |c| plain(
        c.setup.minutes
    )),
    key!(
        "setup.cache_mib",
        Integer,
        "A cache that grew larger than this many MiB is thrown away.",
        "",
        |c| { plain(c.setup.cache_mib) }
    ),
    key!(
        "setup.cache_days",
        Integer,
        "A cache that was not used for so many days is thrown away.",
        "",
        |c| { plain(c.setup.cache_days) }
    ),
    key!(
        "inputs.attachments",
        Integer,
        "Images and text files attached to an issue or pull request that an agent gets, at most 50; 0: none.",
        "",
        |c| plain(c.inputs.attachments)
    ),
    key!("inputs.attachment_kib", Integer, "Largest of them, in KiB.", "", |c| plain(
        c.inputs.attachment_kib
    )),
    key!("inputs.attachments_kib", Integer, "All of one run together, in KiB.", "", |c| plain(
        c.inputs.attachments_kib
    )),
    key!("models.anthropic_url", Text, "Anthropic's API, or a gateway with the same.", "", |c| text(
        &c.models.anthropic_url
    )),
    key!("models.anthropic_api_key", Text, "Its key.", "\"sk-ant-…\"", |c| secret(
        c.models.anthropic_api_key.as_ref()
    )),
    key!(
        "models.openai_url",
        Text,
        "OpenAI's API, or a gateway with the same; with its version (`/v1`).",
        "",
        |c| text(&c.models.openai_url)
    ),
    key!("models.openai_api_key", Text, "Its key.", "\"sk-…\"", |c| secret(
        c.models.openai_api_key.as_ref()
    )),
    key!("models.gemini_url", Text, "Gemini's API, or a gateway with the same.", "", |c| text(
        &c.models.gemini_url
    )),
    key!("models.gemini_api_key", Text, "Its key.", "\"AIza…\"", |c| secret(
        c.models.gemini_api_key.as_ref()
    )),
    key!(
        "models.providers",
        Table,
        "More endpoints by name, each with the models that it serves, e.g. { local = { api = \"openai\", url = \"http://127.0.0.1:11434/v1\", models = [\"qwen3-coder\"] } }; `api_key` where one is needed. Without `url` and `api_key` those of the API itself are used. Its models need a price, in the built-in table or in `prices`.",
        "",
        |c| providers(&c.models.providers)
    ),
    key!(
        "models.fallback",
        Table,
        "By model: what is asked instead, in order, when it is over its quota, too busy or not to be reached, e.g. { \"claude-opus-4-5\" = [\"claude-sonnet-4-5\"] }. The ledger has the model that answered.",
        "",
        |c| lists(&c.models.fallback)
    ),
    key!(
        "models.default_model",
        Text,
        "Used when neither command, agent nor repository names a model.",
        "",
        |c| { text(&c.models.default_model) }
    ),
    key!(
        "models.prices",
        Table,
        "Dollars per million tokens by model, over the built-in table, e.g. { \"my-model\" = { input = 3.0, output = 15.0, cache_read = 0.3, cache_write = 3.75 } }.",
        "",
        |c| prices(&c.models.prices)
    ),
    key!("limits.runs", Integer, "Runs at one time.", "", |c| plain(c.limits.runs)),
    key!("limits.runs_per_repo", Integer, "Runs at one time in one repository.", "", |c| plain(
        c.limits.runs_per_repo
    )),
    key!("limits.runs_per_user", Integer, "Runs at one time asked for by one person.", "", |c| plain(
        c.limits.runs_per_user
    )),
    key!("limits.runs_per_owner", Integer, "Runs at one time in all repositories of one account.", "", |c| {
        plain(c.limits.runs_per_owner)
    }),
    key!(
        "limits.blocked_days",
        Integer,
        "Days after which a run that waits for other tasks (`--after`) ends.",
        "",
        |c| plain(c.limits.blocked_days)
    ),
    key!(
        "limits.labels_per_user_hour",
        Integer,
        "Runs per person and hour, when they are asked for by labels.",
        "",
        |c| plain(c.limits.labels_per_user_hour)
    ),
    key!(
        "limits.queue_hours",
        Integer,
        "Hours after which a run that still waits in the queue ends.",
        "",
        |c| { plain(c.limits.queue_hours) }
    ),
    key!(
        "limits.commands_per_user_hour",
        Integer,
        "Commands that start runs, per person and hour.",
        "",
        |c| plain(c.limits.commands_per_user_hour)
    ),
    key!("limits.run_budget", Number, "Dollars of one run that names no budget.", "", |c| number(
        c.limits.run_budget
    )),
    key!("limits.max_run_budget", Number, "The most dollars that a command may ask for.", "", |c| number(
        c.limits.max_run_budget
    )),
    key!(
        "limits.writes_per_minute",
        Integer,
        "Comments, checks and pull requests written to one installation per minute (GitHub allows 80).",
        "",
        |c| plain(c.limits.writes_per_minute)
    ),
    key!("limits.writes_per_hour", Integer, "The same per hour (GitHub allows 500).", "", |c| plain(
        c.limits.writes_per_hour
    )),
    key!("limits.write_spacing_ms", Integer, "Milliseconds between two of them.", "", |c| plain(
        c.limits.write_spacing_ms
    )),
    key!(
        "budget.user_day",
        Number,
        "For the runs of one person on one day (UTC); unset: no limit.",
        "10.0",
        |c| optional_number(c.budget.user_day)
    ),
    key!(
        "budget.repo_day",
        Number,
        "For the runs of one repository on one day (UTC); a repository may set itself a lower one. Unset: no limit.",
        "20.0",
        |c| optional_number(c.budget.repo_day)
    ),
    key!(
        "budget.owner_month",
        Number,
        "For all repositories of one owner in one month (UTC); unset: no limit.",
        "200.0",
        |c| optional_number(c.budget.owner_month)
    ),
    key!("limits.progress_seconds", Integer, "Seconds between two edits of one progress comment.", "", |c| {
        plain(c.limits.progress_seconds)
    }),
    key!(
        "limits.lease_seconds",
        Integer,
        "Seconds until another node takes over the run of a worker that does not say that it lives.",
        "",
        |c| plain(c.limits.lease_seconds)
    ),
    key!(
        "publish.mode",
        Text,
        "\"trusted\" pushes branches at once, \"approve-first\" waits for `/zeblit ok` by somebody with write access, \"fork\" pushes to a fork. Repositories may only be stricter.",
        "",
        |c| text(c.publish.mode.name())
    ),
    key!(
        "publish.repositories",
        Table,
        "The same for single repositories or owners, e.g. { \"octo/site\" = \"approve-first\", \"guests/*\" = \"fork\" }.",
        "",
        |c| modes(&c.publish.repositories)
    ),
    key!(
        "publish.fork_owner",
        Text,
        "The account whose forks take the branches of the mode \"fork\"; the App is installed there, too.",
        "\"zeblit-forks\"",
        |c| optional(c.publish.fork_owner.as_deref())
    ),
    key!(
        "publish.approval_days",
        Integer,
        "Days after which a change that nobody approved is dropped.",
        "",
        |c| plain(c.publish.approval_days)
    ),
    key!("publish.staged", Bool, "Every run is a dry run: nothing is pushed or opened.", "", |c| plain(
        c.publish.staged
    )),
    key!(
        "retention.deliveries_days",
        Integer,
        "Days that handled deliveries are kept, so that a repetition is known.",
        "",
        |c| plain(c.retention.deliveries_days)
    ),
    key!("retention.ignored_days", Integer, "Days that deliveries are kept which led to nothing.", "", |c| {
        plain(c.retention.ignored_days)
    }),
    key!("retention.logs_days", Integer, "Days that logs of ended runs are kept.", "", |c| plain(
        c.retention.logs_days
    )),
    key!(
        "retention.artifacts_days",
        Integer,
        "Days that bundles and diffs of ended runs are kept, and files that they left for download.",
        "",
        |c| plain(c.retention.artifacts_days)
    ),
    key!(
        "retention.sessions_days",
        Integer,
        "Days in which `/zeblit continue` can go on with the agent's own conversation; 0: it always begins anew.",
        "",
        |c| plain(c.retention.sessions_days)
    ),
    key!(
        "repair.minutes",
        Integer,
        "Minutes between two looks for deliveries that did not arrive; 0: never.",
        "",
        |c| plain(c.repair.minutes)
    ),
    key!("agents.fix", Text, "The agent of `fix`, `continue` and plain words.", "", |c| text(&c.agents.fix)),
    key!("agents.review", Text, "The agent of `review`.", "", |c| text(&c.agents.review)),
    key!("agents.ask", Text, "The agent of `ask`.", "", |c| text(&c.agents.ask)),
    key!("agents.folder", Text, "A folder with your own agents (`*.md`).", "\"/etc/zeblit/agents\"", |c| {
        folder(c.agents.folder.as_ref())
    }),
    key!(
        "agents.skills_folder",
        Text,
        "A folder with your own skills (`<name>/SKILL.md`).",
        "\"/etc/zeblit/skills\"",
        |c| folder(c.agents.skills_folder.as_ref())
    ),
];

fn key_of(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// Section and last part of a key: `("server", "listen")`, `("", "state_dir")`.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('.').unwrap_or(("", path))
}

impl Config {
    /// Reads `file` (default: `zeblit-server.toml` in the working directory, if there), then `ZEBLIT_*`
    /// (`ZEBLIT_SERVER__LISTEN`), and validates.
    pub fn load(file: Option<&Path>) -> Result<Self, ConfigError> {
        Self::load_as(file, None)
    }

    /// `load` with another role than the configured one.
    pub fn load_as(file: Option<&Path>, role: Option<Role>) -> Result<Self, ConfigError> {
        let default_file = Path::new(DEFAULT_FILE);
        let file = file.or_else(|| default_file.is_file().then_some(default_file));
        let mut config = Self::read(file, std::env::vars())?;
        config.node.role = role.unwrap_or(config.node.role);
        config.validate()?;
        Ok(config)
    }

    /// Reads file and variables without looking at anything else of the environment.
    fn read(
        file: Option<&Path>,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        // Sentry's cap differs from Jira's, whose section has the same type: a `[sentry]` that leaves it out keeps it.
        let sentry_cap = Self::default().sentry.max_body_bytes;
        let mut figment = Figment::from(Serialized::default("sentry.max_body_bytes", sentry_cap));
        if let Some(path) = file {
            let text = read_capped(path).map_err(|error| {
                ConfigError::one(format!(
                    "the configuration file `{}` cannot be read: {error}; `zeblit config example` prints one to start from",
                    path.display()
                ))
            })?;
            if let Err(error) = text.parse::<toml::Table>() {
                return Err(ConfigError::one(format!(
                    "the configuration file `{}` is not valid TOML: {}",
                    path.display(),
                    syntax_problem(&text, &error)
                )));
            }
            figment = figment.merge(Toml::string(&text));
        }
        let mut problems = Vec::new();
        for (name, value) in variables {
            let Some(rest) = name.strip_prefix(ENV_PREFIX) else { continue };
            let foreign = OTHER_VARIABLES.contains(&rest)
                || OTHER_VARIABLE_PREFIXES.iter().any(|prefix| rest.starts_with(prefix));
            // An empty variable is how container files say "not set".
            if foreign || value.is_empty() {
                continue;
            }
            let path = match rest {
                ROLE_VARIABLE => "node.role".to_owned(),
                rest => rest.to_ascii_lowercase().replace("__", "."),
            };
            let Some(key) = key_of(&path) else {
                problems.push(format!("`{name}`: there is no key `{path}`{}", nearest(&path)));
                continue;
            };
            match variable(key.kind, &value) {
                Some(value) => figment = figment.merge(Serialized::default(&path, value)),
                None => problems.push(format!("`{name}`: needs {}", key.kind.expected())),
            }
        }
        if let Ok(profile) = figment.data().map(|data| data.into_values().collect::<Vec<_>>()) {
            for dict in profile {
                unknown_keys("", &dict, &mut problems);
            }
        }
        if !problems.is_empty() {
            return Err(ConfigError { problems });
        }
        figment.extract::<Self>().map_err(|error| ConfigError {
            problems: error.into_iter().map(|error| extract_problem(&error)).collect(),
        })
    }

    /// Checks what types cannot: names every wrong key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mut found = Problems::default();
        if self.state_dir.as_os_str().is_empty() {
            found.add("state_dir", "needs a folder, e.g. `state`");
        }
        if let Some(key) = &self.secret_key
            && key.expose_secret().chars().count() < MIN_SECRET_KEY_CHARS
        {
            found.add(
                "secret_key",
                format!("needs at least {MIN_SECRET_KEY_CHARS} characters, or leave it out to have one made"),
            );
        }
        self.validate_server(&mut found);
        self.validate_node(&mut found);
        if let Some(url) = &self.database.url {
            let url = url.expose_secret();
            if url.contains(":memory:") || !(url.starts_with("sqlite:") || is_postgres(url)) {
                found.add("database.url", "needs `sqlite:PATH` or `postgres://USER@HOST/NAME`");
            }
        }
        if let Some(url) = &self.redis.url
            && !["redis://", "rediss://", "unix://"]
                .iter()
                .any(|scheme| url.expose_secret().starts_with(scheme))
        {
            found.add("redis.url", "needs `redis://HOST:PORT`");
        }
        self.validate_forges(&mut found);
        for (name, source) in [("jira", &self.jira), ("sentry", &self.sentry)] {
            if !source.webhook_secrets.is_empty() && self.node.role.serves_web() {
                found.webhook_secrets(&format!("{name}.webhook_secrets"), &source.webhook_secrets);
            }
            found.positive(&format!("{name}.max_body_bytes"), source.max_body_bytes > 0);
            if let Some(url) = &source.base_url {
                found.url(&format!("{name}.base_url"), url);
                if source.token.is_none() {
                    found.add(&format!("{name}.token"), "is needed together with `base_url`");
                }
                if name == "sentry" && source.account.is_none() {
                    found.add("sentry.account", "is needed together with `base_url`");
                }
            }
        }
        self.validate_sandbox(&mut found);
        self.validate_egress(&mut found);
        self.validate_models(&mut found);
        self.validate_limits(&mut found);
        self.validate_publish(&mut found);
        self.validate_retention(&mut found);
        if !(0..=24 * 60).contains(&self.repair.minutes) {
            found.add("repair.minutes", "needs a number from 0 (never) to 1440");
        }
        for (name, agent) in
            [("fix", &self.agents.fix), ("review", &self.agents.review), ("ask", &self.agents.ask)]
        {
            if agent.trim().is_empty() {
                found.add(&format!("agents.{name}"), "needs the name of an agent");
            }
        }
        for (name, folder) in [("folder", &self.agents.folder), ("skills_folder", &self.agents.skills_folder)]
        {
            if let Some(folder) = folder
                && !folder.is_dir()
            {
                found.add(&format!("agents.{name}"), format!("`{}` is not a folder", folder.display()));
            }
        }
        found.result()
    }

    /// `validate`, and what only a serving process needs: a forge.
    pub fn validate_for_serve(&self) -> Result<(), ConfigError> {
        self.validate()?;
        if self.github.is_none() && self.local_forge.is_none() {
            return Err(ConfigError::one(
                "there is no forge: write a `[github]` section (see `zeblit help github-app`), or `[local_forge]` for the built-in one (`zeblit demo` shows it)".into(),
            ));
        }
        Ok(())
    }

    fn validate_node(&self, found: &mut Problems) {
        let node = &self.node;
        if node.name.as_ref().is_some_and(|name| {
            !(1..=64).contains(&name.len()) || !name.bytes().all(|c| c.is_ascii_graphic())
        }) {
            found.add("node.name", "needs a name of at most 64 characters without spaces");
        }
        if node.capabilities.len() > node::MAX_CAPABILITIES
            || !node.capabilities.iter().all(|word| node::is_capability(word))
        {
            found.add(
                "node.capabilities",
                format!(
                    "needs at most {} words of lower-case letters, digits, `.`, `_` and `-`",
                    node::MAX_CAPABILITIES
                ),
            );
        }
        if node.slots.is_some_and(|slots| !(1..=1000).contains(&slots)) {
            found.add("node.slots", "needs a number from 1 to 1000");
        }
        if node.role == Role::All {
            return;
        }
        let role = node.role.as_str();
        if !self.database.url.as_ref().is_some_and(|url| is_postgres(url.expose_secret())) {
            found.add(
                "database.url",
                format!("the role `{role}` shares its database with other nodes: write `postgres://USER@HOST/NAME` (SQLite is for one process)"),
            );
        }
        if self.secret_key.is_none() {
            found.add(
                "secret_key",
                format!("the role `{role}` needs the key that all nodes share: write the same text of at least {MIN_SECRET_KEY_CHARS} characters on each"),
            );
        }
        if self.local_forge.is_some() {
            found.add(
                "local_forge",
                format!("the built-in forge lives in one process: remove it, or the role `{role}`"),
            );
        }
    }

    /// The same configuration without the credentials that its role does not use, and their keys.
    pub fn narrowed(mut self) -> (Self, Vec<&'static str>) {
        let role = self.node.role;
        let mut removed = Vec::new();
        let mut remove = |key: &'static str, there: bool| {
            if there {
                removed.push(key);
            }
        };
        if !role.serves_web() {
            for (key, source) in
                [("jira.webhook_secrets", &mut self.jira), ("sentry.webhook_secrets", &mut self.sentry)]
            {
                remove(key, !std::mem::take(&mut source.webhook_secrets).is_empty());
            }
        }
        if let Some(github) = &mut self.github {
            if !role.serves_web() {
                remove("github.webhook_secrets", !std::mem::take(&mut github.webhook_secrets).is_empty());
            }
            if !role.is_the_app() {
                remove("github.private_key", github.private_key.take().is_some());
                remove("github.private_key_file", github.private_key_file.take().is_some());
            }
        }
        if !role.works() {
            let models = &mut self.models;
            remove("models.anthropic_api_key", models.anthropic_api_key.take().is_some());
            remove("models.openai_api_key", models.openai_api_key.take().is_some());
            remove("models.gemini_api_key", models.gemini_api_key.take().is_some());
            let keys = models.providers.values_mut().filter_map(|provider| provider.api_key.take());
            remove("models.providers", keys.count() > 0);
        }
        (self, removed)
    }

    fn validate_server(&self, found: &mut Problems) {
        let server = &self.server;
        match &server.public_url {
            Some(url) => found.url("server.public_url", url),
            None if self.github.is_some() => found.add(
                "server.public_url",
                "is required with `github`: write where people and webhooks reach this server, e.g. `https://zeblit.example.com`",
            ),
            None => {}
        }
        if !(1..=3650).contains(&server.run_link_days) {
            found.add("server.run_link_days", "needs a number of days from 1 to 3650");
        }
        for (name, seconds) in [
            ("server.header_timeout_seconds", server.header_timeout_seconds),
            ("server.body_timeout_seconds", server.body_timeout_seconds),
        ] {
            if !(1..=120).contains(&seconds) {
                found.add(name, "needs a number of seconds from 1 to 120");
            }
        }
        let largest = Source::ALL.into_iter().map(|source| self.body_cap(source)).max().unwrap_or(0);
        if server.inflight_bytes < largest {
            found.add(
                "server.inflight_bytes",
                format!("needs at least {largest}, the largest `max_body_bytes` of a source"),
            );
        }
        if !(1..=65_535).contains(&server.max_connections) {
            found.add("server.max_connections", "needs a number from 1 to 65535");
        }
    }

    fn validate_forges(&self, found: &mut Problems) {
        if self.github.is_some() && self.local_forge.is_some() {
            found.add("local_forge", "cannot be used together with `github`: remove one of the two sections");
        }
        if let Some(github) = &self.github {
            if github.app_id == 0 {
                found.add("github.app_id", "needs the App ID from the settings page of your GitHub App");
            }
            match (&github.private_key, &github.private_key_file) {
                _ if !self.node.role.is_the_app() => {}
                (None, None) => found.add(
                    "github.private_key_file",
                    "needs the path of the App's private key (or write the key itself as `github.private_key`)",
                ),
                (Some(_), Some(_)) => found.add(
                    "github.private_key",
                    "is set together with `github.private_key_file`: keep only one of them",
                ),
                (Some(key), None) => {
                    if !key.expose_secret().contains("PRIVATE KEY-----") {
                        found.add("github.private_key", "needs PEM text (`-----BEGIN … PRIVATE KEY-----`)");
                    }
                }
                (None, Some(path)) => private_key_file_problem(path)
                    .into_iter()
                    .for_each(|problem| found.add("github.private_key_file", problem)),
            }
            if self.node.role.serves_web() {
                found.webhook_secrets("github.webhook_secrets", &github.webhook_secrets);
            }
            found.url("github.api_url", &github.api_url);
            found.url("github.git_url", &github.git_url);
            for url in &github.storage_urls {
                found.url("github.storage_urls", url);
            }
            if let Some(url) = &github.web_url {
                found.url("github.web_url", url);
            }
            found.positive("github.max_body_bytes", github.max_body_bytes > 0);
        }
        if let Some(local) = &self.local_forge
            && local.webhook_secret.expose_secret().chars().count() < MIN_WEBHOOK_SECRET_CHARS
        {
            found.add(
                "local_forge.webhook_secret",
                format!("needs a secret of at least {MIN_WEBHOOK_SECRET_CHARS} characters"),
            );
        }
    }

    fn validate_sandbox(&self, found: &mut Problems) {
        let sandbox = &self.sandbox;
        if sandbox.kind == SandboxKind::Process
            && self.github.as_ref().is_some_and(|github| !is_on_this_machine(&github.api_url))
        {
            found.add(
                "sandbox.kind",
                "`process` has no isolation and is refused with `github`: write `docker`",
            );
        }
        let host = &sandbox.docker_host;
        let valid = host.strip_prefix("unix://").is_some_and(|path| path.starts_with('/'))
            || (host.starts_with("http://") && Url::parse(host).is_ok_and(|url| url.has_host()));
        if !valid {
            found.add("sandbox.docker_host", "needs `unix:///path/of/docker.sock` or `http://HOST:PORT`");
        }
        if sandbox.image.trim().is_empty() {
            found.add("sandbox.image", "needs the name of an image");
        }
        if sandbox.allowed_images.iter().any(|image| image.trim().is_empty()) {
            found.add("sandbox.allowed_images", "holds an empty name: remove it");
        }
        if sandbox
            .allowed_images
            .iter()
            .any(|image| image.trim_end_matches('*').contains('*') || image == "*")
        {
            found.add("sandbox.allowed_images", "`*` may stand only at the end of a name, and not alone");
        }
        if sandbox.memory_mib < 64 {
            found.add("sandbox.memory_mib", "needs at least 64");
        }
        if sandbox.pids < 16 {
            found.add("sandbox.pids", "needs at least 16");
        }
        if !(sandbox.cpus.is_finite() && (0.1..=1024.0).contains(&sandbox.cpus)) {
            found.add("sandbox.cpus", "needs a number from 0.1 to 1024");
        }
        found.positive("sandbox.log_mib", sandbox.log_mib > 0);
        found.positive("sandbox.minutes", sandbox.minutes > 0);
        found.positive("sandbox.idle_minutes", sandbox.idle_minutes > 0);
        if sandbox.disk_mib < 64 {
            found.add("sandbox.disk_mib", "needs at least 64");
        }
        if sandbox.warm_slots > MAX_WARM_SLOTS {
            found.add("sandbox.warm_slots", format!("may be at most {MAX_WARM_SLOTS}"));
        }
        if sandbox.disk_files < 1000 {
            found.add("sandbox.disk_files", "needs at least 1000");
        }
        if sandbox.cache_mib < 0 {
            found.add("sandbox.cache_mib", "needs a number of MiB, or 0 for no limit");
        }
        if sandbox.runtime.as_ref().is_some_and(|name| name.trim().is_empty()) {
            found.add("sandbox.runtime", "needs the name of a runtime of the engine, or leave it out");
        }
        if let Some(folder) = &sandbox.socket_dir
            && !folder.is_absolute()
        {
            found.add("sandbox.socket_dir", "needs an absolute path, e.g. `/run/zeblit`");
        }
    }

    fn validate_egress(&self, found: &mut Problems) {
        if let Err(bad) = AllowList::new(&self.egress.allow) {
            found.add("egress.allow", bad.to_string());
        }
        if !(0..=50).contains(&self.inputs.attachments) {
            found.add("inputs.attachments", "needs a number from 0 to 50");
        }
        for (key, value, most) in [
            ("egress.upload_kib", self.egress.upload_kib, 1 << 30),
            ("egress.download_mib", self.egress.download_mib, 1 << 20),
            ("setup.minutes", self.setup.minutes, 24 * 60),
            ("setup.cache_mib", self.setup.cache_mib, 1 << 20),
            ("setup.cache_days", self.setup.cache_days, 3650),
            ("inputs.attachment_kib", self.inputs.attachment_kib, 20 * 1024),
            // A job with its files must stay below the shim's cap of 64 MiB.
            ("inputs.attachments_kib", self.inputs.attachments_kib, 40 * 1024),
        ] {
            if !(1..=most).contains(&value) {
                found.add(key, format!("needs a number from 1 to {most}"));
            }
        }
    }

    fn validate_models(&self, found: &mut Problems) {
        for api in ModelApi::ALL {
            found.url(&format!("models.{}_url", api.name()), self.models.endpoint(api).0);
        }
        let mut served: BTreeMap<&str, &str> = BTreeMap::new();
        for (name, provider) in &self.models.providers {
            let key = format!("models.providers.{name}");
            if ModelApi::parse(name).is_some() || name.is_empty() {
                found.add(&key, "needs another name: those of the APIs are taken");
            }
            if let Some(url) = &provider.url {
                found.url(&format!("{key}.url"), url);
            }
            if provider.models.is_empty() || provider.models.iter().any(|model| model.trim().is_empty()) {
                found.add(&format!("{key}.models"), "needs the names of the models that it serves");
            }
            for model in &provider.models {
                if let Some(other) = served.insert(model, name) {
                    found.add(&format!("{key}.models"), format!("`{model}` is served by `{other}` already"));
                }
            }
        }
        if self.models.default_model.trim().is_empty() {
            found.add("models.default_model", "needs the name of a model");
        }
        for (model, price) in &self.models.prices {
            let parts = [price.input, price.output, price.cache_read, price.cache_write];
            if parts.iter().any(|dollars| !dollars.is_finite() || *dollars < 0.0) {
                found.add(
                    &format!("models.prices.\"{model}\""),
                    "needs dollars per million tokens, zero or more",
                );
            }
        }
    }

    fn validate_publish(&self, found: &mut Problems) {
        let publish = &self.publish;
        for name in publish.repositories.keys() {
            let plain = name.strip_suffix("/*").map_or_else(|| name.clone(), |owner| format!("{owner}/x"));
            if RepoName::parse(&plain).is_err() {
                found.add(
                    &format!("publish.repositories.\"{name}\""),
                    "needs the name of a repository (`owner/name`) or `owner/*`",
                );
            }
        }
        let forks =
            publish.mode == PushMode::Fork || publish.repositories.values().any(|m| *m == PushMode::Fork);
        match &publish.fork_owner {
            Some(owner) if RepoName::parse(&format!("{owner}/x")).is_err() => {
                found.add("publish.fork_owner", "needs the name of an account");
            }
            None if forks => found.add("publish.fork_owner", "is needed for the mode \"fork\""),
            _ => {}
        }
        if !(1..=90).contains(&publish.approval_days) {
            found.add("publish.approval_days", "needs a number from 1 to 90");
        }
    }

    fn validate_retention(&self, found: &mut Problems) {
        let kept = &self.retention;
        for (name, days, least) in [
            // GitHub sends again what is up to three days old.
            ("deliveries_days", kept.deliveries_days, 4),
            ("ignored_days", kept.ignored_days, 4),
            ("logs_days", kept.logs_days, 1),
            // A change that waits for its approval is an artifact.
            ("artifacts_days", kept.artifacts_days, 1),
            ("sessions_days", kept.sessions_days, 0),
        ] {
            if !(least..=3650).contains(&days) {
                found.add(&format!("retention.{name}"), format!("needs a number from {least} to 3650"));
            }
        }
    }

    fn validate_limits(&self, found: &mut Problems) {
        let limits = &self.limits;
        for (name, value) in [
            ("runs", limits.runs),
            ("runs_per_repo", limits.runs_per_repo),
            ("runs_per_user", limits.runs_per_user),
            ("runs_per_owner", limits.runs_per_owner),
            ("queue_hours", limits.queue_hours),
            ("blocked_days", limits.blocked_days),
            ("labels_per_user_hour", limits.labels_per_user_hour),
            ("commands_per_user_hour", limits.commands_per_user_hour),
            ("writes_per_minute", limits.writes_per_minute),
            ("writes_per_hour", limits.writes_per_hour),
            ("progress_seconds", limits.progress_seconds),
        ] {
            found.positive(&format!("limits.{name}"), value > 0);
        }
        if !(4..=600).contains(&limits.lease_seconds) {
            found.add("limits.lease_seconds", "needs a number of seconds from 4 to 600");
        }
        if limits.write_spacing_ms < 0 {
            found.add("limits.write_spacing_ms", "needs zero or more");
        }
        let budget = &self.budget;
        for (name, dollars) in [
            ("user_day", budget.user_day),
            ("repo_day", budget.repo_day),
            ("owner_month", budget.owner_month),
        ] {
            if dollars
                .is_some_and(|dollars| !(dollars.is_finite() && dollars > 0.0 && dollars <= 1_000_000.0))
            {
                found.add(&format!("budget.{name}"), "needs dollars, more than zero, e.g. `20.0`");
            }
        }
        for (name, dollars) in [("run_budget", limits.run_budget), ("max_run_budget", limits.max_run_budget)]
        {
            if !(dollars.is_finite() && dollars > 0.0 && dollars <= 1_000_000.0) {
                found.add(&format!("limits.{name}"), "needs dollars, more than zero, e.g. `5.0`");
            }
        }
        if limits.run_budget > limits.max_run_budget {
            found.add(
                "limits.run_budget",
                "is more than `limits.max_run_budget`: lower one or raise the other",
            );
        }
    }

    /// The commented example, `zeblit config example`, generated from the defaults.
    pub fn example() -> String {
        let defaults = Self::default();
        let mut out = String::from(
            "# Zeblit server configuration.\n#\n# Every key, with its default. Lines that start with `#` and a word are defaults: remove the `#` to change one.\n# Each key can also be given as a variable: `server.listen` is ZEBLIT_SERVER__LISTEN.\n",
        );
        for (section, about) in SECTIONS {
            let has_defaults = KEYS
                .iter()
                .filter(|key| split(key.path).0 == *section)
                .any(|key| matches!((key.show)(&defaults), Shown::Value(_)));
            if !section.is_empty() {
                // A section without any default is off until somebody writes it.
                let head = if has_defaults { "" } else { "# " };
                out.push_str(&format!("\n# {about}\n{head}[{section}]\n"));
            }
            for key in KEYS.iter().filter(|key| split(key.path).0 == *section) {
                let name = split(key.path).1;
                out.push_str(&format!("\n# {}\n", key.about));
                match (key.show)(&defaults) {
                    Shown::Value(value) => out.push_str(&format!("#{name} = {value}\n")),
                    Shown::Secret | Shown::Unset => {
                        out.push_str(&format!("# {name} = {}\n", key.example));
                    }
                }
            }
        }
        out
    }

    /// Every key with its effective value; secrets only say that they are set.
    pub fn effective(&self) -> Vec<(&'static str, Shown)> {
        KEYS.iter().map(|key| (key.path, (key.show)(self))).collect()
    }

    /// The webhook secrets of a source; empty: it is disabled. In local mode the forge's own secret is GitHub's.
    pub fn secrets_for(&self, source: Source) -> &[SecretString] {
        match source {
            Source::Github => match (&self.github, &self.local_forge) {
                (Some(github), _) => &github.webhook_secrets,
                (None, Some(local)) => std::slice::from_ref(&local.webhook_secret),
                (None, None) => &[],
            },
            Source::Jira => &self.jira.webhook_secrets,
            Source::Sentry => &self.sentry.webhook_secrets,
        }
    }

    /// The largest delivery of a source, in bytes.
    pub fn body_cap(&self, source: Source) -> usize {
        match source {
            Source::Github => {
                self.github.as_ref().map_or_else(default_github_body, |github| github.max_body_bytes)
            }
            Source::Jira => self.jira.max_body_bytes,
            Source::Sentry => self.sentry.max_body_bytes,
        }
    }

    /// The database to open: the configured one, or SQLite in the state directory. A secret, since it may hold a password.
    pub fn database_url(&self) -> SecretString {
        self.database.url.clone().unwrap_or_else(|| {
            SecretString::from(format!("sqlite:{}", self.state_dir.join("zeblit.db").display()))
        })
    }

    /// Where the built-in forge keeps its repositories.
    pub fn local_forge_folder(&self) -> PathBuf {
        self.local_forge
            .as_ref()
            .and_then(|local| local.folder.clone())
            .unwrap_or_else(|| self.state_dir.join("forge"))
    }

    /// Where the socket directories of attempts are made. Short, because a socket's path may have 107 bytes only.
    pub fn socket_root(&self) -> PathBuf {
        if let Some(folder) = &self.sandbox.socket_dir {
            return folder.clone();
        }
        let instance = format!("{:08x}", {
            // FNV-1a: several servers on one machine keep apart without a shared counter.
            let bytes = self.state_dir.as_os_str().as_encoded_bytes();
            bytes
                .iter()
                .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
        });
        let run = Path::new("/run/zeblit");
        if fs::create_dir_all(run.join(&instance)).is_ok() {
            return run.join(instance);
        }
        match std::env::var_os("XDG_RUNTIME_DIR") {
            Some(folder) => PathBuf::from(folder).join("zeblit").join(instance),
            None => self.state_dir.join("sockets"),
        }
    }

    /// Where people reach this server, without a slash at the end.
    pub fn public_url(&self) -> String {
        match &self.server.public_url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => format!("http://{}", self.server.listen),
        }
    }

    /// The App's private key as PEM text, from the configuration or its file.
    pub fn github_private_key(&self) -> Result<Option<SecretString>, ConfigError> {
        let Some(github) = &self.github else { return Ok(None) };
        if let Some(key) = &github.private_key {
            return Ok(Some(key.clone()));
        }
        let Some(path) = &github.private_key_file else { return Ok(None) };
        read_capped(path).map(|text| Some(SecretString::from(text))).map_err(|error| {
            ConfigError::one(format!("github.private_key_file: `{}` cannot be read: {error}", path.display()))
        })
    }

    /// The key that signs markers and run links: the configured one, else `secret.key` in the state directory,
    /// which is made (0600, from the system's random source) when it is not there.
    pub fn secret_key_bytes(&self) -> Result<Vec<u8>, ConfigError> {
        if let Some(key) = &self.secret_key {
            return Ok(key.expose_secret().as_bytes().to_vec());
        }
        let path = self.secret_key_path();
        let problem = |error: std::io::Error| {
            ConfigError::one(format!(
                "secret_key: `{}` cannot be read or made: {error}; make the state directory writable or set `secret_key`",
                path.display()
            ))
        };
        if !path.exists() {
            fs::create_dir_all(&self.state_dir).map_err(problem)?;
            make_secret_key(&path).map_err(problem)?;
        }
        let mode = fs::metadata(&path).map_err(problem)?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(ConfigError::one(format!(
                "secret_key: `{}` is readable by others: run `chmod 600 {}`",
                path.display(),
                path.display()
            )));
        }
        let text = read_capped(&path).map_err(problem)?;
        match hex::decode(text.trim()) {
            Ok(bytes) if bytes.len() >= SECRET_KEY_BYTES => Ok(bytes),
            _ => Err(ConfigError::one(format!(
                "secret_key: `{}` is not a key that Zeblit made; move it away to have a new one made (links in old comments then stop working)",
                path.display()
            ))),
        }
    }

    /// What tells this state directory from all others: `node-id` in it, made once (0600).
    pub fn node_id(&self) -> Result<String, ConfigError> {
        let path = self.state_dir.join("node-id");
        let problem = |error: std::io::Error| {
            ConfigError::one(format!("state_dir: `{}` cannot be read or made: {error}", path.display()))
        };
        if !path.exists() {
            fs::create_dir_all(&self.state_dir).map_err(problem)?;
            let id = random_hex().map_err(problem)?;
            make_once(&path, id.get(..16).unwrap_or(&id)).map_err(problem)?;
        }
        let id = read_capped(&path).map_err(problem)?.trim().to_owned();
        if id.is_empty() || id.len() > 64 || !id.bytes().all(|c| c.is_ascii_alphanumeric()) {
            return Err(ConfigError::one(format!(
                "state_dir: `{}` is not an id that Zeblit made: remove it to have a new one made",
                path.display()
            )));
        }
        Ok(id)
    }

    /// The file with the key that this server made; `None` when the configuration holds the key.
    pub fn secret_key_file(&self) -> Option<PathBuf> {
        self.secret_key.is_none().then(|| self.secret_key_path())
    }

    fn secret_key_path(&self) -> PathBuf {
        self.state_dir.join("secret.key")
    }

    /// What finds the server's own secrets in any text.
    pub fn secret_scan(&self) -> SecretScan {
        let secrets = self.all_secrets();
        let secrets: Vec<&[u8]> = secrets.iter().map(Vec::as_slice).collect();
        SecretScan::new(&secrets)
    }

    /// Everything that must never appear in a log, a text or a commit.
    pub fn all_secrets(&self) -> Vec<Vec<u8>> {
        let mut all: Vec<Vec<u8>> = Vec::new();
        let mut add = |text: &str| all.push(text.as_bytes().to_vec());
        for source in Source::ALL {
            for secret in self.secrets_for(source) {
                add(secret.expose_secret());
            }
        }
        let models = ModelApi::ALL.into_iter().filter_map(|api| self.models.endpoint(api).1);
        let providers = self.models.providers.values().filter_map(|provider| provider.api_key.as_ref());
        let tickets = [&self.jira, &self.sentry].into_iter().filter_map(|source| source.token.as_ref());
        for secret in models.chain(providers).chain(tickets).chain(&self.secret_key) {
            add(secret.expose_secret());
        }
        if let Some(url) = &self.database.url
            && let Ok(url) = Url::parse(url.expose_secret())
            && let Some(password) = url.password()
        {
            add(password);
            add(&percent_decoded(password));
        }
        if let Some(url) = &self.redis.url
            && let Ok(url) = Url::parse(url.expose_secret())
            && let Some(password) = url.password()
        {
            add(password);
            add(&percent_decoded(password));
        }
        // Logs are masked line by line, so each line of the key counts on its own, too.
        if let Ok(Some(pem)) = self.github_private_key() {
            add(pem.expose_secret().trim());
            for line in pem.expose_secret().lines().filter(|line| line.len() >= 32 && !line.contains("-----"))
            {
                add(line.trim());
            }
        }
        if self.secret_key.is_none()
            && let Ok(text) = read_capped(&self.secret_key_path())
        {
            add(text.trim());
        }
        all.retain(|secret| !secret.is_empty());
        all
    }
}

/// A part of an address as it was before it was written into it.
fn percent_decoded(text: &str) -> String {
    let mut pieces = text.split('%');
    let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        match piece.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                bytes.extend(piece.bytes().skip(2));
            }
            None => bytes.extend(format!("%{piece}").bytes()),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Another server to operate, instead of the one on this machine: `ZEBLIT_URL` and `ZEBLIT_TOKEN`.
#[derive(Debug, Clone)]
pub struct RemoteServer {
    pub url: Url,
    pub token: SecretString,
}

impl RemoteServer {
    /// From the variables of this process; `None` when `ZEBLIT_URL` is not set.
    pub fn from_variables() -> Result<Option<Self>, ConfigError> {
        Self::read(variable_named("ZEBLIT_URL"), variable_named("ZEBLIT_TOKEN"))
    }

    fn read(url: Option<SecretString>, token: Option<SecretString>) -> Result<Option<Self>, ConfigError> {
        let Some(url) = url else { return Ok(None) };
        let mut found = Problems::default();
        found.url("ZEBLIT_URL", url.expose_secret());
        if token.is_none() {
            found.add(
                "ZEBLIT_TOKEN",
                "is needed with ZEBLIT_URL: make one on the server with `zeblit token create NAME`",
            );
        }
        found.result()?;
        let (Ok(url), Some(token)) = (Url::parse(url.expose_secret()), token) else { return Ok(None) };
        Ok(Some(Self { url, token }))
    }
}

/// The value of a variable of this process, when it is set and not empty.
pub fn variable_named(name: &str) -> Option<SecretString> {
    std::env::var(name).ok().filter(|value| !value.is_empty()).map(SecretString::from)
}

/// 32 random bytes of the system, as 64 hexadecimal characters: for keys and tokens.
pub fn random_hex() -> std::io::Result<String> {
    let mut bytes = [0_u8; SECRET_KEY_BYTES];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(hex::encode(bytes))
}

fn is_postgres(url: &str) -> bool {
    url.starts_with("postgres://") || url.starts_with("postgresql://")
}

/// Collects problems, each with its key.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn add(&mut self, key: &str, problem: impl std::fmt::Display) {
        self.0.push(format!("{key}: {problem}"));
    }

    fn positive(&mut self, key: &str, ok: bool) {
        if !ok {
            self.add(key, "needs a number above zero");
        }
    }

    fn url(&mut self, key: &str, value: &str) {
        let valid = Url::parse(value).is_ok_and(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.has_host()
                && url.query().is_none()
                && url.fragment().is_none()
                && url.username().is_empty()
                && url.password().is_none()
        });
        if !valid {
            self.add(
                key,
                "needs a URL like `https://host` or `http://host:port/path`, without user, password and `?`",
            );
        }
    }

    fn webhook_secrets(&mut self, key: &str, secrets: &[SecretString]) {
        let long_enough =
            |secret: &SecretString| secret.expose_secret().chars().count() >= MIN_WEBHOOK_SECRET_CHARS;
        if secrets.is_empty() || secrets.len() > MAX_WEBHOOK_SECRETS || !secrets.iter().all(long_enough) {
            self.add(
                key,
                format!("needs one or two secrets of at least {MIN_WEBHOOK_SECRET_CHARS} characters"),
            );
        }
    }

    fn result(self) -> Result<(), ConfigError> {
        if self.0.is_empty() { Ok(()) } else { Err(ConfigError { problems: self.0 }) }
    }
}

/// A forge at a loopback address is a test's: whoever may command there owns this machine already.
fn is_on_this_machine(url: &str) -> bool {
    match Url::parse(url).as_ref().ok().and_then(Url::host) {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(_)) | None => false,
    }
}

fn private_key_file_problem(path: &Path) -> Option<String> {
    let shown = path.display();
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => return Some(format!("`{shown}` cannot be read: {error}")),
    };
    if !metadata.is_file() {
        return Some(format!("`{shown}` is not a file"));
    }
    if metadata.permissions().mode() & 0o007 != 0 {
        return Some(format!("`{shown}` is open to everybody: run `chmod 600 {shown}`"));
    }
    match read_capped(path) {
        Err(error) => Some(format!("`{shown}` cannot be read: {error}")),
        Ok(text) if !text.contains("PRIVATE KEY-----") => {
            Some(format!("`{shown}` is not a PEM private key (`-----BEGIN … PRIVATE KEY-----`)"))
        }
        Ok(_) => None,
    }
}

fn make_secret_key(path: &Path) -> std::io::Result<()> {
    make_once(path, &random_hex()?)
}

/// Makes a file of our own so that nobody ever sees half of it and the first of two makers wins.
fn make_once(path: &Path, text: &str) -> std::io::Result<()> {
    let part = path.with_extension(format!("part-{}", std::process::id()));
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    let linked = fs::hard_link(&part, path);
    fs::remove_file(&part)?;
    match linked {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn read_capped(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let read = fs::File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if u64::try_from(read).unwrap_or(u64::MAX) > MAX_FILE_BYTES {
        return Err(std::io::Error::other("it is larger than 1 MiB"));
    }
    Ok(text)
}

/// What a TOML parser says, with the line, without quoting the line (it may hold a secret).
fn syntax_problem(text: &str, error: &toml::de::Error) -> String {
    let line = error
        .span()
        .and_then(|span| text.get(..span.start))
        .map_or(1, |before| before.bytes().filter(|byte| *byte == b'\n').count() + 1);
    format!("line {line}: {}", error.message())
}

/// A variable as the kind of its key says. Lists: TOML (`["a", "b"]`) or separated by commas.
fn variable(kind: KeyKind, value: &str) -> Option<figment::value::Value> {
    use figment::value::Value;
    let toml_value = |text: &str| {
        let table: toml::Table = format!("value = {text}").parse().ok()?;
        Value::serialize(table.get("value")?).ok()
    };
    match kind {
        KeyKind::Text => Some(Value::from(value)),
        KeyKind::Integer => value.trim().parse::<i64>().ok().map(Value::from),
        KeyKind::Number => value.trim().parse::<f64>().ok().map(Value::from),
        KeyKind::Bool => value.trim().parse::<bool>().ok().map(Value::from),
        KeyKind::List if value.trim_start().starts_with('[') => toml_value(value),
        KeyKind::List => {
            Some(Value::from(value.split(',').map(|part| part.trim().to_owned()).collect::<Vec<_>>()))
        }
        KeyKind::Table => toml_value(value),
    }
}

fn unknown_keys(prefix: &str, dict: &figment::value::Dict, problems: &mut Vec<String>) {
    for (name, value) in dict {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        let is_section = SECTIONS.iter().any(|(section, _)| *section == path);
        match (key_of(&path), value.as_dict()) {
            (Some(_), _) => {}
            (None, Some(inner)) if is_section => unknown_keys(&path, inner, problems),
            (None, _) if is_section => problems.push(format!("{path}: is a section, write `[{path}]`")),
            (None, _) => problems.push(format!("{path}: there is no such key{}", nearest(&path))),
        }
    }
}

/// `; did you mean …`, when one is near; else where the list is.
fn nearest(path: &str) -> String {
    let names = KEYS.iter().map(|key| key.path).chain(SECTIONS.iter().map(|(section, _)| *section));
    let best = names
        .filter(|name| !name.is_empty())
        .map(|name| {
            let last = if split(path).0.is_empty() && split(name).1 == path { 1 } else { usize::MAX };
            (distance(path, name).min(last), name)
        })
        .min();
    match best {
        Some((far, name)) if far <= MAX_TYPO_DISTANCE => format!("; did you mean `{name}`?"),
        _ => "; `zeblit config example` lists all".into(),
    }
}

/// Levenshtein distance. Keys are short, so the plain algorithm does.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(100).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(100).enumerate() {
        let mut next = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let at = |list: &[usize], k: usize| list.get(k).copied().unwrap_or(usize::MAX - 1);
            let change = at(&row, j) + usize::from(x != *y);
            next.push(change.min(at(&row, j + 1) + 1).min(at(&next, j) + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

/// What is wrong with a value. Never quotes it: it may be a secret in the wrong place.
fn extract_problem(error: &figment::Error) -> String {
    let path = error.path.join(".");
    match &error.kind {
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) => {
            let needs = key_of(&path).map_or(expected.as_str(), |key| key.kind.expected());
            format!("{path}: needs {needs}")
        }
        Kind::UnknownVariant(_, allowed) => format!(
            "{path}: needs one of {}",
            allowed.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
        ),
        Kind::MissingField(field) => format!("{path}: the field `{field}` is missing"),
        Kind::UnknownField(field, allowed) => {
            format!("{path}: there is no field `{field}`, only {}", allowed.join(", "))
        }
        Kind::Message(_) if key_of(&path).is_some_and(|key| key.path == "server.listen") => {
            format!("{path}: needs an address and port, e.g. `127.0.0.1:8080`")
        }
        Kind::Message(message) => format!("{path}: {message}"),
        Kind::ISizeOutOfRange(_) | Kind::USizeOutOfRange(_) => format!("{path}: the number is out of range"),
        Kind::InvalidLength(..)
        | Kind::DuplicateField(_)
        | Kind::Unsupported(_)
        | Kind::UnsupportedKey(..) => {
            format!("{path}: cannot be read as written; `zeblit config example` shows how")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn from(toml: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("zeblit-server.toml");
        fs::write(&path, toml).unwrap();
        Config::read(
            Some(&path),
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        )
    }

    fn problems(toml: &str, variables: &[(&str, &str)]) -> Vec<String> {
        match from(toml, variables) {
            Err(error) => error.problems,
            Ok(config) => config.validate().err().map(|error| error.problems).unwrap_or_default(),
        }
    }

    #[test]
    fn nothing_given_is_the_default_and_valid() {
        let config = Config::read(None, std::iter::empty()).unwrap();
        config.validate().unwrap();
        assert_eq!(config.effective(), Config::default().effective());
        assert!(config.secrets_for(Source::Jira).is_empty());
        assert!(
            config
                .validate_for_serve()
                .unwrap_err()
                .to_string()
                .starts_with("there is no forge: write a `[github]`")
        );
    }

    #[test]
    fn a_named_file_that_is_missing_is_an_error() {
        let error = Config::load(Some(Path::new("/nowhere/zeblit.toml"))).unwrap_err().to_string();
        assert!(error.contains("`/nowhere/zeblit.toml` cannot be read"), "{error}");
    }

    #[test]
    fn variables_win_over_the_file_and_are_read_as_their_key_says() {
        let config = from(
            "[server]\nlisten = \"127.0.0.1:1\"\nrun_page = \"off\"",
            &[
                ("ZEBLIT_SERVER__LISTEN", "0.0.0.0:9000"),
                ("ZEBLIT_JIRA__WEBHOOK_SECRETS", "1234567890123456,abcdefghijklmnop"),
                ("ZEBLIT_SENTRY__WEBHOOK_SECRETS", "[\"a, with a comma 123\"]"),
                ("ZEBLIT_LIMITS__RUN_BUDGET", "2"),
                ("ZEBLIT_SANDBOX__STRICT", "true"),
                ("ZEBLIT_MODELS__ANTHROPIC_API_KEY", "12345678"),
                (
                    "ZEBLIT_MODELS__PRICES",
                    "{ m = { input = 1, output = 2, cache_read = 0, cache_write = 0.5 } }",
                ),
                ("ZEBLIT_DATABASE__URL", ""),
                ("ZEBLIT_LOG", "debug"),
                ("ZEBLIT_TEST_POSTGRES", "postgres://x"),
                ("PATH", "/bin"),
            ],
        )
        .unwrap();
        config.validate().unwrap();
        assert_eq!(config.server.listen.port(), 9000);
        assert_eq!(config.server.run_page, RunPage::Off);
        assert_eq!(config.secrets_for(Source::Jira).len(), 2);
        assert_eq!(
            config.secrets_for(Source::Sentry).first().unwrap().expose_secret(),
            "a, with a comma 123"
        );
        assert!((config.limits.run_budget - 2.0).abs() < f64::EPSILON);
        assert!(config.sandbox.strict && config.database.url.is_none());
        assert_eq!(config.models.prices.len(), 1);
    }

    #[test]
    fn unknown_keys_are_named_with_the_nearest_one() {
        let found = problems(
            "stat_dir = \"x\"\nlisten = \"y\"\n[server]\nlissten = \"127.0.0.1:1\"\n[nonsense]\nx = 1\n",
            &[("ZEBLIT_LIMITS__RUN", "3"), ("ZEBLIT_LIMITS__RUNS", "many")],
        );
        insta::assert_snapshot!(found.join("\n"), @r"
        `ZEBLIT_LIMITS__RUN`: there is no key `limits.run`; did you mean `limits.runs`?
        `ZEBLIT_LIMITS__RUNS`: needs a whole number
        listen: there is no such key; did you mean `server.listen`?
        nonsense: there is no such key; `zeblit config example` lists all
        server.lissten: there is no such key; did you mean `server.listen`?
        stat_dir: there is no such key; did you mean `state_dir`?
        ");
    }

    #[test]
    fn every_problem_is_found_at_once_and_says_what_to_write() {
        let found = problems(
            r#"
            state_dir = ""
            secret_key = "short"
            [server]
            run_link_days = 0
            header_timeout_seconds = 0
            inflight_bytes = 10
            max_connections = 0
            [database]
            url = "mysql://root@x/y"
            [github]
            webhook_secrets = ["short"]
            api_url = "ftp://x"
            git_url = "https://user:password@x"
            [local_forge]
            webhook_secret = "x"
            [jira]
            webhook_secrets = ["a long enough secret", "a long enough secret", "a long enough secret"]
            max_body_bytes = 0
            [sandbox]
            kind = "process"
            docker_host = "tcp://x"
            image = ""
            memory_mib = 1
            cpus = 0.0
            pids = 1
            log_mib = 0
            idle_minutes = 0
            disk_mib = 1
            disk_files = 1
            runtime = ""
            socket_dir = "relative"
            [models]
            anthropic_url = "nonsense"
            prices = { m = { input = -1.0, output = 1.0, cache_read = 1.0, cache_write = 1.0 } }
            [limits]
            runs = 0
            run_budget = 30.0
            [agents]
            fix = ""
            folder = "/nowhere"
            "#,
            &[],
        );
        insta::assert_snapshot!(found.join("\n"), @r#"
        state_dir: needs a folder, e.g. `state`
        secret_key: needs at least 32 characters, or leave it out to have one made
        server.public_url: is required with `github`: write where people and webhooks reach this server, e.g. `https://zeblit.example.com`
        server.run_link_days: needs a number of days from 1 to 3650
        server.header_timeout_seconds: needs a number of seconds from 1 to 120
        server.inflight_bytes: needs at least 26214400, the largest `max_body_bytes` of a source
        server.max_connections: needs a number from 1 to 65535
        database.url: needs `sqlite:PATH` or `postgres://USER@HOST/NAME`
        local_forge: cannot be used together with `github`: remove one of the two sections
        github.app_id: needs the App ID from the settings page of your GitHub App
        github.private_key_file: needs the path of the App's private key (or write the key itself as `github.private_key`)
        github.webhook_secrets: needs one or two secrets of at least 16 characters
        github.api_url: needs a URL like `https://host` or `http://host:port/path`, without user, password and `?`
        github.git_url: needs a URL like `https://host` or `http://host:port/path`, without user, password and `?`
        local_forge.webhook_secret: needs a secret of at least 16 characters
        jira.webhook_secrets: needs one or two secrets of at least 16 characters
        jira.max_body_bytes: needs a number above zero
        sandbox.kind: `process` has no isolation and is refused with `github`: write `docker`
        sandbox.docker_host: needs `unix:///path/of/docker.sock` or `http://HOST:PORT`
        sandbox.image: needs the name of an image
        sandbox.memory_mib: needs at least 64
        sandbox.pids: needs at least 16
        sandbox.cpus: needs a number from 0.1 to 1024
        sandbox.log_mib: needs a number above zero
        sandbox.idle_minutes: needs a number above zero
        sandbox.disk_mib: needs at least 64
        sandbox.disk_files: needs at least 1000
        sandbox.runtime: needs the name of a runtime of the engine, or leave it out
        sandbox.socket_dir: needs an absolute path, e.g. `/run/zeblit`
        models.anthropic_url: needs a URL like `https://host` or `http://host:port/path`, without user, password and `?`
        models.prices."m": needs dollars per million tokens, zero or more
        limits.runs: needs a number above zero
        limits.run_budget: is more than `limits.max_run_budget`: lower one or raise the other
        agents.fix: needs the name of an agent
        agents.folder: `/nowhere` is not a folder
        "#);
    }

    #[test]
    fn values_of_a_wrong_type_are_named_and_never_quoted() {
        for (toml, expected) in [
            (
                "[jira]\nwebhook_secrets = \"hunter2hunter2hunter2\"",
                "jira.webhook_secrets: needs a list of texts, e.g. [\"…\"]",
            ),
            ("[models]\nanthropic_api_key = 12345", "models.anthropic_api_key: needs a text in quotes"),
            (
                "[server]\nlisten = \"everywhere\"",
                "server.listen: needs an address and port, e.g. `127.0.0.1:8080`",
            ),
            ("[server]\nrun_page = \"sometimes\"", "server.run_page: needs one of `link`, `off`"),
            ("server = 3", "server: is a section, write `[server]`"),
        ] {
            assert_eq!(problems(toml, &[]), [expected]);
        }
        let syntax = problems("a = 1\nsecret_key = hunter2hunter2", &[]);
        assert!(syntax[0].contains("line 2") && !syntax[0].contains("hunter2"), "{syntax:?}");
    }

    #[test]
    fn the_private_key_is_given_once_and_kept_from_others() {
        let folder = tempfile::tempdir().unwrap();
        let pem = folder.path().join("app.pem");
        let line = "q".repeat(64);
        fs::write(&pem, format!("-----BEGIN RSA PRIVATE KEY-----\n{line}\n-----END RSA PRIVATE KEY-----\n"))
            .unwrap();
        let toml = |key: &str| {
            format!(
                "[server]\npublic_url = \"https://z.example.com/\"\n[github]\napp_id = 7\nwebhook_secrets = [\"0123456789abcdef\"]\n{key}"
            )
        };
        let file = format!("private_key_file = \"{}\"\n", pem.display());
        fs::set_permissions(&pem, fs::Permissions::from_mode(0o644)).unwrap();
        let found = problems(&toml(&file), &[]);
        assert!(found.len() == 1 && found[0].contains("is open to everybody: run `chmod 600"), "{found:?}");
        fs::set_permissions(&pem, fs::Permissions::from_mode(0o600)).unwrap();
        let config = from(&toml(&file), &[]).unwrap();
        config.validate_for_serve().unwrap();
        assert!(config.github_private_key().unwrap().unwrap().expose_secret().contains(&line));
        assert!(config.all_secrets().contains(&line.into_bytes()));
        assert!(config.all_secrets().contains(&b"0123456789abcdef".to_vec()));
        assert_eq!(config.public_url(), "https://z.example.com");
        let both = format!("{file}private_key = \"-----BEGIN PRIVATE KEY-----\"\n");
        assert!(problems(&toml(&both), &[])[0].contains("keep only one"));
    }

    #[test]
    fn secrets_are_never_shown() {
        let secret = "do not show this secret text";
        let toml = format!(
            "secret_key = \"{secret} {secret}\"\n[database]\nurl = \"postgres://u:{0}@h/d\"\n[jira]\nwebhook_secrets = [\"{secret}\"]\n[models]\nanthropic_api_key = \"{secret}\"\n[local_forge]\nwebhook_secret = \"{secret}\"\n",
            "hunter2hunter2"
        );
        let config = from(&toml, &[]).unwrap();
        config.validate_for_serve().unwrap();
        let shown = format!("{config:?} {:?}", config.effective());
        assert!(!shown.contains(secret) && !shown.contains("hunter2"), "{shown}");
        assert!(config.all_secrets().contains(&b"hunter2hunter2".to_vec()));
        assert_eq!(config.secrets_for(Source::Github).len(), 1, "local mode takes GitHub deliveries");
    }

    /// Removes the `#` of default lines (`#key = …`), or of examples (`# key = …`), too.
    fn uncommented(example: &str, examples_too: bool) -> String {
        let is_key = |line: &str| {
            line.split_once(" = ").is_some_and(|(name, _)| {
                !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
            })
        };
        example
            .lines()
            .map(|line| match (line.strip_prefix("# "), line.strip_prefix('#')) {
                (Some(rest), _) if examples_too && (is_key(rest) || rest.starts_with('[')) => rest,
                (None, Some(rest)) if is_key(rest) => rest,
                _ => line,
            })
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn the_example_is_the_default_when_uncommented() {
        let example = Config::example();
        let config = from(&uncommented(&example, false), &[]).unwrap();
        config.validate().unwrap();
        assert_eq!(config.effective(), Config::default().effective());
        assert!(uncommented(&example, false).contains("\nlisten = \"127.0.0.1:8080\"\n"));
        // As it is, it says nothing at all.
        assert_eq!(from(&example, &[]).unwrap().effective(), Config::default().effective());
        // With every example used, everything is understood.
        let all = from(&uncommented(&example, true), &[]).unwrap();
        assert!(all.effective().iter().all(|(path, shown)| *shown != Shown::Unset || panic!("{path}")));
    }

    #[test]
    fn every_field_is_in_the_table_of_keys() {
        for (section, _) in SECTIONS {
            let head = if section.is_empty() { String::new() } else { format!("[{section}]\n") };
            let figment = Figment::from(Toml::string(&format!("{head}no_such_field = 1")));
            let error = figment.extract::<Config>().unwrap_err();
            let Kind::UnknownField(_, fields) = &error.kind else { panic!("{section}: {error:?}") };
            for field in *fields {
                let path =
                    if section.is_empty() { (*field).to_owned() } else { format!("{section}.{field}") };
                let is_section = SECTIONS.iter().any(|(name, _)| *name == path);
                assert!(is_section || key_of(&path).is_some(), "`{path}` has no row in KEYS");
            }
            let rows = KEYS.iter().filter(|key| split(key.path).0 == *section).count();
            let sections =
                fields.iter().filter(|field| SECTIONS.iter().any(|(name, _)| name == *field)).count();
            assert_eq!(rows + if section.is_empty() { sections } else { 0 }, fields.len(), "{section}");
        }
    }

    /// What a role needs, and nothing else.
    fn least(role: &str) -> String {
        let github = match role {
            "web" => "webhook_secrets = [\"a webhook secret of some length\"]\n",
            _ => "private_key = \"-----BEGIN RSA PRIVATE KEY-----\"\n",
        };
        let models = if role == "worker" { "[models]\nanthropic_api_key = \"sk-ant-key\"\n" } else { "" };
        format!(
            "secret_key = \"{}\"\n[node]\nrole = \"{role}\"\n[server]\npublic_url = \"https://z.example\"\n\
             [database]\nurl = \"postgres://z@db/z\"\n[github]\napp_id = 1\n{github}{models}",
            "k".repeat(40)
        )
    }

    #[test]
    fn each_role_needs_only_its_own_credentials() {
        for role in ["web", "deliver", "worker"] {
            let config = from(&least(role), &[]).unwrap();
            config.validate_for_serve().unwrap();
            let (config, removed) = config.narrowed();
            assert_eq!(config.node.role.as_str(), role);
            assert_eq!(removed, Vec::<&str>::new(), "{role}");
        }
        assert_eq!(
            problems(&least("web"), &[("ZEBLIT_ROLE", "worker")]),
            [
                "github.private_key_file: needs the path of the App's private key (or write the key itself as `github.private_key`)"
            ]
        );
    }

    #[test]
    fn what_a_role_does_not_use_is_taken_out_and_named() {
        let everything = format!(
            "{}[models.providers]\nx = {{ api = \"openai\", url = \"http://x\", api_key = \"provider-key\", models = [\"m\"] }}\n\
             [jira]\nwebhook_secrets = [\"the secret of the Jira hook\"]\n",
            least("worker")
                .replace("app_id = 1", "app_id = 1\nwebhook_secrets = [\"a webhook secret of some length\"]")
        );
        let secrets_of = |role: &str| {
            let (config, removed) = from(&everything, &[("ZEBLIT_ROLE", role)]).unwrap().narrowed();
            let all = config.all_secrets().concat();
            (String::from_utf8(all).unwrap(), removed)
        };
        for (role, kept, gone, named) in [
            ("all", vec!["sk-ant-key", "provider-key", "webhook secret", "RSA", "Jira hook"], vec![], vec![]),
            (
                "web",
                vec!["webhook secret", "Jira hook"],
                vec!["sk-ant-key", "provider-key", "RSA"],
                vec!["github.private_key", "models.anthropic_api_key", "models.providers"],
            ),
            (
                "deliver",
                vec!["RSA"],
                vec!["sk-ant-key", "provider-key", "webhook secret", "Jira hook"],
                vec![
                    "jira.webhook_secrets",
                    "github.webhook_secrets",
                    "models.anthropic_api_key",
                    "models.providers",
                ],
            ),
            (
                "worker",
                vec!["sk-ant-key", "provider-key", "RSA"],
                vec!["webhook secret", "Jira hook"],
                vec!["jira.webhook_secrets", "github.webhook_secrets"],
            ),
        ] {
            let (secrets, removed) = secrets_of(role);
            assert!(kept.iter().all(|text| secrets.contains(text)), "{role}: {kept:?}");
            assert!(!gone.iter().any(|text| secrets.contains(text)), "{role}: {gone:?}");
            assert_eq!(removed, named, "{role}");
        }
    }

    #[test]
    fn several_nodes_need_a_common_database_and_key() {
        let found = problems(
            "[node]\nrole = \"worker\"\nname = \"a b\"\ncapabilities = [\"ARM\"]\nslots = 0\n\
             [local_forge]\nwebhook_secret = \"a webhook secret of some length\"\n[limits]\nlease_seconds = 1",
            &[],
        );
        insta::assert_snapshot!(found.join("\n"), @r"
        node.name: needs a name of at most 64 characters without spaces
        node.capabilities: needs at most 20 words of lower-case letters, digits, `.`, `_` and `-`
        node.slots: needs a number from 1 to 1000
        database.url: the role `worker` shares its database with other nodes: write `postgres://USER@HOST/NAME` (SQLite is for one process)
        secret_key: the role `worker` needs the key that all nodes share: write the same text of at least 32 characters on each
        local_forge: the built-in forge lives in one process: remove it, or the role `worker`
        limits.lease_seconds: needs a number of seconds from 4 to 600
        ");
        assert!(problems("[node]\nrole = \"queen\"", &[])[0].starts_with("node.role"));
    }

    #[test]
    fn plain_processes_work_for_a_forge_on_this_machine_only() {
        let with = |api: &str| {
            let rest = least("worker").replace("app_id = 1", &format!("app_id = 1\napi_url = \"{api}\""));
            problems(&format!("{rest}[sandbox]\nkind = \"process\"\n"), &[])
        };
        assert_eq!(with("http://127.0.0.1:4000"), Vec::<String>::new());
        for api in ["https://api.github.com", "http://localhost", "http://127.0.0.1.example.com"] {
            assert!(with(api)[0].starts_with("sandbox.kind"), "{api}");
        }
    }

    #[test]
    fn another_server_needs_url_and_token() {
        let secret = |text: &str| Some(SecretString::from(text));
        assert!(RemoteServer::read(None, secret("zbl_x")).unwrap().is_none());
        let found = RemoteServer::read(secret("ftp://x"), None).unwrap_err().problems;
        assert_eq!(found.len(), 2, "{found:?}");
        let remote = RemoteServer::read(secret("https://z.example.com"), secret("zbl_x")).unwrap().unwrap();
        assert_eq!(remote.url.host_str(), Some("z.example.com"));
        assert!(!format!("{remote:?}").contains("zbl_x"));
    }

    #[test]
    fn the_secret_key_is_made_once_and_only_for_us() {
        let folder = tempfile::tempdir().unwrap();
        let config = Config { state_dir: folder.path().join("state"), ..Config::default() };
        let key = config.secret_key_bytes().unwrap();
        assert_eq!(key.len(), 32);
        assert_eq!(config.secret_key_bytes().unwrap(), key);
        let path = config.secret_key_path();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(config.all_secrets().contains(&hex::encode(&key).into_bytes()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(config.secret_key_bytes().unwrap_err().to_string().contains("chmod 600"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "garbage").unwrap();
        assert!(config.secret_key_bytes().unwrap_err().to_string().contains("not a key that Zeblit made"));
        let another = tempfile::tempdir().unwrap();
        let other = Config { state_dir: another.path().into(), ..Config::default() };
        assert_ne!(other.secret_key_bytes().unwrap(), key);
        let given = Config { secret_key: Some("k".repeat(40).into()), ..Config::default() };
        assert_eq!(given.secret_key_bytes().unwrap(), "k".repeat(40).into_bytes());
    }
}
