"""Edits to the text of a YAML file that leave every other byte of it as it was.

A parser tells where things stand; the text is then cut there. Files have sections at the left
margin, and in each section one named entry per line, in block style, or ``{}`` for none. A comment
belongs to the entry on whose line it ends, or directly above which it stands (no blank line
between). Writing a file anew from what was parsed would keep comments too, but not the layout.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from pipeline.errors import BadInput

Node = ScalarNode | SequenceNode | MappingNode

_MERGE = "tag:yaml.org,2002:merge"
_WIDTH = 100  # a line that would be longer is written in block style
# What precedes a comment on a line: no bare '#' after a blank, quoted texts whole.
_COMMENT = re.compile(r"""(?:[^'"#]|"(?:\\.|[^"\\])*"|'[^']*'|(?<!\s)\#)*?\s(\#.*)$""", re.VERBOSE)


@dataclass(frozen=True)
class Document:
    """A YAML text with what it parses to. Made by `parse`."""

    text: str
    lines: list[str]  # without line ends
    node: MappingNode


def parse(text: str) -> Document:
    """The sections of a YAML text. Raises BadInput if it is no mapping of mappings."""
    try:
        node = YAML(typ="safe", pure=True).compose(text)
    except YAMLError as error:
        raise BadInput(f"not valid YAML: {error}") from error
    if not isinstance(node, MappingNode):
        raise BadInput("not a mapping of sections")
    return Document(text, text.split("\n"), node)


def values(text: str) -> dict[str, Any]:
    """What the text says, as plain Python."""
    return YAML(typ="safe", pure=True).load(text)


# --- writing one entry out -----------------------------------------------------------------------
def entry_lines(document: Document, section: str, name: str) -> list[str]:
    """An entry as lines to stand in a section: comments kept, anchors and merge keys expanded."""
    value = _find(document.node, (section,))[1]
    key, entry = _find(value, (name,))
    return list(_render(document, key, entry, 2))


def _render(document: Document, key: Node, value: Node, indent: int) -> Iterator[str]:
    margin = " " * indent
    for line in document.lines[_first_line(document, key) : key.start_mark.line]:
        yield margin + line.strip()
    comments = _comments(document, key, value)
    one_line = f"{margin}{_flow(key)}: {_flow(value)}"
    if isinstance(value, ScalarNode) or not value.value:
        yield one_line + comments
    elif value.flow_style and len(one_line) <= _WIDTH:
        yield one_line + comments
    else:
        yield f"{margin}{_flow(key)}:{comments}"
        if isinstance(value, SequenceNode):
            yield from (f"{margin}  - {_flow(item)}" for item in value.value)
        elif value.flow_style:
            yield from (f"{margin}  {_flow(k)}: {_flow(v)}" for k, v in _pairs(value))
        else:
            for inner_key, inner_value in _pairs(value):
                yield from _render(document, inner_key, inner_value, indent + 2)


def _pairs(node: MappingNode) -> list[tuple[Node, Node]]:
    """Keys and values, what is merged in standing at the place of its merge key."""
    own = {key.value: (key, value) for key, value in node.value if key.tag != _MERGE}
    pairs: dict[str, tuple[Node, Node]] = {}
    for key, value in node.value:
        if key.tag != _MERGE:
            pairs.setdefault(key.value, (key, value))
            continue
        for base in value.value if isinstance(value, SequenceNode) else [value]:
            for inner_key, inner_value in _pairs(base):
                pairs.setdefault(
                    inner_key.value, own.get(inner_key.value, (inner_key, inner_value))
                )
    return list(pairs.values())


def _flow(node: Node) -> str:
    if isinstance(node, MappingNode):
        return "{" + ", ".join(f"{_flow(k)}: {_flow(v)}" for k, v in _pairs(node)) + "}"
    if isinstance(node, SequenceNode):
        return "[" + ", ".join(_flow(item) for item in node.value) + "]"
    if node.style is None and not re.search(r"[,\[\]{}]", node.value):
        return node.value
    return json.dumps(node.value, ensure_ascii=False)


def _comments(document: Document, key: Node, value: Node) -> str:
    """All comments at the ends of the lines from the key to its value's end, as one."""
    first = last = key.start_mark.line
    column = key.end_mark.column
    is_alias = value.start_mark.line < first  # then the value's marks are those of its anchor
    if not is_alias and (isinstance(value, ScalarNode) or value.flow_style):
        last, column = value.end_mark.line, value.end_mark.column
    lines = document.lines[first : last + 1]
    lines[-1] = lines[-1][column:]
    texts = [match[1].lstrip("# ") for match in map(_COMMENT.match, lines) if match]
    return f"  # {'; '.join(texts)}" if texts else ""


# --- changing the text ---------------------------------------------------------------------------
def add_entries(text: str, new_lines: dict[str, list[str]]) -> str:
    """Put entries, as `entry_lines` writes them, at the ends of sections.

    Args:
        new_lines: {section: lines}; each section is there, if only as ``{}``.
    """
    document = parse(text)
    lines = list(document.lines)
    for key, value in reversed(document.node.value):  # from the end: line numbers stay valid
        section = key.value
        if section not in new_lines:
            continue
        if not isinstance(value, MappingNode) or (value.value and value.flow_style):
            raise BadInput(_in_braces(section))
        if value.value:
            at = _last_line(document, value.value[-1]) + 1
            margin = value.value[0][0].start_mark.column
        else:  # {}: take the braces away
            at = value.end_mark.line + 1
            margin = 2
            header = lines[value.start_mark.line]
            before, after = header[: value.start_mark.column], header[value.end_mark.column :]
            lines[value.start_mark.line] = before.rstrip() + after
        lines[at:at] = [" " * (margin - 2) + line for line in new_lines[section]]
    return "\n".join(lines)


def remove_entries(text: str, names: set[tuple[str, str]]) -> str:
    """Take out the entries (section, name), each with the comments that belong to it."""
    document = parse(text)
    lines: list[str | None] = list(document.lines)
    for section, value in document.node.value:
        doomed = [pair for pair in value.value if (section.value, pair[0].value) in names]
        if doomed and value.flow_style:
            raise BadInput(_in_braces(section.value))
        for pair in doomed:
            first, last = _first_line(document, pair[0]), _last_line(document, pair)
            lines[first : last + 1] = [None] * (last + 1 - first)
        if doomed and len(doomed) == len(value.value):
            line, column = section.end_mark.line, section.end_mark.column
            header = document.lines[line]
            colon = header.index(":", column) + 1
            lines[line] = header[:colon] + " {}" + header[colon:]
    return "\n".join(line for line in lines if line is not None)


def _in_braces(section: str) -> str:
    return f"section {section} stands in braces; write each entry on a line of its own"


def set_value(text: str, keys: tuple[str, ...], value: object) -> str:
    """Put another value at a key that is there, given as the path to it.

    Raises:
        BadInput: the key is not there, or its value is written elsewhere (an alias).
    """
    key, old = _find(parse(text).node, keys)
    start, end = key.end_mark.index, _end(old)
    if old.start_mark.index < start:
        raise BadInput(f"{'.'.join(keys)} is an alias; write its value out, then change it")
    return f"{text[:start]}: {as_flow(value)}{text[end:]}"


def as_flow(value: object) -> str:
    """A plain value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{as_flow(k)}: {as_flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(as_flow(item) for item in value) + "]"
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_]\w*", value):
        if isinstance(values(f"a: {value}")["a"], str) and value not in ("on", "off", "yes", "no"):
            return value
    return json.dumps(value, ensure_ascii=False)


# --- where things stand --------------------------------------------------------------------------
def _find(node: Node, keys: tuple[str, ...]) -> tuple[Node, Node]:
    """The nodes of a key, given by its path, and of its value."""
    found: tuple[Node, Node] | None = None
    for depth, name in enumerate(keys):
        inside = node.value if isinstance(node, MappingNode) else []
        found = next((pair for pair in inside if pair[0].value == name), None)
        if found is None:
            raise BadInput(f"no key {'.'.join(keys[: depth + 1])}")
        node = found[1]
    assert found is not None
    return found


def _end(node: Node) -> int:
    """Index into the text behind the last character of a value, comments not counted."""
    if isinstance(node, ScalarNode) or node.flow_style or not node.value:
        return node.end_mark.index
    last = node.value[-1]
    return max(_end(part) for part in (last if isinstance(last, tuple) else (last,)))


def _first_line(document: Document, key: Node) -> int:
    """Line of the key, or of the first of the comments directly above it at its indentation."""
    line = key.start_mark.line
    start = " " * key.start_mark.column + "#"
    while line > 0 and document.lines[line - 1].startswith(start):
        line -= 1
    return line


def _last_line(document: Document, pair: tuple[Node, Node]) -> int:
    """Last line of an entry, comments that stand deeper than its key included."""
    key, value = pair
    line = document.text.count("\n", 0, max(_end(value), key.end_mark.index))
    deeper = " " * (key.start_mark.column + 1)
    while line + 1 < len(document.lines):
        following = document.lines[line + 1]
        if not (following.startswith(deeper) and following.lstrip().startswith("#")):
            break
        line += 1
    return line
