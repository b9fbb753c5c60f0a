//! SASL for the raw reader, with the library that rskafka uses.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
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

/// Whose proof was refused, for people: never the secret itself.
pub(super) fn whose(config: &SaslConfig) -> String {
    if config.mechanism != SaslMechanism::OauthBearer {
        let name = name(config.mechanism);
        return format!(
            "user {:?} with {name}; is the password right, and is there such a user?",
            config.username
        );
    }
    match expired_for(password_now(config).reveal()) {
        Some(seconds) => format!("the OAUTHBEARER token, which expired {seconds} s ago"),
        None => "the OAUTHBEARER token; does it have the issuer, audience and key that brokers want?".into(),
    }
}

/// For how many seconds a token has been of no use, where it says so itself.
fn expired_for(token: &str) -> Option<u64> {
    let claims = token.split('.').nth(1)?;
    let claims = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    now.checked_sub(claims.get("exp")?.as_u64()?)
}

fn name(mechanism: SaslMechanism) -> &'static str {
    match mechanism {
        SaslMechanism::Plain => "PLAIN",
        SaslMechanism::ScramSha256 => "SCRAM-SHA-256",
        SaslMechanism::ScramSha512 => "SCRAM-SHA-512",
        SaslMechanism::OauthBearer => "OAUTHBEARER",
    }
}

/// Begins a proof with the password as it is now.
pub(super) fn session(config: &SaslConfig) -> io::Result<Session> {
    let mechanism = name(config.mechanism);
    let password = password_now(config);
    let secret = password.reveal().to_owned();
    let sasl = match config.mechanism {
        SaslMechanism::OauthBearer => {
            SASLConfig::builder().with_default_mechanisms().with_callback(Token(secret))
        }
        _ => SASLConfig::with_credentials(None, config.username.clone(), secret),
    };
    let parsed = Mechname::parse(mechanism.as_bytes()).map_err(io::Error::other)?;
    let client = SASLClient::new(sasl.map_err(io::Error::other)?);
    let exchange = client.start_suggested(&[parsed]).map_err(io::Error::other)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::config::Secret;

    #[test]
    fn a_refused_proof_is_named_without_its_secret() {
        let config = |mechanism, secret: &str| SaslConfig {
            mechanism,
            username: "gateway".to_owned(),
            password: Secret::new(secret),
            password_file: None,
        };
        let said = whose(&config(SaslMechanism::ScramSha512, "hunter2"));
        assert!(said.contains("\"gateway\" with SCRAM-SHA-512") && !said.contains("hunter2"), "{said}");
        let token = |exp: u64| format!("h.{}.s", URL_SAFE_NO_PAD.encode(format!("{{\"exp\":{exp}}}")));
        let said = whose(&config(SaslMechanism::OauthBearer, &token(1_000)));
        assert!(said.contains("which expired ") && !said.contains(&token(1_000)), "{said}");
        for other in [token(u64::MAX), "no token".to_owned(), "a.b.c".to_owned()] {
            let said = whose(&config(SaslMechanism::OauthBearer, &other));
            assert!(said.contains("issuer") && !said.contains(&other), "{said}");
        }
    }
}
