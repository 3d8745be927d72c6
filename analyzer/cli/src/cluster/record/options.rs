//! The validated options of a recording in a cluster.

use crate::args::{RecordArgs, TlsUprobes};
use crate::cluster::is_name;
use crate::cluster::target::Scope;
use crate::exit::Failure;
use std::path::PathBuf;
use std::time::Duration;

/// Beyond this a recording is what the DaemonSet is for.
const LONGEST: Duration = Duration::from_secs(6 * 3600);

/// What to record of a cluster, and where to.
#[derive(Clone, Debug)]
pub(super) struct Options {
    pub(super) output: PathBuf,
    /// Replace a recording that is there.
    pub(super) force: bool,
    pub(super) duration: Duration,
    /// How long agents may take to be ready.
    pub(super) start_within: Duration,
    /// `None` for all.
    pub(super) namespace: Option<String>,
    /// Workloads of the namespace; everything if there are none.
    pub(super) scopes: Vec<Scope>,
    /// Another image than that of deploy/.
    pub(super) image: Option<String>,
    pub(super) istio_namespace: String,
    pub(super) probes: bool,
    /// Another size of the kernel's ring than the agent's own, in MiB.
    pub(super) ring_size: Option<u32>,
    pub(super) tls_uprobes: TlsUprobes,
    /// Keep no request's path.
    pub(super) redact_paths: bool,
    pub(super) quiet: bool,
}

impl Options {
    /// `context_namespace` is what the kubeconfig says.
    pub(super) fn of(args: &RecordArgs, context_namespace: &str) -> Result<Self, Failure> {
        let Some(duration) = args.duration else {
            return Err(Failure::Usage(
                "say how long with --duration, for instance 60s: agents end by themselves after it, whatever happens to this program"
                    .to_owned(),
            ));
        };
        if duration > LONGEST {
            return Err(Failure::Usage(format!(
                "--duration is at most {} h in a cluster: install the agents for good to keep more (deploy/README.md)",
                LONGEST.as_secs() / 3600
            )));
        }
        let where_to = &args.in_cluster;
        let namespace =
            (!where_to.all_namespaces).then(|| where_to.namespace.as_deref().unwrap_or(context_namespace).to_owned());
        if let Some(strange) = namespace.as_ref().filter(|n| !is_name(n)) {
            return Err(Failure::Usage(format!("{strange:?} is no name of a namespace")));
        }
        let mut scopes: Vec<Scope> = Vec::new();
        for target in &args.targets {
            scopes.extend(Scope::parse(Some(target), None)?);
        }
        scopes.extend(Scope::parse(None, where_to.selector.as_deref())?);
        if !scopes.is_empty() && namespace.is_none() {
            return Err(Failure::Usage("choose workloads in one namespace: --namespace and not -A".to_owned()));
        }
        let ring_size = (args.ring_size != crate::args::RING_SIZE).then_some(args.ring_size);
        // What agents would refuse on their nodes is refused here.
        crate::record::ring_bytes(args.ring_size)?;
        Ok(Self {
            output: args.output.clone(),
            force: args.force,
            duration,
            start_within: where_to.start_within,
            namespace,
            scopes,
            image: where_to.image.clone(),
            istio_namespace: where_to.istio_namespace.clone(),
            probes: !args.no_probes,
            ring_size,
            tls_uprobes: args.tls_uprobes,
            redact_paths: args.redact_paths,
            quiet: args.quiet,
        })
    }

    /// What is recorded, in words.
    pub(super) fn what(&self) -> String {
        match (&self.namespace, self.scopes.as_slice()) {
            (None, _) => "all namespaces".to_owned(),
            (Some(namespace), []) => format!("the namespace {namespace}"),
            (Some(namespace), scopes) => {
                let names: Vec<String> = scopes.iter().map(ToString::to_string).collect();
                format!("{} in the namespace {namespace}", names.join(", "))
            }
        }
    }

    /// Something to begin with.
    #[cfg(test)]
    pub(super) fn for_tests() -> Self {
        Self {
            output: PathBuf::from("capture"),
            force: false,
            duration: Duration::from_secs(1),
            start_within: Duration::from_secs(1),
            namespace: None,
            scopes: Vec::new(),
            image: None,
            istio_namespace: "istio-system".to_owned(),
            probes: true,
            ring_size: None,
            tls_uprobes: TlsUprobes::Auto,
            redact_paths: false,
            quiet: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use clap::Parser;

    fn of(arguments: &[&str]) -> Result<Options, String> {
        let all = ["meshdiff", "record", "--output", "x"].iter().chain(arguments);
        let Command::Record(args) = Cli::try_parse_from(all).map_err(|e| e.to_string())?.command else {
            panic!("another command")
        };
        assert!(args.is_of_a_cluster(), "{arguments:?}");
        Options::of(&args, "of-the-context").map_err(|f| match f {
            Failure::Usage(text) => text,
            other => format!("{other:?}"),
        })
    }

    #[test]
    fn namespaces_and_workloads_mean_a_cluster() {
        let options = of(&["-n", "shop", "--duration", "60s"]).expect("good");
        assert_eq!((options.namespace.as_deref(), options.what().as_str()), (Some("shop"), "the namespace shop"));
        let options = of(&["deploy/a", "svc/b", "--duration", "60s"]).expect("good");
        assert_eq!(options.what(), "deploy/a, svc/b in the namespace of-the-context");
        let options = of(&["-A", "--duration", "60s", "--no-probes"]).expect("good");
        assert_eq!((options.namespace, options.probes), (None, false));
        let options = of(&["-l", "app=x", "--context", "c", "--duration", "1m"]).expect("good");
        assert_eq!(options.what(), "-l app=x in the namespace of-the-context");
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_a_sentence() {
        for (arguments, word) in [
            (&["-n", "shop"][..], "--duration"),
            (&["-n", "shop", "--duration", "7h"], "at most 6 h"),
            (&["-n", "Not A Name", "--duration", "1s"], "is no name"),
            (&["-A", "deploy/x", "--duration", "1s"], "not -A"),
            (&["node/x", "--duration", "1s"], "deploy/NAME"),
            (&["-n", "shop", "--duration", "1s", "--pid", "1"], "cannot be used with"),
            (&["-n", "shop", "--duration", "1s", "--als-listen", "0.0.0.0:1"], "cannot be used with"),
            (&["-n", "shop", "--duration", "1s", "--raw"], "cannot be used with"),
            (&["-n", "shop", "--duration", "1s", "--ring-size", "3"], "power of two"),
        ] {
            let why = of(arguments).expect_err(word);
            assert!(why.contains(word), "{arguments:?}: {why}");
        }
    }

    #[test]
    fn without_them_this_machine_is_meant() {
        let cli = Cli::try_parse_from(["meshdiff", "record", "--output", "x", "--als-listen", "127.0.0.1:1"]);
        let Command::Record(args) = cli.expect("understood").command else { panic!("another command") };
        assert!(!args.is_of_a_cluster());
    }
}
