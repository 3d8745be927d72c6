//! A capture out of an agent's tar stream. The stream is not trusted: an agent's node may be somebody else's.

use meshdiff_capture::Table;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use tar::{Archive, EntryType};

/// What a capture may be made of at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Bytes of all files.
    pub(super) bytes: u64,
    /// Files.
    pub(super) files: u64,
}

impl Limits {
    /// More than any agent keeps by default, and less than fills a disk.
    pub(super) const DEFAULT: Self = Self { bytes: 16 << 30, files: 100_000 };
}

/// A stream that holds no capture.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnpackError {
    /// The stream broke off, or is no tar.
    #[error("what it sent is not whole: {0}")]
    Stream(io::Error),
    /// It cannot be written here.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A name that no capture has.
    #[error("it sent something that is no part of a capture: {0:?}")]
    Strange(String),
    /// Too much.
    #[error("it sent more than {0}: ask for less with --since or --namespace")]
    TooMuch(String),
    /// No `meta.json`.
    #[error("what it sent has no meta.json, so it is no capture")]
    NoMeta,
}

/// Writes what a stream holds into a folder that is there and empty. Returns how many bytes.
pub(super) fn unpack(stream: impl Read, folder: &Path, limits: Limits) -> Result<u64, UnpackError> {
    let mut archive = Archive::new(stream);
    let (mut bytes, mut files, mut has_meta) = (0u64, 0u64, false);
    for entry in archive.entries().map_err(UnpackError::Stream)? {
        let mut entry = entry.map_err(UnpackError::Stream)?;
        let name = entry.path_bytes().into_owned();
        let strange = || UnpackError::Strange(String::from_utf8_lossy(&name).chars().take(100).collect());
        match entry.header().entry_type() {
            EntryType::Directory => continue,
            EntryType::Regular => {}
            _ => return Err(strange()),
        }
        let place = std::str::from_utf8(&name).ok().and_then(place).ok_or_else(strange)?;
        files += 1;
        bytes = bytes.saturating_add(entry.size());
        if bytes > limits.bytes {
            return Err(UnpackError::TooMuch(format!("{} MiB", limits.bytes >> 20)));
        }
        if files > limits.files {
            return Err(UnpackError::TooMuch(format!("{} files", limits.files)));
        }
        has_meta |= place.file_name().is_some_and(|n| n == META);
        let path = folder.join(&place);
        let failed = |source| UnpackError::Write { path: path.clone(), source };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        // Not over what is there: a name comes once.
        let mut file = File::create_new(&path).map_err(failed)?;
        copy(&mut entry, &mut file, failed)?;
    }
    if has_meta { Ok(bytes) } else { Err(UnpackError::NoMeta) }
}

const META: &str = "meta.json";

/// Where a file of a capture belongs: `meta.json`, or a Parquet file in a table's folder. `None` for any other name.
fn place(name: &str) -> Option<PathBuf> {
    let path = Path::new(name);
    let mut parts = path.components().filter(|c| *c != Component::CurDir).map(|c| match c {
        Component::Normal(part) => part.to_str(),
        _ => None,
    });
    let first = parts.next()??;
    let second = parts.next();
    if parts.next().is_some() {
        return None;
    }
    match second {
        None => (first == META).then(|| PathBuf::from(META)),
        Some(file) => {
            let file = file?;
            let table = Table::ALL.iter().any(|t| t.as_str() == first);
            let plain = file.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) && file.len() <= 200;
            (table && plain && file.ends_with(".parquet") && !file.starts_with('.'))
                .then(|| Path::new(first).join(file))
        }
    }
}

fn copy(from: &mut impl Read, to: &mut File, failed: impl Fn(io::Error) -> UnpackError) -> Result<(), UnpackError> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(UnpackError::Stream(e)),
        };
        io::Write::write_all(to, &buffer[..n]).map_err(&failed)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tar::{Builder, Header};

    /// A tar of entries as they are, whatever their names.
    fn archive(entries: &[(&[u8], EntryType, &[u8])]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (name, kind, content) in entries {
            let mut header = Header::new_ustar();
            header.as_old_mut().name[..name.len()].copy_from_slice(name);
            header.set_entry_type(*kind);
            header.set_size(content.len() as u64);
            header.set_mode(0o4777);
            if matches!(kind, EntryType::Symlink | EntryType::Link) {
                header.set_link_name("/etc/passwd").expect("a name");
            }
            header.set_cksum();
            builder.append(&header, *content).expect("appended");
        }
        builder.into_inner().expect("a tar")
    }

    fn unpacked(bytes: &[u8], limits: Limits) -> (tempfile::TempDir, Result<u64, UnpackError>) {
        let folder = tempfile::tempdir().expect("a folder");
        let inner = folder.path().join("capture");
        fs::create_dir(&inner).expect("a folder");
        let result = unpack(bytes, &inner, limits);
        // Whatever happens, nothing is outside.
        let outside = fs::read_dir(folder.path()).expect("a folder").count();
        assert_eq!(outside, 1, "something was written outside");
        (folder, result)
    }

    const META_ENTRY: (&[u8], EntryType, &[u8]) = (b"meta.json", EntryType::Regular, b"{}");

    #[test]
    fn a_capture_is_unpacked() {
        let tar = archive(&[
            (b"./", EntryType::Directory, b""),
            (b"./meta.json", EntryType::Regular, b"{}"),
            (b"messages/", EntryType::Directory, b""),
            (b"messages/part-00000001.parquet", EntryType::Regular, b"PAR1"),
        ]);
        let (folder, result) = unpacked(&tar, Limits::DEFAULT);
        assert_eq!(result.expect("a capture"), 6);
        let part = folder.path().join("capture/messages/part-00000001.parquet");
        assert_eq!(fs::read(&part).expect("the part"), b"PAR1");
        // Neither owner nor mode comes from outside.
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(part).expect("the part").permissions().mode() & 0o6111, 0);
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let names: [&[u8]; 9] = [
            b"../meta.json",
            b"/etc/meta.json",
            b"messages/../../x.parquet",
            b"messages/deep/x.parquet",
            b"secrets/x.parquet",
            b"messages/x.sh",
            b"messages/.parquet",
            b"messages/a b.parquet",
            b"messages/\xff.parquet",
        ];
        for name in names {
            let (_folder, result) =
                unpacked(&archive(&[META_ENTRY, (name, EntryType::Regular, b"x")]), Limits::DEFAULT);
            assert!(matches!(result, Err(UnpackError::Strange(_))), "{}: {result:?}", String::from_utf8_lossy(name));
        }
        for kind in [EntryType::Symlink, EntryType::Link, EntryType::Fifo, EntryType::Char] {
            let (_folder, result) =
                unpacked(&archive(&[META_ENTRY, (b"messages/x.parquet", kind, b"")]), Limits::DEFAULT);
            assert!(matches!(result, Err(UnpackError::Strange(_))), "{kind:?}: {result:?}");
        }
    }

    #[test]
    fn a_name_comes_once() {
        let (_folder, result) = unpacked(&archive(&[META_ENTRY, META_ENTRY]), Limits::DEFAULT);
        assert!(matches!(result, Err(UnpackError::Write { .. })), "{result:?}");
    }

    #[test]
    fn limits_hold_before_anything_is_written() {
        let tar = archive(&[META_ENTRY, (b"messages/a.parquet", EntryType::Regular, &[0; 5_000])]);
        let (_folder, result) = unpacked(&tar, Limits { bytes: 4_000, files: 10 });
        assert!(matches!(result, Err(UnpackError::TooMuch(_))), "{result:?}");
        let (_folder, result) = unpacked(&tar, Limits { bytes: 40_000, files: 1 });
        assert!(matches!(result, Err(UnpackError::TooMuch(_))), "{result:?}");
        // A size that the header only claims.
        let mut liar = tar;
        liar.truncate(2_000);
        let (_folder, result) = unpacked(&liar, Limits::DEFAULT);
        assert!(matches!(result, Err(UnpackError::Stream(_))), "{result:?}");
    }

    #[test]
    fn what_is_no_capture_is_refused() {
        let (_folder, result) = unpacked(b"", Limits::DEFAULT);
        assert!(matches!(result, Err(UnpackError::NoMeta)), "{result:?}");
        let (_folder, result) = unpacked(&[b'x'; 2_048], Limits::DEFAULT);
        assert!(result.is_err(), "{result:?}");
    }
}
