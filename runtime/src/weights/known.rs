//! What a source says of its model beside the weights: `config.json` of Hugging Face, `open_clip_config.json`, and what it is.

use alip_plan::pipeline::{CLIP_MEAN, CLIP_STD, Normalization};
use serde_json::Value;

use super::container::{Weights, info_beside};

/// Width of a head in OpenAI's models, and of nearly all others.
const HEAD: u64 = 64;

/// What `model_cfg` of open_clip says that is understood, or is nothing to features, by the part of it.
const UNDERSTOOD: [(&str, &[&str]); 3] = [
    ("", &["embed_dim", "quick_gelu", "vision_cfg", "text_cfg", "custom_text", "init_logit_scale"]),
    ("vision_cfg", &["image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "patch_dropout"]),
    ("text_cfg", &["context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"]),
];

/// What open_clip takes where these are not said.
const POOLED: [(&str, &str, &str); 2] = [("vision_cfg", "pool_type", "tok"), ("text_cfg", "pool_type", "argmax")];

/// What a source says of its model; nothing where it says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// Where it is said, for people.
    pub source: Option<String>,
    /// Of the tower of images.
    pub vision: Tower,
    /// Of the tower of texts.
    pub text: Tower,
    /// What images are normalised with.
    pub normalization: Option<Normalization>,
    /// What of it is not as it is in our graphs, a sentence each.
    pub warnings: Vec<String>,
}

/// What a source says of a tower.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tower {
    /// Heads of its attention.
    pub heads: Option<u64>,
    /// Its activation, by the name of our module or, if it has none, as the source has it.
    pub act: Option<String>,
}

impl Known {
    /// What kind of file the weights are, or what the files beside them say.
    pub fn of(weights: &Weights) -> Known {
        let beside = |name: &str| info_beside(weights.path(), name);
        if weights.is_torchscript() {
            // What the file is comes before what happens to lie beside it.
            let tower = Tower { heads: None, act: Some("quick_gelu".into()) };
            let source = Some("a TorchScript archive, as OpenAI publishes its models with quick_gelu".into());
            return Known { source, vision: tower.clone(), text: tower, ..Known::default() };
        }
        if let Some(config) = beside("open_clip_config.json").filter(|config| config.get("model_cfg").is_some()) {
            let of = &config["preprocess_cfg"];
            let normalization = normalization(&of["mean"], &of["std"]);
            return Known { normalization, ..Known::open_clip(&config["model_cfg"]) };
        }
        if let Some(config) =
            beside("config.json").filter(|config| config.get("model_type").is_some_and(|kind| kind == "clip"))
        {
            let of = beside("preprocessor_config.json").unwrap_or_default();
            let normalization = normalization(&of["image_mean"], &of["image_std"]);
            return Known { normalization, ..Known::hugging_face(&config) };
        }
        Known::default()
    }

    /// What images are normalised with, if it is something else than in a graph's pipeline, or without one than with CLIP's numbers.
    pub fn normalized_otherwise(&self, own: Option<&Normalization>) -> Option<String> {
        /// A twentieth of the step between two of an image's 256 levels.
        const CLOSE: f64 = 2e-4;
        let said = self.normalization.as_ref()?;
        let clip = Normalization { mean: CLIP_MEAN, std: CLIP_STD };
        let (own, of) = own.map_or((&clip, "CLIP's"), |own| (own, "the pipeline of the graph has"));
        let numbers = |of: &Normalization| [of.mean, of.std].concat();
        let is_same = numbers(said).iter().zip(numbers(own)).all(|(a, b)| (a - b).abs() < CLOSE);
        (!is_same).then(|| {
            format!(
                "{} says that images are normalised with mean {:?} and deviation {:?}, but {of} {:?} and {:?}: features will differ \
                 unless the pipeline says so too (`normalize_rgb`)",
                self.source.as_deref().unwrap_or("its source"), said.mean, said.std, own.mean, own.std
            )
        })
    }

    /// `model_cfg` of open_clip.
    fn open_clip(model: &Value) -> Known {
        let act = if model.get("quick_gelu").and_then(Value::as_bool) == Some(true) { "quick_gelu" } else { "gelu" };
        let (vision, text) = (&model["vision_cfg"], &model["text_cfg"]);
        let head = vision.get("head_width").and_then(Value::as_u64).unwrap_or(HEAD);
        let width = vision.get("width").and_then(Value::as_u64);
        let is_resnet = vision.get("layers").is_some_and(Value::is_array);
        // The pooling of a ResNet has 32 times its width.
        let width = width.map(|width| if is_resnet { width.saturating_mul(32) } else { width });
        let heads = width.filter(|width| head > 0 && width.is_multiple_of(head)).map(|width| width / head);
        Known {
            source: Some("open_clip_config.json".into()),
            vision: Tower { heads, act: Some(act.into()) },
            text: Tower { heads: text.get("heads").and_then(Value::as_u64), act: Some(act.into()) },
            normalization: None,
            warnings: not_understood(model).into_iter().collect(),
        }
    }

    /// `config.json` of a `CLIPModel`; what it does not say is as transformers has it.
    fn hugging_face(config: &Value) -> Known {
        let tower = |name: &str, heads: u64| {
            let of = &config[name];
            let act = of.get("hidden_act").and_then(Value::as_str).unwrap_or("quick_gelu");
            Tower {
                heads: of.get("num_attention_heads").and_then(Value::as_u64).or(Some(heads)),
                act: Some(act.into()),
            }
        };
        let mut warnings = Vec::new();
        for name in ["vision_config", "text_config"] {
            let eps = config[name].get("layer_norm_eps").and_then(Value::as_f64).unwrap_or(1e-5);
            if eps != 1e-5 {
                warnings.push(format!(
                    "`layer_norm_eps` of `{name}` is {eps}, but 1e-5 in our towers: features will differ by as much"
                ));
            }
        }
        let text = &config["text_config"];
        let end = text.get("eos_token_id").and_then(Value::as_u64).unwrap_or(49407);
        let vocabulary = text.get("vocab_size").and_then(Value::as_u64).unwrap_or(49408);
        // 2 is what the first configurations said, for which transformers takes the largest id too.
        if end != 2 && end + 1 != vocabulary {
            warnings.push(format!(
                "texts end where `eos_token_id` {end} is, but in our towers at the largest id of the text: the same only for texts \
                 without any of the ids from {} to {}",
                end + 1,
                vocabulary.saturating_sub(1)
            ));
        }
        let (vision, text) = (tower("vision_config", 12), tower("text_config", 8));
        Known { source: Some("config.json".into()), vision, text, normalization: None, warnings }
    }
}

/// What of a `model_cfg` may make other features than ours, in one sentence.
fn not_understood(model: &Value) -> Option<String> {
    /// Most keys that are named.
    const SHOWN: usize = 8;
    let mut keys = Vec::new();
    for (part, understood) in UNDERSTOOD {
        let of = if part.is_empty() { model } else { &model[part] };
        for (key, value) in of.as_object().into_iter().flatten() {
            let is_usual = value.is_null()
                || value == false
                || POOLED.iter().any(|&(of, own, usual)| (of, own) == (part, key.as_str()) && value == usual);
            if !understood.contains(&key.as_str()) && !is_usual {
                let path = if part.is_empty() { key.clone() } else { format!("{part}.{key}") };
                keys.push(format!("`{}`", path.chars().take(60).collect::<String>()));
            }
        }
    }
    let more = keys.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let shown = keys.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    (!keys.is_empty()).then(|| {
        format!("open_clip_config.json says {shown}{more}, which our towers know nothing of: features may differ")
    })
}

/// Three numbers each.
fn normalization(mean: &Value, std: &Value) -> Option<Normalization> {
    let three = |value: &Value| {
        let numbers: Vec<f64> = value.as_array()?.iter().map(Value::as_f64).collect::<Option<_>>()?;
        <[f64; 3]>::try_from(numbers).ok()
    };
    Some(Normalization { mean: three(mean)?, std: three(std)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_read() {
        let check =
            |config: Value, read: fn(&Value) -> Known, heads: [Option<u64>; 2], act: &str, warnings: &[&str]| {
                let known = read(&config);
                assert_eq!([known.vision.heads, known.text.heads], heads);
                assert_eq!(known.vision.act.as_deref(), Some(act));
                assert_eq!(known.warnings, warnings);
            };
        let hf = |text: Value| serde_json::json!({ "vision_config": { "hidden_act": "gelu" }, "text_config": text });
        check(hf(serde_json::json!({})), Known::hugging_face, [Some(12), Some(8)], "gelu", &[]);
        let old = serde_json::json!({ "eos_token_id": 2, "num_attention_heads": 3 });
        check(hf(old), Known::hugging_face, [Some(12), Some(3)], "gelu", &[]);
        check(
            hf(serde_json::json!({ "eos_token_id": 49407, "vocab_size": 49410, "layer_norm_eps": 1e-6 })),
            Known::hugging_face,
            [Some(12), Some(8)],
            "gelu",
            &[
                "`layer_norm_eps` of `text_config` is 0.000001, but 1e-5 in our towers: features will differ by as much",
                "texts end where `eos_token_id` 49407 is, but in our towers at the largest id of the text: the same only for texts \
                 without any of the ids from 49408 to 49409",
            ],
        );
        let open_clip = serde_json::json!({
            "vision_cfg": { "width": 768, "layers": 12 }, "text_cfg": { "heads": 8 }, "quick_gelu": true
        });
        check(open_clip, Known::open_clip, [Some(12), Some(8)], "quick_gelu", &[]);
        let resnet = serde_json::json!({ "vision_cfg": { "width": 64, "layers": [3, 4, 6, 3] }, "text_cfg": {} });
        check(resnet, Known::open_clip, [Some(32), None], "gelu", &[]);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let model = serde_json::json!({
            "embed_dim": 8, "vision_cfg": { "width": u64::MAX, "layers": [1, 1, 1, 1], "pool_type": "tok", "ls_init_value": null },
            "text_cfg": { "no_causal_mask": true, "pool_type": "last", "embed_cls": false },
        });
        let known = Known::open_clip(&model);
        let said = "open_clip_config.json says `text_cfg.no_causal_mask`, `text_cfg.pool_type`, which our towers know nothing of: \
                    features may differ";
        assert_eq!(known.warnings, [said]);
    }

    #[test]
    fn other_normalizations_are_told() {
        let three = |value: f64| serde_json::json!([value, value, value]);
        let known = Known {
            source: Some("config.json".into()),
            normalization: normalization(&three(0.5), &three(0.25)),
            ..Known::default()
        };
        let said = known.normalized_otherwise(None).unwrap();
        let start = "config.json says that images are normalised with mean [0.5, 0.5, 0.5] and deviation [0.25, 0.25, 0.25], but CLIP's \
                     [0.48145466, ";
        assert!(said.starts_with(start), "{said}");
        assert_eq!(known.normalized_otherwise(Some(&Normalization { mean: [0.5; 3], std: [0.25; 3] })), None);
        assert_eq!(Known::default().normalized_otherwise(None), None);
    }
}
