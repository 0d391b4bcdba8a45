"""Train the classifiers whose penultimate layers are the feature spaces of the digits tables.

python -m experiments.train_classifier
python -m experiments.train_classifier --data mnist.npz --epochs 3 --out redif_env/assets/mnist-classifier
python -m experiments.train_classifier --data mnist.npz --epochs 3 --seed 1 --out redif_env/assets/mnist-features
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from safetensors.torch import save_file
from torch.nn import functional as F
from tqdm import tqdm

from redif_env.measures.features import DigitsClassifier
from redif_env.storage.data import load_images
from redif_env.storage.files import ASSETS, write_folder


@dataclass(frozen=True)
class Args:
    """Settings; every fifth image is held out to measure accuracy."""

    data: str = "digits"
    """Or an .npz file of 28x28 digits, as in experiments.train_teacher."""
    out: Path = ASSETS / "digits-classifier"
    seed: int = 0
    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 2e-3


def main(args: Args) -> None:
    torch.manual_seed(args.seed)
    data = load_images(args.data)
    images, labels = data.images, data.labels
    if labels is None or images.shape[1:] not in ((1, 8, 8), (1, 28, 28)):
        raise ValueError(f"data={args.data!r} must be labelled grey images of 8x8 or 28x28 pixels")
    held_out = torch.arange(len(images)) % 5 == 0
    model = DigitsClassifier(images.shape[-1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.01)
    steps = args.epochs * (int((~held_out).sum()) // args.batch_size)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    train_images, train_labels = images[~held_out], labels[~held_out]
    for _ in tqdm(range(steps), desc="classifier"):
        chosen = torch.randint(len(train_images), (args.batch_size,))
        batch = train_images[chosen]
        noisy = batch + 0.1 * torch.randn_like(batch)
        loss = F.cross_entropy(model(noisy), train_labels[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    model.eval()
    with torch.inference_mode():
        accuracy = (model(images[held_out]).argmax(1) == labels[held_out]).float().mean().item()
    with write_folder(args.out) as folder:
        save_file(model.state_dict(), folder / "model.safetensors")
        data_named = "" if args.data == "digits" else f"--data {Path(args.data).name} --epochs {args.epochs} "
        named = f"{data_named}--seed {args.seed} --out {os.path.relpath(args.out)}"
        command = f"python -m experiments.train_classifier {named}"
        (folder / "README.md").write_text(
            f"Made by `{command}`; accuracy on the held-out fifth of the {len(images):,} digits: {accuracy:.4f}.\n",
            encoding="utf-8",
        )
    print(f"held-out accuracy {accuracy:.4f}, saved to {args.out}")


if __name__ == "__main__":
    main(tyro.cli(Args))
