//! Arguments of a call, bound by the signature of its op.

use super::super::Vocab;
use super::images::{CLIP_MEAN, CLIP_STD};
use super::{Filter, Sampling, Signature};

/// An argument of a call, as the expression parser sees it.
#[derive(Clone, Debug, PartialEq)]
pub enum Argument {
    /// A name: a value, or a constant such as `clip_mean`.
    Name(String),
    /// A number.
    Number(f64),
    /// A tuple of numbers.
    Tuple(Vec<f64>),
    /// A string.
    Text(String),
}

/// The constants that a body may name.
pub fn constant(name: &str) -> Option<Argument> {
    match name {
        "clip_mean" => Some(Argument::Tuple(CLIP_MEAN.to_vec())),
        "clip_std" => Some(Argument::Tuple(CLIP_STD.to_vec())),
        _ => None,
    }
}

impl Argument {
    /// The default of a signature; none where it is "".
    fn written(default: &str) -> Option<Argument> {
        let number = |text: &str| text.trim().parse::<f64>().ok();
        let inner = |open: char, close: char| default.strip_prefix(open)?.strip_suffix(close);
        if let Some(items) = inner('(', ')') {
            return items.split(',').map(number).collect::<Option<_>>().map(Argument::Tuple);
        }
        if let Some(text) = inner('\'', '\'') {
            return Some(Argument::Text(text.to_string()));
        }
        number(default).map(Argument::Number).or_else(|| constant(default))
    }
}

/// Arguments of a call by name.
pub(super) struct Arguments<'a> {
    signature: &'a Signature,
    values: Vec<(String, Argument)>,
}

impl<'a> Arguments<'a> {
    /// Gives arguments their names; value inputs are taken off before.
    pub(super) fn new(
        signature: &'a Signature,
        positional: &[Argument],
        named: &[(String, Argument)],
    ) -> Result<Arguments<'a>, String> {
        let (op, args) = (signature.name, signature.args);
        let mut values: Vec<(String, Argument)> = Vec::new();
        for argument in positional {
            let (name, _) = args
                .get(values.len())
                .ok_or_else(|| format!("`{op}` takes at most {} arguments", signature.inputs.len() + args.len()))?;
            values.push((name.to_string(), argument.clone()));
        }
        for (name, argument) in named {
            if !args.iter().any(|(known, _)| known == name) {
                let known: Vec<&str> = args.iter().map(|(name, _)| *name).collect();
                return Err(format!("`{op}` has no argument `{name}`; it has: {}", known.join(", ")));
            }
            if values.iter().any(|(known, _)| known == name) {
                return Err(format!("argument `{name}` of `{op}` is given twice"));
            }
            values.push((name.clone(), argument.clone()));
        }
        Ok(Arguments { signature, values })
    }

    /// Name of the op.
    pub(super) fn op(&self) -> &str {
        self.signature.name
    }

    /// An argument, or its default.
    fn get(&self, name: &str) -> Result<Argument, String> {
        let given = self.values.iter().find(|(known, _)| known == name).map(|(_, argument)| argument.clone());
        let default = self.signature.args.iter().find(|(known, _)| *known == name);
        let argument = given.or_else(|| Argument::written(default?.1));
        let argument = argument.ok_or_else(|| format!("`{}` needs an argument `{name}`", self.op()))?;
        Ok(match &argument {
            Argument::Name(name) => constant(name).unwrap_or(argument),
            _ => argument,
        })
    }

    fn wrong<T>(&self, name: &str, wanted: &str, given: &Argument) -> Result<T, String> {
        let given = match given {
            Argument::Name(name) => format!("the name `{name}`"),
            Argument::Number(number) => format!("{number}"),
            Argument::Tuple(items) => format!("a tuple of {} numbers", items.len()),
            Argument::Text(text) => format!("'{text}'"),
        };
        Err(format!("argument `{name}` of `{}` is {wanted}, not {given}", self.op()))
    }

    fn number(&self, name: &str) -> Result<f64, String> {
        match self.get(name)? {
            Argument::Number(number) => Ok(number),
            other => self.wrong(name, "a number", &other),
        }
    }

    /// A number between `low` and `high`.
    pub(super) fn within(&self, name: &str, low: f64, high: f64) -> Result<f64, String> {
        let number = self.number(name)?;
        if (low..=high).contains(&number) {
            return Ok(number);
        }
        Err(format!("`{name}` is a number between {low} and {high}, not {number}"))
    }

    /// A probability.
    pub(super) fn probability(&self, name: &str) -> Result<f64, String> {
        let p = self.number(name)?;
        if (0.0..=1.0).contains(&p) {
            return Ok(p);
        }
        Err(format!("`{name}` is a probability between 0 and 1, not {p}"))
    }

    fn whole(&self, name: &str, low: u32, high: u32) -> Result<u32, String> {
        match self.get(name)? {
            Argument::Number(number)
                if number.fract() == 0.0 && (f64::from(low)..=f64::from(high)).contains(&number) =>
            {
                Ok(number as u32)
            }
            other => self.wrong(name, &format!("a whole number from {low} to {high}"), &other),
        }
    }

    /// A size or a count.
    pub(super) fn integer(&self, name: &str) -> Result<u32, String> {
        // 65535: no image format in use goes beyond, and sizes multiply without overflow.
        self.whole(name, 1, 65_535)
    }

    /// A number of something, counted from 0.
    pub(super) fn index(&self, name: &str, high: u32) -> Result<u32, String> {
        self.whole(name, 0, high)
    }

    fn pair(&self, name: &str) -> Result<(f64, f64), String> {
        match self.get(name)? {
            Argument::Tuple(items) if items.len() == 2 => Ok((items[0], items[1])),
            other => self.wrong(name, "a pair (low, high)", &other),
        }
    }

    /// A range of positive numbers.
    pub(super) fn range(&self, name: &str, limit: f64) -> Result<(f64, f64), String> {
        let (low, high) = self.pair(name)?;
        if low > 0.0 && low <= high && high <= limit {
            return Ok((low, high));
        }
        let bound = if limit.is_finite() { format!(" <= {limit}") } else { String::new() };
        Err(format!("`{name}` is a range (low, high) with 0 < low <= high{bound}, not ({low}, {high})"))
    }

    /// A range of numbers that may be negative.
    pub(super) fn span(&self, name: &str, limit: f64) -> Result<(f64, f64), String> {
        let (low, high) = self.pair(name)?;
        if -limit <= low && low <= high && high <= limit {
            return Ok((low, high));
        }
        Err(format!("`{name}` is a range (low, high) with -{limit} <= low <= high <= {limit}, not ({low}, {high})"))
    }

    /// A number for each of red, green and blue.
    pub(super) fn triple(&self, name: &str) -> Result<[f64; 3], String> {
        match self.get(name)? {
            Argument::Number(number) => Ok([number; 3]),
            Argument::Tuple(items) if items.len() == 3 => Ok([items[0], items[1], items[2]]),
            other => self.wrong(name, "three numbers (red, green, blue)", &other),
        }
    }

    pub(super) fn text(&self, name: &str) -> Result<String, String> {
        match self.get(name)? {
            Argument::Text(text) => Ok(text),
            other => self.wrong(name, "a string", &other),
        }
    }

    /// One of several words.
    fn word<T: Copy>(&self, name: &str, known: &[(&str, T)]) -> Result<T, String> {
        let given = self.get(name)?;
        if let Argument::Text(text) = &given
            && let Some((_, value)) = known.iter().find(|(known, _)| known == text)
        {
            return Ok(*value);
        }
        let known: Vec<String> = known.iter().map(|(known, _)| format!("'{known}'")).collect();
        self.wrong(name, &known.join(" or "), &given)
    }

    pub(super) fn filter(&self) -> Result<Filter, String> {
        self.word("filter", &[("triangle", Filter::Triangle), ("bicubic", Filter::Bicubic)])
    }

    pub(super) fn sampling(&self) -> Result<Sampling, String> {
        self.word("filter", &[("nearest", Sampling::Nearest), ("bilinear", Sampling::Bilinear)])
    }

    pub(super) fn vocab(&self) -> Result<Vocab, String> {
        match self.get("vocab")? {
            Argument::Text(text) => Vocab::parse(&text),
            other => self.wrong("vocab", "a string such as 'clip' or 'words:512'", &other),
        }
    }

    /// Length of a row of ids.
    pub(super) fn context(&self) -> Result<u32, String> {
        let context = self.integer("context")?;
        // Start, one token, end.
        if context < 3 {
            return Err(format!("`context` must be at least 3, not {context}"));
        }
        Ok(context)
    }
}
