//! Purpose: the only place that prints. Data goes to standard output, everything else to standard error.
//!
//! None of it shows a secret of the configuration that was read, whatever text it comes from.
//! Text is readable without colour; errors are `error: …` and, where something can be done, `hint: …`.

use crate::config::ConfigError;
use crate::http::error::chain;
use crate::telemetry::masked;
use std::io::{ErrorKind, Write};

/// How a command ended: its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0
    Ok,
    /// 1: the command worked and the answer is no.
    No,
}

/// Why a command could not do its work: exit code 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CliError {
    pub problems: Vec<String>,
    pub hint: Option<String>,
    /// Nobody reads our output any more (`zeblit logs … | head`): no error to report.
    pub closed: bool,
}

impl CliError {
    pub fn new(problem: impl Into<String>) -> Self {
        Self { problems: vec![problem.into()], hint: None, closed: false }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// An error of ours with its causes.
    pub fn because(doing: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::new(format!("{doing}: {}", chain(error)))
    }
}

impl From<ConfigError> for CliError {
    fn from(error: ConfigError) -> Self {
        Self {
            problems: error.problems,
            hint: Some("`zeblit config example` shows every key; `zeblit config check` tries again".into()),
            closed: false,
        }
    }
}

impl From<anyhow::Error> for CliError {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<ConfigError>() {
            Ok(config) => config.into(),
            Err(error) => Self::new(format!("{error:#}")),
        }
    }
}

impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        let closed = error.kind() == ErrorKind::BrokenPipe;
        Self { closed, ..Self::new(format!("cannot write the output: {error}")) }
    }
}

/// Writes for one command.
#[derive(Debug, Clone, Copy, Default)]
pub struct Output;

impl Output {
    /// A line of data.
    pub fn line(self, text: impl AsRef<str>) -> Result<(), CliError> {
        writeln!(std::io::stdout().lock(), "{}", masked(text.as_ref()))?;
        Ok(())
    }

    /// Text as it is.
    pub fn text(self, text: impl AsRef<str>) -> Result<(), CliError> {
        write!(std::io::stdout().lock(), "{}", masked(text.as_ref()))?;
        Ok(())
    }

    /// Data as JSON, indented.
    pub fn json(self, value: &impl serde::Serialize) -> Result<(), CliError> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|error| CliError::because("cannot write JSON", &error))?;
        self.line(text)
    }

    /// Something for people beside the data. A closed standard error is nobody's problem.
    pub fn note(self, text: impl AsRef<str>) {
        let _closed = writeln!(std::io::stderr().lock(), "{}", masked(text.as_ref()));
    }

    pub fn warning(self, text: impl AsRef<str>) {
        self.note(format!("warning: {}", text.as_ref()));
    }

    pub fn error(self, error: &CliError) {
        if !error.closed {
            self.note(error_text(error));
        }
    }

    /// Columns as wide as their widest cell; two spaces between them.
    pub fn table(self, head: &[&str], rows: &[Vec<String>]) -> Result<(), CliError> {
        self.text(table_text(head, rows))
    }
}

/// `error: …` for each problem, then `hint: …`.
pub fn error_text(error: &CliError) -> String {
    let mut lines: Vec<String> = error.problems.iter().map(|problem| format!("error: {problem}")).collect();
    lines.extend(error.hint.iter().map(|hint| format!("hint: {hint}")));
    lines.join("\n")
}

pub fn table_text(head: &[&str], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    let width = |column: usize| {
        std::iter::once(&head)
            .chain(rows)
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = String::new();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            if !line.is_empty() {
                line.push_str("  ");
            }
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count())));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_every_problem_and_end_with_the_hint() {
        let error = CliError {
            problems: vec!["server.listen: needs an address".into(), "limits.runs: needs a number".into()],
            ..CliError::new("").hint("try `zeblit config example`")
        };
        insta::assert_snapshot!(error_text(&error), @r"
        error: server.listen: needs an address
        error: limits.runs: needs a number
        hint: try `zeblit config example`
        ");
    }

    #[test]
    fn a_closed_pipe_is_no_error_to_report() {
        assert!(CliError::from(std::io::Error::from(ErrorKind::BrokenPipe)).closed);
        assert!(!CliError::from(std::io::Error::other("disk full")).closed);
    }

    #[test]
    fn columns_are_aligned_without_trailing_spaces() {
        let rows =
            vec![vec!["a".into(), "long cell".into(), "x".into()], vec!["bbb".into(), "ü".into(), "".into()]];
        insta::assert_snapshot!(table_text(&["ID", "WHAT", "NOTE"], &rows), @r"
        ID   WHAT       NOTE
        a    long cell  x
        bbb  ü
        ");
    }
}
