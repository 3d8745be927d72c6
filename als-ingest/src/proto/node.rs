//! The node that a stream introduces itself as, into the model's [`Proxy`].

use super::{InvalidField, address};
use crate::intern::cut;
use crate::stats::Tally;
use envoy_types::pb::envoy::config::core::v3::{Node, node::UserAgentVersionType};
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::Identifier;
use envoy_types::pb::google::protobuf::{Struct, value::Kind};
use meshdiff_model::{Locality, NodeId, Proxy, ProxyKind, SERVICE_LABELS, VERSION_LABELS};
use prost::Message;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Longest node id that is kept, in bytes: Istio's are around 100.
const MAX_NODE_ID: usize = 512;
/// Longest other string that is kept, in bytes: Kubernetes' names end at 253, a label's key at 317.
const MAX_TEXT: usize = 512;
/// Labels that are kept: the first, in order of key.
const MAX_LABELS: usize = 128;
/// Addresses that are kept.
const MAX_ADDRESSES: usize = 16;

/// The proxy behind a stream that did not introduce itself, by the address it connected from.
pub(crate) fn unknown_proxy(peer: Option<IpAddr>) -> Proxy {
    let id = peer.map_or_else(|| "unknown~".to_owned(), |ip| format!("unknown~{ip}"));
    Proxy {
        node: NodeId(id.into()),
        kind: ProxyKind::Other,
        address: None,
        instance_ips: Vec::new(),
        pod: None,
        namespace: None,
        workload: None,
        owner: None,
        service: None,
        version: None,
        cluster_id: None,
        node_name: None,
        locality: None,
        istio_version: None,
        envoy_version: None,
        interception_mode: None,
        labels: BTreeMap::new(),
    }
}

/// The proxy of an undecoded `Identifier`; `None` (counted) if it cannot be decoded or names no node.
pub(crate) fn proxy_from_identifier(bytes: &[u8], peer: Option<IpAddr>, tally: &mut Tally) -> Option<Proxy> {
    match Identifier::decode(bytes).ok().and_then(|identifier| identifier.node) {
        Some(node) => Some(proxy_from_node(&node, peer, tally)),
        None => {
            tally.field(InvalidField::InvalidIdentifier);
            None
        }
    }
}

fn proxy_from_node(node: &Node, peer: Option<IpAddr>, tally: &mut Tally) -> Proxy {
    let mut proxy = unknown_proxy(peer);
    if node.id.is_empty() {
        tally.field(InvalidField::MissingNodeId);
    } else {
        let id = kept(&node.id, MAX_NODE_ID, tally);
        read_id(&id, &mut proxy);
        proxy.node = NodeId(id.into());
    }
    if let Some(metadata) = &node.metadata {
        read_metadata(metadata, &mut proxy, tally);
    }
    if let Some(locality) = &node.locality {
        let place = Locality::of(&locality.region, &locality.zone, &locality.sub_zone);
        proxy.locality = place.map(|place| kept(&place.to_string(), MAX_TEXT, tally));
    }
    proxy.envoy_version = match &node.user_agent_version_type {
        Some(UserAgentVersionType::UserAgentVersion(text)) if !text.is_empty() => Some(kept(text, MAX_TEXT, tally)),
        Some(UserAgentVersionType::UserAgentBuildVersion(build)) => {
            build.version.as_ref().map(|v| format!("{}.{}.{}", v.major_number, v.minor_number, v.patch))
        }
        _ => None,
    };
    proxy
}

/// `sidecar~IP~pod.namespace~domain`. Pod and namespace stand in for metadata that does not name them.
fn read_id(id: &str, proxy: &mut Proxy) {
    let parts: Vec<&str> = id.split('~').collect();
    let &[kind, ip, pod, _domain] = parts.as_slice() else { return };
    proxy.kind = match kind {
        "sidecar" => ProxyKind::Sidecar,
        "router" => ProxyKind::Router,
        "waypoint" => ProxyKind::Waypoint,
        _ => return,
    };
    proxy.address = address::ip(ip).map(|ip| ip.to_canonical());
    // A namespace has no dot; a pod's name may.
    if let Some((pod, namespace)) = pod.rsplit_once('.') {
        proxy.pod = Some(pod.to_owned()).filter(|p| !p.is_empty());
        proxy.namespace = Some(namespace.to_owned()).filter(|n| !n.is_empty());
    }
}

fn read_metadata(metadata: &Struct, proxy: &mut Proxy, tally: &mut Tally) {
    let mut text = |key: &str| match metadata.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) if text.is_empty() => None,
        Kind::StringValue(text) => Some(kept(text, MAX_TEXT, tally)),
        Kind::NullValue(_) => None,
        _ => {
            tally.field(InvalidField::InvalidNodeMetadata);
            None
        }
    };
    proxy.pod = text("NAME").or_else(|| proxy.pod.take());
    proxy.namespace = text("NAMESPACE").or_else(|| proxy.namespace.take());
    proxy.workload = text("WORKLOAD_NAME");
    proxy.owner = text("OWNER");
    proxy.cluster_id = text("CLUSTER_ID");
    proxy.node_name = text("NODE_NAME");
    proxy.istio_version = text("ISTIO_VERSION");
    proxy.interception_mode = text("INTERCEPTION_MODE");
    match metadata.fields.get("INSTANCE_IPS").and_then(|v| v.kind.as_ref()) {
        Some(Kind::StringValue(list)) => proxy.instance_ips = instance_ips(list, tally),
        None | Some(Kind::NullValue(_)) => {}
        Some(_) => tally.field(InvalidField::InvalidNodeMetadata),
    }
    match metadata.fields.get("LABELS").and_then(|v| v.kind.as_ref()) {
        Some(Kind::StructValue(labels)) => {
            let mut first = |keys: [&str; 3]| keys.into_iter().find_map(|key| label(labels, key, tally));
            proxy.service = first(SERVICE_LABELS);
            proxy.version = first(VERSION_LABELS);
            proxy.labels = all_labels(labels, tally);
        }
        None | Some(Kind::NullValue(_)) => {}
        Some(_) => tally.field(InvalidField::InvalidNodeMetadata),
    }
}

fn instance_ips(list: &str, tally: &mut Tally) -> Vec<IpAddr> {
    let mut ips: Vec<IpAddr> = Vec::new();
    for part in list.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        if ips.len() == MAX_ADDRESSES {
            tally.field(InvalidField::TooManyNodeValues);
            break;
        }
        match address::ip(part) {
            Some(ip) => ips.push(ip.to_canonical()),
            None => tally.field(InvalidField::InvalidNodeMetadata),
        }
    }
    ips
}

fn label(labels: &Struct, key: &str, tally: &mut Tally) -> Option<String> {
    match labels.fields.get(key)?.kind.as_ref()? {
        Kind::StringValue(text) if !text.is_empty() => Some(kept(text, MAX_TEXT, tally)),
        _ => None,
    }
}

fn all_labels(labels: &Struct, tally: &mut Tally) -> BTreeMap<String, String> {
    // Sorted before the cut, so that the same labels stay whatever order the map has.
    let mut keys: Vec<&String> = labels.fields.keys().collect();
    keys.sort_unstable();
    if keys.len() > MAX_LABELS {
        keys.truncate(MAX_LABELS);
        tally.field(InvalidField::TooManyNodeValues);
    }
    let mut kept_labels = BTreeMap::new();
    for key in keys {
        match labels.fields[key].kind.as_ref() {
            Some(Kind::StringValue(value)) => {
                kept_labels.insert(kept(key, MAX_TEXT, tally), kept(value, MAX_TEXT, tally));
            }
            _ => tally.field(InvalidField::InvalidNodeMetadata),
        }
    }
    kept_labels
}

/// At most `max` bytes of a string, the cut counted.
fn kept(text: &str, max: usize, tally: &mut Tally) -> String {
    let short = cut(text, max);
    if short.len() < text.len() {
        tally.field(InvalidField::CutString);
    }
    short.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::config::core::v3::{BuildVersion, Locality};
    use envoy_types::pb::envoy::r#type::v3::SemanticVersion;
    use envoy_types::pb::google::protobuf::Value;

    fn string(text: &str) -> Value {
        Value { kind: Some(Kind::StringValue(text.to_owned())) }
    }

    fn fields<const N: usize>(of: [(&str, Value); N]) -> Struct {
        Struct { fields: of.into_iter().map(|(k, v)| (k.to_owned(), v)).collect() }
    }

    fn structure(of: Struct) -> Value {
        Value { kind: Some(Kind::StructValue(of)) }
    }

    fn read(node: Node) -> (Proxy, Tally) {
        let mut tally = Tally::default();
        let identifier = Identifier { node: Some(node), log_name: "log".to_owned() };
        let proxy =
            proxy_from_identifier(&identifier.encode_to_vec(), "192.0.2.7".parse().ok(), &mut tally).expect("a node");
        (proxy, tally)
    }

    fn count(tally: &Tally, field: InvalidField) -> u64 {
        tally.invalid_fields[field as usize]
    }

    #[test]
    fn an_istio_sidecar() {
        let labels = fields([
            ("app", string("reviews")),
            ("version", string("v1")),
            ("service.istio.io/canonical-name", string("reviews-canonical")),
        ]);
        let metadata = fields([
            ("NAME", string("reviews-v1-abc")),
            ("NAMESPACE", string("default")),
            ("WORKLOAD_NAME", string("reviews-v1")),
            ("OWNER", string("kubernetes://apis/apps/v1/namespaces/default/deployments/reviews-v1")),
            ("CLUSTER_ID", string("Kubernetes")),
            ("NODE_NAME", string("node-1")),
            ("INSTANCE_IPS", string("10.77.0.3, fd00::3")),
            ("INTERCEPTION_MODE", string("REDIRECT")),
            ("ISTIO_VERSION", string("1.30.0")),
            ("LABELS", structure(labels)),
        ]);
        let (proxy, tally) = read(Node {
            id: "sidecar~10.77.0.3~reviews.v1-abc.default~default.svc.cluster.local".to_owned(),
            metadata: Some(metadata),
            locality: Some(Locality { region: "eu".to_owned(), zone: "eu-1".to_owned(), ..Default::default() }),
            user_agent_version_type: Some(UserAgentVersionType::UserAgentBuildVersion(BuildVersion {
                version: Some(SemanticVersion { major_number: 1, minor_number: 40, patch: 0 }),
                metadata: None,
            })),
            ..Default::default()
        });
        assert_eq!(proxy.kind, ProxyKind::Sidecar);
        assert_eq!(proxy.address, "10.77.0.3".parse().ok());
        assert_eq!(proxy.instance_ips.len(), 2);
        assert_eq!(proxy.pod.as_deref(), Some("reviews-v1-abc"));
        assert_eq!(proxy.namespace.as_deref(), Some("default"));
        assert_eq!(proxy.workload.as_deref(), Some("reviews-v1"));
        assert_eq!(proxy.service.as_deref(), Some("reviews-canonical"));
        assert_eq!(proxy.version.as_deref(), Some("v1"));
        assert_eq!(proxy.locality.as_deref(), Some("eu/eu-1"));
        assert_eq!(proxy.envoy_version.as_deref(), Some("1.40.0"));
        assert_eq!(proxy.labels.len(), 3);
        assert_eq!(tally.invalid_fields.iter().sum::<u64>(), 0);
    }

    #[test]
    fn the_parts_of_a_locality_stay_apart() {
        let place = |region: &str, zone: &str, sub_zone: &str| {
            let locality = Locality { region: region.to_owned(), zone: zone.to_owned(), sub_zone: sub_zone.to_owned() };
            read(Node { id: "n".to_owned(), locality: Some(locality), ..Default::default() }).0.locality
        };
        assert_eq!(place("eu", "eu-1", "rack-7").as_deref(), Some("eu/eu-1/rack-7"));
        assert_eq!(place("", "eu-1", "").as_deref(), Some("/eu-1"), "a zone is no region");
        assert_eq!(place("", "", ""), None);
    }

    #[test]
    fn the_id_stands_in_for_metadata() {
        let (proxy, _) = read(Node { id: "router~10.0.0.9~gw.v2.istio-system~d".to_owned(), ..Default::default() });
        assert_eq!(proxy.kind, ProxyKind::Router);
        assert_eq!((proxy.pod.as_deref(), proxy.namespace.as_deref()), (Some("gw.v2"), Some("istio-system")));
        let (other, _) = read(Node { id: "my-envoy".to_owned(), ..Default::default() });
        assert_eq!((other.kind, &*other.node.0), (ProxyKind::Other, "my-envoy"));
        let (nameless, tally) = read(Node::default());
        assert_eq!(&*nameless.node.0, "unknown~192.0.2.7");
        assert_eq!(count(&tally, InvalidField::MissingNodeId), 1);
    }

    #[test]
    fn hostile_sizes_and_types_are_bounded_and_counted() {
        let many = (0..1_000).map(|n| (format!("k{n:04}"), string(&"é".repeat(1_000)))).collect();
        let metadata = fields([
            ("NAME", Value { kind: Some(Kind::NumberValue(1.0)) }),
            ("WORKLOAD_NAME", string(&"w".repeat(100_000))),
            ("INSTANCE_IPS", string(&"10.0.0.1,nonsense,".repeat(1_000))),
            ("LABELS", structure(Struct { fields: many })),
        ]);
        let (proxy, tally) = read(Node { id: "x".repeat(100_000), metadata: Some(metadata), ..Default::default() });
        assert_eq!(proxy.node.0.len(), MAX_NODE_ID);
        assert_eq!(proxy.pod, None);
        assert_eq!(proxy.workload.as_ref().map(String::len), Some(MAX_TEXT));
        assert_eq!(proxy.instance_ips.len(), MAX_ADDRESSES);
        assert_eq!(proxy.labels.len(), MAX_LABELS);
        assert_eq!(proxy.labels.keys().next().map(String::as_str), Some("k0000"));
        assert!(proxy.labels.values().all(|v| v.len() <= MAX_TEXT));
        assert_eq!(count(&tally, InvalidField::TooManyNodeValues), 2);
        assert!(count(&tally, InvalidField::CutString) > 2);
        assert!(count(&tally, InvalidField::InvalidNodeMetadata) > 1);
    }

    #[test]
    fn an_identifier_that_is_none() {
        let mut tally = Tally::default();
        assert!(proxy_from_identifier(&[0x0a, 0xff], None, &mut tally).is_none());
        assert!(proxy_from_identifier(&[], None, &mut tally).is_none());
        assert_eq!(count(&tally, InvalidField::InvalidIdentifier), 2);
    }
}
