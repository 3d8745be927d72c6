//! The arguments of `agent`, and what is made of them.

use crate::args::{TlsUprobes, duration};
use crate::exit::Failure;
use crate::record::{self, Options as RecordOptions};
use crate::store::{ShipArgs, Shipping};
use clap::{Args, ValueEnum};
use meshdiff_als::TlsFiles;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Record on this node for good, and serve the last minutes over HTTP: the role of the DaemonSet.
///
/// Traces the pods with a sidecar in the chosen namespaces, keeps a rolling window on disk, and serves it to who knows the token:
/// /v1/capture and /v1/info; also /metrics, /healthz and /readyz, which need none. Ends on SIGTERM within some seconds.
#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// Address of the HTTP server
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:9902")]
    pub(crate) listen: SocketAddr,
    /// Address of the access log endpoint, to which the sidecars' ALS settings must point
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:9901")]
    pub(crate) als_listen: SocketAddr,
    /// Serve the access log endpoint with TLS: its certificate, and those between it and the root, as PEM. Read again when it changes
    #[arg(long, value_name = "FILE", requires = "als_tls_key")]
    pub(crate) als_tls_cert: Option<PathBuf>,
    /// The certificate's private key, as PEM
    #[arg(long, value_name = "FILE", requires = "als_tls_cert")]
    pub(crate) als_tls_key: Option<PathBuf>,
    /// Let only Envoys in whose certificate leads to one of these, as PEM
    #[arg(long, value_name = "FILE", requires = "als_tls_cert")]
    pub(crate) als_tls_client_ca: Option<PathBuf>,
    /// The folder of the window
    #[arg(long, value_name = "DIR", default_value = "/var/lib/meshdiff")]
    pub(crate) window: PathBuf,
    /// How far back the window reaches
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30m")]
    pub(crate) keep: Duration,
    /// How much the window may take on the disk, for instance 500MiB; its oldest minutes go beyond that
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "1GiB")]
    pub(crate) keep_bytes: u64,
    /// Length of one segment of the window, each of which is a capture of its own
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30s")]
    pub(crate) segment: Duration,
    /// Trace pods of this Kubernetes namespace (can be repeated); all but kube-system if left out
    #[arg(short, long, value_name = "NS")]
    pub(crate) namespace: Vec<String>,
    /// File with the token that callers of /v1 must send in X-Meshdiff-Token. Read again when it changes
    #[arg(long, value_name = "FILE", default_value = "/etc/meshdiff/token")]
    pub(crate) token_file: PathBuf,
    /// Name of this node in Kubernetes
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub(crate) node_name: Option<String>,
    /// Do without the Kubernetes API: pods are told from what their sidecars say of themselves
    #[arg(long)]
    pub(crate) no_kube: bool,
    /// Record access logs only: no privileges needed, and only bounds of the segments known
    #[arg(long)]
    pub(crate) no_probes: bool,
    /// Keep no request's path (queries, headers and bodies are never kept)
    #[arg(long)]
    pub(crate) redact_paths: bool,
    /// Tell the requests of applications that encrypt them themselves with a shared OpenSSL, by following its calls
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = TlsUprobes::Auto)]
    pub(crate) tls_uprobes: TlsUprobes,
    /// Size of the kernel's ring buffer in MiB, a power of two: more for busier nodes
    #[arg(long, value_name = "MIB", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) ring_size: u32,
    #[command(flatten)]
    pub(crate) ship: ShipArgs,
    /// How logs are written to stderr
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text)]
    pub(crate) log_format: LogFormat,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// What an agent is to do.
#[derive(Clone, Debug)]
pub(crate) struct AgentOptions {
    pub(crate) listen: SocketAddr,
    pub(crate) window: PathBuf,
    pub(crate) limits: super::window::Limits,
    pub(crate) segment: Duration,
    pub(crate) namespaces: super::pods::Namespaces,
    pub(crate) token_file: PathBuf,
    pub(crate) node_name: Option<String>,
    pub(crate) kube: bool,
    /// Where segments are sent to.
    pub(crate) shipping: Option<Shipping>,
    /// The part that `record` does as well.
    pub(crate) record: RecordOptions,
}

impl TryFrom<AgentArgs> for AgentOptions {
    type Error = Failure;

    fn try_from(args: AgentArgs) -> Result<Self, Failure> {
        if args.segment < Duration::from_secs(2) || args.segment > args.keep {
            return Err(Failure::Usage(
                "--segment must be at least 2s, which is how often the agent writes, and at most --keep".to_owned(),
            ));
        }
        if args.keep_bytes < 1 << 20 {
            return Err(Failure::Usage("--keep-bytes must be at least 1MiB".to_owned()));
        }
        let als_tls = match (args.als_tls_cert, args.als_tls_key) {
            (Some(certificate), Some(key)) => Some(TlsFiles { certificate, key, client_ca: args.als_tls_client_ca }),
            _ => None,
        };
        Ok(Self {
            listen: args.listen,
            limits: super::window::Limits { keep: args.keep, keep_bytes: args.keep_bytes },
            segment: args.segment,
            namespaces: super::pods::Namespaces::new(args.namespace),
            token_file: args.token_file,
            shipping: Shipping::of(&args.ship, &args.window, args.node_name.as_deref().filter(|n| !n.is_empty()))?,
            node_name: args.node_name.filter(|n| !n.is_empty()),
            kube: !args.no_kube,
            record: RecordOptions {
                output: args.window.clone(),
                duration: None,
                als_listen: args.als_listen,
                als_tls,
                probes: !args.no_probes,
                selection: meshdiff_discovery::Selection::Mesh,
                force: false,
                raw: false,
                redact_paths: args.redact_paths,
                ring_bytes: record::ring_bytes(args.ring_size)?,
                follow_libraries: record::reach(args.tls_uprobes),
                quiet: true,
                // The agent asks by itself.
                node_name: None,
            },
            window: args.window,
        })
    }
}

/// A size as people write it: `500MiB`, `1G`, `1048576`.
fn size(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is not a size such as 500MiB or 1GiB");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let factor = match unit.trim() {
        "" | "B" => 1,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        "KB" | "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(bad()),
    };
    number.checked_mul(factor).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("1GiB"), Ok(1 << 30));
        assert_eq!(size("500MB"), Ok(500_000_000));
        assert_eq!(size("4096"), Ok(4096));
        for bad in ["", "GiB", "1 parsec", "-1", "99999999999TiB", "1.5G"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
