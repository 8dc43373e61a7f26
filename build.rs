//! Purpose: compile `src/shim` into the small static program that the server embeds and mounts into containers.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=src/shim");
    println!("cargo::rerun-if-changed=build.rs");
    let variable = |name: &str| std::env::var_os(name).unwrap_or_else(|| panic!("Cargo sets {name}"));
    let out = PathBuf::from(variable("OUT_DIR")).join("zeblit-shim");
    // Static: the shim must start in any image, whatever C library that has or has not.
    let mut command = Command::new(variable("RUSTC"));
    // Set by Cargo when the target has a linker of its own (cross compilation).
    if let Some(linker) = std::env::var_os("RUSTC_LINKER") {
        let mut option = std::ffi::OsString::from("linker=");
        option.push(linker);
        command.arg("-C").arg(option);
    }
    let result = command
        .arg("--target")
        .arg(variable("TARGET"))
        .args(["--crate-name", "zeblit_shim", "--edition", "2024", "-O", "--cap-lints", "warn"])
        .args(["-C", "target-feature=+crt-static", "-C", "panic=abort", "-C", "strip=symbols"])
        .arg("-o")
        .arg(&out)
        .arg("src/shim/main.rs")
        .output()
        .unwrap_or_else(|error| panic!("the compiler could not be started: {error}"));
    let said = String::from_utf8_lossy(&result.stderr);
    if !result.status.success() {
        let hint = if said.contains("cannot find -lc") || said.contains("libc.a") {
            "\nThe static C library is missing. Type: sudo apt-get install libc6-dev (Fedora: glibc-static), or build for \
             a musl target.\n"
        } else {
            "\n"
        };
        panic!("zeblit-shim did not compile:{hint}{said}");
    }
    for line in said.lines().filter(|line| line.starts_with("warning")) {
        println!("cargo::warning=zeblit-shim: {line}");
    }
}
