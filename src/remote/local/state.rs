//! What the local forge knows besides Git: users, issues, comments, pull requests, checks.

use crate::domain::effect::{CheckRun, MergeMethod, Reaction};
use crate::domain::event::{Actor, ActorKind, Repo};
use crate::domain::ids::{BranchName, RepoName, Sha};
use crate::domain::policy::Role;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// The layout of the files; 1 had no log beside `forge.json`.
pub(super) const STATE_VERSION: u32 = 2;

/// The login of the person who owns everything on this forge.
pub const OWNER_LOGIN: &str = "maintainer";

/// The login of Zeblit's own bot user here.
pub const BOT_LOGIN: &str = "zeblit[bot]";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) version: u32,
    /// How often it was changed.
    #[serde(default)]
    pub(super) changes: u64,
    next_id: i64,
    pub(super) app_id: i64,
    pub(super) bot: i64,
    pub(super) owner: i64,
    pub(super) users: Vec<UserRow>,
    pub(super) repos: Vec<RepoRow>,
}

/// A row that every copy of the state shares with the others until it changes it: copying and comparing states costs a
/// pointer for each row that is the same.
#[derive(Debug)]
pub(super) struct Shared<T>(Arc<T>);

impl<T> From<T> for Shared<T> {
    fn from(row: T) -> Self {
        Self(Arc::new(row))
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Clone> DerefMut for Shared<T> {
    fn deref_mut(&mut self) -> &mut T {
        Arc::make_mut(&mut self.0)
    }
}

impl<T: PartialEq> PartialEq for Shared<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl<T: Serialize> Serialize for Shared<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Shared<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self::from)
    }
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
    pub(super) subjects: Vec<Shared<SubjectRow>>,
    pub(super) checks: Vec<Shared<CheckRow>>,
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
        self.subjects.iter().find(|subject| subject.number == number).map(Deref::deref)
    }

    pub(super) fn subject_mut(&mut self, number: i64) -> Option<&mut SubjectRow> {
        self.subjects.iter_mut().find(|subject| subject.number == number).map(DerefMut::deref_mut)
    }

    pub(super) fn comment(&self, id: i64) -> Option<(&SubjectRow, &CommentRow)> {
        self.subjects
            .iter()
            .flat_map(|subject| subject.comments.iter().map(move |comment| (&**subject, comment)))
            .find(|(_, comment)| comment.id == id)
    }

    pub(super) fn comment_mut(&mut self, id: i64) -> Option<&mut CommentRow> {
        let is_it = |comment: &CommentRow| comment.id == id;
        let subject = self.subjects.iter_mut().find(|subject| subject.comments.iter().any(is_it))?;
        subject.comments.iter_mut().find(|comment| comment.id == id)
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
            changes: 0,
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

    /// Itself with nothing but the rows that `before` has not or has otherwise.
    pub(super) fn since(&self, before: &Self) -> Self {
        let repos = self.repos.iter().filter_map(|row| match before.repo_by_id(row.id) {
            Some(old) if old == row => None,
            Some(old) => Some(RepoRow {
                subjects: differing(&row.subjects, &old.subjects),
                checks: differing(&row.checks, &old.checks),
                ..row.clone()
            }),
            None => Some(row.clone()),
        });
        let users = self.users.iter().filter(|row| before.user(row.id) != Some(*row));
        Self {
            version: self.version,
            changes: self.changes,
            next_id: self.next_id,
            app_id: self.app_id,
            bot: self.bot,
            owner: self.owner,
            users: users.cloned().collect(),
            repos: repos.collect(),
        }
    }

    /// Takes in what `since` gave.
    pub(super) fn take(&mut self, later: Self) {
        let mut users = std::mem::take(&mut self.users);
        put_all(&mut users, later.users, |row| row.id);
        let mut repos = std::mem::take(&mut self.repos);
        for row in later.repos {
            match repos.iter_mut().find(|old| old.id == row.id) {
                Some(old) => {
                    let mut subjects = std::mem::take(&mut old.subjects);
                    put_all(&mut subjects, row.subjects, |row| row.id);
                    let mut checks = std::mem::take(&mut old.checks);
                    put_all(&mut checks, row.checks, |row| row.id);
                    *old = RepoRow { subjects, checks, ..row };
                }
                None => repos.push(row),
            }
        }
        *self = Self { users, repos, ..later };
    }
}

/// Rows that are new or have changed. Rows keep their places.
fn differing<T: PartialEq>(rows: &[Shared<T>], before: &[Shared<T>]) -> Vec<Shared<T>> {
    let changed = rows.iter().enumerate().filter(|(at, row)| before.get(*at) != Some(*row));
    changed.map(|(_, row)| row.clone()).collect()
}

fn put_all<T>(rows: &mut Vec<T>, newer: Vec<T>, id: impl Fn(&T) -> i64) {
    for row in newer {
        match rows.iter_mut().find(|old| id(old) == id(&row)) {
            Some(old) => *old = row,
            None => rows.push(row),
        }
    }
}
