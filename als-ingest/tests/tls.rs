//! TLS on the endpoint, with certificates made for the test.

#[expect(dead_code, reason = "each test crate uses a part of it")]
mod common;

use common::{DEADLINE, NODE, Stream, bytes, http, numbered, start_with};
use meshdiff_als::{AlsSettings, AlsTls, TlsError, TlsFiles};
use rcgen::{BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tonic::transport::{Channel, Endpoint};

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed"))
    }

    fn issue(&self, name: &str) -> (Certificate, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        (params.signed_by(&key, &self.0).expect("signed"), key)
    }

    /// A server's certificate and key in a folder.
    fn serve_from(&self, folder: &Path) -> TlsFiles {
        let (certificate, key) = self.issue("localhost");
        let files = TlsFiles { certificate: folder.join("tls.crt"), key: folder.join("tls.key"), client_ca: None };
        fs::write(&files.certificate, certificate.pem()).expect("written");
        fs::write(&files.key, key.serialize_pem()).expect("written");
        files
    }

    fn client(&self, identity: Option<(Certificate, KeyPair)>) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("a root");
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain: Vec<CertificateDer<'static>> = vec![certificate.der().clone()];
                let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
                builder.with_client_auth_cert(chain, key).expect("an identity")
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        TlsConnector::from(Arc::new(config))
    }
}

/// A connection to the server through a forwarder that does the client's TLS.
async fn channel(server: SocketAddr, tls: TlsConnector) -> Channel {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let (mut plain, _) = listener.accept().await.expect("a connection");
        let name = ServerName::try_from("localhost").expect("a name");
        let tcp = TcpStream::connect(server).await.expect("the server listens");
        if let Ok(mut tls) = tls.connect(name, tcp).await {
            drop(copy_bidirectional(&mut plain, &mut tls).await);
        }
    });
    Endpoint::from_shared(format!("http://{addr}")).expect("a URI").connect().await.expect("the forwarder listens")
}

#[tokio::test]
async fn entries_come_encrypted_and_plain_ones_are_refused() {
    let folder = TempDir::new().expect("a folder");
    let authority = Authority::new("a");
    let tls = AlsTls::load(authority.serve_from(folder.path())).expect("usable");
    let mut server = start_with(AlsSettings::default(), 16, Some(tls));
    let encrypted = channel(server.handle.local_addr(), authority.client(None)).await;
    let stream = Stream::open(&encrypted);
    stream.send(bytes(&http(Some(NODE), numbered("a", 50))));
    let (proxies, hops) = server.receive(50).await;
    assert_eq!((proxies.len(), hops.len()), (1, 50));
    assert_eq!(server.handle.stats().tls_failed, 0);

    let plain = Endpoint::from_shared(format!("http://{}", server.handle.local_addr())).expect("a URI");
    let plain = Stream::open(&plain.connect_lazy());
    plain.send(bytes(&http(Some(NODE), numbered("plain", 1))));
    let stats = server.wait_for("the plain connection is counted", |s| s.tls_failed >= 1).await;
    assert_eq!((stats.messages, stats.streams_open), (1, 1));
    // Another authority's client does not trust us.
    let stranger = Stream::open(&channel(server.handle.local_addr(), Authority::new("b").client(None)).await);
    stranger.send(bytes(&http(Some(NODE), numbered("stranger", 1))));
    server.wait_for("the distrustful client is counted", |s| s.tls_failed > stats.tls_failed).await;
}

#[tokio::test]
async fn only_clients_of_the_authority_are_let_in() {
    let folder = TempDir::new().expect("a folder");
    let (ours, clients) = (Authority::new("ours"), Authority::new("clients"));
    let mut files = ours.serve_from(folder.path());
    files.client_ca = Some(folder.path().join("ca.crt"));
    fs::write(folder.path().join("ca.crt"), clients.0.pem()).expect("written");
    let mut server = start_with(AlsSettings::default(), 16, Some(AlsTls::load(files).expect("usable")));
    let addr = server.handle.local_addr();
    for (n, identity) in [None, Some(ours.issue("envoy"))].into_iter().enumerate() {
        let stream = Stream::open(&channel(addr, ours.client(identity)).await);
        stream.send(bytes(&http(Some(NODE), numbered("refused", 1))));
        server.wait_for("it is refused", |s| s.tls_failed > n as u64).await;
    }
    let stream = Stream::open(&channel(addr, ours.client(Some(clients.issue("envoy")))).await);
    stream.send(bytes(&http(Some(NODE), numbered("let in", 3))));
    let (_, hops) = server.receive(3).await;
    assert!(hops.iter().all(|h| h.request_id.as_ref().is_some_and(|r| r.0.starts_with("let in"))));
}

#[tokio::test]
async fn new_certificates_are_taken_up_and_bad_ones_are_not() {
    let folder = TempDir::new().expect("a folder");
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let files = old.serve_from(folder.path());
    let mut server = start_with(AlsSettings::default(), 16, Some(AlsTls::load(files.clone()).expect("usable")));
    let addr = server.handle.local_addr();
    let first = Stream::open(&channel(addr, old.client(None)).await);
    first.send(bytes(&http(Some(NODE), numbered("first", 1))));
    server.receive(1).await;

    // Connections are tried until one comes late enough for another look at the files.
    let deadline = Instant::now() + DEADLINE;
    fs::write(&files.certificate, "-----BEGIN CERTIFICATE-----\nnonsense").expect("written");
    let mut tried = Vec::new();
    while server.handle.stats().tls_reloads_failed == 0 {
        assert!(Instant::now() < deadline, "the change was never seen");
        tried.push(Stream::open(&channel(addr, old.client(None)).await));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let again = Stream::open(&channel(addr, old.client(None)).await);
    again.send(bytes(&http(Some(NODE), numbered("still", 1))));
    server.receive(1).await;

    new.serve_from(folder.path());
    let deadline = Instant::now() + DEADLINE;
    while server.handle.stats().tls_reloads == 0 {
        assert!(Instant::now() < deadline, "the change was never seen");
        tried.push(Stream::open(&channel(addr, new.client(None)).await));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let late = Stream::open(&channel(addr, new.client(None)).await);
    late.send(bytes(&http(Some(NODE), numbered("new", 1))));
    // What was open stays open.
    first.send(bytes(&http(None, numbered("open", 1))));
    let (_, hops) = server.receive(2).await;
    assert_eq!(hops.len(), 2);
    assert!(!first.answer.is_finished());
}

#[test]
fn files_that_cannot_be_used_say_why() {
    let folder = TempDir::new().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let authority = Authority::new("a");
    let good = authority.serve_from(folder.path());
    let load = |files: &TlsFiles| AlsTls::load(files.clone()).map(drop);
    load(&good).expect("usable");
    let told = |files: TlsFiles| load(&files).expect_err("unusable");

    let missing = told(TlsFiles { certificate: path("missing.crt"), ..good.clone() });
    assert!(matches!(missing, TlsError::Unreadable { .. }) && missing.to_string().contains("missing.crt"), "{missing}");
    let swapped = told(TlsFiles { certificate: good.key.clone(), key: good.certificate.clone(), client_ca: None });
    assert!(matches!(swapped, TlsError::NoCertificate(_)), "{swapped}");
    let no_key = told(TlsFiles { key: good.certificate.clone(), ..good.clone() });
    assert!(matches!(no_key, TlsError::NoKey(_)), "{no_key}");
    fs::write(path("other.key"), authority.issue("other").1.serialize_pem()).expect("written");
    let other = told(TlsFiles { key: path("other.key"), ..good.clone() });
    assert!(matches!(other, TlsError::Unusable { .. }) && other.to_string().contains("other.key"), "{other}");
    fs::write(path("cut.crt"), "-----BEGIN CERTIFICATE-----\nMIIB").expect("written");
    let cut = told(TlsFiles { certificate: path("cut.crt"), ..good.clone() });
    assert!(matches!(cut, TlsError::NotPem { .. }), "{cut}");
    fs::write(path("no.crt"), "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n").expect("written");
    let ca = told(TlsFiles { client_ca: Some(path("no.crt")), ..good });
    assert!(matches!(ca, TlsError::ClientCa { .. }) && ca.to_string().contains("no.crt"), "{ca}");
}
