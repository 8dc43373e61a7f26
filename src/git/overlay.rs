//! Purpose: a run's workspace as an overlay: its seed below, never written, and what the run writes above it.
//!
//! The kernel makes changes as the process that mounted it: blocks that a file system keeps back for root are not kept back
//! from what is written through an overlay.

use super::workspace::io_error;
use super::{Git, GitError, TemporaryFolder, seed};
use crate::mount;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// How the workspaces of runs are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Each is an overlay on the seed of its commit.
    Overlay,
    /// Each is a checkout of its own.
    Checkout,
}

/// Renaming folders works (`redirect_dir`); a run's `sync` reaches no disk, and neither does unmounting (`volatile`).
const OPTIONS: &[&str] = &["index=off", "metacopy=off", "redirect_dir=on", "xino=auto", "volatile"];
/// The folders of a run that an overlay needs, beside the mount point.
pub(super) const UPPER: &str = "upper";
pub(super) const WORK: &str = "work";
/// The mount point.
pub(super) const WORKSPACE: &str = "workspace";
/// What the kernel leaves in the work folder of a `volatile` overlay, and refuses to mount again over.
const LEFTOVER: &str = "work/incompat";

/// Tries a small overlay on the file system of the store; an error says why workspaces cannot be overlays.
pub(super) fn probe(git: &Git) -> Result<(), String> {
    let folder = git.fresh_folder(&git.root.join("tmp"), "overlay-").map_err(|error| error.to_string())?;
    let folder = TemporaryFolder(folder);
    let at = folder.0.join(WORKSPACE);
    let tried = try_at(&folder.0);
    let unmounted = if mount::at(&at).is_some() { mount::unmount(&at) } else { Ok(()) };
    tried.and(unmounted).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => "mounting needs root".to_owned(),
        _ => format!("an overlay on {} does not work: {error}", git.root.display()),
    })
}

fn try_at(folder: &Path) -> io::Result<()> {
    let lower = folder.join("lower");
    std::fs::create_dir_all(lower.join("folder"))?;
    std::fs::write(lower.join("folder/file"), "below")?;
    make_folders(folder, None)?;
    mount_at(folder, &lower)?;
    let inside = |name: &str| folder.join(WORKSPACE).join(name);
    std::fs::rename(inside("folder"), inside("moved"))?;
    std::fs::write(inside("moved/file"), "above")?;
    std::fs::remove_file(inside("moved/file"))?;
    std::fs::remove_dir(inside("moved"))?;
    let seen = std::fs::read_dir(folder.join(WORKSPACE))?.count();
    let below = std::fs::read(lower.join("folder/file"))?;
    if seen == 0 && below == b"below" {
        Ok(())
    } else {
        Err(io::Error::other("it does not hide what is below"))
    }
}

/// The empty folders of an overlay; what is seen at the top belongs to `owner`.
pub(super) fn make_folders(run: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    for name in [WORKSPACE, UPPER, WORK] {
        std::fs::create_dir(run.join(name))?;
    }
    let upper = run.join(UPPER);
    std::fs::set_permissions(&upper, std::fs::Permissions::from_mode(0o755))?;
    match owner {
        Some((user, group)) => std::os::unix::fs::lchown(&upper, Some(user), Some(group)),
        None => Ok(()),
    }
}

fn mount_at(run: &Path, seed: &Path) -> io::Result<()> {
    mount::overlay(seed, &run.join(UPPER), &run.join(WORK), &run.join(WORKSPACE), OPTIONS)
}

/// Mounts the workspace of a run whose folders are there.
pub(super) fn mount(run: &Path, seed: &Path) -> Result<(), GitError> {
    mount_at(run, seed).map_err(io_error("mount the workspace", run))
}

/// Whether the workspace of a run is mounted, and seen from here: another mount may hide it.
fn is_mounted(run: &Path) -> bool {
    let device = |path: &Path| path.symlink_metadata().map(|found| found.dev());
    match (device(run), device(&run.join(WORKSPACE))) {
        (Ok(run), Ok(workspace)) => run != workspace,
        _ => false,
    }
}

/// Mounts a workspace that the end of the machine (or of the mounts' namespace) took away; what the run wrote is there.
pub(super) fn mount_again(run: &Path, seed: &Path, inside: &Path) -> Result<(), GitError> {
    let operation = "mount the workspace again";
    if is_mounted(run) {
        return Ok(());
    }
    if !seed::is_whole(seed, inside) {
        let detail = format!("{} did not survive the end of the machine", seed.display());
        return Err(GitError::Failed { operation, detail });
    }
    let leftover = run.join(WORK).join(LEFTOVER);
    match std::fs::remove_dir_all(&leftover) {
        Err(error) if !seed::gone(&error) => return Err(io_error(operation, &leftover)(error)),
        _ => {}
    }
    mount(run, seed)?;
    tracing::info!(path = %run.display(), "the workspace of a run is mounted again");
    Ok(())
}

/// Takes the mounts at and below a folder away. Containers that have one bound keep it until they end.
pub(super) fn unmount_below(folder: &Path) -> Result<(), GitError> {
    mount::unmount_below(folder).map_err(io_error("unmount the workspace", folder))
}
