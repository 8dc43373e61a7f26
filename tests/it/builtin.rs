//! The built-in agent in a real container that has nothing of its own but Git and a shell; the model is scripted.

use crate::world::docker::steady;
use crate::world::model::{KEY, ModelServer, Turn};
use crate::world::{REPO, World};
use serde_json::json;
use zeblit::config::Config;
use zeblit::domain::budget::Usage;
use zeblit::domain::run::{FailureClass, RunState};
use zeblit::store::ledger;

/// Agents are the built-in one, in the image without any agent program.
async fn with_model(turns: Vec<Turn>, scenario: impl AsyncFnOnce(&mut World, &ModelServer)) {
    let model = ModelServer::start(turns).await;
    let configure = |config: &mut Config| {
        model.configure(config);
        config.sandbox.image = "zeblit-agent:latest".into();
        config.agents.fix = "builtin".into();
    };
    World::run_in_docker(configure, async |w| {
        scenario(w, &model).await;
        for seen in model.seen() {
            assert!(!seen.body.to_string().contains(KEY), "the agent knew the key: {}", seen.what);
        }
        assert!(!w.log(1).await.contains(KEY));
    })
    .await;
}

#[tokio::test]
async fn the_built_in_agent_fixes_an_issue_and_is_paid_to_the_token() {
    let turns = vec![
        Turn::calls("plan", json!({"items": [{"text": "Find the answer", "done": false}]})),
        Turn::calls("search", json!({"text": "41"})).after_saying("I look for it first."),
        Turn::calls("edit", json!({"path": "../home/.gitconfig", "content": "[core]\n"})),
        Turn::calls("read", json!({"path": "/etc/passwd"})),
        Turn::calls("edit", json!({"path": "src/app.py", "old": "return 41", "new": "return 42"})),
        Turn::calls("run", json!({"command": "git diff --stat; ls /sys/class/net"})),
        Turn::calls(
            "finish",
            json!({"title": "Return the right answer", "summary": "`answer()` was off by one."}),
        ),
    ];
    with_model(turns, async |w, model| {
        let number = w.issue();
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        let run = w.nth_run(1).await;
        assert_eq!(run.state, RunState::Succeeded, "{:?} {}", run.outcome, w.log(1).await);
        assert_eq!(model.left(), 0);
        let pull = w.our_pull();
        let head = pull.pull.clone().unwrap().head_ref;
        assert_eq!(
            w.hub.file_at(REPO, &head, "src/app.py").as_deref(),
            Some("def answer():\n    return 42\n")
        );
        assert!(w.hub.log(REPO, &head, "%s", 1).contains("Return the right answer"));
        assert!(pull.body.contains("`answer()` was off by one."), "{}", pull.body);

        let bill = ledger::totals(&w.app.store, &run.id).await.unwrap();
        assert_eq!(bill.usage, model.charged().0);
        let heard = model.heard();
        for told in
            ["may lead out of the workspace", "is outside the workspace", "src/app.py:2: ", "1 file changed"]
        {
            assert!(heard.contains(told), "{told}: {heard}");
        }
        insta::assert_snapshot!(w.said(1).await.join("\n"), @r#"
        agent process started
        Plan:
        - [ ] Find the answer
        plan 1 steps
        plan ok
        I look for it first.
        search 41
        search ok
        edit ../home/.gitconfig
        edit failed
        read /etc/passwd
        read failed
        edit src/app.py
        edit ok
        run git diff --stat; ls /sys/class/net
        run ok
        finish Return the right answer
        finish ok
        `answer()` was off by one.
        agent process ended with exit code 0
        1 commit(s) collected
        "#);
    })
    .await;
}

#[tokio::test]
async fn a_budget_stops_the_built_in_agent_and_its_work_is_kept() {
    let turns = vec![
        Turn::calls("edit", json!({"path": "partial.txt", "content": "half of it\n"}))
            // 4.50 dollars at Sonnet's price of 15 dollars for a million tokens.
            .using(Usage { input: 100, output: 300_000, ..Usage::default() }),
        Turn::says("Never heard."),
    ];
    with_model(turns, async |w, model| {
        let number = w.issue();
        w.say(number, "ada", "/zeblit fix --budget 4.55").await;
        w.settle().await;
        let run = w.nth_run(1).await;
        assert_eq!(
            (run.state, run.outcome.class),
            (RunState::Failed, Some(FailureClass::Budget)),
            "{}",
            w.log(1).await
        );
        assert_eq!(model.left(), 1, "nothing is asked without money");
        let branch = run.outcome.branch.expect("a branch").to_string();
        assert_eq!(w.hub.file_at(REPO, &branch, "partial.txt").as_deref(), Some("half of it\n"));
        let sticky = steady(&w.sticky(number));
        assert!(sticky.contains("Failed: budget") && sticky.contains("Partial work is on"), "{sticky}");
    })
    .await;
}

#[tokio::test]
async fn the_built_in_agent_answers_without_changing_anything() {
    let turns = vec![Turn::calls("search", json!({"text": "answer"})), Turn::says("It returns **41**.")];
    with_model(turns, async |w, model| {
        let number = w.issue();
        w.say(number, "ada", "/zeblit ask --agent builtin what does answer return?").await;
        w.settle().await;
        let run = w.nth_run(1).await;
        assert_eq!(run.state, RunState::Succeeded, "{:?} {}", run.outcome, w.log(1).await);
        assert_eq!(model.left(), 0);
        assert!(w.hub.pulls(REPO).is_empty());
        assert!(w.own(number).iter().any(|comment| comment.contains("It returns **41**.")));
        // The tool that writes was not even offered.
        let tools = model.seen()[0].body["tools"].to_string();
        assert!(tools.contains("\"search\"") && !tools.contains("\"edit\""), "{tools}");
    })
    .await;
}
