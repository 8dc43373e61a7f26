//! What FakeHub knows: users, installations, repositories and everything on them, and who wrote what.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeblit::clock::Clock;

/// Characters of a body that GitHub takes.
pub const BODY_CHARS: usize = 65_536;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Read,
    Write,
}

#[derive(Debug, Clone)]
pub struct User {
    pub id: i64,
    pub login: String,
    /// `User`, `Bot` or `Organization`.
    pub kind: &'static str,
}

#[derive(Debug, Clone)]
pub struct Installation {
    pub id: i64,
    pub account: String,
    pub suspended: bool,
    pub repos: BTreeSet<i64>,
    pub permissions: BTreeMap<String, Level>,
}

#[derive(Debug, Clone)]
pub struct Token {
    pub installation: i64,
    /// `None`: every repository of the installation.
    pub repos: Option<BTreeSet<i64>>,
    pub permissions: BTreeMap<String, Level>,
    pub expires_at: DateTime<Utc>,
}

#[derive(Debug, Clone)]
pub struct Pull {
    /// `None`: the fork was deleted.
    pub head_repo: Option<i64>,
    pub head_ref: String,
    pub head_sha: String,
    pub base_ref: String,
    pub base_sha: String,
    pub draft: bool,
    pub merged: bool,
    /// The method by which it merges by itself.
    pub auto_merge: Option<String>,
    pub hidden: u32,
}

#[derive(Debug, Clone)]
pub struct Issue {
    pub id: i64,
    pub number: i64,
    pub title: String,
    pub body: String,
    pub author: i64,
    pub open: bool,
    pub locked: bool,
    pub pull: Option<Pull>,
    pub labels: Vec<String>,
    /// Logins.
    pub assignees: Vec<String>,
    pub reviewers: Vec<String>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl Issue {
    pub fn node_id(&self) -> String {
        format!("{}_{}", if self.pull.is_some() { "PR" } else { "I" }, self.id)
    }
}

#[derive(Debug, Clone)]
pub struct Comment {
    pub id: i64,
    pub number: i64,
    pub body: String,
    pub author: i64,
    pub via_app: bool,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    /// The classifier it was folded away with.
    pub minimised: Option<String>,
    pub edits: usize,
    pub hidden: u32,
}

impl Comment {
    pub fn node_id(&self) -> String {
        format!("IC_{}", self.id)
    }
}

#[derive(Debug, Clone)]
pub struct ReviewComment {
    pub id: i64,
    pub number: i64,
    pub review: Option<i64>,
    pub reply_to: Option<i64>,
    pub body: String,
    pub author: i64,
    pub path: String,
    pub line: Option<i64>,
    pub diff_hunk: String,
    pub commit: String,
    /// Its thread is done with; on the first comment of one.
    pub resolved: bool,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    pub hidden: u32,
}

impl ReviewComment {
    pub fn node_id(&self) -> String {
        format!("PRRC_{}", self.id)
    }

    /// Of the thread that it is the first comment of.
    pub fn thread_id(&self) -> String {
        format!("PRRT_{}", self.id)
    }
}

#[derive(Debug, Clone)]
pub struct Review {
    pub id: i64,
    pub number: i64,
    pub body: String,
    pub author: i64,
    /// `commented`, `approved`, `changes_requested`.
    pub state: String,
    pub commit: String,
    pub submitted_at: DateTime<Utc>,
}

impl Review {
    pub fn node_id(&self) -> String {
        format!("PRR_{}", self.id)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum On {
    Issue(i64),
    Comment(i64),
    ReviewComment(i64),
    Review(i64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reaction {
    pub id: i64,
    pub on: On,
    pub author: i64,
    /// REST name.
    pub content: String,
}

#[derive(Debug, Clone)]
pub struct Check {
    pub id: i64,
    pub name: String,
    pub head_sha: String,
    pub external_id: String,
    pub status: String,
    pub conclusion: Option<String>,
    pub title: String,
    pub summary: String,
    pub details_url: Option<String>,
    pub started_at: Option<String>,
    pub completed_at: Option<String>,
    /// `path:line message` of each annotation.
    pub annotations: Vec<String>,
    /// `None`: the App's own; else the slug of the program that reported it.
    pub reporter: Option<String>,
    /// The log of the workflow's job.
    pub log: Option<String>,
    /// Every `status/conclusion` it went through.
    pub history: Vec<String>,
    pub hidden: u32,
}

#[derive(Debug, Clone)]
pub struct Repo {
    pub id: i64,
    pub owner: String,
    pub name: String,
    pub private: bool,
    pub default_branch: String,
    /// The bare repository on disk.
    pub path: PathBuf,
    /// `(role_name, permission)` by user.
    pub roles: BTreeMap<i64, (String, String)>,
    pub issues: BTreeMap<i64, Issue>,
    pub comments: Vec<Comment>,
    pub review_comments: Vec<ReviewComment>,
    pub reviews: Vec<Review>,
    pub reactions: Vec<Reaction>,
    pub checks: Vec<Check>,
    pub issues_enabled: bool,
    pub drafts_supported: bool,
    pub fork_of: Option<i64>,
    /// Names it had: they redirect.
    pub old_names: Vec<String>,
    pub deleted: bool,
}

impl Repo {
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    pub fn git(&self) -> git2::Repository {
        git2::Repository::open_bare(&self.path).expect("the bare repository was made by add_repo")
    }

    /// The commit of a branch.
    pub fn head_of(&self, branch: &str) -> Option<String> {
        let git = self.git();
        let reference = git.find_reference(&format!("refs/heads/{branch}")).ok()?;
        reference.target().map(|oid| oid.to_string())
    }

    /// All heads, by full ref name.
    pub fn heads(&self) -> BTreeMap<String, String> {
        let git = self.git();
        let references = git.references_glob("refs/heads/*").expect("a fixed pattern");
        references
            .filter_map(Result::ok)
            .filter_map(|reference| {
                Some((reference.name().ok()?.to_owned(), reference.target()?.to_string()))
            })
            .collect()
    }

    pub fn has_commit(&self, sha: &str) -> bool {
        git2::Oid::from_str(sha).is_ok_and(|oid| self.git().find_commit(oid).is_ok())
    }

    pub fn next_number(&self) -> i64 {
        self.issues.keys().next_back().copied().unwrap_or(0) + 1
    }
}

/// A file that somebody attached.
#[derive(Debug, Clone)]
pub struct Upload {
    /// Path of its address at the web host.
    pub path: String,
    pub bytes: Vec<u8>,
    /// The repository whose readers alone may see it; web addresses know no App's token, so that it gets 404.
    pub private_in: Option<i64>,
    /// Where the web host sends people; `None`: to the storage, with a signature.
    pub elsewhere: Option<String>,
}

/// A write that was obeyed.
#[derive(Debug, Clone)]
pub struct Write {
    pub at: DateTime<Utc>,
    pub method: String,
    pub path: String,
    /// One readable line.
    pub summary: String,
    /// The permissions of the token that made it.
    pub permissions: BTreeMap<String, Level>,
}

/// A workflow that a push or a pull request starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkflowRun {
    /// In which repository it runs.
    pub repo: String,
    /// `push` or `pull_request`.
    pub event: &'static str,
    pub sha: String,
    /// A push has the secrets of its repository; a pull request only when its head lives in the same one.
    pub secrets: bool,
}

/// A request for an installation token that was granted.
#[derive(Debug, Clone)]
pub struct TokenGrant {
    pub installation: i64,
    pub repos: Option<BTreeSet<i64>>,
    pub permissions: BTreeMap<String, Level>,
}

/// One attempt to hand over a delivery.
#[derive(Debug, Clone)]
pub struct HookAttempt {
    pub id: i64,
    pub guid: String,
    pub event: &'static str,
    pub action: Option<String>,
    pub at: DateTime<Utc>,
    /// 0: nobody answered.
    pub status: u16,
    pub redelivery: bool,
}

#[derive(Debug)]
pub struct State {
    pub clock: Arc<dyn Clock>,
    pub root: PathBuf,
    /// `http://127.0.0.1:port`.
    pub base: String,
    pub app_id: i64,
    pub slug: String,
    pub bot: i64,
    pub public_key: Vec<u8>,
    pub users: BTreeMap<i64, User>,
    pub installations: BTreeMap<i64, Installation>,
    pub repos: BTreeMap<i64, Repo>,
    pub tokens: BTreeMap<String, Token>,
    pub token_grants: Vec<TokenGrant>,
    pub token_life: TimeDelta,
    /// Strangers are told nothing (a private GitHub Enterprise Server).
    pub private_mode: bool,
    /// New things stay out of lists for so many list calls.
    pub lag: u32,
    /// New things stay out of lists for so long.
    pub list_lag: TimeDelta,
    /// When things were made through the API, by id.
    pub made_at: BTreeMap<i64, DateTime<Utc>>,
    pub writes: Vec<Write>,
    /// What GitHub Actions would have started, oldest first.
    pub workflow_runs: Vec<WorkflowRun>,
    /// Where files and logs are kept: another host than `base`.
    pub storage: String,
    /// By number.
    pub uploads: BTreeMap<i64, Upload>,
    /// Every attempt to hand over a delivery, oldest first.
    pub hook_attempts: Vec<HookAttempt>,
    /// Deliveries by `guid`, to be sent again.
    pub hook_bodies: BTreeMap<String, super::payloads::Delivery>,
    /// What the App asked to have delivered again, and was not yet.
    pub hook_wanted: Vec<String>,
    /// Of Jira and Sentry, by key.
    pub tickets: BTreeMap<String, super::tickets::Ticket>,
    next_id: i64,
}

impl State {
    pub fn new(clock: Arc<dyn Clock>, root: &Path, base: String) -> Self {
        let mut state = State {
            clock,
            root: root.to_owned(),
            base,
            app_id: 4242,
            slug: "zeblit".into(),
            bot: 9001,
            public_key: include_bytes!("../../../fixtures/test-only-app-key.pub.pem").to_vec(),
            users: BTreeMap::new(),
            installations: BTreeMap::new(),
            repos: BTreeMap::new(),
            tokens: BTreeMap::new(),
            token_grants: Vec::new(),
            token_life: TimeDelta::hours(1),
            private_mode: false,
            lag: 0,
            list_lag: TimeDelta::zero(),
            made_at: BTreeMap::new(),
            writes: Vec::new(),
            workflow_runs: Vec::new(),
            storage: String::new(),
            uploads: BTreeMap::new(),
            hook_attempts: Vec::new(),
            hook_bodies: BTreeMap::new(),
            hook_wanted: Vec::new(),
            tickets: BTreeMap::new(),
            next_id: 1000,
        };
        let bot = User { id: 9001, login: "zeblit[bot]".into(), kind: "Bot" };
        state.users.insert(bot.id, bot);
        state
    }

    pub fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    pub fn id(&mut self) -> i64 {
        self.next_id += 1;
        self.next_id
    }

    /// The id of something that is made through the API now.
    pub fn made(&mut self) -> i64 {
        let (id, now) = (self.id(), self.now());
        self.made_at.insert(id, now);
        id
    }

    /// What is too young to be in lists.
    pub fn unseen(&self) -> BTreeSet<i64> {
        let now = self.now();
        let young = self.made_at.iter().filter(|(_, at)| now - **at < self.list_lag);
        young.map(|(id, _)| *id).collect()
    }

    pub fn user(&self, id: i64) -> User {
        self.users.get(&id).cloned().unwrap_or(User { id, login: "ghost".into(), kind: "User" })
    }

    pub fn user_id(&self, login: &str) -> Option<i64> {
        self.users.values().find(|user| user.login.eq_ignore_ascii_case(login)).map(|user| user.id)
    }

    /// The id of a repository by its present name.
    pub fn repo_id(&self, full_name: &str) -> Option<i64> {
        let found = self
            .repos
            .values()
            .find(|repo| !repo.deleted && repo.full_name().eq_ignore_ascii_case(full_name));
        found.map(|repo| repo.id)
    }

    /// The id of a repository that had this name once.
    pub fn renamed(&self, full_name: &str) -> Option<i64> {
        let found = self.repos.values().find(|repo| {
            !repo.deleted && repo.old_names.iter().any(|name| name.eq_ignore_ascii_case(full_name))
        });
        found.map(|repo| repo.id)
    }

    /// A repository by its name; for tests, which know that it is there.
    pub fn repo(&self, full_name: &str) -> &Repo {
        let id = self.repo_id(full_name).unwrap_or_else(|| panic!("no repository `{full_name}`"));
        &self.repos[&id]
    }

    pub fn repo_mut(&mut self, full_name: &str) -> &mut Repo {
        let id = self.repo_id(full_name).unwrap_or_else(|| panic!("no repository `{full_name}`"));
        self.repos.get_mut(&id).expect("found just now")
    }

    pub fn installation_of(&self, repo: i64) -> Option<i64> {
        self.installations.values().find(|i| i.repos.contains(&repo)).map(|i| i.id)
    }

    /// `(role_name, permission)` of a user.
    pub fn role(&self, repo: &Repo, user: i64) -> (String, String) {
        match repo.roles.get(&user) {
            Some(role) => role.clone(),
            None if repo.private => ("none".into(), "none".into()),
            None => ("read".into(), "read".into()),
        }
    }

    /// New heads of `repo` reach the open pull requests that come from it; returns `(base repo, number)` of those.
    pub fn sync_pulls(&mut self, repo: i64) -> Vec<(i64, i64)> {
        let Some(source) = self.repos.get(&repo).cloned() else { return Vec::new() };
        let heads = source.heads();
        let now = self.now();
        let mut moved = Vec::new();
        for base in self.repos.values_mut() {
            let (base_id, base_path) = (base.id, base.path.clone());
            for issue in base.issues.values_mut().filter(|issue| issue.open) {
                let number = issue.number;
                let Some(pull) = issue.pull.as_mut().filter(|pull| pull.head_repo == Some(repo)) else {
                    continue;
                };
                let Some(head) = heads.get(&format!("refs/heads/{}", pull.head_ref)) else { continue };
                if *head != pull.head_sha {
                    pull.head_sha.clone_from(head);
                    issue.updated_at = now;
                    publish_pull_ref(&source.path, &base_path, &pull.head_ref, number);
                    moved.push((base_id, number));
                }
            }
        }
        moved
    }
}

/// Makes `refs/pull/<n>/head` of the base repository, from wherever the head lives.
pub fn publish_pull_ref(source: &Path, base: &Path, head_ref: &str, number: i64) {
    git(
        base,
        &[
            "fetch",
            "--quiet",
            &source.to_string_lossy(),
            &format!("+refs/heads/{head_ref}:refs/pull/{number}/head"),
        ],
    );
}

/// Runs real Git in a folder of the model, free of the user's configuration.
pub fn git(folder: &Path, arguments: &[&str]) -> String {
    let output = std::process::Command::new("git")
        .current_dir(folder)
        .args(arguments)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env_remove("GIT_DIR")
        .output()
        .expect("git is installed");
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

pub fn stamp(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// What GitHub's API and webhooks show of a thing. Field names as in recorded payloads.
impl State {
    pub fn user_json(&self, id: i64) -> Value {
        let user = self.user(id);
        json!({
            "id": user.id,
            "login": user.login,
            "node_id": format!("U_{}", user.id),
            "type": user.kind,
            "site_admin": false,
            "html_url": format!("{}/{}", self.base, user.login),
            "url": format!("{}/users/{}", self.base, user.login),
        })
    }

    pub fn owner_json(&self, login: &str) -> Value {
        self.user_json(self.user_id(login).expect("add_repo makes the owner"))
    }

    pub fn app_json(&self) -> Value {
        json!({ "id": self.app_id, "slug": self.slug, "name": "Zeblit", "node_id": format!("A_{}", self.app_id) })
    }

    pub fn repo_json(&self, repo: &Repo) -> Value {
        let name = repo.full_name();
        json!({
            "id": repo.id,
            "node_id": format!("R_{}", repo.id),
            "name": repo.name,
            "full_name": name,
            "private": repo.private,
            "owner": self.owner_json(&repo.owner),
            "fork": repo.fork_of.is_some(),
            "default_branch": repo.default_branch,
            "has_issues": repo.issues_enabled,
            "archived": false,
            "visibility": if repo.private { "private" } else { "public" },
            "html_url": format!("{}/{name}", self.base),
            "url": format!("{}/repos/{name}", self.base),
            "clone_url": format!("{}/git/{name}.git", self.base),
        })
    }

    pub fn issue_json(&self, repo: &Repo, issue: &Issue) -> Value {
        let name = repo.full_name();
        let place = if issue.pull.is_some() { "pull" } else { "issues" };
        let mut value = json!({
            "id": issue.id,
            "node_id": issue.node_id(),
            "number": issue.number,
            "title": issue.title,
            "body": issue.body,
            "user": self.user_json(issue.author),
            "state": if issue.open { "open" } else { "closed" },
            "locked": issue.locked,
            "labels": issue.labels.iter().map(|name| json!({ "name": name })).collect::<Vec<_>>(),
            "assignees": issue.assignees.iter().map(|login| json!({ "login": login })).collect::<Vec<_>>(),
            "author_association": "NONE",
            "comments": repo.comments.iter().filter(|c| c.number == issue.number).count(),
            "created_at": stamp(issue.created_at),
            "updated_at": stamp(issue.updated_at),
            "closed_at": (!issue.open).then(|| stamp(issue.updated_at)),
            "html_url": format!("{}/{name}/{place}/{}", self.base, issue.number),
            "url": format!("{}/repos/{name}/issues/{}", self.base, issue.number),
        });
        if issue.pull.is_some() {
            value["pull_request"] =
                json!({ "url": format!("{}/repos/{name}/pulls/{}", self.base, issue.number) });
        }
        value
    }

    pub fn comment_json(&self, repo: &Repo, comment: &Comment) -> Value {
        let name = repo.full_name();
        let place = match repo.issues.get(&comment.number) {
            Some(issue) if issue.pull.is_some() => "pull",
            _ => "issues",
        };
        json!({
            "id": comment.id,
            "node_id": comment.node_id(),
            "body": comment.body,
            "user": self.user_json(comment.author),
            "author_association": "NONE",
            "performed_via_github_app": comment.via_app.then(|| self.app_json()),
            "created_at": stamp(comment.created_at),
            "updated_at": stamp(comment.updated_at),
            "html_url": format!("{}/{name}/{place}/{}#issuecomment-{}", self.base, comment.number, comment.id),
            "issue_url": format!("{}/repos/{name}/issues/{}", self.base, comment.number),
            "url": format!("{}/repos/{name}/issues/comments/{}", self.base, comment.id),
        })
    }

    pub fn review_comment_json(&self, repo: &Repo, comment: &ReviewComment) -> Value {
        let name = repo.full_name();
        let mut value = json!({
            "id": comment.id,
            "node_id": comment.node_id(),
            "pull_request_review_id": comment.review,
            "path": comment.path,
            "line": comment.line,
            "original_line": comment.line,
            "side": "RIGHT",
            "diff_hunk": comment.diff_hunk,
            "commit_id": comment.commit,
            "original_commit_id": comment.commit,
            "body": comment.body,
            "user": self.user_json(comment.author),
            "author_association": "NONE",
            "created_at": stamp(comment.created_at),
            "updated_at": stamp(comment.updated_at),
            "html_url": format!("{}/{name}/pull/{}#discussion_r{}", self.base, comment.number, comment.id),
            "pull_request_url": format!("{}/repos/{name}/pulls/{}", self.base, comment.number),
            "url": format!("{}/repos/{name}/pulls/comments/{}", self.base, comment.id),
        });
        if let Some(first) = comment.reply_to {
            value["in_reply_to_id"] = json!(first);
        }
        value
    }

    pub fn review_json(&self, repo: &Repo, review: &Review) -> Value {
        let name = repo.full_name();
        json!({
            "id": review.id,
            "node_id": review.node_id(),
            "body": (!review.body.is_empty()).then_some(&review.body),
            "state": review.state,
            "user": self.user_json(review.author),
            "author_association": "NONE",
            "commit_id": review.commit,
            "submitted_at": stamp(review.submitted_at),
            "html_url": format!("{}/{name}/pull/{}#pullrequestreview-{}", self.base, review.number, review.id),
            "pull_request_url": format!("{}/repos/{name}/pulls/{}", self.base, review.number),
        })
    }

    pub fn pull_json(&self, repo: &Repo, issue: &Issue) -> Value {
        let name = repo.full_name();
        let pull = issue.pull.as_ref().expect("only called for pull requests");
        let head_repo =
            pull.head_repo.and_then(|id| self.repos.get(&id)).filter(|head_repo| !head_repo.deleted);
        let head_owner = head_repo.map_or_else(|| "unknown".to_owned(), |head_repo| head_repo.owner.clone());
        json!({
            "id": issue.id,
            "node_id": issue.node_id(),
            "number": issue.number,
            "title": issue.title,
            "body": (!issue.body.is_empty()).then_some(&issue.body),
            "user": self.user_json(issue.author),
            "state": if issue.open { "open" } else { "closed" },
            "locked": issue.locked,
            "draft": pull.draft,
            "merged_at": pull.merged.then(|| stamp(issue.updated_at)),
            "author_association": "NONE",
            "head": {
                "label": format!("{head_owner}:{}", pull.head_ref),
                "ref": pull.head_ref,
                "sha": pull.head_sha,
                "user": head_repo.map(|head_repo| self.owner_json(&head_repo.owner)),
                "repo": head_repo.map(|head_repo| self.repo_json(head_repo)),
            },
            "base": {
                "label": format!("{}:{}", repo.owner, pull.base_ref),
                "ref": pull.base_ref,
                "sha": pull.base_sha,
                "user": self.owner_json(&repo.owner),
                "repo": self.repo_json(repo),
            },
            "created_at": stamp(issue.created_at),
            "updated_at": stamp(issue.updated_at),
            "closed_at": (!issue.open).then(|| stamp(issue.updated_at)),
            "html_url": format!("{}/{name}/pull/{}", self.base, issue.number),
            "url": format!("{}/repos/{name}/pulls/{}", self.base, issue.number),
        })
    }

    /// A pull request asked for alone tells more than one in a list.
    pub fn full_pull_json(&self, repo: &Repo, issue: &Issue) -> Value {
        let mut value = self.pull_json(repo, issue);
        value["merged"] = json!(issue.pull.as_ref().is_some_and(|pull| pull.merged));
        value["maintainer_can_modify"] = json!(false);
        let pull = issue.pull.as_ref().expect("only called for pull requests");
        value["auto_merge"] =
            json!(pull.auto_merge.as_ref().map(|method| json!({ "merge_method": method.to_lowercase() })));
        value["requested_reviewers"] =
            issue.reviewers.iter().map(|login| json!({ "login": login })).collect();
        value["comments"] = json!(repo.comments.iter().filter(|c| c.number == issue.number).count());
        value
    }

    pub fn check_json(&self, repo: &Repo, check: &Check) -> Value {
        let name = repo.full_name();
        json!({
            "id": check.id,
            "node_id": format!("CR_{}", check.id),
            "name": check.name,
            "head_sha": check.head_sha,
            "external_id": check.external_id,
            "status": check.status,
            "conclusion": check.conclusion,
            "details_url": check.details_url,
            "started_at": check.started_at,
            "completed_at": check.completed_at,
            "output": {
                "title": check.title,
                "summary": check.summary,
                "text": null,
                "annotations_count": check.annotations.len(),
                "annotations_url": format!("{}/repos/{name}/check-runs/{}/annotations", self.base, check.id),
            },
            "app": match &check.reporter {
                None => self.app_json(),
                Some(slug) => json!({ "id": 15_368, "slug": slug, "name": slug }),
            },
            "pull_requests": [],
            "html_url": format!("{}/{name}/runs/{}", self.base, check.id),
            "url": format!("{}/repos/{name}/check-runs/{}", self.base, check.id),
        })
    }

    pub fn reaction_json(&self, reaction: &Reaction) -> Value {
        json!({
            "id": reaction.id,
            "node_id": format!("REA_{}", reaction.id),
            "content": reaction.content,
            "user": self.user_json(reaction.author),
            "created_at": stamp(self.now()),
        })
    }
}
