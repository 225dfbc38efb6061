"""One of two workers that train the same traced and as it is written, through shared memory and through sockets.

Run by test_traced.py as a script: rank folder
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from gan import loop, traced, workers
from gan.loop import train
from gan.networks import NetSpec
from gan.recipe import Recipe
from gan.step import Update

RECIPE = Recipe(total_kimg=0.24, batch_size=16, loss="hinge", penalty_every=2, r1_gamma=0.2, augment_p=0.4, label_prior_tau=0.5)
made: list[traced.Traced] = []


class Kept(traced.Traced):
    def __init__(self, update: Update) -> None:
        super().__init__(update)
        made.append(self)


def weights(record: bool, rank: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    images, labels = torch.randint(0, 256, (90, 1, 8, 8), generator=generator).to(torch.uint8), torch.arange(90) % 3
    spec = NetSpec("dcgan", 8, 1, 3, 8, width=8, options=(("features", 8),))
    state = train(images, labels, spec, RECIPE, seed=5, rank=rank, world=2, record=record)
    return {f"{name}/{k}": v for name, net in (("g", state.g), ("d", state.d), ("ema", state.ema)) for k, v in net.state_dict().items()}


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    traced.LEAST_STEPS = 0
    loop.traced.Traced = Kept                        # type: ignore[misc]
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {"memory": (weights(True, rank), weights(False, rank))}
    workers.meet = lambda world, rank: None          # type: ignore[assignment]
    found["sockets"] = weights(True, rank), weights(False, rank)
    torch.save({**found, "traces": [len(update.traces) for update in made]}, folder / f"{rank}.pt")
    dist.destroy_process_group()
