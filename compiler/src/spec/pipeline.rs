//! Reads `Pipeline(...)`, and knows the kinds of source.

use super::ast::{Literal, Map, PipelineSpec, ShuffleSpec, SourceSpec};
use super::expr::Spanned;
use super::graph::{doc, name, nothing_to_remove};
use super::read::{Keys, Reader};
use super::tree::{Node, NodeKind};
use crate::diag::Diagnostic;

/// What a field of a source holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldKind {
    /// A string.
    Str,
    /// A whole number.
    Int,
    /// A number.
    Float,
    /// `true` or `false`.
    Bool,
    /// A map from names to whole numbers, such as label widths.
    Ints,
    /// A map from names to numbers.
    Floats,
    /// A map from names to strings.
    Strs,
    /// A map from names to sources.
    Sources,
}

/// A field of a source.
#[derive(Clone, Copy, Debug)]
pub struct SourceField {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub kind: FieldKind,
    /// Must it be written?
    pub required: bool,
    /// One line for `alipc ops`.
    pub doc: &'static str,
}

const fn required(name: &'static str, kind: FieldKind, doc: &'static str) -> SourceField {
    SourceField { name, kind, required: true, doc }
}

const fn optional(name: &'static str, kind: FieldKind, doc: &'static str) -> SourceField {
    SourceField { name, kind, required: false, doc }
}

/// A kind of source and its fields. A new setting of a source is one row here.
#[derive(Clone, Copy, Debug)]
pub struct SourceKind {
    /// `Recordio`, ...
    pub name: &'static str,
    /// One line for `alipc ops`.
    pub doc: &'static str,
    /// The fields.
    pub fields: &'static [SourceField],
}

/// All kinds of source: those of [`alip_plan::pipeline::Source`], where their settings are explained.
pub const SOURCES: [SourceKind; 7] = [
    SourceKind {
        name: "Folder",
        doc: "Image files and a file of JSON lines, `captions.jsonl`. Fields: `jpeg`, `raw`, `caption`, and `captions`: all of the image.",
        fields: &[
            required("path", FieldKind::Str, "the folder"),
            optional("split", FieldKind::Str, "the split that is trained on"),
            optional("eval_split", FieldKind::Str, "the split that is evaluated on"),
            optional("raw", FieldKind::Int, "which caption is the raw text"),
            optional("caption", FieldKind::Int, "which caption is the synthetic caption"),
            optional("swap_raw", FieldKind::Float, "the share of raw texts taken from another image"),
            optional("swap_seed", FieldKind::Int, "the seed of the swaps"),
        ],
    },
    SourceKind {
        name: "Shapes",
        doc: "Rendered scenes, each with a true caption and a web-like raw text. Fields: `image`, `raw`, `caption`.",
        fields: &[
            optional("size", FieldKind::Int, "height and width of the images"),
            optional("scenes", FieldKind::Int, "the number of training scenes"),
            optional("held_out", FieldKind::Int, "the number of held-out scenes"),
            optional("seed", FieldKind::Int, "the seed of the data set"),
        ],
    },
    SourceKind {
        name: "Recordio",
        doc: "MXNet RecordIO with its index beside it. Fields: `jpeg` and one token row per label.",
        fields: &[
            required("path", FieldKind::Str, "the `.rec` file, or several, as in `part_{000..015}.rec` or `*.rec`"),
            required("labels", FieldKind::Ints, "names and lengths of the token rows, in order"),
        ],
    },
    SourceKind {
        name: "Webdataset",
        doc: "WebDataset shards. Fields: `jpeg` and one text per entry.",
        fields: &[
            required("path", FieldKind::Str, "the shards, as in `{000..999}.tar` or `*.tar`"),
            required(
                "texts",
                FieldKind::Strs,
                "names of the text fields and the files they are: `txt`, or `json:caption`",
            ),
            optional("samples", FieldKind::Int, "the number of samples of shards that are read in sequence"),
            optional("streams", FieldKind::Int, "the most streams that such shards are dealt over"),
            optional("unpack", FieldKind::Bool, "whether compressed shards are unpacked once, for random access"),
        ],
    },
    SourceKind {
        name: "Files",
        doc: "Folders in which the files of a sample have one name, as img2dataset writes them. Fields: `jpeg` and one text per \
              entry.",
        fields: &[
            required("path", FieldKind::Str, "the folder, or several, as in `FOLDER/*`"),
            required(
                "texts",
                FieldKind::Strs,
                "names of the text fields and the files they are: `txt`, or `json:caption`",
            ),
        ],
    },
    SourceKind {
        name: "Table",
        doc: "CSV, TSV, JSON lines or Parquet with a row per image. Fields: `jpeg` and one text per entry.",
        fields: &[
            required("path", FieldKind::Str, "the table, or several, as in `{a,b}.csv` or `*.parquet`"),
            optional("eval_path", FieldKind::Str, "the held-out table, seen from the folder of `path`"),
            optional("image", FieldKind::Str, "the column with the image's file; `filepath` unless it is given"),
            required("texts", FieldKind::Strs, "names of the text fields and their columns"),
            optional(
                "root",
                FieldKind::Str,
                "the folder that image files are relative to, unless it is that of the table",
            ),
            optional(
                "key",
                FieldKind::Str,
                "the column with what other lists call a sample, unless it is that with its image",
            ),
            optional("separator", FieldKind::Str, "what stands between cells, unless it is a tab or a comma"),
        ],
    },
    SourceKind {
        name: "Mix",
        doc: "Several sources as one, each with its share of every batch. Fields: those that all of them have.",
        fields: &[
            required("sources", FieldKind::Sources, "the sources by name"),
            optional(
                "weights",
                FieldKind::Floats,
                "the share of each in every batch, in proportion; as they are without it",
            ),
            optional("samples", FieldKind::Int, "samples of an epoch, unless it is as many as there are in all"),
        ],
    },
];

const PIPELINE: [&str; 6] = ["name", "doc", "source", "shuffle", "body", "outputs"];

pub(super) fn pipeline(cx: &mut Reader, node: &Node) -> Option<PipelineSpec> {
    let fields = cx.fields(node, "a pipeline", &PIPELINE, "Pipeline(name: \"my_data\", ...)")?;
    let name = name(cx, &fields);
    let source = fields.required(cx, "source", "Folder(path: \"...\")").and_then(|node| source(cx, node));
    let shuffle = fields.get("shuffle").map(|node| shuffle(cx, node));
    let outputs = fields.required(cx, "outputs", "{ \"image\": \"image\" }");
    let spec = PipelineSpec {
        span: fields.span,
        doc: doc(cx, &fields),
        body: cx.list(fields.get("body"), "body", "\"y = f(x)\"", Reader::equation),
        outputs: cx.map(outputs, "outputs", Keys::Names, |cx, node| cx.expr(node, "outputs")),
        shuffle: match shuffle {
            Some(shuffle) => Some(shuffle?),
            None => None,
        },
        source: source?,
        name: name?,
    };
    for removed in std::mem::take(&mut cx.removed) {
        nothing_to_remove(cx, &removed);
    }
    Some(spec)
}

fn shuffle(cx: &mut Reader, node: &Node) -> Option<ShuffleSpec> {
    let fields = cx.fields(node, "`shuffle`", &["buffer", "seed"], "(buffer: 16384)")?;
    Some(ShuffleSpec {
        span: fields.span,
        buffer: fields.get("buffer").and_then(|node| cx.whole(node, "buffer", 1)),
        seed: fields.get("seed").and_then(|node| cx.whole(node, "seed", 0)),
    })
}

fn source(cx: &mut Reader, node: &Node) -> Option<SourceSpec> {
    let (NodeKind::Struct(Some(kind), _) | NodeKind::Tuple(Some(kind), _)) = &node.kind else {
        cx.wrong(node, "a source", "write `source: Folder(path: \"...\")`");
        return None;
    };
    let Some(known) = SOURCES.iter().find(|source| source.name == kind.as_str()) else {
        let names = SOURCES.map(|source| source.name);
        cx.errors.push(
            Diagnostic::error(format!("unknown source `{kind}`"))
                .label(kind.span, "unknown kind of source")
                .suggest(kind, names)
                .note(format!("the sources are `{}`", names.join("`, `"))),
        );
        return None;
    };
    let names: Vec<_> = known.fields.iter().map(|field| field.name).collect();
    let fields = cx.fields(node, known.name, &names, "Folder(path: \"...\")")?;
    let mut values = Map::new();
    for field in known.fields {
        let node = if field.required { fields.required(cx, field.name, "...") } else { fields.get(field.name) };
        if let (Some(node), Some(name)) = (node, fields.name(field.name))
            && let Some(value) = literal(cx, node, field)
        {
            values.insert(name.clone(), value);
        }
    }
    Some(SourceSpec { span: node.span, kind: kind.clone(), fields: values })
}

fn literal(cx: &mut Reader, node: &Node, field: &SourceField) -> Option<Spanned<Literal>> {
    let value = match (field.kind, &node.kind) {
        (FieldKind::Str, NodeKind::Str(text)) => Literal::Str(text.as_str().to_owned()),
        (FieldKind::Int, NodeKind::Int(n)) => Literal::Int(*n),
        (FieldKind::Float, NodeKind::Int(n)) => Literal::Float(*n as f64),
        (FieldKind::Float, NodeKind::Float(x)) => Literal::Float(*x),
        (FieldKind::Bool, NodeKind::Bool(b)) => Literal::Bool(*b),
        (FieldKind::Ints, NodeKind::Map(_)) => Literal::Map(cx.map(Some(node), field.name, Keys::Names, |cx, node| {
            cx.whole(node, field.name, 1)
                .map(|n| Spanned::new(Literal::Int(i64::try_from(*n).unwrap_or(i64::MAX)), n.span))
        })),
        (FieldKind::Floats, NodeKind::Map(_)) => {
            Literal::Map(cx.map(Some(node), field.name, Keys::Names, |cx, node| match node.kind {
                NodeKind::Int(n) => Some(Spanned::new(Literal::Float(n as f64), node.span)),
                NodeKind::Float(x) => Some(Spanned::new(Literal::Float(x), node.span)),
                _ => {
                    cx.wrong(node, "a number", "write `\"name\": 1`");
                    None
                }
            }))
        }
        (FieldKind::Sources, NodeKind::Map(_)) => {
            Literal::Map(cx.map(Some(node), field.name, Keys::Names, |cx, node| {
                source(cx, node).map(|inner| Spanned::new(Literal::Source(Box::new(inner)), node.span))
            }))
        }
        (FieldKind::Strs, NodeKind::Map(_)) => Literal::Map(cx.map(Some(node), field.name, Keys::Names, |cx, node| {
            cx.string(node, field.name).map(|s| Spanned::new(Literal::Str(s.node), s.span))
        })),
        _ => {
            let (what, example) = match field.kind {
                FieldKind::Str => ("a string", "\"...\""),
                FieldKind::Int => ("a whole number", "100"),
                FieldKind::Float => ("a number", "0.5"),
                FieldKind::Bool => ("`true` or `false`", "true"),
                FieldKind::Ints => ("a map of whole numbers", "{ \"raw\": 77 }"),
                FieldKind::Floats => ("a map of numbers", "{ \"web\": 3 }"),
                FieldKind::Sources => ("a map of sources", "{ \"web\": Recordio(path: \"...\", ...) }"),
                FieldKind::Strs => ("a map of strings", "{ \"image\": \"jpg\" }"),
            };
            let help = format!("`{}` is {}: write `{}: {example}`", field.name, field.doc, field.name);
            cx.wrong(node, &format!("{what} for `{}`", field.name), &help);
            return None;
        }
    };
    Some(Spanned::new(value, node.span))
}
