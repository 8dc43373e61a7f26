//! Deliveries at the door: what is stored, what is refused, and that nothing in a body can hurt.

use crate::world::sandbox::Script;
use crate::world::{SECRET, World};
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use std::sync::Arc;
use tower::ServiceExt;
use zeblit::config::Config;
use zeblit::domain::run::RunState;
use zeblit::store;
use zeblit::store::inbox::InboxState;

const JIRA_SECRET: &str = "the jira secret of the test world";
const SENTRY_SECRET: &str = "the sentry secret of the test world";

const GITHUB_FIXTURES: &[(&str, &[u8])] = &[
    ("check_run", include_bytes!("../fixtures/github/check_run.requested_action.json")),
    ("check_run", include_bytes!("../fixtures/github/check_run.rerequested.json")),
    ("check_suite", include_bytes!("../fixtures/github/check_suite.completed.json")),
    ("installation", include_bytes!("../fixtures/github/installation.created.json")),
    ("issue_comment", include_bytes!("../fixtures/github/issue_comment.created.json")),
    ("issue_comment", include_bytes!("../fixtures/github/issue_comment.edited.json")),
    ("issues", include_bytes!("../fixtures/github/issues.assigned.json")),
    ("issues", include_bytes!("../fixtures/github/issues.labeled.json")),
    ("ping", include_bytes!("../fixtures/github/ping.json")),
    ("pull_request", include_bytes!("../fixtures/github/pull_request.opened.json")),
    ("pull_request", include_bytes!("../fixtures/github/pull_request.synchronize.json")),
    ("pull_request_review", include_bytes!("../fixtures/github/pull_request_review.submitted.json")),
    (
        "pull_request_review_comment",
        include_bytes!("../fixtures/github/pull_request_review_comment.created.json"),
    ),
    ("push", include_bytes!("../fixtures/github/push.json")),
    ("workflow_run", include_bytes!("../fixtures/github/workflow_run.completed.json")),
];

const JIRA_FIXTURES: &[&[u8]] = &[
    include_bytes!("../fixtures/jira/comment_created.json"),
    include_bytes!("../fixtures/jira/issue_created.json"),
    include_bytes!("../fixtures/jira/issue_updated.commented.json"),
    include_bytes!("../fixtures/jira/issue_updated.status_changed.json"),
];

const SENTRY_FIXTURES: &[(&str, &[u8])] = &[
    ("event_alert", include_bytes!("../fixtures/sentry/event_alert.triggered.json")),
    ("issue", include_bytes!("../fixtures/sentry/issue.created.json")),
];

fn mac(secret: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

fn request(source: &str, headers: &[(&str, &str)], body: &[u8]) -> Request<Body> {
    let mut request = Request::post(format!("/webhooks/{source}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::from(body.to_vec())).expect("a request")
}

fn github(secret: &str, event: &str, id: &str, body: &[u8]) -> Request<Body> {
    let signature = format!("sha256={}", mac(secret, body));
    let headers = [
        ("content-type", "application/json"),
        ("x-github-event", event),
        ("x-github-delivery", id),
        ("x-hub-signature-256", signature.as_str()),
    ];
    request("github", &headers, body)
}

fn jira(secret: &str, id: &str, body: &[u8]) -> Request<Body> {
    let signature = format!("sha256={}", mac(secret, body));
    request("jira", &[("x-atlassian-webhook-identifier", id), ("x-hub-signature", &signature)], body)
}

fn sentry(secret: &str, resource: &str, body: &[u8]) -> Request<Body> {
    let signature = mac(secret, body);
    request("sentry", &[("sentry-hook-resource", resource), ("sentry-hook-signature", &signature)], body)
}

fn all_sources(config: &mut Config) {
    config.jira.webhook_secrets = vec![JIRA_SECRET.into()];
    config.sentry.webhook_secrets = vec![SENTRY_SECRET.into()];
}

async fn answer(w: &World, request: Request<Body>) -> (StatusCode, HeaderMap) {
    let response =
        zeblit::http::router(Arc::clone(&w.app)).oneshot(request).await.expect("the router never fails");
    (response.status(), response.headers().clone())
}

/// State and verdict of every stored delivery, oldest first.
async fn stored(w: &World) -> Vec<(InboxState, String)> {
    let mut all = store::inbox::list(&w.app.store, 10_000).await.expect("read");
    all.reverse();
    all.into_iter().map(|delivery| (delivery.state, delivery.verdict)).collect()
}

#[tokio::test]
async fn every_recorded_github_payload_is_taken_and_none_is_unreadable() {
    World::run(async |w| {
        for (at, (event, body)) in GITHUB_FIXTURES.iter().enumerate() {
            let status = w.request(github(SECRET, event, &format!("id-{at}"), body)).await;
            assert_eq!(status, StatusCode::ACCEPTED, "{event}");
        }
        w.settle().await;
        let all = stored(w).await;
        assert_eq!(all.len(), GITHUB_FIXTURES.len());
        for ((state, verdict), (event, _)) in all.iter().zip(GITHUB_FIXTURES) {
            assert!(matches!(state, InboxState::Done | InboxState::Ignored), "{event}: {state:?} {verdict}");
            assert!(!verdict.is_empty(), "{event} has no verdict");
        }
        assert!(w.hub.writes().is_empty(), "nobody asked for anything: {}", w.hub.transcript());
    })
    .await;
}

#[tokio::test]
async fn recorded_jira_and_sentry_payloads_are_kept_as_not_yet_handled() {
    World::run_with(all_sources, async |w| {
        for (at, body) in JIRA_FIXTURES.iter().enumerate() {
            let status = w.request(jira(JIRA_SECRET, &format!("j-{at}"), body)).await;
            assert_eq!(status, StatusCode::ACCEPTED);
        }
        for (resource, body) in SENTRY_FIXTURES {
            let status = w.request(sentry(SENTRY_SECRET, resource, body)).await;
            assert_eq!(status, StatusCode::ACCEPTED);
        }
        w.settle().await;
        let all = stored(w).await;
        assert_eq!(all.len(), JIRA_FIXTURES.len() + SENTRY_FIXTURES.len());
        for (state, verdict) in &all {
            assert_eq!(*state, InboxState::NotYetHandled, "{verdict}");
        }
        let newest = store::inbox::list(&w.app.store, 1).await.expect("read").remove(0);
        let kept = store::inbox::get(&w.app.store, newest.id.as_str()).await.expect("read").expect("there");
        assert_eq!(kept.raw, SENTRY_FIXTURES[1].1, "the bytes are kept for replay");
    })
    .await;
}

#[tokio::test]
async fn unsigned_and_wrongly_signed_deliveries_get_401_and_are_not_stored() {
    World::run_with(all_sources, async |w| {
        let wrong = "some other secret, long enough";
        for (event, body) in GITHUB_FIXTURES {
            let unsigned = request("github", &[("x-github-event", event), ("x-github-delivery", "u")], body);
            assert_eq!(w.request(unsigned).await, StatusCode::UNAUTHORIZED, "{event} unsigned");
            let forged = github(wrong, event, "w", body);
            assert_eq!(w.request(forged).await, StatusCode::UNAUTHORIZED, "{event} forged");
        }
        let (_, body) = GITHUB_FIXTURES[0];
        let good = format!("sha256={}", mac(SECRET, body));
        let old = format!("sha1={}", mac(SECRET, body));
        let cut = &good[..good.len() - 2];
        let mut changed = body.to_vec();
        changed.push(b' ');
        let headers = |signature| {
            [("x-github-event", "push"), ("x-github-delivery", "m"), ("x-hub-signature-256", signature)]
        };
        for (what, signature, body) in [
            ("empty", "", body),
            ("only the prefix", "sha256=", body),
            ("no prefix", &good[7..], body),
            ("the old algorithm", &old, body),
            ("cut", cut, body),
            ("no hex", "sha256=zz", body),
            ("of another body", &good, &changed),
        ] {
            let status = w.request(request("github", &headers(signature), body)).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{what}");
        }
        for body in JIRA_FIXTURES {
            assert_eq!(w.request(jira(wrong, "j", body)).await, StatusCode::UNAUTHORIZED);
            // A secret of another source opens nothing.
            assert_eq!(w.request(jira(SECRET, "j", body)).await, StatusCode::UNAUTHORIZED);
        }
        for (resource, body) in SENTRY_FIXTURES {
            assert_eq!(w.request(sentry(wrong, resource, body)).await, StatusCode::UNAUTHORIZED);
        }
        assert_eq!(stored(w).await, Vec::new());
    })
    .await;
}

#[tokio::test]
async fn the_same_delivery_twice_is_stored_once() {
    World::run(async |w| {
        let number = w.issue();
        let comment = w.hub.comment(crate::world::REPO, number, "ada", "/zeblit ping");
        let delivery = w.hub.comment_created(crate::world::REPO, comment);
        assert_eq!(w.deliver(&delivery).await, StatusCode::ACCEPTED);
        assert_eq!(w.deliver(&delivery).await, StatusCode::OK);
        w.settle().await;
        assert_eq!(w.deliver(&delivery).await, StatusCode::OK);
        w.settle().await;
        assert_eq!(w.own(number).len(), 1);
        assert_eq!(stored(w).await.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_redelivery_under_a_new_id_does_not_double_the_run() {
    World::run(async |w| {
        let number = w.fix(Script::edit("src/app.py", "x = 42\n")).await;
        let comment = w.hub.comments(crate::world::REPO, number)[0].id;
        // GitHub's "Redeliver" keeps the id; a second hook on the same repository does not.
        let again = w.hub.comment_created(crate::world::REPO, comment);
        assert_eq!(w.deliver(&again).await, StatusCode::ACCEPTED);
        w.settle().await;
        assert_eq!(w.runs().await.len(), 1);
        assert_eq!(w.hub.pulls(crate::world::REPO).len(), 1);
        assert_eq!(w.own(number).len(), 1, "{:?}", w.own(number));
    })
    .await;
}

#[tokio::test]
async fn a_delivery_without_id_or_event_is_refused_with_400() {
    World::run_with(all_sources, async |w| {
        let body = GITHUB_FIXTURES[4].1;
        let signature = format!("sha256={}", mac(SECRET, body));
        let signed = ("x-hub-signature-256", signature.as_str());
        for headers in [
            vec![signed, ("x-github-event", "issue_comment")],
            vec![signed, ("x-github-event", "issue_comment"), ("x-github-delivery", "  ")],
            vec![signed, ("x-github-delivery", "d1")],
            vec![signed, ("x-github-event", ""), ("x-github-delivery", "d2")],
        ] {
            assert_eq!(w.request(request("github", &headers, body)).await, StatusCode::BAD_REQUEST);
        }
        let signature = format!("sha256={}", mac(JIRA_SECRET, JIRA_FIXTURES[0]));
        let unnamed = request("jira", &[("x-hub-signature", &signature)], JIRA_FIXTURES[0]);
        assert_eq!(w.request(unnamed).await, StatusCode::BAD_REQUEST);
        assert_eq!(stored(w).await, Vec::new());
    })
    .await;
}

#[tokio::test]
async fn each_source_has_its_own_body_cap() {
    let change = |config: &mut Config| {
        all_sources(config);
        config.github.as_mut().expect("set").max_body_bytes = 1000;
        config.jira.max_body_bytes = 500;
        config.sentry.max_body_bytes = 100;
    };
    World::run_with(change, async |w| {
        let body = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2)).into_bytes();
        let too_large = StatusCode::PAYLOAD_TOO_LARGE;
        for (bytes, expected) in [(1000, StatusCode::ACCEPTED), (1001, too_large), (5_000_000, too_large)] {
            assert_eq!(w.request(github(SECRET, "push", &format!("g{bytes}"), &body(bytes))).await, expected);
        }
        for (bytes, expected) in [(500, StatusCode::ACCEPTED), (501, too_large)] {
            assert_eq!(w.request(jira(JIRA_SECRET, &format!("j{bytes}"), &body(bytes))).await, expected);
        }
        for (bytes, expected) in [(100, StatusCode::ACCEPTED), (101, too_large)] {
            assert_eq!(w.request(sentry(SENTRY_SECRET, "issue", &body(bytes))).await, expected);
        }
        // A promise that is too large is refused before the body comes.
        let mut promised = github(SECRET, "push", "p", b"{}");
        promised.headers_mut().insert("content-length", "999999999999999999999".parse().expect("a value"));
        assert_eq!(w.request(promised).await, too_large);
        assert_eq!(stored(w).await.len(), 3);
        w.settle().await;
    })
    .await;
}

#[tokio::test]
async fn a_source_without_a_secret_is_disabled_and_an_unknown_one_does_not_exist() {
    World::run(async |w| {
        for body in JIRA_FIXTURES {
            assert_eq!(w.request(jira("", "j", body)).await, StatusCode::NOT_FOUND);
        }
        for (resource, body) in SENTRY_FIXTURES {
            assert_eq!(w.request(sentry("", resource, body)).await, StatusCode::NOT_FOUND);
        }
        for source in ["gitlab", "GitHub", "github%2f..", "local"] {
            let status = w.request(request(source, &[], b"{}")).await;
            assert_eq!(status, StatusCode::NOT_FOUND, "{source}");
        }
        let get = Request::get("/webhooks/github").body(Body::empty()).expect("a request");
        assert_eq!(w.request(get).await, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(stored(w).await, Vec::new());
    })
    .await;
}

#[tokio::test]
async fn form_encoded_deliveries_are_obeyed_like_json() {
    World::run(async |w| {
        let number = w.issue();
        let comment = w.hub.comment(crate::world::REPO, number, "ada", "/zeblit ping");
        let delivery = w.hub.comment_created(crate::world::REPO, comment);
        let body: String = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("payload", std::str::from_utf8(&delivery.body).expect("JSON is UTF-8"))
            .finish();
        let signature = format!("sha256={}", mac(SECRET, body.as_bytes()));
        let headers = [
            ("content-type", "application/x-www-form-urlencoded"),
            ("x-github-event", "issue_comment"),
            ("x-github-delivery", "form-1"),
            ("x-hub-signature-256", &signature),
        ];
        assert_eq!(w.request(request("github", &headers, body.as_bytes())).await, StatusCode::ACCEPTED);
        w.settle().await;
        assert_eq!(w.own(number).len(), 1);
    })
    .await;
}

#[tokio::test]
async fn any_body_of_any_event_type_is_taken_and_ends_in_a_verdict() {
    World::run_with(all_sources, async |w| {
        let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
        let deep_object = [b"{\"issue\":".repeat(50_000), b"1".to_vec(), b"}".repeat(50_000)].concat();
        let bodies: Vec<Vec<u8>> = [
            "",
            " ",
            "{}",
            "[]",
            "null",
            "true",
            "0",
            "-1e999",
            "\"text\"",
            "{",
            "}",
            "{\"action\":",
            "\u{feff}{}",
            "{\"action\":1}",
            "{\"action\":\"created\"}",
            "{\"repository\":null}",
            "{\"repository\":{}}",
            "{\"repository\":{\"id\":99999999999999999999,\"full_name\":\"a/b\"}}",
            "{\"repository\":{\"id\":1,\"full_name\":\"../../etc\"}}",
            "{\"action\":\"created\",\"action\":\"edited\"}",
            "{\"sender\":{\"id\":\"1\",\"login\":7}}",
            "payload=",
            "payload=%7B%7D",
            "payload=%zz",
            "payload={\"action\"",
        ]
        .iter()
        .map(|text| text.as_bytes().to_vec())
        .chain([vec![0xff, 0xfe, 0x00], vec![0; 1000], deep, deep_object])
        .collect();
        let events = [
            "issue_comment",
            "issues",
            "pull_request",
            "pull_request_review",
            "pull_request_review_comment",
            "push",
            "check_run",
            "installation",
            "installation_repositories",
            "repository",
            "ping",
            "workflow_run",
            "star",
            "no_such_event",
            "ISSUE_COMMENT",
            "issue_comment/../push",
        ];
        let mut sent = 0;
        for event in events {
            for body in &bodies {
                sent += 1;
                let status = w.request(github(SECRET, event, &format!("any-{sent}"), body)).await;
                assert!(
                    status.is_success(),
                    "{event}: {status} for {}",
                    String::from_utf8_lossy(&body[..body.len().min(80)])
                );
            }
        }
        for body in &bodies {
            sent += 1;
            let status = w.request(jira(JIRA_SECRET, &format!("any-{sent}"), body)).await;
            assert!(status.is_success(), "jira: {status}");
            sent += 1;
            let status = w.request(sentry(SENTRY_SECRET, "issue", body)).await;
            assert!(status.is_success(), "sentry: {status}");
        }
        w.settle().await;
        let all = stored(w).await;
        assert_eq!(all.len(), sent);
        for (state, verdict) in all {
            assert_ne!(state, InboxState::Pending);
            assert!(!verdict.is_empty());
        }
        assert!(w.hub.writes().is_empty());
    })
    .await;
}

/// Every value of `body` down to this depth, replaced or removed one at a time.
fn mutations(body: &Value, depth: usize) -> Vec<Value> {
    let strange = [
        None,
        Some(Value::Null),
        Some(json!(-9_223_372_036_854_775_808_i64)),
        Some(json!("\u{202e}\0 /zeblit")),
        Some(json!([])),
        Some(json!({})),
        Some(json!(true)),
    ];
    let mut all = Vec::new();
    let Value::Object(fields) = body else { return all };
    for (at, key) in fields.keys().enumerate() {
        // Not every value at every place: each place gets two, and over all places each value comes often.
        for step in [0, 3] {
            let mut changed = fields.clone();
            match &strange[(at + depth + step) % strange.len()] {
                Some(value) => changed.insert(key.clone(), value.clone()),
                None => changed.remove(key),
            };
            all.push(Value::Object(changed));
        }
        if depth > 1 {
            for inner in mutations(&fields[key], depth - 1) {
                let mut changed = fields.clone();
                changed.insert(key.clone(), inner);
                all.push(Value::Object(changed));
            }
        }
    }
    all
}

#[tokio::test]
async fn recorded_payloads_with_strange_values_anywhere_never_panic() {
    World::run(async |w| {
        let mut sent: usize = 0;
        for (event, body) in GITHUB_FIXTURES {
            let body: Value = serde_json::from_slice(body).expect("a fixture");
            let mut requests = Vec::new();
            // A part of them: each takes milliseconds, and neighbours are alike.
            for changed in mutations(&body, 2).iter().skip(sent % 4).step_by(4) {
                sent += 1;
                requests.push(w.request(github(
                    SECRET,
                    event,
                    &format!("m-{sent}"),
                    changed.to_string().as_bytes(),
                )));
            }
            for status in futures_util::future::join_all(requests).await {
                assert_eq!(status, StatusCode::ACCEPTED, "{event}");
            }
        }
        assert!(sent > 900, "only {sent}");
        w.settle().await;
        let counts = store::inbox::counts(&w.app.store).await.expect("read");
        assert_eq!(counts.iter().map(|(_, count)| *count).sum::<i64>(), i64::try_from(sent).expect("small"));
        assert!(counts.iter().all(|(state, _)| state != "pending"), "{counts:?}");
        assert!(w.hub.writes().is_empty());
    })
    .await;
}

#[tokio::test]
async fn both_secrets_open_the_door_during_rotation() {
    let next = "the next webhook secret of the test world";
    let change = |config: &mut Config| {
        config.github.as_mut().expect("set").webhook_secrets = vec![SECRET.into(), next.into()];
    };
    World::run_with(change, async |w| {
        let body = GITHUB_FIXTURES[8].1;
        for (id, secret, expected) in [
            ("old", SECRET, StatusCode::ACCEPTED),
            ("new", next, StatusCode::ACCEPTED),
            ("both", "the webhook secret of the test worldthe next webhook secret", StatusCode::UNAUTHORIZED),
            ("empty", "", StatusCode::UNAUTHORIZED),
        ] {
            assert_eq!(w.request(github(secret, "ping", id, body)).await, expected, "{id}");
        }
        w.settle().await;
    })
    .await;
}

#[tokio::test]
async fn a_storage_failure_is_503_with_retry_after_and_the_redelivery_is_obeyed() {
    World::run(async |w| {
        let number = w.issue();
        let comment = w.hub.comment(crate::world::REPO, number, "ada", "/zeblit fix");
        let delivery = w.hub.comment_created(crate::world::REPO, comment);
        w.app.store.close().await;
        for _ in 0..3 {
            let (status, headers) =
                answer(w, github(SECRET, delivery.event, &delivery.id, &delivery.body)).await;
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
            let seconds = headers.get("retry-after").expect("says when").to_str().expect("text");
            assert!(seconds.parse::<u32>().is_ok_and(|seconds| seconds > 0), "{seconds}");
        }
        // What is wrong is told also while nothing can be stored.
        let (status, _) = answer(w, github("wrong", delivery.event, &delivery.id, &delivery.body)).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        w.restart().await;
        assert_eq!(stored(w).await, Vec::new());
        w.sandbox.next(Script::edit("src/app.py", "x = 42\n"));
        assert_eq!(w.deliver(&delivery).await, StatusCode::ACCEPTED);
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Succeeded);
    })
    .await;
}

#[tokio::test]
async fn what_was_accepted_survives_a_crash_before_it_was_read() {
    World::run(async |w| {
        let number = w.issue();
        w.sandbox.next(Script::edit("src/app.py", "x = 42\n"));
        w.say(number, "ada", "/zeblit fix").await;
        w.restart().await;
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Succeeded);
        assert_eq!(w.hub.pulls(crate::world::REPO).len(), 1);
    })
    .await;
}

#[tokio::test]
async fn more_large_bodies_than_memory_allows_get_503() {
    let change = |config: &mut Config| config.server.inflight_bytes = 64 * 1024;
    World::run_with(change, async |w| {
        let body = vec![b' '; 200 * 1024];
        let (status, headers) = answer(w, github(SECRET, "push", "large", &body)).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(headers.contains_key("retry-after"));
        assert_eq!(stored(w).await, Vec::new());
    })
    .await;
}
