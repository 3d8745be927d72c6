//! Packets that the network loses, on a link that says which: what is sent again shows where it was lost, and nowhere else.

use meshdiff_e2e::{Lab, LabOptions, Recorder, Request, judge, median, privileged, requests};
use meshdiff_lab::truth::PacketRecord;
use std::net::SocketAddr;

/// The hop whose link is lossy.
const HOP: &str = "productpage-v1 → details-v1";
/// Linux sends again after 200 ms at the earliest if nothing else tells of the loss, as nothing does where one packet is all that is under way.
const LEAST_NS: f64 = 100e6;

#[test]
fn what_was_lost_and_sent_again_is_in_the_network_with_its_reason() {
    if !privileged() {
        return;
    }
    let lab = Lab::up("loss", &LabOptions::of(&["--net-delay", "productpage-v1:details-v1=1ms,3%"]));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let recorder = Recorder::start(&folder.path().join("capture"), lab.als_port, &[]);
    let load = lab.load(&["--rate", "80", "--duration", "8s"]);
    // The last requests are answered; a moment later nothing of them is under way any more.
    std::thread::sleep(std::time::Duration::from_millis(400));
    let (capture, said) = recorder.stop();
    println!("{}", said.trim().replace('\n', " | "));
    let all = requests(&capture);
    let truth = lab.down();
    assert_eq!(load.ok(), load.requests(), "TCP makes up for what is lost");
    let judged = judge(&all, &truth);
    assert!(judged.wrong.is_empty() && judged.unknown.is_empty(), "{:?} {:?}", judged.wrong, judged.unknown);
    assert!(judged.inexact.is_empty(), "sums are off: {:?}", judged.inexact);
    assert!(all.iter().all(Request::sums));

    let lost: Vec<&PacketRecord> = truth.packets().iter().filter(|p| p.lost && p.payload > 0).collect();
    // Session tickets may be lost before the first request of a connection, and then hold up that one.
    let begin = all.iter().filter_map(|r| r.start_monotonic_ns).min().unwrap_or(0) + 2_000_000_000;
    let later = |r: &&Request| r.coverage.full && r.hop() == HOP && r.start_monotonic_ns.is_some_and(|at| at > begin);
    let (hit, spared): (Vec<&Request>, Vec<&Request>) = all.iter().filter(later).partition(|r| is_hit(r, &lost));
    let again = |r: &&Request| r.detail("network", "retransmit") as f64;
    let times = |list: &[&Request]| list.iter().map(|r| r.segment("network") as f64).collect::<Vec<_>>();
    println!("{} packets lost; {} requests lost one, {} none", lost.len(), hit.len(), spared.len());
    assert!(hit.len() >= 5 && spared.len() > 100, "3 of 100 packets are lost: {} of {}", hit.len(), spared.len());
    let usual = median(times(&spared));
    let told = hit.iter().filter(|r| again(r) > LEAST_NS).count();
    let rest = median(hit.iter().map(|r| r.segment("network") as f64 - again(r)).collect());
    let unspared = spared.iter().filter(|r| again(r) > 0.0).count();
    println!(
        "network: {:.2} ms usually, {:.2} ms with a loss, of which {:.2} ms besides; {told} of {} tell of it, {unspared} of {} others do",
        usual / 1e6,
        median(times(&hit)) / 1e6,
        rest / 1e6,
        hit.len(),
        spared.len()
    );
    assert!(told * 10 >= hit.len() * 9, "only {told} of {} losses are told", hit.len());
    // A machine that stands still lets TCP send again what was not lost.
    assert!(unspared * 50 <= spared.len(), "{unspared} of {} that lost nothing tell of a loss", spared.len());
    assert!(
        rest < usual + LEAST_NS / 2.0,
        "{rest} ns of a lossy request's network time are something else, {usual} usually"
    );
}

/// True if the link lost a packet with bytes of a request or its response: on its connection, while it was under way.
fn is_hit(request: &Request, lost: &[&PacketRecord]) -> bool {
    let Some(s3) = request.sockets.get("s3") else { return false };
    let ends: [SocketAddr; 2] = [s3.local, s3.remote];
    let from = request.crossings.request.get("network").and_then(|c| c.send_ns);
    let to = request.crossings.response.get("network").and_then(|c| c.ready_ns);
    let (Some(from), Some(to)) = (from, to) else { return false };
    lost.iter().any(|p| {
        (ends == [p.source, p.destination] || ends == [p.destination, p.source]) && (from..=to).contains(&p.in_ns.0)
    })
}
