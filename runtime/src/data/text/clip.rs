//! CLIP's byte-pair tokenizer: the crate `instant-clip-tokenizer` on the published merges.

use std::sync::LazyLock;

use instant_clip_tokenizer::{Token, Tokenizer};
use regex::Regex;

use super::clean::{clean, cut};

/// Number of ids.
pub(super) const IDS: u32 = 49_408;

/// The merges of the vocabulary that OpenAI published with CLIP (MIT), best first, as Hugging Face writes them: a line about the
/// format, then two symbols each.
pub(super) const MERGES: &str = include_str!("clip_merges.txt");

/// What stands for start and end of a text in Hugging Face's files.
pub(super) const FRAME: [&str; 2] = ["<|startoftext|>", "<|endoftext|>"];

/// Id of `'` inside a word: byte 39 is the seventh of the printable bytes.
const APOSTROPHE: i32 = 6;

/// The longest token has fewer bytes than this, so `room` tokens are decided within `room` times as many bytes (the merging
/// of one long word takes quadratic time, which is why the rest is cut off).
const LONGEST_TOKEN: usize = 64;

/// The published words of a text in lower case.
static WORD: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let word = r"<start_of_text>|<end_of_text>|'(?:[sſtmd]|re|ve|ll)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+";
    Regex::new(word).ok()
});

pub(super) struct ClipTokenizer {
    inner: Tokenizer,
}

impl ClipTokenizer {
    pub(super) fn new() -> ClipTokenizer {
        let inner = Tokenizer::with_vocabulary(MERGES.as_bytes(), IDS as u16);
        ClipTokenizer { inner: inner.expect("the published merges are well formed") }
    }

    /// The first tokens of a text, at least `room` where it has as many.
    pub(super) fn tokens(&self, text: &str, room: usize) -> Vec<i32> {
        // The published expression ignores case, which makes this mark a letter where letters are left out and none where they
        // are asked for: it belongs to no word.
        let text = clean(text).replace('\u{345}', " ");
        let rest = cut(&text, room.saturating_add(1).saturating_mul(LONGEST_TOKEN));
        let mut ids = Vec::with_capacity(room + 1);
        let mut start = 0;
        // Ignoring case by Unicode's rules, a long s is an s: `'ſ` is a contraction and one word. The crate does not; no merge
        // begins with an apostrophe and a byte of the long s, so its ids follow here.
        for at in long_s_contractions(rest) {
            self.encode(&rest[start..at], &mut ids);
            ids.push(APOSTROPHE);
            self.encode("ſ", &mut ids);
            start = at + "'ſ".len();
        }
        self.encode(&rest[start..], &mut ids);
        ids
    }

    /// The text of ids; one that is none is left out.
    pub(super) fn text(&self, ids: &[i32]) -> String {
        let known = ids.iter().filter_map(|&id| u16::try_from(id).ok());
        self.inner.decode(known.filter_map(|id| Token::from_u16(id, &self.inner))).trim_end().to_string()
    }

    fn encode(&self, text: &str, ids: &mut Vec<i32>) {
        let mut tokens: Vec<Token> = Vec::new();
        self.inner.encode(text, &mut tokens);
        ids.extend(tokens.iter().map(|token| i32::from(token.to_u16())));
    }
}

/// Where the words `'ſ` begin.
fn long_s_contractions(text: &str) -> Vec<usize> {
    let Some(word) = WORD.as_ref().filter(|_| text.contains("'ſ")) else { return Vec::new() };
    word.find_iter(text).filter(|word| word.as_str() == "'ſ").map(|word| word.start()).collect()
}

/// The symbols of all ids, in their order: bytes by printable characters, the same at the end of a word, merges, start and end.
pub(super) fn symbols() -> Vec<String> {
    let printable = |byte: &u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let as_they_are = (0..256).filter(printable);
    // The others stand behind all bytes.
    let others = (0..256).filter(|byte| !printable(byte)).zip(256..).map(|(_, place)| place);
    let bytes: Vec<String> = as_they_are.chain(others).filter_map(char::from_u32).map(String::from).collect();
    let at_ends: Vec<String> = bytes.iter().map(|byte| format!("{byte}</w>")).collect();
    let merges = MERGES.lines().skip(1).map(|merge| merge.replace(' ', ""));
    bytes.into_iter().chain(at_ends).chain(merges).chain(FRAME.map(String::from)).collect()
}
