"""Clearing away: old versions when asked, and what interrupted runs left. Nothing that a reader can reach is touched."""

from pipeline import keys, manifest
from pipeline.errors import ConfigError
from pipeline.store import Store
from pipeline.verification import unreferenced


def retire(dataset: Store, keep: int) -> list[str]:
    """Removes all published versions but the latest `keep`; their names, the oldest first.

    A version's manifest goes first, so that whoever looks sees no version rather than half of one; begun with the oldest,
    so that an interruption leaves an unbroken history.

    Raises:
        ConfigError: `keep` is below 1: the latest version always stays.
    """
    if keep < 1:
        raise ConfigError(f"retention: keep {keep}: at least the latest version stays, give 1 or more")
    names = [content["version"] for content in manifest.history(dataset)]
    retired = sorted(names[keep:])
    for name in retired:
        dataset.delete(f"{keys.version(name)}/{keys.MANIFEST}")
        dataset.delete_prefix(keys.version(name))
    return retired


def collect_garbage(dataset: Store) -> list[str]:
    """Removes what no published version refers to and none can refer to later; the keys.

    A version counts as published or in the making when it is in the history, later than the latest, or has a manifest.
    """
    orphans = unreferenced(dataset)["orphans"]
    for key in orphans:
        dataset.delete(key)
    return orphans
