//! Tables that people and programs write, and what is wrong with some.

use std::fs;

use super::*;

/// A folder of tables and two images that are none.
struct Tables(tempfile::TempDir);

impl Tables {
    fn new(files: &[(&str, &str)]) -> Tables {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("images")).unwrap();
        for name in ["images/a.jpg", "images/b.jpg"] {
            fs::write(folder.path().join(name), name).unwrap();
        }
        fs::write(folder.path().join("held_out.csv"), "filepath,title\n").unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        Tables(folder)
    }

    fn source(&self, path: &str, texts: &[(&str, &str)]) -> Source {
        Source::Table {
            path: self.0.path().join(path).to_str().unwrap().into(),
            eval_path: "held_out.csv".into(),
            image: "filepath".into(),
            texts: texts.iter().map(|(name, column)| (name.to_string(), column.to_string())).collect(),
            root: String::new(),
            key: String::new(),
            separator: String::new(),
        }
    }

    fn open(&self, path: &str) -> Result<TableSource, String> {
        let error = |error: DataError| error.to_string().replace(self.0.path().to_str().unwrap(), "..");
        TableSource::open(&self.source(path, &[("raw", "title")]), Mode::Train).map_err(error)
    }
}

/// Samples as (image, text), or why there is none.
fn samples(source: &TableSource) -> Vec<String> {
    let show = |index| match source.sample(index) {
        Ok(sample) => match (&sample.fields["jpeg"], &sample.fields["raw"]) {
            (Field::Encoded(image), Field::Text(text)) => format!("{}: {text}", String::from_utf8_lossy(image)),
            other => panic!("{other:?}"),
        },
        Err(error) => format!("{}: {error}", source.name(index)),
    };
    (0..source.len()).map(show).collect()
}

fn check(name: &str, text: &str, expected: &[&str]) {
    let tables = Tables::new(&[(name, text)]);
    assert_eq!(samples(&tables.open(name).unwrap_or_else(|why| panic!("{why}"))), expected, "{name}: {text}");
}

fn check_refused(name: &str, text: &str, expected: &str) {
    let tables = Tables::new(&[(name, text)]);
    assert_eq!(tables.open(name).err().as_deref(), Some(expected), "{name}: {text}");
}

const SAMPLES: &[&str] = &["images/a.jpg: a cat", "images/b.jpg: two, dogs"];

#[test]
fn tables_as_other_programs_write_them() {
    check("a.csv", "filepath,title\nimages/a.jpg,a cat\nimages/b.jpg,\"two, dogs\"\n", SAMPLES);
    check("marked.csv", "\u{feff}filepath,title\r\nimages/a.jpg,a cat\r\nimages/b.jpg,\"two, dogs\"", SAMPLES);
    check("tabs.csv", "title\tfilepath\na cat\timages/a.jpg\ntwo, dogs\timages/b.jpg\n", SAMPLES);
    check("a.tsv", "filepath\ttitle\tmore\nimages/a.jpg\ta cat\t1\nimages/b.jpg\t\"two, dogs\"\t\n", SAMPLES);
    let objects = r#"{"filepath": "images/a.jpg", "title": "a cat", "width": 3}
        {"title": "two, dogs", "filepath": "images/b.jpg"}"#;
    check("a.jsonl", objects, SAMPLES);
    check(
        "lines.csv",
        "filepath,title\nimages/a.jpg,\"a cat\nsays \"\"no\"\"\"\n\nimages/b.jpg,5\" disk\n",
        &["images/a.jpg: a cat\nsays \"no\"", "images/b.jpg: 5\" disk"],
    );
}

#[test]
fn rows_that_cannot_be_used_are_named() {
    check(
        "a.csv",
        "filepath,title\nimages/a.jpg,a cat\nimages/b.jpg\nimages/b.jpg, \nimages/c.jpg,a bird\nhttps://x/a.jpg,a fish\n",
        &[
            "images/a.jpg: a cat",
            "row 2 of a.csv: a row of 1 cells, where 2 columns have names",
            "row 3 of a.csv: nothing in column `title`",
            "images/c.jpg: its image cannot be read: No such file or directory (os error 2)",
            "https://x/a.jpg: its image is an address (`https://`), not a file: download it first",
        ],
    );
    check(
        "a.jsonl",
        "{\"filepath\": \"images/a.jpg\", \"title\": \"a cat\"}\nnothing\n{\"filepath\": \"images/b.jpg\"}\n\
         {\"filepath\": \"images/b.jpg\", \"title\": 3}\n{\"filepath\": \"images/b.jpg\", \"title\": null}\n",
        &[
            "images/a.jpg: a cat",
            "row 2 of a.jsonl: no JSON object, as in {\"filepath\": \"a.jpg\", \"title\": \"a cat\"}",
            "row 3 of a.jsonl: no `title`; it has `filepath`",
            "row 4 of a.jsonl: `title` is no text",
            "row 5 of a.jsonl: nothing in column `title`",
        ],
    );
}

#[test]
fn tables_that_cannot_be_used_are_refused() {
    check_refused(
        "a.csv",
        "filepath,caption\nimages/a.jpg,a cat\n",
        "../a.csv: no column `title`; it has `filepath`, `caption`: set `image` and `texts` of the source",
    );
    check_refused(
        "a.csv",
        "filepath;title\nimages/a.jpg;a cat\n",
        "../a.csv: no column `filepath`; its first row is one cell, \"filepath;title\": set `separator` of the source, or write \
         names of columns there",
    );
    check_refused("a.csv", "filepath,title,title\n", "../a.csv: two columns `title`; give them different names");
    check_refused("a.csv", "filepath,title\n", "../a.csv: no rows in it; give a table with a row per image");
    check_refused("a.csv", "", "../a.csv: no rows in it; write the names of the columns, and a row per image");
    check_refused("a.jsonl", "\n", "../a.jsonl: no rows in it; give a table with a row per image");
    check_refused(
        "a.csv",
        "filepath,title\nimages/a.jpg,\"a cat\nimages/b.jpg,two dogs\n",
        "../a.csv: row 2 begins a quote that nothing closes: write `\"\"` for a quote in a cell; or quote the whole cell",
    );
    check_refused(
        "a.csv",
        "filepath,title\nimages/a.jpg,\"a cat\nimages/b.jpg,two dogs\nimages/a.jpg,\"the\" cat\n",
        "../a.csv: row 2, up to line 5, holds the lines of others between quotes; write `\"\"` for a quote in a cell, and quote \
         the whole cell",
    );
    check_refused(
        "a.jsonl",
        "{\"path\": \"images/a.jpg\", \"title\": \"a cat\"}",
        "../a.jsonl: its first row: no `filepath`; it has `path`, `title`; name columns that it has by `image` and `texts` of the \
         source",
    );
    let long = format!("{{\"filepath\": \"images/a.jpg\"}}\n{}", "x".repeat((4 << 20) + 1));
    check_refused("a.jsonl", &long, "../a.jsonl:2: a line of more than 4 MiB");
    check_refused(
        "a.csv",
        "filepath,title\na.jpg,a cat\nb.jpg,two dogs\n",
        "../a.jpg: no such image, nor any other of 2 that a.csv names; paths are relative to `..`: set `root` of the source to \
         the folder that they are relative to",
    );
    check_refused(
        "a.xlsx",
        "x",
        "../a.xlsx: no kind of table that is known; give it the extension of what it is: `.csv`, `.tsv`, `.jsonl` or `.parquet`",
    );
}

/// The held-out table lies beside the other; words are those that are trained on.
#[test]
fn held_out_rows_are_another_table() {
    let tables = Tables::new(&[
        ("a.csv", "filepath,title,more\nimages/a.jpg,a cat,a dog\n"),
        ("b.csv", "filepath,title,more\nimages/b.jpg,a cat,a bird\n"),
        ("held_out.csv", "filepath,title,more\nimages/b.jpg,a mouse,a fish\n"),
    ]);
    let source = tables.source("{a,b}.csv", &[("raw", "title"), ("caption", "more")]);
    let open = |mode| TableSource::open(&source, mode).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(samples(&open(Mode::Train)), ["images/a.jpg: a cat", "images/b.jpg: a cat"]);
    assert_eq!(samples(&open(Mode::Eval)), ["images/b.jpg: a mouse"]);
    assert_eq!(open(Mode::Eval).captions(0).unwrap(), ["a fish", "a mouse"]);
    assert_eq!(open(Mode::Eval).words(3).unwrap(), ["a", "cat", "bird"]);
    let hash = |mode| open(mode).list_hash().unwrap();
    assert_ne!(hash(Mode::Train), hash(Mode::Eval));
}

/// Rows that are held out are no rows that are trained on.
#[test]
fn a_table_is_not_held_out_from_itself() {
    let table = "filepath,title\nimages/a.jpg,a cat\n";
    let tables = Tables::new(&[("a.csv", table), ("held_out.csv", table)]);
    let refused =
        "../held_out.csv: rows that are held out would be trained on; let `path` name others than `eval_path`";
    assert_eq!(tables.open("*.csv").err().as_deref(), Some(refused));
}

/// A run knows its data again by what it reads of them.
#[test]
fn other_columns_and_images_are_other_data() {
    let text = "filepath,title,more\nimages/a.jpg,a cat,a dog\n";
    let tables = Tables::new(&[("a.csv", text), ("held_out.csv", text)]);
    let hash = || tables.open("a.csv").unwrap().list_hash().unwrap();
    let before = hash();
    fs::write(tables.0.path().join("a.csv"), text.replace("title,more", "more,title")).unwrap();
    assert_ne!(hash(), before, "texts in the place of one another");
    fs::write(tables.0.path().join("a.csv"), text).unwrap();
    assert_eq!(hash(), before);
    fs::write(tables.0.path().join("images/a.jpg"), "another image").unwrap();
    assert_ne!(hash(), before, "another image");
}

/// What other lists call a sample stands in a column of its own, or is its image.
#[test]
fn samples_have_keys() {
    let text = "filepath,title,key\nimages/a.jpg,a cat,0007\n";
    let tables = Tables::new(&[("a.csv", text), ("held_out.csv", text)]);
    let mut source = tables.source("a.csv", &[("raw", "title")]);
    let open = |source: &Source| TableSource::open(source, Mode::Train).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(open(&source).key(0), "images/a.jpg");
    if let Source::Table { key, .. } = &mut source {
        *key = "key".into();
    }
    assert_eq!((open(&source).key(0), open(&source).name(0)), ("0007".into(), "images/a.jpg".into()));
    assert_eq!(open(&source).captions(0).unwrap(), ["a cat"]);
    assert_eq!(samples(&open(&source)), ["images/a.jpg: a cat"]);
}

/// A row that is changed while it is in use is noticed.
#[test]
fn a_changed_table_is_told() {
    let text = "filepath,title\nimages/a.jpg,a cat\nimages/b.jpg,two dogs\n";
    let tables = Tables::new(&[("a.csv", text)]);
    let source = tables.open("a.csv").unwrap();
    fs::write(tables.0.path().join("a.csv"), text.replace("cat", "dog")).unwrap();
    let changed = "row 1 of a.csv: a.csv was changed after it was opened; leave it as it is while it is in use";
    assert_eq!(samples(&source), [changed, "images/b.jpg: two dogs"]);
}
