//! `alip-run classify`: which of a few labels fits an image.

use std::path::PathBuf;
use std::process::ExitCode;

use alip_runtime::eval::measures::{Rows, class_embeddings};

use crate::embed::{embedded, sources};
use crate::open::{ModelOption, Work};
use crate::stop::Stop;
use crate::{Failure, Outcome};

/// The factor of cosines where a model has none of its own: what CLIP's grows to.
const CLIP_SCALE: f64 = 100.0;

/// Tell which of a few labels fits an image
///
/// Each label becomes texts by the prompts, and its embedding is their mean; probabilities are the softmax of cosines times the
/// factor that the model learnt (exp of `logit_scale`).
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  alip-run classify photo.jpg --labels \"cat,dog,boat\"\n  alip-run classify photos --labels \"a cat,a dog\" --prompt \"a picture of {c}\" --json"
)]
pub(crate) struct Args {
    /// Images, or folders of images
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<PathBuf>,
    /// Labels, with commas between them
    #[arg(long, value_delimiter = ',', required = true)]
    labels: Vec<String>,
    /// What a label stands in, as `{c}`; may be given again
    #[arg(long, default_value = "a photo of a {c}.")]
    prompt: Vec<String>,
    #[command(flatten)]
    model: ModelOption,
    /// One JSON object per image
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let stop = Stop::listen("stopping")?;
    stop.ended(done(args, &stop))
}

fn done(args: &Args, stop: &Stop) -> Outcome {
    let labels: Vec<&str> = args.labels.iter().map(|label| label.trim()).filter(|label| !label.is_empty()).collect();
    if labels.len() < 2 {
        return Err(Failure::message("--labels: give two or more, with commas between them: \"cat,dog,boat\""));
    }
    if let Some(prompt) = args.prompt.iter().find(|prompt| !prompt.contains("{c}")) {
        return Err(Failure::message(format!("--prompt `{prompt}` has no `{{c}}`, where the label stands")));
    }
    // An image that cannot be read is told below; it spoils no other.
    let work = Work { stop, max_bad: 1.0 };
    let images = sources(&args.images)?;
    let texts = labels.iter().flat_map(|label| args.prompt.iter().map(move |prompt| prompt.replace("{c}", label)));
    let texts: Vec<String> = texts.collect();
    let mut opened = args.model.open((images.files().len() as u64).max(texts.len() as u64))?;
    let (found, skipped) = embedded(&mut opened, images, &work)?;
    let prompts = opened.texts(&texts, &work)?;
    let dim = prompts.len() / texts.len();
    let class_of: Vec<usize> = (0..texts.len()).map(|text| text / args.prompt.len()).collect();
    let classes = class_embeddings(Rows::new("prompt embeddings", &prompts, dim)?, &class_of, labels.len())?;
    let images = Rows::new("image embeddings", &found.rows, dim)?;
    let scale = opened.scale.unwrap_or(CLIP_SCALE);
    for (index, name) in found.names.iter().enumerate() {
        let mut shares: Vec<(&str, f64)> =
            labels.iter().copied().zip(probabilities(&classes.products(images.row(index)), scale)).collect();
        shares.sort_by(|a, b| b.1.total_cmp(&a.1));
        match args.json {
            true => {
                let labels: Vec<_> = shares
                    .iter()
                    .map(|(label, share)| serde_json::json!({ "label": label, "probability": share }))
                    .collect();
                say!("{}", serde_json::json!({ "image": name, "labels": labels }));
            }
            false => {
                if found.names.len() > 1 {
                    say!("{name}");
                }
                shares.iter().for_each(|(label, share)| say!("{:5.1} %  {label}", 100.0 * share));
            }
        }
    }
    Ok(if skipped == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The softmax of an image's cosines with the classes, times `scale`.
fn probabilities(cosines: &[f64], scale: f64) -> Vec<f64> {
    let logits: Vec<f64> = cosines.iter().map(|cosine| scale * cosine).collect();
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.into_iter().map(|exp| exp / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_by_hand() {
        let found = probabilities(&[1.0, 0.0, 0.5], 2.0);
        let exps = [2f64.exp(), 1.0, 1f64.exp()];
        let sum: f64 = exps.iter().sum();
        assert!(found.iter().zip(exps).all(|(found, exp)| (found - exp / sum).abs() < 1e-12), "{found:?}");
    }
}
