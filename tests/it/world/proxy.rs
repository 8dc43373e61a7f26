//! A way over TCP to a server that can be cut, or swallow everything.

use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Open,
    /// Connections are closed, new ones at once.
    Cut,
    /// Connections stay and nothing comes through.
    Swallows,
}

/// Ends with the runtime that it was made in.
pub struct Proxy {
    pub address: SocketAddr,
    state: Arc<watch::Sender<State>>,
}

impl Proxy {
    /// To `host:port`.
    pub async fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound just now");
        let state = Arc::new(watch::channel(State::Open).0);
        let (states, target) = (Arc::clone(&state), target.to_owned());
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(pass(near, target.clone(), states.subscribe()));
            }
        });
        Self { address, state }
    }

    pub fn set(&self, state: State) {
        self.state.send_replace(state);
    }
}

async fn pass(mut near: TcpStream, target: String, mut state: watch::Receiver<State>) {
    if *state.borrow() == State::Cut {
        return;
    }
    let Ok(mut far) = TcpStream::connect(target).await else { return };
    loop {
        let now = *state.borrow_and_update();
        if now == State::Cut {
            return;
        }
        tokio::select! {
            changed = state.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            _ = tokio::io::copy_bidirectional(&mut near, &mut far), if now == State::Open => return,
        }
    }
}
