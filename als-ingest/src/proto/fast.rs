//! The short way of an entry into a batch: what it has in common with one before is taken from there.

use super::entry::{EntryDecoder, MAX_PATH, terminal, without_query};
use super::known::KnownKind;
use super::reader::Reader;
use super::side;
use super::skim::{RawAddress, Skim};
use super::view::{Address, Message, plain_address};
use super::{details, time};
use crate::stats::Tally;
use meshdiff_model::{
    DownstreamDirectRemoteAddr, DownstreamLocalAddr, LogId, LogKind, LogRow, LogStreamId, Place, Proxy, uuid_of,
};
use std::net::SocketAddr;

impl EntryDecoder {
    /// Appends an entry whose kind is known in this batch, and returns whether it is terminal; `None` if it has to be decoded as a whole,
    /// in which case nothing has happened.
    #[inline(always)]
    pub(super) fn known(&mut self, skim: &Skim<'_>, proxy: &Proxy, tally: &mut Tally) -> Option<bool> {
        let known = self.kinds.find(&skim.kind, self.rows.number)?;
        let start_time = time::wall_time(skim.start_time).ok()?;
        let direct = address(skim.direct)?;
        let same = skim.remote == skim.direct;
        let remote = if same { direct } else { address(skim.remote)? };
        if known.side_by_addresses {
            let (ip, port) = known.kind.downstream_local;
            let local = ip.of(&self.rows.batch.ips).map(|ip| DownstreamLocalAddr(SocketAddr::new(*ip, port)));
            if side::side("", proxy, direct.map(DownstreamDirectRemoteAddr), local) != known.kind.side {
                return None;
            }
        }
        let (access_log_type, node) = (known.kind.access_log_type, self.rows.node);
        let kind = match known.index_of(node) {
            Some(index) => index,
            None => {
                known.kind.node = node;
                known.index = self.rows.kind(&known.kind);
                known.index
            }
        };
        let log_type = known.log_type;
        let (request_id, stream_id) = self.known_ids(skim, tally)?;
        // Nothing can go wrong any more.
        if let Some(other) = log_type {
            tally.not_terminal(other);
        }
        let direct = self.rows.addr(direct);
        let row = LogRow {
            kind,
            sizes: self.rows.sizes(&skim.sizes),
            start_time,
            spans: skim.spans,
            present: skim.present,
            downstream_direct_remote: direct,
            downstream_remote: if same { direct } else { self.rows.addr(remote) },
            upstream_local_port: skim.upstream_local_port,
            path: self.rows.text(without_query(skim.path), MAX_PATH, tally),
            request_id,
            stream_id,
            tags: if skim.tagged { self.rows.tags(details::tags(skim.tags.0, tally)) } else { Place::NONE },
        };
        self.rows.batch.rows.push(row);
        Some(access_log_type.is_terminal())
    }

    /// The ids; `None` if they are no text.
    #[inline(always)]
    fn known_ids(&mut self, skim: &Skim<'_>, tally: &mut Tally) -> Option<(LogId, LogStreamId)> {
        if skim.kind.numbers.tcp {
            let id = std::str::from_utf8(skim.stream_id).ok()?;
            return Some((LogId::None, self.stream_id(id, tally)));
        }
        if (skim.request_id.is_empty() || skim.request_id == skim.stream_id)
            && let Some(uuid) = uuid_of(skim.stream_id)
        {
            return Some((LogId::Uuid(uuid), LogStreamId::Same));
        }
        let text = std::str::from_utf8;
        Some(self.ids(text(skim.request_id).ok()?, text(skim.stream_id).ok()?, tally))
    }

    /// Remembers the kind of the entry that was just decoded, in which nothing was wrong.
    pub(super) fn learn(&mut self, skim: &Skim<'_>) {
        let batch = &self.rows.batch;
        let Some(row) = batch.rows.last() else { return };
        let kind: LogKind = *batch.kind(row);
        let cluster = kind.upstream_cluster.of(&batch.texts).map_or("", |name| name);
        let numbers = &skim.kind.numbers;
        let known = KnownKind {
            batch: self.rows.number,
            kind,
            index: row.kind,
            side_by_addresses: side::by_cluster(cluster).is_none(),
            log_type: terminal(numbers.access_log_type, numbers.intermediate).err(),
        };
        self.kinds.learn(&skim.kind, known);
    }
}

/// An address that may be absent; `None` if it is there and wrong.
#[inline(always)]
fn address(raw: Option<RawAddress<'_>>) -> Option<Option<SocketAddr>> {
    let Some(raw) = raw else { return Some(None) };
    let wire = match plain_address(raw.bytes) {
        Some(plain) => plain,
        None => other_address(raw)?,
    };
    wire.socket_addr().ok().map(Some)
}

fn other_address(raw: RawAddress<'_>) -> Option<Address<'_>> {
    let mut wire = Address::default();
    wire.merge(Reader::nested(raw.bytes, raw.depth)).ok()?;
    Some(wire)
}
