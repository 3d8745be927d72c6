//! The documentation of the schema, made from the schema.

use crate::table::Table;
use std::fmt::Write;

/// One Markdown table for each table of a capture: column, type, unit, meaning. `README.md` of this package holds it, and a
/// test proves that it is up to date.
#[must_use]
pub fn schema_markdown() -> String {
    let mut out = String::new();
    for table in Table::ALL {
        let about = match table {
            Table::Sockets => {
                "One row for each TCP socket, again when more is known of it: of equal cookies the last row counts."
            }
            Table::Messages => "One row for each run of bytes in one direction of one socket, with its instants.",
            Table::SocketMetrics => {
                "What each socket did in each window of 10 s in which something happened; rows of one socket and window add up."
            }
            Table::Http2Streams => {
                "One row for what a socket sent of an HTTP/2 stream; several make one stream where its number is the same."
            }
            Table::AccessLogs => "One row for each access log entry of an Envoy; Envoy's field names.",
            Table::Proxies => "One row for each Envoy that reported; of equal nodes the last row counts.",
            Table::Processes => "One row for each process that owns a socket; of equal tgids the last row counts.",
            Table::Events => "Single socket events. Only recorded with `--raw`.",
        };
        let _ = writeln!(
            out,
            "### `{table}/part-*.parquet`\n\n{about}\n\n| column | type | unit | meaning |\n|---|---|---|---|"
        );
        for column in table.columns() {
            let _ =
                writeln!(out, "| `{}` | {} | {} | {} |", column.name, column.type_name, column.unit, column.meaning);
        }
        out.push('\n');
    }
    out
}
