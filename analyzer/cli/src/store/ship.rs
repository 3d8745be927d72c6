//! Captures on their way to the store.

use super::ShipArgs;
use super::settle::{Neighbours, settle};
use super::store_url;
use crate::exit::Failure;
use anyhow::{Context, anyhow};
use meshdiff_capture::Capture;
use meshdiff_capture::clickhouse::{Shipper, ShipperOptions, StoreUrl};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Stores one capture with its requests and waits until it is there. `among`: captures that may precede or follow it.
pub(crate) fn ship_at_once(
    url: &StoreUrl,
    capture: &Path,
    among: &[PathBuf],
    node: Option<&str>,
    patience: Duration,
) -> Result<(), Failure> {
    let spool = tempfile::Builder::new().prefix("meshdiff-").tempdir().context("cannot make a folder for the store")?;
    let mut options = ShipperOptions::new(url.clone(), spool.path().to_owned());
    options.node = node.map(str::to_owned);
    options.spool_bytes = u64::MAX;
    options.longest_wait = Duration::from_secs(5);
    let shipper = Shipper::start(options)?;
    let requests = settle(near(capture, among)?)?;
    shipper.add_with(capture, Some(&requests))?;
    let stats = shipper.finish(patience);
    if stats.stored == 1 {
        return Ok(());
    }
    let why = stats.last_error.unwrap_or_else(|| "it took too long".to_owned());
    Err(anyhow!(
        "{} is not in the store: {why}. The capture is as it was: store it again with `meshdiff store {} --store URL`",
        capture.display(),
        capture.display()
    )
    .into())
}

/// Which of these captures precedes one, and which follows it.
fn near<'a>(capture: &'a Path, among: &'a [PathBuf]) -> Result<Neighbours<'a>, Failure> {
    let start = |path: &Path| {
        let meta = Capture::open(path)?.meta().clone();
        Ok::<_, Failure>((meta.host.boot_id, meta.host.hostname, meta.start.monotonic))
    };
    let own = start(capture)?;
    let mut found = Neighbours { before: None, of: capture, after: None };
    let (mut latest, mut earliest) = (None, None);
    for path in among.iter().map(PathBuf::as_path) {
        let other = start(path)?;
        if (&other.0, &other.1) != (&own.0, &own.1) {
            continue;
        }
        if other.2 < own.2 && latest.is_none_or(|l| l < other.2) {
            (latest, found.before) = (Some(other.2), Some(path));
        } else if other.2 > own.2 && earliest.is_none_or(|e| other.2 < e) {
            (earliest, found.after) = (Some(other.2), Some(path));
        }
    }
    Ok(found)
}

/// What an agent does to send its segments.
#[derive(Clone, Debug)]
pub(crate) struct Shipping {
    options: ShipperOptions,
    requests: bool,
}

impl Shipping {
    /// What was asked for, if it was: `window` is the agent's folder, `node` its node's name.
    pub(crate) fn of(args: &ShipArgs, window: &Path, node: Option<&str>) -> Result<Option<Self>, Failure> {
        let Some(store) = &args.store else { return Ok(None) };
        let spool: PathBuf = args.store_spool.clone().unwrap_or_else(|| window.join("spool"));
        let mut options = ShipperOptions::new(store_url(store)?, spool);
        options.spool_bytes = u64::from(args.store_spool_mib) << 20;
        options.node = node.map(str::to_owned);
        Ok(Some(Self { options, requests: args.store_requests }))
    }

    /// True if requests are sent as well.
    pub(crate) const fn with_requests(&self) -> bool {
        self.requests
    }

    /// Begins to send.
    pub(crate) fn start(&self) -> Result<Shipper, Failure> {
        Ok(Shipper::start(self.options.clone())?)
    }
}
