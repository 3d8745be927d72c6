//! One world, recorded by one node and by three whose clocks have nothing to do with each other: what comes out is the same.

use super::check::{Nobody, identity};
use super::world::{Config, World, record};
use meshdiff_graph::nodes::{Merged, NodeRecording, merge};
use meshdiff_graph::{Hop, HopInput, MeshGraph};
use meshdiff_model::{
    ClockAnchor, ClockSample, Crossing, DurationNs, HopSide, Instants, JoinOutcome, Message, MonotonicNs, NetnsId,
    SeqInstant, Side, Socket, SocketCookie, WallTime,
};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use std::collections::HashMap;

/// What is wrong with a node's clocks.
#[derive(Clone, Copy, Debug)]
struct Wrong {
    /// The monotonic clock, against the world's.
    monotonic: i64,
    /// The wall clock, against the world's.
    wall: i64,
    /// Millionths by which both run fast.
    ppm: i64,
}

impl Wrong {
    fn instant(self, at: MonotonicNs) -> MonotonicNs {
        let drift = i128::from(at.0) * i128::from(self.ppm) / 1_000_000;
        let at = i128::from(at.0) + i128::from(self.monotonic) + drift;
        MonotonicNs(u64::try_from(at).expect("after boot"))
    }

    fn wall(self, at: WallTime, clock: &ClockAnchor) -> WallTime {
        let drift = clock.to_monotonic(at).map_or(0, |at| at.0 as i64 / 1_000_000 * self.ppm);
        let at = at.0 + self.wall + drift;
        WallTime(at - at.rem_euclid(1_000))
    }
}

fn node_of(netns: NetnsId) -> usize {
    netns.0 as usize - 1
}

/// What three nodes would have recorded of a world: the client's, and one for each server.
fn split(world: &World, wrong: [Wrong; 3]) -> Vec<NodeRecording> {
    let home: HashMap<SocketCookie, usize> = world.sockets.iter().map(|s| (s.cookie, node_of(s.netns))).collect();
    let mut nodes: Vec<NodeRecording> = wrong
        .iter()
        .enumerate()
        .map(|(i, w)| {
            let sample = |s: &ClockSample| {
                let drift = i128::from(s.monotonic.0) * i128::from(w.ppm) / 1_000_000;
                let wall = s.wall.0 + w.wall + i64::try_from(drift).expect("a drift");
                ClockSample { monotonic: w.instant(s.monotonic), wall: WallTime(wall) }
            };
            NodeRecording {
                name: format!("node-{i}"),
                clock: ClockAnchor::new(world.clock.samples().iter().map(sample).collect()),
                window: (w.instant(world.window.0), w.instant(world.window.1)),
                ..NodeRecording::default()
            }
        })
        .collect();
    // Every node counts from 1 and has the same first namespace.
    let own = |cookie: SocketCookie| SocketCookie(cookie.0);
    for socket in &world.sockets {
        let node = home[&socket.cookie];
        let w = wrong[node];
        let maybe = |at: Option<MonotonicNs>| at.map(|at| w.instant(at));
        nodes[node].sockets.push(Socket {
            cookie: own(socket.cookie),
            netns: NetnsId(1),
            connect_start: maybe(socket.connect_start),
            established: maybe(socket.established),
            closed: maybe(socket.closed),
            first_seen: w.instant(socket.first_seen),
            last_seen: w.instant(socket.last_seen),
            ..socket.clone()
        });
    }
    for message in &world.messages {
        let node = home[&message.socket];
        let all = |list: &[SeqInstant]| {
            list.iter().map(|i| SeqInstant { at: wrong[node].instant(i.at), ..*i }).collect::<Instants>()
        };
        nodes[node].messages.push(Message {
            sends: all(&message.sends),
            readies: all(&message.readies),
            recvs: all(&message.recvs),
            held: all(&message.held),
            retransmits: all(&message.retransmits),
            ..message.clone()
        });
    }
    for log in &world.logs {
        let node = match log.side {
            Some(Side::Client) => 0,
            _ => {
                let at = log.downstream_local_address.expect("where it was asked").ip();
                let server = world.sockets.iter().find(|s| s.local.ip() == at && s.netns.0 > 1);
                node_of(server.expect("its socket").netns)
            }
        };
        let start_time = wrong[node].wall(log.start_time, &world.clock);
        let timings = log.timings.map(|span| DurationNs(span.0 + span.0 * wrong[node].ppm / 1_000_000));
        nodes[node].access_logs.push(HopSide { start_time, timings, ..log.clone() });
    }
    nodes
}

fn join(all: &NodeRecording) -> MeshGraph {
    let input = HopInput {
        sockets: &all.sockets,
        messages: &all.messages,
        http2: &all.http2_streams,
        access_logs: &all.access_logs,
        clock: &all.clock,
        window: all.window,
    };
    MeshGraph::build(input, &[], &Nobody)
}

/// What has to be the same of a request, whoever recorded it: halves, sockets, and spans on one node.
#[derive(Debug, PartialEq)]
struct Told {
    halves: (JoinOutcome<()>, JoinOutcome<()>),
    sockets: [Option<u64>; 6],
    client: Vec<Option<DurationNs>>,
    server: Vec<Option<DurationNs>>,
}

fn told(hop: &Hop) -> Told {
    let hop = &hop.joined;
    let number = |c: SocketCookie| c.0 & ((1 << 48) - 1);
    let since = |from: Option<MonotonicNs>, list: &[Option<MonotonicNs>]| -> Vec<Option<DurationNs>> {
        list.iter().map(|at| at.zip(from).map(|(at, from)| at - from)).collect()
    };
    let sender = |c: &Crossing| [c.send, c.last_send];
    let receiver = |c: &Crossing| [c.ready, c.recv, c.last_ready, c.last_recv];
    let both = |c: &Crossing| [sender(c).to_vec(), receiver(c).to_vec()].concat();
    let [near, network, far] = [0, 1, 2].map(|i| (&hop.request[i], &hop.response[i]));
    let client = [both(near.0), both(near.1), sender(network.0).to_vec(), receiver(network.1).to_vec()].concat();
    let server = [both(far.0), both(far.1), receiver(network.0).to_vec(), sender(network.1).to_vec()].concat();
    let first = |list: &[Option<MonotonicNs>]| list.iter().flatten().min().copied();
    Told {
        halves: (hop.client_half, hop.server_half),
        sockets: hop.sockets.map(|s| s.map(number)),
        client: since(first(&client), &client),
        server: since(first(&server), &server),
    }
}

/// By request and whether the client's log or socket is in it.
fn by_request(mesh: &MeshGraph) -> HashMap<(usize, bool), Told> {
    let named = |hop: &Hop| {
        let client = hop.joined.client_log.is_some();
        identity(&hop.joined, &HashMap::new()).map(|n| ((n, client), told(hop)))
    };
    mesh.hops.iter().filter_map(named).collect()
}

fn wrong() -> impl Strategy<Value = Wrong> {
    let wall = prop_oneof![Just(0i64), -5_000_000i64..5_000_000, Just(300_000_000_000), Just(-300_000_000_000)];
    (0i64..1_000_000_000_000_000, wall).prop_map(|(monotonic, wall)| Wrong { monotonic, wall, ppm: 0 })
}

fn config() -> impl Strategy<Value = Config> {
    (any::<u64>(), 1usize..8, 20usize..120, 1usize..5, any::<bool>(), 0u32..2, prop_oneof![Just(0u32), Just(200u32)])
        .prop_map(|(seed, clients, requests, pool, tls, bodies, retries)| Config {
            seed,
            clients,
            requests,
            pool,
            tls,
            loss: 0,
            log_loss: 0,
            ports: 400,
            shared_ids: false,
            retries,
            bodies: bodies * 2_000,
            window: (0, 100),
        })
}

/// What one node that has all pods would have recorded.
fn whole(world: &World) -> NodeRecording {
    NodeRecording {
        sockets: world.sockets.clone(),
        messages: world.messages.clone(),
        access_logs: world.logs.clone(),
        clock: world.clock.clone(),
        window: world.window,
        ..NodeRecording::default()
    }
}

/// What both tell of every request is the same, and neither has more.
fn same(world: &World, merged: &Merged) -> Result<(), TestCaseError> {
    let (one, three) = (by_request(&join(&whole(world))), by_request(&join(&merged.all)));
    prop_assert_eq!(one.len(), three.len());
    for (key, told) in &one {
        prop_assert_eq!(Some(told), three.get(key), "request {:?} {:?}", key, &merged.nodes);
    }
    Ok(())
}

/// As far as clocks that run at other rates may tell: spans by their rates, everything else alike.
fn nearly(a: &Told, b: &Told) -> bool {
    let close = |a: &[Option<DurationNs>], b: &[Option<DurationNs>]| {
        a.iter().zip(b).all(|(a, b)| match (a, b) {
            (Some(a), Some(b)) => (a.0 - b.0).abs() <= 10 + a.0 / 500,
            (None, None) => true,
            _ => false,
        })
    };
    a.halves == b.halves && a.sockets == b.sockets && close(&a.client, &b.client) && close(&a.server, &b.server)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, rng_seed: RngSeed::Fixed(20_261_123), ..ProptestConfig::default() })]
    #[test]
    fn three_nodes_tell_the_same_as_one(config in config(), wrong in [wrong(), wrong(), wrong()]) {
        let world = record(&config);
        let merged = merge(split(&world, wrong)).expect("three nodes");
        let reference = merged.nodes.iter().position(|n| n.reference).expect("a reference");
        for (i, node) in merged.nodes.iter().enumerate() {
            prop_assert_eq!(node.contradiction, DurationNs::ZERO, "{:?}", &merged.nodes);
            // A round trip in this world takes a millisecond at most.
            if let Some(ahead) = node.ahead {
                let truth = wrong[i].wall - wrong[reference].wall;
                prop_assert!((ahead.0 - truth).abs() < 1_000_000, "{} {ahead:?} for {truth}", node.name);
            }
        }
        // A server that nobody asked has no messages that tell of its clock, and nothing to join either.
        same(&world, &merged)?;
    }

    #[test]
    fn clocks_of_different_rates_join_as_well(config in config(), wrong in [wrong(), wrong(), wrong()], ppm in [-400i64..400, -400..400, -400..400]) {
        let world = record(&config);
        // Rates count from boot, which is long ago on some.
        let wrong = std::array::from_fn(|i| Wrong { ppm: ppm[i], ..wrong[i] });
        let merged = merge(split(&world, wrong)).expect("three nodes");
        let (one, three) = (by_request(&join(&whole(&world))), by_request(&join(&merged.all)));
        for (key, told) in &one {
            let other = three.get(key);
            prop_assert!(other.is_some_and(|o| nearly(told, o)), "{key:?} {told:#?}\n{other:#?}\n{:?}", merged.nodes);
        }
        prop_assert_eq!(one.len(), three.len());
    }
}
