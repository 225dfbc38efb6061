"""Deep convolutional GAN after Radford 2015, in the form that learns most in minutes on a CPU.

What was measured to count, by weight: spectral norm in D with the hinge loss lets both players learn at ten times
the usual rate; a batch of 32, since in minutes the number of updates counts more than the gradient's noise; Adam
without momentum, for the opponent moves; gain and bias for each class in G's batch norm; a light G with one residual
block at its base and one more layer at D's base, where multiplications are cheapest. The preset also lets D see the
features of a small classifier (`gan.networks.projected`). Radford's own form, batch norm in both players and the label
by concatenation, is `options: {d_norm: batch, class_norm: false, conditioning: concat, g_blocks: 0, d_blocks: 0,
largest_base: 7, features: 0}`.

Options: the fields of `gan.networks.stack.Form`.
"""

from torch import nn

from gan.networks.spec import NetSpec
from gan.networks.stack import Form, build_stack, check_stack

FORM = Form(conditioning="both", d_norm="spectral", class_norm=True, g_narrow=32, d_narrow=32, g_blocks=1, d_blocks=1)


def check(spec: NetSpec) -> None:
    """Raises `UnsupportedSpec` where the family can't serve the spec."""
    check_stack(spec, FORM)


def build(spec: NetSpec) -> tuple[nn.Module, nn.Module]:
    """Generator and discriminator of the family `dcgan`."""
    return build_stack(spec, FORM)
