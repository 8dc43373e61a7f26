//! Purpose: a file that an agent made, as a download: saved by browsers, never shown or run by them.

use super::view;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};

/// Even when a browser shows it against all advice, it is nobody's page.
const SEALED: &str = "sandbox; default-src 'none'";

/// The answer with a file's bytes.
pub(super) fn file(path: &str, bytes: Vec<u8>) -> Response {
    let name = path.rsplit('/').next().unwrap_or(path);
    let headers: [(HeaderName, HeaderValue); 4] = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(SEALED)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    ];
    let disposition = HeaderValue::from_str(&disposition(name));
    // Its characters are all plain; should that ever change, the download has no name.
    let disposition = disposition.unwrap_or(HeaderValue::from_static("attachment"));
    (headers, [(header::CONTENT_DISPOSITION, disposition)], bytes).into_response()
}

/// The name twice: for every browser, and as it is (RFC 6266).
fn disposition(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ' ');
    let ascii: String = name.chars().map(|c| if plain(c) { c } else { '_' }).collect();
    format!("attachment; filename=\"{ascii}\"; filename*=UTF-8''{}", view::url_path(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_place() {
        assert_eq!(
            disposition("report.html"),
            "attachment; filename=\"report.html\"; filename*=UTF-8''report.html"
        );
        assert_eq!(
            disposition("a\"; x=\u{e4}\r\n.txt"),
            "attachment; filename=\"a__ x____.txt\"; filename*=UTF-8''a%22%3B%20x%3D%C3%A4%0D%0A.txt"
        );
    }
}
