//! Purpose: the container profile: what is asked of the engine, and the comparison with what it says it did.
//!
//! Every required line stands twice here, on purpose: once in `body` (asked) and once in `differences`
//! (read back from the created container before it is started).

use super::{Duty, Limits, SandboxSpec, SlotClass, paths};
use crate::domain::ids::SlotId;
use crate::shim::variables;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, HealthConfig, HostConfig, HostConfigLogConfig, Mount,
    MountBindOptions, MountBindOptionsPropagationEnum, MountType, RestartPolicy, RestartPolicyNameEnum,
};
use std::collections::HashMap;
use std::path::Path;
use std::sync::OnceLock;

/// Labels of our containers.
pub mod labels {
    pub const INSTANCE: &str = "zeblit.instance";
    pub const SLOT: &str = "zeblit.slot";
    pub const RUN: &str = "zeblit.run";
    pub const DUTY: &str = "zeblit.duty";
}

/// `/tmp` inside; it counts as the container's memory.
const TMP_BYTES: i64 = 1024 * 1024 * 1024;
/// The engine's log of one byte of our lines: JSON in JSON, its own frame per line; measured below 8.
const LOG_GROWTH: i64 = 8;
/// Log space besides the agent's lines.
const LOG_RESERVE_BYTES: i64 = 16 * 1024 * 1024;
/// Billionths of a CPU in a thousandth.
const NANO_PER_MILLI: i64 = 1_000_000;

/// The system calls that a container may make: everything a build needs, without name spaces, mounts, key
/// rings, tracing, io_uring, BPF, clocks and modules; sockets of the families UNIX, INET, INET6 and NETLINK
/// (routing only); programs of the machine's own word size only.
const SECCOMP: &str = include_str!("seccomp.json");

/// What a container is made from, besides its shape.
#[derive(Debug, Clone)]
pub struct Setting<'a> {
    pub instance: &'a str,
    pub shim: &'a Path,
    pub owner: (u32, u32),
    /// The engine's runtime, e.g. `runsc`; `None`: its default.
    pub runtime: Option<&'a str>,
    /// The shim's mode: `agent`, `collect` or `probe`.
    pub mode: &'a str,
    /// The collect job, cut into variables.
    pub job: Vec<(String, String)>,
}

/// What differs from container to container.
#[derive(Debug, Clone)]
pub struct Shape<'a> {
    pub slot: &'a SlotId,
    /// Empty: it waits for one.
    pub run: &'a str,
    pub duty: &'static str,
    pub image: &'a str,
    pub limits: &'a Limits,
    binds: Vec<Bind>,
}

/// A mount.
#[derive(Debug, Clone)]
struct Bind {
    /// Host path.
    source: String,
    target: &'static str,
    read_only: bool,
    /// What is mounted below the source later appears inside, too; nothing ever comes out.
    follows: bool,
}

impl Bind {
    fn new(source: &Path, target: &'static str, read_only: bool) -> Self {
        Self { source: source.to_string_lossy().into_owned(), target, read_only, follows: false }
    }
}

impl<'a> Shape<'a> {
    /// The container of one run.
    pub fn of_run(spec: &'a SandboxSpec) -> Self {
        let mut binds = vec![
            Bind::new(&spec.objects, paths::OBJECTS, true),
            Bind::new(&spec.workspace, paths::WORKSPACE, false),
            Bind::new(&spec.output, paths::OUTPUT, false),
            Bind::new(&spec.home, paths::HOME, false),
        ];
        if let Some(sockets) = &spec.sockets {
            binds.push(Bind::new(sockets, paths::SOCKETS, true));
        }
        if let Some(cache) = &spec.cache {
            binds.push(Bind::new(&cache.path, paths::CACHE, !cache.writable));
        }
        let duty = match spec.duty {
            Duty::Agent(_) => "agent",
            Duty::Collect(_) => "collect",
        };
        Self {
            slot: &spec.slot,
            run: spec.run.as_str(),
            duty,
            image: &spec.image,
            limits: &spec.limits,
            binds,
        }
    }

    /// A container that waits for a run: what it gets is mounted below `folder` later.
    pub fn of_slot(slot: &'a SlotId, class: &'a SlotClass, folder: &Path, sockets: &Path) -> Self {
        let entry = Bind { follows: true, ..Bind::new(folder, paths::ROOT, true) };
        let binds = vec![entry, Bind::new(sockets, paths::SOCKETS, true)];
        Self { slot, run: "", duty: "agent", image: &class.image, limits: &class.limits, binds }
    }

    /// The mounts, the whole list.
    fn binds(&self, setting: &Setting<'_>) -> Vec<Bind> {
        let mut list = self.binds.clone();
        list.push(Bind::new(setting.shim, paths::SHIM, true));
        list
    }
}

fn tmpfs() -> HashMap<String, String> {
    HashMap::from([("/tmp".to_owned(), format!("rw,exec,nosuid,nodev,size={TMP_BYTES},mode=1777"))])
}

/// The seccomp profile as the engine takes it: JSON in one line.
fn seccomp() -> &'static str {
    static LINE: OnceLock<String> = OnceLock::new();
    LINE.get_or_init(|| {
        serde_json::from_str::<serde_json::Value>(SECCOMP)
            .map_or_else(|_| SECCOMP.to_owned(), |profile| profile.to_string())
    })
}

/// Whether the engine reports our profile, in whatever order and spacing.
fn is_our_seccomp(options: &[&str]) -> bool {
    let mut found = options
        .iter()
        .filter_map(|option| option.strip_prefix("seccomp=").or_else(|| option.strip_prefix("seccomp:")));
    let parsed = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    match (found.next(), found.next()) {
        (Some(only), None) => parsed(only).is_some_and(|profile| Some(profile) == parsed(SECCOMP)),
        _ => false,
    }
}

fn user(setting: &Setting<'_>) -> String {
    format!("{}:{}", setting.owner.0, setting.owner.1)
}

/// One file that never rotates before the shim's own cap is reached.
fn log_options(limits: &Limits) -> HashMap<String, String> {
    let bytes = limits.log_bytes.max(0).saturating_mul(LOG_GROWTH).saturating_add(LOG_RESERVE_BYTES);
    HashMap::from([("max-size".to_owned(), format!("{bytes}")), ("max-file".to_owned(), "1".to_owned())])
}

/// What to create.
pub fn body(shape: &Shape<'_>, setting: &Setting<'_>) -> ContainerCreateBody {
    let mounts = shape
        .binds(setting)
        .into_iter()
        .map(|bind| Mount {
            typ: Some(MountType::BIND),
            source: Some(bind.source),
            target: Some(bind.target.to_owned()),
            read_only: Some(bind.read_only),
            bind_options: Some(MountBindOptions {
                propagation: Some(if bind.follows {
                    MountBindOptionsPropagationEnum::RSLAVE
                } else {
                    MountBindOptionsPropagationEnum::RPRIVATE
                }),
                ..MountBindOptions::default()
            }),
            ..Mount::default()
        })
        .collect();
    let host = HostConfig {
        network_mode: Some("none".into()),
        cap_drop: Some(vec!["ALL".into()]),
        security_opt: Some(vec!["no-new-privileges".into(), format!("seccomp={}", seccomp())]),
        runtime: setting.runtime.map(str::to_owned),
        readonly_rootfs: Some(true),
        privileged: Some(false),
        ipc_mode: Some("private".into()),
        pids_limit: Some(shape.limits.pids),
        memory: Some(shape.limits.memory_bytes),
        memory_swap: Some(shape.limits.memory_bytes),
        nano_cpus: Some(shape.limits.millicpus.saturating_mul(NANO_PER_MILLI)),
        init: Some(false),
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            ..RestartPolicy::default()
        }),
        log_config: Some(HostConfigLogConfig {
            typ: Some("json-file".into()),
            config: Some(log_options(shape.limits)),
        }),
        tmpfs: Some(tmpfs()),
        mounts: Some(mounts),
        ..HostConfig::default()
    };
    let mut env = vec![format!("{}={}", variables::OBJECTS, paths::OBJECTS)];
    env.extend(setting.job.iter().map(|(name, value)| format!("{name}={value}")));
    let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    ContainerCreateBody {
        image: Some(shape.image.to_owned()),
        entrypoint: Some(vec![paths::SHIM.into()]),
        cmd: Some(vec![setting.mode.into()]),
        user: Some(user(setting)),
        working_dir: Some("/".into()),
        hostname: Some("zeblit".into()),
        env: Some(env),
        tty: Some(false),
        open_stdin: Some(false),
        network_disabled: Some(true),
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".into()]), ..HealthConfig::default() }),
        labels: Some(HashMap::from([
            label(labels::INSTANCE, setting.instance),
            label(labels::SLOT, shape.slot.as_str()),
            label(labels::RUN, shape.run),
            label(labels::DUTY, shape.duty),
        ])),
        host_config: Some(host),
        ..ContainerCreateBody::default()
    }
}

/// Every required line that the engine reports otherwise; empty: the profile holds.
pub fn differences(
    found: &ContainerInspectResponse,
    shape: &Shape<'_>,
    setting: &Setting<'_>,
) -> Vec<String> {
    let mut list = Differences::default();
    let Some(host) = &found.host_config else {
        return vec!["the engine reports no host configuration".into()];
    };
    let Some(config) = &found.config else {
        return vec!["the engine reports no container configuration".into()];
    };
    list.same("network", &host.network_mode.as_deref(), &Some("none"));
    let dropped = host.cap_drop.iter().flatten().any(|name| name.eq_ignore_ascii_case("all"));
    list.holds("capabilities dropped", dropped, &host.cap_drop);
    list.none("capabilities added", &host.cap_add);
    let options: Vec<&str> = host.security_opt.iter().flatten().map(String::as_str).collect();
    let no_new_privileges = options.iter().any(|option| {
        matches!(*option, "no-new-privileges" | "no-new-privileges:true" | "no-new-privileges=true")
    });
    list.holds("no-new-privileges", no_new_privileges, &options.len());
    let confined =
        options.iter().all(|option| !option.contains("unconfined") && !option.ends_with("disable"));
    let shown: Vec<String> = options.iter().map(|option| option.chars().take(80).collect()).collect();
    list.holds("confinement", confined, &shown);
    list.holds("seccomp profile", is_our_seccomp(&options), &shown);
    if let Some(runtime) = setting.runtime {
        list.same("runtime", &host.runtime.as_deref(), &Some(runtime));
    }
    list.same("read-only root", &host.readonly_rootfs, &Some(true));
    list.holds("privileged", host.privileged != Some(true), &host.privileged);
    list.same("user", &config.user.as_deref(), &Some(user(setting).as_str()));
    list.same("pids limit", &host.pids_limit, &Some(shape.limits.pids));
    list.same("memory limit", &host.memory, &Some(shape.limits.memory_bytes));
    list.same("memory and swap limit", &host.memory_swap, &Some(shape.limits.memory_bytes));
    list.same("cpu limit", &host.nano_cpus, &Some(shape.limits.millicpus.saturating_mul(NANO_PER_MILLI)));
    list.same("ipc", &host.ipc_mode.as_deref(), &Some("private"));
    for (name, mode) in [
        ("pid namespace", &host.pid_mode),
        ("uts namespace", &host.uts_mode),
        ("user namespace", &host.userns_mode),
        ("cgroup parent", &host.cgroup_parent),
    ] {
        list.holds(name, mode.as_deref().unwrap_or("").is_empty(), mode);
    }
    list.holds("out-of-memory killer", host.oom_kill_disable != Some(true), &host.oom_kill_disable);
    list.holds("init", host.init != Some(true), &host.init);
    list.none("devices", &host.devices);
    list.none("device requests", &host.device_requests);
    list.none("device rules", &host.device_cgroup_rules);
    list.none("binds", &host.binds);
    list.none("volumes from", &host.volumes_from);
    list.none("extra groups", &host.group_add);
    list.holds(
        "masked kernel paths",
        host.masked_paths.iter().flatten().next().is_some(),
        &host.masked_paths,
    );
    let restart = host.restart_policy.as_ref().and_then(|policy| policy.name);
    let no_restart = matches!(restart, None | Some(RestartPolicyNameEnum::NO | RestartPolicyNameEnum::EMPTY));
    list.holds("restart policy", no_restart, &restart);
    let log = host.log_config.as_ref();
    list.same("log driver", &log.and_then(|log| log.typ.as_deref()), &Some("json-file"));
    list.same("log limits", &log.and_then(|log| log.config.as_ref()), &Some(&log_options(shape.limits)));
    list.same("tmpfs", &host.tmpfs, &Some(tmpfs()));
    let shown = |source: &str, target: &str, read_only: bool, propagation: &str| {
        format!("{source} at {target} {} {propagation}", if read_only { "ro" } else { "rw" })
    };
    let mut wanted: Vec<_> = shape
        .binds(setting)
        .into_iter()
        .map(|bind| {
            let propagation = if bind.follows { "rslave" } else { "rprivate" };
            shown(&bind.source, bind.target, bind.read_only, propagation)
        })
        .collect();
    let mut mounted: Vec<_> = found
        .mounts
        .iter()
        .flatten()
        .map(|mount| {
            let source = mount.source.as_deref().or(mount.name.as_deref()).unwrap_or("?");
            let target = mount.destination.as_deref().unwrap_or("?");
            shown(source, target, mount.rw == Some(false), mount.propagation.as_deref().unwrap_or("?"))
        })
        .collect();
    wanted.sort();
    mounted.sort();
    list.same("mounts", &mounted, &wanted);
    list.same("entry point", &config.entrypoint, &Some(vec![paths::SHIM.to_owned()]));
    list.same("command", &config.cmd, &Some(vec![setting.mode.to_owned()]));
    list.0
}

#[derive(Default)]
struct Differences(Vec<String>);

impl Differences {
    fn holds(&mut self, name: &str, holds: bool, found: &impl std::fmt::Debug) {
        if !holds {
            self.0.push(format!("{name}: {found:?}"));
        }
    }

    fn same<T: PartialEq + std::fmt::Debug>(&mut self, name: &str, found: &T, wanted: &T) {
        if found != wanted {
            self.0.push(format!("{name}: asked {wanted:?}, found {found:?}"));
        }
    }

    fn none<T: std::fmt::Debug>(&mut self, name: &str, found: &Option<Vec<T>>) {
        self.holds(name, found.iter().flatten().next().is_none(), found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::RunId;
    use crate::sandbox::{CollectJob, Job};
    use bollard::models::{ContainerConfig, DeviceMapping, MountPoint};
    use std::path::PathBuf;

    fn spec() -> SandboxSpec {
        SandboxSpec {
            slot: SlotId::new("s1"),
            run: RunId::new("r1"),
            image: "image".into(),
            limits: Limits { memory_bytes: 1 << 30, millicpus: 1500, pids: 512, log_bytes: 1 << 20 },
            duty: Duty::Agent(Job::default()),
            workspace: PathBuf::from("/h/w"),
            output: PathBuf::from("/h/o"),
            home: PathBuf::from("/h/h"),
            sockets: Some(PathBuf::from("/h/s")),
            objects: PathBuf::from("/h/b"),
            cache: None,
        }
    }

    fn setting() -> Setting<'static> {
        Setting {
            instance: "i",
            shim: Path::new("/h/shim"),
            owner: (10001, 10001),
            runtime: Some("runsc"),
            mode: "agent",
            job: Vec::new(),
        }
    }

    /// What an engine reports that did exactly what was asked.
    fn obedient() -> ContainerInspectResponse {
        let (spec, setting) = (spec(), setting());
        let body = body(&Shape::of_run(&spec), &setting);
        let mut host = body.host_config.unwrap();
        host.masked_paths = Some(vec!["/proc/kcore".into()]);
        let mounts = Shape::of_run(&spec)
            .binds(&setting)
            .into_iter()
            .map(|bind| MountPoint {
                typ: Some("bind".into()),
                source: Some(bind.source),
                destination: Some(bind.target.into()),
                rw: Some(!bind.read_only),
                propagation: Some("rprivate".into()),
                ..MountPoint::default()
            })
            .collect();
        ContainerInspectResponse {
            host_config: Some(host),
            config: Some(ContainerConfig {
                user: body.user,
                entrypoint: body.entrypoint,
                cmd: body.cmd,
                ..ContainerConfig::default()
            }),
            mounts: Some(mounts),
            ..ContainerInspectResponse::default()
        }
    }

    #[test]
    fn an_engine_that_did_what_was_asked_passes() {
        assert_eq!(differences(&obedient(), &Shape::of_run(&spec()), &setting()), Vec::<String>::new());
    }

    #[test]
    fn every_broken_line_is_named() {
        type Break = fn(&mut HostConfig);
        let breaks: [(&str, Break); 29] = [
            ("network", |h| h.network_mode = Some("bridge".into())),
            ("capabilities dropped", |h| h.cap_drop = None),
            ("capabilities added", |h| h.cap_add = Some(vec!["SYS_ADMIN".into()])),
            ("no-new-privileges", |h| h.security_opt = None),
            ("confinement", |h| h.security_opt.as_mut().unwrap().push("seccomp=unconfined".into())),
            ("seccomp profile", |h| {
                h.security_opt.as_mut().unwrap().pop();
            }),
            ("seccomp profile", |h| {
                h.security_opt.as_mut().unwrap()[1] =
                    seccomp().replacen("\"acct", "\"accept", 1).replacen("accept4", "mount", 1);
            }),
            ("runtime", |h| h.runtime = Some("runc".into())),
            ("read-only root", |h| h.readonly_rootfs = Some(false)),
            ("privileged", |h| h.privileged = Some(true)),
            ("pids limit", |h| h.pids_limit = None),
            ("memory limit", |h| h.memory = Some(0)),
            ("memory and swap", |h| h.memory_swap = Some(-1)),
            ("cpu limit", |h| h.nano_cpus = Some(0)),
            ("ipc", |h| h.ipc_mode = Some("host".into())),
            ("pid namespace", |h| h.pid_mode = Some("host".into())),
            ("uts namespace", |h| h.uts_mode = Some("host".into())),
            ("user namespace", |h| h.userns_mode = Some("host".into())),
            ("cgroup parent", |h| h.cgroup_parent = Some("/".into())),
            ("out-of-memory", |h| h.oom_kill_disable = Some(true)),
            ("init", |h| h.init = Some(true)),
            ("devices", |h| h.devices = Some(vec![DeviceMapping::default()])),
            ("binds", |h| h.binds = Some(vec!["/:/host".into()])),
            ("volumes from", |h| h.volumes_from = Some(vec!["x".into()])),
            ("extra groups", |h| h.group_add = Some(vec!["docker".into()])),
            ("masked", |h| h.masked_paths = Some(Vec::new())),
            ("restart", |h| h.restart_policy.as_mut().unwrap().name = Some(RestartPolicyNameEnum::ALWAYS)),
            ("log", |h| h.log_config = None),
            ("tmpfs", |h| h.tmpfs.as_mut().unwrap().clear()),
        ];
        for (name, break_it) in breaks {
            let mut found = obedient();
            break_it(found.host_config.as_mut().unwrap());
            let list = differences(&found, &Shape::of_run(&spec()), &setting());
            assert!(list.iter().any(|line| line.starts_with(name)), "{name}: {list:?}");
        }
    }

    #[test]
    fn the_system_calls_that_lead_out_are_not_on_the_list() {
        let profile: serde_json::Value = serde_json::from_str(SECCOMP).unwrap();
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
        let named = |name: &str| -> Vec<&serde_json::Value> {
            let rules = profile["syscalls"].as_array().unwrap().iter();
            rules.filter(|rule| rule["names"].as_array().unwrap().iter().any(|found| found == name)).collect()
        };
        for name in [
            "userfaultfd",
            "keyctl",
            "add_key",
            "request_key",
            "bpf",
            "perf_event_open",
            "io_uring_setup",
            "io_uring_enter",
            "io_uring_register",
            "unshare",
            "setns",
            "mount",
            "umount2",
            "pivot_root",
            "fsopen",
            "fsmount",
            "move_mount",
            "open_tree",
            "mount_setattr",
            "ptrace",
            "process_vm_readv",
            "process_vm_writev",
            "pidfd_getfd",
            "open_by_handle_at",
            "chroot",
            "init_module",
            "finit_module",
            "kexec_load",
            "reboot",
            "swapon",
            "syslog",
            "quotactl",
            "kcmp",
            "acct",
            "modify_ldt",
        ] {
            assert!(named(name).is_empty(), "{name}");
        }
        assert_eq!(named("clone3")[0]["errnoRet"], 38, "so that the C library falls back to clone");
        // NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
        assert_eq!(named("clone")[0]["args"][0]["value"], 0x7e02_0000);
        let families: Vec<_> = named("socket").iter().map(|rule| rule["args"][0]["value"].clone()).collect();
        assert_eq!(families, [1, 2, 10, 16]);
        for name in ["execve", "openat2", "futex", "rseq", "statx", "epoll_pwait2"] {
            assert_eq!(named(name).len(), 1, "{name}");
        }
    }

    #[test]
    fn other_mounts_and_users_are_named() {
        let mut extra = obedient();
        extra
            .mounts
            .as_mut()
            .unwrap()
            .push(MountPoint { name: Some("volume".into()), ..MountPoint::default() });
        let mut writable = obedient();
        writable.mounts.as_mut().unwrap()[0].rw = Some(true);
        let mut shared = obedient();
        shared.mounts.as_mut().unwrap()[0].propagation = Some("rshared".into());
        let mut root = obedient();
        root.config.as_mut().unwrap().user = Some("0:0".into());
        for (name, found) in [("mounts", extra), ("mounts", writable), ("mounts", shared), ("user", root)] {
            let list = differences(&found, &Shape::of_run(&spec()), &setting());
            assert!(list.iter().any(|line| line.starts_with(name)), "{name}: {list:?}");
        }
    }

    #[test]
    fn a_collector_has_no_sockets() {
        let spec = SandboxSpec { sockets: None, duty: Duty::Collect(CollectJob::default()), ..spec() };
        let body = body(&Shape::of_run(&spec), &setting());
        let mounts = body.host_config.unwrap().mounts.unwrap();
        assert!(mounts.iter().all(|mount| mount.target.as_deref() != Some(paths::SOCKETS)));
        assert_eq!(body.labels.unwrap()[labels::DUTY], "collect");
    }
}
