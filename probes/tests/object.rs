//! The committed BPF object belongs to the source beside it.

use object::{Object, ObjectSection};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The compiler whose output is committed.
const PINNED_CLANG: &str = "14";

fn bpf() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("bpf")
}

fn read(name: &str) -> Vec<u8> {
    let path = bpf().join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn the_object_was_built_from_the_source() {
    let bytes = read("socket.bpf.o");
    let object = object::File::parse(&*bytes).expect("the object is ELF");
    let section = object.section_by_name("meshdiff.source").expect("the object names its source");
    let stored = section.data().expect("the section can be read");
    let stored = std::str::from_utf8(stored).expect("a hash").trim_end_matches('\0');
    let hash: String = Sha256::digest(read("socket.bpf.c")).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(stored, hash, "probes/bpf/socket.bpf.c was changed after the object was built: run `make bpf`");
}

#[test]
fn the_object_says_nothing_of_the_machine_that_built_it() {
    let bytes = read("socket.bpf.o");
    for path in ["/home/", "/root/", "/tmp/", "/usr/include", env!("CARGO_MANIFEST_DIR")] {
        let found = bytes.windows(path.len()).any(|w| w == path.as_bytes());
        assert!(!found, "the object holds the path {path}");
    }
    let object = object::File::parse(&*bytes).expect("the object is ELF");
    assert!(object.section_by_name(".debug_info").is_none(), "the object holds debugging information");
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
    let built = folder.path().join("socket.bpf.o");
    let status = Command::new("sh").arg(bpf().join("build.sh")).arg(&built).status().expect("sh runs");
    assert!(status.success(), "probes/bpf/build.sh failed: {status}");
    let built = std::fs::read(built).expect("the object was built");
    assert!(built == read("socket.bpf.o"), "the committed object differs from what its source builds: run `make bpf`");
}
