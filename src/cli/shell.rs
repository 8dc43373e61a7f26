//! Purpose: `zeblit shell`: an operator looks into the container of a running agent.
//!
//! The shell has the agent's own user, limits and lack of network. What the agent left in there is hostile:
//! it can change what programs print, and sees what is typed.

use super::args::ShellArgs;
use super::backend::Backend;
use super::output::{CliError, Exit};
use std::io::IsTerminal;
use std::process::Command;

pub async fn run(backend: &Backend, args: &ShellArgs) -> Result<Exit, CliError> {
    let terminal =
        args.command.is_none() && std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let words = words(backend.shell(&args.run).await?, terminal, args.command.as_deref());
    let Some((program, rest)) = words.split_first() else {
        return Err(CliError::new("the container engine names no program"));
    };
    let mut command = Command::new(program);
    command.args(rest);
    let name = program.clone();
    let status = tokio::task::spawn_blocking(move || command.status()).await;
    match status {
        Ok(Ok(status)) if status.success() => Ok(Exit::Ok),
        Ok(Ok(_)) => Ok(Exit::No),
        Ok(Err(error)) => Err(CliError::new(format!("cannot start `{name}`: {error}"))
            .hint("the shell needs the engine's command line program: sudo apt-get install docker.io")),
        Err(error) => Err(CliError::new(error.to_string())),
    }
}

/// With a terminal where there is one, and a command for `sh -c` where one is given.
fn words(mut words: Vec<String>, terminal: bool, command: Option<&str>) -> Vec<String> {
    if let Some(at) = words.iter().position(|word| word == "exec")
        && terminal
    {
        words.insert(at + 1, "--tty".into());
    }
    if let Some(command) = command {
        words.extend(["-c".to_owned(), command.to_owned()]);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_and_a_command_are_passed_on() {
        let plain = || ["docker", "exec", "--interactive", "x", "sh"].map(str::to_owned).to_vec();
        assert_eq!(words(plain(), false, None), plain());
        assert_eq!(words(plain(), true, None)[..3], ["docker", "exec", "--tty"]);
        assert_eq!(words(plain(), false, Some("id; ls"))[4..], ["sh", "-c", "id; ls"]);
    }
}
