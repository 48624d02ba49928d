//! What campaigns of damaged files share.

use std::time::Duration;

/// No case takes a hundredth of it, whatever else the machine does.
pub const HANGS: Duration = Duration::from_secs(120);

/// Random numbers: splitmix64.
pub struct Draws(pub u64);

impl Draws {
    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`, and 0 below 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.any() % n.max(1) as u64) as usize
    }
}

/// The number that an environment variable says, such as that of cases.
///
/// # Panics
/// It says something else.
pub fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}
