//! TLS: a certificate and its key, and what becomes of them when they change.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    },
};

use crate::{
    config::TlsFiles,
    files::FileUnreadable,
    reload::{Look, Reloaded},
};

/// Why there is no TLS with these files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// One of them cannot be read.
    #[error(transparent)]
    File(#[from] FileUnreadable),
    /// One of them is no PEM, or has nothing of what is wanted.
    #[error("{path}: no {wanted} in PEM: {source}", path = path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        wanted: &'static str,
        /// What is wrong.
        source: pem::Error,
    },
    /// The certificate has no key of ours, or one that is not known.
    #[error("{cert} and {key} do not go together: {source}", cert = cert.display(), key = key.display())]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
}

/// What a listener speaks TLS with. A connection keeps the certificate that it began with.
#[derive(Debug)]
pub(super) struct Tls(Reloaded<ServerConfig, TlsError>);

impl Tls {
    pub(super) fn open(files: &TlsFiles) -> Result<Self, TlsError> {
        Reloaded::open(vec![files.cert.clone(), files.key.clone()], make).map(Self)
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.0.get())
    }

    pub(super) fn look(&self) -> Look<TlsError> {
        self.0.look()
    }
}

fn make(paths: &[PathBuf], contents: &[Vec<u8>]) -> Result<ServerConfig, TlsError> {
    let of = |index: usize| {
        let path = paths.get(index).map_or(Path::new(""), PathBuf::as_path);
        (path, contents.get(index).map_or(&[][..], Vec::as_slice))
    };
    let ((cert_path, cert), (key_path, key)) = (of(0), of(1));
    let pem = |path: &Path, wanted| {
        let path = path.to_owned();
        move |source| TlsError::Pem { path, wanted, source }
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert).collect();
    let chain = chain.and_then(|chain| if chain.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(chain) });
    let chain = chain.map_err(pem(cert_path, "certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(pem(key_path, "private key"))?;
    let pair = |source| TlsError::Pair { cert: cert_path.to_owned(), key: key_path.to_owned(), source };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(pair)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(pair)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
