"""The parts of Megatron-Core that data preparation uses, imported without its start-up noise.

Importing Megatron takes seconds. Modules here import this one inside their functions, after what can be
checked without it, so that a misspelt file name is answered at once.
"""

from __future__ import annotations

import logging
import warnings

with warnings.catch_warnings():
    # Missing Transformer Engine, Apex or CUDA is no concern of a tool that only writes token files.
    warnings.simplefilter("ignore")
    _cuda_notice = logging.getLogger("torch.utils.cpp_extension")
    _level = _cuda_notice.level
    _cuda_notice.setLevel(logging.ERROR)
    from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder
    from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer

    _cuda_notice.setLevel(_level)

__all__ = ["DType", "IndexedDataset", "IndexedDatasetBuilder", "build_tokenizer"]
