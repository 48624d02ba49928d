//! Skipping a test loudly: a test that cannot run here says so, passes, and never pretends to have run.
//!
//! The test harness hides what a passing test prints, so these lines go to the standard error stream itself.

use std::io::Write;
use std::path::{Path, PathBuf};

/// Prints `skipped: TEST: REASON`. The caller then returns.
pub fn skipped(reason: &str) {
    let thread = std::thread::current();
    let line = format!("skipped: {}: {reason}\n", thread.name().unwrap_or("a test"));
    // The macros that print would be captured; a closed stream is no reason to fail a test.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// The same for what every machine of the continuous integration has, such as a graphics adapter: with `CI=true`
/// in the environment a missing one is a failure.
///
/// # Panics
/// Under `CI=true`.
pub fn skipped_outside_ci(reason: &str) {
    assert!(std::env::var_os("CI").is_none_or(|value| value != "true"), "{reason}, and CI=true forbids skipping");
    skipped(reason);
}

/// A folder of the large data that lie beside the project (`../shared/data`) and are no part of it, such as `flickr8k`.
/// `None`, and a line that says so, in a plain clone.
pub fn shared_data(folder: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data").join(folder);
    if path.exists() {
        return Some(path);
    }
    skipped(&format!("needs ../shared/data/{folder}, which is not part of the project"));
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_that_nobody_has_are_reported_and_absent() {
        assert_eq!(shared_data("no_such_folder"), None);
    }
}
