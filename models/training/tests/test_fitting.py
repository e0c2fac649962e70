"""Heads fitted by the binary on what the pipeline wrote."""

import shutil
from pathlib import Path

import pytest

from training import binary, fitting, head_file, networks


@pytest.mark.usefixtures("equipoise")
def test_every_method_is_fitted_and_chosen_on_validation(model: tuple[Path, networks.Classifier], tmp_path: Path) -> None:
    directory = shutil.copytree(model[0], tmp_path / "tiny")
    chosen = fitting.fit_heads(directory)
    assert chosen.keys() == fitting.CHOSEN_KEYS.keys()
    assert all(value for settings in chosen.values() for value in settings.values())
    for method in chosen:
        path = directory / "heads" / f"{method}.safetensors"
        assert head_file.load(path)[1]["kind"] == method
        assert binary.evaluate(directory / "features" / "test.npz", path)["n"] == 100
    assert sorted(path.name for path in (directory / "heads").iterdir()) == sorted(
        f"{method}.safetensors" for method in ("joint", *chosen)
    )


def test_a_missing_binary_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EQUIPOISE_BIN", str(tmp_path / "none"))
    with pytest.raises(RuntimeError, match="is not there"):
        binary.version()


@pytest.mark.usefixtures("equipoise")
def test_a_failure_says_what_the_binary_said(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="absent.safetensors: No such file"):
        binary.evaluate(tmp_path / "absent.npz", tmp_path / "absent.safetensors")
