"""A model directory in Python, as the servers beside this file use it: Pillow, numpy, one thread of ONNX Runtime.

The answer has the numbers of equipoise's, so that each server's can be checked against it.
"""

import io
import os
import tomllib
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image
from safetensors.numpy import load_file

TOP_K = 5
# One for each core.
N_WORKERS = int(os.environ["EQUIPOISE_BENCH_WORKERS"])
INTERPOLATION = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


class Classifier:
    """The backbone and the joint head of the model directory that EQUIPOISE_BENCH_MODEL names."""

    def __init__(self):
        directory = Path(os.environ["EQUIPOISE_BENCH_MODEL"])
        model = tomllib.loads((directory / "model.toml").read_text())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            directory / model["backbone"], options, providers=["CPUExecutionProvider"]
        )
        self.input = self.session.get_inputs()[0].name
        head = load_file(directory / model["heads"]["joint"]["file"])
        self.weight, self.bias = head["weight"].T.copy(), head["bias"]
        self.labels = (directory / model["classes"]["labels"]).read_text().splitlines()
        self.preprocess = model["preprocess"]
        mean, std = (np.array(self.preprocess[key], np.float32) for key in ("mean", "std"))
        # (v / 255 - mean) / std in one multiplication and one subtraction.
        self.factor, self.offset = 1 / (255 * std), mean / std

    def decode(self, body: bytes) -> np.ndarray:
        """The tensor [3, H, W] of an image file."""
        image = Image.open(io.BytesIO(body)).convert("RGB")
        if "pre_crop" in self.preprocess:
            side = round(self.preprocess["pre_crop"] * min(image.size))
            image = center_crop(image, side, side)
        resize = self.preprocess.get("resize")
        if resize is not None:
            image = image.resize(
                resized(image.size, resize), INTERPOLATION[self.preprocess.get("interpolation", "bilinear")]
            )
        crop = self.preprocess.get("crop")
        if crop is not None:
            image = center_crop(image, crop, crop)
        pixels = np.asarray(image, np.float32) * self.factor - self.offset
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def predict(self, pixels: np.ndarray) -> list[dict]:
        """The answers for images [N, 3, H, W]."""
        features = self.session.run(None, {self.input: pixels})[0]
        logits = features @ self.weight + self.bias
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
        best = np.argsort(-probabilities, axis=1)[:, :TOP_K]
        return [
            {
                "predictions": [
                    {"class": int(index), "label": self.labels[index], "probability": float(row[index])}
                    for index in indices
                ]
            }
            for row, indices in zip(probabilities, best)
        ]


def resized(size: tuple[int, int], resize: int | list[int]) -> tuple[int, int]:
    """Width and height after the resize, of a size in Pillow's order; a list is [height, width]."""
    if isinstance(resize, list):
        return resize[1], resize[0]
    width, height = size
    shorter = min(size)
    return resize * width // shorter, resize * height // shorter


def center_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
