"""The one room that opens and writes objects: on a local disk, in memory, on S3 and whatever else fsspec speaks.

Every write is whole or absent. Locally that is a temporary file in the same folder, `fsync`, then `os.replace` (for many
at once, files that get their first name when their content is on the disk); on an object store one put. Puts that must
happen once use the store's own conditions (If-None-Match, If-Match); a store that ignores them is found out by
`Store.probe` and said so. Transient faults are tried again a bounded number of times, a reply that was lost is read back,
and every other fault leaves as one `StoreError`.
"""

from pipeline.store import troubles
from pipeline.store.json_text import compact_json, json_bytes
from pipeline.store.objects import Capabilities, ObjectInfo, Store
from pipeline.store.opening import S3_TIMEOUTS_S
from pipeline.store.reading import clear_errors, open_filesystem

__all__ = [
    "S3_TIMEOUTS_S", "Capabilities", "ObjectInfo", "Store", "clear_errors", "compact_json", "json_bytes", "open_filesystem", "troubles",
]
