//! What was measured, as ratios with their spread; on standard output for people, in `target/bench/table.md` for the README.

use std::fmt::Write;
use std::path::Path;

/// What a goal asks for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ratio {
    /// Ours divided by the peer's, in the same round.
    AtLeast(f64),
    AtMost(f64),
    /// Our figure itself, in its unit; there is no peer.
    ValueAtLeast(f64),
    ValueAtMost(f64),
    /// Told for what it is; no goal.
    Told,
}

/// One quantity, measured at both sides in turns: the n-th figures are of the same round.
#[derive(Debug)]
pub struct Measured {
    pub goal: &'static str,
    pub what: String,
    pub ours: Vec<f64>,
    /// Empty: there is nobody to compare with.
    pub peer: Vec<f64>,
    pub peer_name: &'static str,
    pub unit: &'static str,
    pub wanted: Ratio,
}

/// Median with its spread.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// `None`: nothing was measured.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let (low, high) = (sorted.get((sorted.len() - 1) / 2)?, sorted.get(sorted.len() / 2)?);
        Some(Self { median: f64::midpoint(*low, *high), min, max })
    }
}

impl Measured {
    /// Ours divided by the peer's, round by round.
    fn ratios(&self) -> Vec<f64> {
        self.ours.iter().zip(&self.peer).map(|(ours, peer)| ours / peer).collect()
    }

    fn ratio(&self) -> Option<Spread> {
        Spread::of(&self.ratios())
    }

    /// `None`: it is only told. What could not be measured does not hold.
    pub fn holds(&self) -> Option<bool> {
        let ratio = self.ratio().map(|spread| spread.median);
        let ours = Spread::of(&self.ours).map(|spread| spread.median);
        match self.wanted {
            Ratio::AtLeast(wanted) => Some(ratio.is_some_and(|ratio| ratio >= wanted)),
            Ratio::AtMost(wanted) => Some(ratio.is_some_and(|ratio| ratio <= wanted)),
            Ratio::ValueAtLeast(wanted) => Some(ours.is_some_and(|ours| ours >= wanted)),
            Ratio::ValueAtMost(wanted) => Some(ours.is_some_and(|ours| ours <= wanted)),
            Ratio::Told => None,
        }
    }

    fn cells(&self) -> [String; 8] {
        let value = |values: &[f64]| {
            Spread::of(values)
                .map_or("-".to_owned(), |spread| format!("{} {}", figure(spread.median), self.unit))
        };
        let ratio = self.ratio().map_or("-".to_owned(), |spread| {
            format!("{} ({}..{})", times(spread.median), times(spread.min), times(spread.max))
        });
        let wanted = match self.wanted {
            Ratio::AtLeast(wanted) => format!(">= {}", times(wanted)),
            Ratio::AtMost(wanted) => format!("<= {}", times(wanted)),
            Ratio::ValueAtLeast(wanted) => format!(">= {} {}", figure(wanted), self.unit),
            Ratio::ValueAtMost(wanted) => format!("<= {} {}", figure(wanted), self.unit),
            Ratio::Told => "-".to_owned(),
        };
        let holds = match self.holds() {
            Some(true) => "holds",
            Some(false) => "does not hold",
            None => "-",
        };
        [
            self.goal.to_owned(),
            self.what.clone(),
            value(&self.ours),
            value(&self.peer),
            if self.peer_name.is_empty() { "-".to_owned() } else { self.peer_name.to_owned() },
            ratio,
            wanted,
            holds.to_owned(),
        ]
    }
}

const HEADS: [&str; 8] = ["", "measured", "Zeblit", "peer", "which", "ratio (min..max)", "goal", ""];

/// Three digits that count, and no more.
fn figure(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 || size == 0.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        size if size >= 0.1 => 3,
        _ => 4,
    };
    format!("{value:.digits$}")
}

/// A ratio: `8.7x`, or a share such as `1/9.9`.
fn times(ratio: f64) -> String {
    if ratio > 0.0 && ratio < 0.95 {
        format!("1/{}", figure(1.0 / ratio))
    } else {
        format!("{}x", figure(ratio))
    }
}

/// Aligned text for a terminal.
pub fn text(measured: &[Measured]) -> String {
    let rows: Vec<[String; 8]> =
        std::iter::once(HEADS.map(str::to_owned)).chain(measured.iter().map(Measured::cells)).collect();
    let mut widths = [0; 8];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(line, "{cell:width$}  ");
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// Adds the table to the file, below the machine's line.
pub fn write_markdown(path: &Path, machine: &str, measured: &[Measured]) -> std::io::Result<()> {
    let mut text = format!(
        "{machine}\n\n|{}|\n|{}\n",
        HEADS.map(|head| format!(" {head} ")).join("|"),
        " --- |".repeat(8)
    );
    for one in measured {
        let _ = writeln!(text, "| {} |", one.cells().map(|cell| cell.replace('|', "\\|")).join(" | "));
    }
    std::fs::write(path, text)
}
