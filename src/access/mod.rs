//! Who may call what.
//!
//! A policy is a list of rules, `WHO -> WHAT` each. Once there is one, a call
//! is let in only if a rule allows it; no rule takes anything away, so their
//! order does not matter.
//!
//! | WHO | who that is |
//! |---|---|
//! | `anyone` | every caller |
//! | `authenticated` | who shows a certificate that is trusted, or a token that is valid |
//! | `cert:PATTERN` | whose certificate has such a name: a URI (SPIFFE) or DNS name among its subject alternative names, or its subject's common name |
//! | `token:CLAIM=PATTERN` | whose token has such a claim; several, joined by `&`, must all hold |
//!
//! | WHAT | what that is |
//! |---|---|
//! | `*` | everything |
//! | `shop.v1.OrderService/*` | the methods of a service |
//! | `shop.v1.OrderService/Place` | one method |
//!
//! In a pattern `*` stands for any run of characters. A claim's name may be a
//! path with dots (`realm_access.roles`); a claim that is a list holds if one
//! of its items does, and `scope` if one of its words does (RFC 8693, section
//! 4.2).

mod certificate;
mod token;

use std::fmt;
use std::str::FromStr;

use serde_json::{Map, Value};

pub use certificate::{Names, expires_at};
pub use token::{KeysError, TokenError, TokenRules, Tokens, VerifyingKeys};

/// Claims of a token that is valid.
pub type Claims = Map<String, Value>;

/// Rules by which calls are let in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
}

/// Who calls, as far as it is proven.
#[derive(Debug, Clone, Copy, Default)]
pub struct Caller<'a> {
    /// Names in the certificate that was shown and is trusted.
    pub certificate: Option<&'a Names>,
    /// Claims of the token that was shown and is valid.
    pub claims: Option<&'a Claims>,
}

impl Policy {
    /// A policy of these rules.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self { rules }
    }

    /// The rules.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Whether a rule lets `caller` call the method at `path`
    /// (`/shop.v1.OrderService/Place`).
    pub fn allows(&self, caller: Caller<'_>, path: &str) -> bool {
        self.rules.iter().any(|rule| rule.what.covers(path) && rule.who.is(caller))
    }
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    who: Who,
    what: What,
}

impl Rule {
    /// What it is about.
    pub fn what(&self) -> &What {
        &self.what
    }

    /// Whether it needs a caller's token to be looked at.
    pub fn needs_token(&self) -> bool {
        matches!(self.who, Who::Token(_))
    }

    /// Whether it needs a caller's certificate to be looked at.
    pub fn needs_certificate(&self) -> bool {
        matches!(self.who, Who::Certificate(_))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Who {
    Anyone,
    Authenticated,
    Certificate(Pattern),
    /// Path of the claim, and what it must be.
    Token(Vec<(Vec<String>, Pattern)>),
}

impl Who {
    fn is(&self, caller: Caller<'_>) -> bool {
        match self {
            Self::Anyone => true,
            Self::Authenticated => caller.certificate.is_some() || caller.claims.is_some(),
            Self::Certificate(pattern) => {
                caller.certificate.is_some_and(|names| names.iter().any(|name| pattern.matches(name)))
            }
            Self::Token(conditions) => caller
                .claims
                .is_some_and(|claims| conditions.iter().all(|(path, pattern)| holds(claims, path, pattern))),
        }
    }
}

fn holds(claims: &Claims, path: &[String], pattern: &Pattern) -> bool {
    let Some((first, rest)) = path.split_first() else { return false };
    let found = rest.iter().try_fold(claims.get(first), |value, name| value.map(|value| value.get(name)));
    let Some(Some(value)) = found else { return false };
    match value {
        Value::Array(items) => {
            items.iter().any(|item| scalar(item).is_some_and(|text| pattern.matches(&text)))
        }
        Value::String(words) if path.len() == 1 && first == "scope" => {
            words.split_ascii_whitespace().any(|word| pattern.matches(word))
        }
        other => scalar(other).is_some_and(|text| pattern.matches(&text)),
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(yes) => Some(yes.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// What a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Everything that is served.
    Everything,
    /// The methods of a service.
    Service(String),
    /// One method of a service.
    Method(String, String),
}

impl What {
    fn covers(&self, path: &str) -> bool {
        let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else {
            return false;
        };
        match self {
            Self::Everything => true,
            Self::Service(name) => name == service,
            Self::Method(name, one) => name == service && one == method,
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everything => f.write_str("*"),
            Self::Service(service) => write!(f, "{service}/*"),
            Self::Method(service, method) => write!(f, "{service}/{method}"),
        }
    }
}

/// Text in which `*` stands for anything.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    parts: Vec<String>,
}

impl Pattern {
    fn new(text: &str) -> Self {
        Self { parts: text.split('*').map(str::to_owned).collect() }
    }

    fn matches(&self, text: &str) -> bool {
        let [first, middle @ .., last] = &self.parts[..] else {
            return self.parts.first().is_some_and(|whole| whole == text);
        };
        let Some(mut rest) = text.strip_prefix(first.as_str()) else { return false };
        for part in middle {
            match rest.find(part.as_str()) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        rest.len() >= last.len() && rest.ends_with(last.as_str())
    }
}

/// A rule that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// It has no arrow.
    #[error("{0:?} is no rule; a rule is WHO -> WHAT")]
    NoArrow(String),
    /// What stands in front of the arrow is nobody.
    #[error("{0:?} names nobody; expected anyone, authenticated, cert:PATTERN or token:CLAIM=PATTERN")]
    Who(String),
    /// What stands behind the arrow is nothing.
    #[error("{0:?} names no method; expected *, package.Service/* or package.Service/Method")]
    What(String),
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let (who, what) = text.split_once("->").ok_or_else(|| RuleError::NoArrow(text.to_owned()))?;
        Ok(Self { who: who.trim().parse()?, what: what.trim().parse()? })
    }
}

impl FromStr for Who {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let nobody = || RuleError::Who(text.to_owned());
        if let Some(pattern) = text.strip_prefix("cert:").filter(|pattern| !pattern.is_empty()) {
            return Ok(Self::Certificate(Pattern::new(pattern)));
        }
        if let Some(conditions) = text.strip_prefix("token:") {
            let condition = |text: &str| {
                let (claim, pattern) = text.trim().split_once('=')?;
                let path: Vec<_> = claim.trim().split('.').map(str::to_owned).collect();
                let whole = path.iter().all(|name| !name.is_empty()) && !pattern.trim().is_empty();
                whole.then(|| (path, Pattern::new(pattern.trim())))
            };
            let conditions: Option<_> = conditions.split('&').map(condition).collect();
            return conditions.map(Self::Token).ok_or_else(nobody);
        }
        match text {
            "anyone" => Ok(Self::Anyone),
            "authenticated" => Ok(Self::Authenticated),
            _ => Err(nobody()),
        }
    }
}

impl FromStr for What {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let name = |text: &str| {
            !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
        };
        match text.split_once('/') {
            _ if text == "*" => Ok(Self::Everything),
            Some((service, "*")) if name(service) => Ok(Self::Service(service.to_owned())),
            Some((service, method)) if name(service) && name(method) => {
                Ok(Self::Method(service.to_owned(), method.to_owned()))
            }
            _ => Err(RuleError::What(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const PATH: &str = "/shop.v1.OrderService/Place";

    fn policy(rules: &[&str]) -> Policy {
        Policy::new(rules.iter().map(|rule| rule.parse().unwrap()).collect())
    }

    fn claims(value: Value) -> Claims {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn nothing_is_allowed_that_no_rule_allows() {
        assert!(!policy(&[]).allows(Caller::default(), PATH));
        let others = policy(&["anyone -> shop.v1.OrderService/Find", "anyone -> shop.v1.Orders/*"]);
        assert!(!others.allows(Caller::default(), PATH));
        for rule in ["anyone -> *", "anyone -> shop.v1.OrderService/*", "anyone->shop.v1.OrderService/Place"]
        {
            assert!(policy(&[rule]).allows(Caller::default(), PATH), "{rule}");
        }
        for odd in ["", "/", "shop.v1.OrderService/Place", "/shop.v1.OrderService", "*"] {
            assert!(!policy(&["anyone -> *"]).allows(Caller::default(), odd), "{odd}");
        }
    }

    #[test]
    fn a_certificate_is_known_by_each_of_its_names() {
        let names = Names::new(["spiffe://prod/ns/shop/sa/web", "web.shop.svc", "web"]);
        let caller = Caller { certificate: Some(&names), claims: None };
        for who in
            ["cert:spiffe://prod/ns/shop/*", "cert:*.shop.svc", "cert:web", "authenticated", "cert:*/sa/*"]
        {
            assert!(policy(&[&format!("{who} -> *")]).allows(caller, PATH), "{who}");
        }
        for who in ["cert:spiffe://prod/ns/bank/*", "cert:we", "cert:web.shop", "cert:shop*", "token:sub=*"] {
            assert!(!policy(&[&format!("{who} -> *")]).allows(caller, PATH), "{who}");
        }
    }

    #[test]
    fn claims_are_texts_numbers_lists_and_paths() {
        let claims = claims(json!({
            "sub": "shop", "scope": "orders:read orders:write", "aud": ["a", "antiphon"], "level": 3,
            "realm_access": { "roles": ["teller"] }, "admin": true, "note": "orders:write too", "none": null,
        }));
        let caller = Caller { certificate: None, claims: Some(&claims) };
        for who in [
            "token:sub=shop",
            "token:scope=orders:write",
            "token:aud=antiphon",
            "token:level=3",
            "token:realm_access.roles=teller",
            "token:admin=true",
            "token:sub=shop & scope=orders:*",
            "authenticated",
        ] {
            assert!(policy(&[&format!("{who} -> *")]).allows(caller, PATH), "{who}");
        }
        for who in [
            "token:sub=Shop",
            "token:scope=orders",
            "token:note=orders:write",
            "token:realm_access=teller",
            "token:sub=shop & scope=bank:*",
            "token:none=*",
            "token:sub.x=*",
            "token:missing=*",
            "cert:shop",
        ] {
            assert!(!policy(&[&format!("{who} -> *")]).allows(caller, PATH), "{who}");
        }
        assert!(!policy(&["authenticated -> *"]).allows(Caller::default(), PATH));
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for no_rule in [
            "",
            "anyone",
            "-> *",
            "nobody -> *",
            "cert: -> *",
            "token: -> *",
            "token:sub -> *",
            "token:=x -> *",
            "token:sub= -> *",
            "token:a..b=x -> *",
            "anyone ->",
            "anyone -> Place",
            "anyone -> /a.B/C",
            "anyone -> a.B/C/D",
            "anyone -> a.B/C*",
            "anyone -> a.*/C",
            "token:sub=x &  -> *",
        ] {
            assert!(no_rule.parse::<Rule>().is_err(), "{no_rule}");
        }
    }

    proptest! {
        #[test]
        fn a_pattern_matches_as_the_obvious_matcher_does(pattern in "[ab*]{0,8}", text in "[ab]{0,10}") {
            fn obvious(pattern: &[u8], text: &[u8]) -> bool {
                match (pattern, text) {
                    ([], []) => true,
                    ([b'*', rest @ ..], _) => (0..=text.len()).any(|at| obvious(rest, &text[at..])),
                    ([p, pattern @ ..], [t, text @ ..]) => p == t && obvious(pattern, text),
                    _ => false,
                }
            }
            prop_assert_eq!(Pattern::new(&pattern).matches(&text), obvious(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
