"""One's own images: a folder for each class."""

import random
from pathlib import Path

import numpy as np

from .data import SPLITS, Dataset, ImageFiles, Split
from .recipes import FolderData

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


def images_by_class(folder: Path) -> dict[str, list[Path]]:
    """The image files below each folder of `folder`, sorted; names that begin with a dot are passed over."""
    found = {}
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.name.startswith("."):
            found[child.name] = sorted(
                path for path in child.rglob("*")
                if path.suffix.lower() in IMAGE_SUFFIXES
                and not any(part.startswith(".") for part in path.relative_to(folder).parts)
            )
    return found


def read(data: FolderData) -> Dataset:
    """Reads `path/{train,val,test}/<class>/*`, or splits `path/<class>/*`. Classes are sorted by name."""
    if not data.path.is_dir():
        raise ValueError(f"{data.path}: no such folder")
    if (data.path / "train").is_dir():
        by_split = {name: images_by_class(data.path / name) if (data.path / name).is_dir() else {} for name in SPLITS}
    else:
        by_split = split_by_class(data, images_by_class(data.path))
    classes = tuple(sorted(word for word, files in by_split["train"].items() if files))
    if len(classes) < 2:
        raise ValueError(f"{data.path}: found training images of {len(classes)} classes; at least 2 are needed")
    splits = {}
    for name, found in by_split.items():
        if unknown := sorted(word for word, files in found.items() if files and word not in classes):
            raise ValueError(f"{data.path / name}: no training images of {', '.join(unknown)}")
        files = [(path, label) for label, word in enumerate(classes) for path in found.get(word, [])]
        splits[name] = Split(
            ImageFiles([path for path, _ in files]), np.array([label for _, label in files], dtype=np.int64),
            [path.relative_to(data.path).as_posix() for path, _ in files],
        )
    return Dataset(classes, splits)


def split_by_class(data: FolderData, found: dict[str, list[Path]]) -> dict[str, dict[str, list[Path]]]:
    """Gives each split its share of every class, rounded; the training split keeps at least one image of each."""
    by_split: dict[str, dict[str, list[Path]]] = {name: {} for name in SPLITS}
    for word, files in found.items():
        shuffled = list(files)
        random.Random(f"{data.seed}/{word}").shuffle(shuffled)
        n_test = min(round(len(files) * data.test_share), max(len(files) - 1, 0))
        n_val = min(round(len(files) * data.val_share), max(len(files) - n_test - 1, 0))
        parts = {"test": shuffled[:n_test], "val": shuffled[n_test : n_test + n_val], "train": shuffled[n_test + n_val :]}
        for name, part in parts.items():
            by_split[name][word] = sorted(part)
    return by_split
