//! What cargo and git know of this repository, for tests of its structure.

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

/// The repository's folder.
#[must_use]
pub fn root() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", ".."].iter().collect()
}

/// How one package uses another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// In its library or binary, or in its build.
    Product,
    /// In its tests, examples and benches only.
    Tests,
}

/// A package of the workspace, or one that it depends on.
#[derive(Clone, Debug)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its licence as an SPDX expression, or what it says in place of one.
    pub license: Option<String>,
    /// The folder that it lies in, relative to the repository; `None` for packages of others.
    pub folder: Option<String>,
    /// The names of the packages that its manifest names.
    pub uses: BTreeSet<(String, Use)>,
}

/// Every package of the workspace and every package that it is built with, as `cargo metadata` lists them.
///
/// # Panics
/// If cargo fails, for instance because Cargo.lock is out of date.
#[must_use]
pub fn packages() -> Vec<Package> {
    let metadata: Value = serde_json::from_slice(&run(
        &std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()),
        // Of the platforms' packages only those that are built: others need not have been fetched.
        &["metadata", "--locked", "--format-version=1", "--filter-platform=x86_64-unknown-linux-gnu"],
    ))
    .expect("cargo metadata is JSON");
    let root = root().canonicalize().expect("the repository");
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let list = |value: &Value| value.as_array().cloned().expect("a list");
    let members: BTreeSet<_> = list(&metadata["workspace_members"]).iter().filter_map(text).collect();
    let package = |p: &Value| {
        let manifest = PathBuf::from(text(&p["manifest_path"]).expect("a path"));
        let ours = members.contains(p["id"].as_str().expect("an id"));
        let folder = || manifest.parent()?.strip_prefix(&root).ok().map(|f| f.display().to_string());
        Package {
            name: text(&p["name"]).expect("a name"),
            version: text(&p["version"]).expect("a version"),
            license: text(&p["license"]),
            folder: ours.then(folder).flatten(),
            uses: list(&p["dependencies"])
                .iter()
                .map(|d| {
                    let kind = if d["kind"] == "dev" { Use::Tests } else { Use::Product };
                    (text(&d["name"]).expect("a name"), kind)
                })
                .collect(),
        }
    };
    list(&metadata["packages"]).iter().map(package).collect()
}

/// The packages of the workspace.
///
/// # Panics
/// As [`packages`].
#[must_use]
pub fn members() -> Vec<Package> {
    packages().into_iter().filter(|p| p.folder.is_some()).collect()
}

/// The files that git keeps, or would keep if they were added, relative to the repository.
///
/// # Panics
/// If this is no git checkout.
#[must_use]
pub fn files() -> Vec<String> {
    // The checkout may belong to another user than the one who runs the tests.
    let listed =
        run("git", &["-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let listed = String::from_utf8(listed).expect("file names are UTF-8");
    listed.split_terminator('\0').map(str::to_owned).collect()
}

fn run(program: &str, args: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(args).current_dir(root()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}
