//! Purpose: `zeblit config check|example`.

use super::args::ConfigCommand;
use super::output::{CliError, Exit, Output};
use crate::config::{Config, Shown};
use std::path::Path;

pub fn run(file: Option<&Path>, command: &ConfigCommand, output: Output) -> Result<Exit, CliError> {
    match command {
        ConfigCommand::Example => {
            output.text(Config::example())?;
            Ok(Exit::Ok)
        }
        ConfigCommand::Check => check(file, output),
    }
}

fn check(file: Option<&Path>, output: Output) -> Result<Exit, CliError> {
    let config = match Config::load(file) {
        Ok(config) => config,
        Err(error) => {
            output.error(&error.into());
            return Ok(Exit::No);
        }
    };
    for line in effective(&config) {
        output.line(line)?;
    }
    match config.validate_for_serve() {
        Ok(()) => output.note("The configuration is valid"),
        Err(error) => {
            output.warning(format!("valid, but `zeblit serve` would not start: {error}"));
        }
    }
    Ok(Exit::Ok)
}

/// `key = value` for every key, secrets as `[set]`.
pub fn effective(config: &Config) -> Vec<String> {
    config
        .effective()
        .into_iter()
        .map(|(path, shown)| match shown {
            Shown::Value(value) => format!("{path} = {value}"),
            Shown::Secret => format!("{path} = [set]"),
            Shown::Unset => format!("{path} = [not set]"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_only_said_to_be_set() {
        let mut config = Config::default();
        config.models.anthropic_api_key = Some("sk-very-secret".into());
        let text = effective(&config).join("\n");
        assert!(text.contains("models.anthropic_api_key = [set]\n"), "{text}");
        assert!(text.contains("secret_key = [not set]\n") && !text.contains("very-secret"), "{text}");
    }
}
