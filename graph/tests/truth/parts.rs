//! A recording joined part by part tells the same as one that is joined as a whole.

use super::check::{Nobody, join};
use super::world::{Config, World};
use meshdiff_graph::{Hop, InParts, MeshGraph, Outlines, Patience, Whole};
use meshdiff_model::{DurationNs, HopProtocol, Message, MonotonicNs};
use proptest::prelude::*;

/// What is told of each request and of the one that caused it, and how many parts had some.
fn in_parts(world: &World, parts: usize, patience: Patience) -> (Vec<String>, MeshGraph, usize) {
    let mut outlines = Outlines::default();
    for m in &world.messages {
        outlines.add(m.socket, m.direction, m.seq, &m.content);
    }
    let whole = Whole {
        sockets: world.sockets.clone(),
        outlines,
        followed: world.streams.iter().filter(|s| s.stream == 0).cloned().collect(),
        clock: world.clock.clone(),
        window: world.window,
        patience,
    };
    let mut joins = InParts::new(whole).expect("nothing is encrypted by applications");
    let start = |i: usize| world.clock.to_monotonic(world.logs[i].start_time);
    for (i, log) in world.logs.iter().enumerate() {
        if let Some(peer) = log.downstream_direct_remote_address
            && log.access_log_type.is_terminal()
            && log.protocol == HopProtocol::Http2
        {
            joins.is_multiplexed(peer.0, start(i));
        }
    }
    // A part is there as a whole when what began in it first is to be there.
    let size = world.messages.len().div_ceil(parts).max(1);
    let chunks: Vec<&[Message]> = world.messages.chunks(size).collect();
    let mut streams: Vec<_> = world.streams.iter().collect();
    streams.sort_by_key(|s| s.first.at);
    let mut streams = streams.into_iter().peekable();
    let mut logs: Vec<usize> = (0..world.logs.len()).collect();
    logs.sort_by_key(|&i| start(i));
    let mut logs = logs.into_iter().peekable();
    let (mut told, mut busy) = (Vec::new(), 0);
    for (i, chunk) in chunks.iter().enumerate() {
        chunk.iter().for_each(|m| joins.push_message(m));
        let until = chunks[i + 1..].iter().flat_map(|c| c.iter()).filter_map(Message::first_instant).min();
        let there = until.unwrap_or(MonotonicNs(u64::MAX));
        while let Some(row) = streams.next_if(|s| s.first.at <= there) {
            joins.push_stream(row);
        }
        while let Some(i) = logs.next_if(|&i| start(i).is_none_or(|at| at <= there)) {
            joins.push_log(i as u64, world.logs[i].clone());
        }
        if i + 1 < chunks.len() {
            let mesh = joins.step(Some(until.expect("messages have instants")));
            busy += usize::from(!mesh.hops.is_empty());
            told.extend(described(&mesh.hops));
        }
    }
    told.extend(described(&joins.step(None).hops));
    (told, joins.finish(&[], &Nobody), busy)
}

fn described(hops: &[Hop]) -> Vec<String> {
    hops.iter().map(|h| format!("{:?}\ncaused by {:?}", h.joined, h.caller.map(|c| &hops[c].joined))).collect()
}

/// Panics where the two differ. Returns how many parts told something before all was there.
fn compare(world: &World, parts: usize, patience: Patience) -> usize {
    let whole = join(world);
    let (mut told, rest, busy) = in_parts(world, parts, patience);
    let mut expected = described(&whole.hops);
    expected.sort_unstable();
    told.sort_unstable();
    // Each of both that the other has not.
    let only = |these: &[String], those: &[String]| -> Vec<String> {
        these.iter().filter(|t| those.binary_search(t).is_err()).take(2).cloned().collect()
    };
    let (missing, wrong) = (only(&expected, &told), only(&told, &expected));
    assert!(missing.is_empty() && wrong.is_empty(), "in {parts} parts: missing {missing:#?}, wrong {wrong:#?}");
    assert_eq!(expected.len(), told.len(), "in {parts} parts");
    assert_eq!(whole.client_messages_seen, rest.client_messages_seen);
    assert_eq!(whole.tcp_connections_logged, rest.tcp_connections_logged);
    assert_eq!(whole.unlogged_by_servers, rest.unlogged_by_servers);
    assert_eq!(format!("{:?}", whole.topology), format!("{:?}", rest.topology));
    busy
}

/// What waits long enough for this world, in which everything happens within milliseconds.
const HASTE: Patience = Patience { settles: DurationNs::from_millis(20), quiet: DurationNs::from_millis(400) };

/// Worlds in which most is told before the end. Attempts that no router logs are told by all else that a proxy did, which parts do not hold.
fn longer() -> impl Strategy<Value = Config> {
    (super::config(), 200usize..700).prop_map(|(config, requests)| {
        let retries = if config.logs_attempts() { config.retries } else { 0 };
        Config { requests, retries, ..config }
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 250,
        rng_seed: proptest::test_runner::RngSeed::Fixed(20_261_123),
        ..ProptestConfig::default()
    })]
    #[test]
    fn parts_tell_the_same_as_the_whole(config in longer(), parts in 2usize..60) {
        compare(&super::world::record(&config), parts, HASTE);
    }

    #[test]
    fn a_short_recording_is_told_at_its_end(config in super::config(), parts in 2usize..10) {
        compare(&super::world::record(&config), parts, Patience::default());
    }
}

/// Long enough that most of it is told before the end, and dropped.
#[test]
fn most_is_told_before_all_is_there() {
    let config = Config {
        seed: 7,
        clients: 6,
        requests: 10_000,
        pool: 4,
        tls: true,
        loss: 0,
        log_loss: 0,
        ports: 400,
        shared_ids: false,
        retries: 300,
        bodies: 300,
        window: (0, 100),
    };
    let busy = compare(&super::world::record(&config), 100, HASTE);
    assert!(busy > 50, "only {busy} parts told anything");
}
