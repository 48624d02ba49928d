//! Maps from the names and layouts of others to ours, and back: RON files in `stdlib/weights`.
//!
//! ```ron
//! NameMap(
//!     name: "example",
//!     doc: "Where such weights come from.",
//!     rules: [
//!         (theirs: ["encoder.{i}.norm.{p}"], ours: "transformer.resblocks.{i}.ln_1.{p}"),
//!         (theirs: ["encoder.{i}.q.weight", "encoder.{i}.k.weight", "encoder.{i}.v.weight"],
//!          ours: "transformer.resblocks.{i}.attn.in_proj_weight"),
//!         (theirs: ["head.weight"], ours: "text_projection", transpose: true),
//!     ],
//!     drop: ["position_ids"],
//!     modules: ["linear", "layer_norm"],
//! )
//! ```
//!
//! `drop` are names of theirs that are no weights; `modules` those of ours that compute what theirs do, for an export.

use std::path::Path;

use serde::Deserialize;

use super::error::WeightsError;
use super::names::{Captured, Pattern};

/// The maps that the program has, by name; a file `stdlib/weights/NAME.ron` below the working directory takes the place of one.
const EMBEDDED: [(&str, &str); 3] = [
    ("openai", include_str!("../../../stdlib/weights/openai.ron")),
    ("huggingface_clip", include_str!("../../../stdlib/weights/huggingface_clip.ron")),
    ("open_clip_custom_text", include_str!("../../../stdlib/weights/open_clip_custom_text.ron")),
];

/// Largest file of a map.
const MAX_BYTES: u64 = 1 << 20;

/// The name by which all names are asked to stay as they are.
pub const SAME: &str = "same";

#[derive(Deserialize)]
#[serde(rename = "NameMap", deny_unknown_fields)]
struct Written {
    name: String,
    doc: String,
    rules: Vec<WrittenRule>,
    #[serde(default)]
    drop: Vec<String>,
    #[serde(default)]
    modules: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRule {
    theirs: Vec<String>,
    ours: String,
    #[serde(default)]
    transpose: bool,
}

/// A map of names.
#[derive(Clone, Debug)]
pub struct NameMap {
    name: String,
    doc: String,
    rules: Vec<Rule>,
    drop: Vec<Pattern>,
    modules: Vec<String>,
}

/// Tensors of theirs that make one of ours, joined along the first dimension if they are several, transposed if asked for.
#[derive(Clone, Debug)]
struct Rule {
    theirs: Vec<Pattern>,
    ours: Pattern,
    transpose: bool,
}

/// What a map says of one of their names.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Meaning {
    /// Part `part` of `parts` of a tensor of ours.
    Part { ours: String, part: usize, parts: usize, transpose: bool },
    /// No weight.
    Dropped,
}

impl NameMap {
    /// The map of this name: `same`, a file, or one of `stdlib/weights`.
    ///
    /// # Errors
    /// There is none, or it is none.
    pub fn named(name: &str) -> Result<NameMap, WeightsError> {
        if name == SAME {
            return Ok(NameMap::same());
        }
        let file = Path::new("stdlib/weights").join(format!("{name}.ron"));
        let path = [Path::new(name), &file].into_iter().find(|path| path.is_file());
        let embedded = EMBEDDED.iter().find(|(known, _)| *known == name);
        let fail = |why: String| WeightsError::Map { map: name.into(), why };
        match (path, embedded) {
            (Some(path), _) => {
                let is_small = path.metadata().is_ok_and(|data| data.len() <= MAX_BYTES);
                let text = if is_small {
                    std::fs::read_to_string(path).map_err(|error| error.to_string())
                } else {
                    Err("the file is too large".into())
                };
                NameMap::parse(name, &text.map_err(fail)?)
            }
            (None, Some((_, text))) => NameMap::parse(name, text),
            (None, None) => {
                let known: Vec<&str> = EMBEDDED.iter().map(|(name, _)| *name).chain([SAME]).collect();
                Err(fail(format!("there is none; give a file, or one of {}", known.join(", "))))
            }
        }
    }

    /// The maps that are tried where none is named, in this order.
    ///
    /// # Errors
    /// A file that takes the place of one is none.
    pub fn all() -> Result<Vec<NameMap>, WeightsError> {
        EMBEDDED.iter().map(|(name, _)| NameMap::named(name)).collect()
    }

    /// Names stay as they are.
    pub fn same() -> NameMap {
        NameMap {
            name: SAME.into(),
            doc: "Names stay as they are.".into(),
            rules: Vec::new(),
            drop: Vec::new(),
            modules: Vec::new(),
        }
    }

    fn parse(shown: &str, text: &str) -> Result<NameMap, WeightsError> {
        let fail = |why: String| WeightsError::Map { map: shown.into(), why };
        let written: Written = ron::from_str(text).map_err(|error| fail(error.to_string()))?;
        let patterns = |texts: &[String]| texts.iter().map(|text| Pattern::new(text)).collect::<Result<Vec<_>, _>>();
        let rule = |written: &WrittenRule| {
            let rule = Rule {
                theirs: patterns(&written.theirs)?,
                ours: Pattern::new(&written.ours)?,
                transpose: written.transpose,
            };
            match rule.theirs.iter().all(|pattern| pattern.captures() == rule.ours.captures() && !pattern.is_open()) {
                _ if rule.theirs.is_empty() || rule.ours.is_open() => {
                    Err(format!("the rule of `{}` has no `theirs`, or a `*`", written.ours))
                }
                true => Ok(rule),
                false => Err(format!(
                    "the rule of `{}` has other captures in `theirs`, so it cannot be turned round",
                    written.ours
                )),
            }
        };
        let rules = written.rules.iter().map(rule).collect::<Result<Vec<_>, _>>().map_err(fail)?;
        let drop = patterns(&written.drop).map_err(fail)?;
        Ok(NameMap { name: written.name, doc: written.doc, rules, drop, modules: written.modules })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its names come from.
    pub fn doc(&self) -> &str {
        &self.doc
    }

    /// Of these modules the first that the towers of theirs are not made of, so that weights alone would not say what is computed.
    pub fn lacks<'a>(&self, modules: &'a [String]) -> Option<&'a str> {
        modules.iter().find(|module| !self.modules.contains(module)).map(String::as_str)
    }

    /// How many of these names it knows.
    pub(super) fn covers<'a>(&self, names: impl Iterator<Item = &'a str>) -> usize {
        names.filter(|name| self.meaning(name).is_some()).count()
    }

    /// What one of their names is; nothing if it is not known.
    pub(super) fn meaning(&self, theirs: &str) -> Option<Meaning> {
        if self.name == SAME {
            return Some(Meaning::Part { ours: theirs.into(), part: 0, parts: 1, transpose: false });
        }
        if self.drop.iter().any(|pattern| pattern.matches(theirs)) {
            return Some(Meaning::Dropped);
        }
        self.rules.iter().find_map(|rule| {
            rule.theirs.iter().enumerate().find_map(|(part, pattern)| {
                let ours = rule.ours.fill(&pattern.capture(theirs)?);
                Some(Meaning::Part { ours, part, parts: rule.theirs.len(), transpose: rule.transpose })
            })
        })
    }

    /// Their names of the parts of a tensor of ours, and whether each is transposed.
    pub(super) fn theirs(&self, ours: &str) -> Option<(Vec<String>, bool)> {
        if self.name == SAME {
            return Some((vec![ours.into()], false));
        }
        self.rules.iter().find_map(|rule| {
            let captured: Captured = rule.ours.capture(ours)?;
            Some((rule.theirs.iter().map(|pattern| pattern.fill(&captured)).collect(), rule.transpose))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every name of ours has its names in every map, which lead back to it.
    #[test]
    fn maps_can_be_turned_round() {
        let names = [
            "logit_scale",
            "positional_embedding",
            "text_projection",
            "token_embedding.weight",
            "ln_final.bias",
            "transformer.resblocks.11.attn.in_proj_weight",
            "transformer.resblocks.0.attn.in_proj_bias",
            "transformer.resblocks.0.attn.out_proj.weight",
            "transformer.resblocks.3.ln_1.weight",
            "transformer.resblocks.3.ln_2.bias",
            "transformer.resblocks.3.mlp.c_fc.weight",
            "transformer.resblocks.3.mlp.c_proj.bias",
            "visual.class_embedding",
            "visual.conv1.weight",
            "visual.ln_pre.weight",
            "visual.ln_post.bias",
            "visual.positional_embedding",
            "visual.proj",
            "visual.transformer.resblocks.7.attn.in_proj_weight",
            "visual.transformer.resblocks.7.mlp.c_fc.bias",
        ];
        for map in NameMap::all().unwrap().into_iter().chain([NameMap::same()]) {
            assert!(!map.doc().is_empty());
            for ours in names {
                let (theirs, transposed) = map.theirs(ours).unwrap_or_else(|| panic!("{}: {ours}", map.name()));
                for (number, name) in theirs.iter().enumerate() {
                    let meaning =
                        Meaning::Part { ours: ours.into(), part: number, parts: theirs.len(), transpose: transposed };
                    assert_eq!(map.meaning(name), Some(meaning), "{}: {name}", map.name());
                }
            }
        }
    }

    #[test]
    fn what_is_no_map_is_told() {
        let check = |text: &str, message: &str| {
            let error = NameMap::parse("x.ron", text).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        };
        check("NameMap(name: \"x\")", "map of names `x.ron`: 1:18: Unexpected missing field");
        check(
            "NameMap(name: \"x\", doc: \"\", rules: [(theirs: [\"a.{i}\"], ours: \"b\")])",
            "map of names `x.ron`: the rule of `b` has other captures in `theirs`, so it cannot be turned round",
        );
        check(
            "NameMap(name: \"x\", doc: \"\", rules: [(theirs: [], ours: \"b\")])",
            "map of names `x.ron`: the rule of `b` has no `theirs`, or a `*`",
        );
        check("NameMap(name: \"x\", doc: \"\", rules: [], drop: [\"{\"])", "map of names `x.ron`: `{` has a brace");
        let error = NameMap::named("no_such_map").unwrap_err().to_string();
        assert_eq!(
            error,
            "map of names `no_such_map`: there is none; give a file, or one of openai, huggingface_clip, open_clip_custom_text, same"
        );
    }
}
