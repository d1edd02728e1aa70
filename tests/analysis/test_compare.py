"""tools/compare_runs.py on real checkpoints: what is equal, and that every kind of difference is found and named."""

import json
import math
import runpy
import shutil
import subprocess
import sys

import pytest
import torch
import torch.distributed.checkpoint as dcp
from megatron.core import dist_checkpointing

from megatron_cod.checkpoint import tensors
from tests.conftest import ROOT
from tests.distributed.launch import run_training_ranks

TOOL = ROOT / "tools" / "compare_runs.py"
PP2 = ["--pipeline-model-parallel-size", "2"]
QKV = "decoder.layers.self_attention.linear_qkv.weight"
FC2 = "decoder.layers.mlp.linear_fc2.weight"
EMBEDDING = "embedding.word_embeddings.weight"


def train(world, flags, save):
    ended = run_training_ranks(world, [*flags, "--save", str(save), "--save-interval", "4"])
    assert [rank.code for rank in ended] == [0] * world, "\n----\n".join(rank.output[-2500:] for rank in ended)
    return save


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny):
    """A run of 8 steps over two stages that saves at 4 and 8."""
    return train(2, [*tiny, *PP2], tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def stopped(whole, tmp_path_factory):
    """The same run as it was on disk after step 4."""
    folder = tmp_path_factory.mktemp("stopped")
    shutil.copytree(whole / "iter_0000004", folder / "iter_0000004")
    (folder / "latest_checkpointed_iteration.txt").write_text("4")
    return folder


@pytest.fixture()
def compare(monkeypatch, capsys, tmp_path):
    """Run the tool in this process: exit code, stdout, stderr, and what it wrote with --json (None: nothing)."""

    def run(*arguments):
        file = tmp_path / "result.json"
        file.unlink(missing_ok=True)
        monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments), "--json", str(file)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(TOOL), run_name="__main__")
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return end.value.code, out, err, json.loads(file.read_text()) if file.exists() else None

    return run


@pytest.fixture()
def altered(whole, tmp_path):
    """Save step 8 again with ``change`` applied to its tensors, a dict; torch's own reader and writer do it."""

    def save(change):
        source, target = whole / "iter_0000008", tmp_path / "altered"
        stored = dcp.FileSystemReader(source).read_metadata().state_dict_metadata
        state = {key: torch.empty(m.size, dtype=m.properties.dtype) for key, m in stored.items() if hasattr(m, "size")}
        dcp.load(state, checkpoint_id=source, no_dist=True)
        change(state)
        # As Megatron keeps what is not a tensor: an array of one object.
        state["common_state/shard_0_1"] = [dist_checkpointing.load_common_state_dict(str(source))]
        planner = dcp.DefaultSavePlanner(flatten_state_dict=False)
        dcp.save(state, checkpoint_id=target, planner=planner, no_dist=True)
        shutil.copy(source / "metadata.json", target)
        return target

    return save


def differing(result):
    return {(row["name"], row["layer"]) for row in result["checkpoints"]["rows"] if not row["equal"]}


@pytest.mark.slow
def test_the_same_run_twice_is_equal_to_the_bit(whole, tiny, tmp_path, compare):
    twin = train(2, [*tiny, *PP2], tmp_path / "twin")
    code, out, _, result = compare(whole, twin)
    assert code == 0
    assert out.endswith("\nEQUAL to the bit\n")
    assert result["equal"] is True
    assert result["to_the_bit"] is True
    assert result["metrics"]["steps"] == [1, 2, 3, 4, 5, 6, 7, 8]
    rows = {(row["name"], row["layer"]) for row in result["checkpoints"]["rows"]}
    # 6 tensors a layer and 3 of none; each a weight and two Adam states.
    assert len(rows) == 3 * (4 * 6 + 3)
    assert {layer for name, layer in rows if name == f"optimizer.state.exp_avg_sq.{QKV}"} == {1, 2, 3, 4}
    assert min(row["largest"] for row in result["checkpoints"]["rows"]) > 0


@pytest.mark.slow
def test_other_layouts_from_one_checkpoint_are_near(whole, stopped, tiny, tmp_path, compare):
    flags = ["--tensor-model-parallel-size", "2", "--sequence-parallel", "--load", str(stopped)]
    other = train(2, [*tiny, *flags], tmp_path / "tp2")
    code, out, _, result = compare(whole, other, "--tolerance", "1e-5", "--rtol", "0")
    assert code == 0, out
    assert "only A has training steps 1, 2, 3, 4\n" in out
    assert "EQUAL within 1e-05, not to the bit" in out
    assert "tensor_model_parallel_size" in out
    assert result["to_the_bit"] is False
    assert len(result["checkpoints"]["rows"]) == 81
    assert {row["layer"] for row in result["checkpoints"]["rows"]} == {None, 1, 2, 3, 4}
    code, out, _, result = compare(whole, other)
    assert code == 1
    assert "DIFFERENT: " in out
    assert 0 < len(differing(result)) <= 81
    # Adam's second moments are tiny: relative to their own size they must agree too.
    assert compare(whole, other, "--checkpoints-only", "--rtol", "1e-4")[0] == 0


@pytest.mark.slow
def test_the_distributed_optimizer_is_compared_with_the_plain_one(tiny, tmp_path, compare):
    """It also keeps a copy of the weights, and another layout of the states on disk."""
    stop = ["--exit-interval", "4"]
    plain = train(2, [*tiny, *stop], tmp_path / "plain")
    sharded = train(2, [*tiny, *stop, "--use-distributed-optimizer"], tmp_path / "sharded")
    code, out, _, result = compare(plain, sharded, "--tolerance", "1e-5")
    assert code == 0, out
    assert "A keeps no fp32 copies of its fp32 weights" in out
    assert len(result["checkpoints"]["rows"]) == 4 * 27


@pytest.mark.slow
def test_one_changed_layer_is_named(whole, altered, compare, monkeypatch):
    def change(state):
        state[QKV][2, -1, -1] += 0.5

    monkeypatch.setattr(tensors, "CHUNK", 100)  # many pieces, the change in the last
    target = altered(change)
    code, out, _, result = compare(whole, target)
    assert code == 1
    assert differing(result) == {(QKV, 3)}
    row = next(row for row in result["checkpoints"]["rows"] if not row["equal"])
    assert row["max_abs_diff"] == pytest.approx(0.5)
    line = next(line for line in out.splitlines() if line.endswith("differs"))
    assert line.split()[:3] == [QKV, "3", "5.000e-01"]
    assert "DIFFERENT: 1 of 81 tensors" in out
    assert compare(whole, target, "--tolerance", "0.6")[0] == 0


def test_swapped_layers_are_both_named(whole, altered, compare):
    target = altered(lambda state: state[FC2].copy_(state[FC2][[0, 2, 1, 3]]))
    code, out, _, result = compare(whole / "iter_0000008", target, "--all")
    assert code == 1
    assert differing(result) == {(FC2, 2), (FC2, 3)}
    assert out.count(QKV) == 12, "--all prints the equal ones too: weights and two states of 4 layers"


def test_stacked_layers_equal_layers_one_by_one(whole, altered, compare):
    """As Megatron names the layers of a stack that are not alike: by the 0-based global index."""

    def change(state):
        for key in [key for key in state if "decoder.layers." in key]:
            for index, tensor in enumerate(state.pop(key)):
                state[key.replace("decoder.layers.", f"decoder.layers.{index}.")] = tensor.clone()
        state["decoder.layers.3.mlp.linear_fc2.weight"][0, 0] = 7.0

    code, _, _, result = compare(whole, altered(change))
    assert code == 1
    assert differing(result) == {(FC2, 4)}
    assert len(result["checkpoints"]["rows"]) == 81


def test_tensors_of_one_side_and_other_shapes_are_differences(whole, altered, compare):
    def change(state):
        del state[f"optimizer.state.exp_avg.{QKV}"]
        state["decoder.final_layernorm.weight"] = torch.zeros(31)

    code, out, _, result = compare(whole, altered(change))
    assert code == 1
    assert differing(result) == set()
    assert f"differs: optimizer.state.exp_avg.{QKV} (layers 1, 2, 3, 4): only in A" in out
    assert "differs: decoder.final_layernorm.weight: shape [32] in A, [31] in B" in out


def test_a_checkpoint_without_optimizer_states_is_compared_by_its_weights(whole, altered, compare):
    def change(state):
        for key in [key for key in state if key.startswith("optimizer.")]:
            del state[key]

    code, out, _, result = compare(whole, altered(change))
    assert code == 0
    assert "only A holds optimizer states: not compared" in out
    assert len(result["checkpoints"]["rows"]) == 27


def test_vocabulary_padding_is_a_matter_of_layout(whole, altered, compare):
    def change(state):
        for key in [key for key in state if key.endswith(EMBEDDING)]:
            state[key] = torch.cat([state[key], torch.ones(8, 32)])

    target = altered(change)
    code, out, _, _ = compare(whole, target)
    assert code == 0
    assert "only the 257 rows of the vocabulary: 264 and 272 with padding" in out


def test_another_type_is_a_difference_to_the_bit_only(whole, altered, compare):
    def change(state):
        state[EMBEDDING] = state[EMBEDDING].bfloat16()
        # What Megatron's bf16 optimizer without sharding calls the copy that a sharded one calls param.
        state["optimizer.state.fp32_param.decoder.final_layernorm.weight"] = torch.full((32,), 9.0)

    target = altered(change)
    code, out, _, result = compare(whole, target, "--rtol", "0.01")
    assert code == 1
    assert differing(result) == {("optimizer.state.param.decoder.final_layernorm.weight", None)}
    assert "float32 in A, bfloat16 in B" in out
    _, _, _, result = compare(whole, target)
    assert (EMBEDDING, None) in differing(result)


def test_nan_equals_nan_and_no_number(whole, altered, compare):
    def change(state):
        state[QKV][1, 0, :3] = math.nan

    target = altered(change)
    code, out, _, _ = compare(target, target)
    assert code == 0
    assert "3 NaN in both" in out
    code, _, _, result = compare(whole, target, "--tolerance", "1e9", "--rtol", "1e9")
    assert code == 1
    assert differing(result) == {(QKV, 2)}


def test_a_changed_metric_is_found_at_its_step(whole, tmp_path, compare):
    changed = tmp_path / "metrics.jsonl"
    records = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        if record["name"] == "lm loss" and record["step"] in (5, 7):
            record["value"] += 0.25 if record["step"] == 5 else 0.5
    # Another machine's speed is no difference.
    records += [{"step": 3, "name": "iteration-time", "value": 9.0}, {"step": 3, "name": "tokens/s", "value": 1.0}]
    changed.write_text("".join(json.dumps(record) + "\n" for record in records))
    code, out, _, result = compare(whole, changed)
    assert code == 1
    assert "first differing step: 5 (lm loss: " in out
    assert "Checkpoints: not compared" in out
    assert result["metrics"]["first_step"] == 5
    loss = result["metrics"]["rows"][0]
    assert (loss["tag"], loss["worst_step"], loss["max_abs_diff"]) == ("lm loss", 7, pytest.approx(0.5))
    assert compare(whole, changed, "--tolerance", "0.6")[0] == 0

    both = tmp_path / "slower.jsonl"
    both.write_text(changed.read_text().replace('"value": 9.0', '"value": 99.0'))
    assert compare(changed, both)[0] == 0
    both.write_text(changed.read_text().replace('"lm loss", "value": ', '"lm loss", "value": NaN, "was": ', 1))
    code, out, _, result = compare(changed, both, "--tolerance", "1e9")
    assert code == 1
    assert result["metrics"]["first_step"] == 1
    assert compare(both, both)[0] == 0


@pytest.mark.slow
def test_reports_another_scheme_first(whole, tiny, tmp_path, compare):
    other = train(2, [*tiny, *PP2, "--norm-scheme", "pre_ln", "--exit-interval", "4"], tmp_path / "pre_ln")
    code, out, _, _ = compare(whole, other, "--tolerance", "1e9")
    assert code == 1
    assert out.splitlines()[3] == "NORM SCHEME DIFFERS: lns in A, pre_ln in B"
    assert "saved argument norm_scheme: lns in A, pre_ln in B" in out
    assert "Checkpoints: step 4 of A, step 4 of B" in out, "the last step that both have"
    assert out.endswith("DIFFERENT: another norm scheme\n")


def test_other_steps_are_a_difference_even_with_equal_values(whole, compare):
    steps = whole / "iter_0000004", whole / "iter_0000008"
    code, out, _, _ = compare(*steps, "--tolerance", "1e9")
    assert code == 1
    assert "differs: step: 4 in A, 8 in B" in out
    assert compare(whole, whole, "--step", "4")[0] == 0


@pytest.mark.parametrize("damage", ["__1_0.distcp", ".metadata", "metrics.jsonl"])
def test_damaged_files_are_one_line(whole, tmp_path, compare, damage):
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    file = copy / damage if damage == "metrics.jsonl" else copy / "iter_0000008" / damage
    content = file.read_bytes()
    file.write_bytes(b"nonsense\n" + content if damage == "metrics.jsonl" else content[: len(content) // 2])
    code, out, err, result = compare(whole, copy)
    assert (code, out, result) == (2, "", None)
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert damage in err


def test_rejects_wrong_input_in_one_line(whole, stopped, tmp_path, compare):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare").mkdir()
    shutil.copy(whole / "metrics.jsonl", tmp_path / "bare")
    one = whole / "iter_0000008"
    cases = [
        ((tmp_path / "nowhere", whole), "nowhere does not exist"),
        ((whole, tmp_path / "empty"), "empty holds neither metrics.jsonl nor a finished checkpoint"),
        ((whole, tmp_path / "bare"), "bare has no finished checkpoint in the torch_dist format (try --metrics-only)"),
        ((whole, stopped, "--step", "8"), "no checkpoint of step 8: "),
        ((one, stopped), "no checkpoint of step 8: "),
        ((one, one, "--step", "8"), "--step picks a checkpoint of a run"),
        ((whole, one, "--metrics-only"), "iter_0000008 has no metrics.jsonl"),
        ((whole, whole / "metrics.jsonl", "--checkpoints-only"), "metrics.jsonl has no finished checkpoint"),
        ((whole, whole, "--tolerance", "-1"), "--tolerance must be a number from 0"),
    ]
    for arguments, message in cases:
        code, out, err, result = compare(*arguments)
        assert (code, out, result) == (2, "", None), arguments
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert message in err
    assert compare(whole, tmp_path / "bare", "--metrics-only")[0] == 0


@pytest.mark.slow
def test_runs_from_a_shell(whole):
    done = subprocess.run([sys.executable, TOOL, whole, whole, "--step", "4"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "EQUAL to the bit")
    assert "Warning" not in done.stderr
    assert "Traceback" not in done.stderr
