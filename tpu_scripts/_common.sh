# shellcheck shell=bash
# What the scripts of this folder share: flags, help, and how they call gcloud. Source it, then
#
#   parse_flags 'its own flags' 'its own switches' "$@"
set -euo pipefail

# shellcheck disable=SC2034 # the scripts read these
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
name='' zone='' project='' slices=1 dry_run=''
arguments=() # what follows --

die() {
  echo "error: $*" >&2
  exit 2
}

note() { echo "$(date -u +%Y-%m-%dT%H:%M:%SZ) $*" >&2; }

# The comment at the top of the script, without its marks.
usage() { awk 'NR > 1 { if (!/^#/ || /^# shellcheck/) exit; sub(/^# ?/, ""); print }' "$0"; }

# --flag=VALUE and --flag VALUE set the variable of that name, --switch sets it to 1.
parse_flags() {
  local flags=" name zone project slices $1 " switches=" dry_run $2 " flag
  shift 2
  while (($#)); do
    flag=${1#--}
    flag=${flag%%=*}
    if [[ $1 == --help || $1 == -h ]]; then
      usage
      exit 0
    elif [[ $1 == -- ]]; then
      shift
      # shellcheck disable=SC2034
      arguments=(${1+"$@"})
      break
    elif [[ $1 == --* && $switches == *" $flag "* && $1 != *=* ]]; then
      printf -v "$flag" 1
      shift
    elif [[ $1 == --*=* && $flags == *" $flag "* ]]; then
      printf -v "$flag" %s "${1#*=}"
      shift
    elif [[ $1 == --* && $flags == *" $flag "* ]]; then
      (($# > 1)) || die "$1 needs a value"
      printf -v "$flag" %s "$2"
      shift 2
    else
      die "unknown argument $1; see $0 --help"
    fi
  done
  [[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
    die "--name='$name': needs lower-case letters, digits and dashes, a letter first"
  [[ $zone ]] || die "--zone is missing, such as --zone=us-central2-b"
  [[ ${poll_seconds-1} =~ ^[0-9]+([.][0-9]+)?$ ]] ||
    die "--poll_seconds='$poll_seconds': needs a number of seconds"
  [[ $slices =~ ^[1-9][0-9]*$ ]] || die "--slices='$slices': needs a positive number"
}

# Runs a command; with --dry_run prints it instead, as it can be pasted into a shell.
run() {
  local word
  if [[ ! $dry_run ]]; then
    "$@"
    return
  fi
  for word in "$@"; do
    if [[ $word =~ ^[-A-Za-z0-9_./:=,@%+]+$ ]]; then
      printf '%s ' "$word"
    else
      printf "'%s' " "${word//\'/\'\\\'\'}"
    fi
  done
  echo
}

# Runs a command of gcloud's. A failure whose message has WORD is none: what was wanted is so already.
unless_already() {
  local word=$1 answer
  shift
  if [[ $dry_run ]]; then
    "$@"
  elif answer=$("$@" 2>&1); then
    [[ ! $answer ]] || echo "$answer" >&2
  elif [[ $answer == *$word* ]]; then
    note "$name: $word"
  else
    echo "$answer" >&2
    return 1
  fi
}

tpus() { run gcloud compute tpus "$@" "--zone=$zone" ${project:+"--project=$project"}; }

# The names of the slices' nodes, as queued resources number them.
nodes() {
  local i
  if ((slices == 1)); then
    echo "$name"
  else
    for ((i = 0; i < slices; i++)); do echo "$name-$i"; done
  fi
}

# Runs a shell command on one node: on_node NODE WORKER COMMAND; WORKER may be `all`.
on_node() { tpus tpu-vm ssh "$1" "--worker=$2" "--command=$3" --quiet; }

# Calls a function with every node, all at once; fails if one of them fails.
for_nodes() {
  local node job failed=0 jobs=''
  for node in $(nodes); do
    if [[ $dry_run ]]; then
      "$1" "$node"
    else
      "$1" "$node" &
      jobs+=" $!"
    fi
  done
  for job in $jobs; do wait "$job" || failed=1; done
  return "$failed"
}

# The queued resource's state; NONE where there is none, UNKNOWN where gcloud fails otherwise.
resource_state() {
  local answer
  if answer=$(tpus queued-resources describe "$name" '--format=value(state.state)' 2>&1); then
    echo "${answer##*$'\n'}"
  elif [[ $answer == *NOT_FOUND* ]]; then
    echo NONE
  else
    echo "$answer" >&2
    echo UNKNOWN
  fi
}

# Of the first host, which prints whether the run finished; empty while it cannot be reached.
run_status() {
  local ask='bash jaxllm/tpu_scripts/on_host.sh status 2>/dev/null || echo none'
  on_node "$(nodes | head -n 1)" 0 "$ask" | tail -n 1
}
