"""The FID network: its shape against torch-fidelity's where that is installed, and files that it refuses."""

import hashlib
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gan import inception
from gan.classifier import embed
from gan.errors import BadWeights
from gan.inception import Inception, fetch, load, resize


@pytest.fixture(scope="module")
def random_net() -> Inception:
    torch.manual_seed(0)
    net = Inception()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.running_mean, 0, 0.1)  # type: ignore[arg-type]
    return net


def test_shape_of_the_published_network(random_net: Inception) -> None:
    assert sum(p.numel() for p in random_net.parameters()) == 21_785_568 + 1008 * 2049      # body, head
    features, logits = embed(random_net, torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8))
    assert features.shape == (2, 2048) and logits.shape == (2, 1008)


def test_against_torch_fidelity(random_net: Inception, tmp_path: Path) -> None:
    theirs = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    torch.save(random_net.state_dict(), tmp_path / "w.pth")
    oracle = theirs.FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], str(tmp_path / "w.pth"))
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    want = oracle(images)
    for got, expected in zip(embed(random_net, images), want):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_resize_reads_corners_not_centres() -> None:
    x = torch.tensor([[0.0, 10.0], [20.0, 30.0]])[None, None]
    got = resize(x, 4)[0, 0].numpy()
    np.testing.assert_allclose(got, [[0, 5, 10, 10], [10, 15, 20, 20], [20, 25, 30, 30], [20, 25, 30, 30]])


def test_weights_by_path(random_net: Inception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(random_net.state_dict(), tmp_path / "w.safetensors")
    again = load(tmp_path / "w.safetensors")
    assert torch.equal(again.fc.weight, random_net.fc.weight) and not again.training
    torch.save(random_net.state_dict(), tmp_path / "w.pth")
    monkeypatch.setattr(inception, "SHA256_BEGINS", hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()[:8])
    assert torch.equal(load(tmp_path / "w.pth").fc.weight, random_net.fc.weight)


def test_refusals(tmp_path: Path, random_net: Inception) -> None:
    with pytest.raises(BadWeights, match=r"is not there.*fetch https://"):
        load(tmp_path / "none.pth")

    class Evil:
        def __reduce__(self) -> tuple:
            return sys.exit, (3,)

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(BadWeights, match="another file"):
        load(tmp_path / "evil.pth")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10")
    with pytest.raises(BadWeights, match="not a whole"):
        load(tmp_path / "cut.safetensors")
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({"fc.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(BadWeights, match="does not hold"):
        load(tmp_path / "other.safetensors")


def test_downloads_are_checked_and_wrong_ones_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").write_bytes(b"weights")
    url = (tmp_path / "source").as_uri()
    with pytest.raises(BadWeights, match="not 6726825d"):
        fetch(tmp_path / "kept" / "w.pth", url)
    assert list((tmp_path / "kept").iterdir()) == []
    monkeypatch.setattr(inception, "SHA256_BEGINS", hashlib.sha256(b"weights").hexdigest()[:8])
    assert fetch(tmp_path / "kept" / "w.pth", url).read_bytes() == b"weights"
    with pytest.raises(BadWeights, match="can't be fetched"):
        fetch(tmp_path / "elsewhere.pth", (tmp_path / "nothing").as_uri())
    assert fetch(tmp_path / "kept" / "w.pth", "file:///nowhere").exists()     # what is there is not fetched again
