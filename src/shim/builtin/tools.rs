//! Purpose: the tools of the built-in agent: plan, read, search, edit, run, finish.

use super::super::signal;
use super::files::{Search, Workspace};
use super::json::{Json, object};
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of one tool's answer to the model: about 8 000 tokens.
const MAX_OUTPUT_BYTES: usize = 32 * 1024;
/// Lines that `read` gives at once.
const READ_LINES: u64 = 1000;
/// Hits of a search.
const SEARCH_LIMIT: usize = 100;
/// Names of one folder.
const LIST_LIMIT: usize = 500;
/// Seconds of a command that names none, and at most.
const RUN_SECONDS: u64 = 120;
const MAX_RUN_SECONDS: u64 = 900;
/// Bytes that are read of a command's output; the rest is dropped as it comes.
const MAX_RUN_BYTES: usize = 4 * 1024 * 1024;
/// How often a running command is looked at.
const RUN_LOOK: Duration = Duration::from_millis(10);
/// How long the pipes may stay open after the command ended: something that it left behind may hold them.
const DRAIN: Duration = Duration::from_secs(2);
/// Items of a plan that are shown.
const PLAN_ITEMS: usize = 40;

/// Their names, in the order in which the model sees them.
pub const NAMES: [&str; 6] = ["plan", "read", "search", "edit", "run", "finish"];

/// What a call came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What the model is told.
    Told {
        ok: bool,
        text: String,
    },
    Finished {
        title: String,
        summary: String,
    },
}

fn told(result: Result<String, String>) -> Outcome {
    match result {
        Ok(text) => Outcome::Told { ok: true, text: shortened(&text, MAX_OUTPUT_BYTES) },
        Err(text) => Outcome::Told { ok: false, text: shortened(&text, MAX_OUTPUT_BYTES) },
    }
}

/// Head and tail of a text that is too long.
pub fn shortened(text: &str, max_bytes: usize) -> String {
    if text.len() <= max_bytes {
        return text.to_owned();
    }
    let (head, tail) = (max_bytes * 2 / 3, max_bytes / 3);
    let head = text.get(..text.floor_char_boundary(head)).unwrap_or_default();
    let tail = text.get(text.ceil_char_boundary(text.len() - tail)..).unwrap_or_default();
    format!("{head}\n[… {} bytes left out …]\n{tail}", text.len() - head.len() - tail.len())
}

/// A tool as both APIs describe it: name, description, JSON schema of its input.
pub struct Description {
    pub name: &'static str,
    pub about: &'static str,
    pub schema: Json,
}

fn field(kind: &str, about: &str) -> Json {
    object([("type", kind.into()), ("description", about.into())])
}

fn schema(fields: Vec<(&str, Json)>, required: &[&str]) -> Json {
    object([
        ("type", "object".into()),
        (
            "properties",
            Json::Object(fields.into_iter().map(|(name, field)| (name.to_owned(), field)).collect()),
        ),
        ("required", Json::List(required.iter().map(|name| (*name).into()).collect())),
        ("additionalProperties", false.into()),
    ])
}

/// The tools that the agent may use.
pub fn descriptions(allowed: &[String]) -> Vec<Description> {
    let plan_item = schema(
        vec![
            ("text", field("string", "The step in a few words.")),
            ("done", field("boolean", "It is done.")),
        ],
        &["text", "done"],
    );
    let all = vec![
        Description {
            name: "plan",
            about: "Writes your checklist, which people see. Give all items each time.",
            schema: schema(
                vec![("items", object([("type", "array".into()), ("items", plan_item)]))],
                &["items"],
            ),
        },
        Description {
            name: "read",
            about: "Reads a file of the workspace with line numbers, or lists a folder.",
            schema: schema(
                vec![
                    ("path", field("string", "Relative to the workspace.")),
                    ("from", field("integer", "First line, from 1.")),
                    ("lines", field("integer", "How many lines; at most 1000.")),
                ],
                &["path"],
            ),
        },
        Description {
            name: "search",
            about: "Finds lines that hold a text (exactly, not a pattern), or files by name when the text is empty.",
            schema: schema(
                vec![
                    ("text", field("string", "What the line holds; empty: only names.")),
                    ("glob", field("string", "Which files: `*.py`, `src/**/*.rs`.")),
                    ("path", field("string", "Folder or file to search in.")),
                ],
                &["text"],
            ),
        },
        Description {
            name: "edit",
            about: "Changes a file of the workspace. With `old` and `new`: replaces `old`, which must stand there exactly \
                    once (or everywhere with `all`). With `content`: writes the whole file. With `delete`: removes it.",
            schema: schema(
                vec![
                    ("path", field("string", "Relative to the workspace.")),
                    (
                        "old",
                        field("string", "The text to replace, exactly as it stands, without line numbers."),
                    ),
                    ("new", field("string", "What takes its place.")),
                    ("all", field("boolean", "Replace every occurrence.")),
                    ("content", field("string", "The whole new content.")),
                    ("delete", field("boolean", "Remove the file.")),
                ],
                &["path"],
            ),
        },
        Description {
            name: "run",
            about: "Runs a command with `sh -c` in the workspace and gives its output and exit code. There is no network.",
            schema: schema(
                vec![
                    ("command", field("string", "The command.")),
                    ("seconds", field("integer", "Time limit; 120 when not given, at most 900.")),
                ],
                &["command"],
            ),
        },
        Description {
            name: "finish",
            about: "Ends the work. Call it once, when everything is done or cannot be done.",
            schema: schema(
                vec![
                    (
                        "title",
                        field(
                            "string",
                            "The change as a commit's first line: imperative, at most 72 characters.",
                        ),
                    ),
                    ("summary", field("string", "Markdown for the people who read the result.")),
                ],
                &["title", "summary"],
            ),
        },
    ];
    all.into_iter()
        .filter(|tool| tool.name == "finish" || allowed.iter().any(|name| name == tool.name))
        .collect()
}

/// One line that says what a call does.
pub fn summary(name: &str, input: &Json) -> String {
    let text = |field: &str| input.text_of(field).unwrap_or_default();
    match name {
        "read" => text("path").to_owned(),
        "edit" if input.get("delete").and_then(Json::boolean) == Some(true) => {
            format!("{} (delete)", text("path"))
        }
        "edit" => text("path").to_owned(),
        "search" => [text("text"), text("glob"), text("path")]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(" in "),
        "run" => text("command").to_owned(),
        "plan" => format!("{} steps", input.get("items").map_or(0, |items| items.list().len())),
        "finish" => text("title").to_owned(),
        _ => String::new(),
    }
}

/// The plan as people see it.
pub fn checklist(input: &Json) -> String {
    let mut lines = String::from("Plan:");
    for item in input.get("items").map_or(&[][..], Json::list).iter().take(PLAN_ITEMS) {
        let mark = if item.get("done").and_then(Json::boolean) == Some(true) { 'x' } else { ' ' };
        let text: String = item.text_of("text").unwrap_or_default().chars().take(200).collect();
        lines.push_str(&format!("\n- [{mark}] {}", text.replace('\n', " ")));
    }
    lines
}

/// Does what the model asks for.
pub fn call(workspace: &Workspace, allowed: &[String], name: &str, input: &Json) -> Outcome {
    let known = NAMES.contains(&name) && (name == "finish" || allowed.iter().any(|tool| tool == name));
    if !known {
        return told(Err(format!("there is no tool `{name}`")));
    }
    if !matches!(input, Json::Object(_)) {
        return told(Err("the input is not an object".into()));
    }
    match name {
        "plan" => told(if input.get("items").is_some_and(|items| !items.list().is_empty()) {
            Ok("noted".into())
        } else {
            Err("`items` is missing".into())
        }),
        "read" => told(read(workspace, input)),
        "search" => told(search(workspace, input)),
        "edit" => told(edit(workspace, input)),
        "run" => told(run(workspace, input)),
        _ => Outcome::Finished {
            title: input.text_of("title").unwrap_or_default().to_owned(),
            summary: input.text_of("summary").unwrap_or_default().to_owned(),
        },
    }
}

fn wanted<'a>(input: &'a Json, name: &str) -> Result<&'a str, String> {
    input.text_of(name).ok_or_else(|| format!("`{name}` is missing or no text"))
}

fn read(workspace: &Workspace, input: &Json) -> Result<String, String> {
    let path = wanted(input, "path")?;
    let bytes = match workspace.read(path) {
        Ok(bytes) => bytes,
        Err(problem) => {
            return match workspace.list(path, LIST_LIMIT) {
                Some(names) if names.len() >= LIST_LIMIT => {
                    Ok(names.join("\n") + "\n[more names are left out]")
                }
                Some(names) if names.is_empty() => Ok("[an empty folder]".into()),
                Some(names) => Ok(names.join("\n")),
                None => Err(problem),
            };
        }
    };
    if bytes.iter().take(8000).any(|byte| *byte == 0) {
        return Err(format!("`{path}` is binary ({} bytes)", bytes.len()));
    }
    let text = String::from_utf8_lossy(&bytes);
    let from = usize::try_from(input.count_of("from").unwrap_or(1).max(1)).unwrap_or(usize::MAX);
    let lines = input.count_of("lines").unwrap_or(READ_LINES).clamp(1, READ_LINES);
    let lines = usize::try_from(lines).unwrap_or(usize::MAX);
    let total = text.lines().count();
    let mut shown = String::new();
    let mut last = from - 1;
    for (index, line) in text.lines().enumerate().skip(from - 1).take(lines) {
        if shown.len() + line.len() > MAX_OUTPUT_BYTES - 200 && !shown.is_empty() {
            break;
        }
        shown.push_str(&format!("{:>5}\t{line}\n", index + 1));
        last = index + 1;
    }
    if total == 0 {
        return Ok("[an empty file]".into());
    }
    if shown.is_empty() {
        return Err(format!("the file has {total} lines"));
    }
    if last < total {
        shown.push_str(&format!("[lines {from} to {last} of {total}]"));
    }
    Ok(shown)
}

fn search(workspace: &Workspace, input: &Json) -> Result<String, String> {
    let search = Search {
        text: input.text_of("text").unwrap_or_default(),
        glob: input.text_of("glob").filter(|glob| !glob.is_empty()),
        path: input.text_of("path").unwrap_or_default(),
        limit: SEARCH_LIMIT,
    };
    let found = workspace.search(&search)?;
    let mut lines: Vec<String> = found
        .hits
        .iter()
        .map(|hit| {
            if hit.line == 0 { hit.path.clone() } else { format!("{}:{}: {}", hit.path, hit.line, hit.text) }
        })
        .collect();
    if lines.is_empty() {
        lines.push("[nothing found]".into());
    }
    lines.extend(found.cut.map(|cut| format!("[{cut}]")));
    Ok(lines.join("\n"))
}

fn edit(workspace: &Workspace, input: &Json) -> Result<String, String> {
    let path = wanted(input, "path")?;
    if input.get("delete").and_then(Json::boolean) == Some(true) {
        workspace.delete(path)?;
        return Ok(format!("`{path}` is removed"));
    }
    if let Some(content) = input.text_of("content") {
        if input.text_of("old").is_some_and(|old| !old.is_empty()) {
            return Err("give either `content` or `old` and `new`".into());
        }
        workspace.write(path, content.as_bytes())?;
        return Ok(format!("`{path}` is written ({} bytes)", content.len()));
    }
    let (old, new) = (wanted(input, "old")?, wanted(input, "new")?);
    if old.is_empty() {
        return Err("`old` is empty; give the text to replace, or `content` for a new file".into());
    }
    let text = String::from_utf8(workspace.read(path)?)
        .map_err(|_| format!("`{path}` is not UTF-8; change it with a command"))?;
    let count = text.matches(old).count();
    let all = input.get("all").and_then(Json::boolean) == Some(true);
    match count {
        0 => Err(format!("`old` does not stand in `{path}`; read the file and copy the text exactly")),
        2.. if !all => {
            Err(format!("`old` stands in `{path}` {count} times; give more of the text around it, or `all`"))
        }
        _ => {
            workspace.write(path, text.replace(old, new).as_bytes())?;
            Ok(format!("`{path}` is changed at {count} place(s)"))
        }
    }
}

fn run(workspace: &Workspace, input: &Json) -> Result<String, String> {
    let command = wanted(input, "command")?;
    let seconds = input.count_of("seconds").unwrap_or(RUN_SECONDS).clamp(1, MAX_RUN_SECONDS);
    // One pipe for both, so that the order is the command's. Its writing ends go away with the statement.
    let (reader, writer) = std::io::pipe().map_err(|error| format!("sh: {error}"))?;
    let mut child = Command::new("sh")
        .arg("-c")
        .arg(command)
        .current_dir(workspace.path())
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(writer.try_clone().map_err(|error| format!("sh: {error}"))?)
        .stderr(writer)
        .spawn()
        .map_err(|error| format!("sh: {error}"))?;
    let group = i32::try_from(child.id()).map_err(|error| error.to_string())?;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let (sender, ended) = mpsc::channel();
    listen(Box::new(reader), &heard, sender);
    let begun = Instant::now();
    let limit = Duration::from_secs(seconds);
    let status = loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => break Some(status),
            None if begun.elapsed() >= limit => break None,
            None => std::thread::sleep(RUN_LOOK),
        }
    };
    if status.is_none() {
        let _ = signal::send(-group, signal::SIGKILL);
        let _ = child.wait();
    }
    // The channel ends when the pipe has; something that runs on in the background may hold them.
    let _ = ended.recv_timeout(DRAIN);
    let bytes = heard.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut text = shortened(&String::from_utf8_lossy(&bytes), MAX_OUTPUT_BYTES - 200);
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    match status {
        None => Err(format!("{text}[ended after {seconds} s]")),
        Some(status) if status.success() => Ok(format!("{text}[exit code 0]")),
        Some(status) => Err(match status.code() {
            Some(code) => format!("{text}[exit code {code}]"),
            None => format!("{text}[ended by signal {}]", status.signal().unwrap_or(0)),
        }),
    }
}

/// Reads a pipe to its end, whatever is kept of it: a command must not block on its output.
fn listen(
    mut pipe: Box<dyn Read + Send>,
    heard: &Arc<Mutex<Vec<u8>>>,
    ended: mpsc::Sender<std::convert::Infallible>,
) {
    let heard = Arc::clone(heard);
    let _ = std::thread::Builder::new().spawn(move || {
        let mut chunk = vec![0; 16 * 1024];
        while let Ok(read) = pipe.read(&mut chunk) {
            if read == 0 {
                break;
            }
            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            let room = MAX_RUN_BYTES.saturating_sub(heard.len()).min(read);
            heard.extend_from_slice(chunk.get(..room).unwrap_or_default());
        }
        drop(ended);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn all() -> Vec<String> {
        NAMES.iter().map(|name| (*name).to_owned()).collect()
    }

    fn world() -> (tempfile::TempDir, Workspace) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.txt"), "one\ntwo\ntwo\n").unwrap();
        let workspace = Workspace::open(folder.path()).unwrap();
        (folder, workspace)
    }

    fn does(workspace: &Workspace, name: &str, input: &str) -> (bool, String) {
        match call(workspace, &all(), name, &Json::parse(input).unwrap()) {
            Outcome::Told { ok, text } => (ok, text),
            Outcome::Finished { title, summary } => (true, format!("{title}|{summary}")),
        }
    }

    #[test]
    fn files_are_read_by_lines() {
        let (folder, workspace) = world();
        assert_eq!(does(&workspace, "read", r#"{"path":"a.txt"}"#).1, "    1\tone\n    2\ttwo\n    3\ttwo\n");
        let part = does(&workspace, "read", r#"{"path":"a.txt","from":2,"lines":1}"#).1;
        assert_eq!(part, "    2\ttwo\n[lines 2 to 2 of 3]");
        assert!(!does(&workspace, "read", r#"{"path":"a.txt","from":9}"#).0);
        assert_eq!(does(&workspace, "read", r#"{"path":"."}"#), (true, "a.txt".into()));
        fs::write(folder.path().join("b"), b"\0\x01").unwrap();
        assert!(does(&workspace, "read", r#"{"path":"b"}"#).1.contains("binary"));
        fs::write(folder.path().join("long"), "line\n".repeat(100_000)).unwrap();
        let long = does(&workspace, "read", r#"{"path":"long"}"#).1;
        assert!(long.len() < MAX_OUTPUT_BYTES && long.ends_with("of 100000]"), "{}", long.len());
        assert!(!does(&workspace, "read", r#"{"path":"../a"}"#).0);
    }

    #[test]
    fn an_edit_is_exact_or_nothing() {
        let (folder, workspace) = world();
        let file = folder.path().join("a.txt");
        assert!(does(&workspace, "edit", r#"{"path":"a.txt","old":"one","new":"1"}"#).0);
        for (bad, why) in [
            (r#"{"path":"a.txt","old":"two","new":"2"}"#, "2 times"),
            (r#"{"path":"a.txt","old":"three","new":"3"}"#, "does not stand"),
            (r#"{"path":"a.txt","old":"","new":"3"}"#, "empty"),
            (r#"{"path":"a.txt","new":"3"}"#, "`old` is missing"),
            (r#"{"path":"a.txt","old":"1","content":"x"}"#, "either"),
            (r#"{"old":"1","new":"2"}"#, "`path` is missing"),
            (r#"{"path":"/etc/passwd","content":"x"}"#, "outside"),
        ] {
            let (ok, text) = does(&workspace, "edit", bad);
            assert!(!ok && text.contains(why), "{bad}: {text}");
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "1\ntwo\ntwo\n");
        assert!(does(&workspace, "edit", r#"{"path":"a.txt","old":"two","new":"2","all":true}"#).0);
        assert_eq!(fs::read_to_string(&file).unwrap(), "1\n2\n2\n");
        assert!(does(&workspace, "edit", r#"{"path":"x/y","content":"new"}"#).0);
        assert!(does(&workspace, "edit", r#"{"path":"a.txt","delete":true}"#).0);
        assert!(!file.exists() && folder.path().join("x/y").exists());
    }

    #[test]
    fn commands_tell_their_output_and_their_end() {
        let (_folder, workspace) = world();
        assert_eq!(
            does(&workspace, "run", r#"{"command":"cat a.txt | head -1; echo err >&2; exit 3"}"#),
            (false, "one\nerr\n[exit code 3]".into())
        );
        assert_eq!(does(&workspace, "run", r#"{"command":"true"}"#), (true, "[exit code 0]".into()));
        assert_eq!(does(&workspace, "run", r#"{"command":"kill -9 $$"}"#).1, "[ended by signal 9]");
        let (ok, text) = does(&workspace, "run", r#"{"command":"echo begun; sleep 600 & wait","seconds":1}"#);
        assert!(!ok && text == "begun\n[ended after 1 s]", "{text}");
        let flood = does(
            &workspace,
            "run",
            r#"{"command":"head -c 20000000 /dev/zero | tr '\\0' x; echo; echo END"}"#,
        );
        assert!(
            flood.0 && flood.1.len() < MAX_OUTPUT_BYTES && flood.1.contains("left out"),
            "{}",
            flood.1.len()
        );
        // It reads nothing, so it cannot wait for input.
        assert!(does(&workspace, "run", r#"{"command":"cat"}"#).0);
    }

    #[test]
    fn unknown_and_forbidden_tools_do_nothing() {
        let (_folder, workspace) = world();
        assert!(does(&workspace, "bash", "{}").1.contains("no tool `bash`"));
        assert!(does(&workspace, "run", "[]").1.contains("not an object"));
        let allowed = ["read".to_owned()];
        let input = Json::parse(r#"{"command":"true"}"#).unwrap();
        assert!(matches!(call(&workspace, &allowed, "run", &input), Outcome::Told { ok: false, .. }));
        let names: Vec<&str> = descriptions(&allowed).iter().map(|tool| tool.name).collect();
        assert_eq!(names, ["read", "finish"]);
        let finished =
            call(&workspace, &allowed, "finish", &Json::parse(r#"{"title":"T","summary":"S"}"#).unwrap());
        assert_eq!(finished, Outcome::Finished { title: "T".into(), summary: "S".into() });
    }

    #[test]
    fn long_texts_keep_head_and_tail() {
        let text = format!("begin{}end", "ä".repeat(1000));
        let short = shortened(&text, 100);
        assert!(
            short.starts_with("begin") && short.ends_with("end") && short.contains("left out"),
            "{short}"
        );
        assert_eq!(shortened("x", 100), "x");
    }

    #[test]
    fn a_plan_becomes_a_checklist() {
        let input =
            Json::parse(r#"{"items":[{"text":"a\nb","done":true},{"text":"c","done":false}]}"#).unwrap();
        assert_eq!(checklist(&input), "Plan:\n- [x] a b\n- [ ] c");
        assert_eq!(summary("plan", &input), "2 steps");
    }
}
