#!/usr/bin/env bash
# Copies this tree, as it lies here, to every host, and installs it there with a Python of its own.
# Called again, it replaces what it copied; the run, its log and what is installed stay.
#
#   tpu_scripts/setup.sh --name=llama --zone=us-central2-b
#
#   --name=NAME        of the TPU
#   --zone=ZONE        where it is
#   --slices=N         how many slices it has; 1
#   --python=VERSION   3.12, or 3.11 for an older JAX; uv installs it
#   --project=PROJECT  gcloud's own
#   --dry_run          print the commands instead
# shellcheck source-path=SCRIPTDIR source=_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

python=3.12
parse_flags 'python' '' "$@"
tree=$(dirname "$scripts")
[[ $python =~ ^3\.[0-9]+$ && -f $tree/constraints/py${python/./}.txt ]] ||
  die "--python='$python': needs a version that has a file in constraints/, such as 3.12"

parts='pyproject.toml README.md LICENSE constraints evals gin jaxllm tpu_scripts'
folder=.
if [[ ! $dry_run ]]; then
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  # What runs say that they ran.
  if ! [[ -e $tree/.git ]] ||
    ! git -C "$tree" describe --always --dirty '--exclude=*' >"$folder/COMMIT" 2>/dev/null; then
    echo copied >"$folder/COMMIT"
  fi
fi
archive=$folder/jaxllm.tar.gz
# shellcheck disable=SC2086 # words
COPYFILE_DISABLE=1 run tar -czf "$archive" '--exclude=__pycache__' '--exclude=*.egg-info' \
  -C "$tree" $parts -C "$folder" COMMIT

# shellcheck disable=SC2016 # the hosts expand it
unpack='if [ "$(bash jaxllm/tpu_scripts/on_host.sh status 2>/dev/null)" = running ]; then'
# shellcheck disable=SC2016
unpack+=' echo "error: $(hostname): a run is going on; tpu_scripts/stop.sh ends it" >&2; exit 2; fi;'
unpack+=" mkdir -p jaxllm && cd jaxllm && rm -rf $parts && tar xzf ../jaxllm.tar.gz"
install_on() {
  tpus tpu-vm scp "$archive" "$1:" --worker=all --quiet &&
    on_node "$1" all "$unpack && bash tpu_scripts/on_host.sh install $python"
}
for_nodes install_on
