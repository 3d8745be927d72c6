//! Reads captures back from the store.

use super::client::{Client, Query};
use super::encode::{CaptureRow, quoted};
use super::error::StoreError;
use super::requests::REQUESTS;
use super::schema::{self, CAPTURES, Deployment};
use super::select::{Group, Kept, QUOTE, STORED};
use super::summary::{ClassCount, Cut, Doubts, EntrySums, HopSums, NearSums, Oddity, SlowRow, StretchSums, Summary};
use super::url::StoreUrl;
use crate::SCHEMA_VERSION;
use crate::damage::Damage;
use crate::meta::{Meta, NotMeta, RecordingState};
use crate::part;
use crate::reader::{CaptureData, CaptureState, last_of_each, merged};
use crate::table::Table;
use crate::tables::Row;
use crate::view::Interner;
use meshdiff_model::{DurationNs, HopSide, Http2Stream, Message, Process, Proxy, Socket, SocketMetrics};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A capture is asked for whole, and with those that began this long before the time that was asked for: a request's connections are
/// told by what was said on them before.
const LEAD: DurationNs = DurationNs::from_millis(60_000);
/// Time counts back by each node's own clock. A node is there of which the newest capture ended within the time that was asked for,
/// or so much before it by a clock that may be wrong.
const CLOCKS: DurationNs = DurationNs::from_millis(600_000);
/// Captures of one recorder follow each other. Those that overlap by more than this are of two recorders, who saw the same.
const OVERLAP: DurationNs = DurationNs::from_millis(1_000);
/// A question's answer has at most about this many rows, and is about at most this many captures.
const MOST_ROWS: u64 = 1_000_000;
const MOST_CAPTURES: usize = 200;
/// Of more captures than this, which make four hours of an agent's, rows are not told apart by namespace: their names would not fit into
/// a question's address.
const MOST_PRUNED: usize = 500;
/// Neither would lists of pods that are longer than this.
const MOST_NAMED: usize = 20_000;

/// Of more captures than this, which make a day of an agent's, or a quarter of an hour of a hundred agents', requests are not summed up.
const MOST_SUMMED: usize = 3_000;

/// What is wanted of a store.
#[derive(Clone, Debug)]
pub struct Choice {
    /// How far back from the end of the newest capture.
    pub since: Duration,
    /// Only what a report of this namespace is made from.
    pub namespace: Option<String>,
}

/// What one node recorded during one boot.
#[derive(Clone, Debug)]
pub struct StoredRecording {
    /// The node.
    pub node: String,
    /// The metas of the captures that it is made of, in order.
    pub metas: Vec<Meta>,
    /// Everything in them, as if it were one capture, with the first one's meta.
    pub data: CaptureData,
    /// What the operator should know, in sentences.
    pub notes: Vec<String>,
    /// Rows that do not matter to the namespace were left in the store.
    pub pruned: bool,
}

/// A ClickHouse with captures in it. Blocks while it asks: not to be used in asynchronous code.
#[derive(Debug)]
pub struct Store {
    client: Client,
}

/// A capture of the store.
#[derive(Debug)]
struct Known {
    row: CaptureRow,
    meta: Meta,
}

impl Store {
    /// Does not connect yet.
    ///
    /// # Errors
    /// If the certificates that the address names cannot be read.
    pub fn open(url: StoreUrl) -> Result<Self, StoreError> {
        Ok(Self { client: Client::new(url)? })
    }

    /// Makes the tables that are missing, and the columns that tables of an earlier version lack.
    ///
    /// # Errors
    /// If the store refuses.
    pub fn create_tables(&self) -> Result<(), StoreError> {
        let bad = |reason: String| StoreError::encode(CAPTURES, reason);
        for statement in schema::statements(Deployment::Single).map_err(bad)? {
            self.client.run(&Query::new(statement))?;
        }
        let there = self.columns()?;
        for (table, column, statement) in schema::added_columns().map_err(bad)? {
            if !there.contains(&(table, column)) {
                self.client.run(&Query::new(statement))?;
            }
        }
        Ok(())
    }

    /// The tables' columns.
    fn columns(&self) -> Result<BTreeSet<(String, String)>, StoreError> {
        #[derive(Deserialize)]
        struct Column {
            table: String,
            name: String,
        }
        let sql = "SELECT table, name FROM system.columns WHERE database = {database:String} FORMAT JSONEachRow";
        let query = Query::new(sql).with("database", self.client.url().database());
        Ok(self.json_rows::<Column>(&query, CAPTURES)?.into_iter().map(|c| (c.table, c.name)).collect())
    }

    /// Finds the captures that were chosen.
    ///
    /// # Errors
    /// If the store refuses, or answers what cannot be read.
    pub fn find(&self, choice: &Choice) -> Result<Found, StoreError> {
        Ok(Found { groups: grouped(self.captures(choice.since)?), namespace: choice.namespace.clone() })
    }

    /// Reads what was chosen, one recording for each node (and boot), in order of their names.
    ///
    /// # Errors
    /// If the store refuses, or answers what cannot be read.
    pub fn read(&self, choice: &Choice) -> Result<Vec<StoredRecording>, StoreError> {
        self.read_found(&self.find(choice)?)
    }

    /// Reads captures that were found.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_found(&self, found: &Found) -> Result<Vec<StoredRecording>, StoreError> {
        // Clocks of several nodes are told by all that they said to each other: nothing of it may be missing.
        let one = found.groups.len() == 1 && found.groups.iter().all(|(captures, _)| captures.len() <= MOST_PRUNED);
        let namespace = found.namespace.as_deref().filter(|_| one);
        found.groups.iter().map(|(captures, notes)| self.read_group(captures, notes.clone(), namespace)).collect()
    }

    /// Reads of captures that were found what the lines between programs are made of: no request can be told by it.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_lines(&self, found: &Found) -> Result<Vec<StoredRecording>, StoreError> {
        let of = |(captures, notes): &(Vec<Known>, Vec<String>)| {
            let mut notes = notes.clone();
            let (ids, ends) = names_of(captures)?;
            let group =
                Group { node: &captures[0].row.capture_node, segments: ends, all: &ids, kept: None, lines_only: true };
            let mut reading = Reading { store: self, captures, group, damage: Damage::default() };
            notes.extend(reading.incomplete()?);
            let data = reading.read()?;
            notes.extend(captures.iter().flat_map(|c| c.row.warnings.iter().cloned()));
            Ok(StoredRecording {
                node: captures[0].row.capture_node.clone(),
                metas: captures.iter().map(|c| c.meta.clone()).collect(),
                data,
                notes,
                pruned: true,
            })
        };
        found.groups.iter().map(of).collect()
    }

    /// Says why the requests of captures that were found cannot be summed up in the store, if so.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn why_not(&self, found: &Found, cut: &Cut) -> Result<Option<Why>, StoreError> {
        if let Some(why) = found.why_not() {
            return Ok(Some(why));
        }
        #[derive(Deserialize)]
        struct Stored {
            rows: u64,
        }
        let stored: Vec<Stored> = found.with_summary(cut, |summary| self.json_rows(&summary.stored(), REQUESTS))?;
        let (there, wanted) = (stored.first().map_or(0, |s| s.rows), found.requests());
        if there != wanted {
            return Ok(Some(Why::Incomplete { there, wanted }));
        }
        let doubts: Vec<Doubts> = found.with_summary(cut, |summary| self.json_rows(&summary.doubts(), REQUESTS))?;
        let doubts = doubts.first().copied().unwrap_or_default();
        Ok((!doubts.none()).then_some(Why::Doubts(doubts)))
    }

    /// Counts of the requests by coverage.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn counts(&self, found: &Found, cut: &Cut) -> Result<Vec<ClassCount>, StoreError> {
        found.with_summary(cut, |summary| self.json_rows(&summary.counts(), REQUESTS))
    }

    /// What is counted and is no request.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn oddities(&self, found: &Found, cut: &Cut) -> Result<Vec<Oddity>, StoreError> {
        found.with_summary(cut, |summary| self.json_rows(&summary.oddities(), REQUESTS))
    }

    /// Statistics by hop.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn hops(&self, found: &Found, cut: &Cut) -> Result<(Vec<HopSums>, Vec<NearSums>), StoreError> {
        found.with_summary(cut, |summary| {
            Ok((self.json_rows(&summary.hops(), REQUESTS)?, self.json_rows(&summary.near(), REQUESTS)?))
        })
    }

    /// Entry requests whose trees are full, by hop.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn entries(&self, found: &Found, cut: &Cut) -> Result<Vec<EntrySums>, StoreError> {
        found.with_summary(cut, |summary| self.json_rows(&summary.entries(), REQUESTS))
    }

    /// What the entry requests of one hop caused.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn stretches(&self, found: &Found, cut: &Cut, of: &EntrySums) -> Result<Vec<StretchSums>, StoreError> {
        found.with_summary(cut, |summary| self.json_rows(&summary.stretches(&of.client, &of.server), REQUESTS))
    }

    /// The slowest full entry requests, slowest first, and after them what they caused, in order of start.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn slowest(&self, found: &Found, cut: &Cut) -> Result<Vec<SlowRow>, StoreError> {
        found.with_summary(cut, |summary| self.json_rows(&summary.slowest(), REQUESTS))
    }

    fn captures(&self, since: Duration) -> Result<Vec<Known>, StoreError> {
        let back = i64::try_from(since.as_nanos()).unwrap_or(i64::MAX).saturating_add(LEAD.0);
        let sql = format!(
            "SELECT c.capture_id AS capture_id, c.capture_node AS capture_node, c.segment AS segment, c.end_ns AS end_ns, \
             c.boot_id AS boot_id, c.rows AS rows, c.meta AS meta, c.warnings AS warnings, c.joined AS joined FROM {0} AS c FINAL \
             INNER JOIN (SELECT capture_node, max(end_ns) AS newest FROM {0} GROUP BY capture_node) AS n ON c.capture_node = n.capture_node \
             WHERE toInt128(c.end_ns) >= toInt128(n.newest) - toInt128({{back:Int64}}) \
             AND toInt128(n.newest) >= (SELECT toInt128(max(end_ns)) FROM {0}) - toInt128({{away:Int64}}) \
             ORDER BY capture_node, boot_id, segment, capture_id FORMAT JSONEachRow",
            quoted(CAPTURES)
        );
        let query = Query::new(sql).with("back", back).with("away", back.saturating_add(CLOCKS.0)).setting(QUOTE, 0);
        let rows: Vec<CaptureRow> = self.json_rows(&query, CAPTURES)?;
        rows.into_iter()
            .map(|row| {
                let meta = Meta::from_json(row.meta.as_bytes()).map_err(|error| {
                    let reason = match error {
                        NotMeta::Newer(found) => format!(
                            "a capture has the schema version {found:?}, and this meshdiff reads up to {SCHEMA_VERSION:?}"
                        ),
                        NotMeta::Bad(reason) => reason,
                    };
                    StoreError::answer(CAPTURES, reason)
                })?;
                Ok(Known { row, meta })
            })
            .collect()
    }

    fn read_group(
        &self,
        captures: &[Known],
        mut notes: Vec<String>,
        namespace: Option<&str>,
    ) -> Result<StoredRecording, StoreError> {
        let (all, segments) = names_of(captures)?;
        let node = captures[0].row.capture_node.clone();
        let whole = Group { node: &node, segments, all: &all, kept: None, lines_only: false };
        let mut reading = Reading { store: self, captures, group: whole.clone(), damage: Damage::default() };
        notes.extend(reading.incomplete()?);
        let mut data = None;
        let kept = namespace.map(|namespace| self.kept(&whole, namespace)).transpose()?.flatten();
        if let Some(kept) = &kept {
            reading.group.kept = Some(kept);
            let pruned = reading.read()?;
            // A namespace without any message where there are others: what was left out tells why.
            let messages = captures.iter().any(|c| c.row.rows.get(Table::Messages.as_str()).is_some_and(|n| *n > 0));
            let enough = !pruned.access_logs.is_empty() && (!pruned.messages.is_empty() || !messages);
            data = enough.then_some(pruned);
            reading.group = whole;
        }
        let pruned = data.is_some();
        let data = match data {
            Some(data) => data,
            None => {
                reading.damage = Damage::default();
                reading.read()?
            }
        };
        notes.extend(captures.iter().flat_map(|c| c.row.warnings.iter().cloned()));
        Ok(StoredRecording {
            node: node.clone(),
            metas: captures.iter().map(|c| c.meta.clone()).collect(),
            data,
            notes,
            pruned,
        })
    }

    /// The pods that matter to a namespace; `None` where nobody names it, or where they are too many for an address.
    fn kept(&self, group: &Group<'_>, namespace: &str) -> Result<Option<Kept>, StoreError> {
        let found: Vec<Kept> = self.json_rows(&group.kept(namespace), Table::Sockets.as_str())?;
        let fits = |kept: &Kept| kept.netns.len() + kept.addresses.len() < MOST_NAMED;
        Ok(found.into_iter().next().filter(|kept| !kept.addresses.is_empty() && fits(kept)))
    }

    fn json_rows<T: serde::de::DeserializeOwned>(&self, query: &Query, table: &str) -> Result<Vec<T>, StoreError> {
        let answer = self.client.select(query)?;
        serde_json::Deserializer::from_slice(&answer)
            .into_iter()
            .collect::<Result<_, _>>()
            .map_err(|e| StoreError::answer(table, e))
    }
}

/// The names of captures with commas, and when the first and the last of them began.
fn names_of(captures: &[Known]) -> Result<(String, (i64, i64)), StoreError> {
    let ids: Vec<&str> = captures.iter().map(|c| c.row.capture_id.as_str()).collect();
    let (Some(first), Some(last)) = (captures.first(), captures.last()) else {
        return Err(StoreError::answer(CAPTURES, "no capture"));
    };
    Ok((ids.join(","), (first.row.segment, last.row.segment)))
}

/// Captures that were chosen: one group for each node and boot, in order, with what was noticed about them.
#[derive(Debug)]
pub struct Found {
    groups: Vec<(Vec<Known>, Vec<String>)>,
    namespace: Option<String>,
}

/// Why the requests of captures cannot be summed up in the store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Why {
    /// They are not there.
    #[error(
        "the store has no requests of {captures} of the captures: an earlier meshdiff stored them, or they were stored one by one"
    )]
    NotJoined {
        /// How many captures.
        captures: usize,
    },
    /// Some were deleted, or are not replicated yet.
    #[error("the store has {there} of the {wanted} requests: some were deleted, or are not replicated yet")]
    Incomplete {
        /// How many there are.
        there: u64,
        /// How many were stored.
        wanted: u64,
    },
    /// Too many captures for one question.
    #[error("{captures} captures are more than one question can name")]
    TooMany {
        /// How many.
        captures: usize,
    },
    /// It would not be certain.
    #[error(
        "it would not be certain for all requests: {} pairs of halves depend on each other, {} halves have no partner, {} no connection, \
         {} are there several times, and {} requests are too deep in their trees", .0.pairs, .0.lonely, .0.nowhere, .0.several, .0.deep
    )]
    Doubts(Doubts),
}

impl Found {
    /// The captures' metas, one list for each node and boot.
    #[must_use]
    pub fn metas(&self) -> Vec<(String, Vec<Meta>)> {
        let of = |(captures, _): &(Vec<Known>, Vec<String>)| {
            let node = captures.first().map(|c| c.row.capture_node.clone()).unwrap_or_default();
            (node, captures.iter().map(|c| c.meta.clone()).collect())
        };
        self.groups.iter().map(of).collect()
    }

    /// How many rows a table has in all captures.
    #[must_use]
    pub fn rows(&self, table: Table) -> u64 {
        self.count(table.as_str())
    }

    /// How many rows `requests` should have.
    fn requests(&self) -> u64 {
        self.count(REQUESTS)
    }

    fn count(&self, table: &str) -> u64 {
        let captures = self.groups.iter().flat_map(|(captures, _)| captures);
        captures.filter_map(|c| c.row.rows.get(table)).sum()
    }

    /// Each capture's requests must have been joined with what came before and after it.
    fn why_not(&self) -> Option<Why> {
        let mut count = 0;
        let mut unjoined = 0;
        for (captures, _) in &self.groups {
            count += captures.len();
            for (i, capture) in captures.iter().enumerate() {
                let near = &captures[i.saturating_sub(1)..(i + 2).min(captures.len())];
                let joined = near.iter().all(|n| capture.row.joined.contains(&n.row.capture_id));
                unjoined += usize::from(!joined);
            }
        }
        if unjoined > 0 {
            return Some(Why::NotJoined { captures: unjoined });
        }
        (count > MOST_SUMMED).then_some(Why::TooMany { captures: count })
    }

    fn with_summary<T>(
        &self,
        cut: &Cut,
        ask: impl FnOnce(&Summary<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let captures = || self.groups.iter().flat_map(|(captures, _)| captures);
        let ids: Vec<&str> = captures().map(|c| c.row.capture_id.as_str()).collect();
        let segments = || captures().map(|c| c.row.segment);
        let ends = (segments().min().unwrap_or_default(), segments().max().unwrap_or_default());
        ask(&Summary { ids: &ids.join(","), segments: ends, several: self.groups.len() > 1, cut })
    }
}

/// One group for each node and boot. Captures that overlap with the one before saw the same as that: they are left out, and said to be.
fn grouped(captures: Vec<Known>) -> Vec<(Vec<Known>, Vec<String>)> {
    let mut groups: BTreeMap<(String, String), (Vec<Known>, Vec<String>)> = BTreeMap::new();
    for capture in captures {
        let key = (capture.row.capture_node.clone(), capture.row.boot_id.clone());
        let (group, notes) = groups.entry(key).or_default();
        let end =
            |c: &Known| c.meta.end.or_else(|| c.meta.clock.samples().last().copied()).unwrap_or(c.meta.start).monotonic;
        if group.last().is_some_and(|before| capture.meta.start.monotonic.offset(OVERLAP) < end(before)) {
            notes.push(format!(
                "the capture {} of {} was recorded at the same time as the one before it: it is left out, or everything in it would count \
                 twice",
                capture.row.capture_id, capture.row.capture_node
            ));
        } else {
            group.push(capture);
        }
    }
    groups.into_values().collect()
}

/// One recording being read.
struct Reading<'a> {
    store: &'a Store,
    captures: &'a [Known],
    group: Group<'a>,
    damage: Damage,
}

impl Reading<'_> {
    fn read(&mut self) -> Result<CaptureData, StoreError> {
        let strings = Interner::default();
        let sockets = self.table::<Socket>(&strings)?;
        let mut messages = self.table::<Message>(&strings)?;
        let metrics = self.table::<SocketMetrics>(&strings)?;
        let mut http2_streams = self.table::<Http2Stream>(&strings)?;
        let access_logs = self.table::<HopSide>(&strings)?;
        let proxies = self.table::<Proxy>(&strings)?;
        let processes = self.table::<Process>(&strings)?;
        // As the folder's reader orders them: stable, so that what was recorded of one socket and direction stays in its order.
        messages.sort_by_key(|m| (m.socket, m.direction));
        http2_streams.sort_by_key(|s| s.socket);
        let first = self.captures.first().map(|c| c.meta.clone()).unwrap_or_default();
        let complete = self.captures.iter().all(|c| c.meta.state == RecordingState::Complete);
        Ok(CaptureData {
            meta: first,
            state: if complete { CaptureState::Complete } else { CaptureState::Interrupted },
            sockets: last_of_each(sockets, |s| s.cookie),
            messages,
            http2_streams,
            metrics: merged(metrics),
            access_logs,
            proxies: last_of_each(proxies, |p| p.node.clone()),
            processes: last_of_each(processes, |p| p.tgid),
            damage: std::mem::take(&mut self.damage),
        })
    }

    fn table<R: Row>(&mut self, strings: &Interner) -> Result<Vec<R>, StoreError> {
        let mut rows = Vec::new();
        for ids in self.steps(R::TABLE) {
            let answer = self.store.client.select(&self.group.rows(R::TABLE, &ids))?;
            let part = part::decode::<R>(answer, strings).map_err(|e| StoreError::part(R::TABLE, &e))?;
            rows.extend(part.rows);
            if let Some(column) = part.first_rejected {
                self.damage.rejected_rows.entry(R::TABLE).or_insert((0, column)).0 += part.rejected;
            }
        }
        Ok(rows)
    }

    /// The captures of a table's questions: each is about as many as make an answer of a bounded size.
    fn steps(&self, table: Table) -> Vec<String> {
        let mut steps: Vec<(u64, Vec<&str>)> = Vec::new();
        for capture in self.captures {
            let rows = capture.row.rows.get(table.as_str()).copied().unwrap_or(0);
            match steps.last_mut() {
                Some((sum, ids)) if *sum + rows <= MOST_ROWS && ids.len() < MOST_CAPTURES => {
                    *sum += rows;
                    ids.push(&capture.row.capture_id);
                }
                _ => steps.push((rows, vec![&capture.row.capture_id])),
            }
        }
        steps.into_iter().map(|(_, ids)| ids.join(",")).collect()
    }

    /// What the store lacks of the captures' rows, in sentences.
    fn incomplete(&self) -> Result<Vec<String>, StoreError> {
        #[derive(Deserialize)]
        struct Count {
            name: String,
            capture_id: String,
            rows: u64,
        }
        let mut found: BTreeMap<(String, String), u64> = BTreeMap::new();
        for some in self.captures.chunks(MOST_CAPTURES) {
            let ids: Vec<&str> = some.iter().map(|c| c.row.capture_id.as_str()).collect();
            let counts: Vec<Count> = self.store.json_rows(&self.group.counts(&ids.join(",")), CAPTURES)?;
            found.extend(counts.into_iter().map(|c| ((c.name, c.capture_id), c.rows)));
        }
        let mut notes = Vec::new();
        for table in STORED {
            for capture in self.captures {
                let wanted = capture.row.rows.get(table.as_str()).copied().unwrap_or(0);
                let key = (table.as_str().to_owned(), capture.row.capture_id.clone());
                let there = found.get(&key).copied().unwrap_or(0);
                if wanted != there {
                    notes.push(format!(
                        "the store has {there} of the {wanted} rows of {table} of the capture {}: some were deleted, or are not replicated yet",
                        capture.row.capture_id
                    ));
                }
            }
        }
        Ok(notes)
    }
}
