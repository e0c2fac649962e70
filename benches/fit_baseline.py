"""The other side of `benches/fit.rs`: the same work with numpy and torch on the CPU, on the same files.

    python benches/fit_baseline.py train.safetensors val.safetensors CLASSES

Prints a JSON list of all that it can do, "what: by whom", and then for each line of its input, which is one of them, the
seconds that it took; of cRT, an epoch each time. Each is written as one would with that tool's own means for speed:
whole-array operations, all cores, no gradient where none is needed.
"""

import json
import sys
import time

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn

N_CLASSES = int(sys.argv[3])


def class_balanced_batches(labels, batch_size, n_steps, seed):
    """The reference code's sampler: classes in a shuffled cycle, four rows in turn of each."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(labels == label)) for label in range(N_CLASSES)]
    at = np.zeros(N_CLASSES, dtype=np.int64)
    classes = np.concatenate([rng.permutation(N_CLASSES) for _ in range(1 + n_steps * batch_size // 4 // N_CLASSES)])
    drawn = []
    for label in classes[: n_steps * batch_size // 4]:
        for _ in range(4):
            drawn.append(rows[label][at[label] % len(rows[label])])
            at[label] += 1
    return np.array(drawn).reshape(n_steps, batch_size)


def ncm(features, labels, transform):
    """Class means of the transformed rows."""
    x = features
    if transform == "cl2n":
        x = x - x.mean(0)
    if transform != "none":
        x = nn.functional.normalize(x)
    sums = torch.zeros(N_CLASSES, x.shape[1]).index_add_(0, labels, x)
    return sums / torch.bincount(labels, minlength=N_CLASSES).clamp(min=1)[:, None]


def tau_sweep(scores, norms, labels):
    """The macro accuracy of 101 values of tau from one matrix of scores."""
    n = torch.bincount(labels, minlength=N_CLASSES)
    for tau in torch.linspace(0, 2, 101):
        predicted = (scores * norms.pow(-tau)).argmax(1)
        correct = torch.bincount(labels[predicted == labels], minlength=N_CLASSES)
        (correct / n.clamp(min=1)).mean()


def crt(features, labels, drawn, epochs):
    """The reference recipe: SGD with momentum on drawn batches. Stops after each epoch."""
    layer = nn.Linear(features.shape[1], N_CLASSES)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.2, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in np.array_split(drawn(), epochs):
        for batch in epoch:
            rows = torch.from_numpy(batch)
            loss = nn.functional.cross_entropy(layer(features[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        yield


def lws(features, labels, weight, batches):
    """LWS on scores computed once."""
    with torch.no_grad():
        scores = features @ weight.T
    scale = torch.ones(N_CLASSES, requires_grad=True)
    optimizer = torch.optim.SGD([scale], lr=0.2, momentum=0.9, weight_decay=5e-4)
    for batch in batches:
        rows = torch.from_numpy(batch)
        loss = nn.functional.cross_entropy(scale * scores[rows], labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def main():
    def load(path):
        arrays = load_file(path)
        return torch.from_numpy(arrays["features"]), torch.from_numpy(arrays["labels"].astype(np.int64))

    (train, labels), (val, val_labels) = load(sys.argv[1]), load(sys.argv[2])
    weight = (torch.rand(N_CLASSES, train.shape[1]) - 0.5) / 20
    norms = weight.norm(dim=1)
    n_steps = len(train) // 512

    def batches(epochs):
        return class_balanced_batches(labels.numpy(), 512, epochs * n_steps, 0)

    epochs = crt(train, labels, lambda: batches(10), 10)
    works = {
        "plain sum of the array: numpy": lambda: train.numpy().sum(),
        "plain sum of the array: torch": lambda: train.sum(),
        "one matrix product, training set: torch": lambda: train @ weight.T,
        "one matrix product, validation set: torch": lambda: val @ weight.T,
        "NCM, none: torch": lambda: ncm(train, labels, "none"),
        "NCM, l2n: torch": lambda: ncm(train, labels, "l2n"),
        "NCM, cl2n: torch": lambda: ncm(train, labels, "cl2n"),
        "tau-norm, 101 values, validation set, with the report: torch, without the report": lambda: tau_sweep(
            val @ weight.T, norms, val_labels
        ),
        "LWS, 5 epochs: torch": lambda: lws(train, labels, weight, batches(5)),
        "cRT, 10 epochs: torch": lambda: next(epochs, None),
    }
    print(json.dumps(list(works)), flush=True)
    for name in map(str.strip, sys.stdin):
        start = time.perf_counter()
        works[name]()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
