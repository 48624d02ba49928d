//! Register code: a plan's SSA code made ready to run over tiles.
//!
//! Values live in cells, which are entries of a table of pointers: tile registers (4 KiB each, assigned by linear scan),
//! single values, constants, row slots, and memory itself where the lanes of a view are adjacent. Running a tile is
//! one indirect call per instruction.
//!
//! Invariants:
//! - A destination never overlaps an argument, so that loops vectorise without checks.
//! - What does not vary within a tile is computed once per tile; what does not vary at all, once per task.
//! - A value loaded in place is copied first if a store to the same memory comes before its last use.

use alip_plan::DType;
use alip_plan::check::register_type;
use alip_plan::kernel::{Code, Instr, ScalarOp};

use super::grid::{Access, Affine, Grid, Walk};
use super::isa::{Form, LaneFn, Loops, UniformFn};

/// Index into the pointer table.
pub(super) type Cell = u16;

/// One thing to do for a tile.
#[derive(Clone, Debug)]
pub(super) enum Op {
    /// A loop over the lanes, or over one lane.
    Lanes { run: LaneFn, d: Cell, args: [Cell; 3], one: bool },
    /// Lanes of a view that are not adjacent or not 32 bits wide.
    Load { view: u16, d: Cell, one: bool },
    /// The opposite.
    Store { view: u16, a: Cell },
    /// Repeats a single value.
    Fill { d: Cell, a: Cell },
    /// The value of an affine map of the coordinates.
    Index { map: u16, d: Cell, one: bool },
    /// Random numbers from seed, step and index, which step by 0 or 1 lane.
    Uniform { run: UniformFn, stream: u64, d: Cell, args: [(Cell, usize); 3], one: bool },
    /// Repeats each row's slot along the row.
    Expand { d: Cell, a: Cell },
}

/// How the lanes of a view lie.
#[derive(Clone, Debug)]
pub(super) enum Layout {
    /// 32-bit lanes at adjacent elements.
    Adjacent,
    /// One 32-bit element for all lanes.
    Single,
    /// Anything else: loops with strides of the element and, if gathered, of the index.
    Walk(Walk),
}

/// A view of a program.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) access: Access,
    pub(super) layout: Layout,
    /// Whether it is the same for all tiles.
    pub(super) fixed: bool,
    /// Whether a cell points to it.
    pub(super) pointed: bool,
}

/// How slots look to the code of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slots {
    /// One value for the whole tile.
    Single,
    /// One value per lane.
    Lanes,
    /// One value per row of this many lanes.
    Rows(usize),
}

/// What code is translated for.
pub(super) struct Context<'a> {
    pub(super) loops: &'a Loops,
    pub(super) grid: &'a Grid,
    /// Views over the grid's dimensions.
    pub(super) accesses: &'a [Access],
    /// Coordinates that `Index` reads, over the grid's dimensions.
    pub(super) indices: &'a [Affine],
    pub(super) slots: (u16, Slots),
    /// For each operand, the first one that shares memory with it.
    pub(super) alias: &'a [usize],
}

/// Code ready to run.
#[derive(Clone, Debug)]
pub(super) struct Program {
    /// Once per task.
    pub(super) prologue: Vec<Op>,
    /// Once per tile.
    pub(super) body: Vec<Op>,
    pub(super) places: Vec<Place>,
    pub(super) indices: Vec<(Affine, Walk)>,
    pub(super) constants: Vec<u32>,
    /// Cells of the values asked for.
    pub(super) results: Vec<Cell>,
    pub(super) layout: Cells,
    pub(super) registers: usize,
    /// Lanes of a row, where slots repeat along rows.
    pub(super) row: usize,
}

/// Where each kind of cell starts in the pointer table; the product is cell 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cells {
    pub(super) slots: usize,
    pub(super) views: usize,
    pub(super) constants: usize,
    pub(super) singles: usize,
    pub(super) registers: usize,
}

/// The cell of the product's value.
pub(super) const PRODUCT: Cell = 0;

/// Where a value is, and how far it varies.
#[derive(Clone, Copy)]
struct Value {
    cell: Cell,
    varies: Varies,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Varies {
    Never,
    ByTile,
    ByLane,
}

/// Translates code; `results` are values that must be in lanes at the end.
pub(super) fn translate(code: &Code, results: &[u16], context: &Context<'_>) -> Program {
    let results: Vec<u16> = results.iter().map(|&result| stored_value(code, result)).collect();
    Translator::new(code, &results, context).run(&results)
}

/// The value itself, where a store yields it.
fn stored_value(code: &Code, mut value: u16) -> u16 {
    while let Some(Instr { op: ScalarOp::Store(_), args, .. }) = code.instrs.get(value as usize) {
        value = args[0];
    }
    value
}

fn without_store_uses(code: &Code) -> Vec<Instr> {
    let resolve = |instr: &Instr| Instr { args: instr.args.map(|arg| stored_value(code, arg)), ..*instr };
    code.instrs.iter().map(resolve).collect()
}

struct Translator<'a> {
    /// The code, with uses of a store referring to what it stored.
    code: Vec<Instr>,
    context: &'a Context<'a>,
    last_use: Vec<usize>,
    values: Vec<Option<Value>>,
    /// Values in each register, for liveness; None is free.
    registers: Vec<Option<usize>>,
    singles: usize,
    program: Program,
}

impl<'a> Translator<'a> {
    fn new(code: &'a Code, results: &[u16], context: &'a Context<'a>) -> Translator<'a> {
        let code = without_store_uses(code);
        let mut last_use = vec![0; code.len()];
        for (index, instr) in code.iter().enumerate() {
            for &arg in &instr.args[..instr.op.arity()] {
                last_use[arg as usize] = index;
            }
        }
        for &result in results {
            last_use[result as usize] = usize::MAX;
        }
        let slots = 1;
        let views = slots + context.slots.0 as usize;
        let constants = views + context.accesses.len();
        let singles = constants + code.len();
        let layout = Cells { slots, views, constants, singles, registers: singles + 2 * code.len() };
        let program = Program {
            prologue: Vec::new(),
            body: Vec::new(),
            places: context.accesses.iter().map(|access| place(access, context.grid)).collect(),
            indices: Vec::new(),
            constants: Vec::new(),
            results: Vec::new(),
            layout,
            registers: 0,
            row: if let Slots::Rows(row) = context.slots.1 { row } else { 1 },
        };
        Translator {
            values: vec![None; code.len()],
            code,
            context,
            last_use,
            registers: Vec::new(),
            singles: 0,
            program,
        }
    }

    fn run(mut self, results: &[u16]) -> Program {
        for index in 0..self.code.len() {
            self.instr(index);
            self.free(index);
        }
        for &result in results {
            let cell = self.in_lanes(result as usize);
            self.program.results.push(cell);
        }
        self.program.registers = self.registers.len();
        self.program
    }

    fn instr(&mut self, index: usize) {
        let instr = self.code[index];
        match instr.op {
            ScalarOp::Load(view) => {
                let used = self.last_use[index];
                let overwritten = self.code.iter().enumerate().any(|(at, other)| {
                    matches!(other.op, ScalarOp::Store(stored) if at > index && at <= used && self.aliases(stored, view))
                });
                if overwritten {
                    self.copy_load(index, view);
                }
                // Otherwise it is loaded where it is first used.
            }
            ScalarOp::Store(view) => {
                self.store(instr.args[0] as usize, view);
            }
            ScalarOp::Const(_) | ScalarOp::Index(_) | ScalarOp::Slot(_) | ScalarOp::Product => {}
            _ => self.compute(index, &instr),
        }
    }

    /// Whether two views may touch the same memory.
    fn aliases(&self, a: u16, b: u16) -> bool {
        let class = |view: u16| self.context.alias[self.context.accesses[view as usize].operand];
        class(a) == class(b)
    }

    fn emit(&mut self, varies: Varies, op: Op) {
        if varies == Varies::Never { self.program.prologue.push(op) } else { self.program.body.push(op) }
    }

    fn compute(&mut self, index: usize, instr: &Instr) {
        let arity = instr.op.arity();
        let args: Vec<usize> = instr.args[..arity].iter().map(|&arg| arg as usize).collect();
        let mut values: Vec<Value> = args.iter().map(|&arg| self.value(arg)).collect();
        let varies = values.iter().map(|value| value.varies).max().unwrap_or(Varies::Never);
        let one = varies != Varies::ByLane;
        if let ScalarOp::Uniform { stream, lane } = instr.op {
            let d = self.destination(index, varies);
            let args = [0, 1, 2].map(|n| (values[n].cell, usize::from(values[n].varies == Varies::ByLane)));
            let run = (self.context.loops.uniform)(lane);
            self.emit(varies, Op::Uniform { run, stream, d, args, one });
            return;
        }
        let single = |value: &Value| !one && value.varies != Varies::ByLane;
        let form = match values.as_slice() {
            [a, b] if single(a) && !single(b) => Form::FirstScalar,
            [_, b] if single(b) => Form::LastScalar,
            [_, b, c] if single(b) && single(c) => Form::BothScalar,
            [_, b, _] if single(b) => Form::FirstScalar,
            [_, _, c] if single(c) => Form::LastScalar,
            _ => Form::Lanes,
        };
        // A choice by a single condition, rare, goes through lanes.
        if instr.op == ScalarOp::Select && single(&values[0]) {
            values[0].cell = self.in_lanes(args[0]);
        }
        let d = self.destination(index, varies);
        let cell = |n: usize| values.get(n).map_or(PRODUCT, |value| value.cell);
        let args = [cell(0), cell(1), cell(2)];
        // `check` admits only operations that have a loop here.
        if let Some(run) = (self.context.loops.lanes)(instr.op, instr.dtype, form) {
            self.emit(varies, Op::Lanes { run, d, args, one });
        }
    }

    /// The value of an instruction, loading it now if nobody has asked before.
    fn value(&mut self, index: usize) -> Value {
        if let Some(value) = self.values[index] {
            return value;
        }
        let layout = self.program.layout;
        let value = match self.code[index].op {
            ScalarOp::Const(constant) => {
                let bits = match self.code[index].dtype {
                    DType::F32 => (constant.0 as f32).to_bits(),
                    DType::Bool => u32::from(constant.0 != 0.0),
                    _ => constant.0 as i32 as u32,
                };
                self.program.constants.push(bits);
                let cell = (layout.constants + self.program.constants.len() - 1) as Cell;
                Value { cell, varies: Varies::Never }
            }
            ScalarOp::Slot(slot) => {
                let cell = (layout.slots + slot as usize) as Cell;
                match self.context.slots.1 {
                    Slots::Single => Value { cell, varies: Varies::ByTile },
                    Slots::Lanes => Value { cell, varies: Varies::ByLane },
                    Slots::Rows(_) => {
                        let d = self.register(index);
                        self.emit(Varies::ByTile, Op::Expand { d, a: cell });
                        Value { cell: d, varies: Varies::ByLane }
                    }
                }
            }
            ScalarOp::Product => Value { cell: PRODUCT, varies: Varies::ByLane },
            ScalarOp::Index(dim) => {
                let map = self.context.indices[dim as usize].clone();
                let walk = self.context.grid.walk(&[&map]);
                let varies = match (walk.still(), map.strides.iter().all(|&stride| stride == 0)) {
                    (true, true) => Varies::Never,
                    (true, false) => Varies::ByTile,
                    _ => Varies::ByLane,
                };
                self.program.indices.push((map, walk));
                let map = (self.program.indices.len() - 1) as u16;
                let d = self.destination(index, varies);
                self.emit(varies, Op::Index { map, d, one: varies != Varies::ByLane });
                Value { cell: d, varies }
            }
            ScalarOp::Load(view) => self.load(index, view),
            // Computed values are set when they are computed.
            _ => Value { cell: PRODUCT, varies: Varies::ByLane },
        };
        self.values[index] = Some(value);
        value
    }

    fn varies(&self, view: u16) -> Varies {
        let place = &self.program.places[view as usize];
        match (&place.layout, place.fixed) {
            (Layout::Single, true) => Varies::Never,
            (Layout::Single, false) => Varies::ByTile,
            (Layout::Walk(walk), fixed) if walk.still() => {
                if fixed {
                    Varies::Never
                } else {
                    Varies::ByTile
                }
            }
            _ => Varies::ByLane,
        }
    }

    fn view_cell(&mut self, view: u16) -> Cell {
        self.program.places[view as usize].pointed = true;
        (self.program.layout.views + view as usize) as Cell
    }

    fn load(&mut self, index: usize, view: u16) -> Value {
        let varies = self.varies(view);
        if !matches!(self.program.places[view as usize].layout, Layout::Walk(_)) {
            return Value { cell: self.view_cell(view), varies };
        }
        let d = self.destination(index, varies);
        self.emit(varies, Op::Load { view, d, one: varies != Varies::ByLane });
        Value { cell: d, varies }
    }

    /// Loads into a register or single cell even if the lanes could be used in place.
    fn copy_load(&mut self, index: usize, view: u16) {
        let loaded = self.load(index, view);
        let in_place = !matches!(self.program.places[view as usize].layout, Layout::Walk(_));
        let mut value = loaded;
        if in_place && let Some(run) = (self.context.loops.lanes)(ScalarOp::Store(view), DType::I32, Form::Lanes) {
            value.cell = self.destination(index, loaded.varies);
            let args = [loaded.cell, PRODUCT, PRODUCT];
            self.emit(loaded.varies, Op::Lanes { run, d: value.cell, args, one: loaded.varies != Varies::ByLane });
        }
        self.values[index] = Some(value);
    }

    fn store(&mut self, arg: usize, view: u16) {
        let value = self.value(arg);
        let direct = !matches!(self.program.places[view as usize].layout, Layout::Walk(_));
        let lanes = self.context.grid.lanes() > 1;
        if direct {
            let d = self.view_cell(view);
            if value.cell == d {
                return; // computed where it belongs
            }
            if lanes && value.varies != Varies::ByLane {
                self.program.body.push(Op::Fill { d, a: value.cell });
            } else if let Some(run) = (self.context.loops.lanes)(ScalarOp::Store(view), DType::I32, Form::Lanes) {
                self.program.body.push(Op::Lanes { run, d, args: [value.cell, PRODUCT, PRODUCT], one: false });
            }
            return;
        }
        let a = if lanes { self.in_lanes(arg) } else { value.cell };
        self.program.body.push(Op::Store { view, a });
    }

    /// The cell of a value with all its lanes, repeating a single value if need be.
    fn in_lanes(&mut self, index: usize) -> Cell {
        let value = self.value(index);
        if value.varies == Varies::ByLane || self.context.grid.lanes() == 1 {
            return value.cell;
        }
        // A register that lives until this user is done; later users repeat it again.
        let d = self.register(index);
        self.program.body.push(Op::Fill { d, a: value.cell });
        d
    }

    /// Where the result of an instruction goes: memory, if it is stored to adjacent lanes that nothing else touches.
    fn destination(&mut self, index: usize, varies: Varies) -> Cell {
        let cell = if varies == Varies::ByLane {
            match self.stored_in_place(index) {
                Some(view) => self.view_cell(view),
                None => self.register(index),
            }
        } else {
            self.singles += 1;
            (self.program.layout.singles + self.singles - 1) as Cell
        };
        self.values[index] = Some(Value { cell, varies });
        cell
    }

    fn stored_in_place(&self, index: usize) -> Option<u16> {
        if matches!(self.code[index].op, ScalarOp::Load(_) | ScalarOp::Index(_)) {
            return None; // a copy loop, or lanes that are written piecewise
        }
        let view = self.code[index..].iter().find_map(|instr| match instr.op {
            ScalarOp::Store(view) if instr.args[0] as usize == index => Some(view),
            _ => None,
        })?;
        let others = self.code.iter().filter_map(|instr| match instr.op {
            ScalarOp::Load(other) => Some(other),
            ScalarOp::Store(other) if instr.args[0] as usize != index || other != view => Some(other),
            _ => None,
        });
        let indexed = self.context.accesses.iter().filter_map(|access| access.gather.as_ref());
        let class = self.context.alias[self.context.accesses[view as usize].operand];
        let free = others.into_iter().all(|other| !self.aliases(view, other))
            && indexed.into_iter().all(|gather| self.context.alias[gather.operand] != class);
        (free && matches!(self.program.places[view as usize].layout, Layout::Adjacent)).then_some(view)
    }

    fn register(&mut self, index: usize) -> Cell {
        let free = self.registers.iter().position(Option::is_none).unwrap_or(self.registers.len());
        if free == self.registers.len() {
            self.registers.push(None);
        }
        self.registers[free] = Some(index);
        (self.program.layout.registers + free) as Cell
    }

    /// Frees registers whose values nobody uses after `index`.
    fn free(&mut self, index: usize) {
        for register in &mut self.registers {
            if register.is_some_and(|value| self.last_use[value] <= index) {
                *register = None;
            }
        }
    }
}

fn place(access: &Access, grid: &Grid) -> Place {
    let mut maps = vec![&access.element];
    maps.extend(access.gather.as_ref().map(|gather| &gather.index));
    let walk = grid.walk(&maps);
    let word = access.dtype.bytes() == 4 && register_type(access.dtype) == access.dtype;
    let layout = if word && walk.still() {
        Layout::Single
    } else if word && walk.linear() == Some(1) {
        Layout::Adjacent
    } else {
        Layout::Walk(walk)
    };
    let fixed = maps.iter().all(|map| map.strides.iter().all(|&stride| stride == 0));
    Place { access: access.clone(), layout, fixed, pointed: false }
}
