"""Every random number of a run comes from here: derived from the run's seed and names, never from a clock or an order.

A row's latent seed follows from (run seed, class, number within the class, attempt) alone, so that any worker can make
any row at any time and always makes the same.
"""

import hashlib

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)              # splitmix64's increment and multipliers, Steele et al. 2014
_MIX1, _MIX2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def derive(run_seed: int, *names: str | int) -> int:
    """A seed in 0 … 2**63 − 1 for the use that `names` names; different names give independent seeds."""
    text = "\x1f".join([f"{run_seed:d}", *(f"{type(n).__name__[0]}{n}" for n in names)])
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1


def row_seeds(run_seed: int, label: int, first: int, count: int, attempt: int = 0) -> np.ndarray:
    """Latent seeds of the rows `first` … `first + count − 1` of class `label`.

    Args:
        attempt: 0, and one more each time that the filter rejects the row.

    Returns:
        int64 (count,), each in 0 … 2**63 − 1; two rows share one no likelier than two draws of 63 bits are equal.
    """
    index = np.arange(first, first + count, dtype=np.uint64)
    return row_seeds_at(run_seed, label, index, np.full(count, attempt))


def row_seeds_at(run_seed: int, label: int, index: np.ndarray, attempt: np.ndarray) -> np.ndarray:
    """As `row_seeds`, for any rows: `index` and `attempt` (n,) → int64 (n,)."""
    attempts, which = np.unique(attempt, return_inverse=True)
    starts = np.array([derive(run_seed, "row", label, int(a)) for a in attempts], dtype=np.uint64)
    mixed = starts[which] + (index.astype(np.uint64) + np.uint64(1)) * _GOLDEN
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX1
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX2
    return ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(1)).astype(np.int64)


def uid(run_seed: int, label: int, index: int) -> str:
    """Name of a row: 24 hex digits that follow from run seed, class and the row's number within the class alone."""
    return uids(run_seed, label, index, 1)[0]


def uids(run_seed: int, label: int, first: int, count: int) -> list[str]:
    """`uid` of the rows `first` … `first + count − 1`."""
    start = hashlib.sha256(f"uid\x1f{run_seed:d}\x1f{label:d}\x1f".encode())
    found = []
    for index in range(first, first + count):
        digest = start.copy()
        digest.update(b"%d" % index)
        found.append(digest.hexdigest()[:24])
    return found


def order(run_seed: int, shard: int, rows: int) -> np.ndarray:
    """The order of a shard's rows, so that a reader who doesn't shuffle sees the classes mixed: int64 (rows,)."""
    return np.argsort(row_seeds(derive(run_seed, "order") % 2**31, shard, 0, rows), kind="stable")
