#!/usr/bin/env bash
# A slice of TPU VMs: the same command on every one of its hosts.
#   gcloud compute tpus tpu-vm ssh $TPU --zone=$ZONE --worker=all \
#     --command='cd rlhf_jax && experiments/launch/tpu_pod.sh /mnt/runs/fig4'
# The workdir lies on a file system that all hosts see, such as Filestore.
set -euo pipefail
cd "$(dirname "$0")/../.."
python -m pip install --quiet -e '.[tpu]'
exec python -m rlhf_jax.main --workdir="$1" --coordinator=auto \
  --config=experiments/coste2024_reward_model_ensembles/fig4_ppo.py:full
