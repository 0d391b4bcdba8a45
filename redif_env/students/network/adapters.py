"""Low-rank adapters (LoRA, Hu et al. 2022) from peft, and merging them into a plain network."""

from __future__ import annotations

from importlib.util import find_spec

from torch import Tensor, nn

ADAPTER = "student"


def add_adapters(network: nn.Module, rank: int) -> None:
    """Add adapters of ``rank`` to all linear and convolution layers, in place, and freeze all other weights.

    Adapters are initialised to zero, so the output of the network does not change.

    Raises:
        ImportError: without peft (``pip install 'redif-env[lora]'``).
        ValueError: if ``rank`` is below 1.
    """
    if rank < 1:
        raise ValueError(f"rank of adapters must be at least 1, got {rank}")
    if find_spec("peft") is None:
        raise ImportError("adapters need peft: pip install 'redif-env[lora]'")
    from peft import LoraConfig, inject_adapter_in_model

    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=layers)
    inject_adapter_in_model(config, network, adapter_name=ADAPTER)


def merged_weights(network: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights with adapters merged, for a network without adapters."""
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
