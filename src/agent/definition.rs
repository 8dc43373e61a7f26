//! `agents/*.md` and `skills/*/SKILL.md`: front matter and body, and the set of them that a run may use.

use super::adapter::{self, AgentError, builtin, claude, command};
use super::{AdapterKind, AgentSpec, Skill};
use crate::domain::node;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Bytes of one agent or skill file: far more than a prompt should have.
pub const MAX_FILE_BYTES: usize = 128 * 1024;
/// Files read from one folder.
pub const MAX_FILES: usize = 500;
/// Characters of a name of an agent or skill.
pub const MAX_NAME_CHARS: usize = 50;
/// Characters of a description: it is one line of help.
pub const MAX_DESCRIPTION_CHARS: usize = 1024;
/// Elements of `argv`, `tools` and `skills`.
pub const MAX_LIST: usize = 100;
/// Wall clock that an agent may ask for, minutes (a day).
pub const MAX_MINUTES: i64 = 24 * 60;
/// Dollars that an agent may ask for; the server's own limit is lower.
pub const MAX_BUDGET_DOLLARS: f64 = 10_000.0;

/// Where a repository keeps its own agents.
pub const REPOSITORY_AGENTS: &str = ".github/zeblit/agents/";
/// Where a repository keeps its own skills.
pub const REPOSITORY_SKILLS: &str = ".github/zeblit/skills/";

macro_rules! builtin_files {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/", $path)))),*]
    };
}

/// The project's own files; a test compares the list with the folders.
const BUILTIN: &[(&str, &str)] = builtin_files![
    "agents/builtin.md",
    "agents/codex.md",
    "agents/demo-fix.md",
    "agents/explainer.md",
    "agents/fixer.md",
    "agents/format.md",
    "agents/gemini.md",
    "agents/opencode.md",
    "agents/reviewer.md",
    "skills/commit-messages/SKILL.md",
    "skills/small-diffs/SKILL.md",
    "skills/write-tests/SKILL.md",
];

/// Agents and skills by name.
#[derive(Debug, Clone, Default)]
pub struct AgentSet {
    pub agents: BTreeMap<String, AgentSpec>,
    pub skills: BTreeMap<String, Skill>,
}

impl AgentSet {
    /// The set compiled into the program (the project's own `agents/` and `skills/`).
    pub fn builtin() -> Result<Self, AgentError> {
        let mut set = Self::default();
        let mut errors = Vec::new();
        for (path, text) in BUILTIN {
            match read_entry(path, "agents/", "skills/", text) {
                Ok(Some(entry)) => set.put(entry),
                Ok(None) => {}
                Err(error) => errors.push(error),
            }
        }
        set.finish(errors)
    }

    /// Adds the files of the server's own folders; a name of the built-in set is replaced by the server's.
    pub fn with_folders(mut self, agents: Option<&Path>, skills: Option<&Path>) -> Result<Self, AgentError> {
        let mut errors = Vec::new();
        let mut files = Vec::new();
        if let Some(folder) = agents {
            match folder_entries(folder) {
                Ok(names) => {
                    for name in names.into_iter().filter(|name| name.ends_with(".md")) {
                        files.push((format!("agents/{name}"), folder.join(&name)));
                    }
                }
                Err(error) => errors.push(error),
            }
        }
        if let Some(folder) = skills {
            match folder_entries(folder) {
                Ok(names) => {
                    for name in names {
                        let file = folder.join(&name).join("SKILL.md");
                        if file.is_file() {
                            files.push((format!("skills/{name}/SKILL.md"), file));
                        } else if folder.join(&name).is_dir() {
                            errors.push(AgentError::Skill {
                                skill: name.clone(),
                                path: folder.join(&name).display().to_string(),
                                problem: "the folder has no SKILL.md; add one or remove the folder".into(),
                            });
                        }
                    }
                }
                Err(error) => errors.push(error),
            }
        }
        for (path, file) in files {
            let shown = file.display().to_string();
            let entry = read_capped(&file).and_then(|text| read_entry(&path, "agents/", "skills/", &text));
            match entry {
                Ok(Some(Entry::Agent(spec))) => self.put(Entry::Agent(AgentSpec { source: shown, ..spec })),
                Ok(Some(Entry::Skill(skill))) => self.put(Entry::Skill(Skill { source: shown, ..skill })),
                Ok(None) => {}
                Err(error) => errors.push(error.at(&shown)),
            }
        }
        self.finish(errors)
    }

    /// Adds a repository's own (`.github/zeblit/agents/*.md`, `.github/zeblit/skills/*/SKILL.md` of the default branch):
    /// `(path, text)` pairs. A name the server has already is an error.
    pub fn with_repository(&self, files: &[(String, String)]) -> Result<Self, AgentError> {
        let mut set = self.clone();
        let mut errors = Vec::new();
        if files.len() > MAX_FILES {
            errors.push(AgentError::Folder {
                path: ".github/zeblit".into(),
                problem: format!("more than {MAX_FILES} files; remove some"),
            });
        }
        for (path, text) in files.iter().take(MAX_FILES) {
            let entry = match read_entry(path, REPOSITORY_AGENTS, REPOSITORY_SKILLS, text) {
                Ok(Some(entry)) => entry,
                Ok(None) => continue,
                Err(error) => {
                    errors.push(error);
                    continue;
                }
            };
            match &entry {
                Entry::Agent(spec) => {
                    if let Some(own) = set.agents.get(&spec.name) {
                        errors.push(spec_error(
                            spec,
                            format!("the name is taken by {}; give the file another name", own.source),
                        ));
                        continue;
                    }
                    let usual = adapter::usual_tools(spec.adapter, spec.read_only);
                    if let Some(tool) = spec.tools.iter().find(|tool| !usual.contains(&tool.as_str())) {
                        errors.push(spec_error(
                            spec,
                            format!(
                                "`tools`: `{tool}` is not one that a repository may give; it may choose from: {}",
                                usual.join(", ")
                            ),
                        ));
                        continue;
                    }
                }
                Entry::Skill(skill) => {
                    if let Some(own) = set.skills.get(&skill.name) {
                        errors.push(AgentError::Skill {
                            skill: skill.name.clone(),
                            path: path.clone(),
                            problem: format!(
                                "the name is taken by {}; give the folder another name",
                                own.source
                            ),
                        });
                        continue;
                    }
                }
            }
            set.put(entry);
        }
        set.finish(errors)
    }

    pub fn agent(&self, name: &str) -> Result<&AgentSpec, AgentError> {
        self.agents.get(name).ok_or_else(|| AgentError::Unknown {
            name: name.chars().take(MAX_NAME_CHARS).collect(),
            known: self.agents.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }

    /// The skills an agent names, in its order.
    pub fn skills_of(&self, agent: &AgentSpec) -> Result<Vec<Skill>, AgentError> {
        agent
            .skills
            .iter()
            .map(|name| {
                self.skills.get(name).cloned().ok_or_else(|| AgentError::UnknownSkill {
                    agent: agent.name.clone(),
                    skill: name.clone(),
                })
            })
            .collect()
    }

    fn put(&mut self, entry: Entry) {
        match entry {
            Entry::Agent(spec) => drop(self.agents.insert(spec.name.clone(), spec)),
            Entry::Skill(skill) => drop(self.skills.insert(skill.name.clone(), skill)),
        }
    }

    /// The set, or everything that is wrong with it.
    fn finish(self, mut errors: Vec<AgentError>) -> Result<Self, AgentError> {
        for agent in self.agents.values() {
            errors.extend(self.skills_of(agent).err());
        }
        match errors.len() {
            0 => Ok(self),
            1 => Err(errors.remove(0)),
            _ => Err(AgentError::Several(errors)),
        }
    }
}

enum Entry {
    Agent(AgentSpec),
    Skill(Skill),
}

/// What `path` defines; `None` for a README and for files that are neither agent nor skill.
fn read_entry(path: &str, agents: &str, skills: &str, text: &str) -> Result<Option<Entry>, AgentError> {
    if let Some(name) = path.strip_prefix(agents).and_then(|rest| rest.strip_suffix(".md")) {
        if name == "README" || name.contains('/') {
            return Ok(None);
        }
        return parse_agent(path, name, text).map(|spec| Some(Entry::Agent(spec)));
    }
    if let Some(name) = path.strip_prefix(skills).and_then(|rest| rest.strip_suffix("/SKILL.md")) {
        if name.contains('/') {
            return Ok(None);
        }
        return parse_skill(path, name, text).map(|skill| Some(Entry::Skill(skill)));
    }
    Ok(None)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AgentFront {
    name: String,
    description: String,
    adapter: AdapterKind,
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    argv: Vec<String>,
    #[serde(default)]
    tools: Vec<String>,
    #[serde(default)]
    limits: LimitsFront,
    #[serde(default)]
    skills: Vec<String>,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    needs: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsFront {
    #[serde(default)]
    minutes: Option<i64>,
    /// Dollars.
    #[serde(default)]
    budget: Option<f64>,
}

/// The open Agent Skills format has more keys; they are tolerated.
#[derive(Debug, Deserialize)]
struct SkillFront {
    name: String,
    description: String,
}

/// Reads one agent file; `name` is the file's name without `.md`.
pub fn parse_agent(path: &str, name: &str, text: &str) -> Result<AgentSpec, AgentError> {
    let fail = |problem: String| AgentError::Definition {
        agent: name.chars().take(MAX_NAME_CHARS).collect(),
        path: path.to_owned(),
        problem,
    };
    let file = split(text).map_err(fail)?;
    let front: AgentFront = read_yaml(&file).map_err(fail)?;
    let at = |key: &str, problem: &str| fail(format!("line {}: `{key}` {problem}", file.line_of(key)));

    check_name(name).map_err(|problem| fail(format!("the file's name {problem}")))?;
    if front.name != name {
        return Err(at("name", &format!("is `{}`, but the file is called `{name}.md`", front.name)));
    }
    check_description(&front.description).map_err(|problem| at("description", &problem))?;
    for (key, length) in [
        ("argv", front.argv.len()),
        ("tools", front.tools.len()),
        ("skills", front.skills.len()),
        ("needs", front.needs.len()),
    ] {
        if length > MAX_LIST {
            return Err(at(key, &format!("has more than {MAX_LIST} elements")));
        }
    }
    if let Some(need) = front.needs.iter().find(|need| !node::is_capability(need)) {
        let shown: String = need.chars().take(MAX_NAME_CHARS).collect();
        return Err(at("needs", &format!("`{shown}` is not the name of a capability, like `arm64`")));
    }
    if let Some(minutes) = front.limits.minutes
        && !(1..=MAX_MINUTES).contains(&minutes)
    {
        return Err(at("limits", &format!("`minutes` must be 1 to {MAX_MINUTES}, not {minutes}")));
    }
    let budget_micros = match front.limits.budget {
        None => None,
        Some(dollars) => Some(
            micros(dollars)
                .ok_or_else(|| at("limits", "`budget` must be dollars, more than 0 and at most 10000"))?,
        ),
    };
    if let Some(model) = &front.model {
        check_model(model).map_err(|problem| at("model", &problem))?;
    }
    match front.adapter {
        AdapterKind::Command => {
            command::check_argv(&front.argv).map_err(|problem| at("argv", &problem))?;
            for (key, given) in [
                ("model", front.model.is_some()),
                ("tools", !front.tools.is_empty()),
                ("skills", !front.skills.is_empty()),
            ] {
                if given {
                    return Err(at(key, "has no meaning with `adapter: command`; remove it"));
                }
            }
        }
        AdapterKind::Claude | AdapterKind::Builtin => {
            if !front.argv.is_empty() {
                return Err(at("argv", "belongs to `adapter: command`; remove it"));
            }
            if file.body.trim().is_empty() {
                return Err(fail("the body is empty; write the system prompt below the second `---`".into()));
            }
            for tool in &front.tools {
                let checked = match front.adapter {
                    AdapterKind::Builtin => builtin::check_tool(tool, front.read_only),
                    _ => claude::check_tool(tool, front.read_only),
                };
                checked.map_err(|problem| at("tools", &problem))?;
            }
        }
        AdapterKind::Codex | AdapterKind::Opencode | AdapterKind::Gemini => {
            if !front.argv.is_empty() {
                return Err(at("argv", "belongs to `adapter: command`; remove it"));
            }
            if !front.tools.is_empty() {
                return Err(at("tools", "belongs to `adapter: claude`; remove it"));
            }
            if file.body.trim().is_empty() {
                return Err(fail("the body is empty; write the system prompt below the second `---`".into()));
            }
        }
    }
    Ok(AgentSpec {
        name: front.name,
        description: front.description.trim().to_owned(),
        adapter: front.adapter,
        model: front.model,
        argv: front.argv,
        tools: front.tools,
        skills: front.skills,
        read_only: front.read_only,
        minutes: front.limits.minutes,
        budget_micros,
        needs: front.needs,
        system_prompt: file.body.trim().to_owned(),
        source: path.to_owned(),
    })
}

/// Reads one SKILL.md; `name` is its folder's name.
pub fn parse_skill(path: &str, name: &str, text: &str) -> Result<Skill, AgentError> {
    let fail = |problem: String| AgentError::Skill {
        skill: name.chars().take(MAX_NAME_CHARS).collect(),
        path: path.to_owned(),
        problem,
    };
    let file = split(text).map_err(fail)?;
    let front: SkillFront = read_yaml(&file).map_err(fail)?;
    let at = |key: &str, problem: &str| fail(format!("line {}: `{key}` {problem}", file.line_of(key)));
    check_name(name).map_err(|problem| fail(format!("the folder's name {problem}")))?;
    if front.name != name {
        return Err(at("name", &format!("is `{}`, but the folder is called `{name}`", front.name)));
    }
    check_description(&front.description).map_err(|problem| at("description", &problem))?;
    if file.body.trim().is_empty() {
        return Err(fail("the body is empty; write the instructions below the second `---`".into()));
    }
    Ok(Skill {
        name: front.name,
        description: front.description.trim().to_owned(),
        text: text.to_owned(),
        source: path.to_owned(),
    })
}

/// A file cut into its front matter and its body.
struct Parts {
    front: String,
    body: String,
}

impl Parts {
    /// The line of the file on which a top-level key stands; 1 when it does not.
    fn line_of(&self, key: &str) -> usize {
        self.front
            .lines()
            .position(|line| line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(':')))
            // The front matter begins on the second line.
            .map_or(1, |index| index + 2)
    }
}

fn split(text: &str) -> Result<Parts, String> {
    if text.len() > MAX_FILE_BYTES {
        return Err(format!("larger than {MAX_FILE_BYTES} bytes"));
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n");
    let rest = text.strip_prefix("---\n").ok_or_else(|| {
        "line 1: the file must begin with a line `---`, then YAML, then another `---`".to_owned()
    })?;
    let is_fence = |line: &str| line.trim_end() == "---";
    let mut front = String::new();
    let mut lines = rest.split_inclusive('\n');
    for line in lines.by_ref() {
        if is_fence(line) {
            return Ok(Parts { front, body: lines.collect() });
        }
        front.push_str(line);
    }
    Err("the front matter has no end: a second line `---` is missing".into())
}

fn read_yaml<T: serde::de::DeserializeOwned>(file: &Parts) -> Result<T, String> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        strict_booleans: true,
    };
    let mut key = String::new();
    let read = serde_saphyr::with_deserializer_from_str_with_options(&file.front, options, |deserializer| {
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            key = error.path().to_string();
            error.into_inner()
        })
    });
    read.map_err(|error| {
        let line = error.location().map_or(1, |place| place.line().saturating_add(1));
        let problem: String = error.without_snippet().to_string().lines().next().unwrap_or("").to_owned();
        let key = if key.is_empty() || key == "." { String::new() } else { format!("`{key}`: ") };
        // The parser's own position counts from the front matter and would confuse.
        let problem = problem.split(" at line ").next().unwrap_or(&problem).to_owned();
        format!("line {line}: {key}{problem}")
    })
}

fn check_name(name: &str) -> Result<(), String> {
    let fits = !name.is_empty()
        && name.len() <= MAX_NAME_CHARS
        && !name.starts_with('-')
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if fits {
        Ok(())
    } else {
        Err(format!("must be 1 to {MAX_NAME_CHARS} of a-z, 0-9 and `-`, and not begin with `-`"))
    }
}

fn check_description(text: &str) -> Result<(), String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("is empty; say in one line what it is for".into());
    }
    if text.chars().count() > MAX_DESCRIPTION_CHARS {
        return Err(format!("is longer than {MAX_DESCRIPTION_CHARS} characters"));
    }
    if text.chars().any(char::is_control) {
        return Err("must be one line".into());
    }
    Ok(())
}

/// Model names go into an argument list and a price table: plain characters, and never an option.
fn check_model(model: &str) -> Result<(), String> {
    let fits = !model.is_empty()
        && model.len() <= 100
        && !model.starts_with('-')
        && model.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':' | b'@'));
    if fits { Ok(()) } else { Err(format!("`{model}` is not a model's name")) }
}

#[expect(clippy::cast_possible_truncation, reason = "checked to lie between 0 and 10^10 before")]
fn micros(dollars: f64) -> Option<i64> {
    (dollars > 0.0 && dollars <= MAX_BUDGET_DOLLARS).then(|| (dollars * 1_000_000.0).round() as i64)
}

/// The names in a folder, sorted, so that errors come in the same order everywhere.
fn folder_entries(folder: &Path) -> Result<Vec<String>, AgentError> {
    let fail = |problem: String| AgentError::Folder { path: folder.display().to_string(), problem };
    let entries = std::fs::read_dir(folder).map_err(|error| fail(format!("cannot be read: {error}")))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| fail(format!("cannot be read: {error}")))?;
        if names.len() >= MAX_FILES {
            return Err(fail(format!("more than {MAX_FILES} files; remove some")));
        }
        let name = entry
            .file_name()
            .into_string()
            .map_err(|name| fail(format!("the name {} is not UTF-8", name.display())))?;
        if !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn read_capped(file: &Path) -> Result<String, AgentError> {
    use std::io::Read;
    let fail = |problem: String| AgentError::Folder { path: file.display().to_string(), problem };
    let open = std::fs::File::open(file).map_err(|error| fail(format!("cannot be read: {error}")))?;
    let mut text = String::new();
    // One byte more than allowed, so that `split` sees that it is too large.
    let cap = u64::try_from(MAX_FILE_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    open.take(cap)
        .read_to_string(&mut text)
        .map_err(|error| fail(format!("cannot be read as UTF-8: {error}")))?;
    Ok(text)
}

fn spec_error(spec: &AgentSpec, problem: String) -> AgentError {
    AgentError::Definition { agent: spec.name.clone(), path: spec.source.clone(), problem }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "---\nname: x\ndescription: Does x.\nadapter: claude\n---\nDo x.\n";

    fn problem(text: &str) -> String {
        parse_agent("agents/x.md", "x", text).unwrap_err().to_string()
    }

    #[test]
    fn every_file_of_the_project_is_compiled_in() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut found = Vec::new();
        for name in folder_entries(&root.join("agents")).unwrap() {
            if name != "README.md" {
                found.push(format!("agents/{name}"));
            }
        }
        for name in folder_entries(&root.join("skills")).unwrap() {
            if name != "README.md" {
                found.push(format!("skills/{name}/SKILL.md"));
            }
        }
        let listed: Vec<String> = BUILTIN.iter().map(|(path, _)| (*path).to_owned()).collect();
        assert_eq!(found, listed);
        let set = AgentSet::builtin().unwrap();
        assert_eq!(set.agents.len() + set.skills.len(), listed.len());
    }

    #[test]
    fn the_first_set_is_what_the_configuration_names() {
        let set = AgentSet::builtin().unwrap();
        assert!(!set.agent("fixer").unwrap().read_only);
        assert!(set.agent("reviewer").unwrap().read_only);
        assert!(set.agent("explainer").unwrap().read_only);
        assert_eq!(set.agent("format").unwrap().adapter, AdapterKind::Command);
        assert_eq!(set.agent("demo-fix").unwrap().adapter, AdapterKind::Command);
        let skills = set.skills_of(set.agent("fixer").unwrap()).unwrap();
        let names: Vec<&str> = skills.iter().map(|skill| skill.name.as_str()).collect();
        assert_eq!(names, ["small-diffs", "write-tests", "commit-messages"]);
        let unknown = set.agent("nobody").unwrap_err().to_string();
        assert_eq!(
            unknown,
            "there is no agent `nobody` here; there are: builtin, codex, demo-fix, explainer, fixer, format, gemini, opencode, reviewer"
        );
    }

    #[test]
    fn a_definition_keeps_every_key() {
        let text = "---\r\nname: x\r\ndescription: Does x.\r\nadapter: claude\r\nmodel: claude-haiku-4-5\r\ntools: [Read, Bash]\r\nskills: [a, b]\r\nread_only: true\r\nneeds: [arm64]\r\nlimits: {minutes: 5, budget: 0.25}\r\n---\r\nDo x.\r\n";
        let spec = parse_agent("agents/x.md", "x", text).unwrap();
        assert_eq!(
            spec,
            AgentSpec {
                name: "x".into(),
                description: "Does x.".into(),
                adapter: AdapterKind::Claude,
                model: Some("claude-haiku-4-5".into()),
                argv: vec![],
                tools: vec!["Read".into(), "Bash".into()],
                skills: vec!["a".into(), "b".into()],
                read_only: true,
                minutes: Some(5),
                budget_micros: Some(250_000),
                needs: vec!["arm64".into()],
                system_prompt: "Do x.".into(),
                source: "agents/x.md".into(),
            }
        );
    }

    #[test]
    fn errors_name_file_line_and_key() {
        let with = |line: &str| GOOD.replace("adapter: claude", &format!("adapter: claude\n{line}"));
        let command =
            |line: &str| format!("---\nname: x\ndescription: Does x.\nadapter: command\n{line}\n---\n");
        let table = [
            ("no front matter".to_owned(), "line 1"),
            ("---\nname: x\n".to_owned(), "second line `---` is missing"),
            (with("colour: red"), "line 5: `colour`: unknown field"),
            (with("limits: {hours: 3}"), "line 5: `limits.hours`: unknown field"),
            (with("limits: {minutes: 0}"), "line 5: `limits` `minutes` must be"),
            (with("limits: {budget: -1}"), "line 5: `limits` `budget` must be"),
            (with("limits: {budget: .nan}"), "line 5: `limits` `budget` must be"),
            (with("model: --help"), "line 5: `model` `--help` is not a model's name"),
            (with("argv: [ls]"), "line 5: `argv` belongs to"),
            (with("tools: [WebFetch]"), "line 5: `tools` `WebFetch`"),
            (with("tools: ['Read,WebFetch']"), "line 5: `tools`"),
            (with("read_only: yes"), "line 5: `read_only`"),
            (with("needs: [ARM 64]"), "line 5: `needs` `ARM 64` is not"),
            (with("read_only: true\ntools: [Edit]"), "line 6: `tools` `Edit`"),
            (with("name: x"), "line 5"),
            (GOOD.replace("name: x", "name: y"), "line 2: `name` is `y`"),
            (GOOD.replace("Does x.", "''"), "line 3: `description` is empty"),
            (GOOD.replace("adapter: claude", "adapter: gpt"), "line 4: `adapter`"),
            (GOOD.replace("adapter: claude\n", ""), "missing field `adapter`"),
            (GOOD.replace("Do x.", ""), "the body is empty"),
            (command(""), "`argv` is empty"),
            (command("argv: ['{args}']"), "line 5: `argv`"),
            (command("argv: [sh, -c, 'x {args}']"), "line 5: `argv`"),
            (command("argv: [ls]\nskills: [a]"), "line 6: `skills` has no meaning"),
            (command("argv: [ls]\nmodel: a"), "line 6: `model` has no meaning"),
        ];
        for (text, wanted) in table {
            let found = problem(&text);
            assert!(found.contains(wanted), "{text}\n{found}");
            assert!(found.starts_with("agent `x` (agents/x.md): "), "{found}");
        }
        assert!(problem(&"x".repeat(MAX_FILE_BYTES + 1)).contains("larger than"));
    }

    #[test]
    fn yaml_bombs_and_odd_documents_are_errors_not_panics() {
        for front in
            ["&a [*a]", "a: &a [x,x]\nb: &b [*a,*a]", "[", "- 1", "!!binary x", "? : :", "\t", "name: [x"]
        {
            problem(&format!("---\n{front}\n---\nbody"));
        }
    }

    #[test]
    fn names_are_plain() {
        for (name, fits) in
            [("a", true), ("a-1", true), ("", false), ("-a", false), ("A", false), ("a/b", false)]
        {
            assert_eq!(check_name(name).is_ok(), fits, "{name}");
        }
        assert!(check_name(&"a".repeat(51)).is_err());
    }

    #[test]
    fn skills_tolerate_the_keys_of_the_open_format() {
        let text = "---\nname: s\ndescription: Use it.\nlicense: MIT\nallowed-tools: [Bash]\nmetadata: {a: {b: 1}}\n---\nText\n";
        assert_eq!(parse_skill("skills/s/SKILL.md", "s", text).unwrap().text, text);
        let missing =
            parse_skill("skills/s/SKILL.md", "s", "---\nname: s\n---\nText\n").unwrap_err().to_string();
        assert!(
            missing.contains("skill `s` (skills/s/SKILL.md)") && missing.contains("description"),
            "{missing}"
        );
        let other = parse_skill("skills/s/SKILL.md", "s", &text.replace("name: s", "name: t")).unwrap_err();
        assert!(other.to_string().contains("the folder is called `s`"), "{other}");
    }

    #[test]
    fn the_servers_folders_replace_built_in_agents() {
        let folder = tempfile::tempdir().unwrap();
        let (agents, skills) = (folder.path().join("a"), folder.path().join("s"));
        std::fs::create_dir_all(skills.join("house")).unwrap();
        std::fs::create_dir_all(&agents).unwrap();
        std::fs::write(agents.join("README.md"), "not an agent").unwrap();
        std::fs::write(
            agents.join("fixer.md"),
            "---\nname: fixer\ndescription: Ours.\nadapter: claude\nskills: [house]\n---\nOur way.\n",
        )
        .unwrap();
        std::fs::write(skills.join("house/SKILL.md"), "---\nname: house\ndescription: Rules.\n---\nText\n")
            .unwrap();
        let set = AgentSet::builtin().unwrap().with_folders(Some(&agents), Some(&skills)).unwrap();
        let fixer = set.agent("fixer").unwrap();
        assert_eq!(fixer.description, "Ours.");
        assert!(fixer.source.ends_with("a/fixer.md"));
        assert!(set.agent("reviewer").is_ok());

        std::fs::write(agents.join("bad.md"), "nothing").unwrap();
        std::fs::write(agents.join("worse.md"), "---\nname: worse\nx: 1\n---\n").unwrap();
        std::fs::remove_file(skills.join("house/SKILL.md")).unwrap();
        let error =
            AgentSet::builtin().unwrap().with_folders(Some(&agents), Some(&skills)).unwrap_err().to_string();
        for part in ["a/bad.md", "a/worse.md", "s/house", "names the skill `house`"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        let gone = AgentSet::default().with_folders(Some(&folder.path().join("none")), None).unwrap_err();
        assert!(gone.to_string().contains("cannot be read"), "{gone}");
    }

    #[test]
    fn a_repository_adds_but_never_shadows_or_widens() {
        let server = AgentSet::builtin().unwrap();
        let file = |name: &str, more: &str| {
            (
                format!(".github/zeblit/agents/{name}.md"),
                format!("---\nname: {name}\ndescription: D.\nadapter: claude\n{more}---\nDo.\n"),
            )
        };
        let skill = |name: &str| {
            (
                format!(".github/zeblit/skills/{name}/SKILL.md"),
                format!("---\nname: {name}\ndescription: D.\n---\nText\n"),
            )
        };
        let set = server
            .with_repository(&[
                file("docs", "tools: [Read]\nskills: [house, small-diffs]\n"),
                skill("house"),
                (".github/zeblit/agents/README.md".into(), "hello".into()),
                (".github/zeblit/skills/house/extra.txt".into(), "hello".into()),
            ])
            .unwrap();
        assert_eq!(set.skills_of(set.agent("docs").unwrap()).unwrap().len(), 2);
        assert!(server.agent("docs").is_err());

        for (files, wanted) in [
            (vec![file("fixer", "")], "the name is taken by agents/fixer.md"),
            (vec![skill("small-diffs")], "the name is taken by skills/small-diffs/SKILL.md"),
            (vec![file("docs", "tools: [Task]\n")], "`Task` is not one that a repository may give"),
            (vec![file("docs", "skills: [none]\n")], "names the skill `none`"),
        ] {
            let error = server.with_repository(&files).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        let many =
            server.with_repository(&[file("fixer", ""), skill("small-diffs")]).unwrap_err().to_string();
        assert_eq!(many.lines().count(), 2, "{many}");
    }
}
