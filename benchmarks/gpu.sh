#!/usr/bin/env bash
# Every row that is promised for a GPU, with its bound, in under 8 minutes of one device.
#
#     benchmarks/gpu.sh                   on a GPU: Llama 3.2 1B and 8B shapes, in bfloat16
#     benchmarks/gpu.sh --device cpu      tiny shapes on a CPU, to try the script itself
#
# Exits with 1 if a bound is missed, and with 2 if the time runs out.
set -u
cd "$(dirname "$0")/.."
device=cuda
[ "${1:-}" = --device ] && device=${2:?name a device, cpu or cuda}
python=${PYTHON:-python}
size=()
[ "$device" = cpu ] && size=(--quick)
status=0
run() {
  echo "== $*"
  timeout "$1" "$python" "${@:2}" --device "$device" "${size[@]}"
  code=$?
  if [ $code -eq 124 ]; then status=2; elif [ $code -ne 0 ] && [ $status -eq 0 ]; then status=1; fi
}
run 240 benchmarks/gpu_steps.py
run 210 benchmarks/generate.py
exit $status
