"""Data sets: images with labels in a training, a validation and a test split."""

import hashlib
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SPLITS = ("train", "val", "test")


@dataclass
class Split:
    """Images with labels, in a fixed order; `sources` says where each image comes from."""

    images: Sequence[Image.Image]
    labels: np.ndarray
    sources: list[str]


@dataclass
class Dataset:
    """The three splits, and the names of the classes. A split may be empty, the training split may not."""

    classes: tuple[str, ...]
    splits: dict[str, Split]

    @property
    def train_counts(self) -> np.ndarray:
        """Training images of each class, `[C]`."""
        return np.bincount(self.splits["train"].labels, minlength=len(self.classes))


class ImageFiles(Sequence[Image.Image]):
    """Images that are read from their files when they are asked for."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        with Image.open(self.paths[index]) as image:
            return image.convert("RGB")


def fetch(package: str, version: str, sha256: str, work: Path) -> Path:
    """Packs an npm package into `work` unless it is there already, and checks its digest."""
    archive = work / f"{package.lstrip('@').replace('/', '-')}-{version}.tgz"
    if not archive.exists():
        work.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["npm", "pack", f"{package}@{version}", "--pack-destination", str(work)], check=True, stdout=subprocess.DEVNULL,
        )
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != sha256:
        raise ValueError(f"{archive.name}: sha256 is {digest}, expected {sha256}")
    return archive
