//! SASL for the raw reader, with the library that rskafka uses.

use std::io;

use rsasl::callback::{Context, Request, SessionCallback, SessionData};
use rsasl::config::SASLConfig;
use rsasl::mechname::Mechname;
use rsasl::prelude::{SASLClient, Session as Exchange, SessionError};
use rsasl::property::{OAuthBearerKV, OAuthBearerToken};

use super::config::{SaslConfig, SaslMechanism};
use super::connect::password_now;

/// One proof of who we are, step by step.
pub(super) struct Session {
    mechanism: &'static str,
    exchange: Exchange,
    done: bool,
}

/// Begins a proof with the password as it is now.
pub(super) fn session(config: &SaslConfig) -> io::Result<Session> {
    let mechanism = match config.mechanism {
        SaslMechanism::Plain => "PLAIN",
        SaslMechanism::ScramSha256 => "SCRAM-SHA-256",
        SaslMechanism::ScramSha512 => "SCRAM-SHA-512",
        SaslMechanism::OauthBearer => "OAUTHBEARER",
    };
    let password = password_now(config);
    let secret = password.reveal().to_owned();
    let sasl = match config.mechanism {
        SaslMechanism::OauthBearer => {
            SASLConfig::builder().with_default_mechanisms().with_callback(Token(secret))
        }
        _ => SASLConfig::with_credentials(None, config.username.clone(), secret),
    };
    let name = Mechname::parse(mechanism.as_bytes()).map_err(io::Error::other)?;
    let client = SASLClient::new(sasl.map_err(io::Error::other)?);
    let exchange = client.start_suggested(&[name]).map_err(io::Error::other)?;
    Ok(Session { mechanism, exchange, done: false })
}

impl Session {
    /// As Kafka spells it.
    pub(super) fn mechanism(&self) -> &'static str {
        self.mechanism
    }

    /// What to say next, after the broker has said `said`; `None` when all has
    /// been said.
    pub(super) fn step(&mut self, said: Option<&[u8]>) -> io::Result<Option<Vec<u8>>> {
        if self.done {
            return Ok(None);
        }
        let mut say = Vec::new();
        let state = self.exchange.step(said, &mut say).map_err(io::Error::other)?;
        self.done = state.is_finished();
        Ok(state.has_sent_message().then_some(say))
    }
}

struct Token(String);

impl SessionCallback for Token {
    fn callback(
        &self,
        _: &SessionData,
        _: &Context<'_>,
        request: &mut Request<'_>,
    ) -> Result<(), SessionError> {
        request.satisfy::<OAuthBearerKV>(&[])?.satisfy::<OAuthBearerToken>(&self.0)?;
        Ok(())
    }
}
