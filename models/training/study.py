"""The study: which representation wins? `python -m training.study`, run from models/.

Four samplers train jointly, every decoupled head is put on each, several seeds. A cell (data set, network, sampler, seed)
is trained, exported, its heads fitted and judged by the `equipoise` binary, and kept below `.work/study`, so that an ended
study goes on where it was. At the end docs/study.json, the plots and the tables in docs/STUDY.md are written anew.
"""

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from . import binary, datasets, export, fitting, head_file, networks, plot, samplers, train
from .recipes import RECIPES, Recipe

WORK = Path(__file__).resolve().parent / ".work"
DOCS = binary.REPOSITORY / "docs"
DATA = ("icons100", "digits")
COLUMNS = {"micro": "all", "many": "many", "medium": "medium", "few": "few"}
SAMPLER_NAMES = {
    "instance_balanced": "instance", "class_balanced": "class", "square_root": "square-root",
    "progressively_balanced": "progressive",
}
BEGIN, END = "<!-- made by `make study`: begin -->\n", "<!-- made by `make study`: end -->\n"


def run_cell(recipe: Recipe, device: str) -> dict:
    """Trains, exports, fits and judges one cell, or reads its result back."""
    cell = f"{recipe.name}-{recipe.network}-{recipe.sampler}-{recipe.seed}"
    directory = WORK / "study" / cell
    stored = directory / "result.json"
    settings = train.settings(recipe)
    if stored.exists() and (result := json.loads(stored.read_text()))["settings"] == settings:
        return result
    dataset = datasets.load(recipe.data, WORK)
    named = replace(recipe, name=cell)
    classifier = train.joint(named, dataset, train.pick_device(device), directory / "checkpoint.pt")
    export.model_directory(named, dataset, classifier, directory)
    chosen = {"joint": {}, **fitting.fit_heads(directory)}
    heads, test = directory / "heads", directory / "features" / "test.npz"
    tensors, _ = head_file.load(heads / "joint.safetensors")
    norms, counts = np.linalg.norm(tensors["weight"], axis=1), dataset.train_counts
    result = {
        "settings": settings, "data": recipe.name, "sampler": recipe.sampler, "seed": recipe.seed,
        "norm_correlation": float(np.corrcoef(np.log(counts), norms)[0, 1]),
        "heads": {
            method: {"chosen": settings_of, "test": binary.evaluate(test, heads / f"{method}.safetensors")}
            for method, settings_of in chosen.items()
        },
    }
    stored.write_text(json.dumps(result, indent=1) + "\n")
    return result


def summary(values: list[float]) -> tuple[float, float]:
    """Mean and standard error of the mean, in percent; the error of a single value is not a number."""
    percent = [100 * value for value in values]
    error = statistics.stdev(percent) / len(percent) ** 0.5 if len(percent) > 1 else float("nan")
    return statistics.fmean(percent), error


def cells_of(results: list[dict], data: str, sampler: str) -> list[dict]:
    return [result for result in results if result["data"] == data and result["sampler"] == sampler]


def summaries(results: list[dict], data: str) -> dict[str, dict[str, dict[str, tuple[float, float]]]]:
    """Mean and standard error over seeds, by method, sampler and group of classes."""
    def groups(method: str, sampler: str) -> dict[str, tuple[float, float]]:
        reports = [cell["heads"][method]["test"] for cell in cells_of(results, data, sampler)]
        return {group: summary([report[group] for report in reports]) for group in COLUMNS}

    return {method: {sampler: groups(method, sampler) for sampler in samplers.SAMPLERS} for method in binary.METHODS}


def table(results: list[dict], data: str) -> str:
    """Every head on every representation; in bold the representation that is best for a head, column by column."""
    lines = ["| head | trained with | all | many | medium | few |", "|---|---|---|---|---|---|"]
    for method, by_sampler in summaries(results, data).items():
        best = {group: max(by_sampler.values(), key=lambda groups: groups[group][0])[group][0] for group in COLUMNS}
        for sampler, groups in by_sampler.items():
            cells = []
            for group in COLUMNS:
                mean, error = groups[group]
                cells.append(f"**{mean:.1f}** ± {error:.1f}" if mean == best[group] else f"{mean:.1f} ± {error:.1f}")
            lines.append(f"| {binary.METHODS[method]} | {SAMPLER_NAMES[sampler]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def difference_table(results: list[dict], data: str) -> str:
    """Instance-balanced less each other representation, all classes, seed by seed: mean and standard error."""
    others = [sampler for sampler in samplers.SAMPLERS if sampler != "instance_balanced"]
    names = [f"less {SAMPLER_NAMES[sampler]}" for sampler in others]
    lines = [f"| head | {' | '.join(names)} |", "|---|" + "---|" * len(others)]
    for method in binary.METHODS:
        cells = []
        for sampler in others:
            by_seed = [{cell["seed"]: cell["heads"][method]["test"]["micro"] for cell in cells_of(results, data, name)}
                       for name in ("instance_balanced", sampler)]
            mean, error = summary([by_seed[0][seed] - by_seed[1][seed] for seed in by_seed[0]])
            cells.append(f"{mean:+.1f} ± {error:.1f}")
        lines.append(f"| {binary.METHODS[method]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def chosen_table(results: list[dict], data: str) -> str:
    """What validation chose, seed by seed, and how the joint head's row norms go with the class counts."""
    lines = ["| trained with | tau and bias | cRT decay | LWS decay | NCM | norm correlation |", "|---|---|---|---|---|---|"]
    for sampler in samplers.SAMPLERS:
        cells = cells_of(results, data, sampler)
        columns = ["; ".join(" ".join(cell["heads"][method]["chosen"].values()) for cell in cells)
                   for method in ("tau_norm", "crt", "lws", "ncm")]
        columns.append("; ".join(f"{cell['norm_correlation']:+.2f}" for cell in cells))
        lines.append(f"| {SAMPLER_NAMES[sampler]} | {' | '.join(columns)} |")
    return "\n".join(lines)


def setting_text(results: list[dict], data: str) -> str:
    """One sentence on what was trained on what."""
    recipe, dataset = RECIPES[data], datasets.load(RECIPES[data].data, WORK)
    backbone = networks.Backbone(recipe.network)
    n_parameters = sum(parameter.numel() for parameter in backbone.parameters())
    counts, n_test = dataset.train_counts, len(dataset.splits["test"].labels)
    shots = [int(mask.sum()) for mask in (counts > 100, (counts >= 20) & (counts <= 100), counts < 20)]
    seeds = sorted({result["seed"] for result in results if result["data"] == data})
    return (
        f"{len(counts)} classes with {counts.max()} to {counts.min()} training images ({counts.sum():,} in all; "
        f"{shots[0]} many, {shots[1]} medium, {shots[2]} few),\n{len(dataset.splits['val'].labels)} validation and "
        f"{n_test:,} test images, balanced. Network {recipe.network} ({n_parameters:,} parameters, {backbone.feature_dim} "
        f"features) on {recipe.crop}x{recipe.crop} pixels,\n{recipe.epochs} epochs, batches of {recipe.batch_size}, learning "
        f"rate {recipe.learning_rate}, weight decay {recipe.weight_decay}; seeds {', '.join(map(str, seeds))}."
    )


def block(results: list[dict], data: str) -> str:
    """The generated part of the document on one data set."""
    return "\n\n".join([
        setting_text(results, data),
        f"Top-1 accuracy on the test split in percent, mean ± standard error over seeds:\n\n{table(results, data)}",
        f"![accuracy by head and sampler](study-{data}.svg)",
        f"Instance-balanced less the others, all classes, paired by seed:\n\n{difference_table(results, data)}",
        f"What validation chose, a value for each seed, and the correlation of the joint head's row norms with log n_j:\n\n"
        f"{chosen_table(results, data)}",
    ]) + "\n"


def write_block(document: Path, data: str, text: str) -> None:
    """Replaces what stands between the marks that follow the mark of this data set."""
    before, mark, rest = document.read_text().partition(f"<!-- {data} -->\n{BEGIN}")
    if not mark:
        raise ValueError(f"{document}: no mark for {data}")
    _, end, after = rest.partition(END)
    document.write_text(before + mark + text + end + after)


def machine() -> str:
    """What the study ran on, as a reader would say it."""
    cores = os.cpu_count()
    words = {1: "one core", 2: "two cores"}.get(cores, f"{cores} cores")
    return f"{words} of an {platform.machine().replace('_', '-')} machine"


def write(results: list[dict], command: str) -> None:
    """Writes the numbers, the plots and the tables."""
    record = {
        "command": command, "machine": machine(),
        "versions": {"equipoise": binary.version(), "torch": torch.__version__, "onnxruntime": onnxruntime.__version__,
                     "numpy": np.__version__, "python": platform.python_version()},
        "recipes": {result["data"]: result["settings"] for result in results},
        "cells": [{key: value for key, value in result.items() if key != "settings"} for result in results],
    }
    (DOCS / "study.json").write_text(json.dumps(record, indent=1) + "\n")
    for data in DATA:
        if any(result["data"] == data for result in results):
            (DOCS / f"study-{data}.svg").write_text(plot.bars(
                summaries(results, data), COLUMNS, binary.METHODS, SAMPLER_NAMES,
                f"{data}: accuracy by head and sampler",
            ))
            write_block(DOCS / "STUDY.md", data, block(results, data))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="training.study", description="Runs the study; writes docs/study.json, the plots and the tables in docs/STUDY.md.",
    )
    parser.add_argument("--data", nargs="+", choices=DATA, default=DATA, help="which data sets (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each sampler (default: 3)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once, each on one core (default: 2)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto (default: cpu)")
    arguments = parser.parse_args()
    for data in arguments.data:
        datasets.load(RECIPES[data].data, WORK)  # fetched and rendered once, before several want it
    binary.version()  # so that a missing binary is known before, not after, the trainings
    cells = [replace(RECIPES[data], sampler=sampler, seed=seed)
             for data in arguments.data for seed in range(arguments.seeds) for sampler in samplers.SAMPLERS]
    with ProcessPoolExecutor(arguments.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        results = list(pool.map(run_cell, cells, [arguments.device] * len(cells)))
    write(results, " ".join(["python -m training.study", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
