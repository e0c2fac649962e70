"""Fits every decoupled head of a model directory with `equipoise fit`, its settings chosen on the validation split.

The convex fits go to the optimum (L-BFGS): ten epochs of SGD in batches of 512 are 80 steps on 4,000 images, where the
paper's 116,000 make 2,260. So that only the weight decay is left to choose.
"""

from collections.abc import Sequence
from pathlib import Path

from . import binary, head_file

# Weight decays to choose from, in the order of their distance from the binary's default.
DECAYS = (5e-4, 1e-3, 2e-4, 2e-3, 1e-4, 5e-3, 5e-5, 1e-2, 2e-2, 5e-2, 1e-1)
CHOSEN_KEYS = {
    "crt": ("weight_decay",), "tau_norm": ("tau", "bias"), "lws": ("weight_decay",), "ncm": ("transform", "metric"),
}


def candidates(decays: Sequence[float]) -> dict[str, list[dict[str, object]]]:
    """What to choose from, by method. The binary goes through tau and the treatments of the bias by itself."""
    convex = [{"solver": "lbfgs", "weight_decay": decay} for decay in decays]
    means = [
        {"transform": transform, "metric": metric} for transform in ("cl2n", "l2n", "none") for metric in ("l2", "cosine")
    ]
    return {"crt": convex, "tau_norm": [{}], "lws": convex, "ncm": means}


def fit_heads(directory: Path, decays: Sequence[float] = DECAYS) -> dict[str, dict[str, str]]:
    """Writes `heads/<method>.safetensors` for every method; returns what was chosen for each.

    The best macro accuracy on the validation split wins, and the earlier of two that are equal.
    """
    heads, chosen = directory / "heads", {}
    for method, choices in candidates(decays).items():
        best = -1.0
        for parameters in choices:
            candidate = heads / f"{method}.candidate.safetensors"
            report = binary.fit(method, directory / "features", heads / "joint.safetensors", candidate, parameters)
            if report["macro"] > best + 1e-9:
                best = report["macro"]
                candidate.replace(heads / f"{method}.safetensors")
            else:
                candidate.unlink()
        _, metadata = head_file.load(heads / f"{method}.safetensors")
        chosen[method] = {key: metadata.get(key, metadata.get(f"{key}_treatment", "")) for key in CHOSEN_KEYS[method]}
    return chosen
