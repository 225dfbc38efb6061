"""Training speed on a GPU, with torch and numpy alone: images a second, share of the measured matrix peak, memory.

    python benchmarks/gpu.py [--seconds 20] [--only r3-paper dcgan-rgb32] [--ways kernels graph compile] [--batch 64 512]
                             [--profile] [--cpu]

Each row trains on random images through the update that every run uses: kernel by kernel, as a recorded CUDA graph (what a run
does where it can), or with both networks compiled by `torch.compile`. Operations are counted by torch's own counter over
one step (a multiplication and an addition are two), second derivatives included; the peak is a square matrix product in the
row's precision, measured in the same process right before. `--profile` lists the kernels that a step spends its time in. Without
CUDA the script says so and stops; `--cpu` runs small versions of the rows there, as a check that it works.
"""

import argparse
import contextlib
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))      # a checkout serves; nothing need be installed

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from gan.loop import new_state
from gan.presets import Budget, choose
from gan.recorded import Recorded, why_not
from gan.sampler import Sampler
from gan.step import Moment, Players, Update
from gan.traced import Traced
from gan.workers import Workers

PAPER = {"width": 768, "widest": 1, "blocks": 2, "group_width": 16}   # R3GAN's CIFAR-10 networks: 20.8 M weights each
PUBLISHED = 90.0             # images a second on one L40-class card, as R3GAN's authors report for CIFAR-10


@dataclass(frozen=True)
class Case:
    """One row: what is trained."""

    name: str
    model: str
    resolution: int
    channels: int
    batch_size: int
    options: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case("r3-paper", "r3", 32, 3, 512, PAPER),
    Case("r3", "r3", 32, 3, 512),
    Case("dcgan-rgb32", "dcgan", 32, 3, 512),
    Case("dcgan-grey32", "dcgan", 32, 1, 512),
    Case("sngan-rgb32", "sngan", 32, 3, 512),
    Case("dcgan-rgb64", "dcgan", 64, 3, 256),
)
WAYS = ["kernels", "graph", "compile"]
SMALL = {"r3-paper": {"width": 32, "widest": 1, "blocks": 1, "group_width": 16}, "r3": {"width": 8}}


class Operations(TorchDispatchMode):
    """Counts operations by torch's own formulas. Its FlopCounterMode also follows modules, which a penalty's gradient breaks."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket is torch.ops.aten.convolution_backward:
            self.total += convolution_backward(*args)
        elif func._overloadpacket in flop_registry:
            self.total += int(flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out))
        return out


def convolution_backward(gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> int:
    """Operations of a convolution's gradients: each wanted one costs what the convolution does.

    Torch's own formula multiplies those of a grouped weight by the number of groups.
    """
    transposed, wanted = rest[4], rest[7]
    places = (x if transposed else gradient).shape
    return int(2 * places[0] * places[2:].numel() * weight.numel() * sum(wanted[:2]))


class Trainer:
    """Networks, data and the update of one row, on one device."""

    def __init__(self, case: Case, device: torch.device, way: str = "kernels") -> None:
        self.case, self.device = case, device
        budget = Budget(kimg=20_000.0)               # long: the preset of a GPU with time
        self.spec, self.recipe, _ = choose(case.model, case.resolution, case.channels, [5000] * 10, budget, device.type,
                                           batch_size=case.batch_size, options=case.options)
        rows = 50_000 if device.type == "cuda" else 1000
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (rows, case.channels, case.resolution, case.resolution), dtype=torch.uint8, generator=generator)
        labels = torch.arange(rows) % 10
        self.state = new_state(images, labels, self.spec, self.recipe, 0, device)
        g, d = self.state.g.train(), self.state.d.train()
        if way == "compile":
            g.compile(), d.compile()
        sampler = Sampler(images.to(device), labels.to(device), 10, 1.0, 0, case.batch_size)
        update = Update(Players(g, d, self.state.opt_g, self.state.opt_d), self.recipe, sampler, Workers(1))
        self.update: Update | Recorded | Traced = Recorded(update) if way == "graph" else Traced(update) if way == "trace" else update
        self.control, self.step = torch.zeros(3, device=device), 0

    def __call__(self) -> None:
        """One step of both players."""
        self.update(Moment(self.step, 1.0, self.recipe.augment_p_at(0.5)), self.control)
        self.step += 1

    def weights(self) -> tuple[float, float]:
        """Millions of weights of G and of D."""
        return tuple(sum(p.numel() for p in net.parameters()) / 1e6 for net in (self.state.g, self.state.d))  # type: ignore[return-value]

    def flops(self) -> float:
        """Operations of a step, mean over one round of lazy penalties."""
        rounds = self.recipe.penalty_every * self.recipe.d_steps
        self.step = 0
        with Operations() as counter:
            for _ in range(rounds):
                self()
        return counter.total / rounds


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Seconds that one call of `work` takes, after some calls to warm up."""
    for _ in range(5):
        work()
    synchronize(device)
    began, calls, chunk = time.perf_counter(), 0, 4
    while True:
        for _ in range(chunk):
            work()
        synchronize(device)
        calls += chunk
        if (spent := time.perf_counter() - began) >= seconds:
            return spent / calls
        chunk = max(4, int(0.2 * calls / spent))     # waiting for the device five times a second costs nothing


def matmul_peak(precision: str, device: torch.device) -> float:
    """Operations a second of a square matrix product, measured here and now."""
    side = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / timed(lambda: a @ b, device, 1.0 if device.type == "cuda" else 0.3)


def measure(case: Case, device: torch.device, seconds: float, ways: list[str]) -> None:
    """Prints a row for each way to run the step."""
    trainer = Trainer(case, device)
    flops = trainer.flops()                          # the counter doesn't see through compiled or recorded steps
    best = matmul_peak(trainer.recipe.precision, device)
    for way in ways:
        reason = why_not(trainer.recipe, device, 1) if way == "graph" else None
        if reason is not None:
            print(f"{case.name:<14} no graph: {reason}")
            continue
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        try:
            trainer = Trainer(case, device, way)
            step_s = timed(trainer, device, seconds)
        except Exception as e:  # noqa: BLE001 - torch.compile raises what it likes, and the other rows matter
            print(f"{case.name:<14} {way}: {type(e).__name__}: {str(e).splitlines()[0]}")
            continue
        show(case, trainer, way, step_s, flops, best)


def show(case: Case, trainer: Trainer, way: str, step_s: float, flops: float, best: float) -> None:
    """One row."""
    images_per_s = case.batch_size / step_s
    memory = (torch.cuda.max_memory_allocated(trainer.device) / 2**30 if trainer.device.type == "cuda"
              else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    g, d = trainer.weights()
    compared = case.name == "r3-paper" and trainer.device.type == "cuda"
    note = f"; {images_per_s / PUBLISHED:.1f} times the published {PUBLISHED:g}/s" if compared else ""
    print(f"{case.name:<14} {way:<8} G {g:6.2f} M  D {d:6.2f} M  batch {case.batch_size:4d}  {trainer.recipe.precision:<7}  "
          f"{images_per_s:9,.0f} images/s  {1000 * step_s:8.2f} ms/step  {flops / 1e9:10,.1f} GFLOP/step  {flops / step_s / 1e12:8.3f} "
          f"TFLOP/s = {flops / step_s / best:6.1%} of the peak ({best / 1e12:.2f})  {memory:6.2f} GiB{note}", flush=True)


def profile(case: Case, device: torch.device, rows: int = 12) -> None:
    """Prints the kernels (on a CPU the operations) that take most of a step's time, launched one by one."""
    cuda = device.type == "cuda"
    trainer = Trainer(case, device)
    for _ in range(2):
        trainer()
    synchronize(device)
    with torch.profiler.profile(activities=[getattr(torch.profiler.ProfilerActivity, "CUDA" if cuda else "CPU")]) as found:
        trainer()
        synchronize(device)
    spent = {e.key: (e.self_device_time_total if cuda else e.self_cpu_time_total, e.count) for e in found.key_averages()}
    total = sum(us for us, _ in spent.values())
    for key, (us, count) in sorted(spent.items(), key=lambda item: -item[1][0])[:rows]:
        print(f"{case.name:<14} {us / total:6.1%} {us / 1000:9.2f} ms {count:6d} x  {key[:110]}", flush=True)


def check_host_syncs(case: Case, device: torch.device) -> None:
    """Says whether a step makes the host wait for the device (CUDA only)."""
    trainer = Trainer(case, device)
    for _ in range(3):
        trainer()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with contextlib.suppress(StopIteration):
            trainer()
        print(f"{case.name:<14} no host synchronisation in a step")
    except RuntimeError as e:
        print(f"{case.name:<14} a step makes the host wait: {str(e).splitlines()[0]}")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def shrunk(case: Case) -> Case:
    """A version that a CPU finishes in seconds."""
    return Case(case.name, case.model, min(case.resolution, 32), case.channels, 16, SMALL.get(case.name, {"width": 8}))


def main() -> int:
    """Prints a row a case; exit status 1 where CUDA was asked for and is not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="a row, after warming up")
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS[:2])
    parser.add_argument("--batch", nargs="+", type=int, help="instead of the row's own")
    parser.add_argument("--profile", action="store_true", help="the kernels that take most of the time")
    parser.add_argument("--cpu", action="store_true", help="tiny versions on the CPU: a check of the script, no figure")
    args = parser.parse_args()
    if not args.cpu and not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured (--cpu runs tiny versions on the CPU)", file=sys.stderr)
        return 1
    device = torch.device("cpu" if args.cpu else "cuda")
    torch.set_float32_matmul_precision("high")
    name = platform.processor() or platform.machine() if args.cpu else torch.cuda.get_device_name(device)
    print(f"{name}; torch {torch.__version__}, numpy {np.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}")
    for case in CASES:
        if args.only and case.name not in args.only:
            continue
        for batch_size in [None] if args.cpu else args.batch or [None]:
            chosen = shrunk(case) if args.cpu else replace(case, batch_size=batch_size or case.batch_size)
            measure(chosen, device, min(args.seconds, 1.0) if args.cpu else args.seconds, args.ways)
            if args.profile:
                profile(chosen, device)
        if device.type == "cuda":
            check_host_syncs(case, device)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
