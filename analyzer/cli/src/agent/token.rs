//! The token that callers must know, in a file that may change while the agent runs: a Secret that is mounted.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use subtle::ConstantTimeEq;

/// Shorter ones can be guessed.
const SHORTEST: usize = 16;
/// More than this is no token.
const LONGEST: u64 = 4096;

/// The token cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    /// The file.
    #[error("cannot read the token from {}: {source}. Mount the Secret `meshdiff-token` there, or name the file with --token-file", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// Its contents.
    #[error("the token in {} has {length} characters, and must have at least {SHORTEST} and at most {LONGEST}: make one with `openssl rand -hex 32`", path.display())]
    Length { path: PathBuf, length: u64 },
}

/// A token that is read again when its file changes.
#[derive(Debug)]
pub(crate) struct Token {
    path: PathBuf,
    current: Mutex<Current>,
}

struct Current {
    secret: Vec<u8>,
    seen: Option<Version>,
}

/// Not the token.
impl std::fmt::Debug for Current {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// What tells one state of the file from another. Secrets are replaced as a whole, through a symbolic link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    inode: u64,
    changed: (i64, i64),
    length: u64,
}

impl Token {
    /// Reads it for the first time.
    pub(crate) fn load(path: &Path) -> Result<Self, TokenError> {
        let seen = version(path).ok();
        let secret = read(path)?;
        Ok(Self { path: path.to_owned(), current: Mutex::new(Current { secret, seen }) })
    }

    /// True if this is the token. Takes the same time wherever the two differ.
    pub(crate) fn is(&self, given: &[u8]) -> bool {
        let mut current = self.lock();
        // While a Secret is replaced there may be none for a moment: the old one holds until there is a new one.
        if let Ok(now) = version(&self.path)
            && current.seen != Some(now)
        {
            current.seen = Some(now);
            match read(&self.path) {
                Ok(secret) => {
                    if secret != current.secret {
                        tracing::info!("the token has changed");
                        current.secret = secret;
                    }
                }
                Err(error) => tracing::warn!(%error, "the token that was read before holds on"),
            }
        }
        current.secret.ct_eq(given).into()
    }

    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn version(path: &Path) -> io::Result<Version> {
    let meta = fs::metadata(path)?;
    Ok(Version { inode: meta.ino(), changed: (meta.mtime(), meta.mtime_nsec()), length: meta.len() })
}

fn read(path: &Path) -> Result<Vec<u8>, TokenError> {
    let failed = |source| TokenError::Read { path: path.to_owned(), source };
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > LONGEST {
        return Err(TokenError::Length { path: path.to_owned(), length });
    }
    let secret = fs::read(path).map_err(failed)?.trim_ascii().to_vec();
    if secret.len() < SHORTEST {
        return Err(TokenError::Length { path: path.to_owned(), length: secret.len() as u64 });
    }
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_again_when_it_changes() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("token");
        assert!(Token::load(&path).unwrap_err().to_string().contains("meshdiff-token"));
        fs::write(&path, "short\n").expect("written");
        assert!(Token::load(&path).unwrap_err().to_string().contains("5 characters"));
        fs::write(&path, "0123456789abcdef0123\n").expect("written");
        let token = Token::load(&path).expect("a token");
        assert!(token.is(b"0123456789abcdef0123"));
        for other in [&b"0123456789abcdef0124"[..], b"", b"0123456789abcdef0123\n", b"0123456789abcdef01234"] {
            assert!(!token.is(other));
        }
        // As a Secret is replaced: by another file under the same name.
        fs::write(dir.path().join("new"), "another-token-of-some-length").expect("written");
        fs::rename(dir.path().join("new"), &path).expect("renamed");
        assert!(token.is(b"another-token-of-some-length") && !token.is(b"0123456789abcdef0123"));
        // What cannot be used changes nothing.
        fs::write(&path, "").expect("written");
        assert!(token.is(b"another-token-of-some-length") && !token.is(b""));
        fs::remove_file(&path).expect("removed");
        assert!(token.is(b"another-token-of-some-length"));
        assert!(!format!("{token:?}").contains("another"));
    }
}
