//! Prints the messages of every network namespace as they are assembled: `cargo run -p meshdiff-probes --example watch [SECONDS]`.

use meshdiff_model::{Http2Stream, Message, MonotonicNs, Socket, SocketCookie, SocketMetrics};
use meshdiff_probes::{Assembler, Handler, Limits, ProbeConfig, Probes, RawEvent, Sink};
use std::collections::HashMap;
use std::time::{Duration, Instant};

#[derive(Default)]
struct Print {
    sockets: HashMap<SocketCookie, Socket>,
}

impl Sink for Print {
    fn message(&mut self, m: Message) {
        let name = self.sockets.get(&m.socket).map_or_else(
            || format!("cookie {}", m.socket.0),
            |s| format!("[{}] {} -> {} pid {}", s.netns.0, s.local, s.remote, s.owner.map_or(0, |t| t.0)),
        );
        let at = m.first_instant().map_or(0, |i| i.0);
        let span = m.last_instant().map_or(0, |i| i.0) - at;
        println!(
            "{at} +{span:>9}ns {:?} {} {:?} {} bytes, {} sends {} readies {} recvs{}{} {:?} {name}",
            m.direction,
            m.seq.start.0,
            m.seq.end,
            m.seq.len(),
            m.sends.len(),
            m.readies.len(),
            m.recvs.len(),
            if m.gap_before { " GAP" } else { "" },
            if m.elided > 0 { format!(" {} elided", m.elided) } else { String::new() },
            m.content,
        );
    }
    fn metrics(&mut self, row: SocketMetrics) {
        println!(
            "{} cookie {} {}+{} calls {}+{} bytes, {} retransmits, {} drops",
            row.window_start.0,
            row.socket.0,
            row.write.calls,
            row.read.calls,
            row.write.bytes,
            row.read.bytes,
            row.retransmits,
            row.drops.values().sum::<u64>(),
        );
    }
    fn socket(&mut self, socket: Socket) {
        self.sockets.insert(socket.cookie, socket);
    }
    fn http2(&mut self, stream: Http2Stream) {
        println!("{} {stream:?}", stream.first.at.0);
    }
}

struct Assembly {
    assembler: Assembler,
    sink: Print,
}

impl Handler for Assembly {
    fn event(&mut self, event: &RawEvent<'_>) {
        self.assembler.push(event, &mut self.sink);
    }
    fn tick(&mut self, now: MonotonicNs) {
        self.assembler.tick(now, &mut self.sink);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let seconds = std::env::args().nth(1).map_or(Ok(10), |s| s.parse())?;
    let mut probes = Probes::load(&ProbeConfig { watch_all: true, ..ProbeConfig::default() })?;
    eprintln!("watching every network namespace for {seconds} s");
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut assembly = Assembly { assembler: Assembler::new(Limits::default()), sink: Print::default() };
    probes.run(|| Instant::now() >= end, &mut assembly);
    assembly.assembler.finish(&mut assembly.sink);
    eprintln!("{:?}\n{:?}\n{:?}", probes.counters()?, probes.stats()?, assembly.assembler.stats());
    Ok(())
}
