#!/usr/bin/env bash
# What the other scripts do on each host of a TPU, in the folder that setup.sh unpacked there.
#
#   on_host.sh install VERSION   makes .venv with that Python and the versions we test with
#   on_host.sh check ADDRESS     whether the service account may write to gs://BUCKET/FOLDER; else 2
#   on_host.sh start ARGUMENTS   stops what runs, then runs jaxllm.train with these; prints to run.log
#   on_host.sh run ARGUMENTS     runs it in the foreground, for GKE: fails when told to stop, so that
#                                the job is not taken for done
#   on_host.sh stop              lets the run save and end
#   on_host.sh status            none, running, finished, stopped (and saved), or failed CODE
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

running() { [[ -f run.pid ]] && kill -0 -- "-$(<run.pid)" 2>/dev/null; }

stop() {
  local look
  running || return 0
  pkill -TERM -P "$(<run.pid)" # train itself, and not the processes that feed it while it saves
  for ((look = 0; look < 1500; look++)); do # 5 minutes
    running || return 0
    sleep 0.2
  done
  kill -KILL -- "-$(<run.pid)"
}

verb=${1:-}
shift || true
case $verb in
  install)
    PATH=$PATH:$HOME/.local/bin
    command -v uv >/dev/null || python3 -m pip install --quiet --user uv ||
      curl -LsSf https://astral.sh/uv/install.sh | sh
    if [[ $(.venv/bin/python -V 2>/dev/null) != "Python $1".* ]]; then
      rm -rf .venv
      uv venv --quiet --python "$1" .venv
    fi
    versions=constraints/py${1/./}.txt
    uv pip install --quiet --python .venv/bin/python -c "$versions" -e '.[tpu]'
    ;;
  check)
    write='import sys; from jaxllm.kvstore import KeyValueStore; store = KeyValueStore(sys.argv[1])
store.write({".writable": b""}); store.delete([".writable"])'
    if ! answer=$(timeout 120 .venv/bin/python -c "$write" "$1" 2>&1); then
      metadata=http://${GCE_METADATA_HOST:-metadata.google.internal}/computeMetadata/v1
      account=$(curl -sf --max-time 5 -H 'Metadata-Flavor: Google' \
        "$metadata/instance/service-accounts/default/email") || account=ACCOUNT
      bucket=${1#gs://}
      answer=${answer##*UserError: }
      answer=${answer%%$'\n'*}
      echo "error: no writing to $1: ${answer#"$1: "}; the TPU's service account may with:" \
        "gcloud storage buckets add-iam-policy-binding gs://${bucket%%/*}" \
        "--member=serviceAccount:$account --role=roles/storage.objectAdmin" >&2
      exit 2
    fi
    ;;
  start)
    stop
    rm -f run.exit
    # A session of its own outlives ssh. The trap keeps the shell until train has saved and ended.
    # shellcheck disable=SC2016
    setsid bash -c 'trap : TERM; "$@" >>run.log 2>&1; echo $? >run.exit' run \
      .venv/bin/python -m jaxllm.train "$@" </dev/null >/dev/null 2>&1 &
    echo $! >run.pid
    ;;
  run)
    code=0 told=''
    .venv/bin/python -m jaxllm.train "$@" &
    trap 'told=143; kill -TERM %1' TERM
    while [[ $(jobs -r) ]]; do # a signal interrupts the wait
      code=0
      wait %1 || code=$?
    done
    exit "${told:-$code}"
    ;;
  stop) stop ;;
  status)
    if running; then
      echo running
    elif [[ ! -f run.pid ]]; then
      echo none
    elif [[ ! -f run.exit ]]; then
      echo failed killed
    elif [[ $(<run.exit) != 0 ]]; then
      echo "failed $(<run.exit)"
    elif tail -n 5 run.log | grep -q '^stopped at step'; then
      echo stopped
    else
      echo finished
    fi
    ;;
  *)
    echo "error: unknown verb '$verb': install, check, start, run, stop or status" >&2
    exit 2
    ;;
esac
