//! The way from a graph to launches is linear in the number of nodes: one more layer is as much work on a hundred layers as on
//! four hundred.

use std::collections::BTreeMap;

use alip_plan::PROGRAM_TRAIN;

use super::looked::tally;
use super::*;
use crate::codegen::{BackEnd, Unwatched};
use crate::diag::SourceMap;
use crate::resolve::{Options, resolve};
use crate::training::training_step;

/// Layers as those of a transformer but for attention: their backward pass reads what the forward pass keeps, and all their
/// parameters are updated with what all gradients have in common.
fn spec(layers: u64) -> String {
    format!(
        r#"Graph(
            name: "deep",
            use: ["deep_layer", "optim/adamw", "schedule/constant"],
            dims: {{ "B": Batch(8) }},
            inputs: {{ "x": (dtype: F32, shape: "[B, 4]") }},
            parts: {{ "layers": "[deep_layer(4); {layers}]" }},
            body: ["y = chain(layers, x)", "loss = mean(y * y)"],
            train: (loss: "loss", optimizer: "adamw()", schedule: "constant(max_lr: 1e-3)", clip_grad_norm: 1.0),
        )"#
    )
}

const LAYER: &str = r#"Module(
    name: "deep_layer",
    use: ["nn", "activation"],
    args: { "width": Int },
    inputs: { "x": "[N, width]" },
    parts: { "norm": "layer_norm(width)", "wide": "linear(width, 2 * width)", "narrow": "linear(2 * width, width)", "act": "gelu()" },
    body: ["y = x + narrow(act(wide(norm(x))))"],
    outputs: ["y"],
)"#;

/// What is looked at while the training step of so many layers becomes launches, by kind.
fn looked_at(layers: u64, target: &Target, recompute: bool) -> BTreeMap<&'static str, u64> {
    let mut sources = SourceMap::new();
    let files =
        BTreeMap::from([("deep.ron".to_string(), spec(layers)), ("deep_layer.ron".to_string(), LAYER.to_string())]);
    let options = Options { files, ..Options::default() };
    let step = resolve(&mut sources, "deep", &options)
        .and_then(|resolved| training_step(&resolved, resolved.model.clone(), Default::default()))
        .unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false)));
    let graph = &step.model.programs[PROGRAM_TRAIN];
    let neighbours = Neighbours::find([graph].into_iter(), target);
    let back_end = BackEnd { target, options: ScheduleOptions { fuse: true, recompute }, neighbours: &neighbours };
    tally::take();
    back_end.lower(graph, &mut Unwatched).unwrap_or_else(|errors| panic!("{errors}"));
    tally::take()
}

/// How much more one of the later layers may be than one of the earlier, as ends of the program shift a few counts. Were each
/// layer compared with all others, it would be twice as much.
const ROOM: f64 = 1.1;

fn check(target: &Target, recompute: bool, layers: [u64; 3]) {
    let [few, some, many] = layers.map(|layers| looked_at(layers, target, recompute));
    let mut grow = Vec::new();
    for (what, most) in &many {
        let [first, second] = [&few, &some].map(|counts| counts.get(what).copied().unwrap_or(0) as f64);
        let early = (second - first) / (layers[1] - layers[0]) as f64;
        let late = (*most as f64 - second) / (layers[2] - layers[1]) as f64;
        println!("{}: {what}: {first}, {second}, {most}: {early:.2} and {late:.2} a layer", target.name);
        if late > ROOM * early {
            grow.push(*what);
        }
    }
    assert!(grow.is_empty() && many.len() > 5, "{}: {grow:?} of {many:?}", target.name);
}

#[test]
fn one_more_layer_is_as_much_work_however_many_there_are() {
    for target in [Target::cpu(), Target::wgpu()] {
        check(&target, false, [100, 200, 400]);
        // Of so many that each value is still large enough beside all that are kept.
        check(&target, true, [40, 80, 160]);
    }
}
