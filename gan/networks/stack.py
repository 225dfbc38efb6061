"""The convolutional pair that several families share: transposed convolutions up, strided convolutions down.

A family's file says which form it takes; `Form` lists what can vary. One-hot planes beside the image are the same as
a learned bias for each class after the first convolution (but at the border), at none of their cost; a one-hot vector
beside z is an embedding added after the first linear layer.
"""

import dataclasses
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gan.errors import UnsupportedSpec
from gan.networks.image_side import ImageConv2d, ImageConvTranspose2d
from gan.networks.norm import BatchNorm, Embedding, Spectral, labelled_logits
from gan.networks.projected import Projected
from gan.networks.spec import Ladder, NetSpec

WIDEST = 512


@dataclass(frozen=True)
class Form:
    """What a convolutional family decides; each field is also an option of the family.

    Attributes:
        conditioning: how D learns the label: concat (Mirza 2014) | projection (Miyato & Koyama 2018) | both.
        d_norm: batch | spectral (Miyato 2018) | group (one group: layer norm) | none.
        class_norm: G's batch norm has gain and bias for each class.
        g_narrow, d_narrow: channels next to the image, doubled with each halving of the side.
        g_blocks: residual 3×3 convolutions at G's base, where a convolution is cheap.
        d_blocks: plain 3×3 convolutions at D's base.
        largest_base: side of the smallest map is at most this.
        minibatch_std: rows in a group whose spread D sees as one more feature map (Karras 2018); 0: none.
        hidden: units of a hidden linear layer before D's output; 0: none.
        features: width of a frozen classifier whose features D sees too (`gan.networks.projected`); 0: none.
        features_weight: what sees these features has a loss of its own, which counts so many times the critic's for G; 0: it shares the
            critic's loss.
    """

    conditioning: str = "concat"
    d_norm: str = "batch"
    class_norm: bool = False
    g_narrow: int = 64
    d_narrow: int = 32
    g_blocks: int = 0
    d_blocks: int = 0
    largest_base: int = 8
    minibatch_std: int = 0
    hidden: int = 0
    features: int = 0
    features_weight: int = 0

    def for_spec(self, spec: NetSpec) -> "Form":
        """This form with the spec's options and width.

        Raises:
            UnsupportedSpec: an option is unknown, of the wrong type, or none of its choices.
        """
        known = {f.name: f for f in dataclasses.fields(self)}
        spec.check_options(*known)
        for name, value in spec.options:
            default = getattr(self, name)
            if type(value) is not type(default):
                raise UnsupportedSpec(f"option {name} {value!r}: must be like {default!r}")
            if isinstance(value, int) and not 0 <= value <= 2048:
                raise UnsupportedSpec(f"option {name} {value!r}: must be from 0 to 2048")
        form = dataclasses.replace(self, **dict(spec.options))  # type: ignore[arg-type]
        if form.conditioning not in ("concat", "projection", "both"):
            raise UnsupportedSpec(f"option conditioning {form.conditioning!r}: must be concat, projection or both")
        if form.d_norm not in ("batch", "spectral", "group", "none"):
            raise UnsupportedSpec(f"option d_norm {form.d_norm!r}: must be batch, spectral, group or none")
        if spec.width is not None:
            d_narrow = max(4, spec.width * form.d_narrow // form.g_narrow)
            form = dataclasses.replace(form, g_narrow=spec.width, d_narrow=d_narrow)
        return form


def widths(narrow: int, steps: int) -> list[int]:
    """Channels from the image inwards."""
    return [min(WIDEST, narrow << i) for i in range(steps)]


class Residual(nn.Module):
    """x + norm(conv3×3(relu(x))), x (n, c, s, s), y (n,)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = BatchNorm(channels, classes)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + self.norm(self.conv(F.relu(x)), y)


class Generator(nn.Module):
    """z (n, z_dim), y (n,) → (n, C, H, W) in [-1, 1]."""

    def __init__(self, spec: NetSpec, form: Form) -> None:
        super().__init__()
        self.ladder, self.resolution = Ladder.for_resolution(spec.resolution, form.largest_base), spec.resolution
        ws = widths(form.g_narrow, self.ladder.steps)[::-1]
        classes = spec.classes if form.class_norm else 1
        cells = self.ladder.base**2
        self.first = nn.Linear(spec.z_dim, ws[0] * cells)
        self.label = Embedding(spec.classes, ws[0] * cells, 0.02)
        self.norms = nn.ModuleList(BatchNorm(w, classes) for w in ws)
        self.blocks = nn.ModuleList(Residual(ws[0], classes) for _ in range(form.g_blocks))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False) for a, b in pairwise(ws))
        self.last = ImageConvTranspose2d(ws[-1], spec.channels, 4, 2, 1)
        self.apply(radford)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        base = self.ladder.base
        # Cells before channels: the permuted view is channels_last without a copy.
        h = self.first(z)
        h = (h + self.label(y).to(h.dtype)).view(len(z), base, base, -1).permute(0, 3, 1, 2)
        h = self.norms[0](h, y)
        for block in self.blocks:
            h = block(h, y)
        h = F.relu_(h)
        for up, norm in zip(self.ups, self.norms[1:]):
            h = F.relu_(norm(up(h), y))
        return torch.tanh(self.ladder.crop(self.last(h), self.resolution))


class Discriminator(nn.Module):
    """x (n, C, H, W), y (n,) → logits (n,)."""

    def __init__(self, spec: NetSpec, form: Form) -> None:
        super().__init__()
        self.ladder, self.minibatch_std = Ladder.for_resolution(spec.resolution, form.largest_base), form.minibatch_std
        ws = widths(form.d_narrow, self.ladder.steps)
        bias = form.d_norm != "batch"
        self.first: nn.Module = ImageConv2d(spec.channels, ws[0], 4, 2, 1)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1, bias=bias) for a, b in pairwise(ws))
        self.downs.extend(nn.Conv2d(ws[-1], ws[-1], 3, 1, 1, bias=bias) for _ in range(form.d_blocks))
        self.norms = nn.ModuleList(_norm(form.d_norm, int(c.out_channels)) for c in self.downs)  # type: ignore[arg-type]
        cells = self.ladder.base**2
        features = (ws[-1] + (1 if form.minibatch_std else 0)) * cells
        self.hidden: nn.Module | None = nn.Linear(features, form.hidden) if form.hidden else None
        features = form.hidden or features
        self.head: nn.Module = nn.Linear(features, 1)
        concatenated, projected = (form.conditioning in (kind, "both") for kind in ("concat", "projection"))
        self.label = Embedding(spec.classes, ws[0], 0.1) if concatenated else None
        self.projection = Embedding(spec.classes, features, features**-0.5) if projected else None
        if form.d_norm == "batch":                   # elsewhere PyTorch's own initial values keep the scale right
            self.apply(radford)
        if form.d_norm == "spectral":
            self.first, self.head = Spectral(self.first), Spectral(self.head)
            self.downs = nn.ModuleList(Spectral(down) for down in self.downs)
            self.hidden = None if self.hidden is None else Spectral(self.hidden)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.first(self.ladder.pad(x))
        if self.label is not None:
            h = h.add_(self.label(y).to(h.dtype)[:, :, None, None])
        h = F.leaky_relu_(h, 0.2)
        for down, norm in zip(self.downs, self.norms):
            h = F.leaky_relu_(norm(down(h)), 0.2)
        if self.minibatch_std:
            h = torch.cat([h, group_spread(h, self.minibatch_std)], 1)
        flat = h.permute(0, 2, 3, 1).flatten(1)
        if self.hidden is not None:
            flat = F.leaky_relu_(self.hidden(flat), 0.2)
        if self.projection is not None:
            return labelled_logits(flat, y, self.head, self.projection)
        logits: Tensor = self.head(flat).squeeze(1).float()
        return logits


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return BatchNorm(channels)
    return nn.GroupNorm(1, channels) if kind == "group" else nn.Identity()


def group_spread(h: Tensor, size: int) -> Tensor:
    """Standard deviation within groups of `size` neighbouring rows, mean over channels: (n, C, H, W) → (n, 1, H, W).

    A last smaller group stands alone. Lets D see that a generator repeats itself (Karras 2018).
    """
    whole = len(h) // size * size
    return torch.cat([_spread(part, min(size, len(part))) for part in (h[:whole], h[whole:]) if len(part)]).to(h.dtype)


def _spread(h: Tensor, size: int) -> Tensor:
    """The same for a number of rows that `size` divides."""
    groups = h.float().unflatten(0, (-1, size))
    deviation = (groups.var(1, correction=0) + 1e-6).sqrt().mean(1, keepdim=True)
    return deviation.repeat_interleave(size, 0)


def radford(module: nn.Module) -> None:
    """Weights N(0, 0.02), batch-norm gains N(1, 0.02) (Radford 2015, section 4)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, BatchNorm):
        nn.init.normal_(module.gain, 1.0, 0.02)


def check_stack(spec: NetSpec, form: Form) -> None:
    """Raises what `build_stack` would raise."""
    form.for_spec(spec)


def build_stack(spec: NetSpec, form: Form) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator of that form, with the spec's options applied."""
    form = form.for_spec(spec)
    g, d = Generator(spec, form), Discriminator(spec, form)
    return g, Projected(d, spec, form.features, form.features_weight) if form.features and spec.classes > 1 else d
