//! The folder source: its list, and what is wrong with it.

use super::*;

/// The stated share of raw texts is another image's, the label knows which, and all is the same when opened again.
#[test]
fn swapped_raw_texts_are_remembered() {
    let folder = Folder::with_images("swap", 400, &[]);
    let source = open_source(&folder.source(0.3), Mode::Train).unwrap();
    let again = open_source(&folder.source(0.3), Mode::Train).unwrap();
    let mut wrong = 0;
    for index in 0..source.len() {
        let sample = source.sample(index).unwrap();
        assert_eq!(sample, again.sample(index).unwrap());
        assert_eq!(sample.fields["caption"], Field::Text(format!("caption {index}")));
        let all = vec![format!("raw {index}"), format!("caption {index}")];
        assert_eq!(sample.fields["captions"], Field::Texts(all), "the image's own");
        let own = sample.fields["raw"] == Field::Text(format!("raw {index}"));
        assert_eq!(sample.labels["raw_wrong"], i64::from(!own));
        wrong += sample.labels["raw_wrong"];
    }
    // Binomial with 400 and 0.3: mean 120, standard deviation 9.2; five of them.
    assert!((74..=166).contains(&wrong), "{wrong}");
}

/// A line of a list.
const GOOD: &str = r#"{"image": "images/0.png", "captions": ["a", "b"], "split": "train"}"#;

/// A byte order mark is passed over; other encodings than UTF-8 are told, with their line.
#[test]
fn encodings_of_lists() {
    let folder = Folder::with_images("encodings", 2, &[]);
    let list = folder.0.join("captions.jsonl");
    let open = |bytes: &[u8]| {
        fs::write(&list, bytes).expect("write");
        open_source(&folder.source(0.0), Mode::Train)
    };
    let marked = open(&[b"\xef\xbb\xbf", GOOD.as_bytes()].concat()).expect("opens");
    assert_eq!((marked.len(), marked.captions(0).unwrap()), (1, vec!["a".to_string(), "b".to_string()]));
    let mut latin = GOOD.replace(r#""a""#, r#""caf#""#).into_bytes();
    latin.iter_mut().filter(|byte| **byte == b'#').for_each(|byte| *byte = 0xe9);
    let error = open(&[GOOD.as_bytes(), b"\n", &latin].concat()).err().expect("an error");
    assert_eq!(
        folder.message(&error),
        "DIR/captions.jsonl:2: byte 0xe9 at column 44 is not UTF-8; is the file Latin-1 or Windows-1252? Convert it: \
         `iconv -f windows-1252 -t utf-8 OLD > NEW`"
    );
    let wide: Vec<u8> = "\u{feff}{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let error = open(&wide).err().expect("an error");
    assert_eq!(folder.message(&error), "DIR/captions.jsonl: UTF-16 text; save it as UTF-8");
}

/// A list with blank lines, both kinds of newline and none at the end, longer than is looked at in one go.
#[test]
fn long_lists() {
    let folder = Folder::with_images("long", 1, &[]);
    let line = |index: usize| {
        let caption = format!("{index} {}", "word ".repeat(index % 50));
        let split = if index.is_multiple_of(3) { "test" } else { "train" };
        format!(r#"{{"image": "images/0.png", "captions": ["{caption}", "b"], "split": "{split}"}}"#)
    };
    let ends = ["\n", "\r\n", "\n\n", "\n \r\n"];
    let text: String = (0..50_000).map(|index| line(index) + ends[index % 4]).collect();
    assert!(text.len() > 9 << 20, "{}", text.len());
    folder.list(text.trim_end());
    let source = open_source(&folder.source(0.0), Mode::Train).expect("opens");
    let trained: Vec<usize> = (0..50_000).filter(|index: &usize| !index.is_multiple_of(3)).collect();
    assert_eq!(source.len(), trained.len() as u64);
    for (at, index) in trained.into_iter().enumerate() {
        let caption = format!("{index} {}", "word ".repeat(index % 50));
        assert_eq!(source.captions(at as u64).unwrap(), [caption, "b".to_string()]);
    }
    folder.list(&format!("{}{{", text));
    let error = open_source(&folder.source(0.0), Mode::Train).err().expect("an error");
    // Two of four lines are followed by a blank one.
    assert!(folder.message(&error).starts_with("DIR/captions.jsonl:75001: not a line of the form "), "{error}");
}

/// What was read when a list was opened is read again, or it is an error of the sample.
#[test]
fn a_list_that_changes_while_it_is_in_use() {
    let folder = Folder::with_images("changes", 3, &[]);
    let path = folder.0.join("captions.jsonl");
    let source = open_source(&folder.source(0.0), Mode::Train).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("raw 1", "row 1")).unwrap();
    assert_eq!(source.sample(0).unwrap().fields["raw"], Field::Text("raw 0".into()));
    let error = source.sample(1).unwrap_err().to_string();
    assert_eq!(error, "captions.jsonl was changed after it was opened; leave it as it is while it is in use");
    let error = source.list_hash().unwrap_err();
    assert_eq!(
        folder.message(&error),
        "DIR/captions.jsonl: captions.jsonl was changed after it was opened; leave it as it is while it is in use; put back \
         what it was"
    );
}

#[test]
fn errors_of_folders() {
    let folder = Folder::with_images("errors", 2, &[]);
    let check = |lines: &str, expected: &str| {
        folder.list(lines);
        let error = open_source(&folder.source(0.3), Mode::Train).err().expect("an error");
        assert_eq!(folder.message(&error), expected);
    };
    let good = GOOD;
    let form = r#"{"image": "images/a.jpg", "captions": ["first", "second"], "split": "train"}"#;
    check(
        &format!("{good}\n\n{{\"image\": 3}}\n"),
        &format!(
            "DIR/captions.jsonl:3: not a line of the form {form}: invalid type: integer `3`, expected a string at column 11"
        ),
    );
    check(
        &format!("{good}\n{}\n", good.replace(r#""a", "b""#, r#""a""#)),
        "DIR/captions.jsonl:2: `images/0.png` has 1 captions, but 2 are needed: give it more, or set `raw` and `caption` of \
         the source to ones that it has",
    );
    check("\n", &format!("DIR/captions.jsonl: no lines in it; write one line per image: {form}"));
    let all = r#"to take all lines, set `split: ""` in the source"#;
    check(
        &good.replace("train", "dev"),
        &format!(
            "DIR/captions.jsonl: no line has the split `train`; it has the splits `dev`: choose one as `split` of the source; {all}"
        ),
    );
    let without = good.replace(r#", "split": "train""#, "");
    check(
        &format!("{}\n{without}\n", good.replace("train", "dev")),
        &format!(
            "DIR/captions.jsonl: no line has the split `train`; it has the splits `dev`, and lines without one: choose one as \
             `split` of the source; {all}"
        ),
    );
    check(
        &without,
        &format!(
            "DIR/captions.jsonl: no line names a split, but `train` is asked for; give lines `\"split\": \"train\"`; {all}"
        ),
    );
    check(
        &good.replace("0.png", "9.png"),
        "DIR/images/9.png: this image of captions.jsonl is missing; put it there, or remove its line; paths are relative to DIR",
    );
    fs::remove_file(folder.0.join("captions.jsonl")).unwrap();
    let error = open_source(&folder.source(0.3), Mode::Train).err().expect("an error");
    assert!(folder.message(&error).ends_with(&format!("; write one line per image: {form}")), "{error}");
    let at = |path: &str| {
        let mut source = folder.source(0.3);
        if let Source::Folder { path: place, .. } = &mut source {
            *place = path.into();
        }
        open_source(&source, Mode::Train).err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert_eq!(
        at("/nowhere"),
        "/nowhere: no such folder; give a folder of images with its captions, e.g. `--data FOLDER`"
    );
    assert_eq!(
        at("${ALIP_UNSET_VARIABLE}/x"),
        "${ALIP_UNSET_VARIABLE}/x: the environment variable `ALIP_UNSET_VARIABLE` is not set; set it, or write the path itself"
    );
}
