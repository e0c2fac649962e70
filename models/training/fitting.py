"""Fits every decoupled head of a model directory with `equipoise fit`, its settings chosen on the validation split.

The convex fits go to the optimum (L-BFGS): ten epochs of SGD in batches of 512 are 80 steps on 4,000 images, where the
paper's 116,000 make 2,260. So that only the weight decay is left to choose.
"""

from pathlib import Path

from . import binary, head_file

DECAYS = (2e-2, 1e-2, 5e-3, 2e-3, 1e-3, 5e-4, 2e-4)
# What to choose from; the best macro accuracy on the validation split wins, and the earlier of two that are equal.
CANDIDATES: dict[str, list[dict[str, object]]] = {
    "crt": [{"solver": "lbfgs", "weight_decay": decay} for decay in DECAYS],
    "tau_norm": [{}],  # the binary goes through tau and the treatments of the bias by itself
    "lws": [{"solver": "lbfgs", "weight_decay": decay} for decay in DECAYS],
    "ncm": [{"transform": transform, "metric": metric} for transform in ("cl2n", "l2n", "none") for metric in ("l2", "cosine")],
}
CHOSEN_KEYS = {"crt": ("weight_decay",), "tau_norm": ("tau", "bias"), "lws": ("weight_decay",), "ncm": ("transform", "metric")}


def fit_heads(directory: Path) -> dict[str, dict[str, str]]:
    """Writes `heads/<method>.safetensors` for every method; returns what was chosen for each."""
    heads, chosen = directory / "heads", {}
    for method, candidates in CANDIDATES.items():
        best = -1.0
        for parameters in candidates:
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
