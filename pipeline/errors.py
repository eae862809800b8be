"""What the command line says when it cannot go on.

Exit codes of every command: 0 done, 1 found problems it was asked to look for,
2 bad input, 3 a file must be placed by hand.
"""


class BadInput(Exception):
    """Something given is wrong: the message names it and says what to do. Exit code 2."""


class PlaceByHand(Exception):
    """A file cannot be fetched: the message says which, from where, to which path. Exit code 3."""
