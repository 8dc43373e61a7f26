//! Runs every fuzz target over its seeds and mutations of them. In the ordinary tests a fixed number, the same each time;
//! with `FUZZ_SECONDS` as long as that, from another beginning (`make fuzz SECONDS=600`).

mod targets;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};
use targets::{TARGETS, Target, WORDS};

/// Executions of each target in the ordinary tests.
const EXECUTIONS: u64 = 400;
/// Bytes of an input.
const MAX_INPUT_BYTES: usize = 16 * 1024;
/// Inputs that are kept to be mutated again.
const MAX_POOL: usize = 64;

/// Repeatable chance (Knuth's 64-bit linear congruential generator).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % sides.max(1)
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.roll(256)).unwrap_or(0)
    }

    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.roll(length + 1);
        start..(start + self.roll(64)).min(length)
    }
}

/// A few changes of one input.
fn mutate(dice: &mut Dice, pool: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = pool.get(dice.roll(pool.len())).cloned().unwrap_or_default();
    for _ in 0..=dice.roll(6) {
        let at = dice.roll(bytes.len() + 1);
        match dice.roll(8) {
            0 => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << dice.roll(8);
                }
            }
            1 => {
                let byte = dice.byte();
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            2 => bytes.insert(at, dice.byte()),
            3 => drop(bytes.drain(dice.range(bytes.len()))),
            4 => {
                let copy = bytes.get(dice.range(bytes.len())).unwrap_or_default().to_vec();
                bytes.splice(at..at, copy);
            }
            5 => {
                let other = pool.get(dice.roll(pool.len())).map_or(&[][..], Vec::as_slice);
                let piece = other.get(dice.range(other.len())).unwrap_or_default().to_vec();
                bytes.splice(at..at, piece);
            }
            6 => bytes.truncate(at),
            _ => {
                let word = WORDS.get(dice.roll(WORDS.len())).copied().unwrap_or_default();
                bytes.splice(at..at, word.bytes());
            }
        }
        bytes.truncate(MAX_INPUT_BYTES);
    }
    bytes
}

/// Runs one target; gives the executions and the inputs that broke it.
fn fuzz(target: &Target, beginning: u64, time: Option<Duration>) -> (u64, Vec<Vec<u8>>) {
    let mut dice = Dice(beginning);
    let mut pool: Vec<Vec<u8>> = target.seeds.iter().map(|seed| seed.to_vec()).collect();
    pool.push(Vec::new());
    let seeds = pool.len();
    let mut crashes = Vec::new();
    let mut executions = 0;
    let begun = Instant::now();
    loop {
        let input = match usize::try_from(executions).ok().filter(|n| *n < seeds).and_then(|n| pool.get(n)) {
            Some(seed) => seed.clone(),
            None => mutate(&mut dice, &pool),
        };
        executions += 1;
        if catch_unwind(AssertUnwindSafe(|| (target.run)(&input))).is_err() {
            crashes.push(input.clone());
        }
        // Inputs far from the seeds come about by mutating mutations.
        if pool.len() < MAX_POOL {
            pool.push(input);
        } else if dice.roll(4) == 0 {
            let at = seeds + dice.roll(MAX_POOL - seeds);
            if let Some(place) = pool.get_mut(at) {
                *place = input;
            }
        }
        let ended = match time {
            Some(time) => begun.elapsed() >= time,
            None => executions >= EXECUTIONS,
        };
        if ended || crashes.len() >= 5 {
            return (executions, crashes);
        }
    }
}

#[test]
fn no_input_breaks_a_parser() {
    let seconds: Option<u64> = std::env::var("FUZZ_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let count = u64::try_from(TARGETS.len()).unwrap_or(1);
    let time = seconds.map(|seconds| Duration::from_millis(seconds * 1000 / count));
    let beginning = match time {
        Some(_) => u64::from(std::process::id()),
        None => 1,
    };
    let mut executions = 0;
    let mut crashes = Vec::new();
    for target in TARGETS {
        let (done, broken) = fuzz(target, beginning, time);
        executions += done;
        crashes.extend(
            broken.into_iter().map(|input| format!("{}: {:?}", target.name, String::from_utf8_lossy(&input))),
        );
    }
    let line = format!("fuzz: {count} targets, {executions} executions, {} crashes", crashes.len());
    if let Some(report) = std::env::var_os("FUZZ_REPORT") {
        let mut file = std::fs::File::create(report).expect("the report can be written");
        writeln!(file, "{line}").expect("the report can be written");
    }
    assert!(crashes.is_empty(), "{line}\n{}", crashes.join("\n"));
}

#[test]
fn a_target_that_breaks_is_noticed() {
    fn breaks(bytes: &[u8]) {
        assert!(!bytes.contains(&b'!'), "found");
    }
    let target = Target { name: "breaks", run: breaks, seeds: &[b"a ! b"] };
    let (_, crashes) = fuzz(&target, 1, None);
    assert_eq!(crashes.first().map(Vec::as_slice), Some(&b"a ! b"[..]));
}
