//! Money in millionths of a US dollar ("micros"), how it is written, and price arithmetic.

/// `1.5` for 1 500 000; no more digits than needed, so that it parses back to the same number.
pub fn dollars_exact(micros: i64) -> String {
    let sign = if micros < 0 { "-" } else { "" };
    let micros = micros.unsigned_abs();
    let text = format!("{sign}{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `$0.42`: two decimals, rounded up so that a cost is never shown as less than it is.
pub fn dollars(micros: i64) -> String {
    let cents = micros.max(0).unsigned_abs().div_ceil(10_000);
    format!("${}.{:02}", cents / 100, cents % 100)
}

/// Reads `5`, `0.50` or `$2.5` as micros. At most six decimals, at most 1 000 000 dollars, more than zero.
pub fn parse_dollars(text: &str) -> Option<i64> {
    let text = text.strip_prefix('$').unwrap_or(text);
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 6 || whole.len() > 7 {
        return None;
    }
    let whole: i64 = whole.parse().ok()?;
    let fraction: i64 = format!("{fraction:0<6}").parse().ok()?;
    let micros = whole.checked_mul(1_000_000)?.checked_add(fraction)?;
    (micros > 0 && micros <= 1_000_000_000_000).then_some(micros)
}

/// Tokens of one model reply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Usage {
    pub input: i64,
    pub output: i64,
    pub cache_read: i64,
    pub cache_write: i64,
}

impl Usage {
    pub fn total(&self) -> i64 {
        self.input + self.output + self.cache_read + self.cache_write
    }
}

/// US dollars per million tokens, times one million: micros per million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Price {
    pub input: i64,
    pub output: i64,
    pub cache_read: i64,
    pub cache_write: i64,
}

impl Price {
    /// Cost in micros, rounded up.
    pub fn cost(&self, usage: &Usage) -> i64 {
        let total = i128::from(usage.input) * i128::from(self.input)
            + i128::from(usage.output) * i128::from(self.output)
            + i128::from(usage.cache_read) * i128::from(self.cache_read)
            + i128::from(usage.cache_write) * i128::from(self.cache_write);
        let micros = (total + 999_999) / 1_000_000;
        i64::try_from(micros).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_survives_writing_and_reading() {
        for micros in [1, 10_000, 420_000, 1_500_000, 5_000_000, 123_456_789] {
            assert_eq!(parse_dollars(&dollars_exact(micros)), Some(micros));
        }
        assert_eq!(parse_dollars("$2.5"), Some(2_500_000));
        for bad in ["", "0", "-1", "1e3", "abc", "1.2.3", "99999999", "0.0000001", ".5"] {
            assert_eq!(parse_dollars(bad), None, "{bad}");
        }
    }

    #[test]
    fn shown_cost_is_never_less_than_the_cost() {
        assert_eq!(dollars(0), "$0.00");
        assert_eq!(dollars(1), "$0.01");
        assert_eq!(dollars(420_000), "$0.42");
        assert_eq!(dollars(420_001), "$0.43");
    }

    #[test]
    fn cost_is_rounded_up() {
        let price =
            Price { input: 3_000_000, output: 15_000_000, cache_read: 300_000, cache_write: 3_750_000 };
        assert_eq!(price.cost(&Usage { input: 1, ..Usage::default() }), 3);
        assert_eq!(price.cost(&Usage { cache_read: 1, ..Usage::default() }), 1);
    }
}
