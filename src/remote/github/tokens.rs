//! The App's credentials: its signed JWT, and installation tokens by repository and permission set, in memory only.

use super::client::{Call, Client, Credentials};
use crate::remote::RemoteError;
use chrono::{DateTime, TimeDelta, Utc};
use hyper::Method;
use octocrab::jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A token is not used in its last minutes: a push that begins with it must also end with it.
const EXPIRY_MARGIN: TimeDelta = TimeDelta::minutes(5);
/// Tokens kept; the expired go first when there are more.
const TOKENS_KEPT: usize = 1000;
/// Signed in the past, against clocks that run apart.
const JWT_BACKDATED: TimeDelta = TimeDelta::seconds(60);
/// Life of a JWT; GitHub allows 10 minutes in all.
const JWT_LIFE: TimeDelta = TimeDelta::minutes(8);

/// What a token may do. Each set is the least that its calls need; none may write workflows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PermissionSet {
    /// Files, issues, pull requests, roles.
    Read,
    /// Comments, reactions, pull requests.
    Talk,
    Checks,
    /// What the checks of a commit say.
    ReadChecks,
    /// Logs of workflows. The App may lack this permission.
    ReadActions,
    GitRead,
    GitWrite,
    /// Drafts, threads and auto-merge: changes of pull requests for which GitHub wants access to contents, too.
    Change,
    /// Forks.
    Administer,
}

impl PermissionSet {
    fn permissions(self) -> Value {
        match self {
            PermissionSet::Read => {
                json!({ "metadata": "read", "contents": "read", "issues": "read", "pull_requests": "read" })
            }
            PermissionSet::Talk => json!({ "metadata": "read", "issues": "write", "pull_requests": "write" }),
            PermissionSet::Checks => json!({ "metadata": "read", "checks": "write" }),
            PermissionSet::ReadChecks => json!({ "metadata": "read", "checks": "read" }),
            PermissionSet::ReadActions => json!({ "metadata": "read", "actions": "read" }),
            PermissionSet::GitRead => json!({ "metadata": "read", "contents": "read" }),
            PermissionSet::GitWrite => json!({ "metadata": "read", "contents": "write" }),
            PermissionSet::Change => {
                json!({ "metadata": "read", "contents": "write", "pull_requests": "write" })
            }
            PermissionSet::Administer => {
                json!({ "metadata": "read", "contents": "read", "administration": "write" })
            }
        }
    }
}

/// The App's private key.
pub struct AppKey {
    app_id: u64,
    /// None: this process may not speak as the App.
    key: Option<EncodingKey>,
}

#[derive(Serialize)]
struct Claims {
    iss: String,
    iat: i64,
    exp: i64,
}

impl AppKey {
    pub fn new(app_id: u64, pem: &SecretString) -> Result<Self, String> {
        if pem.expose_secret().is_empty() {
            return Ok(Self { app_id, key: None });
        }
        let key =
            EncodingKey::from_rsa_pem(pem.expose_secret().as_bytes()).map_err(|error| error.to_string())?;
        let app = Self { app_id, key: Some(key) };
        // A text that merely looks like a key shows at the first signature, not at start: sign one now.
        app.jwt(DateTime::UNIX_EPOCH).map_err(|error| error.to_string())?;
        Ok(app)
    }

    /// A token by which the App speaks as itself.
    pub fn jwt(&self, now: DateTime<Utc>) -> Result<SecretString, octocrab::jsonwebtoken::errors::Error> {
        let Some(key) = &self.key else {
            return Err(octocrab::jsonwebtoken::errors::ErrorKind::InvalidRsaKey(
                "this node has none".into(),
            )
            .into());
        };
        let claims = Claims {
            iss: self.app_id.to_string(),
            iat: (now - JWT_BACKDATED).timestamp(),
            exp: (now + JWT_LIFE).timestamp(),
        };
        encode(&Header::new(Algorithm::RS256), &claims, key).map(SecretString::from)
    }
}

/// Whose token: installation, repository, permissions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenKey {
    pub installation: i64,
    pub repo: i64,
    pub set: PermissionSet,
}

#[derive(Clone)]
struct Cached {
    token: SecretString,
    expires_at: DateTime<Utc>,
}

#[derive(Deserialize)]
struct TokenReply {
    token: SecretString,
    expires_at: DateTime<Utc>,
}

type Slot = Arc<tokio::sync::Mutex<Option<Cached>>>;

/// Installation tokens by what they may do. One request per key at a time, the others wait for its answer.
#[derive(Default)]
pub struct TokenCache {
    slots: Mutex<HashMap<TokenKey, Slot>>,
}

impl TokenCache {
    fn slot(&self, key: TokenKey, now: DateTime<Utc>) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= TOKENS_KEPT && !slots.contains_key(&key) {
            // A slot that is locked is being filled: keep it.
            slots.retain(|_, slot| {
                slot.try_lock().map_or(true, |cached| cached.as_ref().is_some_and(|c| c.expires_at > now))
            });
            if slots.len() >= TOKENS_KEPT {
                slots.clear();
            }
        }
        slots.entry(key).or_default().clone()
    }

    /// A token that is good for some minutes more: the cached one or a new one.
    pub async fn get(&self, client: &Client, key: TokenKey) -> Result<SecretString, RemoteError> {
        const OPERATION: &str = "request an installation token";
        let now = client.clock.now();
        let slot = self.slot(key, now);
        let mut cached = slot.lock().await;
        if let Some(cached) = cached.as_ref().filter(|cached| cached.expires_at - EXPIRY_MARGIN > now) {
            return Ok(cached.token.clone());
        }
        let body = json!({ "repository_ids": [key.repo], "permissions": key.set.permissions() });
        let path = format!("/app/installations/{}/access_tokens", key.installation);
        // A token that was made and never arrived does no harm: it expires.
        let call = Call::write(OPERATION, Method::POST, path, body, Credentials::App).harmless();
        let reply: TokenReply = client.call(call).await?.json()?;
        *cached = Some(Cached { token: reply.token.clone(), expires_at: reply.expires_at });
        Ok(reply.token)
    }

    /// Any live token of any repository, for facts that every token may read.
    pub fn any(&self, now: DateTime<Utc>) -> Option<SecretString> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.values().find_map(|slot| {
            let cached = slot.try_lock().ok()?;
            cached.as_ref().filter(|c| c.expires_at - EXPIRY_MARGIN > now).map(|c| c.token.clone())
        })
    }

    /// Drops a token that was refused, unless a newer one stands there already.
    pub async fn refused(&self, key: TokenKey, token: &SecretString) {
        let slot = {
            let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.get(&key).cloned()
        };
        if let Some(slot) = slot {
            let mut cached = slot.lock().await;
            if cached.as_ref().is_some_and(|c| c.token.expose_secret() == token.expose_secret()) {
                *cached = None;
            }
        }
    }

    pub fn forget(&self, installation: i64) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|key, _| key.installation != installation);
    }
}
