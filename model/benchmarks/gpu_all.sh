#!/usr/bin/env bash
# Run every GPU benchmark in bounded parts, the most valuable first.
#
#     bash model/benchmarks/gpu_all.sh one COMMIT      one GPU, 600 s: correctness, other models,
#                                                      host, attention, scorer, step
#     bash model/benchmarks/gpu_all.sh two COMMIT      two GPUs, 400 s: the trainer on both
#     bash model/benchmarks/gpu_all.sh three COMMIT    one GPU, 600 s: breakdown, loader, length,
#                                                      request level batching, scorer, memory
#
# Rows and logs are under $OUT as soon as they exist: rows_PART.csv (append it to results.csv
# without its header), PART.txt (the output) and gpu_check.txt (for docs/gpu_check.txt).
set -u
part=$1
export LONGREC_COMMIT=$2 PYTHONPATH=model PYTHONUNBUFFERED=1
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-/tmp/triton}
: "${OUT:?a folder for rows and logs}"
bench=model/benchmarks
rows=$OUT/rows_$part.csv
started=$SECONDS
limit=${LIMIT:-570}
logs=$(mktemp -d)

# bounded SECONDS NAME COMMAND...: run the command for at most so long, within the whole limit.
bounded() {
    local left=$((limit - (SECONDS - started))) most=$1 name=$2
    shift 2
    if [ "$left" -lt 10 ]; then
        echo "$name: no time left"
        return
    fi
    timeout -k 5 $((most < left ? most : left)) "$@" > "$logs/$name" 2>&1
    echo "$name: exit $? after $((SECONDS - started)) s" | tee -a "$OUT/$part.txt"
    cat "$logs/$name" >> "$OUT/$part.txt"
    tail -n 3 "$logs/$name"
}

# In parallel: correctness is not timed.
check() {
    bounded 290 check_1 python3 $bench/gpu_check.py --only attention &
    bounded 290 check_2 python3 $bench/gpu_check.py --only tables causal sharing &
    bounded 290 check_3 python3 $bench/gpu_check.py --only ranker --models 0 1 2 &
    bounded 290 check_4 python3 $bench/gpu_check.py --only ranker --models 3 4 5 &
    bounded 290 check_5 python3 $bench/gpu_check.py --only ranker --models 6 7 &
    bounded 290 check_6 python3 $bench/gpu_check.py --only ranker --models 8 9 &
    wait
    cat "$logs"/check_* > "$OUT/gpu_check.txt"
    grep FAIL "$OUT/gpu_check.txt"
}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
launch="python3 -m torch.distributed.run --nproc-per-node 2"
sizes="--events 10240 --requests 16 --width 256 --heads 8 --targets 1 2 4 8 16 32"
case $part in
one)
    check
    bounded 100 models python3 $bench/gpu_engine.py --only models --out "$rows"
    bounded 50 host python3 $bench/gpu_engine.py --only reference host --out "$rows"
    bounded 60 attention python3 $bench/attention.py $sizes --out "$rows"
    bounded 70 serve python3 $bench/gpu_serve.py --repeats 500 --cases 2 --out "$rows"
    bounded 150 step python3 $bench/gpu_engine.py --only step --out "$rows" ;;
two)
    bounded 300 ddp $launch $bench/gpu_ddp.py --out "$rows" ;;
three)
    bounded 90 breakdown python3 $bench/gpu_engine.py --only breakdown --out "$rows"
    bounded 120 loader python3 $bench/loader.py --users 3000 --workers 1 2 4 8 --repeats 3 \
        --out "$rows"
    bounded 60 length python3 $bench/gpu_engine.py --only length --out "$rows"
    bounded 60 rlb python3 $bench/gpu_engine.py --only rlb --out "$rows"
    bounded 120 serve python3 $bench/gpu_serve.py --out "$rows"
    bounded 120 memory python3 $bench/gpu_engine.py --only memory --out "$rows" ;;
*)
    echo "one, two or three" >&2
    exit 2 ;;
esac
