//! White space inside an expression, from its tokens alone.

use super::lexer::{Tok, tokens};
use super::parser::{self, KEYWORDS};
use super::text::Text;

/// What a colon means, by the bracket it stands in.
#[derive(Clone, Copy, PartialEq)]
enum Bracket {
    /// `f(axis: -1)`
    Round,
    /// `x[1:3]`
    Index,
    /// `[a, b]`
    List,
}

/// The expression or equation with house spacing; none if it does not parse.
pub(super) fn respace(text: &Text) -> Option<String> {
    if parser::expression(text).is_err() && parser::equation(text).is_err() {
        return None;
    }
    let mut out = String::new();
    let mut brackets = Vec::new();
    let mut before: Option<Tok> = None;
    let mut unary = false;
    for token in tokens(text).ok()? {
        let written = text.as_str().get(token.span.start as usize..token.span.end as usize)?;
        let ends_value = before.as_ref().is_some_and(ends_value);
        let tight = match (&before, &token.tok) {
            (None, _) | (_, Tok::End) => true,
            (Some(Tok::Symbol("(" | "[" | "." | "..")), _) => true,
            (Some(Tok::Symbol("-")), _) if unary => true,
            (_, Tok::Symbol(")" | "]" | "," | ";" | ".")) => true,
            (_, Tok::Symbol("(" | "[")) => ends_value,
            (Some(Tok::Symbol(":")), _) => brackets.last() == Some(&Bracket::Index),
            (Some(Tok::Symbol(",")), Tok::Symbol(":")) => false,
            (_, Tok::Symbol(":")) => true,
            _ => false,
        };
        if !tight {
            out.push(' ');
        }
        out.push_str(written);
        match token.tok {
            Tok::Symbol("(") => brackets.push(Bracket::Round),
            Tok::Symbol("[") => brackets.push(if ends_value { Bracket::Index } else { Bracket::List }),
            Tok::Symbol(")" | "]") => {
                brackets.pop();
            }
            _ => {}
        }
        unary = token.tok == Tok::Symbol("-") && !ends_value;
        before = Some(token.tok);
    }
    Some(out)
}

/// Can a value end with this token, so that a bracket after it is a call or an index and a minus a subtraction?
fn ends_value(tok: &Tok) -> bool {
    match tok {
        Tok::Int(_) | Tok::Float(_) | Tok::Str(_) => true,
        Tok::Name(name) => !KEYWORDS.contains(&name.as_str()) || ["true", "false", "none"].contains(&name.as_str()),
        Tok::Symbol(symbol) => [")", "]"].contains(symbol),
        Tok::End => false,
    }
}
