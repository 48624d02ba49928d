"""What NVIDIA DALI, or torchvision with Pillow, delivers of ALIP's training images on CPU: random crops, 224 x 224, mirrored, normalised.

    pip install nvidia-dali-cuda120 torchvision pillow
    taskset -c 0 python bench/peers/dali_cpu.py dali --data FOLDER_OF_IMAGES
    taskset -c 0 python bench/peers/dali_cpu.py dali --data x.rec           # with x.idx beside it
    taskset -c 0 python bench/peers/dali_cpu.py torchvision --data FOLDER_OF_IMAGES

Prints one JSON object. In turn with `taskset -c 0 alip-run data PIPELINE --data ... --workers 1 --batches N --json`.
"""

import argparse
import json
import time
from pathlib import Path

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
AREA, ASPECT, ATTEMPTS, SIZE = (0.7, 1.0), (0.8, 1.25), 100, 224


def images(folder):
    found = sorted(str(path) for path in Path(folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not found:
        raise SystemExit(f"{folder}: no JPEG files")
    return found


def dali(args):
    import nvidia.dali.fn as fn
    from nvidia.dali import pipeline_def, types

    @pipeline_def(batch_size=args.batch, num_threads=args.threads, device_id=None, seed=args.seed)
    def pipeline():
        if args.data.endswith(".rec"):
            index = str(Path(args.data).with_suffix(".idx"))
            # ALIP's labels are 154 token ids; other records may have none.
            files, _ = fn.readers.mxnet(path=[args.data], index_path=[index], random_shuffle=True, name="reader")
        else:
            files, _ = fn.readers.file(files=images(args.data), random_shuffle=True, name="reader")
        crops = fn.decoders.image_random_crop(
            files, device="cpu", output_type=types.RGB, random_area=AREA, random_aspect_ratio=ASPECT, num_attempts=ATTEMPTS
        )
        resized = fn.resize(crops, resize_x=SIZE, resize_y=SIZE, interp_type=types.INTERP_LINEAR, antialias=True)
        mirror = fn.random.coin_flip(probability=0.5)
        if args.bytes:
            return fn.flip(resized, horizontal=mirror)
        return fn.crop_mirror_normalize(
            resized, mirror=mirror, dtype=types.FLOAT, output_layout="CHW",
            mean=[255 * x for x in MEAN], std=[255 * x for x in STD],
        )

    made = pipeline()
    made.build()
    return lambda: made.run() and args.batch


def torchvision(args):
    import torch
    from PIL import Image
    from torchvision import transforms

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    steps = [
        transforms.RandomResizedCrop(SIZE, scale=AREA, ratio=ASPECT, antialias=True),
        transforms.RandomHorizontalFlip(),
    ]
    steps += [transforms.PILToTensor()] if args.bytes else [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    transform = transforms.Compose(steps)
    files = images(args.data)

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return len(files)

        def __getitem__(self, index):
            with Image.open(files[index]) as image:
                return transform(image.convert("RGB"))

    # One thread works in this process, as it is fastest on one core; more are processes.
    workers = 0 if args.threads == 1 else args.threads

    def epochs():
        loader = torch.utils.data.DataLoader(Images(), args.batch, shuffle=True, num_workers=workers)
        while True:
            yield from loader

    batches = epochs()
    return lambda: len(next(batches))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("peer", choices=["dali", "torchvision"])
    parser.add_argument("--data", required=True, help="a folder of JPEG files, or (DALI) a .rec file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--warmup", type=float, default=3.0, help="seconds before the measurement")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bytes", action="store_true", help="leave out normalisation, as alip-run's loader does")
    args = parser.parse_args()
    step = {"dali": dali, "torchvision": torchvision}[args.peer](args)
    start = time.perf_counter()
    while time.perf_counter() - start < args.warmup:
        step()
    samples, start, cpu = 0, time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - start) < args.seconds:
        samples += step()
    print(json.dumps({
        "peer": args.peer, "data": args.data, "threads": args.threads, "bytes": args.bytes, "samples": samples,
        "seconds": round(elapsed, 3), "samples_per_s": round(samples / elapsed, 1),
        "samples_per_cpu_s": round(samples / (time.process_time() - cpu), 1),
    }))


if __name__ == "__main__":
    main()
