"""The network: a small convolutional backbone and one linear layer."""

from collections.abc import Sequence

import torch
from torch import nn


class Backbone(nn.Module):
    """Images `[N, 3, 32, 32]` to features `[N, D]`, D the last width; non-negative, as the paper's are.

    Each stage is 3x3 convolution, BatchNorm, ReLU; the resolution halves before stages 1, 3 and 5.
    """

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        layers: list[nn.Module] = []
        n_in = 3
        for stage, width in enumerate(widths):
            if stage in (1, 3, 5):
                layers.append(nn.MaxPool2d(2))
            layers += [nn.Conv2d(n_in, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            n_in = width
        self.layers = nn.Sequential(*layers)
        self.feature_dim = n_in

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image).mean((2, 3))


class Classifier(nn.Module):
    """The backbone with its joint head: logits `[N, C]`."""

    def __init__(self, widths: Sequence[int], num_classes: int):
        super().__init__()
        self.backbone = Backbone(widths)
        self.head = nn.Linear(self.backbone.feature_dim, num_classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(image))
