//! `ftfy.fix_text` and `html.unescape`.
//!
//! Most of the work is done by `plsfix`, which follows ftfy 6.1, and by `htmlize`. What stands here is what they do otherwise
//! than ftfy 6.3 and Python:
//! - Entities are decoded only where no `<` stands in the line or before it, only with their semicolon, and also where they
//!   are written in capitals (`&EACUTE;`).
//! - Pairs such as `Ãœ` and `Å“` are UTF-8 that was read as Windows-1252, `§` alone tells nothing ([`repair_pairs`],
//!   [`repair_encoding`]).
//! - References to code points that are no characters vanish, and terminal escapes vanish whole (`plsfix` 0.1 searches for
//!   another byte than ESC).
//!
//! `bench/peers/captions.py` compares with ftfy; what is left is told there.

use std::borrow::Cow;
use std::sync::LazyLock;

use plsfix::TextFixerConfig;
use regex::{Captures, Regex};

use crate::data::panics::caught;

/// Times a line is repaired again; ftfy goes on until nothing changes, which takes three or four for what was broken twice.
const ROUNDS: usize = 8;

static ENTITY: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new("&#?[0-9A-Za-z]{1,24};").ok());
static REFERENCE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new("&#(?:[xX]([0-9a-fA-F]+)|([0-9]+));?").ok());
static TERMINAL_ESCAPE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\x1b\[[0-9;]*[a-zA-Z]").ok());

/// `ftfy.fix_text`.
pub(super) fn repair(text: &str) -> String {
    let mut entities = true;
    let line = |line: &str| {
        entities &= !line.contains('<');
        repair_line(line, entities)
    };
    text.split_inclusive('\n').map(line).collect()
}

fn repair_line(line: &str, entities: bool) -> String {
    let mut text = line.to_string();
    for _ in 0..ROUNDS {
        let decoded = if entities { decode_entities(&text) } else { Cow::Borrowed(text.as_str()) };
        // `plsfix` decodes entities whatever it is told; a control character, which ftfy removes in the end, is as plain a
        // character as `&` to everything else.
        let mut hidden = remove_escapes(&decoded).replace(HIDDEN, "").replace('&', HIDDEN);
        for _ in 0..ROUNDS {
            let repaired = repair_encoding(&hidden);
            let repaired = if repaired == hidden { repair_pairs(&hidden).into_owned() } else { repaired };
            if repaired == hidden {
                break;
            }
            hidden = repaired;
        }
        // Control characters are left to the end: without its ESC a terminal escape that an entity spelled is not recognised.
        let others = TextFixerConfig { fix_encoding: false, remove_control_chars: false, ..TextFixerConfig::default() };
        let fixed = fix_text(&hidden, &others).replace(HIDDEN, "&");
        let fixed: String = remove_escapes(&fixed).chars().filter(|&c| !is_removed_control(c)).collect();
        if fixed == text {
            break;
        }
        text = fixed;
    }
    text
}

/// Stands for `&` while `plsfix` works.
const HIDDEN: &str = "\u{1}";

/// `ftfy.fix_encoding`. For ftfy 6.1, `§` and `¶` behind any letter tell of another encoding; for 6.3, behind Latin
/// capitals, and elsewhere no more than `©` does.
fn repair_encoding(text: &str) -> String {
    let encoding = TextFixerConfig {
        remove_terminal_escapes: false,
        fix_c1_controls: false,
        fix_latin_ligatures: false,
        fix_character_width: false,
        uncurl_quotes: false,
        fix_line_breaks: false,
        remove_control_chars: false,
        normalization: None,
        ..TextFixerConfig::default()
    };
    if text.contains(['§', '¶']) {
        let mut before = None;
        let sign = |c: char| {
            let tells = before.replace(c).is_some_and(|before| before.is_uppercase() && before < '\u{250}');
            if matches!(c, '§' | '¶') && !tells { '©' } else { c }
        };
        let without: String = text.chars().map(sign).collect();
        if fix_text(&without, &encoding) == without {
            return text.to_string();
        }
    }
    fix_text(text, &encoding)
}

/// Its expressions may give up on strange input by panicking; such a text is used as it is.
fn fix_text(text: &str, config: &TextFixerConfig) -> String {
    caught(|| plsfix::fix_text(text, Some(config))).unwrap_or_else(|_| text.to_string())
}

/// `html.unescape`.
pub(super) fn unescape(text: &str) -> String {
    htmlize::unescape(remove_noncharacters(text)).into_owned()
}

/// Entities with their semicolon, also of letters in capitals.
fn decode_entities(text: &str) -> Cow<'_, str> {
    let Some(expression) = ENTITY.as_ref() else { return Cow::Borrowed(text) };
    // The whole entity, not a shorter one that it begins with: `&notanentity;` begins with `&not`.
    let whole = |entity: &str| {
        let decoded = unescape(entity);
        (decoded != entity && (decoded == ";" || !decoded.ends_with(';'))).then_some(decoded)
    };
    expression.replace_all(text, |found: &Captures<'_>| {
        let entity = &found[0];
        let named = !entity.starts_with("&#");
        let capitals = || {
            let upper = named && unescape(entity) == entity && entity.to_ascii_uppercase() == entity;
            upper.then(|| whole(&entity.to_ascii_lowercase())).flatten().map(|letter| letter.to_uppercase())
        };
        match whole(entity).filter(|decoded| named || decoded != ";") {
            Some(decoded) => decoded,
            None => capitals().unwrap_or_else(|| entity.to_string()),
        }
    })
}

/// Windows-1252 where it differs from Latin-1: what stands for the bytes from 0x80 to 0x9f.
const WINDOWS_1252: [char; 32] = [
    '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}', '\u{90}', '‘', '’',
    '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
];

/// What else stands for the bytes from 0x80 to 0xbf in Windows-1250.
const WINDOWS_1250: &str = "ŚŤŹśťźˇ˘ŁĄŞŻ˛łąşĽ˝ľż";

/// The byte that was read as this.
fn byte(c: char) -> Option<u8> {
    let position = WINDOWS_1252.iter().position(|&known| known == c);
    position.map(|position| position as u8 + 0x80).or_else(|| u8::try_from(c).ok())
}

/// Repairs letters of two bytes in UTF-8 that were read as Windows-1252 or Latin-1, of the kinds that ftfy 6.3 knows beyond
/// those of 6.1 (or that `plsfix` does not find in the middle of a text): `Ãœ`, `Ä°`, `×` with a control, `Â` with a space
/// wherever they stand; `Å“` and its like, at the beginning of a word that goes on, tell that the
/// whole text was read so.
fn repair_pairs(text: &str) -> Cow<'_, str> {
    let chars: Vec<char> = if text.is_ascii() { return Cow::Borrowed(text) } else { text.chars().collect() };
    let upper = |first: char| "ÄÅÆÇÈÉÊËÌÍÏÑØÜÝ".contains(first);
    let tells = |at: usize| {
        let before = at.checked_sub(1).and_then(|before| chars.get(before));
        let sign = chars.get(at + 1).is_some_and(|&sign| "‚„‹‘“•¡©«¿".contains(sign));
        let goes_on = chars.get(at + 2).is_some_and(|&next| next.is_ascii_alphanumeric() || next == '_');
        sign && goes_on && (upper(chars[at]) || chars[at] == 'ß') && !before.is_some_and(|before| before.is_lowercase())
    };
    if let Some(text) = (0..chars.len()).any(tells).then(|| decoded(&chars)).flatten() {
        return Cow::Owned(text);
    }
    // One behind a word tells of all.
    let broken = |three: &[char]| three[1..] == ['Â', ' '] && (three[0].is_lowercase() || ".,?!”".contains(three[0]));
    let spaces = chars.windows(3).any(broken);
    let mut out = String::with_capacity(text.len());
    let mut rest = chars.as_slice();
    while let [first, after @ ..] = rest {
        // What may end a letter of several bytes belongs to what stands before.
        let before = chars[..chars.len() - rest.len()].last();
        let begins = !before.is_some_and(|&c| matches!(byte(c), Some(0x80..=0xbf)) || WINDOWS_1250.contains(c));
        let pair = match after.first() {
            Some('œ') => begins && "ÂÃÎÐ".contains(*first),
            Some('°') => begins && upper(*first),
            // Bytes that Windows-1252 has no sign for.
            Some('\u{81}' | '\u{8d}' | '\u{8f}' | '\u{90}' | '\u{9d}') => *first == '×',
            // A space that does not break, of which a plain one is left.
            Some(' ') if *first == 'Â' && spaces => {
                out.push('\u{a0}');
                rest = &rest[2..];
                continue;
            }
            _ => false,
        };
        match pair.then(|| decoded(&rest[..2])).flatten() {
            Some(letter) => {
                out.push_str(&letter);
                rest = &rest[2..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    Cow::Owned(out)
}

/// What characters stand for if all of them are bytes of UTF-8.
fn decoded(chars: &[char]) -> Option<String> {
    String::from_utf8(chars.iter().map(|&c| byte(c)).collect::<Option<Vec<u8>>>()?).ok()
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
