"""From a history to token sequences: vocabulary, value standardiser, and the only way in, ``tokenize``."""

from ehrsequencing.tokens.sequences import tokenize
from ehrsequencing.tokens.store import TokenStore
from ehrsequencing.tokens.tokenizer import Tokenizer
from ehrsequencing.tokens.vocabulary import CLS, MASK, N_SPECIAL, PAD, UNK, ancestors

__all__ = ["CLS", "MASK", "N_SPECIAL", "PAD", "UNK", "TokenStore", "Tokenizer", "ancestors", "tokenize"]
