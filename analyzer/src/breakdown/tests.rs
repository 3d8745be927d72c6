use super::*;
use crate::Level;
use crate::request::CoverageClass;
use crate::samples::{named, request};
use meshdiff_model::{Attribution, DurationNs, Evidence, Segment};

/// Pods are called `zone.version.node.N`; `?` stands for what nobody says.
struct ByName;

impl Facts for ByName {
    fn of_pod(&self, end: &Workload, _: WallTime) -> PodFacts {
        let Some(pod) = &end.pod else { return PodFacts::unknown(NotKnown::NoPod) };
        let mut parts = pod.split('.').map(|p| if p == "?" { Err(NotKnown::NotSaid) } else { Ok(p.into()) });
        let mut part = || parts.next().expect("three parts");
        PodFacts { zone: part(), version: part(), node: part() }
    }
    fn subset_of_cluster(&self, cluster: &str) -> Fact {
        match cluster.split('|').nth(2) {
            None => Err(NotKnown::NoService),
            Some("") => Err(NotKnown::NoSubset),
            Some(subset) => Ok(subset.into()),
        }
    }
}

/// A request from `a` to `b`, `network` ns of it on the network.
fn from_to(client: Option<&str>, server: Option<&str>, i: u64, network: i64) -> AttributedRequest {
    let mut r = request("a", "b", i, 1_000_000);
    r.attribution = Attribution::of(DurationNs(1_000_000))
        .add(Segment::Network, DurationNs(network), Evidence::Kernel)
        .add(Segment::ServerApp, DurationNs(1_000_000 - network), Evidence::Kernel)
        .build()
        .expect("telescopes");
    r.client.pod = client.map(str::to_owned);
    r.server.pod = server.map(str::to_owned);
    r
}

fn values(row: &BreakdownRow) -> String {
    let text = |fact: &Fact| fact.as_ref().map_or_else(|why| format!("({})", why.as_str()), |v| v.to_string());
    let client = row.client.as_ref().map_or_else(String::new, |c| format!("{} → ", text(c)));
    format!("{client}{}", text(&row.server))
}

fn rows(breakdown: &Breakdown) -> Vec<(String, Option<bool>, u64)> {
    breakdown.hops[0].rows.iter().map(|r| (values(r), r.crossing, r.summary.requests)).collect()
}

#[test]
fn each_combination_has_a_row_and_unknown_ones_their_own() {
    let mut list = vec![
        from_to(Some("eu-1a.v1.n1.0"), Some("eu-1a.v1.n1.1"), 0, 10),
        from_to(Some("eu-1a.v1.n1.0"), Some("eu-1b.v2.n2.1"), 1, 10),
        from_to(Some("eu-1a.v1.n1.0"), Some("eu-1b.v2.n2.1"), 2, 10),
        from_to(Some("?.v1.n1.0"), Some("eu-1b.?.n2.1"), 3, 10),
        from_to(None, Some("eu-1b.v2.n2.1"), 4, 10),
    ];
    list[0].upstream_cluster = Some("outbound|9080|v1|b.default.svc.cluster.local".into());
    list[1].upstream_cluster = Some("outbound|9080||b.default.svc.cluster.local".into());
    list[2].upstream_cluster = Some("PassthroughCluster".into());
    list[4].coverage.class = CoverageClass::PartialServer;
    list[4].coverage.reason = Some("client_log_missing");
    let all = break_down(&list, &[Dimension::Subset, Dimension::Zone, Dimension::Zone, Dimension::Version], &ByName);
    let names: Vec<_> = all.iter().map(|b| b.by.as_str()).collect();
    assert_eq!(names, ["zone", "subset", "version"], "each once, in order");
    let row = |text: &str, crossing, n| (text.to_owned(), crossing, n);
    assert_eq!(
        rows(&all[0]),
        [
            row("eu-1a → eu-1a", Some(false), 1),
            row("eu-1a → eu-1b", Some(true), 2),
            row("(no_pod) → eu-1b", None, 1),
            row("(not_said) → eu-1b", None, 1),
        ]
    );
    assert_eq!(all[0].unknown, BTreeMap::from([(NotKnown::NoPod, 1), (NotKnown::NotSaid, 1)]));
    let subsets = [
        row("v1", None, 1),
        row("(no_client_log)", None, 2),
        row("(no_service)", None, 1),
        row("(no_subset)", None, 1),
    ];
    assert_eq!(rows(&all[1]), subsets);
    assert!(!all[1].unknown.contains_key(&NotKnown::NoSubset), "that there is none is known");
    assert_eq!(rows(&all[2])[1], row("v1 → v2", None, 2), "versions are no places");
    let of_nobody = &all[0].hops[0].rows[2];
    assert_eq!((of_nobody.summary.n, of_nobody.summary.total.is_none()), (0, true));
    assert_eq!(of_nobody.reasons, BTreeMap::from([("client_log_missing", 1)]));
    assert!(of_nobody.few);
    // What a hop has its rows have together.
    for breakdown in &all {
        assert_eq!(breakdown.hops[0].rows.iter().map(|r| r.summary.requests).sum::<u64>(), 5);
        assert_eq!(breakdown.hops[0].rows.iter().map(|r| r.summary.n).sum::<u64>(), 4);
    }
    assert!(break_down(&list, &[], &ByName).is_empty());
}

#[test]
fn versions_of_a_service_are_one_hop_and_its_places_several() {
    let mut list: Vec<_> = (0..6).map(|i| from_to(Some("z.v1.n.0"), Some("z.v1.n.1"), i, 10)).collect();
    for (i, r) in list.iter_mut().enumerate() {
        let version = if i < 2 { "v1" } else { "v2" };
        r.server = named(&format!("reviews-{version}"));
        r.server.service = (i != 5).then(|| "reviews".to_owned());
        r.server.pod = Some(format!("z.{version}.n.1"));
    }
    let all = break_down(&list, &[Dimension::Zone, Dimension::Version], &ByName);
    let told = |b: &Breakdown| -> Vec<(Option<String>, Option<String>, usize)> {
        b.hops.iter().map(|h| (h.server.workload.clone(), h.server.service.clone(), h.rows.len())).collect()
    };
    let name = |text: &str| Some(text.to_owned());
    let zones = [
        (name("reviews-v1"), name("reviews"), 1),
        (name("reviews-v2"), None, 1),
        (name("reviews-v2"), name("reviews"), 1),
    ];
    assert_eq!(told(&all[0]), zones);
    assert_eq!(told(&all[1]), [(None, name("reviews"), 2), (name("reviews-v2"), None, 1)]);
    let rows: Vec<_> = all[1].hops[0].rows.iter().map(|r| (values(r), r.summary.requests)).collect();
    assert_eq!(rows, [("v1 → v1".to_owned(), 2), ("v1 → v2".to_owned(), 3)]);
}

/// `n` requests within a zone and to another one, which take `more` ns longer on the network.
fn two_zones(n: u64, more: i64) -> Vec<AttributedRequest> {
    let one = |i: u64| {
        let jitter = i64::try_from(i * 7919 % 1_000).expect("small");
        let to = if i.is_multiple_of(2) { ("eu-1a.v1.n1.1", 0) } else { ("eu-1b.v1.n2.1", more) };
        from_to(Some("eu-1a.v1.n1.0"), Some(to.0), i, 50_000 + jitter + to.1)
    };
    (0..2 * n).map(one).collect()
}

fn finding_of(list: &[AttributedRequest]) -> Option<Finding> {
    let all = break_down(list, &[Dimension::Zone], &ByName);
    crossing::finding(&all[0].hops[0])
}

#[test]
fn what_crossing_a_zone_costs_is_said_where_it_is_plain() {
    let found = finding_of(&two_zones(40, 400_000)).expect("a finding");
    assert_eq!((found.code, found.level, found.subject.as_str()), ("MD0301", Level::Info, "a → b"));
    assert_eq!((found.evidence["sameZoneRequests"], found.evidence["crossZoneRequests"]), (40.0, 40.0));
    let difference = found.evidence["crossZoneNetworkP50Ns"] - found.evidence["sameZoneNetworkP50Ns"];
    assert!((399_000.0..401_000.0).contains(&difference), "{difference}");
    assert!(found.text.contains("0.45 ms") && found.text.contains("0.05 ms"), "{}", found.text);
    assert!(finding_of(&two_zones(20, 400_000)).is_none(), "too few");
    assert!(finding_of(&two_zones(40, 0)).is_none(), "no difference");
    assert!(finding_of(&two_zones(400, 10_000)).is_none(), "too small to matter");
    assert!(finding_of(&two_zones(40, -40_000)).is_none(), "the other way round");
}

#[test]
fn a_place_is_left_only_if_both_are_known_to_differ() {
    let fact = |text: &str| -> Fact { if text == "?" { Err(NotKnown::NotSaid) } else { Ok(text.into()) } };
    let is = |a: &str, b: &str| crossing::is_crossing(Some(&fact(a)), &fact(b));
    assert_eq!((is("eu-1a", "eu-1a"), is("eu-1a", "eu-1b")), (Some(false), Some(true)));
    assert_eq!((is("?", "eu-1b"), is("eu-1a", "?")), (None, None));
    assert_eq!((is("us/a", "a"), is("a", "us/a")), (None, None), "one says its region, the other does not");
    assert_eq!((is("us/a", "eu/a"), is("us/a", "us/a")), (Some(true), Some(false)));
}

#[test]
fn findings_stay_in_order() {
    let report = crate::report(&[], &empty_mesh(), crate::ReportInput::default());
    let report = report.with_breakdowns(break_down(&two_zones(40, 400_000), &[Dimension::Zone], &ByName));
    assert_eq!(report.findings.iter().map(|f| f.code).collect::<Vec<_>>(), ["MD0301"]);
    assert_eq!((report.breakdowns.len(), &report.breakdowns[0].hops[0].client), (1, &named("a")));
}

fn empty_mesh() -> meshdiff_graph::MeshGraph {
    struct Nobody;
    impl meshdiff_graph::Directory for Nobody {
        fn by_proxy(&self, _: &meshdiff_model::NodeId) -> Option<Workload> {
            None
        }
        fn by_address(&self, _: std::net::IpAddr) -> Option<Workload> {
            None
        }
        fn service_of_cluster(&self, _: &str) -> Option<(String, Option<String>)> {
            None
        }
    }
    let clock = meshdiff_model::ClockAnchor::default();
    let input = meshdiff_graph::HopInput {
        sockets: &[],
        messages: &[],
        http2: &[],
        access_logs: &[],
        clock: &clock,
        window: Default::default(),
    };
    meshdiff_graph::MeshGraph::build(input, &[], &Nobody)
}
