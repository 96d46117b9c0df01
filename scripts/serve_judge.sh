#!/usr/bin/env bash
# Serve a judge's model with vLLM, say when it answers, and end with it.
#
#   scripts/serve_judge.sh MODEL [PORT] [further options of `vllm serve`]
#
# WAIT (s, default 600) is the longest wait for the server, PYTHON the interpreter that has vLLM and visd. Ctrl-C ends the
# server.
set -euo pipefail

if [ $# -lt 1 ]; then
    sed -n '2,7s/^# \{0,1\}//p' "$0"
    exit 2
fi
MODEL=$1
PORT=${2:-8000}
shift $(($# < 2 ? $# : 2))

"${PYTHON:-python}" -m visd.judge.serve "$MODEL" --host 127.0.0.1 --port "$PORT" "$@" &
SERVER=$!
trap 'kill "$SERVER" 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM

for ((second = 0; ; second++)); do
    if ! kill -0 "$SERVER" 2>/dev/null; then
        echo "vllm ended before it answered; its own messages say why" >&2
        exit 1
    fi
    if curl --silent --fail --noproxy '*' --max-time 2 --output /dev/null "http://127.0.0.1:$PORT/v1/models"; then
        break
    fi
    if [ "$second" -ge "${WAIT:-600}" ]; then
        echo "vllm does not answer on port $PORT after ${WAIT:-600} s" >&2
        exit 1
    fi
    sleep 1
done
echo "ready: judge=openai judge.model=$MODEL judge.base_url=http://127.0.0.1:$PORT/v1"
wait "$SERVER"
