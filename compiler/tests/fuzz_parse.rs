//! Damages valid specs at random and asserts that reading and formatting them returns: no panic, no overflow of the
//! stack, no endless loop. What does read must keep the laws of the formatter and of printed expressions.
//!
//! Seeds are fixed and rounds are counted, so that a failure can be run again; `ALIP_FUZZ_ROUNDS` asks for more.

use std::panic::catch_unwind;
use std::path::Path;

use alip_compiler::diag::SourceMap;
use alip_compiler::spec::{self, SpecFile, fmt};

/// About five seconds on one core of 2020 with the profile of tests.
const ROUNDS: u64 = 15_000;

/// SplitMix64: small, and good enough to choose damage.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n.max(1) as u64).unwrap_or(0)
    }

    fn choose<'a, T: ?Sized>(&mut self, items: &[&'a T]) -> &'a T {
        items[self.below(items.len())]
    }
}

/// Pieces that make trouble: brackets, quotes, escapes, operators, comments, numbers at their limits, odd characters.
const PIECES: [&str; 48] = [
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "\"",
    "'",
    "\\",
    "\\u{1F600}",
    "\\x7f",
    "\\\n  ",
    "r#\"",
    "\"#",
    ",",
    ":",
    ";",
    ".",
    "..",
    "=",
    "==",
    "+",
    "-",
    "*",
    "**",
    "@",
    "<",
    "//",
    "/*",
    "*/",
    "\n",
    "\r\n",
    "\0",
    "é",
    "\u{feff}",
    "\u{2028}",
    "😀",
    "None",
    "Some(",
    "if ",
    " else ",
    "not ",
    "9223372036854775808",
    "1e999",
    "-0x8000000000000000",
    ".5",
    "1_",
    "Batch(",
];

/// Every spec of the repository, and the inputs of the filetests.
fn corpus() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut texts = Vec::new();
    for folder in ["filetests/parse", "filetests/fmt", "filetests/merge", "../graphs", "../stdlib", "../pipelines"] {
        collect(&root.join(folder), &mut texts);
    }
    assert!(texts.len() > 30, "the corpus is missing");
    texts
}

fn collect(folder: &Path, texts: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("the folder can be read").path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            collect(&path, texts);
        } else if path.extension().is_some_and(|e| e == "ron") {
            let text = std::fs::read_to_string(&path).expect("specs are UTF-8");
            texts.push(text.split("// expect:\n").next().unwrap_or_default().to_owned());
        }
    }
}

fn damage(random: &mut Random, corpus: &[String], text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        let end = (at + random.below(12)).min(bytes.len());
        match random.below(7) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => drop(bytes.splice(at..at, random.choose(&PIECES).bytes())),
            3 => drop(bytes.splice(at..end, random.choose(&PIECES).bytes())),
            4 if at < bytes.len() => bytes[at] = random.next().to_le_bytes()[0],
            5 => {
                let many = random.choose(&PIECES).repeat(1 + random.below(300));
                drop(bytes.splice(at..at, many.bytes()));
            }
            _ => {
                let other = corpus[random.below(corpus.len())].as_bytes();
                let from = random.below(other.len());
                let to = (from + random.below(80)).min(other.len());
                drop(bytes.splice(at..at, other[from..to].iter().copied()));
            }
        }
    }
    bytes
}

/// Reads, formats and renders whatever comes out. Panics are what the test looks for.
fn exercise(bytes: &[u8]) {
    let mut sources = SourceMap::new();
    let id = match sources.add_bytes("input.ron", bytes) {
        Ok(id) => id,
        Err(error) => return assert!(error.render(&sources, false).contains("help")),
    };
    let formatted = fmt::format(&sources, id);
    match spec::parse_file(&sources, id) {
        Ok(file) => {
            let formatted = formatted.expect("what reads can be formatted");
            check_format(sources.text(id), &formatted, &file);
        }
        Err(errors) => {
            let rendered = errors.render(&sources, false);
            assert!(rendered.contains("input.ron:"), "an error without a place:\n{rendered}");
        }
    }
}

/// Formatting twice is formatting once; it changes nothing but blanks, commas and the order of comments; and what a file
/// says stays the same.
fn check_format(text: &str, formatted: &str, before: &SpecFile) {
    assert_eq!(ink(text), ink(formatted), "formatting lost or made text");
    let mut sources = SourceMap::new();
    let id = sources.add("formatted.ron", formatted);
    let again = fmt::format(&sources, id).expect("formatted text can be formatted");
    assert_eq!(formatted, again, "formatting is not idempotent");
    let after = spec::parse_file(&sources, id).expect("formatted text can be read");
    assert_eq!(without_places(before), without_places(&after), "formatting changed the meaning");
    equations(&after).iter().for_each(|equation| check_printed(equation));
}

/// All characters that are neither blanks nor commas, sorted.
fn ink(text: &str) -> Vec<char> {
    // Marks that RON takes for blanks, though Unicode does not.
    let blank = |c: char| c.is_whitespace() || matches!(c, '\u{200e}' | '\u{200f}');
    let mut ink: Vec<char> = text.chars().filter(|&c| !blank(c) && c != ',').collect();
    ink.sort_unstable();
    ink
}

/// Printed expressions parse back to the same tree.
fn check_printed(equation: &spec::Equation) {
    for printed in [format!("{equation}"), format!("{equation:#}")] {
        let mut sources = SourceMap::new();
        let id = sources.add("printed", printed.as_str());
        let parsed = match spec::parse_equation(&sources, id) {
            Ok(parsed) => parsed,
            // All parentheses around a tree of nearly the greatest depth are one level too many.
            Err(errors) if errors.to_string() == "expression nested too deep" => continue,
            Err(errors) => panic!("{}", errors.render(&sources, false)),
        };
        assert_eq!(format!("{parsed:#}"), format!("{equation:#}"), "printed as {printed}");
    }
}

fn equations(file: &SpecFile) -> Vec<&spec::Equation> {
    match file {
        SpecFile::Graph(graph) => graph.body.iter().collect(),
        SpecFile::Modules(modules) => modules.iter().flat_map(|module| &module.body).collect(),
        SpecFile::Pipeline(pipeline) => pipeline.body.iter().collect(),
    }
}

/// The AST as text, with every `source:start..end` taken out.
fn without_places(file: &SpecFile) -> String {
    let debug = format!("{file:?}");
    debug
        .split("span: ")
        .map(|part| part.trim_start_matches(|c: char| c.is_ascii_digit() || c == ':' || c == '.'))
        .collect()
}

#[test]
fn damaged_specs_are_refused_politely() {
    let corpus = corpus();
    let rounds = std::env::var("ALIP_FUZZ_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(ROUNDS);
    for seed in 0..rounds {
        let mut random = Random(seed);
        let text = &corpus[random.below(corpus.len())];
        let bytes = damage(&mut random, &corpus, text);
        if catch_unwind(|| exercise(&bytes)).is_err() {
            panic!("seed {seed}, input:\n{}", String::from_utf8_lossy(&bytes));
        }
    }
}

#[test]
fn whole_corpus_keeps_the_laws() {
    for text in corpus() {
        exercise(text.as_bytes());
    }
}

/// Files at the limit of size that make naive readers quadratic.
#[test]
fn large_files_are_read_or_refused_at_once() {
    let many = |item: &str| item.repeat(4_000_000 / item.len());
    let start = std::time::Instant::now();
    exercise(many("(").as_bytes());
    exercise(many("\"").as_bytes());
    exercise(many("/*").as_bytes());
    exercise(many("x ").as_bytes());
    exercise(format!("Graph(name: \"g\", body: [{}])", many("\"= x\", ")).as_bytes());
    exercise(format!("Graph(name: \"g\", body: [{}])", "\"= x\",\n".repeat(9_000)).as_bytes());
    exercise(format!("Graph(name: \"g\", dims: {{{}}})", "\"B\": 1,\n".repeat(9_000)).as_bytes());
    exercise(format!("Graph(name: \"g\", body: [\"y = f({})\"])", many("a: 1, ")).as_bytes());
    exercise(format!("Graph(name: \"g\", doc: \"{}\")", many("\\\\")).as_bytes());
    exercise(format!("Graph(name: \"g\", doc: \"{}\", dims: 1)", many("x")).as_bytes());
    // Each takes well under a second; a quadratic reader would take hours.
    assert!(start.elapsed().as_secs() < 120, "took {:?}", start.elapsed());
}

/// The deepest input that can be built of each kind of nesting, in a thread with the smallest stack in use, 2 MB.
#[test]
fn deep_nesting_does_not_overflow_the_stack() {
    let nestings = [
        ("(", ")"),
        ("[", "]"),
        ("f(", ")"),
        ("x[", "]"),
        ("-", ""),
        ("not ", ""),
        ("2 ** ", ""),
        ("a if b else ", ""),
        ("1 + (", ")"),
    ];
    let deep = move || {
        for (open, close) in nestings {
            for depth in [90, 99, 100, 101, 100_000] {
                let equation = format!("y = {}x{}", open.repeat(depth), close.repeat(depth));
                exercise(format!("Graph(name: \"g\", body: [\"{equation}\"])").as_bytes());
            }
        }
        for (open, close) in [("(", ")"), ("[", "]"), ("{\"a\": ", "}"), ("/*", "*/")] {
            exercise(format!("Graph(name: {}1{})", open.repeat(100_000), close.repeat(100_000)).as_bytes());
        }
    };
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(deep).expect("a thread starts");
    thread.join().expect("no panic");
}
