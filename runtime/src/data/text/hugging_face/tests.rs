//! Files of tokenizers: those that our own make, others, and what is none.

use std::path::Path;

use serde_json::{Value, json};

use crate::data::text::tests::cases;
use crate::data::{Tokenizer, WordVocabulary};

fn opened(description: &Value) -> Tokenizer {
    Tokenizer::of_file(Path::new("tokenizer.json"), description.to_string()).unwrap()
}

/// The tokenizer that reads the file which is made of another.
fn again(tokenizer: &Tokenizer) -> Tokenizer {
    let (name, text) = tokenizer.files(77).swap_remove(0);
    assert_eq!(name, "tokenizer.json");
    Tokenizer::of_file(Path::new(name), text).unwrap()
}

/// Pieces of words as BERT has them, with the end as the largest id.
fn pieces() -> Value {
    let vocabulary = ["[PAD]", "[UNK]", "a", "red", "cir", "##cle", "above", "[CLS]", "[SEP]"];
    let ids: serde_json::Map<String, Value> =
        vocabulary.iter().zip(0..).map(|(t, id)| (t.to_string(), json!(id))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": { "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": { "type": "BertProcessing", "sep": ["[SEP]", 8], "cls": ["[CLS]", 7] },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": ids },
    })
}

#[test]
fn start_end_and_padding_are_the_files() {
    let tokenizer = opened(&pieces());
    let check = |tokenizer: &Tokenizer, text: &str, ids: &[i32]| {
        assert_eq!(tokenizer.encode(text, ids.len()), ids, "{text}");
    };
    check(&tokenizer, "A red circle", &[7, 2, 3, 4, 5, 8, 0]);
    // What is too long keeps its end.
    check(&tokenizer, "a red circle above a circle", &[7, 2, 3, 4, 8]);
    check(&tokenizer, "", &[7, 8, 0]);
    check(&tokenizer, "Ωmega", &[7, 1, 8]);
    assert_eq!(tokenizer.decode(&tokenizer.encode("A red circle", 9)), "a red circle");
    assert_eq!((tokenizer.vocab_size(), tokenizer.end(), tokenizer.warning()), (9, Some(8), None));
    assert_eq!(tokenizer.fits(3), Ok(()));
    assert_eq!(tokenizer.fits(2).unwrap_err(), "rows of 2 ids have no room for a text: 2 stand around every one");
    // Padding that the file asks for is that of rows, to their own length; truncation is not asked.
    let mut padded = pieces();
    padded["padding"] = json!({
        "strategy": { "Fixed": 4 }, "direction": "Left", "pad_to_multiple_of": null, "pad_id": 2, "pad_type_id": 0, "pad_token": "a",
    });
    padded["truncation"] = json!({ "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0 });
    check(&opened(&padded), "a red circle", &[7, 2, 3, 4, 5, 8, 2, 2]);
    // A text that spells an end does not end there.
    let mut marked = pieces();
    marked["added_tokens"] = json!([{
        "id": 8, "content": "[SEP]", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true,
    }]);
    let marked = opened(&marked).encode("a [SEP] red", 12);
    assert_eq!(marked.iter().filter(|id| **id == 8).count(), 1, "{marked:?}");
    // Ids around a text and behind it count, though the vocabulary has none of them.
    let mut beyond = pieces();
    beyond["post_processor"]["cls"][1] = json!(15);
    let beyond = opened(&beyond);
    assert_eq!(beyond.vocab_size(), 16);
    assert!(beyond.warning().unwrap().contains("has ids up to 15"));
    let mut behind = pieces();
    behind["padding"] = padded["padding"].clone();
    behind["padding"]["pad_id"] = json!(11);
    assert_eq!(opened(&behind).vocab_size(), 12);
    // Without a post-processor nothing stands around a text.
    let mut bare = pieces();
    bare["post_processor"] = Value::Null;
    let bare = opened(&bare);
    check(&bare, "a red circle", &[2, 3, 4, 5, 0]);
    assert_eq!(bare.warning().unwrap(), "tokenizer.json puts no end behind a text, where CLIP's towers read it");
    let mut early = pieces();
    early["model"]["vocab"]["below"] = json!(9);
    assert_eq!(
        opened(&early).warning().unwrap(),
        "tokenizer.json ends a text with the id 8, and has ids up to 9: a tower that reads a text at its largest id, as \
         `text_transformer` does, reads it elsewhere"
    );
}

/// The file made of CLIP's own words gives the published ids of all texts that are clean, and those of most that are not.
#[test]
fn clips_own_file_gives_its_ids() {
    let (clip, file) = (Tokenizer::clip(), again(&Tokenizer::clip()));
    assert_eq!((file.vocab_size(), file.end(), file.warning()), (49_408, Some(49_407), None));
    let (mut other, mut uncleaned) = (Vec::new(), 0);
    for case in cases() {
        if file.encode(&case.cleaned, 77) != case.ids {
            other.push(case.cleaned.clone());
        }
        uncleaned += usize::from(file.encode(&case.text, 77) == case.ids);
        assert_eq!(clip.encode(&case.text, 77), case.ids);
    }
    // The marks of start and end in either spelling, and a contraction with a long s.
    let is_meant = |text: &String| text.contains("_of_text>") || text.contains("oftext|>") || text.contains("'ſ");
    assert!(other.iter().all(is_meant) && other.len() == 7, "{other:#?}");
    assert!(uncleaned >= 228, "{uncleaned}");
    assert_eq!(
        file.decode(&file.encode("A photo of 2 dogs!", 77)),
        clip.decode(&clip.encode("A photo of 2 dogs!", 77))
    );
}

#[test]
fn a_file_of_whole_words_gives_their_ids() {
    let list = ["a", "red", "circle", "é", "3"].map(String::from).to_vec();
    let words = Tokenizer::words(WordVocabulary::new(list, 16));
    let file = again(&words);
    assert_eq!((file.vocab_size(), file.end(), file.warning()), (16, Some(15), None));
    for text in ["A red circle.", "33 RED blobs, a_circle", "É", "", "a red circle a red circle a red circle", "Ⅷ x²"]
    {
        assert_eq!(file.encode(text, 8), words.encode(text, 8), "{text}");
    }
}

#[test]
fn what_is_no_tokenizer_is_told() {
    let advice = "; give a `tokenizer.json`, as `tokenizers` and transformers' `save_pretrained` write it";
    let check = |description: &Value, message: &str| {
        let error = Tokenizer::of_file(Path::new("t.json"), description.to_string()).err().unwrap().to_string();
        assert_eq!(error, format!("t.json: {message}{advice}"));
    };
    let of = |change: &dyn Fn(&mut Value)| {
        let mut description = pieces();
        change(&mut description);
        description
    };
    let error = Tokenizer::of_file(Path::new("t.json"), "{\"a\": 1}".into()).err().unwrap().to_string();
    assert!(error.starts_with("t.json: no tokenizer: ") && error.ends_with(advice), "{error}");
    check(
        &of(&|file| {
            let ids = json!({ "a": 0, "photo": 1 });
            file["model"] = json!({ "type": "BPE", "dropout": 0.1, "vocab": ids, "merges": [] });
        }),
        "it leaves out merges at random (`dropout`), so that a text has no ids of its own",
    );
    check(
        &of(&|file| file["model"]["unk_token"] = "[NONE]".into()),
        "it fails on texts: WordPiece error: Missing [UNK] token from the vocabulary",
    );
    check(
        &of(&|file| file["model"] = json!({ "type": "BPE", "vocab": { "w": 0 }, "merges": [] })),
        "it makes no token of `a photo of 1 dog.`",
    );
    check(
        &of(&|file| file["model"]["vocab"]["much"] = json!(3_000_000_000_u32)),
        "it has ids up to 3000000000, and those of a graph are of 32 bits",
    );
}
