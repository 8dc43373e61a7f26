//! Effects besides comments, checks and pull requests: labels, people, drafts, threads, branches, auto-merge,
//! reviews, issues, repositories, and the removal of what was made twice. Each sends one write at most.

use super::client::{Call, Credentials, clip, encode};
use super::tokens::PermissionSet;
use super::{FIND_PAGES, GithubForge, INTENT_MARGIN, PAGE, id_of, made_ref, repo_path, wire};
use crate::domain::effect::{
    MergeMethod, OWN_BRANCH_PREFIX, OwnIssue, OwnReview, RemoteRef, STATE_LABELS, Twin,
};
use crate::domain::event::Repo;
use crate::domain::ids::{BranchName, RepoName, Sha};
use crate::domain::wording;
use crate::remote::{Forge, RemoteError};
use chrono::{DateTime, SecondsFormat, Utc};
use hyper::Method;
use secrecy::SecretString;
use serde_json::{Value, json};

impl GithubForge {
    /// Deletes something; what is gone already is deleted.
    async fn delete(
        &self,
        operation: &'static str,
        repo: &Repo,
        set: PermissionSet,
        path: String,
    ) -> Result<(), RemoteError> {
        let call = |credentials| {
            let mut call = Call::write(operation, Method::DELETE, path, Value::Null, credentials);
            call.body = None;
            call
        };
        match self.send(repo, set, call).await {
            Ok(_) | Err(RemoteError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn add_label(
        &self,
        repo: &Repo,
        number: i64,
        name: &str,
    ) -> Result<RemoteRef, RemoteError> {
        let path = format!("{}/issues/{number}/labels", repo_path(repo));
        let body = json!({ "labels": [name] });
        let _: Value = self.write("add a label", repo, PermissionSet::Talk, Method::POST, path, body).await?;
        Ok(number_ref(number))
    }

    pub(super) async fn remove_label(
        &self,
        repo: &Repo,
        number: i64,
        name: &str,
    ) -> Result<RemoteRef, RemoteError> {
        let path = format!("{}/issues/{number}/labels/{}", repo_path(repo), encode(name));
        self.delete("remove a label", repo, PermissionSet::Talk, path).await?;
        Ok(number_ref(number))
    }

    /// First the new one, then the others away: a subject is never without.
    pub(super) async fn state_label(
        &self,
        repo: &Repo,
        number: i64,
        wanted: Option<&str>,
    ) -> Result<RemoteRef, RemoteError> {
        const OPERATION: &str = "set the state label";
        let path = format!("{}/issues/{number}", repo_path(repo));
        let issue: wire::Issue = self.read(OPERATION, repo, PermissionSet::Talk, path).await?;
        let has = |name: &str| issue.labels.iter().any(|label| label.name.eq_ignore_ascii_case(name));
        let missing = wanted.filter(|name| !has(name));
        let mut others = STATE_LABELS.into_iter().filter(|name| Some(*name) != wanted && has(name));
        let steps = usize::from(missing.is_some()) + others.clone().count();
        match (missing, others.next()) {
            (Some(name), _) => self.add_label(repo, number, name).await?,
            (None, Some(other)) => self.remove_label(repo, number, other).await?,
            (None, None) => return Ok(number_ref(number)),
        };
        if steps > 1 {
            return Err(RemoteError::Unfinished { operation: OPERATION });
        }
        Ok(number_ref(number))
    }

    pub(super) async fn assign(
        &self,
        repo: &Repo,
        number: i64,
        logins: &[String],
    ) -> Result<RemoteRef, RemoteError> {
        let path = format!("{}/issues/{number}/assignees", repo_path(repo));
        let body = json!({ "assignees": logins });
        let _: Value =
            self.write("assign people", repo, PermissionSet::Talk, Method::POST, path, body).await?;
        Ok(number_ref(number))
    }

    pub(super) async fn ask_reviewers(
        &self,
        repo: &Repo,
        number: i64,
        logins: &[String],
    ) -> Result<RemoteRef, RemoteError> {
        let path = format!("{}/pulls/{number}/requested_reviewers", repo_path(repo));
        let body = json!({ "reviewers": logins });
        let _: Value =
            self.write("ask for a review", repo, PermissionSet::Talk, Method::POST, path, body).await?;
        Ok(number_ref(number))
    }

    async fn pull_now(
        &self,
        operation: &'static str,
        repo: &Repo,
        number: i64,
    ) -> Result<(wire::Pull, String), RemoteError> {
        let path = format!("{}/pulls/{number}", repo_path(repo));
        let pull: wire::Pull = self.read(operation, repo, PermissionSet::Talk, path).await?;
        let node_id = pull.node_id.clone().ok_or_else(|| RemoteError::Protocol {
            operation,
            detail: "a pull request without `node_id`".into(),
        })?;
        Ok((pull, node_id))
    }

    /// GitHub refuses to make a draft of a draft: what is as it should be is left alone.
    pub(super) async fn set_draft(
        &self,
        repo: &Repo,
        number: i64,
        draft: bool,
    ) -> Result<RemoteRef, RemoteError> {
        let operation = if draft { "make a draft of a pull request" } else { "mark a pull request ready" };
        let (pull, node_id) = self.pull_now(operation, repo, number).await?;
        if pull.draft.unwrap_or(false) != draft {
            let query = if draft {
                "mutation($subject: ID!) { convertPullRequestToDraft(input: {pullRequestId: $subject}) { pullRequest { isDraft } } }"
            } else {
                "mutation($subject: ID!) { markPullRequestReadyForReview(input: {pullRequestId: $subject}) { pullRequest { isDraft } } }"
            };
            self.mutate(operation, repo, PermissionSet::Change, query, json!({ "subject": node_id })).await?;
        }
        Ok(number_ref(number))
    }

    pub(super) async fn resolve_thread(&self, repo: &Repo, node_id: &str) -> Result<RemoteRef, RemoteError> {
        self.mutate(
            "resolve a thread",
            repo,
            PermissionSet::Change,
            "mutation($subject: ID!) { resolveReviewThread(input: {threadId: $subject}) { thread { isResolved } } }",
            json!({ "subject": node_id }),
        )
        .await?;
        Ok(RemoteRef { id: node_id.to_owned(), node_id: Some(node_id.to_owned()), ..RemoteRef::default() })
    }

    pub(super) async fn delete_branch(
        &self,
        repo: &Repo,
        branch: &BranchName,
        expected: &Sha,
    ) -> Result<RemoteRef, RemoteError> {
        const OPERATION: &str = "delete a branch";
        let refused = |detail: String| RemoteError::Refused { operation: OPERATION, status: 409, detail };
        if !branch.as_str().starts_with(OWN_BRANCH_PREFIX) {
            return Err(refused(format!("`{branch}` is not one of ours")));
        }
        let gone = RemoteRef { id: expected.to_string(), ..RemoteRef::default() };
        match self.branch_head(repo, branch).await? {
            None => return Ok(gone),
            Some(head) if head != *expected => {
                return Err(refused(wording::branch_holds_other_work(branch)));
            }
            Some(_) => {}
        }
        let name = branch.as_str().split('/').map(encode).collect::<Vec<_>>().join("/");
        let path = format!("{}/git/refs/heads/{name}", repo_path(repo));
        match self.delete(OPERATION, repo, PermissionSet::GitWrite, path).await {
            Err(RemoteError::Refused { status: 422, detail, .. }) if detail.contains("does not exist") => {
                Ok(gone)
            }
            other => other.map(|()| gone),
        }
    }

    pub(super) async fn auto_merge(
        &self,
        repo: &Repo,
        number: i64,
        head: &Sha,
        method: MergeMethod,
    ) -> Result<RemoteRef, RemoteError> {
        const OPERATION: &str = "turn on auto-merge";
        let refused = |detail: &str| {
            Err(RemoteError::Refused { operation: OPERATION, status: 409, detail: detail.to_owned() })
        };
        let (pull, node_id) = self.pull_now(OPERATION, repo, number).await?;
        if pull.merged.unwrap_or(false) || pull.merged_at.is_some() {
            return Ok(number_ref(number));
        }
        if pull.state != "open" {
            return refused("the pull request is closed");
        }
        if pull.head.sha != head.as_str() {
            return refused("the head of the pull request moved");
        }
        if pull.auto_merge.is_none_or(|value| value.is_null()) {
            let method = match method {
                MergeMethod::Merge => "MERGE",
                MergeMethod::Squash => "SQUASH",
                MergeMethod::Rebase => "REBASE",
            };
            self.mutate(
                OPERATION,
                repo,
                PermissionSet::Change,
                "mutation($subject: ID!, $method: PullRequestMergeMethod!, $head: GitObjectID!) { enablePullRequestAutoMerge(input: {pullRequestId: $subject, mergeMethod: $method, expectedHeadOid: $head}) { pullRequest { number } } }",
                json!({ "subject": node_id, "method": method, "head": head }),
            )
            .await?;
        }
        Ok(number_ref(number))
    }

    pub(super) async fn review(
        &self,
        repo: &Repo,
        review: &OwnReview,
        existing: Option<&RemoteRef>,
    ) -> Result<RemoteRef, RemoteError> {
        if let Some(existing) = existing {
            let id = id_of(existing, "edit a review")?;
            return self.edit_review(repo, review.number, id, &review.body).await;
        }
        let comments: Vec<Value> = review
            .comments
            .iter()
            .map(|line| json!({ "path": line.path, "line": line.line, "side": "RIGHT", "body": line.body }))
            .collect();
        let path = format!("{}/pulls/{}/reviews", repo_path(repo), review.number);
        let body = json!({
            "commit_id": review.commit,
            "body": review.body,
            "event": "COMMENT",
            "comments": comments,
        });
        let made: wire::Made =
            self.write("submit a review", repo, PermissionSet::Talk, Method::POST, path, body).await?;
        Ok(made_ref(made))
    }

    async fn edit_review(
        &self,
        repo: &Repo,
        number: i64,
        id: i64,
        body: &str,
    ) -> Result<RemoteRef, RemoteError> {
        let path = format!("{}/pulls/{number}/reviews/{id}", repo_path(repo));
        let body = json!({ "body": body });
        let made: wire::Made =
            self.write("edit a review", repo, PermissionSet::Talk, Method::PUT, path, body).await?;
        Ok(made_ref(made))
    }

    pub(super) async fn find_reviews(
        &self,
        repo: &Repo,
        review: &OwnReview,
    ) -> Result<Vec<RemoteRef>, RemoteError> {
        const OPERATION: &str = "look for our review";
        let bot = self.identity().await?.user_id;
        let mut ours = Vec::new();
        for page in 1..=FIND_PAGES {
            let path =
                format!("{}/pulls/{}/reviews?per_page={PAGE}&page={page}", repo_path(repo), review.number);
            let found: Vec<wire::Review> = self.read(OPERATION, repo, PermissionSet::Talk, path).await?;
            let full = found.len() >= PAGE;
            ours.extend(found.into_iter().filter(|candidate| {
                candidate.user.as_ref().is_some_and(|user| user.id == bot)
                    && candidate.body.as_deref().is_some_and(|body| body.contains(&review.marker))
            }));
            if !full {
                let refs = ours.into_iter().map(|found| RemoteRef {
                    id: found.id.to_string(),
                    node_id: found.node_id,
                    url: found.html_url,
                    note: None,
                });
                return Ok(refs.collect());
            }
        }
        Err(too_many(OPERATION, "reviews of one pull request"))
    }

    pub(super) async fn own_issue(
        &self,
        repo: &Repo,
        issue: &OwnIssue,
        existing: Option<&RemoteRef>,
    ) -> Result<RemoteRef, RemoteError> {
        let base = repo_path(repo);
        let (operation, method, path) = match existing {
            Some(existing) => {
                let number = id_of(existing, "edit an issue")?;
                ("edit an issue", Method::PATCH, format!("{base}/issues/{number}"))
            }
            None => ("open an issue", Method::POST, format!("{base}/issues")),
        };
        let body = json!({ "title": issue.title, "body": issue.body });
        let made: wire::Issue = self.write(operation, repo, PermissionSet::Talk, method, path, body).await?;
        Ok(issue_ref(made))
    }

    /// By listing what the App opened, not by searching: the search index lags for minutes.
    pub(super) async fn find_issues(
        &self,
        repo: &Repo,
        issue: &OwnIssue,
        since: DateTime<Utc>,
    ) -> Result<Vec<RemoteRef>, RemoteError> {
        const OPERATION: &str = "look for our issue";
        let identity = self.identity().await?;
        let since = encode(&(since - INTENT_MARGIN).to_rfc3339_opts(SecondsFormat::Secs, true));
        let mut ours = Vec::new();
        for page in 1..=FIND_PAGES {
            let path = format!(
                "{}/issues?creator={}&state=all&since={since}&sort=created&direction=asc&per_page={PAGE}&page={page}",
                repo_path(repo),
                encode(&identity.login)
            );
            let found: Vec<wire::Issue> = self.read(OPERATION, repo, PermissionSet::Talk, path).await?;
            let full = found.len() >= PAGE;
            ours.extend(found.into_iter().filter(|candidate| {
                !candidate.is_pull()
                    && candidate.user.as_ref().is_some_and(|user| user.id == identity.user_id)
                    && candidate.body.as_deref().is_some_and(|body| body.contains(&issue.marker))
            }));
            if !full {
                return Ok(ours.into_iter().map(issue_ref).collect());
            }
        }
        Err(too_many(OPERATION, "issues of ours since the intent"))
    }

    pub(super) async fn remove_twin(&self, repo: &Repo, twin: &Twin) -> Result<RemoteRef, RemoteError> {
        const OPERATION: &str = "remove a twin";
        let base = repo_path(repo);
        match twin {
            Twin::Comment { id, thread } => {
                let place = if *thread { "pulls" } else { "issues" };
                let path = format!("{base}/{place}/comments/{id}");
                self.delete(OPERATION, repo, PermissionSet::Talk, path).await?;
                Ok(number_ref(*id))
            }
            Twin::Check { id } => {
                let body = json!({
                    // It is not to be found again by what it once was.
                    "external_id": wording::SUPERSEDED_ID,
                    "status": "completed",
                    "conclusion": "neutral",
                    "output": { "title": wording::SUPERSEDED, "summary": wording::SUPERSEDED },
                });
                let path = format!("{base}/check-runs/{id}");
                let set = PermissionSet::Checks;
                let made: wire::Made = self.write(OPERATION, repo, set, Method::PATCH, path, body).await?;
                Ok(made_ref(made))
            }
            Twin::Issue { number, of } => {
                let body = json!({
                    "state": "closed",
                    "state_reason": "not_planned",
                    "body": wording::duplicate_of(of),
                });
                let path = format!("{base}/issues/{number}");
                let set = PermissionSet::Talk;
                let made: wire::Issue = self.write(OPERATION, repo, set, Method::PATCH, path, body).await?;
                Ok(issue_ref(made))
            }
            Twin::Note { .. } => Err(RemoteError::Refused {
                operation: OPERATION,
                status: 400,
                detail: "github has no tickets".into(),
            }),
            Twin::Review { number, id } => {
                let path = format!("{base}/pulls/{number}/reviews/{id}/comments?per_page={PAGE}");
                let lines: Vec<wire::Id> = self.read(OPERATION, repo, PermissionSet::Talk, path).await?;
                if let Some(line) = lines.first() {
                    let path = format!("{base}/pulls/comments/{}", line.id);
                    self.delete(OPERATION, repo, PermissionSet::Talk, path).await?;
                    return Err(RemoteError::Unfinished { operation: OPERATION });
                }
                self.edit_review(repo, *number, *id, wording::SUPERSEDED).await
            }
        }
    }

    /// Asking for a fork that is there gives the one that is there.
    pub(super) async fn make_fork(&self, repo: &Repo, owner: &str) -> Result<RemoteRef, RemoteError> {
        if let Some(found) = self.find_fork(repo, owner).await? {
            return Ok(found);
        }
        let path = format!("{}/forks", repo_path(repo));
        let body = json!({ "organization": owner, "default_branch_only": true });
        let set = PermissionSet::Administer;
        let made: wire::RepoJson = self.write("make a fork", repo, set, Method::POST, path, body).await?;
        Ok(repository_ref(made.full_name))
    }

    pub(super) async fn find_fork(&self, repo: &Repo, owner: &str) -> Result<Option<RemoteRef>, RemoteError> {
        Ok(self.ask_fork(repo, owner).await?.map(|fork| repository_ref(fork.name.to_string())))
    }

    /// A token for what concerns no single repository.
    async fn administration(&self, repo: &Repo) -> Result<SecretString, RemoteError> {
        let installation = self.installation_of(repo).await?;
        self.wide_token(installation, json!({ "metadata": "read", "administration": "write" })).await
    }

    pub(super) async fn make_repository(
        &self,
        repo: &Repo,
        name: &RepoName,
        private: bool,
    ) -> Result<RemoteRef, RemoteError> {
        const OPERATION: &str = "make a repository";
        if !name.owner().eq_ignore_ascii_case(repo.name.owner()) {
            return Err(RemoteError::Refused {
                operation: OPERATION,
                status: 403,
                detail: format!("`{name}` does not belong to the owner of {}", repo.name),
            });
        }
        if let Some(found) = self.find_repository(repo, name).await? {
            return Ok(found);
        }
        let credentials = Credentials::Token(self.administration(repo).await?);
        let body = json!({ "name": name.name(), "private": private, "auto_init": false });
        let path = format!("/orgs/{}/repos", encode(name.owner()));
        let made = self.client.call(Call::write(OPERATION, Method::POST, path, body, credentials)).await;
        match made {
            Err(RemoteError::Refused { status: 422, detail, .. }) if detail.contains("already exists") => {
                Ok(repository_ref(name.to_string()))
            }
            other => Ok(repository_ref(other?.json::<wire::RepoJson>()?.full_name)),
        }
    }

    pub(super) async fn find_repository(
        &self,
        repo: &Repo,
        name: &RepoName,
    ) -> Result<Option<RemoteRef>, RemoteError> {
        let credentials = Credentials::Token(self.administration(repo).await?);
        let call = Call::get("look for a repository", format!("/repos/{name}"), credentials);
        match self.client.call(call).await {
            Err(RemoteError::NotFound { .. }) => Ok(None),
            other => Ok(Some(repository_ref(other?.json::<wire::RepoJson>()?.full_name))),
        }
    }
}

fn number_ref(number: i64) -> RemoteRef {
    RemoteRef { id: number.to_string(), ..RemoteRef::default() }
}

fn issue_ref(issue: wire::Issue) -> RemoteRef {
    RemoteRef { id: issue.number.to_string(), node_id: issue.node_id, url: Some(issue.html_url), note: None }
}

fn repository_ref(name: String) -> RemoteRef {
    RemoteRef { id: name, ..RemoteRef::default() }
}

fn too_many(operation: &'static str, what: &str) -> RemoteError {
    RemoteError::Protocol { operation, detail: clip(&format!("more than {} {what}", FIND_PAGES * PAGE)) }
}
