//! Reads `Graph(...)`, and the fields that graphs and modules share.

use alip_plan::Every;

use super::ast::{
    Dim, Dtype, EmaSpec, EvaluateSpec, GraphSpec, GroupSpec, InputSpec, Map, ParamSpec, PartEntry, PartSpec, Precision,
    ProgramSpec, Removed, StartSpec, StateSpec, TrainSpec,
};
use super::expr::{Expr, Name, Spanned};
use super::read::{Fields, Keys, Reader};
use super::tree::{Node, NodeKind};
use crate::diag::Diagnostic;

const GRAPH: [&str; 14] = [
    "name", "doc", "base", "use", "dims", "inputs", "parts", "params", "state", "body", "programs", "metrics", "train",
    "data",
];

const TRAIN: [&str; 12] = [
    "loss",
    "optimizer",
    "schedule",
    "clip_grad_norm",
    "epochs",
    "precision",
    "loss_scale",
    "seed",
    "groups",
    "ema",
    "evaluate",
    "start",
];

pub(super) const DTYPES: [(&str, Dtype); 9] = [
    ("F32", Dtype::F32),
    ("I32", Dtype::I32),
    ("U8", Dtype::U8),
    ("Bool", Dtype::Bool),
    ("Bf16", Dtype::Bf16),
    ("F16", Dtype::F16),
    ("F64", Dtype::F64),
    ("I64", Dtype::I64),
    ("U32", Dtype::U32),
];

pub(super) const PRECISIONS: [(&str, Precision); 3] =
    [("F32", Precision::F32), ("Bf16", Precision::Bf16), ("F16", Precision::F16)];

/// Fields of a graph that a variant may take away as a whole, with `field: None`.
const REMOVABLE: [&str; 9] = ["dims", "inputs", "parts", "params", "state", "programs", "metrics", "train", "data"];

pub(super) fn graph(cx: &mut Reader, node: &Node) -> Option<GraphSpec> {
    let fields = cx.fields(node, "a graph", &GRAPH, "Graph(name: \"my_graph\", ...)")?;
    let name = name(cx, &fields);
    let base = fields.get("base").and_then(|node| cx.name(node, "base", Keys::Any));
    for field in REMOVABLE {
        if let Some(Node { kind: NodeKind::None, span }) = fields.written(field) {
            cx.removed.push(Removed { field, key: None, span: *span });
        }
    }
    let (mut parts, mut set) = (Map::new(), Map::new());
    for (name, entry) in cx.map(fields.get("parts"), "parts", Keys::Names, part_entry) {
        match entry {
            PartEntry::Part(part) => drop(parts.insert(name, part)),
            PartEntry::Set(args) => drop(set.insert(name, args)),
        }
    }
    let spec = GraphSpec {
        span: fields.span,
        doc: doc(cx, &fields),
        uses: cx.names(fields.get("use"), "use", Keys::Any),
        dims: cx.map(fields.get("dims"), "dims", Keys::Names, dim),
        inputs: cx.map(fields.get("inputs"), "inputs", Keys::Names, graph_input),
        parts,
        set,
        params: cx.map(fields.get("params"), "params", Keys::Names, param),
        state: cx.map(fields.get("state"), "state", Keys::Names, state),
        body: cx.list(fields.get("body"), "body", "\"y = f(x)\"", Reader::equation),
        programs: cx.map(fields.get("programs"), "programs", Keys::Names, program),
        metrics: cx.map(fields.get("metrics"), "metrics", Keys::Any, |cx, node| cx.expr(node, "metrics")),
        train: fields.get("train").and_then(|node| train(cx, node)),
        data: fields.get("data").and_then(|node| cx.name(node, "data", Keys::Any)),
        removed: std::mem::take(&mut cx.removed),
        base,
        name: name?,
    };
    if spec.base.is_none() {
        for removed in &spec.removed {
            nothing_to_remove(cx, removed);
        }
        for name in spec.set.keys() {
            cx.errors.push(
                Diagnostic::error(format!("the part `{name}` has no `module`"))
                    .label(name.span, "only a graph with a `base` can change the arguments of a part it does not write")
                    .help("write the part: `\"name\": \"module(...)\"`"),
            );
        }
    }
    Some(spec)
}

pub(super) fn nothing_to_remove(cx: &mut Reader, removed: &Removed) {
    let what = removed.key.as_ref().map_or(removed.field, Name::as_str);
    cx.errors.push(
        Diagnostic::error(format!("`{what}` is `None`, but there is nothing to take it from"))
            .label(removed.span, "only a graph with a `base` can take something away")
            .help("leave the entry out, or say `base: \"...\"`"),
    );
}

/// The field `name`.
pub(super) fn name(cx: &mut Reader, fields: &Fields<'_>) -> Option<Name> {
    let node = fields.required(cx, "name", "\"...\"")?;
    cx.name(node, "name", Keys::Names)
}

/// The field `doc`.
pub(super) fn doc(cx: &mut Reader, fields: &Fields<'_>) -> Option<Spanned<String>> {
    fields.get("doc").and_then(|node| cx.string(node, "doc"))
}

fn dim(cx: &mut Reader, node: &Node) -> Option<Spanned<Dim>> {
    if let NodeKind::Tuple(Some(name), items) = &node.kind
        && let ("Batch", [size]) = (name.as_str(), items.as_slice())
    {
        return cx.whole(size, "Batch", 1).map(|n| Spanned::new(Dim::Batch(*n), node.span));
    }
    match node.kind {
        NodeKind::Int(1..) => cx.whole(node, "dims", 1).map(|n| Spanned::new(Dim::Fixed(*n), node.span)),
        _ => {
            cx.wrong(node, "a size", "write `\"T\": 77`, or `\"B\": Batch(4096)` for the axis of samples");
            None
        }
    }
}

fn graph_input(cx: &mut Reader, node: &Node) -> Option<InputSpec> {
    let fields = cx.fields(node, "an input", &["dtype", "shape"], "(dtype: F32, shape: \"[B, 3, 224, 224]\")")?;
    let dtype = fields.required(cx, "dtype", "F32").and_then(|node| cx.choice(node, "a dtype", &DTYPES));
    let shape = fields.required(cx, "shape", "\"[B, T]\"").and_then(|node| cx.shape(node, "shape"));
    Some(InputSpec { dtype: Some(dtype?), shape: shape? })
}

pub(super) fn part(cx: &mut Reader, node: &Node) -> Option<PartSpec> {
    if matches!(node.kind, NodeKind::Str(_)) {
        return cx.expr(node, "parts").map(|module| PartSpec { module, path: None, set: Map::new() });
    }
    let fields = part_fields(cx, node)?;
    let module = fields.required(cx, "module", "\"...\"").and_then(|node| cx.expr(node, "module"));
    let path = fields.get("path").and_then(|node| cx.string(node, "path"));
    let set = part_set(cx, &fields);
    Some(PartSpec { module: module?, path, set })
}

fn part_fields<'a>(cx: &mut Reader, node: &'a Node) -> Option<Fields<'a>> {
    cx.fields(node, "a part", &["module", "path", "set"], "(module: \"layer_norm(width)\", path: \"ln\")")
}

fn part_set(cx: &mut Reader, fields: &Fields<'_>) -> Map<Expr> {
    cx.map(fields.get("set"), "set", Keys::Args, |cx, node| cx.expr(node, "set"))
}

/// A part of a graph, of which a variant may write the arguments alone.
fn part_entry(cx: &mut Reader, node: &Node) -> Option<PartEntry> {
    if let NodeKind::Struct(_, fields) = &node.kind
        && fields.len() == 1
        && fields[0].0.as_str() == "set"
    {
        let fields = part_fields(cx, node)?;
        return Some(PartEntry::Set(part_set(cx, &fields)));
    }
    part(cx, node).map(PartEntry::Part)
}

pub(super) fn param(cx: &mut Reader, node: &Node) -> Option<ParamSpec> {
    let example = "(shape: \"[D]\", init: \"normal(std: 0.02)\")";
    let fields = cx.fields(node, "a parameter", &["shape", "init", "clamp", "dtype"], example)?;
    let shape = fields.required(cx, "shape", "\"[D]\"").and_then(|node| cx.shape(node, "shape"));
    let init = fields.required(cx, "init", "\"normal(std: 0.02)\"").and_then(|node| cx.expr(node, "init"));
    let clamp = fields.get("clamp").map(|node| clamp(cx, node));
    let dtype = dtype(cx, node, fields.get("dtype"))?;
    Some(ParamSpec { shape: shape?, init: init?, clamp: clamp.transpose_some()?, dtype })
}

/// F32 unless it is written.
fn dtype(cx: &mut Reader, within: &Node, written: Option<&Node>) -> Option<Spanned<Dtype>> {
    match written {
        Some(node) => cx.choice(node, "a dtype", &DTYPES),
        None => Some(Spanned::new(Dtype::F32, within.span)),
    }
}

fn clamp(cx: &mut Reader, node: &Node) -> Option<(Expr, Expr)> {
    if let NodeKind::Tuple(None, items) = &node.kind
        && let [low, high] = items.as_slice()
    {
        let (low, high) = (cx.expr(low, "clamp"), cx.expr(high, "clamp"));
        return low.zip(high);
    }
    cx.wrong(node, "the two bounds of `clamp`", "write `clamp: (\"0\", \"ln(100)\")`");
    None
}

pub(super) fn state(cx: &mut Reader, node: &Node) -> Option<StateSpec> {
    let fields = cx.fields(node, "a state", &["shape", "init", "dtype"], "(shape: \"[]\", init: \"1\")")?;
    let shape = fields.required(cx, "shape", "\"[]\"").and_then(|node| cx.shape(node, "shape"));
    let init = fields.required(cx, "init", "\"0\"").and_then(|node| cx.expr(node, "init"));
    let dtype = dtype(cx, node, fields.get("dtype"))?;
    Some(StateSpec { shape: shape?, init: init?, dtype })
}

fn program(cx: &mut Reader, node: &Node) -> Option<ProgramSpec> {
    let fields = cx.fields(node, "a program", &["inputs", "outputs"], "(inputs: [\"image\"], outputs: [\"x\"])")?;
    fields.required(cx, "inputs", "[\"image\"]");
    fields.required(cx, "outputs", "[\"x\"]");
    let inputs = cx.names(fields.get("inputs"), "inputs", Keys::Names);
    let outputs = cx.names(fields.get("outputs"), "outputs", Keys::Outputs);
    Some(ProgramSpec { inputs, outputs })
}

fn train(cx: &mut Reader, node: &Node) -> Option<TrainSpec> {
    let fields = cx.fields(node, "`train`", &TRAIN, "(loss: \"loss\", optimizer: \"adamw()\")")?;
    for field in TRAIN {
        if let Some(Node { kind: NodeKind::None, span }) = fields.written(field) {
            cx.removed.push(Removed { field: train_path(field), key: None, span: *span });
        }
    }
    Some(TrainSpec {
        span: fields.span,
        loss: fields.get("loss").and_then(|node| cx.expr(node, "loss")),
        optimizer: fields.get("optimizer").and_then(|node| cx.expr(node, "optimizer")),
        schedule: fields.get("schedule").and_then(|node| cx.expr(node, "schedule")),
        clip_grad_norm: fields.get("clip_grad_norm").and_then(|node| cx.positive(node, "clip_grad_norm")),
        epochs: fields.get("epochs").and_then(|node| cx.whole(node, "epochs", 1)),
        precision: fields.get("precision").and_then(|node| cx.choice(node, "a precision", &PRECISIONS)),
        loss_scale: fields.get("loss_scale").and_then(|node| cx.expr(node, "loss_scale")),
        seed: fields.get("seed").and_then(|node| cx.whole(node, "seed", 0)),
        groups: fields.get("groups").map(|node| cx.list(Some(node), "groups", "(select: \"visual.*\")", group)),
        ema: fields.get("ema").and_then(|node| ema(cx, node)),
        evaluate: fields.get("evaluate").and_then(|node| evaluate(cx, node)),
        start: fields.get("start").map(|node| cx.list(Some(node), "start", "(file: \"clip.safetensors\")", start)),
    })
}

/// `train.loss` for `loss`.
pub(super) fn train_path(field: &str) -> &'static str {
    match field {
        "loss" => "train.loss",
        "optimizer" => "train.optimizer",
        "schedule" => "train.schedule",
        "clip_grad_norm" => "train.clip_grad_norm",
        "epochs" => "train.epochs",
        "precision" => "train.precision",
        "loss_scale" => "train.loss_scale",
        "seed" => "train.seed",
        "groups" => "train.groups",
        "evaluate" => "train.evaluate",
        "start" => "train.start",
        _ => "train.ema",
    }
}

fn group(cx: &mut Reader, node: &Node) -> Option<GroupSpec> {
    let known = ["select", "freeze", "frozen_statistics", "lr", "weight_decay"];
    let fields = cx.fields(node, "a group", &known, "(select: \"visual.*\", freeze: true)")?;
    let select = fields.required(cx, "select", "\"visual.*\"").and_then(|node| cx.string(node, "select"));
    Some(GroupSpec {
        span: fields.span,
        freeze: fields.get("freeze").and_then(|node| cx.truth(node, "freeze")),
        frozen_statistics: fields.get("frozen_statistics").and_then(|node| cx.truth(node, "frozen_statistics")),
        lr: fields.get("lr").and_then(|node| cx.expr(node, "lr")),
        weight_decay: fields.get("weight_decay").and_then(|node| cx.expr(node, "weight_decay")),
        select: select?,
    })
}

fn ema(cx: &mut Reader, node: &Node) -> Option<EmaSpec> {
    let fields = cx.fields(node, "`ema`", &["decay"], "(decay: 0.999)")?;
    let decay = fields.required(cx, "decay", "0.999").and_then(|node| cx.expr(node, "decay"))?;
    Some(EmaSpec { span: fields.span, decay })
}

fn evaluate(cx: &mut Reader, node: &Node) -> Option<EvaluateSpec> {
    let fields =
        cx.fields(node, "`evaluate`", &["every", "suite", "data", "best", "average"], "(every: \"1 epoch\")")?;
    let every = fields.required(cx, "every", "\"1 epoch\"").and_then(|node| cx.string(node, "every"))?;
    let wrong = |why: String| Diagnostic::error(why).label(every.span, "how often the model is measured");
    let parsed = cx.ok(Every::parse(&every.node).map_err(wrong))?;
    let mut text = |name| fields.get(name).and_then(|node| cx.string(node, name));
    let (suite, data, best) = (text("suite"), text("data"), text("best"));
    if let (None, Some(data)) = (&suite, &data) {
        let error = Diagnostic::error("`data` is where the data sets of a suite lie, and no suite is named");
        cx.ok::<()>(Err(error.label(data.span, "").help("name one: `suite: \"alip_table\"`")));
    }
    let average = fields.get("average").and_then(|node| cx.truth(node, "average"));
    Some(EvaluateSpec { span: fields.span, every: Spanned::new(parsed, every.span), suite, data, best, average })
}

fn start(cx: &mut Reader, node: &Node) -> Option<StartSpec> {
    let fields = cx.fields(
        node,
        "an entry of `start`",
        &["file", "select"],
        "(file: \"clip.safetensors\", select: \"visual.*\")",
    )?;
    let file = fields.required(cx, "file", "\"clip.safetensors\"").and_then(|node| cx.string(node, "file"));
    let select = fields.get("select").and_then(|node| cx.string(node, "select"));
    Some(StartSpec { span: fields.span, file: file?, select })
}

/// An option that failed to read is a failure; one that is absent is not.
trait TransposeSome<T> {
    fn transpose_some(self) -> Option<Option<T>>;
}

impl<T> TransposeSome<T> for Option<Option<T>> {
    fn transpose_some(self) -> Option<Option<T>> {
        match self {
            Some(None) => None,
            Some(some) => Some(some),
            None => Some(None),
        }
    }
}
