"""The networks: small convolutional backbones, and one linear layer."""

from collections.abc import Sequence

import torch
from torch import nn


def convolution(n_in: int, n_out: int, size: int = 3, stride: int = 1) -> list[nn.Module]:
    """A convolution without bias that keeps the resolution (at stride 1), and BatchNorm."""
    return [nn.Conv2d(n_in, n_out, size, stride, padding=size // 2, bias=False), nn.BatchNorm2d(n_out)]


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut: `relu(body(x) + shortcut(x))`."""

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(*convolution(n_in, n_out, stride=stride), nn.ReLU(inplace=True), *convolution(n_out, n_out))
        same = stride == 1 and n_in == n_out
        self.shortcut = nn.Sequential(*([] if same else convolution(n_in, n_out, size=1, stride=stride)))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


def plain(widths: Sequence[int]) -> list[nn.Module]:
    """3x3 convolution, BatchNorm, ReLU for each width; the resolution halves before stages 1, 3 and 5."""
    layers: list[nn.Module] = []
    n_in = 3
    for stage, width in enumerate(widths):
        if stage in (1, 3, 5):
            layers.append(nn.MaxPool2d(2))
        layers += [*convolution(n_in, width), nn.ReLU(inplace=True)]
        n_in = width
    return layers


def residual(widths: Sequence[int], n_blocks: int) -> list[nn.Module]:
    """A first convolution, then `n_blocks` residual blocks a width; every width but the first halves the resolution."""
    layers: list[nn.Module] = [*convolution(3, widths[0]), nn.ReLU(inplace=True)]
    n_in = widths[0]
    for group, width in enumerate(widths):
        for block in range(n_blocks):
            layers.append(Residual(n_in, width, stride=2 if group > 0 and block == 0 else 1))
            n_in = width
    return layers


NETWORKS = {
    "cnn4": lambda: (plain((16, 32, 32, 64)), 64),
    "cnn6": lambda: (plain((16, 32, 32, 64, 64, 96)), 96),
    "cnn7": lambda: (plain((16, 32, 32, 64, 64, 96, 96)), 96),
    "resnet20": lambda: (residual((16, 32, 64), 3), 64),
    "resnet32": lambda: (residual((16, 32, 64), 5), 64),
}


class Backbone(nn.Module):
    """Images `[N, 3, S, S]` to features `[N, D]`: the last layer's mean over the image, non-negative as the paper's are."""

    def __init__(self, network: str):
        super().__init__()
        layers, self.feature_dim = NETWORKS[network]()
        self.layers = nn.Sequential(*layers)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image).mean((2, 3))


class Classifier(nn.Module):
    """The backbone with its joint head: logits `[N, C]`."""

    def __init__(self, network: str, num_classes: int):
        super().__init__()
        self.backbone = Backbone(network)
        self.head = nn.Linear(self.backbone.feature_dim, num_classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(image))
