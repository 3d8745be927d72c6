//! The joins against a world whose truth is known: never a wrong join, never a wrong instant, and whatever is ordinary is
//! full. Messages are made by the real assembly.

mod check;
mod multiplexed;
mod nodes;
mod parts;
mod world;

use check::{join, judge};
use meshdiff_model::{JoinOutcome, UnmatchedReason};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use world::{Config, record};

fn config() -> impl Strategy<Value = Config> {
    let traffic = (1usize..12, 20usize..160, 1usize..6, any::<bool>());
    let trouble = (
        prop_oneof![2 => Just(0u32), 1 => 1u32..60, 1 => 60u32..800],
        prop_oneof![2 => Just(0u32), 1 => 50u32..3_000],
        30u16..200,
        any::<bool>(),
        prop_oneof![2 => Just(0u32), 1 => Just(1_500u32)],
        prop_oneof![3 => Just(0u32), 1 => Just(3_000u32)],
    );
    let window = prop_oneof![2 => Just((0u32, 100u32)), 1 => (0u32..60, 70u32..=100)];
    (any::<u64>(), traffic, trouble, window).prop_map(
        |(seed, (clients, requests, pool, tls), (loss, log_loss, ports, shared_ids, retries, bodies), window)| Config {
            seed,
            clients,
            requests,
            pool,
            tls,
            loss,
            log_loss,
            ports,
            shared_ids,
            retries,
            bodies,
            window,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, rng_seed: RngSeed::Fixed(20_261_122), ..ProptestConfig::default() })]
    #[test]
    fn never_a_wrong_join_and_what_is_ordinary_is_full(config in config()) {
        let world = record(&config);
        let mesh = join(&world);
        let tally = judge(&world, &mesh.hops);
        prop_assert_eq!(tally.full, tally.ordinary, "{:?}", tally);
    }
}

/// Entries are dropped on purpose: what cannot be counted is told from what the kernel saw, and never more than was lost.
#[test]
fn lost_entries_of_servers_are_estimated_from_what_the_kernel_saw() {
    let (mut lost, mut told) = (0, 0);
    for seed in 0..60 {
        let log_loss = if seed % 3 == 0 { 0 } else { 2_000 };
        let config = Config {
            seed,
            clients: 4,
            requests: 120,
            pool: 4,
            tls: seed % 2 == 0,
            loss: if seed % 5 == 4 { 100 } else { 0 },
            log_loss,
            ports: 200,
            shared_ids: false,
            retries: if seed % 4 == 0 { 1_500 } else { 0 },
            bodies: 0,
            window: (0, 100),
        };
        let world = record(&config);
        let truly = world.requests.iter().flat_map(|r| &r.attempts).filter(|a| a.server_log_lost).count();
        let estimate = join(&world).unlogged_by_servers.len();
        assert!(estimate <= truly, "{seed}: {estimate} of {truly}");
        assert!(log_loss > 0 || estimate == 0, "{seed}");
        if config.loss == 0 {
            (lost, told) = (lost + truly, told + estimate);
        }
    }
    println!("{told} of {lost} lost entries are told");
    assert!(lost > 300 && told * 100 >= lost * 90, "{told} of {lost}");
}

/// A recording that begins and ends in the middle of traffic: what it cut off is not full, and says at which end.
#[test]
fn what_a_recording_cuts_off_says_so() {
    let mut seen = [0; 2];
    for seed in 0..40 {
        let config = Config {
            seed,
            clients: 10,
            requests: 150,
            pool: 4,
            tls: seed % 2 == 0,
            loss: 0,
            log_loss: 0,
            ports: 200,
            shared_ids: false,
            retries: 0,
            bodies: 0,
            window: (30, 70),
        };
        let world = record(&config);
        let (from, to) = (world.window.0.0, world.window.1.0);
        for hop in join(&world).hops.iter().map(|h| &h.joined) {
            let Some(log) = &hop.client_log else { continue };
            let n: usize =
                log.path.as_deref().and_then(|p| p.strip_prefix("/r")?.parse().ok()).expect("a path of this world");
            let truth = &world.requests[n];
            let reason = match hop.client_half {
                JoinOutcome::Unmatched(reason) => Some(reason),
                _ => None,
            };
            // Well before the recording its sidecar had begun, or well after its end it had answered.
            if truth.request.recv + 50_000 < from {
                assert_eq!(reason, Some(UnmatchedReason::BeforeRecording), "request {n} of {seed}: {hop:#?}");
                seen[0] += 1;
            } else if truth.request.send > from && truth.response.send > to && truth.request.recv + 50_000 < to {
                assert_eq!(reason, Some(UnmatchedReason::StillOpen), "request {n} of {seed}: {hop:#?}");
                seen[1] += 1;
            }
        }
    }
    assert!(seen.iter().all(|n| *n > 10), "too few were cut off: {seen:?}");
}
