#!/usr/bin/env bash
# Starts jaxllm.train on every host, and leaves it running there. What runs already is stopped
# first, and saves; the run then goes on from its newest checkpoint. A bucket that the TPU's service
# account may not write to ends it with 2, before anything is stopped.
#
#   tpu_scripts/launch.sh --name=llama --zone=us-central2-b -- --gin_file=openllama.gin \
#       --gin.MODEL_DIR=gs://BUCKET/openllama_7b
#
#   --name=NAME        of the TPU
#   --zone=ZONE        where it is
#   --slices=N         how many slices it has; 1
#   --project=PROJECT  gcloud's own
#   --dry_run          print the commands instead
#   -- ARGUMENTS       of jaxllm.train; MODEL_DIR in a bucket, which outlives the TPU
# shellcheck source-path=SCRIPTDIR source=_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

parse_flags '' '' "$@"
((${#arguments[@]})) || die "what to train is missing: -- --gin_file=FILE; see $0 --help"
printf -v quoted ' %q' --coordinator_address=auto "${arguments[@]}"

model_dir=''
for argument in "${arguments[@]}"; do
  [[ $argument != --gin.MODEL_DIR=* ]] || model_dir=${argument#*=}
done
if [[ $model_dir == gs://* ]]; then
  printf -v check 'bash jaxllm/tpu_scripts/on_host.sh check %q' "$model_dir"
  on_node "$(nodes | head -n 1)" 0 "$check"
else
  note 'MODEL_DIR is not in a bucket: what the run writes is lost with the TPU'
fi

start_on() { on_node "$1" all "bash jaxllm/tpu_scripts/on_host.sh start$quoted"; }
for_nodes start_on
