//! Who may do what: roles and the fail-closed answer to "may this person use this verb here".

use serde::{Deserialize, Serialize};

/// A person's live role in a repository (GitHub's `role_name`), in rising order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    None,
    Read,
    Triage,
    Write,
    Maintain,
    Admin,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::None => "none",
            Role::Read => "read",
            Role::Triage => "triage",
            Role::Write => "write",
            Role::Maintain => "maintain",
            Role::Admin => "admin",
        }
    }

    /// The built-in role of this name. A custom role's name gives `None`: use its base role
    /// (`permission` of the same answer) or deny.
    pub fn parse(name: &str) -> Option<Self> {
        [Role::None, Role::Read, Role::Triage, Role::Write, Role::Maintain, Role::Admin]
            .into_iter()
            .find(|role| role.name() == name)
    }
}

/// How far the result of a run gets without another look by a person; a later one is stricter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PushMode {
    /// The branch is pushed to the repository at once: its workflows run with the repository's secrets.
    #[default]
    Trusted,
    /// Nothing is pushed before somebody with write access has seen the change and typed `/zeblit ok`.
    ApproveFirst,
    /// The branch is pushed to a fork that the bot's account owns: its workflows get no secrets.
    Fork,
}

impl PushMode {
    pub const ALL: [PushMode; 3] = [PushMode::Trusted, PushMode::ApproveFirst, PushMode::Fork];

    pub fn name(self) -> &'static str {
        match self {
            PushMode::Trusted => "trusted",
            PushMode::ApproveFirst => "approve-first",
            PushMode::Fork => "fork",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

use super::command::{VERBS, Verb};
use super::repo_config::RepoConfig;

/// The role a verb needs in this repository.
pub fn required_role(verb: Verb, config: &RepoConfig) -> Role {
    config.permissions.get(&verb).copied().unwrap_or(verb.info().default_role)
}

/// The answer to "may this person use this verb here".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    Granted,
    /// Said aloud, with the rule.
    Refused {
        needs: Role,
    },
    /// Not answered at all: strangers on public repositories must not make the bot talk.
    Silent,
}

/// Decides by live role. People without any triage right on a public repository get silence.
pub fn permission(verb: Verb, role: Role, private: bool, config: &RepoConfig) -> Permission {
    let needs = required_role(verb, config);
    if role >= needs {
        Permission::Granted
    } else if role < Role::Triage && !private && !config.answer_strangers {
        Permission::Silent
    } else {
        Permission::Refused { needs }
    }
}

/// Whether anything this person says here is answered.
pub fn is_heard(role: Role, private: bool, config: &RepoConfig) -> bool {
    role >= Role::Triage
        || private
        || config.answer_strangers
        || VERBS.iter().any(|info| role >= required_role(info.verb, config))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLES: [Role; 6] = [Role::None, Role::Read, Role::Triage, Role::Write, Role::Maintain, Role::Admin];

    #[test]
    fn verbs_that_start_runs_need_write_and_the_rest_needs_triage() {
        let config = RepoConfig::default();
        for info in VERBS {
            for role in ROLES {
                let guarded = info.starts_run || matches!(info.verb, Verb::Cancel | Verb::Ok);
                let needs = if guarded { Role::Write } else { Role::Triage };
                let granted = permission(info.verb, role, true, &config) == Permission::Granted;
                assert_eq!(granted, role >= needs, "{:?} as {role:?}", info.verb);
            }
        }
    }

    #[test]
    fn strangers_get_silence_on_public_repositories_only() {
        let config = RepoConfig::default();
        assert_eq!(permission(Verb::Fix, Role::Read, false, &config), Permission::Silent);
        assert_eq!(permission(Verb::Fix, Role::None, false, &config), Permission::Silent);
        assert_eq!(
            permission(Verb::Fix, Role::Read, true, &config),
            Permission::Refused { needs: Role::Write }
        );
        assert_eq!(
            permission(Verb::Fix, Role::Triage, false, &config),
            Permission::Refused { needs: Role::Write }
        );
        let loud = RepoConfig { answer_strangers: true, ..RepoConfig::default() };
        assert_eq!(
            permission(Verb::Fix, Role::None, false, &loud),
            Permission::Refused { needs: Role::Write }
        );
    }

    #[test]
    fn the_repository_can_ask_for_more() {
        let mut config = RepoConfig::default();
        config.permissions.insert(Verb::Fix, Role::Maintain);
        assert_eq!(
            permission(Verb::Fix, Role::Write, false, &config),
            Permission::Refused { needs: Role::Maintain }
        );
        assert_eq!(permission(Verb::Fix, Role::Maintain, false, &config), Permission::Granted);
    }
}
