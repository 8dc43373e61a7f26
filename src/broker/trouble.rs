//! What went wrong at a model endpoint: whether it passes by itself, and what to tell the people.

use hyper::StatusCode;

/// Why a model endpoint did not accept a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The account is out of credit or over its monthly limit.
    Quota,
    /// The key is wrong or may not do this.
    Auth,
    /// Too many requests, or too busy.
    Overload,
    /// No connection, no answer in time, or a fault of the server.
    Timeout,
    /// The request itself, or something else.
    Other,
}

impl Trouble {
    pub fn name(self) -> &'static str {
        match self {
            Trouble::Quota => "quota",
            Trouble::Auth => "auth",
            Trouble::Overload => "overload",
            Trouble::Timeout => "timeout",
            Trouble::Other => "other",
        }
    }
}

/// Words by which the providers tell an empty account from a busy server; both come as 429, or as 400 and 403.
const QUOTA_WORDS: &[&str] = &[
    "insufficient_quota",
    "credit balance is too low",
    "billing_hard_limit_reached",
    "exceeded your current quota",
    "usage limits",
];

/// An answer that is not a success. A 503 or 529 is not accepted work: it comes before any part of an answer.
pub(super) fn classify(status: StatusCode, body: &[u8]) -> Trouble {
    let text = String::from_utf8_lossy(body.get(..4096).unwrap_or(body)).to_ascii_lowercase();
    // Gemini words a limit per minute like an empty account, and says when it passes.
    let passes = text.contains("retrydelay");
    if !passes && QUOTA_WORDS.iter().any(|word| text.contains(word)) && status.is_client_error() {
        return Trouble::Quota;
    }
    match status.as_u16() {
        402 => Trouble::Quota,
        401 | 403 => Trouble::Auth,
        429 | 503 | 529 => Trouble::Overload,
        408 | 500 | 502 | 504 => Trouble::Timeout,
        _ => Trouble::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_all_providers_are_told_apart() {
        for (status, body, wanted) in [
            (
                429,
                r#"{"type":"error","error":{"type":"rate_limit_error","message":"slow down"}}"#,
                Trouble::Overload,
            ),
            (529, r#"{"type":"error","error":{"type":"overloaded_error"}}"#, Trouble::Overload),
            (503, r#"{"error":{"code":503,"status":"UNAVAILABLE"}}"#, Trouble::Overload),
            (
                429,
                r#"{"error":{"code":"insufficient_quota","message":"You exceeded your current quota"}}"#,
                Trouble::Quota,
            ),
            (
                400,
                r#"{"error":{"message":"Your credit balance is too low to access the Anthropic API."}}"#,
                Trouble::Quota,
            ),
            (
                429,
                r#"{"error":{"message":"You exceeded your current quota","details":[{"retryDelay":"7s"}]}}"#,
                Trouble::Overload,
            ),
            (402, "", Trouble::Quota),
            (401, "", Trouble::Auth),
            (403, r#"{"error":{"status":"PERMISSION_DENIED"}}"#, Trouble::Auth),
            (504, "", Trouble::Timeout),
            (400, r#"{"error":{"message":"bad"}}"#, Trouble::Other),
            (500, "insufficient_quota", Trouble::Timeout),
            (418, "", Trouble::Other),
        ] {
            assert_eq!(
                classify(StatusCode::from_u16(status).unwrap(), body.as_bytes()),
                wanted,
                "{status} {body}"
            );
        }
    }
}
