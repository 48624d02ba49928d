//! Expressions: the small language inside the strings of a spec.
//!
//! ```text
//! equation   = name { "," name } "=" expr              names on the left may end in ', the next value of a state
//! expr       = or [ "if" or "else" expr ]              chosen at compile time: gelu if act == 'gelu' else quick_gelu
//! or         = and { "or" and }
//! and        = not { "and" not }
//! not        = "not" not | compare
//! compare    = sum [ ("<" | "<=" | ">" | ">=" | "==" | "!=") sum ]
//! sum        = product { ("+" | "-") product }
//! product    = unary { ("*" | "/" | "%" | "@") unary } a % b has the sign of b, as in Python
//! unary      = "-" unary | power
//! power      = postfix [ "**" unary ]                  right associative; -a ** b is -(a ** b)
//! postfix    = primary { "(" args ")" | "[" indices "]" | "." name }
//! args       = [ arg { "," arg } [","] ]               arg = expr | name ":" expr, named ones last
//! indices    = index { "," index } [","]               index = expr | [expr] ":" [expr] [":" [expr]] | ".."
//! primary    = number | string | name | "true" | "false" | "none" | "(" expr ")"
//!            | "(" ")" | "(" expr "," [ expr { "," expr } ] ")"
//!            | "[" [ item { "," item } [","] ] "]"     item = expr | ".." [name], the latter in shapes
//!            | "[" expr ";" expr "]"                   repetition
//! name       = (letter | "_") { letter | digit | "_" } [ "'" ]
//! string     = "'" any characters but ' "'"
//! ```
//!
//! A shape is a list: `[B, T + 1, 3 * width]`; `..` in it stands for any axes, `..S` binds them to a name. White space
//! and line breaks do not matter. An [`Expr`] is at most [`MAX_DEPTH`] nodes deep, so recursion over it is safe.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;

use crate::diag::Span;

/// The deepest tree an equation may have. No equation of the house is deeper than 12; the bound keeps recursive passes
/// off the end of a 2 MB thread stack.
pub const MAX_DEPTH: u32 = 100;

/// A value and where it stands. Equality looks at both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spanned<T> {
    /// The value.
    pub node: T,
    /// Its place.
    pub span: Span,
}

impl<T> Spanned<T> {
    /// A value at a place.
    pub fn new(node: T, span: Span) -> Self {
        Spanned { node, span }
    }
}

impl<T> Deref for Spanned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.node
    }
}

/// A name with its place. Equality, order and hash look at the text only, so that a name is a map key that knows where
/// it was written, found by `map.get("x")`.
#[derive(Clone, Debug)]
pub struct Name {
    /// The text; the next value of a state ends in `'`.
    pub text: String,
    /// The place.
    pub span: Span,
}

impl Name {
    /// A name at a place.
    pub fn new(text: impl Into<String>, span: Span) -> Self {
        Name { text: text.into(), span }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// `ema` of `ema'`: the state whose next value this name is, if it is one.
    pub fn next_of(&self) -> Option<&str> {
        self.text.strip_suffix('\'')
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Name {}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // As `str` does, since maps are asked with a `str`.
        self.text.as_str().hash(state);
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.text
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// An expression with its place in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Expr {
    /// What it is.
    pub kind: ExprKind,
    /// Where it stands.
    pub span: Span,
}

/// The forms of expression.
#[derive(Clone, Debug, PartialEq)]
pub enum ExprKind {
    /// `4096`
    Int(i64),
    /// `1e-3`; finite, also in f32
    Float(f64),
    /// `'causal'`
    Str(String),
    /// `true`, `false`
    Bool(bool),
    /// `none`
    None,
    /// `x`, or `ema'`
    Name(String),
    /// `a.b`, `lcg.ema'`
    Member(Box<Expr>, Name),
    /// `f(x, axis: -1)`; positional arguments come first
    Call(Box<Expr>, Vec<Arg>),
    /// `-x`, `not x`
    Unary(UnaryOp, Box<Expr>),
    /// `a + b`, `a and b`
    Binary(BinaryOp, Box<Expr>, Box<Expr>),
    /// `x[:, 0]`
    Index(Box<Expr>, Vec<Index>),
    /// `(a, b)`, `(a,)`, `()`
    Tuple(Vec<Expr>),
    /// `[a, b]`
    List(Vec<Expr>),
    /// `[item; count]`
    Repeat {
        /// What is repeated.
        item: Box<Expr>,
        /// How often.
        count: Box<Expr>,
    },
    /// `then if condition else otherwise`, chosen at compile time
    If {
        /// Taken if the condition holds.
        then: Box<Expr>,
        /// A compile-time truth value.
        condition: Box<Expr>,
        /// Taken if it does not.
        otherwise: Box<Expr>,
    },
    /// `..` or `..S` as an item of a list: any axes, in a shape
    Rest(Option<Name>),
}

/// An argument of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Arg {
    /// `axis` of `axis: -1`
    pub name: Option<Name>,
    /// The value.
    pub value: Expr,
}

/// One item of `x[...]`.
#[derive(Clone, Debug, PartialEq)]
pub enum Index {
    /// `0`: one position, the axis goes away
    At(Expr),
    /// `start:stop:step`, each may be left out
    Range {
        /// First position.
        start: Option<Expr>,
        /// One past the last.
        stop: Option<Expr>,
        /// Distance.
        step: Option<Expr>,
        /// Where it stands.
        span: Span,
    },
    /// `..`: as many whole axes as are left
    Rest(Span),
}

/// Operators before an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnaryOp {
    /// `-`
    Neg,
    /// `not`
    Not,
}

/// Operators between operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinaryOp {
    /// `+`
    Add,
    /// `-`
    Sub,
    /// `*`
    Mul,
    /// `/`
    Div,
    /// `%`
    Rem,
    /// `**`
    Pow,
    /// `@`
    MatMul,
    /// `<`
    Lt,
    /// `<=`
    Le,
    /// `>`
    Gt,
    /// `>=`
    Ge,
    /// `==`
    Eq,
    /// `!=`
    Ne,
    /// `and`
    And,
    /// `or`
    Or,
}

impl BinaryOp {
    /// As it is written.
    pub fn symbol(self) -> &'static str {
        match self {
            BinaryOp::Add => "+",
            BinaryOp::Sub => "-",
            BinaryOp::Mul => "*",
            BinaryOp::Div => "/",
            BinaryOp::Rem => "%",
            BinaryOp::Pow => "**",
            BinaryOp::MatMul => "@",
            BinaryOp::Lt => "<",
            BinaryOp::Le => "<=",
            BinaryOp::Gt => ">",
            BinaryOp::Ge => ">=",
            BinaryOp::Eq => "==",
            BinaryOp::Ne => "!=",
            BinaryOp::And => "and",
            BinaryOp::Or => "or",
        }
    }
}

/// `a, b' = value`
#[derive(Clone, Debug, PartialEq)]
pub struct Equation {
    /// The names on the left, at least one.
    pub targets: Vec<Name>,
    /// The right side.
    pub value: Expr,
    /// The whole equation.
    pub span: Span,
}

/// The axes of a tensor: `[B, T + 1, ..]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// One expression per axis; [`ExprKind::Rest`] stands for any number of them.
    pub dims: Vec<Expr>,
    /// The whole shape.
    pub span: Span,
}

impl Expr {
    /// Calls `visit` on this expression and all that stand in it, from the outside in and from left to right.
    pub fn walk<'a>(&'a self, visit: &mut impl FnMut(&'a Expr)) {
        visit(self);
        self.children().into_iter().for_each(|child| child.walk(visit));
    }

    /// The expressions directly inside, from left to right.
    pub fn children(&self) -> Vec<&Expr> {
        match &self.kind {
            ExprKind::Int(_)
            | ExprKind::Float(_)
            | ExprKind::Str(_)
            | ExprKind::Bool(_)
            | ExprKind::None
            | ExprKind::Name(_)
            | ExprKind::Rest(_) => vec![],
            ExprKind::Member(of, _) | ExprKind::Unary(_, of) => vec![of],
            ExprKind::Call(callee, args) => {
                std::iter::once(&**callee).chain(args.iter().map(|arg| &arg.value)).collect()
            }
            ExprKind::Binary(_, left, right) => vec![left, right],
            ExprKind::Index(of, indices) => {
                let mut found: Vec<&Expr> = vec![of];
                for index in indices {
                    match index {
                        Index::At(at) => found.push(at),
                        Index::Range { start, stop, step, .. } => {
                            found.extend([start, stop, step].into_iter().flatten());
                        }
                        Index::Rest(_) => {}
                    }
                }
                found
            }
            ExprKind::Tuple(items) | ExprKind::List(items) => items.iter().collect(),
            ExprKind::Repeat { item, count } => vec![item, count],
            ExprKind::If { then, condition, otherwise } => vec![then, condition, otherwise],
        }
    }

    /// The expressions directly inside, to be changed.
    pub fn children_mut(&mut self) -> Vec<&mut Expr> {
        match &mut self.kind {
            ExprKind::Member(of, _) | ExprKind::Unary(_, of) => vec![of],
            ExprKind::Call(callee, args) => {
                std::iter::once(&mut **callee).chain(args.iter_mut().map(|arg| &mut arg.value)).collect()
            }
            ExprKind::Binary(_, left, right) => vec![left, right],
            ExprKind::Index(of, indices) => {
                let mut found: Vec<&mut Expr> = vec![of];
                for index in indices {
                    match index {
                        Index::At(at) => found.push(at),
                        Index::Range { start, stop, step, .. } => {
                            found.extend([start, stop, step].into_iter().flatten());
                        }
                        Index::Rest(_) => {}
                    }
                }
                found
            }
            ExprKind::Tuple(items) | ExprKind::List(items) => items.iter_mut().collect(),
            ExprKind::Repeat { item, count } => vec![item, count],
            ExprKind::If { then, condition, otherwise } => vec![then, condition, otherwise],
            _ => vec![],
        }
    }

    /// Does the name occur in it as a variable or callee?
    pub fn reads(&self, name: &str) -> bool {
        let mut found = false;
        self.walk(&mut |expr| found |= matches!(&expr.kind, ExprKind::Name(n) if n == name));
        found
    }
}
