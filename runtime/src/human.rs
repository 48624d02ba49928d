//! Numbers for people.

/// Shows a number of bytes in the largest unit that leaves digits before the point.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 100.0 { 0 } else { 1 };
    format!("{value:.digits$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_readable() {
        let shown: Vec<String> = [0, 1023, 1024, 5 << 30, 150 << 20].map(bytes).into();
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "5.0 GiB", "150 MiB"]);
    }
}
