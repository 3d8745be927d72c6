//! `record`: probes and access logs of this machine, into a capture.
//!
//! One thread drains the probes' ring and assembles messages, one looks for network namespaces, a small runtime serves the
//! access log endpoint; all of them hand what they have to one thread that writes. The channel between is bounded: where the
//! disk cannot follow, the ring fills and the kernel counts what it drops.

pub(crate) mod clock;
mod existing;
pub(crate) mod host;
pub(crate) mod kernel;
mod libraries;
mod options;
pub(crate) mod pods;
mod progress;
pub(crate) mod store;
mod tally;

pub(crate) use options::{Options, reach, ring_bytes};

use crate::exit::Failure;
use anyhow::Context;
use kernel::KernelSide;
use meshdiff_als::{AlsServer, AlsSettings, AlsTls};
use meshdiff_capture::{CaptureSink, CaptureWriter, Existing, WithoutPaths, WriterOptions};
use meshdiff_discovery::kube::Informers;
use meshdiff_model::ProbeTier;
use progress::Progress;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::{Item, Pace, Store};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Envoy flushes its access logs once a second, and once more when its buffer is full: this long after the end every
/// entry of the recording has come.
pub(crate) const DRAIN: Duration = Duration::from_secs(3);
/// How long is waited for the API server's list of pods before the recording begins without it.
const FIRST_LIST: Duration = Duration::from_secs(5);
/// Batches that may wait for the writer.
pub(crate) const WAITING: usize = 1024;

/// `meshdiff record`.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    // What can be refused is refused before anything is started or written: first what costs nothing.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("als")
        .enable_all()
        .build()
        .context("cannot start the access log endpoint's runtime")?;
    let tls = options.als_tls.clone().map(AlsTls::load).transpose().context("the access log endpoint's TLS")?;
    let server = {
        let _in_runtime = runtime.enter();
        AlsServer::bind(options.als_listen, AlsSettings::default())?
    };
    let server = match tls {
        Some(tls) => server.with_tls(tls),
        None => server,
    };
    let kernel = if options.probes { Some(KernelSide::start(options, None)?) } else { None };

    let mut meta = host::meta(options, server.handle().local_addr());
    meta.probes.tier = kernel.as_ref().map_or(ProbeTier::None, KernelSide::tier);
    if let Some(kernel) = &kernel {
        meta.watched_netns = kernel.watched();
        meta.probes.refused = kernel.refused();
        meta.probes.unmeasured = kernel.unmeasured();
        meta.probes.tls_libraries = kernel.tls_libraries();
    }
    let existing = if options.force { Existing::ReplaceCapture } else { Existing::Refuse };
    let mut writer_options = WriterOptions { existing, raw: options.raw, ..WriterOptions::default() };
    writer_options.sync = true;
    let writer = CaptureWriter::create(&options.output, &meta, writer_options)?;
    let sink: Box<dyn CaptureSink> =
        if options.redact_paths { Box::new(WithoutPaths(writer)) } else { Box::new(writer) };
    runtime.block_on(session(options, server, kernel, sink, meta))
}

/// The informers of this node's pods, if they are wanted and there is a server to ask.
async fn pods_of(options: &Options) -> Option<Arc<Informers>> {
    let node = options.node_name.as_deref()?;
    match pods::informers(node).await {
        Ok(informers) => {
            if !informers.wait(FIRST_LIST).await {
                tracing::warn!(node, trouble = ?informers.trouble(), "the API server does not tell of the pods of this node yet");
            }
            Some(informers)
        }
        Err(error) => {
            tracing::warn!(%error, node, "pods are told from what their sidecars say of themselves");
            None
        }
    }
}

async fn session(
    options: &Options,
    server: AlsServer,
    kernel: Option<KernelSide>,
    sink: Box<dyn CaptureSink>,
    meta: meshdiff_capture::Meta,
) -> Result<(), Failure> {
    let (to_store, items) = mpsc::channel(WAITING);
    let als = server.handle();
    let progress = Progress::new(options, als.local_addr(), meta.watched_netns.len());
    let start = meta.start.wall;
    let store = Store::new(sink, meta, als.clone(), progress.counters(), Pace::default())
        .with_pods(pods_of(options).await.map(|informers| pods::source(informers, move || start)));
    let store = std::thread::Builder::new()
        .name("store".to_owned())
        .spawn(move || store.run(items))
        .context("cannot start a thread")?;

    let (batches, incoming) = mpsc::channel(64);
    let serving = tokio::spawn(server.serve(batches));
    let forwarding = tokio::spawn(store::forward(incoming, to_store.clone()));
    let kernel = kernel.map(|k| k.run(to_store.clone())).transpose()?;

    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let end = options.duration.map(|d| Instant::now() + d);
    let mut second = tokio::time::interval(Duration::from_millis(250));
    let why = loop {
        tokio::select! {
            _ = interrupt.recv() => break "interrupted",
            _ = terminate.recv() => break "terminated",
            _ = second.tick() => {
                progress.show();
                // Without it, what came last before a silence would not be made to survive a kill. A full channel needs none.
                let _: Result<_, _> = to_store.try_send(Item::Tick);
                if store.is_finished() {
                    break "failed";
                }
            }
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            break "over";
        }
    };
    tracing::info!(why, "the recording ends");
    progress.draining();

    // The kernel's side ends first, so that every request in it had the time to be logged.
    let end_of_recording = clock::sample();
    let kernel_end = kernel.map(kernel::Running::stop);
    let drain = async {
        // With the store gone nobody takes what comes.
        let drain = if store.is_finished() { Duration::ZERO } else { DRAIN };
        tokio::select! {
            stats = als.stop(drain) => stats,
            _ = interrupt.recv() => als.stop(Duration::ZERO).await,
            _ = terminate.recv() => als.stop(Duration::ZERO).await,
        }
    };
    let als_stats = drain.await;
    let served = serving.await.context("the access log endpoint panicked")?;
    forwarding.await.context("the access log endpoint panicked")?;
    let kernel_end = match kernel_end {
        Some(end) => Some(end.await?),
        None => None,
    };
    let _: Result<_, _> =
        to_store.send(Item::End { at: end_of_recording, als: Box::new(als_stats), kernel: kernel_end }).await;
    drop(to_store);
    let outcome = tokio::task::spawn_blocking(move || store.join()).await.context("waiting for the writer")?;
    progress.finish();
    let meta = outcome
        .map_err(|_| anyhow::anyhow!("the writer panicked: this is a defect in meshdiff, please report it"))??;
    served?;
    if !options.quiet {
        progress::summary(&options.output, &meta);
    }
    Ok(())
}
