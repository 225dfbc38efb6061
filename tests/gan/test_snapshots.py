"""Generators kept along a run and sampled together: which make what, what a checkpoint carries, what a restart forgets."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gan.checkpoint import load_generator, read_tensors, restore, write_tensors
from gan.errors import BadCheckpoint, BadRecipe
from gan.loop import Hooks, new_state, train
from gan.networks import NetSpec
from gan.presets import SNAPSHOTS, Budget, choose
from gan.recipe import MOST_SNAPSHOTS, Recipe
from gan.recovery import rewind
from gan.sampling import Mixture, generate, latents, uniforms
from gan.validation import Validation

SPEC = NetSpec("dcgan", 8, 1, 2, z_dim=8, width=8)
RECIPE = Recipe(total_kimg=0.48, batch_size=16, snapshots=3, checkpoints=6, lr_g=3e-3, lr_d=3e-3)
Data = tuple[Tensor, Tensor]
Kept = list[tuple[bytes, dict]]


class Grey(nn.Module):
    """Images of one level, but for the first pixel, which tells of the latent."""

    z_dim = 4

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        images = self.level.expand(len(z), 1, 2, 2).clone()
        images[:, 0, 0, 0] = torch.tanh(z[:, 0] + y)
        return images


@pytest.fixture(scope="module")
def made(squares: Data) -> Kept:
    kept: Kept = []
    train(*squares, SPEC, RECIPE, seed=4, hooks=Hooks(on_checkpoint=lambda *a: kept.append(a)))
    return kept


def test_each_seed_has_its_member_each_member_as_many() -> None:
    mixture, seeds = Mixture([Grey(-1.0), Grey(0.0), Grey(1.0)]), np.arange(30_000, dtype=np.int64) * 7 - 100
    chosen = mixture.choose(seeds)
    assert np.abs(np.bincount(chosen, minlength=3) - 10_000).max() < 5 * np.sqrt(30_000 * 2 / 9)
    levels = generate(mixture, torch.zeros(len(seeds), dtype=torch.int64), seeds)[:, 0, 1, 1]
    assert np.array_equal(levels.numpy(), np.array([0, 128, 255])[chosen])
    for number in range(3):                                  # nothing else that a seed decides leans on its member
        mine = seeds[chosen == number]
        assert abs(float(latents(mine, 4).mean())) < 5 / np.sqrt(4 * len(mine))
        assert abs(uniforms(mine).mean() - 0.5) < 5 / np.sqrt(12 * len(mine))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-2**62, 2**62), min_size=1, max_size=40), st.integers(1, 9), st.floats(0, 2))
def test_a_sample_follows_from_its_seed_and_label_alone(seeds: list[int], batch_size: int, truncation: float) -> None:
    mixture, rows = Mixture([Grey(-0.5), Grey(0.5)]), np.array(seeds, np.int64)
    labels = torch.arange(len(seeds)) % 2
    whole = generate(mixture, labels, rows, truncation=truncation)
    assert torch.equal(whole, generate(mixture, labels, rows, batch_size, truncation=truncation))
    alone = [generate(mixture.members[int(mixture.choose(rows[i:i + 1])[0])], labels[i:i + 1], rows[i:i + 1], truncation=truncation)
             for i in range(len(seeds))]
    assert torch.equal(whole, torch.cat(alone))
    assert mixture.training                                  # as it was


def test_no_sample_of_a_mixture_is_no_image() -> None:
    assert len(generate(Mixture([Grey(0.0), Grey(1.0)]), torch.empty(0, dtype=torch.int64), np.empty(0, np.int64))) == 0


def test_a_run_keeps_its_average_at_even_points_and_ends_with_the_last(made: Kept) -> None:
    assert [meta["earlier"] for _, meta in made] == [0, 1, 1, 2, 2, 2]   # thirds of the run, carried by the checkpoint there
    last = load_generator(made[-1][0]).net
    assert isinstance(last, Mixture) and len(last.members) == 3 and not last.training
    for member, (data, _) in zip(last.members, (made[1], made[3], made[5])):
        tensors = read_tensors(data)[0]
        for name, weight in member.state_dict().items():
            assert torch.equal(weight, tensors[f"ema/{name}"]), name
    first = load_generator(made[0][0]).net
    assert not isinstance(first, Mixture)                    # before the first of them there is one alone


def test_they_begin_after_the_share_of_the_run_that_is_asked(squares: Data) -> None:
    kept: Kept = []
    recipe = RECIPE.replace({"checkpoints": 12, "snapshots_from": 0.5})
    whole = train(*squares, SPEC, recipe, seed=4, hooks=Hooks(on_checkpoint=lambda *a: kept.append(a))).sampler.state_dict()
    assert [meta["earlier"] for _, meta in kept] == [0] * 7 + [1, 1, 2, 2, 2]        # at 4, 5 and 6 sixths, the last of them at the end
    for data, _ in (kept[2], kept[6], kept[8]):      # before the first, just before it, and between
        resumed = train(*squares, SPEC, recipe, seed=4, resume=data).sampler.state_dict()
        assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_resumed_run_ends_with_the_same_generators(made: Kept, squares: Data) -> None:
    whole = load_generator(made[-1][0]).net.state_dict()
    for data, _ in made[:-1]:
        resumed = train(*squares, SPEC, RECIPE, seed=4, resume=data).sampler.state_dict()
        assert whole.keys() == resumed.keys() and all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_without_an_average_the_generator_itself_is_kept(squares: Data) -> None:
    state = train(*squares, SPEC, RECIPE.replace({"ema_half_life_kimg": 0.0, "snapshots": 2}), seed=4)
    assert state.ema is state.g and len(state.earlier) == 1
    assert any(not torch.equal(a, b) for a, b in zip(state.g.parameters(), state.earlier[0].parameters()))
    assert not any(p.requires_grad for p in state.earlier[0].parameters())


def test_a_restart_has_the_snapshots_of_its_checkpoint_or_none(made: Kept, squares: Data) -> None:
    state = new_state(*squares, SPEC, RECIPE, 4, torch.device("cpu"))
    restore(state, made[-1][0])
    assert len(state.earlier) == 2
    rewind(state, made[1][0], "a planted reason")
    assert len(state.earlier) == 1
    rewind(state, None, "another")
    assert state.earlier == () and state.sampler is state.ema


def test_the_score_is_of_what_will_be_sampled(squares: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gan.validation.EVERY_KIMG", 0.2)
    images, labels = squares
    recipe, kept = RECIPE.replace({"checkpoints": 2, "snapshots": 2}), []
    train(images, labels, SPEC, recipe, seed=4, held_out=(images, labels), hooks=Hooks(on_checkpoint=lambda *a: kept.append(a)))
    loaded, score = load_generator(kept[-1][0]).net, Validation(images, labels, 2, 4).score
    assert isinstance(loaded, Mixture)
    assert kept[-1][1]["validation"] == pytest.approx(score(loaded)[0]) != pytest.approx(score(loaded.members[1])[0])


@pytest.mark.parametrize("count", [-1, 1.0, "1", None, MOST_SNAPSHOTS, 3])
def test_a_checkpoint_that_lies_about_its_snapshots_is_refused(made: Kept, count: object) -> None:
    tensors, meta = read_tensors(made[-1][0])
    with pytest.raises(BadCheckpoint):
        load_generator(write_tensors(tensors, meta | {"earlier": count}))


@pytest.mark.parametrize("count", [0, MOST_SNAPSHOTS + 1, 1.5, True])
def test_a_recipe_refuses_a_number_that_makes_no_sense(count: object) -> None:
    with pytest.raises(BadRecipe, match="snapshots"):
        Recipe().replace({"snapshots": count})


@pytest.mark.parametrize("share", [-0.1, 1, "half", None, True])
def test_a_recipe_refuses_a_share_that_leaves_no_run(share: object) -> None:
    with pytest.raises(BadRecipe, match="snapshots_from"):
        Recipe().replace({"snapshots_from": share})


def test_presets_take_several_for_few_images_and_a_budget_to_learn_in() -> None:
    def snapshots(images: int, budget: Budget, model: str = "auto", channels: int = 1, device: str = "cpu", **options: object) -> int:
        return choose(model, 28, channels, [images] * 10, budget, device, options=options)[1].snapshots

    assert snapshots(10, Budget(kimg=100)) == snapshots(100, Budget(seconds=150)) == snapshots(100, Budget(kimg=100), "sngan") == SNAPSHOTS
    assert snapshots(101, Budget(kimg=100)) == snapshots(10, Budget(kimg=99)) == snapshots(10, Budget(seconds=119)) == 1
    assert snapshots(10, Budget(kimg=499), channels=3) == snapshots(10, Budget(seconds=599), channels=3) == 1
    assert snapshots(10, Budget(kimg=500), channels=3) == snapshots(10, Budget(seconds=600), channels=3) == SNAPSHOTS
    assert snapshots(10, Budget(seconds=50), channels=3, device="cuda") == SNAPSHOTS
    assert snapshots(10, Budget(seconds=9), device="cuda") == 1
    assert snapshots(10, Budget(kimg=100), "vae") == 1       # its images only get better
    assert snapshots(10, Budget(kimg=100), snapshots=2) == 2
    assert "5 generators kept along the run" in choose("auto", 28, 1, [10] * 10, Budget(kimg=100))[2]
    assert "kept" not in choose("auto", 28, 1, [500] * 10, Budget(kimg=100))[2]
