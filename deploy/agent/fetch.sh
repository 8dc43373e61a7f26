#!/bin/sh
# Purpose: fetch programs of the agent image from the npm registry, at the versions of versions.env.
#
# Usage: fetch.sh FOLDER PROGRAM...     PROGRAM: node, claude, codex, opencode, gemini
# Unpacks into FOLDER as it will stand at / of the image. No install script of a package is run. Needs npm and tar.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
# shellcheck source=/dev/null
. "$here/versions.env"

die() { printf 'fetch: error: %s\n' "$*" >&2; exit 1; }

[ $# -ge 2 ] || die "usage: fetch.sh FOLDER PROGRAM..."
mkdir -p "$1"
top=$(CDPATH='' cd -- "$1" && pwd)
shift
command -v npm >/dev/null 2>&1 || die "npm is missing"
case $(uname -m) in
x86_64) platform=linux-x64 ;;
aarch64) platform=linux-arm64 ;;
*) die "the agents have no native programs for $(uname -m)" ;;
esac
work=$(mktemp -d "${TMPDIR:-/tmp}/zeblit-fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# unpack PACKAGE FOLDER: the content of an npm package
unpack() {
    rm -rf "$work/packed"
    mkdir -p "$work/packed" "$2"
    npm pack --silent --pack-destination "$work/packed" "$1" >/dev/null 2>"$work/npm.log" ||
        { cat "$work/npm.log" >&2; die "npm could not fetch $1"; }
    tar -xzf "$work"/packed/*.tgz -C "$2" --strip-components=1 --no-same-owner
}

# put PROGRAM FILE: one program below /usr/local/bin
put() {
    [ -f "$2" ] || die "the npm package does not hold the program of $1: choose another version in versions.env"
    mkdir -p "$top/usr/local/bin"
    mv "$2" "$top/usr/local/bin/$1"
    chmod 0755 "$top/usr/local/bin/$1"
}

for program in "$@"; do
    case $program in
    node)
        unpack "node-$platform@$NODE_VERSION" "$work/node"
        put node "$work/node/bin/node"
        modules=$top/usr/local/lib/node_modules
        unpack "npm@$NPM_VERSION" "$modules/npm"
        ln -sf ../lib/node_modules/npm/bin/npm-cli.js "$top/usr/local/bin/npm"
        ln -sf ../lib/node_modules/npm/bin/npx-cli.js "$top/usr/local/bin/npx"
        chmod 0755 "$modules"/npm/bin/*-cli.js
        ;;
    claude)
        # The platform's package holds one native program.
        unpack "@anthropic-ai/claude-code-$platform@$CLAUDE_CODE_VERSION" "$work/claude"
        put claude "$work/claude/claude"
        ;;
    codex)
        unpack "@openai/codex@$CODEX_VERSION-$platform" "$work/codex"
        mkdir -p "$top/usr/local/lib" "$top/usr/local/bin"
        rm -rf "$work"/codex/vendor/*/codex-resources/voice "$top/usr/local/lib/codex"
        mv "$work"/codex/vendor/* "$top/usr/local/lib/codex"
        [ -f "$top/usr/local/lib/codex/bin/codex" ] || die "the npm package does not hold the program of codex"
        chmod 0755 "$top"/usr/local/lib/codex/bin/*
        ln -sf ../lib/codex/bin/codex "$top/usr/local/bin/codex"
        ;;
    opencode)
        variant=$platform
        # The usual build needs AVX2; the other one runs everywhere.
        if [ "$platform" = linux-x64 ] && ! grep -q avx2 /proc/cpuinfo; then variant=linux-x64-baseline; fi
        unpack "opencode-$variant@$OPENCODE_VERSION" "$work/opencode"
        put opencode "$work/opencode/bin/opencode"
        ;;
    gemini)
        modules=$top/usr/local/lib/node_modules/@google/gemini-cli
        unpack "@google/gemini-cli@$GEMINI_CLI_VERSION" "$modules"
        mkdir -p "$top/usr/local/bin" "$top/etc/gemini-cli"
        ln -sf ../lib/node_modules/@google/gemini-cli/bundle/gemini.js "$top/usr/local/bin/gemini"
        chmod 0755 "$modules/bundle/gemini.js"
        # It takes these over a repository's own, and only from a file of root's.
        cp "$here/gemini-settings.json" "$top/etc/gemini-cli/settings.json"
        chmod 0644 "$top/etc/gemini-cli/settings.json"
        ;;
    *) die "unknown program $program" ;;
    esac
done
chmod -R go-w,a+rX "$top"
