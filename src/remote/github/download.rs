//! Bytes that GitHub keeps elsewhere: attachments and logs. Every hop is looked at before it is taken: credentials stay
//! on the host they are for, other hosts are those where GitHub stores things, and only on the public network.

use super::client::{CONNECT_TIMEOUT, clip};
use crate::domain::address::is_public;
use crate::remote::RemoteError;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{StatusCode, header};
use secrecy::{ExposeSecret, SecretString};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use url::{Origin, Url};

/// Time for one download, all its hops together.
const TIMEOUT: Duration = Duration::from_secs(12);
/// Redirects of one download.
const REDIRECTS: usize = 3;
/// Bytes of a log that are read to see its end.
const MAX_LOG_BYTES: usize = 64 * 1024 * 1024;

/// How much of the bytes is wanted.
#[derive(Debug, Clone, Copy)]
pub enum Part {
    /// All; more is an error.
    Whole { at_most: usize },
    /// The last ones.
    End { bytes: usize },
}

/// What came, and whether something before it was left out.
#[derive(Debug)]
pub struct Downloaded {
    pub bytes: Vec<u8>,
    pub whole: bool,
}

/// Where downloads may lead.
#[derive(Debug, Clone)]
struct Places {
    /// Of the web pages and the API.
    own: Vec<Url>,
    /// Configured ones: an own server's object store.
    storage: Vec<Url>,
    /// The own host is github.com.
    is_github: bool,
}

impl Places {
    fn is_own(&self, url: &Url) -> bool {
        self.own.iter().any(|own| own.origin() == url.origin())
    }

    /// Whether a request may go there; `Err` says why not.
    fn check(&self, url: &Url) -> Result<(), String> {
        if !url.username().is_empty() || url.password().is_some() {
            return Err("its address holds credentials".into());
        }
        if self.is_own(url) || self.storage.iter().any(|place| place.origin() == url.origin()) {
            return Ok(());
        }
        let host = url.host_str().unwrap_or_default();
        if url.scheme() != "https" || url.port().is_some() {
            return Err(format!("`{}` is not https on its usual port", clip(host)));
        }
        let known = self.is_github && is_github_storage(host) || self.is_below_own(host);
        if known { Ok(()) } else { Err(format!("`{}` is not a host of this forge's storage", clip(host))) }
    }

    /// `media.ghe.example` belongs to `ghe.example`.
    fn is_below_own(&self, host: &str) -> bool {
        !self.is_github
            && self.own.iter().filter_map(Url::domain).any(|own| {
                host.strip_suffix(own).is_some_and(|prefix| prefix.ends_with('.') && prefix.len() > 1)
            })
    }

    /// Hosts that the operator named: they may be on a private network, as the API itself.
    fn may_be_private(&self, host: &str) -> bool {
        let named = self.own.iter().chain(&self.storage).filter_map(Url::host_str);
        named.into_iter().any(|own| own.eq_ignore_ascii_case(host)) || self.is_below_own(host)
    }
}

/// Where github.com keeps uploads and logs.
fn is_github_storage(host: &str) -> bool {
    let between = |start: &str, end: &str, ok: fn(u8) -> bool| {
        host.strip_prefix(start)
            .and_then(|rest| rest.strip_suffix(end))
            .is_some_and(|middle| !middle.is_empty() && middle.bytes().all(ok))
    };
    host.strip_suffix(".githubusercontent.com").is_some_and(|name| !name.is_empty())
        || between("github-production-user-asset-", ".s3.amazonaws.com", |b| b.is_ascii_alphanumeric())
        || between("github-production-repository-file-", ".s3.amazonaws.com", |b| b.is_ascii_alphanumeric())
        || between("productionresultssa", ".blob.core.windows.net", |b| b.is_ascii_digit())
}

/// Names to addresses, those of strangers on the public network only. The connection goes to what came out of this.
struct Resolver {
    places: Places,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let host = name.as_str().to_owned();
        let may_be_private = self.places.may_be_private(&host);
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            let addresses = vouched(&host, found, may_be_private)?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// One address of this machine's networks among good ones is a sign of rebinding, not of luck.
fn vouched(
    host: &str,
    found: Vec<SocketAddr>,
    may_be_private: bool,
) -> Result<Vec<SocketAddr>, std::io::Error> {
    if !may_be_private && found.iter().any(|address| !is_public(address.ip())) {
        let text = format!("`{}` has an address that is not on the public network", clip(host));
        return Err(std::io::Error::new(std::io::ErrorKind::PermissionDenied, text));
    }
    Ok(found)
}

pub struct Downloader {
    http: reqwest::Client,
    places: Places,
}

impl Downloader {
    /// Addresses were validated by the caller.
    pub fn new(git_url: &str, api_url: &str, storage_urls: &[String]) -> Result<Self, String> {
        let read = |url: &str| Url::parse(url).map_err(|error| format!("{url}: {error}"));
        let own = vec![read(git_url)?, read(api_url)?];
        let is_github =
            own.first().is_some_and(|url| url.origin().ascii_serialization() == "https://github.com");
        let storage = storage_urls.iter().map(|url| read(url)).collect::<Result<Vec<_>, _>>()?;
        let places = Places { own, storage, is_github };
        let loopback = |url: &Url| match url.host() {
            Some(url::Host::Domain(name)) => name == "localhost",
            Some(url::Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
            Some(url::Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
            None => false,
        };
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("zeblit/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .dns_resolver(Arc::new(Resolver { places: places.clone() }));
        if places.own.iter().all(loopback) {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|error| clip(&error.to_string()))?;
        Ok(Self { http, places })
    }

    /// Where uploads lie: scheme and host of the web pages.
    pub fn uploads_url(&self) -> String {
        self.places.own.first().map(|url| url.origin().ascii_serialization()).unwrap_or_default()
    }

    /// Whether requests may go to this address.
    pub fn knows(&self, url: &str) -> bool {
        Url::parse(url).is_ok_and(|url| self.places.check(&url).is_ok())
    }

    /// Follows redirects by hand. The token goes to the first host only, and only when that is an own one.
    pub async fn get(
        &self,
        operation: &'static str,
        url: &str,
        token: Option<&SecretString>,
        part: Part,
    ) -> Result<Downloaded, RemoteError> {
        match tokio::time::timeout(TIMEOUT, self.follow(operation, url, token, part)).await {
            Ok(result) => result,
            Err(_) => Err(RemoteError::Unavailable {
                operation,
                detail: format!("no complete answer within {TIMEOUT:?}"),
            }),
        }
    }

    async fn follow(
        &self,
        operation: &'static str,
        url: &str,
        token: Option<&SecretString>,
        part: Part,
    ) -> Result<Downloaded, RemoteError> {
        let refused = |detail: String| RemoteError::Refused { operation, status: 400, detail: clip(&detail) };
        let mut url = Url::parse(url).map_err(|error| refused(error.to_string()))?;
        let home: Origin = url.origin();
        for _ in 0..=REDIRECTS {
            self.places.check(&url).map_err(refused)?;
            let mut request = self.http.get(url.clone());
            if let Some(token) = token.filter(|_| url.origin() == home && self.places.is_own(&url)) {
                request = request.bearer_auth(token.expose_secret());
            }
            let mut response = request.send().await.map_err(|error| unavailable(operation, &error))?;
            let status = response.status();
            if status.is_redirection() {
                let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
                let next = location.and_then(|location| url.join(location).ok());
                url = next.ok_or_else(|| refused(format!("status {status} without a place to go")))?;
                if self.places.is_own(&url) && (url.path() == "/login" || url.path().starts_with("/login/")) {
                    // What a browser shows to somebody who may not see it.
                    return Err(RemoteError::NotFound { operation });
                }
                continue;
            }
            return match status {
                _ if status.is_success() => read(operation, &mut response, part).await,
                StatusCode::UNAUTHORIZED => {
                    Err(RemoteError::Auth { operation, detail: "not without signing in".into() })
                }
                StatusCode::FORBIDDEN => {
                    Err(RemoteError::Forbidden { operation, detail: "not to be read by this App".into() })
                }
                StatusCode::NOT_FOUND | StatusCode::GONE => Err(RemoteError::NotFound { operation }),
                _ if status.is_server_error() => {
                    Err(RemoteError::Unavailable { operation, detail: format!("status {status}") })
                }
                _ => Err(RemoteError::Refused {
                    operation,
                    status: status.as_u16(),
                    detail: "the storage refused".into(),
                }),
            };
        }
        Err(refused(format!("more than {REDIRECTS} redirects")))
    }
}

/// The chain of causes without the address, which may hold a signature.
fn unavailable(operation: &'static str, error: &reqwest::Error) -> RemoteError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    let mut detail = "the connection failed".to_owned();
    while let Some(error) = cause {
        detail = format!("{detail}: {error}");
        cause = error.source();
    }
    RemoteError::Unavailable { operation, detail: clip(&detail) }
}

async fn read(
    operation: &'static str,
    response: &mut reqwest::Response,
    part: Part,
) -> Result<Downloaded, RemoteError> {
    let too_large = |most: usize| RemoteError::Refused {
        operation,
        status: 413,
        detail: format!("it is larger than {}", crate::domain::attachment::size(most)),
    };
    let most = match part {
        Part::Whole { at_most } => at_most,
        Part::End { .. } => MAX_LOG_BYTES,
    };
    // Said ahead: nothing of it need be read.
    if response.content_length().is_some_and(|length| usize::try_from(length).map_or(true, |n| n > most)) {
        return Err(too_large(most));
    }
    let mut bytes: Vec<u8> = Vec::new();
    let mut seen = 0;
    while let Some(chunk) = response.chunk().await.map_err(|error| unavailable(operation, &error))? {
        seen += chunk.len();
        if seen > most {
            return Err(too_large(most));
        }
        bytes.extend_from_slice(&chunk);
        if let Part::End { bytes: last } = part
            && bytes.len() > last * 2
        {
            bytes.drain(..bytes.len() - last);
        }
    }
    if let Part::End { bytes: last } = part {
        bytes.drain(..bytes.len().saturating_sub(last));
    }
    Ok(Downloaded { whole: bytes.len() == seen, bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(git: &str, api: &str) -> Places {
        Downloader::new(git, api, &["https://minio.corp.example:9000".into()]).unwrap().places
    }

    #[test]
    fn only_the_forge_and_its_storage_are_reached() {
        let github = places("https://github.com", "https://api.github.com");
        let own = places("https://ghe.example", "https://ghe.example/api/v3");
        for (url, at_github, at_own) in [
            ("https://github.com/user-attachments/assets/x", true, false),
            ("https://api.github.com/repos/o/r/actions/jobs/1/logs", true, false),
            ("https://objects.githubusercontent.com/x?y", true, false),
            ("https://private-user-images.githubusercontent.com/1/x.png?jwt=y", true, false),
            ("https://github-production-user-asset-6210df.s3.amazonaws.com/x", true, false),
            ("https://productionresultssa12.blob.core.windows.net/actions-results/x", true, false),
            ("https://ghe.example/storage/user/1/files/x", false, true),
            ("https://media.ghe.example/user/1/files/x", false, true),
            ("https://minio.corp.example:9000/x", true, true),
            ("https://minio.corp.example/x", false, false),
            ("http://objects.githubusercontent.com/x", false, false),
            ("https://objects.githubusercontent.com:8443/x", false, false),
            ("https://token@objects.githubusercontent.com/x", false, false),
            ("https://githubusercontent.com/x", false, false),
            ("https://evilgithubusercontent.com/x", false, false),
            ("https://objects.githubusercontent.com.evil.example/x", false, false),
            ("https://github-production-user-asset-.s3.amazonaws.com/x", false, false),
            ("https://github-production-user-asset-a.b.s3.amazonaws.com/x", false, false),
            ("https://evil.s3.amazonaws.com/github-production-user-asset-1.s3.amazonaws.com", false, false),
            ("https://productionresultssaevil.blob.core.windows.net/x", false, false),
            ("http://github.com/x", false, false),
            ("https://ghe.example:444/x", false, false),
            ("https://notghe.example/x", false, false),
            ("https://169.254.169.254/latest/meta-data", false, false),
            ("http://127.0.0.1/x", false, false),
            ("https://[::1]/x", false, false),
            ("https://localhost/x", false, false),
            ("file:///etc/passwd", false, false),
        ] {
            let parsed = Url::parse(url).unwrap();
            assert_eq!(github.check(&parsed).is_ok(), at_github, "{url} from github.com");
            assert_eq!(own.check(&parsed).is_ok(), at_own, "{url} from ghe.example");
        }
    }

    #[test]
    fn names_of_strangers_must_lie_on_the_public_network() {
        let github = places("https://github.com", "https://api.github.com");
        for (host, may) in [
            ("github.com", true),
            ("minio.corp.example", true),
            ("objects.githubusercontent.com", false),
            ("media.github.com", false),
        ] {
            assert_eq!(github.may_be_private(host), may, "{host}");
        }
        assert!(
            places("https://ghe.example", "https://ghe.example/api/v3").may_be_private("media.ghe.example")
        );
        let address = |text: &str| SocketAddr::new(text.parse().unwrap(), 0);
        let mixed = vec![address("93.184.215.14"), address("10.0.0.7")];
        let error = vouched("x.example", mixed.clone(), false).unwrap_err();
        assert!(error.to_string().contains("not on the public network"), "{error}");
        assert_eq!(vouched("x.example", mixed.clone(), true).unwrap(), mixed);
        assert_eq!(vouched("x.example", vec![address("93.184.215.14")], false).unwrap().len(), 1);
    }
}
