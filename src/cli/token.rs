//! Purpose: `zeblit token create|list|revoke`. Only on the machine of the store: a token cannot make tokens.

use super::args::TokenCommand;
use super::backend::{Local, actor, store_error};
use super::operate::{one_line, time};
use super::output::{CliError, Exit, Output};
use crate::clock::{Clock, IdKind, Ids, RandomIds, SystemClock};
use crate::config::random_hex;
use crate::http::api::{TOKEN_PREFIX, token_hash};
use crate::store::access::Token;
use crate::store::{self, StoreError};
use chrono::{DateTime, Duration, Utc};
use serde::Serialize;
use std::path::Path;

/// Longest name of a token, in characters: it is shown in every audit line.
const MAX_NAME_CHARS: usize = 60;

#[derive(Serialize)]
struct TokenView {
    id: String,
    name: String,
    state: &'static str,
    created_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
}

pub async fn run(file: Option<&Path>, command: &TokenCommand, output: Output) -> Result<Exit, CliError> {
    let local = Local::open_or_make(file).await?;
    let now = SystemClock.now();
    match command {
        TokenCommand::Create { name, days } => {
            let expires = days.map(|days| now + Duration::days(days));
            let text = create(&local, name, now, expires).await?;
            output.line(&text)?;
            output.note("Keep it: it is not shown again. Use it as ZEBLIT_TOKEN, with ZEBLIT_URL");
        }
        TokenCommand::List(args) => {
            let found = store::access::list(local.store()).await.map_err(|error| store_error(&error))?;
            let views: Vec<TokenView> = found.into_iter().map(|token| view(token, now)).collect();
            if args.json {
                output.json(&views)?;
            } else {
                output.table(&["ID", "NAME", "STATE", "CREATED (UTC)", "EXPIRES (UTC)"], &rows(&views))?;
            }
        }
        TokenCommand::Revoke { token } => revoke(&local, token, now, output).await?,
    }
    Ok(Exit::Ok)
}

fn valid_name(name: &str) -> bool {
    !name.is_empty()
        && name.chars().count() <= MAX_NAME_CHARS
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

async fn create(
    local: &Local,
    name: &str,
    now: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
) -> Result<String, CliError> {
    if !valid_name(name) {
        return Err(CliError::new(format!(
            "a token's name has 1 to {MAX_NAME_CHARS} of letters, digits, `-`, `_` and `.`"
        )));
    }
    let known = store::access::list(local.store()).await.map_err(|error| store_error(&error))?;
    if known.iter().any(|token| token.name == name && token.revoked_at.is_none()) {
        return Err(CliError::new(format!("there is a token named `{name}` already"))
            .hint(format!("choose another name, or `zeblit token revoke {name}` first")));
    }
    let random =
        random_hex().map_err(|error| CliError::because("the system gives no random bytes", &error))?;
    let text = format!("{TOKEN_PREFIX}{random}");
    let token = Token {
        id: RandomIds.next(IdKind::Token),
        name: name.to_owned(),
        created_at: now,
        expires_at,
        revoked_at: None,
    };
    let write = async {
        let mut tx = local.store().write_tx().await?;
        store::access::insert(&mut tx, &token, &token_hash(&text)).await?;
        store::audit::append(&mut tx, &entry("token.create", name, now)).await?;
        tx.commit().await
    };
    write.await.map_err(|error: StoreError| store_error(&error))?;
    Ok(text)
}

async fn revoke(local: &Local, token: &str, now: DateTime<Utc>, output: Output) -> Result<(), CliError> {
    let write = async {
        let mut tx = local.store().write_tx().await?;
        let found = store::access::revoke(&mut tx, token, now).await?;
        if found {
            store::audit::append(&mut tx, &entry("token.revoke", token, now)).await?;
            tx.commit().await?;
        }
        Ok::<bool, StoreError>(found)
    };
    if write.await.map_err(|error| store_error(&error))? {
        output.note(format!("Revoked `{token}`"));
        Ok(())
    } else {
        Err(CliError::new(format!("there is no token `{}` to revoke", one_line(token)))
            .hint("`zeblit token list` shows all"))
    }
}

fn entry(action: &str, name: &str, now: DateTime<Utc>) -> store::audit::Entry {
    store::audit::Entry {
        id: RandomIds.next(IdKind::Request),
        at: now,
        actor: actor(),
        action: action.to_owned(),
        subject: one_line(name),
        detail: String::new(),
    }
}

fn view(token: Token, now: DateTime<Utc>) -> TokenView {
    let state = match (token.revoked_at, token.expires_at) {
        (Some(_), _) => "revoked",
        (None, Some(expires)) if expires <= now => "expired",
        (None, _) => "valid",
    };
    TokenView {
        id: token.id,
        name: token.name,
        state,
        created_at: token.created_at,
        expires_at: token.expires_at,
    }
}

fn rows(views: &[TokenView]) -> Vec<Vec<String>> {
    views
        .iter()
        .map(|token| {
            vec![
                token.id.clone(),
                one_line(&token.name),
                token.state.to_owned(),
                time(token.created_at),
                token.expires_at.map_or_else(|| "never".into(), time),
            ]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_into_an_audit_line() {
        assert!(valid_name("ci-2.prod_x"));
        for bad in ["", "a b", "x\n", "ü", &"x".repeat(61)] {
            assert!(!valid_name(bad), "{bad}");
        }
    }
}
