//! The preflight of `sandbox.runtime = "runsc"`: an engine that plays gVisor with and without its flag for sockets.

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use zeblit::sandbox::docker::{DockerOptions, DockerSandbox};
use zeblit::sandbox::{Check, Sandbox};

/// An engine that runs nothing: it answers for a container whose shim saw what the scenario says.
#[derive(Default)]
struct Engine {
    /// What the shim's connection to the server's socket came to; empty: it opened.
    socket_error: &'static str,
    created: Mutex<Option<Value>>,
    started: Mutex<bool>,
}

fn answer(status: u16, body: &Value) -> Response {
    let answer = Response::builder().status(status).header("content-type", "application/json");
    answer.body(Body::from(body.to_string())).unwrap()
}

/// The container as the engine describes it: what was asked for.
fn inspected(engine: &Engine) -> Option<Value> {
    let mut asked = engine.created.lock().unwrap().clone()?;
    let mut host = asked["HostConfig"].take();
    host["MaskedPaths"] = json!(["/proc/kcore"]);
    let mounts: Vec<Value> = host["Mounts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|mount| {
            json!({"Type": "bind", "Source": mount["Source"], "Destination": mount["Target"],
                "RW": mount["ReadOnly"] != json!(true), "Propagation": "rprivate"})
        })
        .collect();
    let status = if *engine.started.lock().unwrap() { "exited" } else { "created" };
    Some(json!({"Id": "c1", "Name": "/c1", "Config": asked, "HostConfig": host, "Mounts": mounts,
        "State": {"Status": status, "ExitCode": 0, "OOMKilled": false}}))
}

/// The report of the shim's probe, in a frame of the engine's log.
fn log(engine: &Engine) -> Vec<u8> {
    let user = engine.created.lock().unwrap().as_ref().unwrap()["User"].as_str().unwrap().to_owned();
    let (uid, gid) = user.split_once(':').unwrap();
    let report = json!({"event": "probe", "socket_error": engine.socket_error, "unknown_family": 97, "uid": uid, "gid": gid,
        "cap_eff": "0000000000000000", "cap_bnd": "0000000000000000", "no_new_privs": "1", "seccomp": "0",
        "interfaces": ["lo"], "root_writable": false, "tmp_writable": true, "workspace_writable": true,
        "sockets": [], "mount_flags": ["/zeblit/home rw,nosuid,nodev"]});
    let line = json!({"n": 1, "s": "shim", "t": report.to_string()}).to_string() + "\n";
    let mut frame = vec![1, 0, 0, 0];
    frame.extend(u32::try_from(line.len()).unwrap().to_be_bytes());
    frame.extend(line.as_bytes());
    frame
}

async fn respond(State(engine): State<Arc<Engine>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    // `/v1.41/containers/json` and `/containers/json` are the same.
    let path = match path.split_once("/v1.") {
        Some(("", rest)) => rest.split_once('/').map_or(String::new(), |(_, rest)| format!("/{rest}")),
        _ => path,
    };
    let method = request.method().as_str().to_owned();
    match (method.as_str(), path.as_str()) {
        ("GET", "/version") => {
            answer(200, &json!({"ApiVersion": "1.41", "MinAPIVersion": "1.12", "Version": "20.10"}))
        }
        ("GET", "/info") => {
            answer(200, &json!({"SecurityOptions": ["name=seccomp,profile=default"], "NCPU": 2}))
        }
        ("GET", _) if path.starts_with("/images/") => answer(200, &json!({"Id": "i1", "Size": 1})),
        ("POST", "/containers/create") => {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            *engine.created.lock().unwrap() = Some(serde_json::from_slice(&body).unwrap());
            answer(201, &json!({"Id": "c1", "Warnings": []}))
        }
        ("POST", _) if path.ends_with("/start") => {
            *engine.started.lock().unwrap() = true;
            Response::builder().status(204).body(Body::empty()).unwrap()
        }
        ("GET", _) if path.ends_with("/logs") => {
            let kind = "application/vnd.docker.raw-stream";
            Response::builder().header("content-type", kind).body(Body::from(log(&engine))).unwrap()
        }
        ("GET", _) if path.ends_with("/json") => match inspected(&engine) {
            Some(found) => answer(200, &found),
            None => answer(404, &json!({"message": "no such container"})),
        },
        ("DELETE", _) => {
            *engine.created.lock().unwrap() = None;
            Response::builder().status(204).body(Body::empty()).unwrap()
        }
        _ => answer(500, &json!({"message": format!("{method} {path} is not played")})),
    }
}

/// The required checks that fail, of a server with this runtime.
async fn failing(socket_error: &'static str, runtime: Option<&str>) -> Vec<Check> {
    let engine = Arc::new(Engine { socket_error, ..Engine::default() });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().fallback(respond).with_state(Arc::clone(&engine));
    let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let folder = tempfile::tempdir().unwrap();
    let sandbox = DockerSandbox::connect(DockerOptions {
        docker_host: format!("http://{address}"),
        instance: "test".into(),
        shim_folder: PathBuf::from(folder.path()),
        owner: Some((10_001, 10_001)),
        image: "zeblit-agent:latest".into(),
        runtime: runtime.map(str::to_owned),
        warm: None,
    });
    let checks = sandbox.self_check().await;
    server.abort();
    assert!(checks.iter().any(|check| check.name == "inside: the broker's socket opens"), "{checks:#?}");
    assert!(engine.created.lock().unwrap().is_none(), "the probe's container was removed");
    checks.into_iter().filter(|check| !check.ok && check.required).collect()
}

#[tokio::test]
async fn gvisor_without_its_flag_for_sockets_is_named_with_the_flag() {
    let found = failing("Connection refused (os error 111)", Some("runsc")).await;
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0].name, "inside: the broker's socket opens");
    assert!(found[0].found.contains("Connection refused") && found[0].found.contains("runsc"), "{found:?}");
    assert!(found[0].fix.contains("runsc install -- --host-uds=open"), "{found:?}");
}

#[tokio::test]
async fn gvisor_with_its_flag_passes() {
    assert_eq!(failing("", Some("runsc")).await, []);
}

#[tokio::test]
async fn another_runtime_that_passes_no_socket_is_told_apart() {
    let found = failing("No such file or directory (os error 2)", Some("kata")).await;
    let socket = found.iter().find(|check| check.name.contains("socket opens")).expect("named");
    assert!(!socket.fix.contains("runsc") && socket.fix.contains("Kata"), "{socket:?}");
}
