"""A run that has gone wrong goes back to its last good checkpoint, with other draws and lower rates, and says why."""

import torch
import torch.distributed as dist

from gan import checkpoint
from gan.checkpoint import TrainState
from gan.networks import build
from gan.sampler import splitmix64

RATE = 0.5                   # of both learning rates, once for each restart
LEAST_LEFT = 0.1             # share of a budget in seconds under which there is no time to begin again


class Keeper:
    """Knows the last checkpoint that is good: diversity was looked at after it was taken, and was healthy.

    A collapse is noticed some looks after it began, so the newest checkpoint may already hold it.
    """

    def __init__(self, newest: bytes | None = None) -> None:
        self.good: bytes | None = None
        self.newest = newest

    def healthy(self) -> None:
        """What was kept so far is good."""
        self.good = self.newest

    @property
    def best_known(self) -> bytes | None:
        """The good one, else the newest."""
        return self.good or self.newest


def draws_seed(state: TrainState) -> int:
    """Seed of batches, latents and augmentation: another after each restart."""
    return state.seed if not state.restarts else splitmix64(state.seed + 0x9E3779B9 * len(state.restarts)) >> 1


def rewind(state: TrainState, data: bytes | None, reason: str) -> None:
    """Puts the state back to a checkpoint of this run, or to fresh networks of another seed; `reason` is kept in it."""
    reasons = (*state.restarts, reason)
    if data is not None:
        checkpoint.restore(state, data)
        state.restarts = reasons
        return
    state.restarts, state.step, state.finished, state.earlier = reasons, 0, False, ()
    g, d = build(state.spec, draws_seed(state))
    for network, fresh in ((state.g, g), (state.d, d), (state.ema, g)):
        network.load_state_dict(fresh.state_dict())
    state.opt_g.state.clear()
    state.opt_d.state.clear()


def from_first_worker(data: bytes | None, world: int, device: torch.device) -> bytes | None:
    """Rank 0's bytes on every worker; a collective operation."""
    if world == 1:
        return data
    length = torch.tensor([-1 if data is None else len(data)], device=device)
    dist.broadcast(length, 0)
    if length.item() < 0:
        return None
    content = (torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device) if data is not None and dist.get_rank() == 0
               else torch.empty(int(length), dtype=torch.uint8, device=device))
    dist.broadcast(content, 0)
    return bytes(content.cpu().numpy())


def too_late(t: float, in_seconds: bool) -> bool:
    """Is it too late in the run to begin again?"""
    return in_seconds and 1 - t < LEAST_LEFT
