//! What a run left besides commits, read from the pack that its shim or collector wrote. An agent may have written it
//! instead: nothing in it is believed that is not checked here.

use crate::domain::gate;
use crate::shim::pack::{self, Kind, Reason};
use std::collections::BTreeSet;

pub use crate::shim::pack::{MAX_ARTIFACTS, MAX_PACK_BYTES, MAX_PATH_BYTES};

/// A file with a plain relative path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub path: String,
    pub bytes: Vec<u8>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Extras {
    /// Relative to the workspace.
    pub artifacts: Vec<File>,
    /// Relative to HOME.
    pub session: Vec<File>,
    /// Artifacts that were left out (path, possibly empty, and why), raw.
    pub left_out: Vec<(String, &'static str)>,
    /// How many more.
    pub more_left_out: u64,
    /// Why the session is not here, when there was one.
    pub no_session: Option<&'static str>,
}

/// The end of a sentence that begins with the file.
fn words(reason: Reason) -> &'static str {
    match reason {
        Reason::FileTooLarge => "larger than 16 MiB",
        Reason::TooLarge => "more than is kept in all",
        Reason::TooMany => "more files than are kept",
        Reason::NotAFile => "not a plain file",
        Reason::Unreadable => "not readable",
        Reason::OddName => "its name is not plain text or too long",
        Reason::Unsearched => "the folders hold too much to look at all of it",
    }
}

/// A path that a kept file may have.
pub fn path_problem(path: &str) -> Option<String> {
    if path.len() > MAX_PATH_BYTES {
        return Some(format!("the path is longer than {MAX_PATH_BYTES} bytes"));
    }
    gate::path_problem(path.as_bytes())
}

/// Reads a pack; what is wrong with it otherwise. Files come in the order of the pack, each path once.
pub fn read(bytes: &[u8]) -> Result<Extras, String> {
    let mut extras = Extras::default();
    let mut seen = BTreeSet::new();
    let mut odd = Vec::new();
    for record in pack::decode(bytes)? {
        let reason = || Reason::read(record.bytes).map(words).ok_or("not a pack: an unknown reason");
        match record.kind {
            Kind::Artifact | Kind::Session => {
                if path_problem(record.path).is_some() {
                    if record.kind == Kind::Artifact {
                        odd.push((record.path.to_owned(), words(Reason::OddName)));
                    }
                    continue;
                }
                if !seen.insert((record.kind == Kind::Session, record.path)) {
                    return Err("a file stands in it twice".into());
                }
                let file = File { path: record.path.to_owned(), bytes: record.bytes.to_vec() };
                if record.kind == Kind::Artifact {
                    extras.artifacts.push(file);
                } else {
                    extras.session.push(file);
                }
            }
            Kind::LeftOut => extras.left_out.push((record.path.to_owned(), reason()?)),
            Kind::NoSession => extras.no_session = Some(reason()?),
            Kind::More => {
                let count: [u8; 4] = record.bytes.try_into().map_err(|_| "not a pack: an odd count")?;
                extras.more_left_out = u32::from_le_bytes(count).into();
            }
        }
    }
    let sum = |files: &[File]| files.iter().map(|file| file.bytes.len()).sum::<usize>();
    let largest = extras.artifacts.iter().map(|file| file.bytes.len()).max().unwrap_or(0);
    if extras.artifacts.len() > pack::MAX_ARTIFACTS
        || largest > pack::MAX_ARTIFACT_BYTES
        || sum(&extras.artifacts) > pack::MAX_ARTIFACTS_BYTES
        || extras.session.len() > pack::MAX_SESSION_FILES
        || sum(&extras.session) > pack::MAX_SESSION_BYTES
        || extras.left_out.len() > pack::MAX_LEFT_OUT + 1
    {
        return Err("it holds more than may be kept".into());
    }
    extras.left_out.append(&mut odd);
    Ok(extras)
}

/// Files as one stored document, in the same form.
pub fn store(files: &[File]) -> Vec<u8> {
    let write = || {
        let mut writer = pack::Writer::new(Vec::new())?;
        for file in files {
            writer.put(Kind::Session, &file.path, &file.bytes)?;
        }
        writer.end()
    };
    // Writing to memory fails for a length above 4 GiB only; reading an empty document finds no session.
    write().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(records: &[(Kind, &str, &[u8])]) -> Result<Extras, String> {
        let mut writer = pack::Writer::new(Vec::new()).unwrap();
        for (kind, path, bytes) in records {
            writer.put(*kind, path, bytes).unwrap();
        }
        read(&writer.end().unwrap())
    }

    #[test]
    fn a_good_pack_is_read() {
        let extras = packed(&[
            (Kind::Artifact, "out/a.txt", b"a"),
            (Kind::Session, "out/a.txt", b"s"),
            (Kind::LeftOut, "b.bin", &[1]),
            (Kind::NoSession, "", &[2]),
            (Kind::More, "", &7_u32.to_le_bytes()),
        ])
        .unwrap();
        let file = |bytes: &[u8]| File { path: "out/a.txt".into(), bytes: bytes.to_vec() };
        assert_eq!(extras.artifacts, [file(b"a")]);
        assert_eq!(extras.session, [file(b"s")]);
        assert_eq!(extras.left_out, [("b.bin".to_owned(), "larger than 16 MiB")]);
        assert_eq!(extras.no_session, Some("more than is kept in all"));
        assert_eq!(extras.more_left_out, 7);
        assert_eq!(read(&store(&extras.session)).unwrap().session, extras.session);
    }

    #[test]
    fn paths_that_lead_elsewhere_are_left_out() {
        let long = "x/".repeat(200) + "x";
        for path in [
            "",
            "/etc/passwd",
            "../x",
            "a/../b",
            "a//b",
            "./a",
            "a\\b",
            "a\nb",
            "a\u{202e}b",
            "a/b.",
            "x::$DATA",
            long.as_str(),
        ] {
            let extras = packed(&[
                (Kind::Artifact, path, b"x"),
                (Kind::Session, path, b"x"),
                (Kind::Artifact, "good", b"x"),
            ]);
            let Ok(extras) = extras else {
                assert!(path.len() > MAX_PATH_BYTES, "{path}");
                continue;
            };
            assert_eq!((extras.artifacts.len(), extras.session.len()), (1, 0), "{path}");
            assert_eq!(extras.left_out, [(path.to_owned(), words(Reason::OddName))]);
        }
    }

    #[test]
    fn more_than_may_be_kept_is_refused() {
        let large = vec![0; pack::MAX_ARTIFACT_BYTES + 1];
        assert!(packed(&[(Kind::Artifact, "a", &large)]).unwrap_err().contains("more than may be kept"));
        let names: Vec<String> = (0..=pack::MAX_ARTIFACTS).map(|n| n.to_string()).collect();
        let many: Vec<(Kind, &str, &[u8])> =
            names.iter().map(|name| (Kind::Artifact, name.as_str(), &b""[..])).collect();
        assert!(packed(&many).unwrap_err().contains("more than may be kept"));
        assert!(
            packed(&[(Kind::Artifact, "a", b""), (Kind::Artifact, "a", b"")]).unwrap_err().contains("twice")
        );
        for records in
            [(Kind::LeftOut, "a", &[99_u8][..]), (Kind::NoSession, "", &[]), (Kind::More, "", &[1])]
        {
            assert!(packed(&[records]).unwrap_err().starts_with("not a pack"));
        }
    }
}
