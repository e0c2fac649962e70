"""The samplers against their formulas, and by counting."""

from collections import Counter

import pytest
import torch

from training import samplers

COUNTS = torch.tensor([1280, 100, 20, 5])
LABELS = torch.repeat_interleave(torch.arange(4), COUNTS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(name: str, labels: torch.Tensor, batch_size: int, epochs: int, total: int) -> list[torch.Tensor]:
    """The indices of epochs 0 to `epochs - 1` of a training of `total` epochs, one tensor an epoch."""
    sampler, random = samplers.make(name, labels, batch_size, total), generator()
    return [torch.cat(list(sampler.batches(epoch, random))) for epoch in range(epochs)]


# Worked by hand for counts 1280, 100, 20 and 5.
@pytest.mark.parametrize(("q", "expected"), [
    (1, [0.91103, 0.07117, 0.01423, 0.00356]),
    (0.5, [0.68166, 0.19053, 0.08521, 0.04260]),
    (0, [0.25, 0.25, 0.25, 0.25]),
])
def test_class_probabilities(q: float, expected: list[float]) -> None:
    torch.testing.assert_close(samplers.class_probabilities(COUNTS, q), torch.tensor(expected).double(), atol=5e-6, rtol=0)


def test_progressive_probabilities() -> None:
    expected = torch.tensor([0.57680, 0.16159, 0.13344, 0.12816]).double()
    torch.testing.assert_close(samplers.progressive_probabilities(COUNTS, 45, 90), expected, atol=5e-6, rtol=0)
    torch.testing.assert_close(samplers.progressive_probabilities(COUNTS, 0, 90), samplers.class_probabilities(COUNTS, 1))
    torch.testing.assert_close(samplers.progressive_probabilities(COUNTS, 89, 90), samplers.class_probabilities(COUNTS, 0))


def chi_square(drawn: torch.Tensor, chances: torch.Tensor) -> float:
    """How far counted classes are from what their chances say; about C - 1 for independent draws."""
    expected = chances * len(drawn)
    return float(((torch.bincount(LABELS[drawn], minlength=4) - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(("name", "q", "epoch"), [
    ("square_root", 0.5, 0), ("progressively_balanced", 1, 0), ("progressively_balanced", 0, 29),
])
def test_frequencies_of_independent_draws(name: str, q: float, epoch: int) -> None:
    sampler, random = samplers.make(name, LABELS, 64, 30), generator(1)
    drawn = torch.cat([batch for _ in range(20) for batch in sampler.batches(epoch, random)])
    assert chi_square(drawn, samplers.class_probabilities(COUNTS, q)) < 16.3  # exceeded once in a thousand, at 3 degrees


def test_frequencies_over_a_progressive_training() -> None:
    epochs = draw("progressively_balanced", LABELS, 64, 10, 10)
    for epoch in (0, 5, 9):
        assert chi_square(epochs[epoch], samplers.progressive_probabilities(COUNTS, epoch, 10)) < 16.3


def test_square_root_draws_images_of_a_class_equally() -> None:
    drawn = torch.cat(draw("square_root", LABELS, 64, 30, 30))
    of_class_3 = torch.bincount(drawn[LABELS[drawn] == 3], minlength=len(LABELS))[-5:].double()
    expected = of_class_3.sum() / 5
    assert float(((of_class_3 - expected) ** 2 / expected).sum()) < 18.5  # once in a thousand, at 4 degrees


def test_instance_balanced_sees_every_image_once() -> None:
    labels = torch.arange(64) % 3
    for drawn in draw("instance_balanced", labels, 16, 3, 3):
        assert sorted(drawn.tolist()) == list(range(64))


def test_class_balanced_takes_every_class_once_a_round() -> None:
    drawn = torch.cat(draw("class_balanced", LABELS, 64, 5, 5))
    turns = LABELS[drawn].view(-1, 4)
    assert (turns == turns[:, :1]).all()  # four of one class in a row
    classes = turns[:, 0]
    rounds = classes[: len(classes) // 4 * 4].view(-1, 4)
    assert all(sorted(one.tolist()) == [0, 1, 2, 3] for one in rounds)  # also across epochs


def test_class_balanced_goes_round_each_class() -> None:
    drawn = torch.cat(draw("class_balanced", LABELS, 64, 5, 5)).view(-1, 4)
    of_class_1 = drawn[LABELS[drawn[:, 0]] == 1].flatten()
    first, second = of_class_1[:100], of_class_1[100:200]
    assert len(set(first.tolist())) == len(set(second.tolist())) == 100
    assert first.tolist() != second.tolist()


def test_class_balanced_repeats_what_is_rare() -> None:
    labels = torch.tensor([0] * 60 + [1] * 3 + [2])
    counted = Counter(labels[torch.cat(draw("class_balanced", labels, 12, 3, 3))].tolist())
    assert max(counted.values()) - min(counted.values()) <= 4


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_an_epoch_is_as_long_as_the_split(name: str) -> None:
    sampler = samplers.make(name, LABELS, 64, 4)
    batches = list(sampler.batches(0, generator()))
    assert len(batches) == len(LABELS) // 64
    assert all(batch.shape == (64,) and batch.dtype == torch.int64 for batch in batches)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_same_seed_same_draws(name: str) -> None:
    one, other = (torch.cat(draw(name, LABELS, 64, 2, 4)) for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["class_balanced", "progressively_balanced"])
def test_state_carries_the_cycles(name: str) -> None:
    sampler, random = samplers.make(name, LABELS, 64, 4), generator()
    list(sampler.batches(0, random))
    resumed, its_random = samplers.make(name, LABELS, 64, 4), generator()
    resumed.state = sampler.state
    its_random.set_state(random.get_state())
    assert torch.equal(torch.cat(list(sampler.batches(1, random))), torch.cat(list(resumed.batches(1, its_random))))


def test_class_balanced_wants_batches_of_fours() -> None:
    with pytest.raises(ValueError, match="no multiple"):
        samplers.make("class_balanced", LABELS, 30, 4)


def test_an_unknown_sampler_is_named() -> None:
    with pytest.raises(ValueError, match="no sampler is called reversed"):
        samplers.make("reversed", LABELS, 64, 4)
