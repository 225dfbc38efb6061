"""SNGAN after Miyato 2018: spectral normalisation in D, the label by projection, gain and bias for each class in G.

Options: the fields of `gan.networks.stack.Form`.
"""

from torch import nn

from gan.networks.spec import NetSpec
from gan.networks.stack import Form, build_stack, check_stack

FORM = Form(conditioning="projection", d_norm="spectral", class_norm=True)


def check(spec: NetSpec) -> None:
    """Raises `UnsupportedSpec` where the family can't serve the spec."""
    check_stack(spec, FORM)


def build(spec: NetSpec) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator of the family `sngan`."""
    return build_stack(spec, FORM)
