//! Purpose: what the container really is, seen from inside; the server compares it with the profile.

use super::output::escape;
use super::signal;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Places that a read-only root must refuse.
const ROOT_PROBES: [&str; 3] = ["/zeblit-probe", "/etc/zeblit-probe", "/usr/zeblit-probe"];
/// Places of an engine's socket; none may exist.
const SOCKET_PROBES: [&str; 4] = [
    "/var/run/docker.sock",
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
];

/// The socket that the server opens for the probe, in the sockets folder.
pub const PROBE_SOCKET: &str = "probe.sock";

/// One JSON object, `{"event":"probe", …}`.
pub fn report(sockets_folder: &Path) -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or("");
        value.split_whitespace().next().unwrap_or("").to_owned()
    };
    let interfaces: Vec<String> = fs::read_to_string("/proc/net/dev")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split_once(':').map(|(name, _)| name.trim().to_owned()))
        .collect();
    let root_writable = root_is_mounted_writable() || ROOT_PROBES.iter().any(|path| can_create(path));
    let sockets: Vec<String> = SOCKET_PROBES
        .iter()
        .filter(|path| fs::symlink_metadata(path).is_ok())
        .map(|path| (*path).to_owned())
        .collect();
    let socket_error = match UnixStream::connect(sockets_folder.join(PROBE_SOCKET)) {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    };
    format!(
        "{{\"event\":\"probe\",\"socket_error\":\"{}\",\"unknown_family\":{},\"uid\":\"{}\",\"gid\":\"{}\",\"cap_eff\":\"{}\",\"cap_bnd\":\"{}\",\"no_new_privs\":\"{}\",\"seccomp\":\"{}\",\"interfaces\":{},\"root_writable\":{root_writable},\"tmp_writable\":{},\"workspace_writable\":{},\"sockets\":{},\"mount_flags\":{}}}",
        escape(&socket_error),
        signal::unknown_socket_family(),
        escape(&field("Uid")),
        escape(&field("Gid")),
        escape(&field("CapEff")),
        escape(&field("CapBnd")),
        escape(&field("NoNewPrivs")),
        escape(&field("Seccomp")),
        list(&interfaces),
        can_create("/tmp/zeblit-probe"),
        can_create("/zeblit/workspace/.zeblit-probe"),
        list(&sockets),
        list(&mount_flags()),
    )
}

/// Creates and removes an empty file.
fn can_create(path: &str) -> bool {
    let created = fs::OpenOptions::new().write(true).create_new(true).open(path).is_ok();
    if created {
        let _ = fs::remove_file(path);
    }
    created
}

fn mounts() -> Vec<(String, String)> {
    // Fields of mountinfo: id, parent, device, root, mount point, options, …
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(4);
            Some((fields.next()?.to_owned(), fields.next()?.to_owned()))
        })
        .collect()
}

fn root_is_mounted_writable() -> bool {
    mounts().iter().any(|(point, options)| point == "/" && options.split(',').all(|option| option != "ro"))
}

/// `/zeblit/workspace rw,relatime`, … : bind mounts take the flags of the host's file system.
fn mount_flags() -> Vec<String> {
    mounts()
        .into_iter()
        .filter(|(point, _)| point.starts_with("/zeblit/") || point == "/tmp")
        .map(|(point, options)| format!("{point} {options}"))
        .collect()
}

fn list(items: &[String]) -> String {
    let quoted: Vec<_> = items.iter().map(|item| format!("\"{}\"", escape(item))).collect();
    format!("[{}]", quoted.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_json_with_every_line_of_the_profile() {
        let value: serde_json::Value = serde_json::from_str(&report(Path::new("/nonexistent"))).unwrap();
        for key in ["uid", "gid", "cap_eff", "no_new_privs", "seccomp"] {
            assert!(!value[key].as_str().unwrap().is_empty(), "{key}");
        }
        assert!(value["unknown_family"].as_i64().unwrap() > 0);
        assert!(!value["socket_error"].as_str().unwrap().is_empty());
        assert!(value["interfaces"].as_array().unwrap().iter().any(|name| name == "lo"));
    }
}
