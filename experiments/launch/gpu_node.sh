#!/usr/bin/env bash
# One node of eight GPUs, one process for all: no flag but the config's.
#   experiments/launch/gpu_node.sh runs/fig4
set -euo pipefail
cd "$(dirname "$0")/../.."
python -m pip install --quiet -e '.[cuda12]'
exec python -m rlhf_jax.main --workdir="$1" \
  --config=experiments/coste2024_reward_model_ensembles/fig4_ppo.py:full
