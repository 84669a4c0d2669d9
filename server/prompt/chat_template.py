"""Renders a checkpoint's chat template exactly as transformers does inside the engine."""

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from server.checkpoint import CheckpointError


class TemplateRefusalError(ValueError):
    """The template itself refused the conversation (`raise_exception`); the message is the template's own."""


class ChatTemplate:
    """A compiled chat template that takes message content as a list of parts ("openai" format in vLLM's words)."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        """Compiles the template in a sandbox.

        Raises:
            CheckpointError: not valid Jinja, or it takes content as one string, for which the engine would place
                images by rules of its own that the gateway does not know.
        """
        environment = _make_environment()
        try:
            tree = environment.parse(source)
            self._template = environment.from_string(source)
            # Merged once: jinja2 would look every global up again, through two layers, for every prompt.
            self._globals = dict(self._template.globals)
        except jinja2.TemplateError as error:
            raise CheckpointError(f"chat template: not valid Jinja: {error}") from error
        if not _loops_over_content(tree):
            raise CheckpointError(
                "chat template: it takes a message's content as one string; "
                "the gateway counts tokens only for templates that loop over a message's content parts"
            )
        self._special_tokens = special_tokens
        self.knows_tools = "tools" in jinja2.meta.find_undeclared_variables(tree)
        self.knows_developer = '"developer"' in source or "'developer'" in source

    def render(
        self, messages: list[dict[str, Any]], *, tools: list[dict[str, Any]] | None = None, **variables: Any
    ) -> str:
        """The prompt's text, with one placeholder for each image and the opening of the answer at its end.

        Raises:
            TemplateRefusalError: the template does not accept this conversation.
        """
        try:
            context = self._template.new_context(
                {
                    **self._globals,
                    **self._special_tokens,
                    "messages": messages,
                    "tools": tools,
                    "documents": None,
                    "add_generation_prompt": True,
                    **variables,
                },
                shared=True,
            )
            return "".join(self._template.root_render_func(context))
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise TemplateRefusalError(str(error)) from error


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's tokens for training; for a prompt it is transparent."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own interface

    def parse(self, parser: Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _make_environment() -> ImmutableSandboxedEnvironment:
    """The environment of transformers' `chat_template_utils._cached_compile_jinja_template`."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which would change the tokens.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _loops_over_content(tree: jinja2.nodes.Template) -> bool:
    """True where vLLM detects the "openai" content format (`vllm.renderers.hf._detect_content_format`).

    Stricter than vLLM, which also follows content into macros: a template found here is found there too.
    """
    in_macros = {id(loop) for macro in tree.find_all(jinja2.nodes.Macro) for loop in macro.find_all(jinja2.nodes.For)}
    message_names = set(_loop_names(tree, lambda node: _is_name(node, "messages")))
    for loop in tree.find_all(jinja2.nodes.For):
        source = _unwrap(loop.iter)
        if any(_is_field(source, name, "content") for name in message_names):
            return True
        if id(loop) not in in_macros and _is_name(source, "content"):
            return True
    return False


def _loop_names(tree: jinja2.nodes.Template, matches: Callable[[jinja2.nodes.Node], bool]) -> Iterator[str]:
    for loop in tree.find_all(jinja2.nodes.For):
        if matches(_unwrap(loop.iter)) and isinstance(loop.target, jinja2.nodes.Name):
            yield loop.target.name


def _unwrap(node: jinja2.nodes.Node) -> jinja2.nodes.Node:
    """The variable under filters, tests and slices: `messages[1:] | list` is about `messages`."""
    inner: jinja2.nodes.Node | None = None
    if isinstance(node, jinja2.nodes.Filter | jinja2.nodes.Test) or (
        isinstance(node, jinja2.nodes.Getitem) and isinstance(node.arg, jinja2.nodes.Slice)
    ):
        inner = node.node
    return node if inner is None else _unwrap(inner)


def _is_name(node: jinja2.nodes.Node, name: str) -> bool:
    return isinstance(node, jinja2.nodes.Name) and node.name == name


def _is_field(node: jinja2.nodes.Node, name: str, key: str) -> bool:
    if isinstance(node, jinja2.nodes.Getattr):
        return node.attr == key and _is_name(node.node, name)
    if isinstance(node, jinja2.nodes.Getitem):
        return isinstance(node.arg, jinja2.nodes.Const) and node.arg.value == key and _is_name(node.node, name)
    return False
