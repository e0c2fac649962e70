"""Writes a model directory: the backbone as ONNX, the joint head, `model.toml`, labels, counts, features and images."""

import re
import shutil
from collections import Counter
from itertools import zip_longest
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from . import features, head_file
from .data import Dataset
from .networks import Backbone, Classifier, Residual
from .preprocess import Preprocess
from .recipes import Recipe

OPSET = 17
IR_VERSION = 8
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[np.ndarray, np.ndarray]:
    """A convolution and the BatchNorm after it as one convolution's weight and bias."""
    gamma, beta, mean, var = (
        tensor.detach().double().numpy() for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    gain = gamma / np.sqrt(var + norm.eps)
    weight = conv.weight.detach().double().numpy() * gain[:, None, None, None]
    return np.ascontiguousarray(weight, dtype=np.float32), (beta - mean * gain).astype(np.float32)


class Graph:
    """The nodes and weights of a backbone, added layer by layer."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.stage = -1  # how many convolutions there are, less one

    def node(self, operator: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def convolution(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, source: str) -> str:
        self.stage += 1
        names = [f"stage{self.stage}.weight", f"stage{self.stage}.bias"]
        for array, name in zip(fold(conv, norm), names, strict=True):
            self.initializers.append(numpy_helper.from_array(array, name))
        strides = {"strides": list(conv.stride)} if conv.stride != (1, 1) else {}
        return self.node(
            "Conv", [source, *names], f"stage{self.stage}.conv",
            kernel_shape=list(conv.kernel_size), pads=list(conv.padding * 2), **strides,
        )

    def layers(self, layers: nn.Sequential, current: str) -> str:
        """Adds layers in a row; returns the name of the last one's output."""
        for layer, following in zip_longest(layers, layers[1:]):
            match layer:
                case nn.Conv2d():
                    current = self.convolution(layer, following, current)
                case nn.BatchNorm2d():
                    pass  # folded into the convolution before it
                case nn.ReLU():
                    current = self.node("Relu", [current], f"stage{self.stage}.relu")
                case nn.MaxPool2d():
                    current = self.node(
                        "MaxPool", [current], f"stage{self.stage + 1}.pool", kernel_shape=[2, 2], strides=[2, 2]
                    )
                case Residual():
                    parts = [self.layers(layer.body, current), self.layers(layer.shortcut, current)]
                    added = self.node("Add", parts, f"stage{self.stage}.add")
                    current = self.node("Relu", [added], f"stage{self.stage}.sum")
                case _:
                    raise TypeError(f"no ONNX form for {layer}")
        return current


def backbone(network: Backbone, crop: int, path: Path) -> None:
    """Writes the backbone, input `image [N, 3, crop, crop]`, output `features [N, D]`, BatchNorm folded."""
    parts = Graph()
    last = parts.layers(network.layers, "image")
    parts.node("GlobalAveragePool", [last], "pooled")
    parts.node("Flatten", ["pooled"], "features", axis=1)
    graph = helper.make_graph(
        parts.nodes, "backbone",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, crop, crop])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", network.feature_dim])],
        parts.initializers,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="equipoise"
    )
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def check_backbone(network: Backbone, crop: int, path: Path) -> None:
    """Compares the written backbone with the network on random images."""
    image = np.random.default_rng(0).uniform(-1, 1, (5, 3, crop, crop)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = network(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(session.run(["features"], {"image": image})[0], expected, rtol=1e-4, atol=1e-5)


def model_directory(recipe: Recipe, dataset: Dataset, classifier: Classifier, target: Path) -> None:
    """Writes all that a server needs: backbone, joint head, labels, counts and settings; and the splits' features.

    Features come from the written backbone, so that heads are fitted on what will be served.
    """
    if not NAME.fullmatch(recipe.name):
        raise ValueError(f"{recipe.name!r} is no name for a model: letters, digits, dot, underscore and dash, at most 64")
    for stale in ("features", "heads"):
        shutil.rmtree(target / stale, ignore_errors=True)
    target.mkdir(parents=True, exist_ok=True)
    backbone(classifier.backbone, recipe.crop, target / "backbone.onnx")
    check_backbone(classifier.backbone, recipe.crop, target / "backbone.onnx")
    (target / "labels.txt").write_text("".join(f"{word}\n" for word in dataset.classes))
    rows = "".join(f"{label},{count}\n" for label, count in enumerate(dataset.train_counts))
    (target / "train_counts.csv").write_text("class,count\n" + rows)
    preprocess = Preprocess(recipe.resize, recipe.crop, recipe.mean, recipe.std)
    for name, split in dataset.splits.items():
        if len(split.labels):
            extracted = features.extract(target / "backbone.onnx", preprocess, split.images)
            features.save(target / "features" / f"{name}.npz", extracted, split.labels)
    joint_head(recipe, classifier.head, dataset.train_counts, target)
    model_toml(recipe, {"joint": {"file": "heads/joint.safetensors"}}, target / "model.toml")


# The class prior that a head's logits hold, for corrections to another prior: the training data's own, or none of them.
# Square-root sampling leaves one in between, progressively-balanced one that moved.
TRAIN_PRIORS = {
    "instance_balanced": "joint", "class_balanced": "uniform", "square_root": "none", "progressively_balanced": "none",
}


def joint_head(recipe: Recipe, layer: nn.Linear, train_counts: np.ndarray, directory: Path) -> None:
    """Writes the network's own last layer as the joint head."""
    train, _ = features.load(directory / "features" / "train.npz")
    tensors = {
        "weight": layer.weight.detach().numpy(), "bias": layer.bias.detach().numpy(),
        "train_counts": train_counts.astype(np.int64),
    }
    metadata = {
        "kind": "joint", "method": "joint", "classes": layer.out_features, "feature_dim": layer.in_features,
        "transform": "none", "seed": recipe.seed, "feature_set_digest": features.digest(train),
        "train_prior": TRAIN_PRIORS[recipe.sampler], "solver": "sgd", "sampler": recipe.sampler, "epochs": recipe.epochs,
        "batch_size": recipe.batch_size, "learning_rate": recipe.learning_rate, "momentum": recipe.momentum,
        "weight_decay": recipe.weight_decay,
    }
    head_file.save(directory / "heads" / "joint.safetensors", tensors, {key: str(value) for key, value in metadata.items()})


def model_toml(recipe: Recipe, heads: dict[str, dict[str, str | float]], path: Path) -> None:
    """Writes `model.toml` with these heads, joint the default."""
    def value(of: str | float) -> str:
        return f'"{of}"' if isinstance(of, str) else str(of)

    tables = "".join(
        f"[heads.{name}]\n" + "".join(f"{key} = {value(of)}\n" for key, of in table.items()) for name, table in heads.items()
    )
    path.write_text(f"""\
name = "{recipe.name}"
backbone = "backbone.onnx"

[preprocess]
resize = {recipe.resize}
crop = {recipe.crop}
interpolation = "bilinear"
mean = [{recipe.mean}, {recipe.mean}, {recipe.mean}]
std = [{recipe.std}, {recipe.std}, {recipe.std}]
exif_orientation = "ignore"

[classes]
labels = "labels.txt"
train_counts = "train_counts.csv"

[heads]
default = "joint"
{tables}""")


def png(image: Image.Image, path: Path) -> None:
    """Writes an RGB image as the smallest PNG that decodes to the same pixels."""
    pixels = np.asarray(image)
    if (pixels == pixels[:, :, :1]).all():
        small = image.convert("L")
    else:
        small = image.quantize(256) if len(image.getcolors(96 * 96)) <= 256 else image
        if not (np.asarray(small.convert("RGB")) == pixels).all():
            small = image
    small.save(path, optimize=True)


def images(dataset: Dataset, name: str, directory: Path) -> None:
    """Writes a split as `directory/<label>/<nn>.png`."""
    split, seen = dataset.splits[name], Counter()
    for label, image in zip(split.labels.tolist(), split.images, strict=True):
        folder = directory / dataset.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        png(image, folder / f"{seen[label]:02}.png")
        seen[label] += 1
