//! The local forge on real repositories, and its pages through the router.

use super::*;
use crate::clock::SystemClock;
use crate::domain::effect::{
    CheckConclusion, EffectPriority, EffectState, LineComment, MergeMethod, OwnIssue, OwnReview,
};
use crate::domain::ids::EffectId;
use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use chrono::Utc;
use http_body_util::BodyExt;
use tower::ServiceExt;

struct World {
    forge: LocalForge,
    repo: Repo,
    folder: tempfile::TempDir,
}

fn name(text: &str) -> RepoName {
    RepoName::parse(text).unwrap()
}

fn branch(text: &str) -> BranchName {
    BranchName::parse(text).unwrap()
}

fn open(folder: &Path) -> LocalForge {
    LocalForge::open(folder, "http://127.0.0.1:8080/forge", Arc::new(SystemClock)).unwrap()
}

const FILES: &[SeedFile<'static>] = &[
    SeedFile { path: "README.md", content: "# Hello\n", executable: false },
    SeedFile { path: "src/app.py", content: "one = 1\ntwo = 2\n", executable: true },
    SeedFile { path: ".github/zeblit.toml", content: "", executable: false },
];

fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let forge = open(folder.path());
    let repo = forge.create_repo(&name("demo/inventory"), "A <b>shop</b>", FILES, "Begin").unwrap().repo;
    World { forge, repo, folder }
}

impl World {
    /// Pushes a commit by path, as the server's own Git does: the forge is not told.
    fn push(&self, to: &str, path: &str, content: &str) -> Sha {
        let clone = tempfile::tempdir().unwrap();
        let url = self.forge.repo_path(&self.repo).unwrap();
        let copy = git2::Repository::clone(url.to_str().unwrap(), clone.path()).unwrap();
        let parent = copy.head().unwrap().peel_to_commit().unwrap();
        let blob = copy.blob(content.as_bytes()).unwrap();
        let tree = git2::build::TreeUpdateBuilder::new()
            .upsert(path, blob, git2::FileMode::Blob)
            .create_updated(&copy, &parent.tree().unwrap())
            .unwrap();
        let tree = copy.find_tree(tree).unwrap();
        let who = git2::Signature::now("zeblit[bot]", "bot@localhost").unwrap();
        let full = format!("refs/heads/{to}");
        let message = "Change a file\n\nBecause of a reason.\n\nZeblit-Run: r1\n";
        // Not to the checked out ref: a fresh one, pushed under the wanted name.
        let id = copy.commit(Some("refs/heads/aside"), &who, &who, message, &tree, &[&parent]).unwrap();
        let mut remote = copy.find_remote("origin").unwrap();
        remote.push(&[format!("+refs/heads/aside:{full}").as_str()], None).unwrap();
        Sha::parse(&id.to_string()).unwrap()
    }

    fn main_head(&self) -> Sha {
        self.forge.inner.bare(&self.repo.name).branch_head(&branch("main")).unwrap().unwrap()
    }

    fn effect(&self, payload: Payload) -> Effect {
        let now = Utc::now();
        Effect {
            id: EffectId::new("e1"),
            run: None,
            task: None,
            remote: "local".into(),
            repo: self.repo.clone(),
            key: "k".into(),
            priority: EffectPriority::Final,
            payload,
            revision: 1,
            state: EffectState::Sending,
            sender: None,
            intent_at: Some(now),
            not_before: None,
            remote_ref: None,
            tries: 1,
            last_error: None,
            created_at: now,
        }
    }

    fn pages(&self) -> (Router, Arc<Mutex<Vec<Webhook>>>) {
        let sent: Arc<Mutex<Vec<Webhook>>> = Arc::default();
        let keep = Arc::clone(&sent);
        let hook: WebhookHook = Arc::new(move |webhook| {
            keep.lock().unwrap().push(webhook);
            Box::pin(async { Ok(()) })
        });
        (router(self.forge.clone(), hook), sent)
    }
}

fn comment(number: i64, marker: &str, body: &str) -> OwnComment {
    OwnComment { number, thread: None, marker: marker.into(), body: body.into() }
}

fn own_pull(head: &str) -> OwnPull {
    OwnPull {
        head: branch(head),
        fork: None,
        base: branch("main"),
        title: "Fix it".into(),
        body: "Fixes #1\n<!-- m -->".into(),
        draft: true,
        marker: "<!-- m -->".into(),
    }
}

fn check_run(sha: &Sha, status: CheckStatus, conclusion: Option<CheckConclusion>) -> CheckRun {
    CheckRun {
        name: "zeblit".into(),
        head_sha: sha.clone(),
        external_id: "run-1".into(),
        status,
        conclusion,
        title: "1 file changed".into(),
        summary: "All **good**".into(),
        details_url: Some("http://127.0.0.1:8080/runs/1".into()),
        started_at: None,
        completed_at: None,
        annotations: Vec::new(),
    }
}

fn status_of(error: RemoteError) -> u16 {
    match error {
        RemoteError::Refused { status, .. } => status,
        RemoteError::NotFound { .. } => 404,
        other => panic!("{other}"),
    }
}

fn with_ref(mut effect: Effect, made: &RemoteRef) -> Effect {
    effect.remote_ref = Some(made.clone());
    effect
}

async fn page_of(router: &Router, path: &str) -> (StatusCode, String) {
    let answer = router.clone().oneshot(Request::get(path).body(Body::empty()).unwrap()).await.unwrap();
    let status = answer.status();
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

async fn post_form(
    router: &Router,
    path: &str,
    headers: &[(&str, &str)],
    form: &str,
) -> (StatusCode, String) {
    let mut request = Request::post(path).header("content-type", "application/x-www-form-urlencoded");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = router.clone().oneshot(request.body(Body::from(form.to_owned())).unwrap()).await.unwrap();
    let status = answer.status();
    let location = answer.headers().get("location").map(|value| value.to_str().unwrap().to_owned());
    let bytes = answer.into_body().collect().await.unwrap().to_bytes();
    (status, location.unwrap_or_else(|| String::from_utf8(bytes.to_vec()).unwrap()))
}

#[tokio::test]
async fn everything_survives_a_restart() {
    let w = world();
    let owner = w.forge.owner();
    let (number, _) = w.forge.open_issue(&w.repo, &owner, "Bug", "text").unwrap();
    let (id, _) = w.forge.comment(&w.repo, &owner, number, "/zeblit fix").unwrap();
    let before = w.forge.inner.lock().clone();
    let World { forge, repo, folder } = w;
    drop(forge);
    let again = open(folder.path());
    assert_eq!(*again.inner.lock(), before);
    let thread = again.thread(&repo, number, 10).await.unwrap();
    assert_eq!(thread.first().unwrap().body, "/zeblit fix");
    // Ids go on where they stopped.
    let (next, _) = again.comment(&repo, &again.owner(), number, "more").unwrap();
    assert!(next > id);
}

#[test]
fn a_folder_has_one_owner_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path());
    let second = LocalForge::open(folder.path(), "http://x", Arc::new(SystemClock)).unwrap_err();
    assert!(second.to_string().contains("another zeblit uses this folder"), "{second}");
    drop(first);
    open(folder.path());
}

#[test]
fn a_damaged_state_file_is_named_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()));
    let file = folder.path().join("forge.json");
    for bad in ["{", "{\"version\": 3}", ""] {
        fs::write(&file, bad).unwrap();
        let error =
            LocalForge::open(folder.path(), "http://x", Arc::new(SystemClock)).unwrap_err().to_string();
        assert!(error.contains("forge.json"), "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), bad);
    }
}

#[tokio::test]
async fn a_failed_save_changes_nothing() {
    let w = world();
    let before = w.forge.inner.lock().clone();
    // A log that takes nothing; after that the whole is written anew, and a folder is in its way.
    let unwritable = File::open(w.folder.path().join("forge.log")).unwrap();
    let log = std::mem::replace(&mut w.forge.inner.disk.lock().unwrap().log, unwritable);
    fs::create_dir(w.folder.path().join("forge.json.new")).unwrap();
    for _ in 0..2 {
        let error = w.forge.open_issue(&w.repo, &w.forge.owner(), "Bug", "").unwrap_err();
        assert!(matches!(error, RemoteError::Unavailable { .. }), "{error}");
        assert_eq!(*w.forge.inner.lock(), before);
    }
    w.forge.inner.disk.lock().unwrap().log = log;
    fs::remove_dir(w.folder.path().join("forge.json.new")).unwrap();
    assert_eq!(w.forge.open_issue(&w.repo, &w.forge.owner(), "Bug", "").unwrap().0, 1);
    let after = w.forge.inner.lock().clone();
    let World { forge, folder, .. } = w;
    drop(forge);
    assert_eq!(*open(folder.path()).inner.lock(), after);
}

#[test]
fn a_line_that_broke_off_never_was_and_a_line_of_before_the_whole_is_old() {
    let World { forge, repo, folder } = world();
    let log = folder.path().join("forge.log");
    let owner = forge.owner();
    forge.open_issue(&repo, &owner, "Bug", "one").unwrap();
    let first = fs::read(&log).unwrap();
    forge.inner.apply_label(&repo, 1, "kept", true).unwrap();
    let before = forge.inner.lock().clone();
    drop(forge);
    let mut lines = fs::read(&log).unwrap();
    assert!(lines.len() > first.len());
    lines.extend(b"{\"version\":2,\"changes\":99,");
    fs::write(&log, lines).unwrap();
    let forge = open(folder.path());
    assert_eq!(*forge.inner.lock(), before);
    drop(forge);
    // The whole was written; a crash before the log was emptied leaves lines that it has.
    assert_eq!(fs::read(&log).unwrap(), b"");
    fs::write(&log, first).unwrap();
    let forge = open(folder.path());
    assert_eq!(*forge.inner.lock(), before);
    // What comes after goes on from there.
    forge.open_issue(&repo, &owner, "Bug", "two").unwrap();
    let before = forge.inner.lock().clone();
    drop(forge);
    assert_eq!(*open(folder.path()).inner.lock(), before);
}

#[test]
fn a_log_as_large_as_the_whole_is_taken_into_it() {
    let World { forge, repo, folder } = world();
    let owner = forge.owner();
    let body = "x".repeat(60_000);
    let bytes = |name: &str| fs::metadata(folder.path().join(name)).unwrap().len();
    let (mut longest, mut shortened) = (0, 0);
    for n in 0..60 {
        let before = bytes("forge.log");
        forge.open_issue(&repo, &owner, &format!("Bug {n}"), &body).unwrap();
        longest = longest.max(bytes("forge.log"));
        shortened += usize::from(bytes("forge.log") < before);
    }
    assert_eq!(shortened, 2, "at one and at two MiB");
    assert!(longest < 2_500_000, "{longest}");
    let before = forge.inner.lock().clone();
    drop(forge);
    assert_eq!(*open(folder.path()).inner.lock(), before);
}

#[test]
fn a_damaged_log_is_named_and_kept_and_a_forge_without_one_is_read() {
    let World { forge, repo, folder } = world();
    forge.open_issue(&repo, &forge.owner(), "Bug", "text").unwrap();
    let before = forge.inner.lock().clone();
    drop(forge);
    let (whole, log) = (folder.path().join("forge.json"), folder.path().join("forge.log"));
    let lines = fs::read_to_string(&log).unwrap();
    let bad = format!("{{\n{lines}");
    fs::write(&log, &bad).unwrap();
    let error = LocalForge::open(folder.path(), "http://x", Arc::new(SystemClock)).unwrap_err().to_string();
    assert!(error.contains("line 1 of forge.log"), "{error}");
    assert_eq!(fs::read_to_string(&log).unwrap(), bad);
    // As the layout before had it.
    let mut old = serde_json::to_value(&before).unwrap();
    old["version"] = 1.into();
    old.as_object_mut().unwrap().remove("changes");
    fs::write(&whole, old.to_string()).unwrap();
    fs::remove_file(&log).unwrap();
    let forge = open(folder.path());
    assert_eq!(forge.inner.lock().repos, before.repos);
    drop(forge);
    assert!(fs::read_to_string(&whole).unwrap().contains("\"version\": 2"));
}

#[tokio::test]
async fn roles_are_by_id_and_unknown_users_have_none() {
    let w = world();
    let writer = w.forge.create_user("writer", ActorKind::User).unwrap();
    w.forge.set_role(&w.repo, &writer, Role::Write).unwrap();
    let imitator = Actor { id: 999, login: OWNER_LOGIN.into(), kind: ActorKind::User };
    for (user, role) in [
        (w.forge.owner(), Role::Admin),
        (w.forge.bot(), Role::Write),
        (writer.clone(), Role::Write),
        (imitator.clone(), Role::None),
        (w.forge.create_user("stranger", ActorKind::User).unwrap(), Role::None),
    ] {
        assert_eq!(w.forge.role_of(&w.repo, &user).await.unwrap(), role, "{}", user.login);
    }
    w.forge.set_role(&w.repo, &writer, Role::None).unwrap();
    assert_eq!(w.forge.role_of(&w.repo, &writer).await.unwrap(), Role::None);
    assert_eq!(status_of(w.forge.set_role(&w.repo, &imitator, Role::Admin).unwrap_err()), 404);
    let elsewhere = Repo { id: 4242, ..w.repo.clone() };
    assert_eq!(status_of(w.forge.role_of(&elsewhere, &writer).await.unwrap_err()), 404);
    let own = w.forge.own_identity().await.unwrap();
    assert_eq!((own.user_id, own.login.as_str()), (w.forge.bot().id, BOT_LOGIN));
}

#[tokio::test]
async fn files_and_branches_are_read_live() {
    let w = world();
    assert_eq!(w.forge.repo_info(&w.repo).await.unwrap().default_branch, branch("main"));
    let main = w.main_head();
    let at = |at: &str, path: &str| {
        let (forge, repo, at, path) = (w.forge.clone(), w.repo.clone(), at.to_owned(), path.to_owned());
        async move { forge.read_file(&repo, &at, &path).await.unwrap() }
    };
    assert_eq!(at("main", "src/app.py").await.unwrap(), b"one = 1\ntwo = 2\n");
    for (place, path) in [
        ("main", "missing"),
        ("main", "src"),
        ("gone", "README.md"),
        ("main", "../x"),
        ("ma in~", "README.md"),
    ] {
        assert_eq!(at(place, path).await, None, "{place} {path}");
    }
    assert_eq!(w.forge.list_folder(&w.repo, "main", ".github").await.unwrap(), ["zeblit.toml"]);
    assert!(w.forge.list_folder(&w.repo, "main", "nowhere").await.unwrap().is_empty());
    assert_eq!(w.forge.branch_head(&w.repo, &branch("zeblit/1")).await.unwrap(), None);
    let pushed = w.push("zeblit/1", "src/app.py", "one = 1\ntwo = 3\n");
    assert_eq!(w.forge.branch_head(&w.repo, &branch("zeblit/1")).await.unwrap(), Some(pushed.clone()));
    assert_eq!(at(pushed.as_str(), "src/app.py").await.unwrap(), b"one = 1\ntwo = 3\n");
    assert_eq!(at(main.as_str(), "src/app.py").await.unwrap(), b"one = 1\ntwo = 2\n");
    let big = w.push("big", "big.bin", &"x".repeat(repository::MAX_FILE_BYTES + 1));
    let error = w.forge.read_file(&w.repo, big.as_str(), "big.bin").await.unwrap_err();
    assert_eq!(status_of(error), 422);
    let access = w.forge.git_access(&w.repo, GitPermission::Write).await.unwrap();
    assert!(access.url.starts_with("file:///") && access.token.is_none(), "{access:?}");
}

#[tokio::test]
async fn a_pull_request_template_is_found() {
    let w = world();
    assert_eq!(w.forge.pull_template(&w.repo).await.unwrap(), None);
    let template =
        SeedFile { path: ".github/pull_request_template.md", content: "## What\n", executable: false };
    w.forge.commit_files(&w.repo, &branch("main"), &[template], "Add a template").unwrap();
    assert_eq!(w.forge.pull_template(&w.repo).await.unwrap().unwrap(), "## What\n");
}

#[tokio::test]
async fn a_sticky_comment_is_made_once_found_by_its_marker_and_edited_in_place() {
    let w = world();
    let (number, _) = w.forge.open_issue(&w.repo, &w.forge.owner(), "Bug", "").unwrap();
    let first =
        w.effect(Payload::Sticky(comment(number, "<!-- zeblit:v1 a -->", "queued <!-- zeblit:v1 a -->")));
    assert_eq!(w.forge.find(&first).await.unwrap(), None);
    // Somebody copies the marker: it is not ours because the bot did not write it.
    w.forge.comment(&w.repo, &w.forge.owner(), number, "<!-- zeblit:v1 a -->").unwrap();
    assert_eq!(w.forge.find(&first).await.unwrap(), None);
    let made = w.forge.apply(&first).await.unwrap();
    assert_eq!(w.forge.find(&first).await.unwrap(), Some(made.clone()));
    assert_eq!(
        made.url.as_deref().unwrap(),
        format!("http://127.0.0.1:8080/forge/demo/inventory/issues/{number}#issuecomment-{}", made.id)
    );
    let second = with_ref(w.effect(Payload::Sticky(comment(number, "<!-- zeblit:v1 a -->", "done"))), &made);
    assert_eq!(w.forge.apply(&second).await.unwrap().id, made.id);
    let thread = w.forge.thread(&w.repo, number, 10).await.unwrap();
    let own: Vec<_> = thread.iter().filter(|comment| comment.own).collect();
    assert_eq!(own.len(), 1);
    assert_eq!(own.first().unwrap().body, "done");
    // The newest only, oldest first.
    let newest = w.forge.thread(&w.repo, number, 1).await.unwrap();
    assert_eq!(newest.first().unwrap().body, "done");

    let fold = w.effect(Payload::Minimise { node_id: made.node_id.clone().unwrap() });
    assert_eq!(w.forge.find(&fold).await.unwrap(), None);
    w.forge.apply(&fold).await.unwrap();
    assert_eq!(w.forge.find(&fold).await.unwrap().unwrap().id, made.id);
}

#[tokio::test]
async fn comments_that_github_refuses_are_refused() {
    let w = world();
    let (number, _) = w.forge.open_issue(&w.repo, &w.forge.owner(), "Bug", "").unwrap();
    let ok = "é".repeat(MAX_BODY_CHARS);
    for (wanted, status) in [
        (comment(number, "m", &format!("{ok}é")), 422),
        (comment(number, "m", " \n"), 422),
        (comment(99, "m", "x"), 404),
        (OwnComment { thread: Some(12345), ..comment(number, "m", "x") }, 404),
    ] {
        let error = w.forge.apply(&w.effect(Payload::Comment(wanted))).await.unwrap_err();
        assert_eq!(status_of(error), status);
    }
    w.forge.apply(&w.effect(Payload::Comment(comment(number, "m", &ok)))).await.unwrap();
    let gone = RemoteRef { id: "777".into(), ..RemoteRef::default() };
    let lost = with_ref(w.effect(Payload::Sticky(comment(number, "m", "x"))), &gone);
    assert_eq!(status_of(w.forge.apply(&lost).await.unwrap_err()), 404);
    assert_eq!(status_of(w.forge.open_issue(&w.repo, &w.forge.owner(), " ", "").unwrap_err()), 422);
}

#[tokio::test]
async fn reactions_are_a_set() {
    let w = world();
    let (number, _) = w.forge.open_issue(&w.repo, &w.forge.owner(), "Bug", "").unwrap();
    let (id, _) = w.forge.comment(&w.repo, &w.forge.owner(), number, "/zeblit fix").unwrap();
    for target in [ReactionTarget::Subject { number }, ReactionTarget::Comment { id }] {
        let eyes = w.effect(Payload::Reaction { target: target.clone(), reaction: Reaction::Eyes });
        assert_eq!(w.forge.find(&eyes).await.unwrap(), None);
        let made = w.forge.apply(&eyes).await.unwrap();
        assert_eq!(w.forge.apply(&eyes).await.unwrap(), made);
        assert_eq!(w.forge.find(&eyes).await.unwrap(), Some(made));
        let rocket = w.effect(Payload::Reaction { target, reaction: Reaction::Rocket });
        assert_eq!(w.forge.find(&rocket).await.unwrap(), None);
    }
    for target in [
        ReactionTarget::Subject { number: 9 },
        ReactionTarget::ReviewComment { id: 9_999 },
        ReactionTarget::Review { node_id: "LOCAL_9999".into() },
    ] {
        let lost = w.effect(Payload::Reaction { target, reaction: Reaction::Eyes });
        assert_eq!(status_of(w.forge.apply(&lost).await.unwrap_err()), 404);
    }
}

#[tokio::test]
async fn a_pull_request_needs_commits_and_is_adopted_when_it_is_there() {
    let w = world();
    w.forge.open_issue(&w.repo, &w.forge.owner(), "Bug", "").unwrap();
    let wanted = w.effect(Payload::Pull(own_pull("zeblit/1-fix")));
    assert_eq!(status_of(w.forge.apply(&wanted).await.unwrap_err()), 422, "no such head");
    let same = w.effect(Payload::Pull(own_pull("main")));
    let error = w.forge.apply(&same).await.unwrap_err();
    assert!(error.to_string().contains("No commits between main and main"), "{error}");

    let head = w.push("zeblit/1-fix", "src/app.py", "one = 1\ntwo = 3\n");
    assert_eq!(w.forge.find(&wanted).await.unwrap(), None);
    let made = w.forge.apply(&wanted).await.unwrap();
    assert_eq!((made.id.as_str(), made.note.as_deref()), ("2", None));
    assert_eq!(w.forge.apply(&wanted).await.unwrap().id, "2", "adopted, not doubled");
    assert_eq!(w.forge.find(&wanted).await.unwrap().unwrap().id, "2");
    assert_eq!(w.forge.pulls_of_branch(&w.repo, &branch("zeblit/1-fix")).unwrap(), [2]);

    let pull = w.forge.pull(&w.repo, 2).await.unwrap();
    assert_eq!(pull.head_sha, head);
    assert_eq!(pull.base_sha, w.main_head());
    assert!(pull.draft && pull.open && !pull.fork && !pull.merged);
    let subject = w.forge.subject(&w.repo, 2).await.unwrap();
    assert_eq!(subject.kind, SubjectKind::PullRequest);
    assert_eq!(subject.author.id, w.forge.bot().id);
    let diff = w.forge.pull_diff(&w.repo, 2, 10_000).unwrap();
    assert!(diff.contains("-two = 2\n+two = 3\n"), "{diff}");
    assert!(w.forge.pull_diff(&w.repo, 2, 20).unwrap().ends_with("... (cut)\n"));
    assert_eq!(status_of(w.forge.pull(&w.repo, 1).await.unwrap_err()), 404, "an issue is no pull request");

    // A later push by path moves the head without a word to the forge.
    let later = w.push("zeblit/1-fix", "src/app.py", "one = 1\ntwo = 4\n");
    assert_eq!(w.forge.pull(&w.repo, 2).await.unwrap().head_sha, later);

    let renamed = with_ref(
        w.effect(Payload::Pull(OwnPull { title: "Better".into(), ..own_pull("zeblit/1-fix") })),
        &made,
    );
    w.forge.apply(&renamed).await.unwrap();
    assert_eq!(w.forge.subject(&w.repo, 2).await.unwrap().title, "Better");

    // Closed: found by its marker, and a person may open another for the same branch.
    w.forge.set_open(&w.repo, &w.forge.owner(), 2, false).unwrap();
    assert_eq!(w.forge.find(&wanted).await.unwrap().unwrap().id, "2");
    let closed = w.forge.pull(&w.repo, 2).await.unwrap();
    assert!(!closed.open && !closed.merged && closed.head_sha == later);
    let owner = w.forge.owner();
    let (third, hook) =
        w.forge.open_pull(&w.repo, &owner, &branch("zeblit/1-fix"), &branch("main"), "Mine", "").unwrap();
    assert_eq!((third, hook.event), (3, "pull_request"));
    let twin = w.forge.open_pull(&w.repo, &owner, &branch("zeblit/1-fix"), &branch("main"), "Mine", "");
    assert!(twin.unwrap_err().to_string().contains("A pull request already exists"));
}

#[tokio::test]
async fn checks_need_a_commit_and_are_found_by_run_name_and_commit() {
    let w = world();
    let sha = w.main_head();
    let queued = w.effect(Payload::Check(check_run(&sha, CheckStatus::Queued, None)));
    assert_eq!(w.forge.find(&queued).await.unwrap(), None);
    let made = w.forge.apply(&queued).await.unwrap();
    assert_eq!(w.forge.find(&queued).await.unwrap(), Some(made.clone()));
    let other = check_run(&Sha::parse(&"0".repeat(40)).unwrap(), CheckStatus::Queued, None);
    let error = w.forge.apply(&w.effect(Payload::Check(other))).await.unwrap_err();
    assert!(error.to_string().contains("No commit found for SHA"), "{error}");
    let unfinished = w.effect(Payload::Check(check_run(&sha, CheckStatus::Completed, None)));
    assert_eq!(status_of(w.forge.apply(&unfinished).await.unwrap_err()), 422);
    let done = check_run(&sha, CheckStatus::Completed, Some(CheckConclusion::Success));
    w.forge.apply(&with_ref(w.effect(Payload::Check(done.clone())), &made)).await.unwrap();
    assert_eq!(w.forge.checks(&w.repo, &sha).unwrap(), [done]);
}

#[tokio::test]
async fn attached_files_are_kept_served_and_given_to_their_repository_only() {
    let w = world();
    let link = w.forge.attach(&w.repo, "../Crash log.txt", b"boom").unwrap();
    let url = link.split_once("](").unwrap().1.trim_end_matches(')').to_owned();
    assert!(
        link.starts_with("[..-Crash-log.txt](http://127.0.0.1:8080/forge/demo/inventory/files/"),
        "{link}"
    );
    let found = attachment::links(&format!("see {link}"), w.forge.uploads_url());
    assert_eq!(found.iter().map(|link| link.url.as_str()).collect::<Vec<_>>(), [url.as_str()]);
    let attached = async |repo: &Repo, url: &str, most| {
        let link = Link { url: url.to_owned(), name: None, asset: false };
        w.forge.attachment(repo, &link, most).await
    };
    assert_eq!(attached(&w.repo, &url, 4).await.unwrap(), b"boom");
    assert_eq!(status_of(attached(&w.repo, &url, 3).await.unwrap_err()), 413);
    let other = w.forge.create_repo(&name("demo/other"), "", FILES, "Begin").unwrap().repo;
    let (folder, _) = url.rsplit_once('/').unwrap();
    for (repo, url) in [
        (&other, url.clone()),
        (&w.repo, format!("{folder}/none.txt")),
        (&w.repo, format!("{folder}/../../../../forge.json")),
        (&w.repo, format!("{folder}/..")),
        (&w.repo, "http://127.0.0.1:8080/forge/demo/inventory/files/x/forge.json".to_owned()),
    ] {
        let error = attached(repo, &url, 1000).await.unwrap_err();
        assert!(
            matches!(error, RemoteError::NotFound { .. } | RemoteError::Protocol { .. }),
            "{url}: {error}"
        );
    }
    let large = vec![0; MAX_UPLOAD_BYTES + 1];
    assert_eq!(status_of(w.forge.attach(&w.repo, "x", &large).unwrap_err()), 422);
    assert_eq!(status_of(w.forge.attach(&w.repo, "..", b"x").unwrap_err()), 422);

    // The same over HTTP: a body in, a link out, and bytes that no browser runs.
    let (router, _) = w.pages();
    let put = |host: &str| {
        let body = Body::from("<html><script>alert(1)</script>");
        Request::put("/forge/demo/inventory/files/page.html").header("host", host).body(body).unwrap()
    };
    let foreign = router.clone().oneshot(put("rebound.example")).await.unwrap();
    assert_eq!(foreign.status(), StatusCode::FORBIDDEN);
    let answer = router.clone().oneshot(put("127.0.0.1:8080")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    let text = answer.into_body().collect().await.unwrap().to_bytes();
    let path = String::from_utf8(text.to_vec()).unwrap();
    let path = path.trim().trim_end_matches(')').split_once("8080").unwrap().1.to_owned();
    let page = router.clone().oneshot(Request::get(&path).body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(page.headers()["content-type"], "application/octet-stream");
    assert_eq!(page.headers()["x-content-type-options"], "nosniff");
    let none = Request::get("/forge/demo/inventory/files/9/none").body(Body::empty()).unwrap();
    assert_eq!(router.oneshot(none).await.unwrap().status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn checks_that_others_reported_are_told_with_their_logs() {
    let w = world();
    let sha = w.main_head();
    let own = check_run(&sha, CheckStatus::Completed, Some(CheckConclusion::Failure));
    w.forge.apply(&w.effect(Payload::Check(own.clone()))).await.unwrap();
    assert_eq!(w.forge.failed_checks(&w.repo, &sha).await.unwrap(), [], "our own are no news");
    let mut theirs = check_run(&sha, CheckStatus::Completed, Some(CheckConclusion::Failure));
    theirs.name = "tests".into();
    let id = w.forge.report_check(&w.repo, &theirs, "one\ntwo\n").unwrap();
    let passed = check_run(&sha, CheckStatus::Completed, Some(CheckConclusion::Success));
    w.forge.report_check(&w.repo, &passed, "").unwrap();
    let failed = w.forge.failed_checks(&w.repo, &sha).await.unwrap();
    assert_eq!(failed.len(), 1);
    assert_eq!(
        (failed[0].name.as_str(), failed[0].conclusion.as_str(), failed[0].job),
        ("tests", "failure", Some(id))
    );
    let log = async |bytes| w.forge.job_log(&w.repo, id, bytes).await.unwrap().unwrap();
    assert_eq!(log(100).await, LogTail { bytes: b"one\ntwo\n".to_vec(), whole: true });
    assert_eq!(log(4).await, LogTail { bytes: b"two\n".to_vec(), whole: false });
    assert_eq!(w.forge.job_log(&w.repo, 9999, 10).await.unwrap(), None);
    let elsewhere = Sha::parse(&"e".repeat(40)).unwrap();
    assert_eq!(
        status_of(
            w.forge
                .report_check(&w.repo, &check_run(&elsewhere, CheckStatus::Completed, None), "")
                .unwrap_err()
        ),
        422
    );
}

#[tokio::test]
async fn a_fork_takes_pushes_and_pull_requests_come_from_it() {
    let w = world();
    assert_eq!(w.forge.fork_of(&w.repo, "bots").await.unwrap(), None);
    let fork = w.forge.create_fork(&w.repo, "bots").unwrap().repo;
    assert_eq!(fork.name, name("bots/inventory"));
    assert_eq!(w.forge.fork_of(&w.repo, "BOTS").await.unwrap(), Some(fork.clone()));
    assert_eq!(w.forge.fork_of(&fork, "bots").await.unwrap(), None);
    let topic = branch("zeblit/1");
    let files = [SeedFile { path: "src/app.py", content: "one = 1\n", executable: false }];
    let main = w.main_head();
    // The branch begins at the head of `main`, which the fork has too.
    let fork_bare = w.forge.inner.bare(&fork.name);
    let begin = |sha: &Sha| {
        let git = git2::Repository::open_bare(fork_bare.path()).unwrap();
        let id = git2::Oid::from_str(sha.as_str()).unwrap();
        git.reference(&topic.full(), id, true, "begin").unwrap();
    };
    begin(&main);
    let first = w.forge.commit_files(&fork, &topic, &files, "Change").unwrap();
    let wanted = OwnPull { fork: Some(fork.clone()), ..own_pull("zeblit/1") };
    let made = w.forge.apply(&w.effect(Payload::Pull(wanted.clone()))).await.unwrap();
    let number: i64 = made.id.parse().unwrap();
    assert_eq!(w.forge.find(&w.effect(Payload::Pull(wanted.clone()))).await.unwrap(), Some(made));
    assert_eq!(
        w.forge.find(&w.effect(Payload::Pull(own_pull("zeblit/1")))).await.unwrap(),
        None,
        "not from here"
    );
    let head = w.forge.pull(&w.repo, number).await.unwrap();
    assert_eq!((head.head_sha.clone(), head.fork, head.head_repo), (first, true, Some(fork.name.clone())));
    assert_eq!(w.forge.changed_paths(&w.repo, number).await.unwrap(), ["src/app.py"]);
    assert_eq!(
        w.forge.branch_head(&w.repo, &topic).await.unwrap(),
        None,
        "the repository has no such branch"
    );
    // A later push to the fork is seen, and checks find its commit.
    let more = [SeedFile { path: "b.txt", content: "b", executable: false }];
    let second = w.forge.commit_files(&fork, &topic, &more, "More").unwrap();
    let check = check_run(&second, CheckStatus::Queued, None);
    w.forge.apply(&w.effect(Payload::Check(check))).await.unwrap();
    assert_eq!(w.forge.pull(&w.repo, number).await.unwrap().head_sha, second);
    let at = format!("refs/pull/{number}/head");
    let base = git2::Repository::open_bare(w.forge.repo_path(&w.repo).unwrap()).unwrap();
    assert_eq!(base.refname_to_id(&at).unwrap().to_string(), second.as_str());
    // What an event says of it.
    let owner = w.forge.owner();
    let (_, hook) = w.forge.review_comment(&w.repo, &owner, number, "b.txt", 1, "/zeblit fix").unwrap();
    let body: serde_json::Value = serde_json::from_slice(&hook.body).unwrap();
    assert_eq!(body["pull_request"]["head"]["repo"]["full_name"], "bots/inventory");
    assert_eq!(body["pull_request"]["base"]["repo"]["full_name"], "demo/inventory");
    let (router, _) = w.pages();
    let (_, page) = page_of(&router, &format!("/forge/demo/inventory/pull/{number}")).await;
    assert!(page.contains("bots:zeblit/1") && page.contains("b.txt"), "{page}");
    // A repository that is no fork of this one offers nothing.
    let other = w.forge.create_repo(&name("bots/other"), "", FILES, "Begin").unwrap().repo;
    let error =
        w.forge.apply(&w.effect(Payload::Pull(OwnPull { fork: Some(other), ..own_pull("main") }))).await;
    assert_eq!(status_of(error.unwrap_err()), 422);
    // All of it is on disk.
    let (folder, repo) = (w.folder, w.repo);
    drop(router);
    drop(w.forge);
    let again = open(folder.path());
    assert_eq!(again.fork_of(&repo, "bots").await.unwrap(), Some(fork));
    assert_eq!(again.pull(&repo, number).await.unwrap().head_sha, second);
}

#[tokio::test]
async fn branches_are_not_applied_by_the_forge() {
    let w = world();
    let push =
        crate::domain::effect::BranchPush { branch: branch("zeblit/1"), expected: None, new: w.main_head() };
    let effect = w.effect(Payload::Branch(push));
    for error in [w.forge.apply(&effect).await.unwrap_err(), w.forge.find(&effect).await.unwrap_err()] {
        assert!(matches!(error, RemoteError::Protocol { .. }), "{error}");
        assert_eq!(error.retry(), crate::remote::Retry::Never);
    }
}

#[tokio::test]
async fn review_comments_stand_on_lines_of_the_diff_and_take_replies() {
    let w = world();
    w.push("topic", "src/app.py", "one = 1\ntwo = 3\n");
    let owner = w.forge.owner();
    let (number, _) =
        w.forge.open_pull(&w.repo, &owner, &branch("topic"), &branch("main"), "Topic", "text").unwrap();
    let error = w.forge.review_comment(&w.repo, &owner, number, "src/app.py", 99, "x").unwrap_err();
    assert_eq!(status_of(error), 422);
    let (id, hook) = w.forge.review_comment(&w.repo, &owner, number, "src/app.py", 2, "/zeblit fix").unwrap();
    assert_eq!(hook.event, "pull_request_review_comment");
    let body: serde_json::Value = serde_json::from_slice(&hook.body).unwrap();
    assert_eq!(body["comment"]["path"], "src/app.py");
    assert_eq!(body["comment"]["line"], 2);
    assert!(body["comment"]["diff_hunk"].as_str().unwrap().ends_with("+two = 3"));
    assert_eq!(body["pull_request"]["head"]["ref"], "topic");
    let reply = OwnComment { thread: Some(id), ..comment(number, "<!-- r -->", "see above <!-- r -->") };
    let effect = w.effect(Payload::Comment(reply));
    let made = w.forge.apply(&effect).await.unwrap();
    assert_eq!(w.forge.find(&effect).await.unwrap(), Some(made.clone()));
    assert!(made.url.unwrap().contains("/pull/1#discussion_r"));
    let thread = w.forge.thread(&w.repo, number, 10).await.unwrap();
    assert_eq!(thread.last().unwrap().path.as_deref(), Some("src/app.py"));

    let (review, hook) = w.forge.review(&w.repo, &owner, number, "/zeblit review").unwrap();
    assert_eq!(hook.event, "pull_request_review");
    let target = ReactionTarget::Review { node_id: node_id(review) };
    w.forge.apply(&w.effect(Payload::Reaction { target, reaction: Reaction::Eyes })).await.unwrap();
}

/// Every field that the recorded payload's decoder may use is there, under the same name and of the same kind.
#[test]
fn deliveries_have_the_fields_of_recorded_ones() {
    fn kind(value: &serde_json::Value) -> &'static str {
        match value {
            serde_json::Value::Null => "null",
            serde_json::Value::Bool(_) => "bool",
            serde_json::Value::Number(_) => "number",
            serde_json::Value::String(_) => "string",
            serde_json::Value::Array(_) => "array",
            serde_json::Value::Object(_) => "object",
        }
    }
    let w = world();
    let owner = w.forge.owner();
    let (number, opened) = w.forge.open_issue(&w.repo, &owner, "Bug", "text").unwrap();
    let (id, created) = w.forge.comment(&w.repo, &owner, number, "/zeblit fix").unwrap();
    let edited = w.forge.edit_comment(&w.repo, &owner, id, "/zeblit help").unwrap();
    let closed = w.forge.close_issue(&w.repo, &owner, number).unwrap();
    let parse = |hook: &Webhook| serde_json::from_slice::<serde_json::Value>(&hook.body).unwrap();
    assert_eq!((opened.event, created.event, closed.event), ("issues", "issue_comment", "issues"));
    assert_eq!(parse(&opened)["action"], "opened");
    assert_eq!(parse(&closed)["issue"]["state"], "closed");
    assert_eq!(parse(&edited)["changes"]["body"]["from"], "/zeblit fix");
    assert_eq!(parse(&edited)["action"], "edited");
    let body = parse(&created);
    for (pointer, wanted) in [
        ("/action", "string"),
        ("/comment/id", "number"),
        ("/comment/node_id", "string"),
        ("/comment/body", "string"),
        ("/comment/html_url", "string"),
        ("/comment/created_at", "string"),
        ("/comment/updated_at", "string"),
        ("/comment/performed_via_github_app", "null"),
        ("/comment/user/id", "number"),
        ("/comment/user/login", "string"),
        ("/comment/user/type", "string"),
        ("/issue/number", "number"),
        ("/issue/title", "string"),
        ("/issue/body", "string"),
        ("/issue/state", "string"),
        ("/issue/html_url", "string"),
        ("/issue/user/id", "number"),
        ("/repository/id", "number"),
        ("/repository/full_name", "string"),
        ("/repository/private", "bool"),
        ("/repository/default_branch", "string"),
        ("/repository/owner/login", "string"),
        ("/sender/id", "number"),
        ("/sender/type", "string"),
    ] {
        let found = body.pointer(pointer).unwrap_or_else(|| panic!("{pointer} is missing"));
        assert_eq!(kind(found), wanted, "{pointer}");
    }
    let ids = [&opened, &created, &edited, &closed].map(|hook| hook.delivery_id.clone());
    assert_eq!(ids.iter().collect::<std::collections::BTreeSet<_>>().len(), 4, "{ids:?}");
}

#[test]
fn an_imported_repository_has_every_branch_and_gets_its_result_back() {
    let source = tempfile::tempdir().unwrap();
    let original =
        git2::Repository::init_opts(source.path(), git2::RepositoryInitOptions::new().initial_head("trunk"))
            .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let forge = open(folder.path());
    let empty = forge.import_repo(&name("local/x"), "", source.path()).unwrap_err();
    assert!(empty.to_string().contains("has no commits yet"), "{empty}");
    let missing = forge.import_repo(&name("local/x"), "", Path::new("/nowhere")).unwrap_err();
    assert!(missing.to_string().contains("is not a Git repository"), "{missing}");

    let who = git2::Signature::now("a", "a@localhost").unwrap();
    let tree = original.find_tree(original.treebuilder(None).unwrap().write().unwrap()).unwrap();
    let id = original.commit(Some("HEAD"), &who, &who, "one", &tree, &[]).unwrap();
    let commit = original.find_commit(id).unwrap();
    original.branch("other", &commit, false).unwrap();
    original.tag_lightweight("v1", commit.as_object(), false).unwrap();
    let info = forge.import_repo(&name("local/x"), "", source.path()).unwrap();
    assert_eq!(info.default_branch, branch("trunk"));
    let bare = forge.inner.bare(&name("local/x"));
    let names: Vec<String> = bare.branches().unwrap().into_iter().map(|found| found.name).collect();
    assert_eq!(names, ["other", "trunk"]);
    assert_eq!(status_of(forge.import_repo(&name("local/x"), "", source.path()).unwrap_err()), 422);

    let file = SeedFile { path: "new.txt", content: "new\n", executable: false };
    let head = Sha::parse(&id.to_string()).unwrap();
    let done = branch("zeblit/1-new-abcdef");
    // As the engine pushes: on top of the imported commit.
    git2::Repository::open_bare(bare.path()).unwrap().reference(&done.full(), id, false, "test").unwrap();
    let made = forge.commit_files(&info.repo, &done, &[file], "Add a file").unwrap();
    forge.copy_branch_to(&info.repo, &done, source.path()).unwrap();
    assert_eq!(original.refname_to_id(&done.full()).unwrap().to_string(), made.as_str());
    assert_eq!(original.head().unwrap().name().unwrap(), "refs/heads/trunk");
    assert!(!source.path().join("new.txt").exists(), "the work tree is not touched");
    assert_eq!(original.head().unwrap().target().unwrap().to_string(), head.as_str());
    // Again is fine; over other work it is refused.
    forge.copy_branch_to(&info.repo, &done, source.path()).unwrap();
    let foreign = original.commit(None, &who, &who, "foreign", &tree, &[]).unwrap();
    original.reference(&done.full(), foreign, true, "test").unwrap();
    let error = forge.copy_branch_to(&info.repo, &done, source.path()).unwrap_err();
    assert!(
        error.to_string().contains("holds other commits") || error.to_string().contains("non-fast"),
        "{error}"
    );
    assert_eq!(original.refname_to_id(&done.full()).unwrap(), foreign);

    let out = tempfile::tempdir().unwrap();
    forge.export(&info.repo, &made, out.path()).unwrap();
    assert_eq!(fs::read_to_string(out.path().join("new.txt")).unwrap(), "new\n");
    assert!(!out.path().join(".git").exists());

    original.set_head_detached(id).unwrap();
    let detached = forge.import_repo(&name("local/y"), "", source.path()).unwrap_err();
    assert!(detached.to_string().contains("detached HEAD"), "{detached}");
}

#[tokio::test]
async fn pages_show_threads_pull_requests_and_diffs_and_escape_everything() {
    let w = world();
    let owner = w.forge.owner();
    let (number, _) = w
        .forge
        .open_issue(&w.repo, &owner, "Bug <script>alert(1)</script>", "Steps\n\n- [x] one <img src=x>")
        .unwrap();
    let (id, _) = w.forge.comment(&w.repo, &owner, number, "/zeblit fix").unwrap();
    let eyes = Payload::Reaction { target: ReactionTarget::Comment { id }, reaction: Reaction::Eyes };
    w.forge.apply(&w.effect(eyes)).await.unwrap();
    let head = w.push("zeblit/1-fix", "src/app.py", "one = 1\ntwo = \"<3>\"\n");
    w.forge.apply(&w.effect(Payload::Pull(own_pull("zeblit/1-fix")))).await.unwrap();
    let done = check_run(&head, CheckStatus::Completed, Some(CheckConclusion::Success));
    w.forge.apply(&w.effect(Payload::Check(done))).await.unwrap();
    let (router, _) = w.pages();

    let (status, text) = page_of(&router, "/forge").await;
    assert_eq!(status, StatusCode::OK);
    assert!(text.contains("A &lt;b&gt;shop&lt;/b&gt;") && text.contains("/forge/demo/inventory"));
    let (_, text) = page_of(&router, "/forge/demo/inventory").await;
    assert!(text.contains("zeblit/1-fix") && text.contains("<h1>Hello</h1>"));
    let (_, text) = page_of(&router, "/forge/demo/inventory/issues/1").await;
    assert!(!text.contains("<script>") && !text.contains("<img"), "{text}");
    assert!(text.contains("/zeblit fix") && text.contains("👀 1") && text.contains("checked"));
    assert!(text.contains("Linked pull requests"), "{text}");
    assert!(text.contains("http-equiv=\"refresh\""), "a run with 👀 only is live");
    let (_, text) = page_of(&router, "/forge/demo/inventory/issues/1?write=1").await;
    assert!(
        text.contains("<textarea") && !text.contains("http-equiv=\"refresh\""),
        "writing is not interrupted"
    );
    let (status, text) = page_of(&router, "/forge/demo/inventory/pull/2").await;
    assert_eq!(status, StatusCode::OK);
    for wanted in [
        "Draft",
        "+two = &quot;&lt;3&gt;&quot;",
        "-two = 2",
        "http://127.0.0.1:8080/runs/1",
        "success",
        "<span class=\"badge\">bot</span>",
    ] {
        assert!(text.contains(wanted), "{wanted} is missing in {text}");
    }
    assert!(!text.contains("<!-- m -->"));
    for gone in [
        "/forge/no/thing",
        "/forge/demo/inventory/issues/77",
        "/forge/demo/inventory/checks/1",
        "/forge/../x",
    ] {
        assert_eq!(page_of(&router, gone).await.0, StatusCode::NOT_FOUND, "{gone}");
    }
    for (from, to) in
        [("issues/2", "/forge/demo/inventory/pull/2"), ("pull/1", "/forge/demo/inventory/issues/1")]
    {
        let request = Request::get(format!("/forge/demo/inventory/{from}")).body(Body::empty()).unwrap();
        let answer = router.clone().oneshot(request).await.unwrap();
        assert_eq!(answer.headers()["location"], to);
    }
    let request = Request::get("/forge/style.css").body(Body::empty()).unwrap();
    let answer = router.clone().oneshot(request).await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/css; charset=utf-8");
    let request = Request::get("/forge/demo/inventory/pull/2").body(Body::empty()).unwrap();
    let answer = router.clone().oneshot(request).await.unwrap();
    let policy = answer.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("script"), "{policy}");
}

#[tokio::test]
async fn a_comment_form_stores_the_comment_and_sends_its_webhook() {
    let w = world();
    w.forge.open_issue(&w.repo, &w.forge.owner(), "Bug", "").unwrap();
    let (router, sent) = w.pages();
    let path = "/forge/demo/inventory/comments/1";
    let host = ("host", "127.0.0.1:8080");
    let (status, location) =
        post_form(&router, path, &[host, ("sec-fetch-site", "same-origin")], "body=%2Fzeblit+help%0D%0Anow")
            .await;
    assert_eq!(status, StatusCode::SEE_OTHER, "{location}");
    assert!(location.starts_with("/forge/demo/inventory/issues/1#issuecomment-"), "{location}");
    let webhook = sent.lock().unwrap().pop().unwrap();
    let body: serde_json::Value = serde_json::from_slice(&webhook.body).unwrap();
    assert_eq!(
        (webhook.event, body["comment"]["body"].as_str().unwrap()),
        ("issue_comment", "/zeblit help\nnow")
    );
    assert_eq!(body["sender"]["login"], OWNER_LOGIN);

    let (status, _) =
        post_form(&router, path, &[host, ("origin", "http://127.0.0.1:8080")], "body=again").await;
    assert_eq!(status, StatusCode::SEE_OTHER);
    let (status, location) = post_form(
        &router,
        "/forge/demo/inventory/issues/new",
        &[host, ("sec-fetch-site", "same-origin")],
        "title=New&body=%2Fzeblit+fix",
    )
    .await;
    assert_eq!((status, location.as_str()), (StatusCode::SEE_OTHER, "/forge/demo/inventory/issues/2"));
    assert_eq!(sent.lock().unwrap().last().unwrap().event, "issues");

    let close = [host, ("sec-fetch-site", "same-origin")];
    let (status, location) =
        post_form(&router, "/forge/demo/inventory/comments/2", &close, "body=&set=close").await;
    assert_eq!((status, location.as_str()), (StatusCode::SEE_OTHER, "/forge/demo/inventory/issues/2"));
    assert!(!w.forge.subject(&w.repo, 2).await.unwrap().open);
    post_form(&router, "/forge/demo/inventory/comments/2", &close, "body=again&set=reopen").await;
    assert!(w.forge.subject(&w.repo, 2).await.unwrap().open);
    let actions: Vec<String> = sent
        .lock()
        .unwrap()
        .iter()
        .skip(2)
        .map(|hook| {
            let body: serde_json::Value = serde_json::from_slice(&hook.body).unwrap();
            format!("{} {}", hook.event, body["action"].as_str().unwrap())
        })
        .collect();
    assert_eq!(actions, ["issues closed", "issue_comment created", "issues reopened"]);
    let stored = sent.lock().unwrap().len();
    for headers in [
        vec![host],
        vec![host, ("sec-fetch-site", "cross-site")],
        vec![host, ("sec-fetch-site", "none")],
        vec![host, ("origin", "http://evil.example")],
        vec![host, ("origin", "null")],
        vec![("host", "evil.example"), ("sec-fetch-site", "same-origin")],
        vec![("sec-fetch-site", "same-origin")],
    ] {
        let (status, _) = post_form(&router, path, &headers, "body=evil").await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{headers:?}");
    }
    let good = [host, ("sec-fetch-site", "same-origin")];
    assert_eq!(post_form(&router, path, &good, "body=+").await.0, StatusCode::UNPROCESSABLE_ENTITY);
    let lost = post_form(&router, "/forge/demo/inventory/comments/9", &good, "body=x").await;
    assert_eq!(lost.0, StatusCode::NOT_FOUND);
    let long = format!("body={}", "x".repeat(2_000_000));
    assert_eq!(post_form(&router, path, &good, &long).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(sent.lock().unwrap().len(), stored);
    assert_eq!(w.forge.thread(&w.repo, 1, 99).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_webhook_that_is_not_taken_is_told_to_the_person() {
    let w = world();
    w.forge.open_issue(&w.repo, &w.forge.owner(), "Bug", "").unwrap();
    let hook: WebhookHook = Arc::new(|_| Box::pin(async { Err("503 <busy>".to_owned()) }));
    let router = router(w.forge.clone(), hook);
    let headers = [("host", "localhost:1"), ("sec-fetch-site", "same-origin")];
    let (status, text) = post_form(&router, "/forge/demo/inventory/comments/1", &headers, "body=x").await;
    assert_eq!(status, StatusCode::BAD_GATEWAY);
    assert!(text.contains("503 &lt;busy&gt;"), "{text}");
}

// ---------------------------------------------------------------- the rarer kinds of effects

/// An issue, and a pull request of the bot's from `zeblit/1`.
async fn subjects(w: &World) -> (i64, i64, Sha) {
    let owner = w.forge.owner();
    let (issue, _) = w.forge.open_issue(&w.repo, &owner, "It breaks", "often").unwrap();
    let head = w.push("zeblit/1", "new.txt", "one\ntwo\n");
    let made = w.forge.apply(&w.effect(Payload::Pull(own_pull("zeblit/1")))).await.unwrap();
    (issue, made.id.parse().unwrap(), head)
}

#[tokio::test]
async fn values_are_set_once_however_often_they_are_sent() {
    let w = world();
    let (issue, pull, head) = subjects(&w).await;
    let label = |name: &str, present| Payload::Label { number: issue, name: name.into(), present };
    let state = |name: &str| Payload::StateLabel { number: issue, name: Some(name.into()) };
    let thread = w.forge.review_comment(&w.repo, &w.forge.owner(), pull, "new.txt", 1, "why?").unwrap().0;
    for payload in [
        label("bug", true),
        label("gone", true),
        label("gone", false),
        state("zeblit:queued"),
        state("zeblit:running"),
        Payload::Assignees { number: issue, logins: vec!["ada".into()] },
        Payload::Reviewers { number: pull, logins: vec!["ada".into()] },
        Payload::Draft { number: pull, draft: false },
        Payload::ResolveThread { node_id: node_id(thread) },
        Payload::AutoMerge { number: pull, head: head.clone(), method: MergeMethod::Squash },
    ] {
        let effect = w.effect(payload);
        for _ in 0..2 {
            w.forge.apply(&effect).await.unwrap();
        }
        assert_eq!(w.forge.find(&effect).await.unwrap(), None, "repeated, not looked for");
    }
    let (row, _) = w.forge.inner.row("test", &w.repo).unwrap();
    let subject = row.subject(issue).unwrap();
    assert_eq!(subject.labels, ["bug", "zeblit:running"]);
    assert_eq!(subject.assignees, ["ada"]);
    let subject = row.subject(pull).unwrap();
    assert_eq!(subject.reviewers, ["ada"]);
    let own = subject.pull.as_ref().unwrap();
    assert_eq!((own.draft, own.auto_merge), (false, Some(MergeMethod::Squash)));
    assert!(row.comment(thread).unwrap().1.resolved);
    let moved = Payload::AutoMerge { number: pull, head: w.main_head(), method: MergeMethod::Merge };
    assert_eq!(status_of(w.forge.apply(&w.effect(moved)).await.unwrap_err()), 422);
}

#[tokio::test]
async fn reviews_and_issues_are_found_by_their_marks_and_twins_are_taken_away() {
    let w = world();
    let (_, pull, head) = subjects(&w).await;
    let line = |line| LineComment { path: "new.txt".into(), line, body: "Hm.".into() };
    let review = OwnReview {
        number: pull,
        commit: head.clone(),
        body: "Two things <!-- r -->".into(),
        marker: "<!-- r -->".into(),
        comments: vec![line(1), line(2)],
    };
    let issue = OwnIssue { title: "Alert".into(), body: "x <!-- i -->".into(), marker: "<!-- i -->".into() };
    let check = check_run(&head, CheckStatus::InProgress, None);
    let said = comment(pull, "<!-- c -->", "said <!-- c -->");
    for payload in [
        Payload::Review(review.clone()),
        Payload::Issue(issue),
        Payload::Check(check),
        Payload::Comment(said),
    ] {
        let effect = w.effect(payload);
        assert_eq!(w.forge.find_all(&effect).await.unwrap(), []);
        let kept = w.forge.apply(&effect).await.unwrap();
        let twin = w.forge.apply(&effect).await.unwrap();
        assert_eq!(w.forge.find_all(&effect).await.unwrap().len(), 2, "made twice");
        let remove = w.effect(Payload::Remove(effect.payload.twin(&twin, &kept).unwrap()));
        for _ in 0..2 {
            w.forge.apply(&remove).await.unwrap();
        }
        let left: Vec<String> =
            w.forge.find_all(&effect).await.unwrap().into_iter().map(|found| found.id).collect();
        assert_eq!(left, std::slice::from_ref(&kept.id));
        // An edit stays an edit.
        w.forge.apply(&with_ref(effect.clone(), &kept)).await.unwrap();
        assert_eq!(w.forge.find_all(&effect).await.unwrap().len(), 1);
    }
    let (row, _) = w.forge.inner.row("test", &w.repo).unwrap();
    let lines = row.subject(pull).unwrap().comments.iter().filter(|comment| comment.place.is_some()).count();
    assert_eq!(lines, 2, "the twin's lines went with it");
    let elsewhere = OwnReview { comments: vec![line(40)], ..review };
    assert_eq!(status_of(w.forge.apply(&w.effect(Payload::Review(elsewhere))).await.unwrap_err()), 422);
}

#[tokio::test]
async fn branches_go_only_as_they_were_and_repositories_are_made_once() {
    let w = world();
    let (_, _, head) = subjects(&w).await;
    let delete = |branch_name: &str, expected: &Sha| {
        w.effect(Payload::DeleteBranch { branch: branch(branch_name), expected: expected.clone() })
    };
    for refused in [delete("main", &w.main_head()), delete("zeblit/1", &w.main_head())] {
        assert_eq!(status_of(w.forge.apply(&refused).await.unwrap_err()), 422);
    }
    for _ in 0..2 {
        w.forge.apply(&delete("zeblit/1", &head)).await.unwrap();
    }
    assert_eq!(w.forge.branch_head(&w.repo, &branch("zeblit/1")).await.unwrap(), None);
    let before = w.forge.repos().len();
    for payload in [
        Payload::Fork { owner: "ours".into() },
        Payload::Repository { name: name("demo/new"), private: false },
    ] {
        let effect = w.effect(payload);
        assert_eq!(w.forge.find(&effect).await.unwrap(), None);
        let made = w.forge.apply(&effect).await.unwrap();
        assert_eq!(w.forge.apply(&effect).await.unwrap(), made);
        assert_eq!(w.forge.find(&effect).await.unwrap(), Some(made));
    }
    assert_eq!(w.forge.repos().len(), before + 2);
}
