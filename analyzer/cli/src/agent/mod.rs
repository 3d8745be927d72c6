//! `agent`: probes and access logs of one node, for good.
//!
//! The same machinery as `record`, with a window of segments in place of one capture. What others build on:
//!
//! - `--listen` (port 9902, named `http` in the pod): `GET /v1/capture?namespace=NS[&namespace=…]&since=15m` streams the window as an
//!   uncompressed tar of one capture folder (`meta.json` and Parquet files, as `record` writes them), `Content-Type: application/x-tar`,
//!   with the capture's schema in `X-Meshdiff-Schema`. All of what touches a namespace is in it, and there may be more: whoever reads it
//!   chooses the requests. A stream that breaks off has no end of tar, and its connection is reset.
//! - `GET /v1/info` (JSON): `version`, `schemaVersion`, `node`, `tier`, `window` (`startNs`, `endNs` by this node's wall clock), `nowNs`
//!   (that clock, now), `counts`, `kubernetes`.
//! - Everything under `/v1` needs the token in `X-Meshdiff-Token`. Errors are JSON: `{"error": "a sentence"}`.
//! - `/metrics` (OpenMetrics text, or Prometheus' protobuf with native histograms), `/healthz`, `/readyz` (200 once probes are attached and
//!   the access log endpoint listens).
//! - Pods of the DaemonSet have the labels `app.kubernetes.io/name=meshdiff` and `app.kubernetes.io/component=agent`, port 9901 named
//!   `grpc-als`, `NODE_NAME` from the downward API, and the token from the key `token` of the Secret `meshdiff-token`.

mod directory;
mod export;
mod http;
mod info;
mod live;
mod memory;
mod metrics;
mod options;
mod pods;
mod token;
mod window;

pub(crate) use export::merged_metas;
pub(crate) use options::{AgentArgs, AgentOptions, LogFormat};
pub(crate) use window::Segment;

use crate::exit::Failure;
use crate::record::kernel::{self, Gate, KernelSide};
use crate::record::store::{Item, Pace, Store, forward};
use crate::record::{self, clock, host};
use crate::store::SegmentSender;
use anyhow::Context;
use axum::serve::ListenerExt;
use http::{App, HttpCounters};
use info::About;
use live::{LiveCounters, Tap};
use meshdiff_als::{AlsServer, AlsSettings, AlsTls};
use meshdiff_capture::{CaptureSink, Meta, WithoutPaths};
use meshdiff_discovery::kube::Informers;
use meshdiff_model::ProbeTier;
use metrics::{Own, RequestMetrics};
use pods::{KnownProxies, PodGate};
use prometheus_client::registry::Registry;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use token::Token;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use window::{Pulse, RollingSink, Window};

/// How often the window is written, and so how much a kill can take.
const ROLL: Duration = Duration::from_secs(2);
/// Readings of the clocks that the writer remembers: for segments of up to some minutes.
const CLOCK_SAMPLES: usize = 600;
/// How long callers have to take what they asked for when the agent ends.
const LAST_CALLERS: Duration = Duration::from_secs(5);

/// How long the first list of pods may take before it is begun without.
const FIRST_LIST: Duration = Duration::from_secs(5);

/// How long the last segments may take to the store when the agent ends; what is left waits in the spool.
const LAST_SEGMENTS: Duration = Duration::from_secs(3);

/// `meshdiff agent`.
pub(crate) fn run(options: &AgentOptions) -> Result<(), Failure> {
    memory::keep_small();
    // What can be refused is refused before anything is started: first what costs nothing.
    let token = Token::load(&options.token_file)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("agent")
        .enable_all()
        .build()
        .context("cannot start the agent's runtime")?;
    let tls = options.record.als_tls.clone().map(AlsTls::load).transpose().context("the access log endpoint's TLS")?;
    let (als, listener) = runtime.block_on(async {
        let als = AlsServer::bind(options.record.als_listen, AlsSettings::default())?;
        let listener = TcpListener::bind(options.listen).await;
        let listener = listener.with_context(|| format!("cannot listen on {} (--listen)", options.listen))?;
        Ok::<_, Failure>((als, listener))
    })?;
    let als = match tls {
        Some(tls) => als.with_tls(tls),
        None => als,
    };
    let mut meta = host::meta(&options.record, als.handle().local_addr());
    meta.settings.insert(export::AGENT_START.to_owned(), serde_json::json!(meta.start.wall.0));
    let window = Window::open(&options.window, options.limits, meta.host.boot_id.clone())?;
    let informers = runtime.block_on(informers(options));
    if let Err(why) = &informers {
        tracing::warn!(%why, "pods are told from what their sidecars say of themselves; everything with a sidecar is traced that does not say to be in another namespace");
    }
    let proxies = Arc::new(KnownProxies::default());
    let gate: Arc<dyn Gate> = Arc::new(PodGate {
        namespaces: options.namespaces.clone(),
        informers: informers.as_ref().ok().cloned(),
        proxies: Arc::clone(&proxies),
        addresses: Mutex::default(),
    });
    let kernel = if options.record.probes { Some(KernelSide::start(&options.record, Some(gate))?) } else { None };
    meta.probes.tier = kernel.as_ref().map_or(ProbeTier::None, KernelSide::tier);
    if let Some(kernel) = &kernel {
        meta.watched_netns = kernel.watched();
        meta.probes.refused = kernel.refused();
        meta.probes.unmeasured = kernel.unmeasured();
        meta.probes.tls_libraries = kernel.tls_libraries();
    }
    let agent = Agent { window: Arc::new(window), informers, proxies, token };
    let ended = runtime.block_on(agent.session(options, als, listener, kernel, meta));
    // A caller that takes its time must not keep the node from ending.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

/// The informers of this node's pods, or why there are none.
async fn informers(options: &AgentOptions) -> Result<Arc<Informers>, String> {
    if !options.kube {
        return Err("the agent was told to do without the Kubernetes API (--no-kube)".to_owned());
    }
    let Some(node) = &options.node_name else {
        return Err(
            "the agent does not know its node's name: set NODE_NAME from the downward API, or --node-name".to_owned()
        );
    };
    let informers = record::pods::informers(node).await.map_err(|e| e.to_string())?;
    // Whom to trace is known from the first look on, if the server answers at all.
    informers.wait(FIRST_LIST).await;
    Ok(informers)
}

struct Agent {
    window: Arc<Window>,
    informers: Result<Arc<Informers>, String>,
    proxies: Arc<KnownProxies>,
    token: Token,
}

impl Agent {
    async fn session(
        self,
        options: &AgentOptions,
        server: AlsServer,
        listener: TcpListener,
        kernel: Option<KernelSide>,
        meta: Meta,
    ) -> Result<(), Failure> {
        let (to_store, items) = mpsc::channel(record::WAITING);
        let als = server.handle();
        let pulse = Pulse::new();
        let mut registry = Registry::default();
        let live = Arc::new(LiveCounters::default());
        let requests = Arc::new(RequestMetrics::new(&mut registry));
        let (tap, join) = live::pair(requests, Arc::clone(&live), self.informers.as_ref().ok().cloned(), meta.start);
        let joining = spawn("join", move || join.run())?;
        let store = self.store(options, tap, meta.clone(), &als, &pulse);
        let store = spawn("store", move || store.run(items))?;

        let http_counters = Arc::new(HttpCounters::default());
        let sender = options.shipping.as_ref().map(|to| SegmentSender::start(to, self.window.all()).map(Arc::new));
        let sender = sender.transpose()?;
        if let Some(sender) = &sender {
            self.window.send_to(Arc::clone(sender));
        }
        let own = Own {
            window: Arc::clone(&self.window),
            live,
            http: Arc::clone(&http_counters),
            als: als.clone(),
            sender: sender.clone(),
        };
        registry.register_collector(Box::new(own));
        let ready = Arc::new(AtomicBool::new(false));
        let about = About {
            node: options.node_name.clone(),
            tier: meta.probes.tier,
            namespaces: options.namespaces.clone(),
            keep_seconds: options.limits.keep.as_secs(),
            keep_bytes: options.limits.keep_bytes,
            informers: self.informers,
        };
        let app = App::new(
            self.token,
            self.window,
            pulse,
            to_store.clone(),
            about,
            registry,
            http_counters,
            Arc::clone(&ready),
        );
        let listen = listener.local_addr().context("the HTTP server's address")?;
        let (end_http, http) = serve_http(listener, app);

        let (batches, incoming) = mpsc::channel(64);
        let serving = tokio::spawn(server.serve(batches));
        let forwarding = tokio::spawn(forward(incoming, to_store.clone()));
        let kernel = kernel.map(|k| k.run(to_store.clone())).transpose()?;
        ready.store(true, Relaxed);
        tracing::info!(
            listen = %listen,
            als = %als.local_addr(),
            tier = ?meta.probes.tier,
            namespaces = options.namespaces.describe(),
            window = %options.window.display(),
            node = options.node_name.as_deref(),
            "the agent records"
        );

        let why = wait(&to_store, || store.is_finished() || serving.is_finished() || http.is_finished()).await?;
        ready.store(false, Relaxed);
        tracing::info!(why, "the agent ends");

        // As `record` does: the kernel's side ends first, so that every request in it has the time to be logged.
        let end = clock::sample();
        let kernel_end = kernel.map(kernel::Running::stop);
        let drain = if why == "failed" { Duration::ZERO } else { record::DRAIN };
        let als_stats = als.stop(drain).await;
        let served = serving.await.context("the access log endpoint panicked")?;
        forwarding.await.context("the access log endpoint panicked")?;
        let kernel_end = match kernel_end {
            Some(end) => Some(end.await?),
            None => None,
        };
        let last = Item::End { at: end, als: Box::new(als_stats), kernel: kernel_end };
        let _: Result<_, _> = to_store.send(last).await;
        drop(to_store);
        let _: Result<_, _> = end_http.send(true);
        let outcome = tokio::task::spawn_blocking(move || store.join()).await.context("waiting for the writer")?;
        outcome
            .map_err(|_| anyhow::anyhow!("the writer panicked: this is a defect in meshdiff, please report it"))??;
        wait_for(joining).await;
        if let Some(sender) = sender {
            tokio::task::spawn_blocking(move || sender.finish(LAST_SEGMENTS)).await.context("sending to the store")?;
        }
        if let Ok(ended) = tokio::time::timeout(LAST_CALLERS, http).await {
            ended.context("the HTTP server panicked")?.context("the HTTP server failed")?;
        }
        served?;
        if why == "failed" {
            return Err(anyhow::anyhow!("a part of the agent ended by itself; its logs say why").into());
        }
        tracing::info!("the window is closed");
        Ok(())
    }

    fn store(
        &self,
        options: &AgentOptions,
        tap: Tap,
        meta: Meta,
        als: &meshdiff_als::AlsHandle,
        pulse: &Pulse,
    ) -> Store {
        let sink = RollingSink::new(
            Arc::clone(&self.window),
            options.segment,
            &meta,
            pulse.clone(),
            Some(tap),
            Arc::clone(&self.proxies),
        );
        let pace = Pace { roll: ROLL, clock_samples: CLOCK_SAMPLES, forget: true };
        let pods = self.informers.as_ref().ok().map(|informers| {
            // What a segment that is being closed can be asked about.
            let back = options.segment + Duration::from_secs(60);
            record::pods::source(Arc::clone(informers), move || record::pods::ago(back))
        });
        let sink: Box<dyn CaptureSink> =
            if options.record.redact_paths { Box::new(WithoutPaths(sink)) } else { Box::new(sink) };
        Store::new(sink, meta, als.clone(), Arc::default(), pace).with_pods(pods)
    }
}

fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<std::thread::JoinHandle<T>, Failure> {
    Ok(std::thread::Builder::new().name(name.to_owned()).spawn(run).context("cannot start a thread")?)
}

/// Serves until the sender says to end.
fn serve_http(listener: TcpListener, app: App) -> (watch::Sender<bool>, tokio::task::JoinHandle<std::io::Result<()>>) {
    let (end, mut ended) = watch::channel(false);
    // Small answers go out at once.
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    let router = http::router(Arc::new(app));
    let serve = axum::serve(listener, router).with_graceful_shutdown(async move {
        drop(ended.wait_for(|&over| over).await);
    });
    (end, tokio::spawn(serve.into_future()))
}

/// Waits until the agent is to end; why it is.
async fn wait(to_store: &mpsc::Sender<Item>, failed: impl Fn() -> bool) -> Result<&'static str, Failure> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut second = tokio::time::interval(Duration::from_millis(500));
    loop {
        tokio::select! {
            _ = interrupt.recv() => return Ok("interrupted"),
            _ = terminate.recv() => return Ok("terminated"),
            _ = second.tick() => {
                // Without it, what came last before a silence would not be written.
                let _: Result<_, _> = to_store.try_send(Item::Tick);
                if failed() {
                    return Ok("failed");
                }
            }
        }
    }
}

/// Waits for the joins, but not for long: they are for metrics that nobody will read any more.
async fn wait_for(joining: std::thread::JoinHandle<()>) {
    let until = Instant::now() + live::PATIENCE;
    while !joining.is_finished() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
