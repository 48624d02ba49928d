//! The published tokenizer's ids, and the word vocabulary.

use super::*;
use crate::data::tests::skipped;

/// Captions of `bench/peers/captions.py`: run by hand.
#[test]
fn captions_of_a_peer() {
    let Ok(path) = std::env::var("ALIP_CAPTIONS") else {
        skipped("ALIP_CAPTIONS names no file of bench/peers/captions.py");
        return;
    };
    let text = std::fs::read_to_string(&path).expect("the file that ALIP_CAPTIONS names");
    let clip = Tokenizer::clip();
    let (mut all, mut different) = (0, 0);
    for case in text.lines().map(|line| serde_json::from_str::<Case>(line).expect("a line of captions.py")) {
        all += 1;
        if clip.encode(&case.text, 77) != case.ids {
            different += 1;
            let (ours, theirs) = (clean(&case.text), case.cleaned);
            eprintln!("{}: {:?}\n  ours   {ours:?}\n  theirs {theirs:?}", case.index, case.text);
        }
    }
    eprintln!("{different} of {all} captions have other ids");
    assert!(different <= 20, "{different} of {all}");
}

#[derive(serde::Deserialize)]
pub(super) struct Case {
    index: usize,
    kind: String,
    pub(super) text: String,
    pub(super) cleaned: String,
    token_count: usize,
    pub(super) ids: Vec<i32>,
}

pub(super) fn cases() -> Vec<Case> {
    include_str!("../../../../tests/goldens/tokenizer/captions.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).expect("golden line"))
        .collect()
}

/// All 300 cases of the golden data, through cleaning and without it.
#[test]
fn clip_ids_are_the_published_ones() {
    let clip = Tokenizer::clip();
    let cases = cases();
    assert_eq!(cases.len(), 300);
    let mut wrong = Vec::new();
    for case in &cases {
        let ids = clip.encode(&case.text, 77);
        if ids != case.ids || clean(&case.text) != case.cleaned {
            wrong.push(format!(
                "{} ({}): {:?}\n  cleaned {:?}\n  not     {:?}",
                case.index,
                case.kind,
                case.text,
                clean(&case.text),
                case.cleaned
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of 300 differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// What ftfy 6.3.1 and the published tokenizer make of what their counterparts here do otherwise.
#[test]
fn texts_that_need_more_than_the_crates() {
    for (text, cleaned) in [
        // Entities stand where a tag may stand.
        ("&LDQUO;a&RDQUO;", "\"a\""),
        ("1 < 2 &LDQUO;", "1 < 2 &ldquo;"),
        ("&LDQUO; <", "&ldquo; <"),
        ("&LDQUO;\n<\n&LDQUO;", "\" < &ldquo;"),
        ("<b> &eacute; &#145;", "<b> é ‘"),
        ("&EACUTE;t&eacute; &AACUTE", "été &aacute"),
        ("&notanentity; &#59; &amp;amp;amp;", "¬anentity; ; &"),
        ("&amp;#65534;a&#xFDD0;b&amp;#1;c", "abc"),
        // Pairs.
        ("Ãœberraschung Ä°stanbul", "überraschung i\u{307}stanbul"),
        ("字 Å“uvre", "字 å\"uvre"),
        ("字 noÂ break.Â x 5Â no", "字 no break. x 5 no"),
        ("字 5Â no", "字 5â no"),
        ("×\u{9d} 字", "ם 字"),
        ("Å“uvre Å“5 eÅ“uvre Å“ Å“.", "œuvre œ5 eœuvre œ œ."),
        ("Ã…â€œuvre", "œuvre"),
    ] {
        assert_eq!(clean(text), cleaned, "{text:?}");
    }
    let clip = Tokenizer::clip();
    for (text, same) in [
        // This mark is in no word, and ends one.
        ("a\u{345}b !\u{345}, \u{345}", "a b ! ,"),
        ("\u{345}'ſ", "'ſ"),
    ] {
        assert_eq!(clip.encode(text, 12), clip.encode(same, 12), "{text:?}");
    }
    // A contraction behind a special token or a letter, but not in a run of signs.
    for (text, ids) in [
        ("<end_of_text>'ſ", [49406, 49407, 6, 129, 379, 49407]),
        ("\u{1ace}'ſ", [49406, 157, 104, 236, 262, 49407]),
        ("it'ſ", [49406, 585, 6, 129, 379, 49407]),
    ] {
        assert_eq!(clip.encode(text, 6), ids, "{text:?}");
    }
}

#[test]
fn other_context_lengths_cut_and_pad() {
    let clip = Tokenizer::clip();
    for case in cases().iter().step_by(7) {
        for context in [3usize, 8, 16, 77, 100] {
            let ids = clip.encode(&case.text, context);
            assert_eq!(ids.len(), context);
            let kept = (case.token_count + 2).min(context).min(77);
            assert_eq!(ids[..kept - 1], case.ids[..kept - 1], "case {} at {context}", case.index);
            if context <= 77 || case.token_count <= 75 {
                assert_eq!(ids[kept - 1], 49407, "case {} at {context}", case.index);
                assert!(ids[kept..].iter().all(|id| *id == 0), "case {} at {context}", case.index);
            }
        }
    }
    assert_eq!(clip.encode("", 4), [49406, 49407, 0, 0]);
}

/// Long texts, single words without end and repeated signs end within bounded time, and share their first ids with a
/// moderately long text of the kind.
#[test]
fn long_texts_are_bounded() {
    let clip = Tokenizer::clip();
    for unit in ["a dog runs ", "ab", "&amp;", "â€œ", "é", "'ſ ", "<end_of_text>", "\u{1b}[31m", "😀", "&#xFFFF;"]
    {
        let start = std::time::Instant::now();
        let long = clip.encode(&unit.repeat(3_000_000 / unit.len()), 77);
        assert!(start.elapsed().as_secs() < 20, "{unit:?} took {:?}", start.elapsed());
        assert_eq!(long.len(), 77);
        assert_eq!(long[0], 49406);
    }
    assert_eq!(clip.encode(&"a dog runs ".repeat(300_000), 77), clip.encode(&"a dog runs ".repeat(100), 77));
}

fn small() -> WordVocabulary {
    WordVocabulary::new(["a", "red", "circle", "above"].map(String::from).to_vec(), 9)
}

#[test]
fn words_have_ids_between_padding_and_end() {
    let words = Tokenizer::words(small());
    assert_eq!(words.vocab_size(), 9);
    for (text, expected) in [
        ("A red circle.", [7, 2, 3, 4, 8, 0]),
        ("a RED &quot;blob&quot;", [7, 2, 3, 1, 8, 0]),
        ("circle above a red circle", [7, 4, 5, 2, 3, 8]),
        ("", [7, 8, 0, 0, 0, 0]),
    ] {
        assert_eq!(words.encode(text, 6), expected, "{text}");
    }
    assert_eq!(words.content().len(), 4);
    assert_eq!(split_words("IMG_2041.jpg Two—dogs!"), ["img", "2", "0", "4", "1", "jpg", "two", "dogs"]);
}

#[test]
fn word_lists_are_checked() {
    let folder = std::env::temp_dir().join(format!("alip-words-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let check = |content: &str, expected: &str| {
        let path = folder.join("words.txt");
        std::fs::write(&path, content).unwrap();
        let error = WordVocabulary::read(&path, 6).unwrap_err().to_string();
        assert_eq!(error.replace(&folder.display().to_string(), "DIR"), expected);
    };
    check("red\nred\n", "DIR/words.txt:2: `red` stands here a second time; remove this line");
    check(
        "red\ntwo words\n",
        "DIR/words.txt:2: `two words` is not one word in lower case (letters only, or a single digit); write one word per line",
    );
    check("a\nb\nc\n", "DIR/words.txt:3: more words than 6 ids have room for; write 'words:7:FILE'");
    check("", "DIR/words.txt: no words in it; write one word per line");
    std::fs::remove_file(folder.join("words.txt")).unwrap();
    let error = WordVocabulary::read(&folder.join("words.txt"), 6).unwrap_err().to_string();
    assert!(error.ends_with("; give the path of a word list, one word per line"), "{error}");
    std::fs::write(folder.join("words.txt"), "red\nblue\n").unwrap();
    assert_eq!(WordVocabulary::read(&folder.join("words.txt"), 6).unwrap().list(), ["red", "blue"]);
    std::fs::remove_dir_all(&folder).unwrap();
    // Its path is written as all paths are.
    let vocab = Vocab::Words { size: 6, file: Some("${ALIP_UNSET_VARIABLE}/words.txt".into()) };
    assert_eq!(
        Tokenizer::without_source(&vocab).err().map(|error| error.to_string()).unwrap_or_default(),
        "${ALIP_UNSET_VARIABLE}/words.txt: the environment variable `ALIP_UNSET_VARIABLE` is not set; set it, or write the path \
         itself"
    );
}

#[test]
fn words_are_letters_in_lower_case_and_single_digits() {
    let words = split_words("IMG_2041.JPG Red circle!! #art");
    assert_eq!(words, ["img", "2", "0", "4", "1", "jpg", "red", "circle", "art"]);
    assert_eq!(split_words(" ... "), Vec::<String>::new());
}

/// What a model is given can be read again, as far as it is said.
#[test]
fn ids_are_texts_again() {
    let check = |tokenizer: &Tokenizer, text: &str, context: usize, expected: &str| {
        assert_eq!(tokenizer.decode(&tokenizer.encode(text, context)), expected, "{text}");
    };
    let clip = Tokenizer::clip();
    check(&clip, "A Cat's <b>hat</b>, 1939!", 77, "a cat 's < b > hat </ b >, 1 9 3 9 !");
    check(&clip, "one two three four", 5, "one two three");
    check(&clip, "", 5, "");
    assert_eq!(clip.decode(&[7, -1, 1 << 20, 320]), "(a");
    let words = Tokenizer::words(WordVocabulary::new(vec!["a".into(), "cat".into()], 6));
    check(&words, "A cat sat", 8, "a cat ?");
    assert_eq!(words.decode(&[-5, i32::MIN, 2]), "? ? a");
}
