//! What a repository says about itself: `.github/zeblit.toml`, its agents and recipes, from the default branch only.

use crate::world::sandbox::Script;
use crate::world::{REPO, World};
use zeblit::config::Config;
use zeblit::domain::run::{RunMode, RunState};

const TOML: &str = ".github/zeblit.toml";

fn agent(name: &str, more: &str) -> (String, String) {
    (
        format!(".github/zeblit/agents/{name}.md"),
        format!(
            "---\nname: {name}\ndescription: An agent of this repository.\nadapter: command\nargv: [true]\n{more}---\nText.\n"
        ),
    )
}

impl World {
    /// Puts the rules on the default branch.
    fn rules(&self, text: &str) {
        self.hub.push_commit(REPO, "main", &[(TOML, text)], "Rules");
    }
}

#[tokio::test]
async fn a_repository_that_says_nothing_gets_the_servers_defaults() {
    World::run(async |w| {
        w.fix(Script::edit("src/app.py", "x = 42\n")).await;
        let spec = w.nth_run(1).await.spec;
        assert_eq!((spec.agent.as_str(), spec.image.as_str()), ("demo-fix", "zeblit-agent:latest"));
        // The agent's own limit is lower than the server's hour.
        assert_eq!((spec.wall_seconds, spec.budget_micros, spec.mode), (300, 5_000_000, RunMode::Change));
        assert_eq!((spec.base.as_str(), spec.model), ("main", None));
    })
    .await;
}

#[tokio::test]
async fn a_repository_chooses_agent_model_image_and_limits() {
    let change = |config: &mut Config| config.sandbox.allowed_images = vec!["python:3.12".into()];
    World::run_with(change, async |w| {
        let (path, text) = agent("own", "limits: {minutes: 30, budget: 4}\n");
        let rules = "agent = \"own\"\nmodel = \"claude-haiku-4-5\"\nimage = \"python:3.12\"\n\n[limits]\nminutes = 7\nbudget = 1.25\n";
        w.hub.push_commit(REPO, "main", &[(TOML, rules), (&path, &text)], "Rules");
        w.fix(Script::edit("src/app.py", "x = 42\n")).await;
        let run = w.nth_run(1).await;
        assert_eq!(run.state, RunState::Succeeded);
        let spec = run.spec;
        assert_eq!((spec.agent.as_str(), spec.image.as_str()), ("own", "python:3.12"));
        assert_eq!(spec.model.as_deref(), Some("claude-haiku-4-5"));
        assert_eq!((spec.wall_seconds, spec.budget_micros), (420, 1_250_000), "the lowest limit wins");
        assert_eq!(w.sandbox.started()[0].image, "python:3.12");
    })
    .await;
}

#[tokio::test]
async fn a_repository_cannot_raise_the_servers_limits() {
    let change = |config: &mut Config| {
        config.sandbox.minutes = 3;
        config.limits.run_budget = 1.0;
        config.limits.max_run_budget = 2.0;
    };
    World::run_with(change, async |w| {
        let (path, text) = agent("own", "limits: {minutes: 500, budget: 50}\n");
        let rules = "agent = \"own\"\n[limits]\nminutes = 600\nbudget = 100\n";
        w.hub.push_commit(REPO, "main", &[(TOML, rules), (&path, &text)], "Rules");
        w.fix(Script::nothing()).await;
        let spec = w.nth_run(1).await.spec;
        assert_eq!((spec.wall_seconds, spec.budget_micros), (180, 2_000_000));
        insta::assert_snapshot!(w.hears("max", "/zeblit fix --budget 2.01 it").await.join("\n"), @"🚫 A budget of $2.01 is more than a run may have here ($2.00).");
    })
    .await;
}

#[tokio::test]
async fn a_budget_flag_may_not_pass_the_repositorys_own() {
    World::run(async |w| {
        w.rules("[limits]\nbudget = 1\n");
        insta::assert_snapshot!(w.hears("ada", "/zeblit fix --budget 3 it").await.join("\n"), @"🚫 A budget of $3.00 is more than a run may have here ($1.00).");
        w.hears("ada", "/zeblit fix --budget 0.75 it").await;
        assert_eq!(w.nth_run(1).await.spec.budget_micros, 750_000);
    })
    .await;
}

#[tokio::test]
async fn an_image_must_be_on_the_servers_list() {
    let change = |config: &mut Config| config.sandbox.allowed_images = vec!["python:3.12".into()];
    World::run_with(change, async |w| {
        for image in ["evil:latest", "python:3.12.1", "python", "docker.io/library/python:3.12"] {
            w.rules(&format!("image = \"{image}\"\n"));
            let own = w.hears("max", "/zeblit fix").await;
            assert_eq!(own.len(), 1);
            assert!(own[0].starts_with(&format!("🚫 The image `{image}`")), "{}", own[0]);
        }
        insta::assert_snapshot!(w.hears("max", "/zeblit fix").await.join("\n"), @r#"🚫 The image `docker.io/library/python:3.12` (key `image` in `.github/zeblit.toml`) is not on this server's allow-list. Ask its operator for this line in the server's configuration, below `[sandbox]`: `allowed_images = ["docker.io/library/python:3.12"]`."#);
        // The server's own image needs no entry.
        w.rules("image = \"zeblit-agent:latest\"\n");
        w.hears("max", "/zeblit fix").await;
        assert_eq!(w.nth_run(1).await.spec.image, "zeblit-agent:latest");
    })
    .await;
}

#[tokio::test]
async fn a_broken_configuration_is_told_with_its_line_and_starts_nothing() {
    World::run(async |w| {
        let mut told = Vec::new();
        for text in [
            "# ours\nenabled = true\nagnet = \"fixer\"\n",
            "[limits]\nminuets = 5\n",
            "[permissions]\nfix = \"write\"\ndeploy = \"admin\"\n",
            "[permissions]\nfxi = \"write\"\n",
            "[permissions]\nfix = \"owner\"\n",
            "[permissions]\n\nfix = \"read\"\n",
            "enabled = \"yes\"\n",
            "[limits]\nminutes = 0\n",
            "[limits]\nbudget = -1\n",
            "[gate]\nprotected = [\"/etc\"]\n",
            "agent = \"--help\"\n",
            "agent = \"a\"\nagent = \"b\"\n",
            "agent = \"unclosed\n",
            "x ``` @everyone <b> = 1\n",
        ] {
            w.rules(text);
            let own = w.hears("ada", "/zeblit fix").await;
            assert_eq!(own.len(), 1, "{text}");
            assert!(own[0].starts_with("😕 The configuration of this repository cannot be read"), "{text}");
            let line = own[0].lines().skip_while(|line| !line.starts_with("```")).nth(1).expect("a line");
            told.push(line.to_owned());
        }
        assert!(w.runs().await.is_empty());
        insta::assert_snapshot!(told.join("\n"), @r#"
        .github/zeblit.toml, line 3: unknown field `agnet`, expected one of `enabled`, `agent`, `model`, `image`, `answer_strangers`, `push`, `staged`, `artifacts`, `state_labels`, `request_review`, `delete_branch`, `needs`, `permissions`, `limits`, `gate`, `egress`, `setup`; did you mean `agent`?
        .github/zeblit.toml, line 2: unknown field `minuets`, expected one of `minutes`, `budget`, `day_budget`, `runs`; did you mean `minutes`?
        .github/zeblit.toml, line 3: there is no command `deploy`
        .github/zeblit.toml, line 2: there is no command `fxi`; did you mean `fix`?
        .github/zeblit.toml, line 2: `owner` is not a role: use read, triage, write, maintain or admin
        .github/zeblit.toml, line 3: `fix` needs at least `triage`: it is not for everybody
        .github/zeblit.toml, line 1: invalid type: string "yes", expected a boolean
        .github/zeblit.toml, line 2: `limits.minutes` must be from 1 to 1440
        .github/zeblit.toml, line 2: `limits.budget` must be an amount in dollars, like 2.50
        .github/zeblit.toml, line 2: `/etc` is not a path pattern: use paths from the root, `*` and `**`
        .github/zeblit.toml, line 1: `agent` is not a name I can use
        .github/zeblit.toml, line 2: duplicate key
        .github/zeblit.toml, line 1: invalid basic string, expected `"`
        .github/zeblit.toml, line 1: key with no value, expected `=`
        "#);
        insta::assert_snapshot!(w.hears("ada", "/zeblit fix").await.join("\n"), @r"
        😕 The configuration of this repository cannot be read, so I start nothing.

        ```
        .github/zeblit.toml, line 1: key with no value, expected `=`
        ```
        Mend it on the default branch, then type the command again.
        ");
        // Harmless verbs still work; strangers still hear nothing.
        assert_eq!(w.hears("tri", "/zeblit ping").await.len(), 1);
        assert_eq!(w.hears("bob", "/zeblit fix").await.len(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_configuration_that_is_no_text_or_huge_starts_nothing() {
    World::run(async |w| {
        let mut told = Vec::new();
        for text in [format!("# {}\n", "x".repeat(70 * 1024)), format!("# {}\n", "x".repeat(2 * 1024 * 1024))]
        {
            w.rules(&text);
            told.extend(w.hears("ada", "/zeblit fix").await);
        }
        assert!(w.runs().await.is_empty());
        insta::assert_snapshot!(told.join("\n=====\n"), @r"
        😕 The configuration of this repository cannot be read, so I start nothing.

        ```
        .github/zeblit.toml, line 1: is larger than 64 KiB
        ```
        Mend it on the default branch, then type the command again.
        =====
        😕 The configuration of this repository cannot be read, so I start nothing.

        ```
        .github/zeblit.toml, line 1: cannot be read: the reply is larger than 1048576 bytes
        ```
        Mend it on the default branch, then type the command again.
        ");
    })
    .await;
}

#[tokio::test]
async fn a_run_under_way_can_be_cancelled_under_a_broken_configuration() {
    World::run(async |w| {
        let number = w.issue();
        w.sandbox.next(Script::hangs());
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        w.rules("nonsense");
        w.say(number, "ada", "/zeblit cancel").await;
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Cancelled);
    })
    .await;
}

#[tokio::test]
async fn permissions_are_raised_and_lowered_per_verb() {
    World::run_with(
        |config| config.agents.ask = "demo-fix".into(),
        async |w| {
            w.rules("[permissions]\nfix = \"admin\"\nask = \"triage\"\nping = \"read\"\nstatus = \"write\"\n");
            insta::assert_snapshot!(w.hears("ada", "/zeblit fix").await.join("\n"), @"🚫 ada has `write` access; `fix` here needs `admin` (rule: `permissions.fix` in `.github/zeblit.toml`).");
            assert!(w.runs().await.is_empty());
            w.hears("max", "/zeblit fix").await;
            assert_eq!(w.runs().await.len(), 1);
            w.hears("tri", "/zeblit ask why?").await;
            assert_eq!(w.runs().await.len(), 2);
            assert!(w.hears("tri", "/zeblit status").await[0].starts_with("🚫"));
            // Whom one verb is opened for is not thereby told about the others.
            assert!(w.hears("bob", "/zeblit ping").await[0].starts_with("🏓"));
            assert_eq!(w.hears("bob", "/zeblit fix").await, Vec::<String>::new());
        },
    )
    .await;
}

#[tokio::test]
async fn strangers_are_answered_where_the_repository_says_so() {
    World::run(async |w| {
        w.rules("answer_strangers = true\n");
        insta::assert_snapshot!(w.hears("bob", "/zeblit fix").await.join("\n"), @"🚫 bob has `read` access; `fix` here needs `write` (rule: `permissions.fix` in `.github/zeblit.toml`).");
        assert!(w.runs().await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_repository_that_turned_the_bot_off_hears_nothing_of_it() {
    World::run(async |w| {
        w.rules("enabled = false\n");
        for login in ["max", "tri", "bob"] {
            for text in ["/zeblit fix", "/zeblit help", "/zeblit fxi"] {
                assert_eq!(w.hears(login, text).await, Vec::<String>::new(), "{login} {text}");
            }
        }
        assert!(w.hub.writes().is_empty(), "{}", w.hub.transcript());
        w.rules("enabled = true\n");
        assert_eq!(w.hears("tri", "/zeblit ping").await.len(), 1);
    })
    .await;
}

#[tokio::test]
async fn rules_come_from_the_default_branch_and_never_from_a_pull_request() {
    World::run(async |w| {
        w.rules("[permissions]\nfix = \"admin\"\n");
        let (path, text) = agent("sneaky", "");
        w.hub.push_commit(
            REPO,
            "feature",
            &[(TOML, "image = \"evil:1\"\n[permissions]\nfix = \"triage\"\n"), (&path, &text)],
            "Easier",
        );
        let number = w.hub.open_pull(REPO, "ada", "feature", "main", "Easier");
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        assert!(w.own(number)[0].contains("needs `admin`"), "{:?}", w.own(number));
        w.say(number, "max", "/zeblit run sneaky").await;
        w.settle().await;
        assert!(w.own(number)[1].contains("There is no recipe `sneaky` here"), "{:?}", w.own(number));
        w.sandbox.next(Script::edit("src/app.py", "x = 42\n"));
        w.say(number, "max", "/zeblit fix").await;
        w.settle().await;
        let run = w.nth_run(1).await;
        assert_eq!((run.state, run.spec.image.as_str()), (RunState::Succeeded, "zeblit-agent:latest"));
    })
    .await;
}

#[tokio::test]
async fn a_default_branch_of_any_name_holds_the_rules_and_is_the_base() {
    World::run(async |w| {
        w.rules("enabled = false\n");
        w.hub.push_changes(REPO, "develop/next", &[(TOML, None)], "No rules");
        w.hub.state().repo_mut(REPO).default_branch = "develop/next".into();
        w.fix(Script::edit("src/app.py", "x = 42\n")).await;
        assert_eq!(w.state_of(1).await, RunState::Succeeded);
        assert_eq!(w.hub.pulls(REPO)[0].pull.as_ref().expect("a pull request").base_ref, "develop/next");
    })
    .await;
}

#[tokio::test]
async fn an_empty_repository_is_told_that_it_has_no_commit() {
    World::run(async |w| {
        w.hub.add_repo("octo/empty", &[]);
        w.hub.set_role("octo/empty", "ada", "write");
        let number = w.hub.open_issue("octo/empty", "ada", "Begin", "");
        let comment = w.hub.comment("octo/empty", number, "ada", "/zeblit fix");
        w.deliver(&w.hub.comment_created("octo/empty", comment)).await;
        w.settle().await;
        let own: Vec<String> = w
            .hub
            .own_comments("octo/empty", number)
            .iter()
            .map(|text| crate::world::without_markers(text))
            .collect();
        insta::assert_snapshot!(own.join("\n"), @"😕 This repository has no commit yet.");
        assert!(w.runs().await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_repository_may_add_agents_but_not_replace_those_of_the_server() {
    World::run(async |w| {
        let (path, text) = agent("fixer", "");
        w.hub.push_commit(REPO, "main", &[(&path, &text)], "Mine now");
        insta::assert_snapshot!(w.hears("ada", "/zeblit fix").await.join("\n"), @r"
        😕 The agents of this repository (`.github/zeblit/`) cannot be read, so I start nothing.

        ```
        agent `fixer` (.github/zeblit/agents/fixer.md): the name is taken by agents/fixer.md; give the file another name
        ```
        Mend them on the default branch, then type the command again.
        ");
        assert!(w.runs().await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn broken_agents_are_told_with_file_and_line() {
    World::run(async |w| {
        let mut told = Vec::new();
        for text in [
            "no front matter at all\n",
            "---\nname: broken\n---\n",
            "---\nname: other\ndescription: x\nadapter: command\nargv: [true]\n---\n",
            "---\nname: broken\ndescription: x\nadapter: shell\nargv: [true]\n---\n",
            "---\nname: broken\ndescription: x\nadapter: command\nargv: []\n---\n",
            "---\nname: broken\ndescription: x\nadapter: command\nargv: [sh, -c, \"echo {args}\"]\n---\n",
            "---\nname: broken\ndescription: x\nadapter: command\nargv: [true]\nfrobnicate: 1\n---\n",
            "---\nname: broken\ndescription: x\nadapter: claude\nskills: [nowhere]\n---\nText.\n",
        ] {
            w.hub.push_commit(REPO, "main", &[(".github/zeblit/agents/broken.md", text)], "An agent");
            let own = w.hears("ada", "/zeblit fix").await;
            assert_eq!(own.len(), 1, "{text}: {own:?}");
            told.push(own[0].lines().skip_while(|line| !line.starts_with("```")).nth(1).unwrap_or(&own[0]).to_owned());
        }
        assert!(w.runs().await.is_empty());
        insta::assert_snapshot!(told.join("\n"), @r"
        agent `broken` (.github/zeblit/agents/broken.md): line 1: the file must begin with a line `---`, then YAML, then another `---`
        agent `broken` (.github/zeblit/agents/broken.md): line 2: missing field `description`
        agent `broken` (.github/zeblit/agents/broken.md): line 2: `name` is `other`, but the file is called `broken.md`
        agent `broken` (.github/zeblit/agents/broken.md): line 4: `adapter`: unknown variant `shell`, expected one of command, claude, builtin, codex, opencode, gemini
        agent `broken` (.github/zeblit/agents/broken.md): line 5: `argv` is empty; `adapter: command` needs the program and its arguments
        agent `broken` (.github/zeblit/agents/broken.md): line 5: `argv` has `{args}` inside a longer element; write it as an element of its own
        agent `broken` (.github/zeblit/agents/broken.md): line 6: `frobnicate`: unknown field `frobnicate`, expected one of name, description, adapter, model, argv, tools, limits, skills, read_only, needs
        agent `broken` names the skill `nowhere`, which is not there
        ");
        assert_eq!(w.hears("bob", "/zeblit fix").await, Vec::<String>::new(), "strangers hear nothing of it");
    })
    .await;
}

#[tokio::test]
async fn broken_agents_keep_nobody_from_cancel_and_help() {
    World::run(async |w| {
        let number = w.issue();
        w.sandbox.next(Script::hangs());
        w.say(number, "ada", "/zeblit fix").await;
        w.settle().await;
        let long = format!("---\nname: broken\n---\n{}", "x".repeat(2 * 1024 * 1024));
        w.hub.push_commit(REPO, "main", &[(".github/zeblit/agents/broken.md", &long)], "An agent");
        w.say(number, "ada", "/zeblit cancel").await;
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Cancelled);
        let help = w.hears("tri", "/zeblit help").await;
        insta::assert_snapshot!(help[0].lines().last().expect("a line"), @"This repository's rules stand in `.github/zeblit.toml` on its default branch. ⚠️ Its own agents cannot be read now: .github/zeblit/agents/broken.md: cannot be read: the reply is larger than 1048576 bytes.");
        // Turned off is turned off, whatever the agents are.
        w.rules("enabled = false\n");
        assert_eq!(w.hears("ada", "/zeblit fix").await, Vec::<String>::new());
    })
    .await;
}

#[tokio::test]
async fn a_readme_between_the_agents_is_no_agent() {
    World::run(async |w| {
        let (path, text) = agent("mine", "");
        let files = [
            (".github/zeblit/agents/README.md", "# Our agents\n"),
            (".github/zeblit/agents/notes.txt", "x"),
            (path.as_str(), text.as_str()),
        ];
        w.hub.push_commit(REPO, "main", &files, "Agents");
        let number = w.issue();
        w.say(number, "ada", "/zeblit run mine").await;
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Nothing);
    })
    .await;
}
