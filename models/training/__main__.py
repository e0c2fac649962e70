"""Makes a model directory: `python -m training RECIPE [--stage STAGE]`, run from models/."""

import argparse
import json
import shutil
from pathlib import Path

from . import card, directory, export, features, fit, icons, train
from .preprocess import Preprocess
from .recipes import RECIPES, Recipe

MODELS = Path(__file__).resolve().parent.parent
WORK = Path(__file__).resolve().parent / ".work"


def make_backbone(recipe: Recipe, target: Path) -> None:
    """Fetches and renders the icons, trains jointly, and writes everything but heads, settings and reports."""
    splits, sets = icons.build(recipe, WORK)
    print({name: len(split.icons) for name, split in splits.items()}, flush=True)
    classifier = train.joint(recipe, splits["train"].images, splits["train"].labels)
    for stale in ("test", "features", "heads"):
        shutil.rmtree(target / stale, ignore_errors=True)
    target.mkdir(parents=True, exist_ok=True)
    export.backbone(classifier.backbone, recipe.crop, target / "backbone.onnx")
    export.check_backbone(classifier.backbone, recipe.crop, target / "backbone.onnx")
    export.classes(recipe, target)
    export.images(recipe, splits["test"], target / "test")
    export.sources(recipe, splits, target / "sources.csv")
    card.write_attribution(recipe, splits, sets, target / "ATTRIBUTION.md")
    preprocess = Preprocess(recipe.resize, recipe.crop, recipe.mean, recipe.std)
    for name in ("train", "val"):
        rows = features.extract(target / "backbone.onnx", preprocess, splits[name].images)
        features.save(target / "features" / f"{name}.npz", rows, splits[name].labels)
    fit.save_joint(recipe, classifier.head, target)


def make_heads(recipe: Recipe, target: Path) -> None:
    """Fits the heads on the feature sets and writes `model.toml` with what validation chose."""
    chosen = fit.fit_heads(recipe, target)
    print(chosen)
    export.model_toml(recipe, chosen["tau"]["tau"], chosen["tau"]["bias"], target / "model.toml")


def make_reports(recipe: Recipe, target: Path) -> None:
    """Measures the files on disk and writes `accuracy.json` and the model card."""
    accuracy = directory.test_accuracy(target)
    (target / "accuracy.json").write_text(json.dumps(accuracy, indent=2) + "\n")
    card.write_card(recipe, target)
    print(card.accuracy_table(recipe, accuracy))


STAGES = {"all": (make_backbone, make_heads, make_reports), "heads": (make_heads, make_reports), "evaluate": (make_reports,)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="training", description="Makes a model directory below models/.")
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--stage", choices=STAGES, default="all", help="all, or only from the heads on, or only the reports")
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.recipe]
    for step in STAGES[arguments.stage]:
        step(recipe, MODELS / recipe.name)


if __name__ == "__main__":
    main()
