//! An independent check of memory plans: replays a program and proves that no live value is overwritten.
//!
//! It knows only the finished program, which value each step means to read and write, and which it may write over one that
//! it reads; nothing of lifetimes.

use std::collections::BTreeMap;

use alip_plan::{Buffer, Program, StateTensor};

use crate::hash::{HashMap, HashSet};

/// Names a value; equal names mean equal contents.
pub type Value = u64;

/// What a step means to do: buffers (indices into [`Program::buffers`]) with the values they should hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intent {
    /// Before the step.
    pub reads: Vec<(u32, Value)>,
    /// After the step.
    pub writes: Vec<(u32, Value)>,
    /// A buffer that is written and one that is read, which may be the same memory: every element is read before it is
    /// written, and by nothing else.
    pub in_place: Vec<(u32, u32)>,
}

/// What a whole program means to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intents {
    /// What inputs hold at the start.
    pub inputs: Vec<(u32, Value)>,
    /// What state tensors hold at the start, by position.
    pub before: Vec<Value>,
    /// One for each step.
    pub steps: Vec<Intent>,
    /// What outputs hold at the end.
    pub outputs: Vec<(u32, Value)>,
    /// What state tensors hold at the end, by position.
    pub after: Vec<Value>,
}

/// Which value the bytes of memory hold.
#[derive(Default)]
struct Memory {
    /// By segment and start: end and value.
    spans: HashMap<u32, BTreeMap<u64, (u64, Value)>>,
}

impl Memory {
    /// Writes a value; what it overlaps is gone, unless it is part of the same value.
    fn write(&mut self, buffer: &Buffer, value: Value) {
        let (start, end) = (buffer.offset, buffer.offset + buffer.bytes());
        let spans = self.spans.entry(buffer.segment).or_default();
        let hit: Vec<u64> =
            spans.range(..end).rev().take_while(|(_, (other, _))| *other > start).map(|(other, _)| *other).collect();
        for other in hit {
            spans.remove(&other);
        }
        spans.insert(start, (end, value));
    }

    fn holds(&self, buffer: &Buffer, value: Value) -> bool {
        let span = self.spans.get(&buffer.segment).and_then(|spans| spans.get(&buffer.offset));
        span == Some(&(buffer.offset + buffer.bytes(), value))
    }
}

/// The bytes of some buffers, in order.
struct Spans {
    /// Segment, start and end; the end of all up to here in the segment, and the buffer.
    spans: Vec<(u32, u64, u64, u64, u32)>,
}

impl Spans {
    fn new<'a>(reads: &[(u32, Value)], buffer: &impl Fn(u32) -> Result<&'a Buffer, String>) -> Result<Spans, String> {
        let span = |(index, _): &(u32, Value)| {
            let buffer = buffer(*index)?;
            let end = buffer.offset + buffer.bytes();
            Ok((buffer.segment, buffer.offset, end, end, *index))
        };
        let mut spans = reads.iter().map(span).collect::<Result<Vec<_>, String>>()?;
        spans.sort_unstable();
        for at in 1..spans.len() {
            if spans[at].0 == spans[at - 1].0 {
                spans[at].3 = spans[at].3.max(spans[at - 1].3);
            }
        }
        Ok(Spans { spans })
    }

    /// Those that share a byte with a buffer.
    fn over(&self, buffer: &Buffer) -> impl Iterator<Item = u32> {
        let (segment, start, end) = (buffer.segment, buffer.offset, buffer.offset + buffer.bytes());
        let before = self.spans.partition_point(|span| (span.0, span.1) < (segment, end));
        let near = self.spans[..before].iter().rev().take_while(move |span| span.0 == segment && span.3 > start);
        near.filter(move |span| span.2 > start).map(|span| span.4)
    }
}

/// Replays a program.
///
/// # Errors
/// The first buffer that does not hold what a step, an output or a state tensor needs.
pub fn check(program: &Program, state: &[StateTensor], intents: &Intents) -> Result<(), String> {
    let mut memory = Memory::default();
    let buffer = |index: u32| program.buffers.get(index as usize).ok_or_else(|| format!("no buffer {index}"));
    for (tensor, value) in state.iter().zip(&intents.before) {
        memory.write(&tensor.buffer, *value);
    }
    for (index, value) in &intents.inputs {
        memory.write(buffer(*index)?, *value);
    }
    for (number, intent) in intents.steps.iter().enumerate() {
        for (index, value) in &intent.reads {
            if !memory.holds(buffer(*index)?, *value) {
                return Err(format!("step {number} reads value {value} from buffer {index}, which does not hold it"));
            }
        }
        let reads = Spans::new(&intent.reads, &buffer)?;
        let in_place: HashSet<(u32, u32)> = intent.in_place.iter().copied().collect();
        for (index, value) in &intent.writes {
            let written = buffer(*index)?;
            for read in reads.over(written) {
                let same = read == *index || buffer(read)? == written;
                if !(same && in_place.contains(&(*index, read))) {
                    return Err(format!("step {number} writes value {value} over buffer {read}, which it reads"));
                }
            }
            memory.write(written, *value);
        }
        for (index, value) in &intent.writes {
            if !memory.holds(buffer(*index)?, *value) {
                return Err(format!("step {number} writes value {value} over another of its results"));
            }
        }
    }
    for (index, value) in &intents.outputs {
        if !memory.holds(buffer(*index)?, *value) {
            return Err(format!("output value {value} is not in buffer {index} at the end"));
        }
    }
    for (tensor, value) in state.iter().zip(&intents.after) {
        if !memory.holds(&tensor.buffer, *value) {
            return Err(format!("state `{}` does not hold value {value} at the end", tensor.path));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use alip_plan::DType;

    use super::*;

    fn program(offsets: &[u64]) -> Program {
        let buffer = |offset: &u64| Buffer { segment: 0, offset: *offset, dtype: DType::F32, shape: vec![16] };
        Program { buffers: offsets.iter().map(buffer).collect(), ..Program::default() }
    }

    #[test]
    fn a_live_value_that_is_overwritten_is_found() {
        let step = |reads: &[(u32, Value)], writes: &[(u32, Value)]| Intent {
            reads: reads.to_vec(),
            writes: writes.to_vec(),
            in_place: vec![],
        };
        let mut intents = Intents {
            inputs: vec![(0, 1)],
            steps: vec![step(&[(0, 1)], &[(1, 2)]), step(&[(1, 2)], &[(2, 3)]), step(&[(0, 1), (2, 3)], &[(3, 4)])],
            outputs: vec![(3, 4)],
            ..Intents::default()
        };
        assert_eq!(check(&program(&[0, 64, 128, 192]), &[], &intents), Ok(()));
        let overlapping = check(&program(&[0, 128, 32, 192]), &[], &intents);
        assert_eq!(overlapping, Err("step 2 reads value 1 from buffer 0, which does not hold it".into()));
        // The last step may write over what nobody reads after it, if it reads each element before it writes it.
        let racing = check(&program(&[0, 64, 128, 128]), &[], &intents);
        assert_eq!(racing, Err("step 2 writes value 4 over buffer 2, which it reads".into()));
        intents.steps[2].in_place.push((3, 2));
        assert_eq!(check(&program(&[0, 64, 128, 128]), &[], &intents), Ok(()));
        let shifted = check(&program(&[0, 64, 128, 160]), &[], &intents);
        assert_eq!(shifted, Err("step 2 writes value 4 over buffer 2, which it reads".into()));
    }
}
