"""Train the classifiers whose penultimate layers are the feature spaces of rewards and tables, on any labelled images.

    python -m experiments.train_classifier                                                               # digits
    python -m experiments.train_classifier --data mnist.npz --epochs 3 --out redif_env/assets/mnist-classifier
    python -m experiments.train_classifier --data cifar-10-binary.tar.gz --out redif_env/assets/cifar10-classifier

Make two, of different seeds: one for rewards and one for the judge. Grey images of 8 or 28 pixels get the small network
of the digits, all others one of seven convolutions (some 8 s on a GPU for CIFAR-10, an hour on two cores).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from redif_env.mdp.settings import parse_device
from redif_env.measures.classifiers import Classifier, classifier_for
from redif_env.storage.data import ImageSet, load_images
from redif_env.storage.files import ASSETS, write_folder


@dataclass(frozen=True)
class Args:
    """Settings. Accuracy is measured on the data's test split, or on every fifth image where there is none."""

    data: str = "digits"
    """Labelled images: whatever redif_env.storage.data.load_images reads."""
    size: int | None = None
    """Side in pixels to resize images of a folder or the hub to."""
    out: Path = ASSETS / "digits-classifier"
    seed: int = 0
    epochs: int | None = None
    """60 for grey digits, 10 for other images, if not given."""
    device: str = "cpu"


@dataclass(frozen=True)
class Recipe:
    """How one kind of network is trained."""

    epochs: int
    batch_size: int
    noise: float
    """Standard deviation of the noise that is added to images."""
    label_smoothing: float
    augmented: bool
    """Whether images are mirrored and shifted by up to 3 pixels."""


DIGITS = Recipe(epochs=60, batch_size=64, noise=0.1, label_smoothing=0.05, augmented=False)
IMAGES = Recipe(epochs=10, batch_size=512, noise=0.05, label_smoothing=0.1, augmented=True)
SHIFT = 3


def recipe_of(sample_shape: tuple[int, ...]) -> Recipe:
    """Digits are neither mirrored nor shifted."""
    return DIGITS if sample_shape[0] == 1 and sample_shape[-1] <= 28 else IMAGES


def optimizer_of(recipe: Recipe, model: Classifier, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """The optimizer, inside its schedule."""
    if recipe is DIGITS:
        adam = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
        return torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    sgd = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4)
    return torch.optim.lr_scheduler.OneCycleLR(sgd, 0.2, steps)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the images mirrored, the whole batch shifted by up to 3 pixels; what moves in repeats the border."""
    mirrored = torch.rand(len(images), generator=generator).to(images.device) < 0.5
    images = torch.where(mirrored.reshape(-1, 1, 1, 1), images.flip(-1), images)
    down, right = torch.randint(0, 2 * SHIFT + 1, (2,), generator=generator).tolist()
    padded = F.pad(images, [SHIFT] * 4, mode="replicate")
    return padded[..., down : down + images.shape[-2], right : right + images.shape[-1]]


def train(args: Args, data: ImageSet, device: torch.device) -> Classifier:
    """The classifier, in evaluation mode."""
    assert data.labels is not None
    shape = tuple(data.images.shape[1:])
    recipe = recipe_of(shape)
    model = classifier_for(shape, data.num_classes).to(device)
    images, labels = data.images.to(device), data.labels.to(device)
    generator = torch.Generator().manual_seed(args.seed)
    steps = (args.epochs or recipe.epochs) * max(1, len(images) // recipe.batch_size)
    schedule = optimizer_of(recipe, model, steps)
    for _ in tqdm(range(steps), desc="classifier"):
        chosen = torch.randint(len(images), (recipe.batch_size,), generator=generator).to(device)
        batch = augment(images[chosen], generator) if recipe.augmented else images[chosen]
        noisy = batch + recipe.noise * torch.randn(batch.shape, generator=generator).to(device)
        loss = F.cross_entropy(model(noisy), labels[chosen], label_smoothing=recipe.label_smoothing)
        schedule.optimizer.zero_grad()
        loss.backward()
        schedule.optimizer.step()
        schedule.step()
    return model.eval()


@torch.inference_mode()
def accuracy(model: Classifier, data: ImageSet, device: torch.device) -> float:
    """Share of images whose label is the likeliest."""
    assert data.labels is not None
    found = torch.cat([model(part.to(device)).argmax(1).cpu() for part in data.images.split(512)])
    return (found == data.labels).float().mean().item()


def splits(args: Args) -> tuple[ImageSet, ImageSet, str]:
    """Images to train on, others to measure on, and what those are.

    Raises:
        ValueError: if the images have no labels.
    """
    data = load_images(args.data, size=args.size)
    if data.labels is None:
        raise ValueError(f"data={args.data!r} has no labels: put the images of each class in a subfolder")
    try:
        if args.data != "digits":
            return data, load_images(args.data, "test", args.size), "the test split"
    except ValueError:
        pass  # no such split
    held_out = torch.arange(len(data)) % 5 == 0
    parts = [ImageSet(data.images[rows], data.labels[rows]) for rows in (~held_out, held_out)]
    return parts[0], parts[1], "every fifth image, held out"


def main(args: Args) -> None:
    device = parse_device(args.device)
    torch.manual_seed(args.seed)
    training, test, name = splits(args)
    model = train(args, training, device)
    found = accuracy(model, test, device)
    with write_folder(args.out) as folder:
        save_file({key: value.cpu() for key, value in model.state_dict().items()}, folder / "model.safetensors")
        options = "" if args.data == "digits" else f"--data {Path(args.data).name} "
        options += "" if args.epochs is None else f"--epochs {args.epochs} "
        inside = args.out.resolve().is_relative_to(Path.cwd())
        out = args.out.resolve().relative_to(Path.cwd()).as_posix() if inside else args.out.name
        command = f"python -m experiments.train_classifier {options}--seed {args.seed} --out {out}"
        (folder / "README.md").write_text(
            f"Made by `{command}`; accuracy on {name} ({len(test):,} images): {found:.4f}.\n", encoding="utf-8"
        )
    print(f"accuracy {found:.4f} on {name}, saved to {args.out}")


if __name__ == "__main__":
    main(tyro.cli(Args))
