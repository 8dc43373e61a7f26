//! A task: what was asked about one subject. It owns the branch, the pull request and the conversation.

use super::event::{Repo, SubjectKind};
use super::ids::{BranchName, TaskId};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    pub id: TaskId,
    pub remote: String,
    pub repo: Repo,
    pub kind: SubjectKind,
    pub number: i64,
    pub title: String,
    /// Our own branch, once a run has pushed it; `None` on tasks about somebody's pull request.
    pub branch: Option<BranchName>,
    /// The pull request we opened for an issue.
    pub pull_number: Option<i64>,
    pub pull_url: Option<String>,
    pub created_at: DateTime<Utc>,
    /// Set when the issue or the pull request was closed: the next command starts a new task.
    pub closed_at: Option<DateTime<Utc>>,
}

/// `zeblit/<number>-<slug>-<salt>`; the slug is 1 to 30 of `[a-z0-9-]` made from the title.
pub fn branch_name(number: i64, title: &str, task: &TaskId) -> BranchName {
    let mut slug = String::new();
    for c in title.chars().flat_map(char::to_lowercase) {
        if c.is_ascii_alphanumeric() {
            slug.push(c);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
        if slug.len() >= 30 {
            break;
        }
    }
    let slug = slug.trim_matches('-');
    let slug = if slug.is_empty() { "change" } else { slug };
    let salt: String =
        task.salt().chars().filter(char::is_ascii_alphanumeric).flat_map(char::to_lowercase).collect();
    BranchName::parse(&format!("zeblit/{number}-{slug}-{salt}"))
        .expect("made only of digits, lower-case letters and single dashes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branch_names_hold_only_plain_characters() {
        let task = TaskId::new("0192-abcdef");
        assert_eq!(
            branch_name(7, "Crash: `foo()` in Ünïcode / --force", &task).as_str(),
            "zeblit/7-crash-foo-in-n-code-force-abcdef"
        );
        assert_eq!(branch_name(8, "日本語", &task).as_str(), "zeblit/8-change-abcdef");
        assert_eq!(
            branch_name(9, &"x".repeat(90), &task).as_str(),
            format!("zeblit/9-{}-abcdef", "x".repeat(30))
        );
    }
}
