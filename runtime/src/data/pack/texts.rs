//! Which texts are packed, and as what.

use std::collections::{BTreeMap, BTreeSet};

use alip_plan::pipeline::{Mode, Pipeline, PipelineOp, Source, Tokenize, ValueKind, Vocab};

use super::Packing;
use crate::data::source::recordio::LARGEST_ID;

/// The text that captions from a file are.
pub(super) const CAPTION: &str = "caption";

/// What the JSON file of a sample calls its key.
pub(super) const KEY: &str = "key";

/// Length and vocabulary of token rows where neither pipeline nor user say: CLIP's.
const CONTEXT: u32 = 77;

/// Fields of a source, by name.
type Fields = BTreeMap<String, ValueKind>;

/// A text of every sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Text {
    pub(super) name: String,
    pub(super) form: Form,
}

/// What is written of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The source's token ids.
    Row,
    /// The text's token ids.
    Tokens { context: u32, vocab: Vocab },
    /// The text.
    Plain,
}

/// A source without the caption that each of its samples would have to have, since captions come from a file.
pub(super) fn without_caption(mut source: Source) -> Source {
    for part in source.parts_mut() {
        match part {
            Source::Webdataset { texts, .. } | Source::Files { texts, .. } | Source::Table { texts, .. } => {
                texts.remove(CAPTION);
            }
            Source::Folder { raw, caption, .. } => *caption = *raw,
            // Rows of ids are left out when they are not packed.
            Source::Recordio { .. } | Source::Shapes { .. } | Source::Mix { .. } => {}
        }
    }
    source
}

/// The texts that are packed of a source with these fields; the error says what does not fit.
pub(super) fn choose(packing: &Packing, fields: &Fields) -> Result<Vec<Text>, String> {
    let has_captions = packing.captions.is_some();
    let kind = |name: &str| match fields.get(name) {
        _ if has_captions && name == CAPTION => Some(ValueKind::Text),
        Some(kind @ (ValueKind::Text | ValueKind::Tensor { .. })) => Some(kind.clone()),
        _ => None,
    };
    let names = match &packing.texts {
        Some(names) => names.clone(),
        None => usual(packing, fields),
    };
    let known = || {
        let names: Vec<&str> = fields.keys().map(String::as_str).chain([CAPTION]).collect();
        let mut names: Vec<&str> = names.into_iter().filter(|name| kind(name).is_some()).collect();
        names.sort_unstable();
        names.dedup();
        if names.is_empty() { "none; give --captions".to_string() } else { names.join(", ") }
    };
    let mut texts: Vec<Text> = Vec::new();
    for name in names {
        if texts.iter().any(|text| text.name == name) {
            return Err(format!("--texts names `{name}` twice"));
        }
        let kind = kind(&name).ok_or_else(|| format!("there is no text `{name}`; there are: {}", known()))?;
        let form = form(packing, fields, &name, &kind)?;
        texts.push(Text { name, form });
    }
    if has_captions && !texts.iter().any(|text| text.name == CAPTION) {
        return Err("--captions gives the text `caption`, which --texts leaves out".into());
    }
    let is_tokenized = texts.iter().any(|text| matches!(text.form, Form::Tokens { .. }));
    if !is_tokenized && (packing.context.is_some() || packing.vocab.is_some()) {
        return Err("--context and --vocab are for texts that become token ids, and there are none".into());
    }
    Ok(texts)
}

/// The source's token rows in their order; or the texts that the pipeline tokenizes, in that of its body, and for shards all
/// others behind them; or all texts, if it tokenizes none. And the captions.
fn usual(packing: &Packing, fields: &Fields) -> Vec<String> {
    let (pipeline, has_captions) = (&packing.pipeline, packing.captions.is_some());
    let mut names: Vec<String> = match &pipeline.source {
        Source::Recordio { labels, .. } => labels.iter().map(|(name, _)| name.clone()).collect(),
        // What all parts have, in the order of the first.
        Source::Mix { sources, .. } if let Some(Source::Recordio { labels, .. }) = sources.values().next() => {
            labels.iter().map(|(name, _)| name.clone()).filter(|name| fields.contains_key(name)).collect()
        }
        _ => {
            let is_text = |name: &String| fields.get(name) == Some(&ValueKind::Text) || has_captions && name == CAPTION;
            let body = pipeline.body(Mode::Train);
            let read = body.into_iter().filter(|node| matches!(node.op, PipelineOp::Tokenize { .. }));
            let mut read: Vec<String> = read.flat_map(|node| node.inputs).filter(is_text).collect();
            // What is tokenized as other ops make it is no less wanted; records, which cannot have it, refuse it by name.
            read.extend(reaching_tokens(pipeline).into_iter().filter(is_text));
            if read.is_empty() || !packing.to.is_records() {
                let mut rest: Vec<String> = fields.keys().filter(|name| is_text(name)).cloned().collect();
                rest.sort_by_key(|name| name == CAPTION);
                read.extend(rest);
            }
            read
        }
    };
    let mut seen = BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    if has_captions && !names.iter().any(|name| name == CAPTION) {
        names.push(CAPTION.into());
    }
    names
}

/// Values of which token ids are made, by whatever ops, in the order of the body.
fn reaching_tokens(pipeline: &Pipeline) -> Vec<String> {
    let body = pipeline.body(Mode::Train);
    let mut reaching = BTreeSet::new();
    for node in body.iter().rev() {
        if matches!(node.op, PipelineOp::Tokenize { .. }) || reaching.contains(&node.name) {
            reaching.extend(node.inputs.iter().cloned());
        }
    }
    body.into_iter().flat_map(|node| node.inputs).filter(|name| reaching.contains(name)).collect()
}

fn form(packing: &Packing, fields: &Fields, name: &str, kind: &ValueKind) -> Result<Form, String> {
    match (packing.to.is_records(), kind) {
        (true, ValueKind::Text) => tokens(packing, fields, name),
        (true, ValueKind::Tensor { .. }) => Ok(Form::Row),
        (true, kind) => Err(format!("`{name}` is {kind}, not a text")),
        (false, _) if name == KEY => Err(format!(
            "a text `{KEY}` would stand where the JSON file of a sample has its key; give it another name in the source, or name \
             other texts with --texts"
        )),
        (false, ValueKind::Text) => Ok(Form::Plain),
        (false, _) => Err(format!(
            "`{name}` is token ids, of which there is no way back to texts for shards; pack to a `.rec`, or name other texts with \
             --texts"
        )),
    }
}

/// The op that a pipeline applies to a text, if it does not tokenize it.
fn reader(pipeline: &Pipeline, name: &str) -> Option<&'static str> {
    let body = pipeline.body(Mode::Train);
    body.into_iter().find(|node| node.inputs.iter().any(|input| input == name)).map(|node| node.op.name())
}

/// As the pipeline tokenizes it, unless the user says otherwise.
fn tokens(packing: &Packing, fields: &Fields, name: &str) -> Result<Form, String> {
    let own = packing.pipeline.body(Mode::Train).into_iter().find_map(|node| match node.op {
        PipelineOp::Tokenize(Tokenize { context, vocab }) if node.inputs.iter().any(|input| input == name) => {
            Some((context, vocab))
        }
        _ => None,
    });
    if let (None, None, Some(op)) = (own.as_ref(), packing.context, reader(&packing.pipeline, name)) {
        return Err(format!(
            "pipeline `{}` does not tokenize `{name}` but what `{op}` makes of it, and records would hold the text as it is; say so with \
             --context, or pack shards, which hold texts",
            packing.pipeline.name
        ));
    }
    let (context, vocab) = match own {
        None if name == CAPTION && packing.captions.is_some() => joined(packing, fields)?,
        own => {
            let (context, vocab) = own.unwrap_or((CONTEXT, Vocab::Clip));
            (packing.context.unwrap_or(context), packing.vocab.clone().unwrap_or(vocab))
        }
    };
    match &vocab {
        Vocab::Words { size, file: None } => Err(format!(
            "'words:{size}' has the words that are most frequent in the source, which nobody who reads the records would know; \
             give --vocab clip, or --vocab words:{size}:FILE with a file of words"
        )),
        _ => {
            vocab.size().map_or(Ok(()), fits_records)?;
            Ok(Form::Tokens { context, vocab })
        }
    }
}

/// Whether all ids of a vocabulary can stand in records.
pub(super) fn fits_records(ids: u32) -> Result<(), String> {
    let why = || {
        format!("a vocabulary of {ids} ids: labels of records are f32, which has no whole numbers above {LARGEST_ID}")
    };
    if i64::from(ids) > i64::from(LARGEST_ID) + 1 { Err(why()) } else { Ok(()) }
}

/// Length and vocabulary of captions from a file that the pipeline does not tokenize: those of the row that they replace, or of
/// the other texts.
fn joined(packing: &Packing, fields: &Fields) -> Result<(u32, Vocab), String> {
    let length = |kind: &ValueKind| match kind {
        ValueKind::Tensor { shape, .. } => shape.first().map(|length| *length as u32),
        _ => None,
    };
    let rows: BTreeSet<u32> = fields.values().filter_map(length).collect();
    let mut contexts = rows.clone();
    let mut vocabs: Vec<Vocab> = Vec::new();
    for node in packing.pipeline.body(Mode::Train) {
        if let PipelineOp::Tokenize(Tokenize { context, vocab }) = node.op {
            contexts.insert(context);
            if !vocabs.contains(&vocab) {
                vocabs.push(vocab);
            }
        }
    }
    if let Some(replaced) = fields.get(CAPTION).and_then(length) {
        contexts = [replaced].into();
    }
    let context = match (packing.context, contexts.len()) {
        (Some(context), _) => context,
        (None, 0 | 1) => contexts.first().copied().unwrap_or(CONTEXT),
        _ => {
            let contexts: Vec<String> = contexts.iter().map(u32::to_string).collect();
            let contexts = contexts.join(" and of ");
            return Err(format!("other texts have rows of {contexts} ids; give --context for the captions"));
        }
    };
    match (&packing.vocab, &vocabs[..]) {
        (Some(vocab), _) => Ok((context, vocab.clone())),
        (None, []) => Ok((context, Vocab::Clip)),
        (None, [vocab]) if rows.is_empty() => Ok((context, vocab.clone())),
        _ if rows.is_empty() => Err("other texts have different vocabularies; give --vocab for the captions".into()),
        _ => Err("records do not say of what vocabulary their rows are, and other texts are tokenized; give --vocab for the \
                  captions"
            .into()),
    }
}

impl std::fmt::Display for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.form {
            Form::Plain => write!(f, "{}", self.name),
            Form::Row => write!(f, "{} (token ids as they are)", self.name),
            Form::Tokens { context, vocab } => write!(f, "{} ({context} ids of '{vocab}')", self.name),
        }
    }
}
