//! What a certificate says of its owner.

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Names that one certificate gives its owner: URIs and DNS names among the
/// subject alternative names, and the subject's common names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names(Vec<String>);

impl Names {
    /// These names.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self(names.into_iter().map(str::to_owned).collect())
    }

    /// The names in a certificate, which somebody else must have found
    /// trustworthy; none, where it can't be understood.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return Self::default() };
        let mut names = Vec::new();
        if let Ok(Some(alternatives)) = parsed.subject_alternative_name() {
            for name in &alternatives.value.general_names {
                if let GeneralName::URI(name) | GeneralName::DNSName(name) = name {
                    names.push((*name).to_owned());
                }
            }
        }
        for name in parsed.subject().iter_common_name() {
            if let Ok(name) = name.as_str() {
                names.push(name.to_owned());
            }
        }
        Self(names)
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// The one to show in logs.
    pub fn first(&self) -> Option<&str> {
        self.0.first().map(String::as_str)
    }
}

/// When a certificate is no longer valid, in seconds since 1970; `None` where
/// it can't be understood.
pub fn expires_at(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    #[test]
    fn all_names_are_found() {
        let mut params = CertificateParams::new(["web.shop.svc".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI("spiffe://prod/ns/shop".try_into().unwrap()));
        params.distinguished_name.push(DnType::CommonName, "web");
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let names = Names::of(certificate.der());
        let found: Vec<_> = names.iter().collect();
        assert!(found.contains(&"spiffe://prod/ns/shop") && found.contains(&"web.shop.svc"), "{found:?}");
        assert!(found.contains(&"web"), "{found:?}");
        assert!(expires_at(certificate.der()).is_some());
        let garbage = CertificateDer::from(vec![1, 2, 3]);
        assert_eq!((Names::of(&garbage), expires_at(&garbage)), (Names::default(), None));
    }
}
