//! Conversations over a link whose delay and losses are known, and what the probes say of them.

use crate::network::{FAR, Link};
use meshdiff_model::{Direction, MonotonicNs, NetnsId, ProbeTier, SeqNo, SocketCookie};
use meshdiff_probes::{
    Assembler, Collected, Identity, Limits, ProbeConfig, ProbeError, Probes, RawKind, monotonic_now,
};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

const PORT: u16 = 9080;
const DEADLINE: Duration = Duration::from_secs(30);
/// Bytes of every request and of every response.
const SIZE: usize = 100;

/// What is done to the near end's packets, by netem: the requests'. Name, netem's arguments, and how many exchanges.
pub const PHASES: [(&str, &str, usize); 3] =
    [("delay0", "delay 0ms", 20), ("delay20", "delay 20ms", 20), ("loss", "delay 2ms loss 25%", 40)];

/// One request and its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// From its send to being readable at the far end, ns.
    pub request: i64,
    /// The same of the response.
    pub response: i64,
    /// From before the request was written to after the response was read, by the client's clock, ns.
    pub round: i64,
}

/// What was seen in one of [`PHASES`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// In order.
    pub exchanges: Vec<Exchange>,
    /// Segments that the client's socket sent again, as the kernel counts them (`TCP_INFO`).
    pub resent: u32,
    /// The same as the probes count them.
    pub resent_seen: u32,
}

/// Holds the conversations under the probes of one tier.
///
/// # Errors
/// If the probes do not load.
///
/// # Panics
/// If the link cannot be made, or an event is missing after half a minute.
pub fn measure(tier: ProbeTier) -> Result<Vec<Phase>, ProbeError> {
    let config = ProbeConfig { ring_bytes: 4 << 20, measure_cost: false, tiers: vec![tier], ..ProbeConfig::default() };
    let mut probes = Probes::load(&config)?;
    let link = Link::new(answer);
    for netns in [link.near, link.far] {
        probes.filter().watch(netns)?;
    }
    link.resend_after(30);
    Ok(PHASES.iter().map(|phase| hold(&mut probes, &link, phase)).collect())
}

/// The far end: answers one connection after the other, as long as the machine runs.
fn answer() {
    let listener = TcpListener::bind((FAR, PORT)).expect("a listener");
    for connection in listener.incoming() {
        let mut socket = connection.expect("a connection");
        socket.set_nodelay(true).expect("nodelay");
        let mut request = [0; SIZE];
        while socket.read_exact(&mut request).is_ok() {
            socket.write_all(&request).expect("answered");
        }
    }
}

fn connect() -> TcpStream {
    let end = Instant::now() + DEADLINE;
    loop {
        // The far end may not listen yet.
        match TcpStream::connect((FAR, PORT)) {
            Ok(socket) => return socket,
            Err(error) => assert!(Instant::now() < end, "no connection over the link: {error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn hold(probes: &mut Probes, link: &Link, (name, netem, exchanges): &(&str, &str, usize)) -> Phase {
    link.impair("delay 0ms");
    let mut socket = connect();
    socket.set_nodelay(true).expect("nodelay");
    link.impair(netem);
    let mut rounds = Vec::new();
    let mut bytes = [7; SIZE];
    for _ in 0..*exchanges {
        let began = Instant::now();
        socket.write_all(&bytes).expect("written");
        socket.read_exact(&mut bytes).expect("read");
        rounds.push(i64::try_from(began.elapsed().as_nanos()).expect("less than 292 years"));
    }
    let resent = retransmits(&socket);
    drop(socket);
    let seen = Seen::collect(probes, link, *exchanges);
    let requests = seen.delays(link.near, link.far);
    let responses = seen.delays(link.far, link.near);
    assert_eq!((requests.len(), responses.len()), (*exchanges, *exchanges), "{name}: {seen:?}");
    let exchanges = requests.into_iter().zip(responses).zip(rounds);
    Phase {
        name: (*name).to_owned(),
        exchanges: exchanges.map(|((request, response), round)| Exchange { request, response, round }).collect(),
        resent,
        resent_seen: seen.resent,
    }
}

/// What the probes said of one connection, by the namespaces of its ends.
#[derive(Debug, Default)]
struct Seen {
    /// Number after each send's last byte, and when it was sent.
    sends: BTreeMap<NetnsId, Vec<(SeqNo, MonotonicNs)>>,
    /// Number after what was readable, and when.
    readies: BTreeMap<NetnsId, Vec<(SeqNo, MonotonicNs)>>,
    resent: u32,
}

impl Seen {
    fn collect(probes: &mut Probes, link: &Link, exchanges: usize) -> Self {
        let (mut assembler, mut sink) = (Assembler::new(Limits::default()), Collected::default());
        let mut netns: BTreeMap<SocketCookie, NetnsId> = BTreeMap::new();
        let mut seen = Self::default();
        let end = Instant::now() + DEADLINE;
        let full = |list: &BTreeMap<NetnsId, Vec<_>>, netns| list.get(&netns).map_or(0, Vec::len) >= exchanges;
        while ![link.near, link.far].iter().all(|n| full(&seen.sends, *n) && full(&seen.readies, *n)) {
            assert!(Instant::now() < end, "not everything was seen within {DEADLINE:?}: {seen:?}");
            probes.drain(|event| {
                if let RawKind::Announce(Identity { netns: of, .. }) = event.kind {
                    netns.insert(event.socket, of);
                }
                if let Some(of) = netns.get(&event.socket).copied() {
                    match event.kind {
                        RawKind::Send { seq, len, .. } => {
                            seen.sends.entry(of).or_default().push((seq.advance(len), event.at));
                        }
                        RawKind::Ready { rcv_nxt, fin: false, .. } => {
                            seen.readies.entry(of).or_default().push((rcv_nxt, event.at));
                        }
                        _ => {}
                    }
                }
                assembler.push(event, &mut sink);
            });
            std::thread::sleep(Duration::from_millis(5));
        }
        assembler.tick(monotonic_now(), &mut sink);
        assembler.finish(&mut sink);
        let near: Vec<SocketCookie> = sink.sockets.iter().filter(|s| s.netns == link.near).map(|s| s.cookie).collect();
        let sent = sink.messages.iter().filter(|m| m.direction == Direction::Egress && near.contains(&m.socket));
        seen.resent = sent.map(|m| u32::try_from(m.retransmits.len()).expect("a few")).sum();
        seen
    }

    /// From each send of `from` to when `to` could read its last byte.
    fn delays(&self, from: NetnsId, to: NetnsId) -> Vec<i64> {
        let readies = &self.readies[&to];
        let ready = |end: SeqNo| readies.iter().find(|(nxt, _)| !nxt.before(end)).map(|(_, at)| *at);
        let delay = |(end, sent): &(SeqNo, MonotonicNs)| Some(ready(*end)?.0.cast_signed() - sent.0.cast_signed());
        self.sends[&from].iter().filter_map(delay).collect()
    }
}

/// `tcpi_total_retrans` of struct tcp_info (include/uapi/linux/tcp.h).
fn retransmits(socket: &TcpStream) -> u32 {
    const OFFSET: usize = 100;
    let mut info = [0u8; OFFSET + 4];
    let mut len = info.len() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the buffer is as long as `len` says.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &raw mut len)
    };
    assert!(result == 0 && len as usize == info.len(), "TCP_INFO: {}", std::io::Error::last_os_error());
    u32::from_ne_bytes(*info.last_chunk().expect("4 bytes"))
}
