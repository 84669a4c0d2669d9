"""vLLM against Hugging Face on the same checkpoints, and what vLLM does with a checkpoint that is not right."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rope_gain import RopeGainConfig, attach, fold, gain_modules, load_pretrained, save_pretrained
from rope_gain.families import FAMILIES, find_family
from tests.rope_gain.models import build_tiny, has_images, tiny_messages

pytestmark = pytest.mark.engine

WORKER = Path(__file__).with_name("engine_worker.py")
# vLLM processes one image at a time, and so cuts each into tiles; transformers' LLaVA-OneVision does that to one only.
IMAGES = {family.architecture: (1, 3, 8) for family in FAMILIES} | {"LlavaOnevisionForConditionalGeneration": (1,)}
MAX_TOKENS = 8
# Largest difference of a token's log-probability, float32, that the two engines may show.
TOLERANCE = 1e-3
# Of a layer's query and key, as a share of the largest value.
ROTATION_TOLERANCE = 1e-4

# The paper's family has every kind of gain; the others have what needs most of the engine.
PAPERS = find_family("Qwen2_5_VLForConditionalGeneration")
PER_HEAD = RopeGainConfig(granularity="layer_head_frequency", target="query_key", reference_length=16)
CONFIGS = {
    "stock": None,
    "static": RopeGainConfig(granularity="layer_frequency", target="query_key", position="static"),
    # Beside a stock layer, which shares its graph's code with none.
    "log": RopeGainConfig(granularity="layer_frequency", target="query", reference_length=16, layers=(1,)),
}
CHECKPOINTS = {name: (PAPERS, config) for name, config in CONFIGS.items()} | {
    family.architecture: (family, PER_HEAD) for family in FAMILIES
}
GAINED = [name for name in CHECKPOINTS if name != "stock"]
PARITY_RUNS = {f"{name}-eager": {"checkpoint": name} for name in CHECKPOINTS} | {
    f"{name}-compiled": {"checkpoint": name, "compiled": True} for name in ("log", "Qwen3VLForConditionalGeneration")
}
MISSING = "model.language_model.layers.1.self_attn.rope_gain.key_b"
STOCK_CLASS = {"architectures": [PAPERS.architecture]}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, randomize):
    """Folders by name: each kind of gain, one that lacks a gain tensor, and one folded."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name, (family, config) in CHECKPOINTS.items():
        model, processor = build_tiny(family)
        if config is not None:
            attach(model, config)
            randomize(model)
        save_pretrained(model, root / name)
        processor.save_pretrained(root / name)
    papers_processor = build_tiny(PAPERS)[1]
    save_pretrained(load_pretrained(root / PAPERS.architecture), root / "incomplete")
    papers_processor.save_pretrained(root / "incomplete")
    stored = load_file(root / "incomplete" / "laid.safetensors")
    del stored[MISSING]
    save_file(stored, root / "incomplete" / "laid.safetensors", metadata={"format": "pt"})
    folded = load_pretrained(root / "static")
    fold(folded)
    save_pretrained(folded, root / "folded")
    papers_processor.save_pretrained(root / "folded")
    return root


@pytest.fixture(scope="module")
def prompts_of(tmp_path_factory):
    """The prompts of a family, as the worker takes them: text, and the images' files."""
    folder = tmp_path_factory.mktemp("images")

    def prompts(family):
        processor = build_tiny(family)[1]
        return [make_prompt(processor, number, folder) for number in IMAGES[family.architecture]]

    return prompts


def make_prompt(processor, number, folder):
    messages = tiny_messages(processor, number)
    images = (
        [part["image"] for part in messages[0]["content"] if part["type"] == "image"] if has_images(processor) else []
    )
    paths = [folder / f"{number}-{place}.png" for place in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        image.save(path)
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return {"text": text, "images": [str(path) for path in paths]}


@pytest.fixture(scope="module")
def run_worker(tmp_path_factory, checkpoints, prompts_of):
    """Starts one vLLM process for all the runs, since its imports take longer than an engine."""
    folder = tmp_path_factory.mktemp("engine")

    def run(runs, **environment):
        runs = {
            name: {
                "folder": str(checkpoints / run["checkpoint"]),
                "prompts": prompts_of(CHECKPOINTS.get(run["checkpoint"], (PAPERS, None))[0]),
                "compiled": run.get("compiled", False),
                "hf_overrides": run.get("hf_overrides", {}),
            }
            for name, run in runs.items()
        }
        job, result, log = (folder / f"{len(runs)}-runs.{kind}" for kind in ("job", "result", "log"))
        job.write_text(json.dumps({"max_tokens": MAX_TOKENS, "runs": runs}))
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
        return json.loads(Path(f"{result}.json").read_text()), load_file(f"{result}.safetensors"), log.read_text()

    return run


@pytest.fixture(scope="module")
def engine(run_worker):
    """(answers, rotated queries and keys, log)"""
    refused = {
        "incomplete": {"checkpoint": "incomplete"},
        "forced_stock": {"checkpoint": PAPERS.architecture, "hf_overrides": STOCK_CLASS},
    }
    return run_worker(PARITY_RUNS | refused)


@pytest.fixture(scope="module")
def answers(engine):
    return engine[0]


@pytest.fixture(scope="module")
def answers_without_plug_in(run_worker):
    runs = {"unknown": {"checkpoint": "log"}, "folded": {"checkpoint": "folded"}}
    return run_worker(runs, VLLM_PLUGINS="laid_wheel_guard")[0]


@pytest.fixture
def hugging_face_inputs():
    def inputs(family):
        processor = build_tiny(family)[1]
        return [
            processor.apply_chat_template(
                tiny_messages(processor, number),
                tokenize=True,
                add_generation_prompt=True,
                return_dict=True,
                return_tensors="pt",
            )
            for number in IMAGES[family.architecture]
        ]

    return inputs


@torch.no_grad()
def hugging_face(model, prompts):
    """What `engine_worker.answer` returns, from transformers."""
    results = []
    for inputs in prompts:
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
    assert [result["prompt_ids"] for result in found] == [result["prompt_ids"] for result in expected]
    difference = largest_difference(found, expected, "prompt_logprobs")
    print(f"{name}: largest difference of prompt log-probabilities {difference:.1e}")
    assert difference <= TOLERANCE
    assert [result["tokens"] for result in found] == [result["tokens"] for result in expected]
    assert largest_difference(found, expected, "logprobs") <= TOLERANCE


@pytest.mark.parametrize("run", PARITY_RUNS)
def test_vllm_agrees_with_hugging_face(answers, checkpoints, hugging_face_inputs, run):
    checkpoint = PARITY_RUNS[run]["checkpoint"]
    expected = hugging_face(load_pretrained(checkpoints / checkpoint), hugging_face_inputs(CHECKPOINTS[checkpoint][0]))

    assert_agreement(run, answers[run], expected)


@pytest.mark.parametrize("run", [run for run in PARITY_RUNS if PARITY_RUNS[run]["checkpoint"] != "stock"])
def test_every_layer_attends_with_the_queries_and_keys_of_hugging_face(
    engine, checkpoints, hugging_face_inputs, recorded_attention, run
):
    """A path past the rotary embedding shows in the layer that takes it, before and after torch.compile."""
    checkpoint = PARITY_RUNS[run]["checkpoint"]
    model = load_pretrained(checkpoints / checkpoint)
    model.set_attn_implementation(recorded_attention.name)
    worst = 0.0
    for place, inputs in enumerate(hugging_face_inputs(CHECKPOINTS[checkpoint][0])):
        recorded_attention.calls.clear()
        with torch.no_grad():
            model(**inputs)
        for layer, sides in enumerate(recorded_attention.calls):
            for side, x_1HTD in zip(("query", "key"), sides, strict=True):
                found_THD, expected_THD = engine[1][f"{run}.{place}.{layer}.{side}"], x_1HTD[0].transpose(0, 1)
                worst = max(worst, ((found_THD - expected_THD).abs().max() / expected_THD.abs().max()).item())
        assert len(recorded_attention.calls) == model.config.get_text_config().num_hidden_layers
    print(f"{run}: largest difference of a layer's query or key {worst:.1e} of its largest value")
    assert worst <= ROTATION_TOLERANCE


@pytest.mark.parametrize("name", GAINED)
def test_ignoring_the_gains_would_show(answers, checkpoints, hugging_face_inputs, name):
    model = load_pretrained(checkpoints / name)
    with torch.no_grad():
        for gain in gain_modules(model).values():
            for parameter in gain.parameters():
                parameter.zero_()

    ignoring = hugging_face(model, hugging_face_inputs(CHECKPOINTS[name][0]))

    difference = largest_difference(answers[f"{name}-eager"], ignoring, "prompt_logprobs")
    print(f"{name}, gains ignored: largest difference of prompt log-probabilities {difference:.2f}")
    assert difference > 100 * TOLERANCE


def test_every_gained_engine_has_checked_its_rotation(engine):
    runs = [run for run in PARITY_RUNS if PARITY_RUNS[run]["checkpoint"] != "stock"]
    # The engine that lacks a gain stops before it, and the stock class knows of no check.
    assert engine[2].count("rotation with gain checked") == len(runs)


def test_a_checkpoint_that_lacks_a_gain_is_refused(answers):
    missing = "no weights for language_model.model.layers.1.self_attn.rotary_emb.key_b"
    assert missing in answers["incomplete"]["error"]


def test_the_stock_class_refuses_the_gains(answers):
    assert "no module or parameter named 'layers.0.self_attn.rope_gain'" in answers["forced_stock"]["error"]


def test_without_the_plug_in_the_architecture_is_refused(answers_without_plug_in):
    error = answers_without_plug_in["unknown"]["error"]
    assert PAPERS.laid_architecture in error
    assert "not supported" in error


def test_a_folded_checkpoint_needs_no_plug_in(answers_without_plug_in, checkpoints, hugging_face_inputs):
    unfolded = hugging_face(load_pretrained(checkpoints / "static"), hugging_face_inputs(PAPERS))
    assert_agreement("static, folded", answers_without_plug_in["folded"], unfolded)
