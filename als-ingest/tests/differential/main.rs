//! The decoder that reads bytes against the one that builds prost's messages: the same entries, the same proxies and the
//! same counts, whatever the bytes.
//!
//! The cases are the same in every run; `MESHDIFF_DIFFERENTIAL_CASES` asks for more of the random ones (60,000 of each kind take about
//! ten seconds), with other seeds for each number.

mod generate;
mod mutate;

use generate::{Random, http_entry, tcp_entry};
use meshdiff_als::{AlsStats, OracleDecoder, StreamDecoder};
use meshdiff_model::{HopSide, LogBatchBuilder};
use mutate::{damage, field, length_delimited, rearrange, varint};
use std::fmt::Write;
use std::sync::LazyLock;

const RECORDED: [(&[u8], bool); 3] = [
    (include_bytes!("../fixtures/client-http.bin"), false),
    (include_bytes!("../fixtures/server-http.bin"), false),
    (include_bytes!("../fixtures/client-tcp.bin"), true),
];

/// Decodes the messages both ways, as one stream, and compares all that can be seen of it: as they are, and again so that the decoder
/// knows what it meets, behind recorded entries, which they often differ from in little, and twice in one message.
fn same(what: &str, messages: &[Vec<u8>]) -> AlsStats {
    let behind = |message: &Vec<u8>| [recorded_entries(), &message[..], &message[..]].concat();
    compare(&format!("{what}, again"), &messages.iter().map(behind).collect::<Vec<_>>());
    compare(what, messages).0
}

/// All recorded entries, without the identifiers.
fn recorded_entries() -> &'static [u8] {
    static ALL: LazyLock<Vec<u8>> =
        LazyLock::new(|| RECORDED.map(|(recorded, tcp)| message(&entries_of(recorded), tcp)).concat());
    &ALL
}

/// What the decoder counted, and how often it knew an entry's kind.
fn compare(what: &str, messages: &[Vec<u8>]) -> (AlsStats, u64) {
    let (mut new, mut oracle) = (StreamDecoder::new(None), OracleDecoder::new(None));
    for message in messages {
        let (got, (proxy, want)) = (new.decode(message), oracle.decode(message));
        let rows: Vec<HopSide> = got.rows.hops().collect();
        if rows != want || through_rows(&want) != want || got.proxy != proxy || new.stats() != oracle.stats() {
            let hex = message.iter().fold(String::new(), |mut hex, byte| {
                write!(hex, "{byte:02x}").expect("strings take all");
                hex
            });
            panic!("{what}: {hex}\n{rows:#?}\n{:#?}\nprost:\n{want:#?}\n{:#?}", new.stats(), oracle.stats());
        }
    }
    (new.stats(), new.found())
}

/// Hops as rows and back.
fn through_rows(hops: &[HopSide]) -> Vec<HopSide> {
    let mut rows = LogBatchBuilder::default();
    hops.iter().for_each(|hop| rows.push(hop));
    rows.take().hops().collect()
}

/// A message with these entries.
fn message(entries: &[Vec<u8>], tcp: bool) -> Vec<u8> {
    let list = entries.iter().flat_map(|entry| field(1, entry)).collect::<Vec<u8>>();
    field(if tcp { 3 } else { 2 }, &list)
}

/// The entries of a recorded message.
fn entries_of(message: &[u8]) -> Vec<Vec<u8>> {
    let lists = length_delimited(message).into_iter().filter(|&(number, _)| number > 1);
    lists.flat_map(|(_, list)| length_delimited(list)).map(|(_, entry)| entry.to_vec()).collect()
}

/// Entries to begin with: the recorded ones, and as many generated.
fn some_entry(random: &mut Random) -> (Vec<u8>, bool) {
    if random.one_in(2) {
        let (recorded, tcp) = RECORDED[random.below(RECORDED.len())];
        let entries = entries_of(recorded);
        (entries[random.below(entries.len())].clone(), tcp)
    } else if random.one_in(4) {
        (tcp_entry(random), true)
    } else {
        (http_entry(random), false)
    }
}

/// Runs random cases, and sums up what became of their entries: (kept, malformed entries, malformed messages).
fn run(name: &str, cases: u64, mut case: impl FnMut(&mut Random) -> Vec<Vec<u8>>) -> (u64, u64, u64) {
    let asked = std::env::var("MESHDIFF_DIFFERENTIAL_CASES").ok().map(|n| n.parse().expect("a number"));
    let seeds = asked.map_or(0..cases, |n: u64| n..n * 2);
    let mut sum = (0, 0, 0);
    for seed in seeds {
        let messages = case(&mut Random::new(seed));
        let stats = same(&format!("{name}, seed {seed}"), &messages);
        sum.0 += stats.kept;
        sum.1 += stats.malformed_entries.values().sum::<u64>();
        sum.2 += stats.malformed_messages.values().sum::<u64>();
    }
    sum
}

#[test]
fn recorded_messages_whole_and_cut_anywhere() {
    for (recorded, tcp) in RECORDED {
        let stats = same("whole", &[recorded.to_vec()]);
        assert_eq!((stats.kept, stats.malformed_fields.len()), (stats.entries(), 0));
        for end in 0..recorded.len() {
            same("cut", &[recorded[..end].to_vec()]);
        }
        // The entry alone is cut, so that what is left of it is looked at.
        for entry in entries_of(recorded) {
            for end in 0..=entry.len() {
                same("cut entry", &[message(&[entry[..end].to_vec()], tcp)]);
            }
        }
    }
}

/// Else what is compared here would not be what most entries go through.
#[test]
fn entries_that_repeat_are_known_by_their_kind() {
    let all = entries_of(recorded_entries());
    let (stats, found) = compare("twice", &[[recorded_entries(), recorded_entries()].concat()]);
    assert_eq!((stats.kept, found), (2 * all.len() as u64, all.len() as u64));
    // What is an entry's own does not matter: here the last digits of ids, and of spans and times whatever they end in.
    let mut random = Random::new(3);
    let mut changed = vec![all[0].clone()];
    for _ in 0..200 {
        let mut entry = all[0].clone();
        let id = entry.windows(36).position(|text| text == b"0bf0d0b1-9e2a-4a3e-8a60-0d6f7e5f7e11").expect("an id");
        entry[id + 35] = b'0' + random.byte() % 10;
        changed.push(entry);
    }
    let (stats, found) = compare("changed", &[message(&changed, false)]);
    assert_eq!((stats.kept, found), (201, 200));
}

macro_rules! of_envoy {
    ($version:literal) => {
        [
            (include_bytes!(concat!("../fixtures/", $version, "/client-http.bin")) as &[u8], false),
            (include_bytes!(concat!("../fixtures/", $version, "/server-http.bin")), false),
            (include_bytes!(concat!("../fixtures/", $version, "/client-attempts.bin")), false),
            (include_bytes!(concat!("../fixtures/", $version, "/server-attempts.bin")), false),
            (include_bytes!(concat!("../fixtures/", $version, "/client-tcp.bin")), true),
        ]
    };
}

#[test]
fn messages_of_several_envoys_whole_cut_and_rearranged() {
    let random = &mut Random::new(7);
    let mut kept = 0;
    for (recorded, tcp) in [of_envoy!("1.36.2"), of_envoy!("1.39.3"), of_envoy!("1.40.0")].concat() {
        let stats = same("whole", &[recorded.to_vec()]);
        assert_eq!(
            (stats.accounted(), stats.malformed_entries.len(), stats.malformed_fields.len()),
            (stats.entries(), 0, 0)
        );
        for entry in entries_of(recorded) {
            for end in 0..=entry.len() {
                same("cut entry", &[message(&[entry[..end].to_vec()], tcp)]);
            }
            for _ in 0..100 {
                kept += same("rearranged", &[message(&[rearrange(&entry, random)], tcp)]).kept;
            }
        }
    }
    assert!(kept > 1_000, "{kept}");
}

#[test]
fn every_byte_of_the_recorded_entries_changed() {
    for (recorded, tcp) in RECORDED {
        for entry in entries_of(recorded).into_iter().take(2) {
            for at in 0..entry.len() {
                for byte in [0, entry[at] ^ 1, entry[at] ^ 0x80, entry[at].wrapping_add(8), 0xff] {
                    let mut changed = entry.clone();
                    changed[at] = byte;
                    same("changed", &[message(&[changed], tcp)]);
                }
            }
        }
    }
}

#[test]
fn generated_messages() {
    let (kept, malformed, messages) = run("generated", 3_000, |random| {
        let entries = (0..random.below(4)).map(|_| http_entry(random)).collect::<Vec<_>>();
        let connections = (0..random.below(3)).map(|_| tcp_entry(random)).collect::<Vec<_>>();
        vec![
            message(&entries, false),
            message(&connections, true),
            [message(&entries, false), message(&connections, true)].concat(),
        ]
    });
    // Generated entries are well-formed, but some have no common properties or a wrong start.
    assert!(kept > malformed && malformed > 100 && messages == 0, "{kept} {malformed} {messages}");
}

#[test]
fn entries_with_bytes_changed_inserted_and_removed() {
    let (kept, malformed, _) = run("damaged", 12_000, |random| {
        let (mut entry, tcp) = some_entry(random);
        for _ in 0..=random.below(3) {
            damage(&mut entry, random);
        }
        vec![message(&[entry], tcp)]
    });
    assert!(kept > 500 && malformed > 2_000, "{kept} {malformed}");
}

#[test]
fn entries_with_fields_repeated_moved_split_retyped_and_invented() {
    let (kept, malformed, _) = run("rearranged", 12_000, |random| {
        let (entry, tcp) = some_entry(random);
        vec![message(&[rearrange(&entry, random)], tcp)]
    });
    assert!(kept > 2_000 && malformed > 2_000, "{kept} {malformed}");
}

#[test]
fn whole_messages_damaged() {
    let (kept, malformed, messages) = run("damaged message", 3_000, |random| {
        let mut bytes = if random.one_in(2) {
            RECORDED[random.below(RECORDED.len())].0.to_vec()
        } else {
            let (entry, tcp) = some_entry(random);
            message(&[entry.clone(), entry], tcp)
        };
        if random.one_in(3) {
            bytes = rearrange(&bytes, random);
        } else {
            damage(&mut bytes, random);
        }
        vec![bytes]
    });
    assert!(kept > 1_000 && malformed > 100 && messages > 300, "{kept} {malformed} {messages}");
}

/// Every message type that an entry can hold, by the field numbers that lead to it.
const HTTP_PATHS: [&[u32]; 46] = [
    &[],
    &[1],
    &[1, 2],
    &[1, 2, 1],
    &[1, 2, 2],
    &[1, 2, 3],
    &[1, 3, 1],
    &[1, 13, 1],
    &[1, 14, 1],
    &[1, 20, 1],
    &[1, 4],
    &[1, 4, 2],
    &[1, 4, 4],
    &[1, 4, 5],
    &[1, 4, 4, 1],
    &[1, 4, 5, 1],
    &[1, 5],
    &[1, 6],
    &[1, 7],
    &[1, 8],
    &[1, 9],
    &[1, 10],
    &[1, 11],
    &[1, 12],
    &[1, 23],
    &[1, 16],
    &[1, 16, 13],
    &[1, 17],
    &[1, 17, 1],
    &[1, 17, 1, 2],
    &[1, 17, 1, 2, 1],
    &[1, 17, 1, 2, 1, 2],
    &[1, 17, 1, 2, 1, 2, 5],
    &[1, 17, 1, 2, 1, 2, 6],
    &[1, 17, 1, 2, 1, 2, 6, 1],
    &[1, 17, 2],
    &[1, 17, 2, 2],
    &[1, 21],
    &[1, 21, 2],
    &[1, 22],
    &[3],
    &[3, 4],
    &[3, 13],
    &[4],
    &[4, 1],
    &[4, 4],
];

/// What can follow a key: nothing, varints of all lengths, fixed numbers, text that is UTF-8 and text that is not, messages, and ends of groups.
const PAYLOADS: [&[u8]; 19] = [
    &[],
    &[0],
    &[1],
    &[5],
    &[0x80, 0x01],
    &[0x80, 0x00],
    &[0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0x80, 0x80, 0x80, 0x80, 0x10],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02],
    &[0x80; 11],
    &[1, b'x'],
    &[1, 0xff],
    &[3, 0xe2, 0x82, 0xac],
    &[2, 0x08, 0x07],
    &[4, 0x0a, 0x02, 0x08, 0x01],
    &[0, 0, 0, 0],
    &[0, 0, 0, 0, 0, 0, 0, 0],
    &[0x0b, 0x0c, 0x0c],
];

#[test]
fn every_field_number_and_wire_type_in_every_message() {
    let whole = |path: &[u32], inner: Vec<u8>, before: &[u8]| {
        let nested = path.iter().rev().fold(inner, |inner, &number| field(number, &inner));
        [before, &nested].concat()
    };
    let http = &entries_of(RECORDED[0].0)[0];
    let tcp = &entries_of(RECORDED[2].0)[0];
    // All flags are set, and no address is an IP address: what can be taken back is there to be taken back.
    let flags =
        (1..=28).flat_map(|n| if n == 13 { field(n, &[]) } else { [varint(u64::from(n) << 3), vec![1]].concat() });
    let flags = field(16, &flags.collect::<Vec<u8>>());
    let peer = [field(1, b"upstream_peer"), field(2, &field(1, b"google.protobuf.Struct"))].concat();
    let tag = [field(1, b"connection_id"), field(2, b"7")].concat();
    let details = [field(21, &peer), field(22, &tag)].concat();
    let addresses = [(2, 2), (3, 3), (13, 2), (14, 3), (20, 2)].map(|(n, kind)| field(n, &field(kind, &[]))).concat();
    let contrary = [&http[..], &field(1, &[flags, addresses, details].concat())].concat();
    let tcp_paths: [&[u32]; 3] = [&[], &[1], &[2]];
    let http_paths = HTTP_PATHS.iter().flat_map(|p| [(p, http, false), (p, &contrary, false)]);
    let paths = http_paths.chain(tcp_paths.iter().map(|p| (p, tcp, true)));
    let (mut kept, mut malformed) = (0, 0);
    for (path, before, is_tcp) in paths {
        let entry = |inner| whole(path, inner, before);
        assert_eq!(same("empty", &[message(&[entry(Vec::new())], is_tcp)]).kept, 1, "{path:?} is a path");
        for number in 0..=36 {
            for wire in 0..8 {
                let entries: Vec<_> =
                    PAYLOADS.iter().map(|payload| entry([&varint(number << 3 | wire), *payload].concat())).collect();
                let stats = same(&format!("{path:?} {number} {wire}"), &[message(&entries, is_tcp)]);
                kept += stats.kept;
                malformed += stats.malformed_entries.values().sum::<u64>();
            }
        }
    }
    assert!(kept > 30_000 && malformed > 30_000, "{kept} {malformed}");
}

#[test]
fn nesting_ends_where_prost_ends_it() {
    let (mut kept, mut refused) = (0, 0);
    let before = &entries_of(RECORDED[0].0)[0];
    // In `metadata`: structs in structs, lists in lists, and groups, at every depth around the limit.
    for levels in 0..110_usize {
        let text = field(3, b"deep");
        let structs = (0..levels).fold(text.clone(), |inner, _| field(5, &field(1, &field(2, &inner))));
        let lists = (0..levels).fold(text, |inner, _| field(6, &field(1, &inner)));
        let unknown = (0..levels).fold(vec![0x78, 1], |inner, _| field(6, &field(1, &inner)));
        let groups = [vec![0x7b; levels], vec![0x7c; levels]].concat();
        let values = [structs, lists, unknown, groups.clone()];
        let in_metadata = |value: &[u8]| field(1, &field(17, &field(1, &field(2, &field(1, &field(2, value))))));
        let entries =
            values.iter().map(|value| in_metadata(value)).chain([groups.clone(), field(1, &groups), field(3, &groups)]);
        let entries: Vec<_> = entries.map(|entry| [before, &entry[..]].concat()).collect();
        let stats = same(&format!("{levels} levels"), &[message(&entries, false)]);
        kept += stats.kept;
        refused += stats.malformed_entries.values().sum::<u64>();
    }
    assert!(kept > 200 && refused > 100, "{kept} {refused}");
}

/// Entries of maps whose key and value come in any order, twice, or not at all; and certificates in pieces.
#[test]
fn maps_and_certificates_in_pieces() {
    let before = &entries_of(RECORDED[0].0)[0];
    let struct_type = b"type.googleapis.com/google.protobuf.Struct";
    // A struct with `workload: "a"`, and one with "b".
    let object = |name: &[u8]| field(1, &[field(1, b"workload"), field(2, &field(3, name))].concat());
    let any = |name: &[u8]| [field(1, struct_type), field(2, &object(name))].concat();
    let key = field(1, b"upstream_peer");
    let peers = [
        [key.clone(), field(2, &any(b"a"))].concat(),
        [field(2, &any(b"a")), key.clone()].concat(),
        [key.clone(), field(2, &any(b"a")), field(2, &field(2, &object(b"b")))].concat(),
        [field(1, b"other"), field(2, &any(b"a")), key.clone()].concat(),
        key.clone(),
        field(2, &any(b"a")),
        [key.clone(), field(2, &field(2, &object(b"a"))), field(2, &field(1, struct_type))].concat(),
        [key, field(2, b"\xff")].concat(),
    ];
    let tag_key = field(1, b"connection_id");
    let tags = [
        [tag_key.clone(), field(2, b"7")].concat(),
        [field(2, b"7"), tag_key.clone()].concat(),
        [tag_key.clone(), field(2, b"7"), field(2, b"8")].concat(),
        tag_key.clone(),
        [tag_key, field(2, b"\xff")].concat(),
    ];
    let name = field(1, &field(1, b"spiffe://a"));
    let two = field(1, &[field(1, b"spiffe://a"), field(2, b"dns")].concat());
    let subject = field(2, b"CN=a");
    let certificates = [
        vec![[name.clone(), subject.clone()].concat()],
        vec![name.clone(), subject.clone()],
        vec![two.clone(), name.clone(), Vec::new(), subject.clone()],
        vec![Vec::new(), two],
        // Each half alone is none, and together they would be one.
        vec![subject[..2].to_vec(), subject[2..].to_vec()],
        vec![subject, b"\x12\x02\xff\xff".to_vec()],
        vec![vec![0x1b], vec![0x1c]],
    ];
    let tls = certificates.iter().flat_map(|pieces| {
        [4, 5].map(|side| field(4, &pieces.iter().flat_map(|p| field(side, p)).collect::<Vec<u8>>()))
    });
    let commons = peers.iter().map(|p| field(21, p)).chain(tags.iter().map(|t| field(22, t))).chain(tls);
    let commons: Vec<_> = commons.collect();
    let mut kept = 0;
    for first in &commons {
        for second in &commons {
            let entry = |parts: &[u8]| [before, &field(1, parts)[..]].concat();
            let both = [&first[..], second].concat();
            let entries = [entry(first), entry(&both), [entry(first), field(1, second)].concat()];
            kept += same("in pieces", &[message(&entries, false)]).kept;
        }
    }
    assert!(kept > 1_000, "{kept}");
}
