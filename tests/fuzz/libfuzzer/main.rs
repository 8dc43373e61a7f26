//! One program with all targets; `FUZZ_TARGET` names the one that it runs. Without it, their names are printed.
#![no_main]

#[path = "../targets.rs"]
mod targets;

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

static RUN: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let wanted = std::env::var("FUZZ_TARGET").unwrap_or_default();
    match targets::TARGETS.iter().find(|target| target.name == wanted) {
        Some(target) => target.run,
        None => {
            let names: Vec<&str> = targets::TARGETS.iter().map(|target| target.name).collect();
            eprintln!("FUZZ_TARGET is one of: {}", names.join(" "));
            std::process::exit(2);
        }
    }
});

fuzz_target!(init: { LazyLock::force(&RUN); }, |bytes: &[u8]| RUN(bytes));
