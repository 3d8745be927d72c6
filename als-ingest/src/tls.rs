//! TLS on the endpoint: the certificate, its key and the authority of the clients, read again when their files change.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};

/// How often the files are looked at, at most: when a connection comes.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Where the certificates are, as PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The endpoint's certificate, followed by those between it and the root.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Certificates that clients' certificates must lead to. Without it every client is let in.
    pub client_ca: Option<PathBuf>,
}

/// Why the endpoint cannot do TLS with these files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}", path = .path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not PEM, or what is in it is cut short.
    #[error("{path} is not PEM: {source}", path = .path.display())]
    NotPem {
        /// Which.
        path: PathBuf,
        /// Why.
        source: pem::Error,
    },
    /// A file holds no certificate.
    #[error("{path} holds no certificate (no `-----BEGIN CERTIFICATE-----`)", path = .0.display())]
    NoCertificate(PathBuf),
    /// A file holds no private key.
    #[error("{path} holds no private key (no `-----BEGIN PRIVATE KEY-----`, and none of PKCS#1 or SEC1 either)", path = .0.display())]
    NoKey(PathBuf),
    /// Certificate and key cannot be used.
    #[error("the certificate {certificate} and the key {key} cannot be used together: {source}", certificate = .certificate.display(), key = .key.display())]
    Unusable {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The clients' authority cannot be used.
    #[error("clients cannot be checked with {path}: {reason}", path = .path.display())]
    ClientCa {
        /// Its file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// TLS of the endpoint. Connections that are open keep what they began with.
#[derive(Debug)]
pub struct AlsTls {
    files: TlsFiles,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    config: Arc<ServerConfig>,
    seen: Vec<Seen>,
    looked: Instant,
}

/// By what a file is known to be the same: Kubernetes replaces a secret's files by turning a symbolic link, which changes the inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl From<Metadata> for Seen {
    fn from(of: Metadata) -> Self {
        Self { device: of.dev(), inode: of.ino(), size: of.size(), modified: (of.mtime(), of.mtime_nsec()) }
    }
}

/// What became of a look at the files.
#[derive(Debug)]
pub(crate) enum Reload {
    /// They are as they were, or it is too soon to look again.
    Same,
    /// They were read anew.
    Done,
    /// They have changed, and cannot be used.
    Failed(TlsError),
}

impl AlsTls {
    /// Reads the files.
    ///
    /// # Errors
    /// If one of them cannot be read, or is not what it should be.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let seen = look(&files)?;
        let config = configure(&files)?;
        Ok(Self { files, current: Mutex::new(Current { config, seen, looked: Instant::now() }) })
    }

    /// What a connection that comes now begins with. Files that changed to the worse leave what there was.
    pub(crate) fn config(&self) -> (Arc<ServerConfig>, Reload) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reload = Reload::Same;
        if current.looked.elapsed() >= LOOK_EVERY {
            current.looked = Instant::now();
            reload = self.look_again(&mut current);
        }
        (Arc::clone(&current.config), reload)
    }

    fn look_again(&self, current: &mut Current) -> Reload {
        let seen = match look(&self.files) {
            Ok(seen) if seen == current.seen => return Reload::Same,
            Ok(seen) => seen,
            // Said once: there is no file to be compared with until all are back.
            Err(_) if current.seen.is_empty() => return Reload::Same,
            Err(error) => {
                current.seen.clear();
                return Reload::Failed(error);
            }
        };
        current.seen = seen;
        match configure(&self.files) {
            Ok(config) => {
                current.config = config;
                Reload::Done
            }
            Err(error) => Reload::Failed(error),
        }
    }
}

fn look(files: &TlsFiles) -> Result<Vec<Seen>, TlsError> {
    let all = [Some(&files.certificate), Some(&files.key), files.client_ca.as_ref()];
    let seen = |path: &PathBuf| match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.into()),
        Err(source) => Err(TlsError::Unreadable { path: path.clone(), source }),
    };
    all.into_iter().flatten().map(seen).collect()
}

fn configure(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let chain = certificates(&files.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)?).map_err(|source| match source {
        pem::Error::NoItemsFound => TlsError::NoKey(files.key.clone()),
        source => TlsError::NotPem { path: files.key.clone(), source },
    })?;
    let unusable =
        |source| TlsError::Unusable { certificate: files.certificate.clone(), key: files.key.clone(), source };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => builder.with_client_cert_verifier(clients(path, &provider)?),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(unusable)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

fn clients(
    path: &Path,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let refused = |reason: String| TlsError::ClientCa { path: path.to_owned(), reason };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|e| refused(e.to_string()))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
        .build()
        .map_err(|e: VerifierBuilderError| refused(e.to_string()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path)?;
    let all: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|source| TlsError::NotPem { path: path.to_owned(), source })?;
    if all.is_empty() { Err(TlsError::NoCertificate(path.to_owned())) } else { Ok(all) }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Unreadable { path: path.to_owned(), source })
}
