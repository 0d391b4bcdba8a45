"""Feature networks, in whose feature space samples are compared."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from redif_env.diffusion.placement import stock_defaults
from redif_env.storage.files import ASSETS

FEATURE_BATCH = 1024

CLASSIFIERS = {
    "digits": ("digits-features", (1, 8, 8)),
    "digits-evaluation": ("digits-classifier", (1, 8, 8)),
    "mnist": ("mnist-features", (1, 28, 28)),
    "mnist-evaluation": ("mnist-classifier", (1, 28, 28)),
}
"""Asset folder and sample shape of each digits classifier. Rewards and evaluation use classifiers trained from
different seeds, so that a student cannot exploit the evaluation network through the reward."""

INCEPTION = "inception:"
"""Prefix of a feature name; the path of the Inception weights follows."""


class DigitsClassifier(nn.Module):
    """Small convolutional classifier of digits; the digits tables use the features of its penultimate layer.

    Images ``(B, 1, side, side)`` are in [-1, 1]. ``forward`` returns class logits ``(B, 10)``, ``features`` returns
    ``(B, 64)``. Trained by ``python -m experiments.train_classifier``.

    Args:
        side: 8 or 28 pixels.
    """

    num_features = 64

    def __init__(self, side: int = 8) -> None:
        super().__init__()
        # For 28 x 28 images the first layer halves too; the last feature map has cells x cells positions.
        stride, cells = (1, 2) if side == 8 else (2, 4)
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, stride=stride, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(64, 64, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(64 * cells**2, self.num_features),
            nn.GELU(),
        )
        self.head = nn.Linear(self.num_features, 10)

    def features(self, images: Tensor) -> Tensor:
        return self.body(images)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


class PixelFeatures(nn.Module):
    """The flattened samples: the features of data that have no feature network."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, samples: Tensor) -> Tensor:
        return samples.flatten(1)


class PenultimateFeatures(nn.Module):
    """:meth:`DigitsClassifier.features` as a module."""

    def __init__(self, classifier: DigitsClassifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.num_features = classifier.num_features

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.features(images.float())


class VisionFeatures(nn.Module):
    """Pooled features of a transformers vision model, such as DINO, DINOv2, the image encoder of CLIP, or ViT.

    Images ``(B, C, H, W)`` in [-1, 1] are expanded to three channels, resized (bicubic, antialiased) and normalised
    with the values of the model's ``preprocessor_config.json``.

    Args:
        model: a transformers model whose output has ``image_embeds``, ``pooler_output`` or ``last_hidden_state``; of
            the last, the first token is used.
        side: input size of the model in pixels.
        mean, std: per-channel statistics of images in [0, 1].
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
        """Load a folder or hub id. Only safetensors weights are read, and no remote code runs.

        Raises:
            ValueError: if transformers is not installed, or the model cannot be loaded.
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
                f"features={name_or_path!r} is no built-in name, and no transformers vision model could be read there "
                f"({error}): give a folder or hub id with safetensors weights"
            ) from error
        size = settings.get("crop_size") or settings["size"]
        side = size if isinstance(size, int) else size.get("height") or size["shortest_edge"]
        return cls(model, side, tuple(settings["image_mean"]), tuple(settings["image_std"]))


class InceptionFeatures(nn.Module):
    """The 2,048 pooled features of Inception v3 that FID uses (Heusel et al. 2017), from torchmetrics.

    Args:
        weights: torch-fidelity's ``weights-inception-2015-12-05-6726825d.pth``.

    Raises:
        ValueError: if torch-fidelity is not installed, or the file does not hold weights alone.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        from torchmetrics.image.fid import NoTrainInceptionV3

        try:
            # NoTrainInceptionV3 unpickles the file without checks, so it is first checked to hold weights alone.
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
        """Features ``(N, 2048)`` of images ``(N, C, H, W)`` in [-1, 1]. Grey images are expanded to three channels."""
        pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        features: Tensor = self.network(pixels.expand(-1, 3, -1, -1))
        return features


def load_features(name: str, sample_shape: tuple[int, ...]) -> nn.Module:
    """Load a frozen feature network.

    Args:
        name: one of

            - ``"pixels"``: the flattened samples;
            - ``"digits"``, ``"mnist"``: the classifier for rewards on 8x8 or 28x28 digits;
            - ``"digits-evaluation"``, ``"mnist-evaluation"``: the classifier for evaluation, trained from another seed;
              do not use it in rewards;
            - ``"inception:PATH"``: the features of FID, with the weights at PATH;
            - the folder or hub id of a transformers vision model (CLIP, DINO, ...).
        sample_shape: shape S of one sample; for latents, of the decoded image.

    Raises:
        ValueError: if ``name`` is unknown, or the network does not take samples of this shape.
    """
    with stock_defaults():
        return _features(name, sample_shape).eval().requires_grad_(False)


def _features(name: str, sample_shape: tuple[int, ...]) -> nn.Module:
    network: nn.Module
    if name == "pixels":
        network = PixelFeatures(math.prod(sample_shape))
    elif name in CLASSIFIERS:
        folder, shape = CLASSIFIERS[name]
        if sample_shape != shape:
            raise ValueError(f"features={name!r} takes samples of shape {shape}, not {sample_shape}: try 'pixels'")
        classifier = DigitsClassifier(shape[-1])
        classifier.load_state_dict(load_file(ASSETS / folder / "model.safetensors"))
        network = PenultimateFeatures(classifier)
    elif len(sample_shape) == 3 and name.startswith(INCEPTION):
        network = InceptionFeatures(Path(name.removeprefix(INCEPTION)))
    elif len(sample_shape) == 3:
        network = VisionFeatures.from_pretrained(name)
    else:
        raise ValueError(f"features={name!r} takes images, not samples of shape {sample_shape}: try 'pixels'")
    return network


def default_features(sample_shape: tuple[int, ...]) -> str:
    """The name of the features that rewards use by default."""
    return next((name for name in ("digits", "mnist") if CLASSIFIERS[name][1] == sample_shape), "pixels")


def evaluation_features(sample_shape: tuple[int, ...]) -> str:
    """The name of the features that evaluation uses by default."""
    name = default_features(sample_shape)
    return name if name == "pixels" else f"{name}-evaluation"


@torch.no_grad()
def embed(features: nn.Module, samples: Tensor) -> Tensor:
    """Features ``(N, D)`` of ``samples`` ``(N, *S)``, in batches."""
    return torch.cat([features(part) for part in samples.split(FEATURE_BATCH)]).flatten(1)
