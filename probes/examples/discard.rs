//! Attaches the probes to network namespaces, takes their records and throws them away, until stdin closes. What the probes alone
//! cost is measured with it: `cargo run -p meshdiff-probes --example discard -- NETNS_INODE…`.

use meshdiff_model::NetnsId;
use meshdiff_probes::{ProbeConfig, Probes};
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut probes = Probes::load(&ProbeConfig { measure_cost: false, ..ProbeConfig::default() })?;
    for inode in std::env::args().skip(1) {
        probes.filter().watch(NetnsId(inode.parse()?))?;
    }
    let over = Arc::new(AtomicBool::new(false));
    std::thread::spawn({
        let over = Arc::clone(&over);
        move || {
            let ended = std::io::stdin().read_to_end(&mut Vec::new());
            over.store(true, Ordering::Relaxed);
            drop(ended);
        }
    });
    println!("attached");
    while !over.load(Ordering::Relaxed) {
        probes.drain(|_| {});
        std::thread::sleep(Duration::from_millis(20));
    }
    let counters = probes.counters()?;
    println!("{} records, {} lost", counters.consumed, counters.lost);
    Ok(())
}
