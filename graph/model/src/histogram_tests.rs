use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

/// Values of all magnitudes, the extremes among them.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        (0_u32..64, any::<u64>()).prop_map(|(shift, v)| v >> shift),
        (0_u32..64).prop_map(|shift| 1 << shift),
        prop::sample::select(vec![0, 1, 2, 3, u64::MAX, u64::MAX - 1]),
    ]
}

#[test]
fn the_bounds_are_the_powers_of_the_base() {
    for (j, bound) in BOUNDS.iter().enumerate() {
        let exact = (j as f64 / 64.0).exp2();
        assert!((*bound as f64 * (-63.0_f64).exp2() / exact - 1.0).abs() < 1e-15, "{j}");
    }
    assert!(BOUNDS.windows(2).all(|w| w[0] < w[1]));
}

#[test]
fn indices_are_opentelemetrys() {
    // Powers of two are the upper bound of their bucket.
    assert_eq!([1, 2, 4, 1 << 63].map(index_of), [-1, 63, 127, 63 * 64 - 1]);
    assert_eq!(index_of(3), 101); // 64 * log2(3) = 101.4
    assert_eq!(index_of(u64::MAX), HIGHEST);
    assert_eq!(index_of(1), LOWEST);
}

#[test]
fn an_empty_one_says_nothing() {
    let empty = ExponentialHistogram::new();
    assert!(empty.is_empty());
    assert_eq!((empty.count(), empty.sum(), empty.min(), empty.max(), empty.mean()), (0, 0, None, None, None));
    assert_eq!((empty.quantile(0.5), empty.buckets().count()), (None, 0));
    let one: ExponentialHistogram = [7].into_iter().collect();
    assert_eq!((one.quantile(0.0), one.quantile(1.0), one.quantile(1.5)), (Some(7.0), Some(7.0), None));
}

#[test]
fn sums_saturate_and_nothing_panics() {
    let mut histogram = ExponentialHistogram::new();
    histogram.record_n(u64::MAX, u64::MAX);
    histogram.record_n(0, u64::MAX);
    histogram.record(5);
    histogram.merge(&histogram.clone());
    assert_eq!((histogram.count(), histogram.sum()), (u64::MAX, u64::MAX));
    assert_eq!((histogram.min(), histogram.max()), (Some(0), Some(u64::MAX)));
}

#[test]
fn stored_nonsense_is_refused() {
    let good: ExponentialHistogram = [3, 0, 900].into_iter().collect();
    let parts = good.to_parts();
    assert_eq!(ExponentialHistogram::from_parts(parts.clone()), Ok(good));
    let swapped = Parts { buckets: parts.buckets.iter().rev().copied().collect(), ..parts.clone() };
    assert_eq!(ExponentialHistogram::from_parts(swapped), Err(HistogramError::Buckets));
    let beyond = Parts { buckets: vec![(4096, 1)], ..Parts::default() };
    assert_eq!(ExponentialHistogram::from_parts(beyond), Err(HistogramError::Buckets));
    for wrong in [
        Parts { min: 3, ..parts.clone() },
        Parts { max: 4, ..parts.clone() },
        Parts { sum: 899, ..parts.clone() },
        Parts { min: 1, ..Parts::default() },
    ] {
        assert_eq!(ExponentialHistogram::from_parts(wrong.clone()), Err(HistogramError::Contradiction), "{wrong:?}");
    }
}

#[test]
fn it_is_written_and_read_as_text() {
    let histogram: ExponentialHistogram = [0, 1, 1_000, 1_000].into_iter().collect();
    let json = serde_json::to_string(&histogram).expect("serialises");
    assert_eq!(json, r#"{"zeros":1,"sum":2001,"min":0,"max":1000,"buckets":[[-1,1],[637,2]]}"#);
    assert_eq!(serde_json::from_str::<ExponentialHistogram>(&json).expect("reads"), histogram);
    assert!(serde_json::from_str::<ExponentialHistogram>(&json.replace("-1,1", "-1,0")).is_err());
}

proptest! {
    #[test]
    fn every_value_is_in_its_bucket(v in value()) {
        let one: ExponentialHistogram = [v].into_iter().collect();
        let bucket = one.buckets().next().expect("one bucket");
        prop_assert_eq!(bucket.count, 1);
        let (lower, upper) = (bucket.lower * (1.0 - 1e-15), bucket.upper * (1.0 + 1e-15));
        prop_assert!(lower <= v as f64 && v as f64 <= upper, "{} in {:?}", v, bucket);
        prop_assert!(v == 0 || bucket.upper / bucket.lower < 1.011);
    }

    #[test]
    fn quantiles_are_right_to_one_per_cent(mut values in vec(value(), 1..300), q in 0.0..=1.0_f64) {
        let histogram: ExponentialHistogram = values.iter().copied().collect();
        values.sort_unstable();
        let rank = ((q * values.len() as f64).ceil() as usize).clamp(1, values.len());
        let (exact, found) = (values[rank - 1] as f64, histogram.quantile(q).expect("there are values"));
        prop_assert!((found - exact).abs() <= exact * 0.0055, "{found} for {exact}");
        prop_assert_eq!(histogram.quantile(0.0), Some(values[0] as f64));
        prop_assert_eq!(histogram.quantile(1.0), values.last().map(|v| *v as f64));
    }

    #[test]
    fn merging_is_recording_together_in_any_order(
        sets in vec(vec(value(), 0..40), 1..6), rotate in 0_usize..6,
    ) {
        let together: ExponentialHistogram = sets.iter().flatten().copied().collect();
        let apart: Vec<ExponentialHistogram> = sets.iter().map(|s| s.iter().copied().collect()).collect();
        let mut order: Vec<_> = apart.iter().collect();
        order.rotate_left(rotate % apart.len());
        for order in [order.clone(), order.into_iter().rev().collect()] {
            let mut merged = ExponentialHistogram::new();
            order.into_iter().for_each(|h| merged.merge(h));
            prop_assert_eq!(&merged, &together);
        }
        // Grouped differently.
        let (mut left, mut right) = (ExponentialHistogram::new(), ExponentialHistogram::new());
        apart.iter().enumerate().for_each(|(i, h)| if i % 2 == 0 { left.merge(h) } else { right.merge(h) });
        right.merge(&left);
        prop_assert_eq!(right, together);
    }

    #[test]
    fn it_agrees_with_a_naive_count(values in vec((value(), 0_u64..4), 0..60)) {
        let mut histogram = ExponentialHistogram::new();
        values.iter().for_each(|(v, n)| histogram.record_n(*v, *n));
        let all: Vec<u64> = values.iter().flat_map(|(v, n)| std::iter::repeat_n(*v, *n as usize)).collect();
        prop_assert_eq!(histogram.count(), all.len() as u64);
        prop_assert_eq!(histogram.sum(), all.iter().fold(0_u64, |s, v| s.saturating_add(*v)));
        prop_assert_eq!((histogram.min(), histogram.max()), (all.iter().min().copied(), all.iter().max().copied()));
        prop_assert_eq!(histogram.zero_count(), all.iter().filter(|v| **v == 0).count() as u64);
        prop_assert_eq!(histogram.buckets().map(|b| b.count).sum::<u64>(), all.len() as u64);
        prop_assert_eq!(ExponentialHistogram::from_parts(histogram.to_parts()), Ok(histogram));
    }
}
