//! CLIP's byte-pair tokenizer: the crate `instant-clip-tokenizer`, which carries the vocabulary.

use instant_clip_tokenizer::{Token, Tokenizer};

use super::clean::{clean, cut};

/// Id of `'` inside a word: byte 39 is the seventh of the printable bytes.
const APOSTROPHE: i32 = 6;

/// The longest token has fewer bytes than this, so `room` tokens are decided within `room` times as many bytes (the merging
/// of one long word takes quadratic time, which is why the rest is cut off).
const LONGEST_TOKEN: usize = 64;

pub(super) struct ClipTokenizer {
    inner: Tokenizer,
}

impl ClipTokenizer {
    pub(super) fn new() -> ClipTokenizer {
        ClipTokenizer { inner: Tokenizer::new() }
    }

    /// The first tokens of a text, at least `room` where it has as many.
    pub(super) fn tokens(&self, text: &str, room: usize) -> Vec<i32> {
        let text = clean(text);
        let mut rest = cut(&text, room.saturating_add(1).saturating_mul(LONGEST_TOKEN));
        let mut ids = Vec::with_capacity(room + 1);
        // The published expression ignores case by Unicode's rules, by which a long s is an s: `'ſ` is a contraction and one
        // word. The crate does not; no merge begins with an apostrophe and a byte of the long s, so its ids follow here.
        while let Some(at) = find_long_s_contraction(rest) {
            self.encode(&rest[..at], &mut ids);
            ids.push(APOSTROPHE);
            self.encode("ſ", &mut ids);
            rest = &rest[at + "'ſ".len()..];
        }
        self.encode(rest, &mut ids);
        ids
    }

    fn encode(&self, text: &str, ids: &mut Vec<i32>) {
        let mut tokens: Vec<Token> = Vec::new();
        self.inner.encode(text, &mut tokens);
        ids.extend(tokens.iter().map(|token| i32::from(token.to_u16())));
    }
}

/// Where `'ſ` starts a word: not inside a run of signs, which the apostrophe would belong to.
fn find_long_s_contraction(text: &str) -> Option<usize> {
    text.match_indices("'ſ").map(|(at, _)| at).find(|&at| {
        text[..at].chars().next_back().is_none_or(|before| before.is_whitespace() || before.is_alphanumeric())
    })
}
