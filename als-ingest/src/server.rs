//! The receiver's life: bind, serve, stop.

use crate::connection::Connection;
use crate::decoder::AlsBatch;
use crate::error::{BindError, ServeError};
use crate::service::{AccessLogs, Outlet, Shared};
use crate::settings::AlsSettings;
use crate::stats::AlsStats;
use crate::tls::{AlsTls, Reload};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Server, server::TcpIncoming};

/// HTTP/2 windows: a stream may send this much, and a connection with all its streams that, before it has to wait for us to read. Envoy drops
/// entries while it waits.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// Most bytes of one piece of data. Envoy's messages are a little larger than the protocol's default of 16 KiB.
const MAX_FRAME: u32 = 64 << 10;

/// Streams per connection. Envoy has one per worker, logger and type of entry.
const MAX_STREAMS: u32 = 1024;

/// After this much silence the kernel asks whether a peer is still there. HTTP/2's own pings would close the stream of an
/// Envoy that is merely starved, which is one of the things to be measured.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// How long peers have to take note that the receiver is gone, once it is.
const GOODBYE: Duration = Duration::from_secs(1);

/// How long a client may take for its TLS handshake, and how many may be at it at a time.
const HANDSHAKE: Duration = Duration::from_secs(10);
const HANDSHAKES: usize = 512;

/// Pause after an accept that failed for want of descriptors or memory: there is nothing to do but wait.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A receiver that is bound, and not yet serving.
#[derive(Debug)]
pub struct AlsServer {
    listener: TcpListener,
    handle: AlsHandle,
    finish: Finish,
    tls: Option<Arc<AlsTls>>,
}

/// What can be asked of a receiver while it serves, and after.
#[derive(Clone, Debug)]
pub struct AlsHandle {
    shared: Arc<Shared>,
    finished: watch::Receiver<bool>,
    local_addr: SocketAddr,
}

/// Says that serving is over, also when the future that served was dropped.
#[derive(Debug)]
struct Finish {
    shared: Arc<Shared>,
    finished: watch::Sender<bool>,
}

impl Drop for Finish {
    fn drop(&mut self) {
        self.shared.close();
        self.finished.send_replace(true);
    }
}

impl AlsServer {
    /// Takes the address. Connections queue in the kernel from here on; nothing reads them before
    /// [`serve`](Self::serve).
    ///
    /// # Errors
    /// If the port is taken or needs a privilege, or this machine does not have the address.
    pub fn bind(addr: SocketAddr, settings: AlsSettings) -> Result<Self, BindError> {
        let bound = TcpListener::bind(addr).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok((listener.local_addr()?, listener))
        });
        let (local_addr, listener) = bound.map_err(|source| BindError::new(addr, source))?;
        let shared = Arc::new(Shared::new(settings));
        let (finished, over) = watch::channel(false);
        let handle = AlsHandle { shared: Arc::clone(&shared), finished: over, local_addr };
        Ok(Self { listener, handle, finish: Finish { shared, finished }, tls: None })
    }

    /// Lets only clients in that speak TLS.
    #[must_use]
    pub fn with_tls(self, tls: AlsTls) -> Self {
        Self { tls: Some(Arc::new(tls)), ..self }
    }

    /// A handle to the receiver.
    #[must_use]
    pub fn handle(&self) -> AlsHandle {
        self.handle.clone()
    }

    /// Receives until [`AlsHandle::stop`], and puts what comes into `sink`. Returns when everything received has been
    /// taken from `sink` or its receiver is dropped; dropping this future ends the receiver at once.
    ///
    /// A `sink` that is full holds up the decoders, never the streams: what finds the queue before the decoders full is dropped and
    /// counted.
    ///
    /// # Errors
    /// If the runtime refuses the socket, or the gRPC server fails.
    pub async fn serve(self, sink: mpsc::Sender<AlsBatch>) -> Result<AlsStats, ServeError> {
        let Self { listener, handle, finish, tls } = self;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(ServeError::Listener)?;
        let (alive, mut decoding) = mpsc::channel(1);
        finish.shared.set_outlet(Some(Outlet::new(&finish.shared, &sink, decoders(), &alive)));
        drop((sink, alive));
        // `stop` may have come first, in which case it found no outlet to take away.
        if *finish.shared.closing.borrow() {
            finish.shared.close();
        }

        let incoming = TcpIncoming::from(listener).with_keepalive(Some(KEEPALIVE)).with_nodelay(Some(true));
        let (accepted, connections) = mpsc::channel(16);
        let server = Server::builder()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(MAX_STREAMS)
            .max_frame_size(MAX_FRAME)
            .add_service(AccessLogs::new(Arc::clone(&finish.shared)))
            .serve_with_incoming_shutdown(ReceiverStream::new(connections), closed(&finish.shared));
        let serving = async { tokio::join!(accept(incoming, tls, &finish.shared, accepted), server).1 };
        let goodbye = async {
            closed(&finish.shared).await;
            tokio::time::sleep(GOODBYE).await;
        };
        let result = tokio::select! {
            result = serving => result.map_err(ServeError::Server),
            // A peer that does not let go of its connection.
            () = goodbye => Ok(()),
        };

        finish.shared.close();
        let _: Option<std::convert::Infallible> = decoding.recv().await;
        drop(finish);
        result.map(|()| handle.stats())
    }
}

impl AlsHandle {
    /// Where the receiver listens: the port that the kernel chose, if port 0 was asked for.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// What was received so far.
    #[must_use]
    pub fn stats(&self) -> AlsStats {
        self.shared.counters.snapshot(self.shared.budget.used(), self.shared.assembly.used())
    }

    /// Stops the receiver: goes on for `drain` (Envoy flushes its entries once a second), then ends all streams, decodes
    /// what is queued and returns when that has been taken from the sink. The statistics are final then.
    ///
    /// Can be called again with a shorter `drain`, also while another call waits.
    pub async fn stop(&self, drain: Duration) -> AlsStats {
        let mut finished = self.finished.clone();
        let early = tokio::time::timeout(drain, finished.wait_for(|&over| over)).await;
        drop(early);
        self.shared.close();
        // An error says that the sender is gone, and with it the receiver.
        drop(finished.wait_for(|&over| over).await);
        self.stats()
    }
}

/// How many decoders there are: one for each thread of the runtime can work at the same time as the others.
fn decoders() -> usize {
    tokio::runtime::Handle::current().metrics().num_workers().max(1)
}

/// Resolves when the receiver closes.
fn closed(shared: &Shared) -> impl Future<Output = ()> + use<> {
    let mut closing = shared.closing.subscribe();
    async move {
        // An error says that the sender is gone: closed as well.
        drop(closing.wait_for(|&closing| closing).await);
    }
}

/// Accepts connections until the receiver closes. tonic's own loop would spin where the process has no descriptor left.
async fn accept(
    mut incoming: TcpIncoming,
    tls: Option<Arc<AlsTls>>,
    shared: &Arc<Shared>,
    accepted: mpsc::Sender<io::Result<Connection>>,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let accepting = async {
        while let Some(connection) = incoming.next().await {
            match connection {
                Ok(tcp) => match &tls {
                    None => {
                        if accepted.send(Ok(Connection::Plain(tcp))).await.is_err() {
                            return;
                        }
                    }
                    Some(tls) => {
                        // Clients that let us wait must not hold up the others, nor be too many.
                        let Ok(turn) = Arc::clone(&handshakes).acquire_owned().await else { return };
                        let acceptor = acceptor(tls, shared);
                        let (shared, accepted) = (Arc::clone(shared), accepted.clone());
                        tokio::spawn(async move {
                            if let Some(connection) = handshake(acceptor, tcp, &shared).await {
                                drop(accepted.send(Ok(connection)).await);
                            }
                            drop(turn);
                        });
                    }
                },
                Err(error) => {
                    shared.counters.accept_errors.fetch_add(1, Relaxed);
                    tracing::warn!(%error, "cannot accept a connection for access logs");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = closed(shared) => {}
    }
}

/// TLS with the certificates of now.
fn acceptor(tls: &AlsTls, shared: &Shared) -> TlsAcceptor {
    let (config, reload) = tls.config();
    match reload {
        Reload::Same => {}
        Reload::Done => {
            shared.counters.tls_reloads.fetch_add(1, Relaxed);
            tracing::info!("the certificates for access logs have changed and were read anew");
        }
        Reload::Failed(error) => {
            shared.counters.tls_reloads_failed.fetch_add(1, Relaxed);
            tracing::warn!(%error, "the certificates for access logs have changed and cannot be used; the ones before stay");
        }
    }
    TlsAcceptor::from(config)
}

async fn handshake(acceptor: TlsAcceptor, tcp: TcpStream, shared: &Shared) -> Option<Connection> {
    let peer = tcp.peer_addr().ok();
    let why = match tokio::time::timeout(HANDSHAKE, acceptor.accept(tcp)).await {
        Ok(Ok(tls)) => return Some(Connection::Tls(Box::new(tls))),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no handshake within {HANDSHAKE:?}"),
    };
    // Whoever can reach the port can fail: said the first time and then ever more rarely.
    let failed = shared.counters.tls_failed.fetch_add(1, Relaxed) + 1;
    if failed.is_power_of_two() {
        tracing::warn!(?peer, why, failed, "a connection for access logs failed its TLS handshake");
    }
    None
}
