"""Wasserstein GAN with gradient penalty after Gulrajani 2017: layer norm in the critic, because batch norm would make
the penalty of one image depend on the others.

Options: the fields of `gan.networks.stack.Form`.
"""

from torch import nn

from gan.networks.spec import NetSpec
from gan.networks.stack import Form, build_stack, check_stack

FORM = Form(d_norm="group")


def check(spec: NetSpec) -> None:
    """Raises `UnsupportedSpec` where the family can't serve the spec."""
    check_stack(spec, FORM)


def build(spec: NetSpec) -> tuple[nn.Module, nn.Module]:
    """Generator and critic of the family `wgan-gp`."""
    return build_stack(spec, FORM)
