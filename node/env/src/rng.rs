//! Randomness comes in here and nowhere else.

use rand_core::{RngCore, SeedableRng};

pub trait Rng: Send + 'static {
    fn next_u64(&mut self) -> u64;

    /// A number in `0..bound`; `bound` must not be 0. The bias is below 2^-32 for bounds below 2^32.
    fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "nothing is below 0");
        self.next_u64() % bound
    }
}

/// ChaCha8 from a seed: the same numbers on every machine.
#[derive(Clone, Debug)]
pub struct SeededRng(rand_chacha::ChaCha8Rng);

impl SeededRng {
    pub fn new(seed: u64) -> Self {
        Self(rand_chacha::ChaCha8Rng::seed_from_u64(seed))
    }
}

impl Rng for SeededRng {
    fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }
}
