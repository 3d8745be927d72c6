//! A mergeable histogram whose quantiles are right to within 1%.

use serde::{Deserialize, Serialize};
use std::hint::black_box;

/// Buckets per doubling of the value, as a power of two: scale 6 is 64 of them, each 1.09% wide.
const SCALE: u32 = 6;
const PER_OCTAVE: i32 = 1 << SCALE;

/// `2^(1/2^k)` for k = 1 to 6, as integers with 63 fraction bits.
const ROOTS: [u64; SCALE as usize] = [
    0xb504_f333_f9de_6484,
    0x9837_f051_8db8_a96f,
    0x8b95_c1e3_ea8b_d6e6,
    0x85aa_c367_cc48_7b14,
    0x82cd_8698_ac2b_a1d7,
    0x8164_d1f3_bc03_0773,
];

/// `2^(j/64)` for j = 0 to 63, as integers with 63 fraction bits: the product of the roots whose bit is set in j.
/// Integers rather than `powf`, so that a value falls into the same bucket on every machine.
const BOUNDS: [u64; PER_OCTAVE as usize] = bounds();

const fn bounds() -> [u64; PER_OCTAVE as usize] {
    let mut table = [0; PER_OCTAVE as usize];
    let mut j = 0;
    while j < table.len() {
        let mut bound = 1_u64 << 63;
        let mut k = 0;
        while k < ROOTS.len() {
            if j & (PER_OCTAVE as usize >> (k + 1)) != 0 {
                bound = ((bound as u128 * ROOTS[k] as u128) >> 63) as u64;
            }
            k += 1;
        }
        table[j] = bound;
        j += 1;
    }
    table
}

/// For each 128th of the way from 1.0 to 2.0, how many of the bounds are below its beginning. A bucket is wider than a 128th: within
/// one lies at most one bound more.
const BELOW: [u8; 2 * PER_OCTAVE as usize] = below();

const fn below() -> [u8; 2 * PER_OCTAVE as usize] {
    let mut table = [0; 2 * PER_OCTAVE as usize];
    let mut cell = 0;
    while cell < table.len() {
        let beginning = (1 << 63) + ((cell as u64) << (63 - SCALE - 1));
        let mut n = 0;
        while n < BOUNDS.len() && BOUNDS[n] < beginning {
            n += 1;
        }
        table[cell] = n as u8;
        cell += 1;
    }
    table
}

/// OpenTelemetry's exponential histogram at scale 6, of whole numbers: bucket `i` counts the values `v` with
/// `base^i < v <= base^(i+1)`, where `base = 2^(2^-6)` = 1.0109; zeros are counted apart.
/// (<https://opentelemetry.io/docs/specs/otel/metrics/data-model/#exponentialhistogram>)
///
/// A quantile is off by at most `(base - 1) / (base + 1)` = 0.55% of the value. Merging is exact: the histogram of two sets
/// of values is the merger of their histograms, in any order. Only buckets that hold something take room (16 bytes each, at
/// most 4,097 of them for the whole range of `u64`). Counts and the sum saturate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", try_from = "Parts", into = "Parts")]
pub struct ExponentialHistogram {
    zeros: u64,
    sum: u64,
    /// Smallest and largest value; without meaning while nothing was recorded.
    min: u64,
    max: u64,
    count: u64,
    /// Index and count, by index; no count is 0.
    buckets: Vec<(i16, u64)>,
}

/// A bucket that holds something: `lower < value <= upper`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    /// The index of OpenTelemetry's exponential histogram (`None` for the zeros, which have no bucket there).
    pub index: Option<i16>,
    /// Exclusive lower bound (0 for the zeros).
    pub lower: f64,
    /// Inclusive upper bound (0 for the zeros).
    pub upper: f64,
    /// Values in it.
    pub count: u64,
}

/// Why stored numbers are no histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistogramError {
    /// The buckets are not in order of their index, or one is empty or beyond what a `u64` can hold.
    #[error("the buckets of a histogram are out of order, empty or out of range")]
    Buckets,
    /// The smallest and largest value, or the sum, are not possible with these buckets.
    #[error("a histogram's smallest value, largest value or sum contradict its buckets")]
    Contradiction,
}

/// A histogram as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Parts {
    /// Values that were 0.
    pub zeros: u64,
    /// Sum of all values.
    pub sum: u64,
    /// Smallest value; 0 if there is none.
    pub min: u64,
    /// Largest value; 0 if there is none.
    pub max: u64,
    /// Index and count of the buckets that hold something, by index.
    pub buckets: Vec<(i16, u64)>,
}

/// The index of the bucket of a value that is not 0.
#[inline]
fn index_of(value: u64) -> i16 {
    let octave = 63 - value.leading_zeros();
    // 1.0 to 2.0, with 63 fraction bits; exact.
    let mantissa = value << value.leading_zeros();
    // Bounds belong to the bucket below, so those that are smaller count.
    let below = usize::from(BELOW[(mantissa << 1 >> (64 - SCALE - 1)) as usize]);
    let below = below + usize::from(BOUNDS.get(below).is_some_and(|bound| *bound < mantissa));
    let index = (octave as i32) * PER_OCTAVE + below as i32 - 1;
    // -1 to 4095.
    index as i16
}

/// `base^index`.
fn bound(index: i32) -> f64 {
    let (octave, step) = (index.div_euclid(PER_OCTAVE), index.rem_euclid(PER_OCTAVE));
    BOUNDS[step as usize] as f64 * f64::from(octave - 63).exp2()
}

const LOWEST: i16 = -1;
const HIGHEST: i16 = 64 * PER_OCTAVE as i16 - 1;

impl ExponentialHistogram {
    /// A histogram without values.
    #[must_use]
    pub const fn new() -> Self {
        Self { zeros: 0, sum: 0, min: 0, max: 0, count: 0, buckets: Vec::new() }
    }

    /// A histogram from what was stored of one.
    ///
    /// # Errors
    /// If the numbers contradict each other.
    pub fn from_parts(parts: Parts) -> Result<Self, HistogramError> {
        let Parts { zeros, sum, min, max, buckets } = parts;
        let in_order = buckets.windows(2).all(|w| w[0].0 < w[1].0);
        if !in_order || buckets.iter().any(|(i, n)| *n == 0 || !(LOWEST..=HIGHEST).contains(i)) {
            return Err(HistogramError::Buckets);
        }
        let count = buckets.iter().fold(zeros, |sum, (_, n)| sum.saturating_add(*n));
        let first = if zeros > 0 { None } else { buckets.first().map(|b| b.0) };
        let last = buckets.last().map(|b| b.0);
        let bucket = |value: u64| (value != 0).then(|| index_of(value));
        let fits = bucket(min) == first && bucket(max) == last && sum >= max && (count != 1 || sum == max);
        if !fits {
            return Err(HistogramError::Contradiction);
        }
        Ok(Self { zeros, sum, min, max, count, buckets })
    }

    /// What is to be stored of it.
    #[must_use]
    pub fn to_parts(&self) -> Parts {
        let Self { zeros, sum, min, max, count: _, buckets } = self.clone();
        Parts { zeros, sum, min, max, buckets }
    }

    /// Adds a value.
    #[inline]
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Adds a value `n` times.
    #[inline]
    pub fn record_n(&mut self, value: u64, n: u64) {
        if n == 0 {
            return;
        }
        self.widen(value, value);
        self.count = self.count.saturating_add(n);
        self.sum = self.sum.saturating_add(value.saturating_mul(n));
        if value == 0 { self.zeros = self.zeros.saturating_add(n) } else { self.add(index_of(value), n) }
    }

    /// Adds values: for many of them at once this takes less than [`record`](Self::record) of each.
    pub fn record_all(&mut self, values: &[u32]) {
        // A histogram that nobody touched for a while is in no cache. All of its lines are asked for at once, instead of one after
        // the other as the searches come to them.
        black_box(self.buckets.iter().step_by(4).fold(0, |all, bucket| all | bucket.1));
        values.iter().for_each(|value| self.record(u64::from(*value)));
    }

    /// Adds all values of another.
    pub fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        self.widen(other.min, other.max);
        self.count = self.count.saturating_add(other.count);
        self.sum = self.sum.saturating_add(other.sum);
        self.zeros = self.zeros.saturating_add(other.zeros);
        other.buckets.iter().for_each(|(index, n)| self.add(*index, *n));
    }

    #[inline]
    fn widen(&mut self, min: u64, max: u64) {
        if self.count == 0 {
            (self.min, self.max) = (min, max);
        } else {
            (self.min, self.max) = (self.min.min(min), self.max.max(max));
        }
    }

    #[inline]
    fn add(&mut self, index: i16, n: u64) {
        let at = self.buckets.partition_point(|b| b.0 < index);
        match self.buckets.get_mut(at) {
            Some(bucket) if bucket.0 == index => bucket.1 = bucket.1.saturating_add(n),
            _ => self.buckets.insert(at, (index, n)),
        }
    }

    /// Number of values.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }
    /// Number of values that were 0.
    #[must_use]
    pub const fn zero_count(&self) -> u64 {
        self.zeros
    }
    /// True if there is no value.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }
    /// Sum of the values, exact unless it is `u64::MAX`.
    #[must_use]
    pub const fn sum(&self) -> u64 {
        self.sum
    }
    /// The smallest value, exact.
    #[must_use]
    pub const fn min(&self) -> Option<u64> {
        if self.count == 0 { None } else { Some(self.min) }
    }
    /// The largest value, exact.
    #[must_use]
    pub const fn max(&self) -> Option<u64> {
        if self.count == 0 { None } else { Some(self.max) }
    }
    /// The mean of the values.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum as f64 / self.count as f64)
    }

    /// The value that a share of `q` (0 to 1) of the values does not exceed (the nearest-rank quantile), off by at most 0.55%
    /// of itself; the smallest and the largest value are exact. `None` without values, or if `q` is no share.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<f64> {
        if self.count == 0 || !(0.0..=1.0).contains(&q) {
            return None;
        }
        let rank = ((q * self.count as f64).ceil() as u64).clamp(1, self.count);
        // At the ends the value is known.
        if rank == 1 {
            return Some(self.min as f64);
        }
        if rank == self.count {
            return Some(self.max as f64);
        }
        let mut seen = self.zeros;
        if rank <= seen {
            return Some(0.0);
        }
        for (index, n) in &self.buckets {
            seen = seen.saturating_add(*n);
            if rank <= seen {
                let (lower, upper) = (bound(i32::from(*index)), bound(i32::from(*index) + 1));
                // The value whose relative distance to both bounds is the same.
                let middle = 2.0 * lower * upper / (lower + upper);
                return Some(middle.clamp(self.min as f64, self.max as f64));
            }
        }
        Some(self.max as f64)
    }

    /// The buckets that hold something, in order of their bounds; the zeros come first, as `0..=0`.
    pub fn buckets(&self) -> impl Iterator<Item = Bucket> + '_ {
        let zeros = (self.zeros > 0).then_some(Bucket { index: None, lower: 0.0, upper: 0.0, count: self.zeros });
        zeros.into_iter().chain(self.buckets.iter().map(|(index, count)| Bucket {
            index: Some(*index),
            lower: bound(i32::from(*index)),
            upper: bound(i32::from(*index) + 1),
            count: *count,
        }))
    }
}

impl TryFrom<Parts> for ExponentialHistogram {
    type Error = HistogramError;
    fn try_from(parts: Parts) -> Result<Self, HistogramError> {
        Self::from_parts(parts)
    }
}

impl From<ExponentialHistogram> for Parts {
    fn from(histogram: ExponentialHistogram) -> Self {
        histogram.to_parts()
    }
}

impl Extend<u64> for ExponentialHistogram {
    fn extend<I: IntoIterator<Item = u64>>(&mut self, values: I) {
        values.into_iter().for_each(|v| self.record(v));
    }
}

impl FromIterator<u64> for ExponentialHistogram {
    fn from_iter<I: IntoIterator<Item = u64>>(values: I) -> Self {
        let mut histogram = Self::new();
        histogram.extend(values);
        histogram
    }
}

#[cfg(test)]
#[path = "histogram_tests.rs"]
mod tests;
