//! kafka

pub mod config;
