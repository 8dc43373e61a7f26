//! Webhook bodies built from the model, with the field names of recorded ones, and their signatures.

use super::FakeHub;
use super::state::{Issue, Repo, State};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

/// A webhook as GitHub would send it.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// `X-GitHub-Event`.
    pub event: &'static str,
    /// `X-GitHub-Delivery`.
    pub id: String,
    pub body: Vec<u8>,
}

impl Delivery {
    /// The headers that GitHub would send with it.
    pub fn headers(&self, secret: &str) -> Vec<(&'static str, String)> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
        mac.update(&self.body);
        vec![
            ("content-type", "application/json".into()),
            ("user-agent", "GitHub-Hookshot/fake".into()),
            ("x-github-event", self.event.into()),
            ("x-github-delivery", self.id.clone()),
            ("x-github-hook-id", "1".into()),
            ("x-hub-signature-256", format!("sha256={}", hex::encode(mac.finalize().into_bytes()))),
        ]
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("made from a value")
    }
}

impl State {
    fn installation_brief(&self, repo: &Repo) -> Value {
        let id = self.installation_of(repo.id).unwrap_or(0);
        json!({ "id": id, "node_id": format!("IN_{id}") })
    }
}

/// What most payloads end with.
fn common(state: &State, repo: &Repo, sender: i64, mut body: Value) -> Value {
    body["repository"] = state.repo_json(repo);
    body["sender"] = state.user_json(sender);
    if state.installation_of(repo.id).is_some() {
        body["installation"] = state.installation_brief(repo);
    }
    body
}

impl FakeHub {
    /// Wraps a body as a delivery with a fresh id.
    pub fn delivery(&self, event: &'static str, body: &Value) -> Delivery {
        let id = self.state().id();
        Delivery {
            event,
            id: format!("00000000-0000-4000-8000-{id:012}"),
            body: body.to_string().into_bytes(),
        }
    }

    fn about(
        &self,
        event: &'static str,
        repo: &str,
        sender: &str,
        body: impl FnOnce(&State, &Repo) -> Value,
    ) -> Delivery {
        let value = {
            let state = self.state();
            let sender = state.user_id(sender).unwrap_or_else(|| panic!("no user `{sender}`"));
            let repo = state.repo(repo);
            common(&state, repo, sender, body(&state, repo))
        };
        self.delivery(event, &value)
    }

    fn login(&self, id: i64) -> String {
        self.state().user(id).login
    }

    /// `issue_comment.created`; the sender is the author.
    pub fn comment_created(&self, repo: &str, comment: i64) -> Delivery {
        let author = self.comment_author(repo, comment);
        self.about("issue_comment", repo, &author, |state, repo| {
            comment_body(state, repo, comment, "created")
        })
    }

    /// `issue_comment.edited` by somebody; `before` is the text it had.
    pub fn comment_edited(&self, repo: &str, comment: i64, sender: &str, before: &str) -> Delivery {
        self.about("issue_comment", repo, sender, |state, repo| {
            let mut body = comment_body(state, repo, comment, "edited");
            body["changes"] = json!({ "body": { "from": before } });
            body
        })
    }

    pub fn comment_deleted(&self, repo: &str, comment: i64) -> Delivery {
        let author = self.comment_author(repo, comment);
        self.about("issue_comment", repo, &author, |state, repo| {
            comment_body(state, repo, comment, "deleted")
        })
    }

    fn comment_author(&self, repo: &str, comment: i64) -> String {
        let author = {
            let state = self.state();
            let found = state.repo(repo).comments.iter().find(|found| found.id == comment);
            found.expect("the comment is there").author
        };
        self.login(author)
    }

    /// `issues.<action>`: opened, closed, reopened.
    pub fn issue_event(&self, repo: &str, number: i64, action: &str, sender: &str) -> Delivery {
        self.about(
            "issues",
            repo,
            sender,
            |state, repo| json!({ "action": action, "issue": state.issue_json(repo, &repo.issues[&number]) }),
        )
    }

    /// Somebody put a label there.
    pub fn labeled(&self, repo: &str, number: i64, label: &str, sender: &str) -> Delivery {
        let mut delivery = self.issue_event(repo, number, "labeled", sender);
        let mut body = delivery.json();
        body["label"] = json!({"id": 1, "name": label, "color": "ffffff", "default": false});
        delivery.body = serde_json::to_vec(&body).expect("JSON");
        delivery
    }

    /// `pull_request.<action>`: opened, closed, reopened.
    pub fn pull_event(&self, repo: &str, number: i64, action: &str, sender: &str) -> Delivery {
        self.about("pull_request", repo, sender, |state, repo| {
            pull_body(state, repo, &repo.issues[&number], action)
        })
    }

    pub fn pull_synchronize(&self, repo: &str, number: i64, before: &str, sender: &str) -> Delivery {
        self.about("pull_request", repo, sender, |state, repo| {
            let issue = &repo.issues[&number];
            let mut body = pull_body(state, repo, issue, "synchronize");
            body["before"] = json!(before);
            body["after"] = json!(issue.pull.as_ref().expect("a pull request").head_sha);
            body
        })
    }

    pub fn review_submitted(&self, repo: &str, review: i64) -> Delivery {
        let (author, number) = {
            let state = self.state();
            let found = state.repo(repo).reviews.iter().find(|found| found.id == review);
            let found = found.expect("the review is there");
            (found.author, found.number)
        };
        let author = self.login(author);
        self.about("pull_request_review", repo, &author, |state, repo| {
            let found = repo.reviews.iter().find(|found| found.id == review).expect("found above");
            json!({
                "action": "submitted",
                "review": state.review_json(repo, found),
                "pull_request": state.pull_json(repo, &repo.issues[&number]),
            })
        })
    }

    pub fn review_comment_created(&self, repo: &str, comment: i64) -> Delivery {
        let (author, number) = {
            let state = self.state();
            let found = state.repo(repo).review_comments.iter().find(|found| found.id == comment);
            let found = found.expect("the comment is there");
            (found.author, found.number)
        };
        let author = self.login(author);
        self.about("pull_request_review_comment", repo, &author, |state, repo| {
            let found = repo.review_comments.iter().find(|found| found.id == comment).expect("found above");
            json!({
                "action": "created",
                "comment": state.review_comment_json(repo, found),
                "pull_request": state.pull_json(repo, &repo.issues[&number]),
            })
        })
    }

    /// `push` of a branch as it is now.
    pub fn push_event(&self, repo: &str, branch: &str, before: &str, sender: &str) -> Delivery {
        let zero = "0".repeat(40);
        self.about("push", repo, sender, |_, repo| {
            let after = repo.head_of(branch).unwrap_or_else(|| zero.clone());
            json!({
                "ref": format!("refs/heads/{branch}"),
                "before": before,
                "after": after,
                "created": before == zero,
                "deleted": after == zero,
                "forced": false,
                "base_ref": null,
                "compare": "",
                "commits": [],
                "head_commit": null,
                "pusher": { "name": sender, "email": format!("{sender}@example.com") },
            })
        })
    }

    pub fn check_rerequested(&self, repo: &str, check: i64, sender: &str) -> Delivery {
        self.about("check_run", repo, sender, |state, repo| {
            let found = repo.checks.iter().find(|found| found.id == check).expect("the check is there");
            json!({ "action": "rerequested", "check_run": state.check_json(repo, found) })
        })
    }

    /// `installation.<action>`: created, deleted, suspend, unsuspend.
    pub fn installation_event(&self, installation: i64, action: &str, sender: &str) -> Delivery {
        let body = {
            let state = self.state();
            let sender = state.user_id(sender).unwrap_or_else(|| panic!("no user `{sender}`"));
            let mut body = installation_body(&state, installation, action, sender);
            body["repositories"] = brief(&state, installation);
            body
        };
        self.delivery("installation", &body)
    }

    /// `installation_repositories.<action>` about one repository: added, removed.
    pub fn installation_repos_event(&self, repo: &str, action: &str, sender: &str) -> Delivery {
        let installation = self.installation(repo);
        let body = {
            let state = self.state();
            let sender = state.user_id(sender).unwrap_or_else(|| panic!("no user `{sender}`"));
            let one = json!([repo_brief(state.repo(repo))]);
            let mut body = installation_body(&state, installation, action, sender);
            let added = action == "added";
            body["repository_selection"] = json!("selected");
            body["repositories_added"] = if added { one.clone() } else { json!([]) };
            body["repositories_removed"] = if added { json!([]) } else { one };
            body
        };
        self.delivery("installation_repositories", &body)
    }

    /// `repository.renamed`, after `rename_repo`.
    pub fn repo_renamed(&self, repo: &str, old_name: &str, sender: &str) -> Delivery {
        self.about("repository", repo, sender, |_, _| {
            json!({ "action": "renamed", "changes": { "repository": { "name": { "from": old_name } } } })
        })
    }

    /// `repository.transferred`, after `rename_repo` to another owner.
    pub fn repo_transferred(&self, repo: &str, old_owner: &str, sender: &str) -> Delivery {
        self.about("repository", repo, sender, |state, _| {
            let old = state.user_id(old_owner).expect("the old owner is known");
            json!({
                "action": "transferred",
                "changes": { "owner": { "from": { "user": state.user_json(old) } } },
            })
        })
    }

    /// `repository.deleted`; build it before `delete_repo`.
    pub fn repo_deleted(&self, repo: &str, sender: &str) -> Delivery {
        self.about("repository", repo, sender, |_, _| json!({ "action": "deleted" }))
    }

    pub fn ping(&self) -> Delivery {
        let app = self.state().app_id;
        self.delivery(
            "ping",
            &json!({
                "zen": "Keep it logically awesome.",
                "hook_id": 1,
                "hook": { "type": "App", "id": 1, "name": "web", "active": true, "events": ["*"], "app_id": app },
            }),
        )
    }
}

fn comment_body(state: &State, repo: &Repo, comment: i64, action: &str) -> Value {
    let found = repo.comments.iter().find(|found| found.id == comment).expect("the comment is there");
    json!({
        "action": action,
        "issue": state.issue_json(repo, &repo.issues[&found.number]),
        "comment": state.comment_json(repo, found),
    })
}

fn pull_body(state: &State, repo: &Repo, issue: &Issue, action: &str) -> Value {
    json!({
        "action": action,
        "number": issue.number,
        "pull_request": state.full_pull_json(repo, issue),
    })
}

fn repo_brief(repo: &Repo) -> Value {
    json!({
        "id": repo.id,
        "node_id": format!("R_{}", repo.id),
        "name": repo.name,
        "full_name": repo.full_name(),
        "private": repo.private,
    })
}

fn brief(state: &State, installation: i64) -> Value {
    let repos = &state.installations[&installation].repos;
    json!(repos.iter().filter_map(|id| state.repos.get(id)).map(repo_brief).collect::<Vec<_>>())
}

fn installation_body(state: &State, installation: i64, action: &str, sender: i64) -> Value {
    let found = &state.installations[&installation];
    json!({
        "action": action,
        "installation": {
            "id": found.id,
            "app_id": state.app_id,
            "account": state.owner_json(&found.account),
            "target_type": state.user(state.user_id(&found.account).expect("add_repo makes it")).kind,
            "target_id": state.user_id(&found.account),
            "repository_selection": "selected",
            "permissions": found.permissions.iter().map(|(name, level)| {
                (name.clone(), json!(match level { super::Level::Read => "read", super::Level::Write => "write" }))
            }).collect::<serde_json::Map<String, Value>>(),
            "events": ["issue_comment"],
            "html_url": format!("{}/settings/installations/{}", state.base, found.id),
        },
        "sender": state.user_json(sender),
    })
}
