//! Tokens: JSON Web Tokens (RFC 7519) that are signed with one of the keys of a
//! JWK set (RFC 7517).
//!
//! What is checked, in this order: the form; that the signature is that of a
//! key of the set which has the token's `kid`, by an algorithm that this key
//! is for (so a public key is never taken for a shared secret, and `none` is
//! nothing); `exp`, which must be there, and `nbf`, each with the leeway for
//! clocks that differ; `iss` and `aud`, where they are configured. Sources: RFC
//! 8725 (best practices).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};

use super::Claims;

/// Tokens whose signature need not be checked again.
const REMEMBERED_MAX: usize = 1_024;
/// Longest token that is looked at, in bytes.
const TOKEN_BYTES_MAX: usize = 8 * 1_024;
/// Keys in a set.
const KEYS_MAX: usize = 100;

/// Why a token is not accepted. Says nothing that helps to forge one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is none, or too long.
    #[error("the token is malformed")]
    Malformed,
    /// No key for it.
    #[error("the token's key is not known")]
    UnknownKey,
    /// Signed otherwise than its key is for.
    #[error("the token's algorithm is not that of its key")]
    Algorithm,
    /// Somebody else's, or changed since.
    #[error("the token's signature does not match")]
    Signature,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Its time is still to come.
    #[error("the token is not valid yet")]
    NotYet,
    /// For somebody else, or from somebody else.
    #[error("the token's {0} is not the one expected")]
    Claim(&'static str),
    /// A claim that it must have.
    #[error("the token has no {0}")]
    Missing(String),
    /// No keys have been loaded yet.
    #[error("no keys to check tokens with have been loaded yet")]
    NoKeys,
}

/// A key set that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeysError {
    /// It is no JWK set.
    #[error("no JWK set: {0}")]
    Malformed(String),
    /// No key in it can check a signature.
    #[error("no key in the set can check signatures; expected RSA, EC (P-256, P-384) or Ed25519 keys")]
    NoUsableKey,
    /// Too many keys.
    #[error("{0} keys; at most {KEYS_MAX}")]
    TooMany(usize),
}

/// What a token must be besides signed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenRules {
    /// `iss` that it must have.
    pub issuer: Option<String>,
    /// One of its `aud`.
    pub audience: Option<String>,
    /// How far clocks may differ.
    pub leeway: Duration,
}

/// Keys that signatures are checked with.
#[derive(Clone, Default)]
pub struct VerifyingKeys {
    keys: Vec<VerifyingKey>,
}

#[derive(Clone)]
struct VerifyingKey {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

impl std::fmt::Debug for VerifyingKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|key| (&key.id, &key.algorithms))).finish()
    }
}

impl VerifyingKeys {
    /// Reads a JWK set. Keys that are no public ones for signatures are left
    /// out.
    ///
    /// # Errors
    /// It is none, or holds no key of use.
    pub fn parse(json: &[u8]) -> Result<Self, KeysError> {
        let set: JwkSet =
            serde_json::from_slice(json).map_err(|error| KeysError::Malformed(error.to_string()))?;
        if set.keys.len() > KEYS_MAX {
            return Err(KeysError::TooMany(set.keys.len()));
        }
        let keys: Vec<_> = set.keys.iter().filter_map(VerifyingKey::of).collect();
        if keys.is_empty() { Err(KeysError::NoUsableKey) } else { Ok(Self { keys }) }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

impl VerifyingKey {
    fn of(jwk: &Jwk) -> Option<Self> {
        if jwk.common.public_key_use.as_ref().is_some_and(|usage| *usage != PublicKeyUse::Signature) {
            return None;
        }
        let possible: &[Algorithm] = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => &[
                Algorithm::RS256,
                Algorithm::RS384,
                Algorithm::RS512,
                Algorithm::PS256,
                Algorithm::PS384,
                Algorithm::PS512,
            ],
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
                &[Algorithm::ES256]
            }
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => {
                &[Algorithm::ES384]
            }
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                &[Algorithm::EdDSA]
            }
            // A shared secret has no place in a set that is made known.
            _ => return None,
        };
        let algorithms = match jwk.common.key_algorithm {
            None => possible.to_vec(),
            Some(named) => {
                let named: Algorithm = named.to_string().parse().ok()?;
                possible.iter().copied().filter(|one| *one == named).collect()
            }
        };
        let key = DecodingKey::from_jwk(jwk).ok()?;
        (!algorithms.is_empty()).then(|| Self { id: jwk.common.key_id.clone(), algorithms, key })
    }
}

/// Checks tokens, and remembers those that were good.
#[derive(Debug)]
pub struct Tokens {
    rules: TokenRules,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    keys: Option<VerifyingKeys>,
    /// By the token's text: when it ends, in seconds since 1970, and what it says.
    good: HashMap<String, (u64, Arc<Claims>)>,
}

impl Tokens {
    /// Knows no keys yet.
    pub fn new(rules: TokenRules) -> Self {
        Self { rules, state: Mutex::default() }
    }

    /// From now on these keys count, and no other.
    pub fn set_keys(&self, keys: VerifyingKeys) {
        let mut state = self.lock();
        state.keys = Some(keys);
        state.good.clear();
    }

    /// Says what is in a token.
    ///
    /// # Errors
    /// The token is not acceptable.
    pub fn verify(&self, token: &str) -> Result<Arc<Claims>, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Malformed);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let keys = {
            let mut state = self.lock();
            match state.good.get(token) {
                Some((ends, claims)) if *ends > now => return Ok(Arc::clone(claims)),
                Some(_) => {
                    state.good.remove(token);
                }
                None => {}
            }
            state.keys.clone().ok_or(TokenError::NoKeys)?
        };
        let claims = Arc::new(self.check(&keys, token)?);
        let expires = claims.get("exp").and_then(serde_json::Value::as_f64).unwrap_or_default();
        // Past any float that is no time, a conversion saturates.
        let ends = (expires as u64).saturating_add(self.rules.leeway.as_secs());
        let mut state = self.lock();
        if state.good.len() >= REMEMBERED_MAX {
            state.good.retain(|_, (ends, _)| *ends > now);
        }
        if state.good.len() < REMEMBERED_MAX {
            state.good.insert(token.to_owned(), (ends, Arc::clone(&claims)));
        }
        Ok(claims)
    }

    fn check(&self, keys: &VerifyingKeys, token: &str) -> Result<Claims, TokenError> {
        let header = decode_header(token).map_err(|_| TokenError::Malformed)?;
        let named = |key: &&VerifyingKey| header.kid.is_none() || key.id == header.kid || key.id.is_none();
        let mut refused = TokenError::UnknownKey;
        for key in keys.keys.iter().filter(named) {
            if !key.algorithms.contains(&header.alg) {
                refused = TokenError::Algorithm;
                continue;
            }
            let mut validation = Validation::new(header.alg);
            validation.leeway = self.rules.leeway.as_secs();
            validation.validate_nbf = true;
            validation.validate_aud = self.rules.audience.is_some();
            if let Some(audience) = &self.rules.audience {
                validation.set_audience(&[audience]);
                validation.required_spec_claims.insert("aud".to_owned());
            }
            if let Some(issuer) = &self.rules.issuer {
                validation.set_issuer(&[issuer]);
                validation.required_spec_claims.insert("iss".to_owned());
            }
            match decode::<Claims>(token, &key.key, &validation) {
                Ok(data) => return Ok(data.claims),
                // Without a kid another key may be the one.
                Err(error) => refused = explain(error.kind()),
            }
            if refused != TokenError::Signature {
                break;
            }
        }
        Err(refused)
    }

    /// A poisoned lock holds a map that is still whole.
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn explain(kind: &ErrorKind) -> TokenError {
    match kind {
        ErrorKind::InvalidSignature => TokenError::Signature,
        ErrorKind::ExpiredSignature => TokenError::Expired,
        ErrorKind::ImmatureSignature => TokenError::NotYet,
        ErrorKind::InvalidAudience => TokenError::Claim("audience"),
        ErrorKind::InvalidIssuer => TokenError::Claim("issuer"),
        ErrorKind::MissingRequiredClaim(claim) => TokenError::Missing(claim.clone()),
        ErrorKind::InvalidAlgorithm => TokenError::Algorithm,
        _ => TokenError::Malformed,
    }
}

#[cfg(test)]
mod tests;
