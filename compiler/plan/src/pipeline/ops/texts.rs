//! Texts: chosen, changed, tokenised, masked.

use serde::{Deserialize, Serialize};

use super::arguments::Arguments;
use super::{Evaluation, Rule, Signature, mismatch, row};
use crate::DType;
use crate::pipeline::{ValueKind, Vocab};

/// `prefix(text, words)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefix {
    /// What is put before the text.
    pub words: String,
}

impl Rule for Prefix {
    const SIGNATURE: Signature = Signature {
        name: "prefix",
        inputs: &["text"],
        args: &[("words", "")],
        further: &[],
        doc: "Puts words before a text, or before each of several, as they are: `prefix(caption, 'a photo of ')`.",
    };

    fn bind(arguments: &Arguments<'_>) -> Result<Self, String> {
        Ok(Prefix { words: arguments.text("words")? })
    }

    fn results(&self, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
        match inputs {
            [kind @ (ValueKind::Text | ValueKind::Texts)] => Ok(vec![kind.clone()]),
            _ => mismatch(Self::SIGNATURE.name, "a text or several", inputs),
        }
    }

    fn evaluation(&self) -> Evaluation {
        Evaluation::Same
    }
}

fn one_of_several(op: &str, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
    match inputs {
        [ValueKind::Texts] => Ok(vec![ValueKind::Text, row(DType::F32, 1)]),
        _ => mismatch(op, "several texts", inputs),
    }
}

/// `pick(texts, index)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pick {
    /// Which one.
    pub index: u32,
}

impl Rule for Pick {
    const SIGNATURE: Signature = Signature {
        name: "pick",
        inputs: &["texts"],
        args: &[("index", "0")],
        further: &[("drawn", "f32 [1]: `index`")],
        doc: "One of several texts, counted from 0; a sample with fewer is skipped.",
    };

    fn bind(arguments: &Arguments<'_>) -> Result<Self, String> {
        Ok(Pick { index: arguments.index("index", 65_535)? })
    }

    fn results(&self, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
        one_of_several(Self::SIGNATURE.name, inputs)
    }

    fn evaluation(&self) -> Evaluation {
        Evaluation::Same
    }
}

/// `choose(texts)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choose;

impl Rule for Choose {
    const SIGNATURE: Signature = Signature {
        name: "choose",
        inputs: &["texts"],
        args: &[],
        further: &[("drawn", "f32 [1]: which, counted from 0")],
        doc: "One of several texts, each with the same probability; a sample without any is skipped. In evaluation the first.",
    };

    fn bind(_: &Arguments<'_>) -> Result<Self, String> {
        Ok(Choose)
    }

    fn results(&self, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
        one_of_several(Self::SIGNATURE.name, inputs)
    }

    fn evaluation(&self) -> Evaluation {
        Evaluation::Instead(Pick { index: 0 }.into())
    }
}

fn changed_text(op: &str, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
    match inputs {
        [ValueKind::Text] => Ok(vec![ValueKind::Text, row(DType::F32, 1)]),
        _ => mismatch(op, "a text", inputs),
    }
}

/// `drop(text, p)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DropWords {
    /// Probability of each word.
    pub p: f64,
}

impl Rule for DropWords {
    const SIGNATURE: Signature = Signature {
        name: "drop",
        inputs: &["text"],
        args: &[("p", "0.1")],
        further: &[("drawn", "f32 [1]: how many words were left out")],
        doc: "Leaves out each word of a text with probability `p`, as EDA deletes: a text of one word stays, and where all would \
              go, one drawn word stays. Words are what white space parts, and are joined by one space.",
    };

    fn bind(arguments: &Arguments<'_>) -> Result<Self, String> {
        Ok(DropWords { p: arguments.probability("p")? })
    }

    fn results(&self, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
        changed_text(Self::SIGNATURE.name, inputs)
    }

    fn evaluation(&self) -> Evaluation {
        Evaluation::Nothing(DropWords { p: 0.0 }.into())
    }
}

/// `swap(text, p)`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SwapWords {
    /// Share of the words.
    pub p: f64,
}

impl Rule for SwapWords {
    const SIGNATURE: Signature = Signature {
        name: "swap",
        inputs: &["text"],
        args: &[("p", "0.1")],
        further: &[("drawn", "f32 [1]: how often two words changed places")],
        doc: "Two different words of a text change places, p n times for its n words, rounded down and at least once, as EDA \
              swaps; 0 times with `p: 0` or a single word. Words are what white space parts, and are joined by one space.",
    };

    fn bind(arguments: &Arguments<'_>) -> Result<Self, String> {
        Ok(SwapWords { p: arguments.probability("p")? })
    }

    fn results(&self, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
        changed_text(Self::SIGNATURE.name, inputs)
    }

    fn evaluation(&self) -> Evaluation {
        Evaluation::Nothing(SwapWords { p: 0.0 }.into())
    }
}

/// `tokenize(text, context, vocab)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokenize {
    /// Length of the row.
    pub context: u32,
    /// Token ids.
    pub vocab: Vocab,
}

impl Rule for Tokenize {
    const SIGNATURE: Signature = Signature {
        name: "tokenize",
        inputs: &["text"],
        args: &[("context", "77"), ("vocab", "'clip'")],
        further: &[],
        doc: "Token ids i32 [context]: start, the text's tokens, end, zeros; a longer text is cut and its last id is the end. \
              `vocab` is 'clip', 'words:SIZE', 'words:SIZE:FILE', or 'file:FILE' with a `tokenizer.json` of Hugging Face's \
              tokenizers, which says start, end and padding itself.",
    };

    fn bind(arguments: &Arguments<'_>) -> Result<Self, String> {
        Ok(Tokenize { context: arguments.context()?, vocab: arguments.vocab()? })
    }

    fn results(&self, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
        match inputs {
            [ValueKind::Text] => Ok(vec![row(DType::I32, self.context)]),
            _ => mismatch(Self::SIGNATURE.name, "a text", inputs),
        }
    }

    fn evaluation(&self) -> Evaluation {
        Evaluation::Same
    }
}

/// `tokenize_all(texts, count, context, vocab)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizeAll {
    /// Number of rows.
    pub count: u32,
    /// Length of a row.
    pub context: u32,
    /// Token ids.
    pub vocab: Vocab,
}

impl Rule for TokenizeAll {
    const SIGNATURE: Signature = Signature {
        name: "tokenize_all",
        inputs: &["texts"],
        args: &[("count", ""), ("context", "77"), ("vocab", "'clip'")],
        further: &[("own", "f32 [count]: 1 for a text of its own, 0 for one that stands there again")],
        doc: "Token ids i32 [count, context] of several texts, each as by `tokenize`: of more than `count` the first, fewer are \
              repeated from the first on, so that every row is of a text of the sample. A sample without any is skipped.",
    };

    fn bind(arguments: &Arguments<'_>) -> Result<Self, String> {
        Ok(TokenizeAll { count: arguments.integer("count")?, context: arguments.context()?, vocab: arguments.vocab()? })
    }

    fn results(&self, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
        match inputs {
            [ValueKind::Texts] => {
                let shape = vec![u64::from(self.count), u64::from(self.context)];
                Ok(vec![ValueKind::Tensor { dtype: DType::I32, shape }, row(DType::F32, self.count)])
            }
            _ => mismatch(Self::SIGNATURE.name, "several texts", inputs),
        }
    }

    fn evaluation(&self) -> Evaluation {
        Evaluation::Same
    }
}

/// `mask_tokens(ids, mask, p, vocab)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MaskTokens {
    /// The id that stands for a masked token.
    pub mask: u32,
    /// Probability of each token.
    pub p: f64,
    /// What the ids are of.
    pub vocab: Vocab,
}

impl Rule for MaskTokens {
    const SIGNATURE: Signature = Signature {
        name: "mask_tokens",
        inputs: &["ids"],
        args: &[("mask", ""), ("p", "0.15"), ("vocab", "'clip'")],
        further: &[
            (
                "targets",
                "i32 as `ids`: the token that stood there where one was drawn, else 0, so that any table can be asked for it",
            ),
            ("drawn", "f32 as `ids`: 1 where a token was drawn, the weight of a loss"),
        ],
        doc: "Token ids of which each between start and end is drawn with probability `p`; as in BERT, eight in ten of the drawn \
              become the id `mask`, one in ten any token of `vocab`, one in ten stays. `mask` is below start and end, so that \
              the end stays the largest id: CLIP's vocabulary has none to spare but 0, which is padding and `!`; of 'words:SIZE', 1 is \
              any unknown word.",
    };

    fn bind(arguments: &Arguments<'_>) -> Result<Self, String> {
        let vocab = arguments.vocab()?;
        let ids = vocab.size().ok_or_else(|| {
            format!("`mask_tokens` needs start and end of text to be the last ids, which nobody knows of '{vocab}'; mask ids of 'clip' or 'words:SIZE'")
        })?;
        // Start and end are the last two.
        let mask = arguments.index("mask", ids - 3)?;
        Ok(MaskTokens { mask, p: arguments.probability("p")?, vocab })
    }

    fn results(&self, inputs: &[ValueKind]) -> Result<Vec<ValueKind>, String> {
        match inputs {
            [ids @ ValueKind::Tensor { dtype: DType::I32, shape }] => {
                let drawn = ValueKind::Tensor { dtype: DType::F32, shape: shape.clone() };
                Ok(vec![ids.clone(), ids.clone(), drawn])
            }
            _ => mismatch(Self::SIGNATURE.name, "a row of token ids", inputs),
        }
    }

    fn evaluation(&self) -> Evaluation {
        Evaluation::Instead(MaskTokens { p: 0.0, ..self.clone() }.into())
    }
}
