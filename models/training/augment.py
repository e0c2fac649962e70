"""Augmentation: the paper's (crops of random size, mirroring, colour jitter), and one that keeps an icon an icon.

Every random number comes from a generator on the CPU, so that another device sees the same images.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F


def to_tensor(images: Sequence[Image.Image], size: int) -> torch.Tensor:
    """Images `[N, 3, size, size]` as uint8: resized by the shorter side, the centred square of that."""
    return torch.from_numpy(np.stack([square(image, size) for image in images])).permute(0, 3, 1, 2).contiguous()


def square(image: Image.Image, size: int) -> np.ndarray:
    """One image `[size, size, 3]`."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def stroke_weights(pixels: torch.Tensor) -> torch.Tensor:
    """Images `[N, 3, S, S]` to `[N, 3 weights, 3, S, S]`: as drawn, thicker and thinner by a pixel on each side."""
    value = pixels.float()
    thick = -F.max_pool2d(-value, 3, stride=1, padding=1)  # dark strokes on light paper
    thin = F.max_pool2d(value, 3, stride=1, padding=1)
    return torch.stack([pixels, thick.to(torch.uint8), thin.to(torch.uint8)], 1)


class Augment(Protocol):
    """Images as the network sees them while it is trained."""

    def prepare(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """All images of the training split as one tensor, `[N, ...]` uint8, computed once."""

    def __call__(self, drawings: torch.Tensor) -> torch.Tensor:
        """A batch of them as crops `[N, 3, crop, crop]`, values in [0, 1], before normalisation."""


class Icons:
    """Other poses, stroke weights and colours. Takes drawings in three stroke weights at twice the resize size."""

    def __init__(self, resize: int, crop: int, generator: torch.Generator):
        self.resize, self.crop, self.generator = resize, crop, generator

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, generator=self.generator)

    def prepare(self, images: Sequence[Image.Image]) -> torch.Tensor:
        return stroke_weights(to_tensor(images, 2 * self.resize))

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
        return drawings[torch.arange(len(drawings)), weight.to(drawings.device)]

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
        grid = F.affine_grid(theta.to(ink.device), list(ink.shape), align_corners=False)
        return F.grid_sample(ink, grid, align_corners=False)

    def colour(self, ink: torch.Tensor) -> torch.Tensor:
        """Leaves most drawings as they are; inverts some; draws some in one colour on another."""
        n = len(ink)
        paper, pen = self.uniform(0.6, 1, n, 3, 1, 1).to(ink.device), self.uniform(0, 0.45, n, 3, 1, 1).to(ink.device)
        choice = self.uniform(0, 1, n, 1, 1, 1).to(ink.device)
        tinted = paper + ink * (pen - paper)
        tinted = torch.where(self.uniform(0, 1, n, 1, 1, 1).to(ink.device) < 0.5, 1 - tinted, tinted)
        return torch.where(choice < 0.15, ink, torch.where(choice < 0.35, tinted, 1 - ink))


class Photo:
    """The paper's: a crop of random area and shape, mirrored one time in two, with jittered colours.

    Crops cover `min_area` to all of the image (the paper's 0.08 leaves too little of a small one), sides in a ratio of
    3/4 to 4/3. Brightness, contrast and saturation are each scaled by a factor in `1 - jitter .. 1 + jitter`.
    """

    def __init__(self, resize: int, crop: int, generator: torch.Generator, min_area: float, mirror: bool, jitter: float):
        self.resize, self.crop, self.generator = resize, crop, generator
        self.min_area, self.mirror, self.jitter = min_area, mirror, jitter

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, generator=self.generator)

    def prepare(self, images: Sequence[Image.Image]) -> torch.Tensor:
        return to_tensor(images, 2 * self.resize)

    def __call__(self, drawings: torch.Tensor) -> torch.Tensor:
        return self.colours(self.crops(drawings.float() / 255))

    def crops(self, image: torch.Tensor) -> torch.Tensor:
        """Crops `[N, 3, crop, crop]`, sampled at twice that size and averaged, against aliasing."""
        n = len(image)
        side = self.uniform(self.min_area, 1, n).sqrt()
        stretch = self.uniform(math.log(3 / 4), math.log(4 / 3), n).exp().sqrt()
        width, height = (side * stretch).clamp(max=1), (side / stretch).clamp(max=1)
        x, y = self.uniform(-1, 1, n) * (1 - width), self.uniform(-1, 1, n) * (1 - height)
        flip = torch.where(self.uniform(0, 1, n) < 0.5, -1.0, 1.0) if self.mirror else torch.ones(n)
        zero = torch.zeros(n)
        theta = torch.stack([torch.stack([width * flip, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
        grid = F.affine_grid(theta.to(image.device), [n, 3, 2 * self.crop, 2 * self.crop], align_corners=False)
        return F.avg_pool2d(F.grid_sample(image, grid, padding_mode="border", align_corners=False), 2)

    def colours(self, image: torch.Tensor) -> torch.Tensor:
        """Brightness, contrast and saturation, in this order."""
        if self.jitter == 0:
            return image
        factors = self.uniform(1 - self.jitter, 1 + self.jitter, 3, len(image), 1, 1, 1).to(image.device)
        image = (image * factors[0]).clamp(0, 1)
        mean = grey(image).mean((1, 2, 3), keepdim=True)
        image = (mean + factors[1] * (image - mean)).clamp(0, 1)
        return (grey(image) + factors[2] * (image - grey(image))).clamp(0, 1)


def grey(image: torch.Tensor) -> torch.Tensor:
    """Luma `[N, 1, H, W]`."""
    return (image * torch.tensor([0.299, 0.587, 0.114], device=image.device).view(1, 3, 1, 1)).sum(1, keepdim=True)


AUGMENTATIONS = ("photo", "icons", "digits")


def make(name: str, resize: int, crop: int, generator: torch.Generator) -> Augment:
    """The augmentation of that name: `photo`, `icons`, or `digits`, which neither mirrors nor has colours."""
    match name:
        case "photo":
            return Photo(resize, crop, generator, min_area=0.3, mirror=True, jitter=0.4)
        case "icons":
            return Icons(resize, crop, generator)
        case "digits":
            return Photo(resize, crop, generator, min_area=0.6, mirror=False, jitter=0)
    raise ValueError(f"no augmentation is called {name}; there are {', '.join(AUGMENTATIONS)}")
