"""Conversations for supervised fine-tuning: JSON lines -> a chat template's text -> tokens, of which some are trained.

``conversations`` reads files, ``templates`` renders, ``encoders`` turn text into ids, ``chat_format`` puts these together,
``samples`` holds the result, ``packing`` cuts it into rows, ``rows`` is what the loader reads.
"""
