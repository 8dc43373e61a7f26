//! Mounts of the host: overlays of workspaces, folders bound into slots, and what the kernel says is mounted where.
//!
//! Everything is mounted `nosuid` and `nodev`. All of it needs root; without it every call is an error that says so.

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What may be done below a mount, besides reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Write and execute.
    Write,
    /// Execute.
    Read,
    /// Write.
    NoExec,
}

impl Access {
    fn flags(self) -> MountFlags {
        let always = MountFlags::NOSUID | MountFlags::NODEV;
        match self {
            Access::Write => always,
            Access::Read => always | MountFlags::RDONLY,
            Access::NoExec => always | MountFlags::NOEXEC,
        }
    }
}

/// Mounts an overlay: what is written lands in `upper`, `lower` stays as it is (and must not be changed by anybody
/// while this is mounted). `upper` and `work` lie on one file system; `options` are further ones of overlayfs.
pub fn overlay(lower: &Path, upper: &Path, work: &Path, at: &Path, options: &[&str]) -> io::Result<()> {
    let mut data = Vec::new();
    for (name, path) in [("lowerdir=", lower), ("upperdir=", upper), ("workdir=", work)] {
        if !data.is_empty() {
            data.push(b',');
        }
        data.extend_from_slice(name.as_bytes());
        data.extend(escaped(path));
    }
    for option in options {
        data.push(b',');
        data.extend_from_slice(option.as_bytes());
    }
    let data = CString::new(data)?;
    rustix::mount::mount(c"overlay", at, c"overlay", Access::Write.flags(), data.as_c_str())?;
    Ok(())
}

/// A path among the options of an overlay: commas end an option, colons a lower layer.
fn escaped(path: &Path) -> Vec<u8> {
    let mut text = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b'\\' | b',' | b':') {
            text.push(b'\\');
        }
        text.push(*byte);
    }
    text
}

/// Mounts a folder or file at another place (or on itself).
///
/// What appears elsewhere because the place is shared has the flags of the mount that `from` lies in, not these: what
/// must be read-only there is bound from a view of it that is.
pub fn bind(from: &Path, at: &Path, access: Access) -> io::Result<()> {
    rustix::mount::mount_bind(from, at)?;
    // A bind takes no flags of its own at once: they come second, and without them it must not stay.
    restrict(at, access).inspect_err(|_| {
        let _ = rustix::mount::unmount(at, UnmountFlags::DETACH);
    })
}

/// The flags of this mount alone: the file system below may have others.
pub fn restrict(at: &Path, access: Access) -> io::Result<()> {
    rustix::mount::mount_remount(at, MountFlags::BIND | access.flags(), c"")?;
    Ok(())
}

/// Makes a folder a mount whose later submounts appear in everything that is bound from it (`shared`), whatever the
/// mount above it is.
pub fn share(folder: &Path) -> io::Result<()> {
    if flags_at(folder).is_none() {
        bind(folder, folder, Access::Write)?;
        // Of its own: nothing is to appear under the mount above, too.
        rustix::mount::mount_change(folder, MountPropagationFlags::PRIVATE)?;
    }
    rustix::mount::mount_change(folder, MountPropagationFlags::SHARED)?;
    Ok(())
}

/// Takes away what is mounted on top at a place; nothing there is no error. Who still looks into it keeps it for as long.
pub fn unmount(at: &Path) -> io::Result<()> {
    match rustix::mount::unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // Nothing is mounted there; nothing is there.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Takes away everything that is mounted at and below a folder, the last first.
pub fn unmount_below(folder: &Path) -> io::Result<()> {
    below(folder).iter().rev().try_for_each(|point| unmount(point))
}

/// One line of the kernel's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    pub point: PathBuf,
    /// e.g. `ro,nosuid,nodev,relatime`.
    pub flags: String,
    /// e.g. `overlay`.
    pub kind: String,
}

/// The mounts that a process sees; nothing when it is gone or not ours to look at.
pub fn of_process(pid: i64) -> Vec<Mounted> {
    let table = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    parse(&table).collect()
}

impl Mounted {
    pub fn has(&self, flag: &str) -> bool {
        self.flags.split(',').any(|found| found == flag)
    }
}

/// The lines of a `mountinfo` file. Fields: id, parent, device, root, mount point, flags, optional ones, `-`, type, …
pub fn parse(table: &str) -> impl DoubleEndedIterator<Item = Mounted> {
    table.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(4);
        let point = fields.next()?.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\");
        let flags = fields.next()?.to_owned();
        let kind = fields.skip_while(|field| *field != "-").nth(1).unwrap_or_default().to_owned();
        Some(Mounted { point: PathBuf::from(point), flags, kind })
    })
}

fn own_table() -> String {
    // Without the table nothing is known to be mounted; what needs it to be so says that it is not.
    std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()
}

/// The flags of the mount that stands at exactly this place; of several the one on top.
pub fn flags_at(place: &Path) -> Option<String> {
    at(place).map(|mounted| mounted.flags)
}

/// The mount that stands at exactly this place; of several the one on top.
pub fn at(place: &Path) -> Option<Mounted> {
    parse(&own_table()).rfind(|mounted| mounted.point == place)
}

/// The flags of the mount that a place lies in.
pub fn flags_above(place: &Path) -> Option<String> {
    flags_of(&own_table(), place)
}

fn flags_of(table: &str, place: &Path) -> Option<String> {
    place
        .ancestors()
        .find_map(|above| parse(table).rfind(|mounted| mounted.point == above))
        .map(|it| it.flags)
}

/// The mount points at and below a folder, in the order in which they were mounted.
pub fn below(folder: &Path) -> Vec<PathBuf> {
    parse(&own_table()).map(|mounted| mounted.point).filter(|point| point.starts_with(folder)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        30 21 0:5 / /run rw,nosuid,nodev - tmpfs tmpfs rw\n\
        43 21 254:0 /s /var/lib/zeblit rw,relatime - ext4 /dev/vda rw\n\
        44 21 254:0 /s /var/lib/zeblit rw,nosuid,nodev,relatime - ext4 /dev/vda rw\n\
        45 21 254:0 /o /with\\040space rw,noexec master:3 - ext4 /dev/vda rw\n";

    #[test]
    fn the_mount_on_top_counts() {
        let flags = |path: &str| flags_of(TABLE, Path::new(path)).unwrap();
        assert_eq!(flags("/var/lib/zeblit/runs/x"), "rw,nosuid,nodev,relatime");
        assert_eq!(flags("/var/lib/zeblit-other"), "rw,relatime");
        assert_eq!(flags("/run/zeblit"), "rw,nosuid,nodev");
        assert_eq!(flags("/with space/x"), "rw,noexec");
        let last = parse(TABLE).next_back().unwrap();
        assert_eq!((last.kind.as_str(), last.has("noexec"), last.has("exec")), ("ext4", true, false));
    }

    #[test]
    fn paths_with_marks_of_the_options_are_escaped() {
        assert_eq!(escaped(Path::new("/a,b:c\\d")), b"/a\\,b\\:c\\\\d");
    }

    /// Root alone mounts; as anybody else the error is the kernel's.
    #[test]
    fn overlays_and_binds_are_as_asked_and_go_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().canonicalize().unwrap().join(name);
        for name in ["lower,1", "upper", "work", "at", "view", "shared", "shared/in", "copy"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        std::fs::write(path("lower,1").join("file"), "old").unwrap();
        let made = overlay(&path("lower,1"), &path("upper"), &path("work"), &path("at"), &[]);
        if !rustix_is_root() {
            assert_eq!(made.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            return;
        }
        made.unwrap();
        std::fs::write(path("at").join("file"), "new").unwrap();
        assert_eq!(std::fs::read_to_string(path("lower,1").join("file")).unwrap(), "old");
        assert_eq!(std::fs::read_to_string(path("upper").join("file")).unwrap(), "new");
        let found = at(&path("at")).unwrap();
        assert!(found.kind == "overlay" && found.has("nosuid") && found.has("nodev"), "{found:?}");

        share(&path("shared")).unwrap();
        rustix::mount::mount_bind(path("shared"), path("copy")).unwrap();
        bind(&path("at"), &path("view"), Access::Read).unwrap();
        bind(&path("view"), &path("shared/in"), Access::Read).unwrap();
        assert_eq!(
            std::fs::read_to_string(path("copy/in/file")).unwrap(),
            "new",
            "it is seen from elsewhere"
        );
        let refused = std::fs::write(path("copy/in/file"), "x").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(below(&path("shared")), [path("shared"), path("shared/in")]);
        unmount(&path("at")).unwrap();
        unmount(&path("at")).unwrap();
        unmount_below(folder.path()).unwrap();
        assert_eq!(below(folder.path()), Vec::<PathBuf>::new());
    }

    fn rustix_is_root() -> bool {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata("/proc/self").unwrap().uid() == 0
    }
}
