"""The textbook peer: a plain conditional DCGAN (Mirza 2014 + Radford 2015) that a tutorial would give.

One-hot label planes are concatenated to the discriminator's image, the one-hot label to the generator's noise; batch
norm, LeakyReLU, non-saturating loss, fused Adam at 4e-4 with betas (0.5, 0.999), batch 64, channels_last, float32.
It exists so that ganmill's default recipe can be measured against something at equal seconds; it imports nothing of
ganmill.

    python benchmarks/textbook_cdcgan.py --data /path/to/mnist-idx --seconds 150
"""

from __future__ import annotations

import argparse
import gzip
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

NOISE = 100
BATCH = 64
LEARNING_RATE = 4e-4
BETAS = (0.5, 0.999)


class TextbookGenerator(nn.Module):
    """z (n, 100) and labels (n,) to images (n, 1, 28, 28) in [-1, 1]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.head = nn.Sequential(nn.Linear(NOISE + classes, 128 * 7 * 7), nn.BatchNorm1d(128 * 7 * 7), nn.ReLU(True))
        self.body = nn.Sequential(
            nn.ConvTranspose2d(128, 64, 4, 2, 1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(True),
            nn.ConvTranspose2d(64, 1, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        flat = self.head(torch.cat([z, F.one_hot(y, self.classes).to(z)], dim=1))
        return self.body(flat.view(-1, 128, 7, 7).contiguous(memory_format=torch.channels_last))


class TextbookDiscriminator(nn.Module):
    """Images (n, 1, 28, 28) and labels (n,) to logits (n,); the label enters as one-hot planes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.body = nn.Sequential(
            nn.Conv2d(1 + classes, 32, 4, 2, 1),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(32, 64, 4, 2, 1, bias=False),
            nn.BatchNorm2d(64),
            nn.LeakyReLU(0.2, True),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 1),
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        planes = F.one_hot(y, self.classes).to(x)[:, :, None, None].expand(-1, -1, x.shape[2], x.shape[3])
        joined = torch.cat([x, planes], dim=1).contiguous(memory_format=torch.channels_last)
        return self.body(joined).squeeze(1)


def _init_weights(module: nn.Module) -> None:
    """Radford's initial values: weights N(0, 0.02), batch-norm gains N(1, 0.02)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


def train_textbook(
    images: Tensor, labels: Tensor, classes: int, seconds: float, seed: int
) -> tuple[Callable[[Tensor], Tensor], int]:
    """Train for `seconds` of wall time on uint8 images (n, 1, 28, 28) with labels (n,).

    Returns a callable from labels (m,) to images (m, 1, 28, 28) in [-1, 1], and the number of real images seen.
    """
    torch.manual_seed(seed)
    generator, discriminator = TextbookGenerator(classes), TextbookDiscriminator(classes)
    for network in (generator, discriminator):
        network.apply(_init_weights)
        network.to(memory_format=torch.channels_last)
    g_optimizer = torch.optim.Adam(generator.parameters(), LEARNING_RATE, betas=BETAS, fused=True)
    d_optimizer = torch.optim.Adam(discriminator.parameters(), LEARNING_RATE, betas=BETAS, fused=True)
    seen, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        picked = torch.randint(len(images), (BATCH,))
        real, y = images[picked].float().div_(127.5).sub_(1.0), labels[picked]
        fake = generator(torch.randn(BATCH, NOISE), y)
        d_loss = F.softplus(-discriminator(real, y)).mean() + F.softplus(discriminator(fake.detach(), y)).mean()
        d_optimizer.zero_grad(set_to_none=True)
        d_loss.backward()
        d_optimizer.step()
        g_loss = F.softplus(-discriminator(fake, y)).mean()
        g_optimizer.zero_grad(set_to_none=True)
        g_loss.backward()
        g_optimizer.step()
        seen += BATCH
    generator.eval()

    @torch.no_grad()
    def sample(wanted: Tensor) -> Tensor:
        return torch.cat([generator(torch.randn(len(part), NOISE), part) for part in wanted.split(500)])

    return sample, seen


def read_idx(path: Path) -> Tensor:
    """One gzipped IDX file of unsigned bytes as a tensor of its own shape."""
    raw = gzip.decompress(path.read_bytes())
    dimensions = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the four MNIST IDX files (.gz)")
    parser.add_argument("--seconds", type=float, default=150.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write 5,000 balanced samples as an .npz here")
    args = parser.parse_args()
    images = read_idx(args.data / "train-images-idx3-ubyte.gz").unsqueeze(1)
    labels = read_idx(args.data / "train-labels-idx1-ubyte.gz").long()
    classes = int(labels.max()) + 1
    sample, seen = train_textbook(images, labels, classes, args.seconds, args.seed)
    print(f"images seen {seen:,}, {seen / args.seconds:,.0f} images/s on {torch.get_num_threads()} threads")
    if args.out is not None:
        wanted = torch.arange(classes).repeat_interleave(5000 // classes)
        np.savez(args.out, images=sample(wanted).numpy(), labels=wanted.numpy())


if __name__ == "__main__":
    main()
