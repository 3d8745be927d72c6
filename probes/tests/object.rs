//! The committed BPF objects belong to the sources beside them.

use object::{Object, ObjectSection};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The compiler whose output is committed.
const PINNED_CLANG: &str = "14";

/// Every object, built of `NAME.bpf.c` and whatever that includes of the folder.
const OBJECTS: [&str; 2] = ["kprobe", "socket"];

fn bpf() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("bpf")
}

fn read(name: &str) -> Vec<u8> {
    let path = bpf().join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn object_of(name: &str) -> Vec<u8> {
    read(&format!("{name}.bpf.o"))
}

/// The names in the folder that end like this, in order.
fn sources(end: &str) -> Vec<String> {
    let entries = std::fs::read_dir(bpf()).expect("the folder").map(|e| e.expect("an entry").file_name());
    let mut names: Vec<String> = entries.filter_map(|n| Some(n.to_str()?.to_owned())).collect();
    names.retain(|name| name.ends_with(end));
    names.sort_unstable();
    names
}

#[test]
fn the_objects_were_built_from_their_sources() {
    let all: Vec<u8> = sources(".h").iter().chain(&sources(".bpf.c")).flat_map(|name| read(name)).collect();
    let hash: String = Sha256::digest(all).iter().map(|b| format!("{b:02x}")).collect();
    for name in OBJECTS {
        let bytes = object_of(name);
        let object = object::File::parse(&*bytes).expect("the object is ELF");
        let section = object.section_by_name("meshdiff.source").expect("the object names its source");
        let stored = section.data().expect("the section can be read");
        let stored = std::str::from_utf8(stored).expect("a hash").trim_end_matches('\0');
        assert_eq!(stored, hash, "a source was changed after {name}.bpf.o was built: run `make bpf`");
    }
}

#[test]
fn every_source_has_its_object() {
    assert_eq!(sources(".bpf.c"), OBJECTS.map(|name| format!("{name}.bpf.c")));
    assert_eq!(sources(".bpf.o"), OBJECTS.map(|name| format!("{name}.bpf.o")));
}

#[test]
fn the_objects_say_nothing_of_the_machine_that_built_them() {
    for name in OBJECTS {
        let bytes = object_of(name);
        for path in ["/home/", "/root/", "/tmp/", "/usr/include", env!("CARGO_MANIFEST_DIR")] {
            let found = bytes.windows(path.len()).any(|w| w == path.as_bytes());
            assert!(!found, "{name}.bpf.o holds the path {path}");
        }
        let object = object::File::parse(&*bytes).expect("the object is ELF");
        assert!(object.section_by_name(".debug_info").is_none(), "{name}.bpf.o holds debugging information");
    }
}

#[test]
fn the_pinned_compiler_builds_the_same_bytes() {
    let version = Command::new("clang").arg("--version").output();
    let version = version.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    if !version.contains(&format!("version {PINNED_CLANG}.")) {
        println!("not compared: clang {PINNED_CLANG} is not here, but {:?}", version.lines().next());
        return;
    }
    if !Path::new("/usr/include/bpf/bpf_helpers.h").exists() {
        println!("not compared: libbpf's headers are not here");
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let status = Command::new("sh").arg(bpf().join("build.sh")).arg(folder.path()).status().expect("sh runs");
    assert!(status.success(), "probes/bpf/build.sh failed: {status}");
    for name in OBJECTS {
        let built = std::fs::read(folder.path().join(format!("{name}.bpf.o"))).expect("the object was built");
        assert!(built == object_of(name), "{name}.bpf.o differs from what its source builds: run `make bpf`");
    }
}
