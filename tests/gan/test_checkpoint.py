"""Checkpoints: whole, ours, unchanged, or refused by name; nothing is ever executed."""

import contextlib
import copy
import io
import json
import math
import pickle
import struct
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as reference_load
from safetensors.torch import save as reference_save
from torch import Tensor

from gan import checkpoint
from gan.checkpoint import load_generator, read_tensors, restore, write_tensors
from gan.errors import BadCheckpoint, CheckpointMismatch
from gan.loop import Hooks, new_state, train
from gan.networks import NetSpec
from gan.recipe import Recipe

SPEC = NetSpec("dcgan", 8, 1, 2, z_dim=8, width=8)
RECIPE = Recipe(total_kimg=0.064, batch_size=16)
MISSING = object()


@pytest.fixture(scope="module")
def made(squares: tuple[Tensor, Tensor]) -> tuple[bytes, dict]:
    kept: list[tuple[bytes, dict]] = []
    train(*squares, SPEC, RECIPE, seed=4,
          hooks=Hooks(on_checkpoint=lambda *a: kept.append(a)))
    return kept[-1]


def test_loads_averaged_weights_ready_to_sample(made: tuple[bytes, dict], squares: tuple[Tensor, Tensor]) -> None:
    data, meta = made
    loaded = load_generator(data)
    state = train(*squares, SPEC, RECIPE, seed=4)
    for name, tensor in state.ema.state_dict().items():
        assert torch.equal(loaded.net.state_dict()[name], tensor)
    assert not loaded.net.training and loaded.spec == SPEC
    assert meta["kimg"] == 0.064 and len(meta["sha256"]) == 64 and meta["bytes"] == len(data)
    assert json.loads(json.dumps(meta)) == meta


def test_safetensors_package_reads_ours_and_same_content_same_bytes(made: tuple[bytes, dict]) -> None:
    data, _ = made
    theirs, (ours, meta) = reference_load(data), read_tensors(data)
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[k], ours[k]) for k in ours)
    assert write_tensors(ours, meta) == data


def test_every_dtype_and_shape_survives() -> None:
    tensors = {"a": torch.randn(3, 2).bfloat16(), "b": torch.tensor(True), "c": torch.arange(5), "d": torch.zeros(0, 4),
               "e": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), "f": torch.tensor(1.5).double()}
    back, _ = read_tensors(write_tensors(tensors, {"format": 1}))
    assert all(torch.equal(back[k], v) and back[k].dtype == v.dtype for k, v in tensors.items())


class Trap:
    """Runs when unpickled."""

    def __reduce__(self) -> tuple:
        return (pytest.fail, ("a pickle was executed",))


def test_pickles_are_refused_unopened() -> None:
    zipped = io.BytesIO()
    torch.save({"g": Trap()}, zipped)
    for data in (pickle.dumps(Trap()), zipped.getvalue(), pickle.dumps(Trap(), protocol=0)):
        with pytest.raises(BadCheckpoint):
            load_generator(data)
    with pytest.raises(BadCheckpoint, match="pickle"):
        load_generator(zipped.getvalue())
    arrays = io.BytesIO()
    np.savez(arrays, images=np.zeros(3))
    with pytest.raises(BadCheckpoint, match="zip archive"):
        load_generator(arrays.getvalue())


@settings(max_examples=150, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed(made: tuple[bytes, dict], where: float, bit: int) -> None:
    data = bytearray(made[0])
    data[int(where * len(data))] ^= 1 << bit
    with pytest.raises(BadCheckpoint):
        load_generator(bytes(data))


def test_any_flipped_bit_of_the_header_is_noticed(made: tuple[bytes, dict]) -> None:
    length = struct.unpack("<Q", made[0][:8])[0]
    for place in range(0, 8 + length, 7):
        data = bytearray(made[0])
        data[place] ^= 1 << place % 8
        with pytest.raises(BadCheckpoint):
            read_tensors(bytes(data))


@settings(max_examples=50, deadline=None)
@given(kept=st.floats(0, 1, exclude_max=True))
def test_truncation_is_noticed(made: tuple[bytes, dict], kept: float) -> None:
    with pytest.raises(BadCheckpoint):
        load_generator(made[0][: int(kept * len(made[0]))])


def test_appended_bytes_and_noise_are_noticed(made: tuple[bytes, dict]) -> None:
    for data in (made[0] + b"\0", b"", b"\0" * 100, b"<html>" * 50, struct.pack("<Q", 2**60) + b"{}" * 10):
        with pytest.raises(BadCheckpoint):
            load_generator(data)


def test_foreign_safetensors_are_refused() -> None:
    with pytest.raises(BadCheckpoint, match="not a checkpoint of ganmill"):
        load_generator(reference_save({"weight": torch.zeros(3)}))
    with pytest.raises(BadCheckpoint, match="not a checkpoint of ganmill"):
        load_generator(reference_save({"weight": torch.zeros(3)}, metadata={"format": "pt"}))


def test_other_family_format_and_shapes_are_refused(made: tuple[bytes, dict]) -> None:
    tensors, meta = read_tensors(made[0])
    for change, word in (({"spec": meta["spec"] | {"family": "mlp"}}, "fit"),
                         ({"spec": meta["spec"] | {"family": "biggan"}}, "biggan"), ({"spec": {}}, "not understood"),
                         ({"spec": meta["spec"] | {"width": 12}}, "not"), ({"format": 2}, "format 2"),
                         ({"recipe": meta["recipe"] | {"loss": "lsgan"}}, "lsgan")):
        with pytest.raises(BadCheckpoint, match=word):
            load_generator(write_tensors(tensors, meta | change))
    with pytest.raises(BadCheckpoint, match="differ"):
        load_generator(write_tensors({k: v for k, v in tensors.items() if k != "ema/last.bias"}, meta))


def tampered(data: bytes, part: str, name: str, value: Any) -> bytes:
    """With one value of the description (or of its `part`) another, or gone, under a digest that fits."""
    tensors, meta = read_tensors(data)
    place = meta[part] if part else meta
    if value is MISSING:
        del place[name]
    else:
        place[name] = value
    return write_tensors(tensors, meta)


@pytest.mark.parametrize("part", ["", "spec", "recipe"])
def test_nothing_that_a_tamperer_writes_breaks_the_reader(part: str, made: tuple[bytes, dict], squares: tuple[Tensor, Tensor]) -> None:
    meta = read_tensors(made[0])[1]
    for name in meta[part] if part else meta:
        for value in (MISSING, None, [], {}, "x", [1], [["a"]], 7, -1, 1.5, math.nan, 10**400, True):
            data = tampered(made[0], part, name, value)
            state = new_state(*squares, SPEC, RECIPE, 4, torch.device("cpu"))
            with contextlib.suppress(BadCheckpoint):
                loaded = load_generator(data)
                assert len(loaded.meta["rows_per_class"]) == 2 and loaded.meta["recipe"]["objective"] in ("adversarial", "variational")
            with contextlib.suppress(BadCheckpoint, CheckpointMismatch):
                restore(state, data)
                assert state.step == 4 or name == "step"


@pytest.mark.parametrize(("name", "value"), [
    ("spec", {"family": ["a"]}), ("spec", "x"), ("recipe", "x"), ("rows_per_class", MISSING), ("rows_per_class", 7),
    ("rows_per_class", [1]), ("rows_per_class", [1, -1]), ("rows_per_class", [1, "2"]), ("averaged", "x"), ("earlier", True), ("step", -1),
    ("step", 1.5), ("step", 10**400), ("elapsed_s", math.nan), ("finished", 1), ("restarts", "x"), ("restarts", [1]), ("seed", MISSING),
    ("data", 7), ("software", []), ("kimg", "x"),
])
def test_descriptions_of_other_types_are_refused(name: str, value: Any, made: tuple[bytes, dict]) -> None:
    with pytest.raises(BadCheckpoint, match="not understood"):
        load_generator(tampered(made[0], "", name, value))


def test_files_from_before_a_value_was_told_are_read(made: tuple[bytes, dict], squares: tuple[Tensor, Tensor]) -> None:
    tensors, meta = read_tensors(made[0])
    before = torch.get_rng_state()
    old = write_tensors(tensors | {"rng/torch": before.flip(0)},
                        {name: value for name, value in meta.items() if name not in ("earlier", "restarts")})
    assert load_generator(old).meta["restarts"] == []
    state = new_state(*squares, SPEC, RECIPE, 4, torch.device("cpu"))
    restore(state, old)
    assert state.step == 4 and torch.equal(torch.get_rng_state(), before)


def test_weights_that_are_no_numbers_or_of_another_type_are_refused(made: tuple[bytes, dict], squares: tuple[Tensor, Tensor]) -> None:
    tensors, meta = read_tensors(made[0])
    name = "ema/first.weight"
    broken = copy.deepcopy(tensors[name])
    broken[0, 0] = math.nan
    for tensor, words in ((broken, "first.weight holds NaN"), (tensors[name].double(), r"is F64 \(.*\), not F32 \(")):
        with pytest.raises(BadCheckpoint, match=words):
            load_generator(write_tensors(tensors | {name: tensor}, meta))
    for odd in ("opt_g/3", "opt_g//step", "opt_g/999/step", "opt_g/x/step"):
        with pytest.raises(BadCheckpoint, match="fits no weight"):
            restore(new_state(*squares, SPEC, RECIPE, 4, torch.device("cpu")), write_tensors(tensors | {odd: torch.tensor(1.0)}, meta))


def test_an_optimizer_that_lacks_something_is_refused(made: tuple[bytes, dict], squares: tuple[Tensor, Tensor]) -> None:
    tensors, meta = read_tensors(made[0])
    of_g = {name for name in tensors if name.startswith("opt_g/")}
    first = min(name for name in of_g if name.endswith("/exp_avg"))
    one_less = {name: tensor for name, tensor in tensors.items() if name != first}
    without = {name: tensor for name, tensor in tensors.items() if name not in of_g}
    for broken, words in ((one_less, "holds exp_avg_sq, step, not exp_avg, exp_avg_sq, step"), (without, "holds nothing of opt_g"),
                          (tensors | {first: torch.tensor(0.0)}, r"exp_avg is \(\), not \(")):
        with pytest.raises(BadCheckpoint, match=words):
            restore(new_state(*squares, SPEC, RECIPE, 4, torch.device("cpu")), write_tensors(broken, meta))


def test_malformed_entries_are_refused(made: tuple[bytes, dict]) -> None:
    tensors, meta = {"a": torch.zeros(4)}, made[1]
    good = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    assert torch.equal(read_tensors(forge(tensors, meta, good))[0]["a"], tensors["a"])
    for entry in (good | {"data_offsets": [0, 12]}, good | {"shape": [5]}, good | {"dtype": "F99"}, {"shape": [4]}, 7,
                  good | {"shape": [-4]}, good | {"shape": [math.inf]}, good | {"data_offsets": [16, 32]}, good | {"data_offsets": [0]}):
        with pytest.raises(BadCheckpoint, match="malformed"):
            read_tensors(forge(tensors, meta, entry))


def forge(tensors: dict[str, Tensor], meta: dict, entry: object) -> bytes:
    """A file of ours with one entry replaced and a digest that fits: what a careful forger would send."""
    data = write_tensors(tensors, meta | {"format": 1})
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + length])
    header["a"], header["__metadata__"]["sha256"] = entry, "0" * 64
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    out = bytearray(struct.pack("<Q", len(raw)) + raw + data[8 + length:])
    digest = checkpoint.hashlib.sha256(out).hexdigest().encode()
    place = out.index(b'"sha256":"' + b"0" * 64) + 10
    out[place:place + 64] = digest
    return bytes(out)
