//! Purpose: which warm slots there are, and how many there should be. No engine and no clock: the time is given.
//!
//! A slot is started, waits, is taken by one run and is then nobody's here; it never comes back.

use super::SlotClass;
use crate::domain::ids::SlotId;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// Starts count for the size of the pool for so long.
const REMEMBERED: Duration = Duration::from_secs(30 * 60);
/// Starts within this time are one burst: about what several new slots take to be ready on two busy cores.
const BURST: Duration = Duration::from_secs(5);
/// Starts of one class that are remembered: more than any pool has room for.
const STARTS_KEPT: usize = 256;
/// What was taken is started within this time, or never: its run died on the way.
const TAKEN_LIFE: Duration = Duration::from_secs(300);
/// After a slot of a class could not be started.
const PAUSE: Duration = Duration::from_secs(60);

/// `T` is what a slot is to who made it.
#[derive(Debug)]
pub struct Pool<T> {
    classes: HashMap<SlotClass, Class<T>>,
    taken: HashMap<SlotId, (Instant, T)>,
    /// Slots of all classes together.
    most: usize,
}

#[derive(Debug)]
struct Class<T> {
    starting: Vec<SlotId>,
    ready: VecDeque<(SlotId, T)>,
    /// When runs of it started, warm or cold.
    starts: VecDeque<Instant>,
    not_before: Option<Instant>,
}

impl<T> Default for Class<T> {
    fn default() -> Self {
        Self { starting: Vec::new(), ready: VecDeque::new(), starts: VecDeque::new(), not_before: None }
    }
}

impl<T> Class<T> {
    /// The largest burst of late.
    fn burst(&self, now: Instant) -> usize {
        let late: Vec<Instant> = self
            .starts
            .iter()
            .copied()
            .filter(|at| now.saturating_duration_since(*at) < REMEMBERED)
            .collect();
        let within = |from: Instant| late.iter().filter(|at| **at >= from && **at < from + BURST).count();
        late.iter().map(|from| within(*from)).max().unwrap_or(0)
    }

    fn len(&self) -> usize {
        self.starting.len() + self.ready.len()
    }
}

impl<T> Pool<T> {
    pub fn new(most: usize) -> Self {
        Self { classes: HashMap::new(), taken: HashMap::new(), most }
    }

    /// A ready slot that is still good, the longest waiting first. The start counts, whether there is one or not.
    pub fn take(&mut self, class: &SlotClass, now: Instant, is_good: impl Fn(&T) -> bool) -> Option<SlotId> {
        let found = self.classes.entry(class.clone()).or_default();
        found.starts.push_back(now);
        if found.starts.len() > STARTS_KEPT {
            found.starts.pop_front();
        }
        let at = found.ready.iter().position(|(_, slot)| is_good(slot))?;
        let (id, slot) = found.ready.remove(at)?;
        self.taken.insert(id.clone(), (now, slot));
        Some(id)
    }

    /// What was taken under this id: from now on it is its run's.
    pub fn enter(&mut self, slot: &SlotId) -> Option<T> {
        self.taken.remove(slot).map(|(_, slot)| slot)
    }

    /// How many slots each class should have: the largest burst of late, the usual class at least one; all together no
    /// more than there may be, the most wanted class first.
    fn wanted(&self, usual: &SlotClass, now: Instant) -> HashMap<SlotClass, usize> {
        let mut wishes: Vec<(&SlotClass, usize, Option<Instant>)> = self
            .classes
            .iter()
            .filter(|(class, _)| *class != usual)
            .map(|(class, found)| (class, found.burst(now), found.starts.back().copied()))
            .collect();
        let usually = self.classes.get(usual);
        let burst = usually.map_or(0, |class| class.burst(now)).max(1);
        wishes.push((usual, burst, usually.and_then(|class| class.starts.back().copied())));
        // The one that was used last first.
        wishes.sort_by_key(|(_, _, last)| std::cmp::Reverse(*last));
        let mut wanted: HashMap<SlotClass, usize> = HashMap::new();
        let mut room = self.most;
        // One for each before a second for any.
        for round in 1..=self.most {
            for (class, wish, _) in &wishes {
                if *wish >= round && room > 0 {
                    *wanted.entry((*class).clone()).or_default() += 1;
                    room -= 1;
                }
            }
        }
        wanted
    }

    /// Classes of which a slot should be started now, one entry for each slot.
    pub fn missing(&self, usual: &SlotClass, now: Instant) -> Vec<SlotClass> {
        let mut missing = Vec::new();
        for (class, wanted) in self.wanted(usual, now) {
            let found = self.classes.get(&class);
            if found.and_then(|found| found.not_before).is_some_and(|until| now < until) {
                continue;
            }
            let there = found.map_or(0, Class::len);
            missing.extend(std::iter::repeat_n(class, wanted.saturating_sub(there)));
        }
        missing
    }

    /// Takes out what there is too much of, what is no longer good, and what was taken and never entered.
    pub fn surplus(
        &mut self,
        usual: &SlotClass,
        now: Instant,
        is_good: impl Fn(&T) -> bool,
    ) -> Vec<(SlotId, T)> {
        let wanted = self.wanted(usual, now);
        let mut surplus = Vec::new();
        for (class, found) in &mut self.classes {
            let (good, bad): (VecDeque<_>, VecDeque<_>) =
                found.ready.drain(..).partition(|(_, slot)| is_good(slot));
            found.ready = good;
            surplus.extend(bad);
            let wanted = wanted.get(class).copied().unwrap_or(0);
            while found.len() > wanted {
                let Some(oldest) = found.ready.pop_front() else { break };
                surplus.push(oldest);
            }
        }
        let late = |at: &Instant| now.saturating_duration_since(*at) >= TAKEN_LIFE;
        surplus.extend(self.taken.extract_if(|_, (at, _)| late(at)).map(|(id, (_, slot))| (id, slot)));
        self.classes
            .retain(|_, class| class.len() > 0 || class.burst(now) > 0 || class.not_before > Some(now));
        surplus
    }

    pub fn began(&mut self, class: &SlotClass, slot: &SlotId) {
        self.classes.entry(class.clone()).or_default().starting.push(slot.clone());
    }

    pub fn ready(&mut self, class: &SlotClass, id: &SlotId, slot: T) {
        let found = self.classes.entry(class.clone()).or_default();
        found.starting.retain(|starting| starting != id);
        found.ready.push_back((id.clone(), slot));
    }

    /// It could not be started: the next try of this class comes later.
    pub fn failed(&mut self, class: &SlotClass, id: &SlotId, now: Instant) {
        let found = self.classes.entry(class.clone()).or_default();
        found.starting.retain(|starting| starting != id);
        found.not_before = Some(now + PAUSE);
    }

    /// The slots that nothing runs in yet.
    pub fn waiting(&self) -> Vec<SlotId> {
        let of_classes = self
            .classes
            .values()
            .flat_map(|class| class.starting.iter().chain(class.ready.iter().map(|(id, _)| id)).cloned());
        of_classes.chain(self.taken.keys().cloned()).collect()
    }

    /// Forgets all of them.
    pub fn clear(&mut self) -> Vec<SlotId> {
        let waiting = self.waiting();
        self.classes.clear();
        self.taken.clear();
        waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::Limits;

    fn class(image: &str) -> SlotClass {
        let limits = Limits { memory_bytes: 1, millicpus: 1, pids: 1, log_bytes: 1 };
        SlotClass { image: image.into(), limits }
    }

    /// Starts what is missing, as an engine would.
    fn fill(pool: &mut Pool<bool>, usual: &SlotClass, now: Instant, next: &mut u32) -> usize {
        let missing = pool.missing(usual, now);
        for class in &missing {
            *next += 1;
            let id = SlotId::new(format!("s{next}"));
            pool.began(class, &id);
            pool.ready(class, &id, true);
        }
        missing.len()
    }

    #[test]
    fn one_of_the_usual_class_waits_and_each_is_taken_once() {
        let (mut pool, usual, now, mut next) = (Pool::new(4), class("usual"), Instant::now(), 0);
        assert_eq!(fill(&mut pool, &usual, now, &mut next), 1);
        assert_eq!(fill(&mut pool, &usual, now, &mut next), 0);
        let slot = pool.take(&usual, now, |good| *good).unwrap();
        assert_eq!(pool.take(&usual, now, |good| *good), None);
        assert_eq!(pool.waiting(), std::slice::from_ref(&slot), "it is wanted until its run has entered it");
        assert_eq!(pool.enter(&slot), Some(true));
        assert_eq!(pool.enter(&slot), None);
        assert_eq!(pool.waiting(), []);
    }

    #[test]
    fn bursts_make_it_grow_and_time_makes_it_shrink() {
        let (mut pool, usual, begin, mut next) = (Pool::new(4), class("usual"), Instant::now(), 0);
        for start in 0..3 {
            pool.take(&usual, begin + Duration::from_secs(start), |good| *good);
        }
        // Single starts, far from each other, ask for no more.
        for start in 1..4 {
            pool.take(&usual, begin + Duration::from_secs(60 * start), |good| *good);
        }
        let now = begin + Duration::from_secs(300);
        assert_eq!(fill(&mut pool, &usual, now, &mut next), 3);
        for _ in 0..9 {
            pool.take(&usual, now, |good| *good);
        }
        assert_eq!(fill(&mut pool, &usual, now, &mut next), 4, "there is a largest size");
        let later = now + REMEMBERED;
        assert_eq!(
            pool.surplus(&usual, later, |good| *good).len(),
            3 + 3,
            "the taken ones were never entered"
        );
        assert_eq!(pool.waiting().len(), 1);
    }

    #[test]
    fn other_classes_get_theirs_as_long_as_they_are_used() {
        let (mut pool, usual, other, now, mut next) =
            (Pool::new(2), class("usual"), class("other"), Instant::now(), 0);
        for _ in 0..3 {
            assert_eq!(pool.take(&other, now, |good| *good), None);
        }
        assert_eq!(fill(&mut pool, &usual, now, &mut next), 2, "one for each before a second for any");
        assert!(pool.take(&other, now, |good| *good).is_some());
        assert!(pool.take(&usual, now, |good| *good).is_some());
        let later = now + REMEMBERED;
        assert_eq!(pool.missing(&usual, later), std::slice::from_ref(&usual));
    }

    #[test]
    fn bad_ones_are_not_taken_and_a_class_that_fails_rests() {
        let (mut pool, usual, now) = (Pool::new(2), class("usual"), Instant::now());
        let id = SlotId::new("s1");
        pool.began(&usual, &id);
        pool.ready(&usual, &id, false);
        assert_eq!(pool.take(&usual, now, |good| *good), None);
        assert_eq!(pool.surplus(&usual, now, |good| *good), [(id.clone(), false)]);
        pool.began(&usual, &id);
        assert_eq!(pool.waiting(), std::slice::from_ref(&id));
        pool.failed(&usual, &id, now);
        assert_eq!(pool.missing(&usual, now), []);
        assert_eq!(pool.missing(&usual, now + PAUSE), std::slice::from_ref(&usual));
        assert_eq!(Pool::<bool>::new(0).missing(&usual, now), []);
    }
}
