"""What Megatron lacks without a GPU, and without Transformer Engine and Apex: tables of replacements, with reasons."""
