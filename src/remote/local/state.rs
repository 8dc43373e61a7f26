//! What the local forge knows besides Git: users, issues, comments, pull requests, checks; one JSON file.

use crate::domain::effect::{CheckRun, MergeMethod, Reaction};
use crate::domain::event::{Actor, ActorKind, Repo};
use crate::domain::ids::{BranchName, RepoName, Sha};
use crate::domain::policy::Role;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

/// The layout of `forge.json`; another number means another program version wrote it.
const STATE_VERSION: u32 = 1;

/// Bytes of `forge.json` that are read at start: far above any demo, far below the machine's memory.
const MAX_STATE_BYTES: u64 = 256 * 1024 * 1024;

/// The login of the person who owns everything on this forge.
pub const OWNER_LOGIN: &str = "maintainer";

/// The login of Zeblit's own bot user here.
pub const BOT_LOGIN: &str = "zeblit[bot]";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    version: u32,
    next_id: i64,
    pub(super) app_id: i64,
    pub(super) bot: i64,
    pub(super) owner: i64,
    pub(super) users: Vec<UserRow>,
    pub(super) repos: Vec<RepoRow>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct UserRow {
    pub(super) id: i64,
    pub(super) login: String,
    pub(super) kind: ActorKind,
}

impl UserRow {
    pub(super) fn actor(&self) -> Actor {
        Actor { id: self.id, login: self.login.clone(), kind: self.kind }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct RepoRow {
    pub(super) id: i64,
    pub(super) name: RepoName,
    pub(super) description: String,
    pub(super) private: bool,
    pub(super) default_branch: BranchName,
    /// Roles of users other than the owner (admin) and the bot (write).
    pub(super) roles: BTreeMap<i64, Role>,
    pub(super) next_number: i64,
    pub(super) subjects: Vec<SubjectRow>,
    pub(super) checks: Vec<CheckRow>,
    pub(super) created_at: DateTime<Utc>,
    /// The repository that it is a fork of.
    #[serde(default)]
    pub(super) fork_of: Option<i64>,
}

impl RepoRow {
    pub(super) fn repo(&self) -> Repo {
        Repo { id: self.id, name: self.name.clone(), installation: 0, private: self.private }
    }

    pub(super) fn subject(&self, number: i64) -> Option<&SubjectRow> {
        self.subjects.iter().find(|subject| subject.number == number)
    }

    pub(super) fn subject_mut(&mut self, number: i64) -> Option<&mut SubjectRow> {
        self.subjects.iter_mut().find(|subject| subject.number == number)
    }

    pub(super) fn comment(&self, id: i64) -> Option<(&SubjectRow, &CommentRow)> {
        self.subjects
            .iter()
            .flat_map(|subject| subject.comments.iter().map(move |comment| (subject, comment)))
            .find(|(_, comment)| comment.id == id)
    }

    pub(super) fn comment_mut(&mut self, id: i64) -> Option<&mut CommentRow> {
        self.subjects
            .iter_mut()
            .flat_map(|subject| subject.comments.iter_mut())
            .find(|comment| comment.id == id)
    }
}

/// An issue or a pull request: they share numbers, as on GitHub.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct SubjectRow {
    pub(super) id: i64,
    pub(super) number: i64,
    pub(super) title: String,
    pub(super) body: String,
    pub(super) author: i64,
    pub(super) open: bool,
    pub(super) created_at: DateTime<Utc>,
    pub(super) updated_at: DateTime<Utc>,
    pub(super) closed_at: Option<DateTime<Utc>>,
    pub(super) reactions: Vec<ReactionRow>,
    pub(super) comments: Vec<CommentRow>,
    pub(super) reviews: Vec<ReviewRow>,
    pub(super) pull: Option<PullRow>,
    #[serde(default)]
    pub(super) labels: Vec<String>,
    /// Logins of people; they need no account here.
    #[serde(default)]
    pub(super) assignees: Vec<String>,
    #[serde(default)]
    pub(super) reviewers: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct PullRow {
    pub(super) head: BranchName,
    /// The fork that the head lives in.
    #[serde(default)]
    pub(super) fork: Option<i64>,
    pub(super) base: BranchName,
    pub(super) draft: bool,
    pub(super) merged: bool,
    /// The head when the pull request was opened or closed: shown when the branch is gone.
    pub(super) head_seen: Sha,
    pub(super) base_seen: Sha,
    /// Waits to be merged by itself. Nothing here does so: only the wish is kept.
    #[serde(default)]
    pub(super) auto_merge: Option<MergeMethod>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct CommentRow {
    pub(super) id: i64,
    pub(super) author: i64,
    pub(super) body: String,
    pub(super) created_at: DateTime<Utc>,
    pub(super) updated_at: DateTime<Utc>,
    /// Folded away as outdated.
    pub(super) minimised: bool,
    pub(super) reactions: Vec<ReactionRow>,
    /// Set on comments on a line of a pull request.
    pub(super) place: Option<PlaceRow>,
    /// Its thread is done with; on the first comment of one.
    #[serde(default)]
    pub(super) resolved: bool,
    /// The review that it came with.
    #[serde(default)]
    pub(super) review: Option<i64>,
}

/// Where a review comment stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct PlaceRow {
    pub(super) path: String,
    pub(super) line: Option<i64>,
    pub(super) commit: Sha,
    pub(super) diff_hunk: String,
    /// The first comment of its thread, when it is not the first itself.
    pub(super) reply_to: Option<i64>,
}

/// A submitted review with its body.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ReviewRow {
    pub(super) id: i64,
    pub(super) author: i64,
    pub(super) body: String,
    pub(super) created_at: DateTime<Utc>,
    pub(super) reactions: Vec<ReactionRow>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ReactionRow {
    pub(super) id: i64,
    pub(super) user: i64,
    pub(super) reaction: Reaction,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct CheckRow {
    pub(super) id: i64,
    pub(super) run: CheckRun,
    pub(super) updated_at: DateTime<Utc>,
    /// Set on checks that a program of the repository's owner reported; ours have none.
    #[serde(default)]
    pub(super) reported: Option<ReportRow>,
}

/// What only a reported check has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ReportRow {
    pub(super) log: String,
}

impl State {
    /// A forge with its owner and its bot, and nothing else.
    pub(super) fn new() -> Self {
        let mut state = Self {
            version: STATE_VERSION,
            next_id: 1,
            app_id: 0,
            bot: 0,
            owner: 0,
            users: Vec::new(),
            repos: Vec::new(),
        };
        state.app_id = state.new_id();
        state.bot = state.add_user(BOT_LOGIN, ActorKind::Bot);
        state.owner = state.add_user(OWNER_LOGIN, ActorKind::User);
        state
    }

    pub(super) fn new_id(&mut self) -> i64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    pub(super) fn add_user(&mut self, login: &str, kind: ActorKind) -> i64 {
        let id = self.new_id();
        self.users.push(UserRow { id, login: login.to_owned(), kind });
        id
    }

    pub(super) fn user(&self, id: i64) -> Option<&UserRow> {
        self.users.iter().find(|user| user.id == id)
    }

    /// The user as events name it; somebody who is gone is GitHub's `ghost`.
    pub(super) fn actor(&self, id: i64) -> Actor {
        self.user(id)
            .map_or_else(|| Actor { id, login: "ghost".to_owned(), kind: ActorKind::User }, UserRow::actor)
    }

    /// By id, which survives a rename; by name when the caller has no id (0).
    pub(super) fn repo(&self, wanted: &Repo) -> Option<&RepoRow> {
        self.repos.iter().find(|row| row.id == wanted.id).or_else(|| {
            (wanted.id == 0).then(|| self.repos.iter().find(|row| row.name == wanted.name)).flatten()
        })
    }

    pub(super) fn repo_mut(&mut self, wanted: &Repo) -> Option<&mut RepoRow> {
        let id = self.repo(wanted)?.id;
        self.repos.iter_mut().find(|row| row.id == id)
    }

    pub(super) fn repo_by_id(&self, id: i64) -> Option<&RepoRow> {
        self.repos.iter().find(|row| row.id == id)
    }

    pub(super) fn repo_named(&self, name: &RepoName) -> Option<&RepoRow> {
        self.repos.iter().find(|row| &row.name == name)
    }

    /// Reads the file; `None` when there is none yet.
    pub(super) fn load(file: &Path) -> io::Result<Option<Self>> {
        let opened = match File::open(file) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        opened.take(MAX_STATE_BYTES + 1).read_to_end(&mut bytes)?;
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_STATE_BYTES {
            return Err(io::Error::other(format!(
                "it is larger than {MAX_STATE_BYTES} bytes: move the folder away to begin anew"
            )));
        }
        let state: Self = serde_json::from_slice(&bytes).map_err(|error| {
            io::Error::other(format!("it is not a state file of the local forge: {error}"))
        })?;
        if state.version != STATE_VERSION {
            return Err(io::Error::other(format!(
                "it has layout {} and this program knows {STATE_VERSION}: move the folder away to begin anew",
                state.version
            )));
        }
        Ok(Some(state))
    }

    /// Replaces the file in one step: after a crash there is the old one or the new one, whole.
    pub(super) fn save(&self, file: &Path) -> io::Result<()> {
        let folder = file.parent().ok_or_else(|| io::Error::other("the state file has no folder"))?;
        let bytes = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        let aside = file.with_extension("json.new");
        let mut written = File::create(&aside)?;
        written.write_all(&bytes)?;
        written.sync_all()?;
        fs::rename(&aside, file)?;
        File::open(folder)?.sync_all()
    }
}
