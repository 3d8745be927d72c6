//! Parquet's encodings of numbers (<https://parquet.apache.org/docs/file-format/data-pages/encodings/>), for values that are there as
//! a slice. The parquet crate has them too, and does not let others use them.

/// Values in one miniblock of [`delta`].
const MINIBLOCK: usize = 32;
/// Miniblocks in one block.
const MINIBLOCKS: usize = 4;

/// How many bits hold all numbers up to this one.
pub(super) const fn width(max: u32) -> u32 {
    u32::BITS - max.leading_zeros()
}

/// An unsigned LEB128 number.
pub(super) fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

#[expect(clippy::cast_sign_loss, reason = "zigzag is about bits")]
const fn zigzag(value: i64) -> u64 {
    (value << 1) as u64 ^ (value >> 63) as u64
}

/// Packs numbers of `width` bits one after the other, lowest bits first, and fills the last group of `group` numbers up with zeros: as
/// many numbers as make whole bytes.
#[inline(always)]
fn bits(values: impl ExactSizeIterator<Item = u64>, group: usize, width: u32, out: &mut Vec<u8>) {
    let until = out.len() + values.len().next_multiple_of(group) * width as usize / 8;
    out.reserve(until - out.len() + 8);
    let (mut waiting, mut have) = (0_u64, 0);
    for value in values {
        waiting |= value << have;
        have += width;
        if have >= 64 {
            out.extend_from_slice(&waiting.to_le_bytes());
            have -= 64;
            // What of the number is left; a shift by all of a word's bits is none.
            waiting = if have > 0 { value >> (width - have) } else { 0 };
        }
    }
    out.extend_from_slice(&waiting.to_le_bytes());
    out.resize(until, 0);
}

/// A run of equal numbers of the hybrid of runs and packed bits.
pub(super) fn run(value: u32, times: usize, width: u32, out: &mut Vec<u8>) {
    varint((times as u64) << 1, out);
    out.extend_from_slice(&value.to_le_bytes()[..width.div_ceil(8) as usize]);
}

/// The hybrid of runs and packed bits (`RLE`) of numbers that `width` bits hold.
pub(super) fn hybrid(values: &[u32], width: u32, out: &mut Vec<u8>) {
    const GROUP: usize = 8;
    let packed = |values: &[u32], out: &mut Vec<u8>| {
        let groups = values.len().div_ceil(GROUP);
        if groups > 0 {
            varint((groups as u64) << 1 | 1, out);
            bits(values.iter().map(|&v| u64::from(v)), GROUP, width, out);
        }
    };
    let (mut start, mut at) = (0, 0);
    while let Some(group) = values.get(at..).and_then(<[u32]>::first_chunk::<GROUP>) {
        // All of them at once, rather than up to the first that differs.
        if group.iter().fold(0, |differ, v| differ | (v ^ group[0])) != 0 {
            at += GROUP;
            continue;
        }
        let first = group[0];
        let same = GROUP + values[at + GROUP..].iter().take_while(|v| **v == first).count();
        packed(&values[start..at], out);
        run(first, same, width, out);
        at += same;
        start = at;
    }
    packed(&values[start..], out);
}

/// `DELTA_BINARY_PACKED` of 64-bit integers.
pub(super) fn delta(values: &[i64], out: &mut Vec<u8>) {
    varint((MINIBLOCK * MINIBLOCKS) as u64, out);
    varint(MINIBLOCKS as u64, out);
    varint(values.len() as u64, out);
    let Some((&first, rest)) = values.split_first() else {
        return varint(0, out);
    };
    varint(zigzag(first), out);
    let mut last = first;
    let mut deltas = [0_i64; MINIBLOCK * MINIBLOCKS];
    for block in rest.chunks(deltas.len()) {
        let mut min = i64::MAX;
        for (delta, &value) in deltas.iter_mut().zip(block) {
            *delta = value.wrapping_sub(last);
            min = min.min(*delta);
            last = value;
        }
        let deltas = &mut deltas[..block.len()];
        let over = |delta: i64| delta.wrapping_sub(min).cast_unsigned();
        varint(zigzag(min), out);
        let widths_at = out.len();
        out.extend([0; MINIBLOCKS]);
        for (n, miniblock) in deltas.chunks(MINIBLOCK).enumerate() {
            let all = miniblock.iter().fold(0, |all, &delta| all | over(delta));
            let width = u64::BITS - all.leading_zeros();
            out[widths_at + n] = width.to_le_bytes()[0];
            bits(miniblock.iter().map(|&d| over(d)), MINIBLOCK, width, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_packed_as_the_format_says() {
        // The example of the specification: 0 to 7 with three bits each.
        let mut out = Vec::new();
        bits([0, 1, 2, 3, 4, 5, 6, 7].into_iter(), 8, 3, &mut out);
        assert_eq!(out, [0b1000_1000, 0b1100_0110, 0b1111_1010]);
        out.clear();
        hybrid(&[4; 100], 3, &mut out);
        assert_eq!(out, [0b1100_1000, 1, 4]);
        out.clear();
        delta(&[7, 5, 3, 1, 2, 3, 4, 5], &mut out);
        // The specification's second example: minimum -2, deltas 0, 0, 0, 3, 3, 3, 3 of two bits each.
        assert_eq!(out[..11], [128, 1, 4, 8, 14, 3, 2, 0, 0, 0, 0b1100_0000]);
        assert_eq!((out[11], out.len()), (0b0011_1111, 10 + 8));
        assert_eq!((width(0), width(1), width(8)), (0, 1, 4));
    }
}
