//! Philox4x32-10, the one random number generator of the house.
//!
//! Counter-based: a draw is a pure function of a key and a counter, so it does not depend on the order of evaluation, the
//! number of threads, the device, or how a tensor is sharded. Source: Salmon, Moraes, Dror, Shaw, *Parallel random numbers:
//! as easy as 1, 2, 3* (SC 2011), section 3.3; test vectors from its Random123 library.
//!
//! Convention: the key says *which* random tensor (seed, step or epoch, stream; see [`stream_key`]), the counter says which
//! element of it (see [`counter`]). There is never a generator with state here.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// Weyl increments of the key: the golden ratio and sqrt(3) - 1, as 32-bit fractions.
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// The bijection Philox4x32-10: 128 random bits for a counter under a key.
// Always, so that loops over it are compiled for the vectors of their callers.
#[inline(always)]
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(KEY_STEPS[0]), key[1].wrapping_add(KEY_STEPS[1])];
        }
        let product0 = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let product1 = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (product1 >> 32) as u32 ^ counter[1] ^ key[0],
            product1 as u32,
            (product0 >> 32) as u32 ^ counter[3] ^ key[1],
            product0 as u32,
        ];
    }
    counter
}

/// A uniform f32 in [0, 1): the top 24 bits, each value a multiple of 2^-24, exactly.
#[inline]
pub fn uniform(bits: u32) -> f32 {
    (bits >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// A uniform f64 in [0, 1) from two words: the top 53 of 64 bits, each value a multiple of 2^-53, exactly.
#[inline]
pub fn uniform_f64(high: u32, low: u32) -> f64 {
    ((u64::from(high) << 32 | u64::from(low)) >> 11) as f64 * (1.0 / 9_007_199_254_740_992.0)
}

/// The counter of element `index`: the low two words hold the index, the high two a block number for callers that need more
/// than four words per element.
#[inline]
pub fn counter(index: u64, block: u64) -> [u32; 4] {
    [index as u32, (index >> 32) as u32, block as u32, (block >> 32) as u32]
}

/// The counter of element `index` of the random tensor `stream` of a graph, whose key is (seed, step).
#[inline(always)]
pub fn drawn(index: u32, stream: u64) -> [u32; 4] {
    [index, stream as u32, (stream >> 32) as u32, 0]
}

/// The 64-bit key of one random stream: `seed`, the `step` (or epoch) it is drawn in, and a `stream` number that tells
/// draws of the same step apart, mixed by Philox itself, so that neighbouring seeds, steps and streams are unrelated.
#[inline]
pub fn stream_key(seed: u64, step: u64, stream: u32) -> [u32; 2] {
    // The key of the mixing draw holds the stream and a constant no other use has, so that a stream is never its own key.
    const MIXING: u32 = 0x616C_6970; // "alip"
    let mixed = philox4x32([seed as u32, (seed >> 32) as u32, step as u32, (step >> 32) as u32], [stream, MIXING]);
    [mixed[0], mixed[1]]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers for 10 rounds: counter, key, result (Random123, `kat_vectors`).
    #[test]
    fn known_answers() {
        let cases: [([u32; 4], [u32; 2], [u32; 4]); 3] = [
            ([0; 4], [0; 2], [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]),
            (
                [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
                [0xa4093822, 0x299f31d0],
                [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox4x32(counter, key), expected, "counter {counter:08x?}, key {key:08x?}");
        }
    }

    #[test]
    fn uniform_covers_the_half_open_interval() {
        assert_eq!(uniform(0), 0.0);
        assert_eq!(uniform(u32::MAX), 1.0 - 1.0 / 16_777_216.0);
        assert_eq!(uniform_f64(0, 0), 0.0);
        assert!(uniform_f64(u32::MAX, u32::MAX) < 1.0);
        let key = stream_key(1, 2, 3);
        let n = 40_000;
        let mean = (0..n).map(|i| f64::from(uniform(philox4x32(counter(i, 0), key)[0]))).sum::<f64>() / n as f64;
        // Six standard deviations of the mean of n uniforms.
        assert!((mean - 0.5).abs() < 6.0 / (12.0 * n as f64).sqrt(), "mean {mean}");
    }

    #[test]
    fn streams_differ() {
        let keys = [
            stream_key(0, 0, 0),
            stream_key(1, 0, 0),
            stream_key(0, 1, 0),
            stream_key(0, 0, 1),
            stream_key(1 << 32, 0, 0),
        ];
        for (i, a) in keys.iter().enumerate() {
            assert!(keys[i + 1..].iter().all(|b| a != b));
        }
    }
}
