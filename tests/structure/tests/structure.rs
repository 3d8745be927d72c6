//! The rules that keep data flowing one way, and the repository in order.

use meshdiff_structure::{Package, Use, files, members, packages, root};
use std::collections::{BTreeMap, BTreeSet};

/// Which of our packages each of them may use. `model` is everybody's; `tests/` may use the lab besides.
const MAY_USE: [(&str, &[&str]); 9] = [
    ("graph/model", &[]),
    ("graph", &["meshdiff-model"]),
    ("graph/capture", &["meshdiff-model"]),
    ("graph/discovery", &["meshdiff-model"]),
    ("probes", &["meshdiff-model"]),
    ("als-ingest", &["meshdiff-model"]),
    ("analyzer", &["meshdiff-model", "meshdiff-graph"]),
    ("reports", &["meshdiff-model", "meshdiff-graph", "meshdiff-analyzer"]),
    (
        "analyzer/cli",
        &[
            "meshdiff-model",
            "meshdiff-graph",
            "meshdiff-capture",
            "meshdiff-discovery",
            "meshdiff-probes",
            "meshdiff-als",
            "meshdiff-analyzer",
            "meshdiff-reports",
        ],
    ),
];

/// What tests may use beyond that: joins and attribution are judged on messages that the real assembly made, and the receiver is measured
/// with what it receives being written.
const TESTS_MAY_USE: [(&str, &[&str]); 3] =
    [("graph", &["meshdiff-probes"]), ("analyzer", &["meshdiff-probes"]), ("als-ingest", &["meshdiff-capture"])];

/// Libraries that stay behind one door, and the folders that may name them.
const DOORS: [(&str, &[&str]); 8] = [
    ("aya", &["probes"]),
    ("envoy-types", &["als-ingest"]),
    ("prost", &["als-ingest"]),
    ("tonic", &["als-ingest"]),
    ("petgraph", &["graph", "analyzer"]),
    ("kube", &["graph/discovery", "analyzer/cli"]),
    ("k8s-openapi", &["graph/discovery", "analyzer/cli"]),
    // Errors of libraries are types; only programs put sentences together.
    ("anyhow", &["analyzer/cli", "tests/lab", "tests/e2e", "tests/kernels"]),
];

const TOP_LEVEL: [&str; 18] = [
    ".ci",
    ".gitignore",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "Makefile",
    "README.md",
    "als-ingest",
    "analyzer",
    "clippy.toml",
    "deny.toml",
    "deploy",
    "docs",
    "graph",
    "probes",
    "reports",
    "rustfmt.toml",
    "tests",
];

/// Licences under which a part of meshdiff's binary may be. Compatible with Apache-2.0, and none asks for the source.
const LICENCES: [&str; 12] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Zlib",
];

fn folder(package: &Package) -> &str {
    package.folder.as_deref().expect("a member")
}

fn named(package: &Package, uses: Use) -> impl Iterator<Item = &str> {
    package.uses.iter().filter(move |(_, u)| *u == uses).map(|(name, _)| name.as_str())
}

#[test]
fn packages_use_only_what_the_design_allows() {
    let members = members();
    let ours: BTreeSet<_> = members.iter().map(|p| p.name.as_str()).collect();
    let rules: BTreeMap<_, _> = MAY_USE.into_iter().collect();
    let for_tests: BTreeMap<_, _> = TESTS_MAY_USE.into_iter().collect();
    let mut wrong = Vec::new();
    for package in &members {
        let folder = folder(package);
        let (product, tests): (Vec<_>, Vec<_>) = if folder.starts_with("tests/") {
            // They judge the binary from outside, with the model's words; the matrix of kernels has no lab, only the probes.
            let more = match folder {
                "tests/kernels" => "meshdiff-probes",
                // What agents serve is captures.
                "tests/cluster" => "meshdiff-capture",
                _ => "meshdiff-lab",
            };
            // The whole way through a cluster is tried with sidecars in it.
            let in_tests = if folder == "tests/e2e" { vec!["meshdiff-cluster"] } else { vec![] };
            (vec!["meshdiff-model", more], in_tests)
        } else {
            let rule = rules.get(folder).unwrap_or_else(|| panic!("{folder} is new: say in MAY_USE what it may use"));
            (rule.to_vec(), for_tests.get(folder).copied().unwrap_or_default().to_vec())
        };
        for name in named(package, Use::Product).filter(|n| ours.contains(n)) {
            if !product.contains(&name) {
                wrong.push(format!("{folder} may not use {name}"));
            }
        }
        for name in named(package, Use::Tests).filter(|n| ours.contains(n)) {
            if !product.contains(&name) && !tests.contains(&name) {
                wrong.push(format!("the tests of {folder} may not use {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let there: BTreeSet<_> = members.iter().map(folder).collect();
    for (folder, _) in MAY_USE {
        assert!(there.contains(folder), "{folder} is in MAY_USE, and gone");
    }
}

#[test]
fn libraries_stay_behind_their_doors() {
    let mut wrong = Vec::new();
    for package in &members() {
        for (library, folders) in DOORS {
            // In tests, anyhow is convenience.
            let uses = if library == "anyhow" { vec![Use::Product] } else { vec![Use::Product, Use::Tests] };
            let names = uses.into_iter().any(|u| named(package, u).any(|n| n == library));
            if names && !folders.contains(&folder(package)) {
                wrong.push(format!("{} may not use {library}: only {} may", folder(package), folders.join(" and ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The model is the vocabulary: whatever it used, everybody would use.
#[test]
fn the_model_uses_next_to_nothing() {
    let members = members();
    let model = members.iter().find(|p| p.name == "meshdiff-model").expect("the model");
    let uses: Vec<_> = named(model, Use::Product).collect();
    assert!(uses.iter().all(|u| ["serde", "thiserror"].contains(u)), "{uses:?}");
}

#[test]
fn versions_are_chosen_in_one_place() {
    for package in members() {
        let path = root().join(folder(&package)).join("Cargo.toml");
        let manifest = std::fs::read_to_string(&path).expect("a manifest");
        let mut in_dependencies = false;
        for line in manifest.lines() {
            if line.starts_with('[') {
                in_dependencies = line.ends_with("dependencies]");
            } else if in_dependencies && !line.is_empty() && !line.starts_with('#') {
                assert!(
                    line.contains("workspace = true") || line.contains("path = "),
                    "{}: {line:?} belongs into the root's [workspace.dependencies]",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn the_top_level_holds_only_what_belongs_there() {
    let found: BTreeSet<_> = files().iter().map(|f| f.split('/').next().expect("a first part").to_owned()).collect();
    let strange: Vec<_> = found.iter().filter(|f| !TOP_LEVEL.contains(&f.as_str())).collect();
    assert!(strange.is_empty(), "{strange:?} at the top level: find a folder for it, or add it to TOP_LEVEL");
}

#[test]
fn no_file_is_large() {
    for file in files() {
        let Ok(meta) = std::fs::symlink_metadata(root().join(&file)) else { continue };
        assert!(meta.len() <= 500_000, "{file} has {} bytes: every clone would carry it for good", meta.len());
    }
}

#[test]
fn licences_are_compatible() {
    let mut wrong = Vec::new();
    for package in packages() {
        let Some(license) = &package.license else {
            wrong.push(format!("{} {} names no licence", package.name, package.version));
            continue;
        };
        if package.folder.is_some() {
            assert_eq!(license, "Apache-2.0", "{}", package.name);
        } else if !allowed(license) {
            wrong.push(format!("{} {}: {license}", package.name, package.version));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// True if an SPDX expression can be satisfied with [`LICENCES`]. The old `A/B` means `A OR B`.
fn allowed(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<_> = spaced.split_whitespace().collect();
    let mut at = 0;
    let result = any(&words, &mut at);
    assert_eq!(at, words.len(), "cannot read the licence {expression:?}");
    result
}

fn any(words: &[&str], at: &mut usize) -> bool {
    let mut result = all(words, at);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        result |= all(words, at);
    }
    result
}

fn all(words: &[&str], at: &mut usize) -> bool {
    let mut result = one(words, at);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        result &= one(words, at);
    }
    result
}

fn one(words: &[&str], at: &mut usize) -> bool {
    if words.get(*at) == Some(&"(") {
        *at += 1;
        let result = any(words, at);
        assert_eq!(words.get(*at), Some(&")"), "{words:?}");
        *at += 1;
        return result;
    }
    let mut licence = (*words.get(*at).unwrap_or_else(|| panic!("a licence is missing in {words:?}"))).to_owned();
    *at += 1;
    if words.get(*at) == Some(&"WITH") {
        licence = format!("{licence} WITH {}", words.get(*at + 1).expect("an exception"));
        *at += 2;
    }
    LICENCES.contains(&licence.as_str())
}

#[test]
fn licence_expressions_are_understood() {
    for good in [
        "MIT",
        "MIT OR GPL-3.0",
        "MIT/Apache-2.0",
        "Apache-2.0 WITH LLVM-exception OR MIT",
        "(MIT OR GPL-2.0) AND Zlib",
    ] {
        assert!(allowed(good), "{good}");
    }
    for bad in ["GPL-3.0", "MIT AND GPL-3.0", "(MIT OR Zlib) AND MPL-2.0", "GPL-2.0 WITH Classpath-exception-2.0"] {
        assert!(!allowed(bad), "{bad}");
    }
}

#[test]
fn the_probes_carry_both_licences() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    assert!(read("LICENSE").contains("Apache License"));
    assert!(read("probes/bpf/LICENSE-GPL-2.0").contains("GNU GENERAL PUBLIC LICENSE"));
    for file in files().iter().filter(|f| f.starts_with("probes/bpf/") && (f.ends_with(".c") || f.ends_with(".h"))) {
        let first = read(file);
        let first = first.lines().next().unwrap_or_default();
        assert_eq!(first, "// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0", "{file}");
    }
}
