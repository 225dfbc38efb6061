"""Wasserstein GAN after Arjovsky 2017: DCGAN's shapes, a critic without norm that weight clipping keeps Lipschitz.

Options: the fields of `gan.networks.stack.Form`.
"""

from torch import nn

from gan.networks.spec import NetSpec
from gan.networks.stack import Form, build_stack, check_stack

FORM = Form(d_norm="none")


def check(spec: NetSpec) -> None:
    """Raises `UnsupportedSpec` where the family can't serve the spec."""
    check_stack(spec, FORM)


def build(spec: NetSpec) -> tuple[nn.Module, nn.Module]:
    """Generator and critic of the family `wgan`."""
    return build_stack(spec, FORM)
