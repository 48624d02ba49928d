//! Programs as ONNX files: that all of them can be written, are sound, and take batches of any size; `onnx.txt` has the operators
//! of a few (`ALIP_BLESS=1` writes it). That ONNX Runtime computes the same is tried by `bench/peers/weights_roundtrip.py`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use alip_compiler::diag::SourceMap;
use alip_compiler::onnx::{Exported, OnnxError};
use alip_compiler::resolve::{Options, graph_names};

fn export(spec: &str, program: &str) -> Result<Exported, OnnxError> {
    Exported::of(&mut SourceMap::new(), spec, &Options::default(), program)
}

/// The operators of a program in the order of their names, and how many there are of each.
fn operators(exported: &Exported) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    exported.nodes().for_each(|node| *counts.entry(node.operator).or_default() += 1);
    counts.iter().fold(String::new(), |mut text, (operator, count)| {
        let _ = write!(text, " {operator} {count}");
        text
    })
}

/// Everything that is read is there, and nothing is made twice.
fn is_sound(exported: &Exported) {
    let mut known: BTreeSet<&str> = exported.given().collect();
    for node in exported.nodes() {
        for input in node.inputs {
            assert!(known.contains(input.as_str()), "{input} is read before it is made");
        }
        for output in node.outputs {
            assert!(known.insert(output), "{output} is made twice");
        }
    }
    assert!(exported.outputs().all(|output| known.contains(output)));
}

#[test]
fn all_graphs_can_be_written() {
    let mut text = String::new();
    for graph in graph_names() {
        for program in ["encode_image", "encode_text"] {
            let exported = export(&graph, program).unwrap_or_else(|error| panic!("{graph} {program}: {error}"));
            is_sound(&exported);
            if graph.contains("tiny") {
                let _ = writeln!(text, "{graph} {program}:{}", operators(&exported));
            }
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/onnx.txt");
    if std::env::var_os("ALIP_BLESS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap_or_default(), text, "ALIP_BLESS=1 writes what it is now");
}

/// A graph with one program.
fn graph(body: &str, output: &str) -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new().suffix(".ron").tempfile().unwrap();
    let text = format!(
        r#"Graph(
            name: "small",
            dims: {{ "B": Batch(4) }},
            inputs: {{ "x": (dtype: F32, shape: "[B, 6]") }},
            params: {{ "w": (shape: "[6, 6]", init: "normal(1)") }},
            body: ["{body}"],
            programs: {{ "encode": (inputs: ["x"], outputs: ["{output}"]) }},
        )"#
    );
    std::fs::write(file.path(), text).unwrap();
    file
}

#[test]
fn what_cannot_be_written_is_told() {
    let check = |body: &str, program: &str, message: &str| {
        let file = graph(body, "y");
        let error = export(file.path().to_str().unwrap(), program).err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), Some(message), "{body}");
    };
    check("y = x @ w", "decode", "`small` has no program `decode`; it has `encode`, `init`");
    check(
        "y = x - mean(x, axis: 0, keep: true)",
        "encode",
        "`encode` cannot be exported for batches of any size: at `` it depends on how many samples there are",
    );
    check(
        "y = x[1:] @ w",
        "encode",
        "`encode` cannot be exported for batches of any size: at `` it depends on how many samples there are",
    );
    check(
        "y = cast(cast(x, 'bf16'), 'f32') @ w",
        "encode",
        "`encode` cannot be exported: at `` it uses values of bf16, which has no match in ONNX",
    );
}

#[test]
fn weights_stand_in_the_file() {
    let file = graph("y = x @ w", "y");
    let exported = export(file.path().to_str().unwrap(), "encode").unwrap();
    assert_eq!(
        exported.weights.iter().map(|weight| (weight.path.as_str(), &*weight.shape)).collect::<Vec<_>>(),
        [("w", &[6, 6][..])]
    );
    let bytes =
        exported.file(|weight| Ok::<_, OnnxError>(vec![7; 4 * weight.shape.iter().product::<u64>() as usize])).unwrap();
    assert!(bytes.windows(144).any(|window| window == [7; 144]));
}
