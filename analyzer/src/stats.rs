//! Statistics over times: exact order statistics, and a mean with its interval.

use crate::report::Distribution;
use meshdiff_model::DurationNs;
use statrs::distribution::{ContinuousCDF, StudentsT};

/// Times, sorted. Cannot be empty.
#[derive(Clone, Debug)]
pub struct Sample(Vec<i64>);

impl Sample {
    /// A sample of times in any order; `None` if there are none.
    #[must_use]
    pub fn new(mut times: Vec<i64>) -> Option<Self> {
        if times.is_empty() {
            return None;
        }
        times.sort_unstable();
        Some(Self(times))
    }

    /// How many.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Never true; here because a length is.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The smallest value that at least `per_mille` ‰ of the sample do not exceed (nearest rank; Hyndman and Fan's
    /// definition 1, 1996): always a time that occurred.
    #[must_use]
    pub fn quantile(&self, per_mille: usize) -> DurationNs {
        let rank = (self.0.len() * per_mille).div_ceil(1000).max(1);
        DurationNs(self.0[rank - 1])
    }

    fn sum(&self) -> i128 {
        self.0.iter().map(|&t| i128::from(t)).sum()
    }

    /// Arithmetic mean, rounded to the nearest nanosecond.
    #[must_use]
    pub fn mean(&self) -> DurationNs {
        self.moments().mean()
    }

    /// 95% confidence interval of the mean, by Student's t: assumes independent requests and enough of them for the mean to be
    /// near normal. With one value the interval is that value.
    #[must_use]
    pub fn mean_ci95(&self) -> (DurationNs, DurationNs) {
        self.moments().mean_ci95()
    }

    fn moments(&self) -> Moments {
        let square = |t: &i64| i128::from(*t) * i128::from(*t);
        Moments { n: self.0.len() as u64, sum: self.sum(), squares: self.0.iter().map(square).sum() }
    }

    /// Mean and quantiles.
    #[must_use]
    pub fn distribution(&self) -> Distribution {
        Distribution {
            mean: self.mean(),
            p50: self.quantile(500),
            p90: self.quantile(900),
            p99: self.quantile(990),
            p999: self.quantile(999),
        }
    }
}

/// How many times there are, their sum and the sum of their squares: exact, so that it does not matter who adds them up in which order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moments {
    pub(crate) n: u64,
    pub(crate) sum: i128,
    pub(crate) squares: i128,
}

impl Moments {
    /// Arithmetic mean, rounded to the nearest nanosecond.
    fn mean(self) -> DurationNs {
        let n = i128::from(self.n).max(1);
        let rounded = (2 * self.sum + n).div_euclid(2 * n);
        DurationNs(i64::try_from(rounded).unwrap_or(i64::MAX))
    }

    /// See [`Sample::mean_ci95`].
    pub(crate) fn mean_ci95(self) -> (DurationNs, DurationNs) {
        if self.n < 2 {
            return (self.mean(), self.mean());
        }
        let n = self.n as f64;
        let mean = self.sum as f64 / n;
        let half = StudentsT::new(0.0, 1.0, n - 1.0)
            .map_or(f64::INFINITY, |t| t.inverse_cdf(0.975) * (self.variance() / n).sqrt());
        (DurationNs((mean - half).round() as i64), DurationNs((mean + half).round() as i64))
    }

    /// Of the sample. (n·Σt² − (Σt)²) ÷ (n·(n − 1)) loses nothing while the products are whole numbers.
    fn variance(self) -> f64 {
        let n = i128::from(self.n);
        let exact = || (n.checked_mul(self.squares)?).checked_sub(self.sum.checked_mul(self.sum)?);
        let above = exact().map_or_else(
            || (n as f64).mul_add(self.squares as f64, -(self.sum as f64 * self.sum as f64)),
            |whole| whole as f64,
        );
        above.max(0.0) / (n as f64 * (n as f64 - 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_values() {
        let sample = Sample::new((1..=100).rev().collect()).expect("not empty");
        assert_eq!(sample.quantile(500), DurationNs(50));
        assert_eq!(sample.quantile(990), DurationNs(99));
        assert_eq!(sample.quantile(999), DurationNs(100));
        assert_eq!(sample.mean(), DurationNs(51));
        // t(0.975, 99) = 1.98422; s = 29.0115; so 50.5 ± 5.7565.
        assert_eq!(sample.mean_ci95(), (DurationNs(45), DurationNs(56)));
        assert!(Sample::new(vec![]).is_none());
        assert_eq!(Sample::new(vec![-3]).expect("one").mean_ci95(), (DurationNs(-3), DurationNs(-3)));
    }

    proptest! {
        #[test]
        fn quantiles_are_ordered_members(times in prop::collection::vec(-1_000_000i64..1_000_000_000, 1..200)) {
            let sample = Sample::new(times.clone()).expect("not empty");
            let d = sample.distribution();
            prop_assert!(d.p50 <= d.p90 && d.p90 <= d.p99 && d.p99 <= d.p999);
            prop_assert!(times.contains(&d.p50.0) && times.contains(&d.p999.0));
            let (low, high) = sample.mean_ci95();
            prop_assert!(low.0 <= d.mean.0 + 1 && d.mean.0 - 1 <= high.0);
            let below = times.iter().filter(|&&t| t <= d.p90.0).count();
            prop_assert!(below * 10 >= times.len() * 9);
        }
    }
}
