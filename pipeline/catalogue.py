"""The catalogue params/*.yaml: runs are copied from there into params.yaml and may be edited there.

A catalogue file has the sections of params.yaml and two more: `groups`, lists of evaluations, and
`studies`, groups over several seeds. What runs share stands under `common`, as YAML anchors. A name
is FILE/NAME: `wu2016/table7_voc` a group, `wu2016/fcrn101_s8_k5_d12_voc` an evaluation or run.
"""

import copy
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import yaml_edit
from pipeline.costs import describe_costs
from pipeline.errors import BadInput
from pipeline.params import SECTIONS, TRAINED, Params
from pipeline.params_file import build, check, load_params, read_yaml

# The stages that dvc.yaml makes of one entry of a section.
STAGES = {
    "datasets": ("fetch", "prepare"),
    "forests": ("forests",),
    "proposals": ("propose",),
    "weights": ("weights",),
    "semantic": ("train",),
    "boxsup": ("boxsup",),
    "instance": ("localize",),
    "evaluations": ("predict", "evaluate"),
}
WITHOUT_RUNS = ("datasets", "forests", "proposals")  # can be asked for by themselves

Entry = tuple[str, str]  # section, name


@dataclass(frozen=True)
class Study:
    """A group run with several seeds: they vary training only, not data or starting weights."""

    group: str
    seeds: tuple[int, ...]
    claims: tuple[tuple[str, str], ...]  # evaluations: the first at least as good as the second


@dataclass(frozen=True)
class Catalogue(Params):
    """One file of the catalogue."""

    groups: dict[str, tuple[str, ...]]
    studies: dict[str, Study]


@dataclass(frozen=True)
class Plan:
    """What an activation would do. Made by `_plan`, which changes nothing."""

    text: str  # of params.yaml
    params: Params
    evaluations: list[str]
    added: list[Entry]
    log: list[str]


# --- reading -------------------------------------------------------------------------------------
def load_catalogue(path: Path) -> Catalogue:
    """A file of the catalogue, checked as params.yaml is.

    Raises:
        BadInput: as `load_params`; or a group or study names what is not there.
    """
    content = read_yaml(path)
    content.pop("common", None)
    catalogue = build(Catalogue, content, str(path), "")
    check(catalogue, path)
    for group, names in catalogue.groups.items():
        if group in catalogue.evaluations:
            raise BadInput(f"{path}: groups.{group} is also an evaluation; rename the group")
        for name in names:
            if name not in catalogue.evaluations:
                raise BadInput(f"{path}: groups.{group}: no evaluation {name!r} in this file")
    for name, study in catalogue.studies.items():
        if study.group not in catalogue.groups:
            raise BadInput(f"{path}: studies.{name}.group: no group {study.group!r} in this file")
        if not study.seeds or len(set(study.seeds)) < len(study.seeds):
            raise BadInput(f"{path}: studies.{name}.seeds: give one or more different seeds")
        for claimed in {c for pair in study.claims for c in pair}:
            if claimed not in catalogue.groups[study.group]:
                raise BadInput(
                    f"{path}: studies.{name}.claims: {claimed!r} is not in group {study.group}"
                )
    return catalogue


def find_study(root: Path, name: str) -> tuple[Path, Catalogue]:
    """The catalogue file in which a study is. Raises BadInput when there is none."""
    known: list[str] = []
    for path in sorted((root / "params").glob("*.yaml")):
        catalogue = load_catalogue(path)
        if name in catalogue.studies:
            return path, catalogue
        known += catalogue.studies
    raise BadInput(f"no study {name!r} in {root / 'params'}; there are: {', '.join(known)}")


def needs(params: Params, entry: Entry) -> list[Entry]:
    """The entries that an entry names."""
    section, name = entry
    run = getattr(params, section)[name]
    found = [("datasets", run.dataset)] if hasattr(run, "dataset") else []
    if section == "boxsup":
        found.append(("proposals", f"{run.proposals}_{run.dataset}"))
    forests = [getattr(run, slot) for slot in ("contours", "ranker") if hasattr(run, slot)]
    found += [("forests", forest) for forest in forests if forest != "none"]
    models = [
        getattr(run, slot) for slot in ("init", "model", "localization") if hasattr(run, slot)
    ]
    for model in models:
        found += [(s, model) for s in ("weights", *TRAINED) if model in getattr(params, s)]
    return found


def with_needs(params: Params, entries: list[Entry]) -> set[Entry]:
    """The entries, with all that they need, directly or not."""
    reached: set[Entry] = set()
    waiting = list(entries)
    while waiting:
        entry = waiting.pop()
        if entry not in reached:
            reached.add(entry)
            waiting += needs(params, entry)
    return reached


def all_entries(params: Params) -> list[Entry]:
    """Every entry, section by section, in the order of the file."""
    return [(section, name) for section in SECTIONS for name in getattr(params, section)]


# --- the commands --------------------------------------------------------------------------------
def activate(root: Path, names: list[str], overrides: dict[str, object] | None = None) -> list[str]:
    """Copy entries of the catalogue, with all they need, into params.yaml.

    What is in params.yaml under the same name stays as it is: it may have been edited. The new
    content is checked before it replaces the old, at once, under a lock; each change is printed.

    Args:
        root: the project folder.
        names: FILE/NAME of groups, evaluations, runs, datasets, forests or proposals there.
        overrides: {dotted key, such as semantic.fcrn101_s8_k5_d12_voc.lr: value} to change in
            params.yaml after that.

    Returns:
        The names of the evaluations asked for.

    Raises:
        BadInput: an unknown name or key, or a value that is not allowed; nothing was changed.
    """
    with _locked(root):
        plan = _plan(root, names, overrides or {})
        _replace(root / "params.yaml", plan.text)
    print("\n".join(plan.log))
    return plan.evaluations


def dry_run(root: Path, names: list[str], overrides: dict[str, object] | None = None) -> str:
    """What `activate` would change, and how many stages, GB and GPU-hours that means."""
    plan = _plan(root, names, overrides or {})
    stages = [f"{stage}@{name}" for section, name in plan.added for stage in STAGES[section]]
    log = [line.replace("added ", "would add ", 1) for line in plan.log]
    lines = [*log, f"stages: {len(stages)} new, after which report runs again", *stages]
    return "\n".join(lines + describe_costs(plan.params, plan.added))


def deactivate(root: Path, names: list[str]) -> list[Entry]:
    """Take evaluations or datasets out of params.yaml, and what they needed and nothing else needs.

    Args:
        names: evaluations in params.yaml, or FILE/NAME as for `activate`.

    Returns:
        The entries (section, name) taken out. What stays keeps every byte.

    Raises:
        BadInput: a name is neither active nor in the catalogue, or a dataset is still needed;
            nothing was changed.
    """
    path = root / "params.yaml"
    with _locked(root):
        params = load_params(path)
        given: set[Entry] = set()
        for name in names:
            found = _meant(root, name)[2] if "/" in name else [("evaluations", name)]
            active = {(s, n) for s, n in found if n in getattr(params, s)}
            if not active:
                raise BadInput(f"{path}: {name} is not active; nothing was taken out")
            given |= active
        needed = with_needs(params, sorted(given))
        kept = with_needs(params, [e for e in all_entries(params) if e not in needed])
        removed = [e for e in all_entries(params) if e in needed - kept]
        if not removed:
            raise BadInput(f"{path}: what else is active needs {', '.join(names)}; it stays")

        text = path.read_text(encoding="utf-8")
        expected = read_yaml(path)
        for section, name in removed:
            del expected[section][name]
        _checked(expected)
        new = yaml_edit.remove_entries(text, set(removed))
        _compare(new, expected)
        _replace(path, new)
    print("\n".join(f"removed {section}.{name}" for section, name in removed))
    return removed


def parse_overrides(texts: list[str]) -> dict[str, object]:
    """KEY=VALUE texts of the command line, the values read as YAML. Raises BadInput."""
    overrides: dict[str, object] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not (key and sign and value):
            raise BadInput(f"{text!r}: write KEY=VALUE, as in semantic.sample_mask_s8.lr=0.01")
        try:
            overrides[key] = yaml_edit.values(value)
        except yaml_edit.YAMLError as error:
            raise BadInput(f"{text!r}: the value is not valid YAML: {error}") from error
    return overrides


# --- working out what to change ------------------------------------------------------------------
def _meant(root: Path, name: str) -> tuple[Path, Catalogue, list[Entry]]:
    """The catalogue file, and the entries in it that FILE/NAME stands for."""
    file, _, short = name.partition("/")
    path = root / "params" / f"{file}.yaml"
    files = sorted(p.stem for p in (root / "params").glob("*.yaml"))
    if not short or file not in files:
        raise BadInput(
            f"{name!r} names nothing: write FILE/NAME, where FILE is one of {', '.join(files)}"
        )
    catalogue = load_catalogue(path)
    for section in WITHOUT_RUNS:
        if short in getattr(catalogue, section):
            return path, catalogue, [(section, short)]
    if short in catalogue.groups:
        found = list(catalogue.groups[short])
    elif short in catalogue.evaluations:
        found = [short]
    else:
        found = [e for e, entry in catalogue.evaluations.items() if entry.model == short]
    if not found:
        known = [*catalogue.groups, *catalogue.evaluations]
        known += [name for section in WITHOUT_RUNS for name in getattr(catalogue, section)]
        raise BadInput(f"{path}: no {short!r} in it; there are: {', '.join(known)}")
    return path, catalogue, [("evaluations", e) for e in found]


def _plan(root: Path, names: list[str], overrides: dict[str, object]) -> Plan:
    """The new text of params.yaml, checked, and what is different in it."""
    path = root / "params.yaml"
    text = path.read_text(encoding="utf-8")
    expected = read_yaml(path)
    check(build(Params, expected, str(path), ""), path)
    wanted: list[Entry] = []
    added: list[Entry] = []
    log: list[str] = []
    lines: dict[str, list[str]] = {}
    for name in names:
        file, catalogue, found = _meant(root, name)
        wanted += [e for e in found if e not in wanted]
        for section, entry_lines in _add_missing(expected, file, catalogue, found, added, log):
            lines.setdefault(section, []).extend(entry_lines)
    changes = {}
    for key, value in overrides.items():
        changes[key] = yaml_edit.values(yaml_edit.as_flow(value))  # tuples as lists
        old = _override(expected, key, changes[key])
        log.append(f"set {key}: {yaml_edit.as_flow(old)} -> {yaml_edit.as_flow(changes[key])}")
    params = _checked(expected)
    text = yaml_edit.add_entries(text, lines) if lines else text
    for key, value in changes.items():
        text = yaml_edit.set_value(text, tuple(key.split(".")), value)
    if orphans := _orphans(params, added, wanted):  # what only the overridden values had needed
        for section, name in orphans:
            del expected[section][name]
            added.remove((section, name))
            log.remove(f"added {section}.{name}")
        params = _checked(expected)
        text = yaml_edit.remove_entries(text, set(orphans))
    _compare(text, expected)
    evaluations = [name for section, name in wanted if section == "evaluations"]
    return Plan(text, params, evaluations, added, log or ["nothing to change"])


def _orphans(params: Params, added: list[Entry], wanted: list[Entry]) -> list[Entry]:
    """The added entries that neither what was wanted nor anything that was there needs."""
    roots = [e for e in all_entries(params) if e not in added or e in wanted]
    return [e for e in added if e not in with_needs(params, roots)]


def _add_missing(
    expected: dict[str, Any],
    file: Path,
    catalogue: Catalogue,
    entries: list[Entry],
    added: list[Entry],
    log: list[str],
) -> Iterator[tuple[str, list[str]]]:
    """Put into `expected` the entries and their needs, if it lacks them. Yields section, lines."""
    source = yaml_edit.parse(file.read_text(encoding="utf-8"))
    content = read_yaml(file)
    wanted: set[Entry] = set()
    waiting = list(entries)
    while waiting:  # not beyond what is active already: that names what it needs itself
        entry = waiting.pop()
        if entry not in wanted:
            wanted.add(entry)
            if entry[1] not in expected[entry[0]]:
                waiting += needs(catalogue, entry)
    for section, name in [e for e in all_entries(catalogue) if e in wanted]:
        value = content[section][name]
        if name not in expected[section]:
            added.append((section, name))
            log.append(f"added {section}.{name}")
            expected[section][name] = copy.deepcopy(value)
            yield section, yaml_edit.entry_lines(source, section, name)
        elif expected[section][name] != value:
            log.append(f"kept {section}.{name}, which differs from {file.name}")


def _override(content: dict[str, Any], key: str, value: object) -> object:
    """Put `value` at a dotted key that is there. Returns the value before."""
    keys = key.split(".")
    inside: Any = content
    for depth, name in enumerate(keys):
        if not isinstance(inside, dict) or name not in inside:
            known = ", ".join(inside) if isinstance(inside, dict) else "nothing"
            raise BadInput(f"{key}: there is no {'.'.join(keys[: depth + 1])}; known: {known}")
        if depth + 1 < len(keys):
            inside = inside[name]
    if len(keys) < 3:
        raise BadInput(f"{key}: name the section, the entry and the key, as in semantic.x.lr")
    old = inside[keys[-1]]
    inside[keys[-1]] = value
    return old


# --- writing -------------------------------------------------------------------------------------
def _checked(content: dict[str, Any]) -> Params:
    """The content as Params. Raises BadInput where params.yaml with it would be refused."""
    name = "params.yaml, as it would be"
    try:
        params = build(Params, content, name, "")
        check(params, Path(name))
    except BadInput as error:
        raise BadInput(f"{error}. Nothing was changed") from None
    return params


def _compare(text: str, expected: dict[str, Any]) -> None:
    """The text says exactly what it should: cutting in it did what was meant."""
    try:
        same = yaml_edit.values(text) == expected
    except yaml_edit.YAMLError:
        same = False
    if not same:
        raise BadInput(
            "params.yaml is laid out so that it cannot be changed line by line (anchors?). "
            "Nothing was changed; write each entry out, in block style, and try again"
        )


def _replace(path: Path, text: str) -> None:
    if text == path.read_text(encoding="utf-8"):
        return
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    shutil.copymode(path, partial)
    os.replace(partial, path)


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One process at a time changes params.yaml; the others wait."""
    lock = root / "work" / "params.lock"
    lock.parent.mkdir(exist_ok=True)
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
