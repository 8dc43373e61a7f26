//! Which hosts a run may reach: names in one canonical form, bundles of them, and lists made from both.

use std::collections::BTreeSet;
use std::fmt;

/// Hosts of the usual package registries. The hosts are those that the registries' own clients ask by default.
pub const BUNDLES: &[Bundle] = &[
    Bundle { name: "crates", hosts: &["index.crates.io", "static.crates.io", "crates.io"], plain: false },
    Bundle { name: "npm", hosts: &["registry.npmjs.org", "registry.yarnpkg.com"], plain: false },
    Bundle { name: "pypi", hosts: &["pypi.org", "files.pythonhosted.org"], plain: false },
    Bundle { name: "go", hosts: &["proxy.golang.org", "sum.golang.org"], plain: false },
    Bundle { name: "maven", hosts: &["repo.maven.apache.org", "repo1.maven.org"], plain: false },
    // apt asks over plain HTTP and checks signatures itself.
    Bundle { name: "debian", hosts: &["deb.debian.org", "security.debian.org"], plain: true },
];

/// A name for several hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bundle {
    pub name: &'static str,
    pub hosts: &'static [&'static str],
    /// Plain HTTP on port 80 besides TLS on port 443.
    pub plain: bool,
}

/// Longest name of a host, bytes (RFC 1035 without the trailing dot).
const MAX_HOST_BYTES: usize = 253;
/// Longest part between two dots (RFC 1035).
const MAX_LABEL_BYTES: usize = 63;
/// Most entries of one list.
pub const MAX_ENTRIES: usize = 100;

/// Why a text is not the name of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    #[error("it is empty")]
    Empty,
    #[error("it is longer than {MAX_HOST_BYTES} bytes")]
    Long,
    #[error("it ends with a dot")]
    TrailingDot,
    #[error("it needs a dot, like `registry.example.com`")]
    SingleLabel,
    #[error("it is an address; only names are possible")]
    Address,
    #[error("it holds something else than letters, digits, `-` and `.`")]
    Character,
    #[error("a part of it is empty, longer than {MAX_LABEL_BYTES} bytes, or begins or ends with `-`")]
    Label,
    #[error("names with letters beyond ASCII (`xn--…`) are not possible")]
    International,
}

/// The one form in which hosts are compared: lower-case ASCII letters, digits, `-` and `.`, at least two parts,
/// no trailing dot, no address in any notation, no punycode.
pub fn canonical_host(text: &str) -> Result<String, HostError> {
    if text.is_empty() {
        return Err(HostError::Empty);
    }
    if text.len() > MAX_HOST_BYTES {
        return Err(HostError::Long);
    }
    if text.contains(['[', ']', ':']) {
        return Err(HostError::Address);
    }
    if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.')) {
        return Err(HostError::Character);
    }
    if text.ends_with('.') {
        return Err(HostError::TrailingDot);
    }
    let host = text.to_ascii_lowercase();
    for label in host.split('.') {
        if label.is_empty() || label.len() > MAX_LABEL_BYTES || label.starts_with('-') || label.ends_with('-')
        {
            return Err(HostError::Label);
        }
        if label.starts_with("xn--") {
            return Err(HostError::International);
        }
    }
    // A last part that begins with a digit is how URL parsers tell an IPv4 address, in any of its notations.
    let last = host.rsplit('.').next().unwrap_or_default();
    if !last.starts_with(|c: char| c.is_ascii_lowercase()) {
        return Err(HostError::Address);
    }
    if !host.contains('.') {
        return Err(HostError::SingleLabel);
    }
    Ok(host)
}

/// An entry of an allow-list that is neither a bundle nor a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadEntry {
    pub entry: String,
    pub problem: HostError,
}

impl fmt::Display for BadEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bundles: Vec<&str> = BUNDLES.iter().map(|bundle| bundle.name).collect();
        let entry: String = self.entry.chars().filter(|c| !c.is_control()).take(80).collect();
        write!(
            f,
            "`{entry}` is neither a bundle ({}) nor the name of a host: {}",
            bundles.join(", "),
            self.problem
        )
    }
}

/// The hosts that may be reached; empty: none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowList {
    tls: BTreeSet<String>,
    plain: BTreeSet<String>,
}

impl AllowList {
    /// From entries of a configuration: names of bundles and of hosts.
    pub fn new(entries: &[String]) -> Result<Self, BadEntry> {
        let mut list = Self::default();
        for entry in entries {
            if let Some(bundle) = BUNDLES.iter().find(|bundle| bundle.name == entry) {
                list.tls.extend(bundle.hosts.iter().map(|host| (*host).to_owned()));
                if bundle.plain {
                    list.plain.extend(bundle.hosts.iter().map(|host| (*host).to_owned()));
                }
                continue;
            }
            let host = canonical_host(entry).map_err(|problem| BadEntry { entry: entry.clone(), problem })?;
            list.tls.insert(host);
        }
        Ok(list)
    }

    pub fn is_empty(&self) -> bool {
        self.tls.is_empty()
    }

    /// `host` in its canonical form, on port 443.
    pub fn allows(&self, host: &str) -> bool {
        self.tls.contains(host)
    }

    /// `host` in its canonical form, over plain HTTP on port 80.
    pub fn allows_plain(&self, host: &str) -> bool {
        self.plain.contains(host)
    }

    /// What is on both lists.
    pub fn within(&self, permitted: &AllowList) -> AllowList {
        AllowList {
            tls: self.tls.intersection(&permitted.tls).cloned().collect(),
            plain: self.plain.intersection(&permitted.plain).cloned().collect(),
        }
    }
}

/// The first of `entries` (those of a repository) that asks for more than `permitted` (the server's list).
pub fn first_not_permitted<'a>(entries: &'a [String], permitted: &AllowList) -> Option<&'a str> {
    entries.iter().map(String::as_str).find(|entry| {
        let asked = AllowList::new(&[(*entry).to_owned()]).unwrap_or_default();
        asked.is_empty() || asked.within(permitted) != asked
    })
}

/// The shortest entry that lets `host` in: a bundle's name, or the host itself.
pub fn entry_for(host: &str) -> &str {
    BUNDLES.iter().find(|bundle| bundle.hosts.contains(&host)).map_or(host, |bundle| bundle.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(entries: &[&str]) -> AllowList {
        AllowList::new(&entries.iter().map(|entry| (*entry).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn names_have_one_form() {
        for (text, host) in [
            ("crates.io", "crates.io"),
            ("Static.Crates.IO", "static.crates.io"),
            ("a-b.c3.example", "a-b.c3.example"),
            ("r3---sn.example.com", "r3---sn.example.com"),
            ("0x7f.example.com", "0x7f.example.com"),
        ] {
            assert_eq!(canonical_host(text).as_deref(), Ok(host));
        }
    }

    #[test]
    fn what_is_no_name_is_refused_with_the_reason() {
        for (text, problem) in [
            ("", HostError::Empty),
            (".", HostError::TrailingDot),
            ("crates.io.", HostError::TrailingDot),
            ("crates.io\0.evil.example", HostError::Character),
            ("crates.io\n", HostError::Character),
            ("user@crates.io", HostError::Character),
            ("crates.io%00", HostError::Character),
            ("crates_io.example", HostError::Character),
            ("cr\u{430}tes.io", HostError::Character),
            ("crates\u{3002}io", HostError::Character),
            ("\u{ff43}rates.io", HostError::Character),
            ("xn--crtes-6ve.io", HostError::International),
            ("a.XN--P1AI", HostError::International),
            ("localhost", HostError::SingleLabel),
            ("crates..io", HostError::Label),
            (".crates.io", HostError::Label),
            ("-a.io", HostError::Label),
            ("a-.io", HostError::Label),
            ("127.0.0.1", HostError::Address),
            ("2130706433", HostError::Address),
            ("0x7f000001", HostError::Address),
            ("0177.0.0.1", HostError::Address),
            ("127.1", HostError::Address),
            ("1.2.3.4.5", HostError::Address),
            ("a.0x7f", HostError::Address),
            ("[::1]", HostError::Address),
            ("::ffff:1.2.3.4", HostError::Address),
            ("crates.io:443", HostError::Address),
        ] {
            assert_eq!(canonical_host(text), Err(problem), "{text:?}");
        }
        assert_eq!(canonical_host(&format!("{}.io", "a".repeat(64))), Err(HostError::Label));
        assert_eq!(canonical_host(&format!("{}io", "a.".repeat(150))), Err(HostError::Long));
    }

    #[test]
    fn bundles_hold_canonical_hosts_and_only_debian_is_plain() {
        for bundle in BUNDLES {
            for host in bundle.hosts {
                assert_eq!(canonical_host(host).as_deref(), Ok(*host));
                assert!(list(&[bundle.name]).allows(host));
                assert_eq!(list(&[bundle.name]).allows_plain(host), bundle.name == "debian");
                assert_eq!(entry_for(host), bundle.name);
            }
        }
        assert_eq!(entry_for("example.com"), "example.com");
    }

    #[test]
    fn a_repository_gets_at_most_what_the_server_permits() {
        let server = list(&["crates", "Mirror.Example.com"]);
        let entries = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(first_not_permitted(&entries(&["crates", "mirror.example.com"]), &server), None);
        assert_eq!(first_not_permitted(&entries(&["static.crates.io"]), &server), None);
        assert_eq!(first_not_permitted(&entries(&["crates", "npm"]), &server), Some("npm"));
        assert_eq!(
            first_not_permitted(&entries(&["sub.mirror.example.com"]), &server),
            Some("sub.mirror.example.com")
        );
        let both = list(&["crates", "npm"]).within(&server);
        assert!(both.allows("static.crates.io") && !both.allows("registry.npmjs.org"));
        // A host that stands alone brings no plain HTTP, whatever its bundle says.
        assert_eq!(
            first_not_permitted(&entries(&["debian"]), &list(&["deb.debian.org", "security.debian.org"])),
            Some("debian")
        );
        assert!(list(&[]).is_empty());
    }

    #[test]
    fn a_bad_entry_names_the_bundles() {
        let problem = AllowList::new(&["*.example.com".to_owned()]).unwrap_err().to_string();
        assert!(
            problem.contains("`*.example.com` is neither a bundle (crates, npm, pypi, go, maven, debian)")
        );
    }

    proptest! {
        #[test]
        fn an_accepted_name_is_what_the_url_parser_sees(text in "\\PC{0,40}|[a-zA-Z0-9.x-]{0,40}") {
            if let Ok(host) = canonical_host(&text) {
                let url = url::Url::parse(&format!("https://{text}/")).unwrap();
                prop_assert_eq!(url.host_str(), Some(host.as_str()));
                prop_assert!(matches!(url.host(), Some(url::Host::Domain(_))));
                prop_assert_eq!(canonical_host(&host), Ok(host));
            }
        }
    }
}
