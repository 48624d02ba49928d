//! The evaluation body of a pipeline that has none of its own; see [`super::Pipeline::body`].

use std::collections::{BTreeMap, BTreeSet};

use super::ops::{CenterCrop, Evaluation, Filter, Resize, ResizeShorter};
use super::{PipelineNode, PipelineOp};

/// What is known of the training body so far, by the names of its values.
#[derive(Default)]
struct Derived {
    body: Vec<PipelineNode>,
    /// Values that another one stands for.
    aliases: BTreeMap<String, String>,
    /// Windows that were drawn and are the whole image.
    windows: BTreeSet<String>,
    /// Images of what was in such windows.
    cropped: BTreeSet<String>,
}

/// The body of evaluation.
pub(super) fn derived(nodes: &[PipelineNode]) -> Vec<PipelineNode> {
    let further = nodes.iter().filter(|node| matches!(node.op, PipelineOp::Further { .. }));
    let more: BTreeSet<&String> = further.flat_map(|node| &node.inputs).collect();
    let mut derived = Derived::default();
    for node in nodes {
        derived.add(node, more.contains(&node.name));
    }
    let Derived { mut body, windows, .. } = derived;
    let read: BTreeSet<String> = body.iter().flat_map(|node| node.inputs.iter().cloned()).collect();
    body.retain(|node| !windows.contains(&node.name) || read.contains(&node.name));
    body
}

impl Derived {
    /// Adds what a node of the training body is in evaluation; `more` of its results than the first may be read.
    fn add(&mut self, training: &PipelineNode, more: bool) {
        let mut node = training.clone();
        for input in &mut node.inputs {
            if let Some(same) = self.aliases.get(input) {
                input.clone_from(same);
            }
        }
        let first = training.inputs.first();
        let of_window = first.is_some_and(|input| self.cropped.contains(input));
        let in_window = training.inputs.get(1).is_some_and(|window| self.windows.contains(window));
        match node.op.evaluation() {
            Evaluation::Nothing(neutral) => {
                self.frame(&node.name, of_window);
                match node.inputs.first() {
                    Some(input) if !more => {
                        self.aliases.insert(node.name, input.clone());
                    }
                    _ => self.body.push(PipelineNode { op: neutral, ..node }),
                }
            }
            Evaluation::Instead(op) => {
                if matches!(op, PipelineOp::WholeWindow(_)) {
                    self.windows.insert(node.name.clone());
                }
                self.body.push(PipelineNode { op, ..node });
            }
            Evaluation::SameFrame => {
                self.frame(&node.name, of_window);
                self.body.push(node);
            }
            Evaluation::Same => match (&node.op, node.inputs.as_slice()) {
                (PipelineOp::DecodeRgb(_), [jpeg, _]) if in_window => {
                    self.frame(&node.name, true);
                    self.body.push(PipelineNode { inputs: vec![jpeg.clone()], ..node });
                }
                (PipelineOp::Crop(_), [image, _]) if in_window => {
                    self.frame(&node.name, true);
                    self.aliases.insert(node.name, image.clone());
                }
                (&PipelineOp::Resize(Resize { height, width, .. }), [_]) if of_window => {
                    // A name no spec can write.
                    let shorter = format!("{}'shorter", node.name);
                    let op = ResizeShorter { size: height.max(width), filter: Filter::Bicubic }.into();
                    self.body.push(PipelineNode { name: shorter.clone(), op, inputs: node.inputs });
                    let op = CenterCrop { height, width }.into();
                    self.body.push(PipelineNode { name: node.name, op, inputs: vec![shorter] });
                }
                _ => self.body.push(node),
            },
        }
    }

    /// An image shows what is in a random window.
    fn frame(&mut self, name: &str, of_window: bool) {
        if of_window {
            self.cropped.insert(name.to_string());
        }
    }
}
