"""The FID network: Inception v3 as TensorFlow's 2015 release ran it, so that a Fréchet distance on its features may be called FID.

Weights come from a file: the one that torch-fidelity and others convert TensorFlow's to, recognised by its checksum, or the same
tensors as safetensors. Tensor names and the three departures from the paper's network (average pools that don't count the border, a
max pool in the last block, a resize that doesn't centre its pixels) are those of that conversion.
"""

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gan.errors import BadWeights

URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
SHA256_BEGINS = "6726825d"   # as its name says
SIDE = 299
FEATURES = 2048
CLASSES = 1008

Size = int | tuple[int, int]
Layer = tuple[str, int, Size] | tuple[str, int, Size, int]   # name, channels, kernel, stride 2 (then without border)


class _Convolution(nn.Module):
    """relu(norm(conv(x)))."""

    def __init__(self, inputs: int, outputs: int, kernel: Size, stride: int = 1, *, border: bool = True) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if border else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class _Mixed(nn.Module):
    """Branches side by side, their channels joined. A branch may end in two layers that both see what comes before."""

    def __init__(self, inputs: int, branches: Sequence[Sequence[Layer | tuple[Layer, Layer]]], pool: str, pooled: int = 0) -> None:
        super().__init__()
        self.pool, self.plan = pool, [[layer if isinstance(layer[0], tuple) else (layer,) for layer in branch] for branch in branches]
        self.outputs = pooled or inputs
        for branch in self.plan:
            width = inputs
            for step in branch:
                for name, outputs, kernel, *stride in step:
                    self.add_module(str(name), _Convolution(width, outputs, kernel, *(stride or [1]), border=not stride))
                width = sum(layer[1] for layer in step)
            self.outputs += width
        if pooled:
            self.branch_pool = _Convolution(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = []
        for branch in self.plan:
            h = x
            for step in branch:
                h = torch.cat([self.get_submodule(str(layer[0]))(h) for layer in step], 1)
            out.append(h)
        if self.pool == "shrink":
            return torch.cat([*out, F.max_pool2d(x, 3, 2)], 1)
        pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) if self.pool == "average" else F.max_pool2d(x, 3, 1, 1)
        return torch.cat([*out, self.branch_pool(pooled)], 1)


def _a(inputs: int, pooled: int) -> _Mixed:
    return _Mixed(inputs, [[("branch1x1", 64, 1)], [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
                           [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)]], "average", pooled)


def _b(inputs: int) -> _Mixed:
    return _Mixed(inputs, [[("branch3x3", 384, 3, 2)],
                           [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2)]], "shrink")


def _c(inputs: int, narrow: int) -> _Mixed:
    flat, tall = (1, 7), (7, 1)
    return _Mixed(inputs, [
        [("branch1x1", 192, 1)], [("branch7x7_1", narrow, 1), ("branch7x7_2", narrow, flat), ("branch7x7_3", 192, tall)],
        [("branch7x7dbl_1", narrow, 1), ("branch7x7dbl_2", narrow, tall), ("branch7x7dbl_3", narrow, flat),
         ("branch7x7dbl_4", narrow, tall), ("branch7x7dbl_5", 192, flat)]], "average", 192)


def _d(inputs: int) -> _Mixed:
    return _Mixed(inputs, [
        [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)],
        [("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1)), ("branch7x7x3_4", 192, 3, 2)]],
        "shrink")


def _e(inputs: int, pool: str) -> _Mixed:
    flat, tall = (1, 3), (3, 1)
    return _Mixed(inputs, [
        [("branch1x1", 320, 1)],
        [("branch3x3_1", 384, 1), (("branch3x3_2a", 384, flat), ("branch3x3_2b", 384, tall))],
        [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3), (("branch3x3dbl_3a", 384, flat), ("branch3x3dbl_3b", 384, tall))]],
        pool, 192)


class Inception(nn.Module):
    """Images (n, C, H, W) in [-1, 1] → `features` (n, 2048), and by `head` the 1,008 logits without their bias."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Convolution(3, 32, 3, 2, border=False)
        self.Conv2d_2a_3x3 = _Convolution(32, 32, 3, border=False)
        self.Conv2d_2b_3x3 = _Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = _Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = _Convolution(80, 192, 3, border=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _a(192, 32), _a(256, 64), _a(288, 64)
        self.Mixed_6a = _b(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (_c(768, n) for n in (128, 160, 160, 192))
        self.Mixed_7a, self.Mixed_7b, self.Mixed_7c = _d(768), _e(1280, "average"), _e(2048, "max")
        self.fc = nn.Linear(FEATURES, CLASSES)
        self.eval().requires_grad_(False)

    def features(self, x: Tensor) -> Tensor:
        """Images float (n, 1 or 3, H, W) in [-1, 1] → what the last average pool gives, (n, 2048)."""
        colour = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        x = (resize((colour + 1) * 127.5, SIDE) - 128) / 128
        x = F.max_pool2d(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))), 3, 2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = self.get_submodule(f"Mixed_{name}")(x)
        return x.mean((2, 3))

    def head(self, features: Tensor) -> Tensor:
        """Logits (n, 1008) without bias, as the inception score takes them."""
        return F.linear(features, self.fc.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Images float (n, C, H, W) in [-1, 1] → logits (n, 1008)."""
        return self.fc(self.features(x))


def resize(x: Tensor, side: int) -> Tensor:
    """Bilinear, pixel i read at i · H / side as TensorFlow 1 did: (n, C, H, W) → (n, C, side, side)."""
    for axis in (2, 3):
        size = x.shape[axis]
        place = torch.arange(side, dtype=torch.float32, device=x.device) * torch.tensor(size / side, dtype=torch.float32)
        low = place.long()
        share = (place - low).view(-1, 1) if axis == 2 else place - low
        below, above = x.index_select(axis, low), x.index_select(axis, (low + 1).clamp_max(size - 1))
        x = below + (above - below) * share
    return x


def load(path: str | os.PathLike[str]) -> Inception:
    """The network with the weights of a file: `.safetensors`, or the usual `.pth`, which must have the known checksum.

    Raises:
        BadWeights: no such file, another checksum, or other tensors; nothing in it was executed.
    """
    file = Path(path)
    if not file.is_file():
        raise BadWeights(f"{file} is not there. The FID network's weights are not ganmill's to bring: fetch {URL} to that place")
    net = Inception()
    try:
        net.load_state_dict(_tensors(file))
    except RuntimeError as e:
        raise BadWeights(f"{file} does not hold the FID network's weights: {str(e).splitlines()[-1].strip()[:200]}") from e
    return net.eval()


def _tensors(file: Path) -> dict[str, Any]:
    if file.suffix == ".safetensors":
        import safetensors
        import safetensors.torch

        try:
            return safetensors.torch.load_file(file)
        except safetensors.SafetensorError as e:
            raise BadWeights(f"{file} is not a whole safetensors file: {e}") from e
    if not (digest := sha256_of(file)).startswith(SHA256_BEGINS):
        raise BadWeights(f"{file} has sha256 {digest[:16]}…, the FID network's weights begin with {SHA256_BEGINS}: it is another file, or "
                         "not whole. Nothing in it was read")
    found: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return found


def sha256_of(file: Path) -> str:
    """Hex digest of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fetch(path: str | os.PathLike[str], url: str = URL, timeout_s: float = 60.0) -> Path:
    """Downloads the usual weights to `path` unless a file is there; keeps nothing whose checksum is wrong.

    Raises:
        BadWeights: it can't be had, or is another file.
    """
    file = Path(path)
    if file.is_file():
        return file
    part = file.with_name(file.name + ".part")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as stream, part.open("wb") as out:
            while block := stream.read(1 << 20):
                out.write(block)
        if not (digest := sha256_of(part)).startswith(SHA256_BEGINS):
            raise BadWeights(f"{url} gave a file with sha256 {digest[:16]}…, not {SHA256_BEGINS}…; it was not kept")
        part.replace(file)
    except (urllib.error.URLError, OSError) as e:
        raise BadWeights(f"{url} can't be fetched: {e}. Put the file at {file} by hand") from e
    finally:
        part.unlink(missing_ok=True)
    return file
