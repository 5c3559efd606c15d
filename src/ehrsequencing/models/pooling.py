"""From a record's hidden states to the vectors that hazards are read from: one a record, or one a visit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from ehrsequencing.device import moved
from ehrsequencing.models.states import States
from ehrsequencing.models.tiles import WHOLE_ROWS
from ehrsequencing.outline import Outline


class Encoded(ABC):
    """B records after one pass of an encoder, and what can be read from it."""

    @abstractmethod
    def tokens(self) -> Float[Tensor, "B L H"]:
        """The hidden state of each token; at padded places finite and meaningless."""

    @abstractmethod
    def at(self, places: Int[Tensor, " M"]) -> Float[Tensor, "M H"]:
        """The hidden states at some places of the flattened [B, L], all of them real."""

    @abstractmethod
    def pooled(self) -> Float[Tensor, "B F"]:
        """One vector a record: F = 3H."""

    @abstractmethod
    def pooled_visits(self) -> Float[Tensor, "B V F"]:
        """One vector a visit, none of which a later visit has a part in (under the block-causal mask): F = 3H."""


def pool_visits(hidden: Float[Tensor, "B L H"], outline: Outline) -> Float[Tensor, "B V F"]:
    """Mean of a visit's tokens, their maximum, and the mean of all tokens so far, concatenated: F = 3H.

    Visit 0 is ``[CLS]`` with the static tokens. Sums run in the order of the tokens, so that no bit of a visit's
    vector depends on a later one. Vectors of numbers that a record does not have are finite and meaningless.

    >>> import numpy as np
    >>> outline = Outline.of(np.ones((1, 3), bool), np.array([[0, 1, 1]]))
    >>> hidden = torch.tensor([[[1.0], [2.0], [6.0]]])
    >>> pool_visits(hidden, outline)[0].tolist()
    [[1.0, 1.0, 1.0], [4.0, 6.0, 3.0]]
    """
    rows, width = len(hidden), hidden.shape[-1]
    n_visits, sizes = outline.n_visits, outline.visit_sizes.ravel()
    slot, place, size = (
        moved(torch.from_numpy(x), hidden.device) for x in (outline.slots, outline.places, sizes)
    )  # [T], [T], [BV]
    real = hidden.flatten(0, 1).index_select(0, place)  # [T,H]
    count = size.to(hidden.dtype)[:, None]  # [BV,1]
    empty = hidden.new_zeros(rows * n_visits, width)
    total = empty.index_add(0, slot, real)  # [BV,H]
    top = empty.scatter_reduce(0, slot[:, None].expand(-1, width), real, "amax", include_self=False)  # [BV,H]
    so_far = total.view(rows, n_visits, width).cumsum(dim=1).flatten(0, 1)  # [BV,H]
    tokens_so_far = count.view(rows, n_visits).cumsum(dim=1).view(-1, 1)  # [BV,1]
    pooled = [total / count.clamp_min(1), top, so_far / tokens_so_far]
    return torch.cat(pooled, dim=-1).view(rows, n_visits, 3 * width)  # [B,V,3H]


def whole_rows(x: Float[Tensor, "n F"]) -> Float[Tensor, "m F"]:
    """The rows, with rows of zeros to a whole multiple of WHOLE_ROWS."""
    return pad(x, (0, 0, 0, -len(x) % WHOLE_ROWS))


@dataclass(frozen=True, eq=False)
class EncodedTokens(Encoded):
    """Records whose tokens were attended one by one."""

    states: States
    mask: Bool[Tensor, "B L"]
    outline: Outline

    def tokens(self) -> Float[Tensor, "B L H"]:
        """As the encoder gave them."""
        return self.states.padded

    def at(self, places: Int[Tensor, " M"]) -> Float[Tensor, "M H"]:
        """Read where they are."""
        return self.states.at(places)

    def pooled(self) -> Float[Tensor, "B F"]:
        """``pool`` over the tokens."""
        return self.states.pooled(self.mask)

    def pooled_visits(self) -> Float[Tensor, "B V F"]:
        """``pool_visits``."""
        return pool_visits(self.states.padded, self.outline)
