//! Weights for others: names, layouts and files that open_clip and transformers load as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::container::Weights;
use super::error::WeightsError;
use super::map::NameMap;
use super::raw::RawTensor;
use super::shapes::{Shapes, Stack, Vision};
use super::write::Floats;
use crate::file::{FileError, write_bytes};
use crate::run::checkpoint::AVERAGE;
use crate::run::tensors::{self, Entry};

/// Whose files are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A folder with `open_clip_model.safetensors`, OpenAI's names, and `open_clip_config.json`.
    OpenClip,
    /// A folder with `model.safetensors`, `config.json` and `preprocessor_config.json` of a `CLIPModel`.
    HuggingFace,
}

impl Format {
    /// Name of the map of its names.
    pub fn map(self) -> &'static str {
        self.parts().0
    }

    /// Name of the format's map, and of its files of weights and configuration.
    fn parts(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Format::OpenClip => ("openai", "open_clip_model.safetensors", "open_clip_config.json"),
            Format::HuggingFace => ("huggingface_clip", "model.safetensors", "config.json"),
        }
    }
}

/// What weights do not say of their model.
#[derive(Clone, Debug, PartialEq)]
pub struct Described {
    /// Heads of the towers of images and texts.
    pub heads: [u64; 2],
    /// Activations of the towers of images and texts; of a ResNet none.
    pub acts: [Option<String>; 2],
    /// What is taken from the levels of an image, between 0 and 1, by channel.
    pub mean: [f64; 3],
    /// What they are divided by then.
    pub std: [f64; 3],
    /// The id that ends a text; the last row of the table of tokens where nothing says it.
    pub end: Option<u64>,
}

/// Where a CLIP's weights are in a file.
#[derive(Debug)]
pub struct Clip {
    shapes: Shapes,
    /// Our names, and those in the file.
    tensors: Vec<(String, String)>,
    /// Names in the file that are no part of a CLIP.
    left_out: Vec<String>,
}

impl Clip {
    /// Finds the weights of a CLIP in a file with our names, or the averages of them. Of a checkpoint, `states` are those of its
    /// names that are neither parameters nor running statistics: gates, moments, counters.
    ///
    /// # Errors
    /// They are no CLIP's: a weight is missing, of another shape, or is none that a CLIP has.
    pub fn find(weights: &Weights, average: bool, states: &BTreeSet<String>) -> Result<Clip, WeightsError> {
        let refused = |why: String| WeightsError::Refused { path: weights.path().to_path_buf(), why };
        let shapes = weights.shapes()?;
        let (mut tensors, mut known) = (Vec::new(), BTreeSet::new());
        for (name, shape) in shapes.layout() {
            let stored = weights.stored(&name, average);
            match weights.info(&stored) {
                Some((_, found)) if found == shape => {}
                Some((_, found)) => {
                    return Err(refused(format!(
                        "no CLIP as others have them: `{name}` is {found:?}, and not {shape:?}"
                    )));
                }
                None => return Err(refused(format!("no CLIP as others have them: there is no `{name}` {shape:?}"))),
            }
            known.insert(name.clone());
            tensors.push((name, stored));
        }
        if average && !tensors.iter().any(|(_, stored)| stored.starts_with(AVERAGE)) {
            return Err(refused("it holds no averages of weights; the spec has no `ema`".into()));
        }
        let counters = weights.names().filter(|name| name.ends_with(".num_batches_tracked"));
        let counters: Vec<String> = counters.filter(|name| name.starts_with("visual.")).map(str::to_string).collect();
        known.extend(counters.iter().cloned());
        tensors.extend(counters.into_iter().map(|name| (name.clone(), name)));
        let (left_out, unknown): (Vec<&str>, Vec<&str>) =
            weights.names().filter(|name| !known.contains(*name)).partition(|name| states.contains(*name));
        if let Some(name) = unknown.first() {
            let more = if unknown.len() > 1 { format!(" and {} more", unknown.len() - 1) } else { String::new() };
            return Err(refused(format!("no CLIP as others have them: `{name}`{more} is no weight of one")));
        }
        tensors.sort();
        Ok(Clip { shapes, tensors, left_out: left_out.into_iter().map(str::to_string).collect() })
    }

    /// Its sizes.
    pub fn shapes(&self) -> &Shapes {
        &self.shapes
    }

    /// Names in the file that are no part of a CLIP: gates, averages, moments, counters.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// Our names of its weights, and those in the file.
    pub fn tensors(&self) -> &[(String, String)] {
        &self.tensors
    }

    /// Writes a folder that the programs of others load.
    ///
    /// # Errors
    /// The format cannot hold such a model, or a file cannot be read or written.
    pub fn write(
        &self,
        weights: &mut Weights,
        format: Format,
        described: &Described,
        floats: Floats,
        folder: &Path,
    ) -> Result<(), WeightsError> {
        let (map, file, config) = format.parts();
        let refused = |why: String| WeightsError::Refused { path: weights.path().to_path_buf(), why };
        let settings = match format {
            Format::OpenClip => vec![(config, open_clip(&self.shapes, described))],
            Format::HuggingFace => vec![
                (config, hugging_face(&self.shapes, described)),
                ("preprocessor_config.json", Ok(preprocessor(&self.shapes, described))),
            ],
        };
        let settings: Vec<(&str, Value)> = settings
            .into_iter()
            .map(|(name, value)| value.map(|value| (name, value)).map_err(refused))
            .collect::<Result<_, _>>()?;
        fs::create_dir_all(folder).map_err(FileError::io(folder, "create the folder"))?;
        self.write_tensors(weights, &NameMap::named(map)?, floats, &folder.join(file))?;
        for (name, value) in settings {
            let text = serde_json::to_string_pretty(&value).unwrap_or_default() + "\n";
            write_bytes(&folder.join(name), text.as_bytes())?;
        }
        Ok(())
    }

    /// Writes the weights under the names and in the layouts of a map.
    fn write_tensors(
        &self,
        weights: &mut Weights,
        map: &NameMap,
        floats: Floats,
        out: &Path,
    ) -> Result<(), WeightsError> {
        let mut parts: BTreeMap<String, Part> = BTreeMap::new();
        let mut entries = Vec::new();
        for (ours, stored) in &self.tensors {
            let Some((theirs, transpose)) = map.theirs(ours) else {
                let why = format!("`{ours}` has no place in the names of map `{}`", map.name());
                return Err(WeightsError::Refused { path: weights.path().to_path_buf(), why });
            };
            let Some((dtype, shape)) = weights.info(stored) else { continue };
            let of = theirs.len();
            for (index, name) in theirs.into_iter().enumerate() {
                let part = Part { stored: stored.clone(), index, of, transpose };
                entries.push(Entry { name: name.clone(), dtype: floats.of(dtype), shape: part.shape(shape) });
                parts.insert(name, part);
            }
        }
        // The tensor that parts were taken of last: its others come next.
        let mut last: Option<(String, RawTensor)> = None;
        // transformers asks for the first, which says nothing that is not so.
        tensors::write(out, &[("format", "pt".into())], &entries, |entry| {
            let Some(part) = parts.get(&entry.name) else { return Ok(Vec::new()) };
            if last.as_ref().is_none_or(|(name, _)| *name != part.stored) {
                last = Some((part.stored.clone(), weights.read(&part.stored)?));
            }
            let Some((_, whole)) = &last else { return Ok(Vec::new()) };
            Ok(floats.apply(&entry.name, out, part.take(whole))?.bytes)
        })
    }
}

/// A part of a tensor of ours that is one of theirs.
struct Part {
    stored: String,
    index: usize,
    of: usize,
    transpose: bool,
}

impl Part {
    fn shape(&self, whole: &[u64]) -> Vec<u64> {
        let mut shape = whole.to_vec();
        if let Some(rows) = shape.first_mut() {
            *rows /= self.of as u64;
        }
        if self.transpose {
            shape.reverse();
        }
        shape
    }

    fn take(&self, whole: &RawTensor) -> RawTensor {
        let part = whole.part(self.index, self.of);
        if self.transpose { part.transposed() } else { part }
    }
}

/// An activation that both towers have and open_clip's configuration can say.
fn quick(described: &Described) -> Result<bool, String> {
    let acts: BTreeSet<&str> = described.acts.iter().flatten().map(String::as_str).collect();
    match acts.into_iter().collect::<Vec<_>>().as_slice() {
        ["quick_gelu"] => Ok(true),
        ["gelu"] | [] => Ok(false),
        acts => Err(format!("open_clip has gelu or quick_gelu in both towers, and this model {}", acts.join(" and "))),
    }
}

fn ratio(stack: &Stack) -> f64 {
    stack.hidden as f64 / stack.width.max(1) as f64
}

fn open_clip(shapes: &Shapes, described: &Described) -> Result<Value, String> {
    let quick = quick(described)?;
    let head = shapes.vision.attention() / described.heads[0].max(1);
    let mut vision = match &shapes.vision {
        Vision::Vit { patch, stack, .. } => {
            json!({ "layers": stack.layers, "width": stack.width, "patch_size": patch, "mlp_ratio": ratio(stack) })
        }
        Vision::Resnet { width, blocks, .. } => json!({ "layers": blocks, "width": width, "patch_size": null }),
    };
    vision["image_size"] = shapes.vision.image().into();
    vision["head_width"] = head.into();
    let text = json!({
        "context_length": shapes.context, "vocab_size": shapes.vocabulary, "width": shapes.text.width,
        "heads": described.heads[1], "layers": shapes.text.layers, "mlp_ratio": ratio(&shapes.text),
    });
    let side = shapes.vision.image();
    Ok(json!({
        "model_cfg": { "embed_dim": shapes.embed, "quick_gelu": quick, "vision_cfg": vision, "text_cfg": text },
        "preprocess_cfg": {
            "size": side, "mode": "RGB", "mean": described.mean, "std": described.std, "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }))
}

fn hugging_face(shapes: &Shapes, described: &Described) -> Result<Value, String> {
    let Vision::Vit { image, patch, stack } = &shapes.vision else {
        return Err("transformers has no modified ResNet in its CLIPModel; export it to openai".into());
    };
    let act = |tower: usize| match described.acts[tower].as_deref() {
        Some(act @ ("gelu" | "quick_gelu")) => Ok(act.to_string()),
        Some(other) => Err(format!("transformers' CLIPModel has gelu or quick_gelu, and this model {other}")),
        None => Err("nobody says what the activation is".into()),
    };
    // The end of a text is the largest id, as in our towers.
    let end = described.end.unwrap_or(shapes.vocabulary.saturating_sub(1));
    Ok(json!({
        "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": shapes.embed,
        "logit_scale_init_value": 2.6592, "initializer_factor": 1.0,
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": stack.width, "intermediate_size": stack.hidden,
            "num_hidden_layers": stack.layers, "num_attention_heads": described.heads[0], "image_size": image, "patch_size": patch,
            "num_channels": 3, "hidden_act": act(0)?, "layer_norm_eps": 1e-5, "projection_dim": shapes.embed,
        },
        "text_config": {
            "model_type": "clip_text_model", "hidden_size": shapes.text.width, "intermediate_size": shapes.text.hidden,
            "num_hidden_layers": shapes.text.layers, "num_attention_heads": described.heads[1],
            "max_position_embeddings": shapes.context, "vocab_size": shapes.vocabulary, "hidden_act": act(1)?,
            "layer_norm_eps": 1e-5, "bos_token_id": end.saturating_sub(1), "eos_token_id": end, "pad_token_id": 0,
            "projection_dim": shapes.embed,
        },
    }))
}

fn preprocessor(shapes: &Shapes, described: &Described) -> Value {
    let side = shapes.vision.image();
    json!({
        "image_processor_type": "CLIPImageProcessor", "do_resize": true, "size": { "shortest_edge": side }, "resample": 3,
        "do_center_crop": true, "crop_size": { "height": side, "width": side }, "do_rescale": true,
        "rescale_factor": 1.0 / 255.0, "do_normalize": true, "image_mean": described.mean, "image_std": described.std,
        "do_convert_rgb": true,
    })
}
