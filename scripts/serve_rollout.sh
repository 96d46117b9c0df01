#!/usr/bin/env bash
# Serve a policy's model for rollouts with vLLM, say when all servers answer, and end with the last of them.
#
#   scripts/serve_rollout.sh MODEL [PORT] [further options of `vllm serve`]
#
# SERVERS (default 1) servers listen on PORT, PORT + 1, ... (default 8000). On GPUs each has GPUS of them (default 1), for
# tensor parallelism. HOST (default 127.0.0.1) is the address to listen at: whoever reaches it can change weights, so choose
# one inside a network that you trust. WAIT (s, default 600) is the longest wait for the servers, PYTHON the interpreter.
# Ctrl-C ends all, by force after GRACE (s, default 10). A server that ends is not started again: the run goes on with the
# others.
set -euo pipefail

if [ $# -lt 1 ]; then
    sed -n '2,10s/^# \{0,1\}//p' "$0"
    exit 2
fi
MODEL=$1
PORT=${2:-8000}
shift $(($# < 2 ? $# : 2))
SERVERS=${SERVERS:-1}
GPUS=${GPUS:-1}
HOST=${HOST:-127.0.0.1}
PYTHON=${PYTHON:-python}

PIDS=()
tensor=()
# A server that is still loading does not heed a polite end, and its engine outlives it: each has a group of its own.
finish() {
    kill "${PIDS[@]}" 2>/dev/null || true
    for ((tenth = 0; tenth < 10 * ${GRACE:-10}; tenth++)); do
        kill -0 "${PIDS[@]}" 2>/dev/null || break
        sleep 0.1
    done
    for server in "${PIDS[@]}"; do kill -KILL -- "-$server" 2>/dev/null || true; done
}
trap finish EXIT
trap 'exit 130' INT TERM

URLS=()
for ((server = 0; server < SERVERS; server++)); do
    devices=()
    if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
        first=$((server * GPUS))
        devices=("CUDA_VISIBLE_DEVICES=$(seq -s, "$first" $((first + GPUS - 1)))")
        tensor=(--tensor-parallel-size "$GPUS")
    fi
    setsid env "${devices[@]}" "$PYTHON" -m visd.rollout.serve "$MODEL" --host "$HOST" --port $((PORT + server)) \
        "${tensor[@]}" "$@" &
    PIDS+=($!)
    URLS+=("http://$HOST:$((PORT + server))")
done

for ((server = 0; server < SERVERS; server++)); do
    for ((second = 0; ; second++)); do
        if ! kill -0 "${PIDS[server]}" 2>/dev/null; then
            echo "vllm on port $((PORT + server)) ended before it answered; its own messages say why" >&2
            exit 1
        fi
        if curl --silent --fail --noproxy '*' --max-time 2 --output /dev/null "${URLS[server]}/health"; then
            break
        fi
        if [ "$second" -ge "${WAIT:-600}" ]; then
            echo "vllm does not answer on port $((PORT + server)) after ${WAIT:-600} s" >&2
            exit 1
        fi
        sleep 1
    done
done
echo "ready: rollout=vllm_server rollout.engine.urls=[$(IFS=,; echo "${URLS[*]}")]"

for ((server = 0; server < SERVERS; server++)); do
    wait "${PIDS[server]}" || echo "the server on port $((PORT + server)) ended with status $?" >&2
done
