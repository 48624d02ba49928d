//! Texts: chosen, changed, tokenised, masked.

use alip_plan::philox::uniform;
use alip_plan::pipeline::{Choose, DropWords, MaskTokens, Pick, Prefix, SwapWords};

use super::step::{Apply, Draws, Inputs, Made, Value, mismatch};
use crate::data::order::below;
use crate::data::{Field, SampleError, Tokenizer};

impl Apply for Prefix {
    fn apply(&self, inputs: &mut Inputs<'_>, _: &Draws) -> Result<Made, SampleError> {
        let prefixed = |text: String| format!("{}{text}", self.words);
        match inputs.field(0)? {
            Field::Text(text) => Ok(prefixed(text).into()),
            Field::Texts(texts) => Ok(Value::Field(Field::Texts(texts.into_iter().map(prefixed).collect())).into()),
            _ => mismatch("something else", "a text"),
        }
    }
}

/// One of several texts, with its place among them.
fn nth(texts: &[String], index: usize) -> Result<Made, SampleError> {
    match texts.get(index) {
        Some(text) => Ok(Made::drawn(text.clone(), [index as f32])),
        None => {
            Err(SampleError(format!("it has {} texts, but text {index}, counted from 0, is asked for", texts.len())))
        }
    }
}

impl Apply for Pick {
    fn apply(&self, inputs: &mut Inputs<'_>, _: &Draws) -> Result<Made, SampleError> {
        nth(&inputs.texts(0)?, self.index as usize)
    }
}

impl Apply for Choose {
    fn apply(&self, inputs: &mut Inputs<'_>, draws: &Draws) -> Result<Made, SampleError> {
        let texts = inputs.texts(0)?;
        nth(&texts, draws.below(0, texts.len()))
    }
}

impl Apply for DropWords {
    fn apply(&self, inputs: &mut Inputs<'_>, draws: &Draws) -> Result<Made, SampleError> {
        let text = inputs.text(0)?;
        let words: Vec<&str> = text.split_whitespace().collect();
        if words.len() < 2 {
            return Ok(Made::drawn(text.into_owned(), [0.0]));
        }
        let stays = |place: u64| f64::from(uniform(draws.block(1 + place)[0])) >= self.p;
        let mut left: Vec<&str> = (0..).zip(&words).filter(|(place, _)| stays(*place)).map(|(_, word)| *word).collect();
        if left.is_empty() {
            left.push(words[draws.below(0, words.len())]);
        }
        // A text of which nothing was dropped stays as it is, spaces and all.
        match words.len() - left.len() {
            0 => Ok(Made::drawn(text.into_owned(), [0.0])),
            dropped => Ok(Made::drawn(left.join(" "), [dropped as f32])),
        }
    }
}

impl Apply for SwapWords {
    fn apply(&self, inputs: &mut Inputs<'_>, draws: &Draws) -> Result<Made, SampleError> {
        let text = inputs.text(0)?;
        let mut words: Vec<&str> = text.split_whitespace().collect();
        let n = words.len();
        if n < 2 || self.p == 0.0 {
            return Ok(Made::drawn(text.into_owned(), [0.0]));
        }
        let times = ((self.p * n as f64) as u64).max(1);
        for time in 0..times {
            let bits = draws.block(time);
            let first = below(n as u64, [bits[0], bits[1], 0, 0]) as usize;
            // One of the others, counted on from the first.
            let second = (first + 1 + below(n as u64 - 1, [bits[2], bits[3], 0, 0]) as usize) % n;
            words.swap(first, second);
        }
        Ok(Made::drawn(words.join(" "), [times as f32]))
    }
}

/// `tokenize`, with its tokenizer.
pub(super) struct Tokens {
    pub(super) tokenizer: Tokenizer,
    pub(super) context: usize,
}

impl Apply for Tokens {
    fn apply(&self, inputs: &mut Inputs<'_>, _: &Draws) -> Result<Made, SampleError> {
        Ok(self.tokenizer.encode(&inputs.text(0)?, self.context).into())
    }
}

/// `tokenize_all`, with its tokenizer.
pub(super) struct AllTokens {
    pub(super) tokenizer: Tokenizer,
    pub(super) count: usize,
    pub(super) context: usize,
}

impl Apply for AllTokens {
    fn apply(&self, inputs: &mut Inputs<'_>, _: &Draws) -> Result<Made, SampleError> {
        let texts = inputs.texts(0)?;
        if texts.is_empty() {
            return Err(SampleError("it has no texts".into()));
        }
        let own = self.count.min(texts.len());
        let mut ids = vec![0; self.count * self.context];
        let (first, again) = ids.split_at_mut(own * self.context);
        for (text, row) in texts.iter().zip(first.chunks_exact_mut(self.context)) {
            self.tokenizer.encode_into(text, row);
        }
        again.iter_mut().zip(first.iter().cycle()).for_each(|(again, id)| *again = *id);
        let flags: Vec<f32> = (0..self.count).map(|row| f32::from(row < own)).collect();
        Ok(Made::drawn(ids, flags))
    }
}

impl Apply for MaskTokens {
    fn apply(&self, inputs: &mut Inputs<'_>, draws: &Draws) -> Result<Made, SampleError> {
        let ids = inputs.ids(0)?;
        // An op is bound to none whose size nobody knows.
        let Some(size) = self.vocab.size() else { return mismatch("ids of a file", "ids of a known vocabulary") };
        let end = size as i32 - 1;
        let (mut masked, mut targets, mut drawn) = (ids.to_vec(), vec![0; ids.len()], vec![0.0; ids.len()]);
        let mut inside = false;
        for (place, &id) in ids.iter().enumerate() {
            // Several rows may follow one another.
            if id >= end - 1 {
                inside = id == end - 1;
                continue;
            }
            let bits = draws.block(1 + place as u64);
            if !inside || f64::from(uniform(bits[0])) >= self.p {
                continue;
            }
            (targets[place], drawn[place]) = (id, 1.0);
            masked[place] = match uniform(bits[1]) {
                share if share < 0.8 => self.mask as i32,
                // Neither padding nor start nor end.
                share if share < 0.9 => 1 + below((end - 2).max(1) as u64, [bits[2], bits[3], 0, 0]) as i32,
                _ => id,
            };
        }
        Ok(Made { first: masked.into(), further: vec![targets.into(), Value::Floats(drawn)] })
    }
}
