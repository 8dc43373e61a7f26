//! Purpose: the folder of a run as an ext4 image of the size of its limit, so that the kernel itself refuses what is more.
//!
//! The image is a sparse file that only the host opens; it is mounted on the run's folder with `nosuid,nodev`, and what
//! it really takes on the disk is what the agent wrote. Some room is kept back for collecting a full workspace: by a file,
//! since what the file system keeps back for root is open to what is written through an overlay.

use super::{Disk, DiskUse, Git, GitError};
use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Kept back from the agent until its workspace is collected: a bundle and a few objects.
const RESERVE_BYTES: u64 = 64 << 20;
/// Files that are kept back with it.
const RESERVE_FILES: i64 = 64;
/// The folder that keeps both, out of the agent's reach.
const RESERVE: &str = "reserve";
/// Files that the file system makes for itself, and a few of ours.
const OWN_FILES: i64 = 64;
/// Bytes of a disk for each file that it may hold.
const BYTES_PER_FILE: i64 = 4096;
/// Less than this is left: full.
const FULL_BYTES: i64 = 256 << 10;
/// No journal: after a power loss the run starts afresh. No lazy zeroing: the image is sparse.
const MOUNT_OPTIONS: &str = "loop,nosuid,nodev,noatime,noinit_itable";

/// The image of a run.
pub(super) fn file(git: &Git, run: &str) -> PathBuf {
    git.root.join(super::IMAGES).join(format!("{run}.img"))
}

fn failed(operation: &'static str, detail: String) -> GitError {
    GitError::Failed { operation, detail }
}

/// Runs a program of the system; its output.
fn program(operation: &'static str, name: &str, arguments: &[&str], path: &Path) -> Result<String, GitError> {
    let done = Command::new(name)
        .args(arguments)
        .arg(path)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => failed(
                operation,
                format!("the program `{name}` is not there: install e2fsprogs and util-linux"),
            ),
            _ => failed(operation, format!("{name}: {error}")),
        })?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    let said: String = String::from_utf8_lossy(&done.stderr).trim().chars().take(300).collect();
    let hint = "; `sandbox.disk = \"loop\"` needs root and loop devices: `zeblit doctor` says more";
    Err(failed(operation, format!("{name}: {said}{hint}")))
}

/// Makes the image of a run and mounts it on its folder, which is empty then.
pub(super) fn make(git: &Git, run: &str, bytes: i64, files: i64) -> Result<PathBuf, GitError> {
    let operation = "make the disk of the run";
    let image = file(git, run);
    let folder = git.root.join("runs").join(run);
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| GitError::Io { operation, path, source }
    };
    let total = bytes.saturating_add(RESERVE_BYTES.cast_signed());
    let made = File::options().write(true).create_new(true).mode(0o600).open(&image).map_err(at(&image))?;
    made.set_len(u64::try_from(total).unwrap_or(0)).map_err(at(&image))?;
    drop(made);
    // Their table takes room, too: more than this never fit.
    let inodes = files.min(total / BYTES_PER_FILE).saturating_add(OWN_FILES + RESERVE_FILES).to_string();
    let format = [
        "-q",
        "-F",
        "-m",
        "0",
        "-N",
        &inodes,
        "-O",
        "^has_journal",
        "-E",
        "lazy_itable_init=1,nodiscard,root_owner=0:0",
    ];
    program(operation, "mkfs.ext4", &format, &image)?;
    std::fs::create_dir_all(&folder).map_err(at(&folder))?;
    mount(&image, &folder)?;
    let found = room(&folder)?;
    if found.total > total {
        return Err(failed(operation, format!("{} bytes fit into a disk of {total}", found.total)));
    }
    // Nothing of ours: only its name would be in the way.
    let _ = std::fs::remove_dir(folder.join("lost+found"));
    let reserve = folder.join(RESERVE);
    std::fs::create_dir(&reserve).map_err(at(&reserve))?;
    for n in 0..RESERVE_FILES {
        let path = reserve.join(n.to_string());
        let kept = File::create_new(&path).map_err(at(&path))?;
        if n == 0 {
            rustix::fs::fallocate(&kept, rustix::fs::FallocateFlags::empty(), 0, RESERVE_BYTES)
                .map_err(|error| at(&path)(error.into()))?;
        }
    }
    Ok(folder)
}

fn mount(image: &Path, folder: &Path) -> Result<(), GitError> {
    let operation = "mount the disk of the run";
    let image = image.to_string_lossy();
    program(operation, "mount", &["-t", "ext4", "-o", MOUNT_OPTIONS, &image], folder)?;
    let flags = crate::mount::flags_at(folder).unwrap_or_default();
    let has = |wanted: &str| flags.split(',').any(|flag| flag == wanted);
    if has("nosuid") && has("nodev") {
        Ok(())
    } else {
        Err(failed(operation, format!("it is mounted `{flags}`, without nosuid and nodev")))
    }
}

/// Mounts the disk of a run that a restart of the machine left unmounted.
pub(super) fn mount_again(git: &Git, run: &str) -> Result<(), GitError> {
    let (image, folder) = (file(git, run), git.root.join("runs").join(run));
    if image.exists() && folder.is_dir() && crate::mount::flags_at(&folder).is_none() {
        tracing::info!(run.id = run, "the disk of a run is mounted again");
        mount(&image, &folder)?;
    }
    Ok(())
}

/// Unmounts and deletes the disk of a run, when it has one. Its folder stays, empty.
pub(super) fn remove(git: &Git, run: &str) -> Result<(), GitError> {
    let operation = "remove the disk of the run";
    let (image, folder) = (file(git, run), git.root.join("runs").join(run));
    if !image.exists() {
        return Ok(());
    }
    // More than once when two processes made it at one time.
    while crate::mount::flags_at(&folder).is_some() {
        // Somebody may still look into it: then it goes away with the last one.
        program(operation, "umount", &[], &folder)
            .or_else(|_| program(operation, "umount", &["--lazy"], &folder))?;
    }
    match std::fs::remove_file(&image) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(GitError::Io { operation, path: image, source: error })
        }
        _ => Ok(()),
    }
}

/// Gives up what was kept back on the disk of a run, when it has one.
pub(super) fn open_reserve(folder: &Path) -> Result<(), GitError> {
    let reserve = folder.join(RESERVE);
    match std::fs::remove_dir_all(&reserve) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(GitError::Io { operation: "open the reserve of the disk", path: reserve, source: error })
        }
        _ => Ok(()),
    }
}

struct Room {
    total: i64,
    used: i64,
    available: i64,
    files: i64,
    files_left: i64,
}

fn room(folder: &Path) -> Result<Room, GitError> {
    let operation = "ask for the room on the disk of the run";
    let text = program(operation, "df", &["-B1", "--output=size,used,avail,iused,iavail"], folder)?;
    let numbers: Vec<i64> = text
        .lines()
        .last()
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    match numbers[..] {
        [total, used, available, files, files_left] => Ok(Room { total, used, available, files, files_left }),
        _ => Err(failed(operation, format!("df said `{}`", text.trim()))),
    }
}

/// What the disk of a run holds; `None`: it has none.
pub(super) fn measure(git: &Git, run: &str) -> Result<Option<DiskUse>, GitError> {
    let folder = git.root.join("runs").join(run);
    if !matches!(git.disk, Disk::Loop { .. }) || !file(git, run).exists() {
        return Ok(None);
    }
    let room = room(&folder)?;
    // What was kept back is nobody's.
    let (bytes, files) = match folder.join(RESERVE).join("0").metadata() {
        Ok(kept) => (kept.size().cast_signed(), RESERVE_FILES),
        Err(_) => (0, 0),
    };
    Ok(Some(DiskUse {
        bytes: room.used.saturating_sub(bytes),
        files: room.files.saturating_sub(files),
        too_deep: false,
        full: room.available < FULL_BYTES || room.files_left == 0,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::RunId;
    use crate::git::tests::{REMOTE, REPO, World};
    use crate::git::{Workspace, WorkspaceSpec};
    use std::io::Write;

    async fn prepare(world: &World, git: &Git, run: &RunId) -> Result<Workspace, GitError> {
        let spec = WorkspaceSpec {
            remote: REMOTE,
            repo_id: REPO,
            run,
            start: &world.start,
            base_sha: &world.start,
            masked: &[],
            objects_inside: PathBuf::from("/zeblit/objects"),
            owner: (10_001, 10_001),
        };
        git.prepare(&spec).await
    }

    /// Writes until it is refused, as the agent's user; gives the bytes.
    fn fill(path: &Path) -> usize {
        let script = "import os, sys\nos.setgid(10001); os.setuid(10001)\nn = 0\nfile = open(sys.argv[1], 'wb', 0)\n\
                      try:\n    while True:\n        n += file.write(b'x' * 65536)\nexcept OSError as error:\n    print(n, error.errno)\n";
        let done = Command::new("python3").args(["-c", script]).arg(path).output().unwrap();
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        let numbers: Vec<usize> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        assert_eq!(
            numbers.get(1),
            Some(&28),
            "no space left: {text} {}",
            String::from_utf8_lossy(&done.stderr)
        );
        numbers[0]
    }

    #[tokio::test]
    async fn a_disk_holds_its_limit_and_no_more_and_goes_away_without_a_trace() {
        let world = World::new().await;
        let is_root =
            world.git.root.metadata().is_ok_and(|found| std::os::unix::fs::MetadataExt::uid(&found) == 0);
        let git = world.git.clone().with_disk(Disk::Loop { bytes: 64 << 20, files: 1000 });
        let run = RunId::new("run_1");
        if !is_root {
            // Without root there are no mounts: said, not hidden.
            let error = prepare(&world, &git, &run).await.unwrap_err().to_string();
            assert!(error.contains("needs root and loop devices"), "{error}");
            return;
        }
        let made = prepare(&world, &git, &run).await.unwrap();
        assert!(made.workspace.join("README.md").is_file() && made.home.is_dir() && made.output.is_dir());
        assert_eq!(git.prepared(REMOTE, REPO, &run), Some(made.clone()));
        let flags = crate::mount::flags_at(made.workspace.parent().unwrap()).unwrap();
        assert!(flags.contains("nosuid") && flags.contains("nodev"), "{flags}");
        let before = git.disk_use(&run, i64::MAX, i64::MAX).await.unwrap();
        assert!(!before.full && before.bytes < 4 << 20, "{before:?}");

        let written = fill(&made.workspace.join("filler"));
        assert!((32 << 20..=64 << 20).contains(&written), "{written} bytes");
        assert!(git.disk_use(&run, i64::MAX, i64::MAX).await.unwrap().full);
        assert!(fill(&made.output.join("more")) < 1 << 20, "not a byte more");
        // For collecting there is some room.
        git.open_reserve(&run).await.unwrap();
        assert!(fill(&made.output.join("bundle")) > 32 << 20);

        // A second preparation starts afresh, and files are limited like bytes.
        let made = prepare(&world, &git, &run).await.unwrap();
        assert!(!made.workspace.join("filler").exists());
        let mut count = 0;
        while count < 5000 && File::create(made.home.join(count.to_string())).is_ok() {
            count += 1;
        }
        assert!((500..=1100).contains(&count), "{count} files");
        assert!(git.disk_use(&run, i64::MAX, i64::MAX).await.unwrap().full);

        // As after a restart of the machine.
        let folder = made.workspace.parent().unwrap().to_owned();
        File::create(made.home.join("0")).unwrap().write_all(b"kept").unwrap();
        crate::git::overlay::unmount_below(&folder).unwrap();
        assert_eq!(git.prepared(REMOTE, REPO, &run), None);
        git.sweep(std::slice::from_ref(&run)).await.unwrap();
        assert_eq!(std::fs::read_to_string(made.home.join("0")).unwrap(), "kept");

        git.discard(&run).await.unwrap();
        git.discard(&run).await.unwrap();
        assert!(!file(&git, "run_1").exists() && !folder.exists());
        assert_eq!(crate::mount::flags_at(&folder), None);
        let loops = Command::new("losetup").arg("-a").output().unwrap();
        let loops = String::from_utf8_lossy(&loops.stdout).into_owned();
        assert!(!loops.contains(&*git.root.to_string_lossy()), "{loops}");
    }
}
