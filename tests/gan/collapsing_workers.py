"""One of several gloo workers of a training whose G is held at one image a class; run by test_recovery.py: rank world folder."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gan import loop
from gan.checkpoint import TrainState
from gan.loop import Hooks, train
from gan.watch import Alarm
from tests.gan.conftest import dark_and_bright
from tests.gan.test_recovery import RECIPE, SPEC


def hold_at_one_image(states: list[TrainState]) -> None:
    """From 5.5 to the restart: the weights for z stay 0, on every worker alike."""
    original, advance = loop.new_state, loop._Run._advance

    def remember(*args: Any) -> TrainState:
        states.append(original(*args))
        return states[-1]

    def collapse(self: loop._Run) -> None:
        advance(self)
        if states[-1].kimg > 5.5 and not states[-1].restarts:
            with torch.no_grad():
                for g in (states[-1].g, states[-1].ema):
                    g.first.weight.zero_()           # type: ignore[union-attr, operator]

    Alarm.EARLY_KIMG, loop.LOOK_SHARE = 1.0, 1e9     # looks by progress alone, whatever they cost
    loop.new_state, loop._Run._advance = remember, collapse       # type: ignore[assignment, method-assign]


if __name__ == "__main__":
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    hold_at_one_image([])
    told: list[tuple[str, float]] = []
    state = train(*dark_and_bright(), SPEC, RECIPE, seed=0, rank=rank, world=world,
                  hooks=Hooks(on_restart=lambda reason, kimg: told.append((reason, kimg))))
    torch.save({"weights": state.ema.state_dict(), "told": told, "restarts": len(state.restarts), "kimg": state.kimg},
               folder / f"{rank}.pt")
    dist.destroy_process_group()
