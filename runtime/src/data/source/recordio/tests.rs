use std::fs;
use std::path::Path;

use alip_plan::pipeline::{Mode, Source};

use super::*;
use crate::data::open_source;

/// Magic number of a part, little-endian.
const MAGIC: [u8; 4] = [0x0a, 0x23, 0xd7, 0xce];

/// A part of a kind with its padding.
fn part(kind: u32, data: &[u8]) -> Vec<u8> {
    let word = kind << 29 | data.len() as u32;
    let padding = vec![0; data.len().next_multiple_of(4) - data.len()];
    [&MAGIC[..], &word.to_le_bytes(), data, &padding].concat()
}

/// A record with a header, labels and an image; without labels its flag is 0.
fn record(labels: &[f32], image: &[u8]) -> Vec<u8> {
    let header = [(labels.len() as u32).to_le_bytes(), 0.0f32.to_le_bytes()].concat();
    let labels: Vec<u8> = labels.iter().flat_map(|label| label.to_le_bytes()).collect();
    [&header[..], &[0; 16], &labels, image].concat()
}

/// A folder with `a.rec` of these parts, one after another, and where each begins.
fn folder(parts: &[Vec<u8>]) -> (tempfile::TempDir, Vec<u64>) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.rec"), parts.concat()).unwrap();
    let starts = parts.iter().scan(0, |at, part| Some(std::mem::replace(at, *at + part.len() as u64)));
    let starts = starts.collect();
    (folder, starts)
}

fn open(folder: &Path, labels: &[(&str, u32)]) -> Result<RecordioSource, String> {
    let labels: Vec<(String, u32)> = labels.iter().map(|(name, length)| (name.to_string(), *length)).collect();
    RecordioSource::open(folder.join("a.rec").to_str().unwrap(), &labels).map_err(|error| error.to_string())
}

fn image(source: &RecordioSource, index: u64) -> Result<Vec<u8>, String> {
    match source.sample(index).map_err(|error| error.to_string())?.fields.remove("jpeg") {
        Some(Field::Encoded(bytes)) => Ok(bytes),
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn records_are_read_whole_and_in_parts() {
    // A writer splits the second image before the magic number, twice.
    let [first, middle, last] = [record(&[], b"sp"), b"lit".to_vec(), b"".to_vec()];
    let parts = [
        part(0, &record(&[], b"one")),
        part(1, &first),
        part(2, &middle),
        part(3, &last),
        part(0, &record(&[7.0], b"three")),
    ];
    let (folder, starts) = folder(&parts);
    let source = open(folder.path(), &[]).unwrap();
    assert_eq!(source.len(), 3);
    let split = [b"sp".as_slice(), &MAGIC, b"lit", &MAGIC].concat();
    assert_eq!([0, 1, 2].map(|at| image(&source, at).unwrap()), [b"one".to_vec(), split, b"three".to_vec()]);
    assert_eq!(source.name(1), format!("record 1 of a.rec, at byte {}", starts[1]));
    // The index that was made stays, and is read the next time.
    let index = fs::read_to_string(folder.path().join("a.idx")).unwrap();
    assert_eq!(index, format!("0\t0\n1\t{}\n2\t{}\n", starts[1], starts[4]));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing else is left");
    let again = open(folder.path(), &[]).unwrap();
    assert_eq!(again.list_hash().unwrap(), source.list_hash().unwrap());
}

#[test]
fn labels_are_token_rows() {
    let check = |labels: &[f32], expected: Result<[&[i32]; 2], &str>| {
        let (folder, _) = folder(&[part(0, &record(labels, b"x"))]);
        let found = open(folder.path(), &[("raw", 2), ("caption", 1)]).unwrap().sample(0);
        let found = found.map(|sample| [sample.fields["raw"].clone(), sample.fields["caption"].clone()]);
        let expected = expected.map(|rows| rows.map(|row| Field::Tokens(row.to_vec())));
        assert_eq!(found.map_err(|error| error.to_string()), expected.map_err(str::to_string), "{labels:?}");
    };
    check(&[49406.0, 16777216.0, 0.0], Ok([&[49406, 16777216], &[0]]));
    check(&[1.0, 2.0], Err("2 labels, where the pipeline's `labels` are 3"));
    check(&[], Err("1 labels, where the pipeline's `labels` are 3"));
    check(&[1.0, 2.0, 16777218.0], Err("`caption` holds 16777218, which is no token id"));
    check(&[1.0, 2.5, 3.0], Err("`raw` holds 2.5, which is no token id"));
    check(&[1.0, -1.0, 3.0], Err("`raw` holds -1, which is no token id"));
    check(&[f32::NAN, 1.0, 3.0], Err("`raw` holds NaN, which is no token id"));
}

/// A run on other labels is another run, also where every record lies where it lay.
#[test]
fn other_labels_have_another_hash() {
    let hash = |label: f32| {
        let (folder, _) = folder(&[part(0, &record(&[1.0, label], b"image"))]);
        open(folder.path(), &[]).unwrap().list_hash().unwrap()
    };
    assert_eq!(hash(2.0), hash(2.0));
    assert_ne!(hash(2.0), hash(3.0));
}

/// What is wrong with one record is a bad sample, and says where.
#[test]
fn bad_records() {
    let sound = part(0, &record(&[], b"sound"));
    let check = |parts: &[Vec<u8>], at: usize, expected: &str| {
        let (folder, starts) = folder(&[&[sound.clone(), sound.clone()], parts].concat());
        fs::write(folder.path().join("a.idx"), format!("0\t0\n1\t{}\n2\t{}\n", starts[at], starts[1])).unwrap();
        let source = open(folder.path(), &[]).unwrap();
        assert_eq!(image(&source, 0).unwrap(), b"sound");
        assert_eq!(image(&source, 1).unwrap_err(), expected.replace("AT", &starts[at].to_string()));
    };
    check(&[b"no record here".to_vec()], 2, "no record begins at byte AT");
    check(&[part(1, b"first"), part(3, b"last")], 3, "byte AT is in the middle of a record");
    check(&[part(1, b"first"), sound.clone()], 2, "a part is missing: another record begins at byte 96");
    check(&[part(1, b"first")], 2, "byte 96 is beyond the end of the file");
    check(&[part(0, &[7; 40])[..24].to_vec()], 2, "the record at byte AT is cut off by the end of the file");
    check(&[part(0, b"short")], 2, "a record of 5 bytes, which is no image record of MXNet");
    let many = [u32::MAX.to_le_bytes().to_vec(), vec![0; 40]].concat();
    check(&[part(0, &many)], 2, "a header that tells of 4294967295 labels, in 44 bytes");
}

/// What is wrong with the whole is an error, and says what to do.
#[test]
fn errors_of_files() {
    let sound = part(0, &record(&[], b"sound"));
    let check = |parts: &[Vec<u8>], index: Option<&str>, expected: &str| {
        let (folder, _) = folder(parts);
        if let Some(index) = index {
            fs::write(folder.path().join("a.idx"), index).unwrap();
        }
        let found = open(folder.path(), &[]).err().unwrap_or_else(|| panic!("expected: {expected}"));
        assert_eq!(found.replace(folder.path().to_str().unwrap(), "DIR"), expected);
        assert!(index.is_some() || !folder.path().join("a.idx").exists(), "no index is left of a bad file");
    };
    let two = [sound.clone(), sound.clone()];
    let remake = "remove a.idx, and it is made again from the records";
    check(&two, Some(""), &format!("DIR/a.idx: no records in it; {remake}"));
    check(
        &two,
        Some("0\t0\n1,36\n"),
        &format!("DIR/a.idx:2: `1,36` is not `key<tab>byte`, both whole numbers; {remake}"),
    );
    check(&two, Some("0\t0\n0\t40\n"), &format!("DIR/a.idx: the key 0 stands in it twice; {remake}"));
    check(&two, Some("0\t40\n5\t40\n"), &format!("DIR/a.idx: two records begin at byte 40; {remake}"));
    let beyond = "DIR/a.idx:1: record 0 begins at byte 76, beyond the 80 bytes of the `.rec`: one of the two is cut off or \
                  another's; ";
    check(&two, Some("0\t76\n"), &format!("{beyond}{remake}"));
    let other = "DIR/a.idx: the index of another file: of 2 places that it names a record begins at 0; ";
    check(&two, Some("0\t0\n1\t16\n2\t44\n"), &format!("{other}{remake}"));
    let short = "DIR/a.idx: the records go on behind the last that it names, at byte 40; ";
    check(&two, Some("0\t0\n"), &format!("{short}{remake}"));
    let line = "9".repeat(40);
    let long = format!("DIR/a.idx:1: `{line}` is not `key<tab>byte`, both whole numbers; {remake}");
    check(&two, Some(&"9".repeat(100)), &long);
    check(
        &two,
        Some("18446744073709551615\t0\n5\t41\n"),
        &format!("{}{remake}", other.replace("2 places", "1 places")),
    );
    let advice =
        "the file is damaged or no RecordIO: fetch it again, or give it an index of the records that are sound";
    check(&[b"a text file".to_vec()], None, &format!("DIR/a.rec: no record begins at byte 0; {advice}"));
    let cut = part(0, &record(&[], b"sound"))[..20].to_vec();
    check(
        &[sound.clone(), cut],
        None,
        &format!("DIR/a.rec: the record at byte 40 is cut off by the end of the file; {advice}"),
    );
    check(&[part(1, b"first")], None, &format!("DIR/a.rec: its last record is not whole; {advice}"));
    check(&[part(3, b"last")], None, &format!("DIR/a.rec: a record that is not whole before byte 0; {advice}"));
    check(&[], None, &format!("DIR/a.rec: it is empty; {advice}"));
}

/// Files follow one another; keys may stand in any order, and places beyond 4 GiB are places.
#[test]
fn several_files_and_large_ones() {
    let (folder, starts) = folder(&[part(0, &record(&[], b"a")), part(0, &record(&[], b"b"))]);
    fs::write(folder.path().join("a.idx"), format!("90\t{}\n7\t0\n", starts[1])).unwrap();
    let far: u64 = (5 << 30) + 4;
    let large = File::create(folder.path().join("b.rec")).unwrap();
    let bytes = part(0, &record(&[], b"far"));
    large.set_len(far + bytes.len() as u64).unwrap();
    write_at(&large, &bytes, far);
    fs::write(folder.path().join("b.idx"), format!("3\t{far}\n")).unwrap();
    let path = folder.path().join("*.rec").to_str().unwrap().to_string();
    let source = open_source(&Source::Recordio { path, labels: Vec::new() }, Mode::Train).unwrap();
    assert_eq!(source.len(), 3);
    let names = [0, 1, 2].map(|at| source.name(at));
    let expected = [
        format!("record 90 of a.rec, at byte {}", starts[1]),
        "record 7 of a.rec, at byte 0".into(),
        format!("record 3 of b.rec, at byte {far}"),
    ];
    assert_eq!(names, expected);
    let images = [0, 1, 2].map(|at| source.sample(at).unwrap().fields["jpeg"].clone());
    assert_eq!(images, [b"b".to_vec(), b"a".to_vec(), b"far".to_vec()].map(Field::Encoded));
}

fn write_at(mut file: &File, bytes: &[u8], at: u64) {
    use std::io::{Seek, SeekFrom, Write};
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(bytes).unwrap();
}
