"""Every conditional family learns what its labels mean: scikit-learn's digits, a small budget, an independent classifier."""

import numpy as np
import pytest
import torch
from torch import Tensor

from gan.classifier import Classifier, embed, train_classifier
from gan.loop import train
from gan.presets import Budget, choose
from gan.sampling import generate

CHANCE = 0.1


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy((found.images * (255 / 16)).round().astype(np.uint8))[:, None]
    return images, torch.from_numpy(found.target).long()


@pytest.fixture(scope="module")
def judge(digits: tuple[Tensor, Tensor]) -> Classifier:
    return train_classifier(*digits, 10, steps=200, seed=1, width=8, architecture="conv")


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kimg"), [
    ("dcgan", 60), ("sngan", 60), ("wgan", 100), ("wgan-gp", 100), ("r3", 40), ("mlp", 100), ("vae", 60)])
def test_samples_are_what_was_asked_for(family: str, kimg: float, digits: tuple[Tensor, Tensor], judge: Classifier) -> None:
    images, labels = digits
    spec, recipe, _ = choose(family, 8, 1, torch.bincount(labels).tolist(), Budget(kimg=kimg))
    state = train(images, labels, spec, recipe, seed=0)
    y = torch.arange(10).repeat_interleave(50)
    agreement = float((embed(judge, generate(state.ema, y, np.arange(500)))[1].argmax(1) == y).double().mean())
    assert agreement > 5 * CHANCE, agreement
