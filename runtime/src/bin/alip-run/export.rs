//! `alip-run export`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use alip_plan::StateKind;
use alip_plan::pipeline::{CLIP_MEAN, CLIP_STD, Normalization};
use alip_runtime::data::Tokenizer;
use alip_runtime::eval::{Programs, normalization, vocabulary};
use alip_runtime::file::write_bytes;
use alip_runtime::run::RunDir;
use alip_runtime::weights::{Clip, Described, Format, Shapes, Weights, save_as};

use crate::import::{Type, opened};
use crate::model::plan_of;
use crate::{Failure, Outcome};

/// Write a model's weights for others
///
/// `safetensors` is one file with our names, for any model. `onnx` is a folder with `encode_image.onnx` and `encode_text.onnx` (opset 18,
/// f32, batches of any size), for any model with these programs. `openai` is a folder that `open_clip.create_model('local-dir:OUT')`
/// loads, or its file of weights by `pretrained`; `huggingface` one for `transformers.CLIPModel.from_pretrained(OUT)`: both for what
/// they can hold, a CLIP, of which gates, averages and the state of the optimiser are no part.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  alip-run export runs/alip_b32 --to huggingface -o alip_b32_hf
  alip-run export runs/alip_b32 --to onnx -o alip_b32_onnx
  alip-run export runs/alip_b32 --average --to openai -o alip_b32_open_clip
  alip-run export clip.safetensors --graph clip.ron --to openai --dtype f16 -o clip_open_clip")]
pub(crate) struct Args {
    /// A run's directory, or a file of weights
    #[arg(value_name = "RUN|FILE")]
    from: PathBuf,
    /// Whose names, layouts and files
    #[arg(long, value_enum)]
    to: To,
    /// The averages of the weights that the run keeps (`ema`) in place of the weights
    #[arg(long)]
    average: bool,
    /// A checkpoint of the run other than its newest
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
    /// Of a file of weights: the graph that they are of, which says heads and activations
    #[arg(long, value_name = "SPEC")]
    graph: Option<String>,
    /// Heads of the towers, where no graph says them
    #[arg(long, value_name = "IMAGES,TEXTS", value_parser = crate::import::heads)]
    heads: Option<(u64, u64)>,
    /// Activation of both towers, where no graph says it
    #[arg(long, value_name = "NAME")]
    act: Option<String>,
    /// Type of floats
    #[arg(long, value_enum, default_value_t = Type::Same)]
    dtype: Type,
    /// The file (safetensors) or folder to write
    #[arg(short, long, value_name = "PATH")]
    out: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum To {
    Safetensors,
    Openai,
    Huggingface,
    /// ONNX, for runtimes of any kind
    Onnx,
}

/// Weights with what is known of them.
struct Source {
    weights: Weights,
    /// Of a run: what is in its checkpoints beside parameters.
    states: BTreeSet<String>,
    /// Those of them that belong to modules without parameters, such as gates.
    gates: BTreeSet<String>,
    /// Those of them that belong to modules with parameters: running statistics.
    statistics: BTreeSet<String>,
    /// How its images are normalised, where that is known.
    normalization: Option<Normalization>,
    /// The tokenizer of its texts, where it is known.
    tokenizer: Option<Tokenizer>,
    /// What its plan was compiled from, where that is known.
    #[cfg(feature = "compile")]
    specs: Option<alip_runtime::run::SpecSources>,
}

pub(crate) fn run(args: &Args) -> Outcome {
    let mut source = source(args)?;
    match args.to {
        To::Safetensors => own(args, &mut source)?,
        To::Openai => foreign(args, &mut source, Format::OpenClip)?,
        To::Huggingface => foreign(args, &mut source, Format::HuggingFace)?,
        To::Onnx => onnx(args, &mut source)?,
    }
    say!("{}", args.out.display());
    Ok(ExitCode::SUCCESS)
}

fn source(args: &Args) -> Outcome<Source> {
    if !RunDir::holds_run(&args.from) {
        let weights = opened(&args.from, None)?;
        if weights.is_checkpoint() || args.checkpoint.is_some() {
            let why = "is no run; give the run's directory, and a checkpoint other than its newest with --checkpoint";
            return Err(Failure::message(format!("{} {why}", args.from.display())));
        }
        let (states, gates, statistics) = Default::default();
        let mut source = Source {
            weights,
            states,
            gates,
            statistics,
            normalization: None,
            tokenizer: None,
            #[cfg(feature = "compile")]
            specs: None,
        };
        of_file(args, &mut source)?;
        return Ok(source);
    }
    let run = RunDir::open(&args.from)?;
    let none = || Failure::message(format!("{} holds no checkpoint yet; train it first", args.from.display()));
    let newest = run.checkpoints().pop().map(|(_, path)| path);
    let checkpoint = args.checkpoint.clone().or(newest).ok_or_else(none)?;
    let plan = plan_of(&run)?;
    let module = |path: &str| path.rsplit_once('.').map(|(module, _)| module.to_string());
    let of_kind = |kind| plan.state.iter().filter(move |state| state.kind == kind).map(|state| state.path.clone());
    let with_weights: BTreeSet<Option<String>> = of_kind(StateKind::Param).map(|path| module(&path)).collect();
    let (statistics, gates) = of_kind(StateKind::Buffer).partition(|path| with_weights.contains(&module(path)));
    let states = plan.state.iter().filter(|state| state.kind != StateKind::Param);
    let states = states.map(|state| state.path.clone()).collect();
    note!("weights of {}", checkpoint.display());
    let weights = Weights::open(&checkpoint)?;
    let (programs, pipeline) = (Programs::of(&plan).ok(), run.pipeline());
    let known = pipeline.as_ref().zip(programs.as_ref());
    let vocab = known.and_then(|(pipeline, programs)| vocabulary(pipeline, &programs.text_input));
    let tokenizer = match &vocab {
        Some(vocab) => run
            .vocabularies()?
            .tokenizer(vocab)?
            .map_or_else(|| Tokenizer::without_source(vocab), |own| Ok(Some(own)))?,
        None => None,
    };
    let source = Source {
        weights,
        states,
        gates,
        statistics,
        normalization: known.and_then(|(pipeline, programs)| normalization(pipeline, &programs.image_input)),
        tokenizer,
        #[cfg(feature = "compile")]
        specs: run.sources()?,
    };
    #[cfg(feature = "compile")]
    if args.graph.is_some() && source.specs.is_some() {
        let why = "is a run, which was compiled of a spec of its own; leave --graph out";
        return Err(Failure::message(format!("{} {why}", args.from.display())));
    }
    let mut source = source;
    of_file(args, &mut source)?;
    Ok(source)
}

/// What the graph of --graph says of weights that have none of their own, and which must be those of this graph.
#[cfg(feature = "compile")]
fn of_file(args: &Args, source: &mut Source) -> Outcome<()> {
    use alip_runtime::weights::{Fit, FitOptions};
    let Some(spec) = &args.graph else { return Ok(()) };
    let graph = crate::graphs::Graph::of(spec, &Default::default())?;
    Fit::new(&source.weights, graph.name(), &graph.wanted(), &FitOptions::default())?;
    source.normalization = graph.normalization().or(source.normalization.take());
    if let Some(vocab) = graph.vocabulary() {
        // Of counted words nobody knows here which they are.
        source.tokenizer = Tokenizer::without_source(&vocab)?.or(source.tokenizer.take());
    }
    Ok(())
}

#[cfg(not(feature = "compile"))]
fn of_file(_: &Args, _: &mut Source) -> Outcome<()> {
    Ok(())
}

/// One file with our names.
fn own(args: &Args, source: &mut Source) -> Outcome<()> {
    let is_weight = |name: &&str| !source.states.contains(*name) || source.statistics.contains(*name);
    let names: Vec<String> = source.weights.names().filter(is_weight).map(str::to_string).collect();
    let stored = |name: &String| (name.clone(), source.weights.stored(name, args.average));
    let pairs: Vec<(String, String)> = names.iter().map(stored).collect();
    if args.average && pairs.iter().all(|(name, stored)| name == stored) {
        return Err(Failure::message(format!("{} keeps no averages of weights (`ema`)", args.from.display())));
    }
    say_left_out(&source.gates, source.weights.names().filter(|name| !is_weight(name)));
    let texts = [(
        "alip.import",
        serde_json::json!({ "exported": args.from.file_name().map(|name| name.to_string_lossy()) }).to_string(),
    )];
    Ok(save_as(&mut source.weights, &pairs, args.dtype.floats(), &texts, &args.out)?)
}

/// Says what is no part of what is written.
fn say_left_out<'a>(gates: &BTreeSet<String>, names: impl Iterator<Item = &'a str>) {
    let (named, counted): (Vec<&str>, Vec<&str>) = names.partition(|name| gates.contains(*name));
    if !counted.is_empty() {
        note!("left out: {} tensors of the optimiser, the step and averages", counted.len());
    }
    if !named.is_empty() {
        note!("left out: {}", named.join(", "));
    }
}

/// A folder for the programs of others.
fn foreign(args: &Args, source: &mut Source, format: Format) -> Outcome<()> {
    let clip = Clip::find(&source.weights, args.average, &source.states)?;
    let described = described(args, source, &clip, format)?;
    say_left_out(&source.gates, clip.left_out().iter().map(String::as_str));
    clip.write(&mut source.weights, format, &described, args.dtype.floats(), &args.out)?;
    if format == Format::HuggingFace {
        let Some(tokenizer) = &source.tokenizer else {
            note!(
                "nothing says what its texts are tokenized with, and no tokenizer is written; CLIP's own words have that of \
                   openai/clip-vit-base-patch32"
            );
            return Ok(());
        };
        tokenizer.warning().iter().for_each(|warning| note!("warning: {warning}"));
        for (name, text) in tokenizer.files(clip.shapes().context as usize) {
            write_bytes(&args.out.join(name), text.as_bytes())?;
        }
    }
    Ok(())
}

/// A folder with a file for each of the programs that embed.
#[cfg(feature = "compile")]
fn onnx(args: &Args, source: &mut Source) -> Outcome<()> {
    use alip_runtime::run::SpecSources;
    let given = args.graph.as_ref().map(|spec| SpecSources { spec: spec.clone(), ..SpecSources::default() });
    let none = || {
        let why = "the file holds weights alone, and nothing says what is computed with them; give --graph SPEC";
        Failure::message(format!("{}: {why}", args.from.display()))
    };
    let specs = given.or_else(|| source.specs.clone()).ok_or_else(none)?;
    if args.dtype != Type::Same && args.dtype != Type::F32 {
        return Err(Failure::message("--to onnx writes f32; leave --dtype out"));
    }
    crate::onnx::write(&specs, &mut source.weights, args.average, &args.out)
}

#[cfg(not(feature = "compile"))]
fn onnx(_: &Args, _: &mut Source) -> Outcome<()> {
    Err(Failure::message("this program was built without the compiler, which knows what is computed with the weights"))
}

/// What neither names nor shapes say: of the graph, or of the command line.
fn described(args: &Args, source: &Source, clip: &Clip, format: Format) -> Outcome<Described> {
    let shapes = clip.shapes();
    let widths = [shapes.vision.attention(), shapes.text.width];
    let Normalization { mean, std } = source.normalization.unwrap_or_else(|| {
        note!("nothing says what images are normalised with: CLIP's numbers are written");
        Normalization { mean: CLIP_MEAN, std: CLIP_STD }
    });
    let end = source.tokenizer.as_ref().and_then(Tokenizer::end).map(u64::from).filter(|end| *end < shapes.vocabulary);
    if end.is_none() && format == Format::HuggingFace {
        let last = shapes.vocabulary.saturating_sub(1);
        note!("nothing says which id ends a text: {last} is written, the last of the table of tokens");
    }
    let is_resnet = matches!(shapes.vision, alip_runtime::weights::Vision::Resnet { .. });
    if let Some((heads, acts)) = of_graph(args, source, (shapes, widths), format)? {
        if args.heads.is_some() || args.act.is_some() {
            return Err(Failure::message("the graph says heads and activations; leave --heads and --act out"));
        }
        return Ok(Described { heads, acts, mean, std, end });
    }
    let Some(act) = &args.act else {
        let why =
            "nothing says what the activation of its towers is; give --graph SPEC, or --act gelu or --act quick_gelu";
        return Err(Failure::message(format!("{}: {why}", args.from.display())));
    };
    let heads = match args.heads {
        Some((vision, text)) => [vision, text],
        None => {
            let heads = widths.map(|width| width / HEAD);
            note!(
                "warning: {} and {} heads are an assumption, each {HEAD} wide: weights do not tell (--heads IMAGES,TEXTS)",
                heads[0],
                heads[1]
            );
            heads
        }
    };
    let divides = |(width, heads): (&u64, &u64)| *heads > 0 && width.is_multiple_of(*heads);
    if !widths.iter().zip(&heads).all(divides) {
        let why =
            format!("{heads:?} heads do not divide the widths {widths:?} of its towers; give --heads IMAGES,TEXTS");
        return Err(Failure::message(format!("{}: {why}", args.from.display())));
    }
    let vision = if is_resnet { None } else { Some(act.clone()) };
    Ok(Described { heads, acts: [vision, Some(act.clone())], mean, std, end })
}

/// Width of a head in nearly all models.
const HEAD: u64 = 64;

/// Heads and activations of the towers.
type OfGraph = ([u64; 2], [Option<String>; 2]);

#[cfg(feature = "compile")]
fn of_graph(
    args: &Args,
    source: &Source,
    (shapes, widths): (&Shapes, [u64; 2]),
    format: Format,
) -> Outcome<Option<OfGraph>> {
    use crate::graphs::Graph;
    use alip_compiler::resolve::Options;
    use alip_runtime::weights::NameMap;
    let graph = match (&args.graph, &source.specs) {
        (Some(spec), _) => Graph::of(spec, &Options::default())?,
        (None, Some(from)) => Graph::of_sources(from)?,
        (None, None) => return Ok(None),
    };
    let map = NameMap::named(format.map())?;
    let fail = |why: String| Failure::message(format!("graph `{}`: {why}", graph.name()));
    let mut found: OfGraph = ([0; 2], [None, None]);
    for (tower, (program, of)) in [("encode_image", "images"), ("encode_text", "texts")].into_iter().enumerate() {
        let modules = graph.modules(program);
        if modules.is_empty() {
            return Err(fail(format!("it has no program `{program}`, which shows what its tower of {of} is")));
        }
        if let Some(module) = map.lacks(&modules) {
            return Err(fail(format!("its tower of {of} applies `{module}`, which is not in {}'s", map.name())));
        }
        let heads = graph.heads(program, widths[tower]).filter(|heads| *heads > 0);
        found.0[tower] = heads.ok_or_else(|| fail(format!("its tower of {of} has no attention as CLIP's")))?;
        let acts: Vec<String> = graph.activations(program).into_iter().filter(|act| act != "sigmoid").collect();
        if acts.len() > 1 {
            return Err(fail(format!("its tower of {of} has several activations: {}", acts.join(", "))));
        }
        found.1[tower] = acts.into_iter().next();
    }
    computes_no_more(&graph, shapes, &found).map_err(fail)?;
    Ok(Some(found))
}

/// Whether a graph computes what a CLIP of these sizes does: weights and modules do not show what is done between them.
#[cfg(feature = "compile")]
fn computes_no_more(graph: &crate::graphs::Graph, shapes: &Shapes, (heads, acts): &OfGraph) -> Result<(), String> {
    use alip_compiler::resolve::Options;
    use alip_runtime::weights::{Guess, Known, Said, Tower};
    let tower = |at: usize| Tower { heads: Some(heads[at]), act: acts[at].clone() };
    let known = Known { vision: tower(0), text: tower(1), ..Known::default() };
    let guess = match Guess::new("clip", "export", shapes, &known, &Said::default()) {
        Ok(guess) => guess,
        Err(why) => {
            note!(
                "warning: what lies between the modules was not compared with CLIP's, since ours has no such sizes: {why}"
            );
            return Ok(());
        }
    };
    let name = "clip_as_exported.ron";
    let options = Options {
        batch: graph.batch("encode_image"),
        files: [(name.to_string(), guess.spec)].into(),
        // A graph that happens to be called as ours is no measure.
        embedded_only: true,
        ..Options::default()
    };
    let clip = crate::graphs::Graph::of(name, &options).map_err(|failure| failure.to_string())?;
    for (program, of) in [("encode_image", "images"), ("encode_text", "texts")] {
        if let Some(what) = graph.beyond(&clip, program) {
            return Err(format!("its tower of {of} computes {what}, which CLIP's does not"));
        }
    }
    Ok(())
}

#[cfg(not(feature = "compile"))]
fn of_graph(args: &Args, _: &Source, _: (&Shapes, [u64; 2]), _: Format) -> Outcome<Option<OfGraph>> {
    let why = "this program was built without the compiler (feature `compile`); give --act and --heads";
    args.graph.as_ref().map_or(Ok(None), |graph| Err(Failure::message(format!("--graph {graph}: {why}"))))
}
