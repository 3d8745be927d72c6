//! Captures on their way to the store.

use super::ShipArgs;
use super::store_url;
use crate::exit::Failure;
use anyhow::{Context, anyhow};
use meshdiff_capture::clickhouse::{Shipper, ShipperOptions, StoreUrl};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Stores one capture and waits until it is there.
pub(crate) fn ship_at_once(
    url: &StoreUrl,
    capture: &Path,
    node: Option<&str>,
    patience: Duration,
) -> Result<(), Failure> {
    let spool = tempfile::Builder::new().prefix("meshdiff-").tempdir().context("cannot make a folder for the store")?;
    let mut options = ShipperOptions::new(url.clone(), spool.path().to_owned());
    options.node = node.map(str::to_owned);
    options.spool_bytes = u64::MAX;
    options.longest_wait = Duration::from_secs(5);
    let shipper = Shipper::start(options)?;
    shipper.add(capture)?;
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

/// What an agent does to send its segments.
#[derive(Clone, Debug)]
pub(crate) struct Shipping {
    options: ShipperOptions,
}

impl Shipping {
    /// What was asked for, if it was: `window` is the agent's folder, `node` its node's name.
    pub(crate) fn of(args: &ShipArgs, window: &Path, node: Option<&str>) -> Result<Option<Self>, Failure> {
        let Some(store) = &args.store else { return Ok(None) };
        let spool: PathBuf = args.store_spool.clone().unwrap_or_else(|| window.join("spool"));
        let mut options = ShipperOptions::new(store_url(store)?, spool);
        options.spool_bytes = u64::from(args.store_spool_mib) << 20;
        options.node = node.map(str::to_owned);
        Ok(Some(Self { options }))
    }

    /// Begins to send.
    pub(crate) fn start(&self) -> Result<Shipper, Failure> {
        Ok(Shipper::start(self.options.clone())?)
    }
}
