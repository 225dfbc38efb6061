"""The average's formula, its ramp, and its treatment of buffers."""

import copy

import pytest
import torch
from torch import nn

from gan import ema
from gan.networks.norm import BatchNorm


def test_decay_halves_after_half_life() -> None:
    beta = ema.decay(64, 1000.0, 10**9, 0.05)
    assert beta ** (1000 / 64) == pytest.approx(0.5)


def test_half_life_is_ramped_by_what_was_seen() -> None:
    assert ema.decay(64, 1e9, 20_000, 0.05) == pytest.approx(0.5 ** (64 / 1000))
    assert ema.decay(64, 1e9, 0, 0.05) == 0.0


def test_update_is_the_formula_for_weights_and_buffers() -> None:
    torch.manual_seed(0)
    source = nn.Sequential(nn.Conv2d(1, 3, 3), BatchNorm(3))
    source[1].register_buffer("count", torch.tensor(7))
    average = copy.deepcopy(source)
    before = {k: v.clone() for k, v in average.state_dict().items()}
    with torch.no_grad():
        for p in source.parameters():
            p.add_(torch.randn_like(p))
        source[1].mean.add_(2.0)
        source[1].count.add_(5)
    ema.Average(source, average).update(0.9)
    for name, now in average.state_dict().items():
        theirs = source.state_dict()[name]
        wanted = theirs if not theirs.is_floating_point() else 0.9 * before[name] + 0.1 * theirs
        torch.testing.assert_close(now, wanted)
