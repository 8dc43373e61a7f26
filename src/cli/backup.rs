//! Purpose: `zeblit backup|restore|migrate`: the database as one file, and its schema.

use super::args::BackupArgs;
use super::output::{CliError, Exit, Output};
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::http::error::chain;
use crate::store::backup::{self, BackupError, Extra, Loaded};
use crate::store::{Store, StoreError};
use lz4_flex::frame::{FrameDecoder, FrameEncoder};
use secrecy::ExposeSecret;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The name under which the key that signs markers and links travels.
const KEY: &str = "secret.key";
/// Bytes of a key file, at most.
const MAX_KEY_BYTES: u64 = 4096;

fn failed(doing: &str, error: &(dyn std::error::Error + 'static)) -> CliError {
    CliError::because(doing, error)
}

fn of_file(doing: &str, path: &Path, error: &std::io::Error) -> CliError {
    CliError::new(format!("{doing} {}: {error}", path.display()))
}

async fn open(config: &Config) -> Result<Store, CliError> {
    Store::open(config.database_url().expose_secret())
        .await
        .map_err(|error| failed("cannot open the database", &error).hint("`zeblit doctor` looks at it"))
}

/// Writes a backup while the server may go on working.
pub async fn backup(config: Option<&Path>, args: &BackupArgs, output: Output) -> Result<Exit, CliError> {
    let config = Config::load(config)?;
    let path = &args.file;
    if path.exists() {
        return Err(CliError::new(format!("{} is there already", path.display()))
            .hint("name a new file: a backup never replaces another"));
    }
    let mut extra = Extra::new();
    if let Some(file) = config.secret_key_file().filter(|file| file.exists()) {
        let key = std::fs::read_to_string(&file).map_err(|error| of_file("cannot read", &file, &error))?;
        extra.insert(KEY.to_owned(), key.trim().to_owned());
    }
    let store = open(&config).await?;
    // Whole or not there: a half backup must not look like one.
    let part = PathBuf::from(format!("{}.part", path.display()));
    let write = |error: std::io::Error| of_file("cannot write", &part, &error);
    let file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part).map_err(write)?;
    let mut to = FrameEncoder::new(BufWriter::new(file));
    let rows = match backup::dump(&store, &extra, &mut to, SystemClock.now()).await {
        Ok(rows) => rows,
        Err(error) => {
            let _left = std::fs::remove_file(&part);
            return Err(failed("no backup was made", &error));
        }
    };
    store.close().await;
    let mut file =
        to.finish().map_err(|error| CliError::new(format!("cannot write {}: {error}", part.display())))?;
    file.flush().map_err(write)?;
    file.get_ref().sync_all().map_err(write)?;
    std::fs::rename(&part, path).map_err(write)?;
    let count: u64 = rows.values().sum();
    output.line(path.display().to_string())?;
    output.note(format!(
        "{count} rows of {} tables. The file holds private text{}: keep it as you keep the server",
        rows.len(),
        if extra.is_empty() { "" } else { " and the server's key" }
    ));
    Ok(Exit::Ok)
}

/// Fills the empty database of the configuration; either kind takes a backup of either.
pub async fn restore(config: Option<&Path>, args: &BackupArgs, output: Output) -> Result<Exit, CliError> {
    let config = Config::load(config)?;
    let path = &args.file;
    let file = File::open(path).map_err(|error| of_file("cannot read", path, &error))?;
    let store = open(&config).await?;
    let mut from = BufReader::new(FrameDecoder::new(BufReader::new(file)));
    let loaded = backup::load(&store, &mut from, SystemClock.now()).await;
    store.close().await;
    let loaded = loaded.map_err(|error| {
        let told = failed("nothing was restored", &error);
        match error {
            BackupError::InUse { .. } => told.hint(
                "restore into a new database: set `state_dir` or `database.url` to a new place, or move the old one away",
            ),
            BackupError::Newer { .. } => told.hint("install that version of zeblit, or a newer one"),
            BackupError::Read(_) | BackupError::Damaged { .. } => told.hint(
                "is it a whole file that `zeblit backup` made? The database is as it was before",
            ),
            _ => told.hint("the database is as it was before"),
        }
    })?;
    let note = restore_key(&config, &loaded)?;
    for (table, rows) in &loaded.rows {
        output.line(format!("{table}\t{rows}"))?;
    }
    output.note(format!(
        "Restored what was stored on {} UTC. {note}Start the server: it looks for what the old one had sent before it sends anything",
        super::operate::time(loaded.made_at)
    ));
    Ok(Exit::Ok)
}

/// The key must be the old one: comments and links of the old server are signed with it.
fn restore_key(config: &Config, loaded: &Loaded) -> Result<String, CliError> {
    let Some(key) = loaded.extra.get(KEY) else {
        return Ok("The old server's key was in its configuration: use the same. ".to_owned());
    };
    let Some(file) = config.secret_key_file() else {
        return Ok(match &config.secret_key {
            Some(own) if own.expose_secret() == key => String::new(),
            _ => "`secret_key` of this configuration is not the old server's: its comments and links will not be known. "
                .to_owned(),
        });
    };
    let write = |error: std::io::Error| of_file("cannot write", &file, &error);
    let same = file.exists()
        && std::fs::metadata(&file).is_ok_and(|found| found.len() <= MAX_KEY_BYTES)
        && std::fs::read_to_string(&file).is_ok_and(|own| own.trim() == key);
    if same {
        return Ok(String::new());
    }
    let mut note = String::new();
    if file.exists() {
        let aside = file.with_extension("key.before-restore");
        std::fs::rename(&file, &aside).map_err(write)?;
        note = format!("This machine's own key is now {}. ", aside.display());
    }
    std::fs::create_dir_all(&config.state_dir).map_err(write)?;
    let mut to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file).map_err(write)?;
    to.write_all(format!("{key}\n").as_bytes()).and_then(|()| to.sync_all()).map_err(write)?;
    Ok(note)
}

/// Brings the schema up to date, which `zeblit serve` does by itself.
pub async fn migrate(config: Option<&Path>, output: Output) -> Result<Exit, CliError> {
    let config = Config::load(config)?;
    let migrated = Store::migrate(config.database_url().expose_secret()).await.map_err(|error| {
        let newer = matches!(error, StoreError::Migrate(sqlx::migrate::MigrateError::VersionMissing(_)));
        let told = CliError::new(format!("the schema was not changed: {}", chain(&error)));
        told.hint(if newer {
            "a newer zeblit used this database: install that version, or a newer one"
        } else {
            "`zeblit doctor` looks at the database"
        })
    })?;
    for migration in &migrated {
        let when = if migration.now { "applied now" } else { "was there" };
        output.line(format!("{:04}\t{}\t{when}", migration.version, migration.name))?;
    }
    Ok(Exit::Ok)
}
