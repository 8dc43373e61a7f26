//! Purpose: measure a run's folders while its agent still changes them, without being led out of them.
//!
//! Every folder is opened without following links, and its entries are reached through that descriptor:
//! a folder that is swapped for a link meanwhile is not entered. What is mounted in the folder is not counted.

use super::DiskUse;
use std::collections::HashSet;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// One descriptor is held per level.
const MAX_DEPTH: usize = 100;
/// Bytes of a block as `stat` counts them.
const BLOCK_BYTES: u64 = 512;
/// `O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK` of Linux.
#[cfg(any(target_arch = "aarch64", target_arch = "arm"))]
const FOLDER_FLAGS: i32 = 0o040_000 | 0o100_000 | 0o4000;
#[cfg(not(any(target_arch = "aarch64", target_arch = "arm")))]
const FOLDER_FLAGS: i32 = 0o200_000 | 0o400_000 | 0o4000;

struct Count {
    used: DiskUse,
    bytes: i64,
    files: i64,
    /// The file system that is counted.
    device: Option<u64>,
    /// Files with several names count once.
    seen: HashSet<(u64, u64)>,
}

impl Count {
    fn is_over(&self) -> bool {
        self.used.too_deep || self.used.bytes > self.bytes || self.used.files > self.files
    }
}

/// Counts until everything is counted or a limit is passed. What vanishes meanwhile does not count.
pub(super) fn measure(folder: &Path, bytes: i64, files: i64) -> DiskUse {
    let mut count = Count { used: DiskUse::default(), bytes, files, device: None, seen: HashSet::new() };
    walk(folder, 0, &mut count);
    count.used
}

fn walk(folder: &Path, depth: usize, count: &mut Count) {
    let opened = std::fs::OpenOptions::new().read(true).custom_flags(FOLDER_FLAGS).open(folder);
    let Ok(opened) = opened else { return };
    if count.device.is_none() {
        count.device = opened.metadata().ok().map(|found| found.dev());
    }
    let held = held(&opened);
    let Ok(entries) = std::fs::read_dir(&held) else { return };
    for entry in entries.flatten() {
        let path = held.join(entry.file_name());
        let Ok(found) = path.symlink_metadata() else { continue };
        if count.device != Some(found.dev()) {
            continue;
        }
        if found.nlink() > 1 && !found.is_dir() && !count.seen.insert((found.dev(), found.ino())) {
            continue;
        }
        count.used.files += 1;
        let size = i64::try_from(found.blocks().saturating_mul(BLOCK_BYTES)).unwrap_or(i64::MAX);
        count.used.bytes = count.used.bytes.saturating_add(size);
        if found.is_dir() {
            if depth >= MAX_DEPTH {
                count.used.too_deep = true;
            } else {
                walk(&path, depth + 1, count);
            }
        }
        if count.is_over() {
            return;
        }
    }
}

/// The path of an open folder, whatever became of its name.
fn held(folder: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLENTY: i64 = 1 << 40;

    #[test]
    fn files_count_once_and_links_lead_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(at("a/b")).unwrap();
        std::fs::write(at("a/b/data"), vec![1; 1 << 20]).unwrap();
        std::fs::hard_link(at("a/b/data"), at("a/again")).unwrap();
        std::os::unix::fs::symlink("/usr", at("a/usr")).unwrap();
        File::create(at("sparse")).unwrap().set_len(1 << 40).unwrap();
        let used = measure(folder.path(), PLENTY, PLENTY);
        // a, a/b, data (once), usr, sparse.
        assert_eq!((used.files, used.too_deep), (5, false));
        assert!((1 << 20..2 << 20).contains(&used.bytes), "{used:?}");
        std::os::unix::fs::symlink(folder.path(), at("a/loop")).unwrap();
        assert_eq!(measure(&at("a/loop"), PLENTY, PLENTY), DiskUse::default(), "a link is not entered");
        assert_eq!(measure(&at("none"), PLENTY, PLENTY), DiskUse::default());
    }

    #[test]
    fn counting_ends_at_a_limit() {
        let folder = tempfile::tempdir().unwrap();
        for n in 0..50 {
            std::fs::write(folder.path().join(n.to_string()), "x").unwrap();
        }
        assert_eq!(measure(folder.path(), PLENTY, 10).files, 11);
        let mut deep = folder.path().to_path_buf();
        for _ in 0..MAX_DEPTH + 5 {
            deep.push("d");
        }
        std::fs::create_dir_all(&deep).unwrap();
        assert!(measure(folder.path(), PLENTY, PLENTY).too_deep);
    }
}
