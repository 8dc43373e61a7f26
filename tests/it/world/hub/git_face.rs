//! FakeHub's Git over HTTP: the real `git http-backend`, behind installation tokens.

use super::server::{Answer, Request};
use super::state::{Level, State};
use base64::Engine as _;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::OnceLock;
use tokio::io::AsyncWriteExt;

/// What one Git request may touch, once its credentials were checked.
pub struct Permitted {
    pub repo: i64,
    pub path: PathBuf,
    rest: String,
    pub push: bool,
    pub heads: BTreeMap<String, String>,
}

/// Where `git http-backend` is.
fn backend() -> &'static PathBuf {
    static BACKEND: OnceLock<PathBuf> = OnceLock::new();
    BACKEND.get_or_init(|| {
        let output = std::process::Command::new("git").arg("--exec-path").output().expect("git is installed");
        let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let path = PathBuf::from(folder).join("git-http-backend");
        assert!(path.exists(), "{} is missing: install the whole of git", path.display());
        path
    })
}

fn refuse(status: u16, text: &str) -> Box<Answer> {
    let mut answer = Answer::raw(status, "text/plain", text.as_bytes().to_vec());
    if status == 401 {
        answer.headers.push(("WWW-Authenticate".into(), "Basic realm=\"FakeHub\"".into()));
    }
    Box::new(answer)
}

/// Checks address and credentials of `/git/{owner}/{name}.git/…`.
pub fn permit(state: &State, request: &Request) -> Result<Permitted, Box<Answer>> {
    let [_, owner, name, rest @ ..] = request.segments.as_slice() else {
        return Err(refuse(404, "Not Found"));
    };
    let name = name.strip_suffix(".git").ok_or_else(|| refuse(404, "Not Found"))?;
    let header = request.header("authorization").ok_or_else(|| refuse(401, "Authentication required"))?;
    let login = header
        .strip_prefix("Basic ")
        .and_then(|packed| base64::engine::general_purpose::STANDARD.decode(packed).ok())
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or_else(|| refuse(401, "Basic authentication is needed"))?;
    let password = match login.split_once(':') {
        Some(("x-access-token", password)) => password,
        _ => return Err(refuse(401, "Invalid username or token")),
    };
    let token = state
        .tokens
        .get(password)
        .filter(|token| token.expires_at > state.now())
        .ok_or_else(|| refuse(401, "Invalid username or token"))?;
    let full_name = format!("{owner}/{name}");
    let repo = state
        .repo_id(&full_name)
        .or_else(|| state.renamed(&full_name))
        .filter(|id| token.repos.as_ref().is_none_or(|repos| repos.contains(id)))
        .filter(|id| state.installations.get(&token.installation).is_some_and(|i| i.repos.contains(id)))
        .ok_or_else(|| refuse(404, "Repository not found."))?;
    let push = request.path.ends_with("git-receive-pack")
        || request.query.get("service").is_some_and(|service| service == "git-receive-pack");
    let needed = if push { Level::Write } else { Level::Read };
    if token.permissions.get("contents").is_none_or(|level| *level < needed) {
        return Err(refuse(403, "Write access to repository not granted."));
    }
    let repo = &state.repos[&repo];
    Ok(Permitted {
        repo: repo.id,
        path: repo.path.clone(),
        rest: format!("/{}", rest.join("/")),
        push: request.path.ends_with("git-receive-pack"),
        heads: repo.heads(),
    })
}

/// Lets `git http-backend` answer.
pub async fn run(request: &Request, permitted: &Permitted) -> Answer {
    let mut command = tokio::process::Command::new(backend());
    command
        .env("GIT_PROJECT_ROOT", &permitted.path)
        .env("PATH_INFO", &permitted.rest)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("REMOTE_USER", "x-access-token")
        .env("REMOTE_ADDR", "127.0.0.1")
        .env("REQUEST_METHOD", &request.method)
        .env("QUERY_STRING", &request.raw_query)
        .env("CONTENT_TYPE", request.header("content-type").unwrap_or_default())
        .env("CONTENT_LENGTH", request.body.len().to_string())
        .env_remove("GIT_DIR")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if let Some(encoding) = request.header("content-encoding") {
        command.env("HTTP_CONTENT_ENCODING", encoding);
    }
    if let Some(protocol) = request.header("git-protocol") {
        command.env("GIT_PROTOCOL", protocol);
    }
    let mut child = command.spawn().expect("git http-backend starts");
    let mut stdin = child.stdin.take().expect("piped above");
    let body = request.body.clone();
    let feed = tokio::spawn(async move {
        // The program may end before it read all; its answer says why.
        let _ = stdin.write_all(&body).await;
    });
    let output = child.wait_with_output().await.expect("git http-backend was started");
    feed.await.expect("the feeding task does not panic");
    let end = output.stdout.windows(4).position(|window| window == b"\r\n\r\n");
    let Some(end) = end else {
        return Answer::raw(500, "text/plain", output.stderr);
    };
    let (head, rest) = output.stdout.split_at(end);
    let mut answer = Answer::raw(200, "", rest[4..].to_vec());
    answer.headers.clear();
    for line in String::from_utf8_lossy(head).lines() {
        let Some((name, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        if name.eq_ignore_ascii_case("status") {
            answer.status = value.split(' ').next().and_then(|code| code.parse().ok()).unwrap_or(500);
        } else {
            answer.headers.push((name.to_owned(), value.to_owned()));
        }
    }
    answer
}

/// The hook that refuses what GitHub refuses: protected branches, and workflow files from an App without `workflows`.
pub const UPDATE_HOOK: &str = r#"#!/bin/sh
ref="$1"; new="$3"
if [ -f protected ] && grep -qxF "$ref" protected; then
  echo "error: GH006: Protected branch update failed for $ref." >&2
  exit 1
fi
case "$new" in *[!0]*) ;; *) exit 0 ;; esac
if git log --format= --name-only "$new" --not --all | grep -q '^\.github/workflows/'; then
  echo "refusing to allow a GitHub App to create or update workflow without \`workflows\` permission" >&2
  exit 1
fi
"#;
