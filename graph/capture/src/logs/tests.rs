use super::*;
use crate::column::schema_of;
use crate::part::Encoder;
use crate::tables::Row as _;
use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use bytes::Bytes;
use meshdiff_model::*;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use std::net::SocketAddr;
use std::num::NonZeroU64;

fn text() -> impl Strategy<Value = Arc<str>> {
    // Few of them, so that they repeat; and anything.
    prop_oneof![3 => "[ab]{0,2}", 1 => any::<String>()].prop_map(Arc::from)
}

fn id() -> impl Strategy<Value = Arc<str>> {
    prop_oneof![3 => (0..4_u8).prop_map(|n| uuid_text([n; 16]).into()), 1 => any::<[u8; 16]>().prop_map(|u| uuid_text(u).into()), 2 => text()]
}

fn addr() -> impl Strategy<Value = SocketAddr> {
    let ip = prop_oneof![4 => (1..4_u8).prop_map(|n| IpAddr::from([10, 77, 0, n])), 1 => any::<IpAddr>()];
    (ip, prop_oneof![Just(9080), any::<u16>()]).prop_map(|(ip, port)| SocketAddr::new(ip, port))
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![3 => 0..3_u64, 1 => any::<u64>()]
}

fn span() -> impl Strategy<Value = DurationNs> {
    // Plausible, and what no clock says.
    prop_oneof![4 => 0..10_000_000_i64, 1 => any::<i64>(), 1 => prop::sample::select(vec![i64::MIN, i64::MAX, 0])]
        .prop_map(DurationNs)
}

fn peer() -> impl Strategy<Value = Arc<Peer>> {
    text().prop_map(|name| Arc::new(Peer { name: Some(name.to_string()), ..Peer::default() }))
}

prop_compose! {
    fn details()(
        counts in vec(number(), 10), peers in (option::of(peer()), option::of(peer())), tls in option::of(text()),
        ids in (option::of(number()), option::of(number())), spans in vec(option::of(span()), 4), tagged in prop::bool::weighted(0.2),
        protocol in option::of(Just(HopProtocol::Http2)), reasons in vec(option::weighted(0.1, text()), 3),
    ) -> HopDetails {
        let b: Vec<_> = counts.into_iter().map(NonZeroU64::new).collect();
        let tags = HopTags {
            connection_id: ids.0, upstream_connection_id: ids.1, upstream_connect: spans[0], upstream_handshake: spans[1],
            upstream_connected_after: spans[2], upstream_ready_after: spans[3], upstream_protocol: protocol,
        };
        let failure = HopFailure {
            upstream_transport_failure_reason: reasons[0].clone(), downstream_transport_failure_reason: reasons[1].clone(),
            connection_termination_details: reasons[2].clone(),
        };
        HopDetails {
            bytes: HopBytes {
                downstream_wire_bytes_sent: b[0], downstream_wire_bytes_received: b[1], upstream_wire_bytes_sent: b[2],
                upstream_wire_bytes_received: b[3], downstream_header_bytes_sent: b[4], downstream_header_bytes_received: b[5],
                upstream_header_bytes_sent: b[6], upstream_header_bytes_received: b[7], request_headers_bytes: b[8], response_headers_bytes: b[9],
            },
            tls: tls.map(|subject| Arc::new(HopTls { peer_subject: Some(subject.to_string()), ..HopTls::default() })),
            downstream_peer: peers.0, upstream_peer: peers.1,
            tags: (tagged && tags != HopTags::default()).then(|| Box::new(tags)),
            failure: (failure != HopFailure::default()).then(|| Box::new(failure)),
        }
    }
}

prop_compose! {
    fn hop()(
        node in text(), side in option::of(prop::sample::select(vec![Side::Client, Side::Server])),
        protocol in prop::sample::select(vec![HopProtocol::Http11, HopProtocol::Tcp]),
        access_log_type in prop::sample::select(vec![AccessLogType::DownstreamEnd, AccessLogType::UpstreamEnd]),
        start in prop_oneof![0..50_i64, any::<i64>()], t in vec(option::weighted(0.8, span()), 8), a in vec(option::weighted(0.8, addr()), 5),
        s in vec(option::of(text()), 8), attempts in option::of(any::<u32>()), flags in vec(text(), 0..3), request_id in option::of(id()),
        stream_id in option::of(id()), same in any::<bool>(), code in option::of(any::<u16>()), bytes in (number(), number()),
        downstream_tls in any::<bool>(), details in details(),
    ) -> HopSide {
        HopSide {
            node: NodeId(node), side, protocol, access_log_type, start_time: WallTime(start),
            timings: HopTimings {
                time_to_last_rx_byte: t[0], time_to_first_upstream_tx_byte: t[1], time_to_last_upstream_tx_byte: t[2],
                time_to_first_upstream_rx_byte: t[3], time_to_last_upstream_rx_byte: t[4], time_to_first_downstream_tx_byte: t[5],
                time_to_last_downstream_tx_byte: t[6], duration: t[7],
            },
            downstream_direct_remote_address: a[0].map(DownstreamDirectRemoteAddr), downstream_remote_address: a[1].map(DownstreamRemoteAddr),
            downstream_local_address: a[2].map(DownstreamLocalAddr), upstream_local_address: a[3].map(UpstreamLocalAddr),
            upstream_remote_address: a[4].map(UpstreamRemoteAddr),
            upstream_cluster: s[0].clone(), route_name: s[1].clone(), upstream_request_attempt_count: attempts, response_flags: flags,
            stream_id: if same { request_id.clone() } else { stream_id }, request_id: request_id.map(RequestId),
            method: s[2].clone(), authority: s[3].clone(), path: s[4].clone(), response_code: code, response_code_details: s[5].clone(),
            request_body_bytes: bytes.0, response_body_bytes: bytes.1, tls_sni_hostname: s[6].clone(), downstream_tls, details,
        }
    }
}

/// What any reader of Parquet sees of a file.
fn columns(file: Vec<u8>) -> RecordBatch {
    let reader =
        ParquetRecordBatchReaderBuilder::try_new(Bytes::from(file)).expect("Parquet").build().expect("readable");
    let schema = arrow::array::RecordBatchReader::schema(&reader);
    let batches: Vec<_> = reader.map(|batch| batch.expect("readable")).collect();
    concat_batches(&schema, &batches).expect("one schema")
}

/// The rows by way of Arrow, value by value.
fn by_arrow(hops: &[HopSide]) -> RecordBatch {
    columns(Encoder::new().encode(hops).expect("encodes"))
}

fn table() -> LogTable {
    LogTable::new(&schema_of(&HopSide::columns())).expect("a known schema")
}

fn batches(hops: &[HopSide], size: usize) -> impl Iterator<Item = LogBatch> {
    hops.chunks(size).map(|some| {
        let mut builder = LogBatchBuilder::default();
        some.iter().for_each(|hop| builder.push(hop));
        builder.take()
    })
}

fn same(hops: &[HopSide], size: usize, table: &mut LogTable) {
    let mut sorted = hops.to_vec();
    sorted.sort_by_key(|hop| hop.start_time);
    batches(hops, size).for_each(|batch| table.push(&batch));
    let (got, want) = (columns(table.encode().expect("encodes")), by_arrow(&sorted));
    table.clear();
    assert_eq!(got.num_rows(), hops.len());
    for (n, field) in want.schema().fields().iter().enumerate() {
        assert_eq!(got.schema().field(n).name(), field.name());
        assert_eq!(got.column(n), want.column(n), "{}", field.name());
    }
    assert_eq!(got.num_columns(), want.num_columns());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..Default::default() })]

    /// Whatever the values are, both ways write the same columns.
    #[test]
    fn columns_are_those_that_arrow_makes_of_the_entries(hops in vec(hop(), 1..90), again in vec(hop(), 1..20), size in 1_usize..40) {
        let mut table = table();
        same(&hops, size, &mut table);
        // Nothing of a part is left in the next.
        same(&again, size, &mut table);
    }

    #[test]
    fn entries_go_both_ways_through_rows(hops in vec(hop(), 1..20)) {
        let rows: Vec<_> = batches(&hops, 20).flat_map(|batch| batch.hops().collect::<Vec<_>>()).collect();
        prop_assert_eq!(rows, hops);
    }
}

#[test]
fn long_columns_and_runs_are_the_same_too() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let some = vec(hop(), 40).new_tree(&mut runner).expect("some").current();
    // Runs of each length around the groups of 8, and thousands of rows.
    let hops: Vec<_> =
        (0..4_000_usize).map(|n| some[if n % 600 < 300 { n / 7 % 40 } else { n * n % 37 }].clone()).collect();
    same(&hops, 512, &mut table());
}

#[test]
fn an_empty_table_is_a_file_without_rows() {
    assert_eq!(columns(table().encode().expect("encodes")).num_rows(), 0);
    assert_eq!(columns(table().encode().expect("encodes")).num_columns(), HopSide::columns().len());
}
