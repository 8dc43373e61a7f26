//! Purpose: the shim program that this build embeds, written where containers can mount it.

use super::SandboxError;
use sha2::{Digest, Sha256};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Embedded, so that server and shim are always of one version.
const SHIM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/zeblit-shim"));

/// Writes the shim once as `<folder>/zeblit-shim-<hash>`, executable; running containers keep theirs.
pub fn write(folder: &Path) -> Result<PathBuf, SandboxError> {
    let hash = hex::encode(Sha256::digest(SHIM));
    let path = folder.join(format!("zeblit-shim-{}", hash.get(..16).unwrap_or(&hash)));
    let io = |operation: &'static str| {
        let path = path.clone();
        move |source| SandboxError::Io { operation, path, source }
    };
    if std::fs::read(&path).is_ok_and(|found| found == SHIM) {
        return Ok(path);
    }
    std::fs::create_dir_all(folder).map_err(io("make the folder of the shim"))?;
    // Two processes may do this at one time: each has its own name until the rename.
    let aside = folder.join(format!(".zeblit-shim-{}-{}", std::process::id(), uuid::Uuid::now_v7().simple()));
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o755)
        .open(&aside)
        .and_then(|mut file| {
            file.write_all(SHIM)?;
            // The umask may have taken bits that another uid needs.
            file.set_permissions(std::fs::Permissions::from_mode(0o755))
        })
        .and_then(|()| std::fs::rename(&aside, &path));
    if written.is_err() {
        let _ = std::fs::remove_file(&aside);
    }
    written.map_err(io("write the shim"))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shim_is_written_once_and_mended_when_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
        let first = std::fs::metadata(&path).unwrap().modified().unwrap();
        assert_eq!(write(folder.path()).unwrap(), path);
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), first);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "damaged").unwrap();
        assert_eq!(write(folder.path()).unwrap(), path);
        assert!(std::process::Command::new(&path).arg("probe").output().unwrap().status.success());
    }
}
