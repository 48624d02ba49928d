//! The domain of a kernel while it is being made: refined dimensions, the views over them, and code that may refer to
//! coordinates as affine forms. At the end dimensions of size 1 vanish, and neighbours that every access walks as one
//! become one.

use alip_plan::kernel::{Code, Gather, Instr, ScalarOp, View};
use alip_plan::{DType, Real};
use indexmap::IndexSet;

use super::operands::Operands;
use crate::hash::HashMap;
use crate::ir::NodeId;
use crate::schedule::MemberId;

/// An affine form over the dimensions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Form {
    pub(super) offset: i64,
    pub(super) strides: Vec<i64>,
}

/// A view of a value, with affine forms over the dimensions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Access {
    pub(super) value: NodeId,
    pub(super) dtype: DType,
    pub(super) at: Form,
    pub(super) gather: Option<Picked>,
}

/// The data-dependent coordinate of an access.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Picked {
    pub(super) index: NodeId,
    pub(super) at: Form,
    pub(super) stride: i64,
    pub(super) limit: i64,
}

/// What an instruction of a [`Block`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum PreOp {
    Op(ScalarOp),
    /// The value of form `n`, I32.
    Form(usize),
}

/// Straight-line code under construction; equal instructions are one.
#[derive(Clone, Debug, Default)]
pub(super) struct Block {
    instrs: Vec<(PreOp, DType, [u16; 3])>,
    seen: HashMap<(PreOp, DType, [u16; 3]), u16>,
    /// Where the value of each member is, so that what many read is followed once.
    pub(super) members: HashMap<MemberId, u16>,
}

impl Block {
    pub(super) fn push(&mut self, op: PreOp, dtype: DType, args: &[u16]) -> u16 {
        let mut all = [0; 3];
        all[..args.len()].copy_from_slice(args);
        let key = (op, dtype, all);
        if let Some(value) = self.seen.get(&key) {
            return *value;
        }
        self.instrs.push(key);
        let value = (self.instrs.len() - 1) as u16;
        self.seen.insert(key, value);
        value
    }

    /// Arithmetic operations on floats, per point.
    pub(super) fn flops(&self) -> u64 {
        use ScalarOp::*;
        let free = |op: &PreOp| {
            matches!(
                op,
                PreOp::Form(_) | PreOp::Op(Const(_) | Index(_) | Load(_) | Store(_) | Slot(_) | Product | Cast(_))
            )
        };
        self.instrs.iter().filter(|(op, dtype, _)| dtype.is_float() && !free(op)).count() as u64
    }

    pub(super) fn is_empty(&self) -> bool {
        self.instrs.is_empty()
    }

    /// The views that are loaded and stored.
    pub(super) fn views(&self) -> impl Iterator<Item = (u16, bool)> + '_ {
        self.instrs.iter().filter_map(|(op, _, _)| match op {
            PreOp::Op(ScalarOp::Load(view)) => Some((*view, false)),
            PreOp::Op(ScalarOp::Store(view)) => Some((*view, true)),
            _ => None,
        })
    }
}

/// Dimensions and everything that refers to them.
#[derive(Clone, Debug, Default)]
pub(super) struct Domain {
    pub(super) sizes: Vec<u64>,
    /// Dimensions merge only within the same segment: `segments` are the ends of all but the last.
    pub(super) segments: Vec<usize>,
    pub(super) accesses: IndexSet<Access>,
    pub(super) forms: IndexSet<Form>,
}

impl Domain {
    pub(super) fn view(&mut self, access: Access) -> u16 {
        self.accesses.insert_full(access).0 as u16
    }

    pub(super) fn form(&mut self, form: Form) -> PreOp {
        PreOp::Form(self.forms.insert_full(form).0)
    }

    fn strides(&self) -> impl Iterator<Item = &[i64]> {
        let views = self.accesses.iter().map(|access| access.at.strides.as_slice());
        let picks = self.accesses.iter().filter_map(|access| Some(access.gather.as_ref()?.at.strides.as_slice()));
        views.chain(picks).chain(self.forms.iter().map(|form| form.strides.as_slice()))
    }

    /// Drops dimensions of size 1 before `fixed`, and merges neighbours there that every access walks as one.
    pub(super) fn simplify(&mut self, fixed: usize) {
        let mut dim = 0;
        let mut fixed = fixed;
        while dim < fixed {
            let border = self.segments.contains(&(dim + 1));
            let gone = if self.sizes[dim] == 1 {
                true
            } else if dim + 1 < fixed && !border {
                let inner = self.sizes[dim + 1] as i64;
                inner == 1 || self.strides().all(|strides| strides[dim] == strides[dim + 1] * inner)
            } else {
                false
            };
            if !gone {
                dim += 1;
                continue;
            }
            // Into the next dimension, whose stride stays; a size of 1 simply goes. A next dimension of size 1 goes itself.
            let victim = if self.sizes[dim] != 1 && self.sizes[dim + 1] == 1 { dim + 1 } else { dim };
            if self.sizes[victim] != 1 {
                self.sizes[dim + 1] *= self.sizes[dim];
            }
            self.remove(victim);
            fixed -= 1;
        }
    }

    fn remove(&mut self, dim: usize) {
        self.sizes.remove(dim);
        for end in &mut self.segments {
            if *end > dim {
                *end -= 1;
            }
        }
        self.rewrite(|strides| {
            strides.remove(dim);
        });
    }

    /// Exchanges two dimensions everywhere.
    pub(super) fn swap(&mut self, a: usize, b: usize) {
        self.sizes.swap(a, b);
        self.rewrite(|strides| strides.swap(a, b));
    }

    fn rewrite(&mut self, change: impl Fn(&mut Vec<i64>)) {
        // Distinct accesses stay distinct: what they differ in is the value, an offset or a stride along a real dimension.
        let accesses = std::mem::take(&mut self.accesses).into_iter().map(|mut access| {
            change(&mut access.at.strides);
            if let Some(picked) = &mut access.gather {
                change(&mut picked.at.strides);
            }
            access
        });
        self.accesses = accesses.collect();
        let forms = std::mem::take(&mut self.forms).into_iter().map(|mut form| {
            change(&mut form.strides);
            form
        });
        self.forms = forms.collect();
    }

    /// The finished views, with operands numbered by `operands`.
    pub(super) fn views(&self, operands: &mut Operands) -> Vec<View> {
        let view = |access: &Access| View {
            operand: operands.bind(access.value),
            dtype: access.dtype,
            offset: access.at.offset,
            strides: access.at.strides.clone(),
            gather: access.gather.as_ref().map(|picked| Gather {
                operand: operands.bind(picked.index),
                offset: picked.at.offset,
                strides: picked.at.strides.clone(),
                stride: picked.stride,
                limit: picked.limit,
            }),
        };
        self.accesses.iter().map(view).collect()
    }

    /// The finished code, and for each value of the block its value in the code.
    pub(super) fn code(&self, block: &Block) -> (Code, Vec<u16>) {
        let mut code = Code::default();
        let mut moved: Vec<u16> = Vec::new();
        for (op, dtype, args) in &block.instrs {
            let value = match op {
                PreOp::Op(op) => {
                    let mut to = [0; 3];
                    for (to, from) in to.iter_mut().zip(args).take(op.arity()) {
                        *to = moved[*from as usize];
                    }
                    emit(&mut code, *op, *dtype, to)
                }
                PreOp::Form(form) => self.form_code(&mut code, &self.forms[*form]),
            };
            moved.push(value);
        }
        (code, moved)
    }

    fn form_code(&self, code: &mut Code, form: &Form) -> u16 {
        let number = |code: &mut Code, x: i64| emit(code, ScalarOp::Const(Real(x as f64)), DType::I32, [0; 3]);
        let mut sum = None;
        for (dim, stride) in form.strides.iter().enumerate().filter(|(_, stride)| **stride != 0) {
            let mut term = emit(code, ScalarOp::Index(dim as u8), DType::I32, [0; 3]);
            if *stride != 1 {
                let factor = number(code, *stride);
                term = emit(code, ScalarOp::Mul, DType::I32, [term, factor, 0]);
            }
            sum = Some(match sum {
                None => term,
                Some(sum) => emit(code, ScalarOp::Add, DType::I32, [sum, term, 0]),
            });
        }
        match sum {
            None => number(code, form.offset),
            Some(sum) if form.offset == 0 => sum,
            Some(sum) => {
                let offset = number(code, form.offset);
                emit(code, ScalarOp::Add, DType::I32, [sum, offset, 0])
            }
        }
    }
}

fn emit(code: &mut Code, op: ScalarOp, dtype: DType, args: [u16; 3]) -> u16 {
    code.instrs.push(Instr { op, dtype, args });
    (code.instrs.len() - 1) as u16
}
