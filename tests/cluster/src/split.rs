//! What two nodes would have recorded of what one did.

use meshdiff_capture::{Capture, CaptureData, CaptureSink, CaptureWriter, WriterOptions};
use meshdiff_model::{
    ClockAnchor, ClockSample, HopSide, Http2Stream, Instants, Message, MonotonicNs, SeqInstant, Socket, SocketMetrics,
    WallTime,
};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

/// How a node's clocks differ from those of the recording, in ns.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clocks {
    /// The monotonic clock.
    pub monotonic: i64,
    /// The wall clock.
    pub wall: i64,
}

/// The pods of a recording, in two halves.
///
/// # Panics
/// If there is no capture.
#[must_use]
pub fn halves(capture: &Path) -> [BTreeSet<IpAddr>; 2] {
    let data = read(capture);
    let pods: BTreeSet<IpAddr> = data.sockets.iter().map(|s| s.local.ip()).filter(|ip| !ip.is_loopback()).collect();
    let (a, b): (Vec<_>, Vec<_>) = pods.into_iter().enumerate().partition(|(i, _)| i % 2 == 0);
    [a, b].map(|half| half.into_iter().map(|(_, ip)| ip).collect())
}

fn read(capture: &Path) -> CaptureData {
    Capture::open(capture).and_then(|c| c.read()).unwrap_or_else(|e| panic!("{e}"))
}

/// Writes the part of a capture that a node with these pods would have recorded.
///
/// # Panics
/// If the capture cannot be read, or the part not be written.
pub fn write(capture: &Path, pods: &BTreeSet<IpAddr>, clocks: Clocks, to: &Path) {
    let data = part(read(capture), pods, clocks);
    let mut writer = CaptureWriter::create(to, &data.meta, WriterOptions::default()).expect("a folder");
    let result = (|| {
        data.sockets.into_iter().try_for_each(|row| writer.write_socket(row))?;
        data.messages.into_iter().try_for_each(|row| writer.write_message(row))?;
        data.http2_streams.into_iter().try_for_each(|row| writer.write_http2(row))?;
        data.metrics.into_iter().try_for_each(|row| writer.write_metrics(row))?;
        data.access_logs.into_iter().try_for_each(|row| writer.write_access_log(row))?;
        data.proxies.into_iter().try_for_each(|row| writer.write_proxy(row))?;
        data.processes.into_iter().try_for_each(|row| writer.write_process(row))?;
        writer.finish(data.meta)
    })();
    result.expect("written");
}

fn part(data: CaptureData, pods: &BTreeSet<IpAddr>, clocks: Clocks) -> CaptureData {
    let netns: BTreeSet<_> = data.sockets.iter().filter(|s| pods.contains(&s.local.ip())).map(|s| s.netns).collect();
    let at = |at: MonotonicNs| MonotonicNs(at.0.checked_add_signed(clocks.monotonic).expect("after boot"));
    let sample = |s: &ClockSample| ClockSample { monotonic: at(s.monotonic), wall: WallTime(s.wall.0 + clocks.wall) };
    let all =
        |list: Instants| Instants::from(list.iter().map(|i| SeqInstant { at: at(i.at), ..*i }).collect::<Vec<_>>());
    let sockets: Vec<Socket> = data.sockets.into_iter().filter(|s| netns.contains(&s.netns)).collect();
    let own: BTreeSet<_> = sockets.iter().map(|s| s.cookie).collect();
    let proxies: Vec<_> = data.proxies.into_iter().filter(|p| p.address.is_some_and(|a| pods.contains(&a))).collect();
    let mut meta = data.meta;
    meta.start = sample(&meta.start);
    meta.end = meta.end.as_ref().map(sample);
    meta.clock = ClockAnchor::new(meta.clock.samples().iter().map(sample).collect());
    meta.watched_netns.retain(|w| netns.contains(&w.netns));
    let messages = data.messages.into_iter().filter(|m| own.contains(&m.socket)).map(|m| Message {
        sends: all(m.sends),
        readies: all(m.readies),
        recvs: all(m.recvs),
        held: all(m.held),
        retransmits: all(m.retransmits),
        ..m
    });
    let streams = data.http2_streams.into_iter().filter(|s| own.contains(&s.socket));
    let streams = streams.map(|s| Http2Stream {
        first: SeqInstant { at: at(s.first.at), ..s.first },
        last: SeqInstant { at: at(s.last.at), ..s.last },
        ..s
    });
    let metrics = data.metrics.into_iter().filter(|m| own.contains(&m.socket));
    let metrics = metrics.map(|m| SocketMetrics { window_start: SocketMetrics::window_of(at(m.window_start)), ..m });
    let logs = data.access_logs.into_iter().filter(|l| proxies.iter().any(|p| p.node == l.node));
    let logs = logs.map(|l| HopSide { start_time: WallTime(l.start_time.0 + clocks.wall), ..l });
    CaptureData {
        meta,
        messages: messages.collect(),
        http2_streams: streams.collect(),
        metrics: metrics.collect(),
        access_logs: logs.collect(),
        processes: data.processes.into_iter().filter(|p| netns.contains(&p.netns)).collect(),
        sockets: sockets
            .into_iter()
            .map(|s| Socket {
                connect_start: s.connect_start.map(at),
                established: s.established.map(at),
                closed: s.closed.map(at),
                first_seen: at(s.first_seen),
                last_seen: at(s.last_seen),
                ..s
            })
            .collect(),
        proxies,
        ..data
    }
}
