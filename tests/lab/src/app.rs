//! The application of a pod: Bookinfo's shape, one thread per connection.
//!
//! Blocking threads rather than a runtime, for the time stamps: between the return of `read` and the clock there is
//! nothing but a vDSO call.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{MonotonicNs, duration_ns, sleep_until, spin_until, tighten_timers};
use crate::delay::{Delays, Site};
use crate::hop::{Caller, Context, DELAY, Destination, NONCE, PARENT, REQUEST_ID, ROOT};
use crate::http::{MessageReader, ReadError, Received, RequestHead, render};
use crate::truth::{Nonce, Record, ServerRecord};

const STACK: usize = 256 << 10;

/// What one application does.
#[derive(Debug)]
pub struct App {
    /// Its workload, such as `reviews-v2`.
    pub workload: String,
    /// Its service, such as `reviews`.
    pub service: String,
    /// Whom it asks before it answers.
    pub calls: Vec<Destination>,
    /// Ask all of them at once instead of one after the other.
    pub parallel: bool,
    /// Sends and logs.
    pub caller: Caller,
}

impl App {
    /// Serves until the process ends.
    ///
    /// # Errors
    /// When accepting fails for good.
    pub fn serve(self: &Arc<Self>, listener: &TcpListener) -> io::Result<()> {
        tighten_timers();
        accept_forever(listener, self, |app, stream, peer| app.connection(stream, peer))
    }

    fn connection(&self, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
        let local = stream.local_addr()?;
        let mut reader = MessageReader::new(stream);
        loop {
            let received = match reader.request() {
                Ok(received) => received,
                Err(ReadError::Malformed(why)) => {
                    eprintln!("{}: refusing a request of {peer}: {why}", self.workload);
                    return reader.stream().write_all(&render(
                        "HTTP/1.1 400 Bad Request",
                        &[("connection", "close")],
                        0,
                    ));
                }
                Err(_) => return Ok(()),
            };
            let handled = self.handle(&received);
            let send_ns = MonotonicNs::now();
            let written = reader.stream().write_all(&handled.response);
            let sent_ns = MonotonicNs::now();
            self.caller.log.append(&Record::Server(self.record(received, handled, (local, peer), (send_ns, sent_ns))));
            written?;
        }
    }

    fn handle(&self, received: &Received<RequestHead>) -> Handled {
        let start = MonotonicNs::now();
        let headers = &received.head.headers;
        let delays: Delays = headers.get(DELAY).and_then(|text| text.parse().ok()).unwrap_or_default();
        let delay = self.wait(&delays, start);
        let context = Context::of_request(headers);
        let failures = if received.head.path == "/healthz" { Vec::new() } else { self.ask_others(&context) };
        let status = if failures.is_empty() { 200 } else { 502 };
        let start_line = if failures.is_empty() { "HTTP/1.1 200 OK" } else { "HTTP/1.1 502 Bad Gateway" };
        let fields = [("content-type", "application/octet-stream"), ("x-lab-served-by", self.workload.as_str())];
        let response = render(start_line, &fields, context.bytes.response);
        Handled { start, delay, status, response, response_bytes: context.bytes.response }
    }

    /// Waits as asked: what was asked, and how long it really was.
    fn wait(&self, delays: &Delays, start: MonotonicNs) -> Option<(Duration, Duration)> {
        let sleep = delays.at(&self.workload, &self.service, Site::App);
        let spin = delays.at(&self.workload, &self.service, Site::AppSpin);
        let asked = sleep.unwrap_or_default() + spin.unwrap_or_default();
        if asked.is_zero() {
            return sleep.or(spin).map(|_| (Duration::ZERO, Duration::ZERO));
        }
        if let Some(sleep) = sleep.filter(|sleep| !sleep.is_zero()) {
            sleep_until(start.plus(sleep));
        }
        if let Some(spin) = spin {
            spin_until(MonotonicNs::now().plus(spin));
        }
        Some((asked, MonotonicNs::now().since(start)))
    }

    fn ask_others(&self, context: &Context) -> Vec<String> {
        let ask = |to: &Destination| match self.caller.call(to, context, None).status {
            Ok(status) if status < 500 => None,
            Ok(status) => Some(format!("{} answered {status}", to.host)),
            Err(why) => Some(format!("{}: {why}", to.host)),
        };
        match self.calls.as_slice() {
            [first, rest @ ..] if self.parallel && !rest.is_empty() => std::thread::scope(|scope| {
                let others: Vec<_> = rest.iter().map(|to| scope.spawn(move || ask(to))).collect();
                let mine = ask(first);
                let join = |other: std::thread::ScopedJoinHandle<'_, _>| {
                    other.join().unwrap_or_else(|_| Some("the calling thread panicked".to_owned()))
                };
                mine.into_iter().chain(others.into_iter().filter_map(join)).collect()
            }),
            all => all.iter().filter_map(ask).collect(),
        }
    }

    fn record(
        &self,
        received: Received<RequestHead>,
        handled: Handled,
        (local, peer): (SocketAddr, SocketAddr),
        (send_ns, sent_ns): (MonotonicNs, MonotonicNs),
    ) -> ServerRecord {
        let headers = &received.head.headers;
        let nonce = |name| headers.get(name).and_then(|text| text.parse::<Nonce>().ok());
        ServerRecord {
            pod: self.workload.clone(),
            nonce: nonce(NONCE),
            parent: nonce(PARENT),
            root: nonce(ROOT),
            request_id: headers.get(REQUEST_ID).map(str::to_owned),
            peer,
            local,
            recv_ns: received.head_end,
            body_end_ns: received.end,
            handler_start_ns: handled.start,
            delay_requested_ns: handled.delay.map(|(asked, _)| duration_ns(asked)),
            delay_actual_ns: handled.delay.map(|(_, actual)| duration_ns(actual)),
            send_ns,
            sent_ns,
            status: handled.status,
            request_bytes: received.body_bytes,
            response_bytes: handled.response_bytes,
            method: received.head.method,
            path: received.head.path,
        }
    }
}

struct Handled {
    start: MonotonicNs,
    delay: Option<(Duration, Duration)>,
    status: u16,
    response: Vec<u8>,
    response_bytes: usize,
}

/// Accepts for ever, one small thread per connection. A connection's own failure ends that connection only.
pub(crate) fn accept_forever<T: Send + Sync + 'static>(
    listener: &TcpListener,
    shared: &Arc<T>,
    serve: fn(&T, TcpStream, SocketAddr) -> io::Result<()>,
) -> io::Result<()> {
    loop {
        let (stream, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            // The peer was gone before it was accepted, or descriptors ran out for a moment: neither ends the server.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        stream.set_nodelay(true)?;
        let shared = Arc::clone(shared);
        std::thread::Builder::new().stack_size(STACK).spawn(move || {
            // A reset by the peer is how sidecars end connections; there is nobody to tell.
            let _ = serve(&shared, stream, peer);
        })?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Pool;
    use crate::hop::Bytes;
    use crate::logbook::Logbook;
    use crate::truth::Truth;

    /// An application on loopback without sidecars, and where it listens.
    fn start(dir: &std::path::Path, workload: &str, calls: Vec<Destination>, parallel: bool) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let log = Logbook::open(&dir.join(format!("{workload}.ndjson"))).unwrap();
        let service = workload.split('-').next().unwrap().to_owned();
        let caller = Caller { pod: workload.to_owned(), pool: Pool::default(), log };
        let app = Arc::new(App { workload: workload.to_owned(), service, calls, parallel, caller });
        std::thread::spawn(move || app.serve(&listener));
        address
    }

    fn to(host: &str, address: SocketAddr) -> Destination {
        Destination { host: host.into(), address, path: format!("/{host}/0") }
    }

    fn wait_for(dir: &std::path::Path, servers: usize) -> Truth {
        let deadline = MonotonicNs::now().plus(Duration::from_secs(10));
        loop {
            let truth = Truth::read([dir]).unwrap();
            if truth.servers().len() >= servers {
                return truth;
            }
            assert!(
                MonotonicNs::now() < deadline,
                "only {} of {servers} served requests are logged",
                truth.servers().len()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn every_hop_is_logged_at_both_ends_with_its_delays() {
        for parallel in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let ratings = start(dir.path(), "ratings-v1", Vec::new(), false);
            let reviews = start(dir.path(), "reviews-v2", vec![to("ratings", ratings)], false);
            let details = start(dir.path(), "details-v1", Vec::new(), false);
            let both = vec![to("details", details), to("reviews", reviews)];
            let page = start(dir.path(), "productpage-v1", both, parallel);
            let log = Logbook::open(&dir.path().join("loadgen.ndjson")).unwrap();
            let load = Caller { pod: "loadgen".into(), pool: Pool::default(), log };
            let context = Context::root(
                Some("reviews.app=3ms;ratings.app_spin=500us".into()),
                Bytes { request: 3000, response: 5000 },
            );
            for _ in 0..2 {
                assert_eq!(load.call(&to("productpage", page), &context, None).status, Ok(200));
            }
            load.log.flush();
            let truth = wait_for(dir.path(), 8);
            assert_eq!((truth.clients().len(), truth.servers().len(), truth.unreadable_lines()), (8, 8, 0));
            for sent in truth.clients() {
                let served = truth.server_by_nonce(sent.nonce);
                assert_eq!(served.len(), 1);
                assert_eq!(
                    (served[0].peer, served[0].parent, served[0].root),
                    (sent.local, sent.parent, Some(sent.root))
                );
                assert!(sent.send_start_ns <= served[0].recv_ns && served[0].send_ns <= sent.recv_end_ns.unwrap());
                assert_eq!((served[0].request_bytes, sent.response_bytes, sent.method.as_str()), (3000, 5000, "POST"));
                assert_eq!(truth.client_at(sent.local, served[0].recv_ns), Some(sent));
                assert_eq!(truth.server_at(served[0].local, served[0].peer, served[0].recv_ns), Some(served[0]));
                let least = match sent.host.as_str() {
                    "reviews" => 3_000_000,
                    "ratings" => 500_000,
                    _ => 0,
                };
                assert!(truth.app_delay_ns(sent.nonce).unwrap_or(0) >= least);
                assert_eq!(truth.app_delay_ns(sent.nonce).is_some(), least > 0);
            }
            let reused = truth.clients().iter().filter(|sent| sent.connect_ns.is_none()).count();
            assert_eq!(reused, 4, "the second round reuses every connection");
        }
    }

    #[test]
    fn a_callee_that_is_down_makes_the_answer_a_502() {
        let dir = tempfile::tempdir().unwrap();
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let page = start(dir.path(), "productpage-v1", vec![to("details", nobody)], false);
        let log = Logbook::open(&dir.path().join("loadgen.ndjson")).unwrap();
        let load = Caller { pod: "loadgen".into(), pool: Pool::default(), log };
        let context = Context::root(None, Bytes::default());
        assert_eq!(load.call(&to("productpage", page), &context, None).status, Ok(502));
        let truth = wait_for(dir.path(), 1);
        let failed = truth.clients().iter().find(|sent| sent.host == "details").expect("the failed call is logged");
        assert!(failed.error.as_deref().is_some_and(|why| why.contains("connecting failed")));
    }
}
