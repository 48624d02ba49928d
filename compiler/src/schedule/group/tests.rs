use super::*;
use crate::ir::{Builder, OriginId, Shape, TensorType};
use crate::ops::{OpError, ReduceKind};

/// A graph with these outputs, and what writes each of them where nothing is fused.
fn with_groups(
    most_operands: u32,
    build: impl Fn(&mut Builder<'_>) -> Result<Vec<NodeId>, OpError>,
    test: impl FnOnce(&mut Groups<'_>, &[GroupId]),
) {
    let mut graph = Graph::new("groups");
    let outputs = build(&mut Builder::new(&mut graph, OriginId::default())).expect("well typed");
    for (at, id) in outputs.iter().enumerate() {
        graph.outputs.insert(format!("out{at}"), *id);
    }
    let target = Target { max_operands: most_operands, ..Target::cpu() };
    let mut groups = Groups::new(&graph, &target, false);
    for id in graph.ids().rev() {
        groups.place(id).expect("every operand can be read as it is");
    }
    let writers: Vec<GroupId> = outputs.iter().flat_map(|id| groups.writers(*id).to_vec()).collect();
    test(&mut groups, &writers);
}

/// What comes of merging the first two groups that write outputs.
fn check(
    most_operands: u32,
    build: impl Fn(&mut Builder<'_>) -> Result<Vec<NodeId>, OpError>,
    expected: Result<(), Refusal>,
) {
    with_groups(most_operands, build, |groups, writers| {
        assert_eq!(groups.merge(writers[0], writers[1]), expected);
        assert_eq!(groups.find(writers[1]) == groups.find(writers[0]), expected.is_ok());
    });
}

fn input(b: &mut Builder<'_>, name: &str, sizes: &[u64]) -> Result<NodeId, OpError> {
    b.input(name, TensorType::f32(sizes.iter().copied().collect::<Shape>()))
}

#[test]
fn what_loops_alike_is_one() {
    let apart = |b: &mut Builder<'_>, sizes: [&[u64]; 2]| {
        let (x, y) = (input(b, "x", sizes[0])?, input(b, "y", sizes[1])?);
        Ok(vec![b.exp(x)?, b.tanh(y)?])
    };
    check(8, |b| apart(b, [&[4, 8], &[4, 8]]), Ok(()));
    check(8, |b| apart(b, [&[4, 8], &[8, 4]]), Err(Refusal::Space));
    check(3, |b| apart(b, [&[4, 8], &[4, 8]]), Err(Refusal::Operands(3)));
}

#[test]
fn what_waits_for_itself_is_not() {
    let chain = |b: &mut Builder<'_>| {
        let x = input(b, "x", &[4, 8])?;
        let first = b.exp(x)?;
        Ok(vec![first, b.tanh(first)?])
    };
    check(8, chain, Err(Refusal::Waits));
}

#[test]
fn archetypes_do_not_mix() {
    let kinds = |b: &mut Builder<'_>| {
        let x = input(b, "x", &[4, 8])?;
        Ok(vec![b.exp(x)?, b.reduce(ReduceKind::Sum, x, &[1], false)?])
    };
    check(8, kinds, Err(Refusal::Kind));
}

#[test]
fn accesses_need_a_common_radix() {
    let turned = |b: &mut Builder<'_>, name: &str, sizes: [u64; 2]| {
        let x = input(b, name, &sizes)?;
        let turned = b.transpose(x, &[1, 0])?;
        let flat = b.reshape(turned, [6].into())?;
        b.exp(flat)
    };
    check(8, |b| Ok(vec![turned(b, "x", [2, 3])?, turned(b, "y", [2, 3])?]), Ok(()));
    check(8, |b| Ok(vec![turned(b, "x", [2, 3])?, turned(b, "y", [3, 2])?]), Err(Refusal::Access));
}

#[test]
fn parts_of_a_value_are_stored_by_one_kernel_where_they_are_apart() {
    let concat = |b: &mut Builder<'_>, axis| {
        let (x, y) = (input(b, "x", &[4, 8])?, input(b, "y", &[4, 8])?);
        Ok(vec![b.concat(&[x, y], axis)?])
    };
    check(8, |b| concat(b, 0), Ok(()));
    check(8, |b| concat(b, 1), Err(Refusal::StoredTwice));
}

#[test]
fn rows_are_made_of_points() {
    let rows = |space: Space, expected: Result<(), Refusal>| {
        let build = |b: &mut Builder<'_>| {
            let x = input(b, "x", &[4, 8])?;
            Ok(vec![b.exp(x)?])
        };
        with_groups(8, build, |groups, writers| {
            let before = groups.group(writers[0]).space().clone();
            assert_eq!(groups.make_rows(writers[0], space.clone()), expected);
            let after = groups.group(writers[0]);
            assert_eq!(after.kind() == Kind::Reduction, expected.is_ok());
            assert_eq!(after.space(), if expected.is_ok() { &space } else { &before });
        });
    };
    rows(Space::new(vec![4], vec![8]), Ok(()));
    rows(Space::new(vec![4, 8], vec![3]), Ok(()));
    rows(Space::new(vec![8], vec![4]), Err(Refusal::Space));
    let product = |b: &mut Builder<'_>| {
        let (x, y) = (input(b, "x", &[4, 8])?, input(b, "y", &[8, 4])?);
        let turned = b.transpose(y, &[1, 0])?;
        let dot = Dot { batch: vec![], contract: vec![(1, 1)] };
        Ok(vec![b.op(Op::Dot(dot), &[x, turned])?])
    };
    with_groups(8, product, |groups, writers| {
        assert_eq!(groups.make_rows(writers[0], Space::new(vec![4], vec![4])), Err(Refusal::Kind));
    });
}

#[test]
fn refusals_say_what_stands_in_the_way() {
    let check = |why: Refusal, text: &str| assert_eq!(why.to_string(), text);
    check(Refusal::Members, "one kernel would be too long");
    check(Refusal::Operands(8), "together they have more than the target's 8 operands");
    check(Refusal::Waits, "one kernel would have to wait for itself");
}
