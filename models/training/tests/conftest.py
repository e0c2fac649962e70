"""What several test files need."""

from pathlib import Path

import pytest
import torch

from training import binary, export, networks, train

from . import synthetic


@pytest.fixture(scope="session")
def equipoise() -> None:
    """Skips a test where there is no binary to call."""
    if not binary.path().is_file():
        pytest.skip(f"{binary.path()} is not there; EQUIPOISE_BIN says where it is")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, networks.Classifier]:
    """A trained model directory with 100 test images as PNG files, beside its network."""
    target = tmp_path_factory.mktemp("models") / "tiny"
    recipe, data = synthetic.recipe(sampler="class_balanced"), synthetic.dataset((24, 12, 8, 4), n_held_out=25)
    classifier = train.joint(recipe, data, torch.device("cpu"), target.with_name("checkpoint"))
    export.model_directory(recipe, data, classifier, target)
    export.images(data, "test", target / "test")
    return target, classifier
