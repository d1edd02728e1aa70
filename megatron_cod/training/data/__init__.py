"""From datasets to micro-batches: what is checked, how samples are ordered, and what each rank receives."""
