//! Record files that other programs wrote: by MXNet as ALIP's data are, and those of other projects.

use std::fs;
use std::path::Path;

use alip_runtime::data::{DecodeLimits, Field, RecordioSource, SampleSource, Tokenizer, decode_rgb};
use alip_tests::skip;

fn open(path: &Path, labels: &[(&str, u32)]) -> RecordioSource {
    let labels: Vec<(String, u32)> = labels.iter().map(|(name, length)| (name.to_string(), *length)).collect();
    RecordioSource::open(path.to_str().expect("UTF-8"), &labels).unwrap_or_else(|error| panic!("{error}"))
}

/// Reads and decodes every record; each must be an image.
fn check(path: &Path, labels: &[(&str, u32)], records: u64) {
    let source = open(path, labels);
    assert_eq!(source.len(), records, "{}", path.display());
    for index in 0..records {
        let sample = source.sample(index).unwrap_or_else(|error| panic!("{}: {error}", source.name(index)));
        let Field::Encoded(bytes) = &sample.fields["jpeg"] else { panic!("{}: no image", source.name(index)) };
        let image = decode_rgb(bytes, DecodeLimits::default());
        image.unwrap_or_else(|error| panic!("{}: {error}", source.name(index)));
    }
}

/// Captions of ALIP's records are tokens already: those that our tokenizer makes of their texts.
#[test]
fn records_of_alip_hold_what_our_tokenizer_makes() {
    let Some(folder) = skip::shared_data("alip_rec") else { return };
    let rows = [("raw", 77), ("caption", 77)];
    check(&folder.join("alip_mini.rec"), &rows, 200);
    let source = open(&folder.join("alip_mini.rec"), &rows);
    let texts = fs::read_to_string(folder.join("alip_mini.texts.json")).expect("texts");
    let texts: Vec<(String, String, String)> = serde_json::from_str(&texts).expect("image, raw, caption");
    let tokenizer = Tokenizer::clip();
    for (index, (image, raw, caption)) in (0..).zip(&texts) {
        let sample = source.sample(index).expect("a sample");
        for (field, text) in [("raw", raw), ("caption", caption)] {
            assert_eq!(sample.fields[field], Field::Tokens(tokenizer.encode(text, 77)), "{image}: {text}");
        }
    }
    assert_eq!(texts.len(), 200);
}

/// The index that is made of the records alone is the one that MXNet wrote.
#[test]
fn an_index_is_made_as_mxnet_makes_it() {
    let Some(folder) = skip::shared_data("alip_rec") else { return };
    let own = tempfile::tempdir().expect("a folder");
    fs::copy(folder.join("alip_mini.rec"), own.path().join("a.rec")).expect("a copy");
    assert_eq!(open(&own.path().join("a.rec"), &[]).len(), 200);
    let read = |path: &Path| fs::read_to_string(path).expect("an index");
    assert_eq!(read(&own.path().join("a.idx")), read(&folder.join("alip_mini.idx")));
}

/// Large photographs with shuffled keys, and records with nine labels.
#[test]
fn records_of_other_projects() {
    if let Some(folder) = skip::shared_data("recordio") {
        check(&folder.join("dali_extra_train.rec"), &[], 47);
    }
    let Some(folder) = skip::shared_data("recordio_no_licence") else { return };
    check(&folder.join("helmet_train.rec"), &[], 16);
    check(&folder.join("benz_train.rec"), &[], 12);
}
