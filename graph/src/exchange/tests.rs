use super::*;
use crate::connection::{endpoints, pair};
use crate::samples::{crossed, get, socket, status};
use meshdiff_model::Message;

const THERE: (u64, u64) = (1, 2);
const BACK: (u64, u64) = (2, 1);

/// A connection between two sidecars with these messages, cut.
fn exchanges(messages: &[Message]) -> (Vec<Exchange>, Connection, Vec<Endpoint>) {
    let mut client = socket(1, 1, "10.0.0.2:40000", "10.0.0.3:9080", (0, 9_000));
    client.connect_start = Some(MonotonicNs(1));
    let sockets = [client, socket(2, 2, "10.0.0.3:15006", "10.0.0.2:40000", (1, 9_000))];
    let endpoints = endpoints(&sockets, messages);
    let connections = pair(&endpoints);
    assert_eq!(connections.len(), 1);
    (cut(0, &connections[0], &endpoints, false), connections[0], endpoints)
}

fn post() -> Content {
    Content::Http1Request { method: "POST".into(), path: "/".into() }
}

#[test]
fn keep_alive_makes_one_exchange_for_each_turn() {
    let messages = [
        crossed(THERE, 0, 50, 100, get()),
        crossed(BACK, 0, 80, 200, status(200)),
        crossed(THERE, 50, 60, 300, get()),
        crossed(BACK, 80, 90, 400, status(404)),
    ]
    .concat();
    let (list, connection, endpoints) = exchanges(&messages);
    assert_eq!(list.len(), 2);
    assert!(list[0].first_on_connection && !list[1].first_on_connection);
    assert!(list.iter().all(|e| !e.pipelined && !e.lossy && !e.beginning_unseen));
    assert_eq!(list[1].response_content, status(404));
    let crossing = list[1].request_crossing(&connection, &endpoints);
    assert_eq!((crossing.send, crossing.ready, crossing.bytes), (Some(MonotonicNs(300)), Some(MonotonicNs(310)), 60));
}

#[test]
fn an_interim_response_does_not_mark_the_response() {
    let messages = [
        crossed(THERE, 0, 50, 100, post()),
        crossed(BACK, 0, 25, 200, status(100)),
        crossed(THERE, 50, 900, 300, Content::Unknown),
        crossed(BACK, 25, 80, 400, status(201)),
    ]
    .concat();
    let (list, connection, endpoints) = exchanges(&messages);
    assert_eq!(list.len(), 1);
    assert_eq!(list[0].response_content, status(201));
    let request = list[0].request_crossing(&connection, &endpoints);
    let response = list[0].response_crossing(&connection, &endpoints, None);
    assert_eq!((request.last_send, request.bytes), (Some(MonotonicNs(300)), 950));
    assert_eq!((response.send, response.bytes), (Some(MonotonicNs(400)), 80));
}

#[test]
fn an_upgrade_ends_with_its_head() {
    let mut switching = crossed(BACK, 0, 200, 200, status(101));
    // The first frames of the new protocol left with the head.
    switching[0].head_end = Some(meshdiff_model::SeqNo(120));
    let messages = [
        crossed(THERE, 0, 50, 100, get()),
        switching,
        crossed(THERE, 50, 900, 300, Content::Unknown),
        crossed(BACK, 200, 80, 400, Content::Unknown),
    ]
    .concat();
    let (list, connection, endpoints) = exchanges(&messages);
    assert_eq!(list.len(), 1);
    assert_eq!(list[0].response_content, status(101));
    let request = list[0].request_crossing(&connection, &endpoints);
    let response = list[0].response_crossing(&connection, &endpoints, None);
    assert_eq!((request.last_send, request.bytes), (Some(MonotonicNs(100)), 50));
    assert_eq!(
        (response.send, response.last_send, response.bytes),
        (Some(MonotonicNs(200)), Some(MonotonicNs(200)), 120)
    );
}

#[test]
fn an_early_response_does_not_cut_the_request() {
    let messages = [
        crossed(THERE, 0, 50, 100, post()),
        crossed(BACK, 0, 80, 200, status(413)),
        crossed(THERE, 50, 900, 300, Content::Unknown),
        crossed(THERE, 950, 50, 400, get()),
        crossed(BACK, 80, 90, 500, status(200)),
    ]
    .concat();
    let (list, ..) = exchanges(&messages);
    let contents: Vec<_> = list.iter().map(|e| e.response_content.clone()).collect();
    assert_eq!(contents, [status(413), status(200)]);
}

#[test]
fn requests_that_do_not_wait_for_responses_are_told_to_be_pipelined() {
    let messages = [
        crossed(THERE, 0, 50, 100, get()),
        crossed(THERE, 50, 50, 150, get()),
        crossed(BACK, 0, 80, 200, status(200)),
        crossed(BACK, 80, 80, 250, status(200)),
    ]
    .concat();
    let (list, ..) = exchanges(&messages);
    assert_eq!(list.len(), 2);
    assert!(list[0].pipelined && !list[0].has_response());
}

#[test]
fn handshakes_and_tickets_are_no_response() {
    let (handshake, data) = (Content::TlsHandshake, Content::TlsApplicationData);
    let messages = [
        crossed(THERE, 0, 500, 100, handshake.clone()),
        crossed(BACK, 0, 2_000, 200, handshake.clone()),
        crossed(THERE, 500, 1_900, 300, handshake),
        crossed(THERE, 2_400, 100, 310, data.clone()),
        // A ticket, and only then the response.
        crossed(BACK, 2_000, 250, 330, data.clone()),
        crossed(BACK, 2_250, 150, 600, data),
    ]
    .concat();
    let (list, connection, endpoints) = exchanges(&messages);
    assert_eq!(list.len(), 1);
    assert!(list[0].first_on_connection && list[0].after_handshake);
    assert_eq!(list[0].request_crossing(&connection, &endpoints).send, Some(MonotonicNs(310)));
    let response = |not_before| list[0].response_crossing(&connection, &endpoints, not_before);
    let known = response(Some(MonotonicNs(550)));
    assert_eq!((known.send, known.ready, known.bytes), (Some(MonotonicNs(600)), Some(MonotonicNs(610)), 150));
    assert_eq!(response(None).send, None, "nothing tells the ticket from the response");
    assert_eq!(response(Some(MonotonicNs(700))), Crossing::default());
}

#[test]
fn a_response_whose_beginning_was_lost_is_lossy() {
    let mut messages = [
        crossed(THERE, 0, 50, 100, get()),
        crossed(BACK, 0, 80, 200, status(200)),
        crossed(BACK, 80, 500, 250, Content::Unknown),
    ]
    .concat();
    messages.remove(2);
    let (list, ..) = exchanges(&messages);
    assert!(list[0].lossy);
}

#[test]
fn what_only_the_receiver_saw_has_a_head_only_if_it_came_at_once() {
    let sockets = [socket(2, 2, "10.0.0.3:15006", "10.0.0.2:40000", (1, 9_000))];
    let ready_of = |messages: &[Message]| {
        let endpoints = endpoints(&sockets, messages);
        let connection = pair(&endpoints)[0];
        let list = cut(0, &connection, &endpoints, false);
        list[0].request_crossing(&connection, &endpoints).ready
    };
    let once = crate::samples::received(2, 0, 50, 100);
    let mut twice = once.clone();
    let before = meshdiff_model::SeqInstant { seq: meshdiff_model::SeqNo(20), at: MonotonicNs(90) };
    twice.readies = [before].into_iter().chain(once.readies.iter().copied()).collect();
    assert_eq!(ready_of(&[once]), Some(MonotonicNs(100)));
    assert_eq!(ready_of(&[twice]), None);
}
