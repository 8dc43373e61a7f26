//! Price table of Claude models, overridable by configuration.

use crate::domain::budget::Price;
use std::collections::BTreeMap;

/// Micros for a million tokens, from whole cents: cache writes cost 1.25 times and cache reads a tenth of the input.
const fn claude(input_cents: i64, output_cents: i64) -> Price {
    let input = input_cents * 10_000;
    Price { input, output: output_cents * 10_000, cache_read: input / 10, cache_write: input / 4 * 5 }
}

/// Names without a date, and their prices. Source: the cost table inside Claude Code 2.1.197, read 2026-11-21; it agrees
/// with Anthropic's published prices where those were known (Opus 4 and 4.1: 15/75, Opus 4.5: 5/25, Sonnet: 3/15,
/// Haiku 4.5: 1/5, Haiku 3.5: 0.80/4 dollars for a million tokens of input/output).
const BUILTIN: &[(&str, Price)] = &[
    ("claude-3-5-haiku", claude(80, 400)),
    ("claude-haiku-4-5", claude(100, 500)),
    ("claude-3-5-sonnet", claude(300, 1500)),
    ("claude-3-7-sonnet", claude(300, 1500)),
    ("claude-sonnet-4", claude(300, 1500)),
    ("claude-sonnet-4-5", claude(300, 1500)),
    ("claude-sonnet-4-6", claude(300, 1500)),
    ("claude-sonnet-5", claude(300, 1500)),
    ("claude-opus-4", claude(1500, 7500)),
    ("claude-opus-4-1", claude(1500, 7500)),
    ("claude-opus-4-5", claude(500, 2500)),
    ("claude-opus-4-6", claude(500, 2500)),
    ("claude-opus-4-7", claude(500, 2500)),
    ("claude-opus-4-8", claude(500, 2500)),
    ("claude-fable-5", claude(1000, 5000)),
    ("claude-mythos-5", claude(1000, 5000)),
];

/// What models cost.
#[derive(Debug, Clone)]
pub struct PriceTable {
    prices: BTreeMap<String, Price>,
}

impl PriceTable {
    /// The built-in table with the operator's own prices over it.
    pub fn new(overrides: impl IntoIterator<Item = (String, Price)>) -> Self {
        let mut prices: BTreeMap<String, Price> =
            BUILTIN.iter().map(|(name, price)| ((*name).to_owned(), *price)).collect();
        prices.extend(overrides);
        Self { prices }
    }

    /// The price of a model by its exact name, or without its date (`-20250929`), `-latest` or `-0`.
    /// A name that only begins like a known one has no price: a new model may cost more.
    pub fn of(&self, model: &str) -> Option<Price> {
        let known = self.prices.get(model).or_else(|| self.prices.get(undated(model)?));
        known.copied()
    }

    /// The names that have a price, for messages.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.prices.keys().map(String::as_str)
    }
}

fn undated(model: &str) -> Option<&str> {
    let (name, end) = model.rsplit_once('-')?;
    let dated = end.len() == 8 && end.bytes().all(|b| b.is_ascii_digit());
    (dated || end == "latest" || end == "0").then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::budget::Usage;

    #[test]
    fn models_are_found_by_name_with_and_without_their_date() {
        let table = PriceTable::new([]);
        for (model, input, output) in [
            ("claude-sonnet-4-5", 3, 15),
            ("claude-sonnet-4-5-20250929", 3, 15),
            ("claude-sonnet-4-20250514", 3, 15),
            ("claude-sonnet-4-0", 3, 15),
            ("claude-opus-4-20250514", 15, 75),
            ("claude-opus-4-1-20250805", 15, 75),
            ("claude-opus-4-5-20251101", 5, 25),
            ("claude-haiku-4-5-20251001", 1, 5),
        ] {
            let price = table.of(model).unwrap();
            assert_eq!((price.input, price.output), (input * 1_000_000, output * 1_000_000), "{model}");
        }
        let haiku = table.of("claude-3-5-haiku-latest").unwrap();
        assert_eq!(
            haiku,
            Price { input: 800_000, output: 4_000_000, cache_read: 80_000, cache_write: 1_000_000 }
        );
    }

    #[test]
    fn a_model_that_only_begins_like_a_known_one_has_no_price() {
        let table = PriceTable::new([]);
        for model in
            ["", "claude", "claude-opus-4-9", "claude-sonnet-4-5x", "claude-sonnet-4-5-2025", "gpt-5", "-0"]
        {
            assert_eq!(table.of(model), None, "{model}");
        }
    }

    #[test]
    fn the_operators_prices_win() {
        let own = Price { input: 1, output: 2, cache_read: 3, cache_write: 4 };
        let table = PriceTable::new([("claude-opus-4-5".into(), own), ("house-model".into(), own)]);
        assert_eq!(table.of("claude-opus-4-5-20251101"), Some(own));
        assert_eq!(table.of("house-model"), Some(own));
        assert_eq!(table.of("claude-opus-4-1").unwrap().input, 15_000_000);
    }

    #[test]
    fn a_thousand_tokens_of_each_kind_cost_what_the_table_says() {
        let price = PriceTable::new([]).of("claude-sonnet-4-5").unwrap();
        let usage = Usage { input: 1000, output: 1000, cache_read: 1000, cache_write: 1000 };
        assert_eq!(price.cost(&usage), 3_000 + 15_000 + 300 + 3_750);
    }
}
