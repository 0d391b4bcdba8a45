import json
from importlib.util import find_spec

import pytest
import torch

from redif_env.measures.classifiers import NUM_FEATURES
from redif_env.measures.features import VisionFeatures, default_features, embed, load_features
from redif_env.measures.metrics import frechet_distance
from redif_env.storage.data import load_digits


@pytest.mark.parametrize("name", ["digits", "digits-evaluation"])
def test_shipped_networks_are_trained(name):
    """They classify digits correctly, and their features separate digits from noise."""
    network = load_features(name, (1, 8, 8))
    images, labels = load_digits()
    assert (network.classifier(images).argmax(1) == labels).float().mean() > 0.97
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    features = embed(network, images)
    halves = frechet_distance(features[::2], features[1::2])
    assert frechet_distance(embed(network, noise), features) > 20 * halves
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_evaluation_features_differ_from_reward_features():
    images = load_digits()[0][:20]
    first, second = (embed(load_features(name, (1, 8, 8)), images) for name in ("digits", "digits-evaluation"))
    assert first.shape == second.shape == (20, NUM_FEATURES)
    assert (first - second).abs().mean() > 0.1


def test_pixels_are_the_samples_themselves():
    """Clipping is the teacher's, which knows the bounds of its data."""
    samples = torch.tensor([[[[-2.0, 0.5]]]])
    assert embed(load_features("pixels", (1, 1, 2)), samples).tolist() == [[-2.0, 0.5]]
    assert default_features((3, 4, 4)) == "pixels"
    assert default_features((1, 8, 8)) == "digits"


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("digits", (3, 8, 8), r"features='digits' takes samples of shape \(1, 8, 8\) or larger, not \(3, 8, 8\)"),
        ("some/model", (2,), r"features='some/model' takes images, not samples of shape \(2,\)"),
    ],
)
def test_unknown_names_and_wrong_shapes_are_refused(name, shape, message):
    with pytest.raises(ValueError, match=message):
        load_features(name, shape)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A folder with a tiny CLIP image encoder with random weights."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, projection_dim=12, num_hidden_layers=1, num_attention_heads=2,
        image_size=16, patch_size=8,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("clip")
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    CLIPImageProcessor(crop_size=16, size={"shortest_edge": 16}).save_pretrained(folder)
    return folder


def test_clip_features_from_a_folder(clip_folder):
    """Features are the model's image embeddings of the preprocessed image."""
    features = load_features(str(clip_folder), (3, 16, 16))
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = (torch.tensor(json.loads((clip_folder / "preprocessor_config.json").read_text())[key])
                 for key in ("image_mean", "image_std"))  # fmt: skip
    pixels = ((images + 1) / 2 - mean.reshape(1, 3, 1, 1)) / std.reshape(1, 3, 1, 1)
    torch.testing.assert_close(embed(features, images), features.model(pixel_values=pixels).image_embeds)
    grey = torch.zeros(2, 1, 8, 8)
    assert load_features(str(clip_folder), (1, 8, 8))(grey).shape == (2, 12)


def test_dino_features_from_a_folder(tmp_path):
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    Dinov2Model(
        Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=14, patch_size=7)
    ).save_pretrained(tmp_path)
    BitImageProcessor(crop_size=14, size={"shortest_edge": 14}).save_pretrained(tmp_path)
    features = VisionFeatures.from_pretrained(str(tmp_path))
    assert features(torch.zeros(2, 3, 8, 8)).shape == (2, 16)


def test_pickled_weights_and_missing_folders_are_refused(clip_folder, tmp_path):
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((clip_folder / name).read_text())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no transformers vision model could be read"):
        load_features(str(tmp_path), (3, 16, 16))
    with pytest.raises(ValueError, match="no transformers vision model could be read"):
        load_features(str(tmp_path / "nowhere"), (3, 16, 16))


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_inception_input_is_uint8_with_three_channels(monkeypatch, tmp_path):
    """The input is that of FID; the network is a stand-in."""
    inputs = []

    class Inception(torch.nn.Module):
        def __init__(self, name, features_list, feature_extractor_weights_path):
            super().__init__()
            assert (name, features_list) == ("inception-v3-compat", ["2048"])
            assert feature_extractor_weights_path == str(tmp_path / "weights.pth")

        def forward(self, pixels):
            inputs.append(pixels)
            return pixels.flatten(1).float()

    monkeypatch.setattr("torchmetrics.image.fid.NoTrainInceptionV3", Inception)
    torch.save({}, tmp_path / "weights.pth")
    features = load_features(f"inception:{tmp_path / 'weights.pth'}", (1, 2, 2))
    embedded = embed(features, torch.tensor([-2.0, -1.0, 0.0, 1.0]).reshape(1, 1, 2, 2))
    (pixels,) = inputs
    assert pixels.dtype == torch.uint8
    assert pixels[0].tolist() == [[[0, 0], [128, 255]]] * 3
    assert embedded.shape == (1, 12)


def test_inception_files_that_hold_code_are_refused(monkeypatch, tmp_path):
    torch.save(Canary(tmp_path / "ran"), tmp_path / "weights.pth")
    monkeypatch.setattr("torchmetrics.image.fid.NoTrainInceptionV3", None)
    with pytest.raises(ValueError, match=r"features='inception:.*weights.pth' cannot be read"):
        load_features(f"inception:{tmp_path / 'weights.pth'}", (3, 8, 8))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match="cannot be read"):
        load_features(f"inception:{tmp_path / 'none.pth'}", (3, 8, 8))


@pytest.mark.skipif(find_spec("torch_fidelity") is not None, reason="torch-fidelity is installed")
def test_inception_needs_torch_fidelity(tmp_path):
    torch.save({}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="need torch-fidelity: pip install torch-fidelity"):
        load_features(f"inception:{tmp_path / 'weights.pth'}", (3, 8, 8))
