//! Where the store is, and what goes there.

use crate::args::duration;
use crate::exit::Failure;
use clap::Args;
use meshdiff_capture::clickhouse::StoreUrl;
use std::path::PathBuf;
use std::time::Duration;

/// Holds the password, where the address does not: command lines are seen by everybody on the machine.
const PASSWORD: &str = "MESHDIFF_STORE_PASSWORD";

/// Put captures into a ClickHouse, for reports past what one machine holds.
///
/// What is stored again replaces itself. Reports read it with `meshdiff report --store`. The password can be in MESHDIFF_STORE_PASSWORD
/// instead of the address.
#[derive(Debug, Args)]
pub(crate) struct StoreArgs {
    /// The captures, as `meshdiff record` wrote them
    #[arg(value_name = "DIR")]
    pub(crate) captures: Vec<PathBuf>,
    /// The store: clickhouse://USER:PASSWORD@HOST:8123/DATABASE, with ?secure=true for HTTPS
    #[arg(long, value_name = "URL")]
    pub(crate) store: String,
    /// Make the tables that are missing, and columns that tables of an earlier version lack
    #[arg(long)]
    pub(crate) create: bool,
    /// Name of the node on which they were recorded; their host's if left out
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// How long to try again when the store does not answer
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30s")]
    pub(crate) patience: Duration,
}

/// How an agent sends its segments to a store.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Store")]
pub(crate) struct ShipArgs {
    /// Send each segment to this ClickHouse as well: clickhouse://USER:PASSWORD@HOST:8123/DATABASE, with ?secure=true for HTTPS. The
    /// password can be in MESHDIFF_STORE_PASSWORD instead
    #[arg(long, value_name = "URL", env = "MESHDIFF_STORE", hide_env_values = true)]
    pub(crate) store: Option<String>,
    /// Folder for what the store has not taken yet; `spool` in the window if left out
    #[arg(long, value_name = "DIR", requires = "store")]
    pub(crate) store_spool: Option<PathBuf>,
    /// How much may wait there, in MiB; the oldest segments are dropped and counted beyond that
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) store_spool_mib: u32,
    /// Join the requests of each segment here and send them as well, so that reports are summed up in the store: takes memory for three
    /// segments at once, and sends each segment when the next one has ended
    #[arg(long, requires = "store", env = "MESHDIFF_STORE_REQUESTS")]
    pub(crate) store_requests: bool,
}

/// Understands a store's address.
pub(crate) fn store_url(text: &str) -> Result<StoreUrl, Failure> {
    let url: StoreUrl =
        text.parse().map_err(|e: meshdiff_capture::clickhouse::BadStoreUrl| Failure::Usage(e.to_string()))?;
    Ok(match std::env::var(PASSWORD) {
        Ok(password) => url.or_password(&password),
        Err(_) => url,
    })
}
