"""Accuracy by how often training saw a class."""

import numpy as np

MANY, FEW = 100, 20  # more than 100 training samples: many; fewer than 20: few; the rest medium


def shot_of(train_counts: np.ndarray) -> np.ndarray:
    """The shot of each class: `many`, `medium` or `few`."""
    return np.where(train_counts > MANY, "many", np.where(train_counts < FEW, "few", "medium"))


def report(logits: np.ndarray, labels: np.ndarray, train_counts: np.ndarray) -> dict[str, float | int | None]:
    """Micro accuracy, and the mean of class accuracies over all classes and over each shot."""
    correct = logits.argmax(1) == labels
    present = np.unique(labels)
    accuracy = np.array([correct[labels == label].mean() for label in present])
    shots = shot_of(train_counts)[present]
    groups = {shot: accuracy[shots == shot] for shot in ("many", "medium", "few")}
    return {
        "n": len(labels), "micro": float(correct.mean()), "macro": float(accuracy.mean()),
        **{shot: float(group.mean()) if len(group) else None for shot, group in groups.items()},
    }


def in_words(report: dict[str, float | int | None]) -> str:
    """A report as one line, in percent."""
    keys = ("micro", "macro", "many", "medium", "few")
    parts = [f"{key} {100 * report[key]:.1f}" for key in keys if report[key] is not None]
    return f"{report['n']} images, percent right: " + ", ".join(parts)
