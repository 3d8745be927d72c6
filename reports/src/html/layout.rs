//! Places a directed graph in columns, left to right, so that edges cross little and long edges run around nodes.
//!
//! Ranks and the bends of long edges are made here, because `rust-sugiyama` does not give back where its own bends
//! are; it orders the columns and finds the heights.

use rust_sugiyama::configure::{Config, RankingType};
use rust_sugiyama::from_vertices_and_edges;

/// Room that bends and gaps take in their column.
pub(super) struct Sizes {
    pub(super) bend: f64,
    /// Between two of a column.
    pub(super) gap: f64,
}

/// A point of the layout: a column, and the height of its middle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct At {
    pub(super) column: usize,
    pub(super) y: f64,
}

/// Where everything is.
#[derive(Debug, PartialEq)]
pub(super) struct Placed {
    pub(super) nodes: Vec<At>,
    /// For each edge the nodes and bends that it visits, from its client to its server. An edge from a node to itself
    /// has none.
    pub(super) routes: Vec<Vec<At>>,
    pub(super) columns: usize,
    pub(super) height: f64,
}

/// Places nodes of these heights. Edges must name existing nodes; both directions of a pair and loops are allowed. The result
/// depends on nothing but the arguments.
pub(super) fn place(node_heights: &[f64], edges: &[(usize, usize)], sizes: &Sizes) -> Placed {
    let nodes = node_heights.len();
    let size = |v: usize| node_heights.get(v).copied().unwrap_or(sizes.bend);
    let forward = without_cycles(nodes, edges);
    let rank = ranks(nodes, &forward);
    // Vertices of the layered graph: the nodes, then the bends. Each edge between neighbouring columns only.
    let mut column: Vec<usize> = rank.clone();
    let mut chains: Vec<Vec<usize>> = Vec::with_capacity(edges.len());
    for &(from, to) in &forward {
        let mut chain = vec![from];
        for c in rank[from] + 1..rank[to] {
            chain.push(column.len());
            column.push(c);
        }
        if from != to {
            chain.push(to);
        }
        chains.push(chain);
    }
    let y = heights(&column, &chains, sizes.gap, size);
    let at = |v: usize| At { column: column[v], y: y[v] };
    let routes = chains
        .iter()
        .zip(edges)
        .map(|(chain, &(from, to))| {
            let mut route: Vec<At> = chain.iter().map(|v| at(*v)).collect();
            if chain.first() != Some(&from) {
                route.reverse();
            }
            if from == to {
                route.clear();
            }
            route
        })
        .collect();
    Placed {
        nodes: (0..nodes).map(at).collect(),
        routes,
        columns: column.iter().map(|c| c + 1).max().unwrap_or(0),
        height: (0..column.len()).map(|v| y[v] + size(v) / 2.0).fold(0.0, f64::max),
    }
}

/// The edges with those turned around that close a cycle in a depth-first walk which starts at nodes that nobody calls.
fn without_cycles(nodes: usize, edges: &[(usize, usize)]) -> Vec<(usize, usize)> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let mut out: Vec<Vec<usize>> = vec![vec![]; nodes];
    let mut called = vec![false; nodes];
    for (i, &(from, to)) in edges.iter().enumerate() {
        if from != to {
            out[from].push(i);
            called[to] = true;
        }
    }
    let mut result = edges.to_vec();
    let mut mark = vec![Mark::New; nodes];
    let starts = (0..nodes).filter(|n| !called[*n]).chain(0..nodes);
    for start in starts {
        if mark[start] != Mark::New {
            continue;
        }
        mark[start] = Mark::Open;
        let mut stack = vec![(start, 0)];
        while let Some((node, next)) = stack.pop() {
            let Some(&edge) = out[node].get(next) else {
                mark[node] = Mark::Done;
                continue;
            };
            stack.push((node, next + 1));
            let (from, to) = edges[edge];
            match mark[to] {
                Mark::Open => result[edge] = (to, from),
                Mark::New => {
                    mark[to] = Mark::Open;
                    stack.push((to, 0));
                }
                Mark::Done => {}
            }
        }
    }
    result
}

/// The column of each node: as far right as its longest chain of callers asks; callers that nobody calls move right up to
/// the first that they call.
fn ranks(nodes: usize, edges: &[(usize, usize)]) -> Vec<usize> {
    let mut rank = vec![0; nodes];
    // Without cycles the longest chain has fewer edges than there are nodes, so this ends.
    for _ in 0..nodes {
        let mut moved = false;
        for &(from, to) in edges.iter().filter(|(a, b)| a != b) {
            if rank[to] <= rank[from] {
                rank[to] = rank[from] + 1;
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    for node in 0..nodes {
        if edges.iter().all(|&(a, b)| b != node || a == b) {
            let first = edges.iter().filter(|&&(a, b)| a == node && a != b).map(|&(_, b)| rank[b]).min();
            rank[node] = first.map_or(0, |r| r - 1);
        }
    }
    rank
}

/// The height of each vertex's middle. Parts of the graph that are not connected are stacked.
fn heights(column: &[usize], chains: &[Vec<usize>], gap: f64, size: impl Fn(usize) -> f64) -> Vec<f64> {
    let narrow = |v: usize| u32::try_from(v).unwrap_or(u32::MAX);
    let mut edges: Vec<(u32, u32)> =
        chains.iter().flat_map(|c| c.windows(2)).map(|w| (narrow(w[0]), narrow(w[1]))).collect();
    edges.sort_unstable();
    edges.dedup();
    let mut connected = vec![false; column.len()];
    for &(a, b) in &edges {
        connected[a as usize] = true;
        connected[b as usize] = true;
    }
    let vertices: Vec<(u32, (f64, f64))> =
        (0..column.len()).filter(|v| connected[*v]).map(|v| (narrow(v), (size(v), 1.0))).collect();
    let config = Config {
        vertex_spacing: gap,
        dummy_vertices: true,
        ranking_type: RankingType::MinimizeEdgeLength,
        ..Config::default()
    };
    let mut y = vec![0.0; column.len()];
    let mut top = 0.0;
    // The library numbers vertices in the order in which they were given.
    for (part, _, _) in from_vertices_and_edges(&vertices, &edges, &config) {
        let mut part: Vec<(usize, f64)> = part.into_iter().map(|(i, (x, _))| (vertices[i].0 as usize, x)).collect();
        // Its coordinates can leave two of a column closer than asked: keep their order and push them apart.
        part.sort_by(|a, b| {
            (column[a.0], a.1, a.0).partial_cmp(&(column[b.0], b.1, b.0)).unwrap_or(std::cmp::Ordering::Equal)
        });
        for i in 1..part.len() {
            let ((above, above_y), (v, v_y)) = (part[i - 1], part[i]);
            if column[above] == column[v] {
                let least = above_y + (size(above) + size(v)) / 2.0 + gap;
                part[i].1 = v_y.max(least);
            }
        }
        let first = part.iter().map(|(v, x)| x - size(*v) / 2.0).fold(f64::INFINITY, f64::min);
        let mut bottom = top;
        for (v, x) in part {
            y[v] = x - first + top;
            bottom = f64::max(bottom, y[v] + size(v) / 2.0);
        }
        top = bottom + gap;
    }
    for v in (0..column.len()).filter(|v| !connected[*v]) {
        y[v] = top + size(v) / 2.0;
        top += size(v) + gap;
    }
    y
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZES: Sizes = Sizes { bend: 10.0, gap: 20.0 };
    /// Nodes of three heights.
    const NODES: [f64; 14] = [40.0, 90.0, 40.0, 25.0, 40.0, 90.0, 40.0, 25.0, 40.0, 90.0, 40.0, 25.0, 40.0, 90.0];

    #[test]
    fn bookinfo_reads_left_to_right() {
        // 0 load generator, 1 productpage, 2 details, 3 to 5 reviews, 6 ratings
        let edges = [(0, 1), (1, 2), (1, 3), (1, 4), (1, 5), (4, 6), (5, 6)];
        let placed = place(&NODES[..7], &edges, &SIZES);
        let columns: Vec<_> = placed.nodes.iter().map(|n| n.column).collect();
        assert_eq!(columns, [0, 1, 2, 2, 2, 2, 3]);
        assert_eq!(placed.columns, 4);
    }

    #[test]
    fn loops_and_both_directions_are_placed() {
        let placed = place(&NODES[..3], &[(0, 1), (1, 0), (1, 1), (2, 2)], &SIZES);
        assert_eq!(placed.nodes[1].column, 1);
        assert_eq!(placed.routes[1].first(), Some(&placed.nodes[1]));
        assert_eq!(placed.routes[1].last(), Some(&placed.nodes[0]));
        assert!(placed.routes[2].is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn nothing_overlaps_and_the_result_is_the_same_twice(
            nodes in 1usize..14,
            raw in prop::collection::vec((0usize..14, 0usize..14), 0..40),
        ) {
            let mut edges: Vec<_> = raw.into_iter().map(|(a, b)| (a % nodes, b % nodes)).collect();
            edges.sort_unstable();
            edges.dedup();
            let placed = place(&NODES[..nodes], &edges, &SIZES);
            for (i, a) in placed.nodes.iter().enumerate() {
                for (j, b) in placed.nodes[..i].iter().enumerate() {
                    let apart = (NODES[i] + NODES[j]) / 2.0;
                    prop_assert!(a.column != b.column || (a.y - b.y).abs() >= apart, "{a:?} {b:?}");
                }
                prop_assert!(a.y >= NODES[i] / 2.0 - 1e-6 && a.y <= placed.height);
            }
            for (route, (from, to)) in placed.routes.iter().zip(&edges) {
                if from != to {
                    prop_assert_eq!(route.first(), Some(&placed.nodes[*from]));
                    prop_assert_eq!(route.last(), Some(&placed.nodes[*to]));
                    prop_assert!(route.windows(2).all(|w| w[0].column.abs_diff(w[1].column) == 1));
                }
            }
            prop_assert_eq!(place(&NODES[..nodes], &edges, &SIZES), placed);
        }
    }
}
