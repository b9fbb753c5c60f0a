//! Logs: one subscriber for the process, on standard error, and its filter, which
//! can be changed while it runs.

pub mod config;
mod filter;

use std::sync::OnceLock;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};

use config::{Config, LogFormat};
pub use filter::{Filter, FilterError, Shown};

/// Of the process, as the subscriber is.
static FILTER: OnceLock<Filter> = OnceLock::new();

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter can't be read.
    #[error("log.filter: {0}")]
    Filter(#[from] FilterError),
    /// Another subscriber is in place.
    #[error("logging is set up already")]
    AlreadySet(#[from] TryInitError),
}

/// Makes `config` the process's logging. Standard output stays free for what
/// programs read.
pub fn init(config: &Config) -> Result<(), Error> {
    let (parsed, handle) = reload::Layer::new(filter::parse(&config.filter)?);
    let registry = tracing_subscriber::registry().with(parsed);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match config.format {
        LogFormat::Text => registry.with(layer).try_init()?,
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init()?,
    }
    // Only the first subscriber comes so far.
    let _ = FILTER.set(Filter::new(&config.filter, handle));
    Ok(())
}

/// The filter of this process's log; `None` before [`init`].
pub fn filter() -> Option<&'static Filter> {
    FILTER.get()
}
