"""scikit-learn's digits: 1,797 grey images of 8 x 8 that come with the package, no download.

E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI (the test part of it).
"""

import functools
import gzip
import hashlib
import importlib.util
from pathlib import Path

import numpy as np

from pipeline.errors import SourceError
from pipeline.sources.source import ArrayPart, ArraySource, Census, Split, count_labels


class DigitsSource(ArraySource):
    """Values 0 … 16 scaled to 0 … 255."""

    @property
    def classes(self) -> tuple[str, ...]:
        """See `Source.classes`."""
        return tuple(str(digit) for digit in range(10))

    def fingerprint(self) -> str:
        """See `Source.fingerprint`; of the content."""
        part = self.parts()[0]
        return hashlib.sha256(part.images.tobytes() + part.labels.tobytes()).hexdigest()

    def census(self) -> Census:
        """See `Source.census`."""
        return Census({Split.TRAIN: count_labels(self.parts()[0].labels, 10)[0]})

    def shape(self) -> tuple[int, ...]:
        """See `ArraySource.shape`."""
        return 8, 8

    def parts(self) -> list[ArrayPart]:
        """See `ArraySource.parts`; images (1797, 8, 8)."""
        table = _table()
        images = np.rint(table[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        return [ArrayPart("digits", Split.TRAIN, images, table[:, 64].astype(np.int64))]


@functools.cache
def _table() -> np.ndarray:
    """float64 (1797, 65): pixels and label. Read beside scikit-learn, whose import alone costs seconds."""
    package = importlib.util.find_spec("sklearn")
    if package is None or not package.submodule_search_locations:
        raise SourceError("source.format: digits come with scikit-learn, which is missing; pip install scikit-learn")
    file = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if file.exists():
        with gzip.open(file) as opened:
            return np.loadtxt(opened, delimiter=",")
    from sklearn.datasets import load_digits  # a release that keeps its file elsewhere

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])
