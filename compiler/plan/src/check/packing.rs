//! Laws of packed programs: whichever bucket a batch falls into, the runtime finds a program with the inputs it can make and
//! the outputs it was asked for.

use super::{Checked, check};
use crate::packing::{Bucket, Group, Packed, Role, lengths_output};
use crate::{Buffer, DType, Plan, Port, Program};

/// Name and type of a port.
type Typed<'a> = (&'a str, Option<(DType, &'a [u64])>);

fn typed<'a>(program: &'a Program, port: &'a Port) -> Typed<'a> {
    let buffer = program.buffers.get(port.buffer as usize);
    (&port.name, buffer.map(|buffer| (buffer.dtype, buffer.shape.as_slice())))
}

/// What a caller sees of a program.
fn seen(program: &Program) -> (Vec<Typed<'_>>, Vec<Typed<'_>>) {
    let inputs = program.inputs.iter().filter(|port| Role::of_input(&port.name).is_none());
    let outputs = program.outputs.iter();
    (inputs.map(|port| typed(program, port)).collect(), outputs.map(|port| typed(program, port)).collect())
}

pub(super) fn packed(plan: &Plan, name: &str, packed: &Packed) -> Checked {
    let last = packed.buckets.last().ok_or("no bucket")?;
    let whole: Vec<u64> = packed.groups.iter().map(bound).collect::<Checked<_>>()?;
    if last.rows != whole || last.program != name {
        return Err(format!(
            "the last bucket is `{}` with {:?} rows, not `{name}` with {whole:?}",
            last.program, last.rows
        ));
    }
    let program = |bucket: &Bucket| {
        let found = plan.programs.get(&bucket.program);
        found.ok_or_else(|| format!("bucket {:?} is program `{}`, which there is not", bucket.rows, bucket.program))
    };
    let expected = seen(program(last)?);
    for (index, bucket) in packed.buckets.iter().enumerate() {
        let rises = |next: &Bucket| {
            bucket.rows.len() == next.rows.len()
                && bucket.rows != next.rows
                && bucket.rows.iter().zip(&next.rows).all(|(a, b)| a <= b)
        };
        if packed.buckets.get(index + 1).is_some_and(|next| !rises(next)) {
            return Err(format!("rows do not rise after bucket {:?}", bucket.rows));
        }
        let program = program(bucket)?;
        if seen(program) != expected {
            return Err(format!("bucket {:?} has other inputs or outputs than the last", bucket.rows));
        }
        for port in &program.inputs {
            let Some((group, role)) = Role::of_input(&port.name) else { continue };
            let (Some(rows), Some(samples)) = (bucket.rows.get(group), packed.groups.get(group)) else {
                return Err(format!("bucket {:?} has input `{}` of a group that there is not", bucket.rows, port.name));
            };
            let shape = role.shape(*samples, *rows);
            if typed(program, port).1 != Some((DType::I32, &shape)) {
                return Err(format!("input `{}` of bucket {:?} is not i32 {shape:?}", port.name, bucket.rows));
            }
        }
    }
    lengths(packed, &expected.0)
}

/// Rows of a group; all row numbers are I32.
fn bound(group: &Group) -> Checked<u64> {
    let rows = group.samples.checked_mul(group.context).filter(|rows| (1..=i32::MAX as u64).contains(rows));
    rows.ok_or_else(|| format!("a group of {} samples of {} positions", group.samples, group.context))
}

/// The host's program reads inputs of the batch and yields lengths for every group.
fn lengths(packed: &Packed, inputs: &[Typed<'_>]) -> Checked {
    let host = packed.lengths.plan();
    check(&host).map_err(|why| format!("lengths: {why}"))?;
    let program = &packed.lengths.program;
    if let Some(port) = program.inputs.iter().find(|port| !inputs.contains(&typed(program, port))) {
        return Err(format!("lengths: input `{}` is not one of the program", port.name));
    }
    for (index, group) in packed.groups.iter().enumerate() {
        let name = lengths_output(index);
        let fits = |buffer: &Buffer| buffer.dtype == DType::I32 && buffer.shape == [group.samples];
        if !program.output(&name).is_some_and(fits) {
            return Err(format!("lengths: output `{name}` is not i32 [{}]", group.samples));
        }
    }
    Ok(())
}
