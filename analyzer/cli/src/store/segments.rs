//! An agent's segments on their way to the store.

use super::Shipping;
use super::settle::{Neighbours, settle};
use crate::agent::Segment;
use crate::exit::Failure;
use anyhow::Context;
use meshdiff_capture::clickhouse::{Shipper, ShipperStats};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Segments that may wait for the one that is being prepared. Until then they stay on the disk, also beyond the window's limits.
const MOST_WAITING: usize = 8;
/// A file in a segment's folder which says that the store's spool has it: an agent that begins anew does not send the whole window again.
const PREPARED: &str = "in-spool";

/// Prepares segments for the store in a thread of its own, so that nobody who records waits for it.
#[derive(Debug)]
pub(crate) struct SegmentSender {
    shipper: Arc<Shipper>,
    queue: Mutex<Option<SyncSender<Arc<Segment>>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Segments that were passed over.
    shed: Arc<AtomicU64>,
}

impl SegmentSender {
    /// Begins with the segments that are there already and were not sent.
    pub(crate) fn start(shipping: &Shipping, there: Vec<Arc<Segment>>) -> Result<Self, Failure> {
        let shipper = Arc::new(shipping.start()?);
        let (queue, segments) = sync_channel::<Arc<Segment>>(MOST_WAITING);
        let shed = Arc::new(AtomicU64::new(0));
        let (to, lost) = (Arc::clone(&shipper), Arc::clone(&shed));
        let requests = shipping.with_requests();
        let thread = std::thread::Builder::new()
            .name("store-segments".to_owned())
            .spawn(move || {
                let all = there.into_iter().chain(segments);
                let prepared = |done: bool| {
                    lost.fetch_add(u64::from(!done), Relaxed);
                };
                if requests {
                    with_requests(all, |neighbours| prepared(prepare(&to, neighbours, true)));
                } else {
                    let alone = |of: &Path| prepare(&to, Neighbours { before: None, of, after: None }, false);
                    all.for_each(|segment| prepared(alone(segment.dir())));
                }
            })
            .context("cannot start a thread")?;
        Ok(Self { shipper, queue: Mutex::new(Some(queue)), thread: Mutex::new(Some(thread)), shed })
    }

    /// Takes a segment that was closed. Never waits.
    pub(crate) fn offer(&self, segment: &Arc<Segment>) {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.as_ref().is_none_or(|q| q.try_send(Arc::clone(segment)).is_err()) {
            self.shed.fetch_add(1, Relaxed);
            tracing::warn!(segment = %segment.dir().display(), "a segment is not sent to the store: too many wait to be prepared");
        }
    }

    /// What became of the segments; those that were passed over are the second.
    pub(crate) fn stats(&self) -> (ShipperStats, u64) {
        (self.shipper.stats(), self.shed.load(Relaxed))
    }

    /// Prepares what was taken, and sends it for as long as that may take. The rest waits in the spool for the next agent.
    pub(crate) fn finish(&self, within: Duration) {
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|t| t.join().is_err()) {
            tracing::error!(
                "preparing segments for the store panicked: this is a defect in meshdiff, please report it"
            );
        }
        self.shipper.end(within);
    }
}

/// Each segment with those before and after it: it is sent when the next one is there, or none comes any more.
fn with_requests(segments: impl Iterator<Item = Arc<Segment>>, send: impl Fn(Neighbours<'_>)) {
    let (mut before, mut held): (Option<Arc<Segment>>, Option<Arc<Segment>>) = (None, None);
    let neighbours = |before: &Option<Arc<Segment>>, of: &Segment, after: Option<&Segment>| {
        send(Neighbours { before: before.as_ref().map(|s| s.dir()), of: of.dir(), after: after.map(Segment::dir) });
    };
    for segment in segments {
        if let Some(of) = held.replace(Arc::clone(&segment)) {
            neighbours(&before, &of, Some(&segment));
            before = Some(of);
        }
    }
    if let Some(of) = held {
        neighbours(&before, &of, None);
    }
}

fn prepare(shipper: &Shipper, neighbours: Neighbours<'_>, requests: bool) -> bool {
    let dir = neighbours.of;
    let marker = dir.join(PREPARED);
    if marker.exists() {
        return true;
    }
    // Without them a report reads the rows.
    let requests = requests.then(|| settle(neighbours)).transpose().unwrap_or_else(|error| {
        tracing::warn!(error = format!("{error:#}"), segment = %dir.display(), "a segment goes to the store without its requests");
        None
    });
    match shipper.add_with(dir, requests.as_ref()) {
        Ok(()) => {
            // Without it the segment is sent again one day, and replaces itself.
            drop(std::fs::File::create(&marker));
            true
        }
        Err(error) => {
            tracing::error!(%error, segment = %dir.display(), "a segment cannot be sent to the store");
            false
        }
    }
}
