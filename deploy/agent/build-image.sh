#!/bin/sh
# Purpose: make the container image that agents run in, by the first of these that works:
#   1. it is there already;
#   2. `docker pull` from $ZEBLIT_IMAGE_REGISTRY (only when that is set), e.g. ghcr.io/your-org;
#   3. built here from this machine's own Debian or Ubuntu package sources with mmdebstrap.
#
# Usage: build-image.sh [--with-claude] [--force] [TAG]
#   TAG            default: zeblit-agent:latest
#   --with-claude  adds Claude Code (its native program, about 360 MB) at the version in versions.env
#   --force        builds even when the image is there
#
# What it installs: on this machine `mmdebstrap` (only when missing; as root, else the command is
# printed). Into the image: Debian's minimal base, git, ca-certificates, python3.
# The image needs no program of Zeblit: `zeblit-shim` is mounted into each container.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
# shellcheck source=/dev/null
. "$here/versions.env"

tag=zeblit-agent:latest
with_claude=no
force=no
packages=git,ca-certificates,python3

say() { printf 'build-image: %s\n' "$*" >&2; }
die() { printf 'build-image: error: %s\n' "$*" >&2; exit 1; }

for argument in "$@"; do
    case $argument in
    --with-claude) with_claude=yes ;;
    --force) force=yes ;;
    -h | --help) sed -n '2,15p' "$0" | sed 's/^# \{0,1\}//'; exit 0 ;;
    -*) die "unknown option $argument (see --help)" ;;
    *) tag=$argument ;;
    esac
done
case $tag in *:*) ;; *) tag=$tag:latest ;; esac

command -v docker >/dev/null 2>&1 || die "the docker program is missing: sudo apt-get install docker.io"
docker version >/dev/null 2>&1 ||
    die "the Docker Engine does not answer: sudo systemctl start docker (and be in the group docker, or root)"

# What an image holds is in its labels, so that an image without Claude Code is not taken for one with it.
has_wanted_content() {
    docker image inspect "$tag" >/dev/null 2>&1 || return 1
    [ "$with_claude" = yes ] || return 0
    [ "$(docker image inspect --format '{{index .Config.Labels "zeblit.claude-code"}}' "$tag" 2>/dev/null)" = "$CLAUDE_CODE_VERSION" ]
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
if [ "$with_claude" = yes ]; then
    command -v npm >/dev/null 2>&1 || die "--with-claude fetches an npm package and npm is missing: sudo apt-get install npm"
fi

# The suite of this machine's own sources: its mirrors and keys are known to work here.
suite=$DEBIAN_SUITE
if [ -r /etc/os-release ]; then
    own=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
    [ -z "$own" ] || suite=$own
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/zeblit-image.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

set -- --variant=minbase --include="$packages" --format=tar --quiet \
    --aptopt='Acquire::Retries "3"' --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --customize-hook='mkdir -p "$1/zeblit"' \
    --customize-hook='rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/*'

if [ "$with_claude" = yes ]; then
    case $(uname -m) in
    x86_64) claude_platform=linux-x64 ;;
    aarch64) claude_platform=linux-arm64 ;;
    *) die "Claude Code has no native program for $(uname -m)" ;;
    esac
    say "fetching Claude Code $CLAUDE_CODE_VERSION ($claude_platform) from the npm registry"
    # The platform package holds one native program; no install script is run and no Node is needed.
    (cd "$work" && npm pack --silent "@anthropic-ai/claude-code-$claude_platform@$CLAUDE_CODE_VERSION" >package.name) ||
        die "npm could not fetch @anthropic-ai/claude-code-$claude_platform@$CLAUDE_CODE_VERSION"
    tar -xzf "$work/$(tail -n 1 "$work/package.name")" -C "$work" package/claude ||
        die "the npm package does not hold the program \`claude\`: choose another CLAUDE_CODE_VERSION in versions.env"
    chmod 0755 "$work/package/claude"
    set -- "$@" --customize-hook="copy-in $work/package/claude /usr/local/bin"
fi

say "building from $suite packages: $packages (takes about half a minute)"
# mmdebstrap drops to a user of its own when root: it must be able to write here.
chmod 0755 "$work"
mmdebstrap "$@" "$suite" "$work/root.tar" >&2 || die "mmdebstrap failed; the lines above say why"

say "importing into Docker as $tag"
set -- --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    --change 'ENV LANG=C.UTF-8' --change 'CMD ["/bin/bash"]' --change "LABEL zeblit.base=$suite"
[ "$with_claude" = no ] || set -- "$@" --change "LABEL zeblit.claude-code=$CLAUDE_CODE_VERSION"
docker import "$@" "$work/root.tar" "$tag" >/dev/null || die "docker import failed"

say "image $tag is ready ($(docker image inspect --format '{{.Size}}' "$tag") bytes)"
