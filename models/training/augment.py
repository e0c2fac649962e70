"""Augmentation that keeps an icon an icon: other poses, stroke weights and colours."""

import math

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F


def to_tensor(images: list[Image.Image], size: int) -> torch.Tensor:
    """Images `[N, 3, size, size]` as uint8."""
    resized = [np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)) for image in images]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous()


def stroke_weights(pixels: torch.Tensor) -> torch.Tensor:
    """Images `[N, 3, S, S]` to `[N, 3 weights, 3, S, S]`: as drawn, thicker and thinner by a pixel on each side."""
    value = pixels.float()
    thick = -F.max_pool2d(-value, 3, stride=1, padding=1)  # dark strokes on light paper
    thin = F.max_pool2d(value, 3, stride=1, padding=1)
    return torch.stack([pixels, thick.to(torch.uint8), thin.to(torch.uint8)], 1)


class Augment:
    """Takes drawings in three stroke weights at twice the resize size, gives crops as the network sees them.

    Values are in [0, 1], before normalisation.
    """

    def __init__(self, resize: int, crop: int, generator: torch.Generator):
        self.resize, self.crop, self.generator = resize, crop, generator

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, generator=self.generator)

    def __call__(self, drawings: torch.Tensor) -> torch.Tensor:
        ink = 1 - self.stroke(drawings).float() / 255  # 0 is paper, so that padding is paper
        ink = self.pose(ink)
        ink = F.interpolate(ink, size=(self.resize, self.resize), mode="bilinear", antialias=True, align_corners=False)
        top, left = torch.randint(0, self.resize - self.crop + 1, (2,), generator=self.generator).tolist()
        return self.colour(ink[:, :, top : top + self.crop, left : left + self.crop])

    def stroke(self, drawings: torch.Tensor) -> torch.Tensor:
        """Picks the thick drawing in one of five, the thin one in one of ten."""
        choice = self.uniform(0, 1, len(drawings))
        weight = torch.where(choice < 0.2, 1, torch.where(choice > 0.9, 2, 0))
        return drawings[torch.arange(len(drawings)), weight]

    def pose(self, ink: torch.Tensor) -> torch.Tensor:
        """Rotates, stretches, shears and moves; mirrors one in two."""
        n = len(ink)
        angle = self.uniform(-1, 1, n) * math.radians(15)
        scale_x, scale_y = self.uniform(0.85, 1.25, n), self.uniform(0.9, 1.1, n)
        scale_y = scale_x * scale_y
        mirror = torch.where(self.uniform(0, 1, n) < 0.5, -1.0, 1.0)
        shear = self.uniform(-0.15, 0.15, n)
        cos, sin = angle.cos(), angle.sin()
        theta = torch.stack([
            torch.stack([cos * scale_x * mirror, (shear - sin) * scale_y, self.uniform(-0.12, 0.12, n)], 1),
            torch.stack([sin * scale_x * mirror, cos * scale_y, self.uniform(-0.12, 0.12, n)], 1),
        ], 1)
        return F.grid_sample(ink, F.affine_grid(theta, list(ink.shape), align_corners=False), align_corners=False)

    def colour(self, ink: torch.Tensor) -> torch.Tensor:
        """Leaves most drawings as they are; inverts some; draws some in one colour on another."""
        n = len(ink)
        paper, pen = self.uniform(0.6, 1, n, 3, 1, 1), self.uniform(0, 0.45, n, 3, 1, 1)
        choice = self.uniform(0, 1, n, 1, 1, 1)
        tinted = paper + ink * (pen - paper)
        tinted = torch.where(self.uniform(0, 1, n, 1, 1, 1) < 0.5, 1 - tinted, tinted)
        return torch.where(choice < 0.15, ink, torch.where(choice < 0.35, tinted, 1 - ink))
