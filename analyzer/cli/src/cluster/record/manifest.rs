//! What a recording puts into a cluster. All of it comes from the manifests of deploy/, which are compiled in: short-lived agents are
//! those of the DaemonSet, but for what is said here.

use super::options::Options;
use crate::args::TlsUprobes;
use clap::ValueEnum;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    Affinity, ConfigMap, Container, EmptyDirVolumeSource, Namespace, NodeAffinity, NodeSelector,
    NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, SeccompProfile, Secret, SecretVolumeSource,
    SecurityContext, Service, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

const DAEMON_SET: &str = include_str!("../../../../../deploy/kustomize/daemonset.yaml");
const SERVICES: &str = include_str!("../../../../../deploy/kustomize/services.yaml");
const NAMESPACE: &str = include_str!("../../../../../deploy/kustomize/namespace.yaml");

/// Marks everything that recordings put into a cluster.
pub(in crate::cluster) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Its value.
pub(in crate::cluster) const MANAGER: &str = "meshdiff-record";
/// Tells recordings apart.
pub(super) const INSTANCE: &str = "app.kubernetes.io/instance";
/// How long a recording is there at most, in its ConfigMap.
pub(super) const LASTS: &str = "lastsSeconds";
/// Which nodes it is of, in its ConfigMap.
const NODES: &str = "nodes";
/// The user that has no rights on a node, for agents without probes.
const NOBODY: i64 = 65_534;
/// What there is time for after the recording, until agents end by themselves: Envoy's last access logs, and who fetches.
const AFTERWARDS: Duration = Duration::from_secs(10 * 60);
/// Everything is asked for as it was seen, also what agents recorded until all of them were ready.
const BEFOREHAND: Duration = Duration::from_secs(60);

/// One recording's name and secret.
#[derive(Clone)]
pub(super) struct Identity {
    /// Of its ConfigMap, its Secret, and its pods before their number.
    pub(super) name: String,
    /// What opens its agents.
    pub(super) token: String,
}

impl Identity {
    /// A new one.
    pub(super) fn random() -> std::io::Result<Self> {
        let mut bytes = [0; 37];
        std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
        let hex = |bytes: &[u8]| {
            bytes.iter().fold(String::new(), |mut text, byte| {
                // Writing into a String cannot fail.
                let _ = write!(text, "{byte:02x}");
                text
            })
        };
        Ok(Self { name: format!("{MANAGER}-{}", hex(&bytes[..5])), token: hex(&bytes[5..]) })
    }
}

/// How long agents run at most: the kubelet ends them then, whatever became of who started them.
pub(super) fn deadline(options: &Options) -> Duration {
    options.start_within + options.duration + AFTERWARDS
}

fn labels(identity: &Identity) -> BTreeMap<String, String> {
    [("app.kubernetes.io/name", "meshdiff"), (MANAGED_BY, MANAGER), (INSTANCE, &identity.name)]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn metadata(identity: &Identity, name: &str, owner: Option<&OwnerReference>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        labels: Some(labels(identity)),
        owner_references: owner.map(|o| vec![o.clone()]),
        ..ObjectMeta::default()
    }
}

/// The namespace as deploy/ makes it, under another name.
pub(super) fn namespace(name: &str) -> Namespace {
    let mut namespace: Namespace = parsed(NAMESPACE);
    namespace.metadata.name = Some(name.to_owned());
    namespace.metadata.labels.get_or_insert_default().insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    namespace
}

/// What owns everything else: with it, the rest goes.
pub(super) fn anchor(identity: &Identity, options: &Options, nodes: &[String]) -> ConfigMap {
    let seconds = deadline(options).as_secs().to_string();
    ConfigMap {
        metadata: metadata(identity, &identity.name, None),
        data: Some([(LASTS.to_owned(), seconds), (NODES.to_owned(), nodes.join(" "))].into()),
        ..ConfigMap::default()
    }
}

/// A reference to the anchor, as the API server has made it. As a controller, so that no DaemonSet adopts what has its labels.
pub(super) fn owner(anchor: &ConfigMap) -> OwnerReference {
    OwnerReference {
        api_version: "v1".to_owned(),
        kind: "ConfigMap".to_owned(),
        name: anchor.metadata.name.clone().unwrap_or_default(),
        uid: anchor.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    }
}

pub(super) fn secret(identity: &Identity, owner: &OwnerReference) -> Secret {
    Secret {
        metadata: metadata(identity, &identity.name, Some(owner)),
        string_data: Some([("token".to_owned(), identity.token.clone())].into()),
        ..Secret::default()
    }
}

/// The Service to which sidecars log, as deploy/ makes it.
pub(super) fn service(identity: &Identity, owner: &OwnerReference) -> Service {
    let all: Vec<Service> = serde_saphyr::from_multiple(SERVICES).unwrap_or_else(|e| unreachable!("tested: {e}"));
    let als = all.into_iter().find(|s| s.metadata.name.as_deref() == Some(crate::cluster::istio::SERVICE));
    let mut service = als.unwrap_or_else(|| unreachable!("tested"));
    service.metadata = metadata(identity, crate::cluster::istio::SERVICE, Some(owner));
    service
}

/// The agent of one node.
pub(super) fn pod(identity: &Identity, owner: &OwnerReference, options: &Options, number: usize, node: &str) -> Pod {
    let daemon_set: DaemonSet = parsed(DAEMON_SET);
    let template = daemon_set.spec.unwrap_or_else(|| unreachable!("tested")).template;
    let mut spec = template.spec.unwrap_or_else(|| unreachable!("tested"));
    let mut meta = metadata(identity, &format!("{}-{number}", identity.name), Some(owner));
    let of_template = template.metadata.and_then(|m| m.labels).unwrap_or_default();
    meta.labels.get_or_insert_default().extend(of_template);

    spec.affinity = Some(on(node));
    spec.restart_policy = Some("Never".to_owned());
    spec.active_deadline_seconds = Some(i64::try_from(deadline(options).as_secs()).unwrap_or(i64::MAX));
    // It does without the API server: what sidecars say of themselves is enough for some minutes, and needs no rights.
    spec.service_account_name = None;
    spec.automount_service_account_token = Some(false);
    spec.volumes = Some(volumes(identity, options.probes));
    if !options.probes {
        spec.host_pid = None;
    }
    for container in &mut spec.containers {
        short_lived(container, options);
    }
    Pod { metadata: meta, spec: Some(spec), status: None }
}

/// As the DaemonSet's controller says it, so that the scheduler has its say.
fn on(node: &str) -> Affinity {
    let by_name = NodeSelectorRequirement {
        key: "metadata.name".to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let term = NodeSelectorTerm { match_expressions: None, match_fields: Some(vec![by_name]) };
    Affinity {
        node_affinity: Some(NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(NodeSelector { node_selector_terms: vec![term] }),
            ..NodeAffinity::default()
        }),
        ..Affinity::default()
    }
}

/// Nothing of a recording stays on a node's disk.
fn volumes(identity: &Identity, as_root: bool) -> Vec<Volume> {
    let window =
        Volume { name: "window".to_owned(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() };
    let token = Volume {
        name: "token".to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(identity.name.clone()),
            default_mode: Some(if as_root { 0o400 } else { 0o444 }),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    };
    vec![window, token]
}

fn short_lived(container: &mut Container, options: &Options) {
    if let Some(image) = &options.image {
        container.image = Some(image.clone());
    }
    container.args = Some(arguments(container.args.take().unwrap_or_default(), options));
    // Who does not answer for a while is not started anew: what it has recorded would be lost.
    container.liveness_probe = None;
    // Why it ended is in its status then, which is easier to come by than its log.
    container.termination_message_policy = Some("FallbackToLogsOnError".to_owned());
    if !options.probes {
        container.security_context = Some(SecurityContext {
            run_as_user: Some(NOBODY),
            run_as_non_root: Some(true),
            app_armor_profile: None,
            capabilities: container.security_context.take().and_then(|c| c.capabilities).map(|mut c| {
                c.add = None;
                c
            }),
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
            ..SecurityContext::default()
        });
    }
}

/// The DaemonSet's, for as long as the recording is, and of the chosen namespace.
fn arguments(all: Vec<String>, options: &Options) -> Vec<String> {
    let mut arguments: Vec<String> = all.into_iter().filter(|a| !a.starts_with("--keep=")).collect();
    let keep = options.start_within + BEFOREHAND + options.duration + AFTERWARDS;
    arguments.push(format!("--keep={}s", keep.as_secs()));
    arguments.push("--no-kube".to_owned());
    arguments.extend(options.namespace.iter().map(|n| format!("--namespace={n}")));
    if !options.probes {
        arguments.push("--no-probes".to_owned());
    }
    if options.redact_paths {
        arguments.push("--redact-paths".to_owned());
    }
    if let Some(mib) = options.ring_size {
        arguments.push(format!("--ring-size={mib}"));
    }
    if options.tls_uprobes != TlsUprobes::Auto
        && let Some(when) = options.tls_uprobes.to_possible_value()
    {
        arguments.push(format!("--tls-uprobes={}", when.get_name()));
    }
    arguments
}

/// An object of deploy/. That they are understood is tested.
fn parsed<T: serde::de::DeserializeOwned>(yaml: &str) -> T {
    // File modes are octal, as Kubernetes reads them.
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    serde_saphyr::from_str_with_options(yaml, options).unwrap_or_else(|e| unreachable!("a manifest of deploy/: {e}"))
}

/// The only container of an agent's pod.
pub(super) const CONTAINER: &str = "agent";

/// The image that agents are of.
pub(super) fn image(spec: Option<&PodSpec>) -> String {
    let of_agent = spec.and_then(|s| s.containers.iter().find(|c| c.name == CONTAINER)).and_then(|c| c.image.clone());
    of_agent.unwrap_or_else(|| "(unknown)".to_owned())
}

#[cfg(test)]
mod tests;
