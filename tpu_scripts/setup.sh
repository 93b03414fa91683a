#!/usr/bin/env bash
# Copies what this checkout has committed to every host, and installs it there.
#
#   tpu_scripts/setup.sh --name=llama --zone=us-central2-b
#
#   --name=NAME        of the TPU
#   --zone=ZONE        where it is
#   --slices=N         how many slices it has; 1
#   --python=VERSION   3.11, or 3.12 for a newer JAX; uv installs it
#   --project=PROJECT  gcloud's own
#   --dry_run          print the commands instead
# shellcheck source-path=SCRIPTDIR source=_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

python=3.11
parse_flags 'python' '' "$@"
[[ $python =~ ^3\.[0-9]+$ ]] || die "--python='$python': needs a version, such as 3.11"

checkout=$(dirname "$scripts")
archive=jaxllm.tar.gz
if [[ ! $dry_run ]]; then
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  archive=$folder/$archive
fi
git -C "$checkout" diff --quiet HEAD -- 2>/dev/null ||
  note 'changes that are not committed stay here'
run git -C "$checkout" archive --format=tar.gz --prefix=jaxllm/ "--output=$archive" HEAD

install_on() {
  tpus tpu-vm scp "$archive" "$1:" --worker=all --quiet &&
    on_node "$1" all "tar xzf jaxllm.tar.gz && bash jaxllm/tpu_scripts/on_host.sh install $python"
}
for_nodes install_on
