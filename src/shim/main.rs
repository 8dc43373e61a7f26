//! Purpose: the program `zeblit-shim`, PID 1 in the container; compiled by `build.rs`, embedded in the server.
#![expect(dead_code, reason = "the server compiles the same folder and uses the other half of the formats")]

#[path = "mod.rs"]
mod shim;

fn main() {
    shim::run();
}
