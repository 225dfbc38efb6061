"""Classical augmentation for classifiers: shift, rotation, scale, shear in one resampling, flips and colour if allowed.

Every random number comes from the generator that the caller hands in, so that two classifiers with the same seed see
the same images.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from gan.affine import affine_grid


@dataclass(frozen=True)
class ClassicalAugment:
    """What a label bears: a flipped 6 is no 6, a red light no green one. Flip and colour are off unless asked.

    Strengths are the ends of uniform ranges, drawn for each image apart.
    """

    shift: float = 0.08                              # of the side length
    rotate_deg: float = 12.0
    scale: float = 0.12                              # factor in (1 - scale, 1 + scale)
    shear_deg: float = 6.0
    flip: bool = False                               # left-right, half of the images
    brightness: float = 0.0                          # added, in units of the [-1, 1] range
    contrast: float = 0.0                            # factor in (1 - contrast, 1 + contrast) about the image's mean
    saturation: float = 0.0                          # the same about each pixel's grey value; nothing on one channel
    erase: float = 0.0                               # side of a square set to the image's mean, of the side length

    @classmethod
    def allowed(cls, flip: bool, color: bool) -> "ClassicalAugment":
        """The usual strengths for what the dataset's labels bear."""
        strength = 0.2 if color else 0.0
        return cls(flip=flip, brightness=strength, contrast=strength, saturation=strength)

    def scaled(self, factor: float) -> "ClassicalAugment":
        """Every strength times `factor`; what is a matter of yes or no, and the erased square, stays."""
        names = ("shift", "rotate_deg", "scale", "shear_deg", "brightness", "contrast", "saturation")
        return self if factor == 1 else replace(self, **{name: getattr(self, name) * factor for name in names})

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Changed copies of images float (n, C, H, W) in [-1, 1]; borders are continued outwards.

        Args:
            x: images; not changed in place.
            generator: its device is where the numbers are drawn, the CPU or the images' own.
        """
        if self.shift or self.rotate_deg or self.scale or self.shear_deg or self.flip:
            grid = affine_grid(self._affine(len(x), generator).to(x), *x.shape[2:])
            x = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
        if self.brightness or self.contrast or self.saturation:
            x = self._recolor(x, generator)
        return self._erase(x, generator) if self.erase else x

    def _affine(self, n: int, generator: torch.Generator) -> Tensor:
        """Maps (n, 2, 3) from output to input coordinates in [-1, 1]: scale · rotation · shear · flip, then shift."""
        u = torch.rand(6, n, generator=generator, device=generator.device) * 2 - 1
        angle, shear = u[0] * math.radians(self.rotate_deg), torch.tan(u[1] * math.radians(self.shear_deg))
        factor = 1 / (1 + u[2] * self.scale)
        mirror = torch.where(u[5] < 0, -1.0, 1.0) if self.flip else torch.ones_like(u[5])
        cos, sin = factor * torch.cos(angle), factor * torch.sin(angle)
        rows = [
            torch.stack([mirror * cos, mirror * (cos * shear - sin), 2 * self.shift * u[3]], dim=1),
            torch.stack([sin, sin * shear + cos, 2 * self.shift * u[4]], dim=1),
        ]
        return torch.stack(rows, dim=1)

    def _recolor(self, x: Tensor, generator: torch.Generator) -> Tensor:
        u = (torch.rand(3, len(x), 1, 1, 1, generator=generator, device=generator.device) * 2 - 1).to(x)
        x = x + u[0] * self.brightness
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        x = mean + (x - mean) * (1 + u[1] * self.contrast)
        if x.shape[1] > 1:
            grey = x.mean(dim=1, keepdim=True)
            x = grey + (x - grey) * (1 + u[2] * self.saturation)
        return x.clamp(-1, 1)

    def _erase(self, x: Tensor, generator: torch.Generator) -> Tensor:
        n, _, height, width = x.shape
        centre = torch.rand(2, n, 1, generator=generator, device=generator.device).to(x)
        inside_y = (torch.arange(height, device=x.device).to(x) / height - centre[0]).abs() < self.erase / 2
        inside_x = (torch.arange(width, device=x.device).to(x) / width - centre[1]).abs() < self.erase / 2
        hole = (inside_y[:, :, None] & inside_x[:, None, :])[:, None]
        return torch.where(hole, x.mean(dim=(1, 2, 3), keepdim=True), x)
