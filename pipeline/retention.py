"""Clearing away: old versions when asked, and what interrupted runs left. Nothing that a reader can reach is touched."""

from pipeline import keys, manifest
from pipeline.errors import ConfigError
from pipeline.store import Store
from pipeline.verification import unreferenced


def retire(dataset: Store, keep: int) -> list[str]:
    """Removes all published versions but the latest `keep`, and what earlier calls left of others; their names, oldest first.

    A version's manifest goes first, so that whoever looks sees no version rather than half of one; begun with the oldest,
    so that an interruption leaves an unbroken history, and the next call removes the rest. A version that has a manifest
    but is not in the history stays: the manifest between may come back.

    Raises:
        ConfigError: `keep` is below 1: the latest version always stays.
    """
    if keep < 1:
        raise ConfigError(f"publish.retention: {keep}: at least the latest version stays, give 1 or more")
    names = [content["version"] for content in manifest.history(dataset)]
    if not names:
        return []
    oldest_kept, ended = names[:keep][-1], set(names[keep:])
    retired = []
    for name in dataset.folders(keys.VERSIONS):
        at = f"{keys.version(name)}/{keys.MANIFEST}"
        if name in ended or (name < oldest_kept and keys.version_number(name) and not dataset.exists(at)):
            dataset.delete(at)
            dataset.delete_prefix(keys.version(name))
            retired.append(name)
    return retired


def collect_garbage(dataset: Store) -> list[str]:
    """Removes what no published version refers to and none can refer to later; the keys.

    A version counts as published or in the making when it is in the history, later than the latest, or has a manifest.
    """
    orphans = unreferenced(dataset)["orphans"]
    for key in orphans:
        dataset.delete(key)
    return orphans
