"""Makes what the fits and evaluations of the tests are held against: `icons30.json` and `sgd.json`.

Written with Python 3.11, numpy 2.4.6, scipy 1.17.1 and torch 2.15.0 (torch for `sgd.json` only):

    python3 -m venv /tmp/golden && /tmp/golden/bin/pip install numpy==2.4.6 scipy==1.17.1 torch==2.15.0
    OMP_NUM_THREADS=1 /tmp/golden/bin/python tests/data/fit/make_golden.py

An implementation of its own, from the formulas: it shares no code with the crate or with `models/training`. It reads the
features and the joint head of `models/icons30`; `features/test.npz` comes from

    equipoise extract models/icons30/test --model models/icons30 -o models/icons30/features/test.npz

Everything is computed in float64 from the float32 that the files hold. Each entry stands on a line of its own.

`icons30.json`, floats rounded to 9 significant digits:

- `inputs`: SHA-256 of the files that were read.
- `fits`: optima of the convex fits. The objective is sum_i v_i CE_i + weight_decay / 2 |theta|^2, where v_i = p_y / n_y
  under the sampler's class probabilities p_j = n_j^q / sum n^q, and theta is all that is fitted: W and b, or the scales s
  of z = s * (W x + b) over the joint head. `start` is the objective at W = b = 0 or s = 1. L-BFGS, then Newton steps, so
  that the numbers do not depend on where a solver stops (strictly convex: there is one optimum). `norm` is |theta|.
- `tau_norm`: the joint head on val by bias mode and tau. `tau_norm_best`: the largest macro accuracy, compared exactly (as
  fractions: tau 0.6 to 1.0 with drop are equal, and a sum of floats may make 0.8 and 0.9 larger in the last bit); among
  equals the lowest tau, then drop before keep before scale. `tau_norm_test`: the joint head and that
  choice on test.
- `ncm`: on test. Centroids are means of transformed training rows, not renormalised; `cl2n` centres by the mean of all
  training rows. `l2` is minus the squared distance, `cosine` normalises both sides, `dot` is g.c / D.

In a report `many` is more than 100 training samples, `few` fewer than 20; each is the mean of its classes' accuracies.
`micro_se` is sqrt(p (1 - p) / n). `ece`: 15 equal right-closed bins of the top-1 probability. Equal logits: the lower class.
`gap` is the smallest difference between the two largest logits of any image: far above float32's rounding it says that
the predictions do not depend on the precision.

`sgd.json`: six steps of torch.optim.SGD in float64 on given batches (cross_entropy, mean), for a linear layer and for the
scales of z = s * (W x + b) with W and b frozen. Inputs are multiples of 2^-10, exact in float32 and in the text; outputs
have 12 significant digits. `loss` is the mean cross-entropy of the batch before the step, without the weight decay; W, b
and s are those after it. The last two batches repeat rows.
"""

import hashlib
import json
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import scipy.linalg
import scipy.optimize

HERE = Path(__file__).parent
MODEL = HERE.parents[2] / "models" / "icons30"
INPUTS = ["features/train.npz", "features/val.npz", "features/test.npz", "heads/joint.safetensors", "train_counts.csv"]
MODES = ["drop", "keep", "scale"]


# ---------------------------------------------------------------------------------------------------------------- reading


def read_features(split):
    with np.load(MODEL / "features" / f"{split}.npz") as archive:
        return archive["features"].astype(np.float64), archive["labels"].astype(np.int64)


def read_head(name):
    """Weight and bias of a safetensors file: a length, a JSON header, the data."""
    data = (MODEL / "heads" / f"{name}.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]

    def tensor(key):
        assert header[key]["dtype"] == "F32"
        begin, end = header[key]["data_offsets"]
        return np.frombuffer(body[begin:end], "<f4").reshape(header[key]["shape"]).astype(np.float64)

    return tensor("weight"), tensor("bias")


def read_counts():
    lines = (MODEL / "train_counts.csv").read_text().split()
    assert lines[0] == "class,count"
    pairs = [tuple(map(int, line.split(","))) for line in lines[1:]]
    assert [c for c, _ in pairs] == list(range(len(pairs)))
    return np.array([n for _, n in pairs])


# ------------------------------------------------------------------------------------------------------------- evaluation


def top_two(logits):
    """The predicted classes (equals: the lower), and the smallest lead over the second."""
    ordered = np.sort(logits, axis=1)
    return logits.argmax(1), (ordered[:, -1] - ordered[:, -2]).min()


def accuracies(predicted, labels, counts):
    """Exact accuracies, as fractions: micro, macro, and the mean of each shot's classes."""
    per_class = {}
    for c in np.unique(labels).tolist():
        of_class = labels == c
        per_class[c] = Fraction(int((predicted[of_class] == c).sum()), int(of_class.sum()))

    def mean(classes):
        values = [per_class[c] for c in classes]
        return sum(values) / len(values)

    return {
        "micro": Fraction(int((predicted == labels).sum()), len(labels)),
        "macro": mean(per_class),
        "many": mean([c for c in per_class if counts[c] > 100]),
        "medium": mean([c for c in per_class if 20 <= counts[c] <= 100]),
        "few": mean([c for c in per_class if counts[c] < 20]),
    }


def log_softmax(logits):
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def report(logits, labels, counts):
    predicted, gap = top_two(logits)
    out = accuracies(predicted, labels, counts)
    p = float(out["micro"])
    out["micro_se"] = (p * (1 - p) / len(labels)) ** 0.5
    five = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    out["top5"] = Fraction(int((five == labels[:, None]).any(1).sum()), len(labels))

    confidence = np.exp(log_softmax(logits).max(1))
    edges = np.arange(16) / 15
    assert np.abs(confidence[:, None] - edges[None, :15]).min() > 1e-9, "a probability at the edge of a bin"
    out["ece"] = 0.0
    for low, high in zip(edges[:-1], edges[1:]):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            off = (predicted[inside] == labels[inside]).mean() - confidence[inside].mean()
            out["ece"] += inside.mean() * abs(off)
    out["gap"] = gap
    return out


# ------------------------------------------------------------------------------------------------------------------- fits


def instance_weights(labels, q):
    """What each row weighs in the mean: the sampler's chance of its class, shared by the class's rows."""
    n = np.bincount(labels).astype(np.float64)
    p = n**q / (n**q).sum()
    return (p / n)[labels]


class Linear:
    """theta is [W | b] by rows."""

    def __init__(self, x, labels, weights, decay):
        self.x = np.hstack([x, np.ones((len(x), 1))])
        self.labels, self.weights, self.decay = labels, weights, decay
        self.classes = int(labels.max()) + 1

    def logits(self, theta, x):
        rows = theta.reshape(self.classes, -1)
        return x @ rows[:, :-1].T + rows[:, -1]

    def start(self):
        return np.zeros(self.classes * self.x.shape[1])

    def value_and_gradient(self, theta):
        rows = theta.reshape(self.classes, -1)
        log_p = log_softmax(self.x @ rows.T)
        at = np.arange(len(self.labels))
        value = -(self.weights * log_p[at, self.labels]).sum() + self.decay / 2 * (theta @ theta)
        error = np.exp(log_p)
        error[at, self.labels] -= 1
        gradient = (self.weights[:, None] * error).T @ self.x + self.decay * rows
        return value, gradient.ravel()

    def hessian(self, theta):
        d = self.x.shape[1]
        p = np.exp(log_softmax(self.x @ theta.reshape(self.classes, -1).T))
        out = np.empty((self.classes * d, self.classes * d))
        for i in range(self.classes):
            for j in range(i + 1):
                v = self.weights * p[:, i] * ((i == j) - p[:, j])
                block = (self.x * v[:, None]).T @ self.x
                out[i * d : i * d + d, j * d : j * d + d] = block
                out[j * d : j * d + d, i * d : i * d + d] = block.T
        out.flat[:: len(out) + 1] += self.decay
        return out


class Scales:
    """theta is s, of z = s * u with u = W x + b."""

    def __init__(self, weight, bias, x, labels, weights, decay):
        self.weight, self.bias = weight, bias
        self.u = x @ weight.T + bias
        self.labels, self.weights, self.decay = labels, weights, decay

    def logits(self, theta, x):
        return theta * (x @ self.weight.T + self.bias)

    def start(self):
        return np.ones(len(self.bias))

    def value_and_gradient(self, theta):
        log_p = log_softmax(theta * self.u)
        at = np.arange(len(self.labels))
        value = -(self.weights * log_p[at, self.labels]).sum() + self.decay / 2 * (theta @ theta)
        error = np.exp(log_p)
        error[at, self.labels] -= 1
        return value, self.weights @ (error * self.u) + self.decay * theta

    def hessian(self, theta):
        p = np.exp(log_softmax(theta * self.u))
        pu = p * self.u
        out = -(pu * self.weights[:, None]).T @ pu
        out.flat[:: len(out) + 1] += self.weights @ (pu * self.u) + self.decay
        return out


def check_derivatives(problem, theta):
    """Gradient and Hessian against central differences along one direction."""
    direction = np.random.default_rng(0).standard_normal(len(theta))
    direction /= np.linalg.norm(direction)
    h = 1e-5
    (up, up_gradient), (down, down_gradient) = (problem.value_and_gradient(theta + s * h * direction) for s in (1, -1))
    _, gradient = problem.value_and_gradient(theta)
    assert abs((up - down) / (2 * h) - gradient @ direction) < 1e-8
    assert np.abs((up_gradient - down_gradient) / (2 * h) - problem.hessian(theta) @ direction).max() < 1e-8


def optimum(name, problem):
    start = problem.start()
    found = scipy.optimize.minimize(
        problem.value_and_gradient,
        start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 100000, "maxfun": 100000, "maxcor": 30, "ftol": 0, "gtol": 1e-10},
    )
    theta = found.x
    check_derivatives(problem, theta)
    norms = [np.linalg.norm(problem.value_and_gradient(theta)[1])]
    for _ in range(3):
        step = scipy.linalg.solve(problem.hessian(theta), problem.value_and_gradient(theta)[1], assume_a="pos")
        theta = theta - step
        norms.append(np.linalg.norm(problem.value_and_gradient(theta)[1]))
    value = problem.value_and_gradient(theta)[0]
    print(
        f"{name}: L-BFGS {found.nit} iterations, objective {found.fun:.15g}, gradient {norms[0]:.1e}; "
        f"after Newton {value:.15g}, {norms[-1]:.1e} (theta moved by {np.linalg.norm(theta - found.x):.1e})"
    )
    assert norms[0] < 1e-7 and norms[-1] < 1e-13
    return problem.value_and_gradient(start)[0], value, theta


# ------------------------------------------------------------------------------------------------------------------ heads


def tau_logits(weight, bias, x, tau, mode):
    a = np.linalg.norm(weight, axis=1) ** -tau
    c = {"drop": 0 * bias, "keep": bias, "scale": a * bias}[mode]
    return a * (x @ weight.T) + c


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def ncm_logits(train, labels, x, transform, metric):
    mean = train.mean(0)
    g = {"none": lambda v: v, "l2n": unit, "cl2n": lambda v: unit(v - mean)}[transform]
    rows = g(train)
    centroids = np.stack([rows[labels == c].mean(0) for c in range(int(labels.max()) + 1)])
    q = g(x)
    if metric == "l2":
        return -((q[:, None, :] - centroids[None]) ** 2).sum(2)
    if metric == "cosine":
        return unit(q) @ unit(centroids).T
    return q @ centroids.T / x.shape[1]


# ---------------------------------------------------------------------------------------------------------------- writing


def plain(value, digits):
    """Rounded to significant digits, as JSON's own types."""
    if isinstance(value, dict):
        return {key: plain(item, digits) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item, digits) for item in value]
    if isinstance(value, (np.integer, int, str)):
        return int(value) if isinstance(value, np.integer) else value
    rounded = float(f"{float(value):.{digits}g}")
    return int(rounded) if rounded == int(rounded) and isinstance(value, Fraction) else rounded


def write(path, sections, digits):
    """A section is a list with one entry a line, or a dict with one key a line."""
    parts = []
    for name, content in sections.items():
        content = plain(content, digits)
        if isinstance(content, list) and content and isinstance(content[0], (dict, list)):
            lines = ",\n  ".join(json.dumps(entry) for entry in content)
            parts.append(f' "{name}": [\n  {lines}\n ]')
        elif isinstance(content, dict) and len(content) > 1:
            lines = ",\n  ".join(f"{json.dumps(key)}: {json.dumps(entry)}" for key, entry in content.items())
            parts.append(f' "{name}": {{\n  {lines}\n }}')
        else:
            parts.append(f' "{name}": {json.dumps(content)}')
    text = "{\n" + ",\n".join(parts) + "\n}\n"
    json.loads(text)
    path.write_text(text)
    print(f"{path.name}: {len(text)} bytes")


def make_icons30():
    counts = read_counts()
    train, labels = read_features("train")
    sets = {split: read_features(split) for split in ("val", "test")}
    weight, bias = read_head("joint")
    assert np.array_equal(np.bincount(labels), counts)

    fits = []
    for method, sampler, q, decay in [
        ("joint", "instance_balanced", 1.0, 5e-4),
        ("crt", "class_balanced", 0.0, 5e-4),
        ("crt", "class_balanced", 0.0, 5e-3),
        ("crt", "square_root", 0.5, 5e-4),
        ("crt", "q", 0.3, 5e-4),
        ("lws", "class_balanced", 0.0, 5e-4),
        ("lws", "class_balanced", 0.0, 5e-3),
    ]:
        v = instance_weights(labels, q)
        assert abs(v.sum() - 1) < 1e-12
        if method == "lws":
            problem = Scales(weight, bias, train, labels, v, decay)
        else:
            problem = Linear(train, labels, v, decay)
        start, value, theta = optimum(f"{method} {sampler} q={q} {decay}", problem)
        entry = {"method": method, "sampler": sampler, "q": q, "weight_decay": decay}
        fits.append(entry | {"start": start, "objective": value, "norm": np.linalg.norm(theta)})
        for split, (x, y) in sets.items():
            fits.append(entry | {"split": split} | report(problem.logits(theta, x), y, counts))
        if method == "lws":
            fits.append(entry | {"scale": theta})

    x, y = sets["val"]
    curve = []
    for mode in MODES:
        for tenth in range(21):
            predicted, gap = top_two(tau_logits(weight, bias, x, tenth / 10, mode))
            curve.append({"bias": mode, "tau": tenth / 10} | accuracies(predicted, y, counts) | {"gap": gap})
    best = min(curve, key=lambda e: (-e["macro"], e["tau"], MODES.index(e["bias"])))
    print("tau-norm, the largest macro on val:", [(e["bias"], e["tau"]) for e in curve if e["macro"] == best["macro"]])
    x, y = sets["test"]
    tau_test = [
        {"bias": mode, "tau": tau} | report(tau_logits(weight, bias, x, tau, mode), y, counts)
        for mode, tau in [("keep", 0.0), (best["bias"], best["tau"])]
    ]

    ncm = []
    for transform in ("none", "l2n", "cl2n"):
        for metric in ("l2", "cosine", "dot"):
            predicted, gap = top_two(ncm_logits(train, labels, x, transform, metric))
            entry = {"transform": transform, "metric": metric}
            ncm.append(entry | accuracies(predicted, y, counts) | {"gap": gap, "predicted": predicted})

    for entry in fits + curve + tau_test + ncm:
        if "micro" in entry:
            shown = {k: v if isinstance(v, str) else f"{float(v):.6g}" for k, v in entry.items() if k != "predicted"}
            print(" ".join(f"{k}={v}" for k, v in shown.items()))
    write(
        HERE / "icons30.json",
        {
            "inputs": {name: hashlib.sha256((MODEL / name).read_bytes()).hexdigest() for name in INPUTS},
            "fits": fits,
            "tau_norm": curve,
            "tau_norm_best": [best],
            "tau_norm_test": tau_test,
            "ncm": ncm,
        },
        9,
    )


# -------------------------------------------------------------------------------------------------------------------- SGD


def make_sgd():
    import torch

    torch.set_num_threads(1)
    rng = np.random.default_rng(20)
    n, d, c = 64, 8, 5
    lr, momentum, decay = 0.2, 0.9, 5e-4

    def grid(values):
        return np.round(values * 1024) / 1024

    labels = rng.permutation(np.repeat(np.arange(c), [32, 16, 8, 5, 3]))
    x = grid(np.maximum(rng.standard_normal((c, d))[labels] + 0.8 * rng.standard_normal((n, d)), 0))
    w0, b0 = grid(0.3 * rng.standard_normal((c, d))), grid(0.1 * rng.standard_normal(c))
    assert np.array_equal(x, x.astype(np.float32)) and np.array_equal(w0, w0.astype(np.float32))
    batches = rng.permutation(n).reshape(4, 16).tolist()
    for _ in range(2):
        batches.append([int(rng.choice(np.flatnonzero(labels == k))) for k in rng.integers(0, c, 16)])
    assert all(len(set(batch)) < 16 for batch in batches[4:])

    def steps(parameters, logits):
        parameters = [torch.tensor(p, dtype=torch.float64, requires_grad=True) for p in parameters]
        optimiser = torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=decay)
        for batch in batches:
            optimiser.zero_grad()
            z = logits(torch.tensor(x[batch]), *parameters)
            loss = torch.nn.functional.cross_entropy(z, torch.tensor(labels[batch]))
            loss.backward()
            optimiser.step()
            yield loss.item(), [p.detach().numpy().copy() for p in parameters]

    def by_hand(parameters, gradients):
        """The same once more without torch: d = grad + wd theta; buf = momentum buf + d; theta -= lr buf."""
        parameters, buffers = [p.copy() for p in parameters], [0 * p for p in parameters]
        for batch in batches:
            loss, grads = gradients(x[batch], labels[batch], *parameters)
            for i, grad in enumerate(grads):
                buffers[i] = momentum * buffers[i] + grad + decay * parameters[i]
                parameters[i] = parameters[i] - lr * buffers[i]
            yield loss, parameters

    def softmax_error(z, y):
        log_p = log_softmax(z)
        at = np.arange(len(y))
        error = np.exp(log_p)
        error[at, y] -= 1
        return -log_p[at, y].mean(), error / len(y)

    def linear_gradients(xs, ys, w, b):
        loss, error = softmax_error(xs @ w.T + b, ys)
        return loss, [error.T @ xs, error.sum(0)]

    def scale_gradients(xs, ys, s):
        u = xs @ w0.T + b0
        loss, error = softmax_error(s * u, ys)
        return loss, [(error * u).sum(0)]

    tw, tb = torch.tensor(w0), torch.tensor(b0)
    cases = {
        "linear": ([w0, b0], lambda xs, w, b: torch.nn.functional.linear(xs, w, b), linear_gradients, ["weight", "bias"]),
        "scale": ([np.ones(c)], lambda xs, s: s * torch.nn.functional.linear(xs, tw, tb), scale_gradients, ["scale"]),
    }
    out = {}
    for name, (parameters, logits, gradients, names) in cases.items():
        out[name] = []
        for (loss, values), (loss2, values2) in zip(steps(parameters, logits), by_hand(parameters, gradients), strict=True):
            assert abs(loss - loss2) < 1e-13
            assert all(np.abs(v - v2).max() < 1e-13 for v, v2 in zip(values, values2))
            out[name].append({"loss": loss} | dict(zip(names, values)))
        print(f"SGD, {name}: losses", [round(step["loss"], 6) for step in out[name]])
    write(
        HERE / "sgd.json",
        {
            "settings": {"learning_rate": lr, "momentum": momentum, "weight_decay": decay},
            "features": x,
            "labels": labels,
            "batches": batches,
            "initial": {"weight": w0, "bias": b0, "scale": np.ones(c)},
            "linear_steps": out["linear"],
            "scale_steps": out["scale"],
        },
        12,
    )


if __name__ == "__main__":
    make_icons30()
    make_sgd()
