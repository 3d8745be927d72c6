//! The peers that Istio's metadata exchange leaves in Envoy's filter state, in every encoding that it had.
//!
//! | Istio | key | encoding |
//! |---|---|---|
//! | to 1.17 | `wasm.upstream_peer` | `BytesValue` of a FlatBuffer `FlatNode` (`extensions/common/node_info.fbs`) |
//! | 1.18 to 1.23 | `wasm.upstream_peer` | `Struct` with the node's metadata keys: `NAME`, `NAMESPACE`, `LABELS` … |
//! | from 1.24 | `upstream_peer`, `upstream_peer_obj` | `Struct` with `name`, `namespace`, `workload` … (`WorkloadMetadataObject::serializeAsProto`), or the one above |
//!
//! Texts are endpoint metadata (`workload;namespace;service;revision;cluster`, `convertEndpointMetadata`) or baggage (`key=value,…`).

use super::entry::{MAX_TEXT, shortened};
use crate::stats::Tally;
use envoy_types::pb::google::protobuf::{BytesValue, StringValue, Struct, value::Kind};
use meshdiff_model::Peer;
use prost::Message;

/// Labels that are looked at: the service's names are among the first in every encoding that sorts them.
const MAX_LABELS: usize = 256;

/// The bytes are none of the encodings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotAPeer;

/// Decodes an `Any`.
///
/// # Errors
/// If its type is none that Istio uses, or its bytes are not of that type.
pub(super) fn decode(type_url: &str, value: &[u8], tally: &mut Tally) -> Result<Peer, NotAPeer> {
    let mut peer = Builder { peer: Peer::default(), tally };
    match type_url.rsplit('/').next().unwrap_or_default() {
        "google.protobuf.Struct" => peer.structure(&Struct::decode(value).map_err(|_| NotAPeer)?),
        "google.protobuf.StringValue" => peer.text(&StringValue::decode(value).map_err(|_| NotAPeer)?.value)?,
        "google.protobuf.BytesValue" => {
            let bytes = BytesValue::decode(value).map_err(|_| NotAPeer)?.value;
            match std::str::from_utf8(&bytes) {
                Ok(text) if !text.chars().any(char::is_control) => peer.text(text)?,
                _ => peer.flat_node(&bytes).ok_or(NotAPeer)?,
            }
        }
        _ => return Err(NotAPeer),
    }
    Ok(peer.peer)
}

struct Builder<'t> {
    peer: Peer,
    tally: &'t mut Tally,
}

impl Builder<'_> {
    /// Sets a field by the name that it has as a token, as node metadata, as a label or as baggage.
    fn set(&mut self, key: &str, value: &str) {
        let field = match key {
            "name" | "NAME" | "k8s.pod.name" | "k8s.instance.name" => &mut self.peer.name,
            "namespace" | "NAMESPACE" | "k8s.namespace.name" => &mut self.peer.namespace,
            "workload" | "WORKLOAD_NAME" => &mut self.peer.workload,
            "type" => &mut self.peer.workload_type,
            "service" | "service.istio.io/canonical-name" | "service.name" => &mut self.peer.service,
            "revision" | "service.istio.io/canonical-revision" | "service.version" => &mut self.peer.revision,
            "cluster" | "CLUSTER_ID" | "k8s.cluster.name" => &mut self.peer.cluster,
            "app" | "app.name" => &mut self.peer.app,
            "version" | "app.version" => &mut self.peer.version,
            "identity" | "IDENTITY" => &mut self.peer.identity,
            "OWNER" => return self.owner(value),
            "k8s.deployment.name" | "k8s.cronjob.name" | "k8s.job.name" => {
                let kind = key.strip_prefix("k8s.").and_then(|k| k.strip_suffix(".name")).unwrap_or_default();
                self.set("type", kind);
                return self.set("workload", value);
            }
            _ => return,
        };
        if let Some(text) = shortened(value, MAX_TEXT, self.tally) {
            *field = Some(text.to_owned());
        }
    }

    /// `kubernetes://apis/apps/v1/namespaces/default/deployments/reviews-v1` says which kind of workload it is.
    fn owner(&mut self, owner: &str) {
        let kind = owner.rsplit('/').nth(1).and_then(|kinds| kinds.strip_suffix('s'));
        if let Some(kind) = kind.filter(|_| owner.starts_with("kubernetes://")) {
            self.set("type", kind);
        }
    }

    fn structure(&mut self, of: &Struct) {
        self.fields(of, false);
    }

    fn fields(&mut self, of: &Struct, labels: bool) {
        // In order of key, because two keys may mean the same field and maps have no order.
        let mut keys: Vec<&String> = of.fields.keys().collect();
        keys.sort_unstable();
        for key in keys.into_iter().take(MAX_LABELS) {
            match of.fields[key].kind.as_ref() {
                Some(Kind::StringValue(text)) if !labels || is_label(key) => self.set(key, text),
                Some(Kind::StructValue(inner)) if !labels && matches!(&**key, "labels" | "LABELS") => {
                    self.fields(inner, true);
                }
                _ => {}
            }
        }
    }

    fn text(&mut self, text: &str) -> Result<(), NotAPeer> {
        if text.is_empty() {
            return Ok(());
        }
        if let [workload, namespace, service, revision, cluster, ..] = *text.split(';').collect::<Vec<_>>() {
            for (key, value) in [
                ("workload", workload),
                ("namespace", namespace),
                ("service", service),
                ("revision", revision),
                ("cluster", cluster),
            ] {
                self.set(key, value);
            }
            return Ok(());
        }
        let mut pairs = 0;
        for (key, value) in text.split(',').take(MAX_LABELS).filter_map(|part| part.split_once('=')) {
            self.set(key.trim(), value.trim());
            pairs += 1;
        }
        if pairs == 0 { Err(NotAPeer) } else { Ok(()) }
    }

    /// The fields of `FlatNode`, by their numbers in its schema.
    fn flat_node(&mut self, bytes: &[u8]) -> Option<()> {
        let node = Table::root(bytes)?;
        for (number, key) in
            [(0, "NAME"), (1, "NAMESPACE"), (3, "OWNER"), (4, "WORKLOAD_NAME"), (9, "CLUSTER_ID"), (11, "IDENTITY")]
        {
            if let Some(at) = node.field(number) {
                self.set(key, node.text(at)?);
            }
        }
        if let Some(at) = node.field(2) {
            let labels = node.tables(at)?;
            for label in labels.into_iter().take(MAX_LABELS) {
                let label = label?;
                let part = |n| label.field(n).map(|at| label.text(at).ok_or(())).transpose();
                if let (Some(key), Some(value)) = (part(0).ok()?, part(1).ok()?)
                    && is_label(key)
                {
                    self.set(key, value);
                }
            }
        }
        Some(())
    }
}

fn is_label(key: &str) -> bool {
    matches!(key, "app" | "version" | "service.istio.io/canonical-name" | "service.istio.io/canonical-revision")
}

/// A table of a FlatBuffer (<https://flatbuffers.dev/internals/>), every offset checked.
#[derive(Clone, Copy)]
struct Table<'a> {
    bytes: &'a [u8],
    at: usize,
    vtable: usize,
}

impl<'a> Table<'a> {
    fn root(bytes: &'a [u8]) -> Option<Self> {
        Self::at(bytes, usize::try_from(word(bytes, 0)?).ok()?)
    }

    fn at(bytes: &'a [u8], at: usize) -> Option<Self> {
        // The table begins with the distance back to its vtable.
        let back = word(bytes, at)?.cast_signed();
        let vtable = usize::try_from(i64::try_from(at).ok()? - i64::from(back)).ok()?;
        half(bytes, vtable)?;
        Some(Self { bytes, at, vtable })
    }

    /// Where a field's value is, if the table has it.
    fn field(&self, number: usize) -> Option<usize> {
        let entry = 4 + 2 * number;
        let size = usize::from(half(self.bytes, self.vtable)?);
        if entry + 2 > size {
            return None;
        }
        let offset = usize::from(half(self.bytes, self.vtable + entry)?);
        (offset != 0).then_some(self.at + offset)
    }

    /// Where the value lies that the field at `at` refers to.
    fn follow(&self, at: usize) -> Option<usize> {
        at.checked_add(usize::try_from(word(self.bytes, at)?).ok()?)
    }

    fn text(&self, at: usize) -> Option<&'a str> {
        let start = self.follow(at)?;
        let len = usize::try_from(word(self.bytes, start)?).ok()?;
        let start = start.checked_add(4)?;
        std::str::from_utf8(self.bytes.get(start..start.checked_add(len)?)?).ok()
    }

    /// A vector of tables.
    fn tables(&self, at: usize) -> Option<impl IntoIterator<Item = Option<Self>> + use<'a>> {
        let start = self.follow(at)?;
        let len = usize::try_from(word(self.bytes, start)?).ok()?;
        let bytes = self.bytes;
        Some((0..len).map_while(move |n| {
            let at = start.checked_add(4)?.checked_add(n.checked_mul(4)?)?;
            // Past the end the vector is over, whatever its length claims.
            let offset = usize::try_from(word(bytes, at)?).ok()?;
            Some(at.checked_add(offset).and_then(|at| Self::at(bytes, at)))
        }))
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_le_bytes(*chunk))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_le_bytes(*chunk))
}

#[cfg(test)]
#[path = "peer_tests.rs"]
mod tests;
