#!/usr/bin/env bash
# Work the GPU queue: benchmarks/gpu/run.sh [--budget MINUTES] [--rows 9,10] [--out DIR] [--dry-run]; see QUEUE.md.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/work.py" "$@"
