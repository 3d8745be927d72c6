//! The dashboard in `deploy/grafana` asks for metrics that there are.

use super::*;
use crate::agent::http::HttpCounters;
use crate::agent::live::LiveCounters;
use crate::agent::window::tests::fixture;
use crate::agent::window::{Limits, Window};
use meshdiff_als::{AlsServer, AlsSettings};
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// What a scrape of an agent holds that has seen requests.
fn scrape() -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let limits = Limits { keep: Duration::from_secs(60), keep_bytes: 1 << 20 };
    let window = Window::open(folder.path(), limits, "boot".to_owned()).expect("a window");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let als = runtime.block_on(async {
        let address = "127.0.0.1:0".parse().expect("an address");
        AlsServer::bind(address, AlsSettings::default()).expect("a port").handle()
    });
    let mut registry = Registry::default();
    let requests = RequestMetrics::new(&mut registry);
    super::tests::whole(&fixture()).iter().for_each(|r| requests.observe(r));
    registry.register_collector(Box::new(Own {
        window: Arc::new(window),
        live: Arc::new(LiveCounters::default()),
        http: Arc::new(HttpCounters::default()),
        als,
        sender: None,
    }));
    String::from_utf8(render(&registry, "").expect("rendered").1).expect("UTF-8")
}

fn dashboard() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/grafana/meshdiff.json");
    serde_json::from_slice(&std::fs::read(path).expect("the dashboard")).expect("JSON")
}

/// Every text below `key`, wherever it is.
fn texts(value: &Value, key: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                match value {
                    Value::String(text) if name == key => found.push(text.clone()),
                    other => texts(other, key, found),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|v| texts(v, key, found)),
        _ => {}
    }
}

/// Words that may be metrics or labels.
fn words(query: &str) -> impl Iterator<Item = &str> {
    query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
}

#[test]
fn every_metric_of_the_dashboard_is_one_of_the_agents() {
    let scrape = scrape();
    let there: BTreeSet<&str> = scrape
        .lines()
        .filter(|l| !l.starts_with('#'))
        .filter_map(|l| l.split(['{', ' ']).next())
        .chain(scrape.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next()))
        .collect();
    let mut queries = Vec::new();
    texts(&dashboard(), "expr", &mut queries);
    texts(&dashboard(), "definition", &mut queries);
    assert!(queries.len() > 10, "{queries:?}");
    let named: BTreeSet<&str> = queries.iter().flat_map(|q| words(q)).filter(|w| w.starts_with("meshdiff_")).collect();
    assert!(named.len() > 10, "{named:?}");
    let missing: Vec<_> = named.iter().filter(|name| !there.contains(**name)).collect();
    assert!(missing.is_empty(), "no agent has {missing:?}; there are {there:?}");
}

#[test]
fn every_label_of_the_dashboard_is_one_of_the_agents() {
    let scrape = scrape();
    let mut queries = Vec::new();
    texts(&dashboard(), "expr", &mut queries);
    let labels = [
        "client_namespace",
        "client_workload",
        "server_namespace",
        "server_workload",
        "segment",
        "vantage",
        "coverage",
        "code",
    ];
    for label in labels {
        assert!(scrape.contains(&format!("{label}=\"")), "no series has {label}");
    }
    // What is summed by, and what is asked of a label.
    let own = ["le", "instance", "job", "pod", "node"];
    for query in &queries {
        for list in query.split("by (").skip(1).filter_map(|rest| rest.split(')').next()) {
            for label in list.split(',').map(str::trim) {
                assert!(labels.contains(&label) || own.contains(&label), "{label} in {query}");
            }
        }
    }
}
