//! The questions that a report asks of the store.
//!
//! Which rows of a namespace's report can be left out without changing it? A hop is told by the sockets of its two pods, by what their
//! proxies logged, and, for the time that a server waited for others, by the hops that it made meanwhile. All of these are tied by
//! addresses: sockets name both ends, log entries up to four and their proxy's. So the pods that matter are those of the namespace, those
//! that share an address with these, and those that share one with them; every other row cannot meet a row of a hop of the namespace.
//! Only what pods of the recording have as their own leads on: a name server or the agent, with which everybody talks and of which nothing
//! was recorded, ties nobody to anybody.

use super::client::Query;
use super::encode::quoted;
use crate::column::ColumnDoc;
use crate::table::Table;
use serde::Deserialize;

/// The captures that are asked for: one node's, of one boot.
#[derive(Clone, Debug)]
pub(crate) struct Group<'a> {
    pub(crate) node: &'a str,
    /// The first and the last segment.
    pub(crate) segments: (i64, i64),
    /// All of its captures, as a list with commas.
    pub(crate) all: &'a str,
    /// Keep what matters to a namespace.
    pub(crate) kept: Option<&'a Kept>,
    /// Keep what lines are made of: who talked with whom, and what was spoken.
    pub(crate) lines_only: bool,
}

/// The pods that matter to a namespace, as lists with commas.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Kept {
    /// Their network namespaces.
    pub(crate) netns: String,
    /// Their addresses, and those with which they talked.
    pub(crate) addresses: String,
}

impl Group<'_> {
    fn bind(&self, query: Query, ids: &str) -> Query {
        let query = query
            .with("node", self.node)
            .with("from", self.segments.0)
            .with("to", self.segments.1)
            .with("ids", ids)
            // Rows of one key are in one partition: their segment is a part of it.
            .setting("do_not_merge_across_partitions_select_final", 1);
        match self.kept {
            Some(kept) => query.with("all", self.all).with("netns", &kept.netns).with("addresses", &kept.addresses),
            None => query,
        }
    }

    /// Which pods matter to a namespace.
    pub(crate) fn kept(&self, namespace: &str) -> Query {
        let all = "c.capture_node = {node:String} AND c.segment BETWEEN {from:Int64} AND {to:Int64} \
                   AND c.capture_id IN (SELECT arrayJoin(splitByChar(',', {ids:String})))";
        let sql = format!(
            "{} SELECT (SELECT arrayStringConcat(arraySort(groupUniqArray(toString(netns))), ',') FROM places \
             WHERE address IN (SELECT address FROM pods)) AS netns, \
             (SELECT arrayStringConcat(arraySort(groupUniqArray(address)), ',') FROM pods) AS addresses FORMAT JSONEachRow",
            PODS.replace("ALL_OF_c", all)
        );
        Self { kept: None, ..self.clone() }.bind(Query::new(sql).with("namespace", namespace), self.all)
    }

    /// Rows of a table, as they were stored or already put together.
    pub(crate) fn rows(&self, table: Table, ids: &str) -> Query {
        let columns = table.columns();
        let names: Vec<String> = columns.iter().map(|c| format!("t.{}", quoted(c.name))).collect();
        let plain = names.join(", ");
        let (select, tail) = match table {
            Table::Sockets => (plain, last_of("cookie")),
            Table::Proxies => (plain, last_of("node")),
            Table::Processes => (plain, last_of("tgid")),
            Table::SocketMetrics => match columns.iter().map(summed).collect::<Option<Vec<String>>>() {
                Some(sums) => (
                    sums.join(", "),
                    "GROUP BY t.cookie, t.window_start_ns ORDER BY t.cookie, t.window_start_ns".to_owned(),
                ),
                // A column of which nobody has said how it adds up: the reader does.
                None => (plain, IN_ORDER.to_owned()),
            },
            Table::Messages | Table::Http2Streams | Table::AccessLogs | Table::Events => (plain, IN_ORDER.to_owned()),
        };
        let kept = match self.kept.and_then(|_| matters(table)) {
            Some(condition) => format!(" AND {condition}"),
            None => String::new(),
        };
        let few =
            self.lines_only.then(|| of_lines(table)).flatten().map_or_else(String::new, |few| format!(" AND {few}"));
        let sql = format!(
            "SELECT {select} FROM {} AS t FINAL WHERE {CHOSEN}{kept}{few} {tail} FORMAT Parquet",
            quoted(table.as_str())
        );
        let query = Query::new(sql)
            .setting("output_format_parquet_string_as_string", 1)
            .setting("output_format_parquet_compression_method", "zstd");
        self.bind(query, ids)
    }

    /// How many rows each capture has in each table.
    pub(crate) fn counts(&self, ids: &str) -> Query {
        let of = |table: Table| {
            format!(
                "SELECT '{table}' AS name, t.capture_id AS capture_id, count() AS rows FROM {} AS t FINAL WHERE {CHOSEN} GROUP BY t.capture_id",
                quoted(table.as_str())
            )
        };
        let all: Vec<String> = STORED.into_iter().map(of).collect();
        let sql = format!("{} FORMAT JSONEachRow", all.join(" UNION ALL "));
        Self { kept: None, ..self.clone() }.bind(Query::new(sql).setting(QUOTE, 0), ids)
    }
}

/// The tables that are stored: all but single events.
pub(crate) const STORED: [Table; 7] = [
    Table::Sockets,
    Table::Messages,
    Table::SocketMetrics,
    Table::Http2Streams,
    Table::AccessLogs,
    Table::Proxies,
    Table::Processes,
];

/// 64-bit numbers as numbers, not as texts.
pub(crate) const QUOTE: &str = "output_format_json_quote_64bit_integers";

const CHOSEN: &str = "t.capture_node = {node:String} AND t.segment BETWEEN {from:Int64} AND {to:Int64} AND \
     t.capture_id IN (SELECT arrayJoin(splitByChar(',', {ids:String})))";
const IN_ORDER: &str = "ORDER BY t.segment, t.capture_id, t.part, t.row";

/// Rows that supersede each other: the last one.
fn last_of(key: &str) -> String {
    format!("ORDER BY t.{key}, t.segment DESC, t.capture_id DESC, t.part DESC, t.row DESC LIMIT 1 BY t.{key}")
}

/// How a column of a socket's metrics adds up over the rows of one window; `None` if nobody has said.
fn summed(column: &ColumnDoc) -> Option<String> {
    let name = quoted(column.name);
    // sumMap leaves out keys of which all sums are 0: how many rows have them is never 0.
    let list = |key: &str, kind: &str| {
        format!(
            "CAST(arrayMap((k, n) -> (k, n), (sumMap(arrayMap(x -> x.{key}, t.{name}), arrayMap(x -> x.count, t.{name}), \
             arrayMap(x -> 1, t.{name})) AS sum_{0}).1, sum_{0}.2), 'Array(Tuple({key} {kind}, count UInt64))') AS {name}",
            column.name
        )
    };
    Some(match column.type_name.as_str() {
        "uint64" if ["cookie", "window_start_ns"].contains(&column.name) => format!("t.{name}"),
        "uint64?" if column.name.ends_with("_min") => format!("min(t.{name}) AS {name}"),
        "uint64?" if column.name.ends_with("_max") => format!("max(t.{name}) AS {name}"),
        "uint64" | "uint64?" => format!("sum(t.{name}) AS {name}"),
        "list<struct<index: int16, count: uint64>>" => list("index", "Int16"),
        "list<struct<reason: utf8, count: uint64>>" => list("reason", "String"),
        _ => return None,
    })
}

/// Which rows matter to the namespace; all of those tables that are small, or that say who is who.
fn matters(table: Table) -> Option<&'static str> {
    match table {
        Table::Sockets => Some("t.netns IN (SELECT toUInt32OrZero(arrayJoin(splitByChar(',', {netns:String}))))"),
        Table::Messages | Table::Http2Streams | Table::SocketMetrics => Some(
            "t.cookie IN (SELECT c.cookie FROM sockets AS c WHERE c.capture_node = {node:String} \
             AND c.segment BETWEEN {from:Int64} AND {to:Int64} AND c.capture_id IN (SELECT arrayJoin(splitByChar(',', {all:String}))) \
             AND c.netns IN (SELECT toUInt32OrZero(arrayJoin(splitByChar(',', {netns:String})))))",
        ),
        // Entries of TCP connections say who relays what for whom, and are counted.
        Table::AccessLogs => Some(
            "(t.protocol = 'tcp' OR hasAny(splitByChar(',', {addresses:String}), [ifNull(t.downstream_direct_remote_ip, ''), \
             ifNull(t.downstream_local_ip, ''), ifNull(t.upstream_local_ip, ''), ifNull(t.upstream_remote_ip, '')]) \
             OR t.node IN (SELECT p.node FROM proxies AS p WHERE p.capture_node = {node:String} \
             AND p.segment BETWEEN {from:Int64} AND {to:Int64} AND has(splitByChar(',', {addresses:String}), ifNull(p.address, ''))))",
        ),
        Table::Proxies | Table::Processes | Table::Events => None,
    }
}

/// Which rows tell the lines between programs: of each direction of a socket the first and the last message, which tell the extent of
/// its sequence numbers, and the first of each content; of the entries that speak of one connection one for each second. All of what is
/// small.
fn of_lines(table: Table) -> Option<String> {
    const PLACE: &str = "t.segment, t.capture_id, t.part, t.row";
    let first = |table: Table, partitions: &[(&str, &str)]| {
        let of = |(by, order): &(&str, &str)| {
            let place = PLACE.replace(", ", &format!(" {order}, "));
            format!(
                "SELECT {PLACE} FROM {table} AS t FINAL WHERE {CHOSEN} ORDER BY {by}, {place} {order} LIMIT 1 BY {by}"
            )
        };
        let all: Vec<String> = partitions.iter().map(|p| format!("SELECT * FROM ({})", of(p))).collect();
        format!("({PLACE}) IN ({})", all.join(" UNION ALL "))
    };
    match table {
        Table::Messages => Some(first(
            table,
            &[
                ("t.cookie, t.direction", "ASC"),
                ("t.cookie, t.direction", "DESC"),
                ("t.cookie, t.direction, t.content", "ASC"),
            ],
        )),
        Table::Http2Streams => Some(first(table, &[("t.cookie, t.grpc", "ASC")])),
        Table::AccessLogs => Some(format!(
            "(t.protocol = 'tcp' OR {})",
            first(
                table,
                &[(
                    "t.node, t.protocol, t.access_log_type, t.downstream_direct_remote_ip, t.downstream_direct_remote_port, \
                     t.upstream_local_ip, t.upstream_local_port, intDiv(t.start_time_ns, 1000000000)",
                    "ASC"
                )]
            )
        )),
        Table::Sockets | Table::SocketMetrics | Table::Proxies | Table::Processes | Table::Events => None,
    }
}

/// `pods`: the addresses that matter; `places`: which network namespace has which.
///
/// Loopback addresses are every pod's and tie none together; within a pod its network namespace does.
const PODS: &str = "WITH \
     proxy AS (SELECT c.node AS node, any(c.address) AS address FROM proxies AS c WHERE ALL_OF_c GROUP BY c.node), \
     entries AS (SELECT DISTINCT arrayFilter(x -> x != '', [ifNull(c.downstream_direct_remote_ip, ''), \
       ifNull(c.downstream_local_ip, ''), ifNull(c.upstream_local_ip, ''), ifNull(c.upstream_remote_ip, ''), ifNull(proxy.address, '')]) \
       AS addresses, (position(ifNull(c.upstream_cluster, ''), concat('.', {namespace:String}, '.')) > 0 \
       OR JSONExtractString(ifNull(c.downstream_peer, ''), 'namespace') = {namespace:String} \
       OR JSONExtractString(ifNull(c.upstream_peer, ''), 'namespace') = {namespace:String}) AS ours \
       FROM access_logs AS c LEFT ANY JOIN proxy ON c.node = proxy.node WHERE ALL_OF_c), \
     places AS (SELECT DISTINCT c.netns AS netns, c.local_ip AS address FROM sockets AS c WHERE ALL_OF_c), \
     own AS (SELECT address FROM places UNION ALL \
       SELECT arrayJoin(arrayConcat([ifNull(c.address, '')], c.instance_ips)) AS address FROM proxies AS c WHERE ALL_OF_c), \
     found AS (\
       SELECT c.local_ip AS a, c.remote_ip AS b FROM sockets AS c WHERE ALL_OF_c \
       UNION ALL SELECT c.remote_ip AS a, c.local_ip AS b FROM sockets AS c WHERE ALL_OF_c \
       UNION ALL SELECT x.address AS a, y.address AS b FROM places AS x INNER JOIN places AS y ON x.netns = y.netns \
       UNION ALL SELECT a, b FROM (SELECT addresses, arrayJoin(addresses) AS a FROM entries) ARRAY JOIN addresses AS b), \
     pairs AS (SELECT DISTINCT a, b FROM found WHERE NOT startsWith(a, '127.') AND NOT startsWith(b, '127.') AND a != '::1' \
       AND b != '::1' AND a IN (SELECT address FROM own)), \
     seeds AS (\
       SELECT arrayJoin(arrayConcat([ifNull(c.address, '')], c.instance_ips)) AS address FROM proxies AS c \
       WHERE ALL_OF_c AND c.namespace = {namespace:String} \
       UNION ALL SELECT arrayJoin(addresses) AS address FROM entries WHERE ours), \
     near AS (SELECT b AS address FROM pairs WHERE a IN (SELECT address FROM seeds) UNION ALL SELECT address FROM seeds), \
     pods AS (SELECT DISTINCT address FROM (\
       SELECT b AS address FROM pairs WHERE a IN (SELECT address FROM near) UNION ALL SELECT address FROM near) \
       WHERE address != '')";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_of_the_metrics_adds_up() {
        for column in Table::SocketMetrics.columns() {
            assert!(summed(&column).is_some(), "say how {} adds up", column.name);
        }
    }

    #[test]
    fn what_is_asked_for_never_becomes_text_of_the_question() {
        let kept = Kept { netns: "1) OR 1".into(), addresses: "'; DROP".into() };
        let group = Group { node: "n' OR 1", segments: (1, 2), all: "a", kept: Some(&kept), lines_only: true };
        let rows = Table::ALL.into_iter().map(|table| group.rows(table, "a,b"));
        for query in rows.chain([group.kept("x'; DROP TABLE sockets --"), group.counts("a,b")]) {
            assert!(!query.sql.contains("DROP") && !query.sql.contains("OR 1"), "{}", query.sql);
        }
    }
}
