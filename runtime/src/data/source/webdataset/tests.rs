use std::path::Path;

use super::*;

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
    WebdatasetSource::open_with(path.to_str().unwrap(), &texts, Some(&kept)).map_err(|error| error.to_string())
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
    check(
        &|| put(&[0x1f, 0x8b, 8, 0]),
        "DIR/a.tar: it is compressed, and cannot be read at any place: unpack it (`gunzip`)",
    );
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
    let remote = open(Path::new("s3://bucket/{0..9}.tar"), &[]).err().unwrap();
    assert_eq!(remote, "reading shards over `s3` is not supported yet; copy them to a disk and give their path");
}
