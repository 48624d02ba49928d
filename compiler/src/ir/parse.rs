//! Reads the text form of a graph (see [`super::print`]).

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::print::ron_options;
use super::{DType, Dim, Graph, NodeId, Origin, OriginId, Shape, TensorType};
use crate::ops::{Op, Real, ScalarOp, pointwise_rows};

/// Why a text is no graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Line, counted from 1.
    pub line: usize,
    /// What is wrong there.
    pub message: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for ParseError {}

type Result<T> = std::result::Result<T, String>;

/// The graph that a text describes. Empty lines and lines starting with `//` are skipped.
///
/// # Errors
/// A line that is none of a graph's, a node that uses a later one, a type that is not what the op infers.
pub fn parse(text: &str) -> std::result::Result<Graph, ParseError> {
    let mut graph = Graph::default();
    let mut origins = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with("//") {
            continue;
        }
        parse_line(&mut graph, &mut origins, line).map_err(|message| ParseError { line: index + 1, message })?;
    }
    Ok(graph)
}

fn parse_line(graph: &mut Graph, origins: &mut Vec<Origin>, line: &str) -> Result<()> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match word {
        "graph" => graph.name = rest.into(),
        "origin" => {
            let (number, names) = rest.split_once(' ').ok_or("an origin has a number, a path and a module")?;
            if number.parse() != Ok(origins.len()) {
                return Err(format!("origin {number} stands in the place of origin {}", origins.len()));
            }
            let (path, module) = two_strings(names)?;
            origins.push(Origin { path: path.into(), module: module.into(), span: None });
            graph.set_origins(origins.clone());
        }
        "output" | "update" | "value" => {
            let (name, id) = rest.rsplit_once(" = ").ok_or("expected `NAME = %n`")?;
            let id = node_id(graph, id)?;
            let map = match word {
                "output" => &mut graph.outputs,
                "update" => &mut graph.updates,
                _ => &mut graph.values,
            };
            map.insert(string(name)?, id);
        }
        word if word.starts_with('%') => parse_node(graph, line)?,
        word => return Err(format!("a line starts with graph, origin, %n, output, update or value, not `{word}`")),
    }
    Ok(())
}

/// `%3 = mul %0 %1 : f32[8] @2`
fn parse_node(graph: &mut Graph, line: &str) -> Result<()> {
    let (name, rest) = line.split_once(" = ").ok_or("expected `%n = op : type`")?;
    let number = name.strip_prefix('%').and_then(|n| n.parse::<usize>().ok());
    if number != Some(graph.nodes().len()) {
        return Err(format!("{name} stands in the place of %{}", graph.nodes().len()));
    }
    let (mut head, tail) = rest.rsplit_once(" : ").ok_or("the node has no type: expected ` : f32[...]`")?;
    let (ty, origin) = tail.rsplit_once(" @").unwrap_or((tail, "0"));
    let ty = tensor_type(ty).ok_or_else(|| format!("`{ty}` is not a type"))?;
    let origin: u32 = origin.parse().map_err(|_| format!("`@{origin}` is not an origin"))?;
    if origin as usize >= graph.origins().len().max(1) {
        return Err(format!("there is no origin {origin}"));
    }
    let mut inputs = Vec::new();
    while let Some((before, operand)) = head.rsplit_once(" %") {
        inputs.push(node_id(graph, &format!("%{operand}"))?);
        head = before;
    }
    inputs.reverse();
    let op = op(head, &ty)?;
    let id = graph.add(op, &inputs, OriginId(origin)).map_err(|error| error.message)?;
    if *graph.ty(id) != ty {
        return Err(format!("`{head}` gives {}, not {ty}", graph.ty(id)));
    }
    if let Op::Input { name, .. } = &graph.node(id).op {
        let name = name.to_string();
        graph.inputs.insert(name, id);
    }
    Ok(())
}

fn op(head: &str, ty: &TensorType) -> Result<Op> {
    match head.split_once(' ') {
        Some(("input", name)) => return Ok(Op::Input { name: string(name)?.into(), ty: ty.clone() }),
        Some(("state", path)) => return Ok(Op::State { path: string(path)?.into(), ty: ty.clone() }),
        Some(("const", value)) => {
            let value = value.parse().map_err(|_| format!("`{value}` is not a number"))?;
            return Ok(Op::Const { value: Real(value), dtype: ty.dtype });
        }
        _ => {}
    }
    if let Some(row) = pointwise_rows().iter().find(|row| row.name == head) {
        return Ok(Op::Pointwise(match row.op {
            ScalarOp::Cast(_) => ScalarOp::Cast(ty.dtype),
            op => op,
        }));
    }
    ron_options().from_str(head).map_err(|error| format!("`{head}` is not an op: {error}"))
}

fn node_id(graph: &Graph, text: &str) -> Result<NodeId> {
    match text.strip_prefix('%').and_then(|n| n.parse().ok()) {
        Some(id) if (id as usize) < graph.nodes().len() => Ok(NodeId(id)),
        _ => Err(format!("`{text}` is not an earlier node")),
    }
}

fn string(text: &str) -> Result<String> {
    ron_options().from_str(text).map_err(|_| format!("`{text}` is not a quoted name"))
}

/// Two quoted strings; a quotation mark inside one is escaped, so `" "` ends the first.
fn two_strings(text: &str) -> Result<(String, String)> {
    let mut escaped = false;
    for (index, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Ok((string(&text[..=index])?, string(text[index + 1..].trim())?)),
            _ => {}
        }
    }
    Err("expected two quoted names".into())
}

/// Reads `f32[B=8, 4]`.
fn tensor_type(text: &str) -> Option<TensorType> {
    let split = text.find('[')?;
    let all = [DType::F32, DType::Bf16, DType::F16, DType::I32, DType::Bool, DType::U8];
    let dtype = all.into_iter().find(|dtype| dtype.to_string() == text[..split])?;
    Some(TensorType { dtype, shape: shape(&text[split..])? })
}

/// Reads `[B=8, 4]`.
fn shape(text: &str) -> Option<Shape> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    if inner.is_empty() {
        return Some(Shape::scalar());
    }
    let dim = |text: &str| match text.rsplit_once('=') {
        Some((name, size)) => Some(Dim::named(size.parse().ok()?, name)),
        None => Some(Dim::from(text.parse::<u64>().ok()?)),
    };
    inner.split(", ").map(dim).collect::<Option<Vec<Dim>>>().map(Shape::from_iter)
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Shape, D::Error> {
        let text = String::deserialize(deserializer)?;
        shape(&text).ok_or_else(|| D::Error::custom(format!("`{text}` is not a shape")))
    }
}

impl<'de> Deserialize<'de> for TensorType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<TensorType, D::Error> {
        let text = String::deserialize(deserializer)?;
        tensor_type(&text).ok_or_else(|| D::Error::custom(format!("`{text}` is not a type")))
    }
}
