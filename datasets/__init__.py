"""Data sets for object detection: readers, a generated long-tailed set, transforms and loaders.

The package exports everything that a configuration file can construct.  All boxes are (x1, y1, x2, y2) in continuous
pixels; an image spans [0, W] x [0, H].
"""

from datasets.batch import PAD_COLOR, Batch, Polygons, Sample, boxes_in_file, collate
from datasets.coco import read_coco
from datasets.color import ColorJitter
from datasets.dataset import DetectionDataset
from datasets.epoch_plan import EpochPlan, aspect_groups, exposure, repeat_factors
from datasets.errors import DataError, printable
from datasets.frames import generate_frame_split
from datasets.images import read_image, read_image_file
from datasets.index import AnnotationIndex
from datasets.loader import make_eval_loader, make_train_loader
from datasets.lvis import read_lvis
from datasets.shapes import generate_pretraining_shapes, generate_shapes, read_shapes
from datasets.splits import require_usable_splits
from datasets.statistics import ClassStatistics, frequency_groups
from datasets.transforms import CropTransform, EvalResize, FixedTransform, PadOnly, ResizeTransform
from datasets.voc import read_voc
from datasets.yolo import read_yolo

__all__ = [
    "AnnotationIndex",
    "Batch",
    "ClassStatistics",
    "ColorJitter",
    "CropTransform",
    "DataError",
    "DetectionDataset",
    "EpochPlan",
    "EvalResize",
    "FixedTransform",
    "PAD_COLOR",
    "PadOnly",
    "Polygons",
    "ResizeTransform",
    "Sample",
    "aspect_groups",
    "boxes_in_file",
    "collate",
    "exposure",
    "frequency_groups",
    "generate_frame_split",
    "generate_pretraining_shapes",
    "generate_shapes",
    "make_eval_loader",
    "make_train_loader",
    "read_coco",
    "read_image",
    "read_image_file",
    "read_lvis",
    "read_shapes",
    "read_voc",
    "read_yolo",
    "repeat_factors",
    "printable",
    "require_usable_splits",
]
