//! What a run left besides commits: files for download and the agent's session, taken from the pack after the container
//! is gone, scanned for secrets, kept for a while. A bad or missing pack never fails a run: the report says so.

use super::{EngineError, execute, ingest};
use crate::agent::adapter::resume;
use crate::app::App;
use crate::domain::gate::{self, PathPatterns};
use crate::domain::patterns;
use crate::domain::run::Run;
use crate::domain::secrets::SecretScan;
use crate::domain::wording;
use crate::git::Workspace;
use crate::sandbox::extras::{self, Extras, File};
use crate::sandbox::paths;
use crate::store;
use chrono::Duration;

/// Text up to this size is masked whole; what is larger is looked at piece by piece (bytes).
const WINDOW: usize = 1024 * 1024;
/// How much of a piece the next one repeats: a secret on the border is in one of them whole.
const OVERLAP: usize = 64 * 1024;

/// What may be kept, and what the report says of the rest.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sorted {
    files: Vec<File>,
    session: Vec<File>,
    no_session: Option<&'static str>,
    /// Paths of files that held one of the server's own secrets, as they may be shown.
    withheld: Vec<String>,
    notes: Vec<String>,
}

/// Takes the pack of a run whose container is gone. Repeating it takes the same again.
pub(super) async fn take(app: &App, run: &mut Run) -> Result<(), EngineError> {
    let Some(workspace) = app.git.prepared(&run.remote, run.repo.id, &run.id) else { return Ok(()) };
    let wanted = run.spec.config.artifacts.clone();
    let sorted = match read(app, &workspace, wanted.clone()).await {
        Ok(Some(sorted)) => sorted,
        Ok(None) if wanted.is_empty() => return Ok(()),
        Ok(None) => Sorted { notes: vec![wording::no_pack()], ..Sorted::default() },
        Err(problem) => {
            tracing::warn!(run.id = %run.id, problem, "the pack cannot be taken");
            Sorted { notes: vec![wording::bad_pack(&problem)], ..Sorted::default() }
        }
    };
    keep(app, run, sorted).await
}

/// The pack's content; `None`: there is none. An error is for people.
async fn read(app: &App, workspace: &Workspace, wanted: Vec<String>) -> Result<Option<Sorted>, String> {
    let cap = u64::try_from(extras::MAX_PACK_BYTES).unwrap_or(u64::MAX);
    let read = app.git.output_file(&workspace.output, paths::PACK_FILE, cap).await;
    let Some(bytes) = read.map_err(|error| error.to_string())? else { return Ok(None) };
    let secrets = app.secrets.clone();
    // Tens of MiB may be scanned.
    let sorted = tokio::task::spawn_blocking(move || {
        extras::read(&bytes).map(|extras| sort(extras, &PathPatterns::new(&wanted), &secrets))
    });
    sorted.await.map_err(|error| error.to_string())?.map(Some)
}

async fn keep(app: &App, run: &mut Run, sorted: Sorted) -> Result<(), EngineError> {
    let (now, retention) = (app.clock.now(), &app.config.retention);
    let files = sorted.files;
    run.outcome.artifacts = i64::try_from(files.len()).unwrap_or(i64::MAX);
    for note in sorted.notes {
        // A repeated tick says it once.
        if !run.outcome.notes.contains(&note) {
            run.outcome.notes.push(note);
        }
    }
    let session = session(app, run, sorted.session, sorted.no_session).await?;
    let mut tx = app.store.write_tx().await?;
    store::artifacts::clear(&mut tx, &run.id).await?;
    let until = now + Duration::days(retention.artifacts_days);
    for file in &files {
        store::artifacts::put_file(&mut tx, &run.id, &file.path, &file.bytes, now, until).await?;
    }
    if let Some(bytes) = session {
        let until = now + Duration::days(retention.sessions_days);
        let part = store::artifacts::SESSION;
        store::artifacts::put_until(&mut tx, &run.id, part, &bytes, now, until).await?;
    }
    for path in &sorted.withheld {
        ingest::audit(app, &mut tx, None, "artifact.withheld", run.id.as_str(), path).await?;
    }
    // Only who holds the run may replace what is kept of it.
    store::runs::save_progress(&mut tx, run).await?;
    tx.commit().await?;
    Ok(())
}

/// The files of the agent's session as they are stored, when it may be kept.
async fn session(
    app: &App,
    run: &mut Run,
    files: Vec<File>,
    no_session: Option<&str>,
) -> Result<Option<Vec<u8>>, EngineError> {
    let Some(id) = run.progress.session.clone().filter(|_| app.config.retention.sessions_days > 0) else {
        return Ok(None);
    };
    let adapter = execute::adapter_of(app, run).await?;
    let files: Vec<File> =
        files.into_iter().filter(|file| resume::is_session_file(adapter, &id, &file.path)).collect();
    let note = match no_session {
        Some(why) => wording::session_not_kept(why),
        None if files.is_empty() => return Ok(None),
        None => return Ok(Some(extras::store(&files))),
    };
    if !run.outcome.notes.contains(&note) {
        run.outcome.notes.push(note);
    }
    Ok(None)
}

/// What becomes of one file.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Clean,
    /// Text, with what looks like secrets taken out.
    Masked(Vec<u8>),
    /// It holds one of the server's own secrets.
    OwnSecret,
    /// It holds what looks like a secret and cannot be masked.
    Suspicious,
}

fn sort(pack: Extras, wanted: &PathPatterns, secrets: &SecretScan) -> Sorted {
    let shown = |path: &str| secrets.mask(&gate::shown(path.as_bytes()));
    let mut sorted = Sorted { no_session: pack.no_session, ..Sorted::default() };
    // An agent that got hold of one of our secrets, however, may not hand it on.
    if !pack.session.iter().any(|file| secrets.found_in(&file.bytes)) {
        sorted.session = pack.session;
    }
    let (mut masked, mut suspicious) = (Vec::new(), Vec::new());
    // The shim looked for these patterns; whoever wrote the pack in its place may not have.
    for file in pack.artifacts.into_iter().filter(|file| wanted.matches(&file.path)) {
        match verdict(&file, secrets) {
            Verdict::Clean => sorted.files.push(file),
            Verdict::Masked(bytes) => {
                masked.push(shown(&file.path));
                sorted.files.push(File { bytes, ..file });
            }
            Verdict::OwnSecret => sorted.withheld.push(shown(&file.path)),
            Verdict::Suspicious => suspicious.push(shown(&file.path)),
        }
    }
    let left_out: Vec<(String, &str)> = pack.left_out.iter().map(|(path, why)| (shown(path), *why)).collect();
    sorted.notes = [
        wording::artifacts_withheld(&sorted.withheld),
        wording::artifacts_suspicious(&suspicious),
        wording::artifacts_masked(&masked),
        wording::artifacts_left_out(&left_out, pack.more_left_out),
    ]
    .into_iter()
    .flatten()
    .collect();
    sorted
}

fn verdict(file: &File, secrets: &SecretScan) -> Verdict {
    if secrets.found_in(file.path.as_bytes()) || secrets.found_in(&file.bytes) {
        return Verdict::OwnSecret;
    }
    if !patterns::kinds(file.path.as_bytes()).is_empty() {
        return Verdict::Suspicious;
    }
    if !looks_secret(&file.bytes) {
        return Verdict::Clean;
    }
    match std::str::from_utf8(&file.bytes) {
        Ok(text) if text.len() <= WINDOW && !text.contains('\0') => {
            Verdict::Masked(secrets.mask(text).into_bytes())
        }
        _ => Verdict::Suspicious,
    }
}

/// Whether anything in it looks like a secret of a known provider. Piece by piece: memory stays bounded.
fn looks_secret(bytes: &[u8]) -> bool {
    let mut start = 0;
    loop {
        let end = bytes.len().min(start + WINDOW);
        if !patterns::kinds(bytes.get(start..end).unwrap_or_default()).is_empty() {
            return true;
        }
        if end == bytes.len() {
            return false;
        }
        start = end - OVERLAP;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "the-servers-own-secret-0123456789";
    const TOKEN: &str = "ghp_a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8";

    fn sorted(files: &[(&str, &[u8])]) -> Sorted {
        let artifacts =
            files.iter().map(|(path, bytes)| File { path: (*path).into(), bytes: bytes.to_vec() });
        let pack = Extras { artifacts: artifacts.collect(), ..Extras::default() };
        sort(pack, &PathPatterns::new(&["out/**".into()]), &SecretScan::new(&[OWN.as_bytes()]))
    }

    #[test]
    fn clean_files_are_kept_as_they_are_and_only_those_that_were_asked_for() {
        let binary: Vec<u8> = (0..=255).cycle().take(3 * WINDOW).collect();
        let sorted =
            sorted(&[("out/a.txt", b"plain"), ("out/b.bin", &binary), ("src/c.txt", b"not asked for")]);
        let kept: Vec<_> = sorted.files.iter().map(|file| (file.path.as_str(), file.bytes.len())).collect();
        assert_eq!(kept, [("out/a.txt", 5), ("out/b.bin", binary.len())]);
        assert_eq!((sorted.notes, sorted.withheld), (vec![], vec![]));
    }

    #[test]
    fn the_servers_own_secrets_never_leave() {
        use base64::Engine;
        let encoded = base64::engine::general_purpose::STANDARD.encode(OWN);
        let hex: String = OWN.bytes().map(|byte| format!("{byte:02x}")).collect();
        let mut late = vec![b' '; 2 * WINDOW];
        late.extend_from_slice(OWN.as_bytes());
        let named = format!("out/{OWN}.txt");
        let sorted = sorted(&[
            ("out/a.txt", OWN.as_bytes()),
            ("out/b.txt", encoded.as_bytes()),
            ("out/c.txt", hex.as_bytes()),
            ("out/d.bin", &late),
            (&named, b"x"),
            ("out/e.txt", b"good"),
        ]);
        assert_eq!(sorted.files.len(), 1);
        assert_eq!(sorted.withheld, ["out/a.txt", "out/b.txt", "out/c.txt", "out/d.bin", "out/[secret].txt"]);
        assert_eq!(
            sorted.notes,
            [
                "Artifacts withheld, because they hold a secret of this server: `out/a.txt`, `out/b.txt`, `out/c.txt`, \
              `out/d.bin`, `out/[secret].txt`."
            ]
        );
    }

    #[test]
    fn known_patterns_are_masked_in_text_and_withheld_otherwise() {
        let text = format!("token = {TOKEN}\n");
        let binary = [b"\0\xff".as_slice(), TOKEN.as_bytes()].concat();
        // On the border of two pieces.
        let mut large = vec![b'\n'; WINDOW - 20];
        large.extend_from_slice(TOKEN.as_bytes());
        large.extend_from_slice(&[b'\n'; 100]);
        let sorted = sorted(&[("out/a.txt", text.as_bytes()), ("out/b.bin", &binary), ("out/c.txt", &large)]);
        assert_eq!(sorted.files, [File { path: "out/a.txt".into(), bytes: b"token = [secret]\n".to_vec() }]);
        assert_eq!(
            sorted.notes,
            [
                "Artifacts withheld, because they hold what looks like a secret: `out/b.bin`, `out/c.txt`.",
                "In these artifacts, what looks like a secret is masked: `out/a.txt`.",
            ]
        );
    }

    #[test]
    fn what_the_shim_left_out_is_told_in_our_words() {
        let pack = Extras {
            left_out: vec![
                ("out/`x`\n@all.bin".into(), "larger than 16 MiB"),
                (String::new(), "not searched"),
            ],
            more_left_out: 3,
            ..Extras::default()
        };
        let sorted = sort(pack, &PathPatterns::new(&[]), &SecretScan::default());
        assert_eq!(
            sorted.notes,
            [
                "Artifacts left out: `out/\\u{60}x\\u{60}\\u{a}@all.bin` (larger than 16 MiB); not searched; 3 more."
            ]
        );
    }
}
