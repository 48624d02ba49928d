//! Cleaning, as the published tokenizer does: ftfy, two passes of HTML unescaping, white space, lower case.

use std::borrow::Cow;

use super::repair::{repair, unescape};

/// Texts are cut here before cleaning. No caption is that long, and the time of the cleaning grows faster than the length.
pub(super) const MAX_BYTES: usize = 64 << 10;

/// The text that is split into words: mojibake repaired, entities decoded, one space between words, lower case.
pub fn clean(text: &str) -> String {
    let text = cut(text, MAX_BYTES);
    let repaired = if is_plain(text) { Cow::Borrowed(text) } else { Cow::Owned(unescape(&unescape(&repair(text)))) };
    let words: Vec<&str> = repaired.split_whitespace().collect();
    words.join(" ").to_lowercase()
}

/// The longest prefix of at most `bytes` bytes.
pub(super) fn cut(text: &str, bytes: usize) -> &str {
    if text.len() <= bytes { text } else { &text[..text.floor_char_boundary(bytes)] }
}

/// Nothing in printable ASCII without `&` is changed by ftfy or by unescaping; most captions are such.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\n' | b'\t') && byte != b'&')
}
