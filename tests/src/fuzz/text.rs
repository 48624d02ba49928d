//! Cases as files a person can read: what was wrong, the inputs, and the text form of the graph.
//!
//! ```text
//! // seed 17, cpu, all: `y9` [2] is 1e0, expected 2e0: off by ...
//! // input x0 = 0.25 -0.5
//! // state s0 = 0.125
//! graph random
//! %0 = input "x0" : f32[2] @0
//! ...
//! ```
//!
//! Values stand in full, so that a file means the same when the generator changes.

use std::fmt::Write;

use alip_compiler::ir::{self, Graph, Value};
use alip_compiler::ops::Op;

use super::Case;
use crate::compiled::Values;

/// The text of a case, under a line that says why it is kept.
pub fn print(case: &Case, why: &str) -> String {
    let mut text = format!("// {}\n", why.replace('\n', " "));
    for (kind, values) in [("input", &case.inputs), ("state", &case.state)] {
        for (name, value) in values {
            let _ = write!(text, "// {kind} {name} =");
            for x in &value.data {
                let _ = write!(text, " {x}");
            }
            text.push('\n');
        }
    }
    text + &ir::print(&case.graph)
}

/// The case that a text describes.
///
/// # Errors
/// No graph, or values that are not those of its inputs and state.
pub fn parse(text: &str) -> Result<Case, String> {
    let graph = ir::parse(text).map_err(|error| error.to_string())?;
    let mut case = Case { graph, inputs: Values::new(), state: Values::new() };
    for line in text.lines() {
        let Some((head, numbers)) = line.trim_start_matches("// ").split_once(" =") else { continue };
        let (name, of_state) = match head.split_once(' ') {
            Some(("input", name)) => (name, false),
            Some(("state", name)) => (name, true),
            _ => continue,
        };
        let data = numbers.split_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>();
        let data = data.map_err(|error| format!("{head}: {error}"))?;
        let ty = source(&case.graph, name, of_state).ok_or_else(|| format!("the graph has no {head}"))?;
        if ty.shape.elements() != data.len() as u64 {
            return Err(format!("{head} is {ty}, but {} elements are given", data.len()));
        }
        let values = if of_state { &mut case.state } else { &mut case.inputs };
        values.insert(name.to_string(), Value::new(ty, data));
    }
    Ok(case)
}

fn source(graph: &Graph, wanted: &str, of_state: bool) -> Option<ir::TensorType> {
    graph.nodes().iter().find_map(|node| match &node.op {
        Op::Input { name, ty } if !of_state && **name == *wanted => Some(ty.clone()),
        Op::State { path, ty } if of_state && **path == *wanted => Some(ty.clone()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::random_case;
    use super::*;

    #[test]
    fn texts_read_back_to_the_same_case() {
        for seed in 0..40 {
            let case = random_case(seed, 18);
            let text = print(&case, "kept for a test");
            let back = parse(&text).unwrap_or_else(|error| panic!("seed {seed}: {error}\n{text}"));
            // NaN equals nothing, so texts are compared.
            assert_eq!(print(&back, "kept for a test"), text);
        }
    }
}
