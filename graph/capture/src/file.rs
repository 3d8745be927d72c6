//! Files that are there whole or not at all.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// What the name of an unfinished file ends with.
pub(crate) const TEMPORARY: &str = "tmp";

/// Writes a file under a temporary name, syncs it, and gives it its name. After this returns, the file survives a power
/// failure; before, nothing of that name is there (or the file that was there before is).
pub(crate) fn write_whole(path: &Path, contents: &[u8], sync: bool) -> io::Result<()> {
    let temporary = Temporary::write(path, contents)?;
    if sync {
        temporary.file().sync_all()?;
    }
    temporary.keep()?;
    match path.parent() {
        Some(dir) if sync => sync_dir(dir),
        _ => Ok(()),
    }
}

/// A file that is written and does not have its name yet. It is deleted unless it is [kept](Self::keep).
#[derive(Debug)]
pub(crate) struct Temporary {
    file: File,
    path: PathBuf,
    kept: bool,
}

impl Temporary {
    /// Writes what is to become the file of this name.
    pub(crate) fn write(path: &Path, contents: &[u8]) -> io::Result<Self> {
        let file = File::create(temporary_name(path))?;
        let mut temporary = Self { file, path: path.to_owned(), kept: false };
        temporary.file.write_all(contents)?;
        Ok(temporary)
    }

    pub(crate) const fn file(&self) -> &File {
        &self.file
    }

    /// The name that it is to have.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name.
    pub(crate) fn keep(mut self) -> io::Result<()> {
        fs::rename(temporary_name(&self.path), &self.path)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept {
            // Gives back the room that it took; that this may fail as well changes nothing about the first error.
            let _ = fs::remove_file(temporary_name(&self.path));
        }
    }
}

/// Makes the names in a folder survive a power failure.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.file_name().map(OsStr::to_owned).unwrap_or_default();
    name.push(".");
    name.push(TEMPORARY);
    path.with_file_name(name)
}

/// True for the name of an unfinished file.
pub(crate) fn is_temporary(path: &Path) -> bool {
    path.extension() == Some(OsStr::new(TEMPORARY))
}

/// The number in `part-NNNNN.parquet`.
pub(crate) fn part_number(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    name.strip_prefix("part-")?.strip_suffix(".parquet")?.parse().ok()
}

/// The name of a part.
pub(crate) fn part_name(number: u64) -> String {
    format!("part-{number:05}.parquet")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_whole_or_absent() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("part-00001.parquet");
        write_whole(&path, b"one", true).expect("written");
        write_whole(&path, b"two", true).expect("replaced");
        assert_eq!(fs::read(&path).expect("read"), b"two");
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1);
        assert!(write_whole(&dir.path().join("nowhere/x"), b"", true).is_err());
    }

    #[test]
    fn part_names_go_both_ways() {
        for number in [0, 7, 99_999, 100_000] {
            assert_eq!(part_number(Path::new(&part_name(number))), Some(number));
        }
        assert_eq!(part_number(Path::new("part-1.parquet.tmp")), None);
        assert!(is_temporary(Path::new("sockets/part-00001.parquet.tmp")));
    }
}
