#!/usr/bin/env bash
# Lets the run save and end on every host, and says how it ended: launch.sh goes on from there.
#
#   tpu_scripts/stop.sh --name=llama --zone=us-central2-b
#
#   --name=NAME        of the TPU
#   --zone=ZONE        where it is
#   --slices=N         how many slices it has; 1
#   --project=PROJECT  gcloud's own
#   --dry_run          print the commands instead
# shellcheck source-path=SCRIPTDIR source=_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

parse_flags '' '' "$@"
stop_on() { on_node "$1" all 'bash jaxllm/tpu_scripts/on_host.sh stop'; }
for_nodes stop_on
run_status
