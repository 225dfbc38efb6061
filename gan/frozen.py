"""What a frozen classifier that a discriminator looks through says of a step's images, asked as seldom as can be.

Where nothing is augmented it says the same of a real image each time, and what it says of a generated one serves both turns of a step.
So of the three passes that a step's turns would ask for one is left: of the generated images, once.
"""

import torch
from torch import Tensor

from gan.networks.projected import Projected
from gan.recipe import Recipe
from gan.sampler import as_float

LARGEST_BYTES = 512 * 2**20  # that are kept of all real images
SLOWEST = 500                # images a second that slow machines show, where the budget is in seconds
AT_ONCE = 512


class FrozenFeatures:
    """Standardised φ of a batch's real and generated images, (n, k) each, as the recipe's precision has it.

    Of the real ones it is looked up where that pays: each will be shown twice or more, and all fit in `LARGEST_BYTES`.

    Args:
        images: uint8 (N, C, H, W), all that a batch is drawn from.
    """

    def __init__(self, d: Projected, images: Tensor, recipe: Recipe) -> None:
        self.d = d
        self.dtype = torch.float32 if recipe.precision == "float32" else torch.bfloat16
        self.known: Tensor | None = None
        size = len(images) * len(d.mean) * self.dtype.itemsize
        if size <= LARGEST_BYTES and 2 * len(images) <= _shown(recipe):
            with torch.no_grad(), torch.autocast(images.device.type, self.dtype, enabled=self.dtype != torch.float32):
                self.known = torch.cat([d.standardised(as_float(part)).to(self.dtype) for part in images.split(AT_ONCE)])

    def __call__(self, x: Tensor, rows: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Of real images (n, C, H, W) in [-1, 1], which are these rows of all (n,), without gradient, and of generated ones.

        Call it in the recipe's precision.
        """
        if self.known is not None:
            real = self.known[rows]
        else:
            with torch.no_grad():
                real = self.d.standardised(x).to(self.dtype)
        return real, self.d.standardised(fake).to(self.dtype)


def can_be_shared(recipe: Recipe) -> bool:
    """Whether both turns of a step see the same generated images, and images as they are."""
    never_augmented = recipe.augment_p <= 0 or not (recipe.augment.spatial or recipe.augment.color)
    return never_augmented and not recipe.fresh_g_batch


def _shown(recipe: Recipe) -> float:
    """Images, with repetition, that a run will show, or about the least of it."""
    return recipe.total_images if recipe.total_seconds is None else recipe.total_seconds * SLOWEST
