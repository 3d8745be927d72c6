//! What the probes say of the conversations, without what differs from run to run: times, cookies, ports, and how far into
//! their space the sequence numbers begin.

use crate::conversation::{Conversation, Side, hold_all};
use crate::network::{current_netns, enter_new_netns};
use meshdiff_model::{
    Content, Direction, LocalAddr, Message, NetnsId, PeerAddr, ProbeTier, SeqNo, Socket, SocketCookie, TcpState,
};
use meshdiff_probes::{
    Assembler, Collected, Identity, Limits, ProbeConfig, ProbeError, Probes, RawEvent, RawKind, TIERS, monotonic_now,
    recognise,
};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(30);

/// What was recorded, and by what.
pub struct Told {
    /// The kind of probes.
    pub tier: ProbeTier,
    /// Better kinds that the kernel refused: one line each.
    pub refused: Vec<String>,
    /// What is not measured, and why: one line each.
    pub unmeasured: Vec<String>,
    /// The conversations, in lines. The same on every kernel.
    pub log: String,
}

/// Holds the conversations in a network namespace of their own and says what the probes of the best tier that works saw of
/// them; `tier` restricts them to one.
///
/// # Errors
/// If the probes do not load.
///
/// # Panics
/// If a conversation fails, or an event is missing after half a minute.
pub fn tell(tier: Option<ProbeTier>) -> Result<Told, ProbeError> {
    let tiers = tier.map_or_else(|| TIERS.to_vec(), |tier| vec![tier]);
    let config = ProbeConfig { ring_bytes: 4 << 20, measure_cost: false, tiers, ..ProbeConfig::default() };
    let mut probes = Probes::load(&config)?;
    enter_new_netns();
    let netns = current_netns();
    probes.filter().watch(netns)?;
    let conversations = hold_all();
    let events = collect(&mut probes, &conversations);
    check_cookies(probes.tier(), &conversations, &events);
    let counters = probes.counters()?;
    assert_eq!((counters.lost, counters.untracked, counters.undecodable), (0, 0, 0), "{counters:?}");
    assert_eq!(counters.emitted, counters.consumed, "{counters:?}");
    let refused = probes.refused().iter().map(|(tier, error)| format!("{}: {error}", tier.as_str())).collect();
    let unmeasured =
        probes.unmeasured().iter().map(|(metric, error)| format!("{}: {error}", metric.as_str())).collect();
    Ok(Told { tier: probes.tier(), refused, unmeasured, log: normalise(&conversations, &events, netns) })
}

#[derive(Clone, Debug)]
enum Said {
    Send {
        seq: SeqNo,
        len: u32,
        content: Content,
    },
    Ready {
        rcv_nxt: SeqNo,
        copied: SeqNo,
        fin: bool,
    },
    Recv {
        copied: SeqNo,
        len: u32,
        fin: bool,
    },
    State {
        old: TcpState,
        new: TcpState,
        write_seq: SeqNo,
    },
    Reset {
        received: bool,
    },
    /// Bytes held back, sent again, dropped: a matter of speed.
    Noise,
}

#[derive(Default)]
struct Events {
    /// In the order of the ring.
    list: Vec<(SocketCookie, u32, Said)>,
    messages: Vec<Message>,
    sockets: BTreeMap<SocketCookie, Socket>,
    /// Which socket has these addresses.
    named: BTreeMap<(LocalAddr, PeerAddr), SocketCookie>,
}

impl Events {
    /// The number by which the probes know a socket.
    fn cookie(&self, side: &Side) -> SocketCookie {
        let cookie = self.named.get(&addresses(side));
        *cookie.unwrap_or_else(|| panic!("{side:?} was not announced; these were: {:?}", self.named))
    }
}

fn addresses(side: &Side) -> (LocalAddr, PeerAddr) {
    (LocalAddr::normalised(side.local), PeerAddr::normalised(side.remote))
}

/// Kprobes see a socket before the application asks for its cookie, and know it by a number of their own from then on.
fn check_cookies(tier: ProbeTier, conversations: &[Conversation], events: &Events) {
    const OWN: u64 = 1 << 63;
    for side in conversations.iter().flat_map(|c| [&c.client, &c.server]) {
        let known_by = events.cookie(side);
        let right = if tier == ProbeTier::Kprobe { known_by.0 & OWN != 0 } else { known_by == side.cookie };
        assert!(right, "{side:?} is known by {known_by:?}");
    }
}

/// Drains until every socket is closed.
fn collect(probes: &mut Probes, conversations: &[Conversation]) -> Events {
    let mut list = Vec::new();
    let mut named = BTreeMap::new();
    let (mut assembler, mut sink) = (Assembler::new(Limits::default()), Collected::default());
    let end = Instant::now() + DEADLINE;
    loop {
        probes.drain(|event| {
            if let RawKind::Announce(Identity { local, remote, .. }) = event.kind {
                named.insert((local, remote), event.socket);
            }
            if let Some(said) = said(event) {
                list.push((event.socket, event.counter, said));
            }
            assembler.push(event, &mut sink);
        });
        assembler.tick(monotonic_now(), &mut sink);
        let closed = |side: &Side| {
            let cookie = named.get(&addresses(side));
            let close = |said: &Said| matches!(said, Said::State { new: TcpState::Close, .. });
            cookie.is_some_and(|cookie| list.iter().any(|(c, _, said)| c == cookie && close(said)))
        };
        if conversations.iter().all(|c| closed(&c.client) && closed(&c.server)) {
            break;
        }
        assert!(Instant::now() < end, "not every socket was seen to close within {DEADLINE:?}: {list:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    assembler.finish(&mut sink);
    let sockets = sink.sockets.into_iter().map(|s| (s.cookie, s)).collect();
    Events { list, messages: sink.messages, sockets, named }
}

fn said(event: &RawEvent<'_>) -> Option<Said> {
    Some(match event.kind {
        RawKind::Announce(_) => return None,
        RawKind::Send { seq, len, prefix } => {
            let content = recognise(prefix).map_or(Content::Unknown, |r| r.content);
            Said::Send { seq, len, content }
        }
        RawKind::SendFrames { seq, len, .. } | RawKind::SendPlaintext { seq, len, .. } => {
            Said::Send { seq, len, content: Content::Unknown }
        }
        RawKind::Ready { rcv_nxt, copied_seq, fin } => Said::Ready { rcv_nxt, copied: copied_seq, fin },
        RawKind::Recv { copied_seq, len, fin } => Said::Recv { copied: copied_seq, len, fin },
        RawKind::State { old, new, write_seq } => Said::State { old, new, write_seq },
        RawKind::Reset { received } => Said::Reset { received },
        RawKind::Held { .. } | RawKind::Retransmit { .. } | RawKind::Drop { .. } => Said::Noise,
    })
}

/// One conversation, with the numbers at which its two directions begin.
struct View<'a> {
    conversation: &'a Conversation,
    events: &'a Events,
    client_base: SeqNo,
    server_base: SeqNo,
    client: SocketCookie,
    server: SocketCookie,
}

fn normalise(conversations: &[Conversation], events: &Events, netns: NetnsId) -> String {
    let mut log = String::new();
    for conversation in conversations {
        let first = |cookie| {
            let established = events.list.iter().find_map(|(c, _, said)| match said {
                Said::State { new: TcpState::Established, write_seq, .. } if *c == cookie => Some(*write_seq),
                _ => None,
            });
            established.unwrap_or_else(|| panic!("{}: {cookie:?} was not seen to be established", conversation.name))
        };
        let (client, server) = (events.cookie(&conversation.client), events.cookie(&conversation.server));
        let (client_base, server_base) = (first(client), first(server));
        let view = View { conversation, events, client_base, server_base, client, server };
        writeln!(log, "== {}", conversation.name).expect("a String takes everything");
        for line in view.lines(netns) {
            writeln!(log, "{}", line.trim_end()).expect("a String takes everything");
        }
    }
    log
}

impl View<'_> {
    fn lines(&self, netns: NetnsId) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, cookie) in [("client", self.client), ("server", self.server)] {
            lines.push(self.identity(name, cookie, netns));
            lines.push(self.states(name, cookie));
            self.check_counters(cookie);
        }
        if self.conversation.bulk {
            lines.extend(self.extents());
        } else {
            lines.extend(self.events.list.iter().filter_map(|(cookie, _, said)| self.event(*cookie, said)));
        }
        lines.extend(self.messages());
        lines
    }

    fn identity(&self, name: &str, cookie: SocketCookie, netns: NetnsId) -> String {
        let socket = &self.events.sockets[&cookie];
        assert_eq!(socket.netns, netns, "{name}");
        let owned = socket.owner.is_some_and(|tgid| tgid.0 == std::process::id());
        let (local, remote) = (socket.local.0.ip(), socket.remote.0.ip());
        let srtt = socket.srtt.is_some();
        format!("{name} {local} -> {remote} owned by this process: {owned}, round-trip time known: {srtt}")
    }

    fn states(&self, name: &str, cookie: SocketCookie) -> String {
        let states: Vec<_> = self
            .events
            .list
            .iter()
            .filter_map(|(c, _, said)| match said {
                Said::State { old, new, .. } if *c == cookie => Some(format!("{old:?}->{new:?}")),
                _ => None,
            })
            .collect();
        format!("{name} states {}", states.join(" "))
    }

    /// The events of a socket are numbered without a gap.
    fn check_counters(&self, cookie: SocketCookie) {
        let counters: Vec<u32> =
            self.events.list.iter().filter(|(c, ..)| *c == cookie).map(|(_, counter, _)| *counter).collect();
        let mut sorted = counters.clone();
        sorted.sort_unstable();
        assert!(sorted.iter().copied().eq(0..counters.len() as u32), "{}: {counters:?}", self.conversation.name);
    }

    /// The name of a socket of this conversation, and the first numbers of what it sends and of what it receives.
    fn side(&self, cookie: SocketCookie) -> Option<(&'static str, SeqNo, SeqNo)> {
        if cookie == self.client {
            Some(("client", self.client_base, self.server_base))
        } else if cookie == self.server {
            Some(("server", self.server_base, self.client_base))
        } else {
            None
        }
    }

    fn event(&self, cookie: SocketCookie, said: &Said) -> Option<String> {
        let (name, out, inn) = self.side(cookie)?;
        let fin = |fin: &bool| if *fin { " fin" } else { "" };
        match said {
            Said::Send { seq, len, content } => {
                let start = after(out, *seq);
                Some(format!("{name} send {start}..{} {}", start + len, describe(content)))
            }
            Said::Ready { rcv_nxt, copied, fin: f } => {
                Some(format!("{name} ready ..{} read so far ..{}{}", after(inn, *rcv_nxt), after(inn, *copied), fin(f)))
            }
            Said::Recv { copied, len, fin: f } => {
                Some(format!("{name} recv {len} ..{}{}", after(inn, *copied), fin(f)))
            }
            Said::Reset { received } => Some(format!("{name} reset {}", if *received { "received" } else { "sent" })),
            Said::State { .. } | Said::Noise => None,
        }
    }

    /// Per socket and kind of event: from where to where, and that it never goes back.
    fn extents(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for cookie in [self.client, self.server] {
            let (name, out, inn) = self.side(cookie).expect("it is of this conversation");
            let mine = || self.events.list.iter().filter(move |(c, ..)| *c == cookie).map(|(.., said)| said);
            let sends: Vec<(u32, u32)> = mine()
                .filter_map(|s| match s {
                    Said::Send { seq, len, .. } => Some((after(out, *seq), after(out, *seq) + len)),
                    _ => None,
                })
                .collect();
            let readies: Vec<u32> = mine()
                .filter_map(|s| match s {
                    Said::Ready { rcv_nxt, .. } => Some(after(inn, *rcv_nxt)),
                    _ => None,
                })
                .collect();
            let recvs: Vec<(u32, u32)> = mine()
                .filter_map(|s| match s {
                    Said::Recv { copied, len, .. } => Some((after(inn, *copied), *len)),
                    _ => None,
                })
                .collect();
            // Every byte is in a send that begins no later than the one before it ended.
            let gapless = sends.windows(2).all(|w| w[1].0 > w[0].0 && w[1].0 <= w[0].1);
            let sent = sends.iter().map(|s| s.1).max().unwrap_or(0);
            lines.push(format!("{name} sent ..{sent} without a gap: {gapless}"));
            let rising = readies.windows(2).all(|w| w[0] < w[1]);
            lines.push(format!("{name} ready ..{} rising: {rising}", readies.last().unwrap_or(&0)));
            let read: u32 = recvs.iter().map(|r| r.1).sum();
            let rising = recvs.windows(2).all(|w| w[0].0 < w[1].0);
            lines.push(format!("{name} read {read} ..{} rising: {rising}", recvs.last().map_or(0, |r| r.0)));
        }
        lines
    }

    /// What assembly makes of it.
    fn messages(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for cookie in [self.client, self.server] {
            let (name, out, inn) = self.side(cookie).expect("it is of this conversation");
            for direction in [Direction::Egress, Direction::Ingress] {
                let (base, way) = if direction == Direction::Egress { (out, "out") } else { (inn, "in") };
                let of_it = self.events.messages.iter().filter(|m| m.socket == cookie && m.direction == direction);
                let mut cuts = Vec::new();
                let mut whole = 0;
                for message in of_it {
                    assert!(!message.gap_before, "{}: {message:?}", self.conversation.name);
                    let head = message.head_end.map_or(String::new(), |end| format!(" head ..{}", after(base, end)));
                    let (start, end) = (after(base, message.seq.start), after(base, message.seq.end));
                    if self.conversation.bulk && message.content == Content::Unknown {
                        // Cut by age, which is a matter of speed.
                        assert!(start <= end && whole <= start, "{}: {message:?}", self.conversation.name);
                        whole = end;
                        continue;
                    }
                    cuts.push(format!("[{start}..{end} {}{head}]", describe(&message.content)));
                }
                if self.conversation.bulk {
                    cuts.push(format!("others ..{whole}"));
                }
                lines.push(format!("{name} messages {way}: {}", cuts.join(" ")));
            }
        }
        lines
    }
}

fn after(base: SeqNo, seq: SeqNo) -> u32 {
    seq.0.wrapping_sub(base.0)
}

fn describe(content: &Content) -> String {
    match content {
        Content::Unknown => "-".to_owned(),
        Content::Http1Request { method, path } => format!("{method} {path}"),
        Content::Http1Response { status } => status.to_string(),
        other => format!("{other:?}"),
    }
}
