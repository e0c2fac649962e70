"""Which training images an epoch draws."""

from collections.abc import Iterator

import torch


def instance_balanced(n_samples: int, batch_size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yields one epoch of batches of indices: every image once, shuffled, the incomplete last batch left out."""
    order = torch.randperm(n_samples, generator=generator)
    for start in range(0, n_samples - batch_size + 1, batch_size):
        yield order[start : start + batch_size]
