//! `proxies`: who reported access logs, from the node metadata of their streams.

use super::{Decoded, Row, decode_rows};
use crate::column::{Column, labels, named, opt_ip, opt_text, text, texts};
use crate::damage::PartError;
use crate::table::Table;
use crate::view::{Interner, View};
use meshdiff_model::{NodeId, Proxy};

impl Row for Proxy {
    const TABLE: Table = Table::Proxies;

    fn columns() -> Vec<Column<Self>> {
        vec![
            text("node", |p: &Self| &p.node.0).doc("Envoy's node id."),
            named("kind", |p: &Self| p.kind).doc("`sidecar`, `router` (a gateway), `waypoint` or `other`."),
            opt_ip("address", |p: &Self| p.address).doc("Its pod's address, from the node id."),
            texts("instance_ips", |p: &Self, add| p.instance_ips.iter().for_each(|ip| add(&ip.to_string())))
                .doc("All of its pod's addresses (`INSTANCE_IPS`)."),
            opt_text("pod", |p: &Self| p.pod.as_deref()).doc("Pod name (`NAME`)."),
            opt_text("namespace", |p: &Self| p.namespace.as_deref()).doc("Kubernetes namespace (`NAMESPACE`)."),
            opt_text("workload", |p: &Self| p.workload.as_deref()).doc("Workload (`WORKLOAD_NAME`)."),
            opt_text("owner", |p: &Self| p.owner.as_deref()).doc("The Kubernetes object behind the pod (`OWNER`)."),
            opt_text("service", |p: &Self| p.service.as_deref()).doc("Canonical service name."),
            opt_text("version", |p: &Self| p.version.as_deref()).doc("Canonical revision."),
            opt_text("cluster_id", |p: &Self| p.cluster_id.as_deref()).doc("Kubernetes cluster (`CLUSTER_ID`)."),
            opt_text("node_name", |p: &Self| p.node_name.as_deref()).doc("Kubernetes node (`NODE_NAME`)."),
            opt_text("locality", |p: &Self| p.locality.as_deref())
                .doc("`region/zone/sub_zone` of the Node's locality."),
            opt_text("istio_version", |p: &Self| p.istio_version.as_deref()).doc("`ISTIO_VERSION`."),
            opt_text("envoy_version", |p: &Self| p.envoy_version.as_deref()).doc("Envoy's own version."),
            opt_text("interception_mode", |p: &Self| p.interception_mode.as_deref())
                .doc("`REDIRECT`, `TPROXY` or `NONE`."),
            labels("labels", |p: &Self| &p.labels).doc("The pod's labels (`LABELS`)."),
        ]
    }

    fn decode(view: &View<'_>, _: &Interner) -> Result<Decoded<Self>, PartError> {
        let node = view.text("node")?;
        let kind = view.text("kind")?;
        let address = view.text("address")?;
        let instance_ips = view.text_list("instance_ips")?;
        let pod = view.text("pod")?;
        let namespace = view.text("namespace")?;
        let workload = view.text("workload")?;
        let owner = view.text("owner")?;
        let service = view.text("service")?;
        let version = view.text("version")?;
        let cluster_id = view.text("cluster_id")?;
        let node_name = view.text("node_name")?;
        let locality = view.text("locality")?;
        let istio_version = view.text("istio_version")?;
        let envoy_version = view.text("envoy_version")?;
        let interception_mode = view.text("interception_mode")?;
        let labels = view.labels("labels")?;
        Ok(decode_rows(view, |i| {
            Ok(Self {
                node: NodeId(node.get(i)?.into()),
                kind: kind.named(i)?,
                address: address.opt_ip(i)?,
                instance_ips: instance_ips.get(i, |t| t.parse().ok())?,
                pod: pod.string(i),
                namespace: namespace.string(i),
                workload: workload.string(i),
                owner: owner.string(i),
                service: service.string(i),
                version: version.string(i),
                cluster_id: cluster_id.string(i),
                node_name: node_name.string(i),
                locality: locality.string(i),
                istio_version: istio_version.string(i),
                envoy_version: envoy_version.string(i),
                interception_mode: interception_mode.string(i),
                labels: labels.get(i)?,
            })
        }))
    }
}
