//! Our tokenizers as files that Hugging Face's libraries read.
//!
//! They clean no texts, so that those alone have our ids which cleaning leaves as they are but for white space and capitals.

use serde_json::{Map, Value, json};

use super::clip::{self, FRAME, MERGES};
use super::{Kind, Tokenizer, WordVocabulary};

/// Name of the description of a tokenizer.
const TOKENIZER: &str = "tokenizer.json";
/// Name of what transformers asks of it besides.
const SETTINGS: &str = "tokenizer_config.json";

impl Tokenizer {
    /// The files by which transformers, and whoever reads a `tokenizer.json`, give texts the same ids, in rows of `context` of them:
    /// names and texts. Of a file's tokenizer that file.
    pub fn files(&self, context: usize) -> Vec<(&'static str, String)> {
        match &self.kind {
            Kind::Clip(_) => of_clip(context),
            Kind::Words(vocabulary) => of_words(vocabulary, context),
            Kind::File(file) => {
                let settings = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context });
                vec![(TOKENIZER, file.content().concat()), (SETTINGS, settings.to_string())]
            }
        }
    }
}

/// A token that no text has.
fn special(content: &str, id: u32) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true,
    })
}

/// What `CLIPTokenizer` reads, in either of its forms. Rows are padded with the end, not with 0: that is `!`, and would be taken for
/// one wherever it stands.
fn of_clip(context: usize) -> Vec<(&'static str, String)> {
    let symbols: Map<String, Value> = (0_u32..).zip(clip::symbols()).map(|(id, symbol)| (symbol, json!(id))).collect();
    let vocabulary = Value::Object(symbols);
    let ([start, end], [start_id, end_id]) = (FRAME, [clip::IDS - 2, clip::IDS - 1]);
    let word = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(start, start_id), special(end, end_id)],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "NFC" },
            { "type": "Replace", "pattern": { "Regex": r"\s+" }, "content": " " },
            { "type": "Lowercase" },
        ] },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": word }, "behavior": "Removed", "invert": true },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        ] },
        "post_processor": {
            "type": "RobertaProcessing", "sep": [end, end_id], "cls": [start, start_id], "trim_offsets": false,
            "add_prefix_space": false,
        },
        // The end of a word is a space, but for that of the last.
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
            { "type": "Replace", "pattern": { "String": "</w>" }, "content": " " },
            { "type": "Strip", "content": " ", "start": 0, "stop": 1 },
        ] },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": end, "continuing_subword_prefix": "", "end_of_word_suffix": "</w>",
            "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": MERGES.lines().skip(1).collect::<Vec<_>>(),
        },
    });
    let names = json!({ "bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end });
    let mut settings = names.clone();
    settings["tokenizer_class"] = "CLIPTokenizer".into();
    settings["model_max_length"] = context.into();
    settings["do_lower_case"] = true.into();
    settings["errors"] = "replace".into();
    vec![
        (TOKENIZER, tokenizer.to_string()),
        (SETTINGS, settings.to_string()),
        ("special_tokens_map.json", names.to_string()),
        ("vocab.json", vocabulary.to_string()),
        ("merges.txt", MERGES.into()),
    ]
}

/// A description of a tokenizer of whole words.
fn of_words(vocabulary: &WordVocabulary, context: usize) -> Vec<(&'static str, String)> {
    let [padding, unknown] = ["<pad>", "<unk>"];
    let size = vocabulary.size();
    let ([start, end], [start_id, end_id]) = (FRAME, [size - 2, size - 1]);
    let words = vocabulary.list().iter().map(String::as_str);
    let mut ids: Map<String, Value> =
        (0_u32..).zip([padding, unknown].into_iter().chain(words)).map(|(id, word)| (word.into(), json!(id))).collect();
    ids.extend([(start.to_string(), json!(start_id)), (end.to_string(), json!(end_id))]);
    let added = [(padding, 0), (unknown, 1), (start, start_id), (end, end_id)];
    let piece = |name: &str| json!({ "SpecialToken": { "id": name, "type_id": 0 } });
    let text = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
    let known = |name: &str, id: u32| json!({ "id": name, "ids": [id], "tokens": [name] });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added.map(|(name, id)| special(name, id)),
        "normalizer": { "type": "Lowercase" },
        "pre_tokenizer": {
            "type": "Split", "pattern": { "Regex": r"\p{Alphabetic}+|\p{N}" }, "behavior": "Removed", "invert": true,
        },
        "post_processor": {
            "type": "TemplateProcessing", "single": [piece(start), text("A"), piece(end)],
            "pair": [piece(start), text("A"), text("B"), piece(end)],
            "special_tokens": { start: known(start, start_id), end: known(end, end_id) },
        },
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": ids, "unk_token": unknown },
    });
    let settings = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context, "bos_token": start, "eos_token": end,
        "unk_token": unknown, "pad_token": padding,
    });
    vec![(TOKENIZER, tokenizer.to_string()), (SETTINGS, settings.to_string())]
}
