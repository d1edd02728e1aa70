"""Tokenizers: the choice, the files, how documents become ids, and how a SentencePiece model is trained."""
