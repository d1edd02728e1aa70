"""Reading finished runs: metrics, tables, plots. Nothing here needs Megatron."""
