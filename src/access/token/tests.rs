//! Tokens that are good, and all the ways in which they are not.

use jsonwebtoken::jwk::KeyAlgorithm;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};

use super::*;

/// An EC key, and what is made known of it.
struct Signer {
    key: EncodingKey,
    jwk: Jwk,
}

impl Signer {
    fn new(id: &str) -> Self {
        let pair = rcgen::KeyPair::generate().unwrap();
        let key = EncodingKey::from_ec_der(&pair.serialize_der());
        let mut jwk = Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap();
        jwk.common.key_id = Some(id.to_owned());
        Self { key, jwk }
    }

    fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = self.jwk.common.key_id.clone();
        encode(&header, claims, &self.key).unwrap()
    }
}

fn set(signers: &[&Signer]) -> VerifyingKeys {
    let keys: Vec<_> = signers.iter().map(|signer| &signer.jwk).collect();
    VerifyingKeys::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap()
}

fn tokens(signers: &[&Signer]) -> Tokens {
    let rules = TokenRules {
        issuer: Some("https://idp".to_owned()),
        audience: Some("antiphon".to_owned()),
        leeway: Duration::from_secs(30),
    };
    let tokens = Tokens::new(rules);
    tokens.set_keys(set(signers));
    tokens
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn claims(change: impl FnOnce(&mut Value)) -> Value {
    let mut claims =
        json!({ "iss": "https://idp", "aud": ["antiphon", "other"], "sub": "shop", "exp": now() + 60 });
    change(&mut claims);
    claims
}

#[test]
fn a_good_token_tells_its_claims_twice() {
    let signer = Signer::new("a");
    let tokens = tokens(&[&signer]);
    let token = signer.sign(&claims(|_| {}));
    for _ in 0..2 {
        assert_eq!(tokens.verify(&token).unwrap()["sub"], "shop");
    }
    assert_eq!(tokens.lock().good.len(), 1);
}

#[test]
fn what_is_wrong_is_told_apart() {
    let signer = Signer::new("a");
    let tokens = tokens(&[&signer]);
    let refusal = |change: fn(&mut Value)| tokens.verify(&signer.sign(&claims(change))).unwrap_err();
    assert_eq!(refusal(|c| c["exp"] = json!(now() - 60)), TokenError::Expired);
    assert_eq!(refusal(|c| c["nbf"] = json!(now() + 60)), TokenError::NotYet);
    assert_eq!(refusal(|c| c["iss"] = json!("https://else")), TokenError::Claim("issuer"));
    assert_eq!(refusal(|c| c["aud"] = json!("else")), TokenError::Claim("audience"));
    let drop = |name: &'static str| {
        let mut claims = claims(|_| {});
        claims.as_object_mut().unwrap().remove(name);
        tokens.verify(&signer.sign(&claims)).unwrap_err()
    };
    for name in ["exp", "iss", "aud"] {
        assert_eq!(drop(name), TokenError::Missing(name.to_owned()));
    }
    for none in ["", "a", "a.b.c", &"x".repeat(TOKEN_BYTES_MAX + 1)] {
        assert_eq!(tokens.verify(none).unwrap_err(), TokenError::Malformed);
    }
    // Within the leeway.
    tokens.verify(&signer.sign(&claims(|c| c["exp"] = json!(now() - 10)))).unwrap();
    tokens.verify(&signer.sign(&claims(|c| c["nbf"] = json!(now() + 10)))).unwrap();
}

/// Each byte of a token counts.
#[test]
fn a_token_that_was_changed_is_refused() {
    let signer = Signer::new("a");
    let tokens = tokens(&[&signer]);
    let token = signer.sign(&claims(|_| {}));
    for at in 0..token.len() {
        let mut changed = token.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'Q' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        // The last character of a part holds bits that no byte has.
        let same_bytes = at + 1 == token.len() || token.as_bytes()[at + 1] == b'.';
        assert!(tokens.verify(&changed).is_err() || same_bytes, "{at}");
    }
    assert_eq!(tokens.verify(&Signer::new("a").sign(&claims(|_| {}))), Err(TokenError::Signature));
    assert_eq!(tokens.verify(&Signer::new("b").sign(&claims(|_| {}))), Err(TokenError::UnknownKey));
}

/// The public key taken for the secret of an HMAC, and no signature at all.
#[test]
fn no_other_algorithm_is_taken() {
    let signer = Signer::new("a");
    let tokens = tokens(&[&signer]);
    let public = serde_json::to_vec(&signer.jwk).unwrap();
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some("a".to_owned());
    let forged = encode(&header, &claims(|_| {}), &EncodingKey::from_secret(&public)).unwrap();
    assert_eq!(tokens.verify(&forged), Err(TokenError::Algorithm));

    use base64::Engine as _;
    let part = |text: String| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
    let none =
        format!("{}.{}.", part(json!({ "alg": "none" }).to_string()), part(claims(|_| {}).to_string()));
    assert_eq!(tokens.verify(&none), Err(TokenError::Malformed));
}

#[test]
fn keys_rotate() {
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let tokens = Tokens::new(TokenRules { leeway: Duration::ZERO, ..TokenRules::default() });
    let (of_old, of_new) = (old.sign(&claims(|_| {})), new.sign(&claims(|_| {})));
    assert_eq!(tokens.verify(&of_old), Err(TokenError::NoKeys));
    tokens.set_keys(set(&[&old]));
    tokens.verify(&of_old).unwrap();
    assert_eq!(tokens.verify(&of_new), Err(TokenError::UnknownKey));
    tokens.set_keys(set(&[&old, &new]));
    tokens.verify(&of_old).unwrap();
    tokens.verify(&of_new).unwrap();
    // What was remembered is forgotten with its key.
    tokens.set_keys(set(&[&new]));
    assert_eq!(tokens.verify(&of_old), Err(TokenError::UnknownKey));
}

#[test]
fn a_set_has_keys_of_use_or_says_why_not() {
    assert!(matches!(VerifyingKeys::parse(b"[]"), Err(KeysError::Malformed(_))));
    assert_eq!(VerifyingKeys::parse(br#"{"keys":[]}"#).unwrap_err(), KeysError::NoUsableKey);
    let shared = br#"{"keys":[{"kty":"oct","k":"c2VjcmV0","alg":"HS256"}]}"#;
    assert_eq!(VerifyingKeys::parse(shared).unwrap_err(), KeysError::NoUsableKey);
    let signer = Signer::new("a");
    let mut for_encryption = signer.jwk.clone();
    for_encryption.common.public_key_use = Some(PublicKeyUse::Encryption);
    let mut for_other = signer.jwk.clone();
    for_other.common.key_algorithm = Some(KeyAlgorithm::RS256);
    for useless in [for_encryption, for_other] {
        let json = json!({ "keys": [useless] }).to_string();
        assert_eq!(VerifyingKeys::parse(json.as_bytes()).unwrap_err(), KeysError::NoUsableKey);
    }
    let many = vec![&signer.jwk; KEYS_MAX + 1];
    let json = json!({ "keys": many }).to_string();
    assert_eq!(VerifyingKeys::parse(json.as_bytes()).unwrap_err(), KeysError::TooMany(KEYS_MAX + 1));
}

#[test]
fn no_more_tokens_are_remembered_than_there_is_room_for() {
    let signer = Signer::new("a");
    let tokens = tokens(&[&signer]);
    for n in 0..REMEMBERED_MAX + 10 {
        tokens.verify(&signer.sign(&claims(|c| c["jti"] = json!(n)))).unwrap();
    }
    assert_eq!(tokens.lock().good.len(), REMEMBERED_MAX);
}
