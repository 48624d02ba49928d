//! `alip-run export`: what comes back when it is imported again, and what a format cannot hold.

#![cfg(feature = "compile")]

mod common;

use std::fs;
use std::path::Path;

use alip_runtime::weights::{RawTensor, Weights};
use common::{fine, refused, specs};

/// A CLIP with gates and averages, whose towers have the names of OpenAI's.
const CLIP: &str = r#"Graph(
    name: "clip",
    base: "steady",
    use: ["activation"],
    parts: {
        "visual": (set: { "act": "quick_gelu" }),
        "text": (module: "text_transformer(vocab: 512, context: T, width: 16, layers: 1, heads: 4, out: D, act: quick_gelu)", path: ""),
    },
    train: (ema: (decay: 0.9)),
)"#;

/// A folder with a short run of `clip`, `run`, and its weights, `clip.safetensors`.
fn folder() -> tempfile::TempDir {
    let folder = specs();
    let at = folder.path();
    fs::write(at.join("clip.ron"), CLIP).unwrap();
    fine(at, &["train", "clip", "--steps", "3", "--out", "run", "--no-eval"]);
    fine(at, &["export", "run", "--to", "safetensors", "-o", "clip.safetensors"]);
    folder
}

fn tensors(path: &Path) -> Vec<(String, RawTensor)> {
    let mut file = Weights::open(path).unwrap_or_else(|error| panic!("{error}"));
    let names: Vec<String> = file.names().map(str::to_string).collect();
    names.into_iter().map(|name| (name.clone(), file.read(&name).unwrap())).collect()
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// To a format and back, the bits are the same, and the configurations say the sizes of the graph.
#[test]
fn what_is_exported_is_imported_again() {
    let folder = folder();
    let at = folder.path();
    for (to, map) in [("openai", "openai"), ("huggingface", "huggingface_clip")] {
        let (_, said) = fine(at, &["export", "run", "--to", to, "-o", to]);
        assert!(
            said.contains("left out: ") && said.contains(" tensors of the optimiser, the step and averages"),
            "{said}"
        );
        assert!(said.contains("left out: dcg_caption.ema, dcg_raw.ema, lcg.ema"), "{said}");
        let (_, said) = fine(at, &["import", to, "--graph", "clip.ron", "--dtype", "same", "-o", "again.safetensors"]);
        assert!(said.contains(&format!("names: those of map `{map}`")) && !said.contains("warning"), "{said}");
        assert!(tensors(&at.join("again.safetensors")) == tensors(&at.join("clip.safetensors")), "{to}");
        // Heads and activation are read of the configuration: nothing is assumed. A guess has no pipeline that normalises as this.
        let (_, said) = fine(at, &["import", to, "--graph", "auto", "-o", "guess.safetensors"]);
        assert!(said.contains("says that images are normalised with mean [0.5, 0.5, 0.5]"), "{said}");
        assert_eq!(said.matches("warning").count(), 1, "{said}");
        let guess = fs::read_to_string(at.join("guess.ron")).unwrap();
        let vit = "vit(image: 16, patch: 8, width: 16, layers: 1, heads: 2, out: D, act: quick_gelu)";
        assert!(guess.contains(vit) && guess.contains("heads: 4"), "{guess}");
    }
    let config = json(&at.join("huggingface/config.json"));
    let of = |tower: &str, key: &str| config[tower][key].clone();
    assert_eq!(
        (of("text_config", "num_attention_heads"), of("vision_config", "num_attention_heads")),
        (4.into(), 2.into())
    );
    assert_eq!((of("text_config", "eos_token_id"), of("text_config", "hidden_act")), (511.into(), "quick_gelu".into()));
    // As the run's own pipeline normalises.
    let preprocessor = json(&at.join("huggingface/preprocessor_config.json"));
    assert_eq!(preprocessor["image_mean"], serde_json::json!([0.5, 0.5, 0.5]));
    assert_eq!(preprocessor["crop_size"]["height"], 16);
    let config = json(&at.join("openai/open_clip_config.json"));
    assert_eq!(config["model_cfg"]["vision_cfg"]["head_width"], 8);
    assert_eq!(config["model_cfg"]["quick_gelu"], true);
    assert_eq!(config["preprocess_cfg"]["std"], serde_json::json!([0.25, 0.25, 0.25]));
}

#[test]
fn averages_and_other_checkpoints() {
    let folder = folder();
    let at = folder.path();
    let find = |file: &str, name: &str| {
        let all = tensors(&at.join(file));
        all.into_iter().find(|(own, _)| own == name).unwrap_or_else(|| panic!("{file}: {name}")).1
    };
    let checkpoint = "run/checkpoints/step-00000003.safetensors";
    fine(at, &["export", "run", "--average", "--to", "openai", "-o", "average"]);
    let (average, name) = ("average/open_clip_model.safetensors", "visual.conv1.weight");
    assert!(find(average, name) == find(checkpoint, &format!("average.{name}")));
    assert!(find(average, name) != find(checkpoint, name));
    fine(at, &["export", "run", "--average", "--to", "safetensors", "-o", "average.safetensors"]);
    assert!(find("average.safetensors", name) == find(average, name));
    fine(at, &["export", "run", "--checkpoint", checkpoint, "--to", "openai", "--dtype", "f16", "-o", "half"]);
    let half = find("half/open_clip_model.safetensors", name);
    assert_eq!((half.bytes.len(), format!("{:?}", half.dtype)), (3072 * 2, "F16".into()));
    let why = "is no run; give the run's directory, and a checkpoint other than its newest with --checkpoint";
    refused(at, &["export", checkpoint, "--to", "openai", "-o", "x"], why);
}

/// Files of weights say neither heads nor activations.
#[test]
fn of_a_file_of_weights() {
    let folder = folder();
    let at = folder.path();
    let export = ["export", "clip.safetensors", "--to", "openai", "-o", "out"];
    let unsaid = "clip.safetensors: nothing says what the activation of its towers is; give --graph SPEC, or --act gelu or --act quick_gelu";
    refused(at, &export, unsaid);
    let with = |more: &[&'static str]| [&export[..], more].concat();
    refused(
        at,
        &with(&["--act", "gelu"]),
        "[0, 0] heads do not divide the widths [16, 16] of its towers; give --heads",
    );
    refused(
        at,
        &with(&["--act", "silu", "--heads", "2,4"]),
        "open_clip has gelu or quick_gelu in both towers, and this model silu",
    );
    refused(at, &with(&["--average", "--graph", "clip.ron"]), "it holds no averages of weights; the spec has no `ema`");
    refused(
        at,
        &with(&["--act", "gelu", "--graph", "clip.ron"]),
        "the graph says heads and activations; leave --heads and --act out",
    );
    refused(at, &with(&["--graph", "alip_tiny"]), "the weights do not fit graph `alip_tiny`:\n  ");
    let why = "run is a run, which was compiled of a spec of its own; leave --graph out";
    refused(at, &["export", "run", "--graph", "clip.ron", "--to", "openai", "-o", "out"], why);
    assert!(!at.join("out").exists());
    fine(at, &with(&["--graph", "clip.ron"]));
    let of_graph = json(&at.join("out/open_clip_config.json"));
    let (_, said) = fine(at, &with(&["--act", "quick_gelu", "--heads", "2,4"]));
    let said_here = json(&at.join("out/open_clip_config.json"));
    assert_eq!(said_here["model_cfg"], of_graph["model_cfg"]);
    // Of the graph's pipeline, and CLIP's where there is none.
    assert_eq!(of_graph["preprocess_cfg"]["mean"], serde_json::json!([0.5, 0.5, 0.5]));
    assert_eq!(said_here["preprocess_cfg"]["mean"][0], 0.48145466);
    assert!(said.contains("nothing says what images are normalised with: CLIP's numbers are written"), "{said}");
}

/// What a format cannot hold is refused, and nothing is written.
#[test]
fn what_is_no_clip_is_refused() {
    let folder = folder();
    let at = folder.path();
    let trained = |name: &str, spec: &str| {
        fs::write(at.join(format!("{name}.ron")), spec).unwrap();
        fine(at, &["train", name, "--steps", "1", "--out", name, "--no-eval"]);
    };
    let check = |name: &str, to: &str, said: &str| {
        refused(at, &["export", name, "--to", to, "-o", "out"], said);
        assert!(!at.join("out").exists());
    };
    trained("silu", r#"Graph(name: "silu", base: "clip", parts: { "visual": (set: { "act": "silu" }) })"#);
    check("silu", "openai", "error: graph `silu`: its tower of images applies `silu`, which is not in openai's");
    let prefixed = r#"Graph(name: "prefixed", base: "steady", parts: {
        "text": (module: "text_transformer(vocab: 512, context: T, width: 16, layers: 1, heads: 4, out: D)", path: "text") })"#;
    trained("prefixed", prefixed);
    check(
        "prefixed",
        "openai",
        "the weights are no CLIP's, whose sizes could be found: there is no `token_embedding.weight`",
    );
    fine(at, &["export", "prefixed", "--to", "safetensors", "-o", "prefixed.safetensors"]);
    refused(
        at,
        &["export", "prefixed", "--average", "--to", "safetensors", "-o", "out"],
        "prefixed keeps no averages of weights (`ema`)",
    );
    let scaled = r#"Graph(
        name: "scaled", base: "clip", params: { "extra": (shape: "[D]", init: "ones") },
        body: ["x = normalize(visual(image) * extra)"])"#;
    trained("scaled", scaled);
    check("scaled", "huggingface", "no CLIP as others have them: `extra` is no weight of one");
    // Arithmetic outside of all modules, of which weights say nothing.
    let shifted = r#"Graph(name: "shifted", base: "clip", body: ["x = normalize(visual(image) + 0.5)"])"#;
    trained("shifted", shifted);
    let why = "graph `shifted`: its tower of images computes `";
    check("shifted", "openai", why);
    check("shifted", "huggingface", "outside of all modules, which CLIP's does not");
    let resnet = r#"Graph(name: "resnet", base: "clip", use: ["vision/resnet"], inputs: { "image": (dtype: F32, shape: "[B, 3, 32, 32]") },
        parts: { "visual": "modified_resnet(image: 32, width: 4, blocks: [1, 1, 1, 1], heads: 2, out: D)" }, data: "big")"#;
    let data = fs::read_to_string(at.join("small_data.ron")).unwrap();
    let data = data.replace("size: 16", "size: 32").replace("\"small_data\"", "\"big\"");
    fs::write(at.join("big.ron"), data).unwrap();
    trained("resnet", resnet);
    check("resnet", "huggingface", "its tower of images applies `attention_pool`, which is not in huggingface_clip's");
    fine(at, &["export", "resnet", "--to", "openai", "-o", "rn"]);
    let config = json(&at.join("rn/open_clip_config.json"));
    assert_eq!(config["model_cfg"]["vision_cfg"]["layers"], serde_json::json!([1, 1, 1, 1]));
    assert_eq!(config["model_cfg"]["vision_cfg"]["head_width"], 64);
    let all = tensors(&at.join("rn/open_clip_model.safetensors"));
    assert!(all.iter().any(|(name, _)| name == "visual.layer1.0.bn1.running_var"));
    assert!(all.iter().any(|(name, _)| name == "visual.bn1.num_batches_tracked"));
}
