//! Runs on shards that can only be read in sequence.

#![cfg(all(unix, feature = "compile"))]

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;

use common::{fine, photos, refused, specs};

/// Three shards of unequal numbers of samples, 24 in all, in a folder `shards`, packed by `pack`; the pipelines `shards_data` and
/// graph `sharded` on them.
fn shards(at: &Path, ending: &str, pack: impl Fn(Vec<u8>) -> Vec<u8>) {
    photos(&at.join("photos"), |n| format!("shape {n}"));
    fs::create_dir_all(at.join("shards")).unwrap();
    for (number, samples) in [(0, 0..9), (1, 9..16), (2, 16..24)] {
        let mut shard = tar::Builder::new(Vec::new());
        let mut add = |name: String, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            shard.append_data(&mut header, name, bytes).unwrap();
        };
        for sample in samples {
            add(format!("{sample}.png"), &fs::read(at.join(format!("photos/{}.png", sample % 12))).unwrap());
            add(format!("{sample}.txt"), b"a shape of the web");
            add(format!("{sample}.json"), format!(r#"{{"caption": "a red shape {sample}"}}"#).as_bytes());
        }
        fs::write(at.join(format!("shards/{number}.{ending}")), pack(shard.into_inner().unwrap())).unwrap();
    }
    fs::write(at.join("words.txt"), "a\nshape\nred\n").unwrap();
    let data = fs::read_to_string(at.join("photos_data.ron")).unwrap();
    let source =
        format!(r#"Webdataset(path: "shards/*.{ending}", texts: {{ "raw": "txt", "caption": "json:caption" }})"#);
    let data = data.replace(r#"Folder(path: "photos")"#, &source).replace("words:512", "words:512:words.txt");
    fs::write(at.join("shards_data.ron"), &data).unwrap();
    fs::write(at.join("sharded.ron"), r#"Graph(name: "sharded", base: "steady", data: "shards_data")"#).unwrap();
}

fn gzip(bytes: Vec<u8>) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&bytes).unwrap();
    gzip.finish().unwrap()
}

fn weights(run: &Path) -> Vec<u8> {
    let newest = fs::read_dir(run.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path()).max();
    fs::read(newest.unwrap()).unwrap()
}

fn train<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["train", "sharded", "--no-eval", "--out", out], more].concat()
}

/// A run that stops and goes on, with other workers, ends as the one that did not; sizes are known, said or counted.
#[test]
fn a_run_on_compressed_shards_goes_on_where_it_was() {
    let folder = specs();
    let at = folder.path();
    shards(at, "tar.gz", gzip);
    let (out, err) = fine(at, &["data", "./shards_data.ron", "--batch", "6", "--batches", "20"]);
    let order = "3 shards are read in sequence: their samples are mixed over at most 256 streams and within windows of each, which \
                 is no full shuffle";
    assert!(
        out.contains("from Webdataset, whose samples nobody has counted, to") && out.contains("skipped 0"),
        "{out}"
    );
    assert!(err.contains(order), "{err}");
    let uncounted = "nobody says how many samples the shards have, so there are no epochs: give --steps, or say it by `samples` \
                     in the pipeline's source or by a `sizes.json` beside the shards";
    refused(at, &train("epochs", &["--epochs", "2"]), uncounted);
    assert!(fine(at, &train("whole", &["--steps", "9"])).1.contains(order));
    fine(at, &train("parts", &["--steps", "4"]));
    fine(at, &["train", "--resume", "parts", "--steps", "9", "--workers", "1", "--no-eval"]);
    assert!(weights(&at.join("parts")) == weights(&at.join("whole")));
    // Those that were counted by somebody have epochs: 24 samples, 4 batches.
    fs::write(at.join("shards/sizes.json"), r#"{"0.tar.gz": 9, "1.tar.gz": 7, "2.tar.gz": 8}"#).unwrap();
    let said = fine(at, &train("epochs", &["--epochs", "2"])).1;
    assert!(said.contains("24 samples, 8 steps of batch 6"), "{said}");
    // Counting what was not counted makes no other data of it.
    fine(at, &["train", "--resume", "parts", "--epochs", "3", "--no-eval"]);
    fs::write(at.join("shards/2.tar.gz"), gzip(vec![0; 4096])).unwrap();
    refused(at, &["train", "--resume", "epochs", "--steps", "9"], "--data-changed");
}
