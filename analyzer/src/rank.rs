//! Two samples compared by ranks.

use statrs::distribution::{ContinuousCDF, Normal};

/// The probability, two-sided, that samples of one distribution differ in their ranks as these do: Mann and Whitney's U (1947) by its normal
/// approximation, with the correction for ties. Right for independent values and some twenty of them on each side or more. `None` if either
/// sample is empty; 1 if all values are equal.
#[must_use]
pub(crate) fn mann_whitney(a: &[i64], b: &[i64]) -> Option<f64> {
    if a.is_empty() || b.is_empty() {
        return None;
    }
    let mut all: Vec<(i64, bool)> = a.iter().map(|v| (*v, true)).chain(b.iter().map(|v| (*v, false))).collect();
    all.sort_unstable();
    let (n_a, n_b, n) = (a.len() as f64, b.len() as f64, all.len() as f64);
    let (mut ranks_of_a, mut ties, mut before) = (0.0, 0.0, 0.0);
    for equal in all.chunk_by(|x, y| x.0 == y.0) {
        let count = equal.len() as f64;
        // Equal values share the mean of their ranks.
        let of_a = equal.iter().filter(|(_, is_a)| *is_a).count() as f64;
        ranks_of_a += of_a * (before + (count + 1.0) / 2.0);
        ties += count.powi(3) - count;
        before += count;
    }
    let u = ranks_of_a - n_a * (n_a + 1.0) / 2.0;
    let variance = n_a * n_b / 12.0 * (n + 1.0 - ties / (n * (n - 1.0)));
    if variance <= 0.0 || variance.is_nan() {
        return Some(1.0);
    }
    // Half a rank less: U moves in steps.
    let z = ((u - n_a * n_b / 2.0).abs() - 0.5).max(0.0) / variance.sqrt();
    let normal = Normal::standard();
    Some((2.0 * normal.sf(z)).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_values() {
        // scipy.stats.mannwhitneyu(a, b, method="asymptotic") of SciPy's documentation: U = 17, p = 0.11134688653...
        let (males, females) = ([19, 22, 16, 29, 24], [20, 11, 17, 12]);
        let p = mann_whitney(&males, &females).expect("values");
        assert!((p - 0.111_346_883).abs() < 1e-6, "{p}");
        assert_eq!(mann_whitney(&[5; 30], &[5; 30]), Some(1.0));
        assert_eq!(mann_whitney(&[], &[1]), None);
        let (low, high): (Vec<i64>, Vec<i64>) = ((0..100).collect(), (100..200).collect());
        assert!(mann_whitney(&low, &high).expect("values") < 1e-30);
    }

    proptest! {
        #[test]
        fn it_is_a_probability_and_the_same_both_ways(
            a in prop::collection::vec(-50i64..50, 1..60),
            b in prop::collection::vec(-50i64..50, 1..60),
        ) {
            let p = mann_whitney(&a, &b).expect("values");
            prop_assert!((0.0..=1.0).contains(&p));
            prop_assert!((p - mann_whitney(&b, &a).expect("values")).abs() < 1e-9);
        }
    }
}
