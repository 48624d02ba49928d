//! Runs on shards that can only be read in sequence.

#![cfg(all(unix, feature = "compile"))]

mod common;

use std::fs;

use common::{fine, gzip, refused, sequence, specs, weights};

fn train<'a>(out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["train", "sharded", "--no-eval", "--out", out], more].concat()
}

/// A run that stops and goes on, with other workers, ends as the one that did not; sizes are known, said or counted.
#[test]
fn a_run_on_compressed_shards_goes_on_where_it_was() {
    let folder = specs();
    let at = folder.path();
    sequence(at, "tar.gz", gzip);
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
