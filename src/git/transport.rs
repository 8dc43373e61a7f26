//! Purpose: the one place that runs the `git` program: scrubbed environment, limits, token by askpass.
//!
//! No data ever passes through a shell, no token ever stands in an argument, a URL or a file, and no
//! configuration besides the one given here is read (neither system nor user files).

use super::{Access, GitError};
use crate::domain::secrets::SecretScan;
use secrecy::{ExposeSecret, SecretString};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// Local operations (init, config, checkout, index-pack of our own bundle): generous for large trees.
pub(crate) const LOCAL_LIMIT: Duration = Duration::from_secs(300);
/// A hostile pack may not keep a core busy for longer.
pub(crate) const UNPACK_LIMIT: Duration = Duration::from_secs(120);
/// A first fetch of a large repository over a slow line.
pub(crate) const FETCH_LIMIT: Duration = Duration::from_secs(1800);
/// Pushes carry at most one bundle.
pub(crate) const PUSH_LIMIT: Duration = Duration::from_secs(300);
/// `ls-remote` of one ref.
pub(crate) const LIST_LIMIT: Duration = Duration::from_secs(60);
/// Output that is kept of a command that prints little (bytes); the rest is read and dropped.
pub(crate) const SMALL_OUTPUT: usize = 256 * 1024;
/// Error output that is kept (bytes).
const STDERR_CAP: usize = 64 * 1024;
/// Error output that goes into an error (characters).
const DETAIL_CHARS: usize = 600;
/// One allocation of a Git that unpacks hostile objects; also its address space (bytes).
const UNPACK_ALLOCATION: &str = "128m";
const UNPACK_ADDRESS_SPACE: u64 = 4 * 1024 * 1024 * 1024;
/// Below this `safe.bareRepository` does not exist.
const OLDEST_GIT: (u32, u32) = (2, 38);
/// Where programs are looked for when this process has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Answers exactly the two questions about the one server this child was made for; a redirect to
/// another server gets nothing.
const ASKPASS: &str = r#"#!/bin/sh
case "$1" in
"Username for '$ZEBLIT_GIT_USERNAME_FOR': ") printf '%s\n' "$ZEBLIT_GIT_USERNAME" ;;
"Password for '$ZEBLIT_GIT_PASSWORD_FOR': ") printf '%s\n' "$ZEBLIT_GIT_PASSWORD" ;;
*) exit 1 ;;
esac
"#;

/// What a call is allowed to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Nothing,
    Http,
    File,
}

/// Where standard input comes from.
pub(crate) enum Input {
    None,
    Bytes(Vec<u8>),
    /// The rest of a file that is open already.
    File(tokio::fs::File),
}

/// One call of the `git` program.
pub(crate) struct Call<'a> {
    operation: &'static str,
    root: &'a Path,
    arguments: Vec<OsString>,
    environment: Vec<(&'static str, OsString)>,
    token: Option<SecretString>,
    reach: Reach,
    input: Input,
    limit: Duration,
    output_cap: usize,
    confined: bool,
}

/// How a call ended. Text is masked of the token.
#[derive(Debug)]
pub(crate) struct Finished {
    pub success: bool,
    pub stdout: Vec<u8>,
    /// More output came than the cap let through.
    pub truncated: bool,
    pub stderr: String,
}

impl Finished {
    /// The end of the error output on one line, without control characters.
    pub fn detail(&self) -> String {
        one_line(&self.stderr)
    }
}

/// The last part of a text, on one line.
fn one_line(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let words: Vec<&str> = clean.split_whitespace().collect();
    let joined = words.join(" ");
    let skip = joined.chars().count().saturating_sub(DETAIL_CHARS);
    if joined.is_empty() { "git gave no reason".to_owned() } else { joined.chars().skip(skip).collect() }
}

/// The path of the askpass script below a state directory.
fn askpass_path(root: &Path) -> PathBuf {
    root.join("home").join("askpass")
}

/// Makes the empty HOME of every call and the askpass script in it.
pub(crate) fn install(root: &Path) -> io::Result<()> {
    let home = root.join("home");
    std::fs::create_dir_all(&home)?;
    std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o700))?;
    let script = askpass_path(root);
    if std::fs::read(&script).is_ok_and(|text| text == ASKPASS.as_bytes()) {
        return Ok(());
    }
    // Renamed into place: another process of this state directory may be running the old one.
    let aside = home.join(format!("askpass.{}", std::process::id()));
    let _ = std::fs::remove_file(&aside);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o700).open(&aside)?;
    io::Write::write_all(&mut file, ASKPASS.as_bytes())?;
    file.sync_all()?;
    drop(file);
    std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(0o700))?;
    std::fs::rename(&aside, &script)
}

/// The parts of an address that the askpass script compares, or why the address cannot be used.
#[derive(Debug, PartialEq, Eq)]
enum Address {
    Http { scheme: String, host: String },
    File,
}

fn address(url: &str) -> Result<Address, String> {
    let shown: String = url.chars().filter(|c| !c.is_control()).take(120).collect();
    if url.chars().any(|c| c.is_control() || c.is_whitespace() && c != ' ') {
        return Err("the repository address holds control characters; give a plain URL".into());
    }
    if url.starts_with('/') || url.starts_with("file:///") {
        return Ok(Address::File);
    }
    for scheme in ["https", "http"] {
        let Some(rest) = url.strip_prefix(scheme).and_then(|rest| rest.strip_prefix("://")) else { continue };
        let host = rest.split('/').next().unwrap_or_default();
        if host.contains('@') {
            return Err("the repository address holds credentials; give them as a token instead".into());
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
        if host.is_empty() || !host.chars().all(plain) {
            return Err(format!("`{shown}` has no usable host name"));
        }
        return Ok(Address::Http { scheme: scheme.into(), host: host.into() });
    }
    Err(format!("`{shown}` is not a https, http or file address; ssh and other protocols are not used"))
}

impl<'a> Call<'a> {
    /// A call that touches nothing but local files.
    pub fn local(operation: &'static str, root: &'a Path) -> Self {
        Self {
            operation,
            root,
            arguments: Vec::new(),
            environment: Vec::new(),
            token: None,
            reach: Reach::Nothing,
            input: Input::None,
            limit: LOCAL_LIMIT,
            output_cap: SMALL_OUTPUT,
            confined: false,
        }
    }

    /// A call that may reach the one server of `access`.
    pub fn remote(operation: &'static str, root: &'a Path, access: &Access) -> Result<Self, GitError> {
        let failed = |detail: String| GitError::Failed { operation, detail };
        let mut call = Self::local(operation, root);
        match address(&access.url).map_err(failed)? {
            Address::File => call.reach = Reach::File,
            Address::Http { scheme, host } => {
                call.reach = Reach::Http;
                if let Some(token) = &access.token {
                    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
                    if access.username.is_empty() || !access.username.chars().all(plain) {
                        return Err(failed(
                            "the user name for Git may hold only letters, digits, `.`, `-` and `_`".into(),
                        ));
                    }
                    if token.expose_secret().chars().any(char::is_control) {
                        return Err(failed("the token for Git holds control characters".into()));
                    }
                    let user = &access.username;
                    call = call
                        .env("ZEBLIT_GIT_USERNAME_FOR", format!("{scheme}://{host}"))
                        .env("ZEBLIT_GIT_PASSWORD_FOR", format!("{scheme}://{user}@{host}"))
                        .env("ZEBLIT_GIT_USERNAME", user);
                    call.token = Some(token.clone());
                }
            }
        }
        Ok(call)
    }

    /// Names the repository; never found by looking around.
    pub fn git_dir(self, path: &Path) -> Self {
        self.arg("--git-dir").arg(path)
    }

    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    pub fn args<T: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = T>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    pub fn env(mut self, name: &'static str, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name, value.as_ref().to_owned()));
        self
    }

    pub fn input(mut self, input: Input) -> Self {
        self.input = input;
        self
    }

    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    pub fn output_cap(mut self, bytes: usize) -> Self {
        self.output_cap = bytes;
        self
    }

    /// For hostile input: bounds memory, processor time and the size of written files.
    pub fn confined(mut self) -> Self {
        self.confined = true;
        self
    }

    /// The command with all that is fixed about it; the caller's arguments come last.
    fn command(&self) -> Command {
        let path = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
        let mut command = match self.confined.then(|| program("prlimit", &path)).flatten() {
            Some(prlimit) => {
                let mut command = Command::new(prlimit);
                command
                    .arg(format!("--as={UNPACK_ADDRESS_SPACE}"))
                    .arg(format!("--cpu={}", UNPACK_LIMIT.as_secs()))
                    .arg("--core=0")
                    .arg("--")
                    .arg("git");
                command
            }
            None => Command::new("git"),
        };
        command
            .env_clear()
            .env("PATH", &path)
            .env("HOME", self.root.join("home"))
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_ATTR_NOSYSTEM", "1")
            .env("GIT_CEILING_DIRECTORIES", self.root)
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .env("GIT_ADVICE", "0")
            .env("LC_ALL", "C")
            .current_dir(self.root.join("home"))
            .kill_on_drop(true);
        if self.confined {
            command.env("GIT_ALLOC_LIMIT", UNPACK_ALLOCATION);
        }
        for (name, value) in &self.environment {
            command.env(name, value);
        }
        if let Some(token) = &self.token {
            command
                .env("GIT_ASKPASS", askpass_path(self.root))
                .env("ZEBLIT_GIT_PASSWORD", token.expose_secret());
        }
        for setting in FIXED_SETTINGS {
            command.arg("-c").arg(setting);
        }
        match self.reach {
            Reach::Nothing => {}
            Reach::Http => {
                command.args(["-c", "protocol.https.allow=always", "-c", "protocol.http.allow=always"]);
            }
            Reach::File => {
                command.args(["-c", "protocol.file.allow=always"]);
            }
        }
        command.args(&self.arguments);
        command
    }

    /// Runs it. `Err` means that it did not run to its end; a refusal by Git is a `Finished` without success.
    pub async fn run(mut self) -> Result<Finished, GitError> {
        let operation = self.operation;
        let reach = self.reach;
        let limit = self.limit;
        let cap = self.output_cap;
        let input = std::mem::replace(&mut self.input, Input::None);
        let mut command = self.command();
        command
            .stdin(if matches!(input, Input::None) { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let io_error = |source: io::Error| GitError::Io { operation, path: PathBuf::from("git"), source };
        let mut child = command.spawn().map_err(io_error)?;
        let stdin = child.stdin.take();
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(GitError::Failed { operation, detail: "git was started without pipes".into() });
        };
        let work = async {
            let (fed, out, err, status) = tokio::join!(
                feed(stdin, input),
                read_capped(stdout, cap),
                read_capped(stderr, STDERR_CAP),
                child.wait()
            );
            let (out, truncated) = out?;
            let (err, _) = err?;
            let status = status?;
            // Git may stop reading early: then its exit status says more than our broken pipe.
            if status.success() {
                fed?;
            }
            Ok::<_, io::Error>((status.success(), out, truncated, err))
        };
        let ended = tokio::time::timeout(limit, work).await;
        let Ok(ended) = ended else {
            let detail = format!("git did not finish within {} seconds", limit.as_secs());
            return Err(match reach {
                Reach::Nothing => GitError::Failed { operation, detail },
                Reach::Http | Reach::File => GitError::Unavailable { operation, detail },
            });
        };
        let (success, stdout, truncated, stderr) = ended.map_err(io_error)?;
        let stderr = masked(&String::from_utf8_lossy(&stderr), self.token.as_ref());
        Ok(Finished { success, stdout, truncated, stderr })
    }

    /// Runs a local call that has no reason to fail.
    pub async fn run_checked(self) -> Result<Finished, GitError> {
        let operation = self.operation;
        let finished = self.run().await?;
        if finished.success {
            Ok(finished)
        } else {
            Err(GitError::Failed { operation, detail: finished.detail() })
        }
    }
}

/// Settings of every call, whatever a repository's own file says.
const FIXED_SETTINGS: &[&str] = &[
    "protocol.allow=never",
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.askPass=",
    "core.sshCommand=false",
    "core.packedGitWindowSize=16m",
    "core.packedGitLimit=512m",
    "core.bigFileThreshold=16m",
    "safe.bareRepository=explicit",
    "gc.auto=0",
    "maintenance.auto=false",
    "credential.helper=",
    "fetch.recurseSubmodules=false",
    "push.recurseSubmodules=no",
    "push.followTags=false",
    "submodule.recurse=false",
    "advice.detachedHead=false",
    // A dead connection is given up: less than 1000 bytes a second for a minute.
    "http.lowSpeedLimit=1000",
    "http.lowSpeedTime=60",
];

/// The first program of this name on the path.
fn program(name: &str, path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

fn masked(text: &str, token: Option<&SecretString>) -> String {
    match token.map(ExposeSecret::expose_secret) {
        Some(token) if token.len() >= 8 => SecretScan::new(&[token.as_bytes()]).mask(text),
        Some(token) if !token.is_empty() => text.replace(token, "[secret]"),
        _ => text.to_owned(),
    }
}

async fn feed(stdin: Option<tokio::process::ChildStdin>, input: Input) -> io::Result<()> {
    let Some(mut stdin) = stdin else { return Ok(()) };
    match input {
        Input::None => {}
        Input::Bytes(bytes) => stdin.write_all(&bytes).await?,
        Input::File(mut file) => {
            tokio::io::copy(&mut file, &mut stdin).await?;
        }
    }
    stdin.shutdown().await
}

/// Reads to the end, keeping at most `cap` bytes; says whether there were more.
async fn read_capped(mut from: impl AsyncRead + Unpin, cap: usize) -> io::Result<(Vec<u8>, bool)> {
    let mut kept = Vec::new();
    let mut truncated = false;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = from.read(&mut buffer).await?;
        let Some(chunk) = buffer.get(..count).filter(|chunk| !chunk.is_empty()) else { break };
        let room = cap.saturating_sub(kept.len());
        truncated |= chunk.len() > room;
        kept.extend_from_slice(chunk.get(..room).unwrap_or(chunk));
    }
    Ok((kept, truncated))
}

/// Turns a refused call over the network into what the caller can act on.
pub(crate) fn classify(operation: &'static str, finished: &Finished) -> GitError {
    let text = finished.stderr.to_ascii_lowercase();
    let has = |needles: &[&str]| needles.iter().any(|needle| text.contains(needle));
    let detail = finished.detail();
    if has(&[
        "authentication failed",
        "could not read username",
        "could not read password",
        "returned error: 401",
        "returned error: 403",
        "http basic: access denied",
        "invalid username or password",
        "invalid username or token",
        "permission to ",
        "write access to repository not granted",
    ]) {
        GitError::Auth { operation }
    } else if has(&[
        "repository not found",
        "returned error: 404",
        "does not appear to be a git repository",
        "couldn't find remote ref",
        "not our ref",
        "unadvertised object",
        "did not send all necessary objects",
        "returned error: 410",
    ]) || (text.contains("repository '") && text.contains("' not found"))
        || (text.contains("repository '") && text.contains("' does not exist"))
    {
        GitError::NotFound { operation, detail }
    } else {
        GitError::Unavailable { operation, detail }
    }
}

/// Checks that a usable `git` is there.
pub(crate) async fn check_version(root: &Path) -> Result<(), GitError> {
    let operation = "git version";
    let finished = match Call::local(operation, root).arg("version").limit(LIST_LIMIT).run().await {
        Err(GitError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Err(GitError::Failed {
                operation,
                detail: "there is no `git` program on the PATH; install it (`apt-get install git`)".into(),
            });
        }
        other => other?,
    };
    let text = String::from_utf8_lossy(&finished.stdout).into_owned();
    match version(&text) {
        Some(found) if found >= OLDEST_GIT => Ok(()),
        _ => Err(GitError::Failed {
            operation,
            detail: format!(
                "`{}` is too old: Git {}.{} or newer is needed",
                one_line(&text),
                OLDEST_GIT.0,
                OLDEST_GIT.1
            ),
        }),
    }
}

/// Reads `git version 2.47.3 (…)`.
fn version(text: &str) -> Option<(u32, u32)> {
    let number = text.trim().strip_prefix("git version ")?;
    let mut parts = number.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::BranchName;
    use crate::git::Git;
    use base64::Engine;
    use std::sync::{Arc, Mutex};

    const TOKEN: &str = "ghs_0123456789abcdefTOKEN";

    fn access(url: String) -> Access {
        Access { url, username: "x-access-token".into(), token: Some(SecretString::from(TOKEN)) }
    }

    #[test]
    fn addresses_are_plain_https_http_or_files() {
        let http = |scheme: &str, host: &str| Ok(Address::Http { scheme: scheme.into(), host: host.into() });
        assert_eq!(address("https://github.com/a/b.git"), http("https", "github.com"));
        assert_eq!(address("http://127.0.0.1:8080/a/b"), http("http", "127.0.0.1:8080"));
        assert_eq!(address("http://[::1]:80/a"), http("http", "[::1]:80"));
        assert_eq!(address("/srv/a b.git"), Ok(Address::File));
        assert_eq!(address("file:///srv/a.git"), Ok(Address::File));
        for bad in [
            "",
            "-x",
            "--upload-pack=evil",
            "ext::sh -c evil",
            "ssh://git@host/a",
            "git@host:a",
            "relative/path",
            "https://user:secret@host/a",
            "https://",
            "https:///a",
            "https://ho st/a",
            "https://host\n/a",
            "file://host/a",
            "git://host/a",
            "https://ho'st/a",
            "HTTPS://host/a",
        ] {
            let problem = address(bad).unwrap_err();
            assert!(!problem.contains("secret"), "{problem}");
        }
    }

    #[test]
    fn askpass_answers_only_for_its_server_and_from_the_environment() {
        let folder = tempfile::tempdir().unwrap();
        install(folder.path()).unwrap();
        install(folder.path()).unwrap();
        let script = askpass_path(folder.path());
        assert_eq!(script.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        assert!(!std::fs::read_to_string(&script).unwrap().contains(TOKEN));
        let ask = |prompt: &str| {
            let output = std::process::Command::new(&script)
                .arg(prompt)
                .env_clear()
                .env("ZEBLIT_GIT_USERNAME_FOR", "https://host")
                .env("ZEBLIT_GIT_PASSWORD_FOR", "https://user@host")
                .env("ZEBLIT_GIT_USERNAME", "user")
                .env("ZEBLIT_GIT_PASSWORD", "pa$$ 'w`ord%s\\n")
                .output()
                .unwrap();
            output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
        };
        assert_eq!(ask("Username for 'https://host': ").as_deref(), Some("user\n"));
        assert_eq!(ask("Password for 'https://user@host': ").as_deref(), Some("pa$$ 'w`ord%s\\n\n"));
        for other in
            ["Password for 'https://user@evil': ", "Password for 'http://user@host': ", "", "Password"]
        {
            assert_eq!(ask(other), None, "{other}");
        }
    }

    #[test]
    fn the_command_holds_no_token_and_no_inherited_environment() {
        let root = tempfile::tempdir().unwrap();
        let call = Call::remote("fetch", root.path(), &access("https://github.com/a/b.git".into())).unwrap();
        let command = call.arg("fetch").arg("https://github.com/a/b.git").command();
        let command = command.as_std();
        let text = format!("{:?}", command.get_args().collect::<Vec<_>>());
        assert!(!text.contains(TOKEN), "{text}");
        let names: Vec<_> = command.get_envs().map(|(name, _)| name.to_string_lossy().into_owned()).collect();
        for expected in ["GIT_ASKPASS", "GIT_CONFIG_NOSYSTEM", "GIT_CONFIG_GLOBAL", "HOME", "PATH"] {
            assert!(names.iter().any(|name| name == expected), "{expected}");
        }
        for (name, value) in command.get_envs() {
            let holds = value.is_some_and(|value| value.to_string_lossy().contains(TOKEN));
            assert_eq!(holds, name == "ZEBLIT_GIT_PASSWORD", "{name:?}");
        }
        // A path needs no token: its hooks and programs must not see one.
        let call = Call::remote("fetch", root.path(), &access("/srv/a.git".into())).unwrap();
        assert!(call.command().as_std().get_envs().all(|(name, _)| name != "ZEBLIT_GIT_PASSWORD"));
        for (user, token) in [("", TOKEN), ("a:b", TOKEN), ("a@b", TOKEN), ("user", "a\nb")] {
            let access = Access {
                url: "https://host/a".into(),
                username: user.into(),
                token: Some(SecretString::from(token)),
            };
            assert!(Call::remote("fetch", root.path(), &access).is_err(), "{user}");
        }
    }

    #[tokio::test]
    async fn protocols_that_were_not_asked_for_are_refused_by_git_itself() {
        let folder = tempfile::tempdir().unwrap();
        let git = Git::open(folder.path()).await.unwrap();
        let canary = folder.path().join("canary");
        for url in [format!("ext::touch {}", canary.display()), "/srv/x.git".into(), "ssh://host/x".into()] {
            let finished =
                Call::local("test", &git.root).args(["ls-remote", "--", &url]).run().await.unwrap();
            assert!(!finished.success);
            assert!(finished.stderr.contains("not allowed"), "{}", finished.stderr);
        }
        assert!(!canary.exists());
    }

    #[tokio::test]
    async fn output_is_capped_and_time_is_limited() {
        let folder = tempfile::tempdir().unwrap();
        let git = Git::open(folder.path()).await.unwrap();
        let finished =
            Call::local("test", &git.root).args(["help", "-a"]).output_cap(100).run().await.unwrap();
        assert_eq!((finished.stdout.len(), finished.truncated), (100, true));
        // Waits for input that never ends.
        let (reader, _writer) = std::io::pipe().unwrap();
        let file = tokio::fs::File::from_std(std::fs::File::from(std::os::fd::OwnedFd::from(reader)));
        let error = Call::local("test", &git.root)
            .args(["hash-object", "--stdin"])
            .input(Input::File(file))
            .limit(Duration::from_millis(100))
            .run()
            .await
            .unwrap_err();
        assert!(error.to_string().contains("did not finish"), "{error}");
    }

    /// A server that wants a password and then answers with one status; keeps what it was sent.
    async fn server(status: &'static str) -> (String, Arc<Mutex<Vec<String>>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/a/b.git", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                let mut buffer = [0; 4096];
                while !request.windows(4).any(|window| window == b"\r\n\r\n") {
                    match stream.read(&mut buffer).await {
                        Ok(count) if count > 0 => request.extend_from_slice(&buffer[..count]),
                        _ => break,
                    }
                }
                let request = String::from_utf8_lossy(&request).into_owned();
                let answer = if request.contains("Authorization:") {
                    format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                } else {
                    "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned()
                };
                kept.lock().unwrap().push(request);
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (url, seen)
    }

    #[tokio::test]
    async fn the_token_reaches_the_server_and_answers_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let git = Git::open(folder.path()).await.unwrap();
        let branch = BranchName::parse("main").unwrap();
        for (status, expected) in [
            ("401 Unauthorized", "Auth"),
            ("403 Forbidden", "Auth"),
            ("404 Not Found", "NotFound"),
            ("500 Internal Server Error", "Unavailable"),
            ("503 Service Unavailable", "Unavailable"),
        ] {
            let (url, seen) = server(status).await;
            let error = git.remote_head(&access(url.clone()), &branch).await.unwrap_err();
            let name = match &error {
                GitError::Auth { .. } => "Auth",
                GitError::NotFound { .. } => "NotFound",
                GitError::Unavailable { .. } => "Unavailable",
                _ => "other",
            };
            assert_eq!(name, expected, "{status}: {error}");
            assert!(!format!("{error:?}").contains(TOKEN), "{error:?}");
            let basic = base64::engine::general_purpose::STANDARD.encode(format!("x-access-token:{TOKEN}"));
            let requests = seen.lock().unwrap().join("\n");
            assert!(requests.contains(&format!("Authorization: Basic {basic}")), "{status}: {requests}");
            // Without a token nothing is asked and nothing hangs.
            let nobody = Access { url, username: String::new(), token: None };
            let error = git.remote_head(&nobody, &branch).await.unwrap_err();
            assert!(matches!(error, GitError::Auth { .. }), "{error:?}");
        }
        let error = git.remote_head(&access("http://127.0.0.1:1/a".into()), &branch).await.unwrap_err();
        assert!(matches!(error, GitError::Unavailable { .. }), "{error:?}");
    }

    #[test]
    fn versions_are_compared_by_number() {
        assert_eq!(version("git version 2.47.3\n"), Some((2, 47)));
        assert_eq!(version("git version 2.9.0 (Apple Git-1)"), Some((2, 9)));
        assert!(version("git version 2.9.0") < Some(OLDEST_GIT));
        assert_eq!(version("something else"), None);
    }

    #[test]
    fn details_are_one_short_line() {
        assert_eq!(one_line(""), "git gave no reason");
        assert_eq!(one_line("a\u{1b}[31m\r\n  b\n"), "a [31m b");
        assert_eq!(one_line(&"x".repeat(5000)).len(), DETAIL_CHARS);
        assert_eq!(masked("a short-secret b", Some(&SecretString::from("short-secret"))), "a [secret] b");
        assert_eq!(masked("a tok b", Some(&SecretString::from("tok"))), "a [secret] b");
    }
}
