"""The command megatron-cod, and what a user has without a checkout."""
