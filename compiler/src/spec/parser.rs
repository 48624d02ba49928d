//! Parser of the expression language, by precedence climbing. The grammar stands in [`super::expr`].

use super::expr::{Arg, BinaryOp, Equation, Expr, ExprKind, Index, MAX_DEPTH, Name, Shape, UnaryOp};
use super::lexer::{Tok, Token, tokens};
use super::text::Text;
use crate::diag::{Diagnostic, Span};

pub(super) const KEYWORDS: [&str; 8] = ["if", "else", "and", "or", "not", "true", "false", "none"];

/// Parses `a, b = expr`.
pub(crate) fn equation(text: &Text) -> Result<Equation, Diagnostic> {
    let mut p = Parser::new(text)?;
    let mut targets = vec![p.target()?];
    while p.eat(",") {
        targets.push(p.target()?);
    }
    if !p.eat("=") {
        let error = p.expected("`=`");
        return Err(error.help("an equation is `name = expression`, or `a, b = expression` for several outputs"));
    }
    let value = if targets.len() > 1 { p.values()? } else { p.expr()?.expr };
    p.end()?;
    for (i, target) in targets.iter().enumerate() {
        let first = targets[..i].iter().find(|t| *t == target && t.as_str() != "_");
        if let Some(first) = first {
            return Err(Diagnostic::error(format!("`{target}` stands twice on the left side"))
                .label(target.span, "again here")
                .context(first.span, "first here")
                .help("give each output its own name; an unused one may be called `_`"));
        }
    }
    Ok(Equation { targets, value, span: text.content() })
}

/// Parses an expression.
pub(crate) fn expression(text: &Text) -> Result<Expr, Diagnostic> {
    let mut p = Parser::new(text)?;
    let built = p.expr()?;
    p.end()?;
    Ok(built.expr)
}

/// Parses `[B, T + 1, ..]`.
pub(crate) fn shape(text: &Text) -> Result<Shape, Diagnostic> {
    let expr = expression(text)?;
    match expr.kind {
        ExprKind::List(dims) => Ok(Shape { dims, span: expr.span }),
        _ => Err(Diagnostic::error("a shape is a list of sizes in brackets")
            .label(expr.span, "not in brackets")
            .help("write `\"[B, 3, 224, 224]\"`; a scalar is `\"[]\"`")),
    }
}

/// An expression with the height of its tree, so that the bound holds for long chains (`a + b + c + ...`) as well as
/// for nested brackets.
struct Built {
    expr: Expr,
    height: u32,
}

struct Parser<'a> {
    text: &'a Text,
    tokens: Vec<Token>,
    at: usize,
    /// Recursion depth of the parser itself.
    depth: u32,
}

type Result<T, E = Diagnostic> = std::result::Result<T, E>;

impl<'a> Parser<'a> {
    fn new(text: &'a Text) -> Result<Self> {
        let tokens = tokens(text)?;
        if tokens.len() == 1 {
            return Err(Diagnostic::error("empty expression")
                .label(text.literal, "nothing in it")
                .help("write a value such as `0`, or leave the field out"));
        }
        Ok(Parser { text, tokens, at: 0, depth: 0 })
    }

    fn peek(&self) -> &Tok {
        self.tokens.get(self.at).map_or(&Tok::End, |t| &t.tok)
    }

    fn span(&self) -> Span {
        self.tokens.get(self.at).map_or(self.text.content(), |t| t.span)
    }

    /// The end of the token before this one.
    fn since(&self, start: Span) -> Span {
        let last = self.at.checked_sub(1).and_then(|i| self.tokens.get(i));
        last.map_or(start, |t| start.to(t.span))
    }

    fn is(&self, symbol: &str) -> bool {
        matches!(self.peek(), Tok::Symbol(s) if *s == symbol)
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Tok::Name(n) if n == word)
    }

    fn eat(&mut self, symbol: &str) -> bool {
        let found = self.is(symbol);
        self.at += usize::from(found);
        found
    }

    fn eat_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        self.at += usize::from(found);
        found
    }

    fn expected(&self, what: &str) -> Diagnostic {
        Diagnostic::error(format!("expected {what}, found {}", self.peek().describe()))
            .label(self.span(), format!("expected {what}"))
    }

    fn end(&self) -> Result<()> {
        if *self.peek() == Tok::End {
            return Ok(());
        }
        let error = self.expected("an operator or the end of the expression");
        Err(match self.peek() {
            Tok::Symbol("=") => error.help("`=` stands once, after the names on the left; compare with `==`"),
            Tok::Symbol(")" | "]") => error.help("there is no bracket open that this one could close"),
            Tok::Symbol(",") => error.help("several values stand in brackets: `[B, T]` is a shape, `(a, b)` a tuple"),
            _ => error.help("is an operator or a comma missing before it?"),
        })
    }

    /// After an item of a list in brackets: the comma or the end.
    fn close(&mut self, open: Span, bracket: &str, close: &'static str) -> Result<()> {
        if self.eat(close) {
            return Ok(());
        }
        let error = self.expected(&format!("`,` or `{close}`")).context(open, format!("this `{bracket}` is open"));
        Err(match self.peek() {
            Tok::End | Tok::Symbol(")" | "]") => error.help(format!("close it with `{close}`")),
            Tok::Symbol("=") => error.help("arguments are given by name with a colon: `axis: -1`"),
            _ => error,
        })
    }

    fn build(&self, kind: ExprKind, span: Span, children: u32) -> Result<Built> {
        if children >= MAX_DEPTH {
            return Err(too_deep(span));
        }
        Ok(Built { expr: Expr { kind, span }, height: children + 1 })
    }

    fn target(&mut self) -> Result<Name> {
        match self.peek().clone() {
            Tok::Name(name) if !KEYWORDS.contains(&name.as_str()) => {
                let name = Name::new(name, self.span());
                self.at += 1;
                Ok(name)
            }
            Tok::Name(word) => Err(self.expected("a name").note(format!("`{word}` is a word of the language"))),
            _ => Err(self.expected("a name").help("an equation is `name = expression`")),
        }
    }

    /// What several names are given: one expression, or one for each, `f(x), g(x)`.
    fn values(&mut self) -> Result<Expr> {
        let start = self.span();
        let first = self.expr()?;
        if !self.is(",") {
            return Ok(first.expr);
        }
        let (mut height, mut items) = (first.height, vec![first.expr]);
        while self.eat(",") {
            let built = self.expr()?;
            height = height.max(built.height);
            items.push(built.expr);
        }
        Ok(self.build(ExprKind::Tuple(items), self.since(start), height)?.expr)
    }

    fn expr(&mut self) -> Result<Built> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(too_deep(self.span()));
        }
        let start = self.span();
        let mut built = self.binary(0)?;
        if self.eat_word("if") {
            let condition = self.binary(0)?;
            if !self.eat_word("else") {
                return Err(self.expected("`else`").help("a choice is written `a if condition else b`"));
            }
            let otherwise = self.expr()?;
            let height = built.height.max(condition.height).max(otherwise.height);
            let kind = ExprKind::If {
                then: Box::new(built.expr),
                condition: Box::new(condition.expr),
                otherwise: Box::new(otherwise.expr),
            };
            built = self.build(kind, self.since(start), height)?;
        }
        self.depth -= 1;
        Ok(built)
    }

    /// Operators that bind at least as tightly as `level`.
    fn binary(&mut self, level: u8) -> Result<Built> {
        let start = self.span();
        let mut left = self.prefix(level)?;
        let mut compared = false;
        while let Some((op, binds)) = self.operator() {
            if binds < level {
                break;
            }
            if binds == COMPARE {
                if compared {
                    return Err(Diagnostic::error("comparisons do not chain")
                        .label(self.span(), "second comparison")
                        .help("write `a < b and b < c`"));
                }
                compared = true;
            }
            self.at += 1;
            let right = self.binary(binds + 1)?;
            let height = left.height.max(right.height);
            let kind = ExprKind::Binary(op, Box::new(left.expr), Box::new(right.expr));
            left = self.build(kind, self.since(start), height)?;
        }
        Ok(left)
    }

    fn operator(&self) -> Option<(BinaryOp, u8)> {
        let word = match self.peek() {
            Tok::Symbol(symbol) => symbol,
            Tok::Name(name) => name.as_str(),
            _ => return None,
        };
        OPERATORS.iter().find(|(op, _)| op.symbol() == word).copied()
    }

    fn prefix(&mut self, level: u8) -> Result<Built> {
        let start = self.span();
        let (op, binds) = if self.is("-") {
            (UnaryOp::Neg, UNARY)
        } else if self.is_word("not") && level <= NOT {
            (UnaryOp::Not, NOT)
        } else {
            return self.power();
        };
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(too_deep(start));
        }
        self.at += 1;
        let operand = self.binary(binds)?;
        self.depth -= 1;
        self.build(ExprKind::Unary(op, Box::new(operand.expr)), self.since(start), operand.height)
    }

    fn power(&mut self) -> Result<Built> {
        let start = self.span();
        let base = self.postfix()?;
        if !self.eat("**") {
            return Ok(base);
        }
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(too_deep(start));
        }
        // Binds tighter on its left than on its right: 2 ** -1, a ** b ** c = a ** (b ** c).
        let exponent = self.prefix(UNARY)?;
        self.depth -= 1;
        let height = base.height.max(exponent.height);
        let kind = ExprKind::Binary(BinaryOp::Pow, Box::new(base.expr), Box::new(exponent.expr));
        self.build(kind, self.since(start), height)
    }

    fn postfix(&mut self) -> Result<Built> {
        let start = self.span();
        let mut built = self.primary()?;
        loop {
            let open = self.span();
            if self.eat("(") {
                let (args, height) = self.args(open)?;
                let kind = ExprKind::Call(Box::new(built.expr), args);
                built = self.build(kind, self.since(start), built.height.max(height))?;
            } else if self.eat("[") {
                let (indices, height) = self.indices(open)?;
                let kind = ExprKind::Index(Box::new(built.expr), indices);
                built = self.build(kind, self.since(start), built.height.max(height))?;
            } else if self.eat(".") {
                let at = self.span();
                // `blocks.0` is `blocks[0]`, as in the paths of parameters.
                let kind = match *self.peek() {
                    Tok::Int(n) => {
                        self.at += 1;
                        let index = Expr { kind: ExprKind::Int(n), span: at };
                        ExprKind::Index(Box::new(built.expr), vec![Index::At(index)])
                    }
                    _ => ExprKind::Member(Box::new(built.expr), self.target()?),
                };
                built = self.build(kind, self.since(start), built.height)?;
            } else {
                return Ok(built);
            }
        }
    }

    fn args(&mut self, open: Span) -> Result<(Vec<Arg>, u32)> {
        let mut args: Vec<Arg> = Vec::new();
        let mut height = 0;
        while !self.eat(")") {
            let arg = self.arg(&mut height)?;
            check_order(&args, &arg)?;
            args.push(arg);
            if !self.eat(",") {
                self.close(open, "(", ")")?;
                break;
            }
        }
        Ok((args, height))
    }

    fn arg(&mut self, height: &mut u32) -> Result<Arg> {
        let named = matches!(self.tokens.get(self.at + 1), Some(Token { tok: Tok::Symbol(":"), .. }));
        let name = if named { Some(self.target()?) } else { None };
        self.at += usize::from(named);
        let value = self.expr()?;
        *height = value.height.max(*height);
        Ok(Arg { name, value: value.expr })
    }

    fn indices(&mut self, open: Span) -> Result<(Vec<Index>, u32)> {
        let mut indices = Vec::new();
        let mut height = 0;
        while !self.eat("]") {
            indices.push(self.index(&mut height)?);
            if !self.eat(",") {
                self.close(open, "[", "]")?;
                break;
            }
        }
        if indices.is_empty() {
            return Err(Diagnostic::error("an index is missing")
                .label(self.since(open), "empty brackets")
                .help("write `x[:, 0]`; `x[..]` is all of x"));
        }
        Ok((indices, height))
    }

    fn index(&mut self, height: &mut u32) -> Result<Index> {
        let start = self.span();
        if self.eat("..") {
            return Ok(Index::Rest(start));
        }
        let mut bound = |p: &mut Self| -> Result<Option<Expr>> {
            if p.is(":") || p.is(",") || p.is("]") {
                return Ok(None);
            }
            let built = p.expr()?;
            *height = built.height.max(*height);
            Ok(Some(built.expr))
        };
        let first = bound(self)?;
        if !self.eat(":") {
            return first.map(Index::At).ok_or_else(|| self.expected("an index"));
        }
        let stop = bound(self)?;
        let step = if self.eat(":") { bound(self)? } else { None };
        Ok(Index::Range { start: first, stop, step, span: self.since(start) })
    }

    fn primary(&mut self) -> Result<Built> {
        let start = self.span();
        let kind = match self.peek().clone() {
            Tok::Int(n) => ExprKind::Int(n),
            Tok::Float(x) => ExprKind::Float(x),
            Tok::Str(s) => ExprKind::Str(s),
            Tok::Name(name) => match name.as_str() {
                "true" => ExprKind::Bool(true),
                "false" => ExprKind::Bool(false),
                "none" => ExprKind::None,
                word if KEYWORDS.contains(&word) => return Err(self.no_value()),
                _ => ExprKind::Name(name),
            },
            Tok::Symbol("(") => return self.parenthesised(start),
            Tok::Symbol("[") => return self.list(start),
            _ => return Err(self.no_value()),
        };
        self.at += 1;
        self.build(kind, start, 0)
    }

    fn no_value(&self) -> Diagnostic {
        let before = self.at.checked_sub(1).and_then(|i| self.tokens.get(i));
        let help = "a value is a number, a name, a string in single quotes, a call or something in brackets";
        match before {
            Some(token) => {
                self.expected("a value").help(format!("{} needs a value after it; {help}", token.tok.describe()))
            }
            None => self.expected("a value").help(help),
        }
    }

    fn parenthesised(&mut self, open: Span) -> Result<Built> {
        self.at += 1;
        let mut items = Vec::new();
        let mut height = 0;
        let mut comma = false;
        while !self.eat(")") {
            let built = self.expr()?;
            height = built.height.max(height);
            items.push(built.expr);
            if self.eat(",") {
                comma = true;
            } else {
                self.close(open, "(", ")")?;
                break;
            }
        }
        let span = self.since(open);
        match items.pop() {
            // The span grows to the brackets, so that a caret under `(a + b)` covers them.
            Some(only) if items.is_empty() && !comma => Ok(Built { expr: Expr { span, ..only }, height }),
            last => {
                items.extend(last);
                self.build(ExprKind::Tuple(items), span, height)
            }
        }
    }

    fn list(&mut self, open: Span) -> Result<Built> {
        self.at += 1;
        let mut items = Vec::new();
        let mut height = 0;
        while !self.eat("]") {
            let built = self.item()?;
            height = built.height.max(height);
            items.push(built.expr);
            if items.len() == 1 && self.eat(";") {
                let count = self.expr()?;
                self.close(open, "[", "]")?;
                let item = Box::new(items.remove(0));
                let kind = ExprKind::Repeat { item, count: Box::new(count.expr) };
                return self.build(kind, self.since(open), height.max(count.height));
            }
            if !self.eat(",") {
                self.close(open, "[", "]")?;
                break;
            }
        }
        self.build(ExprKind::List(items), self.since(open), height)
    }

    fn item(&mut self) -> Result<Built> {
        let start = self.span();
        if !self.eat("..") {
            return self.expr();
        }
        let name = if let Tok::Name(_) = self.peek() { Some(self.target()?) } else { None };
        self.build(ExprKind::Rest(name), self.since(start), 0)
    }
}

const NOT: u8 = 2;
const COMPARE: u8 = 3;
/// A minus binds as tightly as a product's operands: `-a * b` is `(-a) * b`, `a * -b` is fine.
const UNARY: u8 = 6;

/// How tightly each binds; `**` is read by [`Parser::power`].
const OPERATORS: [(BinaryOp, u8); 14] = [
    (BinaryOp::Or, 0),
    (BinaryOp::And, 1),
    (BinaryOp::Lt, COMPARE),
    (BinaryOp::Le, COMPARE),
    (BinaryOp::Gt, COMPARE),
    (BinaryOp::Ge, COMPARE),
    (BinaryOp::Eq, COMPARE),
    (BinaryOp::Ne, COMPARE),
    (BinaryOp::Add, 4),
    (BinaryOp::Sub, 4),
    (BinaryOp::Mul, 5),
    (BinaryOp::Div, 5),
    (BinaryOp::Rem, 5),
    (BinaryOp::MatMul, 5),
];

fn check_order(before: &[Arg], arg: &Arg) -> Result<()> {
    let Some(name) = &arg.name else {
        return match before.last().and_then(|a| a.name.as_ref()) {
            Some(named) => Err(Diagnostic::error("positional argument after a named one")
                .label(arg.value.span, "has no name")
                .context(named.span, "has a name")
                .help("put positional arguments first, or name this one too")),
            None => Ok(()),
        };
    };
    match before.iter().filter_map(|a| a.name.as_ref()).find(|n| *n == name) {
        Some(first) => Err(Diagnostic::error(format!("argument `{name}` is given twice"))
            .label(name.span, "again here")
            .context(first.span, "first here")
            .help("remove one of them")),
        None => Ok(()),
    }
}

fn too_deep(span: Span) -> Diagnostic {
    Diagnostic::error("expression nested too deep")
        .label(span, format!("more than {MAX_DEPTH} levels"))
        .help("split it into several equations")
}
