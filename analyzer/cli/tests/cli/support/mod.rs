//! What the tests of the binary share.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Ends a program that hangs.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The binary that was built with these tests.
pub(crate) const MESHDIFF: &str = env!("CARGO_BIN_EXE_meshdiff");

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    /// Asserts the exit code, that nothing went to stdout if it is not 0, and that stderr says all of `words`.
    #[track_caller]
    pub(crate) fn says(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(code == 0 || self.stdout.is_empty(), "a failure wrote to stdout: {self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in: {}", self.stderr);
        }
        assert!(!self.stderr.contains('\u{1b}'), "colours although stderr is no terminal: {:?}", self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }
}

/// Runs a program to its end.
pub(crate) fn run(program: &str, args: &[&str], folder: &Path) -> Ended {
    let mut command = assert_cmd::Command::new(program);
    let output = command.args(args).current_dir(folder).timeout(TIMEOUT).output().expect("the program runs");
    Ended {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

/// Runs meshdiff in a folder.
pub(crate) fn meshdiff(folder: &Path, args: &[&str]) -> Ended {
    run(MESHDIFF, args, folder)
}

/// The capture that the repository holds.
pub(crate) fn fixture() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/bookinfo-hidden-delay/capture");
    path.canonicalize().expect("tests/fixtures/bookinfo-hidden-delay/capture is in the repository")
}

/// A copy of it that may be damaged, under this name in `folder`.
pub(crate) fn copy_of_fixture(folder: &Path, name: &str) -> PathBuf {
    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir(to).expect("a folder");
        for entry in std::fs::read_dir(from).expect("a folder") {
            let entry = entry.expect("an entry");
            let target = to.join(entry.file_name());
            if entry.file_type().expect("a type").is_dir() {
                copy(&entry.path(), &target);
            } else {
                std::fs::copy(entry.path(), target).expect("copied");
            }
        }
    }
    let to = folder.join(name);
    copy(&fixture(), &to);
    to
}

/// Every file below a folder with its content, in order.
pub(crate) fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push((path.clone(), std::fs::read(path).expect("readable")));
            }
        }
    }
    files.sort();
    files
}

/// Waits until `done`, or fails.
#[track_caller]
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within {TIMEOUT:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
