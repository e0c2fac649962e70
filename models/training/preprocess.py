"""Preprocessing as `model.toml` states it, with Pillow: the reference that the server must match."""

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Preprocess:
    """Resize by the shorter side (bilinear, antialiased), centre crop, then `(v / 255 - mean) / std`."""

    resize: int
    crop: int
    mean: float
    std: float

    @classmethod
    def from_toml(cls, table: dict) -> "Preprocess":
        """Reads the `[preprocess]` table of a model made here: grey mean and std, bilinear, no EXIF rotation."""
        usual = table["interpolation"] == "bilinear" and table["exif_orientation"] == "ignore"
        if not usual or table.get("decode", "exact") != "exact":
            raise ValueError(f"models made here are bilinear, ignore EXIF orientation and decode every pixel, not {table}")
        (mean,), (std,) = set(table["mean"]), set(table["std"])
        return cls(table["resize"], table["crop"], mean, std)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """One image as the backbone's input, `[3, crop, crop]` float32."""
        image = image.convert("RGB")
        width, height = image.size
        short, long = min(width, height), max(width, height)
        if short != self.resize:
            other = int(self.resize * long / short)
            size = (self.resize, other) if width <= height else (other, self.resize)
            image = image.resize(size, Image.Resampling.BILINEAR)
        left, top = (round((side - self.crop) / 2) for side in image.size)
        image = image.crop((left, top, left + self.crop, top + self.crop))
        pixels = np.asarray(image, dtype=np.float32) / np.float32(255)
        return ((pixels - np.float32(self.mean)) / np.float32(self.std)).transpose(2, 0, 1)
