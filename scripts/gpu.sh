#!/usr/bin/env bash
# Everything that needs a GPU to be seen: the tests with CUDA and NCCL, what a step costs compiled and not, then benches.
#   scripts/gpu.sh FOLDER [--data DATA] [--minutes 25] [--wheels WHEELS] [--dry-run]
# DATA holds ACDC and LA as gap.py wants them; without it there are no benches. WHEELS is a folder of wheels for a
# machine without network (README.md says how they are made). $PYTHON is an interpreter that has
# everything; without it there will be a virtual environment in FOLDER.
# Each part leaves its log, its figures as JSON and a line in parts.jsonl (exit code, 124: out of time; seconds). The
# same command again goes on: what has ended well is not done again. --dry-run: all of it on the CPU, toys.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
usage() { sed -n 3p "$0" | cut -c5- >&2 && exit 2; }
data="" minutes=25 wheels="" dry=""
[ $# -gt 0 ] && [[ $1 != -* ]] || usage
mkdir -p "$1" && folder=$(cd "$1" && pwd) && shift
while [ $# -gt 0 ]; do
    case $1 in
    --data) data=$(cd "$2" && pwd) && shift 2 || exit 2 ;;
    --minutes) minutes=$2 && shift 2 ;;
    --wheels) wheels=$(cd "$2" && pwd) && shift 2 || exit 2 ;;
    --dry-run) dry=1 && shift ;;
    *) usage ;;
    esac
done
end=$((SECONDS + 60 * minutes)) failed=0
device=cuda benches="acdc-3,27,2d la-8,18,3d_fullres" bill=8000 batches=2000 steps=(--steps 20)
if [ "$dry" ]; then
    device=cpu benches=toy,99,2d bill=300 batches=10 steps=(--steps 2 --warm-up 1) data=$folder
    export nnUNet_n_proc_DA=1
fi

part() { # name, command: once, and no longer than there is time
    local name=$1 start=$SECONDS code
    shift
    grep -qs "\"part\": \"$name\", \"exit\": 0," "$folder/parts.jsonl" && return
    [ $SECONDS -lt $end ] || { failed=1 && return 1; }
    timeout $((end - SECONDS)) "$@" >"$folder/$name.log" 2>&1
    code=$?
    echo "{\"part\": \"$name\", \"exit\": $code, \"seconds\": $((SECONDS - start))}" | tee -a "$folder/parts.jsonl"
    [ $code = 0 ] || failed=1
    return $code
}
install() {
    python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet ${wheels:+--no-index --find-links "$wheels"} "$here/..[dev]"
}
prepare() { # bench: from the beginning, as a call before may have been cut off
    rm -rf "${folder:?}/$1"
    python "$here/gap.py" prepare "$folder/$1" "$1" "$data" &&
        python "$here/gap.py" pool "$folder/$1" "$1" --parts 2 --batches $batches
}
export -f install prepare
export folder here wheels data batches

[ "${PYTHON:-}" ] || { part install bash -c install && PYTHON=$folder/venv/bin/python; } || exit 1
PATH=$(dirname "$PYTHON"):$PATH
export nnUNet_raw=$folder/raw nnUNet_preprocessed=$folder/preprocessed nnUNet_results=$folder/results
command -v nvidia-smi >/dev/null && {
    nvidia-smi --query-gpu=timestamp,name,utilization.gpu,memory.used --format=csv -l 1 >>"$folder/nvidia-smi.csv" &
    trap "kill $!" EXIT
}

cd "$here/.." || exit
part cuda python -m pytest -q tests/trainers/test_cuda.py
part plans python "$here/gpu_plans.py" "$folder" ${dry:+--toy}
for plan in "991 2d" "992 3d_fullres" "993 3d_fullres"; do
    read -r dataset configuration <<<"$plan"
    for compile in f t; do
        name=benchmark_${dataset}_compile_$compile
        nnUNet_compile=$compile part "$name" python "$here/benchmark.py" -d "$dataset" -c "$configuration" \
            --device $device --synthetic "${steps[@]}" --out "$folder/$name.json"
    done
done
for bench in ${data:+$benches}; do
    IFS=, read -r bench dataset configuration <<<"$bench"
    part "prepare_$bench" bash -c "prepare $bench" || continue
    nnUNet_preprocessed=$folder/$bench/preprocessed nnUNet_raw=$folder/$bench/raw part "loaders_$bench" \
        python "$here/benchmark.py" -d "$dataset" -c "$configuration" -p nnUNetPlansSmall --device $device --epochs 1 \
        --out "$folder/loaders_$bench.json"
    for seed in 0 1 2; do
        for arm in supervised crossmatch; do
            part "${bench}_${arm}_$seed" python "$here/gap.py" run "$folder/$bench" "$bench" $arm $seed --bill $bill --device $device
        done
        [ ! "$dry" ] || break
    done
done
exit $failed
