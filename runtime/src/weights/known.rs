//! What a source says of its model beside the weights: `config.json` of Hugging Face, `open_clip_config.json`, and what it is.

use serde_json::Value;

use super::container::{Weights, info_beside};

/// Width of a head in OpenAI's models, and of nearly all others.
const HEAD: u64 = 64;

/// What a source says of its model; nothing where it says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// Where it is said, for people.
    pub source: Option<String>,
    /// Of the tower of images.
    pub vision: Tower,
    /// Of the tower of texts.
    pub text: Tower,
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
    /// What the files beside the weights say, or what kind of file they are.
    pub fn of(weights: &Weights) -> Known {
        let beside = |name: &str| info_beside(weights.path(), name);
        if let Some(model) = beside("open_clip_config.json").and_then(|config| config.get("model_cfg").cloned()) {
            return Known::open_clip(&model);
        }
        if let Some(config) =
            beside("config.json").filter(|config| config.get("model_type").is_some_and(|kind| kind == "clip"))
        {
            return Known::hugging_face(&config);
        }
        if weights.is_torchscript() {
            let act = Some("quick_gelu".to_string());
            let tower = Tower { heads: None, act };
            let source = Some("a TorchScript archive, as OpenAI publishes its models with quick_gelu".into());
            return Known { source, vision: tower.clone(), text: tower, warnings: Vec::new() };
        }
        Known::default()
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
            warnings: Vec::new(),
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
        Known { source: Some("config.json".into()), vision, text, warnings }
    }
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
}
