//! Objects for tests.

use super::objects::{Controller, Pod};
use meshdiff_model::{Tenure, WallTime};
use serde_json::Value;
use std::collections::BTreeMap;

/// A second of the wall clock.
pub(super) fn at(second: i64) -> WallTime {
    WallTime(second * 1_000_000_000)
}

/// A pod in `default` whose identity is `uid-` and its name.
pub(super) fn pod(name: &str, ip: &str, controller: Option<(&str, &str)>, from: i64) -> Pod {
    let hash = controller.and_then(|(_, n)| n.rsplit_once('-')).map(|(_, hash)| hash.to_owned());
    let labels = hash.into_iter().map(|h| ("pod-template-hash".to_owned(), h)).collect::<BTreeMap<_, _>>();
    Pod {
        uid: format!("uid-{name}"),
        namespace: "default".into(),
        name: name.into(),
        node: Some("node1".into()),
        addresses: vec![ip.parse().expect("an address")],
        host_network: false,
        has_sidecar: true,
        controller: controller.map(|(kind, name)| Controller {
            kind: kind.into(),
            name: name.into(),
            uid: format!("uid-{name}"),
        }),
        labels,
        created: Some(at(from)),
        tenure: Tenure { from: Some(at(from)), from_is_exact: false, until: None },
    }
}

/// An object in JSON, as an API server gives it.
pub(super) fn object<T: serde::de::DeserializeOwned>(name: &str) -> T {
    let path = format!("{}/tests/fixtures/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let value: Value = serde_json::from_str(&text).expect("JSON");
    serde_json::from_value(value).expect("an object of that kind")
}
