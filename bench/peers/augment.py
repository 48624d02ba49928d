#!/usr/bin/env python3
"""What others make of augmentations: the golden data of `tests/goldens/augment`.

    python augment.py pixels ../../tests/goldens/augment     # torchvision and Pillow, images changed by given strengths
    python augment.py windows ../../tests/goldens/augment    # DALI and torchvision, moments of random windows
    python augment.py resize ../../tests/goldens/augment     # DALI, a window resized
    python augment.py normalize ../../tests/goldens/augment  # DALI, mirrored and normalised
    python augment.py blocks ../../tests/goldens/augment     # moments of BEiT's masks

Images are made by `pattern`, which the tests know too, so that only what became of them is stored.
"""

import json
import math
import random
import sys
from pathlib import Path

import numpy as np


def pattern(height: int, width: int) -> np.ndarray:
    """All levels and all colours, without any file: uint8 [height, width, 3]."""
    y, x, c = np.ogrid[:height, :width, :3]
    return ((x * x * 31 + y * 57 + c * 101 + x * y * (7 + 4 * c)) % 256).astype(np.uint8)


def pixels():
    """A line for each change: the op, its numbers, what it makes of the pattern (hex)."""
    from PIL import Image, ImageFilter
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    sizes = [(24, 31), (1, 1), (1, 9), (7, 2)]
    changes = {
        "brightness": (F.adjust_brightness, [0.0, 0.3, 0.77, 1.4, 2.5]),
        "contrast": (F.adjust_contrast, [0.0, 0.3, 0.77, 1.4, 2.5]),
        "saturation": (F.adjust_saturation, [0.0, 0.3, 0.77, 1.4, 2.5]),
        "hue": (F.adjust_hue, [-0.5, -0.1, -0.003, 0.0, 0.07, 0.31]),
        "grayscale": (lambda image, _: F.to_grayscale(image, 3), [1.0]),
        "solarize": (F.solarize, [0.0, 100.0, 128.0, 255.0, 256.0]),
    }
    for height, width in sizes:
        image = Image.fromarray(pattern(height, width))

        def line(op: str, made, **numbers):
            made = made.tobytes().hex()
            return {"op": op, "height": height, "width": width, **numbers, "pixels": made}

        for op, (change, factors) in changes.items():
            for factor in factors:
                yield line(op, change(image, factor), factor=factor)
        for sigma in [0.1, 0.37, 0.9, 1.0, 2.0, 5.5, 40.0]:
            yield line("gaussian_blur", image.filter(ImageFilter.GaussianBlur(sigma)), sigma=sigma)
        for mode in [InterpolationMode.NEAREST, InterpolationMode.BILINEAR]:
            for degrees, fill in [(10.0, 0), (-33.7, 7), (90.0, 0), (180.0, 255), (123.456, 9), (359.0, 0)]:
                turned = F.rotate(image, degrees, mode, fill=[fill] * 3)
                yield line("rotate", turned, degrees=degrees, filter=mode.value, fill=fill)


def moments(values: list[float]) -> list[float]:
    """Mean and variance."""
    values = np.asarray(values, dtype=np.float64)
    return [values.mean().item(), values.var().item()]


def line_of_windows(op: str, size, area, aspect, attempts: int, windows):
    """Moments of windows (x, y, w, h), and the share of the most frequent size, which is that of the fallback."""
    width, height = size
    sizes = {}
    for _, _, w, h in windows:
        sizes[w, h] = sizes.get((w, h), 0) + 1
    most = max(sizes, key=lambda size: (sizes[size], size))
    return {
        "op": op,
        "size": size,
        "area": area,
        "aspect": aspect,
        "attempts": attempts,
        "windows": len(windows),
        "share": moments([w * h / (width * height) for _, _, w, h in windows]),
        "log_aspect": moments([math.log(w / h) for _, _, w, h in windows]),
        "left": moments([x / width for x, _, _, _ in windows]),
        "top": moments([y / height for _, y, _, _ in windows]),
        "most_frequent": [most, sizes[most] / len(windows)],
    }


SIZES = {"square": (500, 500), "5:3": (500, 300), "16:9": (1280, 720), "2:1": (600, 300), "1:2": (300, 600)}


def windows():
    """A line for each shape of image and range of areas."""
    count = 20_000
    for size in SIZES.values():
        for area, aspect, attempts in [((0.7, 1.0), (0.8, 1.25), 100), ((0.08, 1.0), (0.75, 4 / 3), 10)]:
            drawn = dali_windows(size, area, aspect, attempts, count)
            yield line_of_windows("random_area_crop", size, area, aspect, attempts, drawn)
        for area, aspect in [((0.08, 1.0), (0.75, 4 / 3)), ((0.5, 1.0), (0.75, 4 / 3))]:
            drawn = torchvision_windows(size, area, aspect, count)
            yield line_of_windows("random_resized_crop", size, area, aspect, 10, drawn)


def dali_windows(size, area, aspect, attempts: int, count: int):
    from nvidia.dali import fn, pipeline_def

    width, height = size
    batch = 1000

    @pipeline_def(batch_size=batch, num_threads=1, device_id=None, seed=17)
    def pipe():
        shape = np.array([height, width, 3], dtype=np.int64)
        anchor, extent = fn.random_crop_generator(
            shape, random_area=list(area), random_aspect_ratio=list(aspect), num_attempts=attempts
        )
        return anchor, extent

    pipe = pipe()
    pipe.build()
    drawn = []
    for _ in range(count // batch):
        anchor, shape = pipe.run()
        for (y, x), (h, w) in zip(anchor.as_array().tolist(), shape.as_array().tolist()):
            drawn.append((x, y, w, h))
    return drawn


def torchvision_windows(size, area, aspect, count: int):
    import torch
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(17)
    width, height = size
    image = torch.empty(3, height, width)
    drawn = (RandomResizedCrop.get_params(image, list(area), list(aspect)) for _ in range(count))
    return [(x, y, w, h) for y, x, h, w in drawn]


def smooth(height: int, width: int) -> np.ndarray:
    """Slow waves, as in photographs, in whole numbers: uint8 [height, width, 3]."""
    y, x, c = np.ogrid[:height, :width, :3]
    triangle = lambda t, period: np.abs(t % period - period // 2) * 255 // (period // 2)
    return ((triangle(3 * x + 2 * y + 40 * c, 128) + triangle(x * (c + 1) + 5 * y, 254) + (x * y + c) % 9) // 2).astype(np.uint8)


def resize():
    """A line for each window (x, y, w, h) of `smooth` that DALI cuts and resizes with INTERP_LINEAR, antialiased."""
    from nvidia.dali import fn, pipeline_def, types

    for height, width, (x, y, w, h), (to_h, to_w) in [
        (60, 80, (7, 3, 64, 51), (32, 40)),
        (40, 40, (0, 0, 40, 40), (23, 31)),
        (30, 50, (10, 5, 21, 17), (24, 24)),
        (45, 70, (1, 2, 66, 40), (30, 30)),
    ]:
        image = smooth(height, width)

        @pipeline_def(batch_size=1, num_threads=1, device_id=None)
        def pipe():
            images = fn.external_source(lambda: [image], layout="HWC")
            part = fn.slice(images, start=[y, x], shape=[h, w], axes=[0, 1])
            return fn.resize(part, size=[to_h, to_w], interp_type=types.INTERP_LINEAR, antialias=True)

        pipe = pipe()
        pipe.build()
        (made,) = pipe.run()
        size = {"height": height, "width": width, "x": x, "y": y, "w": w, "h": h, "to_height": to_h, "to_width": to_w}
        yield {**size, "pixels": made.as_array()[0].tobytes().hex()}


def normalize():
    """A line for each: `crop_mirror_normalize` of the pattern by CLIP's mean and deviation, f32 [3, height, width]."""
    from nvidia.dali import fn, pipeline_def, types

    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    for height, width, mirror in [(5, 6, 0), (5, 6, 1), (1, 1, 1)]:
        image = pattern(height, width)

        @pipeline_def(batch_size=1, num_threads=1, device_id=None)
        def pipe():
            images = fn.external_source(lambda: [image], layout="HWC")
            return fn.crop_mirror_normalize(
                images,
                mirror=mirror,
                mean=[255 * x for x in mean],
                std=[255 * x for x in std],
                dtype=types.FLOAT,
                output_layout="CHW",
            )

        pipe = pipe()
        pipe.build()
        (made,) = pipe.run()
        numbers = made.as_array()[0].ravel().tolist()
        yield {"height": height, "width": width, "mirror": mirror, "numbers": numbers}


def block_mask(rng, height: int, width: int, most: int, least: int, aspect) -> np.ndarray:
    """A mask as BEiT (Bao et al. 2021, algorithm 1) and its published code draw it."""
    mask = np.zeros((height, width), dtype=bool)
    while mask.sum() < most:
        left = most - int(mask.sum())
        for _ in range(10):
            area = rng.uniform(least, left)
            ratio = math.exp(rng.uniform(*map(math.log, aspect)))
            h, w = int(round(math.sqrt(area * ratio))), int(round(math.sqrt(area / ratio)))
            if w >= width or h >= height:
                continue
            top, column = rng.randint(0, height - h), rng.randint(0, width - w)
            block = mask[top : top + h, column : column + w]
            if 0 < block.size - block.sum() <= left:
                block[:] = True
                break
        else:
            break
    return mask


def blocks():
    """A line for each grid: moments of the number of masked patches, and of pairs of neighbours of which one is."""
    for height, width, ratio, least in [(14, 14, 0.4, 16), (7, 7, 0.5, 4), (10, 20, 0.75, 16)]:
        rng, count = random.Random(17), 20_000
        aspect = (0.3, 1 / 0.3)
        masks = [block_mask(rng, height, width, int(height * width * ratio), least, aspect) for _ in range(count)]
        edges = [int((m[1:] != m[:-1]).sum() + (m[:, 1:] != m[:, :-1]).sum()) for m in masks]
        corners = [int(m[0, 0]) for m in masks]
        yield {
            "height": height,
            "width": width,
            "ratio": ratio,
            "least": least,
            "masks": count,
            "masked": moments([m.sum() for m in masks]),
            "edges": moments(edges),
            "corner": moments(corners),
        }


if __name__ == "__main__":
    what, folder = sys.argv[1], Path(sys.argv[2])
    lines = {"pixels": pixels, "windows": windows, "resize": resize, "normalize": normalize, "blocks": blocks}[what]()
    (folder / f"{what}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
