//! Hops told apart by zone and the like, in every format and in a real browser.

use crate::browser::{CHROMIUM, browser};
use crate::devtools::Page;
use crate::support::{bookinfo, broken_down, meta};
use meshdiff_analyzer::{Dimension, Report};
use meshdiff_reports::{html, json, markdown, table};
use serde_json::Value;

fn text(write: impl FnOnce(&mut Vec<u8>) -> Result<(), meshdiff_reports::RenderError>) -> String {
    let mut out = Vec::new();
    write(&mut out).expect("a vector takes everything");
    String::from_utf8(out).expect("UTF-8")
}

/// The lines from the first that begins like this to the next empty one, or to the second.
fn part(text: &str, from: &str, empty: usize) -> String {
    let mut left = empty;
    let lines = text.lines().skip_while(|l| !l.starts_with(from));
    let lines = lines.take_while(|l| {
        left -= usize::from(l.is_empty());
        left > 0
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn zones() -> Report {
    broken_down(&bookinfo(), 200, &[Dimension::Zone])
}

#[test]
fn snapshots() {
    let options = |width, wide| table::TableOptions { width, colour: false, wide };
    let all = broken_down(&bookinfo(), 200, &Dimension::ALL);
    let as_table = |report: &Report, options| text(|out| table::write(report, &meta(), &options, out));
    insta::assert_snapshot!("by_zone_table", part(&as_table(&zones(), options(None, false)), "By zone", 2));
    insta::assert_snapshot!("by_zone_table_80", part(&as_table(&zones(), options(Some(80), false)), "By zone", 2));
    insta::assert_snapshot!("by_subset_table", part(&as_table(&all, options(None, false)), "By subset", 1));
    let md = text(|out| markdown::write(&all, &meta(), out));
    insta::assert_snapshot!("by_zone_markdown", part(&md, "### By zone", 3));
    let wide = as_table(&zones(), options(Some(200), true));
    let title = "loadgen → productpage-v1, eu-1a → eu-1b";
    assert!(part(&wide, title, 1).contains("  network"), "each row's segments: {wide}");
}

#[test]
fn json_has_all_rows_and_they_sum_to_their_hop() {
    let all = broken_down(&bookinfo(), 200, &Dimension::ALL);
    let document: Value = serde_json::from_str(&text(|out| json::write(&all, &meta(), out))).expect("JSON");
    let list = |v: &Value| v.as_array().expect("a list").clone();
    let breakdowns = list(&document["breakdowns"]);
    assert_eq!(breakdowns.iter().map(|b| b["by"].clone()).collect::<Vec<_>>(), ["zone", "subset", "version", "node"]);
    for b in &breakdowns {
        if b["by"] != "zone" && b["by"] != "node" {
            continue;
        }
        assert_eq!(list(&b["hops"]).len(), list(&document["hops"]).len());
        for (part, hop) in list(&b["hops"]).iter().zip(list(&document["hops"])) {
            assert_eq!((&part["client"], &part["server"]), (&hop["client"], &hop["server"]));
            for count in ["requests", "n"] {
                let sum: u64 = list(&part["rows"]).iter().filter_map(|r| r[count].as_u64()).sum();
                assert_eq!(Some(sum), hop[count].as_u64(), "{count}");
            }
        }
    }
    let to_productpage =
        &breakdowns[0]["hops"].as_array().expect("hops").iter().find(|h| h["server"]["workload"] == "productpage-v1");
    let hop = to_productpage.expect("the entry");
    let row = |i: usize| &hop["rows"][i];
    assert_eq!((&row(0)["client"]["value"], &row(0)["server"]["value"]), (&"eu-1a".into(), &"eu-1a".into()));
    assert_eq!((&row(0)["crossing"], &row(1)["crossing"]), (&Value::Bool(false), &Value::Bool(true)));
    assert!(hop["crossed"]["mannWhitneyP"].is_f64());
    assert!(row(1)["segments"]["network"]["p99Ns"].is_i64() && row(1)["total"]["p90Ns"].is_i64());
    let details =
        breakdowns[0]["hops"].as_array().expect("hops").iter().find(|h| h["server"]["workload"] == "details-v1");
    let unknown = &details.expect("details")["rows"][0];
    assert_eq!((&unknown["server"]["value"], &unknown["server"]["reason"]), (&Value::Null, &"not_said".into()));
    assert!(unknown.get("crossing").is_none(), "where it went is not known, so neither is that it crossed");
    assert_eq!(breakdowns[0]["unknown"]["not_said"], 200, "of all that went to details");
    // Who did not ask for any gets none.
    let plain = crate::support::simulate(&bookinfo(), 20);
    let document: Value = serde_json::from_str(&text(|out| json::write(&plain, &meta(), out))).expect("JSON");
    assert!(document.get("breakdowns").is_none());
}

#[test]
fn one_breakdown_needs_no_switch() {
    let page = text(|out| html::write(&zones(), &meta(), out));
    assert!(page.contains("<h2 id=\"breakdowns-title\">By zone</h2>") && !page.contains("id=\"by-zone\""));
    assert!(page.contains("class=\"crossing\">other zone<"));
    assert!(page.contains("title=\"neither the sidecar"), "the reason is there on hover");
}

#[test]
fn the_switch_shows_one_breakdown_at_a_time() {
    let Some(browser) = browser(&broken_down(&bookinfo(), 200, &Dimension::ALL)) else { return };
    let mut page = Page::open(CHROMIUM, &browser.page);
    let shown = "Array.from(document.querySelectorAll('.by')).filter(b => b.getBoundingClientRect().height > 100).map(b => b.className).join()";
    assert_eq!(page.text(shown), "by by-zone");
    let bars = ".by-zone .brow .bar";
    let width = |i: usize| format!("document.querySelectorAll('{bars}')[{i}].getBoundingClientRect().width > 20");
    assert_eq!((page.value(&width(0)), page.value(&width(1))), (true.into(), true.into()));
    for (by, word) in [("subset", "no subset"), ("version", "v1 → v2"), ("node", "other node"), ("zone", "other zone")]
    {
        page.click(&format!("document.querySelector('#by-{by}').closest('label')"));
        page.wait(&format!("({shown}) === 'by by-{by}'"));
        let words = page.text(&format!("document.querySelector('.by-{by}').innerText"));
        assert!(words.contains(word), "{by}: {words}");
    }
    page.click("document.querySelector('.by-zone .brow summary')");
    page.wait("document.querySelector('.by-zone .brow table').getBoundingClientRect().height > 100");
    assert!(page.complaints.is_empty(), "{:#?}", page.complaints);
}
