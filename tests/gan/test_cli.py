"""`python -m gan`: from an .npz to a checkpoint to an .npz, on torch and numpy alone."""

import json
import subprocess
import sys
import zipfile
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


def test_help_names_the_commands() -> None:
    told = subprocess.run([sys.executable, "-m", "gan", "--help"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "train" in told.stdout and "sample" in told.stdout


@pytest.mark.parametrize(("arguments", "words"), [
    ("sample pickle --out x.npz", "this is a pickle"), ("sample data.npz --out x.npz", "this is a zip archive"),
    ("sample nothere --out x.npz", "nothere"), ("info .", "Is a directory"),
    ("train pickle --out x --kimg 1", "plain arrays"), ("train text.npz --out x --kimg 1", "plain arrays"),
    ("train damaged.npz --out x --kimg 1", "plain arrays"), ("train raw.npz --out x --kimg 1", "uint8"),
    ("train nothere.npz --out x --kimg 1", "nothere.npz"),
    ("train data.npz --out x --kimg 1 --set learning_rate=1", "learning_rate"),
    ("train data.npz --out x --kimg 1 --set width=1", "width 1"),
    ("train data.npz --out x --kimg nan", "total_kimg nan"), ("train data.npz --out x --kimg 1 --set kl_weight=x", "kl_weight 'x'"),
    ("train data.npz --out x --kimg 1 --set objective=variational", "trained by adversarial alone"),
    ("train data.npz --out x --kimg 1 --device cuda:999", "GPUs here"),
    ("train data.npz --out nofolder/x --kimg 1", "nothing can be written in nofolder (No such file or directory)"),
    ("train data.npz --out text.npz/x --kimg 1", "nothing can be written in text.npz (Not a directory)"),
    ("train data.npz --out . --kimg 1", "is a folder"), ("train data.npz --out x --kimg 1 --resume", "no x to go on from"),
    ("sample nothere --out nofolder/x", "nothing can be written in nofolder"),
])
def test_bad_input_is_told_in_one_line(
    arguments: str, words: str, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pickle").write_bytes(b"\x80\x04rubbish")
    Path("text.npz").write_text("hello")
    Path("damaged.npz").write_bytes(data.read_bytes()[:200])
    with zipfile.ZipFile("raw.npz", "w") as file:
        file.writestr("images", "no array")
    before = sorted(tmp_path.iterdir())
    assert main(arguments.split()) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and words in line and "pickle.load" not in line and "allow_pickle" not in line
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("command", "option", "value"), [
    *(("train", "--seed", value) for value in ("99999999999999999999999", "-1", "9" * 5000, "x", "1.5")),
    *(("train", "--device", value) for value in ("foo", "meta", "mps", "cuda:", "cpu:x")), ("train", "--threads", "-3"),
    ("sample", "--per-class", "-3"), ("sample", "--per-class", "0"), ("sample", "--seed", "99999999999999999999"),
])
def test_bad_usage_is_told_before_anything_is_read(command: str, option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "nothere", "--out", "x", option, value, *(["--kimg", "1"] if command == "train" else [])])
    assert stopped.value.code == 2
    assert f"error: argument {option}: {value} must be " in capsys.readouterr().err


def test_a_failed_training_is_told_apart_from_bad_input(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.safetensors"
    asked = ["train", str(data), "--out", str(out), "--model", "r3", "--kimg", "0.5", "--set", "width=8", "--set", "restarts=0",
             "--set", "metrics_every_s=0", "--set", "lr_g=1e30", "--set", "lr_d=1e30"]
    assert main(asked) == 1
    assert "error: training diverged" in capsys.readouterr().err


def test_seeds_end_where_numbers_do(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = tmp_path / "m.safetensors", tmp_path / "o.npz"
    assert main(["train", str(data), "--out", str(model), "--model", "mlp", "--kimg", "0.1", "--set", "width=8"]) == 0
    assert main(["sample", str(model), "--out", str(out), "--per-class", "2", "--seed", str(2**63 - 3)]) == 2
    assert "seeds end at" in capsys.readouterr().err and not out.exists()
    assert main(["sample", str(model), "--out", str(out), "--per-class", "1", "--seed", str(2**63 - 2)]) == 0
    assert main(["sample", str(model), "--out", str(out), "--per-class", "1", "--seed", "-5"]) == 0


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
