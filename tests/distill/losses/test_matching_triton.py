"""The Triton kernels against the materialised form in float64, in Triton's interpreter; and that they compile for GPUs.

What only a GPU can show is left to the tests at the end, which need one.
"""

import dataclasses
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distill.losses.matching import Sums, Task, attention_matching, chunked_sums
from distill.signals import QueryKey
from tests.distill.losses.interpreted_matching import KERNELS, UPSTREAM, Kernels
from tests.distill.losses.test_matching import Case, reference_loss

triton = pytest.importorskip("triton", reason="needs triton, which comes with torch for CUDA: pip install triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from distill.losses import matching_kernels  # noqa: E402
from distill.losses.matching_check import disagreement, works  # noqa: E402
from distill.losses.matching_triton import triton_sums  # noqa: E402

ROOT = Path(__file__).parents[3]
# Of the largest value. In bfloat16 the error is rounded before its products with q and k.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1.5e-2}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the kernels give in Triton's interpreter, which has to be asked for before Triton is imported."""
    path = tmp_path_factory.mktemp("triton") / "sums.pt"
    command = [sys.executable, "-m", "tests.distill.losses.interpreted_matching", str(path)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = torch.load(path)
    return found


def reference_sums(task: Task) -> Sums:
    """In float64 by autograd, of the very values that the kernels are given."""
    student, teacher = (
        dataclasses.replace(model, q_BHTD=model.q_BHTD.double(), k_BKTD=model.k_BKTD.double())
        for model in (task.student, task.teacher)
    )
    mixing_SH = torch.eye(4, dtype=torch.float64) if task.mixing_SH is None else task.mixing_SH.double()
    case = Case(student=student, teacher=teacher, places=task.places, mixing_SH=mixing_SH)
    leaves = case.leaves()
    total = reference_loss(case, task.tilt, mixing_SH, task.rows) * (task.rows.valid_BR.sum() * 4)
    grad_q_BSTD, grad_k_BKTD, grad_mixing_SH = torch.autograd.grad(total, leaves)
    return Sums(
        total=total.detach(),
        grad_q_BSRD=task.rows.gather(grad_q_BSTD) * task.rows.valid_BR[:, None, :, None],
        grad_k_BKTD=grad_k_BKTD,
        grad_mixing_SH=None if task.mixing_SH is None else grad_mixing_SH,
    )


def relative_error(ours: Tensor, truth: Tensor) -> float:
    return float((ours - truth).abs().max() / truth.abs().max())


@pytest.mark.parametrize("name", list(KERNELS))
def test_value_and_gradients_equal_the_materialised_form(name: str, interpreted: dict[str, Any]) -> None:
    task, found = KERNELS[name].task(), Sums(**interpreted[name])
    expected = reference_sums(task)
    tolerance = TOLERANCE[task.student.q_BHTD.dtype]
    assert relative_error(found.total, expected.total) < TOLERANCE[torch.float32]
    assert found.grad_q_BSRD is not None
    assert found.grad_k_BKTD is not None
    assert expected.grad_q_BSRD is not None
    assert expected.grad_k_BKTD is not None
    assert relative_error(found.grad_q_BSRD, expected.grad_q_BSRD) < tolerance
    assert relative_error(found.grad_k_BKTD, expected.grad_k_BKTD) < tolerance
    if task.mixing_SH is None:
        assert found.grad_mixing_SH is None
    else:
        assert relative_error(found.grad_mixing_SH, expected.grad_mixing_SH) < TOLERANCE[torch.float32]


def test_another_distance_would_be_noticed(interpreted: dict[str, Any]) -> None:
    found, other = Sums(**interpreted["tokens"]), reference_sums(KERNELS["images"].task())
    for field in dataclasses.fields(Sums):
        assert relative_error(getattr(found, field.name), getattr(other, field.name)) > 1e-3


def test_only_the_gradients_asked_for_are_made(interpreted: dict[str, Any]) -> None:
    both = interpreted["some rows"]
    student, mixing = interpreted["only the student"], interpreted["only the mixing"]
    assert student["grad_mixing_SH"] is None
    assert mixing["grad_q_BSRD"] is None
    assert mixing["grad_k_BKTD"] is None
    for name in ("total", "grad_q_BSRD", "grad_k_BKTD"):
        assert torch.equal(student[name], both[name])
    for name in ("total", "grad_mixing_SH"):
        assert torch.equal(mixing[name], both[name])


def test_the_loss_by_kernels_is_the_loss(interpreted: dict[str, Any]) -> None:
    """Through autograd, with an upstream gradient that is not 1."""
    task = KERNELS["images"].task()
    assert task.mixing_SH is not None
    leaves = [tensor.requires_grad_() for tensor in (task.student.q_BHTD, task.student.k_BKTD, task.mixing_SH)]
    loss = attention_matching(
        task.student,
        task.teacher,
        rows=task.rows,
        places=task.places,
        tilt=task.tilt,
        mixing_SH=task.mixing_SH,
        chunk_bytes=2**20,
        kernel="torch",
    )
    expected = [loss.detach(), *torch.autograd.grad(loss, leaves, grad_outputs=torch.tensor(UPSTREAM))]
    for ours, truth in zip(interpreted["through autograd"], expected, strict=True):
        assert ours.dtype == truth.dtype
        assert relative_error(ours, truth) < TOLERANCE[torch.float32]


def test_kernels_that_work_pass_their_trial(interpreted: dict[str, Any]) -> None:
    assert interpreted["works"] is True


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Sums)])
@pytest.mark.parametrize("factor", [1.05, float("nan")])
def test_the_trial_finds_a_sum_that_is_off(field: str, factor: float) -> None:
    task = KERNELS["bfloat16"].task()
    sums = chunked_sums(task, wants_qk=True, wants_mixing=True)
    spoiled = dataclasses.replace(sums, **{field: getattr(sums, field) * factor})
    assert disagreement(sums, sums, torch.bfloat16) is None
    assert "is off by" in str(disagreement(spoiled, sums, torch.bfloat16))


def test_where_triton_fails_pytorch_does_it_and_one_warning_says_why(caplog: pytest.LogCaptureFixture) -> None:
    """Here on tensors of the CPU, which compiled kernels cannot take."""
    task = Kernels(teacher_heads=3 * 2, kind="position", dtype=torch.float16).task()
    with caplog.at_level(logging.WARNING):
        assert not works(task)
        assert not works(task)
    assert len(caplog.records) == 1
    assert "Triton kernels are not used on cpu" in caplog.text


def test_kernels_asked_for_by_name_need_a_gpu_and_their_types() -> None:
    task = KERNELS["images"].task()

    def loss(student: QueryKey, kernel: Any) -> Tensor:
        return attention_matching(
            student,
            task.teacher,
            rows=task.rows,
            places=task.places,
            tilt=task.tilt,
            mixing_SH=task.mixing_SH,
            chunk_bytes=2**20,
            kernel=kernel,
        )

    with pytest.raises(ValueError, match=r"loss.matching.kernel: 'triton' cannot take tensors on cpu"):
        loss(task.student, "triton")
    widened = dataclasses.replace(task.student, q_BHTD=task.student.q_BHTD.double())
    with pytest.raises(ValueError, match=r"cannot take q in torch.float64 with k in torch.float32"):
        loss(widened, "triton")
    assert torch.equal(loss(task.student, "auto"), loss(task.student, "torch"))


MAP_TYPES = {
    **dict.fromkeys(("q", "k"), "{dtype}"),
    **dict.fromkeys(("last", "row_places", "key_places"), "*i32"),
    **dict.fromkeys(("num_rows", "num_tokens", "group", "first_key", "num_keys"), "i32"),
    **dict.fromkeys(("scale", "gamma", "per_distance"), "fp32"),
    **dict.fromkeys(("result", "log_sum_exp"), "*fp32"),
}
DIVERGENCE_TYPES = {
    **dict.fromkeys(("log_s", "log_t", "mixing", "totals", "grads"), "*fp32"),
    "error": "{dtype}",
    "num_pairs": "i32",
}


def compile_for(target: GPUTarget, kernel: Any, types: dict[str, str], constants: dict[str, Any]) -> Any:
    """Compiles ahead of time, to machine code; needs no GPU."""
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    # PyTorch aligns what it allocates; Triton finds that out at the launch.
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": 8, "num_stages": 2, "enable_fp_fusion": True}
    return triton.compile(source, target=target, options=options)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("dtype", ["*bf16", "*fp32"])
@pytest.mark.parametrize("ones", [(), ("num_rows", "num_tokens", "group", "num_keys")], ids=["many", "one"])
@pytest.mark.parametrize("kernel", ["log_sum_exp_kernel", "log_probability_kernel"])
def test_the_maps_kernels_compile_for_an_h100(kernel: str, ones: tuple[str, ...], dtype: str) -> None:
    """Triton compiles a number that is 1 in, so that these are kernels of their own."""
    constants = {"HEAD": 80, "AXES": 3, "BLOCK_R": 64, "BLOCK_N": 64, "BLOCK_D": 128, "WIDEN": False}
    names = getattr(matching_kernels, kernel).arg_names
    constants |= {name: 1 for name in ones if name in names}
    types = {name: form.format(dtype=dtype) for name, form in MAP_TYPES.items()}
    compiled = compile_for(GPUTarget("cuda", 90, 32), getattr(matching_kernels, kernel), types, constants)
    assert len(compiled.asm["cubin"]) > 1000
    # What one block may have on an H100.
    assert compiled.metadata.shared <= 227 * 1024


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize(
    ("absent", "dtype"),
    [((), "*bf16"), ((), "*fp32"), (("mixing", "grads"), "*bf16"), (("error",), "*bf16")],
    ids=["bfloat16", "float32", "one to one", "only the mixing"],
)
def test_the_divergences_kernel_compiles_for_an_h100(absent: tuple[str, ...], dtype: str) -> None:
    constants = {"STUDENT_HEADS": 28, "TEACHER_HEADS": 28 if "mixing" in absent else 40, "REPEATS": 16}
    constants |= {"BLOCK_S": 32, "BLOCK_H": 32 if "mixing" in absent else 64, "BLOCK_X": 64}
    types = {name: form.format(dtype=dtype) for name, form in DIVERGENCE_TYPES.items()}
    constants |= dict.fromkeys(absent)
    compiled = compile_for(GPUTarget("cuda", 90, 32), matching_kernels.divergence_kernel, types, constants)
    assert len(compiled.asm["cubin"]) > 1000
    assert compiled.metadata.shared <= 227 * 1024


def on_gpu(task: Task) -> Task:
    def moved(model: QueryKey) -> QueryKey:
        return dataclasses.replace(model, q_BHTD=model.q_BHTD.cuda(), k_BKTD=model.k_BKTD.cuda())

    rows, places = task.rows, task.places
    return dataclasses.replace(
        task,
        student=moved(task.student),
        teacher=moved(task.teacher),
        rows=dataclasses.replace(rows, index_BR=rows.index_BR.cuda(), valid_BR=rows.valid_BR.cuda()),
        places=dataclasses.replace(
            places,
            position_ids_3BT=places.position_ids_3BT.cuda(),
            images_before_BT=places.images_before_BT.cuda(),
        ),
        mixing_SH=None if task.mixing_SH is None else task.mixing_SH.cuda(),
    )


@needs_gpu
@pytest.mark.parametrize("name", list(KERNELS))
def test_on_a_gpu_value_and_gradients_equal_the_materialised_form(name: str) -> None:
    task = KERNELS[name].task()
    found = triton_sums(on_gpu(task), wants_qk=True, wants_mixing=task.mixing_SH is not None)
    expected = reference_sums(task)
    tolerance = TOLERANCE[task.student.q_BHTD.dtype]
    for field in dataclasses.fields(Sums):
        truth = getattr(expected, field.name)
        if truth is not None:
            assert relative_error(getattr(found, field.name).cpu(), truth) < tolerance


@needs_gpu
def test_on_a_gpu_the_kernels_pass_their_trial() -> None:
    assert works(on_gpu(KERNELS["bfloat16"].task()))
