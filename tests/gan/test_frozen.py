"""Features that both turns of a step share: the same step at a third of the passes, and only where it is the same."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gan import frozen
from gan.augment import Augmentation
from gan.frozen import FrozenFeatures, can_be_shared
from gan.loop import new_state
from gan.networks import NetSpec
from gan.networks.projected import Projected
from gan.recipe import Recipe
from gan.sampler import Sampler
from gan.step import Moment, Players, Update
from gan.workers import Workers

Data = tuple[Tensor, Tensor]
LONG = Recipe(total_kimg=1.0, batch_size=16, loss="hinge")       # 400 images, 1,000 shown
OPTIONS = (("features", 8), ("features_weight", 2))


def fresh(data: Data, recipe: Recipe) -> Update:
    """An update whose discriminator was taught a little."""
    state = new_state(*data, NetSpec("dcgan", 8, 1, 2, z_dim=8, width=8, options=OPTIONS), recipe, 0, torch.device("cpu"))
    assert isinstance(state.d, Projected)
    state.d.teach(*data, 10, 0)
    sampler = Sampler(*data, 2, 1.0, 0, recipe.batch_size)
    return Update(Players(state.g.train(), state.d.train(), state.opt_g, state.opt_d), recipe, sampler, Workers(1))


def after(update: Update, steps: int = 4) -> tuple[dict[str, Tensor], int]:
    """Weights of both players after some steps, and how many images the frozen classifier was asked of meanwhile."""
    d = update.players.d
    assert isinstance(d, Projected)
    asked: list[int] = []
    features = d.features

    def listening(x: Tensor) -> Tensor:
        asked.append(len(x))
        return features(x)

    d.features = listening  # type: ignore[method-assign]
    for step in range(steps):
        update(Moment(step), torch.zeros(3))
    networks = {"g": update.players.g, "d": d}
    return {f"{n}/{k}": v for n, net in networks.items() for k, v in net.state_dict().items()}, sum(asked)


@pytest.mark.parametrize("change", [
    {}, {"joint_pass": False}, {"loss": "relativistic"}, {"d_steps": 2}, {"precision": "bf16"}, {"r1_gamma": 0.1}])
def test_a_step_with_shared_features_is_the_step_without(change: dict[str, Any], squares: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = fresh(squares, LONG.replace(change))
    assert shared.frozen is not None and shared.frozen.known is not None
    monkeypatch.setattr(frozen, "LARGEST_BYTES", 0)
    halfway = fresh(squares, LONG.replace(change))
    assert halfway.frozen is not None and halfway.frozen.known is None
    monkeypatch.setattr("gan.step.can_be_shared", lambda recipe: False)
    plain = fresh(squares, LONG.replace(change))
    assert plain.frozen is None
    wanted, _ = after(plain)
    for update in (shared, halfway):
        for name, tensor in after(update)[0].items():
            # bf16 rounds by the batch that it multiplies; the generator's statistics follow.
            tolerance = 2e-2 if change.get("precision") == "bf16" else 2e-5
            torch.testing.assert_close(tensor, wanted[name], atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def test_of_three_passes_a_step_one_is_left(squares: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    assert after(fresh(squares, LONG))[1] == 4 * 16
    monkeypatch.setattr(frozen, "LARGEST_BYTES", 0)
    assert after(fresh(squares, LONG))[1] == 4 * 2 * 16
    monkeypatch.setattr("gan.step.can_be_shared", lambda recipe: False)
    assert after(fresh(squares, LONG))[1] == 4 * 3 * 16


@pytest.mark.parametrize(("change", "shared"), [
    ({}, True), ({"augment_p": 0.2}, False), ({"fresh_g_batch": True}, False),
    ({"augment_p": 0.2, "augment": Augmentation(translate=False, geometry=False)}, True),
    ({"augment_p": 0.2, "augment": Augmentation(translate=False, geometry=False, color=True)}, False)])
def test_only_images_that_stay_as_they_are_share_features(change: dict[str, Any], shared: bool) -> None:
    assert can_be_shared(LONG.replace({k: vars(v) if isinstance(v, Augmentation) else v for k, v in change.items()})) is shared


@pytest.mark.parametrize(("budget", "known"), [
    ({"total_kimg": 0.8}, True), ({"total_kimg": 0.79}, False), ({"total_seconds": 1.6}, True), ({"total_seconds": 1.5}, False)])
def test_features_are_kept_where_each_image_is_shown_twice(budget: dict[str, float], known: bool, squares: Data) -> None:
    update = fresh(squares, LONG.replace(budget))
    assert update.frozen is not None and (update.frozen.known is not None) is known


def test_kept_features_are_the_classifiers_own(squares: Data) -> None:
    update = fresh(squares, LONG)
    d = update.players.d
    assert isinstance(d, Projected)
    keeper = FrozenFeatures(d, squares[0], LONG)
    rows = torch.tensor([7, 399, 7])
    x = squares[0][rows].float() / 127.5 - 1
    fake = torch.zeros(2, 1, 8, 8, requires_grad=True)
    real, generated = keeper(x, rows, fake)
    torch.testing.assert_close(real, d.standardised(x), atol=1e-5, rtol=1e-5)
    generated.sum().backward()
    assert not real.requires_grad and fake.grad is not None and bool(fake.grad.abs().max() > 0)
