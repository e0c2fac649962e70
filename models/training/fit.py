"""Fits every head of a model from its feature sets and writes the head files."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from torch import nn

from . import evaluate, features, head_file, heads
from .recipes import Recipe


def best(candidates: Iterable[tuple[dict, heads.Head]], rows: np.ndarray, labels: np.ndarray) -> tuple[dict, heads.Head]:
    """The candidate with the highest macro accuracy on validation; a tie goes to the lower cross-entropy."""
    def score(candidate: tuple[dict, heads.Head]) -> tuple[float, float]:
        logits = candidate[1].logits(rows.astype(np.float64))
        counts = np.zeros(logits.shape[1], dtype=np.int64)
        return -round(evaluate.report(logits, labels, counts)["macro"], 9), evaluate.mean_nll(logits, labels)

    return min(candidates, key=score)


def save_head(recipe: Recipe, kind: str, tensors: dict[str, np.ndarray], directory: Path, **metadata: object) -> None:
    """Writes a head file with the counts and the digest of the feature set it belongs to."""
    train, labels = features.load(directory / "features" / "train.npz")
    num_classes, feature_dim = len(recipe.classes), train.shape[1]
    shared = {
        "kind": kind, "method": kind, "classes": num_classes, "feature_dim": feature_dim, "transform": "none",
        "seed": recipe.seed, "feature_set_digest": features.digest(train),
    }
    counts = np.bincount(labels, minlength=num_classes).astype(np.int64)
    text = {key: str(value) for key, value in {**shared, **metadata}.items()}
    head_file.save(directory / "heads" / f"{kind}.safetensors", {**tensors, "train_counts": counts}, text)


def save_joint(recipe: Recipe, layer: nn.Linear, directory: Path) -> None:
    """Writes the network's own last layer as the joint head."""
    tensors = {"weight": layer.weight.detach().numpy(), "bias": layer.bias.detach().numpy()}
    save_head(
        recipe, "joint", tensors, directory, train_prior="joint", solver="sgd", sampler="instance_balanced",
        epochs=recipe.epochs, batch_size=recipe.batch_size, learning_rate=recipe.learning_rate,
        momentum=recipe.momentum, weight_decay=recipe.weight_decay,
    )


def fit_heads(recipe: Recipe, directory: Path) -> dict[str, dict]:
    """Fits cRT, LWS and NCM on `features/train.npz`, chooses on `features/val.npz`; returns what was chosen."""
    train, labels = features.load(directory / "features" / "train.npz")
    val, val_labels = features.load(directory / "features" / "val.npz")
    tensors, _ = head_file.load(directory / "heads" / "joint.safetensors")
    joint = heads.Linear(tensors["weight"], tensors["bias"])
    num_classes = len(recipe.classes)

    taus = (({"tau": tau, "bias": bias}, heads.TauNorm(joint.weight, joint.bias, tau, bias))
            for bias in ("drop", "keep", "scale") for tau in recipe.tau_grid)
    crts = (({"weight_decay": decay}, heads.fit_crt(train, labels, num_classes, decay))
            for decay in recipe.head_weight_decays)
    lwss = (({"weight_decay": decay}, heads.fit_lws(train, labels, joint, decay))
            for decay in recipe.head_weight_decays)
    ncms = (({"transform": transform, "metric": metric}, heads.fit_ncm(train, labels, num_classes, transform, metric))
            for transform in ("none", "l2n", "cl2n") for metric in ("l2", "cosine"))
    (tau, _), (crt, crt_head), (lws, lws_head), (ncm, ncm_head) = (
        best(candidates, val, val_labels) for candidates in (taus, crts, lwss, ncms)
    )

    shared = {"train_prior": "uniform", "validation_set_digest": features.digest(val)}
    convex = {**shared, "solver": "lbfgs", "sampler": "class_balanced"}
    save_head(recipe, "crt", {"weight": crt_head.weight, "bias": crt_head.bias}, directory, **convex, **crt)
    save_head(recipe, "lws", {"weight": joint.weight, "bias": joint.bias, "scale": lws_head.scale}, directory,
              **convex, **lws, base="joint", init="ones")
    save_head(recipe, "ncm", {"centroids": ncm_head.centroids, "mean": ncm_head.mean}, directory, **shared, **ncm)
    return {"tau": tau, "crt": crt, "lws": lws, "ncm": ncm}
