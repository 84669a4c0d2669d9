"""Reads one YAML file into frozen dataclasses, strictly, and says in which line it went wrong.

A schema is a keyword-only dataclass whose fields are int, float, str, bool, a Literal, a tuple of one of these,
another schema, or any of them or None.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import yaml

Schema = TypeVar("Schema")

_NULL = "tag:yaml.org,2002:null"
_BOOL = "tag:yaml.org,2002:bool"
_TEXT = "tag:yaml.org,2002:str"


def load_config(schema: type[Schema], path: Path, overrides: Sequence[str] = ()) -> Schema:
    """Reads `path`, applies overrides such as `loss.lambda_kl=0.5`, and builds the schema.

    Raises:
        ValueError: an unknown key (names the nearest known one), a missing key, a wrong type or value; the message
            starts with the file and line, or with "command line".
        OSError: the file cannot be read.
    """
    root = _compose(path.read_text(encoding="utf-8"), str(path))
    for override in overrides:
        root = _overridden(root, override)
    return cast(Schema, _build(schema, root, ""))


def _compose(text: str, name: str) -> yaml.MappingNode:
    try:
        loader = yaml.SafeLoader(text)
        loader.name = name
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        raise ValueError(f"{name}: not valid YAML: {error}") from error
    if not isinstance(node, yaml.MappingNode):
        raise ValueError(f"{name}: expected keys and values at the top of the file")
    return node


def _overridden(root: yaml.MappingNode, override: str) -> yaml.MappingNode:
    """A copy of the tree with one leaf replaced or added; blocks that are missing on the way are made."""
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise ValueError(f"command line: {override!r}, expected key=value, such as train.steps=300")
    value = _compose(f"value: {text}", "command line").value[0][1]
    return _replaced(root, key.split("."), value)


def _replaced(node: yaml.MappingNode, path: list[str], leaf: yaml.Node) -> yaml.MappingNode:
    children = {key.value: (key, value) for key, value in node.value}
    head, rest = path[0], path[1:]
    key, old = children.get(head, (yaml.ScalarNode(_TEXT, head, leaf.start_mark), None))
    if rest:
        block = old if isinstance(old, yaml.MappingNode) else yaml.MappingNode(node.tag, [], leaf.start_mark)
        leaf = _replaced(block, rest, leaf)
    children[head] = (key, leaf)
    return yaml.MappingNode(node.tag, list(children.values()), node.start_mark)


def _build(kind: Any, node: yaml.Node, key: str) -> Any:
    """Turns a node into a value of this type; `key` is its dotted path, for messages."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if node.tag == _NULL:
            return None
        return _build(next(each for each in arguments if each is not type(None)), node, key)
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(cast(type, kind), node, key)
    if origin is tuple:
        if not isinstance(node, yaml.SequenceNode):
            raise _wrong(node, key, "a list")
        return tuple(_build(arguments[0], child, f"{key}[{index}]") for index, child in enumerate(node.value))
    if not isinstance(node, yaml.ScalarNode):
        raise _wrong(node, key, "a single value")
    if origin is Literal:
        if node.value not in arguments:
            raise _wrong(node, key, "one of " + ", ".join(arguments))
        return node.value
    return _scalar(kind, node, key)


def _scalar(kind: type, node: yaml.ScalarNode, key: str) -> int | float | str | bool:
    if kind is bool:
        if node.tag != _BOOL:
            raise _wrong(node, key, "true or false")
        return bool(yaml.SafeLoader.bool_values[node.value.lower()])
    if kind is str:
        if node.tag == _NULL:
            raise _wrong(node, key, "text")
        return str(node.value)
    try:
        # Not by the node's tag: YAML 1.1 reads 1e-4 as text.
        return int(node.value) if kind is int else float(node.value)
    except ValueError:
        raise _wrong(node, key, "a whole number" if kind is int else "a number") from None


def _build_dataclass(schema: type, node: yaml.Node, key: str) -> Any:
    hints = typing.get_type_hints(schema)
    fields = {field.name: field for field in dataclasses.fields(schema)}
    values: dict[str, Any] = {}
    for name, child in _items(node, key):
        path = f"{key}.{name.value}".lstrip(".")
        if name.value not in fields:
            raise ValueError(f"{_place(name)}: {path}: unknown key; {_nearest(name.value, list(fields))}")
        if name.value in values:
            raise ValueError(f"{_place(name)}: {path}: given twice")
        values[name.value] = _build(hints[name.value], child, path)
    for field in fields.values():
        if field.default is dataclasses.MISSING and field.name not in values:
            raise ValueError(f"{_place(node)}: {f'{key}.{field.name}'.lstrip('.')}: missing, expected a value")
    try:
        return schema(**values)
    except ValueError as error:
        raise ValueError(f"{_place(node)}: {f'{key}.{error}'.lstrip('.')}") from error


def _items(node: yaml.Node, key: str) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode):
        raise _wrong(node, key, "a block of keys and values")
    items: list[tuple[yaml.ScalarNode, yaml.Node]] = node.value
    return items


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"


def _wrong(node: yaml.Node, key: str, expectation: str) -> ValueError:
    value = repr(node.value) if isinstance(node, yaml.ScalarNode) else "a list or block"
    return ValueError(f"{_place(node)}: {key}: {value}, expected {expectation}")


def _place(node: yaml.Node) -> str:
    name = node.start_mark.name
    return str(name) if name == "command line" else f"{name}:{node.start_mark.line + 1}"
