#!/usr/bin/env bash
# Prints the state of the queued resource, of its nodes and of the run, a line each.
#
#   tpu_scripts/status.sh --name=llama --zone=us-central2-b
#
#   --name=NAME        of the TPU
#   --zone=ZONE        where it is
#   --slices=N         how many slices it has; 1
#   --project=PROJECT  gcloud's own
#   --dry_run          print the commands instead
#
# The run is none, running, finished, stopped (and saved), failed CODE, or unknown where its first
# host cannot be reached.
# shellcheck source-path=SCRIPTDIR source=_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

parse_flags '' '' "$@"
look() {
  if [[ $dry_run ]]; then
    "${@:2}"
  else
    echo "$1: $("${@:2}" 2>/dev/null || echo unknown)"
  fi
}
look "queued resource $name" resource_state
for node in $(nodes); do
  look "node $node" tpus tpu-vm describe "$node" '--format=value(state)'
done
look run run_status
