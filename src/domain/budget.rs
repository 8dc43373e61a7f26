//! Money in millionths of a US dollar ("micros"), how it is written, price arithmetic, and whose money a run spends.

use super::event::{Actor, Repo};
use super::run::Run;
use chrono::{DateTime, Datelike, Days, Months, NaiveTime, Utc};

/// `1.5` for 1 500 000; no more digits than needed, so that it parses back to the same number.
pub fn dollars_exact(micros: i64) -> String {
    let sign = if micros < 0 { "-" } else { "" };
    let micros = micros.unsigned_abs();
    let text = format!("{sign}{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `$0.42`: two decimals, rounded up so that a cost is never shown as less than it is.
pub fn dollars(micros: i64) -> String {
    let cents = micros.max(0).unsigned_abs().div_ceil(10_000);
    format!("${}.{:02}", cents / 100, cents % 100)
}

/// Reads `5`, `0.50` or `$2.5` as micros. At most six decimals, at most 1 000 000 dollars, more than zero.
pub fn parse_dollars(text: &str) -> Option<i64> {
    let text = text.strip_prefix('$').unwrap_or(text);
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 6 || whole.len() > 7 {
        return None;
    }
    let whole: i64 = whole.parse().ok()?;
    let fraction: i64 = format!("{fraction:0<6}").parse().ok()?;
    let micros = whole.checked_mul(1_000_000)?.checked_add(fraction)?;
    (micros > 0 && micros <= 1_000_000_000_000).then_some(micros)
}

/// Tokens of one model reply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Usage {
    pub input: i64,
    pub output: i64,
    pub cache_read: i64,
    pub cache_write: i64,
}

impl Usage {
    pub fn total(&self) -> i64 {
        self.input + self.output + self.cache_read + self.cache_write
    }
}

/// US dollars per million tokens, times one million: micros per million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Price {
    pub input: i64,
    pub output: i64,
    pub cache_read: i64,
    pub cache_write: i64,
}

impl Price {
    /// Cost in micros, rounded up.
    pub fn cost(&self, usage: &Usage) -> i64 {
        let total = i128::from(usage.input) * i128::from(self.input)
            + i128::from(usage.output) * i128::from(self.output)
            + i128::from(usage.cache_read) * i128::from(self.cache_read)
            + i128::from(usage.cache_write) * i128::from(self.cache_write);
        let micros = (total + 999_999) / 1_000_000;
        i64::try_from(micros).unwrap_or(i64::MAX)
    }
}

/// What a budget is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BudgetKind {
    /// All repositories of an owner, by month.
    OwnerMonth,
    RepoDay,
    UserDay,
    Run,
}

impl BudgetKind {
    pub fn name(self) -> &'static str {
        match self {
            BudgetKind::OwnerMonth => "owner_month",
            BudgetKind::RepoDay => "repo_day",
            BudgetKind::UserDay => "user_day",
            BudgetKind::Run => "run",
        }
    }

    /// Names the day or month of a time (UTC), as the ledger keeps it; empty for a run.
    pub fn period(self, now: DateTime<Utc>) -> String {
        match self {
            BudgetKind::OwnerMonth => now.format("%Y-%m").to_string(),
            BudgetKind::RepoDay | BudgetKind::UserDay => now.format("%Y-%m-%d").to_string(),
            BudgetKind::Run => String::new(),
        }
    }

    /// When it starts again at zero; never for a run.
    pub fn resets_at(self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let today = now.date_naive();
        let first = match self {
            BudgetKind::Run => None,
            BudgetKind::RepoDay | BudgetKind::UserDay => today.checked_add_days(Days::new(1)),
            BudgetKind::OwnerMonth => today.with_day(1)?.checked_add_months(Months::new(1)),
        };
        Some(first?.and_time(NaiveTime::MIN).and_utc())
    }
}

/// One limit that the requests of a run count against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    pub kind: BudgetKind,
    /// Its name in the ledger: the run's id, or `user:github:7`.
    pub scope: String,
    /// What people call it: `this run`, `alice`, `acme/rocket`, `acme`.
    pub whose: String,
    /// Absent: counted, and never too much.
    pub cap_micros: Option<i64>,
}

impl Budget {
    /// The budget of one run alone.
    pub fn of_run(run: &super::ids::RunId, cap_micros: i64) -> Self {
        Self {
            kind: BudgetKind::Run,
            scope: run.to_string(),
            whose: "this run".into(),
            cap_micros: Some(cap_micros),
        }
    }

    /// `of this run`, `of alice for today`.
    pub fn name(&self) -> String {
        match self.kind {
            BudgetKind::Run => format!("of {}", self.whose),
            BudgetKind::RepoDay | BudgetKind::UserDay => format!("of {} for today", self.whose),
            BudgetKind::OwnerMonth => format!("of {} for this month", self.whose),
        }
    }
}

/// How much of a budget is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    pub budget: Budget,
    /// Spent, and reserved for requests that are on their way.
    pub micros: i64,
    pub resets_at: Option<DateTime<Utc>>,
}

impl Standing {
    /// Whether at least four fifths of it are used.
    pub fn is_nearly_used(&self) -> bool {
        self.budget.cap_micros.is_some_and(|cap| i128::from(self.micros) * 5 >= i128::from(cap) * 4)
    }
}

/// The server's limits on money, besides that of a run; absent: none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BudgetRules {
    pub user_day_micros: Option<i64>,
    pub repo_day_micros: Option<i64>,
    pub owner_month_micros: Option<i64>,
}

impl BudgetRules {
    /// The limit of a day's or month's budget; `own`: the one that a repository gives itself.
    pub fn cap(&self, kind: BudgetKind, own: Option<i64>) -> Option<i64> {
        match kind {
            BudgetKind::OwnerMonth => self.owner_month_micros,
            BudgetKind::RepoDay => [self.repo_day_micros, own].into_iter().flatten().min(),
            BudgetKind::UserDay => self.user_day_micros,
            BudgetKind::Run => None,
        }
    }
}

/// Kind, remote and the rest of a budget's name in the ledger, as `wider` makes them.
pub fn parse_scope(scope: &str) -> Option<(BudgetKind, &str, &str)> {
    let mut parts = scope.splitn(3, ':');
    let kind = match parts.next()? {
        "owner" => BudgetKind::OwnerMonth,
        "repo" => BudgetKind::RepoDay,
        "user" => BudgetKind::UserDay,
        _ => return None,
    };
    Some((kind, parts.next()?, parts.next()?))
}

/// The beginning of the month `2026-11` and of the next one.
pub fn month(text: &str) -> Option<(DateTime<Utc>, DateTime<Utc>)> {
    let (year, month) = text.split_once('-')?;
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if year.len() != 4 || month.len() != 2 || !digits(year) || !digits(month) {
        return None;
    }
    let first = chrono::NaiveDate::from_ymd_opt(year.parse().ok()?, month.parse().ok()?, 1)?;
    let next = first.checked_add_months(Months::new(1))?;
    Some((first.and_time(NaiveTime::MIN).and_utc(), next.and_time(NaiveTime::MIN).and_utc()))
}

/// What the requests of a person's runs in a repository count against besides the run's own budget, widest first: the
/// order in which they are locked. `own`: the limit that the repository gives itself for a day.
pub fn wider(
    remote: &str,
    repo: &Repo,
    person: &Actor,
    own: Option<i64>,
    rules: &BudgetRules,
) -> Vec<Budget> {
    let owner = repo.name.owner();
    let repo_day = rules.cap(BudgetKind::RepoDay, own);
    let budget = |kind, scope: String, whose: &str, cap_micros| Budget {
        kind,
        scope,
        whose: whose.to_owned(),
        cap_micros,
    };
    vec![
        budget(
            BudgetKind::OwnerMonth,
            format!("owner:{}:{}", remote, owner.to_lowercase()),
            owner,
            rules.owner_month_micros,
        ),
        budget(BudgetKind::RepoDay, format!("repo:{}:{}", remote, repo.id), repo.name.as_str(), repo_day),
        budget(
            BudgetKind::UserDay,
            format!("user:{}:{}", remote, person.id),
            &person.login,
            rules.user_day_micros,
        ),
    ]
}

/// Everything that the requests of a run count against.
pub fn of_run(run: &Run, rules: &BudgetRules) -> Vec<Budget> {
    let own = run.spec.config.limits.day_budget_micros;
    let mut all = wider(&run.remote, &run.repo, &run.spec.requester, own, rules);
    all.push(Budget::of_run(&run.id, run.spec.budget_micros));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_end_at_midnight_and_with_the_month() {
        let at = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        for (now, kind, period, resets) in [
            ("2026-11-21T23:59:59.9Z", BudgetKind::UserDay, "2026-11-21", "2026-11-22T00:00:00Z"),
            ("2026-12-31T00:00:00Z", BudgetKind::RepoDay, "2026-12-31", "2027-01-01T00:00:00Z"),
            ("2026-01-31T12:00:00Z", BudgetKind::OwnerMonth, "2026-01", "2026-02-01T00:00:00Z"),
            ("2026-12-31T12:00:00Z", BudgetKind::OwnerMonth, "2026-12", "2027-01-01T00:00:00Z"),
        ] {
            assert_eq!(kind.period(at(now)), period);
            assert_eq!(kind.resets_at(at(now)), Some(at(resets)), "{now}");
        }
        assert_eq!(BudgetKind::Run.resets_at(at("2026-01-31T12:00:00Z")), None);
    }

    #[test]
    fn the_ledgers_names_can_be_read_back() {
        let repo = Repo {
            id: 7,
            name: crate::domain::ids::RepoName::parse("Acme/rocket").unwrap(),
            installation: 1,
            private: false,
        };
        let person = Actor { id: 3, login: "ada".into(), kind: crate::domain::event::ActorKind::User };
        for budget in wider("github", &repo, &person, None, &BudgetRules::default()) {
            let (kind, remote, whose) = parse_scope(&budget.scope).unwrap();
            assert_eq!((kind, remote), (budget.kind, "github"));
            assert!(["acme", "7", "3"].contains(&whose), "{whose}");
        }
        for bad in ["", "user", "user:github", "team:github:1", "0192aaaabbbbcccc"] {
            assert_eq!(parse_scope(bad), None, "{bad}");
        }
    }

    #[test]
    fn months_have_a_beginning_and_an_end() {
        let shown =
            |text: &str| month(text).map(|(from, to)| format!("{} {}", from.date_naive(), to.date_naive()));
        assert_eq!(shown("2026-12").as_deref(), Some("2026-12-01 2027-01-01"));
        assert_eq!(shown("2024-02").as_deref(), Some("2024-02-01 2024-03-01"));
        for bad in ["", "2026", "2026-13", "2026-00", "26-01", "2026-1", "+026-01", "2026-01-01"] {
            assert_eq!(shown(bad), None, "{bad}");
        }
    }

    #[test]
    fn four_fifths_are_nearly_all() {
        let standing = |micros, cap_micros| Standing {
            budget: Budget { cap_micros, ..Budget::of_run(&crate::domain::ids::RunId::new("r"), 1) },
            micros,
            resets_at: None,
        };
        assert!(standing(80, Some(100)).is_nearly_used() && standing(i64::MAX, Some(1)).is_nearly_used());
        assert!(!standing(79, Some(100)).is_nearly_used() && !standing(i64::MAX, None).is_nearly_used());
    }

    #[test]
    fn money_survives_writing_and_reading() {
        for micros in [1, 10_000, 420_000, 1_500_000, 5_000_000, 123_456_789] {
            assert_eq!(parse_dollars(&dollars_exact(micros)), Some(micros));
        }
        assert_eq!(parse_dollars("$2.5"), Some(2_500_000));
        for bad in ["", "0", "-1", "1e3", "abc", "1.2.3", "99999999", "0.0000001", ".5"] {
            assert_eq!(parse_dollars(bad), None, "{bad}");
        }
    }

    #[test]
    fn shown_cost_is_never_less_than_the_cost() {
        assert_eq!(dollars(0), "$0.00");
        assert_eq!(dollars(1), "$0.01");
        assert_eq!(dollars(420_000), "$0.42");
        assert_eq!(dollars(420_001), "$0.43");
    }

    #[test]
    fn cost_is_rounded_up() {
        let price =
            Price { input: 3_000_000, output: 15_000_000, cache_read: 300_000, cache_write: 3_750_000 };
        assert_eq!(price.cost(&Usage { input: 1, ..Usage::default() }), 3);
        assert_eq!(price.cost(&Usage { cache_read: 1, ..Usage::default() }), 1);
    }
}
