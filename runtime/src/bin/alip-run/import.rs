//! `alip-run import`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use alip_plan::DType;
use alip_runtime::file::write_bytes;
use alip_runtime::run::SpecSources;
use alip_runtime::run::read_plan;
use alip_runtime::weights::{Fit, FitOptions, Floats, Known, SAME, Wanted, Weights, save};

use crate::{Failure, Outcome};

/// Read weights of others and write them as safetensors with our names
///
/// FILE is what people have: safetensors (a file, Hugging Face's index of shards, or a folder with either), `.pt` and `.pth` of
/// PyTorch in either format, a checkpoint of a training, or a TorchScript archive as OpenAI publishes them. No code in it is run.
/// Without --graph only names and layouts change. With it every weight of the graph must come and none may be left over.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  alip-run import ViT-B-32.pt --graph auto -o clip.safetensors
  alip-run import openai/clip-vit-base-patch32 --graph clip_b32 --set 'parts.visual=...' -o clip.safetensors
  alip-run import ALIP_YFCC15M_B32.pt --graph alip_b32 -o alip.safetensors
  alip-run import open_clip_model.safetensors --dtype same -o same.safetensors")]
pub(crate) struct Args {
    /// A file of weights, an index of shards, or a folder with one
    file: PathBuf,
    /// The graph that they are for: a name or path of a spec, a directory with a plan, or `auto` to write one of their sizes beside
    /// OUT
    #[arg(long, value_name = "SPEC|PLAN|auto")]
    graph: Option<String>,
    /// Change one thing of the graph
    #[arg(long, value_name = "KEY=VALUE", requires = "graph")]
    set: Vec<String>,
    /// The map of names, in place of the one that knows most: openai, huggingface_clip, open_clip_custom_text, `same` for names
    /// that stay, or a RON file
    #[arg(long, value_name = "NAME|FILE")]
    map: Option<String>,
    /// Type of floats in OUT
    #[arg(long, value_enum, default_value_t = Type::F32)]
    dtype: Type,
    /// Take only what has such a name of ours, `visual.*`
    #[arg(long, value_name = "PATTERN")]
    select: Option<String>,
    /// Resample embeddings of positions for another resolution (bicubic, antialiased), cut or extend those of texts with zeros
    #[arg(long, requires = "graph")]
    resize_positions: bool,
    /// With --graph auto: heads of the towers, where the file does not say
    #[arg(long, value_name = "IMAGES,TEXTS", value_parser = heads)]
    heads: Option<(u64, u64)>,
    /// With --graph auto: the activation of both towers, in place of what the file says: gelu, quick_gelu
    #[arg(long, value_name = "NAME")]
    act: Option<String>,
    /// The safetensors file to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Print what was done as one JSON object
    #[arg(long)]
    json: bool,
}

/// Types of floats in a file.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Type {
    F32,
    F16,
    Bf16,
    /// As they are
    Same,
}

impl Type {
    pub(crate) fn floats(self) -> Floats {
        match self {
            Type::F32 => Floats::As(DType::F32),
            Type::F16 => Floats::As(DType::F16),
            Type::Bf16 => Floats::As(DType::Bf16),
            Type::Same => Floats::Same,
        }
    }
}

/// Two numbers of heads.
pub(crate) fn heads(text: &str) -> Result<(u64, u64), String> {
    let numbers = text.split_once(',').and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
    numbers.filter(|&(a, b): &(u64, u64)| a > 0 && b > 0).ok_or_else(|| "two numbers, such as 12,8".into())
}

/// A graph to which weights are fitted.
struct Target {
    name: String,
    wanted: Vec<Wanted>,
    /// A spec that was made for them, and where it goes.
    made: Option<(PathBuf, String)>,
}

pub(crate) fn run(args: &Args) -> Outcome {
    if args.out.extension().is_none_or(|extension| extension != "safetensors") {
        let why = "is no name of a safetensors file, which is what is written; give one that ends in .safetensors";
        return Err(Failure::message(format!("--out {} {why}", args.out.display())));
    }
    let mut weights = opened(&args.file, args.map.as_deref())?;
    let known = Known::of(&weights);
    if let Some(source) = &known.source {
        note!("of the model says: {source}");
    }
    known.warnings.iter().for_each(|warning| note!("warning: {warning}"));
    let target = target(args, &weights, &known)?;
    if args.graph.as_deref().is_none_or(|graph| graph == "auto") {
        known.normalized_otherwise(None).iter().for_each(|otherwise| note!("warning: {otherwise}"));
    }
    let select = args.select.as_deref();
    let options = FitOptions { select, resize_positions: args.resize_positions };
    let fit = match &target {
        Some(target) => Fit::new(&weights, &target.name, &target.wanted, &options)?,
        None => Fit::all(&weights, select)?,
    };
    let hash = weights.fingerprint()?;
    let names: Vec<&str> = fit.taken().collect();
    let report = serde_json::json!({
        "source": args.file.file_name().map(|name| name.to_string_lossy()), "hash": hash, "map": weights.map(),
        "graph": target.as_ref().map(|target| &target.name), "tensors": names.len(), "notes": weights.notes(),
        "resampled": fit.resampled().collect::<Vec<_>>(), "kept": fit.kept(), "not_selected": fit.others().len(),
        "warnings": known.warnings,
    });
    for line in fit.resampled() {
        note!("{line}");
    }
    if !fit.kept().is_empty() {
        note!("not in the file, and left at their first values: {}", fit.kept().join(", "));
    }
    say_gates(fit.gates());
    if !fit.others().is_empty() {
        note!("{} tensors of the file were not selected", fit.others().len());
    }
    // Whoever opens the file takes its names for ours by this key; names that merely stayed may be anybody's.
    let is_ours = target.is_some() || weights.is_ours() || weights.map() != SAME;
    let key = if is_ours { "alip.import" } else { "alip.source" };
    save(&mut weights, &fit, args.dtype.floats(), &[(key, report.to_string())], &args.out)?;
    let made = target.and_then(|target| target.made);
    if let Some((path, spec)) = &made {
        write_bytes(path, spec.as_bytes())?;
    }
    if args.json {
        say!("{report}");
        return Ok(ExitCode::SUCCESS);
    }
    say!("{}: {} tensors", args.out.display(), names.len());
    if let Some((path, _)) = made {
        say!("{}: their graph", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Opens weights with our names, and says on stderr what was done to them.
pub(crate) fn opened(file: &Path, map: Option<&str>) -> Outcome<Weights> {
    let weights = Weights::open_as_ours(file, map)?;
    weights.notes().iter().for_each(|text| note!("{text}"));
    note!("names: those of map `{}`", weights.map());
    Ok(weights)
}

/// Names what of a checkpoint has no place in a graph, and is no weight.
pub(crate) fn say_gates(gates: &[String]) {
    if !gates.is_empty() {
        note!("states of gates, which the graph has not, left out: {}", gates.join(", "));
    }
}

/// Says on stderr what of a graph is otherwise than the source of weights that are put into it says, of the towers that they are of.
#[cfg(feature = "compile")]
pub(crate) fn warn(from: &SpecSources, weights: &Weights, towers: [bool; 2]) -> Outcome<()> {
    let known = Known::of(weights);
    let differences = crate::graphs::Graph::of_sources(from)?.differences(weights, &known, towers);
    known.warnings.iter().chain(&differences).for_each(|warning| note!("warning: {warning}"));
    Ok(())
}

#[cfg(not(feature = "compile"))]
pub(crate) fn warn(_: &SpecSources, _: &Weights, _: [bool; 2]) -> Outcome<()> {
    Ok(())
}

/// The graph asked for.
#[cfg(feature = "compile")]
fn target(args: &Args, weights: &Weights, known: &Known) -> Outcome<Option<Target>> {
    use crate::graphs::Graph;
    use alip_compiler::resolve::Options;
    use alip_runtime::weights::{GUESSED, Guess, Said};
    let Some(name) = args.graph.as_deref() else { return Ok(None) };
    if Path::new(name).is_dir() {
        return planned(name).map(Some);
    }
    let mut options = Options { set: args.set.clone(), ..Options::default() };
    if name != "auto" {
        let graph = Graph::of(name, &options)?;
        let differences = graph.differences(weights, known, [true; 2]);
        differences.iter().for_each(|difference| note!("warning: {difference}"));
        return Ok(Some(Target { name: graph.name().into(), wanted: graph.wanted(), made: None }));
    }
    let stem = args.out.file_stem().map_or_else(|| "imported".into(), |stem| stem.to_string_lossy().into_owned());
    let said = Said { heads: args.heads, act: args.act.clone() };
    let source = args.file.file_name().map_or_else(|| "weights".into(), |name| name.to_string_lossy().into_owned());
    let guess = Guess::new(&stem, &source, &weights.shapes()?, known, &said);
    let guess = guess
        .map_err(|why| Failure::message(format!("{}: the graph cannot be guessed: {why}", args.file.display())))?;
    guess.assumed.iter().for_each(|assumed| note!("warning: {assumed}"));
    let path = args.out.with_extension("ron");
    let is_own = |text: String| text.starts_with(GUESSED);
    if path.exists() && !std::fs::read_to_string(&path).is_ok_and(is_own) {
        let why = "is there, and not written by an import; name OUT otherwise, since its graph goes beside it";
        return Err(Failure::message(format!("{} {why}", path.display())));
    }
    let spec = formatted(&guess.spec)?;
    options.files = [(path.display().to_string(), spec.clone())].into();
    let graph = Graph::of(&path.display().to_string(), &options)?;
    Ok(Some(Target { name: graph.name().into(), wanted: graph.wanted(), made: Some((path, spec)) }))
}

#[cfg(not(feature = "compile"))]
fn target(args: &Args, _: &Weights, _: &Known) -> Outcome<Option<Target>> {
    let Some(name) = args.graph.as_deref() else { return Ok(None) };
    if Path::new(name).is_dir() {
        return planned(name).map(Some);
    }
    let why = "no such directory, and this program was built without the compiler (feature `compile`)";
    Err(Failure::message(format!("--graph {name}: {why}; give a directory that `alipc compile -o` wrote")))
}

/// The graph of a compiled plan.
fn planned(folder: &str) -> Outcome<Target> {
    let plan = read_plan(Path::new(folder))?.1;
    Ok(Target { name: plan.name.clone(), wanted: Wanted::of(&plan), made: None })
}

/// A spec in house style.
#[cfg(feature = "compile")]
fn formatted(spec: &str) -> Outcome<String> {
    use crate::model::rendered;
    use alip_compiler::diag::SourceMap;
    let mut sources = SourceMap::new();
    let source = sources.add("guessed.ron", spec);
    alip_compiler::spec::fmt::format(&sources, source).map_err(|errors| Failure::rendered(rendered(&errors, &sources)))
}
