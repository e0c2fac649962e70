"""Calls the `equipoise` binary: what heads are fitted and judged by is what serves them."""

import json
import os
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
METHODS = {"joint": "joint", "crt": "cRT", "tau_norm": "tau-norm", "lws": "LWS", "ncm": "NCM"}


def path() -> Path:
    """The binary: `EQUIPOISE_BIN`, else the release build of this repository."""
    return Path(os.environ.get("EQUIPOISE_BIN", REPOSITORY / "target" / "release" / "equipoise")).absolute()


def run(*arguments: object) -> str:
    """Runs the binary to its end; returns what it printed.

    It runs in the repository's root, where it finds ONNX Runtime, so paths should be absolute. A failure raises
    `RuntimeError` with what it said.
    """
    if not path().is_file():
        raise RuntimeError(f"{path()} is not there: `cargo build --release`, or say where it is in EQUIPOISE_BIN")
    done = subprocess.run([path(), *map(str, arguments)], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return done.stdout


def version() -> str:
    return run("--version").split()[-1]


def fit(method: str, features: Path, base: Path, output: Path, parameters: dict[str, object]) -> dict:
    """Fits a head on `features/train.npz`; returns the report on `features/val.npz`."""
    chosen = [part for key, value in parameters.items()
              for part in ("--param", f"{key}={value if isinstance(value, str) else json.dumps(value)}")]
    printed = run(
        "fit", "--method", method, "--features", features / "train.npz", "--validation", features / "val.npz",
        "--base", base, "--output", output, "--threads", 1, "--json", *chosen,
    )
    return json.loads(printed)["report"]


def evaluate(features: Path, head: Path) -> dict[str, float | int | None]:
    """A head's accuracy on a feature file: over samples, the mean over classes, and that over each shot's classes."""
    report = json.loads(run("evaluate", "--features", features, "--head", head, "--json"))
    return {key: report[key] for key in ("n", "micro", "macro", "many", "medium", "few")}


def extract(images: Path, model: Path, output: Path) -> None:
    """Writes the features of a folder of images."""
    run("extract", images, "--model", model, "--output", output)
