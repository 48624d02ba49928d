//! The rules, by theme.
//!
//! A rule is one entry: a name, a tag, a left side that is matched, and a right side that is built. Rules are directional:
//! the right side is what one would rather have, or makes another rule apply; what is better where is left to the cost. To
//! add a rule is to add an entry to a theme's list: `laws` tries it on random shapes and inputs against the interpreter, and
//! asks for a filetest in which it fires, `tests/worth.rs` for a graph that ships and is another without the theme.
//!
//! Rules hold for real numbers; in floats an operation in another order may under- or overflow where the original does not.
//! What a rule may lose of the range of a type, at either end of it, is little, and `laws` tries every one on numbers of any
//! size:
//! - Constants are folded only to numbers that the type holds to full precision ([`Site::number_of`]). They change places with
//!   other operands only if they are moderate, within 2^24 of 1 ([`Site::is_moderate`]): what is written as `x * 1e-30 * y` is
//!   so written because `x * y` would be too large. Tensors do so only where facts bound them like that: nothing is known of
//!   the size of others, so `x * y * z` never becomes `x * z * y`.
//! - A sum may be taken before its terms are multiplied or divided by what they have in common, as `a * (b + c)`,
//!   `(a + b) / c` or the sum of a row over its length: it overflows where a term is closer to the largest number than there
//!   are terms.
//! - An inverse that rows share is no normal number where the divisor is none, or is within a factor of 4 of the largest.
//!
//! Products that share an operand are no rule's: that they become one is decided before gradients are added
//! (`transform::projections`), where the backward pass inherits it, and where it is free.

mod algebra;
mod concat;
mod conv;
mod layout;
mod reduce;
mod scale;

use egg::Id;

use super::pattern::Pat;
use super::site::Site;

/// Index of a rule in the list of all.
pub(crate) type RuleId = usize;

/// What a rule keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// The same numbers, bit for bit (the sign of a zero aside).
    Exact,
    /// The same real numbers: operations in another order, which round differently.
    Reassociates,
    /// The same only if operands are finite, as `0 * x`; applied where the facts say that they are.
    FiniteOnly,
}

/// A right side.
pub(crate) enum Right {
    /// Variables, numbers and pointwise ops.
    Term(Pat),
    /// Built from what was matched; `None` where the rule does not apply.
    Build(fn(&mut Site<'_>) -> Option<Id>),
}

/// A rewrite rule.
pub(crate) struct Rule {
    pub(crate) name: &'static str,
    pub(crate) theme: &'static str,
    pub(crate) tag: Tag,
    pub(crate) left: Pat,
    pub(crate) right: Right,
    /// Only of floats: integers divide with truncation.
    pub(crate) floats: bool,
    /// Where else it applies only.
    pub(crate) when: Option<fn(&Site<'_>) -> bool>,
    /// Terms to try it on, for a rule that looks further than its left side; only `laws` reads them.
    #[cfg_attr(not(test), expect(dead_code))]
    pub(crate) examples: Vec<Pat>,
}

impl Rule {
    fn new(name: &'static str, tag: Tag, left: Pat, right: Right) -> Rule {
        Rule { name, theme: "", tag, left, right, floats: false, when: None, examples: Vec::new() }
    }

    /// A rule whose right side is a pattern.
    pub(crate) fn term(name: &'static str, tag: Tag, left: Pat, right: Pat) -> Rule {
        Rule::new(name, tag, left, Right::Term(right))
    }

    /// A rule whose right side is built.
    pub(crate) fn build(name: &'static str, tag: Tag, left: Pat, right: fn(&mut Site<'_>) -> Option<Id>) -> Rule {
        Rule::new(name, tag, left, Right::Build(right))
    }

    /// The rule holds for floats only.
    pub(crate) fn floats(self) -> Rule {
        Rule { floats: true, ..self }
    }

    /// The rule applies where this holds only.
    fn when(self, holds: fn(&Site<'_>) -> bool) -> Rule {
        Rule { when: Some(holds), ..self }
    }

    /// Terms to try the rule on in place of its left side.
    fn tried_on(self, examples: impl Into<Vec<Pat>>) -> Rule {
        Rule { examples: examples.into(), ..self }
    }
}

/// A theme: its name, and its rules.
type Theme = (&'static str, fn() -> Vec<Rule>);

/// All themes, in the order in which their rules are tried.
const THEMES: &[Theme] = &[
    ("algebra", algebra::rules),
    ("layout", layout::rules),
    ("scale", scale::rules),
    ("reduce", reduce::rules),
    ("concat", concat::rules),
    ("conv", conv::rules),
];

/// All rules.
pub(crate) fn all() -> Vec<Rule> {
    let themed = |(theme, rules): &Theme| rules().into_iter().map(|rule| Rule { theme, ..rule }).collect::<Vec<_>>();
    THEMES.iter().flat_map(themed).collect()
}

/// Names of all rules, each with its theme.
pub fn rule_names() -> Vec<(&'static str, &'static str)> {
    all().into_iter().map(|rule| (rule.theme, rule.name)).collect()
}
