from pathlib import Path
from typing import Any

import pytest

import rope_gain
from distill.data.batch import Batch
from distill.data.collate import Collator
from distill.model import Teacher
from distill.recording.manifest import LogitRecord, Manifest
from distill.recording.needs import LayerNeed
from tests.distill.recording.samples import TEXT, make_sample


@pytest.fixture(scope="session")
def teacher(model_folders: dict[str, Path]) -> Teacher:
    return Teacher(rope_gain.load_pretrained(model_folders["teacher"]), feature_cache_bytes=2**20)


@pytest.fixture(scope="session")
def collate(teacher: Teacher, processor: Any) -> Collator:
    return Collator(processor, teacher.model.base_model.get_rope_index)


@pytest.fixture(scope="session")
def batch(collate: Collator) -> Batch:
    """Samples of unequal lengths, one of them without images."""
    return collate([make_sample(3), TEXT, make_sample(1)])


@pytest.fixture
def manifest(teacher: Teacher, processor: Any) -> Manifest:
    return Manifest(
        teacher={"path": "teacher", "dtype": "float32"},
        processor={},
        data={},
        layers={
            1: LayerNeed(query_rows="answer", key_rows="all"),
            2: LayerNeed(query_rows="question", key_rows="question"),
        },
        logits=LogitRecord(top_k=None, temperature=2.0, vocabulary_size=len(processor.tokenizer)),
        dtype="float32",
        attention=teacher.shape,
        versions={},
        coverage=None,
    )
