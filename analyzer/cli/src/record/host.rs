//! What the capture says of the machine and of the recorder.

use super::clock;
use super::options::Options;
use meshdiff_capture::{AlsStats, HostInfo, Meta, ToolInfo};
use meshdiff_discovery::Selection;
use meshdiff_probes::Reach;
use serde_json::{Map, Value, json};
use std::net::SocketAddr;

/// The meta of a recording that begins now.
pub(crate) fn meta(options: &Options, listen: SocketAddr) -> Meta {
    let start = clock::sample();
    Meta {
        tool: ToolInfo { name: "meshdiff".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() },
        start,
        clock: meshdiff_model::ClockAnchor::new(vec![start]),
        host: HostInfo {
            hostname: kernel_file("hostname"),
            kernel_release: kernel_file("osrelease"),
            architecture: std::env::consts::ARCH.to_owned(),
            boot_id: kernel_file("random/boot_id"),
            cpus: std::thread::available_parallelism().map_or(0, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
        },
        als: AlsStats { listen: Some(listen.to_string()), ..AlsStats::default() },
        congestion_control: read("/proc/sys/net/ipv4/tcp_congestion_control"),
        settings: settings(options),
        ..Meta::default()
    }
}

fn settings(options: &Options) -> Map<String, Value> {
    let watch = match &options.selection {
        _ if !options.probes => json!("none"),
        Selection::Mesh => json!("mesh"),
        Selection::All => json!("all"),
        Selection::Only(list) => json!(list.iter().map(ToString::to_string).collect::<Vec<_>>()),
    };
    let tls_uprobes = match options.follow_libraries {
        Some(Reach::Process) => "auto",
        Some(Reach::File) => "file",
        None => "off",
    };
    let mut map = Map::new();
    map.insert("durationSeconds".to_owned(), options.duration.map_or(Value::Null, |d| json!(d.as_secs_f64())));
    map.insert("probes".to_owned(), json!(options.probes));
    map.insert("watch".to_owned(), watch);
    map.insert("ringBytes".to_owned(), json!(options.ring_bytes));
    map.insert("raw".to_owned(), json!(options.raw));
    map.insert("redactPaths".to_owned(), json!(options.redact_paths));
    map.insert("tlsUprobes".to_owned(), json!(tls_uprobes));
    map
}

fn kernel_file(name: &str) -> String {
    read(&format!("/proc/sys/kernel/{name}")).unwrap_or_default()
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|s| s.trim().to_owned()).filter(|s| !s.is_empty())
}
