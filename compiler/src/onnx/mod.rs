//! Programs as ONNX files (opset 18), which take batches of any size.
//!
//! [`Exported::of`] resolves a spec for two batches and writes one node of ONNX, or a few, for each operation as it was written:
//! nothing is rewritten or fused first, which whoever runs the file does. [`Exported::file`] adds the weights.

mod nodes;
mod proto;
mod scalar;
mod sizes;

use prost::Message;

use self::nodes::Writer;
use self::proto::{GraphProto, ModelProto, OperatorSetIdProto, TensorProto};
use self::sizes::Pair;
use crate::diag::{Diagnostics, SourceMap};
use crate::ir::DType;
use crate::resolve::{Options, resolve};

/// Version of the operators: that in which all reductions take their axes alike.
const OPSET: i64 = 18;

/// Version of the file's own structure, which readers of that opset know.
const IR_VERSION: i64 = 8;

/// Two batches: small, since tensors have a largest size, and primes, so that no power or product of one is a multiple of the
/// other's.
const BATCHES: (u64, u64) = (7, 11);

/// Most bytes of a file, as of any protobuf message.
const MOST: u64 = (1 << 31) - 1;

/// Why a program cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum OnnxError {
    /// The spec is wrong.
    #[error("the spec cannot be resolved")]
    Spec(Diagnostics),
    /// There is no such program.
    #[error("`{graph}` has no program `{program}`; it has {known}")]
    NoProgram {
        /// Name of the graph.
        graph: String,
        /// The program.
        program: String,
        /// Those there are.
        known: String,
    },
    /// What a sample gives depends on how many others there are.
    #[error(
        "`{program}` cannot be exported for batches of any size: at `{place}` it depends on how many samples there are"
    )]
    KnowsBatch {
        /// The program.
        program: String,
        /// Node path.
        place: String,
    },
    /// An operation that ONNX has no match for.
    #[error("`{program}` cannot be exported: at `{place}` it uses {what}, which has no match in ONNX")]
    Unsupported {
        /// The program.
        program: String,
        /// Node path.
        place: String,
        /// The operation.
        what: String,
    },
    /// The weights are too large for one file.
    #[error("`{program}` has {bytes} bytes of weights, and an ONNX file holds at most {MOST}")]
    TooLarge {
        /// The program.
        program: String,
        /// Bytes of its weights.
        bytes: u64,
    },
}

/// A program without the numbers of its weights.
pub struct Exported {
    graph: GraphProto,
    /// What it reads of the state.
    pub weights: Vec<Weight>,
}

/// One operator of ONNX applied.
#[derive(Clone, Copy, Debug)]
pub struct OnnxNode<'a> {
    /// Its name, `MatMul`.
    pub operator: &'a str,
    /// Names of what it reads.
    pub inputs: &'a [String],
    /// Names of what it yields.
    pub outputs: &'a [String],
}

/// A state tensor that a program reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weight {
    /// Its path.
    pub path: String,
    /// Element type, F32 or I32.
    pub dtype: DType,
    /// Sizes.
    pub shape: Vec<u64>,
}

impl Exported {
    /// A program of a spec given by path or name.
    ///
    /// # Errors
    /// The spec is wrong or has no such program; the program depends on the size of the batch, or uses what ONNX has no match for.
    pub fn of(sources: &mut SourceMap, spec: &str, options: &Options, program: &str) -> Result<Exported, OnnxError> {
        let mut of_batch = |batch| {
            let options = Options { batch: Some(batch), ..options.clone() };
            resolve(sources, spec, &options).map_err(OnnxError::Spec)
        };
        let (first, second) = (of_batch(BATCHES.0)?, of_batch(BATCHES.1)?);
        let graph = |of: &'_ crate::ir::Model| match of.programs.get(program) {
            Some(graph) => Ok(graph.clone()),
            None => {
                let known = of.programs.keys().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
                Err(OnnxError::NoProgram { graph: of.name.clone(), program: program.into(), known })
            }
        };
        let (first, second) = (graph(&first.model)?, graph(&second.model)?);
        let live = |graph| crate::ir::eliminate_dead(&graph).map(|found| found.graph).map_err(OnnxError::Spec);
        let (first, second) = (live(first)?, live(second)?);
        let pair = Pair { first: &first, second: &second, batches: BATCHES };
        pair.check()?;
        Writer::new(pair).write()
    }

    /// Its nodes, in order.
    pub fn nodes(&self) -> impl Iterator<Item = OnnxNode<'_>> {
        self.graph.node.iter().map(|node| OnnxNode {
            operator: &node.op_type,
            inputs: &node.input,
            outputs: &node.output,
        })
    }

    /// Names of what is there before the first node: inputs, constants and weights.
    pub fn given(&self) -> impl Iterator<Item = &str> {
        let inputs = self.graph.input.iter().map(|input| input.name.as_str());
        let constants = self.graph.initializer.iter().map(|tensor| tensor.name.as_str());
        inputs.chain(constants).chain(self.weights.iter().map(|weight| weight.path.as_str()))
    }

    /// Names of what it yields.
    pub fn outputs(&self) -> impl Iterator<Item = &str> {
        self.graph.output.iter().map(|output| output.name.as_str())
    }

    /// The file, with the bytes that `read` gives for each weight: little-endian, row-major.
    ///
    /// # Errors
    /// The weights are too large, or `read` fails.
    pub fn file<E: From<OnnxError>>(
        mut self,
        mut read: impl FnMut(&Weight) -> Result<Vec<u8>, E>,
    ) -> Result<Vec<u8>, E> {
        let bytes = self.weights.iter().map(|weight| 4 * weight.shape.iter().product::<u64>()).sum();
        if bytes > MOST {
            return Err(OnnxError::TooLarge { program: self.graph.name, bytes }.into());
        }
        for weight in &self.weights {
            self.graph.initializer.push(TensorProto {
                dims: weight.shape.iter().map(|&size| size as i64).collect(),
                data_type: nodes::element(weight.dtype),
                name: weight.path.clone(),
                raw_data: read(weight)?,
            });
        }
        let model = ModelProto {
            ir_version: IR_VERSION,
            producer_name: "alip".into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            graph: Some(self.graph),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
        };
        Ok(model.encode_to_vec())
    }
}
