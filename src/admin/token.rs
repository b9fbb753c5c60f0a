//! The token that requests to the admin listener carry.

use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

/// For probes, which have no token.
const OPEN: [&str; 2] = ["/live", "/ready"];

/// Where the token is; read for each request, so that it can change.
#[derive(Debug, Clone, Default)]
pub struct Token {
    file: Option<Arc<PathBuf>>,
}

impl Token {
    /// The token in this file; none, and everybody may ask.
    pub(super) fn new(file: Option<PathBuf>) -> Self {
        Self { file: file.map(Arc::new) }
    }

    /// Whether there is one at all.
    pub const fn is_asked_for(&self) -> bool {
        self.file.is_some()
    }

    /// Whether a request carries it, or need not.
    pub fn is_in(&self, headers: &HeaderMap) -> bool {
        if self.file.is_none() {
            return true;
        }
        let shown = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        let bearer = shown.split_at_checked("bearer ".len());
        let shown =
            bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer ")).map(|(_, token)| token);
        shown.is_some_and(|shown| self.is(shown))
    }

    /// Whether this is it.
    pub fn is(&self, shown: &[u8]) -> bool {
        let Some(file) = &self.file else { return false };
        let text = match std::fs::read_to_string(&**file) {
            Ok(text) => text,
            Err(error) => {
                tracing::error!(file = %file.display(), %error, "admin.token_file cannot be read; nobody is let in");
                return false;
            }
        };
        let wanted = text.lines().next().unwrap_or_default().trim();
        !wanted.is_empty() && same(shown, wanted.as_bytes())
    }
}

/// Takes as long wherever the first difference is.
fn same(one: &[u8], other: &[u8]) -> bool {
    let difference = one.iter().zip(other).fold(0, |seen, (a, b)| seen | (a ^ b));
    one.len() == other.len() && difference == 0
}

/// Lets a request through that carries the token, or needs none.
pub(super) async fn ask(State(token): State<Token>, request: Request, next: Next) -> Response {
    if OPEN.contains(&request.uri().path()) || token.is_in(request.headers()) {
        return next.run(request).await;
    }
    let how = [(header::WWW_AUTHENTICATE, "Bearer")];
    (StatusCode::UNAUTHORIZED, how, "authorization: Bearer with the token of admin.token_file\n")
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_of_the_file_lets_in() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        std::fs::write(&file, "open sesame\nmore\n").unwrap();
        let token = Token::new(Some(file.clone()));
        let with = |value: &str| HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())]);
        assert!(token.is_in(&with("Bearer open sesame")) && token.is_in(&with("bearer open sesame")));
        for wrong in ["Bearer open", "Bearer open sesame!", "Bearer ", "Basic open sesame", "Bearer", ""] {
            assert!(!token.is_in(&with(wrong)), "{wrong}");
        }
        assert!(!token.is_in(&HeaderMap::new()));
        std::fs::write(&file, "another").unwrap();
        assert!(token.is_in(&with("Bearer another")) && !token.is_in(&with("Bearer open sesame")));
        for none in ["", "\n"] {
            std::fs::write(&file, none).unwrap();
            assert!(!token.is_in(&with("Bearer ")) && !token.is_in(&HeaderMap::new()));
        }
        std::fs::remove_file(&file).unwrap();
        assert!(!token.is_in(&with("Bearer another")));
        assert!(Token::default().is_in(&HeaderMap::new()));
    }
}
