//! Products that share an operand become one wider product: queries, keys and values written as three projections cost what
//! one packed projection costs, and so do their gradients.

use egg::Id;

use super::Rule;
use super::Tag::Reassociates;
use crate::ops::{Dot, Op};
use crate::optimize::language::Kind;
use crate::optimize::pattern::*;
use crate::optimize::site::{Site, sides};

/// Most products that become one.
const MOST_MERGED: usize = 4;

pub(super) fn rules() -> Vec<Rule> {
    vec![
        Rule::build("dots-of-one", Reassociates, dot(X, Y), dots_of_one::<0>).tried_on([add(dot(X, Y), dot(X, Z))]),
        Rule::build("dots-by-one", Reassociates, dot(X, Y), dots_of_one::<1>).tried_on([add(dot(X, Z), dot(Y, Z))]),
        Rule::build("sum-of-dots", Reassociates, add(dot(X, Y), dot(Z, W)), sum_of_dots),
    ]
}

/// All products of this one's operand on one side with others of one form: one product, of which this one is a slice.
fn dots_of_one<const SIDE: usize>(s: &mut Site<'_>) -> Option<Id> {
    let (op, operands) = (s.op(0), s.operands(0));
    let Op::Dot(dot) = &op else { return None };
    let (shared, own) = (s.egraph.find(operands[SIDE]), s.egraph.find(operands[1 - SIDE]));
    let both = sides(dot, [s.rank(operands[0]), s.rank(operands[1])]);
    // Along the first free dimension of the other operand, which may differ in size.
    let axis = *both[1 - SIDE].free.first()?;
    let place = dot.batch.len() + if SIDE == 0 { both[0].free.len() } else { 0 };
    let sizes = s.sizes(own);
    let alike = |s: &Site<'_>, other: Id| {
        let found = s.sizes(other);
        let same = |at: usize| at == axis || found[at] == sizes[at];
        found.len() == sizes.len() && (0..found.len()).all(same) && s.fact(other).ty.dtype == s.fact(own).ty.dtype
    };
    let mut others: Vec<Id> = Vec::new();
    for (_, found, below) in s.readers_of(shared, Kind::Dot) {
        let other = s.egraph.find(below[1 - SIDE]);
        // What is merged already is not merged again.
        let merged = !s.terms_of(other, Kind::Concat).is_empty();
        if found == op && s.egraph.find(below[SIDE]) == shared && alike(s, other) && !merged && !others.contains(&other)
        {
            others.push(other);
        }
    }
    if !(2..=MOST_MERGED).contains(&others.len()) || !others.contains(&own) {
        return None;
    }
    others.sort_unstable();
    let wide = s.concat(&others, axis)?;
    let product = if SIDE == 0 { s.dot(shared, wide, dot.clone()) } else { s.dot(wide, shared, dot.clone()) }?;
    let before = others.iter().take_while(|other| **other != own).map(|other| s.shape(*other).size(axis)).sum();
    s.slice_axis(product, place, before, before + sizes[axis])
}

/// A sum of products of one form is one product over a longer contracted dimension.
fn sum_of_dots(s: &mut Site<'_>) -> Option<Id> {
    let (first, second) = (s.op(1), s.op(2));
    let Op::Dot(dot) = &first else { return None };
    let (x, y, z, w) = (s.var(&X)?, s.var(&Y)?, s.var(&Z)?, s.var(&W)?);
    let (left, right) = *dot.contract.first()?;
    let alike = |a: Id, b: Id, axis: usize| {
        let (a, b) = (s.sizes(a), s.sizes(b));
        a.len() == b.len() && (0..a.len()).all(|at| at == axis || a[at] == b[at])
    };
    if first != second || !alike(x, z, left) || !alike(y, w, right) {
        return None;
    }
    let lhs = s.concat(&[x, z], left)?;
    let rhs = s.concat(&[y, w], right)?;
    s.dot(lhs, rhs, Dot::clone(dot))
}
