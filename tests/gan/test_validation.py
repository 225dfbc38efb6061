"""The score by which a checkpoint is chosen: what it sees, when it is taken, and that it changes nothing."""

import pytest
import torch
from torch import Tensor, nn

from gan import loop
from gan.errors import BadData
from gan.loop import Hooks, train
from gan.networks import NetSpec
from gan.recipe import Recipe
from gan.sampler import as_float
from gan.validation import GROUPS, Validation, standard_error, stride

Data = tuple[Tensor, Tensor]
SPEC = NetSpec("dcgan", 8, 1, 2, z_dim=8, width=8)


class Showing(nn.Module):
    """A generator that shows given images by label: row after row, or always the first."""

    z_dim = 4

    def __init__(self, images: Tensor, labels: Tensor, *, swap: bool = False, one: bool = False, noise: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.of_class = [as_float(images[labels == (c ^ int(swap))]) for c in range(2)]
        self.one, self.noise = one, noise

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        which = torch.zeros(len(z)) if self.one else (z[:, 0].abs() * 1e4)
        x = torch.stack([self.of_class[int(c) % 2][int(w) % len(self.of_class[int(c) % 2])] for c, w in zip(y, which)])
        return (x + self.noise * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)


def test_the_score_knows_wrong_labels_dull_classes_and_noise(squares: Data) -> None:
    images, labels = squares
    judge = Validation(images[:200], labels[:200], 2, seed=0)
    others = images[200:], labels[200:]
    real = judge.score(Showing(*others))[0]
    assert real < 0.02 and judge.score(Showing(*others))[0] == real
    for worse in ({"swap": True}, {"one": True}, {"noise": 0.3}):
        assert judge.score(Showing(*others, **worse))[0] > 5 * real + 0.02, worse


def test_leaving_groups_out_says_how_far_a_difference_is_to_be_trusted(squares: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it scatters over other images."""
    images, labels = squares
    generators = Showing(images, labels, noise=0.3), Showing(images, labels, noise=0.32)

    def difference(rows: Tensor) -> tuple[float, float]:
        (a, without_a), (b, without_b) = (Validation(images[rows], labels[rows], 2, seed=0).score(g) for g in generators)
        assert len(without_a) == min(GROUPS, len(rows))
        return b - a, standard_error(without_a, without_b)

    monkeypatch.setattr("gan.validation.ROWS", 200)
    found = torch.tensor([difference(torch.randperm(len(images), generator=torch.Generator().manual_seed(k))[:48]) for k in range(12)])
    true, told = found[:, 0].std(), found[:, 1].square().mean().sqrt()
    assert 0.5 < told / true < 2.5, (told, true)                            # rather too careful where a group left out tilts the labels
    judge = Validation(images[:16], labels[:16], 2, seed=0)
    assert judge.score(generators[0]) == judge.score(generators[0])
    assert standard_error([1.0, 2.0, 3.0], [0.5, 1.5, 2.5]) == standard_error([], []) == 0
    # Of a mean of 30 values the jackknife gives the usual standard error, whichever thirds are left out.
    values = torch.randn(3, 10, generator=torch.Generator().manual_seed(0)).double()
    without = [float(values[[k for k in range(3) if k != g]].mean()) for g in range(3)]
    assert standard_error(without, [0.0] * 3) == pytest.approx(float(values.mean(1).std()) / 3**0.5)


def test_more_classes_than_directions_and_few_images() -> None:
    images = torch.randint(0, 256, (80, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    judge = Validation(images, torch.arange(80), 80, seed=0)
    assert judge.score(Showing(images, torch.arange(80) % 2))[0] > 0
    same = Validation(images[:1], torch.zeros(1, dtype=torch.int64), 1, seed=0)
    assert same.score(Showing(images, torch.arange(80) % 2))[0] > 0
    with pytest.raises(BadData, match="no images"):
        Validation(images[:0], torch.zeros(0, dtype=torch.int64), 1, seed=0)


@pytest.mark.parametrize(("change", "want"), [
    ({"total_kimg": 10.0}, None), ({"total_seconds": 15.0}, None),                    # too short for any
    ({"total_kimg": 1000.0}, 1), ({"total_kimg": 100.0}, 2), ({"total_kimg": 40.0}, 5),
    ({"total_seconds": 150.0}, 2), ({"total_seconds": 40.0}, 5), ({"total_seconds": 3600.0}, 1),
    ({"total_kimg": 100.0, "checkpoint_every_kimg": 0.5}, 40), ({"total_kimg": 100.0, "checkpoint_every_s": 5.0}, 1),
])
def test_scores_are_rare(change: dict, want: int | None) -> None:
    assert stride(Recipe(**change)) == want


@pytest.fixture
def every_fifth_kimg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gan.validation.EVERY_KIMG", 0.5)
    monkeypatch.setattr("gan.validation.ROWS", 100)


def test_scores_change_nothing_and_survive_an_interruption(squares: Data, every_fifth_kimg: None) -> None:
    images, labels = squares
    data, held_out = (images[:300], labels[:300]), (images[300:], labels[300:])
    recipe = Recipe(total_kimg=2.0, batch_size=16, checkpoints=8, joint_pass=False)

    def run(**options: object) -> tuple[loop.TrainState, dict[float, float | None], list[bytes]]:
        found: dict[float, float | None] = {}
        kept: list[bytes] = []

        def on_checkpoint(checkpoint: bytes, meta: dict) -> None:
            found[meta["kimg"]] = meta.get("validation")
            kept.append(checkpoint)

        stop = options.pop("should_stop", None)
        state = train(*data, SPEC, recipe, seed=2, hooks=Hooks(on_checkpoint=on_checkpoint, should_stop=stop), **options)  # type: ignore[arg-type]
        return state, found, kept

    whole, scores, _ = run(held_out=held_out)
    bare, none, _ = run()
    assert list(scores) == list(none) and set(none.values()) == {None}
    for name, tensor in whole.g.state_dict().items():
        assert torch.equal(bare.g.state_dict()[name], tensor), name
    assert [k for k, v in scores.items() if v is not None] == pytest.approx([0.512, 1.008, 1.504, 2.0], abs=0.01)
    calls = iter(range(1000))
    _, before, kept = run(held_out=held_out, should_stop=lambda: next(calls) == 50)
    _, after, _ = run(held_out=held_out, resume=kept[-1])
    assert {k: v for k, v in (before | after).items() if v is not None} == {k: v for k, v in scores.items() if v is not None}
