"""One interface for every family: `G(z, y) -> images in [-1, 1]` and `D(x, y) -> logits`.

A family is one file with functions `check(spec)` and `build(spec)`; adding one touches that file, its test and
`FAMILIES`.
"""

from types import ModuleType

import torch
from torch import nn

from gan.errors import UnknownFamily
from gan.networks import autoencoder, dcgan, mlp, r3, sngan, vae, wgan, wgan_gp
from gan.networks.spec import Ladder, NetSpec

__all__ = ["FAMILIES", "Ladder", "NetSpec", "build", "check"]

FAMILIES: dict[str, ModuleType] = {
    "mlp": mlp,
    "dcgan": dcgan,
    "sngan": sngan,
    "wgan": wgan,
    "wgan-gp": wgan_gp,
    "r3": r3,
    "vae": vae,
    "autoencoder": autoencoder,
}


def build(spec: NetSpec, seed: int) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator with initial weights that follow from `seed` alone.

    Returns:
        G: z float (n, z_dim), y int64 (n,) → images float (n, C, H, W) in [-1, 1] (r3: about).
        D: x float (n, C, H, W), y int64 (n,) → logits float32 (n,).

    Raises:
        UnknownFamily: the registry has no `spec.family`.
        UnsupportedSpec: the family can't serve this spec.
    """
    check(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        g, d = FAMILIES[spec.family].build(spec)
    g.z_dim = spec.z_dim
    return g, d


def check(spec: NetSpec) -> None:
    """Raises what `build` would raise, without allocating weights."""
    if spec.family not in FAMILIES:
        raise UnknownFamily(f"family {spec.family!r} is unknown; known: {', '.join(FAMILIES)}")
    FAMILIES[spec.family].check(spec)
