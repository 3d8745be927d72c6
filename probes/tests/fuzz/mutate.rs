//! Changes kept examples at random, for a bounded time.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longest input.
const MOST: usize = 4096;
/// What is worth putting somewhere: bounds of lengths, and what the protocols are made of.
const PIECES: [&[u8]; 18] = [
    b"\r\n",
    b"\r\n\r\n",
    b" HTTP/1.1\r\n",
    b"HTTP/1.1 100 \r\n\r\n",
    b"HTTP/1.1 200 OK\r\n",
    b"GET /",
    b"?",
    b"\x00",
    b"\xff\xff",
    b"\x16\x03\x01",
    b"\x17\x03\x03",
    b"\x00\x2b",
    b"\x00\x10",
    b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    b"\x00\x00\x04\x01\x05\x00\x00\x00\x01",
    b"\x3f\xff\xff\xff\x0f",
    b"\xf0\x9f\x90\xb3",
    b"\x1b[31m",
];

/// One input.
pub(crate) struct Input {
    pub(crate) bytes: Vec<u8>,
    /// A position in it, or behind it.
    pub(crate) cut: usize,
    /// For choices of the test's own.
    pub(crate) noise: u64,
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

fn examples(kind: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(kind);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<_> = entries.map(|e| e.expect("an entry").path()).collect();
    paths.sort();
    assert!(paths.len() >= 5, "{} has lost its examples", folder.display());
    paths.iter().map(|p| std::fs::read(p).unwrap_or_else(|e| panic!("{}: {e}", p.display()))).collect()
}

/// Runs a test on every example and every beginning of it, then on changed ones until time is up.
pub(crate) fn fuzz(kind: &str, test: impl Fn(&Input)) {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    let seed = setting("MESHDIFF_FUZZ_SEED").unwrap_or(since_epoch as u64);
    let end = Instant::now() + Duration::from_secs(setting("MESHDIFF_FUZZ_SECONDS").unwrap_or(3));
    let run = |input: &Input| {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(input))) {
            let bytes = input.bytes.escape_ascii();
            eprintln!(
                "{kind}: MESHDIFF_FUZZ_SEED={seed}, cut {}, noise {}, input b\"{bytes}\"",
                input.cut, input.noise
            );
            resume_unwind(panic);
        }
    };
    let examples = examples(kind);
    for bytes in &examples {
        for cut in 0..=bytes.len() {
            run(&Input { bytes: bytes.clone(), cut, noise: cut as u64 });
        }
    }
    let mut random = StdRng::seed_from_u64(seed);
    let mut cases = 0_u64;
    while cases < 1_000 || Instant::now() < end {
        let bytes = changed(&examples, &mut random);
        let cut = random.random_range(0..=bytes.len());
        run(&Input { bytes, cut, noise: random.random() });
        cases += 1;
    }
    println!("{kind}: {cases} cases from seed {seed}");
}

fn changed(examples: &[Vec<u8>], random: &mut StdRng) -> Vec<u8> {
    let mut bytes = examples.choose(random).expect("there are some").clone();
    for _ in 0..random.random_range(0..6) {
        let at = random.random_range(0..=bytes.len());
        match random.random_range(0..8) {
            0 if at < bytes.len() => bytes[at] = random.random(),
            1 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            2 if at < bytes.len() => bytes[at] = bytes[at].wrapping_add(if random.random() { 1 } else { 255 }),
            3 => bytes.truncate(at),
            4 => {
                let piece = PIECES.choose(random).expect("there are some");
                bytes.splice(at..at, piece.iter().copied());
            }
            5 => {
                // From another example, from anywhere in it.
                let other = examples.choose(random).expect("there are some");
                let from = random.random_range(0..=other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            6 => {
                let to = random.random_range(at..=bytes.len());
                let part = bytes[at..to].to_vec();
                bytes.splice(at..at, part);
            }
            _ => {
                let to = random.random_range(at..=bytes.len());
                bytes.drain(at..to);
            }
        }
        bytes.truncate(MOST);
    }
    bytes
}
