//! `alip-run import`: what it writes, and what it says where something does not fit.

#![cfg(feature = "compile")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use alip_compiler::diag::SourceMap;
use alip_runtime::weights::Weights;

/// Runs `alip-run import` in a folder; exit status, stdout, stderr.
fn import(folder: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_alip-run")).current_dir(folder).arg("import").args(args).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/weights").join(file)
}

fn graph(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/weights/{name}.ron")).display().to_string()
}

/// The command goes well and says this of what it did.
fn done(folder: &Path, args: &[&str], said: &[&str]) {
    let (status, out, err) = import(folder, args);
    assert_eq!(status, Some(0), "{args:?}\n{out}{err}");
    for part in said {
        assert!(out.contains(part) || err.contains(part), "{args:?}: no {part:?} in\n{out}{err}");
    }
}

/// The command fails, says all of this, in this order, and writes nothing.
fn fails(args: &[&str], said: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let (status, out, err) = import(folder.path(), args);
    assert!(status != Some(0) && !err.contains("panicked"), "{args:?}\n{out}{err}");
    let mut rest = err.as_str();
    for part in said {
        let Some(at) = rest.find(part) else { panic!("{args:?}: no {part:?} in\n{err}") };
        rest = &rest[at + part.len()..];
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{args:?}");
}

/// Tensors of a file, to the bit.
fn tensors(path: &Path) -> Vec<(String, alip_runtime::weights::RawTensor)> {
    let mut weights = Weights::open(path).unwrap_or_else(|error| panic!("{error}"));
    let names: Vec<String> = weights.names().map(str::to_string).collect();
    names.into_iter().map(|name| (name.clone(), weights.read(&name).unwrap())).collect()
}

#[test]
fn types_that_stay_are_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let check = |file: &str, said: &[&str]| {
        let path = golden(file);
        done(folder.path(), &[path.to_str().unwrap(), "--dtype", "same", "-o", "out.safetensors"], said);
        assert!(tensors(&folder.path().join("out.safetensors")) == tensors(&path), "{file}");
    };
    check("open_clip_vit.safetensors", &["out.safetensors: 62 tensors"]);
    check(
        "open_clip_vit.train_checkpoint.pt",
        &["those under `state_dict`; left out: `epoch`, `name`, `optimizer`", "`module.`"],
    );
    check("open_clip_vit.alip_style.pt", &["`module.` before all names was taken away"]);
    check("open_clip_vit.legacy_not_zip.pt", &[]);
    check("open_clip_vit.f16.pt", &[]);
    check("open_clip_vit.bf16.pt", &[]);
    check("open_clip_vit.shared_storage.pt", &[]);
    check("openai_vit_quick.torchscript.pt", &[]);
    check("open_clip_rn.pt", &["out.safetensors: 153 tensors"]);
}

/// Other layouts become ours; what they hold is not rounded.
#[test]
fn hugging_face_becomes_ours() {
    let folder = tempfile::tempdir().unwrap();
    let path = golden("hf_clip");
    done(
        folder.path(),
        &[path.to_str().unwrap(), "--dtype", "same", "-o", "out.safetensors"],
        &["map `huggingface_clip`"],
    );
    let (ours, theirs) = (tensors(&folder.path().join("out.safetensors")), tensors(&path));
    let find = |tensors: &[(String, alip_runtime::weights::RawTensor)], name: &str| {
        tensors.iter().find(|(own, _)| own == name).unwrap_or_else(|| panic!("{name}")).1.clone()
    };
    let joined = find(&ours, "transformer.resblocks.1.attn.in_proj_weight");
    assert_eq!(joined.shape, [72, 24]);
    let part = |name: &str| find(&theirs, &format!("text_model.encoder.layers.1.self_attn.{name}_proj.weight")).bytes;
    assert_eq!(joined.bytes, [part("q"), part("k"), part("v")].concat());
    let (own, other) = (find(&ours, "text_projection"), find(&theirs, "text_projection.weight"));
    assert_eq!((own.shape.as_slice(), other.shape.as_slice()), (&[24, 32][..], &[32, 24][..]));
    assert_eq!(
        own.bytes[4..8],
        other.bytes[24 * 4..24 * 4 + 4],
        "row 0, column 1 of ours is row 1, column 0 of theirs"
    );
}

/// The graph that is written beside the weights compiles, and they fit it.
#[test]
fn graphs_are_guessed() {
    let folder = tempfile::tempdir().unwrap();
    let check = |file: &str, more: &[&str], said: &[&str], spec: &[&str]| {
        let path = golden(file);
        let args = [&[path.to_str().unwrap(), "--graph", "auto", "-o", "out.safetensors"], more].concat();
        done(folder.path(), &args, said);
        let written = folder.path().join("out.ron");
        let text = fs::read_to_string(&written).unwrap();
        for part in spec {
            assert!(text.contains(part), "{file}: no {part:?} in\n{text}");
        }
        let mut sources = SourceMap::new();
        let checked = alip_compiler::check(&mut sources, written.to_str().unwrap(), &Default::default());
        assert!(checked.is_ok(), "{file}: {}", checked.unwrap_err().render(&sources, false));
        let written = written.to_str().unwrap().to_string();
        done(folder.path(), &["out.safetensors", "--graph", &written, "-o", "again.safetensors"], &[]);
    };
    let vit = "vit(image: 32, patch: 8, width: 32, layers: 2, heads: 2, out: D, act: ";
    let text = "text_transformer(vocab: 512, context: T, width: 24, layers: 2, heads: 3, out: D, act: ";
    let quick = |tower: &str| format!("{tower}quick_gelu)");
    check("hf_clip", &[], &[], &[&quick(vit), &quick(text), "\"T\": 16, \"D\": 32"]);
    check("openai_vit_quick.torchscript.pt", &["--heads", "2,3"], &[], &[&quick(vit), &quick(text)]);
    let unsaid =
        "warning: the activation is taken to be `gelu`, since nothing says it; OpenAI's own weights need `quick_gelu`";
    check(
        "open_clip_vit.safetensors",
        &["--heads", "2,3"],
        &[unsaid],
        &[&format!("{vit}gelu)"), &format!("{text}gelu)")],
    );
    let resnet = "modified_resnet(image: 32, width: 4, blocks: [1, 1, 1, 1], heads: 2, out: D)";
    check("open_clip_rn.pt", &["--heads", "2,3", "--act", "quick_gelu"], &[], &[resnet, &quick(text)]);
}

#[test]
fn a_graph_of_somebody_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("out.ron"), "Graph(name: \"mine\")").unwrap();
    let path = golden("hf_clip");
    let (status, _, err) = import(folder.path(), &[path.to_str().unwrap(), "--graph", "auto", "-o", "out.safetensors"]);
    assert_eq!(status, Some(1));
    let said =
        "error: out.ron is there, and not written by an import; name OUT otherwise, since its graph goes beside it";
    assert!(err.contains(said), "{err}");
}

#[test]
fn what_does_not_fit_is_listed() {
    let (vit, quick) = (golden("open_clip_vit.safetensors"), golden("openai_vit_quick.torchscript.pt"));
    let (vit, quick) = (vit.to_str().unwrap(), quick.to_str().unwrap());
    let [own, resnet] = ["open_clip_vit", "open_clip_rn"].map(graph);
    fails(
        &[vit, "--graph", &resnet, "-o", "out.safetensors"],
        &[
            "the weights do not fit graph `open_clip_rn`:\n  missing in the file:\n",
            "`visual.bn1.weight` [2]",
            "and ",
            " more\n  left over, for which the graph has no place:\n    `visual.class_embedding` [32]",
            "of another shape:\n    `visual.conv1.weight` is [32, 3, 8, 8], and [2, 3, 3, 3] in the graph\n",
            "to take a part of the weights alone, select it, as in `visual.*`",
        ],
    );
    fails(
        &[vit, "--graph", &own, "--select", "visul.*", "-o", "out.safetensors"],
        &["  `visul.*` selects no tensor of the graph"],
    );
    fails(
        &[vit, "--graph", &own, "--set", "dims.T=20", "-o", "out.safetensors"],
        &[
            "  of another shape:\n    `positional_embedding` is [16, 24], and [20, 24] in the graph\n",
            "import with --resize-positions resamples the embeddings of positions",
        ],
    );
    fails(
        &[quick, "--graph", "auto", "-o", "out.safetensors"],
        &[
            "the graph cannot be guessed: nothing says how many heads the tower of images has, and 64 does not divide its width 32; give \
           --heads IMAGES,TEXTS",
        ],
    );
    fails(
        &[quick, "--graph", "auto", "--heads", "3,3", "-o", "out.safetensors"],
        &["the graph cannot be guessed: 3 heads do not divide the width 32 of the tower of images"],
    );
    fails(
        &[quick, "--graph", "auto", "--heads", "2,3", "--act", "mish", "-o", "out.safetensors"],
        &["the graph cannot be guessed: the activation `mish` is none of ours: gelu, quick_gelu, relu, silu"],
    );
    fails(
        &[vit, "-o", "out.ron"],
        &["error: --out out.ron is no name of a safetensors file, which is what is written"],
    );
    fails(
        &[vit, "--map", "openclip", "-o", "out.safetensors"],
        &["map of names `openclip`: there is none; give a file, or one of"],
    );
    fails(
        &[vit, "--heads", "2", "-o", "out.safetensors"],
        &["invalid value '2' for '--heads <IMAGES,TEXTS>': two numbers, such as 12,8"],
    );
}

#[test]
fn an_activation_that_differs_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let path = golden("hf_clip");
    let said =
        "warning: the tower of images has the activation gelu, but config.json says quick_gelu: features will differ";
    done(
        folder.path(),
        &[path.to_str().unwrap(), "--graph", &graph("open_clip_vit"), "-o", "out.safetensors"],
        &[said],
    );
}

#[test]
fn heads_that_differ_are_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let path = golden("hf_clip");
    let spec = r#"Graph(name: "heads", base: "alip_tiny", parts: {
        "visual": (set: { "width": 32, "heads": 2, "image": 56 }), "text": (set: { "width": 24, "heads": 4 }) },
        inputs: { "image": (dtype: F32, shape: "[B, 3, 56, 56]") })"#;
    fs::write(folder.path().join("heads.ron"), spec).unwrap();
    let args = [path.to_str().unwrap(), "--graph", "heads.ron", "--resize-positions", "-o", "out.safetensors"];
    done(
        folder.path(),
        &args,
        &[
            "of the model says: config.json",
            "warning: the tower of texts has 4 heads, but config.json says 3: features will differ",
        ],
    );
}

/// Names that stayed are still those of others, and are known again.
#[test]
fn names_that_stay_are_not_taken_for_ours() {
    let folder = tempfile::tempdir().unwrap();
    let path = golden("hf_clip");
    done(folder.path(), &[path.to_str().unwrap(), "--map", "same", "-o", "same.safetensors"], &["map `same`"]);
    done(folder.path(), &["same.safetensors", "-o", "ours.safetensors"], &["map `huggingface_clip`"]);
    done(folder.path(), &["ours.safetensors", "-o", "again.safetensors"], &["map `same`"]);
    assert!(tensors(&folder.path().join("again.safetensors")) == tensors(&folder.path().join("ours.safetensors")));
}

/// A tower of texts whose names stand behind `text.`, as open_clip's `custom_text` has it.
#[test]
fn a_custom_tower_of_texts_has_its_names() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let plain = fs::read(golden("open_clip_vit.safetensors")).unwrap();
    let tensors_of = safetensors::SafeTensors::deserialize(&plain).unwrap();
    let custom = |name: &str| match name.starts_with("visual.") || name == "logit_scale" {
        true => name.to_string(),
        false => format!("text.{name}"),
    };
    let renamed = tensors_of.iter().map(|(name, tensor)| (custom(name), tensor));
    safetensors::serialize_to_file(renamed, None, &at.join("custom.safetensors")).unwrap();
    done(at, &["custom.safetensors", "-o", "a.safetensors"], &["names: those of map `open_clip_custom_text`"]);
    done(at, &[golden("open_clip_vit.safetensors").to_str().unwrap(), "-o", "b.safetensors"], &["map `openai`"]);
    assert!(tensors(&at.join("a.safetensors")) == tensors(&at.join("b.safetensors")));
}

/// Gates, which nobody else has, keep their first values; positions are resampled only when asked for, and a part can be taken.
#[test]
fn what_was_done_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = golden("open_clip_vit.safetensors");
    let spec = r#"Graph(name: "gated", base: "alip_tiny", parts: {
        "visual": (set: { "width": 32, "image": 56 }), "text": (set: { "width": 24, "heads": 3 }) },
        inputs: { "image": (dtype: F32, shape: "[B, 3, 56, 56]") })"#;
    fs::write(folder.path().join("gated.ron"), spec).unwrap();
    let args = [path.to_str().unwrap(), "--graph", "gated.ron", "--resize-positions", "-o", "out.safetensors"];
    let kept = "not in the file, and left at their first values: lcg.ema, dcg_raw.ema, dcg_caption.ema";
    done(folder.path(), &args, &["`visual.positional_embedding`: resampled from a grid of 4 x 4 to 7 x 7", kept]);
    let args =
        [path.to_str().unwrap(), "--graph", &graph("open_clip_vit"), "--select", "visual.*", "-o", "out.safetensors"];
    done(folder.path(), &args, &["30 tensors of the file were not selected", "out.safetensors: 32 tensors"]);
}

#[test]
fn files_that_are_none_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let check = |name: &str, bytes: &[u8], said: &str| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        fails(&[path.to_str().unwrap(), "-o", "out.safetensors"], &[said]);
    };
    check(
        "plain.pkl",
        b"\x80\x04}.",
        "a pickle, but not one that `torch.save` wrote; save it with PyTorch, or as safetensors",
    );
    check("text.pt", b"no weights at all, and no safetensors", "the first bytes are not those of a safetensors file");
    check("index.json", b"{}", "it is no index of weights, with a `weight_map`");
    check(
        "up.json",
        br#"{"weight_map":{"a":"../a.safetensors"}}"#,
        "it names a file `../a.safetensors`, which is none beside it",
    );
    check("gone.json", br#"{"weight_map":{"a":"gone.safetensors"}}"#, "gone.safetensors: cannot read");
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    fails(
        &[empty.to_str().unwrap(), "-o", "out.safetensors"],
        &["the folder has no file of weights: none of model.safetensors.index.json"],
    );
    let legacy = fs::read(golden("open_clip_vit.legacy_not_zip.pt")).unwrap();
    check("cut.pt", &legacy[..2000], "the file is cut short: it ends inside its pickle");
    check("cut.pt", &legacy[..100_000], "the file is cut short: it has 100000 bytes, its storages end at");
    for file in ["hostile_reduce.pt", "hostile_path.pt", "hostile_truncated.pt"] {
        fails(&[golden(file).to_str().unwrap(), "-o", "out.safetensors"], &["error: "]);
    }
}

/// Hugging Face's shards: several files and an index.
#[test]
fn shards_are_read_by_their_index() {
    let folder = tempfile::tempdir().unwrap();
    let source = golden("open_clip_vit.safetensors");
    for (select, name) in [("visual.*", "one"), ("*", "two")] {
        let out = folder.path().join(format!("{name}.safetensors"));
        done(folder.path(), &[source.to_str().unwrap(), "--select", select, "-o", out.to_str().unwrap()], &[]);
    }
    let all = tensors(&source);
    let of = |name: &str| if name.starts_with("visual.") { "one.safetensors" } else { "two.safetensors" };
    let map: serde_json::Map<_, _> = all.iter().map(|(name, _)| (name.clone(), of(name).into())).collect();
    let index = serde_json::json!({ "weight_map": map }).to_string();
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    assert!(tensors(folder.path()) == all);
    let index = r#"{"weight_map":{"visual.none":"one.safetensors"}}"#;
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    fails(
        &[folder.path().to_str().unwrap(), "-o", "out.safetensors"],
        &["one.safetensors: there is no tensor `visual.none`"],
    );
}
