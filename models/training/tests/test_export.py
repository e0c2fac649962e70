"""What is written is what was trained: ONNX beside torch, and a running server beside both."""

import contextlib
import io
import re
import subprocess
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from training import binary, export, features, head_file, networks
from training.data import ImageFiles
from training.preprocess import Preprocess

from . import synthetic

@pytest.mark.parametrize("network", networks.NETWORKS)
def test_onnx_gives_what_torch_gives(network: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = networks.Backbone(network)
    with torch.no_grad():
        for _ in range(3):
            backbone.train()(torch.randn(8, 3, 24, 24) * 2 + 1)  # so that BatchNorm has something to fold
    export.backbone(backbone.eval(), 24, tmp_path / "backbone.onnx")
    export.check_backbone(backbone, 24, tmp_path / "backbone.onnx")


def test_resnet20_has_twenty_layers_with_weights(tmp_path: Path) -> None:
    backbone = networks.Backbone("resnet20").eval()
    export.backbone(backbone, 32, tmp_path / "backbone.onnx")
    convolutions = [node for node in onnx.load(tmp_path / "backbone.onnx").graph.node if node.op_type == "Conv"]
    shortcuts = [node for node in convolutions if next(a for a in node.attribute if a.name == "kernel_shape").ints == [1, 1]]
    assert (len(convolutions), len(shortcuts)) == (19 + 2, 2)  # and the head is the twentieth


def test_directory_is_complete(model: tuple[Path, networks.Classifier]) -> None:
    directory, classifier = model
    settings = tomllib.loads((directory / "model.toml").read_text())
    assert settings["name"] == "tiny"
    assert settings["preprocess"]["resize"] == 18 and settings["preprocess"]["crop"] == 16
    assert settings["heads"] == {"default": "joint", "joint": {"file": "heads/joint.safetensors"}}
    assert (directory / "labels.txt").read_text().splitlines() == ["angle0", "angle1", "angle2", "angle3"]
    assert (directory / "train_counts.csv").read_text() == "class,count\n0,24\n1,12\n2,8\n3,4\n"
    tensors, metadata = head_file.load(directory / "heads" / "joint.safetensors")
    np.testing.assert_array_equal(tensors["weight"], classifier.head.weight.detach().numpy())
    assert tensors["train_counts"].tolist() == [24, 12, 8, 4]
    assert (metadata["sampler"], metadata["train_prior"]) == ("class_balanced", "uniform")
    for name, n in (("train", 48), ("val", 100), ("test", 100)):
        rows, labels = features.load(directory / "features" / f"{name}.npz")
        assert rows.shape == (n, 64) and labels.shape == (n,)


def test_a_name_that_no_server_takes_is_refused(model: tuple[Path, networks.Classifier], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no name for a model"):
        export.model_directory(synthetic.recipe(name="a b"), synthetic.dataset((2, 2)), model[1], tmp_path)


def torch_features(directory: Path, classifier: networks.Classifier) -> tuple[list[Path], np.ndarray]:
    """The PNG files in the order of the classes, and what torch makes of them after Pillow's preprocessing."""
    files = sorted((directory / "test").glob("*/*.png"))
    preprocess = Preprocess(18, 16, 0.5, 0.5)
    with torch.no_grad():
        rows = classifier.backbone(torch.from_numpy(np.stack([preprocess(image) for image in ImageFiles(files)])))
    return files, rows.numpy()


@contextlib.contextmanager
def serving(directory: Path, state: Path) -> Iterator[str]:
    """A running server on a free port; gives its address."""
    log = state.with_suffix(".log")
    with log.open("w") as stderr:
        command = [binary.path(), "serve", directory, "--listen", "127.0.0.1:0", "--state-dir", state, "--device", "cpu"]
        server = subprocess.Popen(command, cwd=binary.REPOSITORY, stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            deadline = time.monotonic() + 30
            while not ((found := re.search(r"http://127\.0\.0\.1:\d+", text := log.read_text())) and "is ready" in text):
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"the server did not start: {text}")
                time.sleep(0.05)
            yield found[0]
        finally:
            server.terminate()
            server.wait(30)


@pytest.mark.usefixtures("equipoise")
def test_server_features_are_torchs(model: tuple[Path, networks.Classifier], tmp_path: Path) -> None:
    directory, classifier = model
    files, expected = torch_features(directory, classifier)
    assert len(files) == 100
    with serving(directory, tmp_path / "state") as address:
        served = []
        for file in files:
            headers = {"Content-Type": "image/png", "Accept": "application/x-npy"}
            request = urllib.request.Request(f"{address}/v1/models/tiny/features", file.read_bytes(), headers)
            with urllib.request.urlopen(request, timeout=30) as answer:
                served.append(np.load(io.BytesIO(answer.read())))
    assert np.abs(np.concatenate(served) - expected).max() < 1e-4


@pytest.mark.usefixtures("equipoise")
def test_extract_gives_torchs_features(model: tuple[Path, networks.Classifier], tmp_path: Path) -> None:
    directory, classifier = model
    _, expected = torch_features(directory, classifier)
    binary.extract(directory / "test", directory, tmp_path / "test.npz")
    rows, labels = features.load(tmp_path / "test.npz")
    assert np.abs(rows - expected).max() < 1e-4
    assert labels.tolist() == [label for label in range(4) for _ in range(25)]
    stored, _ = features.load(directory / "features" / "test.npz")
    assert np.abs(rows - stored).max() < 1e-4
