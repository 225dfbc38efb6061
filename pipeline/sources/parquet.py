"""Hugging Face's image Parquet, and others like it: one column of encoded images, one of labels.

Images are `struct<bytes, path>` or plain binary; labels are whole numbers (names from the `ClassLabel` in the schema's
metadata, else the numbers themselves) or strings (classes in alphabetical order).
"""

import contextlib
import functools
import io
import json
from collections.abc import Callable, Generator, Iterator
from typing import IO, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import faults
from pipeline.config import SourceConfig
from pipeline.errors import SourceError
from pipeline.sources.files import SourceFile, SourceFiles, assign_splits
from pipeline.sources.source import MAX_CLASSES, Census, RawItem, Source, Split

_READ_WHOLE_BYTES = 256 << 20                        # smaller files are fetched in one piece
_BATCH_ROWS = 256
_IMAGE_NAMES = ("image", "img", "images", "jpg", "png", "picture")
_LABEL_NAMES = ("label", "labels", "class", "target", "y", "category")
_NO_LABEL = -1
_T = TypeVar("_T")


class ParquetSource(Source):
    """Rows of one or more Parquet files."""

    def __init__(self, files: SourceFiles, listed: list[SourceFile], config: SourceConfig):
        self._files = files
        self._listed = listed
        self._config = config

    @property
    def classes(self) -> tuple[str, ...]:
        """See `Source.classes`."""
        return self._labels.names

    @property
    def declares_classes(self) -> bool:
        """Bare numbers declare nothing: labels 1 … 10 have no class 0 that lacks images."""
        return self._labels.declared

    @property
    def notes(self) -> tuple[str, ...]:  # type: ignore[override]  # known once the labels were read
        """See `Source.notes`."""
        return self._labels.notes

    @property
    def is_local(self) -> bool:
        """See `Source.is_local`."""
        return self._files.is_local

    def fingerprint(self) -> str:
        """See `Source.fingerprint`."""
        return self._files.fingerprint(self._listed)

    def census(self) -> Census:
        """See `Source.census`; reads the label columns."""
        labels = self._labels
        return Census.of_files(((labels.splits[name], numbers) for name, numbers in labels.of_file.items()), len(labels.names))

    def items(self) -> Generator[RawItem]:
        """See `Source.items`."""
        labels = self._labels
        for file in self._listed:
            if file.name not in labels.splits:
                continue                             # a held-out file whose labels were kept secret
            split, of_row = labels.splits[file.name], labels.of_file[file.name].tolist()
            for row, (label, payload) in enumerate(zip(of_row, self._images(file))):
                yield RawItem(f"{file.name}[{row}]", None if label < 0 else label, payload, split)

    def _images(self, file: SourceFile) -> Iterator[bytes]:
        whole = file.size <= _READ_WHOLE_BYTES
        opened = io.BytesIO(self._files.read(file)) if whole else self._files.open(file)
        with self._files.reading(file), opened, _parquet_errors(self._files.show(file)):
            parquet = _without_threads(opened)
            column = self._columns[0]
            for batch in parquet.iter_batches(_BATCH_ROWS, columns=[column], use_threads=False):
                images = batch.column(0)
                if pa.types.is_struct(images.type):
                    images = pc.struct_field(images, "bytes")
                for value in images.to_pylist():
                    yield value or b""               # a row without an image is quarantined as empty

    @functools.cached_property
    def _columns(self) -> tuple[str, str]:
        """Names of the image and the label column."""
        schema = self._schemas[self._listed[0].name]
        features = _features(schema)
        image = self._config.image_column or _guess_image(schema, features, self._files.where)
        label = self._config.label_column or _guess_label(schema, features, image, self._files.where)
        for key, name in (("image_column", image), ("label_column", label)):
            if name not in schema.names:
                raise SourceError(f"source.{key}: no column {name!r} in {self._files.where}; "
                                  f"there are: {_shown(schema)}")
        if not _is_image(schema.field(image).type):
            raise SourceError(f"source.image_column: column {image!r} in {self._files.where} is "
                              f"{schema.field(image).type}, not encoded images (struct<bytes, path> or binary)")
        return image, label

    @functools.cached_property
    def _schemas(self) -> dict[str, pa.Schema]:
        return {file.name: self._look(file, lambda parquet: parquet.schema_arrow) for file in self._listed}

    def _look(self, file: SourceFile, act: Callable[[pq.ParquetFile], _T]) -> _T:
        def open_and_act(opened: IO[bytes]) -> _T:
            with _parquet_errors(self._files.show(file)):
                return act(_without_threads(opened))

        return self._files.look(file, open_and_act)

    @functools.cached_property
    def _labels(self) -> "_Labels":
        _, column = self._columns
        found: dict[str, Any] = {}
        for file in self._listed:
            if not {*self._columns} <= set(self._schemas[file.name].names):
                raise SourceError(f"source.url: {self._files.show(file)} has other columns than "
                                  f"{self._listed[0].name}: {_shown(self._schemas[file.name])}; "
                                  "give a URL or glob of files of one kind")
            read = self._look(file, lambda parquet: parquet.read(columns=[column], use_threads=False))
            found[file.name] = read.column(0).combine_chunks()
        declared = {_class_names(schema, column) for schema in self._schemas.values()}
        if len(declared) > 1:
            raise SourceError(f"source.url: the files in {self._files.where} name different classes for column "
                              f"{column!r}; give a URL or glob of files of one dataset")
        return _number(found, declared.pop(), f"column {column!r} in {self._files.where}")


class _Labels:
    """The label column of every file as numbers."""

    def __init__(self, names: tuple[str, ...], declared: bool, of_file: dict[str, np.ndarray]):
        self.names = names
        self.declared = declared
        secret = {name for name, labels in of_file.items()
                  if len(labels) and assign_splits(of_file)[name] is not Split.TRAIN and (labels < 0).all()}
        self.of_file = {name: labels for name, labels in of_file.items() if name not in secret}
        self.splits = assign_splits(self.of_file)
        self.notes = tuple(f"{name} has no labels and is left out" for name in sorted(secret))


def open_parquet(config: SourceConfig) -> ParquetSource:
    """Lists the Parquet files under the URL: a folder, a file, or a glob.

    Raises:
        SourceError: nothing there, or no Parquet file.
    """
    files = SourceFiles(config)
    listed = files.listing()[0]
    chosen = [file for file in listed if file.name.endswith((".parquet", ".pq"))]
    if len(listed) == 1:
        chosen = listed                              # named by the URL, whatever its extension
    if not chosen:
        raise SourceError(f"source.url: no .parquet file in {files.where}, but there is: "
                          + ", ".join(file.name for file in listed[:5]))
    return ParquetSource(files, chosen, config)


def _without_threads(file: IO[bytes]) -> pq.ParquetFile:
    """Starts none of Arrow's threads, if read with `use_threads=False`: they may abort the interpreter as it ends, or hang it."""
    return pq.ParquetFile(file, pre_buffer=False)


@contextlib.contextmanager
def _parquet_errors(where: str) -> Iterator[None]:
    """Arrow's complaint about a damaged file leaves as a `SourceError` with the file's address."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as e:
        if isinstance(e, OSError) and (e.errno is not None or faults.is_transient(e)):
            raise                                    # from the store; Arrow's own have no number
        raise SourceError(f"{where} is no readable Parquet file: {' '.join(str(e).split())[:200]}; "
                          "fetch it again, or leave it out of source.url") from e


def _number(found: dict[str, pa.Array], names: tuple[str, ...] | None, where: str) -> _Labels:
    """Labels of any type → int64 with −1 for none."""
    kind = next(iter(found.values())).type
    if pa.types.is_dictionary(kind):
        found = {name: column.dictionary_decode() for name, column in found.items()}
        kind = next(iter(found.values())).type
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        numbers = {name: _filled(column) for name, column in found.items()}
        if names is not None:
            return _Labels(names, True, numbers)
        most = max((int(labels.max()) for labels in numbers.values() if len(labels)), default=-1)
        if most >= MAX_CLASSES:
            raise SourceError(f"source.label_column: {where} holds numbers up to {most:,}, which are no classes "
                              f"(at most {MAX_CLASSES:,}); name the label column")
        return _Labels(tuple(str(number) for number in range(most + 1)), False, numbers)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        values = sorted({v for column in found.values() for v in pc.unique(column).to_pylist() if v})
        if len(values) > MAX_CLASSES:
            raise SourceError(f"source.label_column: {where} holds {len(values):,} different texts, which are no "
                              "classes; name the label column")
        order = names if names is not None and set(values) <= set(names) else tuple(values)
        place = {name: number for number, name in enumerate(order)}
        return _Labels(order, True, {
            file: np.array([place.get(v, _NO_LABEL) for v in column.to_pylist()], np.int64)
            for file, column in found.items()
        })
    raise SourceError(f"source.label_column: {where} is {kind}; wanted are whole numbers or text")


def _filled(column: pa.Array) -> np.ndarray:
    """int64 with −1 for null."""
    return pc.fill_null(column.cast(pa.int64(), safe=False), _NO_LABEL).to_numpy(zero_copy_only=False).astype(np.int64)


def _features(schema: pa.Schema) -> dict[str, Any]:
    """The Hugging Face features in the schema's metadata: column → description; empty without them."""
    try:
        found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _kind(feature: Any) -> str:
    return str(feature.get("_type", "")) if isinstance(feature, dict) else ""


def _class_names(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    feature = _features(schema).get(column, {})
    names = feature.get("names") if _kind(feature) == "ClassLabel" else None
    return tuple(str(name) for name in names) if isinstance(names, list) and names else None


def _is_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_image(field.type) for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _guess_image(schema: pa.Schema, features: dict[str, Any], where: str) -> str:
    images = [field.name for field in schema if _is_image(field.type)]
    marked = [name for name in images if _kind(features.get(name)) == "Image"]
    return _only(marked or images, _IMAGE_NAMES, "image", schema, where)


def _guess_label(schema: pa.Schema, features: dict[str, Any], image: str, where: str) -> str:
    def fits(kind: pa.DataType) -> bool:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        is_ = pa.types
        return is_.is_integer(kind) or is_.is_string(kind) or is_.is_large_string(kind) or is_.is_boolean(kind)

    columns = [field.name for field in schema if field.name != image and fits(field.type)]
    marked = [name for name in columns if _kind(features.get(name)) == "ClassLabel"]
    return _only(marked or columns, _LABEL_NAMES, "label", schema, where)


def _only(columns: list[str], usual: tuple[str, ...], what: str, schema: pa.Schema, where: str) -> str:
    """The one column that it can be: the only one, or the only one with a usual name."""
    if len(columns) == 1:
        return columns[0]
    named = [name for name in columns if name.lower() in usual]
    if len(named) == 1:
        return named[0]
    why = f"{', '.join(columns)} could all be it" if columns else "no column can be it"
    raise SourceError(f"source.{what}_column: which column of {where} holds the {what}s? {why}; "
                      f"columns: {_shown(schema)}; set source.{what}_column")


def _shown(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
