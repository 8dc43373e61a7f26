//! Going on with a session: where each agent's program keeps it below HOME, which of these files may come back, and how
//! the program is told to go on. Seen with the versions that the agent image pins.
//!
//! An agent wrote these files. What comes back is the conversation of one session and nothing else: no settings, hooks,
//! memories, skills or extensions. The built-in agent and recipes keep no session.

use super::{AdapterKind, Launch};

/// Longest id of a session, bytes.
const MAX_ID_BYTES: usize = 64;
/// What a name in a path may be, bytes.
const MAX_NAME_BYTES: usize = 200;

/// Patterns of the files below HOME that hold the sessions of an agent's program; none: it cannot go on with one.
pub fn session_patterns(adapter: AdapterKind) -> &'static [&'static str] {
    match adapter {
        AdapterKind::Claude => &[".claude/projects/*/*.jsonl"],
        AdapterKind::Codex => &[".codex/sessions/*/*/*/rollout-*.jsonl"],
        AdapterKind::Gemini => &[".gemini/tmp/*/chats/session-*"],
        // One database for all sessions. Its other tables (accounts, permissions) give nothing: there is no network
        // but the bridge, and providers and permissions are in the configuration that is written anew.
        AdapterKind::Opencode => &[DATABASE, DATABASE_LOG],
        AdapterKind::Builtin | AdapterKind::Command => &[],
    }
}

const DATABASE: &str = ".local/share/opencode/opencode.db";
const DATABASE_LOG: &str = ".local/share/opencode/opencode.db-wal";

/// Whether a session may have this id. It becomes an argument and part of a path.
pub fn is_session_id(adapter: AdapterKind, id: &str) -> bool {
    match adapter {
        AdapterKind::Claude | AdapterKind::Codex | AdapterKind::Gemini => is_uuid(id),
        AdapterKind::Opencode => id.strip_prefix("ses_").is_some_and(|rest| {
            rest.len() >= 10 && id.len() <= MAX_ID_BYTES && rest.bytes().all(|b| b.is_ascii_alphanumeric())
        }),
        AdapterKind::Builtin | AdapterKind::Command => false,
    }
}

fn is_uuid(id: &str) -> bool {
    id.len() == 36
        && id.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
        })
}

/// Whether this path below HOME is a file of this session.
pub fn is_session_file(adapter: AdapterKind, id: &str, path: &str) -> bool {
    if !is_session_id(adapter, id) {
        return false;
    }
    let parts: Vec<&str> = path.split('/').collect();
    match (adapter, parts.as_slice()) {
        (AdapterKind::Claude, [".claude", "projects", project, file]) => {
            is_name(project) && file.strip_suffix(".jsonl") == Some(id)
        }
        (AdapterKind::Codex, [".codex", "sessions", year, month, day, file]) => {
            let named = file.strip_prefix("rollout-").and_then(|rest| rest.strip_suffix(".jsonl"));
            let time = named.and_then(|rest| rest.strip_suffix(id)).and_then(|rest| rest.strip_suffix('-'));
            [year, month, day].iter().all(|part| is_number(part)) && time.is_some_and(is_time)
        }
        (AdapterKind::Gemini, [".gemini", "tmp", project, "chats", file]) => {
            // The name has the first part of the id; the program looks for the whole of it inside.
            let named = file.strip_prefix("session-").and_then(|rest| rest.strip_suffix(".jsonl"));
            let start = id.get(..8).unwrap_or(id);
            let time =
                named.and_then(|rest| rest.strip_suffix(start)).and_then(|rest| rest.strip_suffix('-'));
            is_name(project) && time.is_some_and(is_time)
        }
        (AdapterKind::Opencode, _) => path == DATABASE || path == DATABASE_LOG,
        _ => false,
    }
}

fn is_name(part: &str) -> bool {
    !part.is_empty()
        && part.len() <= MAX_NAME_BYTES
        && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

fn is_number(part: &str) -> bool {
    !part.is_empty() && part.len() <= 4 && part.bytes().all(|b| b.is_ascii_digit())
}

fn is_time(part: &str) -> bool {
    !part.is_empty()
        && part.len() <= 40
        && part.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'-' | b'T'))
}

/// Changes a launch so that the program goes on with the session `id`, whose files are put back below HOME.
pub fn apply(
    adapter: AdapterKind,
    launch: &mut Launch,
    system_prompt: &str,
    id: &str,
    files: Vec<(String, Vec<u8>)>,
) {
    let more: &[&str] = match adapter {
        // The record of the conversation holds a system prompt, too, which would win over ours.
        AdapterKind::Claude => &["--system-prompt-snapshot", "off", "--resume", id],
        AdapterKind::Codex => {
            // The prompt comes from standard input: `codex exec … resume ID -`.
            if launch.argv.last().is_some_and(|last| last == "-") {
                launch.argv.pop();
            }
            // It sends the developer's instructions as the record has them: ours are said once more.
            let mut stdin = system_prompt.trim_end().as_bytes().to_vec();
            stdin.extend_from_slice(b"\n\n");
            stdin.append(&mut launch.stdin);
            launch.stdin = stdin;
            &["resume", id, "-"]
        }
        AdapterKind::Gemini => &["--resume", id],
        AdapterKind::Opencode => &["--session", id],
        AdapterKind::Builtin | AdapterKind::Command => return,
    };
    launch.argv.extend(more.iter().map(|word| (*word).to_owned()));
    launch.home_files.extend(files.into_iter().filter(|(path, _)| is_session_file(adapter, id, path)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::glob::Glob;

    const UUID: &str = "88d650a9-6dc8-4688-a347-dd3bf3b3d6b5";
    const OPENCODE: &str = "ses_dde27f8beffe6d94E4PccMVthq";
    const ALL: [(AdapterKind, &str, &[&str]); 4] = [
        (
            AdapterKind::Claude,
            UUID,
            &[".claude/projects/-zeblit-workspace/88d650a9-6dc8-4688-a347-dd3bf3b3d6b5.jsonl"],
        ),
        (
            AdapterKind::Codex,
            UUID,
            &[
                ".codex/sessions/2026/11/28/rollout-2026-11-28T11-08-49-88d650a9-6dc8-4688-a347-dd3bf3b3d6b5.jsonl",
            ],
        ),
        (AdapterKind::Gemini, UUID, &[".gemini/tmp/workspace/chats/session-2026-11-28T11-09-88d650a9.jsonl"]),
        (AdapterKind::Opencode, OPENCODE, &[DATABASE, DATABASE_LOG]),
    ];

    #[test]
    fn the_files_of_a_session_are_looked_for_and_taken() {
        for (adapter, id, files) in ALL {
            let globs: Vec<Glob> =
                session_patterns(adapter).iter().filter_map(|text| Glob::parse(text)).collect();
            for file in files {
                assert!(is_session_file(adapter, id, file), "{file}");
                assert!(globs.iter().any(|glob| glob.matches(file)), "{file}");
            }
        }
        for adapter in [AdapterKind::Builtin, AdapterKind::Command] {
            assert_eq!(session_patterns(adapter), [""; 0]);
            assert!(!is_session_id(adapter, UUID));
        }
    }

    #[test]
    fn nothing_else_comes_back() {
        let other = UUID.replace("88d6", "99d6");
        let odd = [
            ".claude/settings.json".to_owned(),
            ".claude/settings.local.json".into(),
            ".claude.json".into(),
            ".claude/CLAUDE.md".into(),
            ".claude/agents/x.md".into(),
            ".claude/hooks/x.jsonl".into(),
            format!(".claude/projects/x/memory/{UUID}.jsonl"),
            ".claude/projects/x/memory/MEMORY.md".into(),
            format!(".claude/projects/x/{other}.jsonl"),
            format!(".claude/projects/../{UUID}.jsonl"),
            format!(".claude/projects//{UUID}.jsonl"),
            format!(".claude/projects/x/{UUID}.json"),
            format!("./.claude/projects/x/{UUID}.jsonl"),
            ".codex/config.toml".into(),
            ".codex/AGENTS.md".into(),
            ".codex/hooks.json".into(),
            ".codex/skills/x/SKILL.md".into(),
            format!(".codex/sessions/2026/11/28/rollout-2026-{other}.jsonl"),
            format!(".codex/sessions/2026/11/../rollout-2026-{UUID}.jsonl"),
            format!(".codex/sessions/2026/11/28/rollout-../../x-{UUID}.jsonl"),
            format!(".codex/sessions/2026/11/28/rollout-{UUID}.jsonl"),
            ".gemini/settings.json".into(),
            ".gemini/GEMINI.md".into(),
            ".gemini/tmp/x/shell_history".into(),
            ".gemini/tmp/../chats/session-2026-88d650a9.jsonl".into(),
            ".gemini/tmp/x/chats/session-2026-99d650a9.jsonl".into(),
            ".gemini/extensions/x/gemini-extension.json".into(),
            ".config/opencode/opencode.json".into(),
            ".local/share/opencode/auth.json".into(),
            ".local/share/opencode/opencode.db-shm".into(),
            ".local/share/opencode/bin/x".into(),
            ".gitconfig".into(),
            ".bashrc".into(),
            String::new(),
        ];
        for (adapter, id, own) in ALL {
            for path in odd.iter().map(String::as_str).chain(
                ALL.iter()
                    .filter(|(kind, ..)| *kind != adapter)
                    .flat_map(|(_, _, files)| files.iter().copied()),
            ) {
                assert!(!is_session_file(adapter, id, path), "{adapter:?} takes {path}");
            }
            assert!(!is_session_file(adapter, "../x", own.first().unwrap()));
        }
    }

    #[test]
    fn an_id_is_plain_before_it_becomes_an_argument() {
        for bad in
            ["", "-h", "--help", "latest", "../x", "88D650A9-6dc8-4688-a347-dd3bf3b3d6b5", "x y", "1", "\n"]
        {
            for (adapter, ..) in ALL {
                assert!(!is_session_id(adapter, bad), "{adapter:?} takes {bad}");
            }
        }
        let long = format!("ses_{}", "a".repeat(61));
        for bad in ["ses_", "ses_short", "ses_dde27f8beff/e6d94E4", "xses_dde27f8beffe6d94E4", &long] {
            assert!(!is_session_id(AdapterKind::Opencode, bad), "{bad}");
        }
        assert!(is_session_id(AdapterKind::Opencode, OPENCODE));
        assert!(!is_session_id(AdapterKind::Claude, &format!("{UUID}0")));
    }

    #[test]
    fn each_program_is_told_to_go_on_in_its_own_way() {
        for ((adapter, id, files), (argv, expected)) in ALL.iter().zip([
            ("claude -p", format!("claude -p --system-prompt-snapshot off --resume {UUID}")),
            ("codex exec --json -", format!("codex exec --json resume {UUID} -")),
            ("gemini --x", format!("gemini --x --resume {UUID}")),
            ("opencode run", format!("opencode run --session {OPENCODE}")),
        ]) {
            let mut launch = Launch {
                argv: argv.split(' ').map(str::to_owned).collect(),
                stdin: b"go on".to_vec(),
                ..Launch::default()
            };
            let mut given: Vec<_> = files.iter().map(|path| ((*path).to_owned(), b"{}".to_vec())).collect();
            given.push((".claude/settings.json".into(), b"{}".to_vec()));
            given.push((".codex/config.toml".into(), Vec::new()));
            apply(*adapter, &mut launch, "You fix.\n", id, given);
            assert_eq!(launch.argv.join(" "), expected);
            assert_eq!(launch.home_files.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), *files);
            let stdin = String::from_utf8(launch.stdin).unwrap();
            assert_eq!(stdin, if *adapter == AdapterKind::Codex { "You fix.\n\ngo on" } else { "go on" });
        }
    }
}
