use super::*;
use crate::samples::{crossed, get, received, sent, socket, status};

const CLIENT: &str = "10.0.0.2:40000";
const SERVICE: &str = "10.96.0.1:9080";
const OUTBOUND: &str = "127.0.0.1:15001";

/// Cookies of both ends of each connection, and its link.
fn pairs(sockets: &[Socket], messages: &[Message]) -> Vec<(Option<u64>, Option<u64>, Option<Link>)> {
    let endpoints = endpoints(sockets, messages);
    let cookie = |i: Option<usize>| i.map(|i| endpoints[i].socket.cookie.0);
    let mut list: Vec<_> = pair(&endpoints).iter().map(|c| (cookie(c.client), cookie(c.server), c.link)).collect();
    list.sort_by_key(|&(client, server, _)| (client, server));
    list
}

#[test]
fn a_redirected_connection_is_found_from_the_end_that_knows_less() {
    let sockets = [socket(1, 1, CLIENT, SERVICE, (0, 90)), socket(2, 1, OUTBOUND, CLIENT, (1, 90))];
    let messages = crossed((1, 2), 100, 50, 10, get());
    assert_eq!(pairs(&sockets, &messages), [(Some(1), Some(2), Some(Link::ClientLoopback))]);
}

#[test]
fn a_port_that_is_used_again_makes_another_connection() {
    let sockets = [
        socket(1, 1, CLIENT, SERVICE, (0, 90)),
        socket(2, 1, OUTBOUND, CLIENT, (1, 90)),
        socket(3, 1, CLIENT, SERVICE, (80, 200)),
        socket(4, 1, OUTBOUND, CLIENT, (81, 200)),
    ];
    // Their times overlap a little: only the sequence numbers tell them apart.
    let messages = [crossed((1, 2), 100, 50, 10, get()), crossed((3, 4), 700_000, 50, 110, get())].concat();
    let link = Some(Link::ClientLoopback);
    assert_eq!(pairs(&sockets, &messages), [(Some(1), Some(2), link), (Some(3), Some(4), link)]);
}

#[test]
fn sockets_that_fit_equally_well_are_left_alone() {
    let sockets = [
        socket(1, 1, CLIENT, SERVICE, (0, 90)),
        socket(2, 1, OUTBOUND, CLIENT, (1, 90)),
        socket(4, 1, OUTBOUND, CLIENT, (2, 90)),
    ];
    assert!(pairs(&sockets, &[]).iter().all(|(client, server, _)| client.is_none() || server.is_none()));
    // Numbers that meet decide; a socket of which nothing was seen does not spoil it.
    let list = pairs(&sockets, &crossed((1, 2), 100, 50, 10, get()));
    assert!(list.contains(&(Some(1), Some(2), Some(Link::ClientLoopback))), "{list:?}");
}

#[test]
fn the_passthrough_address_exists_in_every_namespace() {
    let (proxy, app) = ("127.0.0.6:50000", "127.0.0.1:9080");
    let sockets = [
        socket(1, 7, proxy, app, (0, 90)),
        socket(2, 7, app, proxy, (1, 90)),
        socket(3, 8, proxy, app, (0, 90)),
        socket(4, 8, app, proxy, (1, 90)),
    ];
    let messages = [crossed((1, 2), 100, 50, 10, get()), crossed((3, 4), 100, 50, 10, get())].concat();
    let link = Some(Link::ServerLoopback);
    assert_eq!(pairs(&sockets, &messages), [(Some(1), Some(2), link), (Some(3), Some(4), link)]);
}

#[test]
fn an_application_and_its_sidecar_may_use_the_same_port() {
    // S1 and S3 differ in their destination only; S2 and S4 both have that port as their peer.
    let sockets = [
        socket(1, 1, CLIENT, SERVICE, (0, 90)),
        socket(2, 1, OUTBOUND, CLIENT, (1, 90)),
        socket(3, 1, CLIENT, "10.0.0.3:9080", (0, 90)),
        socket(4, 2, "10.0.0.3:15006", CLIENT, (1, 90)),
    ];
    let messages = [crossed((1, 2), 100, 50, 10, get()), crossed((3, 4), 9_000, 50, 20, get())].concat();
    assert_eq!(
        pairs(&sockets, &messages),
        [(Some(1), Some(2), Some(Link::ClientLoopback)), (Some(3), Some(4), Some(Link::Network))]
    );
}

#[test]
fn numbers_that_do_not_meet_are_another_connection() {
    let sockets = [socket(1, 1, CLIENT, SERVICE, (0, 90)), socket(2, 1, OUTBOUND, CLIENT, (1, 90))];
    let messages = [sent(1, 100, 50, 10, get()), received(2, 500_000, 50, 20)];
    assert!(pairs(&sockets, &messages).iter().all(|(client, server, _)| client.is_none() || server.is_none()));
}

#[test]
fn who_was_connecting_when_the_probes_came_is_the_client() {
    let (client, server) = ("10.0.0.2:9080", "10.0.0.3:40000");
    let mut a = socket(1, 1, client, server, (0, 90));
    let mut b = socket(2, 2, server, client, (1, 90));
    // No connect's start was seen, and the ports speak for the wrong one.
    (a.established, b.established) = (Some(MonotonicNs(5)), Some(MonotonicNs(6)));
    assert_eq!(pairs(&[a.clone(), b.clone()], &[]), [(Some(1), Some(2), None)]);
    // What is said on it counts for more.
    let messages = crossed((1, 2), 100, 50, 10, status(200));
    assert_eq!(pairs(&[a, b], &messages), [(Some(2), Some(1), None)]);
}

#[test]
fn silent_ends_of_an_older_connection_are_one_connection() {
    // Each was found open at an instant of its own, and never seen again.
    let sockets = [socket(3, 1, CLIENT, "10.0.0.3:9080", (5, 5)), socket(4, 2, "10.0.0.3:15006", CLIENT, (7, 7))];
    assert_eq!(pairs(&sockets, &[]), [(Some(3), Some(4), Some(Link::Network))]);
    // One that was closed before the other was there is another.
    let mut closed = sockets.clone();
    closed[0].closed = Some(MonotonicNs(6));
    assert!(pairs(&closed, &[]).iter().all(|(client, server, _)| client.is_none() || server.is_none()));
}

#[test]
fn a_port_that_the_redirect_had_to_change_is_found_by_the_numbers() {
    // The application used its port towards another service before: the sidecar knows it by another one.
    let renamed = "10.0.0.2:29587";
    let sockets = [
        socket(1, 1, CLIENT, "10.96.0.2:9090", (0, 60)),
        socket(2, 1, OUTBOUND, CLIENT, (1, 60)),
        socket(3, 1, CLIENT, SERVICE, (40, 90)),
        socket(4, 1, OUTBOUND, renamed, (41, 90)),
    ];
    let messages = [crossed((1, 2), 100, 50, 10, get()), crossed((3, 4), 700_000, 50, 45, get())].concat();
    let link = Some(Link::ClientLoopback);
    assert_eq!(pairs(&sockets, &messages), [(Some(1), Some(2), link), (Some(3), Some(4), link)]);
    let endpoints = endpoints(&sockets, &messages);
    let addresses = |c: &Connection| c.client_addresses(&endpoints).map(|a| a.to_string()).collect::<Vec<_>>();
    let known: Vec<_> = pair(&endpoints).iter().map(addresses).collect();
    assert_eq!(known, [[CLIENT], [renamed]], "as the sidecar's log names them");
    // Other numbers are another connection, and so is another host.
    let others =
        [crossed((1, 2), 100, 50, 10, get()), [sent(3, 700_000, 50, 45, get()), received(4, 700_001, 50, 55)]].concat();
    assert!(pairs(&sockets, &others).contains(&(Some(3), None, None)));
    let mut elsewhere = sockets;
    elsewhere[3] = socket(4, 1, OUTBOUND, "10.0.0.9:29587", (41, 90));
    assert!(pairs(&elsewhere, &messages).contains(&(Some(3), None, None)));
}

#[test]
fn ends_with_changed_ports_that_several_fit_are_left_alone() {
    let sockets = [
        socket(3, 1, CLIENT, SERVICE, (40, 90)),
        socket(4, 1, OUTBOUND, "10.0.0.2:29587", (41, 90)),
        socket(5, 1, OUTBOUND, "10.0.0.2:29588", (41, 90)),
    ];
    let read_by = |cookie| received(cookie, 700_000, 50, 55);
    let messages = [sent(3, 700_000, 50, 45, get()), read_by(4), read_by(5)];
    assert!(pairs(&sockets, &messages).iter().all(|(client, server, _)| client.is_none() || server.is_none()));
}

#[test]
fn a_sidecar_with_a_changed_port_is_known_by_both() {
    let sockets = [
        socket(1, 1, "10.0.0.2:41000", "10.0.0.3:9080", (0, 90)),
        socket(2, 2, "10.0.0.3:15006", "10.0.0.2:1219", (1, 90)),
    ];
    let endpoints = endpoints(&sockets, &crossed((1, 2), 100, 50, 10, get()));
    let connections = pair(&endpoints);
    assert_eq!(connections.len(), 1);
    let addresses: Vec<_> = connections[0].client_addresses(&endpoints).map(|a| a.to_string()).collect();
    assert_eq!(addresses, ["10.0.0.2:1219", "10.0.0.2:41000"]);
}
