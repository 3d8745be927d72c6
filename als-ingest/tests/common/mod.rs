//! A client that sends what it is told to, well-formed or not, as an Envoy would: without ever ending its streams.

mod raw;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::data::accesslog::v3::{
    AccessLogCommon, AccessLogType, HttpAccessLogEntry, HttpRequestProperties, TcpAccessLogEntry,
};
use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::{
    HttpAccessLogEntries, Identifier, LogEntries, TcpAccessLogEntries,
};
use envoy_types::pb::google::protobuf::Timestamp;
use meshdiff_als::{AlsBatch, AlsHandle, AlsServer, AlsSettings, AlsStats, AlsTls, ServeError};
use meshdiff_model::{HopSide, Proxy};
use prost::Message;
use raw::Raw;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// No condition that a test waits for takes this long on any machine that works.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) const NODE: &str = "sidecar~10.77.0.2~productpage-v1-abc.default~default.svc.cluster.local";

pub(crate) struct Running {
    pub(crate) handle: AlsHandle,
    pub(crate) serving: JoinHandle<Result<AlsStats, ServeError>>,
    pub(crate) batches: mpsc::Receiver<AlsBatch>,
    /// Entries that are not terminal, as they came.
    pub(crate) progress: Vec<HopSide>,
}

pub(crate) fn start(settings: AlsSettings, sink: usize) -> Running {
    start_with(settings, sink, None)
}

pub(crate) fn start_with(settings: AlsSettings, sink: usize, tls: Option<AlsTls>) -> Running {
    let server = AlsServer::bind(SocketAddr::from(([127, 0, 0, 1], 0)), settings).expect("loopback has a free port");
    let server = match tls {
        Some(tls) => server.with_tls(tls),
        None => server,
    };
    let handle = server.handle();
    let (sink, batches) = mpsc::channel(sink);
    Running { handle, serving: tokio::spawn(server.serve(sink)), batches, progress: Vec::new() }
}

impl Running {
    /// Waits for as many entries, and collects all that comes until then.
    pub(crate) async fn receive(&mut self, entries: usize) -> (Vec<Arc<Proxy>>, Vec<HopSide>) {
        let (mut proxies, mut hops) = (Vec::new(), Vec::new());
        let all = async {
            while hops.len() < entries {
                let Some(batch) = self.batches.recv().await else { break };
                hops.extend(batch.entries());
                self.progress.extend(batch.progress());
                proxies.extend(batch.proxy);
            }
        };
        let in_time = tokio::time::timeout(DEADLINE, all).await.is_ok();
        assert!(in_time, "{} of {entries} entries came: {:?}", hops.len(), self.handle.stats());
        (proxies, hops)
    }

    pub(crate) async fn wait_for(&self, what: &str, condition: impl Fn(&AlsStats) -> bool) -> AlsStats {
        wait_for(&self.handle, what, condition).await
    }
}

pub(crate) async fn wait_for(handle: &AlsHandle, what: &str, condition: impl Fn(&AlsStats) -> bool) -> AlsStats {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let stats = handle.stats();
        if condition(&stats) {
            return stats;
        }
        assert!(Instant::now() < deadline, "{what} did not come true: {stats:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) async fn connect(handle: &AlsHandle) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", handle.local_addr())).expect("a URI");
    endpoint.connect().await.expect("the server listens")
}

/// An open stream. Dropping it resets the stream, as an Envoy that exits does.
pub(crate) struct Stream {
    messages: mpsc::UnboundedSender<Bytes>,
    pub(crate) answer: JoinHandle<Result<(), Status>>,
}

impl Stream {
    pub(crate) fn open(channel: &Channel) -> Self {
        let (messages, outgoing) = mpsc::unbounded_channel();
        let mut client = tonic::client::Grpc::new(channel.clone());
        let answer = tokio::spawn(async move {
            client.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
            let path = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs".parse().expect("a path");
            let request = Request::new(UnboundedReceiverStream::new(outgoing));
            client.client_streaming(request, path, Raw).await.map(|_| ())
        });
        Self { messages, answer }
    }

    pub(crate) fn send(&self, message: impl Into<Bytes>) {
        self.messages.send(message.into()).expect("the stream is open");
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.answer.abort();
    }
}

pub(crate) fn identifier(node: &str) -> Option<Identifier> {
    Some(Identifier { node: Some(Node { id: node.to_owned(), ..Default::default() }), log_name: "test".to_owned() })
}

fn common(seconds: i64, kind: AccessLogType) -> Option<AccessLogCommon> {
    Some(AccessLogCommon {
        start_time: Some(Timestamp { seconds, nanos: 1_000 }),
        upstream_cluster: "outbound|9080||reviews.default.svc.cluster.local".to_owned(),
        access_log_type: kind as i32,
        ..Default::default()
    })
}

/// A message of HTTP entries whose request ids are `ids`.
pub(crate) fn http(node: Option<&str>, ids: impl IntoIterator<Item = String>) -> StreamAccessLogsMessage {
    let entry = |id| HttpAccessLogEntry {
        common_properties: common(1_767_225_600, AccessLogType::DownstreamEnd),
        request: Some(HttpRequestProperties {
            request_id: id,
            path: "/reviews/0?secret=1".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    StreamAccessLogsMessage {
        identifier: node.and_then(identifier),
        log_entries: Some(LogEntries::HttpLogs(HttpAccessLogEntries {
            log_entry: ids.into_iter().map(entry).collect(),
        })),
    }
}

/// A message of TCP entries: `ended` connections that ended, then `open` ones that only tell how they do.
pub(crate) fn tcp(node: Option<&str>, ended: usize, open: usize) -> StreamAccessLogsMessage {
    let entry =
        |kind| TcpAccessLogEntry { common_properties: common(1_767_225_601, kind), connection_properties: None };
    let ended = std::iter::repeat_n(entry(AccessLogType::TcpConnectionEnd), ended);
    let open = std::iter::repeat_n(entry(AccessLogType::TcpPeriodic), open);
    StreamAccessLogsMessage {
        identifier: node.and_then(identifier),
        log_entries: Some(LogEntries::TcpLogs(TcpAccessLogEntries { log_entry: ended.chain(open).collect() })),
    }
}

pub(crate) fn numbered(prefix: &str, count: usize) -> impl Iterator<Item = String> {
    (0..count).map(move |n| format!("{prefix}-{n}"))
}

pub(crate) fn bytes(message: &StreamAccessLogsMessage) -> Vec<u8> {
    message.encode_to_vec()
}
