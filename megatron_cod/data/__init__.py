"""From text to Megatron's token files: tokenizer training, preprocessing, checks, a sample corpus.

`inputs` and `documents` read text, `tokenizers` turns it into ids with Megatron's own tokenizers,
`encode` does so in several processes, `writer` and `record` write `.bin`, `.idx` and `.json`,
`preprocess` ties these together, `check` verifies a finished dataset before training.
"""
