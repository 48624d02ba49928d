//! Which program a batch runs of a packed one, and the inputs that the runtime makes for it, for the interpreter.

use alip_plan::packing::{self, Group, Role, lengths_output, pack};

use super::Values;
use crate::diag::{Diagnostic, Diagnostics};
use crate::ir::{Graph, Model, Value, interpret, name_with_rows};

/// The program that a batch runs.
#[derive(Clone, Debug)]
pub struct Chosen<'m> {
    /// Its name in a plan: `train@464`.
    pub name: String,
    /// The program.
    pub graph: &'m Graph,
    /// Rows of each group that it has; none if it is not packed.
    pub rows: Vec<u64>,
    /// Its inputs: the batch, and where rows are.
    pub inputs: Values,
}

/// Runs the program that computes lengths: those of each group.
///
/// # Errors
/// An input is missing or of another type.
pub fn lengths(program: &Graph, inputs: &Values) -> Result<Vec<Vec<i32>>, Diagnostics> {
    let result = interpret(program, inputs, &Values::new()).map_err(|error| Diagnostic::error(error.message))?;
    let of = |value: &Value| value.data.iter().map(|x| *x as i32).collect();
    Ok((0..).map_while(|group| result.outputs.get(&lengths_output(group)).map(of)).collect())
}

/// The inputs of a packed program that the caller does not give; none when the rows do not fit.
pub fn packing_inputs(groups: &[Group], lengths: &[Vec<i32>], rows: &[u64], program: &Graph) -> Option<Values> {
    let packed = groups.iter().zip(lengths).zip(rows);
    let packed: Vec<_> =
        packed.map(|((group, lengths), rows)| pack(lengths, group.context, *rows)).collect::<Option<_>>()?;
    let mut inputs = Values::new();
    for (name, id) in &program.inputs {
        if let Some((group, role)) = Role::of_input(name) {
            let data = packed.get(group)?.get(role).iter().map(|x| f64::from(*x)).collect();
            inputs.insert(name.clone(), Value::new(program.ty(*id).clone(), data));
        }
    }
    Some(inputs)
}

/// The program that the runtime takes for a batch: if there are several by number of rows, the smallest that holds it.
///
/// # Errors
/// There is no such program, or the batch lacks an input that lengths are computed from.
pub fn chosen<'m>(model: &'m Model, program: &str, inputs: &Values) -> Result<Chosen<'m>, Diagnostics> {
    let missing = || Diagnostic::error(format!("there is no program `{program}`"));
    let whole = model.programs.get(program).ok_or_else(missing)?;
    let mut chosen = Chosen { name: program.into(), graph: whole, rows: Vec::new(), inputs: inputs.clone() };
    let Some(packed) = model.packed.get(program) else { return Ok(chosen) };
    let lengths = lengths(&packed.lengths, inputs)?;
    let live = packed.groups.iter().zip(&lengths);
    let live: Vec<u64> = live.map(|(group, lengths)| packing::rows(lengths, group.context)).collect();
    let holds = |rows: &[u64]| live.iter().zip(rows).all(|(live, rows)| live <= rows);
    chosen.rows = packed.groups.iter().map(|group| group.samples * group.context).collect();
    if let Some((rows, graph)) = packed.fewer.iter().find(|(rows, _)| holds(rows)) {
        (chosen.name, chosen.graph, chosen.rows) = (name_with_rows(program, rows), graph, rows.clone());
    }
    let made = packing_inputs(&packed.groups, &lengths, &chosen.rows, chosen.graph);
    chosen.inputs.extend(made.ok_or_else(|| Diagnostic::error("internal: the largest program does not hold a batch"))?);
    Ok(chosen)
}
