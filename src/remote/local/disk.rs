//! How the state lies on disk: `forge.json` is the whole of it, `forge.log` what was changed since, a line for each change.
//!
//! A line holds the rows that the change made or touched, as they are after it, and the number of the change. The whole
//! is written anew when the log has grown as large as it, so a change costs the same however much there is.

use super::state::{STATE_VERSION, State};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Bytes of a file that are read at start: far above any demo, far below the machine's memory.
const MAX_STATE_BYTES: u64 = 256 * 1024 * 1024;

/// A log that is no longer than this stays, however small the whole is.
const LOG_BYTES: u64 = 1024 * 1024;

/// The files of one forge.
#[derive(Debug)]
pub(super) struct Disk {
    whole: PathBuf,
    whole_bytes: u64,
    pub(super) log: File,
    log_bytes: u64,
    /// Something failed half-way: the next change writes the whole anew.
    is_unsure: bool,
}

impl Disk {
    /// Reads what there is; a forge with its owner and its bot when there is nothing yet.
    pub(super) fn open(folder: &Path) -> io::Result<(Self, State)> {
        let whole = folder.join("forge.json");
        let log = File::options().read(true).append(true).create(true).open(folder.join("forge.log"))?;
        let mut disk = Self { whole, whole_bytes: 0, log, log_bytes: 0, is_unsure: false };
        let Some(mut state) = disk.load()? else {
            let state = State::new();
            disk.save(&state)?;
            return Ok((disk, state));
        };
        if disk.replay(&mut state)? || state.version != STATE_VERSION {
            state.version = STATE_VERSION;
            disk.save(&state)?;
        }
        Ok((disk, state))
    }

    /// Keeps a change; `after` is counted one further. What fails has not happened.
    pub(super) fn keep(&mut self, before: &State, after: &State) -> io::Result<()> {
        let later = after.since(before);
        let mut again = before.clone();
        again.take(later.clone());
        // What a line cannot say (a row that is gone), or what makes the log too long.
        if self.is_unsure || again != *after || self.log_bytes > self.whole_bytes.max(LOG_BYTES) {
            return self.save(after);
        }
        let mut line = serde_json::to_vec(&later).map_err(io::Error::other)?;
        line.push(b'\n');
        self.is_unsure = true;
        if let Err(error) = self.log.write_all(&line).and_then(|()| self.log.sync_data()) {
            // Nothing may follow half a line.
            self.is_unsure = self.log.set_len(self.log_bytes).is_err();
            return Err(error);
        }
        self.is_unsure = false;
        self.log_bytes += bytes_of(&line);
        Ok(())
    }

    /// The whole; `None` when there is none yet.
    fn load(&mut self) -> io::Result<Option<State>> {
        let opened = match File::open(&self.whole) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let bytes = read(opened)?;
        self.whole_bytes = bytes_of(&bytes);
        let state: State = serde_json::from_slice(&bytes).map_err(|error| {
            io::Error::other(format!("it is not a state file of the local forge: {error}"))
        })?;
        if !(1..=STATE_VERSION).contains(&state.version) {
            return Err(io::Error::other(format!(
                "it has layout {} and this program knows {STATE_VERSION}: move the folder away to begin anew",
                state.version
            )));
        }
        Ok(Some(state))
    }

    /// Takes the log in. Whether it ends with half a line: that change was told to nobody.
    fn replay(&mut self, state: &mut State) -> io::Result<bool> {
        let bytes = read(&self.log)?;
        self.log_bytes = bytes_of(&bytes);
        let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
        let rest = lines.pop().unwrap_or_default();
        for (n, line) in lines.into_iter().enumerate() {
            let later: State = serde_json::from_slice(line)
                .map_err(|error| io::Error::other(format!("line {} of forge.log: {error}", n + 1)))?;
            // The whole was written since, and the log was to be emptied.
            if later.changes > state.changes {
                state.take(later);
            }
        }
        Ok(!rest.is_empty())
    }

    /// Replaces the whole in one step, and empties the log: after a crash there is the old one or the new one.
    fn save(&mut self, state: &State) -> io::Result<()> {
        let folder = self.whole.parent().ok_or_else(|| io::Error::other("the state file has no folder"))?;
        let bytes = serde_json::to_vec_pretty(state).map_err(io::Error::other)?;
        self.is_unsure = true;
        let aside = self.whole.with_extension("json.new");
        let mut written = File::create(&aside)?;
        written.write_all(&bytes)?;
        written.sync_all()?;
        fs::rename(&aside, &self.whole)?;
        File::open(folder)?.sync_all()?;
        self.whole_bytes = bytes_of(&bytes);
        self.log.set_len(0)?;
        self.log_bytes = 0;
        self.is_unsure = false;
        Ok(())
    }
}

fn bytes_of(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

fn read(file: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(MAX_STATE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes_of(&bytes) > MAX_STATE_BYTES {
        return Err(io::Error::other(format!(
            "it is larger than {MAX_STATE_BYTES} bytes: move the folder away to begin anew"
        )));
    }
    Ok(bytes)
}
