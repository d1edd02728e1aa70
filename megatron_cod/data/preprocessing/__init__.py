"""Text to Megatron's token files, in parallel, resumable and independent of the number of workers."""
