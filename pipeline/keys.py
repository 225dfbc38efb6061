"""Every key in the store has its name from here.

    <dataset>/LATEST.json
    <dataset>/versions/<version>/{manifest.json, README.md, croissant.json, report.html, data/…}
    <dataset>/runs/<run id>/{config.json, snapshot.json, prepared/…, checkpoints/…, plan.json, receipts/…, …}
"""

import functools
import hashlib
import re
import urllib.parse
from datetime import datetime

from pipeline.errors import ConfigError

# in a dataset's folder
LATEST = "LATEST.json"
RUNS = "runs"
VERSIONS = "versions"

# in a run's folder
CONFIG = "config.json"
SNAPSHOT = "snapshot.json"
PREPARED = "prepared"
QUARANTINE = "quarantine.jsonl"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
TRAINED = "checkpoint.json"
SCORECARD = "scorecard.json"
VERDICT = "verdict.json"
GRIDS = "grids"
EVALUATION = "evaluation"
NEAREST = "evaluation/nearest.png"
FILTER = "evaluation/filter.safetensors"
FILTER_REFERENCE = "evaluation/filter-reference.safetensors"
LIFT = "evaluation/lift.json"
LIFT_ROWS = "evaluation/lift"
PLAN = "plan.json"
RECEIPTS = "receipts"
RECEIPT_BUNDLES = "receipt-bundles"
METADATA_PARTS = "metadata"
PUBLISHED = "published.json"

# in a version's folder
MANIFEST = "manifest.json"
MANIFEST_PARTS = "manifest"
CARD = "README.md"
CROISSANT = "croissant.json"
LIFT_ROWS_PUBLISHED = "lift.json"
REPORT = "report.html"
DATA = "data"
METADATA = "data/metadata.jsonl"

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"v(\d{6,})-\d{8}T\d{6}Z-[0-9a-f]{8}")
_PLAIN = "_-,+=@()'&"                                # beside letters and digits, in a class's folder
_MAX_FOLDER_BYTES = 200                              # file systems stop at 255


def run(run_id: str) -> str:
    """Folder of a run.

    Raises:
        ConfigError: the id is no plain file name.
    """
    if not _RUN_ID.fullmatch(run_id) or run_id.endswith("."):
        raise ConfigError(f"run id {run_id!r}: must be 1 to 128 of letters, digits, '.', '_', '-', beginning with a "
                          "letter or digit")
    return f"{RUNS}/{run_id}"


def version(name: str) -> str:
    """Folder of a version."""
    return f"{VERSIONS}/{name}"


def prepared(split: str) -> str:
    """Prepared images and labels of a split, in a run's folder."""
    return f"{PREPARED}/{split}.safetensors"


def checkpoint(kimg: float) -> str:
    """Weights after `kimg` thousand images, in a run's folder; names sort by kimg."""
    return f"{CHECKPOINTS}/kimg-{kimg:012.4f}.safetensors"


def grid(kimg: float) -> str:
    """Sample grid after `kimg` thousand images, in a run's folder."""
    return f"{GRIDS}/kimg-{kimg:08.1f}.png"


def lift_row(trial: str) -> str:
    """A finished trial of the lift laboratory, in a run's folder."""
    return f"{LIFT_ROWS}/{trial}.json"


def receipt(index: int) -> str:
    """Receipt of a shard, in a run's folder."""
    return f"{RECEIPTS}/{index:05d}.json"


def receipt_index(key: str) -> int | None:
    """The shard whose receipt has this key."""
    number = key.removeprefix(f"{RECEIPTS}/").removesuffix(".json")
    return int(number) if number.isascii() and number.isdigit() and receipt(int(number)) == key else None


def receipt_bundle(sha256: str) -> str:
    """Copies of many receipts in one object, in a run's folder."""
    return f"{RECEIPT_BUNDLES}/{sha256[:16]}.json"


def metadata_part(index: int) -> str:
    """A png shard's lines of `metadata.jsonl`, in a run's folder until the version is committed."""
    return f"{METADATA_PARTS}/{index:05d}.jsonl"


def manifest_part(index: int) -> str:
    """A part of a manifest too long for one file, in a version's folder."""
    return f"{MANIFEST_PARTS}/part-{index:05d}.json"


def parquet_shard(index: int, of: int, sha256: str) -> str:
    """A Parquet shard, in a version's folder."""
    return f"{DATA}/train-{index:05d}-of-{of:05d}-{sha256[:8]}.parquet"


def tar_shard(index: int, sha256: str) -> str:
    """A WebDataset shard, in a version's folder."""
    return f"{DATA}/train-{index:05d}-{sha256[:8]}.tar"


def kept_shard(format_name: str, index: int, of: int, sha256: str) -> str:
    """A shard that another version has under its own number of shards, in this version's folder."""
    return parquet_shard(index, of, sha256) if format_name == "parquet" else tar_shard(index, sha256)


def image(class_name: str, uid: str) -> str:
    """One PNG, in a version's folder."""
    return f"{DATA}/{class_folder(class_name)}/{uid}.png"


@functools.lru_cache(maxsize=1000)                   # asked for once a row
def class_folder(class_name: str) -> str:
    """A folder's name for a class: the name itself where that is safe, %-escaped where not.

    Letters and digits of any script stay; slashes, dots or spaces at either end, control and reserved characters (those
    that Windows, a URL or a glob would mind too) are escaped as UTF-8 bytes. Different classes get different folders,
    and `class_of_folder` leads back, except from a name too long for a folder: that is cut and ends in ~ and its hash.
    """
    last = len(class_name) - 1
    escaped = "".join(
        c if c.isalnum() or c in _PLAIN or (c in " ." and 0 < i < last) else _escape(c)
        for i, c in enumerate(class_name)
    )
    if len(escaped.encode()) <= _MAX_FOLDER_BYTES:
        return escaped or "%"
    digest = hashlib.sha256(class_name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return escaped.encode()[: _MAX_FOLDER_BYTES - 20].decode(errors="ignore") + "~" + digest


def class_of_folder(folder: str) -> str:
    """The class that `class_folder` made this name of (unless it had to be cut)."""
    return "" if folder == "%" else urllib.parse.unquote_to_bytes(folder).decode("utf-8", "surrogatepass")


def _escape(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def version_name(number: int, created: datetime, digest: str) -> str:
    """`v000001-20260131T020000Z-1f3a9c2e`: sorts in the order of publication.

    Args:
        number: one more than the latest published.
        created: in UTC.
        digest: of what the version was made from; its first eight hex digits tell rivals apart.
    """
    return f"v{number:06d}-{created:%Y%m%dT%H%M%SZ}-{digest[:8]}"


def version_number(name: str) -> int:
    """The number in a version's name; 0 for a name that is none of ours."""
    match = _VERSION.fullmatch(name)
    return int(match.group(1)) if match else 0


def digest_of(*parts: str) -> str:
    """sha256 (hex) of `parts`, told apart."""
    return hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
