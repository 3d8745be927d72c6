//! Many short connections that follow each other on the same ports, and so on the same addresses in the kernel's memory: what the
//! probes remember of one must not get into the next.

use crate::network::{current_netns, enter_new_netns};
use meshdiff_model::{ProbeTier, SocketCookie, TcpState};
use meshdiff_probes::{ProbeConfig, ProbeError, Probes, RawKind};
use nix::sys::socket::{setsockopt, sockopt};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(30);
/// Connections, one after the other.
const CONNECTIONS: usize = 300;
const REQUEST: &[u8] = b"GET /churn HTTP/1.1\r\n\r\n";

/// What was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Churn {
    /// Sockets that were opened: two for each connection.
    pub opened: usize,
    /// Sockets that the probes told of.
    pub told: usize,
    /// Of those: whose events are numbered from 0 without a gap, begin with a connect or an accept, hold one send and its own bytes, and
    /// end with the close.
    pub whole: usize,
    /// Different ports that the clients had.
    pub ports: usize,
    /// Sockets that the kernel side remembers in the end; `None` where it keeps nothing by itself.
    pub remembered: Option<usize>,
}

/// Opens and closes the connections under the probes of one tier.
///
/// # Errors
/// If the probes do not load.
///
/// # Panics
/// If a connection fails, or its close is not seen within half a minute.
pub fn measure(tier: ProbeTier) -> Result<Churn, ProbeError> {
    let config = ProbeConfig { ring_bytes: 4 << 20, measure_cost: false, tiers: vec![tier], ..ProbeConfig::default() };
    let mut probes = Probes::load(&config)?;
    enter_new_netns();
    // Few ports, so that each is used again and again.
    std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40015").expect("the range of ports");
    probes.filter().watch(current_netns())?;
    let mut ports = BTreeSet::new();
    let mut sockets = Sockets::default();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    for _ in 0..CONNECTIONS {
        ports.insert(converse(&listener));
        sockets.drain(&mut probes);
    }
    let end = Instant::now() + DEADLINE;
    while sockets.0.values().filter(|s| s.closed).count() < 2 * CONNECTIONS
        || probes.remembered().is_some_and(|n| n > 0)
    {
        // What is missing is told by the numbers.
        if Instant::now() > end {
            break;
        }
        sockets.drain(&mut probes);
        std::thread::sleep(Duration::from_millis(5));
    }
    let counters = probes.counters()?;
    assert_eq!((counters.lost, counters.untracked, counters.undecodable), (0, 0, 0), "{counters:?}");
    Ok(Churn {
        opened: 2 * CONNECTIONS,
        told: sockets.0.len(),
        whole: sockets.0.values().filter(|s| s.is_whole()).count(),
        ports: ports.len(),
        remembered: probes.remembered(),
    })
}

/// One connection that is reset in the end, so that its port is free at once. Gives the client's port.
fn converse(listener: &TcpListener) -> u16 {
    let mut client = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
    let (mut server, _) = listener.accept().expect("a connection");
    client.write_all(REQUEST).expect("written");
    server.read_exact(&mut [0; REQUEST.len()]).expect("read");
    server.write_all(REQUEST).expect("written");
    client.read_exact(&mut [0; REQUEST.len()]).expect("read");
    let port = client.local_addr().expect("an address").port();
    setsockopt(&client, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).expect("linger");
    port
}

#[derive(Default)]
struct Sockets(BTreeMap<SocketCookie, Seen>);

#[derive(Default)]
struct Seen {
    counters: Vec<u32>,
    begun: usize,
    sent: u32,
    read: u32,
    closed: bool,
}

impl Sockets {
    fn drain(&mut self, probes: &mut Probes) {
        probes.drain(|event| {
            let seen = self.0.entry(event.socket).or_default();
            if !matches!(event.kind, RawKind::Announce(_)) {
                seen.counters.push(event.counter);
            }
            match event.kind {
                RawKind::Send { len, .. } => seen.sent += len,
                RawKind::Recv { len, .. } => seen.read += len,
                RawKind::State { new: TcpState::Established, .. } => seen.begun += 1,
                RawKind::State { new: TcpState::Close, .. } => seen.closed = true,
                _ => {}
            }
        });
    }
}

impl Seen {
    fn is_whole(&self) -> bool {
        let mut counters = self.counters.clone();
        counters.sort_unstable();
        let numbered = counters.iter().copied().eq(0..counters.len() as u32);
        let bytes = REQUEST.len() as u32;
        numbered && self.begun == 1 && self.closed && (self.sent, self.read) == (bytes, bytes)
    }
}
