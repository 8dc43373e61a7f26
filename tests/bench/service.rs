//! G14: what the whole service takes while nothing happens, and how soon it answers.

use super::machine::{SERVER_CORE, rss_mib};
use super::report::{Measured, Ratio};
use super::server::{Options, zeblit};
use super::{Bench, peers};
use std::time::Duration;

/// Until a started service is taken to be idle.
const SETTLE: Duration = Duration::from_secs(5);

pub fn measure(bench: &Bench) -> anyhow::Result<Vec<Measured>> {
    let (mut ours, mut peer) = (Sides::default(), Sides::default());
    for round in 1..=bench.rounds {
        bench.tell(&format!("service, round {round}: zeblit"));
        let folder = bench.fresh("service-zeblit")?;
        let service = zeblit(&Options { folder, core: Some(SERVER_CORE), ..Options::default() })?;
        std::thread::sleep(SETTLE);
        ours.add(rss_mib(&service.pids())?, service.opened_in);
        service.stop()?;
        bench.tell(&format!("service, round {round}: probot"));
        let service = peers::probot(bench, &bench.fresh("service-probot")?, None)?;
        std::thread::sleep(SETTLE);
        peer.add(rss_mib(&service.pids())?, service.opened_in);
        service.stop()?;
    }
    let binary = std::fs::metadata(env!("CARGO_BIN_EXE_zeblit"))?.len() as f64 / 1e6;
    Ok(vec![
        Measured {
            goal: "G14",
            what: "idle RSS of the whole service".into(),
            ours: ours.rss,
            peer: peer.rss,
            peer_name: "Probot",
            unit: "MiB",
            wanted: Ratio::AtMost(1.0 / 3.0),
        },
        Measured {
            goal: "G14",
            what: "start to the first answer".into(),
            ours: ours.opened,
            peer: peer.opened,
            peer_name: "Probot",
            unit: "ms",
            wanted: Ratio::AtMost(1.0 / 5.0),
        },
        Measured {
            goal: "G14",
            what: "size of the program".into(),
            ours: vec![binary],
            peer: Vec::new(),
            peer_name: "",
            unit: "MB",
            wanted: Ratio::Told,
        },
    ])
}

#[derive(Default)]
struct Sides {
    rss: Vec<f64>,
    opened: Vec<f64>,
}

impl Sides {
    fn add(&mut self, rss: f64, opened: Duration) {
        self.rss.push(rss);
        self.opened.push(opened.as_secs_f64() * 1e3);
    }
}
