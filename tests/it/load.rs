//! What a running agent uses: samples, peaks, silence, and what is swept up after it.

use crate::world::sandbox::Script;
use crate::world::{REPO, World};
use axum::body::Body;
use axum::http::Request;
use tower::ServiceExt;
use zeblit::domain::budget::Budget;
use zeblit::domain::ids::{RunId, SlotId};
use zeblit::domain::run::{FailureClass, RunState};
use zeblit::engine::operate;
use zeblit::sandbox::Consumed;
use zeblit::store;
use zeblit::store::ledger::Reservation;

fn consumed(cpu_seconds: u64, mib: i64) -> Consumed {
    Consumed { cpu_nanos: cpu_seconds * 1_000_000_000, memory_bytes: mib << 20, processes: 3 }
}

/// A run whose agent hangs, under way.
async fn hanging(w: &mut World) -> i64 {
    let number = w.issue();
    w.sandbox.next(Script::hangs());
    w.say(number, "ada", "/zeblit fix").await;
    w.settle().await;
    assert_eq!(w.state_of(1).await, RunState::Running);
    number
}

#[tokio::test]
async fn load_is_sampled_and_its_peak_is_told() {
    World::run(async |w| {
        let number = hanging(w).await;
        for (seconds, mib) in [(1, 100), (16, 300), (20, 212)] {
            w.sandbox.uses(consumed(seconds, mib));
            w.clock.advance(chrono::Duration::seconds(10));
            w.settle().await;
        }
        let samples = store::samples::of_run(&w.app.store, &RunId::new("run_0001"), 100).await.unwrap();
        let memory: Vec<_> = samples.iter().map(|sample| sample.load.memory_bytes >> 20).collect();
        assert_eq!(memory, [100, 300, 212]);
        let peak = w.nth_run(1).await.progress.peak.unwrap();
        assert_eq!((peak.millicpus, peak.memory_bytes >> 20), (1500, 300));
        w.sandbox.finish_hanging();
        w.settle().await;
        assert!(w.sticky(number).contains(" · peak 300 MiB, 1.5 CPU, "), "{}", w.sticky(number));

        let page = w.app.signer.run_path("run_0001", w.app.clock.now().timestamp() + 60);
        let request = Request::get(page).body(Body::empty()).unwrap();
        let answer = zeblit::http::router(std::sync::Arc::clone(&w.app)).oneshot(request).await.unwrap();
        let bytes = axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        let html = String::from_utf8(bytes.to_vec()).unwrap();
        assert!(html.contains("Peak: 300 MiB, 1.5 CPU"), "{html}");
        assert_eq!(html.matches("<polyline").count(), 3);
    })
    .await;
}

#[tokio::test]
async fn a_silent_run_is_stopped_and_says_so() {
    // Less than half of the wall clock, so that this is what ends it.
    World::run_with(
        |config| config.sandbox.idle_minutes = 2,
        async |w| {
            let number = hanging(w).await;
            let idle = chrono::Duration::minutes(w.config.sandbox.idle_minutes);
            let minute = chrono::Duration::minutes(1);
            // A word of the agent starts the time again.
            w.clock.advance(idle - minute);
            w.sandbox.prints("still here");
            w.settle().await;
            w.clock.advance(idle - minute);
            w.settle().await;
            assert_eq!(w.state_of(1).await, RunState::Running);
            // So does a request to the model.
            let reservation = Reservation {
                run: RunId::new("run_0001"),
                request_id: "r1".into(),
                attempt: 1,
                model: "m".into(),
                micros: 1,
            };
            let budget = [Budget::of_run(&reservation.run, 1_000_000)];
            store::ledger::reserve(&w.app.store, &reservation, &budget, w.app.clock.now()).await.unwrap();
            w.clock.advance(minute);
            w.settle().await;
            assert_eq!(w.state_of(1).await, RunState::Running);
            w.clock.advance(minute);
            w.settle().await;
            let run = w.nth_run(1).await;
            assert_eq!((run.state, run.outcome.class), (RunState::Failed, Some(FailureClass::Timeout)));
            assert!(
                w.sticky(number).contains(
                    "The agent was stopped after 2 minutes without output and without a request to its model."
                ),
                "{}",
                w.sticky(number)
            );
            assert!(w.hub.pulls(REPO).is_empty());
        },
    )
    .await;
}

#[tokio::test]
async fn socket_folders_of_ended_attempts_are_swept_and_others_stay() {
    World::run(async |w| {
        hanging(w).await;
        let slot = store::attempts::open(&w.app.store).await.unwrap()[0].slot.clone();
        let live = w.app.socket_root.join(w.app.signer.sign("sockets", slot.as_str()));
        let dead = w.app.socket_root.join(w.app.signer.sign("sockets", "a-slot-of-a-dead-process"));
        let foreign = w.app.socket_root.join("somebody-elses");
        for folder in [&dead, &foreign] {
            std::fs::create_dir_all(folder).unwrap();
        }
        std::os::unix::net::UnixListener::bind(dead.join("broker.sock")).unwrap();
        w.restart().await;
        w.settle().await;
        assert!(live.exists() && foreign.exists() && !dead.exists());
        std::fs::remove_dir(&foreign).unwrap();
        w.sandbox.finish_hanging();
        w.settle().await;
        assert!(!live.exists());
    })
    .await;
}

#[tokio::test]
async fn a_shell_opens_in_a_running_container_only_and_is_written_down() {
    World::run_in_docker(
        |_| {},
        async |w| {
            let script = "import os, time\nprint('ready')\nwhile not os.path.exists(os.path.expanduser('~/go')):\n    time.sleep(0.05)";
            w.recipe_says("patient", script, "ready").await;
            let run = RunId::new("run_0001");
            let words = operate::shell(&w.app, &run, "host:uid-0").await.unwrap();
            let shell = |line: &str| {
                let done = std::process::Command::new(&words[0]).args(&words[1..]).args(["-c", line]).output();
                let done = done.unwrap();
                assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
                String::from_utf8_lossy(&done.stdout).trim().to_owned()
            };
            let (uid, gid) = w.app.sandbox.owner();
            assert_eq!(shell("id -u; id -g; pwd"), format!("{uid}\n{gid}\n/zeblit/workspace"));
            assert_eq!(
                shell("grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status | tr -s '\\t ' ' '"),
                "CapEff: 0000000000000000\nNoNewPrivs: 1\nSeccomp: 2"
            );
            assert_eq!(shell("cat /proc/net/dev | tail -n +3 | cut -d: -f1 | tr -d ' '"), "lo");
            let slot = SlotId::new(store::attempts::open(&w.app.store).await.unwrap()[0].slot.as_str());
            let used = w.app.sandbox.usage(&slot).await.unwrap().expect("it runs");
            assert!(used.cpu_nanos > 0 && used.memory_bytes > 1 << 20 && used.processes >= 2, "{used:?}");
            std::fs::write(w.run_folder(1).join("home/go"), "").unwrap();
            w.settle().await;
            assert_eq!(w.app.sandbox.usage(&slot).await.unwrap(), None);
            let refused = operate::shell(&w.app, &run, "host:uid-0").await.unwrap_err().to_string();
            assert!(refused.contains("its agent does not run"), "{refused}");
            let shells: Vec<_> = store::audit::list(&w.app.store, 100)
                .await
                .unwrap()
                .into_iter()
                .filter(|entry| entry.action == "shell")
                .map(|entry| (entry.actor, entry.subject))
                .collect();
            assert_eq!(shells, [("host:uid-0".to_owned(), "run_0001".to_owned())]);
        },
    )
    .await;
}
