//! Pictures of graphs: `alipc graph` and `--emit dot`.
//!
//! Both show the same boxes (`tree`). The page is one file that needs nothing else: the boxes and edges as JSON, and a script
//! that draws what is open. Its size is bounded; what a page leaves out for that, it says.

mod tree;

use std::fmt::Write;

use serde_json::{Value, json};

use self::tree::{Block, Kind, Tree};
use crate::diag::SourceMap;
use crate::ir::Graph;

const PAGE: &str = include_str!("page.html");

/// Most boxes of a page with all operations: about 6 MB, which a browser still opens at once. A graph with more is shown
/// without the operations inside its modules.
const MAX_BLOCKS: usize = 50_000;

/// Most characters of an equation that a page shows.
const MAX_CODE: usize = 200;

/// A page that shows a graph: modules as boxes that open and close, shapes on edges.
///
/// `title` and `doc` head it; the equations that operations come from are looked up in `sources`.
pub fn html(graph: &Graph, title: &str, doc: &str, sources: &SourceMap) -> String {
    let tree = Tree::new(graph, sources);
    let left_out = tree.blocks.len() > MAX_BLOCKS;
    let json = page(&tree, title, doc, left_out).to_string();
    // Inside a script element, `</script` and `<!--` would not be data.
    let json = json.replace('<', "\\u003c");
    PAGE.replacen("{data}", &json, 1).replacen("{title}", &escape(title), 1)
}

/// Lists of numbers and indices into one list of texts: most texts occur in every block of a tower.
fn page(tree: &Tree, title: &str, doc: &str, left_out: bool) -> Value {
    let mut texts = indexmap::IndexSet::new();
    let mut text = |text: &str| match text.char_indices().nth(MAX_CODE) {
        Some((end, _)) => texts.insert_full(format!("{}\u{2026}", &text[..end])).0,
        None => texts.insert_full(text.to_owned()).0,
    };
    let kept = |block: &Block| !left_out || block.kind != Kind::Op;
    let blocks: Vec<Value> = tree
        .blocks
        .iter()
        .map(|block| {
            if !kept(block) {
                return json!(0);
            }
            let params: Vec<_> = block.params.iter().map(|(name, ty)| [text(name), text(ty)]).collect();
            let children = block.children.iter().copied().filter(|child| kept(&tree.blocks[*child]));
            let children: Vec<usize> = children.collect();
            json!([block.kind as u8, text(&block.name), text(&block.module), text(&block.code), params, children])
        })
        .collect();
    let mut edges = indexmap::IndexSet::new();
    for (from, to, tensor) in &tree.edges {
        let (from, to) = if left_out { (tree.box_of(*from), tree.box_of(*to)) } else { (*from, *to) };
        if from != to {
            edges.insert([from, to, text(tensor)]);
        }
    }
    let edges: Vec<_> = edges.into_iter().collect();
    let texts: Vec<_> = texts.into_iter().collect();
    json!({ "title": title, "doc": doc, "texts": texts, "blocks": blocks, "edges": edges, "left_out": left_out })
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A graph for Graphviz: `dot -Tsvg train.dot`.
pub fn dot(graph: &Graph) -> String {
    let tree = Tree::new(graph, &SourceMap::new());
    let mut text = format!("digraph {} {{\n  node [shape=box, style=rounded];\n", quoted(&graph.name));
    cluster(&tree, 0, 1, &mut text);
    for (from, to, tensor) in &tree.edges {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  n{from} -> n{to} [label={}];", quoted(tensor));
    }
    text + "}\n"
}

/// The children of a box; the depth is that of the instances, which the resolver bounds.
fn cluster(tree: &Tree, block: usize, depth: usize, text: &mut String) {
    for child in &tree.blocks[block].children {
        let Block { kind, name, module, .. } = &tree.blocks[*child];
        let indent = "  ".repeat(depth);
        let _ = match kind {
            Kind::Instance => {
                let label = if module.is_empty() { name.clone() } else { format!("{name}: {module}") };
                let _ = writeln!(text, "{indent}subgraph cluster_{child} {{ label={};", quoted(&label));
                cluster(tree, *child, depth + 1, text);
                writeln!(text, "{indent}}}")
            }
            Kind::Op => {
                let label = if module.is_empty() { name.clone() } else { format!("{name} {module}") };
                writeln!(text, "{indent}n{child} [label={}];", quoted(&label))
            }
            Kind::Input | Kind::Output => writeln!(text, "{indent}n{child} [label={}, style=bold];", quoted(name)),
        };
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
