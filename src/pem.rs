//! Certificates and keys from PEM files, with errors that name the file.

use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls_pki_types::pem::{self, PemObject as _};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// A file of certificates or keys that is of no use.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    /// It can't be read, or does not hold what it should.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// It holds no certificate.
    #[error("{}: no certificate in it", .0.display())]
    NoCertificate(PathBuf),
    /// It holds a certificate that can't be trusted to sign others.
    #[error("{}: {source}", path.display())]
    Root {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// No file was named, and the system trusts nobody.
    #[error("the system has no trusted certificates; set ca_file")]
    NoSystemRoots,
}

/// The certificates in a file, at least one.
///
/// # Errors
/// The file can't be read, is no PEM, or holds none.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let wrong = |source| PemError::File { path: path.to_owned(), source };
    let found: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(wrong)?.collect::<Result<_, _>>().map_err(wrong)?;
    if found.is_empty() { Err(PemError::NoCertificate(path.to_owned())) } else { Ok(found) }
}

/// The first private key in a file.
///
/// # Errors
/// The file can't be read, is no PEM, or holds none.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, PemError> {
    PrivateKeyDer::from_pem_file(path).map_err(|source| PemError::File { path: path.to_owned(), source })
}

/// The certificates that others must lead to: those in a file, or the system's.
///
/// # Errors
/// The file is of no use, or the system has none.
pub fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, PemError> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(path) => {
            for certificate in certificates(path)? {
                let wrong = |source| PemError::Root { path: path.to_owned(), source };
                roots.add(certificate).map_err(wrong)?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(PemError::NoSystemRoots);
            }
        }
    }
    Ok(roots)
}
