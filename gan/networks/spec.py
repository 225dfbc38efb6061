"""What a pair of networks is built from, and the pyramid of sizes that every convolutional family climbs."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from gan.errors import UnknownOption, UnsupportedSpec

MOST_CLASSES = 1000
Option = str | int | float | bool


@dataclass(frozen=True)
class NetSpec:
    """Everything that decides the shapes of G and D.

    Attributes:
        family: a name in `gan.networks.FAMILIES`.
        resolution: side of the square images in pixels, a multiple of 4 from 8 to 256.
        channels: 1 (grey) or 3 (RGB).
        classes: number of labels, 1 (unconditional) to 1,000.
        z_dim: length of the latent vector.
        width: channels of the family's narrowest inner layer; None: the family's default.
        options: further knobs of the family by name, sorted; see the family's file.
    """

    family: str
    resolution: int
    channels: int
    classes: int
    z_dim: int = 64
    width: int | None = None
    options: tuple[tuple[str, Option], ...] = ()

    def __post_init__(self) -> None:
        def whole(value: Any, low: int, high: int) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

        if not isinstance(self.family, str):
            raise UnsupportedSpec(f"family {self.family!r}: must be a name")
        if not whole(self.resolution, 8, 256) or self.resolution % 4:
            raise UnsupportedSpec(f"resolution {self.resolution!r}: must be a multiple of 4 from 8 to 256")
        if not whole(self.channels, 1, 3) or self.channels == 2:
            raise UnsupportedSpec(f"channels {self.channels!r}: must be 1 (grey) or 3 (RGB)")
        if not whole(self.classes, 1, MOST_CLASSES):
            raise UnsupportedSpec(f"classes {self.classes!r}: must be from 1 to {MOST_CLASSES}")
        if not whole(self.z_dim, 1, 1024):
            raise UnsupportedSpec(f"z_dim {self.z_dim!r}: must be from 1 to 1024")
        if self.width is not None and not whole(self.width, 4, 2048):
            raise UnsupportedSpec(f"width {self.width!r}: must be from 4 to 2048")
        object.__setattr__(self, "options", tuple(sorted((str(k), v) for k, v in self.options)))

    def option(self, name: str, default: Option) -> Any:
        """The option's value, or the family's default."""
        return dict(self.options).get(name, default)

    def check_options(self, *known: str) -> None:
        """Raises `UnknownOption` where an option is none of `known`."""
        unknown = [name for name, _ in self.options if name not in known]
        if unknown:
            raise UnknownOption(self.family, unknown, known)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "options": dict(self.options)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "NetSpec":
        """The spec that `to_dict` wrote.

        Raises:
            UnsupportedSpec: a key is unknown or missing, or a value out of range.
        """
        try:
            return cls(**{**data, "options": tuple(dict(data.get("options", {})).items())})
        except (TypeError, ValueError) as e:
            raise UnsupportedSpec(f"not a network spec: {e}") from e


@dataclass(frozen=True)
class Ladder:
    """`base` pixels doubled `steps` times; at least as large as the image, whose middle is what counts."""

    base: int
    steps: int

    @property
    def top(self) -> int:
        """The largest side, `base · 2^steps`."""
        return self.base << self.steps

    @classmethod
    def for_resolution(cls, resolution: int, largest_base: int = 7) -> "Ladder":
        """The shortest ladder from a base of at most `largest_base`: 28 → 7·4, 32 → 4·8, 64 → 4·16, 36 → 5·8 = 40."""
        steps = 1
        while -(-resolution // (1 << steps)) > largest_base:
            steps += 1
        return cls(-(-resolution // (1 << steps)), steps)

    def crop(self, x: Tensor, resolution: int) -> Tensor:
        """The middle of x (n, C, top, top), (n, C, resolution, resolution)."""
        margin = (self.top - resolution) // 2
        return x if margin == 0 and self.top == resolution else x[..., margin:margin + resolution,
                                                                  margin:margin + resolution]

    def pad(self, x: Tensor) -> Tensor:
        """x (n, C, r, r) grown to (n, C, top, top) by repeating its border; the mirror of `crop`."""
        missing = self.top - x.shape[-1]
        if missing == 0:
            return x
        before = missing // 2
        return F.pad(x, (before, missing - before, before, missing - before), mode="replicate")
