//! Cleaning, as the published tokenizer does: ftfy, two passes of HTML unescaping, white space, lower case.
//!
//! The work is done by `plsfix` (ftfy) and `htmlize`; what stands here closes the cases in which they differ from ftfy 6 and
//! Python's `html.unescape`: references to non-characters vanish, and terminal escapes vanish whole (`plsfix` 0.1 searches
//! for another byte than ESC).

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;

use plsfix::TextFixerConfig;
use regex::{Captures, Regex};

/// Texts are cut here before cleaning. No caption is that long, and the time of the cleaning grows faster than the length.
const MAX_BYTES: usize = 64 << 10;

static REFERENCE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new("&#(?:[xX]([0-9a-fA-F]+)|([0-9]+));?").ok());
static TERMINAL_ESCAPE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\x1b\[[0-9;]*[a-zA-Z]").ok());

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

/// `ftfy.fix_text`.
fn repair(text: &str) -> String {
    let text = remove_escapes(&remove_noncharacters(text)).into_owned();
    // Control characters are left to the end: without its ESC a terminal escape that an entity spelled is not recognised.
    let config = TextFixerConfig { remove_control_chars: false, ..TextFixerConfig::default() };
    // Its expressions may give up on strange input by panicking; such a text is used as it is.
    let fixed = catch_unwind(AssertUnwindSafe(|| plsfix::fix_text(&text, Some(&config)))).unwrap_or(text);
    remove_escapes(&fixed).chars().filter(|&c| !is_removed_control(c)).collect()
}

/// `html.unescape`.
fn unescape(text: &str) -> String {
    htmlize::unescape(remove_noncharacters(text)).into_owned()
}

fn remove_escapes(text: &str) -> Cow<'_, str> {
    match TERMINAL_ESCAPE.as_ref() {
        Some(expression) => expression.replace_all(text, ""),
        None => Cow::Borrowed(text),
    }
}

/// Numeric references to code points that are no characters stand for nothing.
fn remove_noncharacters(text: &str) -> Cow<'_, str> {
    let Some(expression) = REFERENCE.as_ref() else { return Cow::Borrowed(text) };
    expression.replace_all(text, |found: &Captures<'_>| {
        let number = match (found.get(1), found.get(2)) {
            (Some(hex), _) => u32::from_str_radix(hex.as_str(), 16).ok(),
            (_, Some(decimal)) => decimal.as_str().parse().ok(),
            _ => None,
        };
        if number.is_some_and(is_noncharacter) { String::new() } else { found[0].to_string() }
    })
}

fn is_noncharacter(code: u32) -> bool {
    let control = matches!(code, 0x1..=0x8 | 0xb | 0xe..=0x1f | 0x7f);
    control || matches!(code, 0xfdd0..=0xfdef) || (code <= 0x10_ffff && code & 0xfffe == 0xfffe)
}

/// What ftfy removes: ASCII controls that are not white space, deprecated and invisible formatting characters.
fn is_removed_control(c: char) -> bool {
    matches!(c,
        '\0'..='\x08' | '\x0b' | '\x0e'..='\x1f' | '\x7f'
        | '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffc}')
}
