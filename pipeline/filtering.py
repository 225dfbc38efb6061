"""Which generated images are good enough to be published.

The filter's model is the feature extractor of the evaluation: it knows the train split alone and is not the judge.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pipeline import keys
from pipeline.config import Config
from pipeline.errors import MissingObject, SamplingFailed
from pipeline.store import Store


class ConfidenceFilter:
    """Rejects a row whose asked label has too little probability.

    Args:
        data: the classifier as `evaluation/filter.safetensors` holds it.
        min_confidence: least softmax probability of the asked label, 0 … 1.
    """

    def __init__(self, data: bytes, min_confidence: float):
        from gan.classifier import load_classifier

        self._net, _ = load_classifier(data)
        self._least = min_confidence

    def judge(self, images: np.ndarray, labels: np.ndarray) -> tuple[Mapping[str, np.ndarray], Sequence[str]]:
        """See `pipeline.mint.RowFilter`; images uint8 (n, C, H, W), labels int64 (n,)."""
        import torch

        from gan.classifier import predict

        probabilities = torch.softmax(predict(self._net, torch.from_numpy(images)), dim=1)
        confidence = probabilities[torch.arange(len(labels)), torch.from_numpy(labels)].numpy()
        return {"confidence": confidence}, ["" if c >= self._least else "confidence" for c in confidence]


def load_filter(run: Store, min_confidence: float) -> ConfidenceFilter:
    """The filter that the run's evaluation left.

    Raises:
        SamplingFailed: there is none, because the evaluation had no classes to tell apart.
    """
    try:
        return ConfidenceFilter(run.get(keys.FILTER), min_confidence)
    except MissingObject as e:
        raise SamplingFailed(
            f"sample.filter: no filter model in {run.where()}: it needs evaluate.features: domain and two classes at least; "
            "leave sample.filter out, or evaluate again"
        ) from e


def filter_loader(config: Config) -> Callable[[Store], ConfidenceFilter] | None:
    """What a sampling worker loads its filter with; None when the config asks for none."""
    least = config.sample.filter.get("min_confidence")
    return None if not least else functools.partial(load_filter, min_confidence=least)
