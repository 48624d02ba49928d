//! Every layout from the files that it consists of, and what is said of files that are not as they should be.

mod captions;

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::Path;

use super::{Classes, Dataset, Layout, Truth};
use crate::data::{DecodeLimits, Field, decode_rgb};

/// A file of a folder: its bytes, or nothing for a picture.
type File<'a> = (&'a str, &'a [u8]);

/// A picture, its first pixel of this level.
fn png(level: u8) -> Vec<u8> {
    let image = image::RgbImage::from_fn(3, 2, |x, _| image::Rgb([level, x as u8, 7]));
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn folder(files: &[File<'_>]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (number, (name, bytes)) in files.iter().enumerate() {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let picture = png(number as u8);
        fs::write(path, if bytes.is_empty() { &picture } else { *bytes }).unwrap();
    }
    folder
}

/// A shard of these files.
fn tar(files: &[File<'_>]) -> Vec<u8> {
    let mut shard = tar::Builder::new(Vec::new());
    for (number, (name, bytes)) in files.iter().enumerate() {
        let picture = png(number as u8);
        let bytes = if bytes.is_empty() { &picture } else { *bytes };
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        shard.append_data(&mut header, name, bytes).unwrap();
    }
    shard.into_inner().unwrap()
}

fn layout(text: &str) -> Layout {
    ron::from_str(text).unwrap()
}

/// The level of the first pixel of a sample's image.
fn level(set: &Dataset, index: u64) -> u8 {
    match &set.source.sample(index).unwrap().fields["jpeg"] {
        Field::Encoded(bytes) => decode_rgb(bytes, DecodeLimits::default()).unwrap().pixels[0],
        other => panic!("{other:?}"),
    }
}

/// What a set is: `NAME, NAME | IMAGE=LABEL ...`, or `| IMAGE=CAPTION/CAPTION ...`.
fn shown(set: &Dataset) -> String {
    let name = |index| set.source.name(index);
    match &set.truth {
        Truth::Classes(Classes { names, labels }) => {
            let labelled = (0..set.source.len()).map(|index| {
                assert_eq!(
                    set.source.sample(index).unwrap().labels,
                    BTreeMap::from([("class".into(), i64::from(labels[index as usize]))])
                );
                format!(" {}={}", name(index), labels[index as usize])
            });
            format!("{} |{}", names.join(", "), labelled.collect::<String>())
        }
        Truth::Captions => {
            let captions = set.captions(0).unwrap();
            captions.iter().enumerate().map(|(at, own)| format!("| {}={} ", name(at as u64), own.join("/"))).collect()
        }
    }
}

/// Files, how they are laid out, and what the set is, or a part of the message. `ROOT` stands for the folder.
fn check(files: &[File<'_>], text: &str, expected: Result<&str, &str>) {
    let folder = folder(files);
    let found = layout(text).open(folder.path());
    match (found, expected) {
        (Ok(set), Ok(expected)) => assert_eq!(shown(&set).trim_end(), expected, "{text}"),
        (Err(error), Err(expected)) => {
            let said = error.to_string().replace(&folder.path().display().to_string(), "ROOT");
            assert_eq!(said, expected, "{text}");
        }
        (Ok(set), Err(expected)) => panic!("{text}: {expected:?} was expected of {}", shown(&set)),
        (Err(error), Ok(_)) => panic!("{text}: {error}"),
    }
}

#[test]
fn folders_have_a_class_each() {
    let files: [File<'_>; 5] = [
        ("set/cat/b.png", b""),
        ("set/cat/a.JPG", b""),
        ("set/sea_horse/x.png", b""),
        ("set/cat/.c.png", b""),
        ("set/readme.txt", b"no image"),
    ];
    let with = |more: &[File<'static>]| [&files[..], more].concat();
    check(&files, r#"Folders(path: "set")"#, Ok("cat, sea horse | cat/a.JPG=0 cat/b.png=0 sea_horse/x.png=1"));
    check(
        &with(&[("names.txt", b"a cat\na fish\n")]),
        r#"Folders(path: "set", names: "names.txt")"#,
        Ok("a cat, a fish | cat/a.JPG=0 cat/b.png=0 sea_horse/x.png=1"),
    );
    let json: File<'_> = ("names.json", br#"{"sea_horse": "fish", "cat": "pet", "more": "unused"}"#);
    check(
        &with(&[json]),
        r#"Folders(path: "set", names: "names.json")"#,
        Ok("pet, fish | cat/a.JPG=0 cat/b.png=0 sea_horse/x.png=1"),
    );
    let nested: File<'_> = ("names.json", br#"{"set": {"sea_horse": "fish", "cat": "pet"}, "other": {}}"#);
    check(
        &with(&[nested]),
        r#"Folders(path: "set", names: "names.json")"#,
        Ok("pet, fish | cat/a.JPG=0 cat/b.png=0 sea_horse/x.png=1"),
    );
    let four: Vec<File<'_>> =
        ["a/1.png", "a/2.png", "a/3.png", "b/1.png", "b/2.png", "b/3.png"].map(|name| (name, &b""[..])).into();
    check(&four, r#"Folders(path: "", take: 1)"#, Ok("a, b | a/1.png=0 b/1.png=1"));
    check(&four, r#"Folders(path: "", skip: 1, take: 1)"#, Ok("a, b | a/2.png=0 b/2.png=1"));
    check(&four, r#"Folders(path: "", skip: 1)"#, Ok("a, b | a/2.png=0 a/3.png=0 b/2.png=1 b/3.png=1"));

    check(
        &[("set/sea horse/a.png", b""), ("set/sea_horse/a.png", b"")],
        r#"Folders(path: "set")"#,
        Err(
            "ROOT/set: `sea horse` and `sea_horse` in it are both the class `sea horse`; rename one, or set `names` in the suite",
        ),
    );
    let advice = "give a folder that has a folder of images for each class";
    check(
        &files,
        r#"Folders(path: "sets")"#,
        Err(&format!("ROOT/sets: No such file or directory (os error 2); {advice}")),
    );
    check(&files, r#"Folders(path: "set/cat")"#, Err(&format!("ROOT/set/cat: no folders in it; {advice}")));
    check(
        &[("set/cat/a.txt", b"x")],
        r#"Folders(path: "set")"#,
        Err(&format!("ROOT/set/cat: no file `.jpg`, `.jpeg`, `.png`, `.webp` in it; {advice}")),
    );
    check(
        &four,
        r#"Folders(path: "", skip: 3)"#,
        Err("ROOT/a: 3 images, of which `skip` leaves out 3; leave out fewer"),
    );
    check(
        &with(&[("names.txt", b"a cat\n")]),
        r#"Folders(path: "set", names: "names.txt")"#,
        Err(
            "ROOT/names.txt: 1 names, and ROOT/set has 2 folders; give it a line for each folder, in alphabetical order",
        ),
    );
    check(
        &with(&[("names.txt", b"a cat\n\na dog")]),
        r#"Folders(path: "set", names: "names.txt")"#,
        Err("ROOT/names.txt:2: no name of a class; write one in every line"),
    );
    let json = r#"give it an object with a name for each folder, as in `{"n01440764": "tench"}`"#;
    check(
        &with(&[("names.json", br#"{"cat": "x"}"#)]),
        r#"Folders(path: "set", names: "names.json")"#,
        Err(&format!("ROOT/names.json: no name for `sea_horse`, a folder of ROOT/set; {json}")),
    );
    check(
        &with(&[("names.json", br#"{"cat": 1}"#)]),
        r#"Folders(path: "set", names: "names.json")"#,
        Err(&format!("ROOT/names.json: what it says of `cat` is no text; {json}")),
    );
}

#[test]
fn templates_may_lie_beside_any_set_of_classes() {
    let files: [File<'_>; 2] = [("cat/a.png", b""), (super::TEMPLATES, b"a photo of a {c}.\n  a {c}\n\n")];
    let root = folder(&files);
    let set = layout(r#"Folders(path: "")"#).open(root.path()).unwrap();
    assert_eq!(set.templates.unwrap(), ["a photo of a {c}.", "a {c}"]);
    let advice = "write a line for each, such as `a photo of a {c}.`";
    let without: [File<'_>; 2] = [("cat/a.png", b""), (super::TEMPLATES, b"a photo of a {}.\n")];
    check(
        &without,
        r#"Folders(path: "")"#,
        Err(&format!(
            "ROOT/{}: the template `a photo of a {{}}.` has no `{{c}}` where the name of the class belongs; {advice}",
            super::TEMPLATES
        )),
    );
    let empty: [File<'_>; 2] = [("cat/a.png", b""), (super::TEMPLATES, b"\n")];
    check(&empty, r#"Folders(path: "")"#, Err(&format!("ROOT/{}: no templates in it; {advice}", super::TEMPLATES)));
}

#[test]
fn webdatasets_are_those_of_clip_benchmark() {
    let first = tar(&[("s0.cls", b"1"), ("s0.webp.png", b"x"), ("s0.png", b""), ("s1.png", b""), ("s1.cls", b"0\n")]);
    let second = tar(&[("s2.png", b""), ("s2.cls", b"1")]);
    let files: Vec<File<'_>> = vec![
        ("wds/test/0.tar", &first),
        ("wds/test/1.tar", &second),
        ("wds/test/nshards.txt", b"2\n"),
        ("wds/classnames.txt", b"cat\nsea horse\n"),
    ];
    let with = |name: &'static str, bytes: &'static [u8]| {
        let mut files: Vec<File<'_>> = files.iter().filter(|(own, _)| *own != name).copied().collect();
        files.push((name, bytes));
        files
    };
    let text = r#"Webdataset(path: "wds")"#;
    check(&files, text, Ok("cat, sea horse | `s0` of 0.tar=1 `s1` of 0.tar=0 `s2` of 1.tar=1"));
    let root = folder(&files);
    assert_eq!(level(&layout(text).open(root.path()).unwrap(), 1), 3);

    check(
        &files[..2],
        text,
        Err(
            "ROOT/wds/test/nshards.txt: No such file or directory (os error 2); write the number of shards into it: `1` if there is `0.tar` alone",
        ),
    );
    check(
        &with("wds/test/nshards.txt", b"two"),
        text,
        Err(
            "ROOT/wds/test/nshards.txt: `two` is no number of shards; write the number of shards into it: `1` if there is `0.tar` alone",
        ),
    );
    check(
        &with("wds/test/nshards.txt", b"1"),
        text,
        Err("ROOT/wds/test/1.tar: a shard more than the 1 that nshards.txt counts; remove it, or count it"),
    );
    check(
        &with("wds/test/nshards.txt", b"3"),
        text,
        Err("ROOT/wds/test/2.tar: no such file; give the path of what there is"),
    );
    check(
        &with("wds/classnames.txt", b"cat"),
        text,
        Err(
            "ROOT/wds/classnames.txt: `s0` of 0.tar is of class 1, and it names 1 classes, from 0 on; give it a line for every class",
        ),
    );
    check(
        &files[..3],
        text,
        Err(
            "ROOT/wds/classnames.txt: No such file or directory (os error 2); write a line with the name of each class",
        ),
    );
    check(
        &with("wds/dataset_type.txt", b"multilabel"),
        text,
        Err(
            "ROOT/wds/dataset_type.txt: a data set of the type `multilabel`, which nothing here measures; leave it out of the suite",
        ),
    );
    let bad = tar(&[("s0.png", b""), ("s0.cls", b"cat")]);
    let files: [File<'_>; 3] =
        [("wds/test/0.tar", &bad), ("wds/test/nshards.txt", b"1"), ("wds/classnames.txt", b"cat")];
    check(
        &files,
        text,
        Err(
            "ROOT/wds: `s0` of 0.tar: `cat` is no number of a class; write its shard anew, with the number of its class in `.cls`",
        ),
    );
    let bad = tar(&[("s0.png", b"")]);
    let files: [File<'_>; 3] =
        [("wds/test/0.tar", &bad), ("wds/test/nshards.txt", b"1"), ("wds/classnames.txt", b"cat")];
    check(
        &files,
        text,
        Err("ROOT/wds: `s0` of 0.tar: no file `.cls`; write its shard anew, with the number of its class in `.cls`"),
    );
}

#[test]
fn webdatasets_have_captions_a_line_each() {
    let shard = tar(&[("a.png", b""), ("a.txt", b"one\ntwo, and a half\n"), ("b.png", b""), ("b.txt", b"three")]);
    let files: Vec<File<'_>> =
        vec![("val/0.tar", &shard), ("val/nshards.txt", b"1"), ("dataset_type.txt", b"retrieval\n")];
    check(
        &files,
        r#"Webdataset(path: "", split: "val")"#,
        Ok("| `a` of 0.tar=one/two, and a half | `b` of 0.tar=three"),
    );
    let none = tar(&[("a.png", b""), ("a.txt", b"\n")]);
    let files: Vec<File<'_>> =
        vec![("test/0.tar", &none), ("test/nshards.txt", b"1"), ("dataset_type.txt", b"retrieval\n")];
    let root = folder(&files);
    let set = layout(r#"Webdataset(path: "")"#).open(root.path()).unwrap();
    assert_eq!(set.captions(0).unwrap_err().to_string(), "`a` of 0.tar: no caption, as all others; give them some");
}

/// A record of CIFAR: bytes before the image, and an image of which the planes are 10, 20, 30.
fn record(head: &[u8]) -> Vec<u8> {
    [head.to_vec(), [10u8, 20, 30].map(|level| vec![level; 1024]).concat()].concat()
}

#[test]
fn cifar_is_read_in_its_binary_form() {
    let (one, zero) = (record(&[1]), record(&[0]));
    let both = [one.clone(), zero.clone()].concat();
    let names: File<'_> = ("c10/batches.meta.txt", b"airplane\nautomobile\n\n");
    check(
        &[names, ("c10/test_batch.bin", &both)],
        r#"Cifar(path: "c10")"#,
        Ok("airplane, automobile | image 0 of test_batch.bin=1 image 1 of test_batch.bin=0"),
    );
    let batches: Vec<String> = (1..=5).map(|n| format!("c10/data_batch_{n}.bin")).collect();
    let mut files: Vec<File<'_>> = batches.iter().map(|name| (name.as_str(), &one[..])).collect();
    files[1].1 = &both;
    files.push(names);
    let root = folder(&files);
    let set = layout(r#"Cifar(path: "c10", split: "train")"#).open(root.path()).unwrap();
    assert_eq!(
        set.truth,
        Truth::Classes(Classes { names: vec!["airplane".into(), "automobile".into()], labels: vec![1, 1, 0, 1, 1, 1] })
    );
    assert_eq!(
        [2, 3].map(|index| set.source.name(index)),
        ["image 1 of data_batch_2.bin", "image 0 of data_batch_3.bin"]
    );
    let Field::Encoded(png) = &set.source.sample(2).unwrap().fields["jpeg"] else { panic!("no image") };
    let image = decode_rgb(png, DecodeLimits::default()).unwrap();
    assert_eq!((image.width, image.height, &image.pixels[3069..]), (32, 32, &[10, 20, 30][..]));
    let fine = record(&[0, 1]);
    check(
        &[("test.bin", &fine), ("fine_label_names.txt", b"apple\nbear\n")],
        r#"Cifar(path: "")"#,
        Ok("apple, bear | image 0 of test.bin=1"),
    );

    check(
        &[("a.txt", b"x")],
        r#"Cifar(path: "")"#,
        Err(
            "ROOT/: neither `batches.meta.txt` nor `fine_label_names.txt` in it; give the folder of the binary version, such as `cifar-10-batches-bin`",
        ),
    );
    check(
        &[names],
        r#"Cifar(path: "c10")"#,
        Err(
            "ROOT/c10/test_batch.bin: No such file or directory (os error 2); get it again: it is not what was published",
        ),
    );
    check(
        &[names, ("c10/test_batch.bin", &one[1..])],
        r#"Cifar(path: "c10")"#,
        Err(
            "ROOT/c10/test_batch.bin: 3072 bytes, which are no images of 3073 bytes each; get it again: it is not what was published",
        ),
    );
    check(
        &[names, ("c10/test_batch.bin", &record(&[2]))],
        r#"Cifar(path: "c10")"#,
        Err(
            "ROOT/c10/batches.meta.txt: image 0 of test_batch.bin is of class 2, and it names 2 classes, from 0 on; give it a line for every class",
        ),
    );
    check(&[names], r#"Cifar(path: "c10", split: "val")"#, Err("ROOT/c10: no split `val`; choose `test` or `train`"));
}

#[test]
fn tables_have_a_class_or_captions() {
    let images: [File<'_>; 3] = [("img/a.png", b""), ("img/b.png", b""), ("img/c.png", b"")];
    let table =
        |text: &'static str| [&images[..], &[("t.csv", text.as_bytes()), ("names.txt", &b"cat\ndog\n"[..])]].concat();
    let classes = r#"Table(path: "t.csv", root: "img", image: "file", class: "label")"#;
    let named = r#"Table(path: "t.csv", root: "img", image: "file", class: "label", names: "names.txt")"#;
    check(&table("file,label\nb.png,dog\na.png, cat\n"), classes, Ok("cat, dog | b.png=1 a.png=0"));
    check(&table("file,label\nb.png,dog\na.png,cat\n"), named, Ok("cat, dog | b.png=1 a.png=0"));
    check(&table("file,label\nb.png,1\na.png,0\n"), named, Ok("cat, dog | b.png=1 a.png=0"));
    let split = r#"Table(path: "t.csv", root: "img", image: "file", captions: "text", split_column: "split")"#;
    check(
        &table(
            "file,text,split\na.png,one,test\nb.png,\"[\"\"x\"\", \"\"y\"\"]\",test\nc.png,no,train\na.png,\"two, three\",test\n",
        ),
        split,
        Ok("| a.png=one/two, three | b.png=x/y"),
    );

    check(
        &table("file,label\na.png,2\n"),
        classes,
        Err(
            "ROOT/t.csv: row 1 has the class 2, a number without a name; set `names` in the suite to a file with a line for each class",
        ),
    );
    check(
        &table("file,label\na.png,2\n"),
        named,
        Err(
            "ROOT/names.txt: row 1 of ROOT/t.csv is of class 2, and it names 2 classes, from 0 on; give it a line for every class",
        ),
    );
    check(
        &table("file,label\na.png,cow\n"),
        named,
        Err("ROOT/t.csv: row 1 is of class `cow`, which ROOT/names.txt does not name; name the class there"),
    );
    check(
        &table("file,label\nb.png,1\na.png,cat\n"),
        named,
        Err(
            "ROOT/t.csv: row 2 is of class `cat`, a name, and row 1 is of class `1`, a number; write names in all rows, or numbers in all",
        ),
    );
    let called = |text: &'static str, names: &'static str| {
        [&images[..], &[("t.csv", text.as_bytes()), ("names.txt", names.as_bytes())]].concat()
    };
    // Names that are numbers are names.
    check(&called("file,label\na.png,1\nb.png,0\n", "1\n0\n"), named, Ok("1, 0 | a.png=0 b.png=1"));
    check(
        &called("file,label\na.png,crane\n", "crane\ndog\ncrane\n"),
        named,
        Err(
            "ROOT/names.txt: lines 1 and 3 are both `crane`; ROOT/t.csv tells classes by their names: give each its own",
        ),
    );
    check(&called("file,label\na.png,2\n", "crane\ndog\ncrane\n"), named, Ok("crane, dog, crane | a.png=2"));
    check(
        &table("file,label\na.png,cat\na.png,dog\n"),
        classes,
        Err("ROOT/t.csv: row 2 is of the image of row 1, `a.png`; give every image one class"),
    );
    check(
        &table("file,label\na.png,cat\nb.png\n"),
        classes,
        Err("ROOT/t.csv: row 2 cannot be used: a row of 1 cells, where 2 columns have names; mend it, or remove it"),
    );
    check(
        &table("file,text,split\na.png,one,train\n"),
        split,
        Err("ROOT/t.csv: no row has `test` in column `split`; set `split` to one that it has"),
    );
    check(
        &table("file,name\na.png,cat\n"),
        classes,
        Err("ROOT/t.csv: no column `label`; it has `file`, `name`: set `image` and `texts` of the source"),
    );
    check(
        &table("file,label\na.png,cat\n"),
        r#"Table(path: "t.csv", image: "file")"#,
        Err("ROOT/t.csv: a table of classes or of captions; set `class` or `captions` in the suite"),
    );
}

/// What a suite names is there by that name: no variable, no pattern.
#[test]
fn paths_of_a_suite_are_taken_as_they_are() {
    let lines = br#"{"image": "1.png", "captions": ["one"], "split": "test"}"#;
    let files: [File<'_>; 2] = [("a${b}[*]/1.png", b""), ("a${b}[*]/captions.jsonl", lines)];
    check(&files, r#"Folder(path: "a${b}[*]")"#, Ok("| 1.png=one"));
    let files: [File<'_>; 2] = [("a${b}[*]/1.png", b""), ("t.csv", b"filepath,label\n1.png,cat\n")];
    check(&files, r#"Table(path: "t.csv", root: "a${b}[*]", class: "label")"#, Ok("cat | 1.png=0"));
}

/// Sets that are told apart where features are kept.
#[test]
fn lists_that_differ_have_other_hashes() {
    let hash = |text: &str, files: &[File<'_>]| {
        let root = folder(files);
        layout(text).open(Path::new(root.path())).unwrap().source.list_hash().unwrap()
    };
    let lines = |text: &'static str| -> [File<'static>; 2] { [("1.jpg", b""), ("l.txt", text.as_bytes())] };
    let captions = r#"Captions(path: "l.txt", images: "")"#;
    assert_eq!(hash(captions, &lines("1.jpg,a")), hash(captions, &lines("1.jpg,a\n")));
    assert_ne!(hash(captions, &lines("1.jpg,a")), hash(captions, &lines("1.jpg,b")));
    let [one, other] =
        [[record(&[1]), record(&[0])], [record(&[0]), record(&[1])]].map(Vec::from).map(|files| files.concat());
    let cifar = |bytes: &[u8]| hash(r#"Cifar(path: "")"#, &[("batches.meta.txt", b"a\nb"), ("test_batch.bin", bytes)]);
    assert_ne!(cifar(&one), cifar(&other));
}
