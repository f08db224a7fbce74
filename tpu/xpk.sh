#!/usr/bin/env bash
# A run on a GKE cluster by XPK (pip install xpk), without Docker: the code goes through a bucket, the image is plain Python.
#
#   PROJECT=p ZONE=us-west4-a CLUSTER=c BUCKET=b tpu/xpk.sh NAME COMMAND
#   ... tpu/xpk.sh first 'xdistil quickstart --out /bucket/runs'
#
# Once for a cluster:
#   xpk cluster create --project=$PROJECT --zone=$ZONE --cluster=$CLUSTER --tpu-type=$TPU_TYPE --num-slices=1 \
#     --spot --enable-gcsfuse-csi-driver
#   xpk storage attach xdistil --type=gcsfuse --bucket=$BUCKET --mount-point=/bucket --readonly=false --size=1 \
#     --auto-mount=false --mount-options=implicit-dirs,rename-dir-limit=100000 --project=$PROJECT --zone=$ZONE \
#     --cluster=$CLUSTER
# After it: xpk workload list / delete --workload=NAME, xpk cluster delete (all with --project, --zone, --cluster).
# DRY_RUN=1 prints the commands.
set -euo pipefail
if (($# != 2)) || [[ -z ${PROJECT-} || -z ${ZONE-} || -z ${CLUSTER-} || -z ${BUCKET-} ]]; then
  echo "usage: PROJECT=p ZONE=z CLUSTER=c BUCKET=b [TPU_TYPE=v5litepod-8] [DRY_RUN=1] tpu/xpk.sh NAME COMMAND" >&2
  exit 2
fi
name=$1 command=$2
cd "$(dirname "${BASH_SOURCE[0]}")/.."

call() {
  printf '+'
  printf ' %q' "$@"
  echo
  [[ -n ${DRY_RUN-} ]] || "$@"
}

code=${TMPDIR:-/tmp}/xdistil-$name.tar.gz
call git archive --format=tar.gz --output="$code" HEAD
call gcloud storage cp "$code" "gs://$BUCKET/code/$name.tar.gz" --project="$PROJECT"
unpack="mkdir -p /xdistil && cd /xdistil && tar -xzf /bucket/code/$name.tar.gz"
call xpk workload create --workload="$name" --cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE" \
  --tpu-type="${TPU_TYPE:-v5litepod-8}" --num-slices=1 --max-restarts=50 --storage=xdistil \
  --docker-image=python:3.12 \
  --command="$unpack && pip install --quiet '.[tpu]' && $command"
