//! Every kind of effect, and the process dies before it is sent, after it was obeyed and after its answer was read:
//! afterwards there is exactly one of it. And a thousand effects of all kinds at a forge that breaks all the time.

use crate::world::hub::state::{Check, Level, On, ReviewComment};
use crate::world::hub::tickets::Note;
use crate::world::hub::{Chaos, FakeHub, Fault};
use crate::world::sandbox::Script;
use crate::world::{REPO, World};
use chrono::Duration;
use std::sync::Arc;
use zeblit::domain::effect::{
    CheckConclusion, CheckRun, CheckStatus, EffectPriority, EffectState, Kind, LineComment, MergeMethod,
    NewEffect, OwnComment, OwnIssue, OwnPull, OwnReview, Payload, Reaction, ReactionTarget, STATE_LABELS,
    TicketNote, Twin,
};
use zeblit::domain::ids::{BranchName, EffectId, RepoName, Sha};
use zeblit::engine::deliver;
use zeblit::store;

/// Every kind with the remote that it goes to: those of tickets go to two.
fn rows() -> Vec<(Kind, &'static str)> {
    let places = |kind: &Kind| match kind {
        Kind::TicketComment | Kind::TicketStatus | Kind::RemoveNote => vec!["jira", "sentry"],
        _ => vec!["github"],
    };
    Kind::ALL.iter().flat_map(|kind| places(kind).into_iter().map(|remote| (*kind, remote))).collect()
}

/// One effect, and how many of what it makes there are.
pub struct Case {
    pub payload: Payload,
    /// Its write at the forge.
    pub write: &'static str,
    pub count: Box<dyn Fn(&FakeHub) -> usize>,
}

const ISSUE_COMMENTS: &str = "POST /repos/*/*/issues/*/comments";
const GRAPHQL: &str = "POST /graphql";

fn sha(text: &str) -> Sha {
    Sha::parse(text).unwrap()
}

/// A pull request of bob's from a branch in our own name space.
fn pull(w: &World, n: usize) -> (i64, BranchName, Sha) {
    let branch = format!("zeblit/case-{n}");
    let head = w.hub.push_commit(REPO, &branch, &[(&format!("case/{n}.txt"), "one\ntwo\n")], "A case");
    let number = w.hub.open_pull(REPO, "bob", &branch, "main", "A case");
    (number, BranchName::parse(&branch).unwrap(), sha(&head))
}

fn change_issue(w: &World, number: i64, change: impl FnOnce(&mut crate::world::hub::state::Issue)) {
    change(w.hub.state().repo_mut(REPO).issues.get_mut(&number).unwrap());
}

/// A new subject and an effect of this kind on it. `n` makes it different from others of its kind.
pub fn case(w: &World, kind: Kind, n: usize) -> Case {
    case_at(w, kind, "github", n)
}

/// The same at any remote.
pub fn case_at(w: &World, kind: Kind, remote: &str, n: usize) -> Case {
    let marker = w.app.signer.marker(&format!("case_{n}"), kind.as_str());
    let body = format!("Case {n}.\n\n{marker}");
    let is = |holds: bool| usize::from(holds);
    let on_issue = |write, payload: &dyn Fn(i64) -> Payload, count: fn(&FakeHub, i64) -> usize| {
        let number = w.issue();
        Case { payload: payload(number), write, count: Box::new(move |hub| count(hub, number)) }
    };
    match kind {
        Kind::Reaction => {
            let comment = w.hub.comment(REPO, w.issue(), "ada", "hello");
            Case {
                payload: Payload::Reaction {
                    target: ReactionTarget::Comment { id: comment },
                    reaction: Reaction::Eyes,
                },
                write: "POST /repos/*/*/issues/comments/*/reactions",
                count: Box::new(move |hub| hub.reactions(REPO, On::Comment(comment)).len()),
            }
        }
        Kind::Sticky => on_issue(
            ISSUE_COMMENTS,
            &|number| {
                let (marker, body) = (marker.clone(), body.clone());
                Payload::Sticky(OwnComment { number, thread: None, marker, body })
            },
            |hub, number| hub.own_comments(REPO, number).len(),
        ),
        // Those in a conversation are as the sticky one: here in a review thread.
        Kind::Comment => {
            let (number, ..) = pull(w, n);
            let thread = w.hub.review_comment(REPO, number, "ada", ("src/app.py", 1), "why?");
            Case {
                payload: Payload::Comment(OwnComment { number, thread: Some(thread), marker, body }),
                write: "POST /repos/*/*/pulls/*/comments/*/replies",
                count: Box::new(move |hub| {
                    let all = hub.review_comments(REPO, number);
                    all.iter().filter(|comment| comment.reply_to == Some(thread)).count()
                }),
            }
        }
        Kind::Check => {
            let head = w.hub.head(REPO, "main").unwrap();
            let external_id = format!("case_{n}:zeblit");
            let run = CheckRun {
                name: "zeblit".into(),
                head_sha: sha(&head),
                external_id: external_id.clone(),
                status: CheckStatus::Completed,
                conclusion: Some(CheckConclusion::Success),
                title: "Case".into(),
                summary: "One.".into(),
                details_url: None,
                started_at: None,
                completed_at: None,
                annotations: Vec::new(),
            };
            Case {
                payload: Payload::Check(run),
                write: "POST /repos/*/*/check-runs",
                count: Box::new(move |hub| {
                    hub.checks(REPO, &head).iter().filter(|check| check.external_id == external_id).count()
                }),
            }
        }
        Kind::Pull => {
            let branch = format!("zeblit/own-{n}");
            w.hub.push_commit(REPO, &branch, &[(&format!("own/{n}.txt"), "one\n")], "Own");
            let own = OwnPull {
                head: BranchName::parse(&branch).unwrap(),
                fork: None,
                base: BranchName::parse("main").unwrap(),
                title: "Own".into(),
                body,
                draft: true,
                marker,
            };
            Case {
                payload: Payload::Pull(own),
                write: "POST /repos/*/*/pulls",
                count: Box::new(move |hub| {
                    let pulls = hub.pulls(REPO);
                    pulls.iter().filter(|issue| issue.pull.as_ref().unwrap().head_ref == branch).count()
                }),
            }
        }
        Kind::Branch => unreachable!("pushed by a run: see `a_push`"),
        Kind::Minimise => {
            let number = w.issue();
            let comment = w.hub.comment(REPO, number, "zeblit[bot]", "old");
            Case {
                payload: Payload::Minimise { node_id: format!("IC_{comment}") },
                write: GRAPHQL,
                count: Box::new(move |hub| {
                    hub.comments(REPO, number).iter().filter(|comment| comment.minimised.is_some()).count()
                }),
            }
        }
        Kind::LabelAdd => on_issue(
            "POST /repos/*/*/issues/*/labels",
            &|number| Payload::Label { number, name: "good first issue".into(), present: true },
            |hub, number| {
                let labels = hub.issue(REPO, number).labels;
                labels.iter().filter(|label| *label == "good first issue").count()
            },
        ),
        Kind::LabelRemove => {
            let number = w.issue();
            change_issue(w, number, |issue| issue.labels = vec!["a bug".into(), "kept".into()]);
            Case {
                payload: Payload::Label { number, name: "a bug".into(), present: false },
                write: "DELETE /repos/*/*/issues/*/labels/*",
                count: Box::new(move |hub| is(hub.issue(REPO, number).labels == ["kept"])),
            }
        }
        Kind::StateLabel => {
            let number = w.issue();
            let [queued, running, ..] = STATE_LABELS;
            change_issue(w, number, |issue| issue.labels = vec![queued.into(), "kept".into()]);
            Case {
                payload: Payload::StateLabel { number, name: Some(running.into()) },
                write: "POST /repos/*/*/issues/*/labels",
                count: Box::new(move |hub| is(hub.issue(REPO, number).labels == ["kept", running])),
            }
        }
        Kind::Assignees => on_issue(
            "POST /repos/*/*/issues/*/assignees",
            &|number| Payload::Assignees { number, logins: vec!["ada".into()] },
            |hub, number| hub.issue(REPO, number).assignees.len(),
        ),
        Kind::Reviewers => {
            let (number, ..) = pull(w, n);
            Case {
                payload: Payload::Reviewers { number, logins: vec!["ada".into()] },
                write: "POST /repos/*/*/pulls/*/requested_reviewers",
                count: Box::new(move |hub| hub.issue(REPO, number).reviewers.len()),
            }
        }
        Kind::Ready | Kind::Draft => {
            let (number, ..) = pull(w, n);
            let draft = kind == Kind::Draft;
            change_issue(w, number, |issue| issue.pull.as_mut().unwrap().draft = !draft);
            Case {
                payload: Payload::Draft { number, draft },
                write: GRAPHQL,
                count: Box::new(move |hub| is(hub.issue(REPO, number).pull.unwrap().draft == draft)),
            }
        }
        Kind::ResolveThread => {
            let (number, ..) = pull(w, n);
            let thread = w.hub.review_comment(REPO, number, "ada", ("src/app.py", 1), "why?");
            Case {
                payload: Payload::ResolveThread { node_id: format!("PRRT_{thread}") },
                write: GRAPHQL,
                count: Box::new(move |hub| {
                    hub.review_comments(REPO, number).iter().filter(|comment| comment.resolved).count()
                }),
            }
        }
        Kind::DeleteBranch => {
            let name = format!("zeblit/gone-{n}");
            let expected = sha(&w.hub.push_commit(REPO, &name, &[("gone.txt", "one\n")], "Gone"));
            Case {
                payload: Payload::DeleteBranch { branch: BranchName::parse(&name).unwrap(), expected },
                write: "DELETE /repos/*/*/git/refs/heads/**",
                count: Box::new(move |hub| is(hub.head(REPO, &name).is_none())),
            }
        }
        Kind::AutoMerge => {
            let (number, _, head) = pull(w, n);
            Case {
                payload: Payload::AutoMerge { number, head, method: MergeMethod::Squash },
                write: GRAPHQL,
                count: Box::new(move |hub| {
                    is(hub.issue(REPO, number).pull.unwrap().auto_merge.as_deref() == Some("SQUASH"))
                }),
            }
        }
        Kind::Review => {
            let (number, _, commit) = pull(w, n);
            let path = format!("case/{n}.txt");
            let line = |line| LineComment { path: path.clone(), line, body: "Hm.".into() };
            let comments = vec![line(1), line(2)];
            let searched = marker.clone();
            Case {
                payload: Payload::Review(OwnReview { number, commit, body, marker, comments }),
                write: "POST /repos/*/*/pulls/*/reviews",
                count: Box::new(move |hub| {
                    let lines = hub.review_comments(REPO, number).len();
                    let reviews = hub.reviews(REPO, number);
                    let ours = reviews.iter().filter(|review| review.body.contains(&searched)).count();
                    if lines == 2 * ours { ours } else { lines }
                }),
            }
        }
        Kind::Issue => {
            let searched = marker.clone();
            Case {
                payload: Payload::Issue(OwnIssue { title: format!("Case {n}"), body, marker }),
                write: "POST /repos/*/*/issues",
                count: Box::new(move |hub| {
                    let state = hub.state();
                    let issues = state.repo(REPO).issues.values();
                    issues.filter(|issue| issue.open && issue.body.contains(&searched)).count()
                }),
            }
        }
        Kind::Fork => {
            let owner = format!("forks-{n}");
            Case {
                payload: Payload::Fork { owner: owner.clone() },
                write: "POST /repos/*/*/forks",
                count: Box::new(move |hub| hub.state().repos.values().filter(|r| r.owner == owner).count()),
            }
        }
        Kind::Repository => {
            let name = format!("made-{n}");
            Case {
                payload: Payload::Repository {
                    name: RepoName::parse(&format!("octo/{name}")).unwrap(),
                    private: true,
                },
                write: "POST /orgs/*/repos",
                count: Box::new(move |hub| hub.state().repos.values().filter(|r| r.name == name).count()),
            }
        }
        Kind::TicketComment => {
            let (ticket, write, key) = ticket(w, remote, n);
            let note = TicketNote { ticket, body: format!("Case {n}."), mark: marker };
            Case {
                payload: Payload::TicketComment(note),
                write,
                count: Box::new(move |hub| hub.ticket(&key).notes.len()),
            }
        }
        Kind::TicketStatus => {
            let (ticket, _, key) = ticket(w, remote, n);
            let (status, write) = match remote {
                "jira" => ("Done", "POST /jira/rest/api/2/issue/*/transitions"),
                _ => ("resolved", "PUT /sentry/api/0/organizations/*/issues/*"),
            };
            Case {
                payload: Payload::TicketStatus { ticket, status: status.into() },
                write,
                count: Box::new(move |hub| is(hub.ticket(&key).status == status)),
            }
        }
        Kind::RemoveNote => {
            let (ticket, _, key) = ticket(w, remote, n);
            let id = {
                let mut state = w.hub.state();
                let id = state.id();
                let text = "twice".to_owned();
                let note = Note { id, author: "zeblit", text, properties: serde_json::Value::Null };
                state.tickets.get_mut(&key).unwrap().notes.push(note);
                id.to_string()
            };
            let write = match remote {
                "jira" => "DELETE /jira/rest/api/2/issue/*/comment/*",
                _ => "DELETE /sentry/api/0/organizations/*/issues/*/comments/*",
            };
            Case {
                payload: Payload::Remove(Twin::Note { ticket, id }),
                write,
                count: Box::new(move |hub| is(hub.ticket(&key).notes.is_empty())),
            }
        }
        Kind::RemoveComment => {
            let number = w.issue();
            let id = w.hub.comment(REPO, number, "zeblit[bot]", "twice");
            Case {
                payload: Payload::Remove(Twin::Comment { id, thread: false }),
                write: "DELETE /repos/*/*/issues/comments/*",
                count: Box::new(move |hub| is(hub.comments(REPO, number).is_empty())),
            }
        }
        Kind::RemoveCheck => {
            let head = w.hub.head(REPO, "main").unwrap();
            let id = w.hub.report_check(REPO, &head, plain_check());
            Case {
                payload: Payload::Remove(Twin::Check { id }),
                write: "PATCH /repos/*/*/check-runs/*",
                count: Box::new(move |hub| {
                    let checks = hub.checks(REPO, &head);
                    let check = checks.iter().find(|check| check.id == id).unwrap();
                    is(check.conclusion.as_deref() == Some("neutral") && check.external_id == "superseded")
                }),
            }
        }
        Kind::RemoveIssue => {
            let number = w.hub.open_issue(REPO, "zeblit[bot]", "Twice", "twice");
            Case {
                payload: Payload::Remove(Twin::Issue { number, of: "1".into() }),
                write: "PATCH /repos/*/*/issues/*",
                count: Box::new(move |hub| {
                    let issue = hub.issue(REPO, number);
                    is(!issue.open && issue.body.contains("#1"))
                }),
            }
        }
        Kind::RemoveReview => {
            let (number, _, commit) = pull(w, n);
            let id = w.hub.review(REPO, number, "zeblit[bot]", "commented", "twice");
            for line in [1, 2] {
                let comment = w.hub.review_comment(REPO, number, "zeblit[bot]", ("src/app.py", line), "Hm.");
                let mut state = w.hub.state();
                let lines = &mut state.repo_mut(REPO).review_comments;
                let line: &mut ReviewComment = lines.iter_mut().find(|line| line.id == comment).unwrap();
                (line.review, line.commit) = (Some(id), commit.to_string());
            }
            Case {
                payload: Payload::Remove(Twin::Review { number, id }),
                // The first of its steps.
                write: "DELETE /repos/*/*/pulls/comments/*",
                count: Box::new(move |hub| {
                    let reviews = hub.reviews(REPO, number);
                    is(hub.review_comments(REPO, number).is_empty()
                        && reviews.iter().all(|review| review.body.starts_with("Superseded")))
                }),
            }
        }
    }
}

/// A new ticket: its name for effects, the write of a comment on it, its key in the model.
fn ticket(w: &World, remote: &str, n: usize) -> (String, &'static str, String) {
    let (key, write) = match remote {
        "jira" => (format!("ABC-{n}"), "POST /jira/rest/api/2/issue/*/comment"),
        _ => (format!("9000{n}"), "POST /sentry/api/0/organizations/*/issues/*/comments"),
    };
    w.hub.add_ticket(&key, if remote == "jira" { "To Do" } else { "unresolved" });
    (key.clone(), write, key)
}

fn plain_check() -> Check {
    Check {
        id: 0,
        name: "zeblit".into(),
        head_sha: String::new(),
        external_id: "twice".into(),
        status: "in_progress".into(),
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
        hidden: 0,
    }
}

/// Puts an effect of GitHub's into the outbox.
pub async fn put(w: &World, key: &str, priority: EffectPriority, payload: Payload) {
    put_at(w, "github", key, priority, payload).await;
}

/// The same for any remote.
pub async fn put_at(w: &World, remote: &str, key: &str, priority: EffectPriority, payload: Payload) {
    let effect = NewEffect {
        run: None,
        task: None,
        remote: remote.into(),
        repo: w.hub.repo(REPO),
        key: key.into(),
        priority,
        payload,
        not_before: None,
    };
    let mut tx = w.app.store.write_tx().await.unwrap();
    let id = EffectId::new(format!("effect of {key}"));
    store::effects::put(&mut tx, &id, &effect, zeblit::clock::Clock::now(w.clock.as_ref())).await.unwrap();
    tx.commit().await.unwrap();
}

async fn state(w: &World, key: &str) -> EffectState {
    store::effects::by_key(&w.app.store, key).await.unwrap().unwrap().state
}

/// One round of sending; false when the process died in it.
async fn survives(w: &World) -> bool {
    let app = Arc::clone(&w.app);
    match tokio::spawn(async move { deliver::tick(&app).await }).await {
        Ok(ticked) => {
            ticked.unwrap();
            true
        }
        Err(death) => {
            assert!(death.is_panic());
            false
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// The intent is committed, nothing was sent.
    BeforeSend,
    /// The forge has obeyed, no answer was read.
    AfterSend,
    /// The answer was read, nothing of it is committed.
    AfterReply,
}

impl Stop {
    const ALL: [Stop; 3] = [Stop::BeforeSend, Stop::AfterSend, Stop::AfterReply];

    fn name(self) -> &'static str {
        match self {
            Stop::BeforeSend => "before send",
            Stop::AfterSend => "after send",
            Stop::AfterReply => "after reply",
        }
    }
}

/// The process dies at this point of sending the only open effect. `looks` is how often it looks at the clock before
/// the commit of an intent: found out by the first one.
async fn die(w: &mut World, key: &str, write: &str, stop: Stop, looks: &mut i32) {
    let watch = w.hub.watch();
    let before = watch.writes();
    match stop {
        Stop::BeforeSend => {
            loop {
                let mut left = *looks;
                w.process.dies_when(move || {
                    left -= 1;
                    left < 0
                });
                assert!(!survives(w).await, "{key}: it was sent before it died at look {looks}");
                if state(w, key).await == EffectState::Sending {
                    break;
                }
                *looks += 1;
                w.restart().await;
            }
            assert_eq!(watch.writes(), before, "{key}");
        }
        Stop::AfterSend => {
            w.hub.fail_next(write, Fault::HangAfter);
            tokio::select! {
                ticked = deliver::tick(&w.app) => panic!("{key}: it ended with {ticked:?}"),
                () = watch.until(|watch| watch.writes() > before) => {}
            }
        }
        Stop::AfterReply => {
            let seen = watch.clone();
            w.process.dies_when(move || seen.writes() > before);
            assert!(!survives(w).await, "{key}: it did not die");
            assert_eq!(watch.writes(), before + 1, "{key}");
        }
    }
    assert_eq!(state(w, key).await, EffectState::Sending, "{key}");
    w.restart().await;
}

/// One line of the table: how many there are in the end.
fn note(lines: &mut Vec<String>, database: &str, kind: &str, stop: Stop, count: usize, state: EffectState) {
    let good = count == 1 && state == EffectState::Confirmed;
    lines.push(format!(
        "{}\t{database}\t{}\t{}\t{count}\t{}",
        if good { "once" } else { "WRONG" },
        kind,
        stop.name(),
        state.as_str()
    ));
}

/// Every kind that is sent by `deliver`, with one stop.
async fn kinds(w: &mut World, database: &str, stop: Stop) -> Vec<String> {
    w.hub.set_permission(REPO, "administration", Some(Level::Write));
    let (mut lines, mut looks) = (Vec::new(), 0);
    let all = rows().into_iter().enumerate();
    for (n, (kind, remote)) in all.filter(|(_, (kind, _))| *kind != Kind::Branch) {
        let case = case_at(w, kind, remote, n);
        assert_eq!(case.payload.of_kind(), kind);
        let name = match remote {
            "github" => kind.as_str().to_owned(),
            other => format!("{other} {}", kind.as_str()),
        };
        let key = format!("case:{name}");
        put_at(w, remote, &key, EffectPriority::Final, case.payload).await;
        die(w, &key, case.write, stop, &mut looks).await;
        w.settle().await;
        // Nothing turns up later.
        w.clock.advance(Duration::minutes(15));
        w.settle().await;
        note(&mut lines, database, &name, stop, (case.count)(&w.hub), state(w, &key).await);
    }
    lines
}

/// The push of a run, with one stop.
async fn a_push(w: &mut World, database: &str, stop: Stop) -> String {
    w.sandbox.usually(Script::edit("src/app.py", "def answer():\n    return 42\n"));
    let number = w.issue();
    w.say(number, "ada", "/zeblit fix").await;
    let watch = w.hub.watch();
    match stop {
        Stop::BeforeSend => w.hub.fail_next("POST /git/*/*/git-receive-pack", Fault::HangBefore),
        Stop::AfterSend => w.hub.fail_next("POST /git/*/*/git-receive-pack", Fault::HangAfter),
        Stop::AfterReply => {
            let seen = watch.clone();
            w.process.dies_when(move || seen.pushes() > 0);
        }
    }
    if stop == Stop::AfterReply {
        let rounds = std::panic::AssertUnwindSafe(w.settle());
        let died = futures_util::FutureExt::catch_unwind(rounds).await;
        assert!(died.is_err(), "it did not die");
    } else {
        tokio::select! {
            () = w.settle() => panic!("it came to rest"),
            () = watch.until(|watch| watch.faults_met() && (stop == Stop::BeforeSend || watch.pushes() > 0)) => {}
        }
    }
    let branch =
        async |w: &World| store::effects::by_key(&w.app.store, "branch:run_0001").await.unwrap().unwrap();
    assert_eq!(branch(w).await.state, EffectState::Sending);
    w.restart().await;
    w.settle().await;
    let names = w.hub.branches(REPO);
    let ours = names.iter().filter(|name| name.starts_with("zeblit/")).collect::<Vec<_>>();
    let good = ours.iter().filter(|name| w.hub.log(REPO, name, "%s", 9).lines().count() == 2).count();
    let mut lines = Vec::new();
    note(&mut lines, database, Kind::Branch.as_str(), stop, good.max(ours.len()), branch(w).await.state);
    lines.remove(0)
}

/// Fails when a line is wrong; leaves the table where `make prove-crash` wants it.
fn told(name: &str, lines: &[String]) {
    let table = lines.join("\n") + "\n";
    if let Some(folder) = std::env::var_os("ZEBLIT_PROVE_FOLDER") {
        let folder = std::path::PathBuf::from(folder);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{name}.tsv")), &table).unwrap();
    }
    assert_eq!(lines.len(), rows().len(), "each kind has a line: {table}");
    assert!(lines.iter().all(|line| line.starts_with("once")), "{table}");
}

macro_rules! stops {
    ($($name:ident: $run:ident $database:literal $stop:expr;)+) => {$(
        #[tokio::test]
        async fn $name() {
            let mut lines = Vec::new();
            World::$run(async |w| lines.extend(kinds(w, $database, $stop).await)).await;
            World::$run(async |w| lines.push(a_push(w, $database, $stop).await)).await;
            if lines.is_empty() {
                // Without a server there is nothing to prove on it; CI has one.
                assert!($database == "postgres" && std::env::var_os("CI").is_none());
                return;
            }
            told(stringify!($name), &lines);
        }
    )+};
}

stops! {
    each_kind_comes_once_when_the_process_dies_before_it_is_sent: run "sqlite" Stop::BeforeSend;
    each_kind_comes_once_when_the_process_dies_after_it_was_sent: run "sqlite" Stop::AfterSend;
    each_kind_comes_once_when_the_process_dies_after_the_answer: run "sqlite" Stop::AfterReply;
    each_kind_comes_once_when_the_process_dies_before_it_is_sent_on_postgres: run_on_postgres "postgres" Stop::BeforeSend;
    each_kind_comes_once_when_the_process_dies_after_it_was_sent_on_postgres: run_on_postgres "postgres" Stop::AfterSend;
    each_kind_comes_once_when_the_process_dies_after_the_answer_on_postgres: run_on_postgres "postgres" Stop::AfterReply;
}

#[test]
fn there_is_a_column_for_every_stop() {
    assert_eq!(Stop::ALL.map(Stop::name), ["before send", "after send", "after reply"]);
}

// ---------------------------------------------------------------- a forge that breaks all the time

/// Effects of the suite; `make prove-faults` takes more.
const FAULTY_EFFECTS: usize = 90;

#[tokio::test]
async fn effects_of_all_kinds_come_once_at_a_forge_that_breaks_all_the_time() {
    let wanted = std::env::var("ZEBLIT_PROVE_EFFECTS").ok().and_then(|text| text.parse().ok());
    let wanted: usize = wanted.unwrap_or(FAULTY_EFFECTS);
    World::run(async |w| {
        w.hub.set_permission(REPO, "administration", Some(Level::Write));
        w.hub.set_patience(std::time::Duration::from_millis(500));
        w.restart().await;
        w.hub.lag_lists_for(Duration::seconds(30));
        let kinds: Vec<_> = rows().into_iter().filter(|(kind, _)| *kind != Kind::Branch).collect();
        let mut cases = Vec::new();
        for n in 0..wanted {
            let (kind, remote) = kinds[n % kinds.len()];
            let case = case_at(w, kind, remote, n);
            let key = format!("fault:{n}:{remote}:{}", kind.as_str());
            put_at(w, remote, &key, EffectPriority::Final, case.payload).await;
            cases.push((key, case.count));
        }
        w.hub.set_chaos(Some(Chaos::new(20_261_128, 50, 8, 3)));
        rest(w).await;
        let chaos = w.hub.set_chaos(None).unwrap();
        w.clock.advance(Duration::minutes(15));
        rest(w).await;
        let (mut doubled, mut converged, mut open) = (Vec::new(), 0, Vec::new());
        for (key, count) in &cases {
            let (count, state) = (count(&w.hub), state(w, key).await);
            if count > 1 {
                doubled.push(format!("{key}: {count}"));
            }
            if count == 1 && state == EffectState::Confirmed {
                converged += 1;
            } else {
                open.push(format!("{key}: {count}, {state:?}"));
            }
        }
        let line = format!(
            "{wanted} effects, {} unclear replies, {} limits, {} doubled, {converged} converged",
            chaos.unclear,
            chaos.limited,
            doubled.len()
        );
        if let Some(folder) = std::env::var_os("ZEBLIT_PROVE_FOLDER") {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(std::path::PathBuf::from(folder).join("faults.txt"), format!("{line}\n")).unwrap();
        }
        assert!(chaos.unclear * 3 >= wanted, "too calm: {line}");
        // Nor was anything made twice and taken away later: lists lag for less than is waited.
        let planned: i64 = store::effects::counts(&w.app.store).await.unwrap().iter().map(|(_, n)| n).sum();
        assert_eq!(usize::try_from(planned).unwrap(), wanted, "removals were planned: {line}");
        assert!(doubled.is_empty() && converged == wanted, "{line}: {doubled:?} {open:?}");
        assert!(w.hub.most_writes_in(Duration::minutes(1)) <= 60, "{line}");
        assert!(w.hub.most_writes_in(Duration::hours(1)) <= 400, "{line}");
    })
    .await;
}

/// Sends until nothing is open; time passes where something waits.
async fn rest(w: &mut World) {
    loop {
        deliver::twins(&w.app).await.unwrap();
        let ticked = deliver::tick(&w.app).await.unwrap();
        match ticked.next {
            _ if ticked.sent > 0 => {}
            Some(next) => w.clock.advance_to(next + Duration::milliseconds(1)),
            None => return,
        }
    }
}
