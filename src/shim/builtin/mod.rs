//! Purpose: the built-in agent, `zeblit-shim builtin`: a small loop of model requests and tool calls, so that an
//! image with nothing but Git and a shell is enough.
//!
//! It is an agent like any other: started by the shim, with the same network (none), the same bridge to the
//! broker and no key. It says what it does as JSON lines on its standard output; `agent/adapter/builtin.rs`
//! reads them.

pub mod api;
pub mod files;
pub mod http;
pub mod json;
pub mod tools;

use api::{Api, Call, Entry, Reply, Setting, Tokens, Told};
use files::Workspace;
use json::{Json, object};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tools::Outcome;

/// What the adapter tells it, by environment.
pub mod variables {
    /// `anthropic` or `openai`.
    pub const API: &str = "ZEBLIT_AGENT_API";
    /// The base address, `http://127.0.0.1:PORT/PATH`.
    pub const URL: &str = "ZEBLIT_AGENT_URL";
    pub const MODEL: &str = "ZEBLIT_AGENT_MODEL";
    /// Names of tools, with commas.
    pub const TOOLS: &str = "ZEBLIT_AGENT_TOOLS";
    /// `1`: what it finishes is committed under its title.
    pub const COMMIT: &str = "ZEBLIT_AGENT_COMMIT";
}

/// Where the system prompt lies below HOME.
pub const SYSTEM_PROMPT_FILE: &str = ".zeblit/system-prompt.md";

/// Output tokens of one answer. The whole of them is reserved from the budget before each request.
const MAX_TOKENS: u64 = 8192;
/// Requests of one run.
const MAX_TURNS: usize = 200;
/// Bytes of a conversation from which on old tool outputs are dropped, and how far: about 100 000 and 60 000
/// tokens. Far below the limit, so that the beginning stays the same (and cached) for many requests.
const CONTEXT_BYTES: usize = 400_000;
const SHRINK_PERCENT: usize = 60;
/// Least size to which a conversation is cut when the model says that it is too long.
const LEAST_CONTEXT_BYTES: usize = 16_000;
/// Tries of one request, and the pauses between them: 0.5 s, doubled, at most 30 s; about a minute and a half.
const TRIES: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Longest `retry-after` that is waited for, seconds.
const LONGEST_RETRY_AFTER: u64 = 120;
/// Answers with neither words nor calls, one after the other.
const MAX_EMPTY: usize = 3;
/// Bytes of text of one line: the shim's output cuts lines at 64 KiB.
const MAX_TEXT_BYTES: usize = 12 * 1024;
const MAX_SUMMARY_BYTES: usize = 40 * 1024;
/// Bytes of the prompts, which the server caps far below.
const MAX_PROMPT_BYTES: u64 = 4 * 1024 * 1024;

/// How a run of the agent ends badly.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// HTTP status of the answer that ended it; none: nothing answered, or it is no matter of the model.
    pub status: Option<u16>,
    /// The model endpoint could not be reached.
    pub unreachable: bool,
    pub message: String,
}

impl Failure {
    fn own(message: impl Into<String>) -> Self {
        Self { status: None, unreachable: false, message: message.into() }
    }
}

/// What it is to do.
#[derive(Debug)]
struct Job {
    /// `127.0.0.1:4180`, and what stands behind it in the base address.
    address: String,
    base: String,
    setting: Setting,
    tools: Vec<String>,
    commit: bool,
    prompt: String,
}

/// The whole program; gives its exit code.
pub fn run() -> i32 {
    let say = |event: Json| {
        let mut line = event.write();
        line.push('\n');
        let mut out = std::io::stdout().lock();
        // Nobody reads any more: the work goes on, its result does not depend on the log.
        let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
    };
    let ended = job().and_then(|job| {
        let folder = std::env::current_dir().map_err(|error| Failure::own(error.to_string()))?;
        let workspace = Workspace::open(&folder).map_err(Failure::own)?;
        work(&job, &workspace, &say)
    });
    match ended {
        Ok(()) => 0,
        Err(failure) => {
            say(object([
                ("type", "error".into()),
                ("status", failure.status.map_or(Json::Null, |status| u64::from(status).into())),
                ("unreachable", failure.unreachable.into()),
                ("message", failure.message.into()),
            ]));
            1
        }
    }
}

fn job() -> Result<Job, Failure> {
    let variable =
        |name: &str| std::env::var(name).map_err(|_| Failure::own(format!("the variable {name} is missing")));
    let api = variable(variables::API)?;
    let api =
        Api::parse(&api).ok_or_else(|| Failure::own(format!("{} `{api}` is unknown", variables::API)))?;
    let url = variable(variables::URL)?;
    let place =
        url.strip_prefix("http://").ok_or_else(|| Failure::own("only http:// addresses are spoken to"))?;
    let (address, base) =
        place.split_once('/').map_or((place, String::new()), |(host, path)| (host, format!("/{path}")));
    let home = std::env::var_os("HOME").map(PathBuf::from).ok_or_else(|| Failure::own("HOME is missing"))?;
    let system = read_capped(&mut open(&home.join(SYSTEM_PROMPT_FILE))?)?;
    let prompt = read_capped(&mut std::io::stdin())?;
    let tools = variable(variables::TOOLS)?;
    Ok(Job {
        address: address.to_owned(),
        base: base.trim_end_matches('/').to_owned(),
        setting: Setting { api, model: variable(variables::MODEL)?, system, max_tokens: MAX_TOKENS },
        tools: tools.split(',').map(str::to_owned).collect(),
        commit: variable(variables::COMMIT).is_ok_and(|value| value == "1"),
        prompt,
    })
}

fn open(path: &Path) -> Result<std::fs::File, Failure> {
    std::fs::File::open(path).map_err(|error| Failure::own(format!("{}: {error}", path.display())))
}

fn read_capped(from: &mut dyn Read) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    from.take(MAX_PROMPT_BYTES)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::own(format!("the prompt cannot be read: {error}")))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Asks and does until the work is finished.
fn work(job: &Job, workspace: &Workspace, say: &dyn Fn(Json)) -> Result<(), Failure> {
    let mut entries = vec![Entry::User(job.prompt.clone())];
    let mut limit = CONTEXT_BYTES;
    let mut empty = 0;
    for _ in 0..MAX_TURNS {
        if api::size(&entries) > limit {
            api::shrink(&mut entries, limit * SHRINK_PERCENT / 100);
        }
        let reply = ask(job, &mut entries, &mut limit, say)?;
        say_tokens(&reply.tokens, say);
        if !reply.text.trim().is_empty() && !reply.calls.is_empty() {
            say_text(&reply.text, say);
        }
        if reply.calls.is_empty() {
            if reply.cut {
                say_text(&reply.text, say);
                entries.push(Entry::Model { text: reply.text, calls: Vec::new() });
                entries.push(Entry::User("Your answer was cut at its limit. Go on in smaller steps.".into()));
            } else if reply.text.trim().is_empty() {
                empty += 1;
                if empty >= MAX_EMPTY {
                    return Err(Failure::own("the model answered nothing"));
                }
                entries.push(Entry::User("Go on, or call `finish`.".into()));
            } else {
                // Words without a call are its last words.
                finish(job, workspace, "", &reply.text, say);
                return Ok(());
            }
            continue;
        }
        empty = 0;
        if let Some((title, summary)) = act(job, workspace, &mut entries, reply, say) {
            finish(job, workspace, &title, &summary, say);
            return Ok(());
        }
    }
    Err(Failure::own(format!("not finished after {MAX_TURNS} requests to the model")))
}

/// Does what one answer asks for. Gives title and summary when that ends the work.
fn act(
    job: &Job,
    workspace: &Workspace,
    entries: &mut Vec<Entry>,
    reply: Reply,
    say: &dyn Fn(Json),
) -> Option<(String, String)> {
    let last = reply.calls.len().saturating_sub(1);
    let mut results = Vec::new();
    for (index, call) in reply.calls.iter().enumerate() {
        let Call { id, name, input } = call;
        if name == "plan" {
            say_text(&tools::checklist(input), say);
        }
        say(object([
            ("type", "tool_start".into()),
            ("tool", name.as_str().into()),
            ("summary", tools::shortened(&tools::summary(name, input), MAX_TEXT_BYTES).into()),
        ]));
        let outcome = if reply.cut && index == last {
            Outcome::Told { ok: false, text: "your answer was cut at its limit; make a smaller call".into() }
        } else if let Json::Text(_) = input {
            Outcome::Told { ok: false, text: "the input is not JSON".into() }
        } else {
            tools::call(workspace, &job.tools, name, input)
        };
        let (ok, text) = match outcome {
            Outcome::Finished { title, summary } => {
                say(tool_end(name, true));
                return Some((title, summary));
            }
            Outcome::Told { ok, text } => (ok, text),
        };
        say(tool_end(name, ok));
        results.push(Told { id: id.clone(), ok, text });
    }
    entries.push(Entry::Model { text: reply.text, calls: reply.calls });
    entries.push(Entry::Tools(results));
    None
}

fn tool_end(name: &str, ok: bool) -> Json {
    object([("type", "tool_end".into()), ("tool", name.into()), ("ok", ok.into())])
}

fn say_text(text: &str, say: &dyn Fn(Json)) {
    say(object([("type", "text".into()), ("text", tools::shortened(text, MAX_TEXT_BYTES).into())]));
}

fn say_tokens(tokens: &Tokens, say: &dyn Fn(Json)) {
    say(object([
        ("type", "tokens".into()),
        ("input", tokens.input.into()),
        ("output", tokens.output.into()),
        ("cache_read", tokens.cache_read.into()),
        ("cache_write", tokens.cache_write.into()),
    ]));
}

/// Commits what is there under the title, and tells the result.
fn finish(job: &Job, workspace: &Workspace, title: &str, summary: &str, say: &dyn Fn(Json)) {
    let title = title.lines().next().unwrap_or_default().trim();
    if job.commit && !title.is_empty() {
        // What cannot be committed here is committed by the shim, under the server's title.
        let _ = git(workspace, &["add", "--all"])
            && git(workspace, &["commit", "--quiet", "--no-verify", "-m", title]);
    }
    let summary = if summary.trim().is_empty() { title } else { summary };
    say(object([("type", "result".into()), ("text", tools::shortened(summary, MAX_SUMMARY_BYTES).into())]));
}

fn git(workspace: &Workspace, words: &[&str]) -> bool {
    Command::new("git")
        .args(["-c", "core.hooksPath=/dev/null", "-c", "commit.gpgSign=false"])
        .args(words)
        .current_dir(workspace.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// One answer of the model: asks again while it is overloaded, and with less when the conversation is too long.
fn ask(job: &Job, entries: &mut [Entry], limit: &mut usize, say: &dyn Fn(Json)) -> Result<Reply, Failure> {
    let tools = tools::descriptions(&job.tools);
    let path = format!("{}{}", job.base, job.setting.api.path());
    let headers = job.setting.api.headers();
    let mut tried = 0;
    loop {
        tried += 1;
        let body = api::request(&job.setting, &tools, entries);
        let (failure, wanted) = match http::post(&job.address, &path, &headers, &body) {
            Ok(answer) if answer.status == 200 => {
                return api::reply(job.setting.api, &answer.body).map_err(Failure::own);
            }
            Ok(answer) => {
                let message = api::error_message(&answer.body);
                if is_too_long(answer.status, &message) && *limit > LEAST_CONTEXT_BYTES {
                    *limit = (api::size(entries).min(*limit) / 2).max(LEAST_CONTEXT_BYTES);
                    api::shrink(entries, *limit);
                    say_text(
                        "The model said that the conversation is too long; older tool outputs are dropped.",
                        say,
                    );
                    continue;
                }
                let failure = Failure { status: Some(answer.status), unreachable: false, message };
                if !matches!(answer.status, 408 | 409 | 429 | 500..=599) {
                    return Err(failure);
                }
                (failure, answer.retry_after)
            }
            Err(error) => {
                let message = format!("the model endpoint cannot be reached: {error}");
                (Failure { status: None, unreachable: true, message }, None)
            }
        };
        if tried >= TRIES || wanted.is_some_and(|seconds| seconds > LONGEST_RETRY_AFTER) {
            return Err(failure);
        }
        let what = failure.status.map_or_else(|| "nothing".to_owned(), |status| status.to_string());
        say_text(&format!("The model endpoint answered {what}; retry {tried} of {}.", TRIES - 1), say);
        std::thread::sleep(pause(tried, wanted));
    }
}

fn pause(tried: u32, wanted: Option<u64>) -> Duration {
    match wanted {
        Some(seconds) => Duration::from_secs(seconds.min(LONGEST_RETRY_AFTER)),
        None => FIRST_PAUSE.saturating_mul(1 << tried.saturating_sub(1).min(10)).min(LONGEST_PAUSE),
    }
}

/// Whether an error says that the request has too many tokens: 413, or 400 in many words.
fn is_too_long(status: u16, message: &str) -> bool {
    let message = message.to_lowercase();
    // The broker's own refusals are not about the model's window.
    let words =
        ["prompt is too long", "context length", "context window", "too many tokens", "context_length"];
    !message.starts_with("zeblit:")
        && (status == 413 || (status == 400 && words.iter().any(|word| message.contains(word))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::io::BufRead;
    use std::net::TcpListener;
    use std::sync::{Arc, Mutex};

    /// Plays answers (status, body), one a connection, and keeps the requests' bodies.
    fn endpoint(
        answers: Vec<(u16, String)>,
    ) -> (String, Arc<Mutex<Vec<String>>>, std::thread::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&seen);
        let thread = std::thread::spawn(move || {
            for (status, body) in answers {
                let (stream, _) = listener.accept().unwrap();
                let mut reader = std::io::BufReader::new(stream);
                let mut length = 0;
                loop {
                    let mut line = String::new();
                    reader.read_line(&mut line).unwrap();
                    if let Some(value) = line.strip_prefix("content-length: ") {
                        length = value.trim().parse().unwrap();
                    }
                    if line.trim().is_empty() {
                        break;
                    }
                }
                let mut request = vec![0; length];
                reader.read_exact(&mut request).unwrap();
                kept.lock().unwrap().push(String::from_utf8(request).unwrap());
                let head = format!(
                    "HTTP/1.1 {status} X\r\nretry-after: 0\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                let mut stream = reader.into_inner();
                stream.write_all(head.as_bytes()).unwrap();
                stream.write_all(body.as_bytes()).unwrap();
            }
        });
        (address, seen, thread)
    }

    fn says(text: &str, calls: &[(&str, &str)]) -> (u16, String) {
        let mut blocks = vec![format!("{{\"type\":\"text\",\"text\":\"{text}\"}}")];
        for (index, (name, input)) in calls.iter().enumerate() {
            blocks.push(format!(
                "{{\"type\":\"tool_use\",\"id\":\"t{index}\",\"name\":\"{name}\",\"input\":{input}}}"
            ));
        }
        let usage = "{\"input_tokens\":3,\"output_tokens\":2}";
        (200, format!("{{\"content\":[{}],\"stop_reason\":\"x\",\"usage\":{usage}}}", blocks.join(",")))
    }

    fn play(answers: Vec<(u16, String)>) -> (Result<(), Failure>, Vec<String>, Vec<String>) {
        let (address, seen, thread) = endpoint(answers);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.txt"), "old\n").unwrap();
        let job = Job {
            address,
            base: String::new(),
            setting: Setting { api: Api::Anthropic, model: "m".into(), system: "s".into(), max_tokens: 10 },
            tools: tools::NAMES.iter().map(|name| (*name).to_owned()).collect(),
            commit: false,
            prompt: "Do it".into(),
        };
        let said = RefCell::new(Vec::new());
        let workspace = Workspace::open(folder.path()).unwrap();
        let ended = work(&job, &workspace, &|event| said.borrow_mut().push(event.write()));
        thread.join().unwrap();
        let seen = seen.lock().unwrap().clone();
        (ended, said.into_inner(), seen)
    }

    #[test]
    fn it_asks_acts_and_finishes() {
        let (ended, said, seen) = play(vec![
            says(
                "I look.",
                &[("read", "{\"path\":\"a.txt\"}"), ("edit", "{\"path\":\"../x\",\"content\":\"x\"}")],
            ),
            (529, "{\"error\":{\"message\":\"Overloaded\"}}".into()),
            says("", &[("edit", "{\"path\":\"a.txt\",\"old\":\"old\",\"new\":\"new\"}")]),
            says("", &[("finish", "{\"title\":\"Do it\",\"summary\":\"It is done.\"}")]),
        ]);
        assert_eq!(ended, Ok(()));
        assert_eq!(seen.len(), 4);
        assert!(
            seen[1].contains("may lead out of the workspace") && seen[1].contains("\\told"),
            "{}",
            seen[1]
        );
        let tokens = r#"{"type":"tokens","input":3,"output":2,"cache_read":0,"cache_write":0}"#;
        assert_eq!(
            said,
            [
                tokens,
                r#"{"type":"text","text":"I look."}"#,
                r#"{"type":"tool_start","tool":"read","summary":"a.txt"}"#,
                r#"{"type":"tool_end","tool":"read","ok":true}"#,
                r#"{"type":"tool_start","tool":"edit","summary":"../x"}"#,
                r#"{"type":"tool_end","tool":"edit","ok":false}"#,
                r#"{"type":"text","text":"The model endpoint answered 529; retry 1 of 7."}"#,
                tokens,
                r#"{"type":"tool_start","tool":"edit","summary":"a.txt"}"#,
                r#"{"type":"tool_end","tool":"edit","ok":true}"#,
                tokens,
                r#"{"type":"tool_start","tool":"finish","summary":"Do it"}"#,
                r#"{"type":"tool_end","tool":"finish","ok":true}"#,
                r#"{"type":"result","text":"It is done."}"#,
            ]
        );
    }

    #[test]
    fn words_without_a_call_are_the_result_and_silence_is_a_failure() {
        let (ended, said, _) = play(vec![says("It returns 41.", &[])]);
        assert_eq!(ended, Ok(()));
        assert_eq!(said.last().unwrap(), r#"{"type":"result","text":"It returns 41."}"#);
        let (ended, _, _) = play(vec![says("", &[]), says("", &[]), says("", &[])]);
        assert_eq!(ended.unwrap_err().message, "the model answered nothing");
    }

    #[test]
    fn refusals_end_it_at_once_with_their_status() {
        let refusal = "{\"error\":{\"message\":\"zeblit: the budget of this run is used up\"}}";
        let (ended, said, _) = play(vec![(402, refusal.into())]);
        let failure = ended.unwrap_err();
        assert_eq!(failure.status, Some(402));
        assert!(failure.message.contains("used up") && said.is_empty());
    }

    #[test]
    fn a_conversation_that_is_too_long_is_cut_and_asked_again() {
        let read = says("", &[("run", "{\"command\":\"head -c 30000 /dev/zero | tr '\\\\0' x\"}")]);
        let mut answers = vec![read; 4];
        answers.push((400, "{\"error\":{\"message\":\"prompt is too long: 210000 tokens\"}}".into()));
        answers.push(says("Done.", &[]));
        let (ended, said, seen) = play(answers);
        assert_eq!(ended, Ok(()), "{said:?}");
        assert!(seen[5].len() < seen[4].len() && seen[5].contains("dropped to save space"));
    }

    #[test]
    fn pauses_grow_and_obey() {
        let pauses: Vec<u128> = (1..=8).map(|tried| pause(tried, None).as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert_eq!(pause(1, Some(7)), Duration::from_secs(7));
        assert_eq!(pause(1, Some(70_000)), Duration::from_secs(LONGEST_RETRY_AFTER));
    }
}
