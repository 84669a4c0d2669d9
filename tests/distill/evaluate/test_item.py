import base64
import io
from pathlib import Path

import pytest
from PIL import ExifTags, Image

from distill.data.images import ImageReader
from distill.evaluate.item import DrawnPicture, FilePicture, Item
from distill.recipe import ImagesConfig

READER = ImageReader(ImagesConfig())


def gradient(mode: str = "RGB") -> Image.Image:
    return Image.linear_gradient("L").resize((12, 8)).convert(mode)


def decoded(item: Item) -> Image.Image:
    """What a server sees of the item's only image, before it turns it upright and to RGB."""
    [part, _] = item.openai_messages()[0]["content"]
    head, _, payload = part["image_url"]["url"].partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(payload)))
    assert head == f"data:image/{image.format.lower() if image.format else None}"
    return image


def item(picture: DrawnPicture | FilePicture) -> Item:
    parts = (picture, "What is it?")
    return Item(size=1, index=0, parts=parts, answer="a dog", legal_answers=None, needle_index=0)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_file_that_every_server_reads_is_sent_as_it_is(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    gradient().save(path)
    picture = FilePicture(path, READER)
    assert picture.encode()[0] == path.read_bytes()
    assert decoded(item(picture)).convert("RGB").tobytes() == picture.load().tobytes()


def test_another_file_is_sent_as_a_png_of_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "image.bmp"
    gradient().save(path)
    assert decoded(item(FilePicture(path, READER))).format == "PNG"
    assert decoded(item(FilePicture(path, READER))).tobytes() == gradient().tobytes()


def test_a_drawn_image_keeps_its_pixels() -> None:
    assert decoded(item(DrawnPicture(gradient()))).tobytes() == gradient().tobytes()


def test_a_file_is_loaded_upright_and_in_colour(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    gradient("L").save(tmp_path / "turned.png", exif=exif)
    loaded = FilePicture(tmp_path / "turned.png", READER).load()
    assert (loaded.mode, loaded.size) == ("RGB", (8, 12))
    assert loaded.tobytes() == gradient("L").transpose(Image.Transpose.ROTATE_270).convert("RGB").tobytes()


def test_images_are_read_only_when_they_are_needed(tmp_path: Path) -> None:
    asked = item(FilePicture(tmp_path / "missing.jpg", READER))
    assert (asked.num_images, asked.question) == (1, "What is it?")
    for use in (asked.messages, asked.openai_messages):
        with pytest.raises(ValueError, match=r"missing.jpg: no such file"):
            use()
