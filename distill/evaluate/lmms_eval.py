"""Task files with which lmms-eval asks the same items of a served model.

One task a size, all under one tag; form: lmms-eval's docs/guides/task_guide.md (0.7).
"""

import hashlib
import inspect
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.checkpoint import whole_folder
from distill.evaluate import lmms_eval_task, scoring
from distill.evaluate.item import Item, Picture
from distill.evaluate.tasks import Task

_TASK_FILE = """\
# {name}, {size} images, seed {seed}: written by distill evaluate --export-lmms-eval.
task: {task}
tag: {tag}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: !function utils.doc_to_text
doc_to_messages: !function utils.doc_to_messages
doc_to_target: answer
process_results: !function utils.process_results
generation_kwargs:
  max_new_tokens: {max_new_tokens}
  temperature: 0
  do_sample: false
metric_list:
{metrics}metadata:
  - version: 1
"""

_METRIC = """\
  - metric: {metric}
    aggregation: mean
    higher_is_better: true
"""


def export_lmms_eval(folder: Path, task: Task, sizes: Sequence[int], num_items: int, seed: int) -> str:
    """Writes the items of all sizes with their images, and a task file for each size.

    Args:
        folder: must not exist; it stays where it is, for the task files name it.

    Returns:
        The tag under which lmms-eval runs all of them.
    """
    tag = "laid_" + re.sub(r"\W+", "_", task.name)
    with whole_folder(folder.resolve()) as partial:
        (partial / "images").mkdir()
        (partial / "utils.py").write_text(_utils(), encoding="utf-8")
        for size in sizes:
            items = (task.item(size, index) for index in range(num_items))
            lines = [json.dumps(_line(partial, item, task)) + "\n" for item in items]
            (partial / f"{tag}_{size}.jsonl").write_text("".join(lines), encoding="utf-8")
            metrics = ["accuracy", "compliance", *(["official"] if task.official_scorer else [])]
            text = _TASK_FILE.format(
                name=task.name,
                size=size,
                seed=seed,
                task=f"{tag}_{size}",
                tag=tag,
                data=json.dumps(str(folder.resolve() / f"{tag}_{size}.jsonl")),
                max_new_tokens=task.item(size, 0).max_new_tokens,
                metrics="".join(_METRIC.format(metric=metric) for metric in metrics),
            )
            (partial / f"{tag}_{size}.yaml").write_text(text, encoding="utf-8")
    return tag


def _line(folder: Path, item: Item, task: Task) -> dict[str, Any]:
    *pictures, question = item.parts
    return {
        "index": item.index,
        "images": [_write_image(folder, picture) for picture in pictures if not isinstance(picture, str)],
        "question": question,
        "answer": item.answer,
        "legal_answers": item.legal_answers,
        "has_official_score": task.official_scorer is not None,
    }


def _write_image(folder: Path, picture: Picture) -> str:
    """Writes each distinct image once; returns its path from the folder."""
    content, suffix = picture.encode()
    path = f"images/{hashlib.sha256(content).hexdigest()[:32]}.{suffix}"
    if not (folder / path).exists():
        (folder / path).write_bytes(content)
    return path


def _utils() -> str:
    """One module without imports of this package: lmms-eval need not have it."""
    functions = inspect.getsource(lmms_eval_task)
    own_import = re.compile(r"^from distill\..*\n", re.MULTILINE)
    return f"{inspect.getsource(scoring)}\n\n{own_import.sub('', functions)}"
