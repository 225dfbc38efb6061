"""Every family over the grid of resolutions, channels and classes; refusals by name."""

import pytest
import torch
from torch import Tensor, nn

from gan.errors import GanError, UnknownFamily, UnsupportedSpec
from gan.networks import FAMILIES, Ladder, NetSpec, build, check
from gan.networks.norm import BatchNorm, Embedding, Spectral, labelled_logits
from gan.networks.vae import kl_to_standard_normal

SIZES = [(8, 1, 1), (12, 3, 2), (20, 1, 3), (28, 1, 10), (32, 3, 10), (36, 1, 1000), (64, 3, 4)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("resolution", "channels", "classes"), SIZES)
def test_shapes_and_range(family: str, resolution: int, channels: int, classes: int) -> None:
    spec = NetSpec(family, resolution, channels, classes, z_dim=8, width=8)
    g, d = build(spec, seed=0)
    y = torch.arange(3) % classes
    for training in (True, False):
        g.train(training), d.train(training)
        images = g(torch.randn(3, 8), y)
        assert images.shape == (3, channels, resolution, resolution)
        logits = d(images.clamp(-1, 1), y)
        assert logits.shape == (3,) and logits.dtype == torch.float32 and torch.isfinite(logits).all()
    assert images.min() >= -1 and images.max() <= 1
    assert g.z_dim == 8


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("resolution", range(8, 257, 4))
def test_every_resolution_can_be_built(family: str, resolution: int) -> None:
    check(NetSpec(family, resolution, 3, 7, width=16))


@pytest.mark.parametrize("family", FAMILIES)
def test_largest_resolution_runs(family: str) -> None:
    spec = NetSpec(family, 256, 1, 2, z_dim=4, width=4)
    g, d = build(spec, 0)
    with torch.no_grad():
        images = g(torch.randn(2, 4), torch.tensor([0, 1]))
        assert images.shape == (2, 1, 256, 256) and d(images, torch.tensor([0, 1])).shape == (2,)


@pytest.mark.parametrize("family", FAMILIES)
def test_seed_decides_the_weights_and_nothing_else_is_touched(family: str) -> None:
    spec = NetSpec(family, 16, 1, 3, width=8)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    nets = [build(spec, seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    first, again, other = ([torch.cat([p.flatten() for p in n.parameters()]) for n in pair] for pair in nets)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert not any(torch.equal(a, b) for a, b in zip(first, other))


@pytest.mark.parametrize("family", FAMILIES)
def test_label_reaches_both_players(family: str) -> None:
    g, d = build(NetSpec(family, 16, 1, 3, width=8), 0)
    g.eval(), d.eval()
    z, x = torch.randn(1, 64).expand(2, 64), torch.randn(1, 1, 16, 16).expand(2, 1, 16, 16)
    y = torch.tensor([0, 1])
    images, logits = g(z, y), d(x, y)
    if family == "autoencoder":                              # its label is the mean of its class's codes
        g.code_mean[1] += 1.0
        images = g(z, y)
    assert not torch.equal(images[0], images[1])
    assert logits[0] != logits[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_gets_a_gradient(family: str) -> None:
    g, d = build(NetSpec(family, 16, 1, 3, width=8), 0)
    y = torch.tensor([0, 1, 2, 0])
    (d(g(torch.randn(4, 64), y), y).sum() + getattr(g, "log_sigma", torch.zeros(()))).backward()
    assert [n for n, p in [*g.named_parameters(), *d.named_parameters()] if p.grad is None] == []


def test_conditioning_by_projection_concatenation_or_both() -> None:
    for value, wanted in (("projection", (False, True)), ("concat", (True, False)), ("both", (True, True))):
        _, d = build(NetSpec("dcgan", 16, 1, 3, width=8, options=(("conditioning", value),)), 0)
        assert (d.label is not None, d.projection is not None) == wanted


@pytest.mark.parametrize("change", [
    {"resolution": 30}, {"resolution": 4}, {"resolution": 260}, {"resolution": 32.0}, {"channels": 2}, {"classes": 0},
    {"classes": 1001}, {"z_dim": 0}, {"width": 2}, {"options": (("petals", 3),)},
    {"options": (("conditioning", "magic"),)},
])
def test_impossible_specs_are_refused(change: dict) -> None:
    with pytest.raises(UnsupportedSpec):
        check(NetSpec(**{"family": "dcgan", "resolution": 32, "channels": 1, "classes": 2} | change))


def test_unknown_family_is_named() -> None:
    for function in (check, lambda spec: build(spec, 0)):
        with pytest.raises(UnknownFamily, match=r"biggan.*known: mlp"):
            function(NetSpec("biggan", 32, 1, 2))


def test_spec_survives_json() -> None:
    spec = NetSpec("r3", 32, 3, 10, 32, 24, (("group_width", 8), ("blocks", 2)))
    assert NetSpec.from_dict(spec.to_dict()) == spec
    with pytest.raises(GanError):
        NetSpec.from_dict({"family": "r3"})
    with pytest.raises(GanError):
        NetSpec.from_dict(spec.to_dict() | {"colour": 1})


@pytest.mark.parametrize(("resolution", "base", "top"), [
    (28, 7, 28), (32, 4, 32), (64, 4, 64), (36, 5, 40), (252, 4, 256),
])
def test_ladder(resolution: int, base: int, top: int) -> None:
    ladder = Ladder.for_resolution(resolution)
    assert (ladder.base, ladder.top) == (base, top)
    x = torch.randn(1, 1, top, top)
    assert ladder.crop(x, resolution).shape[-1] == resolution
    middle = ladder.crop(x, resolution)
    torch.testing.assert_close(ladder.crop(ladder.pad(middle), resolution), middle)


def test_batch_norm_equals_torch_and_conditions() -> None:
    torch.manual_seed(0)
    ours, theirs, x = BatchNorm(5), torch.nn.BatchNorm2d(5), torch.randn(6, 5, 4, 4)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.variance, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    conditional = BatchNorm(5, classes=3)
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    with torch.no_grad():
        conditional.gain.copy_(torch.randn(3, 5)), conditional.bias.copy_(torch.randn(3, 5))
    plain = torch.nn.functional.batch_norm(x, None, None, training=True)
    wanted = plain * conditional.gain[y][:, :, None, None] + conditional.bias[y][:, :, None, None]
    torch.testing.assert_close(conditional(x, y), wanted)


def test_r3_blocks_start_as_identity_and_filters_keep_constants() -> None:
    from gan.networks.halving import halve
    from gan.networks.r3 import Block, upsample

    x = torch.randn(2, 8, 8, 8)
    assert torch.equal(Block(8, 0, 1.0)(x), x)
    constant = torch.full((1, 2, 8, 8), 0.7)
    torch.testing.assert_close(halve(constant), constant[..., ::2, ::2])
    torch.testing.assert_close(upsample(constant)[..., ::2, ::2], constant)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    kernel = torch.outer(taps, taps).expand(8, 1, 4, 4)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    wanted = torch.nn.functional.conv2d(padded, kernel, stride=2, groups=8)
    torch.testing.assert_close(halve(x), wanted)


def test_r3_s_activation_leaves_its_argument_alone_and_knows_both_derivatives() -> None:
    from gan.networks.r3 import SLOPE, BiasedLeakyRelu

    act = BiasedLeakyRelu(3).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(act, {"bias": bias}, (x,))  # type: ignore[no-any-return]

    before = x.detach().clone()
    shifted = x + bias[:, None, None]
    assert torch.equal(call(x, bias), torch.where(shifted > 0, shifted, SLOPE * shifted))
    assert torch.equal(x, before)
    assert torch.autograd.gradcheck(call, (x, bias))
    assert torch.autograd.gradgradcheck(lambda x, b: call(x, b).square(), (x, bias))


def test_spectral_weight_has_singular_value_one_and_gradients_know_it() -> None:
    torch.manual_seed(0)
    for layer, x in ((nn.Conv2d(3, 8, 4, 2, 1), torch.randn(2, 3, 8, 8)), (nn.Linear(6, 4), torch.randn(5, 6))):
        spectral = Spectral(layer)
        for _ in range(30):
            spectral(x)
        weight = spectral.normalised().flatten(1)
        assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1.0, abs=1e-4)
        spectral.eval()
        spectral.double()
        flat = layer.weight.detach().double()
        sigma, direction = torch.linalg.matrix_norm(flat.flatten(1), 2), torch.randn_like(flat)
        # W/σ(W) does not change when W grows: the derivative along W itself is 0.
        (gradient,) = torch.autograd.grad((spectral.normalised() * direction).sum(), spectral.layer.weight)
        assert abs((gradient * flat).sum().item()) < 1e-4 * gradient.norm().item() * flat.norm().item()
        assert gradient.norm() > 0 and sigma > 0


@pytest.mark.parametrize("layer", [nn.Conv2d(2, 4, 3), nn.Linear(5, 3)])
def test_spectral_gradient_is_that_of_the_formula(layer: nn.Conv2d | nn.Linear) -> None:
    spectral = Spectral(layer).eval().double()
    flat = layer.weight.detach().flatten(1)
    v = nn.functional.normalize(flat.t() @ spectral.u, dim=0)
    u = nn.functional.normalize(flat @ v, dim=0)
    expected = layer.weight.detach().clone().requires_grad_()
    by_hand = expected / (u @ (expected.flatten(1) @ v))
    torch.testing.assert_close(spectral.normalised(), by_hand)
    direction = torch.randn_like(by_hand)
    (wanted,) = torch.autograd.grad((by_hand * direction).sum(), expected)
    (found,) = torch.autograd.grad((spectral.normalised() * direction).sum(), layer.weight)
    torch.testing.assert_close(found, wanted)


def test_frozen_spectral_weight_is_divided_by_what_its_own_turn_found() -> None:
    torch.manual_seed(0)
    spectral, x = Spectral(nn.Linear(6, 4)), torch.randn(5, 6, requires_grad=True)
    for _ in range(30):
        spectral(x)
    found = (spectral.layer.weight / spectral.normalised()).detach()
    with torch.no_grad():
        spectral.layer.weight.mul_(1.01)             # as its optimizer's step would
    u = spectral.u.clone()
    spectral.requires_grad_(False)
    frozen = spectral.normalised()
    assert torch.equal(spectral.u, u)
    torch.testing.assert_close(spectral.layer.weight / frozen, found)     # the weight grew, σ didn't
    assert torch.autograd.grad(spectral(x).sum(), x)[0].abs().sum() > 0
    spectral.requires_grad_(True)
    torch.testing.assert_close((spectral.layer.weight / spectral.normalised()).detach(), 1.01 * found)


@pytest.mark.parametrize("strength", [1.0, 0.3])
@pytest.mark.parametrize("spectral", [True, False])
def test_logits_of_all_labels_at_once_are_those_looked_up(spectral: bool, strength: float, monkeypatch: pytest.MonkeyPatch) -> None:
    table, linear = Embedding(4, 6, 1.0), nn.Linear(6, 1)
    table.strength = strength
    head = Spectral(linear).eval() if spectral else linear
    h, y, weights = torch.randn(9, 6, requires_grad=True), torch.arange(9) % 4, torch.randn(9)
    found = []
    for few in (256, 3):
        monkeypatch.setattr("gan.networks.norm.FEW_CLASSES", few)
        logits = labelled_logits(h, y, head, table)
        found.append((logits, *torch.autograd.grad((logits * weights).sum(), (h, table.weight, *linear.parameters()))))
    torch.testing.assert_close(found[0][0], head(h).squeeze(1) + (h * table(y)).sum(1), atol=1e-5, rtol=1e-5)
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_kl_and_elbo_are_kingmas() -> None:
    torch.manual_seed(0)
    mean, log_variance = torch.randn(3, 4), torch.randn(3, 4)
    p = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    wanted = torch.distributions.kl_divergence(p, torch.distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(kl_to_standard_normal(mean, log_variance), wanted)
    g, d = build(NetSpec("vae", 8, 1, 2, 4, width=8), 0)
    g.eval(), d.eval()
    x, y, noise = torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 0]), torch.randn(3, 4)
    likelihood, kl = g.elbo(d, x, y, noise)
    code, spread = d.encode(x, y)
    rebuilt = torch.distributions.Normal(g(code + (0.5 * spread).exp() * noise, y), g.log_sigma.exp())
    torch.testing.assert_close(likelihood, rebuilt.log_prob(x).flatten(1).sum(1))
    torch.testing.assert_close(kl, -d(x, y))


def test_group_spread_sees_repetition() -> None:
    from gan.networks.stack import group_spread

    h = torch.randn(6, 3, 2, 2)
    h[4:] = h[4]
    out = group_spread(h, 4)
    assert out.shape == (6, 1, 2, 2) and bool((out[4:] < 2e-3).all())
    torch.testing.assert_close(out[0, 0], (h[:4].var(0, correction=0) + 1e-6).sqrt().mean(0))
    assert torch.equal(out[0], out[3])


@pytest.mark.parametrize("scale", [0.0, 0.25])
def test_r3_s_labels_can_be_kept_from_outgrowing_the_latent(scale: float) -> None:
    g, _ = build(NetSpec("r3", 8, 1, 3, z_dim=64, width=8, options=(("label_scale", scale),) if scale else ()), 0)
    z, y = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3
    seen: list[torch.Tensor] = []
    g.modulation.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, 64:]))
    with torch.no_grad():
        before = g(z, y)
        g.label.weight.mul_(10)                      # as training lets them grow
        after = g(z, y)
    if not scale:
        assert (before - after).abs().mean() > 0.1 and seen[1].square().mean() > 50
        return
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(seen[1].square().mean(1).sqrt(), torch.full((64,), scale))


def test_r3_can_be_built_as_the_papers_cifar10_networks() -> None:
    """Width 768 throughout, two blocks a stage, groups of 16: 20.8 million weights in each (R3GAN 2024)."""
    spec = NetSpec("r3", 32, 3, 10, z_dim=64, width=768, options=(("widest", 1), ("blocks", 2), ("group_width", 16)))
    with torch.device("meta"):
        for network in FAMILIES["r3"].build(spec):
            assert sum(p.numel() for p in network.parameters()) == pytest.approx(20.8e6, rel=0.005)
    with pytest.raises(UnsupportedSpec, match="widest"):
        check(NetSpec("r3", 32, 3, 10, options=(("widest", 0),)))
    with pytest.raises(UnsupportedSpec, match=r"label_scale 11: must be a number from 0"):
        check(NetSpec("r3", 32, 3, 10, options=(("label_scale", 11),)))
