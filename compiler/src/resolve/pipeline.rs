//! From a pipeline spec to the plan's typed pipeline, and its check against the inputs of a graph.

use std::collections::{BTreeMap, BTreeSet};

use alip_plan::pipeline::{
    Argument, Mode, Pipeline, PipelineNode, PipelineOp, PipelineSite, SIGNATURES, Shuffle, Source,
};

use crate::diag::{Diagnostic, Diagnostics, Span};
use crate::ir::{Graph, Origin, TensorType};
use crate::ops::Op;
use crate::spec::{
    Equation, Expr, ExprKind, GraphSpec, Literal, Map, Name, PartSpec, PipelineSpec, SourceSpec, Spanned, UnaryOp,
};

type Result<T, E = Diagnostic> = std::result::Result<T, E>;

/// Where the nodes of a body stand.
struct Body {
    nodes: Vec<PipelineNode>,
    spans: Vec<Span>,
}

/// The typed pipeline of a spec.
///
/// # Errors
/// An unknown op or source, an argument that does not fit, a value of the wrong kind, each with its place.
pub fn pipeline(spec: &PipelineSpec) -> Result<Pipeline, Diagnostics> {
    let mut body = Body { nodes: Vec::new(), spans: Vec::new() };
    for equation in &spec.body {
        body.equation(equation)?;
    }
    let mut outputs = BTreeMap::new();
    for (name, expr) in &spec.outputs {
        let value = match &expr.kind {
            ExprKind::Name(value) => value.clone(),
            _ => body.call(&format!("{name}'out"), expr)?,
        };
        outputs.insert(name.text.clone(), value);
    }
    let shuffle = spec.shuffle.map(|shuffle| Shuffle { buffer: shuffle.buffer.map(|buffer| buffer.node) });
    let pipeline = Pipeline {
        name: spec.name.text.clone(),
        source: source(&spec.source)?,
        shuffle,
        ops: body.nodes,
        eval_ops: None,
        outputs,
        bytes: BTreeSet::new(),
    };
    if let Err(error) = pipeline.check() {
        let span = match &error.site {
            PipelineSite::Source => spec.source.span,
            // Nodes of a derived body have no place of their own.
            PipelineSite::Node { mode: Mode::Train, index } => {
                body.spans.get(*index).copied().unwrap_or(spec.name.span)
            }
            PipelineSite::Node { mode: Mode::Eval, .. } => spec.name.span,
            PipelineSite::Output(name) => spec.outputs.get(name.as_str()).map_or(spec.name.span, |expr| expr.span),
        };
        return Err(Diagnostic::error(error.message).label(span, "").into());
    }
    Ok(pipeline)
}

impl Body {
    /// Adds the nodes of an equation: that of its call, and one for each result behind the first that it names.
    fn equation(&mut self, equation: &Equation) -> Result<()> {
        let Some((first, further)) = equation.targets.split_first() else { return Ok(()) };
        // A name that no spec can write, for one that nobody wants.
        let name = if first.as_str() == "_" { format!("_'{}", self.nodes.len()) } else { first.text.clone() };
        self.call(&name, &equation.value)?;
        let made = self.nodes.last().map(|node| node.op.name()).unwrap_or_default();
        let signature = SIGNATURES.iter().find(|signature| signature.name == made);
        let results = 1 + signature.map_or(0, |signature| signature.further.len());
        if equation.targets.len() > results {
            let names = signature.iter().flat_map(|signature| signature.further).map(|(name, _)| *name);
            let has = if results == 1 { "has one result".into() } else { format!("has {results} results") };
            let error = Diagnostic::error(format!("`{made}` {has}, but {} names are given", equation.targets.len()));
            let error = error.label(equation.targets[results].span, "");
            let all: Vec<&str> = std::iter::once(first.as_str()).chain(names).collect();
            return Err(error.help(format!("write `{} = {made}(...)`", all.join(", "))));
        }
        for (index, target) in (1..).zip(further).filter(|(_, target)| target.as_str() != "_") {
            let op = PipelineOp::Further { index };
            self.nodes.push(PipelineNode { name: target.text.clone(), op, inputs: vec![name.clone()] });
            self.spans.push(target.span);
        }
        Ok(())
    }

    /// Adds the node of a call, those of calls inside it first; yields its name.
    fn call(&mut self, name: &str, expr: &Expr) -> Result<String> {
        let ExprKind::Call(callee, args) = &expr.kind else {
            return Err(Diagnostic::error("a pipeline's value is the result of an op")
                .label(expr.span, "")
                .help("write `rgb = decode_rgb(jpeg)`; `alipc ops` lists the ops"));
        };
        let ExprKind::Name(op) = &callee.kind else {
            return Err(Diagnostic::error("not the name of an op").label(callee.span, ""));
        };
        let (mut positional, mut named) = (Vec::new(), Vec::new());
        for (index, arg) in args.iter().enumerate() {
            let value = match &arg.value.kind {
                // A name that no spec can write.
                ExprKind::Call(..) => Argument::Name(self.call(&format!("{name}'{index}"), &arg.value)?),
                _ => argument(&arg.value)?,
            };
            match &arg.name {
                Some(name) => named.push((name.text.clone(), value)),
                None => positional.push(value),
            }
        }
        let (op, inputs) = PipelineOp::from_call(op, &positional, &named).map_err(|message| {
            let known = SIGNATURES.iter().map(|signature| signature.name);
            let error = Diagnostic::error(message).label(expr.span, "");
            // An op that there is was not meant otherwise.
            if known.clone().any(|known| known == op) { error } else { error.suggest(op, known) }
        })?;
        self.nodes.push(PipelineNode { name: name.to_owned(), op, inputs });
        self.spans.push(expr.span);
        Ok(name.to_owned())
    }
}

fn argument(expr: &Expr) -> Result<Argument> {
    match &expr.kind {
        ExprKind::Name(name) => Ok(Argument::Name(name.clone())),
        ExprKind::Str(text) => Ok(Argument::Text(text.clone())),
        ExprKind::Tuple(items) | ExprKind::List(items) => {
            items.iter().map(number).collect::<Result<_>>().map(Argument::Tuple)
        }
        _ => number(expr).map(Argument::Number),
    }
}

fn number(expr: &Expr) -> Result<f64> {
    match &expr.kind {
        ExprKind::Int(n) => Ok(*n as f64),
        ExprKind::Float(x) => Ok(*x),
        ExprKind::Unary(UnaryOp::Neg, inner) => number(inner).map(|x| -x),
        _ => Err(Diagnostic::error("arguments of a pipeline's ops are names, numbers, tuples of numbers and strings")
            .label(expr.span, "")),
    }
}

fn source(spec: &SourceSpec) -> Result<Source> {
    let fields = Fields(&spec.fields);
    Ok(match spec.kind.as_str() {
        "Folder" => Source::Folder {
            path: fields.text("path", "")?,
            split: fields.text("split", "train")?,
            eval_split: fields.text("eval_split", "test")?,
            raw: fields.whole("raw", 0)?,
            caption: fields.whole("caption", 1)?,
            swap_raw: fields.share("swap_raw")?,
            swap_seed: fields.whole("swap_seed", 0)?,
        },
        "Shapes" => Source::Shapes {
            size: fields.whole("size", 64)?,
            scenes: fields.whole("scenes", 32_768)?,
            held_out: fields.whole("held_out", 1_024)?,
            seed: fields.whole("seed", 0)?,
        },
        "Recordio" => Source::Recordio { path: fields.text("path", "")?, labels: fields.lengths("labels")? },
        "Webdataset" => Source::Webdataset {
            path: fields.text("path", "")?,
            texts: fields.texts("texts")?,
            samples: fields.whole("samples", 0)?,
            streams: fields.whole("streams", 256)?,
            unpack: fields.flag("unpack")?,
        },
        "Files" => Source::Files { path: fields.text("path", "")?, texts: fields.texts("texts")? },
        "Table" => Source::Table {
            path: fields.text("path", "")?,
            eval_path: fields.text("eval_path", "")?,
            image: fields.text("image", "filepath")?,
            texts: fields.texts("texts")?,
            root: fields.text("root", "")?,
            key: fields.text("key", "")?,
            separator: fields.text("separator", "")?,
        },
        "Mix" => Source::Mix {
            sources: fields.sources("sources")?,
            weights: fields.weights("weights")?,
            samples: fields.whole("samples", 0)?,
        },
        other => return Err(Diagnostic::error(format!("unknown source `{other}`")).label(spec.kind.span, "")),
    })
}

/// Fields of a source; the reader has checked names and kinds.
struct Fields<'a>(&'a Map<Spanned<Literal>>);

impl Fields<'_> {
    fn wrong<T>(&self, field: &str, expected: &str) -> Result<T> {
        let error = Diagnostic::error(format!("`{field}` is not {expected}"));
        Err(match self.0.get(field) {
            Some(value) => error.label(value.span, format!("expected {expected}")),
            None => error,
        })
    }

    fn text(&self, field: &str, default: &str) -> Result<String> {
        match self.0.get(field).map(|value| &value.node) {
            Some(Literal::Str(text)) => Ok(text.clone()),
            None => Ok(default.to_owned()),
            _ => self.wrong(field, "a string"),
        }
    }

    fn whole<N: TryFrom<i64>>(&self, field: &str, default: N) -> Result<N> {
        match self.0.get(field).map(|value| &value.node) {
            Some(Literal::Int(n)) => N::try_from(*n).or_else(|_| self.wrong(field, "a whole number in its range")),
            None => Ok(default),
            _ => self.wrong(field, "a whole number"),
        }
    }

    fn flag(&self, field: &str) -> Result<bool> {
        match self.0.get(field).map(|value| &value.node) {
            Some(Literal::Bool(flag)) => Ok(*flag),
            None => Ok(false),
            _ => self.wrong(field, "`true` or `false`"),
        }
    }

    fn share(&self, field: &str) -> Result<f64> {
        match self.0.get(field).map(|value| &value.node) {
            Some(Literal::Float(x)) => Ok(*x),
            Some(Literal::Int(n)) => Ok(*n as f64),
            None => Ok(0.0),
            _ => self.wrong(field, "a number"),
        }
    }

    fn entries(&self, field: &str) -> Result<&Map<Spanned<Literal>>> {
        match self.0.get(field).map(|value| &value.node) {
            Some(Literal::Map(entries)) => Ok(entries),
            _ => self.wrong(field, "a map"),
        }
    }

    fn lengths(&self, field: &str) -> Result<Vec<(String, u32)>> {
        let length = |(name, value): (&Name, &Spanned<Literal>)| match &value.node {
            Literal::Int(n) => match u32::try_from(*n) {
                Ok(n) => Ok((name.text.clone(), n)),
                Err(_) => self.wrong(field, "a map from names to lengths"),
            },
            _ => self.wrong(field, "a map from names to lengths"),
        };
        self.entries(field)?.iter().map(length).collect()
    }

    fn sources(&self, field: &str) -> Result<BTreeMap<String, Source>> {
        let part = |(name, value): (&Name, &Spanned<Literal>)| match &value.node {
            Literal::Source(spec) => Ok((name.text.clone(), source(spec)?)),
            _ => self.wrong(field, "a map from names to sources"),
        };
        self.entries(field)?.iter().map(part).collect()
    }

    fn weights(&self, field: &str) -> Result<BTreeMap<String, f64>> {
        let weight = |(name, value): (&Name, &Spanned<Literal>)| match &value.node {
            Literal::Float(x) => Ok((name.text.clone(), *x)),
            _ => self.wrong(field, "a map from names to numbers"),
        };
        match self.0.get(field) {
            None => Ok(BTreeMap::new()),
            Some(_) => self.entries(field)?.iter().map(weight).collect(),
        }
    }

    fn texts(&self, field: &str) -> Result<BTreeMap<String, String>> {
        let text = |(name, value): (&Name, &Spanned<Literal>)| match &value.node {
            Literal::Str(text) => Ok((name.text.clone(), text.clone())),
            _ => self.wrong(field, "a map from names to file extensions"),
        };
        self.entries(field)?.iter().map(text).collect()
    }
}

/// A table of rows, such as a token embedding, that an input of the graph indexes.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    /// The input.
    pub(super) input: String,
    /// How many rows.
    pub(super) rows: u64,
    /// Path of the application that looks rows up, and where it is written.
    origin: Origin,
}

/// The tables that inputs of a program index as they are.
pub(crate) fn tables(graph: &Graph) -> Vec<Table> {
    let mut varies = Vec::with_capacity(graph.nodes().len());
    let mut found = Vec::new();
    for (id, node) in graph.ids().zip(graph.nodes()) {
        varies.push(matches!(node.op, Op::Input { .. }) || node.inputs.iter().any(|input| varies[input.index()]));
        let (Op::Gather { batch }, &[table, mut index]) = (&node.op, node.inputs.as_slice()) else { continue };
        while let Op::Reshape { .. } | Op::Transpose { .. } | Op::Broadcast { .. } | Op::Slice { .. } =
            graph.node(index).op
        {
            index = graph.node(index).inputs[0];
        }
        if let Op::Input { name, .. } = &graph.node(index).op
            && !varies[table.index()]
        {
            let rows = graph.shape(table).size(*batch);
            found.push(Table { input: name.to_string(), rows, origin: graph.origin(id).clone() });
        }
    }
    found
}

/// Compares the ids that a pipeline's tokenisers make with the tables that they index.
///
/// # Errors
/// A table with fewer rows than there are ids.
pub(crate) fn check_tables(
    graph: &GraphSpec,
    tables: &[Table],
    spec: &PipelineSpec,
    pipeline: &Pipeline,
) -> Result<(), Diagnostics> {
    let mut errors: Vec<Diagnostic> = Vec::new();
    for table in tables {
        let Some(value) = pipeline.outputs.get(&table.input) else { continue };
        let Some(ids) = pipeline.ids(value).map(u64::from) else { continue };
        if ids <= table.rows {
            continue;
        }
        let part = table.origin.path.split(['.', '#']).next().unwrap_or_default();
        // Where a variant changed arguments of the part, they are what to look at.
        let written = |part: &PartSpec| part.set.keys().next().map_or(part.module.span, |name| name.span);
        let declared = graph.parts.get(part).map(written).or(table.origin.span);
        let equation = spec.body.iter().find(|equation| equation.targets.iter().any(|target| target.as_str() == value));
        let tokenized =
            equation.map(|equation| equation.value.span).or_else(|| Some(spec.outputs.get(table.input.as_str())?.span));
        let mut error = Diagnostic::error(format!(
            "`{}` has ids up to {}, but the table that they index has {} rows",
            table.input,
            ids - 1,
            table.rows
        ))
        .note(format!("the table is that of `{}`", table.origin.path))
        .help(format!("give the table {ids} rows, or the vocabulary at most {}", table.rows));
        if let Some(span) = declared {
            error = error.label(span, format!("{} rows", table.rows));
        }
        if let Some(span) = tokenized {
            error = error.context(span, format!("{ids} ids, those of start and end of text included"));
        }
        // A tower that is applied to several texts is told once.
        let told = |other: &Diagnostic| other.labels.first().map(|label| label.span) == declared;
        if declared.is_none() || !errors.iter().any(told) {
            errors.push(error);
        }
    }
    Diagnostics::check((), errors)
}

/// Compares what a pipeline delivers with what a graph takes.
///
/// # Errors
/// An input that the pipeline lacks, or that differs in dtype or shape.
pub(crate) fn check_inputs(
    graph: &GraphSpec,
    inputs: &BTreeMap<String, TensorType>,
    spec: &PipelineSpec,
    pipeline: &Pipeline,
    at: Span,
) -> Result<(), Diagnostics> {
    let delivered = pipeline.check().map_err(|error| Diagnostic::error(error.message).label(at, ""))?;
    let mut errors = Vec::new();
    for (name, ty) in inputs {
        let place = graph.inputs.get(name.as_str()).map_or(graph.name.span, |input| input.shape.span);
        let Some(output) = delivered.get(name) else {
            errors.push(
                Diagnostic::error(format!("the pipeline `{}` does not deliver `{name}`", spec.name))
                    .label(place, "an input of the graph")
                    .context(at, "the pipeline")
                    .suggest(name, delivered.keys().map(String::as_str)),
            );
            continue;
        };
        let row: Vec<u64> = ty.shape.sizes().into_iter().skip(1).collect();
        if (output.dtype, &output.shape) != (ty.dtype, &row) {
            let made = spec.outputs.get(name.as_str()).map_or(at, |expr| expr.span);
            errors.push(
                Diagnostic::error(format!(
                    "`{name}` is {} {row:?} a sample in the graph, but {} {:?} in the pipeline",
                    ty.dtype, output.dtype, output.shape
                ))
                .label(place, format!("the graph takes {ty}"))
                .context(made, format!("the pipeline delivers {} {:?}", output.dtype, output.shape))
                .help("change the size in the pipeline or in the graph, or name another pipeline with `data`"),
            );
        }
    }
    Diagnostics::check((), errors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diag::SourceMap;
    use crate::spec::{FieldKind, SOURCES, SourceKind, SpecFile, parse_file};

    /// A setting as a spec has it and as the plan has it, other than any default.
    fn setting(kind: FieldKind, number: usize) -> (String, serde_json::Value) {
        let (text, count) = (format!("text{number}"), 1000 + number);
        match kind {
            FieldKind::Str => (format!("\"{text}\""), text.into()),
            FieldKind::Int => (count.to_string(), count.into()),
            FieldKind::Float => ("0.25".into(), 0.25.into()),
            FieldKind::Bool => ("true".into(), true.into()),
            FieldKind::Ints => (format!("{{ \"{text}\": {count} }}"), serde_json::json!([[text, count]])),
            FieldKind::Floats => {
                (format!("{{ \"name\": {count} }}"), serde_json::json!({ "name": f64::from(count as u32) }))
            }
            FieldKind::Sources => {
                let inner = serde_json::json!({ "Recordio": { "path": text, "labels": [] } });
                (
                    format!("{{ \"name\": Recordio(path: \"{text}\", labels: {{}}) }}"),
                    serde_json::json!({ "name": inner }),
                )
            }
            FieldKind::Strs => (format!("{{ \"name\": \"{text}\" }}"), serde_json::json!({ "name": text })),
        }
    }

    fn resolved(kind: &SourceKind) -> (Source, serde_json::Value) {
        let (mut written, mut expected) = (Vec::new(), serde_json::Map::new());
        for (number, field) in kind.fields.iter().enumerate() {
            let (text, value) = setting(field.kind, number);
            written.push(format!("{}: {text}", field.name));
            expected.insert(field.name.into(), value);
        }
        let (name, settings) = (kind.name, written.join(", "));
        let text = format!("Pipeline(name: \"p\", source: {name}({settings}), outputs: {{ \"y\": \"y\" }})");
        let mut sources = SourceMap::new();
        let file = sources.add("p.ron", &text);
        let Ok(SpecFile::Pipeline(spec)) = parse_file(&sources, file) else { panic!("no pipeline: {text}") };
        (source(&spec.source).expect("a known source"), serde_json::json!({ name: expected }))
    }

    /// What a spec can say of a source is what the plan knows of it, setting by setting.
    #[test]
    fn every_setting_of_a_source_arrives() {
        for kind in &SOURCES {
            let (source, expected) = resolved(kind);
            assert_eq!(source.kind(), kind.name);
            assert_eq!(serde_json::to_value(&source).expect("plain data"), expected);
            // A new variant fails to compile here, and so asks for its row in `SOURCES`.
            match source {
                Source::Folder { .. }
                | Source::Shapes { .. }
                | Source::Recordio { .. }
                | Source::Webdataset { .. }
                | Source::Files { .. }
                | Source::Table { .. }
                | Source::Mix { .. } => {}
            }
        }
    }
}
