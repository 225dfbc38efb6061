"""The README's picture: real training images beside synthetic ones of a finished run, a row a class.

    python benchmarks/readme_picture.py out/digits/runs/RUN_ID docs/real-beside-synthetic.png
"""

import sys
from pathlib import Path

import numpy as np

from pipeline import keys
from pipeline.config import parse_config
from pipeline.documents.gathering import COLUMNS, real_beside_generated
from pipeline.grids import tile_grid
from pipeline.records import Checkpoint, Snapshot
from pipeline.store import Store

GAP = 1                                              # empty columns between the two halves
SIDE = 32                                            # pixels of an image on the page, at least


def main() -> None:
    """Writes the picture; the first images of each class, not picked by hand."""
    run, target = Store(sys.argv[1]), Path(sys.argv[2])
    content = run.get_json(keys.CONFIG)["config"]
    for section in ("source", "publish"):
        content[section].pop("storage_options", None)
    snapshot = Snapshot.from_json(run.get_json(keys.SNAPSHOT))
    checkpoint = Checkpoint.from_json(run.get_json(keys.TRAINED))
    rows = []
    for real, fake in zip(*real_beside_generated(parse_config(content), snapshot, checkpoint, run)):
        blank = np.full((COLUMNS + GAP, *fake.shape[1:]), 255, np.uint8)
        blank[: len(real)] = real
        rows.append(np.concatenate([blank, fake]))
    images = np.concatenate(rows)
    times = -(-SIDE // images.shape[-1])
    target.write_bytes(tile_grid(images.repeat(times, axis=2).repeat(times, axis=3), 2 * COLUMNS + GAP))


if __name__ == "__main__":
    main()
