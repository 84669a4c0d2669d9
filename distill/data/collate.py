"""Turns samples into a batch with the model's own processor and position ids."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from distill.cache import ByteCache
from distill.data.bad_samples import BadSampleError
from distill.data.batch import Batch
from distill.data.patches import Patches, PatchMaker
from distill.data.sample import Sample
from distill.data.stretch import stretched
from distill.data.videos import not_supported
from distill.families import processor_family
from distill.families.family import RopeIndex
from distill.recipe import StretchConfig

_PATCH_CACHE_BYTES = 256 * 2**20
_POSITION_CACHE_BYTES = 32 * 2**20


@dataclass(frozen=True, kw_only=True)
class EncodedSample:
    """One sample's tokens, before padding."""

    name: str
    input_ids_T: Tensor
    token_types_T: Tensor
    """1 on image tokens, 0 on text."""
    num_prompt_tokens: int
    images: tuple[Patches, ...]


class Collator:
    """Applies the chat template, expands image placeholders and appends the answer.

    It gives the token ids of the processor's own `__call__`, but preprocesses each distinct image only once.
    """

    def __init__(
        self, processor: Any, rope_index: RopeIndex, *, is_packed: bool = False, stretch: StretchConfig | None = None
    ) -> None:
        """Takes a processor and the `rope_index` of the family of the model that the batches are for.

        Args:
            is_packed: whether models are to run a batch's samples in one row, without padding.
            stretch: gaps between the images' positions, drawn by the sample's name; none by default.

        Raises:
            ValueError: the processor is of a family that cannot be distilled.
        """
        self._processor = processor
        self._rope_index = rope_index
        self._is_packed = is_packed
        self._stretch = stretch
        self._make_patches = PatchMaker(
            functools.partial(processor_family(processor).preprocess, processor), _PATCH_CACHE_BYTES
        )
        self._positions: ByteCache[tuple[bytes, bytes], Tensor] = ByteCache(_POSITION_CACHE_BYTES)

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Encodes and pads the samples.

        Raises:
            BadSampleError: a sample's images and placeholders differ in number, or it has a placeholder of a video; the
                message names the sample.
        """
        encoded = [self.encode(sample) for sample in samples]
        lengths_B = torch.tensor([len(each.input_ids_T) for each in encoded])
        tokens_T = torch.arange(int(lengths_B.max()))
        is_token_BT = tokens_T < lengths_B[:, None]
        starts_B = torch.tensor([each.num_prompt_tokens for each in encoded])
        types_BT = _padded([each.token_types_T for each in encoded])
        # An image begins where the type turns to 1.
        begins_BT = types_BT.diff(dim=1, prepend=torch.zeros_like(types_BT[:, :1])) == 1
        images_after_BT = types_BT.flip(1).cumsum(dim=1).flip(1)
        return Batch(
            names=tuple(each.name for each in encoded),
            input_ids_BT=_padded([each.input_ids_T for each in encoded], self._processor.tokenizer.pad_token_id),
            is_token_BT=is_token_BT,
            position_ids_3BT=_padded([self._position_ids(each).T for each in encoded]).permute(2, 0, 1).contiguous(),
            images_before_BT=begins_BT.cumsum(dim=1),
            question_BT=is_token_BT & (images_after_BT == 0),
            # The row before a token predicts it.
            answer_BT=(tokens_T >= starts_B[:, None] - 1) & (tokens_T < lengths_B[:, None] - 1),
            image_token_id=self._processor.image_token_id,
            images=tuple(patches for each in encoded for patches in each.images),
            is_packed=self._is_packed,
        )

    def encode(self, sample: Sample) -> EncodedSample:
        """Tokens of the prompt, the answer and the token that ends the turn."""
        prompt = self._prompt(sample)
        images = self._make_patches(sample.images)
        placeholders = [image.placeholder for image in images]
        (prompt,), _ = self._processor.get_text_with_replacements([prompt], placeholders)
        tokenizer = self._processor.tokenizer
        prompt_ids = tokenizer(prompt)["input_ids"]
        answer_ids = self._answer_ids(sample)
        input_ids_T = torch.tensor([*prompt_ids, *answer_ids])
        return EncodedSample(
            name=sample.name,
            input_ids_T=input_ids_T,
            token_types_T=(input_ids_T == self._processor.image_token_id).long(),
            num_prompt_tokens=len(prompt_ids),
            images=tuple(images),
        )

    def count_tokens(self, sample: Sample) -> int:
        """Tokens of the prompt and the answer together, from the sizes of the images: none is preprocessed."""
        prompt_ids = self._processor.tokenizer(self._prompt(sample))["input_ids"]
        sizes = [(image.height, image.width) for image in sample.images]
        # The processor's own count, which vLLM relies on too.
        counts = self._processor._get_num_multimodal_tokens(image_sizes=sizes)
        num_image_tokens: int = sum(counts["num_image_tokens"]) if sizes else 0
        return len(prompt_ids) - len(sizes) + num_image_tokens + len(self._answer_ids(sample))

    def _prompt(self, sample: Sample) -> str:
        """The prompt with one placeholder for each image."""
        messages = list(sample.messages)
        prompt: str = self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        if self._processor.video_token in prompt:
            raise BadSampleError("video", f"{sample.name}: {not_supported(self._processor.video_token)}")
        num_places, num_images = prompt.count(self._processor.image_token), len(sample.images)
        if num_places != num_images:
            message = f"{sample.name}: {num_places} image placeholders for {num_images} images"
            raise BadSampleError("image count", message)
        return prompt

    def _answer_ids(self, sample: Sample) -> list[int]:
        tokenizer = self._processor.tokenizer
        ids: list[int] = tokenizer(sample.answer + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
        return ids

    def _position_ids(self, sample: EncodedSample) -> Tensor:
        """Positions [3, T], stretched if they are to be."""
        positions_3T = self._natural_position_ids(sample)
        if self._stretch is None:
            return positions_3T
        return stretched(positions_3T, sample.token_types_T, self._stretch, sample.name)

    def _natural_position_ids(self, sample: EncodedSample) -> Tensor:
        """Positions [3, T]; the model's own loop over images is slow, and many samples share their layout."""
        grids = torch.stack([each.grid_3 for each in sample.images]) if sample.images else None
        key = (sample.token_types_T.numpy().tobytes(), b"" if grids is None else grids.numpy().tobytes())
        positions_3T = self._positions.get(key)
        if positions_3T is None:
            positions_31T, _ = self._rope_index(
                sample.input_ids_T[None], mm_token_type_ids=sample.token_types_T[None], image_grid_thw=grids
            )
            positions_3T = positions_31T[:, 0]
            self._positions.put(key, positions_3T, positions_3T.nbytes + len(key[0]) + len(key[1]))
        return positions_3T


def _padded(rows: list[Tensor], value: int = 0) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value)
