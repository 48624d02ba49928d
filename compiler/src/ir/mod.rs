//! What every pass works with: graphs ([`crate::graph`]), the builder that adds to them ([`crate::ops`]), and what can be done
//! with any graph: running it in f64 ([`interpret`]), its text form ([`print`](fn@print), [`parse`](fn@parse)), its contract
//! ([`verify`](fn@verify)), and tidying it ([`simplify`](fn@simplify)).

mod interpret;
mod parse;
mod print;
mod simplify;
mod verify;

pub use crate::graph::*;
pub use crate::ops::{Builder, Subscript};
pub use interpret::*;
pub use parse::{ParseError, parse};
pub use print::{describe, print};
pub(crate) use simplify::commutes;
pub use simplify::{Simplified, StopGradients, eliminate_dead, simplify};
pub use verify::{verify, verify_model};
