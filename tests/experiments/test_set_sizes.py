"""The distance by the number of noises."""

import pytest
import torch

from agents import clone
from experiments import set_sizes
from redif_env.sb3.training.networks import NoiseSettings


def test_sets_are_disjoint():
    """Means of one and of three apart, nothing else: 1 and 9 of the halves, and 4 of the whole but for the spread."""
    features = torch.tensor([[0.0], [2.0], [10.0], [12.0]])
    others = features + torch.tensor([[1.0], [1.0], [3.0], [3.0]])
    assert set_sizes.distances(features, others, 2) == pytest.approx([1.0, 9.0])
    (whole,) = set_sizes.distances(features, others, 4)
    spread = float(features.std() - others.std())
    assert whole == pytest.approx(4 + spread**2)


def test_infinitely_many_are_where_a_line_leads():
    assert set_sizes.intercept(
        (2000, 4000, 16000), [0.01 + 50 / size for size in (2000, 4000, 16000)]
    ) == pytest.approx(0.01)


def test_chance_is_taken_out():
    """Sets of one distribution are some way apart, the farther the smaller, and of infinitely many nothing is left."""
    generator = torch.Generator().manual_seed(0)
    features, others = (torch.randn(16000, 4, generator=generator) for _ in range(2))
    sizes = (250, 500, 1000, 2000)
    found = [set_sizes.distances(features, others, size) for size in sizes]
    means = [sum(some) / len(some) for some in found]
    assert means == sorted(means, reverse=True)
    assert abs(set_sizes.intercept(sizes, means)) < means[-1] / 10


@pytest.mark.parametrize("sizes", [(2000,), (2000, 3000), (4000, 2000), (2000, 2000)])
def test_sizes_that_do_not_divide_are_refused(sizes):
    with pytest.raises(ValueError, match=r"sizes=.* must rise"):
        set_sizes.checked(sizes)


def test_the_table(pipeline_folder, tmp_path, capsys):
    args = clone.Args(
        teacher=str(pipeline_folder),
        num_steps=2,
        network=NoiseSettings(clone_updates=1),
        out=tmp_path / "clone",
        teacher_steps=8,
    )
    clone.make(args)[0].save_pretrained(tmp_path / "student")
    sizes = set_sizes.Args((tmp_path / "student",), str(pipeline_folder), (128, 256), teacher_steps=8)
    set_sizes.main(sizes)
    printed = capsys.readouterr().out
    assert "infinite" in printed
    assert "%" in printed
