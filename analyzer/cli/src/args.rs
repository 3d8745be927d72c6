//! The command line, as it was typed. Validated options are made of it where they are used.

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

const AFTER_HELP: &str = "\
Exit codes: 0 ok, 1 failed, 2 wrong usage, 4 too little data to say anything.

Example, on a machine with sidecars whose access logs go to port 9901 of it:
  meshdiff record --duration 30s --output capture
  meshdiff report --capture capture --format html --output report.html";

/// Where the time of a request through an Istio mesh went.
///
/// Splits the time that a client waited into application, sidecars, the loopback between them, and the network: from eBPF
/// probes on the sockets and Envoy's access logs, joined for each request.
#[derive(Debug, Parser)]
#[command(version, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    /// Say more on stderr; repeat for more still (MESHDIFF_LOG takes filters such as `debug` or `meshdiff_als=trace`)
    #[arg(short, long, action = ArgAction::Count, global = true)]
    pub(crate) verbose: u8,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Record on this machine, or in a cluster with --namespace: probes and access logs, into a capture
    Record(Box<RecordArgs>),
    /// Say where the time went: as a table, HTML, JSON or Markdown
    Report(ReportArgs),
    /// Print one line of JSON for each request that a client sent
    Requests(RequestsArgs),
    /// Put captures into a ClickHouse, for reports past what one machine holds
    Store(crate::store::StoreArgs),
    /// Say what this machine or a cluster allows, and what to do about what it does not
    Check(CheckArgs),
    /// Record on this node for good, and serve the last minutes over HTTP (the role of the DaemonSet)
    Agent(Box<crate::agent::AgentArgs>),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// The size of the kernel's ring buffer in MiB, if nothing else is said.
pub(crate) const RING_SIZE: u32 = 16;
/// What means a recording in a cluster.
const OF_A_CLUSTER: [&str; 6] = ["targets", "namespace", "all_namespaces", "selector", "context", "kubeconfig"];

/// Record on this machine, or in a cluster: probes and access logs, into a capture.
///
/// With a namespace or workloads, in a cluster in which no agents are installed: starts one for the time of the recording on each node that has
/// pods with a sidecar there, fetches what they recorded through the API server, and removes them, whatever happens. Where agents are
/// installed it uses those. Ctrl-C ends the recording and keeps what there is.
///
/// Without, on this machine. Watches every network namespace but the host's that has an Envoy or a listener on 15001 or 15006, looking again every second.
/// Ends after --duration or on Ctrl-C, then waits 3 s for the access logs that Envoy still holds (a second Ctrl-C ends that at once).
/// Whatever ends it, what was recorded until a second before stays readable.
#[derive(Debug, Args)]
pub(crate) struct RecordArgs {
    /// Record in a cluster, on the nodes of these workloads' pods: deploy/NAME, sts/NAME, ds/NAME, svc/NAME or pod/NAME
    #[arg(value_name = "KIND/NAME", conflicts_with = "selector", help_heading = "Cluster")]
    pub(crate) targets: Vec<String>,
    /// The capture: a folder, which must not exist or be empty
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// How long to record, for instance 30s or 5m; until Ctrl-C if left out
    #[arg(short, long, value_name = "TIME", value_parser = duration)]
    pub(crate) duration: Option<Duration>,
    /// Address of the access log endpoint, to which the sidecars' ALS settings must point
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:9901", conflicts_with_all = OF_A_CLUSTER)]
    pub(crate) als_listen: SocketAddr,
    /// Serve the access log endpoint with TLS: its certificate, and those between it and the root, as PEM. Read again when it changes
    #[arg(long, value_name = "FILE", requires = "als_tls_key", conflicts_with_all = OF_A_CLUSTER)]
    pub(crate) als_tls_cert: Option<PathBuf>,
    /// The certificate's private key, as PEM
    #[arg(long, value_name = "FILE", requires = "als_tls_cert")]
    pub(crate) als_tls_key: Option<PathBuf>,
    /// Let only Envoys in whose certificate leads to one of these, as PEM
    #[arg(long, value_name = "FILE", requires = "als_tls_cert")]
    pub(crate) als_tls_client_ca: Option<PathBuf>,
    /// Record access logs only: no privileges needed, and only bounds of the segments known
    #[arg(long)]
    pub(crate) no_probes: bool,
    /// Watch this network namespace only: a name of `ip netns`, a path, or an inode number (can be repeated)
    #[arg(long, value_name = "NETNS", conflicts_with_all = ["all_netns", "no_probes"], conflicts_with_all = OF_A_CLUSTER)]
    pub(crate) netns: Vec<String>,
    /// Watch the network namespace of this process only (can be repeated)
    #[arg(long, value_name = "PID", conflicts_with_all = ["all_netns", "no_probes"], conflicts_with_all = OF_A_CLUSTER)]
    pub(crate) pid: Vec<u32>,
    /// Watch every network namespace, the host's too
    #[arg(long, conflicts_with = "no_probes", conflicts_with_all = OF_A_CLUSTER)]
    pub(crate) all_netns: bool,
    /// Replace the capture in the output folder
    #[arg(long)]
    pub(crate) force: bool,
    /// Also keep every single socket event (large; for looking into meshdiff itself)
    #[arg(long, conflicts_with = "no_probes", conflicts_with_all = OF_A_CLUSTER)]
    pub(crate) raw: bool,
    /// Keep no request's path (queries, headers and bodies are never kept)
    #[arg(long)]
    pub(crate) redact_paths: bool,
    /// Tell the requests of applications that encrypt them themselves with a shared OpenSSL, by following its calls
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = TlsUprobes::Auto)]
    pub(crate) tls_uprobes: TlsUprobes,
    /// Size of the kernel's ring buffer in MiB, a power of two: more for busier nodes
    #[arg(long, value_name = "MIB", default_value_t = RING_SIZE, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) ring_size: u32,
    /// Name of this machine as a node in Kubernetes: what its API server (by KUBECONFIG, or a service account) says of this node's pods is kept, too
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub(crate) node_name: Option<String>,
    /// When the recording has ended, put it into this ClickHouse as well (see `meshdiff store --help`)
    #[arg(long, value_name = "URL")]
    pub(crate) store: Option<String>,
    /// No progress on stderr
    #[arg(short, long)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) in_cluster: RecordClusterArgs,
}

impl RecordArgs {
    /// True if a cluster is to be recorded, and not this machine.
    pub(crate) fn is_of_a_cluster(&self) -> bool {
        let of = &self.in_cluster;
        !self.targets.is_empty()
            || of.namespace.is_some()
            || of.all_namespaces
            || of.selector.is_some()
            || crate::cluster::is_named(&of.cluster)
    }
}

/// What of a cluster is recorded, and with what.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct RecordClusterArgs {
    /// Record in a cluster: pods of this namespace. The context's if only workloads, labels or a context are given
    #[arg(short, long, value_name = "NS", conflicts_with = "all_namespaces")]
    pub(crate) namespace: Option<String>,
    /// Record in a cluster: pods of all namespaces but kube-system
    #[arg(short = 'A', long)]
    pub(crate) all_namespaces: bool,
    /// Record in a cluster, on the nodes of pods with these labels, for instance app=reviews
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub(crate) selector: Option<String>,
    /// Image of the agents that are started; that of deploy/ if left out
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    /// How long agents may take to be ready; who is not by then is left out, and named
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "2m")]
    pub(crate) start_within: Duration,
    /// The namespace of istiod, whose settings are looked at
    #[arg(long, value_name = "NS", default_value = "istio-system", value_parser = kubernetes_name)]
    pub(crate) istio_namespace: String,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

/// Which cluster, and how its agents are reached.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterArgs {
    /// Context of the kubeconfig; the current one if left out
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Kubeconfig file; KUBECONFIG or ~/.kube/config if left out
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Namespace of meshdiff's agents
    #[arg(long, value_name = "NS", default_value = "meshdiff-system", value_parser = kubernetes_name)]
    pub(crate) agent_namespace: String,
    /// File with the agents' token, for who may not read their Secret (MESHDIFF_TOKEN may hold it, too)
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

/// What a report and a list of requests are made from.
#[derive(Debug, Args)]
pub(crate) struct SourceArgs {
    /// Keep hops with either end there: deploy/NAME, sts/NAME, ds/NAME, svc/NAME or pod/NAME (of a cluster)
    #[arg(value_name = "KIND/NAME", conflicts_with_all = ["capture", "selector"])]
    pub(crate) target: Option<String>,
    /// The capture, as `meshdiff record` wrote it; the agents of a cluster are asked if left out
    #[arg(short, long, value_name = "DIR", conflicts_with_all = ["context", "kubeconfig", "token_file", "selector"])]
    pub(crate) capture: Option<PathBuf>,
    /// A ClickHouse that holds captures: clickhouse://USER:PASSWORD@HOST:8123/DATABASE, with ?secure=true for HTTPS. The password can be
    /// in MESHDIFF_STORE_PASSWORD instead. --since counts back from the newest capture's end; the last 15 minutes if left out
    #[arg(long, value_name = "URL", conflicts_with_all = ["capture", "target", "selector", "context", "kubeconfig", "token_file"])]
    pub(crate) store: Option<String>,
    /// Keep hops with either end in pods with these labels, for instance app=reviews (of a cluster)
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub(crate) selector: Option<String>,
    /// Keep hops with either end in this Kubernetes namespace; for a cluster the context's if left out
    #[arg(short, long, value_name = "NS", conflicts_with = "all_namespaces")]
    pub(crate) namespace: Option<String>,
    /// All namespaces (the default with --capture)
    #[arg(short = 'A', long)]
    pub(crate) all_namespaces: bool,
    /// Only requests that began within this time before the capture's end, for instance 15m (which it is for a cluster)
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) since: Option<Duration>,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// Format; taken from --output's ending if left out, else a table
    #[arg(short, long, value_enum)]
    pub(crate) format: Option<Format>,
    /// File to write to instead of stdout
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// With --format table: every quantile, segment and detail, and what both sides of every connection measured
    #[arg(short, long)]
    pub(crate) wide: bool,
    /// Tell the requests of each hop apart by this as well (can be repeated, or a list with commas)
    #[arg(long, value_enum, value_name = "WHAT", value_delimiter = ',')]
    pub(crate) by: Vec<crate::by::By>,
    /// With --store: read all rows and join them here, also where the store can sum up
    #[arg(long, requires = "store")]
    pub(crate) join_here: bool,
    #[command(flatten)]
    pub(crate) otlp: OtlpArgs,
}

/// Where traces go.
#[derive(Debug, Args)]
#[command(next_help_heading = "Traces")]
pub(crate) struct OtlpArgs {
    /// Send requests as traces to this OTLP/HTTP receiver (a collector, Tempo, Jaeger), for instance http://localhost:4318.
    /// OTEL_EXPORTER_OTLP_HEADERS is sent with them
    #[arg(long, value_name = "URL")]
    pub(crate) otlp: Option<String>,
    /// How many entry requests to send, each with all that it caused: chosen evenly over the time
    #[arg(long, value_name = "N", default_value_t = 200, requires = "otlp")]
    pub(crate) otlp_sample: usize,
}

#[derive(Debug, Args)]
pub(crate) struct RequestsArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// Also print sockets and all instants of each request
    #[arg(long)]
    pub(crate) instants: bool,
}

/// Say what this machine or a cluster allows, and what to do about what it does not.
///
/// With --cluster (or --context, or --kubeconfig): whether you may ask the agents, whether they run on every node that has sidecars, whether
/// their kernels take probes, and whether Istio sends them access logs. Ends with 0 if reports would tell everything, else with 1.
///
/// Without, of this machine: tries each kind of probes by loading it, looks for the network namespaces that `record` would watch, and for whether the access
/// log endpoint's port is free. Ends with 0 if `record` would work with probes, with 1 if not.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Check a cluster instead of this machine
    #[arg(long)]
    pub(crate) cluster: bool,
    /// With --cluster: the namespace of the applications; all that you may list if left out
    #[arg(short, long, value_name = "NS", value_parser = kubernetes_name)]
    pub(crate) namespace: Option<String>,
    /// With --cluster: the namespace of istiod
    #[arg(long, value_name = "NS", default_value = "istio-system", value_parser = kubernetes_name)]
    pub(crate) istio_namespace: String,
    #[command(flatten)]
    pub(crate) of: ClusterArgs,
    /// Address that `record` would use for its access log endpoint
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:9901")]
    pub(crate) als_listen: SocketAddr,
    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// Whether calls of TLS libraries are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TlsUprobes {
    /// In processes of watched namespaces, from up to a second after they load it
    Auto,
    /// In every process that uses the same file, in whatever namespace: also in those that live for less than a second
    File,
    /// Never: such requests are told as TLS only
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Html,
    Json,
    Markdown,
}

/// A name that Kubernetes accepts: it becomes a part of a path.
fn kubernetes_name(text: &str) -> Result<String, String> {
    if crate::cluster::is_name(text) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is no name in Kubernetes (small letters, digits, '-' and '.')"))
    }
}

/// A time span as people write it: `30s`, `5m`, `1h 30m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration =
        text.parse().map_err(|_| format!("{text:?} is not a time span such as 30s, 5m or 1h30m"))?;
    let span = Duration::try_from(span).map_err(|_| format!("{text:?} is negative"))?;
    if span.is_zero() { Err("must be longer than nothing".to_owned()) } else { Ok(span) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn time_spans() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("15m"), Ok(Duration::from_secs(900)));
        assert!(duration("0s").is_err());
        assert!(duration("-5s").is_err());
        assert!(duration("soon").unwrap_err().contains("soon"));
    }
}
