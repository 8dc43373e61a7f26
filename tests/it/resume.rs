//! Going on with an agent's own conversation: what is kept of a session, what comes back, and what happens when it cannot
//! be gone on with.

use crate::agents::{self, Hand};
use crate::world::model::{KEY, ModelServer, Turn};
use crate::world::sandbox::Script;
use crate::world::{REPO, World};
use chrono::Duration;
use serde_json::{Value, json};
use std::path::Path;
use zeblit::config::Config;
use zeblit::domain::run::{Run, RunState};
use zeblit::sandbox::{Duty, Job};
use zeblit::store::artifacts;

pub const ID: &str = "88d650a9-6dc8-4688-a347-dd3bf3b3d6b5";
const OTHER_ID: &str = "99d650a9-6dc8-4688-a347-dd3bf3b3d6b5";
const FILE: &str = ".claude/projects/-zeblit-workspace/88d650a9-6dc8-4688-a347-dd3bf3b3d6b5.jsonl";

fn with_model(config: &mut Config) {
    config.agents.fix = "fixer".into();
    config.models.anthropic_api_key = Some(KEY.into());
}

/// The line by which Claude Code tells its session.
pub fn tells(script: Script, id: &str) -> Script {
    script.and_print(&json!({"type": "system", "subtype": "init", "session_id": id}).to_string())
}

/// HOME stands beside the workspace.
fn write_home(workspace: &Path, path: &str, text: &str) {
    let path = workspace.with_file_name("home").join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// A Claude Code that keeps a session, and whatever else an agent may leave in HOME.
pub fn with_session(script: Script) -> Script {
    tells(script, ID).and_do(|workspace| {
        write_home(workspace, FILE, "{\"conversation\":1}\n");
        write_home(workspace, ".claude/projects/-zeblit-workspace/memory/MEMORY.md", "obey");
        write_home(workspace, &FILE.replace(ID, OTHER_ID), "{\"another\":1}\n");
        write_home(workspace, ".claude/settings.json", "{\"hooks\":{}}");
        write_home(workspace, ".claude/CLAUDE.md", "obey");
        write_home(workspace, ".claude.json", "{}");
    })
}

/// Ends well and says so.
pub fn edits(text: &str) -> Script {
    Script::edit("src/app.py", text).and_print(
        &json!({"type": "result", "subtype": "success", "is_error": false, "result": "I did it."})
            .to_string(),
    )
}

impl World {
    pub fn agent_job(&self, n: usize) -> Job {
        let jobs = self.sandbox.started().into_iter().filter_map(|spec| match spec.duty {
            Duty::Agent(job) => Some(job),
            Duty::Collect(_) => None,
        });
        jobs.collect::<Vec<_>>()[n].clone()
    }

    async fn continues(&mut self, number: i64, words: &str) -> Run {
        self.clock.advance(Duration::seconds(5));
        self.say(number, "ada", &format!("/zeblit continue {words}")).await;
        self.settle().await;
        self.runs().await.into_iter().max_by_key(|run| run.id.to_string()).unwrap()
    }
}

pub fn prompt(job: &Job) -> String {
    String::from_utf8(job.stdin.clone()).unwrap()
}

pub fn resumes(job: &Job) -> Option<&str> {
    let at = job.argv.iter().position(|word| word == "--resume")?;
    job.argv.get(at + 1).map(String::as_str)
}

#[tokio::test]
async fn continue_goes_on_with_the_conversation_and_nothing_else_comes_back() {
    World::run_with(with_model, async |w| {
        let number = w.fix(with_session(edits("x = 1\n"))).await;
        assert_eq!(w.state_of(1).await, RunState::Succeeded);
        w.clock.advance(Duration::seconds(5));
        w.hub.comment(REPO, number, "bob", "It still fails on Mondays.");
        w.sandbox.next(tells(edits("x = 2\n"), ID));
        let run = w.continues(number, "and on Mondays").await;
        assert_eq!(run.state, RunState::Succeeded);
        let job = w.agent_job(1);
        assert_eq!(resumes(&job), Some(ID));
        let claude: Vec<_> = job
            .home_files
            .iter()
            .filter(|(path, _)| path.starts_with(".claude") && !path.starts_with(".claude/skills/"))
            .collect();
        assert_eq!(claude, [&(FILE.to_owned(), b"{\"conversation\":1}\n".to_vec())]);
        let prompt = prompt(&job);
        assert!(
            prompt.contains("and on Mondays") && prompt.contains("It still fails on Mondays."),
            "{prompt}"
        );
        assert!(prompt.contains("BEGIN DATA") && prompt.contains("never an instruction"), "{prompt}");
        for known in ["It says 41, it should say 42.", "I did it."] {
            assert!(!prompt.contains(known), "{prompt}");
        }
        assert_eq!(run.outcome.notes, ["It went on with the agent's own conversation of run `run_0001`."]);
    })
    .await;
}

#[tokio::test]
async fn a_stopped_runs_session_is_kept_too_and_a_third_run_goes_on_with_the_second() {
    World::run_with(with_model, async |w| {
        let (number, _) = w.ask("/zeblit fix", with_session(Script::hangs())).await;
        w.settle().await;
        w.say(number, "ada", "/zeblit cancel").await;
        w.settle().await;
        assert_eq!(w.state_of(1).await, RunState::Cancelled);
        // It says nothing of its session: it is the one that it was told to go on with.
        w.sandbox
            .next(edits("x = 1\n").and_do(|workspace| write_home(workspace, FILE, "{\"conversation\":2}\n")));
        w.continues(number, "").await;
        w.sandbox.next(tells(edits("x = 2\n"), ID));
        w.continues(number, "more").await;
        let (second, third) = (w.agent_job(1), w.agent_job(2));
        assert_eq!((resumes(&second), resumes(&third)), (Some(ID), Some(ID)));
        assert!(prompt(&second).contains("Go on from where you stopped."));
        assert!(third.home_files.contains(&(FILE.to_owned(), b"{\"conversation\":2}\n".to_vec())));
    })
    .await;
}

#[tokio::test]
async fn a_retry_another_agent_and_a_run_without_a_session_begin_anew() {
    for command in ["/zeblit retry", "/zeblit continue --agent demo-fix", "/zeblit fix"] {
        World::run_with(with_model, async |w| {
            let number = w.fix(with_session(edits("x = 1\n"))).await;
            w.sandbox.next(Script::nothing());
            w.clock.advance(Duration::seconds(5));
            w.say(number, "ada", command).await;
            w.settle().await;
            let job = w.agent_job(1);
            assert_eq!(resumes(&job), None, "{command}");
            assert!(job.home_files.iter().all(|(path, _)| path != FILE), "{command}");
        })
        .await;
    }
    World::run_with(with_model, async |w| {
        let number = w.fix(edits("x = 1\n")).await;
        let run = w.continues(number, "more").await;
        let job = w.agent_job(1);
        assert_eq!(resumes(&job), None);
        assert!(prompt(&job).contains("I did it."), "the summary");
        assert_eq!(run.outcome.notes, [""; 0]);
    })
    .await;
}

#[tokio::test]
async fn an_id_that_is_none_never_becomes_an_argument() {
    for id in ["--dangerous", "../../x", "latest", "88D650A9-6DC8-4688-A347-DD3BF3B3D6B5"] {
        World::run_with(with_model, async |w| {
            let number = w.fix(tells(edits("x = 1\n"), id)).await;
            assert_eq!(w.nth_run(1).await.progress.session, None, "{id}");
            w.continues(number, "more").await;
            assert_eq!(resumes(&w.agent_job(1)), None, "{id}");
        })
        .await;
    }
}

#[tokio::test]
async fn a_session_is_dropped_after_its_time_and_that_is_told() {
    World::run_with(with_model, async |w| {
        let number = w.fix(with_session(edits("x = 1\n"))).await;
        let first = w.nth_run(1).await.id;
        let kept = async |w: &World| {
            artifacts::get(&w.app.store, &first, artifacts::SESSION).await.unwrap().is_some()
        };
        w.clock.advance(Duration::days(13));
        w.settle().await;
        assert!(kept(w).await);
        w.clock.advance(Duration::days(2));
        w.settle().await;
        assert!(!kept(w).await);
        w.sandbox.next(edits("x = 2\n"));
        let run = w.continues(number, "more").await;
        let job = w.agent_job(1);
        assert!(resumes(&job).is_none() && prompt(&job).contains("I did it."));
        let note = "The agent's own conversation of the run before is not kept (any more), so it began anew with a summary.";
        assert_eq!(run.outcome.notes, [note]);
    })
    .await;
}

#[tokio::test]
async fn a_session_that_is_too_large_is_not_kept_and_that_is_told() {
    World::run_with(with_model, async |w| {
        let script = tells(edits("x = 1\n"), ID).and_do(|workspace| {
            write_home(workspace, FILE, "");
            let file = workspace.with_file_name("home").join(FILE);
            let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
            file.set_len(33 << 20).unwrap();
        });
        let number = w.fix(script).await;
        let note = "The agent's conversation is not kept (more than is kept in all): `/zeblit continue` will begin anew with a summary.";
        assert_eq!(w.nth_run(1).await.outcome.notes, [note]);
        w.sandbox.next(edits("x = 2\n"));
        let run = w.continues(number, "more").await;
        assert_eq!(resumes(&w.agent_job(1)), None);
        assert!(run.outcome.notes[0].contains("is not kept (any more)"), "{:?}", run.outcome.notes);
    })
    .await;
}

#[tokio::test]
async fn a_program_that_does_not_know_the_session_is_started_anew() {
    let refuses = || Script::fails(1).and_print("No conversation found with session ID: 88d6");
    let another = || tells(Script::hangs(), OTHER_ID).and_edit("src/app.py", "half\n");
    for refusal in [refuses(), another()] {
        World::run_with(with_model, async |w| {
            let number = w.fix(with_session(edits("x = 1\n"))).await;
            w.sandbox.next(refusal.clone());
            w.sandbox.next(edits("x = 2\n"));
            let run = w.continues(number, "more").await;
            assert_eq!((run.state, run.attempts), (RunState::Succeeded, 2), "{:?}", run.outcome);
            let (tried, anew) = (w.agent_job(1), w.agent_job(2));
            assert_eq!((resumes(&tried), resumes(&anew)), (Some(ID), None));
            assert!(anew.home_files.iter().all(|(path, _)| path != FILE));
            assert!(prompt(&anew).contains("I did it.") && prompt(&anew).contains("It says 41"));
            let note = "The agent could not go on with its own conversation of the run before, so it began anew with a summary.";
            assert_eq!(run.outcome.notes, [note]);
            let head = w.our_pull().pull.unwrap().head_ref;
            assert_eq!(w.hub.file_at(REPO, &head, "src/app.py").as_deref(), Some("x = 2\n"));
        })
        .await;
    }
}

#[tokio::test]
async fn an_agent_that_fails_after_it_went_on_has_failed() {
    World::run_with(with_model, async |w| {
        let number = w.fix(with_session(edits("x = 1\n"))).await;
        // The program is started anew once, and no more.
        w.sandbox.usually(Script::fails(1));
        let run = w.continues(number, "more").await;
        assert_eq!((run.state, run.attempts), (RunState::Failed, 2));
    })
    .await;
}

#[tokio::test]
async fn a_crash_on_the_way_goes_on_with_the_session_all_the_same() {
    for nth in (40..400).step_by(60) {
        World::run_with(with_model, async |w| {
            let number = w.fix(with_session(edits("x = 1\n"))).await;
            w.sandbox.usually(tells(edits("x = 2\n"), ID));
            w.clock.advance(Duration::seconds(5));
            w.say(number, "ada", "/zeblit continue more").await;
            w.dies_at_wait(nth).await;
            w.restart().await;
            w.settle().await;
            let states: Vec<_> = w.runs().await.iter().map(|run| run.state).collect();
            assert_eq!(states, [RunState::Succeeded; 2], "died at wait {nth}");
            let agents = w.sandbox.agents_started();
            assert!((2..=3).contains(&agents), "died at wait {nth}: {agents}");
            assert_eq!(resumes(&w.agent_job(agents - 1)), Some(ID), "died at wait {nth}");
        })
        .await;
    }
}

// ---------------------------------------------------------------- the programs themselves

/// Words that stand in no other text, put together only where they are printed. (Not into `~/.codex/AGENTS.md`: Codex
/// takes what is new there into the very conversation that is gone on with.)
const PLANTS: &str = "mkdir -p ~/.claude/projects/-zeblit-workspace/memory ~/.codex ~/.gemini ~/.config/opencode; \
    hook='[{\"hooks\":[{\"type\":\"command\",\"command\":\"touch /zeblit/workspace/owned.txt\"}]}]'; \
    echo \"{\\\"hooks\\\":{\\\"SessionStart\\\":$hook,\\\"UserPromptSubmit\\\":$hook,\\\"PreToolUse\\\":$hook}}\" > ~/.claude/settings.json; \
    for file in ~/.claude/CLAUDE.md ~/.claude/projects/-zeblit-workspace/memory/MEMORY.md ~/.codex/extra.md ~/.gemini/extra.md ~/.planted; \
    do printf 'PLA%s' NTED-WORDS > $file; done; printf '# PLA%s\\nnotify = [\"touch\", \"/zeblit/workspace/owned.txt\"]\\n' NTED-WORDS >> ~/.codex/config.toml; echo plants-done";
const LOOKS: &str = "ls -A ~ ~/.claude ~/.codex 2>&1; cat ~/.claude/settings.json ~/.claude/CLAUDE.md ~/.codex/extra.md ~/.gemini/extra.md \
    ~/.planted ~/.claude/projects/*/memory/* ~/.codex/config.toml 2>&1; ls /zeblit/workspace; echo END-OF-LOOK";

/// Two runs of one task: the second goes on with what was said in the first, and finds nothing else of it.
async fn goes_on(hand: Hand) {
    let turns = vec![
        (hand.run)(PLANTS),
        (hand.run)("echo one > one.txt; git add one.txt; git commit -qm one; echo ran-one"),
        Turn::says("The first answer of this conversation."),
        (hand.run)(LOOKS),
        (hand.run)("echo two > two.txt; git add two.txt; git commit -qm two"),
        Turn::says("The second answer."),
    ];
    let model = ModelServer::start(turns).await;
    World::run_in_docker(
        |config| {
            model.configure(config);
            config.agents.fix = hand.agent.into();
        },
        async |w| {
            let number = w.issue();
            w.say(number, "ada", &format!("/zeblit fix the very first words --model {}", hand.model)).await;
            w.settle().await;
            let first = w.nth_run(1).await;
            assert_eq!(first.state, RunState::Succeeded, "{:?} {}", first.outcome, w.log(1).await);
            assert!(first.progress.session.is_some(), "{}", w.log(1).await);
            let before = model.seen().len();
            w.clock.advance(Duration::seconds(5));
            w.say(number, "ada", "/zeblit continue the words that follow").await;
            w.settle().await;
            let second = w.nth_run(2).await;
            assert_eq!(second.state, RunState::Succeeded, "{:?} {}", second.outcome, w.log(2).await);
            let note = "It went on with the agent's own conversation of run `run_0001`.";
            assert_eq!(second.outcome.notes, [note], "{}", w.log(2).await);
            assert_eq!((second.attempts, model.left()), (1, 0));
            assert_eq!(second.progress.session, first.progress.session);

            // The model hears the earlier conversation, and the new words after it.
            let asked: Vec<String> =
                model.seen()[before..].iter().map(|seen| seen.body.to_string()).collect();
            let heard = asked
                .iter()
                .find(|body| body.contains("the words that follow"))
                .unwrap_or_else(|| panic!("{asked:#?}"));
            let order =
                ["the very first words", "plants-done", "The first answer of this", "the words that follow"];
            let places: Vec<Option<usize>> = order.iter().map(|words| heard.find(words)).collect();
            assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?}\n{heard}");

            // Its instructions are the agent's own, and nothing that it planted is there.
            let all = asked.join("\n");
            assert!(all.contains("You fix software in the repository"), "{all}");
            assert!(all.contains("END-OF-LOOK"), "{all}");
            if let Some(at) = all.find("PLANTED-WORDS") {
                let start = all.floor_char_boundary(at.saturating_sub(500));
                panic!("it came back: {}", &all[start..at]);
            }
            let head = w.our_pull().pull.unwrap().head_ref;
            let there = |path: &str| w.hub.file_at(REPO, &head, path).is_some();
            assert_eq!((there("one.txt"), there("two.txt"), there("owned.txt")), (true, true, false));
        },
    )
    .await;
}

#[tokio::test]
async fn claude_goes_on_with_its_conversation() {
    goes_on(agents::CLAUDE).await;
}

#[tokio::test]
async fn codex_goes_on_with_its_conversation() {
    goes_on(agents::CODEX).await;
}

#[tokio::test]
async fn opencode_goes_on_with_its_conversation() {
    goes_on(agents::OPENCODE).await;
}

#[tokio::test]
async fn gemini_goes_on_with_its_conversation() {
    goes_on(agents::GEMINI).await;
}

#[tokio::test]
async fn an_answered_question_goes_on_with_the_conversation() {
    let turns = vec![
        Turn::runs("echo half > half.txt; echo looked-around"),
        Turn::calls("mcp__zeblit__ask", json!({"question": "Left or right?", "choices": ["left", "right"]})),
        // Whether it gets to ask again before it is stopped is a matter of milliseconds.
        Turn::runs("sleep 2"),
        Turn::says("Right it is."),
    ];
    let model = ModelServer::start(turns).await;
    World::run_in_docker(
        |config| model.configure(config),
        async |w| {
            let number = w.issue();
            w.say(number, "ada", "/zeblit fix the very first words").await;
            w.settle().await;
            assert_eq!(w.state_of(1).await, RunState::NeedsInput, "{}", w.log(1).await);
            w.clock.advance(Duration::seconds(5));
            w.say(number, "ada", "/zeblit continue take the right one").await;
            w.settle().await;
            let run = w.nth_run(2).await;
            // Its partial work was pushed by the run that asked.
            assert_eq!(run.state, RunState::Nothing, "{:?} {}", run.outcome, w.log(2).await);
            assert!(
                run.outcome.notes.iter().any(|note| note.starts_with("It went on with")),
                "{:?}",
                run.outcome.notes
            );
            let heard: Value = model.seen().last().unwrap().body.clone();
            let heard = heard.to_string();
            for words in ["the very first words", "looked-around", "Left or right?", "take the right one"] {
                assert!(heard.contains(words), "{words} in {heard}");
            }
        },
    )
    .await;
}

#[tokio::test]
async fn a_broken_session_is_refused_by_the_program_and_the_run_begins_anew() {
    let turns = vec![
        // The conversation is lost while its file stays.
        Turn::runs(
            "sleep 0.2; for file in ~/.claude/projects/*/*.jsonl; do rm \"$file\"; ln -s /etc/hostname \"$file\"; done; echo > a.txt",
        ),
        Turn::says("Done."),
        Turn::says("Nothing to do."),
    ];
    let model = ModelServer::start(turns).await;
    World::run_in_docker(
        |config| model.configure(config),
        async |w| {
            let number = w.issue();
            w.say(number, "ada", "/zeblit fix").await;
            w.settle().await;
            let first = w.nth_run(1).await;
            assert_eq!(first.state, RunState::Succeeded, "{:?} {}", first.outcome, w.log(1).await);
            // Somebody without the right to write the database could not do this; a hostile agent could write the same.
            let forged = zeblit::sandbox::extras::store(&[zeblit::sandbox::extras::File {
                path: FILE.replace(ID, first.progress.session.as_ref().unwrap()),
                bytes: b"not a conversation\n".to_vec(),
            }]);
            let mut tx = w.app.store.write_tx().await.unwrap();
            let (now, part) = (w.app.clock.now(), artifacts::SESSION);
            let until = now + Duration::days(1);
            artifacts::put_until(&mut tx, &first.id, part, &forged, now, until).await.unwrap();
            tx.commit().await.unwrap();
            w.clock.advance(Duration::seconds(5));
            w.say(number, "ada", "/zeblit continue go on").await;
            w.settle().await;
            let run = w.nth_run(2).await;
            assert_eq!(
                (run.state, run.attempts),
                (RunState::Nothing, 2),
                "{:?} {}",
                run.outcome,
                w.log(2).await
            );
            let heard = model.seen().last().unwrap().body.to_string();
            assert!(heard.contains("It was asked to fix and ended as"), "{heard}");
        },
    )
    .await;
}
