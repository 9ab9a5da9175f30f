#!/usr/bin/env bash
# Everything that needs a GPU to be seen: the tests with CUDA and NCCL, what a step costs compiled and not, then benches.
#   scripts/gpu.sh FOLDER [--data DATA] [--minutes 25] [--wheels WHEELS] [--dry-run]
# DATA holds ACDC and LA as gap.py wants them; without it there are no benches. WHEELS is a folder of wheels for a
# machine without network (README.md says how they are made). $PYTHON is an interpreter that has
# everything; without it there will be a virtual environment in FOLDER.
# Each part leaves its log, its figures as JSON and a line in parts.jsonl (exit code, 124: out of time). The same command
# again goes on: first with what was never tried, then with what failed. --dry-run: all of it on the CPU, toys, in FOLDER/dry.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
usage() { sed -n 3p "$0" | cut -c5- >&2 && exit 2; }
data="" minutes=25 wheels="" dry=""
[ $# -gt 0 ] && [[ $1 != -* ]] || usage
folder=$1 && shift
while [ $# -gt 0 ]; do
    case $1 in
    --data) data=$(cd "$2" && pwd) && shift 2 || exit 2 ;;
    --minutes) minutes=$2 && shift 2 ;;
    --wheels) wheels=$(cd "$2" && pwd) && shift 2 || exit 2 ;;
    --dry-run) dry=/dry && shift ;;
    *) usage ;;
    esac
done
mkdir -p "$folder$dry" && folder=$(cd "$folder$dry" && pwd) || exit 2
end=$((SECONDS + 60 * minutes)) before=$(cat "$folder/parts.jsonl" 2>/dev/null) tried=" " failed="" left_out="" again=""
device=cuda benches="acdc-3,27,2d la-8,18,3d_fullres" bill=8000 batches=2000 seeds="0 1 2" steps=(--steps 20)
if [ "$dry" ]; then
    device=cpu benches=toy,99,2d bill=300 batches=10 seeds=0 steps=(--steps 2 --warm-up 1) data=$folder
    export nnUNet_n_proc_DA=1 # nnU-Net's dozen workers take longer to start than a toy to train
fi
trap 'kill $(jobs -p) 2>/dev/null' EXIT
trap 'exit 130' INT TERM

part() { # seconds at most, name, command: once, unless it failed
    local limit=$1 name=$2 start=$SECONDS left=$((end - SECONDS)) code
    shift 2
    grep -qs "\"part\": \"$name\", \"exit\": 0," "$folder/parts.jsonl" && return
    if [[ $tried == *" $name "* ]] || { [ ! "$again" ] && [[ $before == *"\"$name\""* ]]; }; then
        return 1
    elif [ $left -le 0 ]; then
        left_out+=" $name" && return 1
    fi
    tried+="$name "
    timeout -k 10 $((left < limit ? left : limit)) "$@" >"$folder/$name.log" 2>&1 &
    wait $!
    code=$?
    printf '{"part": "%s", "exit": %d, "seconds": %d, "end": "%s"}\n' "$name" $code $((SECONDS - start)) "$(date -Is)" |
        tee -a "$folder/parts.jsonl"
    [ $code = 0 ] || failed+=" $name"
    return $code
}
make_venv() {
    python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet ${wheels:+--no-index --find-links "$wheels"} "$here/..[dev]"
}
prepare() { # bench: from the beginning, as a call before may have been cut off
    rm -rf "${folder:?}/$1" && "$PYTHON" "$here/gap.py" prepare "$folder/$1" "$1" "$data"
}
export -f make_venv prepare
export folder here wheels data
parts() {
    local bench dataset configuration compile name seed arm
    part 120 device "$PYTHON" -c "import torch; torch.ones(1, device='$device')" || return
    part 300 nccl_1 "$PYTHON" -m pytest -q "$here/../tests/trainers/test_cuda.py" -k one_card
    [ "$dry" ] || [ "$(nvidia-smi --list-gpus | wc -l)" -lt 2 ] ||
        part 300 nccl_2 "$PYTHON" -m pytest -q "$here/../tests/trainers/test_cuda.py" -k two_cards
    part 300 plans "$PYTHON" "$here/gpu_plans.py" "$folder" ${dry:+--toy}
    for plan in "991 2d" "992 3d_fullres" "993 3d_fullres"; do
        read -r dataset configuration <<<"$plan"
        for compile in f t; do
            name=benchmark_${dataset}_compile_$compile
            nnUNet_compile=$compile part 300 "$name" "$PYTHON" "$here/benchmark.py" -d "$dataset" -c "$configuration" \
                --device $device --synthetic "${steps[@]}" --out "$folder/$name.json"
        done
    done
    for bench in ${data:+$benches}; do
        IFS=, read -r bench dataset configuration <<<"$bench"
        part 3600 "prepare_$bench" bash -c "prepare $bench" &&
            part 3600 "pool_$bench" "$PYTHON" "$here/gap.py" pool "$folder/$bench" "$bench" --parts "$(nproc)" --batches $batches ||
            continue
        nnUNet_preprocessed=$folder/$bench/preprocessed nnUNet_raw=$folder/$bench/raw part 600 "loaders_$bench" \
            "$PYTHON" "$here/benchmark.py" -d "$dataset" -c "$configuration" -p nnUNetPlansSmall --device $device --epochs 1 \
            --out "$folder/loaders_$bench.json"
        for seed in $seeds; do
            for arm in supervised crossmatch; do
                part 3600 "${bench}_${arm}_$seed" \
                    "$PYTHON" "$here/gap.py" run "$folder/$bench" "$bench" $arm "$seed" --bill $bill --device $device
            done
        done
    done
}

if [ "${PYTHON:-}" ]; then
    PYTHON=$(realpath -s "$(command -v "$PYTHON")")
elif again=1 part 1500 install bash -c make_venv; then
    PYTHON=$folder/venv/bin/python
else
    echo "No environment: see $folder/install.log" >&2 && exit 1
fi
export PYTHON PATH=$(dirname "$PYTHON"):$PATH # gap.py calls nnU-Net's commands
export nnUNet_raw=$folder/raw nnUNet_preprocessed=$folder/preprocessed nnUNet_results=$folder/results
if command -v nvidia-smi >/dev/null; then
    nvidia-smi --query-gpu=timestamp,name,utilization.gpu,memory.used --format=csv -l 1 >>"$folder/nvidia-smi.csv" &
fi

parts
again=1 left_out=""
parts
[ ! "$failed" ] || echo "Failed:$failed; their logs are in $folder." >&2
[ ! "$left_out" ] || echo "No time was left for$left_out. The same command goes on." >&2
[ ! "$failed$left_out" ]
