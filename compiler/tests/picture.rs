//! Pages of `alipc graph`: what they hold, read from the JSON inside.

use alip_compiler::diag::SourceMap;
use alip_compiler::ir::{Graph, Origin, TensorType};
use alip_compiler::ops::{Op, ScalarOp};
use alip_compiler::picture::{dot, html};
use alip_compiler::resolve::{Options, resolve, resolve_source};
use serde_json::Value;

fn page(name: &str) -> (Graph, String) {
    let mut sources = SourceMap::new();
    let resolved = resolve(&mut sources, name, &Options::default()).expect("a graph of the house");
    let graph = resolved.model.programs["train"].clone();
    let page = html(&graph, &resolved.model.name, "", &sources);
    (graph, page)
}

/// The data of a page, as a browser finds them: up to the end of the script element.
fn data(page: &str) -> Value {
    let (_, rest) = page.split_once("id=\"data\">").expect("the page has data");
    serde_json::from_str(rest.split_once("</script>").expect("the element ends").0).expect("JSON")
}

/// Paths of all boxes that are instances, with the names of their modules.
fn instances(data: &Value) -> Vec<(String, String)> {
    let text = |index: &Value| data["texts"][index.as_u64().expect("an index") as usize].as_str().expect("a text");
    let mut found = Vec::new();
    let mut open = vec![(0, String::new())];
    while let Some((index, path)) = open.pop() {
        for child in data["blocks"][index][5].as_array().expect("children") {
            let child = child.as_u64().expect("an index") as usize;
            let block = &data["blocks"][child];
            if block[0] == 0 {
                let path =
                    if path.is_empty() { text(&block[1]).to_owned() } else { format!("{path}.{}", text(&block[1])) };
                found.push((path.clone(), text(&block[2]).to_owned()));
                open.push((child, path));
            }
        }
    }
    found
}

#[test]
fn every_instance_is_a_box_and_every_page_the_same_twice() {
    for name in ["alip_b32", "alip_tiny_rn"] {
        let (graph, page) = page(name);
        assert_eq!(page, self::page(name).1);
        let instances = instances(&data(&page));
        let mut paths: Vec<(&str, &str)> =
            graph.ids().map(|id| graph.origin(id)).map(|origin| (&*origin.path, &*origin.module)).collect();
        paths.sort_unstable();
        paths.dedup();
        for (path, module) in paths.into_iter().filter(|(path, _)| !path.is_empty()) {
            assert!(instances.iter().any(|(p, m)| p == path && m == module), "{name}: {path} ({module})");
        }
    }
}

#[test]
fn towers_are_lists_of_blocks() {
    let (_, page) = page("alip_b32");
    let instances = instances(&data(&page));
    for tower in ["visual", "text", "text#2"] {
        let list = (format!("{tower}.transformer.resblocks"), "12 \u{d7} residual_attention_block".to_owned());
        assert!(instances.contains(&list), "{tower}");
        for block in 0..12 {
            let attention = format!("{tower}.transformer.resblocks.{block}.attn");
            assert!(instances.contains(&(attention, "multihead_attention".into())), "{tower} {block}");
        }
    }
    // Readable on a phone's connection, and far below what a browser takes.
    assert!(page.len() < 400_000, "{} bytes", page.len());
}

#[test]
fn texts_of_a_spec_are_no_html() {
    let evil = "</script><script>alert(1)</script><!--";
    let spec = format!(
        "Graph(name: \"g\", doc: {evil:?}, dims: {{ \"B\": Batch(2) }}, inputs: {{ \"x\": (dtype: F32, shape: \"[B]\") }},
         body: [\"y = select(x < 1, x, 0)\"], programs: {{ \"p\": (inputs: [\"x\"], outputs: [\"y\"]) }})"
    );
    let mut sources = SourceMap::new();
    let source = sources.add("g.ron", spec);
    let resolved = resolve_source(&mut sources, source, &Options::default())
        .unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false)));
    let page = html(&resolved.model.programs["p"], evil, evil, &sources);
    assert!(!page.contains(evil) && !page.contains("<script>alert"));
    assert!(page.contains("<title>&lt;/script&gt;"));
    let data = data(&page);
    assert_eq!((data["title"].as_str(), data["doc"].as_str()), (Some(evil), Some(evil)));
    let texts = data["texts"].as_array().expect("texts");
    assert!(texts.iter().any(|text| text == "select(x < 1, x, 0)"), "{texts:?}");
}

/// `modules` instances of `ops` operations each, one after the other.
fn chain(modules: usize, ops: usize) -> Graph {
    let mut graph = Graph::new("train");
    let ty = TensorType::f32([2]);
    let top = graph.add_origin(Origin::default());
    let mut at = graph.add(Op::Input { name: "x".into(), ty }, &[], top).expect("an input");
    for module in 0..modules {
        let origin = Origin { path: format!("part.{module}").into(), module: "m".into(), span: None };
        let origin = graph.add_origin(origin);
        for _ in 0..ops {
            at = graph.add(Op::Pointwise(ScalarOp::Neg), &[at], origin).expect("of one operand");
        }
    }
    graph.outputs.insert("y".into(), at);
    graph
}

#[test]
fn a_very_large_graph_is_shown_without_the_insides_of_modules() {
    let sources = SourceMap::new();
    let small = data(&html(&chain(10, 100), "", "", &sources));
    assert_eq!((small["left_out"].as_bool(), small["edges"].as_array().map(Vec::len)), (Some(false), Some(1001)));
    let page = html(&chain(10, 10_000), "", "", &sources);
    let large = data(&page);
    assert_eq!(large["left_out"].as_bool(), Some(true));
    assert_eq!(instances(&large).len(), 11, "ten modules and their list");
    // From the input through ten modules to the output.
    assert_eq!(large["edges"].as_array().map(Vec::len), Some(11));
    assert!(page.len() < 300_000, "{} bytes", page.len());
}

#[test]
fn graphviz_gets_nested_clusters() {
    let expected = r#"digraph "train" {
  node [shape=box, style=rounded];
  n1 [label="x", style=bold];
  subgraph cluster_2 { label="part: 2 × m";
    subgraph cluster_3 { label="0: m";
      n4 [label="neg"];
    }
    subgraph cluster_5 { label="1: m";
      n6 [label="neg"];
    }
  }
  n7 [label="y", style=bold];
  n1 -> n4 [label="f32[2]"];
  n4 -> n6 [label="f32[2]"];
  n6 -> n7 [label="f32[2]"];
}
"#;
    assert_eq!(dot(&chain(2, 1)), expected);
}
