"""Heads on frozen features: cRT, LWS, NCM and tau-normalisation, fitted and applied.

Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020. The two convex fits go
to the optimum (L-BFGS, float64) of the cross-entropy that class-balanced sampling has in the mean, plus
`weight_decay / 2` times the squared norm of everything fitted, bias and scales included.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

EPSILON = 1e-12


@dataclass
class Linear:
    """Logits `x W^T + b`: `weight [C, D]`, `bias [C]`."""

    weight: np.ndarray
    bias: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        return features @ self.weight.T + self.bias


@dataclass
class Lws:
    """Learnable weight scaling: logits `s * (x W^T + b)`, with `weight` and `bias` the joint head's own."""

    weight: np.ndarray
    bias: np.ndarray
    scale: np.ndarray

    def logits(self, features: np.ndarray) -> np.ndarray:
        return self.scale * (features @ self.weight.T + self.bias)


@dataclass
class TauNorm:
    """Rows of the joint head divided by their norm to the power of tau; `bias_mode` is `drop`, `keep` or `scale`."""

    weight: np.ndarray
    bias: np.ndarray
    tau: float
    bias_mode: str

    def logits(self, features: np.ndarray) -> np.ndarray:
        a = np.maximum(np.linalg.norm(self.weight, axis=1), EPSILON) ** -self.tau
        bias = {"drop": np.zeros_like(self.bias), "keep": self.bias, "scale": a * self.bias}[self.bias_mode]
        return a * (features @ self.weight.T) + bias


@dataclass
class Ncm:
    """Nearest class mean: `centroids [C, D]` of transformed features, `mean [D]` of all training features."""

    centroids: np.ndarray
    mean: np.ndarray
    transform: str
    metric: str

    def logits(self, features: np.ndarray) -> np.ndarray:
        g = transformed(features, self.mean, self.transform)
        if self.metric == "cosine":
            return unit(g) @ unit(self.centroids).T
        product = g @ self.centroids.T
        if self.metric == "dot":
            return product / g.shape[1]
        return 2 * product - (self.centroids**2).sum(1) - (g**2).sum(1, keepdims=True)


Head = Linear | Lws | TauNorm | Ncm


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows divided by their L2 norms; a zero row stays zero."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), EPSILON)


def transformed(features: np.ndarray, mean: np.ndarray, transform: str) -> np.ndarray:
    """The transform g: `none`, `l2n` (to unit length) or `cl2n` (centred, then to unit length)."""
    if transform == "none":
        return features
    return unit(features - mean if transform == "cl2n" else features)


def balanced_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Sample weights that sum to one and give every class the same share: `1 / (C n_j)`."""
    return 1 / (num_classes * np.bincount(labels, minlength=num_classes)[labels])


def cross_entropy(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """The weighted cross-entropy and its gradient in the logits."""
    log_p = log_softmax(logits, axis=1)
    rows = np.arange(len(labels))
    gradient = np.exp(log_p) * weights[:, None]
    gradient[rows, labels] -= weights
    return -(weights * log_p[rows, labels]).sum(), gradient


def minimise(objective: Callable[[np.ndarray], tuple[float, np.ndarray]], start: np.ndarray) -> np.ndarray:
    """L-BFGS until the gradient vanishes."""
    options = {"maxiter": 20_000, "maxfun": 40_000, "maxcor": 30, "ftol": 1e-15, "gtol": 1e-9}
    return minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x


def fit_crt(features: np.ndarray, labels: np.ndarray, num_classes: int, weight_decay: float) -> Linear:
    """Classifier re-training: weight and bias anew. The problem is convex, so the start (zeros) does not matter."""
    x = np.hstack([features.astype(np.float64), np.ones((len(features), 1))])
    weights = balanced_weights(labels, num_classes)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradient = cross_entropy(x @ flat.reshape(num_classes, -1).T, labels, weights)
        return loss + weight_decay / 2 * flat @ flat, (gradient.T @ x).ravel() + weight_decay * flat

    theta = minimise(objective, np.zeros(num_classes * x.shape[1])).reshape(num_classes, -1).astype(np.float32)
    return Linear(np.ascontiguousarray(theta[:, :-1]), np.ascontiguousarray(theta[:, -1]))


def fit_lws(features: np.ndarray, labels: np.ndarray, joint: Linear, weight_decay: float) -> Lws:
    """Learnable weight scaling: one factor for each class, from ones; the bias is scaled with the weight."""
    z = features.astype(np.float64) @ joint.weight.T.astype(np.float64) + joint.bias
    weights = balanced_weights(labels, len(joint.bias))

    def objective(scale: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradient = cross_entropy(scale * z, labels, weights)
        return loss + weight_decay / 2 * scale @ scale, (gradient * z).sum(0) + weight_decay * scale

    return Lws(joint.weight, joint.bias, minimise(objective, np.ones(len(joint.bias))).astype(np.float32))


def fit_ncm(features: np.ndarray, labels: np.ndarray, num_classes: int, transform: str, metric: str) -> Ncm:
    """Class means of the transformed features, not renormalised, as the reference code has it."""
    x = features.astype(np.float64)
    mean = x.mean(0).astype(np.float32)
    g = transformed(x, mean.astype(np.float64), transform)
    centroids = np.stack([g[labels == label].mean(0) for label in range(num_classes)]).astype(np.float32)
    return Ncm(centroids, mean, transform, metric)
