//! What user space pays for each record: decoding, message assembly and metrics, measured on one core from raw bytes in memory as the
//! ring would hold them: `cargo run -p meshdiff-probes --example assembly [ROUNDS]`. Needs no root and no probes.
//!
//! The bytes are those of HTTP/1.1 exchanges with keep-alive, both ends local, over 1, 64 and 1,024 connections: two sends (with
//! the head that the probe keeps), two readies, two recvs, with the times of the calls and the round-trip time, so that every
//! metric of the default setting is fed. Connections take turns at random, record by record, which is the worst order for caches. What
//! comes out is collected in batches, and dropping them is part of the measured time: a recording hands them to another thread.
//!
//! In each round every assembler takes the same bytes, in turns that rotate; one of the cases is there twice: what those two
//! differ by is what a difference means. Then ten times as many exchanges go over the same connections as before: the heap may not grow.

use meshdiff_model::{Http2Stream, Message, MonotonicNs, Socket, SocketMetrics};
use meshdiff_probes::{Assembler, Limits, RawEvent, Sink};
use nix::time::{ClockId, clock_gettime};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;

/// Exchanges of a batch, which is what one drain finds: the records of them fill a good part of a ring of 16 MiB.
const BATCH: usize = 20_000;
/// Exchanges by which the heap is judged first; then ten times as many.
const MEMORY: usize = 200_000;
/// Mean ns between records at a million exchanges in a second, and so that [`MEMORY`] of them last for two windows of metrics: a window's
/// histograms fill up over its length, and the next one begins anew.
const FAST: u64 = 167;
const SLOW: u64 = 18_400;

const REQUEST: &[u8] = b"GET /reviews/0?full=1 HTTP/1.1\r\nhost: reviews:9080\r\nuser-agent: python-requests/2.31.0\r\n\
accept-encoding: gzip, deflate\r\naccept: */*\r\nconnection: keep-alive\r\nx-request-id: 0bf0d0b1-9e2a-9b5c-a1c1-7d2f5f0e6c11\r\n\
traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 128\r\n\
x-envoy-upstream-service-time: 3\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: istio-envoy\r\n\r\n\
{\"id\":\"0\",\"reviews\":[{\"reviewer\":\"Reviewer1\",\"text\":\"An extremely entertaining play\"},{\"reviewer\":\"Reviewer2\",\"text\":\"fun\"}]}";

const ANNOUNCE: u8 = 1;
const SEND: u8 = 2;
const READY: u8 = 3;
const RECV: u8 = 4;
const STATE: u8 = 5;

/// One end of a connection.
struct End {
    cookie: u64,
    counter: u32,
    write_seq: u32,
    copied_seq: u32,
    /// How long its last write took, until it is told.
    wrote: u32,
    port: u16,
    peer: u16,
}

/// The fields of a record that differ.
struct Fields<'a> {
    kind: u8,
    seq: u32,
    aux: u32,
    read_ns: u32,
    prefix: &'a [u8],
}

impl End {
    /// Appends a record as `bpf/record.h` lays it out, behind its length.
    fn write(&mut self, to: &mut Vec<u8>, at: u64, fields: &Fields<'_>) {
        let Fields { kind, seq, aux, read_ns, prefix } = *fields;
        let prefix_len = if kind == SEND { prefix.len() as u16 } else { 0 };
        // The probe reserves one of two sizes for a send.
        let room = match prefix.len() {
            0 => 0,
            _ if kind == ANNOUNCE => prefix.len(),
            1..=64 => 64,
            _ => 512,
        };
        let wrote = if kind == ANNOUNCE { 0 } else { std::mem::take(&mut self.wrote) };
        to.extend(((48 + room) as u64).to_ne_bytes());
        to.extend(self.cookie.to_ne_bytes());
        to.extend(at.to_ne_bytes());
        to.extend(self.counter.to_ne_bytes());
        to.extend([kind, 0]);
        to.extend(prefix_len.to_ne_bytes());
        to.extend((if matches!(kind, SEND | RECV) { 4_711u32 } else { 0 }).to_ne_bytes());
        for word in [seq, aux, 8 * 60 + (at % 64) as u32, wrote, read_ns] {
            to.extend(word.to_ne_bytes());
        }
        to.extend(prefix);
        to.resize(to.len() + room - prefix.len(), 0);
        if kind != ANNOUNCE {
            self.counter = self.counter.wrapping_add(1);
        }
    }

    fn begin(&mut self, to: &mut Vec<u8>, at: u64, from: u32) {
        let mut identity = 4_026_531_840u32.to_ne_bytes().to_vec();
        for n in [2, self.port, self.peer, 0, 0, 0] {
            identity.extend(n.to_ne_bytes());
        }
        for _ in 0..2 {
            identity.extend([127, 0, 0, 1]);
            identity.extend([0; 12]);
        }
        self.write(to, at, &Fields { kind: ANNOUNCE, seq: 0, aux: 1, read_ns: 0, prefix: &identity });
        let state = Fields { kind: STATE, seq: self.write_seq, aux: from << 8 | 1, read_ns: 0, prefix: b"" };
        self.write(to, at, &state);
    }
}

/// A keep-alive connection and where its exchange stands.
struct Connection {
    ends: [End; 2],
    step: usize,
}

impl Connection {
    /// The next of the six records of its exchange; true after the last.
    fn step(&mut self, to: &mut Vec<u8>, at: u64, random: &mut StdRng) -> bool {
        let [client, server] = &mut self.ends;
        let (from, by, bytes) = if self.step < 3 { (client, server, REQUEST) } else { (server, client, RESPONSE) };
        let len = bytes.len() as u32;
        match self.step % 3 {
            0 => {
                let fields = Fields { kind: SEND, seq: from.write_seq, aux: len, read_ns: 0, prefix: bytes };
                from.write(to, at, &fields);
                from.write_seq = from.write_seq.wrapping_add(len);
                from.wrote = random.random_range(8_000..30_000);
            }
            1 => {
                let (end, unread) = (by.copied_seq.wrapping_add(len), by.copied_seq);
                by.write(to, at, &Fields { kind: READY, seq: end, aux: unread, read_ns: 0, prefix: b"" });
            }
            _ => {
                by.copied_seq = by.copied_seq.wrapping_add(len);
                // Most reads are done when the bytes are there, some wait for them.
                let took = if random.random_ratio(1, 4) {
                    random.random_range(30_000..200_000)
                } else {
                    random.random_range(900..2_500)
                };
                by.write(to, at, &Fields { kind: RECV, seq: by.copied_seq, aux: len, read_ns: took, prefix: b"" });
            }
        }
        self.step = (self.step + 1) % 6;
        self.step == 0
    }
}

/// Writes what the probes would write.
struct Traffic {
    connections: Vec<Connection>,
    now: u64,
    pace: u64,
    random: StdRng,
}

impl Traffic {
    fn new(connections: u16) -> Self {
        let end = |n: u16, side: u16| End {
            cookie: u64::from(n) * 2 + u64::from(side) + 1,
            counter: 0,
            write_seq: u32::from(side) << 31,
            copied_seq: u32::from(1 - side) << 31,
            wrote: 0,
            port: if side == 0 { 20_000 + n } else { 9_080 },
            peer: if side == 0 { 9_080 } else { 20_000 + n },
        };
        let connections = (0..connections).map(|n| Connection { ends: [end(n, 0), end(n, 1)], step: 0 }).collect();
        Self { connections, now: 1_000_000_000, pace: FAST, random: StdRng::seed_from_u64(7) }
    }

    /// The records of the connections' beginnings.
    fn open(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for c in &mut self.connections {
            // Connected from SYN_SENT, accepted from SYN_RECV.
            for (end, from) in c.ends.iter_mut().zip([2, 3]) {
                self.now += 100;
                end.begin(&mut bytes, self.now, from);
            }
        }
        bytes
    }

    /// The records in which so many exchanges end; how many they are.
    fn batch(&mut self, exchanges: usize, bytes: &mut Vec<u8>) -> usize {
        bytes.clear();
        let (mut done, mut records) = (0, 0);
        while done < exchanges {
            self.now += self.random.random_range(self.pace * 4 / 5..self.pace * 6 / 5);
            let which = self.random.random_range(0..self.connections.len());
            done += usize::from(self.connections[which].step(bytes, self.now, &mut self.random));
            records += 1;
        }
        records
    }
}

/// What this thread has taken of a processor: whoever else runs meanwhile is not measured.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Messages that are collected before they are dropped.
const HELD: usize = 1_024;

/// Collects what assembly makes.
#[derive(Default)]
struct Batch {
    messages: Vec<Message>,
    sockets: Vec<Socket>,
    metrics: Vec<SocketMetrics>,
    streams: Vec<Http2Stream>,
    /// Messages that were made.
    made: usize,
}

impl Sink for Batch {
    fn message(&mut self, message: Message) {
        self.made += 1;
        self.messages.push(message);
        if self.messages.len() == HELD {
            self.messages.clear();
        }
    }
    fn socket(&mut self, socket: Socket) {
        self.sockets.push(socket);
    }
    fn metrics(&mut self, row: SocketMetrics) {
        self.metrics.push(row);
    }
    fn http2(&mut self, stream: Http2Stream) {
        self.streams.push(stream);
    }
}

/// What is measured. Not inlined, so that a profiler can be told to count nothing else:
/// `valgrind --tool=callgrind --toggle-collect='assembly::assemble*'`.
#[inline(never)]
fn assemble(mut bytes: &[u8], now: u64, assembler: &mut Assembler) -> usize {
    let mut batch = Batch::default();
    while let Some((length, rest)) = bytes.split_first_chunk::<8>() {
        let (record, rest) = rest.split_at(u64::from_ne_bytes(*length) as usize);
        if let Ok(event) = RawEvent::decode(record) {
            assembler.push(&event, &mut batch);
        }
        bytes = rest;
    }
    assembler.tick(MonotonicNs(now), &mut batch);
    batch.made
}

/// An assembler and what it was fed.
struct Case {
    name: &'static str,
    traffic: Traffic,
    assembler: Assembler,
    bytes: Vec<u8>,
    /// ns of each record, by round.
    times: Vec<f64>,
    messages: usize,
}

impl Case {
    fn new(&(name, connections): &(&'static str, u16)) -> Self {
        let mut traffic = Traffic::new(connections);
        let mut assembler = Assembler::new(Limits::default());
        assemble(&traffic.open(), traffic.now, &mut assembler);
        let mut case =
            Self { name, traffic, assembler, bytes: Vec::with_capacity(BATCH * 2048), times: Vec::new(), messages: 0 };
        case.round();
        case.times.clear();
        case
    }

    fn round(&mut self) {
        let records = self.traffic.batch(BATCH, &mut self.bytes);
        let began = cpu_time();
        let made = assemble(&self.bytes, self.traffic.now, &mut self.assembler);
        let took = cpu_time() - began;
        self.times.push(took.as_nanos() as f64 / records as f64);
        self.messages += made;
    }

    /// The most that the heap held after a batch while so many more exchanges were assembled. What holds the raw
    /// bytes has its size from the beginning.
    fn heap_after(&mut self, exchanges: usize) -> Option<usize> {
        let mut most = None;
        for _ in 0..exchanges / BATCH {
            self.traffic.batch(BATCH, &mut self.bytes);
            assemble(&self.bytes, self.traffic.now, &mut self.assembler);
            most = most.max(heap());
        }
        most
    }
}

/// Bytes of the heap in use; `None` where the C library does not tell.
fn heap() -> Option<usize> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: it takes no arguments and returns numbers.
        let info = unsafe { libc::mallinfo2() };
        Some(info.uordblks + info.hblkhd)
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    None
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

const CASES: [(&str, u16); 4] =
    [("1 connection", 1), ("64 connections", 64), ("64, again", 64), ("1,024 connections", 1_024)];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rounds: usize = std::env::args().nth(1).map_or(Ok(25), |s| s.parse())?;
    // Only one case, and nothing besides: for a profiler.
    if let Some(only) = std::env::args().nth(2) {
        let mut case = Case::new(CASES.get(only.parse::<usize>()?).ok_or("there is no such case")?);
        (0..rounds).for_each(|_| case.round());
        println!("{}: {:.1} ns of each record", case.name, median(&case.times));
        return Ok(());
    }
    let mut cases: Vec<Case> = CASES.iter().map(Case::new).collect();
    for n in 0..rounds {
        for step in 0..cases.len() {
            cases[(step + n) % CASES.len()].round();
        }
    }
    println!("{rounds} rounds of {BATCH} exchanges: decoding, assembly and metrics, ns of each record");
    for case in &cases {
        let stats = case.assembler.stats();
        assert_eq!((stats.lost_events, stats.late_events), (0, 0), "{}: the traffic has no gaps", case.name);
        // Four messages an exchange, of which the last of each socket and direction may be open still.
        let (made, open) = ((rounds + 1) * BATCH * 4, case.assembler.open_sockets() * 4);
        assert!(case.messages.abs_diff(made) <= open, "{}: {} messages of {made}", case.name, case.messages);
        let (middle, least) = (median(&case.times), case.times.iter().copied().fold(f64::MAX, f64::min));
        println!(
            "{:18} median {middle:6.1}, least {least:6.1}: {:5.2} M exchanges/s at the median, {:5.2} M at best",
            case.name,
            1e3 / (6.0 * middle),
            1e3 / (6.0 * least)
        );
    }
    let differences: Vec<f64> = cases[2].times.iter().zip(&cases[1].times).map(|(b, a)| (b - a).abs()).collect();
    println!("the same case twice differs by {:.1} ns at the median of the rounds", median(&differences));

    drop(cases);
    for (name, connections) in [CASES[0], CASES[1], CASES[3]] {
        let Some(before) = heap() else {
            println!("{name}: this C library does not tell what the heap holds");
            continue;
        };
        let mut case = Case::new(&(name, connections));
        case.traffic.pace = SLOW;
        // Without the raw bytes, which are not assembly's.
        let before = before + case.bytes.capacity();
        let mut most = |exchanges| case.heap_after(exchanges).map_or(0, |most| most.saturating_sub(before) / 1024);
        let (few, many) = (most(MEMORY), most(10 * MEMORY));
        println!("{name:18} at most {few} KiB in {MEMORY} exchanges, {many} KiB in {} more", 10 * MEMORY);
        if many > few + few / 20 + 64 {
            return Err(format!("{name}: what is remembered grew with the traffic").into());
        }
    }
    Ok(())
}
