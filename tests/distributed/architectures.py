"""Flags of architectures that are tried at several layouts."""

from tests.distributed.variants import Variant

MOE = (
    *("--num-experts", "4", "--moe-router-topk", "2", "--moe-ffn-hidden-size", "48"),
    *("--moe-router-load-balancing-type", "none", "--moe-token-dispatcher-type", "alltoall"),
)
MLA = (
    *("--multi-latent-attention", "--q-lora-rank", "16", "--kv-lora-rank", "16", "--qk-head-dim", "8"),
    *("--qk-pos-emb-head-dim", "8", "--v-head-dim", "8", "--qk-layernorm"),
)
FULL = ("--recompute-granularity", "full", "--recompute-method", "block", "--recompute-num-layers", "1")
QK = ("self_attention.q_layernorm", "self_attention.k_layernorm")
LATENT = ("self_attention.q_layernorm", "self_attention.kv_layernorm")
VARIANTS = {
    "dense": Variant(()),
    "gqa": Variant(("--group-query-attention", "--num-query-groups", "2")),
    "qk-norm": Variant(("--qk-layernorm",), QK),
    "tied": Variant((), tied=True),
    "mla": Variant(MLA, LATENT),
    "moe": Variant(MOE),
    "moe shared expert": Variant((*MOE, "--moe-shared-expert-intermediate-size", "32")),
    "moe dense first": Variant((*MOE, "--moe-layer-freq", "([0]*1+[1]*3)")),
    "recompute": Variant(FULL),
}
