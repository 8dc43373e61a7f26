//! Pure decisions and the words they are made of: no I/O, no clock, no randomness.

pub mod address;
pub mod attachment;
pub mod budget;
pub mod ci;
pub mod command;
pub mod effect;
pub mod egress;
pub mod event;
pub mod gate;
pub mod ids;
pub mod model_api;
pub mod node;
pub mod patterns;
pub mod plan;
pub mod policy;
pub mod repo_config;
pub mod run;
pub mod sanitize;
pub mod secrets;
pub mod task;
pub mod wording;
