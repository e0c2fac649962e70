"""Trains a model and writes it as a directory that `equipoise serve` takes: `python -m training`, run from models/."""

import argparse
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from . import augment, datasets, evaluate, export, features, networks, samplers, train
from .recipes import RECIPES, FolderData, Recipe

WORK = Path(__file__).resolve().parent / ".work"
DEFAULTS = Recipe(name="", data=FolderData(Path()))


def parser() -> argparse.ArgumentParser:
    """The command line. An option that is not given leaves the recipe's value."""
    made = argparse.ArgumentParser(
        prog="training", argument_default=argparse.SUPPRESS,
        description="Trains backbone and head together and writes a model directory: backbone, joint head, labels, counts, "
        "preprocessing, and the features of every split, for `equipoise serve` and `equipoise fit`.",
        epilog="A training that was ended goes on where it was when the same command is given again.",
    )
    made.add_argument(
        "-o", "--output", type=Path, required=True, help="model directory to write; its last part is the model's name",
    )
    made.add_argument(
        "--data", default="icons100", metavar="DIR|" + "|".join(RECIPES),
        help="folder with train/CLASS, val/CLASS and test/CLASS, or with CLASS, which is split; or a data set by name, whose "
        "recipe is then what the other options change (default: icons100)",
    )
    for split, use, share in (("val", "validation", FolderData.val_share), ("test", "the test", FolderData.test_share)):
        text = f"share of each class for {use} where a folder is split (default: {share})"
        made.add_argument(f"--{split}-share", type=float, help=text)
    for option, choices, text in (
        ("sampler", samplers.SAMPLERS, "how images are drawn"),
        ("network", tuple(networks.NETWORKS), "the backbone"),
        ("augmentation", augment.AUGMENTATIONS, "how training images are varied"),
    ):
        made.add_argument(f"--{option}", choices=choices, help=f"{text} (default for a folder: {getattr(DEFAULTS, option)})")
    for option, kind, text in (
        ("resize", int, "shorter side in pixels before the crop"), ("crop", int, "side in pixels of what the network sees"),
        ("epochs", int, "epochs, each as many images as the training split has"), ("batch_size", int, "images a step"),
        ("learning_rate", float, "at the start; it falls to zero by a cosine"), ("momentum", float, "of SGD"),
        ("weight_decay", float, "of SGD"), ("seed", int, "of the start weights, the draws and the augmentation"),
    ):
        default = getattr(DEFAULTS, option)
        made.add_argument(f"--{option.replace('_', '-')}", type=kind, help=f"{text} (default for a folder: {default})")
    made.add_argument("--device", default="auto", help="auto (CUDA if there is one, else the CPU; the default), cpu or cuda")
    made.add_argument(
        "--checkpoint", type=Path, default=None, help="file that holds the state after each epoch (default: OUTPUT.checkpoint)",
    )
    return made


def recipe_of(options: dict) -> Recipe:
    """The recipe that the command line asks for."""
    name = options["output"].resolve().name
    shares = {key: options[key] for key in ("val_share", "test_share") if key in options}
    if options["data"] in RECIPES:
        if shares:
            raise ValueError(f"{options['data']} comes with its split: --val-share and --test-share are for folders")
        recipe = replace(RECIPES[options["data"]], name=name)
    else:
        recipe = Recipe(name=name, data=FolderData(Path(options["data"]), **shares))
    settings = asdict(recipe).keys() - {"name", "data"}
    return replace(recipe, **{key: value for key, value in options.items() if key in settings})


def joint_accuracy(directory: Path, classifier: networks.Classifier, train_counts: np.ndarray) -> dict[str, dict]:
    """The joint head's report on the features of each split but the training split."""
    weight, bias = (parameter.detach().numpy() for parameter in (classifier.head.weight, classifier.head.bias))
    reports = {}
    for name in ("val", "test"):
        if (path := directory / "features" / f"{name}.npz").exists():
            rows, labels = features.load(path)
            reports[name] = evaluate.report(rows @ weight.T + bias, labels, train_counts)
    return reports


def main() -> None:
    options = vars(parser().parse_args())
    output = options["output"]
    try:
        recipe = recipe_of(options)
        dataset = datasets.load(recipe.data, WORK)
        sizes = ", ".join(f"{len(split.labels)} {name}" for name, split in dataset.splits.items())
        print(f"{len(dataset.classes)} classes; images: {sizes}", flush=True)
        checkpoint = options["checkpoint"] or output.with_name(output.name + ".checkpoint")
        classifier = train.joint(recipe, dataset, train.pick_device(options["device"]), checkpoint)
        export.model_directory(recipe, dataset, classifier, output)
    except ValueError as error:
        sys.exit(f"training: {error}")
    reports = joint_accuracy(output, classifier, dataset.train_counts)
    for name, report in reports.items():
        print(f"{name}: {evaluate.in_words(report)}")
    record = {"recipe": asdict(recipe), "accuracy": reports}
    (output / "training.json").write_text(json.dumps(record, indent=2, default=str) + "\n")
    print(f"{output}: take it to `equipoise serve {output}`; {output}/features is for `equipoise fit`")


if __name__ == "__main__":
    main()
