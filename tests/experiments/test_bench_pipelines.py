"""What driving costs: the benchmark runs on a small network and on the digits, and prints one line."""

import math

import pytest

from experiments import bench_pipelines, bench_training

TINY = {
    "block_out_channels": (8, 8), "sample_size": 8, "cross_attention_dim": 8, "layers_per_block": 1,
    "norm_num_groups": 4, "attention_head_dim": 4, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip


@pytest.mark.parametrize("network", ["small", "digits"])
def test_driving_is_compared_with_the_stock_loop(network, monkeypatch, capsys):
    monkeypatch.setitem(bench_training.SIZES, "small", TINY)
    args = bench_pipelines.Args(network, batch_size=2, few=1, many=3, rounds=1)
    times, _ = bench_pipelines.main(args)
    assert math.isfinite(times)
    assert "of the stock loop's predictions a second" in capsys.readouterr().out


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match="network='flux' is unknown"):
        bench_pipelines.main(bench_pipelines.Args("flux"))
