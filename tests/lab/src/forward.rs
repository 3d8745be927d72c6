//! A link between two pods that holds every packet for a fixed time, and loses some: two TUN devices and this process in between.
//!
//! The devices carry the pods' own addresses, and a host route to the other pod leads through them: the sidecars see
//! the addresses that they would see without. The nat rules' REDIRECT rewrites to the first address of the device that a
//! packet came in by, so the device must have the pod's.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc;
use std::time::Duration;

use rand::Rng;

use crate::clock::{MonotonicNs, sleep_until, tighten_timers};
use crate::error::LabError;
use crate::logbook::Logbook;
use crate::netns;
use crate::truth::{PacketRecord, Record};

/// One end of a delayed link.
#[derive(Clone, Debug)]
pub struct End {
    /// The pod's network namespace.
    pub namespace: String,
    /// The pod's address.
    pub ip: Ipv4Addr,
    /// The TUN device's name in there.
    pub device: String,
}

impl End {
    fn open(&self, other: &Self) -> Result<File, LabError> {
        let device = &self.device;
        let tun = netns::within(&self.namespace, || crate::tun::open(device))?
            .map_err(LabError::io(format!("the TUN device {device} in {} cannot be made", self.namespace)))?;
        let script = format!(
            "addr add {ip}/32 dev {device}\nlink set {device} up\nroute add {other}/32 dev {device} src {ip}\n",
            ip = self.ip,
            other = other.ip
        );
        netns::ip_batch(&self.namespace, &script)?;
        Ok(tun)
    }

    /// Whether the way to the other end leads through the device.
    ///
    /// # Errors
    /// When the namespace is gone.
    pub fn is_routed(&self, other: &Self) -> Result<bool, LabError> {
        let routes = netns::ip(&["-n", &self.namespace, "-4", "route", "show", &format!("{}/32", other.ip)])?;
        Ok(routes.contains(&self.device))
    }
}

/// Makes the link and forwards in threads of its own, until the process ends.
///
/// # Errors
/// When the devices cannot be made.
pub fn start(ends: [&End; 2], delay: Duration, loss_percent: u32, log: &Logbook) -> Result<(), LabError> {
    tighten_timers();
    let [a, b] = ends;
    let [tun_a, tun_b] = [a.open(b)?, b.open(a)?];
    let clone = |tun: &File| tun.try_clone().map_err(LabError::io("the TUN device cannot be shared"));
    for (from, to) in [(clone(&tun_a)?, clone(&tun_b)?), (tun_b, tun_a)] {
        let (sender, receiver) = mpsc::channel();
        let log = log.clone();
        std::thread::spawn(move || take_in(from, delay, &sender));
        std::thread::spawn(move || give_out(to, &receiver, loss_percent, &log));
    }
    Ok(())
}

struct Held {
    packet: Vec<u8>,
    arrived: MonotonicNs,
    due: MonotonicNs,
}

fn take_in(mut from: File, delay: Duration, to: &mpsc::Sender<Held>) {
    let mut buffer = vec![0; 65_536];
    loop {
        match from.read(&mut buffer) {
            Ok(length) => {
                let arrived = MonotonicNs::now();
                let held = Held { packet: buffer[..length].to_vec(), arrived, due: arrived.plus(delay) };
                if to.send(held).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The device or its namespace is gone: so is the link.
            Err(_) => return,
        }
    }
}

fn give_out(mut to: File, from: &mpsc::Receiver<Held>, loss_percent: u32, log: &Logbook) {
    let mut chance = rand::rng();
    // The delay is the same for all, so the order of arrival is the order of leaving.
    while let Ok(held) = from.recv() {
        sleep_until(held.due);
        let left = MonotonicNs::now();
        let tcp = parse_tcp(&held.packet);
        let lost = tcp.is_some() && chance.random_range(0..100) < loss_percent;
        if !lost {
            // A packet that the kernel refuses is a lost packet, and TCP knows what to do.
            let _ = to.write_all(&held.packet);
        }
        if let Some(tcp) = tcp {
            log.append(&Record::Packet(PacketRecord { in_ns: held.arrived, out_ns: left, lost, ..tcp }));
        }
    }
}

/// Addresses, sequence number and payload of an IPv4 TCP packet (RFC 791, RFC 9293); the instants are left at zero.
fn parse_tcp(packet: &[u8]) -> Option<PacketRecord> {
    let byte = |at: usize| packet.get(at).copied();
    let short = |at: usize| Some(u16::from_be_bytes([byte(at)?, byte(at + 1)?]));
    let address = |at: usize| Some(Ipv4Addr::new(byte(at)?, byte(at + 1)?, byte(at + 2)?, byte(at + 3)?));
    if byte(0)? >> 4 != 4 || byte(9)? != 6 {
        return None;
    }
    let tcp = usize::from(byte(0)? & 0xf) * 4;
    let header = usize::from(byte(tcp + 12)? >> 4) * 4;
    let total = usize::from(short(2)?);
    Some(PacketRecord {
        source: SocketAddr::from((address(12)?, short(tcp)?)),
        destination: SocketAddr::from((address(16)?, short(tcp + 2)?)),
        seq: u32::from(short(tcp + 4)?) << 16 | u32::from(short(tcp + 6)?),
        payload: total.checked_sub(tcp + header)?,
        in_ns: MonotonicNs(0),
        out_ns: MonotonicNs(0),
        lost: false,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_tcp_packet_is_read() {
        let mut packet = vec![0u8; 45];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&45u16.to_be_bytes());
        packet[9] = 6;
        packet[12..20].copy_from_slice(&[10, 77, 0, 10, 10, 77, 0, 11]);
        packet[20..24].copy_from_slice(&[0x03, 0xe8, 0x23, 0x78]);
        packet[24..28].copy_from_slice(&0x89ab_cdefu32.to_be_bytes());
        packet[32] = 0x50;
        let read = parse_tcp(&packet).unwrap();
        assert_eq!(
            (read.source.to_string(), read.destination.to_string()),
            ("10.77.0.10:1000".into(), "10.77.0.11:9080".into())
        );
        assert_eq!((read.seq, read.payload), (0x89ab_cdef, 5));
        packet[9] = 17;
        assert!(parse_tcp(&packet).is_none(), "UDP is forwarded, not logged");
    }

    proptest! {
        #[test]
        fn no_packet_makes_the_parser_panic(packet in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse_tcp(&packet);
        }
    }
}
