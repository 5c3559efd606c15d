"""Hyper-parameters of the encoder and its heads, as they travel with the weights."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from ehrsequencing.errors import EhrError, Exit
from ehrsequencing.models.architectures import architecture_of
from ehrsequencing.models.attention import RELATIONS

SIZES: dict[str, dict[str, int]] = {
    "small": {"embedding_size": 64, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4},
    "medium": {"embedding_size": 128, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8},
    "large": {"embedding_size": 256, "hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8},
    "base": {
        "embedding_size": 768,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
}

HEAD_RELATIONS = ("record", "past", "visit", "past")
"""What the heads of a new encoder read, in turn."""
HEAD_HAZARDS = {"mlp": "per_bin", "linear": "proportional", "residual": "mixed"}
"""The heads, and whether the bins share what the features say unless a model says otherwise."""
HAZARDS = ("proportional", "per_bin", "mixed")
ATTENTIONS = ("bidirectional", "block_causal")
BIDIRECTIONAL_LEAK = (
    "hazards at every visit under a bidirectional mask: each visit would be predicted from vectors that have read the "
    "visits after it, the outcome's own traces among them, so figures would be far too good and useless at the bedside"
)
LEAK_FIX = "pretrain with --attention block_causal (in a study: model: {attention: block_causal}): no visit sees later"


def _choose(known: tuple[str | None, ...]) -> str:
    return f"choose {' or '.join(filter(None, known))}"


class BEHRTConfig(PretrainedConfig):
    """Every hyper-parameter of the encoder and its heads; travels with the weights as config.json.

    ``architecture`` names the kind of encoder (``ARCHITECTURES``). ``relations`` says what each attention head may
    read (``attention.RELATIONS``), repeated over the heads; empty: all of the record, as encoders saved before there
    were relations. ``code_dropout`` is the mean share of a record's
    codes that are hidden from a pass in training. ``value_codes`` are the ids that carry numeric values (only they
    have a value vector). ``intermediate_size`` 0 means twice the hidden size. ``attention`` is the mask:
    ``bidirectional``, or ``block_causal`` (a token sees its own and earlier visits only). ``predict_at`` says where
    hazards are given: at the ``index`` (one a record) or at ``every_visit``. ``pairs`` of codes (kind, id, id) are read
    from the tokens beside the pooled vector (``pair_reader``). ``hazards`` are ``proportional`` (all bins
    share what the features say) or ``per_bin``; None: as the head had them before there was a choice
    (``head_hazards``; the residual head's were ``mixed``: the linear part shared, the MLP per bin). ``freeze_behrt``,
    ``use_lora`` and ``lora_*`` record the strategy, so that a saved model is rebuilt as it was trained.

    >>> BEHRTConfig.small(vocab_size=1_004).hidden_size
    128
    """

    model_type = "behrt"
    __no_type_check__ = True  # run-time checkers read the fields as the signature; from_dict passes more than those

    tie_word_embeddings: bool = True
    architecture: str = "behrt"
    vocab_size: int = 1_004
    value_codes: list[int] | tuple[int, ...] = ()
    embedding_size: int = 64
    hidden_size: int = 128
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    intermediate_size: int = 0
    max_visits: int = 128
    dropout: float | int = 0.1
    attention_dropout: float | int = 0.0
    code_dropout: float | int = 0.0
    attention: str = "bidirectional"
    relations: list[str] | tuple[str, ...] = ()
    predict_at: str = "index"
    pairs: list[list[str | int]] | tuple[tuple[str | int, ...], ...] = ()
    n_bins: int = 20
    n_causes: int = 1
    head: str = "mlp"
    hazards: str | None = None
    head_hidden: int = 40
    head_dropout: float | int = 0.1
    freeze_behrt: bool = False
    use_lora: bool = False
    lora_rank: int = 16
    lora_alpha: float | int = 32
    lora_dropout: float | int = 0.0
    lora_targets: list[str] | tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "out_proj")
    lora_rank_stabilised: bool = False
    lora_dora: bool = False
    lora_train_embeddings: bool = False
    lora_train_norms: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.intermediate_size = self.intermediate_size or 2 * self.hidden_size
        self.check()

    def check(self) -> None:
        """EhrError (exit 10) for settings that contradict each other."""
        if self.freeze_behrt and self.use_lora:
            raise EhrError(
                "freeze_behrt and use_lora are both true: a frozen encoder has no adapter to train",
                "BEHRTConfig",
                "choose one of the two",
                code=Exit.CONFIG,
            )
        choices: dict[str, tuple[str | None, ...]] = {
            "attention": ATTENTIONS,
            "predict_at": ("index", "every_visit"),
            "head": tuple(HEAD_HAZARDS),
            "hazards": (*HAZARDS, None),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                what = f"unknown {name} '{getattr(self, name)}'"
                raise EhrError(
                    what, f"BEHRTConfig.{name}", f"choose {' or '.join(filter(None, known))}", code=Exit.CONFIG
                )
        if self.predict_at == "every_visit" and self.attention != "block_causal":
            raise EhrError(BIDIRECTIONAL_LEAK, "BEHRTConfig.attention", LEAK_FIX, code=Exit.LEAKAGE)
        kind = architecture_of(self.architecture)
        unknown = [name for name in self.relations if name not in RELATIONS]
        if unknown or len(self.relations) > self.num_attention_heads:
            what = f"unknown relation '{unknown[0]}'" if unknown else f"{len(self.relations)} relations for fewer heads"
            fix = f"choose of {', '.join(RELATIONS)}, at most one a head"
            raise EhrError(what, "BEHRTConfig.relations", fix, code=Exit.CONFIG)
        for name in set(self.relations) & set(kind.refused):
            what = f"relation '{name}' under architecture '{self.architecture}': {kind.refused[name]}"
            fix = f"choose of {', '.join(r for r in RELATIONS if r not in kind.refused)}"
            raise EhrError(what, "BEHRTConfig.relations", fix, code=Exit.CONFIG)
        if not 0 <= self.code_dropout < 1:
            what = f"expected a share below 1, found {self.code_dropout}"
            raise EhrError(what, "BEHRTConfig.code_dropout", "choose for instance 0.3", code=Exit.CONFIG)
        if self.hidden_size % (2 * self.num_attention_heads):
            raise EhrError(
                f"hidden_size {self.hidden_size} is no multiple of 2 x num_attention_heads {self.num_attention_heads}",
                "BEHRTConfig",
                "choose sizes that divide",
                code=Exit.CONFIG,
            )

    @property
    def n_features(self) -> int:
        """What a hazard head reads: the pooled vector, and a number a pair."""
        return 3 * self.hidden_size + len(self.pairs)

    @property
    def head_hazards(self) -> str:
        """``proportional`` or ``per_bin``."""
        return self.hazards or HEAD_HAZARDS[self.head]

    @property
    def head_relations(self) -> tuple[str, ...]:
        """The relation of each head, or none where every head reads the whole record."""
        if not set(self.relations) - {"record"}:
            return ()
        turns = -(-self.num_attention_heads // len(self.relations))
        return ((*self.relations,) * turns)[: self.num_attention_heads]

    @classmethod
    def of_size(cls, size: str, vocab_size: int, **overrides: Any) -> BEHRTConfig:
        """The named size (small, medium, large, base) with ``overrides`` on top; EhrError for an unknown name."""
        if size not in SIZES:
            raise EhrError(f"unknown model size '{size}'", "model.size", f"one of {', '.join(SIZES)}", code=Exit.CONFIG)
        settings: dict[str, Any] = {**SIZES[size], "vocab_size": vocab_size, **overrides}
        kind = architecture_of(settings.get("architecture", cls.architecture))
        relations = kind.relations(HEAD_RELATIONS)
        return cls(**{"relations": relations[: settings["num_attention_heads"]], **settings})

    @classmethod
    def small(cls, vocab_size: int, **overrides: Any) -> BEHRTConfig:
        """64/128, 3 layers, 4 heads: about 500 k parameters at 1,000 codes."""
        return cls.of_size("small", vocab_size, **overrides)

    @classmethod
    def medium(cls, vocab_size: int, **overrides: Any) -> BEHRTConfig:
        """128/256, 4 layers, 8 heads."""
        return cls.of_size("medium", vocab_size, **overrides)

    @classmethod
    def large(cls, vocab_size: int, **overrides: Any) -> BEHRTConfig:
        """256/512, 6 layers, 8 heads."""
        return cls.of_size("large", vocab_size, **overrides)

    @classmethod
    def base(cls, vocab_size: int, **overrides: Any) -> BEHRTConfig:
        """768/768, 12 layers, 12 heads: for GPUs."""
        return cls.of_size("base", vocab_size, **overrides)
