//! Captures in ClickHouse: `store` and `--store` put them there, `report --store` reads them.

mod accepted;
mod args;
mod line;
mod read;
mod segments;
mod settle;
mod ship;
mod sum;

pub(crate) use args::{ShipArgs, StoreArgs, store_url};
pub(crate) use read::{Stored, gather};
pub(crate) use segments::SegmentSender;
pub(crate) use ship::{Shipping, ship_at_once};
pub(crate) use sum::{SummedReport, summed};

use crate::args::RecordArgs;
use crate::exit::Failure;
use crate::{cluster, record};
use meshdiff_capture::clickhouse::{Store, StoreUrl};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long `record` tries to store what it recorded.
const PATIENCE: Duration = Duration::from_secs(30);

/// `meshdiff record`, and what it recorded into the store, if that was asked for.
pub(crate) fn record(args: RecordArgs) -> Result<(), Failure> {
    // What can be refused is refused before anything is recorded.
    let url = args.store.as_deref().map(store_url).transpose()?;
    let output = args.output.clone();
    if args.is_of_a_cluster() {
        cluster::record(&args)?;
    } else {
        record::run(&record::Options::try_from(args)?)?;
    }
    if let Some(url) = url {
        ship(&url, &output, &[], None, PATIENCE)?;
    }
    Ok(())
}

/// Stores a capture, or those of all nodes of a recording in a cluster.
fn ship(
    url: &StoreUrl,
    output: &Path,
    among: &[PathBuf],
    node: Option<&str>,
    patience: Duration,
) -> Result<(), Failure> {
    match cluster::nodes_of(output)? {
        Some(nodes) => {
            for (node, capture) in nodes {
                ship_at_once(url, &capture, &[], Some(&node), patience)?;
            }
        }
        None => ship_at_once(url, output, among, node, patience)?,
    }
    eprintln!("Stored {} in {url}.", output.display());
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
        ship(&url, capture, &args.captures, args.node.as_deref(), args.patience)?;
    }
    if !args.create && args.captures.is_empty() {
        return Err(Failure::Usage("nothing to do: give --create, or captures to store".to_owned()));
    }
    Ok(())
}
