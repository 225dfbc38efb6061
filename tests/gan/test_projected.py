"""The discriminator with a frozen classifier's eyes: what it sees, what stays frozen, what is learnt."""

import pytest
import torch
from torch import Tensor

from gan.classical import ClassicalAugment
from gan.classifier import train_classifier
from gan.loop import new_state, train
from gan.losses import hinge_d, loss_by_name
from gan.networks import NetSpec, build
from gan.networks.projected import Projected
from gan.recipe import Recipe
from gan.sampler import Sampler
from gan.step import Moment, Players, Update, judged
from gan.workers import Workers

Data = tuple[Tensor, Tensor]
SPEC = NetSpec("dcgan", 8, 1, 2, z_dim=8, width=8, options=(("features", 8),))


def discriminator(spec: NetSpec = SPEC) -> Projected:
    d = build(spec, 0)[1]
    assert isinstance(d, Projected)
    return d


def test_taught_classifier_knows_the_classes_and_features_are_standardised(squares: Data) -> None:
    images, labels = squares
    d = discriminator().eval()
    d.teach(images, labels, steps=60, seed=1)
    x = images.float() / 127.5 - 1
    learnt = train_classifier(images, labels, 2, steps=60, seed=1, width=8, architecture="conv",
                              augment=ClassicalAugment.allowed(flip=False, color=False))
    with torch.no_grad():
        late = learnt.body((x - learnt.mean) / learnt.deviation).flatten(1)
        expected = torch.cat([late, learnt.neck(late)], 1)
        torch.testing.assert_close(d.features(x), expected, atol=1e-4, rtol=1e-4)   # batch norm folded, nothing else
        assert (learnt.head(d.features(x)[:, late.shape[1]:]).argmax(1) == labels).float().mean() > 0.98
        seen = (d.features(x) - d.mean) / d.deviation
    assert seen.mean(0).abs().max() < 1e-3
    assert 0.3 < seen.std(0).max() <= 1.0             # the floor of the deviation only shrinks


def test_logits_are_the_critics_plus_those_of_the_features(squares: Data) -> None:
    images, labels = squares
    d = discriminator().eval()
    x, y = images[:6].float() / 127.5 - 1, labels[:6]
    with torch.no_grad():
        d.head = torch.nn.Linear(d.label.embedding_dim, 1)
        for weight in (*d.head.parameters(), d.label.weight):
            weight.zero_()
        torch.testing.assert_close(d(x, y), d.critic(x, y))
        d.label.weight[1] = 1.0
        moved = (d(x, y) - d.critic(x, y)).abs() > 1e-6
    assert torch.equal(moved, y == 1)


def _apart(weight: int) -> NetSpec:
    return NetSpec.from_dict(SPEC.to_dict() | {"options": (*SPEC.options, ("features_weight", weight))})


def test_parts_that_are_apart_have_a_loss_each_and_one_score(squares: Data) -> None:
    images, labels = squares
    apart = _apart(1)
    x, y = images[:6].float() / 127.5 - 1, labels[:6]
    for spec, shape in ((SPEC, (6,)), (apart, (6, 2))):
        d = discriminator(spec).eval()
        with torch.no_grad():
            logits = judged(d, x, y)
            assert logits.shape == shape
            torch.testing.assert_close(logits.view(6, -1).sum(1), d(x, y))
            if spec is apart:
                torch.testing.assert_close(logits[:, 0], d.critic(x, y))
                each = [hinge_d(part, -part) for part in logits.unbind(1)]
                torch.testing.assert_close(hinge_d(logits, -logits), sum(each) / 2)


def test_a_head_that_is_sure_leaves_a_critic_apart_something_to_learn(squares: Data) -> None:
    images, labels = squares
    spec = _apart(1)
    x, y = images[:8].float() / 127.5 - 1, labels[:8]
    for options, learns in ((SPEC, False), (spec, True)):
        d = discriminator(options).eval()
        with torch.no_grad():
            d.head = torch.nn.Linear(d.label.embedding_dim, 1)
            d.head.bias.fill_(100.0)                 # beyond the hinge
        torch.relu(1 - judged(d, x, y)).mean().backward()
        assert any(bool(p.grad is not None and p.grad.abs().max() > 0) for p in d.critic.parameters()) is learns


def test_both_turns_take_the_mean_of_the_parts_losses(squares: Data) -> None:
    apart = _apart(1)
    readings = []
    for spec in (SPEC, apart):
        recipe = Recipe(total_kimg=1.0, batch_size=16, loss="wasserstein", lr_d=1e-12)     # linear, and D stays as it is
        state = new_state(*squares, spec, recipe, 0, torch.device("cpu"))
        sampler = Sampler(*squares, 2, 1.0, 0, 16)
        update = Update(Players(state.g, state.d, state.opt_g, state.opt_d), recipe, sampler, Workers(1))
        readings.append(update(Moment(0), torch.zeros(3))[0])
    for name in ("loss_d", "loss_g"):
        assert readings[0][name].abs() > 1e-4
        torch.testing.assert_close(readings[1][name], readings[0][name] / 2)


def test_the_features_loss_counts_by_its_weight_for_the_generator_alone(squares: Data) -> None:
    found = {}
    for weight in (1, 3):
        recipe = Recipe(total_kimg=1.0, batch_size=16, loss="wasserstein", lr_d=1e-12)
        state = new_state(*squares, _apart(weight), recipe, 0, torch.device("cpu"))
        sampler = Sampler(*squares, 2, 1.0, 0, 16)
        with torch.no_grad():
            state.d.head = torch.nn.Linear(state.d.label.embedding_dim, 1)
            for tensor in (state.d.head.weight, state.d.label.weight):
                tensor.zero_()
            state.d.head.bias.fill_(8.0)             # the head says 8 of any image
        update = Update(Players(state.g, state.d, state.opt_g, state.opt_d), recipe, sampler, Workers(1))
        found[weight] = update(Moment(0), torch.zeros(3))[0]
    critic = -2 * found[1]["loss_g"] - 8.0           # the loss is -(critic + 8) / 2
    torch.testing.assert_close(found[3]["loss_g"], -(critic + 3 * 8.0) / 4)
    torch.testing.assert_close(found[3]["loss_d"], found[1]["loss_d"])


def test_a_paired_loss_is_weighted_part_by_part() -> None:
    real, fake = torch.randn(5, 2, generator=torch.Generator().manual_seed(1)), torch.zeros(5, 2)
    loss = loss_by_name("relativistic")
    each = [loss.for_generator(real[:, i], fake[:, i]) for i in range(2)]
    torch.testing.assert_close(loss.for_generator(real, fake, (1.0, 4.0)), (each[0] + 4 * each[1]) / 5)
    torch.testing.assert_close(loss.for_generator(real, fake, (1.0, 1.0)), loss.for_generator(real, fake))


def test_images_get_a_gradient_through_the_features_alone(squares: Data) -> None:
    d = discriminator().eval()
    d.teach(*squares, steps=20, seed=1)
    y = squares[1][:4]
    x = (squares[0][:4].float() / 127.5 - 1).requires_grad_()
    (d(x, y) - d.critic(x, y)).sum().backward()
    assert x.grad is not None and bool((x.grad.flatten(1).abs().amax(1) > 1e-6).all())


def test_training_leaves_the_classifier_as_it_was_taught(squares: Data) -> None:
    recipe = Recipe(total_kimg=0.32, batch_size=16, loss="hinge")
    state = train(*squares, SPEC, recipe, seed=3)
    taught, untrained = discriminator(), discriminator()
    taught.teach(*squares, steps=recipe.feature_steps_here(), seed=3)
    frozen = {f"{part}.{name}" for part in ("body", "neck") for name, _ in getattr(state.d, part).named_parameters()}
    for name in frozen:
        assert torch.equal(state.d.state_dict()[name], taught.state_dict()[name]), name
        assert not torch.equal(state.d.state_dict()[name], untrained.state_dict()[name]), name
    for name in ("hidden.0.layer.weight", "head.layer.weight", "label.weight", "critic.head.layer.weight"):
        assert not torch.equal(state.d.state_dict()[name], untrained.state_dict()[name]), name
    assert {name for name, p in state.d.named_parameters() if not p.requires_grad} == frozen


def test_one_class_has_nothing_to_teach() -> None:
    assert not isinstance(build(NetSpec("dcgan", 8, 1, 1, options=(("features", 8),)), 0)[1], Projected)


@pytest.mark.parametrize(("budget", "steps"), [
    ({"total_kimg": 1000}, 400), ({"total_kimg": 10}, 40), ({"total_kimg": 0.1}, 1), ({"total_seconds": 30}, 120)])
def test_short_runs_spend_little_on_teaching(budget: dict, steps: int) -> None:
    assert Recipe(**budget).feature_steps_here() == steps


def test_teaching_is_part_of_a_budget_in_seconds(squares: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**6, 3))                  # each look at the clock: three seconds later
    monkeypatch.setattr("gan.loop.time.perf_counter", lambda: float(next(clock)))
    state = train(*squares, SPEC, Recipe(total_seconds=2.5, batch_size=16), seed=0)
    assert state.step == 0 and state.elapsed_s == 3.0
