"""An odd ``--ffn-hidden-size`` with SwiGLU, which Megatron-Core 0.19.2 trains and cannot warm up."""

from typing import Any

from megatron_cod.args import MegatronArgs


def widen_warm_up(args: MegatronArgs, model_config: Any) -> None:
    """Let Megatron warm its fused SwiGLU up where the width of a rank is odd. Call last before ``pretrain``.

    It takes a tensor as wide as the layer's result, ``--ffn-hidden-size`` / TP, and halves it
    (``megatron.training.initialize._warmup_jit_function``). What the layer really halves is twice as wide, and so is the
    tensor once the argument is doubled, which it is until the model is built. The model's own configuration is made
    already, and nothing reads the argument in between.

    args: after Megatron's validation, the ones that Megatron holds. model_config: of the model that is built next.
    """
    width = args.ffn_hidden_size
    if not args.swiglu or width // args.tensor_model_parallel_size % 2 == 0:
        return

    def restore(model: list[Any]) -> list[Any]:
        args.ffn_hidden_size = width
        return model

    args.ffn_hidden_size = 2 * width
    model_config.pre_wrap_hooks.append(restore)
