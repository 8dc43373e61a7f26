//! Purpose: `zeblit artifacts`: the files that a run left for download.

use super::args::ArtifactsArgs;
use super::backend::Backend;
use super::operate::time;
use super::output::{CliError, Exit, Output};
use crate::http::view::{plural, size_text, visible};
use crate::sandbox::extras::path_problem;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

pub async fn run(backend: &Backend, args: &ArtifactsArgs, output: Output) -> Result<Exit, CliError> {
    let run = backend.run(&args.run).await?;
    let files = backend.artifacts(&run.id).await?;
    if args.json {
        output.json(&files)?;
        return Ok(Exit::Ok);
    }
    if files.is_empty() {
        output.note(if run.artifacts > 0 {
            "Its files were kept for a while and are gone (`retention.artifacts_days`)"
        } else {
            "It left no files: `artifacts = [\"report.html\"]` in `.github/zeblit.toml` names what is kept"
        });
        return Ok(Exit::Ok);
    }
    let Some(folder) = &args.save else {
        let rows: Vec<Vec<String>> = files
            .iter()
            .map(|file| {
                let until = file.expires_at.map_or_else(|| "–".into(), time);
                vec![visible(&file.path), size_text(file.size), until]
            })
            .collect();
        output.table(&["PATH", "SIZE", "KEPT UNTIL (UTC)"], &rows)?;
        return Ok(Exit::Ok);
    };
    for file in &files {
        let place = place(folder, &file.path)?;
        let bytes = backend.artifact(&run.id, &file.path).await?;
        save(&place, &bytes)?;
        output.line(visible(&place.display().to_string()))?;
    }
    output.note(format!("Saved {}", plural(i64::try_from(files.len()).unwrap_or(i64::MAX), "file")));
    Ok(Exit::Ok)
}

/// Where a file goes. Agents choose the paths, and the server may be anybody's: nothing leads out of the folder.
fn place(folder: &Path, path: &str) -> Result<PathBuf, CliError> {
    if let Some(problem) = path_problem(path) {
        return Err(CliError::new(format!("`{}` is not saved: {problem}", visible(path))));
    }
    let failed = |at: &Path, error: &std::io::Error| {
        CliError::because(&format!("cannot make the folder `{}`", at.display()), error)
    };
    std::fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
    let mut at = folder.to_path_buf();
    let mut parts: Vec<&str> = path.split('/').collect();
    let name = parts.pop().unwrap_or_default();
    for part in parts {
        at.push(part);
        match std::fs::create_dir(&at) {
            Ok(()) => {}
            // One that was there, and no link to elsewhere.
            Err(error)
                if error.kind() == ErrorKind::AlreadyExists
                    && at.symlink_metadata().is_ok_and(|found| found.is_dir()) => {}
            Err(error) => return Err(failed(&at, &error)),
        }
    }
    Ok(at.join(name))
}

fn save(place: &Path, bytes: &[u8]) -> Result<(), CliError> {
    // A new file: what is there, also a link, stays.
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(place)
        .and_then(|mut file| file.write_all(bytes));
    written.map_err(|error| {
        CliError::because(&format!("cannot save `{}`", place.display()), &error)
            .hint("choose a new folder with --save")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_stay_below_their_folder_and_overwrite_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("new");
        let saved = |path: &str| place(&root, path).and_then(|place| save(&place, b"x"));
        saved("a/b/c.txt").unwrap();
        saved("a/b/d.txt").unwrap();
        assert_eq!(std::fs::read(root.join("a/b/c.txt")).unwrap(), b"x");
        for bad in ["", "/etc/x", "../x", "a/../../x", "a//b", "a/./b", "a\\b", "a\nb"] {
            assert!(saved(bad).unwrap_err().problems[0].contains("is not saved"), "{bad}");
        }
        let again = saved("a/b/c.txt").unwrap_err();
        assert!(again.problems[0].starts_with("cannot save"), "{again:?}");
        std::os::unix::fs::symlink(folder.path(), root.join("link")).unwrap();
        assert!(saved("link/x.txt").unwrap_err().problems[0].starts_with("cannot make the folder"));
        assert!(saved("a/b/c.txt/d").is_err());
        std::os::unix::fs::symlink(folder.path().join("victim"), root.join("to.txt")).unwrap();
        assert!(saved("to.txt").is_err());
        assert!(!folder.path().join("victim").exists() && !folder.path().join("x.txt").exists());
    }
}
