//! Scenarios: signed webhooks in, ticks by hand, comments, checks, branches and pull requests out.
//! Real octocrab, real Git and real SQL; the forge, the sandbox, time and chance are the test's.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, which is what it is for")]

mod world;

mod agents;
mod ahead;
mod artifacts;
mod basics;
mod budget;
mod builtin;
mod canary;
mod claude;
mod commands;
mod config;
mod conversation;
mod crash;
mod docker;
mod effects;
mod egress;
mod faults;
mod forge;
mod fsync;
mod hostile;
mod inputs;
mod kill;
mod labels;
mod load;
mod local;
mod matrix;
mod model;
mod modes;
mod nodes;
mod policy;
mod postgres;
mod promises;
mod pulls;
mod queue;
mod receive;
mod repair;
mod resume;
mod retry;
mod runs;
mod runsc;
mod scale;
mod sinks;
mod triggers;
mod trouble;
