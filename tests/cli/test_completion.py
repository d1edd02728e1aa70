"""``megatron-cod completion``: what a shell completes with its script."""

import subprocess

import pytest

from megatron_cod.cli.completion import SHELLS, parser_of, script
from megatron_cod.cli.main import COMMANDS

ASK = """
function=$(complete -p megatron-cod | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_WORDS=(megatron-cod "$@"); COMP_CWORD=$#
$function
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def bash(tmp_path_factory):
    path = tmp_path_factory.mktemp("shell") / "script"
    path.write_text(script("bash") + ASK)
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pre"], ["preprocess", "preflight"]),
        (["train", "--norm-sch"], ["--norm-scheme"]),
        (["evaluate", "--recipe", "llama_1"], ["llama_130m", "llama_1b"]),
        (["convert", "ex"], ["export"]),
        (["convert", "import", "--as-s"], ["--as-scheme"]),
        (["sft", "--nothing"], []),
    ],
    ids=" ".join,
)
def test_bash_completes(bash, words, expected):
    done = subprocess.run(["bash", str(bash), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == expected


@pytest.mark.parametrize("shell", SHELLS)
def test_script_has_every_flag_of_every_command(shell):
    text = script(shell)
    for name, row in COMMANDS.items():
        assert name in text
        parser = parser_of(name, row.module or name.replace("-", "_"))
        flags = {flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")}
        missing = [flag for flag in flags if flag.removeprefix("--" if shell == "tcsh" else "") not in text]
        assert missing == [], name
