//! The validated options of `record`.

use crate::args::{RecordArgs, TlsUprobes};
use crate::exit::Failure;
use meshdiff_als::TlsFiles;
use meshdiff_discovery::{NetnsRef, Selection};
use meshdiff_probes::Reach;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// What to record, and where to.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) output: PathBuf,
    pub(crate) duration: Option<Duration>,
    pub(crate) als_listen: SocketAddr,
    pub(crate) als_tls: Option<TlsFiles>,
    pub(crate) probes: bool,
    pub(crate) selection: Selection,
    pub(crate) force: bool,
    pub(crate) raw: bool,
    /// Keep no request's path.
    pub(crate) redact_paths: bool,
    pub(crate) ring_bytes: u32,
    pub(crate) follow_libraries: Option<Reach>,
    pub(crate) quiet: bool,
    /// The name of this node in Kubernetes, whose pods the API server is to be asked of.
    pub(crate) node_name: Option<String>,
}

/// The size of the kernel's ring buffer, of MiB.
pub(crate) fn ring_bytes(mib: u32) -> Result<u32, Failure> {
    if !mib.is_power_of_two() {
        return Err(Failure::Usage(format!(
            "--ring-size must be a power of two (the kernel's ring buffers are): {} or {} instead of {mib}",
            mib.next_power_of_two() / 2,
            mib.next_power_of_two(),
        )));
    }
    Ok(mib << 20)
}

/// Whose calls of TLS libraries are followed.
pub(crate) const fn reach(when: TlsUprobes) -> Option<Reach> {
    match when {
        TlsUprobes::Auto => Some(Reach::Process),
        TlsUprobes::File => Some(Reach::File),
        TlsUprobes::Off => None,
    }
}

impl TryFrom<RecordArgs> for Options {
    type Error = Failure;

    fn try_from(args: RecordArgs) -> Result<Self, Failure> {
        if args.in_cluster.image.is_some() {
            return Err(Failure::Usage(
                "--image is of the agents of a cluster: say which pods to record there with --namespace".to_owned(),
            ));
        }
        let ring_bytes = ring_bytes(args.ring_size)?;
        let named = args.netns.iter().map(|n| n.parse());
        let mut only: Vec<NetnsRef> =
            named.collect::<Result<_, _>>().map_err(|e| Failure::Usage(format!("--netns: {e}")))?;
        only.extend(args.pid.iter().map(|&pid| NetnsRef::Pid(pid)));
        let selection = match (args.all_netns, only.is_empty()) {
            (true, _) => Selection::All,
            (false, true) => Selection::Mesh,
            (false, false) => Selection::Only(only),
        };
        Ok(Self {
            output: args.output,
            duration: args.duration,
            als_listen: args.als_listen,
            als_tls: match (args.als_tls_cert, args.als_tls_key) {
                (Some(certificate), Some(key)) => {
                    Some(TlsFiles { certificate, key, client_ca: args.als_tls_client_ca })
                }
                _ => None,
            },
            probes: !args.no_probes,
            selection,
            force: args.force,
            raw: args.raw,
            redact_paths: args.redact_paths,
            ring_bytes,
            follow_libraries: reach(args.tls_uprobes),
            quiet: args.quiet,
            node_name: args.node_name.filter(|n| !n.is_empty()),
        })
    }
}
