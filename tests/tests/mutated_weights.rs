//! Files of weights that were damaged: they are read or refused, and nothing panics, hangs or takes memory that the file does not
//! account for.
//!
//! A bounded share of the campaign runs with the other tests. A longer one:
//!
//!     ALIP_MUTATED=100000 ALIP_MUTATED_SEED=1 cargo test -p alip-tests --test mutated_weights -- --nocapture

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use alip_runtime::weights::Weights;
use alip_tests::goldens;
use alip_tests::mutated::{Draws, HANGS, number};

/// Cases that run with the other tests.
const SHARE: u64 = 1500;

/// What the goldens, the values of the largest pickle that is read, and the rest of the process have room in many times.
const MEMORY_KIB: u64 = 2 << 20;

/// Of every container one; the older format has no checksums, so that what is wrong with its pickles is for their reader to find.
const FILES: [&str; 8] = [
    "weights/open_clip_vit.legacy_not_zip.pt",
    "weights/open_clip_vit.train_checkpoint.pt",
    "weights/open_clip_vit.shared_storage.pt",
    "weights/openai_vit_quick.torchscript.pt",
    "weights/open_clip_vit.safetensors",
    "weights/hf_clip/model.safetensors",
    "containers/deflated.pt",
    "containers/legacy_protocol_4.pt",
];

/// Damages bytes in a few places, most of them where sizes and names are: at the beginning, the pickles, and the end.
fn mutated(sound: &[u8], draws: &mut Draws) -> Vec<u8> {
    /// The pickles of the goldens, and the directory of an archive.
    const HEAD: usize = 9_000;
    let mut bytes = sound.to_vec();
    for _ in 0..=draws.below(4) {
        let region = bytes.len().min(HEAD);
        let at = match draws.below(5) {
            0..3 => draws.below(region),
            3 => bytes.len() - 1 - draws.below(region),
            _ => draws.below(bytes.len()),
        };
        match draws.below(8) {
            0..3 => bytes[at] = draws.any() as u8,
            3 => bytes[at] ^= 1 << draws.below(8),
            4 => {
                // Lengths and counts that are too large.
                let end = (at + 1 + draws.below(8)).min(bytes.len());
                bytes[at..end].fill([0xff, 0x7f, 0x00][draws.below(3)]);
            }
            5 => bytes.truncate(at.max(1)),
            6 => {
                let (from, length) = (draws.below(region), draws.below(64));
                let piece = bytes[from..(from + length).min(bytes.len())].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                let end = (at + draws.below(64)).min(bytes.len());
                bytes.drain(at..end);
            }
        }
        if bytes.is_empty() {
            bytes.push(0);
        }
    }
    bytes
}

/// Opens and reads everything.
fn read(path: &Path) -> Result<usize, String> {
    let mut weights = Weights::open_as_ours(path, None).map_err(|error| error.to_string())?;
    let names: Vec<String> = weights.names().map(str::to_string).collect();
    for name in &names {
        weights.read(name).map_err(|error| error.to_string())?;
    }
    let _ = weights.shapes();
    Ok(names.len())
}

/// The most memory that this process had at a time, where the system says it.
fn peak_kib() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[test]
fn damaged_weights_are_read_or_refused() {
    let (cases, first) = (number("ALIP_MUTATED", SHARE), number("ALIP_MUTATED_SEED", 0) << 32);
    let folder = tempfile::tempdir().expect("a folder");
    let sounds: Vec<Vec<u8>> = FILES.iter().map(|file| fs::read(goldens::path(file)).expect("a golden file")).collect();
    let now = Arc::new((AtomicU64::new(first), Mutex::new(Instant::now())));
    let watched = Arc::clone(&now);
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            if watched.1.lock().expect("a time").elapsed() > HANGS {
                eprintln!("case {} hangs", watched.0.load(Ordering::Relaxed));
                std::process::abort();
            }
        }
    });
    let mut outcomes: BTreeMap<(&str, bool), u64> = BTreeMap::new();
    for seed in first..first + cases {
        now.0.store(seed, Ordering::Relaxed);
        *now.1.lock().expect("a time") = Instant::now();
        let which = (seed % FILES.len() as u64) as usize;
        let path = folder.path().join("weights.pt");
        fs::write(&path, mutated(&sounds[which], &mut Draws(seed))).expect("a temporary file");
        match catch_unwind(AssertUnwindSafe(|| read(&path))) {
            Ok(found) => {
                if let Err(why) = &found {
                    assert!(
                        !why.is_empty() && why.len() < 4096,
                        "{} {seed}: {} bytes of message",
                        FILES[which],
                        why.len()
                    );
                }
                *outcomes.entry((FILES[which], found.is_ok())).or_default() += 1;
            }
            Err(_) => panic!("{} {seed} panicked", FILES[which]),
        }
    }
    *now.1.lock().expect("a time") = Instant::now() + Duration::from_secs(1 << 30);
    for ((file, is_read), count) in outcomes {
        println!("{count:>8} {file}: {}", if is_read { "read" } else { "refused" });
    }
    if let Some(peak) = peak_kib() {
        println!("{peak} KiB at most");
        assert!(peak < MEMORY_KIB, "{peak} KiB");
    }
}
