//! Who may do what, asked of the forge for every command: every verb and role, and a forge that does not answer.

use crate::world::hub::Fault;
use crate::world::hub::state::On;
use crate::world::sandbox::Script;
use crate::world::{REPO, World};
use zeblit::clock::Clock;
use zeblit::config::Config;
use zeblit::domain::command::{VERBS, Verb};
use zeblit::domain::run::RunState;
use zeblit::engine::operate;
use zeblit::store;
use zeblit::store::inbox::InboxState;

const PERMISSION: &str = "GET /repos/*/*/collaborators/*/permission";

fn recipes(config: &mut Config) {
    config.agents.review = "demo-fix".into();
    config.agents.ask = "demo-fix".into();
    config.limits.commands_per_user_hour = 1000;
}

fn words(verb: Verb) -> &'static str {
    match verb {
        Verb::Fix => "/zeblit fix it",
        Verb::Run => "/zeblit run demo-fix",
        Verb::Review => "/zeblit review",
        Verb::Ask => "/zeblit ask why",
        Verb::Retry => "/zeblit retry",
        Verb::Continue => "/zeblit continue",
        Verb::Cancel => "/zeblit cancel",
        Verb::Ok => "/zeblit ok 0123abc",
        Verb::Status => "/zeblit status",
        Verb::Budget => "/zeblit budget",
        Verb::Help => "/zeblit help",
        Verb::Ping => "/zeblit ping",
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Obeyed,
    Refused,
    Silence,
}

/// What became of one command, seen from outside.
async fn heard(w: &mut World, login: &str, text: &str, number: i64) -> Heard {
    let (writes, runs, own) = (w.hub.writes().len(), w.runs().await.len(), w.own(number).len());
    let comment = w.say(number, login, text).await;
    w.settle().await;
    let reactions = w.hub.reactions(REPO, On::Comment(comment));
    let new: Vec<String> = w.own(number).into_iter().skip(own).collect();
    if w.hub.writes().len() == writes {
        assert_eq!(w.runs().await.len(), runs);
        return Heard::Silence;
    }
    if new.iter().any(|text| text.starts_with("🚫")) {
        assert_eq!(w.runs().await.len(), runs, "a refused command started a run");
        assert_eq!(reactions, ["confused"], "👀 only for who may");
        return Heard::Refused;
    }
    assert!(reactions.contains(&"eyes".to_owned()), "{login} {text}: {reactions:?}, {new:?}");
    Heard::Obeyed
}

async fn every_verb_and_role(private: bool) {
    World::run_with(recipes, async |w| {
        w.hub.set_private(REPO, private);
        // Queued runs show the decision; that they run is shown elsewhere.
        operate::pause(&w.app, Some("table"), "test").await.expect("paused");
        w.ends_in_the_middle = true;
        for (id, (role, base)) in [
            ("none", "none"),
            ("read", "read"),
            ("triage", "triage"),
            ("write", "write"),
            ("maintain", "maintain"),
            ("admin", "admin"),
        ]
        .into_iter()
        .enumerate()
        {
            let login = format!("user-{role}");
            w.hub.add_user(&login, 500 + i64::try_from(id).expect("small"));
            w.hub.set_role(REPO, &login, base);
            let number = w.issue();
            for info in VERBS {
                let starts = info.starts_run || matches!(info.verb, Verb::Cancel | Verb::Ok);
                let expected = match role {
                    "write" | "maintain" | "admin" => Heard::Obeyed,
                    "triage" if starts => Heard::Refused,
                    "triage" => Heard::Obeyed,
                    _ if private => Heard::Refused,
                    _ => Heard::Silence,
                };
                let verb = info.verb.name();
                assert_eq!(heard(w, &login, words(info.verb), number).await, expected, "{verb} as {role}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn every_verb_is_for_its_roles_on_a_public_repository() {
    every_verb_and_role(false).await;
}

#[tokio::test]
async fn every_verb_is_for_its_roles_on_a_private_repository() {
    every_verb_and_role(true).await;
}

#[tokio::test]
async fn a_stranger_on_a_public_repository_hears_nothing() {
    World::run(async |w| {
        w.hub.add_user("eve", 666);
        for login in ["eve", "bob"] {
            for text in ["/zeblit fix", "/zeblit fxi", "/zeblit help", "/zeblit", "/zeblit fix --frob"] {
                assert_eq!(w.hears(login, text).await, Vec::<String>::new(), "{login}: {text}");
            }
        }
        assert!(w.hub.writes().is_empty(), "{}", w.hub.transcript());
        assert!(w.runs().await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_refusal_names_role_need_and_rule() {
    World::run(async |w| {
        insta::assert_snapshot!(w.hears("tri", "/zeblit fix").await.join("\n"), @"🚫 tri has `triage` access; `fix` here needs `write` (rule: `permissions.fix` in `.github/zeblit.toml`).");
        w.hub.set_private(REPO, true);
        insta::assert_snapshot!(w.hears("bob", "/zeblit help").await.join("\n"), @"🚫 bob has `read` access; `help` here needs `triage` (rule: `permissions.help` in `.github/zeblit.toml`).");
    })
    .await;
}

#[tokio::test]
async fn a_custom_role_counts_as_what_it_is_built_on() {
    World::run_with(recipes, async |w| {
        operate::pause(&w.app, Some("table"), "test").await.expect("paused");
        w.ends_in_the_middle = true;
        for (id, (role, base, expected)) in [
            ("Release manager", "write", Heard::Obeyed),
            ("security-lead", "admin", Heard::Obeyed),
            ("helper", "read", Heard::Silence),
            ("nobody special", "none", Heard::Silence),
            // Named like a built-in role, but not one.
            ("Admin", "read", Heard::Silence),
            ("write ", "read", Heard::Silence),
            ("superuser", "owner", Heard::Silence),
        ]
        .into_iter()
        .enumerate()
        {
            let login = format!("custom-{id}");
            w.hub.add_user(&login, 600 + i64::try_from(id).expect("small"));
            w.hub.set_custom_role(REPO, &login, role, base);
            let number = w.issue();
            assert_eq!(heard(w, &login, "/zeblit fix", number).await, expected, "{role} on {base}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_login_that_changed_hands_gives_no_right() {
    World::run(async |w| {
        let number = w.issue();
        // Written by the old ada (101), delivered after another person took her login.
        let old = w.hub.comment(REPO, number, "ada", "/zeblit fix");
        let late = w.hub.comment_created(REPO, old);
        w.hub.take_login("ada", 999);
        w.deliver(&late).await;
        w.settle().await;
        assert!(w.hub.writes().is_empty(), "the name is another person's now: {}", w.hub.transcript());
        // The new ada has no right of her own, and does not inherit one.
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        assert!(w.hub.writes().is_empty());
        // Even when the new ada may write, what the old one wrote is not hers.
        w.hub.set_role(REPO, "ada", "admin");
        let again = w.hub.delivery("issue_comment", &late.json());
        w.deliver(&again).await;
        w.settle().await;
        assert!(w.runs().await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_right_that_was_taken_away_counts_from_the_next_command_on() {
    World::run(async |w| {
        w.fix(Script::edit("src/app.py", "x = 42\n")).await;
        w.hub.set_role(REPO, "ada", "read");
        assert_eq!(w.hears("ada", "/zeblit fix").await, Vec::<String>::new());
        assert_eq!(w.runs().await.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_permission_check_that_fails_is_waited_for_and_then_granted() {
    for fault in [
        Fault::Before(500),
        Fault::Before(502),
        Fault::Before(503),
        Fault::ResetBefore,
        Fault::SecondaryLimit(60),
        Fault::SpokenLimit,
        Fault::PrimaryLimit(120),
    ] {
        World::run(async |w| {
            let number = w.issue();
            w.hub.fail_next(PERMISSION, fault.clone());
            w.sandbox.next(Script::edit("src/app.py", "x = 42\n"));
            let comment = w.say(number, "ada", "/zeblit fix").await;
            assert!(w.round().await);
            assert!(w.hub.writes().is_empty(), "{fault:?}: {}", w.hub.transcript());
            assert_eq!(w.verdict().await.0, InboxState::Pending, "{fault:?}");
            w.settle().await;
            assert_eq!(w.state_of(1).await, RunState::Succeeded, "{fault:?}");
            assert_eq!(w.hub.reactions(REPO, On::Comment(comment)), ["eyes", "rocket"]);
        })
        .await;
    }
}

#[tokio::test]
async fn a_permission_check_that_recovers_to_no_right_stays_silent() {
    World::run(async |w| {
        w.hub.fail_times(PERMISSION, Fault::Before(502), 3);
        assert_eq!(w.hears("bob", "/zeblit fix").await, Vec::<String>::new());
        assert_eq!(w.verdict().await.0, InboxState::Done);
    })
    .await;
}

#[tokio::test]
async fn after_15_minutes_without_an_answer_the_command_is_refused_aloud() {
    World::run(async |w| {
        let number = w.issue();
        let begun = w.clock.now();
        w.say(number, "ada", "/zeblit fix").await;
        while w.verdict().await.0 == InboxState::Pending {
            if w.hub.unused_faults().is_empty() {
                w.hub.fail_next(PERMISSION, Fault::Before(502));
            }
            assert!(w.round().await);
        }
        let waited = w.clock.now() - begun;
        assert!(waited >= chrono::Duration::minutes(15) && waited < chrono::Duration::minutes(35), "{waited}");
        w.settle().await;
        assert!(w.runs().await.is_empty());
        assert_eq!(w.verdict().await.0, InboxState::Failed);
        insta::assert_snapshot!(w.own(number).join("\n"), @"🚫 I could not find out what ada may do here: the forge did not answer for 15 minutes. Nothing was started. Please try the command again.");
    })
    .await;
}

#[tokio::test]
async fn a_waiting_command_survives_a_restart_and_does_not_hold_up_others() {
    World::run(async |w| {
        let (slow, quick) = (w.issue(), w.issue());
        w.hub.fail_times(PERMISSION, Fault::Before(502), 2);
        w.say(slow, "ada", "/zeblit ping").await;
        assert!(w.round().await);
        w.restart().await;
        assert!(w.round().await);
        w.say(quick, "max", "/zeblit ping").await;
        w.settle().await;
        assert_eq!((w.own(slow).len(), w.own(quick).len()), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn not_found_and_forbidden_deny() {
    World::run(async |w| {
        for status in [403, 404] {
            w.hub.fail_next(PERMISSION, Fault::Before(status));
            assert_eq!(w.hears("ada", "/zeblit fix").await, Vec::<String>::new(), "{status}");
        }
        w.hub.set_private(REPO, true);
        for status in [403, 404] {
            w.hub.fail_next(PERMISSION, Fault::Before(status));
            let own = w.hears("ada", "/zeblit fix").await;
            assert_eq!(own.len(), 1);
            assert!(own[0].starts_with("🚫 ada has `none` access"), "{status}: {}", own[0]);
        }
        assert!(w.runs().await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_makes_no_sense_is_never_a_grant() {
    World::run(async |w| {
        let mut told = Vec::new();
        for body in [
            "",
            "{}",
            "[]",
            "true",
            "<html>",
            "{\"permission\":\"admin\",\"role_name\":\"admin\"}",
            "{\"permission\":\"admin\",\"role_name\":\"admin\",\"user\":{\"id\":102,\"login\":\"ada\"}}",
            "{\"permission\":1,\"role_name\":null,\"user\":{\"id\":101,\"login\":\"ada\"}}",
            "{\"user\":{\"id\":101,\"login\":\"ada\",\"type\":\"User\"}}",
        ] {
            w.hub.fail_next(PERMISSION, Fault::Reply(200, body.into()));
            let heard = w.hears("ada", "/zeblit fix").await;
            told.push(format!("{body} → {}", heard.first().map_or("silence", String::as_str)));
        }
        assert!(w.runs().await.is_empty());
        insta::assert_snapshot!(told.join("\n"), @r#"
         → 🚫 I could not find out what is allowed here: an answer of the forge made no sense to me. Nothing was started. Please try the command again; when it stays so, the operator of this server finds more in its log.
        {} → silence
        [] → 🚫 I could not find out what is allowed here: an answer of the forge made no sense to me. Nothing was started. Please try the command again; when it stays so, the operator of this server finds more in its log.
        true → 🚫 I could not find out what is allowed here: an answer of the forge made no sense to me. Nothing was started. Please try the command again; when it stays so, the operator of this server finds more in its log.
        <html> → 🚫 I could not find out what is allowed here: an answer of the forge made no sense to me. Nothing was started. Please try the command again; when it stays so, the operator of this server finds more in its log.
        {"permission":"admin","role_name":"admin"} → silence
        {"permission":"admin","role_name":"admin","user":{"id":102,"login":"ada"}} → silence
        {"permission":1,"role_name":null,"user":{"id":101,"login":"ada"}} → 🚫 I could not find out what is allowed here: an answer of the forge made no sense to me. Nothing was started. Please try the command again; when it stays so, the operator of this server finds more in its log.
        {"user":{"id":101,"login":"ada","type":"User"}} → 🚫 I could not find out what is allowed here: an answer of the forge made no sense to me. Nothing was started. Please try the command again; when it stays so, the operator of this server finds more in its log.
        "#);
    })
    .await;
}

#[tokio::test]
async fn rules_that_cannot_be_read_are_waited_for_and_never_skipped() {
    World::run(async |w| {
        w.hub.push_commit(
            REPO,
            "main",
            &[(".github/zeblit.toml", "[permissions]\nfix = \"admin\"\n")],
            "Rules",
        );
        for fault in [Fault::Before(502), Fault::SecondaryLimit(30), Fault::ResetBefore] {
            w.hub.fail_next("GET /repos/*/*/contents/.github/zeblit.toml", fault.clone());
            let own = w.hears("ada", "/zeblit fix").await;
            assert_eq!(own.len(), 1, "{fault:?}");
            assert!(own[0].contains("needs `admin`"), "{fault:?}: {}", own[0]);
        }
        assert!(w.runs().await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_paused_server_queues_says_so_and_goes_on_later() {
    World::run(async |w| {
        operate::pause(&w.app, Some("disk full, back at 10"), "ops").await.expect("paused");
        let number = w.issue();
        w.sandbox.next(Script::edit("src/app.py", "x = 42\n"));
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Queued);
        insta::assert_snapshot!(w.own(number).join("\n"), @r"
        **⏳ Queued · position 1 · the server is paused by its operator**

        - [ ] queue ←
        - [ ] clone
        - [ ] container
        - [ ] agent
        - [ ] check the changes
        - [ ] push
        - [ ] pull request

        <sub>run `run_0001` for ada · `demo-fix` · [live log](https://zeblit.example/runs/run_0001?e=1775379600&s=b19d6183fab7f1cb1fcf1aee81eb1ef3) · stop it: `/zeblit cancel`</sub>
        ");
        w.say(number, "ada", "/zeblit status").await;
        w.settle().await;
        insta::assert_snapshot!(w.own(number).last().expect("an answer"), @r"
        ⏸ This server is paused: disk full, back at 10

        | Run | Asked by | What | State | Time | Cost |
        |---|---|---|---|---|---|
        | `run_0001` | ada | fix | ⏳ queued, position 1 | – | $0.00 |
        ");
        w.restart().await;
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Queued, "a restart is no permission");
        operate::pause(&w.app, None, "ops").await.expect("resumed");
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Succeeded);
    })
    .await;
}

#[tokio::test]
async fn a_queued_run_can_be_cancelled_while_the_server_is_paused() {
    World::run(async |w| {
        operate::pause(&w.app, Some("maintenance"), "ops").await.expect("paused");
        let number = w.issue();
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        w.say(number, "ada", "/zeblit cancel").await;
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Cancelled);
        assert!(w.sandbox.started().is_empty());
    })
    .await;
}

#[tokio::test]
async fn one_person_starts_only_so_many_runs_an_hour() {
    let change = |config: &mut Config| config.limits.commands_per_user_hour = 2;
    World::run_with(change, async |w| {
        let number = w.issue();
        w.say(number, "ada", "/zeblit fix one\n\n/zeblit fix two\n\n/zeblit fix three\n\n/zeblit ping").await;
        w.settle().await;
        assert_eq!(w.runs().await.len(), 2);
        let refusals: Vec<String> = w.own(number).into_iter().filter(|text| text.starts_with("🚫")).collect();
        insta::assert_snapshot!(refusals.join("\n"), @"🚫 ada has started 2 runs within the last hour, which is the limit of this server. Please try again later.");
        assert!(w.own(number).iter().any(|text| text.starts_with("🏓")), "what starts no run is not counted");
        // Others are not held up, and the hour passes.
        w.say(number, "max", "/zeblit fix four").await;
        w.settle().await;
        assert_eq!(w.runs().await.len(), 3);
        w.clock.advance(chrono::Duration::minutes(61));
        w.say(number, "ada", "/zeblit fix five").await;
        w.settle().await;
        assert_eq!(w.runs().await.len(), 4);
    })
    .await;
}

#[tokio::test]
async fn grants_and_refusals_stand_in_the_audit_log() {
    World::run(async |w| {
        w.hears("ada", "/zeblit fix").await;
        w.hears("tri", "/zeblit fix").await;
        w.hears("bob", "/zeblit fix").await;
        let mut lines: Vec<String> = store::audit::list(&w.app.store, 100)
            .await
            .expect("read")
            .into_iter()
            .map(|entry| format!("{} {} {}: {}", entry.actor, entry.action, entry.subject, entry.detail))
            .filter(|line| line.contains("grant") || line.contains("refuse"))
            .collect();
        lines.reverse();
        insta::assert_snapshot!(lines.join("\n"), @r"
        ada (101) grant octo/demo#1: fix as write
        tri (103) refuse octo/demo#2: fix as triage
        bob (102) refuse octo/demo#3: role read: not answered on a public repository
        ");
    })
    .await;
}
