"""Rendering against transformers' own, and what is refused."""

from typing import Any

import pytest

from server.checkpoint import CheckpointError
from server.prompt.chat_template import ChatTemplate, TemplateRefusalError

QWEN = (
    "{% set image_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}"
    "<|im_end|>\n{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture {{ image_count.value }}: "
    "{% endif %}<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FEATURES = """
{%- for message in messages[0:] | list %}
    {%- if message.role == "developer" %}{% continue %}{% endif %}
    {% generation %}{{ message.role | upper }}{% endgeneration %}
  {% for item in message.content %}
    {{ item | tojson }}
  {% endfor %}
{% endfor %}
{{ eos_token }}{{ tools is none }}{{ documents is none }}{{ reasoning_effort is defined }}
"""
MESSAGES = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "<a href='ü'> & \"x\"\n"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
]


@pytest.mark.parametrize("source", [QWEN, FEATURES], ids=["qwen", "features"])
@pytest.mark.parametrize(
    "variables", [{}, {"reasoning_effort": "low", "enable_thinking": True}], ids=["plain", "effort"]
)
def test_renders_as_transformers_does(source: str, variables: dict[str, Any]) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    tokens = {"eos_token": "<|im_end|>"}
    (expected,), _ = render_jinja_template(
        [MESSAGES], chat_template=source, add_generation_prompt=True, **tokens, **variables
    )

    assert ChatTemplate(source, tokens).render(MESSAGES, **variables) == expected


def test_the_templates_own_refusal_reaches_the_caller() -> None:
    source = (
        "{% for m in messages %}{% for c in m.content %}{% endfor %}{% endfor %}{{ raise_exception('no systems') }}"
    )

    with pytest.raises(TemplateRefusalError, match="no systems"):
        ChatTemplate(source, {}).render(MESSAGES)


@pytest.mark.parametrize(
    "expression", ["messages.append(1)", "messages.__class__.__mro__", "''.__class__.__base__.__subclasses__()"]
)
def test_a_template_cannot_leave_its_sandbox(expression: str) -> None:
    loop = "{% for m in messages %}{% for c in m.content %}{% endfor %}{% endfor %}"

    with pytest.raises(TemplateRefusalError, match=r"unsafe|access"):
        ChatTemplate(loop + "{{ " + expression + " }}", {}).render(MESSAGES)


@pytest.mark.parametrize(
    "source",
    [
        "{% for message in messages %}{{ message.content }}{% endfor %}",
        "{% for message in messages %}{% for c in message.tools %}{% endfor %}{% endfor %}",
        "{% macro show(content) %}{% for c in content %}{% endfor %}{% endmacro %}{{ messages }}",
    ],
)
def test_content_as_one_string_is_refused(source: str) -> None:
    with pytest.raises(CheckpointError, match="as one string"):
        ChatTemplate(source, {})
