//! What was pushed is prepared before a run asks for it.

use crate::world::sandbox::Script;
use crate::world::{REPO, World};
use axum::http::StatusCode;
use std::path::PathBuf;
use zeblit::domain::run::RunState;
use zeblit::engine::seeds::{self, Seen};
use zeblit::git::Layout;

/// The commits that have a seed.
fn seeds_of(w: &World) -> Vec<String> {
    let remote = w.app.config.state_dir.join("seeds/github");
    let folders = |folder: PathBuf| {
        std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
    };
    let mut found: Vec<String> = folders(remote)
        .flat_map(folders)
        .map(|seed| seed.file_name().unwrap().to_string_lossy().split('-').next().unwrap().to_owned())
        .collect();
    found.sort();
    found
}

/// What the fetches have brought.
fn packs(w: &World) -> Vec<PathBuf> {
    let repository = w.hub.repo(REPO).id;
    let folder = w.app.git.mirror_path("github", repository).join("objects/pack");
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

#[tokio::test]
async fn a_push_brings_the_mirror_and_the_seed_up_to_date() {
    World::run(async |w| {
        let mut seen = Seen::default();
        let before = w.hub.head(REPO, "main").unwrap();
        let push = w.hub.push_event(REPO, "main", &before, "ada");
        assert_eq!(w.deliver(&push).await, StatusCode::ACCEPTED);
        w.settle().await;
        // Nobody has asked for a run there yet: there is no mirror, and none is made.
        assert_eq!(seeds::tick(&w.app, &mut seen).await.unwrap(), 0);
        w.fix(Script::edit("src/app.py", "def answer():\n    return 42\n")).await;

        let mut heads = Vec::new();
        for n in 0..3 {
            heads.push(w.hub.push_commit(REPO, "main", &[("note.txt", &format!("{n}\n"))], "Note"));
            let push = w.hub.push_event(REPO, "main", &before, "ada");
            assert_eq!(w.deliver(&push).await, StatusCode::ACCEPTED);
        }
        let other = w.hub.push_commit(REPO, "topic", &[("topic.txt", "x\n")], "Topic");
        assert_eq!(w.deliver(&w.hub.push_event(REPO, "topic", &before, "ada")).await, StatusCode::ACCEPTED);
        w.settle().await;
        assert_eq!(seeds::tick(&w.app, &mut seen).await.unwrap(), 1, "the newest head, once");
        assert_eq!(seeds::tick(&w.app, &mut seen).await.unwrap(), 0, "and not again");
        let (newest, old) = heads.split_last().unwrap();
        if w.app.git.layout() == Layout::Overlay {
            let there = seeds_of(w);
            assert!(there.contains(newest), "{there:?}");
            assert!(!there.contains(&other) && old.iter().all(|head| !there.contains(head)), "{there:?}");
        }

        // The run finds everything there.
        let before = packs(w);
        w.fix(Script::edit("src/app.py", "def answer():\n    return 43\n")).await;
        assert_eq!(w.state_of(2).await, RunState::Succeeded);
        assert_eq!(packs(w), before, "nothing was fetched");
    })
    .await;
}
