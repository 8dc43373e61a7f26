#!/bin/sh
# Sets up what `make demo` and `make test` need on Debian or Ubuntu, and says what it does.
#
#   deploy/setup.sh demo   compiler, Git, Docker (optional: the demo also runs without), the agent image
#   deploy/setup.sh test   the same with Docker required, plus an image with the agents' programs, PostgreSQL and Redis for the tests
#   deploy/setup.sh bench  what `make bench` needs: Docker, PostgreSQL, Redis, and Node and Python for the peers
#
# System packages are installed only as root; otherwise the line to type is printed.
# Writes target/setup.env, which the Makefile reads.
set -eu

mode=${1:-demo}
top=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
mkdir -p "$top/target"
env_file=$top/target/setup.env
touch "$env_file"

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
is_root() { [ "$(id -u)" = 0 ]; }

# remember NAME VALUE: for the Makefile; what another mode has found stays
remember() {
    grep -v "^$1=" "$env_file" >"$env_file.new" || true
    echo "$1=$2" >>"$env_file.new"
    mv "$env_file.new" "$env_file"
}

updated=
# install_packages WHY PACKAGE…: fails when it is not possible here, and says what to type
install_packages() {
    why=$1
    shift
    if ! have apt-get; then
        say "$why needs $*: install it with this system's package manager"
        return 1
    fi
    if ! is_root; then
        say "$why needs packages. Type:  sudo apt-get install -y --no-install-recommends $*"
        return 1
    fi
    say "installing $* ($why)"
    if [ -z "$updated" ]; then
        apt-get update -qq || say "apt-get update failed; going on with the lists that are here"
        updated=yes
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" \
        >"$top/target/apt.log" 2>&1 || { tail -n 20 "$top/target/apt.log" >&2; return 1; }
}

# wait_for SECONDS COMMAND…
wait_for() {
    left=$1
    shift
    while ! "$@" >/dev/null 2>&1; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || return 1
        sleep 1
    done
}

need_toolchain() {
    have cargo || die "there is no Rust toolchain: install it from https://rustup.rs (1.94 or newer), then run this again"
    if ! have cc || ! have git; then
        install_packages "building" build-essential git || die "no C compiler or no git"
    fi
}

docker_answers() { docker version --format '{{.Server.Version}}'; }

need_docker() {
    docker_answers >/dev/null 2>&1 && return 0
    if ! have dockerd; then
        install_packages "running agents in containers" docker.io || return 1
    fi
    docker_answers >/dev/null 2>&1 && return 0
    if ! is_root; then
        say "Docker does not answer. Type:  sudo systemctl start docker && sudo usermod -aG docker $(id -un)   and log in again"
        return 1
    fi
    if have systemctl && [ -d /run/systemd/system ]; then
        say "starting the docker service"
        systemctl start docker || true
    else
        say "starting dockerd (log: target/dockerd.log)"
        setsid dockerd >"$top/target/dockerd.log" 2>&1 </dev/null &
    fi
    wait_for 60 docker_answers || { say "dockerd did not come up; see target/dockerd.log"; return 1; }
}

need_image() { sh "$top/deploy/agent/build-image.sh"; }

# The image with the agents' programs, and Claude Code beside the build output for tests that run it without a container.
need_clis() {
    image=zeblit-agent-clis:latest
    if ! have npm && ! docker image inspect $image >/dev/null 2>&1; then
        install_packages "fetching the agents' programs for the tests" npm || return 1
    fi
    sh "$top/deploy/agent/build-image.sh" --with claude,codex,opencode,gemini $image || return 1
    # shellcheck source=/dev/null
    version=$(. "$top/deploy/agent/versions.env" && echo "$CLAUDE_CODE_VERSION")
    program=$top/target/claude-$version
    if [ ! -x "$program" ]; then
        container=$(docker create $image true) || return 1
        docker cp -q "$container:/usr/local/bin/claude" "$program.new" 2>/dev/null ||
            docker cp "$container:/usr/local/bin/claude" "$program.new" >/dev/null
        docker rm "$container" >/dev/null
        mv "$program.new" "$program"
    fi
    remember ZEBLIT_TEST_CLAUDE "$program"
}

postgres_trusts() { PGCONNECT_TIMEOUT=3 psql -w -h 127.0.0.1 -p "$1" -U postgres -qtc 'select 1' postgres; }

# An existing server that trusts local connections, else a throw-away cluster of our own.
need_postgres() {
    if ! have psql; then
        install_packages "testing on PostgreSQL" postgresql || die "no PostgreSQL"
    fi
    port=5432
    if ! postgres_trusts $port >/dev/null 2>&1; then
        port=54329
        bin=$(find /usr/lib/postgresql -maxdepth 2 -name bin 2>/dev/null | sort -V | tail -n 1)
        if [ ! -x "$bin/initdb" ]; then
            install_packages "testing on PostgreSQL" postgresql || die "no PostgreSQL server"
            bin=$(find /usr/lib/postgresql -maxdepth 2 -name bin | sort -V | tail -n 1)
        fi
        if ! postgres_trusts $port >/dev/null 2>&1; then
            data=${TMPDIR:-/tmp}/zeblit-test-postgres
            say "starting a PostgreSQL cluster for the tests in $data (port $port)"
            as=
            mkdir -p "$data"
            if is_root; then
                as="runuser -u postgres --"
                chown postgres "$data"
            fi
            [ -f "$data/PG_VERSION" ] ||
                $as "$bin/initdb" -D "$data" -U postgres --auth=trust >"$top/target/postgres.log" 2>&1
            $as "$bin/pg_ctl" -D "$data" -w -l "$data/log" -o "-p $port -h 127.0.0.1 -k $data" start >/dev/null
            wait_for 30 postgres_trusts $port || die "PostgreSQL did not come up; see $data/log"
        fi
    fi
    remember ZEBLIT_TEST_POSTGRES "postgres://postgres@127.0.0.1:$port/postgres"
}

redis_answers() { [ "$(redis-cli -h 127.0.0.1 -p "$1" ping 2>/dev/null)" = PONG ]; }

# An existing server on this machine, else one of our own that keeps nothing.
need_redis() {
    have redis-cli && have redis-server ||
        install_packages "testing wake-ups over Redis" redis-server || die "no Redis"
    port=6379
    if ! redis_answers $port; then
        port=63799
        if ! redis_answers $port; then
            say "starting a Redis server for the tests (port $port)"
            redis-server --daemonize yes --bind 127.0.0.1 --port $port --save '' --appendonly no \
                --dir "$top/target" --logfile "$top/target/redis.log" >/dev/null
            wait_for 30 redis_answers $port || die "Redis did not come up; see target/redis.log"
        fi
    fi
    remember ZEBLIT_TEST_REDIS "redis://127.0.0.1:$port/"
}

need_toolchain
case $mode in
demo)
    if need_docker && need_image; then
        say "agents run in Docker containers"
    else
        say "going on without Docker: the demo runs its own recipe as a plain process"
    fi
    ;;
test)
    need_docker || die "the tests run real containers and need Docker"
    need_image || die "the agent image could not be built"
    need_clis || die "the image with the agents' programs could not be built"
    need_postgres
    need_redis
    have strace || install_packages "reading system calls" strace || die "no strace"
    ;;
bench)
    need_docker || die "the bench starts real containers and needs Docker"
    need_image || die "the agent image could not be built"
    need_postgres
    need_redis
    have node && have npm || install_packages "running the peers" nodejs npm || die "no Node"
    python3 -c 'import ensurepip' 2>/dev/null || install_packages "running the peers" python3-venv || die "no Python with venv"
    have taskset || install_packages "keeping server and client apart" util-linux || die "no taskset"
    ;;
*) die "usage: deploy/setup.sh demo|test|bench" ;;
esac
say "ready"
