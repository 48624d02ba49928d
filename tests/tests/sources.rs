//! Data that other programs wrote: records of MXNet as ALIP's data are, shards of img2dataset's form, and those of other
//! projects.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use alip_plan::pipeline::{Mode, Source};
use alip_runtime::data::{
    DecodeLimits, Field, FilesSource, RecordioSource, SampleSource, TableSource, Tokenizer, WebdatasetOptions,
    WebdatasetSource, decode_rgb,
};
use alip_tests::skip;

fn open(path: &Path, labels: &[(&str, u32)]) -> RecordioSource {
    let labels: Vec<(String, u32)> = labels.iter().map(|(name, length)| (name.to_string(), *length)).collect();
    RecordioSource::open(path.to_str().expect("UTF-8"), &labels).unwrap_or_else(|error| panic!("{error}"))
}

/// Reads and decodes every sample; each must be an image.
fn check(source: &dyn SampleSource, samples: u64) {
    assert_eq!(source.len(), samples, "{}", source.name(0));
    for index in 0..samples {
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
    let source = open(&folder.join("alip_mini.rec"), &[("raw", 77), ("caption", 77)]);
    check(&source, 200);
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
        check(&open(&folder.join("dali_extra_train.rec"), &[]), 47);
    }
    let Some(folder) = skip::shared_data("recordio_no_licence") else { return };
    check(&open(&folder.join("helmet_train.rec"), &[]), 16);
    check(&open(&folder.join("benz_train.rec"), &[]), 12);
}

fn shards(path: &Path, texts: &[(&str, &str)]) -> Result<WebdatasetSource, String> {
    let texts: BTreeMap<String, String> =
        texts.iter().map(|(name, from)| (name.to_string(), from.to_string())).collect();
    WebdatasetSource::open(path.to_str().expect("UTF-8"), &texts).map_err(|error| error.to_string())
}

#[test]
fn shards_of_images_and_texts() {
    let Some(folder) = skip::shared_data("wds_selfpacked") else { return };
    let source = shards(&folder.join("{00000..00002}.tar"), &[("raw", "txt"), ("caption", "json:caption")]);
    let source = source.unwrap_or_else(|why| panic!("{why}"));
    check(&source, 144);
    for index in 0..source.len() {
        let sample = source.sample(index).expect("a sample");
        assert_eq!(sample.fields["raw"], sample.fields["caption"], "{}", source.name(index));
        assert!(matches!(&sample.fields["raw"], Field::Text(text) if text.len() > 10), "{}", source.name(index));
    }
    assert_eq!(source.name(143), "`000020047` of 00002.tar");
}

/// Shards of other projects are read where they hold images, and refused for the right reason where not.
#[test]
fn shards_of_other_projects() {
    let Some(folder) = skip::shared_data("wds_upstream") else { return };
    check(&shards(&folder.join("clip_retrieval_image*.tar"), &[]).unwrap_or_else(|why| panic!("{why}")), 11);
    for (shard, samples) in [("mpdata", 100), ("tendata", 100), ("compressed", 3)] {
        let source = shards(&folder.join(format!("webdataset_{shard}.tar")), &[]).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(source.len(), samples, "{shard}");
        let why = source.sample(0).expect_err("no image").to_string();
        assert_eq!(why, "no file `.jpg` or `.jpeg` or `.png` or `.webp`", "{shard}");
    }
    let compressed = folder.join("webdataset_sample.tgz");
    let source = shards(&compressed, &[]).unwrap_or_else(|why| panic!("{why}"));
    let sequence = source.sequence().expect("compressed shards are read in sequence");
    let mut reader = sequence.open(0).unwrap_or_else(|error| panic!("{error:?}"));
    let mut read = Vec::new();
    while let Some(sample) = reader.next().unwrap_or_else(|error| panic!("{error:?}")) {
        read.push(sample.unwrap_or_else(|error| panic!("{error}")));
    }
    assert_eq!(read.len(), 90);
    // Unpacked they are the same samples.
    let (path, unpack) =
        (compressed.to_str().expect("UTF-8"), WebdatasetOptions { unpack: true, ..Default::default() });
    let unpacked = WebdatasetSource::open_as(path, &BTreeMap::new(), &unpack).unwrap_or_else(|error| panic!("{error}"));
    check(&unpacked, 90);
    assert!((0..90).all(|at| unpacked.sample(at).as_ref() == Ok(&read[at as usize])));
}

/// The rows of a Parquet file beside seven images, as (image, text), or why there is none.
fn rows_of(table: &str, image: &str, text: &str) -> Result<Vec<String>, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens/tables").join(table);
    fs::copy(from, folder.path().join(table)).expect("a copy");
    (0..7).for_each(|row| fs::write(folder.path().join(format!("{row}.jpg")), [row; 3]).expect("an image"));
    let source = Source::Table {
        path: folder.path().join(table).to_str().expect("UTF-8").into(),
        eval_path: String::new(),
        image: image.into(),
        texts: [("raw".to_string(), text.to_string())].into(),
        root: String::new(),
        key: String::new(),
        separator: String::new(),
    };
    // The second time, texts are known.
    let [first, source] = [(); 2].map(|()| TableSource::open(&source, Mode::Train));
    let error = |why: String| why.replace(folder.path().to_str().expect("UTF-8"), "..");
    let (first, source) = (first.map_err(|why| error(why.to_string()))?, source.map_err(|why| error(why.to_string()))?);
    assert_eq!(first.list_hash().expect("a hash"), source.list_hash().expect("a hash"));
    let show = |index| match source.sample(index) {
        Ok(sample) => match (&sample.fields["jpeg"], &sample.fields["raw"]) {
            (Field::Encoded(image), Field::Text(text)) => format!("{} of {}: {text}", image.len(), image[2]),
            other => panic!("{other:?}"),
        },
        Err(error) => format!("{}: {error}", source.name(index)),
    };
    Ok((0..source.len()).map(show).collect())
}

/// Tables that pyarrow wrote: of paths, and of the images themselves.
#[test]
fn tables_of_columns() {
    let text = |row: u8| format!("3 of {row}: text {row}, \"é\"");
    let mut expected: Vec<String> = (0..7).map(text).collect();
    expected[4] = "row 5 of paths.parquet: nothing in column `title`".into();
    assert_eq!(rows_of("paths.parquet", "filepath", "title"), Ok(expected));
    for table in ["images.parquet", "dictionary.parquet"] {
        let mut expected: Vec<String> = (0..7).map(|row| format!("120 of {row}: text {row}")).collect();
        expected[2] = format!("row 3 of {table}: nothing in column `jpg`");
        assert_eq!(rows_of(table, "jpg", "caption"), Ok(expected));
    }
    let refused = |image, text| rows_of("paths.parquet", image, text).expect_err("refused");
    assert_eq!(
        refused("filepath", "caption"),
        "../paths.parquet: no column `caption`; it has `key`, `width`, `filepath`, `title`: set `image` and `texts` of the source"
    );
    assert_eq!(
        refused("filepath", "width"),
        "../paths.parquet: column `width` holds no texts; name a column of texts, or of the images themselves"
    );
}

/// Files that lie beside one another, as img2dataset writes them when it packs nothing.
#[test]
fn shards_that_were_unpacked() {
    let Some(folder) = skip::shared_data("wds_selfpacked") else { return };
    let packed = shards(&folder.join("00001.tar"), &[("raw", "txt"), ("caption", "json:caption")]);
    let packed = packed.unwrap_or_else(|why| panic!("{why}"));
    let own = tempfile::tempdir().expect("a folder");
    let mut tar = std::process::Command::new("tar");
    let unpacked = tar.arg("-xf").arg(folder.join("00001.tar")).current_dir(own.path()).status();
    assert!(unpacked.expect("tar").success());
    let texts = [("raw", "txt"), ("caption", "json:caption")].map(|(name, from)| (name.to_string(), from.to_string()));
    let files =
        FilesSource::open(own.path().to_str().expect("UTF-8"), &texts.into()).unwrap_or_else(|why| panic!("{why}"));
    assert_eq!(files.len(), packed.len());
    for index in 0..packed.len() {
        assert_eq!(files.sample(index).expect("a sample"), packed.sample(index).expect("a sample"));
    }
}
