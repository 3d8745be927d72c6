//! What the agent costs at some 1,000 requests between sidecars a second, beside what the sidecars themselves take for them: `agent-cost
//! [PAGES_PER_SECOND] [SECONDS]`. A page of the lab is 3.7 requests.

use meshdiff_e2e::{Agent, Lab, LabOptions, privileged};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// Processor time until now: user space and kernel, in seconds.
#[derive(Clone, Copy, Default)]
struct Cpu {
    user: f64,
    system: f64,
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |or: u32| arguments.next().map_or(or, |n| n.parse().expect("a number"));
    let (rate, seconds) = (number(273), number(24));
    assert!(privileged(), "nothing can be measured without root");
    let lab = Lab::up("agent-cost", &LabOptions::default());
    let envoys = envoys(&lab.namespaces());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let agent = Agent::start(folder.path(), lab.als_port, &[]);
    let (rate_text, duration) = (rate.to_string(), format!("{seconds}s"));
    std::thread::scope(|scope| {
        let load = scope.spawn(|| lab.load(&["--rate", &rate_text, "--duration", &duration]));
        // Connections and caches warm up.
        std::thread::sleep(Duration::from_secs(4));
        let before = (Instant::now(), cpu(agent.pid()), sum(&envoys), agent.metric("meshdiff_probe_run_seconds_total"));
        let mut most = [0_u64; 2];
        let end = Instant::now() + Duration::from_secs(u64::from(seconds.saturating_sub(5)));
        while Instant::now() < end {
            let now = memory(agent.pid());
            most = [most[0].max(now[0]), most[1].max(now[1])];
            std::thread::sleep(Duration::from_millis(200));
        }
        let took = before.0.elapsed().as_secs_f64();
        let (own, mesh) = (cpu(agent.pid()), sum(&envoys));
        let probes = agent.metric("meshdiff_probe_run_seconds_total") - before.3;
        let load = load.join().expect("the load ran");
        // Envoy's last entries come after a second, and are joined some seconds later.
        std::thread::sleep(Duration::from_secs(9));
        let counted = agent.metric("meshdiff_requests_total");
        let percent = |seconds: f64| 100.0 * seconds / took;
        println!("load: {:.0} pages/s, {:.0} requests between sidecars/s", load.rate(), counted / f64::from(seconds));
        println!("| | % of one core |");
        println!("|---|--:|");
        println!("| agent, user space | {:.1} |", percent(own.user - before.1.user));
        println!(
            "| agent, kernel (reading the ring and the log streams, writing the window) | {:.1} |",
            percent(own.system - before.1.system)
        );
        println!("| probes, inside the traced programs | {:.1} |", percent(probes));
        println!("| {} sidecars, user space | {:.1} |", envoys.len(), percent(mesh.user - before.2.user));
        println!("| {} sidecars, kernel | {:.1} |", envoys.len(), percent(mesh.system - before.2.system));
        println!("agent's memory, most: {:.1} MiB anonymous, {:.1} MiB resident", mib(most[0]), mib(most[1]));
        println!(
            "joins for /metrics: {:.2} s in {:.0}; rows shed {:.0}; events lost {:.0}; window {:.1} MiB",
            agent.metric("meshdiff_join_seconds_total"),
            agent.metric("meshdiff_joins_total"),
            agent.metric("meshdiff_join_rows_shed_total"),
            agent.metric("meshdiff_kernel_events_lost_total"),
            agent.metric("meshdiff_window_bytes") / f64::from(1 << 20),
        );
        println!("threads of the agent, user+kernel seconds since the start: {}", threads(agent.pid()).join(", "));
    });
    agent.end();
}

fn mib(bytes: u64) -> f64 {
    let bytes = bytes as f64;
    bytes / f64::from(1 << 20)
}

/// The Envoys in these network namespaces.
fn envoys(namespaces: &[String]) -> Vec<u32> {
    let pids = fs::read_dir("/proc").expect("/proc").flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    let is_one = |pid: &u32| {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let netns = fs::metadata(format!("/proc/{pid}/ns/net")).map(|m| m.ino().to_string()).unwrap_or_default();
        comm.trim() == "envoy" && namespaces.contains(&netns)
    };
    pids.filter(is_one).collect()
}

fn sum(pids: &[u32]) -> Cpu {
    pids.iter()
        .map(|pid| cpu(*pid))
        .fold(Cpu::default(), |a, b| Cpu { user: a.user + b.user, system: a.system + b.system })
}

/// Fields 14 and 15 of a `stat`, in ticks of 10 ms.
fn cpu(pid: u32) -> Cpu {
    stat(&format!("/proc/{pid}/stat")).unwrap_or_default()
}

fn stat(path: &str) -> Option<Cpu> {
    let text = fs::read_to_string(path).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut seconds = || fields.next()?.parse::<f64>().ok().map(|ticks| ticks / 100.0);
    Some(Cpu { user: seconds()?, system: seconds()? })
}

fn threads(pid: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let line = |task: fs::DirEntry| {
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        let cpu = stat(task.path().join("stat").to_str()?)?;
        Some(format!("{} {:.2}+{:.2}", name.trim(), cpu.user, cpu.system))
    };
    tasks.filter_map(line).collect()
}

/// Anonymous and resident bytes.
fn memory(pid: u32) -> [u64; 2] {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    ["RssAnon:", "VmRSS:"].map(|name| {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
        line.split_ascii_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or_default() * 1024
    })
}
