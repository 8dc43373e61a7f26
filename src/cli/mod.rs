//! The command line: one file per command.
//!
//! Exit codes: 0 ok, 1 the answer is no, 2 error.

pub mod args;
mod artifacts;
pub mod backend;
pub mod backup;
pub mod budget;
pub mod config;
pub mod demo;
pub mod doctor;
pub mod guide;
pub mod nodes;
pub mod operate;
pub mod output;
pub mod run;
pub mod runs;
pub mod send_webhook;
pub mod serve;
mod service;
pub mod shell;
pub mod token;

use crate::config::LogFormat;
use crate::telemetry::{self, Audience};
use args::{Cli, Command};
use backend::Backend;
use clap::Parser;
use output::{CliError, Exit, Output};
use std::process::ExitCode;

/// Parses the arguments, runs the command, maps the result to an exit code (0 ok, 1 the answer is no, 2 error).
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output;
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output.error(&CliError::because("cannot start", &error));
            return ExitCode::from(2);
        }
    };
    let result = runtime.block_on(command(cli, output));
    // Blocking work of a command that has answered (a name lookup, a hash) is not waited for.
    runtime.shutdown_background();
    match result {
        Ok(Exit::Ok) => ExitCode::SUCCESS,
        Ok(Exit::No) => ExitCode::from(1),
        Err(error) if error.closed => ExitCode::SUCCESS,
        Err(error) => {
            output.error(&error);
            ExitCode::from(2)
        }
    }
}

async fn command(cli: Cli, output: Output) -> Result<Exit, CliError> {
    let file = cli.config.as_deref();
    // A server starts its own logging, in the format of its configuration; the demo shows its own.
    if !matches!(cli.command, Command::Serve(_) | Command::Demo(_) | Command::Run(_)) {
        telemetry::init(LogFormat::Text, Audience::Command);
    }
    match cli.command {
        Command::Serve(args) => serve::run(file, &args, output).await,
        Command::Demo(args) => Ok(verdict(demo::run(args).await?)),
        Command::Run(args) => Ok(verdict(run::run(cli.config, args).await?)),
        Command::Status(args) => runs::status(&Backend::open(file).await?, &args, output).await,
        Command::Logs(args) => runs::logs(&Backend::open(file).await?, &args, output).await,
        Command::Budget(args) => budget::run(&Backend::open(file).await?, &args, output).await,
        Command::Artifacts(args) => artifacts::run(&Backend::open(file).await?, &args, output).await,
        Command::Shell(args) => shell::run(&Backend::open(file).await?, &args).await,
        Command::Cancel(args) => runs::cancel(&Backend::open(file).await?, &args.run, output).await,
        Command::Retry(args) => runs::retry(&Backend::open(file).await?, &args.run, output).await,
        Command::Pause(args) => operate::pause(&Backend::open(file).await?, &args.why, output).await,
        Command::Resume => operate::resume(&Backend::open(file).await?, output).await,
        Command::Deliveries(args) => operate::deliveries(&Backend::open(file).await?, &args, output).await,
        Command::Replay(args) => operate::replay(&Backend::open(file).await?, &args.id, output).await,
        Command::Audit(args) => operate::audit(&Backend::open(file).await?, &args, output).await,
        Command::Nodes(args) => nodes::run(&Backend::open(file).await?, &args, output).await,
        Command::Backup(args) => backup::backup(file, &args, output).await,
        Command::Restore(args) => backup::restore(file, &args, output).await,
        Command::Migrate => backup::migrate(file, output).await,
        Command::Doctor(args) => doctor::run(file, &args, output).await,
        Command::SendWebhook(args) => send_webhook::run(file, &args, output).await,
        Command::Config { command } => config::run(file, &command, output),
        Command::Token { command } => token::run(file, &command, output).await,
        Command::Help { topic } => guide::run(topic.as_deref(), output),
    }
}

fn verdict(yes: bool) -> Exit {
    if yes { Exit::Ok } else { Exit::No }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_sound() {
        Cli::command().debug_assert();
    }

    fn refused(arguments: &[&str]) -> String {
        let error = Cli::try_parse_from(std::iter::once(&"zeblit").chain(arguments)).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        error.to_string()
    }

    #[test]
    fn wrong_arguments_say_what_to_type() {
        insta::assert_snapshot!(refused(&["stat"]), @r"
        error: unrecognized subcommand 'stat'

          tip: a similar subcommand exists: 'status'

        Usage: zeblit [OPTIONS] <COMMAND>

        For more information, try '--help'.
        ");
        insta::assert_snapshot!(refused(&["logs"]), @r"
        error: the following required arguments were not provided:
          <RUN>

        Usage: zeblit logs <RUN>

        For more information, try '--help'.
        ");
        insta::assert_snapshot!(refused(&["status", "--state", "sleeping"]), @r"
        error: invalid value 'sleeping' for '--state <STATE>': known states are queued, preparing, running, collecting, publishing, reporting, held, succeeded, nothing, needs_input, failed, cancelled

        For more information, try '--help'.
        ");
        insta::assert_snapshot!(refused(&["send-webhook"]), @r"
        error: the following required arguments were not provided:
          <FILE>

        Usage: zeblit send-webhook <FILE>

        For more information, try '--help'.
        ");
        insta::assert_snapshot!(refused(&["token", "create", "ci", "--days", "0"]), @r"
        error: invalid value '0' for '--days <DAYS>': 0 is not in 1..=3650

        For more information, try '--help'.
        ");
    }

    #[test]
    fn the_help_lists_every_command() {
        insta::assert_snapshot!(Cli::command().render_help().to_string(), @r"
        A self-hosted bot that runs coding agents in sealed containers and opens pull requests

        Usage: zeblit [OPTIONS] <COMMAND>

        Commands:
          serve         Take webhooks and do the work
          demo          Show the whole way from a comment to a pull request on this machine
          run           Run one instruction on a local repository and leave a branch
          status        Show the server's state, or one run
          logs          Show the log of a run
          budget        Show what is spent and left of each budget, or the ledger of a month
          artifacts     List the files that a run left for download, or save them
          shell         Open a shell in a running agent's container; written to the audit log
          cancel        Stop a run; partial work is kept
          retry         Start a run again from the same request
          pause         Start no new runs; webhooks are still taken
          resume        Go on after a pause
          deliveries    List the newest deliveries
          replay        Handle a delivery again, or queue the request of an ended run again
          audit         List who did what
          nodes         List the nodes of this installation, or let one claim no more runs
          backup        Write the whole database to one file, also while the server works
          restore       Fill an empty database, of either kind, from a backup
          migrate       Bring the database's schema up to date, which `serve` does by itself
          doctor        Check everything the server needs, and say how to mend it
          send-webhook  Sign and send a webhook, as a forge would
          config        Check the configuration, or print an example
          token         Make, list and revoke tokens of the API
          help          Show a guide, or the help of a command

        Options:
              --config <FILE>  Configuration file [default: zeblit-server.toml, if there] [env: ZEBLIT_CONFIG]
          -h, --help           Print help
          -V, --version        Print version

        Start with `zeblit demo`. Guides: `zeblit help`.
        The verbs work on this machine's store, or, with ZEBLIT_URL and ZEBLIT_TOKEN, on another server.
        ");
    }
}
