//! Purpose: what a run leaves besides commits, in one file: the artifacts that its repository asked for, and the files
//! of the agent's session. Both ends share the form.
//!
//! `ZBP1`, then records, then `ZEND`. A record is one byte for its kind, a path and bytes, both with their length
//! (u32, little-endian) before them. Decoding never panics and caps every size.

use super::Folders;
use super::glob::{self, Glob};
use super::job::{JobError, Reader, WireJob};
use std::fs;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The pack's name in the output folder.
pub const PACK_FILE: &str = "extras.pack";
/// Artifacts of one run.
pub const MAX_ARTIFACTS: usize = 100;
/// Bytes of one artifact, and of all of them.
pub const MAX_ARTIFACT_BYTES: usize = 16 * 1024 * 1024;
pub const MAX_ARTIFACTS_BYTES: usize = 64 * 1024 * 1024;
/// Files and bytes of a session: it is kept whole or not at all.
pub const MAX_SESSION_FILES: usize = 200;
pub const MAX_SESSION_BYTES: usize = 32 * 1024 * 1024;
/// Bytes of a path.
pub const MAX_PATH_BYTES: usize = 300;
/// Files that are named as left out; the rest is counted.
pub const MAX_LEFT_OUT: usize = 20;
/// All bytes of a pack: what is above, and room for the paths.
pub const MAX_PACK_BYTES: usize = MAX_ARTIFACTS_BYTES + MAX_SESSION_BYTES + 1024 * 1024;
/// Records of a pack.
const MAX_RECORDS: usize = MAX_ARTIFACTS + MAX_SESSION_FILES + MAX_LEFT_OUT + 3;

const START: &[u8; 4] = b"ZBP1";
const END: &[u8; 4] = b"ZEND";
/// Of a record's kind: the end mark follows.
const NO_MORE: u8 = 0;

/// `O_NOFOLLOW` and `O_NONBLOCK` of Linux: a symbolic link is refused, a FIFO does not block.
#[cfg(any(target_arch = "aarch64", target_arch = "arm"))]
const O_NOFOLLOW: i32 = 0o100_000;
#[cfg(not(any(target_arch = "aarch64", target_arch = "arm")))]
const O_NOFOLLOW: i32 = 0o400_000;
const O_NONBLOCK: i32 = 0o4000;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file of the workspace.
    Artifact,
    /// A file below HOME.
    Session,
    /// An artifact that is not here; its bytes are one [`Reason`].
    LeftOut,
    /// The session is not here, and why.
    NoSession,
    /// So many artifacts more are left out than are named (u32).
    More,
}

impl Kind {
    const ALL: [Kind; 5] = [Kind::Artifact, Kind::Session, Kind::LeftOut, Kind::NoSession, Kind::More];

    fn byte(self) -> u8 {
        match self {
            Kind::Artifact => 1,
            Kind::Session => 2,
            Kind::LeftOut => 3,
            Kind::NoSession => 4,
            Kind::More => 5,
        }
    }
}

/// Why something is left out: words are the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// One file is larger than a file may be.
    FileTooLarge,
    /// All together are more than may be kept.
    TooLarge,
    TooMany,
    /// A link, a socket, a device.
    NotAFile,
    Unreadable,
    /// The path is too long or not plain text.
    OddName,
    /// The folders hold more than anybody looks at.
    Unsearched,
}

impl Reason {
    pub const ALL: [Reason; 7] = [
        Reason::FileTooLarge,
        Reason::TooLarge,
        Reason::TooMany,
        Reason::NotAFile,
        Reason::Unreadable,
        Reason::OddName,
        Reason::Unsearched,
    ];

    fn byte(self) -> u8 {
        match self {
            Reason::FileTooLarge => 1,
            Reason::TooLarge => 2,
            Reason::TooMany => 3,
            Reason::NotAFile => 4,
            Reason::Unreadable => 5,
            Reason::OddName => 6,
            Reason::Unsearched => 7,
        }
    }

    /// The reason in the bytes of a record.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| bytes == [reason.byte()])
    }
}

/// One record, as it stands in the pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    pub kind: Kind,
    pub path: &'a str,
    pub bytes: &'a [u8],
}

/// The records in `bytes`, which must hold exactly one pack.
pub fn decode(bytes: &[u8]) -> Result<Vec<Record<'_>>, String> {
    records(bytes).map_err(|error| match error {
        JobError::Incomplete => "the pack was cut off".to_owned(),
        JobError::Invalid(why) => format!("not a pack: {why}"),
    })
}

fn records(bytes: &[u8]) -> Result<Vec<Record<'_>>, JobError> {
    if bytes.len() > MAX_PACK_BYTES {
        return Err(JobError::Invalid("too large"));
    }
    let mut reader = Reader::new(bytes);
    if &reader.array::<4>()? != START {
        return Err(JobError::Invalid("it does not begin as one"));
    }
    let mut records = Vec::new();
    loop {
        let [byte] = reader.array()?;
        if byte == NO_MORE {
            break;
        }
        let kind = Kind::ALL.into_iter().find(|kind| kind.byte() == byte);
        let kind = kind.ok_or(JobError::Invalid("a record of an unknown kind"))?;
        if records.len() == MAX_RECORDS {
            return Err(JobError::Invalid("it has too many records"));
        }
        let path = reader.bytes()?;
        if path.len() > MAX_PATH_BYTES {
            return Err(JobError::Invalid("a path is too long"));
        }
        let path = std::str::from_utf8(path).map_err(|_| JobError::Invalid("a path is not UTF-8"))?;
        records.push(Record { kind, path, bytes: reader.bytes()? });
    }
    if &reader.array::<4>()? != END {
        return Err(JobError::Invalid("the end mark is missing"));
    }
    if !reader.is_empty() {
        return Err(JobError::Invalid("something follows the end mark"));
    }
    Ok(records)
}

/// Writes one pack, record by record.
#[derive(Debug)]
pub struct Writer<W: Write> {
    to: W,
}

impl<W: Write> Writer<W> {
    pub fn new(mut to: W) -> io::Result<Self> {
        to.write_all(START)?;
        Ok(Self { to })
    }

    pub fn put(&mut self, kind: Kind, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(&[kind.byte()])?;
        for part in [path.as_bytes(), bytes] {
            let length =
                u32::try_from(part.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
            self.to.write_all(&length.to_le_bytes())?;
            self.to.write_all(part)?;
        }
        Ok(())
    }

    pub fn left_out(&mut self, path: &str, reason: Reason) -> io::Result<()> {
        self.put(Kind::LeftOut, path, &[reason.byte()])
    }

    pub fn end(mut self) -> io::Result<W> {
        self.to.write_all(&[NO_MORE])?;
        self.to.write_all(END)?;
        self.to.flush()?;
        Ok(self.to)
    }
}

/// Makes `<output>/extras.pack`, when the job asks for one and there is anything to say. Gives the number of its
/// artifacts and of its session's files.
pub fn collect(folders: &Folders, job: &WireJob) -> Result<(usize, usize), String> {
    let target = folders.output.join(PACK_FILE);
    let aside = folders.output.join(format!("{PACK_FILE}.tmp"));
    let at = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| format!("{path}: {error}")
    };
    // The agent may have left anything under these names.
    for path in [&target, &aside] {
        super::collect::remove(path).map_err(at(path))?;
    }
    if job.artifacts.is_empty() && job.session.is_empty() {
        return Ok((0, 0));
    }
    let file =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&aside).map_err(at(&aside))?;
    let counts = write(folders, job, BufWriter::new(file)).map_err(at(&aside))?;
    fs::rename(&aside, &target).map_err(at(&target))?;
    Ok(counts)
}

fn write(folders: &Folders, job: &WireJob, to: impl Write) -> io::Result<(usize, usize)> {
    let mut writer = Writer::new(to)?;
    let artifacts = put_artifacts(&mut writer, &folders.workspace, &job.artifacts)?;
    let session = put_session(&mut writer, &folders.home, &job.session)?;
    writer.end()?;
    Ok((artifacts, session))
}

fn globs(patterns: &[String]) -> Vec<Glob> {
    patterns.iter().filter_map(|text| Glob::parse(text)).collect()
}

fn put_artifacts<W: Write>(writer: &mut Writer<W>, root: &Path, patterns: &[String]) -> io::Result<usize> {
    if patterns.is_empty() {
        return Ok(0);
    }
    let found = glob::walk(root, &globs(patterns));
    let (mut count, mut total) = (0, 0);
    let mut left_out = Vec::new();
    if found.cut {
        left_out.push((String::new(), Reason::Unsearched));
    }
    for path in found.paths {
        let taken = if is_odd(&path) {
            Err(Reason::OddName)
        } else if count >= MAX_ARTIFACTS {
            Err(Reason::TooMany)
        } else {
            match read_file(&root.join(&path), MAX_ARTIFACT_BYTES) {
                Ok(bytes) if total + bytes.len() > MAX_ARTIFACTS_BYTES => Err(Reason::TooLarge),
                other => other,
            }
        };
        match taken {
            Ok(bytes) => {
                count += 1;
                total += bytes.len();
                writer.put(Kind::Artifact, &path, &bytes)?;
            }
            Err(reason) => left_out.push((path, reason)),
        }
    }
    for (path, reason) in left_out.iter().take(MAX_LEFT_OUT) {
        writer.left_out(cut(path), *reason)?;
    }
    let more = left_out.len().saturating_sub(MAX_LEFT_OUT);
    if more > 0 {
        writer.put(Kind::More, "", &u32::try_from(more).unwrap_or(u32::MAX).to_le_bytes())?;
    }
    Ok(count)
}

/// All of it, or a word about why there is nothing: half a conversation cannot be gone on with.
fn put_session<W: Write>(writer: &mut Writer<W>, home: &Path, patterns: &[String]) -> io::Result<usize> {
    if patterns.is_empty() {
        return Ok(0);
    }
    let found = glob::walk(home, &globs(patterns));
    let mut files = Vec::new();
    let mut total = 0;
    let mut problem = found.cut.then_some(Reason::Unsearched);
    for path in &found.paths {
        if problem.is_some() {
            break;
        }
        if is_odd(path) {
            continue;
        }
        match read_file(&home.join(path), MAX_SESSION_BYTES) {
            Ok(_) if files.len() >= MAX_SESSION_FILES => problem = Some(Reason::TooMany),
            Ok(bytes) if total + bytes.len() > MAX_SESSION_BYTES => problem = Some(Reason::TooLarge),
            Ok(bytes) => {
                total += bytes.len();
                files.push((path, bytes));
            }
            Err(Reason::FileTooLarge) => problem = Some(Reason::TooLarge),
            Err(_) => {}
        }
    }
    if let Some(reason) = problem {
        writer.put(Kind::NoSession, "", &[reason.byte()])?;
        return Ok(0);
    }
    for (path, bytes) in &files {
        writer.put(Kind::Session, path, bytes)?;
    }
    Ok(files.len())
}

fn is_odd(path: &str) -> bool {
    path.len() > MAX_PATH_BYTES
        || path.contains(['\\', char::REPLACEMENT_CHARACTER])
        || path.chars().any(char::is_control)
}

/// As much of a path as a record takes.
fn cut(path: &str) -> &str {
    path.get(..path.floor_char_boundary(MAX_PATH_BYTES)).unwrap_or("")
}

/// A regular file's bytes, without following a link or waiting.
fn read_file(path: &Path, cap: usize) -> Result<Vec<u8>, Reason> {
    // Before it is opened: opening a device may do something.
    match path.symlink_metadata() {
        Ok(found) if found.is_file() => {}
        Ok(_) => return Err(Reason::NotAFile),
        Err(_) => return Err(Reason::Unreadable),
    }
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(O_NOFOLLOW | O_NONBLOCK)
        .open(path)
        .map_err(|_| Reason::Unreadable)?;
    let found = file.metadata().map_err(|_| Reason::Unreadable)?;
    if !found.is_file() {
        return Err(Reason::NotAFile);
    }
    let most = u64::try_from(cap).unwrap_or(u64::MAX);
    if found.len() > most {
        return Err(Reason::FileTooLarge);
    }
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(|_| Reason::Unreadable)?;
    if bytes.len() > cap { Err(Reason::FileTooLarge) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::PathBuf;

    struct World(tempfile::TempDir);

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            for name in ["workspace", "home", "output"] {
                fs::create_dir(folder.path().join(name)).unwrap();
            }
            Self(folder)
        }

        fn at(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        fn write(&self, path: &str, bytes: &[u8]) {
            let path = self.at(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }

        /// A file that looks this large and takes no room.
        fn sparse(&self, path: &str, size: usize) {
            self.write(path, b"");
            let file = fs::OpenOptions::new().write(true).open(self.at(path)).unwrap();
            file.set_len(u64::try_from(size).unwrap()).unwrap();
        }

        fn collect(&self, artifacts: &[&str], session: &[&str]) -> (usize, usize) {
            let folders = Folders {
                sockets: self.at("sockets"),
                workspace: self.at("workspace"),
                output: self.at("output"),
                home: self.at("home"),
                objects: self.at("objects"),
            };
            let list = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
            let job = WireJob { artifacts: list(artifacts), session: list(session), ..WireJob::default() };
            collect(&folders, &job).unwrap()
        }

        /// What the pack says: kind, path and length of each record.
        fn said(&self) -> Vec<(Kind, String, usize)> {
            let bytes = fs::read(self.at("output").join(PACK_FILE)).unwrap();
            let records = decode(&bytes).unwrap();
            records.iter().map(|record| (record.kind, record.path.to_owned(), record.bytes.len())).collect()
        }

        fn reasons(&self) -> Vec<(String, Reason)> {
            let bytes = fs::read(self.at("output").join(PACK_FILE)).unwrap();
            let records = decode(&bytes).unwrap();
            let reasons =
                records.iter().filter(|record| matches!(record.kind, Kind::LeftOut | Kind::NoSession));
            reasons.map(|record| (record.path.to_owned(), Reason::read(record.bytes).unwrap())).collect()
        }
    }

    #[test]
    fn files_of_both_kinds_come_along() {
        let world = World::new();
        world.write("workspace/coverage/index.html", b"<p>");
        world.write("workspace/src/other.rs", b"x");
        world.write("home/.agent/sessions/1.jsonl", b"{}");
        world.write("home/.agent/settings.json", b"{}");
        assert_eq!(world.collect(&["coverage/**"], &[".agent/sessions/*.jsonl"]), (1, 1));
        assert_eq!(
            world.said(),
            [
                (Kind::Artifact, "coverage/index.html".into(), 3),
                (Kind::Session, ".agent/sessions/1.jsonl".into(), 2),
            ]
        );
        // Asked for nothing: what stood there is gone.
        assert_eq!(world.collect(&[], &[]), (0, 0));
        assert!(!world.at("output").join(PACK_FILE).exists());
    }

    #[test]
    fn links_devices_and_odd_names_are_left_out_and_told() {
        let world = World::new();
        std::os::unix::fs::symlink("/etc/passwd", world.at("workspace/a.log")).unwrap();
        world.write("workspace/b\n.log", b"x");
        let socket = std::os::unix::net::UnixListener::bind(world.at("workspace/c.log")).unwrap();
        world.write("workspace/d.log", b"good");
        world.write(
            &format!("workspace/{}/e.log", ["x".repeat(100), "x".repeat(100), "x".repeat(100)].join("/")),
            b"x",
        );
        assert_eq!(world.collect(&["*.log"], &[]), (1, 0));
        let reasons = world.reasons();
        assert_eq!(
            reasons.iter().map(|(_, reason)| *reason).collect::<Vec<_>>(),
            [Reason::NotAFile, Reason::OddName, Reason::NotAFile, Reason::OddName,]
        );
        assert!(reasons.iter().all(|(path, _)| path.len() <= MAX_PATH_BYTES));
        drop(socket);
    }

    #[test]
    fn caps_hold_and_what_is_left_out_is_told() {
        let world = World::new();
        for n in 0..MAX_ARTIFACTS + MAX_LEFT_OUT + 7 {
            world.write(&format!("workspace/out/{n:03}.txt"), b"x");
        }
        assert_eq!(world.collect(&["out/**"], &[]), (MAX_ARTIFACTS, 0));
        assert_eq!(world.reasons().len(), MAX_LEFT_OUT);
        assert!(world.reasons().iter().all(|(_, reason)| *reason == Reason::TooMany));
        assert_eq!(world.said().last().unwrap(), &(Kind::More, String::new(), 4));

        let world = World::new();
        world.sparse("workspace/a.bin", MAX_ARTIFACT_BYTES + 1);
        for n in 0..5 {
            world.sparse(&format!("workspace/b{n}.bin"), MAX_ARTIFACT_BYTES);
        }
        assert_eq!(world.collect(&["*.bin"], &[]), (4, 0));
        assert_eq!(
            world.reasons(),
            [("a.bin".into(), Reason::FileTooLarge), ("b4.bin".into(), Reason::TooLarge)]
        );
    }

    #[test]
    fn a_session_comes_whole_or_not_at_all() {
        let world = World::new();
        world.write("home/s/a", b"x");
        world.sparse("home/s/b", MAX_SESSION_BYTES);
        assert_eq!(world.collect(&[], &["s/*"]), (0, 0));
        assert_eq!(world.reasons(), [(String::new(), Reason::TooLarge)]);
        assert_eq!(world.said().len(), 1);
        // A link in its place is not followed, and not a session.
        let world = World::new();
        std::os::unix::fs::symlink("/etc", world.at("home/s")).unwrap();
        assert_eq!(world.collect(&[], &["s/*"]), (0, 0));
        assert_eq!(world.said(), []);
    }

    #[test]
    fn what_stands_under_the_packs_name_is_replaced_not_followed() {
        let world = World::new();
        world.write("victim", b"precious");
        world.write("workspace/a.log", b"x");
        for name in [PACK_FILE, "extras.pack.tmp"] {
            std::os::unix::fs::symlink(world.at("victim"), world.at("output").join(name)).unwrap();
        }
        assert_eq!(world.collect(&["a.log"], &[]), (1, 0));
        assert_eq!(fs::read(world.at("victim")).unwrap(), b"precious");
        assert!(fs::symlink_metadata(world.at("output").join(PACK_FILE)).unwrap().is_file());
    }

    fn sample() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new()).unwrap();
        writer.put(Kind::Artifact, "a/b", b"bytes").unwrap();
        writer.left_out("c", Reason::TooMany).unwrap();
        writer.end().unwrap()
    }

    #[test]
    fn what_is_not_a_pack_says_so() {
        for end in 0..sample().len() {
            assert_eq!(decode(&sample()[..end]).unwrap_err(), "the pack was cut off", "cut at {end}");
        }
        let mut follows = sample();
        follows.push(0);
        let mut unknown = sample();
        unknown[4] = 9;
        let mut no_text = sample();
        no_text[9] = 0xff;
        let mut mark = sample();
        *mark.last_mut().unwrap() = b'?';
        let mut long = Writer::new(Vec::new()).unwrap();
        long.put(Kind::Artifact, &"x".repeat(MAX_PATH_BYTES + 1), b"").unwrap();
        let mut many = Writer::new(Vec::new()).unwrap();
        for _ in 0..=MAX_RECORDS {
            many.put(Kind::Session, "x", b"").unwrap();
        }
        let others = [long.end().unwrap(), many.end().unwrap(), b"# v2 git bundle".to_vec()];
        for bytes in [follows, unknown, no_text, mark].into_iter().chain(others) {
            let error = decode(&bytes).unwrap_err();
            assert!(error.starts_with("not a pack: "), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode(&bytes);
            let mut marked = b"ZBP1".to_vec();
            marked.extend(bytes);
            let _ = decode(&marked);
        }

        #[test]
        fn one_changed_byte_never_panics(at in 0_usize..40, byte in any::<u8>()) {
            let mut bytes = sample();
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            let _ = decode(&bytes);
        }
    }
}
