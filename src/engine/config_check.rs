//! A pull request that changes the bot's own rules gets a check that reads them: data only, so forks too.

use super::EngineError;
use super::ingest;
use super::report::{self, Owner};
use crate::agent::adapter::AgentError;
use crate::app::App;
use crate::domain::effect::{Annotation, CheckConclusion, CheckRun, CheckStatus, EffectPriority, Payload};
use crate::domain::event::Repo;
use crate::domain::ids::Sha;
use crate::domain::{repo_config, wording};
use crate::queue::Topic;
use crate::remote::Retry;

/// The name of the check.
pub const CHECK_NAME: &str = "zeblit config";

/// Everything below this folder is ours to read.
const FOLDER: &str = ".github/zeblit/";

/// GitHub takes 50 annotations at a time.
const MAX_ANNOTATIONS: usize = 50;

/// Checks what a pull request makes of the repository's rules. `None`: it does not touch them.
pub async fn check(app: &App, repo: &Repo, number: i64, head: &Sha) -> Result<Option<String>, EngineError> {
    match look(app, repo, number, head).await {
        Ok(found) => Ok(found),
        // What the forge refuses for good must not keep the delivery from its other consequences.
        Err(EngineError::Remote(error)) if error.retry() == Retry::Never => {
            tracing::warn!(repo = %repo.name, number, error = %error, "the configuration was not checked");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn look(app: &App, repo: &Repo, number: i64, head: &Sha) -> Result<Option<String>, EngineError> {
    let touches = |path: &String| path == repo_config::PATH || path.starts_with(FOLDER);
    let touched: Vec<String> =
        app.forge.changed_paths(repo, number).await?.into_iter().filter(touches).collect();
    if touched.is_empty() {
        return Ok(None);
    }
    let problems = problems(app, repo, head).await?;
    let now = app.clock.now();
    let external_id = format!("config:{number}:{CHECK_NAME}");
    let check = CheckRun {
        name: CHECK_NAME.into(),
        head_sha: head.clone(),
        external_id,
        status: CheckStatus::Completed,
        conclusion: Some(if problems.is_empty() {
            CheckConclusion::Success
        } else {
            CheckConclusion::Failure
        }),
        title: wording::config_check_title(problems.len()),
        summary: wording::config_check_summary(&touched, &problems),
        details_url: None,
        started_at: Some(now),
        completed_at: Some(now),
        annotations: problems.iter().take(MAX_ANNOTATIONS).cloned().collect(),
    };
    let owner = Owner { run: None, task: None, remote: app.forge.name(), repo };
    let key = format!("config-check:{}:{number}:{head}", repo.id);
    let mut tx = app.store.write_tx().await?;
    // One check per head: a repeated delivery finds it there.
    if crate::store::effects::by_key_tx(&mut tx, &key).await?.is_none() {
        report::put(app, &mut tx, &owner, key, EffectPriority::Check, Payload::Check(check)).await?;
    }
    tx.commit().await?;
    app.wakeup.notify(Topic::Effects);
    Ok(Some(match problems.len() {
        0 => "the changed configuration is right".to_owned(),
        count => format!("the changed configuration has {count} problem(s)"),
    }))
}

/// What is wrong with the rules at a commit, each with its place.
async fn problems(app: &App, repo: &Repo, head: &Sha) -> Result<Vec<Annotation>, EngineError> {
    let mut found = Vec::new();
    let config = ingest::repository_config(app, repo, head.as_str()).await?;
    let agents = ingest::agents_at(app, repo, head.as_str()).await?;
    let at = |line: usize, message: String| Annotation {
        path: repo_config::PATH.to_owned(),
        line: i64::try_from(line).unwrap_or(1),
        message,
    };
    match &config {
        Err(problem) => found.push(at(problem.line, problem.problem.clone())),
        Ok(config) => {
            if let (Some(name), Ok(set)) = (&config.agent, &agents)
                && let Err(error) = set.agent(name)
            {
                found.push(at(line_of(app, repo, head, "agent").await?, error.to_string()));
            }
            let sandbox = &app.config.sandbox;
            if let Some(image) = &config.image
                && *image != sandbox.image
                && !sandbox.allowed_images.contains(image)
            {
                let line = line_of(app, repo, head, "image").await?;
                found.push(at(line, wording::image_not_allowed(image)));
            }
        }
    }
    if let Err(error) = agents {
        flatten(&error, &mut found);
    }
    Ok(found)
}

/// Where a top-level key stands in the file.
async fn line_of(app: &App, repo: &Repo, head: &Sha, key: &str) -> Result<usize, EngineError> {
    let bytes = app.forge.read_file(repo, head.as_str(), repo_config::PATH).await?.unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let is_it = |line: &str| line.split_once('=').is_some_and(|(name, _)| name.trim() == key);
    Ok(text.lines().position(is_it).map_or(1, |index| index + 1))
}

fn flatten(error: &AgentError, found: &mut Vec<Annotation>) {
    let (path, message) = match error {
        AgentError::Several(errors) => {
            for error in errors {
                flatten(error, found);
            }
            return;
        }
        AgentError::Definition { path, problem, .. }
        | AgentError::Skill { path, problem, .. }
        | AgentError::Folder { path, problem } => (path.clone(), problem.clone()),
        AgentError::UnknownSkill { agent, .. } => (format!("{FOLDER}agents/{agent}.md"), error.to_string()),
        AgentError::Unknown { .. } | AgentError::Words { .. } => {
            (repo_config::PATH.to_owned(), error.to_string())
        }
    };
    found.push(Annotation { path, line: line_in(&message), message });
}

/// `… line 3 …` in a message, else the first line.
fn line_in(message: &str) -> i64 {
    let number = message.split_once("line ").map(|(_, rest)| rest);
    let digits = number.map(|rest| rest.chars().take_while(char::is_ascii_digit).collect::<String>());
    digits.and_then(|digits| digits.parse().ok()).filter(|line| *line > 0).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_in_a_message() {
        assert_eq!(line_in("front matter, line 12: unknown field"), 12);
        assert_eq!(line_in("line x"), 1);
        assert_eq!(line_in("line 0"), 1);
        assert_eq!(line_in("no place is told"), 1);
    }
}
