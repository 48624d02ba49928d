#!/usr/bin/env python3
"""The PyTorch peer of `alip-run bench`: ALIP training steps on synthetic data, as PyTorch does them best.

One step is what `graphs/alip_b32.ron` trains: image tower, one text-tower call for raw texts and captions together,
consistency gates, weighted contrastive losses, clipping by global norm, AdamW, one-cycle schedule, clamp.

    python alip_torch.py --model b32 --batch 16 --steps 10        # prints one JSON object on stdout
    python alip_torch.py --check ../../tests/goldens/alip_tiny    # proves that it computes the same training

Parameters carry the names of the published checkpoint, so weights load by name. What an expert would do is done: batch-first
layouts, fused attention, no row normalised that is not read, fused AdamW, gradients dropped and not zeroed.
"""

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def resident(field: str) -> float:
    """MiB of resident memory: `VmRSS` is now, `VmHWM` the peak so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    return math.nan


RESIDENT_AFTER_IMPORT = resident("VmRSS")


@dataclass
class Config:
    """Sizes of the two towers. `patch` 0 means the modified ResNet with `stages`."""

    image: int = 224
    patch: int = 32
    width: int = 768
    head_width: int = 64
    layers: int = 12
    stages: tuple[int, ...] = ()
    embed: int = 512
    context: int = 77
    vocabulary: int = 49408
    text_width: int = 512
    text_heads: int = 8
    text_layers: int = 12


MODELS = {
    "b32": Config(),
    "b16": Config(patch=16),
    "rn50": Config(patch=0, width=64, layers=0, stages=(3, 4, 6, 3)),
    # To try scripts with, where there is no card.
    "tiny": Config(32, 8, 32, 16, 2, (), 32, 16, 512, 32, 2, 2),
}


class Attention(nn.Module):
    """Multi-head self-attention over [batch, length, width] with packed query, key and value weights."""

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor) -> Tensor:
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out_proj(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm residual attention block with an MLP four times as wide."""

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, heads, causal)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class Transformer(nn.Module):
    def __init__(self, width: int, heads: int, layers: int, causal: bool):
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(width, heads, causal) for _ in range(layers)))
        self.checkpoint = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.checkpoint:
            return self.resblocks(x)
        # As published: of each block only its input is kept, and it is computed again.
        for block in self.resblocks:
            x = checkpoint(block, x, use_reentrant=False)
        return x


class VisionTransformer(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        positions = (c.image // c.patch) ** 2 + 1
        self.conv1 = nn.Conv2d(3, c.width, c.patch, c.patch, bias=False)
        self.class_embedding = nn.Parameter(c.width**-0.5 * torch.randn(c.width))
        self.positional_embedding = nn.Parameter(c.width**-0.5 * torch.randn(positions, c.width))
        self.ln_pre, self.ln_post = nn.LayerNorm(c.width), nn.LayerNorm(c.width)
        self.transformer = Transformer(c.width, c.width // c.head_width, c.layers, causal=False)
        self.proj = nn.Parameter(c.width**-0.5 * torch.randn(c.width, c.embed))

    def forward(self, image: Tensor) -> Tensor:
        patches = self.conv1(image).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(image), 1, -1).to(patches.dtype)
        x = torch.cat([first, patches], dim=1) + self.positional_embedding
        x = self.transformer(self.ln_pre(x))
        return self.ln_post(x[:, 0]) @ self.proj


class Bottleneck(nn.Module):
    """1x1, 3x3, average pooling by the stride, 1x1; the shortcut is pooled and projected where sizes change."""

    def __init__(self, inner: int, outer: int, stride: int):
        super().__init__()
        out = 4 * outer
        self.conv1, self.bn1 = nn.Conv2d(inner, outer, 1, bias=False), nn.BatchNorm2d(outer)
        self.conv2, self.bn2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer)
        self.conv3, self.bn3 = nn.Conv2d(outer, out, 1, bias=False), nn.BatchNorm2d(out)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.downsample = None
        if stride > 1 or inner != out:
            self.downsample = nn.Sequential(nn.Conv2d(inner, out, 1, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(self.pool(y)))
        shortcut = x if self.downsample is None else self.downsample(self.pool(x))
        return F.relu(y + shortcut, inplace=True)


class AttentionPool(nn.Module):
    """One attention whose only query is the mean over the positions."""

    def __init__(self, positions: int, width: int, heads: int, embed: int):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn(positions + 1, width))
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.c_proj = nn.Linear(width, width), nn.Linear(width, embed)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], dim=1) + self.positional_embedding
        maps = (self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x))
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in maps)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.c_proj(y.transpose(1, 2).flatten(1))


class ModifiedResNet(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        w = c.width
        self.conv1, self.bn1 = nn.Conv2d(3, w // 2, 3, 2, 1, bias=False), nn.BatchNorm2d(w // 2)
        self.conv2, self.bn2 = nn.Conv2d(w // 2, w // 2, 3, padding=1, bias=False), nn.BatchNorm2d(w // 2)
        self.conv3, self.bn3 = nn.Conv2d(w // 2, w, 3, padding=1, bias=False), nn.BatchNorm2d(w)
        inner = w
        for stage, blocks in enumerate(c.stages):
            outer, layer = w * 2**stage, []
            for block in range(blocks):
                layer.append(Bottleneck(inner, outer, 2 if stage and not block else 1))
                inner = 4 * outer
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layer))
        self.attnpool = AttentionPool((c.image // 32) ** 2, inner, inner // c.head_width, c.embed)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(norm(conv(x)), inplace=True)
        x = F.avg_pool2d(x, 2)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return self.attnpool(x)


class Alip(nn.Module):
    """Both towers, the gates with their momenta, and the loss."""

    def __init__(self, c: Config):
        super().__init__()
        self.visual = VisionTransformer(c) if c.patch else ModifiedResNet(c)
        self.token_embedding = nn.Embedding(c.vocabulary, c.text_width)
        self.positional_embedding = nn.Parameter(0.01 * torch.randn(c.context, c.text_width))
        self.transformer = Transformer(c.text_width, c.text_heads, c.text_layers, causal=True)
        self.ln_final = nn.LayerNorm(c.text_width)
        self.text_projection = nn.Parameter(c.text_width**-0.5 * torch.randn(c.text_width, c.embed))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        # Not persistent: the published checkpoint does not hold them.
        for name in ("text", "raw", "caption"):
            self.register_buffer(f"{name}_momentum", torch.ones(()), persistent=False)

    def encode_text(self, tokens: Tensor) -> Tensor:
        x = self.transformer(self.token_embedding(tokens) + self.positional_embedding)
        # Only the row of the end token is read, so only that row is normalised.
        end = x[torch.arange(len(x), device=x.device), tokens.argmax(dim=-1)]
        return self.ln_final(end) @ self.text_projection

    def gate(self, name: str, similarity: Tensor) -> Tensor:
        momentum = getattr(self, f"{name}_momentum")
        momentum.mul_(0.99).add_(similarity.mean(), alpha=0.01)
        return torch.exp(2 * (similarity - momentum))

    @torch.no_grad()
    def weights(self, image: Tensor, raw: Tensor, caption: Tensor) -> tuple[Tensor, Tensor]:
        """What each sample's two loss rows are multiplied with, [batch] each. No gradient flows through gates."""
        text = self.gate("text", (raw * caption).sum(-1))
        pairs = (self.gate("raw", (raw * image).sum(-1)), self.gate("caption", (caption * image).sum(-1)))
        return tuple(torch.where(text < 1, text * pair, 1.0) for pair in pairs)

    def forward(self, image: Tensor, raw: Tensor, caption: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The losses of both texts, and the unit embeddings stacked as image, raw, caption."""
        # In f32 from here on, also under autocast: B x B products are small, their log-sum-exp is not forgiving.
        x = F.normalize(self.visual(image).float(), dim=-1)
        raw, caption = F.normalize(self.encode_text(torch.cat([raw, caption])).float(), dim=-1).chunk(2)
        with torch.autocast(image.device.type, enabled=False):
            scale = self.logit_scale.exp()
            losses = []
            for text, weight in zip((raw, caption), self.weights(x, raw, caption)):
                logits = scale * x @ text.T
                rows = (logits.logsumexp(0) + logits.logsumexp(1)) / 2 - logits.diagonal()
                losses.append((rows * weight).mean())
        return losses[0], losses[1], torch.stack([x, raw, caption])


class Trainer:
    """A model with its optimiser and schedule; `step` is the whole training step."""

    def __init__(self, model: Alip, total_steps: int, *, bf16: bool = False, compiled: str | None = None):
        self.model, self.bf16 = model, bf16
        self.parameters = list(model.parameters())
        self.device = self.parameters[0].device
        self.forward = torch.compile(model, mode=compiled) if compiled else model
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=1e-3, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.2, fused=True
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=1e-3, total_steps=total_steps, pct_start=0.1
        )

    def step(self, batch: dict[str, Tensor], mark=lambda: None) -> dict[str, Tensor]:
        """One step. `mark` is called between forward, backward and update."""
        mark()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss_raw, loss_caption, embeddings = self.forward(batch["image"], batch["raw"], batch["caption"])
            loss = loss_raw + loss_caption
        mark()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        mark()
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))
        mark()
        detached = {"loss": loss, "loss_raw": loss_raw, "loss_caption": loss_caption, "embeddings": embeddings}
        return {name: value.detach() for name, value in detached.items()} | {"grad_norm": norm}


class Stopwatch:
    """Times between marks, without making the host wait for the device inside a step."""

    def __init__(self, device: torch.device):
        self.cuda, self.marks = device.type == "cuda", []

    def mark(self) -> None:
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        if self.cuda:
            torch.cuda.synchronize()
            return [a.elapsed_time(b) / 1e3 for a, b in zip(self.marks, self.marks[1:])]
        return [b - a for a, b in zip(self.marks, self.marks[1:])]


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def synthetic_batch(c: Config, size: int, device: torch.device) -> dict[str, Tensor]:
    """Random images, and texts of 5 to 30 tokens between start and end, padded with zeros."""
    batch = {"image": torch.randn(size, 3, c.image, c.image)}
    for name in ("raw", "caption"):
        tokens = torch.zeros(size, c.context, dtype=torch.long)
        for row, length in zip(tokens, torch.randint(5, 31, (size,)).tolist()):
            row[0] = c.vocabulary - 2
            row[1 : length + 1] = torch.randint(1, c.vocabulary - 2, (length,))
            row[length + 1] = c.vocabulary - 1
        batch[name] = tokens
    return {name: tensor.to(device) for name, tensor in batch.items()}


def saved_for_backward(trainer: Trainer, batch: dict[str, Tensor]) -> int:
    """Bytes that autograd keeps between forward and backward, parameters aside: each storage once."""
    own = {parameter.untyped_storage().data_ptr() for parameter in trainer.parameters}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    # Storages stay alive while the graph does, so that addresses are distinct.
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        graph = trainer.model(batch["image"], batch["raw"], batch["caption"])
    del graph
    return sum(kept.values())


def bench(args: argparse.Namespace) -> dict:
    """Warm-up steps, then timed ones; the figure is that of the median step."""
    device, config = torch.device(args.device), MODELS[args.model]
    load = os.getloadavg()[0]
    model = Alip(config).to(device)
    for module in model.modules():
        if isinstance(module, Transformer):
            module.checkpoint = args.checkpoint
    # The schedule must not end within the run; its length does not change the work.
    trainer = Trainer(model, total_steps=1000 + args.warmup + args.steps, bf16=args.bf16, compiled=args.compile)
    batch = synthetic_batch(config, args.batch, device)
    # On a card it would be part of the peak.
    saved = saved_for_backward(trainer, batch) if device.type != "cuda" else None
    for _ in range(args.warmup):
        last = trainer.step(batch)
    steps = []
    for number in range(args.steps):
        watch = Stopwatch(device)
        last = trainer.step(batch, watch.mark)
        steps.append(watch.seconds())
        print(f"step {number + 1}/{args.steps}: {sum(steps[-1]):.3f} s", file=sys.stderr)
    median = statistics.median(sum(step) for step in steps)
    parts = {name: statistics.median(part) for name, part in zip(("forward", "backward", "update"), zip(*steps))}
    result = {
        "model": f"alip_{args.model}",
        "parameters": sum(p.numel() for p in trainer.parameters),
        "batch": args.batch,
        "samples_per_s": round(args.batch / median, 4),
        "step_s": round(median, 4),
        "split_s": {name: round(seconds, 4) for name, seconds in parts.items()},
        "steps_s": [round(sum(step), 4) for step in steps],
        "warmup_steps": args.warmup,
        "loss": round(last["loss"].item(), 6),
        "dtype": "bf16 autocast" if args.bf16 else "f32",
        "mode": f"compiled ({args.compile})" if args.compile else "eager",
        "checkpoint": args.checkpoint,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "load_average": round(load, 2),
        "saved_for_backward_mib": None if saved is None else round(saved / 2**20, 1),
        "peak_resident_mib": round(resident("VmHWM"), 1),
        "resident_after_import_mib": round(RESIDENT_AFTER_IMPORT, 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        result["peak_device_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return result


def comparable(name: str, tensor: Tensor) -> Tensor:
    """Without key biases: their true gradient is zero, so in f32 it is noise."""
    if name.endswith("attn.in_proj_bias"):
        query, _, value = tensor.chunk(3)
        return torch.cat([query, value])
    return tensor[:0] if name.endswith("attnpool.k_proj.bias") else tensor


def check(folder: Path, device: torch.device) -> bool:
    """Trains on golden data and compares with the f64 truth under the bounds of `tests/goldens/README.md`."""
    from safetensors.torch import load_file

    spec = json.loads((folder / "config.json").read_text())["spec"]
    vision, text = spec["model"]["vision"], spec["model"]["text"]
    config = Config(
        vision["image_size"], vision["patch_size"], vision["width"], vision["head_width"], vision["layers"],
        tuple(vision["stages"]), spec["model"]["embed_dim"], text["context_length"], text["vocab_size"],
        text["width"], text["heads"], text["layers"],
    )  # fmt: skip
    model = Alip(config)
    model.load_state_dict(load_file(folder / "weights_initial.safetensors"))
    trainer = Trainer(model.to(device), spec["train"]["total_steps"])
    inputs = {name: tensor.to(device) for name, tensor in load_file(folder / "inputs.safetensors").items()}
    truth, trajectory = load_file(folder / "step1.safetensors"), load_file(folder / "trajectory.safetensors")
    worst: dict[str, float] = {}

    def compare(what: str, actual: Tensor, expected: Tensor, bound: Tensor | float) -> None:
        error = (actual.detach().cpu().double() - expected).abs() / bound
        worst[what] = max(worst.get(what, 0.0), error.max().item() if error.numel() else 0.0)

    def relative(what: str, actual: Tensor, expected: Tensor, bound: float) -> None:
        compare(what, actual, expected, bound * expected.abs().max() if expected.numel() else 1.0)

    # Clipping scales the gradients in place, so those of step 1 are taken from a step of their own, momenta put back.
    batch = {name: inputs[f"batch.0.{name}"] for name in ("image", "raw", "caption")}
    start = {name: buffer.clone() for name, buffer in model.named_buffers()}
    loss_raw, loss_caption, embeddings = model(batch["image"], batch["raw"], batch["caption"])
    (loss_raw + loss_caption).backward()
    for actual, name in zip(embeddings, ("image", "raw", "caption")):
        relative("step 1: embeddings", actual, truth[f"f64.embedding.{name}"], 2e-6)
    for name, actual in (("loss_raw", loss_raw), ("loss_caption", loss_caption), ("loss", loss_raw + loss_caption)):
        relative("step 1: losses", actual, truth[f"f64.loss.{name}"], 2e-6)
    gradients = load_file(folder / "grads_step1_f64.safetensors")
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        expected = comparable(name, gradients[name])
        relative("step 1: gradients", comparable(name, parameter.grad), expected, 1e-5 if config.patch else 2e-5)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(start[name])

    largest: dict[str, float] = {}
    for step in range(spec["train"]["run_steps"]):
        number = step % spec["distinct_batches"]
        metrics = trainer.step({name: inputs[f"batch.{number}.{name}"] for name in ("image", "raw", "caption")})
        metrics |= {f"{name}_momentum": getattr(model, f"{name}_momentum") for name in ("text", "raw", "caption")}
        metrics["logit_scale_after"] = model.logit_scale
        for name, actual in metrics.items():
            if f"f64.{name}" in trajectory:
                expected = trajectory[f"f64.{name}"][step]
                largest[name] = max(largest.get(name, 0.0), trajectory[f"sensitivity.{name}"][step].item())
                compare(f"trajectory: {name}", actual, expected, (4 * largest[name] + 1e-6) * expected.abs())
    final = folder / "weights_final_f64.safetensors"
    if final.exists():
        # How far f32 rounding moved the weights in the run that made the data; four times that is allowed.
        rounding = json.loads((folder / "config.json").read_text())["rounding"]["run"]["f32_against_f64_weights_final"]
        for name, expected in load_file(final).items():
            actual = comparable(name, model.get_parameter(name))
            relative("final weights", actual, comparable(name, expected), 4 * rounding["max_relative"])
    for what, ratio in worst.items():
        print(f"{what:32} {ratio:6.3f} of the bound{'' if ratio <= 1 else '   OUT OF BOUND'}")
    return all(ratio <= 1 for ratio in worst.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="b32")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10, help="timed steps (default: 10)")
    parser.add_argument("--warmup", type=int, default=2, help="untimed steps before them (default: 2)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="autocast to bf16 (default: f32)")
    parser.add_argument("--compile", nargs="?", const="default", metavar="MODE", help="torch.compile, in this mode (default: eager)")
    parser.add_argument("--checkpoint", action="store_true", help="compute the activations of blocks again, as published")
    parser.add_argument("--tf32", action="store_true", help="let f32 products on CUDA use TF32")
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="compare with a golden folder and exit")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    torch.set_float32_matmul_precision("high" if args.tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = args.tf32
    torch.manual_seed(args.seed)
    if args.check:
        return 0 if check(args.check, torch.device(args.device)) else 1
    print(json.dumps(bench(args), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
