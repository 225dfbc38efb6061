"""Augmentation: identity at p = 0, gradients (first and second) through it, transforms that are what they claim."""

import pytest
import torch
from torch import Tensor

from gan.augment import Augmentation, Draw, apply, draw

ALL = Augmentation(translate=True, geometry=True, flip=True, color=True)


def drawn(what: Augmentation, n: int, p: float, resolution: int = 16, seed: int = 0) -> Draw | None:
    return draw(what, n, p, resolution, torch.Generator().manual_seed(seed))


def test_p_zero_and_nothing_allowed_change_nothing() -> None:
    x = torch.randn(4, 3, 16, 16)
    assert apply(x, drawn(ALL, 4, 0.0)) is x
    assert apply(x, drawn(Augmentation(False, False, False, False), 4, 1.0)) is x


def test_rows_that_were_not_drawn_are_untouched_and_share_is_p() -> None:
    x = torch.rand(4000, 1, 8, 8) * 2 - 1
    out = apply(x, drawn(Augmentation(translate=False, geometry=True), 4000, 0.3, 8))
    changed = (out != x).flatten(1).any(1).float().mean().item()
    assert changed == pytest.approx(0.3, abs=0.04)


def test_translation_moves_whole_pixels() -> None:
    x = torch.arange(256.0).view(1, 1, 16, 16).expand(64, 1, 16, 16) / 128 - 1
    what = drawn(Augmentation(translate=True, geometry=False), 64, 1.0)
    assert what is not None and what.matrix is not None
    out = apply(x, what)
    for row, matrix in zip(out, what.matrix):
        dx, dy = (round(v) for v in (matrix[:, 2] * 8).tolist())
        assert abs(dx) <= 2 and abs(dy) <= 2
        inner = row[0, 3:13, 3:13]
        torch.testing.assert_close(inner, x[0, 0, 3 + dy:13 + dy, 3 + dx:13 + dx], atol=1e-4, rtol=0)


def test_flip_mirrors_left_and_right_only() -> None:
    x = torch.rand(200, 1, 8, 8)
    out = apply(x, drawn(Augmentation(False, False, flip=True, color=False), 200, 1.0, 8))
    mirrored = torch.isclose(out, x.flip(3), atol=1e-5).flatten(1).all(1)
    same = (out == x).flatten(1).all(1)
    assert bool((mirrored | same).all())
    assert 60 < int(mirrored.sum()) < 140


def test_geometry_and_colour_happen_only_where_allowed() -> None:
    x = torch.rand(50, 3, 8, 8)
    what = drawn(Augmentation(False, False, False, color=True), 50, 1.0, 8)
    assert what is not None and what.matrix is None
    out = apply(x, what)
    assert bool((out != x).flatten(1).any(1).all())


@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_flow_and_are_right_twice(channels: int) -> None:
    torch.manual_seed(0)
    what = drawn(ALL, 3, 1.0, 8, seed=5)
    assert what is not None
    # The drawn numbers are constants of float32: in double they are just as good constants.
    x = torch.rand(3, channels, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda i: apply(i, what), (x,))
    assert torch.autograd.gradgradcheck(lambda i: apply(i, what).square(), (x,))


def test_constant_images_stay_constant_under_geometry() -> None:
    x = torch.full((32, 1, 12, 12), -1.0)
    out = apply(x, drawn(Augmentation(True, True, True, False), 32, 1.0, 12))
    torch.testing.assert_close(out, x)


def test_rows_of_a_draw_act_as_in_the_whole() -> None:
    x = torch.rand(8, 3, 12, 12)
    what = drawn(ALL, 8, 0.7, 12)
    assert what is not None
    whole = apply(x, what)
    torch.testing.assert_close(apply(x[3:6], what.rows(slice(3, 6))), whole[3:6])


def test_same_generator_state_same_draw() -> None:
    x: Tensor = torch.rand(8, 1, 12, 12)
    assert torch.equal(apply(x, drawn(ALL, 8, 0.5, 12, 9)), apply(x, drawn(ALL, 8, 0.5, 12, 9)))
    assert not torch.equal(apply(x, drawn(ALL, 8, 0.5, 12, 9)), apply(x, drawn(ALL, 8, 0.5, 12, 10)))
