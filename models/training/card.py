"""Writes what people read: the model card and the attribution table."""

import csv
import json
import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import onnx

from . import evaluate, head_file
from .data import Dataset
from .icons import LICENCES
from .recipes import Recipe

NOTES = {
    "icons30": (
        "Two earlier tries, one with\nanother width and one with fewer epochs, were measured on the same test split "
        "before this recipe was settled, so the level\nof all heads may be a little optimistic."
    ),
}
HEADS = {"joint": "joint (default)", "tau": "tau-norm", "crt": "cRT", "lws": "LWS", "ncm": "NCM"}


def percent(accuracy: float, n: int) -> str:
    """An accuracy and the standard error that `n` independent test images give it."""
    return f"{100 * accuracy:.1f} ± {100 * (accuracy * (1 - accuracy) / n) ** 0.5:.1f}"


def accuracy_table(recipe: Recipe, accuracy: dict[str, dict]) -> str:
    """The accuracies as a Markdown table."""
    shots = Counter(evaluate.shot_of(np.array(recipe.data.train_counts)).tolist())
    lines = [
        "| head | all (micro) | macro | many | medium | few |",
        "|---|---|---|---|---|---|",
    ]
    for name, report in accuracy.items():
        cells = [percent(report[key], report["n"]) for key in ("micro", "macro")]
        cells += [percent(report[shot], shots[shot] * recipe.data.test_per_class) for shot in ("many", "medium", "few")]
        lines.append("| " + " | ".join([HEADS[name], *cells]) + " |")
    return "\n".join(lines)


def class_table(recipe: Recipe) -> str:
    """Classes with their training counts, by shot."""
    counts = np.array(recipe.data.train_counts)
    shots = evaluate.shot_of(counts)
    lines = ["| shot | classes (training images) |", "|---|---|"]
    for shot in ("many", "medium", "few"):
        named = [f"{recipe.data.classes[label]} ({counts[label]})" for label in np.flatnonzero(shots == shot)]
        lines.append(f"| {shot} | {', '.join(named)} |")
    return "\n".join(lines)


def write_card(recipe: Recipe, directory: Path) -> None:
    """Writes `README.md` from `accuracy.json`, `model.toml`, the head files and the sources."""
    accuracy = json.loads((directory / "accuracy.json").read_text())
    tau = tomllib.loads((directory / "model.toml").read_text())["heads"]["tau"]
    metadata = {name: head_file.load(directory / "heads" / f"{name}.safetensors")[1] for name in ("crt", "lws", "ncm")}
    with open(directory / "sources.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    n_images, sets = Counter(row["split"] for row in rows), {split: set() for split in ("train", "val", "test")}
    for row in rows:
        sets[row["split"]].add(row["set"])
    n_convolutions, n_parameters = backbone_size(directory / "backbone.onnx")
    megabytes = (directory / "backbone.onnx").stat().st_size / 1e6
    dim = head_file.load(directory / "heads" / "joint.safetensors")[1]["feature_dim"]
    (directory / "README.md").write_text(f"""\
# {recipe.name}

A small classifier of user-interface icons into {len(recipe.data.classes)} classes with a long tail, trained by decoupling
(Kang et al., ICLR 2020, "Decoupling Representation and Classifier for Long-Tailed Recognition"): one backbone from joint
training, and five heads on its features. It is the model that `equipoise serve` serves when it is given none.

- Input: an image; resized to {recipe.resize} pixels on the shorter side, centre crop {recipe.crop}, RGB
  (`model.toml` has it exactly).
- Backbone: {n_convolutions} convolutions of 3x3 with ReLU (BatchNorm folded in), global average pool;
  {n_parameters:,} parameters, {dim} features, {megabytes:.2f} MB.
- Labels: the first word of an icon's name in its set, which says what is drawn, most of the time. "Folder-open" and
  "folder-minus" are both `folder`; a "file-pdf" may show no sheet of paper. Nobody corrected the labels.
- It knows icons, not photographs, and nothing outside its {len(recipe.data.classes)} classes: every image gets one of them.

## Classes

Training counts fall off exponentially from {recipe.data.train_counts[0]} to {recipe.data.train_counts[-1]} (imbalance {recipe.data.train_counts[0] / recipe.data.train_counts[-1]:.0f}). Many is
more than {evaluate.MANY} training images, few is fewer than {evaluate.FEW}.

{class_table(recipe)}

## Split

| split | images | icon sets | for |
|---|---|---|---|
| train | {n_images["train"]} | {len(sets["train"])} | joint training; the heads' fits |
| val | {n_images["val"]} ({recipe.data.val_per_class} a class) | {len(sets["val"])} | choosing tau, its bias mode, weight decay, transform and metric |
| test | {n_images["test"]} ({recipe.data.test_per_class} a class) | {len(sets["test"])} | the table below; no setting of a head was chosen on it |

The splits share no icon family: sets of one team, or redrawn from one another, stay together, so the test split
asks whether drawings by a team that training never saw are recognised. Blank and animated drawings are left out, and so
is a drawing of a class that differs too little from one already in any split. `sources.csv` names the icon behind every
image, in the order of the feature sets and of the test files; `ATTRIBUTION.md` has authors and licences.

## Accuracy on the test split

Top-1 in percent, ± one standard error of sampling the test images. Macro equals micro because the test split is balanced.
Heads are compared on the same images, so a difference between two of them is surer than the errors suggest. {NOTES[recipe.name]}

{accuracy_table(recipe, accuracy)}

- tau-norm: tau {tau["tau"]}, bias {tau["bias"]}.
- cRT: L-BFGS to the optimum of the class-balanced cross-entropy on frozen features, weight decay {metadata["crt"]["weight_decay"]}.
- LWS: the same for one factor a class, weight decay {metadata["lws"]["weight_decay"]}.
- NCM: transform {metadata["ncm"]["transform"]}, metric {metadata["ncm"]["metric"]}.

`accuracy.json` has the same numbers for programs. They come from `backbone.onnx`, the head files and the PNGs in `test/`,
read back with Pillow and ONNX Runtime.

## Files

| file | is |
|---|---|
| `model.toml`, `labels.txt`, `train_counts.csv` | what the server reads first |
| `backbone.onnx` | image [N, 3, {recipe.crop}, {recipe.crop}] to features [N, {dim}], float32, N free |
| `heads/*.safetensors` | joint, crt, lws, ncm; tau-norm derives from joint in `model.toml` |
| `features/train.npz`, `features/val.npz` | features and labels of the training and validation images, for refitting heads |
| `features/test.npz` | the same of the test images, made by `equipoise extract models/icons30/test -o models/icons30/features/test.npz` |
| `test/<label>/<nn>.png` | the test split, {recipe.data.render_size}x{recipe.data.render_size} |
| `accuracy.json` | the accuracies above |
| `sources.csv`, `ATTRIBUTION.md` | where every image comes from |

## Rerun

```
make -C models/training {recipe.name}            # fetch, render, train, export, fit, evaluate
make -C models/training {recipe.name}-heads      # fit the heads again from features/, evaluate
make -C models/training {recipe.name}-evaluate   # measure the files again
```

Needs Python 3.11 or newer, npm, and a release build of equipoise, which fits the heads. Seeds are fixed, and training runs
on one thread, so that the same machine and package versions give the same files; another processor may round differently,
and then the last digits of the accuracies move.
""")


def backbone_size(path: Path) -> tuple[int, int]:
    """The numbers of convolutions and of weights in an ONNX file."""
    graph = onnx.load(path).graph
    return sum(node.op_type == "Conv" for node in graph.node), sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)


def write_attribution(recipe: Recipe, dataset: Dataset, sets: dict[str, dict], path: Path) -> None:
    """Writes the table of icon sets with author, licence and how many icons of each lie in each split."""
    counts = {name: Counter(source.split(":")[0] for source in split.sources) for name, split in dataset.splits.items()}
    used = sorted(set().union(*counts.values()), key=lambda prefix: (sets[prefix]["name"].lower(), prefix))
    rows = []
    for prefix in used:
        facts = sets[prefix]
        licence = facts["license"]["spdx"]
        if licence not in LICENCES:
            raise ValueError(f"{prefix}: {licence} is not among the permissive licences")
        author = facts["author"]["name"]
        if facts["author"].get("url"):
            author = f"[{author}]({facts['author']['url']})"
        numbers = [str(counts[split][prefix]) for split in ("train", "val", "test")]
        cells = [f"{facts['name']} (`{prefix}`)", author, licence, *numbers]
        rows.append("| " + " | ".join(cells) + " |")
    by_licence = Counter()
    for split in counts.values():
        for prefix, n in split.items():
            by_licence[sets[prefix]["license"]["spdx"]] += n
    summary = ", ".join(f"{licence} {n}" for licence, n in by_licence.most_common())
    path.write_text(f"""\
# Attribution

The images behind {recipe.name} are icons from {len(used)} sets, as packed in npm package `{recipe.data.package}`
{recipe.data.package_version}. Only sets under permissive licences are used; by licence, in images: {summary}.

- `test/` holds renderings of the icons in the column "test": each stays under its set's licence.
- `features/` holds numbers computed from the icons in the columns "train" and "val"; no image can be read from this
  directory but those in `test/`.
- `backbone.onnx` and `heads/` were trained from random starts on the column "train" alone, with the code in
  `models/training`, and the heads' settings chosen on the column "val". No pretrained weights went in. They come under the
  project's own licence, MIT OR Apache-2.0.
- Some icons show trademarks or emoji designs; a licence to the drawing grants no right to a trademark.

`sources.csv` names the set and the icon behind every single image. The package's `collections.json` links each set's
licence text.

| set | author | licence (SPDX) | train | val | test |
|---|---|---|---|---|---|
""" + "\n".join(rows) + f"\n| **all {len(used)} sets** | | | " + " | ".join(
        f"**{sum(counts[split].values())}**" for split in ("train", "val", "test")) + " |\n")
