"""Reading params.yaml. An unknown, missing or null key is an error, so is what checks refuse."""

import types
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pipeline.errors import BadInput
from pipeline.params import SECTIONS, Params
from pipeline.params_checks import check_values
from pipeline.params_names import NAME, check_names


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML 1.2 file, as plain Python. Raises BadInput with the line at fault."""
    from ruamel.yaml import YAML  # here: networks and losses need params, and nothing of YAML
    from ruamel.yaml.error import YAMLError

    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path}: not there; run in the project's folder") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise BadInput(f"{path}: expected sections {', '.join(SECTIONS)}, found {content!r}")
    return content


def load_params(path: Path = Path("params.yaml")) -> Params:
    """All active runs, checked: keys, types, names, and that every name stands for something.

    Raises:
        BadInput: names the file, the dotted key and the remedy.
    """
    params = build(Params, read_yaml(path), str(path), "")
    check(params, path)
    return params


def check(params: Params, path: Path) -> None:
    """`check_names` and `check_values`, with the file in what they raise."""
    try:
        check_names(params)
        check_values(params)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None


def build(kind: Any, value: Any, file: str, where: str) -> Any:
    """`value`, as YAML gave it, in the form of the annotation `kind`.

    Raises:
        BadInput: with `file`, the dotted key `where`, and what was expected.
    """
    if value is None:
        raise BadInput(f"{file}: {where or 'the file'} is null; give a value or take the key out")
    if is_dataclass(kind):
        return _build_dataclass(kind, value, file, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _build_kind(arguments, value, file, where)
    if origin is dict:
        return _build_dict(arguments[1], value, file, where)
    if origin is tuple:
        return _build_tuple(arguments, value, file, where)
    if origin is Literal:
        if value in arguments and not isinstance(value, bool):
            return value
        choices = ", ".join(str(a) for a in arguments)
        raise BadInput(f"{file}: {where} is {value!r}; choose one of: {choices}")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise BadInput(f"{file}: {where} is {value!r}; expected {_noun(kind)}")
    return value


def _noun(kind: type) -> str:
    nouns = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return nouns[kind]


def _build_dataclass(kind: Any, value: Any, file: str, where: str) -> Any:
    if not isinstance(value, dict):
        raise BadInput(f"{file}: {where or 'the file'} is {value!r}; expected keys and values")
    hints = get_type_hints(kind)
    names = [f.name for f in fields(kind)]
    prefix = f"{where}." if where else ""
    for key in value:
        if key not in names:
            raise BadInput(f"{file}: {prefix}{key} is unknown; known here: {', '.join(names)}")
    for name in names:
        if name not in value:
            raise BadInput(f"{file}: {prefix}{name} is missing; add it")
    return kind(**{n: build(hints[n], value[n], file, f"{prefix}{n}") for n in names})


def _build_kind(choices: tuple[Any, ...], value: Any, file: str, where: str) -> Any:
    """The one of several dataclasses that ``kind`` names, or a name that stands alone."""
    alone = [name for c in choices if get_origin(c) is Literal for name in get_args(c)]
    if isinstance(value, str) and value in alone:
        return value
    kinds = [c for c in choices if is_dataclass(c)]
    named = {get_args(get_type_hints(c)["kind"])[0]: c for c in kinds}
    given = value.get("kind") if isinstance(value, dict) else value
    if isinstance(value, dict) and isinstance(given, str) and given in named:
        return _build_dataclass(named[given], value, file, where)
    if isinstance(value, dict) and not alone:
        told = f"is {given!r}" if "kind" in value else "is missing"
        raise BadInput(f"{file}: {where}.kind {told}; choose one of: {', '.join(named)}")
    known = [*alone, *(_outline(name, c) for name, c in named.items())]
    choose = "choose" if alone else "give a mapping,"
    raise BadInput(f"{file}: {where} is {given!r}; {choose} one of: {', '.join(known)}")


def _outline(name: str, kind: Any) -> str:
    """How a kind is written: ``{kind: iou, iou: ...}``, or ``{kind: dense, ...}`` if it is long."""
    keys = [field.name for field in fields(kind) if field.name != "kind"]
    if not keys:
        return f"{{kind: {name}}}"
    return f"{{kind: {name}, {f'{keys[0]}: ' * (len(keys) == 1)}...}}"


def _build_dict(kind: Any, value: Any, file: str, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadInput(f"{file}: {where} is {value!r}; expected named entries, or {{}} for none")
    for name in value:
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            raise BadInput(f"{file}: {where}: the name {name!r} may hold only a-z, 0-9 and _")
    return {name: build(kind, entry, file, f"{where}.{name}") for name, entry in value.items()}


def _build_tuple(arguments: tuple[Any, ...], value: Any, file: str, where: str) -> tuple:
    if not isinstance(value, list):
        raise BadInput(f"{file}: {where} is {value!r}; expected a list")
    if arguments[-1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(value) != len(arguments):
        raise BadInput(f"{file}: {where} has {len(value)} entries; expected {len(arguments)}")
    return tuple(
        build(kind, entry, file, f"{where}[{i}]")
        for i, (kind, entry) in enumerate(zip(arguments, value, strict=True))
    )
