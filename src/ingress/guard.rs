//! The door: lets calls in that the access policy allows.

use std::sync::Arc;

use http::{HeaderMap, header};
use tonic::Status;

use super::config::AccessConfig;
use crate::access::{Caller, Claims, Names, Policy, Tokens};

/// Answered for everyone: probes of a cluster have no identity.
const OPEN: &str = "/grpc.health.v1.Health/";

/// Judges every request of the process.
#[derive(Debug)]
pub struct Guard {
    policy: Policy,
    tokens: Option<Arc<Tokens>>,
}

/// A request that was not let in.
pub(super) struct Refused {
    pub(super) status: Status,
    /// Of its token, where that is valid.
    pub(super) claims: Option<Arc<Claims>>,
}

impl Guard {
    /// A door with this policy; `tokens` checks tokens, where callers may have
    /// some.
    pub fn new(config: &AccessConfig, tokens: Option<Arc<Tokens>>) -> Self {
        Self { policy: config.policy.clone(), tokens }
    }

    /// Lets a request in, or says why not: `UNAUTHENTICATED` where it is not
    /// known who calls, `PERMISSION_DENIED` where it is.
    pub(super) fn admit(
        &self,
        names: Option<&Names>,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Option<Arc<Claims>>, Refused> {
        if path.starts_with(OPEN) {
            return Ok(None);
        }
        let claims = self.claims(headers);
        // A bad token is no better than none, and a rule may be content with none.
        let known = claims.as_ref().ok().and_then(Option::as_deref);
        let caller = Caller { certificate: names, claims: known };
        if self.policy.allows(caller, path) {
            return Ok(claims.unwrap_or_default());
        }
        Err(match claims {
            Err(status) => Refused { status, claims: None },
            Ok(None) if names.is_none() => {
                Refused { status: Status::unauthenticated(self.missing()), claims: None }
            }
            Ok(claims) => {
                let status = Status::permission_denied("the caller may not call this method");
                Refused { status, claims }
            }
        })
    }

    fn claims(&self, headers: &HeaderMap) -> Result<Option<Arc<Claims>>, Status> {
        let Some(tokens) = &self.tokens else { return Ok(None) };
        let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
        let scheme_and_token = value.to_str().ok().and_then(|text| text.split_once(' '));
        match scheme_and_token {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                let verified = tokens.verify(token.trim());
                verified.map(Some).map_err(|error| Status::unauthenticated(error.to_string()))
            }
            _ => Err(Status::unauthenticated("authorization is not of the form \"Bearer TOKEN\"")),
        }
    }

    fn missing(&self) -> &'static str {
        match &self.tokens {
            Some(_) => "the call has neither a token in authorization nor a client certificate",
            None => "the connection has no client certificate",
        }
    }
}
