//! Purpose: `127.0.0.1:<port>` inside, `broker.sock` outside: a plain copy in both directions.
//!
//! Each connection dials the socket anew, so a broker that restarts at the same path is found again.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Connections at one time: an agent needs a handful, two threads each.
const MAX_CONNECTIONS: usize = 64;
/// How long a connection waits for a broker that restarts.
const BROKER_PATIENCE: Duration = Duration::from_secs(10);
const BROKER_RETRY: Duration = Duration::from_millis(50);
/// One read of a copy.
const COPY_BYTES: usize = 32 * 1024;

/// Listens on the port and serves in the background; port 0 takes a free one. Returns the port.
pub fn start(port: u16, broker: PathBuf) -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let port = listener.local_addr()?.port();
    let open = Arc::new(AtomicUsize::new(0));
    std::thread::Builder::new().name("bridge".into()).spawn(move || {
        for client in listener.incoming() {
            let Ok(client) = client else {
                // Out of descriptors: give the other connections time to end.
                std::thread::sleep(BROKER_RETRY);
                continue;
            };
            if open.fetch_add(1, Ordering::SeqCst) >= MAX_CONNECTIONS {
                open.fetch_sub(1, Ordering::SeqCst);
                continue;
            }
            let (broker, counter) = (broker.clone(), Arc::clone(&open));
            let spawned = std::thread::Builder::new().spawn(move || {
                let _ = serve(client, &broker);
                counter.fetch_sub(1, Ordering::SeqCst);
            });
            if spawned.is_err() {
                open.fetch_sub(1, Ordering::SeqCst);
            }
        }
    })?;
    Ok(port)
}

fn serve(client: TcpStream, broker: &Path) -> io::Result<()> {
    client.set_nodelay(true)?;
    let server = dial(broker)?;
    let (mut client_reads, mut server_writes) = (client.try_clone()?, server.try_clone()?);
    let upward = std::thread::Builder::new().spawn(move || {
        copy(&mut client_reads, &mut server_writes);
        let _ = server_writes.shutdown(Shutdown::Write);
    })?;
    let (mut server_reads, mut client_writes) = (server, client);
    copy(&mut server_reads, &mut client_writes);
    // The broker has ended: nothing the client still sends can be answered.
    let _ = client_writes.shutdown(Shutdown::Both);
    let _ = server_reads.shutdown(Shutdown::Both);
    let _ = upward.join();
    Ok(())
}

fn dial(broker: &Path) -> io::Result<UnixStream> {
    let started = Instant::now();
    loop {
        match UnixStream::connect(broker) {
            Err(_) if started.elapsed() < BROKER_PATIENCE => std::thread::sleep(BROKER_RETRY),
            result => return result,
        }
    }
}

fn copy(from: &mut dyn Read, to: &mut dyn Write) {
    let mut chunk = vec![0; COPY_BYTES];
    loop {
        let read = match from.read(&mut chunk) {
            Ok(0) => return,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        if to.write_all(chunk.get(..read).unwrap_or_default()).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn echo_once(listener: &UnixListener) {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = String::new();
        stream.read_to_string(&mut request).unwrap();
        stream.write_all(format!("heard {request}").as_bytes()).unwrap();
    }

    fn ask(port: u16, text: &str) -> String {
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        client.write_all(text.as_bytes()).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn connections_reach_the_broker_also_after_its_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broker.sock");
        let port = start(0, path.clone()).unwrap();
        for word in ["first", "second"] {
            let listener = UnixListener::bind(&path).unwrap();
            let broker = std::thread::spawn(move || echo_once(&listener));
            assert_eq!(ask(port, word), format!("heard {word}"));
            broker.join().unwrap();
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn a_request_waits_for_a_broker_that_is_not_there_yet() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("broker.sock");
        let port = start(0, path.clone()).unwrap();
        let client = std::thread::spawn(move || ask(port, "early"));
        let listener = UnixListener::bind(&path).unwrap();
        echo_once(&listener);
        assert_eq!(client.join().unwrap(), "heard early");
    }
}
