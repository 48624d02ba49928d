//! The sizes of a CLIP, as the names and shapes of its weights tell them, and a graph of these sizes.

use super::known::Known;

/// Shapes of weights by our names.
pub(super) type ShapeOf<'a> = &'a dyn Fn(&str) -> Option<Vec<u64>>;

/// The sizes of a CLIP.
#[derive(Clone, Debug, PartialEq)]
pub struct Shapes {
    /// Of the embeddings.
    pub embed: u64,
    /// Of the tower of images.
    pub vision: Vision,
    /// Ids.
    pub vocabulary: u64,
    /// Positions of a text.
    pub context: u64,
    /// Of the tower of texts.
    pub text: Stack,
}

/// The sizes of a stack of residual attention blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stack {
    /// Of its states.
    pub width: u64,
    /// Blocks.
    pub layers: u64,
    /// Of the middle of its mlp.
    pub hidden: u64,
}

/// A tower of images.
#[derive(Clone, Debug, PartialEq)]
pub enum Vision {
    /// A vision transformer.
    Vit {
        /// Side of an image.
        image: u64,
        /// Side of a patch.
        patch: u64,
        /// Its blocks.
        stack: Stack,
    },
    /// A modified ResNet.
    Resnet {
        /// Side of an image.
        image: u64,
        /// Channels of its stem.
        width: u64,
        /// Blocks of its stages.
        blocks: [u64; 4],
    },
}

impl Vision {
    /// Side of an image.
    pub fn image(&self) -> u64 {
        match self {
            Vision::Vit { image, .. } | Vision::Resnet { image, .. } => *image,
        }
    }

    /// Width of its attention: what its heads divide.
    pub fn attention(&self) -> u64 {
        match self {
            Vision::Vit { stack, .. } => stack.width,
            Vision::Resnet { width, .. } => width.saturating_mul(32),
        }
    }
}

impl Shapes {
    /// Of weights with our names.
    ///
    /// # Errors
    /// They are no CLIP's as we know it; what shows it.
    pub(super) fn of(shape: ShapeOf<'_>) -> Result<Shapes, String> {
        let matrix = |name: &str| match shape(name).as_deref() {
            Some(&[rows, columns]) => Ok((rows, columns)),
            Some(other) => Err(format!("`{name}` has the shape {other:?}, and no two dimensions")),
            None => Err(format!("there is no `{name}`")),
        };
        let (vocabulary, width) = matrix("token_embedding.weight")?;
        let (context, _) = matrix("positional_embedding")?;
        let (_, embed) = matrix("text_projection")?;
        let text = stack(shape, "transformer", width)?;
        let vision = match shape("visual.conv1.weight").as_deref() {
            Some(&[width, _, patch, _]) if shape("visual.class_embedding").is_some() => {
                let image = patch
                    .saturating_mul(side("visual.positional_embedding", matrix("visual.positional_embedding")?.0)?);
                Vision::Vit { image, patch, stack: stack(shape, "visual.transformer", width)? }
            }
            Some(_) if shape("visual.attnpool.positional_embedding").is_some() => {
                let name = "visual.attnpool.positional_embedding";
                let image = side(name, matrix(name)?.0)?.saturating_mul(32);
                let stem = shape("visual.layer1.0.conv1.weight").and_then(|shape| shape.first().copied());
                let stage =
                    |stage: u64| count(|block| shape(&format!("visual.layer{stage}.{block}.conv1.weight")).is_some());
                Vision::Resnet {
                    image,
                    width: stem.ok_or("there is no `visual.layer1.0.conv1.weight`")?,
                    blocks: [1, 2, 3, 4].map(stage),
                }
            }
            _ => {
                return Err("there is neither a vision transformer nor a modified ResNet under `visual`".into());
            }
        };
        Ok(Shapes { embed, vision, vocabulary, context, text })
    }
}

fn stack(shape: ShapeOf<'_>, path: &str, width: u64) -> Result<Stack, String> {
    let layers = count(|block| shape(&format!("{path}.resblocks.{block}.ln_1.weight")).is_some());
    let hidden = shape(&format!("{path}.resblocks.0.mlp.c_fc.weight")).and_then(|shape| shape.first().copied());
    let hidden = hidden.ok_or_else(|| format!("there is no `{path}.resblocks.0.mlp.c_fc.weight`"))?;
    Ok(Stack { width, layers, hidden })
}

/// How many there are from 0 on.
fn count(is_there: impl Fn(u64) -> bool) -> u64 {
    (0..).take_while(|&index| is_there(index)).count() as u64
}

/// The side of a grid that has so many positions, a token before them.
fn side(name: &str, rows: u64) -> Result<u64, String> {
    let side = rows.saturating_sub(1).isqrt();
    match side > 0 && side * side == rows - 1 {
        true => Ok(side),
        false => Err(format!("`{name}` has {rows} positions, which are no square and a token")),
    }
}

/// How a spec that was guessed begins.
pub const GUESSED: &str = "// Written by `alip-run import --graph auto`";

/// A graph that was guessed.
#[derive(Clone, Debug, PartialEq)]
pub struct Guess {
    /// A RON spec.
    pub spec: String,
    /// What of it was assumed, a sentence each.
    pub assumed: Vec<String>,
}

/// What a person says of a model whose source does not say it.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// Heads of the towers of images and texts.
    pub heads: Option<(u64, u64)>,
    /// Activation of both.
    pub act: Option<String>,
}

impl Guess {
    /// A variant of `clip_b32` with these sizes.
    ///
    /// # Errors
    /// Something cannot be guessed, or is nothing that our modules have.
    pub fn new(name: &str, source: &str, shapes: &Shapes, known: &Known, said: &Said) -> Result<Guess, String> {
        let (name, source) = (&plain(name), &plain(source));
        let mut assumed = Vec::new();
        let vision_heads = heads(
            "images",
            shapes.vision.attention(),
            said.heads.map(|heads| heads.0).or(known.vision.heads),
            &mut assumed,
        )?;
        let text_heads =
            heads("texts", shapes.text.width, said.heads.map(|heads| heads.1).or(known.text.heads), &mut assumed)?;
        let of = |own: &Option<String>| said.act.clone().or_else(|| own.clone());
        let (vision_act, text_act) = (act(of(&known.vision.act))?, act(of(&known.text.act))?);
        if said.act.is_none() && known.text.act.is_none() {
            assumed.push(
                "the activation is taken to be `gelu`, since nothing says it; OpenAI's own weights need `quick_gelu` (--act quick_gelu)"
                    .into(),
            );
        }
        let (image, context) = (shapes.vision.image(), shapes.context);
        let is_resnet = matches!(shapes.vision, Vision::Resnet { .. });
        let uses: Vec<&str> =
            [is_resnet.then_some("\"vision/resnet\""), Some("\"activation\"")].into_iter().flatten().collect();
        let vision = match &shapes.vision {
            Vision::Vit { image, patch, stack } => format!(
                "vit(image: {image}, patch: {patch}, width: {}, layers: {}, heads: {vision_heads}, out: D{}, act: {vision_act})",
                stack.width,
                stack.layers,
                ratio(stack)?
            ),
            Vision::Resnet { image, width, blocks } => {
                format!(
                    "modified_resnet(image: {image}, width: {width}, blocks: {blocks:?}, heads: {vision_heads}, out: D)"
                )
            }
        };
        let text = format!(
            "text_transformer(vocab: {}, context: T, width: {}, layers: {}, heads: {text_heads}, out: D{}, act: {text_act})",
            shapes.vocabulary,
            shapes.text.width,
            shapes.text.layers,
            ratio(&shapes.text)?
        );
        // The base's pipeline makes images and texts of its own sizes.
        let data = if (image, context) == (224, 77) { "" } else { "data: None," };
        let spec = format!(
            "{GUESSED} from {source}.\nGraph(name: {name:?}, doc: \"CLIP with the sizes of {name}.\", \
             base: \"clip_b32\", use: [{}], dims: {{ \"T\": {context}, \"D\": {} }}, inputs: {{ \"image\": (dtype: F32, shape: \
             \"[B, 3, {image}, {image}]\") }}, parts: {{ \"visual\": \"{vision}\", \"text\": (module: \"{text}\", path: \"\") }}, {data})",
            uses.join(", "),
            shapes.embed
        );
        Ok(Guess { spec, assumed })
    }
}

/// The name of a file as it may stand in a string and in a comment of a spec: other characters than letters, digits and the usual
/// marks are replaced.
fn plain(name: &str) -> String {
    name.chars().map(|letter| if letter.is_alphanumeric() || "_-.".contains(letter) { letter } else { '_' }).collect()
}

/// Heads that divide a width, or such as have the usual one.
fn heads(of: &str, width: u64, said: Option<u64>, assumed: &mut Vec<String>) -> Result<u64, String> {
    const USUAL: u64 = 64;
    match said {
        Some(heads) if heads > 0 && width.is_multiple_of(heads) => Ok(heads),
        Some(heads) => Err(format!("{heads} heads do not divide the width {width} of the tower of {of}")),
        None if width.is_multiple_of(USUAL) => {
            let heads = width / USUAL;
            assumed.push(format!(
                "{heads} heads of the tower of {of} are an assumption, each {USUAL} wide: weights do not tell (--heads IMAGES,TEXTS)"
            ));
            Ok(heads)
        }
        None => Err(format!(
            "nothing says how many heads the tower of {of} has, and {USUAL} does not divide its width {width}; give --heads IMAGES,TEXTS"
        )),
    }
}

/// Our module of this name.
fn act(name: Option<String>) -> Result<String, String> {
    let name = name.unwrap_or_else(|| "gelu".into());
    match name.as_str() {
        "gelu" | "quick_gelu" | "relu" | "silu" => Ok(name),
        other => Err(format!("the activation `{other}` is none of ours: gelu, quick_gelu, relu, silu")),
    }
}

fn ratio(stack: &Stack) -> Result<String, String> {
    match (stack.hidden.checked_rem(stack.width), stack.hidden / stack.width.max(1)) {
        (Some(0), 4) => Ok(String::new()),
        (Some(0), ratio) => Ok(format!(", ratio: {ratio}")),
        _ => {
            Err(format!("the middle of an mlp has {} numbers, no multiple of its width {}", stack.hidden, stack.width))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_of_files_do_no_harm_in_a_spec() {
        let check = |name: &str, written: &str| assert_eq!(plain(name), written);
        check("ViT-B-32.pt", "ViT-B-32.pt");
        check("a\nGraph(name: \"x\")", "a_Graph_name___x__");
    }
}
