//! The rooms of the compiler and the runtime, and which imports which: a picture that is compared with `rooms.txt`, and two
//! laws. No room imports one that stands above it, and so no two import each other.
//!
//! `ALIP_BLESS=1 cargo test -p alip-tests --test rooms` draws the picture again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A crate with its rooms from the ground up: a room may import those before it. What ends in `/` is all folders in it.
struct House {
    name: &'static str,
    source: &'static str,
    rooms: &'static [&'static str],
}

const HOUSES: [House; 2] = [
    House {
        name: "compiler",
        source: "../compiler/src",
        rooms: &[
            "diag",
            "hash",
            "parallel",
            "graph",
            "ops",
            "ir",
            "launch",
            "spec",
            "resolve",
            "onnx",
            "autodiff",
            "training",
            "transform",
            "schedule",
            "codegen",
            "optimize",
            "compile",
            "check",
            "picture",
            "trust",
            "diff",
            "lib",
        ],
    },
    House {
        name: "runtime",
        source: "../runtime/src",
        rooms: &["tensor", "file", "device", "exec", "data", "run", "weights", "eval", "train", "lib"],
    },
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    for entry in entries {
        let path = entry.expect("an entry of a folder").path();
        if path.is_dir() {
            // Programs stand above everything.
            if path.file_name().is_some_and(|name| name != "bin") {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Files and folders, without `.rs`, of the modules that a file declares for tests alone: these may know everything.
fn tests_of(file: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let folder = match file.file_stem().is_some_and(|stem| stem == "mod" || stem == "lib") {
        true => file.with_file_name(""),
        false => file.with_extension(""),
    };
    let declared = text.split("#[cfg(test)]\n").skip(1).filter_map(|rest| {
        let (_, module) = rest.lines().next()?.split_once("mod ")?;
        module.strip_suffix(';')
    });
    declared.map(|module| folder.join(module)).collect()
}

/// The room of a file: the first folder below the source, or the file itself.
fn room(source: &Path, file: &Path) -> String {
    let inside = file.strip_prefix(source).expect("a file of the source");
    let first = inside.iter().next().expect("a name").to_string_lossy();
    first.trim_end_matches(".rs").to_string()
}

/// The rooms that a text names, outside of comments and tests: `crate::ROOM`, and the first names of `use crate::{...}`.
fn imports(text: &str, rooms: &[&str]) -> BTreeSet<String> {
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let named = code.split("crate::").skip(1).flat_map(|rest| {
        let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        match rest.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap_or_default().split(',').map(|item| name(item.trim())).collect(),
            None => vec![name(rest)],
        }
    });
    named.filter(|name| rooms.contains(&name.as_str())).collect()
}

/// Who imports whom.
fn edges(house: &House) -> BTreeMap<String, BTreeSet<String>> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(house.source);
    let mut files = Vec::new();
    sources(&source, &mut files);
    let tests: Vec<PathBuf> = files.iter().flat_map(|file| tests_of(file)).collect();
    files.retain(|file| !tests.iter().any(|test| file.with_extension("").starts_with(test)));
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for file in files {
        let room = room(&source, &file);
        assert!(house.rooms.contains(&room.as_str()), "{}: `{room}` has no place in the house", file.display());
        let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let mut found = imports(&text, house.rooms);
        found.remove(&room);
        edges.entry(room).or_default().extend(found);
    }
    edges
}

/// A matrix: rooms from the ground up, and of each a dot below those that it imports.
fn picture(house: &House, edges: &BTreeMap<String, BTreeSet<String>>) -> String {
    let width = house.rooms.iter().map(|room| room.len()).max().unwrap_or_default();
    let mut text = format!("{}\n", house.name);
    for (at, room) in house.rooms.iter().enumerate() {
        let imported = |other: &&str| edges.get(*room).is_some_and(|rooms| rooms.contains(*other));
        let dots: String = house.rooms[..at].iter().map(|other| if imported(other) { " *" } else { " ." }).collect();
        text += format!("{room:>width$}{dots}").trim_end();
        text.push('\n');
    }
    text
}

#[test]
fn nothing_below_imports_anything_above() {
    let mut pictures = Vec::new();
    for house in &HOUSES {
        let edges = edges(house);
        let place = |room: &str| house.rooms.iter().position(|other| *other == room);
        let upward: Vec<String> = edges
            .iter()
            .flat_map(|(room, imported)| imported.iter().map(move |other| (room, other)))
            .filter(|(room, other)| place(other) > place(room))
            .map(|(room, other)| format!("{}: `{room}` imports `{other}`, which stands above it", house.name))
            .collect();
        assert!(upward.is_empty(), "{}", upward.join("\n"));
        pictures.push(picture(house, &edges));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rooms.txt");
    let drawn = pictures.join("\n");
    if std::env::var_os("ALIP_BLESS").is_some() {
        fs::write(&path, &drawn).expect("the picture can be written");
    }
    let known = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(drawn, known, "the rooms have changed; ALIP_BLESS=1 draws them again");
}

/// The test sees what it is for.
#[test]
fn imports_are_found() {
    let text = "//! [`crate::c`]\nuse crate::a::X;\nuse crate::{b::Y, d};\nfn f() { crate::e::g() }\n\n#[cfg(test)]\nmod tests { use crate::f; }\n";
    let found = imports(text, &["a", "b", "c", "d", "e", "f"]);
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["a", "b", "d", "e"]);
}
