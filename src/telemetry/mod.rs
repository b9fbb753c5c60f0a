//! telemetry

pub mod config;
