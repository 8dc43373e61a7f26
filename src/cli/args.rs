//! Purpose: what can be typed. Help texts, errors and completion come from these types.

use super::demo::DemoArgs;
use super::run::RunArgs;
use crate::domain::event::Source;
use crate::domain::node::Role;
use crate::domain::run::RunState;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// A self-hosted bot that runs coding agents in sealed containers and opens pull requests.
#[derive(Debug, Parser)]
#[command(
    name = "zeblit",
    version,
    disable_help_subcommand = true,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = "Start with `zeblit demo`. Guides: `zeblit help`.\nThe verbs work on this machine's store, or, with ZEBLIT_URL and ZEBLIT_TOKEN, on another server."
)]
pub struct Cli {
    /// Configuration file [default: zeblit-server.toml, if there]
    #[arg(long, global = true, value_name = "FILE", env = "ZEBLIT_CONFIG", hide_env_values = true)]
    pub config: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take webhooks and do the work
    Serve(ServeArgs),
    /// Show the whole way from a comment to a pull request on this machine
    Demo(DemoArgs),
    /// Run one instruction on a local repository and leave a branch
    Run(RunArgs),
    /// Show the server's state, or one run
    Status(StatusArgs),
    /// Show the log of a run
    Logs(LogsArgs),
    /// Show what is spent and left of each budget, or the ledger of a month
    Budget(BudgetArgs),
    /// List the files that a run left for download, or save them
    Artifacts(ArtifactsArgs),
    /// Open a shell in a running agent's container; written to the audit log
    Shell(ShellArgs),
    /// Stop a run; partial work is kept
    Cancel(RunRef),
    /// Start a run again from the same request
    Retry(RunRef),
    /// Start no new runs; webhooks are still taken
    Pause(PauseArgs),
    /// Go on after a pause
    Resume,
    /// List the newest deliveries
    Deliveries(ListArgs),
    /// Handle a delivery again, or queue the request of an ended run again
    Replay(DeliveryRef),
    /// List who did what
    Audit(ListArgs),
    /// List the nodes of this installation, or let one claim no more runs
    Nodes(NodesArgs),
    /// Write the whole database to one file, also while the server works
    Backup(BackupArgs),
    /// Fill an empty database, of either kind, from a backup
    Restore(BackupArgs),
    /// Bring the database's schema up to date, which `serve` does by itself
    Migrate,
    /// Check everything the server needs, and say how to mend it
    Doctor(DoctorArgs),
    /// Sign and send a webhook, as a forge would
    SendWebhook(SendWebhookArgs),
    /// Check the configuration, or print an example
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Make, list and revoke tokens of the API
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Show a guide, or the help of a command
    Help {
        /// A guide or a command; without it, all are listed
        topic: Option<String>,
    },
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// What this process does of the whole: all, web, worker or deliver [default: `node.role` of the configuration]
    #[arg(long, value_name = "ROLE", env = "ZEBLIT_ROLE", hide_env_values = true, value_parser = role)]
    pub role: Option<Role>,
    /// What a stop does with live runs: `leave` them in their containers for the next start, or `wait` for their end
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Drain::Leave)]
    pub drain: Drain,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Drain {
    Leave,
    Wait,
}

fn role(text: &str) -> Result<Role, String> {
    Role::parse(text).ok_or_else(|| {
        let known: Vec<&str> = Role::ALL.into_iter().map(Role::as_str).collect();
        format!("known roles are {}", known.join(", "))
    })
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Check what this role needs [default: `node.role` of the configuration]
    #[arg(long, value_name = "ROLE", env = "ZEBLIT_ROLE", hide_env_values = true, value_parser = role)]
    pub role: Option<Role>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct NodesArgs {
    #[command(subcommand)]
    pub command: Option<NodesCommand>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum NodesCommand {
    /// Let a node claim no more runs; its live runs go on
    Drain(NodeRef),
    /// Let a node claim runs again
    Undrain(NodeRef),
}

#[derive(Debug, Args)]
pub struct NodeRef {
    /// Its name or id
    #[arg(value_name = "NODE")]
    pub node: String,
}

#[derive(Debug, Args)]
pub struct JsonArg {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// A run: its id or the last 6 or more characters of it
    #[arg(value_name = "RUN")]
    pub run: Option<String>,
    /// Only runs in this state
    #[arg(long, value_name = "STATE", value_parser = run_state)]
    pub state: Option<RunState>,
    /// Only runs of this repository
    #[arg(long, value_name = "OWNER/NAME")]
    pub repo: Option<String>,
    /// Only runs that have not ended
    #[arg(long)]
    pub open: bool,
    /// At most this many runs
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub limit: i64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

fn run_state(text: &str) -> Result<RunState, String> {
    RunState::parse(text).ok_or_else(|| {
        let known: Vec<&str> = RunState::ALL.into_iter().map(RunState::as_str).collect();
        format!("known states are {}", known.join(", "))
    })
}

#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The run: its id or the last 6 or more characters of it
    #[arg(value_name = "RUN")]
    pub run: String,
    /// Go on until the run has ended
    #[arg(short, long)]
    pub follow: bool,
    /// Print each line as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct BudgetArgs {
    /// Only what this run counts against: its id or the last 6 or more characters of it
    #[arg(value_name = "RUN", conflicts_with = "csv")]
    pub run: Option<String>,
    /// Print the ledger of a month as CSV, one line a run
    #[arg(long)]
    pub csv: bool,
    /// Of the CSV: which month (UTC), like 2026-11 [default: this one]
    #[arg(long, value_name = "MONTH", requires = "csv", value_parser = month)]
    pub month: Option<String>,
    /// Print JSON
    #[arg(long, conflicts_with = "csv")]
    pub json: bool,
}

fn month(text: &str) -> Result<String, String> {
    match crate::domain::budget::month(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err("a month is written like 2026-11".to_owned()),
    }
}

#[derive(Debug, Args)]
pub struct ArtifactsArgs {
    /// The run: its id or the last 6 or more characters of it
    #[arg(value_name = "RUN")]
    pub run: String,
    /// Save all of them below this folder; nothing that is there is overwritten
    #[arg(long, value_name = "FOLDER", conflicts_with = "json")]
    pub save: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ShellArgs {
    /// The run: its id or the last 6 or more characters of it
    #[arg(value_name = "RUN")]
    pub run: String,
    /// A command for the shell instead of standard input
    #[arg(short, long, value_name = "COMMAND")]
    pub command: Option<String>,
}

#[derive(Debug, Args)]
pub struct RunRef {
    /// The run: its id or the last 6 or more characters of it
    #[arg(value_name = "RUN")]
    pub run: String,
}

#[derive(Debug, Args)]
pub struct PauseArgs {
    /// Why; shown to everybody who waits
    #[arg(value_name = "REASON", default_value = "")]
    pub why: String,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub limit: i64,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct BackupArgs {
    /// The backup
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

#[derive(Debug, Args)]
pub struct DeliveryRef {
    /// Our id or the sender's delivery id; or a run's
    #[arg(value_name = "DELIVERY|RUN")]
    pub id: String,
}

#[derive(Debug, Args)]
pub struct SendWebhookArgs {
    /// The payload as it goes over the wire; `-` is standard input
    #[arg(value_name = "FILE", required_unless_present = "comment", conflicts_with = "comment")]
    pub file: Option<PathBuf>,
    /// Build an `issue_comment` payload with this comment instead of reading a file
    #[arg(long, value_name = "TEXT")]
    pub comment: Option<String>,
    /// github, jira or sentry
    #[arg(long, value_name = "SOURCE", default_value = "github", value_parser = source)]
    pub source: Source,
    /// The source's name for the kind of event
    #[arg(long, value_name = "EVENT", default_value = "issue_comment")]
    pub event: String,
    /// The variable with the webhook secret [default: the secret of the configuration]
    #[arg(long, value_name = "VARIABLE")]
    pub secret_env: Option<String>,
    /// Where to send it [default: /webhooks/SOURCE at the address of the configuration]
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// The delivery id [default: a new one]
    #[arg(long, value_name = "ID")]
    pub delivery: Option<String>,
    /// Of a built payload: the repository
    #[arg(long, value_name = "OWNER/NAME", requires = "comment")]
    pub repo: Option<String>,
    /// Of a built payload: the repository's numeric id
    #[arg(long, value_name = "ID", default_value_t = 1, requires = "comment")]
    pub repo_id: i64,
    /// Of a built payload: the issue
    #[arg(long, value_name = "NUMBER", default_value_t = 1, requires = "comment")]
    pub number: i64,
    /// Of a built payload: the login of who comments
    #[arg(long, value_name = "LOGIN", default_value = "octocat", requires = "comment")]
    pub login: String,
    /// Of a built payload: the numeric id of who comments
    #[arg(long, value_name = "ID", default_value_t = 1, requires = "comment")]
    pub user_id: i64,
    /// Of a built payload: the installation of the App
    #[arg(long, value_name = "ID", default_value_t = 1, requires = "comment")]
    pub installation: i64,
}

fn source(text: &str) -> Result<Source, String> {
    Source::parse(text).ok_or_else(|| "known sources are github, jira, sentry".to_owned())
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the effective configuration (secrets as `[set]`); exit code 1 when it is not valid
    Check,
    /// Print a commented configuration with every key
    Example,
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it; it is shown this once
    Create {
        /// What it is for; named in the audit log
        #[arg(value_name = "NAME")]
        name: String,
        /// Days until it expires [default: never]
        #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(i64).range(1..=3650))]
        days: Option<i64>,
    },
    /// List the tokens (never their text)
    List(JsonArg),
    /// Make a token useless
    Revoke {
        /// Its name or id
        #[arg(value_name = "TOKEN")]
        token: String,
    },
}
