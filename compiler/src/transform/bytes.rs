//! Images as a loader has them: bytes `[B, H, W, 3]`, of which a program makes what its pipeline calls `normalize_rgb`.
//!
//! A batch then takes a quarter of the memory and of the way to the device, and whoever reads an image first casts and
//! scales it on the way (`schedule/prologue`). The numbers are those of `(x / 255 - mean) / std`, spelled as `x * scale + shift`
//! with both factors rounded to f32: with `u` = 2^-24, within `u (2 |x scale| + |shift| + |y|)` of the exact `y` (to first
//! order), where the loader's table is within `u |y|`.
//!
//! Invariant: what a program means stays, but for the dtype and layout of these inputs. This is the last pass from graph to
//! graph, so that all others decide as they do for images in f32.

use std::collections::BTreeMap;

use alip_plan::pipeline::Normalization;

use super::fault;
use crate::diag::Diagnostics;
use crate::ir::{Builder, DType, Graph, NodeId, Shape, TensorType};
use crate::ops::{Op, OpError};

/// The program with these inputs in bytes, where it has them.
///
/// # Errors
/// A node its op refuses: a fault of this pass.
pub fn in_bytes(graph: Graph, images: &BTreeMap<String, Normalization>) -> Result<Graph, Diagnostics> {
    let found = |name: &str, ty: &TensorType| {
        let sizes = ty.shape.sizes();
        images.get(name).filter(|_| ty.dtype == DType::F32 && matches!(sizes.as_slice(), [_, 3, _, _]))
    };
    if !graph.inputs.iter().any(|(name, id)| found(name, graph.ty(*id)).is_some()) {
        return Ok(graph);
    }
    let mut new = graph.successor();
    let mut map: Vec<NodeId> = Vec::with_capacity(graph.nodes().len());
    let mut inputs = BTreeMap::new();
    for id in graph.ids() {
        let node = graph.node(id);
        let image = match &node.op {
            Op::Input { name, ty } => found(name, ty).map(|how| (name, ty, how)),
            _ => None,
        };
        let made = match image {
            Some((name, ty, how)) => {
                let mut builder = Builder::new(&mut new, node.origin);
                let made = image_of_bytes(&mut builder, name, &ty.shape, how);
                let (bytes, image) = made.map_err(|error| fault("bytes", &graph, id, &error))?;
                inputs.insert(id, bytes);
                image
            }
            None => new.push(node, node.inputs.iter().map(|input| map[input.index()]).collect()),
        };
        map.push(made);
    }
    new.take_names(&graph, |id| Some(map[id.index()]));
    for (name, id) in &graph.inputs {
        new.inputs.insert(name.clone(), inputs.get(id).copied().unwrap_or(map[id.index()]));
    }
    Ok(new)
}

/// An input in bytes, and the image `[B, 3, H, W]` of it.
fn image_of_bytes(
    b: &mut Builder<'_>,
    name: &str,
    shape: &Shape,
    how: &Normalization,
) -> Result<(NodeId, NodeId), OpError> {
    let rows: Shape = [0, 2, 3, 1].iter().map(|dim| shape.0[*dim]).collect();
    let bytes = b.input(name, TensorType { dtype: DType::U8, shape: rows })?;
    // Cast first: whoever cannot read the planes as they lie has them stored, and bytes are an input's type alone.
    let levels = b.cast(bytes, DType::F32)?;
    let levels = b.transpose(levels, &[0, 3, 1, 2])?;
    let channel = b.iota([3, 1, 1].into(), 0)?;
    let scale = by_channel(b, channel, how.scale())?;
    let shift = by_channel(b, channel, how.shift())?;
    let scaled = b.mul(levels, scale)?;
    Ok((bytes, b.add(scaled, shift)?))
}

/// A number for each channel.
fn by_channel(b: &mut Builder<'_>, channel: NodeId, [red, green, blue]: [f64; 3]) -> Result<NodeId, OpError> {
    let mut number = b.scalar(blue)?;
    if red == blue && green == blue {
        return Ok(number);
    }
    for (index, value) in [(1.0, green), (0.0, red)] {
        let (index, value) = (b.constant(index, DType::I32)?, b.scalar(value)?);
        let here = b.eq(channel, index)?;
        number = b.select(here, value, number)?;
    }
    Ok(number)
}
