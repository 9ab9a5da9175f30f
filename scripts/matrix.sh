#!/usr/bin/env bash
# Both ends of what is supported, and two installations that differ: one fresh environment after another, with the package
# as a user installs it, and in each a selection of the tests with real planning, training and prediction.
#   scripts/matrix.sh [row ...]      without arguments all rows
# python3.10, python3.11 and python3.13 must be on PATH. A row downloads up to 3 GB and takes up to 8 GB of disk while it runs.
# $CPU_TORCH is a CPU build of torch for Python 3.11, a wheel or a requirement; where that lies, pip's own variables say.
set -euo pipefail
cd "$(dirname "$0")/.."

row() { # name, Python, requirements beside the package
    case $1 in
    oldest) echo "python3.10 nnunetv2==2.8.0 torch==2.1.2 numpy<2" ;; # that torch was built for numpy 1
    newest) echo "python3.13" ;;
    broken-torchvision) echo "python3.11 ${CPU_TORCH:-torch==2.13.0+cpu}" ;; # PyPI's torchvision is one for CUDA
    editable-nnunet) echo "python3.13" ;;
    *) echo "no row $1" >&2 && return 1 ;;
    esac
}

run_row() { # name, folder for everything that the row leaves
    local python requirements venv=$2/venv skip="cross_validation or byte_identical or bad_input"
    read -r python requirements <<<"$(row "$1")"
    "$python" -m venv "$venv"
    "$venv/bin/python" --version >"$2/versions"
    if [ "$1" = editable-nnunet ]; then
        "$venv/bin/pip" download --quiet --no-deps --no-binary nnunetv2 --dest "$2" nnunetv2
        mkdir "$2/nnUNet" "$2/trainers"
        tar -xzf "$2"/nnunetv2-*.tar.gz --strip-components 1 -C "$2/nnUNet"
        "$venv/bin/pip" install --quiet --config-settings editable_mode=compat --editable "$2/nnUNet"
        echo "from nnunetv2_crossmatch.trainers import __getattr__" >"$2/trainers/crossmatch.py"
        export nnUNet_extTrainer=$2/trainers
        skip+=" or timm" # nnU-Net looks there last, behind its Primus trainers
    fi
    # shellcheck disable=SC2086  # several requirements
    "$venv/bin/pip" install --quiet $requirements . pytest pytest-xdist
    "$venv/bin/pip" list --format=freeze | grep -E "^(torch|torchvision|nnunetv2|numpy)=" >>"$2/versions"
    if [ "$1" = broken-torchvision ]; then
        if "$venv/bin/python" -c "import timm"; then
            echo "timm can be imported: CPU_TORCH and torchvision fit each other" && return 1
        fi
        skip+=" or stock or other_names or subclass" # what nnU-Net would look up behind its Primus trainers, it does not find
    fi
    "$venv/bin/python" -m pytest -n 2 --dist loadfile -k "not ($skip)" tests/trainers/test_registration.py \
        tests/trainers/test_checkpoints.py tests/trainers/test_contract.py tests/self_training tests/preprocessing/test_unlabeled.py tests/methods tests/losses \
        tests/networks tests/views tests/nnunet tests/comparison tests/test_cli.py tests/test_end_to_end.py
}

[ $# -gt 0 ] || set -- oldest newest broken-torchvision editable-nnunet
table=""
for name in "$@"; do
    folder=$(mktemp -d)
    touch "$folder/versions"
    trap 'rm -rf "$folder"' EXIT
    set +e # a row that fails does not stop the others
    (set -e && run_row "$name" "$folder")
    [ $? = 0 ] && result=passed || result=FAILED
    set -e
    table+="$name: $result, $(tr '\n' ' ' <"$folder/versions")"$'\n'
    rm -rf "$folder"
done
printf '\n%s' "$table"
[[ $table != *FAILED* ]]
