//! A real Envoy sends its access logs to `meshdiff record --als-tls-…`: over TLS, over mTLS, and in vain without a certificate.

use meshdiff_e2e::Recorder;
use meshdiff_lab::certs::Authority;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// No condition takes this long on any machine that works.
const DEADLINE: Duration = Duration::from_secs(60);

/// Certificate, key and root of one end, in a folder of its own.
fn identity(authority: &Authority, name: &str, parent: &Path) -> PathBuf {
    let folder = parent.join(name);
    std::fs::create_dir(&folder).expect("a folder");
    authority.issue(&format!("spiffe://cluster.local/ns/default/sa/{name}"), &folder).expect("issued");
    folder
}

fn file(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().expect("UTF-8").to_owned()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}

/// An Envoy that answers everything itself, and logs to a port with TLS. Ended when dropped.
struct Envoy {
    child: Child,
    listens: SocketAddr,
}

impl Envoy {
    fn start(node: &str, als_port: u16, root: &str, own: Option<&Path>, folder: &Path) -> Self {
        let port = free_port();
        let certificates: Vec<Value> = own
            .iter()
            .map(|own| {
                json!({
                    "certificate_chain": { "filename": file(own, "cert-chain.pem") },
                    "private_key": { "filename": file(own, "key.pem") },
                })
            })
            .collect();
        let address = |port: u16| json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } });
        let of = |name: &str| format!("type.googleapis.com/envoy.{name}");
        let log = json!({
            "name": "envoy.access_loggers.http_grpc",
            "typed_config": {
                "@type": of("extensions.access_loggers.grpc.v3.HttpGrpcAccessLogConfig"),
                "common_config": {
                    "log_name": "tls", "transport_api_version": "V3", "buffer_flush_interval": "0.1s",
                    "grpc_service": { "envoy_grpc": { "cluster_name": "als" } },
                },
            },
        });
        let http = json!({
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": of("extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"),
                "stat_prefix": "in",
                "route_config": { "virtual_hosts": [{
                    "name": "all", "domains": ["*"],
                    "routes": [{ "match": { "prefix": "/" }, "direct_response": { "status": 200 } }],
                }] },
                "http_filters": [{
                    "name": "envoy.filters.http.router",
                    "typed_config": { "@type": of("extensions.filters.http.router.v3.Router") },
                }],
                "access_log": [log],
            },
        });
        let als = json!({
            "name": "als", "type": "STATIC", "connect_timeout": "1s",
            "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": of("extensions.upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": { "http2_protocol_options": {} },
            } },
            "load_assignment": {
                "cluster_name": "als",
                "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(als_port) } }] }],
            },
            "transport_socket": {
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": of("extensions.transport_sockets.tls.v3.UpstreamTlsContext"),
                    "common_tls_context": {
                        "alpn_protocols": ["h2"], "tls_certificates": certificates,
                        "validation_context": { "trusted_ca": { "filename": root } },
                    },
                },
            },
        });
        let config = json!({
            "node": { "id": format!("sidecar~10.9.9.9~{node}.default~default.svc.cluster.local"), "cluster": node },
            "static_resources": {
                "listeners": [{ "name": "in", "address": address(port), "filter_chains": [{ "filters": [http] }] }],
                "clusters": [als],
            },
        });
        let path = folder.join(format!("{node}.json"));
        std::fs::write(&path, config.to_string()).expect("written");
        let child = Command::new(envoy())
            .args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "error", "--config-path"])
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("Envoy starts");
        Self { child, listens: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    /// Makes a request; false while nobody listens.
    fn ask(&self) -> bool {
        let Ok(mut to) = TcpStream::connect(self.listens) else { return false };
        let mut answer = Vec::new();
        to.write_all(b"GET /tls HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").is_ok()
            && to.read_to_end(&mut answer).is_ok()
            && answer.starts_with(b"HTTP/1.1 200")
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn envoy() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.cache/envoy/1.40.0/envoy");
    let path = std::env::var_os("MESHDIFF_LAB_ENVOY").map_or_else(|| PathBuf::from(default), PathBuf::from);
    assert!(path.is_file(), "there is no Envoy at {}: run tests/lab/setup.sh", path.display());
    path
}

/// What the recording says of its access logs at its last roll.
fn als(capture: &Path) -> Value {
    let text = std::fs::read_to_string(capture.join("meta.json")).expect("a capture says what it is");
    serde_json::from_str::<Value>(&text).expect("JSON")["als"].take()
}

/// Lets an Envoy make requests until the recording says what it should.
fn until(envoy: &Envoy, capture: &Path, what: &str, holds: impl Fn(&Value) -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !(envoy.ask() && holds(&als(capture))) {
        assert!(Instant::now() < deadline, "{what} did not come true: {}", als(capture));
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn envoys_log_over_tls_and_with_a_certificate_over_mtls() {
    let tmp = tempfile::tempdir().expect("a folder");
    let authority = Authority::new().expect("an authority");
    let server = identity(&authority, "meshdiff", tmp.path());
    let client = identity(&authority, "client", tmp.path());
    let root = file(&server, "root-cert.pem");
    let (cert, key) = (file(&server, "cert-chain.pem"), file(&server, "key.pem"));
    let tls = ["--no-probes", "--als-tls-cert", &cert, "--als-tls-key", &key];

    let (capture, port) = (tmp.path().join("tls"), free_port());
    let recorder = Recorder::start(&capture, port, &tls);
    let anyone = Envoy::start("anyone", port, &root, None, tmp.path());
    until(&anyone, &capture, "TLS", |als| als["http"]["kept"].as_u64() > Some(3));
    drop(anyone);
    drop(recorder.stop());
    assert_eq!(als(&capture)["trouble"]["tls_failed"], Value::Null);

    let (capture, port) = (tmp.path().join("mtls"), free_port());
    let recorder = Recorder::start(&capture, port, &[&tls[..], &["--als-tls-client-ca", &root]].concat());
    let stranger = Envoy::start("stranger", port, &root, None, tmp.path());
    until(&stranger, &capture, "a handshake without a certificate is counted", |als| {
        als["trouble"]["tls_failed"].as_u64() > Some(0)
    });
    drop(stranger);
    assert_eq!(als(&capture)["http"]["received"], 0, "nobody comes in without a certificate");
    let known = Envoy::start("known", port, &root, Some(&client), tmp.path());
    until(&known, &capture, "mTLS", |als| als["http"]["kept"].as_u64() > Some(3));
    drop(known);
    drop(recorder.stop());
}
