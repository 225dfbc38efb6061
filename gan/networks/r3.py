"""R3: residual blocks without normalisation, for relativistic pairing with R1 and R2 (R3GAN, Huang 2024; written
from the paper).

    block(x) = x + conv1×1₀(act(groupconv3×3(act(conv1×1(x)))))

Inner width is twice the outer; act is LeakyReLU 0.2 after a learned bias; convolutions have no bias; weights start at
N(0, (gain/√fan_in)²) with gain = √(2/1.04)·L^(-1/4) for L residual blocks, a block's last convolution at zero.

Options:
    group_width: channels in a group of the 3×3 convolution; 0 (default): all, dense. Groups save operations and are
        slow on CPUs.
    blocks: residual blocks in a stage (default 1).
    widest: a stage is at most this many times as wide as the one at full resolution, 1 to 16 (default 4).
    embedding: length of a class's vector (default 64).
    label_scale: root mean square of a class's vector in G's modulation, beside a latent's 1, however it is learnt; 0 (default): as it is
        learnt, as in the paper. Where few steps must do, rates are high, the vectors grow past the latent, and G forgets it: all samples
        of a class alike.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gan.errors import UnsupportedSpec
from gan.networks.halving import halve
from gan.networks.norm import Embedding
from gan.networks.smooth import SmoothConv
from gan.networks.spec import Ladder, NetSpec

DEFAULT_WIDTH = 48
WIDEST = 4
EXPANSION = 2
SLOPE = 0.2


class BiasedLeakyRelu(nn.Module):
    """LeakyReLU(x + b), one b a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        # In place: the sum is not kept beside its image, which is a quarter of what a penalty's graph holds.
        return F.leaky_relu(x + self.bias.to(x.dtype).view(1, -1, 1, 1), SLOPE, inplace=True)


def _conv(inner: int, outer: int, kernel: int, gain: float, groups: int = 1) -> SmoothConv:
    conv = SmoothConv(inner, outer, kernel, groups)
    nn.init.normal_(conv.weight, 0.0, gain / math.sqrt(inner // groups * kernel**2))
    return conv


class Block(nn.Module):
    """The residual block of this module's docstring."""

    def __init__(self, width: int, group_width: int, gain: float) -> None:
        super().__init__()
        inner = EXPANSION * width
        groups = inner // group_width if group_width else 1
        self.narrow = _conv(width, inner, 1, gain)
        self.act1 = BiasedLeakyRelu(inner)
        self.spatial = _conv(inner, inner, 3, gain, groups)
        self.act2 = BiasedLeakyRelu(inner)
        self.wide = _conv(inner, width, 1, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.wide(self.act2(self.spatial(self.act1(self.narrow(x)))))


def upsample(x: Tensor) -> Tensor:
    """Twice the side by the filter [1, 3, 3, 1]/4 in each direction, the border repeated: bilinear in effect."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def _widths(spec: NetSpec, ladder: Ladder) -> list[int]:
    """Channels from the base up to full resolution."""
    narrow = spec.width or DEFAULT_WIDTH
    widest = int(spec.option("widest", WIDEST))
    return [min(widest, 1 << (ladder.steps - i)) * narrow for i in range(ladder.steps + 1)]


class Generator(nn.Module):
    """z (n, z_dim), y (n,) → (n, C, H, W) in [-1, 1]; in training the ends may be passed.

    A learned basis modulated by Linear([z, e(y)]), then stages of blocks, the resolution doubled between them.
    """

    def __init__(self, spec: NetSpec, group_width: int, blocks: int) -> None:
        super().__init__()
        self.ladder, self.resolution = Ladder.for_resolution(spec.resolution), spec.resolution
        widths = _widths(spec, self.ladder)
        gain = math.sqrt(2 / (1 + SLOPE**2)) * (blocks * len(widths)) ** -0.25
        embedding = int(spec.option("embedding", 64))
        self.label, self.label_scale = Embedding(spec.classes, embedding, 1.0), float(spec.option("label_scale", 0.0))
        self.modulation = nn.Linear(spec.z_dim + embedding, widths[0], bias=False)
        nn.init.normal_(self.modulation.weight, 0.0, (spec.z_dim + embedding) ** -0.5)
        self.basis = nn.Parameter(torch.randn(widths[0], self.ladder.base, self.ladder.base))
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(w, group_width, gain) for _ in range(blocks))) for w in widths)
        self.matches = nn.ModuleList(
            nn.Identity() if a == b else _conv(a, b, 1, 1.0) for a, b in pairwise(widths))
        self.to_image = _conv(widths[-1], spec.channels, 1, 1.0)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        label = self.label(y).to(z)
        if self.label_scale:
            label = self.label_scale * F.rms_norm(label, label.shape[1:], eps=1e-8)
        strength = self.modulation(torch.cat([z, label], 1))
        h = (self.basis * strength[:, :, None, None]).contiguous(memory_format=torch.channels_last)
        h = self.stages[0](h)
        for match, stage in zip(self.matches, self.stages[1:]):
            h = stage(upsample(match(h)))
        images = self.ladder.crop(self.to_image(h), self.resolution)
        return images if self.training else images.clamp(-1.0, 1.0)  # clamped in training, its gradient would vanish


class Discriminator(nn.Module):
    """x (n, C, H, W), y (n,) → logits (n,): ψ(x) + ⟨e(y), φ(x)⟩."""

    def __init__(self, spec: NetSpec, group_width: int, blocks: int) -> None:
        super().__init__()
        self.ladder = Ladder.for_resolution(spec.resolution)
        widths = _widths(spec, self.ladder)[::-1]
        gain = math.sqrt(2 / (1 + SLOPE**2)) * (blocks * len(widths)) ** -0.25
        embedding = int(spec.option("embedding", 64))
        self.from_image = _conv(spec.channels, widths[0], 1, 1.0)
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(w, group_width, gain) for _ in range(blocks))) for w in widths)
        self.matches = nn.ModuleList(
            nn.Identity() if a == b else _conv(a, b, 1, 1.0) for a, b in pairwise(widths))
        # The generator's basis in reverse: each channel is weighed cell by cell.
        self.basis = nn.Parameter(torch.randn(widths[-1], self.ladder.base, self.ladder.base) / self.ladder.base)
        self.score = nn.Linear(widths[-1], 1, bias=False)
        self.features = nn.Linear(widths[-1], embedding, bias=False)
        for linear in (self.score, self.features):
            nn.init.normal_(linear.weight, 0.0, widths[-1] ** -0.5)
        self.label = Embedding(spec.classes, embedding, embedding**-0.5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.stages[0](self.from_image(self.ladder.pad(x)))
        for match, stage in zip(self.matches, self.stages[1:]):
            h = stage(match(halve(h)))
        flat = (h * self.basis.to(h.dtype)).sum((2, 3)).float()
        with torch.autocast(x.device.type, enabled=False):
            return self.score(flat).squeeze(1) + (self.label(y) * self.features(flat)).sum(1)


def check(spec: NetSpec) -> None:
    """Raises `UnsupportedSpec` where the family can't serve the spec."""
    known = (("group_width", 0, 0, 4096), ("blocks", 1, 1, 16), ("embedding", 64, 1, 1024), ("widest", WIDEST, 1, 16))
    spec.check_options(*(name for name, *_ in known), "label_scale")
    for name, default, low, high in known:
        value = spec.option(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise UnsupportedSpec(f"option {name} {value!r}: must be a whole number from {low} to {high}")
    scale = spec.option("label_scale", 0.0)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 <= scale <= 10:
        raise UnsupportedSpec(f"option label_scale {scale!r}: must be a number from 0 (as it is learnt) to 10")
    inner, group_width = EXPANSION * (spec.width or DEFAULT_WIDTH), spec.option("group_width", 0)
    if group_width and inner % group_width:
        raise UnsupportedSpec(f"option group_width {group_width}: must be 0 (dense) or divide {inner}, twice the width")


def build(spec: NetSpec) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator of the family `r3`."""
    check(spec)
    group_width, blocks = spec.option("group_width", 0), spec.option("blocks", 1)
    return Generator(spec, group_width, blocks), Discriminator(spec, group_width, blocks)
