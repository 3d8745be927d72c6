//! The HTML page as text: what it holds, what it must not hold.

use crate::support::{bookinfo, empty, limited, meta, simulate};
use meshdiff_analyzer::Report;
use meshdiff_reports::html;

fn page(report: &Report) -> String {
    let mut out = Vec::new();
    html::write(report, &meta(), &mut out).expect("a vector takes everything");
    String::from_utf8(out).expect("UTF-8")
}

/// The words of the page's body, a line for each run of text.
fn words(page: &str) -> String {
    let body = page.split_once("<body>").map_or(page, |(_, b)| b);
    let body = body.split_once("<script").map_or(body, |(b, _)| b);
    let mut out = String::new();
    for piece in body.split('<').skip(1) {
        let text = piece.split_once('>').map_or("", |(_, t)| t).trim();
        if !text.is_empty() {
            out.push_str(text);
            out.push('\n');
        }
    }
    out
}

#[test]
fn the_words_of_the_page() {
    let mut report = simulate(&bookinfo(), 3);
    report.findings = crate::support::findings();
    report.slowest.truncate(1);
    report.slowest[0].children.clear();
    report.lines.truncate(2);
    insta::assert_snapshot!("words", words(&page(&report)));
    insta::assert_snapshot!("words_empty", words(&page(&empty())));
}

#[test]
fn nothing_leaves_the_page() {
    let page = page(&simulate(&bookinfo(), 20));
    assert!(page.contains("default-src 'none'"));
    let (markup, _) = page.split_once("<script").expect("scripts come last");
    for forbidden in ["http://", "https://", " src=", "@import", "url(", "<link", "<iframe", "javascript:"] {
        assert!(!markup.contains(forbidden), "{forbidden}");
    }
    // Every link stays within the page, and leads somewhere.
    for link in markup.split("href=\"").skip(1) {
        let target = link.split('"').next().and_then(|l| l.strip_prefix('#')).expect("a fragment");
        assert!(markup.contains(&format!("id=\"{target}\"")), "{target} is not there");
    }
}

#[test]
fn markup_is_balanced() {
    let broken_down = crate::support::broken_down(&bookinfo(), 20, &meshdiff_analyzer::Dimension::ALL);
    for report in [simulate(&bookinfo(), 20), empty(), limited(), broken_down] {
        let page = page(&report);
        for tag in
            ["div", "section", "article", "details", "summary", "table", "tr", "svg", "g", "span", "ul", "li", "p", "a"]
        {
            let count = |text: &str| page.matches(text).count();
            let opened = count(&format!("<{tag}>")) + count(&format!("<{tag} "));
            assert_eq!(opened, count(&format!("</{tag}>")), "{tag}");
        }
    }
}

#[test]
fn limits_are_stated() {
    let mut report = simulate(&bookinfo(), 30);
    let hop = report.hops[0].clone();
    report.hops = (0..205).map(|_| hop.clone()).collect();
    let root = report.slowest[0].clone();
    report.slowest = (0..25)
        .map(|_| {
            let mut r = root.clone();
            r.children.clear();
            r
        })
        .collect();
    let line = report.lines[0].clone();
    report.lines = (0..310).map(|_| line.clone()).collect();
    let page = page(&report);
    assert_eq!(page.matches("<article class=\"hop\"").count(), 200);
    assert_eq!(page.matches("<details class=\"wf\"").count(), 20);
    assert_eq!(page.matches("<article class=\"line\"").count(), 120);
    for statement in [
        "5 more hops are in the JSON",
        "5 more slow requests are in the JSON",
        "10 more lines are in the JSON",
        "190 more are under Connections",
    ] {
        assert!(page.contains(statement), "{statement}");
    }
}

#[test]
fn little_data_is_seen_at_once() {
    let page = page(&limited());
    let (before_hops, _) = page.split_once("id=\"hops-title\"").expect("hops");
    for statement in
        ["80% fully seen", "1,204 kernel events were lost", "About 17 access log entries were lost", "was cut off"]
    {
        assert!(before_hops.contains(statement), "{statement}");
    }
}

#[test]
fn halves_on_two_clocks_are_centred_and_said_to_be() {
    let mut report = simulate(&bookinfo(), 3);
    report.slowest.truncate(1);
    let r = &mut report.slowest[0];
    r.children.clear();
    let shift = |at: &mut Option<meshdiff_model::MonotonicNs>| {
        if let Some(at) = at {
            at.0 -= 50_000_000_000;
        }
    };
    // The server's node booted 50 s later.
    for way in [&mut r.request_crossings, &mut r.response_crossings] {
        let [_, network, loopback] = way;
        for at in [&mut loopback.send, &mut loopback.ready, &mut loopback.recv, &mut loopback.last_send] {
            shift(at);
        }
        shift(&mut loopback.last_ready);
        shift(&mut loopback.last_recv);
        let _ = network;
    }
    let [_, q, _] = &mut r.request_crossings;
    shift(&mut q.ready);
    shift(&mut q.recv);
    let [_, p, _] = &mut r.response_crossings;
    shift(&mut p.send);
    let page = page(&report);
    assert!(page.contains("each server half is centred in its network time"));
    let spans = page.matches("class=\"sp s-server_app\"").count();
    assert_eq!(spans, 1, "the server's half is drawn");
}
