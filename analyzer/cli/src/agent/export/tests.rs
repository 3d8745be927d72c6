//! What is served, read again.

use super::*;
use crate::agent::window::tests::{fixture, window, write_segments};
use crate::record::clock;
use meshdiff_capture::{Capture, CaptureData, Keep, KubernetesInfo};
use meshdiff_model::{HopSide, Peer, PodRecord, Proxy, Side, SocketCookie, Tenure, WallTime};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

const HOUR: Duration = Duration::from_secs(3600);

fn unpacked(segments: &[Arc<Segment>], chosen: Option<&Chosen>) -> (TempDir, CaptureData) {
    let meta = merged(segments).expect("segments");
    let mut bytes = Vec::new();
    write_tar(segments, meta, chosen, &mut bytes).expect("written");
    assert!(bytes.ends_with(&[0; 1024]), "a tar ends with two empty blocks");
    let dir = TempDir::new().expect("a folder");
    tar::Archive::new(&bytes[..]).unpack(dir.path()).expect("a tar");
    let data = Capture::open(dir.path()).and_then(|c| c.read()).expect("a capture");
    (dir, data)
}

fn of(data: &CaptureData, dir: &Path) -> Vec<Arc<Segment>> {
    let window = window(dir, HOUR, u64::MAX);
    write_segments(&window, data, 3);
    window.since(None, clock::sample())
}

#[test]
fn segments_become_one_capture_again() {
    let original = fixture();
    let dir = TempDir::new().expect("a folder");
    let segments = of(&original, dir.path());
    assert_eq!(segments.len(), 3);
    let (_dir, data) = unpacked(&segments, None);
    assert!(data.warnings().is_empty(), "{:?}", data.warnings());
    assert_eq!(data.messages, original.messages);
    // Within a part they are in order of their start.
    let sorted = |logs: &[HopSide]| {
        let mut texts: Vec<String> = logs.iter().map(|l| format!("{l:?}")).collect();
        texts.sort_unstable();
        texts
    };
    assert_eq!(sorted(&data.access_logs), sorted(&original.access_logs));
    assert_eq!(data.sockets, original.sockets);
    assert_eq!(data.metrics, original.metrics);
    assert_eq!(data.proxies, original.proxies);
    assert_eq!(data.meta.probes.stats.events, 30, "the counts of all segments");
    assert_eq!(data.meta.start, segments[0].start());
    assert_eq!(data.meta.end, Some(segments[2].end));
    assert!(!data.meta.settings.contains_key(REACH));
}

#[test]
fn what_is_missing_between_segments_is_said() {
    let dir = TempDir::new().expect("a folder");
    let segments = of(&fixture(), dir.path());
    assert!(merged(&segments).expect("segments").warnings.is_empty());
    // The middle one is gone, and there is nothing in its place for more than a second.
    let mut late = Segment::open(segments[2].dir().to_owned()).expect("a segment");
    late.meta.start.monotonic.0 += 5_000_000_000;
    late.end.monotonic.0 += 7_000_000_000;
    let warnings = merged(&[Arc::clone(&segments[0]), Arc::new(late)]).expect("segments").warnings;
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("nothing was recorded for 5."), "{warnings:?}");
    assert!(merged(&[]).is_none());
}

/// The recording, with the pods of some workloads in another namespace than the rest.
fn split(elsewhere: &[&str]) -> CaptureData {
    let mut data = fixture();
    let away = |proxy: &Proxy| elsewhere.contains(&proxy.workload.as_deref().unwrap_or_default());
    let moved: BTreeSet<_> = data.proxies.iter().filter(|p| away(p)).map(|p| p.node.clone()).collect();
    assert!(!moved.is_empty());
    for proxy in data.proxies.iter_mut().filter(|p| moved.contains(&p.node)) {
        proxy.namespace = Some("elsewhere".into());
    }
    let addresses: BTreeSet<_> = data.proxies.iter().filter(|p| away(p)).filter_map(|p| p.address).collect();
    let peer = |namespace: &str| Some(Arc::new(Peer { namespace: Some(namespace.into()), ..Peer::default() }));
    for log in &mut data.access_logs {
        let other = match log.side {
            Some(Side::Client) => log.upstream_remote_address.map(|a| a.ip()),
            _ => log.downstream_direct_remote_address.map(|a| a.ip()),
        };
        let namespace = if other.is_some_and(|ip| addresses.contains(&ip)) { "elsewhere" } else { "default" };
        match log.side {
            Some(Side::Client) => log.details.upstream_peer = peer(namespace),
            _ => log.details.downstream_peer = peer(namespace),
        }
    }
    data
}

#[test]
fn pods_that_have_nothing_to_do_with_a_namespace_are_left_out() {
    // Only reviews calls ratings: of what asks for the namespace of ratings, productpage and details are nobody.
    let original = split(&["ratings-v1"]);
    let dir = TempDir::new().expect("a folder");
    let segments = of(&original, dir.path());
    let chosen = Chosen::of(&segments, &["elsewhere".to_owned()]).expect("read").expect("something is left out");
    let (_dir, data) = unpacked(&segments, Some(&chosen));
    assert!(data.warnings().is_empty(), "{:?}", data.warnings());
    let workload = |log: &HopSide| {
        let proxy = original.proxies.iter().find(|p| p.node == log.node).expect("a proxy");
        proxy.workload.clone().expect("a name")
    };
    let left: BTreeSet<String> = data.access_logs.iter().map(workload).collect();
    assert_eq!(left.iter().map(String::as_str).collect::<Vec<_>>(), ["ratings-v1", "reviews-v2", "reviews-v3"]);
    let wanted = original.access_logs.iter().filter(|l| left.contains(&workload(l))).count();
    assert_eq!(data.access_logs.len(), wanted, "of those that stay everything does");
    let kept: BTreeSet<SocketCookie> = data.sockets.iter().map(|s| s.cookie).collect();
    assert!(!kept.is_empty() && kept.len() < original.sockets.len());
    assert!(kept.iter().all(|c| chosen.socket(*c)));
    let of_kept = original.messages.iter().filter(|m| chosen.socket(m.socket)).count();
    assert!(data.messages.len() == of_kept && of_kept < original.messages.len());
}

#[test]
fn what_kubernetes_said_is_put_together_and_left_out_with_its_pods() {
    let original = split(&["ratings-v1"]);
    let dir = TempDir::new().expect("a folder");
    let mut segments = of(&original, dir.path());
    let address = |workload: &str| {
        let is = |p: &&Proxy| p.workload.as_deref() == Some(workload);
        original.proxies.iter().find(is).and_then(|p| p.address).expect("an address")
    };
    let pod = |uid: &str, ip: IpAddr, until: Option<i64>| PodRecord {
        uid: uid.into(),
        addresses: vec![ip],
        tenure: Tenure { until: until.map(WallTime), ..Tenure::default() },
        ..PodRecord::default()
    };
    let (ratings, details) = (address("ratings-v1"), address("details-v1"));
    let nobody: IpAddr = "192.0.2.1".parse().expect("an address");
    let told = [
        vec![pod("ratings", ratings, None), pod("details", details, None)],
        vec![pod("ratings", ratings, Some(7)), pod("nobody", nobody, None)],
    ];
    for (segment, pods) in segments.iter_mut().zip(told) {
        let mut with = Segment::open(segment.dir().to_owned()).expect("a segment");
        with.meta.kubernetes = Some(KubernetesInfo { pods, ..KubernetesInfo::default() });
        *segment = Arc::new(with);
    }
    let uids = |data: &CaptureData| -> Vec<(String, Option<WallTime>)> {
        let pods = data.meta.kubernetes.iter().flat_map(|k| &k.pods);
        pods.map(|p| (p.uid.clone(), p.tenure.until)).collect()
    };
    let (_dir, whole) = unpacked(&segments, None);
    let row = |uid: &str, until: Option<i64>| (uid.to_owned(), until.map(WallTime));
    assert_eq!(uids(&whole), [row("details", None), row("nobody", None), row("ratings", Some(7))]);
    let chosen = Chosen::of(&segments, &["elsewhere".to_owned()]).expect("read").expect("something is left out");
    let (_dir, part) = unpacked(&segments, Some(&chosen));
    assert_eq!(uids(&part), [row("nobody", None), row("ratings", Some(7))]);
}

#[test]
fn nothing_is_decoded_where_nothing_can_be_left_out() {
    let dir = TempDir::new().expect("a folder");
    let segments = of(&split(&["ratings-v1"]), dir.path());
    assert!(Chosen::of(&segments, &[]).expect("read").is_none());
    assert!(Chosen::of(&segments, &["default".to_owned()]).expect("read").is_none(), "ratings talks with default");
    // A pod of which it is not known with whom it talked stays.
    let mut unknown = fixture();
    unknown.access_logs.iter_mut().for_each(|l| (l.upstream_cluster, l.details) = (None, Default::default()));
    let dir = TempDir::new().expect("a folder");
    assert!(Chosen::of(&of(&unknown, dir.path()), &["other".to_owned()]).expect("read").is_none());
}

#[test]
fn who_asked_may_go_before_the_end() {
    let (to, from) = tokio::sync::mpsc::channel(1);
    drop(from);
    let dir = TempDir::new().expect("a folder");
    let segments = of(&fixture(), dir.path());
    let meta = merged(&segments).expect("segments");
    let error = write_tar(&segments, meta, None, ToChannel::new(to)).expect_err("nobody takes it");
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}
