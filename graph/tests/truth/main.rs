//! The joins against a world whose truth is known: never a wrong join, never a wrong instant, and whatever is ordinary is
//! full. Messages are made by the real assembly.

mod check;
mod multiplexed;
mod nodes;
mod world;

use check::{join, judge};
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
