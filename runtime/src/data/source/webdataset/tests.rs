use std::io::Write;
use std::path::Path;

use super::files::GZIP;
use super::*;
use crate::data::Field;

/// A shard of files, in this order.
fn write(path: &Path, files: &[(&str, &[u8])]) {
    let mut shard = tar::Builder::new(std::fs::File::create(path).unwrap());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        shard.append_data(&mut header, name, *bytes).unwrap();
    }
    shard.finish().unwrap();
}

fn open(path: &Path, texts: &[(&str, &str)]) -> Result<WebdatasetSource, String> {
    let texts = texts.iter().map(|(name, from)| (name.to_string(), from.to_string())).collect();
    let kept = path.with_file_name("kept");
    let options = WebdatasetOptions::default();
    WebdatasetSource::open_with(path.to_str().unwrap(), &texts, &options, Some(&kept))
        .map_err(|error| error.to_string())
}

#[test]
fn samples_are_files_that_stand_together() {
    let folder = tempfile::tempdir().unwrap();
    let long = "a_folder_of_many_words/".repeat(8) + "b.c.PNG";
    let first: [(&str, &[u8]); 5] = [
        ("__url__", b"x"),
        ("a.txt", b"a dog\n"),
        ("a.jpg", b"dog"),
        (&long, b"image"),
        (&long.replace("c.PNG", "txt"), b"b"),
    ];
    write(&folder.path().join("s0.tar"), &first);
    write(&folder.path().join("s1.tar"), &[("c.jpeg", b"c"), ("c.webp", b"w"), ("c.txt", b""), ("c.json", b"{}")]);
    let path = folder.path().join("s{0..1}.tar");
    let source = open(&path, &[("raw", "txt")]).unwrap();
    assert_eq!(source.len(), 3);
    assert_eq!([0, 2].map(|at| source.name(at)), ["`a` of s0.tar", "`c` of s1.tar"]);
    assert!(source.name(1).ends_with("b` of s0.tar"));
    let sample =
        |index| source.sample(index).map(|sample| [sample.fields["jpeg"].clone(), sample.fields["raw"].clone()]);
    let fields = |image: &[u8], text: &str| Ok([Field::Encoded(image.to_vec()), Field::Text(text.into())]);
    assert_eq!(sample(0), fields(b"dog", "a dog"));
    assert_eq!(
        sample(1),
        Err(SampleError("no file `.jpg` or `.jpeg` or `.png` or `.webp`".into())),
        "it is a `.c.png`"
    );
    assert_eq!(sample(2), fields(b"c", ""));
    // The second time they are where they were, and the hash is of what is in the shards.
    assert_eq!(open(&path, &[]).unwrap().list_hash().unwrap(), source.list_hash().unwrap());
}

/// Whoever copies files with their times puts another shard in the place of one that is known.
#[test]
fn another_shard_of_one_size_and_time_is_looked_into() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1 << 30);
    let texts = |first: &[u8], second: &[u8]| {
        write(&path, &[("a.jpg", b"x"), ("a.txt", first), ("b.jpg", b"y"), ("b.txt", second)]);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        let source = open(&path, &[("raw", "txt")]).unwrap();
        [0, 1].map(|at| source.sample(at).unwrap().fields["raw"].clone())
    };
    let [short, long] = ["s".to_string(), "l".repeat(600)];
    let expected = |first: &str, second: &str| [first, second].map(|text| Field::Text(text.into()));
    assert_eq!(texts(short.as_bytes(), long.as_bytes()), expected(&short, &long));
    assert_eq!(texts(long.as_bytes(), short.as_bytes()), expected(&long, &short));
}

/// A run on texts of other words is another run, also where every file lies where it lay.
#[test]
fn other_texts_have_another_hash() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    let hash = |text: &[u8]| {
        write(&path, &[("a.jpg", b"dog"), ("a.txt", text)]);
        // Time is part of what the index is known by; a clock may be coarse.
        let _ = std::fs::remove_dir_all(path.with_file_name("kept"));
        open(&path, &[("raw", "txt")]).unwrap().list_hash().unwrap()
    };
    assert_eq!(hash(b"a dog"), hash(b"a dog"));
    assert_ne!(hash(b"a dog"), hash(b"a cat"));
}

#[test]
fn texts_come_from_files_and_entries() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    let check = |from: &str, file: (&str, &[u8]), expected: Result<&str, &str>| {
        write(&path, &[("a.jpg", b"x"), file]);
        let found = open(&path, &[("raw", from)]).unwrap().sample(0).map(|sample| sample.fields["raw"].clone());
        let expected = expected.map(|text| Field::Text(text.into())).map_err(|why| SampleError(why.into()));
        assert_eq!(found, expected, "{from}");
    };
    check("txt", ("a.TXT", b"two\r\n"), Ok("two"));
    check("caption;txt", ("a.txt", b"x"), Ok("x"));
    check("json:caption", ("a.json", br#"{"caption": "a \u00e9"}"#), Ok("a é"));
    check("json:caption", ("a.json", b"\xef\xbb\xbf{\"caption\": \"x\"}"), Ok("x"));
    check("json:caption", ("a.json", b"[1"), Err("its `.json` is no JSON"));
    check("json:caption", ("a.json", br#"{"caption": 3}"#), Err("its `.json` has no text `caption`"));
    check("txt", ("a.txt", b"\xff"), Err("its `.txt` is not UTF-8"));
    check("txt", ("a.json", b"{}"), Err("no file `.txt`"));
    check("caption;txt", ("a.txt", b"\xff"), Err("its `.txt` is not UTF-8"));
    let large = vec![b'a'; (1 << 20) + 1];
    check("txt", ("a.txt", &large), Err("its `.txt` has 1 MiB, more than the allowed 1"));
}

#[test]
fn errors_of_shards() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    let check = |make: &dyn Fn(), expected: &str| {
        make();
        let found = open(&path, &[]).err().unwrap_or_else(|| panic!("expected: {expected}"));
        let found = found.replace(folder.path().to_str().unwrap(), "DIR");
        assert_eq!(found, format!("{expected}; write it anew, or leave it out of the source's `path`"));
    };
    let files = |files: &'static [(&'static str, &'static [u8])]| {
        let path = path.clone();
        move || write(&path, files)
    };
    check(&files(&[]), "DIR/a.tar: no samples in it");
    check(&files(&[("a.jpg", b"1"), ("a.JPG", b"2")]), "DIR/a.tar: sample `a` has two files `.jpg`");
    let apart = files(&[("a.jpg", b"1"), ("b.jpg", b"2"), ("a.txt", b"3")]);
    check(&apart, "DIR/a.tar: the files of sample `a` do not stand together");
    let put = |bytes: &[u8]| std::fs::write(&path, bytes).unwrap();
    let cut = || {
        write(&path, &[("a.jpg", &[7; 2000])]);
        std::fs::File::options().write(true).open(&path).unwrap().set_len(1000).unwrap();
    };
    check(&cut, "DIR/a.tar: the file at byte 0 is cut off");
    // Between two files, or with another archive behind it.
    let length = |length: u64| {
        let path = path.clone();
        move || {
            write(&path, &[("a.jpg", b"1"), ("b.jpg", b"2")]);
            std::fs::File::options().write(true).open(&path).unwrap().set_len(length).unwrap();
        }
    };
    let unmarked = "without the mark of an archive's end: it is cut off";
    check(&length(1024), &format!("DIR/a.tar: it ends at byte 1024 {unmarked}"));
    check(&length(2048), &format!("DIR/a.tar: it ends at byte 2048 {unmarked}"));
    let joined = || {
        write(&path, &[("a.jpg", b"1")]);
        let one = std::fs::read(&path).unwrap();
        put(&[&one[..], &one[..]].concat());
    };
    check(&joined, "DIR/a.tar: something follows the end of the archive, at byte 2048");
    let long = || {
        let name = "a/".repeat(1 << 20) + "a.jpg";
        write(&path, &[(&name, b"1")]);
    };
    check(&long, "DIR/a.tar: no tar archive from byte 0 on: heads of more than 1 MiB");
    let pipe = open(Path::new("pipe:curl https://host/0.tar"), &[]).err().unwrap();
    let why = "nothing here runs the commands of a pipe; give the shards themselves, on a disk or on a server";
    assert_eq!(pipe, format!("pipe:curl https://host/0.tar: {why}"));
    #[cfg(not(feature = "remote"))]
    {
        let remote = open(Path::new("s3://bucket/{0..9}.tar"), &[]).err().unwrap();
        let why = "this program was built without what reads shards on servers; build it with `--features remote`, or copy the \
                   shards to a disk and give their path";
        assert_eq!(remote, format!("s3://bucket/{{0..9}}.tar: {why}"));
    }
}

/// The bytes of a shard.
fn tarred(files: &[(&str, &[u8])]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("plain.tar"), files);
    std::fs::read(folder.path().join("plain.tar")).unwrap()
}

/// Compressed in several members, as parallel tools do.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let member = |bytes: &[u8]| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(bytes).unwrap();
        gzip.finish().unwrap()
    };
    let (first, second) = bytes.split_at(bytes.len() / 3);
    [member(first), member(second)].concat()
}

fn compressed(files: &[(&str, &[u8])]) -> Vec<u8> {
    gzip(&tarred(files))
}

/// All samples of the only shard, and how it ends.
fn all(source: &WebdatasetSource) -> (Vec<Result<RawSample, SampleError>>, Result<(), String>) {
    let sequence = source.sequence().expect("read in sequence");
    let (mut samples, path) = (Vec::new(), sequence.path(0));
    let mut reader = match sequence.open(0) {
        Ok(reader) => reader,
        Err(error) => return (samples, Err(error.of(path).to_string())),
    };
    loop {
        match reader.next() {
            Ok(Some(sample)) => samples.push(sample),
            Ok(None) => return (samples, Ok(())),
            Err(error) => return (samples, Err(error.of(path).to_string())),
        }
    }
}

#[test]
fn compressed_shards_are_sequences_of_the_same_samples() {
    let folder = tempfile::tempdir().unwrap();
    let long = "a_folder_of_many_words/".repeat(8) + "b.c.PNG";
    let large = vec![7; 300_000];
    let files: [(&str, &[u8]); 8] = [
        ("__url__", b"x"),
        ("a.jpg", &large),
        ("a.txt", b"a dog\n"),
        ("README", b"x"),
        (&long, b"image"),
        ("c.jpeg", b"c"),
        ("c.json", &large),
        ("c.txt", b""),
    ];
    let (plain, packed) = (folder.path().join("a.tar"), folder.path().join("b.tar.gz"));
    write(&plain, &files);
    std::fs::write(&packed, compressed(&files)).unwrap();
    let texts = [("raw", "txt")];
    let (plain, packed) = (open(&plain, &texts).unwrap(), open(&packed, &texts).unwrap());
    let (samples, end) = all(&packed);
    assert_eq!(end, Ok(()));
    assert_eq!(samples, (0..3).map(|at| plain.sample(at)).collect::<Vec<_>>());
    assert!(samples[0].is_ok() && samples[1].is_err() && samples[2].is_ok());
    let why = "its shard is read in sequence, and has no samples by number";
    assert_eq!(packed.sample(0), Err(SampleError(why.into())));
    let sequence = packed.sequence().unwrap();
    assert_eq!(sequence.open(0).unwrap().skip(9), Ok(3));
    // Names and sizes are known, and nothing else is asked for.
    let hash = packed.list_hash().unwrap();
    assert_eq!(open(&folder.path().join("b.tar.gz"), &[]).unwrap().list_hash().unwrap(), hash);
    std::fs::rename(folder.path().join("b.tar.gz"), folder.path().join("c.tar.gz")).unwrap();
    assert_ne!(open(&folder.path().join("c.tar.gz"), &[]).unwrap().list_hash().unwrap(), hash);
}

#[test]
fn errors_of_sequences() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tgz");
    let check = |bytes: &[u8], samples: usize, expected: &str| {
        std::fs::write(&path, bytes).unwrap();
        let (read, end) = all(&open(&path, &[]).unwrap());
        let end = end.expect_err(expected).replace(folder.path().to_str().unwrap(), "DIR");
        assert_eq!(read.len(), samples, "{expected}");
        assert!(end.starts_with(&format!("DIR/a.tgz: {expected}")), "{end}");
    };
    let noise: Vec<u8> = (0..400_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let files: [(&str, &[u8]); 3] = [("a.jpg", &noise), ("b.jpg", &noise), ("c.jpg", &noise)];
    let whole = compressed(&files);
    let refused = "write it anew, or leave it out of the source's `path`";
    let two = compressed(&[("a.jpg", b"1"), ("a.JPG", b"2")]);
    check(&two, 0, &format!("sample `a` has two files `.jpg`; {refused}"));
    let apart = compressed(&[("a.jpg", b"1"), ("b.jpg", b"2"), ("a.txt", b"3")]);
    check(&apart, 2, &format!("the files of sample `a` do not stand together; {refused}"));
    check(&[&GZIP[..], &[8, 0]].concat(), 0, "no tar archive: ");
    check(&whole[..whole.len() / 2], 1, "incomplete deflate stream, after byte 576058 of its contents; fetch it again");
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 0xff;
    check(&flipped, 1, "no tar archive: ");
    let plain = tarred(&files);
    check(&gzip(&plain[..500_000]), 1, "file `b.jpg` is cut off, after byte 500000 of its contents; fetch it again");
    let end = "it ends without the mark of an archive's end: it is cut off, after byte 400896 of its contents";
    check(&gzip(&plain[..400_896]), 0, end);
    let one = compressed(&[("a.jpg", b"1")]);
    check(
        &[&one[..], &one[..]].concat(),
        0,
        &format!("something follows the end of the archive, at byte 2048; {refused}"),
    );
}

/// What is read before damage is met does not depend on how it is read.
#[test]
fn damage_is_met_at_one_sample() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tgz");
    let noise: Vec<u8> = (0..9_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let names: Vec<String> = (0..60).map(|at| format!("{at}.jpg")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (&**name, &noise[..])).collect();
    let whole = compressed(&files);
    for at in (100..whole.len()).step_by(whole.len() / 37) {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x55;
        std::fs::write(&path, &flipped).unwrap();
        let source = open(&path, &[]).unwrap();
        let read = all(&source).0.len() as u64;
        let sequence = source.sequence().unwrap();
        for skipped in 0..=read {
            let mut reader = sequence.open(0).unwrap();
            assert_eq!(reader.skip(skipped), Ok(skipped), "{at}");
            let rest = std::iter::from_fn(|| reader.next().ok().flatten()).count() as u64;
            assert_eq!(skipped + rest, read, "{at}, after {skipped}");
        }
    }
}

#[test]
fn sizes_are_said_or_learnt() {
    let folder = tempfile::tempdir().unwrap();
    for shard in ["a.tgz", "b.tgz"] {
        std::fs::write(folder.path().join(shard), compressed(&[("a.jpg", b"1"), ("b.jpg", b"2")])).unwrap();
    }
    let path = folder.path().join("*.tgz");
    let with = |samples: u64| {
        let options = WebdatasetOptions { samples, ..WebdatasetOptions::default() };
        let (path, kept) = (path.to_str().unwrap(), folder.path().join("kept"));
        let source = WebdatasetSource::open_with(path, &BTreeMap::new(), &options, Some(&kept));
        source.map_err(|error| error.to_string().replace(folder.path().to_str().unwrap(), "DIR"))
    };
    let known = |source: &WebdatasetSource| {
        let sequence = source.sequence().unwrap();
        (source.len(), [0, 1].map(|shard| sequence.size(shard)))
    };
    assert_eq!(known(&with(0).unwrap()), (0, [None, None]));
    assert_eq!(known(&with(7).unwrap()), (7, [None, None]));
    with(0).unwrap().sequence().unwrap().learn(1, 2);
    assert_eq!(known(&with(0).unwrap()), (0, [None, Some(2)]), "learnt once");
    let say = |text: &str| std::fs::write(folder.path().join("sizes.json"), text).unwrap();
    say(r#"{"a.tgz": 2, "other": 5}"#);
    assert_eq!(known(&with(0).unwrap()), (0, [Some(2), Some(2)]));
    say(r#"{"a.tgz": 2, "b.tgz": 2}"#);
    assert_eq!(known(&with(0).unwrap()), (4, [Some(2), Some(2)]));
    let wrong = "DIR/sizes.json: its shards have 4 samples, but the pipeline's `samples` says 7; correct one of the two; the file \
                 suffices";
    assert_eq!(with(7).err().unwrap(), wrong);
    let advice = "write it as `{\"00000.tar\": 1000, ...}`, or remove it";
    say(r#"{"a.tgz": 0}"#);
    assert_eq!(with(0).err().unwrap(), format!("DIR/sizes.json: `a.tgz` has no samples; {advice}"));
    say("[1");
    let error = with(0).err().unwrap();
    assert!(error.starts_with("DIR/sizes.json: ") && error.ends_with(advice), "{error}");
}

#[test]
fn compressed_shards_are_unpacked_once() {
    let folder = tempfile::tempdir().unwrap();
    let (path, kept) = (folder.path().join("a.tar.gz"), folder.path().join("kept"));
    let open = || {
        let options = WebdatasetOptions { unpack: true, ..WebdatasetOptions::default() };
        WebdatasetSource::open_with(path.to_str().unwrap(), &BTreeMap::new(), &options, Some(&kept))
    };
    let unpacked =
        || glob::glob(kept.join("unpacked-*/*/a.tar").to_str().unwrap()).unwrap().flatten().collect::<Vec<_>>();
    std::fs::write(&path, compressed(&[("a.jpg", b"1")])).unwrap();
    let options = WebdatasetOptions { unpack: true, samples: 7, ..WebdatasetOptions::default() };
    let refused =
        WebdatasetSource::open_with(path.to_str().unwrap(), &BTreeMap::new(), &options, Some(&kept)).err().unwrap();
    let why = "1 samples in all, where `samples` of the source says 7; give the shards that are meant, or leave `samples` out: these \
               can be counted";
    assert_eq!(refused.to_string(), format!("{}: {why}", path.display()));
    let mut before = unpacked();
    for samples in [&[("a.jpg", &b"1"[..]), ("b.jpg", b"2")][..], &[("c.jpg", b"3")]] {
        std::fs::write(&path, compressed(samples)).unwrap();
        let source = open().unwrap();
        assert_eq!((source.len(), source.sequence().is_none()), (samples.len() as u64, true));
        // That of another version stays for now, since a run may read it.
        let new: Vec<_> = unpacked().into_iter().filter(|file| !before.contains(file)).collect();
        let [file] = &new[..] else { panic!("{new:?}") };
        before.extend(new.clone());
        let time = std::fs::metadata(file).unwrap().modified().unwrap();
        assert_eq!(open().unwrap().name(0), format!("`{}` of a.tar", &samples[0].0[..1]));
        assert_eq!(std::fs::metadata(file).unwrap().modified().unwrap(), time, "unpacked once");
    }
    std::fs::write(&path, &compressed(&[("a.jpg", b"1")])[..40]).unwrap();
    let error = open().err().unwrap().to_string();
    let path = path.display();
    assert!(error.starts_with(&format!("{path}: {path}: cannot unpack: ")), "{error}");
    assert!(error.ends_with("unpack it yourself (`gunzip`), or leave `unpack` out"), "{error}");
}
