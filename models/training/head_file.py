"""Head files: safetensors with every byte decided, so that the same head always makes the same file."""

import json
from pathlib import Path

import numpy as np
from safetensors import safe_open

FORMAT = "equipoise-head/1"
DTYPES = {"int64": "I64", "float32": "F32"}


def save(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes tensors and metadata. The safetensors package does not fix the order of metadata; this does.

    Wider types come first, as the format's own writer has it, so that every tensor is aligned.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, dict] = {"__metadata__": dict(sorted({"format": FORMAT, **metadata}.items()))}
    body = b""
    for name in names:
        tensor = np.ascontiguousarray(tensors[name])
        data = tensor.astype(tensor.dtype.newbyteorder("<")).tobytes()
        header[name] = {
            "dtype": DTYPES[tensor.dtype.name], "shape": list(tensor.shape), "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads a head file with the safetensors package."""
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
