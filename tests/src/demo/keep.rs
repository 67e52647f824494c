//! What to tell somebody who stays: where everything is, and what to try.

use super::{
    cast::{CLUSTER_IP, NODE_PORT},
    stage::Stage,
};
use crate::agent;

/// Prints commands that can be typed as they stand, from any shell of the machine that the cluster is on.
pub fn look_around(stage: &Stage) {
    println!("\nThe cluster stays up. Look around (each line works as it stands):\n");
    println!("    ip netns");
    let Ok((here, address)) = stage.here() else { return };
    let Ok(node) = stage.node(&here) else { return };
    let on_node = format!("nsenter --net={}", node.ns.path().display());
    for command in ["ipvsadm -L -n", "ipvsadm -S -n", "ip address show kube-dummy-if", "ipset list", "nft list ruleset"]
    {
        println!("    {on_node} {command}");
    }
    println!("    {on_node} curl -sS {CLUSTER_IP}");
    println!("    nsenter --net={} curl -sS {address}:{NODE_PORT}", stage.client().ns.path().display());
    if let Ok(program) = agent::program() {
        for (_, agent) in stage.agents() {
            println!("    {} dump services --socket={}", program.display(), agent.socket().display());
        }
        if let Some((_, agent)) = stage.agents().next() {
            for command in ["matrix", "monitor --drops", "dump problems"] {
                println!("    {} {command} --socket={}", program.display(), agent.socket().display());
            }
        }
    }
    println!("\nChange something:\n\n    {}", stage.feed.how_to_change());
    println!("\nIt goes with Ctrl-C, or with the virtual machine that it is in.");
}
