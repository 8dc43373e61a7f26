//! What models cost and which API serves them: the table in `prices.toml`, with the operator's prices over it.

use crate::domain::budget::{Price, Usage};
use crate::domain::model_api::ModelApi;
use serde::Deserialize;
use std::collections::BTreeMap;

const TABLE: &str = include_str!("prices.toml");

/// Output tokens that are reserved, and allowed, when a request names no limit of its own.
const USUAL_OUTPUT: i64 = 32_000;

/// Dollars for a million tokens, as the file has them.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    input: f64,
    output: f64,
    cache_read: f64,
    cache_write: f64,
    max_output: i64,
    long: Option<LongRow>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct LongRow {
    above: i64,
    input: f64,
    output: f64,
    cache_read: f64,
    cache_write: f64,
}

/// Micros for a million tokens, from dollars.
fn micros(dollars: f64) -> i64 {
    (dollars * 1e6).round() as i64
}

/// What one model costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    pub price: Price,
    /// With more than so many tokens of input, the whole request costs this.
    pub long: Option<(i64, Price)>,
    /// The output of a request that names no limit.
    pub usual_output: i64,
    /// Whose table it is in; `None`: priced by the operator only.
    pub api: Option<ModelApi>,
}

impl Rates {
    /// The price of a request with so many tokens of input, cached ones included.
    fn at(&self, input: i64) -> Price {
        match self.long {
            Some((above, long)) if input > above => long,
            _ => self.price,
        }
    }

    /// What was used. `hour`: tokens of `cache_write` that went to a cache of an hour, which cost twice the input.
    pub fn cost(&self, usage: &Usage, hour: i64) -> i64 {
        let input = usage.input.saturating_add(usage.cache_read).saturating_add(usage.cache_write);
        let price = self.at(input);
        let hour = hour.clamp(0, usage.cache_write.max(0));
        let plain = Usage { cache_write: usage.cache_write - hour, ..*usage };
        let hour_price = Price { input: price.input.saturating_mul(2), ..price };
        price.cost(&plain).saturating_add(hour_price.cost(&Usage { input: hour, ..Usage::default() }))
    }

    /// The most that a request can cost.
    pub fn worst(&self, input: i64, output: i64, hour_cache: bool) -> i64 {
        let price = self.at(input);
        let mut dearest = price.input.max(price.cache_write).max(price.cache_read);
        if hour_cache {
            dearest = dearest.max(price.input.saturating_mul(2));
        }
        Price { input: dearest, ..price }.cost(&Usage { input, output, ..Usage::default() })
    }
}

/// What models cost.
#[derive(Debug, Clone)]
pub struct PriceTable {
    rates: BTreeMap<String, Rates>,
}

impl PriceTable {
    /// The built-in table with the operator's own prices over it.
    pub fn new(overrides: impl IntoIterator<Item = (String, Price)>) -> Self {
        let table: BTreeMap<ModelApi, BTreeMap<String, Row>> =
            toml::from_str(TABLE).expect("a test reads the table");
        let mut rates: BTreeMap<String, Rates> = BTreeMap::new();
        for (api, rows) in table {
            rates.extend(rows.into_iter().map(|(model, row)| (model, row.rates(api))));
        }
        for (model, price) in overrides {
            let known = rates.get(&model).or_else(|| rates.get(undated(&model)?)).copied();
            // The operator's price is the price, however long the request is.
            let own = Rates {
                price,
                long: None,
                usual_output: known.map_or(USUAL_OUTPUT, |known| known.usual_output),
                api: known.and_then(|known| known.api),
            };
            rates.insert(model, own);
        }
        Self { rates }
    }

    /// The price of a model by its exact name, or without its date (`-20250929`, `-2025-08-07`), `-latest` or `-0`.
    /// A name that only begins like a known one has no price: a new model may cost more.
    pub fn of(&self, model: &str) -> Option<Rates> {
        let known = self.rates.get(model).or_else(|| self.rates.get(undated(model)?));
        known.copied()
    }

    /// The names that have a price, for messages.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.rates.keys().map(String::as_str)
    }
}

impl Row {
    fn rates(self, api: ModelApi) -> Rates {
        Rates {
            price: Price {
                input: micros(self.input),
                output: micros(self.output),
                cache_read: micros(self.cache_read),
                cache_write: micros(self.cache_write),
            },
            long: self.long.map(|long| {
                let price = Price {
                    input: micros(long.input),
                    output: micros(long.output),
                    cache_read: micros(long.cache_read),
                    cache_write: micros(long.cache_write),
                };
                (long.above, price)
            }),
            usual_output: self.max_output.min(USUAL_OUTPUT),
            api: Some(api),
        }
    }
}

/// The name without its date or `-latest`, when it has one.
pub(super) fn undated(model: &str) -> Option<&str> {
    let (name, end) = model.rsplit_once('-')?;
    let digits = |text: &str, count: usize| text.len() == count && text.bytes().all(|b| b.is_ascii_digit());
    if digits(end, 8) || end == "latest" || end == "0" {
        return Some(name);
    }
    // -2025-08-07
    let (name, month) = name.rsplit_once('-')?;
    let (name, year) = name.rsplit_once('-')?;
    (digits(end, 2) && digits(month, 2) && digits(year, 4)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_found_by_name_with_and_without_their_date() {
        let table = PriceTable::new([]);
        for (model, api, input, output) in [
            ("claude-sonnet-4-5", ModelApi::Anthropic, 3_000_000, 15),
            ("claude-sonnet-4-5-20250929", ModelApi::Anthropic, 3_000_000, 15),
            ("claude-sonnet-4-20250514", ModelApi::Anthropic, 3_000_000, 15),
            ("claude-sonnet-4-0", ModelApi::Anthropic, 3_000_000, 15),
            ("claude-opus-4-20250514", ModelApi::Anthropic, 15_000_000, 75),
            ("claude-opus-4-1-20250805", ModelApi::Anthropic, 15_000_000, 75),
            ("claude-opus-4-5-20251101", ModelApi::Anthropic, 5_000_000, 25),
            ("claude-haiku-4-5-20251001", ModelApi::Anthropic, 1_000_000, 5),
            ("gpt-5", ModelApi::OpenAi, 1_250_000, 10),
            ("gpt-5-2025-08-07", ModelApi::OpenAi, 1_250_000, 10),
            ("gpt-5-codex", ModelApi::OpenAi, 1_250_000, 10),
            ("gemini-2.5-pro", ModelApi::Gemini, 1_250_000, 10),
        ] {
            let rates = table.of(model).unwrap();
            assert_eq!((rates.price.input, rates.price.output), (input, output * 1_000_000), "{model}");
            assert_eq!(rates.api, Some(api), "{model}");
        }
        let haiku = table.of("claude-3-5-haiku-latest").unwrap();
        assert_eq!(
            haiku.price,
            Price { input: 800_000, output: 4_000_000, cache_read: 80_000, cache_write: 1_000_000 }
        );
    }

    #[test]
    fn a_model_that_only_begins_like_a_known_one_has_no_price() {
        let table = PriceTable::new([]);
        for model in [
            "",
            "claude",
            "claude-opus-4-9",
            "claude-sonnet-4-5x",
            "claude-sonnet-4-5-2025",
            "gpt-5-2025-08",
            "gpt-5-2025-08-007",
            "gpt-55",
            "models/gemini-2.5-pro",
            "-0",
            "--",
        ] {
            assert_eq!(table.of(model), None, "{model}");
        }
    }

    #[test]
    fn every_row_of_the_table_makes_sense() {
        let table = PriceTable::new([]);
        assert!(table.names().count() > 50);
        for model in table.names() {
            let rates = table.of(model).unwrap();
            let p = rates.price;
            assert!(p.input > 0 && p.cache_read <= p.input && p.input <= p.output, "{model}");
            assert!(p.cache_write >= p.input && p.cache_write <= p.input * 2, "{model}");
            assert!((1..=USUAL_OUTPUT).contains(&rates.usual_output), "{model}");
            if let Some((above, long)) = rates.long {
                assert!(above > 0 && long.input > p.input && long.output > p.output, "{model}");
            }
        }
    }

    #[test]
    fn the_operators_prices_win() {
        let own = Price { input: 1, output: 2, cache_read: 3, cache_write: 4 };
        let table = PriceTable::new([("claude-opus-4-5".into(), own), ("house-model".into(), own)]);
        let opus = table.of("claude-opus-4-5-20251101").unwrap();
        assert_eq!((opus.price, opus.api), (own, Some(ModelApi::Anthropic)));
        let house = table.of("house-model").unwrap();
        assert_eq!((house.price, house.api), (own, None));
        assert_eq!(table.of("claude-opus-4-1").unwrap().price.input, 15_000_000);
    }

    #[test]
    fn a_thousand_tokens_of_each_kind_cost_what_the_table_says() {
        let rates = PriceTable::new([]).of("claude-sonnet-4-5").unwrap();
        let usage = Usage { input: 1000, output: 1000, cache_read: 1000, cache_write: 1000 };
        assert_eq!(rates.cost(&usage, 0), 3_000 + 15_000 + 300 + 3_750);
        // Written to a cache of an hour: twice the input instead of 1.25 times.
        assert_eq!(rates.cost(&usage, 400), 3_000 + 15_000 + 300 + 600 * 375 / 100 + 400 * 6);
        assert_eq!(rates.cost(&usage, 5000), 3_000 + 15_000 + 300 + 6_000);
        assert_eq!(rates.worst(1000, 0, false), 3_750);
        assert_eq!(rates.worst(1000, 0, true), 6_000);
    }

    #[test]
    fn a_long_request_costs_the_long_price_from_its_first_token() {
        let rates = PriceTable::new([]).of("gemini-2.5-pro").unwrap();
        let usage = |input, cache_read| Usage { input, cache_read, output: 1000, cache_write: 0 };
        assert_eq!(rates.cost(&usage(200_000, 0), 0), 250_000 + 10_000);
        assert_eq!(rates.cost(&usage(200_001, 0), 0), 500_003 + 15_000);
        assert_eq!(rates.cost(&usage(100_000, 100_001), 0), 250_000 + 25_001 + 15_000);
        assert_eq!(rates.worst(300_000, 1000, false), 750_000 + 15_000);
    }
}
