"""Validation during training: the same samples at every evaluation, fp32 logits, loss and bits per byte.

`fixed_set` makes the sets of samples, `evaluations` measures and reports, `fp32_logits` has the output layer
compute in fp32.
"""
