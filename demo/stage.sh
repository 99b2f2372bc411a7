# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# The demo's stage: narration, claims, its own corner of this machine, and taking it away again.

readonly LICENSED=backup OTHER=games # two users that every Debian has

bold='' green='' red='' dim='' plain=''
if [[ -t 1 || -n ${CLICOLOR_FORCE-} ]]; then
    bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' dim=$'\e[2m' plain=$'\e[0m'
fi
readonly bold green red dim plain

# ---------------------------------------------------------------------------------- narration

step() { printf '\n%s━━ %s%s\n' "$bold" "$*" "$plain"; }
note() { printf '%s%s%s\n' "$dim" "$*" "$plain"; }
pause() { sleep "$PAUSE_S"; }

# claim TEXT COMMAND...: says TEXT if the command succeeds, else ends the demo.
claim() {
    local text=$1
    shift
    if "$@"; then
        printf '  %s✔ %s%s\n' "$green" "$text" "$plain"
    else
        printf '  %s✘ %s%s\n' "$red" "$text" "$plain"
        printf 'demo: this does not hold: %s   [%s]\n' "$text" "$*" >&2
        exit 1
    fi
}

# shown USER COMMAND...: the command as somebody would type it.
shown() {
    local user=$1 word line=''
    shift
    for word in "$@"; do
        case $word in
            '&' | '>') line+=" $word" ;; # the shell's own
            *[!A-Za-z0-9_@%+=:,./-]*) line+=" ${word@Q}" ;;
            *) line+=" $word" ;;
        esac
    done
    local prompt='$'
    if [[ $user == root ]]; then prompt='#'; fi
    if [[ -n ${from-} ]]; then line+=" < $from"; fi
    printf '%s%s%s%s%s\n' "$bold" "$user" "$prompt" "$line" "$plain"
}

output='' # of the last command: both of its streams, as a terminal shows them
status=0

# try USER COMMAND...: shows and runs it; its output and status are in $output and $status. Its
# standard input is the file $from, if that is set.
try() {
    local user=$1
    shown "$@"
    shift
    status=0
    if [[ $user == root ]]; then
        output=$("$@" 2>&1 <"${from-/dev/null}") || status=$?
    else
        output=$(as "$user" "$@" 2>&1 <"${from-/dev/null}") || status=$?
    fi
    if [[ -n $output ]]; then printf '%s\n' "$output"; fi
}

# do_ COMMAND...: a command of root that has to succeed.
do_() {
    try root "$@"
    if ((status)); then
        printf 'demo: this ended with status %d: %s\n' "$status" "$*" >&2
        exit 1
    fi
}

# as USER COMMAND...: runs it as that user, in the cgroup where licenses are asked for.
as() { (become "$@"); }

# become USER COMMAND...: the same in place of this shell, so that $! is the command's own pid.
become() {
    printf '%s\n' "$BASHPID" >"$HOST/cgroup.procs"
    exec setpriv --reuid "$1" --regid "$1" --clear-groups "${@:2}"
}

# wait_for SECONDS COMMAND...: polls until the command succeeds.
wait_for() {
    local limit=$((SECONDS + $1))
    shift
    until "$@"; do
        if ((SECONDS > limit)); then return 1; fi
        sleep 0.05
    done
}

matches() { [[ $output =~ $1 ]]; } # an extended regular expression
says() { [[ $output == *"$1"* ]]; }
ended_with() { ((status == $1)); }
failed() { ((status)); }
show_output() { printf '%s\n' "$output"; }

# waited PID FILE: the end of a program in the background; FILE has its words.
waited() {
    status=0
    wait "$1" || status=$?
    output=$(<"$2")
}
milliseconds() { date --date="$1" +%s%3N; }
now() { date --utc +%Y-%m-%dT%H:%M:%S.%3NZ; }
alive() { kill -0 "$1" 2>/dev/null; }
gone() { ! alive "$1"; }

# --------------------------------------------------------------------------- set-up and removal

build_stage() {
    local variable
    for variable in "${!LICAGENT_@}" "${!LICPLANE_@}"; do
        [[ $variable == LICAGENT_LOADER ]] || unset "$variable"
    done
    unset http_proxy all_proxy HTTP_PROXY ALL_PROXY
    PATH=$(dirname "$HERE")/.venv/bin:$PATH
    if ((EUID != 0)); then
        printf 'demo: run it as root: it loads BPF programs\n' >&2
        exit 5
    fi
    local mount
    mount=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
    if [[ -z $mount ]]; then
        printf 'demo: no cgroup2 mount: mkdir /mnt/c && mount -t cgroup2 none /mnt/c\n' >&2
        exit 1
    fi
    getent passwd "$LICENSED" "$OTHER" >/dev/null || {
        printf 'demo: it needs the users %s and %s\n' "$LICENSED" "$OTHER" >&2
        exit 1
    }

    FOLDER=$(mktemp -d -t licagent-demo.XXXXXX)
    CGROUP=$mount/licagent-demo-$$ # ours: the daemon and the server are in it, too
    HOST=$CGROUP/host              # the part in which licenses are asked for
    readonly FOLDER CGROUP HOST
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap leave EXIT

    mkdir "$CGROUP" "$HOST" "$CGROUP/services"
    cd "$FOLDER" || exit
    mkdir -p etc/policy.d etc/licenses
    cat >agent.toml <<TOML
mode = "enforce"
config_dir = "$FOLDER/etc"
state_dir = "$FOLDER/state"
runtime_dir = "$FOLDER/run"
bpffs_dir = "$FOLDER/bpf"
cgroup_root = "$HOST"
report_interval_s = 1
TOML
    export LICAGENT_CONFIG=$FOLDER/agent.toml LICPLANE_STATE=$FOLDER/plane
    YEAR_END=$(date --utc --date='+30 days' +%Y-%m-%dT00:00:00Z)
    export YEAR_END

    service python "$HERE/server.py" "$FOLDER/port"
    wait_for 60 test -f port
    PORT=$(<port)
    readonly PORT
    export URL=http://127.0.0.1:$PORT
    read -r -a ports < <(python "$HERE/server.py" --free-ports 2)
    export CONTROL=127.0.0.1:${ports[0]} JOINING=127.0.0.1:${ports[1]}
}

# service COMMAND...: in the background, outside the licensed cgroup; its pid is in $!.
service() {
    (
        printf '%s\n' "$BASHPID" >"$CGROUP/services/cgroup.procs"
        exec "$@" >>"$FOLDER/services.log" 2>&1 </dev/null
    ) &
}

# licagent with more time for the daemon's answer: others may want the machine, too.
licagent() {
    case ${1-}:${2-} in
        break-glass:* | detach:* | events:* | explain:* | status:* | top:*) set -- "$@" --timeout 30 ;;
        config:check | license:* | policy:show) set -- "$@" --timeout 30 ;;
        run:*) set -- run --timeout 30 "${@:2}" ;;
    esac
    command licagent "$@"
}

answers_or_ended() { gone "$DAEMON" || answers; }
answers() { licagent config check --live >/dev/null 2>&1; }

start_daemon() {
    shown root licagent daemon '&'
    service licagent daemon
    export DAEMON=$!
    if ! wait_for 60 answers_or_ended || ! answers; then
        printf 'demo: the daemon does not answer\n' >&2
        exit 1
    fi
}

# Takes everything away that build_stage and the acts made. Runs once, at the end, however it came.
leave() {
    local status=$? pid
    trap - EXIT
    trap '' HUP INT TERM # what is begun here is finished
    set +e
    if ((status)) && [[ -s $FOLDER/services.log ]]; then
        printf 'demo: the last lines of the daemon:\n' >&2
        tail -n 15 "$FOLDER/services.log" >&2
    fi
    [[ -z ${ENDED_WELL-} ]] || step 'Leaving: licagent detach, and nothing of the demo stays'
    exec {words}>&2 2>/dev/null # bash would tell of each process that it ends
    end_all "$HOST"
    licagent detach --yes >"$FOLDER/detach.log" 2>&1
    end_all "$CGROUP"
    # A program that only starts is in no cgroup of the demo yet.
    for pid in $(jobs -pr); do kill -9 "$pid"; done
    wait
    # A daemon that was only starting may have pinned something after that.
    [[ ! -d $FOLDER/bpf/links ]] || licagent detach --yes >>"$FOLDER/detach.log" 2>&1
    cd /
    local folder=$FOLDER/bpf
    if mountpoint --quiet "$folder"; then umount "$folder"; fi
    # Busy for a moment more, where a process that was ended is on its way out.
    wait_for 60 remove_cgroups
    mountpoint --quiet "$folder" || rm -rf "$FOLDER"
    exec 2>&"$words" {words}>&-
    if [[ -e $CGROUP || -e $FOLDER ]]; then
        printf 'demo: left behind, please report: %s %s\n' "$CGROUP" "$FOLDER" >&2
        cat "$FOLDER/detach.log" >&2
        exit 1
    fi
    if [[ -n ${ENDED_WELL-} ]]; then
        claim 'no process, no cgroup, no BPF program, no mount and no file is left' nothing_left
        printf '\n%sEverything held, in %d s.%s\n' "$bold" "$SECONDS" "$plain"
    fi
    exit "$status"
}

remove_cgroups() { [[ ! -d $CGROUP ]] || find "$CGROUP" -depth -type d -exec rmdir {} + 2>/dev/null; }

# A cgroup goes only when no process is in it, and programs when nothing holds their links.
nothing_left() {
    [[ ! -e $CGROUP && ! -e $FOLDER ]] && ! grep -qF -e "$FOLDER" /proc/mounts
}

# end_all CGROUP: ends every process in it and below, and waits until they are gone.
end_all() {
    local attempt pids
    [[ -d $1 ]] || return 0
    for attempt in {1..200}; do
        mapfile -t pids < <(find "$1" -name cgroup.procs -exec cat {} + 2>/dev/null)
        ((${#pids[@]})) || return 0
        # First politely; those that do not listen, and those that are new, without asking.
        if ((attempt == 1)); then kill "${pids[@]}"; elif ((attempt > 100)); then kill -9 "${pids[@]}"; fi
        sleep 0.05
    done
}
