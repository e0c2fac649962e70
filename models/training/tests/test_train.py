"""Joint training: the schedule, resuming, seeds."""

from pathlib import Path

import pytest
import torch

from training import samplers, train
from training.networks import Classifier

from . import synthetic

COUNTS = (30, 14, 6, 3)
CPU = torch.device("cpu")


def weights(classifier: Classifier) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in classifier.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_learning_rate_is_half_a_cosine() -> None:
    recipe = synthetic.recipe(epochs=90, learning_rate=0.2)
    assert train.learning_rate(recipe, 0) == 0.2
    assert train.learning_rate(recipe, 45) == pytest.approx(0.1)
    assert 0 < train.learning_rate(recipe, 89) < 1e-4


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
@pytest.mark.parametrize("augmentation", ["icons", "photo"])
def test_a_killed_training_resumed_gives_the_same_weights(
    sampler: str, augmentation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe, data = synthetic.recipe(sampler=sampler, augmentation=augmentation, epochs=4), synthetic.dataset(COUNTS)
    unbroken = weights(train.joint(recipe, data, CPU, tmp_path / "unbroken"))

    def killed_in_third_epoch(training: train.Training) -> float:
        if training.epoch == 2:
            next(iter(training.sampler.batches(2, training.generator)))  # the epoch has begun to draw
            raise KeyboardInterrupt
        return run_epoch(training)

    run_epoch = train.Training.run_epoch
    monkeypatch.setattr(train.Training, "run_epoch", killed_in_third_epoch)
    with pytest.raises(KeyboardInterrupt):
        train.joint(recipe, data, CPU, tmp_path / "killed")
    monkeypatch.undo()
    assert same(unbroken, weights(train.joint(recipe, data, CPU, tmp_path / "killed")))


def test_a_finished_training_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, data = synthetic.recipe(), synthetic.dataset(COUNTS)
    first = weights(train.joint(recipe, data, CPU, tmp_path / "checkpoint"))
    monkeypatch.setattr(train.Training, "run_epoch", lambda training: pytest.fail("trained again"))
    assert same(first, weights(train.joint(recipe, data, CPU, tmp_path / "checkpoint")))


def test_the_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    data = synthetic.dataset(COUNTS)
    train.joint(synthetic.recipe(epochs=1), data, CPU, tmp_path / "checkpoint")
    train.joint(synthetic.recipe(epochs=1, name="renamed"), data, CPU, tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="other settings"):
        train.joint(synthetic.recipe(epochs=1, learning_rate=0.05), data, CPU, tmp_path / "checkpoint")


def test_seeds_decide_the_weights(tmp_path: Path) -> None:
    data = synthetic.dataset(COUNTS)
    one, again, other = (
        weights(train.joint(synthetic.recipe(epochs=1, seed=seed), data, CPU, tmp_path / name))
        for name, seed in (("one", 0), ("again", 0), ("other", 1))
    )
    assert same(one, again)
    assert not same(one, other)


def test_training_learns(tmp_path: Path) -> None:
    data = synthetic.dataset((40, 40, 40))
    recipe = synthetic.recipe(epochs=8, learning_rate=0.05, augmentation="digits")
    training = train.Training(recipe, data, CPU)
    losses = [training.run_epoch() for _ in range(recipe.epochs)]
    assert losses[-1] < 0.5 * losses[0]


def test_fewer_images_than_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="less than one batch"):
        train.Training(synthetic.recipe(batch_size=64), synthetic.dataset(COUNTS), CPU)
