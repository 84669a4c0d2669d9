"""COCO's training images and what is in them; the images that evaluate are refused."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distill.data.json_stream import iter_elements
from distill.data.visual_haystacks import EVALUATION_SPLITS

TRAINING_SPLIT = "train2017"

_EVALUATION_FILES = ("instances_val2017.json", "image_info_test2017.json")


@dataclass(frozen=True, kw_only=True)
class CocoImages:
    """Images that are on disk and annotated, by ascending COCO id; of each only its name and its objects are kept."""

    paths: tuple[str, ...]
    """From the COCO folder."""
    objects: tuple[int, ...]
    """What each image shows, as a set of bits: 1 << index in `names`."""
    names: tuple[str, ...]
    """Names of the objects, by ascending COCO id."""
    left_out: Counter[str]
    """How many images or annotations are not used, by what is wrong with them."""


def read_coco(folder: Path, annotations: Path) -> CocoImages:
    """Reads annotations in the form of instances_train2017.json, a piece at a time, and lists the images in train2017/.

    Raises:
        ValueError: anything in the file, its name or the folder says val2017 or test2017, or no image is left.
        OSError: the file or the folder is missing.
    """
    _refuse_evaluation_file(annotations)
    images: dict[int, str] = {}
    names: dict[int, str] = {}
    objects: dict[int, set[int]] = {}
    for element in iter_elements(annotations):
        if element.key == "images":
            image = element.value
            _refuse_evaluation_image(image, f"{annotations}:{element.line}")
            images[image["id"]] = image["file_name"]
        elif element.key == "categories":
            category = element.value
            names[category["id"]] = category["name"]
        elif element.key == "annotations":
            annotation = element.value
            objects.setdefault(annotation["image_id"], set()).add(annotation["category_id"])
    present = _list_images(folder, images)
    left_out = Counter[str]()
    left_out[f"images that are not in {TRAINING_SPLIT}/"] = sum(name not in present for name in images.values())
    left_out["images without any annotation"] = sum(id not in objects for id in images)
    left_out["images with annotations that the file does not list"] = len(objects.keys() - images.keys())
    used = sorted(id for id, name in images.items() if name in present and id in objects)
    if not used:
        raise ValueError(f"{annotations}: {len(images)} images, expected at least one of {folder / TRAINING_SPLIT}")
    bits = {id: 1 << index for index, id in enumerate(sorted(names))}
    return CocoImages(
        paths=tuple(f"{TRAINING_SPLIT}/{images[id]}" for id in used),
        objects=tuple(sum(bits[category] for category in objects[id]) for id in used),
        names=tuple(names[id] for id in sorted(names)),
        left_out=+left_out,
    )


def _refuse_evaluation_file(annotations: Path) -> None:
    for split in EVALUATION_SPLITS:
        if split in annotations.resolve().name or split in annotations.name:
            raise ValueError(f"{annotations}: annotations of {split}, which evaluates; expected {TRAINING_SPLIT}")


def _refuse_evaluation_image(image: dict[str, str], place: str) -> None:
    """COCO's own files name the split of each image in its URL."""
    url = image.get("coco_url", "")
    for text in (url, image["file_name"]):
        if any(split in text for split in EVALUATION_SPLITS) or (url and f"/{TRAINING_SPLIT}/" not in url):
            raise ValueError(f"{place}: image {text}, expected images of {TRAINING_SPLIT}: the others evaluate")


def _list_images(folder: Path, images: dict[int, str]) -> set[str]:
    """Names of the files in train2017/, after making sure that no other split is behind them."""
    training = folder / TRAINING_SPLIT
    if training.resolve().name in EVALUATION_SPLITS:
        raise ValueError(f"{training}: leads to {training.resolve()}, which evaluates; expected {TRAINING_SPLIT}")
    file_names = set(images.values())
    for id, file_name, source in _evaluation_images(folder):
        if id in images or file_name in file_names:
            raise ValueError(f"{source}: has image {file_name}, which the annotations of {TRAINING_SPLIT} list too")
    return {path.name for path in training.iterdir()}


def _evaluation_images(folder: Path) -> Iterator[tuple[int | None, str, Path]]:
    """Id, file name and source of every evaluation image that the folder knows of."""
    for name in _EVALUATION_FILES:
        path = folder / "annotations" / name
        if path.exists():
            elements = (each.value for each in iter_elements(path) if each.key == "images")
            yield from ((image["id"], image["file_name"], path) for image in elements)
    for split in EVALUATION_SPLITS:
        if (folder / split).is_dir():
            yield from ((None, path.name, folder / split) for path in (folder / split).iterdir())
