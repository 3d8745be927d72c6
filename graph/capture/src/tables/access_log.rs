//! `access_logs`: Envoy's entries, with Envoy's field names.

use super::log_details::{self, Details};
use super::{Decoded, Row, decode_rows};
use crate::by_parts::LogOutline;
use crate::column::{
    Column, flag, i64, named, opt_i64, opt_ip, opt_named, opt_text, opt_u16, opt_u32, opt_uuid, text, texts, u64,
};
use crate::damage::PartError;
use crate::part::Outlined;
use crate::table::Table;
use crate::view::{Interner, Numbers, View};
use arrow::datatypes::{Int64Type, UInt16Type, UInt32Type, UInt64Type};
use meshdiff_model::{
    DownstreamDirectRemoteAddr, DownstreamLocalAddr, DownstreamRemoteAddr, DurationNs, HopSide, HopTimings, NodeId,
    RequestId, UpstreamLocalAddr, UpstreamRemoteAddr, WallTime, uuid_of, uuid_text,
};
use std::net::SocketAddr;
use std::sync::Arc;

fn timing(
    name: &'static str,
    meaning: &'static str,
    get: impl Fn(&HopTimings) -> Option<DurationNs> + Send + Sync + 'static,
) -> Column<HopSide> {
    opt_i64(name, move |h: &HopSide| get(&h.timings).map(|d| d.0)).unit("ns after start_time").delta().doc(meaning)
}

/// The two columns of an address: text and port are null together.
fn address(
    ip: &'static str,
    port: &'static str,
    meaning: &'static str,
    get: impl Fn(&HopSide) -> Option<SocketAddr> + Clone + Send + Sync + 'static,
) -> [Column<HopSide>; 2] {
    let get_ip = get.clone();
    [
        opt_ip(ip, move |h: &HopSide| get_ip(h).map(|a| a.ip())).doc(meaning),
        opt_u16(port, move |h: &HopSide| get(h).map(|a| a.port())).doc("Its port."),
    ]
}

fn text_id(hop: &HopSide) -> Option<&str> {
    hop.request_id.as_ref().map(|id| &*id.0)
}

impl Outlined for LogOutline {
    const COLUMNS: &[&str] = &[
        "node",
        "protocol",
        "access_log_type",
        "start_time_ns",
        "time_to_last_rx_byte_ns",
        "time_to_first_upstream_tx_byte_ns",
        "time_to_last_upstream_tx_byte_ns",
        "time_to_first_upstream_rx_byte_ns",
        "time_to_last_upstream_rx_byte_ns",
        "time_to_first_downstream_tx_byte_ns",
        "time_to_last_downstream_tx_byte_ns",
        "duration_ns",
        "downstream_direct_remote_ip",
        "downstream_direct_remote_port",
    ];

    fn decode(view: &View<'_>, strings: &Interner) -> Result<Decoded<Self>, PartError> {
        let node = view.text("node")?;
        let protocol = view.text("protocol")?;
        let access_log_type = view.text("access_log_type")?;
        let start_time = view.number::<Int64Type>("start_time_ns")?;
        let timings = Timings::of(view)?;
        let direct_remote = view.addr("downstream_direct_remote_ip", "downstream_direct_remote_port")?;
        Ok(decode_rows(view, |i| {
            Ok(Self {
                node: NodeId(strings.get(node.get(i)?)),
                access_log_type: access_log_type.named(i)?,
                protocol: protocol.named(i)?,
                start_time: WallTime(start_time.get(i)?),
                extent: timings.get(i).extent(),
                downstream_direct_remote_address: direct_remote.opt(i)?.map(DownstreamDirectRemoteAddr),
            })
        }))
    }
}

/// The columns of an entry's timings.
struct Timings<'a>([Numbers<'a, Int64Type>; 8]);

impl<'a> Timings<'a> {
    fn of(view: &View<'a>) -> Result<Self, PartError> {
        let timing = |name| view.number::<Int64Type>(name);
        Ok(Self([
            timing("time_to_last_rx_byte_ns")?,
            timing("time_to_first_upstream_tx_byte_ns")?,
            timing("time_to_last_upstream_tx_byte_ns")?,
            timing("time_to_first_upstream_rx_byte_ns")?,
            timing("time_to_last_upstream_rx_byte_ns")?,
            timing("time_to_first_downstream_tx_byte_ns")?,
            timing("time_to_last_downstream_tx_byte_ns")?,
            timing("duration_ns")?,
        ]))
    }

    fn get(&self, i: usize) -> HopTimings {
        let [last_rx, first_upstream_tx, last_upstream_tx, first_upstream_rx, last_upstream_rx, ..] = &self.0;
        let [.., first_downstream_tx, last_downstream_tx, duration] = &self.0;
        HopTimings {
            time_to_last_rx_byte: last_rx.opt(i).map(DurationNs),
            time_to_first_upstream_tx_byte: first_upstream_tx.opt(i).map(DurationNs),
            time_to_last_upstream_tx_byte: last_upstream_tx.opt(i).map(DurationNs),
            time_to_first_upstream_rx_byte: first_upstream_rx.opt(i).map(DurationNs),
            time_to_last_upstream_rx_byte: last_upstream_rx.opt(i).map(DurationNs),
            time_to_first_downstream_tx_byte: first_downstream_tx.opt(i).map(DurationNs),
            time_to_last_downstream_tx_byte: last_downstream_tx.opt(i).map(DurationNs),
            duration: duration.opt(i).map(DurationNs),
        }
    }
}

impl Row for HopSide {
    const TABLE: Table = Table::AccessLogs;

    fn columns() -> Vec<Column<Self>> {
        let mut columns = vec![
            text("node", |h: &Self| &h.node.0).doc("Node id of the reporting Envoy (`proxies.node`)."),
            opt_named("side", |h: &Self| h.side).doc("The hop's side on which the proxy stands: `client` or `server`; null where neither the cluster's name nor the peer tells."),
            named("protocol", |h: &Self| h.protocol).doc("`http`, `http/1.0`, `http/1.1`, `http/2`, `http/3` or `tcp`."),
            named("access_log_type", |h: &Self| h.access_log_type)
                .doc("Envoy's type of entry. `not_set`, `downstream_end` and `tcp_connection_end` stand for a request or connection that ended; `upstream_end` for one attempt; the others (`tcp_periodic`, `downstream_start` …) for what was not over."),
            i64("start_time_ns", |h: &Self| h.start_time.0)
                .unit("ns since 1970, wall clock")
                .delta()
                .doc("When Envoy's stream began, in steps of 1 µs."),
            timing("time_to_last_rx_byte_ns", "The request's end was decoded.", |t| t.time_to_last_rx_byte),
            timing("time_to_first_upstream_tx_byte_ns", "The request's headers were encoded upstream.", |t| t.time_to_first_upstream_tx_byte),
            timing("time_to_last_upstream_tx_byte_ns", "The request's end was encoded upstream.", |t| t.time_to_last_upstream_tx_byte),
            timing("time_to_first_upstream_rx_byte_ns", "The response's headers were parsed.", |t| t.time_to_first_upstream_rx_byte),
            timing("time_to_last_upstream_rx_byte_ns", "The response's end was decoded.", |t| t.time_to_last_upstream_rx_byte),
            timing("time_to_first_downstream_tx_byte_ns", "Before the response was encoded downstream.", |t| t.time_to_first_downstream_tx_byte),
            timing("time_to_last_downstream_tx_byte_ns", "The response was encoded downstream.", |t| t.time_to_last_downstream_tx_byte),
            timing("duration_ns", "The stream's or connection's whole duration.", |t| t.duration),
        ];
        columns.extend(address(
            "downstream_direct_remote_ip",
            "downstream_direct_remote_port",
            "The peer of Envoy's downstream connection: join key.",
            |h| h.downstream_direct_remote_address.map(|a| a.0),
        ));
        columns.extend(address(
            "downstream_remote_ip",
            "downstream_remote_port",
            "The peer that X-Forwarded-For may have rewritten: shown, never joined on.",
            |h| h.downstream_remote_address.map(|a| a.0),
        ));
        columns.extend(address("downstream_local_ip", "downstream_local_port", "Where the peer wanted to go.", |h| {
            h.downstream_local_address.map(|a| a.0)
        }));
        columns.extend(address(
            "upstream_local_ip",
            "upstream_local_port",
            "Envoy's end of the last attempt's upstream connection: join key.",
            |h| h.upstream_local_address.map(|a| a.0),
        ));
        columns.extend(address(
            "upstream_remote_ip",
            "upstream_remote_port",
            "The last attempt's upstream host.",
            |h| h.upstream_remote_address.map(|a| a.0),
        ));
        columns.extend([
            opt_text("upstream_cluster", |h: &Self| h.upstream_cluster.as_deref()).doc("Envoy's cluster."),
            opt_text("route_name", |h: &Self| h.route_name.as_deref()).doc("Envoy's route."),
            opt_u32("upstream_request_attempt_count", |h: &Self| h.upstream_request_attempt_count)
                .doc("Attempts upstream, 1 without a retry; null where Envoy does not say."),
            texts("response_flags", |h: &Self, add| h.response_flags.iter().for_each(|f| add(f)))
                .doc("Envoy's short response flags, sorted."),
            opt_text("request_id", |h: &Self| text_id(h).filter(|id| uuid_of(id.as_bytes()).is_none()))
                .doc("x-request-id where it is no UUID. It names a trace, not a hop."),
            opt_uuid("request_uuid", |h: &Self| uuid_of(text_id(h)?.as_bytes()))
                .doc("x-request-id where it is a UUID in lower case, as Envoy's own are."),
            opt_text("stream_id", |h: &Self| h.stream_id.as_deref().filter(|id| Some(*id) != text_id(h)))
                .doc("The entry's `stream_id` where it is not the request id."),
            flag("stream_id_is_request_id", |h: &Self| h.stream_id.is_some() && h.stream_id.as_deref() == text_id(h))
                .doc("True if the entry's `stream_id` is the request id."),
            opt_text("method", |h: &Self| h.method.as_deref()).doc("Request method."),
            opt_text("authority", |h: &Self| h.authority.as_deref()).doc("`:authority`."),
            opt_text("path", |h: &Self| h.path.as_deref()).doc("Path without its query."),
            opt_u16("response_code", |h: &Self| h.response_code).doc("Status; null when no response began."),
            opt_text("response_code_details", |h: &Self| h.response_code_details.as_deref())
                .doc("Envoy's reason for the status."),
            u64("request_body_bytes", |h: &Self| h.request_body_bytes).unit("bytes").doc("Size of the request's body."),
            u64("response_body_bytes", |h: &Self| h.response_body_bytes)
                .unit("bytes")
                .doc("Size of the response's body."),
            opt_text("tls_sni_hostname", |h: &Self| h.tls_sni_hostname.as_deref())
                .doc("SNI of the downstream TLS connection."),
            flag("downstream_tls", |h: &Self| h.downstream_tls).doc("True if the downstream connection was TLS."),
        ]);
        columns.extend(log_details::columns());
        columns
    }

    fn decode(view: &View<'_>, strings: &Interner) -> Result<Decoded<Self>, PartError> {
        let node = view.text("node")?;
        let side = view.text("side")?;
        let protocol = view.text("protocol")?;
        let access_log_type = view.text("access_log_type")?;
        let start_time = view.number::<Int64Type>("start_time_ns")?;
        let timings = Timings::of(view)?;
        let direct_remote = view.addr("downstream_direct_remote_ip", "downstream_direct_remote_port")?;
        let remote = view.addr("downstream_remote_ip", "downstream_remote_port")?;
        let local = view.addr("downstream_local_ip", "downstream_local_port")?;
        let upstream_local = view.addr("upstream_local_ip", "upstream_local_port")?;
        let upstream_remote = view.addr("upstream_remote_ip", "upstream_remote_port")?;
        let upstream_cluster = view.text("upstream_cluster")?;
        let route_name = view.text("route_name")?;
        let attempts = view.number::<UInt32Type>("upstream_request_attempt_count")?;
        let response_flags = view.text_list("response_flags")?;
        let request_id = view.text("request_id")?;
        let stream_id = view.text("stream_id")?;
        // The first version of the schema had all ids as texts.
        let uuid = view.has("request_uuid").then(|| view.uuid("request_uuid")).transpose()?;
        let same_id = view.has("stream_id_is_request_id").then(|| view.flag("stream_id_is_request_id")).transpose()?;
        let method = view.text("method")?;
        let authority = view.text("authority")?;
        let path = view.text("path")?;
        let response_code = view.number::<UInt16Type>("response_code")?;
        let response_code_details = view.text("response_code_details")?;
        let request_body_bytes = view.number::<UInt64Type>("request_body_bytes")?;
        let response_body_bytes = view.number::<UInt64Type>("response_body_bytes")?;
        let tls_sni_hostname = view.text("tls_sni_hostname")?;
        let downstream_tls = view.flag("downstream_tls")?;
        let details = Details::of(view)?;
        // Ids are unique to a request or two: interning them would only fill the interner.
        let shared = |text: Option<&str>| text.map(|t| strings.get(t));
        Ok(decode_rows(view, |i| {
            let request_id: Option<Arc<str>> = match uuid.as_ref().and_then(|uuid| uuid.opt(i)) {
                Some(uuid) => Some(uuid_text(uuid).into()),
                None => request_id.opt(i).map(Arc::from),
            };
            let same_id = same_id.as_ref().map_or(Ok(false), |same| same.get(i))?;
            let stream_id = match (stream_id.opt(i), &request_id) {
                (None, Some(request)) if same_id => Some(Arc::clone(request)),
                (Some(stream), Some(request)) if *stream == **request => Some(Arc::clone(request)),
                (stream, _) => stream.map(Arc::from),
            };
            Ok(Self {
                node: NodeId(strings.get(node.get(i)?)),
                side: side.opt_named(i)?,
                protocol: protocol.named(i)?,
                access_log_type: access_log_type.named(i)?,
                start_time: WallTime(start_time.get(i)?),
                timings: timings.get(i),
                downstream_direct_remote_address: direct_remote.opt(i)?.map(DownstreamDirectRemoteAddr),
                downstream_remote_address: remote.opt(i)?.map(DownstreamRemoteAddr),
                downstream_local_address: local.opt(i)?.map(DownstreamLocalAddr),
                upstream_local_address: upstream_local.opt(i)?.map(UpstreamLocalAddr),
                upstream_remote_address: upstream_remote.opt(i)?.map(UpstreamRemoteAddr),
                upstream_cluster: shared(upstream_cluster.opt(i)),
                route_name: shared(route_name.opt(i)),
                upstream_request_attempt_count: attempts.opt(i),
                response_flags: response_flags.get(i, |t| Some(strings.get(t)))?,
                request_id: request_id.map(RequestId),
                stream_id,
                method: shared(method.opt(i)),
                authority: shared(authority.opt(i)),
                path: shared(path.opt(i)),
                response_code: response_code.opt(i),
                response_code_details: shared(response_code_details.opt(i)),
                request_body_bytes: request_body_bytes.get(i)?,
                response_body_bytes: response_body_bytes.get(i)?,
                tls_sni_hostname: shared(tls_sni_hostname.opt(i)),
                downstream_tls: downstream_tls.get(i)?,
                details: details.as_ref().map(|d| d.get(i, strings)).transpose()?.unwrap_or_default(),
            })
        }))
    }
}
