"""What a study found, gathered over its seeds: one table, one page."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pipeline.tables import read_arrow
from pipeline.wording import NETWORK_HEAD

DASH = "—"
OBJECT_SCORES = {  # what tells how well objects are found: (metric, at)
    "mAP^r at 0.5": ("mAP_r", 0.5),
    "at 0.7": ("mAP_r", 0.7),
    "vol": ("mAP_r_vol", None),
}
SIZES = ("small", "medium", "large")  # as `pipeline.metrics.instance` has them
CLAIMED = ("mAP^r at 0.5", "vol")  # of these, what claims are held to

Scores = dict[str, dict[int, float]]  # {run: {seed: value}}


def collect(
    data: Path,
    study: str,
    *,
    evaluations: Iterable[str],
    models: Iterable[str],
    seeds: Sequence[int],
) -> list[dict]:
    """Rows of table "study" from all that was measured.

    Args:
        data: the folder that holds metrics/ and models/.
        evaluations: names without a seed; metrics/<evaluation>_seed<N>.parquet is read.
        models: runs without a seed whose history tells of the quality of their labels.

    Raises:
        BadInput: a file is missing.
    """
    rows = []
    for seed in seeds:
        for run in evaluations:
            same = {"study": study, "run": run, "seed": seed}
            table = read_arrow(data / "metrics" / f"{run}_seed{seed}.parquet", "metrics")
            for row in table.select(["metric", "category", "at", "value"]).to_pylist():
                rows.append(same | row)
        for run in models:
            same = {"study": study, "run": run, "seed": seed, "category": None}
            table = read_arrow(data / "models" / f"{run}_seed{seed}.history.parquet", "history")
            for row in table.to_pylist():
                if row["name"].startswith("label_"):
                    at = float(row["epoch"])
                    rows.append(same | {"metric": row["name"], "at": at, "value": row["value"]})
    return rows


def page(
    rows: list[dict],
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    claims: Sequence[tuple[str, str]],
    networks: Mapping[str, Sequence[str]],
) -> str:
    """The study as Markdown: each run over its seeds, the papers' claims, the label quality.

    Of runs that find objects stands mAP^r, by the protocol `sds`; of others mean IoU.

    Args:
        rows: of table "study".
        facts: (name, text) lines below the title: commit, machine, seeds, protocol.
        claims: pairs of runs of which the first is said to be at least as good as the second.
        networks: {run: its cells under `NETWORK_HEAD`}, of the semantic network, or where there is
            none of the localisation network; dashes of a run that asks no network.
    """
    objects = {name: scores_of(rows, *which) for name, which in OBJECT_SCORES.items()}
    finding = objects["vol"]
    scores = {
        run: found for run, found in scores_of(rows, "mean_iou", None).items() if run not in finding
    }
    lines = [f"# Study {title}", "", *(f"- {name}: {text}" for name, text in facts), ""]
    if finding:
        lines += _objects_table(objects, networks) + _sizes_table(rows)
    if scores:
        lines += ["", *_runs_table(scores, networks)] if finding else _runs_table(scores, networks)
        lines += _background_lines(rows)
    claimed = {"": scores} if scores else {}
    claimed |= {name: objects[name] for name in CLAIMED if finding}
    if claims:
        lines += ["", "## What the papers' tables say, seed by seed", "", *_claims(claimed, claims)]
    labels = _labels_table(rows)
    if labels:
        lines += [
            "",
            "## Quality of the estimated labels",
            "",
            "Mean IoU, %, against the masks that training did not see, at the start of each round: "
            "mean over the seeds ± sample standard deviation.",
            "",
            *labels,
        ]
    return "\n".join(lines) + "\n"


def scores_of(rows: list[dict], metric: str, at: float | None) -> Scores:
    """One number of each run and seed, over all categories."""
    scores: Scores = {}
    for row in rows:
        if (row["metric"], row["category"], row["at"]) == (metric, None, at):
            scores.setdefault(row["run"], {})[row["seed"]] = row["value"]
    return scores


def _background_lines(rows: list[dict]) -> list[str]:
    """What background everywhere scores, below the table of runs."""
    background = {r["value"] for r in rows if r["metric"] == "all_background_mean_iou"}
    seeds = {row["seed"] for row in rows}
    return [
        f"| background everywhere |{f' {DASH} |' * len(NETWORK_HEAD)} {_percent(value)} |"
        + f" {DASH} |" * len(seeds)
        for value in sorted(background)
    ]


def _objects_table(
    objects: Mapping[str, Scores], networks: Mapping[str, Sequence[str]]
) -> list[str]:
    """Every run that finds objects: means over the seeds, and each seed."""
    seeds = sorted({seed for by_seed in objects["vol"].values() for seed in by_seed})
    lines = [
        "Mean average precision of masks (mAP^r, protocol sds), %, at an overlap of 0.5 and of 0.7 "
        "and the mean over 0.1, 0.2, ..., 0.9 (vol): mean over the seeds ± sample standard "
        "deviation. The network is the semantic one; where the true masks stand in for it, that "
        "which finds boxes.",
        "",
        f"| run | {' | '.join(NETWORK_HEAD)} | {' | '.join(objects)} | "
        + " | ".join(f"seed {seed}" for seed in seeds)
        + " |",
        "|---|" + "---|" * (len(NETWORK_HEAD) + len(objects) + len(seeds)),
    ]
    for run in objects["vol"]:
        found = [scores.get(run, {}) for scores in objects.values()]
        means = [mean_and_spread(list(by_seed.values())) for by_seed in found]
        cells = [
            " / ".join(_percent(by_seed[seed]) if seed in by_seed else DASH for by_seed in found)
            for seed in seeds
        ]
        lines.append(f"| {' | '.join([run, *networks[run], *means, *cells])} |")
    return lines


def _sizes_table(rows: list[dict]) -> list[str]:
    """mAP^r of the objects of each class of sizes, for every run that has it; else no line."""
    found = {
        (size, at): scores_of(rows, f"mAP_r_{size}", at) for size in SIZES for at in (0.5, 0.7)
    }
    runs = list(dict.fromkeys(run for scores in found.values() for run in scores))
    if not runs:
        return []
    heads = " | ".join(f"{size} at {at}" for size, at in found)
    lines = [
        "",
        "By the size of the objects: up to 32² pixels of mask, up to 96², and more. A dash: no "
        "such object.",
        "",
        f"| run | {heads} |",
        "|---|" + "---|" * len(found),
    ]
    for run in runs:
        cells = [mean_and_spread(list(scores.get(run, {}).values())) for scores in found.values()]
        lines.append(f"| {run} | {' | '.join(cells)} |")
    return lines


def _runs_table(scores: Scores, networks: Mapping[str, Sequence[str]]) -> list[str]:
    seeds = sorted({seed for by_seed in scores.values() for seed in by_seed})
    lines = [
        "Mean IoU, %: mean over the seeds ± sample standard deviation.",
        "",
        f"| run | {' | '.join(NETWORK_HEAD)} | mean IoU | "
        + " | ".join(f"seed {seed}" for seed in seeds)
        + " |",
        "|---|---|" + "---|" * (len(NETWORK_HEAD) + len(seeds)),
    ]
    for run, by_seed in scores.items():
        cells = [_percent(by_seed[seed]) if seed in by_seed else DASH for seed in seeds]
        cells = [run, *networks[run], mean_and_spread(list(by_seed.values())), *cells]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _claims(claimed: Mapping[str, Scores], claims: Sequence[tuple[str, str]]) -> list[str]:
    """A line for each claim, and for each number that both of its runs have."""
    named = any(claimed)  # by what, where it is not mean IoU alone
    head = ["at least as good", "as", *["by"] * named, "difference, points", "held in"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for better, other in claims:
        with_both = {n: s for n, s in claimed.items() if better in s and other in s}
        for name, scores in (with_both or {"": {}}).items():
            seeds = sorted(scores.get(better, {}).keys() & scores.get(other, {}).keys())
            differences = [scores[better][seed] - scores[other][seed] for seed in seeds]
            held = sum(difference >= 0 for difference in differences)
            spread = mean_and_spread(differences, sign="+") if differences else DASH
            cells = [better, other, *[name or "mean IoU"] * named, spread]
            lines.append(f"| {' | '.join(cells)} | {held} of {len(seeds)} seeds |")
    return lines


def _labels_table(rows: list[dict]) -> list[str]:
    """Label quality of each run with estimated labels, round by round."""
    rounds: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        if row["metric"] == "label_mean_iou":
            by_epoch = rounds.setdefault(row["run"], {})
            by_epoch.setdefault(row["at"], []).append(row["value"])
    if not rounds:
        return []
    epochs = sorted({epoch for by_epoch in rounds.values() for epoch in by_epoch})
    heads = " | ".join(f"epoch {epoch:.0f}" for epoch in epochs)
    lines = [f"| run | {heads} |", "|---|" + "---|" * len(epochs)]
    for run, by_epoch in rounds.items():
        cells = [mean_and_spread(by_epoch[e]) if e in by_epoch else DASH for e in epochs]
        lines.append(f"| {run} | {' | '.join(cells)} |")
    return lines


def mean_and_spread(values: list[float], *, sign: str = "") -> str:
    """Fractions as "40.6 ± 0.9" per cent: mean and sample standard deviation, if any.

    Of no value at all, and of one that is none, a dash.
    """
    if not values or any(math.isnan(value) for value in values):
        return DASH
    mean = f"{100 * statistics.fmean(values):{sign}.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def _percent(value: float) -> str:
    return DASH if math.isnan(value) else f"{100 * value:.1f}"
