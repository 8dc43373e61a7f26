#!/bin/sh
# Purpose: make the container image that agents run in, by the first of these that works:
#   1. it is there already;
#   2. `docker pull` from $ZEBLIT_IMAGE_REGISTRY (only when that is set), e.g. ghcr.io/your-org;
#   3. built here from this machine's own Debian or Ubuntu package sources with mmdebstrap, and from the npm registry.
#
# Usage: build-image.sh [--with CLI[,CLI...]] [--force] [TAG]
#   --with CLI,... adds agents' programs at the versions in versions.env: claude, codex, opencode, gemini
#   --force        builds even when the image is there
#   TAG            default: zeblit-agent:latest
#
# Programs are a layer over zeblit-agent:latest, which is made first when it is not there.
# What it installs: on this machine `mmdebstrap` (only when missing; as root, else the command is
# printed). Into the image: the Debian packages of versions.env, and Node with npm at its version there
# (Debian's own when this machine has no npm to fetch it with).
# The image needs no program of Zeblit: `zeblit-shim` is mounted into each container.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
# shellcheck source=/dev/null
. "$here/versions.env"

base=zeblit-agent:latest
tag=$base
clis=
force=no

say() { printf 'build-image: %s\n' "$*" >&2; }
die() { printf 'build-image: error: %s\n' "$*" >&2; exit 1; }

while [ $# -gt 0 ]; do
    case $1 in
    --with)
        [ $# -ge 2 ] || die "--with needs a list: claude,codex,opencode,gemini"
        clis=$(printf '%s' "$2" | tr ',' '\n' | sort -u | tr '\n' ' ')
        shift
        ;;
    --force) force=yes ;;
    -h | --help) sed -n '2,18p' "$0" | sed 's/^# \{0,1\}//'; exit 0 ;;
    -*) die "unknown option $1 (see --help)" ;;
    *) tag=$1 ;;
    esac
    shift
done

# version_of CLI
version_of() {
    case $1 in
    claude) echo "$CLAUDE_CODE_VERSION" ;;
    codex) echo "$CODEX_VERSION" ;;
    opencode) echo "$OPENCODE_VERSION" ;;
    gemini) echo "$GEMINI_CLI_VERSION" ;;
    *) return 1 ;;
    esac
}
for cli in $clis; do
    version_of "$cli" >/dev/null || die "there is no program $cli; --with takes claude, codex, opencode, gemini"
done
case $tag in *:*) ;; *) tag=$tag:latest ;; esac
packages=$DEBIAN_PACKAGES

command -v docker >/dev/null 2>&1 || die "the docker program is missing: sudo apt-get install docker.io"
docker version >/dev/null 2>&1 ||
    die "the Docker Engine does not answer: sudo systemctl start docker (and be in the group docker, or root)"

label_of() { docker image inspect --format "{{index .Config.Labels \"$2\"}}" "$1" 2>/dev/null || true; }

# What an image holds is in its labels, so that an older one is not taken for the wanted one.
has_wanted_content() {
    docker image inspect "$tag" >/dev/null 2>&1 || return 1
    [ "$(label_of "$tag" zeblit.packages)" = "$DEBIAN_PACKAGES" ] || return 1
    for cli in $clis; do
        [ "$(label_of "$tag" "zeblit.cli.$cli")" = "$(version_of "$cli")" ] || return 1
    done
}

if [ "$force" = no ] && has_wanted_content; then
    say "image $tag is there already"
    exit 0
fi

if [ "$force" = no ] && [ -n "${ZEBLIT_IMAGE_REGISTRY:-}" ]; then
    say "pulling $ZEBLIT_IMAGE_REGISTRY/$tag"
    if docker pull "$ZEBLIT_IMAGE_REGISTRY/$tag" >&2; then
        docker tag "$ZEBLIT_IMAGE_REGISTRY/$tag" "$tag"
        if has_wanted_content; then
            say "image $tag is ready"
            exit 0
        fi
        say "the pulled image has not the wanted content, building instead"
    else
        say "the pull failed, building from this machine's packages"
    fi
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/zeblit-image.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
# mmdebstrap drops to a user of its own when root: it must be able to write here.
chmod 0755 "$work"

if [ -n "$clis" ]; then
    command -v npm >/dev/null 2>&1 || die "--with fetches npm packages and npm is missing: sudo apt-get install npm"
    sh "$0" "$base"
    say "fetching ${clis}from the npm registry"
    # shellcheck disable=SC2086
    sh "$here/fetch.sh" "$work/clis" $clis || die "the programs could not be fetched"
    say "adding them to $base as $tag"
    container=$(docker create "$base" true)
    for cli in $clis; do
        set -- "$@" --change "LABEL zeblit.cli.$cli=$(version_of "$cli")"
    done
    if tar -C "$work/clis" --owner=0 --group=0 -cf - . | docker cp - "$container:/" >/dev/null &&
        docker commit "$@" "$container" "$tag" >/dev/null; then
        docker rm "$container" >/dev/null
    else
        docker rm "$container" >/dev/null
        die "docker could not add the programs"
    fi
    say "image $tag is ready ($(docker image inspect --format '{{.Size}}' "$tag") bytes)"
    exit 0
fi

if ! command -v mmdebstrap >/dev/null 2>&1; then
    command -v apt-get >/dev/null 2>&1 ||
        die "mmdebstrap is missing and this machine has no apt-get. With a registry at hand: docker build -t $tag $here"
    if [ "$(id -u)" = 0 ]; then
        say "installing mmdebstrap on this machine (apt-get)"
        apt-get update -qq >&2 || die "apt-get update failed"
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mmdebstrap >&2 ||
            die "apt-get could not install mmdebstrap"
    else
        die "mmdebstrap is missing. Type: sudo apt-get install --no-install-recommends mmdebstrap"
    fi
fi

# The suite of this machine's own sources: its mirrors and keys are known to work here.
suite=$DEBIAN_SUITE
if [ -r /etc/os-release ]; then
    own=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
    [ -z "$own" ] || suite=$own
fi

node=$NODE_VERSION
if command -v npm >/dev/null 2>&1 && sh "$here/fetch.sh" "$work/node" node; then
    tar -C "$work/node" --owner=0 --group=0 -cf "$work/node.tar" .
else
    say "no Node $NODE_VERSION from the npm registry: taking the distribution's own"
    packages=$packages,nodejs,npm
    node=distribution
    tar -cf "$work/node.tar" -T /dev/null
fi

say "building from $suite packages: $packages (takes one to two minutes)"
mmdebstrap --variant=minbase --include="$packages" --format=tar --quiet \
    --aptopt='Acquire::Retries "3"' --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='force-unsafe-io' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --customize-hook='mkdir -p "$1/zeblit"' \
    --customize-hook="tar-in $work/node.tar /" \
    --customize-hook='rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/*' \
    "$suite" "$work/root.tar" >&2 || die "mmdebstrap failed; the lines above say why"

say "importing into Docker as $tag"
docker import --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    --change 'ENV LANG=C.UTF-8' --change 'CMD ["/bin/bash"]' --change "LABEL zeblit.base=$suite" \
    --change "LABEL zeblit.packages=$DEBIAN_PACKAGES" --change "LABEL zeblit.node=$node" \
    "$work/root.tar" "$tag" >/dev/null || die "docker import failed"

say "image $tag is ready ($(docker image inspect --format '{{.Size}}' "$tag") bytes)"
