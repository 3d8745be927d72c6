//! The store's tables: the capture's, with columns that say which capture a row is of. Made from the capture's own schema.

use super::requests::{self, REQUESTS};
use crate::column::ColumnDoc;
use crate::table::Table;
use std::fmt::Write as _;

/// The table that says which captures are whole: a capture's row in it is written last.
pub(crate) const CAPTURES: &str = "captures";

/// The columns by which a row is known, whatever sends it how often.
pub(crate) const KEY: [(&str, &str, &str); 5] = [
    ("capture_id", "String", "The capture that the row is of."),
    ("capture_node", "LowCardinality(String)", "The node on which it was recorded."),
    (
        "segment",
        "Int64",
        "When that capture began, in ns since 1970: an agent stores a capture for each stretch of time.",
    ),
    ("part", "UInt32", "The row's part in the capture, in order."),
    ("row", "UInt32", "The row's place in the part."),
];

/// The columns of [`CAPTURES`].
pub(crate) const CAPTURE_COLUMNS: [(&str, &str, &str); 9] = [
    ("capture_id", "String", "The capture."),
    ("capture_node", "LowCardinality(String)", "The node on which it was recorded."),
    ("segment", "Int64", "When it began, in ns since 1970."),
    ("end_ns", "Int64", "When it ended, in ns since 1970."),
    ("boot_id", "String", "The node's boot: monotonic instants and socket cookies compare within one."),
    ("rows", "Map(String, UInt64)", "How many rows of each table belong to it."),
    ("meta", "String", "The capture's meta.json."),
    ("warnings", "Array(String)", "What could not be read of it when it was stored."),
    (
        "joined",
        "Array(String)",
        "The captures that were joined together to find its requests, itself among them; empty if `requests` has none of it.",
    ),
];

/// A column of a table that only the store has.
#[derive(Clone, Debug)]
pub(crate) struct StoreColumn {
    pub(crate) name: String,
    kind: String,
    codec: &'static str,
    doc: String,
}

impl StoreColumn {
    pub(crate) fn new(name: &str, kind: &str, doc: &str) -> Self {
        Self { name: name.to_owned(), kind: kind.to_owned(), codec: "ZSTD(1)", doc: doc.to_owned() }
    }

    pub(crate) fn with_codec(self, codec: &'static str) -> Self {
        Self { codec, ..self }
    }

    fn line(&self) -> String {
        line(&self.name, &self.kind, &format!(" CODEC({})", self.codec), &self.doc)
    }
}

const ROW_KEY: &str = "(capture_node, segment, capture_id, part, row)";
/// All rows of a capture are on one shard.
const BY_CAPTURE: &str = "cityHash64(capture_id)";

/// How the tables are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deployment {
    /// On one server.
    Single,
    /// On several: replicated by ClickHouse Keeper, sharded by capture. Uses the macros `{cluster}`, `{shard}` and `{replica}`.
    Cluster,
}

/// The statements that make the tables, in order.
///
/// # Errors
/// If a column of the capture has a type that nobody has said how to store: a defect.
pub(crate) fn statements(deployment: Deployment) -> Result<Vec<String>, String> {
    let mut out = Vec::new();
    for table in Table::ALL {
        let mut columns: Vec<String> = KEY.iter().map(|(name, kind, doc)| line(name, kind, "", doc)).collect();
        for column in table.columns() {
            let kind = store_type(&column.type_name)?;
            columns.push(line(column.name, &kind, codec(&column), column.meaning));
        }
        out.extend(table_statements(deployment, table.as_str(), &columns, ROW_KEY, BY_CAPTURE));
    }
    let mut columns: Vec<String> = KEY.iter().map(|(name, kind, doc)| line(name, kind, "", doc)).collect();
    columns.extend(requests::columns().iter().map(StoreColumn::line));
    // The two halves of a request are on one shard.
    let shard = "cityHash64(if(half_flow = '', capture_id, half_flow))";
    out.extend(table_statements(deployment, REQUESTS, &columns, ROW_KEY, shard));
    let columns: Vec<String> = CAPTURE_COLUMNS.iter().map(|(name, kind, doc)| line(name, kind, "", doc)).collect();
    out.extend(table_statements(deployment, CAPTURES, &columns, "(capture_node, segment, capture_id)", BY_CAPTURE));
    Ok(out)
}

/// The statements as a file.
///
/// # Errors
/// If a column of the capture has a type that nobody has said how to store: a defect.
pub fn sql(deployment: Deployment) -> Result<String, String> {
    let mut text = String::from(match deployment {
        Deployment::Single => {
            "-- meshdiff's tables on one ClickHouse server. `meshdiff store --create --store URL` does the same, and adds columns after an\n\
             -- upgrade. By hand: clickhouse-client --database meshdiff --multiquery < schema.sql\n"
        }
        Deployment::Cluster => {
            "-- meshdiff's tables on a cluster of ClickHouse servers: replicated, and sharded by capture. The servers' macros name {cluster},\n\
             -- {shard} and {replica}. By hand: clickhouse-client --database meshdiff --multiquery < schema-cluster.sql\n"
        }
    });
    text.push_str(
        "-- Made from the capture's schema: MESHDIFF_UPDATE_DOCS=1 cargo test -p meshdiff-capture --test clickhouse_schema writes it.\n",
    );
    for statement in statements(deployment)? {
        let _ = write!(text, "\n{statement};\n");
    }
    Ok(text)
}

/// What tables of an earlier version may lack: table, column, and the statement that adds it.
pub(crate) fn added_columns() -> Result<Vec<(String, String, String)>, String> {
    let mut out = Vec::new();
    let mut add = |table: &str, column: &str, line: String| {
        let statement = format!("ALTER TABLE `{table}` ADD COLUMN IF NOT EXISTS {line}");
        out.push((table.to_owned(), column.to_owned(), statement));
    };
    for table in Table::ALL {
        for column in table.columns() {
            let kind = store_type(&column.type_name)?;
            add(table.as_str(), column.name, line(column.name, &kind, codec(&column), column.meaning));
        }
    }
    requests::columns().iter().for_each(|column| add(REQUESTS, &column.name, column.line()));
    CAPTURE_COLUMNS.iter().for_each(|(name, kind, doc)| add(CAPTURES, name, line(name, kind, "", doc)));
    Ok(out)
}

/// Rows that are sent again replace themselves: the key says which row it is. Where inserts are deduplicated as well, they do not
/// even arrive twice.
fn table_statements(deployment: Deployment, table: &str, columns: &[String], key: &str, shard: &str) -> Vec<String> {
    let columns = columns.iter().map(|c| format!("    {c}")).collect::<Vec<_>>().join(",\n");
    let tail = format!("PARTITION BY toDate(intDiv(segment, 1000000000))\nORDER BY {key}");
    match deployment {
        Deployment::Single => vec![format!(
            "CREATE TABLE IF NOT EXISTS `{table}` (\n{columns}\n) ENGINE = ReplacingMergeTree\n{tail}\n\
             SETTINGS non_replicated_deduplication_window = 1000"
        )],
        Deployment::Cluster => vec![
            format!(
                "CREATE TABLE IF NOT EXISTS `{table}_local` ON CLUSTER '{{cluster}}' (\n{columns}\n) ENGINE = \
                 ReplicatedReplacingMergeTree('/clickhouse/tables/{{shard}}/{{database}}/{table}_local', '{{replica}}')\n{tail}\n\
                 SETTINGS replicated_deduplication_window = 1000"
            ),
            // The same row goes to the same shard each time: what replaces it meets it there.
            format!(
                "CREATE TABLE IF NOT EXISTS `{table}` ON CLUSTER '{{cluster}}' AS `{table}_local`\n\
                 ENGINE = Distributed('{{cluster}}', currentDatabase(), '{table}_local', {shard})"
            ),
        ],
    }
}

fn line(name: &str, kind: &str, codec: &str, doc: &str) -> String {
    let doc = doc.replace('\\', "\\\\").replace('\'', "\\'");
    format!("`{name}` {kind}{codec} COMMENT '{doc}'")
}

/// Times and sequence numbers grow: differences are smaller.
fn codec(column: &ColumnDoc) -> &'static str {
    let number = column.type_name.trim_end_matches('?');
    let grows = column.unit.starts_with("ns") || column.name.contains("seq") || column.name == "head_end";
    if grows && ["uint32", "uint64", "int64"].contains(&number) { " CODEC(Delta, ZSTD(1))" } else { " CODEC(ZSTD(1))" }
}

/// ClickHouse's type for one of the capture's.
fn store_type(name: &str) -> Result<String, String> {
    if let Some(plain) = name.strip_suffix('?') {
        return Ok(format!("Nullable({})", store_type(plain)?));
    }
    if let Some(item) = name.strip_prefix("list<").and_then(|n| n.strip_suffix('>')) {
        return Ok(format!("Array({})", store_type(item)?));
    }
    if let Some(fields) = name.strip_prefix("struct<").and_then(|n| n.strip_suffix('>')) {
        let field = |field: &str| {
            let (name, kind) = field.split_once(": ").ok_or_else(|| format!("{field:?} is no field"))?;
            Ok(format!("{name} {}", store_type(kind)?))
        };
        let fields: Result<Vec<String>, String> = fields.split(", ").map(field).collect();
        return Ok(format!("Tuple({})", fields?.join(", ")));
    }
    Ok(match name {
        "uint8" => "UInt8",
        "uint16" => "UInt16",
        "uint32" => "UInt32",
        "uint64" => "UInt64",
        "int8" => "Int8",
        "int16" => "Int16",
        "int32" => "Int32",
        "int64" => "Int64",
        "boolean" => "Bool",
        "uuid" => "UUID",
        "utf8" => "String",
        "map<utf8, utf8>" => "Map(String, String)",
        other => return Err(format!("nobody has said how ClickHouse stores {other}")),
    }
    .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_have_their_counterparts() {
        let of = |name| store_type(name).expect(name);
        assert_eq!(of("uint16?"), "Nullable(UInt16)");
        assert_eq!(of("list<utf8>"), "Array(String)");
        assert_eq!(of("list<struct<seq: uint32, at_ns: uint64>>"), "Array(Tuple(seq UInt32, at_ns UInt64))");
        assert!(store_type("decimal").is_err());
    }

    #[test]
    fn no_column_of_a_capture_has_the_name_of_a_key() {
        for table in Table::ALL {
            for column in table.columns() {
                assert!(KEY.iter().all(|(name, _, _)| *name != column.name), "{table}.{}", column.name);
            }
        }
        for column in requests::columns() {
            assert!(KEY.iter().all(|(name, _, _)| *name != column.name), "{}", column.name);
        }
    }
}
