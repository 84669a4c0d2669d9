"""vLLM against Hugging Face on the same checkpoints, and what vLLM does with a checkpoint that is not right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill.miniature.items import make_item
from rope_gain import RopeGainConfig, attach, fold, gain_modules, load_pretrained, save_pretrained

pytestmark = pytest.mark.engine

WORKER = Path(__file__).with_name("engine_worker.py")
IMAGES = (1, 3, 8)
MAX_TOKENS = 8
# Largest difference of a token's log-probability, float32, that the two engines may show.
TOLERANCE = 1e-3

CONFIGS = {
    "stock": None,
    "static": RopeGainConfig(granularity="layer_frequency", target="query_key", position="static"),
    "log": RopeGainConfig(granularity="layer_frequency", target="query", reference_length=16),
    "per_head": RopeGainConfig(granularity="layer_head_frequency", target="query_key", reference_length=16),
}
GAINED = [name for name in CONFIGS if name != "stock"]
PARITY_RUNS = {
    f"{name}-{mode}": {"checkpoint": name, "compiled": mode == "compiled"}
    for mode in ("eager", "compiled")
    for name in (CONFIGS if mode == "eager" else GAINED)
}
MISSING = "model.language_model.layers.1.self_attn.rope_gain.key_b"
STOCK_CLASS = {"architectures": ["Qwen2_5_VLForConditionalGeneration"]}


@pytest.fixture(scope="module")
def items():
    return [make_item(number, number, "open") for number in IMAGES]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, make_model, randomize, processor):
    """Folders by name: the same weights with each kind of gain, one that lacks a gain tensor, and one folded."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name, config in CONFIGS.items():
        model = make_model()
        if config is not None:
            attach(model, config)
            randomize(model)
        save_pretrained(model, root / name)
        processor.save_pretrained(root / name)
    save_pretrained(load_pretrained(root / "per_head"), root / "incomplete")
    processor.save_pretrained(root / "incomplete")
    stored = load_file(root / "incomplete" / "laid.safetensors")
    del stored[MISSING]
    save_file(stored, root / "incomplete" / "laid.safetensors", metadata={"format": "pt"})
    folded = load_pretrained(root / "static")
    fold(folded)
    save_pretrained(folded, root / "folded")
    processor.save_pretrained(root / "folded")
    return root


@pytest.fixture(scope="module")
def run_worker(tmp_path_factory, checkpoints, items, processor):
    """Starts one vLLM process for all the runs, since its imports take longer than an engine."""
    folder = tmp_path_factory.mktemp("engine")
    prompts = []
    for item in items:
        paths = [folder / f"{len(item.images)}-{place}.png" for place in range(len(item.images))]
        for path, image in zip(paths, item.images, strict=True):
            image.save(path)
        text = processor.apply_chat_template(item.messages(), add_generation_prompt=True)
        prompts.append({"text": text, "images": [str(path) for path in paths]})

    def run(runs, **environment):
        runs = {
            name: {"folder": str(checkpoints / run["checkpoint"]), "compiled": run.get("compiled", False)}
            | {"hf_overrides": run.get("hf_overrides", {})}
            for name, run in runs.items()
        }
        job, result, log = (folder / f"{len(runs)}-runs.{kind}" for kind in ("job", "result", "log"))
        job.write_text(json.dumps({"prompts": prompts, "max_tokens": MAX_TOKENS, "runs": runs}))
        settings = {
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            # Its own, so that compiled code is never that of an earlier source.
            "VLLM_CACHE_ROOT": str(folder / "cache"),
        }
        with log.open("w") as output:
            subprocess.run(
                [sys.executable, WORKER, job, result],
                env=os.environ | settings | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=True,
            )
        return json.loads(result.read_text())

    return run


@pytest.fixture(scope="module")
def engine_results(run_worker):
    refused = {
        "incomplete": {"checkpoint": "incomplete"},
        "forced_stock": {"checkpoint": "per_head", "hf_overrides": STOCK_CLASS},
    }
    return run_worker(PARITY_RUNS | refused)


@pytest.fixture(scope="module")
def results_without_plug_in(run_worker):
    runs = {"unknown": {"checkpoint": "log"}, "folded": {"checkpoint": "folded"}}
    return run_worker(runs, VLLM_PLUGINS="laid_wheel_guard")


@torch.no_grad()
def hugging_face(model, processor, items):
    """What `engine_worker.answer` returns, from transformers."""
    results = []
    for item in items:
        inputs = processor.apply_chat_template(
            item.messages(), tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        prompt_ids = inputs["input_ids"][0]
        logprobs = model(**inputs).logits[0, :-1].log_softmax(-1)
        generated = model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=MAX_TOKENS,
            min_new_tokens=MAX_TOKENS,
            return_dict_in_generate=True,
            output_logits=True,
        )
        tokens = generated.sequences[0, len(prompt_ids) :]
        token_logprobs = torch.cat(generated.logits).log_softmax(-1)
        results.append(
            {
                "prompt_ids": prompt_ids.tolist(),
                "prompt_logprobs": logprobs.gather(1, prompt_ids[1:, None])[:, 0].tolist(),
                "tokens": tokens.tolist(),
                "logprobs": token_logprobs.gather(1, tokens[:, None])[:, 0].tolist(),
            }
        )
    return results


def largest_difference(found, expected, key):
    return max(
        abs(a - b)
        for mine, other in zip(found, expected, strict=True)
        for a, b in zip(mine[key], other[key], strict=True)
    )


def assert_agreement(name, found, expected):
    """Prints what `pytest -s` shows, and checks it."""
    difference = largest_difference(found, expected, "prompt_logprobs")
    print(f"{name}: largest difference of prompt log-probabilities {difference:.1e}")
    assert [result["prompt_ids"] for result in found] == [result["prompt_ids"] for result in expected]
    assert difference <= TOLERANCE
    assert [result["tokens"] for result in found] == [result["tokens"] for result in expected]
    assert largest_difference(found, expected, "logprobs") <= TOLERANCE


@pytest.mark.parametrize("run", PARITY_RUNS)
def test_vllm_agrees_with_hugging_face(engine_results, checkpoints, processor, items, run):
    expected = hugging_face(load_pretrained(checkpoints / PARITY_RUNS[run]["checkpoint"]), processor, items)
    found = engine_results[run]

    assert_agreement(run, found, expected)


@pytest.mark.parametrize("name", GAINED)
def test_ignoring_the_gains_would_show(engine_results, checkpoints, processor, items, name):
    model = load_pretrained(checkpoints / name)
    with torch.no_grad():
        for gain in gain_modules(model).values():
            for parameter in gain.parameters():
                parameter.zero_()

    ignoring = hugging_face(model, processor, items)

    difference = largest_difference(engine_results[f"{name}-eager"], ignoring, "prompt_logprobs")
    print(f"{name}, gains ignored: largest difference of prompt log-probabilities {difference:.2f}")
    assert difference > 100 * TOLERANCE


def test_a_checkpoint_that_lacks_a_gain_is_refused(engine_results):
    assert (
        "no weights for language_model.model.layers.1.self_attn.rotary_emb.key_b"
        in (engine_results["incomplete"]["error"])
    )


def test_the_stock_class_refuses_the_gains(engine_results):
    assert "no module or parameter named 'layers.0.self_attn.rope_gain'" in (engine_results["forced_stock"]["error"])


def test_without_the_plug_in_the_architecture_is_refused(results_without_plug_in):
    error = results_without_plug_in["unknown"]["error"]
    assert "LAidQwen2_5_VLForConditionalGeneration" in error
    assert "not supported" in error


def test_a_folded_checkpoint_needs_no_plug_in(results_without_plug_in, checkpoints, processor, items):
    unfolded = hugging_face(load_pretrained(checkpoints / "static"), processor, items)
    assert_agreement("static, folded", results_without_plug_in["folded"], unfolded)
