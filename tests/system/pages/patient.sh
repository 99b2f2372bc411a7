# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Read by bash before it runs the commands of a page: they stay as they stand.

# licagent as on a machine that others want, too: with more time for the daemon's answer.
licagent() {
    case ${1-}:${2-} in
        break-glass:* | detach:* | doctor:* | events:* | explain:* | status:* | top:*) set -- "$@" --timeout 30 ;;
        config:check | license:* | policy:show) set -- "$@" --timeout 30 ;;
        run:*) set -- run --timeout 30 "${@:2}" ;;
    esac
    command licagent "$@"
}
