//! GitHub through octocrab, as a GitHub App.
//!
//! `client` is one call with its limits and errors, `download` what lies outside the API, `effects` the rarer kinds of
//! effects, `tokens` the App's credentials, `wire` the replies.

mod client;
mod download;
mod effects;
mod tokens;
mod wire;

use super::{
    Forge, GitAccess, GitPermission, LogTail, Missed, OwnIdentity, Remote, RemoteError, RepoInfo,
    ThreadComment,
};
use crate::clock::Clock;
use crate::domain::attachment::Link;
use crate::domain::ci::{self, Annotation, FailedCheck};
use crate::domain::effect::{
    CheckConclusion, CheckRun, CheckStatus, Effect, OwnComment, OwnPull, Payload, Reaction, ReactionTarget,
    RemoteRef,
};
use crate::domain::event::{Actor, PullHead, Repo, Subject};
use crate::domain::ids::{BranchName, RepoName, Sha};
use crate::domain::policy::Role;
use async_trait::async_trait;
use base64::Engine as _;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use client::{Call, Client, Credentials, LIST_BYTES, RAW, clip, encode, encode_path};
use download::{Downloader, Part};
use hyper::Method;
use secrecy::SecretString;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokens::{AppKey, PermissionSet, TokenCache, TokenKey};

/// Things per page of a list: GitHub's largest.
const PAGE: usize = 100;
/// Pages read when looking for something we made: 3 000 comments since a moment ago are no conversation.
const FIND_PAGES: usize = 30;
/// Pages of deliveries that are looked through, at most: 20 000 attempts.
const DELIVERY_PAGES: usize = 200;
/// Pages read for the context of a prompt.
const THREAD_PAGES: usize = 10;
/// How much older than our intent a comment may be: clocks run apart.
const INTENT_MARGIN: TimeDelta = TimeDelta::seconds(60);
/// Bytes of a file that is read through the API (configuration, agents, templates).
const FILE_BYTES: usize = 1024 * 1024;
/// Bytes of the text of a check: GitHub refuses more than 65 535 characters.
const CHECK_TEXT_CHARS: usize = 65_535;
/// Installations remembered for repositories whose deliveries name none.
const INSTALLATIONS_KEPT: usize = 1000;

/// How to reach GitHub as an App.
pub struct GithubSettings {
    pub app_id: u64,
    /// The App's RSA key as GitHub gives it, PEM; empty: a node that may not speak as the App, whose calls all fail.
    pub private_key: SecretString,
    /// `https://api.github.com`, or `https://HOST/api/v3` on GitHub Enterprise Server.
    pub api_url: String,
    /// Clone URLs are `<git_url>/<owner>/<name>.git`.
    pub git_url: String,
    /// Where people see it.
    pub web_url: String,
    /// Where an own server keeps uploads and logs, besides the hosts above.
    pub storage_urls: Vec<String>,
    pub clock: Arc<dyn Clock>,
}

/// Why GitHub cannot be used as configured.
#[derive(Debug, thiserror::Error)]
pub enum GithubSetupError {
    #[error(
        "the private key of the GitHub App is not an RSA key in PEM form ({detail}): download a new one from the App's settings, \"Private keys\""
    )]
    Key { detail: String },
    #[error("`{url}` is not usable as {what}: {detail}")]
    Url { what: &'static str, url: String, detail: String },
}

/// GitHub as one of its Apps.
pub struct GithubForge {
    client: Client,
    tokens: TokenCache,
    app_id: u64,
    git_url: String,
    web_url: String,
    api_url: String,
    downloads: Downloader,
    uploads_url: String,
    identity: tokio::sync::OnceCell<OwnIdentity>,
    /// Installation by repository id, for deliveries that name none.
    installations: Mutex<HashMap<i64, i64>>,
    /// Our forks, by repository id and owner.
    forks: Mutex<HashMap<(i64, String), Repo>>,
}

impl std::fmt::Debug for GithubForge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GithubForge")
            .field("app_id", &self.app_id)
            .field("git_url", &self.git_url)
            .finish_non_exhaustive()
    }
}

/// What a repository allows at one call.
struct Granted {
    key: TokenKey,
    token: SecretString,
}

impl GithubForge {
    /// Checks key and addresses; asks nobody. Must be called inside a Tokio runtime.
    pub fn new(settings: GithubSettings) -> Result<Self, GithubSetupError> {
        let key = AppKey::new(settings.app_id, &settings.private_key)
            .map_err(|detail| GithubSetupError::Key { detail })?;
        let plain = |what: &'static str, url: &str| {
            let bad =
                |detail: &str| GithubSetupError::Url { what, url: clip(url), detail: detail.to_owned() };
            let parsed = url::Url::parse(url).map_err(|error| bad(&error.to_string()))?;
            if !matches!(parsed.scheme(), "http" | "https") || parsed.host_str().is_none() {
                return Err(bad("an http or https address with a host is needed"));
            }
            if !parsed.username().is_empty() || parsed.password().is_some() {
                return Err(GithubSetupError::Url {
                    what,
                    url: "(hidden)".into(),
                    detail: "credentials have no place in the address".into(),
                });
            }
            Ok(url.trim_end_matches('/').to_owned())
        };
        let api_url = plain("the API address (`api_url`)", &settings.api_url)?;
        let git_url = plain("the Git address (`git_url`)", &settings.git_url)?;
        let web_url = plain("the web address (`web_url`)", &settings.web_url)?;
        for url in &settings.storage_urls {
            plain("the address of a storage (`storage_urls`)", url)?;
        }
        let downloads = Downloader::new(&git_url, &api_url, &settings.storage_urls).map_err(|detail| {
            GithubSetupError::Url { what: "the Git address (`git_url`)", url: git_url.clone(), detail }
        })?;
        let client = Client::connect(&api_url, key, settings.clock).map_err(|detail| {
            GithubSetupError::Url { what: "the API address (`api_url`)", url: api_url.clone(), detail }
        })?;
        Ok(Self {
            client,
            tokens: TokenCache::default(),
            app_id: settings.app_id,
            git_url,
            web_url,
            api_url,
            uploads_url: downloads.uploads_url(),
            downloads,
            identity: tokio::sync::OnceCell::new(),
            installations: Mutex::default(),
            forks: Mutex::default(),
        })
    }

    /// Another time limit for a whole call than 20 s.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.client.timeout = timeout;
        self
    }

    async fn installation_of(&self, repo: &Repo) -> Result<i64, RemoteError> {
        if repo.installation > 0 {
            return Ok(repo.installation);
        }
        let known = {
            let known = self.installations.lock().unwrap_or_else(PoisonError::into_inner);
            known.get(&repo.id).copied()
        };
        if let Some(installation) = known {
            return Ok(installation);
        }
        let path = format!("{}/installation", repo_path(repo));
        let call = Call::get("look up the installation", path, Credentials::App);
        let installation = self.client.call(call).await?.json::<wire::Id>()?.id;
        let mut known = self.installations.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= INSTALLATIONS_KEPT {
            known.clear();
        }
        known.insert(repo.id, installation);
        Ok(installation)
    }

    async fn grant(&self, repo: &Repo, set: PermissionSet) -> Result<Granted, RemoteError> {
        let key = TokenKey { installation: self.installation_of(repo).await?, repo: repo.id, set };
        let token = self.tokens.get(&self.client, key).await?;
        Ok(Granted { key, token })
    }

    /// A token that was refused must not be used again.
    async fn watch<T>(&self, granted: &Granted, result: Result<T, RemoteError>) -> Result<T, RemoteError> {
        if let Err(RemoteError::Auth { .. }) = &result {
            self.tokens.refused(granted.key, &granted.token).await;
        }
        result
    }

    async fn send(
        &self,
        repo: &Repo,
        set: PermissionSet,
        call: impl FnOnce(Credentials) -> Call,
    ) -> Result<client::Reply, RemoteError> {
        let granted = self.grant(repo, set).await?;
        let result = self.client.call(call(Credentials::Token(granted.token.clone()))).await;
        self.watch(&granted, result).await
    }

    async fn read<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        repo: &Repo,
        set: PermissionSet,
        path: String,
    ) -> Result<T, RemoteError> {
        self.send(repo, set, |credentials| Call::get(operation, path, credentials).limit(LIST_BYTES))
            .await?
            .json()
    }

    async fn read_cached<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        repo: &Repo,
        path: String,
    ) -> Result<T, RemoteError> {
        let call = |credentials| Call::get(operation, path, credentials).conditional();
        self.send(repo, PermissionSet::Read, call).await?.json()
    }

    async fn write<T: DeserializeOwned>(
        &self,
        operation: &'static str,
        repo: &Repo,
        set: PermissionSet,
        method: Method,
        path: String,
        body: Value,
    ) -> Result<T, RemoteError> {
        self.send(repo, set, |credentials| Call::write(operation, method, path, body, credentials))
            .await?
            .json()
    }

    async fn mutate(
        &self,
        operation: &'static str,
        repo: &Repo,
        set: PermissionSet,
        query: &str,
        variables: Value,
    ) -> Result<Value, RemoteError> {
        let granted = self.grant(repo, set).await?;
        let credentials = Credentials::Token(granted.token.clone());
        let result = self.client.graphql(operation, query, variables, credentials).await;
        self.watch(&granted, result).await
    }

    async fn identity(&self) -> Result<&OwnIdentity, RemoteError> {
        self.identity.get_or_try_init(|| self.ask_identity()).await
    }

    async fn app_info(&self) -> Result<wire::AppInfo, RemoteError> {
        self.client.call(Call::get("read the App", "/app".into(), Credentials::App)).await?.json()
    }

    async fn ask_identity(&self) -> Result<OwnIdentity, RemoteError> {
        const OPERATION: &str = "read the App's own user";
        let app = self.app_info().await?;
        let slug = app.slug.ok_or_else(|| RemoteError::Protocol {
            operation: "read the App",
            detail: "the App has no `slug`".into(),
        })?;
        let path = format!("/users/{}", encode(&format!("{slug}[bot]")));
        let ask = |credentials| self.client.call(Call::get(OPERATION, path.clone(), credentials));
        let first = match self.tokens.any(self.client.clock.now()) {
            Some(token) => ask(Credentials::Token(token)).await,
            None => ask(Credentials::Anonymous).await,
        };
        let reply = match first {
            // A private server, or the small budget of strangers: ask as one of our installations.
            Err(
                RemoteError::Auth { .. } | RemoteError::Forbidden { .. } | RemoteError::RateLimited { .. },
            ) => ask(Credentials::Token(self.any_token().await?)).await?,
            other => other?,
        };
        let user: wire::User = reply.json()?;
        Ok(OwnIdentity { user_id: user.id, login: user.login, app_id: app.id })
    }

    /// A token that may read metadata, of whichever installation comes first.
    async fn any_token(&self) -> Result<SecretString, RemoteError> {
        let list = "/app/installations?per_page=1".to_owned();
        let call = Call::get("list the App's installations", list, Credentials::App);
        let installations: Vec<wire::Id> = self.client.call(call).await?.json()?;
        let first = installations.first().ok_or_else(|| RemoteError::Forbidden {
            operation: "read the App's own user",
            detail: "the App is not installed anywhere, and GitHub tells strangers nothing here".into(),
        })?;
        self.metadata_token(first.id).await
    }

    /// A token that may read the metadata of every repository of an installation.
    async fn metadata_token(&self, installation: i64) -> Result<SecretString, RemoteError> {
        self.wide_token(installation, json!({ "metadata": "read" })).await
    }

    /// A token for every repository of an installation; not kept.
    async fn wide_token(&self, installation: i64, permissions: Value) -> Result<SecretString, RemoteError> {
        #[derive(serde::Deserialize)]
        struct TokenReply {
            token: SecretString,
        }
        let call = Call::write(
            "request an installation token",
            Method::POST,
            format!("/app/installations/{installation}/access_tokens"),
            json!({ "permissions": permissions }),
            Credentials::App,
        );
        Ok(self.client.call(call.harmless()).await?.json::<TokenReply>()?.token)
    }

    /// Asks for `owner`'s repository of the same name, and whether it is a fork of `repo` with the App on it.
    async fn ask_fork(&self, repo: &Repo, owner: &str) -> Result<Option<Repo>, RemoteError> {
        const OPERATION: &str = "look for our fork";
        let wrong = |error: crate::domain::ids::InvalidId| RemoteError::Protocol {
            operation: OPERATION,
            detail: error.to_string(),
        };
        let name = RepoName::parse(&format!("{owner}/{}", repo.name.name())).map_err(wrong)?;
        let path = format!("/repos/{name}");
        let call = Call::get(OPERATION, format!("{path}/installation"), Credentials::App);
        let installation = match self.client.call(call).await {
            Err(RemoteError::NotFound { .. } | RemoteError::Forbidden { .. }) => return Ok(None),
            other => other?.json::<wire::Id>()?.id,
        };
        let token = self.metadata_token(installation).await?;
        let found: wire::RepoJson =
            match self.client.call(Call::get(OPERATION, path, Credentials::Token(token))).await {
                Err(RemoteError::NotFound { .. }) => return Ok(None),
                other => other?.json()?,
            };
        let name = RepoName::parse(&found.full_name).map_err(wrong)?;
        if found.parent.is_none_or(|parent| parent.id != repo.id) || !name.owner().eq_ignore_ascii_case(owner)
        {
            return Ok(None);
        }
        Ok(Some(Repo { id: found.id, name, installation, private: found.private }))
    }

    async fn react(
        &self,
        repo: &Repo,
        target: &ReactionTarget,
        reaction: Reaction,
    ) -> Result<RemoteRef, RemoteError> {
        const OPERATION: &str = "add a reaction";
        let base = repo_path(repo);
        let path = match target {
            ReactionTarget::Subject { number } => format!("{base}/issues/{number}/reactions"),
            ReactionTarget::Comment { id } => format!("{base}/issues/comments/{id}/reactions"),
            ReactionTarget::ReviewComment { id } => format!("{base}/pulls/comments/{id}/reactions"),
            ReactionTarget::Review { node_id } => {
                let data = self
                    .mutate(
                        OPERATION,
                        repo,
                        PermissionSet::Talk,
                        "mutation($subject: ID!, $content: ReactionContent!) { addReaction(input: {subjectId: $subject, content: $content}) { reaction { id databaseId } } }",
                        json!({ "subject": node_id, "content": reaction.graphql_name() }),
                    )
                    .await?;
                let made = data.pointer("/addReaction/reaction");
                let text = |name| made.and_then(|made| made.get(name));
                let node = text("id").and_then(Value::as_str).map(str::to_owned);
                let id = text("databaseId").and_then(Value::as_i64).map(|id| id.to_string());
                return Ok(RemoteRef {
                    id: id.or_else(|| node.clone()).unwrap_or_default(),
                    node_id: node,
                    ..RemoteRef::default()
                });
            }
        };
        let body = json!({ "content": reaction.rest_name() });
        let made: wire::Made =
            self.write(OPERATION, repo, PermissionSet::Talk, Method::POST, path, body).await?;
        Ok(made_ref(made))
    }

    async fn comment(
        &self,
        repo: &Repo,
        comment: &OwnComment,
        existing: Option<&RemoteRef>,
    ) -> Result<RemoteRef, RemoteError> {
        let base = repo_path(repo);
        let number = comment.number;
        let (operation, method, path) = match (existing, comment.thread) {
            (Some(existing), None) => {
                let id = id_of(existing, "edit a comment")?;
                ("edit a comment", Method::PATCH, format!("{base}/issues/comments/{id}"))
            }
            (Some(existing), Some(_)) => {
                let id = id_of(existing, "edit a reply")?;
                ("edit a reply", Method::PATCH, format!("{base}/pulls/comments/{id}"))
            }
            (None, None) => ("write a comment", Method::POST, format!("{base}/issues/{number}/comments")),
            (None, Some(thread)) => {
                ("write a reply", Method::POST, format!("{base}/pulls/{number}/comments/{thread}/replies"))
            }
        };
        let body = json!({ "body": comment.body });
        let made: wire::Made = self.write(operation, repo, PermissionSet::Talk, method, path, body).await?;
        Ok(made_ref(made))
    }

    async fn find_comments(
        &self,
        repo: &Repo,
        comment: &OwnComment,
        since: DateTime<Utc>,
    ) -> Result<Vec<RemoteRef>, RemoteError> {
        const OPERATION: &str = "look for our comment";
        let identity = self.identity().await?;
        let base = repo_path(repo);
        let since = encode(&(since - INTENT_MARGIN).to_rfc3339_opts(SecondsFormat::Secs, true));
        let place = if comment.thread.is_some() { "pulls" } else { "issues" };
        let mut ours = Vec::new();
        for page in 1..=FIND_PAGES {
            let path = format!(
                "{base}/{place}/{}/comments?since={since}&per_page={PAGE}&page={page}",
                comment.number
            );
            let found: Vec<wire::Comment> = self.read(OPERATION, repo, PermissionSet::Talk, path).await?;
            let full = found.len() >= PAGE;
            ours.extend(found.into_iter().filter(|candidate| {
                is_own(candidate, identity)
                    && candidate.body.as_deref().is_some_and(|body| body.contains(&comment.marker))
            }));
            if !full {
                let refs = ours.into_iter().map(|ours| RemoteRef {
                    id: ours.id.to_string(),
                    node_id: ours.node_id,
                    url: ours.html_url,
                    note: None,
                });
                return Ok(refs.collect());
            }
        }
        Err(RemoteError::Protocol {
            operation: OPERATION,
            detail: format!("more than {} comments since the intent", FIND_PAGES * PAGE),
        })
    }

    async fn check_run(
        &self,
        repo: &Repo,
        check: &CheckRun,
        existing: Option<&RemoteRef>,
    ) -> Result<RemoteRef, RemoteError> {
        let base = repo_path(repo);
        let mut body = json!({
            "name": check.name,
            "external_id": check.external_id,
            "status": status_name(check.status),
            "output": output(check, false),
        });
        let mut put = |name: &str, value: Option<Value>| {
            if let (Some(object), Some(value)) = (body.as_object_mut(), value) {
                object.insert(name.to_owned(), value);
            }
        };
        let time = |at: DateTime<Utc>| json!(at.to_rfc3339_opts(SecondsFormat::Secs, true));
        put("details_url", check.details_url.as_ref().map(|url| json!(url)));
        put("started_at", check.started_at.map(time));
        // A conclusion makes GitHub complete the check, whatever `status` says.
        if check.status == CheckStatus::Completed {
            put(
                "conclusion",
                Some(json!(conclusion_name(check.conclusion.unwrap_or(CheckConclusion::Neutral)))),
            );
            put("completed_at", check.completed_at.map(time));
        }
        let (operation, method, path) = match existing {
            Some(existing) => {
                let id = id_of(existing, "update a check run")?;
                ("update a check run", Method::PATCH, format!("{base}/check-runs/{id}"))
            }
            None => {
                put("head_sha", Some(json!(check.head_sha)));
                // An update would add them once more.
                if !check.annotations.is_empty() {
                    put("output", Some(output(check, true)));
                }
                ("create a check run", Method::POST, format!("{base}/check-runs"))
            }
        };
        let made: wire::Made = self.write(operation, repo, PermissionSet::Checks, method, path, body).await?;
        Ok(made_ref(made))
    }

    async fn find_checks(&self, repo: &Repo, check: &CheckRun) -> Result<Vec<RemoteRef>, RemoteError> {
        const OPERATION: &str = "look for our check run";
        let base = repo_path(repo);
        let mut ours = Vec::new();
        for page in 1..=FIND_PAGES {
            let path = format!(
                "{base}/commits/{}/check-runs?app_id={}&check_name={}&filter=all&per_page={PAGE}&page={page}",
                check.head_sha,
                self.app_id,
                encode(&check.name)
            );
            let found: wire::CheckRuns = self.read(OPERATION, repo, PermissionSet::Checks, path).await?;
            let full = found.check_runs.len() >= PAGE;
            ours.extend(found.check_runs.into_iter().filter(|candidate| {
                candidate.external_id.as_deref() == Some(check.external_id.as_str())
                    && candidate.head_sha == check.head_sha.as_str()
            }));
            if !full {
                // The list begins with the newest: the oldest stays.
                ours.sort_by_key(|candidate| candidate.id);
                let refs = ours.into_iter().map(|ours| RemoteRef {
                    id: ours.id.to_string(),
                    node_id: ours.node_id,
                    url: ours.html_url,
                    note: None,
                });
                return Ok(refs.collect());
            }
        }
        Err(RemoteError::Protocol {
            operation: OPERATION,
            detail: format!("more than {} check runs of one name on one commit", FIND_PAGES * PAGE),
        })
    }

    async fn edit_pull(&self, repo: &Repo, pull: &OwnPull, number: i64) -> Result<RemoteRef, RemoteError> {
        let made: wire::Pull = self
            .write(
                "edit a pull request",
                repo,
                PermissionSet::Talk,
                Method::PATCH,
                format!("{}/pulls/{number}", repo_path(repo)),
                json!({ "title": pull.title, "body": pull.body }),
            )
            .await?;
        Ok(pull_ref(made))
    }

    async fn create_pull(&self, repo: &Repo, pull: &OwnPull) -> Result<RemoteRef, RemoteError> {
        match self.post_pull(repo, pull, pull.draft).await {
            Err(RemoteError::Refused { status: 422, detail, .. })
                if pull.draft && refuses_drafts(&detail) =>
            {
                let mut made = self.post_pull(repo, pull, false).await?;
                made.note =
                    Some("This repository does not take drafts, so it is a normal pull request.".into());
                Ok(made)
            }
            other => other,
        }
    }

    async fn post_pull(&self, repo: &Repo, pull: &OwnPull, draft: bool) -> Result<RemoteRef, RemoteError> {
        let result: Result<wire::Pull, RemoteError> = self
            .write(
                "open a pull request",
                repo,
                PermissionSet::Talk,
                Method::POST,
                format!("{}/pulls", repo_path(repo)),
                json!({
                    "title": pull.title,
                    "body": pull.body,
                    "head": match &pull.fork {
                        None => pull.head.to_string(),
                        Some(fork) => format!("{}:{}", fork.name.owner(), pull.head),
                    },
                    "base": pull.base,
                    "draft": draft,
                    "maintainer_can_modify": false,
                }),
            )
            .await;
        match result {
            Ok(made) => Ok(pull_ref(made)),
            Err(error @ RemoteError::Refused { status: 422, .. }) if already_exists(&error) => {
                self.adopt_pull(repo, pull, error).await
            }
            Err(error) => Err(error),
        }
    }

    /// The open pull request that made ours impossible: ours from before, or somebody else's for our branch.
    async fn adopt_pull(
        &self,
        repo: &Repo,
        pull: &OwnPull,
        refusal: RemoteError,
    ) -> Result<RemoteRef, RemoteError> {
        let bot = self.identity().await?.user_id;
        let open = self.pulls_of(repo, pull, "open").await?;
        let Some(found) = open.into_iter().next() else {
            // The forge says that it is there: the list only lags behind.
            return Err(RemoteError::Unavailable {
                operation: "look for our pull request",
                detail: format!("not in the list yet ({refusal})"),
            });
        };
        if is_our_pull(&found, pull, bot) {
            if found.title.as_deref() == Some(pull.title.as_str())
                && found.body.as_deref() == Some(pull.body.as_str())
            {
                return Ok(pull_ref(found));
            }
            return self.edit_pull(repo, pull, found.number).await;
        }
        let author = found.user.as_ref().map_or_else(|| "ghost".to_owned(), |user| user.login.clone());
        let note =
            format!("A pull request for this branch was already open (by {author}); it is used as it is.");
        Ok(RemoteRef { note: Some(note), ..pull_ref(found) })
    }

    async fn find_pulls(&self, repo: &Repo, pull: &OwnPull) -> Result<Vec<RemoteRef>, RemoteError> {
        let bot = self.identity().await?.user_id;
        let mut ours: Vec<wire::Pull> = self.pulls_of(repo, pull, "all").await?;
        ours.retain(|candidate| is_our_pull(candidate, pull, bot));
        // The open one first, else the newest.
        ours.sort_by_key(|candidate| (candidate.state != "open", -candidate.number));
        Ok(ours.into_iter().map(pull_ref).collect())
    }

    /// Pull requests of this head and base. One page: nobody opens 100 from one branch to another.
    async fn pulls_of(
        &self,
        repo: &Repo,
        pull: &OwnPull,
        state: &str,
    ) -> Result<Vec<wire::Pull>, RemoteError> {
        let home = pull.fork.as_ref().unwrap_or(repo);
        let path = format!(
            "{}/pulls?state={state}&head={}%3A{}&base={}&per_page={PAGE}",
            repo_path(repo),
            encode(home.name.owner()),
            encode(pull.head.as_str()),
            encode(pull.base.as_str())
        );
        let found: Vec<wire::Pull> =
            self.read("look for our pull request", repo, PermissionSet::Talk, path).await?;
        // A server that ignores the filter must not make us adopt a stranger's.
        Ok(found
            .into_iter()
            .filter(|candidate| {
                candidate.head.name == pull.head.as_str()
                    && candidate.base.name == pull.base.as_str()
                    && candidate.head.repo.as_ref().is_some_and(|head| head.id == home.id)
            })
            .collect())
    }

    async fn minimise(&self, repo: &Repo, node_id: &str) -> Result<RemoteRef, RemoteError> {
        self.mutate(
            "fold a comment away",
            repo,
            PermissionSet::Talk,
            "mutation($subject: ID!) { minimizeComment(input: {subjectId: $subject, classifier: OUTDATED}) { minimizedComment { isMinimized } } }",
            json!({ "subject": node_id }),
        )
        .await?;
        Ok(RemoteRef { id: node_id.to_owned(), node_id: Some(node_id.to_owned()), ..RemoteRef::default() })
    }

    /// The address of a path's contents; `at` `None` is the default branch.
    fn contents_path(
        operation: &'static str,
        repo: &Repo,
        at: Option<&str>,
        path: &str,
    ) -> Result<String, RemoteError> {
        let mut out = format!("{}/contents", repo_path(repo));
        let path = path.strip_suffix('/').unwrap_or(path);
        if !path.is_empty() {
            let encoded = encode_path(path).ok_or_else(|| RemoteError::Refused {
                operation,
                status: 400,
                detail: format!("`{}` is not a path inside a repository", clip(path)),
            })?;
            out.push('/');
            out.push_str(&encoded);
        }
        if let Some(at) = at {
            out.push_str("?ref=");
            out.push_str(&encode(at));
        }
        Ok(out)
    }

    async fn contents(
        &self,
        repo: &Repo,
        at: Option<&str>,
        path: &str,
    ) -> Result<Option<Vec<u8>>, RemoteError> {
        const OPERATION: &str = "read a file";
        let address = Self::contents_path(OPERATION, repo, at, path)?;
        let call = |credentials| {
            Call::get(OPERATION, address, credentials).accept(RAW).conditional().limit(FILE_BYTES)
        };
        let reply = match self.send(repo, PermissionSet::Read, call).await {
            Err(RemoteError::NotFound { .. }) => return Ok(None),
            other => other?,
        };
        // Raw bytes come as `application/vnd.github.raw…`; plain JSON describes a folder or a submodule,
        // or comes from a server that does not know the raw form.
        if !reply.content_type.starts_with("application/json") {
            return Ok(Some(reply.body.to_vec()));
        }
        let entry = match reply.json()? {
            wire::Contents::Folder(_) => return Ok(None),
            wire::Contents::One(entry) => entry,
        };
        match (entry.encoding.as_deref(), entry.content) {
            (Some("base64"), Some(content)) if entry.kind == "file" => {
                let packed: String = content.chars().filter(|c| !c.is_ascii_whitespace()).collect();
                let bytes = base64::engine::general_purpose::STANDARD.decode(packed).map_err(|error| {
                    RemoteError::Protocol { operation: OPERATION, detail: format!("content: {error}") }
                })?;
                Ok(Some(bytes))
            }
            _ if entry.kind == "file" => Err(RemoteError::Refused {
                operation: OPERATION,
                status: 413,
                detail: format!(
                    "the file has {} bytes, more than is read here",
                    entry.size.unwrap_or_default()
                ),
            }),
            _ => Ok(None),
        }
    }

    async fn folder(&self, repo: &Repo, at: Option<&str>, path: &str) -> Result<Vec<String>, RemoteError> {
        const OPERATION: &str = "list a folder";
        let address = Self::contents_path(OPERATION, repo, at, path)?;
        match self.read_cached(OPERATION, repo, address).await {
            Ok(wire::Contents::Folder(entries)) => {
                let shown = |entry: wire::Entry| match entry.kind.as_str() {
                    "file" => Some(entry.name),
                    "dir" => Some(format!("{}/", entry.name)),
                    _ => None,
                };
                Ok(entries.into_iter().filter_map(shown).collect())
            }
            Ok(wire::Contents::One(_)) | Err(RemoteError::NotFound { .. }) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// The newest comments of a conversation: its last pages, found by its length.
    async fn conversation(
        &self,
        repo: &Repo,
        number: i64,
        known: usize,
        limit: usize,
    ) -> Result<Vec<wire::Comment>, RemoteError> {
        const OPERATION: &str = "read a conversation";
        let page_of =
            |page: usize| format!("{}/issues/{number}/comments?per_page={PAGE}&page={page}", repo_path(repo));
        let last = known.div_ceil(PAGE).max(1);
        let mut all: Vec<wire::Comment> = Vec::new();
        // One page after the last known one, in case comments came meanwhile.
        let pages = if known > 0 && known.is_multiple_of(PAGE) { last + 1 } else { last };
        for page in (1..=pages).rev().take(THREAD_PAGES) {
            let mut older: Vec<wire::Comment> =
                self.read(OPERATION, repo, PermissionSet::Read, page_of(page)).await?;
            older.append(&mut all);
            all = older;
            if all.len() >= limit {
                break;
            }
        }
        Ok(all)
    }

    async fn review_comments(
        &self,
        repo: &Repo,
        number: i64,
        limit: usize,
    ) -> Result<Vec<wire::Comment>, RemoteError> {
        const OPERATION: &str = "read review comments";
        let mut all: Vec<wire::Comment> = Vec::new();
        for page in 1..=THREAD_PAGES {
            let path = format!(
                "{}/pulls/{number}/comments?sort=created&direction=desc&per_page={PAGE}&page={page}",
                repo_path(repo)
            );
            let mut found: Vec<wire::Comment> = self.read(OPERATION, repo, PermissionSet::Read, path).await?;
            let full = found.len() >= PAGE;
            all.append(&mut found);
            if !full || all.len() >= limit {
                break;
            }
        }
        Ok(all)
    }
}

impl GithubForge {
    /// An address of a private image that needs no credentials for some minutes: the one that GitHub puts into the page.
    /// Web addresses take no App's token, and this is the only other way there is.
    async fn signed_address(&self, repo: &Repo, link: &Link) -> Result<Option<String>, RemoteError> {
        const OPERATION: &str = "ask for the address of an image";
        let body = json!({
            "text": format!("![]({})", link.url),
            "mode": "gfm",
            "context": repo.name,
        });
        let call = |credentials| {
            // Rendering changes nothing.
            Call::write(OPERATION, Method::POST, "/markdown".into(), body, credentials).harmless()
        };
        let html = self.send(repo, PermissionSet::Read, call).await?;
        let html = String::from_utf8_lossy(&html.body).into_owned();
        let sources = html.match_indices("src=\"").filter_map(|(at, start)| {
            let rest = html.get(at + start.len()..)?;
            Some(rest.get(..rest.find('"')?)?.replace("&amp;", "&"))
        });
        Ok(sources.into_iter().find(|source| *source != link.url && self.downloads.knows(source)))
    }

    async fn annotations(&self, repo: &Repo, check: i64) -> Result<Vec<Annotation>, RemoteError> {
        let path =
            format!("{}/check-runs/{check}/annotations?per_page={}", repo_path(repo), ci::MAX_ANNOTATIONS);
        let found: Vec<wire::Annotation> =
            self.read("read the annotations of a check", repo, PermissionSet::ReadChecks, path).await?;
        Ok(found
            .into_iter()
            .map(|found| Annotation {
                path: found.path,
                line: found.start_line.unwrap_or_default(),
                message: found.message.unwrap_or_default(),
            })
            .collect())
    }
}

/// `/repos/<owner>/<name>`: both parts are plain characters by their type.
fn repo_path(repo: &Repo) -> String {
    format!("/repos/{}", repo.name)
}

fn made_ref(made: wire::Made) -> RemoteRef {
    RemoteRef { id: made.id.to_string(), node_id: made.node_id, url: made.html_url, note: None }
}

fn pull_ref(pull: wire::Pull) -> RemoteRef {
    RemoteRef { id: pull.number.to_string(), node_id: pull.node_id, url: pull.html_url, note: None }
}

fn id_of(existing: &RemoteRef, operation: &'static str) -> Result<i64, RemoteError> {
    existing.id.parse().map_err(|_| RemoteError::Protocol {
        operation,
        detail: format!("`{}` is not an id that GitHub gives", clip(&existing.id)),
    })
}

fn is_own(comment: &wire::Comment, identity: &OwnIdentity) -> bool {
    comment.performed_via_github_app.as_ref().is_some_and(|app| app.id == identity.app_id)
        || comment.user.as_ref().is_some_and(|user| user.id == identity.user_id)
}

/// The number of the job in `https://…/actions/runs/1/job/2`.
fn job_of(details_url: &str) -> Option<i64> {
    let rest = details_url.split_once("/actions/runs/")?.1;
    let (_, job) = rest.split_once("/job/").or_else(|| rest.split_once("/jobs/"))?;
    job.split(['?', '#', '/']).next()?.parse().ok()
}

fn is_our_pull(candidate: &wire::Pull, pull: &OwnPull, bot: i64) -> bool {
    candidate.user.as_ref().is_some_and(|user| user.id == bot)
        || (!pull.marker.is_empty()
            && candidate.body.as_deref().is_some_and(|body| body.contains(&pull.marker)))
}

fn refuses_drafts(detail: &str) -> bool {
    let detail = detail.to_ascii_lowercase();
    detail.contains("draft") && detail.contains("not supported")
}

fn already_exists(error: &RemoteError) -> bool {
    error.to_string().to_ascii_lowercase().contains("a pull request already exists")
}

fn output(check: &CheckRun, with_annotations: bool) -> Value {
    let mut output = json!({ "title": check.title, "summary": chars(&check.summary, CHECK_TEXT_CHARS) });
    if with_annotations {
        let list: Vec<Value> = check
            .annotations
            .iter()
            .map(|found| {
                json!({
                    "path": found.path,
                    "start_line": found.line,
                    "end_line": found.line,
                    "annotation_level": "failure",
                    "message": clip(&found.message),
                })
            })
            .collect();
        if let Some(object) = output.as_object_mut() {
            object.insert("annotations".into(), json!(list));
        }
    }
    output
}

fn status_name(status: CheckStatus) -> &'static str {
    match status {
        CheckStatus::Queued => "queued",
        CheckStatus::InProgress => "in_progress",
        CheckStatus::Completed => "completed",
    }
}

fn conclusion_name(conclusion: CheckConclusion) -> &'static str {
    match conclusion {
        CheckConclusion::Success => "success",
        CheckConclusion::Failure => "failure",
        CheckConclusion::Neutral => "neutral",
        CheckConclusion::Cancelled => "cancelled",
        CheckConclusion::TimedOut => "timed_out",
        CheckConclusion::ActionRequired => "action_required",
    }
}

fn chars(text: &str, most: usize) -> &str {
    text.char_indices().nth(most).map_or(text, |(end, _)| text.get(..end).unwrap_or(text))
}

/// The role that an answer grants. `permission` is coarse and bounds `role_name`; a custom role counts as
/// its coarse permission. Never more than both say.
fn role_from(role_name: Option<&str>, permission: Option<&str>) -> Option<Role> {
    let (base, ceiling) = match permission {
        Some("admin") => (Role::Admin, Role::Admin),
        Some("write") => (Role::Write, Role::Maintain),
        Some("read") => (Role::Read, Role::Triage),
        Some(_) => (Role::None, Role::None),
        None => (Role::None, Role::Admin),
    };
    match role_name {
        Some(name) => Some(Role::parse(name).unwrap_or(base).min(ceiling)),
        None => permission.map(|_| base),
    }
}

#[async_trait]
impl Remote for GithubForge {
    fn name(&self) -> &'static str {
        "github"
    }

    async fn apply(&self, effect: &Effect) -> Result<RemoteRef, RemoteError> {
        let repo = &effect.repo;
        let existing = effect.remote_ref.as_ref();
        match &effect.payload {
            Payload::Reaction { target, reaction } => self.react(repo, target, *reaction).await,
            Payload::Sticky(comment) | Payload::Comment(comment) => {
                self.comment(repo, comment, existing).await
            }
            Payload::Check(check) => self.check_run(repo, check, existing).await,
            Payload::Pull(pull) => match existing {
                Some(existing) => self.edit_pull(repo, pull, id_of(existing, "edit a pull request")?).await,
                None => self.create_pull(repo, pull).await,
            },
            Payload::Minimise { node_id } => self.minimise(repo, node_id).await,
            Payload::Label { number, name, present: true } => self.add_label(repo, *number, name).await,
            Payload::Label { number, name, present: false } => self.remove_label(repo, *number, name).await,
            Payload::StateLabel { number, name } => self.state_label(repo, *number, name.as_deref()).await,
            Payload::Assignees { number, logins } => self.assign(repo, *number, logins).await,
            Payload::Reviewers { number, logins } => self.ask_reviewers(repo, *number, logins).await,
            Payload::Draft { number, draft } => self.set_draft(repo, *number, *draft).await,
            Payload::ResolveThread { node_id } => self.resolve_thread(repo, node_id).await,
            Payload::DeleteBranch { branch, expected } => self.delete_branch(repo, branch, expected).await,
            Payload::AutoMerge { number, head, method } => {
                self.auto_merge(repo, *number, head, *method).await
            }
            Payload::Review(review) => self.review(repo, review, existing).await,
            Payload::Issue(issue) => self.own_issue(repo, issue, existing).await,
            Payload::Fork { owner } => self.make_fork(repo, owner).await,
            Payload::Repository { name, private } => self.make_repository(repo, name, *private).await,
            Payload::Remove(twin) => self.remove_twin(repo, twin).await,
            Payload::TicketComment(_) | Payload::TicketStatus { .. } => {
                Err(super::not_here("github", &effect.payload))
            }
            Payload::Branch(_) => Err(RemoteError::Protocol {
                operation: "push a branch",
                detail: "branches are pushed with Git, not through the API".into(),
            }),
        }
    }

    async fn find_all(&self, effect: &Effect) -> Result<Vec<RemoteRef>, RemoteError> {
        let repo = &effect.repo;
        // Whatever it made is younger than the effect itself.
        let since = effect.created_at;
        match &effect.payload {
            Payload::Sticky(comment) | Payload::Comment(comment) => {
                self.find_comments(repo, comment, since).await
            }
            Payload::Check(check) => self.find_checks(repo, check).await,
            Payload::Pull(pull) => self.find_pulls(repo, pull).await,
            Payload::Review(review) => self.find_reviews(repo, review).await,
            Payload::Issue(issue) => self.find_issues(repo, issue, since).await,
            Payload::Fork { owner } => Ok(self.find_fork(repo, owner).await?.into_iter().collect()),
            Payload::Repository { name, .. } => {
                Ok(self.find_repository(repo, name).await?.into_iter().collect())
            }
            // Set semantics: repeating them changes nothing.
            Payload::Reaction { .. }
            | Payload::Minimise { .. }
            | Payload::Label { .. }
            | Payload::StateLabel { .. }
            | Payload::Assignees { .. }
            | Payload::Reviewers { .. }
            | Payload::Draft { .. }
            | Payload::ResolveThread { .. }
            | Payload::DeleteBranch { .. }
            | Payload::AutoMerge { .. }
            | Payload::TicketComment(_)
            | Payload::TicketStatus { .. }
            | Payload::Remove(_) => Ok(Vec::new()),
            Payload::Branch(_) => Err(RemoteError::Protocol {
                operation: "look for a branch",
                detail: "branches are read with Git, not through the API".into(),
            }),
        }
    }
}

#[async_trait]
impl Forge for GithubForge {
    async fn own_identity(&self) -> Result<OwnIdentity, RemoteError> {
        self.identity().await.cloned()
    }

    async fn role_of(&self, repo: &Repo, user: &Actor) -> Result<Role, RemoteError> {
        const OPERATION: &str = "read a role";
        let path = format!("{}/collaborators/{}/permission", repo_path(repo), encode(&user.login));
        // The token is asked for first: its refusal says nothing about the person.
        let granted = self.grant(repo, PermissionSet::Read).await?;
        let call = Call::get(OPERATION, path, Credentials::Token(granted.token.clone()));
        let result = self.client.call(call).await;
        let reply = match self.watch(&granted, result).await {
            Err(RemoteError::NotFound { .. } | RemoteError::Forbidden { .. }) => return Ok(Role::None),
            other => other?,
        };
        let answer: wire::Collaborator = reply.json()?;
        // A login can be given up and taken by another person; only the number identifies.
        if answer.user.as_ref().map(|found| found.id) != Some(user.id) {
            return Ok(Role::None);
        }
        role_from(answer.role_name.as_deref(), answer.permission.as_deref()).ok_or_else(|| {
            RemoteError::Protocol {
                operation: OPERATION,
                detail: "neither `role_name` nor `permission` in the reply".into(),
            }
        })
    }

    async fn repo_info(&self, repo: &Repo) -> Result<RepoInfo, RemoteError> {
        const OPERATION: &str = "read a repository";
        let found: wire::RepoJson = self.read_cached(OPERATION, repo, repo_path(repo)).await?;
        if repo.id > 0 && found.id != repo.id {
            return Err(RemoteError::Refused {
                operation: OPERATION,
                status: 409,
                detail: format!(
                    "`{}` is another repository now (id {}, expected {})",
                    repo.name, found.id, repo.id
                ),
            });
        }
        let wrong = |error: crate::domain::ids::InvalidId| RemoteError::Protocol {
            operation: OPERATION,
            detail: error.to_string(),
        };
        Ok(RepoInfo {
            repo: Repo {
                id: found.id,
                name: RepoName::parse(&found.full_name).map_err(wrong)?,
                installation: repo.installation,
                private: found.private,
            },
            default_branch: BranchName::parse(&found.default_branch).map_err(wrong)?,
        })
    }

    async fn branch_head(&self, repo: &Repo, branch: &BranchName) -> Result<Option<Sha>, RemoteError> {
        const OPERATION: &str = "read a branch";
        let encoded = encode_path(branch.as_str()).ok_or_else(|| RemoteError::Refused {
            operation: OPERATION,
            status: 400,
            detail: format!("`{branch}` is not a branch name"),
        })?;
        let path = format!("{}/git/ref/heads/{encoded}", repo_path(repo));
        let found: Value = match self.read(OPERATION, repo, PermissionSet::Read, path).await {
            Ok(found) => found,
            // 409: the repository has no commit at all.
            Err(RemoteError::NotFound { .. } | RemoteError::Refused { status: 409, .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        // Old servers answer with a list of refs that start with this name when there is none of it.
        let wrong = |detail: String| RemoteError::Protocol { operation: OPERATION, detail };
        if found.is_array() {
            return Ok(None);
        }
        let found: wire::RefJson = serde_json::from_value(found).map_err(|error| wrong(error.to_string()))?;
        if found.name != branch.full() {
            return Ok(None);
        }
        Sha::parse(&found.object.sha).map(Some).map_err(|error| wrong(error.to_string()))
    }

    async fn read_file(&self, repo: &Repo, at: &str, path: &str) -> Result<Option<Vec<u8>>, RemoteError> {
        self.contents(repo, Some(at), path).await
    }

    async fn list_folder(&self, repo: &Repo, at: &str, path: &str) -> Result<Vec<String>, RemoteError> {
        self.folder(repo, Some(at), path).await
    }

    async fn pull(&self, repo: &Repo, number: i64) -> Result<PullHead, RemoteError> {
        const OPERATION: &str = "read a pull request";
        let path = format!("{}/pulls/{number}", repo_path(repo));
        self.read_cached::<wire::Pull>(OPERATION, repo, path).await?.head(OPERATION)
    }

    async fn changed_paths(&self, repo: &Repo, number: i64) -> Result<Vec<String>, RemoteError> {
        let mut paths = Vec::new();
        for page in 1..=FIND_PAGES {
            let path = format!("{}/pulls/{number}/files?per_page={PAGE}&page={page}", repo_path(repo));
            let files: Vec<wire::ChangedFile> =
                self.read("read the files of a pull request", repo, PermissionSet::Read, path).await?;
            let full = files.len() >= PAGE;
            paths.extend(
                files.into_iter().flat_map(|file| [Some(file.filename), file.previous_filename]).flatten(),
            );
            if !full {
                break;
            }
        }
        Ok(paths)
    }

    async fn subject(&self, repo: &Repo, number: i64) -> Result<Subject, RemoteError> {
        let path = format!("{}/issues/{number}", repo_path(repo));
        Ok(self.read_cached::<wire::Issue>("read an issue", repo, path).await?.subject())
    }

    async fn thread(
        &self,
        repo: &Repo,
        number: i64,
        limit: usize,
    ) -> Result<Vec<ThreadComment>, RemoteError> {
        let identity = self.identity().await?;
        let path = format!("{}/issues/{number}", repo_path(repo));
        let issue: wire::Issue = self.read_cached("read an issue", repo, path).await?;
        let mut all = self.conversation(repo, number, issue.comments, limit).await?;
        if issue.is_pull() {
            all.append(&mut self.review_comments(repo, number, limit).await?);
        }
        all.sort_by_key(|comment| (comment.created_at, comment.id));
        let skip = all.len().saturating_sub(limit);
        Ok(all
            .into_iter()
            .skip(skip)
            .map(|comment| ThreadComment {
                own: is_own(&comment, identity),
                author: comment.user.map_or_else(wire::ghost, wire::User::actor),
                body: comment.body.unwrap_or_default(),
                created_at: comment.created_at,
                updated_at: comment.updated_at,
                line: comment.line.or(comment.original_line).filter(|_| comment.path.is_some()),
                path: comment.path,
            })
            .collect())
    }

    fn uploads_url(&self) -> &str {
        &self.uploads_url
    }

    async fn attachment(&self, repo: &Repo, link: &Link, max_bytes: usize) -> Result<Vec<u8>, RemoteError> {
        const OPERATION: &str = "fetch an attachment";
        let part = Part::Whole { at_most: max_bytes };
        // What everybody may see is asked for as a stranger.
        let token =
            if repo.private { Some(self.grant(repo, PermissionSet::Read).await?.token) } else { None };
        let direct = self.downloads.get(OPERATION, &link.url, token.as_ref(), part).await;
        let hidden = matches!(
            direct,
            Err(RemoteError::NotFound { .. } | RemoteError::Auth { .. } | RemoteError::Forbidden { .. })
        );
        if hidden
            && link.asset
            && let Some(signed) = self.signed_address(repo, link).await?
        {
            return Ok(self.downloads.get(OPERATION, &signed, None, part).await?.bytes);
        }
        Ok(direct?.bytes)
    }

    async fn failed_checks(&self, repo: &Repo, commit: &Sha) -> Result<Vec<FailedCheck>, RemoteError> {
        let path = format!(
            "{}/commits/{commit}/check-runs?filter=latest&status=completed&per_page={PAGE}",
            repo_path(repo)
        );
        let all: wire::CheckRuns =
            self.read("read the checks of a commit", repo, PermissionSet::ReadChecks, path).await?;
        let own = i64::try_from(self.app_id).unwrap_or_default();
        let failed = all
            .check_runs
            .into_iter()
            .filter(|check| check.app.as_ref().is_none_or(|app| app.id != own))
            .filter(|check| {
                matches!(check.conclusion.as_deref(), Some("failure" | "timed_out" | "startup_failure"))
            })
            .take(ci::MAX_CHECKS);
        let told = failed.map(|check| async move {
            let output = check.output.unwrap_or_default();
            let noted = output.annotations_count.unwrap_or_default() > 0;
            // Without them the rest still helps.
            let annotations =
                if noted { self.annotations(repo, check.id).await.unwrap_or_default() } else { Vec::new() };
            let is_actions = check.app.is_some_and(|app| app.slug.as_deref() == Some("github-actions"));
            FailedCheck {
                id: check.id,
                name: check.name.unwrap_or_default(),
                conclusion: check.conclusion.unwrap_or_default(),
                title: output.title.unwrap_or_default(),
                summary: output.summary.unwrap_or_default(),
                annotations,
                job: is_actions.then(|| check.details_url.as_deref().and_then(job_of).unwrap_or(check.id)),
            }
        });
        Ok(futures_util::future::join_all(told).await)
    }

    async fn job_log(
        &self,
        repo: &Repo,
        job: i64,
        last_bytes: usize,
    ) -> Result<Option<LogTail>, RemoteError> {
        const OPERATION: &str = "read the log of a job";
        let granted = match self.grant(repo, PermissionSet::ReadActions).await {
            // The App was not given `Actions: read`, which is its owner's choice.
            Err(RemoteError::Refused { status: 422, .. } | RemoteError::Forbidden { .. }) => return Ok(None),
            other => other?,
        };
        let url = format!("{}{}/actions/jobs/{job}/logs", self.api_url, repo_path(repo));
        let part = Part::End { bytes: last_bytes };
        let result = self.downloads.get(OPERATION, &url, Some(&granted.token), part).await;
        match self.watch(&granted, result).await {
            // Logs are kept for some weeks only.
            Err(RemoteError::NotFound { .. } | RemoteError::Forbidden { .. }) => Ok(None),
            other => other.map(|log| Some(LogTail { bytes: log.bytes, whole: log.whole })),
        }
    }

    async fn pull_template(&self, repo: &Repo) -> Result<Option<String>, RemoteError> {
        // GitHub's own places; names in any case.
        for folder in [".github", "", "docs"] {
            let names = self.folder(repo, None, folder).await?;
            let template = names.iter().find(|name| {
                matches!(
                    name.to_ascii_lowercase().as_str(),
                    "pull_request_template.md" | "pull_request_template.txt" | "pull_request_template"
                )
            });
            if let Some(name) = template {
                let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
                let bytes = self.contents(repo, None, &path).await?;
                return Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()));
            }
        }
        Ok(None)
    }

    async fn fork_of(&self, repo: &Repo, owner: &str) -> Result<Option<Repo>, RemoteError> {
        let key = (repo.id, owner.to_ascii_lowercase());
        let known = {
            let known = self.forks.lock().unwrap_or_else(PoisonError::into_inner);
            known.get(&key).cloned()
        };
        if known.is_some() {
            return Ok(known);
        }
        let found = self.ask_fork(repo, owner).await?;
        if let Some(found) = &found {
            let mut known = self.forks.lock().unwrap_or_else(PoisonError::into_inner);
            if known.len() >= INSTALLATIONS_KEPT {
                known.clear();
            }
            known.insert(key, found.clone());
        }
        Ok(found)
    }

    async fn git_access(&self, repo: &Repo, permission: GitPermission) -> Result<GitAccess, RemoteError> {
        let set = match permission {
            GitPermission::Read => PermissionSet::GitRead,
            GitPermission::Write => PermissionSet::GitWrite,
        };
        let granted = self.grant(repo, set).await?;
        Ok(GitAccess {
            url: format!("{}/{}.git", self.git_url, repo.name),
            username: "x-access-token".into(),
            token: Some(granted.token),
        })
    }

    async fn missed_deliveries(&self, since: DateTime<Utc>) -> Result<Vec<Missed>, RemoteError> {
        const OPERATION: &str = "list deliveries";
        let mut path = format!("/app/hook/deliveries?per_page={PAGE}");
        // Attempts come newest first, and every attempt of a delivery has its `guid`.
        let mut found: BTreeMap<String, (Missed, bool)> = BTreeMap::new();
        for page in 1..=DELIVERY_PAGES {
            let call = Call::get(OPERATION, path, Credentials::App).limit(LIST_BYTES);
            let reply = self.client.call(call).await?;
            let attempts: Vec<wire::HookAttempt> = reply.json()?;
            let beyond = attempts.last().is_none_or(|oldest| oldest.delivered_at < since);
            for attempt in attempts.into_iter().filter(|attempt| attempt.delivered_at >= since) {
                let arrived = (200..300).contains(&attempt.status_code);
                let known = found.entry(attempt.guid.clone()).or_insert_with(|| (attempt.missed(), false));
                known.1 |= arrived;
            }
            match reply.next {
                Some(next) if !beyond && page < DELIVERY_PAGES => path = next,
                Some(_) if !beyond => {
                    tracing::warn!(since = %since, pages = DELIVERY_PAGES, "more deliveries than are looked through");
                    break;
                }
                _ => break,
            }
        }
        let mut missed: Vec<Missed> =
            found.into_values().filter(|(_, arrived)| !arrived).map(|(missed, _)| missed).collect();
        missed.sort_by_key(|missed| (missed.at, missed.attempt));
        Ok(missed)
    }

    async fn redeliver(&self, attempt: i64) -> Result<(), RemoteError> {
        let path = format!("/app/hook/deliveries/{attempt}/attempts");
        // Whatever comes twice is known by its id.
        let call = Call::write("deliver again", Method::POST, path, json!({}), Credentials::App).harmless();
        self.client.call(call).await.map(|_| ())
    }

    async fn check(&self) -> Result<String, RemoteError> {
        let app = self.app_info().await?;
        let name = app.slug.or(app.name).unwrap_or_default();
        Ok(format!("GitHub App `{}` (id {})", clip(&name), app.id))
    }

    fn forget(&self, installation: i64) {
        self.tokens.forget(installation);
        self.client.forget_replies();
        let mut known = self.installations.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, value| *value != installation);
        self.forks.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn web_url(&self) -> &str {
        &self.web_url
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_never_more_than_both_fields_say() {
        for (role_name, permission, expected) in [
            (Some("admin"), Some("admin"), Some(Role::Admin)),
            (Some("maintain"), Some("write"), Some(Role::Maintain)),
            (Some("write"), Some("write"), Some(Role::Write)),
            (Some("triage"), Some("read"), Some(Role::Triage)),
            (Some("read"), Some("read"), Some(Role::Read)),
            (Some("none"), Some("none"), Some(Role::None)),
            (Some("release-captain"), Some("write"), Some(Role::Write)),
            (Some("auditor"), Some("read"), Some(Role::Read)),
            (Some("auditor"), None, Some(Role::None)),
            (Some("admin"), Some("read"), Some(Role::Triage)),
            (Some("Admin"), Some("read"), Some(Role::Read)),
            (Some("write"), Some("surprise"), Some(Role::None)),
            (Some("write"), None, Some(Role::Write)),
            (None, Some("write"), Some(Role::Write)),
            (None, None, None),
        ] {
            assert_eq!(role_from(role_name, permission), expected, "{role_name:?} {permission:?}");
        }
    }

    #[test]
    fn bad_settings_are_refused_without_showing_credentials() {
        let settings = |key: &str, api: &str| GithubSettings {
            app_id: 1,
            private_key: SecretString::from(key),
            api_url: api.into(),
            git_url: "https://github.com".into(),
            web_url: "https://github.com".into(),
            storage_urls: Vec::new(),
            clock: Arc::new(crate::clock::SystemClock),
        };
        let key = include_str!("../../../tests/fixtures/test-only-app-key.pem");
        let error = GithubForge::new(settings("nonsense", "https://api.github.com")).unwrap_err();
        assert!(error.to_string().contains("RSA key in PEM form"), "{error}");
        for bad in ["api.github.com", "ftp://x", "https://user:hush@host/api", ""] {
            let error = GithubForge::new(settings(key, bad)).unwrap_err().to_string();
            assert!(error.contains("api_url") && !error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn the_job_of_a_check_is_in_its_address() {
        for (url, job) in [
            ("https://github.com/o/r/actions/runs/12/job/34", Some(34)),
            ("https://github.com/o/r/actions/runs/12/jobs/34?pr=1", Some(34)),
            ("https://github.com/o/r/actions/runs/12", None),
            ("https://ci.example/job/34", None),
        ] {
            assert_eq!(job_of(url), job, "{url}");
        }
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(chars("äöü", 2), "äö");
        assert_eq!(chars("äöü", 3), "äöü");
    }
}
