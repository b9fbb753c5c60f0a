//! exchange

pub mod config;
