//! `.github/zeblit.toml`: what a repository may say, strict, with defaults that suit one that says nothing.

use super::command::Verb;
use super::egress::{self, AllowList};
use super::node;
use super::policy::{PushMode, Role};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub const PATH: &str = ".github/zeblit.toml";

/// The whole file. Every key is optional; unknown keys are errors that name the line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RepoConfig {
    /// `false` turns the bot off here.
    pub enabled: bool,
    /// The agent of `fix`, `continue` and plain words; `None`: the server's default.
    pub agent: Option<String>,
    pub model: Option<String>,
    /// Container image; must be on the server's allow-list. `None`: the server's default.
    /// `devcontainer`: the `image` of `.devcontainer/devcontainer.json`, put in its place when the file is read.
    pub image: Option<String>,
    /// Verb name to the role it needs, e.g. `fix = "maintain"`.
    pub permissions: BTreeMap<Verb, Role>,
    pub limits: Limits,
    pub gate: GateConfig,
    /// Hosts and bundles that the agent may reach, from what the server permits.
    pub egress: Vec<String>,
    /// What runs ahead of the agent.
    pub setup: Option<Setup>,
    /// Also answer refused people on public repositories (default: silence).
    pub answer_strangers: bool,
    /// How far a result gets; the server's mode wins when it is stricter.
    pub push: PushMode,
    /// Every run is a dry run.
    pub staged: bool,
    /// Patterns of files that are kept beside the commits.
    pub artifacts: Vec<String>,
    /// Issues and pull requests show by a label where their run is.
    pub state_labels: bool,
    /// Who asked is asked for a review of a pull request that is no draft.
    pub request_review: bool,
    /// Our own branch goes when its pull request is merged or closed.
    pub delete_branch: bool,
    /// What a node must have to take a run of this repository.
    pub needs: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Wall clock of one run, minutes; the server's limit wins when it is lower.
    pub minutes: Option<i64>,
    /// Money of one run, micros (written as dollars in the file: `budget = 2.5`).
    pub budget_micros: Option<i64>,
    /// Money of all runs of this repository on one day (UTC), micros.
    pub day_budget_micros: Option<i64>,
    /// Runs of this repository at one time.
    pub runs: Option<i64>,
}

/// What installs what the work needs, in a container of its own on the same workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    pub command: SetupCommand,
    /// As `egress`, for this step only.
    #[serde(default)]
    pub egress: Vec<String>,
    /// Folders below HOME that are kept between runs.
    #[serde(default)]
    pub cache: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SetupCommand {
    Argv(Vec<String>),
    /// The name of a recipe.
    Recipe(String),
}

impl Setup {
    /// For people, on one line.
    pub fn shown(&self) -> String {
        match &self.command {
            SetupCommand::Argv(argv) => super::sanitize::one_line(&argv.join(" "), 80).replace('`', "'"),
            SetupCommand::Recipe(name) => name.clone(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GateConfig {
    /// Paths agents may not touch, besides those that are always protected. `*` within a part, `**` across parts.
    pub protected: Vec<String>,
    pub max_files: i64,
    pub max_lines: i64,
}

impl Default for RepoConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            agent: None,
            model: None,
            image: None,
            permissions: BTreeMap::new(),
            limits: Limits::default(),
            gate: GateConfig::default(),
            egress: Vec::new(),
            setup: None,
            answer_strangers: false,
            push: PushMode::default(),
            staged: false,
            artifacts: Vec::new(),
            state_labels: false,
            request_review: false,
            delete_branch: false,
            needs: Vec::new(),
        }
    }
}

impl Default for GateConfig {
    fn default() -> Self {
        Self { protected: Vec::new(), max_files: 300, max_lines: 20_000 }
    }
}

/// What is wrong with a configuration file, for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{PATH}, line {line}: {problem}")]
pub struct ConfigProblem {
    pub line: usize,
    pub problem: String,
}

/// Largest file that is read, bytes: it is read for each command.
const MAX_BYTES: usize = 64 * 1024;
/// Most path patterns of `gate.protected`: each is tried on each changed path.
const MAX_PATTERNS: usize = 200;
/// Most patterns of `artifacts`.
const MAX_ARTIFACTS: usize = 20;
/// Longest path pattern, bytes.
const MAX_PATTERN_BYTES: usize = 300;

/// Words of `setup.command` and folders of `setup.cache`, and bytes of one.
const MAX_WORDS: usize = 64;
const MAX_WORD_BYTES: usize = 4 * 1024;
const MAX_CACHES: usize = 10;
/// Folders below HOME that are never kept: what is in them configures agents and tools that the agent runs.
const NO_CACHES: &[&str] = &[
    ".claude",
    ".codex",
    ".gemini",
    ".opencode",
    ".config",
    ".local",
    ".zeblit",
    ".ssh",
    ".gnupg",
    ".gitconfig",
];
/// The value of `image` that stands for the devcontainer's.
pub const DEVCONTAINER: &str = "devcontainer";

/// The whole file with every key, as it may be copied. What is not a comment is the default.
pub const EXAMPLE: &str = r#"# Rules of this repository for Zeblit. Read from the default branch only; every key is optional.

# `false` turns the bot off here.
enabled = true
# Also answer people without access (default: silence towards strangers on public repositories).
answer_strangers = false
# The agent of `fix`, `continue` and plain words; the server has a default.
# agent = "fixer"
# model = "claude-sonnet-4-5"
# Must be on the server's list of allowed images.
# image = "ghcr.io/octo/tools:1"
# The word "devcontainer" stands for the image that `.devcontainer/devcontainer.json` names.
# How far a result gets; the server's own mode wins when it is stricter:
# "trusted" pushes the branch at once, "approve-first" waits for `/zeblit ok <commit>` by somebody with write access,
# "fork" pushes to a fork of the bot's account, whose workflows get no secrets.
push = "trusted"
# `true`: every run is a dry run, which shows what would be pushed and pushes nothing.
staged = false
# Files of the workspace that are kept for download beside the commits and stay out of them, in the language of
# `gate.protected`: reports, screenshots, coverage. At most 20 patterns, 100 files of 16 MiB, 64 MiB in all.
artifacts = []
# artifacts = ["coverage/**", "report.html"]
# What the machine must have that works here: capabilities of the server's nodes, as `zeblit nodes` lists them.
needs = []
# needs = ["arm64"]

# `true`: a label on the issue or pull request shows where its run is: zeblit:queued, zeblit:running,
# zeblit:needs-input, zeblit:done.
state_labels = false
# `true`: whoever asked is asked for a review when the pull request is opened as no draft.
request_review = false
# `true`: my own branch is deleted when its pull request is merged or closed, unless it holds other work.
delete_branch = false

# Which role a command needs: read, triage, write, maintain or admin. Commands that start runs, and `cancel`,
# need at least triage.
[permissions]
# fix = "maintain"
# ask = "triage"

# The server's limits win when they are lower.
[limits]
# Wall clock of one run.
# minutes = 30
# US dollars for one run.
# budget = 2.5
# US dollars for all runs of one day (UTC).
# day_budget = 20.0
# Runs at one time.
# runs = 2

# Hosts that agents may reach, from what the server permits: bundles (crates, npm, pypi, go, maven, debian) and
# names of hosts. TLS on port 443 only.
[egress]
allow = []
# allow = ["crates", "registry.example.com"]

# Installs what the work needs, in a container of its own ahead of the agent; the workspace is the same.
[setup]
# Words of a command, or the name of a recipe.
# command = ["npm", "ci"]
# As `egress.allow`, for this step only.
# egress = ["npm"]
# Folders below HOME that are kept between runs of this repository.
# cache = [".npm"]

# What a result may be, besides what is always protected (workflows, CODEOWNERS, files that agents obey).
[gate]
# `*` within a part of a path, `**` across parts; a name without `/` is protected everywhere.
protected = []
# protected = ["infra/**", "*.lock"]
max_files = 300
max_lines = 20000
"#;

/// Every key of the file: what a mistyped one may be meant to be.
const KEYS: &[&str] = &[
    "enabled",
    "agent",
    "model",
    "image",
    "answer_strangers",
    "push",
    "staged",
    "artifacts",
    "state_labels",
    "request_review",
    "delete_branch",
    "needs",
    "permissions",
    "limits",
    "gate",
    "egress",
    "setup",
    "allow",
    "command",
    "cache",
    "minutes",
    "budget",
    "day_budget",
    "runs",
    "protected",
    "max_files",
    "max_lines",
];

/// The reader's message, with the known key that a wrong one resembles most.
fn said(message: &str) -> String {
    let message = message.replace('\n', " ");
    let wrong = message.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`'));
    let near = wrong.and_then(|(wrong, expected)| {
        let wrong: String = wrong.chars().take(40).collect();
        let here = KEYS.iter().filter(|key| expected.contains(&format!("`{key}`")));
        here.map(|key| (super::command::distance(&wrong, key), *key))
            .filter(|(slips, key)| *slips <= 2 && *slips < key.len() / 2)
            .min()
    });
    match near {
        Some((_, key)) => format!("{message}; did you mean `{key}`?"),
        None => message,
    }
}

/// The file as it is written: dollars instead of micros, names as text.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    enabled: Option<bool>,
    agent: Option<toml::Spanned<String>>,
    model: Option<toml::Spanned<String>>,
    image: Option<toml::Spanned<String>>,
    answer_strangers: Option<bool>,
    push: Option<toml::Spanned<String>>,
    staged: Option<bool>,
    artifacts: Vec<toml::Spanned<String>>,
    state_labels: Option<bool>,
    request_review: Option<bool>,
    delete_branch: Option<bool>,
    needs: Vec<toml::Spanned<String>>,
    permissions: BTreeMap<toml::Spanned<String>, toml::Spanned<String>>,
    limits: FileLimits,
    gate: FileGate,
    egress: FileEgress,
    setup: FileSetup,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct FileEgress {
    allow: Vec<toml::Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct FileSetup {
    command: Option<toml::Spanned<FileCommand>>,
    egress: Vec<toml::Spanned<String>>,
    cache: Vec<toml::Spanned<String>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum FileCommand {
    Argv(Vec<String>),
    Recipe(String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct FileLimits {
    minutes: Option<toml::Spanned<i64>>,
    budget: Option<toml::Spanned<Dollars>>,
    day_budget: Option<toml::Spanned<Dollars>>,
    runs: Option<toml::Spanned<i64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct FileGate {
    protected: Vec<toml::Spanned<String>>,
    max_files: Option<toml::Spanned<i64>>,
    max_lines: Option<toml::Spanned<i64>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Dollars {
    Whole(i64),
    Part(f64),
    Text(String),
}

/// Reads the file strictly.
pub fn parse(text: &str) -> Result<RepoConfig, ConfigProblem> {
    let at = |offset: usize| text.get(..offset).map_or(1, |before| before.matches('\n').count() + 1);
    if text.len() > MAX_BYTES {
        return Err(ConfigProblem { line: 1, problem: format!("is larger than {} KiB", MAX_BYTES / 1024) });
    }
    let file: File = toml::from_str(text).map_err(|error| ConfigProblem {
        line: error.span().map_or(1, |span| at(span.start)),
        problem: said(error.message()),
    })?;
    let wrong =
        |span: std::ops::Range<usize>, problem: String| ConfigProblem { line: at(span.start), problem };
    let mut config = RepoConfig {
        enabled: file.enabled.unwrap_or(true),
        answer_strangers: file.answer_strangers.unwrap_or(false),
        staged: file.staged.unwrap_or(false),
        state_labels: file.state_labels.unwrap_or(false),
        request_review: file.request_review.unwrap_or(false),
        delete_branch: file.delete_branch.unwrap_or(false),
        ..RepoConfig::default()
    };
    if let Some(mode) = file.push {
        let known = PushMode::ALL.map(PushMode::name).join(", ");
        config.push = PushMode::parse(mode.get_ref())
            .ok_or_else(|| wrong(mode.span(), format!("`push` must be one of {known}")))?;
    }
    for (key, value, slot) in [
        ("agent", file.agent, &mut config.agent),
        ("model", file.model, &mut config.model),
        ("image", file.image, &mut config.image),
    ] {
        let Some(value) = value else { continue };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '@');
        let text = value.get_ref();
        if text.is_empty() || text.len() > 200 || text.starts_with('-') || !text.chars().all(plain) {
            return Err(wrong(value.span(), format!("`{key}` is not a name I can use")));
        }
        *slot = Some(value.into_inner());
    }
    if let Some(extra) = file.needs.get(node::MAX_CAPABILITIES) {
        return Err(wrong(extra.span(), format!("`needs` has more than {} entries", node::MAX_CAPABILITIES)));
    }
    for need in file.needs {
        if !node::is_capability(need.get_ref()) {
            let problem = "`needs` lists capabilities of nodes, like `arm64`: lower-case letters, digits, `.`, `_`, `-`";
            return Err(wrong(need.span(), problem.into()));
        }
        config.needs.push(need.into_inner());
    }
    for (name, role) in file.permissions {
        let span = name.span();
        let verb =
            super::command::VERBS.iter().find(|info| info.names.first() == Some(&name.get_ref().as_str()));
        let Some(info) = verb else {
            let near = super::command::did_you_mean(name.get_ref())
                .and_then(|near| super::command::VERBS.iter().find(|info| info.names.contains(&near)))
                .map(|info| info.verb.name());
            let hint = near.map_or(String::new(), |near| format!("; did you mean `{near}`?"));
            return Err(wrong(span, format!("there is no command `{}`{hint}", name.get_ref())));
        };
        let Some(wanted) = Role::parse(role.get_ref()) else {
            let known = "read, triage, write, maintain or admin";
            return Err(wrong(role.span(), format!("`{}` is not a role: use {known}", role.get_ref())));
        };
        let floor = match info.verb {
            // Whoever approves code could have pushed it.
            Verb::Ok => Role::Write,
            verb if info.starts_run || verb == Verb::Cancel => Role::Triage,
            _ => Role::Read,
        };
        if wanted < floor {
            let problem =
                format!("`{}` needs at least `{}`: it is not for everybody", name.get_ref(), floor.name());
            return Err(wrong(role.span(), problem));
        }
        config.permissions.insert(info.verb, wanted);
    }
    let number =
        |key: &str, value: Option<toml::Spanned<i64>>, range: std::ops::RangeInclusive<i64>| match value {
            None => Ok(None),
            Some(value) if range.contains(value.get_ref()) => Ok(Some(value.into_inner())),
            Some(value) => {
                let problem = format!("`{key}` must be from {} to {}", range.start(), range.end());
                Err(wrong(value.span(), problem))
            }
        };
    config.limits.minutes = number("limits.minutes", file.limits.minutes, 1..=1440)?;
    config.limits.runs = number("limits.runs", file.limits.runs, 1..=100)?;
    let dollars = |key: &str, value: Option<toml::Spanned<Dollars>>| match value {
        None => Ok(None),
        Some(value) => {
            let text = match value.get_ref() {
                Dollars::Whole(whole) => whole.to_string(),
                Dollars::Part(part) => format!("{part}"),
                Dollars::Text(text) => text.clone(),
            };
            let micros = super::budget::parse_dollars(&text);
            let problem = || wrong(value.span(), format!("`{key}` must be an amount in dollars, like 2.50"));
            micros.map(Some).ok_or_else(problem)
        }
    };
    config.limits.budget_micros = dollars("limits.budget", file.limits.budget)?;
    config.limits.day_budget_micros = dollars("limits.day_budget", file.limits.day_budget)?;
    if let Some(files) = number("gate.max_files", file.gate.max_files, 1..=10_000)? {
        config.gate.max_files = files;
    }
    if let Some(lines) = number("gate.max_lines", file.gate.max_lines, 1..=1_000_000)? {
        config.gate.max_lines = lines;
    }
    let hosts = |key: &str, entries: Vec<toml::Spanned<String>>| {
        let mut list = Vec::new();
        for entry in entries {
            if list.len() == egress::MAX_ENTRIES {
                return Err(wrong(
                    entry.span(),
                    format!("`{key}` has more than {} entries", egress::MAX_ENTRIES),
                ));
            }
            AllowList::new(&[entry.get_ref().clone()]).map_err(|bad| wrong(entry.span(), bad.to_string()))?;
            list.push(entry.into_inner());
        }
        Ok(list)
    };
    config.egress = hosts("egress.allow", file.egress.allow)?;
    let setup_egress = hosts("setup.egress", file.setup.egress)?;
    let cache = caches(file.setup.cache, &wrong)?;
    config.setup = match file.setup.command {
        None => None,
        Some(command) => {
            let span = command.span();
            let command = match command.into_inner() {
                FileCommand::Argv(argv) => {
                    let usable = argv.first().is_some_and(|program| !program.is_empty())
                        && argv.len() <= MAX_WORDS
                        && argv.iter().all(|word| word.len() <= MAX_WORD_BYTES && !word.contains('\0'));
                    if !usable {
                        let problem =
                            format!("`setup.command` needs 1 to {MAX_WORDS} words, like [\"npm\", \"ci\"]");
                        return Err(wrong(span, problem));
                    }
                    SetupCommand::Argv(argv)
                }
                FileCommand::Recipe(name) => {
                    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
                    if name.is_empty() || name.len() > 100 || !name.chars().all(plain) {
                        let problem =
                            "`setup.command` is neither a list of words nor the name of a recipe".into();
                        return Err(wrong(span, problem));
                    }
                    SetupCommand::Recipe(name)
                }
            };
            Some(Setup { command, egress: setup_egress, cache })
        }
    };
    config.gate.protected = patterns("gate.protected", MAX_PATTERNS, file.gate.protected, &wrong)?;
    let everything = file.artifacts.iter().find(|glob| {
        let mut parts = glob.get_ref().trim().split('/').filter(|part| !matches!(*part, "" | "."));
        parts.all(|part| matches!(part, "*" | "**"))
    });
    if let Some(glob) = everything {
        let problem = format!("`{}` means every file: nothing new would be committed", glob.get_ref());
        return Err(wrong(glob.span(), problem));
    }
    config.artifacts = patterns("artifacts", MAX_ARTIFACTS, file.artifacts, &wrong)?;
    Ok(config)
}

/// Path patterns: `*` within a part, `**` across parts.
fn patterns(
    key: &str,
    most: usize,
    globs: Vec<toml::Spanned<String>>,
    wrong: &impl Fn(std::ops::Range<usize>, String) -> ConfigProblem,
) -> Result<Vec<String>, ConfigProblem> {
    let mut list = Vec::new();
    for glob in globs {
        let text = glob.get_ref();
        if list.len() == most {
            return Err(wrong(glob.span(), format!("`{key}` has more than {most} patterns")));
        }
        let odd_part = |part: &str| part == ".." || (part.contains("**") && part != "**");
        if text.trim().trim_matches('/').is_empty()
            || text.starts_with('/')
            || text.contains(|c: char| c == '\\' || c.is_control())
            || text.split('/').any(odd_part)
            || text.len() > MAX_PATTERN_BYTES
        {
            let problem = format!("`{text}` is not a path pattern: use paths from the root, `*` and `**`");
            return Err(wrong(glob.span(), problem));
        }
        list.push(glob.into_inner());
    }
    Ok(list)
}

/// Folders of `setup.cache`: plain paths below HOME, none inside another, none that configures agents.
fn caches(
    paths: Vec<toml::Spanned<String>>,
    wrong: &impl Fn(std::ops::Range<usize>, String) -> ConfigProblem,
) -> Result<Vec<String>, ConfigProblem> {
    let mut list: Vec<String> = Vec::new();
    for path in paths {
        let text = path.get_ref();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        let parts: Vec<&str> = text.split('/').collect();
        let refused = parts.first().is_some_and(|first| {
            NO_CACHES
                .iter()
                .any(|no| first.eq_ignore_ascii_case(no) || first.to_ascii_lowercase().starts_with(".claude"))
        });
        let inside = list.iter().any(|known| {
            text == known || text.starts_with(&format!("{known}/")) || known.starts_with(&format!("{text}/"))
        });
        let odd = text.len() > 200
            || !text.chars().all(plain)
            || parts.iter().any(|part| matches!(*part, "" | "." | ".."));
        if odd || refused || inside || list.len() == MAX_CACHES {
            let problem = format!(
                "`{}` cannot be a cache: use up to {MAX_CACHES} folders below HOME, like `.npm`, none of them an agent's",
                super::sanitize::one_line(text, 80)
            );
            return Err(wrong(path.span(), problem));
        }
        list.push(path.into_inner());
    }
    Ok(list)
}

/// The `image` of a `devcontainer.json`; nothing else of the file is used. `Err`: why there is none.
pub fn devcontainer_image(text: &str) -> Result<String, &'static str> {
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        image: Option<String>,
    }
    if text.len() > MAX_BYTES {
        return Err("is too large");
    }
    let file: File = serde_json::from_str(&plain_json(text)).map_err(|_| "is not JSON with comments")?;
    let image = file.image.ok_or("names no `image`")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '@');
    if image.is_empty() || image.len() > 200 || image.starts_with('-') || !image.chars().all(plain) {
        return Err("names an `image` that I cannot use");
    }
    Ok(image)
}

/// JSON without comments and without commas before a closing bracket.
fn plain_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.trim_start_matches('\u{feff}').chars().peekable();
    // Where the last comma stands in `out`, while only blanks have followed it.
    let mut comma = None;
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                comma = None;
                out.push(c);
                while let Some(c) = chars.next() {
                    out.push(c);
                    match c {
                        '\\' => out.extend(chars.next()),
                        '"' => break,
                        _ => {}
                    }
                }
            }
            '/' if chars.next_if_eq(&'/').is_some() => while chars.next_if(|c| *c != '\n').is_some() {},
            '/' if chars.next_if_eq(&'*').is_some() => {
                let mut last = ' ';
                for c in chars.by_ref() {
                    if last == '*' && c == '/' {
                        break;
                    }
                    last = c;
                }
                out.push(' ');
            }
            ',' => {
                comma = Some(out.len());
                out.push(c);
            }
            '}' | ']' => {
                if let Some(at) = comma.take() {
                    out.replace_range(at..=at, " ");
                }
                out.push(c);
            }
            c => {
                if !c.is_whitespace() {
                    comma = None;
                }
                out.push(c);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn egress_takes_bundles_and_hosts_and_names_the_line_of_anything_else() {
        let config = parse("[egress]\nallow = [\"crates\", \"mirror.example.com\"]").unwrap();
        assert_eq!(config.egress, ["crates", "mirror.example.com"]);
        refused("[egress]\nallow = [\n\"crates\",\n\"10.0.0.1\"]", 4, "neither a bundle (crates, npm");
        refused("[setup]\negress = [\"*.example.com\"]", 2, "neither a bundle");
        refused("[egress]\nallwo = []", 2, "did you mean `allow`?");
    }

    #[test]
    fn a_setup_is_words_or_a_recipe_with_caches_below_home() {
        let config = parse(
            "[setup]\ncommand = [\"npm\", \"ci\"]\negress = [\"npm\"]\ncache = [\".npm\", \".cargo/registry\"]",
        );
        let setup = config.unwrap().setup.unwrap();
        assert_eq!(setup.command, SetupCommand::Argv(vec!["npm".into(), "ci".into()]));
        assert_eq!((setup.shown().as_str(), setup.cache.len()), ("npm ci", 2));
        let recipe = parse("[setup]\ncommand = \"install\"").unwrap().setup.unwrap();
        assert_eq!(recipe.command, SetupCommand::Recipe("install".into()));
        assert_eq!(parse("[setup]\negress = [\"npm\"]").unwrap().setup, None);
        for bad in ["[]", "[\"\"]", "\"npm ci\"", "\"\"", "3"] {
            refused(&format!("[setup]\ncommand = {bad}"), 2, "");
        }
        for bad in [
            "",
            "/etc",
            "../x",
            "a/../b",
            ".claude",
            ".claude.json",
            ".Claude/x",
            ".config/git",
            ".local/bin",
            "a b",
        ] {
            refused(&format!("[setup]\ncommand = [\"x\"]\ncache = [\"{bad}\"]"), 3, "cannot be a cache");
        }
        refused("[setup]\ncache = [\".npm\", \".npm/x\"]", 2, "cannot be a cache");
    }

    #[test]
    fn the_image_of_a_devcontainer_is_read_past_comments() {
        let text = "// made by hand\n{\n  /* \"image\": \"evil:1\", */\n  \"name\": \"a // b, }\\\" /*\",\n  \"image\": \"mcr.example/base:1\", // the base\n  \"features\": { \"x\": [1, 2,], },\n}\n";
        assert_eq!(devcontainer_image(text).as_deref(), Ok("mcr.example/base:1"));
        for (text, problem) in [
            ("{\"build\": {\"dockerfile\": \"Dockerfile\"}}", "names no `image`"),
            ("{\"image\": \"a b\"}", "names an `image` that I cannot use"),
            ("{\"image\": 3}", "is not JSON with comments"),
            ("image: x", "is not JSON with comments"),
            ("{\"image\": \"x\"", "is not JSON with comments"),
        ] {
            assert_eq!(devcontainer_image(text), Err(problem), "{text}");
        }
    }

    #[track_caller]
    fn refused(text: &str, line: usize, part: &str) {
        let problem = parse(text).expect_err(text);
        assert_eq!(problem.line, line, "{problem} of {text:?}");
        assert!(problem.problem.contains(part), "{problem} of {text:?}");
        assert!(!problem.problem.contains('\n'), "{problem:?}");
    }

    #[test]
    fn the_example_is_the_default_and_so_is_an_empty_file() {
        assert_eq!(parse(EXAMPLE), Ok(RepoConfig::default()));
        assert_eq!(parse(""), Ok(RepoConfig::default()));
        assert_eq!(parse("\u{feff}# a mark of an editor\n"), Ok(RepoConfig::default()));
    }

    #[test]
    fn the_example_names_every_key_and_each_of_them_can_be_turned_on() {
        for key in KEYS {
            assert!(EXAMPLE.contains(&format!("{key} =")) || EXAMPLE.contains(&format!("[{key}]")), "{key}");
        }
        let on: String = EXAMPLE
            .lines()
            .filter(|line| {
                !matches!(*line, "protected = []" | "allow = []" | "artifacts = []" | "needs = []")
            })
            .map(|line| match line.strip_prefix("# ") {
                Some(code) if code.contains(" = ") => format!("{code}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        let config = parse(&on).unwrap();
        assert_eq!(config.agent.as_deref(), Some("fixer"));
        assert_eq!(config.model.as_deref(), Some("claude-sonnet-4-5"));
        assert_eq!(config.image.as_deref(), Some("ghcr.io/octo/tools:1"));
        assert_eq!(
            config.permissions,
            BTreeMap::from([(Verb::Fix, Role::Maintain), (Verb::Ask, Role::Triage)])
        );
        let limits = Limits {
            minutes: Some(30),
            budget_micros: Some(2_500_000),
            day_budget_micros: Some(20_000_000),
            runs: Some(2),
        };
        assert_eq!(config.limits, limits);
        assert_eq!(config.gate.protected, ["infra/**", "*.lock"]);
        assert_eq!(config.artifacts, ["coverage/**", "report.html"]);
        assert_eq!(config.needs, ["arm64"]);
        assert_eq!(config.egress, ["crates", "registry.example.com"]);
        let setup = config.setup.unwrap();
        assert_eq!(
            (setup.shown().as_str(), setup.egress, setup.cache),
            ("npm ci", vec!["npm".into()], vec![".npm".into()])
        );
    }

    #[test]
    fn a_budget_is_a_number_or_a_text() {
        for (written, micros) in [
            ("2.5", 2_500_000),
            ("3", 3_000_000),
            ("\"0.42\"", 420_000),
            ("\"$1\"", 1_000_000),
            ("0.1", 100_000),
        ] {
            let config = parse(&format!("[limits]\nbudget = {written}")).unwrap();
            assert_eq!(config.limits.budget_micros, Some(micros), "{written}");
        }
        for bad in ["0", "-1", "nan", "inf", "1e300", "0.0000001", "\"lots\"", "\"\"", "2000000"] {
            refused(&format!("[limits]\nbudget = {bad}"), 2, "`limits.budget` must be an amount");
        }
        refused("[limits]\nbudget = true", 2, "");
    }

    #[test]
    fn unknown_keys_name_their_line_and_the_key_that_is_meant() {
        refused("enabled = true\nagnet = \"x\"", 2, "did you mean `agent`?");
        refused("[limits]\n\nminuets = 3", 3, "did you mean `minutes`?");
        refused("[gate]\nmax_fils = 3", 2, "did you mean `max_files`?");
        refused("[permision]\nfix = \"write\"", 1, "did you mean `permissions`?");
        refused("colour = 3", 1, "unknown field `colour`");
        refused("push = \"approve\"", 1, "`push` must be one of trusted, approve-first, fork");
        // Known elsewhere is not known here.
        refused("minutes = 3", 1, "unknown field `minutes`");
        refused("[limits]\nbudget_micros = 3", 2, "unknown field");
        assert!(!parse("colour = 3").unwrap_err().problem.contains("did you mean"));
    }

    #[test]
    fn a_permission_names_a_command_and_a_role_not_below_its_floor() {
        refused("[permissions]\nfxi = \"write\"", 2, "did you mean `fix`?");
        refused("[permissions]\nstpo = \"write\"", 2, "did you mean `cancel`?");
        refused("[permissions]\ndeploy = \"write\"", 2, "there is no command `deploy`");
        refused("[permissions]\nstop = \"write\"", 2, "there is no command `stop`");
        refused("[permissions]\nfix = \"owner\"", 2, "`owner` is not a role");
        refused("[permissions]\nfix = 3", 2, "");
        for info in super::super::command::VERBS {
            let with =
                |role: &str| parse(&format!("[permissions]\n{} = \"{role}\"", quoted(info.verb.name())));
            let approves = info.verb == Verb::Ok;
            assert!(with("admin").is_ok() && with("triage").is_ok() != approves, "{:?}", info.verb);
            assert!(with("none").is_err(), "{:?}", info.verb);
            let guarded = approves || info.starts_run || info.verb == Verb::Cancel;
            assert_eq!(with("read").is_err(), guarded, "{:?}", info.verb);
        }
    }

    fn quoted(name: &str) -> String {
        format!("\"{name}\"")
    }

    #[test]
    fn numbers_stay_in_their_range() {
        for (section, key, least, most) in [
            ("limits", "minutes", 1, 1_440),
            ("limits", "runs", 1, 100),
            ("gate", "max_files", 1, 10_000),
            ("gate", "max_lines", 1, 1_000_000),
        ] {
            let with = |value: i64| format!("[{section}]\n{key} = {value}");
            assert!(parse(&with(least)).is_ok() && parse(&with(most)).is_ok(), "{key}");
            for bad in [least - 1, most + 1, i64::MIN, i64::MAX] {
                refused(&with(bad), 2, &format!("`{section}.{key}` must be from {least} to {most}"));
            }
            refused(&format!("[{section}]\n{key} = \"3\""), 2, "");
        }
    }

    #[test]
    fn names_and_patterns_are_plain() {
        for key in ["agent", "model", "image"] {
            for bad in ["", "-x", "a b", "a\\nb", "a;b", "$(x)", "ü", &"x".repeat(201)] {
                refused(&format!("{key} = \"{bad}\""), 1, "is not a name I can use");
            }
            assert!(parse(&format!("{key} = \"registry.x/y-z_1:2@sha256:ab\"")).is_ok());
        }
        for bad in
            ["", " ", "/", "/etc", "a\\\\b", "a/../b", "..", "a**", "a/**b/c", &"x".repeat(301), "a\\u0007"]
        {
            refused(&format!("[gate]\nprotected = [\"ok\",\n\"{bad}\"]"), 3, "is not a path pattern");
        }
        for good in ["infra", "infra/", "infra/**", "**/*.lock", "*.pem", "a/*/b", "Ünïcode/*", ".env*"] {
            assert!(parse(&format!("[gate]\nprotected = [\"{good}\"]")).is_ok(), "{good}");
        }
        let many = vec!["\"a\""; MAX_PATTERNS + 1].join(",");
        refused(&format!("[gate]\nprotected = [{many}]"), 2, "more than 200 patterns");
        refused(&format!("artifacts = [{many}]"), 1, "`artifacts` has more than 20 patterns");
        refused("artifacts = [\"a\",\n\"../b\"]", 2, "is not a path pattern");
        for everything in ["*", "**", "**/*", "*/", " ** "] {
            refused(&format!("artifacts = [\"{everything}\"]"), 1, "means every file");
        }
    }

    #[test]
    fn what_is_no_toml_names_its_line() {
        refused("enabled = true\nenabled = false", 2, "duplicate key");
        refused("enabled = yes", 1, "");
        refused("a\n", 1, "");
        refused("enabled = true\n\n[limits\n", 3, "");
        refused("enabled = \"yes\"", 1, "invalid type");
        refused(&"#".repeat(MAX_BYTES + 1), 1, "is larger than 64 KiB");
    }

    #[test]
    fn a_stored_configuration_reads_back() {
        let config = parse("agent = \"a\"\n[permissions]\nfix = \"admin\"\n[limits]\nbudget = 1.25").unwrap();
        let stored = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<RepoConfig>(&stored).unwrap(), config);
    }

    #[test]
    fn arrays_that_nest_without_end_do_no_harm() {
        let deep = format!("a = {}", "[".repeat(60_000));
        assert!(parse(&deep).is_err());
        assert!(parse(&format!("a = {}", "{a = ".repeat(10_000))).is_err());
        assert!(parse(&format!("[{}]", vec!["a"; 20_000].join("."))).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".*", at: usize) {
            let _ = parse(&text);
            let mut broken = EXAMPLE.replace("# ", "");
            let mut at = at % broken.len();
            while !broken.is_char_boundary(at) { at -= 1; }
            broken.insert_str(at, &text);
            if let Err(problem) = parse(&broken) {
                prop_assert!(problem.line >= 1 && problem.line <= broken.lines().count() + 1);
            }
        }
    }
}
