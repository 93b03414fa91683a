#!/usr/bin/env bash
# Keeps a run going until it has finished: asks for the TPU, sets it up, starts the run, and does so
# again whenever the TPU is taken away or the run fails. Start it on a machine that stays on; it
# may be stopped and started again at any time, and goes on from what it finds.
#
#   tpu_scripts/keep_running.sh --name=llama --zone=us-central2-b --type=v4-512 --spot -- \
#       --gin_file=openllama.gin --gin.MODEL_DIR=gs://BUCKET/openllama_7b
#
#   --name=NAME             what the queued resource and its TPU are called
#   --zone=ZONE             where, such as us-central2-b
#   --type=TYPE             v4-512, v5e-256, v5p-128, v6e-256, …
#   --slices=N              so many of them; 1
#   --spot, --reserved, --runtime_version=NAME, --gcloud_flags=FLAGS
#                           as for create.sh
#   --python=VERSION        as for setup.sh
#   --poll_seconds=S        between two looks at the TPU; 60
#   --max_failures=N        give up after so many failures, none of them an hour after the last
#                           start; 5
#   --delete_when_finished  give the TPU back when the run has finished; else it stays, and costs
#   --project=PROJECT       gcloud's own
#   --dry_run               print the commands of a run that is never interrupted instead
#   -- ARGUMENTS            of jaxllm.train; MODEL_DIR in a bucket, which outlives the TPU
#
# Ends with 0 when the run has finished, 1 when it gives up, 2 when the bucket cannot be written to.
# shellcheck source-path=SCRIPTDIR source=_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

type='' runtime_version='' gcloud_flags='' python=3.12 poll_seconds=60 max_failures=5
spot='' reserved='' delete_when_finished=''
parse_flags 'type runtime_version gcloud_flags python poll_seconds max_failures' \
  'spot reserved delete_when_finished' "$@"
((${#arguments[@]})) || die "what to train is missing: -- --gin_file=FILE; see $0 --help"
[[ $max_failures =~ ^[0-9]+$ ]] || die "--max_failures='$max_failures': needs a number"

common=("--name=$name" "--zone=$zone" "--slices=$slices")
[[ ! $project ]] || common+=("--project=$project")
[[ ! $dry_run ]] || common+=(--dry_run)

create() {
  "$scripts/create.sh" "${common[@]}" "--type=$type" "--runtime_version=$runtime_version" \
    "--gcloud_flags=$gcloud_flags" ${spot:+--spot} ${reserved:+--reserved}
}
setup() { "$scripts/setup.sh" "${common[@]}" "--python=$python"; }
launch() { "$scripts/launch.sh" "${common[@]}" -- "${arguments[@]}"; }
delete() { "$scripts/delete.sh" "${common[@]}"; }

# A preempted node may be gone while its queued resource is still called active.
nodes_are_there() {
  local node state
  for node in $(nodes); do
    state=$(tpus tpu-vm describe "$node" '--format=value(state)' 2>/dev/null) || state=''
    case $state in
      PREEMPTED | TERMINATED | STOPPED | HIDING | HIDDEN)
        note "$node: $state"
        return 1
        ;;
    esac
  done
}

if [[ $dry_run ]]; then
  create
  resource_state
  setup
  launch
  run_status
  [[ ! $delete_when_finished ]] || delete
  exit 0
fi

# A wrong flag ends here, before anything is asked for.
"$scripts/create.sh" "${common[@]}" --dry_run "--type=$type" "--gcloud_flags=$gcloud_flags" \
  ${spot:+--spot} ${reserved:+--reserved} >/dev/null
"$scripts/setup.sh" "${common[@]}" --dry_run "--python=$python" >/dev/null 2>&1

failures=0 launched=$SECONDS seen=''
failed() {
  note "$1"
  ((SECONDS - launched < 3600)) || failures=0
  if ((++failures > max_failures)); then
    "$scripts/logs.sh" "${common[@]}" --lines=20 --no_follow || true
    note "giving up after $failures failures; the TPU may still be there: $scripts/delete.sh ${common[*]}"
    exit 1
  fi
}
start_run() {
  local code=0
  launched=$SECONDS
  launch || code=$?
  if ((code == 2)); then # no try will be luckier
    note "giving up; the TPU is still there: $scripts/delete.sh ${common[*]}"
    exit 2
  fi
  ((code == 0)) || failed 'the run could not be started'
}

while true; do
  state=$(resource_state)
  [[ $state != ACTIVE ]] || nodes_are_there || state=PREEMPTED
  [[ $state != ACTIVE ]] || state="ACTIVE $(run_status || true)"
  [[ $state == "$seen" ]] || note "$name: $state"
  seen=$state
  case $state in
    NONE) create || failed 'the TPU could not be asked for' ;;
    'ACTIVE none')
      if setup; then start_run; else failed 'the hosts could not be set up'; fi
      ;;
    'ACTIVE finished')
      [[ ! $delete_when_finished ]] || delete
      exit 0
      ;;
    'ACTIVE stopped') start_run ;;
    'ACTIVE failed'*)
      failed "the run ${state#ACTIVE }"
      start_run
      ;;
    SUSPENDED | FAILED | PREEMPTED) delete || failed 'the TPU could not be given back' ;;
  esac
  sleep "$poll_seconds"
done
