//! What can go wrong with a store, in words for the operator.

use super::url::BadStoreUrl;
use crate::damage::PartError;
use crate::error::CaptureError;
use crate::http::HttpError;
use std::io;
use std::path::{Path, PathBuf};

/// A store that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The address is none.
    #[error(transparent)]
    Url(#[from] BadStoreUrl),
    /// It did not answer.
    #[error("the store cannot be asked: {0}")]
    Http(#[from] HttpError),
    /// User or password cannot be sent.
    #[error("the store's user or password has a character that a header cannot hold")]
    BadCredentials,
    /// It said no.
    #[error("{store} refused (HTTP {status}{}): {text}{}", code_text(*code), advice(*code))]
    Refused {
        /// Which.
        store: String,
        /// The HTTP status.
        status: u16,
        /// ClickHouse's number of the error.
        code: Option<u32>,
        /// What it said, cut short.
        text: String,
    },
    /// The capture that was to be stored cannot be read.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// A recording that runs changes until it ends.
    #[error("{} is still being recorded: store it when it has ended", .0.display())]
    StillRecording(PathBuf),
    /// A table of the capture cannot be turned into the store's.
    #[error("cannot prepare {table} of the capture for the store: {reason}")]
    Encode {
        /// The table.
        table: String,
        /// Why.
        reason: String,
    },
    /// The answer is not what was asked for.
    #[error("the store's answer about {table} cannot be read: {reason}")]
    BadAnswer {
        /// The table.
        table: String,
        /// Why.
        reason: String,
    },
    /// The spool cannot be written or read.
    #[error("cannot use {} to keep what the store has not taken yet: {source}", path.display())]
    Spool {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Larger than all that may be kept.
    #[error(
        "a capture of {bytes} bytes is larger than all that may be kept for the store ({limit} bytes): it was dropped"
    )]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
}

fn code_text(code: Option<u32>) -> String {
    code.map_or_else(String::new, |c| format!(", ClickHouse error {c}"))
}

/// What to do about the errors that operators meet.
fn advice(code: Option<u32>) -> &'static str {
    match code {
        Some(UNKNOWN_TABLE | UNKNOWN_DATABASE) => {
            ". Make the tables with `meshdiff store --create`, or with deploy/clickhouse/schema.sql"
        }
        Some(NO_SUCH_COLUMN | UNKNOWN_IDENTIFIER | NOT_FOUND_COLUMN) => {
            ". The tables are of an earlier version: `meshdiff store --create` adds the columns that are missing"
        }
        Some(AUTHENTICATION_FAILED | REQUIRED_PASSWORD | WRONG_PASSWORD | UNKNOWN_USER) => {
            ". Check user and password in the store's address"
        }
        Some(ACCESS_DENIED) => ". The user needs INSERT to write and SELECT to report, on all tables of the database",
        _ => "",
    }
}

// From ClickHouse's src/Common/ErrorCodes.cpp.
const NOT_FOUND_COLUMN: u32 = 10;
const NO_SUCH_COLUMN: u32 = 16;
const UNKNOWN_IDENTIFIER: u32 = 47;
const UNKNOWN_TABLE: u32 = 60;
const UNKNOWN_DATABASE: u32 = 81;
const UNKNOWN_USER: u32 = 192;
const WRONG_PASSWORD: u32 = 193;
const REQUIRED_PASSWORD: u32 = 194;
const ACCESS_DENIED: u32 = 497;
const AUTHENTICATION_FAILED: u32 = 516;
/// Errors that are the data's own: sent again it would be refused again.
const OF_THE_DATA: [u32; 12] = [6, 26, 27, 33, 36, 53, 69, 70, 72, 117, 321, 636];

impl StoreError {
    /// True if the same data will be refused whenever it is sent. Everything else may pass, or be put right by the operator.
    #[must_use]
    pub fn is_of_the_data(&self) -> bool {
        matches!(self, Self::Refused { code: Some(code), .. } if OF_THE_DATA.contains(code))
    }

    pub(crate) fn spool(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Spool { path, source }
    }

    pub(crate) fn encode(table: impl ToString, reason: impl ToString) -> Self {
        Self::Encode { table: table.to_string(), reason: reason.to_string() }
    }

    pub(crate) fn answer(table: impl ToString, reason: impl ToString) -> Self {
        Self::BadAnswer { table: table.to_string(), reason: reason.to_string() }
    }

    pub(crate) fn part(table: impl ToString, reason: &PartError) -> Self {
        Self::answer(table, reason)
    }
}
