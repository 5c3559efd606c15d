"""The kinds of encoder as data: what each is for, its class, and what its heads read at first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from ehrsequencing.errors import EhrError, Exit, nearest


@dataclass(frozen=True)
class Architecture:
    """A kind of encoder.

    Attributes:
        home: module and class, imported where one is built (``encoder_class``), since the classes need this module.
        refused: head relations that say nothing in it, and why.
    """

    why: str
    home: str
    refused: Mapping[str, str] = field(default_factory=dict)

    def relations(self, wanted: Sequence[str]) -> tuple[str, ...]:
        """What its heads read where ``wanted`` is asked for: the whole record in place of what says nothing in it."""
        return tuple("record" if name in self.refused else name for name in wanted)


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "behrt": Architecture(
            "attention over all tokens of a record: sees which tokens stood together, at the price of its length",
            "ehrsequencing.models.behrt:BEHRTModel",
        ),
        "hierarchical": Architecture(
            "attention pooling over the tokens of each visit, then attention over visits: cheap where visits are long",
            "ehrsequencing.models.hierarchical:HierarchicalBEHRT",
            MappingProxyType({"visit": "the timeline reads whole visits: within its own, a visit would read itself"}),
        ),
    }
)
"""Encoders by name, all under the same tokens, loop, losses and strategies."""


def architecture_of(name: str) -> Architecture:
    """The entry of that name; EhrError (exit 10) names the nearest known one.

    >>> architecture_of("hierarchical").relations(("visit", "past"))
    ('record', 'past')
    """
    if name not in ARCHITECTURES:
        close = nearest(name, ARCHITECTURES, 1)
        fix = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(ARCHITECTURES)}"
        raise EhrError(f"unknown architecture '{name}'", "BEHRTConfig.architecture", fix, code=Exit.CONFIG)
    return ARCHITECTURES[name]
