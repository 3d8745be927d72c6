//! The process topology as a picture: pods are boxes with the programs that run in them, peers outside have dashed ones, and every line can
//! be opened.

use super::layout::{At, Sizes, place};
use super::lines::anchor;
use super::topology::{Canvas, Columns, Drawn, path, px, top};
use crate::safe::shorten;
use crate::{lines, text};
use meshdiff_analyzer::{EndRole, LineEnd, LineSummary, PeerKnownBy};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Lines drawn; the others are in the table and the JSON.
pub(super) const MAX_DRAWN: usize = 120;

const HEADER: f64 = 26.0;
const CHIP: f64 = 20.0;
const CHIP_STEP: f64 = 27.0;
const CHIP_LEFT: f64 = 10.0;
/// Chips leave room at their right for lines within the pod.
const CHIP_WIDTH: f64 = 122.0;
const OUTSIDE_HEIGHT: f64 = 28.0;
const SIZES: Sizes = Sizes { bend: 12.0, gap: 16.0 };
const COLUMNS: Columns = Columns { gap: 118.0, label: 0.5 };

/// The picture.
pub(super) struct ProcessesView {
    pub(super) canvas: Canvas,
    pub(super) boxes: Vec<BoxView>,
    pub(super) edges: Vec<EdgeView>,
    pub(super) alt: String,
    pub(super) hidden: usize,
}

/// A pod, or a peer outside.
pub(super) struct BoxView {
    pub(super) x: String,
    pub(super) y: String,
    pub(super) height: String,
    pub(super) name: String,
    pub(super) tip: String,
    pub(super) outside: bool,
    pub(super) chips: Vec<ChipView>,
}

/// A program.
pub(super) struct ChipView {
    pub(super) y: String,
    pub(super) text_y: String,
    pub(super) role: &'static str,
    pub(super) name: String,
    pub(super) tip: String,
}

/// A line.
pub(super) struct EdgeView {
    pub(super) anchor: String,
    pub(super) class: String,
    pub(super) path: String,
    pub(super) head: String,
    pub(super) stroke: String,
    pub(super) tip: String,
}

/// What tells boxes apart.
type BoxKey = (bool, Option<String>, String);

fn box_key(e: &LineEnd) -> BoxKey {
    let outside = e.role == EndRole::Outside;
    (outside, e.namespace.clone(), if outside { lines::outside(e) } else { lines::pod(e) })
}

/// A pod or a peer, with the programs in it.
struct Holder {
    name: String,
    tip: String,
    outside: bool,
    programs: Vec<(EndRole, String)>,
}

impl Holder {
    fn height(&self) -> f64 {
        if self.outside { OUTSIDE_HEIGHT } else { HEADER + self.programs.len() as f64 * CHIP_STEP + 3.0 }
    }
    /// The middle of a program's chip, from the middle of the box.
    fn chip(&self, program: usize) -> f64 {
        if self.outside {
            return 0.0;
        }
        HEADER + program as f64 * CHIP_STEP + CHIP / 2.0 - self.height() / 2.0
    }
}

/// A line between two chips.
struct Wire {
    line: usize,
    from: (usize, usize),
    to: (usize, usize),
}

impl ProcessesView {
    /// `None` if there is no line.
    pub(super) fn of(all: &[LineSummary]) -> Option<Self> {
        if all.is_empty() {
            return None;
        }
        let shown = drawn(all);
        let (holders, wires) = holders(all, &shown);
        let mut pairs: Vec<(usize, usize)> = wires.iter().map(|w| (w.from.0, w.to.0)).filter(|(a, b)| a != b).collect();
        pairs.sort_unstable();
        pairs.dedup();
        let heights: Vec<f64> = holders.iter().map(Holder::height).collect();
        let placed = place(&heights, &pairs, &SIZES);
        let routes: BTreeMap<(usize, usize), &[At]> =
            pairs.iter().copied().zip(placed.routes.iter().map(Vec::as_slice)).collect();
        let most = shown.iter().map(|i| all[*i].bytes()).max().unwrap_or(0);
        Some(Self {
            canvas: COLUMNS.canvas(&placed),
            boxes: holders.iter().zip(&placed.nodes).map(|(h, at)| box_view(h, *at)).collect(),
            edges: edges(all, &wires, &holders, &placed.nodes, &routes, most),
            alt: alt(all, &shown),
            hidden: all.len() - shown.len(),
        })
    }
}

/// The lines with the most traffic, in the report's order.
pub(super) fn drawn(all: &[LineSummary]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(all[*i].bytes()), *i));
    order.truncate(MAX_DRAWN);
    order.sort_unstable();
    order
}

fn holders(all: &[LineSummary], shown: &[usize]) -> (Vec<Holder>, Vec<Wire>) {
    let ends = || shown.iter().flat_map(|i| all[*i].ends());
    let mut programs: BTreeMap<BoxKey, Vec<(EndRole, String)>> = BTreeMap::new();
    for end in ends() {
        let list = programs.entry(box_key(end)).or_default();
        let program = (end.role, lines::process(end));
        if !list.contains(&program) {
            list.push(program);
        }
    }
    programs.values_mut().for_each(|list| list.sort());
    let index: BTreeMap<&BoxKey, usize> = programs.keys().zip(0..).collect();
    let at = |end: &LineEnd| {
        let key = box_key(end);
        let program = (end.role, lines::process(end));
        let place = programs[&key].iter().position(|p| *p == program).unwrap_or(0);
        (index[&key], place)
    };
    let wires =
        shown.iter().map(|&line| Wire { line, from: at(&all[line].client), to: at(&all[line].server) }).collect();
    let mut workloads: BTreeMap<BoxKey, String> = BTreeMap::new();
    for end in ends() {
        if let Some(w) = &end.workload {
            workloads.insert(box_key(end), crate::safe::visible(w));
        }
    }
    let holders = programs
        .iter()
        .map(|(key, programs)| {
            let (outside, namespace, name) = key;
            let full =
                namespace.as_ref().map_or_else(|| name.clone(), |n| format!("{}/{name}", crate::safe::visible(n)));
            Holder {
                name: workloads.get(key).cloned().unwrap_or_else(|| name.clone()),
                tip: if *outside { format!("{full}: outside of what was recorded") } else { full },
                outside: *outside,
                programs: programs.clone(),
            }
        })
        .collect();
    (holders, wires)
}

fn box_view(h: &Holder, at: At) -> BoxView {
    let height = h.height();
    BoxView {
        x: px(COLUMNS.left(at.column)),
        y: px(top(at.y) - height / 2.0),
        height: px(height),
        name: shorten(&h.name, 24),
        tip: h.tip.clone(),
        outside: h.outside,
        chips: if h.outside {
            vec![]
        } else {
            h.programs
                .iter()
                .enumerate()
                .map(|(i, (role, name))| ChipView {
                    y: px(HEADER + i as f64 * CHIP_STEP),
                    text_y: px(HEADER + i as f64 * CHIP_STEP + 14.0),
                    role: role.as_str(),
                    name: shorten(name, 15),
                    tip: format!("{name}: {}", role.as_str()),
                })
                .collect()
        },
    }
}

fn edges(
    all: &[LineSummary],
    wires: &[Wire],
    holders: &[Holder],
    nodes: &[At],
    routes: &BTreeMap<(usize, usize), &[At]>,
    most: u64,
) -> Vec<EdgeView> {
    // How many lines leave or reach a chip's side so far, so that they do not lie on each other.
    let mut ports: BTreeMap<(usize, usize, bool), u32> = BTreeMap::new();
    let mut lanes: BTreeMap<usize, u32> = BTreeMap::new();
    let mut port = |place: (usize, usize), right: bool| {
        let n = ports.entry((place.0, place.1, right)).or_default();
        *n += 1;
        // 0, 3, -3, 6, -6 and again.
        [0.0, 3.0, -3.0, 6.0, -6.0][(*n as usize - 1) % 5]
    };
    wires
        .iter()
        .map(|w| {
            let l = &all[w.line];
            let drawn = match routes.get(&(w.from.0, w.to.0)) {
                Some(route) if route.len() > 1 => {
                    let right = route[1].column > route[0].column;
                    let from = holders[w.from.0].chip(w.from.1) + port(w.from, right);
                    let to = holders[w.to.0].chip(w.to.1) + port(w.to, !right);
                    path(route, (from, to), false, COLUMNS)
                }
                _ => {
                    let lane = lanes.entry(w.from.0).or_default();
                    *lane += 1;
                    within(&holders[w.from.0], nodes[w.from.0], w, *lane - 1)
                }
            };
            EdgeView {
                anchor: anchor(w.line),
                class: class(l),
                path: drawn.path,
                head: drawn.head,
                stroke: px(width(l.bytes(), most)),
                tip: tip(l),
            }
        })
        .collect()
}

/// A line between two programs of one pod: around the right of their chips.
fn within(h: &Holder, at: At, w: &Wire, lane: u32) -> Drawn {
    let edge = COLUMNS.left(at.column) + CHIP_LEFT + CHIP_WIDTH;
    let offset = f64::from(lane % 3);
    let x = edge + 16.0 + offset * 9.0;
    let loops = if w.from.1 == w.to.1 { 6.0 } else { 0.0 };
    let y = |program: usize| top(at.y) + h.chip(program);
    let (from, to) = (y(w.from.1) - 4.0 + offset * 4.0 - loops, y(w.to.1) - 4.0 + offset * 4.0 + loops);
    Drawn::of(
        format!("M{edge:.1},{from:.1} C{x:.1},{from:.1} {x:.1},{to:.1} {:.1},{to:.1}", edge + 7.0),
        format!("{:.1},{:.1} {edge:.1},{to:.1} {:.1},{:.1}", edge + 7.0, to - 3.5, edge + 7.0, to + 3.5),
    )
}

/// 1.3 to 5, by the logarithm of the bytes.
fn width(bytes: u64, most: u64) -> f64 {
    let log = |n: u64| (n as f64 + 1.0).ln();
    1.3 + 3.7 * (log(bytes) / log(most).max(f64::MIN_POSITIVE)).powi(2)
}

fn class(l: &LineSummary) -> String {
    let spoken = if l.tls == Some(true) { "w-tls" } else { "w-plain" };
    let known = match l.peer_known_by {
        PeerKnownBy::Matched => "matched",
        PeerKnownBy::Inferred => "inferred",
        PeerKnownBy::Unknown => "peer-unknown",
    };
    let trouble = if l.in_trouble() { " trouble" } else { "" };
    format!("{spoken} {known}{trouble}")
}

fn tip(l: &LineSummary) -> String {
    let mut out = format!(
        "{} → {}: {}, {}, {}",
        lines::end(&l.client),
        lines::end(&l.server),
        lines::protocol(l),
        text::counted(l.connections, "connection", "connections"),
        text::bytes(l.bytes())
    );
    let _ = write!(out, "; peer {}", l.peer_known_by.as_str());
    if l.in_trouble() {
        out.push_str("; see the findings");
    }
    out
}

fn alt(all: &[LineSummary], shown: &[usize]) -> String {
    let one = |i: &usize| {
        let l = &all[*i];
        format!("{} to {}, {}", lines::end(&l.client), lines::end(&l.server), lines::protocol(l))
    };
    format!(
        "{} between processes. {}.",
        text::counted(all.len() as u64, "line", "lines"),
        shown.iter().take(20).map(one).collect::<Vec<_>>().join("; ")
    )
}
