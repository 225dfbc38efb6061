"""A folder a class: `<class>/<any>/<name>.png`, or with official splits `train/<class>/…` and `test/<class>/…`.

Classes are numbered in the order of their names, as torchvision's ImageFolder does.
"""

import functools
from collections import Counter
from collections.abc import Generator

import numpy as np

from pipeline.config import SourceConfig
from pipeline.errors import SourceError
from pipeline.sources.files import SourceFile, SourceFiles, assign_splits, split_word
from pipeline.sources.source import Census, RawItem, Reason, Source, Split

EXTENSIONS = frozenset({"png", "jpg", "jpeg", "jpe", "jfif", "bmp", "gif", "webp", "tif", "tiff", "ppm", "pgm", "pbm",
                        "pnm", "jp2", "tga"})


class ImageFolderSource(Source):
    """Images in one folder a class."""

    def __init__(self, files: SourceFiles, images: list[SourceFile], folders: list[str],
                 split_folders: dict[str, Split]):
        self._files = files
        self._images = images
        self._folders = folders
        self._split_folders = split_folders          # top folder → split; empty when the top folders are classes
        self._names = _class_names([f.name for f in images], folders, split_folders)
        self._numbers = {name: number for number, name in enumerate(self._names)}

    @property
    def classes(self) -> tuple[str, ...]:
        """See `Source.classes`."""
        return self._names

    @property
    def is_local(self) -> bool:
        """See `Source.is_local`."""
        return self._files.is_local

    def fingerprint(self) -> str:
        """See `Source.fingerprint`."""
        return self._files.fingerprint(self._images, self._folders)

    def census(self) -> Census:
        """See `Source.census`."""
        found = Counter(self._place(file) for file in self._images)
        rows = {split: np.zeros(len(self._names), np.int64) for split in {Split.TRAIN, *self._split_folders.values()}}
        for (split, label), count in found.items():
            if label is not None:
                rows[split][label] += count
        astray = sum(count for (_, label), count in found.items() if label is None)
        return Census(rows, {Reason.NO_LABEL: astray} if astray else {})

    def items(self) -> Generator[RawItem]:
        """See `Source.items`; a payload is read by whoever takes the item, so that many can be read at once."""
        for file in self._images:
            split, label = self._place(file)
            yield RawItem(file.name, label, functools.partial(self._files.read_item, file), split, file.size)

    def _place(self, file: SourceFile) -> tuple[Split, int | None]:
        """(split, class number) of a file; None for one that lies in no class folder."""
        folders = file.name.split("/")[:-1]
        split = Split.TRAIN
        if self._split_folders:
            split = self._split_folders.get(folders[0], Split.TRAIN) if folders else Split.TRAIN
            folders = folders[1:]
        return split, self._numbers[folders[0]] if folders else None


def open_imagefolder(config: SourceConfig) -> ImageFolderSource:
    """Lists the folder.

    Raises:
        SourceError: nothing there, or no folder with images in it.
    """
    files = SourceFiles(config)
    listed, folders = files.listing()
    images = [file for file in listed if file.name.rpartition(".")[2].lower() in EXTENSIONS]
    if not images:
        raise SourceError(f"source.url: no images in {files.where}: wanted is a folder a class with .png, .jpg, … in it"
                          + (f", but there is: {', '.join(f.name for f in listed[:5])}" if listed else ""))
    source = ImageFolderSource(files, images, folders, _split_folders(images, folders))
    if not source.classes:
        raise SourceError(f"source.url: {files.where} holds images but no class folders: wanted is <class>/<name>.png")
    if len(listed) > len(images):
        others = [file.name for file in listed if file.name.rpartition(".")[2].lower() not in EXTENSIONS]
        shown = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
        source.notes = (f"{len(others)} files are no images by their names and were not looked at: {shown}",)
    return source


def _split_folders(images: list[SourceFile], folders: list[str]) -> dict[str, Split]:
    """Top folder → split, if the top folders are splits: all are named so, one is train, and classes lie in it.

    A class may be called `train` as well: then other classes lie beside it.
    """
    top = {file.name.split("/")[0] for file in images if "/" in file.name} | {f for f in folders if "/" not in f}
    words = {folder: split_word(folder) for folder in top}
    deep = any(words.get(file.name.split("/")[0]) is Split.TRAIN and file.name.count("/") >= 2 for file in images)
    if None in words.values() or Split.TRAIN not in words.values() or not deep:
        return {}
    named = assign_splits(top)
    return {folder: named[folder] for folder in top}


def _class_names(images: list[str], folders: list[str], split_folders: dict[str, Split]) -> tuple[str, ...]:
    """Names of the folders on the level of the classes, those without an image included."""
    depth = 1 if split_folders else 0
    of_images = {name.split("/")[depth] for name in images if name.count("/") > depth}
    of_folders = {name.split("/")[depth] for name in folders if name.count("/") >= depth}
    return tuple(sorted(of_images | of_folders))
