"""Images to embeddings with a ViT-B/32, decoding included: `alip-run embed` and PyTorch with open_clip, in turn, on the same files.

    python bench/peers/eval_speed.py --alip-run target/release/alip-run --images FOLDER [--count 2000] [--threads 2]

Run by hand. It needs torch, torchvision, open_clip_torch, Pillow and safetensors; weights are random. PyTorch decodes and resizes with
Pillow in as many processes as there are threads, and computes in batches of 64 as `alip-run embed` does. Ours is timed as a whole
command; what starting and compiling take is that of a command with one image, and told apart.
"""

import argparse
import pathlib
import shutil
import subprocess
import tempfile
import time

import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

BATCH = 64


class Files(torch.utils.data.Dataset):
    def __init__(self, files, transform):
        self.files, self.transform = files, transform

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return self.transform(Image.open(self.files[index]).convert("RGB"))


def theirs(model, transform, files, threads):
    loader = torch.utils.data.DataLoader(Files(files, transform), batch_size=BATCH, num_workers=threads)
    start = time.perf_counter()
    with torch.inference_mode():
        found = torch.cat([model.encode_image(images, normalize=True) for images in loader])
    return time.perf_counter() - start, found


def ours(binary, spec, weights, folder, threads):
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        subprocess.run([binary, "embed", "--images", folder, "--model", spec, "--weights", weights, "--device", "cpu", "--threads",
                        str(threads), "--out", f"{out}/e.npy"], check=True, capture_output=True)
        return time.perf_counter() - start


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--alip-run", default="target/release/alip-run")
parser.add_argument("--images", required=True, type=pathlib.Path)
parser.add_argument("--count", type=int, default=2000)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--rounds", type=int, default=2)
args = parser.parse_args()
torch.set_num_threads(args.threads)
model, _, transform = open_clip.create_model_and_transforms("ViT-B-32", pretrained=None)
model.eval()
with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    files = sorted(args.images.iterdir())[: args.count]
    for name, some in [("all", files), ("one", files[:1])]:
        (folder / name).mkdir()
        for file in some:
            shutil.copy(file, folder / name)
    weights = folder / "b32.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, weights)
    for round in range(args.rounds):
        whole, one = (ours(args.alip_run, "clip_b32", weights, folder / name, args.threads) for name in ("all", "one"))
        their, _ = theirs(model, transform, files, args.threads)
        mine = whole - one
        print(f"round {round + 1}: alip {len(files) / mine:.1f} images/s ({one:.1f} s to start), torch {len(files) / their:.1f}, "
              f"{their / mine:.2f} times", flush=True)
