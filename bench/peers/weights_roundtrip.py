"""Our weights in the programs of others: what `alip-run export` writes loads in open_clip, transformers and ONNX Runtime, and all
give the features that `alip-run` computes.

    python bench/peers/weights_roundtrip.py --alip-run target/release/alip-run
    python bench/peers/weights_roundtrip.py --alip-run target/release/alip-run --run runs/my_clip     # a run, of any size

Run by hand. It needs torch, open_clip_torch, transformers, onnxruntime and safetensors, and no network: nothing is loaded from a hub. The models
are those of `tests/goldens/weights`, imported first. Features are ours from `alip-run replay` (the towers in a step of training, before
its update); a ResNet, whose step normalises by the batch, is held against the features that open_clip stored beside its weights, which
`cargo test -p alip-tests --test weights` holds against ours.
"""

import argparse
import os
import pathlib
import subprocess
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import onnxruntime
import open_clip
import torch
import transformers
from safetensors.torch import load_file, save_file

BOUND = 1e-5
ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDENS = ROOT / "tests/goldens/weights"
SPECS = ROOT / "tests/weights"
MODELS = [
    ("open_clip_vit", "open_clip_vit.safetensors", ["openai", "huggingface", "onnx"]),
    ("openai_vit_quick", "openai_vit_quick.torchscript.pt", ["openai", "huggingface", "onnx"]),
    ("openai_vit_quick", "hf_clip", ["openai", "huggingface", "onnx"]),
    ("open_clip_rn", "open_clip_rn.pt", ["openai", "onnx"]),
]


def run(binary, *args):
    done = subprocess.run([binary, *map(str, args)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, args))}\n{done.stderr}")


def unit(features):
    features = features if torch.is_tensor(features) else features.pooler_output
    return torch.nn.functional.normalize(features, dim=-1)


def theirs(folder, target, image, text):
    """Features of the program that `target` is for."""
    if target == "onnx":
        # Batches of other sizes than any graph was written for.
        return [torch.cat([onnx(folder, *inputs) for inputs in parts]) for parts in (
            [("encode_image", image[:1]), ("encode_image", image[1:])], [("encode_text", text[:1]), ("encode_text", text[1:])])]
    with torch.no_grad():
        if target == "openai":
            model = open_clip.create_model(f"local-dir:{folder}").eval()
            return unit(model.encode_image(image)), unit(model.encode_text(text))
        model, info = transformers.CLIPModel.from_pretrained(folder, output_loading_info=True)
        wrong = {what: names for what, names in info.items() if names}
        assert not wrong, f"transformers: {wrong}"
        model = model.eval()
        return unit(model.get_image_features(pixel_values=image)), unit(model.get_text_features(input_ids=text))


def onnx(folder, program, batch):
    session = onnxruntime.InferenceSession(folder / f"{program}.onnx", providers=["CPUExecutionProvider"])
    (port,) = session.get_inputs()
    batch = batch.numpy().astype("int32") if "int32" in port.type else batch.numpy()
    return torch.from_numpy(session.run(None, {port.name: batch})[0])


def ours(binary, spec, weights, image, text, folder):
    """Features of our towers."""
    batches, out = folder / "batches.safetensors", folder / "replay.safetensors"
    save_file({"batch.0.image": image, "batch.0.raw": text.to(torch.int32)}, batches)
    run(binary, "replay", spec, "--weights", weights, "--batches", batches, "--dump", "outputs", "--device", "cpu",
        "--batch", len(image), "--out", out)
    found = load_file(out)
    return found["outputs.x"], found["outputs.tr"]


def compare(name, target, own, other):
    differences = [(a - b).abs().max().item() for a, b in zip(own, other)]
    print(f"{name:32} {target:12} images {differences[0]:.1e}  texts {differences[1]:.1e}")
    assert max(differences) <= BOUND, f"more than {BOUND}"


def goldens(binary):
    inputs = load_file(GOLDENS / "inputs.safetensors")
    image, text = inputs["image"], inputs["text"].long()
    for graph, file, targets in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            spec, weights = SPECS / f"{graph}.ron", folder / "weights.safetensors"
            run(binary, "import", GOLDENS / file, "--graph", spec, "-o", weights)
            if graph == "open_clip_rn":
                stored = load_file(GOLDENS / f"{graph}.features.safetensors")
                own = stored["image"], stored["text"]
            else:
                own = ours(binary, spec, weights, image, text, folder)
            for target in targets:
                run(binary, "export", weights, "--graph", spec, "--to", target, "-o", folder / target)
                compare(file, target, own, theirs(folder / target, target, image, text))


def of_run(binary, directory):
    """A run whose graph has the inputs `image` and `raw`, of random images and texts."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        run(binary, "export", directory, "--to", "huggingface", "-o", folder / "huggingface")
        run(binary, "export", directory, "--to", "openai", "-o", folder / "openai")
        config = transformers.CLIPConfig.from_pretrained(folder / "huggingface")
        side, context = config.vision_config.image_size, config.text_config.max_position_embeddings
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(8, 3, side, side, generator=generator)
        text = torch.randint(1, config.text_config.vocab_size - 2, (8, context), generator=generator)
        text[:, context // 2] = config.text_config.eos_token_id
        text[:, context // 2 + 1 :] = 0
        by_target = {target: theirs(folder / target, target, image, text) for target in ["openai", "huggingface"]}
        compare(str(directory), "each other", *by_target.values())


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--alip-run", default="target/release/alip-run", help="the program")
parser.add_argument("--run", help="a run's directory, in place of the goldens")
args = parser.parse_args()
print(f"torch {torch.__version__}, open_clip {open_clip.__version__}, transformers {transformers.__version__}, "
      f"onnxruntime {onnxruntime.__version__}")
of_run(args.alip_run, args.run) if args.run else goldens(args.alip_run)
