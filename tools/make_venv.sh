#!/bin/sh
# Make .venv with Python >= 3.12 and the project in it. Safe to repeat: does nothing when .venv is up to date.
set -eu
cd "$(dirname "$0")/.."
stamp=.venv/.installed

fits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; }

if [ -f "$stamp" ] && [ ! pyproject.toml -nt "$stamp" ] && fits .venv/bin/python; then
    exit 0
fi

python=
for candidate in ${PYTHON:-} python3 python3.12 python3.13 python3.14 \
    "$HOME"/.pyenv/versions/3.1[2-9]*/bin/python3; do
    if command -v "$candidate" >/dev/null 2>&1 && fits "$candidate"; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    found=$(python3 --version 2>&1 || echo "no python3")
    cat >&2 <<EOF
error: Python 3.12 or newer is needed, found only: $found
  Ubuntu 24.04, Debian 13 and later:   apt install python3 python3-venv
  older systems:                       curl https://pyenv.run | sh && pyenv install 3.12
  or name one:                         make PYTHON=/path/to/python3.12 $*
EOF
    exit 1
fi

if ! fits .venv/bin/python; then
    echo "making .venv with $("$python" --version)"
    rm -rf .venv
    if ! "$python" -m venv .venv; then
        echo "error: $python cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2
        exit 1
    fi
fi
# uv downloads and unpacks several packages at a time: 50 s where pip takes 4 minutes. It does not read pip's settings:
# where pip has an index, a constraint or a proxy of its own, and where uv fails, pip installs.
with_uv() {
    ! .venv/bin/python -m pip config list | grep -qE '\.(index-url|no-index|constraint|proxy)=' &&
        .venv/bin/python -m pip install --quiet uv &&
        .venv/bin/python -m uv pip install --quiet --compile-bytecode --python .venv/bin/python --editable '.[dev]'
}
echo "installing megatron_cod and what it needs into .venv (torch is large: 1-5 minutes the first time)"
with_uv || .venv/bin/python -m pip install --quiet --editable '.[dev]'
touch "$stamp"
