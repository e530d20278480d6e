"""The archives of the published data sets, and the destinations of their content.

The publishers give no checksums.  Sizes and SHA-256 are those of TensorFlow Datasets; other sources have the same values
(for COCO and VOC, torchvision's prototype data sets).  Public sources disagree on the checksum of LVIS's validation file, so
only its size is fixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_COCO = "http://images.cocodataset.org"
_LVIS = "https://dl.fbaipublicfiles.com/LVIS"
_VOC = "https://thor.robots.ox.ac.uk/pascal/VOC"


@dataclass(frozen=True)
class Archive:
    """One published file.

    Attributes:
        url: official address; mirrors use its last part as the name.
        size: bytes.
        sha256: None if public sources disagree.
        growth: unpacked size divided by ``size``, approximately.
    """

    url: str
    size: int
    sha256: str | None
    growth: float = 1.0

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Part:
    """A part of a data set, which is either complete or absent.

    Attributes:
        archives: its archives; files of later ones replace files of earlier ones.
        outputs: destination below the data set's folder of each file or folder inside the archives.
        counts: number of files in folders of the release, by destination.
    """

    archives: tuple[Archive, ...]
    outputs: Mapping[str, str]
    counts: Mapping[str, int] = field(default_factory=dict)


COCO_ANNOTATIONS = Part(
    archives=(
        Archive(
            url=f"{_COCO}/annotations/annotations_trainval2017.zip",
            size=252_907_541,
            sha256="113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
            growth=2.0,
        ),
    ),
    outputs={
        name: name for name in (f"annotations/instances_{split}2017.json" for split in ("train", "val"))
    },
)
COCO_IMAGES = (
    Part(
        archives=(
            Archive(
                url=f"{_COCO}/zips/val2017.zip",
                size=815_585_330,
                sha256="4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
                growth=1.02,
            ),
        ),
        outputs={"val2017": "val2017"},
        counts={"val2017": 5_000},
    ),
    Part(
        archives=(
            Archive(
                url=f"{_COCO}/zips/train2017.zip",
                size=19_336_861_798,
                sha256="69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
                growth=1.02,
            ),
        ),
        outputs={"train2017": "train2017"},
        counts={"train2017": 118_287},
    ),
)
LVIS_ANNOTATIONS = (
    Part(
        archives=(Archive(url=f"{_LVIS}/lvis_v1_val.json.zip", size=64_026_968, sha256=None, growth=3.2),),
        outputs={"lvis_v1_val.json": "annotations/lvis_v1_val.json"},
    ),
    Part(
        archives=(
            Archive(
                url=f"{_LVIS}/lvis_v1_train.json.zip",
                size=350_264_821,
                sha256="334a4caa374030a7817cf050364525e910f7960f9b6968cef47cffbf3893f8ba",
                growth=3.2,
            ),
        ),
        outputs={"lvis_v1_train.json": "annotations/lvis_v1_train.json"},
    ),
)
VOC = (
    Part(
        archives=(
            Archive(
                url=f"{_VOC}/voc2007/VOCtrainval_06-Nov-2007.tar",
                size=460_032_000,
                sha256="7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508",
            ),
            Archive(
                url=f"{_VOC}/voc2007/VOCtest_06-Nov-2007.tar",
                size=451_020_800,
                sha256="6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892",
            ),
        ),
        outputs={"VOCdevkit/VOC2007": "VOC2007"},
        counts={"VOC2007/Annotations": 9_963, "VOC2007/JPEGImages": 9_963},
    ),
    Part(
        archives=(
            Archive(
                url=f"{_VOC}/voc2012/VOCtrainval_11-May-2012.tar",
                size=1_999_639_040,
                sha256="e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
            ),
        ),
        outputs={"VOCdevkit/VOC2012": "VOC2012"},
        counts={"VOC2012/Annotations": 17_125, "VOC2012/JPEGImages": 17_125},
    ),
)


@dataclass(frozen=True)
class Size:
    """Number of images in both splits of a published data set, as this project uses them, and number of classes."""

    train_images: int
    val_images: int
    classes: int


# Parts of each published data set, by the configuration entry for their folder.
PUBLISHED: Mapping[str, Mapping[str, tuple[Part, ...]]] = {
    "coco": {"root": (COCO_ANNOTATIONS, *COCO_IMAGES)},
    "lvis": {"root": LVIS_ANNOTATIONS, "images": COCO_IMAGES},
    "voc": {"root": VOC},
}
# VOC's 07+12 trainval has 5,011 + 11,540 images. The photographs are those of docs/photographs.md; of two folds, the first.
SIZES: Mapping[str, Size] = {
    "coco": Size(train_images=118_287, val_images=5_000, classes=80),
    "lvis": Size(train_images=100_170, val_images=19_809, classes=1_203),
    "voc": Size(train_images=16_551, val_images=4_952, classes=20),
    "bccd": Size(train_images=205, val_images=87, classes=3),
    "ccp": Size(train_images=502, val_images=502, classes=54),
    "chula": Size(train_images=325, val_images=296, classes=13),
    "foda": Size(train_images=2_089, val_images=1_112, classes=31),
    "trashcan": Size(train_images=1_091, val_images=397, classes=22),
    "trashcan_frames": Size(train_images=1_187, val_images=301, classes=22),
}
