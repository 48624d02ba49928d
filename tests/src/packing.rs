//! What the runtime makes for packed programs, for the interpreter.

use alip_compiler::ir::{Evaluated, Graph, Model, Value, interpret};
use alip_plan::packing::{self, Group, Role, lengths_output, pack};

use crate::compiled::Values;

/// Runs the program that computes lengths: those of each group.
pub fn lengths(program: &Graph, inputs: &Values) -> Vec<Vec<i32>> {
    let outputs = interpret(program, inputs, &Values::new()).expect("it reads inputs only").outputs;
    let of = |group| outputs.get(&lengths_output(group)).map(|value| value.data.iter().map(|x| *x as i32).collect());
    (0..).map_while(of).collect()
}

/// The inputs of a packed program that the caller does not give. Panics when the rows do not fit.
pub fn packing_inputs(groups: &[Group], lengths: &[Vec<i32>], rows: &[u64], program: &Graph) -> Values {
    let packed: Vec<_> = (groups.iter().zip(lengths).zip(rows))
        .map(|((group, lengths), rows)| pack(lengths, group.context, *rows).expect("the rows fit"))
        .collect();
    let mut inputs = Values::new();
    for (name, id) in &program.inputs {
        if let Some((group, role)) = Role::of_input(name) {
            let data = packed[group].get(role).iter().map(|x| f64::from(*x)).collect();
            inputs.insert(name.clone(), Value::new(program.ty(*id).clone(), data));
        }
    }
    inputs
}

/// Runs a program as the runtime does: if there are several by number of rows, the smallest that holds the batch. Also the
/// rows it has.
pub fn run(model: &Model, program: &str, inputs: &Values, state: &Values) -> (Evaluated, Vec<u64>) {
    let whole = &model.programs[program];
    let Some(packed) = model.packed.get(program) else {
        return (interpret(whole, inputs, state).expect("the program runs"), Vec::new());
    };
    let lengths = lengths(&packed.lengths, inputs);
    let groups = packed.groups.iter().zip(&lengths);
    let live: Vec<u64> = groups.map(|(group, lengths)| packing::rows(lengths, group.context)).collect();
    let bound: Vec<u64> = packed.groups.iter().map(|group| group.samples * group.context).collect();
    let holds = |rows: &[u64]| live.iter().zip(rows).all(|(live, rows)| live <= rows);
    let smallest = packed.fewer.iter().find(|(rows, _)| holds(rows));
    let (rows, graph) = smallest.map_or((&bound, whole), |(rows, graph)| (rows, graph));
    let mut inputs = inputs.clone();
    inputs.extend(packing_inputs(&packed.groups, &lengths, rows, graph));
    (interpret(graph, &inputs, state).expect("the program runs"), rows.clone())
}
