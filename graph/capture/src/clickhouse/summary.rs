//! The questions of a report that is summed up in the store.
//!
//! A request is one row of `requests`, or two, one from each node: then the client's is joined with the server's by the address from which
//! the client's sidecar connected and the sequence number after the request's last byte. What the network took is the difference of the
//! two rows' times; every other segment is one row's. Order statistics are those of sorted arrays (nearest rank), sums are of 128 bits:
//! nothing is estimated.

use super::client::Query;
use super::requests::{REQUESTS, segment_column};
use super::select::QUOTE;
use meshdiff_model::{Segment, WallTime};
use serde::Deserialize;
use std::fmt::Write as _;

/// How deep a tree of requests may be.
const DEPTH: usize = 6;
/// How many entry requests a report shows.
const SLOWEST: usize = 20;
/// Of how many full requests there must be to look at those near a quantile; ten times as many for those beyond the 90th percentile.
const NEAR_MINIMUM: usize = 20;

/// Which requests of the chosen captures are reported.
#[derive(Clone, Debug, Default)]
pub struct Cut {
    /// Those with either end in it.
    pub namespace: Option<String>,
    /// Those that began at this instant or later.
    pub from: Option<WallTime>,
    /// Those that began at this instant or before.
    pub until: Option<WallTime>,
}

/// How many requests there are of a row of the coverage.
#[derive(Clone, Debug, Deserialize)]
pub struct ClassCount {
    /// The row.
    pub class: String,
    /// Why they are not full.
    pub reason: String,
    /// How many.
    pub requests: u64,
    /// How many of them the kernel saw client applications send.
    pub seen: u64,
    /// Segments below zero.
    pub negative: u64,
}

/// Times of the full requests of a hop: sum, sum of squares, and the 500th, 900th, 990th and 999th per mille, as texts of whole numbers.
pub type Series = [String; 6];

/// A hop.
#[derive(Clone, Debug, Deserialize)]
pub struct HopSums {
    /// As [`RequestRow::client`](super::RequestRow::client).
    pub client: String,
    /// As [`RequestRow::server`](super::RequestRow::server).
    pub server: String,
    /// Empty if unknown.
    pub service: String,
    /// As reports name it.
    pub protocol: String,
    /// Requests in all.
    pub requests: u64,
    /// Full ones.
    pub n: u64,
    /// Status codes.
    pub codes: Vec<u16>,
    /// How many there were of each.
    pub code_counts: Vec<u64>,
    /// Totals.
    pub total: Series,
    /// How many full requests have each segment.
    pub occurs: Vec<u64>,
    /// Times by segment; requests without it count as 0.
    pub segments: Vec<Series>,
    /// `segment.part`.
    pub detail_names: Vec<String>,
    /// Their sums.
    pub detail_sums: Vec<i64>,
}

/// The requests of a hop whose totals lie near a quantile.
#[derive(Clone, Debug, Deserialize)]
pub struct NearSums {
    /// As in [`HopSums`].
    pub client: String,
    /// As in [`HopSums`].
    pub server: String,
    /// As in [`HopSums`].
    pub service: String,
    /// As in [`HopSums`].
    pub protocol: String,
    /// Which quantile.
    pub per_mille: u16,
    /// How many.
    pub n: u64,
    /// Sum of their totals.
    pub total: String,
    /// How many have each segment.
    pub occurs: Vec<u64>,
    /// Sums by segment.
    pub segments: Vec<String>,
}

/// Entry requests whose trees are full.
#[derive(Clone, Debug, Deserialize)]
pub struct EntrySums {
    /// Who called.
    pub client: String,
    /// Who was called.
    pub server: String,
    /// How many.
    pub n: u64,
    /// Sum of their totals.
    pub total: String,
    /// Their median.
    pub p50: i64,
    /// False if calls count with a part of their time only: then sums do not tell where the time went.
    pub whole: bool,
}

/// Requests that one hop's entry requests caused, and these.
#[derive(Clone, Debug, Deserialize)]
pub struct StretchSums {
    /// Who called.
    pub client: String,
    /// Who was called.
    pub server: String,
    /// Whose server waited for them; empty for entry requests.
    pub waited_by: String,
    /// Sum of their totals.
    pub total: String,
    /// Sums by segment.
    pub segments: Vec<String>,
}

/// One of the slowest requests, or one that it caused.
#[derive(Clone, Debug, Deserialize)]
pub struct SlowRow {
    /// Its name among all.
    pub name: String,
    /// That of the request which caused it; empty if none did.
    pub parent: String,
    /// As [`RequestRow::line`](super::RequestRow::line).
    pub line: String,
    /// The line of the server's half, if another node recorded it; else empty.
    pub server_line: String,
    /// Its row of the coverage.
    pub class: String,
    /// Why it is not full.
    pub reason: String,
    /// Times by segment, as the request's two halves have them together.
    pub times: Vec<Option<i64>>,
    /// `segment.part`.
    pub detail_names: Vec<String>,
    /// Their times.
    pub detail_ns: Vec<i64>,
}

/// What is counted and is no request.
#[derive(Clone, Debug, Deserialize)]
pub struct Oddity {
    /// `contradiction` or `unlogged`.
    pub class: String,
    /// What contradicts.
    pub reason: String,
    /// When it was.
    pub start_ns: i64,
    /// The called workload's namespace.
    pub server_namespace: String,
}

/// What speaks against summing up in the store.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct Doubts {
    /// Pairs of halves of which one's times may depend on the other.
    pub pairs: u64,
    /// Halves that one key has several of.
    pub several: u64,
    /// Halves without a partner on connections of which the other end has such, too.
    pub lonely: u64,
    /// Halves of which nothing tells the connection.
    pub nowhere: u64,
    /// Requests deeper in their trees than is followed.
    pub deep: u64,
}

impl Doubts {
    /// True if there are none.
    #[must_use]
    pub fn none(self) -> bool {
        self == Self::default()
    }
}

/// The captures that are summed up, and how.
#[derive(Clone, Debug)]
pub(crate) struct Summary<'a> {
    /// Their names, with commas.
    pub(crate) ids: &'a str,
    /// First and last segment.
    pub(crate) segments: (i64, i64),
    /// Of several nodes: halves are joined.
    pub(crate) several: bool,
    pub(crate) cut: &'a Cut,
}

impl Summary<'_> {
    fn query(&self, sql: String) -> Query {
        Query::new(format!("{sql} FORMAT JSONEachRow"))
            .with("ids", self.ids)
            .with("from", self.segments.0)
            .with("to", self.segments.1)
            .with("namespace", self.cut.namespace.as_deref().unwrap_or(""))
            .with("since", self.cut.from.map_or(i64::MIN, |t| t.0))
            .with("until", self.cut.until.map_or(i64::MAX, |t| t.0))
            .setting(QUOTE, 0)
            .setting("do_not_merge_across_partitions_select_final", 1)
    }

    /// The chosen captures' rows.
    fn rows(&self) -> String {
        format!(
            "SELECT *, concat(t.capture_node, '#', t.boot_id, '#', t.id) AS name, \
             if(t.parent = '', '', concat(t.capture_node, '#', t.boot_id, '#', t.parent)) AS caller \
             FROM {REQUESTS} AS t FINAL WHERE t.segment BETWEEN {{from:Int64}} AND {{to:Int64}} \
             AND t.capture_id IN (SELECT arrayJoin(splitByChar(',', {{ids:String}})))"
        )
    }

    /// One row for each request that is reported.
    fn requests(&self) -> String {
        let all = if self.several { self.joined() } else { self.alone() };
        format!(
            "SELECT * FROM ({all}) AS q WHERE q.class NOT IN ('contradiction', 'unlogged') AND q.start_ns >= {{since:Int64}} \
             AND q.start_ns <= {{until:Int64}} AND ({{namespace:String}} = '' OR q.client_namespace = {{namespace:String}} \
             OR q.server_namespace = {{namespace:String}})"
        )
    }

    /// One node saw all that there is: each row is a request.
    fn alone(&self) -> String {
        let segments: Vec<String> = Segment::ALL.into_iter().map(|s| format!("a.{}", segment_column(s))).collect();
        format!(
            "SELECT a.name AS name, a.caller AS caller, a.name AS serving, a.id AS id, a.class AS class, a.reason AS reason, \
             a.start_ns AS start_ns, a.client AS client, a.server AS server, a.service AS service, \
             a.client_namespace AS client_namespace, a.server_namespace AS server_namespace, a.protocol AS protocol, \
             a.response_code AS response_code, a.total_ns AS total_ns, [{}] AS times, a.detail_names AS detail_names, \
             a.detail_ns AS detail_ns, a.client_seen AS client_seen, a.calls_whole AS calls_whole, a.line AS line, '' AS server_line, \
             0 AS doubtful FROM ({}) AS a",
            segments.join(", "),
            self.rows()
        )
    }

    /// Each half joined with its other half, if that is there; a request is told by the client's.
    fn joined(&self) -> String {
        let rows = self.rows();
        let times: Vec<String> = Segment::ALL
            .into_iter()
            .enumerate()
            .map(|(i, segment)| {
                let (alone, at) = (format!("a.{}", segment_column(segment)), i + 1);
                match segment {
                    Segment::Network => format!("if(b.key != '', a.half_inside_ns - b.half_inside_ns, {alone})"),
                    Segment::ServerSidecar | Segment::ServerLoopback | Segment::ServerApp => {
                        format!("if(b.key != '', b.half_segments[{at}], {alone})")
                    }
                    _ => format!("if(b.key != '', a.half_segments[{at}], {alone})"),
                }
            })
            .collect();
        let either = |ours: &str, theirs: &str, alone: &str, name: &str| {
            let both = if theirs.is_empty() { ours.to_owned() } else { theirs.to_owned() };
            format!("if(b.key != '', {both}, {alone}) AS {name}")
        };
        let columns = [
            "a.name AS name".to_owned(),
            "a.caller AS caller".to_owned(),
            either("", "b.name", "a.name", "serving"),
            "a.id AS id".to_owned(),
            either("'full'", "", "a.class", "class"),
            either("if(a.half_shared, 'multiplexed_encrypted', '')", "", "a.reason", "reason"),
            "a.start_ns AS start_ns, a.client AS client".to_owned(),
            either("", "b.server", "a.server", "server"),
            "a.service AS service, a.client_namespace AS client_namespace".to_owned(),
            either("", "b.server_namespace", "a.server_namespace", "server_namespace"),
            "a.protocol AS protocol, a.response_code AS response_code, a.total_ns AS total_ns".to_owned(),
            format!("[{}] AS times", times.join(", ")),
            either("arrayConcat(a.half_detail_names, b.half_detail_names)", "", "a.detail_names", "detail_names"),
            either("arrayConcat(a.half_detail_ns, b.half_detail_ns)", "", "a.detail_ns", "detail_ns"),
            "a.client_seen AS client_seen".to_owned(),
            either("", "b.calls_whole", "a.calls_whole", "calls_whole"),
            "a.line AS line, b.line AS server_line".to_owned(),
            format!("b.key != '' AND NOT ({CERTAIN}) AS doubtful"),
        ];
        format!(
            "SELECT {} FROM (SELECT *, if(h.half = 'client', h.half_key, '') AS key FROM ({rows}) AS h) AS a \
             LEFT ANY JOIN (SELECT *, h.half_key AS key FROM ({rows}) AS h WHERE h.half = 'server' AND h.half_key != '') AS b ON a.key = b.key \
             WHERE NOT (a.half = 'server' AND a.half_key != '' AND a.half_key IN \
             (SELECT h.half_key FROM ({rows}) AS h WHERE h.half = 'client' AND h.half_key != ''))",
            columns.join(", ")
        )
    }

    /// What speaks against it.
    pub(crate) fn doubts(&self) -> Query {
        let reported = self.requests();
        let deep = format!("SELECT count() FROM ({}) AS d WHERE d.deep", self.trees());
        if !self.several {
            return self.query(format!(
                "SELECT toUInt64(0) AS pairs, toUInt64(0) AS several, toUInt64(0) AS lonely, toUInt64(0) AS nowhere, ({deep}) AS deep"
            ));
        }
        let rows = self.rows();
        let within = "h.start_ns >= {since:Int64} AND h.start_ns <= {until:Int64}";
        self.query(format!(
            "SELECT (SELECT countIf(q.doubtful) FROM ({reported}) AS q) AS pairs, \
             (SELECT count() FROM (SELECT h.half, h.half_key FROM ({rows}) AS h \
             WHERE h.half != '' AND h.half_key != '' GROUP BY h.half, h.half_key HAVING count() > 1)) AS several, \
             (SELECT sum(least(u - c, u - s)) FROM (SELECT h.half_flow, uniqExactIf(h.half_key, h.half = 'client') AS c, \
             uniqExactIf(h.half_key, h.half = 'server') AS s, uniqExact(h.half_key) AS u FROM ({rows}) AS h \
             WHERE h.half_key != '' AND {within} GROUP BY h.half_flow)) AS lonely, \
             (SELECT count() FROM ({rows}) AS h WHERE h.half != '' AND h.half_key = '' AND {within}) AS nowhere, ({deep}) AS deep"
        ))
    }

    /// How many rows there are of the chosen captures.
    pub(crate) fn stored(&self) -> Query {
        self.query(format!("SELECT count() AS rows FROM ({}) AS h", self.rows()))
    }

    pub(crate) fn counts(&self) -> Query {
        self.query(format!(
            "SELECT q.class AS class, q.reason AS reason, count() AS requests, countIf(q.client_seen) AS seen, \
             sum(arrayCount(t -> ifNull(t < 0, 0), q.times)) AS negative FROM ({}) AS q GROUP BY q.class, q.reason \
             ORDER BY q.class, q.reason",
            self.requests()
        ))
    }

    pub(crate) fn oddities(&self) -> Query {
        self.query(format!(
            "SELECT h.class AS class, h.reason AS reason, h.start_ns AS start_ns, h.server_namespace AS server_namespace FROM ({}) AS h \
             WHERE h.class IN ('contradiction', 'unlogged') ORDER BY h.segment, h.capture_id, h.part, h.row",
            self.rows()
        ))
    }

    pub(crate) fn hops(&self) -> Query {
        let mut columns = String::new();
        let mut sorted = |name: &str, value: &str| {
            let _ = write!(
                columns,
                ", arraySort(groupArrayIf(assumeNotNull({value}), q.class = 'full')) AS {name}_all, \
                 [toString(sumIf(toInt128({value}), q.class = 'full')), \
                 toString(sumIf(toInt128({value}) * toInt128({value}), q.class = 'full')), {}] AS {name}",
                [500, 900, 990, 999]
                    .map(|per_mille| format!("toString({name}_all[{}])", rank(name, per_mille)))
                    .join(", ")
            );
        };
        sorted("of_total", "q.total_ns");
        for (i, segment) in Segment::ALL.into_iter().enumerate() {
            sorted(segment.as_str(), &format!("ifNull(q.times[{}], 0)", i + 1));
        }
        let names: Vec<&str> = Segment::ALL.iter().map(|s| s.as_str()).collect();
        let occurs: Vec<String> =
            (1..=names.len()).map(|i| format!("countIf(q.class = 'full' AND isNotNull(q.times[{i}]))")).collect();
        let inner = format!(
            "SELECT q.client AS client, q.server AS server, q.service AS service, q.protocol AS protocol, count() AS requests, \
             countIf(q.class = 'full') AS n, sumMap([q.response_code], [toUInt64(1)]) AS by_code, \
             sumMapIf(q.detail_names, q.detail_ns, arrayMap(x -> 1, q.detail_ns), q.class = 'full') AS parts, \
             [{}] AS occurs{columns} FROM ({}) AS q GROUP BY q.client, q.server, q.service, q.protocol",
            occurs.join(", "),
            self.requests()
        );
        self.query(format!(
            "SELECT client, server, service, protocol, requests, n, by_code.1 AS codes, by_code.2 AS code_counts, of_total AS total, \
             occurs, [{}] AS segments, parts.1 AS detail_names, parts.2 AS detail_sums FROM ({inner}) \
             ORDER BY client, server, service, protocol",
            names.join(", ")
        ))
    }

    pub(crate) fn near(&self) -> Query {
        let count = Segment::COUNT;
        let sums: Vec<String> =
            (1..=count).map(|i| format!("toString(sum(toInt128(ifNull(w.times[{i}], 0))))")).collect();
        let occurs: Vec<String> = (1..=count).map(|i| format!("countIf(isNotNull(w.times[{i}]))")).collect();
        self.query(format!(
            "SELECT w.client AS client, w.server AS server, w.service AS service, w.protocol AS protocol, per_mille, count() AS n, \
             toString(sum(toInt128(w.total_ns))) AS total, [{}] AS occurs, [{}] AS segments FROM (\
             SELECT q.client, q.server, q.service, q.protocol, q.total_ns, q.times, toInt64(row_number() OVER \
             (PARTITION BY q.client, q.server, q.service, q.protocol ORDER BY q.total_ns, q.id)) - 1 AS place, \
             toInt64(count() OVER (PARTITION BY q.client, q.server, q.service, q.protocol)) AS n FROM ({}) AS q WHERE q.class = 'full') AS w \
             ARRAY JOIN [toInt64(500), toInt64(990)] AS per_mille \
             WHERE w.n >= if(per_mille > 900, {}, {NEAR_MINIMUM}) \
             AND abs(w.place - (greatest(intDiv(w.n * per_mille + 999, 1000), 1) - 1)) <= \
             greatest(if(per_mille > 900, intDiv(w.n, 100), intDiv(w.n, 20)), 1) \
             GROUP BY w.client, w.server, w.service, w.protocol, per_mille \
             ORDER BY client, server, service, protocol, per_mille",
            occurs.join(", "),
            sums.join(", "),
            self.requests(),
            10 * NEAR_MINIMUM
        ))
    }

    /// Each request's root: the one that no other request caused. `deep` where it is farther away than is followed.
    fn trees(&self) -> String {
        let names =
            format!("SELECT q.name AS name, q.caller AS caller, q.serving AS serving FROM ({}) AS q", self.requests());
        let mut joins = format!("({names}) AS p0");
        let mut root = String::from("multiIf(");
        for depth in 1..=DEPTH {
            let below = depth - 1;
            let _ = write!(joins, " LEFT ANY JOIN ({names}) AS p{depth} ON p{below}.caller = p{depth}.serving");
            let _ = write!(root, "p{depth}.name = '', p{below}.name, ");
        }
        format!(
            "SELECT p0.name AS name, {root}p{DEPTH}.name) AS root, p1.name AS parent, p{DEPTH}.name != '' AS deep FROM {joins}"
        )
    }

    /// Roots of trees that are full.
    fn full_trees(&self) -> String {
        format!(
            "SELECT t.root AS root, min(q.calls_whole) AS whole FROM ({}) AS t INNER JOIN ({}) AS q ON t.name = q.name \
             GROUP BY t.root HAVING min(q.class = 'full')",
            self.trees(),
            self.requests()
        )
    }

    pub(crate) fn entries(&self) -> Query {
        self.query(format!(
            "SELECT q.client AS client, q.server AS server, count() AS n, toString(sum(toInt128(q.total_ns))) AS total, \
             arraySort(groupArray(q.total_ns)) AS of_total_all, of_total_all[{}] AS p50, toBool(min(f.whole) = 1) AS whole \
             FROM ({}) AS f INNER JOIN ({}) AS q ON f.root = q.name GROUP BY q.client, q.server ORDER BY q.client, q.server",
            rank("of_total", 500),
            self.full_trees(),
            self.requests()
        ))
    }

    pub(crate) fn stretches(&self, client: &str, server: &str) -> Query {
        let sums: Vec<String> =
            (1..=Segment::COUNT).map(|i| format!("toString(sum(toInt128(ifNull(q.times[{i}], 0))))")).collect();
        let requests = self.requests();
        self.query(format!(
            "SELECT q.client AS client, q.server AS server, p.server AS waited_by, toString(sum(toInt128(q.total_ns))) AS total, \
             [{}] AS segments FROM ({}) AS t INNER JOIN ({requests}) AS q ON t.name = q.name \
             LEFT ANY JOIN ({requests}) AS p ON t.parent = p.name WHERE t.root IN (SELECT e.name FROM ({requests}) AS e \
             WHERE e.client = {{entry_client:String}} AND e.server = {{entry_server:String}} \
             AND e.name IN (SELECT f.root FROM ({}) AS f)) GROUP BY q.client, q.server, p.server ORDER BY q.client, q.server, p.server",
            sums.join(", "),
            self.trees(),
            self.full_trees()
        ))
        .with("entry_client", client)
        .with("entry_server", server)
    }

    pub(crate) fn slowest(&self) -> Query {
        let requests = self.requests();
        let trees = self.trees();
        self.query(format!(
            "SELECT q.name AS name, t.parent AS parent, q.line AS line, q.server_line AS server_line, \
             q.class AS class, q.reason AS reason, q.times AS times, q.detail_names AS detail_names, q.detail_ns AS detail_ns \
             FROM ({trees}) AS t \
             INNER JOIN ({requests}) AS q ON t.name = q.name WHERE t.root IN (SELECT e.name FROM ({requests}) AS e \
             WHERE e.class = 'full' AND e.name IN (SELECT r.root FROM ({trees}) AS r) \
             ORDER BY e.total_ns DESC, e.start_ns, e.id LIMIT {SLOWEST}) \
             ORDER BY t.parent != '', if(t.parent = '', -q.total_ns, 0), q.start_ns, q.id"
        ))
    }
}

/// A pair of halves adds up to what both would have said together: neither depends on the other.
const CERTAIN: &str = "a.half_plain AND b.half_plain AND a.half_shared = b.half_shared AND a.half_alike = b.half_alike \
     AND (a.half_shared OR ((a.half_came_at_once OR b.half_sent_at_once) AND (b.half_came_at_once OR a.half_sent_at_once) \
     AND a.half_answer_end = b.half_answer_end)) AND (a.half_request_id = b.half_request_id OR a.half_request_id = '' OR b.half_request_id = '') \
     AND (a.half_method = b.half_method OR a.half_method = '' OR b.half_method = '') \
     AND a.class = 'partial_client' AND a.reason = if(a.half_shared, 'protocol_not_read', 'server_log_missing') \
     AND b.class = 'partial_server' AND b.reason = 'client_log_missing'";

/// The nearest rank, counted from 1.
fn rank(name: &str, per_mille: u16) -> String {
    format!("greatest(intDiv(length({name}_all) * {per_mille} + 999, 1000), 1)")
}
