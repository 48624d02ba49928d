//! Stands in for the crate `icu` (see `[patch.crates-io]` in the workspace's `Cargo.toml`): `plsfix` depends on all of
//! ICU4X, some seventy crates of calendars, collation and plural rules with their data, and uses nothing of it but the four
//! normalisation forms, which `unicode-normalization`, a dependency of `plsfix` anyway, gives as well.

/// `icu::normalizer`, as far as `plsfix` uses it.
pub mod normalizer {
    use unicode_normalization::UnicodeNormalization;

    /// NFC and NFKC.
    pub struct ComposingNormalizer {
        compatibility: bool,
    }

    impl ComposingNormalizer {
        /// Canonical composition.
        pub fn new_nfc() -> Self {
            Self { compatibility: false }
        }

        /// Compatibility composition.
        pub fn new_nfkc() -> Self {
            Self { compatibility: true }
        }

        /// The normal form of a text.
        pub fn normalize(&self, text: &str) -> String {
            if self.compatibility { text.nfkc().collect() } else { text.nfc().collect() }
        }
    }

    /// NFD and NFKD.
    pub struct DecomposingNormalizer {
        compatibility: bool,
    }

    impl DecomposingNormalizer {
        /// Canonical decomposition.
        pub fn new_nfd() -> Self {
            Self { compatibility: false }
        }

        /// Compatibility decomposition.
        pub fn new_nfkd() -> Self {
            Self { compatibility: true }
        }

        /// The normal form of a text.
        pub fn normalize(&self, text: &str) -> String {
            if self.compatibility { text.nfkd().collect() } else { text.nfd().collect() }
        }
    }
}
