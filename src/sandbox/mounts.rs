//! Purpose: `nosuid` and `nodev` on everything that containers get: the engine has no flag for it on bind mounts, but they
//! take the flags of the mount that they come from. So the server's folders are mounted on themselves, with those flags.
//!
//! The mounts stay when the server ends: containers go on, and a mount of a folder on itself changes nothing else.

use super::Check;
use crate::mount::{self, Access};
use std::path::{Path, PathBuf};

/// A folder that containers get parts of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    pub folder: PathBuf,
    /// Nothing in it is ever executed.
    pub noexec: bool,
}

impl Sealed {
    fn flags(&self) -> &'static [&'static str] {
        if self.noexec { &["nosuid", "nodev", "noexec"] } else { &["nosuid", "nodev"] }
    }

    fn access(&self) -> Access {
        if self.noexec { Access::NoExec } else { Access::Write }
    }
}

/// The folders of a server: its state (workspaces, homes, caches, objects, the shim) as one, since files are renamed
/// between its parts, and the sockets.
pub fn folders(state_dir: &Path, socket_root: &Path) -> Vec<Sealed> {
    vec![
        Sealed { folder: state_dir.to_owned(), noexec: false },
        Sealed { folder: socket_root.to_owned(), noexec: true },
    ]
}

/// Mounts each folder on itself with its flags, unless they hold already, and reads them back.
pub fn seal(folders: &[Sealed]) -> Vec<Check> {
    folders.iter().map(|sealed| seal_one(sealed).unwrap_or_else(|problem| differs(sealed, problem))).collect()
}

/// What holds now; nothing is changed.
pub fn check(folders: &[Sealed]) -> Vec<Check> {
    folders.iter().map(|sealed| holds(sealed).unwrap_or_else(|lacking| differs(sealed, lacking))).collect()
}

fn name(sealed: &Sealed) -> String {
    format!("mount of {}", sealed.folder.display())
}

fn differs(sealed: &Sealed, found: String) -> Check {
    let flags = sealed.flags().join(",");
    let folder = sealed.folder.display();
    Check {
        name: name(sealed),
        ok: false,
        required: false,
        found,
        fix: format!(
            "run `zeblit serve` as root, which does it at start; or: sudo mount --bind {folder} {folder} && sudo mount -o remount,bind,{flags} {folder}"
        ),
    }
}

/// The flags as they hold, or what is lacking.
fn holds(sealed: &Sealed) -> Result<Check, String> {
    let folder = sealed.folder.canonicalize().map_err(|error| error.to_string())?;
    let found = mount::flags_above(&folder).ok_or("no mount holds it")?;
    let has = |wanted: &str| found.split(',').any(|flag| flag == wanted);
    let lacking: Vec<&str> = sealed.flags().iter().copied().filter(|wanted| !has(wanted)).collect();
    if lacking.is_empty() {
        let found = sealed.flags().join(",");
        return Ok(Check { name: name(sealed), ok: true, required: false, found, fix: String::new() });
    }
    Err(format!("not {}", lacking.join(", ")))
}

fn seal_one(sealed: &Sealed) -> Result<Check, String> {
    if let Ok(check) = holds(sealed) {
        return Ok(check);
    }
    let folder = sealed.folder.canonicalize().map_err(|error| error.to_string())?;
    let done = if mount::flags_at(&folder).is_none() {
        mount::bind(&folder, &folder, sealed.access())
    } else {
        mount::restrict(&folder, sealed.access())
    };
    done.map_err(|error| format!("mount: {error}"))?;
    holds(sealed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    #[test]
    fn folders_are_sealed_once_or_told_with_the_fix() {
        let folder = tempfile::tempdir().unwrap();
        let (state, sockets) = (folder.path().join("state"), folder.path().join("sockets"));
        for path in [&state, &sockets] {
            std::fs::create_dir(path).unwrap();
        }
        let wanted = folders(&state, &sockets);
        assert!(check(&wanted).iter().all(|check| !check.ok && check.fix.contains("mount --bind")));
        let made = seal(&wanted);
        if folder.path().metadata().unwrap().uid() != 0 {
            assert!(
                made.iter().all(|check| !check.ok && !check.required && !check.found.is_empty()),
                "{made:?}"
            );
            return;
        }
        let found: Vec<&str> = made.iter().map(|check| check.found.as_str()).collect();
        assert_eq!(found, ["nosuid,nodev", "nosuid,nodev,noexec"], "{made:?}");
        assert_eq!(seal(&wanted), made, "a second time changes nothing");
        assert_eq!(check(&wanted), made);
        let count = |path: &Path| mount::below(path).iter().filter(|point| *point == path).count();
        assert_eq!((count(&state), count(&sockets)), (1, 1));
        // A program of root's with the set-user-id bit is an ordinary program there; nothing runs among the sockets.
        let script = sockets.join("x");
        std::fs::copy("/bin/true", &script).unwrap();
        assert!(Command::new(&script).status().is_err());
        for path in [&state, &sockets] {
            assert!(Command::new("umount").arg(path).status().unwrap().success());
        }
        assert!(check(&wanted).iter().all(|check| !check.ok));
    }
}
