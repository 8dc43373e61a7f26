//! Purpose: where the operator's verbs go: the store of this machine, or another server through its API.

use super::output::CliError;
use crate::app::{App, Signer};
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, RemoteServer};
use crate::domain::budget;
use crate::domain::ids::RunId;
use crate::domain::run::RunState;
use crate::engine::operate::{self, OperateError};
use crate::http::api::{Changed, DrainBody, Drained, PauseBody, pause_text};
use crate::http::error::{Envelope, chain};
use crate::http::view::{
    self, ArtifactView, AuditView, BudgetView, DeliveryView, LogView, NodesView, RunCostView, RunView,
    StatusView,
};
use crate::store::{self, Store, StoreError};
use secrecy::ExposeSecret;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OnceCell;

/// Seconds that another server gets to answer.
const ANSWER_SECONDS: u64 = 30;
/// Bytes of an answer that are read; a page of log chunks stays far below.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// Which runs to list.
#[derive(Debug, Clone, Default)]
pub struct RunsFilter {
    pub state: Option<RunState>,
    pub repo: Option<String>,
    pub open_only: bool,
    pub limit: i64,
}

#[derive(Debug)]
pub enum Backend {
    Local(Box<Local>),
    Remote(Box<Remote>),
}

/// The store that the configuration names.
#[derive(Debug)]
pub struct Local {
    config: Config,
    store: Store,
    /// Built when something is changed: that needs the whole system, not only the store.
    app: OnceCell<Operator>,
}

/// The whole system, beside a server that may be running on the same state.
#[derive(Debug)]
pub struct Operator {
    pub app: Arc<App>,
    /// Removed when it is dropped.
    _scratch: Scratch,
}

/// A folder of this process.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(error = format!("{error:#}"), path = %self.0.display(), "cannot remove a folder");
        }
    }
}

impl Operator {
    /// The built-in forge belongs to the server that runs: an operator's verbs only write rows, so they get an empty
    /// one of their own, with the same address.
    pub async fn build(config: &Config) -> anyhow::Result<Self> {
        let scratch = Scratch(config.state_dir.join(format!("cli-{}", std::process::id())));
        let mut config = config.clone();
        if let Some(local) = &mut config.local_forge {
            local.folder = Some(scratch.0.clone());
        }
        Ok(Self { app: App::build(config).await?, _scratch: scratch })
    }
}

/// Another server.
#[derive(Debug)]
pub struct Remote {
    server: RemoteServer,
    client: reqwest::Client,
}

impl Backend {
    /// Another server when `ZEBLIT_URL` is set, else the store of this machine.
    pub async fn open(config: Option<&Path>) -> Result<Self, CliError> {
        match RemoteServer::from_variables()? {
            Some(server) => Remote::new(server).map(|remote| Self::Remote(Box::new(remote))),
            None => Ok(Self::Local(Box::new(Local::open(config).await?))),
        }
    }

    pub async fn status(&self) -> Result<StatusView, CliError> {
        match self {
            Self::Local(local) => {
                StatusView::read(&local.store).await.map_err(|error| store_error(&error)).and_then(hidden)
            }
            Self::Remote(remote) => remote.get("status", &[]).await,
        }
    }

    pub async fn runs(&self, filter: &RunsFilter) -> Result<Vec<RunView>, CliError> {
        match self {
            Self::Local(local) => {
                let filter = store::runs::Filter {
                    state: filter.state,
                    repo: filter.repo.clone(),
                    open_only: filter.open_only,
                    limit: filter.limit.clamp(1, view::MAX_ROWS),
                };
                let runs =
                    store::runs::list(&local.store, &filter).await.map_err(|error| store_error(&error))?;
                runs.iter().map(|run| local.shown(run)).collect()
            }
            Self::Remote(remote) => {
                let mut query = vec![
                    ("open", filter.open_only.to_string()),
                    ("limit", filter.limit.clamp(1, view::MAX_ROWS).to_string()),
                ];
                query.extend(filter.state.map(|state| ("state", state.as_str().to_owned())));
                query.extend(filter.repo.clone().map(|repo| ("repo", repo)));
                remote.get("runs", &query).await
            }
        }
    }

    pub async fn run(&self, id: &str) -> Result<RunView, CliError> {
        match self {
            Self::Local(local) => local.shown(&local.known_run(id).await?),
            Self::Remote(remote) => remote.get(&format!("runs/{}", plain_id(id)?), &[]).await,
        }
    }

    /// Lines after a number.
    pub async fn log(&self, id: &str, after: i64) -> Result<LogView, CliError> {
        match self {
            Self::Local(local) => LogView::read(&local.store, &RunId::new(id), after)
                .await
                .map_err(|error| store_error(&error))?
                .ok_or_else(|| no_run(id))
                .and_then(hidden),
            Self::Remote(remote) => {
                remote.get(&format!("runs/{}/log", plain_id(id)?), &[("after", after.to_string())]).await
            }
        }
    }

    /// What is spent and left; of one run when it is named.
    pub async fn budget(&self, run: Option<&str>) -> Result<BudgetView, CliError> {
        match self {
            Self::Local(local) => {
                let run = match run {
                    Some(id) => Some(local.known_run(id).await?),
                    None => None,
                };
                BudgetView::read(&local.config, &local.store, run.as_ref(), SystemClock.now())
                    .await
                    .map_err(|error| store_error(&error))
            }
            Self::Remote(remote) => {
                let run = run.map(plain_id).transpose()?;
                let query: Vec<_> = run.map(|run| ("run", run.to_owned())).into_iter().collect();
                remote.get("budget", &query).await
            }
        }
    }

    /// One page of a month's ledger by run.
    pub async fn month(&self, month: &str, after: &str) -> Result<Vec<RunCostView>, CliError> {
        match self {
            Self::Local(local) => {
                let span = budget::month(month)
                    .ok_or_else(|| CliError::new(format!("`{month}` is not a month like `2026-11`")))?;
                RunCostView::read(&local.store, span, after).await.map_err(|error| store_error(&error))
            }
            Self::Remote(remote) => {
                let query = [("month", month.to_owned()), ("after", after.to_owned())];
                remote.get("budget/runs", &query).await
            }
        }
    }

    pub async fn artifacts(&self, id: &str) -> Result<Vec<ArtifactView>, CliError> {
        match self {
            Self::Local(local) => {
                let files = store::artifacts::files(&local.store, &RunId::new(id)).await;
                Ok(files.map_err(|error| store_error(&error))?.iter().map(ArtifactView::of).collect())
            }
            Self::Remote(remote) => remote.get(&format!("runs/{}/artifacts", plain_id(id)?), &[]).await,
        }
    }

    /// The bytes of one of them.
    pub async fn artifact(&self, id: &str, path: &str) -> Result<Vec<u8>, CliError> {
        match self {
            Self::Local(local) => store::artifacts::file(&local.store, &RunId::new(id), path)
                .await
                .map_err(|error| store_error(&error))?
                .ok_or_else(|| CliError::new(format!("`{}` is not kept any more", view::visible(path)))),
            Self::Remote(remote) => {
                let path = format!("runs/{}/artifacts/{}", plain_id(id)?, view::url_path(path));
                remote.bytes(remote.client.get(remote.address(&path)?)).await
            }
        }
    }

    /// Gives the run's full id.
    pub async fn cancel(&self, id: &str) -> Result<String, CliError> {
        match self {
            Self::Local(local) => {
                let run = local.known_run(id).await?.id;
                operate::cancel(local.app().await?, &run, &actor()).await.map_err(operate_error)?;
                Ok(run.to_string())
            }
            Self::Remote(remote) => remote.change(&format!("runs/{}/cancel", plain_id(id)?)).await,
        }
    }

    /// The command line of a shell in the run's container; only where the containers are.
    pub async fn shell(&self, id: &str) -> Result<Vec<String>, CliError> {
        match self {
            Self::Local(local) => {
                let run = local.known_run(id).await?.id;
                operate::shell(local.app().await?, &run, &actor()).await.map_err(operate_error)
            }
            Self::Remote(_) => Err(CliError::new("a shell is opened on the server's own machine only")
                .hint("log in there, unset ZEBLIT_URL, and type `zeblit shell` again")),
        }
    }

    /// Gives the new run's id.
    pub async fn retry(&self, id: &str) -> Result<String, CliError> {
        match self {
            Self::Local(local) => {
                let run = local.known_run(id).await?.id;
                let new = operate::retry(local.app().await?, &run, &actor()).await.map_err(operate_error)?;
                Ok(new.to_string())
            }
            Self::Remote(remote) => remote.change(&format!("runs/{}/retry", plain_id(id)?)).await,
        }
    }

    /// Gives what is stored about the pause.
    pub async fn pause(&self, why: &str) -> Result<String, CliError> {
        match self {
            Self::Local(local) => {
                let text = pause_text(&actor(), why);
                operate::pause(local.app().await?, Some(&text), &actor()).await.map_err(operate_error)?;
                Ok(text)
            }
            Self::Remote(remote) => {
                let body = PauseBody { why: why.to_owned() };
                let answer: PauseBody = remote.post("pause", Some(&body)).await?;
                Ok(answer.why)
            }
        }
    }

    pub async fn resume(&self) -> Result<(), CliError> {
        match self {
            Self::Local(local) => {
                operate::pause(local.app().await?, None, &actor()).await.map_err(operate_error)
            }
            Self::Remote(remote) => remote.post::<PauseBody>("resume", None).await.map(|_| ()),
        }
    }

    pub async fn deliveries(&self, limit: i64) -> Result<Vec<DeliveryView>, CliError> {
        let limit = limit.clamp(1, view::MAX_ROWS);
        match self {
            Self::Local(local) => {
                let found =
                    store::inbox::list(&local.store, limit).await.map_err(|error| store_error(&error))?;
                hidden(found.iter().map(DeliveryView::of).collect())
            }
            Self::Remote(remote) => remote.get("deliveries", &[("limit", limit.to_string())]).await,
        }
    }

    pub async fn nodes(&self) -> Result<NodesView, CliError> {
        match self {
            Self::Local(local) => NodesView::read(&local.store, SystemClock.now())
                .await
                .map_err(|error| store_error(&error))
                .and_then(hidden),
            Self::Remote(remote) => remote.get("nodes", &[]).await,
        }
    }

    /// Drains the nodes of a name or id, or lets them claim again; gives how many there are.
    pub async fn drain(&self, node: &str, drain: bool) -> Result<u64, CliError> {
        match self {
            Self::Local(local) => {
                operate::drain(local.app().await?, node, drain, &actor()).await.map_err(operate_error)
            }
            Self::Remote(remote) => {
                let body = DrainBody { node: node.to_owned(), drain };
                let request = remote.client.post(remote.address("nodes/drain")?).json(&body);
                remote.answer::<Drained>(request).await.map(|drained| drained.nodes)
            }
        }
    }

    /// A delivery by our id or by the sender's (gives ours), or a run (gives the new one's).
    pub async fn replay(&self, id: &str) -> Result<String, CliError> {
        match self {
            Self::Local(local) => {
                operate::replay(local.app().await?, id, &actor()).await.map_err(operate_error)
            }
            Self::Remote(remote) => remote.change(&format!("replay/{}", plain_id(id)?)).await,
        }
        .map_err(|error| error.hint("`zeblit deliveries` and `zeblit status` list the newest"))
    }

    pub async fn audit(&self, limit: i64) -> Result<Vec<AuditView>, CliError> {
        let limit = limit.clamp(1, view::MAX_ROWS);
        match self {
            Self::Local(local) => {
                let found =
                    store::audit::list(&local.store, limit).await.map_err(|error| store_error(&error))?;
                hidden(found.iter().map(AuditView::of).collect())
            }
            Self::Remote(remote) => remote.get("audit", &[("limit", limit.to_string())]).await,
        }
    }
}

/// Who acts on this machine, as the audit log names it. The user id is the system's word, `$USER` would be anybody's.
pub fn actor() -> String {
    use std::os::unix::fs::MetadataExt;
    match std::fs::metadata("/proc/self") {
        Ok(me) => format!("host:uid-{}", me.uid()),
        Err(_no_proc) => "host".into(),
    }
}

pub fn store_error(error: &StoreError) -> CliError {
    CliError::new(chain(error)).hint("`zeblit doctor` checks the database")
}

fn operate_error(error: OperateError) -> CliError {
    match error {
        OperateError::NotFound { .. } | OperateError::Refused(_) => CliError::new(error.to_string()),
        OperateError::Store(error) => store_error(&error),
        OperateError::Engine(error) => CliError::new(chain(&error)),
    }
}

fn no_run(id: &str) -> CliError {
    CliError::new(format!("there is no run `{id}`"))
        .hint("`zeblit status` lists the newest; the last 6 or more characters of an id are enough")
}

/// An id that may stand in a path.
fn plain_id(id: &str) -> Result<&str, CliError> {
    if view::is_id(id) { Ok(id) } else { Err(CliError::new(format!("`{id}` is not an id"))) }
}

/// Rows without the secrets of the configuration, before a table cuts them short: what is left of one is not recognised.
fn hidden<T: serde::Serialize + DeserializeOwned>(rows: T) -> Result<T, CliError> {
    fn mask(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::String(text) => *text = crate::telemetry::masked(text),
            serde_json::Value::Array(items) => items.iter_mut().for_each(mask),
            serde_json::Value::Object(members) => members.values_mut().for_each(mask),
            _ => {}
        }
    }
    let problem = |error: serde_json::Error| CliError::because("cannot read a row", &error);
    let mut value = serde_json::to_value(rows).map_err(problem)?;
    mask(&mut value);
    serde_json::from_value(value).map_err(problem)
}

impl Local {
    /// The store that the configuration names; it must be there already.
    pub async fn open(file: Option<&Path>) -> Result<Self, CliError> {
        let config = Config::load(file)?;
        if config.database.url.is_none() {
            let path = config.state_dir.join("zeblit.db");
            if !path.exists() {
                return Err(CliError::new(format!("there is no database at `{}` yet", path.display()))
                    .hint("run this where `zeblit serve` runs, with the same --config; or set ZEBLIT_URL and ZEBLIT_TOKEN to reach a server"));
            }
        }
        Self::with(config).await
    }

    /// The same; makes the database when it is not there.
    pub async fn open_or_make(file: Option<&Path>) -> Result<Self, CliError> {
        let config = Config::load(file)?;
        std::fs::create_dir_all(&config.state_dir).map_err(|error| {
            CliError::new(format!("state_dir: cannot make `{}`: {error}", config.state_dir.display()))
        })?;
        Self::with(config).await
    }

    async fn with(config: Config) -> Result<Self, CliError> {
        crate::telemetry::hide(&config.secret_scan());
        let store =
            Store::open(config.database_url().expose_secret()).await.map_err(|error| store_error(&error))?;
        Ok(Self { config, store, app: OnceCell::new() })
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    async fn app(&self) -> Result<&App, CliError> {
        let operator = self.app.get_or_try_init(|| Operator::build(&self.config)).await?;
        Ok(&operator.app)
    }

    async fn known_run(&self, id: &str) -> Result<crate::domain::run::Run, CliError> {
        view::find_run(&self.store, id).await.map_err(|error| store_error(&error))?.ok_or_else(|| no_run(id))
    }

    fn shown(&self, run: &crate::domain::run::Run) -> Result<RunView, CliError> {
        let now = SystemClock.now();
        let signer = Signer::new(&self.config.secret_key_bytes()?);
        let page = view::fresh_page_url(&self.config, &signer, &run.id, now);
        hidden(RunView::of(run, now, page))
    }
}

impl Remote {
    pub fn new(server: RemoteServer) -> Result<Self, CliError> {
        let client = reqwest::Client::builder()
            .timeout(Duration::from_secs(ANSWER_SECONDS))
            // A redirect could carry the token elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| CliError::because("cannot make an HTTP client", &error))?;
        Ok(Self { server, client })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str, query: &[(&str, String)]) -> Result<T, CliError> {
        let mut url = self.address(path)?;
        for (name, value) in query {
            url.query_pairs_mut().append_pair(name, value);
        }
        self.answer(self.client.get(url)).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: Option<&PauseBody>) -> Result<T, CliError> {
        let request = self.client.post(self.address(path)?);
        self.answer(match body {
            Some(body) => request.json(body),
            None => request,
        })
        .await
    }

    async fn change(&self, path: &str) -> Result<String, CliError> {
        self.post::<Changed>(path, None).await.map(|changed| changed.id)
    }

    fn address(&self, path: &str) -> Result<url::Url, CliError> {
        let base = self.server.url.as_str().trim_end_matches('/');
        url::Url::parse(&format!("{base}/api/v1/{path}"))
            .map_err(|error| CliError::because("ZEBLIT_URL does not make an address", &error))
    }

    async fn answer<T: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> Result<T, CliError> {
        let body = self.bytes(request).await?;
        serde_json::from_slice(&body).map_err(|error| {
            CliError::because(
                &format!("the answer of {} cannot be understood", self.server.url.as_str()),
                &error,
            )
            .hint("is it the same version of Zeblit? `zeblit --version` and `zeblit status` show both")
        })
    }

    async fn bytes(&self, request: reqwest::RequestBuilder) -> Result<Vec<u8>, CliError> {
        let shown = self.server.url.as_str();
        let mut response =
            request.bearer_auth(self.server.token.expose_secret()).send().await.map_err(|error| {
                CliError::because(&format!("the server at {shown} does not answer"), &error.without_url())
                    .hint("check ZEBLIT_URL, and that `zeblit serve` runs there")
            })?;
        let status = response.status();
        let mut body = Vec::new();
        while let Some(piece) = response
            .chunk()
            .await
            .map_err(|error| CliError::because("the answer was cut off", &error.without_url()))?
        {
            if body.len() + piece.len() > MAX_ANSWER_BYTES {
                return Err(CliError::new("the server's answer is too large"));
            }
            body.extend_from_slice(&piece);
        }
        if !status.is_success() {
            return Err(refusal(shown, status, &body));
        }
        Ok(body)
    }
}

fn refusal(server: &str, status: reqwest::StatusCode, body: &[u8]) -> CliError {
    match serde_json::from_slice::<Envelope>(body) {
        Ok(envelope) => {
            let error = CliError::new(view::visible(&envelope.error.message));
            if status == reqwest::StatusCode::UNAUTHORIZED {
                error.hint("set ZEBLIT_TOKEN to it")
            } else {
                error
            }
        }
        Err(_foreign) => CliError::new(format!("the server at {server} answered {status}"))
            .hint("is ZEBLIT_URL the address of a Zeblit server?"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_the_server_said() {
        let body = br#"{"error":{"code":"unauthorized","message":"the token is not valid"}}"#;
        let error = refusal("https://z", reqwest::StatusCode::UNAUTHORIZED, body);
        assert_eq!(error.problems, ["the token is not valid"]);
        let error = refusal("https://z", reqwest::StatusCode::BAD_GATEWAY, b"<html>");
        assert_eq!(error.problems, ["the server at https://z answered 502 Bad Gateway"]);
    }

    #[test]
    fn ids_cannot_leave_their_place_in_a_path() {
        assert!(plain_id("019a").is_ok());
        assert!(plain_id("../audit").is_err());
    }
}
