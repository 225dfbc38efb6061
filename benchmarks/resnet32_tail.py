"""The arms on the field's own long tail: CIFAR-10 from 5,000 to 50 images a class, ResNet-32, the whole test set. For a GPU.

    python benchmarks/resnet32_tail.py --cifar FOLDER_OF_PARQUET --epochs 200 --kimg 2000 --seeds 2

Known for plain training with mirrored and shifted images: 70 to 73 % (Cui 2019, Cao 2019, by SGD); here AdamW under one cycle, as in
every lift trial. The generator learns the tail alone. Rows are printed as they finish; nothing is chosen by them.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from families import cifar10
from long_tail import long_tail
from machine import machine
from torch import Tensor, nn
from torch.nn import functional as F

import gan.loop
from gan.augment import Augmentation
from gan.classical import ClassicalAugment
from gan.classifier import Lesson, Schedule, balanced_draws, even_draws, fit, to_unit
from gan.metrics.agreement import balanced_accuracy
from gan.presets import Budget, choose
from gan.sampling import generate
from pipeline.lift.trial import by_share, class_weights, mixed_draws

BATCH = 128
SHARE = 1 / 3                # of every class's draws that are synthetic
STANDARD = ClassicalAugment(shift=0.125, rotate_deg=0.0, scale=0.0, shear_deg=0.0, flip=True)


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut without weights (He 2016, option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride, self.more = stride, outputs - inputs
        self.one = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.two = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        short = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))
        return F.relu(short + self.norms[1](self.two(F.relu(self.norms[0](self.one(x))))))


class ResNet32(nn.Module):
    """Images (n, 3, 32, 32) in [-1, 1] → logits (n, 10): three stages of five blocks, 16, 32 and 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        stages = [(16, 16, 1), (16, 32, 2), (32, 64, 2)]
        self.blocks = nn.Sequential(*(Block(b if i else a, b, stride if i == 0 else 1) for a, b, stride in stages for i in range(5)))
        self.head = nn.Linear(64, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.first(x.contiguous(memory_format=torch.channels_last))))
        return self.head(self.blocks(h).mean((2, 3)))


def trained(images: Tensor, labels: Tensor, draws: Tensor, steps: int, seed: int, offset: Tensor | None, device: str) -> nn.Module:
    """A ResNet-32 after so many steps."""
    torch.manual_seed(seed)
    net = ResNet32().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    generator = torch.Generator(device).manual_seed(seed)
    schedule = Schedule(steps, BATCH, learning_rate=4e-3, weight_decay=0.05)
    lesson = Lesson(net, images.to(device), labels.to(device), schedule, None if offset is None else offset.to(device), STANDARD, generator)
    fit(lesson, draws, None)
    return net.eval()


@torch.inference_mode()
def logits(net: nn.Module, images: Tensor, device: str) -> Tensor:
    """Of uint8 images, on the CPU."""
    return torch.cat([net(to_unit(part.to(device))).float().cpu() for part in images.split(1000)])


def main() -> None:
    """Prints a row an arm and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=200)
    parser.add_argument("--kimg", type=float, default=2000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    print(machine())
    data = long_tail(cifar10(args.cifar), 5000, 100)
    counts = torch.bincount(data.labels, minlength=10)
    real, steps = data.labels.numpy(), round(args.epochs * len(data.train) / BATCH)
    offset = (counts / counts.sum()).log()
    spec, recipe, _ = choose("auto", 32, 3, counts.tolist(), Budget(kimg=args.kimg), args.device, augment=Augmentation(flip=True))
    for seed in range(args.seeds):
        began = time.perf_counter()
        state = gan.loop.train(data.train, data.labels, spec, recipe, seed=seed, device=args.device)
        y = torch.arange(10).repeat_interleave(1500)
        made = generate(state.ema, y, np.arange(len(y)))
        print(f"seed {seed}: {spec.family}, {state.kimg:.0f} kimg in {time.perf_counter() - began:.0f} s", flush=True)
        rng, total = np.random.default_rng(seed), steps * BATCH
        uneven, even = (class_weights(balanced, 0.0, real, y.numpy()) for balanced in (False, True))
        arms = {
            "A1 plain": (even_draws(data.labels, total, rng), None), "A2 balanced": (balanced_draws(data.labels, total, rng), None),
            "A3 logit adjustment": (even_draws(data.labels, total, rng), offset),
            "G3 A2 + synthetic": (mixed_draws(real, y.numpy(), even, by_share(SHARE), total, rng), None),
            "G3 A3 + synthetic": (mixed_draws(real, y.numpy(), uneven, by_share(SHARE), total, rng), offset),
        }
        both, labels = torch.cat([data.train, made]), torch.cat([data.labels, y])
        for name, (draws, prior) in arms.items():
            began = time.perf_counter()
            net = trained(both, labels, draws, steps, seed, prior, args.device)
            reached = balanced_accuracy(logits(net, data.test, args.device), data.test_labels)
            print(f"  {name:20} {100 * reached:.2f} %  ({steps} steps, {time.perf_counter() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
