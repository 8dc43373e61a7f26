//! Where model requests go: providers by configuration, and which of them serves a model.

use super::price::{PriceTable, Rates, undated};
use super::route::is_model_name;
use crate::domain::model_api::ModelApi;
use reqwest::header::{HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use std::collections::BTreeMap;

/// One model endpoint with its key.
#[derive(Debug, Clone)]
pub struct Provider {
    /// As the configuration names it, for messages.
    pub name: String,
    pub api: ModelApi,
    /// `https://api.anthropic.com`, `https://api.openai.com/v1`, `https://generativelanguage.googleapis.com`, or another
    /// server with the same API; a path in it is kept.
    pub base_url: String,
    pub key: Option<SecretString>,
    /// What it serves. Empty: what the price table has for its API, and no other provider lists.
    pub models: Vec<String>,
    /// A request without a key is refused here instead of there; local servers need none.
    pub needs_key: bool,
}

impl Provider {
    /// The one for all models of an API that no other provider lists.
    pub fn general(api: ModelApi, base_url: &str, key: Option<SecretString>) -> Self {
        Self {
            name: api.name().to_owned(),
            api,
            base_url: base_url.to_owned(),
            key,
            models: Vec::new(),
            needs_key: true,
        }
    }

    /// The header with its key; nothing for a server that needs none.
    pub(super) fn credentials(&self) -> Result<Option<(HeaderName, HeaderValue)>, String> {
        let Some(key) = &self.key else {
            return if self.needs_key { Err(no_key(self)) } else { Ok(None) };
        };
        let key = key.expose_secret().trim();
        let (name, value) = match self.api {
            ModelApi::Anthropic => ("x-api-key", HeaderValue::from_str(key)),
            ModelApi::OpenAi => ("authorization", HeaderValue::from_str(&format!("Bearer {key}"))),
            ModelApi::Gemini => ("x-goog-api-key", HeaderValue::from_str(key)),
        };
        let mut value = value.map_err(|_| {
            format!("the model key of the server has characters that no key has (provider `{}`)", self.name)
        })?;
        value.set_sensitive(true);
        Ok(Some((HeaderName::from_static(name), value)))
    }

    /// What is wrong with its address.
    pub(super) fn problem(&self) -> Option<String> {
        let fits = reqwest::Url::parse(&self.base_url).is_ok_and(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.query().is_none()
                && url.fragment().is_none()
                && url.username().is_empty()
                && url.password().is_none()
        });
        (!fits).then(|| "must be http(s)://HOST, without user, query and fragment".to_owned())
    }
}

fn no_key(provider: &Provider) -> String {
    format!("no model key is configured on the server (models.{}_api_key)", provider.name)
}

/// A model that can be asked: where, and for how much.
#[derive(Debug, Clone, Copy)]
pub(super) struct Served<'a> {
    pub(super) provider: &'a Provider,
    pub(super) rates: Rates,
}

/// All providers, prices and fallbacks.
#[derive(Debug)]
pub(super) struct Models {
    providers: Vec<Provider>,
    prices: PriceTable,
    fallback: BTreeMap<String, Vec<String>>,
}

impl Models {
    pub(super) fn new(
        mut providers: Vec<Provider>,
        prices: PriceTable,
        fallback: BTreeMap<String, Vec<String>>,
    ) -> Self {
        for provider in &mut providers {
            let length = provider.base_url.trim_end_matches('/').len();
            provider.base_url.truncate(length);
        }
        Self { providers, prices, fallback }
    }

    pub(super) fn providers(&self) -> &[Provider] {
        &self.providers
    }

    /// The provider that serves `model`, when `api` is what it speaks. `Err`: why not, for the agent.
    pub(super) fn serve(&self, api: ModelApi, model: &str) -> Result<Served<'_>, String> {
        let shown: String = model.chars().filter(|c| !c.is_control()).take(100).collect();
        let Some(rates) = self.prices.of(model) else {
            return Err(format!(
                "the price of model `{shown}` is not known; add [models.prices.\"{shown}\"] with input, output, \
                 cache_read and cache_write (dollars for a million tokens) to the server's configuration"
            ));
        };
        let lists = |provider: &&Provider| {
            provider.models.iter().any(|one| one == model || undated(model) == Some(one.as_str()))
        };
        let provider = match self.providers.iter().find(lists) {
            Some(provider) => Some(provider),
            None => self.general(rates.api.unwrap_or(ModelApi::Anthropic)),
        };
        match provider {
            Some(provider) if provider.api == api => Ok(Served { provider, rates }),
            Some(provider) => Err(format!(
                "model `{shown}` is served by the {} API, not by the {} API (models.providers)",
                provider.api.name(),
                api.name()
            )),
            None => Err(format!("no provider of the server serves model `{shown}` (models.providers)")),
        }
    }

    /// The provider of an API for what nobody lists.
    fn general(&self, api: ModelApi) -> Option<&Provider> {
        self.providers.iter().find(|provider| provider.api == api && provider.models.is_empty())
    }

    /// Where a list of models comes from: the general provider when it can be asked, else the first that can.
    pub(super) fn lister(&self, api: ModelApi) -> Option<&Provider> {
        let usable = |provider: &&Provider| provider.api == api && provider.credentials().is_ok();
        self.general(api).filter(usable).or_else(|| self.providers.iter().find(usable)).or(self.general(api))
    }

    /// What is asked instead of `model`, in order; only what the same API serves.
    pub(super) fn instead(&self, api: ModelApi, model: &str) -> Vec<String> {
        let known = self.fallback.get(model).or_else(|| self.fallback.get(undated(model)?));
        let usable = |other: &&String| {
            *other != model
                && (api != ModelApi::Gemini || is_model_name(other))
                && self.serve(api, other).is_ok_and(|served| served.provider.credentials().is_ok())
        };
        known.into_iter().flatten().filter(usable).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::budget::Price;

    fn provider(name: &str, api: ModelApi, models: &[&str]) -> Provider {
        Provider {
            name: name.into(),
            api,
            base_url: format!("http://{name}.example/"),
            key: Some(SecretString::from(format!("key of {name}"))),
            models: models.iter().map(|model| (*model).to_owned()).collect(),
            needs_key: true,
        }
    }

    fn models() -> Models {
        let own = Price { input: 1, output: 1, cache_read: 1, cache_write: 1 };
        Models::new(
            vec![
                provider("anthropic", ModelApi::Anthropic, &[]),
                provider("openai", ModelApi::OpenAi, &[]),
                provider("local", ModelApi::OpenAi, &["qwen/qwen3", "gpt-5-mini"]),
            ],
            PriceTable::new([("qwen/qwen3".into(), own), ("house".into(), own)]),
            BTreeMap::from([
                ("gpt-5".into(), vec!["gpt-5-mini".into(), "claude-sonnet-4-5".into(), "nobody".into()]),
                ("claude-opus-4-5".into(), vec!["claude-sonnet-4-5".into()]),
            ]),
        )
    }

    #[test]
    fn configuration_decides_who_serves_a_model() {
        let models = models();
        let name = |api, model: &str| models.serve(api, model).map(|served| served.provider.name.clone());
        assert_eq!(name(ModelApi::Anthropic, "claude-sonnet-4-5-20250929"), Ok("anthropic".into()));
        assert_eq!(name(ModelApi::OpenAi, "gpt-5"), Ok("openai".into()));
        assert_eq!(name(ModelApi::OpenAi, "qwen/qwen3"), Ok("local".into()));
        assert_eq!(name(ModelApi::OpenAi, "gpt-5-mini-2025-08-07"), Ok("local".into()));
        assert_eq!(name(ModelApi::Anthropic, "house"), Ok("anthropic".into()));
        for (api, model, why) in [
            (ModelApi::OpenAi, "claude-sonnet-4-5", "is served by the anthropic API, not by the openai API"),
            (ModelApi::OpenAi, "house", "is served by the anthropic API"),
            (ModelApi::Gemini, "gpt-5", "is served by the openai API"),
            (ModelApi::Gemini, "gemini-2.5-pro", "no provider of the server serves model"),
            (ModelApi::OpenAi, "gpt-99\n", "the price of model `gpt-99` is not known"),
        ] {
            assert!(name(api, model).unwrap_err().contains(why), "{model}: {:?}", name(api, model));
        }
    }

    #[test]
    fn a_fallback_speaks_the_same_api_and_has_a_price() {
        assert_eq!(models().instead(ModelApi::OpenAi, "gpt-5-2025-08-07"), ["gpt-5-mini"]);
        assert_eq!(models().instead(ModelApi::Anthropic, "claude-opus-4-5"), ["claude-sonnet-4-5"]);
        assert!(models().instead(ModelApi::OpenAi, "o3").is_empty());
    }

    #[test]
    fn each_api_has_its_own_place_for_the_key() {
        let key = |api| provider("p", api, &[]).credentials().unwrap().unwrap();
        assert_eq!(key(ModelApi::Anthropic).0, "x-api-key");
        assert_eq!(key(ModelApi::OpenAi).1, "Bearer key of p");
        assert_eq!(key(ModelApi::Gemini).0, "x-goog-api-key");
        let without = Provider { key: None, ..provider("openai", ModelApi::OpenAi, &[]) };
        assert!(without.credentials().unwrap_err().contains("models.openai_api_key"));
        assert!(Provider { needs_key: false, ..without }.credentials().unwrap().is_none());
    }

    #[test]
    fn addresses_of_endpoints_are_checked() {
        let problem =
            |url: &str| Provider { base_url: url.into(), ..provider("p", ModelApi::OpenAi, &[]) }.problem();
        for bad in ["", "api.anthropic.com", "ftp://x", "https://user@x", "https://x/?a=b", "https://x/#a"] {
            assert!(problem(bad).is_some(), "{bad}");
        }
        for good in ["https://api.anthropic.com", "http://127.0.0.1:1/gateway/anthropic"] {
            assert_eq!(problem(good), None, "{good}");
        }
    }
}
