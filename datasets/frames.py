"""Split videos by frame instead of by video.

A data set of video frames is usually split by video. Its validation images then show unseen scenes, and a class with few
videos is trained on a handful of scenes. The split here puts one frame of every video into validation and the rest into
training, so that all scenes are known. It is a control, not a benchmark.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from datasets.fields import load_json
from datasets.files import atomic_folder
from datasets.locations import DEFAULT_REMEDY, require_file

FEWEST_FRAMES = 3
"""Videos with fewer frames are for training only: they have no frame between two others."""


def generate_frame_split(
    root: Path | str,
    *,
    split: Literal["train", "val"],
    sources: Mapping[str, Path | str],
    remedy: str = DEFAULT_REMEDY,
) -> Path:
    """Write both splits, unless they exist, and return the COCO file of one of them.

    The middle frame of every video is for validation, all others are for training.

    Args:
        root: folder for the splits.
        split: the split to return.
        sources: COCO files with the same categories, by the folder to which their ``file_name`` is relative. In the split,
            ``file_name`` starts with that folder. Images have a field ``video``; their file names sort by time.
        remedy: how to get the files, for the message about a missing one.

    Raises:
        DataError: a file is missing or damaged.
        ValueError: an image does not name its video, an annotation has no image, or the categories of the files differ.
    """
    paths = {folder: Path(path) for folder, path in sources.items()}
    digest = hashlib.sha256()
    for folder, path in paths.items():
        require_file(path, remedy)
        digest.update(folder.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    made = Path(root) / f"frames-{digest.hexdigest()[:12]}"
    if not made.is_dir():
        contents = _split({folder: load_json(path) for folder, path in paths.items()})
        with atomic_folder(made) as temporary:
            for name, content in contents.items():
                (temporary / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return made / f"{split}.json"


def _split(contents: Mapping[str, dict]) -> dict[str, dict]:
    categories = next(iter(contents.values()))["categories"]
    images: list[dict] = []
    annotations: list[dict] = []
    videos: dict[str, list[dict]] = defaultdict(list)
    for folder, content in contents.items():
        if content["categories"] != categories:
            raise ValueError(f"the categories of {folder} differ from those of {next(iter(contents))}")
        # Ids are unique only within a file.
        ids = {}
        for image in content["images"]:
            if "video" not in image:
                raise ValueError(f"image {image.get('id')} of {folder} does not name its video")
            ids[image["id"]] = len(images) + 1
            images.append({**image, "id": ids[image["id"]], "file_name": f"{folder}/{image['file_name']}"})
            videos[image["video"]].append(images[-1])
        for annotation in content["annotations"]:
            if annotation["image_id"] not in ids:
                raise ValueError(f"annotation {annotation.get('id')} of {folder} has an unknown image_id")
            annotations.append(
                {**annotation, "id": len(annotations) + 1, "image_id": ids[annotation["image_id"]]}
            )
    middle = {
        sorted(frames, key=lambda image: image["file_name"])[len(frames) // 2]["id"]
        for frames in videos.values()
        if len(frames) >= FEWEST_FRAMES
    }
    return {
        name: {
            "categories": categories,
            "images": [image for image in images if (image["id"] in middle) == held_out],
            "annotations": [own for own in annotations if (own["image_id"] in middle) == held_out],
        }
        for name, held_out in (("train", False), ("val", True))
    }
