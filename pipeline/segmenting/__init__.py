"""`segment`: label maps, and objects, of any photographs, by trained networks."""

from pipeline.segmenting.command import segment

__all__ = ["segment"]
