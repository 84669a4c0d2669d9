"""The schema of a training recipe: everything `distill train` can be told, in one file."""

from dataclasses import dataclass
from typing import Literal

from distill.checks import check_above, check_at_least, check_not_empty
from distill.losses.kinds import DistanceKind, MatchingKernel, RowKind
from distill.schedule import GammaSchedule
from rope_gain import RopeGainConfig

Tracker = Literal["tensorboard", "wandb", "trackio"]
Quantization = Literal["bitsandbytes_4bit", "bitsandbytes_8bit", "torchao_int8", "torchao_float8"]
AttentionKind = Literal["sdpa", "flash_attention_2", "flex_attention"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A checkpoint to load."""

    path: str
    """A folder, a Hub name, or `miniature:base` and `miniature:teacher` for the committed miniature models."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_tiles: int | None = None
    """Tiles that InternVL cuts an image into at most, the thumbnail of a cut image aside; by default as many as the
    checkpoint says, 12. With 1 an image is one tile, so that many images fit into the window. The student keeps it."""

    def __post_init__(self) -> None:
        if self.max_tiles is not None:
            check_at_least("max_tiles", self.max_tiles, 1)


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(ModelConfig):
    """The model to learn from, live or recorded."""

    quantization: Quantization | None = None
    """Keeps its linear layers but the head in fewer bits: NF4 with double quantization, LLM.int8(), or int8 or float8
    weights alone. Needs the package that it is named after. The student's weights are never quantised."""
    device: str | None = None
    """Where a live teacher runs: `cpu`, `cuda`, `cuda:1`; by default where the student is, which its signals are moved
    to. Each process has a teacher of its own, so with several of them a number is refused: all would share one GPU."""
    recording: str | None = None
    """A folder that `distill record` made: the signals come from there, and the teacher need not be on this machine."""


@dataclass(frozen=True, kw_only=True)
class LayerPair:
    """A student layer and the teacher layer it follows; negative numbers count from the last layer."""

    student: int = -1
    teacher: int = -1


@dataclass(frozen=True, kw_only=True)
class HeadPair:
    """A student query head and the teacher query head that it follows."""

    student: int
    teacher: int

    def __post_init__(self) -> None:
        check_at_least("student", self.student, 0)
        check_at_least("teacher", self.teacher, 0)


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """Q/K alignment; layers and linear head weights as in the paper, the rest is ours."""

    weight: float = 1.0
    """Share inside the LAid loss; 0 leaves the term out."""
    layers: tuple[LayerPair, ...] = (LayerPair(),)
    rows: RowKind = "all"
    """`all` tokens, the `question` (every row after the last image), or the `answer` (rows that predict it)."""

    def __post_init__(self) -> None:
        check_at_least("weight", self.weight, 0)
        check_not_empty("layers", self.layers)


@dataclass(frozen=True, kw_only=True)
class MatchingConfig:
    """Progressive distance-weighted attention matching: the tilt (1 + Δ/Δ0)^γ; all defaults are ours."""

    weight: float = 1.0
    """Share inside the LAid loss; 0 leaves the term out."""
    layers: tuple[LayerPair, ...] = (LayerPair(),)
    rows: RowKind = "all"
    """`all` tokens, the `question` (every row after the last image), or the `answer` (rows that predict it)."""
    max_rows: int | None = None
    """At most so many of these rows of each sample, drawn anew at every step; null takes all."""
    distance: DistanceKind = "image"
    """Δ in tokens, in M-RoPE positions, or in images."""
    reference_distance: float = 1.0
    """Δ0, in the unit of `distance`."""
    gamma_max: float = 1.0
    schedule: GammaSchedule = "linear"
    temperature: float = 1.0
    """Divides both models' attention logits before the tilt, and its square multiplies the loss, as in logit
    distillation: the higher, the more it is the logits that are matched, and the less where the largest of them is."""
    mixing: Literal["softmax", "none"] = "softmax"
    """`softmax` learns which teacher heads a student head follows; `none` pairs them one to one."""
    heads: tuple[HeadPair, ...] | None = None
    """With `mixing: none`, the only heads that are matched, in each pair of layers, such as the retrieval heads that
    `distill spectrum` names; null: all of them."""
    chunk_mib: int = 8
    """Size of one attention map of the rows that are in memory at a time; the loss needs about four of them."""
    kernel: MatchingKernel = "auto"
    """What computes it: `torch` or `triton`, for a GPU; `auto` tries the latter there, and takes it if it is right."""

    def __post_init__(self) -> None:
        check_at_least("weight", self.weight, 0)
        check_at_least("gamma_max", self.gamma_max, 0)
        check_above("reference_distance", self.reference_distance, 0)
        check_above("temperature", self.temperature, 0)
        check_at_least("chunk_mib", self.chunk_mib, 1)
        if self.max_rows is not None:
            check_at_least("max_rows", self.max_rows, 1)
        check_not_empty("layers", self.layers)
        if self.heads is not None:
            check_not_empty("heads", self.heads)
            if self.mixing != "none":
                raise ValueError(f"mixing: {self.mixing!r} with heads, expected 'none': these are paired one to one")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """L = lambda_laid·(alignment + matching) + lambda_kl·KL(temperature) + lambda_sft·SFT, as in the paper."""

    lambda_laid: float = 1.0
    lambda_kl: float = 1.0
    lambda_sft: float = 1.0
    temperature: float = 2.0
    alignment: AlignmentConfig = AlignmentConfig()
    matching: MatchingConfig = MatchingConfig()

    def __post_init__(self) -> None:
        for name in ("lambda_laid", "lambda_kl", "lambda_sft"):
            check_at_least(name, getattr(self, name), 0)
        check_above("temperature", self.temperature, 0)
        if self.lambda_laid + self.lambda_kl + self.lambda_sft == 0:
            raise ValueError("lambda_sft: 0.0, expected at least one lambda above 0")

    @property
    def alignment_weight(self) -> float:
        """Weight of the Q/K alignment in the whole loss."""
        return self.lambda_laid * self.alignment.weight

    @property
    def matching_weight(self) -> float:
        """Weight of the attention matching in the whole loss."""
        return self.lambda_laid * self.matching.weight

    @property
    def needs_teacher(self) -> bool:
        """Whether any term looks at a teacher."""
        return self.alignment_weight + self.matching_weight + self.lambda_kl > 0


@dataclass(frozen=True, kw_only=True)
class SizeRange:
    """Haystacks of `least` to `most` images, drawn with this weight among the ranges, uniformly inside."""

    least: int
    most: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_at_least("least", self.least, 1)
        check_at_least("most", self.most, self.least)
        check_above("weight", self.weight, 0)


@dataclass(frozen=True, kw_only=True)
class MiniatureData:
    """Haystacks of coloured shapes."""

    sizes: tuple[SizeRange, ...]
    """One size is drawn per step, so that a step's samples are equally long."""
    open_share: float = 1.0
    """Share of open questions; the others are yes or no."""
    renderings: int = 8
    """How often each pair of objects is drawn; haystacks are made of these images, as of a photo collection."""
    distinct_per_size: int | None = None
    """How many different samples there are of each number of images, met again and again; without it, endless."""

    def __post_init__(self) -> None:
        check_not_empty("sizes", self.sizes)
        check_at_least("renderings", self.renderings, 1)
        if self.distinct_per_size is not None:
            check_at_least("distinct_per_size", self.distinct_per_size, 1)
        if not 0 <= self.open_share <= 1:
            raise ValueError(f"open_share: {self.open_share}, expected a share from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class JsonlData:
    """A file of OpenAI messages, one sample a line: {"messages": [...]}, the last message being the answer."""

    path: str
    image_folder: str | None = None
    """Where relative image paths start; by default, the file's folder."""


@dataclass(frozen=True, kw_only=True)
class LlavaData:
    """LLaVA or ShareGPT conversations, as a JSON list or one a line; <image> stands for the next image."""

    path: str
    image_folder: str | None = None
    """Where relative image paths start; by default, the file's folder."""


@dataclass(frozen=True, kw_only=True)
class VisualHaystacksData:
    """Questions in the form of Visual Haystacks (arXiv 2407.13766), with their COCO images."""

    path: str
    coco_folder: str
    """The folder with train2017/ in it."""
    allow_evaluation_images: bool = False
    """Train on val2017 and test2017 too, which the official files consist of: the student's score is then worthless."""


@dataclass(frozen=True, kw_only=True)
class HuggingFaceData:
    """A dataset with TRL's columns `messages` and `images`; needs the package `datasets`."""

    path: str
    """A folder, as `save_to_disk` or a download leaves it, or a name on the Hub."""
    split: str = "train"


@dataclass(frozen=True, kw_only=True)
class WebDatasetData:
    """Plain tar shards whose samples are a .json, with messages or conversations, and the images."""

    shards: tuple[str, ...]
    """Paths or patterns such as data/train-*.tar; the files of a pattern are taken in the order of their names."""

    def __post_init__(self) -> None:
        check_not_empty("shards", self.shards)


@dataclass(frozen=True, kw_only=True)
class ImagesConfig:
    """Limits on every image of every source but the miniature."""

    max_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000
    """By the header: an image that says more is not decoded."""
    url_hosts: tuple[str, ...] = ()
    """Hosts that http(s) URLs may name, such as images.cocodataset.org; none by default."""
    url_cache: str | None = None
    """Folder that keeps what was fetched, so that no image is fetched twice and a resumed run sees the same ones."""
    url_seconds: float = 30.0
    """For one image, redirects included."""

    def __post_init__(self) -> None:
        check_at_least("max_bytes", self.max_bytes, 1)
        check_at_least("max_pixels", self.max_pixels, 1)
        check_above("url_seconds", self.url_seconds, 0)
        if (self.url_cache is None) == bool(self.url_hosts):
            raise ValueError("url_cache: expected a folder together with url_hosts, and none without them")


@dataclass(frozen=True, kw_only=True)
class StretchConfig:
    """Gaps between the positions of a sample's images, so that short samples train the distances of long ones."""

    to_position: int
    """The last position that a sample may reach; each draws its own, from where it would end to here."""
    share: float = 0.8
    """Of the samples that are stretched; the others keep their positions."""

    def __post_init__(self) -> None:
        check_at_least("to_position", self.to_position, 1)
        if not 0 <= self.share <= 1:
            raise ValueError(f"share: {self.share}, expected a share from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Exactly one source, and how much of it makes a step."""

    tokens_per_step: int
    """Samples of about equal length fill a step up to this many prompt and answer tokens."""
    max_samples_per_step: int = 64
    mix_lengths: bool = False
    """Samples of any length, in random order, fill a step; needs `train.packing`, which pads none to the longest."""
    on_bad_sample: Literal["fatal", "skip"] = "fatal"
    """A sample that is malformed, too long or without its images ends the run, or is left out, reported and counted."""
    max_tokens_per_sample: int | None = None
    """Longer samples are bad ones; by default, longer than the student's own window."""
    images: ImagesConfig = ImagesConfig()
    stretch: StretchConfig | None = None
    """Ours; null leaves the positions as the models would have them."""
    miniature: MiniatureData | None = None
    jsonl: JsonlData | None = None
    llava: LlavaData | None = None
    visual_haystacks: VisualHaystacksData | None = None
    hugging_face: HuggingFaceData | None = None
    webdataset: WebDatasetData | None = None

    def __post_init__(self) -> None:
        check_at_least("tokens_per_step", self.tokens_per_step, 1)
        check_at_least("max_samples_per_step", self.max_samples_per_step, 1)
        if self.max_tokens_per_sample is not None:
            check_at_least("max_tokens_per_sample", self.max_tokens_per_sample, 1)
        sources = ("miniature", "jsonl", "llava", "visual_haystacks", "hugging_face", "webdataset")
        given = [name for name in sources if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"{given[-1] if given else sources[0]}: {len(given)} sources, "
                f"expected exactly one of the blocks {', '.join(sources)}"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """AdamW with linear warm-up and a cosine to zero."""

    steps: int
    seed: int = 0
    model_lr: float = 1e-5
    gain_lr: float = 1e-4
    mixing_lr: float = 1e-4
    warmup_steps: int = 0
    weight_decay: float = 0.01
    """On matrices of the model only: not on norms, biases, gains or mixing weights."""
    max_grad_norm: float = 1.0
    freeze_vision: bool = True
    """With a frozen tower, the features of an image that comes again are taken from a cache."""
    feature_cache_mib: int = 512
    """Size of that cache, for each model."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    mixed_precision: Literal["no", "bf16"] = "no"
    """`bf16` computes in bfloat16 and keeps float32 weights, if the student is loaded in float32."""
    gradient_checkpointing: bool = False
    """Computes each decoder layer again in the backward pass in place of keeping what is inside it."""
    micro_batches: int = 1
    """Parts that each process cuts its samples of a step into, one after the other, for the sake of memory; the step's
    gradient is that of the samples in one piece."""
    packing: bool = False
    """Lays the samples of a part one after the other in one row, each attending only to itself, in place of padding
    them to the longest; both models compute each token once and no padding."""
    attention: AttentionKind = "sdpa"
    """How both models' decoders attend: PyTorch's SDPA, the package flash-attn, or FlexAttention; the last two on GPUs
    only."""
    save_every: int = 100
    """Steps between saved states."""
    trackers: tuple[Tracker, ...] = ("tensorboard",)
    """Where the losses go beside log.jsonl; TensorBoard's files are in the output folder."""

    def __post_init__(self) -> None:
        for name, least in (
            ("steps", 1),
            ("seed", 0),
            ("warmup_steps", 0),
            ("feature_cache_mib", 0),
            ("save_every", 1),
            ("micro_batches", 1),
        ):
            check_at_least(name, getattr(self, name), least)
        for name in ("model_lr", "gain_lr", "mixing_lr", "weight_decay"):
            check_at_least(name, getattr(self, name), 0)
        check_above("max_grad_norm", self.max_grad_norm, 0)


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters on the decoder in place of its weights, by PEFT; merged into the weights at the end."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Names of the decoder's linear layers that get an adapter."""

    def __post_init__(self) -> None:
        check_at_least("rank", self.rank, 1)
        check_above("alpha", self.alpha, 0)
        check_not_empty("targets", self.targets)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout}, expected a share from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run."""

    output: str
    """Folder of the run: log.jsonl, state.pt while it runs, checkpoint/ at the end."""
    student: ModelConfig
    teacher: TeacherConfig | None = None
    gain: RopeGainConfig | None = None
    """The learnable response gain; null trains the student without one."""
    lora: LoraConfig | None = None
    """Adapters to train in place of the student's weights; null trains all its weights."""
    loss: LossConfig = LossConfig()
    data: DataConfig
    train: TrainConfig

    def __post_init__(self) -> None:
        if self.loss.needs_teacher and self.teacher is None:
            raise ValueError("teacher: missing, expected a model: loss.lambda_laid or loss.lambda_kl is above 0")
        if not self.loss.needs_teacher and self.teacher is not None:
            raise ValueError("teacher: given, expected none: no term of the loss looks at it")
        if self.data.mix_lengths and not self.train.packing:
            raise ValueError(
                "data.mix_lengths: true without train.packing, expected both: padded to its longest sample, a step "
                "would be many times data.tokens_per_step"
            )
        if self.train.attention == "flash_attention_2":
            self._check_half_precision()

    def _check_half_precision(self) -> None:
        needs = "expected 'bfloat16': train.attention flash_attention_2 knows no float32"
        if self.student.dtype == "float32" and self.train.mixed_precision == "no":
            raise ValueError(f"train.mixed_precision: 'no' with a float32 student, {needs.replace('bfloat16', 'bf16')}")
        if self.teacher is not None and self.teacher.recording is None and self.teacher.dtype == "float32":
            raise ValueError(f"teacher.dtype: 'float32', {needs}")
