//! Which requests of a container there are: one path scheme for three model APIs on one socket.
//!
//! | API | paths in the container |
//! |---|---|
//! | Anthropic | `/v1/messages`, `/v1/messages/count_tokens`, `/v1/models`; the same below `/anthropic` |
//! | OpenAI | `/openai/v1/responses`, `/openai/v1/chat/completions`, `/openai/v1/models`; `/v1/responses` and `/v1/chat/completions` |
//! | Gemini | `/gemini/v1beta/models`, `/gemini/v1beta/models/M:generateContent`, `:streamGenerateContent`, `:countTokens`; the same without `/gemini` |
//!
//! Plain `/v1/models` is Anthropic's with an `anthropic-version` header, else OpenAI's.

use crate::domain::model_api::ModelApi;
use hyper::Method;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Messages,
    Responses,
    Chat,
    Generate {
        stream: bool,
    },
    /// Tokens of a request, counted for nothing; Anthropic's and Gemini's.
    CountTokens,
    /// The list of models, or one of it.
    Models,
}

impl Call {
    pub(super) fn is_paid(self) -> bool {
        !matches!(self, Call::CountTokens | Call::Models)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) api: ModelApi,
    pub(super) call: Call,
    /// The model, where the path names it.
    pub(super) model: Option<String>,
    /// Behind the provider's base URL; without the query.
    pub(super) tail: String,
}

/// What is told to a request that goes nowhere.
pub(super) const REACHABLE: &str = "only the model APIs are reachable from a run: /v1/messages, /v1/messages/count_tokens, \
     /v1/models, /openai/v1/responses, /openai/v1/chat/completions, /openai/v1/models and \
     /gemini/v1beta/models/… (generateContent, streamGenerateContent, countTokens)";

/// The one place that knows paths. Nothing is decoded or normalised: what is not exactly a known path is none.
pub(super) fn route(method: &Method, path: &str, anthropic_version: bool) -> Option<Route> {
    let found = |api, call, tail: &str| Some(Route { api, call, model: None, tail: tail.to_owned() });
    let post = method == Method::POST;
    let get = method == Method::GET;
    if !post && !get {
        return None;
    }
    let (prefix, rest) = match path {
        _ if path.starts_with("/anthropic/") => (Some(ModelApi::Anthropic), path.get(10..)?),
        _ if path.starts_with("/openai/") => (Some(ModelApi::OpenAi), path.get(7..)?),
        _ if path.starts_with("/gemini/") => (Some(ModelApi::Gemini), path.get(7..)?),
        _ => (None, path),
    };
    let may_be = |api: ModelApi| prefix.is_none_or(|prefix| prefix == api);
    match rest {
        "/v1/messages" if post && may_be(ModelApi::Anthropic) => {
            found(ModelApi::Anthropic, Call::Messages, rest)
        }
        "/v1/messages/count_tokens" if post && may_be(ModelApi::Anthropic) => {
            found(ModelApi::Anthropic, Call::CountTokens, rest)
        }
        "/v1/responses" if post && may_be(ModelApi::OpenAi) => {
            found(ModelApi::OpenAi, Call::Responses, "/responses")
        }
        "/v1/chat/completions" if post && may_be(ModelApi::OpenAi) => {
            found(ModelApi::OpenAi, Call::Chat, "/chat/completions")
        }
        _ if rest == "/v1/models" || rest.starts_with("/v1/models/") => {
            let api =
                prefix.unwrap_or(if anthropic_version { ModelApi::Anthropic } else { ModelApi::OpenAi });
            let one = rest.strip_prefix("/v1/models")?;
            let good = get
                && api != ModelApi::Gemini
                && (one.is_empty() || one.strip_prefix('/').is_some_and(is_model_name));
            // An OpenAI base URL has its version in it already.
            let tail = if api == ModelApi::OpenAi { rest.strip_prefix("/v1")? } else { rest };
            if good { found(api, Call::Models, tail) } else { None }
        }
        _ if may_be(ModelApi::Gemini)
            && (rest == "/v1beta/models" || rest.starts_with("/v1beta/models/")) =>
        {
            gemini(rest, post, get)
        }
        _ => None,
    }
}

fn gemini(path: &str, post: bool, get: bool) -> Option<Route> {
    let one = path.strip_prefix("/v1beta/models")?;
    let (call, model) = match one.strip_prefix('/') {
        None if one.is_empty() && get => (Call::Models, None),
        Some(name) if get && is_model_name(name) => (Call::Models, None),
        Some(rest) if post => {
            let (name, action) = rest.split_once(':')?;
            let call = match action {
                "generateContent" => Call::Generate { stream: false },
                "streamGenerateContent" => Call::Generate { stream: true },
                "countTokens" => Call::CountTokens,
                _ => return None,
            };
            (call, Some(name).filter(|name| is_model_name(name)).map(str::to_owned).map(Some)?)
        }
        _ => return None,
    };
    Some(Route { api: ModelApi::Gemini, call, model, tail: path.to_owned() })
}

/// A name that can stand in a path without being anything else.
pub(super) fn is_model_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 100
        && !name.contains("..")
        && name != "."
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'@'))
}

/// The query as it goes on: known parameters only. `Err`: the first that is not known.
pub(super) fn query(route: &Route, query: &str) -> Result<String, String> {
    let known: &[&str] = match (route.api, route.call) {
        (ModelApi::Anthropic, Call::Models) => &["limit", "after_id", "before_id", "beta"],
        (ModelApi::Anthropic, _) => &["beta"],
        (ModelApi::OpenAi, _) => &[],
        (ModelApi::Gemini, Call::Models) => &["pageSize", "pageToken"],
        (ModelApi::Gemini, _) => &["alt"],
    };
    let mut kept = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        // The client's own credentials are dropped wherever they stand.
        if route.api == ModelApi::Gemini && matches!(name, "key" | "access_token") {
            continue;
        }
        let plain = value.len() <= 128
            && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'='));
        if !known.contains(&name) || !plain {
            return Err(name.chars().filter(|c| !c.is_control()).take(60).collect());
        }
        kept.push(pair);
    }
    if route.call == (Call::Generate { stream: true }) && !kept.contains(&"alt=sse") {
        return Err("alt (only `alt=sse` is metered)".to_owned());
    }
    Ok(if kept.is_empty() { String::new() } else { format!("?{}", kept.join("&")) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn post(path: &str) -> Option<(ModelApi, Call, String)> {
        route(&Method::POST, path, false).map(|route| (route.api, route.call, route.tail))
    }

    #[test]
    fn every_api_is_reachable_with_and_without_its_prefix() {
        use ModelApi::{Anthropic, Gemini, OpenAi};
        for (path, api, call, tail) in [
            ("/v1/messages", Anthropic, Call::Messages, "/v1/messages"),
            ("/anthropic/v1/messages", Anthropic, Call::Messages, "/v1/messages"),
            ("/v1/messages/count_tokens", Anthropic, Call::CountTokens, "/v1/messages/count_tokens"),
            ("/v1/responses", OpenAi, Call::Responses, "/responses"),
            ("/openai/v1/responses", OpenAi, Call::Responses, "/responses"),
            ("/openai/v1/chat/completions", OpenAi, Call::Chat, "/chat/completions"),
            ("/v1/chat/completions", OpenAi, Call::Chat, "/chat/completions"),
            (
                "/gemini/v1beta/models/gemini-2.5-pro:generateContent",
                Gemini,
                Call::Generate { stream: false },
                "/v1beta/models/gemini-2.5-pro:generateContent",
            ),
            (
                "/v1beta/models/gemini-2.5-pro:streamGenerateContent",
                Gemini,
                Call::Generate { stream: true },
                "/v1beta/models/gemini-2.5-pro:streamGenerateContent",
            ),
            ("/v1beta/models/g:countTokens", Gemini, Call::CountTokens, "/v1beta/models/g:countTokens"),
        ] {
            assert_eq!(post(path), Some((api, call, tail.to_owned())), "{path}");
        }
        let models = |path: &str, version| route(&Method::GET, path, version).map(|r| (r.api, r.tail));
        assert_eq!(models("/v1/models", true), Some((Anthropic, "/v1/models".into())));
        assert_eq!(models("/v1/models", false), Some((OpenAi, "/models".into())));
        assert_eq!(models("/anthropic/v1/models/m", false), Some((Anthropic, "/v1/models/m".into())));
        assert_eq!(models("/openai/v1/models/gpt-5", true), Some((OpenAi, "/models/gpt-5".into())));
        assert_eq!(models("/gemini/v1beta/models", false), Some((Gemini, "/v1beta/models".into())));
        assert_eq!(models("/v1beta/models/g-1.5", false), Some((Gemini, "/v1beta/models/g-1.5".into())));
        let named = route(&Method::POST, "/v1beta/models/gemini-2.5-pro:countTokens", false).unwrap();
        assert_eq!(named.model.as_deref(), Some("gemini-2.5-pro"));
    }

    #[test]
    fn what_is_not_exactly_a_known_path_is_none() {
        for path in [
            "",
            "/",
            "/v1",
            "/v1/messages/",
            "//v1/messages",
            "/v1/messages/batches",
            "/v1/messages%2fbatches",
            "/v1/../v1/files",
            "/v1/files",
            "/v1/complete",
            "/v1/responses/compact",
            "/v1/responses/resp_1",
            "/v1/responses/resp_1/cancel",
            "/v1/completions",
            "/v1/embeddings",
            "/v1/images/generations",
            "/v1/audio/speech",
            "/v1/conversations",
            "/v1/vector_stores",
            "/v1/containers",
            "/v1/fine_tuning/jobs",
            "/openai/v1/files",
            "/openai/v1/messages",
            "/openai/v1beta/models/g:generateContent",
            "/anthropic/v1/responses",
            "/gemini/v1/messages",
            "/gemini/v1beta/files",
            "/gemini/v1beta/cachedContents",
            "/gemini/v1beta/models/g:batchGenerateContent",
            "/gemini/v1beta/models/g:embedContent",
            "/gemini/v1beta/models/g:predict",
            "/gemini/v1beta/models/../x:generateContent",
            "/gemini/v1beta/models/:generateContent",
            "/gemini/v1beta/models/a/b:generateContent",
            "/gemini/v1beta/models/a:generateContent:x",
            "/gemini/v1beta/tunedModels/a:generateContent",
            "/gemini/upload/v1beta/files",
            "/v1beta/models",
            "/openai",
            "/openai/",
        ] {
            assert_eq!(post(path), None, "{path}");
        }
        for path in [
            "/v1/messages",
            "/v1/models/",
            "/v1/models/..",
            "/v1/models/a/b",
            "/gemini/v1/models",
            "/metrics",
        ] {
            assert_eq!(route(&Method::GET, path, true), None, "{path}");
        }
        for method in
            [Method::PUT, Method::DELETE, Method::PATCH, Method::HEAD, Method::OPTIONS, Method::CONNECT]
        {
            assert_eq!(route(&method, "/v1/messages", true), None, "{method}");
            assert_eq!(route(&method, "/v1/models", true), None, "{method}");
        }
    }

    #[test]
    fn queries_are_an_allow_list_and_lose_credentials() {
        let messages = route(&Method::POST, "/v1/messages", true).unwrap();
        assert_eq!(query(&messages, "beta=true"), Ok("?beta=true".into()));
        assert_eq!(query(&messages, ""), Ok(String::new()));
        assert_eq!(query(&messages, "beta=true&x=1"), Err("x".into()));
        assert_eq!(query(&messages, "beta=a%20b"), Err("beta".into()));
        let stream = route(&Method::POST, "/v1beta/models/g:streamGenerateContent", false).unwrap();
        assert_eq!(query(&stream, "key=secret&alt=sse"), Ok("?alt=sse".into()));
        assert!(query(&stream, "key=secret").unwrap_err().contains("alt=sse"));
        assert!(query(&stream, "alt=json").is_err());
        let chat = route(&Method::POST, "/v1/chat/completions", false).unwrap();
        assert!(query(&chat, "api-version=1").is_err());
    }
}
