"""How much settings that Wu et al. do not print matter to what objects are found."""

from pipeline.sensitivity.command import sensitivity

__all__ = ["sensitivity"]
