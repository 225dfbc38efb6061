"""A discriminator that also sees what a frozen classifier sees.

D(x, y) = critic(x, y) + head(φ(x), y), where φ are the last feature map and the features of a small classifier that
learnt the training images and their labels before the first step. The critic sees pixels; φ knows from the start what
tells the classes and their variants apart, which the critic would have to find out while the generator runs ahead.
After Projected GAN (Sauer 2021: discriminate in a frozen network's features) and DADA (Zhang 2019: a discriminator that
knows the classes); unlike the former, φ has seen nothing but this very training split.

Two that share a loss share its signal too: where the head alone tells real from generated beyond the hinge, the critic
learns nothing more. With `features_weight` w each has a loss of its own, as in Projected GAN, and G minimises
(L(critic) + w·L(head)) / (1 + w).
"""

import copy

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from gan.classical import ClassicalAugment
from gan.classifier import ClassifierSpec, build_classifier, to_unit, train_classifier
from gan.networks.image_side import conv2d
from gan.networks.norm import Embedding, Spectral, labelled_logits
from gan.networks.spec import NetSpec
from gan.workers import Workers

HIDDEN = (256, 128)
SPREAD_FLOOR = 0.1           # of the mean deviation: features that hardly move aren't blown up
SOME = 4096                  # images from which the features' scale is taken


class Projected(nn.Module):
    """x (n, C, H, W), y (n,) → logits (n,): the critic's plus those of a head on frozen features.

    Args:
        critic: a discriminator of the same call.
        width: of the classifier, see `gan.classifier.ClassifierSpec`.
        weight: losses are taken of critic and head, each for itself, and for G the head's counts so many times the critic's; 0: the two
            share one.
    """

    def __init__(self, critic: nn.Module, spec: NetSpec, width: int, weight: int = 0) -> None:
        super().__init__()
        self.critic, self.weights = critic, (1.0, float(weight)) if weight else ()
        self.plan = ClassifierSpec("conv", spec.resolution, spec.channels, spec.classes, width)
        blank = build_classifier(self.plan, seed=0).eval()
        self.body, self.neck = _folded(blank.body), _folded(blank.neck)
        self.register_buffer("grey", blank.mean.clone())
        self.register_buffer("contrast", blank.deviation.clone())
        self.grey: Tensor
        self.contrast: Tensor
        with torch.no_grad():
            count = self.features(torch.zeros(1, spec.channels, spec.resolution, spec.resolution)).shape[1]
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("deviation", torch.ones(count))
        self.mean: Tensor
        self.deviation: Tensor
        self.hidden = nn.ModuleList(Spectral(nn.Linear(a, b)) for a, b in zip((count, *HIDDEN), HIDDEN))
        self.head = Spectral(nn.Linear(HIDDEN[-1], 1))
        self.label = Embedding(spec.classes, HIDDEN[-1], HIDDEN[-1] ** -0.5)

    def features(self, x: Tensor) -> Tensor:
        """φ: images (n, C, H, W) in [-1, 1] → the classifier's last feature map and its features, (n, k) float32."""
        first, x = self.body[0], ((x - self.grey) / self.contrast).contiguous(memory_format=torch.channels_last)
        assert isinstance(first, nn.Conv2d)
        late = self.body[1:](conv2d(x, first.weight, first.bias, first.stride, first.padding)).flatten(1)
        return torch.cat([late, self.neck(late)], 1).float()

    def standardised(self, x: Tensor) -> Tensor:
        """φ of images (n, C, H, W) in [-1, 1] with about mean 0 and deviation 1 over real ones, (n, k) float32."""
        return (self.features(x) - self.mean) / self.deviation

    def forward(self, x: Tensor, y: Tensor, each: bool = False, features: Tensor | None = None) -> Tensor:
        """The sum, (n,), or `each`: the critic's logits and the head's, (n, 2). `features`: what `standardised` says, where it is known."""
        h = self.standardised(x) if features is None else features
        for layer in self.hidden:
            h = F.leaky_relu_(layer(h), 0.2)
        seen = labelled_logits(h, y, self.head, self.label)
        critic: Tensor = self.critic(x, y)
        return torch.stack([critic.float(), seen], 1) if each else critic + seen

    def teach(self, images: Tensor, labels: Tensor, steps: int, seed: int, workers: Workers | None = None) -> None:
        """Trains the classifier and takes the features' scale; of several workers rank 0 does, and all take over what it found.

        Args:
            images: uint8 (N, C, H, W), the training split and nothing else.
            labels: int64 (N,).
        """
        workers = workers or Workers(1)
        if workers.rank == 0:
            with workers.one_for_all():
                self._learn(images, labels, steps, seed)
        if workers.world > 1:
            for tensor in (*self.body.parameters(), *self.neck.parameters(), self.grey, self.contrast, self.mean, self.deviation):
                dist.broadcast(tensor, 0)

    def _learn(self, images: Tensor, labels: Tensor, steps: int, seed: int) -> None:
        taught = train_classifier(images, labels, self.plan.classes, steps=steps, seed=seed, width=self.plan.width,
                                  architecture="conv", augment=ClassicalAugment.allowed(flip=False, color=False))
        self.body.load_state_dict(_folded(taught.body).state_dict())
        self.neck.load_state_dict(_folded(taught.neck).state_dict())
        self.grey.copy_(taught.mean)
        self.contrast.copy_(taught.deviation)
        with torch.no_grad():
            found = torch.cat([self.features(to_unit(part)) for part in
                               images[:: max(1, len(images) // SOME)].to(self.mean.device).split(512)])
            spread = found.std(0, correction=0)
            self.mean.copy_(found.mean(0))
            self.deviation.copy_(spread + SPREAD_FLOOR * spread.mean() + 1e-3)


def _folded(layers: nn.Module) -> nn.Sequential:
    """Frozen copies of a classifier's layers in evaluation mode, each batch norm made part of the layer before it."""
    out: list[nn.Module] = []
    for layer in layers.children():
        before = out[-1] if out else None
        if isinstance(layer, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
            out[-1] = fuse_conv_bn_eval(before, layer)
        elif isinstance(layer, nn.BatchNorm1d) and isinstance(before, nn.Linear):
            out[-1] = fuse_linear_bn_eval(before, layer)
        else:
            out.append(copy.deepcopy(layer))
    return nn.Sequential(*out).eval().requires_grad_(False)
