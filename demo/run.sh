#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# licagent shown with real programs: curl and nc against a real server on this machine, licensed by a
# control plane that the demo starts. Every claim is checked; the first that does not hold ends the
# demo with status 1. It has a cgroup, a bpffs folder, state folders, ports and a socket of its own,
# so it runs beside an installed agent, and takes all of them away at its end, also after Ctrl-C.
#
#   ./dev demo [--fast]        --fast: no pauses for reading
#   LICAGENT_LOADER=bcc ./dev demo
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
readonly HERE

PAUSE_S=2
EXPIRY_S=24 # enough to start a download under it, also on a machine that others want
for argument in "$@"; do
    case $argument in
        --fast) PAUSE_S=0 ;;
        *)
            printf 'usage: ./dev demo [--fast]\n' >&2
            exit 2
            ;;
    esac
done
readonly PAUSE_S EXPIRY_S

# shellcheck source=demo/stage.sh
source "$HERE/stage.sh"
# shellcheck source=demo/acts.sh
source "$HERE/acts.sh"
# shellcheck source=demo/plane.sh
source "$HERE/plane.sh"

SECONDS=0
build_stage
act_plane
act_join
act_apply
act_no_license_no_access
act_metering
act_revocation
act_link_cut
act_expiry_without_daemon
act_restart
act_link_back
act_observe
act_break_glass
act_look_back
act_audit
export ENDED_WELL=1
leave
