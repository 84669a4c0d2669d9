"""The miniature models' tokenizer, image processor and chat template: real ones, made in a second."""

import itertools
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from distill.miniature.objects import OBJECTS
from rope_gain import wheel_guard

if TYPE_CHECKING:
    from transformers import Qwen2_5_VLProcessor

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD)

PATCH_SIZE = 8
MERGE_SIZE = 2
MIN_PIXELS = 32 * 32
MAX_PIXELS = 128 * 128

# Qwen2.5-VL's own template, without its default system prompt and its vision ids.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer() -> Any:
    """A byte-level BPE tokenizer that knows the miniature world's words whole and any other text by its bytes.

    The name of an object is one token: finding an image is what is studied here, not tying a colour to a shape.

    Returns:
        transformers' `PreTrainedTokenizerFast` with Qwen2-VL's special tokens.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_tokens([AddedToken(name, single_word=True, normalized=False) for name in OBJECTS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        image_token=IMAGE_PAD,
        video_token=VIDEO_PAD,
        model_max_length=2048,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def make_processor() -> "Qwen2_5_VLProcessor":
    """The processor every miniature model shares: same tokens, same image sizes, so the teacher fits the student."""
    wheel_guard.install()
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    sizes = {
        "patch_size": PATCH_SIZE,
        "merge_size": MERGE_SIZE,
        "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
    }
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=make_tokenizer(),
        video_processor=Qwen2VLVideoProcessor(**sizes),
        chat_template=CHAT_TEMPLATE,
    )


def _corpus() -> list[str]:
    """Every word of the world in every place it is met: at the start of a line and after a space."""
    questions = [
        "You are given a set of images. Please answer the following question in Yes or No: "
        f"For the image with the {a}, is there a {b}? what else is there?"
        for a, b in itertools.permutations(OBJECTS, 2)
    ]
    answers = [*OBJECTS, "yes", "no"] * len(OBJECTS)
    roles = ["user", "assistant", "system", "\n", ":"] * len(OBJECTS)
    return [*questions, *answers, *roles]
