//! What a repository's runs may reach, and what runs ahead of its agents: hosts, the setup's container, caches.

use super::EngineError;
use super::execute::{self, Prepared};
use crate::agent::AdapterKind;
use crate::agent::adapter::{self, EGRESS_PORT, LaunchContext};
use crate::agent::definition::AgentSet;
use crate::app::App;
use crate::broker::egress::Grant;
use crate::domain::egress::AllowList;
use crate::domain::ids::SlotId;
use crate::domain::repo_config::SetupCommand;
use crate::domain::run::{AgentEnd, Attempt, FailureClass, Run, RunMode, SetupState};
use crate::domain::wording::{self, DeniedHost};
use crate::git::Workspace;
use crate::sandbox::{Cache, Duty, Job, Polled, SandboxSpec, Status, paths};
use crate::store;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// HOME of the setup, beside the agent's: the agent must not find there what a setup wrote.
const SETUP_HOME: &str = "setup-home";
/// The file of a cache that tells when it was last used.
const USED_FILE: &str = "used";
/// The folder of a cache that is mounted.
const CACHE_FOLDER: &str = "files";

/// What the run may reach: what its repository chose, as far as the server permits it (still).
pub(super) fn hosts(app: &App, run: &Run, setup: bool) -> AllowList {
    let entries = match &run.spec.config.setup {
        _ if !setup => &run.spec.config.egress,
        Some(setup) => &setup.egress,
        None => return AllowList::default(),
    };
    // Both were validated when they were read; what cannot be read permits nothing.
    let permitted = AllowList::new(&app.config.egress.allow).unwrap_or_default();
    AllowList::new(entries).unwrap_or_default().within(&permitted)
}

pub(super) fn grant(app: &App, run: &Run, hosts: AllowList) -> Grant {
    let config = &app.config.egress;
    Grant {
        run: run.id.clone(),
        hosts,
        budget: store::egress::Bytes {
            out: config.upload_kib.saturating_mul(1024),
            inward: config.download_mib.saturating_mul(1024 * 1024),
        },
    }
}

/// How programs find the proxy. The broker's own port is not asked through it.
pub(super) fn proxy_environment() -> Vec<(String, String)> {
    let proxy = format!("http://127.0.0.1:{EGRESS_PORT}");
    let java = format!(
        "-Dhttps.proxyHost=127.0.0.1 -Dhttps.proxyPort={EGRESS_PORT} -Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort={EGRESS_PORT}"
    );
    let mut list: Vec<(String, String)> = Vec::new();
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
        list.push((name.into(), proxy.clone()));
    }
    for name in ["NO_PROXY", "no_proxy"] {
        list.push((name.into(), "127.0.0.1,localhost,::1".into()));
    }
    // Node's own `fetch` looks at the variables above only then.
    list.push(("NODE_USE_ENV_PROXY".into(), "1".into()));
    for name in ["MAVEN_OPTS", "GRADLE_OPTS"] {
        list.push((name.into(), java.clone()));
    }
    list
}

/// What the report says of the setup.
pub(super) fn notes(run: &Run) -> Vec<String> {
    match &run.spec.config.setup {
        Some(_) if !run.has_setup() => vec![wording::setup_not_for_forks()],
        Some(setup) if run.progress.setup == SetupState::Done => {
            vec![wording::setup_took(&setup.shown(), run.progress.setup_seconds)]
        }
        _ => Vec::new(),
    }
}

/// Links from HOME into the cache.
pub(super) fn links(run: &Run) -> Vec<(String, String)> {
    match &run.spec.config.setup {
        Some(setup) if run.has_setup() => {
            setup.cache.iter().map(|path| (path.clone(), format!("{}/{path}", paths::CACHE))).collect()
        }
        _ => Vec::new(),
    }
}

/// Where a run's caches are. Runs of the default branch share one; everything else, whose code somebody without
/// approval may have written, has one per task: pull requests and our own branches never share with anybody.
fn cache_folder(app: &App, run: &Run) -> PathBuf {
    let trusted = run.spec.pull.is_none() && *run.start() == run.spec.base_sha;
    let tier = if trusted { "trusted".to_owned() } else { format!("task-{}", run.task) };
    app.config.state_dir.join("caches").join(&run.remote).join(run.repo.id.to_string()).join(tier)
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EngineError {
    let path = path.to_path_buf();
    move |source| EngineError::Io { operation, path, source }
}

/// A folder of the container's user, private to it.
fn own_folder(app: &App, path: &Path) -> Result<(), EngineError> {
    std::fs::create_dir_all(path).map_err(io_error("create", path))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
        .map_err(io_error("set permissions", path))?;
    let (uid, gid) = app.sandbox.owner();
    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(io_error("give to the container", path))
}

/// The run's cache, made when it is not there; `None` when its repository keeps nothing.
pub(super) fn cache(app: &App, run: &Run, writable: bool) -> Result<Option<Cache>, EngineError> {
    if links(run).is_empty() {
        return Ok(None);
    }
    let folder = cache_folder(app, run);
    let path = folder.join(CACHE_FOLDER);
    own_folder(app, &path)?;
    let used = folder.join(USED_FILE);
    std::fs::write(&used, app.clock.now().timestamp().to_string()).map_err(io_error("write", &used))?;
    Ok(Some(Cache { path, writable }))
}

/// Throws a cache away that grew too large.
pub(super) fn trim_cache(app: &App, run: &Run) -> Result<(), EngineError> {
    let folder = cache_folder(app, run);
    let most = u64::try_from(app.config.setup.cache_mib).unwrap_or(0).saturating_mul(1024 * 1024);
    let size = size_of(&folder.join(CACHE_FOLDER));
    if size > most {
        tracing::info!(run.id = %run.id, size, most, "the cache is too large: thrown away");
        // The agent's container mounts what `cache` makes anew.
        remove(&folder)?;
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<(), EngineError> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove a cache", folder)(error))
        }
        _ => Ok(()),
    }
}

/// Bytes of the files below a folder; links are not followed.
fn size_of(folder: &Path) -> u64 {
    let mut sum = 0_u64;
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let Ok(found) = entry.path().symlink_metadata() else { continue };
            if found.is_dir() {
                folders.push(entry.path());
            } else {
                sum = sum.saturating_add(found.len());
            }
        }
    }
    sum
}

/// Throws caches away that nobody has used for long; only while no run is live, so that none is mounted.
pub(super) fn sweep_caches(app: &App, idle: bool) -> Result<(), EngineError> {
    if !idle {
        return Ok(());
    }
    let oldest = app.clock.now().timestamp() - app.config.setup.cache_days.saturating_mul(24 * 3600);
    let folders = |path: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(path)
            .map(|list| list.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default()
    };
    let root = app.config.state_dir.join("caches");
    for tier in folders(&root).iter().flat_map(|remote| folders(remote)).flat_map(|repo| folders(&repo)) {
        let used =
            std::fs::read_to_string(tier.join(USED_FILE)).ok().and_then(|text| text.parse::<i64>().ok());
        if used.is_some_and(|used| used < oldest) {
            tracing::info!(path = %tier.display(), "a cache was not used for long: thrown away");
            remove(&tier)?;
        }
    }
    Ok(())
}

/// The setup's container: the agent's profile, with a HOME of its own, and the cache to write to. `Err`: what is
/// wrong with the configuration.
pub(super) fn spec(
    app: &App,
    run: &Run,
    set: &AgentSet,
    workspace: &Workspace,
    slot: &SlotId,
) -> Result<Result<Prepared, String>, EngineError> {
    let Some(setup) = &run.spec.config.setup else {
        return Err(EngineError::Defect("a run without setup has no container for it".into()));
    };
    let home = workspace.home.with_file_name(SETUP_HOME);
    own_folder(app, &home)?;
    let mut spec = SandboxSpec {
        slot: slot.clone(),
        run: run.id.clone(),
        image: run.spec.image.clone(),
        limits: execute::limits(app),
        duty: Duty::Collect(execute::collect_job(run)),
        workspace: workspace.workspace.clone(),
        output: workspace.output.clone(),
        home,
        sockets: Some(execute::sockets(app, slot)),
        objects: workspace.objects.clone(),
        cache: cache(app, run, true)?,
    };
    let (argv, mut env) = match &setup.command {
        SetupCommand::Argv(argv) => (argv.clone(), vec![("LANG".to_owned(), "C.UTF-8".to_owned())]),
        SetupCommand::Recipe(name) => {
            let recipe = match set.agent(name) {
                Ok(agent) if agent.adapter == AdapterKind::Command => agent,
                Ok(_) => {
                    return Ok(Err(format!(
                        "`setup.command` names `{name}`, which is an agent and not a recipe"
                    )));
                }
                Err(error) => return Ok(Err(format!("`setup.command`: {error}"))),
            };
            let (inside, home) = app.sandbox.inside(&spec);
            let launch = adapter::launch(&LaunchContext {
                spec: recipe,
                skills: &[],
                mode: RunMode::ReadOnly,
                model: None,
                prompt: "",
                args: "",
                workspace: &inside,
                home: &home,
            });
            match launch {
                Ok(launch) => (launch.argv, launch.env),
                Err(error) => return Ok(Err(error.to_string())),
            }
        }
    };
    env.push(("CI".into(), "1".into()));
    let reaches = !hosts(app, run, true).is_empty();
    if reaches {
        env.extend(proxy_environment());
    }
    spec.duty = Duty::Agent(Job {
        argv,
        env,
        egress_port: reaches.then_some(EGRESS_PORT),
        links: links(run),
        setup: true,
        collect: execute::collect_job(run),
        ..Job::default()
    });
    Ok(Ok(Prepared {
        sandbox: spec,
        needs_model: false,
        notes: Vec::new(),
        log: Vec::new(),
        context: Vec::new(),
        resumes: None,
    }))
}

/// How the setup ended, once it has.
pub(super) fn ended(
    app: &App,
    run: &Run,
    attempt: &Attempt,
    polled: &Polled,
) -> Option<Result<(), AgentEnd>> {
    let limit = app.config.setup.minutes.saturating_mul(60).min(run.spec.wall_seconds);
    let shown = run.spec.config.setup.as_ref().map(|setup| setup.shown()).unwrap_or_default();
    let failed = |detail: String| Some(Err(AgentEnd::Failed { class: FailureClass::Setup, detail }));
    match polled.status {
        Status::Running if (app.clock.now() - attempt.started_at).num_seconds() >= limit => failed(format!(
            "The setup (`{shown}`) was stopped after {} minutes, its limit.",
            limit.div_euclid(60).max(1)
        )),
        Status::Running => None,
        // Lines may still be on their way: only an exit with nothing new is the end.
        Status::Exited { .. } if !polled.lines.is_empty() => None,
        Status::Exited { out_of_memory: true, .. } => {
            failed(format!("The setup (`{shown}`) needed more memory than its container has."))
        }
        Status::Exited { code, .. } => match run.progress.exit_code {
            Some(0) if code == 0 => Some(Ok(())),
            Some(exit) if exit != 0 => failed(format!("The setup (`{shown}`) ended with exit code {exit}.")),
            _ => failed(format!(
                "The setup (`{shown}`) could not be started, or its workspace could not be put in order (exit code {code}); the log says more."
            )),
        },
        Status::Gone => failed(format!("The container of the setup (`{shown}`) vanished from the engine.")),
    }
}

/// Notes the hosts that were asked for and are not on the list.
pub(super) async fn note_denied(app: &App, run: &mut Run) -> Result<(), EngineError> {
    let permitted = AllowList::new(&app.config.egress.allow).unwrap_or_default();
    let key = if run.progress.setup == SetupState::Running { "setup.egress" } else { "egress.allow" };
    let denied: Vec<DeniedHost> = store::egress::of_run(&app.store, &run.id)
        .await?
        .into_iter()
        .filter(|row| row.verdict == "not listed" && row.host != store::egress::OTHERS)
        .map(|row| DeniedHost {
            permitted: permitted.allows(&row.host),
            host: row.host,
            times: row.connections,
            key,
        })
        .collect();
    if let Some(note) = wording::denied_hosts(&denied)
        && !run.outcome.notes.contains(&note)
    {
        run.outcome.notes.push(note);
    }
    Ok(())
}
