//! The real GitHub client against FakeHub: every effect, every failure, tokens, reads, and Git with credentials.

use crate::world::hub;
use chrono::{DateTime, TimeDelta, Utc};
use hub::state::{Level, On};
use hub::{APP_KEY, FakeHub, Fault};
use secrecy::{ExposeSecret, SecretString};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use zeblit::clock::Clock;
use zeblit::domain::effect::{
    BranchPush, CheckConclusion, CheckRun, CheckStatus, Effect, EffectPriority, EffectState, OwnComment,
    OwnPull, Payload, Reaction, ReactionTarget, RemoteRef,
};
use zeblit::domain::event::{Actor, ActorKind, SubjectKind};
use zeblit::domain::ids::{BranchName, EffectId, RepoName, Sha};
use zeblit::domain::policy::Role;
use zeblit::remote::github::{GithubForge, GithubSettings};
use zeblit::remote::{Forge, GitAccess, GitPermission, Remote, RemoteError, Retry};

const REPO: &str = "octo/demo";
const MARKER: &str = "<!-- zeblit:v1 id=run_1 for=sticky mac=00112233445566778899aabbccddeeff -->";

/// A clock that moves when told.
#[derive(Debug)]
struct Hand(Mutex<DateTime<Utc>>);

impl Hand {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new("2026-03-01T12:00:00Z".parse().unwrap())))
    }

    fn advance(&self, by: TimeDelta) {
        *self.0.lock().unwrap() += by;
    }
}

impl Clock for Hand {
    fn now(&self) -> DateTime<Utc> {
        *self.0.lock().unwrap()
    }
}

struct Bench {
    hub: FakeHub,
    forge: GithubForge,
    clock: Arc<Hand>,
}

fn forge_at(api_url: String, git_url: String, clock: Arc<Hand>) -> GithubForge {
    GithubForge::new(GithubSettings {
        app_id: 4242,
        private_key: SecretString::from(APP_KEY),
        web_url: git_url.clone(),
        api_url,
        git_url,
        storage_urls: Vec::new(),
        clock,
    })
    .unwrap()
}

/// A hub with users, one repository with an issue (#1) and a pull request (#2), and a client for it.
async fn bench() -> Bench {
    let clock = Hand::new();
    let hub = FakeHub::with_clock(clock.clone()).await;
    hub.add_user("ada", 11);
    hub.add_user("eve", 12);
    hub.add_repo(REPO, &[("README.md", "# Demo\n"), ("src/lib.py", "x = 1\n")]);
    hub.open_issue(REPO, "ada", "It crashes", "Steps: run it.");
    hub.push_commit(REPO, "feature/a#1", &[("src/lib.py", "x = 2\n")], "Change x");
    hub.open_pull(REPO, "ada", "feature/a#1", "main", "Change x");
    let forge = forge_at(hub.api_url(), hub.git_url(), clock.clone());
    Bench { hub, forge, clock }
}

impl Bench {
    fn effect(&self, payload: Payload) -> Effect {
        Effect {
            id: EffectId::new("effect_1"),
            run: None,
            task: None,
            remote: "github".into(),
            repo: self.hub.repo(REPO),
            key: "key".into(),
            priority: EffectPriority::Final,
            payload,
            revision: 1,
            state: EffectState::Sending,
            sender: None,
            intent_at: Some(self.clock.now()),
            not_before: None,
            remote_ref: None,
            tries: 0,
            last_error: None,
            created_at: self.clock.now(),
        }
    }

    fn sticky(&self, number: i64, thread: Option<i64>) -> Effect {
        let body = format!("Working on it.\n\n{MARKER}");
        self.effect(Payload::Sticky(OwnComment { number, thread, marker: MARKER.into(), body }))
    }

    fn check_run(&self, sha: &str) -> CheckRun {
        CheckRun {
            name: "zeblit".into(),
            head_sha: Sha::parse(sha).unwrap(),
            external_id: "run_1/zeblit".into(),
            status: CheckStatus::Queued,
            conclusion: None,
            title: "Queued".into(),
            summary: "Waiting.".into(),
            details_url: Some("https://zeblit.example.com/runs/1".into()),
            started_at: None,
            completed_at: None,
            annotations: Vec::new(),
        }
    }

    fn pull(&self, head: &str) -> OwnPull {
        OwnPull {
            head: BranchName::parse(head).unwrap(),
            fork: None,
            base: BranchName::parse("main").unwrap(),
            title: "Fix the crash".into(),
            body: format!("Fixes #1\n\n{MARKER}"),
            draft: true,
            marker: MARKER.into(),
        }
    }

    fn ada(&self) -> Actor {
        Actor { id: 11, login: "ada".into(), kind: ActorKind::User }
    }

    fn clean(&self) {
        assert_eq!(self.hub.unknown_requests(), Vec::<String>::new());
        assert_eq!(self.hub.unused_faults(), Vec::<String>::new());
    }
}

fn with_ref(mut effect: Effect, reference: &RemoteRef) -> Effect {
    effect.remote_ref = Some(reference.clone());
    effect
}

// ---- Effects ----

#[tokio::test]
async fn a_sticky_comment_is_created_found_by_its_marker_and_edited_in_place() {
    let b = bench().await;
    let effect = b.sticky(1, None);
    assert_eq!(b.forge.find(&effect).await.unwrap(), None);
    b.hub.comment(REPO, 1, "eve", &format!("I fake it: {MARKER}"));
    assert_eq!(b.forge.find(&effect).await.unwrap(), None, "a stranger's copy of the marker is not ours");
    let made = b.forge.apply(&effect).await.unwrap();
    assert!(made.url.as_deref().unwrap().contains("/octo/demo/issues/1#issuecomment-"));
    assert_eq!(b.forge.find(&effect).await.unwrap(), Some(made.clone()));

    let mut edit = with_ref(effect, &made);
    let Payload::Sticky(comment) = &mut edit.payload else { unreachable!() };
    comment.body = format!("Done.\n{MARKER}");
    assert_eq!(b.forge.apply(&edit).await.unwrap().id, made.id);
    assert_eq!(b.hub.own_comments(REPO, 1), [format!("Done.\n{MARKER}")]);

    b.hub.delete_comment(REPO, made.id.parse().unwrap());
    let error = b.forge.apply(&edit).await.unwrap_err();
    assert!(matches!(error, RemoteError::NotFound { operation: "edit a comment" }), "{error}");
    assert_eq!(error.retry(), Retry::Never);
    b.clean();
}

#[tokio::test]
async fn our_comment_is_found_behind_many_others_but_not_from_before_the_intent() {
    let b = bench().await;
    let old = b.sticky(1, None);
    b.forge.apply(&old).await.unwrap();
    b.clock.advance(TimeDelta::minutes(10));
    let effect = b.sticky(1, None);
    assert_eq!(b.forge.find(&effect).await.unwrap(), None);
    for n in 0..230 {
        b.hub.comment(REPO, 1, "eve", &format!("noise {n}"));
    }
    let made = b.forge.apply(&effect).await.unwrap();
    assert_eq!(b.forge.find(&effect).await.unwrap().map(|found| found.id), Some(made.id));
    b.clean();
}

#[tokio::test]
async fn lists_that_lag_show_our_comment_late() {
    let b = bench().await;
    b.hub.lag_lists(2);
    let effect = b.sticky(1, None);
    let made = b.forge.apply(&effect).await.unwrap();
    assert_eq!(b.forge.find(&effect).await.unwrap(), None);
    assert_eq!(b.forge.find(&effect).await.unwrap(), None);
    assert_eq!(b.forge.find(&effect).await.unwrap(), Some(made));
}

#[tokio::test]
async fn a_reply_in_a_review_thread_is_created_found_and_edited() {
    let b = bench().await;
    let thread = b.hub.review_comment(REPO, 2, "ada", ("src/lib.py", 1), "/zeblit fix this");
    let effect = b.sticky(2, Some(thread));
    assert_eq!(b.forge.find(&effect).await.unwrap(), None);
    let made = b.forge.apply(&effect).await.unwrap();
    assert_eq!(b.forge.find(&effect).await.unwrap().map(|found| found.id), Some(made.id.clone()));
    let mut edit = with_ref(effect, &made);
    let Payload::Sticky(comment) = &mut edit.payload else { unreachable!() };
    comment.body = "edited".into();
    b.forge.apply(&edit).await.unwrap();
    let replies = b.hub.review_comments(REPO, 2);
    assert_eq!(replies.len(), 2);
    assert_eq!((replies[1].reply_to, replies[1].body.as_str()), (Some(thread), "edited"));
    b.clean();
}

#[tokio::test]
async fn reactions_reach_every_target_and_repeat_without_harm() {
    let b = bench().await;
    let comment = b.hub.comment(REPO, 1, "ada", "/zeblit fix");
    let line = b.hub.review_comment(REPO, 2, "ada", ("src/lib.py", 1), "/zeblit fix");
    let review = b.hub.review(REPO, 2, "ada", "commented", "/zeblit fix");
    let node = format!("PRR_{review}");
    for (target, on) in [
        (ReactionTarget::Subject { number: 1 }, On::Issue(1)),
        (ReactionTarget::Comment { id: comment }, On::Comment(comment)),
        (ReactionTarget::ReviewComment { id: line }, On::ReviewComment(line)),
        (ReactionTarget::Review { node_id: node }, On::Review(review)),
    ] {
        for (reaction, name) in [
            (Reaction::Eyes, "eyes"),
            (Reaction::Rocket, "rocket"),
            (Reaction::Confused, "confused"),
            (Reaction::PlusOne, "+1"),
        ] {
            let effect = b.effect(Payload::Reaction { target: target.clone(), reaction });
            let first = b.forge.apply(&effect).await.unwrap();
            assert_eq!(b.forge.find(&effect).await.unwrap(), None, "repeating is harmless");
            assert_eq!(b.forge.apply(&effect).await.unwrap(), first);
            assert!(b.hub.reactions(REPO, on).contains(&name.to_owned()));
        }
        assert_eq!(b.hub.reactions(REPO, on).len(), 4);
    }
    b.clean();
}

#[tokio::test]
async fn a_check_run_goes_from_queued_to_its_conclusion_on_its_commit() {
    let b = bench().await;
    let sha = b.hub.head(REPO, "feature/a#1").unwrap();
    let mut check = b.check_run(&sha);
    let effect = b.effect(Payload::Check(check.clone()));
    assert_eq!(b.forge.find(&effect).await.unwrap(), None);
    let made = b.forge.apply(&effect).await.unwrap();
    assert_eq!(b.forge.find(&effect).await.unwrap(), Some(made.clone()));
    check.status = CheckStatus::InProgress;
    check.started_at = Some(b.clock.now());
    b.forge.apply(&with_ref(b.effect(Payload::Check(check.clone())), &made)).await.unwrap();
    check.status = CheckStatus::Completed;
    check.conclusion = Some(CheckConclusion::TimedOut);
    check.completed_at = Some(b.clock.now());
    check.summary = "ü".repeat(70_000);
    b.forge.apply(&with_ref(b.effect(Payload::Check(check)), &made)).await.unwrap();
    let checks = b.hub.checks(REPO, &sha);
    assert_eq!(checks.len(), 1);
    assert_eq!(checks[0].history, ["queued", "in_progress", "completed/timed_out"]);
    assert_eq!(checks[0].external_id, "run_1/zeblit");

    let unknown = b.effect(Payload::Check(b.check_run(&"0".repeat(40))));
    let error = b.forge.apply(&unknown).await.unwrap_err();
    assert!(
        matches!(&error, RemoteError::Refused { status: 422, detail, .. } if detail.contains("No commit found"))
    );
    b.clean();
}

#[tokio::test]
async fn a_draft_pull_request_is_opened_once_found_and_edited() {
    let b = bench().await;
    b.hub.push_commit(REPO, "zeblit/1-fix-abc", &[("a.txt", "a")], "Fix");
    let pull = b.pull("zeblit/1-fix-abc");
    let effect = b.effect(Payload::Pull(pull.clone()));
    assert_eq!(b.forge.find(&effect).await.unwrap(), None);
    let made = b.forge.apply(&effect).await.unwrap();
    assert_eq!((made.id.as_str(), made.note.as_deref()), ("3", None));
    assert_eq!(b.forge.find(&effect).await.unwrap(), Some(made.clone()));
    assert_eq!(b.forge.apply(&effect).await.unwrap().id, "3", "already exists means found");

    let edited = OwnPull { title: "Better".into(), body: "New".into(), ..pull };
    b.forge.apply(&with_ref(b.effect(Payload::Pull(edited)), &made)).await.unwrap();
    let pulls = b.hub.pulls(REPO);
    assert_eq!(pulls.len(), 2);
    let ours = b.hub.issue(REPO, 3);
    assert_eq!((ours.title.as_str(), ours.body.as_str()), ("Better", "New"));
    assert!(ours.pull.unwrap().draft);
    b.clean();
}

#[tokio::test]
async fn an_existing_pull_request_is_adopted_and_brought_up_to_date_when_ours() {
    let b = bench().await;
    b.hub.push_commit(REPO, "zeblit/x", &[("a.txt", "a")], "Fix");
    let first = b.forge.apply(&b.effect(Payload::Pull(b.pull("zeblit/x")))).await.unwrap();
    let newer = OwnPull { title: "Second title".into(), ..b.pull("zeblit/x") };
    let second = b.forge.apply(&b.effect(Payload::Pull(newer))).await.unwrap();
    assert_eq!(first.id, second.id);
    assert_eq!(b.hub.issue(REPO, 3).title, "Second title");

    // Somebody else's for the same branch is used and left as it is.
    b.hub.push_commit(REPO, "zeblit/y", &[("b.txt", "b")], "Fix");
    let theirs = b.hub.open_pull(REPO, "ada", "zeblit/y", "main", "Mine");
    let adopted = b.forge.apply(&b.effect(Payload::Pull(b.pull("zeblit/y")))).await.unwrap();
    assert_eq!(adopted.id, theirs.to_string());
    assert!(adopted.note.unwrap().contains("by ada"));
    assert_eq!(b.hub.issue(REPO, theirs).title, "Mine");
    assert_eq!(b.forge.find(&b.effect(Payload::Pull(b.pull("zeblit/y")))).await.unwrap(), None);
    b.clean();
}

#[tokio::test]
async fn where_drafts_are_refused_a_normal_pull_request_says_so() {
    let b = bench().await;
    b.hub.state().repo_mut(REPO).drafts_supported = false;
    b.hub.push_commit(REPO, "zeblit/x", &[("a.txt", "a")], "Fix");
    let made = b.forge.apply(&b.effect(Payload::Pull(b.pull("zeblit/x")))).await.unwrap();
    assert!(made.note.unwrap().contains("does not take drafts"));
    assert!(!b.hub.issue(REPO, 3).pull.unwrap().draft);
    b.clean();
}

#[tokio::test]
async fn pull_requests_that_cannot_be_are_refused_with_githubs_reason() {
    let b = bench().await;
    let main = b.hub.head(REPO, "main").unwrap();
    let bare = b.hub.bare(REPO);
    hub::state::git(&bare, &["branch", "zeblit/same", &main]);
    for (head, reason) in
        [("zeblit/same", "No commits between main and zeblit/same"), ("zeblit/none", "head invalid")]
    {
        let error = b.forge.apply(&b.effect(Payload::Pull(b.pull(head)))).await.unwrap_err();
        assert!(
            matches!(&error, RemoteError::Refused { status: 422, detail, .. } if detail.contains(reason)),
            "{error}"
        );
    }
    b.clean();
}

#[tokio::test]
async fn old_comments_are_folded_away_as_outdated() {
    let b = bench().await;
    let made = b.forge.apply(&b.sticky(1, None)).await.unwrap();
    let effect = b.effect(Payload::Minimise { node_id: made.node_id.unwrap() });
    b.forge.apply(&effect).await.unwrap();
    assert_eq!(b.forge.find(&effect).await.unwrap(), None);
    assert_eq!(b.hub.comments(REPO, 1)[0].minimised.as_deref(), Some("OUTDATED"));
    let error = b.forge.apply(&b.effect(Payload::Minimise { node_id: "IC_0".into() })).await.unwrap_err();
    assert!(matches!(error, RemoteError::NotFound { .. }), "{error}");
    b.clean();
}

#[tokio::test]
async fn branches_are_no_matter_of_the_api() {
    let b = bench().await;
    let push = BranchPush {
        branch: BranchName::parse("x").unwrap(),
        expected: None,
        new: Sha::parse(&"1".repeat(40)).unwrap(),
    };
    let effect = b.effect(Payload::Branch(push));
    assert!(matches!(b.forge.apply(&effect).await, Err(RemoteError::Protocol { .. })));
    assert!(matches!(b.forge.find(&effect).await, Err(RemoteError::Protocol { .. })));
    assert_eq!(b.hub.requests(), []);
}

#[tokio::test]
async fn what_github_refuses_is_refused() {
    let b = bench().await;
    let mut long = b.sticky(1, None);
    let Payload::Sticky(comment) = &mut long.payload else { unreachable!() };
    comment.body = "x".repeat(65_537);
    let error = b.forge.apply(&long).await.unwrap_err();
    assert!(
        matches!(&error, RemoteError::Refused { status: 422, detail, .. } if detail.contains("too long"))
    );

    let missing = b.forge.apply(&b.sticky(99, None)).await.unwrap_err();
    assert!(matches!(missing, RemoteError::NotFound { .. }));

    b.hub.state().repo_mut(REPO).issues.get_mut(&1).unwrap().locked = true;
    let locked = b.forge.apply(&b.sticky(1, None)).await.unwrap_err();
    assert!(
        matches!(&locked, RemoteError::Forbidden { detail, .. } if detail.contains("locked")),
        "{locked}"
    );

    b.hub.state().repo_mut(REPO).issues_enabled = false;
    let disabled = b.forge.apply(&b.sticky(1, None)).await.unwrap_err();
    assert!(matches!(disabled, RemoteError::Refused { status: 410, .. }), "{disabled}");
    assert!(b.hub.writes().is_empty());
    b.clean();
}

#[tokio::test]
async fn a_reference_that_is_no_id_is_not_sent() {
    let b = bench().await;
    for payload in
        [b.sticky(1, None).payload, Payload::Pull(b.pull("x")), Payload::Check(b.check_run(&"1".repeat(40)))]
    {
        let reference = RemoteRef { id: "../../user".into(), ..RemoteRef::default() };
        let effect = with_ref(b.effect(payload), &reference);
        assert!(matches!(b.forge.apply(&effect).await, Err(RemoteError::Protocol { .. })));
    }
    assert_eq!(b.hub.requests(), []);
}

// ---- Failures ----

#[tokio::test]
async fn an_unclear_reply_to_a_write_leaves_something_to_find() {
    let b = bench().await;
    let impatient =
        forge_at(b.hub.api_url(), b.hub.git_url(), b.clock.clone()).with_timeout(Duration::from_millis(1500));
    for (number, fault, obeyed) in [
        (1, Fault::After(502), true),
        (1, Fault::After(500), true),
        (1, Fault::ResetAfter, true),
        (1, Fault::ResetBefore, false),
        (1, Fault::HangAfter, true),
        (1, Fault::HangBefore, false),
        (1, Fault::Before(503), false),
        (1, Fault::Reply(201, "<html>".into()), true),
    ] {
        b.clock.advance(TimeDelta::minutes(5));
        let effect = b.sticky(number, None);
        b.hub.fail_next("POST /repos/*/*/issues/*/comments", fault.clone());
        let forge = if matches!(fault, Fault::HangAfter | Fault::HangBefore) { &impatient } else { &b.forge };
        let error = forge.apply(&effect).await.unwrap_err();
        assert!(
            matches!(error, RemoteError::Unclear { operation: "write a comment", .. }),
            "{fault:?}: {error}"
        );
        assert_eq!(error.retry(), Retry::Reconcile);
        assert_eq!(b.forge.find(&effect).await.unwrap().is_some(), obeyed, "{fault:?}");
    }
    b.clean();
}

#[tokio::test]
async fn a_read_that_fails_is_unavailable() {
    let b = bench().await;
    let impatient =
        forge_at(b.hub.api_url(), b.hub.git_url(), b.clock.clone()).with_timeout(Duration::from_millis(1500));
    let repo = b.hub.repo(REPO);
    impatient.pull(&repo, 2).await.unwrap();
    for fault in [Fault::Before(500), Fault::Before(503), Fault::ResetBefore, Fault::HangBefore] {
        b.hub.fail_next("GET /repos/*/*/pulls/*", fault.clone());
        let error = impatient.pull(&repo, 2).await.unwrap_err();
        assert!(matches!(error, RemoteError::Unavailable { .. }), "{fault:?}: {error}");
    }
    b.hub.fail_next("GET /repos/*/*/pulls/*", Fault::Reply(200, "{\"number\":\"two\"}".into()));
    let error = impatient.pull(&repo, 2).await.unwrap_err();
    assert!(matches!(&error, RemoteError::Protocol { detail, .. } if detail.contains("number")), "{error}");
    b.clean();
}

#[tokio::test]
async fn nobody_listening_is_unavailable_even_for_a_write() {
    let b = bench().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let effect = b.sticky(1, None);
    for url in [format!("http://{free}"), "http://no-such-host.invalid".into()] {
        let forge = forge_at(url, b.hub.git_url(), b.clock.clone());
        let error = forge.apply(&effect).await.unwrap_err();
        assert!(matches!(error, RemoteError::Unavailable { .. }), "{error}");
    }
    // The token was there, then the server went away: the write itself was never sent.
    let Bench { hub, forge, clock: _ } = b;
    forge.apply(&effect).await.unwrap();
    drop(hub);
    let error = forge.apply(&effect).await.unwrap_err();
    assert!(matches!(error, RemoteError::Unavailable { .. } | RemoteError::Unclear { .. }), "{error}");
    let error = forge.apply(&effect).await.unwrap_err();
    assert!(matches!(error, RemoteError::Unavailable { .. }), "{error}");
}

#[tokio::test]
async fn limits_say_how_long_to_wait() {
    let b = bench().await;
    let effect = b.sticky(1, None);
    b.forge.own_identity().await.unwrap();
    for (fault, wait) in [
        (Fault::SecondaryLimit(17), 17),
        (Fault::SpokenLimit, 60),
        (Fault::PrimaryLimit(300), 300),
        (Fault::PrimaryLimit(-5), 1),
        (Fault::Before(429), 60),
    ] {
        b.hub.fail_next("POST /repos/*/*/issues/*/comments", fault.clone());
        let error = b.forge.apply(&effect).await.unwrap_err();
        assert_eq!(error.retry(), Retry::After(Duration::from_secs(wait)), "{fault:?}: {error}");
        assert!(matches!(error, RemoteError::RateLimited { .. }), "{error}");
    }
    b.hub.fail_next(
        "POST /graphql",
        Fault::Reply(200, r#"{"errors":[{"type":"RATE_LIMITED","message":"x"}]}"#.into()),
    );
    let error = b.forge.apply(&b.effect(Payload::Minimise { node_id: "IC_1".into() })).await.unwrap_err();
    assert!(matches!(error, RemoteError::RateLimited { .. }), "{error}");
    assert!(b.hub.writes().is_empty());
    b.clean();
}

#[tokio::test]
async fn other_refusals_have_their_own_kinds() {
    let b = bench().await;
    let effect = b.sticky(1, None);
    for (status, kind) in
        [(401, "Auth"), (403, "Forbidden"), (404, "NotFound"), (409, "Refused"), (422, "Refused")]
    {
        b.hub.fail_next("POST /repos/*/*/issues/*/comments", Fault::Before(status));
        let error = b.forge.apply(&effect).await.unwrap_err();
        assert!(format!("{error:?}").starts_with(kind), "{status}: {error:?}");
        assert!(error.to_string().starts_with("write a comment: "), "{error}");
    }
    b.hub.fail_next("POST /graphql", Fault::Reply(200, r#"{"data":null}"#.into()));
    let error = b.forge.apply(&b.effect(Payload::Minimise { node_id: "IC_1".into() })).await.unwrap_err();
    assert!(matches!(error, RemoteError::Unclear { .. }), "{error}");
    b.clean();
}

#[tokio::test]
async fn no_error_ever_shows_a_token() {
    let b = bench().await;
    let access = b.forge.git_access(&b.hub.repo(REPO), GitPermission::Write).await.unwrap();
    let token = access.token.clone().unwrap();
    b.forge.apply(&b.sticky(1, None)).await.unwrap();
    let shown = format!("{:?} {access:?}", b.forge);
    assert!(!shown.contains(token.expose_secret()) && !shown.contains("ghs_"), "{shown}");
    for fault in [Fault::ResetBefore, Fault::Before(401), Fault::Before(500)] {
        b.hub.fail_next("POST /repos/*/*/issues/*/comments", fault);
        let error = b.forge.apply(&b.sticky(1, None)).await.unwrap_err();
        assert!(!format!("{error:?} {error}").contains("ghs_"));
    }
}

// ---- Tokens ----

#[tokio::test]
async fn tokens_are_asked_for_per_repository_and_permission_and_kept_until_near_their_end() {
    let b = bench().await;
    let effect = b.sticky(1, None);
    b.forge.apply(&effect).await.unwrap();
    b.forge.apply(&effect).await.unwrap();
    let repo = b.hub.repo(REPO);
    let grants = b.hub.state().token_grants.clone();
    assert_eq!(grants.len(), 1);
    assert_eq!((grants[0].installation, &grants[0].repos), (repo.installation, &Some([repo.id].into())));
    assert_eq!(
        grants[0].permissions,
        [("metadata", Level::Read), ("issues", Level::Write), ("pull_requests", Level::Write)]
            .map(|(name, level)| (name.to_owned(), level))
            .into()
    );
    b.clock.advance(TimeDelta::minutes(54));
    b.forge.apply(&effect).await.unwrap();
    assert_eq!(b.hub.state().token_grants.len(), 1);
    b.clock.advance(TimeDelta::minutes(2));
    b.forge.apply(&effect).await.unwrap();
    assert_eq!(b.hub.state().token_grants.len(), 2, "asked again five minutes before the end");

    let sha = b.hub.head(REPO, "main").unwrap();
    b.forge.apply(&b.effect(Payload::Check(b.check_run(&sha)))).await.unwrap();
    b.forge.pull(&repo, 2).await.unwrap();
    b.forge.git_access(&repo, GitPermission::Read).await.unwrap();
    b.forge.git_access(&repo, GitPermission::Write).await.unwrap();
    let grants = b.hub.state().token_grants.clone();
    assert_eq!(grants.len(), 6);
    for grant in &grants {
        assert_eq!(grant.repos, Some([repo.id].into()));
        assert!(!grant.permissions.contains_key("workflows"));
        assert!(grant.permissions.values().filter(|level| **level == Level::Write).count() <= 2);
    }
    // Only pushes may write contents.
    let writers = grants.iter().filter(|grant| grant.permissions.get("contents") == Some(&Level::Write));
    assert_eq!(writers.count(), 1);
    b.clean();
}

#[tokio::test]
async fn calls_at_the_same_time_share_one_token_request() {
    let b = bench().await;
    let repo = b.hub.repo(REPO);
    let results = futures_util::future::join_all((0..20).map(|_| b.forge.subject(&repo, 1))).await;
    assert!(results.into_iter().all(|result| result.is_ok()));
    assert_eq!(b.hub.state().token_grants.len(), 1);
}

#[tokio::test]
async fn a_refused_or_forgotten_token_is_replaced() {
    let b = bench().await;
    let repo = b.hub.repo(REPO);
    b.forge.subject(&repo, 1).await.unwrap();
    b.hub.revoke_tokens();
    let error = b.forge.subject(&repo, 1).await.unwrap_err();
    assert!(matches!(error, RemoteError::Auth { .. }), "{error}");
    b.forge.subject(&repo, 1).await.unwrap();
    assert_eq!(b.hub.state().token_grants.len(), 2);
    b.forge.forget(repo.installation);
    b.forge.subject(&repo, 1).await.unwrap();
    assert_eq!(b.hub.state().token_grants.len(), 3);
}

#[tokio::test]
async fn trouble_with_the_token_is_never_an_unclear_write() {
    let b = bench().await;
    let effect = b.sticky(1, None);
    for fault in [Fault::After(502), Fault::ResetAfter, Fault::Before(500)] {
        b.hub.fail_next("POST /app/installations/*/access_tokens", fault.clone());
        let error = b.forge.apply(&effect).await.unwrap_err();
        assert!(matches!(error, RemoteError::Unavailable { .. }), "{fault:?}: {error}");
    }
    b.hub.set_permission(REPO, "issues", Some(Level::Read));
    let error = b.forge.apply(&effect).await.unwrap_err();
    assert!(
        matches!(&error, RemoteError::Refused { status: 422, detail, .. } if detail.contains("not granted"))
    );
    b.hub.set_permission(REPO, "issues", Some(Level::Write));
    b.hub.suspend(REPO, true);
    let error = b.forge.apply(&effect).await.unwrap_err();
    assert!(
        matches!(&error, RemoteError::Forbidden { detail, .. } if detail.contains("suspended")),
        "{error}"
    );
    assert!(b.hub.writes().is_empty());
    b.clean();
}

#[tokio::test]
async fn a_wrong_app_is_refused() {
    let b = bench().await;
    let forge = GithubForge::new(GithubSettings {
        app_id: 1,
        private_key: SecretString::from(APP_KEY),
        api_url: b.hub.api_url(),
        git_url: b.hub.git_url(),
        web_url: b.hub.web_url(),
        storage_urls: Vec::new(),
        clock: b.clock.clone(),
    })
    .unwrap();
    assert!(matches!(forge.check().await, Err(RemoteError::Auth { .. })));
    assert_eq!(b.forge.check().await.unwrap(), "GitHub App `zeblit` (id 4242)");
    assert_eq!(b.hub.app_id(), 4242);
    assert_eq!(forge.name(), "github");
    assert_eq!(forge.web_url(), b.hub.web_url());
}

#[tokio::test]
async fn a_repository_without_a_known_installation_is_looked_up_once() {
    let b = bench().await;
    let mut repo = b.hub.repo(REPO);
    repo.installation = 0;
    b.forge.subject(&repo, 1).await.unwrap();
    b.forge.pull(&repo, 2).await.unwrap();
    assert_eq!(b.hub.count("GET /repos/*/*/installation"), 1);
    b.forge.forget(b.hub.installation(REPO));
    b.forge.subject(&repo, 1).await.unwrap();
    assert_eq!(b.hub.count("GET /repos/*/*/installation"), 2);
    b.clean();
}

// ---- Reads ----

#[tokio::test]
async fn we_know_ourselves_also_on_a_private_server() {
    let b = bench().await;
    b.hub.state().private_mode = true;
    let me = b.forge.own_identity().await.unwrap();
    assert_eq!((me.user_id, me.login.as_str(), me.app_id), (9001, "zeblit[bot]", 4242));
    b.forge.own_identity().await.unwrap();
    assert_eq!(b.hub.count("GET /app"), 1, "asked once");
    b.clean();
}

#[tokio::test]
async fn roles_are_live_bound_to_the_person_and_never_granted_by_a_failure() {
    let b = bench().await;
    let repo = b.hub.repo(REPO);
    let ada = b.ada();
    assert_eq!(b.forge.role_of(&repo, &ada).await.unwrap(), Role::Read, "anybody on a public repository");
    for role in [Role::None, Role::Read, Role::Triage, Role::Write, Role::Maintain, Role::Admin] {
        b.hub.set_role(REPO, "ada", role.name());
        assert_eq!(b.forge.role_of(&repo, &ada).await.unwrap(), role);
    }
    b.hub.set_custom_role(REPO, "ada", "release-captain", "write");
    assert_eq!(b.forge.role_of(&repo, &ada).await.unwrap(), Role::Write);
    b.hub.set_custom_role(REPO, "ada", "auditor", "read");
    assert_eq!(b.forge.role_of(&repo, &ada).await.unwrap(), Role::Read);

    b.hub.set_role(REPO, "ada", "admin");
    for fault in [Fault::Before(403), Fault::Before(404)] {
        b.hub.fail_next("GET /repos/*/*/collaborators/*/permission", fault);
        assert_eq!(b.forge.role_of(&repo, &ada).await.unwrap(), Role::None);
    }
    for fault in [
        Fault::Before(500),
        Fault::Before(401),
        Fault::SecondaryLimit(9),
        Fault::PrimaryLimit(9),
        Fault::ResetBefore,
        Fault::Reply(200, "{}".into()),
        Fault::Reply(200, r#"{"role_name":"admin"}"#.into()),
    ] {
        b.hub.fail_next("GET /repos/*/*/collaborators/*/permission", fault.clone());
        let answer = b.forge.role_of(&repo, &ada).await;
        assert!(!matches!(answer, Ok(role) if role > Role::None), "{fault:?}: {answer:?}");
    }
    // The login was given up and taken by somebody who got a role: the number decides.
    b.hub.take_login("ada", 77);
    b.hub.set_role(REPO, "ada", "admin");
    assert_eq!(b.forge.role_of(&repo, &ada).await.unwrap(), Role::None);
    let nobody = Actor { id: 5, login: "nobody".into(), kind: ActorKind::User };
    assert_eq!(b.forge.role_of(&repo, &nobody).await.unwrap(), Role::None);
    b.hub.add_bot("helper[bot]", 78);
    let bot = Actor { id: 78, login: "helper[bot]".into(), kind: ActorKind::Bot };
    b.hub.set_private(REPO, true);
    assert_eq!(b.forge.role_of(&repo, &bot).await.unwrap(), Role::None);
    b.clean();
}

#[tokio::test]
async fn a_role_that_cannot_be_asked_for_is_an_error() {
    let b = bench().await;
    b.hub.fail_next("POST /app/installations/*/access_tokens", Fault::Before(403));
    assert!(b.forge.role_of(&b.hub.repo(REPO), &b.ada()).await.is_err());
}

#[tokio::test]
async fn files_and_folders_are_read_at_a_branch_or_commit() {
    let b = bench().await;
    let odd = "docs/a b#1?ü%.md";
    let first = b.hub.head(REPO, "main").unwrap();
    b.hub.push_commit(
        REPO,
        "main",
        &[(odd, "odd\n"), (".github/zeblit.toml", "x = 1\n"), ("b.json", "{}")],
        "More",
    );
    let repo = b.hub.repo(REPO);
    let read = async |at: &str, path: &str| b.forge.read_file(&repo, at, path).await;
    assert_eq!(read("main", odd).await.unwrap().as_deref(), Some("odd\n".as_bytes()));
    assert_eq!(read("main", "b.json").await.unwrap().as_deref(), Some("{}".as_bytes()));
    assert_eq!(read("feature/a#1", "src/lib.py").await.unwrap().as_deref(), Some("x = 2\n".as_bytes()));
    assert_eq!(read(&first, odd).await.unwrap(), None);
    assert_eq!(read("main", "src").await.unwrap(), None, "a folder is no file");
    assert_eq!(read("no-such-branch", "README.md").await.unwrap(), None);
    assert_eq!(
        b.forge.list_folder(&repo, "main", "").await.unwrap(),
        [".github/", "README.md", "b.json", "docs/", "src/"]
    );
    assert_eq!(b.forge.list_folder(&repo, "main", "src/").await.unwrap(), ["lib.py"]);
    assert_eq!(b.forge.list_folder(&repo, "main", "nothing/here").await.unwrap(), Vec::<String>::new());
    assert_eq!(b.forge.list_folder(&repo, "main", "README.md").await.unwrap(), Vec::<String>::new());
    for bad in ["../../../user", "a//b", "./x", "/etc/passwd"] {
        assert!(matches!(read("main", bad).await, Err(RemoteError::Refused { status: 400, .. })), "{bad}");
    }
    b.hub.push_commit(REPO, "main", &[("big.txt", &"x".repeat(1024 * 1024 + 1))], "Big");
    assert!(matches!(read("main", "big.txt").await, Err(RemoteError::Refused { status: 413, .. })));
    b.clean();
}

#[tokio::test]
async fn a_server_that_only_knows_json_contents_is_understood() {
    let b = bench().await;
    let repo = b.hub.repo(REPO);
    let path = "GET /repos/*/*/contents/**";
    let json = r#"{"name":"a","type":"file","size":3,"encoding":"base64","content":"aGkh\n"}"#;
    b.hub.fail_next(path, Fault::Reply(200, json.into()));
    assert_eq!(b.forge.read_file(&repo, "main", "a").await.unwrap(), Some(b"hi!".to_vec()));
    b.hub.fail_next(path, Fault::Reply(200, r#"{"name":"a","type":"submodule"}"#.into()));
    assert_eq!(b.forge.read_file(&repo, "main", "a").await.unwrap(), None);
    b.hub.fail_next(
        path,
        Fault::Reply(200, r#"{"name":"a","type":"file","size":9,"encoding":"none","content":""}"#.into()),
    );
    assert!(matches!(
        b.forge.read_file(&repo, "main", "a").await,
        Err(RemoteError::Refused { status: 413, .. })
    ));
}

#[tokio::test]
async fn unchanged_things_are_not_sent_again() {
    let b = bench().await;
    let repo = b.hub.repo(REPO);
    for _ in 0..3 {
        assert_eq!(
            b.forge.read_file(&repo, "main", "README.md").await.unwrap().as_deref(),
            Some("# Demo\n".as_bytes())
        );
        b.forge.repo_info(&repo).await.unwrap();
        b.forge.pull(&repo, 2).await.unwrap();
    }
    let unchanged = b.hub.requests().iter().filter(|seen| seen.status == 304).count();
    assert_eq!(unchanged, 6);
    b.hub.push_commit(REPO, "main", &[("README.md", "# New\n")], "New");
    assert_eq!(
        b.forge.read_file(&repo, "main", "README.md").await.unwrap().as_deref(),
        Some("# New\n".as_bytes())
    );
    let agents: Vec<String> = b.hub.requests().into_iter().map(|seen| seen.user_agent).collect();
    assert!(agents.iter().all(|agent| agent.starts_with("zeblit/")), "{agents:?}");
    b.clean();
}

#[tokio::test]
async fn repositories_branches_pulls_and_issues_are_told_as_they_are() {
    let b = bench().await;
    let repo = b.hub.repo(REPO);
    let info = b.forge.repo_info(&repo).await.unwrap();
    assert_eq!((info.repo, info.default_branch.as_str()), (repo.clone(), "main"));
    let branch = |name: &str| BranchName::parse(name).unwrap();
    let head = b.forge.branch_head(&repo, &branch("feature/a#1")).await.unwrap();
    assert_eq!(head.map(String::from), b.hub.head(REPO, "feature/a#1"));
    assert_eq!(b.forge.branch_head(&repo, &branch("feature")).await.unwrap(), None);

    let pull = b.forge.pull(&repo, 2).await.unwrap();
    assert_eq!((pull.head_ref.as_str(), pull.base_ref.as_str()), ("feature/a#1", "main"));
    assert!(pull.open && !pull.fork && !pull.merged && !pull.draft);
    assert_eq!(pull.head_repo.as_ref().map(RepoName::as_str), Some(REPO));
    b.hub.merge(REPO, 2);
    let pull = b.forge.pull(&repo, 2).await.unwrap();
    assert!(!pull.open && pull.merged);
    assert!(matches!(b.forge.pull(&repo, 1).await, Err(RemoteError::NotFound { .. })));

    let issue = b.forge.subject(&repo, 1).await.unwrap();
    assert_eq!(
        (issue.kind, issue.title.as_str(), issue.body.as_str()),
        (SubjectKind::Issue, "It crashes", "Steps: run it.")
    );
    assert_eq!(issue.author, b.ada());
    b.hub.set_open(REPO, 1, false);
    assert!(!b.forge.subject(&repo, 1).await.unwrap().open);
    assert_eq!(b.forge.subject(&repo, 2).await.unwrap().kind, SubjectKind::PullRequest);

    b.hub.add_repo("octo/empty", &[]);
    let empty = b.hub.repo("octo/empty");
    assert_eq!(b.forge.branch_head(&empty, &branch("main")).await.unwrap(), None);
    assert_eq!(b.forge.read_file(&empty, "main", "README.md").await.unwrap(), None);
    b.clean();
}

#[tokio::test]
async fn forks_and_deleted_forks_are_known_as_such() {
    let b = bench().await;
    b.hub.add_fork(REPO, "eve/demo");
    let sha = b.hub.push_commit("eve/demo", "patch", &[("c.txt", "c")], "From a fork");
    let number = b.hub.open_pull(REPO, "eve", "eve:patch", "main", "Please");
    let repo = b.hub.repo(REPO);
    let pull = b.forge.pull(&repo, number).await.unwrap();
    assert!(pull.fork);
    assert_eq!(pull.head_repo.as_ref().map(RepoName::as_str), Some("eve/demo"));
    assert_eq!(pull.head_sha.as_str(), sha);
    let newer = b.hub.push_commit("eve/demo", "patch", &[("c.txt", "d")], "Again");
    assert_eq!(b.forge.pull(&repo, number).await.unwrap().head_sha.as_str(), newer);
    b.hub.delete_repo("eve/demo");
    let pull = b.forge.pull(&repo, number).await.unwrap();
    assert!(pull.fork && pull.head_repo.is_none());
    // Commits of a fork's pull request are in the base repository.
    assert!(b.hub.state().repo(REPO).has_commit(&newer));
    b.clean();
}

#[tokio::test]
async fn the_newest_of_a_conversation_comes_oldest_first_and_marks_our_own() {
    let b = bench().await;
    let repo = b.hub.repo(REPO);
    for n in 0..205 {
        b.hub.comment(REPO, 2, "ada", &format!("c{n}"));
        b.clock.advance(TimeDelta::seconds(1));
    }
    b.hub.review_comment(REPO, 2, "eve", ("src/lib.py", 3), "here");
    b.clock.advance(TimeDelta::seconds(1));
    b.forge.apply(&b.sticky(2, None)).await.unwrap();
    let thread = b.forge.thread(&repo, 2, 110).await.unwrap();
    assert_eq!(thread.len(), 110);
    let last = &thread[109];
    assert!(last.own && last.body.contains(MARKER) && last.path.is_none());
    let line = &thread[108];
    assert_eq!(
        (line.path.as_deref(), line.line, line.author.login.as_str()),
        (Some("src/lib.py"), Some(3), "eve")
    );
    assert!(!line.own);
    assert_eq!(thread[107].body, "c204");
    assert!(thread.windows(2).all(|pair| pair[0].created_at <= pair[1].created_at));
    assert_eq!(b.forge.thread(&repo, 1, 10).await.unwrap(), []);
    b.clean();
}

#[tokio::test]
async fn the_pull_request_template_is_found_in_its_usual_places() {
    let b = bench().await;
    let repo = b.hub.repo(REPO);
    assert_eq!(b.forge.pull_template(&repo).await.unwrap(), None);
    for (path, text) in [
        ("docs/PULL_REQUEST_TEMPLATE.md", "three"),
        ("Pull_Request_Template.md", "two"),
        (".github/pull_request_template.md", "one"),
    ] {
        b.hub.push_commit(REPO, "main", &[(path, text)], "Template");
        assert_eq!(b.forge.pull_template(&repo).await.unwrap().as_deref(), Some(text));
    }
    b.clean();
}

#[tokio::test]
async fn a_renamed_repository_is_followed_and_an_impostor_is_not() {
    let b = bench().await;
    let old = b.hub.repo(REPO);
    b.hub.rename_repo(REPO, "octo/renamed");
    let info = b.forge.repo_info(&old).await.unwrap();
    assert_eq!(info.repo.name.as_str(), "octo/renamed");
    // A write is repeated at the new place too, once.
    let mut effect = b.sticky_for(&old, 1);
    effect.repo = old.clone();
    b.forge.apply(&effect).await.unwrap();
    assert_eq!(b.hub.own_comments("octo/renamed", 1).len(), 1);
    // Another repository takes the old name: our token does not open it.
    b.hub.add_repo(REPO, &[("README.md", "other")]);
    let answer = b.forge.repo_info(&old).await;
    assert!(matches!(answer, Err(RemoteError::NotFound { .. } | RemoteError::Refused { .. })), "{answer:?}");
    b.clean();
}

impl Bench {
    fn sticky_for(&self, repo: &zeblit::domain::event::Repo, number: i64) -> Effect {
        let body = format!("x {MARKER}");
        let comment = OwnComment { number, thread: None, marker: MARKER.into(), body };
        Effect {
            repo: repo.clone(),
            id: EffectId::new("effect_2"),
            run: None,
            task: None,
            remote: "github".into(),
            key: "key2".into(),
            priority: EffectPriority::Final,
            payload: Payload::Comment(comment),
            revision: 1,
            state: EffectState::Sending,
            intent_at: None,
            sender: None,
            not_before: None,
            remote_ref: None,
            tries: 0,
            last_error: None,
            created_at: self.clock.now(),
        }
    }
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect_to_another_host() {
    let b = bench().await;
    let repo = b.hub.repo(REPO);
    let trap = FakeHub::start().await;
    b.hub.fail_next("GET /repos/*/*/issues/*", Fault::Redirect(format!("{}/steal", trap.api_url())));
    let error = b.forge.subject(&repo, 1).await.unwrap_err();
    assert!(
        matches!(&error, RemoteError::Protocol { detail, .. } if detail.contains("another host")),
        "{error}"
    );
    assert_eq!(trap.requests(), []);
    b.hub.fail_times("GET /repos/*/*/issues/*", Fault::Redirect("/repos/octo/demo/issues/1".into()), 9);
    assert!(matches!(b.forge.subject(&repo, 1).await, Err(RemoteError::Protocol { .. })), "a loop ends");
}

#[tokio::test]
async fn github_enterprise_addresses_work_graphql_included() {
    let b = bench().await;
    let forge = forge_at(format!("{}/", b.hub.enterprise_api_url()), b.hub.git_url(), b.clock.clone());
    let made = forge.apply(&b.sticky(1, None)).await.unwrap();
    forge.apply(&b.effect(Payload::Minimise { node_id: made.node_id.unwrap() })).await.unwrap();
    assert_eq!(b.hub.count("POST /api/graphql"), 1);
    assert_eq!(forge.own_identity().await.unwrap().user_id, 9001);
    b.clean();
}

// ---- Git ----

async fn run_git(folder: &Path, access: &GitAccess, arguments: &[&str]) -> Result<String, String> {
    // As the real transport does it: the token reaches Git by an askpass program and its environment only.
    let askpass = folder.join("askpass.sh");
    std::fs::write(&askpass, "#!/bin/sh\ncase \"$1\" in Username*) echo \"$U\";; *) echo \"$P\";; esac\n")
        .unwrap();
    std::fs::set_permissions(&askpass, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let output = tokio::process::Command::new("git")
        .current_dir(folder)
        .args(arguments)
        .env("GIT_ASKPASS", &askpass)
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("U", &access.username)
        .env("P", access.token.as_ref().map_or("", |token| token.expose_secret()))
        .output()
        .await
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

#[tokio::test]
async fn git_clones_and_pushes_with_a_token_and_only_with_the_right_one() {
    let b = bench().await;
    let repo = b.hub.repo(REPO);
    let folder = tempfile::tempdir().unwrap();
    let read = b.forge.git_access(&repo, GitPermission::Read).await.unwrap();
    let write = b.forge.git_access(&repo, GitPermission::Write).await.unwrap();
    assert_eq!(read.url, format!("{}/octo/demo.git", b.hub.git_url()));
    run_git(folder.path(), &read, &["clone", "-q", &read.url, "work"]).await.unwrap();
    let work = folder.path().join("work");
    std::fs::write(work.join("new.txt"), "new\n").unwrap();
    let commit = async |message: &str| {
        run_git(&work, &read, &["add", "new.txt", ".github"])
            .await
            .or(run_git(&work, &read, &["add", "new.txt"]).await)
            .unwrap();
        let with = ["-c", "user.name=Z", "-c", "user.email=z@example.com", "commit", "-qm", message];
        run_git(&work, &read, &with).await.unwrap();
    };
    commit("New").await;
    let push = async |access: &GitAccess, target: &str| {
        run_git(&work, access, &["push", "-q", &access.url, target]).await
    };
    let refused = push(&read, "HEAD:refs/heads/zeblit/x").await.unwrap_err();
    assert!(refused.contains("403"), "{refused}");
    push(&write, "HEAD:refs/heads/zeblit/x").await.unwrap();
    assert_eq!(b.hub.file_at(REPO, "zeblit/x", "new.txt").as_deref(), Some("new\n"));
    assert!(b.hub.branches(REPO).contains(&"zeblit/x".to_owned()));
    assert!(b.hub.transcript().contains("push octo/demo refs/heads/zeblit/x none.."));

    // A push to the head of a pull request moves it.
    run_git(&work, &read, &["checkout", "-q", "-b", "f", "origin/feature/a#1"]).await.unwrap();
    std::fs::write(work.join("new.txt"), "newer\n").unwrap();
    commit("Newer").await;
    push(&write, "HEAD:refs/heads/feature/a#1").await.unwrap();
    let head = b.hub.head(REPO, "feature/a#1").unwrap();
    assert_eq!(b.forge.pull(&repo, 2).await.unwrap().head_sha.as_str(), head);
    let fetched = run_git(&work, &read, &["ls-remote", &read.url, "refs/pull/2/head"]).await.unwrap();
    assert!(fetched.starts_with(&head), "{fetched}");

    // What GitHub refuses.
    b.hub.protect_branch(REPO, "main");
    let protected = push(&write, "HEAD:refs/heads/main").await.unwrap_err();
    assert!(protected.contains("GH006"), "{protected}");
    let hidden = push(&write, "HEAD:refs/pull/2/head").await.unwrap_err();
    assert!(hidden.contains("hidden ref"), "{hidden}");
    std::fs::create_dir_all(work.join(".github/workflows")).unwrap();
    std::fs::write(work.join(".github/workflows/ci.yml"), "on: push\n").unwrap();
    commit("Workflow").await;
    let workflow = push(&write, "HEAD:refs/heads/zeblit/w").await.unwrap_err();
    assert!(workflow.contains("without `workflows` permission"), "{workflow}");

    // Wrong, missing and old tokens.
    let stranger = GitAccess { token: Some(SecretString::from("ghs_wrong")), ..read.clone() };
    let nobody = GitAccess { token: None, ..read.clone() };
    for access in [&stranger, &nobody] {
        assert!(run_git(&work, access, &["ls-remote", &access.url]).await.is_err());
    }
    let other = b.hub.add_repo("octo/other", &[("a", "b")]);
    assert!(other > 0);
    let foreign = format!("{}/octo/other.git", b.hub.git_url());
    let error = run_git(&work, &read, &["ls-remote", &foreign]).await.unwrap_err();
    assert!(error.contains("not found"), "{error}");
    b.clock.advance(TimeDelta::minutes(61));
    assert!(run_git(&work, &read, &["ls-remote", &read.url]).await.is_err());
    b.clean();
}

// ---- The model itself ----

#[tokio::test]
async fn the_ledger_counts_writes_in_time() {
    let b = bench().await;
    for _ in 0..3 {
        b.forge.apply(&b.sticky(1, None)).await.unwrap();
        b.clock.advance(TimeDelta::seconds(40));
    }
    assert_eq!(b.hub.most_writes_in(TimeDelta::minutes(1)), 2);
    assert_eq!(b.hub.transcript().lines().count(), 3);
    for write in b.hub.writes() {
        assert_eq!(
            (write.method.as_str(), write.path.as_str()),
            ("POST", "/repos/octo/demo/issues/1/comments")
        );
        assert!(!write.permissions.contains_key("contents"));
    }
}

#[tokio::test]
async fn unknown_requests_are_recorded() {
    let hub = FakeHub::start().await;
    let response = reqwest::get(format!("{}/repos/nobody/nothing/stargazers", hub.api_url())).await.unwrap();
    assert_eq!(response.status(), 404);
    hub.add_repo(REPO, &[("a", "b")]);
    reqwest::get(format!("{}/repos/{REPO}/stargazers", hub.api_url())).await.unwrap();
    reqwest::get(format!("{}/rate_limit", hub.api_url())).await.unwrap();
    assert_eq!(hub.unknown_requests(), ["GET /repos/octo/demo/stargazers", "GET /rate_limit"]);
}

/// Fields that GitHub added after some of the recordings were made.
const ADDED_LATER: [&str; 5] = ["draft", "slug", "node_id", "details_url", "visibility"];

/// Every field of `ours` is in `recorded`, with the same JSON type (or `null` on one side).
fn assert_shape(ours: &serde_json::Value, recorded: &serde_json::Value, place: &str) {
    use serde_json::Value::{Array, Null, Object};
    match (ours, recorded) {
        (Null, _) | (_, Null) => {}
        (Object(ours), Object(recorded)) => {
            for (name, value) in ours {
                let found = recorded.get(name);
                if ADDED_LATER.contains(&name.as_str()) && found.is_none() {
                    continue;
                }
                assert!(found.is_some(), "{place}.{name} is not in the recorded payload");
                if let Some(found) = found {
                    assert_shape(value, found, &format!("{place}.{name}"));
                }
            }
        }
        (Array(ours), Array(recorded)) => {
            if let (Some(ours), Some(recorded)) = (ours.first(), recorded.first()) {
                assert_shape(ours, recorded, &format!("{place}[0]"));
            }
        }
        _ => assert_eq!(
            std::mem::discriminant(ours),
            std::mem::discriminant(recorded),
            "{place}: {ours} is not of the type of {recorded}"
        ),
    }
}

#[tokio::test]
async fn payloads_have_the_shape_of_recorded_ones() {
    let b = bench().await;
    let hub = &b.hub;
    let comment = hub.comment(REPO, 1, "ada", "/zeblit fix");
    let line = hub.review_comment(REPO, 2, "ada", ("src/lib.py", 1), "/zeblit fix");
    let review = hub.review(REPO, 2, "ada", "commented", "/zeblit fix");
    let before = hub.edit_comment(REPO, comment, "/zeblit fix it");
    assert_eq!(before, "/zeblit fix");
    let sha = hub.head(REPO, "main").unwrap();
    b.forge.apply(&b.effect(Payload::Check(b.check_run(&sha)))).await.unwrap();
    let check = hub.checks(REPO, &sha)[0].id;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/github");
    for (name, delivery) in [
        ("issue_comment.created", hub.comment_created(REPO, comment)),
        ("issue_comment.edited", hub.comment_edited(REPO, comment, "ada", &before)),
        ("pull_request.opened", hub.pull_event(REPO, 2, "opened", "ada")),
        ("pull_request.synchronize", hub.pull_synchronize(REPO, 2, &sha, "ada")),
        ("pull_request_review.submitted", hub.review_submitted(REPO, review)),
        ("pull_request_review_comment.created", hub.review_comment_created(REPO, line)),
        ("push", hub.push_event(REPO, "main", &sha, "ada")),
        ("check_run.rerequested", hub.check_rerequested(REPO, check, "ada")),
        ("installation.created", hub.installation_event(hub.installation(REPO), "created", "ada")),
    ] {
        assert_eq!(name.split('.').next(), Some(delivery.event));
        let headers = delivery.headers("secret");
        assert!(headers.iter().any(|(name, value)| *name == "x-hub-signature-256" && value.len() == 71));
        // Recorded payloads are kept with the tests of the decoder.
        let text = std::fs::read_to_string(folder.join(format!("{name}.json"))).unwrap();
        let recorded: serde_json::Value = serde_json::from_str(&text).unwrap();
        let mut ours = delivery.json();
        if recorded.get("installation").is_none() {
            // Recorded from a repository's own hook, which has no App.
            ours.as_object_mut().unwrap().remove("installation");
        }
        assert_shape(&ours, &recorded, name);
    }
    // Events without a recording: their fields are checked by the decoder's tests.
    hub.rename_repo(REPO, "octo/renamed");
    for (delivery, action) in [
        (hub.issue_event("octo/renamed", 1, "opened", "ada"), "opened"),
        (hub.comment_deleted("octo/renamed", comment), "deleted"),
        (hub.repo_renamed("octo/renamed", "demo", "ada"), "renamed"),
        (hub.repo_transferred("octo/renamed", "octo", "ada"), "transferred"),
        (hub.repo_deleted("octo/renamed", "ada"), "deleted"),
        (hub.installation_repos_event("octo/renamed", "added", "ada"), "added"),
        (hub.installation_repos_event("octo/renamed", "removed", "ada"), "removed"),
    ] {
        assert_eq!(delivery.json()["action"], action);
        assert!(delivery.json()["installation"]["id"].is_i64());
    }
    assert!(hub.ping().json()["zen"].is_string());
}
