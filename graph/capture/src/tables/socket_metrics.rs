//! `socket_metrics`: what each socket did in each window of 10 seconds.

use super::{Decoded, Row, decode_rows};
use crate::column::{Column, counts_by_index, counts_by_text, opt_u64, u64};
use crate::damage::PartError;
use crate::table::Table;
use crate::view::{BadCell, IndexCounts, Interner, Numbers, View};
use arrow::datatypes::UInt64Type;
use meshdiff_model::{
    DropReason, ExponentialHistogram, HistogramParts, IoMetrics, MonotonicNs, SocketCookie, SocketMetrics,
};

/// Column names of a histogram: zeros, sum, min, max, buckets.
type Names = [&'static str; 5];

const WRITE_NS: Names = ["write_ns_zeros", "write_ns_sum", "write_ns_min", "write_ns_max", "write_ns_buckets"];
const READ_NS: Names = ["read_ns_zeros", "read_ns_sum", "read_ns_min", "read_ns_max", "read_ns_buckets"];
const WAIT_NS: Names = ["wait_ns_zeros", "wait_ns_sum", "wait_ns_min", "wait_ns_max", "wait_ns_buckets"];
const RTT_NS: Names = ["rtt_ns_zeros", "rtt_ns_sum", "rtt_ns_min", "rtt_ns_max", "rtt_ns_buckets"];

/// The five columns of a histogram, of which the first says what it is.
fn histogram(
    names: Names,
    meaning: &'static str,
    get: impl Fn(&SocketMetrics) -> Option<&ExponentialHistogram> + Copy + Send + Sync + 'static,
) -> [Column<SocketMetrics>; 5] {
    let [zeros, sum, min, max, buckets] = names;
    [
        opt_u64(zeros, move |m| get(m).map(ExponentialHistogram::zero_count)).doc(meaning),
        opt_u64(sum, move |m| get(m).map(ExponentialHistogram::sum)).unit("ns").doc("Sum of the values."),
        opt_u64(min, move |m| get(m).and_then(ExponentialHistogram::min)).unit("ns").doc("Smallest value."),
        opt_u64(max, move |m| get(m).and_then(ExponentialHistogram::max)).unit("ns").doc("Largest value."),
        counts_by_index(buckets, move |m| {
            get(m).into_iter().flat_map(|h| h.buckets().filter_map(|b| Some((b.index?, b.count)))).collect()
        })
        .doc(
            "Buckets of OpenTelemetry's exponential histogram at scale 6: `index` counts the values v with \
             2^(index/64) < v <= 2^((index+1)/64).",
        ),
    ]
}

impl Row for SocketMetrics {
    const TABLE: Table = Table::SocketMetrics;

    fn columns() -> Vec<Column<Self>> {
        let mut columns = vec![
            u64("cookie", |m: &Self| m.socket.0).doc("The socket (`sockets.cookie`)."),
            u64("window_start_ns", |m: &Self| m.window_start.0)
                .unit("ns, monotonic")
                .delta()
                .doc("Beginning of the window, a multiple of 10 s."),
            u64("write_calls", |m: &Self| m.write.calls).doc("Write calls of which TCP took bytes."),
            u64("write_bytes", |m: &Self| m.write.bytes).unit("bytes").doc("What TCP took."),
        ];
        let of = "How long the write calls took that were measured: number of zeros. Null, like the other four, if none was.";
        columns.extend(histogram(WRITE_NS, of, |m| m.write.duration.as_ref()));
        columns.push(u64("read_calls", |m: &Self| m.read.calls).doc("Read calls that returned bytes."));
        columns.push(u64("read_bytes", |m: &Self| m.read.bytes).unit("bytes").doc("What they returned."));
        let of =
            "How long the read calls took that were measured: number of zeros. Null, like the other four, if none was.";
        columns.extend(histogram(READ_NS, of, |m| m.read.duration.as_ref()));
        let of = "How long these waited for their first byte: number of zeros (the byte was there).";
        columns.extend(histogram(WAIT_NS, of, |m| m.read.wait.as_ref()));
        let of = "The kernel's smoothed round-trip time at each write: number of zeros. Null without a sample.";
        columns.extend(histogram(RTT_NS, of, |m| Some(&m.rtt).filter(|h| !h.is_empty())));
        columns.extend([
            u64("retransmits", |m: &Self| m.retransmits).doc("Segments that were sent again, also by timers."),
            counts_by_text("drops", |m: &Self| m.drops.iter().map(|(reason, n)| (&*reason.0, *n)).collect())
                .doc("Packets that the kernel dropped, by its reason (`enum skb_drop_reason`)."),
            u64("lost_events", |m: &Self| m.lost_events)
                .doc("Events that were lost: if there are any, the counts are lower bounds."),
        ]);
        columns
    }

    fn decode(view: &View<'_>, strings: &Interner) -> Result<Decoded<Self>, PartError> {
        let number = |name| view.number::<UInt64Type>(name);
        let (cookie, window_start) = (number("cookie")?, number("window_start_ns")?);
        let (write_calls, write_bytes) = (number("write_calls")?, number("write_bytes")?);
        let (read_calls, read_bytes) = (number("read_calls")?, number("read_bytes")?);
        let (write_ns, read_ns) = (Histogram::of(view, WRITE_NS)?, Histogram::of(view, READ_NS)?);
        let (wait_ns, rtt_ns) = (Histogram::of(view, WAIT_NS)?, Histogram::of(view, RTT_NS)?);
        let (retransmits, lost_events) = (number("retransmits")?, number("lost_events")?);
        let drops = view.text_counts("drops")?;
        Ok(decode_rows(view, |i| {
            Ok(Self {
                socket: SocketCookie(cookie.get(i)?),
                window_start: MonotonicNs(window_start.get(i)?),
                write: IoMetrics {
                    calls: write_calls.get(i)?,
                    bytes: write_bytes.get(i)?,
                    duration: write_ns.get(i)?,
                    wait: None,
                },
                read: IoMetrics {
                    calls: read_calls.get(i)?,
                    bytes: read_bytes.get(i)?,
                    duration: read_ns.get(i)?,
                    wait: wait_ns.get(i)?,
                },
                rtt: rtt_ns.get(i)?.unwrap_or_default(),
                retransmits: retransmits.get(i)?,
                drops: drops.get(i)?.into_iter().map(|(name, n)| (DropReason(strings.get(name)), n)).collect(),
                lost_events: lost_events.get(i)?,
            })
        }))
    }
}

/// The columns of a histogram.
struct Histogram<'a> {
    zeros: Numbers<'a, UInt64Type>,
    sum: Numbers<'a, UInt64Type>,
    min: Numbers<'a, UInt64Type>,
    max: Numbers<'a, UInt64Type>,
    buckets: IndexCounts<'a>,
    sum_name: &'static str,
}

impl<'a> Histogram<'a> {
    fn of(view: &View<'a>, [zeros, sum, min, max, buckets]: Names) -> Result<Self, PartError> {
        Ok(Self {
            zeros: view.number(zeros)?,
            sum: view.number(sum)?,
            min: view.number(min)?,
            max: view.number(max)?,
            buckets: view.index_counts(buckets)?,
            sum_name: sum,
        })
    }

    /// `None` if nothing was measured.
    fn get(&self, i: usize) -> Result<Option<ExponentialHistogram>, BadCell> {
        let Some(sum) = self.sum.opt(i) else { return Ok(None) };
        let parts = HistogramParts {
            zeros: self.zeros.get(i)?,
            sum,
            min: self.min.opt(i).unwrap_or(0),
            max: self.max.opt(i).unwrap_or(0),
            buckets: self.buckets.get(i)?,
        };
        ExponentialHistogram::from_parts(parts).map(Some).map_err(|_| BadCell { column: self.sum_name })
    }
}
