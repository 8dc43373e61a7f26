"""A hostile agent that leaves results of every bad kind, one folder each, where the host looks for its bundle.

Arguments: the base commit. Runs inside the container, in the workspace. Prints `LAYOUT <name> <what>`.
"""

import hashlib
import os
import socket
import struct
import subprocess
import sys
import zlib

BASE = sys.argv[1]
REF = "refs/heads/zeblit-result"
TOP = "/zeblit/output/layouts"
NAME = "changes.bundle"
ENV = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "a",
       "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
       "GIT_AUTHOR_DATE": "1700000000 +0000", "GIT_COMMITTER_DATE": "1700000000 +0000"}


def git(*words, data=b"", check=True):
    done = subprocess.run(["git", "-c", "safe.directory=*", *words], input=data, capture_output=True, env=ENV)
    if check and done.returncode != 0:
        raise RuntimeError(f"git {words}: {done.stderr.decode(errors='replace')}")
    return done.stdout.decode(errors="replace").strip()


def place(name, what):
    folder = os.path.join(TOP, name)
    os.makedirs(folder, exist_ok=True)
    print(f"LAYOUT {name} {what}", flush=True)
    return os.path.join(folder, NAME)


def raw(kind, data):
    """Writes an object without any check; gives its id."""
    whole = kind.encode() + b" " + str(len(data)).encode() + b"\0" + data
    name = hashlib.sha1(whole).hexdigest()
    folder = f".git/objects/{name[:2]}"
    os.makedirs(folder, exist_ok=True)
    path = f"{folder}/{name[2:]}"
    if not os.path.exists(path):
        with open(path, "wb") as file:
            file.write(zlib.compress(whole))
    return name


def blob(text):
    return git("hash-object", "-w", "--stdin", data=text if isinstance(text, bytes) else text.encode())


def tree(*entries):
    """(mode, name, id), as given: unsorted, doubled, with slashes."""
    return raw("tree", b"".join(
        mode.encode() + b" " + (name if isinstance(name, bytes) else name.encode()) + b"\0" + bytes.fromhex(oid)
        for mode, name, oid in entries))


def commit(tree_id, *parents, message=b"x", author=b"a <a@b> 1700000000 +0000"):
    lines = [b"tree " + tree_id.encode()] + [b"parent " + p.encode() for p in parents]
    lines += [b"author " + author, b"committer " + author, b"", message]
    return raw("commit", b"\n".join(lines) + b"\n")


def pack(tip, *without):
    """The pack of everything reachable from `tip` and not from `without`."""
    wanted = "\n".join([tip] + ["^" + one for one in without]) + "\n"
    done = subprocess.run(["git", "-c", "safe.directory=*", "pack-objects", "--revs", "--stdout", "-q"],
                          input=wanted.encode(), capture_output=True, env=ENV)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.decode(errors="replace"))
    return done.stdout


def pack_of(objects):
    """A pack made by hand of (type number, bytes)."""
    body = b""
    for kind, data in objects:
        size, first = len(data), len(data) & 15
        size >>= 4
        head = [(kind << 4) | first]
        while size:
            head[-1] |= 128
            head.append(size & 127)
            size >>= 7
        body += bytes(head) + zlib.compress(data)
    whole = b"PACK" + struct.pack(">II", 2, len(objects)) + body
    return whole + hashlib.sha1(whole).digest()


def bundle(name, what, tip, packed=None, refs=None, needs=(BASE,), version=b"# v2 git bundle\n", more=b""):
    head = version + b"".join(b"-" + one.encode() + b" \n" for one in needs)
    for ref in refs or [f"{tip} {REF}"]:
        head += ref.encode() + b"\n"
    with open(place(name, what), "wb") as file:
        file.write(head + b"\n" + (pack(tip, BASE) if packed is None else packed) + more)


def tree_case(name, what, *entries):
    made = tree(*entries)
    tip = commit(made, BASE)
    objects = [(1, cat(tip)), (2, cat(made))]
    seen = set()
    for mode, _, oid in entries:
        if mode != "160000" and oid not in seen:
            seen.add(oid)
            kind = git("cat-file", "-t", oid, check=False)
            objects.append((2 if kind == "tree" or mode == "40000" else 3, cat(oid)))
    bundle(name, what, tip, packed=pack_of(objects))


def cat(oid):
    with open(f".git/objects/{oid[:2]}/{oid[2:]}", "rb") as file:
        return zlib.decompress(file.read()).split(b"\0", 1)[1]


def main():
    os.makedirs(TOP, exist_ok=True)
    # ---- the file itself
    for name, target in [("link-to-passwd", "/etc/passwd"), ("link-to-shadow", "/etc/shadow"), ("link-to-itself", NAME),
                         ("link-up", "../../../../../../etc/hostname"), ("link-to-kcore", "/proc/kcore"),
                         ("link-to-zero", "/dev/zero"), ("link-to-nothing", "/nonexistent")]:
        os.symlink(target, place(name, f"a symbolic link to {target}"))
    os.mkfifo(place("fifo", "a named pipe"))
    os.mkdir(place("folder", "a folder"))
    socket.socket(socket.AF_UNIX).bind(place("socket", "a socket"))
    with open(place("sparse", "a sparse file of 1 TiB"), "wb") as file:
        file.truncate(1 << 40)
    with open(place("too-large", "a file of 300 MiB"), "wb") as file:
        file.truncate(300 << 20)
    for name, what, data in [
        ("empty", "an empty file", b""), ("noise", "random bytes", os.urandom(100_000)), ("zeros", "zero bytes", bytes(100_000)),
        ("endless-line", "a header line without an end", b"# v2 git bundle\n" + b"-" * 9_000_000),
        ("endless-header", "200 000 header lines", b"# v2 git bundle\n" + b"-" + BASE.encode() + b" \n" * 200_000),
        ("no-signature", "no signature", BASE.encode() + b" " + REF.encode() + b"\n\n"),
    ]:
        with open(place(name, what), "wb") as file:
            file.write(data)
    # ---- the header
    good = blob("changed\n")
    fine = tree(("100644", "a.txt", good))
    tip = commit(fine, BASE)
    bundle("two-refs", "a second ref", tip, refs=[f"{tip} {REF}", f"{tip} refs/heads/main"])
    bundle("other-ref", "another ref", tip, refs=[f"{tip} refs/heads/main"])
    bundle("head-ref", "HEAD", tip, refs=[f"{tip} HEAD"])
    bundle("ref-up", "a ref with ..", tip, refs=[f"{tip} refs/heads/../../config"])
    bundle("no-ref", "no ref", tip, refs=[""])
    bundle("tag-ref", "a tag", tip, refs=[f"{tip} refs/tags/v1"])
    bundle("nul-ref", "a ref with NUL", tip, refs=[f"{tip} {REF}\0x"])
    bundle("unknown-need", "an unknown prerequisite", tip, needs=("1" * 40,))
    bundle("short-need", "a short prerequisite", tip, needs=(BASE[:12],))
    bundle("unknown-tip", "a tip that is not in the pack", "2" * 40, packed=pack(tip, BASE))
    bundle("tip-is-blob", "a tip that is a file", good)
    bundle("v3-filter", "version 3 with a filter", tip, version=b"# v3 git bundle\n@object-format=sha1\n@filter=blob:none\n")
    bundle("v3-sha256", "version 3 with another hash", tip, version=b"# v3 git bundle\n@object-format=sha256\n")
    # ---- the pack
    whole = pack(tip, BASE)
    bundle("cut-pack", "half a pack", tip, packed=whole[: len(whole) // 2])
    bundle("wrong-sum", "a pack with a wrong sum", tip, packed=whole[:-1] + bytes([whole[-1] ^ 1]))
    bundle("no-pack", "no pack", tip, packed=b"")
    bundle("script-pack", "a script for a pack", tip, packed=b"#!/bin/sh\ntouch /tmp/zeblit-pwned\n")
    bundle("many-objects", "a pack that claims 4 billion objects", tip, packed=b"PACK" + struct.pack(">II", 2, 0xFFFFFFFF) + whole[12:])
    bundle("inflates", "a file that inflates to 2 GiB", tip, packed=inflating())
    # ---- the history
    root = commit(fine)
    bundle("other-root", "a history of its own", root, packed=pack(root), needs=())
    merge = commit(fine, BASE, commit(fine, message=b"side"))
    bundle("merge", "a merge", merge, packed=pack(merge, BASE))
    chain = BASE
    for n in range(130):
        chain = commit(tree(("100644", "a.txt", blob(f"{n}\n"))), chain, message=f"{n}".encode())
    bundle("many-commits", "130 commits", chain)
    bundle("bad-author", "an author with a line break", commit(fine, BASE, author=b"a\n<a@b> 1 +0000\nx <a@b> 1 +0000"),
           packed=pack_of([(1, cat(commit(fine, BASE, author=b"a\n<a@b> 1 +0000\nx <a@b> 1 +0000"))), (2, cat(fine)), (3, cat(good))]))
    # ---- the tree
    inner = tree(("100755", "post-checkout", good))
    for name in [".git", ".GIT", ".Git", "git~1", ".git ", ".git.", ".g\u200cit", ".git\\x", "..", ".", ""]:
        tree_case(f"name-{name.encode().hex() or 'empty'}", f"a folder named {name!r}", ("40000", name, inner))
    tree_case("slash", "a name with a slash", ("100644", "../../escape", good))
    tree_case("deep-slash", "a name with .git/hooks", ("100755", ".git/hooks/pre-push", good))
    tree_case("double", "one name twice", ("100644", "a.txt", good), ("100644", "a.txt", blob("other\n")))
    tree_case("double-kind", "a file and a folder of one name", ("100644", "a", good), ("40000", "a", inner))
    tree_case("unsorted", "names out of order", ("100644", "z", good), ("100644", "a", good))
    tree_case("nul-mode", "a mode of zero", ("0", "a.txt", good))
    tree_case("odd-mode", "a mode with the suid bit", ("104755", "a.txt", good))
    tree_case("symlink-out", "a link to /etc/passwd", ("120000", "link", blob("/etc/passwd")))
    tree_case("symlink-up", "a link to ../../..", ("120000", "link", blob("../../..")))
    tree_case("gitlink", "a submodule", ("160000", "module", "3" * 40))
    tree_case("gitmodules-url", "a submodule with a bad address", ("100644", ".gitmodules", blob(
        '[submodule "x"]\n\tpath = x\n\turl = -u./payload\n')), ("160000", "x", "3" * 40))
    tree_case("gitmodules-path", "a submodule with a bad path", ("100644", ".gitmodules", blob(
        '[submodule "../../x"]\n\tpath = ../x\n\turl = https://evil.example/x\n')))
    tree_case("gitmodules-link", "a .gitmodules that is a link", ("120000", ".gitmodules", blob("/etc/passwd")))
    tree_case("gitattributes-link", "a .gitattributes that is a link", ("120000", ".gitattributes", blob("/etc/passwd")))
    workflows = tree(("40000", "workflows", tree(("100644", "ci.yml", blob("on: push\n")))))
    for name, path in [("workflow", ".github"), ("workflow-case", ".GitHub")]:
        made = tree(("40000", path, workflows))
        tip = commit(made, BASE)
        bundle(name, f"a workflow in {path}", tip)
    long_name = "x" * 4000
    tree_case("long-name", "a name of 4000 bytes", ("100644", long_name, good))
    tree_case("control-name", "a name with a line break", ("100644", "a\nb", good))
    nested = tree(("100644", "a", good))
    for _ in range(200):
        nested = tree(("40000", "d", nested))
    bundle("deep", "200 folders deep", commit(nested, BASE))
    wide = tree(("100644", "a", good))
    for _ in range(24):
        wide = tree(("40000", "x", wide), ("40000", "y", wide))
    bundle("unfolds", "a tree that unfolds to 16 million files", commit(wide, BASE))
    bundle("many-files", "5000 files", commit(tree(*sorted(("100644", f"f{n:05}", good) for n in range(5000))), BASE))
    bundle("secret", "a secret of the server", commit(tree(("100644", "a.txt", blob("the key is canary-of-the-server-1234567890\n"))), BASE))
    with open(place("zz-control", "a plain change: must come in"), "wb") as file:
        tip = commit(tree(("100644", "a.txt", good)), BASE)
        file.write(b"# v2 git bundle\n-" + BASE.encode() + b" \n" + f"{tip} {REF}\n\n".encode() + pack(tip, BASE))
    print("END OF LAYOUTS", flush=True)


def inflating():
    size = 2 << 30
    packer = zlib.compressobj(9)
    data = b""
    zeros = bytes(1 << 20)
    for _ in range(size >> 20):
        data += packer.compress(zeros)
    data += packer.flush()
    head, rest = [(3 << 4) | (size & 15)], size >> 4
    while rest:
        head[-1] |= 128
        head.append(rest & 127)
        rest >>= 7
    whole = b"PACK" + struct.pack(">II", 2, 1) + bytes(head) + data
    return whole + hashlib.sha1(whole).digest()


main()
