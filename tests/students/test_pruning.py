"""Structured pruning of the teacher's network."""

import pytest
import torch
from diffusers import UNet2DModel

from redif_env.mdp.actions import NoiseMap
from redif_env.mdp.settings import MDPSettings, build_mdp
from redif_env.students.network.cloning import CloningPlan, clone
from redif_env.students.network.pruning import WAVES, axes_of, prunable, pruned_weights
from redif_env.teachers.networks import build_network, narrowed
from redif_env.teachers.teacher import config_of as config_of_teacher

KINDS = {
    "plain": {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")},
    "attention, three levels": {
        "block_out_channels": (8, 16, 24),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
    },
    "labels, two layers": {
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "num_class_embeds": 3,
        "layers_per_block": 2,
    },
}


def network_of(**settings):
    given = {
        "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16), "layers_per_block": 1,
        "norm_num_groups": 4, "attention_head_dim": 4,
    }  # fmt: skip
    torch.manual_seed(0)
    network = UNet2DModel(**{**given, **settings})
    for parameter in network.parameters():  # norms and biases too
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network.eval().requires_grad_(False)


def config_of(network):
    return {**network.config, "_class_name": "UNet2DModel"}


def doubled(network):
    """A network with each channel twice, where the copy is not read, so the output is the same."""
    wide = build_network(narrowed(config_of(network), 2)).eval().requires_grad_(False)
    weights = {}
    for name, weight in network.state_dict().items():
        outputs, *inputs = axes_of(name, network.config)[: weight.ndim]
        rows = weight.repeat_interleave(2, dim=0) if outputs else weight
        weights[name] = rows
        if inputs and inputs[0]:
            weights[name] = torch.zeros(wide.state_dict()[name].shape)
            weights[name][:, ::2] = rows
            if name.startswith("class_embedding"):  # written, not read
                weights[name][:, 1::2] = rows
        if ".to_" in name and (weight.ndim > 1 or ".to_out" not in name):
            weights[name] = of_heads(name, weight, network.config["attention_head_dim"])
    wide.load_state_dict(weights)
    return wide


def of_heads(name, weight, head):
    """An attention weight with each head twice."""
    if "to_out" in name:
        read = weight.reshape(len(weight), -1, 1, head)
        return torch.cat([read, torch.zeros_like(read)], dim=2).flatten(1).repeat_interleave(2, dim=0)
    rows = weight.reshape(-1, 1, head, *weight.shape[1:]).repeat_interleave(2, dim=1).flatten(0, 2)
    if weight.ndim == 1:
        return rows
    read = torch.zeros(len(rows), 2 * rows.shape[1])
    read[:, ::2] = rows
    return read


@pytest.mark.parametrize("kind", KINDS)
def test_channels_that_are_not_read_are_pruned(kind):
    network = network_of(**KINDS[kind])
    wide = doubled(network)
    x, time = torch.randn(3, 1, 8, 8), torch.tensor([3.0, 400.0, 900.0])
    labels = {"class_labels": torch.tensor([0, 1, 2])} if network.config.num_class_embeds else {}
    assert torch.allclose(wide(x, time, **labels).sample, network(x, time, **labels).sample, atol=1e-4)
    assert prunable(config_of(wide), config_of(network))
    pruned = pruned_weights(wide, config_of(network))
    for name, weight in network.state_dict().items():
        assert torch.allclose(pruned[name], weight, atol=1e-6), name


@pytest.mark.parametrize("kind", KINDS)
def test_pruning_to_the_same_width_changes_nothing(kind):
    network = network_of(**KINDS[kind])
    pruned = pruned_weights(network, config_of(network))
    assert all(torch.allclose(pruned[name], weight) for name, weight in network.state_dict().items())


def test_unsupported_networks_are_not_prunable():
    network = network_of(**KINDS["plain"])
    config = config_of(network)
    assert prunable(config, narrowed(config, 0.5))
    assert prunable(config, narrowed(config, 0.5, 8))
    with pytest.raises(
        ValueError, match=r"width=0\.5, time_embedding_dim=0 cannot be given a UNet2DModel: must be above 0"
    ):
        narrowed(config, 0.5, 0)
    assert not prunable(config, narrowed(config, 2))
    assert not prunable(config, narrowed(config, 0.5, 64))
    assert not prunable(config, narrowed(config, 0.25))  # (4, 4): a residual layer loses a weight
    assert not prunable(config, {**narrowed(config, 0.5), "layers_per_block": 2})
    assert not prunable({**config, "time_embedding_type": "fourier"}, narrowed(config, 0.5))
    assert not prunable({**config, "_class_name": "DiTTransformer2DModel"}, narrowed(config, 0.5))


def test_narrower_network_has_the_same_timestep_frequencies():
    network = network_of(**KINDS["plain"])
    narrower = build_network(narrowed(config_of(network), 0.5))
    times = torch.tensor([1.0, 250.0, 999.0])
    assert axes_of("time_embedding.linear_1.weight", network.config)[1] == (WAVES,)
    waves = network.time_proj(times)[:, [0, 2, 4, 6]]
    assert torch.allclose(narrower.time_proj(times), waves, atol=1e-6)


def test_pruned_weights_are_a_better_initialisation_than_random_ones():
    mdp = build_mdp(
        MDPSettings(
            teacher="digits", num_steps=2, action=NoiseMap(), observation="sample", solver="ddim", grid="time^1.25@2.5"
        )
    )
    config = narrowed(config_of_teacher(mdp.teacher), 0.62)
    last = {}
    for pruned in (True, False):
        torch.manual_seed(0)
        network, losses = build_network(config), []
        if pruned:
            network.load_state_dict(pruned_weights(mdp.teacher.network, config))
        clone(mdp, network, CloningPlan(updates=30, batch_size=16, rollouts=32, learning_rate=2e-3), losses.append)
        last[pruned] = sum(losses[-10:]) / 10
    assert last[True] < 0.5 * last[False], last
