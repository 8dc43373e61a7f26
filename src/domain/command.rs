//! `/zeblit …` lines in Markdown: the grammar, the table of verbs, and what each needs.

use super::budget;
use super::ids::BranchName;
use super::policy::Role;
use super::run::Priority;
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ops::Range;

/// Everything `/zeblit` can be told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    Fix,
    Run,
    Review,
    Ask,
    Retry,
    Continue,
    Cancel,
    Ok,
    Status,
    Budget,
    Help,
    Ping,
}

/// One row of the command table: help, did-you-mean, policy and README are made from it.
#[derive(Debug, Clone, Copy)]
pub struct VerbInfo {
    pub verb: Verb,
    /// First name is canonical, the rest are aliases.
    pub names: &'static [&'static str],
    pub usage: &'static str,
    pub about: &'static str,
    /// The role it needs when the repository says nothing else.
    pub default_role: Role,
    /// It starts a run.
    pub starts_run: bool,
}

pub const VERBS: &[VerbInfo] = &[
    VerbInfo {
        verb: Verb::Fix,
        names: &["fix"],
        usage: "/zeblit fix [what to do]",
        about: "Change the code and open a draft pull request (on a pull request: add commits). Plain words without a verb mean the same.",
        default_role: Role::Write,
        starts_run: true,
    },
    VerbInfo {
        verb: Verb::Run,
        names: &["run"],
        usage: "/zeblit run <recipe> [arguments]",
        about: "Run a recipe of this repository or server (a fixed command, no model).",
        default_role: Role::Write,
        starts_run: true,
    },
    VerbInfo {
        verb: Verb::Review,
        names: &["review"],
        usage: "/zeblit review [what to look at]",
        about: "Read the change and comment on it. Changes nothing.",
        default_role: Role::Write,
        starts_run: true,
    },
    VerbInfo {
        verb: Verb::Ask,
        names: &["ask"],
        usage: "/zeblit ask <question>",
        about: "Answer a question about the code. Changes nothing.",
        default_role: Role::Write,
        starts_run: true,
    },
    VerbInfo {
        verb: Verb::Retry,
        names: &["retry"],
        usage: "/zeblit retry [--agent NAME]",
        about: "Start the last run of this thread again from the same request.",
        default_role: Role::Write,
        starts_run: true,
    },
    VerbInfo {
        verb: Verb::Continue,
        names: &["continue"],
        usage: "/zeblit continue [what to do next]",
        about: "Go on from where the last run of this thread stopped, with its conversation where that is kept.",
        default_role: Role::Write,
        starts_run: true,
    },
    VerbInfo {
        verb: Verb::Cancel,
        names: &["cancel", "stop"],
        usage: "/zeblit cancel",
        about: "Stop the run of this thread. Partial work is kept.",
        default_role: Role::Write,
        starts_run: false,
    },
    VerbInfo {
        verb: Verb::Ok,
        names: &["ok"],
        usage: "/zeblit ok <commit>",
        about: "Approve exactly this commit: a change that waits for it is pushed; the code of a pull request from a fork may be run.",
        default_role: Role::Write,
        starts_run: false,
    },
    VerbInfo {
        verb: Verb::Status,
        names: &["status", "info"],
        usage: "/zeblit status",
        about: "Show the runs of this thread and their place in the queue.",
        default_role: Role::Triage,
        starts_run: false,
    },
    VerbInfo {
        verb: Verb::Budget,
        names: &["budget"],
        usage: "/zeblit budget",
        about: "Show what is spent and left: for the last run, you, this repository and its owner.",
        default_role: Role::Triage,
        starts_run: false,
    },
    VerbInfo {
        verb: Verb::Help,
        names: &["help", "?"],
        usage: "/zeblit help",
        about: "Show this table.",
        default_role: Role::Triage,
        starts_run: false,
    },
    VerbInfo {
        verb: Verb::Ping,
        names: &["ping"],
        usage: "/zeblit ping",
        about: "Check that the bot listens.",
        default_role: Role::Triage,
        starts_run: false,
    },
];

impl Verb {
    pub fn info(self) -> &'static VerbInfo {
        VERBS
            .iter()
            .find(|info| info.verb == self)
            .expect("every verb has a row in VERBS (checked by a test)")
    }

    pub fn name(self) -> &'static str {
        self.info().names.first().copied().unwrap_or("")
    }
}

/// `--agent NAME --model NAME --base BRANCH --budget USD --priority high|default|low --after #N`, in any order,
/// `--flag value` or `--flag=value`; `--staged` takes no value.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flags {
    pub agent: Option<String>,
    pub model: Option<String>,
    pub base: Option<String>,
    /// In millionths of a US dollar.
    pub budget_micros: Option<i64>,
    /// Do everything except pushing and opening.
    #[serde(default)]
    pub staged: bool,
    #[serde(default)]
    pub priority: Option<Priority>,
    /// Issues and pull requests of this repository that must be done first; ascending, each once.
    #[serde(default)]
    pub after: Vec<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    pub verb: Verb,
    /// What follows verb and flags on the line (for a request in plain words: the words). For `run`, starts with the recipe's name.
    pub text: String,
    pub flags: Flags,
    /// 1 for the first command of this normalised text in the comment, 2 for its repetition, …
    pub occurrence: u32,
}

impl Command {
    /// The one spelling of this command: equal commands have equal text, and parsing it gives the command back.
    pub fn normalised(&self) -> String {
        let mut line = format!("/zeblit {}", self.verb.name());
        for (flag, value) in
            [("agent", &self.flags.agent), ("model", &self.flags.model), ("base", &self.flags.base)]
        {
            if let Some(value) = value {
                line.push_str(&format!(" --{flag} {value}"));
            }
        }
        if let Some(micros) = self.flags.budget_micros {
            line.push_str(&format!(" --budget {}", budget::dollars_exact(micros)));
        }
        if let Some(priority) = self.flags.priority {
            line.push_str(&format!(" --priority {}", priority.as_str()));
        }
        if !self.flags.after.is_empty() {
            let numbers: Vec<_> = self.flags.after.iter().map(|number| format!("#{number}")).collect();
            line.push_str(&format!(" --after {}", numbers.join(",")));
        }
        if self.flags.staged {
            line.push_str(" --staged");
        }
        if !self.text.is_empty() {
            // Words of the text that look like flags stay words.
            let words = format!("{} {}", self.verb.name(), self.text);
            line.push_str(if split_flags(&words).plain { " " } else { " -- " });
            line.push_str(&self.text);
        }
        line
    }
}

/// A line that is addressed to the bot and cannot be obeyed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum CommandError {
    #[error("Unknown command `{word}`")]
    UnknownVerb { word: String, did_you_mean: Option<String> },
    #[error("Unknown flag `{flag}`")]
    UnknownFlag { flag: String, did_you_mean: Option<String> },
    #[error("The flag `--{flag}` {problem}")]
    BadFlag { flag: String, problem: String },
    #[error("`{verb}` {problem}")]
    BadArguments { verb: String, problem: String },
    #[error("More than {max} commands in one comment: the rest was not read")]
    TooMany { max: usize },
}

/// At most this many commands are taken from one comment.
pub const MAX_COMMANDS_PER_COMMENT: usize = 10;

/// Longest text of one command, in bytes: a request is words, not a document.
pub const MAX_TEXT_BYTES: usize = 8 * 1024;

/// This much of a comment is read, in bytes: GitHub's limit of 65 536 characters at four bytes each.
const MAX_COMMENT_BYTES: usize = 256 * 1024;

/// Longest word repeated in an error, in characters.
const MAX_WORD_CHARS: usize = 40;

/// Longest name of a recipe, in characters.
const MAX_RECIPE_CHARS: usize = 50;

/// The word that begins a command, in any case.
const PREFIX: &str = "/zeblit";

/// Most tasks that one command waits for.
const MAX_AFTER: usize = 20;

const FLAGS: &[&str] = &["agent", "model", "base", "budget", "priority", "after", STAGED];

/// The flag without a value.
const STAGED: &str = "staged";

/// Hexadecimal digits of a commit that `ok` takes: fewer would not name one commit.
const COMMIT_DIGITS: std::ops::RangeInclusive<usize> = 7..=40;

/// Verbs of later versions: never read as a request in plain words, so that they cannot start a run now.
const LATER_VERBS: &[&str] = &[
    "plan", "approve", "answer", "rebase", "recreate", "autofix", "describe", "unlock", "hold", "delegate",
    "revert",
];

/// Finds the commands of a comment, in order. Text in quotes, code, HTML, links and headings never counts.
///
/// A command begins a line of a plain paragraph or list item. Its first word decides: a verb of [`VERBS`];
/// a verb of a later version, a word that looks like a misspelt verb (see [`did_you_mean`]) or a single
/// unknown word are errors; anything else is a request in plain words, the same as `fix`. Flags are taken
/// from that line up to `--`; a `--x` that is none of ours is an error right after the verb or when it
/// resembles one of ours, else it is a word. For verbs that take free text the following lines of the same paragraph, up
/// to the next command, belong to the text; line breaks become spaces.
pub fn parse(markdown: &str) -> Vec<Result<Command, CommandError>> {
    parse_at_most(markdown, MAX_COMMANDS_PER_COMMENT)
}

/// The commands that `after` has and `before` has not: what an edit newly asks for.
/// Occurrence numbers are those of `after`, so that the semantic key of a command never shifts.
pub fn added(before: &str, after: &str) -> Vec<Result<Command, CommandError>> {
    // Without the limit: what stood beyond it before is not new because lines above it went away.
    let mut known: HashMap<String, u32> = HashMap::new();
    let before = parse_at_most(before, usize::MAX);
    if before.len() > MAX_COMMANDS_PER_COMMENT {
        known.insert(identity(&Err(CommandError::TooMany { max: MAX_COMMANDS_PER_COMMENT })), 1);
    }
    for found in before {
        *known.entry(identity(&found)).or_default() += 1;
    }
    let mut seen: HashMap<String, u32> = HashMap::new();
    parse(after)
        .into_iter()
        .filter(|found| {
            let identity = identity(found);
            let count = seen.entry(identity.clone()).or_default();
            *count += 1;
            *count > known.get(&identity).copied().unwrap_or(0)
        })
        .collect()
}

fn identity(found: &Result<Command, CommandError>) -> String {
    match found {
        Ok(command) => command.normalised(),
        Err(error) => format!("error: {error}"),
    }
}

fn parse_at_most(markdown: &str, max: usize) -> Vec<Result<Command, CommandError>> {
    let mut end = markdown.len().min(MAX_COMMENT_BYTES);
    while !markdown.is_char_boundary(end) {
        end -= 1;
    }
    let source = markdown.get(..end).unwrap_or_default();
    if !may_address(source) {
        return Vec::new();
    }
    let mut occurrences: HashMap<String, u32> = HashMap::new();
    let mut found = Vec::new();
    for lines in addressed(source) {
        if found.len() == max {
            found.push(Err(CommandError::TooMany { max }));
            break;
        }
        found.push(interpret(&lines).map(|mut command| {
            let count = occurrences.entry(command.normalised()).or_default();
            *count += 1;
            command.occurrence = *count;
            command
        }));
    }
    found
}

// --- where a command stands -------------------------------------------------------------------

/// One `/zeblit` line without its prefix, and the lines of its paragraph that follow it.
struct Addressed {
    line: String,
    following: Vec<String>,
}

/// A run of lines that is one paragraph (or the text of a tight list item).
#[derive(Default)]
struct Block {
    starts: Vec<usize>,
    end: usize,
    hidden: Vec<Range<usize>>,
}

/// Whether the bot's name stands anywhere: in most comments it does not, and nothing needs to be parsed.
fn may_address(source: &str) -> bool {
    source.match_indices('/').any(|(start, _)| {
        let word = start.checked_add(PREFIX.len()).and_then(|end| source.get(start..end));
        word.is_some_and(|word| word.eq_ignore_ascii_case(PREFIX))
    })
}

/// Whether a command may stand in any text of a JSON object, whatever way its characters are written there; cheap, for
/// bytes that nobody has read yet. Bytes of another form may hold anything.
pub fn may_stand_in_json(raw: &[u8]) -> bool {
    if raw.first() != Some(&b'{') {
        return true;
    }
    memchr::memchr2_iter(b'/', b'\\', raw).any(|at| {
        let rest = raw.get(at..).unwrap_or_default();
        let is_name =
            rest.get(..PREFIX.len()).is_some_and(|word| word.eq_ignore_ascii_case(PREFIX.as_bytes()));
        // A letter of ours as an escape: `\u002fzeblit`.
        is_name || rest.starts_with(br"\u00")
    })
}

/// The lines that are addressed to the bot, by the Markdown rules that GitHub renders with.
fn addressed(source: &str) -> Vec<Addressed> {
    let options = Options::ENABLE_TABLES
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_STRIKETHROUGH
        | Options::ENABLE_TASKLISTS
        | Options::ENABLE_MATH
        | Options::ENABLE_GFM;
    let mut blocks: Vec<Block> = vec![Block::default()];
    // Open elements in which nothing counts: quotes, code, headings, tables, links, emphasis, …
    let mut closed_to_commands = 0usize;
    let mut html = OpenHtml::default();
    for (event, range) in Parser::new_ext(source, options).into_offset_iter() {
        let is_block_edge = match &event {
            Event::Start(tag) => !is_inline(&tag.to_end()),
            Event::End(tag) => !is_inline(tag),
            Event::Rule => true,
            _ => false,
        };
        if is_block_edge {
            blocks.push(Block::default());
            html.end_of_block();
        }
        let Some(block) = blocks.last_mut() else { continue };
        match event {
            Event::Start(Tag::Paragraph | Tag::List(_) | Tag::Item) => {}
            Event::End(TagEnd::Paragraph | TagEnd::List(_) | TagEnd::Item) => {}
            Event::Start(_) => closed_to_commands += 1,
            Event::End(_) => closed_to_commands = closed_to_commands.saturating_sub(1),
            Event::Html(text) => html.read(&text, true),
            Event::InlineHtml(text) => {
                if text.starts_with("<!--") {
                    block.hidden.push(range.clone());
                }
                html.read(&text, false);
            }
            Event::Text(_)
                if closed_to_commands == 0
                    && html.is_closed()
                    && after_prefix(source, range.start).is_some()
                    && begins_line(source, range.start) =>
            {
                block.starts.push(range.start);
            }
            _ => {}
        }
        if !is_block_edge {
            block.end = block.end.max(range.end);
        }
    }
    let mail = quoted_mail_at(source).unwrap_or(source.len());
    let mut found = Vec::new();
    for block in &blocks {
        for (index, start) in block.starts.iter().copied().enumerate() {
            let end = block.starts.get(index + 1).copied().unwrap_or(block.end).min(mail);
            if let Some(begin) = after_prefix(source, start)
                && start < mail
            {
                found.push(lines_of(source, begin..end.max(begin), &block.hidden));
            }
        }
    }
    found
}

fn is_inline(tag: &TagEnd) -> bool {
    matches!(
        tag,
        TagEnd::Emphasis
            | TagEnd::Strong
            | TagEnd::Strikethrough
            | TagEnd::Superscript
            | TagEnd::Subscript
            | TagEnd::Link
            | TagEnd::Image
    )
}

/// The text of `range` with HTML comments out, as lines without indentation and hard-break marks.
fn lines_of(source: &str, range: Range<usize>, hidden: &[Range<usize>]) -> Addressed {
    let mut text = String::new();
    let mut at = range.start;
    for comment in hidden {
        if comment.start < at || comment.start >= range.end {
            continue;
        }
        text.push_str(source.get(at..comment.start).unwrap_or_default());
        text.push(' ');
        at = comment.end.min(range.end);
    }
    text.push_str(source.get(at..range.end).unwrap_or_default());
    let text = text.trim_end();
    let mut lines: Vec<String> = text
        .split(['\n', '\r'])
        .map(|line| line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>())
        .map(|line| line.trim().to_owned())
        .collect();
    let last = lines.len().saturating_sub(1);
    for line in lines.iter_mut().take(last) {
        let marks = line.chars().rev().take_while(|c| *c == '\\').count();
        if marks % 2 == 1 {
            line.pop();
        }
    }
    let following = lines.split_off(1.min(lines.len()));
    Addressed { line: lines.pop().unwrap_or_default(), following }
}

/// Most spaces and list markers before a command, in bytes: looking further back on each of many words would
/// make a hostile comment slow.
const MAX_INDENT_BYTES: usize = 200;

/// Only spaces and list markers stand between the beginning of the line and `start`.
fn begins_line(source: &str, start: usize) -> bool {
    let before = source.as_bytes().get(..start).unwrap_or_default();
    let indentation = before.iter().rev().take(MAX_INDENT_BYTES + 1);
    let length = indentation.take_while(|b| !matches!(b, b'\n' | b'\r')).count();
    let Some(line) = source.get(start - length..start).filter(|line| line.len() <= MAX_INDENT_BYTES) else {
        return false;
    };
    line.split([' ', '\t']).all(|part| {
        let number = part.strip_suffix(['.', ')']);
        part.is_empty()
            || matches!(part, "-" | "*" | "+")
            || number.is_some_and(|n| (1..=9).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit()))
    }) && (line.is_empty() || line.ends_with([' ', '\t']))
}

/// Where the text after `/zeblit` begins, when that is a word of its own at `start` of the raw text
/// (which an entity or an escape would not be).
fn after_prefix(source: &str, start: usize) -> Option<usize> {
    let end = start.checked_add(PREFIX.len())?;
    let word = source.get(start..end)?;
    let stands_alone = match source.get(end..)?.chars().next() {
        None => true,
        Some(next) => matches!(next, ' ' | '\t' | '\n' | '\r' | '\u{a0}'),
    };
    (word.eq_ignore_ascii_case(PREFIX) && stands_alone).then_some(end)
}

/// HTML elements that are open: what stands in them is no plain text, even where Markdown goes on inside.
#[derive(Default)]
struct OpenHtml {
    open: Vec<(String, bool)>,
    in_comment: bool,
}

/// Elements that keep their hold beyond the end of a paragraph.
const HTML_CONTAINERS: &[&str] = &[
    "a",
    "blockquote",
    "center",
    "code",
    "del",
    "details",
    "div",
    "dl",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "kbd",
    "ol",
    "pre",
    "q",
    "s",
    "samp",
    "script",
    "section",
    "strike",
    "style",
    "summary",
    "table",
    "template",
    "textarea",
    "title",
    "tt",
    "ul",
    "xmp",
];

/// Elements that end with their paragraph.
const HTML_INLINE: &[&str] =
    &["b", "big", "em", "font", "i", "ins", "mark", "small", "span", "strong", "sub", "sup", "u", "var"];

/// More open elements than any honest comment has; beyond it the comment counts as HTML to its end.
const MAX_OPEN_HTML: usize = 500;

impl OpenHtml {
    fn is_closed(&self) -> bool {
        self.open.is_empty()
    }

    fn end_of_block(&mut self) {
        self.open.retain(|(_, persists)| *persists);
    }

    /// Reads the tags of a piece of HTML. An HTML block comes line by line, so comments may go on.
    fn read(&mut self, text: &str, is_block: bool) {
        let mut rest = text;
        loop {
            if self.in_comment {
                let Some(end) = rest.find("-->") else { break };
                rest = rest.get(end + 3..).unwrap_or_default();
                self.in_comment = false;
            }
            let Some(at) = rest.find('<') else { break };
            rest = rest.get(at + 1..).unwrap_or_default();
            if rest.starts_with("!--") {
                // `<!-->` and `<!--->` are whole comments.
                let whole = rest.starts_with("!-->") || rest.starts_with("!--->");
                self.in_comment = is_block && !whole;
                if !is_block {
                    break;
                }
                rest = rest.get(3..).unwrap_or_default();
                continue;
            }
            let (closes, name) = match rest.strip_prefix('/') {
                Some(name) => (true, name),
                None => (false, rest),
            };
            let name: String = name
                .chars()
                .take_while(char::is_ascii_alphanumeric)
                .take(12)
                .map(|c| c.to_ascii_lowercase())
                .collect();
            let persists = HTML_CONTAINERS.contains(&name.as_str());
            if !persists && !HTML_INLINE.contains(&name.as_str()) {
                continue;
            }
            if !closes {
                if self.open.len() < MAX_OPEN_HTML {
                    self.open.push((name, persists));
                }
            } else if let Some(at) = self.open.iter().rposition(|(open, _)| *open == name) {
                self.open.remove(at);
            }
        }
    }
}

/// Where the quoted part of a mail begins that marks it with a line and not with `>`.
/// After a header that a `>` quote follows, only that quote is quoted.
fn quoted_mail_at(source: &str) -> Option<usize> {
    let mut at = 0;
    let mut previous: Option<(usize, &str)> = None;
    for line in source.split_inclusive('\n') {
        let text = line.trim();
        let begin = at;
        at += line.len();
        let header = if is_mail_header(text) {
            Some(begin)
        } else {
            // A long header is wrapped once by mail programs.
            previous
                .filter(|(_, before)| !before.is_empty() && before.len() + text.len() < MAX_MAIL_HEADER_BYTES)
                .filter(|(_, before)| is_mail_header(&format!("{before} {text}")))
                .map(|(begin, _)| begin)
        };
        if let Some(begin) = header {
            let next = source.get(at..).unwrap_or_default().trim_start();
            if !next.starts_with('>') {
                return Some(begin);
            }
        }
        previous = Some((begin, text));
    }
    None
}

/// Longest line that is taken for the header of a quoted mail, in bytes.
const MAX_MAIL_HEADER_BYTES: usize = 400;

fn is_mail_header(line: &str) -> bool {
    if line.len() > MAX_MAIL_HEADER_BYTES {
        return false;
    }
    let pairs = [
        ("On ", " wrote:"),
        ("Am ", " schrieb:"),
        ("Le ", " écrit :"),
        ("Le ", " écrit\u{a0}:"),
        ("El ", " escribió:"),
        ("Il ", " scritto:"),
        ("Op ", " schreef:"),
    ];
    let german = line.starts_with("Am ") && line.contains(" schrieb ") && line.ends_with(':');
    let ruled = line.trim_matches(['-', '_', ' ']);
    let divider = line.starts_with("--") && matches!(ruled, "Original Message" | "Forwarded message");
    german
        || divider
        || line == "Begin forwarded message:"
        || pairs.iter().any(|(begin, end)| line.starts_with(begin) && line.ends_with(end))
}

// --- what a command says ----------------------------------------------------------------------

/// The words of a line with its flags taken out.
struct Split {
    text: String,
    flags: Vec<(String, Result<String, String>)>,
    /// Nothing in the line was taken as a flag, and its end mark was not in it.
    plain: bool,
}

const SMART_DASHES: [char; 2] = ['\u{2013}', '\u{2014}'];
const QUOTES: [(char, char); 6] =
    [('"', '"'), ('\'', '\''), ('`', '`'), ('\u{201c}', '\u{201d}'), ('\u{2018}', '\u{2019}'), ('«', '»')];

/// Takes flags out of a line. Code spans and double-quoted parts are words, whatever they hold.
fn split_flags(line: &str) -> Split {
    let mut split = Split { text: String::new(), flags: Vec::new(), plain: true };
    let mut rest = line.trim();
    let mut text: Vec<&str> = Vec::new();
    // The text since the last flag, kept as typed.
    let mut kept = rest;
    let mut kept_len = 0;
    let mut words = 0usize;
    while !rest.is_empty() {
        let Some((name_length, dashes)) = flag_at(rest).filter(|flag| is_meant(rest, *flag, words)) else {
            words += 1;
            let step = word_length(rest);
            let spaces = rest.get(step..).map_or(0, |after| after.len() - after.trim_start().len());
            kept_len += step + spaces;
            rest = rest.get(step + spaces..).unwrap_or_default();
            continue;
        };
        split.plain = false;
        text.push(kept.get(..kept_len).unwrap_or_default().trim());
        let after = rest.get(dashes + name_length..).unwrap_or_default();
        if name_length == 0 {
            text.push(after.trim());
            kept_len = 0;
            break;
        }
        let name = rest.get(dashes..dashes + name_length).unwrap_or_default().to_lowercase();
        let (value, after) = match after.strip_prefix('=') {
            Some(after) => flag_value(after),
            None if name == STAGED => (Ok(String::new()), after),
            None if FLAGS.contains(&name.as_str()) => flag_value(after.trim_start()),
            None => (Ok(String::new()), after),
        };
        split.flags.push((name, value));
        rest = after.trim_start();
        kept = rest;
        kept_len = 0;
    }
    text.push(kept.get(..kept_len).unwrap_or_default().trim());
    text.retain(|part| !part.is_empty());
    split.text = text.join(" ");
    split
}

/// Whether what looks like a flag is one, `words` words into the line.
fn is_meant(rest: &str, (name_length, dashes): (usize, usize), words: usize) -> bool {
    let name = rest.get(dashes..dashes + name_length).unwrap_or_default().to_lowercase();
    name.is_empty() || words <= 1 || nearest(&name, FLAGS.iter().copied()).is_some()
}

/// Length of the flag's name and of its dashes at the beginning of `rest`; a name of length 0 is `--` alone.
/// A dash that a phone made out of `--` counts only before a known name: in prose it is a dash.
fn flag_at(rest: &str) -> Option<(usize, usize)> {
    if let Some(after) = rest.strip_prefix("--") {
        let first = after.chars().next();
        return match first {
            None => Some((0, 2)),
            Some(c) if c.is_whitespace() => Some((0, 2)),
            Some(c) if c.is_alphabetic() => Some((name_length(after), 2)),
            _ => None,
        };
    }
    let after = rest.strip_prefix(SMART_DASHES)?;
    let length = name_length(after);
    let known = FLAGS.contains(&after.get(..length)?.to_lowercase().as_str());
    known.then_some((length, rest.len() - after.len()))
}

fn name_length(text: &str) -> usize {
    text.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(text.len())
}

/// A flag's value, quoted or not, and what follows it.
fn flag_value(rest: &str) -> (Result<String, String>, &str) {
    let missing = || Err("needs a value".to_owned());
    let Some(first) = rest.chars().next() else { return (missing(), rest) };
    if first.is_whitespace() || flag_at(rest).is_some() {
        return (missing(), rest);
    }
    if let Some((open, close)) = QUOTES.iter().find(|(open, _)| *open == first) {
        let inner = rest.get(open.len_utf8()..).unwrap_or_default();
        return match inner.find(*close) {
            Some(end) => {
                let after = inner.get(end + close.len_utf8()..).unwrap_or_default();
                (Ok(inner.get(..end).unwrap_or_default().trim().to_owned()), after)
            }
            None => (Err(format!("has a value that begins with {open} and does not end with {close}")), ""),
        };
    }
    let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
    (Ok(rest.get(..end).unwrap_or_default().to_owned()), rest.get(end..).unwrap_or_default())
}

/// Length of the word at the beginning of `rest`; a code span or a double-quoted part is one word.
fn word_length(rest: &str) -> usize {
    let mut at = 0;
    while let Some(next) = rest.get(at..).and_then(|tail| tail.chars().next()) {
        if next.is_whitespace() {
            break;
        }
        let tail = rest.get(at..).unwrap_or_default();
        at += match next {
            '`' => code_span_length(tail),
            '"' if at == 0 => quoted_length(tail, '"'),
            '\u{201c}' if at == 0 => quoted_length(tail, '\u{201d}'),
            _ => next.len_utf8(),
        };
    }
    at
}

fn code_span_length(tail: &str) -> usize {
    let ticks = |text: &str| text.bytes().take_while(|b| *b == b'`').count();
    let open = ticks(tail);
    let mut at = open;
    while let Some(found) = tail.get(at..).and_then(|rest| rest.find('`')) {
        let run = ticks(tail.get(at + found..).unwrap_or_default());
        at += found + run;
        if run == open {
            return at;
        }
    }
    open
}

fn quoted_length(tail: &str, close: char) -> usize {
    let open = tail.chars().next().map_or(1, char::len_utf8);
    match tail.get(open..).and_then(|rest| rest.find(close)) {
        Some(end) => open + end + close.len_utf8(),
        None => open,
    }
}

fn takes_free_text(verb: Verb) -> bool {
    matches!(verb, Verb::Fix | Verb::Ask | Verb::Review | Verb::Continue)
}

fn interpret(lines: &Addressed) -> Result<Command, CommandError> {
    let Split { text, flags, .. } = split_flags(&lines.line);
    let word = text.split(char::is_whitespace).next().unwrap_or_default();
    let rest = text.get(word.len()..).unwrap_or_default().trim();
    let has_more = lines.following.iter().any(|line| !line.is_empty());
    let flags = read_flags(flags)?;
    let (verb, text) = match verb_of(word) {
        Some(verb) => (verb, rest.to_owned()),
        // Nothing but `/zeblit`: the lines below it are the request, or it asks for help.
        None if word.is_empty() && has_more => (Verb::Fix, String::new()),
        None if word.is_empty() && lines.line.is_empty() => (Verb::Help, String::new()),
        None => (Verb::Fix, plain_request(word, &text, has_more)?),
    };
    let ends_all = bare(word) == "cancel";
    let text = if ends_all { String::new() } else { text };
    let text = arguments(verb, text, &flags, &lines.following)?;
    Ok(Command { verb, text, flags, occurrence: 1 })
}

/// A first word without the punctuation that people put after it (`fix:`, `help!`).
fn bare(word: &str) -> String {
    let trimmed = word.trim_end_matches([':', ',', '.', ';', '!', '?']);
    if trimmed.is_empty() { word.to_lowercase() } else { trimmed.to_lowercase() }
}

fn verb_of(word: &str) -> Option<Verb> {
    let word = bare(word);
    VERBS.iter().find(|info| info.names.contains(&word.as_str())).map(|info| info.verb)
}

/// The words are the request, unless their first looks like a verb that we do not have.
fn plain_request(word: &str, text: &str, has_more: bool) -> Result<String, CommandError> {
    let name = bare(word);
    let words = text.split_whitespace().count();
    let later = LATER_VERBS.contains(&name.as_str());
    let near = did_you_mean(&name).filter(|verb| {
        // A short line is a command, a longer one mostly prose ("preview the page …").
        words <= 3 || (name.chars().count() >= 5 && distance(&name, verb) == 1)
    });
    if later || near.is_some() || (words <= 1 && !has_more) {
        let did_you_mean = if later { None } else { near.map(str::to_owned) };
        return Err(CommandError::UnknownVerb { word: shown(word), did_you_mean });
    }
    Ok(text.to_owned())
}

fn arguments(
    verb: Verb,
    mut text: String,
    flags: &Flags,
    following: &[String],
) -> Result<String, CommandError> {
    let bad = |problem: String| Err(CommandError::BadArguments { verb: verb.name().to_owned(), problem });
    if takes_free_text(verb) {
        for line in following.iter().filter(|line| !line.is_empty()) {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(line);
        }
    }
    if text.len() > MAX_TEXT_BYTES {
        return bad(format!(
            "has a text of {} bytes, the limit is {MAX_TEXT_BYTES}: put the details in the description or a file",
            text.len()
        ));
    }
    if !verb.info().starts_run && *flags != Flags::default() {
        return bad("takes no flags".to_owned());
    }
    // Words after `cancel` are a reason; elsewhere more than politeness would be lost without a word.
    let polite = |word: &str| {
        matches!(bare(word).as_str(), "please" | "now" | "thanks" | "thank" | "you" | "it" | "this" | "run")
    };
    match verb {
        Verb::Cancel | Verb::Status | Verb::Budget | Verb::Ping | Verb::Retry => {
            if !text.split_whitespace().all(polite) {
                return bad(
                    "takes no text: to ask for a change in these words, write `/zeblit fix` before them"
                        .to_owned(),
                );
            }
            Ok(String::new())
        }
        Verb::Ok => {
            let commit = text.split_whitespace().next().unwrap_or_default().trim_matches('`').to_lowercase();
            let more = text.split_whitespace().skip(1).all(polite);
            let hex = commit.bytes().all(|b| b.is_ascii_hexdigit());
            if more && hex && COMMIT_DIGITS.contains(&commit.len()) {
                Ok(commit)
            } else {
                bad(format!(
                    "needs the commit that you have read, at least {} digits of it: `/zeblit ok 0123abc`",
                    COMMIT_DIGITS.start()
                ))
            }
        }
        Verb::Ask if text.is_empty() => bad("needs a question: `/zeblit ask why is … slow?`".to_owned()),
        Verb::Run => {
            let recipe = text.split_whitespace().next().unwrap_or_default();
            let valid = (1..=MAX_RECIPE_CHARS).contains(&recipe.len())
                && recipe.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !recipe.starts_with('-');
            if recipe.is_empty() {
                bad("needs the name of a recipe: `/zeblit run <recipe>`".to_owned())
            } else if valid {
                Ok(text)
            } else {
                bad(format!(
                    "needs the name of a recipe (small letters, digits and `-`, at most {MAX_RECIPE_CHARS}), \
                     not `{}`",
                    shown(recipe)
                ))
            }
        }
        _ => Ok(text),
    }
}

fn read_flags(found: Vec<(String, Result<String, String>)>) -> Result<Flags, CommandError> {
    let mut flags = Flags::default();
    for (name, value) in found {
        let Some(known) = FLAGS.iter().copied().find(|known| *known == name) else {
            return Err(CommandError::UnknownFlag {
                flag: format!("--{}", shown(&name)),
                did_you_mean: nearest(&name, FLAGS.iter().copied()).map(str::to_owned),
            });
        };
        let bad = |problem: String| CommandError::BadFlag { flag: known.to_owned(), problem };
        let value = value.map_err(bad)?;
        if known == STAGED {
            if !value.is_empty() {
                return Err(bad("takes no value".to_owned()));
            }
            flags.staged = true;
            continue;
        }
        let slot = match known {
            "priority" => {
                if flags.priority.is_some() {
                    return Err(bad("is given twice".to_owned()));
                }
                let priority = Priority::parse(&value.to_lowercase()).ok_or_else(|| {
                    bad(format!("needs `high`, `default` or `low`, not `{}`", shown(&value)))
                })?;
                flags.priority = Some(priority);
                continue;
            }
            "after" => {
                flags.after.extend(numbers(&value).map_err(bad)?);
                flags.after.sort_unstable();
                flags.after.dedup();
                if flags.after.len() > MAX_AFTER {
                    return Err(bad(format!("takes at most {MAX_AFTER} numbers")));
                }
                continue;
            }
            "agent" => &mut flags.agent,
            "model" => &mut flags.model,
            "base" => &mut flags.base,
            _ => {
                if flags.budget_micros.is_some() {
                    return Err(bad("is given twice".to_owned()));
                }
                let micros = budget::parse_dollars(&value).ok_or_else(|| {
                    bad(format!(
                        "needs US dollars between 0.000001 and 1000000, like `2.5`, not `{}`",
                        shown(&value)
                    ))
                })?;
                flags.budget_micros = Some(micros);
                continue;
            }
        };
        if slot.is_some() {
            return Err(bad("is given twice".to_owned()));
        }
        check_name(known, &value).map_err(bad)?;
        *slot = Some(value);
    }
    Ok(flags)
}

/// `#12`, or several with commas.
fn numbers(value: &str) -> Result<Vec<i64>, String> {
    let number = |part: &str| {
        let digits = part.trim().trim_start_matches('#');
        digits.parse::<i64>().ok().filter(|number| *number > 0 && digits.bytes().all(|b| b.is_ascii_digit()))
    };
    value
        .split(',')
        .map(|part| {
            number(part)
                .ok_or_else(|| format!("needs the number of an issue, like `#12`, not `{}`", shown(part)))
        })
        .collect()
}

/// Whether `value` can be the name of an agent, a model or a branch.
fn check_name(flag: &str, value: &str) -> Result<(), String> {
    let starts_well = value.starts_with(|c: char| c.is_ascii_alphanumeric());
    let of = |extra: &str, max: usize| {
        starts_well
            && value.len() <= max
            && value.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
    };
    let (valid, what) = match flag {
        "agent" => (of("-_.", 64), "the name of an agent (letters, digits, `-`, `_`, `.`, at most 64)"),
        "model" => {
            (of("-_.:/@+[]", 100), "the name of a model (letters, digits and `-_.:/@+[]`, at most 100)")
        }
        _ => (BranchName::parse(value).is_ok(), "the name of a branch"),
    };
    if valid { Ok(()) } else { Err(format!("needs {what}, not `{}`", shown(value))) }
}

/// A word of a comment as it may be repeated in an answer: short, nothing in it but plain characters.
fn shown(word: &str) -> String {
    let plain: String = word
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '+' | '=' | '?' | ':' | ','))
        .take(MAX_WORD_CHARS)
        .collect();
    if plain.is_empty() { "?".to_owned() } else { plain }
}

/// The verb that `word` is probably meant to be: at most one slip of the finger in a word of up to four
/// letters, at most two in a longer one (a slip: a letter too many, too few, wrong, or two swapped).
pub fn did_you_mean(word: &str) -> Option<&'static str> {
    nearest(&bare(word), VERBS.iter().flat_map(|info| info.names.iter().copied()))
}

fn nearest<'n>(word: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let length = word.chars().count();
    if !(2..=MAX_WORD_CHARS).contains(&length) {
        return None;
    }
    let allowed = if length <= 4 { 1 } else { 2 };
    names
        .filter(|name| name.len() > 1)
        .map(|name| (distance(word, name), name))
        .filter(|(slips, _)| *slips <= allowed)
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, name)| name)
}

/// Optimal string alignment distance. Both words are short (see `nearest`).
pub(super) fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, to) in b.iter().enumerate() {
            let at = |row: &[usize], index: usize| row.get(index).copied().unwrap_or(usize::MAX / 2);
            let mut best =
                (at(&row, j) + usize::from(from != to)).min(at(&row, j + 1) + 1).min(at(&next, j) + 1);
            let swapped = i > 0 && j > 0 && a.get(i - 1) == Some(to) && b.get(j - 1) == Some(from);
            if swapped {
                best = best.min(at(&before, j - 1) + 1);
            }
            next.push(best);
        }
        before = std::mem::replace(&mut row, next);
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One line for all that a comment asks: the normalised commands, or `!` and the error.
    fn outcome(markdown: &str) -> String {
        let one = |found: &Result<Command, CommandError>| match found {
            Ok(command) => command.normalised().replace("/zeblit ", ""),
            Err(error) => {
                let near = match error {
                    CommandError::UnknownVerb { did_you_mean: Some(near), .. }
                    | CommandError::UnknownFlag { did_you_mean: Some(near), .. } => format!(" → {near}"),
                    _ => String::new(),
                };
                format!("!{error}{near}")
            }
        };
        parse(markdown).iter().map(one).collect::<Vec<_>>().join(" | ")
    }

    #[track_caller]
    fn check(markdown: &str, expected: &str) {
        assert_eq!(outcome(markdown), expected, "of {markdown:?}");
    }

    #[test]
    fn every_verb_and_alias_is_understood() {
        check("/zeblit fix", "fix");
        check("/zeblit fix the parser", "fix the parser");
        check("/zeblit run fmt", "run fmt");
        check("/zeblit run fmt src tests", "run fmt src tests");
        check("/zeblit review", "review");
        check("/zeblit review the error paths", "review the error paths");
        check("/zeblit ask why is it slow?", "ask why is it slow?");
        check("/zeblit retry", "retry");
        check("/zeblit retry --agent codex", "retry --agent codex");
        check("/zeblit continue", "continue");
        check("/zeblit continue with the tests", "continue with the tests");
        check("/zeblit cancel", "cancel");
        check("/zeblit stop", "cancel");
        check("/zeblit status", "status");
        check("/zeblit info", "status");
        check("/zeblit help", "help");
        check("/zeblit ?", "help");
        check("/zeblit ping", "ping");
        check("/zeblit", "help");
        check("  /zeblit  ", "help");
        for info in VERBS {
            assert_eq!(info.verb.info().usage, info.usage);
            assert!(info.usage.starts_with(&format!("/zeblit {}", info.verb.name())));
        }
    }

    #[test]
    fn case_spaces_and_punctuation_do_not_matter() {
        check("/Zeblit fix", "fix");
        check("/ZEBLIT FIX the Parser", "fix the Parser");
        check("/zeblit   fix    it", "fix it");
        check("/zeblit\tfix\tit", "fix it");
        check("   /zeblit fix", "fix");
        check("/zeblit fix: the parser", "fix the parser");
        check("/zeblit fix, please", "fix please");
        check("/zeblit help!", "help");
        check("/zeblit status?", "status");
        check("/zeblit cancel.", "cancel");
        check("/zeblit\u{a0}fix it", "fix it");
        check("/zeblit fix it   ", "fix it");
        check("/zeblit fix it\r\n", "fix it");
        check("/zeblit fix it\r\n\r\n/zeblit ping", "fix it | ping");
        check("/zeblit cancel please", "cancel");
        check("/zeblit cancel this run, thanks", "cancel");
        check("/zeblit cancel it goes the wrong way", "cancel");
        check("/zeblit stop it now", "cancel");
    }

    #[test]
    fn plain_words_are_a_request() {
        check("/zeblit please fix the bug", "fix please fix the bug");
        check("/zeblit make the tests pass", "fix make the tests pass");
        check("/zeblit add a test for `foo()`", "fix add a test for `foo()`");
        check("/zeblit preview the page before it is saved", "!Unknown command `preview` → review");
        check("/zeblit refactor this", "fix refactor this");
        check("/zeblit the thing is broken", "fix the thing is broken");
        check("/zeblit `fix` is a word", "fix `fix` is a word");
        check("/zeblit the `fix` verb", "fix the `fix` verb");
        check("/zeblit 修复 这个 错误", "fix 修复 这个 错误");
    }

    #[test]
    fn the_rest_of_the_line_is_kept_as_typed() {
        check("/zeblit fix the `foo()` bug", "fix the `foo()` bug");
        check("/zeblit fix `a  b` and *c*", "fix `a  b` and *c*");
        check("/zeblit fix a \\* b &amp; c", "fix a \\* b &amp; c");
        check("/zeblit fix [the docs](https://x.y/z)", "fix [the docs](https://x.y/z)");
        check("/zeblit fix <https://x.y>", "fix <https://x.y>");
        check("/zeblit fix Vec<String> and HashMap<K, V>", "fix Vec<String> and HashMap<K, V>");
        check("/zeblit fix #12 for @ann", "fix #12 for @ann");
        check("/zeblit fix $a$ and $b$", "fix $a$ and $b$");
        check("/zeblit fix the a | b table", "fix the a | b table");
        check("/zeblit fix ![x](y.png)", "fix ![x](y.png)");
        check("/zeblit fix don't say \"no\"", "fix don't say \"no\"");
        check("/zeblit fix 🐛 now", "fix 🐛 now");
        check("/zeblit fix a <!-- hidden --> b", "fix a   b");
        check("/zeblit fix a <!-- --agent evil --> b", "fix a   b");
        check("/zeblit fix `<!-- shown -->`", "fix `<!-- shown -->`");
    }

    #[test]
    fn following_lines_of_the_paragraph_belong_to_free_text() {
        check("/zeblit fix the parser\nand the lexer", "fix the parser and the lexer");
        check("/zeblit fix\nthe parser", "fix the parser");
        check("/zeblit fix the parser  \nand the lexer", "fix the parser and the lexer");
        check("/zeblit fix the parser\\\nand the lexer", "fix the parser and the lexer");
        check("/zeblit ask why\nis it slow", "ask why is it slow");
        check("/zeblit review\nthe errors", "review the errors");
        check("/zeblit continue\nwith docs", "continue with docs");
        check("/zeblit please\ndo it", "fix please do it");
        check("/zeblit\nplease do it", "fix please do it");
        check("/zeblit --agent a\nplease do it", "fix --agent a please do it");
        check("/zeblit fix the parser\n\nThanks, Ann", "fix the parser");
        check("/zeblit status\nThanks, Ann", "status");
        check("/zeblit\n\nThanks, Ann", "help");
        check("/zeblit run fmt\nThanks, Ann", "run fmt");
        check("/zeblit cancel\\\nThanks, Ann", "cancel");
        check("/zeblit fix a\n- b\n- c", "fix a");
        check("/zeblit fix a\n```\ncode\n```", "fix a");
        check("/zeblit fix a\n> quote", "fix a");
        check("/zeblit fix a\nwith --agent x", "fix -- a with --agent x");
        check("/zeblit fix a\nwith --verbose", "fix a with --verbose");
        check("- /zeblit fix a\n  and b\n- c", "fix a and b");
    }

    #[test]
    fn several_commands_may_stand_in_one_comment() {
        check("/zeblit fix a\n/zeblit ask b", "fix a | ask b");
        check("/zeblit fix a\n\n/zeblit ask b", "fix a | ask b");
        check("Hello\n/zeblit fix a\nmore\n/zeblit ping", "fix a more | ping");
        check("text\n\n/zeblit ping\n\ntext\n\n/zeblit status", "ping | status");
        check("- /zeblit ping\n- /zeblit status", "ping | status");
        check("1. /zeblit ping\n2. /zeblit status", "ping | status");
        check("* /zeblit ping\n\n* /zeblit status", "ping | status");
        check("- a\n  - /zeblit ping", "ping");
        check("- - /zeblit ping", "ping");
        check("- a\n\n  /zeblit ping", "ping");
        let many = "/zeblit ping\n".repeat(12);
        let found = parse(&many);
        assert_eq!(found.len(), MAX_COMMANDS_PER_COMMENT + 1);
        assert_eq!(found.last(), Some(&Err(CommandError::TooMany { max: MAX_COMMANDS_PER_COMMENT })));
    }

    #[test]
    fn the_command_is_a_word_of_its_own_at_the_beginning_of_a_line() {
        for silent in [
            "",
            "hello",
            "please /zeblit fix",
            "x/zeblit fix",
            "//zeblit fix",
            "/zeblitfix",
            "/zeblit-fix",
            "/zeblit/fix",
            "/zeblit: fix",
            "/zeblit, fix",
            "/zebli fix",
            "zeblit fix",
            "@zeblit fix",
            "./zeblit fix",
            "\\/zeblit fix",
            "&#47;zeblit fix",
            "&sol;zeblit fix",
            "Use /zeblit fix to start",
            "(/zeblit fix)",
            "\"/zeblit fix\"",
            "see\n> it\n\nand then /zeblit fix",
            "- [ ] /zeblit fix",
            "- [x] /zeblit fix",
            ": /zeblit fix",
            "/ zeblit fix",
            "/zeblit\u{2028}fix",
        ] {
            check(silent, "");
        }
    }

    #[test]
    fn hidden_characters_never_trigger() {
        for hidden in [
            "\u{200b}",
            "\u{200c}",
            "\u{200d}",
            "\u{2060}",
            "\u{feff}",
            "\u{200e}",
            "\u{200f}",
            "\u{202a}",
            "\u{202e}",
            "\u{2066}",
            "\u{ad}",
            "\u{34f}",
            "\u{e0041}",
            "\u{fe0f}",
            "\u{180e}",
            "\u{3164}",
            "\u{a0}",
            "\u{2003}",
            "\u{0}",
            "\u{8}",
            "\u{1b}",
        ] {
            check(&format!("{hidden}/zeblit fix"), "");
            check(&format!("text\n{hidden}/zeblit fix"), "");
            check(&format!("/zeb{hidden}lit fix"), "");
            if hidden != "\u{a0}" {
                check(&format!("/zeblit{hidden} fix"), "");
            }
        }
        check("/zеblit fix", "");
        check("／zeblit fix", "");
        check("⁄zeblit fix", "");
    }

    #[test]
    fn quotes_never_trigger() {
        for silent in [
            "> /zeblit fix",
            ">/zeblit fix",
            ">> /zeblit fix",
            "> a\n/zeblit fix",
            "> a\n> /zeblit fix",
            "- > /zeblit fix",
            "> - /zeblit fix",
            "> [!NOTE]\n> /zeblit fix",
            "> 1. a\n>\n>    /zeblit fix",
            "   > /zeblit fix",
            "On Mon, 5 Jan 2026 at 10:00, Ann <a@b.c> wrote:\n\n/zeblit fix",
            "On Mon, 5 Jan 2026 at 10:00, Ann <a@b.c> wrote:\n> /zeblit fix",
            "On Mon, 5 Jan 2026 at 10:00, Ann\n<a@b.c> wrote:\n\n/zeblit fix",
            "Am 5.1.2026 um 10:00 schrieb Ann:\n\n/zeblit fix",
            "Le lun. 5 janv. 2026 à 10:00, Ann a écrit :\n\n/zeblit fix",
            "-----Original Message-----\nFrom: Ann\n\n/zeblit fix",
            "Begin forwarded message:\n\n/zeblit fix",
        ] {
            check(silent, "");
        }
        check("> quote\n\n/zeblit fix that", "fix that");
        check("/zeblit fix that\n\nOn Monday Ann wrote:\n\n/zeblit cancel", "fix that");
        check("On Monday Ann wrote:\n> it is broken\n\n/zeblit fix that", "fix that");
        check("/zeblit fix that\nOn Monday Ann wrote:\nold text", "fix that");
    }

    #[test]
    fn code_never_triggers() {
        for silent in [
            "`/zeblit fix`",
            "``/zeblit fix``",
            "```\n/zeblit fix\n```",
            "```sh\n/zeblit fix\n```",
            "~~~\n/zeblit fix\n~~~",
            "```\n/zeblit fix",
            "    /zeblit fix",
            "\t/zeblit fix",
            "text `a\n/zeblit fix` b",
            "- ```\n  /zeblit fix\n  ```",
            "-     /zeblit fix",
            "````\n```\n/zeblit fix\n```\n````",
            "$$\n/zeblit fix\n$$",
        ] {
            check(silent, "");
        }
        check("```\ncode\n```\n/zeblit fix", "fix");
        check("``` is no fence `here\n/zeblit fix", "fix");
        check("text ` lonely\n/zeblit fix it", "fix it");
    }

    #[test]
    fn html_never_triggers() {
        for silent in [
            "<!-- /zeblit fix -->",
            "<!--\n/zeblit fix\n-->",
            "text <!--\n/zeblit fix\n--> text",
            "<!--\n\n/zeblit fix\n\n-->",
            "<div>\n/zeblit fix\n</div>",
            "<details>\n\n/zeblit fix\n\n</details>",
            "<details><summary>x</summary>\n\n/zeblit fix",
            "<blockquote>\n\n/zeblit fix\n\n</blockquote>",
            "<BLOCKQUOTE class=\"x\">\n\n/zeblit fix",
            "<pre>\n\n/zeblit fix\n\n</pre>",
            "<table><tr><td>\n\n/zeblit fix\n\n</td></tr></table>",
            "a <del>b\n/zeblit fix</del>",
            "a <b>b\n/zeblit fix</b>",
            "a <code>b\n/zeblit fix</code>",
            "a <kbd>b\n\n/zeblit fix",
            "<script>\n\n/zeblit fix\n\n</script>",
            "<p>/zeblit fix</p>",
            "<b>/zeblit fix</b>",
            "<x>\n/zeblit fix",
            "<a href=\"\n/zeblit fix\n\">x</a>",
            "<a title='\n/zeblit fix\n'>x</a>",
            "<?php\n/zeblit fix\n?>",
            "<![CDATA[\n/zeblit fix\n]]>",
            "<!DOCTYPE\n/zeblit fix\n>",
        ] {
            check(silent, "");
        }
        check("<details>\n\nlog\n\n</details>\n\n/zeblit fix", "fix");
        check("<!-- note -->\n\n/zeblit fix", "fix");
        check("<!-- <details> -->\n\n/zeblit fix", "fix");
        check("Vec<String> is wrong\n\n/zeblit fix it", "fix it");
        check("a <br> b\n/zeblit fix it", "fix it");
        check("a <b>b</b> c\n/zeblit fix it", "fix it");
    }

    #[test]
    fn headings_links_tables_and_emphasis_never_trigger() {
        for silent in [
            "# /zeblit fix",
            "###### /zeblit fix",
            "/zeblit fix\n===",
            "/zeblit fix\n---",
            "[/zeblit fix](https://x.y)",
            "[a\n/zeblit fix](https://x.y)",
            "![/zeblit fix](https://x.y/z.png)",
            "![a\n/zeblit fix](https://x.y/z.png)",
            "[x]: https://x.y\n'\n/zeblit fix\n'",
            "[x]:\n/zeblit",
            "**/zeblit fix**",
            "*/zeblit fix*",
            "*a\n/zeblit fix*",
            "~~/zeblit fix~~",
            "~~a\n/zeblit fix~~",
            "| a |\n|---|\n| /zeblit fix |",
            "a | b\n--- | ---\n/zeblit fix | c",
            "/zeblit fix | c\n--- | ---\na | b",
            "[^1]: /zeblit fix\n\nx[^1]",
        ] {
            check(silent, "");
        }
    }

    #[test]
    fn flags_stand_anywhere_on_the_line() {
        check("/zeblit fix --agent codex the parser", "fix --agent codex the parser");
        check("/zeblit fix the parser --agent codex", "fix --agent codex the parser");
        check("/zeblit fix the --agent codex parser", "fix --agent codex the parser");
        check("/zeblit --agent codex fix the parser", "fix --agent codex the parser");
        check("/zeblit --agent codex make tests pass", "fix --agent codex make tests pass");
        check("/zeblit fix --agent=codex it", "fix --agent codex it");
        check("/zeblit fix --Agent=codex it", "fix --agent codex it");
        check(
            "/zeblit fix --model anthropic/claude-sonnet-4.5 it",
            "fix --model anthropic/claude-sonnet-4.5 it",
        );
        check("/zeblit fix --base release/1.2 it", "fix --base release/1.2 it");
        check("/zeblit fix --budget 2.50 it", "fix --budget 2.5 it");
        check("/zeblit fix --budget=$5 it", "fix --budget 5 it");
        check(
            "/zeblit fix --budget 1 --base main --model m --agent a it",
            "fix --agent a --model m --base main --budget 1 it",
        );
        check("/zeblit fix --agent \"codex\" it", "fix --agent codex it");
        check("/zeblit fix --agent='codex' it", "fix --agent codex it");
        check("/zeblit fix --agent `codex` it", "fix --agent codex it");
        check("/zeblit fix --agent “codex” it", "fix --agent codex it");
        check("/zeblit fix —agent codex it", "fix --agent codex it");
        check("/zeblit fix –agent=codex it", "fix --agent codex it");
        check("/zeblit run fmt --budget 1", "run --budget 1 fmt");
    }

    #[test]
    fn dashes_in_prose_and_after_the_end_mark_are_words() {
        check("/zeblit fix it — it is broken", "fix it — it is broken");
        check("/zeblit fix it —really", "fix it —really");
        check("/zeblit fix the -x option", "fix the -x option");
        check("/zeblit fix a --- b", "fix a --- b");
        check("/zeblit fix -- the --verbose flag", "fix the --verbose flag");
        check("/zeblit fix the --verbose flag", "fix the --verbose flag");
        check("/zeblit make --verbose work", "!Unknown flag `--verbose`");
        check("/zeblit fix the --agnet flag", "!Unknown flag `--agnet` → agent");
        check("/zeblit fix -- --verbose is broken", "fix -- --verbose is broken");
        check("/zeblit run fmt --check src", "run fmt --check src");
        check("/zeblit fix --agent a -- use --agent b", "fix --agent a -- use --agent b");
        check("/zeblit fix the `--verbose` flag", "fix the `--verbose` flag");
        check("/zeblit fix `cargo run --verbose` please", "fix `cargo run --verbose` please");
        check("/zeblit fix \"cargo run --verbose\" please", "fix \"cargo run --verbose\" please");
        check("/zeblit run fmt -- --check src", "run fmt --check src");
        check("/zeblit run fmt -- --model x", "run -- fmt --model x");
        check("/zeblit --", "!Unknown command `?`");
        check("/zeblit fix --", "fix");
        check("/zeblit fix -- -- x", "fix -- -- x");
    }

    #[test]
    fn wrong_flags_are_told() {
        check("/zeblit fix --agnet codex", "!Unknown flag `--agnet` → agent");
        check("/zeblit fix --verbose", "!Unknown flag `--verbose`");
        check("/zeblit fix --modle=x it", "!Unknown flag `--modle` → model");
        check("/zeblit fix --agent", "!The flag `--agent` needs a value");
        check("/zeblit fix --agent= it", "!The flag `--agent` needs a value");
        check("/zeblit fix --agent --model x", "!The flag `--agent` needs a value");
        check("/zeblit fix --agent a --agent b", "!The flag `--agent` is given twice");
        check("/zeblit fix --budget 1 --budget 2", "!The flag `--budget` is given twice");
        check(
            "/zeblit fix --budget lots",
            "!The flag `--budget` needs US dollars between 0.000001 and 1000000, like `2.5`, not `lots`",
        );
        check(
            "/zeblit fix --budget 0",
            "!The flag `--budget` needs US dollars between 0.000001 and 1000000, like `2.5`, not `0`",
        );
        check(
            "/zeblit fix --agent ../x",
            "!The flag `--agent` needs the name of an agent (letters, digits, `-`, `_`, `.`, at most 64), not `../x`",
        );
        check("/zeblit fix --base -x", "!The flag `--base` needs the name of a branch, not `-x`");
        check("/zeblit fix --base a..b", "!The flag `--base` needs the name of a branch, not `a..b`");
        check(
            "/zeblit fix --model \"a b\"",
            "!The flag `--model` needs the name of a model (letters, digits and `-_.:/@+[]`, at most 100), not `ab`",
        );
        check(
            "/zeblit fix --agent \"codex",
            "!The flag `--agent` has a value that begins with \" and does not end with \"",
        );
        check("/zeblit status --agent x", "!`status` takes no flags");
        check("/zeblit cancel --budget 1", "!`cancel` takes no flags");
    }

    #[test]
    fn unknown_verbs_are_told_and_do_no_harm() {
        check("/zeblit fxi", "!Unknown command `fxi` → fix");
        check("/zeblit fi", "!Unknown command `fi` → fix");
        check("/zeblit reveiw", "!Unknown command `reveiw` → review");
        check("/zeblit reviw the parser for all bugs", "!Unknown command `reviw` → review");
        check("/zeblit stauts", "!Unknown command `stauts` → status");
        check("/zeblit halp", "!Unknown command `halp` → help");
        check("/zeblit cancle it", "!Unknown command `cancle` → cancel");
        check("/zeblit retyr", "!Unknown command `retyr` → retry");
        check("/zeblit bug", "!Unknown command `bug`");
        check("/zeblit frobnicate", "!Unknown command `frobnicate`");
        check("/zeblit x", "!Unknown command `x`");
        for later in LATER_VERBS {
            check(&format!("/zeblit {later}"), &format!("!Unknown command `{later}`"));
            check(&format!("/zeblit {later} this and that now"), &format!("!Unknown command `{later}`"));
        }
        check("/zeblit <img src=x>@ann", "fix <img src=x>@ann");
        check("/zeblit @ann`[x](y)", "!Unknown command `annxy`");
    }

    #[test]
    fn wrong_arguments_are_told() {
        check("/zeblit ask", "!`ask` needs a question: `/zeblit ask why is … slow?`");
        check("/zeblit run", "!`run` needs the name of a recipe: `/zeblit run <recipe>`");
        for bad in ["Fmt", "a_b", "../x", "-x", "a;b"] {
            let said = outcome(&format!("/zeblit run {bad}"));
            assert!(said.starts_with("!`run` needs the name of a recipe ("), "{bad}: {said}");
        }
        let long = "a".repeat(MAX_RECIPE_CHARS + 1);
        assert!(outcome(&format!("/zeblit run {long}")).starts_with("!`run` needs"));
        for verb in ["stop crashing on empty input", "status page is ugly", "ping pong"] {
            let said = outcome(&format!("/zeblit {verb}"));
            assert!(said.contains("takes no text"), "{verb}: {said}");
        }
        assert!(outcome("/zeblit retry with more tests").contains("takes no text"));
        check("/zeblit help fix", "help fix");
        let said = outcome(&format!("/zeblit fix {}", "word ".repeat(3_000)));
        assert!(said.contains("the limit is 8192"), "{said}");
        let just = "a".repeat(MAX_TEXT_BYTES);
        check(&format!("/zeblit fix {just}"), &format!("fix {just}"));
    }

    #[test]
    fn equal_commands_are_counted() {
        let found = parse("/zeblit fix a\n\n/zeblit fix b\n\n/zeblit FIX:  a\n\n/zeblit nope");
        let counts: Vec<u32> = found.iter().flatten().map(|command| command.occurrence).collect();
        assert_eq!(counts, [1, 1, 2]);
    }

    #[test]
    fn an_edit_asks_only_for_what_it_adds() {
        let new = |before: &str, after: &str| {
            added(before, after)
                .iter()
                .map(|found| match found {
                    Ok(command) => format!("{} #{}", command.normalised(), command.occurrence),
                    Err(error) => format!("!{error}"),
                })
                .collect::<Vec<_>>()
                .join(" | ")
        };
        assert_eq!(new("/zeblit fix a", "/zeblit fix a"), "");
        assert_eq!(new("/zeblit fix a", "more words\n\n/zeblit  fix a\n\nend"), "");
        assert_eq!(new("hello", "hello\n\n/zeblit fix a"), "/zeblit fix a #1");
        assert_eq!(new("/zeblit fix a", "/zeblit fix b"), "/zeblit fix b #1");
        assert_eq!(new("/zeblit fix a", "/zeblit fix a\n\n/zeblit fix a"), "/zeblit fix a #2");
        assert_eq!(new("/zeblit fix a\n\n/zeblit fix a", "/zeblit fix a"), "");
        assert_eq!(new("`/zeblit fix a`", "/zeblit fix a"), "/zeblit fix a #1");
        assert_eq!(new("/zeblit fix a", ""), "");
        assert_eq!(new("/zeblit nope", "/zeblit nope"), "");
        assert_eq!(new("", "/zeblit nope"), "!Unknown command `nope`");
        assert_eq!(new("", "/zeblit ping\n/zeblit fix a"), "/zeblit ping #1 | /zeblit fix a #1");
        let many: Vec<String> = (0..15).map(|n| format!("/zeblit fix {n}")).collect();
        assert_eq!(new(&many.join("\n\n"), &many[8..].join("\n\n")), "");
    }

    #[test]
    fn huge_comments_are_read_to_the_limit_in_little_time() {
        let begun = std::time::Instant::now();
        for piece in [
            "/zeblit fix\n",
            "> ",
            "- ",
            "`",
            "[",
            "<b>",
            "*a ",
            "![",
            "<!--",
            "| a ",
            "On a wrote:\n> x\n",
            "[a](b",
            "[/zeblit fix",
            "a\n",
            "`a``",
            "<",
            "$",
            "&",
            "\\",
            "~~",
            "1. x\n",
            "<a ",
            "[^a]: ",
            "[a]: b\n",
            "**a",
            "*a_ ",
            "> - ",
        ] {
            let _ = parse(&piece.repeat(100_000 / piece.len()));
        }
        let mut nested = String::new();
        for depth in 0..360 {
            nested.push_str(&format!("{}- x\n", "  ".repeat(depth)));
        }
        let _ = parse(&nested);
        // A reader that is quadratic in the length needs minutes for these.
        assert!(begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
        assert!(parse(&format!("{}/zeblit fix", "ä\n\n".repeat(100_000))).is_empty());
    }

    #[test]
    fn bytes_that_nobody_has_read_hold_no_command_only_when_that_is_certain() {
        for maybe in [
            &br#"{"body":"a /zeblit fix"}"#[..],
            br#"{"body":"/ZeBlit fix"}"#,
            br#"{"body":"\/zeblit fix"}"#,
            br#"{"body":"\u002fzeblit fix"}"#,
            br#"{"body":"/zebli\u0074 fix"}"#,
            br#"{"body":"/ze\u0000blit fix"}"#,
            b"payload=%7B%22body%22%3A%22%2Fzeblit+fix%22%7D",
            b" {}",
            b"",
        ] {
            assert!(may_stand_in_json(maybe), "{}", String::from_utf8_lossy(maybe));
        }
        for never in
            [&br#"{"body":"zeblit / zebli"}"#[..], br#"{"a":"\n\u2028","url":"https://a/b"}"#, b"{", b"{/"]
        {
            assert!(!may_stand_in_json(never), "{}", String::from_utf8_lossy(never));
        }
    }

    /// Pieces of Markdown that a comment could be made of.
    fn soup() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            4 => Just("/zeblit fix ".to_owned()),
            2 => Just("\n/zeblit ask ".to_owned()),
            1 => Just("\n\n/zeblit run fmt ".to_owned()),
            2 => "[a-z]{1,6} ".prop_map(|word| word),
            4 => proptest::sample::select(vec![
                "\n", "\n\n", " ", "  ", "`", "``", "```\n", "> ", "- ", "1. ", "# ", "<!-- ", " -->", "<b>",
                "</b>", "<details>\n\n", "[", "](x)", "![", "*", "**", "~~", "|", "\n---\n", "\\", "--", "--agent a ",
                "--agent ", "--budget=2 ", "-- ", "—model ", "\"", "'", "“", "”", "&amp;", "<x", ">", "\u{200b}",
                "\u{a0}", "\t", "$", "é", "[^1]", "]: ", "\r\n", "=", "\u{0}", "\u{2028}", "help", "?", "cancel",
            ]).prop_map(str::to_owned),
            1 => any::<char>().prop_map(|c| c.to_string()),
        ];
        proptest::collection::vec(piece, 0..25).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn no_input_panics(text in ".*", soup in soup()) {
            let _ = parse(&text);
            let _ = parse(&soup);
            let _ = added(&text, &soup);
        }

        #[test]
        fn no_way_to_write_a_command_in_json_hides_it(
            soup in soup(), escapes in proptest::collection::vec(0u8..12, 1..40),
        ) {
            // Any letter may be an escape, and a slash has two.
            let mut escapes = escapes.iter().cycle();
            let mut json = String::from("{\"body\":\"");
            for c in soup.chars() {
                match (escapes.next(), c) {
                    (Some(0), '/') => json.push_str("\\/"),
                    (Some(1), c) if (c as u32) < 0x1_0000 => json.push_str(&format!("\\u{:04x}", c as u32)),
                    _ => {
                        let written = serde_json::to_string(&c).unwrap();
                        json.push_str(written.trim_matches('"'));
                        if c == '"' {
                            json.push('"');
                        }
                    }
                }
            }
            json.push_str("\"}");
            let read: serde_json::Value = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(read["body"].as_str(), Some(soup.as_str()));
            prop_assert!(parse(&soup).is_empty() || may_stand_in_json(json.as_bytes()), "{}", json);
        }

        #[test]
        fn a_normalised_command_parses_back_to_itself(soup in soup()) {
            for command in parse(&soup).into_iter().flatten() {
                let again = parse(&command.normalised());
                prop_assert_eq!(again, vec![Ok(Command { occurrence: 1, ..command })]);
            }
        }

        #[test]
        fn an_edit_that_changes_nothing_asks_for_nothing(soup in soup()) {
            prop_assert_eq!(added(&soup, &soup), vec![]);
        }

        #[test]
        fn what_is_wrapped_never_triggers(words in "[a-z -]{0,20}") {
            let command = format!("/zeblit {words}");
            for wrapped in [
                format!("> {command}"), format!("```\n{command}\n```"), format!("<!--\n{command}\n-->"),
                format!("`x\n{command}\n`"), format!("# {command}"), format!("    {command}"),
                format!("[x\n{command}](y)"), format!("<details>\n\n{command}\n\n</details>"),
                format!("\u{200b}{command}"), format!("a {command}"), format!("| x |\n|---|\n|{command}|"),
            ] {
                prop_assert_eq!(parse(&wrapped), vec![], "{}", wrapped);
            }
        }
    }
}
