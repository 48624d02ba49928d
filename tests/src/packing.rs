//! What the runtime makes for packed programs, for the interpreter: as [`alip_compiler::trust::rows`], for what must work; and
//! batches whose texts are of all lengths.

use alip_compiler::ir::{DType, Evaluated, Graph, Model, Value, interpret};
use alip_compiler::trust::rows::{self, chosen};
use alip_plan::packing::{Group, Role};
use alip_plan::philox;

use crate::compiled::{Values, rounded};

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

/// What the texts of a batch are like.
#[derive(Clone, Copy, Debug)]
pub enum Texts {
    /// The end first, and nothing else.
    Empty,
    /// The end last.
    Full,
    /// About a third of the context.
    Short,
    /// Lengths of all kinds, with ends that repeat, and padding ids inside.
    Mixed,
}

/// A batch for a program: noise, and texts whose end is the largest id.
pub fn batch(graph: &Graph, texts: Texts, vocabulary: u64) -> Values {
    let mut values = Values::new();
    for (stream, (name, id)) in graph.inputs.iter().enumerate() {
        if Role::of_input(name).is_some() {
            continue;
        }
        let ty = graph.ty(*id).clone();
        let draw = |i: u64| philox::philox4x32([i as u32, stream as u32, 9, 0], [3, 5])[0];
        let count = ty.shape.elements();
        let data = match ty.dtype {
            DType::I32 => {
                let context = ty.shape.size(1);
                let token = |i: u64| {
                    let (text, at) = (i / context, i % context);
                    let end = match texts {
                        Texts::Empty => 0,
                        Texts::Full => context - 1,
                        Texts::Short => 1 + u64::from(draw(text + 1000)) % (context / 3),
                        Texts::Mixed => u64::from(draw(text + 2000)) % context,
                    };
                    let repeats = matches!(texts, Texts::Mixed) && text % 3 == 0 && at == context - 1;
                    match at {
                        at if at == end || repeats => (vocabulary - 1) as f64,
                        // Padding is id 0, which stands inside of texts too.
                        at if at < end => {
                            f64::from(draw(i)) % (vocabulary - 1) as f64 * f64::from(u8::from(at % 4 != 2))
                        }
                        _ => 0.0,
                    }
                };
                (0..count).map(token).map(f64::floor).collect()
            }
            _ => (0..count).map(|i| f64::from(philox::uniform(draw(i)) * 4.0 - 2.0)).collect(),
        };
        values.insert(name.clone(), Value::new(ty, data));
    }
    values
}

/// The state that a run starts with, as f32 devices hold it.
pub fn start(model: &Model) -> Values {
    let seed = Values::from([("seed".to_owned(), Value::scalar(DType::I32, 3.0))]);
    let mut state = interpret(&model.programs["init"], &seed, &Values::new()).expect("init runs").updates;
    state.insert("train.total_steps".into(), Value::scalar(DType::I32, 50.0));
    rounded(&state)
}
