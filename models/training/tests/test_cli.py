"""The command: a folder of images in, a model directory out."""

import json
import sys
from pathlib import Path

import pytest

from training import __main__ as cli
from training import binary

from . import synthetic


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["training", *map(str, arguments)])
    cli.main()


SMALL = ("--epochs", 2, "--batch-size", 8, "--resize", 18, "--crop", 16, "--network", "cnn4", "--device", "cpu")


@pytest.mark.usefixtures("equipoise")
def test_a_folder_becomes_a_model_that_the_binary_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    synthetic.folders(tmp_path / "trees", {"ash": 20, "birch": 12, "cedar": 6})
    output = tmp_path / "mine"
    run(monkeypatch, "--data", tmp_path / "trees", "-o", output, "--sampler", "progressively_balanced", *SMALL)
    printed = capsys.readouterr()
    assert "3 classes; images: 27 train, 4 val, 7 test" in printed.out
    assert "mine epoch 2/2" in printed.err
    record = json.loads((output / "training.json").read_text())
    assert record["recipe"]["sampler"] == "progressively_balanced"
    assert record["accuracy"]["test"]["n"] == 7
    shown = json.loads(binary.run("classify", tmp_path / "trees" / "ash" / "000.png", "--model", output, "--json"))
    assert shown["images"][0]["results"][0]["predictions"][0]["label"] in ("ash", "birch", "cedar")
    judged = binary.evaluate(output / "features" / "test.npz", output / "heads" / "joint.safetensors")
    assert judged["micro"] == pytest.approx(record["accuracy"]["test"]["micro"])


def test_options_change_a_named_recipe() -> None:
    options = vars(cli.parser().parse_args(["--data", "digits", "-o", "x/mine", "--epochs", "3", "--sampler", "square_root"]))
    recipe = cli.recipe_of(options)
    assert (recipe.name, recipe.epochs, recipe.sampler, recipe.network) == ("mine", 3, "square_root", "cnn4")


@pytest.mark.parametrize(("arguments", "message"), [
    (["--data", "digits", "--val-share", "0.3"], "comes with its split"),
    (["--data", "no/such/folder"], "no such folder"),
])
def test_mistakes_end_with_a_sentence(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(SystemExit, match=f"training: .*{message}"):
        run(monkeypatch, "-o", tmp_path / "mine", *arguments)
