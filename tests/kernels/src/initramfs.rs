//! A root file system in memory that holds programs, their shared libraries, other files, and places to mount things at.
//!
//! The format is cpio's `newc` (Documentation/driver-api/early-userspace/buffer-format.rst of the kernel).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// What a root is to hold.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// By path without the first slash.
    files: BTreeMap<String, Vec<u8>>,
}

impl Contents {
    /// With `program` as /init.
    ///
    /// # Errors
    /// If the program or a library of it cannot be read, or `ldd` does not tell which they are.
    pub fn with_init(program: &Path) -> io::Result<Self> {
        let mut contents = Self::default();
        contents.program("/init", program)?;
        Ok(contents)
    }

    /// Adds a program at a path, with the libraries that it needs.
    ///
    /// # Errors
    /// If the program or a library of it cannot be read, or `ldd` does not tell which they are.
    pub fn program(&mut self, at: &str, program: &Path) -> io::Result<()> {
        self.file(at, program)?;
        libraries(program)?.iter().try_for_each(|library| self.file(&library.to_string_lossy(), library))
    }

    /// Adds a file at a path.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn file(&mut self, at: &str, file: &Path) -> io::Result<()> {
        let bytes = std::fs::read(file)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))?;
        self.files.insert(at.trim_start_matches('/').to_owned(), bytes);
        Ok(())
    }

    /// An archive that the kernel unpacks into its first root.
    #[must_use]
    pub fn archive(&self) -> Vec<u8> {
        archive(&self.files)
    }
}

fn archive(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut directories: BTreeSet<String> = ["dev", "proc", "sys", "tmp"].map(str::to_owned).into();
    for name in files.keys() {
        let parents = Path::new(name).ancestors().skip(1).filter(|p| !p.as_os_str().is_empty());
        directories.extend(parents.map(|p| p.to_string_lossy().into_owned()));
    }
    let mut archive = Archive::default();
    for name in &directories {
        archive.entry(name, DIRECTORY, (0, 0), &[]);
    }
    // Process 1 gets it as its standard output.
    archive.entry("dev/console", CHARACTER_DEVICE, (5, 1), &[]);
    for (name, content) in files {
        archive.entry(name, PROGRAM, (0, 0), content);
    }
    archive.entry("TRAILER!!!", 0, (0, 0), &[]);
    archive.bytes
}

/// The shared libraries of a program, its loader among them, by the paths at which it looks for them; none of one that is linked
/// statically, also for another kind of processor.
fn libraries(program: &Path) -> io::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("not found") {
        return Err(io::Error::other(format!("{} lacks libraries:\n{text}", program.display())));
    }
    Ok(parse_ldd(&text))
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`; the vDSO has no path.
fn parse_ldd(text: &str) -> Vec<PathBuf> {
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    text.lines().filter_map(path).collect()
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    fn entry(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) {
        self.inode += 1;
        let size = u32::try_from(content.len()).expect("a file of less than 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("a short name");
        // Inode, mode, uid, gid, links, mtime, size, device (2), device that it is (2), length of the name, check.
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_what_ldd_prints() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let found = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(parse_ldd(text), found);
        assert!(parse_ldd("\tstatically linked\n").is_empty());
    }

    #[test]
    fn entries_are_aligned_and_named() {
        let mut archive = Archive::default();
        archive.entry("init", PROGRAM, (0, 0), b"abcde");
        archive.entry("TRAILER!!!", 0, (0, 0), &[]);
        assert_eq!(&archive.bytes[..14], b"07070100000001");
        // Header 110, name with its zero 5, padded to 116; then the content.
        assert_eq!(&archive.bytes[110..121], b"init\0\0abcde");
        assert_eq!(&archive.bytes[124..130], b"070701");
        assert_eq!(archive.bytes.len() % 4, 0);
    }
}
