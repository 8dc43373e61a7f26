//! What is fuzzed: each target takes any bytes and must neither panic, hang nor break what it promises.
//!
//! The driver beside this file runs them: shortly in the ordinary tests, as long as asked by `make fuzz`.

use zeblit::agent::adapter::parse_line;
use zeblit::agent::{AdapterKind, AgentEvent, definition};
use zeblit::broker;
use zeblit::broker::egress::{client_hello_sni, parse_connect, parse_request};
use zeblit::config::Config;
use zeblit::domain::attachment::Kind;
use zeblit::domain::egress::canonical_host;
use zeblit::domain::event::Source;
use zeblit::domain::gate::{self, Change, Changeset, Mode};
use zeblit::domain::ids::{BranchName, Sha, TaskId};
use zeblit::domain::repo_config::{self, GateConfig};
use zeblit::domain::secrets::SecretScan;
use zeblit::domain::{attachment, ci, command, patterns, sanitize, task};
use zeblit::intake;
use zeblit::shim::builtin::{api, http, json::Json};
use zeblit::shim::job::WireJob;

/// A name, the function and bytes to begin with.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    pub seeds: &'static [&'static [u8]],
}

/// Pieces that inputs of these kinds are made of.
pub const WORDS: &[&str] = &[
    "/zeblit fix",
    "/zeblit",
    "--agent",
    "`",
    "```",
    "~~~",
    "<!--",
    "-->",
    "<img alt='",
    "![",
    "](",
    "[x]: ",
    "> ",
    "- ",
    "\r\n",
    "\n\n",
    "\0",
    "\u{200b}",
    "\u{202e}",
    "\u{e0041}",
    "e\u{301}",
    "\u{fe0f}",
    "@ann",
    "#12",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\u00",
    ":",
    ",",
    "null",
    "1e999",
    "-1",
    "99999999999999999999",
    ".git",
    "GIT~1",
    "../",
    "/",
    "\\",
    ".github/workflows/x.yml",
    "CODEOWNERS",
    "::$INDEX",
    " .",
    "# v2 git bundle\n",
    "# v3 git bundle\n",
    "@object-format=sha1\n",
    "refs/heads/zeblit-result\n",
    "-",
    "CONNECT ",
    " HTTP/1.1\r\n",
    "Host: ",
    ":443",
    "Transfer-Encoding: chunked\r\n",
    "Content-Length: ",
    "xn--",
    "[::1]",
    "0x7f.1",
    "%00",
    "\u{16}\u{3}\u{1}",
    "type",
    "result",
    "is_error",
    "assistant",
    "---\n",
    "[gate]\n",
    "protected = ",
    "eyJ",
    "ghp_",
    "AKIA",
];

pub const TARGETS: &[Target] = &[
    Target { name: "github_payload", run: github_payload, seeds: &[
        include_bytes!("../fixtures/github/issue_comment.created.json"),
        include_bytes!("../fixtures/github/pull_request_review_comment.created.json"),
        include_bytes!("../fixtures/github/push.json"),
    ] },
    Target { name: "jira_payload", run: jira_payload, seeds: &[
        include_bytes!("../fixtures/jira/comment_created.json"),
        include_bytes!("../fixtures/jira/issue_created.json"),
    ] },
    Target { name: "sentry_payload", run: sentry_payload, seeds: &[
        include_bytes!("../fixtures/sentry/issue.created.json"),
        include_bytes!("../fixtures/sentry/event_alert.triggered.json"),
    ] },
    Target { name: "command", run: commands, seeds: &[
        b"/zeblit fix the last page --agent fixer\n",
        b"> quoted\n\n```\n/zeblit fix\n```\n\n/zeblit ask why?\n",
        b"- /zeblit run format src\n<!-- /zeblit fix -->\n",
    ] },
    Target { name: "sanitiser", run: sanitiser, seeds: &[
        b"See <!-- hidden --> ![alt](https://x.y/z.png \"title\") @ann #12\n```\ncode\n```\n",
        "a\u{200b}b \u{1f469}\u{200d}\u{1f4bb} <a title='x'>y</a> Fixes https://x.y/1".as_bytes(),
    ] },
    Target { name: "attachment", run: attached, seeds: &[
        b"![x](https://github.com/user-attachments/assets/880fbe21-506b-458b-8be6-71ac826d92f5)\n<img src='https://github.com/o/r/files/1/a.log'>",
        b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\x40\0\0\0\x20\x08\x06\0\0\0",
        b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0\xff\xc2\0\x11\x08\0\x20\0\x40\x03",
        b"2026-11-21T10:00:00.1234567Z \x1b[31mfirst\x1b[0m\n\x1b]0;title\x07second\n",
    ] },
    Target { name: "gate_path", run: gate_path, seeds: &[
        b"src/app.py\0docs/readme.md", b".github/workflows/ci.yml", b"a/.GIT/config\0GIT~1/hooks/x", ".g\u{200c}it/config".as_bytes(),
    ] },
    Target { name: "bundle_header", run: bundle_header, seeds: &[
        b"# v2 git bundle\n-1111111111111111111111111111111111111111 base\n2222222222222222222222222222222222222222 refs/heads/zeblit-result\n\nPACK",
        b"# v3 git bundle\n@object-format=sha1\n2222222222222222222222222222222222222222 refs/heads/zeblit-result\n\n",
    ] },
    Target { name: "broker_request", run: broker_request, seeds: &[
        b"POST /v1/messages?beta=true\n{\"model\":\"claude-x\",\"max_tokens\":9,\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"hi\"}]}],\"tools\":[{\"name\":\"run\",\"input_schema\":{\"type\":\"object\"}}]}",
        b"POST /openai/v1/responses\n{\"model\":\"gpt-x\",\"input\":\"hi\",\"max_output_tokens\":9}",
        b"POST /v1/chat/completions\n{\"model\":\"gpt-x\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"max_tokens\":9}",
        b"POST /gemini/v1beta/models/gemini-x:streamGenerateContent?alt=sse\n{\"contents\":[{\"parts\":[{\"text\":\"hi\"}]}]}",
        b"GET /v1/models/claude-x\n",
    ] },
    Target { name: "model_stream", run: model_stream, seeds: &[
        b"event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":3}}}\n\nevent: message_delta\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":5}}\n\n",
        b"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n",
        b"data: {\"usageMetadata\":{\"promptTokenCount\":1,\"candidatesTokenCount\":2}}\r\n\r\n",
    ] },
    Target { name: "branch_name", run: branch_name, seeds: &[
        b"Crash: `foo()` in \xc3\x9cn\xc3\xafcode / --force", b"../../HEAD@{1}.lock", b"-rf $(touch x)", b"a.lock/b..c//d",
    ] },
    Target { name: "proxy_request", run: proxy_request, seeds: &[
        b"CONNECT static.crates.io:443 HTTP/1.1\r\nHost: static.crates.io:443\r\n\r\n",
        b"GET http://deb.debian.org/debian/dists/x HTTP/1.1\r\nHost: deb.debian.org\r\n\r\n",
    ] },
    Target { name: "host", run: host, seeds: &[b"static.crates.io", b"EXAMPLE.org.", b"127.0.0.1", "b\u{fc}cher.example".as_bytes()] },
    Target { name: "tls_hello", run: tls_hello, seeds: &[HELLO] },
    Target { name: "repository_config", run: repository_config, seeds: &[
        b"agent = \"fixer\"\n[gate]\nprotected = [\"infra/**\"]\nmax_files = 10\n",
        b"[commands]\nfix = \"write\"\n[agents]\n",
    ] },
    Target { name: "server_config", run: server_config, seeds: &[
        b"public_url = \"https://zeblit.example\"\n[sandbox]\nkind = \"docker\"\nmemory_mib = 4096\n",
        b"[models]\nanthropic_url = \"http://127.0.0.1:1\"\ndefault_model = \"x\"\n",
    ] },
    Target { name: "agent_output", run: agent_output, seeds: &[
        include_bytes!("../fixtures/claude/success.jsonl"),
        b"{\"type\":\"tool_start\",\"tool\":\"run\",\"summary\":\"ls\"}\n{\"type\":\"result\",\"text\":\"Done.\"}\n",
    ] },
    Target { name: "agent_file", run: agent_file, seeds: &[
        include_bytes!("../../agents/fixer.md"), include_bytes!("../../skills/small-diffs/SKILL.md"),
    ] },
    Target { name: "secrets", run: secrets, seeds: &[
        b"token = \"ghp_a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8\"",
        b"Z2hwX2ExQjJjM0Q0ZTVGNmc3SDhpOUowazFMMm0zTjRvNVA2cTdSOA==\n67 68 70 5f 61 31\n%67%68%70",
    ] },
    Target { name: "shim_job", run: shim_job, seeds: &[b"ZBJ1\x01\0\0\0\x04\0\0\0true\0\0\0\0\0\0\0\0\0\0\0\0"] },
    Target { name: "model_answer", run: model_answer, seeds: &[
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"{\"content\":[{\"type\":\"tool_use\",\"id\":\"1\",\"name\":\"run\",\"input\":{\"command\":\"ls\"}}],\"usage\":{\"input_tokens\":1}}",
        b"{\"choices\":[{\"message\":{\"content\":null,\"tool_calls\":[{\"id\":\"1\",\"function\":{\"name\":\"run\",\"arguments\":\"{}\"}}]}}]}",
    ] },
];

/// A TLS 1.2 record with a hello for `a.example`.
const HELLO: &[u8] = b"\x16\x03\x01\x00\x41\x01\x00\x00\x3d\x03\x03aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\x00\x00\x02\x13\x01\x01\x00\x00\x12\x00\x00\x00\x0e\x00\x0c\x00\x00\x09a.example";

const GITHUB_EVENTS: &[&str] = &[
    "issue_comment",
    "issues",
    "pull_request",
    "pull_request_review",
    "pull_request_review_comment",
    "push",
    "check_run",
    "workflow_run",
];

fn github_payload(bytes: &[u8]) {
    for event in GITHUB_EVENTS {
        let _ = intake::decode(Source::Github, event, bytes);
    }
}

fn jira_payload(bytes: &[u8]) {
    let _ = intake::decode(Source::Jira, "", bytes);
}

fn sentry_payload(bytes: &[u8]) {
    for event in ["issue", "event_alert", "metric_alert"] {
        let _ = intake::decode(Source::Sentry, event, bytes);
    }
}

fn commands(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = command::parse(&text);
    // What a quote or code block holds is no command, whatever it is.
    let quoted: String = text.replace('\r', "\n").lines().map(|line| format!("> {line}\n")).collect();
    assert!(command::parse(&quoted).is_empty(), "a command in a quote");
}

fn sanitiser(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for limit in [50, 100_000] {
        let prompt = sanitize::for_prompt(&text, limit);
        assert!(prompt.len() <= limit && !prompt.contains("<!--"));
        assert_eq!(sanitize::for_prompt(&prompt, limit), prompt, "not settled");
        let comment = sanitize::for_comment(&text, limit);
        assert!(comment.len() <= limit && !comment.contains("<!-- zeblit:v1"));
        assert!(command::parse(&comment).is_empty(), "a command is left");
    }
    assert!(!sanitize::one_line(&text, 100).contains('\n'));
    let _ = sanitize::for_commit(&text);
}

/// Links of a text, the kind of a file, a log's end.
fn attached(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for link in attachment::links(&text, "https://github.com") {
        let known =
            link.url.starts_with("https://github.com/") || link.url.contains(".githubusercontent.com/");
        assert!(known && !link.url.contains(".."), "{}", link.url);
        let path = attachment::path(1, &link, Kind::Text);
        assert!(path.starts_with("attachments/01-") && path.matches('/').count() == 1, "{path}");
    }
    let _ = attachment::judge(bytes);
    for limit in [200, 100_000] {
        let file = sanitize::for_file(&text, limit);
        assert!(file.len() <= limit && !file.contains('\u{1b}') && !file.contains('\r'));
        assert_eq!(sanitize::for_file(&file, limit), file, "not settled");
    }
    let _ = ci::tail(&text, false);
}

/// Paths between NUL bytes.
fn gate_path(bytes: &[u8]) {
    let Ok(sha) = Sha::parse(&"a".repeat(40)) else { return };
    for path in bytes.split(|byte| *byte == 0) {
        let change = Change {
            path: path.to_vec(),
            old_mode: Mode::Absent,
            new_mode: Mode::File,
            added_lines: 1,
            removed_lines: 0,
            binary: false,
            new_bytes: 1,
        };
        let changeset = Changeset {
            base: sha.clone(),
            head: sha.clone(),
            commits: 1,
            changes: vec![change],
            added_text: Vec::new(),
        };
        if gate::check(&changeset, &GateConfig::default(), &SecretScan::default()).is_empty() {
            let text = std::str::from_utf8(path).expect("only UTF-8 passes").to_lowercase();
            assert!(!text.split('/').any(|part| matches!(part, "" | "." | ".." | ".git")), "{text:?} passed");
            assert!(
                !format!("{text}/").starts_with(".github/workflows/") && !text.contains('\\'),
                "{text:?} passed"
            );
        }
    }
}

fn bundle_header(bytes: &[u8]) {
    if zeblit::git::bundle::is_acceptable_header(bytes) {
        assert!(bytes.starts_with(b"# v2 git bundle\n") || bytes.starts_with(b"# v3 git bundle\n"));
    }
}

/// Method and target on the first line, the body behind it.
fn broker_request(bytes: &[u8]) {
    let at = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let head = String::from_utf8_lossy(&bytes[..at]);
    let body = bytes.get(at + 1..).unwrap_or_default();
    let (method, target) = head.split_once(' ').unwrap_or((&head, ""));
    let Ok((sent, body)) = broker::would_send(method, target, body) else { return };
    assert!(sent.starts_with('/') && !sent.contains("..") && !sent.contains("//"), "{sent:?}");
    assert!(sent.bytes().all(|byte| byte.is_ascii_graphic()), "{sent:?}");
    assert!(!sent.contains("key="), "credentials of the client's in {sent:?}");
    if body.is_empty() {
        return;
    }
    let json: serde_json::Value = serde_json::from_slice(&body).expect("what is sent is JSON");
    for key in ["mcp_servers", "container", "previous_response_id", "background"] {
        assert!(json.get(key).is_none_or(|value| value.is_null() || *value == false), "{key} passed");
    }
    let again = broker::would_send(method, target, &body);
    assert_eq!(again, Ok((sent, body)), "what was let through once is let through as it is");
}

fn model_stream(bytes: &[u8]) {
    let whole = broker::metered(bytes, usize::MAX);
    for chunk in [1, 7] {
        assert_eq!(broker::metered(bytes, chunk), whole, "chunks of {chunk}");
    }
}

fn branch_name(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let made = task::branch_name(7, &text, &TaskId::new("0192abcdef"));
    let slug = made.as_str().strip_prefix("zeblit/7-").and_then(|rest| rest.strip_suffix("-abcdef"));
    let slug = slug.expect("number and salt stand where they belong");
    assert!((1..=30).contains(&slug.len()) && !slug.starts_with('-') && !slug.ends_with('-'), "{made:?}");
    assert!(
        slug.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'),
        "{made:?}"
    );
    if let Ok(name) = BranchName::parse(&text) {
        let name = name.as_str();
        assert!(!name.starts_with('-') && !name.contains("..") && !name.contains("@{"), "{name:?}");
        assert!(!name.chars().any(|c| c.is_control() || c.is_whitespace()), "{name:?}");
        assert!(
            !name.contains(['\\', '^', '~', ':', '?', '*', '[', '$', '`', '\'', '"', ';', '|', '&']),
            "{name:?}"
        );
    }
}

fn proxy_request(bytes: &[u8]) {
    let _ = parse_connect(bytes);
    let _ = parse_request(bytes);
}

fn host(bytes: &[u8]) {
    if let Ok(host) = canonical_host(&String::from_utf8_lossy(bytes)) {
        assert!(
            host.is_ascii() && !host.ends_with('.') && host.bytes().all(|b| b.is_ascii_graphic()),
            "{host:?}"
        );
        assert!(host.parse::<std::net::IpAddr>().is_err(), "{host:?} is an address");
        assert_eq!(canonical_host(&host), Ok(host.clone()));
    }
}

fn tls_hello(bytes: &[u8]) {
    if let Ok(name) = client_hello_sni(bytes) {
        assert!(name.is_ascii());
    }
}

fn repository_config(bytes: &[u8]) {
    let _ = repo_config::parse(&String::from_utf8_lossy(bytes));
}

fn server_config(bytes: &[u8]) {
    let file = std::env::temp_dir().join(format!("zeblit-fuzz-{}.toml", std::process::id()));
    std::fs::write(&file, bytes).expect("the temporary folder can be written");
    if let Ok(config) = Config::load(Some(&file)) {
        let _ = config.validate();
        let _ = config.effective();
    }
    let _ = std::fs::remove_file(&file);
}

fn agent_output(bytes: &[u8]) {
    for line in String::from_utf8_lossy(bytes).lines() {
        for adapter in [AdapterKind::Claude, AdapterKind::Builtin, AdapterKind::Command] {
            for stderr in [false, true] {
                for event in parse_line(adapter, stderr, line) {
                    if let AgentEvent::ToolStart { tool, summary } = event {
                        assert!(!tool.contains('\n') && !summary.contains('\n'));
                    }
                }
            }
        }
    }
}

fn agent_file(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(agent) = definition::parse_agent("agents/x.md", "x", &text) {
        assert_eq!(agent.name, "x");
    }
    let _ = definition::parse_skill("skills/x/SKILL.md", "x", &text);
}

fn secrets(bytes: &[u8]) {
    let mut end = 0;
    for finding in patterns::find(bytes) {
        assert!(
            finding.start >= end && finding.start < finding.end && finding.end <= bytes.len(),
            "{finding:?}"
        );
        end = finding.end;
    }
    let scan = SecretScan::new(&[b"a-secret-of-the-server-0123456789-0123456789"]);
    let masked = scan.mask(&String::from_utf8_lossy(bytes));
    assert!(!scan.found_in(masked.as_bytes()));
}

fn shim_job(bytes: &[u8]) {
    if let Ok(job) = WireJob::decode(bytes) {
        let again = job.encode().expect("what was read can be written");
        assert_eq!(WireJob::decode(&again), Ok(job));
    }
}

fn model_answer(bytes: &[u8]) {
    let _ = http::read_answer(&mut &*bytes);
    for api in [api::Api::Anthropic, api::Api::OpenAi] {
        let _ = api::reply(api, bytes);
    }
    let _ = api::error_message(bytes);
    let text = String::from_utf8_lossy(bytes);
    match (Json::parse(&text), serde_json::from_str::<serde_json::Value>(&text)) {
        (Ok(ours), _) => assert_eq!(Json::parse(&ours.write()), Ok(ours)),
        // Its limit of depth is higher than ours.
        (Err(problem), Ok(_)) => assert!(problem.contains("too deeply"), "{problem}"),
        (Err(_), Err(_)) => {}
    }
}
