"""From a history to token sequences: vocabulary, standardiser, and the only way in, ``tokenize`` (or as windows)."""

from ehrsequencing.tokens.growing import grow
from ehrsequencing.tokens.sequences import tokenize
from ehrsequencing.tokens.store import TokenStore
from ehrsequencing.tokens.tokenizer import Fitting, Tokenizer
from ehrsequencing.tokens.vocabulary import CLS, MASK, N_SPECIAL, PAD, UNK, ancestors
from ehrsequencing.tokens.windows import Windows, tokenize_windows

__all__ = [
    "CLS",
    "MASK",
    "N_SPECIAL",
    "PAD",
    "UNK",
    "Fitting",
    "TokenStore",
    "Tokenizer",
    "Windows",
    "ancestors",
    "grow",
    "tokenize",
    "tokenize_windows",
]
