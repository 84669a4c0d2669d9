"""What a sample is to a model: the key under which its signals are recorded."""

import hashlib
from dataclasses import asdict, dataclass

from torch import Tensor

from distill.data.batch import Batch


@dataclass(frozen=True, kw_only=True)
class SampleContent:
    """Digests of one sample's inputs, without padding."""

    tokens: str
    """Token ids, and which of them are the answer's."""
    positions: str
    images: str
    """Pixels before preprocessing, and grids."""

    @property
    def key(self) -> str:
        """The same for two samples exactly if a teacher gives the same signals for both."""
        return _digest(self.tokens.encode(), self.positions.encode(), self.images.encode())

    def differing(self, other: "SampleContent") -> list[str]:
        """Names of the parts that differ."""
        return [name for name, value in asdict(self).items() if value != getattr(other, name)]


def sample_contents(batch: Batch) -> list[SampleContent]:
    """One entry per sample of the batch, whatever it is batched and padded with.

    Raises:
        ValueError: images that touch, so that the tokens do not tell which sample each belongs to.
    """
    contents: list[SampleContent] = []
    first_image = 0
    for index in range(len(batch.names)):
        is_token_T = batch.is_token_BT[index]
        num_images = int(batch.images_before_BT[index][is_token_T].max())
        images = batch.images[first_image : first_image + num_images]
        first_image += num_images
        contents.append(
            SampleContent(
                tokens=_digest(
                    _bytes(batch.input_ids_BT[index][is_token_T]), _bytes(batch.answer_BT[index][is_token_T])
                ),
                positions=_digest(_bytes(batch.position_ids_3BT[:, index][:, is_token_T])),
                images=_digest(*(part for image in images for part in (image.key, _bytes(image.grid_3)))),
            )
        )
    if first_image != len(batch.images):
        raise ValueError(f"{batch.names[0]}: {first_image} images by the tokens, expected {len(batch.images)}")
    return contents


def _bytes(values: Tensor) -> bytes:
    return values.long().cpu().numpy().tobytes()


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        # With its length, so that no two lists of parts are the same bytes.
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
