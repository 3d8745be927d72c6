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
    /// Record on this machine: probes and access logs, into a capture
    Record(RecordArgs),
    /// Say where the time went: as a table, HTML, JSON or Markdown
    Report(ReportArgs),
    /// Print one line of JSON for each request that a client sent
    Requests(RequestsArgs),
    /// Say what this machine allows, and what to do about what it does not
    Check(CheckArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Record on this machine: probes and access logs, into a capture.
///
/// Watches every network namespace but the host's that has an Envoy or a listener on 15001 or 15006, looking again every second.
/// Ends after --duration or on Ctrl-C, then waits 3 s for the access logs that Envoy still holds (a second Ctrl-C ends that at once).
/// Whatever ends it, what was recorded until a second before stays readable.
#[derive(Debug, Args)]
pub(crate) struct RecordArgs {
    /// The capture: a folder, which must not exist or be empty
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// How long to record, for instance 30s or 5m; until Ctrl-C if left out
    #[arg(short, long, value_name = "TIME", value_parser = duration)]
    pub(crate) duration: Option<Duration>,
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
    /// Record access logs only: no privileges needed, and only bounds of the segments known
    #[arg(long)]
    pub(crate) no_probes: bool,
    /// Watch this network namespace only: a name of `ip netns`, a path, or an inode number (can be repeated)
    #[arg(long, value_name = "NETNS", conflicts_with_all = ["all_netns", "no_probes"])]
    pub(crate) netns: Vec<String>,
    /// Watch the network namespace of this process only (can be repeated)
    #[arg(long, value_name = "PID", conflicts_with_all = ["all_netns", "no_probes"])]
    pub(crate) pid: Vec<u32>,
    /// Watch every network namespace, the host's too
    #[arg(long, conflicts_with = "no_probes")]
    pub(crate) all_netns: bool,
    /// Replace the capture in the output folder
    #[arg(long)]
    pub(crate) force: bool,
    /// Also keep every single socket event (large; for looking into meshdiff itself)
    #[arg(long, conflicts_with = "no_probes")]
    pub(crate) raw: bool,
    /// Tell the requests of applications that encrypt them themselves with a shared OpenSSL, by following its calls
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = TlsUprobes::Auto)]
    pub(crate) tls_uprobes: TlsUprobes,
    /// Size of the kernel's ring buffer in MiB, a power of two: more for busier nodes
    #[arg(long, value_name = "MIB", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) ring_size: u32,
    /// No progress on stderr
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// What a report and a list of requests are made from.
#[derive(Debug, Args)]
pub(crate) struct SourceArgs {
    /// The capture, as `meshdiff record` wrote it
    #[arg(short, long, value_name = "DIR")]
    pub(crate) capture: Option<PathBuf>,
    /// Keep hops with either end in this Kubernetes namespace
    #[arg(short, long, value_name = "NS", conflicts_with = "all_namespaces")]
    pub(crate) namespace: Option<String>,
    /// All namespaces (the default with --capture)
    #[arg(short = 'A', long)]
    pub(crate) all_namespaces: bool,
    /// Only requests that began within this time before the capture's end, for instance 15m
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) since: Option<Duration>,
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
}

#[derive(Debug, Args)]
pub(crate) struct RequestsArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
    /// Also print sockets and all instants of each request
    #[arg(long)]
    pub(crate) instants: bool,
}

/// Say what this machine allows, and what to do about what it does not.
///
/// Tries each kind of probes by loading it, looks for the network namespaces that `record` would watch, and for whether the access
/// log endpoint's port is free. Ends with 0 if `record` would work with probes, with 1 if not.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
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

/// A time span as people write it: `30s`, `5m`, `1h 30m`.
fn duration(text: &str) -> Result<Duration, String> {
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
