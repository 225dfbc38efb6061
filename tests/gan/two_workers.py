"""One of several gloo workers of small trainings; run by test_loop.py as a script: rank world folder family …"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from gan.loop import Hooks, train
from gan.networks import NetSpec
from gan.recipe import Recipe
from gan.workers import Workers

# Rounding differs between one batch and two halves of it. After some 15 steps that decides on which side of a kink a number falls.
RECIPE = Recipe(total_kimg=0.192, batch_size=16, loss="relativistic", r1_gamma=0.3, r2_gamma=0.2, penalty_every=2,
                joint_pass=False, augment_p=0.4, label_prior_tau=0.5, metrics_every_s=0.0, warmup=0.1, snapshots=2)


def small_data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (90, 1, 8, 8), generator=generator).to(torch.uint8), torch.arange(90) % 3


@contextlib.contextmanager
def with_two_threads(self: Workers) -> Iterator[None]:
    """What two workers have while one of them does something for both: bits depend on the number of threads."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def run(rank: int, world: int, family: str) -> dict:
    torch.set_num_threads(1)
    metrics: list[dict] = []
    family, *extra = family.split("+")
    recipe = RECIPE.replace({"objective": "reconstruction"} if family == "autoencoder" else {"augment_p": 0.0} if "plain" in extra else {})
    options = (("features", 8),) if "features" in extra else ()
    state = train(*small_data(), NetSpec(family, 8, 1, 3, 8, width=8, options=options), recipe, seed=5, rank=rank, world=world,
                  hooks=Hooks(on_metrics=metrics.append))
    networks = {"g": state.g, "d": state.d, "ema": state.ema, "earlier": state.earlier[0]}
    return {"weights": {f"{name}/{k}": v for name, network in networks.items() for k, v in network.state_dict().items()},
            "losses": [(m["loss_d"], m["loss_g"]) for m in metrics if "loss_d" in m], "step": state.step}


if __name__ == "__main__":
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    torch.save({family: run(rank, world, family) for family in sys.argv[4:]}, folder / f"{rank}.pt")
    dist.destroy_process_group()
