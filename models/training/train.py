"""Joint training: backbone and head together, softmax cross-entropy, every image equally often."""

import math
import time

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from . import samplers
from .augment import Augment, stroke_weights, to_tensor
from .model import Classifier
from .recipes import Recipe


def joint(recipe: Recipe, images: list[Image.Image], labels: np.ndarray) -> Classifier:
    """Trains a classifier with SGD, momentum and a cosine schedule, from the recipe's seed. Returns it in eval mode."""
    torch.manual_seed(recipe.seed)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # the order of sums, and so the model, does not depend on the number of cores
    generator = torch.Generator().manual_seed(recipe.seed)
    augment = Augment(recipe.resize, recipe.crop, generator)
    drawings, targets = stroke_weights(to_tensor(images, 2 * recipe.resize)), torch.from_numpy(labels)
    classifier = Classifier(recipe.widths, len(recipe.classes)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        classifier.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    started = time.monotonic()
    for epoch in range(recipe.epochs):
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * recipe.learning_rate * (1 + math.cos(math.pi * epoch / recipe.epochs))
        losses = []
        for batch in samplers.instance_balanced(len(targets), recipe.batch_size, generator):
            image = (augment(drawings[batch]) - recipe.mean) / recipe.std
            loss = F.cross_entropy(classifier(image.contiguous(memory_format=torch.channels_last)), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if (epoch + 1) % 10 == 0 or epoch == 0:
            elapsed_s = time.monotonic() - started
            print(f"epoch {epoch + 1}/{recipe.epochs}: loss {np.mean(losses):.3f}, {elapsed_s:.0f} s", flush=True)
    return classifier.eval()
