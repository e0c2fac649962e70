"""Makes the model that ships: `python -m training.ship icons30 [--stage STAGE]`, run from models/."""

import argparse
import json
import shutil
import tempfile
import tomllib
from pathlib import Path

import torch

from . import binary, card, datasets, export, fitting, icons, train
from .data import Dataset
from .recipes import ICONS30, Recipe

MODELS = Path(__file__).resolve().parent.parent
WORK = Path(__file__).resolve().parent / ".work"
SHIPPED = {"icons30": ICONS30}
# The weight decays that its heads were chosen from when it was first made.
DECAYS = (2e-2, 1e-2, 5e-3, 2e-3, 1e-3, 5e-4, 2e-4)


def make_backbone(recipe: Recipe, target: Path) -> None:
    """Fetches and renders the icons, trains jointly, and writes everything but the other heads and the reports."""
    dataset = datasets.load(recipe.data, WORK)
    classifier = train.joint(recipe, dataset, torch.device("cpu"), WORK / f"{recipe.name}.checkpoint")
    shutil.rmtree(target / "test", ignore_errors=True)
    export.model_directory(recipe, dataset, classifier, target)
    export.images(dataset, "test", target / "test")
    binary.extract(target / "test", target, target / "features" / "test.npz")  # as the README shows
    write_sources(dataset, target / "sources.csv")
    facts = icons.read_facts(icons.archive_of(recipe.data, WORK))
    card.write_attribution(recipe, dataset, facts, target / "ATTRIBUTION.md")


def write_sources(dataset: Dataset, path: Path) -> None:
    """Writes which icon every image is, in the order of the feature sets and of the test files."""
    lines = ["split,class,set,icon"]
    for name, split in dataset.splits.items():
        sources = zip(split.labels, split.sources, strict=True)
        lines += [f"{name},{label},{source.replace(':', ',')}" for label, source in sources]
    path.write_text("\n".join(lines) + "\n")


def make_heads(recipe: Recipe, target: Path) -> None:
    """Fits the heads on the feature sets and writes `model.toml` with what validation chose."""
    chosen = fitting.fit_heads(target, DECAYS)
    (target / "heads" / "tau_norm.safetensors").unlink()  # a setting in model.toml is all that it takes
    tau = {"kind": "tau_norm", "base": "joint", "tau": float(chosen["tau_norm"]["tau"]), "bias": chosen["tau_norm"]["bias"]}
    files = {name: {"file": f"heads/{name}.safetensors"} for name in ("joint", "crt", "lws", "ncm")}
    export.model_toml(recipe, {**files, "tau": tau}, target / "model.toml")


def make_reports(recipe: Recipe, target: Path) -> None:
    """Measures the files on disk and writes `accuracy.json` and the model card."""
    tau = tomllib.loads((target / "model.toml").read_text())["heads"]["tau"]
    test, heads = target / "features" / "test.npz", target / "heads"
    with tempfile.TemporaryDirectory() as temporary:
        derived = Path(temporary) / "tau.safetensors"
        settings = {"tau": [tau["tau"]], "bias": tau["bias"]}
        binary.fit("tau_norm", target / "features", heads / "joint.safetensors", derived, settings)
        files = {"joint": heads / "joint.safetensors", "tau": derived}
        files |= {name: heads / f"{name}.safetensors" for name in ("crt", "lws", "ncm")}
        accuracy = {name: binary.evaluate(test, file) for name, file in files.items()}
    (target / "accuracy.json").write_text(json.dumps(accuracy, indent=2) + "\n")
    card.write_card(recipe, target)
    print(card.accuracy_table(recipe, accuracy))


STAGES = {"all": (make_backbone, make_heads, make_reports), "heads": (make_heads, make_reports), "evaluate": (make_reports,)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="training.ship", description="Makes a model directory that ships, below models/.")
    parser.add_argument("recipe", choices=SHIPPED)
    parser.add_argument("--stage", choices=STAGES, default="all", help="all, or only from the heads on, or only the reports")
    parser.add_argument("--into", type=Path, default=MODELS, help="folder that holds the directory (default: models/)")
    arguments = parser.parse_args()
    recipe = SHIPPED[arguments.recipe]
    for step in STAGES[arguments.stage]:
        step(recipe, arguments.into.resolve() / recipe.name)


if __name__ == "__main__":
    main()
