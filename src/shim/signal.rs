//! Purpose: the four system calls that the standard library does not offer, behind safe functions.

use std::io;

mod system {
    #[expect(unsafe_code, reason = "declarations of libc functions with their documented signatures")]
    unsafe extern "C" {
        pub fn kill(pid: i32, signal: i32) -> i32;
        pub fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
        pub fn prctl(option: i32, value: u64, a: u64, b: u64, c: u64) -> i32;
        pub fn socket(family: i32, kind: i32, protocol: i32) -> i32;
    }
}

pub const SIGKILL: i32 = 9;
pub const SIGSTOP: i32 = 19;
const WNOHANG: i32 = 1;
const PR_SET_DUMPABLE: i32 = 4;

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub pid: i32,
    pub code: Option<i32>,
    pub signal: Option<i32>,
}

/// Sends `signal`: to a process, to a group (`-group`), or from PID 1 to everything else (`-1`).
pub fn send(pid: i32, signal: i32) -> io::Result<()> {
    #[expect(unsafe_code, reason = "kill takes two integers and touches no memory of ours")]
    let result = unsafe { system::kill(pid, signal) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits for any child.
pub fn wait_any() -> io::Result<Ended> {
    loop {
        match wait(0) {
            Ok(Some(ended)) => return Ok(ended),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Takes one ended child, if there is one; an error when there are no children at all.
pub fn reap_one() -> io::Result<Option<Ended>> {
    wait(WNOHANG)
}

fn wait(options: i32) -> io::Result<Option<Ended>> {
    let mut status = 0;
    #[expect(unsafe_code, reason = "waitpid writes one integer, to a place that lives through the call")]
    let pid = unsafe { system::waitpid(-1, &raw mut status, options) };
    match pid {
        0 => Ok(None),
        pid if pid > 0 => {
            let signal = status & 0x7f;
            Ok(Some(Ended {
                pid,
                code: (signal == 0).then_some((status >> 8) & 0xff),
                signal: (signal != 0).then_some(signal),
            }))
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Keeps other processes of the same user out of this one's memory and file descriptors.
/// Best effort: where the kernel refuses, the rest still holds.
pub fn forbid_inspection() {
    #[expect(unsafe_code, reason = "prctl with an integer option touches no memory of ours")]
    let _ = unsafe { system::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) };
}

/// The error number of a socket of a family that no kernel has: without a filter "not supported" (97),
/// under our seccomp profile "not permitted" (1).
pub fn unknown_socket_family() -> i32 {
    const NO_FAMILY: i32 = 99;
    const STREAM: i32 = 1;
    #[expect(unsafe_code, reason = "socket takes three integers and touches no memory of ours")]
    let result = unsafe { system::socket(NO_FAMILY, STREAM, 0) };
    if result >= 0 { 0 } else { io::Error::last_os_error().raw_os_error().unwrap_or(0) }
}
