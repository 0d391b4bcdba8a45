"""The programs that train teachers and classifiers."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro

from experiments import train_classifier, train_teacher
from redif_env import Teacher
from redif_env.diffusion.predictions import EDMPreconditioning
from redif_env.diffusion.types import Level, PredictionType
from redif_env.storage.checkpoints import newest_state
from redif_env.storage.data import ImageSet
from tests.pictures import LABELS, PIXELS


@pytest.mark.parametrize("kind", list(train_teacher.Kind))
def test_a_teacher_is_trained_and_noted(npz, tmp_path, kind, monkeypatch):
    """A few steps of each kind: the folder is a teacher of that kind, conditional, guided, with note and curve."""
    typed = ["--data", str(npz), "--kind", kind.value, "--conditional", "--channels", "16", "16", "--batch-size", "4",
             "--steps", "3", "--out", str(tmp_path / "teacher")]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["train_teacher", *typed])
    train_teacher.main(tyro.cli(train_teacher.Args, args=typed))
    teacher = Teacher.from_pretrained(tmp_path / "teacher", null_label=3, guidance_scale=2.0)
    expected = {"epsilon": "epsilon", "v": "v_prediction", "flow": "flow_prediction", "edm": "epsilon"}[kind.value]
    assert teacher.prediction_type.value == expected
    assert teacher.conditions.names == ("0", "1", "2")
    facts = json.loads((tmp_path / "teacher" / "training.json").read_text())
    assert len(facts["curve"]) == 3
    assert not (tmp_path / "teacher-checkpoints").exists()
    note = (tmp_path / "teacher" / "README.md").read_text()
    assert f"--kind {kind.value}" in note
    assert str(Path(npz).parent) not in note
    assert "Frechet distance (features digits-evaluation)" in note


def test_training_learns():
    """Two shades of flat 8x8 images: loss falls, and samples of each label have its shade."""
    images = torch.tensor([-0.6, 0.6]).reshape(2, 1, 1, 1).expand(2, 1, 8, 8)
    data = train_teacher.ImageSet(images, torch.tensor([0, 1]))
    args = train_teacher.Args(kind=train_teacher.Kind.FLOW, conditional=True, channels=(16,), batch_size=16, steps=110)
    torch.manual_seed(0)
    network = train_teacher.build_network(args, data)
    objective, _ = train_teacher.objective_of(args.kind)
    curve = train_teacher.Training(args, network, objective, data).run(network, None)
    assert curve[-1] < 0.5 * curve[0]
    network.eval()
    generator = torch.Generator().manual_seed(0)
    x, sigmas = torch.randn(16, 1, 8, 8, generator=generator), torch.linspace(1, 0, 9)
    labels = torch.arange(2).repeat(8)
    with torch.no_grad():
        for sigma, following in pairwise(sigmas):
            x = x + (following - sigma) * network(x, sigma.expand(16) * 1000, class_labels=labels).sample
    means = x.mean(dim=(1, 2, 3))
    assert means[labels == 0].mean() < -0.2
    assert means[labels == 1].mean() > 0.2


def test_the_edm_target_is_the_output_that_denoises():
    """What the network is trained to output is read as the clean image, at every level."""
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 5, 1, 4, 4, generator=generator).unbind()
    times = torch.tensor([0.01, 0.3, 0.5, 0.7, 0.99])
    inputs, timesteps, target = train_teacher.preconditioned(clean, noise, times)
    sigma = (4 * timesteps).exp()
    assert (sigma[2].log() + 1.2).abs() < 1e-6
    level, edm = Level(torch.ones(5), sigma), EDMPreconditioning()
    x = edm.samples(inputs, level)
    torch.testing.assert_close(x, clean + sigma.reshape(-1, 1, 1, 1) * noise, rtol=1e-5, atol=1e-5)
    found = edm.read(target, x, level, PredictionType.EPSILON)
    torch.testing.assert_close(found.x0, clean, rtol=1e-4, atol=1e-4)
    other = edm.read(-target, x, level, PredictionType.EPSILON)
    assert not torch.allclose(other.x0, clean, atol=0.1)


def test_a_training_goes_on_from_its_checkpoint(tmp_path):
    """Broken off after 3 of 6 steps and resumed, it ends with the same weights; without resuming, with others."""
    data = ImageSet(torch.from_numpy(PIXELS)[:, None].float() / 127.5 - 1, torch.from_numpy(LABELS).long())
    args = train_teacher.Args(conditional=True, channels=(16, 16), batch_size=4, steps=6, checkpoint_every=3)
    objective, _ = train_teacher.objective_of(args.kind)

    def training(settings):
        torch.manual_seed(0)
        network = train_teacher.build_network(settings, data)
        return train_teacher.Training(settings, network, objective, data)

    whole = training(args)
    whole.run(whole.network, tmp_path / "whole")
    broken = training(args)
    for _ in range(3):
        broken.advance(broken.network)
    resumed, fresh = training(replace(args, seed=5)), training(replace(args, seed=5))
    train_teacher.add_state(tmp_path / "broken", 3, broken.state_dict(), keep=1)
    resumed.load_state_dict(newest_state(tmp_path / "broken"))
    for other in (resumed, fresh):
        other.run(other.network, None)
    expected = torch.nn.utils.parameters_to_vector(whole.network.parameters())
    assert torch.equal(torch.nn.utils.parameters_to_vector(resumed.network.parameters()), expected)
    assert not torch.allclose(torch.nn.utils.parameters_to_vector(fresh.network.parameters()), expected)


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("batch_size", -1), ("seconds", 0.0)])
def test_settings_that_mean_nothing_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        train_teacher.Args(**{name: value})


def test_a_classifier_of_colour_images_is_trained(tmp_path):
    """Red and blue pictures are classified after a few epochs, on the data's own test split."""
    colours = np.zeros((64, 16, 16, 3), np.uint8)
    labels = np.arange(64) % 2
    colours[labels == 0, ..., 0], colours[labels == 1, ..., 2] = 200, 200
    path = tmp_path / "colours.npz"
    np.savez(path, x_train=colours, y_train=labels, x_test=colours[:8], y_test=labels[:8])
    recipe = replace(train_classifier.IMAGES, batch_size=16)
    args = train_classifier.Args(data=str(path), out=tmp_path / "classifier", epochs=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_classifier, "IMAGES", recipe)
        train_classifier.main(args)
    note = (tmp_path / "classifier" / "README.md").read_text()
    assert "the test split (8 images): 1.0000" in note
    assert str(tmp_path) not in note


def test_unlabelled_images_train_no_classifier(tmp_path):
    np.savez(tmp_path / "bare.npz", x_train=PIXELS)
    with pytest.raises(ValueError, match="has no labels"):
        train_classifier.main(train_classifier.Args(data=str(tmp_path / "bare.npz")))
