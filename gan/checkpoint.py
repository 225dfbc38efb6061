"""Checkpoints: safetensors bytes, nothing that can be executed, every byte covered by one sha256.

The file is the safetensors format: 8 bytes little-endian header length, a JSON header, raw tensors. Its metadata
holds `ganmill`, a JSON of what the checkpoint is, and `sha256`, the digest of the whole file with these 64 digits set
to zero. Written and read here, so that torch and numpy suffice; the `safetensors` package reads it as well.
"""

import copy
import dataclasses
import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gan.errors import BadCheckpoint, BadRecipe, CheckpointMismatch, UnknownFamily, UnsupportedSpec
from gan.networks import NetSpec, build
from gan.recipe import MOST_SNAPSHOTS, Recipe
from gan.sampling import Mixture

FORMAT = 1
_ZEROS = "0" * 64
_MAX_HEADER = 64 * 1024 * 1024
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
           "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
           "BOOL": torch.bool}
# What JSON a checkpoint tells of itself beside network and recipe. Numbers but the seed are from 0 to `_MOST`.
_TYPES: dict[str, tuple[type, ...]] = {
    "seed": (int,), "config_digest": (str,), "data": (str,), "step": (int,), "images_seen": (int,), "kimg": (int, float),
    "elapsed_s": (int, float), "progress": (int, float), "lr_scale": (int, float), "augment_p": (int, float), "finished": (bool,),
    "rows_per_class": (list,), "averaged": (bool,), "earlier": (int,), "restarts": (list,), "software": (dict,),
}
_LATER: dict[str, Any] = {"earlier": 0, "restarts": []}          # which older files don't have
_MOST = 2**53
_SLOTS = {torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"}, torch.optim.RMSprop: {"step", "square_avg"}}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass
class TrainState:
    """Everything that training carries from step to step."""

    spec: NetSpec
    recipe: Recipe
    seed: int
    data: str                                        # digest of the training images and labels
    g: nn.Module
    d: nn.Module
    ema: nn.Module                                   # the generator's average; `g` itself where averaging is off
    opt_g: torch.optim.Optimizer
    opt_d: torch.optim.Optimizer
    step: int = 0
    elapsed_s: float = 0.0
    finished: bool = False
    rows_per_class: tuple[int, ...] = ()
    earlier: tuple[nn.Module, ...] = ()              # `ema` as it was at earlier points of the run, oldest first; see `Recipe.snapshots`
    restarts: tuple[str, ...] = ()                   # why the run went back to an earlier checkpoint, each time
    software: dict[str, str] = field(default_factory=lambda: {"torch": str(torch.__version__)})

    @property
    def images_seen(self) -> int:
        """Real images shown to the discriminator so far."""
        return self.step * self.recipe.batch_size

    @property
    def kimg(self) -> float:
        """Thousands of real images shown to the discriminator so far."""
        return self.images_seen / 1000

    @property
    def sampler(self) -> nn.Module:
        """What to sample from: the average, or a mixture of it and the earlier ones."""
        return Mixture([*self.earlier, self.ema]) if self.earlier else self.ema

    def keep_snapshot(self) -> None:
        """Adds the average, as it is now, to the earlier ones."""
        self.earlier = (*self.earlier, copy.deepcopy(self.ema).requires_grad_(False).eval())

    def meta(self) -> dict[str, Any]:
        """What the checkpoint says of itself, plain JSON values."""
        t = self.recipe.progress(self.images_seen, self.elapsed_s)
        return {
            "format": FORMAT, "spec": self.spec.to_dict(), "recipe": self.recipe.to_dict(), "seed": self.seed,
            "config_digest": config_digest(self.spec, self.recipe, self.seed), "data": self.data, "step": self.step,
            "images_seen": self.images_seen, "kimg": self.kimg, "elapsed_s": self.elapsed_s, "progress": t,
            "lr_scale": self.recipe.lr_scale(t), "augment_p": self.recipe.augment_p_at(t), "finished": self.finished,
            "rows_per_class": list(self.rows_per_class), "averaged": self.ema is not self.g, "earlier": len(self.earlier),
            "restarts": list(self.restarts), "software": self.software,
        }


@dataclass(frozen=True)
class LoadedGenerator:
    """A generator ready to sample: `net` in evaluation mode with averaged weights, a `Mixture` where the run kept snapshots."""

    net: nn.Module
    spec: NetSpec
    meta: dict[str, Any]
    discriminator: nn.Module


def config_digest(spec: NetSpec, recipe: Recipe, seed: int) -> str:
    """sha256 (16 hex) over everything that decides the result but the data."""
    content = {"spec": spec.to_dict(), "recipe": recipe.to_dict(), "seed": seed}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def save(state: TrainState) -> tuple[bytes, dict[str, Any]]:
    """A whole training state as bytes, and what they hold as plain JSON values (with `sha256` and `bytes`)."""
    tensors: dict[str, Tensor] = {}
    networks = {"g": state.g, "d": state.d} | ({"ema": state.ema} if state.ema is not state.g else {})
    networks |= {_earlier(number): network for number, network in enumerate(state.earlier)}
    for prefix, network in networks.items():
        tensors |= {f"{prefix}/{name}": t for name, t in network.state_dict().items()}
    for prefix, optimizer in (("opt_g", state.opt_g), ("opt_d", state.opt_d)):
        for index, slots in optimizer.state_dict()["state"].items():
            tensors |= {f"{prefix}/{index}/{name}": torch.as_tensor(t) for name, t in slots.items() if t is not None}
    meta = state.meta()
    data = write_tensors(tensors, meta)
    return data, meta | {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def load_generator(data: bytes) -> LoadedGenerator:
    """The generator (averaged weights, evaluation mode) of a checkpoint.

    Raises:
        BadCheckpoint: not a checkpoint of ours, not whole, changed, of a family unknown here, or with weights that are no numbers.
    """
    tensors, meta = read_tensors(data)
    spec, recipe = _description(meta)
    try:
        g, d = build(spec, seed=0)
    except (UnknownFamily, UnsupportedSpec) as e:
        raise BadCheckpoint(f"the checkpoint's network can't be built: {e}") from e
    _restore_network(g, tensors, "ema" if meta.get("averaged") else "g")
    _restore_network(d, tensors, "d")
    earlier = _restore_earlier(g, tensors, meta)
    net = Mixture([*earlier, g]) if earlier else g
    if odd := [name for name, tensor in net.state_dict().items() if not torch.isfinite(tensor).all()]:
        raise BadCheckpoint(f"the generator's weight {odd[0]} holds NaN or infinity: it can't be sampled")
    meta = _LATER | meta | {"spec": spec.to_dict(), "recipe": recipe.to_dict()}
    return LoadedGenerator(net.eval().requires_grad_(False), spec, meta, d.eval().requires_grad_(False))


def restore(state: TrainState, data: bytes) -> None:
    """Puts a freshly built state where the checkpoint left off; memory layout and device stay the state's.

    No random state is needed: all draws follow from seed and step (see `gan.sampler`). Older files hold torch's, which had no say.

    Raises:
        BadCheckpoint: as for `load_generator`.
        CheckpointMismatch: it was made by another network, recipe, seed or data; names what differs.
    """
    tensors, meta = read_tensors(data)
    _check_same(state, meta)
    _restore_network(state.g, tensors, "g")
    _restore_network(state.d, tensors, "d")
    if state.ema is not state.g:
        _restore_network(state.ema, tensors, "ema")
    state.earlier = tuple(network.requires_grad_(False).eval() for network in _restore_earlier(state.ema, tensors, meta))
    for prefix, optimizer in (("opt_g", state.opt_g), ("opt_d", state.opt_d)):
        _restore_optimizer(optimizer, tensors, prefix)
        if not any(name.startswith(f"{prefix}/") for name in tensors) and meta["step"] >= state.recipe.d_steps:
            raise BadCheckpoint(f"it is of step {meta['step']}, but holds nothing of {prefix}, an optimizer that had its turns")
    state.step, state.elapsed_s, state.finished = meta["step"], float(meta["elapsed_s"]), meta["finished"]
    state.restarts = tuple(meta.get("restarts", ()))


def _description(meta: Mapping[str, Any]) -> tuple[NetSpec, Recipe]:
    """Network and recipe, after all that the checkpoint tells of itself was checked: anyone can write a digest that fits.

    Raises:
        BadCheckpoint: something is missing, of another type, or out of range.
    """
    try:
        spec, recipe = NetSpec.from_dict({**meta["spec"]}), Recipe.from_dict({**meta["recipe"]})
    except (KeyError, TypeError, UnsupportedSpec, BadRecipe) as e:
        raise BadCheckpoint(f"the checkpoint's description is not understood: {e}") from e
    told = _LATER | dict(meta)
    for name, types in _TYPES.items():
        value = told.get(name)
        if type(value) not in types or (name != "seed" and isinstance(value, int | float) and not 0 <= value <= _MOST):
            raise BadCheckpoint(f"the checkpoint's description is not understood: {name} {value!r}")
    rows, restarts = told["rows_per_class"], told["restarts"]
    if len(rows) != spec.classes or not all(type(n) is int and n >= 0 for n in rows) or not all(type(reason) is str for reason in restarts):
        raise BadCheckpoint(f"the checkpoint's description is not understood: rows_per_class must be {spec.classes} counts, restarts text")
    return spec, recipe


def _check_same(state: TrainState, meta: Mapping[str, Any]) -> None:
    spec, recipe = _description(meta)
    differing = []
    for kind, ours, theirs in (("network", state.spec, spec), ("recipe", state.recipe, recipe)):
        for f in dataclasses.fields(ours):
            a, b = getattr(ours, f.name), getattr(theirs, f.name)
            if a != b:
                differing.append(f"{kind} {f.name} {b!r} there, {a!r} here")
    if state.seed != meta.get("seed"):
        differing.append(f"seed {meta.get('seed')!r} there, {state.seed!r} here")
    if state.data != meta.get("data"):
        differing.append("the training data")
    if differing:
        raise CheckpointMismatch("the checkpoint belongs to another run: " + "; ".join(differing))


def _restore_network(network: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    found = {name.removeprefix(f"{prefix}/"): t for name, t in tensors.items() if name.startswith(f"{prefix}/")}
    wanted = network.state_dict()
    if found.keys() != wanted.keys():
        odd = sorted(found.keys() ^ wanted.keys())
        raise BadCheckpoint(f"weights of {prefix} don't fit the network it names: {', '.join(odd[:4])} differ")
    with torch.no_grad():
        for name, tensor in wanted.items():
            if found[name].shape != tensor.shape or found[name].dtype != tensor.dtype:
                there, here = (f"{_NAMES[t.dtype]} {tuple(t.shape)}" for t in (found[name], tensor))
                raise BadCheckpoint(f"weight {prefix}/{name} is {there}, not {here}")
            tensor.copy_(found[name])


def _restore_earlier(like: nn.Module, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> list[nn.Module]:
    """The snapshots in a checkpoint, oldest first, each a network like `like`."""
    count = meta.get("earlier", 0)
    if not isinstance(count, int) or not 0 <= count < MOST_SNAPSHOTS:
        raise BadCheckpoint(f"the checkpoint says that it holds {count!r} earlier generators")
    networks = [copy.deepcopy(like) for _ in range(count)]
    for number, network in enumerate(networks):
        _restore_network(network, tensors, _earlier(number))
    return networks


def _earlier(number: int) -> str:
    return f"earlier{number}"


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    fused = all(group.get("fused") for group in optimizer.param_groups)
    found: dict[str, set[str]] = {}
    for name, tensor in tensors.items():
        if not name.startswith(f"{prefix}/"):
            continue
        index, _, slot = name.removeprefix(f"{prefix}/").partition("/")
        if not slot or index not in map(str, range(len(parameters))):
            raise BadCheckpoint(f"optimizer state {name} fits no weight")
        parameter = parameters[int(index)]
        shape = () if slot == "step" else tuple(parameter.shape)
        if tuple(tensor.shape) != shape:
            raise BadCheckpoint(f"optimizer state {name} is {tuple(tensor.shape)}, not {shape}")
        if slot == "step":
            optimizer.state[parameter][slot] = tensor.clone().to(parameter.device if fused else "cpu")   # fused kernels count there
        else:                                        # same strides as the weight: fused kernels walk both through memory side by side
            optimizer.state[parameter][slot] = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
        found.setdefault(index, set()).add(slot)
    for index, slots in found.items():
        if slots != (wanted := _SLOTS[type(optimizer)]):
            raise BadCheckpoint(f"optimizer state {prefix}/{index} holds {', '.join(sorted(slots))}, not {', '.join(sorted(wanted))}")


def write_tensors(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> bytes:
    """safetensors bytes with our metadata and digest; same tensors and meta, same bytes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", "ganmill": json.dumps(meta, sort_keys=True),
                                                "sha256": _ZEROS}}
    chunks, offset = [], 0
    for name in sorted(tensors, key=lambda n: (-tensors[n].element_size(), n)):  # widest first keeps all aligned
        tensor = tensors[name].detach().cpu().contiguous()
        raw = tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape),
                         "data_offsets": [offset, offset + len(raw)]}
        chunks.append(raw)
        offset += len(raw)
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    data = bytearray(b"".join([struct.pack("<Q", len(header)), header, *chunks]))
    digest = hashlib.sha256(data).hexdigest()
    place = data.index(f'"sha256":"{_ZEROS}"'.encode()) + len('"sha256":"')
    data[place:place + 64] = digest.encode()
    return bytes(data)


def read_tensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of `write_tensors`, after every byte was checked; nothing is ever unpickled.

    Raises:
        BadCheckpoint: with the reason.
    """
    zipped = data[:4] == b"PK\x03\x04"
    if zipped and b"data.pkl" not in data[:512]:
        raise BadCheckpoint("this is a zip archive (an .npz?), not a checkpoint; only safetensors are read")
    if zipped or (data[:1] == b"\x80" and data[8:9] != b"{"):
        raise BadCheckpoint("this is a pickle (torch.save), which could run code when read; only safetensors are read")
    if len(data) < 8 or not 2 <= (length := struct.unpack("<Q", data[:8])[0]) <= min(_MAX_HEADER, len(data) - 8):
        raise BadCheckpoint("not a safetensors file, or cut off within its header")
    raw_header = data[8:8 + length]
    try:
        header = json.loads(raw_header)
        metadata = header.pop("__metadata__")
        digest, meta = metadata["sha256"], json.loads(metadata["ganmill"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise BadCheckpoint("not a checkpoint of ganmill: its header has no readable description of ours") from e
    _check_digest(data, raw_header, digest)
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise BadCheckpoint(f"checkpoint format {meta.get('format') if isinstance(meta, dict) else meta!r}: "
                            f"this version reads format {FORMAT}")
    body = memoryview(data)[8 + length:]
    try:
        return {name: _read_tensor(name, entry, body) for name, entry in header.items()}, meta
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError) as e:
        raise BadCheckpoint(f"a tensor's entry in the header is malformed: {e}") from e


def _check_digest(data: bytes, header: bytes, digest: object) -> None:
    if not isinstance(digest, str) or len(digest) != 64:
        raise BadCheckpoint("the checkpoint carries no sha256")
    place = header.find(f'"sha256":"{digest}"'.encode())
    if place < 0:
        raise BadCheckpoint("the checkpoint's sha256 is not where it should be")
    start = 8 + place + len('"sha256":"')
    sha = hashlib.sha256(data[:start])
    sha.update(_ZEROS.encode())
    sha.update(memoryview(data)[start + 64:])
    if sha.hexdigest() != digest:
        raise BadCheckpoint("the checkpoint is cut off or was changed: its sha256 does not fit its content")


def _read_tensor(name: str, entry: Mapping[str, Any], body: memoryview) -> Tensor:
    dtype, shape = _DTYPES[entry["dtype"]], [int(n) for n in entry["shape"]]
    begin, end = (int(n) for n in entry["data_offsets"])
    count = 1
    for n in shape:
        count *= n
    if min(shape, default=0) < 0 or not 0 <= begin <= end <= len(body) or end - begin != count * dtype.itemsize:
        raise ValueError(f"{name}: bytes {begin} … {end} don't hold {shape} of {entry['dtype']}")
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(body[begin:end]), dtype=dtype).reshape(shape)
