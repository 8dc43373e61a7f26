//! Commands wherever people write them, what they are told when they mistype, and who is not obeyed.

use crate::world::hub::state::On;
use crate::world::sandbox::Script;
use crate::world::{REPO, World};
use axum::http::StatusCode;
use zeblit::domain::command::Verb;
use zeblit::domain::run::{RunMode, RunState};
use zeblit::store;
use zeblit::store::inbox::InboxState;

impl World {
    /// State and verdict of the newest delivery.
    pub async fn verdict(&self) -> (InboxState, String) {
        let newest = store::inbox::list(&self.app.store, 1).await.expect("read").remove(0);
        (newest.state, newest.verdict)
    }

    /// A pull request of ada's from a branch of this repository.
    pub fn feature(&self) -> i64 {
        self.hub.push_commit(REPO, "feature", &[("src/new.py", "one = 1\ntwo = 3\n")], "Add new");
        self.hub.open_pull(REPO, "ada", "feature", "main", "Add new")
    }

    /// Our comments as one text.
    pub fn whole(&self, number: i64) -> String {
        self.own(number).join("\n=====\n")
    }

    /// What the App answers to one comment on a new issue.
    pub async fn hears(&mut self, login: &str, body: &str) -> Vec<String> {
        let number = self.issue();
        self.say(number, login, body).await;
        self.settle().await;
        self.own(number)
    }
}

#[tokio::test]
async fn a_command_in_the_text_of_an_opened_issue_starts_a_run() {
    World::run(async |w| {
        let number = w.hub.open_issue(REPO, "ada", "Answer 42", "It says 41.\n\n/zeblit fix\n");
        w.sandbox.next(Script::edit("src/app.py", "x = 42\n"));
        w.deliver(&w.hub.issue_event(REPO, number, "opened", "ada")).await;
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Succeeded);
        assert_eq!(w.hub.reactions(REPO, On::Issue(number)), ["eyes", "rocket"]);
        assert_eq!(w.own(number).len(), 1);
    })
    .await;
}

#[tokio::test]
async fn an_edit_of_the_issue_text_that_adds_a_command_starts_a_run() {
    World::run(async |w| {
        let number = w.hub.open_issue(REPO, "ada", "Answer 42", "It says 41.");
        w.deliver(&w.hub.issue_event(REPO, number, "opened", "ada")).await;
        w.settle().await;
        assert!(w.runs().await.is_empty());
        w.hub.state().repo_mut(REPO).issues.get_mut(&number).expect("there").body =
            "It says 41.\n\n/zeblit ping\n".into();
        let mut edited = w.hub.issue_event(REPO, number, "edited", "ada").json();
        edited["changes"] = serde_json::json!({ "body": { "from": "It says 41." } });
        w.deliver(&w.hub.delivery("issues", &edited)).await;
        // A changed title is an edit too, and asks for nothing.
        edited["changes"] = serde_json::json!({ "title": { "from": "Answer" } });
        w.deliver(&w.hub.delivery("issues", &edited)).await;
        w.settle().await;
        assert_eq!(w.own(number).len(), 1);
        assert_eq!(w.hub.reactions(REPO, On::Issue(number)), ["eyes"]);
    })
    .await;
}

#[tokio::test]
async fn a_command_in_the_text_of_an_opened_pull_request_works_on_its_branch() {
    World::run(async |w| {
        let number = w.feature();
        w.hub.state().repo_mut(REPO).issues.get_mut(&number).expect("there").body = "/zeblit fix".into();
        w.sandbox.next(Script::edit("src/new.py", "one = 1\ntwo = 2\n"));
        w.deliver(&w.hub.pull_event(REPO, number, "opened", "ada")).await;
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Succeeded);
        assert_eq!(w.hub.file_at(REPO, "feature", "src/new.py").expect("there"), "one = 1\ntwo = 2\n");
        assert_eq!(w.hub.reactions(REPO, On::Issue(number)), ["eyes", "rocket"]);
    })
    .await;
}

#[tokio::test]
async fn a_command_in_a_pull_request_pushes_to_its_branch_and_opens_no_other() {
    World::run(async |w| {
        let number = w.feature();
        let pinned = w.hub.head(REPO, "feature").expect("there");
        w.sandbox.next(Script::edit("src/new.py", "one = 1\ntwo = 2\n"));
        let comment = w.say(number, "ada", "Almost.\n\n/zeblit two must be 2").await;
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Succeeded);
        let head = w.hub.head(REPO, "feature").expect("there");
        assert_ne!(head, pinned);
        assert_eq!(w.hub.pulls(REPO).len(), 1, "no second pull request");
        assert_eq!(w.hub.branches(REPO), ["feature", "main"]);
        assert_eq!(w.hub.reactions(REPO, On::Comment(comment)), ["eyes", "rocket"]);
        for sha in [&pinned, &head] {
            let checks = w.hub.checks(REPO, sha);
            assert_eq!(checks.len(), 1, "one check on {sha}");
            assert_eq!(checks[0].conclusion.as_deref(), Some("success"));
        }
        insta::assert_snapshot!(w.whole(number), @r"
        **✅ Pushed 1 commit to `feature` · 0s**

        1 commit · 1 file, +1 −1

        > ℹ️ The recipe `demo-fix` takes no words; those of the request were not used.

        <sub>run `run_0001` for ada · `demo-fix` · [log](https://zeblit.example/runs/run_0001?e=1775379600&s=b19d6183fab7f1cb1fcf1aee81eb1ef3)</sub>
        ");
    })
    .await;
}

#[tokio::test]
async fn a_review_comment_is_answered_in_its_thread_with_file_and_line() {
    World::run_with(
        |config| config.agents.ask = "demo-fix".into(),
        async |w| {
            let number = w.feature();
            let comment = w.hub.review_comment(REPO, number, "ada", ("src/new.py", 2), "/zeblit ask why 3?");
            w.sandbox.next(Script::nothing().and_print("Because nobody counted."));
            let delivery = w.hub.review_comment_created(REPO, comment);
            assert_eq!(w.deliver(&delivery).await, StatusCode::ACCEPTED);
            w.settle().await;
            assert_eq!(w.state_of(1).await, RunState::Succeeded);
            assert_eq!(w.nth_run(1).await.spec.mode, RunMode::ReadOnly);
            assert_eq!(w.hub.reactions(REPO, On::ReviewComment(comment)), ["eyes", "rocket"]);
            let thread: Vec<String> = w
                .hub
                .review_comments(REPO, number)
                .into_iter()
                .filter(|reply| reply.reply_to == Some(comment))
                .map(|reply| crate::world::without_markers(&reply.body))
                .collect();
            insta::assert_snapshot!(w.shown(&thread.join("\n=====\n")), @r"
            On `src/new.py:2`:

            ```
            Because nobody counted.
            ```

            <sub>`demo-fix` answered ada's `ask` · run `run_0001`</sub>
            ");
            insta::assert_snapshot!(w.whole(number), @r"
            **✅ Answered in the review thread · 0s**

            > ℹ️ The recipe `demo-fix` takes no words; those of the request were not used.

            <sub>run `run_0001` for ada · `demo-fix` · [log](https://zeblit.example/runs/run_0001?e=1775379600&s=b19d6183fab7f1cb1fcf1aee81eb1ef3)</sub>
            ");
        },
    )
    .await;
}

#[tokio::test]
async fn a_command_in_a_reply_of_a_thread_is_answered_in_that_thread() {
    World::run(async |w| {
        let number = w.feature();
        let first = w.hub.review_comment(REPO, number, "bob", ("src/new.py", 2), "Why 3?");
        let reply = w.hub.review_comment(REPO, number, "ada", ("src/new.py", 2), "/zeblit ping");
        for found in &mut w.hub.state().repo_mut(REPO).review_comments {
            if found.id == reply {
                found.reply_to = Some(first);
            }
        }
        w.deliver(&w.hub.review_comment_created(REPO, reply)).await;
        w.settle().await;
        let own: Vec<_> =
            w.hub.review_comments(REPO, number).into_iter().filter(|c| c.author == 9001).collect();
        assert_eq!(own.len(), 1);
        assert_eq!(own[0].reply_to, Some(first), "GitHub takes replies to the first comment only");
        assert_eq!(w.hub.reactions(REPO, On::ReviewComment(reply)), ["eyes"]);
        assert!(w.own(number).is_empty(), "nothing in the conversation: {:?}", w.own(number));
    })
    .await;
}

#[tokio::test]
async fn a_review_body_is_obeyed_and_gets_its_reactions_by_graphql() {
    World::run(async |w| {
        let number = w.feature();
        let review = w.hub.review(REPO, number, "ada", "changes_requested", "No.\n\n/zeblit fix two is 2");
        w.sandbox.next(Script::edit("src/new.py", "one = 1\ntwo = 2\n"));
        w.deliver(&w.hub.review_submitted(REPO, review)).await;
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Succeeded);
        assert_eq!(w.nth_run(1).await.spec.text, "two is 2");
        assert_eq!(w.hub.reactions(REPO, On::Review(review)), ["eyes", "rocket"]);
        assert_eq!(w.hub.count("POST /graphql"), 2);
        assert_eq!(w.own(number).len(), 1);
    })
    .await;
}

#[tokio::test]
async fn an_edit_that_adds_a_command_is_obeyed_once() {
    World::run(async |w| {
        let number = w.issue();
        let comment = w.say(number, "ada", "Somebody should mend this.").await;
        w.settle().await;
        assert!(w.runs().await.is_empty());
        w.sandbox.next(Script::edit("src/app.py", "x = 42\n"));
        let texts = [
            "Somebody should mend this.\n\n/zeblit fix",
            "Somebody should really mend this.\n\n/zeblit fix",
            "A line above\n\nSomebody should really mend this.\n\n/zeblit   fix",
            "> /zeblit fix\n\n/zeblit fix",
        ];
        for text in texts {
            let before = w.hub.edit_comment(REPO, comment, text);
            w.deliver(&w.hub.comment_edited(REPO, comment, "ada", &before)).await;
            w.settle().await;
            assert_eq!(w.runs().await.len(), 1, "after {text:?}");
        }
        assert_eq!(w.hub.pulls(REPO).len(), 1);
    })
    .await;
}

#[tokio::test]
async fn an_edit_that_removes_and_brings_back_a_command_does_not_repeat_it() {
    World::run(async |w| {
        let number = w.issue();
        w.sandbox.next(Script::edit("src/app.py", "x = 42\n"));
        let comment = w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        for text in ["never mind", "/zeblit fix"] {
            let before = w.hub.edit_comment(REPO, comment, text);
            w.deliver(&w.hub.comment_edited(REPO, comment, "ada", &before)).await;
            w.settle().await;
        }
        assert_eq!(w.runs().await.len(), 1);
        assert_eq!(w.hub.pulls(REPO).len(), 1);
    })
    .await;
}

#[tokio::test]
async fn an_edit_by_somebody_else_is_not_obeyed() {
    World::run(async |w| {
        let number = w.issue();
        // A maintainer may edit what bob wrote; bob may not command, and max did not write it.
        let of_bob = w.say(number, "bob", "please").await;
        let of_ada = w.say(number, "ada", "please").await;
        for (comment, sender) in [(of_bob, "max"), (of_ada, "max"), (of_ada, "bob")] {
            let before = w.hub.edit_comment(REPO, comment, "/zeblit fix");
            w.deliver(&w.hub.comment_edited(REPO, comment, sender, &before)).await;
            w.hub.edit_comment(REPO, comment, "please");
        }
        w.settle().await;
        assert!(w.runs().await.is_empty());
        assert!(w.hub.writes().is_empty(), "{}", w.hub.transcript());
        let (state, why) = w.verdict().await;
        assert_eq!(
            (state, why.as_str()),
            (InboxState::Ignored, "edited or sent by somebody else than the author")
        );
    })
    .await;
}

#[tokio::test]
async fn a_deleted_comment_asks_for_nothing() {
    World::run(async |w| {
        let number = w.issue();
        let comment = w.hub.comment(REPO, number, "ada", "/zeblit fix");
        w.deliver(&w.hub.comment_deleted(REPO, comment)).await;
        w.settle().await;
        assert!(w.hub.writes().is_empty());
    })
    .await;
}

#[tokio::test]
async fn several_commands_in_one_comment_are_each_obeyed_in_order() {
    World::run(async |w| {
        let number = w.issue();
        w.sandbox.next(Script::edit("src/app.py", "x = 42\n"));
        w.sandbox.next(Script::edit("README.md", "# Better\n"));
        let comment =
            w.say(number, "ada", "/zeblit ping\n\n/zeblit fix the answer\n\n- /zeblit fix the readme\n\nThanks!").await;
        w.settle().await;
        let runs = w.runs().await;
        assert_eq!(runs.len(), 2);
        for (n, text) in [(1, "the answer"), (2, "the readme")] {
            let run = w.nth_run(n).await;
            assert_eq!((run.state, run.spec.text.as_str()), (RunState::Succeeded, text));
        }
        assert_eq!(w.hub.pulls(REPO).len(), 1, "one issue, one pull request");
        let branch = w.hub.branches(REPO).into_iter().find(|name| name.starts_with("zeblit/")).expect("pushed");
        assert_eq!(w.hub.file_at(REPO, &branch, "README.md").expect("there"), "# Better\n");
        assert_eq!(w.hub.file_at(REPO, &branch, "src/app.py").expect("there"), "x = 42\n");
        assert_eq!(w.hub.reactions(REPO, On::Comment(comment)), ["eyes", "rocket"]);
        insta::assert_snapshot!(w.whole(number), @r"
        🏓 Listening. `/zeblit help` lists what I can do here.
        =====
        **✅ Draft pull request #2 · 2s**

        [#2](https://hub.example/octo/demo/pull/2) · 1 commit · 1 file, +1 −2

        > ℹ️ The recipe `demo-fix` takes no words; those of the request were not used.

        <sub>run `run_0001` for ada · `demo-fix` · [log](https://zeblit.example/runs/run_0001?e=1775379600&s=b19d6183fab7f1cb1fcf1aee81eb1ef3)</sub>
        =====
        **✅ Draft pull request #2 · 0s**

        [#2](https://hub.example/octo/demo/pull/2) · 1 commit · 1 file, +1 −1

        > ℹ️ The recipe `demo-fix` takes no words; those of the request were not used.

        <sub>run `run_0002` for ada · `demo-fix` · [log](https://zeblit.example/runs/run_0002?e=1775379600&s=59e8161fa3509d3304c8d07c721ae6d4)</sub>
        ");
    })
    .await;
}

#[tokio::test]
async fn the_same_command_twice_in_one_comment_is_meant_twice() {
    World::run(async |w| {
        let number = w.issue();
        w.say(number, "ada", "/zeblit fix\n\n/zeblit fix").await;
        w.settle().await;
        assert_eq!(w.runs().await.len(), 2);
    })
    .await;
}

#[tokio::test]
async fn eleven_commands_are_too_many_and_ten_are_obeyed() {
    World::run(async |w| {
        let number = w.issue();
        w.say(number, "ada", &"/zeblit ping\n\n".repeat(11)).await;
        w.settle().await;
        let own = w.own(number);
        assert_eq!(own.len(), 11);
        assert!(own[10].starts_with("😕 More than 10 commands in one comment"), "{}", own[10]);
    })
    .await;
}

#[tokio::test]
async fn text_that_only_looks_like_a_command_is_not_one() {
    World::run(async |w| {
        let number = w.issue();
        for text in [
            "> /zeblit fix",
            "```\n/zeblit fix\n```",
            "    /zeblit fix",
            "`/zeblit fix`",
            "<!-- \n/zeblit fix\n-->",
            "# /zeblit fix",
            "Type /zeblit fix to start",
            "[/zeblit fix](https://example.com)",
            "\\/zeblit fix",
            "/zeblitfix",
            "/zeblit-fix now",
            "@zeblit fix",
            "| a |\n|---|\n| /zeblit fix |",
            "~~~\n/zeblit fix",
            "<div>\n/zeblit fix\n</div>",
        ] {
            w.say(number, "ada", text).await;
            w.settle().await;
            assert!(w.hub.writes().is_empty(), "{text:?}: {}", w.hub.transcript());
        }
    })
    .await;
}

#[tokio::test]
async fn mistyped_commands_and_flags_are_told_what_was_meant() {
    World::run(async |w| {
        let mut told = Vec::new();
        for text in [
            "/zeblit fxi",
            "/zeblit reveiw",
            "/zeblit stauts please",
            "/zeblit frobnicate",
            "/zeblit plan",
            "/zeblit approve",
            "/zeblit fix --agnet fixer",
            "/zeblit fix --frob it",
            "/zeblit fix --agent",
            "/zeblit fix --agent Not/A/Name",
            "/zeblit fix --model -x",
            "/zeblit fix --budget lots",
            "/zeblit fix --base ../../etc",
            "/zeblit ask",
            "/zeblit run",
            "/zeblit run Rm/Rf",
            "/zeblit `@everyone`<b>#1",
        ] {
            let own = w.hears("ada", text).await;
            assert_eq!(own.len(), 1, "{text}: {own:?}");
            told.push(format!("{text}\n{}", own[0]));
        }
        assert!(w.runs().await.is_empty());
        insta::assert_snapshot!(told.join("\n\n"), @r"
        /zeblit fxi
        😕 Unknown command `fxi`. Did you mean `/zeblit fix`? `/zeblit help` lists the commands.

        /zeblit reveiw
        😕 Unknown command `reveiw`. Did you mean `/zeblit review`? `/zeblit help` lists the commands.

        /zeblit stauts please
        😕 Unknown command `stauts`. Did you mean `/zeblit status`? `/zeblit help` lists the commands.

        /zeblit frobnicate
        😕 Unknown command `frobnicate`. `/zeblit help` lists the commands.

        /zeblit plan
        😕 Unknown command `plan`. `/zeblit help` lists the commands.

        /zeblit approve
        😕 Unknown command `approve`. `/zeblit help` lists the commands.

        /zeblit fix --agnet fixer
        😕 Unknown flag `--agnet`. Did you mean `--agent`? `/zeblit help` lists the commands.

        /zeblit fix --frob it
        😕 Unknown flag `--frob`. `/zeblit help` lists the commands.

        /zeblit fix --agent
        😕 The flag `--agent` needs a value. `/zeblit help` lists the commands.

        /zeblit fix --agent Not/A/Name
        😕 The flag `--agent` needs the name of an agent (letters, digits, `-`, `_`, `.`, at most 64), not `Not/A/Name`. `/zeblit help` lists the commands.

        /zeblit fix --model -x
        😕 The flag `--model` needs the name of a model (letters, digits and `-_.:/@+[]`, at most 100), not `-x`. `/zeblit help` lists the commands.

        /zeblit fix --budget lots
        😕 The flag `--budget` needs US dollars between 0.000001 and 1000000, like `2.5`, not `lots`. `/zeblit help` lists the commands.

        /zeblit fix --base ../../etc
        😕 The flag `--base` needs the name of a branch, not `../../etc`. `/zeblit help` lists the commands.

        /zeblit ask
        😕 `ask` needs a question: `/zeblit ask why is … slow?`. `/zeblit help` lists the commands.

        /zeblit run
        😕 `run` needs the name of a recipe: `/zeblit run <recipe>`. `/zeblit help` lists the commands.

        /zeblit run Rm/Rf
        😕 `run` needs the name of a recipe (small letters, digits and `-`, at most 50), not `Rm/Rf`. Usage: `/zeblit run <recipe> [arguments]`. `/zeblit help` lists the commands.

        /zeblit `@everyone`<b>#1
        😕 Unknown command `everyoneb1`. `/zeblit help` lists the commands.
        ");
    })
    .await;
}

#[tokio::test]
async fn a_mistyped_command_gets_a_confused_reaction() {
    World::run(async |w| {
        let number = w.issue();
        let comment = w.say(number, "ada", "/zeblit fxi").await;
        w.settle().await;
        assert_eq!(w.hub.reactions(REPO, On::Comment(comment)), ["confused"]);
    })
    .await;
}

const MINE: &str = "---\nname: mine\ndescription: Sorts the imports of this repository.\nadapter: command\nargv: [sh, -c, 'sort-imports \"$@\"', mine, \"{args}\"]\n---\nHow to use it.\n";

#[tokio::test]
async fn help_shows_roles_and_agents_of_this_repository() {
    World::run(async |w| {
        w.hub.push_commit(
            REPO,
            "main",
            &[
                (".github/zeblit.toml", "[permissions]\nfix = \"admin\"\nask = \"triage\"\n"),
                (".github/zeblit/agents/mine.md", MINE),
            ],
            "Rules",
        );
        insta::assert_snapshot!(w.hears("tri", "/zeblit help").await.join("\n=====\n"), @r"
        I am a bot. A command stands at the start of a line of a comment:

        | Command | What it does | Who may use it here |
        |---|---|---|
        | `/zeblit fix [what to do]` | Change the code and open a draft pull request (on a pull request: add commits). Plain words without a verb mean the same. | admin and above |
        | `/zeblit run <recipe> [arguments]` | Run a recipe of this repository or server (a fixed command, no model). | write and above |
        | `/zeblit review [what to look at]` | Read the change and comment on it. Changes nothing. | write and above |
        | `/zeblit ask <question>` | Answer a question about the code. Changes nothing. | triage and above |
        | `/zeblit retry [--agent NAME]` | Start the last run of this thread again from the same request. | write and above |
        | `/zeblit continue [what to do next]` | Go on from where the last run of this thread stopped, with its conversation where that is kept. | write and above |
        | `/zeblit cancel` | Stop the run of this thread. Partial work is kept. | write and above |
        | `/zeblit ok <commit>` | Approve exactly this commit: a change that waits for it is pushed; the code of a pull request from a fork may be run. | write and above |
        | `/zeblit status` | Show the runs of this thread and their place in the queue. | triage and above |
        | `/zeblit budget` | Show what is spent and left: for the last run, you, this repository and its owner. | triage and above |
        | `/zeblit help` | Show this table. | triage and above |
        | `/zeblit ping` | Check that the bot listens. | triage and above |

        Flags: `--agent NAME`, `--model NAME`, `--base BRANCH`, `--budget DOLLARS`, `--priority high|default|low`; `--after #N` waits until that is done; `--staged` shows what would be done and pushes nothing.

        Agents:

        - `builtin`: Fixes issues with Zeblit's own small agent. Needs no agent program in the image.
        - `codex`: Fixes what is described, with OpenAI Codex.
        - `explainer`: Answers a question about the repository. Changes nothing.
        - `fixer`: Fixes the problem that an issue, a review comment or a request describes.
        - `gemini`: Fixes what is described, with Gemini CLI.
        - `opencode`: Fixes what is described, with opencode and the model of your choice.
        - `reviewer`: Reviews a pull request and reports findings with file and line. Changes nothing.

        Recipes:

        - `demo-fix`: A codemod, not an AI. Mends rounding in functions named *_count whose tests fail, and proves it with the tests.
        - `format`: Formats the repository, or the paths given, with the formatters that it is set up for. No model.
        - `mine`: Sorts the imports of this repository.

        This repository's rules stand in `.github/zeblit.toml` on its default branch.
        ");
        for text in ["/zeblit", "/zeblit ?", "/Zeblit HELP"] {
            let own = w.hears("tri", text).await;
            assert_eq!(own.len(), 1, "{text}");
            assert!(own[0].contains("| `/zeblit fix [what to do]` |"), "{text}");
        }
    })
    .await;
}

#[tokio::test]
async fn help_names_a_broken_configuration_and_still_helps() {
    World::run(async |w| {
        w.hub.push_commit(REPO, "main", &[(".github/zeblit.toml", "# Rules\n\nagnet = \"fixer\"\n")], "Rules");
        let own = w.hears("tri", "/zeblit help").await;
        assert_eq!(own.len(), 1);
        let last = own[0].lines().last().expect("a line");
        insta::assert_snapshot!(last, @"This repository's rules stand in `.github/zeblit.toml` on its default branch. ⚠️ It cannot be read now: .github/zeblit.toml, line 3: unknown field `agnet`, expected one of `enabled`, `agent`, `model`, `image`, `answer_strangers`, `push`, `staged`, `artifacts`, `state_labels`, `request_review`, `delete_branch`, `needs`, `permissions`, `limits`, `gate`, `egress`, `setup`; did you mean `agent`?.");
    })
    .await;
}

#[tokio::test]
async fn ping_says_that_somebody_listens() {
    World::run(async |w| {
        let number = w.issue();
        let comment = w.say(number, "tri", "/zeblit ping").await;
        w.settle().await;
        insta::assert_snapshot!(w.own(number).join("\n"), @"🏓 Listening. `/zeblit help` lists what I can do here.");
        assert_eq!(w.hub.reactions(REPO, On::Comment(comment)), ["eyes"]);
    })
    .await;
}

#[tokio::test]
async fn status_shows_the_runs_of_the_thread_and_their_place() {
    World::run(async |w| {
        let number = w.issue();
        insta::assert_snapshot!(w.hears("tri", "/zeblit status").await.join("\n"), @"No run was asked for here yet. `/zeblit help` shows how.");
        w.sandbox.next(Script::edit("src/app.py", "x = 42\n"));
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        w.sandbox.next(Script::hangs());
        w.say(number, "ada", "/zeblit fix more").await;
        w.say(number, "ada", "/zeblit fix even more").await;
        w.settle().await;
        w.say(number, "tri", "/zeblit status").await;
        w.settle().await;
        insta::assert_snapshot!(w.own(number).last().expect("an answer"), @r"
        | Run | Asked by | What | State | Time | Cost |
        |---|---|---|---|---|---|
        | `run_0003` | ada | fix | ⏳ queued, position 1 | – | $0.00 |
        | `run_0002` | ada | fix | 🏃 running | 4s | $0.00 |
        | `run_0001` | ada | fix | ✅ done | 2s | $0.00 |
        ");
        w.sandbox.finish_hanging();
        w.settle().await;
    })
    .await;
}

#[tokio::test]
async fn bots_and_own_comments_are_never_obeyed() {
    World::run(async |w| {
        let number = w.issue();
        w.hub.add_bot("dependabot[bot]", 300);
        // A bot with a right is still a bot; a person may be called like one.
        w.hub.set_role(REPO, "dependabot[bot]", "write");
        w.say(number, "dependabot[bot]", "/zeblit fix").await;
        w.settle().await;
        assert_eq!(w.verdict().await, (InboxState::Ignored, "bots are not obeyed".into()));
        // Our own comment, delivered back to us with a command on a line of its own.
        let own = {
            let mut state = w.hub.state();
            let bot = state.bot;
            let found = state.repo_mut(REPO).comments.last_mut().expect("just written");
            found.author = bot;
            found.via_app = true;
            found.id
        };
        w.deliver(&w.hub.comment_created(REPO, own)).await;
        w.settle().await;
        assert_eq!(w.verdict().await.0, InboxState::Ignored);
        // Whatever the payload says that we are, our number is ours.
        let mut body = w.hub.comment_created(REPO, own).json();
        body["comment"]["user"]["type"] = serde_json::json!("User");
        body["comment"]["performed_via_github_app"] = serde_json::Value::Null;
        w.deliver(&w.hub.delivery("issue_comment", &body)).await;
        w.settle().await;
        assert_eq!(w.verdict().await, (InboxState::Ignored, "written by this bot".into()));
        // A person's comment that our App wrote for them.
        let comment = w.hub.comment(REPO, number, "ada", "/zeblit fix");
        let mut body = w.hub.comment_created(REPO, comment).json();
        body["comment"]["performed_via_github_app"] = serde_json::json!({ "id": w.hub.app_id() });
        w.deliver(&w.hub.delivery("issue_comment", &body)).await;
        w.settle().await;
        assert_eq!(w.verdict().await, (InboxState::Ignored, "written by this bot".into()));
        assert!(w.runs().await.is_empty());
        assert!(w.hub.writes().is_empty(), "{}", w.hub.transcript());
    })
    .await;
}

#[tokio::test]
async fn a_person_whose_login_looks_like_a_bot_is_a_person() {
    World::run(async |w| {
        w.hub.add_user("not-a[bot]", 301);
        w.hub.set_role(REPO, "not-a[bot]", "write");
        assert_eq!(w.hears("not-a[bot]", "/zeblit ping").await.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_comment_of_another_app_in_a_persons_name_is_that_persons() {
    World::run(async |w| {
        let number = w.issue();
        let comment = w.hub.comment(REPO, number, "ada", "/zeblit ping");
        let mut body = w.hub.comment_created(REPO, comment).json();
        body["comment"]["performed_via_github_app"] = serde_json::json!({ "id": 777 });
        w.deliver(&w.hub.delivery("issue_comment", &body)).await;
        w.settle().await;
        assert_eq!(w.own(number).len(), 1);
    })
    .await;
}

#[tokio::test]
async fn our_own_comments_that_show_commands_come_back_without_effect() {
    World::run_with(
        |config| config.agents.ask = "demo-fix".into(),
        async |w| {
            let number = w.issue();
            w.sandbox.next(
                Script::nothing()
                    .and_print("Type this:")
                    .and_print("/zeblit fix")
                    .and_print("/zeblit cancel"),
            );
            w.say(number, "ada", "/zeblit ask how do I start a fix?").await;
            w.settle().await;
            w.say(number, "ada", "/zeblit help").await;
            w.settle().await;
            let before = w.hub.writes().len();
            let own: Vec<i64> =
                w.hub.comments(REPO, number).iter().filter(|c| c.via_app).map(|c| c.id).collect();
            assert_eq!(own.len(), 3);
            for id in own {
                w.deliver(&w.hub.comment_created(REPO, id)).await;
                let body =
                    w.hub.comments(REPO, number).iter().find(|c| c.id == id).expect("there").body.clone();
                // Quoted by a person, our texts hold no command either.
                assert!(zeblit::domain::command::parse(&body).is_empty(), "{body}");
                // Copied with their markers by a person, they are that person's text: no command in it.
                w.say(number, "ada", &body).await;
            }
            w.settle().await;
            assert_eq!(w.hub.writes().len(), before, "{}", w.hub.transcript());
            assert_eq!(w.runs().await.len(), 1);
        },
    )
    .await;
}

#[tokio::test]
async fn a_recipe_of_the_repository_gets_the_words_as_arguments() {
    World::run(async |w| {
        w.hub.push_commit(REPO, "main", &[(".github/zeblit/agents/mine.md", MINE)], "A recipe");
        let number = w.issue();
        w.sandbox.next(Script::edit("src/app.py", "import a\n").and_print("sorted"));
        w.say(number, "ada", "/zeblit run mine src \"two words\" $(rm -rf /) ; `id`").await;
        w.settle().await;
        let run = w.nth_run(1).await;
        assert_eq!(
            (run.state, run.spec.verb, run.spec.agent.as_str()),
            (RunState::Succeeded, Verb::Run, "mine")
        );
        let started = w.sandbox.started();
        let zeblit::sandbox::Duty::Agent(job) = &started[0].duty else { panic!("an agent") };
        assert_eq!(
            job.argv,
            ["sh", "-c", "sort-imports \"$@\"", "mine", "src", "two words", "$(rm", "-rf", "/)", ";", "`id`"]
        );
        assert_eq!(job.bridge_port, None, "a recipe has no way to a model");
    })
    .await;
}

#[tokio::test]
async fn an_agent_that_is_not_there_or_no_recipe_is_refused_with_the_list() {
    World::run(async |w| {
        w.hub.push_commit(REPO, "main", &[(".github/zeblit/agents/mine.md", MINE)], "A recipe");
        let mut told = Vec::new();
        for text in ["/zeblit run nothing", "/zeblit run fixer", "/zeblit fix --agent nobody it"] {
            told.push(format!("{text}\n{}", w.hears("ada", text).await.join("\n")));
        }
        assert!(w.runs().await.is_empty());
        insta::assert_snapshot!(told.join("\n\n"), @r"
    /zeblit run nothing
    😕 There is no recipe `nothing` here. There are: `demo-fix`, `format`, `mine`.

    /zeblit run fixer
    😕 `fixer` is an agent, not a recipe. Use `/zeblit fix --agent fixer …`.

    /zeblit fix --agent nobody it
    😕 There is no agent `nobody` here. There are: `builtin`, `codex`, `demo-fix`, `explainer`, `fixer`, `format`, `gemini`, `mine`, `opencode`, `reviewer`.
    ");
    })
    .await;
}

#[tokio::test]
async fn flags_choose_agent_model_base_and_budget() {
    World::run(async |w| {
        w.hub.push_commit(REPO, "main", &[(".github/zeblit/agents/mine.md", MINE)], "A recipe");
        w.hub.push_commit(REPO, "release/1.x", &[("src/app.py", "def answer():\n    return 40\n")], "Old");
        let old = w.hub.head(REPO, "release/1.x").expect("pushed");
        let number = w.issue();
        w.sandbox.next(Script::edit("src/app.py", "x = 42\n"));
        let text =
            "/zeblit fix --agent mine --model claude-opus-4 --base release/1.x --budget 2.50 \"the answer\"";
        w.say(number, "ada", text).await;
        w.settle().await;
        let run = w.nth_run(1).await;
        assert_eq!(run.state, RunState::Succeeded);
        assert_eq!(run.spec.agent, "mine");
        assert_eq!(run.spec.model.as_deref(), Some("claude-opus-4"));
        assert_eq!((run.spec.base.as_str(), run.spec.start.as_str()), ("release/1.x", old.as_str()));
        assert_eq!(run.spec.budget_micros, 2_500_000);
        let pull = &w.hub.pulls(REPO)[0];
        assert_eq!(pull.pull.as_ref().expect("a pull request").base_ref, "release/1.x");
    })
    .await;
}

#[tokio::test]
async fn flags_that_cannot_be_obeyed_are_refused_with_the_reason() {
    World::run(async |w| {
        let pull = w.feature();
        let mut told = Vec::new();
        for text in
            ["/zeblit fix --base nowhere", "/zeblit fix --budget 1000", "/zeblit retry", "/zeblit continue"]
        {
            told.push(format!("{text}\n{}", w.hears("ada", text).await.join("\n")));
        }
        w.say(pull, "ada", "/zeblit fix --base main").await;
        w.settle().await;
        told.push(format!("on a pull request: --base main\n{}", w.own(pull).join("\n")));
        assert!(w.runs().await.is_empty());
        insta::assert_snapshot!(told.join("\n\n"), @r"
        /zeblit fix --base nowhere
        😕 There is no branch `nowhere` here.

        /zeblit fix --budget 1000
        🚫 A budget of $1000.00 is more than a run may have here ($20.00).

        /zeblit retry
        😕 There is no earlier run here to retry. `/zeblit fix` starts one.

        /zeblit continue
        😕 There is no earlier run here to continue. `/zeblit fix` starts one.

        on a pull request: --base main
        😕 `--base` has no meaning on a pull request: its base is fixed.
        ");
    })
    .await;
}
