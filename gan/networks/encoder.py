"""The encoder that both autoencoding families share: strided convolutions down to a code.

It stands in D's place and the decoder in G's; the decoder's `objective` is what `gan.step` minimises for both.
"""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from gan.networks.norm import Embedding
from gan.networks.spec import Ladder, NetSpec
from gan.networks.stack import Form, widths


class Encoder(nn.Module):
    """x (n, C, H, W), y (n,) → mean and log variance of the code, (n, z_dim) each."""

    def __init__(self, spec: NetSpec, form: Form) -> None:
        super().__init__()
        self.ladder = Ladder.for_resolution(spec.resolution, form.largest_base)
        ws = widths(form.d_narrow, self.ladder.steps)
        self.first = nn.Conv2d(spec.channels, ws[0], 4, 2, 1)
        self.label = Embedding(spec.classes, ws[0], 0.1)
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in pairwise(ws))
        self.head = nn.Linear(ws[-1] * self.ladder.base**2, 2 * spec.z_dim)

    def encode(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, (n, z_dim) each, float32."""
        h = self.first(self.ladder.pad(x))
        h = F.leaky_relu(h + self.label(y).to(h.dtype)[:, :, None, None], 0.2)
        for down in self.downs:
            h = F.leaky_relu(down(h), 0.2)
        mean, log_variance = self.head(h.permute(0, 2, 3, 1).flatten(1)).float().chunk(2, 1)
        return mean, log_variance.clamp(-12.0, 6.0)
