"""Nothing that makes, filters or measures images may have seen the images that judge them."""

import hashlib

from torch import Tensor

from pipeline.errors import Leakage


def rows_digest(images: Tensor, labels: Tensor) -> str:
    """sha256 (16 hex) over images and labels, as `gan.loop` takes it of what it trains on."""
    digest = hashlib.sha256(images.contiguous().numpy().data)
    digest.update(labels.contiguous().numpy().data)
    return digest.hexdigest()[:16]


def check_trained_on(digest: str | None, images: Tensor, labels: Tensor, who: str) -> None:
    """Holds what something was trained on against the train split's rows.

    Args:
        digest: `rows_digest` of what it was trained on; None where it was not trained at all.

    Raises:
        Leakage: it was trained on other rows than the train split.
    """
    if digest is not None and digest != rows_digest(images, labels):
        raise Leakage(f"{who} was trained on other rows than this run's train split, so its figures would mean nothing; "
                      "train again under another --run-id")
