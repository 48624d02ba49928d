//! `alip-run search`: the images that fit a text.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use alip_runtime::eval::measures::{Rows, nearest};
use alip_runtime::eval::{Embeddings, Encoder, Named, is_image};

use crate::embed::{embedded, sources};
use crate::model::BadArgs;
use crate::open::{BATCH, ModelOption, Opened, Work};
use crate::stop::Stop;
use crate::{Failure, Outcome};

/// Find images by a text, or by another image
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  alip-run search \"a dog on a beach\" --images photos\n  alip-run search dog.jpg --images photos -k 10 --model runs/alip_flickr8k\n\nTo search often, embed once:\n  alip-run embed --images photos --out photos.safetensors\n  alip-run search \"a dog on a beach\" --images photos.safetensors"
)]
pub(crate) struct Args {
    /// What to look for: a text, or the path of an image
    query: String,
    /// A folder of images, with those in the folders within; or what `alip-run embed` wrote of one
    #[arg(long, value_name = "FOLDER|FILE")]
    images: PathBuf,
    /// How many images are shown
    #[arg(short, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    k: u64,
    #[command(flatten)]
    model: ModelOption,
    #[command(flatten)]
    bad: BadArgs,
    /// One JSON object per image
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let stop = Stop::listen("stopping")?;
    stop.ended(done(args, &stop))
}

fn done(args: &Args, stop: &Stop) -> Outcome {
    let work = Work { stop, max_bad: args.bad.max_bad };
    if is_image(Path::new(&args.query)) && !Path::new(&args.query).is_file() {
        return Err(Failure::message(format!(
            "{}: there is no such image; a text has no ending of an image",
            args.query
        )));
    }
    if args.images.extension().is_some_and(|extension| extension == "npy") {
        let why = "says nothing of the model that wrote it: search among what `embed` wrote as .safetensors";
        return Err(Failure::message(format!("{} {why}", args.images.display())));
    }
    let (mut opened, images) = match args.images.extension().is_some_and(|extension| extension == "safetensors") {
        true => {
            let found = Embeddings::read(&args.images)?;
            let mut opened = args.model.open(1)?;
            let dim = Encoder::new(&mut opened.session)?.programs().dim;
            if found.model != opened.content || found.dim != dim {
                let why = "was written by another model, or by other weights of this one: embed the images again";
                return Err(Failure::message(format!("{} {why}", args.images.display())));
            }
            (opened, found.images)
        }
        false => {
            let images = sources(std::slice::from_ref(&args.images))?;
            let mut opened = args.model.open(BATCH)?;
            let images = embedded(&mut opened, images, &work)?.0;
            (opened, images)
        }
    };
    if images.names.is_empty() {
        return Err(Failure::message(format!("{} holds no image that can be read", args.images.display())));
    }
    show(args, &images, &query(&mut opened, &args.query, &work)?)
}

/// The embedding of a text, or of an image if there is a file of that name.
fn query(opened: &mut Opened, query: &str, work: &Work<'_>) -> Outcome<Vec<f32>> {
    if !Path::new(query).is_file() {
        return opened.texts(&[query.to_string()], work);
    }
    let (found, skipped) = embedded(opened, sources(&[PathBuf::from(query)])?, work)?;
    match skipped {
        0 => Ok(found.rows),
        _ => Err(Failure::message(format!("{query}: this image cannot be read"))),
    }
}

fn show(args: &Args, images: &Named, query: &[f32]) -> Outcome {
    let rows = Rows::new("image embeddings", &images.rows, query.len())?;
    for (index, cosine) in nearest(query, rows, args.k as usize)? {
        let name = &images.names[index];
        match args.json {
            true => say!("{}", serde_json::json!({ "image": name, "cosine": cosine })),
            false => say!("{cosine:.4}  {name}"),
        }
    }
    Ok(ExitCode::SUCCESS)
}
