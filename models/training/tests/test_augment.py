"""Augmented images: their shape and range, and what may not happen to them."""

import numpy as np
import pytest
import torch

from training import augment

from . import synthetic


@pytest.mark.parametrize("name", augment.AUGMENTATIONS)
def test_shape_range_and_seed(name: str) -> None:
    images = synthetic.dataset((6, 2)).splits["train"].images

    def once(seed: int) -> torch.Tensor:
        made = augment.make(name, 18, 16, torch.Generator().manual_seed(seed))
        return made(made.prepare(images))

    crops = once(0)
    assert crops.shape == (8, 3, 16, 16)
    assert crops.min() >= 0 and crops.max() <= 1 + 1e-6
    assert torch.equal(crops, once(0))
    assert not torch.equal(crops, once(1))


def test_a_full_crop_without_mirror_or_jitter_is_the_image() -> None:
    images = [image.resize((32, 32)) for image in synthetic.dataset((4,)).splits["train"].images]
    made = augment.Photo(16, 16, torch.Generator().manual_seed(0), min_area=1, mirror=False, jitter=0)
    made.uniform = lambda low, high, *shape: torch.full(shape, (low + high) / 2)  # the middle of every range
    prepared = made.prepare(images)
    expected = torch.nn.functional.avg_pool2d(prepared.float() / 255, 2)
    torch.testing.assert_close(made(prepared), expected, atol=1e-5, rtol=0)


def test_wide_images_keep_their_proportions() -> None:
    wide = synthetic.image(0, 2, np.random.default_rng(0), (80, 40))
    assert augment.square(wide, 20).shape == (20, 20, 3)
