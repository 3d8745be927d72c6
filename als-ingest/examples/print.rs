//! Receives access logs and prints them, one JSON object per line: `{"proxy":{…}}` for each node that introduces itself,
//! and `{"entry":{…}}` for each finished request or connection. Statistics go to stderr at the end (Ctrl-C, SIGTERM, or
//! after the given time).
//!
//! ```text
//! cargo run -p meshdiff-als --example print -- 127.0.0.1:9901 [SECONDS]
//! ```

use meshdiff_als::{AlsServer, AlsSettings};
use serde_json::json;
use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Longer than Envoy's flush interval of one second.
const DRAIN: Duration = Duration::from_secs(2);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let addr: SocketAddr = args.next().as_deref().unwrap_or("127.0.0.1:9901").parse()?;
    let seconds = args.next().map(|s| s.parse()).transpose()?;

    let server = AlsServer::bind(addr, AlsSettings::default())?;
    let handle = server.handle();
    eprintln!("listening on {}", handle.local_addr());
    let (sink, mut batches) = mpsc::channel(64);
    let serving = tokio::spawn(server.serve(sink));
    let printing = tokio::task::spawn_blocking(move || {
        let mut out = std::io::stdout().lock();
        while let Some(batch) = batches.blocking_recv() {
            if let Some(proxy) = batch.proxy {
                writeln!(out, "{}", json!({ "proxy": proxy }))?;
            }
            for entry in batch.rows.hops() {
                writeln!(out, "{}", json!({ "entry": entry }))?;
            }
            out.flush()?;
        }
        std::io::Result::Ok(())
    });

    let mut terminate = signal(SignalKind::terminate())?;
    let time_is_up = async {
        match seconds {
            Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = time_is_up => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
    }
    let stats = handle.stop(DRAIN).await;
    serving.await??;
    printing.await??;
    eprintln!("{}", serde_json::to_string_pretty(&stats)?);
    Ok(())
}
