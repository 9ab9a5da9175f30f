#!/usr/bin/env bash
# Everything that has to pass: a fresh virtual environment with the built package, ruff, mypy, deptry, import contracts, tests.
#   scripts/test.sh [pytest arguments]      the environment stays in $TEST_VENV if that is set
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${TEST_VENV:-}
if [ -z "$venv" ]; then
    venv=$(mktemp -d)
    trap 'rm -rf "$venv"' EXIT
fi
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install --quiet ".[dev]"
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/mypy"
"$venv/bin/deptry" .
"$venv/bin/lint-imports"
"$venv/bin/python" -m pytest -n 2 --dist loadfile "$@"
