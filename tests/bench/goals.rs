//! `make bench`: Zeblit and its peers in turns on this machine, and whether each goal holds.
//!
//! - A goal compares ratios taken in one run, round by round: absolute figures move with a machine's neighbours.
//! - Every figure comes from running the thing: our side is the release binary or the library as it is built for it.
//! - Progress is told on standard error, the report on standard output and in `target/bench/table.md`.
//!
//! `goals --only G1,G14 --rounds 3`; a name of a goal or of a group. Without `--only` all groups run that are goals.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for a terminal")]

mod broker;
mod figures;
mod growth;
mod ingest;
mod jobs;
mod live;
mod load;
mod machine;
mod peers;
mod queue;
mod report;
mod server;
mod service;
mod start;
mod timeline;
mod workspace;
mod world;

use anyhow::{Context, bail, ensure};
use report::Measured;
use std::path::PathBuf;
use std::process::ExitCode;
use zeblit::mount;

/// Rounds of each measurement, unless `--rounds` says otherwise.
const ROUNDS: usize = 3;

/// What a group is told.
#[derive(Debug)]
pub struct Bench {
    /// At each side, in turns.
    pub rounds: usize,
    /// The goals that were asked for; a group may leave out what none of them needs.
    goals: Vec<&'static str>,
    /// Where peers and states live: `target/bench`.
    pub folder: PathBuf,
}

impl Bench {
    /// Whether this goal was asked for.
    pub fn wants(&self, goal: &str) -> bool {
        self.goals.contains(&goal)
    }

    /// Says on standard error what runs now.
    pub fn tell(&self, what: &str) {
        eprintln!("bench: {what}");
    }

    /// An empty folder for one side of one round.
    pub fn fresh(&self, name: &str) -> anyhow::Result<PathBuf> {
        let folder = self.folder.join("state").join(name);
        if folder.exists() {
            // A server leaves what it mounted for its containers.
            let mounts: Vec<_> = mount::of_process(i64::from(std::process::id()))
                .into_iter()
                .filter(|mounted| mounted.point.starts_with(&folder))
                .collect();
            for mounted in mounts.iter().rev() {
                mount::unmount(&mounted.point)?;
            }
            std::fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
        }
        std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        Ok(folder)
    }
}

/// Goals that are measured by the same runs.
struct Group {
    name: &'static str,
    goals: &'static [&'static str],
    /// Whether it runs when nothing is named.
    by_default: bool,
    measure: fn(&Bench) -> anyhow::Result<Vec<Measured>>,
}

/// Every group, in the order in which they run.
const GROUPS: &[Group] = &[
    Group {
        name: "ingest",
        goals: &["G1", "G2", "G3", "G4", "G5"],
        by_default: true,
        measure: ingest::measure,
    },
    Group { name: "start", goals: &["G11", "G12", "G13", "G16"], by_default: true, measure: start::measure },
    Group { name: "workspace", goals: &["G8", "G9", "G10"], by_default: true, measure: workspace::measure },
    Group { name: "queue", goals: &["G6", "G7"], by_default: true, measure: queue::measure },
    Group { name: "growth", goals: &["G17"], by_default: true, measure: growth::measure },
    Group { name: "service", goals: &["G14"], by_default: true, measure: service::measure },
    Group { name: "live", goals: &["G15"], by_default: true, measure: live::measure },
    Group { name: "broker", goals: &["B1"], by_default: true, measure: broker::measure },
    Group { name: "thousand", goals: &["S1", "S3", "S5"], by_default: false, measure: figures::thousand },
    Group { name: "deliveries", goals: &["S2"], by_default: false, measure: figures::deliveries },
    Group { name: "readers", goals: &["S4"], by_default: false, measure: figures::readers },
    Group { name: "day", goals: &["S6"], by_default: false, measure: figures::day },
];

struct Asked {
    only: Vec<String>,
    rounds: usize,
}

fn asked() -> anyhow::Result<Asked> {
    let mut asked = Asked { only: Vec::new(), rounds: ROUNDS };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("`{word}` needs a value"));
        match word.as_str() {
            "--only" => {
                asked.only = value()?
                    .split(',')
                    .map(|name| name.trim().to_owned())
                    .filter(|name| !name.is_empty())
                    .collect();
            }
            "--rounds" => asked.rounds = value()?.parse().context("--rounds")?,
            // What `cargo bench` adds.
            "--bench" => {}
            _ => bail!("`{word}` is not known; there are --only and --rounds"),
        }
    }
    ensure!(asked.rounds > 0, "--rounds must be at least 1");
    Ok(asked)
}

/// The groups to run, each with its goals that were asked for.
fn chosen(only: &[String]) -> anyhow::Result<Vec<(&'static Group, Vec<&'static str>)>> {
    for name in only {
        let known =
            GROUPS.iter().any(|group| group.name == name || group.goals.iter().any(|goal| goal == name));
        if !known {
            let goals: Vec<&str> = GROUPS.iter().flat_map(|group| group.goals).copied().collect();
            let groups: Vec<&str> = GROUPS.iter().map(|group| group.name).collect();
            bail!("`{name}` is not known; goals: {}; groups: {}", goals.join(", "), groups.join(", "));
        }
    }
    let wanted = |group: &'static Group| -> Vec<&'static str> {
        let all = only.iter().any(|name| name == group.name) || (only.is_empty() && group.by_default);
        group.goals.iter().copied().filter(|goal| all || only.iter().any(|name| name == goal)).collect()
    };
    Ok(GROUPS.iter().map(|group| (group, wanted(group))).filter(|(_, goals)| !goals.is_empty()).collect())
}

fn run() -> anyhow::Result<bool> {
    let asked = asked()?;
    let chosen = chosen(&asked.only)?;
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/bench");
    std::fs::create_dir_all(&folder)?;
    let machine = machine::line(&folder)?;
    println!("{machine}\n");
    let mut measured = Vec::new();
    let mut broken = Vec::new();
    for (group, goals) in chosen {
        eprintln!("bench: {} ({}), {} rounds", group.name, goals.join(", "), asked.rounds);
        let bench = Bench { rounds: asked.rounds, goals, folder: folder.clone() };
        match (group.measure)(&bench) {
            Ok(rows) => measured.extend(rows.into_iter().filter(|row| bench.wants(row.goal))),
            Err(error) => broken.push(format!("{}: {error:#}", group.name)),
        }
    }
    print!("{}", report::text(&measured));
    report::write_markdown(&folder.join("table.md"), &machine, &measured)?;
    for group in &broken {
        println!("not measured: {group}");
    }
    let missed = measured.iter().filter(|row| row.holds() == Some(false)).count();
    let held = measured.iter().filter(|row| row.holds() == Some(true)).count();
    println!("\nbench: {held} figures hold, {missed} do not");
    Ok(missed == 0 && broken.is_empty())
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::from(2)
        }
    }
}
