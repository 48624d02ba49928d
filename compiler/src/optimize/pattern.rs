//! Left sides of rules, and matching them against an e-graph.

use egg::Id;
use smallvec::SmallVec;

use super::language::{EGraph, Kind, Term};
use crate::ops::ScalarOp;

/// Most variables of a pattern.
const VARIABLES: usize = 5;
/// Most matches of a pattern at one class; more mean that a class has grown beyond what a rule should look at.
const MOST_MATCHES: usize = 32;

/// A shape of terms.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Pat {
    /// Any class; the same class at every place of the same number.
    Var(usize),
    /// A class whose elements are all one known number.
    Splat(usize),
    /// A class whose elements are all this number.
    Num(f64),
    /// An op of this family; its attributes are bound in the order in which ops are written.
    Node(Kind, Vec<Pat>),
    /// Any pointwise op with so many operands (casts excluded), one each.
    Point(Vec<Pat>),
    /// An op of this family with any operands.
    Any(Kind),
}

pub(crate) const X: Pat = Pat::Var(0);
pub(crate) const Y: Pat = Pat::Var(1);
pub(crate) const Z: Pat = Pat::Var(2);
/// Constants share the numbers of the variables from the other end.
pub(crate) const C: Pat = Pat::Splat(4);
pub(crate) const D: Pat = Pat::Splat(3);

pub(crate) fn num(value: f64) -> Pat {
    Pat::Num(value)
}

pub(crate) fn node<const N: usize>(kind: Kind, operands: [Pat; N]) -> Pat {
    Pat::Node(kind, operands.into())
}

macro_rules! shorthands {
    ($($name:ident $kind:expr, $($arg:ident)+;)*) => {
        $(pub(crate) fn $name($($arg: Pat),+) -> Pat {
            node($kind, [$($arg),+])
        })*
    };
}

shorthands! {
    add Kind::Point(ScalarOp::Add), a b;
    sub Kind::Point(ScalarOp::Sub), a b;
    mul Kind::Point(ScalarOp::Mul), a b;
    div Kind::Point(ScalarOp::Div), a b;
    min Kind::Point(ScalarOp::Min), a b;
    max Kind::Point(ScalarOp::Max), a b;
    and Kind::Point(ScalarOp::And), a b;
    or Kind::Point(ScalarOp::Or), a b;
    neg Kind::Point(ScalarOp::Neg), a;
    not Kind::Point(ScalarOp::Not), a;
    abs Kind::Point(ScalarOp::Abs), a;
    select Kind::Point(ScalarOp::Select), a b c;
    transpose Kind::Transpose, a;
    reshape Kind::Reshape, a;
    broadcast Kind::Broadcast, a;
    slice Kind::Slice, a;
    pad Kind::Pad, a;
    sum Kind::Sum, a;
    row_max Kind::Max, a;
    dot Kind::Dot, a b;
}

/// What a pattern matched.
#[derive(Clone, Debug)]
pub(crate) struct Match {
    pub(crate) root: Id,
    pub(crate) vars: [Option<Id>; VARIABLES],
    /// The matched terms, in the order in which the pattern writes their ops.
    pub(crate) terms: SmallVec<[Term; 3]>,
}

impl Pat {
    /// Whether a term can be the root of a match.
    pub(crate) fn root_accepts(&self, term: &Term) -> bool {
        match self {
            Pat::Node(kind, operands) => *kind == term.kind && operands.len() == term.children.len(),
            Pat::Any(kind) => *kind == term.kind,
            Pat::Point(operands) => pointwise(term.kind) && operands.len() == term.children.len(),
            _ => false,
        }
    }

    /// Number of ops on the longest way down: how far below a class its matches look.
    pub(crate) fn depth(&self) -> usize {
        match self {
            Pat::Node(_, operands) | Pat::Point(operands) => 1 + operands.iter().map(Pat::depth).max().unwrap_or(0),
            Pat::Any(_) => 1,
            _ => 0,
        }
    }

    /// Adds all matches whose root is this term of this class.
    pub(crate) fn matches(&self, egraph: &EGraph, class: Id, term: &Term, out: &mut Vec<Match>) {
        let mut matcher = Matcher { egraph, out, room: MOST_MATCHES };
        let found = Match { root: class, vars: [None; VARIABLES], terms: SmallVec::new() };
        matcher.at_term(self, term, &[], &found);
    }
}

fn pointwise(kind: Kind) -> bool {
    use ScalarOp::{Cast, RoundBf16, RoundF16};
    matches!(kind, Kind::Point(op) if !matches!(op, Cast(_) | RoundBf16 | RoundF16))
}

/// Goals still to be met: patterns with the classes that they must match.
type Goals<'p> = [(&'p Pat, Id)];

struct Matcher<'a> {
    egraph: &'a EGraph,
    out: &'a mut Vec<Match>,
    room: usize,
}

impl Matcher<'_> {
    fn at_term(&mut self, pattern: &Pat, term: &Term, rest: &Goals<'_>, found: &Match) {
        if !pattern.root_accepts(term) {
            return;
        }
        let mut found = found.clone();
        found.terms.push(term.clone());
        let operands: &[Pat] = match pattern {
            Pat::Node(_, operands) | Pat::Point(operands) => operands,
            _ => &[],
        };
        let mut goals: SmallVec<[(&Pat, Id); 8]> = operands.iter().zip(term.children.iter().copied()).collect();
        goals.extend_from_slice(rest);
        self.go(&goals, &found);
        if term.kind.commutes() && operands.len() == 2 && operands[0] != operands[1] {
            (goals[0].1, goals[1].1) = (goals[1].1, goals[0].1);
            self.go(&goals, &found);
        }
    }

    fn go(&mut self, goals: &Goals<'_>, found: &Match) {
        let Some(((pattern, class), rest)) = goals.split_first() else {
            if self.room > 0 {
                self.room -= 1;
                self.out.push(found.clone());
            }
            return;
        };
        let class = self.egraph.find(*class);
        match pattern {
            Pat::Num(value) => {
                if self.egraph[class].data.number() == Some(*value) {
                    self.go(rest, found);
                }
            }
            Pat::Splat(_) if self.egraph[class].data.splat.is_none() => {}
            Pat::Var(number) | Pat::Splat(number) => match found.vars[*number] {
                Some(bound) if bound == class => self.go(rest, found),
                Some(_) => {}
                None => {
                    let mut found = found.clone();
                    found.vars[*number] = Some(class);
                    self.go(rest, &found);
                }
            },
            _ => {
                let egraph = self.egraph;
                for term in &egraph[class].nodes {
                    self.at_term(pattern, term, rest, found);
                }
            }
        }
    }
}
