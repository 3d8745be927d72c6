//! How long reads and writes took, and how much of a read was waiting for data, against programs that know how long they were made to wait.
//!
//! Every bound is of the program's own clock around the call, so it holds however slow the machine is: what the probes measure lies within the
//! call. Only that a thread which says that it is about to call does so within half a pause is a matter of speed, and of all the
//! pauses together.

use crate::network::{current_netns, enter_new_netns};
use meshdiff_model::{ExponentialHistogram, LocalAddr, PeerAddr, ProbeTier, SocketMetrics};
use meshdiff_probes::{Assembler, Collected, Limits, ProbeConfig, ProbeError, Probes, monotonic_now};
use nix::sys::socket::{setsockopt, sockopt};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(30);
/// How long the other side waits before it does what is waited for.
const PAUSE: Duration = Duration::from_millis(40);
/// Calls of each kind.
const CALLS: u64 = 8;
/// More than the buffers of a connection hold that are made small.
const MUCH: usize = 2 << 20;

/// A kind of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timed {
    /// Calls that were made.
    pub calls: u64,
    /// Calls whose time the probes told; 0 if they do not measure it.
    pub told: u64,
    /// Their time in all, in ns.
    pub ns: u64,
    /// What it must be at least.
    pub least: u64,
    /// What it can be at most.
    pub most: u64,
}

/// All kinds, by name.
pub type Waits = Vec<(&'static str, Timed)>;

/// Makes the calls under the probes of one tier.
///
/// # Errors
/// If the probes do not load.
///
/// # Panics
/// If a call fails, or a close is not seen within half a minute.
pub fn measure(tier: ProbeTier) -> Result<Waits, ProbeError> {
    let config = ProbeConfig { ring_bytes: 4 << 20, measure_cost: false, tiers: vec![tier], ..ProbeConfig::default() };
    let mut probes = Probes::load(&config)?;
    enter_new_netns();
    probes.filter().watch(current_netns())?;
    let (idle, there, full) = (read_before_it_is_sent(), read_what_is_there(), write_into_full_buffers());
    let all = collect(&mut probes, &[&idle.socket, &there.socket, &full.socket])?;
    let reads = |socket: &Socket| (all.sum(socket, |m| &m.read.duration), all.sum(socket, |m| &m.read.wait));
    let ((idle_took, idle_wait), (there_took, there_wait)) = (reads(&idle.socket), reads(&there.socket));
    // What a call did once there was something to do.
    let work = ExponentialHistogram::sum(&idle_took).saturating_sub(idle_wait.sum());
    let half = nanoseconds(PAUSE / 2);
    let row = |told: u64, ns: u64, least: u64, most: u64| Timed { calls: CALLS, told, ns, least, most };
    let took_full = all.sum(&full.socket, |m| &m.write.duration);
    Ok(vec![
        ("read", row(idle_took.count(), idle_took.sum(), CALLS * half, idle.took)),
        ("read-wait", row(idle_wait.count(), idle_wait.sum(), CALLS * half, idle.took)),
        ("read-work", row(idle_wait.count(), work, 0, idle.worked)),
        ("read-there", row(there_took.count(), there_took.sum(), 1, there.took)),
        ("read-there-wait", row(there_wait.count(), there_wait.sum(), 0, 0)),
        ("write", Timed { calls: 1, ..row(took_full.count(), took_full.sum(), half, full.took) }),
    ])
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).expect("not centuries")
}

/// Whose calls they were, and how long they can have taken in all.
struct Truth {
    socket: Socket,
    took: u64,
    worked: u64,
}

/// Addresses: a tier may know sockets by numbers of its own.
type Socket = (LocalAddr, PeerAddr);

fn socket_of(stream: &TcpStream) -> Socket {
    let (local, remote) = (stream.local_addr().expect("an address"), stream.peer_addr().expect("an address"));
    (LocalAddr::normalised(local), PeerAddr::normalised(remote))
}

fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    setsockopt(&listener, sockopt::RcvBuf, &(64 << 10)).expect("a small buffer");
    let client = TcpStream::connect(listener.local_addr().expect("an address")).expect("a connection");
    setsockopt(&client, sockopt::SndBuf, &(64 << 10)).expect("a small buffer");
    (client, listener.accept().expect("a connection").0)
}

/// Reads that begin before there is anything to read.
fn read_before_it_is_sent() -> Truth {
    let (mut writer, mut reader) = connection();
    let (socket, (mut took, mut worked)) = (socket_of(&reader), (0, 0));
    let (about_to_read, begun) = channel();
    std::thread::scope(|scope| {
        let writes = scope.spawn(move || {
            let mut written = Vec::new();
            while begun.recv().is_ok() {
                std::thread::sleep(PAUSE);
                written.push(Instant::now());
                writer.write_all(b"late").expect("written");
            }
            written
        });
        let mut returned = Vec::new();
        for _ in 0..CALLS {
            about_to_read.send(()).expect("it waits");
            let began = Instant::now();
            assert_eq!(reader.read(&mut [0; 64]).expect("read"), 4);
            took += nanoseconds(began.elapsed());
            returned.push(Instant::now());
        }
        drop(about_to_read);
        let written = writes.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        worked = written.iter().zip(returned).map(|(w, r)| nanoseconds(r - *w)).sum();
    });
    Truth { socket, took, worked }
}

/// Reads of what can be read already.
fn read_what_is_there() -> Truth {
    let (mut writer, mut reader) = connection();
    let (socket, mut took) = (socket_of(&reader), 0);
    for _ in 0..CALLS {
        writer.write_all(b"early").expect("written");
        assert_eq!(reader.peek(&mut [0; 64]).expect("peeked"), 5);
        let began = Instant::now();
        assert_eq!(reader.read(&mut [0; 64]).expect("read"), 5);
        took += nanoseconds(began.elapsed());
    }
    Truth { socket, took, worked: took }
}

/// A write whose reader begins late.
fn write_into_full_buffers() -> Truth {
    let (mut writer, mut reader) = connection();
    let (socket, mut took) = (socket_of(&writer), 0);
    let (about_to_write, begun) = channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            begun.recv().expect("it is about to");
            std::thread::sleep(PAUSE);
            std::io::copy(&mut reader, &mut std::io::sink()).expect("read");
        });
        let bytes = vec![1; MUCH];
        about_to_write.send(()).expect("it waits");
        let began = Instant::now();
        assert_eq!(writer.write(&bytes).expect("written"), MUCH, "a blocking write takes all");
        took = nanoseconds(began.elapsed());
        drop(writer);
    });
    Truth { socket, took, worked: took }
}

struct Collection(Collected);

impl Collection {
    /// All values of a socket.
    fn sum(
        &self,
        socket: &Socket,
        of: impl Fn(&SocketMetrics) -> &Option<ExponentialHistogram>,
    ) -> ExponentialHistogram {
        let me = self.0.sockets.iter().find(|s| (s.local, s.remote) == *socket).map(|s| s.cookie);
        let mut all = ExponentialHistogram::new();
        self.0
            .metrics
            .iter()
            .filter(|m| Some(m.socket) == me)
            .filter_map(|m| of(m).as_ref())
            .for_each(|h| all.merge(h));
        all
    }
}

/// Drains until the sockets are closed.
fn collect(probes: &mut Probes, sockets: &[&Socket]) -> Result<Collection, ProbeError> {
    // Closed ones are told of soon, so that they can be waited for.
    let limits = Limits { linger: meshdiff_model::DurationNs(0), ..Limits::default() };
    let (mut assembler, mut sink) = (Assembler::new(limits), Collected::default());
    let end = Instant::now() + DEADLINE;
    loop {
        probes.drain(|event| assembler.push(event, &mut sink));
        assembler.tick(monotonic_now(), &mut sink);
        let is_closed =
            |wanted: &&&Socket| sink.sockets.iter().any(|s| (s.local, s.remote) == ***wanted && s.closed.is_some());
        if sockets.iter().filter(is_closed).count() == sockets.len() {
            break;
        }
        assert!(Instant::now() < end, "not every socket was seen to close within {DEADLINE:?}: {:?}", sink.sockets);
        std::thread::sleep(Duration::from_millis(5));
    }
    assembler.finish(&mut sink);
    let counters = probes.counters()?;
    assert_eq!((counters.lost, counters.untracked, counters.undecodable), (0, 0, 0), "{counters:?}");
    Ok(Collection(sink))
}
