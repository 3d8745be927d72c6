//! What the probes add to one exchange (a request and its response over a loopback connection: two sends, two readies, two
//! reads), measured in one thread: `cargo run -p meshdiff-probes --example overhead [ROUNDS]`, as root, on a quiet machine.
//!
//! Rounds are interleaved: without probes, without probes once more (the control), with probes that watch this namespace, with
//! probes that watch another, and, where bpftrace is installed, with two scripts on the kernel's tracepoints: one that only notes instants, and
//! one that computes the same as the probes. Medians of the rounds are compared; the two without probes tell how much a difference means.

use meshdiff_model::NetnsId;
use meshdiff_probes::{Assembler, Collected, Limits, ProbeConfig, Probes};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Stretches of a round, and the exchanges of each. A round counts by the median of its stretches: whoever else takes the processor for a
/// while lengthens few of them.
const STRETCHES: usize = 100;
const EXCHANGES: u32 = 50;
const REQUEST: &[u8] = b"GET /reviews/0 HTTP/1.1\r\nhost: reviews:9080\r\nx-request-id: 0bf0d0b1-9e2a\r\n\r\n";
const RESPONSE: &[u8] = &[b'x'; 200];

/// ns of an exchange.
fn round(client: &mut TcpStream, server: &mut TcpStream) -> std::io::Result<f64> {
    let mut buffer = [0; 512];
    let mut times = Vec::with_capacity(STRETCHES);
    for _ in 0..STRETCHES {
        let began = Instant::now();
        for _ in 0..EXCHANGES {
            client.write_all(REQUEST)?;
            server.read_exact(&mut buffer[..REQUEST.len()])?;
            server.write_all(RESPONSE)?;
            client.read_exact(&mut buffer[..RESPONSE.len()])?;
        }
        times.push(began.elapsed().as_nanos() as f64 / f64::from(EXCHANGES));
    }
    Ok(median(&mut times))
}

/// Notes when this process's sockets sent, had bytes and read them, and nothing else. The send's instant is its return's: the
/// tracepoint in its loop does not tell the socket to classic tracepoints.
const INSTANTS: &str = "
tracepoint:sock:sock_send_length /pid == PID/ { @sent[args->sk] = nsecs; @bytes[args->sk] = sum(args->ret); }
tracepoint:sock:sk_data_ready /pid == PID/ { @ready[args->skaddr] = nsecs; }
tracepoint:sock:sock_recv_length /pid == PID && args->ret > 0/
{ @queue[args->sk] = hist(nsecs - @ready[args->sk]); @turn[args->sk] = hist(nsecs - @sent[args->sk]); }";

/// Computes of each socket what the probes and assembly do: the instants with the sequence numbers that they are of, in both directions,
/// calls and bytes, the time of writes, the round-trip time, the waiting time of what was read, process and addresses. In its cheapest form: all
/// of it stays in maps (printing costs twenty times as much), so that of the instants only each socket's last are there; sockets are chosen by
/// the process that runs; nothing is read of the payload.
const THE_SAME: &str = "
tracepoint:tcp:tcp_sendmsg_locked /pid == PID/ { @began[tid] = nsecs; }
tracepoint:sock:sock_send_length /pid == PID && args->ret > 0/
{
  $sk = (struct sock *)args->sk;
  $tp = (struct tcp_sock *)args->sk;
  @sent[args->sk] = ($tp->write_seq - (uint32)args->ret, $tp->write_seq, @began[tid]);
  @write_time[args->sk] = hist(nsecs - @began[tid]);
  @write_bytes[args->sk] = stats(args->ret);
  @rtt[args->sk] = hist($tp->srtt_us >> 3);
  @who[args->sk] = (pid, $sk->__sk_common.skc_daddr, $sk->__sk_common.skc_rcv_saddr, $sk->__sk_common.skc_dport, $sk->__sk_common.skc_num);
}
tracepoint:sock:sk_data_ready /pid == PID/
{
  $tp = (struct tcp_sock *)args->skaddr;
  @ready[args->skaddr] = ($tp->copied_seq, $tp->rcv_nxt, nsecs);
}
tracepoint:sock:sock_recv_length /pid == PID && args->ret > 0/
{
  $tp = (struct tcp_sock *)args->sk;
  @read[args->sk] = ($tp->copied_seq - (uint32)args->ret, $tp->copied_seq, nsecs);
  @read_bytes[args->sk] = stats(args->ret);
  @queue[args->sk] = hist(nsecs - @ready[args->sk].2);
}";

/// A running bpftrace.
struct Bpftrace {
    child: Child,
    /// Removed when the run is over.
    output: tempfile::TempPath,
}

impl Bpftrace {
    fn is_there() -> bool {
        Command::new("bpftrace").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    }

    fn start(script: &str) -> Result<Self, Box<dyn std::error::Error>> {
        let output = tempfile::NamedTempFile::new()?.into_temp_path();
        let script = script.replace("PID", &std::process::id().to_string());
        let program = format!("BEGIN {{ printf(\"ready\\n\"); }}{script}");
        // Written line by line, which is for its standard output only.
        let child = Command::new("bpftrace")
            .args(["-B", "line", "-e", &program])
            .stdout(std::fs::File::create(&output)?)
            .stderr(Stdio::null())
            .spawn()?;
        let mut running = Self { child, output };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !std::fs::read_to_string(&running.output)?.contains("ready") {
            if Instant::now() > deadline || running.child.try_wait()?.is_some() {
                return Err("bpftrace did not begin within 20 s".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(running)
    }
}

impl Drop for Bpftrace {
    fn drop(&mut self) {
        // It may be gone already.
        let _: std::io::Result<()> = self.child.kill();
        let _: std::io::Result<_> = self.child.wait();
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rounds: usize = std::env::args().nth(1).map_or(Ok(40), |s| s.parse())?;
    let own = NetnsId(u32::try_from(std::fs::metadata("/proc/self/ns/net")?.ino())?);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    let (mut server, _) = listener.accept()?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    round(&mut client, &mut server)?;

    let mut names = vec!["without probes", "without, again", "watched", "another watched"];
    if Bpftrace::is_there() {
        names.extend(["bpftrace, instants", "bpftrace, the same"]);
    } else {
        println!("not compared: bpftrace is not installed");
    }
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); names.len()];
    let (mut records, mut assembly) = (0, Duration::ZERO);
    for n in 0..rounds {
        for step in 0..names.len() {
            let which = (step + n) % names.len();
            let script = [INSTANTS, THE_SAME].get(which.wrapping_sub(4));
            let _bpftrace = script.map(|script| Bpftrace::start(script)).transpose()?;
            let mut probes = match which {
                2 | 3 => {
                    let probes = Probes::load(&ProbeConfig { measure_cost: false, ..ProbeConfig::default() })?;
                    probes.filter().watch(if which == 2 { own } else { NetnsId(1) })?;
                    Some(probes)
                }
                _ => None,
            };
            // The first exchanges make the sockets' state.
            client.write_all(b"x")?;
            server.read_exact(&mut [0])?;
            server.write_all(b"x")?;
            client.read_exact(&mut [0])?;
            times[which].push(round(&mut client, &mut server)?);
            if let Some(probes) = &mut probes {
                let (mut assembler, mut sink) = (Assembler::new(Limits::default()), Collected::default());
                let began = Instant::now();
                records += probes.drain(|event| assembler.push(event, &mut sink)).records;
                assembler.finish(&mut sink);
                assembly += began.elapsed();
            }
        }
    }
    let mut differences: Vec<Vec<f64>> = Vec::new();
    for list in &times {
        differences.push(list.iter().zip(&times[0]).map(|(t, base)| t - base).collect());
    }
    let base = median(&mut times[0].clone());
    for (i, name) in names.iter().enumerate() {
        let (own, difference) = (median(&mut times[i].clone()), median(&mut differences[i]));
        println!(
            "{name:18} median {own:8.0} ns per exchange, {:+6.0} by medians, {difference:+6.0} by rounds",
            own - base
        );
    }
    if let [_, _, watched, _, _, same] = differences.as_mut_slice() {
        let (ours, theirs) = (median(watched), median(same));
        println!("watched is {:.0}% of what bpftrace takes that computes the same", 100.0 * ours / theirs);
    }
    let each = assembly.as_nanos() / u128::from(records.max(1));
    println!("{records} records in {rounds} rounds; draining and assembling took {each} ns of each, in user space");
    Ok(())
}
