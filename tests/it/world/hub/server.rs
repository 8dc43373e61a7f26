//! FakeHub's API: every endpoint that the program calls, with GitHub's permissions, refusals and paging.

use super::state::{
    BODY_CHARS, Check, Comment, Installation, Issue, Level, On, Pull, Reaction, Repo, Review, ReviewComment,
    State, Token, TokenGrant, WorkflowRun, Write, git, publish_pull_ref, stamp,
};
use base64::Engine as _;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use octocrab::jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// Without `/api/v3`, still encoded.
    pub path: String,
    /// Decoded.
    pub segments: Vec<String>,
    pub query: BTreeMap<String, String>,
    pub raw_query: String,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    fn bearer(&self) -> Option<&str> {
        let value = self.header("authorization")?;
        value.strip_prefix("Bearer ").or_else(|| value.strip_prefix("token "))
    }

    pub fn json(&self) -> Result<Value, Box<Answer>> {
        serde_json::from_slice(&self.body).map_err(|_| problem(400, "Problems parsing JSON"))
    }
}

#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// No endpoint knows this request.
    pub unknown: bool,
}

impl Answer {
    pub fn raw(status: u16, content_type: &str, body: Vec<u8>) -> Self {
        Answer { status, headers: vec![("Content-Type".into(), content_type.into())], body, unknown: false }
    }

    pub fn json(status: u16, value: &Value) -> Self {
        Answer::raw(status, "application/json; charset=utf-8", value.to_string().into_bytes())
    }
}

pub type Handled = Result<Answer, Box<Answer>>;

pub fn problem(status: u16, message: &str) -> Box<Answer> {
    Box::new(Answer::json(
        status,
        &json!({ "message": message, "documentation_url": "https://docs.github.com/rest", "status": status.to_string() }),
    ))
}

/// GitHub's form of a refused field.
fn invalid(resource: &str, field: &str, code: &str, message: Option<&str>) -> Box<Answer> {
    let mut error = json!({ "resource": resource, "code": code });
    match message {
        Some(message) => error["message"] = json!(message),
        None => error["field"] = json!(field),
    }
    Box::new(Answer::json(
        422,
        &json!({ "message": "Validation Failed", "errors": [error], "documentation_url": "https://docs.github.com/rest" }),
    ))
}

pub fn not_found() -> Box<Answer> {
    problem(404, "Not Found")
}

pub fn ok(value: &Value) -> Handled {
    Ok(Answer::json(200, value))
}

/// Who holds the token of a request, for one repository.
struct Caller {
    permissions: BTreeMap<String, Level>,
}

fn permitted(permissions: &BTreeMap<String, Level>, any_of: &[&str], level: Level) -> bool {
    any_of.iter().any(|name| {
        // Every token may read metadata.
        (*name == "metadata" && level == Level::Read)
            || permissions.get(*name).is_some_and(|have| *have >= level)
    })
}

pub fn text<'a>(body: &'a Value, field: &str, resource: &str) -> Result<&'a str, Box<Answer>> {
    match body.get(field) {
        Some(Value::String(text)) => Ok(text),
        None | Some(Value::Null) => Err(invalid(resource, field, "missing_field", None)),
        Some(other) => Err(problem(
            422,
            &format!("Invalid request.\n\nFor 'properties/{field}', {other} is not a string."),
        )),
    }
}

fn optional<'a>(body: &'a Value, field: &str) -> Result<Option<&'a str>, Box<Answer>> {
    match body.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(problem(
            422,
            &format!("Invalid request.\n\nFor 'properties/{field}', {other} is not a string."),
        )),
    }
}

fn comment_body(body: &Value, resource: &str) -> Result<String, Box<Answer>> {
    let text = text(body, "body", resource)?;
    if text.trim().is_empty() {
        return Err(invalid(resource, "body", "missing_field", None));
    }
    if text.chars().count() > BODY_CHARS {
        return Err(invalid(
            resource,
            "body",
            "unprocessable",
            Some("body is too long (maximum is 65536 characters)"),
        ));
    }
    Ok(text.to_owned())
}

fn number(segment: &str) -> Result<i64, Box<Answer>> {
    segment.parse().map_err(|_| not_found())
}

fn line_of(text: &str) -> String {
    let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    first.chars().take(80).collect()
}

/// One page of a list, with GitHub's `Link` header.
fn paged(state: &State, request: &Request, items: Vec<Value>, wrap: Option<&str>) -> Handled {
    let get = |name: &str, default: usize| {
        request.query.get(name).and_then(|value| value.parse().ok()).unwrap_or(default)
    };
    let per_page = get("per_page", 30).clamp(1, 100);
    let page = get("page", 1).max(1);
    let total = items.len();
    let last = total.div_ceil(per_page).max(1);
    let shown: Vec<Value> = items.into_iter().skip((page - 1) * per_page).take(per_page).collect();
    let body = match wrap {
        Some(name) => json!({ "total_count": total, name: shown }),
        None => json!(shown),
    };
    let mut answer = Answer::json(200, &body);
    if page < last {
        let link = |page: usize, rel: &str| {
            format!("<{}{}?per_page={per_page}&page={page}>; rel=\"{rel}\"", state.base, request.path)
        };
        answer.headers.push(("Link".into(), format!("{}, {}", link(page + 1, "next"), link(last, "last"))));
    }
    Ok(answer)
}

/// Whether a new thing is still kept out of lists; counts the look.
fn lags(hidden: &mut u32) -> bool {
    if *hidden > 0 {
        *hidden -= 1;
        return true;
    }
    false
}

fn since(request: &Request) -> Result<Option<DateTime<Utc>>, Box<Answer>> {
    request
        .query
        .get("since")
        .map(|text| {
            DateTime::parse_from_rfc3339(text)
                .map(|at| at.with_timezone(&Utc))
                .map_err(|_| problem(422, "Invalid `since`"))
        })
        .transpose()
}

impl State {
    /// The workflows of a pull request's head start.
    pub fn pull_workflow(&mut self, base: i64, number: i64) {
        let repo = &self.repos[&base];
        let Some(pull) = repo.issues.get(&number).and_then(|issue| issue.pull.as_ref()) else { return };
        let started = WorkflowRun {
            repo: repo.full_name(),
            event: "pull_request",
            sha: pull.head_sha.clone(),
            secrets: pull.head_repo == Some(base),
        };
        self.workflow_runs.push(started);
    }

    /// Answers one request of the API.
    pub fn answer(&mut self, request: &Request) -> Answer {
        let segments: Vec<&str> = request.segments.iter().map(String::as_str).collect();
        let result = self.route(request, &segments);
        let mut answer = match result {
            Ok(answer) => answer,
            Err(answer) => *answer,
        };
        if request.method == "GET" && answer.status == 200 {
            let etag = format!("W/\"{}\"", &hex::encode(Sha256::digest(&answer.body))[..32]);
            if request.header("if-none-match") == Some(etag.as_str()) {
                answer = Answer { status: 304, headers: Vec::new(), body: Vec::new(), unknown: false };
            }
            answer.headers.push(("ETag".into(), etag));
        }
        answer
    }

    fn route(&mut self, request: &Request, segments: &[&str]) -> Handled {
        let method = request.method.as_str();
        match (method, segments) {
            ("GET", ["app"]) => {
                self.require_app(request)?;
                ok(&self.app_json())
            }
            ("GET", ["app", "installations"]) => {
                self.require_app(request)?;
                let all = self.installations.values().map(|i| self.installation_json(i)).collect();
                paged(self, request, all, None)
            }
            ("GET", ["app", "hook", "deliveries"]) => {
                self.require_app(request)?;
                self.list_attempts(request)
            }
            ("POST", ["app", "hook", "deliveries", id, "attempts"]) => {
                self.require_app(request)?;
                self.deliver_again(number(id)?)
            }
            ("POST", ["app", "installations", id, "access_tokens"]) => {
                self.require_app(request)?;
                self.grant_token(request, number(id)?)
            }
            ("GET", ["users", login]) => self.read_user(request, login),
            ("POST", ["graphql" | "api", ..]) => self.graphql(request),
            ("GET", ["user-attachments", ..]) => self.read_upload(request),
            ("POST", ["markdown"]) => self.render(request),
            (_, ["jira", "rest", "api", "2", rest @ ..]) => self.jira(request, rest),
            (_, ["sentry", "api", "0", rest @ ..]) => self.sentry(request, rest),
            (_, ["repos", owner, name, rest @ ..]) => {
                let full_name = format!("{owner}/{name}");
                match self.repo_id(&full_name) {
                    Some(id) => self.in_repo(request, id, method, rest),
                    None => match self.renamed(&full_name) {
                        Some(id) => {
                            let status = if method == "GET" { 301 } else { 307 };
                            let mut path = format!("{}/repositories/{id}", self.base);
                            let skip = format!("/repos/{owner}/{name}").len();
                            path.push_str(request.path.get(skip..).unwrap_or_default());
                            if !request.raw_query.is_empty() {
                                path.push('?');
                                path.push_str(&request.raw_query);
                            }
                            let mut answer =
                                Answer::json(status, &json!({ "message": "Moved Permanently", "url": path }));
                            answer.headers.push(("Location".into(), path));
                            Ok(answer)
                        }
                        None => Err(not_found()),
                    },
                }
            }
            ("POST", ["orgs", owner, "repos"]) => self.create_repo(request, owner),
            (_, ["repositories", id, rest @ ..]) => {
                let id = number(id)?;
                if !self.repos.contains_key(&id) {
                    return Err(not_found());
                }
                self.in_repo(request, id, method, rest)
            }
            _ => Err(unknown()),
        }
    }

    fn in_repo(&mut self, request: &Request, id: i64, method: &str, rest: &[&str]) -> Handled {
        use Level::{Read, Write as Change};
        let need = |state: &Self, any_of: &[&str], level: Level| state.authorise(request, id, any_of, level);
        match (method, rest) {
            ("GET", []) => {
                need(self, &["metadata"], Read)?;
                // Asked for alone, it tells more than inside other things.
                let mut value = self.repo_json(&self.repos[&id]);
                value["parent"] = json!(self.repos[&id].fork_of.map(|parent| json!({ "id": parent })));
                ok(&value)
            }
            ("GET", ["installation"]) => {
                self.require_app(request)?;
                let installation = self.installation_of(id).ok_or_else(not_found)?;
                ok(&self.installation_json(&self.installations[&installation]))
            }
            ("GET", ["collaborators", login, "permission"]) => {
                need(self, &["metadata"], Read)?;
                self.read_role(id, login)
            }
            ("GET", ["git", "ref", "heads", branch @ ..]) => {
                need(self, &["contents"], Read)?;
                self.read_ref(id, &branch.join("/"))
            }
            ("GET", ["contents", path @ ..]) => {
                need(self, &["contents"], Read)?;
                self.read_contents(request, id, &path.join("/"))
            }
            ("GET", ["issues", n]) => {
                need(self, &["issues", "pull_requests"], Read)?;
                let repo = &self.repos[&id];
                let issue = repo.issues.get(&number(n)?).ok_or_else(not_found)?;
                ok(&self.issue_json(repo, issue))
            }
            ("GET", ["issues", n, "comments"]) => {
                need(self, &["issues", "pull_requests"], Read)?;
                self.list_comments(request, id, number(n)?)
            }
            ("POST", ["issues", n, "comments"]) => {
                let caller = need(self, &["issues", "pull_requests"], Change)?;
                self.create_comment(request, &caller, id, number(n)?)
            }
            ("GET", ["issues", "comments", comment]) => {
                need(self, &["issues", "pull_requests"], Read)?;
                let comment = number(comment)?;
                let repo = &self.repos[&id];
                let found = repo.comments.iter().find(|c| c.id == comment).ok_or_else(not_found)?;
                ok(&self.comment_json(repo, found))
            }
            ("PATCH", ["issues", "comments", comment]) => {
                let caller = need(self, &["issues", "pull_requests"], Change)?;
                self.edit_comment(request, &caller, id, number(comment)?)
            }
            ("POST", ["issues", n, "reactions"]) => {
                let caller = need(self, &["issues", "pull_requests"], Change)?;
                self.react(request, &caller, id, On::Issue(number(n)?))
            }
            ("POST", ["issues", "comments", comment, "reactions"]) => {
                let caller = need(self, &["issues", "pull_requests"], Change)?;
                self.react(request, &caller, id, On::Comment(number(comment)?))
            }
            ("POST", ["pulls", "comments", comment, "reactions"]) => {
                let caller = need(self, &["pull_requests"], Change)?;
                self.react(request, &caller, id, On::ReviewComment(number(comment)?))
            }
            ("GET", ["pulls"]) => {
                need(self, &["pull_requests"], Read)?;
                self.list_pulls(request, id)
            }
            ("POST", ["pulls"]) => {
                let caller = need(self, &["pull_requests"], Change)?;
                self.create_pull(request, &caller, id)
            }
            ("GET", ["pulls", n]) => {
                need(self, &["pull_requests"], Read)?;
                let repo = &self.repos[&id];
                let issue = repo
                    .issues
                    .get(&number(n)?)
                    .filter(|issue| issue.pull.is_some())
                    .ok_or_else(not_found)?;
                ok(&self.full_pull_json(repo, issue))
            }
            ("PATCH", ["pulls", n]) => {
                let caller = need(self, &["pull_requests"], Change)?;
                self.edit_pull(request, &caller, id, number(n)?)
            }
            ("GET", ["pulls", n, "files"]) => {
                need(self, &["pull_requests"], Read)?;
                self.list_files(request, id, number(n)?)
            }
            ("GET", ["pulls", n, "comments"]) => {
                need(self, &["pull_requests"], Read)?;
                self.list_review_comments(request, id, number(n)?)
            }
            ("POST", ["pulls", n, "comments", thread, "replies"]) => {
                let caller = need(self, &["pull_requests"], Change)?;
                self.reply(request, &caller, id, number(n)?, number(thread)?)
            }
            ("PATCH", ["pulls", "comments", comment]) => {
                let caller = need(self, &["pull_requests"], Change)?;
                self.edit_reply(request, &caller, id, number(comment)?)
            }
            ("POST", ["check-runs"]) => {
                let caller = need(self, &["checks"], Change)?;
                self.create_check(request, &caller, id)
            }
            ("PATCH", ["check-runs", check]) => {
                let caller = need(self, &["checks"], Change)?;
                self.update_check(request, &caller, id, number(check)?)
            }
            ("GET", ["check-runs", check, "annotations"]) => {
                need(self, &["checks"], Read)?;
                let check = number(check)?;
                let found = self.repos[&id].checks.iter().find(|c| c.id == check).ok_or_else(not_found)?;
                let items = found.annotations.iter().map(|line| annotation_json(line)).collect();
                paged(self, request, items, None)
            }
            ("GET", ["actions", "jobs", job, "logs"]) => {
                need(self, &["actions"], Read)?;
                let job = number(job)?;
                let found = self.repos[&id].checks.iter().find(|c| c.id == job && c.log.is_some());
                found.ok_or_else(not_found)?;
                Ok(moved(&format!("{}/log/{job}?sig=secret", self.storage)))
            }
            ("GET", ["commits", sha, "check-runs"]) => {
                need(self, &["checks"], Read)?;
                self.list_checks(request, id, sha)
            }
            ("POST", ["issues"]) => {
                let caller = need(self, &["issues"], Change)?;
                self.create_issue(request, &caller, id)
            }
            ("GET", ["issues"]) => {
                need(self, &["issues"], Read)?;
                self.list_issues(request, id)
            }
            ("PATCH", ["issues", n]) => {
                let caller = need(self, &["issues"], Change)?;
                self.edit_issue(request, &caller, id, number(n)?)
            }
            ("POST", ["issues", n, "labels"]) => {
                let caller = need(self, &["issues", "pull_requests"], Change)?;
                self.add_labels(request, &caller, id, number(n)?)
            }
            ("DELETE", ["issues", n, "labels", name]) => {
                let caller = need(self, &["issues", "pull_requests"], Change)?;
                self.remove_label(request, &caller, id, number(n)?, name)
            }
            ("POST", ["issues", n, "assignees"]) => {
                let caller = need(self, &["issues", "pull_requests"], Change)?;
                self.add_people(request, &caller, id, number(n)?, "assignees")
            }
            ("POST", ["pulls", n, "requested_reviewers"]) => {
                let caller = need(self, &["pull_requests"], Change)?;
                self.add_people(request, &caller, id, number(n)?, "reviewers")
            }
            ("DELETE", ["issues", "comments", comment]) => {
                let caller = need(self, &["issues", "pull_requests"], Change)?;
                self.remove_comment(request, &caller, id, number(comment)?)
            }
            ("DELETE", ["pulls", "comments", comment]) => {
                let caller = need(self, &["pull_requests"], Change)?;
                self.remove_reply(request, &caller, id, number(comment)?)
            }
            ("GET", ["pulls", n, "reviews"]) => {
                need(self, &["pull_requests"], Read)?;
                let (n, unseen) = (number(n)?, self.unseen());
                let repo = &self.repos[&id];
                let shown = repo.reviews.iter().filter(|r| r.number == n && !unseen.contains(&r.id));
                paged(self, request, shown.map(|review| self.review_json(repo, review)).collect(), None)
            }
            ("POST", ["pulls", n, "reviews"]) => {
                let caller = need(self, &["pull_requests"], Change)?;
                self.create_review(request, &caller, id, number(n)?)
            }
            ("PUT", ["pulls", n, "reviews", review]) => {
                let caller = need(self, &["pull_requests"], Change)?;
                self.edit_review(request, &caller, id, (number(n)?, number(review)?))
            }
            ("GET", ["pulls", n, "reviews", review, "comments"]) => {
                need(self, &["pull_requests"], Read)?;
                let (n, review) = (number(n)?, number(review)?);
                let repo = &self.repos[&id];
                let lines = repo.review_comments.iter();
                let shown = lines.filter(|line| line.number == n && line.review == Some(review));
                paged(self, request, shown.map(|line| self.review_comment_json(repo, line)).collect(), None)
            }
            ("DELETE", ["git", "refs", "heads", branch @ ..]) => {
                let caller = need(self, &["contents"], Change)?;
                self.remove_branch(request, &caller, id, &branch.join("/"))
            }
            ("POST", ["forks"]) => {
                let caller = need(self, &["administration"], Change)?;
                self.create_fork(request, &caller, id)
            }
            _ => Err(unknown()),
        }
    }

    /// The App itself: a JWT of the right key, issuer and time.
    fn require_app(&self, request: &Request) -> Result<(), Box<Answer>> {
        #[derive(serde::Deserialize)]
        struct Claims {
            iss: String,
            iat: i64,
            exp: i64,
        }
        let refused = || problem(401, "A JSON web token could not be decoded");
        let jwt = request.bearer().ok_or_else(refused)?;
        let key = DecodingKey::from_rsa_pem(&self.public_key).expect("the test key");
        let mut validation = Validation::new(Algorithm::RS256);
        // Times are checked against the model's own clock below.
        validation.validate_exp = false;
        validation.required_spec_claims.clear();
        let claims = decode::<Claims>(jwt, &key, &validation).map_err(|_| refused())?.claims;
        let now = self.now().timestamp();
        if claims.iss != self.app_id.to_string() {
            return Err(problem(401, "Integration not found"));
        }
        if claims.exp <= now {
            return Err(problem(401, "'Expiration time' claim ('exp') must be in the future"));
        }
        if claims.exp - now > 600 || claims.iat > now {
            return Err(problem(401, "'Expiration time' claim ('exp') is too far in the future"));
        }
        Ok(())
    }

    fn token<'a>(&'a self, request: &Request) -> Result<&'a Token, Box<Answer>> {
        let text = request.bearer().ok_or_else(|| problem(401, "Requires authentication"))?;
        self.tokens
            .get(text)
            .filter(|token| token.expires_at > self.now())
            .ok_or_else(|| problem(401, "Bad credentials"))
    }

    /// Checks that the token of a request covers this repository with one of these permissions.
    fn authorise(
        &self,
        request: &Request,
        repo: i64,
        any_of: &[&str],
        level: Level,
    ) -> Result<Caller, Box<Answer>> {
        let token = self.token(request)?;
        let installation =
            self.installations.get(&token.installation).ok_or_else(|| problem(401, "Bad credentials"))?;
        if installation.suspended {
            return Err(problem(403, "This installation has been suspended"));
        }
        let covered = token.repos.as_ref().is_none_or(|repos| repos.contains(&repo))
            && installation.repos.contains(&repo)
            && self.repos.get(&repo).is_some_and(|repo| !repo.deleted);
        if !covered {
            // Stricter than GitHub for public repositories: no call of ours may leave its repository.
            return Err(if level == Level::Read { not_found() } else { inaccessible() });
        }
        if !permitted(&token.permissions, any_of, level) {
            return Err(inaccessible());
        }
        Ok(Caller { permissions: token.permissions.clone() })
    }

    fn wrote(&mut self, request: &Request, caller: &Caller, summary: String) {
        let write = Write {
            at: self.now(),
            method: request.method.clone(),
            path: request.path.clone(),
            summary,
            permissions: caller.permissions.clone(),
        };
        self.writes.push(write);
    }

    fn installation_json(&self, installation: &Installation) -> Value {
        json!({
            "id": installation.id,
            "app_id": self.app_id,
            "account": self.owner_json(&installation.account),
            "repository_selection": "selected",
            "suspended_at": installation.suspended.then(|| stamp(self.now())),
        })
    }

    fn grant_token(&mut self, request: &Request, id: i64) -> Handled {
        let installation = self.installations.get(&id).cloned().ok_or_else(not_found)?;
        if installation.suspended {
            return Err(problem(403, "This installation has been suspended"));
        }
        let body = if request.body.is_empty() { json!({}) } else { request.json()? };
        let repos: Option<BTreeSet<i64>> = match body.get("repository_ids") {
            None | Some(Value::Null) => None,
            Some(Value::Array(ids)) => Some(ids.iter().filter_map(Value::as_i64).collect()),
            Some(_) => return Err(problem(422, "`repository_ids` is not an array")),
        };
        if repos.as_ref().is_some_and(|repos| repos.is_empty() || !repos.is_subset(&installation.repos)) {
            return Err(problem(
                422,
                "There is at least one repository that does not exist or is not accessible to the parent installation.",
            ));
        }
        let permissions = match body.get("permissions") {
            None | Some(Value::Null) => installation.permissions.clone(),
            Some(Value::Object(wanted)) => {
                let mut permissions = BTreeMap::new();
                for (name, level) in wanted {
                    let level = match level.as_str() {
                        Some("read") => Level::Read,
                        Some("write") => Level::Write,
                        _ => return Err(problem(422, &format!("`{level}` is no level of `{name}`"))),
                    };
                    if installation.permissions.get(name).is_none_or(|have| *have < level) {
                        return Err(problem(
                            422,
                            "The permissions requested are not granted to this installation.",
                        ));
                    }
                    permissions.insert(name.clone(), level);
                }
                permissions
            }
            Some(_) => return Err(problem(422, "`permissions` is not an object")),
        };
        let text = format!("ghs_fake{:06}", self.id());
        let expires_at = self.now() + self.token_life;
        self.token_grants.push(TokenGrant {
            installation: id,
            repos: repos.clone(),
            permissions: permissions.clone(),
        });
        self.tokens.insert(text.clone(), Token { installation: id, repos, permissions, expires_at });
        Ok(Answer::json(201, &json!({ "token": text, "expires_at": stamp(expires_at) })))
    }

    fn read_user(&self, request: &Request, login: &str) -> Handled {
        if request.header("authorization").is_some() {
            self.token(request)?;
        } else if self.private_mode {
            return Err(problem(401, "Must authenticate to access this API."));
        }
        let id = self.user_id(login).ok_or_else(not_found)?;
        ok(&self.user_json(id))
    }

    fn read_role(&self, id: i64, login: &str) -> Handled {
        let repo = &self.repos[&id];
        let user = self.user_id(login).ok_or_else(|| problem(404, &format!("{login} is not a user")))?;
        let (role_name, permission) = self.role(repo, user);
        ok(&json!({ "permission": permission, "role_name": role_name, "user": self.user_json(user) }))
    }

    fn read_ref(&self, id: i64, branch: &str) -> Handled {
        let repo = &self.repos[&id];
        if repo.heads().is_empty() {
            return Err(problem(409, "Git Repository is empty."));
        }
        let sha = repo.head_of(branch).ok_or_else(not_found)?;
        ok(&json!({
            "ref": format!("refs/heads/{branch}"),
            "node_id": "REF_1",
            "object": { "type": "commit", "sha": sha },
        }))
    }

    fn read_contents(&self, request: &Request, id: i64, path: &str) -> Handled {
        let repo = &self.repos[&id];
        let git = repo.git();
        if repo.heads().is_empty() {
            return Err(problem(404, "This repository is empty."));
        }
        let at = request.query.get("ref").map_or(repo.default_branch.as_str(), String::as_str);
        let commit = git
            .find_reference(&format!("refs/heads/{at}"))
            .and_then(|reference| reference.peel_to_commit())
            .or_else(|_| git.revparse_single(at).and_then(|object| object.peel_to_commit()))
            .map_err(|_| problem(404, &format!("No commit found for the ref {at}")))?;
        let tree = commit.tree().expect("a commit has a tree");
        let (object, name) = if path.is_empty() {
            (tree.into_object(), String::new())
        } else {
            let entry = tree.get_path(std::path::Path::new(path)).map_err(|_| not_found())?;
            let name = String::from_utf8_lossy(entry.name_bytes()).into_owned();
            (entry.to_object(&git).map_err(|_| not_found())?, name)
        };
        if let Some(folder) = object.as_tree() {
            let entries: Vec<Value> = folder
                .iter()
                .map(|entry| {
                    let kind = match entry.kind() {
                        Some(git2::ObjectType::Tree) => "dir",
                        Some(git2::ObjectType::Commit) => "submodule",
                        _ if entry.filemode() == 0o120_000 => "symlink",
                        _ => "file",
                    };
                    let name = String::from_utf8_lossy(entry.name_bytes()).into_owned();
                    json!({ "name": name, "type": kind, "sha": entry.id().to_string() })
                })
                .collect();
            return ok(&json!(entries));
        }
        let blob = object.as_blob().ok_or_else(not_found)?;
        if request.header("accept").is_some_and(|accept| accept.contains("raw")) {
            return Ok(Answer::raw(
                200,
                "application/vnd.github.raw+json; charset=utf-8",
                blob.content().to_vec(),
            ));
        }
        ok(&json!({
            "name": name,
            "path": path,
            "type": "file",
            "size": blob.size(),
            "encoding": "base64",
            "content": base64::engine::general_purpose::STANDARD.encode(blob.content()),
        }))
    }

    fn list_comments(&mut self, request: &Request, id: i64, n: i64) -> Handled {
        let since = since(request)?;
        let unseen = self.unseen();
        let repo = self.repos.get_mut(&id).expect("authorised");
        if !repo.issues.contains_key(&n) {
            return Err(not_found());
        }
        let shown: Vec<Comment> = repo
            .comments
            .iter_mut()
            .filter(|comment| comment.number == n && since.is_none_or(|since| comment.updated_at >= since))
            .filter(|comment| !unseen.contains(&comment.id))
            .filter_map(|comment| (!lags(&mut comment.hidden)).then(|| comment.clone()))
            .collect();
        let repo = &self.repos[&id];
        let items = shown.iter().map(|comment| self.comment_json(repo, comment)).collect();
        paged(self, request, items, None)
    }

    fn create_comment(&mut self, request: &Request, caller: &Caller, id: i64, n: i64) -> Handled {
        let body = comment_body(&request.json()?, "IssueComment")?;
        let repo = &self.repos[&id];
        let issue = repo.issues.get(&n).ok_or_else(not_found)?;
        let kind = if issue.pull.is_some() { "pull_requests" } else { "issues" };
        if issue.pull.is_none() && !repo.issues_enabled {
            return Err(problem(410, "Issues are disabled for this repo"));
        }
        if issue.locked {
            return Err(problem(403, "Unable to create comment because issue is locked."));
        }
        if !permitted(&caller.permissions, &["issues", kind], Level::Write) {
            return Err(inaccessible());
        }
        let (now, author, lag) = (self.now(), self.bot, self.lag);
        let comment = Comment {
            id: self.made(),
            number: n,
            body,
            author,
            via_app: true,
            created_at: now,
            updated_at: now,
            minimised: None,
            edits: 0,
            hidden: lag,
        };
        let summary = format!(
            "comment {} on {}#{n}: {}",
            comment.id,
            self.repos[&id].full_name(),
            line_of(&comment.body)
        );
        let value = self.comment_json(&self.repos[&id], &comment);
        self.repos.get_mut(&id).expect("authorised").comments.push(comment);
        self.wrote(request, caller, summary);
        Ok(Answer::json(201, &value))
    }

    fn edit_comment(&mut self, request: &Request, caller: &Caller, id: i64, comment: i64) -> Handled {
        let body = comment_body(&request.json()?, "IssueComment")?;
        let (now, bot) = (self.now(), self.bot);
        let repo = self.repos.get_mut(&id).expect("authorised");
        let name = repo.full_name();
        let found = repo.comments.iter_mut().find(|found| found.id == comment).ok_or_else(not_found)?;
        if found.author != bot {
            return Err(inaccessible());
        }
        found.body = body;
        found.updated_at = now;
        found.edits += 1;
        let found = found.clone();
        self.wrote(
            request,
            caller,
            format!("edit comment {comment} on {name}#{}: {}", found.number, line_of(&found.body)),
        );
        ok(&self.comment_json(&self.repos[&id], &found))
    }

    fn react(&mut self, request: &Request, caller: &Caller, id: i64, on: On) -> Handled {
        let body = request.json()?;
        let content = text(&body, "content", "Reaction")?.to_owned();
        let (reaction, new) = self.add_reaction(id, on, &content)?;
        if new {
            let summary = format!("{content} on {on:?} of {}", self.repos[&id].full_name());
            self.wrote(request, caller, summary);
        }
        Ok(Answer::json(if new { 201 } else { 200 }, &self.reaction_json(&reaction)))
    }

    fn add_reaction(&mut self, id: i64, on: On, content: &str) -> Result<(Reaction, bool), Box<Answer>> {
        let known = ["+1", "-1", "laugh", "confused", "heart", "hooray", "rocket", "eyes"];
        if !known.contains(&content) {
            return Err(invalid("Reaction", "content", "invalid", None));
        }
        let author = self.bot;
        let new_id = self.id();
        let repo = self.repos.get_mut(&id).expect("authorised");
        let there = match on {
            On::Issue(n) => repo.issues.contains_key(&n),
            On::Comment(c) => repo.comments.iter().any(|found| found.id == c),
            On::ReviewComment(c) => repo.review_comments.iter().any(|found| found.id == c),
            On::Review(r) => repo.reviews.iter().any(|found| found.id == r),
        };
        if !there {
            return Err(not_found());
        }
        let same = |found: &&Reaction| found.on == on && found.author == author && found.content == content;
        if let Some(found) = repo.reactions.iter().find(same) {
            return Ok((found.clone(), false));
        }
        let reaction = Reaction { id: new_id, on, author, content: content.to_owned() };
        repo.reactions.push(reaction.clone());
        Ok((reaction, true))
    }

    fn list_pulls(&mut self, request: &Request, id: i64) -> Handled {
        let state = request.query.get("state").map_or("open", String::as_str).to_owned();
        let head = request.query.get("head").cloned();
        let base = request.query.get("base").cloned();
        let owners: BTreeMap<i64, String> =
            self.repos.values().map(|repo| (repo.id, repo.owner.clone())).collect();
        let unseen = self.unseen();
        let repo = self.repos.get_mut(&id).expect("authorised");
        let mut shown: Vec<Issue> = Vec::new();
        for issue in repo.issues.values_mut() {
            let (open, young) = (issue.open, unseen.contains(&issue.id));
            let Some(pull) = issue.pull.as_mut() else { continue };
            let owner = pull.head_repo.and_then(|repo| owners.get(&repo)).cloned().unwrap_or_default();
            let fits = (state == "all" || (state == "open") == open)
                && head.as_ref().is_none_or(|head| *head == format!("{owner}:{}", pull.head_ref))
                && base.as_ref().is_none_or(|base| *base == pull.base_ref);
            if fits && !young && !lags(&mut pull.hidden) {
                shown.push(issue.clone());
            }
        }
        // GitHub's default order: the newest first.
        shown.reverse();
        let repo = &self.repos[&id];
        let items = shown.iter().map(|issue| self.pull_json(repo, issue)).collect();
        paged(self, request, items, None)
    }

    fn create_pull(&mut self, request: &Request, caller: &Caller, id: i64) -> Handled {
        let body = request.json()?;
        let title = text(&body, "title", "PullRequest")?.to_owned();
        let head = text(&body, "head", "PullRequest")?.to_owned();
        let base = text(&body, "base", "PullRequest")?.to_owned();
        let description = optional(&body, "body")?.unwrap_or_default().to_owned();
        let draft = match body.get("draft") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(draft)) => *draft,
            Some(_) => return Err(problem(422, "For 'properties/draft', not a boolean.")),
        };
        if title.trim().is_empty() || title.chars().count() > 256 {
            return Err(invalid("PullRequest", "title", "invalid", None));
        }
        if description.chars().count() > BODY_CHARS {
            return Err(invalid(
                "PullRequest",
                "body",
                "custom",
                Some("body is too long (maximum is 65536 characters)"),
            ));
        }
        let repo = &self.repos[&id];
        let (owner, branch) = match head.split_once(':') {
            Some((owner, branch)) => (owner.to_owned(), branch.to_owned()),
            None => (repo.owner.clone(), head.clone()),
        };
        let head_repo = self
            .repos
            .values()
            .find(|other| {
                !other.deleted
                    && other.owner.eq_ignore_ascii_case(&owner)
                    && (other.id == id || other.fork_of == Some(id))
            })
            .ok_or_else(|| invalid("PullRequest", "head", "invalid", None))?;
        let head_sha =
            head_repo.head_of(&branch).ok_or_else(|| invalid("PullRequest", "head", "invalid", None))?;
        let base_sha = repo.head_of(&base).ok_or_else(|| invalid("PullRequest", "base", "invalid", None))?;
        let exists = repo.issues.values().filter(|issue| issue.open).any(|issue| {
            issue.pull.as_ref().is_some_and(|pull| {
                pull.head_repo == Some(head_repo.id) && pull.head_ref == branch && pull.base_ref == base
            })
        });
        if exists {
            let message = format!("A pull request already exists for {owner}:{branch}.");
            return Err(invalid("PullRequest", "", "custom", Some(&message)));
        }
        let git = head_repo.git();
        let oid = |sha: &str| git2::Oid::from_str(sha).expect("a ref's target");
        let ahead = git.graph_ahead_behind(oid(&head_sha), oid(&base_sha)).map_or(1, |(ahead, _)| ahead);
        if ahead == 0 {
            let message = format!("No commits between {base} and {branch}");
            return Err(invalid("PullRequest", "", "custom", Some(&message)));
        }
        if draft && !repo.drafts_supported {
            return Err(problem(422, "Draft pull requests are not supported in this repository."));
        }
        let (head_id, head_path, base_path) = (head_repo.id, head_repo.path.clone(), repo.path.clone());
        let (now, author, lag) = (self.now(), self.bot, self.lag);
        let issue = Issue {
            id: self.made(),
            number: self.repos[&id].next_number(),
            title,
            body: description,
            author,
            open: true,
            locked: false,
            pull: Some(Pull {
                head_repo: Some(head_id),
                head_ref: branch.clone(),
                head_sha,
                base_ref: base.clone(),
                base_sha,
                draft,
                merged: false,
                auto_merge: None,
                hidden: lag,
            }),
            labels: Vec::new(),
            assignees: Vec::new(),
            reviewers: Vec::new(),
            created_at: now,
            updated_at: now,
        };
        publish_pull_ref(&head_path, &base_path, &branch, issue.number);
        let summary = format!(
            "{}pull request {}#{} {branch} -> {base}: {}",
            if draft { "draft " } else { "" },
            self.repos[&id].full_name(),
            issue.number,
            issue.title
        );
        let value = self.full_pull_json(&self.repos[&id], &issue);
        let number = issue.number;
        self.repos.get_mut(&id).expect("authorised").issues.insert(number, issue);
        self.wrote(request, caller, summary);
        self.pull_workflow(id, number);
        Ok(Answer::json(201, &value))
    }

    fn edit_pull(&mut self, request: &Request, caller: &Caller, id: i64, n: i64) -> Handled {
        let body = request.json()?;
        let title = optional(&body, "title")?.map(str::to_owned);
        let description = optional(&body, "body")?.map(str::to_owned);
        let state = optional(&body, "state")?.map(str::to_owned);
        if description.as_ref().is_some_and(|text| text.chars().count() > BODY_CHARS) {
            return Err(invalid(
                "PullRequest",
                "body",
                "custom",
                Some("body is too long (maximum is 65536 characters)"),
            ));
        }
        let now = self.now();
        let repo = self.repos.get_mut(&id).expect("authorised");
        let issue = repo.issues.get_mut(&n).filter(|issue| issue.pull.is_some()).ok_or_else(not_found)?;
        if let Some(title) = title {
            issue.title = title;
        }
        if let Some(description) = description {
            issue.body = description;
        }
        match state.as_deref() {
            Some("closed") => issue.open = false,
            Some("open") => issue.open = true,
            Some(_) => return Err(invalid("PullRequest", "state", "invalid", None)),
            None => {}
        }
        issue.updated_at = now;
        let issue = issue.clone();
        let summary = format!("edit pull request {}#{n}: {}", repo.full_name(), issue.title);
        self.wrote(request, caller, summary);
        ok(&self.full_pull_json(&self.repos[&id], &issue))
    }

    fn list_files(&self, request: &Request, id: i64, n: i64) -> Handled {
        let repo = &self.repos[&id];
        let pull = repo.issues.get(&n).and_then(|issue| issue.pull.as_ref()).ok_or_else(not_found)?;
        let git = repo.git();
        let tree = |sha: &str| {
            let oid = git2::Oid::from_str(sha).expect("a commit id");
            git.find_commit(oid).expect("published by open_pull").tree().expect("a commit has a tree")
        };
        let diff = git
            .diff_tree_to_tree(Some(&tree(&pull.base_sha)), Some(&tree(&pull.head_sha)), None)
            .expect("two trees");
        let path = |file: git2::DiffFile<'_>| file.path().map(|path| path.to_string_lossy().into_owned());
        let files = diff
            .deltas()
            .filter_map(|delta| path(delta.new_file()).or_else(|| path(delta.old_file())))
            .map(|name| json!({ "filename": name, "status": "modified" }))
            .collect();
        paged(self, request, files, None)
    }

    fn list_review_comments(&mut self, request: &Request, id: i64, n: i64) -> Handled {
        let since = since(request)?;
        let unseen = self.unseen();
        let repo = self.repos.get_mut(&id).expect("authorised");
        if repo.issues.get(&n).is_none_or(|issue| issue.pull.is_none()) {
            return Err(not_found());
        }
        let mut shown: Vec<ReviewComment> = repo
            .review_comments
            .iter_mut()
            .filter(|comment| comment.number == n && since.is_none_or(|since| comment.updated_at >= since))
            .filter(|comment| !unseen.contains(&comment.id))
            .filter_map(|comment| (!lags(&mut comment.hidden)).then(|| comment.clone()))
            .collect();
        if request.query.get("direction").is_some_and(|direction| direction == "desc") {
            shown.reverse();
        }
        let repo = &self.repos[&id];
        let items = shown.iter().map(|comment| self.review_comment_json(repo, comment)).collect();
        paged(self, request, items, None)
    }

    fn reply(&mut self, request: &Request, caller: &Caller, id: i64, n: i64, thread: i64) -> Handled {
        let body = comment_body(&request.json()?, "PullRequestReviewComment")?;
        let first = self.repos[&id]
            .review_comments
            .iter()
            .find(|comment| comment.id == thread && comment.number == n && comment.reply_to.is_none())
            .cloned()
            .ok_or_else(not_found)?;
        let (now, author, lag) = (self.now(), self.bot, self.lag);
        let comment = ReviewComment {
            id: self.made(),
            reply_to: Some(first.id),
            body,
            author,
            created_at: now,
            updated_at: now,
            hidden: lag,
            ..first
        };
        let summary = format!(
            "reply {} in thread {thread} of {}#{n}: {}",
            comment.id,
            self.repos[&id].full_name(),
            line_of(&comment.body)
        );
        let value = self.review_comment_json(&self.repos[&id], &comment);
        self.repos.get_mut(&id).expect("authorised").review_comments.push(comment);
        self.wrote(request, caller, summary);
        Ok(Answer::json(201, &value))
    }

    fn edit_reply(&mut self, request: &Request, caller: &Caller, id: i64, comment: i64) -> Handled {
        let body = comment_body(&request.json()?, "PullRequestReviewComment")?;
        let (now, bot) = (self.now(), self.bot);
        let repo = self.repos.get_mut(&id).expect("authorised");
        let found =
            repo.review_comments.iter_mut().find(|found| found.id == comment).ok_or_else(not_found)?;
        if found.author != bot {
            return Err(inaccessible());
        }
        found.body = body;
        found.updated_at = now;
        let found = found.clone();
        let summary = format!(
            "edit reply {comment} of {}#{}: {}",
            repo.full_name(),
            found.number,
            line_of(&found.body)
        );
        self.wrote(request, caller, summary);
        ok(&self.review_comment_json(&self.repos[&id], &found))
    }

    /// Checks the fields that creating and updating share, and puts them on the check.
    fn fill_check(body: &Value, check: &mut Check) -> Result<(), Box<Answer>> {
        const STATUSES: [&str; 3] = ["queued", "in_progress", "completed"];
        const CONCLUSIONS: [&str; 8] = [
            "success",
            "failure",
            "neutral",
            "cancelled",
            "timed_out",
            "action_required",
            "skipped",
            "stale",
        ];
        if let Some(name) = optional(body, "name")? {
            check.name = name.to_owned();
        }
        if let Some(external_id) = optional(body, "external_id")? {
            check.external_id = external_id.to_owned();
        }
        if let Some(url) = optional(body, "details_url")? {
            if !url.starts_with("http://") && !url.starts_with("https://") {
                return Err(problem(422, "Invalid request.\n\ndetails_url must use http or https."));
            }
            check.details_url = Some(url.to_owned());
        }
        for (field, place) in
            [("started_at", &mut check.started_at), ("completed_at", &mut check.completed_at)]
        {
            if let Some(time) = optional(body, field)? {
                if DateTime::parse_from_rfc3339(time).is_err() {
                    return Err(problem(422, &format!("Invalid request.\n\n{field} is not a date-time.")));
                }
                *place = Some(time.to_owned());
            }
        }
        if let Some(output) = body.get("output").filter(|output| !output.is_null()) {
            text(output, "title", "CheckRun")?.clone_into(&mut check.title);
            let summary = text(output, "summary", "CheckRun")?;
            if summary.chars().count() > 65_535 {
                return Err(problem(
                    422,
                    "Invalid request.\n\nOnly 65535 characters are allowed for summary.",
                ));
            }
            summary.clone_into(&mut check.summary);
            let annotations =
                output.get("annotations").and_then(Value::as_array).cloned().unwrap_or_default();
            if annotations.len() > 50 {
                return Err(problem(422, "Invalid request.\n\nNo more than 50 annotations are allowed."));
            }
            for found in &annotations {
                let (path, message) = (text(found, "path", "CheckRun")?, text(found, "message", "CheckRun")?);
                let level = text(found, "annotation_level", "CheckRun")?;
                let line = found.get("start_line").and_then(Value::as_i64).filter(|line| *line > 0);
                let (Some(line), "failure" | "warning" | "notice") = (line, level) else {
                    return Err(problem(422, "Invalid request.\n\nInvalid annotation."));
                };
                check.annotations.push(format!("{path}:{line} {message}"));
            }
        }
        let status = optional(body, "status")?;
        let conclusion = optional(body, "conclusion")?;
        if let Some(status) = status {
            if !STATUSES.contains(&status) {
                return Err(problem(
                    422,
                    &format!("Invalid request.\n\n{status} is not a member of {STATUSES:?}."),
                ));
            }
            if status == "completed" && conclusion.is_none() {
                return Err(problem(
                    422,
                    "Invalid request.\n\nconclusion is required for a completed check.",
                ));
            }
            status.clone_into(&mut check.status);
            if status != "completed" {
                check.conclusion = None;
            }
        }
        if let Some(conclusion) = conclusion {
            if !CONCLUSIONS.contains(&conclusion) {
                return Err(problem(
                    422,
                    &format!("Invalid request.\n\n{conclusion} is not a member of {CONCLUSIONS:?}."),
                ));
            }
            // As at GitHub: a conclusion completes the check, whatever the status says.
            check.conclusion = Some(conclusion.to_owned());
            check.status = "completed".into();
        }
        check.history.push(match &check.conclusion {
            Some(conclusion) => format!("{}/{conclusion}", check.status),
            None => check.status.clone(),
        });
        Ok(())
    }

    fn create_check(&mut self, request: &Request, caller: &Caller, id: i64) -> Handled {
        let body = request.json()?;
        let name = text(&body, "name", "CheckRun")?.to_owned();
        let head_sha = text(&body, "head_sha", "CheckRun")?.to_owned();
        let mut check = Check {
            id: self.made(),
            name,
            head_sha,
            external_id: String::new(),
            status: "queued".into(),
            conclusion: None,
            title: String::new(),
            summary: String::new(),
            details_url: None,
            started_at: None,
            completed_at: None,
            annotations: Vec::new(),
            reporter: None,
            log: None,
            history: Vec::new(),
            hidden: self.lag,
        };
        Self::fill_check(&body, &mut check)?;
        if !self.repos[&id].has_commit(&check.head_sha) {
            return Err(problem(422, &format!("No commit found for SHA: {}", check.head_sha)));
        }
        let value = self.check_json(&self.repos[&id], &check);
        let summary = check_line("check", &self.repos[&id], &check);
        self.repos.get_mut(&id).expect("authorised").checks.push(check);
        self.wrote(request, caller, summary);
        Ok(Answer::json(201, &value))
    }

    fn update_check(&mut self, request: &Request, caller: &Caller, id: i64, check: i64) -> Handled {
        let body = request.json()?;
        let repo = self.repos.get_mut(&id).expect("authorised");
        let found = repo.checks.iter_mut().find(|found| found.id == check).ok_or_else(not_found)?;
        let mut changed = found.clone();
        Self::fill_check(&body, &mut changed)?;
        *found = changed.clone();
        let summary = check_line("update check", repo, &changed);
        self.wrote(request, caller, summary);
        ok(&self.check_json(&self.repos[&id], &changed))
    }

    fn list_checks(&mut self, request: &Request, id: i64, sha: &str) -> Handled {
        let wanted = |name: &str| request.query.get(name).cloned();
        let (name, app, filter) = (wanted("check_name"), wanted("app_id"), wanted("filter"));
        let status = wanted("status");
        let own = self.app_id.to_string();
        let of_app = |check: &Check| match &app {
            None => true,
            Some(app) => *app == own && check.reporter.is_none(),
        };
        let unseen = self.unseen();
        let repo = self.repos.get_mut(&id).expect("authorised");
        if !repo.has_commit(sha) {
            return Err(problem(422, &format!("No commit found for SHA: {sha}")));
        }
        let mut shown: Vec<Check> = repo
            .checks
            .iter_mut()
            .filter(|check| check.head_sha == sha && name.as_ref().is_none_or(|n| *n == check.name))
            .filter(|check| of_app(check) && status.as_ref().is_none_or(|status| *status == check.status))
            .filter(|check| !unseen.contains(&check.id))
            .filter_map(|check| (!lags(&mut check.hidden)).then(|| check.clone()))
            .collect();
        shown.reverse();
        if filter.as_deref() != Some("all") {
            let mut seen = BTreeSet::new();
            shown.retain(|check| seen.insert(check.name.clone()));
        }
        let repo = &self.repos[&id];
        let items = shown.iter().map(|check| self.check_json(repo, check)).collect();
        paged(self, request, items, Some("check_runs"))
    }

    /// A file's address at the web host: it only knows where the file is.
    fn read_upload(&self, request: &Request) -> Handled {
        let (n, upload) = self
            .uploads
            .iter()
            .find(|(_, upload)| upload.path == request.path && upload.private_in.is_none())
            .ok_or_else(not_found)?;
        Ok(moved(
            &upload.elsewhere.clone().unwrap_or_else(|| format!("{}/blob/{n}?sig=secret", self.storage)),
        ))
    }

    /// Renders Markdown: all that is modelled are the signed addresses of images that the token's repository shows.
    fn render(&self, request: &Request) -> Handled {
        let body = request.json()?;
        let source = text(&body, "text", "Markdown")?;
        let id = self.repo_id(text(&body, "context", "Markdown")?).ok_or_else(not_found)?;
        self.authorise(request, id, &["contents"], Level::Read)?;
        let url = source.strip_prefix("![](").and_then(|rest| rest.strip_suffix(')')).unwrap_or_default();
        let found = self.uploads.iter().find(|(_, upload)| {
            url == format!("{}{}", self.base, upload.path)
                && upload.path.contains("/assets/")
                && upload.private_in == Some(id)
        });
        let shown = match found {
            Some((n, _)) => format!("{}/blob/{n}?jwt=secret&amp;x=1", self.storage),
            None => url.to_owned(),
        };
        let html = format!("<p><a href=\"{shown}\"><img src=\"{shown}\" alt=\"\"></a></p>");
        Ok(Answer::raw(200, "text/html; charset=utf-8", html.into_bytes()))
    }

    /// The storage: whoever has a signature gets the bytes, whoever brings other credentials is sent away.
    pub fn stored(&self, request: &Request) -> Answer {
        let refuse = |status, text: &str| Answer::raw(status, "application/xml", text.as_bytes().to_vec());
        if request.header("authorization").is_some() {
            return refuse(400, "<Error><Code>InvalidArgument</Code></Error>");
        }
        let signed =
            ["sig", "jwt"].iter().any(|name| request.query.get(*name).is_some_and(|v| v == "secret"));
        let bytes = match request.segments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["blob", n] => n.parse().ok().and_then(|n| self.uploads.get(&n)).map(|found| found.bytes.clone()),
            ["log", job] => self
                .repos
                .values()
                .flat_map(|repo| &repo.checks)
                .find(|check| check.id.to_string() == *job)
                .and_then(|check| check.log.clone().map(String::into_bytes)),
            _ => None,
        };
        match bytes {
            Some(_) if !signed => refuse(403, "<Error><Code>AccessDenied</Code></Error>"),
            // Whatever the bytes are: their kind is not to be read from here.
            Some(bytes) => Answer::raw(200, "image/png", bytes),
            None => refuse(404, "<Error><Code>NoSuchKey</Code></Error>"),
        }
    }

    fn graphql(&mut self, request: &Request) -> Handled {
        let body = request.json()?;
        let query = text(&body, "query", "GraphQL")?.to_owned();
        let variable = |name: &str| {
            body.pointer(&format!("/variables/{name}")).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        self.token(request)?;
        let failed = |kind: &str, message: String| {
            ok(&json!({ "data": null, "errors": [{ "type": kind, "message": message, "path": [] }] }))
        };
        let subject = variable("subject");
        let Some((id, on)) = self.node(&subject) else {
            return failed(
                "NOT_FOUND",
                format!("Could not resolve to a node with the global id of '{subject}'."),
            );
        };
        let Ok(caller) = self.authorise(request, id, &["issues", "pull_requests"], Level::Write) else {
            return failed("FORBIDDEN", "Resource not accessible by integration".into());
        };
        let pulls =
            ["resolveReviewThread", "PullRequestReadyForReview", "PullRequestToDraft", "enablePullRequest"];
        if pulls.iter().any(|name| query.contains(name)) {
            // As at GitHub: these want more than the pull request itself.
            for name in ["contents", "pull_requests"] {
                if self.authorise(request, id, &[name], Level::Write).is_err() {
                    return failed("FORBIDDEN", "Resource not accessible by integration".into());
                }
            }
            return match self.change_pull(request, &caller, &query, id, on, &variable) {
                Ok(()) => ok(&json!({ "data": { "done": { "clientMutationId": null } } })),
                Err(message) => failed("UNPROCESSABLE", message),
            };
        }
        if query.contains("addReaction") {
            let content = match variable("content").as_str() {
                "EYES" => "eyes",
                "ROCKET" => "rocket",
                "CONFUSED" => "confused",
                "THUMBS_UP" => "+1",
                other => return failed("INVALID", format!("`{other}` is no ReactionContent")),
            };
            let (reaction, new) = self.add_reaction(id, on, content)?;
            if new {
                let summary = format!("{content} on {on:?} of {}", self.repos[&id].full_name());
                self.wrote(request, &caller, summary);
            }
            return ok(&json!({ "data": { "addReaction": { "reaction": {
                "id": format!("REA_{}", reaction.id),
                "databaseId": reaction.id,
            } } } }));
        }
        if query.contains("minimizeComment") {
            let classifier = ["OUTDATED", "RESOLVED", "DUPLICATE", "OFF_TOPIC", "SPAM", "ABUSE"]
                .into_iter()
                .find(|classifier| query.contains(classifier))
                .map_or_else(|| variable("classifier"), str::to_owned);
            let repo = self.repos.get_mut(&id).expect("resolved");
            let On::Comment(comment) = on else {
                return failed("UNPROCESSABLE", "This cannot be minimised".into());
            };
            let found = repo.comments.iter_mut().find(|found| found.id == comment);
            found.expect("resolved").minimised = Some(classifier.clone());
            let summary = format!("minimise comment {comment} of {} as {classifier}", repo.full_name());
            self.wrote(request, &caller, summary);
            return ok(
                &json!({ "data": { "minimizeComment": { "minimizedComment": { "isMinimized": true } } } }),
            );
        }
        Err(unknown())
    }

    /// Draft, thread and auto-merge; the error is GitHub's message.
    fn change_pull(
        &mut self,
        request: &Request,
        caller: &Caller,
        query: &str,
        id: i64,
        on: On,
        variable: &dyn Fn(&str) -> String,
    ) -> Result<(), String> {
        let repo = self.repos.get_mut(&id).expect("resolved");
        let name = repo.full_name();
        if query.contains("resolveReviewThread") {
            let On::ReviewComment(first) = on else { return Err("This is no thread".into()) };
            let thread = repo.review_comments.iter_mut().find(|c| c.id == first && c.reply_to.is_none());
            thread.ok_or("This is no thread")?.resolved = true;
            self.wrote(request, caller, format!("resolve thread {first} of {name}"));
            return Ok(());
        }
        let On::Issue(n) = on else { return Err("This is no pull request".into()) };
        let issue = repo.issues.get_mut(&n).expect("resolved");
        let open = issue.open;
        let pull = issue.pull.as_mut().ok_or("This is no pull request")?;
        let summary = if query.contains("enablePullRequest") {
            if !open {
                return Err("Pull request is closed".into());
            }
            if variable("head") != pull.head_sha {
                return Err("Head branch was modified".into());
            }
            pull.auto_merge = Some(variable("method"));
            format!("auto-merge {name}#{n} by {}", variable("method"))
        } else {
            let draft = query.contains("PullRequestToDraft");
            if pull.draft == draft {
                return Err(format!("Pull request is {}a draft", if draft { "already " } else { "not " }));
            }
            pull.draft = draft;
            format!("{} {name}#{n}", if draft { "draft again" } else { "ready" })
        };
        self.wrote(request, caller, summary);
        Ok(())
    }

    /// Repository and thing of a node id.
    fn node(&self, node: &str) -> Option<(i64, On)> {
        self.repos.values().filter(|repo| !repo.deleted).find_map(|repo| {
            let on = (repo.issues.values().find(|i| i.node_id() == node).map(|i| On::Issue(i.number)))
                .or_else(|| repo.comments.iter().find(|c| c.node_id() == node).map(|c| On::Comment(c.id)))
                .or_else(|| {
                    let of = |c: &&ReviewComment| c.node_id() == node || c.thread_id() == node;
                    let found = repo.review_comments.iter().find(of);
                    found.map(|c| On::ReviewComment(c.id))
                })
                .or_else(|| repo.reviews.iter().find(|r| r.node_id() == node).map(|r| On::Review(r.id)));
            on.map(|on| (repo.id, on))
        })
    }
}

/// Labels, people, issues, reviews, removals, repositories.
impl State {
    fn issue_of(&mut self, id: i64, n: i64) -> Result<&mut Issue, Box<Answer>> {
        self.repos.get_mut(&id).expect("authorised").issues.get_mut(&n).ok_or_else(not_found)
    }

    fn add_labels(&mut self, request: &Request, caller: &Caller, id: i64, n: i64) -> Handled {
        let body = request.json()?;
        let names = texts(&body, "labels")?;
        let (now, issue) = (self.now(), self.issue_of(id, n)?);
        for name in &names {
            if !issue.labels.iter().any(|known| known.eq_ignore_ascii_case(name)) {
                issue.labels.push(name.clone());
            }
        }
        issue.updated_at = now;
        let value = json!(issue.labels.iter().map(|name| json!({ "name": name })).collect::<Vec<_>>());
        let summary = format!("label {}#{n}: {}", self.repos[&id].full_name(), names.join(", "));
        self.wrote(request, caller, summary);
        ok(&value)
    }

    fn remove_label(&mut self, request: &Request, caller: &Caller, id: i64, n: i64, name: &str) -> Handled {
        let issue = self.issue_of(id, n)?;
        let before = issue.labels.len();
        issue.labels.retain(|known| !known.eq_ignore_ascii_case(name));
        if issue.labels.len() == before {
            return Err(problem(404, "Label does not exist"));
        }
        let value = json!(issue.labels.iter().map(|name| json!({ "name": name })).collect::<Vec<_>>());
        let summary = format!("unlabel {}#{n}: {name}", self.repos[&id].full_name());
        self.wrote(request, caller, summary);
        ok(&value)
    }

    fn add_people(&mut self, request: &Request, caller: &Caller, id: i64, n: i64, what: &str) -> Handled {
        let logins = texts(&request.json()?, what)?;
        let known: Vec<String> = self.users.values().map(|user| user.login.clone()).collect();
        let author = self.issue_of(id, n)?.author;
        let author = self.user(author).login;
        let issue = self.issue_of(id, n)?;
        let reviewers = what == "reviewers";
        if reviewers && issue.pull.is_none() {
            return Err(not_found());
        }
        if reviewers && logins.iter().any(|login| *login == author || !known.contains(login)) {
            return Err(problem(422, "Review cannot be requested from pull request author."));
        }
        let list = if reviewers { &mut issue.reviewers } else { &mut issue.assignees };
        for login in logins.iter().filter(|login| known.contains(login)) {
            if !list.contains(login) {
                list.push(login.clone());
            }
        }
        let issue = issue.clone();
        let summary = format!("{what} of {}#{n}: {}", self.repos[&id].full_name(), logins.join(", "));
        self.wrote(request, caller, summary);
        Ok(Answer::json(201, &self.issue_json(&self.repos[&id], &issue)))
    }

    fn create_issue(&mut self, request: &Request, caller: &Caller, id: i64) -> Handled {
        let body = request.json()?;
        let title = text(&body, "title", "Issue")?.to_owned();
        let description = optional(&body, "body")?.unwrap_or_default().to_owned();
        if title.trim().is_empty() || title.chars().count() > 256 {
            return Err(invalid("Issue", "title", "invalid", None));
        }
        if !self.repos[&id].issues_enabled {
            return Err(problem(410, "Issues are disabled for this repo"));
        }
        let (now, author) = (self.now(), self.bot);
        let issue = Issue {
            id: self.made(),
            number: self.repos[&id].next_number(),
            title,
            body: description,
            author,
            open: true,
            locked: false,
            pull: None,
            labels: Vec::new(),
            assignees: Vec::new(),
            reviewers: Vec::new(),
            created_at: now,
            updated_at: now,
        };
        let summary = format!("issue {}#{}: {}", self.repos[&id].full_name(), issue.number, issue.title);
        let value = self.issue_json(&self.repos[&id], &issue);
        self.repos.get_mut(&id).expect("authorised").issues.insert(issue.number, issue);
        self.wrote(request, caller, summary);
        Ok(Answer::json(201, &value))
    }

    fn edit_issue(&mut self, request: &Request, caller: &Caller, id: i64, n: i64) -> Handled {
        let body = request.json()?;
        let (now, issue) = (self.now(), self.issue_of(id, n)?);
        if let Some(title) = optional(&body, "title")? {
            title.clone_into(&mut issue.title);
        }
        if let Some(description) = optional(&body, "body")? {
            description.clone_into(&mut issue.body);
        }
        match (optional(&body, "state")?, optional(&body, "state_reason")?) {
            (Some("closed"), None | Some("completed" | "not_planned")) => issue.open = false,
            (Some("open"), None | Some("reopened")) => issue.open = true,
            (None, None) => {}
            _ => return Err(invalid("Issue", "state", "invalid", None)),
        }
        issue.updated_at = now;
        let issue = issue.clone();
        let summary = format!(
            "edit issue {}#{n}: {}{}",
            self.repos[&id].full_name(),
            issue.title,
            if issue.open { "" } else { " (closed)" }
        );
        self.wrote(request, caller, summary);
        ok(&self.issue_json(&self.repos[&id], &issue))
    }

    fn list_issues(&self, request: &Request, id: i64) -> Handled {
        let (since, unseen) = (since(request)?, self.unseen());
        let wanted = |name: &str| request.query.get(name).map(String::as_str);
        let creator = wanted("creator").map(|login| self.user_id(login).unwrap_or_default());
        let state = wanted("state").unwrap_or("open");
        let repo = &self.repos[&id];
        let shown = repo.issues.values().filter(|issue| {
            (state == "all" || (state == "open") == issue.open)
                && creator.is_none_or(|creator| creator == issue.author)
                && since.is_none_or(|since| issue.updated_at >= since)
                && !unseen.contains(&issue.id)
        });
        let mut shown: Vec<Value> = shown.map(|issue| self.issue_json(repo, issue)).collect();
        if wanted("direction") != Some("asc") {
            shown.reverse();
        }
        paged(self, request, shown, None)
    }

    fn remove_comment(&mut self, request: &Request, caller: &Caller, id: i64, comment: i64) -> Handled {
        let bot = self.bot;
        let repo = self.repos.get_mut(&id).expect("authorised");
        let name = repo.full_name();
        let found = repo.comments.iter().find(|found| found.id == comment).ok_or_else(not_found)?;
        if found.author != bot {
            return Err(inaccessible());
        }
        repo.comments.retain(|found| found.id != comment);
        self.wrote(request, caller, format!("delete comment {comment} of {name}"));
        Ok(Answer::raw(204, "application/json", Vec::new()))
    }

    fn remove_reply(&mut self, request: &Request, caller: &Caller, id: i64, comment: i64) -> Handled {
        let bot = self.bot;
        let repo = self.repos.get_mut(&id).expect("authorised");
        let name = repo.full_name();
        let found = repo.review_comments.iter().find(|found| found.id == comment).ok_or_else(not_found)?;
        if found.author != bot {
            return Err(inaccessible());
        }
        repo.review_comments.retain(|found| found.id != comment);
        self.wrote(request, caller, format!("delete review comment {comment} of {name}"));
        Ok(Answer::raw(204, "application/json", Vec::new()))
    }

    fn create_review(&mut self, request: &Request, caller: &Caller, id: i64, n: i64) -> Handled {
        let body = request.json()?;
        let words = comment_body(&body, "PullRequestReview")?;
        if optional(&body, "event")? != Some("COMMENT") {
            return Err(invalid("PullRequestReview", "event", "invalid", None));
        }
        let commit = text(&body, "commit_id", "PullRequestReview")?.to_owned();
        let lines = body.get("comments").and_then(Value::as_array).cloned().unwrap_or_default();
        let repo = &self.repos[&id];
        if repo.issues.get(&n).is_none_or(|issue| issue.pull.is_none()) {
            return Err(not_found());
        }
        if !repo.has_commit(&commit) {
            return Err(problem(422, "No commit found for SHA"));
        }
        let (now, author) = (self.now(), self.bot);
        let review = Review {
            id: self.made(),
            number: n,
            body: words,
            author,
            state: "commented".into(),
            commit: commit.clone(),
            submitted_at: now,
        };
        let mut made = Vec::new();
        for line in &lines {
            let place = line.get("line").and_then(Value::as_i64).filter(|line| *line > 0);
            made.push(ReviewComment {
                id: self.made(),
                number: n,
                review: Some(review.id),
                reply_to: None,
                body: comment_body(line, "PullRequestReviewComment")?,
                author,
                path: text(line, "path", "PullRequestReviewComment")?.to_owned(),
                line: Some(place.ok_or_else(|| problem(422, "Line could not be resolved"))?),
                diff_hunk: "@@ -1,1 +1,1 @@".into(),
                commit: commit.clone(),
                resolved: false,
                created_at: now,
                updated_at: now,
                hidden: 0,
            });
        }
        let summary = format!(
            "review {} of {}#{n} with {} line(s): {}",
            review.id,
            self.repos[&id].full_name(),
            made.len(),
            line_of(&review.body)
        );
        let value = self.review_json(&self.repos[&id], &review);
        let repo = self.repos.get_mut(&id).expect("authorised");
        repo.reviews.push(review);
        repo.review_comments.extend(made);
        self.wrote(request, caller, summary);
        ok(&value)
    }

    fn edit_review(
        &mut self,
        request: &Request,
        caller: &Caller,
        id: i64,
        (n, review): (i64, i64),
    ) -> Handled {
        let words = comment_body(&request.json()?, "PullRequestReview")?;
        let bot = self.bot;
        let repo = self.repos.get_mut(&id).expect("authorised");
        let name = repo.full_name();
        let found = repo.reviews.iter_mut().find(|found| found.id == review && found.number == n);
        let found = found.ok_or_else(not_found)?;
        if found.author != bot {
            return Err(inaccessible());
        }
        found.body = words;
        let found = found.clone();
        self.wrote(request, caller, format!("edit review {review} of {name}#{n}: {}", line_of(&found.body)));
        ok(&self.review_json(&self.repos[&id], &found))
    }

    fn remove_branch(&mut self, request: &Request, caller: &Caller, id: i64, branch: &str) -> Handled {
        let repo = &self.repos[&id];
        if repo.head_of(branch).is_none() {
            return Err(problem(422, "Reference does not exist"));
        }
        git(&repo.path, &["update-ref", "-d", &format!("refs/heads/{branch}")]);
        let summary = format!("delete branch {branch} of {}", repo.full_name());
        self.wrote(request, caller, summary);
        Ok(Answer::raw(204, "application/json", Vec::new()))
    }

    fn create_fork(&mut self, request: &Request, caller: &Caller, id: i64) -> Handled {
        let owner = text(&request.json()?, "organization", "Repository")?.to_owned();
        let known = self.repos.values().find(|repo| repo.fork_of == Some(id) && repo.owner == owner);
        if let Some(known) = known {
            // As at GitHub: the fork that is there is given.
            return Ok(Answer::json(202, &self.repo_json(known)));
        }
        let (name, source) = (self.repos[&id].name.clone(), self.repos[&id].path.clone());
        let fork = self.make_repo(&owner, &name);
        self.repos.get_mut(&fork).expect("made just now").fork_of = Some(id);
        let path = self.repos[&fork].path.clone();
        git(&path, &["fetch", "--quiet", &source.to_string_lossy(), "+refs/heads/*:refs/heads/*"]);
        self.wrote(request, caller, format!("fork {owner}/{name}"));
        Ok(Answer::json(202, &self.repo_json(&self.repos[&fork])))
    }

    fn create_repo(&mut self, request: &Request, owner: &str) -> Handled {
        let token = self.token(request)?;
        let of_owner = self.installations.get(&token.installation).is_some_and(|i| i.account == owner);
        if !of_owner || !permitted(&token.permissions, &["administration"], Level::Write) {
            return Err(inaccessible());
        }
        let caller = Caller { permissions: token.permissions.clone() };
        let body = request.json()?;
        let name = text(&body, "name", "Repository")?.to_owned();
        if self.repo_id(&format!("{owner}/{name}")).is_some() {
            return Err(invalid("Repository", "name", "custom", Some("name already exists on this account")));
        }
        let id = self.make_repo(owner, &name);
        let private = body.get("private").and_then(Value::as_bool).unwrap_or(false);
        self.repos.get_mut(&id).expect("made just now").private = private;
        self.wrote(request, &caller, format!("repository {owner}/{name}"));
        Ok(Answer::json(201, &self.repo_json(&self.repos[&id])))
    }
}

/// A list of texts, e.g. of labels.
fn texts(body: &Value, field: &str) -> Result<Vec<String>, Box<Answer>> {
    let list = body.get(field).and_then(Value::as_array);
    let list = list.ok_or_else(|| invalid("Issue", field, "missing_field", None))?;
    Ok(list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

fn check_line(verb: &str, repo: &Repo, check: &Check) -> String {
    format!(
        "{verb} {} `{}` on {}@{}: {}",
        check.id,
        check.name,
        repo.full_name(),
        check.head_sha.get(..7).unwrap_or_default(),
        check.history.last().map_or("", String::as_str)
    )
}

fn moved(location: &str) -> Answer {
    let mut answer = Answer::raw(302, "text/html", Vec::new());
    answer.headers.push(("Location".into(), location.to_owned()));
    answer
}

/// Of `path:line message`.
fn annotation_json(line: &str) -> Value {
    let (place, message) = line.split_once(' ').unwrap_or((line, ""));
    let (path, line) = place.rsplit_once(':').unwrap_or((place, "1"));
    let line: i64 = line.parse().unwrap_or(1);
    json!({ "path": path, "start_line": line, "end_line": line, "annotation_level": "failure", "message": message })
}

fn inaccessible() -> Box<Answer> {
    problem(403, "Resource not accessible by integration")
}

pub fn unknown() -> Box<Answer> {
    let mut answer = not_found();
    answer.unknown = true;
    answer
}

/// The log of deliveries.
impl State {
    /// Newest first; pages are told by a cursor, not by a number.
    fn list_attempts(&self, request: &Request) -> Handled {
        let per_page: usize = request.query.get("per_page").and_then(|n| n.parse().ok()).unwrap_or(30);
        let per_page = per_page.clamp(1, 100);
        let before = match request.query.get("cursor") {
            None => i64::MAX,
            Some(cursor) => match cursor.strip_prefix("v1_").and_then(|id| id.parse().ok()) {
                Some(id) => id,
                None => return Err(problem(400, "Invalid cursor")),
            },
        };
        let mut older = self.hook_attempts.iter().rev().filter(|attempt| attempt.id < before);
        let page: Vec<_> = older.by_ref().take(per_page).collect();
        let shown = page.iter().map(|attempt| {
            json!({
                "id": attempt.id,
                "guid": attempt.guid,
                "delivered_at": stamp(attempt.at),
                "redelivery": attempt.redelivery,
                "duration": 0.1,
                "status": if (200..300).contains(&attempt.status) { "OK" } else { "Invalid HTTP Response" },
                "status_code": attempt.status,
                "event": attempt.event,
                "action": attempt.action,
                "installation_id": null,
                "repository_id": null,
                "throttled_at": null,
            })
        });
        let mut answer = Answer::json(200, &json!(shown.collect::<Vec<_>>()));
        if let (Some(last), true) = (page.last(), older.next().is_some()) {
            let next = format!(
                "<{}{}?per_page={per_page}&cursor=v1_{}>; rel=\"next\"",
                self.base, request.path, last.id
            );
            answer.headers.push(("Link".into(), next));
        }
        Ok(answer)
    }

    fn deliver_again(&mut self, id: i64) -> Handled {
        let known = self.hook_attempts.iter().find(|attempt| attempt.id == id).ok_or_else(not_found)?;
        let guid = known.guid.clone();
        self.hook_wanted.push(guid);
        Ok(Answer::json(202, &json!({})))
    }
}
