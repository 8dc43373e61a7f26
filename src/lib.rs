//! Zeblit: a self-hosted, Git-native webhook and ChatOps bot.
//!
//! # Code map
//!
//! A delivery travels top to bottom: [`http`] stores it, [`intake`] decodes it, [`domain`] decides,
//! [`engine`] acts through [`store`], [`git`], [`agent`], [`broker`], [`sandbox`] and [`remote`].
//! [`app`] wires the pieces together and is the only place that knows which backend is in use.
//!
//! # Invariants
//!
//! - SQL is the only truth; sockets, containers and memory may vanish at any moment.
//! - Every outside action is an effect row written with the state change that asks for it.
//! - `domain` is pure: no I/O, no clock, no randomness.
//! - The agent is hostile: it gets no secret and no network, and its commits pass the gate.

pub mod agent;
pub mod app;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod config;
pub mod domain;
pub mod engine;
pub mod git;
pub mod http;
pub mod intake;
pub mod mount;
pub mod queue;
pub mod remote;
pub mod sandbox;
pub mod shim;
pub mod store;
pub mod telemetry;
