"""The hierarchical encoder: each visit pooled from its tokens by attention, then a transformer over visits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ehrsequencing.batches import Batch
from ehrsequencing.device import moved
from ehrsequencing.models.attention import Layout
from ehrsequencing.models.behrt import BEHRTEmbeddings, BEHRTModel, side_scale, sinusoids
from ehrsequencing.models.configuration import BEHRTConfig
from ehrsequencing.models.pooling import Encoded, whole_rows
from ehrsequencing.models.states import States

SIZE_SCALE = 4
"""What the log of a visit's tokens is divided by: 50 tokens give about 1."""


class Timeline(NamedTuple):
    """The visits of B records, as a batch of V "tokens" a record, and where each real token's visit is in it.

    ``visits`` has the age and time gap of each visit's first token ([CLS] of visit 0, which stands for the record) and
    its number of tokens as ``value``; ``slot`` is the place in the flattened [B, V] of each of the T real tokens.
    """

    visits: Batch
    slot: Int[Tensor, " T"]

    @classmethod
    def of(cls, batch: Batch) -> Timeline:
        """Visits stand together in their record, in ascending order and without gaps in their numbers."""
        rows, outline, device = len(batch), batch.outline, batch.mask.device
        n, opens = outline.n_visits, outline.opens
        parts = (outline.places[opens], outline.slots[opens], outline.slots, outline.visit_sizes)
        first, to, slot, size = (moved(torch.from_numpy(part), device) for part in parts)  # [S], [S], [T], [B,V]

        def of_first(x: Tensor) -> Tensor:
            return x.new_zeros(rows * n).index_copy(0, to, x.flatten().index_select(0, first)).view(rows, n)

        real = size > 0  # [B,V]
        visits = Batch(
            code=torch.zeros_like(size),
            value=size.to(batch.value.dtype),
            has_value=real,
            age=of_first(batch.age),
            age_known=of_first(batch.age_known),
            visit=torch.arange(n, device=device).expand(rows, n) * real,
            gap=of_first(batch.gap),
            mask=real,
        )
        return cls(visits.outlined(outline.visits), slot)


class VisitEmbeddings(BEHRTEmbeddings):
    """What a token says (code + value × the code's vector), and when a visit was (age + number + time gap + size).

    Both are normalised and projected to hidden, apart from each other.
    """

    def __init__(self, config: BEHRTConfig) -> None:
        super().__init__(config)
        width = config.embedding_size
        self.size_projection = nn.Linear(1, width, bias=False)
        self.moment_norm = nn.LayerNorm(width)
        self.moment_projection = nn.Linear(width, config.hidden_size)

    def forward(self, batch: Batch) -> Float[Tensor, "T H"]:  # type: ignore[override]  # in no layout of attention
        """Of the T real tokens, record by record; in training some of each record's codes may be hidden."""
        place = moved(torch.from_numpy(batch.outline.places), batch.mask.device)  # [T]

        def real(x: Tensor) -> Tensor:
            return x.flatten(0, 1).index_select(0, place)[None]

        given = None if self.given_content is None else real(self.given_content)
        batch = self.shown(batch).laid(real)  # [1,T]
        x = self.code_embedding(batch.code) if given is None else given  # [1,T,W]
        if self.value_embedding is not None:
            x = x + self.value_term(batch, self.value_embedding)  # [1,T,W]
        return self.projection(self.dropout(self.norm(whole_rows(x[0]))))[: x.shape[1]]  # [T,H]

    def moments(self, visits: Batch, layout: Layout) -> Float[Tensor, "B2 V2 H"]:
        """Of each visit of a ``Timeline``, in ``layout``; what stands at padded places is finite and meaningless."""
        numbers = layout.shape[1]
        visits = visits.laid(layout.pack)
        x = self._age(visits) + self._gap(visits)  # [B2,V2,W]
        x = x + self.size_projection(visits.value.log1p()[..., None] / SIZE_SCALE)  # [B,V,W]
        x = x + self.visit_embedding(visits.visit.clamp_max(self.visit_embedding.num_embeddings - 1))  # [B,V,W]
        where = sinusoids(numbers, x.shape[-1], x.device).to(x.dtype) * side_scale(x.shape[-1])  # [V,W]
        x = x + where[visits.visit]  # [B2,V2,W]
        return self.moment_projection(self.dropout(self.moment_norm(x)))  # [B2,V2,H]


class AttentionPool(nn.Module):
    """A visit's vector: √n times the sum of its n tokens, weighted by a softmax within the visit of a learned score.

    Without √n, which keeps a sum's spread where tokens differ, a code would be the fainter the more stands beside it.
    One score a token and head, each weighing its own share of the channels (attention with a learned query, Yang et al.
    2016, hierarchical attention networks, NAACL). Sums run in the order of the tokens, so that no bit of a visit's
    vector depends on another visit.
    """

    def __init__(self, config: BEHRTConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.score = nn.Linear(config.hidden_size, self.heads, bias=False)  # softmax does not see a bias

    def forward(self, content: Float[Tensor, "T H"], slot: Int[Tensor, " T"], n: int) -> Float[Tensor, "n H"]:
        """The vectors of n visits, of which ``slot`` names each token's own."""
        weight = self.weights(content, slot, n)  # [T,heads]
        size = weight.new_zeros(n).index_add(0, slot, weight.new_ones(len(slot)))  # [n]
        weight = weight * size.sqrt()[slot][:, None]  # [T,heads]
        parts = content.unflatten(-1, (self.heads, -1)) * weight[..., None]  # [T,heads,D]
        return parts.new_zeros(n, content.shape[-1]).index_add(0, slot, parts.flatten(1))  # [n,H]

    def weights(self, content: Float[Tensor, "T H"], slot: Int[Tensor, " T"], n: int) -> Float[Tensor, "T heads"]:
        """How much each token counts in its visit: 1 in all, a head."""
        score = self.score(whole_rows(content))[: len(content)]  # [T,heads]
        own = slot[:, None].expand(-1, self.heads)  # [T,heads]
        lowest = score.new_full((n, self.heads), -torch.inf)
        top = lowest.scatter_reduce(0, own, score.detach(), "amax")  # [n,heads]
        weight = (score - top[slot]).exp()  # [T,heads]
        total = weight.new_zeros(n, self.heads).index_add(0, slot, weight)  # [n,heads]
        return weight / total[slot]


@dataclass(frozen=True, eq=False)
class EncodedVisits(Encoded):
    """Records whose visits were attended one by one.

    Attributes:
        attended: of the visits, visit 0 being ``[CLS]`` with the static tokens.
        seen: True at real visits.
        content: of the T real tokens, each of which lies at ``slot`` of the flattened [B, V].
        place: where each of them lies in the flattened [B, L].
        mask: of the tokens.
    """

    attended: States
    seen: Bool[Tensor, "B V"]
    content: Float[Tensor, "T H"]
    slot: Int[Tensor, " T"]
    place: Int[Tensor, " T"]
    mask: Bool[Tensor, "B L"]
    norm: nn.LayerNorm

    @property
    def states(self) -> Float[Tensor, "B V H"]:
        """Of the visits, padded."""
        return self.attended.padded

    def tokens(self) -> Float[Tensor, "B L H"]:
        """What a token says and what the timeline knows of its visit, added and normalised."""
        own = self.content + self.states.flatten(0, 1).index_select(0, self.slot)  # [T,H]
        hidden = own.new_zeros(self.mask.numel(), own.shape[-1]).index_copy(0, self.place, self.norm(own))  # [BL,H]
        return hidden.unflatten(0, self.mask.shape)

    def at(self, places: Int[Tensor, " M"]) -> Float[Tensor, "M H"]:
        """The same at some places alone."""
        own = self.mask.flatten().cumsum(dim=0)[places] - 1  # [M]
        states = self.states.flatten(0, 1).index_select(0, self.slot[own])  # [M,H]
        return self.norm(self.content.index_select(0, own) + states)

    def pooled(self) -> Float[Tensor, "B F"]:
        """Visit 0, mean and maximum over the record's visits, concatenated: F = 3H."""
        return self.attended.pooled(self.seen)

    def pooled_visits(self) -> Float[Tensor, "B V F"]:
        """A visit's state, the maximum and the mean of the states so far, concatenated: F = 3H.

        Vectors of numbers that a record does not have are finite and meaningless.
        """
        count = torch.arange(1, self.states.shape[1] + 1, device=self.states.device)[:, None]  # [V,1]
        so_far = self.states.cumsum(dim=1) / count  # [B,V,H]
        return torch.cat([self.states, self.states.cummax(dim=1).values, so_far], dim=-1)  # [B,V,3H]


class HierarchicalBEHRT(BEHRTModel):
    """A visit encoder (attention pooling over a visit's tokens) and a timeline of pre-norm blocks over visits.

    Age, visit number, time gap and size enter with the visit; tokens bring code and value alone, so that their order
    within a visit says nothing. The blocks, their masks, head relations and rotary coordinates are those of
    ``BEHRTModel``, one "token" being a visit: block-causal, a visit sees itself and earlier ones.
    """

    embeddings: VisitEmbeddings

    def _build(self, config: BEHRTConfig) -> None:
        self.embeddings = VisitEmbeddings(config)
        self.visit_pool = AttentionPool(config)
        self._build_blocks(config)

    def forward(self, batch: Batch) -> Float[Tensor, "B L H"]:
        """Hidden states of the tokens, independent of padding, of other records and, block-causal, of later visits."""
        return self.encoded(batch).tokens()

    def _encoded(self, batch: Batch) -> Encoded:
        visits, slot = Timeline.of(batch)
        content = self.embeddings(batch)  # [T,H]
        vectors = self.visit_pool(content, slot, visits.mask.numel()).unflatten(0, visits.mask.shape)  # [B,V,H]

        def embed(own: Batch, layout: Layout) -> Tensor:
            return layout.pack(vectors) + self.embeddings.moments(own, layout)

        states = self._attended(visits, embed)
        place = moved(torch.from_numpy(batch.outline.places), slot.device)  # [T]
        return EncodedVisits(states, visits.mask, content, slot, place, batch.mask, self.norm)
