"""The data set: icons drawn by many teams, labelled by the first word of their names.

Every icon set belongs to a family (sets of one team, or redrawn from one another), and a family lies in one split
only: validation and test hold drawings of teams that training never saw. Only sets under permissive licences are read.
"""

import hashlib
import json
import tarfile
from collections import Counter
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from . import data
from .recipes import IconData

LICENCES = {"MIT", "Apache-2.0", "ISC", "CC0-1.0", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "Unlicense"}
# Sets of trademarks and of file types, where the first word does not say what is drawn.
SKIPPED_CATEGORIES = {"Logos", "Programming"}

# Sets that share drawings or a team. A set named nowhere is its own family.
FAMILIES = {
    "fluent": ["fluent", "fluent-color", "fluent-mdl2", "fluent-emoji", "fluent-emoji-flat", "fluent-emoji-high-contrast"],
    "material": ["ic", "mdi", "mdi-light", "memory", "material-symbols", "material-symbols-light", "line-md"],
    "boxicons": ["boxicons", "bx", "bxs", "bxl"],
    "feather": ["feather", "lucide", "lucide-lab", "akar-icons", "fe", "iconoir", "quill", "humbleicons"],
    "iconpark": ["icon-park", "icon-park-outline", "icon-park-solid", "icon-park-twotone"],
    "heroicons": ["heroicons", "heroicons-outline", "heroicons-solid", "sidekickicons"],
    "unicons": ["uil", "uim", "uis", "uit"],
    "icons8": ["icons8", "la", "wpf", "flat-color-icons"],
    "glyphs": ["glyphs", "glyphs-poly"],
    "noto": ["noto", "noto-v1"],
    "ionic": ["ion", "famicons"],
    "mono": ["mi", "mono-icons"],
    "halfmann": ["majesticons", "pixelarticons"],
    "praveen": ["mynaui", "vadivam"],
    "maps": ["maki", "temaki", "osmic", "pinhead"],
}
FAMILY_OF = {prefix: family for family, prefixes in FAMILIES.items() for prefix in prefixes}


@dataclass(frozen=True)
class Icon:
    """One drawing: where it comes from and its class."""

    prefix: str
    name: str
    label: int
    svg: str

    @property
    def family(self) -> str:
        return FAMILY_OF.get(self.prefix, self.prefix)


def read(recipe: IconData, archive: Path) -> list[Icon]:
    """Reads the icons of the recipe's classes."""
    label_of = {word: label for label, word in enumerate(recipe.classes)}
    icons = []
    with tarfile.open(archive) as package:
        members = {member.name.removeprefix("package/"): member for member in package.getmembers()}
        collections = json.load(package.extractfile(members["collections.json"]))
        for prefix, facts in sorted(collections.items()):
            if facts["license"].get("spdx") not in LICENCES or facts.get("category") in SKIPPED_CATEGORIES:
                continue
            icon_set = json.load(package.extractfile(members[f"json/{prefix}.json"]))
            for name, icon in sorted(icon_set["icons"].items()):
                label = label_of.get(name.split("-")[0])
                # An animated icon's first frame is often empty.
                if label is not None and not icon.get("hidden") and "<animate" not in icon["body"]:
                    icons.append(Icon(prefix, name, label, to_svg(icon_set, icon)))
    return icons


def to_svg(icon_set: dict, icon: dict) -> str:
    """Wraps an icon's body in a square view box, black where the icon takes the text's colour."""
    left, top, width, height = (
        icon.get(key, icon_set.get(key, default)) for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    side = max(width, height)
    view_box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    body = icon["body"].replace("currentColor", "#000")
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{view_box}">{body}</svg>'
    )


def render(svg: str, size: int) -> Image.Image:
    """Draws an icon on white, RGB, `size` pixels square."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, background="white", skip_system_fonts=True)
    return Image.open(BytesIO(bytes(png))).convert("RGB")


def shuffle_key(recipe: IconData, *parts: str) -> bytes:
    """A position in a shuffled order that depends on the recipe's seed and on nothing else."""
    return hashlib.sha256("/".join([str(recipe.seed), *parts]).encode()).digest()


def split_families(recipe: IconData, icons: list[Icon]) -> dict[str, str]:
    """Says for each family which split it lies in: `train`, `val` or `test`."""
    family_sizes = Counter(icon.family for icon in icons)
    split_of = {family: "train" for family in family_sizes}
    smallest, largest = recipe.held_out_family_sizes
    small = sorted(family for family, size in family_sizes.items() if smallest <= size <= largest)
    small.sort(key=lambda family: shuffle_key(recipe, "family", family))
    n_test = round(len(family_sizes) * recipe.test_family_share)
    n_val = round(len(family_sizes) * recipe.val_family_share)
    split_of |= {family: "test" for family in small[:n_test]}
    split_of |= {family: "val" for family in small[n_test : n_test + n_val]}
    return split_of


def in_turns(recipe: IconData, icons: list[Icon]) -> list[Icon]:
    """Orders icons so that the sets take turns: every set's first drawing, then every set's second, and so on."""
    by_set: dict[str, list[Icon]] = {}
    for icon in sorted(icons, key=lambda icon: shuffle_key(recipe, icon.prefix, icon.name)):
        by_set.setdefault(icon.prefix, []).append(icon)
    turns = [(turn, shuffle_key(recipe, "turn", icon.prefix, icon.name), icon)
             for drawn in by_set.values() for turn, icon in enumerate(drawn)]
    return [icon for _, _, icon in sorted(turns, key=lambda entry: entry[:2])]


class Accepted:
    """The drawings of one class that are in some split: what a new one must differ from."""

    def __init__(self, distance: float):
        self.distance = distance
        self.thumbnails: list[np.ndarray] = []

    def add(self, image: Image.Image) -> bool:
        """Adds a drawing, unless it is blank or differs too little from one already there."""
        thumbnail = np.asarray(image.convert("L").resize((24, 24), Image.Resampling.BILINEAR), dtype=np.float32)
        if (255 - thumbnail).mean() < 4 or thumbnail.std() < 8:
            return False
        if self.thumbnails:
            if np.abs(np.stack(self.thumbnails) - thumbnail).mean((1, 2)).min() < self.distance:
                return False
        self.thumbnails.append(thumbnail)
        return True


def archive_of(recipe: IconData, work: Path) -> Path:
    """The icon package, fetched unless it is there."""
    return data.fetch(recipe.package, recipe.package_version, recipe.package_sha256, work)


def read_facts(archive: Path) -> dict[str, dict]:
    """The facts about every icon set by its prefix: name, author, licence."""
    with tarfile.open(archive) as package:
        return json.load(package.extractfile("package/collections.json"))


def build(recipe: IconData, work: Path) -> data.Dataset:
    """Fetches, splits and renders the icons. A source is the set's prefix, a colon and the icon's name."""
    icons = read(recipe, archive_of(recipe, work))
    split_of = split_families(recipe, icons)
    splits = {name: data.Split([], np.zeros(0, dtype=np.int64), []) for name in data.SPLITS}
    for label, word in enumerate(recipe.classes):
        accepted = Accepted(recipe.duplicate_distance)
        wanted = {"train": recipe.train_counts[label], "val": recipe.val_per_class, "test": recipe.test_per_class}
        for name, n_wanted in wanted.items():
            pool = [icon for icon in icons if icon.label == label and split_of[icon.family] == name]
            split, n_found = splits[name], 0
            for icon in in_turns(recipe, pool):
                if n_found == n_wanted:
                    break
                image = render(icon.svg, recipe.render_size)
                if accepted.add(image):
                    split.images.append(image)
                    split.sources.append(f"{icon.prefix}:{icon.name}")
                    n_found += 1
            if n_found < n_wanted:
                raise ValueError(f"class {word}: {n_found} of {n_wanted} {name} images; give the split more families")
            split.labels = np.append(split.labels, np.full(n_found, label))
    return data.Dataset(recipe.classes, splits)
