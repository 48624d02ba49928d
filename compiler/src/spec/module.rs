//! Reads `Module(...)`.

use super::ast::{ArgKind, ArgSpec, InputSpec, ModuleSpec};
use super::graph::{DTYPES, doc, name, nothing_to_remove, param, part, state};
use super::read::{Keys, Reader};
use super::tree::{Node, NodeKind};

const MODULE: [&str; 11] =
    ["name", "doc", "use", "args", "require", "inputs", "parts", "params", "state", "body", "outputs"];

const ARG_KINDS: [(&str, ArgKind); 6] = [
    ("Int", ArgKind::Int),
    ("Float", ArgKind::Float),
    ("Bool", ArgKind::Bool),
    ("Str", ArgKind::Str),
    ("List", ArgKind::List),
    ("Module", ArgKind::Module),
];

pub(super) fn module(cx: &mut Reader, node: &Node) -> Option<ModuleSpec> {
    let fields = cx.fields(node, "a module", &MODULE, "Module(name: \"my_module\", ...)")?;
    let name = name(cx, &fields);
    let body = fields.required(cx, "body", "[\"y = f(x)\"]");
    let outputs = fields.required(cx, "outputs", "[\"y\"]");
    let spec = ModuleSpec {
        span: fields.span,
        doc: doc(cx, &fields),
        uses: cx.names(fields.get("use"), "use", Keys::Any),
        args: cx.map(fields.get("args"), "args", Keys::Args, arg),
        require: {
            let each = |cx: &mut Reader, node: &Node| cx.expr(node, "require");
            cx.list(fields.get("require"), "require", "\"p < 1\"", each)
        },
        inputs: cx.map(fields.get("inputs"), "inputs", Keys::Names, input),
        parts: cx.map(fields.get("parts"), "parts", Keys::Names, part),
        params: cx.map(fields.get("params"), "params", Keys::Names, param),
        state: cx.map(fields.get("state"), "state", Keys::Names, state),
        body: cx.list(body, "body", "\"y = f(x)\"", Reader::equation),
        outputs: cx.names(outputs, "outputs", Keys::Outputs),
        name: name?,
    };
    for removed in std::mem::take(&mut cx.removed) {
        nothing_to_remove(cx, &removed);
    }
    Some(spec)
}

fn arg(cx: &mut Reader, node: &Node) -> Option<ArgSpec> {
    if matches!(node.kind, NodeKind::Word(_)) {
        return cx.choice(node, "a kind of argument", &ARG_KINDS).map(ArgSpec::Required);
    }
    cx.expr(node, "args").map(ArgSpec::Default)
}

fn input(cx: &mut Reader, node: &Node) -> Option<InputSpec> {
    if matches!(node.kind, NodeKind::Str(_)) {
        return cx.shape(node, "inputs").map(|shape| InputSpec { dtype: None, shape });
    }
    let fields = cx.fields(node, "an input", &["dtype", "shape"], "(dtype: I32, shape: \"[N, T]\")")?;
    let shape = fields.required(cx, "shape", "\"[N, T]\"").and_then(|node| cx.shape(node, "shape"));
    let dtype = match fields.get("dtype") {
        Some(node) => Some(cx.choice(node, "a dtype", &DTYPES)?),
        None => None,
    };
    Some(InputSpec { dtype, shape: shape? })
}
