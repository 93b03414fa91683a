#!/usr/bin/env bash
# Follows what the run prints on one of its hosts.
#
#   tpu_scripts/logs.sh --name=llama --zone=us-central2-b
#
#   --name=NAME        of the TPU
#   --zone=ZONE        where it is
#   --slices=N         how many slices it has; 1
#   --slice=I          which of them; 0
#   --worker=I         which host of the slice; 0, which prints the run's progress
#   --lines=N          begin with so many lines of the past; 100
#   --no_follow        end with those
#   --project=PROJECT  gcloud's own
#   --dry_run          print the command instead
# shellcheck source-path=SCRIPTDIR source=_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

slice=0 worker=0 lines=100 no_follow=''
parse_flags 'slice worker lines' 'no_follow' "$@"
for number in slice worker lines; do
  [[ ${!number} =~ ^[0-9]+$ ]] || die "--$number='${!number}': needs a number"
done
((slice < slices)) || die "--slice=$slice: slices count from 0, and there are $slices"

node=$(nodes | sed -n "$((slice + 1))p")
follow=' -F'
[[ ! $no_follow ]] || follow=''
on_node "$node" "$worker" "tail -n $lines$follow jaxllm/run.log"
