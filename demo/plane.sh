# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# The control plane's acts: it is set up, the host joins, licenses and policy are pushed, a license
# is revoked from there, and the link is cut.

readonly FLEET=fleet/orders.yaml

# ------------------------------------------------------------------------------------- set-up

start_plane() {
    local -a command=(licplane serve --listen "$CONTROL" --public-listen "$JOINING")
    shown root "${command[@]}" '&'
    service "${command[@]}"
    export PLANE=$!
    if ! wait_for 60 plane_up_or_ended || ! plane_up; then
        printf 'demo: the control plane does not answer\n' >&2
        exit 1
    fi
}

plane_up_or_ended() { gone "$PLANE" || plane_up; }
plane_up() { takes_connections "$CONTROL" && takes_connections "$JOINING"; }
takes_connections() { (exec 3<>"/dev/tcp/${1%:*}/${1##*:}") 2>/dev/null; }

act_plane() {
    step 'A control plane is one command and one folder'
    do_ licplane keys create --issuer acme --unencrypted
    start_plane
    claim 'it has a database, a CA and its keys' test -s "$LICPLANE_STATE/licplane.db"
    pause
}

act_join() {
    step 'The host joins: one command, with a token that works once'
    start_daemon
    do_ licplane token create --label org=acme --label environment=demo --expires +10m \
        --out join.token
    from=join.token do_ licagent enroll -
    claim 'the host has an identity' matches '^enrolled: '
    from=join.token do_ licagent enroll -
    claim 'a second time changes nothing' says 'was enrolled already'
    wait_for 60 linked || true
    do_ licplane host list
    claim 'the control plane sees it' says active
    pause
}

linked() { licagent status --json | grep -q '"state": *"connected"'; }

# write_fleet MODE: what the control plane is told of resources, bindings and licenses.
write_fleet() {
    mkdir -p fleet
    cat >"$FLEET" <<YAML
resource:
  - name: orders
    kind: network
    mode: $1
    destinations:
      - { cidr: 127.0.0.1/32, ports: ["$PORT"], protocol: tcp }
binding:
  - name: backup-may-read-orders
    license: acme-backup
    selectors: ["unix:user:$LICENSED"]
license:
  - id: acme-backup
    subject: Acme Ltd
    scope: { org: acme }
    entitlements: [{ resource: orders }]
    expires: $YEAR_END
  - id: acme-contract
    subject: Acme Ltd
    scope: { org: acme }
    entitlements: [{ resource: orders }]
    expires: $YEAR_END
YAML
}

act_apply() {
    step 'What is licensed, who uses which license, and the licenses: declared in one place'
    write_fleet enforce
    do_ cat "$FLEET"
    do_ licplane apply -f fleet
    claim 'it is pushed, and in the kernel of the host' wait_for 60 in_force
    do_ licplane apply -f fleet
    claim 'applied again it changes nothing' says 'No change'
    pause
}

in_force() { licagent license list | grep -q '^acme-contract .*valid'; }

# --------------------------------------------------------------------------------- revocation

act_revocation() {
    step 'A license is revoked at the control plane: the running download dies'
    note 'A download under another license, by "licagent run":'
    download contract.txt root licagent run --license acme-contract --
    local contract=$DOWNLOAD
    wait_for 60 reported || true
    do_ licplane license revoke acme-contract --dry-run
    claim 'a dry run names the live socket that it would cut' says 'would cut 1 live socket'
    claim 'and cuts none' goes_on contract.txt
    pause
    do_ licplane license revoke acme-contract --reason 'contract ended' --out acme-contract.rev
    local revoked
    revoked=$(now)
    claim 'the download has ended' ended "$contract" contract.txt
    show_output
    claim 'curl failed in the middle of it' failed
    claim 'the host has it on record' wait_for 60 is_cut
    printf 'last byte sent  %s\ncut by the host %s\nrevoked by      %s\n' \
        "$(sent contract.txt)" "$cut_at" "$revoked"
    claim 'no byte came after the cut (0.05 s allowed: two clocks)' \
        not_after "$(sent contract.txt)" "$cut_at" 50
    try root licagent run --license acme-contract -- curl -sS -v "$URL/hello"
    claim 'nor can it connect again' says 'Key has been revoked'
    pause
}

# When the host had cut what ran under the license is in $cut_at.
is_cut() {
    local told
    told=$(licagent events --json --license acme-contract --limit 1000 |
        grep 'acme-contract revoked by the control plane') || return 1
    [[ $told =~ \"at\":\ \"([^\"]+)\" ]] && cut_at=${BASH_REMATCH[1]}
}

reported() { licplane license revoke acme-contract --dry-run 2>&1 | grep -q 'would cut 1 '; }

# ------------------------------------------------------------------------------- link cut

act_link_cut() {
    step 'The control plane is killed: enforcement goes on'
    note 'A download that stays licensed, to see that it notices nothing:'
    download steady.txt "$LICENSED"
    export STEADY=$DOWNLOAD
    shown root kill -9 "$PLANE"
    kill -9 "$PLANE"
    wait "$PLANE" 2>/dev/null || true
    wait_for 60 unlinked || true
    try root licagent status
    claim 'the host enforces, and says until when its leases last' matches 'leases: +[0-9]+, until'
    try "$LICENSED" curl -sS "$URL/hello"
    claim "$LICENSED is still licensed, until its lease ends" says 'hello from the orders service'
    denied
    claim "$LICENSED's download goes on" goes_on steady.txt
    pause
}

in_step() { licplane host show "$(hostname)" | grep -q '^drift *none'; }
unlinked() { ! linked; }

act_link_back() {
    step 'The control plane is back: the host finds it by itself'
    start_plane
    claim 'the host is connected again' wait_for 60 linked
    wait_for 60 in_step || true
    do_ licplane host show "$(hostname)"
    claim "it is where the control plane wants it" matches "drift +none"
    pause
}

# ------------------------------------------------------------------------------------ observe

act_observe() {
    step 'Observe first: the same policy, refusing nothing'
    write_fleet observe
    do_ licplane apply -f fleet
    claim 'observed' wait_for 60 has_mode observe
    try "$OTHER" curl -sS "$URL/hello"
    claim "$OTHER is let through" says 'hello from the orders service'
    wait_for 60 shadow_listed || true
    try root licplane shadow
    claim 'and the control plane lists who used it with no binding' says " $OTHER "
    do_ licplane shadow --bindings
    claim 'with the binding that would license it' says '[[binding]]'
    pause
    write_fleet enforce
    do_ licplane apply -f fleet
    claim 'enforced again' wait_for 60 has_mode enforce
    denied
    pause
}

# Asked without connecting: each try would be an event.
has_mode() { [[ $(licagent policy show) =~ orders\ +network\ +"$1" ]]; }
shadow_listed() { licplane shadow 2>&1 | grep -q " $OTHER "; }

act_audit() {
    step 'Who did what: the audit log of the control plane'
    do_ licplane audit list
    claim 'the revocation is on it, with its reason' says 'contract ended'
    do_ licplane audit verify
    claim 'nothing was edited, deleted or cut off' says 'intact'
    pause
}
