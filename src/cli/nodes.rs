//! Purpose: `zeblit nodes`: the processes of an installation, what they are at, and what no node takes.

use super::args::{NodesArgs, NodesCommand};
use super::backend::Backend;
use super::operate::{one_line, time};
use super::output::{CliError, Exit, Output};

pub async fn run(backend: &Backend, args: &NodesArgs, output: Output) -> Result<Exit, CliError> {
    match &args.command {
        Some(NodesCommand::Drain(node)) => {
            let nodes = backend.drain(&node.node, true).await?;
            output.note(format!(
                "{} claims no more runs; go on with `zeblit nodes undrain {}`",
                counted(nodes),
                node.node
            ));
            Ok(Exit::Ok)
        }
        Some(NodesCommand::Undrain(node)) => {
            let nodes = backend.drain(&node.node, false).await?;
            output.note(format!("{} claims runs again", counted(nodes)));
            Ok(Exit::Ok)
        }
        None => list(backend, args.json, output).await,
    }
}

fn counted(nodes: u64) -> String {
    if nodes == 1 { "The node".to_owned() } else { format!("Each of {nodes} nodes of this name") }
}

async fn list(backend: &Backend, json: bool, output: Output) -> Result<Exit, CliError> {
    let found = backend.nodes().await?;
    if json {
        output.json(&found)?;
        return Ok(Exit::Ok);
    }
    let rows: Vec<Vec<String>> = found
        .nodes
        .iter()
        .map(|node| {
            vec![
                one_line(&node.name),
                node.role.clone(),
                node.state.clone(),
                if node.slots > 0 { format!("{}/{}", node.live, node.slots) } else { "-".to_owned() },
                time(node.seen_at),
                node.version.clone(),
                node.capabilities.join(" "),
                node.id.clone(),
            ]
        })
        .collect();
    output.table(&["NAME", "ROLE", "STATE", "RUNS", "SEEN (UTC)", "VERSION", "CAN", "ID"], &rows)?;
    for waiting in &found.waiting {
        let needs = if waiting.needs.is_empty() {
            "no worker is running".to_owned()
        } else {
            format!("no running worker has {}", waiting.needs.join(", "))
        };
        output.warning(format!("run {} waits: {needs}", waiting.run));
    }
    Ok(Exit::Ok)
}
