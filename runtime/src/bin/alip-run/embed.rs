//! `alip-run embed`: images and texts to embeddings.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use alip_runtime::data::SampleSource;
use alip_runtime::eval::measures::Rows;
use alip_runtime::eval::{Embeddings, ImageFiles, Named, npy};
use alip_runtime::file::write_bytes;

use crate::model::BadArgs;
use crate::open::{ModelOption, Opened, Work};
use crate::stop::Stop;
use crate::{Failure, Outcome};

/// Embed images and texts with a trained model
///
/// Images are resized to the model's side (the shorter side, bicubic), cut in the middle and normalised as in training. All
/// embeddings are unit vectors: an inner product of two is their cosine.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  alip-run embed --images photos --out photos.safetensors\n  alip-run search \"a dog on a beach\" --images photos.safetensors\n  alip-run embed --texts captions.txt --out captions.npy --model runs/alip_flickr8k"
)]
pub(crate) struct Args {
    /// A folder of images, with those in the folders within, or an image; may be given again
    #[arg(long, value_name = "PATH", required_unless_present_any = ["texts", "text"])]
    images: Vec<PathBuf>,
    /// A file with a text per line
    #[arg(long, value_name = "FILE")]
    texts: Option<PathBuf>,
    /// A text; may be given again
    #[arg(long)]
    text: Vec<String>,
    /// Where the embeddings go: `.safetensors` with `images` and `texts` [N, D] and their names in the header, or `.npy` of either,
    /// with the names beside it in `.names.txt`
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    model: ModelOption,
    #[command(flatten)]
    bad: BadArgs,
    /// Print what was done as one JSON object
    #[arg(long)]
    json: bool,
}

/// Whether a file can be written at the end of long work, as far as that can be known at its beginning.
pub(crate) fn in_a_folder(path: &Path) -> Outcome<()> {
    match path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()) {
        Some(folder) => {
            let why = format!("there is no folder {}; make it, or write elsewhere", folder.display());
            Err(Failure::message(format!("{}: {why}", path.display())))
        }
        None => Ok(()),
    }
}

/// Bytes of names that a header of safetensors, of 100 MB at most, holds with all that stands around them.
const MOST_NAMES: usize = 40_000_000;

pub(crate) fn run(args: &Args) -> Outcome {
    let stop = Stop::listen("stopping; nothing is written")?;
    stop.ended(done(args, &stop))
}

fn done(args: &Args, stop: &Stop) -> Outcome {
    let is_npy = has_extension(&args.out, "npy");
    if !is_npy && !has_extension(&args.out, "safetensors") {
        let out = args.out.display();
        return Err(Failure::message(format!("--out {out}: write a file that ends in .safetensors or .npy")));
    }
    let texts = texts(args)?;
    if is_npy && !texts.is_empty() && !args.images.is_empty() {
        let out = args.out.display();
        return Err(Failure::message(format!(
            "--out {out}: one table holds images or texts; write .safetensors for both"
        )));
    }
    in_a_folder(&args.out)?;
    let images = (!args.images.is_empty()).then(|| sources(&args.images)).transpose()?;
    let files = images.iter().flat_map(|images| images.files()).map(|file| file.to_string_lossy());
    if let Some(name) = files.chain(texts.iter().map(|text| text.into())).find(|name| is_npy && name.contains('\n')) {
        return Err(Failure::message(format!("{name:?}: names beside a .npy are a line each; write .safetensors")));
    }
    let names = images.iter().flat_map(|images| images.files()).map(|file| file.as_os_str().len()).sum::<usize>();
    if !is_npy && names + texts.iter().map(String::len).sum::<usize>() > MOST_NAMES {
        let why = "names and texts are too long for the header of one file: embed them in parts, or write .npy";
        return Err(Failure::message(format!("--out {}: {why}", args.out.display())));
    }
    let mut opened = args.model.open(images.as_ref().map_or(0, |images| images.len()).max(texts.len() as u64))?;
    let work = Work { stop, max_bad: args.bad.max_bad };
    let dim = alip_runtime::eval::Encoder::new(&mut opened.session)?.programs().dim;
    let (images, skipped) = match images {
        Some(images) => embedded(&mut opened, images, &work)?,
        None => (Named::default(), 0),
    };
    let rows = opened.texts(&texts, &work)?;
    let found = Embeddings { model: opened.content.clone(), dim, images, texts: Named { names: texts, rows } };
    for (what, named) in [("image embeddings", &found.images), ("text embeddings", &found.texts)] {
        Rows::new(what, &named.rows, dim)?;
    }
    match is_npy {
        true => {
            let named = if found.images.names.is_empty() { &found.texts } else { &found.images };
            // The names first: rows without names are worth nothing.
            write_bytes(&args.out.with_extension("names.txt"), (named.names.join("\n") + "\n").as_bytes())?;
            write_bytes(&args.out, &npy(&named.rows, dim))?;
        }
        false => found.write(&args.out)?,
    }
    let (images, texts, out) = (found.images.names.len(), found.texts.names.len(), args.out.display());
    if args.json {
        let out = args.out.display().to_string();
        say!("{}", serde_json::json!({ "out": out, "images": images, "texts": texts, "dim": dim, "skipped": skipped }));
    } else {
        say!("{out}: {images} images and {texts} texts, {dim} numbers each; {skipped} images could not be read");
    }
    Ok(ExitCode::SUCCESS)
}

/// Embeddings of all images with their names, and how many could not be read.
pub(crate) fn embedded(opened: &mut Opened, images: Arc<ImageFiles>, work: &Work<'_>) -> Outcome<(Named, usize)> {
    let source: Arc<dyn SampleSource> = images.clone();
    let found = opened.images(source, work)?;
    let names = found.rows.iter().map(|&row| images.files()[row as usize].display().to_string()).collect();
    Ok((Named { names, rows: found.images }, found.skipped))
}

/// The images of all folders and files that were named.
pub(crate) fn sources(paths: &[PathBuf]) -> Outcome<Arc<ImageFiles>> {
    let mut files = Vec::new();
    for path in paths {
        let found = ImageFiles::open(path)?;
        if let Some(others) = found.others() {
            note!(
                "left out of {}: {others}, which are images of other kinds than .jpg, .png and .webp",
                path.display()
            );
        }
        files.extend(found.files().iter().cloned());
    }
    Ok(Arc::new(ImageFiles::new(files)?))
}

fn has_extension(path: &Path, wanted: &str) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(wanted))
}

fn texts(args: &Args) -> Outcome<Vec<String>> {
    let mut texts = Vec::new();
    if let Some(path) = &args.texts {
        let file = std::fs::read_to_string(path);
        let file = file.map_err(|error| Failure::message(format!("--texts {}: {error}", path.display())))?;
        texts.extend(file.lines().map(str::to_string));
    }
    texts.extend(args.text.iter().cloned());
    Ok(texts)
}
