"""Data and checkpoints that nobody should give, and what becomes of them: a sound result or a clear word."""

import io
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gan.__main__ import main
from gan.checkpoint import load_generator
from gan.classifier import load_classifier
from gan.errors import BadCheckpoint, BadData, CheckpointMismatch
from gan.loop import Hooks, train
from gan.networks import FAMILIES, NetSpec
from gan.presets import Budget, choose
from gan.recipe import Recipe
from gan.sampling import generate

Data = tuple[Tensor, Tensor]
SHORT = Recipe(total_kimg=0.32, batch_size=16)


def trained(images: Tensor, labels: Tensor, classes: int, family: str = "dcgan", recipe: Recipe = SHORT) -> bytes:
    kept: list[bytes] = []
    state = train(images, labels, NetSpec(family, 8, 1, classes, z_dim=8, width=8), recipe, seed=0,
                  hooks=Hooks(on_checkpoint=lambda data, _: kept.append(data)))
    assert state.finished
    loaded = load_generator(kept[-1])
    assert all(torch.isfinite(p).all() for p in loaded.net.parameters())
    assert generate(loaded.net, torch.arange(classes), np.arange(classes)).shape == (classes, 1, 8, 8)
    return kept[-1]


# ---- data -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_one_image_is_learnt_soundly(family: str) -> None:
    trained(torch.full((1, 1, 8, 8), 90, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), 1, family)


def test_two_identical_classes_and_a_batch_larger_than_the_data(squares: Data) -> None:
    images = squares[0][:3].repeat(2, 1, 1, 1)       # the same three images under both labels, in batches of 16
    trained(images, torch.tensor([0, 0, 0, 1, 1, 1]), 2)


@pytest.mark.parametrize("level", [0, 127, 255])
def test_a_constant_class_beside_a_varied_one(squares: Data, level: int) -> None:
    images, labels = squares[0].clone(), squares[1]
    images[labels == 1] = level
    trained(images, labels, 2)


def test_presets_serve_one_image_and_hundreds_of_empty_classes() -> None:
    for counts in ([1], [0] * 500 + [1] + [0] * 499):
        for model in ("auto", *FAMILIES):
            spec, recipe, _ = choose(model, 8, 1, counts, Budget(kimg=1))
            assert spec.classes == len(counts) and recipe.batch_size > 1


@pytest.mark.parametrize(("images", "labels", "words"), [
    (torch.full((4, 1, 8, 8), math.nan), torch.zeros(4, dtype=torch.int64), "uint8"),
    (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.full((4,), math.nan), "int64"),
    (torch.zeros(0, 1, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), "no images"),
])
def test_nan_and_nothing_are_refused_before_any_work(images: Tensor, labels: Tensor, words: str) -> None:
    with pytest.raises(BadData, match=words):
        train(images, labels, NetSpec("mlp", 8, 1, 1, z_dim=4, width=8), SHORT, seed=0)


@pytest.mark.parametrize(("arrays", "words"), [
    ({"images": np.full((4, 8, 8), np.nan)}, "images must be uint8"),
    ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.full(4, np.nan)}, "labels must be whole numbers"),
    ({"images": np.zeros((0, 8, 8), np.uint8)}, "no images"),
    ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.array([0, -1, 0, 0])}, "labels from -1 to 0"),
    ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.arange(4) * 3 * 10**9}, "from 0 to at most 999"),
    ({"images": np.zeros((4, 8, 8), np.uint8), "labels": np.full(4, 2**63 + 5, np.uint64)}, "from 0 to at most 999"),
    ({"images": np.zeros((4, 16, 16, 4), np.uint8)}, "have 4 channels"),
    ({"images": np.zeros((4, 4, 16, 16), np.uint8)}, "have 4 channels"),
    ({"images": np.zeros((4, 10, 10), np.uint8)}, "resolution 10: must be a multiple of 4"),
    ({"images": np.array([object()])}, "plain arrays"),
    ({"images": np.zeros((4, 8, 9), np.uint8)}, "(N, C, H, H)"),
])
def test_the_command_says_what_is_wrong_with_the_data(
    arrays: dict, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    assert main(["train", str(tmp_path / "data.npz"), "--out", str(tmp_path / "m"), "--kimg", "0.1", "--model", "mlp"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ") and words in said
    assert not (tmp_path / "m").exists()


# ---- checkpoints from elsewhere ---------------------------------------------------------------------------------


class Trap:
    """Runs when unpickled."""

    def __reduce__(self) -> tuple:
        return (pytest.fail, ("a pickle was executed",))


def torch_saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("command", ["sample", "info", "train"])
def test_every_command_refuses_strange_checkpoints_with_one_line(
    command: str, squares: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = trained(*squares, 2)
    strange = {
        "pickle": pickle.dumps(Trap()), "torch.save": torch_saved({"g": Trap()}), "truncated": good[: len(good) // 2],
        "tampered": good[:-9] + b"\x01" + good[-8:], "appended": good + b"\0", "empty": b"", "text": b"<html>" * 99,
    }
    np.savez(tmp_path / "data.npz", images=squares[0].numpy()[:, 0], labels=squares[1].numpy())
    file = tmp_path / "m.safetensors"
    arguments = {"sample": ["sample", str(file), "--out", str(tmp_path / "o")], "info": ["info", str(file)],
                 "train": ["train", str(tmp_path / "data.npz"), "--out", str(file), "--resume", "--kimg", "0.32"]}[command]
    for name, data in strange.items():
        file.write_bytes(data)
        assert main(arguments) == 2, name
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[-1].startswith("error: ") and "Traceback" not in "".join(lines), name
        assert file.read_bytes() == data, "a refused checkpoint is left as it was"
    assert not (tmp_path / "o").exists()


def test_a_resume_with_another_family_or_data_names_what_differs(squares: Data) -> None:
    kept = trained(*squares, 2)
    spec = NetSpec("mlp", 8, 1, 2, z_dim=8, width=8)
    with pytest.raises(CheckpointMismatch, match="network family 'dcgan' there, 'mlp' here"):
        train(*squares, spec, SHORT, seed=0, resume=kept)
    with pytest.raises(CheckpointMismatch, match="training data"):
        train(squares[0].flip(0), squares[1], NetSpec("dcgan", 8, 1, 2, z_dim=8, width=8), SHORT, seed=0, resume=kept)


def test_classifiers_from_elsewhere_are_refused(squares: Data) -> None:
    generator = trained(*squares, 2)
    for data in (generator, pickle.dumps(Trap()), torch_saved({"net": Trap()}), b"", b"\0" * 64, b"\xff" * 64, generator[:40]):
        with pytest.raises(BadCheckpoint):
            load_classifier(data)
