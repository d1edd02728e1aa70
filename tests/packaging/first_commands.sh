#!/usr/bin/env bash
# What a newcomer types after pip install, in an empty folder: exit code 0 when each command did what it should.
# Used by tests/packaging/test_installed.py and the release workflow. PATH must have the command megatron-cod.
set -euo pipefail
[ -z "$(ls -A)" ] || { echo "error: start this in an empty folder" >&2 && exit 1; }
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-}"
SECONDS=0
toy=(--num-layers 4 --hidden-size 32 --ffn-hidden-size 64 --seq-length 64 --eval-iters 1)
step() { printf '\n[%4d s] $ %s\n' "$SECONDS" "$*" && "$@"; }

step megatron-cod --version
step megatron-cod recipes list
step megatron-cod train --recipe debug --train-iters 2 --log-interval 1 --save runs/alone "${toy[@]}"
step megatron-cod quickstart --steps 2 -- "${toy[@]}"
for number in $(seq 40); do printf '{"text": "Document %d says that deep blocks should do some work too."}\n' "$number"; done >notes.jsonl
step megatron-cod preprocess --input notes.jsonl --output-prefix notes --tokenizer-type ByteLevelTokenizer --append-eod \
    --holdout-every 5
step megatron-cod train --nproc 2 --recipe debug --pipeline-model-parallel-size 2 --train-iters 4 --log-interval 1 \
    --train-data-path notes_train_text_document --valid-data-path notes_valid_text_document --save runs/first "${toy[@]}"
step megatron-cod evaluate --load runs/first --eval-data notes=notes_valid_text_document
step megatron-cod convert export --checkpoint runs/first --output hf/first
step megatron-cod generate --model hf/first "Deep blocks" --max-new-tokens 3
step megatron-cod analyze --model hf/first --data notes.jsonl --output report --tokens 64 --fit-tokens 96 --seq-length 32 \
    --batch 1
step megatron-cod rehearse --world-size 8 --recipe debug --mock-data --pipeline-model-parallel-size 4 --global-batch-size 8
step megatron-cod init job
test -x job/examples/single_node.sh
test -f report/report.html -a -f hf/first/model.safetensors -a -f runs/quickstart/comparison.png
echo "all commands ran in $SECONDS s"
