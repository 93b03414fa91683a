#!/usr/bin/env bash
# Gives the TPU back, with everything on its hosts. What is in a bucket stays.
#
#   tpu_scripts/delete.sh --name=llama --zone=us-central2-b
#
#   --name=NAME        of the queued resource and the TPU
#   --zone=ZONE        where it is
#   --slices=N         is not needed: all slices go
#   --project=PROJECT  gcloud's own
#   --dry_run          print the command instead
# shellcheck source-path=SCRIPTDIR source=_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

parse_flags '' '' "$@"
unless_already NOT_FOUND tpus queued-resources delete "$name" --force --quiet
