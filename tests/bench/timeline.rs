//! Where the time goes: the spans of the library, as they open and close.

use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
use tracing::span::{Attributes, Id};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// One span that has closed.
#[derive(Debug, Clone)]
pub struct Step {
    pub name: &'static str,
    pub module: &'static str,
    pub depth: usize,
    pub begun: SystemTime,
    pub ended: SystemTime,
}

/// Collects every span; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Timeline(Arc<Mutex<Vec<Step>>>);

impl Timeline {
    /// What has closed since the last call, by its beginning.
    pub fn take(&self) -> Vec<Step> {
        let mut steps = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        steps.sort_by_key(|step| (step.begun, step.depth));
        steps
    }
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Timeline {
    fn on_new_span(&self, _attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(SystemTime::now());
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let Some(begun) = span.extensions().get::<SystemTime>().copied() else { return };
        let step = Step {
            name: span.name(),
            module: span.metadata().module_path().unwrap_or_default(),
            depth: span.scope().count() - 1,
            begun,
            ended: SystemTime::now(),
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(step);
    }
}

/// Milliseconds from `begin`; negative when it was before.
pub fn ms_since(begin: SystemTime, at: SystemTime) -> f64 {
    match at.duration_since(begin) {
        Ok(time) => time.as_secs_f64() * 1e3,
        Err(error) => -error.duration().as_secs_f64() * 1e3,
    }
}

/// A table of steps: when each began after `begin`, how long it took; `marks` are points in time with their names.
pub fn table(begin: SystemTime, steps: &[Step], marks: &[(&str, SystemTime)]) -> String {
    let mut rows: Vec<(SystemTime, String)> = steps
        .iter()
        .map(|step| {
            let module = step.module.trim_start_matches("zeblit::");
            let name = format!("{}{module}::{}", "  ".repeat(step.depth), step.name);
            let took = ms_since(step.begun, step.ended);
            (step.begun, format!("{:>9.2}  {took:>8.2}  {name}", ms_since(begin, step.begun)))
        })
        .collect();
    for (name, at) in marks {
        rows.push((*at, format!("{:>9.2}  {:>8}  == {name}", ms_since(begin, *at), "")));
    }
    rows.sort_by_key(|(at, _)| *at);
    let mut text = String::from(" at (ms)  took (ms)  what\n");
    for (_, row) in rows {
        let _ = writeln!(text, "{row}");
    }
    text
}
