//! ingress

pub mod config;
