//! The command line: raw arguments, and what is made of them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::delay::{DelayPlan, DrawMode, parse_duration};
use crate::hop::Destination;
use crate::settings::{LabName, NetDelay, Settings, Starve, Subnet, Workload};

/// Where `tests/lab/setup.sh` puts Envoy, from the root of the repository.
const DEFAULT_ENVOY: &str = ".cache/envoy/1.40.0/envoy";
const ALS_PORT: u16 = 9901;

/// A service mesh on one machine, with the truth about every request written down.
///
/// Each pod is a network namespace with a real Envoy behind Istio's nat rules and an application of Bookinfo's shape:
/// loadgen asks productpage, which asks details and reviews (v1, v2, v3), and reviews v2 and v3 ask ratings.
#[derive(Debug, Parser)]
#[command(name = "meshdiff-lab", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring a lab up and wait until it answers.
    ///
    /// A lab that is up with the same settings is left alone; one with other settings, or a broken one, is taken down
    /// first and made anew. If bringing up fails, nothing stays but the logs in /run/meshdiff-lab/NAME/logs.
    Up(UpArgs),
    /// Drive traffic through a lab; the report is JSON on stdout.
    Load(Box<LoadArgs>),
    /// Drive the protocol workloads through a lab, case by case; the report is JSON on stdout.
    Drive(DriveArgs),
    /// Say what a lab is: pods, namespaces, addresses, processes, logs.
    Status(StatusArgs),
    /// Take a lab down: processes, namespaces, links, cgroups, state. Works after a crash too.
    Down(DownArgs),
    /// Bring a lab up, run a command, and take the lab down again, also after Ctrl-C or a failure.
    ///
    /// The command finds the lab's name in MESHDIFF_LAB_NAME and its logs in MESHDIFF_LAB_LOGS. The exit code is the
    /// command's.
    Run(RunArgs),
    /// Delete a pod, and connect the one that gets its address: `replace reused-v1 reused-v2`.
    Replace(ReplaceArgs),
    /// Ask the admin interface of a pod's Envoy, such as `admin reviews-v1 /stats?filter=ssl.handshake`.
    Admin(AdminArgs),
    /// The lab's own processes; `up` starts them.
    #[command(subcommand, hide = true)]
    Internal(Internal),
}

/// A lab's name.
#[derive(Debug, Args)]
pub struct NameArg {
    /// The lab's name; labs of different names run side by side.
    #[arg(long, default_value = "lab", env = "MESHDIFF_LAB_NAME")]
    pub name: LabName,
}

/// What the lab looks like.
#[derive(Debug, Args)]
pub struct UpArgs {
    /// Which lab.
    #[command(flatten)]
    pub name: NameArg,
    /// Where the sidecars send their access logs (default: the machine's address on the pods' network, port 9901).
    /// Nobody needs to listen there.
    #[arg(long, value_name = "ADDR:PORT")]
    als: Option<SocketAddr>,
    /// Plain text between the sidecars instead of mutual TLS.
    #[arg(long)]
    no_mtls: bool,
    /// Let every sidecar ask a local server before it passes a request on, which can then be told to wait (load
    /// --delays WORKLOAD.sidecar_out=…). The question itself costs time even if the wait is 0.
    #[arg(long)]
    ext_authz: bool,
    /// What runs: Bookinfo (for `load`), and the protocols that `drive` drives.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "bookinfo", value_name = "W,…")]
    workloads: Vec<Workload>,
    /// The versions of reviews that run.
    #[arg(long, value_delimiter = ',', default_value = "v1,v2,v3", value_name = "V,…")]
    reviews_versions: Vec<String>,
    /// A subset for each version of reviews (as by a DestinationRule), and its requests shared out among them (as by a VirtualService).
    #[arg(long)]
    subsets: bool,
    /// productpage asks details and reviews at once instead of one after the other.
    #[arg(long)]
    parallel: bool,
    /// Hold every packet between two pods for a while, each way, and lose some if a share is given; may be repeated.
    #[arg(long, value_name = "POD:POD=DURATION[,LOSS%]")]
    net_delay: Vec<NetDelay>,
    /// Give a pod's sidecar only a share of one CPU; may be repeated.
    #[arg(long, value_name = "POD=PERCENT%")]
    starve: Vec<Starve>,
    /// Envoy's worker threads per sidecar.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    concurrency: u32,
    /// The pods' network (default: derived from the lab's name).
    #[arg(long, value_name = "A.B.C.0/24")]
    subnet: Option<Subnet>,
    /// Another request header for the access logs to carry; may be repeated.
    #[arg(long, value_name = "HEADER")]
    als_header: Vec<String>,
    /// The Envoy binary (default: what tests/lab/setup.sh installed).
    #[arg(long, env = "MESHDIFF_LAB_ENVOY", value_name = "PATH")]
    envoy: Option<PathBuf>,
    /// Where the logs go (default: within the lab's state, which goes with the lab). They are kept.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl UpArgs {
    /// The settings that the arguments mean.
    ///
    /// # Errors
    /// When the current folder is unknown and a path is relative.
    pub fn settings(self) -> std::io::Result<Settings> {
        let name = self.name.name;
        let subnet = self.subnet.unwrap_or_else(|| Subnet::of_lab(&name));
        let envoy = match self.envoy {
            Some(path) => std::path::absolute(path)?,
            None => default_envoy()?,
        };
        let mut workloads = self.workloads;
        workloads.sort();
        workloads.dedup();
        Ok(Settings {
            workloads,
            als: self.als.unwrap_or_else(|| SocketAddr::from((subnet.gateway(), ALS_PORT))),
            subnet,
            name,
            mtls: !self.no_mtls,
            ext_authz: self.ext_authz,
            reviews_versions: self.reviews_versions,
            subsets: self.subsets,
            parallel: self.parallel,
            net_delays: self.net_delay,
            starved: self.starve,
            concurrency: self.concurrency,
            als_headers: self.als_header,
            envoy,
            out: self.out.map(std::path::absolute).transpose()?,
        })
    }
}

/// The Envoy of the repository that the current folder, or else this binary, is in.
fn default_envoy() -> std::io::Result<PathBuf> {
    let here = std::env::current_dir()?;
    let binary = std::env::current_exe().unwrap_or_default();
    let candidates = here.ancestors().chain(binary.ancestors()).map(|folder| folder.join(DEFAULT_ENVOY));
    Ok(candidates.into_iter().find(|path| path.is_file()).unwrap_or_else(|| here.join(DEFAULT_ENVOY)))
}

/// The load.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("pace").required(true).args(["rate", "connections"]))]
pub struct LoadArgs {
    /// Which lab.
    #[command(flatten)]
    pub name: NameArg,
    /// Constant rate, requests per second (open loop: late answers do not slow it down).
    #[arg(long, value_parser = positive_rate)]
    pub rate: Option<f64>,
    /// Closed loop: so many connections, each sending its next request when the answer has come.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub connections: Option<u32>,
    /// With --rate: requests in flight at most; what cannot be sent in time is reported as unsent.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub in_flight: u32,
    /// How long to send.
    #[arg(long, default_value = "10s", value_parser = bounded_duration)]
    pub duration: Duration,
    /// Delays, drawn at random for every request: 'reviews.app=0,500us,5ms;productpage.sidecar_out=0,5ms'. Places:
    /// app (sleep), app_spin (burn CPU), sidecar_out and sidecar_in (need a lab with --ext-authz). A name is a
    /// workload's (reviews-v2) or a service's (reviews).
    #[arg(long, default_value = "")]
    pub delays: DelayPlan,
    /// Draw every place by itself, or one place per request only.
    #[arg(long, value_enum, default_value_t = DrawMode::Independent)]
    pub delay_mode: DrawMode,
    /// The seed of the draws.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Body bytes of every hop's request (makes it a POST).
    #[arg(long, default_value_t = 0, value_parser = body_size)]
    pub request_bytes: usize,
    /// Body bytes of every hop's response.
    #[arg(long, default_value_t = 0, value_parser = body_size)]
    pub response_bytes: usize,
    /// The service to ask.
    #[arg(long, default_value = "productpage")]
    pub service: String,
    /// The path to ask for (default: /productpage for productpage, /SERVICE/0 for the others).
    #[arg(long)]
    pub path: Option<String>,
    /// Where to write the requests' log and the report (default: the lab's logs).
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

/// The protocol cases.
#[derive(Debug, Args)]
pub struct DriveArgs {
    /// Which lab.
    #[command(flatten)]
    pub name: NameArg,
    /// The cases, in this order: names, beginnings of names with a `*` (grpc-*), or workloads. Default: all that the lab
    /// can run.
    #[arg(long, value_delimiter = ',', value_name = "CASE,…")]
    pub cases: Vec<String>,
    /// How often each case is repeated.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rounds: u32,
    /// Begin no further round of a case after this time.
    #[arg(long, default_value = "10s", value_parser = bounded_duration)]
    pub case_limit: Duration,
    /// Wait this long after each case.
    #[arg(long, default_value = "0s", value_parser = parse_gap)]
    pub gap: Duration,
    /// List the cases and what each does, and end.
    #[arg(long)]
    pub list: bool,
    /// Where to write the log and the report (default: the lab's logs).
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

fn parse_gap(text: &str) -> Result<Duration, String> {
    let gap = parse_duration(text).map_err(|error| error.to_string())?;
    (gap <= Duration::from_secs(60)).then_some(gap).ok_or_else(|| "at most one minute".to_owned())
}

fn positive_rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    let allowed = rate.is_finite() && rate > 0.0 && rate <= 1e6;
    allowed.then_some(rate).ok_or_else(|| "between 0 and 1000000 requests per second".to_owned())
}

fn bounded_duration(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text).map_err(|error| error.to_string())?;
    let allowed = !duration.is_zero() && duration <= Duration::from_secs(24 * 3600);
    allowed.then_some(duration).ok_or_else(|| "between 1ns and 24 hours".to_owned())
}

fn body_size(text: &str) -> Result<usize, String> {
    let bytes: usize = text.parse().map_err(|_| "not a number of bytes".to_owned())?;
    (bytes <= 64 << 20).then_some(bytes).ok_or_else(|| "at most 64 MiB".to_owned())
}

/// Which lab, and how to show it.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Which lab.
    #[command(flatten)]
    pub name: NameArg,
    /// Everything, as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Which lab, and what to keep.
#[derive(Debug, Args)]
pub struct DownArgs {
    /// Which lab.
    #[command(flatten)]
    pub name: NameArg,
    /// Keep the logs that are within the lab's state.
    #[arg(long)]
    pub keep_logs: bool,
}

/// A lab for the time of one command.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The lab.
    #[command(flatten)]
    pub up: UpArgs,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<std::ffi::OsString>,
}

/// A pod for another.
#[derive(Debug, Args)]
pub struct ReplaceArgs {
    /// Which lab.
    #[command(flatten)]
    pub name: NameArg,
    /// The workload whose pod goes.
    pub old: String,
    /// The workload whose pod comes.
    pub new: String,
}

/// A question to an Envoy.
#[derive(Debug, Args)]
pub struct AdminArgs {
    /// Which lab.
    #[command(flatten)]
    pub name: NameArg,
    /// The pod's workload, such as reviews-v1.
    pub pod: String,
    /// The path, such as /stats or /config_dump.
    #[arg(default_value = "/stats")]
    pub path: String,
    /// POST instead of GET.
    #[arg(long)]
    pub post: bool,
}

/// The processes of a pod.
#[derive(Debug, Subcommand)]
pub enum Internal {
    /// The application.
    App(AppArgs),
    /// The application of the protocol workloads.
    Protocols(ProtocolsArgs),
    /// The waiting server.
    Authz(ServeArgs),
    /// A delayed link.
    Link(LinkArgs),
}

/// What every server of a pod is told.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Its workload.
    #[arg(long)]
    pub workload: String,
    /// Its service.
    #[arg(long)]
    pub service: String,
    /// The user to become.
    #[arg(long)]
    pub uid: u32,
    /// Its log.
    #[arg(long)]
    pub log: PathBuf,
}

/// What an application is told.
#[derive(Debug, Args)]
pub struct AppArgs {
    /// What every server is told.
    #[command(flatten)]
    pub serve: ServeArgs,
    /// Whom to ask: HOST@ADDR:PORT/PATH; may be repeated.
    #[arg(long, value_parser = parse_call)]
    pub call: Vec<Destination>,
    /// Ask all at once.
    #[arg(long)]
    pub parallel: bool,
}

/// What the application of the protocol workloads is told.
#[derive(Debug, Args)]
pub struct ProtocolsArgs {
    /// What every server is told.
    #[command(flatten)]
    pub serve: ServeArgs,
    /// What it serves.
    #[arg(long, value_enum, value_delimiter = ',')]
    pub workloads: Vec<Workload>,
    /// Listen to IPv6 too, on the same sockets.
    #[arg(long)]
    pub dual_stack: bool,
    /// The folder with `cert-chain.pem` and `key.pem`, for TLS of its own.
    #[arg(long)]
    pub certificates: PathBuf,
}

fn parse_call(text: &str) -> Result<Destination, String> {
    let parse = || {
        let (host, rest) = text.split_once('@')?;
        let (address, path) = rest.split_once('/')?;
        Some(Destination { host: host.to_owned(), address: address.parse().ok()?, path: format!("/{path}") })
    };
    parse().ok_or_else(|| "expected HOST@ADDR:PORT/PATH".to_owned())
}

/// What a delayed link is told.
#[derive(Debug, Args)]
pub struct LinkArgs {
    /// NAMESPACE,IP,DEVICE of one end; given twice.
    #[arg(long, value_parser = parse_end)]
    pub end: Vec<crate::forward::End>,
    /// How long to hold a packet.
    #[arg(long)]
    pub delay_ns: u64,
    /// How many of a hundred TCP packets to lose.
    #[arg(long, default_value_t = 0)]
    pub loss_percent: u32,
    /// Its log.
    #[arg(long)]
    pub log: PathBuf,
}

fn parse_end(text: &str) -> Result<crate::forward::End, String> {
    let mut parts = text.split(',');
    let (Some(namespace), Some(ip), Some(device), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err("expected NAMESPACE,IP,DEVICE".to_owned());
    };
    let ip = ip.parse().map_err(|_| format!("`{ip}` is no IPv4 address"))?;
    Ok(crate::forward::End { namespace: namespace.to_owned(), ip, device: device.to_owned() })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn arguments_become_settings() {
        let line = "meshdiff-lab up --name two --no-mtls --starve reviews-v1=20% --net-delay details-v1:ratings-v1=1ms --envoy /e --reviews-versions v1,v3";
        let Command::Up(up) = Cli::try_parse_from(line.split(' ')).unwrap().command else { panic!("not up") };
        let settings = up.settings().unwrap();
        assert_eq!((settings.mtls, settings.reviews_versions.len(), settings.als.port()), (false, 2, 9901));
        assert_eq!(settings.als.ip(), settings.subnet.gateway());
        settings.check().unwrap();
    }

    #[test]
    fn a_load_needs_one_pace() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).is_ok();
        assert!(parse("meshdiff-lab load --rate 200 --delays reviews.app=0,5ms"));
        assert!(parse("meshdiff-lab load --connections 64"));
        assert!(!parse("meshdiff-lab load"));
        assert!(!parse("meshdiff-lab load --rate 1 --connections 1"));
        assert!(!parse("meshdiff-lab load --rate 0"));
        assert!(!parse("meshdiff-lab load --rate 1 --delays reviews.disk=1ms"));
    }
}
