"""``--hf-export-interval``: checkpoints of a run become Hugging Face directories while it trains.

``checks.py`` refuses models that no export computes, ``observer.py`` starts the exports on rank 0, ``process.py`` is one of
them.
"""
