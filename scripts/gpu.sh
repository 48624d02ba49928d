#!/bin/sh
# What a card is tried with on its first day, and every day after; see `scripts/gpu.sh --help`. Thin, since all that is measured is
# measured by `alip-run` and `bench/peers`; `bench/card.py` calls them one after the other and writes down what they say.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
if ! command -v "$python" >/dev/null; then
    echo "gpu.sh: there is no $python on the path, which runs the stages; install it, or name one with PYTHON=" >&2
    exit 1
fi
exec "$python" "$root/bench/card.py" "$@"
