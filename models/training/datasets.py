"""Builds the data set that a recipe describes, or reads it back from where it was built before."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from . import digits, folder, icons
from .data import SPLITS, Dataset, Split
from .recipes import DigitData, FolderData, IconData


def load(of: IconData | DigitData | FolderData, work: Path) -> Dataset:
    """The data set that a recipe describes. What is fetched and rendered stays in `work` for the next time."""
    if isinstance(of, FolderData):
        return folder.read(of)
    # Nothing but the data's own description decides the images, so it names the cache.
    key = hashlib.sha256(repr(of).encode()).hexdigest()[:16]
    cache = work / "data" / f"{key}.npz"
    if not cache.exists():
        save_cache((icons if isinstance(of, IconData) else digits).build(of, work), cache)
    return load_cache(cache)


def save_cache(dataset: Dataset, path: Path) -> None:
    """Writes a data set whose images all have one size."""
    arrays = {"classes": np.array(dataset.classes)}
    for name, split in dataset.splits.items():
        arrays[f"{name}_images"] = np.stack([np.asarray(image) for image in split.images])
        arrays[f"{name}_labels"], arrays[f"{name}_sources"] = split.labels, np.array(split.sources)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part.npz")
    np.savez_compressed(unfinished, **arrays)
    unfinished.replace(path)


def load_cache(path: Path) -> Dataset:
    """Reads what `save_cache` wrote."""
    with np.load(path) as arrays:
        splits = {
            name: Split([Image.fromarray(pixels) for pixels in arrays[f"{name}_images"]],
                        arrays[f"{name}_labels"], arrays[f"{name}_sources"].tolist())
            for name in SPLITS
        }
        return Dataset(tuple(arrays["classes"].tolist()), splits)
