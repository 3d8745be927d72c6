use super::*;
use crate::samples;
use meshdiff_model::{Direction, Instants, SeqInstant, SeqNo};

const S: u64 = 1_000_000_000;
const WALL: i64 = 1_790_000_000_000_000_000;

fn socket(cookie: u64, local: &str, remote: &str, at: u64) -> Socket {
    let sample = samples::socket(cookie, 4_026_532_000, local, remote, (at, at + 10 * S));
    Socket { owner: Some(Tgid(77)), ..sample }
}

fn message(cookie: u64, direction: Direction, seq: u32, at: u64) -> Message {
    let instants = |wanted: Direction, seq: u32| -> Instants {
        (direction == wanted).then_some(SeqInstant { seq: SeqNo(seq), at: MonotonicNs(at) }).into_iter().collect()
    };
    Message {
        sends: instants(Direction::Egress, seq),
        readies: instants(Direction::Ingress, seq.wrapping_add(100)),
        ..samples::message(cookie, direction, seq, 100)
    }
}

/// A node of which the clocks began at `boot` (monotonic) and are `ahead` (wall).
fn node(name: &str, boot: u64, ahead: i64) -> NodeRecording {
    let at = |s: u64| MonotonicNs(boot + s * S);
    let sample = |s: u64| ClockSample { monotonic: at(s), wall: WallTime(WALL + (s * S) as i64 + ahead) };
    NodeRecording {
        name: name.to_owned(),
        clock: ClockAnchor::new(vec![sample(0), sample(10)]),
        window: (at(0), at(10)),
        namespaces: vec![NetnsId(4_026_532_000)],
        ..NodeRecording::default()
    }
}

/// Two nodes that exchange a request and a response of 100 µs each way, once a second, with sequence numbers that wrap.
fn pair(boots: [u64; 2], ahead: [i64; 2]) -> Vec<NodeRecording> {
    let mut a = node("a", boots[0], ahead[0]);
    let mut b = node("b", boots[1], ahead[1]);
    a.sockets.push(socket(1, "10.0.0.1:40000", "10.0.1.1:9080", boots[0]));
    b.sockets.push(socket(1, "10.0.1.1:15006", "10.0.0.1:40000", boots[1]));
    for i in 0..9u64 {
        let (t, seq) = (i * S + 1_000, u32::MAX.wrapping_sub(250).wrapping_add(100 * i as u32));
        a.messages.push(message(1, Direction::Egress, seq, boots[0] + t));
        b.messages.push(message(1, Direction::Ingress, seq, boots[1] + t + 100_000));
        b.messages.push(message(1, Direction::Egress, seq.wrapping_add(7_000), boots[1] + t + 300_000));
        a.messages.push(message(1, Direction::Ingress, seq.wrapping_add(7_000), boots[0] + t + 400_000));
    }
    vec![a, b]
}

#[test]
fn a_wall_clock_five_minutes_off_is_told_by_the_messages() {
    let merged = merge(pair([7 * S, 90_000 * S], [0, 300 * S as i64])).expect("two nodes");
    assert_eq!(merged.nodes.iter().filter(|n| n.reference).count(), 1);
    let [a, b] = &merged.nodes[..] else { panic!("{merged:?}") };
    let apart = b.ahead.expect("known") - a.ahead.expect("known");
    assert_eq!(apart, DurationNs(300 * S as i64), "both directions take the same time, so it is exact");
    assert_eq!((a.instants, a.contradiction), (18, DurationNs::ZERO));
    assert_eq!(a.window, b.window, "what happened at once is at once");
    let sent = merged.all.messages[0].sends[0].at;
    let ready = merged.all.messages.iter().find(|m| m.socket.node_number() == 1).expect("of b").readies[0].at;
    assert_eq!(ready - sent, DurationNs(100_000));
}

#[test]
fn numbers_of_nodes_do_not_meet() {
    let merged = merge(pair([S, S], [0, 0])).expect("two nodes");
    let [a, b] = &merged.all.sockets[..] else { panic!("two sockets") };
    assert_ne!(a.cookie, b.cookie);
    assert_ne!(a.netns, b.netns);
    assert_ne!(a.owner, b.owner);
    assert_eq!(merged.nodes[1].namespaces, [b.netns]);
    assert_eq!(merged.all.namespaces, [a.netns, b.netns]);
    let strange = NodeRecording {
        sockets: vec![socket(1 << SocketCookie::NODE_SHIFT, "10.0.0.1:1", "10.0.0.2:2", 0)],
        ..node("x", S, 0)
    };
    assert_eq!(merge(vec![strange]).expect_err("no cookie"), MergeError::StrangeCookie("x".to_owned()));
}

#[test]
fn nodes_that_do_not_talk_have_their_wall_clocks() {
    let merged = merge(vec![node("a", S, 0), node("b", 5 * S, 2_000)]).expect("two nodes");
    assert_eq!(merged.nodes[0].window.0, MonotonicNs(WALL as u64));
    assert_eq!(merged.nodes[1].window.0, MonotonicNs(WALL as u64 + 2_000));
    assert_eq!(merged.nodes[1].ahead, None);
    assert_eq!(merged.all.clock.to_wall(MonotonicNs(WALL as u64 + 5)), Some(WallTime(WALL + 5)));
}

#[test]
fn a_step_of_one_wall_clock_is_kept_in_mind() {
    let mut stepped = node("a", S, 0);
    let mut samples = stepped.clock.samples().to_vec();
    samples.push(ClockSample { monotonic: MonotonicNs(6 * S), wall: WallTime(WALL + 5 * S as i64 - 40_000_000) });
    stepped.clock = ClockAnchor::new(samples);
    let merged = merge(vec![stepped]).expect("one node");
    assert!(Steps::of(&merged.all.clock).spans().count() > 0);
    assert_eq!(Steps::of(&merge(vec![node("a", S, 0)]).expect("one node").all.clock).spans().count(), 0);
}
