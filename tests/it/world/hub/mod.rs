//! FakeHub: a stateful model of GitHub on 127.0.0.1. It rejects what GitHub rejects, keeps a ledger of
//! writes, breaks on request, and serves its repositories by Git over HTTP.

pub mod git_face;
pub mod payloads;
pub mod server;
pub mod state;
pub mod tickets;

use chrono::{DateTime, TimeDelta, Utc};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use server::{Answer, Request, problem};
use state::{
    Check, Comment, Installation, Issue, Level, On, Pull, Repo, Review, ReviewComment, State, User, Write,
    git, publish_pull_ref,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use zeblit::clock::{Clock, SystemClock};

/// The private key of the model's App. A test key: it opens nothing else.
pub const APP_KEY: &str = include_str!("../../../fixtures/test-only-app-key.pem");

/// How a request goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Refused before anything was done.
    Before(u16),
    /// Obeyed, then answered with this status.
    After(u16),
    /// Not obeyed, never answered.
    HangBefore,
    /// Obeyed, never answered.
    HangAfter,
    /// Not obeyed, the connection is closed.
    ResetBefore,
    /// Obeyed, answered when the test says `answer_held`.
    HeldAfter,
    /// Obeyed, the connection is closed.
    ResetAfter,
    /// 403 with `retry-after` in seconds.
    SecondaryLimit(u64),
    /// 403 that only says so in its text.
    SpokenLimit,
    /// 403 with no calls left, reset in so many seconds.
    PrimaryLimit(i64),
    /// Obeyed, answered with this status and body.
    Reply(u16, String),
    /// Not obeyed, answered with this status and body.
    Refuse(u16, String),
    /// Not obeyed, sent elsewhere.
    Redirect(String),
}

#[derive(Debug)]
struct Rule {
    method: String,
    pattern: Vec<String>,
    fault: Fault,
    left: usize,
}

impl Rule {
    /// `POST /repos/*/*/issues/*/comments`; `*` is one segment, a final `**` is the rest.
    fn new(pattern: &str, fault: Fault, left: usize) -> Self {
        let (method, path) = pattern.split_once(' ').expect("`METHOD /path`");
        let pattern = path.trim_start_matches('/').split('/').map(str::to_owned).collect();
        Rule { method: method.into(), pattern, fault, left }
    }

    fn fits(&self, request: &Request) -> bool {
        if self.left == 0 || (self.method != "*" && self.method != request.method) {
            return false;
        }
        let mut segments = request.segments.iter();
        for part in &self.pattern {
            if part == "**" {
                return true;
            }
            match segments.next() {
                Some(segment) if part == "*" || part == segment => {}
                _ => return false,
            }
        }
        segments.next().is_none()
    }
}

/// A request that was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub query: String,
    /// 0: no answer was given.
    pub status: u16,
    pub user_agent: String,
    /// It brought credentials.
    pub authorized: bool,
}

/// Faults by chance, from a seed: every change through the API may meet one.
#[derive(Debug, Clone)]
pub struct Chaos {
    random: u64,
    /// Of 100 changes, how many are obeyed without a usable answer.
    after: u64,
    /// How many are not obeyed and not answered usably.
    before: u64,
    /// How many meet a limit.
    limits: u64,
    /// What it did.
    pub unclear: usize,
    pub limited: usize,
}

impl Chaos {
    pub fn new(seed: u64, after: u64, before: u64, limits: u64) -> Self {
        Chaos { random: seed.wrapping_mul(2) + 1, after, before, limits, unclear: 0, limited: 0 }
    }

    /// xorshift64: the same faults for the same seed and order.
    fn below(&mut self, end: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % end
    }

    fn fault(&mut self, request: &Request) -> Option<Fault> {
        let is_change = request.method != "GET"
            && !request.path.ends_with("/access_tokens")
            && !request.path.starts_with("/git/");
        if !is_change {
            return None;
        }
        let (dice, kind) = (self.below(100), self.below(20));
        if dice < self.after {
            self.unclear += 1;
            return Some(match kind {
                0 => Fault::HangAfter,
                1..8 => Fault::ResetAfter,
                8..10 => Fault::Reply(201, "{\"half\": ".into()),
                _ => Fault::After(502),
            });
        }
        if dice < self.after + self.before {
            self.unclear += 1;
            return Some(match kind {
                0 => Fault::HangBefore,
                1..8 => Fault::ResetBefore,
                _ => Fault::Before(500),
            });
        }
        if dice < self.after + self.before + self.limits {
            self.limited += 1;
            return Some(match kind {
                _ if is_ticket(request) => Fault::SecondaryLimit(45),
                0..8 => Fault::SecondaryLimit(45),
                8..14 => Fault::SpokenLimit,
                _ => Fault::PrimaryLimit(120),
            });
        }
        None
    }
}

/// Jira and Sentry share the address.
fn is_ticket(request: &Request) -> bool {
    request.path.starts_with("/jira/") || request.path.starts_with("/sentry/")
}

struct Shared {
    state: Mutex<State>,
    chaos: Mutex<Option<Chaos>>,
    rules: Mutex<Vec<Rule>>,
    seen: Mutex<Vec<Seen>>,
    unknown: Mutex<Vec<String>>,
    /// Answers that may go out.
    held: tokio::sync::Semaphore,
    patience: Mutex<std::time::Duration>,
}

/// The model with its HTTP face.
pub struct FakeHub {
    shared: Arc<Shared>,
    address: SocketAddr,
    storage: SocketAddr,
    accept: [tokio::task::JoinHandle<()>; 2],
    _folder: tempfile::TempDir,
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.accept.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl FakeHub {
    pub async fn start() -> Self {
        Self::with_clock(Arc::new(SystemClock)).await
    }

    pub async fn with_clock(clock: Arc<dyn Clock>) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound just now");
        let stores = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let storage = stores.local_addr().expect("bound just now");
        let mut state = State::new(clock, folder.path(), format!("http://{address}"));
        state.storage = format!("http://{storage}");
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            chaos: Mutex::default(),
            rules: Mutex::default(),
            seen: Mutex::default(),
            unknown: Mutex::default(),
            held: tokio::sync::Semaphore::new(0),
            patience: Mutex::new(std::time::Duration::from_secs(20)),
        });
        let accept = [
            tokio::spawn(accept(listener, Arc::clone(&shared), false)),
            tokio::spawn(accept(stores, Arc::clone(&shared), true)),
        ];
        FakeHub { shared, address, storage, accept, _folder: folder }
    }

    /// The model itself, for what has no method here. Do not hold it over an `await`.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().expect("no test panics while it holds the model")
    }

    pub fn api_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The same API as GitHub Enterprise Server serves it.
    pub fn enterprise_api_url(&self) -> String {
        format!("http://{}/api/v3", self.address)
    }

    pub fn git_url(&self) -> String {
        format!("http://{}/git", self.address)
    }

    pub fn web_url(&self) -> String {
        self.api_url()
    }

    /// The host where files and logs are kept.
    pub fn storage_url(&self) -> String {
        format!("http://{}", self.storage)
    }

    pub fn app_id(&self) -> u64 {
        u64::try_from(self.state().app_id).expect("a positive number")
    }

    // ---- The world before a test ----

    pub fn add_user(&self, login: &str, id: i64) -> i64 {
        self.state().users.insert(id, User { id, login: login.into(), kind: "User" });
        id
    }

    /// A user like any other, except that its type is `Bot`.
    pub fn add_bot(&self, login: &str, id: i64) -> i64 {
        self.state().users.insert(id, User { id, login: login.into(), kind: "Bot" });
        id
    }

    /// The login goes to another person: the old one keeps its number under a new login.
    pub fn take_login(&self, login: &str, new_owner: i64) {
        let mut state = self.state();
        let old = state.user_id(login).expect("the login is taken");
        state.users.get_mut(&old).expect("found just now").login = format!("{login}-moved");
        state.users.insert(new_owner, User { id: new_owner, login: login.into(), kind: "User" });
    }

    /// A public repository with one commit of these files (none: an empty repository), covered by the App's
    /// installation on its owner.
    pub fn add_repo(&self, full_name: &str, files: &[(&str, &str)]) -> i64 {
        let (owner, name) = full_name.split_once('/').expect("owner/name");
        let mut state = self.state();
        let id = state.make_repo(owner, name);
        drop(state);
        if !files.is_empty() {
            self.push_commit(full_name, "main", files, "Initial commit");
        }
        id
    }

    /// A fork, not covered by the App.
    pub fn add_fork(&self, of: &str, full_name: &str) -> i64 {
        let id = self.add_repo(full_name, &[]);
        let mut state = self.state();
        let (parent, source) = {
            let parent = state.repo(of);
            (parent.id, parent.path.clone())
        };
        for installation in state.installations.values_mut() {
            installation.repos.remove(&id);
        }
        let fork = state.repo_mut(full_name);
        fork.fork_of = Some(parent);
        git(&fork.path, &["fetch", "--quiet", &source.to_string_lossy(), "+refs/heads/*:refs/heads/*"]);
        id
    }

    /// A fork that the App is installed on.
    pub fn add_own_fork(&self, of: &str, full_name: &str) -> i64 {
        let id = self.add_fork(of, full_name);
        let owner = full_name.split_once('/').expect("owner/name").0;
        let mut state = self.state();
        let installation = state.installations.values_mut().find(|i| i.account == owner);
        installation.expect("made with its first repository").repos.insert(id);
        id
    }

    /// What GitHub Actions would have started.
    pub fn workflow_runs(&self) -> Vec<state::WorkflowRun> {
        self.state().workflow_runs.clone()
    }

    pub fn set_private(&self, repo: &str, private: bool) {
        self.state().repo_mut(repo).private = private;
    }

    /// Gives a user one of GitHub's own roles.
    pub fn set_role(&self, repo: &str, login: &str, role: &str) {
        let permission = match role {
            "admin" => "admin",
            "maintain" | "write" => "write",
            "triage" | "read" => "read",
            "none" => "none",
            other => panic!("`{other}` is no built-in role"),
        };
        self.set_custom_role(repo, login, role, permission);
    }

    pub fn set_custom_role(&self, repo: &str, login: &str, role: &str, permission: &str) {
        let mut state = self.state();
        let user = state.user_id(login).unwrap_or_else(|| panic!("no user `{login}`"));
        state.repo_mut(repo).roles.insert(user, (role.into(), permission.into()));
    }

    /// The repository as the program knows it.
    pub fn repo(&self, full_name: &str) -> zeblit::domain::event::Repo {
        let state = self.state();
        let repo = state.repo(full_name);
        zeblit::domain::event::Repo {
            id: repo.id,
            name: zeblit::domain::ids::RepoName::parse(full_name).expect("a valid name"),
            installation: state.installation_of(repo.id).unwrap_or(0),
            private: repo.private,
        }
    }

    pub fn installation(&self, repo: &str) -> i64 {
        let state = self.state();
        let id = state.repo(repo).id;
        state.installation_of(id).expect("the App is installed there")
    }

    pub fn suspend(&self, repo: &str, suspended: bool) {
        let installation = self.installation(repo);
        self.state().installations.get_mut(&installation).expect("found just now").suspended = suspended;
    }

    /// Takes a permission from the App's installation, or lowers it. Tokens given out keep what they have.
    pub fn set_permission(&self, repo: &str, name: &str, level: Option<Level>) {
        let installation = self.installation(repo);
        let mut state = self.state();
        let permissions =
            &mut state.installations.get_mut(&installation).expect("found just now").permissions;
        match level {
            Some(level) => permissions.insert(name.into(), level),
            None => permissions.remove(name),
        };
    }

    pub fn rename_repo(&self, from: &str, to: &str) {
        let (owner, name) = to.split_once('/').expect("owner/name");
        let mut state = self.state();
        let repo = state.repo_mut(from);
        repo.old_names.push(from.into());
        repo.owner = owner.into();
        repo.name = name.into();
    }

    pub fn delete_repo(&self, repo: &str) {
        self.state().repo_mut(repo).deleted = true;
    }

    pub fn protect_branch(&self, repo: &str, branch: &str) {
        let path = self.state().repo(repo).path.join("protected");
        let mut known = std::fs::read_to_string(&path).unwrap_or_default();
        known.push_str(&format!("refs/heads/{branch}\n"));
        std::fs::write(path, known).expect("our own folder");
    }

    pub fn revoke_tokens(&self) {
        self.state().tokens.clear();
    }

    pub fn open_issue(&self, repo: &str, author: &str, title: &str, body: &str) -> i64 {
        let mut state = self.state();
        let now = state.now();
        let author = state.user_id(author).unwrap_or_else(|| panic!("no user `{author}`"));
        let id = state.id();
        let repo = state.repo_mut(repo);
        let number = repo.next_number();
        let issue = Issue {
            id,
            number,
            title: title.into(),
            body: body.into(),
            author,
            open: true,
            locked: false,
            pull: None,
            labels: Vec::new(),
            assignees: Vec::new(),
            reviewers: Vec::new(),
            created_at: now,
            updated_at: now,
        };
        repo.issues.insert(number, issue);
        number
    }

    /// Opens a pull request from `head` (`branch`, or `owner:branch` of a fork).
    pub fn open_pull(&self, repo: &str, author: &str, head: &str, base: &str, title: &str) -> i64 {
        let mut state = self.state();
        let now = state.now();
        let author = state.user_id(author).unwrap_or_else(|| panic!("no user `{author}`"));
        let id = state.id();
        let target = state.repo(repo).clone();
        let source = match head.split_once(':') {
            Some((owner, _)) => {
                let fork = state.repos.values().find(|r| r.owner == owner && r.fork_of == Some(target.id));
                fork.unwrap_or_else(|| panic!("`{owner}` has no fork of {repo}")).clone()
            }
            None => target.clone(),
        };
        let branch = head.split_once(':').map_or(head, |(_, branch)| branch);
        let number = target.next_number();
        let pull = Pull {
            head_repo: Some(source.id),
            head_ref: branch.into(),
            head_sha: source.head_of(branch).unwrap_or_else(|| panic!("no branch `{branch}`")),
            base_ref: base.into(),
            base_sha: target.head_of(base).unwrap_or_else(|| panic!("no branch `{base}`")),
            draft: false,
            merged: false,
            auto_merge: None,
            hidden: 0,
        };
        publish_pull_ref(&source.path, &target.path, branch, number);
        let issue = Issue {
            id,
            number,
            title: title.into(),
            body: String::new(),
            author,
            open: true,
            locked: false,
            pull: Some(pull),
            labels: Vec::new(),
            assignees: Vec::new(),
            reviewers: Vec::new(),
            created_at: now,
            updated_at: now,
        };
        state.repo_mut(repo).issues.insert(number, issue);
        number
    }

    pub fn set_open(&self, repo: &str, number: i64, open: bool) {
        let mut state = self.state();
        let now = state.now();
        let issue = state.repo_mut(repo).issues.get_mut(&number).expect("the issue is there");
        issue.open = open;
        issue.updated_at = now;
    }

    /// Merges a pull request: its base moves to its head.
    pub fn merge(&self, repo: &str, number: i64) {
        let mut state = self.state();
        let now = state.now();
        let repo = state.repo_mut(repo);
        let path = repo.path.clone();
        let issue = repo.issues.get_mut(&number).expect("the pull request is there");
        let pull = issue.pull.as_mut().expect("a pull request");
        pull.merged = true;
        issue.open = false;
        issue.updated_at = now;
        git(&path, &["update-ref", &format!("refs/heads/{}", pull.base_ref), &pull.head_sha]);
    }

    pub fn comment(&self, repo: &str, number: i64, author: &str, body: &str) -> i64 {
        let mut state = self.state();
        let now = state.now();
        let author = state.user_id(author).unwrap_or_else(|| panic!("no user `{author}`"));
        let id = state.id();
        let repo = state.repo_mut(repo);
        assert!(repo.issues.contains_key(&number), "no issue #{number}");
        repo.comments.push(Comment {
            id,
            number,
            body: body.into(),
            author,
            via_app: false,
            created_at: now,
            updated_at: now,
            minimised: None,
            edits: 0,
            hidden: 0,
        });
        id
    }

    /// A person edits a comment; gives the text it had.
    pub fn edit_comment(&self, repo: &str, id: i64, body: &str) -> String {
        let mut state = self.state();
        let now = state.now();
        let comments = &mut state.repo_mut(repo).comments;
        let comment = comments.iter_mut().find(|comment| comment.id == id).expect("the comment is there");
        comment.updated_at = now;
        std::mem::replace(&mut comment.body, body.into())
    }

    pub fn delete_comment(&self, repo: &str, id: i64) {
        self.state().repo_mut(repo).comments.retain(|comment| comment.id != id);
    }

    /// A comment on a line of a pull request, the first of a thread.
    pub fn review_comment(
        &self,
        repo: &str,
        number: i64,
        author: &str,
        place: (&str, i64),
        body: &str,
    ) -> i64 {
        let mut state = self.state();
        let now = state.now();
        let author = state.user_id(author).unwrap_or_else(|| panic!("no user `{author}`"));
        let id = state.id();
        let repo = state.repo_mut(repo);
        let pull = repo.issues.get(&number).and_then(|issue| issue.pull.clone()).expect("a pull request");
        let (path, line) = place;
        repo.review_comments.push(ReviewComment {
            id,
            number,
            review: None,
            reply_to: None,
            body: body.into(),
            author,
            path: path.into(),
            line: Some(line),
            diff_hunk: format!("@@ -{line},1 +{line},1 @@"),
            commit: pull.head_sha,
            resolved: false,
            created_at: now,
            updated_at: now,
            hidden: 0,
        });
        id
    }

    /// A submitted review: `commented`, `approved` or `changes_requested`.
    pub fn review(&self, repo: &str, number: i64, author: &str, verdict: &str, body: &str) -> i64 {
        let mut state = self.state();
        let now = state.now();
        let author = state.user_id(author).unwrap_or_else(|| panic!("no user `{author}`"));
        let id = state.id();
        let repo = state.repo_mut(repo);
        let pull = repo.issues.get(&number).and_then(|issue| issue.pull.clone()).expect("a pull request");
        repo.reviews.push(Review {
            id,
            number,
            body: body.into(),
            author,
            state: verdict.into(),
            commit: pull.head_sha,
            submitted_at: now,
        });
        id
    }

    /// A person commits to a branch (made from the default branch when it is new) and pushes; gives the commit.
    pub fn push_commit(&self, repo: &str, branch: &str, files: &[(&str, &str)], message: &str) -> String {
        let changes: Vec<(&str, Option<&str>)> =
            files.iter().map(|(path, text)| (*path, Some(*text))).collect();
        self.push_changes(repo, branch, &changes, message)
    }

    /// As `push_commit`; `None` deletes a file.
    pub fn push_changes(
        &self,
        repo: &str,
        branch: &str,
        changes: &[(&str, Option<&str>)],
        message: &str,
    ) -> String {
        let mut state = self.state();
        let now = state.now();
        let target = state.repo(repo).clone();
        let git = target.git();
        let parent = target.head_of(branch).or_else(|| target.head_of(&target.default_branch)).map(|sha| {
            git.find_commit(git2::Oid::from_str(&sha).expect("a ref's target")).expect("its commit")
        });
        let baseline = match &parent {
            Some(parent) => parent.tree().expect("a commit has a tree"),
            None => {
                let empty = git.treebuilder(None).and_then(|builder| builder.write()).expect("an empty tree");
                git.find_tree(empty).expect("written just now")
            }
        };
        let mut update = git2::build::TreeUpdateBuilder::new();
        for (path, content) in changes {
            match content {
                Some(content) => {
                    let blob = git.blob(content.as_bytes()).expect("a writable repository");
                    update.upsert(*path, blob, git2::FileMode::Blob);
                }
                None => {
                    update.remove(*path);
                }
            }
        }
        let tree = update.create_updated(&git, &baseline).expect("valid paths");
        let tree = git.find_tree(tree).expect("written just now");
        let time = git2::Time::new(now.timestamp(), 0);
        let person = git2::Signature::new("Octo Cat", "octo@example.com", &time).expect("a plain name");
        let parents: Vec<&git2::Commit<'_>> = parent.iter().collect();
        let commit = git.commit(None, &person, &person, message, &tree, &parents).expect("a commit");
        git.reference(&format!("refs/heads/{branch}"), commit, true, "push").expect("a valid branch name");
        state.sync_pulls(target.id);
        commit.to_string()
    }

    /// Somebody attaches an image or a file; gives its address.
    pub fn attach(&self, name: Option<&str>, bytes: &[u8]) -> String {
        self.upload(name, bytes, None, None)
    }

    /// The same in a private repository.
    pub fn attach_in(&self, repo: &str, name: Option<&str>, bytes: &[u8]) -> String {
        let id = self.state().repo(repo).id;
        self.upload(name, bytes, Some(id), None)
    }

    /// An address that sends people elsewhere.
    pub fn attach_elsewhere(&self, target: &str) -> String {
        self.upload(None, b"", None, Some(target.to_owned()))
    }

    fn upload(
        &self,
        name: Option<&str>,
        bytes: &[u8],
        private_in: Option<i64>,
        elsewhere: Option<String>,
    ) -> String {
        let mut state = self.state();
        let n = state.id();
        let path = match name {
            Some(name) => format!("/user-attachments/files/{n}/{name}"),
            None => format!("/user-attachments/assets/00000000-0000-4000-8000-{n:012}"),
        };
        let address = format!("{}{path}", state.base);
        state.uploads.insert(n, state::Upload { path, bytes: bytes.to_vec(), private_in, elsewhere });
        address
    }

    /// A workflow or another program reports a check of a commit. Gives its id.
    pub fn report_check(&self, repo: &str, sha: &str, check: Check) -> i64 {
        let mut state = self.state();
        let id = state.id();
        let base = state.base.clone();
        let reporter = check.reporter.clone().or_else(|| Some("github-actions".into()));
        let details_url = Some(format!("{base}/{repo}/actions/runs/1/job/{id}"));
        let check = Check { id, head_sha: sha.into(), reporter, details_url, ..check };
        state.repo_mut(repo).checks.push(check);
        id
    }

    /// A ticket of Jira's, or an issue of Sentry's, by its key.
    pub fn add_ticket(&self, key: &str, status: &str) {
        let ticket = tickets::Ticket { status: status.into(), notes: Vec::new() };
        self.state().tickets.insert(key.into(), ticket);
    }

    pub fn ticket(&self, key: &str) -> tickets::Ticket {
        self.state().tickets.get(key).cloned().expect("the ticket is there")
    }

    // ---- What became of it ----

    pub fn comments(&self, repo: &str, number: i64) -> Vec<Comment> {
        self.state().repo(repo).comments.iter().filter(|c| c.number == number).cloned().collect()
    }

    /// The texts that the App wrote, oldest first.
    pub fn own_comments(&self, repo: &str, number: i64) -> Vec<String> {
        let comments = self.comments(repo, number);
        comments.into_iter().filter(|comment| comment.via_app).map(|comment| comment.body).collect()
    }

    pub fn review_comments(&self, repo: &str, number: i64) -> Vec<ReviewComment> {
        self.state().repo(repo).review_comments.iter().filter(|c| c.number == number).cloned().collect()
    }

    /// Whether this user is the App itself.
    pub fn is_own(&self, user: i64) -> bool {
        self.state().bot == user
    }

    /// Somebody deletes a branch.
    pub fn delete_branch(&self, repo: &str, branch: &str) {
        let path = self.state().repo(repo).path.clone();
        git(&path, &["update-ref", "-d", &format!("refs/heads/{branch}")]);
    }

    /// A commit as `git log --format` shows it.
    pub fn log(&self, repo: &str, branch: &str, format: &str, count: usize) -> String {
        let path = self.state().repo(repo).path.clone();
        let output = std::process::Command::new("git")
            .arg("--git-dir")
            .arg(path)
            .args([
                "log",
                &format!("-{count}"),
                &format!("--format={format}"),
                &format!("refs/heads/{branch}"),
            ])
            .output()
            .expect("git runs");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The pull requests of a repository.
    pub fn pulls(&self, repo: &str) -> Vec<Issue> {
        self.state().repo(repo).issues.values().filter(|issue| issue.pull.is_some()).cloned().collect()
    }

    pub fn issue(&self, repo: &str, number: i64) -> Issue {
        self.state().repo(repo).issues.get(&number).cloned().expect("the issue is there")
    }

    pub fn checks(&self, repo: &str, sha: &str) -> Vec<Check> {
        self.state().repo(repo).checks.iter().filter(|check| check.head_sha == sha).cloned().collect()
    }

    pub fn reviews(&self, repo: &str, number: i64) -> Vec<Review> {
        self.state().repo(repo).reviews.iter().filter(|review| review.number == number).cloned().collect()
    }

    /// The App's reactions on something, in order.
    pub fn reactions(&self, repo: &str, on: On) -> Vec<String> {
        let state = self.state();
        let found = state.repo(repo).reactions.iter().filter(|reaction| reaction.on == on);
        found.map(|reaction| reaction.content.clone()).collect()
    }

    pub fn branches(&self, repo: &str) -> Vec<String> {
        let heads = self.state().repo(repo).heads();
        heads.keys().map(|name| name.trim_start_matches("refs/heads/").to_owned()).collect()
    }

    pub fn head(&self, repo: &str, branch: &str) -> Option<String> {
        self.state().repo(repo).head_of(branch)
    }

    pub fn file_at(&self, repo: &str, branch: &str, path: &str) -> Option<String> {
        let target = self.state().repo(repo).clone();
        let git = target.git();
        let object = git.revparse_single(&format!("refs/heads/{branch}:{path}")).ok()?;
        Some(String::from_utf8_lossy(object.as_blob()?.content()).into_owned())
    }

    /// Where the bare repository is.
    pub fn bare(&self, repo: &str) -> PathBuf {
        self.state().repo(repo).path.clone()
    }

    // ---- Deliveries ----

    /// An attempt to hand over a delivery was made and answered so (0: not at all).
    pub fn log_attempt(&self, delivery: &payloads::Delivery, status: u16) {
        // A body that is no JSON tells no action.
        let body = serde_json::from_slice::<serde_json::Value>(&delivery.body).unwrap_or_default();
        let mut state = self.state();
        let attempt = state::HookAttempt {
            id: state.id(),
            guid: delivery.id.clone(),
            event: delivery.event,
            action: body.get("action").and_then(|action| action.as_str().map(str::to_owned)),
            at: state.now(),
            status,
            redelivery: state.hook_bodies.contains_key(&delivery.id),
        };
        state.hook_attempts.push(attempt);
        state.hook_bodies.insert(delivery.id.clone(), delivery.clone());
    }

    /// What the App asked to have delivered again since the last call.
    pub fn wanted_again(&self) -> Vec<payloads::Delivery> {
        let mut state = self.state();
        let wanted = std::mem::take(&mut state.hook_wanted);
        wanted.iter().filter_map(|guid| state.hook_bodies.get(guid).cloned()).collect()
    }

    // ---- Faults and ledgers ----

    /// The next request of this form goes wrong: `POST /repos/*/*/issues/*/comments`.
    pub fn fail_next(&self, pattern: &str, fault: Fault) {
        self.fail_times(pattern, fault, 1);
    }

    pub fn fail_times(&self, pattern: &str, fault: Fault, times: usize) {
        self.shared.rules.lock().expect("not poisoned").push(Rule::new(pattern, fault, times));
    }

    /// No more faults.
    pub fn clear_faults(&self) {
        self.shared.rules.lock().expect("not poisoned").clear();
    }

    /// One answer that `Fault::HeldAfter` holds back goes out.
    pub fn answer_held(&self) {
        self.shared.held.add_permits(1);
    }

    /// How long programs wait for an answer.
    pub fn patience(&self) -> std::time::Duration {
        *self.shared.patience.lock().expect("not poisoned")
    }

    pub fn set_patience(&self, patience: std::time::Duration) {
        *self.shared.patience.lock().expect("not poisoned") = patience;
    }

    /// Looks at the model while somebody else has it.
    pub fn watch(&self) -> Watch {
        Watch { shared: Arc::clone(&self.shared) }
    }

    /// Faults that no request has met.
    pub fn unused_faults(&self) -> Vec<String> {
        let rules = self.shared.rules.lock().expect("not poisoned");
        let unused = rules.iter().filter(|rule| rule.left > 0);
        unused.map(|rule| format!("{} /{} {:?}", rule.method, rule.pattern.join("/"), rule.fault)).collect()
    }

    /// New comments, pull requests and checks stay out of lists for so many list calls.
    pub fn lag_lists(&self, calls: u32) {
        self.state().lag = calls;
    }

    /// New things stay out of lists for so long.
    pub fn lag_lists_for(&self, time: TimeDelta) {
        self.state().list_lag = time;
    }

    /// From now on changes go wrong by chance; `None`: no more. Gives what was there before.
    pub fn set_chaos(&self, chaos: Option<Chaos>) -> Option<Chaos> {
        std::mem::replace(&mut *self.shared.chaos.lock().expect("not poisoned"), chaos)
    }

    /// Every write that was obeyed.
    pub fn writes(&self) -> Vec<Write> {
        self.state().writes.clone()
    }

    /// The most content writes within any span of this length; pushes go by Git and do not count.
    pub fn most_writes_in(&self, span: TimeDelta) -> usize {
        let other = ["/git/", "/jira/", "/sentry/"];
        let is_content = |write: &Write| !other.iter().any(|start| write.path.starts_with(start));
        let content = self.writes().into_iter().filter(is_content);
        let times: Vec<DateTime<Utc>> = content.map(|write| write.at).collect();
        let within =
            |start: &DateTime<Utc>| times.iter().filter(|at| **at >= *start && **at < *start + span).count();
        times.iter().map(within).max().unwrap_or(0)
    }

    /// Every write in one readable list.
    pub fn transcript(&self) -> String {
        self.writes().into_iter().map(|write| write.summary + "\n").collect()
    }

    pub fn requests(&self) -> Vec<Seen> {
        self.shared.seen.lock().expect("not poisoned").clone()
    }

    /// How many requests of this form came.
    pub fn count(&self, pattern: &str) -> usize {
        let rule = Rule::new(pattern, Fault::ResetBefore, 1);
        self.requests()
            .into_iter()
            .filter(|seen| {
                let segments = decoded_segments(&seen.path);
                let request = Request {
                    method: seen.method.clone(),
                    path: seen.path.clone(),
                    segments,
                    query: BTreeMap::new(),
                    raw_query: String::new(),
                    headers: Vec::new(),
                    body: bytes::Bytes::new(),
                };
                rule.fits(&request)
            })
            .count()
    }

    /// Requests that no endpoint knows: a test with any of them is wrong.
    pub fn unknown_requests(&self) -> Vec<String> {
        self.shared.unknown.lock().expect("not poisoned").clone()
    }
}

/// A look at what became of requests.
#[derive(Clone)]
pub struct Watch {
    shared: Arc<Shared>,
}

impl Watch {
    /// How many writes were obeyed.
    pub fn writes(&self) -> usize {
        self.shared.state.lock().expect("not poisoned").writes.len()
    }

    /// Pushes among them.
    pub fn pushes(&self) -> usize {
        let state = self.shared.state.lock().expect("not poisoned");
        state.writes.iter().filter(|write| write.path.starts_with("/git/")).count()
    }

    /// Every fault that a test asked for has been met.
    pub fn faults_met(&self) -> bool {
        self.shared.rules.lock().expect("not poisoned").iter().all(|rule| rule.left == 0)
    }

    /// Waits until something holds. The model runs in tasks of its own, so that looking now and then is enough.
    pub async fn until(&self, holds: impl Fn(&Watch) -> bool) {
        while !holds(self) {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }
}

async fn accept(listener: tokio::net::TcpListener, shared: Arc<Shared>, is_storage: bool) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { return };
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let service = service_fn(move |request| serve(Arc::clone(&shared), request, is_storage));
            // An error here is a fault that a test asked for, or a client that went away.
            let _ = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Closes the connection without an answer.
#[derive(Debug)]
struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("closed as the test asked")
    }
}

impl std::error::Error for Closed {}

async fn serve(
    shared: Arc<Shared>,
    request: hyper::Request<Incoming>,
    is_storage: bool,
) -> Result<hyper::Response<Full<bytes::Bytes>>, Closed> {
    let request = read(request).await?;
    let fault = {
        let mut rules = shared.rules.lock().expect("not poisoned");
        rules.iter_mut().find(|rule| rule.fits(&request)).map(|rule| {
            rule.left -= 1;
            rule.fault.clone()
        })
    };
    let by_chance = || shared.chaos.lock().expect("not poisoned").as_mut().and_then(|c| c.fault(&request));
    let fault = fault.or_else(by_chance);
    let place = {
        let mut seen = shared.seen.lock().expect("not poisoned");
        seen.push(Seen {
            method: request.method.clone(),
            path: request.path.clone(),
            query: request.raw_query.clone(),
            status: 0,
            user_agent: request.header("user-agent").unwrap_or_default().to_owned(),
            authorized: request.header("authorization").is_some(),
        });
        seen.len() - 1
    };
    let mut answer = match &fault {
        Some(Fault::Before(status)) => *problem(*status, "A fault that the test asked for"),
        Some(Fault::HangBefore) => std::future::pending().await,
        Some(Fault::ResetBefore) => return Err(Closed),
        Some(Fault::SecondaryLimit(seconds)) => {
            let mut answer = *problem(
                if is_ticket(&request) { 429 } else { 403 },
                "You have exceeded a secondary rate limit. Please wait a few minutes before you try again.",
            );
            answer.headers.push(("Retry-After".into(), seconds.to_string()));
            answer
        }
        Some(Fault::SpokenLimit) => *problem(
            403,
            "You have exceeded a secondary rate limit and have been temporarily blocked from content creation.",
        ),
        Some(Fault::PrimaryLimit(seconds)) => {
            let reset = shared.state.lock().expect("not poisoned").now() + TimeDelta::seconds(*seconds);
            let mut answer = *problem(403, "API rate limit exceeded for installation ID 1.");
            answer.headers.push(("X-RateLimit-Remaining".into(), "0".into()));
            answer.headers.push(("X-RateLimit-Reset".into(), reset.timestamp().to_string()));
            answer
        }
        Some(Fault::Refuse(status, body)) => {
            Answer::raw(*status, "application/json; charset=utf-8", body.clone().into_bytes())
        }
        Some(Fault::Redirect(target)) => {
            let mut answer = *problem(307, "Moved");
            answer.headers.push(("Location".into(), target.clone()));
            answer
        }
        _ if is_storage => shared.state.lock().expect("not poisoned").stored(&request),
        _ => obey(&shared, &request).await,
    };
    match fault {
        Some(Fault::After(status)) => answer = *problem(status, "A fault that the test asked for"),
        Some(Fault::HangAfter) => std::future::pending().await,
        Some(Fault::HeldAfter) => shared.held.acquire().await.expect("never closed").forget(),
        Some(Fault::ResetAfter) => return Err(Closed),
        Some(Fault::Reply(status, body)) => {
            answer = Answer::raw(status, "application/json; charset=utf-8", body.into_bytes());
        }
        _ => {}
    }
    if answer.unknown {
        let line = format!("{} {}", request.method, request.path);
        shared.unknown.lock().expect("not poisoned").push(line);
    }
    if let Some(seen) = shared.seen.lock().expect("not poisoned").get_mut(place) {
        seen.status = answer.status;
    }
    let mut response = hyper::Response::builder().status(answer.status);
    for (name, value) in &answer.headers {
        response = response.header(name, value);
    }
    Ok(response.body(Full::from(answer.body)).expect("plain headers"))
}

async fn obey(shared: &Shared, request: &Request) -> Answer {
    if request.segments.first().is_none_or(|first| first != "git") {
        return shared.state.lock().expect("not poisoned").answer(request);
    }
    let permitted = git_face::permit(&shared.state.lock().expect("not poisoned"), request);
    let permitted = match permitted {
        Ok(permitted) => permitted,
        Err(answer) => return *answer,
    };
    let answer = git_face::run(request, &permitted).await;
    if permitted.push {
        let mut state = shared.state.lock().expect("not poisoned");
        state.pushed(request, &permitted);
    }
    answer
}

impl State {
    /// An empty repository, covered by the App's installation on its owner (which is made when there is none).
    pub fn make_repo(&mut self, owner: &str, name: &str) -> i64 {
        if self.user_id(owner).is_none() {
            let id = self.id();
            self.users.insert(id, User { id, login: owner.into(), kind: "Organization" });
        }
        let id = self.id();
        let path = self.root.join(format!("{id}.git"));
        std::fs::create_dir_all(&path).expect("a new folder");
        git(&path, &["init", "--quiet", "--bare", "--initial-branch=main"]);
        for (key, value) in [
            ("uploadpack.allowAnySHA1InWant", "true"),
            ("receive.hideRefs", "refs/pull"),
            ("http.receivepack", "true"),
        ] {
            git(&path, &["config", key, value]);
        }
        let hook = path.join("hooks/update");
        std::fs::create_dir_all(path.join("hooks")).expect("a new folder");
        std::fs::write(&hook, git_face::UPDATE_HOOK).expect("a new file");
        std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .expect("our file");
        let repo = Repo {
            id,
            owner: owner.into(),
            name: name.into(),
            private: false,
            default_branch: "main".into(),
            path,
            roles: BTreeMap::new(),
            issues: BTreeMap::new(),
            comments: Vec::new(),
            review_comments: Vec::new(),
            reviews: Vec::new(),
            reactions: Vec::new(),
            checks: Vec::new(),
            issues_enabled: true,
            drafts_supported: true,
            fork_of: None,
            old_names: Vec::new(),
            deleted: false,
        };
        self.repos.insert(id, repo);
        let existing = self.installations.values().find(|i| i.account == owner).map(|i| i.id);
        let installation = match existing {
            Some(installation) => installation,
            None => {
                let new = self.id();
                let permissions = [
                    ("metadata", Level::Read),
                    ("contents", Level::Write),
                    ("issues", Level::Write),
                    ("pull_requests", Level::Write),
                    ("checks", Level::Write),
                ];
                let permissions = permissions.into_iter().map(|(name, level)| (name.into(), level)).collect();
                let installation = Installation {
                    id: new,
                    account: owner.into(),
                    suspended: false,
                    repos: BTreeSet::new(),
                    permissions,
                };
                self.installations.insert(new, installation);
                new
            }
        };
        self.installations.get_mut(&installation).expect("made above").repos.insert(id);
        id
    }

    /// Takes over what a push changed.
    fn pushed(&mut self, request: &Request, permitted: &git_face::Permitted) {
        let Some(repo) = self.repos.get(&permitted.repo) else { return };
        let (name, heads) = (repo.full_name(), repo.heads());
        let names: BTreeSet<&String> = permitted.heads.keys().chain(heads.keys()).collect();
        for reference in names {
            let (old, new) = (permitted.heads.get(reference), heads.get(reference));
            if old != new {
                let short = |sha: Option<&String>| sha.map_or("none", |sha| &sha[..7]).to_owned();
                let write = Write {
                    at: self.now(),
                    method: request.method.clone(),
                    path: request.path.clone(),
                    summary: format!("push {name} {reference} {}..{}", short(old), short(new)),
                    permissions: BTreeMap::from([("contents".to_owned(), Level::Write)]),
                };
                self.writes.push(write);
                if let Some(new) = new {
                    self.workflow_runs.push(state::WorkflowRun {
                        repo: name.clone(),
                        event: "push",
                        sha: new.clone(),
                        secrets: true,
                    });
                }
            }
        }
        for (base, number) in self.sync_pulls(permitted.repo) {
            self.pull_workflow(base, number);
        }
    }
}

async fn read(request: hyper::Request<Incoming>) -> Result<Request, Closed> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Closed)?.to_bytes();
    let path = parts.uri.path();
    let path = path.strip_prefix("/api/v3").unwrap_or(path).to_owned();
    let raw_query = parts.uri.query().unwrap_or_default().to_owned();
    let headers = parts.headers.iter().map(|(name, value)| {
        (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    });
    Ok(Request {
        method: parts.method.to_string(),
        segments: decoded_segments(&path),
        query: url::form_urlencoded::parse(raw_query.as_bytes()).into_owned().collect(),
        path,
        raw_query,
        headers: headers.collect(),
        body,
    })
}

fn decoded_segments(path: &str) -> Vec<String> {
    path.trim_matches('/').split('/').map(decode).collect()
}

/// Undoes percent-encoding of one segment (`+` is a plus sign there).
fn decode(segment: &str) -> String {
    let bytes = segment.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = segment.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
