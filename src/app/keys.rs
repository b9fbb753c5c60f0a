//! The keys of tokens: loaded at the start, and read again while the process
//! runs, so that they can rotate.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use tokio::time::{Instant, sleep};

use crate::access::{KeysError, Tokens, VerifyingKeys};
use crate::backoff::Backoff;
use crate::ingress::config::{AccessConfig, KeySource};
use crate::limits;
use crate::web_client::{WebClient, WebClientError};

/// Why the keys of tokens could not be had.
#[derive(Debug, thiserror::Error)]
pub enum KeysUnavailable {
    /// Settings for the URL that can't be used.
    #[error(transparent)]
    Settings(#[from] WebClientError),
    /// The file can't be read.
    #[error("{file}: {source}")]
    File {
        /// The file.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// The server can't be reached, or has none.
    #[error("{url}: {cause}")]
    Url {
        /// Where they should be.
        url: String,
        /// Why.
        cause: String,
    },
    /// What was found is no set of keys.
    #[error("{place}: {source}")]
    Keys {
        /// Where it was found.
        place: String,
        /// Why.
        source: KeysError,
    },
}

/// Brings keys from where they are to whoever checks tokens.
#[derive(Debug)]
pub(super) struct KeyKeeper {
    source: Source,
    refresh: Duration,
    tokens: Arc<Tokens>,
    read: Bytes,
}

#[derive(Debug)]
enum Source {
    File(std::path::PathBuf),
    Url(WebClient),
}

impl KeyKeeper {
    /// Loads the keys, again and again until `deadline` where a server has
    /// them. `None` where tokens are not looked at.
    pub(super) async fn open(
        access: Option<&AccessConfig>,
        deadline: Instant,
    ) -> Result<Option<Self>, KeysUnavailable> {
        let Some((access, keys)) = access.and_then(|access| Some((access, access.keys.as_ref()?))) else {
            return Ok(None);
        };
        let source = match keys {
            KeySource::File(file) => Source::File(file.clone()),
            KeySource::Url(url, ca_file) => {
                let timeout = Duration::from_millis(limits::JWKS_TIMEOUT_MS);
                Source::Url(WebClient::new(url, ca_file.as_deref(), timeout)?)
            }
        };
        let tokens = Arc::new(Tokens::new(access.tokens.clone()));
        let mut keeper = Self { source, refresh: access.keys_refresh, tokens, read: Bytes::new() };
        let mut backoff = Backoff::default();
        loop {
            match keeper.load().await {
                Ok(()) => return Ok(Some(keeper)),
                Err(error @ KeysUnavailable::Url { .. }) if Instant::now() < deadline => {
                    tracing::warn!(%error, "the keys of tokens are not to be had; trying again");
                    backoff.pause().await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Who checks tokens with them.
    pub(super) fn tokens(&self) -> &Arc<Tokens> {
        &self.tokens
    }

    /// Never ends. Where keys can't be had, those in use stay.
    pub(super) async fn run(mut self) {
        loop {
            sleep(self.refresh).await;
            if let Err(error) = self.load().await {
                tracing::error!(%error, "the keys of tokens could not be read again; the old ones stay");
            }
        }
    }

    async fn load(&mut self) -> Result<(), KeysUnavailable> {
        let (place, json) = match &self.source {
            Source::File(file) => {
                let name = file.display().to_string();
                match std::fs::read(file) {
                    Ok(json) => (name, Bytes::from(json)),
                    Err(source) => return Err(KeysUnavailable::File { file: name, source }),
                }
            }
            Source::Url(client) => {
                let url = client.url().to_owned();
                match client.ask(Request::builder(), "", Bytes::new()).await {
                    Ok((StatusCode::OK, json)) => (url, json),
                    Ok((status, _)) => return Err(KeysUnavailable::Url { url, cause: status.to_string() }),
                    Err(cause) => return Err(KeysUnavailable::Url { url, cause }),
                }
            }
        };
        if json != self.read {
            let keys =
                VerifyingKeys::parse(&json).map_err(|source| KeysUnavailable::Keys { place, source })?;
            tracing::info!(keys = keys.len(), "keys of tokens loaded");
            self.tokens.set_keys(keys);
            self.read = json;
        }
        Ok(())
    }
}
