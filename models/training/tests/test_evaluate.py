"""Accuracy by shot, on an example worked by hand."""

import numpy as np
import pytest

from training import evaluate


def test_shots_at_their_boundaries() -> None:
    assert evaluate.shot_of(np.array([101, 100, 20, 19])).tolist() == ["many", "medium", "medium", "few"]


def test_report_by_shot() -> None:
    train_counts = np.array([101, 100, 20, 19, 500, 7])
    accuracy = {0: (3, 4), 1: (3, 5), 2: (1, 2), 3: (1, 4), 4: (9, 10)}  # class 5 is not in the test split
    labels = np.concatenate([np.full(n, label) for label, (_, n) in accuracy.items()])
    predicted = np.concatenate([
        np.where(np.arange(n) < right, label, (label + 1) % 5) for label, (right, n) in accuracy.items()
    ])
    report = evaluate.report(np.eye(6)[predicted], labels, train_counts)
    assert report == {
        "n": 25, "micro": pytest.approx(17 / 25), "macro": pytest.approx(0.6), "many": pytest.approx(0.825),
        "medium": pytest.approx(0.55), "few": pytest.approx(0.25),
    }


def test_an_empty_shot_is_none() -> None:
    report = evaluate.report(np.eye(2), np.array([0, 1]), np.array([200, 150]))
    assert report["few"] is None
    assert "few" not in evaluate.in_words(report)
