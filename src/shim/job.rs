//! Purpose: the job as it crosses the gate: a length-prefixed binary form that both ends share.
//!
//! `ZBJ1`, then the fields in order, then `ZEND`. Numbers are little-endian; a text is its length (u32)
//! and its bytes; a list is its count (u32) and its items. Decoding never panics and caps every size.

use std::fmt;

/// All bytes of one job: prompts and home files are small, this only bounds memory.
pub const MAX_JOB_BYTES: usize = 64 * 1024 * 1024;
/// Items of one list.
const MAX_ITEMS: usize = 16 * 1024;
const START: &[u8; 4] = b"ZBJ1";
const END: &[u8; 4] = b"ZEND";

/// What the shim is to do. An empty `argv` means: only collect.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WireJob {
    pub argv: Vec<String>,
    pub env: Vec<(String, String)>,
    pub stdin: Vec<u8>,
    /// Path below HOME, bytes.
    pub home_files: Vec<(String, Vec<u8>)>,
    pub bridge_port: Option<u16>,
    /// The proxy's port, when the run may reach anything.
    pub egress_port: Option<u16>,
    /// Symbolic links to make below HOME: (path, target).
    pub links: Vec<(String, String)>,
    /// The commit whose `exclude` paths are put in place before the start; empty: they are in place.
    pub mask_from: String,
    /// Not an agent but what prepares the workspace for it: nothing is collected.
    pub setup: bool,
    /// All output lines together.
    pub log_bytes: u64,
    /// The commit the workspace started from.
    pub base: String,
    pub message: String,
    /// Paths that are put back to `base`.
    pub exclude: Vec<String>,
    /// Patterns of files that are kept beside the commits and stay out of them (see `glob`).
    pub artifacts: Vec<String>,
    /// The same below HOME: the files of the agent's session.
    pub session: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobError {
    /// The bytes end before the end mark: the writer died.
    Incomplete,
    /// These bytes never become a job.
    Invalid(&'static str),
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Incomplete => f.write_str("the job was cut off"),
            Self::Invalid(why) => write!(f, "not a job: {why}"),
        }
    }
}

impl WireJob {
    /// The bytes for the gate; refused when the other end would refuse them.
    pub fn encode(&self) -> Result<Vec<u8>, String> {
        let mut bytes = START.to_vec();
        put_count(&mut bytes, self.argv.len());
        self.argv.iter().for_each(|item| put(&mut bytes, item.as_bytes()));
        put_count(&mut bytes, self.env.len());
        for (name, value) in &self.env {
            put(&mut bytes, name.as_bytes());
            put(&mut bytes, value.as_bytes());
        }
        put(&mut bytes, &self.stdin);
        put_count(&mut bytes, self.home_files.len());
        for (path, content) in &self.home_files {
            put(&mut bytes, path.as_bytes());
            put(&mut bytes, content);
        }
        bytes.extend_from_slice(&self.bridge_port.unwrap_or(0).to_le_bytes());
        bytes.extend_from_slice(&self.log_bytes.to_le_bytes());
        put(&mut bytes, self.base.as_bytes());
        put(&mut bytes, self.message.as_bytes());
        put_count(&mut bytes, self.exclude.len());
        self.exclude.iter().for_each(|item| put(&mut bytes, item.as_bytes()));
        bytes.extend_from_slice(&self.egress_port.unwrap_or(0).to_le_bytes());
        put_count(&mut bytes, self.links.len());
        for (path, target) in &self.links {
            put(&mut bytes, path.as_bytes());
            put(&mut bytes, target.as_bytes());
        }
        put(&mut bytes, self.mask_from.as_bytes());
        bytes.push(u8::from(self.setup));
        for list in [&self.artifacts, &self.session] {
            put_count(&mut bytes, list.len());
            list.iter().for_each(|item| put(&mut bytes, item.as_bytes()));
        }
        bytes.extend_from_slice(END);
        let longest = [
            self.argv.len(),
            self.env.len(),
            self.home_files.len(),
            self.exclude.len(),
            self.artifacts.len(),
            self.session.len(),
        ]
        .into_iter()
        .max();
        if bytes.len() > MAX_JOB_BYTES {
            return Err(format!("the job has {} bytes, at most {MAX_JOB_BYTES} are allowed", bytes.len()));
        }
        if longest.unwrap_or(0) > MAX_ITEMS {
            return Err(format!("a list of the job has more than {MAX_ITEMS} items"));
        }
        Ok(bytes)
    }

    /// The job in `bytes`, which must hold exactly one.
    pub fn decode(bytes: &[u8]) -> Result<Self, JobError> {
        if bytes.len() > MAX_JOB_BYTES {
            return Err(JobError::Invalid("too large"));
        }
        let mut reader = Reader::new(bytes);
        let start = bytes.get(..START.len().min(bytes.len())).unwrap_or(bytes);
        if !START.starts_with(start) {
            return Err(JobError::Invalid("it does not begin as one"));
        }
        reader.take(START.len())?;
        let argv = reader.list(Reader::text)?;
        let env = reader.list(|reader| Ok((reader.text()?, reader.text()?)))?;
        let stdin = reader.bytes()?.to_vec();
        let home_files = reader.list(|reader| Ok((reader.text()?, reader.bytes()?.to_vec())))?;
        let port = u16::from_le_bytes(reader.array()?);
        let log_bytes = u64::from_le_bytes(reader.array()?);
        let base = reader.text()?;
        let message = reader.text()?;
        let exclude = reader.list(Reader::text)?;
        let egress_port = u16::from_le_bytes(reader.array()?);
        let links = reader.list(|reader| Ok((reader.text()?, reader.text()?)))?;
        let mask_from = reader.text()?;
        let [setup] = reader.array()?;
        let artifacts = reader.list(Reader::text)?;
        let session = reader.list(Reader::text)?;
        let end: [u8; 4] = reader.array()?;
        if &end != END {
            return Err(JobError::Invalid("the end mark is missing"));
        }
        if !reader.is_empty() {
            return Err(JobError::Invalid("something follows the end mark"));
        }
        let bridge_port = (port != 0).then_some(port);
        Ok(Self {
            argv,
            env,
            stdin,
            home_files,
            bridge_port,
            egress_port: (egress_port != 0).then_some(egress_port),
            links,
            mask_from,
            setup: setup != 0,
            log_bytes,
            base,
            message,
            exclude,
            artifacts,
            session,
        })
    }
}

fn put_count(bytes: &mut Vec<u8>, count: usize) {
    // A count past u32 cannot pass the size cap either; saturating keeps it refused.
    bytes.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
}

fn put(bytes: &mut Vec<u8>, item: &[u8]) {
    put_count(bytes, item.len());
    bytes.extend_from_slice(item);
}

/// Takes one field after the other.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], JobError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(JobError::Incomplete)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], JobError> {
        self.take(N)?.try_into().map_err(|_| JobError::Incomplete)
    }

    fn count(&mut self) -> Result<usize, JobError> {
        usize::try_from(u32::from_le_bytes(self.array()?))
            .map_err(|_| JobError::Invalid("a count is too large"))
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], JobError> {
        let length = self.count()?;
        if length > MAX_JOB_BYTES {
            return Err(JobError::Invalid("a field is too large"));
        }
        self.take(length)
    }

    fn text(&mut self) -> Result<String, JobError> {
        let bytes = self.bytes()?;
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| JobError::Invalid("a text is not UTF-8"))
    }

    fn list<T>(&mut self, item: impl Fn(&mut Self) -> Result<T, JobError>) -> Result<Vec<T>, JobError> {
        let count = self.count()?;
        if count > MAX_ITEMS {
            return Err(JobError::Invalid("a list is too long"));
        }
        (0..count).map(|_| item(self)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn full() -> WireJob {
        WireJob {
            argv: vec!["claude".into(), String::new(), "-p\n".into()],
            env: vec![("A".into(), "b=c".into())],
            stdin: vec![0, 255, 10],
            home_files: vec![(".config/x".into(), b"{}".to_vec())],
            bridge_port: Some(8123),
            egress_port: Some(8124),
            links: vec![(".npm".into(), "/zeblit/cache/.npm".into())],
            mask_from: "b".repeat(40),
            setup: true,
            log_bytes: 50 << 20,
            base: "a".repeat(40),
            message: "Fix \u{fc}\n\nBody".into(),
            exclude: vec![".claude".into(), "CLAUDE.md".into()],
            artifacts: vec!["out/**".into()],
            session: vec![".agent/*".into(), ".other/*".into()],
        }
    }

    #[test]
    fn a_job_comes_back_as_it_was() {
        for job in [WireJob::default(), full()] {
            assert_eq!(WireJob::decode(&job.encode().unwrap()).unwrap(), job);
        }
    }

    #[test]
    fn every_cut_of_a_job_is_incomplete() {
        let bytes = full().encode().unwrap();
        for end in 0..bytes.len() {
            assert_eq!(WireJob::decode(&bytes[..end]), Err(JobError::Incomplete), "cut at {end}");
        }
    }

    #[test]
    fn what_is_not_a_job_says_so() {
        let mut follows = full().encode().unwrap();
        follows.push(0);
        let mut no_text = WireJob { base: "x".into(), ..WireJob::default() }.encode().unwrap();
        let at = no_text.iter().rposition(|byte| *byte == b'x').unwrap();
        no_text[at] = 0xff;
        let mut long_list = b"ZBJ1".to_vec();
        long_list.extend_from_slice(&u32::MAX.to_le_bytes());
        let mut mark = WireJob::default().encode().unwrap();
        *mark.last_mut().unwrap() = b'?';
        for bytes in [b"HTTP/1.1 200 OK".to_vec(), follows, no_text, long_list, mark] {
            assert!(matches!(WireJob::decode(&bytes), Err(JobError::Invalid(_))), "{bytes:?}");
        }
    }

    #[test]
    fn a_job_that_would_be_refused_is_not_sent() {
        let many = WireJob { exclude: vec![String::new(); MAX_ITEMS + 1], ..WireJob::default() };
        assert!(many.encode().unwrap_err().contains("items"));
        let large = WireJob { stdin: vec![0; MAX_JOB_BYTES], ..WireJob::default() };
        assert!(large.encode().unwrap_err().contains("bytes"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = WireJob::decode(&bytes);
            let mut marked = b"ZBJ1".to_vec();
            marked.extend(bytes);
            let _ = WireJob::decode(&marked);
        }

        #[test]
        fn one_changed_byte_never_panics(at in 0_usize..200, byte in any::<u8>()) {
            let mut bytes = full().encode().unwrap();
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            let _ = WireJob::decode(&bytes);
        }
    }
}
