"""Low-rank adapters (LoRA: Hu et al. 2022) on a network, by peft, and the plain network that they amount to."""

from __future__ import annotations

from importlib.util import find_spec

from torch import Tensor, nn

ADAPTER = "student"


def add_adapters(network: nn.Module, rank: int) -> None:
    """Put an adapter of ``rank`` on every linear and convolution layer, in place; all other weights are frozen.

    The adapters begin as nothing: the network answers as before.

    Raises:
        ImportError: without peft (``pip install 'redif-env[lora]'``).
        ValueError: if ``rank`` is below 1.
    """
    if rank < 1:
        raise ValueError(f"rank of adapters must be at least 1, got {rank}")
    if find_spec("peft") is None:
        raise ImportError("adapters are made by peft: pip install 'redif-env[lora]'")
    from peft import LoraConfig, inject_adapter_in_model

    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=layers)
    inject_adapter_in_model(config, network, adapter_name=ADAPTER)


def merged_weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights of the plain network that answers as ``network`` with its adapters does; a copy."""
    weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    adapted = {name: module for name, module in network.named_modules() if hasattr(module, "get_delta_weight")}
    for name, module in adapted.items():
        delta = module.get_delta_weight(ADAPTER).detach()
        weights = {key: tensor for key, tensor in weights.items() if not key.startswith(f"{name}.lora_")}
        for part in ("weight", "bias"):
            base = weights.pop(f"{name}.base_layer.{part}", None)
            if base is not None:
                weights[f"{name}.{part}"] = base + delta if part == "weight" else base
    return weights
