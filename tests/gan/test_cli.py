"""`python -m gan`: from an .npz to a checkpoint to an .npz, on torch and numpy alone."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from gan.__main__ import main, read_npz
from gan.errors import BadData

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(squares: tuple[Tensor, Tensor], tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, images=squares[0].numpy()[:, 0], labels=squares[1].numpy())
    return path


def test_train_info_sample(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, out = tmp_path / "model.safetensors", tmp_path / "out.npz"
    assert main(["train", str(data), "--out", str(checkpoint), "--model", "mlp", "--kimg", "0.5", "--batch-size", "16",
                 "--set", "width=16", "--set", "lr_g=0.001"]) == 0
    assert main(["info", str(checkpoint)]) == 0
    meta = json.loads(capsys.readouterr().out)
    assert meta["spec"]["family"] == "mlp" and meta["spec"]["width"] == 16 and meta["recipe"]["lr_g"] == 0.001
    assert main(["sample", str(checkpoint), "--out", str(out), "--per-class", "3"]) == 0
    with np.load(out) as file:
        assert file["images"].shape == (6, 1, 8, 8) and file["images"].dtype == np.uint8
        assert file["labels"].tolist() == [0, 0, 0, 1, 1, 1] and file["seeds"].tolist() == list(range(6))
    assert main(["train", str(data), "--out", str(checkpoint), "--model", "mlp", "--kimg", "0.5", "--batch-size", "16",
                 "--set", "width=16", "--set", "lr_g=0.001", "--resume"]) == 0


def test_needs_torch_and_numpy_alone(tmp_path: Path, data: Path) -> None:
    """On a path that holds torch, numpy, what torch itself needs, and gan: nothing else of this environment."""
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "gan").symlink_to(ROOT / "gan")
    for installed in {Path(p) for p in sys.path if Path(p).name == "site-packages"}:
        for name in ("torch", "torchgen", "functorch", "numpy", "numpy.libs", "typing_extensions.py", "sympy", "mpmath",
                     "networkx", "jinja2", "markupsafe", "filelock", "fsspec", "setuptools"):
            if (installed / name).exists() and not (bare / name).exists():
                (bare / name).symlink_to(installed / name)
    script = f"""
import sys
sys.path = [p for p in sys.path if 'site-packages' not in p]
sys.path.insert(0, {str(bare)!r})
from gan.__main__ import main
assert main(['train', {str(data)!r}, '--out', 'm.safetensors', '--kimg', '0.1']) == 0
assert main(['sample', 'm.safetensors', '--out', 'o.npz', '--per-class', '2']) == 0
import gan.presets, gan.mixtures
assert not {{'safetensors', 'scipy', 'sklearn', 'PIL'}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-S", "-c", script], cwd=tmp_path, check=True, timeout=120)


def test_help_and_bad_input_is_one_line(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = subprocess.run([sys.executable, "-m", "gan", "--help"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "train" in told.stdout and "sample" in told.stdout
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"\x80\x04rubbish")
    cases = [["sample", str(bad), "--out", str(tmp_path / "x.npz")], ["sample", str(tmp_path / "no"), "--out", "x"],
             ["train", str(bad), "--out", "x", "--kimg", "1"],
             ["train", str(data), "--out", "x", "--kimg", "1", "--set", "learning_rate=1"]]
    for case in cases:
        assert main(case) in (1, 2)
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and "Traceback" not in error


def test_shapes_of_images(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for given, wanted in (((5, 8, 8), (5, 1, 8, 8)), ((5, 8, 8, 3), (5, 3, 8, 8)), ((5, 3, 8, 8), (5, 3, 8, 8))):
        np.savez(path, images=np.zeros(given, np.uint8))
        images, labels = read_npz(path)
        assert images.shape == wanted and labels.tolist() == [0] * 5
    for wrong in ({"pictures": np.zeros(3)}, {"images": np.zeros((5, 8, 8))},
                  {"images": np.zeros((5, 8, 8), np.uint8), "labels": np.zeros(4, np.int64)},
                  {"images": np.array([object()])}):
        np.savez(path, **wrong)
        with pytest.raises(BadData):
            read_npz(path)


def test_truncated_and_passing_samples(data: Path, tmp_path: Path, squares: tuple[Tensor, Tensor],
                                       capsys: pytest.CaptureFixture[str]) -> None:
    model, held_out, out = tmp_path / "m.safetensors", tmp_path / "held-out.npz", tmp_path / "out.npz"
    np.savez(held_out, images=squares[0].numpy()[::-1, 0], labels=squares[1].numpy()[::-1])
    assert main(["train", str(data), "--out", str(model), "--model", "dcgan", "--kimg", "0.5", "--set", "width=8"]) == 0
    sample = ["sample", str(model), "--out", str(out), "--per-class", "5"]
    plain, passing = {}, {}
    assert main([*sample, "--truncation", "0.5"]) == 0
    with np.load(out) as file:
        plain.update(file)
    assert main([*sample, "--truncation", "0.5", "--reject", str(held_out), "--keep", "0.6"]) == 0
    assert "of the draws passed" in capsys.readouterr().err
    with np.load(out) as file:
        passing.update(file)
    same = plain["seeds"] == passing["seeds"]
    assert same.any() and not same.all() and (passing["draws"][same] == 1).all() and (passing["draws"][~same] > 1).all()
    assert np.abs(plain["images"][same].astype(int) - passing["images"][same]).max() <= 1
    for more, words in ((["--reject", str(data)], "very images that were trained on"), (["--keep", "0.5"], "--reject"),
                        (["--truncation", "-1"], "truncation"), (["--reject", str(held_out), "--keep", "2"], "keep")):
        assert main([*sample, *more]) == 2
        assert words in capsys.readouterr().err
    assert main(["train", str(data), "--out", str(model), "--model", "vae", "--kimg", "0.1", "--set", "width=8"]) == 0
    assert main([*sample, "--reject", str(held_out)]) == 2
    assert "family vae has none" in capsys.readouterr().err
