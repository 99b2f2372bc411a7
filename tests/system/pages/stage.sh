# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# A scratch installation in which the commands of a page run as they stand. Read by bash, in a
# network and UTS namespace of its own, with STAGE (a folder), CGROUP (a cgroup of its own) and ROOT (the
# clone) set. Paths of an installation (/etc/licagent...) are replaced by folders in STAGE before
# the page's commands come here. Ends everything that it started.
set -uo pipefail
shopt -s inherit_errexit

# shellcheck source=tests/system/pages/patient.sh
source "${BASH_SOURCE%/*}/patient.sh"

mkdir -p "$STAGE"/{etc/licagent/licenses,etc/licagent/policy.d,bin,home,work}
export PATH=$STAGE/bin:$ROOT/.venv/bin:$PATH HOME=$STAGE/home
export LICAGENT_CONFIG=$STAGE/etc/licagent/agent.toml
export LICPLANE_STATE=$STAGE/var/licplane
export LICPLANE_PASSPHRASE='words of a test'
export LICPLANE_LISTEN=127.0.0.1:8443 LICPLANE_PUBLIC_LISTEN=127.0.0.1:8444
DAEMON='' PLANE=''
chmod 0711 "$STAGE" # other users run programs in it
cd "$STAGE/work" || exit 1

at_end() {
    trap - EXIT ERR
    echo $$ >"${CGROUP%/*}/cgroup.procs"
    [[ -z $DAEMON ]] || licagent detach --yes >/dev/null 2>&1
    local pid
    for pid in $(jobs -p); do kill "$pid" 2>/dev/null; done
    wait
}
trap at_end EXIT

# within SECONDS COMMAND...: until it succeeds; ends the page when it does not.
within() {
    local limit=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS > limit)); then
            echo "=== not in time: $*"
            cat "$STAGE"/*.log
            exit 1
        fi
        sleep 0.1
    done
}

network() {
    hostname db-1
    ip link set lo up
    ip address add 10.0.5.7/32 dev lo
    ip address add 10.0.5.8/32 dev lo
    "$ROOT/.venv/bin/python" - >"$STAGE/server.log" 2>&1 <<'PY' &
import socket, threading
def serve(listener):
    while True:
        made, _ = listener.accept()
        made.sendall(b"hello\n")
        made.close()
for port in (5432, 5433):
    listener = socket.create_server(("10.0.5.7", port), backlog=64)
    threading.Thread(target=serve, args=(listener,)).start()
PY
    within 20 nc -z 10.0.5.7 5433
    # A program of the user's, by the name that pages use: it connects to port 5432 and prints.
    cat >"$STAGE/bin/psql" <<'SH'
#!/bin/sh
exec nc -d -w 5 "$2" 5432
SH
    chmod +x "$STAGE/bin/psql"
}

settings() {
    cat >"$LICAGENT_CONFIG" <<TOML
mode = "${1:-enforce}"
config_dir = "$STAGE/etc/licagent"
state_dir = "$STAGE/var/licagent"
runtime_dir = "$STAGE/run"
bpffs_dir = "$STAGE/bpf"
cgroup_root = "$CGROUP"
report_interval_s = 1
TOML
}

start_daemon() {
    rm -f "$STAGE/run/licagent.sock"
    command licagent daemon >>"$STAGE/daemon.log" 2>&1 &
    DAEMON=$!
    within 60 test -S "$STAGE/run/licagent.sock"
}

# What a page tells systemd to do, done to the daemon of this installation.
systemctl() {
    case "$*" in
        'restart licagent' | 'try-restart licagent')
            kill "$DAEMON" && wait "$DAEMON"
            start_daemon
            ;;
        'reload licagent') kill -HUP "$DAEMON" ;;
        'status licagent') ps -o pid,args "$DAEMON" ;;
        'start licagent' | 'enable --now licagent') kill -0 "$DAEMON" 2>/dev/null || start_daemon ;;
        'start licplane' | 'enable --now licplane') serving ;;
        'stop licplane') stop_serving ;;
        'restart licplane') stop_serving && serving ;;
        *)
            echo "=== this installation has no systemctl $*"
            return 1
            ;;
    esac
}

# `licplane serve` stays in the foreground; here it goes on beside the page's other commands.
licplane() {
    if [[ ${1-} != serve ]]; then
        command licplane "$@"
        return
    fi
    command licplane "$@" >>"$STAGE/plane.log" 2>&1 &
    PLANE=$!
    within 60 nc -z 127.0.0.1 8443
    within 60 nc -z 127.0.0.1 8444
}

serving() { licplane serve --issuer acme "$@"; }

stop_serving() {
    kill "$PLANE" && wait "$PLANE"
    PLANE=''
}

issuer() {
    command licplane keys create --issuer acme >/dev/null
    command licplane license issue --id acme-orders-2026 --subject 'Acme Ltd' --org acme \
        --resource orders-db --resource orders-api:bind --expires +365d \
        --out acme-orders-2026.lic >/dev/null
    command licplane keys export --out trust.jwks >/dev/null
}

# enter: from here on, this shell and what it starts are asked for licenses.
enter() { echo $$ >"$CGROUP/cgroup.procs"; }

host() {
    settings "${1:-enforce}"
    start_daemon
    enter
}

licensed() {
    cp trust.jwks "$STAGE/etc/licagent/trust.jwks"
    licagent license add acme-orders-2026.lic >/dev/null
}

orders() {
    cat >"${1:-orders.toml}" <<TOML
[[resource]]
name = "orders-db"
kind = "network"
mode = "enforce"
destinations = [{ cidr = "10.0.5.0/24", ports = ["5432"], protocol = "tcp" }]

[[binding]]
name = "orders"
license = "acme-orders-2026"
selectors = ["unix:user:root"]
TOML
}

license_document() {
    cat <<TOML

[[license]]
id = "acme-orders-2026"
subject = "Acme Ltd"
scope = { org = "acme" }
entitlements = [{ resource = "orders-db" }]
expires = 2099-01-01T00:00:00Z
TOML
}

join() {
    command licplane token create --label org=acme --label environment=prod --out join.token \
        >/dev/null 2>&1
    licagent enroll - <join.token >/dev/null
}

policy() {
    mkdir -p policy
    orders policy/orders.toml
    license_document >>policy/orders.toml
}

fleet() {
    serving "$@"
    host enforce
    join
    policy
    command licplane apply -f policy/ >/dev/null 2>&1
    within 60 leased
    within 30 answered
}

# Before there is a policy everybody is answered, and leases come after the licenses.
leased() { [[ $(licagent status) =~ leases:\ +1,\ until ]]; }
answered() { [[ $(psql -h 10.0.5.7 orders) == hello ]]; }
waiting() { licagent status | grep -q "127.0.0.1:8443: waiting"; }
linked() { licagent status --json | grep -q '"state": *"connected"'; }

network
