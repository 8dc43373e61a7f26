//! Purpose: `zeblit send-webhook`: signs a payload as its source would and posts it.

use super::args::SendWebhookArgs;
use super::output::{CliError, Exit, Output};
use crate::clock::{Clock, IdKind, Ids, RandomIds, SystemClock};
use crate::config::{Config, variable_named};
use crate::domain::event::Source;
use crate::domain::ids::RepoName;
use crate::http::view::visible;
use crate::intake::signature;
use chrono::{DateTime, SecondsFormat, Utc};
use secrecy::SecretString;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

/// Seconds until the server must have answered: GitHub's own limit.
const ANSWER_SECONDS: u64 = 10;
/// Largest payload that is read, in bytes: more than any source sends.
const MAX_PAYLOAD_BYTES: u64 = 32 * 1024 * 1024;
/// Characters of the answer that are shown.
const MAX_ANSWER_CHARS: usize = 4000;

pub async fn run(file: Option<&Path>, args: &SendWebhookArgs, output: Output) -> Result<Exit, CliError> {
    let body = match (&args.comment, &args.file) {
        (Some(text), _) => comment_payload(args, text, SystemClock.now())?,
        (None, Some(path)) => read(path)?,
        (None, None) => return Err(CliError::new("a FILE or --comment is needed")),
    };
    // The configuration is only needed for what was not given.
    let config = match (&args.secret_env, &args.url) {
        (Some(_), Some(_)) => None,
        _ => Some(Config::load(file)?),
    };
    let secret = secret(args, config.as_ref())?;
    let url = match (&args.url, &config) {
        (Some(url), _) => url.clone(),
        (None, Some(config)) => format!("http://{}/webhooks/{}", config.server.listen, args.source.as_str()),
        (None, None) => return Err(CliError::new("--url is needed")),
    };
    let delivery = args.delivery.clone().unwrap_or_else(|| RandomIds.next(IdKind::Request));
    let headers = signature::sign(args.source, &secret, &delivery, &args.event, &body);
    send(&url, headers, body, &delivery, output).await
}

async fn send(
    url: &str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    delivery: &str,
    output: Output,
) -> Result<Exit, CliError> {
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(ANSWER_SECONDS))
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| CliError::because("cannot make an HTTP client", &error))?;
    let mut request = client.post(url).header("content-type", "application/json").body(body);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    output.note(format!("Delivery {delivery} to {url}"));
    let response = request.send().await.map_err(|error| {
        CliError::because(&format!("{url} does not answer"), &error.without_url())
            .hint("is `zeblit serve` running there?")
    })?;
    let status = response.status();
    let text = response
        .text()
        .await
        .map_err(|error| CliError::because("the answer was cut off", &error.without_url()))?;
    let text: String = visible(&text).chars().take(MAX_ANSWER_CHARS).collect();
    output.line(format!("{status} {}", text.trim_end()))?;
    Ok(if status.is_success() { Exit::Ok } else { Exit::No })
}

fn secret(args: &SendWebhookArgs, config: Option<&Config>) -> Result<SecretString, CliError> {
    if let Some(name) = &args.secret_env {
        return variable_named(name)
            .ok_or_else(|| CliError::new(format!("the variable `{name}` of --secret-env is not set")));
    }
    let source = args.source.as_str();
    config.and_then(|config| config.secrets_for(args.source).first().cloned()).ok_or_else(|| {
        CliError::new(format!("there is no webhook secret for {source}")).hint(format!(
            "set `{source}.webhook_secrets` in the configuration, or name a variable with --secret-env"
        ))
    })
}

fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(MAX_PAYLOAD_BYTES + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_PAYLOAD_BYTES + 1).read_to_end(&mut bytes))
    };
    read.map_err(|error| CliError::new(format!("`{}` cannot be read: {error}", path.display())))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_PAYLOAD_BYTES {
        return Err(CliError::new(format!("`{}` is larger than {MAX_PAYLOAD_BYTES} bytes", path.display())));
    }
    Ok(bytes)
}

/// What GitHub sends when somebody comments on an issue, as far as Zeblit looks.
fn comment_payload(args: &SendWebhookArgs, text: &str, now: DateTime<Utc>) -> Result<Vec<u8>, CliError> {
    if args.source != Source::Github {
        return Err(CliError::new("--comment builds GitHub's payload; for another source give a FILE"));
    }
    let repo = args
        .repo
        .as_deref()
        .ok_or_else(|| CliError::new("--comment needs --repo OWNER/NAME"))
        .and_then(|name| RepoName::parse(name).map_err(|error| CliError::new(error.to_string())))?;
    let at = now.to_rfc3339_opts(SecondsFormat::Secs, true);
    let user = serde_json::json!({ "id": args.user_id, "login": args.login, "type": "User" });
    let issue_url = format!("https://github.com/{repo}/issues/{}", args.number);
    // Milliseconds make the ids of two comments differ.
    let comment_id = now.timestamp_millis();
    let payload = serde_json::json!({
        "action": "created",
        "issue": {
            "id": args.number, "number": args.number, "title": format!("Issue {}", args.number), "body": "",
            "state": "open", "user": user, "html_url": issue_url, "created_at": at, "updated_at": at,
        },
        "comment": {
            "id": comment_id, "node_id": format!("IC_{comment_id}"), "body": text, "user": user,
            "html_url": format!("{issue_url}#issuecomment-{comment_id}"), "created_at": at, "updated_at": at,
            "author_association": "OWNER",
        },
        "repository": {
            "id": args.repo_id, "full_name": repo.as_str(), "name": repo.name(), "private": false,
            "default_branch": "main", "owner": { "id": 1, "login": repo.owner(), "type": "User" },
        },
        "sender": user,
        "installation": { "id": args.installation },
    });
    serde_json::to_vec(&payload).map_err(|error| CliError::because("cannot build the payload", &error))
}

#[cfg(test)]
mod tests {
    use super::super::args::{Cli, Command};
    use super::*;
    use clap::Parser;
    use std::io::Write;

    fn parsed(arguments: &[&str]) -> SendWebhookArgs {
        let all = ["zeblit", "send-webhook"].iter().chain(arguments);
        match Cli::try_parse_from(all).unwrap().command {
            Command::SendWebhook(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_built_comment_is_understood_by_intake() {
        let args =
            parsed(&["--comment", "/zeblit fix", "--repo", "octo/shop", "--number", "7", "--login", "ada"]);
        let body = comment_payload(&args, "/zeblit fix", SystemClock.now()).unwrap();
        let decoded = crate::intake::decode(Source::Github, "issue_comment", &body);
        let crate::domain::event::Decoded::Event(event) = decoded else { panic!("{decoded:?}") };
        let crate::domain::event::EventKind::Comment(comment) = event.kind else { panic!("{event:?}") };
        assert_eq!((comment.subject.number, comment.author.login.as_str()), (7, "ada"));
        assert_eq!(event.repo.unwrap().name.as_str(), "octo/shop");
    }

    #[test]
    fn what_is_missing_is_said() {
        let args = parsed(&["--comment", "/zeblit fix"]);
        assert!(comment_payload(&args, "x", SystemClock.now()).unwrap_err().problems[0].contains("--repo"));
        let args = parsed(&["--secret-env", "NO_SUCH_VARIABLE_HERE", "x.json"]);
        assert!(secret(&args, None).unwrap_err().problems[0].contains("NO_SUCH_VARIABLE_HERE"));
        let none = secret(&parsed(&["--source", "jira", "x.json"]), Some(&Config::default())).unwrap_err();
        assert!(none.hint.unwrap().contains("jira.webhook_secrets"));
        assert!(read(Path::new("/nowhere/payload.json")).unwrap_err().problems[0].contains("/nowhere"));
    }

    #[test]
    fn files_are_read_as_they_are() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"{\"a\": 1}\n").unwrap();
        assert_eq!(read(file.path()).unwrap(), b"{\"a\": 1}\n");
    }
}
