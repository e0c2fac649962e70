"""Joint training: backbone and head together, softmax cross-entropy, images drawn by one of the samplers."""

import math
import os
from dataclasses import asdict
from pathlib import Path

import torch
from torch.nn import functional as F

from . import augment, samplers
from .data import Dataset
from .networks import Classifier
from .progress import Progress
from .recipes import Recipe


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """Half a cosine from the recipe's rate towards zero, `lr/2 (1 + cos(pi epoch / epochs))`, epochs counted from 0."""
    return 0.5 * recipe.learning_rate * (1 + math.cos(math.pi * epoch / recipe.epochs))


def settings(recipe: Recipe) -> str:
    """What must be the same for a training to be gone on with: everything but the model's name."""
    return repr({key: value for key, value in asdict(recipe).items() if key != "name"})


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else torch.device(name)


class Training:
    """A training between two epochs: everything that the next epoch depends on."""

    def __init__(self, recipe: Recipe, dataset: Dataset, device: torch.device):
        torch.manual_seed(recipe.seed)
        torch.use_deterministic_algorithms(True)
        torch.set_num_threads(1)  # the order of sums, and so the model, does not depend on the number of cores
        self.recipe, self.device, self.epoch = recipe, device, 0
        self.generator = torch.Generator().manual_seed(recipe.seed)
        split = dataset.splits["train"]
        self.augment = augment.make(recipe.augmentation, recipe.resize, recipe.crop, self.generator)
        self.drawings = self.augment.prepare(split.images).to(device)
        labels = torch.from_numpy(split.labels)
        self.targets = labels.to(device)
        self.sampler = samplers.make(recipe.sampler, labels, recipe.batch_size, recipe.epochs)
        if len(labels) < recipe.batch_size:
            raise ValueError(f"{len(labels)} training images are less than one batch of {recipe.batch_size}")
        self.classifier = Classifier(recipe.network, len(dataset.classes)).to(device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.classifier.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )

    def run_epoch(self) -> float:
        """Trains for one epoch; returns the mean loss."""
        recipe, losses = self.recipe, []
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, self.epoch)
        for batch in self.sampler.batches(self.epoch, self.generator):
            batch = batch.to(self.device)
            image = (self.augment(self.drawings[batch]) - recipe.mean) / recipe.std
            logits = self.classifier(image.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits, self.targets[batch])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach())
        self.epoch += 1
        return float(torch.stack(losses).mean())

    def save(self, path: Path) -> None:
        """Writes a checkpoint, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + ".part")
        torch.save({
            "settings": settings(self.recipe), "epoch": self.epoch, "classifier": self.classifier.state_dict(),
            "optimizer": self.optimizer.state_dict(), "generator": self.generator.get_state(), "sampler": self.sampler.state,
        }, unfinished)
        os.replace(unfinished, path)

    def load(self, path: Path) -> None:
        """Goes on from a checkpoint of the same recipe.

        Raises `ValueError` if it belongs to another recipe.
        """
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["settings"] != settings(self.recipe):
            raise ValueError(f"{path} belongs to a training with other settings; delete it, or name another checkpoint")
        self.epoch, self.sampler.state = state["epoch"], state["sampler"]
        self.classifier.load_state_dict(state["classifier"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])


def joint(recipe: Recipe, dataset: Dataset, device: torch.device, checkpoint: Path) -> Classifier:
    """Trains a classifier with SGD, momentum and a cosine schedule, from the recipe's seed. Returns it in eval mode.

    After every epoch the state is written to `checkpoint`; if it is there already, training goes on from it, and ends
    with the weights that an unbroken training has.
    """
    training = Training(recipe, dataset, device)
    if checkpoint.exists():
        training.load(checkpoint)
    progress = Progress(f"{recipe.name} epoch", recipe.epochs, training.epoch)
    while training.epoch < recipe.epochs:
        loss = training.run_epoch()
        training.save(checkpoint)
        progress.step(f"loss {loss:.3f}")
    return training.classifier.eval().cpu()
