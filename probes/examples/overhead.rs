//! What the probes add to one exchange (a request and its response over a loopback connection: two sends, two readies, two
//! reads), measured in one thread: `cargo run -p meshdiff-probes --example overhead [ROUNDS]`, as root, on a quiet machine.
//!
//! Rounds are interleaved: without probes, without probes once more (the control), with probes that watch this namespace, with
//! probes that watch another, and, where bpftrace is installed, with a script that notes the same instants by the kernel's
//! tracepoints. Medians of the rounds are compared; the two without probes tell how much a difference means.

use meshdiff_model::NetnsId;
use meshdiff_probes::{Assembler, Collected, Limits, ProbeConfig, Probes};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const EXCHANGES: u32 = 5_000;
const REQUEST: &[u8] = b"GET /reviews/0 HTTP/1.1\r\nhost: reviews:9080\r\nx-request-id: 0bf0d0b1-9e2a\r\n\r\n";
const RESPONSE: &[u8] = &[b'x'; 200];

/// Mean ns of an exchange.
fn round(client: &mut TcpStream, server: &mut TcpStream) -> std::io::Result<f64> {
    let mut buffer = [0; 512];
    let began = Instant::now();
    for _ in 0..EXCHANGES {
        client.write_all(REQUEST)?;
        server.read_exact(&mut buffer[..REQUEST.len()])?;
        server.write_all(RESPONSE)?;
        client.read_exact(&mut buffer[..RESPONSE.len()])?;
    }
    Ok(began.elapsed().as_nanos() as f64 / f64::from(EXCHANGES))
}

/// A running bpftrace that notes when this process's sockets sent, had bytes and read them.
struct Bpftrace {
    child: Child,
    /// Removed when the run is over.
    output: tempfile::TempPath,
}

impl Bpftrace {
    fn is_there() -> bool {
        Command::new("bpftrace").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    }

    fn start() -> Result<Self, Box<dyn std::error::Error>> {
        let output = tempfile::NamedTempFile::new()?.into_temp_path();
        // The send's instant is its return's: the tracepoint in its loop does not tell the socket to classic tracepoints.
        // It keeps the instants in its maps; printing each of them costs it twenty times as much.
        let program = format!(
            r#"BEGIN {{ printf("ready\n"); }}
            tracepoint:sock:sock_send_length /pid == {pid}/ {{ @sent[args->sk] = nsecs; @bytes[args->sk] = sum(args->ret); }}
            tracepoint:sock:sk_data_ready /pid == {pid}/ {{ @ready[args->skaddr] = nsecs; }}
            tracepoint:sock:sock_recv_length /pid == {pid} && args->ret > 0/
            {{ @queue[args->sk] = hist(nsecs - @ready[args->sk]); @turn[args->sk] = hist(nsecs - @sent[args->sk]); }}"#,
            pid = std::process::id()
        );
        // Written line by line, which is for its standard output only.
        let child = Command::new("bpftrace")
            .args(["-B", "line", "-e", &program])
            .stdout(std::fs::File::create(&output)?)
            .stderr(Stdio::null())
            .spawn()?;
        let running = Self { child, output };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !std::fs::read_to_string(&running.output)?.contains("ready") {
            if Instant::now() > deadline {
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
        names.push("bpftrace");
    } else {
        println!("not compared: bpftrace is not installed");
    }
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); names.len()];
    let (mut records, mut assembly) = (0, Duration::ZERO);
    for n in 0..rounds {
        for step in 0..names.len() {
            let which = (step + n) % names.len();
            let _bpftrace = if which == 4 { Some(Bpftrace::start()?) } else { None };
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
            "{name:16} median {own:8.0} ns per exchange, {:+6.0} by medians, {difference:+6.0} by rounds",
            own - base
        );
    }
    let each = assembly.as_nanos() / u128::from(records.max(1));
    println!("{records} records in {rounds} rounds; draining and assembling took {each} ns of each, in user space");
    Ok(())
}
