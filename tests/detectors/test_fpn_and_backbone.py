"""The pyramid compared with torchvision's; the norms of towers; the shapes of backbones."""

from urllib.error import URLError

import pytest
import torch
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detectors.backbone import FrozenBatchNorm, ResNetBackbone, TinyBackbone, load_features
from detectors.fpn import FeaturePyramid
from detectors.heads import Tower, as_map, prior_bias


@pytest.mark.parametrize(("source", "name"), [("backbone", "c5"), ("pyramid", "p5")])
def test_pyramid_equals_torchvision(source, name):
    channels = {8: 6, 16: 10, 32: 12}
    ours = FeaturePyramid(in_channels=channels, strides=(8, 16, 32, 64, 128), channels=4, extra_from=source)
    # torchvision takes P6 from C5 or from P5 by comparing channel numbers
    theirs = FeaturePyramidNetwork(
        list(channels.values()), 4, LastLevelP6P7(12 if source == "backbone" else 4, 4)
    )
    with torch.no_grad():
        for i, stride in enumerate(channels):
            for mine, other in ((ours.lateral, theirs.inner_blocks), (ours.output, theirs.layer_blocks)):
                other[i][0].weight.copy_(mine[str(stride)].weight)
                other[i][0].bias.copy_(mine[str(stride)].bias)
        theirs.extra_blocks.p6.load_state_dict(ours.extra["64"].state_dict())
        theirs.extra_blocks.p7.load_state_dict(ours.extra["128"].state_dict())
    features = {s: torch.randn(2, c, 64 // s * 4, 64 // s * 4) for s, c in channels.items()}
    expected = theirs({str(s): x for s, x in features.items()})
    for got, want in zip(ours(features), expected.values(), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 2), (2, 1), (3, 1), (3, 2)])
def test_coarse_levels_of_one_pixel_have_the_float32_gradient_in_bfloat16(height, width):
    pyramid = FeaturePyramid(in_channels={32: 32}, strides=(32, 64, 128), channels=32)
    features = {32: torch.randn(4, 32, height, width)}

    def gradients(half: bool) -> dict[str, torch.Tensor]:
        pyramid.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            levels = pyramid(features)
        # Uninitialised memory contains its previous content.
        junk = [torch.full((32, 32, 3, 3), float("nan"), dtype=torch.bfloat16) for _ in range(8)]
        del junk
        sum(level.float().square().mean() for level in levels).backward()
        return {name: parameter.grad.clone() for name, parameter in pyramid.named_parameters()}

    expected = gradients(half=False)
    for _ in range(5):
        for name, gradient in gradients(half=True).items():
            error = (gradient - expected[name]).norm() / expected[name].norm()
            assert error < 0.05, (name, float(error))


@pytest.mark.parametrize(
    ("strides", "message"),
    [
        ((4, 16), r"strides are \(4, 16\), but each level of a pyramid has twice the stride"),
        ((8, 4), "has twice the stride"),
        ((2, 4, 8), r"the backbone has features at the strides \[4, 8\], not at 2"),
        ((3, 6, 12), "not at 3"),
        ((16, 32), "not at 16"),
    ],
)
def test_pyramid_rejects_impossible_strides(strides, message):
    with pytest.raises(ValueError, match=message):
        FeaturePyramid(in_channels={4: 8, 8: 8}, strides=strides, channels=4)


@pytest.mark.parametrize(
    "make", [TinyBackbone, lambda: ResNetBackbone(name="resnet18", pretrained=False, frozen_batch_norm=True)]
)
def test_backbones_have_the_stated_strides_and_channels(make):
    backbone = make()
    for stride, x in backbone(torch.zeros(1, 3, 64, 64)).items():
        assert x.shape == (1, backbone.channels[stride], 64 // stride, 64 // stride)


def test_resnet_equals_torchvision_up_to_its_pooling():
    from torchvision.models import resnet18

    ours = ResNetBackbone(name="resnet18", pretrained=False, frozen_batch_norm=False).eval()
    theirs = resnet18().eval()
    theirs.conv1, theirs.bn1 = ours.stem[0], ours.stem[1]
    theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4 = ours.stages
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(theirs.fc(ours(images)[32].mean((2, 3))), theirs(images))


@pytest.mark.parametrize("frozen_stages", [0, 1, 2])
def test_frozen_stages_of_a_resnet_do_not_change_in_training(frozen_stages):
    backbone = ResNetBackbone(
        name="resnet18", pretrained=False, frozen_batch_norm=False, frozen_stages=frozen_stages
    ).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone(torch.randn(2, 3, 64, 64))
    moved = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
    parts = ["stem", "stages.0", "stages.1", "stages.2", "stages.3"]
    assert {part for part in parts if any(name.startswith(part) for name in moved)} == set(
        parts[frozen_stages + 1 if frozen_stages else 0 :]
    )


@pytest.mark.parametrize("channels", [8, 32, 64, 96, 256])
def test_a_group_of_a_tower_has_several_channels(channels):
    tower = Tower(channels=channels, depth=1, norm="group", levels=1)
    tower(torch.randn(1, channels, 1, 1), 0)


def test_unknown_backbones_are_rejected():
    with pytest.raises(ValueError, match="resnet50"):
        ResNetBackbone(name="resnet51", pretrained=False, frozen_batch_norm=True)


def test_batch_norm_per_level_has_separate_statistics():
    tower = Tower(channels=8, depth=1, norm="batch_per_level", levels=2).train()
    tower(torch.randn(4, 8, 5, 5) + 3, 0)
    assert tower.norms[0][0].running_mean.abs().sum() > 0
    assert tower.norms[0][1].running_mean.abs().sum() == 0


def test_prior_bias_is_the_logit_of_the_prior():
    assert torch.sigmoid(torch.tensor(prior_bias(0.01))).item() == pytest.approx(0.01)
    with pytest.raises(ValueError):
        prior_bias(0.0)


def test_as_map_is_a_view_of_channels_last():
    x = torch.randn(2, 6, 3, 4).to(memory_format=torch.channels_last)
    flat = as_map(x, 6)
    assert flat.data_ptr() == x.data_ptr()
    torch.testing.assert_close(flat[1, 7], x[1, :, 1, 3])


def test_load_features_loads_matching_tensors(tmp_path):
    class Net(torch.nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            self.backbone = TinyBackbone(widths=(4, 4, 8, 8))
            self.layer = torch.nn.Linear(8, classes)
            self.classification = torch.nn.BatchNorm1d(3)  # represents a loss with running state

    first, second = Net(5), Net(7)
    first.classification.running_mean.fill_(7.0)
    torch.save({"model": first.state_dict()}, tmp_path / "a.pt")
    assert load_features(second, torch.load(tmp_path / "a.pt"), tmp_path / "a.pt") == [
        "layer.bias",
        "layer.weight",
    ]
    assert second.classification.running_mean.eq(0).all()
    for name, value in first.backbone.state_dict().items():
        torch.testing.assert_close(second.backbone.state_dict()[name], value)
    # The run of a checkpoint with a moving average evaluates the average.
    average = {f"module.{name}": value + 1 for name, value in first.state_dict().items()}
    saved = {"model": first.state_dict(), "average": {"n_averaged": torch.tensor(3), **average}}
    torch.save(saved, tmp_path / "b.pt")
    load_features(second, torch.load(tmp_path / "b.pt"), tmp_path / "b.pt")
    for name, value in first.backbone.named_parameters():
        torch.testing.assert_close(second.backbone.get_parameter(name), value + 1)
    with pytest.raises(ValueError, match="trained with the same backbone"):
        load_features(torch.nn.Linear(2, 2), torch.load(tmp_path / "a.pt"), tmp_path / "a.pt")


def test_frozen_statistics_keep_half_precision():
    norm, theirs = FrozenBatchNorm(8), FrozenBatchNorm2d(8)
    state = {name: torch.rand(8) + 0.5 for name in theirs.state_dict()}
    norm.load_state_dict(state)
    theirs.load_state_dict(state)
    x = torch.randn(2, 8, 5, 7)
    assert torch.equal(norm(x), theirs(x))
    assert torch.equal(norm(x.bfloat16()), theirs(x.bfloat16().float()).bfloat16())
    backbone = ResNetBackbone(name="resnet18", pretrained=False, frozen_batch_norm=True)
    saved = []
    with (
        torch.autograd.graph.saved_tensors_hooks(
            lambda t: saved.append((t.dtype, max(t.shape[2:], default=1))) if t.ndim == 4 else None,
            lambda _: None,
        ),
        torch.autocast("cpu", torch.bfloat16),
    ):
        features = backbone(torch.rand(1, 3, 64, 64))
    assert {feature.dtype for feature in features.values()} == {torch.bfloat16}
    # Saved maps are in half precision; only factors of channels are float32.
    assert (torch.bfloat16, 32) in saved
    assert {side for dtype, side in saved if dtype == torch.float32} == {1}


def test_imagenet_weights_that_cannot_be_downloaded_give_an_error_with_a_remedy(monkeypatch):
    def offline(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(
        ValueError, match="backbone=resnet18 cannot be downloaded .no network.*choose backbone=lite0"
    ):
        ResNetBackbone(name="resnet18", pretrained=True, frozen_batch_norm=True)
