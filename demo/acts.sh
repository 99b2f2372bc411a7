# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# What the demo shows, one function an act. Each shows its commands, and checks what it claims.

# ------------------------------------------------------------------------ no license, no access

denied() {
    try "$OTHER" curl -sS -v "$URL/hello"
    claim "$OTHER has no license: curl fails with the kernel's own words" \
        says 'Required key not available'
    claim 'curl saw no byte of it (its status is 7, could not connect)' ended_with 7
}

act_no_license_no_access() {
    step 'No license, no access'
    try "$LICENSED" curl -sS "$URL/hello"
    claim "$LICENSED has a license: curl is answered" says 'hello from the orders service'
    pause
    note 'The same program, run by somebody else (curl tells the errno only with -v):'
    denied
    try "$OTHER" nc -v -N 127.0.0.1 "$PORT"
    claim 'so it is with nc, and with every other program' says 'Required key not available'
    pause
}

# ----------------------------------------------------------------------------------- metering

# metered WHAT METER: how much of a meter the agent has counted for a user or license so far.
metered() {
    licagent usage --json --by "$1" | python -c '
import json, sys
rows = json.load(sys.stdin)["rows"]
print(sum(row["quantities"].get(sys.argv[2], 0) for row in rows if row["name"] == sys.argv[1]))
' "$2" "$3"
}

act_metering() {
    step 'What is used is metered, to the byte, and with nothing missed between two samples'
    local sent received ran size=0
    sent=$(metered license acme-backup tx_payload_bytes)
    received=$(metered license acme-backup rx_payload_bytes)
    ran=$(metered user "$OTHER" processes)
    note 'curl says how much it sent and received:'
    try "$LICENSED" curl -sS -o /dev/null -w '%{size_request} out %{size_header}+%{size_download} in\n' \
        "$URL/hello"
    # shellcheck disable=SC2154 # try has set it
    if [[ $output =~ ^([0-9]+)' out '([0-9]+)'+'([0-9]+) ]]; then
        sent=$((sent + BASH_REMATCH[1]))
        received=$((received + BASH_REMATCH[2] + BASH_REMATCH[3]))
        size=${BASH_REMATCH[1]}
    fi
    claim 'it did' test "$size" -gt 0
    note 'And 200 programs that live for a millisecond each:'
    try "$OTHER" bash -c 'for i in {1..200}; do /bin/true; done'
    do_ licagent usage
    claim 'bytes sent under the license are what curl said' \
        test "$(metered license acme-backup tx_payload_bytes)" -eq "$sent"
    claim 'so are those received' \
        test "$(metered license acme-backup rx_payload_bytes)" -eq "$received"
    do_ licagent usage --by user
    claim 'all 201 processes that ended are counted, with their CPU' \
        test "$(metered user "$OTHER" processes)" -eq $((ran + 201))
    pause
    do_ licagent top --once --delay 0.5
    claim 'top shows also those that came and went between two readings (*)' \
        matches '\* +'"$OTHER"' .* true'
    do_ licagent usage verify
    claim 'the ledger of it is signed and chained' says 'the ledger holds'
    pause
}

# ---------------------------------------------------------------------------------- downloads

# download NAME USER [COMMAND...]: starts `COMMAND... curl URL/stream` as USER in the background,
# output in NAME; its pid is in $DOWNLOAD.
download() {
    local name=$1 user=$2
    shift 2
    local -a command=("$@" curl -sS -N "$URL/stream")
    shown "$user" "${command[@]}" '>' "$name" '&'
    if [[ $user == root ]]; then
        (exec "${command[@]}") >"$name" 2>"$name.err" </dev/null &
    else
        become "$user" "${command[@]}" >"$name" 2>"$name.err" </dev/null &
    fi
    export DOWNLOAD=$!
    claim 'the download runs' wait_for 60 grows "$name" 10
}

lines() { wc -l <"$1"; }

# grows NAME LINES: there are at least so many lines now.
grows() { (($(lines "$1") >= $2)); }

# goes_on NAME: lines are being added at this time.
goes_on() {
    local before
    before=$(lines "$1")
    wait_for 60 grows "$1" $((before + 10))
}

# silent NAME: no line is added in two seconds.
silent() {
    local before
    before=$(lines "$1")
    sleep 2
    (($(lines "$1") == before))
}

sent() { awk 'NF == 3 { last = $1 } END { print last }' "$1"; } # time of the last line

# ended PID NAME: waits for the download's end; its status and words are in $status and $output.
ended() {
    wait_for 60 gone "$1" || return 1
    waited "$1" "$2.err"
}

# behind NAME OTHER TIME: lines of OTHER's, up to that time, after NAME's last one. One server sends
# both: when it waits for a processor, neither has any.
behind() {
    awk -v after="$(sent "$1")" -v until="$3" 'NF == 3 && $1 > after && $1 <= until' "$2" | wc -l
}

not_after() { (($(milliseconds "$1") <= $(milliseconds "$2") + ${3-0})); }

# ------------------------------------------------------------------ expiry without the daemon

act_expiry_without_daemon() {
    step "A license ends in $EXPIRY_S s, and the daemon is killed before, too"
    rules_before=$(rules)
    note 'A file carries it to the host, as there is no link:'
    do_ licplane license issue --id acme-trial --subject 'Acme Ltd' --org acme --resource orders \
        --expires "+${EXPIRY_S}s" --out acme-trial.lic
    do_ licagent license add acme-trial.lic
    claim 'it is good until its end' matches 'expires ([^ ]+Z)'
    trial_end=${BASH_REMATCH[1]}
    download trial.txt root licagent run --license acme-trial --
    trial=$DOWNLOAD
    shown root kill -9 "$DAEMON"
    kill -9 "$DAEMON"
    wait "$DAEMON" 2>/dev/null || true
    local killed
    killed=$(now)
    claim "the daemon died before the license's end" not_after "$killed" "$trial_end" -2000
    try root licagent status
    claim 'licagent says so (status 3)' ended_with 3
    denied
    try "$LICENSED" curl -sS "$URL/hello"
    claim 'nobody is there, and the kernel goes on deciding' says 'hello'
    note "waiting for the license's end at $trial_end ..."
    wait_for 60 is_past "$trial_end"
    sleep 1
    claim 'nothing arrives any more' silent trial.txt
    printf 'last byte sent  %s\nlicense ended   %s\n' "$(sent trial.txt)" "$trial_end"
    claim 'the last byte was sent before the end (0.05 s allowed: ticks of the kernel, two clocks)' \
        not_after "$(sent trial.txt)" "$trial_end" 50
    claim "and bytes came until then, as $LICENSED's did" \
        test "$(behind trial.txt steady.txt "$trial_end")" -lt 30
    claim "$LICENSED's download goes on" goes_on steady.txt
    pause
}

is_past() { (($(date +%s%3N) > $(milliseconds "$1"))); }
rules() { licagent policy show | sed '1,/^Resources/d'; }
as_before() { [[ $(rules) == "$rules_before" ]]; }

act_restart() {
    step 'The daemon is started again: everything is as before'
    start_daemon
    try root licagent status
    claim 'it enforces' says 'enforcing'
    claim 'resources and bindings are the same' as_before
    claim 'the expired download was closed' ended "$trial" trial.txt
    show_output
    claim "$LICENSED's download still goes on: the same process, the same socket" \
        goes_on steady.txt
    denied
    try root licagent run --license acme-trial -- curl -sS -v "$URL/hello"
    claim 'the expired license opens nothing' says 'Key has expired'
    pause
}

# --------------------------------------------------------------------------------- break-glass

act_break_glass() {
    step 'Never locked out: break-glass'
    do_ licagent break-glass --for 12s --reason 'demo: orders must go out'
    claim 'it is open for a bounded time' matches 'until ([^ ]+Z)'
    local end=${BASH_REMATCH[1]}
    try "$OTHER" curl -sS "$URL/hello"
    claim 'everything passes' says 'hello from the orders service'
    try root licagent status
    claim 'status says that the host is open (status 151)' ended_with 151
    note 'When the time is over the kernel itself closes the host:'
    wait_for 60 is_past "$end"
    denied
    pause
}

# ---------------------------------------------------------------------------------- look back

act_look_back() {
    step 'What licagent tells about all this'
    try root licagent status
    claim 'the host enforces, and is well' ended_with 0
    pause
    note "The download that is still running:"
    do_ licagent explain "$STEADY"
    claim 'it runs under acme-backup' matches 'license: +acme-backup'
    pause
    note "A process of $OTHER:"
    become "$OTHER" sleep 600 &
    wait_for 60 runs_sleep $! || true
    do_ licagent explain $!
    claim 'explain says what is missing' says 'missing:'
    claim 'and how to get it' says 'to get it:'
    pause
    do_ licagent events --limit 40
    output=$(licagent events --limit 1000) # what is older than these is on the record, too
    claim 'the revocation is on the record' says 'contract ended'
    claim 'break-glass is on the record' says 'orders must go out'
    claim 'denials are on the record' says "(user $OTHER) was refused orders"
    pause
}

runs_sleep() { [[ $(readlink "/proc/$1/exe") == */sleep ]]; }
