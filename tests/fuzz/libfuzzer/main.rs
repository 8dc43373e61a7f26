//! One program with all targets; `FUZZ_TARGET` names the one that it runs. Without it, their names are printed.
//! With `FUZZ_BEGIN=FOLDER` it only writes what the target begins with: its inputs and, as `words.dict` above them,
//! the pieces that inputs are made of.
#![no_main]

#[path = "../targets.rs"]
mod targets;

use libfuzzer_sys::fuzz_target;
use std::path::Path;
use std::sync::LazyLock;

static RUN: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let wanted = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let Some(target) = targets::TARGETS.iter().find(|target| target.name == wanted) else {
        let names: Vec<&str> = targets::TARGETS.iter().map(|target| target.name).collect();
        eprintln!("FUZZ_TARGET is one of: {}", names.join(" "));
        std::process::exit(2);
    };
    if let Ok(folder) = std::env::var("FUZZ_BEGIN") {
        begin(target, Path::new(&folder)).expect("the folder can be written");
        std::process::exit(0);
    }
    target.run
});

fn begin(target: &targets::Target, folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for (n, seed) in target.seeds.iter().enumerate() {
        std::fs::write(folder.join(format!("seed-{n}")), seed)?;
    }
    let escaped = |word: &str| word.bytes().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
    let words: String = targets::WORDS.iter().map(|word| format!("\"{}\"\n", escaped(word))).collect();
    std::fs::write(folder.with_file_name("words.dict"), words)
}

fuzz_target!(init: { LazyLock::force(&RUN); }, |bytes: &[u8]| RUN(bytes));
