#!/usr/bin/env bash
# One host of a Ray cluster for rollout workers. `ray` and `python` have to be on the PATH.
#
#     hosts.sh head [options of ray start]         # the host of the learner; no worker runs on it without --num-cpus=N
#     hosts.sh join HEAD:6379 [options of ray start]
#     hosts.sh learn FLAGS                         # python -m trpo_tf.train, with --resume where there is a checkpoint
#     hosts.sh run COMMAND...                      # any other command with the token, such as ray status
#     hosts.sh stop                                # ends every Ray process of this user on this host
#
# The token, the same everywhere, is $RAY_AUTH_TOKEN or the file $RAY_AUTH_TOKEN_PATH, without both ~/.ray/auth_token.
set -euo pipefail

# 6379 to 6385 and 10100 to 10999 are all that the hosts have to reach on each other.
PORTS=(
    --node-manager-port=6380
    --object-manager-port=6381
    --runtime-env-agent-port=6382
    --dashboard-agent-grpc-port=6383
    --dashboard-agent-listen-port=6384
    --metrics-export-port=6385
    --min-worker-port=10100
    --max-worker-port=10999
)
# Whoever uses the dashboard's jobs API or Ray Client runs code here. Nobody needs either. `ray start` cannot be told to
# leave out the server of Ray Client: its port, 10001, stays closed in the firewall.
CLOSED=(--include-dashboard=false --dashboard-host=127.0.0.1 --ray-client-server-port=10001)

fail() {
    echo "hosts.sh: $1" >&2
    exit 2
}

require_token() {
    export RAY_AUTH_MODE=token
    if [ -n "${RAY_AUTH_TOKEN:-}" ]; then
        [ "${#RAY_AUTH_TOKEN}" -ge 32 ] || fail "RAY_AUTH_TOKEN has fewer than 32 characters"
        return
    fi
    export RAY_AUTH_TOKEN_PATH="${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}"
    local file="$RAY_AUTH_TOKEN_PATH"
    [ -f "$file" ] || fail "$file: no token; the README says how one is made"
    [ -O "$file" ] || fail "$file: belongs to another user"
    [ -z "$(find -L "$file" -perm /077)" ] || fail "$file: others may read or write it; chmod 600 $file"
    [ "$(tr -d '[:space:]' <"$file" | wc -c)" -ge 32 ] || fail "$file: has fewer than 32 characters"
}

more_files() { # each worker and each client of the head holds several
    ulimit -Sn 65536 2>/dev/null || true
}

start_head() {
    more_files
    exec ray start --head --port=6379 "${PORTS[@]}" "${CLOSED[@]}" --num-cpus=0 --disable-usage-stats "$@"
}

start_node() {
    [[ "${1:-}" == ?*:* ]] || fail "join needs the address of the head, HEAD:6379"
    local address="$1"
    shift
    more_files
    exec ray start --address="$address" "${PORTS[@]}" --disable-usage-stats "$@"
}

start_learner() {
    local flag run_dir="" address_file="${RAY_TMPDIR:-/tmp}/ray/ray_current_cluster" # written by ray start
    for flag in "$@"; do
        case "$flag" in --run_dir=*) run_dir="${flag#*=}" ;; esac
    done
    [ -n "$run_dir" ] || fail "learn needs --run_dir=DIRECTORY, on a disk that outlives this host"
    [ -s "$address_file" ] || fail "no Ray on this host; hosts.sh head starts it"
    if compgen -G "$run_dir/checkpoints/update_*" >/dev/null; then
        set -- "$@" --resume
    fi
    echo "hosts.sh: waiting for a host with CPUs for workers" >&2
    until ray status 2>/dev/null | grep -q ' CPU$'; do sleep 5; done
    exec python -m trpo_tf.train "--ray_address=$(cat "$address_file")" "$@"
}

command="${1:-}"
[ $# -eq 0 ] || shift
case "$command" in
    head)
        require_token
        start_head "$@"
        ;;
    join)
        require_token
        start_node "$@"
        ;;
    learn)
        require_token
        start_learner "$@"
        ;;
    run)
        [ $# -gt 0 ] || fail "run needs a command"
        require_token
        exec "$@"
        ;;
    stop) exec ray stop ;;
    *) fail "head, join HEAD:6379, learn FLAGS, run COMMAND or stop" ;;
esac
