//! admin

pub mod config;
