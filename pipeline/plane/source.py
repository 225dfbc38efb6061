"""Where true points come from: the mixture that the config names."""

import hashlib

import numpy as np

from gan.mixtures import MIXTURES, Mixture
from pipeline.config import Config


def mixture_of(config: Config) -> Mixture:
    """The mixture that `source.variant` names."""
    return MIXTURES[config.source.variant or "two"]


def fingerprint(config: Config) -> str:
    """sha256 (hex) of the mixture: its means and deviation."""
    mixture = mixture_of(config)
    return hashlib.sha256(mixture.means.tobytes() + np.float64(mixture.deviation).tobytes()).hexdigest()
