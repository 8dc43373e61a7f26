//! Purpose: what a service manager (systemd) hands over and is told: a socket that is bound already, readiness, the end,
//! and signs of life for its watchdog. Without one, nothing of it happens.

use super::output::CliError;
use crate::config::variable_named;
use secrecy::ExposeSecret;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

/// The first socket of `LISTEN_FDS`, when it was meant for this process. It stays open while we restart, so that nobody
/// is refused meanwhile.
pub fn listener() -> Result<Option<TcpListener>, CliError> {
    let problem = |error: std::io::Error| {
        CliError::because("the socket that the service manager passed cannot be used", &error).hint(
            "deploy/zeblit.socket has `ListenStream` with address and port, and no other line of that kind",
        )
    };
    let Some(passed) = listenfd::ListenFd::from_env().take_tcp_listener(0).map_err(problem)? else {
        return Ok(None);
    };
    passed.set_nonblocking(true).map_err(problem)?;
    TcpListener::from_std(passed).map(Some).map_err(problem)
}

/// Says that the service is up; the task that is given says so again for the watchdog, when there is one.
pub fn ready() -> Option<AbortOnDropHandle<()>> {
    tell("READY=1");
    let micros: u64 = variable_named("WATCHDOG_USEC")?.expose_secret().parse().ok()?;
    // For another process: a child of the one that is watched.
    if variable_named("WATCHDOG_PID")
        .is_some_and(|pid| pid.expose_secret().parse().ok() != Some(std::process::id()))
    {
        return None;
    }
    let every = Duration::from_micros(micros / 2).max(Duration::from_millis(100));
    Some(AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            tokio::time::sleep(every).await;
            tell("WATCHDOG=1");
        }
    })))
}

/// Says that the end has begun.
pub fn stopping() {
    tell("STOPPING=1");
}

fn tell(state: &str) {
    let Some(place) = variable_named("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(place.expose_secret(), state) {
        tracing::warn!(error = format!("{error:#}"), "the service manager cannot be told `{state}`");
    }
}

/// To a path, or to a name without a file, which begins with `@`.
fn send(place: &str, state: &str) -> std::io::Result<()> {
    let address = match place.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(place)?,
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that does not read must not hold up the service.
    socket.set_nonblocking(true)?;
    socket.send_to_addr(state.as_bytes(), &address).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_reach_a_path_and_a_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("zeblit-test-{}", std::process::id());
        let by_path = UnixDatagram::bind(&path).unwrap();
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (socket, place) in [(by_path, path.display().to_string()), (by_name, format!("@{name}"))] {
            send(&place, "READY=1").unwrap();
            let mut buffer = [0; 100];
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1");
        }
        assert!(send("/nowhere/notify", "READY=1").is_err());
    }
}
