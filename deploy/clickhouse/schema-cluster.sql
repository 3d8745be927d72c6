-- meshdiff's tables on a cluster of ClickHouse servers: replicated, and sharded by capture. The servers' macros name {cluster},
-- {shard} and {replica}. By hand: clickhouse-client --database meshdiff --multiquery < schema-cluster.sql
-- Made from the capture's schema: MESHDIFF_UPDATE_DOCS=1 cargo test -p meshdiff-capture --test clickhouse_schema writes it.

CREATE TABLE IF NOT EXISTS `sockets_local` ON CLUSTER '{cluster}' (
    `capture_id` String COMMENT 'The capture that the row is of.',
    `capture_node` LowCardinality(String) COMMENT 'The node on which it was recorded.',
    `segment` Int64 COMMENT 'When that capture began, in ns since 1970: an agent stores a capture for each stretch of time.',
    `part` UInt32 COMMENT 'The row\'s part in the capture, in order.',
    `row` UInt32 COMMENT 'The row\'s place in the part.',
    `cookie` UInt64 CODEC(ZSTD(1)) COMMENT 'The socket\'s cookie: unique on the node from boot to shutdown.',
    `netns` UInt32 CODEC(ZSTD(1)) COMMENT 'Network namespace, by its inode number.',
    `local_ip` String CODEC(ZSTD(1)) COMMENT 'Own address.',
    `local_port` UInt16 CODEC(ZSTD(1)) COMMENT 'Own port.',
    `remote_ip` String CODEC(ZSTD(1)) COMMENT 'The peer\'s address as this socket knows it, before any REDIRECT.',
    `remote_port` UInt16 CODEC(ZSTD(1)) COMMENT 'The peer\'s port as this socket knows it.',
    `owner_tgid` Nullable(UInt32) CODEC(ZSTD(1)) COMMENT 'The process that sent or read on it last, in the host\'s pid namespace; null until one did.',
    `connect_start_ns` Nullable(UInt64) CODEC(Delta, ZSTD(1)) COMMENT 'When it began to connect; null if it accepted, or was open before the recording.',
    `established_ns` Nullable(UInt64) CODEC(Delta, ZSTD(1)) COMMENT 'When it was established; null if that was before the recording.',
    `closed_ns` Nullable(UInt64) CODEC(Delta, ZSTD(1)) COMMENT 'When it was closed; null if it was still open.',
    `first_seen_ns` UInt64 CODEC(Delta, ZSTD(1)) COMMENT 'First event on it.',
    `last_seen_ns` UInt64 CODEC(Delta, ZSTD(1)) COMMENT 'Last event on it.',
    `srtt_ns` Nullable(Int64) CODEC(Delta, ZSTD(1)) COMMENT 'The kernel\'s smoothed round-trip time at the last event; null without a sample.',
    `lost_events` UInt64 CODEC(ZSTD(1)) COMMENT 'Events of this socket that the ring buffer had no room for.',
    `role` Nullable(String) CODEC(ZSTD(1)) COMMENT '`connected` or `accepted`: which end of the connection it is; null if it was open before the recording and nothing tells.',
    `handshake_ns` Nullable(Int64) CODEC(Delta, ZSTD(1)) COMMENT 'How long the handshake took: connected, from the SYN until established; accepted, from the SYN-ACK until its acknowledgement.',
    `connect_errno` Nullable(UInt16) CODEC(ZSTD(1)) COMMENT 'The kernel\'s number of the error with which a connect failed.',
    `closed_by` Nullable(String) CODEC(ZSTD(1)) COMMENT 'Who ended the connection first: `local`, `remote`, or `kernel` if nobody answered any more; null while nobody did.',
    `close_reset` Nullable(Bool) CODEC(ZSTD(1)) COMMENT 'A reset was sent or received, apart from any FIN.',
    `close_duration_ns` Nullable(Int64) CODEC(Delta, ZSTD(1)) COMMENT 'From the first FIN until the socket was closed; null without a FIN, or while it is half open.',
    `tls` Bool CODEC(ZSTD(1)) COMMENT 'It sent TLS records.',
    `tls_offered` Nullable(String) CODEC(ZSTD(1)) COMMENT 'The highest version that it offered as TLS client.',
    `tls_version` Nullable(String) CODEC(ZSTD(1)) COMMENT 'The version that it chose as TLS server.',
    `tls_sni` Nullable(String) CODEC(ZSTD(1)) COMMENT 'The server\'s name that it asked for.',
    `tls_alpn_offered` Array(String) CODEC(ZSTD(1)) COMMENT 'Protocols that it offered by ALPN, best first.',
    `tls_alpn` Nullable(String) CODEC(ZSTD(1)) COMMENT 'The protocol that it chose by ALPN; TLS 1.3 hides it.',
    `tls_plaintext_seen` Bool CODEC(ZSTD(1)) COMMENT 'What it sent was recognised before the application encrypted it.'
) ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/{database}/sockets_local', '{replica}')
PARTITION BY toDate(intDiv(segment, 1000000000))
ORDER BY (capture_node, segment, capture_id, part, row)
SETTINGS replicated_deduplication_window = 1000;

CREATE TABLE IF NOT EXISTS `sockets` ON CLUSTER '{cluster}' AS `sockets_local`
ENGINE = Distributed('{cluster}', currentDatabase(), 'sockets_local', cityHash64(capture_id));

CREATE TABLE IF NOT EXISTS `messages_local` ON CLUSTER '{cluster}' (
    `capture_id` String COMMENT 'The capture that the row is of.',
    `capture_node` LowCardinality(String) COMMENT 'The node on which it was recorded.',
    `segment` Int64 COMMENT 'When that capture began, in ns since 1970: an agent stores a capture for each stretch of time.',
    `part` UInt32 COMMENT 'The row\'s part in the capture, in order.',
    `row` UInt32 COMMENT 'The row\'s place in the part.',
    `cookie` UInt64 CODEC(ZSTD(1)) COMMENT 'The socket (`sockets.cookie`).',
    `direction` String CODEC(ZSTD(1)) COMMENT '`egress`: sent by the socket, `ingress`: received by it.',
    `seq_start` UInt32 CODEC(Delta, ZSTD(1)) COMMENT 'TCP sequence number of the first byte. Wraps.',
    `seq_end` UInt32 CODEC(Delta, ZSTD(1)) COMMENT 'TCP sequence number after the last byte.',
    `sends` Array(Tuple(seq UInt32, at_ns UInt64)) CODEC(ZSTD(1)) COMMENT 'Egress: for each send call the number of its first byte, and when the bytes were handed to TCP.',
    `readies` Array(Tuple(seq UInt32, at_ns UInt64)) CODEC(ZSTD(1)) COMMENT 'Ingress: by when all bytes before `seq` were readable.',
    `recvs` Array(Tuple(seq UInt32, at_ns UInt64)) CODEC(ZSTD(1)) COMMENT 'Ingress: by when the process had read all bytes before `seq`.',
    `held` Array(Tuple(seq UInt32, at_ns UInt64)) CODEC(ZSTD(1)) COMMENT 'Egress: instants at which TCP held bytes back after a send call: all bytes before `seq` had left, the rest had not.',
    `retransmits` Array(Tuple(seq UInt32, at_ns UInt64)) CODEC(ZSTD(1)) COMMENT 'Egress: each segment that was sent again, by its first byte.',
    `elided` UInt32 CODEC(ZSTD(1)) COMMENT 'Instants that were left out of the lists; the first ones and the last one are always there.',
    `gap_before` Bool CODEC(ZSTD(1)) COMMENT 'Events of this socket were lost just before: instants at the message\'s start are unknown.',
    `content` String CODEC(ZSTD(1)) COMMENT 'What the first bytes are: `unknown`, `http1_request`, `http1_response`, `http2_preface`, `tls_handshake` or `tls_application_data`. Always `unknown` for ingress.',
    `http_method` Nullable(String) CODEC(ZSTD(1)) COMMENT 'Method of an HTTP/1 request.',
    `http_path` Nullable(String) CODEC(ZSTD(1)) COMMENT 'Target of an HTTP/1 request without its query, possibly cut short.',
    `http_status` Nullable(UInt16) CODEC(ZSTD(1)) COMMENT 'Status of an HTTP/1 response.',
    `head_end` Nullable(UInt32) CODEC(Delta, ZSTD(1)) COMMENT 'TCP sequence number after the head\'s last byte, where the recogniser saw all of it.'
) ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/{database}/messages_local', '{replica}')
PARTITION BY toDate(intDiv(segment, 1000000000))
ORDER BY (capture_node, segment, capture_id, part, row)
SETTINGS replicated_deduplication_window = 1000;

CREATE TABLE IF NOT EXISTS `messages` ON CLUSTER '{cluster}' AS `messages_local`
ENGINE = Distributed('{cluster}', currentDatabase(), 'messages_local', cityHash64(capture_id));

CREATE TABLE IF NOT EXISTS `socket_metrics_local` ON CLUSTER '{cluster}' (
    `capture_id` String COMMENT 'The capture that the row is of.',
    `capture_node` LowCardinality(String) COMMENT 'The node on which it was recorded.',
    `segment` Int64 COMMENT 'When that capture began, in ns since 1970: an agent stores a capture for each stretch of time.',
    `part` UInt32 COMMENT 'The row\'s part in the capture, in order.',
    `row` UInt32 COMMENT 'The row\'s place in the part.',
    `cookie` UInt64 CODEC(ZSTD(1)) COMMENT 'The socket (`sockets.cookie`).',
    `window_start_ns` UInt64 CODEC(Delta, ZSTD(1)) COMMENT 'Beginning of the window, a multiple of 10 s.',
    `write_calls` UInt64 CODEC(ZSTD(1)) COMMENT 'Write calls of which TCP took bytes.',
    `write_bytes` UInt64 CODEC(ZSTD(1)) COMMENT 'What TCP took.',
    `write_ns_zeros` Nullable(UInt64) CODEC(ZSTD(1)) COMMENT 'How long the write calls took that were measured: number of zeros. Null, like the other four, if none was.',
    `write_ns_sum` Nullable(UInt64) CODEC(Delta, ZSTD(1)) COMMENT 'Sum of the values.',
    `write_ns_min` Nullable(UInt64) CODEC(Delta, ZSTD(1)) COMMENT 'Smallest value.',
    `write_ns_max` Nullable(UInt64) CODEC(Delta, ZSTD(1)) COMMENT 'Largest value.',
    `write_ns_buckets` Array(Tuple(index Int16, count UInt64)) CODEC(ZSTD(1)) COMMENT 'Buckets of OpenTelemetry\'s exponential histogram at scale 6: `index` counts the values v with 2^(index/64) < v <= 2^((index+1)/64).',
    `read_calls` UInt64 CODEC(ZSTD(1)) COMMENT 'Read calls that returned bytes.',
    `read_bytes` UInt64 CODEC(ZSTD(1)) COMMENT 'What they returned.',
    `read_ns_zeros` Nullable(UInt64) CODEC(ZSTD(1)) COMMENT 'How long the read calls took that were measured: number of zeros. Null, like the other four, if none was.',
    `read_ns_sum` Nullable(UInt64) CODEC(Delta, ZSTD(1)) COMMENT 'Sum of the values.',
    `read_ns_min` Nullable(UInt64) CODEC(Delta, ZSTD(1)) COMMENT 'Smallest value.',
    `read_ns_max` Nullable(UInt64) CODEC(Delta, ZSTD(1)) COMMENT 'Largest value.',
    `read_ns_buckets` Array(Tuple(index Int16, count UInt64)) CODEC(ZSTD(1)) COMMENT 'Buckets of OpenTelemetry\'s exponential histogram at scale 6: `index` counts the values v with 2^(index/64) < v <= 2^((index+1)/64).',
    `wait_ns_zeros` Nullable(UInt64) CODEC(ZSTD(1)) COMMENT 'How long these waited for their first byte: number of zeros (the byte was there).',
    `wait_ns_sum` Nullable(UInt64) CODEC(Delta, ZSTD(1)) COMMENT 'Sum of the values.',
    `wait_ns_min` Nullable(UInt64) CODEC(Delta, ZSTD(1)) COMMENT 'Smallest value.',
    `wait_ns_max` Nullable(UInt64) CODEC(Delta, ZSTD(1)) COMMENT 'Largest value.',
    `wait_ns_buckets` Array(Tuple(index Int16, count UInt64)) CODEC(ZSTD(1)) COMMENT 'Buckets of OpenTelemetry\'s exponential histogram at scale 6: `index` counts the values v with 2^(index/64) < v <= 2^((index+1)/64).',
    `rtt_ns_zeros` Nullable(UInt64) CODEC(ZSTD(1)) COMMENT 'The kernel\'s smoothed round-trip time at each write: number of zeros. Null without a sample.',
    `rtt_ns_sum` Nullable(UInt64) CODEC(Delta, ZSTD(1)) COMMENT 'Sum of the values.',
    `rtt_ns_min` Nullable(UInt64) CODEC(Delta, ZSTD(1)) COMMENT 'Smallest value.',
    `rtt_ns_max` Nullable(UInt64) CODEC(Delta, ZSTD(1)) COMMENT 'Largest value.',
    `rtt_ns_buckets` Array(Tuple(index Int16, count UInt64)) CODEC(ZSTD(1)) COMMENT 'Buckets of OpenTelemetry\'s exponential histogram at scale 6: `index` counts the values v with 2^(index/64) < v <= 2^((index+1)/64).',
    `retransmits` UInt64 CODEC(ZSTD(1)) COMMENT 'Segments that were sent again, also by timers.',
    `drops` Array(Tuple(reason String, count UInt64)) CODEC(ZSTD(1)) COMMENT 'Packets that the kernel dropped, by its reason (`enum skb_drop_reason`).',
    `lost_events` UInt64 CODEC(ZSTD(1)) COMMENT 'Events that were lost: if there are any, the counts are lower bounds.'
) ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/{database}/socket_metrics_local', '{replica}')
PARTITION BY toDate(intDiv(segment, 1000000000))
ORDER BY (capture_node, segment, capture_id, part, row)
SETTINGS replicated_deduplication_window = 1000;

CREATE TABLE IF NOT EXISTS `socket_metrics` ON CLUSTER '{cluster}' AS `socket_metrics_local`
ENGINE = Distributed('{cluster}', currentDatabase(), 'socket_metrics_local', cityHash64(capture_id));

CREATE TABLE IF NOT EXISTS `http2_streams_local` ON CLUSTER '{cluster}' (
    `capture_id` String COMMENT 'The capture that the row is of.',
    `capture_node` LowCardinality(String) COMMENT 'The node on which it was recorded.',
    `segment` Int64 COMMENT 'When that capture began, in ns since 1970: an agent stores a capture for each stretch of time.',
    `part` UInt32 COMMENT 'The row\'s part in the capture, in order.',
    `row` UInt32 COMMENT 'The row\'s place in the part.',
    `cookie` UInt64 CODEC(ZSTD(1)) COMMENT 'The socket that sent it (`sockets.cookie`).',
    `stream` UInt32 CODEC(ZSTD(1)) COMMENT 'The stream\'s number. 0 is the connection: from where to where its frames were followed.',
    `first_seq` UInt32 CODEC(Delta, ZSTD(1)) COMMENT 'TCP sequence number of its first byte.',
    `first_ns` UInt64 CODEC(Delta, ZSTD(1)) COMMENT 'When the send call began that first offered that byte.',
    `last_seq` UInt32 CODEC(Delta, ZSTD(1)) COMMENT 'TCP sequence number after its last byte.',
    `last_ns` UInt64 CODEC(Delta, ZSTD(1)) COMMENT 'When the send call began that offered the last frame\'s header.',
    `head_start` Nullable(UInt32) CODEC(ZSTD(1)) COMMENT 'TCP sequence number of the first byte of the request\'s or response\'s header block, interim ones left out.',
    `head_end` Nullable(UInt32) CODEC(Delta, ZSTD(1)) COMMENT 'TCP sequence number after that header block.',
    `end_seq` Nullable(UInt32) CODEC(Delta, ZSTD(1)) COMMENT 'TCP sequence number after the frame that ended the stream in this direction.',
    `frames` UInt32 CODEC(ZSTD(1)) COMMENT 'Frames.',
    `data_bytes` UInt64 CODEC(ZSTD(1)) COMMENT 'Payload of its DATA frames.',
    `data` Array(Tuple(seq UInt32, at_ns UInt64, end_seq UInt32, bytes UInt64, frames UInt32)) CODEC(ZSTD(1)) COMMENT 'Its DATA frames in order: number of the first byte of the header (`seq`), when its send call began, number after the last byte, payload of all up to there, and how many frames the entry stands for.',
    `interim` UInt32 CODEC(ZSTD(1)) COMMENT 'Interim responses before the response.',
    `reset` Nullable(UInt32) CODEC(ZSTD(1)) COMMENT 'Error code of RST_STREAM (of stream 0: of GOAWAY).',
    `gap` Nullable(String) CODEC(ZSTD(1)) COMMENT 'Why the rest is not known: `still_open`, `events_lost`, `not_seen`, `garbage` or `too_many`; null if it is whole.',
    `from_the_beginning` Bool CODEC(ZSTD(1)) COMMENT 'Of stream 0: it was followed since the connection began.',
    `method` Nullable(String) CODEC(ZSTD(1)) COMMENT '`:method`, where it could be decoded.',
    `path` Nullable(String) CODEC(ZSTD(1)) COMMENT '`:path` without its query.',
    `status` Nullable(UInt16) CODEC(ZSTD(1)) COMMENT '`:status`.',
    `grpc` Nullable(Bool) CODEC(ZSTD(1)) COMMENT 'Whether `content-type` is one of gRPC\'s.',
    `grpc_status` Nullable(UInt16) CODEC(ZSTD(1)) COMMENT '`grpc-status`.',
    `request_id` Nullable(String) CODEC(ZSTD(1)) COMMENT '`x-request-id`.'
) ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/{database}/http2_streams_local', '{replica}')
PARTITION BY toDate(intDiv(segment, 1000000000))
ORDER BY (capture_node, segment, capture_id, part, row)
SETTINGS replicated_deduplication_window = 1000;

CREATE TABLE IF NOT EXISTS `http2_streams` ON CLUSTER '{cluster}' AS `http2_streams_local`
ENGINE = Distributed('{cluster}', currentDatabase(), 'http2_streams_local', cityHash64(capture_id));

CREATE TABLE IF NOT EXISTS `access_logs_local` ON CLUSTER '{cluster}' (
    `capture_id` String COMMENT 'The capture that the row is of.',
    `capture_node` LowCardinality(String) COMMENT 'The node on which it was recorded.',
    `segment` Int64 COMMENT 'When that capture began, in ns since 1970: an agent stores a capture for each stretch of time.',
    `part` UInt32 COMMENT 'The row\'s part in the capture, in order.',
    `row` UInt32 COMMENT 'The row\'s place in the part.',
    `node` String CODEC(ZSTD(1)) COMMENT 'Node id of the reporting Envoy (`proxies.node`).',
    `side` Nullable(String) CODEC(ZSTD(1)) COMMENT 'The hop\'s side on which the proxy stands: `client` or `server`; null where neither the cluster\'s name nor the peer tells.',
    `protocol` String CODEC(ZSTD(1)) COMMENT '`http`, `http/1.0`, `http/1.1`, `http/2`, `http/3` or `tcp`.',
    `access_log_type` String CODEC(ZSTD(1)) COMMENT 'Envoy\'s type of entry. `not_set`, `downstream_end` and `tcp_connection_end` stand for a request or connection that ended; `upstream_end` for one attempt; the others (`tcp_periodic`, `downstream_start` …) for what was not over.',
    `start_time_ns` Int64 CODEC(Delta, ZSTD(1)) COMMENT 'When Envoy\'s stream began, in steps of 1 µs.',
    `time_to_last_rx_byte_ns` Nullable(Int64) CODEC(Delta, ZSTD(1)) COMMENT 'The request\'s end was decoded.',
    `time_to_first_upstream_tx_byte_ns` Nullable(Int64) CODEC(Delta, ZSTD(1)) COMMENT 'The request\'s headers were encoded upstream.',
    `time_to_last_upstream_tx_byte_ns` Nullable(Int64) CODEC(Delta, ZSTD(1)) COMMENT 'The request\'s end was encoded upstream.',
    `time_to_first_upstream_rx_byte_ns` Nullable(Int64) CODEC(Delta, ZSTD(1)) COMMENT 'The response\'s headers were parsed.',
    `time_to_last_upstream_rx_byte_ns` Nullable(Int64) CODEC(Delta, ZSTD(1)) COMMENT 'The response\'s end was decoded.',
    `time_to_first_downstream_tx_byte_ns` Nullable(Int64) CODEC(Delta, ZSTD(1)) COMMENT 'Before the response was encoded downstream.',
    `time_to_last_downstream_tx_byte_ns` Nullable(Int64) CODEC(Delta, ZSTD(1)) COMMENT 'The response was encoded downstream.',
    `duration_ns` Nullable(Int64) CODEC(Delta, ZSTD(1)) COMMENT 'The stream\'s or connection\'s whole duration.',
    `downstream_direct_remote_ip` Nullable(String) CODEC(ZSTD(1)) COMMENT 'The peer of Envoy\'s downstream connection: join key.',
    `downstream_direct_remote_port` Nullable(UInt16) CODEC(ZSTD(1)) COMMENT 'Its port.',
    `downstream_remote_ip` Nullable(String) CODEC(ZSTD(1)) COMMENT 'The peer that X-Forwarded-For may have rewritten: shown, never joined on.',
    `downstream_remote_port` Nullable(UInt16) CODEC(ZSTD(1)) COMMENT 'Its port.',
    `downstream_local_ip` Nullable(String) CODEC(ZSTD(1)) COMMENT 'Where the peer wanted to go.',
    `downstream_local_port` Nullable(UInt16) CODEC(ZSTD(1)) COMMENT 'Its port.',
    `upstream_local_ip` Nullable(String) CODEC(ZSTD(1)) COMMENT 'Envoy\'s end of the last attempt\'s upstream connection: join key.',
    `upstream_local_port` Nullable(UInt16) CODEC(ZSTD(1)) COMMENT 'Its port.',
    `upstream_remote_ip` Nullable(String) CODEC(ZSTD(1)) COMMENT 'The last attempt\'s upstream host.',
    `upstream_remote_port` Nullable(UInt16) CODEC(ZSTD(1)) COMMENT 'Its port.',
    `upstream_cluster` Nullable(String) CODEC(ZSTD(1)) COMMENT 'Envoy\'s cluster.',
    `route_name` Nullable(String) CODEC(ZSTD(1)) COMMENT 'Envoy\'s route.',
    `upstream_request_attempt_count` Nullable(UInt32) CODEC(ZSTD(1)) COMMENT 'Attempts upstream, 1 without a retry; null where Envoy does not say.',
    `response_flags` Array(String) CODEC(ZSTD(1)) COMMENT 'Envoy\'s short response flags, sorted.',
    `request_id` Nullable(String) CODEC(ZSTD(1)) COMMENT 'x-request-id where it is no UUID. It names a trace, not a hop.',
    `request_uuid` Nullable(UUID) CODEC(ZSTD(1)) COMMENT 'x-request-id where it is a UUID in lower case, as Envoy\'s own are.',
    `stream_id` Nullable(String) CODEC(ZSTD(1)) COMMENT 'The entry\'s `stream_id` where it is not the request id.',
    `stream_id_is_request_id` Bool CODEC(ZSTD(1)) COMMENT 'True if the entry\'s `stream_id` is the request id.',
    `method` Nullable(String) CODEC(ZSTD(1)) COMMENT 'Request method.',
    `authority` Nullable(String) CODEC(ZSTD(1)) COMMENT '`:authority`.',
    `path` Nullable(String) CODEC(ZSTD(1)) COMMENT 'Path without its query.',
    `response_code` Nullable(UInt16) CODEC(ZSTD(1)) COMMENT 'Status; null when no response began.',
    `response_code_details` Nullable(String) CODEC(ZSTD(1)) COMMENT 'Envoy\'s reason for the status.',
    `request_body_bytes` UInt64 CODEC(ZSTD(1)) COMMENT 'Size of the request\'s body.',
    `response_body_bytes` UInt64 CODEC(ZSTD(1)) COMMENT 'Size of the response\'s body.',
    `tls_sni_hostname` Nullable(String) CODEC(ZSTD(1)) COMMENT 'SNI of the downstream TLS connection.',
    `downstream_tls` Bool CODEC(ZSTD(1)) COMMENT 'True if the downstream connection was TLS.',
    `downstream_wire_bytes_sent` Nullable(UInt64) CODEC(ZSTD(1)) COMMENT 'On the wire to the caller; null for none or not counted.',
    `downstream_wire_bytes_received` Nullable(UInt64) CODEC(ZSTD(1)) COMMENT 'On the wire from the caller.',
    `upstream_wire_bytes_sent` Nullable(UInt64) CODEC(ZSTD(1)) COMMENT 'On the wire to the upstream host.',
    `upstream_wire_bytes_received` Nullable(UInt64) CODEC(ZSTD(1)) COMMENT 'On the wire from the upstream host.',
    `downstream_header_bytes_sent` Nullable(UInt64) CODEC(ZSTD(1)) COMMENT 'Headers on the wire to the caller.',
    `downstream_header_bytes_received` Nullable(UInt64) CODEC(ZSTD(1)) COMMENT 'Headers on the wire from the caller.',
    `upstream_header_bytes_sent` Nullable(UInt64) CODEC(ZSTD(1)) COMMENT 'Headers on the wire to the upstream host.',
    `upstream_header_bytes_received` Nullable(UInt64) CODEC(ZSTD(1)) COMMENT 'Headers on the wire from the upstream host.',
    `request_headers_bytes` Nullable(UInt64) CODEC(ZSTD(1)) COMMENT 'The request\'s headers as Envoy holds them.',
    `response_headers_bytes` Nullable(UInt64) CODEC(ZSTD(1)) COMMENT 'The response\'s headers as Envoy holds them.',
    `tls` Nullable(String) CODEC(ZSTD(1)) COMMENT 'The downstream connection\'s TLS as a JSON object: version, cipherSuite, peerSubject, peerSan, localSubject, localSan.',
    `downstream_peer` Nullable(String) CODEC(ZSTD(1)) COMMENT 'The caller by Istio\'s metadata exchange, as a JSON object: name, namespace, workload, workloadType, service, revision, cluster, app, version, identity.',
    `upstream_peer` Nullable(String) CODEC(ZSTD(1)) COMMENT 'The called workload, likewise.',
    `connection_id` Nullable(UInt64) CODEC(ZSTD(1)) COMMENT 'Envoy\'s number of the downstream connection (custom tag).',
    `upstream_connection_id` Nullable(UInt64) CODEC(ZSTD(1)) COMMENT 'Envoy\'s number of the last attempt\'s upstream connection (custom tag).',
    `upstream_connect_ns` Nullable(Int64) CODEC(Delta, ZSTD(1)) COMMENT 'How long the upstream connection took to connect, repeated on all its requests (custom tag).',
    `upstream_handshake_ns` Nullable(Int64) CODEC(Delta, ZSTD(1)) COMMENT 'How long its TLS handshake took, likewise (custom tag).',
    `upstream_connected_after_ns` Nullable(Int64) CODEC(Delta, ZSTD(1)) COMMENT 'From the request\'s first byte until the upstream connection was connected; null if it was before (custom tag).',
    `upstream_ready_after_ns` Nullable(Int64) CODEC(Delta, ZSTD(1)) COMMENT 'From the request\'s first byte until the upstream TLS handshake was over; null if it was before (custom tag).',
    `upstream_protocol` Nullable(String) CODEC(ZSTD(1)) COMMENT 'The protocol towards the upstream host (custom tag).',
    `upstream_transport_failure_reason` Nullable(String) CODEC(ZSTD(1)) COMMENT 'Why the connection to the upstream host failed, in Envoy\'s words.',
    `downstream_transport_failure_reason` Nullable(String) CODEC(ZSTD(1)) COMMENT 'The same of the downstream connection.',
    `connection_termination_details` Nullable(String) CODEC(ZSTD(1)) COMMENT 'Why Envoy ended the downstream connection.'
) ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/{database}/access_logs_local', '{replica}')
PARTITION BY toDate(intDiv(segment, 1000000000))
ORDER BY (capture_node, segment, capture_id, part, row)
SETTINGS replicated_deduplication_window = 1000;

CREATE TABLE IF NOT EXISTS `access_logs` ON CLUSTER '{cluster}' AS `access_logs_local`
ENGINE = Distributed('{cluster}', currentDatabase(), 'access_logs_local', cityHash64(capture_id));

CREATE TABLE IF NOT EXISTS `proxies_local` ON CLUSTER '{cluster}' (
    `capture_id` String COMMENT 'The capture that the row is of.',
    `capture_node` LowCardinality(String) COMMENT 'The node on which it was recorded.',
    `segment` Int64 COMMENT 'When that capture began, in ns since 1970: an agent stores a capture for each stretch of time.',
    `part` UInt32 COMMENT 'The row\'s part in the capture, in order.',
    `row` UInt32 COMMENT 'The row\'s place in the part.',
    `node` String CODEC(ZSTD(1)) COMMENT 'Envoy\'s node id.',
    `kind` String CODEC(ZSTD(1)) COMMENT '`sidecar`, `router` (a gateway), `waypoint` or `other`.',
    `address` Nullable(String) CODEC(ZSTD(1)) COMMENT 'Its pod\'s address, from the node id.',
    `instance_ips` Array(String) CODEC(ZSTD(1)) COMMENT 'All of its pod\'s addresses (`INSTANCE_IPS`).',
    `pod` Nullable(String) CODEC(ZSTD(1)) COMMENT 'Pod name (`NAME`).',
    `namespace` Nullable(String) CODEC(ZSTD(1)) COMMENT 'Kubernetes namespace (`NAMESPACE`).',
    `workload` Nullable(String) CODEC(ZSTD(1)) COMMENT 'Workload (`WORKLOAD_NAME`).',
    `owner` Nullable(String) CODEC(ZSTD(1)) COMMENT 'The Kubernetes object behind the pod (`OWNER`).',
    `service` Nullable(String) CODEC(ZSTD(1)) COMMENT 'Canonical service name.',
    `version` Nullable(String) CODEC(ZSTD(1)) COMMENT 'Canonical revision.',
    `cluster_id` Nullable(String) CODEC(ZSTD(1)) COMMENT 'Kubernetes cluster (`CLUSTER_ID`).',
    `node_name` Nullable(String) CODEC(ZSTD(1)) COMMENT 'Kubernetes node (`NODE_NAME`).',
    `locality` Nullable(String) CODEC(ZSTD(1)) COMMENT '`region/zone/sub_zone` of the Node\'s locality.',
    `istio_version` Nullable(String) CODEC(ZSTD(1)) COMMENT '`ISTIO_VERSION`.',
    `envoy_version` Nullable(String) CODEC(ZSTD(1)) COMMENT 'Envoy\'s own version.',
    `interception_mode` Nullable(String) CODEC(ZSTD(1)) COMMENT '`REDIRECT`, `TPROXY` or `NONE`.',
    `labels` Map(String, String) CODEC(ZSTD(1)) COMMENT 'The pod\'s labels (`LABELS`).'
) ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/{database}/proxies_local', '{replica}')
PARTITION BY toDate(intDiv(segment, 1000000000))
ORDER BY (capture_node, segment, capture_id, part, row)
SETTINGS replicated_deduplication_window = 1000;

CREATE TABLE IF NOT EXISTS `proxies` ON CLUSTER '{cluster}' AS `proxies_local`
ENGINE = Distributed('{cluster}', currentDatabase(), 'proxies_local', cityHash64(capture_id));

CREATE TABLE IF NOT EXISTS `processes_local` ON CLUSTER '{cluster}' (
    `capture_id` String COMMENT 'The capture that the row is of.',
    `capture_node` LowCardinality(String) COMMENT 'The node on which it was recorded.',
    `segment` Int64 COMMENT 'When that capture began, in ns since 1970: an agent stores a capture for each stretch of time.',
    `part` UInt32 COMMENT 'The row\'s part in the capture, in order.',
    `row` UInt32 COMMENT 'The row\'s place in the part.',
    `tgid` UInt32 CODEC(ZSTD(1)) COMMENT 'Process id in the host\'s pid namespace.',
    `netns` UInt32 CODEC(ZSTD(1)) COMMENT 'Network namespace, by its inode number.',
    `comm` String CODEC(ZSTD(1)) COMMENT 'The name that the process gives itself, at most 15 bytes.',
    `exe` Nullable(String) CODEC(ZSTD(1)) COMMENT 'The file that it executes; null if not readable.',
    `uid` Nullable(UInt32) CODEC(ZSTD(1)) COMMENT 'Effective user id (Istio\'s sidecar: 1337).',
    `cgroup` Nullable(String) CODEC(ZSTD(1)) COMMENT 'Its control group, which names pod and container in Kubernetes.',
    `role` String CODEC(ZSTD(1)) COMMENT '`sidecar` or `application`.'
) ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/{database}/processes_local', '{replica}')
PARTITION BY toDate(intDiv(segment, 1000000000))
ORDER BY (capture_node, segment, capture_id, part, row)
SETTINGS replicated_deduplication_window = 1000;

CREATE TABLE IF NOT EXISTS `processes` ON CLUSTER '{cluster}' AS `processes_local`
ENGINE = Distributed('{cluster}', currentDatabase(), 'processes_local', cityHash64(capture_id));

CREATE TABLE IF NOT EXISTS `events_local` ON CLUSTER '{cluster}' (
    `capture_id` String COMMENT 'The capture that the row is of.',
    `capture_node` LowCardinality(String) COMMENT 'The node on which it was recorded.',
    `segment` Int64 COMMENT 'When that capture began, in ns since 1970: an agent stores a capture for each stretch of time.',
    `part` UInt32 COMMENT 'The row\'s part in the capture, in order.',
    `row` UInt32 COMMENT 'The row\'s place in the part.',
    `cookie` UInt64 CODEC(ZSTD(1)) COMMENT 'The socket (`sockets.cookie`).',
    `counter` UInt32 CODEC(ZSTD(1)) COMMENT 'The event\'s place among the socket\'s events; a gap is a lost event. Wraps.',
    `at_ns` UInt64 CODEC(Delta, ZSTD(1)) COMMENT 'When the probe ran.',
    `tgid` UInt32 CODEC(ZSTD(1)) COMMENT 'The process in whose context it ran: the owner for send and recv, anyone for ready and state.',
    `kind` String CODEC(ZSTD(1)) COMMENT '`send`, `ready`, `recv`, `state`, `held` (a write ended and TCP held bytes back), `retransmit`, `reset_sent`, `reset_received` or `drop` (of a packet).',
    `seq` Nullable(UInt32) CODEC(Delta, ZSTD(1)) COMMENT 'send, retransmit: TCP sequence number of the first byte; held: of the first byte that has not left.',
    `len` Nullable(UInt32) CODEC(ZSTD(1)) COMMENT 'send: what the call has to send; recv: what it returned; held, retransmit: how many.',
    `rcv_nxt` Nullable(UInt32) CODEC(ZSTD(1)) COMMENT 'ready: TCP sequence number after the last readable byte.',
    `copied_seq` Nullable(UInt32) CODEC(Delta, ZSTD(1)) COMMENT 'ready: number of the first unread byte; recv: number after the last byte read.',
    `old_state` Nullable(String) CODEC(ZSTD(1)) COMMENT 'state: the TCP state before.',
    `new_state` Nullable(String) CODEC(ZSTD(1)) COMMENT 'state: the TCP state after.',
    `reason` Nullable(UInt32) CODEC(ZSTD(1)) COMMENT 'drop: the kernel\'s number of its reason (`enum skb_drop_reason`).'
) ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/{database}/events_local', '{replica}')
PARTITION BY toDate(intDiv(segment, 1000000000))
ORDER BY (capture_node, segment, capture_id, part, row)
SETTINGS replicated_deduplication_window = 1000;

CREATE TABLE IF NOT EXISTS `events` ON CLUSTER '{cluster}' AS `events_local`
ENGINE = Distributed('{cluster}', currentDatabase(), 'events_local', cityHash64(capture_id));

CREATE TABLE IF NOT EXISTS `requests_local` ON CLUSTER '{cluster}' (
    `capture_id` String COMMENT 'The capture that the row is of.',
    `capture_node` LowCardinality(String) COMMENT 'The node on which it was recorded.',
    `segment` Int64 COMMENT 'When that capture began, in ns since 1970: an agent stores a capture for each stretch of time.',
    `part` UInt32 COMMENT 'The row\'s part in the capture, in order.',
    `row` UInt32 COMMENT 'The row\'s place in the part.',
    `boot_id` LowCardinality(String) CODEC(ZSTD(1)) COMMENT 'The node\'s boot: ids are unique within one.',
    `id` String CODEC(ZSTD(1)) COMMENT 'The request, as `meshdiff requests` names it.',
    `parent` String CODEC(ZSTD(1)) COMMENT 'The request during which this one was made; empty if none, or nobody can tell.',
    `class` LowCardinality(String) CODEC(ZSTD(1)) COMMENT 'Its row of the report\'s coverage; `contradiction` and `unlogged` are counted and are no requests of a report.',
    `reason` String CODEC(ZSTD(1)) COMMENT 'Why it is not full; empty if it is.',
    `start_ns` Int64 CODEC(ZSTD(1)) COMMENT 'When it began, in ns since 1970.',
    `client` LowCardinality(String) CODEC(ZSTD(1)) COMMENT 'The calling workload, JSON.',
    `server` LowCardinality(String) CODEC(ZSTD(1)) COMMENT 'The called workload, JSON.',
    `service` LowCardinality(String) CODEC(ZSTD(1)) COMMENT 'The called service; empty if unknown.',
    `client_namespace` LowCardinality(String) CODEC(ZSTD(1)) COMMENT 'Empty if unknown.',
    `server_namespace` LowCardinality(String) CODEC(ZSTD(1)) COMMENT 'Empty if unknown.',
    `protocol` LowCardinality(String) CODEC(ZSTD(1)) COMMENT 'As reports name it.',
    `response_code` UInt16 CODEC(ZSTD(1)) COMMENT '0 if no response came.',
    `total_ns` Int64 CODEC(ZSTD(1)) COMMENT 'How long it took.',
    `client_app_ns` Nullable(Int64) CODEC(ZSTD(1)) COMMENT 'Time in client_app; NULL if there was none.',
    `client_loopback_ns` Nullable(Int64) CODEC(ZSTD(1)) COMMENT 'Time in client_loopback; NULL if there was none.',
    `client_sidecar_ns` Nullable(Int64) CODEC(ZSTD(1)) COMMENT 'Time in client_sidecar; NULL if there was none.',
    `connection_setup_ns` Nullable(Int64) CODEC(ZSTD(1)) COMMENT 'Time in connection_setup; NULL if there was none.',
    `retry_ns` Nullable(Int64) CODEC(ZSTD(1)) COMMENT 'Time in retry; NULL if there was none.',
    `network_ns` Nullable(Int64) CODEC(ZSTD(1)) COMMENT 'Time in network; NULL if there was none.',
    `server_sidecar_ns` Nullable(Int64) CODEC(ZSTD(1)) COMMENT 'Time in server_sidecar; NULL if there was none.',
    `server_loopback_ns` Nullable(Int64) CODEC(ZSTD(1)) COMMENT 'Time in server_loopback; NULL if there was none.',
    `server_app_ns` Nullable(Int64) CODEC(ZSTD(1)) COMMENT 'Time in server_app; NULL if there was none.',
    `transfer_ns` Nullable(Int64) CODEC(ZSTD(1)) COMMENT 'Time in transfer; NULL if there was none.',
    `unattributed_ns` Nullable(Int64) CODEC(ZSTD(1)) COMMENT 'Time in unattributed; NULL if there was none.',
    `detail_names` Array(LowCardinality(String)) CODEC(ZSTD(1)) COMMENT 'Parts of segments, as `segment.part`.',
    `detail_ns` Array(Int64) CODEC(ZSTD(1)) COMMENT 'Their times.',
    `client_seen` Bool CODEC(ZSTD(1)) COMMENT 'The kernel saw the client application send it.',
    `calls_whole` Bool CODEC(ZSTD(1)) COMMENT 'The calls that its server made meanwhile count with all of their time.',
    `half` LowCardinality(String) CODEC(ZSTD(1)) COMMENT '`client` or `server` if another node may have recorded the other half; else empty.',
    `half_flow` String CODEC(ZSTD(1)) COMMENT 'The address from which the client\'s sidecar connected; empty if unknown.',
    `half_key` String CODEC(ZSTD(1)) COMMENT 'What both halves call the request: that address with the TCP sequence number after the request\'s last byte, or with its id.',
    `half_shared` Bool CODEC(ZSTD(1)) COMMENT 'The connection is encrypted and carries several requests at once.',
    `half_alike` String CODEC(ZSTD(1)) COMMENT 'Path, status and sizes of a request on such a connection.',
    `half_answer_end` UInt32 CODEC(ZSTD(1)) COMMENT 'TCP sequence number after the response\'s last byte.',
    `half_inside_ns` Int64 CODEC(ZSTD(1)) COMMENT 'At the client\'s sidecar from the request sent to the response ready; at the server\'s from the request ready to the response sent.',
    `half_came_at_once` Bool CODEC(ZSTD(1)) COMMENT 'What came over the connection was ready all at once.',
    `half_sent_at_once` Bool CODEC(ZSTD(1)) COMMENT 'What was sent over it was sent in one call.',
    `half_plain` Bool CODEC(ZSTD(1)) COMMENT 'Nothing depends on the other half but the network\'s time.',
    `half_request_id` String CODEC(ZSTD(1)) COMMENT '`x-request-id` without what sampling changes.',
    `half_method` LowCardinality(String) CODEC(ZSTD(1)) COMMENT 'Request method.',
    `half_segments` Array(Nullable(Int64)) CODEC(ZSTD(1)) COMMENT 'Times of this half by segment, in the order of the columns above.',
    `half_detail_names` Array(LowCardinality(String)) CODEC(ZSTD(1)) COMMENT 'Parts of these.',
    `half_detail_ns` Array(Int64) CODEC(ZSTD(1)) COMMENT 'Their times.',
    `line` String CODEC(ZSTD(3)) COMMENT 'The request as `meshdiff requests --instants` prints it.'
) ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/{database}/requests_local', '{replica}')
PARTITION BY toDate(intDiv(segment, 1000000000))
ORDER BY (capture_node, segment, capture_id, part, row)
SETTINGS replicated_deduplication_window = 1000;

CREATE TABLE IF NOT EXISTS `requests` ON CLUSTER '{cluster}' AS `requests_local`
ENGINE = Distributed('{cluster}', currentDatabase(), 'requests_local', cityHash64(if(half_flow = '', capture_id, half_flow)));

CREATE TABLE IF NOT EXISTS `captures_local` ON CLUSTER '{cluster}' (
    `capture_id` String COMMENT 'The capture.',
    `capture_node` LowCardinality(String) COMMENT 'The node on which it was recorded.',
    `segment` Int64 COMMENT 'When it began, in ns since 1970.',
    `end_ns` Int64 COMMENT 'When it ended, in ns since 1970.',
    `boot_id` String COMMENT 'The node\'s boot: monotonic instants and socket cookies compare within one.',
    `rows` Map(String, UInt64) COMMENT 'How many rows of each table belong to it.',
    `meta` String COMMENT 'The capture\'s meta.json.',
    `warnings` Array(String) COMMENT 'What could not be read of it when it was stored.',
    `joined` Array(String) COMMENT 'The captures that were joined together to find its requests, itself among them; empty if `requests` has none of it.'
) ENGINE = ReplicatedReplacingMergeTree('/clickhouse/tables/{shard}/{database}/captures_local', '{replica}')
PARTITION BY toDate(intDiv(segment, 1000000000))
ORDER BY (capture_node, segment, capture_id)
SETTINGS replicated_deduplication_window = 1000;

CREATE TABLE IF NOT EXISTS `captures` ON CLUSTER '{cluster}' AS `captures_local`
ENGINE = Distributed('{cluster}', currentDatabase(), 'captures_local', cityHash64(capture_id));
