//! What could not be read of a capture, so that it can be counted and shown instead of passed over.

use crate::table::Table;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// Why a part was left out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartError {
    /// The operating system refused.
    #[error("it cannot be read ({0})")]
    Io(String),
    /// The end, where Parquet keeps its footer, is missing.
    #[error("it is cut short: the end of a Parquet file is missing")]
    Truncated,
    /// Its bytes are not those that were written.
    #[error("it is damaged: its checksum does not match")]
    Checksum,
    /// It is not Parquet, or damaged Parquet.
    #[error("it is not a readable Parquet file ({0})")]
    Corrupt(String),
    /// It claims more than a part can hold.
    #[error("it claims {0}, which is more than a part of a capture can hold")]
    TooLarge(String),
    /// A column is missing.
    #[error("the column {column:?} is missing")]
    MissingColumn {
        /// The column.
        column: &'static str,
    },
    /// A column has another type.
    #[error("the column {column:?} has the type {found}, which is not the documented one")]
    WrongType {
        /// The column.
        column: &'static str,
        /// Its type in the file.
        found: String,
    },
}

/// A part that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedPart {
    /// Its table.
    pub table: Table,
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub reason: PartError,
}

impl fmt::Display for DamagedPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} was left out: {}", self.path.display(), self.reason)
    }
}

/// All that could not be read of a capture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// Parts that were left out, in order of table and part.
    pub parts: Vec<DamagedPart>,
    /// Rows that hold a value which means nothing, and the column of the first of them.
    pub rejected_rows: BTreeMap<Table, (u64, &'static str)>,
    /// Parts that `meta.json` counts and that are not there.
    pub missing_parts: BTreeMap<Table, u64>,
    /// Parts that were being written when the recorder died. Their rows are lost.
    pub leftover_temporary_files: u64,
}

impl Damage {
    /// True if everything could be read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// One sentence for each kind of damage.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut out: Vec<String> = self.parts.iter().map(ToString::to_string).collect();
        for (table, (rows, column)) in &self.rejected_rows {
            out.push(match rows {
                1 => format!("1 row of {table} was left out: it holds a value that means nothing (in {column:?})"),
                n => format!(
                    "{n} rows of {table} were left out: they hold values that mean nothing (the first in {column:?})"
                ),
            });
        }
        for (table, parts) in &self.missing_parts {
            let counted = crate::META_FILE;
            out.push(match parts {
                1 => format!("1 part of {table} that {counted} counts is not there"),
                n => format!("{n} parts of {table} that {counted} counts are not there"),
            });
        }
        if self.leftover_temporary_files > 0 {
            out.push(format!(
                "{} unfinished files were left behind by a recorder that died: what they held is lost",
                self.leftover_temporary_files
            ));
        }
        out
    }
}
