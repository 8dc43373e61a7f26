//! Web pages: the page of a run behind a signed link, and its live log.
//!
//! Every text on a page may come from an agent or a stranger: templates escape, scripts set text and never markup,
//! and the content security policy allows nothing but our own two files.

mod feed;
mod live;
mod pages;

pub(super) use feed::Feeds;

use super::Http;
use crate::app::App;
use crate::config::RunPage;
use axum::Router;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Deserialize;

const STYLE: &str = include_str!("assets/style.css");
const SCRIPT: &str = include_str!("assets/run.js");

pub(super) fn pages() -> Router<Http> {
    Router::new()
        .route("/runs/{id}", get(pages::run))
        .route("/runs/{id}/artifacts/{*path}", get(pages::artifact))
        .route("/assets/style.css", get(|| asset("text/css; charset=utf-8", STYLE)))
        .route("/assets/run.js", get(|| asset("text/javascript; charset=utf-8", SCRIPT)))
}

pub(super) fn streams() -> Router<Http> {
    Router::new().route("/runs/{id}/events", get(live::events))
}

async fn asset(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")], text).into_response()
}

/// The signature of a link: `e` until when (seconds since 1970), `s` made by the server; `after` where a live log goes on.
#[derive(Debug, Default, Deserialize)]
struct Signed {
    #[serde(default)]
    e: i64,
    #[serde(default)]
    s: String,
    #[serde(default)]
    after: i64,
}

/// What a link gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Granted,
    /// Made by somebody else, for another run, or altered.
    Wrong,
    Expired,
    /// Run pages are off.
    Off,
}

fn access(app: &App, run: &str, signed: &Signed) -> Access {
    if app.config.server.run_page == RunPage::Off {
        Access::Off
    } else if !super::view::is_id(run) || !app.signer.run_path_is_valid(run, signed.e, &signed.s) {
        Access::Wrong
    } else if signed.e < app.clock.now().timestamp() {
        Access::Expired
    } else {
        Access::Granted
    }
}
