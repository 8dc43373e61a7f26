//! Identifiers that cannot be wrong: parsed once at the door, plain strings or integers inside.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A value that does not have the form its type asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` is not a valid {what}")]
pub struct InvalidId {
    pub what: &'static str,
    pub value: String,
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Wraps an id that this program made or read back from its own database.
            pub fn new(value: impl Into<String>) -> Self {
                Self(value.into())
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id!(
    /// One execution of an agent for a task.
    RunId
);
text_id!(
    /// What was asked about one subject.
    TaskId
);
text_id!(
    /// One change to the outside world.
    EffectId
);
text_id!(
    /// A row of the inbox (our id, not the sender's delivery id).
    InboxId
);
text_id!(
    /// One container given to a run; also its name and label at the engine.
    SlotId
);

impl RunId {
    /// The short form shown to people: the last 8 characters (the random end of a UUID v7).
    pub fn short(&self) -> &str {
        let start = self.0.len().saturating_sub(8);
        self.0.get(start..).unwrap_or(&self.0)
    }
}

impl TaskId {
    /// The six characters that make a branch name unique.
    pub fn salt(&self) -> &str {
        let start = self.0.len().saturating_sub(6);
        self.0.get(start..).unwrap_or(&self.0)
    }
}

/// `owner/name` of a repository: each part 1 to 100 of `[A-Za-z0-9._-]`, neither `.` nor `..`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RepoName(String);

impl RepoName {
    pub fn parse(value: &str) -> Result<Self, InvalidId> {
        let invalid =
            || InvalidId { what: "repository name (owner/name)", value: value.chars().take(120).collect() };
        let (owner, name) = value.split_once('/').ok_or_else(invalid)?;
        let fits = |part: &str| {
            !part.is_empty()
                && part.len() <= 100
                && part != "."
                && part != ".."
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        if fits(owner) && fits(name) { Ok(Self(value.to_owned())) } else { Err(invalid()) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn owner(&self) -> &str {
        self.0.split_once('/').map_or("", |(owner, _)| owner)
    }

    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or("", |(_, name)| name)
    }
}

impl TryFrom<String> for RepoName {
    type Error = InvalidId;
    fn try_from(value: String) -> Result<Self, Self::Error> {
        Self::parse(&value)
    }
}

impl From<RepoName> for String {
    fn from(value: RepoName) -> Self {
        value.0
    }
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A full Git object name: 40 lower-case hexadecimal characters (SHA-1 repositories only).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha(String);

impl Sha {
    pub fn parse(value: &str) -> Result<Self, InvalidId> {
        let valid =
            value.len() == 40 && value.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if valid {
            Ok(Self(value.to_owned()))
        } else {
            Err(InvalidId {
                what: "commit id (40 hexadecimal characters)",
                value: value.chars().take(60).collect(),
            })
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first 7 characters, as people write them.
    pub fn short(&self) -> &str {
        self.0.get(..7).unwrap_or(&self.0)
    }
}

impl TryFrom<String> for Sha {
    type Error = InvalidId;
    fn try_from(value: String) -> Result<Self, Self::Error> {
        Self::parse(&value)
    }
}

impl From<Sha> for String {
    fn from(value: Sha) -> Self {
        value.0
    }
}

impl fmt::Display for Sha {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A branch name without `refs/heads/`, as strict as `git check-ref-format --branch` and more:
/// no leading `-`, no control or shell characters, at most 200 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BranchName(String);

impl BranchName {
    pub fn parse(value: &str) -> Result<Self, InvalidId> {
        let allowed =
            |c: char| c.is_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '+' | '#' | '@' | '=');
        let valid = !value.is_empty()
            && value.len() <= 200
            && value.chars().all(allowed)
            && !value.starts_with(['-', '/', '.'])
            && !value.ends_with(['/', '.'])
            && !value.ends_with(".lock")
            && !value.contains("..")
            && !value.contains("//")
            && !value.contains("/.")
            && !value.contains(".lock/")
            && !value.contains("@{")
            && value != "@"
            && value != "HEAD";
        if valid {
            Ok(Self(value.to_owned()))
        } else {
            Err(InvalidId { what: "branch name", value: value.chars().take(80).collect() })
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The full ref, `refs/heads/<name>`.
    pub fn full(&self) -> String {
        format!("refs/heads/{}", self.0)
    }
}

impl TryFrom<String> for BranchName {
    type Error = InvalidId;
    fn try_from(value: String) -> Result<Self, Self::Error> {
        Self::parse(&value)
    }
}

impl From<BranchName> for String {
    fn from(value: BranchName) -> Self {
        value.0
    }
}

impl fmt::Display for BranchName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_names_are_two_plain_parts() {
        assert!(RepoName::parse("octo/hello.world").is_ok());
        for bad in ["", "a", "a/", "/b", "a/b/c", "a/..", "a b/c", "a/\u{e9}", "../x"] {
            assert!(RepoName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn branch_names_cannot_be_options_or_escape_refs() {
        assert!(BranchName::parse("zeblit/7-fix-it-abc123").is_ok());
        assert!(BranchName::parse("feature/ümlaut").is_ok());
        for bad in [
            "", "-f", "a..b", "a b", "a~1", "a^", "a:b", "a?", "a\\b", "x.lock", "a/.b", "@", "a@{1}", "/a",
            "a/",
        ] {
            assert!(BranchName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn commit_ids_are_full_and_lower_case() {
        assert!(Sha::parse(&"a".repeat(40)).is_ok());
        assert!(Sha::parse(&"A".repeat(40)).is_err());
        assert!(Sha::parse("abc").is_err());
    }
}
