"""Means against imbalance that act on how labels are learned: coarse to fine, and noise on the embeddings of rare classes."""

import pytest
import torch
from torch import Tensor

from gan import loop
from gan.errors import BadRecipe
from gan.loop import train
from gan.networks import NetSpec, build
from gan.networks.norm import Embedding, label_tables, pool_, set_label_strength
from gan.recipe import Recipe
from gan.sampler import Sampler
from gan.step import Moment, Players, Update
from gan.workers import Workers

SHORT = Recipe(total_kimg=0.32, batch_size=16)
Data = tuple[Tensor, Tensor]


@pytest.mark.parametrize("family", ["dcgan", "sngan", "wgan", "wgan-gp", "r3"])
def test_at_strength_0_a_label_says_nothing_and_at_1_all(family: str) -> None:
    g, d = (network.eval() for network in build(NetSpec(family, 8, 1, 5, z_dim=8, width=8), seed=0))
    with torch.no_grad():
        for p in [*g.parameters(), *d.parameters()]:
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    z, x = torch.randn(1, 8).expand(5, -1), torch.randn(1, 1, 8, 8).expand(5, -1, -1, -1)
    y = torch.arange(5)

    def differences(strength: float) -> list[float]:
        for network in (g, d):
            set_label_strength(network, strength)
        with torch.no_grad():
            return [float((out - out[:1]).abs().max()) for out in (g(z, y), d(x, y))]

    whole, half, none = differences(1.0), differences(0.5), differences(0.0)
    assert max(none) < 1e-5 < 1e-3 < min(*whole, *half) and half != whole


def test_noise_on_an_embedding_is_in_units_of_the_table() -> None:
    table = Embedding(4, 3, 2.0)
    y = torch.tensor([0, 3])
    clean = table(y)
    table.noise = torch.ones(2, 3)
    size = table.weight.detach().square().mean().sqrt()
    torch.testing.assert_close(table(y), clean + size)


def test_schedules() -> None:
    recipe = Recipe(label_ramp=0.4, class_noise=0.5)
    assert [recipe.label_strength_at(t) for t in (0, 0.2, 0.4, 1)] == pytest.approx([0, 0.5, 1, 1])
    assert Recipe().label_strength_at(0) == 1.0
    assert [recipe.class_noise_of(n) for n in (0, 1, 5000)] == pytest.approx([0, 0.5, 0.005])
    assert recipe.class_noise_of(10) > 2 * recipe.class_noise_of(40)
    pooled = Recipe(class_pooling=2.0)
    assert [pooled.class_pooling_of(n) for n in (0, 1, 2, 10, 1000)] == pytest.approx([0, 1, 0.5, 0.02, 2e-6])


def test_a_rare_class_is_blurred_in_training_and_no_other_is(squares: Data) -> None:
    """What reaches D from G in one step, with and without noise."""
    of_class = [squares[0][squares[1] == c] for c in range(2)]
    images, labels = torch.cat([of_class[0], of_class[1][:1]]), torch.zeros(201, dtype=torch.int64)
    labels[-1] = 1
    made = {}
    for noise in (0.0, 2.0):
        recipe = SHORT.replace({"class_noise": noise, "label_prior_tau": 0.0, "fresh_g_batch": True})
        state = loop.new_state(images, labels, NetSpec("r3", 8, 1, 2, z_dim=8, width=8), recipe, 0, torch.device("cpu"))
        sampler = Sampler(images, labels, 2, 0.0, 0, 16)
        update = Update(Players(state.g, state.d, state.opt_g, state.opt_d), recipe, sampler, Workers(1))
        sampler.begin(0)
        _, y = update._real()
        made[noise] = update._fake(y).detach()
        assert all(table.noise is None for table in update.noisy)
        update(Moment(0), torch.zeros(3))
    changed = (made[0.0] - made[2.0]).flatten(1).abs().amax(1)
    assert changed[y == 1].min() > 5 * changed[y == 0].max() > 0


def test_pooling_draws_each_label_to_the_mean_by_its_share_and_keeps_the_rest() -> None:
    g, d = build(NetSpec("dcgan", 8, 1, 3, z_dim=8, width=8), seed=0)
    tables = label_tables(g) + label_tables(d)
    assert len(tables) == 7                          # G: its label, gain and bias of two norms; D: label and projection
    assert all(len(table) == 3 for table in tables)
    rest = {name: p.clone() for network in (g, d) for name, p in network.named_parameters() if not any(p is t for t in tables)}
    with torch.no_grad():
        tables[1].copy_(torch.tensor([[0.0], [3.0], [9.0]]).expand_as(tables[1]))
    pool_(tables, torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(tables[1][:, 0], torch.tensor([0.0, 3.5, 4.0]))
    assert all(torch.equal(p, rest[name]) for network in (g, d) for name, p in network.named_parameters() if name in rest)


def test_a_step_pools_what_is_learnt_of_a_rare_class_by_the_rates_schedule(squares: Data) -> None:
    """Two steps that differ by the pooling alone: the rare class's row has gone its share of the way, the other's next to none."""
    of_class = [squares[0][squares[1] == c] for c in range(2)]
    images, labels = torch.cat([of_class[0], of_class[1][:2]]), torch.cat([torch.zeros(200, dtype=torch.int64), torch.ones(2).long()])
    tables = {}
    for pooling in (0.0, 2.0):
        recipe = SHORT.replace({"class_pooling": pooling, "lr_g": 1e-3, "lr_d": 1e-3})
        state = loop.new_state(images, labels, NetSpec("dcgan", 8, 1, 2, z_dim=8, width=8), recipe, 0, torch.device("cpu"))
        update = Update(Players(state.g, state.d, state.opt_g, state.opt_d), recipe, Sampler(images, labels, 2, 0.0, 0, 16), Workers(1))
        for optimizer in (state.opt_g, state.opt_d):
            optimizer.param_groups[0]["lr"] = 0.5e-3             # half of the highest: half of the share
        update(Moment(0), torch.zeros(3))
        tables[pooling] = [t.detach() for t in update.of_labels[state.d]]
    share = torch.tensor([2 / 200**2, 2 / 2**2])[:, None] / 2
    for plain, pooled in zip(tables[0.0], tables[2.0]):
        torch.testing.assert_close(pooled, plain + share * (plain.mean(0) - plain))


def test_a_family_without_embeddings_says_so(squares: Data) -> None:
    for change in ({"label_ramp": 0.5}, {"class_noise": 0.5}, {"class_pooling": 0.1}):
        with pytest.raises(BadRecipe, match="class embeddings"):
            train(*squares, NetSpec("mlp", 8, 1, 2, z_dim=4, width=8), SHORT.replace(change), seed=0)


def test_training_follows_the_ramp(squares: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, bool]] = []
    original = Update.__call__

    def spy(self: Update, now: Moment, control: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        seen.append((now.label_strength, now.measure))
        return original(self, now, control)

    monkeypatch.setattr(Update, "__call__", spy)
    train(*squares, NetSpec("sngan", 8, 1, 2, z_dim=4, width=8), SHORT.replace({"label_ramp": 0.5, "metrics_every_s": 1e9}), seed=0)
    assert [strength for strength, _ in seen] == pytest.approx([min(1.0, i / 10) for i in range(20)])
    assert not any(measured for _, measured in seen)
