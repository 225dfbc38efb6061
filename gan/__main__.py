"""Train, sample and look into checkpoints with torch and numpy alone: `python -m gan --help`."""

import argparse
import json
import re
import signal
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gan.allocator import keep_freed_memory
from gan.errors import BadCheckpoint, BadData, BadRecipe, GanError, TrainingDiverged

LAST_SEED = 2**63 - 1
MOST_PER_CLASS = 10_000_000
MODELS = ("auto", "mlp", "dcgan", "sngan", "wgan", "wgan-gp", "r3", "vae", "autoencoder")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0 done, 1 failed, 2 bad usage or input."""
    args = _parser().parse_args(arguments)
    keep_freed_memory()
    try:
        return int(args.run(args))
    except (GanError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        of_input = FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError
        failed = isinstance(e, TrainingDiverged) or (isinstance(e, OSError) and not isinstance(e, of_input))
        return 1 if failed else 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gan", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train on an .npz of images and labels, write a checkpoint")
    train.add_argument("data", type=Path, help=".npz: images uint8 (N,H,W), (N,H,W,C) or (N,C,H,W) and labels (N,)")
    train.add_argument("--out", type=Path, required=True, help="checkpoint file (.safetensors), rewritten as it trains")
    train.add_argument("--model", choices=MODELS, default="auto")
    budget = train.add_mutually_exclusive_group(required=True)
    budget.add_argument("--kimg", type=float, help="train on this many thousand images")
    budget.add_argument("--seconds", type=float, help="train this long")
    train.add_argument("--batch-size", type=int)
    train.add_argument("--seed", type=_whole(0, LAST_SEED), default=0)
    train.add_argument("--device", type=_device, default="cpu", help="cpu or cuda")
    train.add_argument("--threads", type=_whole(1, 1024), help="CPU threads; default: torch's own choice")
    train.add_argument("--flip", action="store_true", help="mirrored images keep their label")
    train.add_argument("--color", action="store_true", help="images in other tones keep their label")
    train.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="e.g. lr_g=1e-3 or width=16")
    train.add_argument("--resume", action="store_true", help="go on from --out where it stopped")
    train.add_argument("--dry-run", action="store_true", help="print the resolved network and recipe and stop")
    train.set_defaults(run=_train)

    sample = commands.add_parser("sample", help="draw images from a checkpoint into an .npz")
    sample.add_argument("checkpoint", type=Path)
    sample.add_argument("--out", type=Path, required=True)
    sample.add_argument("--per-class", type=_whole(1, MOST_PER_CLASS), default=100)
    sample.add_argument("--classes", type=int, nargs="+", help="only these labels")
    sample.add_argument("--seed", type=_whole(-LAST_SEED, LAST_SEED), default=0, help="first seed; image i has seed + i")
    sample.add_argument("--truncation", type=float, default=1.0, metavar="PSI",
                        help="latents towards their mean: below 1 more typical, less varied images")
    sample.add_argument("--reject", type=Path, metavar="HELD_OUT",
                        help=".npz of real images that were not trained on: draw again what the discriminator doubts")
    sample.add_argument("--keep", type=float, metavar="SHARE",
                        help="with --reject: the share of draws that passes; default: the exact rule, which may pass few")
    sample.set_defaults(run=_sample)

    info = commands.add_parser("info", help="say what a checkpoint is, as JSON")
    info.add_argument("checkpoint", type=Path)
    info.set_defaults(run=_info)
    return parser


def _whole(low: int, high: int) -> Callable[[str], int]:
    """Reads an argument that is a whole number from low to high."""
    def read(text: str) -> int:
        if re.fullmatch(r"-?\d{1,20}", text) and low <= int(text) <= high:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text} must be a whole number from {low} to {high}")
    return read


def _device(text: str) -> str:
    """Reads the name of a device."""
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"{text} must be cpu, cuda, or one of several as cuda:1")
    return text


def read_npz(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images uint8 (N, C, H, W) and labels int64 (N,), zeros where the file has none; pickled arrays are refused.

    Raises:
        BadData: not such a file, or more classes than any family serves.
    """
    from gan.networks.spec import MOST_CLASSES

    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, TypeError, AttributeError, RuntimeError, MemoryError) as e:
        raise BadData(f"{path} is not an .npz of plain arrays, as numpy.savez makes them: another kind, damaged, or Python objects") from e
    if "images" not in arrays:
        raise BadData(f"{path} holds {', '.join(arrays) or 'nothing'}: an array called images is needed")
    images = np.asarray(arrays["images"])
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise BadData(f"{path}: images must be uint8 of 3 or 4 dimensions, got {images.dtype} {images.shape}")
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    elif images.shape[1] not in (1, 3):
        raise BadData(f"{path}: images {images.shape} have {min(images.shape[1], images.shape[3])} channels, and 1 (grey) or 3 (RGB) are "
                      "served; of RGBA take images[..., :3]")
    labels = np.asarray(arrays.get("labels", np.zeros(len(images), np.int64)))
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise BadData(f"{path}: labels must be whole numbers ({len(images)},), got {labels.dtype} {labels.shape}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < MOST_CLASSES:
        raise BadData(f"{path}: labels from {labels.min()} to {labels.max()}: number the classes from 0 to at most {MOST_CLASSES - 1}")
    return np.ascontiguousarray(images), labels.astype(np.int64)


def _train(args: argparse.Namespace) -> int:
    import torch

    from gan.augment import Augmentation
    from gan.loop import Hooks, train
    from gan.presets import Budget, choose
    from gan.recipe import parse_settings

    if args.threads:
        torch.set_num_threads(args.threads)
    if not args.dry_run:
        _check_device(args.device)
        _check_place(args.out)
        if args.resume and not args.out.exists():
            raise BadCheckpoint(f"--resume: there is no {args.out} to go on from; leave --resume out to begin")
    images, labels = read_npz(args.data)
    if len(images) == 0:
        raise BadData(f"{args.data}: there are no images in it")
    counts = np.bincount(labels)
    spec, recipe, reason = choose(
        args.model, images.shape[2], images.shape[1], counts.tolist(), Budget(args.kimg, args.seconds), args.device,
        batch_size=args.batch_size, augment=Augmentation(flip=args.flip, color=args.color), options=parse_settings(args.set))
    print(f"{reason}; {len(images):,} images, {len(counts)} classes", file=sys.stderr)
    if args.dry_run:
        print(json.dumps({"spec": spec.to_dict(), "recipe": recipe.to_dict()}, indent=2))
        return 0
    stop = _StopOnSignal()
    hooks = Hooks(on_metrics=_print_metrics, on_checkpoint=lambda data, _: _replace(args.out, data), should_stop=stop,
                  on_restart=lambda reason, kimg: print(f"{reason}: back to {kimg:.1f} kimg, half the rates", file=sys.stderr))
    resume = args.out.read_bytes() if args.resume else None
    try:
        with stop:
            state = train(torch.from_numpy(images), torch.from_numpy(labels), spec, recipe, seed=args.seed, hooks=hooks,
                          resume=resume, device=args.device)
    except TrainingDiverged as e:
        if e.last_good is not None:
            _replace(args.out, e.last_good)
            print(f"kept the last good checkpoint: {args.out}", file=sys.stderr)
        raise
    word = "trained" if state.finished else "stopped, --resume goes on:"
    print(f"{word} {state.kimg:.1f} kimg in {state.elapsed_s:.1f} s: {args.out}", file=sys.stderr)
    return 0 if state.finished else 1


def _check_device(device: str) -> None:
    """Raises `BadRecipe` where torch doesn't see the GPU that is asked for."""
    import torch

    kind, _, number = device.partition(":")
    if kind == "cuda" and (there := torch.cuda.device_count()) <= int(number or 0):
        raise BadRecipe(f"--device {device}: torch sees {there or 'no'} GPUs here; take {'another' if there else '--device cpu'}")


def _check_place(out: Path) -> None:
    """Raises `BadData` where no file could be written, before hours are spent on what it is to hold."""
    if out.is_dir():
        raise BadData(f"--out {out} is a folder: name a file in it")
    try:
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as e:
        raise BadData(f"--out {out}: nothing can be written in {out.parent} ({e.strerror}); create it or take another") from e


class _StopOnSignal:
    """Asks the loop to stop at the first Ctrl-C; a second one interrupts as usual."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGINT, self._ask)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _ask(self, *_: object) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self._before)

    def __call__(self) -> bool:
        return self.asked


def _replace(path: Path, data: bytes) -> None:
    """Whole or not at all: a reader never sees half a checkpoint."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)


_printed = [0.0]


def _print_metrics(metrics: dict[str, Any]) -> None:
    """One line every five seconds."""
    now = time.monotonic()
    if "loss_d" not in metrics or now - _printed[0] < 5:
        return
    _printed[0] = now
    print(f"{metrics['progress']:6.1%}  {metrics['kimg']:8.1f} kimg  {metrics['images_per_s']:7.0f} images/s  "
          f"loss D {metrics['loss_d']:7.3f}  G {metrics['loss_g']:7.3f}", file=sys.stderr, flush=True)


def _sample(args: argparse.Namespace) -> int:
    import torch

    from gan.checkpoint import load_generator
    from gan.sampling import generate

    _check_place(args.out)
    loaded = load_generator(args.checkpoint.read_bytes())
    present = [label for label, n in enumerate(loaded.meta["rows_per_class"]) if n]
    wanted = args.classes if args.classes is not None else present
    if strange := [c for c in wanted if not 0 <= c < loaded.spec.classes]:
        raise BadData(f"--classes {strange}: the checkpoint knows 0 … {loaded.spec.classes - 1}")
    labels = np.repeat(np.array(wanted, np.int64), args.per_class)
    if args.seed > LAST_SEED + 1 - len(labels):
        raise BadData(f"--seed {args.seed}: image i has seed + i, and seeds end at {LAST_SEED}")
    seeds = args.seed + np.arange(len(labels), dtype=np.int64)
    if args.reject is not None:
        return _sample_passing(args, loaded, labels, seeds)
    if args.keep is not None:
        raise BadData("--keep is the share of draws that passes --reject HELD_OUT, which was not given")
    images = generate(loaded.net, torch.from_numpy(labels), seeds, truncation=args.truncation).numpy()
    with args.out.open("wb") as file:
        np.savez_compressed(file, images=images, labels=labels, seeds=seeds)
    print(f"{len(images):,} images: {args.out}", file=sys.stderr)
    return 0


def _sample_passing(args: argparse.Namespace, loaded: Any, labels: NDArray[np.int64], seeds: NDArray[np.int64]) -> int:
    """Images that pass the checkpoint's own discriminator, its word calibrated on held-out images."""
    import torch

    from gan.rejection import RejectionSampler
    from gan.sampler import data_digest

    if loaded.meta["recipe"]["objective"] != "adversarial":
        raise BadCheckpoint(f"--reject needs a discriminator; family {loaded.spec.family} has none")
    images, truth = (torch.from_numpy(array) for array in read_npz(args.reject))
    if data_digest(images, truth) == loaded.meta["data"]:
        raise BadData(f"{args.reject} holds the very images that were trained on, which the discriminator knows by heart; "
                      "give real images that it never saw")
    sampler = RejectionSampler(loaded.net, loaded.discriminator, images, truth, loaded.spec.classes, keep=args.keep,
                               truncation=args.truncation)
    kept = sampler.sample(torch.from_numpy(labels), seeds)
    with args.out.open("wb") as file:
        np.savez_compressed(file, images=kept.samples.numpy(), labels=labels, seeds=kept.seeds, draws=kept.draws)
    passed = len(labels) / max(1, int(kept.draws.sum()))
    failed = f"; {int(kept.given_up.sum()):,} rows never passed and hold their best draw" if kept.given_up.any() else ""
    print(f"{len(labels):,} images, {passed:.1%} of the draws passed{failed}: {args.out}", file=sys.stderr)
    return 0


def _info(args: argparse.Namespace) -> int:
    from gan.checkpoint import read_tensors

    tensors, meta = read_tensors(args.checkpoint.read_bytes())
    sizes = {part: sum(t.numel() for name, t in tensors.items() if name.startswith(f"{part}/")) for part in ("g", "d")}
    print(json.dumps(meta | {"weights": sizes}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
