"""Which training images an epoch draws: the four sampling strategies of the paper.

A strategy fixes the chance that a drawn image is of class j, `p_j = n_j^q / sum_i n_i^q`; within its class every image is
equally likely. Instance-balanced is q = 1, square-root q = 1/2, class-balanced q = 0; progressively-balanced goes from the
first to the last while training goes on. An epoch is `floor(N / batch_size)` batches under every one of them: as many
images as the training split has, not one pass over an oversampled set.

All randomness comes from the generator handed in, and `state` has what else the next epoch depends on, so that a
training may be resumed.
"""

from collections.abc import Iterator
from typing import Protocol

import torch

IMAGES_PER_CLASS = 4  # of each class that the class-balanced sampler takes, in a row


def class_probabilities(counts: torch.Tensor, q: float) -> torch.Tensor:
    """The chance of each class, `n_j^q / sum_i n_i^q`, `[C]` float64."""
    weights = counts.double() ** q
    return weights / weights.sum()


def progressive_probabilities(counts: torch.Tensor, epoch: int, epochs: int) -> torch.Tensor:
    """`(1 - l) n_j / N + l / C` with `l = epoch / (epochs - 1)`, epochs counted from 0: instance- to class-balanced."""
    share = epoch / max(epochs - 1, 1)
    return (1 - share) * class_probabilities(counts, 1) + share * class_probabilities(counts, 0)


class Cycle:
    """Goes round a list for ever, in a new random order each time round."""

    def __init__(self, items: torch.Tensor):
        self.items = items
        self.order, self.position = items[:0], 0

    def take(self, generator: torch.Generator) -> int:
        """The next item."""
        if self.position == len(self.order):
            self.order, self.position = self.items[torch.randperm(len(self.items), generator=generator)], 0
        self.position += 1
        return int(self.order[self.position - 1])

    @property
    def state(self) -> tuple[torch.Tensor, int]:
        return self.order, self.position

    @state.setter
    def state(self, state: tuple[torch.Tensor, int]) -> None:
        self.order, self.position = state


class Sampler(Protocol):
    """Draws batches of indices into the training split."""

    state: list[tuple[torch.Tensor, int]]

    def batches(self, epoch: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
        """Yields one epoch of batches, `[batch_size]` int64; epochs count from 0."""


class InstanceBalanced:
    """Every image once an epoch, shuffled, the incomplete last batch left out."""

    def __init__(self, labels: torch.Tensor, batch_size: int):
        self.n_samples, self.batch_size = len(labels), batch_size
        self.state: list[tuple[torch.Tensor, int]] = []

    def batches(self, epoch: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
        order = torch.randperm(self.n_samples, generator=generator)
        for start in range(0, self.n_samples - self.batch_size + 1, self.batch_size):
            yield order[start : start + self.batch_size]


class SquareRoot:
    """Independent draws with replacement, an image of class j with weight `n_j^(-1/2)`."""

    def __init__(self, labels: torch.Tensor, batch_size: int):
        counts = torch.bincount(labels)
        self.weights = (class_probabilities(counts, 0.5) / counts)[labels]
        self.batch_size = batch_size
        self.state: list[tuple[torch.Tensor, int]] = []

    def batches(self, epoch: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
        for _ in range(len(self.weights) // self.batch_size):
            yield torch.multinomial(self.weights, self.batch_size, replacement=True, generator=generator)


class Cycling:
    """What the next two have in common: images of a class come from that class's own cycle."""

    def __init__(self, labels: torch.Tensor, batch_size: int):
        self.counts, self.batch_size, self.n_batches = torch.bincount(labels), batch_size, len(labels) // batch_size
        self.images = [Cycle(torch.nonzero(labels == label).flatten()) for label in range(len(self.counts))]
        self.cycles = self.images

    @property
    def state(self) -> list[tuple[torch.Tensor, int]]:
        return [cycle.state for cycle in self.cycles]

    @state.setter
    def state(self, state: list[tuple[torch.Tensor, int]]) -> None:
        for cycle, its_state in zip(self.cycles, state, strict=True):
            cycle.state = its_state


class ClassBalanced(Cycling):
    """Classes in turn, in a cycle over all of them; of each the next four images of its own cycle.

    Not independent draws: every class comes once in C turns. A class with fewer than four images repeats some.
    """

    def __init__(self, labels: torch.Tensor, batch_size: int):
        super().__init__(labels, batch_size)
        if batch_size % IMAGES_PER_CLASS:
            taken = f"class-balanced sampling takes {IMAGES_PER_CLASS} images a class"
            raise ValueError(f"{taken}: batch size {batch_size} is no multiple")
        self.classes = Cycle(torch.nonzero(self.counts).flatten())
        self.cycles = [self.classes, *self.images]

    def batches(self, epoch: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
        for _ in range(self.n_batches):
            turns = [self.classes.take(generator) for _ in range(self.batch_size // IMAGES_PER_CLASS)]
            yield torch.tensor([self.images[label].take(generator) for label in turns for _ in range(IMAGES_PER_CLASS)])


class ProgressivelyBalanced(Cycling):
    """Classes drawn independently, by chances that move from instance- to class-balanced over the epochs."""

    def __init__(self, labels: torch.Tensor, batch_size: int, epochs: int):
        super().__init__(labels, batch_size)
        self.epochs = epochs

    def batches(self, epoch: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
        chances = progressive_probabilities(self.counts, epoch, self.epochs)
        for _ in range(self.n_batches):
            drawn = torch.multinomial(chances, self.batch_size, replacement=True, generator=generator)
            yield torch.tensor([self.images[label].take(generator) for label in drawn.tolist()])


SAMPLERS = ("instance_balanced", "class_balanced", "square_root", "progressively_balanced")


def make(name: str, labels: torch.Tensor, batch_size: int, epochs: int) -> Sampler:
    """The sampler of that name over images with these labels."""
    match name:
        case "instance_balanced":
            return InstanceBalanced(labels, batch_size)
        case "class_balanced":
            return ClassBalanced(labels, batch_size)
        case "square_root":
            return SquareRoot(labels, batch_size)
        case "progressively_balanced":
            return ProgressivelyBalanced(labels, batch_size, epochs)
    raise ValueError(f"no sampler is called {name}; there are {', '.join(SAMPLERS)}")
