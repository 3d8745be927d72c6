use super::*;
use crate::parts::report_of;
use crate::samples::request;
use crate::{Report, ReportInput, report};
use meshdiff_graph::{InParts, Whole};
use meshdiff_model::NodeId;
use proptest::prelude::*;
use std::net::IpAddr;

struct Nobody;

impl meshdiff_graph::Directory for Nobody {
    fn by_proxy(&self, _: &NodeId) -> Option<Workload> {
        None
    }
    fn by_address(&self, _: IpAddr) -> Option<Workload> {
        None
    }
    fn service_of_cluster(&self, _: &str) -> Option<(String, Option<String>)> {
        None
    }
}

/// A tree of requests: an entry request and those that its server made.
fn tree(start: u64, total: i64, server: usize, children: &[(usize, i64)]) -> Vec<AttributedRequest> {
    let name = |n: usize| format!("service-{n}");
    let mut list = vec![request("client", &name(server), start, total)];
    for (i, (callee, part)) in children.iter().enumerate() {
        let mut child = request(&name(server), &name(*callee), start + 20 + i as u64, 10 + total * part / 100);
        child.parent = Some(0);
        child.response_code = Some(if *part > 50 { 500 } else { 200 });
        list.push(child);
        list[0].children.push(i + 1);
    }
    list
}

/// Several trees as one list.
fn joined<'a>(trees: impl Iterator<Item = &'a Vec<AttributedRequest>>) -> Vec<AttributedRequest> {
    let mut all: Vec<AttributedRequest> = Vec::new();
    for tree in trees {
        let at = all.len();
        all.extend(tree.iter().cloned().map(|mut r| {
            r.parent = r.parent.map(|p| p + at);
            r.children.iter_mut().for_each(|c| *c += at);
            r
        }));
    }
    all
}

proptest! {
    #[test]
    fn added_up_in_pieces_it_is_the_same_report(
        trees in prop::collection::vec(
            (1i64..6_000_000_000, 0usize..3, prop::collection::vec((0usize..3, 0i64..90), 0..3)), 1..60),
        piece in 1usize..20,
    ) {
        let trees: Vec<Vec<AttributedRequest>> = (0u64..)
            .zip(&trees)
            // Some take as long as others.
            .map(|(i, (total, server, children))| tree(i * 1_000, 20 + total / 1_000_000_000 * 1_000_000_000 + total % 7, *server, children))
            .collect();
        let mesh = InParts::new(Whole::default()).expect("nothing").finish(&[], &Nobody);
        let whole = report(&joined(trees.iter()), &mesh, ReportInput::default());
        let mut tally = Tally::default();
        for piece in trees.chunks(piece) {
            tally.add(&joined(piece.iter()));
        }
        let added: Report = report_of(tally.finish(), &mesh, ReportInput::default());
        prop_assert_eq!(format!("{whole:#?}"), format!("{added:#?}"));
    }
}

#[test]
fn names_are_kept_in_numbers_where_they_are_numbers() {
    for text in ["1f-2a", "0-0", "als-12-34", "1F-2a", "01-2", "", "-"] {
        assert_eq!(Id::of(text).text(), text);
    }
    assert_eq!(Id::of("1f-2a"), Id::Numbers(0x1f, 0x2a));
}
