//! Purpose: `zeblit help [TOPIC]`: short guides, made from the same tables as the program where there is one.

use super::args::Cli;
use super::output::{CliError, Exit, Output};
use crate::domain::command::VERBS;
use clap::CommandFactory;

/// Name, one line, text.
const GUIDES: &[(&str, &str, &str)] = &[
    (
        "setup",
        "From nothing to a bot on your repositories",
        "1. zeblit demo            see it work on this machine, without any account
2. zeblit help github-app make a GitHub App for it
3. zeblit config example > zeblit-server.toml
                          write `[github]`, `server.public_url` and a model key
4. zeblit doctor          check everything; each failure names its fix
5. zeblit serve           then comment `/zeblit help` on an issue
",
    ),
    (
        "github-app",
        "Make the GitHub App and connect it",
        "1. On GitHub: Settings, Developer settings, GitHub Apps, New GitHub App.
   Webhook URL: <server.public_url>/webhooks/github, content type application/json.
   Webhook secret: a long random text, e.g. from `openssl rand -hex 32`.
2. Repository permissions: Checks, Contents, Issues and Pull requests: read and write. Metadata: read.
   Organization permissions: none. Never grant Workflows: agents may not change them.
   Optional: Actions: read. Then agents get the ends of the logs of failed workflows, else only annotations.
3. Subscribe to: Check run, Issue comment, Issues, Pull request, Pull request review,
   Pull request review comment, Push, Repository.
4. Generate a private key; keep the file readable by the server only (chmod 600).
5. In zeblit-server.toml:

   [server]
   public_url = \"https://zeblit.example.com\"
   [github]
   app_id = 12345
   private_key_file = \"github-app.pem\"
   webhook_secrets = [\"the webhook secret\"]

6. Install the App on your repositories; `zeblit doctor` says whether GitHub knows it.
GitHub Enterprise Server: set `github.api_url` and `github.git_url`, too, and `github.storage_urls` when it keeps
attachments and logs in an object store of its own.
",
    ),
    (
        "config",
        "Where settings come from",
        "Defaults, then the file (--config FILE, else zeblit-server.toml in the working directory), then variables:
`server.listen` is ZEBLIT_SERVER__LISTEN, `models.anthropic_api_key` is ZEBLIT_MODELS__ANTHROPIC_API_KEY.
Lists are TOML (`[\"a\", \"b\"]`) or separated by commas. An empty variable counts as not set.

zeblit config example     every key with its default
zeblit config check       what is in effect; secrets are never printed

A repository's own settings are in its `.github/zeblit.toml`, on the default branch.
Logs: ZEBLIT_LOG=debug, or e.g. ZEBLIT_LOG=zeblit=debug,info.
",
    ),
    (
        "egress",
        "Hosts that runs may reach, and what runs ahead of agents",
        "By default a container reaches nothing but the model, through the server. The server's list says what
repositories may choose from: bundles (crates, npm, pypi, go, maven, debian) and names of hosts.

zeblit-server.toml:                        .github/zeblit.toml, on the default branch:
   [egress]                                   [egress]
   allow = [\"npm\", \"pypi\"]                  allow = [\"pypi\"]        # the agent
                                              [setup]
                                              command = [\"npm\", \"ci\"] # or the name of a recipe
                                              egress = [\"npm\"]        # the setup only
                                              cache = [\".npm\"]        # below HOME

Programs find the proxy in HTTPS_PROXY and HTTP_PROXY. Rules: TLS on port 443, its hello names the host that was
asked for, no Encrypted Client Hello; plain HTTP for `debian` only, GET and HEAD, URLs up to 2048 bytes, no body.
Names are resolved once; private, local and metadata addresses are refused, whatever a name resolves to.
Inside TLS the server sees nothing: what may be sent in all is bounded by `egress.upload_kib`. Every host, verdict
and byte count is in the table `egress`; hosts that were refused are in the run's report with the line to add.

The setup runs before the agent in a container of its own, with a HOME of its own. It is followed by a clean-up: tracked
files are as before, what it left beside them stays for the agent and out of the result. Caches are writable for
setups only. Runs that start from the default branch share one; every pull request and every branch of ours has its
own. On pull requests from forks there is no setup.
",
    ),
    (
        "sandbox",
        "What a container may use, and how its disk is kept",
        "One container per attempt: no network, no capabilities, read-only root, own list of system calls, limits of memory,
processors, processes and log. What the engine applied is read back before the agent starts; `zeblit doctor` shows it.

Mounts      The engine cannot set nosuid and nodev on bind mounts, but they take the flags of the host's mount. As root,
            `zeblit serve` mounts `state_dir` (nosuid,nodev) and the folder of sockets (noexec, too) on themselves at
            start. The mounts stay: before you delete the folders, `umount` them. `sandbox.strict` requires the flags.
Disk        `sandbox.disk = \"watch\"` measures workspace, output and home twice a second (less often when they are
            large, more often when they grow) and stops a run above `disk_mib` or `disk_files`. It is soft: what is
            written between two looks comes on top.
            `sandbox.disk = \"loop\"` gives each run an ext4 file system of that size: the kernel refuses the first byte
            too many. Needs root, loop devices, e2fsprogs. 64 MiB beside the limit are kept back, so that the partial
            work of a full disk can be collected. The disk is removed with the run.
Workspace   An overlay on a checkout that is prepared ahead, in milliseconds and without a copy; needs root and ext4, xfs
            or btrfs. `sandbox.workspace = \"checkout\"` gives each run a checkout of its own, which takes seconds for
            large repositories. `sandbox.cache_mib` bounds mirrors and checkouts: what was not used for longest goes.
Warm slots  Up to `sandbox.warm_slots` containers are started ahead, as many as the recent starts ask for, each for one
            run; a run enters one in milliseconds, else it starts cold. Needs root; 0 turns it off.
gVisor      `sandbox.runtime = \"runsc\"`: needs `runsc install -- --host-uds=open`; the start and `zeblit doctor` open
            the socket from inside and say so.
Shell       `zeblit shell RUN` opens a shell in a running container, on the server's machine; it is in the audit log.
",
    ),
    (
        "inputs",
        "What an agent is given, and what of it is believed",
        "The words of the request are the instruction. Everything else is fenced as data, stripped of characters and markup
that people do not see, and labelled with its author and whether the author may write to the repository: the forge is
asked for each role when the run starts. Comments that were written or edited after the command are left out.

Attached files: images (PNG, JPEG, GIF, WebP, at most 8000 x 8000) and texts in UTF-8 that the request, the issue or
pull request and its comments show. The server fetches them, from the forge and its storage only, looks at their bytes
and puts them below HOME as attachments/01-name.log; texts longer than 256 KiB lose their middle. Everything else (ZIP,
PDF, SVG, HTML, programs) is left out and named in the prompt and in the run's log, as is what cannot be fetched.
   [inputs]
   attachments = 10          0: none
   attachment_kib = 5120     one
   attachments_kib = 20480   all of a run
GitHub gives Apps the images of private repositories, but not other files attached there.

Checks: on a pull request, the failed checks of its commit with their annotations, and the last 200 lines of the logs of
five failed workflow jobs (needs the App's permission Actions: read). They lie in context/ci.txt below HOME.

Agents that speak MCP read all of it with the tool `context` too: subject, conversation, reviews, attachments, ci.
",
    ),
    (
        "modes",
        "What becomes of a result, and who must look at it first",
        "A branch that the bot pushes starts the workflows of the repository, as any push does, and with its secrets.
`publish.mode` (for single repositories: `publish.repositories`) says how far a result gets. A repository may set
`push = ...` in `.github/zeblit.toml`; the stricter of both counts.

trusted         The branch is pushed at once and a draft pull request opened. Code that an agent wrote then runs in
                your workflows. Protect secrets with environments that need a reviewer.
approve-first   The change is kept and shown. Somebody with write access reads it and types `/zeblit ok <commit>`;
                then it is checked once more and pushed. `/zeblit cancel` drops it, and so do
                `publish.approval_days`. No workflow sees the change before a person did.
fork            The branch goes to a fork that the account `publish.fork_owner` owns, and the pull request comes
                from there: workflows get no secrets and a read-only token. The App needs write access to the fork
                (install it there); in the repository, reading its contents is enough. Make the fork once by hand and keep
                its default branch in step. On pull requests of the repository itself the result is a patch.

Dry run: `/zeblit fix --staged`, `staged = true` (repository) or `publish.staged = true` (server): everything runs,
nothing is pushed or opened, and the comment shows what would be.

Pull requests from forks: `review` and `ask` run none of their code. Every other command needs `/zeblit ok <commit>`
for exactly the present head by somebody with write access; any later push voids it. The result is a patch: nothing
is ever pushed to a stranger's fork. Approvals are in the audit log.
",
    ),
    (
        "kept",
        "Files and conversations that runs leave",
        "Files for download. In .github/zeblit.toml, on the default branch:

   artifacts = [\"coverage/**\", \"report.html\"]   # `*` within a part of a path, `**` across parts

When the agent has ended, files of its workspace that match are kept: at most 100, of 16 MiB each and 64 MiB together;
links are not followed. They stay out of the commits, unless they are tracked in Git. A file with a secret of this
server is withheld; what looks like a secret is masked in text, and withheld otherwise; archives are not opened. The
report says what was left out. They are on the run page, at /api/v1/runs/ID/artifacts, and here:

zeblit artifacts RUN                 lists them
zeblit artifacts RUN --save FOLDER   saves them; nothing that is there is overwritten

An agent made them and nobody has looked: treat them as you would a stranger's file. They are kept for
`retention.artifacts_days` days.

Conversations. `/zeblit continue` (also as the answer to a question) goes on with the conversation of the run before, if
that had the same agent, on code of the same trust, and its session is kept: for `retention.sessions_days` days, up to
32 MiB. The agent is told only what is new. Of its HOME nothing else comes back: no settings, hooks, memories or skills.
Claude Code, Codex, opencode and Gemini CLI can do it; the built-in agent and recipes cannot. When there is nothing to go
on with, or the program does not take it, the run begins anew with a summary, and the report says so.
",
    ),
    ("commands", "What people type in issues and pull requests", ""),
    (
        "webhooks",
        "How deliveries are answered, and how to test them",
        "POST /webhooks/github, /webhooks/jira, /webhooks/sentry
202 stored   200 known already   401 signature   400 no delivery id   413 too large
404 source disabled (no secret)   408 body too slow   503 try again (Retry-After)

zeblit send-webhook --comment '/zeblit fix' --repo octo/shop --number 7
zeblit send-webhook --source github --event issues --secret-env SECRET --url http://host/webhooks/github payload.json
zeblit deliveries         what came and what became of it
zeblit replay ID          handle one again, or queue the request of a run again

To rotate a secret: write both in `webhook_secrets`, change it at the sender, remove the old one.
",
    ),
    (
        "api",
        "Operate a server from elsewhere",
        "zeblit token create ci    on the server; prints the token once
export ZEBLIT_URL=https://zeblit.example.com ZEBLIT_TOKEN=zbl_…
zeblit status             now asks that server; so do budget, logs, artifacts, cancel, retry, pause, resume,
                          deliveries, replay, audit

The API itself, with `Authorization: Bearer zbl_…`, under /api/v1:
GET  status   runs?state=&repo=&open=true&limit=   runs/ID   runs/ID/log?after=   deliveries   audit
     runs/ID/artifacts   runs/ID/artifacts/PATH   budget?run=   budget/runs?month=2026-11&after=
POST runs/ID/cancel   runs/ID/retry   replay/ID   pause {\"why\": \"…\"}   resume
Errors are {\"error\": {\"code\": \"…\", \"message\": \"…\"}}. Each use that changes something is in `zeblit audit`.
",
    ),
    (
        "exit-codes",
        "What the exit code of a command means",
        "0  ok
1  the answer is no: a check failed, a delivery was refused, the demo's pull request is not correct
2  error: wrong arguments, no database, no connection
",
    ),
];

pub fn run(topic: Option<&str>, output: Output) -> Result<Exit, CliError> {
    let Some(topic) = topic else {
        output.text(overview())?;
        return Ok(Exit::Ok);
    };
    if topic == "commands" {
        output.text(commands())?;
    } else if let Some((_, _, text)) = GUIDES.iter().find(|(name, _, _)| *name == topic) {
        output.text(text)?;
    } else if let Some(command) = Cli::command().find_subcommand_mut(topic) {
        let mut command = command.clone().bin_name(format!("zeblit {topic}"));
        output.text(command.render_long_help().to_string())?;
    } else {
        return Err(CliError::new(format!("there is no guide and no command `{topic}`"))
            .hint("`zeblit help` lists all"));
    }
    Ok(Exit::Ok)
}

fn overview() -> String {
    let mut out = Cli::command().render_help().to_string();
    out.push_str("\nGuides:\n");
    for (name, about, _) in GUIDES {
        out.push_str(&format!("  zeblit help {name:<12}  {about}\n"));
    }
    out
}

/// The table of verbs, as `/zeblit help` shows it.
fn commands() -> String {
    let mut out = String::from("Typed at the start of a line in an issue, a pull request or a review:\n\n");
    for info in VERBS {
        out.push_str(&format!(
            "{}\n    {} Needs the role `{}`.\n",
            info.usage,
            info.about,
            info.default_role.name()
        ));
    }
    out.push_str("\nFlags: --agent NAME  --model NAME  --base BRANCH  --budget USD\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guides_have_their_own_names_and_are_listed() {
        let overview = overview();
        for (name, _, text) in GUIDES {
            assert!(overview.contains(&format!("zeblit help {name}")), "{name}");
            assert!(*name == "commands" || text.ends_with('\n'), "{name}");
            assert!(
                Cli::command().find_subcommand(name).is_none() || *name == "config",
                "{name} is a command, too"
            );
        }
    }

    #[test]
    fn every_verb_is_in_the_guide_of_commands() {
        let text = commands();
        for info in VERBS {
            assert!(text.contains(info.usage), "{}", info.usage);
        }
    }

    #[test]
    fn an_unknown_topic_says_where_to_look() {
        let error = run(Some("nonsense"), Output).unwrap_err();
        assert_eq!(error.hint.as_deref(), Some("`zeblit help` lists all"));
    }
}
