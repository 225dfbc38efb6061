"""Training speed on a GPU, with torch and numpy alone: images a second, share of the measured matrix peak, memory.

    python benchmarks/gpu.py [--seconds 20] [--only r3-paper] [--compile] [--cpu]

Each row trains on random images through the update that every run uses. Operations are counted by torch's own counter over
one step (a multiplication and an addition are two), second derivatives included; the peak is a square matrix product in the
row's precision, measured in the same process right before. Without CUDA the script says so and stops; `--cpu` runs small
versions of the rows there, as a check that it works.
"""

import argparse
import contextlib
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))      # a checkout serves; nothing need be installed

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from gan.loop import new_state
from gan.presets import Budget, choose
from gan.sampler import Sampler
from gan.step import Moment, Players, Update
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
SMALL = {"r3-paper": {"width": 32, "widest": 1, "blocks": 1, "group_width": 16}, "r3": {"width": 8}}


class Operations(TorchDispatchMode):
    """Counts operations by torch's own formulas. Its FlopCounterMode also follows modules, which a penalty's gradient breaks."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += int(flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out))
        return out


class Trainer:
    """Networks, data and the update of one row, on one device."""

    def __init__(self, case: Case, device: torch.device, compile_nets: bool) -> None:
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
        if compile_nets:
            g.compile(), d.compile()
        sampler = Sampler(images.to(device), labels.to(device), 10, 1.0, 0, case.batch_size)
        self.update = Update(Players(g, d, self.state.opt_g, self.state.opt_d), self.recipe, sampler, Workers(1))
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
    for _ in range(3):
        work()
    synchronize(device)
    began, calls = time.perf_counter(), 0
    while True:
        for _ in range(4):
            work()
        synchronize(device)
        calls += 4
        if (spent := time.perf_counter() - began) >= seconds:
            return spent / calls


def matmul_peak(precision: str, device: torch.device) -> float:
    """Operations a second of a square matrix product, measured here and now."""
    side = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / timed(lambda: a @ b, device, 1.0 if device.type == "cuda" else 0.3)


def measure(case: Case, device: torch.device, seconds: float, compile_nets: bool) -> None:
    """Prints one row."""
    peak = {precision: matmul_peak(precision, device) for precision in ("float32", "bf16")}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    flops = Trainer(case, device, False).flops()     # the counter doesn't see through compiled graphs
    trainer = Trainer(case, device, compile_nets)
    step_s = timed(trainer, device, seconds)
    images_per_s = case.batch_size / step_s
    memory = (torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda"
              else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    g, d = trainer.weights()
    reached, best = flops / step_s, peak[trainer.recipe.precision]
    compared = case.name == "r3-paper" and device.type == "cuda"
    note = f"; {images_per_s / PUBLISHED:.1f} times the published {PUBLISHED:g}/s" if compared else ""
    print(f"{case.name:<14} G {g:6.2f} M  D {d:6.2f} M  batch {case.batch_size:4d}  {trainer.recipe.precision:<7}  "
          f"{images_per_s:9,.0f} images/s  {1000 * step_s:8.2f} ms/step  {flops / 1e9:10,.1f} GFLOP/step  {reached / 1e12:8.3f} TFLOP/s = "
          f"{reached / best:6.1%} of the peak ({best / 1e12:.2f})  {memory:6.2f} GiB{note}", flush=True)


def check_host_syncs(case: Case, device: torch.device) -> None:
    """Says whether a step makes the host wait for the device (CUDA only)."""
    trainer = Trainer(case, device, False)
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
    parser.add_argument("--only", choices=[case.name for case in CASES])
    parser.add_argument("--compile", action="store_true", help="torch.compile both networks")
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
        if args.only not in (None, case.name):
            continue
        chosen = shrunk(case) if args.cpu else case
        measure(chosen, device, min(args.seconds, 1.0) if args.cpu else args.seconds, args.compile)
        if device.type == "cuda":
            check_host_syncs(chosen, device)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
