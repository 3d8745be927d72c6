//! What segments are made of, case by case.

use super::*;
use crate::attribute::tests::hop as hop_of;
use meshdiff_model::{Flow, Mark, Progress};
use std::sync::Arc;

const GAPS: [u64; 13] = [0, 10, 1_000, 300, 400, 10, 5_000, 10, 400, 300, 1_000, 10, 0];

fn at(ns: u64) -> MonotonicNs {
    MonotonicNs(1_000_000 + ns)
}

fn detail(hop: &JoinedHop, segment: Segment, detail: Detail) -> Option<i64> {
    let (split, _) = attribute(hop).expect("telescopes");
    for (segment, whole) in split.segments().iter() {
        let parts: i64 = split.details().iter().filter(|(s, ..)| *s == segment).map(|(.., t)| t.0).sum();
        assert!(parts <= whole.0, "{segment:?}: {split:?}");
    }
    split.detail(segment, detail).map(|d| d.0)
}

fn progress(marks: &[(u64, u64)]) -> Progress {
    Progress::new(marks.iter().map(|&(ns, bytes)| Mark { at: at(ns), low: bytes, high: bytes }))
}

#[test]
fn what_waits_behind_an_earlier_request_is_not_the_queue() {
    let mut hop = hop_of(&GAPS);
    // Ready at 10, the earlier one answered at 600, read at 650, sent on at 1,010.
    hop.flows.behind[0] = Some(at(600));
    hop.request[0].recv = Some(at(650));
    assert_eq!(detail(&hop, Segment::ClientSidecar, Detail::Hol), Some(590));
    assert_eq!(detail(&hop, Segment::ClientSidecar, Detail::Queue), Some(50));
    // Both were read with one call, before the earlier one was answered.
    hop.request[0].recv = Some(at(20));
    assert_eq!(detail(&hop, Segment::ClientSidecar, Detail::Hol), Some(590));
    assert_eq!(detail(&hop, Segment::ClientSidecar, Detail::Queue), Some(0));
    // Longer than the request itself waited: a strange instant does not make more of the segment than there is.
    hop.flows.behind[0] = Some(at(99_000));
    assert_eq!(detail(&hop, Segment::ClientSidecar, Detail::Hol), Some(1_000));
}

#[test]
fn a_filter_that_waits_for_the_body_is_told_only_if_it_goes_on_promptly() {
    let mut hop = hop_of(&GAPS);
    hop.request[0].recv = Some(at(15));
    hop.request[0].last_ready = Some(at(970));
    hop.request[0].last_recv = Some(at(980));
    assert_eq!(detail(&hop, Segment::ClientSidecar, Detail::AwaitBody), Some(965));
    assert_eq!(detail(&hop, Segment::ClientSidecar, Detail::Queue), Some(5));
    // The body was there long before the head went on: something else was waited for.
    hop.request[0].last_recv = Some(at(700));
    assert_eq!(detail(&hop, Segment::ClientSidecar, Detail::AwaitBody), None);
    // The head went on before the body's end.
    hop.request[0].last_recv = Some(at(1_200));
    assert_eq!(detail(&hop, Segment::ClientSidecar, Detail::AwaitBody), None);
    // A connection was set up meanwhile.
    hop.request[0].last_recv = Some(at(980));
    hop.connection_setup = Some((at(100), at(900)));
    assert_eq!(detail(&hop, Segment::ClientSidecar, Detail::AwaitBody), None);
}

#[test]
fn heads_that_tcp_held_back_or_lost_are_told_on_their_link() {
    let mut hop = hop_of(&GAPS);
    // S3.send at 1,010, S4.ready at 1,310.
    let flow = |held: &[(u64, u64)], lost: &[(u64, u64)]| {
        let place = |list: &[(u64, u64)]| list.iter().map(|&(byte, ns)| (byte, at(ns))).collect();
        Some(Arc::new(Flow {
            bytes: 100,
            head: None,
            sent: progress(&[(1_010, 100)]),
            ready: progress(&[(1_100, 40), (1_310, 100)]),
            read: progress(&[(1_310, 100)]),
            held: place(held),
            retransmits: place(lost),
        }))
    };
    hop.flows.request[1] = flow(&[(0, 1_015)], &[]);
    assert_eq!(detail(&hop, Segment::Network, Detail::TcpHeld), Some(85), "until its first byte was there");
    hop.flows.request[1] = flow(&[(40, 1_015)], &[]);
    assert_eq!(detail(&hop, Segment::Network, Detail::TcpHeld), Some(295));
    // Lost bytes stop the receiver after its last progress; held ones meanwhile count once.
    hop.flows.request[1] = flow(&[(40, 1_015)], &[(40, 1_250)]);
    assert_eq!(detail(&hop, Segment::Network, Detail::Retransmit), Some(210));
    assert_eq!(detail(&hop, Segment::Network, Detail::TcpHeld), Some(85));
    // Bytes that had arrived when they were sent again were not lost.
    hop.flows.request[1] = flow(&[], &[(10, 1_250)]);
    assert_eq!(detail(&hop, Segment::Network, Detail::Retransmit), None);
}

/// An upload of 1,000 bytes, whose head is ready at S6 at 1,720 and which is answered at 6,720 as in [`GAPS`].
fn upload(links: [[&[(u64, u64)]; 3]; 3]) -> JoinedHop {
    let mut hop = hop_of(&GAPS);
    for (i, [sent, ready, read]) in links.into_iter().enumerate() {
        let flow = Flow {
            bytes: 1_000,
            head: Some(100),
            sent: progress(sent),
            ready: progress(ready),
            read: progress(read),
            ..Flow::default()
        };
        hop.request[i].last_ready = ready.last().map(|m| at(m.0));
        hop.flows.request[i] = Some(Arc::new(flow));
    }
    hop
}

fn spans(hop: &JoinedHop) -> Vec<(Segment, Option<Detail>, u64)> {
    let (split, _) = attribute(hop).expect("telescopes");
    split.spans().iter().map(|s| (s.segment, s.detail, s.to.0 - 1_000_000)).take_while(|s| s.2 <= 6_720).collect()
}

#[test]
fn an_upload_whose_client_pauses() {
    use Segment::{ClientApp, ServerApp, Transfer};
    let hop = upload([
        [&[(0, 500), (4_000, 1_000)], &[(10, 500), (4_010, 1_000)], &[(20, 500), (4_020, 1_000)]],
        [&[(1_010, 500), (4_100, 1_000)], &[(1_310, 500), (4_400, 1_000)], &[(1_320, 500), (4_410, 1_000)]],
        [
            &[(1_710, 100), (1_800, 500), (4_500, 1_000)],
            &[(1_720, 100), (1_900, 500), (4_600, 1_000)],
            &[(1_730, 100), (1_950, 500), (5_000, 1_000)],
        ],
    ]);
    // The first half is read until 1,950; nothing is in flight until the client goes on at 4,000.
    assert_eq!(
        spans(&hop),
        [
            (ServerApp, None, 1_730),
            (Transfer, None, 1_900),
            (ServerApp, None, 1_950),
            (ClientApp, None, 4_000),
            (Transfer, None, 4_010),
            (Transfer, Some(Detail::Queue), 4_020),
            (Transfer, None, 4_400),
            (Transfer, Some(Detail::Queue), 4_410),
            (Transfer, None, 4_600),
            (ServerApp, None, 6_720),
        ]
    );
}

#[test]
fn a_proxy_that_does_not_read_because_its_other_side_is_full() {
    let hop = upload([
        // All is sent at once; the sidecar reads the second half only when the network took the first.
        [&[(0, 1_000)], &[(10, 1_000)], &[(20, 500), (3_000, 1_000)]],
        [
            &[(1_010, 500), (3_100, 1_000)],
            &[(1_310, 100), (2_900, 500), (3_400, 1_000)],
            &[(1_320, 100), (2_910, 500), (3_410, 1_000)],
        ],
        [
            &[(1_710, 100), (3_000, 500), (3_500, 1_000)],
            &[(1_720, 100), (3_050, 500), (3_600, 1_000)],
            &[(1_730, 100), (3_060, 500), (3_650, 1_000)],
        ],
    ]);
    let (split, _) = attribute(&hop).expect("telescopes");
    let told = |d| split.detail(Segment::Transfer, d).map(|d| d.0);
    // Unread at S2 from 1,730 to 3,000; S3's bytes are taken at 2,910.
    assert_eq!(told(Detail::Backpressure), Some(2_910 - 1_730));
    assert_eq!(told(Detail::Queue), Some((3_000 - 2_910) + (3_410 - 3_400)));
}

#[test]
fn who_gives_up_ends_the_total() {
    let mut hop = hop_of(&GAPS);
    hop.response = Default::default();
    hop.gave_up = Some(at(4_720));
    let (split, vantage) = attribute(&hop).expect("telescopes");
    assert_eq!((vantage, split.total()), (Vantage::App, DurationNs(4_720)));
    assert_eq!(split.segments().get(Segment::ServerApp), Some(DurationNs(3_000)));
    assert_eq!(split.segments().get(Segment::Network), Some(DurationNs(300)));
    assert_eq!(split.segments().get(Segment::Unattributed), None);
    // While it was connecting.
    hop.request[1] = meshdiff_model::Crossing::default();
    hop.request[2] = meshdiff_model::Crossing::default();
    hop.gave_up = Some(at(500));
    let (split, _) = attribute(&hop).expect("telescopes");
    assert_eq!(split.segments().get(Segment::ClientSidecar), Some(DurationNs(490)));
    // A socket that was not seen tells nothing of where the request was.
    hop.sockets[2] = None;
    let (split, _) = attribute(&hop).expect("telescopes");
    assert_eq!(split.segments().get(Segment::Unattributed), Some(DurationNs(490)));
    // Half of a response had come, and was not read.
    let mut hop = hop_of(&GAPS);
    hop.response[0].last_ready = None;
    hop.response[0].last_recv = None;
    hop.gave_up = Some(at(9_000));
    let (split, _) = attribute(&hop).expect("telescopes");
    assert_eq!(split.total(), DurationNs(9_000));
    assert_eq!(split.evidence().get(Segment::Transfer), Some(Evidence::Bound));
}

#[test]
fn the_request_side_of_a_retried_request_is_no_queue_of_the_sidecar() {
    let mut hop = hop_of(&GAPS);
    hop.request[0].recv = Some(at(900));
    let mut entry = (**hop.client_log.as_ref().expect("log")).clone();
    entry.upstream_request_attempt_count = Some(2);
    hop.client_log = Some(Arc::new(entry));
    assert_eq!(detail(&hop, Segment::ClientSidecar, Detail::Queue), Some(0));
}

#[test]
fn a_response_that_was_cut_short_is_told_from_its_beginning() {
    let mut hop = hop_of(&GAPS);
    let flow = |bytes, head, [sent, ready, read]: [&[(u64, u64)]; 3]| {
        let (sent, ready, read) = (progress(sent), progress(ready), progress(read));
        Some(Arc::new(Flow { bytes, head: Some(head), sent, ready, read, ..Flow::default() }))
    };
    // The server sent 300 bytes of body with the head, then paused until 9,500; the client gave up at 9,800 with 500 of 1,000.
    hop.flows.response[2] = flow(
        1_100,
        100,
        [&[(6_720, 400), (9_500, 1_100)], &[(6_730, 400), (9_510, 1_100)], &[(6_740, 400), (9_515, 1_100)]],
    );
    hop.flows.response[0] =
        flow(650, 150, [&[(8_430, 450), (9_600, 650)], &[(8_440, 450), (9_610, 650)], &[(8_500, 450), (9_620, 650)]]);
    hop.response[0].last_ready = Some(at(9_610));
    hop.response[1] =
        meshdiff_model::Crossing { last_send: None, last_ready: None, last_recv: None, ..hop.response[1] };
    let mut entry = (**hop.client_log.as_ref().expect("log")).clone();
    entry.response_body_bytes = 500;
    hop.client_log = Some(Arc::new(entry));
    hop.gave_up = Some(at(9_800));
    let (split, _) = attribute(&hop).expect("telescopes");
    let streaming = split.detail(Segment::ServerApp, Detail::Streaming).map(|d| d.0);
    assert_eq!(streaming, Some(9_500 - 8_500), "{split:?}");
    assert_eq!(split.segments().get(Segment::Transfer), Some(DurationNs(110 + 180)), "{split:?}");
}
