"""Made-up images: a bright bar on noise, whose angle is the class."""

from pathlib import Path

import numpy as np
from PIL import Image

from training.data import Dataset, Split
from training.recipes import FolderData, Recipe


def image(label: int, num_classes: int, rng: np.random.Generator, size: tuple[int, int] = (40, 40)) -> Image.Image:
    """One image of a class."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    angle = np.pi * label / num_classes + rng.normal(0, 0.05)
    distance = np.abs((x - width / 2) * np.sin(angle) - (y - height / 2) * np.cos(angle))
    pixels = rng.uniform(0, 90, (height, width, 3)) + np.where(distance < 4, 160, 0)[..., None]
    return Image.fromarray(pixels.astype(np.uint8))


def dataset(train_counts: tuple[int, ...], n_held_out: int = 4, seed: int = 0) -> Dataset:
    """A data set with these training counts and as many validation and test images of every class."""
    rng = np.random.default_rng(seed)
    num_classes, splits = len(train_counts), {}
    held_out = (n_held_out,) * num_classes
    for name, counts in (("train", train_counts), ("val", held_out), ("test", held_out)):
        labels = np.repeat(np.arange(num_classes), counts)
        images = [image(label, num_classes, rng) for label in labels]
        splits[name] = Split(images, labels, [f"{name}/{i}" for i in range(len(labels))])
    return Dataset(tuple(f"angle{label}" for label in range(num_classes)), splits)


def recipe(**settings: object) -> Recipe:
    """A recipe that trains in a second."""
    small = {"resize": 18, "crop": 16, "network": "cnn4", "epochs": 3, "batch_size": 16}
    return Recipe(**{"name": "tiny", "data": FolderData(Path("none")), **small, **settings})


def folders(root: Path, counts: dict[str, int], seed: int = 0) -> None:
    """Writes images as `root/<class>/<n>.png`, some wider than high, some higher than wide."""
    rng = np.random.default_rng(seed)
    for label, (word, n) in enumerate(counts.items()):
        (root / word).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            size = ((40, 40), (52, 40), (40, 47))[i % 3]
            image(label, len(counts), rng, size).save(root / word / f"{i:03}.png")
