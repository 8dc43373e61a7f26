//! The main job: a comment becomes a pull request.

use crate::world::sandbox::Script;
use crate::world::{REPO, World};
use zeblit::domain::run::RunState;

#[tokio::test]
async fn a_comment_becomes_a_draft_pull_request() {
    World::run(async |w| {
        let number = w
            .fix(Script::edit("src/app.py", "def answer():\n    return 42\n").and_print("changed the answer"))
            .await;
        assert_eq!(w.state_of(1).await, RunState::Succeeded);
        let pulls = w.hub.pulls(REPO);
        assert_eq!(pulls.len(), 1);
        assert_eq!(w.own(number).len(), 1, "one sticky comment: {:?}", w.own(number));
        insta::assert_snapshot!(w.hub.transcript(), @r"
        eyes on Comment(1005) of octo/demo
        push octo/demo refs/heads/zeblit/1-the-answer-is-wrong-k0001 none..812363e
        draft pull request octo/demo#2 zeblit/1-the-answer-is-wrong-k0001 -> main: The answer is wrong
        comment 1014 on octo/demo#1: **✅ Draft pull request #2 · 1s**
        check 1016 `zeblit` on octo/demo@812363e: completed/success
        rocket on Comment(1005) of octo/demo
        ");
        insta::assert_snapshot!(w.own(number)[0], @r"
        **✅ Draft pull request #2 · 1s**

        [#2](https://hub.example/octo/demo/pull/2) · 1 commit · 1 file, +1 −1

        ```
        changed the answer
        ```

        <sub>run `run_0001` for ada · `demo-fix` · [log](https://zeblit.example/runs/run_0001?e=1775379600&s=b19d6183fab7f1cb1fcf1aee81eb1ef3)</sub>
        ");
    })
    .await;
}
