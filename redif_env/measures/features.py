"""Feature networks, in whose feature space samples are compared."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redif_env.diffusion.placement import stock_defaults
from redif_env.measures.classifiers import SHIPPED, Classifier

FEATURE_BATCH = 1024
VAE, VAE_FEATURES, VAE_BATCH = "vae", 512, 8
"""Name of the features of a pipeline's own VAE, how many they are at most, and images of one call of it."""

INCEPTION = "inception:"
"""Prefix of a feature name; the path of the Inception weights follows."""


class PenultimateFeatures(nn.Module):
    """The penultimate layer of a classifier as a module.

    Args:
        classifier: the network.
        side: of its images in pixels; of larger ones the middle is taken.
    """

    def __init__(self, classifier: Classifier, side: int) -> None:
        super().__init__()
        self.classifier, self.side = classifier, side

    def forward(self, images: Tensor) -> Tensor:
        top, left = ((size - self.side) // 2 for size in images.shape[-2:])
        middle = images[..., top : top + self.side, left : left + self.side]
        return self.classifier.features(middle.float())


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


class VAEFeatures(nn.Module):
    """What a pipeline's own VAE sees in images or frames: the last hidden layer of its encoder, averaged over places.

    The layer is that before the encoder's last convolution, which makes latents of it. It is averaged over frames and
    over a grid of places, as fine as leaves no more than ``VAE_FEATURES`` numbers.

    Args:
        vae: an autoencoder of diffusers with an ``encoder``. It is left where and as it is.
    """

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self._vae = [vae]  # no submodule: it is moved by whom it belongs to
        convolutions = nn.Conv1d | nn.Conv2d | nn.Conv3d
        self.last = [part for part in vae.encoder.modules() if isinstance(part, convolutions)][-1:]  # type: ignore[union-attr, operator]

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features ``(B, D)`` of images ``(B, C, H, W)`` or frames ``(B, F, C, H, W)`` in [-1, 1]."""
        return torch.cat([self._of(part) for part in images.split(VAE_BATCH)])

    def _of(self, images: Tensor) -> Tensor:
        vae: Any = self._vae[0]
        kind, upcast = vae.dtype, vae.dtype == torch.float16 and vae.config.get("force_upcast")
        if upcast:
            vae.to(torch.float32)  # as pipelines themselves do to decode
        seen: list[Tensor] = []
        hook = self.last[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].float()))
        try:
            vae.encode((images.movedim(1, 2) if images.ndim == 5 else images).to(vae.dtype))
        finally:
            hook.remove()
            if upcast:
                vae.to(kind)
        hidden = torch.cat(seen)
        hidden = hidden.mean(dim=2) if hidden.ndim == 5 else hidden
        side = next(side for side in (4, 2, 1) if side**2 * hidden.shape[1] <= VAE_FEATURES or side == 1)
        return F.adaptive_avg_pool2d(hidden, side).flatten(1).to(images.device)


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


def load_features(name: str, sample_shape: tuple[int, ...], vae: nn.Module | None = None) -> nn.Module:
    """Load a frozen feature network.

    Args:
        name: one of

            - ``"pixels"``: the flattened samples;
            - ``"digits"``, ``"mnist"``, ``"cifar10"``: the classifier for rewards on such images;
            - ``"digits-evaluation"`` and so on: the classifier for evaluation, trained from another seed; do not use
              it in rewards;
            - ``"vae"``: the encoder of the pipeline's own ``vae``;
            - ``"inception:PATH"``: the features of FID, with the weights at PATH;
            - the folder or hub id of a transformers vision model (CLIP, DINO, ...).
        sample_shape: shape S of one sample; for latents, of the decoded image.
        vae: of the teacher, if it has one.

    Raises:
        ValueError: if ``name`` is unknown, or the network does not take samples of this shape.
    """
    with stock_defaults():
        return _features(name, sample_shape, vae).eval().requires_grad_(False)


def _features(name: str, sample_shape: tuple[int, ...], vae: nn.Module | None) -> nn.Module:
    network: nn.Module
    if name == "pixels":
        network = nn.Flatten()
    elif name == VAE:
        if vae is None:
            raise ValueError(f"features={name!r} needs a teacher with a VAE that encodes images: try 'pixels'")
        network = VAEFeatures(vae)
    elif name in SHIPPED:
        shipped = SHIPPED[name]
        channels, *sides = shipped.sample_shape
        if len(sample_shape) != 3 or sample_shape[0] != channels or min(sample_shape[1:]) < sides[0]:
            raise ValueError(
                f"features={name!r} takes samples of shape {shipped.sample_shape} or larger, not {sample_shape}: try "
                "'pixels'"
            )
        network = PenultimateFeatures(shipped.load(), sides[0])
    elif len(sample_shape) == 3 and name.startswith(INCEPTION):
        network = InceptionFeatures(Path(name.removeprefix(INCEPTION)))
    elif len(sample_shape) == 3:
        network = VisionFeatures.from_pretrained(name)
    else:
        raise ValueError(f"features={name!r} takes images, not samples of shape {sample_shape}: try 'pixels'")
    return network


def default_features(sample_shape: tuple[int, ...]) -> str:
    """The name of the features that rewards use by default."""
    return next((name for name, known in SHIPPED.items() if known.sample_shape == sample_shape), "pixels")


def evaluation_features(sample_shape: tuple[int, ...], vae: nn.Module | None = None) -> str:
    """The name of the features that evaluation uses by default: of the teacher's VAE, or of a classifier."""
    name = default_features(sample_shape)
    return VAE if vae is not None else name if name == "pixels" else f"{name}-evaluation"


@torch.no_grad()
def embed(features: nn.Module, samples: Tensor) -> Tensor:
    """Features ``(N, D)`` of ``samples`` ``(N, *S)``, in batches."""
    return torch.cat([features(part) for part in samples.split(FEATURE_BATCH)]).flatten(1)
