"""Feature networks: where samples are compared by what they show, not by their values."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redif_env.measures.classifiers import SHIPPED, Classifier

FEATURE_BATCH = 1024

INCEPTION = "inception:"
"""Before the path of its weights, a name of features."""


class PixelFeatures(nn.Module):
    """The samples themselves, flattened: the feature space where no network is known for the data."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, samples: Tensor) -> Tensor:
        return samples.flatten(1)


class PenultimateFeatures(nn.Module):
    """The penultimate layer of a classifier as a module, the form that torchmetrics takes."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.num_features = classifier.num_features

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.features(images.float())


class VisionFeatures(nn.Module):
    """Pooled features of a transformers vision model: DINO, DINOv2, CLIP's image side, ViT and their like.

    Images ``(B, C, H, W)`` in [-1, 1] are made three-channelled, resized (bicubic, antialiased) and normalised as the
    model's own ``preprocessor_config.json`` says.

    Args:
        model: a transformers model whose output has ``image_embeds`` or ``pooler_output``, or else patch tokens, the
            first of which stands for the image.
        side: pixels a side that the model was trained on.
        mean, std: of its training images in [0, 1], a channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.model = model
        self.side = side
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        unit = (images.float() + 1) / 2
        if unit.shape[1] == 1:
            unit = unit.expand(-1, 3, -1, -1)
        size = (self.side, self.side)
        resized = F.interpolate(unit, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        output = self.model(pixel_values=(resized - self.mean) / self.std)
        for name in ("image_embeds", "pooler_output"):
            if getattr(output, name, None) is not None:
                return getattr(output, name)
        return output.last_hidden_state[:, 0]

    @classmethod
    def from_pretrained(cls, name_or_path: str) -> VisionFeatures:
        """Read a folder or hub id; safetensors only and no code of theirs, so that nothing foreign is run.

        Raises:
            ValueError: if transformers is not installed, or there is no such model.
        """
        try:
            from transformers import AutoConfig, AutoModel, CLIPVisionModelWithProjection
            from transformers.image_processing_base import ImageProcessingMixin
        except ImportError as error:
            raise ValueError(f"features={name_or_path!r} needs transformers: pip install transformers") from error
        try:
            kind = AutoConfig.from_pretrained(name_or_path, trust_remote_code=False).model_type
            family = CLIPVisionModelWithProjection if kind in ("clip", "clip_vision_model") else AutoModel
            model = family.from_pretrained(name_or_path, use_safetensors=True, trust_remote_code=False)
            settings, _ = ImageProcessingMixin.get_image_processor_dict(name_or_path)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"features={name_or_path!r} is neither 'pixels' nor 'digits', and no transformers vision model could "
                f"be read from there ({error}): give a folder or hub id with safetensors weights"
            ) from error
        size = settings.get("crop_size") or settings["size"]
        side = size if isinstance(size, int) else size.get("height") or size["shortest_edge"]
        return cls(model, side, tuple(settings["image_mean"]), tuple(settings["image_std"]))


class InceptionFeatures(nn.Module):
    """The 2,048 pooled features of Inception v3 that FID is made of (Heusel et al. 2017), by torchmetrics.

    Args:
        weights: torch-fidelity's ``weights-inception-2015-12-05-6726825d.pth``.

    Raises:
        ValueError: if torch-fidelity is not installed, or the file holds something other than weights.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        from torchmetrics.image.fid import NoTrainInceptionV3

        try:
            # The network's own reader unpickles whatever is in the file: only what is weights alone may get there.
            torch.load(weights, map_location="cpu", weights_only=True)
            network = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights))
        except ModuleNotFoundError as error:
            raise ValueError(
                f"features='{INCEPTION}{weights}' need torch-fidelity: pip install torch-fidelity"
            ) from error
        except (OSError, RuntimeError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"features='{INCEPTION}{weights}' cannot be read ({str(error).splitlines()[0]}): give torch-fidelity's "
                "weights-inception-2015-12-05-6726825d.pth"
            ) from error
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(N, 2048)`` of ``(N, C, H, W)`` in [-1, 1]; grey ones count as three equal channels."""
        pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        found: Tensor = self.network(pixels.expand(-1, 3, -1, -1))
        return found


def load_features(name: str, sample_shape: tuple[int, ...]) -> nn.Module:
    """A frozen feature network.

    Args:
        name: ``"pixels"``: the samples themselves; ``"digits"``, ``"mnist"`` or ``"cifar10"``: the network for
            rewards on those images; ``"digits-judge"`` and so on: another one, trained from another seed, which the
            tables use and rewards should not; ``"inception:PATH"``: those of FID, with the weights at that path; else
            the folder or hub id of a transformers vision model (CLIP, DINO, ...).
        sample_shape: S of what it is to take; for latents, the shape of the images.

    Raises:
        ValueError: if there is none of that name, or it does not take such samples.
    """
    network: nn.Module
    if name == "pixels":
        network = PixelFeatures(math.prod(sample_shape))
    elif name in SHIPPED:
        shipped = SHIPPED[name]
        if sample_shape != shipped.sample_shape:
            raise ValueError(
                f"features={name!r} takes samples of shape {shipped.sample_shape}, not {sample_shape}: try 'pixels'"
            )
        network = PenultimateFeatures(shipped.load())
    elif len(sample_shape) == 3 and name.startswith(INCEPTION):
        network = InceptionFeatures(Path(name.removeprefix(INCEPTION)))
    elif len(sample_shape) == 3:
        network = VisionFeatures.from_pretrained(name)
    else:
        raise ValueError(f"features={name!r} takes images, not samples of shape {sample_shape}: try 'pixels'")
    return network.eval().requires_grad_(False)


def default_features(sample_shape: tuple[int, ...]) -> str:
    """The name of the features that rewards use where none is named."""
    return next((name for name, known in SHIPPED.items() if known.sample_shape == sample_shape), "pixels")


def judge_features(sample_shape: tuple[int, ...]) -> str:
    """The name of the features that tables use."""
    name = default_features(sample_shape)
    return name if name == "pixels" else f"{name}-judge"


@torch.no_grad()
def embed(features: nn.Module, samples: Tensor) -> Tensor:
    """Features ``(N, D)`` of ``samples`` ``(N, *S)``, clipped to [-1, 1], in batches."""
    return torch.cat([features(part.clamp(-1, 1)) for part in samples.split(FEATURE_BATCH)]).flatten(1)
