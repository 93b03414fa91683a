#!/usr/bin/env bash
# Asks for a TPU with a queued resource, which waits in line until there is one. One of that name that
# is there already is kept.
#
#   tpu_scripts/create.sh --name=llama --zone=us-central2-b --type=v4-512 --spot --wait
#
#   --name=NAME             what the queued resource and its TPU are called
#   --zone=ZONE             where, such as us-central2-b
#   --type=TYPE             v4-512, v5e-256 (Google's v5litepod-256), v5p-128, v6e-256, v3-32, …
#   --slices=N              so many of them, NAME-0 to NAME-(N-1); 1
#   --spot                  cheaper, and may be taken away at any time
#   --reserved              from the project's reservation
#   --runtime_version=NAME  the image of the hosts; the one that suits the type
#   --gcloud_flags=FLAGS    more of gcloud's, as '--service-account=NAME --network=NAME'
#   --wait                  until it is there; fails if it will not be
#   --poll_seconds=S        between two looks while waiting; 30
#   --project=PROJECT       gcloud's own
#   --dry_run               print the commands instead
# shellcheck source-path=SCRIPTDIR source=_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

type='' runtime_version='' gcloud_flags='' poll_seconds=30 spot='' reserved='' wait=''
parse_flags 'type runtime_version gcloud_flags poll_seconds' 'spot reserved wait' "$@"

type=${type/#v5e-/v5litepod-}
case $type in
  v[234]-[0-9]*) image=tpu-ubuntu2204-base ;;
  v5litepod-[0-9]*) image=v2-alpha-tpuv5-lite ;;
  v5p-[0-9]*) image=v2-alpha-tpuv5 ;;
  v6e-[0-9]*) image=v2-alpha-tpuv6e ;;
  *7x*) die "--type='$type': Google lends 7x through GKE only; see tpu_scripts/gke.yaml" ;;
  *) die "--type='$type': needs v2-N, v3-N, v4-N, v5e-N, v5p-N or v6e-N" ;;
esac
[[ ! $spot || ! $reserved ]] || die '--spot and --reserved exclude each other'

request=("--accelerator-type=$type" "--runtime-version=${runtime_version:-$image}")
if ((slices == 1)); then
  request+=("--node-id=$name")
else
  request+=("--node-count=$slices" "--node-prefix=$name")
fi
[[ ! $spot ]] || request+=(--spot)
[[ ! $reserved ]] || request+=(--reserved)
if [[ $gcloud_flags ]]; then
  read -ra more <<<"$gcloud_flags"
  request+=("${more[@]}")
fi
unless_already ALREADY_EXISTS tpus queued-resources create "$name" "${request[@]}" --quiet

if [[ $wait ]]; then
  state=''
  until [[ $state == ACTIVE ]]; do
    if [[ $dry_run ]]; then
      resource_state
      break
    fi
    state=$(resource_state)
    note "$name: $state"
    case $state in
      ACTIVE) ;;
      NONE | FAILED | SUSPENDING | SUSPENDED | DELETING) exit 1 ;;
      *) sleep "$poll_seconds" ;;
    esac
  done
fi
