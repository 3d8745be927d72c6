//! Captures in ClickHouse: `store` and `--store` put them there, `report --store` reads them.

mod args;
mod read;
mod segments;
mod ship;

pub(crate) use args::{ShipArgs, StoreArgs, store_url};
pub(crate) use read::{Stored, gather};
pub(crate) use segments::SegmentSender;
pub(crate) use ship::{Shipping, ship_at_once};

use crate::args::RecordArgs;
use crate::exit::Failure;
use crate::record;
use meshdiff_capture::clickhouse::Store;
use std::time::Duration;

/// How long `record` tries to store what it recorded.
const PATIENCE: Duration = Duration::from_secs(30);

/// `meshdiff record`, and what it recorded into the store, if that was asked for.
pub(crate) fn record(args: RecordArgs) -> Result<(), Failure> {
    // What can be refused is refused before anything is recorded.
    let url = args.store.as_deref().map(store_url).transpose()?;
    let options = record::Options::try_from(args)?;
    record::run(&options)?;
    if let Some(url) = url {
        ship_at_once(&url, &options.output, None, PATIENCE)?;
        eprintln!("Stored {} in {url}.", options.output.display());
    }
    Ok(())
}

/// `meshdiff store`.
pub(crate) fn run(args: &StoreArgs) -> Result<(), Failure> {
    let url = store_url(&args.store)?;
    if args.create {
        Store::open(url.clone())?.create_tables()?;
        eprintln!("The tables are there: {url}.");
    }
    for capture in &args.captures {
        ship_at_once(&url, capture, args.node.as_deref(), args.patience)?;
        eprintln!("Stored {} in {url}.", capture.display());
    }
    if !args.create && args.captures.is_empty() {
        return Err(Failure::Usage("nothing to do: give --create, or captures to store".to_owned()));
    }
    Ok(())
}
