"""Exponential moving average of a network's weights."""

import torch
from torch import Tensor, nn


def decay(batch: int, half_life_images: float, seen: int, ramp: float) -> float:
    """β = 0.5^(batch / half_life), half_life = min(half_life_images, ramp · seen), all in images (Karras 2020).

    With nothing seen yet the half-life is 0 and β is 0: the average starts as a copy.
    """
    half_life = min(half_life_images, ramp * seen)
    return 0.5 ** (batch / half_life) if half_life > 0 else 0.0


class Average:
    """`average` ← β · average + (1 - β) · source, for parameters and floating buffers; other buffers are copied."""

    def __init__(self, source: nn.Module, average: nn.Module) -> None:
        self._source: list[Tensor] = []
        self._average: list[Tensor] = []
        self._copied: list[tuple[Tensor, Tensor]] = []
        ours, theirs = average.state_dict(keep_vars=True), source.state_dict(keep_vars=True)
        for name, tensor in theirs.items():
            if tensor.is_floating_point():
                self._source.append(tensor)
                self._average.append(ours[name])
            else:
                self._copied.append((tensor, ours[name]))

    @torch.no_grad()
    def update(self, beta: float) -> None:
        """One step of the average."""
        torch._foreach_lerp_(self._average, self._source, 1.0 - beta)
        for theirs, ours in self._copied:
            ours.copy_(theirs)
