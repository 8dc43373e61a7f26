//! The `zeblit` program: everything happens in the library.

fn main() -> std::process::ExitCode {
    zeblit::cli::main()
}
