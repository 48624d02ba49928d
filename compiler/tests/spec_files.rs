//! Files that cannot be filetests: bytes that are not text, sizes, and what `alipc fmt` does to a folder.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use alip_compiler::diag::{MAX_SOURCE_BYTES, SourceMap};
use alip_compiler::spec::fmt::format;
use alip_compiler::spec::parse_file;

/// Asserts what a user sees when a file with these bytes is read.
fn check_refused(bytes: &[u8], expected: &str) {
    let mut sources = SourceMap::new();
    let error = sources.add_bytes("bad.ron", bytes).expect_err("the bytes are refused");
    assert_eq!(error.render(&sources, false).trim_end(), expected.trim());
}

#[test]
fn not_utf8_says_byte_and_line() {
    let expected = r#"
error: `bad.ron` is not UTF-8 text: byte 21 (line 2) is 0xff
 --> bad.ron:2:15
  |
2 |     name: "caf� au lait",
  |               ^ no UTF-8 character starts like this
  |
  = help: save the file as UTF-8; if it is a checkpoint or a data set, it is not a spec"#;
    check_refused(b"Graph(\n    name: \"caf\xff au lait\",\n)\n\0", expected);
}

#[test]
fn latin_1_is_named() {
    let expected = r#"
error: `bad.ron` is not UTF-8 text: byte 21 (line 2) is 0xe9
 --> bad.ron:2:15
  |
2 |     name: "caf� au lait",
  |               ^ no UTF-8 character starts like this
  |
  = help: the file looks like Latin-1 (Windows-1252): save it as UTF-8"#;
    check_refused(b"Graph(\n    name: \"caf\xe9 au lait\",\n)\n", expected);
}

/// A mark of the byte order is no part of a spec, and moves no place.
#[test]
fn a_byte_order_mark_is_accepted() {
    let mut sources = SourceMap::new();
    let graph = "Graph(name: \"g\", body: [\"y = 1\"])\n";
    let with = sources.add_bytes("with.ron", format!("\u{feff}{graph}").as_bytes()).expect("text");
    assert_eq!(sources.text(with), graph);
    assert!(parse_file(&sources, with).is_ok());
}

#[test]
fn a_file_of_100_mb_is_refused_before_it_is_read() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("big.ron");
    // Has the size but takes no space.
    fs::File::create(&path).and_then(|file| file.set_len(100_000_000)).expect("a sparse file");
    let mut sources = SourceMap::new();
    let error = sources.add_path(&path).expect_err("the file is refused").render(&sources, false);
    let expected = "\
error: `big.ron` is too large for a spec: 100.0 MB
 |
 = note: a spec has a few kB; at most 4.2 MB are read
 = help: was a checkpoint or a data file given in place of a spec?
";
    assert_eq!(error.replace(&format!("{}/", folder.path().display()), ""), expected);
}

#[test]
fn the_size_limit_holds_for_bytes_too() {
    let mut sources = SourceMap::new();
    let limit = usize::try_from(MAX_SOURCE_BYTES).expect("fits");
    assert!(sources.add_bytes("at limit", &vec![b' '; limit]).is_ok());
    assert!(sources.add_bytes("above", &vec![b' '; limit + 1]).is_err());
}

#[test]
fn a_missing_file_is_named() {
    let mut sources = SourceMap::new();
    let error = sources.add_path(Path::new("no/such.ron")).expect_err("there is none").render(&sources, false);
    let expected = "error: cannot read `no/such.ron`: no such file\n |\n = help: check the path; specs end in `.ron`\n";
    assert_eq!(error, expected);
}

fn alipc(args: &[&str], folder: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_alipc"));
    command.args(args).current_dir(folder).output().expect("alipc runs")
}

#[test]
fn fmt_command_checks_then_writes_then_is_content() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("written");
    fs::create_dir(folder.path().join("sub")).expect("created");
    write("good.ron", "Graph(\n    name: \"good\",\n)\n");
    write("sub/ugly.ron", "Graph(name:\"ugly\") // kept\n");
    write("not_a_spec.txt", "hello");

    let check = alipc(&["fmt", "--check", "."], folder.path());
    assert_eq!((check.status.code(), check.stdout.as_slice()), (Some(1), b"./sub/ugly.ron\n".as_slice()));
    assert_eq!(fs::read_to_string(folder.path().join("sub/ugly.ron")).expect("read"), "Graph(name:\"ugly\") // kept\n");

    let format = alipc(&["fmt", "."], folder.path());
    assert_eq!((format.status.code(), format.stdout.as_slice()), (Some(0), b"./sub/ugly.ron\n".as_slice()));
    let text = fs::read_to_string(folder.path().join("sub/ugly.ron")).expect("read");
    assert_eq!(text, "Graph(\n    name: \"ugly\",\n)\n// kept\n");

    let again = alipc(&["fmt", "--check", "."], folder.path());
    assert_eq!((again.status.code(), again.stdout.len()), (Some(0), 0));
    let files = fs::read_dir(folder.path().join("sub")).expect("read").count();
    assert_eq!(files, 1, "no temporary file is left");
}

#[test]
fn fmt_command_reports_errors_and_goes_on() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("a.ron"), "Graph(name: ").expect("written");
    fs::write(folder.path().join("b.ron"), "Graph( name: \"b\" )").expect("written");
    let output = alipc(&["fmt", "a.ron", "b.ron", "none.ron"], folder.path());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), b"b.ron\n".as_slice()));
    assert!(stderr.contains("a.ron:1:12") && stderr.contains("cannot read `none.ron`"), "{stderr}");
}

/// Every spec of the repository is in house style.
#[test]
fn specs_of_the_house_are_formatted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for folder in ["graphs", "stdlib", "pipelines", "examples"] {
        check_folder(&root.join(folder));
    }
}

fn check_folder(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.expect("the folder can be read").path();
        if path.is_dir() {
            check_folder(&path);
        } else if path.extension().is_some_and(|e| e == "ron") {
            let mut sources = SourceMap::new();
            let id = sources.add_path(&path).unwrap_or_else(|e| panic!("{}", e.message));
            let formatted = format(&sources, id).unwrap_or_else(|e| panic!("{}", e.render(&sources, false)));
            assert_eq!(sources.text(id), formatted, "run `alipc fmt {}`", path.display());
        }
    }
}
