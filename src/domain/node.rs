//! A node: one server process of an installation; what it does, and what its machine can.

use serde::{Deserialize, Serialize};

/// A capability's longest name, bytes.
const MAX_CAPABILITY_BYTES: usize = 40;
/// Most capabilities of a node, and needs of a run.
pub const MAX_CAPABILITIES: usize = 20;

/// What a process does of the whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything, on one machine.
    #[default]
    All,
    /// Webhooks, API and run pages.
    Web,
    /// Agents in their containers, and what they leave: imported, checked, pushed.
    Worker,
    /// Deliveries become runs; comments, checks and pull requests are written.
    Deliver,
}

impl Role {
    pub const ALL: [Role; 4] = [Role::All, Role::Web, Role::Worker, Role::Deliver];

    pub fn as_str(self) -> &'static str {
        match self {
            Role::All => "all",
            Role::Web => "web",
            Role::Worker => "worker",
            Role::Deliver => "deliver",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }

    /// Listens for webhooks and shows pages.
    pub fn serves_web(self) -> bool {
        matches!(self, Role::All | Role::Web)
    }

    /// Claims runs and has containers.
    pub fn works(self) -> bool {
        matches!(self, Role::All | Role::Worker)
    }

    /// Reads the inbox and writes to the forge.
    pub fn delivers(self) -> bool {
        matches!(self, Role::All | Role::Deliver)
    }

    /// Speaks with the forge as the App.
    pub fn is_the_app(self) -> bool {
        self.works() || self.delivers()
    }
}

/// Who a process is to the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The same at each start on the same state directory.
    pub id: String,
    /// For people.
    pub name: String,
    pub role: Role,
    /// What runs may need: sorted, each once.
    pub capabilities: Vec<String>,
}

/// The node of an owner of leases and duties, which is `NODE:BOOT`; nothing for one that names none.
pub fn node_of(owner: &str) -> &str {
    owner.rsplit_once(':').map_or("", |(node, _)| node)
}

/// Whether a word may name a capability: lower-case letters, digits, `.`, `_` and `-`.
pub fn is_capability(word: &str) -> bool {
    (1..=MAX_CAPABILITY_BYTES).contains(&word.len())
        && word
            .bytes()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'_' | b'-'))
}

/// Two lists of capabilities as one: sorted, each once.
pub fn union(some: &[String], more: &[String]) -> Vec<String> {
    let all: std::collections::BTreeSet<&String> = some.iter().chain(more).collect();
    all.into_iter().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_read_back_and_all_is_the_sum_of_the_others() {
        for role in Role::ALL {
            assert_eq!(Role::parse(role.as_str()), Some(role));
        }
        let parts = |does: fn(Role) -> bool| Role::ALL.into_iter().skip(1).filter(|role| does(*role)).count();
        for does in [Role::serves_web, Role::works, Role::delivers] {
            assert!(does(Role::All));
            assert_eq!(parts(does), 1);
        }
    }

    #[test]
    fn an_owner_names_its_node() {
        assert_eq!(node_of("n1:b1"), "n1");
        assert_eq!(node_of("b1"), "");
    }

    #[test]
    fn capabilities_are_plain_words() {
        for good in ["arm64", "gpu.a100", "big_disk", "x"] {
            assert!(is_capability(good), "{good}");
        }
        for bad in ["", "ARM64", "a b", "ä", &"x".repeat(41)] {
            assert!(!is_capability(bad), "{bad}");
        }
        let list = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(union(&list(&["b", "a"]), &list(&["c", "a"])), ["a", "b", "c"]);
    }
}
