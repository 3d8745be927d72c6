use super::*;
use meshdiff_model::ExponentialHistogram;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeMap;

const SOCKET: SocketCookie = SocketCookie(7);
const S: u64 = 1_000_000_000;

fn at(ns: u64) -> MonotonicNs {
    MonotonicNs(ns)
}

/// Everything that a run of calls yields, by window.
fn windows(feed: impl FnOnce(&mut Counting, &mut dyn FnMut(SocketMetrics))) -> BTreeMap<u64, SocketMetrics> {
    let mut rows: BTreeMap<u64, SocketMetrics> = BTreeMap::new();
    let mut counting = Counting::new(SOCKET);
    let mut emit = |row: SocketMetrics| {
        assert!(!row.is_empty(), "an empty row was emitted");
        rows.entry(row.window_start.0).and_modify(|r| r.merge(&row)).or_insert(row);
    };
    feed(&mut counting, &mut emit);
    counting.finish(&mut emit);
    rows
}

#[test]
fn a_window_ends_when_the_next_begins_or_time_passes() {
    let mut rows = Vec::new();
    let mut counting = Counting::new(SOCKET);
    let mut emit = |row| rows.push(row);
    counting.write(at(9 * S), SeqNo(0), 100, Some(DurationNs(40_000)), &mut emit);
    counting.tick(at(10 * S), &mut emit);
    counting.write(at(10 * S), SeqNo(100), 50, None, &mut emit);
    counting.tick(at(20 * S), &mut emit);
    counting.tick(at(21 * S), &mut emit);
    counting.tick(at(31 * S), &mut emit);
    let seen: Vec<_> =
        rows.iter().map(|r| (r.window_start.0 / S, r.write.calls, r.write.bytes, r.rtt.count())).collect();
    assert_eq!(seen, [(0, 1, 100, 1), (10, 1, 50, 0)]);
}

#[test]
fn the_time_of_a_write_counts_in_its_window_however_late_it_is_told() {
    let rows = windows(|counting, mut emit| {
        counting.write(at(9 * S), SeqNo(0), 100, None, &mut emit);
        counting.tick(at(15 * S), &mut emit);
        counting.write_took(DurationNs(5_000), &mut emit);
        counting.write(at(16 * S), SeqNo(100), 100, None, &mut emit);
        counting.write_took(DurationNs(6_000), &mut emit);
    });
    let took = |window: u64| rows[&window].write.duration.as_ref().map(ExponentialHistogram::sum);
    assert_eq!((took(0), took(10 * S)), (Some(5_000), Some(6_000)));
    assert_eq!(rows.values().map(|r| r.write.calls).sum::<u64>(), 2);
}

#[test]
fn what_tcp_did_not_take_is_not_counted() {
    let rows = windows(|counting, mut emit| {
        counting.write(at(1), SeqNo(0), 1_000, None, &mut emit);
        counting.taken_until(SeqNo(400));
        counting.write(at(2), SeqNo(400), 600, None, &mut emit);
        // Nothing at all, offered again later.
        counting.write(at(3), SeqNo(1_000), 50, None, &mut emit);
        counting.taken_until(SeqNo(1_000));
        counting.write(at(4), SeqNo(1_000), 50, None, &mut emit);
        // A number from elsewhere changes nothing.
        counting.taken_until(SeqNo(900));
        counting.taken_until(SeqNo(5_000));
    });
    assert_eq!((rows[&0].write.calls, rows[&0].write.bytes), (3, 1_050));
}

#[test]
fn waiting_is_told_from_working() {
    let read = |at_ns: u64, len, took: i64| Read { at: at(at_ns), len, took: Some(DurationNs(took)) };
    let rows = windows(|counting, mut emit| {
        // It was called at 1,000; the byte came at 5,000.
        counting.ready(at(5_000), SeqNo(10), SeqNo(0));
        counting.read(read(6_000, 4, 5_000), SeqNo(4), &mut emit);
        // The rest was there.
        counting.read(read(9_000, 6, 700), SeqNo(10), &mut emit);
        // More came while nothing was unread, and more while something was.
        counting.ready(at(20_000), SeqNo(20), SeqNo(10));
        counting.ready(at(21_000), SeqNo(30), SeqNo(10));
        counting.read(read(22_000, 20, 4_000), SeqNo(30), &mut emit);
        // A call that saw its peer's end, and one that nobody timed.
        counting.read(read(23_000, 0, 100), SeqNo(30), &mut emit);
        counting.ready(at(24_000), SeqNo(31), SeqNo(30));
        counting.read(Read { at: at(25_000), len: 1, took: None }, SeqNo(31), &mut emit);
    });
    let read = &rows[&0].read;
    assert_eq!((read.calls, read.bytes), (4, 31));
    let (took, wait) = (read.duration.as_ref().expect("timed"), read.wait.as_ref().expect("timed"));
    assert_eq!((took.count(), took.sum()), (3, 9_700));
    assert_eq!((wait.count(), wait.sum(), wait.zero_count()), (3, 4_000 + 2_000, 1));
}

#[test]
fn losses_drops_and_retransmits_are_counted() {
    let rows = windows(|counting, mut emit| {
        counting.write(at(1), SeqNo(0), 10, None, &mut emit);
        counting.lost(at(2), 3, &mut emit);
        // Of which write this was is not known any more.
        counting.write_took(DurationNs(1), &mut emit);
        counting.retransmit(at(3), &mut emit);
        counting.drop(at(4), DropReason("TCP_CSUM".into()), &mut emit);
        counting.drop(at(5), DropReason("TCP_CSUM".into()), &mut emit);
    });
    let row = &rows[&0];
    assert_eq!((row.lost_events, row.retransmits, row.write.duration.as_ref()), (3, 1, None));
    assert_eq!(row.drops, [(DropReason("TCP_CSUM".into()), 2)].into());
}

#[derive(Clone, Debug)]
enum Call {
    Write { len: u32, taken: u32, took: Option<u32> },
    Read { len: u32, took: u32 },
    Retransmit,
    Tick,
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        (1_u32..9_000, 0_u32..9_000, prop::option::of(1_u32..9_000_000)).prop_map(|(len, taken, took)| Call::Write {
            len,
            taken: taken.min(len),
            took
        }),
        (1_u32..9_000, 0_u32..5_000_000).prop_map(|(len, took)| Call::Read { len, took }),
        Just(Call::Retransmit),
        Just(Call::Tick),
    ]
}

proptest! {
    /// Against a recount that knows everything.
    #[test]
    fn it_agrees_with_a_naive_recount(
        calls in vec((call(), 0_u64..4_000_000_000), 0..80), isn in any::<u32>(), peer in any::<u32>(),
    ) {
        let mut naive: BTreeMap<u64, SocketMetrics> = BTreeMap::new();
        let rows = windows(|counting, mut emit| {
            let (mut now, mut sent, mut read) = (0, SeqNo(isn), SeqNo(peer));
            for (call, pause) in calls {
                now += pause;
                let window = naive.entry(now - now % (10 * S)).or_insert_with(|| SocketMetrics::at(SOCKET, at(now)));
                match call {
                    Call::Write { len, taken, took } => {
                        counting.write(at(now), sent, len, Some(DurationNs(i64::from(len))), &mut emit);
                        window.rtt.record(u64::from(len));
                        // As the kernel tells it: at the write's end, if not all was taken.
                        if taken < len {
                            counting.taken_until(sent.advance(taken));
                        }
                        if taken > 0 {
                            window.write.calls += 1;
                            window.write.bytes += u64::from(taken);
                            if let Some(took) = took {
                                window.write.record_duration(DurationNs(i64::from(took)), None);
                                counting.write_took(DurationNs(i64::from(took)), &mut emit);
                            }
                        }
                        sent = sent.advance(taken);
                    }
                    Call::Read { len, took } => {
                        let end = read.advance(len);
                        counting.ready(at(now), end, read);
                        let row = Read { at: at(now), len, took: Some(DurationNs(i64::from(took))) };
                        counting.read(row, end, &mut emit);
                        window.read.calls += 1;
                        window.read.bytes += u64::from(len);
                        // It came when the call returned: all was waiting.
                        window.read.record_duration(DurationNs(i64::from(took)), Some(DurationNs(i64::from(took))));
                        read = end;
                    }
                    Call::Retransmit => {
                        counting.retransmit(at(now), &mut emit);
                        window.retransmits += 1;
                    }
                    Call::Tick => counting.tick(at(now), &mut emit),
                }
            }
        });
        naive.retain(|_, row| !row.is_empty());
        prop_assert_eq!(rows, naive);
    }
}
