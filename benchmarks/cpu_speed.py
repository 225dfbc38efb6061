"""Training speed on a CPU: the peak of a convolution here and now, what share of it the default preset uses, and the rest's names.

    python benchmarks/cpu_speed.py [--model auto] [--batch-size 64] [--resolution 32] [--seconds 10] [--set width=32 …] [--compile]

The peak is a 64→64 convolution of 3×3 at 32×32, batch 64, channels_last, forward and backward, in float32 and in bf16, taking turns
with the step, since a machine's clock changes by the second. Operations
of a training step are counted by torch's own counter (a multiplication and an addition are two). Where the time goes is read from
torch's profiler: the time that each operator spends itself, grouped. Convolutions with few channels next to the image run far
below the peak, so they are listed one by one; what `gan.networks.image_side` does about them is measured by taking turns with and
without it. Operations are counted without it, so that none is counted that a textbook's network doesn't have. `gan.frozen` spares
operations: they are counted as they are done, and beside it as they would be without, with its gain by turns. Steps are traced as a run's
are (`gan/traced.py`), and compared with steps as they are written. `--compile` instead
takes turns with both networks compiled by `torch.compile`, and says what compiling takes; it needs a C++ compiler.
"""

import argparse
import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import torch
from gpu import Case, Trainer, timed
from machine import machine
from torch import nn
from torch.profiler import ProfilerActivity, profile

from gan.allocator import keep_freed_memory
from gan.networks import image_side
from gan.recipe import parse_settings
from gan.step import Update
from gan.traced import Traced

CPU = torch.device("cpu")
TURNS = 6
GROUPS = (                                           # the first whose word is part of an operator's name
    ("convolutions, backward", ("convolution_backward", "mkldnn_convolution_backward", "conv_transpose2d_backward")),
    ("convolutions, forward", ("convolution", "conv2d", "conv_transpose")),
    ("linear layers", ("addmm", "aten::mm", "linear", "bmm", "matmul", "aten::dot", "aten::mv")),
    ("normalisation", ("batch_norm", "group_norm", "native_norm")),
    ("optimizers and averages", ("adam", "lerp", "foreach", "rmsprop")),
    ("casts and copies", ("copy_", "to_copy", "contiguous", "clone", "cat", "empty", "aten::to", "fill_", "zero_")),
    ("activations", ("relu", "tanh", "softplus", "sigmoid")),
    ("draws and gathers", ("index", "rand", "normal", "embedding", "searchsorted")),
)


def peak(dtype: torch.dtype, seconds: float) -> float:
    """Operations a second of the convolution, forward and backward."""
    layer = nn.Conv2d(64, 64, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    x = torch.randn(64, 64, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_(True)

    def once() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = layer(x)
        out.backward(torch.ones_like(out))

    return 3 * 2 * 64 * 32 * 32 * 64 * 64 * 9 / timed(once, CPU, seconds)


@contextlib.contextmanager
def torchs_own() -> Iterator[None]:
    """Inside, convolutions next to the image are computed as torch computes them."""
    few, image_side.FEW = image_side.FEW, 0
    try:
        yield
    finally:
        image_side.FEW = few


def asking_each_time(trainer: Trainer) -> Trainer:
    """The same, which asks a frozen classifier that D looks through in both turns, of real images too."""
    update = trainer.update.update if isinstance(trainer.update, Traced) else trainer.update
    assert isinstance(update, Update)
    update.frozen = None
    return trainer


def gains(usual: Callable[[], object], other: Callable[[], object], seconds: float) -> list[float]:
    """How many times as quick a step of `other` is as one of `usual`, by turn."""
    return [timed(usual, CPU, seconds) / timed(other, CPU, seconds) for _ in range(TURNS)]


def told(what: str, found: list[float]) -> str:
    """Mean and standard error of the turns."""
    return (f"{what}: {np.mean(found):.3f} ± {np.std(found, ddof=1) / len(found) ** 0.5:.3f} "
            f"({len(found)} turns, from {min(found):.2f} to {max(found):.2f})")


def compiled(case: Case, seconds: float) -> None:
    """What `torch.compile` brings, and takes first."""
    usual, other = Trainer(case, CPU, "trace"), Trainer(case, CPU, "compile")
    began = time.perf_counter()
    for _ in range(3):
        other()
    print(f"torch.compile: {time.perf_counter() - began:.0f} s until the third step is done")
    print(told("compiled, of the images/s as it is", gains(usual, other, seconds)))


def where_time_goes(trainer: Trainer, steps: int) -> tuple[dict[str, float], list[tuple[str, float]]]:
    """Milliseconds a step by group, and by shape for convolutions."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as traced:
        for _ in range(steps):
            trainer()
    groups: dict[str, float] = defaultdict(float)
    shapes: dict[str, float] = defaultdict(float)
    for event in traced.key_averages(group_by_input_shape=True):
        spent = event.self_cpu_time_total / 1000 / steps
        name = event.key.lower()
        group = next((group for group, words in GROUPS if any(word in name for word in words)), "everything else")
        groups[group] += spent
        if group.startswith("convolutions") and spent > 0:
            sizes = [s for s in event.input_shapes if len(s) == 4][:3]
            shapes[f"{event.key.removeprefix('aten::')} {' · '.join('×'.join(map(str, s)) for s in sizes)}"] += spent
    return groups, sorted(shapes.items(), key=lambda item: -item[1])


def main() -> None:
    """Prints peak, speed, share and the rest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="auto")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--compile", action="store_true", help="torch.compile beside the networks as they are, and nothing else")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    keep_freed_memory()                              # as ganmill's workers do
    torch.set_flush_denormal(True)                   # as the training loop does
    options = parse_settings(args.set)
    print(machine())
    case = Case(args.model, args.model, args.resolution, args.channels, args.batch_size, options)
    if args.compile:
        compiled(case, args.seconds / 3)
        return
    trainer, written = Trainer(case, CPU, "trace"), Trainer(case, CPU)
    with torchs_own():
        flops = Trainer(case, CPU).flops()
        unspared = asking_each_time(Trainer(case, CPU)).flops()
        own = Trainer(case, CPU, "trace")
        timed(own, CPU, 0.0)                         # traced here
    turns = [(peak(torch.float32, args.seconds / 20), peak(torch.bfloat16, args.seconds / 20), timed(trainer, CPU, args.seconds / 5))
             for _ in range(TURNS)]
    peaks, bf16_peaks, steps = (np.array(column) for column in zip(*turns))
    step_s = float(np.mean(steps))
    print(f"convolution peak, {torch.get_num_threads()} thread(s): float32 {np.mean(peaks) / 1e9:.0f} GFLOP/s, "
          f"bf16 {np.mean(bf16_peaks) / 1e9:.0f} GFLOP/s")
    precision = trainer.recipe.precision
    print(f"{trainer.spec.family}, {args.resolution} px, {args.channels} channel(s), batch {args.batch_size}, {precision}: "
          f"{args.batch_size / step_s:,.0f} images/s, {1000 * step_s:.1f} ms a step, {flops / 1e9 / args.batch_size * 1000:.0f} MFLOP an "
          f"image, {flops / step_s / 1e9:.0f} GFLOP/s")
    print(told("of the float32 peak", list(flops / steps / peaks)))
    print(told("of the bf16 peak", list(flops / steps / bf16_peaks)))
    if unspared > flops:
        print(told(f"of the float32 peak, with what gan.frozen spares ({unspared / 1e6 / args.batch_size:.0f} MFLOP an image)",
                   list(unspared / steps / peaks)))
        asking = asking_each_time(Trainer(case, CPU, "trace"))
        print(told("with gan.frozen, of the images/s without", gains(asking, trainer, args.seconds / 6)))
    print(told("with image_side, of the images/s without", gains(own, trainer, args.seconds / 6)))
    print(told("traced (gan.traced), of the images/s of steps as they are written", gains(written, trainer, args.seconds / 6)))
    ideal = 1000 * flops / float(np.mean(bf16_peaks if precision == "bf16" else peaks))
    groups, shapes = where_time_goes(trainer, max(5, round(min(args.seconds, 5) / step_s)))
    total = sum(groups.values())
    print(f"where {total:.1f} ms a step go (profiled; at the peak all operations would take {ideal:.1f} ms):")
    for name, spent in sorted(groups.items(), key=lambda item: -item[1]):
        print(f"  {spent:7.2f} ms  {spent / total:5.1%}  {name}")
    print("the longest convolutions (input or gradient · weight):")
    for name, spent in shapes[:10]:
        print(f"  {spent:7.2f} ms  {name}")


if __name__ == "__main__":
    main()
