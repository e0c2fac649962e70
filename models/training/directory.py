"""Reads a model directory back from its files alone, as the server does."""

import csv
import tomllib
from pathlib import Path

import numpy as np
from PIL import Image

from . import evaluate, features, head_file, heads
from .preprocess import Preprocess


def load_head(path: Path) -> heads.Head:
    """The head in a head file."""
    tensors, metadata = head_file.load(path)
    if metadata["format"] != head_file.FORMAT:
        raise ValueError(f"{path.name}: format {metadata['format']}, expected {head_file.FORMAT}")
    match metadata["kind"]:
        case "joint" | "crt":
            return heads.Linear(tensors["weight"], tensors["bias"])
        case "lws":
            return heads.Lws(tensors["weight"], tensors["bias"], tensors["scale"])
        case "ncm":
            return heads.Ncm(tensors["centroids"], tensors["mean"], metadata["transform"], metadata["metric"])
        case kind:
            raise ValueError(f"{path.name}: unknown kind {kind}")


def load_heads(directory: Path, config: dict) -> dict[str, heads.Head]:
    """Every head that `model.toml` names."""
    tables = {name: table for name, table in config["heads"].items() if name != "default"}
    loaded = {name: load_head(directory / table["file"]) for name, table in tables.items() if "file" in table}
    for name, table in tables.items():
        if table.get("kind") == "tau_norm":
            base = loaded[table["base"]]
            loaded[name] = heads.TauNorm(base.weight, base.bias, table["tau"], table["bias"])
    return loaded


def load_images(directory: Path, labels: list[str]) -> tuple[list[Image.Image], np.ndarray]:
    """The images below `directory/<label>/`, class by class and in the order of their names."""
    files = [(path, label) for label, word in enumerate(labels) for path in sorted((directory / word).glob("*.png"))]
    return [Image.open(path) for path, _ in files], np.array([label for _, label in files])


def test_accuracy(directory: Path) -> dict[str, dict]:
    """A report for each head of a model directory on its test images."""
    config = tomllib.loads((directory / "model.toml").read_text())
    labels = (directory / config["classes"]["labels"]).read_text().splitlines()
    with open(directory / config["classes"]["train_counts"], newline="") as file:
        counts = np.array([int(row["count"]) for row in csv.DictReader(file)])
    images, truth = load_images(directory / "test", labels)
    rows = features.extract(directory / config["backbone"], Preprocess.from_toml(config["preprocess"]), images)
    loaded = load_heads(directory, config)
    order = [name for name in ("joint", "tau", "crt", "lws", "ncm") if name in loaded]
    return {name: evaluate.report(loaded[name].logits(rows), truth, counts) for name in order}
