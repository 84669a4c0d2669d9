"""A LAid checkpoint in every layout that vLLM can take, against Hugging Face on the same checkpoint."""

import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill.miniature.items import make_item
from rope_gain import RopeGainConfig, attach, gain_modules, load_pretrained, save_pretrained
from tests.rope_gain.adapters import merge_adapter, write_adapter
from tests.rope_gain.models import HEAD_SIZE
from tests.rope_gain.quantized import FORMATS, quantize_checkpoint, quantize_model

pytestmark = pytest.mark.engine

WORKER = Path(__file__).with_name("layouts_worker.py")
CONFIG = RopeGainConfig(granularity="layer_head_frequency", target="query_key", reference_length=16)
MAX_TOKENS = 4
# Largest difference of a token's log-probability, float32, that the two engines may show.
TOLERANCE = 1e-3
# Tokens of a step and of a cached block: fewer than a prompt has.
CHUNK, BLOCK = 48, 32

CHUNKED = {"max_num_batched_tokens": CHUNK}
CACHED = {"enable_prefix_caching": True, "block_size": BLOCK}
COMPILED = {"enforce_eager": False}
TENSOR_PARALLEL = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
# In eager mode vLLM's CPU worker leaves out the warm-up, which allocates what the second process receives into, and
# fails at the first step, with stock models too. DYNAMO_TRACE_ONCE is the CPU's mode; this backend starts sooner.
PIPELINE_PARALLEL = {
    "pipeline_parallel_size": 2,
    "distributed_executor_backend": "mp",
    "enforce_eager": False,
    "compilation_config": {"mode": 2, "backend": "eager"},
}

ONE_PROCESS = {
    "chunked": {"engine": CHUNKED},
    "cached": {"engine": CACHED},
    "served": {"engine": CHUNKED | CACHED | COMPILED},
}
TWO_PROCESSES = {
    "tensor_parallel": {"engine": TENSOR_PARALLEL},
    "replicated_heads": {"engine": TENSOR_PARALLEL, "checkpoint": "one_key_value_head"},
    "pipeline_parallel": {"engine": PIPELINE_PARALLEL},
}
LAYOUTS = ONE_PROCESS | TWO_PROCESSES

ADAPTER = {
    "checkpoint": "gained",
    "engine": {"enable_lora": True, "max_lora_rank": 8},
    "requests": [
        {"prompt": "haystack"},
        {"prompt": "haystack", "adapter": "adapter"},
        {"prompt": "interleaved", "adapter": "adapter"},
        {"prompt": "interleaved"},
    ],
}
# The mean's, since a rounded activation between two steps may go either way, which is one step in 16 for float8.
QUANTIZED_TOLERANCE = {"int4": 0.01, "int8": 0.01, "fp8_per_channel": 0.1}
ONLINE = {"quantization": "fp8_per_channel", "dtype": "float16", "quantization_config": {"ignore": ["re:visual.*"]}}
QUANTIZED = {
    "int4": {"checkpoint": "int4", "engine": {"dtype": "float16"}},
    "int8": {"checkpoint": "int8"},
    "fp8_per_channel": {"engine": ONLINE},
}
INCOMPLETE = {
    "int8_incomplete": {"checkpoint": "int8_incomplete"},
    "fp8_incomplete": {"checkpoint": "incomplete", "engine": ONLINE},
}
MISSING = "model.language_model.layers.1.self_attn.rope_gain.key_b"


@pytest.fixture(scope="module")
def conversations():
    """Two that differ after the same six images, and one whose images stand between its words."""
    item = make_item(0, 6, "open")
    sizes = [(64, 48), (32, 32), (96, 64), (48, 80), (64, 64), (32, 96)]
    images = [{"type": "image", "image": image.resize(size)} for image, size in zip(item.images, sizes, strict=True)]
    text = {"type": "text", "text": item.question}
    return {
        "haystack": [{"role": "user", "content": [*images, text]}],
        "sequel": [{"role": "user", "content": [*images, text, text]}],
        "interleaved": [{"role": "user", "content": [text, images[0], text, *images[2:4], text, images[5], text]}],
    }


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, make_model, randomize, processor):
    """Folders by name, all with the gains of `CONFIG`; the adapter's folder is among them."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name, model in {"gained": make_model(), "one_key_value_head": drop_key_value_head(make_model())}.items():
        attach(model, CONFIG)
        randomize(model)
        save_pretrained(model, root / name)
        processor.save_pretrained(root / name)
    save_pretrained(load_pretrained(root / "gained"), root / "incomplete")
    processor.save_pretrained(root / "incomplete")
    for name, layout in FORMATS.items():
        if layout.stored is not None:
            quantize_checkpoint(root / "gained", root / name, layout)
    quantize_checkpoint(root / "gained", root / "int8_incomplete", FORMATS["int8"])
    for name in ("incomplete", "int8_incomplete"):
        stored = load_file(root / name / "laid.safetensors")
        del stored[MISSING]
        save_file(stored, root / name / "laid.safetensors", metadata={"format": "pt"})
    write_adapter(root / "adapter", load_pretrained(root / "gained"))
    return root


def drop_key_value_head(model):
    """The model with the first of its key-value heads for all of the query heads."""
    config = copy.deepcopy(model.config)
    config.text_config.num_key_value_heads = 1
    smaller = type(model)(config).eval()
    smaller.generation_config = model.generation_config
    smaller.load_state_dict(
        {
            name: tensor[:HEAD_SIZE] if "k_proj" in name or "v_proj" in name else tensor
            for name, tensor in model.state_dict().items()
        }
    )
    return smaller


@pytest.fixture(scope="module")
def run_worker(tmp_path_factory, checkpoints, conversations, processor):
    """Starts one vLLM for all the runs, one after the other, since its imports take longer than an engine."""
    folder = tmp_path_factory.mktemp("engine")
    prompts = {}
    for name, messages in conversations.items():
        images = [part["image"] for part in messages[0]["content"] if part["type"] == "image"]
        paths = [folder / f"{name}-{place}.png" for place in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            image.save(path)
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
        prompts[name] = {"text": text, "images": [str(path) for path in paths]}

    def fill(run):
        requests = run.get("requests", [{"prompt": name} for name in conversations])
        return {
            "folder": str(checkpoints / run.get("checkpoint", "gained")),
            "engine": run.get("engine", {}),
            "requests": [
                request | ({"adapter": str(checkpoints / request["adapter"])} if "adapter" in request else {})
                for request in requests
            ],
        }

    def run(runs):
        job, result, log = (folder / f"{next(iter(runs))}.{kind}" for kind in ("job", "result", "log"))
        filled = {name: fill(run) for name, run in runs.items()}
        job.write_text(json.dumps({"prompts": prompts, "max_tokens": MAX_TOKENS, "runs": filled}))
        run_alone([sys.executable, WORKER, job, result], log, VLLM_CACHE_ROOT=str(folder / "cache"))
        return json.loads(result.read_text())

    return run


def run_alone(command, log, **settings):
    """Runs a command in a session of its own and lets no process of it survive, whatever happens here."""
    settings |= {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "0",
    }
    with (
        log.open("w") as output,
        subprocess.Popen(
            command,
            env=os.environ | settings,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            assert process.wait() == 0, log.read_text()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def one_process(run_worker):
    return run_worker(ONE_PROCESS | {"adapter": ADAPTER} | QUANTIZED | INCOMPLETE)


@pytest.fixture(scope="module")
def two_processes(run_worker):
    return run_worker(TWO_PROCESSES)


@pytest.fixture
def answers(request, layout):
    """vLLM's, in the order of the conversations."""
    results = request.getfixturevalue("one_process" if layout in ONE_PROCESS else "two_processes")
    return results[layout]["answers"]


@torch.no_grad()
def hugging_face(model, processor, messages, tokens):
    """What `layouts_worker.answer` returns, from transformers, for the same generated tokens."""
    inputs = processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    prompt_ids = inputs["input_ids"][0]
    generated = torch.tensor([tokens])
    inputs["input_ids"] = torch.cat((inputs["input_ids"], generated), dim=1)
    inputs["attention_mask"] = torch.cat((inputs["attention_mask"], torch.ones_like(generated)), dim=1)
    inputs["mm_token_type_ids"] = torch.cat((inputs["mm_token_type_ids"], torch.zeros_like(generated)), dim=1)
    logprobs = model(**inputs).logits[0].log_softmax(-1)
    return {
        "prompt_ids": prompt_ids.tolist(),
        "prompt_logprobs": logprobs[: len(prompt_ids) - 1].gather(1, prompt_ids[1:, None])[:, 0],
        "logprobs": logprobs[len(prompt_ids) - 1 : -1],
    }


def differences(model, processor, conversations, answers):
    """Of the log-probabilities of the prompts' tokens and of the whole vocabulary at each generated token."""
    found_differences = []
    for messages, found in zip(conversations, answers, strict=True):
        expected = hugging_face(model, processor, messages, found["tokens"])
        assert found["prompt_ids"] == expected["prompt_ids"]
        for key in ("prompt_logprobs", "logprobs"):
            if key in found:
                found_differences.append((torch.tensor(found[key]) - expected[key]).abs().flatten())
    return torch.cat(found_differences)


def largest_difference(*args):
    return differences(*args).max().item()


def mean_difference(*args):
    return differences(*args).mean().item()


@torch.no_grad()
def without_gains(model):
    for gain in gain_modules(model).values():
        for parameter in gain.parameters():
            parameter.zero_()
    return model


def assert_agreement(name, difference, ignoring, tolerance=TOLERANCE):
    """Prints what `pytest -s` shows; `ignoring` is the difference from a model without the gains."""
    print(f"{name}: difference of log-probabilities {difference:.1e}, with the gains ignored {ignoring:.2f}")
    assert difference <= tolerance
    assert ignoring > 10 * tolerance


@pytest.mark.parametrize("layout", LAYOUTS)
def test_vllm_agrees_with_hugging_face(answers, checkpoints, processor, conversations, layout):
    checkpoint = checkpoints / LAYOUTS[layout].get("checkpoint", "gained")
    difference, ignoring = (
        largest_difference(model, processor, conversations.values(), answers)
        for model in (load_pretrained(checkpoint), without_gains(load_pretrained(checkpoint)))
    )
    assert_agreement(layout, difference, ignoring)


@pytest.mark.parametrize("layout", ["chunked", "served"])
def test_prompts_are_cut_into_chunks(answers, processor):
    image = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    cut = set()
    for answer in answers:
        prompt_ids, first = answer["prompt_ids"], answer["num_cached_tokens"]
        chunks = range(first, len(prompt_ids), CHUNK)
        cut |= {(prompt_ids[start - 1], prompt_ids[start]) for start in chunks[1:]}

        assert answer["num_steps"] == len(chunks) + MAX_TOKENS - 1
    assert (image, image) in cut  # somewhere within an image


@pytest.mark.parametrize("layout", ["cached", "served"])
def test_a_shared_prefix_is_read_from_the_cache(answers, processor):
    haystack, sequel, interleaved = answers
    pairs = zip(haystack["prompt_ids"], sequel["prompt_ids"], strict=False)
    num_shared = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    image = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")

    assert sequel["num_cached_tokens"] == num_shared // BLOCK * BLOCK
    assert image in sequel["prompt_ids"][: sequel["num_cached_tokens"]]
    assert haystack["num_cached_tokens"] == interleaved["num_cached_tokens"] == 0


def stored_gains(folder):
    """The checkpoint's gain tensors by the names they have in vLLM."""
    return {
        name.replace("model.language_model", "language_model.model").replace("rope_gain", "rotary_emb"): tensor
        for name, tensor in load_file(folder / "laid.safetensors").items()
        if ".rope_gain." in name
    }


def test_each_process_holds_the_gains_of_its_own_layers(two_processes, checkpoints):
    stored = stored_gains(checkpoints / "gained")
    for layer, process in enumerate(two_processes["pipeline_parallel"]["processes"]):
        other = f"language_model.model.layers.{1 - layer}"
        held = {name: torch.tensor(values) for name, values in process["gains"].items()}

        assert other in process["elsewhere"]
        assert held.keys() == {name for name in stored if not name.startswith(f"{other}.")}
        assert all(torch.equal(values, stored[name]) for name, values in held.items())


@pytest.mark.parametrize("layout", ["tensor_parallel", "replicated_heads"])
def test_each_process_holds_the_gains_of_its_own_heads(two_processes, checkpoints, layout):
    stored = stored_gains(checkpoints / LAYOUTS[layout].get("checkpoint", "gained"))
    first, second = (process["gains"] for process in two_processes[layout]["processes"])

    assert first.keys() == second.keys() == stored.keys()
    for name, tensor in stored.items():
        halves = tensor.chunk(2) if len(tensor) > 1 else (tensor, tensor)
        assert torch.equal(torch.tensor(first[name]), halves[0])
        assert torch.equal(torch.tensor(second[name]), halves[1])


def test_an_adapter_is_applied_before_the_gain(one_process, checkpoints, processor, conversations):
    """With and without it in turn, in one engine."""
    model = load_pretrained(checkpoints / "gained")
    adapted = merge_adapter(load_pretrained(checkpoints / "gained"), checkpoints / "adapter")
    haystack, adapted_haystack, adapted_interleaved, interleaved = one_process["adapter"]["answers"]
    asked = [conversations["haystack"], conversations["interleaved"]]

    plain_difference = largest_difference(model, processor, asked, [haystack, interleaved])
    ignoring_adapter = largest_difference(model, processor, asked, [adapted_haystack, adapted_interleaved])
    difference, ignoring = (
        largest_difference(reference, processor, asked, [adapted_haystack, adapted_interleaved])
        for reference in (adapted, without_gains(copy.deepcopy(adapted)))
    )

    print(f"beside an adapter: largest difference of log-probabilities {plain_difference:.1e}")
    assert_agreement("adapter", difference, ignoring)
    assert plain_difference <= TOLERANCE
    assert ignoring_adapter > 10 * TOLERANCE


@pytest.mark.parametrize("name", FORMATS)
def test_quantised_weights(one_process, checkpoints, processor, conversations, name):
    """Against Hugging Face in float32 with the dequantised weights, and the activations rounded as the kernel does."""
    models = [load_pretrained(checkpoints / "gained"), without_gains(load_pretrained(checkpoints / "gained"))]
    difference, ignoring = (
        mean_difference(
            quantize_model(model, FORMATS[name]), processor, conversations.values(), one_process[name]["answers"]
        )
        for model in models
    )
    assert_agreement(name, difference, ignoring, QUANTIZED_TOLERANCE[name])


@pytest.mark.parametrize("run", INCOMPLETE)
def test_a_quantised_checkpoint_that_lacks_a_gain_is_refused(one_process, run):
    """vLLM's own check for parameters without a weight is off here."""
    assert "layers.1.self_attn.rotary_emb.key_b" in one_process[run]["error"]
