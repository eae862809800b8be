"""Lets `prefect deployment run train-voc` mean train-voc/train-voc.

Prefect wants FLOW/DEPLOYMENT. It loads this module by the entry point in pyproject.toml and calls
`setup_environment` before it reads the command line, provided that prefect.toml switches such
hooks on: so this holds for commands typed in the project folder.
"""

import sys

from prefect.plugins import register_hook

NAMES = frozenset(  # as in prefect.yaml
    {
        "train-sample",
        "train-voc",
        "train-cityscapes",
        "train-context",
        "train-boxsup",
        "train-instances",
    }
)


def expand(argv: list[str]) -> list[str]:
    """The command line with a bare name of this project's, if it is the first word after
    `deployment run`, written out; any other command line as it is."""
    if argv[1:3] == ["deployment", "run"] and len(argv) > 3 and argv[3] in NAMES:
        return [*argv[:3], f"{argv[3]}/{argv[3]}", *argv[4:]]
    return argv


@register_hook
def setup_environment(*, ctx: object) -> None:
    """Prefect's start-up hook; `ctx` is its, and not needed."""
    sys.argv[:] = expand(sys.argv)
