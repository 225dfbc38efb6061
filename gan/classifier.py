"""The CNN classifiers: judge of generated images, feature extractor, downstream user whose lift is measured.

Two architectures share one trainer: `ConvClassifier` (LeCun's convolution, pooling, fully connected, with batch norm)
and `ResidualClassifier` (a small ResNet, for colour images). Both cut the side length early, where a CPU spends its
time, and end in 128 features and one linear layer.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gan.classical import ClassicalAugment
from gan.errors import BadCheckpoint
from gan.graphs import Replay, rates_as_tensors, set_rate
from gan.precision import has_bf16

if TYPE_CHECKING:
    from gan.inception import Inception

FEATURES = 128
Architecture = Literal["conv", "residual"]


@dataclass(frozen=True)
class ClassifierSpec:
    """What it takes to rebuild a classifier's network."""

    architecture: Architecture
    resolution: int
    channels: int
    classes: int
    width: int = 16

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ClassifierSpec":
        """The spec that `to_dict` wrote."""
        return cls(**data)


class Classifier(nn.Module):
    """Images (n, C, H, W) in [-1, 1] → logits (n, classes); `features` (n, 128) are what the last layer sees."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, spec: ClassifierSpec) -> None:
        super().__init__()
        self.spec = spec
        self.body, flat = _BODIES[spec.architecture](spec)
        self.neck = nn.Sequential(nn.Linear(flat, FEATURES, bias=False), nn.BatchNorm1d(FEATURES), nn.ReLU())
        self.head = nn.Linear(FEATURES, spec.classes)
        self.register_buffer("mean", torch.zeros(spec.channels, 1, 1))
        self.register_buffer("deviation", torch.ones(spec.channels, 1, 1))

    def features(self, x: Tensor) -> Tensor:
        """Images float (n, C, H, W) in [-1, 1] → features float (n, 128), at least 0."""
        x = ((x - self.mean) / self.deviation).contiguous(memory_format=torch.channels_last)
        return self.neck(self.body(x).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        """Images float (n, C, H, W) in [-1, 1] → logits (n, classes)."""
        return self.head(self.features(x))


class ConvClassifier(Classifier):
    """Convolution, pooling, fully connected."""

    def __init__(self, resolution: int, channels: int, classes: int, width: int = 16) -> None:
        super().__init__(ClassifierSpec("conv", resolution, channels, classes, width))


class ResidualClassifier(Classifier):
    """A small residual network (He et al. 2016): one residual pair of convolutions at each of two scales."""

    def __init__(self, resolution: int, channels: int, classes: int, width: int = 16) -> None:
        super().__init__(ClassifierSpec("residual", resolution, channels, classes, width))


class _Residual(nn.Module):
    """x + convolutions(x), the second batch norm's gain starting at 0: the block begins as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(*_conv(width, width, 3, 1), *_conv(width, width, 3, 1)[:2])

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.branch(x))


def _conv(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


def _stem(spec: ClassifierSpec) -> tuple[list[nn.Module], int, int]:
    """Strided convolutions down to a side of about 16, at last `spec.width` channels: layers, width, side."""
    halvings = max(0, round(math.log2(spec.resolution / 16)))
    if halvings == 0:
        return _conv(spec.channels, spec.width, 5, 1), spec.width, spec.resolution
    layers: list[nn.Module] = []
    inputs, side = spec.channels, spec.resolution
    for i in range(halvings):
        outputs = max(8, spec.width >> (halvings - 1 - i))
        layers += _conv(inputs, outputs, 5 if i == 0 else 3, 2)
        inputs, side = outputs, (side + 1) // 2
    return layers, inputs, side


def _conv_body(spec: ClassifierSpec) -> tuple[nn.Module, int]:
    layers, width, side = _stem(spec)
    for outputs in (2 * spec.width, 4 * spec.width):
        convolution, norm, activation = _conv(width, outputs, 3, 1)
        layers += [convolution, norm, nn.MaxPool2d(2), activation]  # the other way round it is the same, of four times as many numbers
        width, side = outputs, side // 2
    return nn.Sequential(*layers), 4 * spec.width * side * side


def _residual_body(spec: ClassifierSpec) -> tuple[nn.Module, int]:
    layers, width, side = _stem(spec)
    layers += [*_conv(width, 2 * spec.width, 3, 1), _Residual(2 * spec.width)]
    layers += [*_conv(2 * spec.width, 4 * spec.width, 3, 2), _Residual(4 * spec.width), nn.MaxPool2d(2)]
    side = (side + 1) // 2 // 2
    return nn.Sequential(*layers), 4 * spec.width * side * side


_BODIES: dict[str, Callable[[ClassifierSpec], tuple[nn.Module, int]]] = {"conv": _conv_body, "residual": _residual_body}


def build_classifier(spec: ClassifierSpec, seed: int) -> Classifier:
    """A fresh classifier; its weights follow from the seed alone, the global random state stays as it was.

    Raises:
        ValueError: unknown architecture, or a side below 8.
    """
    if spec.architecture not in _BODIES:
        raise ValueError(f"architecture {spec.architecture!r} is unknown; known: {', '.join(_BODIES)}")
    if spec.resolution < 8 or spec.classes < 1:
        raise ValueError(f"need a side of at least 8 and a class, got {spec.resolution} and {spec.classes}")
    net = _blank(spec)
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_parameters()
    for module in net.modules():
        if isinstance(module, _Residual):
            nn.init.zeros_(module.branch[-1].weight)  # type: ignore[arg-type]
    return net


def _blank(spec: ClassifierSpec) -> Classifier:
    """The network with weights not yet set; made without a draw from the global random state."""
    with torch.device("meta"):
        net = {"conv": ConvClassifier, "residual": ResidualClassifier}[spec.architecture](
            spec.resolution, spec.channels, spec.classes, spec.width
        )
    net = net.to_empty(device="cpu").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    nn.init.zeros_(net.mean)
    nn.init.ones_(net.deviation)
    return net


def save_classifier(net: Classifier, facts: dict[str, Any] | None = None) -> bytes:
    """Weights as safetensors, with the spec and any JSON `facts` in the header."""
    import safetensors.torch

    tensors = {name: t.detach().cpu().contiguous() for name, t in net.state_dict().items()}
    header = {"spec": json.dumps(net.spec.to_dict()), "facts": json.dumps(facts or {})}
    return safetensors.torch.save(tensors, header)


def load_classifier(data: bytes) -> tuple[Classifier, dict[str, Any]]:
    """The classifier (evaluation mode) and the facts that `save_classifier` wrote.

    Raises:
        BadCheckpoint: not written by `save_classifier`, or not whole.
    """
    import safetensors
    import safetensors.torch

    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])["__metadata__"]
        spec, facts = ClassifierSpec.from_dict(json.loads(header["spec"])), json.loads(header["facts"])
        net = _blank(spec)
        net.load_state_dict(safetensors.torch.load(data))
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as e:
        raise BadCheckpoint(f"not a classifier of ours, or not whole: {e}") from e
    return net.eval(), facts


@dataclass(frozen=True)
class Schedule:
    """How a classifier is trained: AdamW under a one-cycle rate (linear up, cosine down to 0)."""

    steps: int
    batch_size: int = 128
    learning_rate: float = 6e-3
    weight_decay: float = 0.02
    warm_up: float = 0.2                             # share of the steps
    label_smoothing: float = 0.0


def train_classifier(
    images: Tensor,
    labels: Tensor,
    classes: int,
    *,
    steps: int,
    seed: int,
    batch_size: int = 128,
    width: int = 16,
    architecture: Architecture | None = None,
    augment: ClassicalAugment | None = None,
    balanced: bool = False,
    logit_adjustment: float = 0.0,
    prior_labels: Tensor | None = None,
    label_smoothing: float = 0.0,
    draws: Tensor | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> Classifier:
    """Trains a classifier for a fixed number of steps; the result follows from the arguments (and torch's threads).

    Args:
        images: uint8 (N, C, H, W), kept as bytes; only batches become float.
        labels: int64 (N,) in 0 … classes - 1; classes without a row are allowed.
        steps: optimizer steps, whatever N is.
        seed: of the weights, the order and the augmentation.
        architecture: "conv" or "residual"; by default residual for colour images.
        augment: applied to each batch apart; None for none.
        balanced: draw classes evenly instead of rows evenly.
        logit_adjustment: tau of Menon et al. 2021: logits + tau·log prior in the loss.
        prior_labels: int64 (n,), whose classes' shares are the adjustment's prior; None: `labels`.
        draws: rows to take, int64 (steps · batch_size,), instead of an order from seed and `balanced`.
        on_step: called with (step, loss) about every twenty-fifth step.

    Raises:
        ValueError: no rows, labels out of range, or shapes that don't fit.
    """
    _check(images, labels, classes)
    spec = ClassifierSpec(architecture or ("residual" if images.shape[1] == 3 else "conv"),
                          images.shape[2], images.shape[1], classes, width)
    schedule = Schedule(steps, batch_size, label_smoothing=label_smoothing)
    if draws is None:
        rng = np.random.default_rng([seed, 1])
        draw = balanced_draws if balanced else even_draws
        draws = draw(labels, steps * batch_size, rng)
    if draws.shape != (steps * batch_size,):
        raise ValueError(f"draws must hold steps · batch_size = {steps * batch_size} rows, got {tuple(draws.shape)}")
    net = build_classifier(spec, seed).to(images.device)
    standardise(net, images)
    prior = torch.bincount(labels if prior_labels is None else prior_labels, minlength=classes).float().to(images.device)
    offset = logit_adjustment * (prior / prior.sum()).clamp_min(1e-8).log() if logit_adjustment else None
    lesson = Lesson(net, images, labels, schedule, offset, augment, torch.Generator(images.device).manual_seed(seed + 1))
    fit(lesson, draws, on_step)
    return net.eval()


def _check(images: Tensor, labels: Tensor, classes: int) -> None:
    if images.ndim != 4 or images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 (N, C, H, W), got {images.dtype} {tuple(images.shape)}")
    if len(images) == 0 or labels.shape != (len(images),):
        raise ValueError(f"{len(images)} images, labels of shape {tuple(labels.shape)}: need one each, at least one")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"labels must lie in 0 … {classes - 1}, got {int(labels.min())} … {int(labels.max())}")


def standardise(net: Classifier, images: Tensor) -> None:
    """Sets the net's input mean and deviation per channel, from at most 4,096 rows spread over the data."""
    some = to_unit(images[:: max(1, len(images) // 4096)])
    net.mean.copy_(some.mean(dim=(0, 2, 3)).view(-1, 1, 1))
    net.deviation.copy_(some.std(dim=(0, 2, 3), correction=0).view(-1, 1, 1).clamp_min(1e-2))   # constant images


class Lesson:
    """One training: the network, what it learns from, and the step."""

    def __init__(self, net: nn.Module, images: Tensor, labels: Tensor, schedule: Schedule, offset: Tensor | None,
                 augment: ClassicalAugment | None, generator: torch.Generator) -> None:
        self.net, self.images, self.labels, self.schedule, self.offset = net.train(), images, labels, schedule, offset
        self.augment, self.generator, self.device = augment, generator, images.device
        decayed = [p for p in net.parameters() if p.ndim > 1]
        rest = [p for p in net.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.99), fused=True)
        self.rows = torch.zeros(schedule.batch_size, dtype=torch.int64, device=self.device)

    def renew(self) -> None:
        """Another generator, which goes on with other numbers."""
        self.generator = torch.Generator(self.device).manual_seed(self.generator.initial_seed() + 1)

    def step(self) -> Tensor:
        """Learns the images number `rows`; their loss."""
        x = to_unit(self.images[self.rows])
        x = self.augment(x, self.generator) if self.augment else x
        with torch.autocast(self.device.type, torch.bfloat16, enabled=has_bf16(str(self.device))):
            logits = self.net(x).float()
        if self.offset is not None:
            logits = logits + self.offset
        loss = F.cross_entropy(logits, self.labels[self.rows], label_smoothing=self.schedule.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def fit(lesson: Lesson, draws: Tensor, on_step: Callable[[int, float], None] | None) -> None:
    """Every step of the lesson on the rows drawn, int64 (steps · batch_size,); on a GPU as a recorded graph."""
    schedule, step = lesson.schedule, lesson.step
    if lesson.device.type == "cuda":
        rates_as_tensors(lesson.optimizer, lesson.device)
        step = Replay(lesson.step, lesson.device, lesson.generator, lesson.renew)
    for number, rows in enumerate(draws.to(lesson.device).view(schedule.steps, schedule.batch_size)):
        for group in lesson.optimizer.param_groups:
            set_rate(group, schedule.learning_rate * one_cycle(number / schedule.steps, schedule.warm_up))
        lesson.rows.copy_(rows)
        loss = step()
        if on_step is not None and (number % 25 == 0 or number == schedule.steps - 1):
            on_step(number + 1, float(loss))


def one_cycle(position: float, warm_up: float) -> float:
    """Factor of the learning rate at `position` in [0, 1): up linearly from 1/25, then down by a cosine to 0."""
    if position < warm_up:
        return 0.04 + 0.96 * position / warm_up
    return 0.5 * (1 + math.cos(math.pi * (position - warm_up) / (1 - warm_up)))


def to_unit(images: Tensor) -> Tensor:
    """Bytes uint8 (…) to float32 (…) in [-1, 1]."""
    return images.float().div_(127.5).sub_(1.0)


def even_draws(labels: Tensor, total: int, rng: np.random.Generator) -> Tensor:
    """`total` rows, int64: one permutation of all rows after the other."""
    return torch.from_numpy(_cycle(np.arange(len(labels)), total, rng))


def balanced_draws(labels: Tensor, total: int, rng: np.random.Generator) -> Tensor:
    """`total` rows, int64: classes that have rows come evenly, rows of a class in one permutation after the other."""
    values = labels.cpu().numpy()
    return group_draws([np.flatnonzero(values == c) for c in np.unique(values)], None, total, rng)


def group_draws(
    groups: Sequence[np.ndarray], shares: Sequence[float] | None, total: int, rng: np.random.Generator
) -> Tensor:
    """`total` rows, int64, from groups of rows in given shares; within a group one permutation after the other.

    Args:
        groups: row numbers of each group, none empty.
        shares: of the draws, summing to 1; None for even shares, which are then kept exactly within every round.
        rng: decides the order alone.
    """
    if shares is None:
        which = _cycle(np.arange(len(groups)), total, rng)
    else:
        which = rng.choice(len(groups), size=total, p=np.asarray(shares) / np.sum(shares))
    rows = np.empty(total, np.int64)
    for i, group in enumerate(groups):
        places = np.flatnonzero(which == i)
        rows[places] = _cycle(group, len(places), rng)
    return torch.from_numpy(rows)


def _cycle(values: np.ndarray, total: int, rng: np.random.Generator) -> np.ndarray:
    rounds = -(-total // len(values))
    shuffled = [rng.permutation(values) for _ in range(rounds)]
    return np.concatenate(shuffled)[:total] if shuffled else np.empty(0, np.int64)


@torch.inference_mode()
def embed(net: "Classifier | Inception", images: Tensor, batch_size: int = 512) -> tuple[Tensor, Tensor]:
    """Features float32 (N, 128) and logits float32 (N, classes) of uint8 images (N, C, H, W); of the FID network (N, 2048).

    Computed where the network is, returned where the images are.
    """
    net.eval()
    device = next(net.parameters()).device
    features = [net.features(to_unit(part.to(device))) for part in images.split(batch_size)]
    joined = torch.cat(features) if features else torch.empty(0, FEATURES, device=device)
    return joined.to(images.device), net.head(joined).to(images.device)


def predict(net: Classifier, images: Tensor, batch_size: int = 512) -> Tensor:
    """Logits float32 (N, classes) of uint8 images (N, C, H, W)."""
    return embed(net, images, batch_size)[1]
