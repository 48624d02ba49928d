//! What the runtime makes for packed programs, for the interpreter: as [`alip_compiler::trust::rows`], for what must work.

use alip_compiler::ir::{Evaluated, Graph, Model, interpret};
use alip_compiler::trust::rows::{self, chosen};
use alip_plan::packing::Group;

use crate::compiled::Values;

/// Runs the program that computes lengths: those of each group.
pub fn lengths(program: &Graph, inputs: &Values) -> Vec<Vec<i32>> {
    rows::lengths(program, inputs).expect("it reads inputs only")
}

/// The inputs of a packed program that the caller does not give. Panics when the rows do not fit.
pub fn packing_inputs(groups: &[Group], lengths: &[Vec<i32>], rows: &[u64], program: &Graph) -> Values {
    rows::packing_inputs(groups, lengths, rows, program).expect("the rows fit")
}

/// Runs a program as the runtime does: if there are several by number of rows, the smallest that holds the batch. Also the
/// rows it has.
pub fn run(model: &Model, program: &str, inputs: &Values, state: &Values) -> (Evaluated, Vec<u64>) {
    let chosen = chosen(model, program, inputs).expect("the program is there");
    (interpret(chosen.graph, &chosen.inputs, state).expect("the program runs"), chosen.rows)
}
