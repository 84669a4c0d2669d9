"""The first request a new user sends: three small images and a question about one of them."""

import base64
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("examples")


def question() -> str:
    """What is asked about the images."""
    return (FOLDER / "question.txt").read_text(encoding="utf-8").strip()


def request(model: str) -> dict[str, Any]:
    """A chat request with every example image, then the question."""
    images = [{"type": "image_url", "image_url": {"url": _data_url(path)}} for path in sorted(FOLDER.glob("*.png"))]
    content = [*images, {"type": "text", "text": question()}]
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 16,
        "temperature": 0,
    }


def write_request(path: Path, model: str) -> None:
    """Writes `request` as JSON for `curl -d @path`."""
    path.write_text(json.dumps(request(model)), encoding="utf-8")


def curl_command(base_url: str, request_path: Path) -> str:
    """The example request as a shell command."""
    return f"curl {base_url}/chat/completions -H 'Content-Type: application/json' -d @{request_path}"


def python_snippet(base_url: str, model: str) -> str:
    """The example request as a Python program for the `openai` package."""
    return f"""\
from base64 import b64encode
from pathlib import Path
from openai import OpenAI

client = OpenAI(base_url={base_url!r}, api_key="none")
images = [
    {{"type": "image_url", "image_url": {{"url": "data:image/png;base64," + b64encode(path.read_bytes()).decode()}}}}
    for path in sorted(Path({str(FOLDER)!r}).glob("*.png"))
]
answer = client.chat.completions.create(
    model={model!r},
    messages=[{{"role": "user", "content": [*images, {{"type": "text", "text": {question()!r}}}]}}],
    max_tokens=16,
    temperature=0,
)
print(answer.choices[0].message.content)
print(answer.usage)
"""


def _data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
