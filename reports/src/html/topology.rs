//! The topology as a picture: workloads are nodes, hops are edges. A line's width is the time that passes between the
//! two applications, its colour the kind of most of it.

use super::MAX_HOPS;
use super::hops::anchor;
use super::layout::{At, Placed, Sizes, place};
use crate::safe::{shorten, visible};
use crate::text;
use meshdiff_analyzer::{HopSummary, PartKind};
use meshdiff_model::{Detail, DurationNs, Segment, Workload};
use std::collections::BTreeMap;
use std::fmt::Write as _;

const NODE_WIDTH: f64 = 176.0;
const NODE_HEIGHT: f64 = 50.0;
/// Between two columns, where there are few lines, and where there are many and labels have to keep to their end.
const COLUMN_GAPS: (f64, f64) = (142.0, 176.0);
const FEW_EDGES: usize = 12;
const MARGIN: f64 = 18.0;
const LABEL_HEIGHT: f64 = 19.0;
const CHARACTER: f64 = 6.1;
const SIZES: Sizes = Sizes { bend: LABEL_HEIGHT, gap: 22.0 };

/// The picture.
pub(super) struct TopologyView {
    pub(super) canvas: Canvas,
    pub(super) nodes: Vec<NodeView>,
    pub(super) edges: Vec<EdgeView>,
    pub(super) alt: String,
    pub(super) hidden: usize,
}

/// The size of a picture.
pub(super) struct Canvas {
    pub(super) width: String,
    pub(super) height: String,
    /// Below this it scrolls instead of shrinking.
    pub(super) min_width: String,
}

/// A workload.
pub(super) struct NodeView {
    pub(super) x: String,
    pub(super) y: String,
    pub(super) name: String,
    pub(super) line: String,
    pub(super) tip: String,
    /// Width of the strip that shows its own time.
    pub(super) own: String,
}

/// A hop (or the hops of a pair, where there are several protocols).
pub(super) struct EdgeView {
    pub(super) anchor: String,
    pub(super) class: String,
    pub(super) path: String,
    pub(super) head: String,
    pub(super) stroke: String,
    pub(super) label: String,
    pub(super) label_box: [String; 4],
    pub(super) label_at: [String; 2],
    pub(super) tip: String,
}

#[derive(Default)]
struct Node {
    own_ns: i128,
    own_n: u64,
}

struct Edge {
    from: usize,
    to: usize,
    first: usize,
    requests: u64,
    n: u64,
    total_ns: i128,
    between: BTreeMap<PartKind, i128>,
    protocols: Vec<&'static str>,
}

impl Edge {
    fn mean(&self) -> Option<DurationNs> {
        mean(self.total_ns, self.n)
    }
    fn between_ns(&self) -> i128 {
        self.between.values().sum()
    }
}

fn mean(sum: i128, n: u64) -> Option<DurationNs> {
    if n == 0 { None } else { i64::try_from(sum / i128::from(n)).ok().map(DurationNs) }
}

fn key(w: &Workload) -> (Option<&str>, String) {
    (w.namespace.as_deref(), text::workload(w))
}

impl TopologyView {
    /// `None` if there is no hop.
    pub(super) fn of(hops: &[HopSummary]) -> Option<Self> {
        if hops.is_empty() {
            return None;
        }
        let shown = &hops[..hops.len().min(MAX_HOPS)];
        let mut names = BTreeMap::new();
        for hop in shown {
            names.insert(key(&hop.client), &hop.client);
            names.insert(key(&hop.server), &hop.server);
        }
        let index: BTreeMap<_, usize> = names.keys().cloned().zip(0..).collect();
        let mut nodes: Vec<Node> = names.iter().map(|_| Node::default()).collect();
        let mut edges: Vec<Edge> = Vec::new();
        for (i, hop) in shown.iter().enumerate() {
            let (from, to) = (index[&key(&hop.client)], index[&key(&hop.server)]);
            count_own(&mut nodes[to], hop);
            count_edge(&mut edges, from, to, i, hop);
        }
        edges.sort_by_key(|e| (e.from, e.to));
        let pairs: Vec<_> = edges.iter().map(|e| (e.from, e.to)).collect();
        let placed = place(&vec![NODE_HEIGHT; nodes.len()], &pairs, &SIZES);
        let columns = Columns::of(edges.len());
        let workloads: Vec<&Workload> = names.into_values().collect();
        let max_own = nodes.iter().filter_map(|n| mean(n.own_ns, n.own_n)).max().unwrap_or_default().0.max(1);
        Some(Self {
            canvas: columns.canvas(&placed),
            nodes: workloads
                .iter()
                .zip(&nodes)
                .zip(&placed.nodes)
                .map(|((w, n), at)| node_view(w, n, *at, max_own, columns))
                .collect(),
            alt: alt(&edges, &workloads),
            edges: edge_views(&edges, &placed, &workloads, columns),
            hidden: hops.len() - shown.len(),
        })
    }
}

fn count_own(node: &mut Node, hop: &HopSummary) {
    let Some(app) = hop.segments.get(&Segment::ServerApp) else { return };
    let calls = app.details.iter().find(|(d, _)| *d == Detail::DownstreamCalls).map_or(0, |(_, v)| v.0);
    node.own_ns += i128::from(app.distribution.mean.0 - calls) * i128::from(hop.n);
    node.own_n += hop.n;
}

fn count_edge(edges: &mut Vec<Edge>, from: usize, to: usize, hop_index: usize, hop: &HopSummary) {
    let i = edges.iter().position(|e| (e.from, e.to) == (from, to)).unwrap_or_else(|| {
        edges.push(Edge {
            from,
            to,
            first: hop_index,
            requests: 0,
            n: 0,
            total_ns: 0,
            between: BTreeMap::new(),
            protocols: vec![],
        });
        edges.len() - 1
    });
    let edge = &mut edges[i];
    edge.requests += hop.requests;
    edge.protocols.push(hop.protocol.as_str());
    if let Some(total) = &hop.total {
        edge.n += hop.n;
        edge.total_ns += i128::from(total.mean.0) * i128::from(hop.n);
    }
    for (segment, s) in &hop.segments {
        let kind = PartKind::of(*segment);
        if kind != PartKind::Application {
            let ns = i128::from(s.distribution.mean.0.max(0)) * i128::from(hop.n);
            *edge.between.entry(kind).or_default() += ns;
        }
    }
}

pub(super) fn px(v: f64) -> String {
    format!("{v:.1}")
}

/// How columns are spread.
#[derive(Clone, Copy)]
pub(super) struct Columns {
    pub(super) gap: f64,
    /// Where on its stretch a label is, 0.5 to 1 towards the end that it belongs to.
    pub(super) label: f64,
}

impl Columns {
    const fn of(edges: usize) -> Self {
        if edges <= FEW_EDGES {
            Self { gap: COLUMN_GAPS.0, label: 0.5 }
        } else {
            Self { gap: COLUMN_GAPS.1, label: 0.62 }
        }
    }
    pub(super) fn left(self, column: usize) -> f64 {
        MARGIN + column as f64 * (NODE_WIDTH + self.gap)
    }
    pub(super) fn canvas(self, placed: &Placed) -> Canvas {
        let columns = placed.columns.max(1) as f64;
        let width = 2.0 * MARGIN + columns * NODE_WIDTH + (columns - 1.0) * self.gap;
        // Room on top for a workload that calls itself.
        let height = placed.height + 2.0 * MARGIN + 14.0;
        Canvas { width: px(width), height: px(height), min_width: px(width * 0.72) }
    }
}

pub(super) fn top(y: f64) -> f64 {
    y + MARGIN + 14.0
}

fn node_view(w: &Workload, node: &Node, at: At, max_own: i64, columns: Columns) -> NodeView {
    let own = mean(node.own_ns, node.own_n);
    let line = match (own, &w.namespace) {
        (Some(own), _) => format!("itself {}", text::duration(own)),
        (None, Some(ns)) => shorten(&visible(ns), 24),
        (None, None) => String::new(),
    };
    let tip = match own {
        Some(own) => format!(
            "{}: the application itself takes {} in each of the {} that it served, calls to others left out",
            text::workload_full(w),
            text::duration(own),
            text::counted(node.own_n, "request", "requests")
        ),
        None => text::workload_full(w),
    };
    let share = own.map_or(0.0, |o| o.0.max(0) as f64 / max_own as f64);
    NodeView {
        x: px(columns.left(at.column)),
        y: px(top(at.y) - NODE_HEIGHT / 2.0),
        name: shorten(&text::workload(w), 23),
        line,
        tip,
        own: px(share * (NODE_WIDTH - 24.0)),
    }
}

/// Offsets at which edges leave or reach a node's side, in the order in which their next points lie.
fn ports(placed: &Placed, edges: &[Edge]) -> Vec<(f64, f64)> {
    /// Next height, edge, whether this is the edge's start.
    type Port = (f64, usize, bool);
    let mut out = vec![(0.0, 0.0); edges.len()];
    // By node, and whether it is the node's right side.
    let mut sides: BTreeMap<(usize, bool), Vec<Port>> = BTreeMap::new();
    for (i, (edge, route)) in edges.iter().zip(&placed.routes).enumerate() {
        let [first, second, ..] = route[..] else { continue };
        let (before, last) = (route[route.len() - 2], route[route.len() - 1]);
        sides.entry((edge.from, second.column > first.column)).or_default().push((second.y, i, true));
        sides.entry((edge.to, before.column > last.column)).or_default().push((before.y, i, false));
    }
    for list in sides.values_mut() {
        list.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let step = (28.0 / (list.len().max(2) - 1) as f64).min(9.0);
        for (place, &(_, edge, start)) in list.iter().enumerate() {
            let offset = (place as f64 - (list.len() - 1) as f64 / 2.0) * step;
            if start {
                out[edge].0 = offset;
            } else {
                out[edge].1 = offset;
            }
        }
    }
    out
}

fn edge_views(edges: &[Edge], placed: &Placed, workloads: &[&Workload], columns: Columns) -> Vec<EdgeView> {
    let most = edges.iter().map(Edge::between_ns).max().unwrap_or(0).max(1);
    let ports = ports(placed, edges);
    let mut out_degree = vec![0; workloads.len()];
    let mut in_degree = vec![0; workloads.len()];
    for e in edges {
        out_degree[e.from] += 1;
        in_degree[e.to] += 1;
    }
    // Where labels are so far, by the gap between two columns.
    let mut taken: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    edges
        .iter()
        .zip(&placed.routes)
        .zip(ports)
        .map(|((edge, route), (start, end))| {
            let drawn = if route.is_empty() {
                loop_path(placed.nodes[edge.from], columns)
            } else {
                path(route, (start, end), out_degree[edge.from] >= in_degree[edge.to], columns)
            };
            let label = match edge.mean() {
                Some(mean) => format!("{} · {}×", text::duration(mean), text::count(edge.requests)),
                None => format!("{}×", text::count(edge.requests)),
            };
            let y = free(taken.entry(drawn.gap).or_default(), drawn.label.1);
            let label_width = label.chars().count() as f64 * CHARACTER + 12.0;
            let x = drawn.label.0;
            let share = edge.between_ns() as f64 / most as f64;
            let kind = edge.between.iter().max_by_key(|(k, v)| (**v, std::cmp::Reverse(**k))).map(|(k, _)| *k);
            EdgeView {
                anchor: anchor(edge.first),
                class: kind.map_or_else(|| "k-unattributed".into(), |k| format!("k-{}", k.as_str())),
                path: drawn.path,
                head: drawn.head,
                stroke: px(1.5 + 6.5 * share),
                label_box: [px(x - label_width / 2.0), px(y - LABEL_HEIGHT / 2.0), px(label_width), px(LABEL_HEIGHT)],
                label_at: [px(x), px(y + 4.0)],
                label,
                tip: tip(edge, workloads),
            }
        })
        .collect()
}

/// The nearest height at which a label does not cover another one.
fn free(taken: &mut Vec<f64>, wanted: f64) -> f64 {
    let step = LABEL_HEIGHT + 3.0;
    let mut y = wanted;
    for i in 0..200 {
        let offset = f64::from((i + 1) / 2) * 4.0;
        y = if i % 2 == 0 { wanted + offset } else { wanted - offset };
        if taken.iter().all(|t| (t - y).abs() >= step) {
            break;
        }
    }
    taken.push(y);
    y
}

pub(super) struct Drawn {
    pub(super) path: String,
    pub(super) head: String,
    label: (f64, f64),
    /// The gap between columns in which the label is.
    gap: usize,
}

impl Drawn {
    /// Without a label.
    pub(super) const fn of(path: String, head: String) -> Self {
        Self { path, head, label: (0.0, 0.0), gap: 0 }
    }
}

fn loop_path(at: At, columns: Columns) -> Drawn {
    let (x, y) = (columns.left(at.column) + NODE_WIDTH / 2.0, top(at.y) - NODE_HEIGHT / 2.0);
    Drawn {
        path: format!("M{:.1},{y:.1} c-30,-22 50,-22 34,-7", x - 14.0),
        head: format!("{:.1},{:.1} {:.1},{:.1} {:.1},{:.1}", x + 14.0, y - 9.0, x + 24.0, y - 9.0, x + 18.0, y),
        label: (x, y - 14.0),
        gap: usize::MAX - at.column,
    }
}

pub(super) fn path(route: &[At], (start, end): (f64, f64), label_at_end: bool, columns: Columns) -> Drawn {
    let rightward = route[1].column > route[0].column;
    let dir = if rightward { 1.0 } else { -1.0 };
    // The edge of a column that a line leaves or reaches.
    let leave = |at: At| columns.left(at.column) + if rightward { NODE_WIDTH } else { 0.0 };
    let reach = |at: At| columns.left(at.column) + if rightward { 0.0 } else { NODE_WIDTH };
    let last = route.len() - 1;
    let mut d = String::new();
    let (mut x, mut y) = (leave(route[0]), top(route[0].y) + start);
    let _ = write!(d, "M{x:.1},{y:.1}");
    let gap = if label_at_end { last - 1 } else { 0 };
    let mut label = (x, y);
    for (i, &at) in route.iter().enumerate().skip(1) {
        let tip = if i == last { 8.0 } else { 0.0 };
        let (nx, ny) = (reach(at) - dir * tip, top(at.y) + if i == last { end } else { 0.0 });
        let bend = (nx - x).abs() * 0.5 * dir;
        let _ = write!(d, " C{:.1},{y:.1} {:.1},{ny:.1} {nx:.1},{ny:.1}", x + bend, nx - bend);
        if i - 1 == gap {
            // On the curve: both its handles lie half-way across, at the height of their own end.
            let t = if label_at_end { columns.label } else { 1.0 - columns.label };
            let (across, down) = (1.5 * t * (1.0 - t) + t.powi(3), t * t * (3.0 - 2.0 * t));
            label = (x + (nx - x) * across, y + (ny - y) * down);
        }
        (x, y) = (nx, ny);
        if i != last {
            x = leave(at);
            let _ = write!(d, " H{x:.1}");
        }
    }
    Drawn {
        path: d,
        head: format!("{:.1},{:.1} {:.1},{y:.1} {:.1},{:.1}", x, y - 4.5, x + dir * 8.0, x, y + 4.5),
        label,
        gap: route[gap].column.min(route[gap + 1].column),
    }
}

fn tip(edge: &Edge, workloads: &[&Workload]) -> String {
    let mut out = format!(
        "{} → {}: {}",
        text::workload_full(workloads[edge.from]),
        text::workload_full(workloads[edge.to]),
        text::counted(edge.requests, "request", "requests")
    );
    if let Some(m) = edge.mean() {
        let _ = write!(out, ", mean {}", text::duration(m));
    }
    if let Some(m) = mean(edge.between_ns(), edge.n) {
        let _ = write!(out, ", of which {} between the applications", text::duration(m));
    }
    for (kind, ns) in &edge.between {
        if let Some(m) = mean(*ns, edge.n).filter(|m| m.0 > 0) {
            let _ = write!(out, ", {} {}", text::kind(*kind).to_lowercase(), text::duration(m));
        }
    }
    let _ = write!(out, " ({})", edge.protocols.join(", "));
    out
}

fn alt(edges: &[Edge], workloads: &[&Workload]) -> String {
    let one = |e: &Edge| {
        format!(
            "{} calls {}{}",
            text::workload(workloads[e.from]),
            text::workload(workloads[e.to]),
            e.mean().map_or_else(String::new, |m| format!(", {}", text::duration(m)))
        )
    };
    format!(
        "{} and {}. {}.",
        text::counted(workloads.len() as u64, "workload", "workloads"),
        text::counted(edges.len() as u64, "connection between them", "connections between them"),
        edges.iter().take(20).map(one).collect::<Vec<_>>().join("; ")
    )
}
