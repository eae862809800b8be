"""Wu et al.: from category and box maps of an image to the masks of its objects."""

from pipeline.instances.components import component_instances
from pipeline.instances.decoding import Instances, best_first, find_instances, find_votes
from pipeline.instances.votes import Votes

__all__ = [
    "Instances",
    "Votes",
    "best_first",
    "component_instances",
    "find_instances",
    "find_votes",
]
