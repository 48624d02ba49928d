//! Expressions as text again: `{}` with the fewest parentheses, `{:#}` with all of them. Both parse back to the same
//! tree.

use std::fmt::{self, Display, Formatter};

use super::expr::{Arg, BinaryOp, Equation, Expr, ExprKind, Index, Shape, UnaryOp};

/// How tightly an expression binds; larger binds tighter.
fn level(expr: &Expr) -> u8 {
    match &expr.kind {
        ExprKind::If { .. } => 0,
        ExprKind::Binary(op, ..) => binary_level(*op),
        ExprKind::Unary(UnaryOp::Not, _) => 3,
        ExprKind::Unary(UnaryOp::Neg, _) => 7,
        // A bare RON number can be negative; it then reads back as a minus and a number.
        ExprKind::Int(n) if *n < 0 => 7,
        ExprKind::Float(x) if *x < 0.0 => 7,
        _ => 9,
    }
}

fn binary_level(op: BinaryOp) -> u8 {
    match op {
        BinaryOp::Or => 1,
        BinaryOp::And => 2,
        BinaryOp::Lt | BinaryOp::Le | BinaryOp::Gt | BinaryOp::Ge | BinaryOp::Eq | BinaryOp::Ne => 4,
        BinaryOp::Add | BinaryOp::Sub => 5,
        BinaryOp::Mul | BinaryOp::Div | BinaryOp::Rem | BinaryOp::MatMul => 6,
        BinaryOp::Pow => 8,
    }
}

/// Writes an operand that must bind at least as tightly as `least`.
fn operand(f: &mut Formatter<'_>, expr: &Expr, least: u8) -> fmt::Result {
    let atom = level(expr) == 9;
    let open = if f.alternate() { !atom } else { level(expr) < least };
    if open { wrapped(f, "(", expr, ")") } else { expr.fmt(f) }
}

fn wrapped(f: &mut Formatter<'_>, open: &str, expr: &Expr, close: &str) -> fmt::Result {
    f.write_str(open)?;
    expr.fmt(f)?;
    f.write_str(close)
}

fn separated<T: Display>(f: &mut Formatter<'_>, items: &[T]) -> fmt::Result {
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            f.write_str(", ")?;
        }
        item.fmt(f)?;
    }
    Ok(())
}

impl Display for Expr {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.kind {
            ExprKind::Int(n) => write!(f, "{n}"),
            ExprKind::Float(x) => write!(f, "{x:?}"),
            ExprKind::Str(s) => write!(f, "'{s}'"),
            ExprKind::Bool(b) => write!(f, "{b}"),
            ExprKind::None => f.write_str("none"),
            ExprKind::Name(name) => f.write_str(name),
            ExprKind::Member(of, name) => {
                operand(f, of, 9)?;
                write!(f, ".{name}")
            }
            ExprKind::Call(callee, args) => {
                operand(f, callee, 9)?;
                f.write_str("(")?;
                separated(f, args)?;
                f.write_str(")")
            }
            ExprKind::Index(of, indices) => {
                operand(f, of, 9)?;
                f.write_str("[")?;
                separated(f, indices)?;
                f.write_str("]")
            }
            ExprKind::Unary(UnaryOp::Neg, of) => {
                f.write_str("-")?;
                operand(f, of, 7)
            }
            ExprKind::Unary(UnaryOp::Not, of) => {
                f.write_str("not ")?;
                operand(f, of, 3)
            }
            ExprKind::Binary(op, left, right) => binary(f, *op, left, right),
            ExprKind::Tuple(items) => {
                f.write_str("(")?;
                separated(f, items)?;
                f.write_str(if items.len() == 1 { ",)" } else { ")" })
            }
            ExprKind::List(items) => {
                f.write_str("[")?;
                separated(f, items)?;
                f.write_str("]")
            }
            ExprKind::Repeat { item, count } => {
                wrapped(f, "[", item, "; ")?;
                count.fmt(f)?;
                f.write_str("]")
            }
            ExprKind::If { then, condition, otherwise } => {
                operand(f, then, 1)?;
                f.write_str(" if ")?;
                operand(f, condition, 1)?;
                f.write_str(" else ")?;
                operand(f, otherwise, 0)
            }
            ExprKind::Rest(name) => write!(f, "..{}", name.as_ref().map_or("", |n| n.as_str())),
        }
    }
}

fn binary(f: &mut Formatter<'_>, op: BinaryOp, left: &Expr, right: &Expr) -> fmt::Result {
    let own = binary_level(op);
    let (least_left, least_right) = match op {
        // Right associative, and its right side may have a sign.
        BinaryOp::Pow => (9, 7),
        // Comparisons do not chain.
        _ if own == 4 => (5, 5),
        _ => (own, own + 1),
    };
    operand(f, left, least_left)?;
    write!(f, " {} ", op.symbol())?;
    operand(f, right, least_right)
}

impl Display for Arg {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.name {
            write!(f, "{name}: ")?;
        }
        self.value.fmt(f)
    }
}

impl Display for Index {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Index::At(expr) => expr.fmt(f),
            Index::Rest(_) => f.write_str(".."),
            Index::Range { start, stop, step, .. } => {
                for (prefix, bound) in [("", start), (":", stop)] {
                    f.write_str(prefix)?;
                    bound.as_ref().map_or(Ok(()), |bound| bound.fmt(f))?;
                }
                match step {
                    Some(step) => {
                        f.write_str(":")?;
                        step.fmt(f)
                    }
                    None => Ok(()),
                }
            }
        }
    }
}

impl Display for Shape {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        separated(f, &self.dims)?;
        f.write_str("]")
    }
}

impl Display for Equation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        separated(f, &self.targets)?;
        f.write_str(" = ")?;
        self.value.fmt(f)
    }
}
