//! `zeblit demo`: a bug report becomes a pull request, on this machine, without any account.

pub mod follow;
pub mod machine;
pub mod project;
pub mod sandbox;
pub mod screen;

use crate::clock::{IdKind, Ids, RandomIds};
use crate::config::{Config, LocalForgeConfig, SandboxKind};
use crate::domain::event::{Repo, Subject};
use crate::domain::ids::RepoName;
use crate::domain::run::{Run, RunState};
use crate::remote::{Forge, ThreadComment};
use anyhow::{Context, bail};
use machine::Machine;
use sandbox::Chosen;
use screen::{Screen, Style};
use secrecy::SecretString;
use std::fs;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// From the comment until the pull request is there and its tests have run.
const TIME_LIMIT: Duration = Duration::from_secs(300);

/// Where the demo listens when nobody says otherwise (another port when it is taken).
const USUAL_ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);

/// A folder with this file in it was made by the demo and may be deleted by it.
const MARKER_FILE: &str = "made-by-zeblit-demo";

/// The server's own key, which is kept: containers carry its sign, so that this demo finds and removes those that an
/// earlier one left when it was killed.
const KEY_FILE: &str = "secret.key";

/// Lines of the server's log that are shown after a failure.
const SHOWN_PROBLEMS: usize = 8;

/// Bytes of the pull request's diff that are shown.
const MAX_DIFF_BYTES: usize = 64 * 1024;

/// Comments of a thread that are shown.
const MAX_THREAD: usize = 100;

/// Where the demo's agent runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DemoSandbox {
    /// Docker when its engine answers, else a process
    Auto,
    Docker,
    /// No isolation; only runs the demo's own recipe
    Process,
}

#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// End after the pull request: exit code 0 when it is correct and its tests pass
    #[arg(long)]
    pub once: bool,
    /// Address and port to listen on [default: 127.0.0.1:8080, or a free port]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Where the demo keeps its state; emptied at the start
    #[arg(long, value_name = "FOLDER", default_value = ".demo")]
    pub dir: PathBuf,
    /// A model endpoint that speaks Anthropic's API: Claude Code is used instead of the recipe
    /// (with the key of ANTHROPIC_API_KEY, if it wants one)
    #[arg(long, value_name = "URL")]
    pub model_url: Option<String>,
    #[arg(long, value_name = "WHERE", value_enum, default_value_t = DemoSandbox::Auto)]
    pub sandbox: DemoSandbox,
}

/// Plays the demo; `false`: it ended without a correct pull request.
pub async fn run(arguments: DemoArgs) -> anyhow::Result<bool> {
    let mut screen = Screen::stdout();
    fresh_folder(&arguments.dir)?;
    let folder = arguments.dir.canonicalize().context("the demo's folder")?;
    let log = folder.join("server.log");
    machine::log_to(&log)?;

    screen.line(Style::Bold, "Zeblit demo: a bug report becomes a pull request, on this machine.");
    screen.blank();
    let (config, recipe) = configure(&arguments, &folder, &mut screen).await?;
    let listener = machine::bind(arguments.listen, USUAL_ADDRESS).await?;
    screen.fact(
        "state",
        &format!("{} (server log: {})", arguments.dir.display(), arguments.dir.join("server.log").display()),
    );
    let machine = Machine::start(config, listener).await?;
    screen.fact("server", &machine.url);

    let mut interrupt = Box::pin(machine::interrupted());
    let shown = tokio::select! {
        shown = show(&machine, &mut screen, recipe) => shown,
        () = &mut interrupt => {
            screen.blank();
            screen.line(Style::Yellow, "Interrupted: stopping the run and the server.");
            machine.cancel_open_runs().await;
            machine.stop().await;
            return Ok(false);
        }
    };
    let correct = match shown {
        Ok(()) => true,
        Err(error) => {
            screen.blank();
            screen.line(Style::Red, &format!("The demo failed: {error:#}"));
            let problems = machine::last_problems(&log, SHOWN_PROBLEMS);
            if !problems.is_empty() {
                screen.line(Style::Dim, &format!("The last of {}:", log.display()));
                for line in problems {
                    screen.line(Style::Dim, &format!("  {line}"));
                }
            }
            screen.line(Style::Plain, "hint: `zeblit doctor` checks Docker, Git, the image and the model");
            false
        }
    };
    if !arguments.once {
        screen.blank();
        let base = &machine.url;
        screen.line(
            Style::Bold,
            &format!("Still serving: open {base}/forge and type `/zeblit help` in an issue. Ctrl-C stops."),
        );
        interrupt.await;
        screen.blank();
        machine.cancel_open_runs().await;
    }
    machine.stop().await;
    Ok(correct)
}

/// The demo's configuration, and whether the agent is the recipe.
async fn configure<W: Write>(
    arguments: &DemoArgs,
    folder: &Path,
    screen: &mut Screen<W>,
) -> anyhow::Result<(Config, bool)> {
    let mut config = base_config(None, folder)?;
    let key = std::env::var("ANTHROPIC_API_KEY").ok().filter(|key| !key.trim().is_empty());
    if let Some(key) = &key {
        config.models.anthropic_api_key = Some(SecretString::from(key.trim().to_owned()));
    }
    if let Some(url) = &arguments.model_url {
        config.models.anthropic_url = url.trim_end_matches('/').to_owned();
        // An own endpoint may want no key; the broker sends one all the same.
        config.models.anthropic_api_key.get_or_insert_with(|| SecretString::from("no-key-needed"));
    }
    let with_model = config.models.anthropic_api_key.is_some();
    let chosen = sandbox::choose(&config.sandbox, arguments.sandbox, with_model, screen).await?;
    config.sandbox.kind = chosen.kind();
    screen.fact("sandbox", &chosen.words(&config.sandbox.image));
    let recipe = !with_model || config.sandbox.kind == SandboxKind::Process;
    let agent = match (&chosen, with_model) {
        (Chosen::Docker, true) => {
            format!("{} (Claude Code, through {})", config.agents.fix, config.models.anthropic_url)
        }
        (Chosen::Docker, false) => {
            "demo-fix, a codemod without a model: no key in ANTHROPIC_API_KEY and no --model-url".to_owned()
        }
        (Chosen::Process { .. }, true) => {
            "demo-fix, a codemod without a model: agents with a model run in containers only".to_owned()
        }
        (Chosen::Process { .. }, false) => {
            "demo-fix, a codemod without a model: no key in ANTHROPIC_API_KEY and no --model-url".to_owned()
        }
    };
    screen.fact("agent", &agent);
    if recipe {
        config.agents.fix = "demo-fix".to_owned();
    }
    let agents = folder.join("agents");
    fs::create_dir_all(&agents).with_context(|| format!("{} cannot be made", agents.display()))?;
    let file = agents.join(format!("{}.md", project::VERIFIER));
    fs::write(&file, project::VERIFIER_FILE)
        .with_context(|| format!("{} cannot be written", file.display()))?;
    config.agents.folder = Some(agents);
    Ok((config, recipe))
}

/// What `zeblit demo` and `zeblit run` share: the server's own settings for models and sandbox, with a local forge
/// and a state folder of their own.
pub fn base_config(file: Option<&Path>, folder: &Path) -> anyhow::Result<Config> {
    let mut config = Config::load(file)?;
    config.state_dir = folder.to_owned();
    config.database.url = None;
    config.secret_key = None;
    config.github = None;
    config.jira.webhook_secrets.clear();
    config.sentry.webhook_secrets.clear();
    config.server.public_url = None;
    let secret = format!("{}{}", RandomIds.next(IdKind::Token), RandomIds.next(IdKind::Token));
    config.local_forge = Some(LocalForgeConfig { webhook_secret: SecretString::from(secret), folder: None });
    // The limits of a public forge make no sense towards a folder on this machine.
    config.limits.write_spacing_ms = 0;
    config.limits.writes_per_minute = 10_000;
    config.limits.writes_per_hour = 100_000;
    config.limits.progress_seconds = 1;
    Ok(config)
}

/// The story: project, issue, comment, run, pull request, its tests.
async fn show<W: Write>(machine: &Machine, screen: &mut Screen<W>, recipe: bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + TIME_LIMIT;
    let forge = &machine.forge;
    let owner = forge.owner();
    let name = RepoName::parse(project::REPO)?;
    let info = forge.create_repo(&name, project::DESCRIPTION, project::FILES, project::FIRST_COMMIT)?;
    let repo = info.repo;

    screen.heading("What happens");
    screen.restart_clock();
    screen.step(Style::Plain, &format!("project {name}: Python, with a bug and a test that fails"));
    let (number, opened) = forge.open_issue(&repo, &owner, project::ISSUE_TITLE, project::ISSUE_BODY)?;
    machine.deliver(&opened).await?;
    let issue_url = format!("{}/{name}/issues/{number}", forge.web_url());
    screen.step(Style::Plain, &format!("issue #{number}: {} ({issue_url})", project::ISSUE_TITLE));
    let (comment, webhook) = forge.comment(&repo, &owner, number, project::COMMAND)?;
    let (status, took) = machine.deliver(&webhook).await?;
    screen.step(
        Style::Bold,
        &format!(
            "comment `{}`: signed webhook sent, answered {status} in {} ms",
            project::COMMAND,
            took.as_millis()
        ),
    );
    let run = follow::follow(machine, screen, &repo, number, comment, deadline).await?;
    if run.state != RunState::Succeeded {
        bail!("the run ended without a pull request: {}", follow::ending(&run));
    }
    let pull = check_pull(machine, &repo, &run, comment).await?;
    screen.step(
        Style::Green,
        &format!(
            "pull request #{} (draft) on {}",
            pull.number,
            run.outcome.branch.as_ref().map_or("?", |b| b.as_str())
        ),
    );

    screen.heading("Is it right?");
    let (comment, webhook) = forge.comment(&repo, &owner, pull.number, project::VERIFY_COMMAND)?;
    machine.deliver(&webhook).await?;
    screen.step(
        Style::Bold,
        &format!("comment `{}` on the pull request: its tests, in the same sandbox", project::VERIFY_COMMAND),
    );
    let verified = follow::follow(machine, screen, &repo, pull.number, comment, deadline).await?;
    let ran_on_head = verified.start() == &pull.head_sha;
    if verified.state != RunState::Succeeded || !ran_on_head {
        bail!("the tests of the pull request do not pass: {}", follow::ending(&verified));
    }
    screen.step(Style::Green, "the pull request's tests pass, and so do those from before it");

    screen.heading("The pull request's diff");
    screen.diff(&forge.pull_diff(&repo, pull.number, MAX_DIFF_BYTES)?);
    screen.heading(&format!("The thread of issue #{number}"));
    opening(screen, &forge.subject(&repo, number).await?);
    thread(screen, &forge.thread(&repo, number, MAX_THREAD).await?);
    screen.heading(&format!("The thread of pull request #{}", pull.number));
    opening(screen, &forge.subject(&repo, pull.number).await?);
    thread(screen, &forge.thread(&repo, pull.number, MAX_THREAD).await?);
    screen.heading("Look at it");
    screen.fact("issue", &issue_url);
    screen.fact("pull", &format!("{}/{name}/pull/{}", forge.web_url(), pull.number));
    for check in forge.checks(&repo, &pull.head_sha)? {
        if let Some(url) = check.details_url {
            screen.fact("run", &url);
        }
    }
    screen.blank();
    screen.line(Style::Green, "The pull request is correct and its tests pass.");
    if recipe {
        screen.line(
            Style::Dim,
            "The agent was a codemod that knows one kind of bug. With ANTHROPIC_API_KEY set and Docker, Claude Code does it.",
        );
    }
    Ok(())
}

fn opening<W: Write>(screen: &mut Screen<W>, subject: &Subject) {
    screen.line(Style::Bold, &format!("  {} opened \"{}\":", subject.author.login, subject.title));
    screen.quote(&subject.body);
    screen.blank();
}

fn thread<W: Write>(screen: &mut Screen<W>, comments: &[ThreadComment]) {
    for comment in comments {
        screen.line(Style::Bold, &format!("  {}:", comment.author.login));
        screen.quote(&comment.body);
        screen.blank();
    }
}

/// Whether the forge holds exactly what a run for an issue should leave.
async fn check_pull(
    machine: &Machine,
    repo: &Repo,
    run: &Run,
    comment: i64,
) -> anyhow::Result<crate::domain::event::PullHead> {
    use crate::domain::effect::{CheckConclusion, CheckStatus, Reaction};
    let forge = &machine.forge;
    let branch = run.outcome.branch.clone().context("the run names no branch")?;
    let pulls = forge.pulls_of_branch(repo, &branch)?;
    let number = match pulls.as_slice() {
        [number] => *number,
        other => bail!("there should be one pull request for {branch}, and there are {}", other.len()),
    };
    let pull = forge.pull(repo, number).await?;
    if !pull.open || !pull.draft {
        bail!("pull request #{number} should be open and a draft");
    }
    if Some(&pull.head_sha) != run.outcome.head.as_ref() {
        bail!("pull request #{number} has head {} and the run pushed another commit", pull.head_sha.short());
    }
    let before = project::FILES.iter().find(|file| file.path == project::BUGGY_FILE).map(|file| file.content);
    let after = forge
        .read_file(repo, pull.head_sha.as_str(), project::BUGGY_FILE)
        .await?
        .with_context(|| format!("the pull request deletes {}", project::BUGGY_FILE))?;
    if before.is_some_and(|text| text.as_bytes() == after.as_slice()) {
        bail!("the pull request does not change {}", project::BUGGY_FILE);
    }
    let checks = forge.checks(repo, &pull.head_sha)?;
    match checks.as_slice() {
        [check]
            if check.status == CheckStatus::Completed
                && check.conclusion == Some(CheckConclusion::Success) => {}
        [check] => bail!("the check of the pull request is {:?} ({:?})", check.status, check.conclusion),
        other => bail!("there should be one check on the pull request's head, and there are {}", other.len()),
    }
    let own = forge.reactions(repo, comment)?;
    for wanted in [Reaction::Eyes, Reaction::Rocket] {
        if !own.contains(&wanted) {
            bail!("the command has no {} reaction", wanted.emoji());
        }
    }
    Ok(pull)
}

/// Makes `folder` empty, but only if it is new, empty or the demo's own.
fn fresh_folder(folder: &Path) -> anyhow::Result<()> {
    let marker = folder.join(MARKER_FILE);
    let name = folder.display();
    let mut key = None;
    match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => bail!("{name} cannot be read: {error}"),
        Ok(mut entries) => {
            if !marker.is_file() && entries.next().is_some() {
                bail!("{name} is not empty and was not made by the demo: choose another folder with `--dir`");
            }
            if let Some(holder) = held(folder) {
                bail!("{holder}: stop it, or choose another folder with `--dir`");
            }
            key = fs::read(folder.join(KEY_FILE)).ok();
            remove_tree(folder).with_context(|| format!("{name} of an earlier demo cannot be deleted"))?;
        }
    }
    fs::create_dir_all(folder).with_context(|| format!("{name} cannot be made"))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).with_context(|| format!("{name}"))?;
    if let Some(key) = key {
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(folder.join(KEY_FILE))?;
        file.write_all(&key)?;
    }
    fs::write(marker, "This folder is made anew by each `zeblit demo`.\n").with_context(|| format!("{name}"))
}

/// Whether another demo works in this folder.
fn held(folder: &Path) -> Option<String> {
    let lock = fs::File::open(folder.join("forge").join("lock")).ok()?;
    match lock.try_lock() {
        Err(fs::TryLockError::WouldBlock) => Some(format!("another demo uses {}", folder.display())),
        _ => None,
    }
}

/// Deletes a folder, read-only folders in it included (seeds are made read-only). Links are not followed, and what a
/// process that died left mounted in it is not touched.
pub fn remove_tree(folder: &Path) -> io::Result<()> {
    let folder = &folder.canonicalize()?;
    crate::mount::unmount_below(folder)?;
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            make_writable(folder)?;
            fs::remove_dir_all(folder)
        }
        done => done,
    }
}

fn make_writable(folder: &Path) -> io::Result<()> {
    let mut waiting = vec![folder.to_owned()];
    while let Some(folder) = waiting.pop() {
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_demos_own_folder_is_made_anew() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("demo");
        fresh_folder(&folder).unwrap();
        fs::create_dir(folder.join("seed")).unwrap();
        fs::write(folder.join("seed/file"), "old").unwrap();
        fs::set_permissions(folder.join("seed"), fs::Permissions::from_mode(0o500)).unwrap();
        fs::write(folder.join(KEY_FILE), "abc").unwrap();
        fresh_folder(&folder).unwrap();
        assert_eq!(fs::read_to_string(folder.join(KEY_FILE)).unwrap(), "abc");
        assert_eq!(fs::metadata(folder.join(KEY_FILE)).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!folder.join("seed").exists());
        let foreign = place.path().join("mine");
        fs::create_dir(&foreign).unwrap();
        fresh_folder(&foreign).unwrap();
        let foreign = place.path().join("other");
        fs::create_dir(&foreign).unwrap();
        fs::write(foreign.join("thesis.txt"), "years of work").unwrap();
        let error = fresh_folder(&foreign).unwrap_err();
        assert!(error.to_string().contains("was not made by the demo"), "{error}");
        assert!(foreign.join("thesis.txt").exists());
    }
}
