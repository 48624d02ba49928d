//! Files of samples that were damaged: every sample is delivered or counted, and nothing panics or hangs.
//!
//! A bounded share of the campaign runs with the other tests. A longer one:
//!
//!     ALIP_MUTATED=100000 ALIP_MUTATED_SEED=1 cargo test -p alip-tests --test mutated_data -- --nocapture

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use alip_plan::pipeline::{Mode, Source};
use alip_runtime::data::{DecodeLimits, Field, RawSample, SampleSource, decode_rgb, open_source};
use alip_tests::mutated::{Draws, HANGS, number};

/// Cases that run with the other tests.
const SHARE: u64 = 600;

/// Samples of a sound source.
const SAMPLES: usize = 8;

/// A sound source.
struct Sound {
    name: &'static str,
    files: Vec<(String, Vec<u8>)>,
    /// Where in which file each sample stands.
    places: Vec<Vec<(usize, Range<usize>)>>,
    /// The pipeline's source, for files in a folder.
    source: fn(&Path) -> Source,
    /// What is cut off at the end of its first file cannot be noticed.
    ends_anywhere: bool,
}

fn photograph(number: usize) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens/images");
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).expect("images").map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "jpg"));
    files.sort();
    fs::read(&files[number % files.len()]).expect("an image")
}

fn text(number: usize) -> String {
    format!("photograph {number}, \"said\" somebody")
}

/// A record as MXNet writes it; `split` into two parts, as where the data hold the mark of a record.
fn record(data: &[u8], split: bool) -> Vec<u8> {
    const MAGIC: u32 = 0xCED7_230A;
    let part = |flag: u32, data: &[u8]| {
        let mut part = [MAGIC.to_le_bytes(), (flag << 29 | data.len() as u32).to_le_bytes()].concat();
        part.extend_from_slice(data);
        part.resize(part.len().next_multiple_of(4), 0);
        part
    };
    match split {
        true => [part(1, &data[..40]), part(3, &data[40..])].concat(),
        false => part(0, data),
    }
}

fn records(with_index: bool) -> Sound {
    let (mut rec, mut idx, mut places) = (Vec::new(), String::new(), Vec::new());
    for number in 0..SAMPLES {
        let mut data = [4u32.to_le_bytes(), 0f32.to_le_bytes()].concat();
        data.extend([(number as u64).to_le_bytes(), [0; 8]].concat());
        (0..4).for_each(|id| data.extend(((number * 4 + id) as f32).to_le_bytes()));
        data.extend(photograph(number));
        let start = rec.len();
        rec.extend(record(&data, number == 3));
        let line = idx.len();
        idx += &format!("{number}\t{start}\n");
        places.push(vec![(0, start..rec.len()), (1, line..idx.len())]);
    }
    let mut files = vec![("a.rec".to_string(), rec)];
    if with_index {
        files.push(("a.idx".into(), idx.into_bytes()));
    }
    Sound {
        name: if with_index { "records" } else { "records without an index" },
        files,
        places,
        source: |folder| Source::Recordio {
            path: folder.join("a.rec").to_string_lossy().into_owned(),
            labels: vec![("raw".into(), 2), ("caption".into(), 2)],
        },
        ends_anywhere: !with_index,
    }
}

/// A file in an archive.
fn member(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut head = [0u8; 512];
    head[..name.len()].copy_from_slice(name.as_bytes());
    head[100..108].copy_from_slice(b"0000644\0");
    head[124..136].copy_from_slice(format!("{:011o}\0", bytes.len()).as_bytes());
    head[136..148].copy_from_slice(b"00000000000\0");
    head[148..156].fill(b' ');
    head[156] = b'0';
    head[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = head.iter().map(|&byte| u32::from(byte)).sum();
    head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut all = head.to_vec();
    all.extend_from_slice(bytes);
    all.resize(all.len().next_multiple_of(512), 0);
    all
}

fn shards() -> Sound {
    let (mut tar, mut places) = (Vec::new(), Vec::new());
    for number in 0..SAMPLES {
        let start = tar.len();
        tar.extend(member(&format!("{number:06}.jpg"), &photograph(number)));
        tar.extend(member(&format!("{number:06}.txt"), text(number).as_bytes()));
        let json = serde_json::json!({ "caption": text(number + 10) });
        tar.extend(member(&format!("{number:06}.json"), json.to_string().as_bytes()));
        places.push(vec![(0, start..tar.len())]);
    }
    tar.extend([0; 1024]);
    Sound {
        name: "shards",
        files: vec![("a.tar".into(), tar)],
        places,
        source: |folder| Source::Webdataset {
            path: folder.join("a.tar").to_string_lossy().into_owned(),
            texts: [("raw", "txt"), ("caption", "json:caption")].map(|(a, b)| (a.to_string(), b.to_string())).into(),
            samples: 0,
            streams: 256,
            unpack: false,
        },
        ends_anywhere: false,
    }
}

/// A text file with a row per image, and the images.
fn rows(
    name: &'static str,
    list: &str,
    first: &str,
    row: impl Fn(usize) -> String,
    source: fn(&Path) -> Source,
) -> Sound {
    let mut text = first.to_string();
    let (mut files, mut places) = (vec![(list.to_string(), Vec::new())], Vec::new());
    for number in 0..SAMPLES {
        let start = text.len();
        text += &row(number);
        text.push('\n');
        let image = photograph(number);
        // The end of a row, and the first byte of the next: what happens there may join or part the two.
        places.push(vec![(0, start.saturating_sub(1)..text.len() + 1), (files.len(), 0..image.len())]);
        files.push((format!("{number}.jpg"), image));
    }
    files[0].1 = text.into_bytes();
    Sound { name, files, places, source, ends_anywhere: true }
}

fn table(path: &Path) -> Source {
    Source::Table {
        path: path.to_string_lossy().into_owned(),
        eval_path: String::new(),
        image: "filepath".into(),
        texts: [("raw", "title"), ("caption", "more")].map(|(a, b)| (a.to_string(), b.to_string())).into(),
        root: String::new(),
        key: String::new(),
        separator: String::new(),
    }
}

fn all() -> Vec<Sound> {
    let cell = |text: String| format!("\"{}\"", text.replace('"', "\"\""));
    let csv = move |number| format!("{number}.jpg,{},{}", cell(text(number)), cell(text(number + 10)));
    let object = |number: usize| {
        let image = format!("{number}.jpg");
        serde_json::json!({ "filepath": image, "title": text(number), "more": text(number + 10) }).to_string()
    };
    let line = |number: usize| {
        let image = format!("{number}.jpg");
        serde_json::json!({ "image": image, "captions": [text(number), text(number + 10)] }).to_string()
    };
    vec![
        records(true),
        records(false),
        shards(),
        rows("CSV", "a.csv", "filepath,title,more\n", csv, |folder| table(&folder.join("a.csv"))),
        rows("JSON lines", "a.jsonl", "", object, |folder| table(&folder.join("a.jsonl"))),
        rows("a folder", "captions.jsonl", "", line, |folder| Source::Folder {
            path: folder.to_string_lossy().into_owned(),
            split: String::new(),
            eval_split: String::new(),
            raw: 0,
            caption: 1,
            swap_raw: 0.0,
            swap_seed: 0,
        }),
    ]
}

/// Damages a file; yields what of the old file is affected, and whether that reaches its end.
fn damage(bytes: &mut Vec<u8>, draws: &mut Draws) -> (Range<usize>, bool) {
    let at = draws.below(bytes.len());
    let most = [1, 4, 16, 600][draws.below(4)];
    let span = 1 + draws.below(most).min(bytes.len() - at - 1);
    match draws.below(8) {
        0 | 1 => {
            bytes[at] ^= 1 << draws.below(8);
            (at..at + 1, false)
        }
        2 => {
            bytes[at..at + span].iter_mut().for_each(|byte| *byte = draws.any() as u8);
            (at..at + span, false)
        }
        3 => {
            let fill = [0, 255, b'"', b'\n'][draws.below(4)];
            bytes[at..at + span].fill(fill);
            (at..at + span, false)
        }
        4 => {
            bytes.truncate(at);
            (at..usize::MAX, true)
        }
        5 => {
            bytes.drain(at..at + span);
            (at..at + span, false)
        }
        6 => {
            let more: Vec<u8> = (0..span).map(|_| draws.any() as u8).collect();
            bytes.splice(at..at, more);
            (at..at + 1, false)
        }
        _ => {
            let again = bytes[at..at + span].to_vec();
            bytes.splice(at..at, again);
            (at..at + span, false)
        }
    }
}

/// What a sample holds, to be compared.
fn content(sample: &RawSample) -> Vec<Field> {
    sample.fields.values().cloned().collect()
}

/// What a source delivers, and why not what it does not.
fn read(source: &dyn SampleSource) -> (Vec<Vec<Field>>, Vec<String>) {
    let (mut delivered, mut counted) = (Vec::new(), Vec::new());
    for index in 0..source.len() {
        match source.sample(index) {
            Ok(sample) => {
                if let Some(Field::Encoded(image)) = sample.fields.get("jpeg") {
                    // Whatever it says; that it says it is what is looked at.
                    let _ = decode_rgb(image, DecodeLimits::default());
                }
                delivered.push(content(&sample));
            }
            Err(error) => counted.push(format!("{}: {error}", source.name(index))),
        }
    }
    (delivered, counted)
}

fn write(folder: &Path, files: &[(String, Vec<u8>)]) {
    fs::create_dir_all(folder).expect("a folder");
    files.iter().for_each(|(name, bytes)| fs::write(folder.join(name), bytes).expect("a file"));
}

/// What became of a case: refused as a whole, or so many counted.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Sound,
    Counted,
    Refused,
}

/// Damages one file of a sound source.
fn case(sound: &Sound, expected: &[Vec<Field>], folder: &Path, seed: u64) -> Result<Outcome, String> {
    let mut draws = Draws(seed);
    let mut files = sound.files.clone();
    // What lists the others is as often hit as all of them.
    let which = if draws.below(2) == 0 { 0 } else { draws.below(files.len()) };
    let (hit, to_end) = damage(&mut files[which].1, &mut draws);
    write(folder, &files);
    let looked = catch_unwind(AssertUnwindSafe(|| {
        let source = open_source(&(sound.source)(folder), Mode::Train).map_err(|error| error.to_string())?;
        Ok::<_, String>(read(source.as_ref()))
    }));
    let looked = looked.map_err(|_| "it panicked".to_string())?;
    fs::remove_dir_all(folder).map_err(|error| error.to_string())?;
    let (delivered, counted) = match looked {
        Ok(looked) => looked,
        Err(why) if why.is_empty() => return Err("refused without a word".into()),
        Err(_) => return Ok(Outcome::Refused),
    };
    let is_hit = |place: &(usize, Range<usize>)| {
        place.0 == which
            && place.1.start < hit.end
            && hit.start < place.1.end
            && (!to_end || sound.ends_anywhere || which > 0)
    };
    // An index that names fewer records is an index of fewer records.
    let whole = |number: &usize| !sound.places[*number].iter().any(is_hit);
    let missing = (0..SAMPLES).filter(whole).filter(|&number| !delivered.contains(&expected[number])).count();
    if missing > counted.len() {
        let all = delivered.len();
        return Err(format!(
            "{missing} whole samples are missing, {all} are delivered and these counted: {counted:#?}"
        ));
    }
    Ok(if counted.is_empty() { Outcome::Sound } else { Outcome::Counted })
}

/// The campaign, in a process of its own: what sources keep in the user's cache goes into a folder that is removed.
#[test]
fn damaged_samples_are_delivered_or_counted() {
    let Some(root) = std::env::var_os("ALIP_MUTATED_IN").map(PathBuf::from) else {
        let folder = tempfile::tempdir().expect("a folder");
        let mut again = Command::new(std::env::current_exe().expect("this program"));
        again.args(["--exact", "damaged_samples_are_delivered_or_counted", "--nocapture"]);
        again.env("ALIP_MUTATED_IN", folder.path()).env("XDG_CACHE_HOME", folder.path().join("cache"));
        assert!(again.status().expect("this program again").success());
        return;
    };
    let (cases, first) = (number("ALIP_MUTATED", SHARE), number("ALIP_MUTATED_SEED", 0) << 32);
    let sounds = all();
    let expected: Vec<_> = sounds.iter().map(|sound| sound_samples(sound, &root.join("sound"))).collect();
    let (next, failures) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let outcomes: Mutex<BTreeMap<(&str, Outcome), u64>> = Mutex::new(BTreeMap::new());
    let work = |thread: usize| {
        let now = Mutex::new((0, std::time::Instant::now()));
        std::thread::scope(|scope| {
            let (done, wait) = std::sync::mpsc::channel::<()>();
            let watched = &now;
            scope.spawn(move || {
                while let Err(std::sync::mpsc::RecvTimeoutError::Timeout) = wait.recv_timeout(Duration::from_secs(1)) {
                    let (seed, since) = *watched.lock().expect("a case");
                    if since.elapsed() > HANGS {
                        eprintln!("case {seed} hangs");
                        std::process::abort();
                    }
                }
            });
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= cases {
                    break;
                }
                let seed = first + number;
                *now.lock().expect("a case") = (seed, std::time::Instant::now());
                let which = (number % sounds.len() as u64) as usize;
                let folder = root.join(format!("{thread}-{seed}"));
                match case(&sounds[which], &expected[which], &folder, seed) {
                    Ok(outcome) => {
                        *outcomes.lock().expect("outcomes").entry((sounds[which].name, outcome)).or_default() += 1;
                    }
                    Err(why) => {
                        failures.lock().expect("failures").push(format!("{} {seed}: {why}", sounds[which].name))
                    }
                }
            }
            drop(done);
        });
    };
    std::thread::scope(|scope| {
        let work = &work;
        (0..std::thread::available_parallelism().map_or(1, usize::from)).for_each(|thread| {
            scope.spawn(move || work(thread));
        });
    });
    for ((name, outcome), count) in outcomes.into_inner().expect("outcomes") {
        let outcome = match outcome {
            Outcome::Sound => "delivered as before, or another",
            Outcome::Counted => "counted",
            Outcome::Refused => "refused",
        };
        println!("{count:>8} {name}: {outcome}");
    }
    let failures = failures.into_inner().expect("failures");
    assert!(failures.is_empty(), "{} of {cases}: {:#?}", failures.len(), &failures[..failures.len().min(5)]);
}

/// The samples of a source before it is damaged.
fn sound_samples(sound: &Sound, folder: &Path) -> Vec<Vec<Field>> {
    write(folder, &sound.files);
    let source = open_source(&(sound.source)(folder), Mode::Train).unwrap_or_else(|error| panic!("{error}"));
    let (samples, counted) = read(source.as_ref());
    assert_eq!((samples.len(), counted), (SAMPLES, vec![]), "{}", sound.name);
    fs::remove_dir_all(folder).expect("removed");
    samples
}
