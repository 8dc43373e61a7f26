//! Purpose: the host's end of the gate: hand the job to the shim that waits at `<sockets>/gate.sock`.
//!
//! A shim that connects before there is a job waits at no cost. The gate stays open until one shim has acknowledged a
//! complete job, and can be opened again at the same path after a restart: a shim that already has its job never
//! connects again.

use super::SandboxError;
use crate::shim::GATE_ACKNOWLEDGEMENT;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::Instant;

/// The socket's name in the sockets folder.
pub const GATE_SOCKET: &str = "gate.sock";
/// How long a job waits at its gate: longer than the shim's own patience.
const GATE_LIFE: Duration = Duration::from_secs(900);
/// One delivery: the job is small and the reader is local.
const DELIVERY_LIMIT: Duration = Duration::from_secs(30);
/// The kernel's limit of a socket path is 108 bytes with its end mark.
const MAX_SOCKET_PATH: usize = 107;

/// An open gate; dropping it closes and removes the socket.
#[derive(Debug)]
pub struct Gate {
    task: tokio::task::JoinHandle<()>,
    path: PathBuf,
    job: watch::Sender<Option<Arc<[u8]>>>,
    waiting: watch::Receiver<bool>,
}

impl Gate {
    /// Listens at `<sockets>/gate.sock`, in place of what stands there. Who connects waits for the job.
    pub fn open(sockets: &Path) -> Result<Self, SandboxError> {
        let path = sockets.join(GATE_SOCKET);
        let io = |operation: &'static str| {
            let path = path.clone();
            move |source| SandboxError::Io { operation, path, source }
        };
        if path.as_os_str().len() > MAX_SOCKET_PATH {
            let detail = format!(
                "a socket path is at most {MAX_SOCKET_PATH} bytes long: set `sandbox.socket_dir` to a shorter folder"
            );
            return Err(io("open the gate")(std::io::Error::new(std::io::ErrorKind::InvalidInput, detail)));
        }
        std::fs::create_dir_all(sockets).map_err(io("make the sockets folder"))?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io("remove the old gate")(error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(io("open the gate"))?;
        // The container's uid is another one; the folder's private name keeps others out.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))
            .map_err(io("open the gate"))?;
        let (job, given) = watch::channel(None);
        let (tell, waiting) = watch::channel(false);
        let task = tokio::spawn(serve(listener, given, tell));
        Ok(Self { task, path, job, waiting })
    }

    /// The job, for the shim that waits and for any that connects until one has acknowledged it.
    pub fn give(&self, job: Vec<u8>) {
        self.job.send_replace(Some(Arc::from(job)));
    }

    /// Returns when a shim waits, at once if one does.
    pub async fn reached(&self) {
        let mut waiting = self.waiting.clone();
        // An end of the other side comes with the end of the gate.
        let _ = waiting.wait_for(|waiting| *waiting).await;
    }

    /// Whether a shim waits for its job now.
    pub fn has_shim(&self) -> bool {
        *self.waiting.borrow()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Hands the job out until one reader has acknowledged all of it, or nobody has for long.
async fn serve(
    listener: UnixListener,
    mut given: watch::Receiver<Option<Arc<[u8]>>>,
    waiting: watch::Sender<bool>,
) {
    let mut until: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = given_for(&mut given, &mut until) => return,
        };
        let Ok((mut stream, _)) = accepted else {
            // Out of descriptors: the shim tries again.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        waiting.send_replace(true);
        let job = tokio::select! {
            job = given.wait_for(Option::is_some) => job.ok().and_then(|job| (*job).clone()),
            // A shim says nothing before it has its job: this is its end.
            _ = stream.read_u8() => None,
        };
        waiting.send_replace(false);
        if let Some(job) = job
            && let Ok(true) = tokio::time::timeout(DELIVERY_LIMIT, deliver(stream, &job)).await
        {
            return;
        }
    }
}

/// Ends a while after the job was given.
async fn given_for(given: &mut watch::Receiver<Option<Arc<[u8]>>>, until: &mut Option<Instant>) {
    if given.wait_for(Option::is_some).await.is_ok() {
        tokio::time::sleep_until(*until.get_or_insert_with(|| Instant::now() + GATE_LIFE)).await;
    }
}

async fn deliver(mut stream: UnixStream, job: &[u8]) -> bool {
    let mut answer = [0];
    stream.write_all(job).await.is_ok()
        && stream.shutdown().await.is_ok()
        && stream.read_exact(&mut answer).await.is_ok()
        && answer == [GATE_ACKNOWLEDGEMENT]
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn take(path: &Path, acknowledge: bool) -> std::io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(path).await?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await?;
        if acknowledge {
            stream.write_all(&[GATE_ACKNOWLEDGEMENT]).await?;
        }
        Ok(bytes)
    }

    #[tokio::test]
    async fn the_job_is_handed_out_until_it_is_acknowledged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(GATE_SOCKET);
        let mut gate = Gate::open(folder.path()).unwrap();
        gate.give(b"job".to_vec());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
        assert_eq!(take(&path, false).await.unwrap(), b"job");
        assert_eq!(take(&path, true).await.unwrap(), b"job");
        (&mut gate.task).await.unwrap();
        assert!(take(&path, true).await.is_err());
    }

    #[tokio::test]
    async fn a_gate_opens_again_at_the_same_path_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(GATE_SOCKET);
        std::fs::write(&path, "left by a crash").unwrap();
        let gate = Gate::open(folder.path()).unwrap();
        gate.give(b"one".to_vec());
        assert_eq!(take(&path, false).await.unwrap(), b"one");
        drop(gate);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn who_comes_before_the_job_waits_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let gate = Gate::open(folder.path()).unwrap();
        let path = folder.path().join(GATE_SOCKET);
        assert!(!gate.has_shim());
        let gone = UnixStream::connect(&path).await.unwrap();
        gate.reached().await;
        assert!(gate.has_shim());
        drop(gone);
        gate.waiting.clone().wait_for(|waiting| !waiting).await.unwrap();
        let taking = tokio::spawn(async move { take(&path, true).await });
        gate.reached().await;
        gate.give(b"late".to_vec());
        assert_eq!(taking.await.unwrap().unwrap(), b"late");
    }

    #[tokio::test]
    async fn a_path_too_long_for_a_socket_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = Gate::open(&folder.path().join("x".repeat(120))).unwrap_err();
        let SandboxError::Io { source, .. } = error else { panic!("{error:?}") };
        assert!(source.to_string().contains("socket_dir"), "{source}");
    }
}
