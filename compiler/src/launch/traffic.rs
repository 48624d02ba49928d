//! How much memory a kernel moves.

use alip_plan::DType;
use alip_plan::kernel::{Attention, Code, Loop, Map, Product, Reduction, ScalarOp, View};

/// Bytes that a view touches over a domain of these sizes: of what it repeats, one.
fn touched(view: &View, domain: &[u64]) -> u64 {
    let over = |varies: &dyn Fn(usize) -> bool| -> u64 {
        domain.iter().enumerate().filter(|(dim, _)| varies(*dim)).map(|(_, size)| size).product()
    };
    let moves = |strides: &[i64], dim: usize| strides.get(dim).is_some_and(|stride| *stride != 0);
    let Some(gather) = &view.gather else {
        return over(&|dim| moves(&view.strides, dim)) * view.dtype.bytes();
    };
    let picked = over(&|dim| moves(&view.strides, dim) || moves(&gather.strides, dim));
    picked * view.dtype.bytes() + over(&|dim| moves(&gather.strides, dim)) * DType::I32.bytes()
}

/// Views that code reads and views that it writes: how often each moves, at most once either way.
fn moves<'a>(codes: impl Iterator<Item = &'a Code>, views: &[View], domain: &[u64]) -> u64 {
    let (mut read, mut written) = (vec![false; views.len()], vec![false; views.len()]);
    for instr in codes.flat_map(|code| &code.instrs) {
        let (list, view) = match instr.op {
            ScalarOp::Load(view) => (&mut read, view),
            ScalarOp::Store(view) => (&mut written, view),
            _ => continue,
        };
        if let Some(moved) = list.get_mut(usize::from(view)) {
            *moved = true;
        }
    }
    let times = read.iter().zip(&written).map(|(read, written)| u64::from(*read) + u64::from(*written));
    times.zip(views).map(|(times, view)| times * touched(view, domain)).sum()
}

/// Bytes that a kernel reads and writes, each element once: what memory moves as long as caches hold what is read again. Of a
/// table, the rows that are picked; of a value that is one part of a buffer, that part.
pub(crate) fn bytes_moved(kernel: &Loop) -> u64 {
    let (views, codes) = kernel.codes();
    let moved = |domain: &[u64]| moves(codes.iter().copied(), views, domain);
    match kernel {
        Loop::Map(Map { domain, .. }) => moved(domain),
        Loop::Reduction(Reduction { kept, reduced, .. }) => moved(&[kept.as_slice(), reduced].concat()),
        Loop::Product(Product { batch, m, n, k, a, b, .. }) => {
            let over = |sizes: [u64; 2]| [batch.as_slice(), &sizes].concat();
            touched(a, &over([*m, *k])) + touched(b, &over([*k, *n])) + moved(&over([*m, *n]))
        }
        Loop::Conv2d(conv) => {
            let domains = conv.domains();
            [&conv.a, &conv.b, &conv.out].into_iter().zip(&domains).map(|(view, domain)| touched(view, domain)).sum()
        }
        Loop::ScatterAdd(scatter) => {
            let views = [&scatter.index, &scatter.updates, &scatter.out];
            views.into_iter().zip(&scatter.domains()).map(|(view, domain)| touched(view, domain)).sum()
        }
        Loop::Attention(attention) => attention_moves(attention),
    }
}

fn attention_moves(attention: &Attention) -> u64 {
    let read = attention.inputs().into_iter().map(|(_, view, domain)| touched(view, &domain)).sum::<u64>();
    let results = attention.results.iter();
    read + results.map(|(result, view)| touched(view, &attention.domain(*result))).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use alip_plan::kernel::{Gather, Instr};

    fn view(strides: &[i64]) -> View {
        View { operand: 0, dtype: DType::F32, offset: 0, strides: strides.to_vec(), gather: None }
    }

    #[test]
    fn what_is_repeated_counts_once_and_what_is_overwritten_twice() {
        let instr = |op, args| Instr { op, dtype: DType::F32, args };
        // x[i, j] = x[i, j] + bias[j]; the bias is loaded twice.
        let instrs = vec![
            instr(ScalarOp::Load(0), [0, 0, 0]),
            instr(ScalarOp::Load(1), [0, 0, 0]),
            instr(ScalarOp::Load(1), [0, 0, 0]),
            instr(ScalarOp::Add, [0, 1, 0]),
            instr(ScalarOp::Store(0), [3, 0, 0]),
        ];
        let map = Map { domain: vec![6, 10], views: vec![view(&[10, 1]), view(&[0, 1])], code: Code { instrs } };
        assert_eq!(bytes_moved(&Loop::Map(map)), 4 * (60 + 60 + 10));
        let table = Gather { operand: 1, offset: 0, strides: vec![1, 0], stride: 10, limit: 1000 };
        let picked = View { gather: Some(table), ..view(&[0, 1]) };
        assert_eq!(touched(&picked, &[6, 10]), 4 * (60 + 6));
    }
}
