"""Writes a model directory: the backbone as ONNX, `model.toml`, labels, counts and images."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from .icons import Split
from .model import Backbone
from .recipes import Recipe

OPSET = 17
IR_VERSION = 8


def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[np.ndarray, np.ndarray]:
    """A convolution and the BatchNorm after it as one convolution's weight and bias."""
    gamma, beta, mean, var = (
        tensor.detach().double().numpy() for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    gain = gamma / np.sqrt(var + norm.eps)
    weight = conv.weight.detach().double().numpy() * gain[:, None, None, None]
    return np.ascontiguousarray(weight, dtype=np.float32), (beta - mean * gain).astype(np.float32)


def backbone(network: Backbone, crop: int, path: Path) -> None:
    """Writes the backbone, input `image [N, 3, crop, crop]`, output `features [N, D]`, BatchNorm folded."""
    nodes, initializers = [], []
    current, stage = "image", 0
    layers = list(network.layers)
    for layer, following in zip(layers, layers[1:] + [None], strict=True):
        if isinstance(layer, nn.Conv2d):
            weight, bias = fold(layer, following)
            names = [f"stage{stage}.weight", f"stage{stage}.bias"]
            initializers += [numpy_helper.from_array(weight, names[0]), numpy_helper.from_array(bias, names[1])]
            output = f"stage{stage}.conv"
            nodes.append(helper.make_node("Conv", [current, *names], [output], kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
        elif isinstance(layer, nn.BatchNorm2d):
            continue
        elif isinstance(layer, nn.ReLU):
            output = f"stage{stage}.relu"
            nodes.append(helper.make_node("Relu", [current], [output]))
            stage += 1
        elif isinstance(layer, nn.MaxPool2d):
            output = f"stage{stage}.pool"
            nodes.append(helper.make_node("MaxPool", [current], [output], kernel_shape=[2, 2], strides=[2, 2]))
        else:
            raise TypeError(f"no ONNX form for {layer}")
        current = output
    nodes.append(helper.make_node("GlobalAveragePool", [current], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["features"], axis=1))
    graph = helper.make_graph(
        nodes, "backbone",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, crop, crop])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", network.feature_dim])],
        initializers,
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


def model_toml(recipe: Recipe, tau: float, bias_mode: str, path: Path) -> None:
    """Writes `model.toml`."""
    files = "".join(f'[heads.{name}]\nfile = "heads/{name}.safetensors"\n' for name in ("joint", "crt", "lws", "ncm"))
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
{files}[heads.tau]
kind = "tau_norm"
base = "joint"
tau = {tau}
bias = "{bias_mode}"
""")


def classes(recipe: Recipe, directory: Path) -> None:
    """Writes `labels.txt` and `train_counts.csv`."""
    (directory / "labels.txt").write_text("".join(f"{word}\n" for word in recipe.classes))
    rows = "".join(f"{label},{count}\n" for label, count in enumerate(recipe.train_counts))
    (directory / "train_counts.csv").write_text("class,count\n" + rows)


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


def images(recipe: Recipe, split: Split, directory: Path) -> None:
    """Writes a split as `directory/<label>/<nn>.png`."""
    seen: dict[int, int] = {}
    for icon, image in zip(split.icons, split.images, strict=True):
        number = seen.get(icon.label, 0)
        seen[icon.label] = number + 1
        folder = directory / recipe.classes[icon.label]
        folder.mkdir(parents=True, exist_ok=True)
        png(image, folder / f"{number:02}.png")


def sources(recipe: Recipe, splits: dict[str, Split], path: Path) -> None:
    """Writes which icon every image is, in the order of the feature sets and of the test files."""
    lines = ["split,class,set,icon"]
    for name, split in splits.items():
        lines += [f"{name},{icon.label},{icon.prefix},{icon.name}" for icon in split.icons]
    path.write_text("\n".join(lines) + "\n")
