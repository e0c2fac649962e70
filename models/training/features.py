"""Features of images by the exported backbone."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from .preprocess import Preprocess


def extract(backbone: Path, preprocess: Preprocess, images: Sequence[Image.Image]) -> np.ndarray:
    """Features `[N, D]` float32. One image at a time, so that a row does not depend on its neighbours."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(backbone), options, providers=["CPUExecutionProvider"])
    rows = [session.run(["features"], {"image": preprocess(image)[None]})[0] for image in images]
    return np.concatenate(rows)


def save(path: Path, features: np.ndarray, labels: np.ndarray) -> None:
    """Writes a feature set: arrays `features` float32 and `labels` int64. numpy writes no clock into it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, features=features.astype(np.float32), labels=labels.astype(np.int64))


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads what `save` wrote."""
    with np.load(path) as arrays:
        return arrays["features"], arrays["labels"]


def digest(features: np.ndarray) -> str:
    """SHA-256 of the feature array's bytes (float32, little-endian, row by row)."""
    return hashlib.sha256(np.ascontiguousarray(features, dtype="<f4").tobytes()).hexdigest()
