"""What the study computes from its cells, and how it writes it."""

import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from training import binary, plot, samplers, study


def cell(sampler: str, seed: int, micro: float) -> dict:
    test = {"n": 10, "micro": micro, "macro": micro, "many": micro, "medium": micro, "few": micro}
    chosen = {"joint": {}, "crt": {"weight_decay": "0.001"}, "lws": {"weight_decay": "0.002"},
              "tau_norm": {"tau": "0.7", "bias": "drop"}, "ncm": {"transform": "cl2n", "metric": "l2"}}
    heads = {method: {"chosen": chosen[method], "test": test} for method in binary.METHODS}
    return {"data": "digits", "sampler": sampler, "seed": seed, "norm_correlation": 0.5, "heads": heads}


CELLS = [cell(sampler, seed, 0.5 + 0.1 * i + 0.02 * seed * (1 + i % 2))
         for i, sampler in enumerate(samplers.SAMPLERS) for seed in range(3)]


def test_mean_and_standard_error() -> None:
    assert study.summary([0.5, 0.6, 0.7]) == pytest.approx((60, 10 / math.sqrt(3)))
    assert math.isnan(study.summary([0.5])[1])


def test_tables() -> None:
    rows = study.table(CELLS, "digits").splitlines()
    assert len(rows) == 2 + len(binary.METHODS) * len(samplers.SAMPLERS)
    assert rows[2] == "| joint | instance | 52.0 ± 1.2 | 52.0 ± 1.2 | 52.0 ± 1.2 | 52.0 ± 1.2 |"
    assert "**" in rows[5]
    # Seed by seed: 0.50 - 0.60, 0.52 - 0.64, 0.54 - 0.68.
    assert study.difference_table(CELLS, "digits").splitlines()[2].startswith("| joint | -12.0 ± 1.2 |")
    assert "| instance | 0.7 drop; 0.7 drop; 0.7 drop |" in study.chosen_table(CELLS, "digits")


def test_plot_is_well_formed() -> None:
    drawn = plot.bars(study.summaries(CELLS, "digits"), study.COLUMNS, binary.METHODS, study.SAMPLER_NAMES, "a title")
    rectangles = ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}rect")
    assert sum(rectangle.get("width") == "14" for rectangle in rectangles) == 4 * 5 * 4


def test_the_block_is_replaced(tmp_path: Path) -> None:
    document = tmp_path / "STUDY.md"
    document.write_text(f"before\n<!-- digits -->\n{study.BEGIN}old\n{study.END}after\n")
    for text in ("new\n", "newer\n"):
        study.write_block(document, "digits", text)
        assert document.read_text() == f"before\n<!-- digits -->\n{study.BEGIN}{text}{study.END}after\n"
    with pytest.raises(ValueError, match="no mark for icons100"):
        study.write_block(document, "icons100", "text")
