"""A training step as a CUDA graph: the figures that change from step to step are read from tensors."""

import torch
from torch import Tensor

from gan.graphs import Replay, rates_as_tensors
from gan.recipe import Recipe
from gan.step import Moment, Update


def why_not(recipe: Recipe, device: torch.device, world: int) -> str | None:
    """Why steps of this recipe can't all be one recording; None where they can."""
    if device.type != "cuda":
        return "graphs are CUDA's"
    if world > 1:
        return "several workers meet within a step"
    if recipe.d_steps > 1 or recipe.penalty_every > 1:
        return "not every step does the same"
    if recipe.beta2_start is not None or recipe.label_ramp > 0:
        return "beta2 and the labels' strength are no tensors"
    return "RMSprop counts its steps on the host" if recipe.optimizer != "adam" else None


class Recorded:
    """An `Update` whose step is replayed. Makes the optimizers' rates tensors on the device.

    A step that also measures gradient norms runs kernel by kernel, as does every step where recording fails, which is told.
    """

    def __init__(self, update: Update) -> None:
        self.update, self.device = update, update.device
        self.gamma, self.augment_p = torch.ones((), device=self.device), torch.zeros((), device=self.device)
        augment_p = self.augment_p if update.recipe.augment_p > 0 else 0.0
        self.now = Moment(0, self.gamma, augment_p)
        self.names: list[str] = []
        self.unused = torch.zeros(0, device=self.device)
        self.replay = Replay(self._turn, self.device, update.sampler.generator, update.sampler.renew)
        for optimizer in (update.players.opt_g, update.players.opt_d):
            rates_as_tensors(optimizer, self.device)

    def __call__(self, now: Moment, control: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """As `Update.__call__`; of one worker, so `control` comes back as it is."""
        if now.measure:
            return self.update(now, control)
        self.gamma.fill_(now.gamma_scale)
        self.augment_p.fill_(now.augment_p)
        self.update.begin(now)
        return dict(zip(self.names, self.replay().clone().unbind())), control

    def _turn(self) -> Tensor:
        readings, _ = self.update.turn(self.now, self.unused)
        self.names = list(readings)
        return torch.stack([value.float() for value in readings.values()])
