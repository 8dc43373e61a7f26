//! `zeblit run`: one run for a repository on this machine; its result comes back as a branch.

use super::demo::machine::{self, Machine};
use super::demo::sandbox;
use super::demo::screen::{Screen, Style};
use super::demo::{base_config, follow, remove_tree};
use crate::agent::AdapterKind;
use crate::clock::{IdKind, Ids, RandomIds};
use crate::config::{Config, SandboxKind};
use crate::domain::ids::RepoName;
use crate::domain::run::{Run, RunMode, RunState};
use crate::remote::RepoInfo;
use anyhow::{Context, bail};
use secrecy::SecretString;
use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Added to the run's own wall clock for everything around it (clone, container, push, report).
const MARGIN: Duration = Duration::from_secs(300);

/// Characters of the instruction that become the title.
const TITLE_CHARS: usize = 72;

/// Bytes of the diff that are printed; the branch has all of it.
const MAX_DIFF_BYTES: usize = 256 * 1024;

/// Lines of the log that are shown after a failure.
const SHOWN_PROBLEMS: usize = 8;

#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The repository to work on; its checked out branch is where the work starts
    #[arg(long, value_name = "PATH", default_value = ".")]
    pub repo: PathBuf,
    /// The agent to use [default: the server's agent for `fix`]; a recipe needs no model
    #[arg(long, value_name = "NAME")]
    pub agent: Option<String>,
    /// The model, for agents that have one
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// The most that the run may cost, in dollars
    #[arg(long, value_name = "DOLLARS")]
    pub budget: Option<f64>,
    /// Keep the state of the run (database, logs) and say where it is
    #[arg(long)]
    pub keep: bool,
    /// What to do, in plain words (for a recipe: its arguments, if it takes any)
    #[arg(value_name = "INSTRUCTION", default_value = "")]
    pub instruction: String,
}

/// Runs the instruction; `false`: the run ended without a result.
pub async fn run(config: Option<PathBuf>, arguments: RunArgs) -> anyhow::Result<bool> {
    let mut screen = Screen::stdout();
    let instruction = arguments.instruction.trim().to_owned();
    let path = arguments
        .repo
        .canonicalize()
        .with_context(|| format!("{} is not there", arguments.repo.display()))?;
    let folder = std::env::temp_dir().join(format!("zeblit-run-{}", RandomIds.next(IdKind::Boot)));
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&folder)
        .with_context(|| format!("{} cannot be made", folder.display()))?;
    let log = folder.join("server.log");
    let job =
        Job { arguments: &arguments, instruction: &instruction, path: &path, folder: &folder, log: &log };
    let mut begun = false;
    let done = work(config.as_deref(), &job, &mut screen, &mut begun).await;
    let well = matches!(done, Ok(true));
    if begun && !well {
        for line in machine::last_problems(&log, SHOWN_PROBLEMS) {
            screen.line(Style::Dim, &format!("  {line}"));
        }
    }
    // Without a run there is nothing to look at.
    if begun && (arguments.keep || !well) {
        screen.line(Style::Dim, &format!("State and server log are kept: {}", folder.display()));
    } else if let Err(error) = remove_tree(&folder) {
        screen.line(Style::Yellow, &format!("{} could not be deleted: {error}", folder.display()));
    }
    done
}

/// What is asked for and where it happens.
struct Job<'a> {
    arguments: &'a RunArgs,
    instruction: &'a str,
    path: &'a Path,
    /// State, deleted at the end.
    folder: &'a Path,
    log: &'a Path,
}

/// Starts a server for this one run. `begun` tells whether there is a run to look at.
async fn work<W: Write>(
    config: Option<&Path>,
    job: &Job<'_>,
    screen: &mut Screen<W>,
    begun: &mut bool,
) -> anyhow::Result<bool> {
    let Job { arguments, instruction, path, folder, log } = *job;
    let mut config = base_config(config, folder)?;
    config.sandbox.kind = SandboxKind::Docker;
    if config.models.anthropic_api_key.is_none() {
        let key = std::env::var("ANTHROPIC_API_KEY").ok().filter(|key| !key.trim().is_empty());
        config.models.anthropic_api_key = key.map(|key| SecretString::from(key.trim().to_owned()));
    }
    let kind = kind_of(&config, arguments.agent.as_deref())?;
    if kind != Kind::Recipe && instruction.is_empty() {
        bail!("say what to do, e.g. `zeblit run --repo {} \"add a --version flag\"`", path.display());
    }
    if kind == Kind::Model && config.models.anthropic_api_key.is_none() {
        bail!(
            "there is no model key\nhint: set ANTHROPIC_API_KEY, or name a recipe with `--agent` (e.g. `--agent format`), which needs no model"
        );
    }
    sandbox::need_docker(&config.sandbox, kind == Kind::Model, screen).await?;
    config.server.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    machine::log_to(log)?;
    let listener = machine::bind(Some(config.server.listen), config.server.listen).await?;
    let machine = Machine::start(config, listener).await?;
    let ended = tokio::select! {
        ended = one_run(&machine, job, kind, screen, begun) => Some(ended),
        () = machine::interrupted() => None,
    };
    let Some(ended) = ended else {
        screen.blank();
        screen.line(Style::Yellow, "Interrupted: stopping the run.");
        machine.cancel_open_runs().await;
        machine.stop().await;
        return Ok(false);
    };
    machine.stop().await;
    ended
}

/// What is known of the agent before the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Recipe,
    Model,
    /// Not one of the server's: it may be the repository's own, and its run will tell.
    Unknown,
}

fn kind_of(config: &Config, agent: Option<&str>) -> anyhow::Result<Kind> {
    let agents = &config.agents;
    let set = crate::agent::definition::AgentSet::builtin()?
        .with_folders(agents.folder.as_deref(), agents.skills_folder.as_deref())?;
    let found = set.agents.get(agent.unwrap_or(&agents.fix));
    Ok(match found.map(|agent| agent.adapter) {
        Some(AdapterKind::Command) => Kind::Recipe,
        Some(_) => Kind::Model,
        None => Kind::Unknown,
    })
}

/// The comment that asks for the run.
fn command(arguments: &RunArgs, instruction: &str, recipe: bool) -> anyhow::Result<String> {
    let word = |what: &str, value: &str| -> anyhow::Result<()> {
        if value.is_empty() || value.contains(|c: char| c.is_whitespace() || c.is_control() || c == '`') {
            bail!("`{value}` is not the name of {what}");
        }
        Ok(())
    };
    let mut text = String::from("/zeblit ");
    match (&arguments.agent, recipe) {
        (Some(agent), true) => {
            word("an agent", agent)?;
            text.push_str("run ");
            text.push_str(agent);
            for part in instruction.split_whitespace() {
                text.push(' ');
                text.push_str(part);
            }
        }
        (Some(agent), false) => {
            word("an agent", agent)?;
            text.push_str("fix --agent ");
            text.push_str(agent);
        }
        (None, _) => text.push_str("fix"),
    }
    if let Some(model) = &arguments.model {
        word("a model", model)?;
        text.push_str(" --model ");
        text.push_str(model);
    }
    if let Some(budget) = arguments.budget {
        if !budget.is_finite() || budget <= 0.0 {
            bail!("--budget needs a number of dollars above zero");
        }
        text.push_str(&format!(" --budget {budget}"));
    }
    Ok(text)
}

/// A repository name from the last part of a path.
fn name_of(path: &Path) -> anyhow::Result<RepoName> {
    let last = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let plain: String = last
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' })
        .take(100)
        .collect();
    let plain = plain.trim_end_matches(".git").trim_matches('.');
    Ok(RepoName::parse(&format!("local/{}", if plain.is_empty() { "repository" } else { plain }))?)
}

fn title(instruction: &str, agent: Option<&str>) -> String {
    let first = instruction.lines().next().unwrap_or_default().trim();
    let mut text: String = first.chars().take(TITLE_CHARS).collect();
    if first.chars().count() > TITLE_CHARS {
        text.push('…');
    }
    if text.is_empty() { format!("Run {}", agent.unwrap_or("the agent")) } else { text }
}

async fn one_run<W: Write>(
    machine: &Machine,
    job: &Job<'_>,
    kind: Kind,
    screen: &mut Screen<W>,
    begun: &mut bool,
) -> anyhow::Result<bool> {
    let Job { arguments, instruction, path, .. } = *job;
    let comment = command(arguments, instruction, kind == Kind::Recipe)?;
    let forge = machine.forge.clone();
    let (name, source) = (name_of(path)?, path.to_owned());
    screen.fact("repository", &path.display().to_string());
    let RepoInfo { repo, default_branch } =
        tokio::task::spawn_blocking(move || forge.import_repo(&name, "Imported by `zeblit run`", &source))
            .await??;
    screen.fact("branch", default_branch.as_str());
    screen.restart_clock();
    let forge = &machine.forge;
    let owner = forge.owner();
    let title = title(instruction, arguments.agent.as_deref());
    let (number, _) = forge.open_issue(&repo, &owner, &title, instruction)?;
    let (id, webhook) = forge.comment(&repo, &owner, number, &comment)?;
    *begun = true;
    machine.deliver(&webhook).await?;
    let minutes = u64::try_from(machine.app.config.sandbox.minutes).unwrap_or_default();
    let deadline = Instant::now() + Duration::from_secs(minutes * 60) + MARGIN;
    let run = follow::follow(machine, screen, &repo, number, id, deadline).await?;
    if let (Some(branch), Some(_)) = (&run.outcome.branch, &run.outcome.head) {
        forge.copy_branch_to(&repo, branch, path).with_context(|| {
            format!("the result is on `{branch}` and could not be brought to {}", path.display())
        })?;
        for pull in forge.pulls_of_branch(&repo, branch)?.into_iter().take(1) {
            screen.heading("Diff");
            screen.diff(&forge.pull_diff(&repo, pull, MAX_DIFF_BYTES)?);
        }
    }
    summarise(screen, &run, default_branch.as_str(), path);
    Ok(matches!(run.state, RunState::Succeeded | RunState::Nothing))
}

fn summarise<W: Write>(screen: &mut Screen<W>, run: &Run, base: &str, path: &Path) {
    let outcome = &run.outcome;
    screen.heading("Result");
    if !outcome.summary.trim().is_empty() {
        screen.quote(&outcome.summary);
        screen.blank();
    }
    let style = match run.state {
        RunState::Succeeded | RunState::Nothing => Style::Green,
        _ => Style::Red,
    };
    screen.line(style, &format!("  {}", follow::ending(run)));
    for note in &outcome.notes {
        screen.line(Style::Dim, &format!("  {note}"));
    }
    if run.progress.cost_micros > 0 {
        let dollars = run.progress.cost_micros as f64 / 1e6;
        screen.fact("cost", &format!("${dollars:.2}, {} tokens", run.progress.tokens));
    }
    if run.spec.mode == RunMode::ReadOnly {
        return;
    }
    if let (Some(branch), Some(_)) = (&outcome.branch, &outcome.head) {
        let path = path.display();
        screen.fact(
            "branch",
            &format!(
                "{branch} ({} commits, {} files, +{} -{})",
                outcome.commits, outcome.files, outcome.added_lines, outcome.removed_lines
            ),
        );
        screen.fact("look", &format!("git -C {path} diff {base}...{branch}"));
        screen.fact("take", &format!("git -C {path} merge {branch}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(agent: Option<&str>) -> RunArgs {
        RunArgs {
            repo: PathBuf::from("."),
            agent: agent.map(str::to_owned),
            model: None,
            budget: None,
            keep: false,
            instruction: String::new(),
        }
    }

    #[test]
    fn the_request_becomes_one_command() {
        let with = |agent, text, recipe| command(&arguments(agent), text, recipe).unwrap();
        assert_eq!(with(None, "add a flag", false), "/zeblit fix");
        assert_eq!(with(Some("fixer"), "add a flag", false), "/zeblit fix --agent fixer");
        assert_eq!(with(Some("format"), "src\nlib", true), "/zeblit run format src lib");
        let all = RunArgs { model: Some("m-1".into()), budget: Some(2.5), ..arguments(None) };
        assert_eq!(command(&all, "x", false).unwrap(), "/zeblit fix --model m-1 --budget 2.5");
        for bad in [
            arguments(Some("a b")),
            arguments(Some("")),
            RunArgs { model: Some("m\n/zeblit cancel".into()), ..arguments(None) },
            RunArgs { budget: Some(-1.0), ..arguments(None) },
            RunArgs { budget: Some(f64::NAN), ..arguments(None) },
        ] {
            assert!(command(&bad, "x", false).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn any_folder_gives_a_repository_name() {
        for (path, name) in [
            ("/a/tool", "local/tool"),
            ("/a/my tool", "local/my-tool"),
            ("/a/x.git", "local/x"),
            ("/", "local/repository"),
            ("/a/..x", "local/x"),
        ] {
            assert_eq!(name_of(Path::new(path)).unwrap().as_str(), name, "{path}");
        }
    }

    #[test]
    fn titles_are_one_short_line() {
        assert_eq!(title("fix it\nplease", None), "fix it");
        assert_eq!(title("", Some("format")), "Run format");
        assert_eq!(title(&"x".repeat(100), None).chars().count(), TITLE_CHARS + 1);
    }
}
